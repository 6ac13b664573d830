//! Which three user registers give up their hardware registers.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::forms::Class;
use crate::frame;
use crate::layout::Layout;
use crate::region::Region;
use crate::regs;

use Register as R;

/// Registers that may be displaced, the cheapest to give up first: without a
/// REX prefix others encode shorter, and compilers use low ones more.
const CANDIDATES: [Register; 10] =
    [R::R11, R::R10, R::R9, R::R8, R::R15, R::R14, R::R13, R::R12, R::RBP, R::RBX];

/// Slot of `rax` while its register holds flags.
pub(crate) const SPILL_RAX: i32 = frame::spill(3);
/// Slot of saved flags.
pub(crate) const SPILL_FLAGS: i32 = frame::spill(4);
/// Slot of `rcx` while its register holds a comparison.
pub(crate) const SPILL_RCX: i32 = frame::spill(5);

/// The three hardware registers a fragment works with. The user's values of
/// these registers live in spill slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Displaced {
    /// Holds the user's stack pointer.
    pub s: Register,
    /// Scratch, mostly an address.
    pub t: Register,
    /// Scratch, mostly a stand-in for a displaced operand.
    pub u: Register,
}

impl Displaced {
    /// Offset of the slot that holds the user's value of `register`; none if
    /// it lives in its own hardware register.
    pub(crate) fn slot(&self, register: Register) -> Option<i32> {
        let full = register.full_register();
        [self.s, self.t, self.u].iter().position(|&r| r == full).map(frame::spill)
    }

    /// The registers with their slots.
    pub(crate) fn slots(&self) -> [(Register, i32); 3] {
        [(self.s, frame::spill(0)), (self.t, frame::spill(1)), (self.u, frame::spill(2))]
    }
}

/// Makes a candidate all but impossible.
const NEVER: u64 = 1 << 40;

/// Picks the least used candidates, weighted by loop depth.
pub(crate) fn choose(region: &Region, layout: &Layout) -> Displaced {
    let mut costs = [0_u64; 16];
    for (start, depth) in layout.order.iter().zip(&layout.depth) {
        let block = &region.blocks[start];
        let weight = 8_u64.pow((*depth).min(4));
        for guest in block.body.iter().chain(&block.terminator) {
            if guest.class != Class::Hint {
                add_costs(&guest.instruction, guest.class, weight, &mut costs);
            }
        }
    }
    let mut order = CANDIDATES;
    order.sort_by_key(|&register| costs[regs::index(register)]);
    Displaced { s: order[0], t: order[1], u: order[2] }
}

fn add_costs(instruction: &Instruction, class: Class, weight: u64, costs: &mut [u64; 16]) {
    let mut add = |register: Register, cost: u64| {
        if register.is_gpr() {
            let cost = if regs::is_high_byte(register) { NEVER } else { cost };
            costs[regs::index(register)] += cost;
        }
    };
    let mut memory = false;
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            // A locked operand leaves no scratch register for a stand-in.
            OpKind::Register if class == Class::Locked => {
                add(instruction.op_register(i), NEVER >> 8);
            }
            OpKind::Register => add(instruction.op_register(i), 2 * weight),
            OpKind::Memory => memory = true,
            _ => {}
        }
    }
    if memory {
        add(instruction.memory_base(), 2 * weight);
        add(instruction.memory_index(), weight);
    }
    match instruction.mnemonic() {
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => add(R::RBX, NEVER),
        Mnemonic::Leave => add(R::RBP, 2 * weight),
        _ => {}
    }
}
