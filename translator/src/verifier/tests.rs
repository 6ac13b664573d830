//! Per rule: the smallest fragment that keeps to it, and one that does not.
#![allow(clippy::single_range_in_vec_init, reason = "a list of sources may have one range")]

use super::{Features, Policy, Rule, verify};
use crate::fragment::{Exit, ExitKind, Fixup, Fragment, Parts, Translated, Unsupported};
use crate::frame::{self, spill};
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;

/// The displacement by which [`Build::finish`] recognises exit jumps.
const OUT: [u8; 4] = [0x44, 0x33, 0x22, 0x11];

/// A fragment under construction. Used exits are appended behind the body.
struct Build {
    a: CodeAssembler,
    fault: CodeLabel,
    guard: CodeLabel,
    poll: CodeLabel,
    faults: Vec<CodeLabel>,
    guards: bool,
    polls: bool,
}

/// Ids of the exits of every fragment here.
const SYSCALL: u32 = 0;
const FAULT: u32 = 1;
const GUARD: u32 = 2;
const POLL: u32 = 3;
const INDIRECT: u32 = 4;

type Asm = Result<(), iced_x86::IcedError>;

impl Build {
    fn new() -> Self {
        let mut a = CodeAssembler::new(64).unwrap();
        let (fault, guard, poll) = (a.create_label(), a.create_label(), a.create_label());
        Self { a, fault, guard, poll, faults: vec![], guards: false, polls: false }
    }

    /// The next instruction has a fixup to the FAULT exit.
    fn faulting(&mut self) -> Asm {
        let mut here = self.a.create_label();
        self.a.set_label(&mut here)?;
        self.faults.push(here);
        Ok(())
    }

    fn jc_guard(&mut self) -> Asm {
        self.guards = true;
        self.a.jc(self.guard)
    }

    fn ja_guard(&mut self) -> Asm {
        self.guards = true;
        self.a.ja(self.guard)
    }

    fn jne_poll(&mut self) -> Asm {
        self.polls = true;
        self.a.jne(self.poll)
    }

    /// `btr register,63` and the branch to the guard exit.
    fn confine(&mut self, register: AsmRegister64) -> Asm {
        self.a.btr(register, 63)?;
        self.jc_guard()
    }

    fn leave(&mut self, id: u32) -> Asm {
        self.a.mov(dword_ptr(rsp + frame::EXIT_ID), id)?;
        self.jump_out()
    }

    fn jump_out(&mut self) -> Asm {
        self.a.db(&[0xe9, OUT[0], OUT[1], OUT[2], OUT[3]])
    }

    /// The poll of the contract, with T = r9, ending in a jump to `back`.
    fn poll(&mut self, back: CodeLabel) -> Asm {
        self.poll_test()?;
        self.a.jmp(back)
    }

    fn poll_test(&mut self) -> Asm {
        self.a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS))?;
        self.a.mov(r9d, dword_ptr(r9))?;
        self.a.test(dword_ptr(rsp + frame::POLL_MASK), r9d)?;
        self.jne_poll()?;
        self.a.mov(r9, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
        self.a.cmp(word_ptr(r9), 0)?;
        self.jne_poll()
    }

    fn finish(mut self) -> Result<Parts, iced_x86::IcedError> {
        // Behind a poll r9 is kernel data, at a poll exit as well.
        let tails = [
            (!self.faults.is_empty(), self.fault, FAULT),
            (self.guards, self.guard, GUARD),
            (self.polls, self.poll, POLL),
        ];
        for (used, mut label, id) in tails {
            if used {
                self.a.set_label(&mut label)?;
                if id == POLL {
                    self.a.mov(r9, qword_ptr(rsp + frame::USER_R11))?;
                }
                self.leave(id)?;
                if id == FAULT {
                    self.fault = label;
                }
            }
        }
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.a.assemble_options(0, options)?;
        let landing = if self.faults.is_empty() { 0 } else { result.label_ip(&self.fault)? as u32 };
        let fixups = self
            .faults
            .iter()
            .map(|l| Ok(Fixup { fault: result.label_ip(l)? as u32, landing }))
            .collect::<Result<Vec<_>, iced_x86::IcedError>>()?;
        let code = result.inner.code_buffer;
        let is_out = |i: &usize| code[*i] == 0xe9 && code[i + 1..i + 5] == OUT;
        let relocations =
            (0..code.len().saturating_sub(4)).filter(is_out).map(|i| i as u32 + 1).collect();
        let kinds = [
            ExitKind::Syscall,
            ExitKind::Fault,
            ExitKind::Guard,
            ExitKind::Poll,
            ExitKind::Indirect,
        ];
        let exit = |kind| Exit { user_ip: 0x40_1000, kind, reason: Unsupported::None };
        Ok(Parts {
            entry: 0x40_1000,
            code,
            exits: kinds.map(exit).to_vec(),
            fixups,
            relocations,
            sources: vec![0x40_1000..0x40_1020],
            guest_instructions: 1,
            map: vec![],
        })
    }
}

