//! Hand-written attempts to get out of a fragment, end to end: the verifier
//! refuses each, and each that can show in ring 3 is run unverified to show
//! that the tests of mutants would have seen what it does.

use crate::harm::run;
use crate::rng::Rng;
use crate::worker::spawn;
use iced_x86::code_asm::*;
use iced_x86::{IcedError, Instruction};
use ub_ring3::state::gpr;
use ub_ring3::{CpuState, GuestMemory, Runner};
use ub_translator::fragment::{Exit, ExitKind, Fixup, Fragment, Parts, Translated, Unsupported};
use ub_translator::frame;
use ub_translator::verifier::{Rule, verify};

/// A kernel address whose use shows as a fault there.
const KERNEL: u64 = 0xffff_8880_1234_5000;

/// The jump to the runner.
const EXIT_JUMP: [u8; 5] = [0xe9, 0, 0, 0, 0];

struct Escape {
    name: &'static str,
    /// One of the rules that stand against it.
    rule: Rule,
    /// Whether ring 3 can show what it does.
    shows: bool,
    /// With `rax` a kernel address, `rbx` the guest's data, `rdx` half of
    /// `rax`, `rcx` all ones and `r8` 5.
    code: fn(&mut CodeAssembler) -> Result<(), IcedError>,
}

fn raw(a: &mut CodeAssembler, bytes: &[u8]) -> Result<(), IcedError> {
    a.add_instruction(Instruction::with_declare_byte(bytes)?)
}

fn masked(a: &mut CodeAssembler, register: AsmRegister64) -> Result<(), IcedError> {
    a.btr(register, 63)
}

