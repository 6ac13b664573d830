//! The ways out of a fragment: exit stubs, what has to be undone before
//! them, and the polls on backward edges.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use iced_x86::{Code, Instruction, Register};

use crate::displace::{Displaced, SPILL_FLAGS, SPILL_RAX};
use crate::emit::{Emitter, Label, Section, frame as frame_field, memory};
use crate::fragment::{Exit, ExitKind, Unsupported};
use crate::frame;
use crate::regs;
use crate::steps::AddressHasher;

/// Where the user's arithmetic flags are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Saved {
    /// In the flags register, or dead.
    No,
    /// In `ax`, and `rax` in its slot.
    InRax,
    /// In their slot; all registers hold their values.
    InSlot,
    /// Nowhere: they can be made again.
    Remade,
}

/// What must be undone before an exit is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Undo {
    /// A register whose bit 63 the guard has just cleared.
    pub set_bit: Option<Register>,
    pub flags: Saved,
}

impl Undo {
    pub(crate) const NOTHING: Self = Self { set_bit: None, flags: Saved::No };
}

/// What was emitted already, and where it begins.
type Known<Key> = HashMap<Key, Label, BuildHasherDefault<AddressHasher>>;

/// Address, kind, reason, and by how much `rsp` is above S there.
type StubKey = (u64, u16, u16, i16);

/// Exits of a fragment of some size.
const EXPECTED: usize = 100;

/// Makes every exit once and remembers it.
#[derive(Debug)]
pub(crate) struct Exits {
    list: Vec<Exit>,
    stubs: Known<StubKey>,
    last_stub: Option<(StubKey, Label)>,
    undos: Known<(StubKey, Undo)>,
    /// By how much the user's `rsp` is above S.
    ahead: i64,
    restore: Label,
    /// INDIRECT exits restore apart: only they have written `target`, and
    /// the verifier wants that to be plain at the jump to the runner.
    restore_indirect: Label,
    displaced: Displaced,
}

impl Exits {
    pub(crate) fn new(emit: &mut Emitter, displaced: Displaced) -> Self {
        Self {
            list: Vec::with_capacity(EXPECTED),
            stubs: Known::with_capacity_and_hasher(EXPECTED, Default::default()),
            last_stub: None,
            undos: Known::default(),
            ahead: 0,
            restore: emit.label(),
            restore_indirect: emit.label(),
            displaced,
        }
    }

    /// From now on, exits find the user's `rsp` this far above S.
    pub(crate) fn set_ahead(&mut self, ahead: i64) {
        self.ahead = ahead;
    }

    /// By how much the user's `rsp` is above S.
    pub(crate) fn ahead(&self) -> i64 {
        self.ahead
    }

    fn key(&self, user_ip: u64, kind: ExitKind, reason: Unsupported) -> StubKey {
        let ahead = i16::try_from(self.ahead).expect("S follows before it is far");
        (user_ip, kind as u16, reason as u16, ahead)
    }

    /// The stub that leaves at `user_ip` with all registers but the displaced
    /// ones in place.
    pub(crate) fn exit(
        &mut self,
        emit: &mut Emitter,
        user_ip: u64,
        kind: ExitKind,
        reason: Unsupported,
    ) -> Label {
        let key = self.key(user_ip, kind, reason);
        // Mostly the instruction before asked for the same.
        if let Some((last, label)) = self.last_stub
            && last == key
        {
            return label;
        }
        if let Some(&label) = self.stubs.get(&key) {
            self.last_stub = Some((key, label));
            return label;
        }
        let id = self.list.len();
        self.list.push(Exit { user_ip, kind, reason });
        let former = emit.select(Section::Exits);
        let label = emit.here();
        if self.ahead != 0 {
            emit.lea(self.displaced.s, memory(self.displaced.s, self.ahead));
        }
        let id = i32::try_from(id).expect("fewer exits than code bytes");
        emit.push(
            Instruction::with2(Code::Mov_rm32_imm32, frame_field(frame::EXIT_ID), id)
                .expect("mov m32,imm"),
        );
        emit.jmp(match kind {
            ExitKind::Indirect => self.restore_indirect,
            _ => self.restore,
        });
        emit.select(former);
        self.stubs.insert(key, label);
        self.last_stub = Some((key, label));
        label
    }

