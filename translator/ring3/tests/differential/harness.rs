//! Translates, verifies and runs; and the reference beside it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use ub_ring3::memory::Snapshot;
use ub_ring3::{Chain, CpuState, GuestMemory, Loaded, NativeStop, Runner, run_native_until};
use ub_translator::fragment::{Fragment, Verified};
use ub_translator::verifier::verify;
use ub_translator::{CodeSource, TranslateError, translate};

/// The guest's code area as the translator reads it.
pub struct Code<'a>(pub &'a GuestMemory);

impl CodeSource for Code<'_> {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        let bytes = self.0.read_code(address, buf.len());
        buf[..bytes.len()].copy_from_slice(&bytes);
        bytes.len()
    }
}

/// Translates at `ip`. `None` where the translator finds nothing to run.
///
/// # Panics
/// If the translator fails, or the verifier refuses what it made.
pub fn fragment_at(memory: &GuestMemory, ip: u64, context: &str) -> Option<Fragment<Verified>> {
    let options = crate::host::options();
    let fragment = match translate(ip, &mut Code(memory), &options) {
        Ok(fragment) => fragment,
        Err(TranslateError::Useless { .. }) => return None,
        Err(error) => panic!("{context}: at {ip:#x}: {error}"),
    };
    let policy = crate::host::policy();
    match verify(fragment.clone(), &policy) {
        Ok(verified) => Some(verified),
        Err(error) => panic!(
            "{context}: at {ip:#x}: {error}\n{}",
            listing(fragment.parts().code.as_slice(), error.offset)
        ),
    }
}

/// The instructions of `code` around `offset`.
pub fn listing(code: &[u8], offset: usize) -> String {
    let mut out = String::new();
    for i in iced_x86::Decoder::with_ip(64, code, 0, 0) {
        let at = i.ip() as usize;
        if at + 100 > offset && at < offset + 60 {
            let mark = if at == offset { ">" } else { " " };
            out += &format!("{mark}{at:#06x} {i}\n");
        }
    }
    out
}

/// Runs fragments from `start` as the kernel would.
pub fn run_translated(
    memory: &GuestMemory,
    runner: &mut Runner,
    start: u64,
    state: &mut CpuState,
    context: &str,
) -> Option<Chain> {
    let cache: RefCell<BTreeMap<u64, Option<Rc<Loaded>>>> = RefCell::default();
    let mut lookup = |ip: u64| {
        cache
            .borrow_mut()
            .entry(ip)
            .or_insert_with(|| {
                let fragment = fragment_at(memory, ip, context)?;
                Some(Rc::new(Loaded::new(&fragment).expect("mapping a fragment")))
            })
            .clone()
    };
    // SAFETY: verified fragments, on states that point into the guest's
    // memory or at nothing.
    unsafe { runner.run_chain(start, state, 100_000, &mut lookup) }
        .unwrap_or_else(|error| panic!("{context}: {error}"))
}

/// Runs the program natively up to `end`.
pub fn run_reference(
    memory: &mut GuestMemory,
    start: u64,
    end: u64,
    state: &mut CpuState,
) -> (NativeStop, Snapshot) {
    // SAFETY: generated programs stay in the guest's memory and end.
    let stop = unsafe { run_native_until(memory, start, &[end], state) }.expect("native run");
    (stop, memory.snapshot())
}
