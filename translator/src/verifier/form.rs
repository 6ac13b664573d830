//! What all instructions of one iced `Code` have in common: found out once,
//! and looked up for every instruction.

use super::effects::{Access, Effects};
use super::encoding::Shape;
use super::features::Features;
use super::state::RSP;
use super::{Rule, Violation, allowed, number, operands, transfer};
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic,
    OpAccess, OpKind, Register,
};
use std::sync::{LazyLock, OnceLock};

/// The common part of the instructions of one `Code`, separately for those
/// with and without a memory operand, or a repeat prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Why none of them may appear, whatever its operands.
    pub refused: Option<Violation>,
    /// What a CPU must have to execute them.
    pub needed: Features,
    /// How to see that one is in its canonical encoding, if that is simple.
    pub shape: Option<Shape>,
    /// A direct jump, conditional or not.
    pub jump: bool,
    /// Does nothing: `nop`, `endbr64`.
    pub idle: bool,
    /// A string instruction.
    pub string: bool,
    /// Has an explicit memory operand.
    pub memory: bool,
    /// What that operand names is accessed; not so with `lea`.
    pub touches: bool,
    /// It is read, or keeps some of its contents.
    pub memory_read: bool,
    /// It is written.
    pub memory_write: bool,
    /// It is accessed in any case.
    pub accesses: bool,
    /// Can fault, if what it accesses is user memory.
    pub access_faults: bool,
    /// Can fault without an access.
    pub raises: bool,
    /// Locked although it does not say so.
    pub locks: bool,
    /// The result is 0 if both operands are the same.
    pub clears: bool,
    /// Overwrites all of op0, a general register of 32 or 64 bits, with what
    /// `transfer` knows.
    pub overwrites: bool,
    /// What becomes of each operand that is a general register.
    pub registers: [Access; 5],
    /// What happens to registers that are no operands.
    pub implied: Effects,
}

impl Form {
    /// The form of `instruction`, from a table that is filled as needed.
    pub fn of(instruction: &Instruction) -> &'static Self {
        static TABLE: LazyLock<Box<[[OnceLock<Form>; 2]]>> =
            LazyLock::new(|| Code::values().map(|_| Default::default()).collect());
        let second = operands::has_memory(instruction) || operands::is_repeated(instruction);
        TABLE[instruction.code() as usize][usize::from(second)]
            .get_or_init(|| Self::new(instruction))
    }

    /// The same, from the properties of `instruction` that others share.
    pub fn new(instruction: &Instruction) -> Self {
        let (code, mnemonic) = (instruction.code(), instruction.mnemonic());
        let refused = |rule, detail| Self { refused: Some((rule, detail)), ..Self::default() };
        if code == Code::INVALID {
            return refused(Rule::Encoding, "does not decode");
        }
        if !allowed::allowed(code) {
            return refused(Rule::Instruction, "not on the list");
        }
        let memory = operands::has_memory(instruction);
        let idle = matches!(mnemonic, Mnemonic::Nop | Mnemonic::Endbr64);
        let (hint, cmov) = (allowed::prefetch(mnemonic), transfer::is_cmov(mnemonic));
        let mut form = Self {
            needed: Features::needed(code),
            shape: Shape::of(code.op_code()),
            jump: matches!(
                code.flow_control(),
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            ),
            idle,
            string: code.is_string_instruction(),
            memory,
            touches: memory && !idle && mnemonic != Mnemonic::Lea,
            access_faults: !hint,
            raises: allowed::raises(code),
            locks: memory && mnemonic == Mnemonic::Xchg,
            clears: mnemonic == Mnemonic::Xor,
            ..Self::default()
        };
        form.add_operands(instruction);
        // The manuals only say that a conditional move may fault when it moves
        // nothing.
        form.accesses &= form.touches && !hint && !cmov;
        let op0 = instruction.op0_register();
        form.overwrites = (form.registers[0].overwrites() || (cmov && op0.is_gpr()))
            && (op0.is_gpr64()
                || op0.is_gpr32() && transfer::zero_extends(mnemonic, instruction.op_count()));
        form
    }

    /// What iced says of the operands and of other registers.
    fn add_operands(&mut self, instruction: &Instruction) {
        // With operands that no other register can be confused with, and
        // without what only this one instruction has.
        let mut sample = *instruction;
        sample.set_op_mask(Register::None);
        sample.set_zeroing_masking(false);
        sample.set_memory_base(Register::None);
        sample.set_memory_index(Register::None);
        let explicit = |operand| !self.string && instruction.op_register(operand).is_gpr();
        for operand in (0..sample.op_count()).filter(|operand| explicit(*operand)) {
            sample.set_op_register(operand, Register::R8 + operand);
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(&sample, InstructionInfoOptions::NO_MEMORY_USAGE);
        // With a zero source these leave the destination as it was.
        let keeps = matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
        for used in info.used_registers() {
            let register = used.register();
            if register.is_gpr() && number(register) < 8 {
                self.implied.add(number(register), Access::new(register, used.access(), keeps));
            }
        }
        if self.implied.all() >> RSP & 1 == 1 {
            self.refused = Some((Rule::StackPointer, "uses rsp"));
        }
        for (operand, kind) in instruction.op_kinds().enumerate() {
            let access = info.op_access(operand as u32);
            let register = instruction.op_register(operand as u32);
            match kind {
                // They have no operands but those that they imply.
                _ if self.string => {}
                OpKind::Register if register.is_gpr() => {
                    self.registers[operand] = Access::new(register, access, keeps);
                }
                OpKind::Register if register.is_vector_register() || register.is_k() => {}
                OpKind::Register => {
                    self.refused = Some((Rule::Register, "not a general, vector or mask register"));
                }
                OpKind::Memory => {
                    // What is perhaps not written keeps its old contents.
                    let (read, write, always) = super::effects::kinds(access);
                    self.memory_read = read || !always;
                    self.memory_write = write;
                    self.accesses =
                        always || access == OpAccess::Read || access == OpAccess::ReadCondWrite;
                }
                OpKind::NearBranch64 if self.jump => {}
                OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => {}
                _ => {
                    self.refused =
                        Some((Rule::MemoryForm, "an operand of a kind that is not listed"));
                }
            }
        }
        // A register bit offset reaches memory far outside the operand.
        let bits = matches!(
            instruction.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        );
        if bits && self.memory && instruction.op1_kind() == OpKind::Register {
            self.refused = Some((Rule::MemoryForm, "a bit string in memory"));
        }
    }
}
