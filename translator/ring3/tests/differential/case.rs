//! One comparison, made from a seed: program, registers, memory, and what
//! happens on the way.

use crate::catalogue::Catalogue;
use crate::generate::{Guest, RSP, generate};
use crate::host;
use crate::program::{Image, Program};
use crate::rng::Rng;
use ub_ring3::memory::{Access, DATA_BYTES, STACK_BYTES, Snapshot};
use ub_ring3::state::{ARITHMETIC_FLAGS, gpr};
use ub_ring3::{CpuState, GuestMemory};
use ub_translator::{Options, Predictions};

const PAGE: usize = 4096;
/// Distinct contents of memory, made once.
const PATTERNS: usize = 4;
/// Words of memory that differ from program to program beside the pattern.
const WORDS: usize = 32;

/// A page of the data or stack area that is taken away.
#[derive(Debug, Clone, Copy)]
pub struct Restricted {
    pub stack: bool,
    pub page: usize,
    pub access: Access,
}

/// Everything that a comparison depends on.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    pub program: Program,
    /// Which of the two guests.
    pub low: bool,
    pub state: CpuState,
    pub options: Options,
    /// Most fragments that run before the rest goes on natively.
    pub fragments: usize,
    /// Work is pending from the start.
    pub pending: bool,
    /// Work becomes pending after so many instructions; 0 for never.
    pub raise_after: u64,
    pub restricted: Option<Restricted>,
    /// Most faults that are injected, one in a run.
    pub injections: usize,
}

/// Registers with values at which things break.
pub fn random_state(rng: &mut Rng, memory: &GuestMemory) -> CpuState {
    let mut state = CpuState::default();
    for r in &mut state.gpr {
        *r = rng.value();
    }
    state.gpr[gpr::RSP] = memory.stack_end() - 16384 - 16 * rng.below(64) as u64;
    state.rflags = rng.next() & ARITHMETIC_FLAGS;
    let wide = std::arch::is_x86_feature_detected!("avx512bw");
    let low = match std::arch::is_x86_feature_detected!("avx") {
        _ if wide => 64,
        true => 32,
        false => 16,
    };
    if wide {
        state.vectors.k = std::array::from_fn(|_| rng.value());
    }
    for z in state.vectors.zmm.iter_mut().take(if wide { 32 } else { 16 }) {
        // Many programs touch few: half of them stay zero.
        if rng.chance(50) {
            continue;
        }
        for chunk in z[..low].chunks_mut(8) {
            let value = match rng.below(3) {
                0 => rng.value(),
                1 => (rng.value() as i64 as f64).to_bits(),
                _ => {
                    let half = |rng: &mut Rng| u64::from((rng.value() as i32 as f32).to_bits());
                    half(rng) | half(rng) << 32
                }
            };
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }
    state
}

/// Pointers that no program may follow, and some that it may not follow far.
pub fn bad_pointer(rng: &mut Rng, data: u64) -> u64 {
    match rng.below(9) {
        0 => 0xffff_8880_0000_0000 | rng.next() & 0x7fff_fff8,
        1 => 0xffff_ffff_8100_0000 | rng.next() & 0xff_fff8,
        2 => data | 1 << 63,
        3 => 1 << 63,
        4 => 0x0000_8000_0000_0000 | rng.next() & 0xffff,
        5 => (rng.next() & 0xffff).wrapping_neg(),
        6 => 0x7fff_ffff_ffff_f000 | rng.next() & 0xfff,
        7 => rng.next() & 0xffff,
        _ => data - 64 + rng.next() % 128,
    }
}

impl Case {
    /// The case of `seed`, for guests at these places, the high one first.
    pub fn new(seed: u64, catalogue: &Catalogue, memories: &[GuestMemory; 2]) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0xd134_2543_de82_ef95));
        let low = rng.chance(35);
        let memory = &memories[usize::from(low)];
        let length = match rng.below(4) {
            0 => 1 + rng.below(3),
            _ => 3 + rng.below(24),
        };
        let made = generate(&mut rng, catalogue, Guest::of(memory), length);
        let mut state = random_state(&mut rng, memory);
        for &(register, offset) in &made.pointers {
            state.gpr[register] = memory.data() + offset as u64;
        }
        if rng.chance(12) {
            // A hostile program: some pointer leads elsewhere.
            for _ in 0..1 + rng.below(2) {
                let register = match made.pointers.as_slice() {
                    [] => rng.below(16),
                    pointers => rng.pick(pointers).0,
                };
                if register != RSP {
                    state.gpr[register] = bad_pointer(&mut rng, memory.data());
                }
            }
        }
        if rng.chance(10) {
            // One of the exceptions unmasked.
            state.vectors.mxcsr &= !(0x80 << rng.below(6));
        }
        let mut options = host::options();
        if rng.chance(20) {
            options.max_instructions = 1 + rng.below(20);
        }
        options.first_look = rng.chance(30);
        let restricted = rng.chance(15).then(|| {
            let stack = rng.chance(40);
            let middle = (STACK_BYTES - 16384) / PAGE;
            let page = if stack { middle - rng.below(2) } else { rng.below(DATA_BYTES / PAGE) };
            Restricted { stack, page, access: rng.pick(&[Access::None, Access::Read]) }
        });
        Self {
            seed,
            program: made.program,
            low,
            state,
            options,
            fragments: if rng.chance(30) { 1 + rng.below(8) } else { 200 },
            pending: rng.chance(12),
            raise_after: if rng.chance(6) { 1 + rng.below(250) as u64 } else { 0 },
            restricted,
            injections: if rng.chance(20) { 6 } else { 0 },
        }
    }
}

