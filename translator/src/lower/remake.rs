//! Emitting what makes the user's flags again.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::Lowerer;
use crate::emit::memory;
use crate::recipe::{Recipe, Remake};
use crate::regs;

impl Lowerer<'_, '_> {
    /// Emits the recipe. Changes `scratch`; and `other`, unless the recipe is
    /// simple.
    pub(super) fn remake_flags(&mut self, recipe: &Recipe, scratch: Register, other: Register) {
        let mut maker = recipe.maker;
        match recipe.how {
            Remake::Zero => {
                let scratch = regs::low32(scratch);
                let code = match maker.mnemonic() {
                    Mnemonic::Sub => Code::Sub_r32_rm32,
                    _ => Code::Xor_r32_rm32,
                };
                self.emit.push(Instruction::with2(code, scratch, scratch).expect("op r32,r32"));
            }
            Remake::Result => {
                self.stand_in(&mut maker, 0, scratch);
                let result = maker.op0_register();
                let code = match result.size() {
                    1 => Code::Test_rm8_r8,
                    2 => Code::Test_rm16_r16,
                    4 => Code::Test_rm32_r32,
                    _ => Code::Test_rm64_r64,
                };
                self.emit.push(Instruction::with2(code, result, result).expect("test r,r"));
            }
            Remake::Again => {
                self.stand_in(&mut maker, 0, scratch);
                if maker.op1_kind() == OpKind::Register {
                    self.stand_in(&mut maker, 1, other);
                }
                self.emit.push(maker);
            }
            Remake::Backward => {
                let result = maker.op0_register();
                if result == Register::RSP {
                    self.emit
                        .lea(scratch, memory(self.displaced.s, self.exits.ahead() - recipe.moved));
                } else {
                    self.fetch(scratch, result);
                }
                maker.set_code(any_register(maker.code()));
                maker.set_op0_register(regs::same_part(scratch, result));
                if maker.op1_kind() == OpKind::Register {
                    self.stand_in(&mut maker, 1, other);
                }
                let mut back = maker;
                back.set_code(inverse(maker.code()));
                self.emit.push(back);
                self.emit.push(maker);
            }
        }
    }

    /// Puts the hardware register of operand `operand` in its place, which is
    /// a copy in `scratch` if it is displaced.
    fn stand_in(&mut self, instruction: &mut Instruction, operand: u32, scratch: Register) {
        let register = instruction.op_register(operand);
        if self.displaced.slot(register).is_some() {
            self.fetch(scratch, register);
            instruction.set_op_register(operand, regs::same_part(scratch, register));
        }
    }
}

/// What undoes an `add` or `sub` of full registers.
fn inverse(code: Code) -> Code {
    match code {
        Code::Add_r32_rm32 => Code::Sub_r32_rm32,
        Code::Add_rm32_r32 => Code::Sub_rm32_r32,
        Code::Add_rm32_imm32 => Code::Sub_rm32_imm32,
        Code::Add_rm32_imm8 => Code::Sub_rm32_imm8,
        Code::Add_r64_rm64 => Code::Sub_r64_rm64,
        Code::Add_rm64_r64 => Code::Sub_rm64_r64,
        Code::Add_rm64_imm32 => Code::Sub_rm64_imm32,
        Code::Add_rm64_imm8 => Code::Sub_rm64_imm8,
        Code::Sub_r32_rm32 => Code::Add_r32_rm32,
        Code::Sub_rm32_r32 => Code::Add_rm32_r32,
        Code::Sub_rm32_imm32 => Code::Add_rm32_imm32,
        Code::Sub_rm32_imm8 => Code::Add_rm32_imm8,
        Code::Sub_r64_rm64 => Code::Add_r64_rm64,
        Code::Sub_rm64_r64 => Code::Add_rm64_r64,
        Code::Sub_rm64_imm32 => Code::Add_rm64_imm32,
        Code::Sub_rm64_imm8 => Code::Add_rm64_imm8,
        other => other,
    }
}

/// The form for any register of one that names `rax`.
fn any_register(code: Code) -> Code {
    match code {
        Code::Add_EAX_imm32 => Code::Add_rm32_imm32,
        Code::Add_RAX_imm32 => Code::Add_rm64_imm32,
        Code::Sub_EAX_imm32 => Code::Sub_rm32_imm32,
        Code::Sub_RAX_imm32 => Code::Sub_rm64_imm32,
        other => other,
    }
}