/// A fragment around `body`: entry, user's r11, body, SYSCALL exit.
fn parts(body: impl FnOnce(&mut Build) -> Asm) -> Parts {
    raw(|b| {
        b.a.endbr64()?;
        b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
        body(b)?;
        b.leave(SYSCALL)
    })
}

fn raw(body: impl FnOnce(&mut Build) -> Asm) -> Parts {
    let mut build = Build::new();
    body(&mut build).unwrap();
    build.finish().unwrap()
}

fn check(parts: Parts) -> Result<(), (Rule, String)> {
    let policy = Policy::new(Features::all());
    match verify(Fragment::<Translated>::new(parts), &policy) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.rule, error.to_string())),
    }
}

#[track_caller]
fn accepted(body: impl FnOnce(&mut Build) -> Asm) {
    accepted_parts(parts(body));
}

#[track_caller]
fn accepted_parts(parts: Parts) {
    if let Err((_, message)) = check(parts) {
        panic!("{message}");
    }
}

#[track_caller]
fn refused(rule: Rule, body: impl FnOnce(&mut Build) -> Asm) {
    refused_parts(rule, parts(body));
}

#[track_caller]
fn refused_parts(rule: Rule, parts: Parts) {
    match check(parts.clone()) {
        Ok(()) => panic!("accepted, although it breaks {rule:?}: {:02x?}", parts.code),
        Err((found, message)) => assert_eq!(found, rule, "{message}"),
    }
}

/// Raw bytes instead of a body.
fn bytes(bytes: &'static [u8]) -> impl FnOnce(&mut Build) -> Asm {
    move |b| b.a.db(bytes)
}

#[test]
fn size() {
    let policy = Policy { max_exits: 4, ..Policy::new(Features::all()) };
    let error = verify(Fragment::new(parts(|_| Ok(()))), &policy).unwrap_err();
    assert_eq!(error.rule, Rule::Size);
    let policy = Policy { max_code_bytes: 8, ..Policy::new(Features::all()) };
    let error = verify(Fragment::new(parts(|_| Ok(()))), &policy).unwrap_err();
    assert_eq!(error.rule, Rule::Size);
}

#[test]
fn encoding() {
    accepted(bytes(&[0x48, 0x89, 0xc3])); // mov rbx,rax
    refused(Rule::Encoding, bytes(&[0x06])); // no such instruction
    refused(Rule::Encoding, bytes(&[0x2e, 0x48, 0x89, 0xc3])); // with cs:
    refused(Rule::Encoding, bytes(&[0x66, 0x48, 0x89, 0xc3])); // with an unused 66
    refused(Rule::Encoding, bytes(&[0xf2, 0x48, 0x89, 0xc3])); // with an unused f2
    let mut cut = parts(|_| Ok(()));
    cut.code.push(0x48); // half an instruction
    refused_parts(Rule::Encoding, cut);
}

#[test]
fn entry_point() {
    refused_parts(
        Rule::EntryPoint,
        raw(|b| {
            b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            b.leave(SYSCALL)
        }),
    );
    refused(Rule::EntryPoint, |b| b.a.endbr64());
    refused(Rule::EntryPoint, |b| b.a.mov(eax, 0xfa1e_0ff3_u32));
    let empty = Parts { code: vec![], relocations: vec![], ..parts(|_| Ok(())) };
    refused_parts(Rule::EntryPoint, empty);
}