const ESCAPES: &[Escape] = &[
    Escape {
        name: "the stack pointer is the user's",
        rule: Rule::StackPointer,
        shows: true,
        code: |a| a.mov(rsp, rax),
    },
    Escape {
        name: "push below the frame",
        rule: Rule::Instruction,
        shows: true,
        code: |a| {
            a.push(rbx)?;
            a.push(rbx)?;
            a.lea(rsp, qword_ptr(rsp + 16))
        },
    },
    Escape {
        name: "no mask",
        rule: Rule::Confinement,
        shows: true,
        code: |a| a.mov(r9, qword_ptr(rax)),
    },
    Escape {
        name: "a second access after the mask has gone",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            a.mov(r9, rax)?;
            masked(a, r9)?;
            a.mov(r9, rax)?;
            a.mov(r10, qword_ptr(r9))
        },
    },
    Escape {
        name: "an index without bound",
        rule: Rule::Index,
        shows: true,
        code: |a| {
            // Masked base plus index is the kernel address again.
            a.mov(r9, rbx)?;
            masked(a, r9)?;
            a.mov(r10, rax)?;
            a.sub(r10, rbx)?;
            a.mov(r11, qword_ptr(r9 + r10))
        },
    },
    Escape {
        name: "a scale over the bound of the index",
        rule: Rule::Index,
        shows: true,
        code: |a| {
            a.mov(r9, 0x0000_0880_1234_5000u64)?;
            a.mov(r10, 0x1fff_f000_0000_0000u64)?;
            masked(a, r10)?;
            a.mov(r11, qword_ptr(r9 + r10 * 8))
        },
    },
    Escape {
        name: "a displacement below zero",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            a.mov(r9, r8)?;
            masked(a, r9)?;
            a.mov(r10, qword_ptr(r9 - 0x4000_0000))
        },
    },
    Escape {
        name: "below zero in many small moves",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            a.mov(r9, r8)?;
            masked(a, r9)?;
            for _ in 0..24 {
                a.sub(r9, 0x0010_0000)?;
            }
            a.mov(r10, qword_ptr(r9 - 0x40_0000))
        },
    },
    Escape {
        name: "below zero in a loop that polls",
        rule: Rule::Confinement,
        shows: false,
        code: |a| {
            let mut top = a.create_label();
            let (mut out, mut leave) = (a.create_label(), a.create_label());
            a.mov(r9, r8)?;
            masked(a, r9)?;
            a.mov(r10d, 4096)?;
            a.set_label(&mut top)?;
            a.sub(r9, 0x0010_0000)?;
            a.dec(r10)?;
            a.je(out)?;
            a.mov(r12, qword_ptr(rsp + frame::POLL_FLAGS))?;
            a.mov(r12d, dword_ptr(r12))?;
            a.test(dword_ptr(rsp + frame::POLL_MASK), r12d)?;
            a.jne(leave)?;
            a.mov(r12, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
            a.cmp(word_ptr(r12), 0)?;
            a.jne(leave)?;
            a.sub(dword_ptr(rsp + frame::BUDGET), 1000)?;
            a.js(leave)?;
            a.jmp(top)?;
            a.set_label(&mut leave)?;
            a.mov(r12d, 0)?;
            a.mov(dword_ptr(rsp + frame::EXIT_ID), 1)?;
            a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            raw(a, &EXIT_JUMP)?;
            a.set_label(&mut out)?;
            a.mov(r12d, 0)?;
            a.mov(r10, qword_ptr(r9))
        },
    },
    Escape {
        name: "the sum of two halves",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            a.mov(r9, rdx)?;
            masked(a, r9)?;
            a.lea(r10, qword_ptr(r9 + r9))?;
            a.mov(r11, qword_ptr(r10))
        },
    },
    Escape {
        name: "only the low half masked",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            a.mov(r9, rax)?;
            a.btr(r9d, 31)?;
            a.mov(r9, rax)?;
            a.btr(r9, 62)?;
            a.bts(r9, 62)?;
            a.mov(r10, qword_ptr(r9))
        },
    },
    Escape {
        name: "the FS base is the user's",
        rule: Rule::Instruction,
        shows: false,
        code: |a| a.wrfsbase(rax),
    },
    Escape {
        name: "fs with a register",
        rule: Rule::MemoryForm,
        shows: false,
        code: |a| a.mov(r9, qword_ptr(rbx).fs()),
    },
    Escape {
        name: "the kernel's own segment",
        rule: Rule::MemoryForm,
        shows: true,
        code: |a| a.mov(r9, qword_ptr(rax).gs()),
    },
    Escape {
        name: "a jump over the mask",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            let mut over = a.create_label();
            a.mov(r9, rax)?;
            a.test(rax, rax)?;
            a.jne(over)?;
            masked(a, r9)?;
            a.set_label(&mut over)?;
            a.mov(r10, qword_ptr(r9))
        },
    },
    Escape {
        name: "a jump into the middle of a mask",
        rule: Rule::JumpTarget,
        shows: false,
        // jmp to the last byte of btr r9,63: 3f is no instruction, but could be.
        code: |a| raw(a, &[0xeb, 0x04, 0x49, 0x0f, 0xba, 0xf1, 0x3f]),
    },
    Escape {
        name: "strings backwards",
        rule: Rule::Instruction,
        shows: true,
        code: |a| {
            a.std()?;
            a.mov(rsi, rbx)?;
            masked(a, rsi)?;
            a.mov(rdi, rbx)?;
            masked(a, rdi)?;
            a.movsb()?;
            // The rest of the kernel would go on with DF set.
            a.mov(r9, qword_ptr(rax))
        },
    },
    Escape {
        name: "a string instruction without masks",
        rule: Rule::Confinement,
        shows: true,
        code: |a| {
            a.mov(rsi, rax)?;
            a.lodsq()
        },
    },
    Escape {
        name: "the entry address is not overwritten",
        rule: Rule::KernelData,
        shows: true,
        code: |a| a.mov(r9, r11),
    },
    Escape {
        name: "a poll's pointer in a user register",
        rule: Rule::Frame,
        shows: true,
        code: |a| a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS)),
    },
    Escape {
        name: "a slot that nobody has written",
        rule: Rule::SlotRead,
        shows: true,
        code: |a| a.mov(r9, qword_ptr(rsp + frame::spill(3))),
    },
    Escape {
        name: "what lies behind the frame",
        rule: Rule::Frame,
        shows: true,
        code: |a| a.mov(r9, qword_ptr(rsp + frame::SIZE as i32)),
    },
    Escape {
        name: "work is never pending",
        rule: Rule::Frame,
        shows: true,
        code: |a| a.mov(dword_ptr(rsp + frame::POLL_MASK), 0),
    },
    Escape {
        name: "the budget is never used up",
        rule: Rule::Frame,
        shows: true,
        code: |a| a.mov(dword_ptr(rsp + frame::BUDGET), i32::MAX),
    },
    Escape {
        name: "a loop without a poll",
        rule: Rule::Loop,
        shows: true,
        code: |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.jmp(top)
        },
    },
    Escape {
        name: "its own address",
        rule: Rule::MemoryForm,
        shows: true,
        code: |a| raw(a, &[0x4c, 0x8d, 0x0d, 0, 0, 0, 0]),
    },
    Escape {
        name: "a privileged instruction",
        rule: Rule::Instruction,
        shows: true,
        code: |a| a.wrmsr(),
    },
    Escape {
        name: "a division without a fixup",
        rule: Rule::Fixup,
        shows: true,
        code: |a| {
            a.xor(r9d, r9d)?;
            a.div(r9)
        },
    },
];

