//! What is measured: functions as a compiler made them, called with work for
//! some microseconds.
//!
//! The guest's code is this process's own: C code compiled into it
//! ([`compiled`]), the C library ([`library`]), and functions of redis-server
//! and nginx as installed ([`redis`], [`nginx`]).

/// The call of a C function of `benches/c` with up to six arguments.
macro_rules! call {
    ($function:ident $(, $argument:expr)*) => {{
        unsafe extern "C" {
            fn $function();
        }
        let mut arguments = [0_u64; 6];
        let given: &[u64] = &[$($argument as u64),*];
        arguments[..given.len()].copy_from_slice(given);
        $crate::guest::Call { function: $function as *const () as u64, arguments }
    }};
}
pub mod compiled;
pub mod library;
pub mod nginx;
pub mod redis;

mod memory;

pub use memory::{Memory, Numbers};

use anyhow::{Context as _, Result, ensure};

use crate::guest::{Call, Translated};
use crate::loader::Image;

/// One piece of work in a language of its own: a name and how to set it up.
pub struct Kernel {
    /// What it does.
    pub name: &'static str,
    setup: Setup,
}

/// Fills memory with the data and says what to call. All of it must be
/// repeatable: a call with the memory as another call left it does the same.
enum Setup {
    /// In this program.
    Own(fn(&mut Memory) -> Result<Call>),
    /// In a program that is loaded beside it.
    Loaded(&'static str, fn(&mut Memory, &Image) -> Result<Call>),
}

impl Kernel {
    const fn own(name: &'static str, setup: fn(&mut Memory) -> Result<Call>) -> Self {
        Self { name, setup: Setup::Own(setup) }
    }

    const fn loaded(
        name: &'static str,
        program: &'static str,
        setup: fn(&mut Memory, &Image) -> Result<Call>,
    ) -> Self {
        Self { name, setup: Setup::Loaded(program, setup) }
    }
}

/// All kernels, in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    compiled::KERNELS.iter().chain(&library::KERNELS).chain(&redis::KERNELS).chain(&nginx::KERNELS)
}

/// A call that does nothing: not in the table, but what its translated time
/// has more than its native one is part of every other's.
pub static NOTHING: Kernel = Kernel::own("nothing", |_| Ok(call!(ub_nothing, 1)));

/// A kernel ready to run both ways.
pub struct Prepared {
    call: Call,
    translated: Translated,
    /// What the call works on.
    _memory: Memory,
    /// The code of the call, unless it is this program's.
    _image: Option<Image>,
}

impl Prepared {
    /// Sets `kernel` up, translates it, and compares results and memory of
    /// one run of each kind.
    ///
    /// # Errors
    /// If any of this fails, above all if the results differ.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        Self::try_new(kernel).with_context(|| format!("kernel {:?}", kernel.name))
    }

    fn try_new(kernel: &Kernel) -> Result<Self> {
        let mut memory = Memory::default();
        let (call, image) = match kernel.setup {
            Setup::Own(setup) => (setup(&mut memory)?, None),
            Setup::Loaded(program, setup) => {
                let path = ub_bench::demo::find_program(program)?;
                let image = Image::load(&path)?;
                (setup(&mut memory, &image)?, Some(image))
            }
        };
        let before = memory.contents();
        // SAFETY: a kernel's setup describes a call of its function with
        // pointers into `memory` and to nothing that others use.
        let native = unsafe { call.native() };
        let after = memory.contents();
        memory.restore(&before);
        // SAFETY: as above.
        let mut translated = unsafe { Translated::new(call) }?;
        memory.restore(&before);
        // SAFETY: as above.
        let result = unsafe { translated.run() }?;
        ensure!(native == result, "{native:#x} natively, {result:#x} translated");
        ensure!(memory.contents() == after, "it leaves different memory when translated");
        // SAFETY: as above.
        let again = unsafe { call.native() };
        ensure!(again == native && memory.contents() == after, "a second call does otherwise");
        Ok(Self { call, translated, _memory: memory, _image: image })
    }

    /// Runs the guest's own code; returns its result.
    #[must_use]
    #[inline]
    pub fn native(&self) -> u64 {
        // SAFETY: as in `new`: image and memory are still there.
        unsafe { self.call.native() }
    }

    /// Runs the fragments; returns their result.
    ///
    /// # Errors
    /// If they end anywhere but at the function's return.
    #[inline]
    pub fn translated(&mut self) -> Result<u64> {
        // SAFETY: as in `native`.
        unsafe { self.translated.run() }
    }

    /// The fragments.
    #[must_use]
    pub fn fragments(&self) -> &Translated {
        &self.translated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute_the_same(kernels: &[Kernel]) {
        let failed: Vec<String> = kernels
            .iter()
            .filter_map(|kernel| Prepared::new(kernel).err())
            .map(|error| format!("{error:#}"))
            .collect();
        assert_eq!(failed, [] as [String; 0]);
    }

    #[test]
    fn compiled_kernels_compute_the_same_both_ways() {
        compute_the_same(&compiled::KERNELS);
    }

    #[test]
    fn library_kernels_compute_the_same_both_ways() {
        compute_the_same(&library::KERNELS);
    }

    #[test]
    fn redis_kernels_compute_the_same_both_ways() {
        compute_the_same(&redis::KERNELS);
    }

    #[test]
    fn nginx_kernels_compute_the_same_both_ways() {
        compute_the_same(&nginx::KERNELS);
    }

    #[test]
    fn a_call_that_makes_a_system_call_is_refused() {
        let call = Call { function: libc::getppid as *const () as u64, arguments: [0; 6] };
        // SAFETY: getppid has no arguments.
        let Err(error) = (unsafe { Translated::new(call) }) else { panic!("it has a syscall") };
        assert!(format!("{error:#}").contains("cannot go on in a ride"), "{error:#}");
    }

    #[test]
    fn names_are_unique_and_there_are_enough() {
        let mut names: Vec<_> = all().map(|kernel| kernel.name).collect();
        assert!(names.len() >= 16, "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
    }
}