#[test]
fn instruction() {
    for forbidden in [
        &[0xf4][..],                           // hlt
        &[0x0f, 0x05],                         // syscall
        &[0xcd, 0x80],                         // int 0x80
        &[0xfa],                               // cli
        &[0xfb],                               // sti
        &[0xfd],                               // std
        &[0x9c],                               // pushf
        &[0x9d],                               // popf
        &[0x50],                               // push rax
        &[0x58],                               // pop rax
        &[0xc3],                               // ret
        &[0xc9],                               // leave
        &[0xc8, 0, 0, 0],                      // enter
        &[0xff, 0xe0],                         // jmp rax
        &[0xff, 0xd0],                         // call rax
        &[0xe8, 0, 0, 0, 0],                   // call
        &[0x0f, 0x30],                         // wrmsr
        &[0x0f, 0x32],                         // rdmsr
        &[0x0f, 0xa2],                         // cpuid
        &[0x0f, 0x01, 0xf8],                   // swapgs
        &[0x0f, 0x01, 0xca],                   // clac
        &[0x0f, 0x01, 0xcb],                   // stac
        &[0x0f, 0x01, 0xc1],                   // vmcall
        &[0x0f, 0x01, 0xd0],                   // xgetbv
        &[0xe4, 0x10],                         // in
        &[0xe6, 0x10],                         // out
        &[0x48, 0xcf],                         // iretq
        &[0xd7],                               // xlat
        &[0xd9, 0xe8],                         // fld1
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],       // wrfsbase rax
        &[0xf3, 0x48, 0x0f, 0xae, 0xc8],       // rdgsbase rax
        &[0x0f, 0xae, 0x13],                   // ldmxcsr [rbx]
        &[0x0f, 0xae, 0x2b],                   // xrstor [rbx]
        &[0x66, 0x0f, 0xf7, 0xc1],             // maskmovdqu
        &[0xc4, 0xe2, 0x71, 0x92, 0x14, 0x43], // vgatherdps
        &[0xe2, 0xfe],                         // loop
        &[0xc7, 0xf8, 0, 0, 0, 0],             // xbegin
    ] {
        refused(Rule::Instruction, |b| b.a.db(forbidden));
    }
}

#[test]
fn feature() {
    accepted(|b| b.a.popcnt(rax, rbx));
    let without = Policy::new(Features::BASELINE);
    let error = verify(Fragment::new(parts(|b| b.a.popcnt(rax, rbx))), &without).unwrap_err();
    assert_eq!(error.rule, Rule::Feature);
    let features = Features::all().without(iced_x86::CpuidFeature::AVX2);
    let policy = Policy::new(features);
    assert!(verify(Fragment::new(parts(|b| b.a.vpaddb(xmm0, xmm1, xmm2))), &policy).is_ok());
    let error =
        verify(Fragment::new(parts(|b| b.a.vpaddb(ymm0, ymm1, ymm2))), &policy).unwrap_err();
    assert_eq!(error.rule, Rule::Feature);
}

#[test]
fn register() {
    for forbidden in [
        &[0x8e, 0xd8][..], // mov ds,eax
        &[0x8c, 0xd8],     // mov eax,ds
    ] {
        refused(Rule::Register, |b| b.a.db(forbidden));
    }
    refused(Rule::Feature, bytes(&[0x0f, 0xef, 0xc1])); // pxor mm0,mm1
    // Privileged by nature, so refused one rule earlier.
    refused(Rule::Instruction, bytes(&[0x0f, 0x20, 0xc0])); // mov rax,cr0
    refused(Rule::Instruction, bytes(&[0x0f, 0x23, 0xf8])); // mov dr7,rax
}

#[test]
fn stack_pointer() {
    refused(Rule::StackPointer, |b| b.a.mov(rax, rsp));
    refused(Rule::StackPointer, |b| b.a.mov(rsp, rax));
    refused(Rule::StackPointer, |b| b.a.add(rsp, 8));
    refused(Rule::StackPointer, |b| b.a.mov(spl, al));
    refused(Rule::StackPointer, |b| b.a.lea(rax, qword_ptr(rsp + 8)));
    refused(Rule::StackPointer, |b| b.a.xchg(rsp, rax));
    refused(Rule::StackPointer, |b| b.a.mov(qword_ptr(rsp + spill(0)), rsp));
    refused(Rule::StackPointer, |b| b.a.vmovq(xmm0, rsp));
}

#[test]
fn frame_fields() {
    accepted(|b| {
        b.a.mov(qword_ptr(rsp + spill(6)), rax)?;
        b.a.add(rbx, qword_ptr(rsp + spill(6)))?;
        b.a.mov(qword_ptr(rsp + frame::USER_RSP), rbx)?;
        b.a.mov(rcx, qword_ptr(rsp + frame::USER_RSP))
    });
    refused(Rule::Frame, |b| b.a.mov(rax, qword_ptr(rsp - 8)));
    refused(Rule::Frame, |b| b.a.mov(rax, qword_ptr(rsp + frame::SIZE as i32)));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + 0x14), rax));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + spill(0)), eax));
    refused(Rule::Frame, |b| b.a.mov(byte_ptr(rsp + frame::USER_RSP), al));
    refused(Rule::Frame, |b| b.a.movdqu(xmmword_ptr(rsp + spill(0)), xmm0));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + frame::USER_R11), rax));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + frame::POLL_FLAGS), rax));
    refused(Rule::Frame, |b| b.a.mov(rax, qword_ptr(rsp + frame::POLL_FLAGS)));
    refused(Rule::Frame, |b| b.a.mov(eax, dword_ptr(rsp + frame::POLL_MASK)));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + frame::POLL_MASK), 0));
    refused(Rule::Frame, |b| b.a.mov(eax, dword_ptr(rsp + frame::EXIT_ID)));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + frame::EXIT_ID), eax));
    refused(Rule::MemoryForm, |b| b.a.mov(rax, qword_ptr(rsp + rbx)));
}