/// endbr64; [body]; restore r11; exit 0. Every access of the body has a
/// fixup to the exit, so that only the rule in question stands against it.
fn fragment(escape: &Escape) -> Fragment<Translated> {
    let mut a = CodeAssembler::new(64).unwrap();
    a.endbr64().unwrap();
    (escape.code)(&mut a).unwrap();
    let mut code = a.assemble(0).unwrap();
    let end = code.len() as u32;
    let decoder = iced_x86::Decoder::with_ip(64, &code, 0, iced_x86::DecoderOptions::NONE);
    let accesses = |i: &Instruction| {
        let explicit = (0..i.op_count()).any(|n| i.op_kind(n) == iced_x86::OpKind::Memory);
        (explicit
            && i.memory_base() != iced_x86::Register::RSP
            && i.mnemonic() != iced_x86::Mnemonic::Lea)
            || i.is_string_instruction()
    };
    let fixups = decoder
        .into_iter()
        .filter(accesses)
        .map(|i| Fixup { fault: i.ip() as u32, landing: end })
        .collect();
    code.extend([0xc7, 0x44, 0x24, frame::EXIT_ID as u8, 0, 0, 0, 0]);
    code.extend([0x4c, 0x8b, 0x5c, 0x24, frame::USER_R11 as u8]);
    code.extend(EXIT_JUMP);
    let jumps = (0..code.len() - 4).filter(|&at| code[at..].starts_with(&EXIT_JUMP));
    let relocations = jumps.map(|at| at as u32 + 1).collect();
    let exit = |kind| Exit { user_ip: 0x2000, kind, reason: Unsupported::None };
    Fragment::new(Parts {
        entry: 0x1000,
        code,
        exits: vec![exit(ExitKind::Fault), exit(ExitKind::Poll)],
        fixups,
        relocations,
        sources: std::iter::once(0x1000..0x1010).collect(),
        guest_instructions: 1,
        work: frame::WORK_LIMIT,
        map: vec![],
    })
}

#[test]
fn escapes_are_refused() {
    let policy = crate::host::policy();
    for escape in ESCAPES {
        let refused = verify(fragment(escape), &policy).expect_err(escape.name);
        println!("{}: {refused}", escape.name);
        assert_eq!(refused.rule, escape.rule, "{}: {refused}", escape.name);
    }
}

#[test]
fn what_escapes_do_is_seen() {
    let _guests = crate::alone();
    let mut rng = Rng(11);
    for escape in ESCAPES.iter().filter(|escape| escape.shows) {
        let child = crate::worker::spawn_for(2, || {
            let memory = GuestMemory::new().unwrap();
            let mut runner = Runner::new().unwrap();
            let mut state = CpuState::default();
            state.gpr[gpr::RAX] = KERNEL;
            state.gpr[gpr::RBX] = memory.data() + 4096;
            state.gpr[gpr::RCX] = u64::MAX;
            state.gpr[gpr::RDX] = KERNEL >> 1;
            state.gpr[gpr::R8] = 5;
            state.gpr[gpr::RSP] = memory.stack_end() - 4096;
            run(&fragment(escape), &state, &memory, &mut runner).err().unwrap_or_default()
        });
        let seen = child.wait().unwrap_or_else(|death| death.0);
        println!("{}: {seen}", escape.name);
        assert!(!seen.is_empty(), "{}: nothing was seen", escape.name);
    }
    // And what does nothing is not accused.
    let clean = fragment(&Escape {
        name: "nothing",
        rule: Rule::Size,
        shows: false,
        code: |a| a.mov(r9d, 1),
    });
    let verified = verify(clean, &crate::host::policy()).expect("harmless");
    let child = spawn(|| {
        let memory = GuestMemory::new().unwrap();
        let mut runner = Runner::new().unwrap();
        let state = crate::case::random_state(&mut rng, &memory);
        run(&verified, &state, &memory, &mut runner).err().unwrap_or_default()
    });
    assert_eq!(child.wait(), Ok(String::new()));
}
