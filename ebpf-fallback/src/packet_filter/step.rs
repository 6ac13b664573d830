//! What one instruction does to a [`State`].

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::expression::{Condition, Expression, Operation};
use super::flags::Flags;
use super::refusal::Effect;
use super::state::{Memory, RSP, State};

/// Most operations in a value. Values made of themselves grow fast.
const LARGEST_VALUE: usize = 64;

/// Where a way goes on.
#[derive(Debug)]
pub(super) enum Next {
    /// At `State::ip`.
    Here,
    /// It depends on the packet: with the instruction repeated as if the
    /// condition were true or false.
    Fork(Condition),
    /// A system call is made.
    SystemCall,
}

/// The operands of an instruction, in a state.
struct Operands<'a, M> {
    state: &'a mut State,
    memory: &'a M,
    instruction: &'a Instruction,
}

/// Executes `instruction`. `decided` answers the question of a fork.
///
/// # Errors
/// When what it does is not followed.
pub(super) fn step(
    state: &mut State,
    memory: &impl Memory,
    instruction: &Instruction,
    decided: Option<bool>,
) -> Result<Next, Effect> {
    let mut operands = Operands { state, memory, instruction };
    let next_ip = instruction.next_ip();
    let mut target = next_ip;
    match instruction.mnemonic() {
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Pause => {}
        Mnemonic::Syscall => return Ok(Next::SystemCall),
        Mnemonic::Mov | Mnemonic::Movzx => {
            let value = operands.get(1)?;
            operands.put(0, value)?;
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let value = operands.get(1)?.sign_extended(operands.bits(1)?);
            operands.put(0, value)?;
        }
        Mnemonic::Movbe => {
            let value = operands.get(1)?.swapped(operands.bytes(1)?);
            operands.put(0, value)?;
        }
        Mnemonic::Lea => {
            let address = operands.address()?;
            operands.put(0, address)?;
        }
        Mnemonic::Xchg
            if instruction.op1_kind() == OpKind::Register
                && instruction.op0_kind() == OpKind::Register =>
        {
            let (a, b) = (operands.get(0)?, operands.get(1)?);
            operands.put(0, b)?;
            operands.put(1, a)?;
        }
        Mnemonic::Cdqe => operands.extend(Register::EAX, Register::RAX, 32)?,
        Mnemonic::Cwde => operands.extend(Register::AX, Register::EAX, 16)?,
        Mnemonic::Push => {
            let value = operands.get(0)?;
            operands.push(value)?;
        }
        Mnemonic::Pop => {
            let value = operands.pop()?;
            operands.put(0, value)?;
        }
        Mnemonic::Leave => {
            let base = operands.read(Register::RBP)?;
            operands.write(Register::RSP, base)?;
            let base = operands.pop()?;
            operands.write(Register::RBP, base)?;
        }
        Mnemonic::Call => {
            target = operands.target()?;
            operands.push(Expression::Constant(next_ip))?;
        }
        Mnemonic::Ret if instruction.op_count() == 0 => {
            target = operands.pop()?.constant().ok_or(Effect::ComputedBranch)?;
        }
        Mnemonic::Jmp => target = operands.target()?,
        _ if instruction.is_jcc_short_or_near() => match operands.condition(decided)? {
            Ok(true) => target = instruction.near_branch_target(),
            Ok(false) => {}
            Err(condition) => return Ok(Next::Fork(condition)),
        },
        _ if is_setcc(instruction) => match operands.condition(decided)? {
            Ok(holds) => operands.put(0, Expression::Constant(u64::from(holds)))?,
            Err(condition) => return Ok(Next::Fork(condition)),
        },
        _ if is_cmovcc(instruction) => {
            // The source is read whether it is taken or not.
            let source = operands.get(1)?;
            match operands.condition(decided)? {
                Ok(true) => operands.put(0, source)?,
                Ok(false) => {
                    // Which clears the upper half of a 32-bit register.
                    let old = operands.get(0)?;
                    operands.put(0, old)?;
                }
                Err(condition) => return Ok(Next::Fork(condition)),
            }
        }
        mnemonic => operands.arithmetic(mnemonic)?,
    }
    state.ip = target;
    Ok(Next::Here)
}