#[test]
fn slot_read() {
    accepted(|b| {
        b.a.mov(qword_ptr(rsp + spill(2)), rax)?;
        b.a.mov(rbx, qword_ptr(rsp + spill(2)))
    });
    refused(Rule::SlotRead, |b| b.a.mov(rbx, qword_ptr(rsp + spill(2))));
    refused(Rule::SlotRead, |b| b.a.mov(rbx, qword_ptr(rsp + frame::TARGET)));
    // On one of two paths only.
    refused(Rule::SlotRead, |b| {
        let mut join = b.a.create_label();
        b.a.je(join)?;
        b.a.mov(qword_ptr(rsp + spill(2)), rax)?;
        b.a.set_label(&mut join)?;
        b.a.mov(rbx, qword_ptr(rsp + spill(2)))
    });
    // A masked store may leave the slot as it was.
    refused(Rule::SlotRead, |b| {
        use iced_x86::{Code, Instruction, MemoryOperand, Register};
        let slot = MemoryOperand::with_base_displ(Register::RSP, i64::from(spill(2)));
        let mut store = Instruction::with2(Code::EVEX_Vmovsd_m64_k1_xmm, slot, Register::XMM0)?;
        store.set_op_mask(Register::K1);
        b.a.add_instruction(store)
    });
}

#[test]
fn memory_form() {
    accepted(|b| {
        b.faulting()?;
        b.a.mov(rax, qword_ptr(0x28).fs())
    });
    let confined = |access: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            b.faulting()?;
            access(&mut b.a)
        }
    };
    accepted(confined(|a| a.mov(rax, qword_ptr(rbx + 8))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rbx + rcx))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rbx).gs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rbx).fs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(0x1000))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(0x28).gs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(ebx))));
    refused(Rule::MemoryForm, confined(|a| a.bt(qword_ptr(rbx), rcx)));
    accepted(confined(|a| a.bt(qword_ptr(rbx), 3)));
    // mov rax,[rip+0x10]; lea rax,[rip+0x10]; fs: with 32-bit addressing
    refused(Rule::MemoryForm, bytes(&[0x48, 0x8b, 0x05, 0x10, 0, 0, 0]));
    refused(Rule::MemoryForm, bytes(&[0x48, 0x8d, 0x05, 0x10, 0, 0, 0]));
    refused(Rule::MemoryForm, bytes(&[0x64, 0x67, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0]));
    // mov rax,fs:[0xffff888000000000], with a displacement of 64 bits
    refused(Rule::MemoryForm, bytes(&[0x64, 0x48, 0xa1, 0, 0, 0, 0, 0x80, 0x88, 0xff, 0xff]));
    // lodsb fs:[rsi]; lodsb [esi]
    refused(Rule::MemoryForm, bytes(&[0x64, 0xac]));
    refused(Rule::MemoryForm, bytes(&[0x67, 0xac]));
}

#[test]
fn confinement() {
    let load = |prepare: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            prepare(&mut b.a)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + 8))
        }
    };
    accepted(load(|a| a.btr(rbx, 63)));
    accepted(load(|a| a.mov(rbx, 0x7fff_ffff_f000_u64)));
    accepted(load(|a| a.mov(rbx, qword_ptr(rsp + frame::USER_RSP))));
    accepted(load(|a| {
        a.btr(rcx, 63)?;
        a.mov(rbx, rcx)
    }));
    refused(Rule::Confinement, load(|a| a.nop()));
    refused(Rule::Confinement, load(|a| a.btr(rbx, 62)));
    refused(Rule::Confinement, load(|a| a.btr(ebx, 31)));
    refused(Rule::Confinement, load(|a| a.mov(rbx, 0xffff_8880_0000_0000_u64)));
    refused(Rule::Confinement, load(|a| a.mov(rbx, 1_u64 << 47)));
    refused(Rule::Confinement, load(|a| a.mov(rbx, -1_i64)));
    // Any write in between ends it, in part or not.
    for spoil in [
        (|a| a.add(rbx, rcx)) as fn(&mut CodeAssembler) -> Asm,
        |a| a.mov(bl, 1),
        |a| a.bts(rbx, 63),
        |a| a.cmove(rbx, rcx),
        |a| a.xchg(rbx, rcx),
        |a| a.lea(rbx, qword_ptr(rbx + 1)),
        |a| a.bsf(rbx, rcx),
        |a| a.mulx(rbx, rcx, rsi),
    ] {
        refused(Rule::Confinement, move |b| {
            b.a.btr(rbx, 63)?;
            spoil(&mut b.a)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + 8))
        });
    }
    // A slot gives nothing back: the load may bypass the store.
    refused(
        Rule::Confinement,
        load(|a| {
            a.btr(rbx, 63)?;
            a.mov(qword_ptr(rsp + spill(0)), rbx)?;
            a.mov(rbx, qword_ptr(rsp + spill(0)))
        }),
    );
    refused(
        Rule::Confinement,
        load(|a| {
            a.mov(qword_ptr(rsp + frame::USER_RSP), rcx)?;
            a.mov(rbx, qword_ptr(rsp + frame::USER_RSP))
        }),
    );
    // On one of two paths only.
    refused(
        Rule::Confinement,
        load(|a| {
            let mut join = a.create_label();
            a.je(join)?;
            a.btr(rbx, 63)?;
            a.set_label(&mut join)?;
            a.nop()
        }),
    );
    // The branch after a comparison proves nothing: it can be mispredicted.
    refused(Rule::Confinement, |b| {
        b.a.bt(rbx, 63)?;
        b.jc_guard()?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))
    });
}