/// Contents of memory to start from.
pub struct Patterns(Vec<Snapshot>);

impl Patterns {
    pub fn new(memory: &mut GuestMemory) -> Self {
        let mut rng = Rng(0xda7a);
        let mut make = || {
            let data: Vec<u8> =
                (0..DATA_BYTES / 8).flat_map(|_| rng.value().to_le_bytes()).collect();
            memory.write_data(0, &data).expect("the data fits");
            memory.snapshot()
        };
        Self((0..PATTERNS).map(|_| make()).collect())
    }

    /// Makes the memory that of the case.
    pub fn reset(&self, memory: &mut GuestMemory, case: &Case) {
        memory.restore(&self.0[case.seed as usize % PATTERNS]);
        let mut rng = Rng(case.seed);
        for _ in 0..WORDS {
            let at = rng.below(DATA_BYTES - 8);
            memory.write_data(at, &rng.value().to_le_bytes()).expect("inside the data");
        }
    }
}

/// What the translator is told was seen, some of it made up: predictions
/// must not matter but for speed.
pub fn predictions(case: &Case, image: &Image) -> Predictions {
    let mut rng = Rng(case.seed ^ 0x7072_6564);
    let mut out = Predictions { targets: image.predictions.clone(), ..Predictions::default() };
    if rng.chance(50) {
        out.wide_indexes.extend(image.starts.iter().filter(|_| rng.chance(20)));
    }
    if rng.chance(25) {
        out.exit_targets.extend(image.starts.iter().filter(|_| rng.chance(10)));
    }
    if rng.chance(25) {
        out.executed.extend(image.starts.iter().filter(|_| rng.chance(80)));
        out.entries.extend(image.starts.iter().filter(|_| rng.chance(5)));
    }
    out
}

impl Restricted {
    /// Takes the page away, or gives it back.
    pub fn apply(self, memory: &mut GuestMemory, on: bool) {
        let area = if self.stack { memory.stack() } else { memory.data() };
        let access = if on { self.access } else { Access::ReadWrite };
        let page = area + (self.page * PAGE) as u64;
        memory.restrict(page, PAGE, access).expect("a page of the guest");
    }
}