    /// An exit (FAULT or GUARD) that first undoes what stands in the way of
    /// the state before the instruction at `user_ip`.
    pub(crate) fn undo(
        &mut self,
        emit: &mut Emitter,
        user_ip: u64,
        kind: ExitKind,
        undo: Undo,
    ) -> Label {
        let exit = self.exit(emit, user_ip, kind, Unsupported::None);
        if undo == Undo::NOTHING {
            return exit;
        }
        let key = (self.key(user_ip, kind, Unsupported::None), undo);
        if let Some(&label) = self.undos.get(&key) {
            return label;
        }
        let former = emit.select(Section::Undo);
        let label = emit.here();
        if let Some(register) = undo.set_bit {
            emit.bit_set63(register);
        }
        match undo.flags {
            // Who can make them again emits the undoing.
            Saved::No | Saved::Remade => {}
            Saved::InRax => emit.flags_from_rax(),
            Saved::InSlot => emit.flags_from_slot(),
        }
        emit.jmp(exit);
        emit.select(former);
        self.undos.insert(key, label);
        label
    }

    /// A poll here, behind which a jump backward may follow. If something is pending,
    /// or enough was executed, it goes to `pending`, which leads to a POLL exit; both
    /// ways find the flags as [`Saved`] says.
    pub(crate) fn poll(&mut self, emit: &mut Emitter, pending: Label) {
        let t = self.displaced.t;
        let t32 = regs::low32(t);
        emit.load(t, frame_field(frame::POLL_FLAGS));
        emit.push(Instruction::with2(Code::Mov_r32_rm32, t32, memory(t, 0)).expect("mov r32,m"));
        emit.push(
            Instruction::with2(Code::Test_rm32_r32, frame_field(frame::POLL_MASK), t32)
                .expect("test m32,r32"),
        );
        emit.branch(Code::Jne_rel32_64, pending);
        emit.load(t, frame_field(frame::POLL_SOFTIRQ));
        emit.push(Instruction::with2(Code::Cmp_rm16_imm8, memory(t, 0), 0).expect("cmp m16,imm8"));
        emit.branch(Code::Jne_rel32_64, pending);
        emit.take_off_budget();
        emit.branch(Code::Js_rel32_64, pending);
    }

    /// Emits the restoring that exits share, and hands out the list.
    pub(crate) fn finish(self, emit: &mut Emitter) -> Vec<Exit> {
        let former = emit.select(Section::Restore);
        let indirect = |exit: &Exit| exit.kind == ExitKind::Indirect;
        let some_indirect = self.list.iter().any(indirect);
        let some_other = !self.list.iter().all(indirect);
        for (label, used) in [(self.restore_indirect, some_indirect), (self.restore, some_other)] {
            if !used {
                continue;
            }
            emit.bind(label);
            emit.store(frame_field(frame::USER_RSP), self.displaced.s);
            for (register, slot) in self.displaced.slots() {
                emit.load(register, frame_field(slot));
            }
            emit.leave();
        }
        emit.select(former);
        self.list
    }
}

/// Saving and restoring the arithmetic flags, as `docs/fragment.md` has it.
impl Emitter {
    /// Flags to `ax`; `rax` goes to its slot.
    pub(crate) fn flags_to_rax(&mut self) {
        self.store(frame_field(SPILL_RAX), Register::RAX);
        self.push(Instruction::with(Code::Lahf));
        self.push(Instruction::with1(Code::Seto_rm8, Register::AL).expect("seto al"));
    }

    /// Undoes [`Emitter::flags_to_rax`].
    pub(crate) fn flags_from_rax(&mut self) {
        // Overflows exactly if al is 1.
        self.push(Instruction::with2(Code::Add_AL_imm8, Register::AL, 0x7f).expect("add al,imm"));
        self.push(Instruction::with(Code::Sahf));
        self.load(Register::RAX, frame_field(SPILL_RAX));
    }

    /// Flags to their slot, all registers kept.
    pub(crate) fn flags_to_slot(&mut self) {
        self.flags_to_rax();
        self.store(frame_field(SPILL_FLAGS), Register::RAX);
        self.load(Register::RAX, frame_field(SPILL_RAX));
    }

    /// Undoes [`Emitter::flags_to_slot`], whatever `rax` holds now.
    pub(crate) fn flags_from_slot(&mut self) {
        self.store(frame_field(SPILL_RAX), Register::RAX);
        self.flags_from_slot_over_rax();
    }

    /// Flags from their slot, then `rax` from its slot.
    pub(crate) fn flags_from_slot_over_rax(&mut self) {
        self.load(Register::RAX, frame_field(SPILL_FLAGS));
        self.flags_from_rax();
    }
}
