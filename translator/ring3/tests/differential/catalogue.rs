//! Every form that the translator takes, found by asking it: each of iced's
//! codes is tried with register and memory operands. A form added to the
//! translator is in the programs of the next run.

use crate::host;
use crate::operands::{Operands, Shape, instantiate, shapes};
use crate::rng::Rng;
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, FlowControl, Instruction,
    MemoryOperand, Mnemonic, Register,
};
use ub_translator::{SliceSource, translate};

/// How often a shape is tried with other operands before it counts as refused.
const TRIES: usize = 12;
const AT: u64 = 0x1000;

/// The forms, in groups that programs draw from evenly.
pub struct Catalogue {
    pub groups: Vec<Vec<Shape>>,
}

/// Operands that any form may have.
struct Plain;

impl Operands for Plain {
    fn gpr(&mut self, rng: &mut Rng) -> usize {
        rng.pick(&[0, 1, 2, 3, 5, 6, 7])
    }

    fn memory(&mut self, _: &mut Rng, _: usize) -> MemoryOperand {
        MemoryOperand::with_base(Register::RBX)
    }
}

/// What a comparison cannot hold for, or what is generated elsewhere.
fn is_elsewhere(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    !code.op_code().mode64()
        || instruction.flow_control() != FlowControl::Next
        || instruction.is_stack_instruction()
        || instruction.is_string_instruction()
        || instruction.is_privileged()
        // Their values differ from run to run, or belong to the test itself.
        || matches!(
            instruction.mnemonic(),
            M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid | M::Cpuid | M::Rdpmc
                | M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase | M::Xgetbv
                | M::Rdpkru | M::Wrpkru | M::Rdpru | M::Enter | M::Leave | M::Std
        )
        // State that is not compared; AMX has no state component here.
        || instruction.cpuid_features().iter().any(|feature| {
            matches!(
                feature,
                F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::AMX_TILE | F::AMX_INT8 | F::AMX_BF16
            )
        })
}

/// Whether the translator takes this one instruction.
pub fn is_translated(instruction: &Instruction) -> bool {
    let mut encoder = Encoder::new(64);
    if encoder.encode(instruction, AT).is_err() {
        return false;
    }
    let mut bytes = encoder.take_buffer();
    let mut decoder = Decoder::with_ip(64, &bytes, AT, DecoderOptions::NONE);
    if decoder.decode().is_invalid() {
        return false;
    }
    bytes.extend([0x0f, 0x05]);
    let mut source = SliceSource { address: AT, bytes: &bytes };
    translate(AT, &mut source, &host::options()).is_ok()
}

impl Catalogue {
    /// Asks the translator about every code.
    pub fn new() -> Self {
        let mut rng = Rng(1);
        let mut groups = vec![Vec::new(); 6];
        for code in Code::values().filter(|&code| !is_elsewhere(code)) {
            for shape in shapes(code) {
                let taken = (0..TRIES).any(|_| {
                    instantiate(&mut rng, shape, &mut Plain).is_some_and(|i| is_translated(&i))
                });
                if taken {
                    groups[group(&shape)].push(shape);
                }
            }
        }
        groups.retain(|group| !group.is_empty());
        Self { groups }
    }

    /// How many forms there are.
    pub fn len(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    pub fn pick(&self, rng: &mut Rng) -> Shape {
        // The first two, general registers, make half of a program.
        let group = match rng.below(8) {
            0..=2 => 0,
            3 | 4 => 1,
            _ => rng.below(self.groups.len()),
        };
        rng.pick(&self.groups[group.min(self.groups.len() - 1)])
    }
}

fn group(shape: &Shape) -> usize {
    let info = shape.code.op_code();
    if shape.lock {
        return 2;
    }
    let general = !info.op_kinds().iter().any(|kind| {
        let name = format!("{kind:?}");
        name.contains("mm_") || name.contains("mmp") || name.starts_with('k')
    });
    match info.encoding() {
        _ if general && shape.memory => 1,
        _ if general => 0,
        EncodingKind::Legacy => 3,
        EncodingKind::VEX => 4,
        _ => 5,
    }
}
