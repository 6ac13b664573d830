//! Random guest instructions: random bytes that decode, with their memory
//! operands bent so that most accesses hit the guest's data.

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Encoder, FlowControl, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use ub_translator::{CpuFeatures, Options, SliceSource, translate};

use crate::random::Random;

/// Holds the fuel of loops.
pub const FUEL: Register = Register::R15;

const GPRS: [Register; 15] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Integer opcodes worth more than the rest.
const COMMON: [u8; 24] = [
    0x01, 0x03, 0x09, 0x0b, 0x11, 0x1b, 0x21, 0x29, 0x2b, 0x31, 0x33, 0x39, 0x3b, 0x63, 0x81, 0x83,
    0x85, 0x89, 0x8b, 0x8d, 0xc1, 0xd3, 0xf7, 0xff,
];

fn random_bytes(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    match random.below(10) {
        0..=4 => {
            if random.one_in(8) {
                bytes.push(random.pick(&[0x66, 0xf2, 0xf3, 0xf0]));
            }
            if !random.one_in(3) {
                bytes.push(0x40 | random.below(16) as u8);
            }
            bytes.push(if random.one_in(3) { random.next() as u8 } else { random.pick(&COMMON) });
        }
        5..=7 => {
            if random.one_in(2) {
                bytes.push(random.pick(&[0x66, 0xf2, 0xf3, 0xf0]));
            }
            if random.one_in(2) {
                bytes.push(0x40 | random.below(16) as u8);
            }
            bytes.push(0x0f);
            match random.below(6) {
                0 => bytes.push(0x38),
                1 => bytes.push(0x3a),
                _ => {}
            }
            bytes.push(random.next() as u8);
        }
        8 => {
            bytes.push(0xc4);
            // RXB inverted, map 1 to 3.
            bytes.push((random.next() as u8 & 0xe0) | (1 + random.below(3) as u8));
            bytes.push(random.next() as u8);
            bytes.push(random.next() as u8);
        }
        _ => {
            bytes.push(0x62);
            bytes.push((random.next() as u8 & 0xf0) | (1 + random.below(3) as u8));
            bytes.push(random.next() as u8 | 0x04);
            bytes.push(random.next() as u8);
            bytes.push(random.next() as u8);
        }
    }
    bytes.extend((0..12).map(|_| random.next() as u8));
    bytes
}

/// What an instruction must not do to be part of a random program.
fn harmless(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
    reserved: &[Register],
) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    if instruction.is_invalid()
        || instruction.flow_control() != FlowControl::Next
        || instruction.is_privileged()
        || instruction.is_stack_instruction()
        || matches!(instruction.segment_prefix(), Register::FS | Register::GS)
        // Values differ from run to run, or state that tests do not set up.
        || matches!(
            instruction.mnemonic(),
            M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid | M::Cpuid | M::Xgetbv
                | M::Std | M::Popfq | M::Pushfq | M::Ldmxcsr | M::Vldmxcsr | M::Emms
                | M::Wrfsbase | M::Wrgsbase | M::Rdfsbase | M::Rdgsbase | M::Rdpkru | M::Wrpkru
                | M::Umonitor | M::Umwait | M::Tpause | M::Monitorx | M::Mwaitx | M::Ptwrite
                | M::Incsspd | M::Incsspq | M::Rdsspd | M::Rdsspq | M::Sldt | M::Sgdt | M::Sidt
                | M::Str | M::Smsw | M::Verr | M::Verw | M::Lar | M::Lsl | M::Fxrstor
                | M::Fxrstor64 | M::Xrstor | M::Xrstor64 | M::Fldcw | M::Fldenv | M::Frstor
                | M::Lfs | M::Lgs | M::Lss | M::Rdpmc | M::Rdpru | M::Clzero | M::Enter | M::Leave
        )
    {
        return false;
    }
    // x87, MMX and AMX are refused by the translator, and their state is not
    // compared.
    if instruction.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::AMX_TILE | F::AMX_INT8 | F::AMX_BF16
        )
    }) {
        return false;
    }
    for i in 0..instruction.op_count() {
        if instruction.op_kind(i) == OpKind::Register {
            let register = instruction.op_register(i);
            if !(register.is_gpr() || register.is_vector_register() || register.is_k()) {
                return false;
            }
        }
    }
    factory.info(instruction).used_registers().iter().all(|used| {
        let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
        let full = used.register().full_register();
        !(written && (reserved.contains(&full) || full == Register::RSP))
    })
}

/// One random instruction, encoded. `pointers` are likely to hold addresses
/// of data; `reserved` registers are not written. Without `stack` no
/// memory operand is based on `rsp`, and few have odd addresses.
pub fn instruction(
    random: &mut Random,
    pointers: &[Register],
    reserved: &[Register],
    stack: bool,
) -> Vec<u8> {
    let mut factory = InstructionInfoFactory::new();
    loop {
        let bytes = random_bytes(random);
        let mut decoder = Decoder::with_ip(64, &bytes, 0x1000, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        if !harmless(&instruction, &mut factory, reserved) {
            continue;
        }
        let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
        if memory {
            let vector_index = instruction.memory_index().is_vector_register();
            let moffs = instruction.memory_displ_size() == 8
                && instruction.memory_base() == Register::None
                && matches!(instruction.mnemonic(), Mnemonic::Mov);
            if vector_index || moffs {
                continue;
            }
            bend(&mut instruction, random, pointers, stack);
            if !harmless(&instruction, &mut factory, reserved) {
                continue;
            }
        }
        let mut encoder = Encoder::new(64);
        if encoder.encode(&instruction, 0x1000).is_ok() {
            return encoder.take_buffer();
        }
    }
}

/// Whether the translator takes the instruction.
pub fn is_translated(bytes: &[u8]) -> bool {
    let mut source = SliceSource { address: 0x1000, bytes };
    translate(0x1000, &mut source, &Options::new(CpuFeatures::host())).is_ok()
}

/// Gives the memory operand an address near the data, mostly.
fn bend(instruction: &mut Instruction, random: &mut Random, pointers: &[Register], stack: bool) {
    let base = match random.below(8) {
        0 if stack => Register::RSP,
        1 if stack => random.pick(&GPRS),
        _ => random.pick(pointers),
    };
    instruction.set_memory_base(base);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    if random.one_in(if stack { 4 } else { 20 }) {
        instruction.set_memory_index(random.pick(&GPRS));
        instruction.set_memory_index_scale(random.pick(&[1, 2, 4, 8]));
    }
    let mut displacement = match random.below(8) {
        0 if stack => random.next() as i32 as i64 >> random.below(32),
        1 => -(random.below(256) as i64),
        _ => random.below(512) as i64,
    };
    // Aligned operands, mostly.
    if !random.one_in(4) {
        displacement &= !63;
    }
    instruction.set_memory_displacement64(displacement as u64);
    instruction.set_memory_displ_size(if displacement == 0 { 0 } else { 1 });
}