#[test]
fn confinement_window() {
    let load = |displacement: i32| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + displacement))
        }
    };
    accepted(load(i32::MAX));
    accepted(load(frame::WINDOW_LOW as i32));
    refused(Rule::Confinement, load(frame::WINDOW_LOW as i32 - 1));
    refused(Rule::Confinement, load(i32::MIN));
}

#[test]
fn confinement_moves_with_an_access() {
    let moved = |d: i32, e: i32| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + d))?;
            b.a.lea(rbx, qword_ptr(rbx + e))?;
            b.faulting()?;
            b.a.mov(rcx, qword_ptr(rbx))
        }
    };
    accepted(moved(0, 8));
    accepted(moved(-8, -8));
    accepted(moved(0, 0x10008));
    accepted(moved(-128, -128));
    refused(Rule::Confinement, moved(-129, -129));
    refused(Rule::Confinement, moved(0, 0x10009));
    refused(Rule::Confinement, moved(0, -8));
    // Not directly behind, through a masked access, or entered from elsewhere.
    refused(Rule::Confinement, |b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))?;
        b.a.nop()?;
        b.a.lea(rbx, qword_ptr(rbx + 8))?;
        b.faulting()?;
        b.a.mov(rcx, qword_ptr(rbx))
    });
    refused(Rule::Confinement, |b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.vmovdqu64(xmm0.k1(), xmmword_ptr(rbx))?;
        b.a.lea(rbx, qword_ptr(rbx + 8))?;
        b.faulting()?;
        b.a.mov(rcx, qword_ptr(rbx))
    });
    refused(Rule::Confinement, |b| {
        let mut join = b.a.create_label();
        b.confine(rbx)?;
        b.a.je(join)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))?;
        b.a.set_label(&mut join)?;
        b.a.lea(rbx, qword_ptr(rbx + 8))?;
        b.faulting()?;
        b.a.mov(rcx, qword_ptr(rbx))
    });
    // The access overwrote the register it went through.
    refused(Rule::Confinement, |b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.mov(rbx, qword_ptr(rbx))?;
        b.a.lea(rbx, qword_ptr(rbx + 8))?;
        b.faulting()?;
        b.a.mov(rcx, qword_ptr(rbx))
    });
}

#[test]
fn string_operands() {
    let copy = |prepare: fn(&mut Build) -> Asm| {
        move |b: &mut Build| {
            prepare(b)?;
            b.faulting()?;
            b.a.movsb()
        }
    };
    accepted(copy(|b| {
        b.confine(rsi)?;
        b.confine(rdi)
    }));
    refused(Rule::Confinement, copy(|b| b.confine(rsi)));
    refused(Rule::Confinement, copy(|b| b.confine(rdi)));
    // They have moved since.
    refused(Rule::Confinement, |b| {
        b.confine(rsi)?;
        b.confine(rdi)?;
        b.faulting()?;
        b.a.movsb()?;
        b.faulting()?;
        b.a.movsb()
    });
}