/// The condition codes that [`Flags::condition`] knows, of `setcc`.
fn is_setcc(instruction: &Instruction) -> bool {
    use Mnemonic::{Seta, Setae, Setb, Setbe, Sete, Setg, Setge, Setl, Setle, Setne, Setns, Sets};
    matches!(
        instruction.mnemonic(),
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setns | Sets
    )
}

/// The same of `cmovcc`.
fn is_cmovcc(instruction: &Instruction) -> bool {
    use Mnemonic::{
        Cmova, Cmovae, Cmovb, Cmovbe, Cmove, Cmovg, Cmovge, Cmovl, Cmovle, Cmovne, Cmovns, Cmovs,
    };
    matches!(
        instruction.mnemonic(),
        Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovns
            | Cmovs
    )
}

impl<M: Memory> Operands<'_, M> {
    fn unknown(&self) -> Effect {
        Effect::Instruction(self.instruction.ip())
    }

    fn read(&mut self, register: Register) -> Result<Expression, Effect> {
        let unknown = self.unknown();
        self.state.register(register).ok_or(unknown)
    }

    fn write(&mut self, register: Register, value: Expression) -> Result<(), Effect> {
        if value.size() > LARGEST_VALUE {
            return Err(Effect::Long);
        }
        let unknown = self.unknown();
        self.state.set_register(register, value).ok_or(unknown)
    }

    fn extend(&mut self, from: Register, to: Register, bits: u32) -> Result<(), Effect> {
        let value = self.read(from)?.sign_extended(bits);
        self.write(to, value)
    }

    /// Size of operand `index` in bytes, at most 8.
    fn bytes(&self, index: u32) -> Result<u8, Effect> {
        let bytes = match self.instruction.op_kind(index) {
            OpKind::Register => self.instruction.op_register(index).size(),
            OpKind::Memory => self.instruction.memory_size().size(),
            _ => self.instruction.op0_register().size(),
        };
        match bytes {
            1 | 2 | 4 | 8 => Ok(bytes as u8),
            _ => Err(self.unknown()),
        }
    }

    fn bits(&self, index: u32) -> Result<u32, Effect> {
        Ok(8 * u32::from(self.bytes(index)?))
    }

    /// The address of the memory operand.
    fn address(&mut self) -> Result<Expression, Effect> {
        let instruction = self.instruction;
        if instruction.segment_prefix() != Register::None {
            return Err(match instruction.memory_segment() {
                Register::FS | Register::GS => Effect::ThreadMemory,
                _ => self.unknown(),
            });
        }
        let displacement = Expression::Constant(instruction.memory_displacement64());
        if instruction.is_ip_rel_memory_operand() {
            return Ok(displacement);
        }
        let mut address = displacement;
        if instruction.memory_base() != Register::None {
            let base = self.read(instruction.memory_base())?;
            address = Expression::binary(Operation::Add, base, address);
        }
        if instruction.memory_index() != Register::None {
            let index = self.read(instruction.memory_index())?;
            let scale = Expression::Constant(u64::from(instruction.memory_index_scale()));
            let index = Expression::binary(Operation::Multiply, index, scale);
            address = Expression::binary(Operation::Add, address, index);
        }
        // With 32-bit registers the sum wraps at 32 bits.
        let short = [instruction.memory_base(), instruction.memory_index()]
            .iter()
            .any(|register| *register != Register::None && register.size() != 8);
        Ok(if short { address.truncated(32) } else { address })
    }

    /// Operand `index`, extended by zeros; immediates to 64 bits by signs.
    fn get(&mut self, index: u32) -> Result<Expression, Effect> {
        match self.instruction.op_kind(index) {
            OpKind::Register => self.read(self.instruction.op_register(index)),
            OpKind::Memory => {
                let bytes = self.bytes(index)?;
                let address = self.address()?;
                self.state.load(self.memory, address, bytes)
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {
                Ok(Expression::Constant(self.instruction.immediate(index)))
            }
            _ => Err(self.unknown()),
        }
    }

    fn put(&mut self, index: u32, value: Expression) -> Result<(), Effect> {
        match self.instruction.op_kind(index) {
            OpKind::Register => self.write(self.instruction.op_register(index), value),
            OpKind::Memory => {
                let bytes = self.bytes(index)?;
                let address = self.address()?;
                if value.size() > LARGEST_VALUE {
                    return Err(Effect::Long);
                }
                self.state.store(self.memory, &address, bytes, value)
            }
            _ => Err(self.unknown()),
        }
    }

    fn push(&mut self, value: Expression) -> Result<(), Effect> {
        if self.instruction.stack_pointer_increment() != -8 {
            return Err(self.unknown());
        }
        let below = Expression::Constant(8u64.wrapping_neg());
        let stack = Expression::binary(Operation::Add, self.state.whole(RSP), below);
        self.state.store(self.memory, &stack, 8, value)?;
        self.write(Register::RSP, stack)
    }

    fn pop(&mut self) -> Result<Expression, Effect> {
        let stack = self.state.whole(RSP);
        let value = self.state.load(self.memory, stack.clone(), 8)?;
        let above = Expression::binary(Operation::Add, stack, Expression::Constant(8));
        self.write(Register::RSP, above)?;
        Ok(value)
    }

    /// Where a jump or call goes.
    fn target(&mut self) -> Result<u64, Effect> {
        match self.instruction.op0_kind() {
            OpKind::NearBranch64 => Ok(self.instruction.near_branch_target()),
            OpKind::Register | OpKind::Memory => {
                self.get(0)?.constant().ok_or(Effect::ComputedBranch)
            }
            _ => Err(self.unknown()),
        }
    }

    /// Whether the condition of the instruction holds, or the condition if
    /// that depends on the packet and was not decided.
    fn condition(&mut self, decided: Option<bool>) -> Result<Result<bool, Condition>, Effect> {
        if let Some(decided) = decided {
            return Ok(Ok(decided));
        }
        let unknown = self.unknown();
        let condition = self.state.flags().condition(self.instruction.condition_code());
        let condition = condition.ok_or(unknown)?;
        let known = condition.known().or_else(|| self.state.facts.decide(&condition));
        Ok(known.ok_or(condition))
    }

    fn arithmetic(&mut self, mnemonic: Mnemonic) -> Result<(), Effect> {
        use Operation::{
            Add, And, Multiply, Or, ShiftLeft, ShiftRight, ShiftRightSigned, Subtract, Xor,
        };

        if self.instruction.has_lock_prefix() {
            return Err(self.unknown());
        }
        match mnemonic {
            Mnemonic::Add => self.two(Add, true),
            Mnemonic::Sub => self.two(Subtract, true),
            Mnemonic::Cmp => self.two(Subtract, false),
            Mnemonic::And => self.two(And, true),
            Mnemonic::Test => self.two(And, false),
            Mnemonic::Or => self.two(Or, true),
            Mnemonic::Xor => self.two(Xor, true),
            Mnemonic::Inc => self.one(Add, 1),
            Mnemonic::Dec => self.one(Add, u64::MAX),
            Mnemonic::Not => {
                let value = Expression::binary(Xor, self.get(0)?, Expression::Constant(u64::MAX));
                self.put(0, value)
            }
            Mnemonic::Neg => {
                let (value, bits) = (self.get(0)?, self.bits(0)?);
                let zero = Expression::ZERO;
                let result = Expression::binary(Subtract, zero.clone(), value.clone());
                self.state.set_flags(Flags::Difference { left: zero, right: value, bits });
                self.put(0, result)
            }
            Mnemonic::Shl | Mnemonic::Sal => self.shift(ShiftLeft),
            Mnemonic::Shr => self.shift(ShiftRight),
            Mnemonic::Sar => self.shift(ShiftRightSigned),
            Mnemonic::Rol | Mnemonic::Ror => self.swap_word(),
            Mnemonic::Bswap => {
                let value = self.get(0)?.swapped(self.bytes(0)?);
                self.put(0, value)
            }
            Mnemonic::Bt => self.test_bit(),
            Mnemonic::Imul if self.instruction.op_count() >= 2 => {
                let last = self.instruction.op_count() - 1;
                let (bits, a) = (self.bits(0)?, self.get(last - 1)?);
                let b = self.get(last)?;
                let result = Expression::binary(Multiply, a, b).truncated(bits);
                self.state.set_flags(Flags::Unknown);
                self.put(0, result)
            }
            _ => Err(self.unknown()),
        }
    }

    fn two(&mut self, operation: Operation, writes: bool) -> Result<(), Effect> {
        let bits = self.bits(0)?;
        let same = self.instruction.op0_kind() == OpKind::Register
            && self.instruction.op1_kind() == OpKind::Register
            && self.instruction.op0_register() == self.instruction.op1_register();
        if same && writes && matches!(operation, Operation::Xor | Operation::Subtract) {
            // The idiom for zero does not use the register.
            self.state.set_flags(Flags::Logical { result: Expression::ZERO, bits });
            return self.put(0, Expression::ZERO);
        }
        let left = self.get(0)?;
        let right = self.get(1)?.truncated(bits);
        let result = Expression::binary(operation, left.clone(), right.clone()).truncated(bits);
        self.state.set_flags(match operation {
            Operation::Add => Flags::Sum { left, right, bits },
            Operation::Subtract => Flags::Difference { left, right, bits },
            _ => Flags::Logical { result: result.clone(), bits },
        });
        if writes { self.put(0, result) } else { Ok(()) }
    }

    /// `inc` and `dec`, which leave the carry alone.
    fn one(&mut self, operation: Operation, by: u64) -> Result<(), Effect> {
        let bits = self.bits(0)?;
        let value = self.get(0)?;
        let result = Expression::binary(operation, value, Expression::Constant(by)).truncated(bits);
        self.state.set_some_flags(Flags::Result { result: result.clone(), bits });
        self.put(0, result)
    }

    fn shift(&mut self, operation: Operation) -> Result<(), Effect> {
        let bits = self.bits(0)?;
        let count = self.get(1)?.constant().ok_or(self.unknown())?;
        let count = count & if bits == 64 { 63 } else { 31 };
        let value = self.get(0)?;
        if count == 0 {
            // Neither value nor flags change, but for the upper half.
            return self.put(0, value);
        }
        if count >= u64::from(bits) {
            return Err(self.unknown());
        }
        let value = match operation {
            Operation::ShiftRightSigned => value.sign_extended(bits),
            _ => value,
        };
        let result = Expression::binary(operation, value, Expression::Constant(count));
        let result = result.truncated(bits);
        self.state.set_flags(Flags::Result { result: result.clone(), bits });
        self.put(0, result)
    }

    /// A 16-bit rotation by 8, which is how `ntohs` is compiled.
    fn swap_word(&mut self) -> Result<(), Effect> {
        if self.bits(0)? != 16 || self.get(1)?.constant() != Some(8) {
            return Err(self.unknown());
        }
        let value = self.get(0)?.swapped(2);
        self.state.set_some_flags(Flags::Unknown);
        self.put(0, value)
    }

    fn test_bit(&mut self) -> Result<(), Effect> {
        let bits = self.bits(0)?;
        if self.instruction.op0_kind() != OpKind::Register {
            return Err(self.unknown());
        }
        let index = self.get(1)?;
        let index = index.truncated(bits.trailing_zeros());
        let value = Expression::binary(Operation::ShiftRight, self.get(0)?, index);
        self.state.set_some_flags(Flags::Carry(value.truncated(1)));
        Ok(())
    }
}
