//! Which three user registers give up their hardware registers.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::forms::Class;
use crate::frame;
use crate::graph::Graph;
use crate::layout::Layout;
use crate::regs;
use crate::steps::Steps;

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
pub(crate) fn choose(graph: &Graph, layout: &Layout, steps: &Steps) -> Displaced {
    let mut costs = [0_u64; 16];
    for (&block, depth) in layout.order.iter().zip(&layout.depth) {
        let block = graph.block(block);
        let weight = 8_u64.pow((*depth).min(4));
        for number in block.body.clone().chain(block.terminator) {
            let guest = steps.guest(number);
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
            OpKind::Register if matches!(class, Class::Locked | Class::BitString) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuFeatures;
    use crate::graph::build;
    use crate::layout::layout;
    use crate::region::discover;
    use crate::source::SliceSource;
    use crate::translate::Predictions;

    fn chosen(bytes: &[u8]) -> [Register; 3] {
        let mut source = SliceSource { address: 0x1000, bytes };
        let mut steps = Steps::new(&mut source, CpuFeatures::all());
        let region =
            discover(0x1000, &mut steps, &Predictions::default(), 100, false).expect("a region");
        let graph = build(&region, &steps, 0);
        let displaced = choose(&graph, &layout(&graph), &steps);
        [displaced.s, displaced.t, displaced.u]
    }

    #[test]
    fn unused_registers_go_first() {
        // add r11,r10; syscall
        assert_eq!(chosen(&[0x4d, 0x01, 0xd3, 0x0f, 0x05]), [R::R9, R::R8, R::R15]);
    }

    #[test]
    fn loops_weigh_more() {
        // r8 to r10, rbx and rbp once or twice outside, r12 to r15 in a loop:
        // mov r8,r9; mov r10,rbx; mov rbp,rbp;
        // L: add r12,r13; add r14,r15; add r11,r11; dec ecx; jne L; syscall
        let displaced = chosen(&[
            0x4d, 0x89, 0xc8, 0x49, 0x89, 0xda, 0x48, 0x89, 0xed, 0x4d, 0x01, 0xec, 0x4d, 0x01,
            0xfe, 0x4d, 0x01, 0xdb, 0xff, 0xc9, 0x75, 0xf3, 0x0f, 0x05,
        ]);
        assert_eq!(displaced, [R::R10, R::R9, R::R8]);
    }

    #[test]
    fn high_bytes_and_wide_exchanges_keep_rbx() {
        // mov bh,cl and every other candidate used twice as often.
        let mut code = vec![0x88, 0xcf];
        for _ in 0..4 {
            for pair in
                [[0x4d, 0x01, 0xc8], [0x4d, 0x01, 0xda], [0x4d, 0x01, 0xec], [0x4d, 0x01, 0xfe]]
            {
                code.extend(pair);
            }
            code.extend([0x48, 0x01, 0xed]);
        }
        code.extend([0x0f, 0x05]);
        assert!(!chosen(&code).contains(&R::RBX));
    }

    #[test]
    fn slots_are_distinct() {
        let displaced = Displaced { s: R::R8, t: R::R9, u: R::R10 };
        assert_eq!(displaced.slot(R::R9D), Some(frame::spill(1)));
        assert_eq!(displaced.slot(R::RAX), None);
        let all = [SPILL_RAX, SPILL_FLAGS, SPILL_RCX];
        assert!(displaced.slots().iter().all(|(_, slot)| !all.contains(slot)));
    }
}