#[test]
fn fixup() {
    let divide = |b: &mut Build| b.a.div(rcx);
    refused(Rule::Fixup, divide);
    accepted(|b| {
        b.faulting()?;
        divide(b)
    });
    refused(Rule::Fixup, |b| b.a.addsd(xmm0, xmm1));
    refused(Rule::Fixup, |b| b.a.vcvttsd2si(rax, xmm1));
    accepted(|b| b.a.paddb(xmm0, xmm1));
    refused(Rule::Fixup, |b| {
        b.confine(rbx)?;
        b.a.mov(rax, qword_ptr(rbx))
    });
    refused(Rule::Fixup, |b| b.a.mov(rax, qword_ptr(0x28).fs()));
    refused(Rule::Fixup, |b| {
        b.confine(rsi)?;
        b.a.lodsb()
    });
    accepted(|b| {
        b.confine(rbx)?;
        b.a.prefetcht0(byte_ptr(rbx))
    });
}

fn one_load() -> Parts {
    parts(|b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))
    })
}

#[test]
fn fixup_table() {
    accepted_parts(one_load());
    let mut bad = one_load();
    bad.fixups[0].fault += 1;
    refused_parts(Rule::FixupTable, bad);
    let mut bad = one_load();
    bad.fixups[0].landing += 1;
    refused_parts(Rule::FixupTable, bad);
    let mut bad = one_load();
    bad.fixups[0].landing = u32::MAX;
    refused_parts(Rule::FixupTable, bad);
    let mut bad = one_load();
    bad.fixups.push(bad.fixups[0]);
    refused_parts(Rule::FixupTable, bad);
}

#[test]
fn landing() {
    // Instead of the FAULT exit: the entry, the access itself, what follows it.
    let good = one_load();
    for landing in [0, good.fixups[0].fault, good.fixups[0].fault + 3] {
        let mut bad = good.clone();
        // The FAULT exit stays reachable through another fixup.
        let old = std::mem::replace(&mut bad.fixups[0].landing, landing);
        bad.fixups.push(Fixup { fault: good.fixups[0].fault + 3, landing: old });
        refused_parts(Rule::Landing, bad);
    }
    // FAULT exit with the id of another kind.
    let mut bad = one_load();
    bad.exits[FAULT as usize].kind = ExitKind::Guard;
    refused_parts(Rule::Landing, bad);
}

#[test]
fn jump_target() {
    accepted(|b| {
        let mut label = b.a.create_label();
        b.a.je(label)?;
        b.a.nop()?;
        b.a.set_label(&mut label)?;
        b.a.nop()
    });
    // je into the middle of the mov that follows
    refused(Rule::JumpTarget, bytes(&[0x74, 0x01, 0x48, 0x89, 0xc3]));
    refused(Rule::JumpTarget, bytes(&[0xeb, 0x70])); // jmp far behind the code
    refused(Rule::JumpTarget, bytes(&[0x0f, 0x84, 0, 0, 0, 0x80])); // je far before it
    refused_parts(Rule::JumpTarget, raw(|b| b.a.endbr64()));
}

#[test]
fn polled_loop() {
    let looped = |close: fn(&mut Build, CodeLabel) -> Asm| {
        move |b: &mut Build| {
            let mut top = b.a.create_label();
            let mut done = b.a.create_label();
            b.a.set_label(&mut top)?;
            b.a.dec(rcx)?;
            b.a.je(done)?;
            close(b, top)?;
            b.a.set_label(&mut done)?;
            b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))
        }
    };
    accepted(looped(|b, top| b.poll(top)));
    accepted(looped(|b, top| {
        b.a.mov(qword_ptr(rsp + spill(0)), rax)?;
        b.a.lahf()?;
        b.a.seto(al)?;
        b.a.mov(qword_ptr(rsp + spill(1)), rax)?;
        b.poll_test()?;
        b.a.mov(rax, qword_ptr(rsp + spill(1)))?;
        b.a.add(al, 0x7f)?;
        b.a.sahf()?;
        b.a.mov(rax, qword_ptr(rsp + spill(0)))?;
        b.a.jmp(top)
    }));
    refused(Rule::Loop, looped(|b, top| b.a.jmp(top)));
    refused(
        Rule::Loop,
        looped(|b, top| {
            b.a.jne(top)?;
            b.a.nop()
        }),
    );
    // Something else between the poll and the jump.
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.poll_test()?;
            b.a.nop()?;
            b.a.jmp(top)
        }),
    );
    // The poll is jumped into behind its test.
    refused(Rule::Frame, |b| {
        let (mut top, mut inside) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        b.a.dec(rcx)?;
        b.a.je(inside)?;
        b.poll_test()?;
        b.a.set_label(&mut inside)?;
        b.a.jmp(top)
    });
    // A poll whose exits go on.
    refused(Rule::Loop, |b| {
        let (mut top, mut on) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        b.a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS))?;
        b.a.mov(r9d, dword_ptr(r9))?;
        b.a.test(dword_ptr(rsp + frame::POLL_MASK), r9d)?;
        b.a.jne(on)?;
        b.a.mov(r9, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
        b.a.cmp(word_ptr(r9), 0)?;
        b.a.jne(on)?;
        b.a.jmp(top)?;
        b.a.set_label(&mut on)?;
        b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))
    });
    // The poll tests another word than the one it was given.
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS))?;
            b.a.mov(r9d, dword_ptr(r9 + 8))?;
            b.a.test(dword_ptr(rsp + frame::POLL_MASK), r9d)?;
            b.jne_poll()?;
            b.a.mov(r9, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
            b.a.cmp(word_ptr(r9), 0)?;
            b.jne_poll()?;
            b.a.jmp(top)
        }),
    );
}

