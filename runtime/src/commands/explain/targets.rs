//! Names of the places that branches of the program go to.

use std::collections::BTreeMap;

use iced_x86::{Instruction, OpKind, SymbolResolver, SymbolResult};

use super::listing::function_of;

/// The names of targets by their addresses. They are looked up beforehand: a formatter
/// owns what it asks.
#[derive(Debug, Default)]
pub(super) struct Targets(BTreeMap<u64, String>);

impl Targets {
    /// Those of `instructions`, as far as `name` knows them. Within a function the
    /// address says more, which the listing has beside each line.
    pub(super) fn of<'a>(
        instructions: impl Iterator<Item = &'a Instruction>,
        name: &mut dyn FnMut(u64) -> Option<String>,
    ) -> Self {
        let elsewhere = |instruction: &Instruction| {
            let target = instruction.near_branch_target();
            let there = name(target)?;
            let here = name(instruction.ip());
            let is_here = here.is_some_and(|here| function_of(&here) == function_of(&there));
            (!is_here).then_some((target, there))
        };
        Self(
            instructions.filter(|instruction| is_near(instruction)).filter_map(elsewhere).collect(),
        )
    }
}

/// Whether the instruction names the address that it goes to.
fn is_near(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64
}

impl SymbolResolver for Targets {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        // Asked about constants and memory as well.
        let name = self.0.get(&address).filter(|_| is_near(instruction))?;
        Some(SymbolResult::with_str(address, name))
    }
}
