//! A fragment taken apart: instructions can be changed, moved, dropped and
//! added, and everything that refers to them follows.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, Instruction, InstructionBlock,
    OpKind, Register,
};
use ub_translator::fragment::{Fixup, Parts};

/// Where instructions lie before they have an offset.
const NOWHERE: u64 = 0x4000_0000;

/// A fragment as a list of instructions. What refers to one holds its name,
/// which stays when others come and go.
pub struct Editor {
    pub items: Vec<Item>,
    pub parts: Parts,
    names: u64,
}

/// One instruction.
#[derive(Debug, Clone)]
pub struct Item {
    name: u64,
    pub instruction: Instruction,
    /// The jump to the runner.
    leaves: bool,
    /// Name of the landing.
    pub landing: Option<u64>,
}

fn is_branch(i: &Instruction) -> bool {
    i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch64
}

impl Editor {
    /// Takes it apart. `None` if it does not decode cleanly.
    pub fn new(parts: &Parts) -> Option<Self> {
        // A damaged branch may lead anywhere.
        let name = |offset: u64| NOWHERE.wrapping_add(offset.wrapping_mul(16));
        let mut items = Vec::new();
        for mut i in Decoder::with_ip(64, &parts.code, 0, DecoderOptions::NONE).iter() {
            if i.is_invalid() {
                return None;
            }
            let at = i.ip();
            let leaves = parts.relocations.iter().any(|&r| u64::from(r) == at + 1);
            if is_branch(&i) {
                i.set_near_branch64(name(i.near_branch_target()));
            }
            let landing = parts.fixups.iter().find(|f| u64::from(f.fault) == at);
            let landing = landing.map(|f| name(u64::from(f.landing)));
            items.push(Item { name: name(at), instruction: i, leaves, landing });
        }
        let names = name(parts.code.len() as u64 + 16);
        Some(Self { items, parts: parts.clone(), names })
    }

    /// The name that branches and landings lead to.
    pub fn name_of(&self, index: usize) -> u64 {
        self.items[index].name
    }

    /// Indexes of the items that `wanted` holds for.
    pub fn find(&self, wanted: impl Fn(&Item) -> bool) -> Vec<usize> {
        (0..self.items.len()).filter(|&i| wanted(&self.items[i])).collect()
    }

    /// Adds an instruction in front of `index`; branches there pass it by.
    pub fn insert(&mut self, index: usize, instruction: Instruction) {
        self.names += 16;
        let item = Item { name: self.names, instruction, leaves: false, landing: None };
        self.items.insert(index, item);
    }

    /// Drops an instruction; what led to it leads to the next one.
    pub fn remove(&mut self, index: usize) {
        if index + 1 >= self.items.len() {
            return;
        }
        let (old, new) = (self.items[index].name, self.items[index + 1].name);
        self.items.remove(index);
        for item in &mut self.items {
            if item.landing == Some(old) {
                item.landing = Some(new);
            }
            if is_branch(&item.instruction) && item.instruction.near_branch_target() == old {
                item.instruction.set_near_branch64(new);
            }
        }
    }

    /// The fragment again. `None` if it cannot be encoded.
    pub fn finish(self) -> Option<Parts> {
        // The encoder takes it for granted that both have the same width.
        let is_mixed = |item: &Item| {
            let (base, index) = (item.instruction.memory_base(), item.instruction.memory_index());
            let both = base != Register::None && index.is_gpr();
            both && base.size() != index.size()
        };
        if self.items.iter().any(is_mixed) {
            return None;
        }
        let mut instructions = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let mut i = if item.leaves {
                Instruction::with_declare_byte_5(0xe9, 0, 0, 0, 0)
            } else {
                item.instruction
            };
            i.set_ip(item.name);
            instructions.push(i);
        }
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        // Fragments are position independent but for what an editor adds.
        let block = InstructionBlock::new(&instructions, 0);
        let result = BlockEncoder::encode(64, block, options).ok()?;
        let offsets = &result.new_instruction_offsets;
        let at = |name| self.items.iter().position(|item| item.name == name).map(|i| offsets[i]);
        let mut parts = self.parts.clone();
        parts.relocations.clear();
        parts.fixups.clear();
        for (item, &offset) in self.items.iter().zip(offsets) {
            if item.leaves {
                parts.relocations.push(offset + 1);
            }
            if let Some(landing) = item.landing {
                parts.fixups.push(Fixup { fault: offset, landing: at(landing)? });
            }
        }
        parts.code = result.code_buffer;
        parts.map.clear();
        Some(parts)
    }
}