#[test]
fn a_jump_to_itself_is_a_loop() {
    refused(Rule::Loop, bytes(&[0xeb, 0xfe]));
}

#[test]
fn relocation() {
    let good = || parts(|_| Ok(()));
    accepted_parts(good());
    let mut bad = good();
    bad.relocations.push(6); // inside the first mov
    refused_parts(Rule::Relocation, bad);
    let mut bad = good();
    bad.relocations.push(bad.relocations[0]);
    refused_parts(Rule::Relocation, bad);
    let mut bad = good();
    bad.relocations[0] = u32::MAX;
    refused_parts(Rule::JumpTarget, bad);
    let mut bad = good();
    bad.relocations.clear();
    refused_parts(Rule::JumpTarget, bad);
}

#[test]
fn exit_id() {
    let leave = |id: Option<u32>, target: bool| {
        raw(move |b| {
            b.a.endbr64()?;
            b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            if target {
                b.a.mov(qword_ptr(rsp + frame::TARGET), rax)?;
            }
            match id {
                Some(id) => b.leave(id),
                None => b.jump_out(),
            }
        })
    };
    accepted_parts(leave(Some(SYSCALL), false));
    accepted_parts(leave(Some(INDIRECT), true));
    refused_parts(Rule::ExitId, leave(None, false));
    refused_parts(Rule::ExitId, leave(Some(5), false));
    refused_parts(Rule::ExitId, leave(Some(INDIRECT), false));
    // Written on one of two paths only.
    refused_parts(
        Rule::ExitId,
        raw(|b| {
            let mut join = b.a.create_label();
            b.a.endbr64()?;
            b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            b.a.je(join)?;
            b.a.mov(dword_ptr(rsp + frame::EXIT_ID), SYSCALL)?;
            b.a.set_label(&mut join)?;
            b.jump_out()
        }),
    );
}

#[test]
fn exit_table() {
    let mut bad = parts(|_| Ok(()));
    bad.exits[0].user_ip = 1 << 47;
    refused_parts(Rule::ExitTable, bad);
}

#[test]
fn sources() {
    let with = |sources| Parts { sources, ..parts(|_| Ok(())) };
    accepted_parts(with(vec![0x1000..0x1004, 0x40_1000..0x40_1001]));
    refused_parts(Rule::Sources, with(vec![]));
    refused_parts(Rule::Sources, with(vec![0x1000..0x1004]));
    refused_parts(Rule::Sources, with(vec![0x40_1000..0x40_1001, 0x1000..0x1004]));
    refused_parts(Rule::Sources, with(vec![0x40_0000..0x40_1001, 0x40_1000..0x40_1004]));
    #[allow(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    let reversed = vec![0x40_1000..0x40_0000];
    refused_parts(Rule::Sources, with(reversed));
    refused_parts(Rule::Sources, with(vec![0x40_1000..u64::MAX]));
}

#[test]
fn kernel_data() {
    let entry = |body: fn(&mut Build) -> Asm| {
        raw(move |b| {
            b.a.endbr64()?;
            body(b)?;
            b.leave(SYSCALL)
        })
    };
    accepted_parts(entry(|b| b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))));
    refused_parts(Rule::KernelData, entry(|_| Ok(())));
    for leak in [
        (|b| b.a.mov(rax, r11)) as fn(&mut Build) -> Asm,
        |b| b.a.mov(qword_ptr(rsp + spill(0)), r11),
        |b| b.a.lea(rax, qword_ptr(r11 + rax)),
        |b| b.a.movq(xmm0, r11),
        |b| b.a.test(r11, r11),
        |b| b.a.mov(al, r11b),
        |b| b.a.mov(r11b, al),
        |b| b.a.cmove(r11, rax),
        |b| b.a.btr(r11, 63),
        |b| {
            b.confine(rbx)?;
            b.faulting()?;
            b.a.mov(qword_ptr(rbx), r11)
        },
    ] {
        refused_parts(Rule::KernelData, entry(leak));
    }
    // What a poll loaded, at the exit of its loop.
    refused(Rule::KernelData, |b| {
        let (mut top, mut done) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        b.a.dec(rcx)?;
        b.a.je(done)?;
        b.poll(top)?;
        b.a.set_label(&mut done)
    });
}

