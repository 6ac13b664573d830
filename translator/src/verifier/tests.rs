//! Per rule: the smallest fragment that keeps to it, and one that does not.
#![allow(clippy::single_range_in_vec_init, reason = "a list of sources may have one range")]

mod control;
mod faults;
mod form;
mod iced;
mod memory;
#[cfg(feature = "planted-bugs")]
mod planted;
mod property;
mod ranges;
mod slots;
mod tables;

use super::{Features, Policy, Rule, verify};
use crate::fragment::{Exit, ExitKind, Fixup, Fragment, Parts, Translated, Unsupported};
use crate::frame::{self, WORK_LIMIT, spill};
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
        self.work_test()?;
        self.take_off(WORK_LIMIT)
    }

    /// The first part of a poll.
    fn work_test(&mut self) -> Asm {
        self.a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS))?;
        self.a.mov(r9d, dword_ptr(r9))?;
        self.a.test(dword_ptr(rsp + frame::POLL_MASK), r9d)?;
        self.jne_poll()?;
        self.a.mov(r9, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
        self.a.cmp(word_ptr(r9), 0)?;
        self.jne_poll()
    }

    /// The last part of a poll, with that many instructions before it.
    fn take_off(&mut self, work: u32) -> Asm {
        self.a.sub(dword_ptr(rsp + frame::BUDGET), work as i32)?;
        self.a.js(self.poll)
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
            work: WORK_LIMIT,
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