#[test]
fn lock() {
    let guarded = |prepare: fn(&mut Build) -> Asm, access: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            b.confine(r9)?;
            prepare(b)?;
            b.ja_guard()?;
            b.faulting()?;
            access(&mut b.a)
        }
    };
    let prepare = |b: &mut Build| {
        b.a.mov(r10d, r9d)?;
        b.a.and(r10d, 63)?;
        b.a.cmp(r10d, 56)
    };
    accepted(guarded(prepare, |a| a.lock().add(qword_ptr(r9), rax)));
    accepted(guarded(prepare, |a| a.xchg(qword_ptr(r9), rax)));
    accepted(guarded(prepare, |a| a.lock().cmpxchg(qword_ptr(r9), rcx)));
    // Wider than was checked for; with a displacement; through another register.
    refused(Rule::Lock, guarded(prepare, |a| a.lock().cmpxchg16b(xmmword_ptr(r9))));
    refused(Rule::Lock, guarded(prepare, |a| a.lock().add(qword_ptr(r9 + 1), rax)));
    refused(
        Rule::Lock,
        guarded(
            |b| {
                b.confine(r8)?;
                b.a.mov(r10d, r9d)?;
                b.a.and(r10d, 63)?;
                b.a.cmp(r10d, 56)
            },
            |a| a.lock().add(qword_ptr(r8), rax),
        ),
    );
    refused(
        Rule::Lock,
        guarded(
            |b| {
                b.a.mov(r10d, r9d)?;
                b.a.and(r10d, 31)?;
                b.a.cmp(r10d, 56)
            },
            |a| a.lock().add(qword_ptr(r9), rax),
        ),
    );
    let unguarded = |access: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            b.confine(r9)?;
            b.faulting()?;
            access(&mut b.a)
        }
    };
    refused(Rule::Lock, unguarded(|a| a.lock().inc(dword_ptr(r9))));
    refused(Rule::Lock, unguarded(|a| a.xchg(byte_ptr(r9), al)));
    accepted(unguarded(|a| a.inc(dword_ptr(r9))));
    // The guard is jumped over.
    refused(Rule::Lock, |b| {
        let mut inside = b.a.create_label();
        b.confine(r9)?;
        b.a.mov(r10d, r9d)?;
        b.a.je(inside)?;
        b.a.mov(r10d, r9d)?;
        b.a.and(r10d, 63)?;
        b.a.set_label(&mut inside)?;
        b.a.cmp(r10d, 56)?;
        b.ja_guard()?;
        b.faulting()?;
        b.a.lock().add(qword_ptr(r9), rax)
    });
}

#[test]
fn rep() {
    let filled = |bound: fn(&mut Build) -> Asm| {
        move |b: &mut Build| {
            b.confine(rdi)?;
            bound(b)?;
            b.faulting()?;
            b.a.rep().stosb()
        }
    };
    accepted(filled(|b| {
        b.a.cmp(rcx, frame::REP_LIMIT)?;
        b.ja_guard()
    }));
    refused(Rule::Rep, filled(|_| Ok(())));
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(rcx, frame::REP_LIMIT + 1)?;
            b.ja_guard()
        }),
    );
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(rcx, -1)?;
            b.ja_guard()
        }),
    );
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(ecx, frame::REP_LIMIT)?;
            b.ja_guard()
        }),
    );
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(rcx, frame::REP_LIMIT)?;
            b.jc_guard()
        }),
    );
    refused(Rule::Rep, |b| {
        b.confine(rsi)?;
        b.confine(rdi)?;
        b.faulting()?;
        b.a.repne().cmpsb()
    });
}

#[test]
fn unreachable() {
    let padded = |padding: &[u8]| {
        let mut parts = parts(|_| Ok(()));
        parts.code.extend(padding);
        parts
    };
    accepted_parts(padded(&[0xcc, 0x0f, 0x1f, 0x00, 0x90]));
    refused_parts(Rule::Unreachable, padded(&[0x48, 0x89, 0xc3]));
    refused(Rule::Unreachable, bytes(&[0xcc]));
}

/// Whatever the bytes: an answer, never a panic.
#[test]
fn noise_is_refused() {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    for _ in 0..2000 {
        let mut noise = parts(|_| Ok(()));
        let length = 1 + next() as usize % 40;
        noise.code.truncate(9);
        noise.code.extend((0..length).map(|_| next() as u8));
        noise.relocations = vec![next() % 48];
        noise.fixups = vec![Fixup { fault: next() % 48, landing: next() % 48 }];
        assert!(check(noise).is_err());
    }
}
