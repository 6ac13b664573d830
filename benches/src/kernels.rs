//! Small loops as they occur between system calls, as guest code: the same
//! bytes run natively and as a fragment, and must compute the same.

use anyhow::{Context as _, Result, ensure};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, byte_ptr, eax, qword_ptr, r8, rax, rcx, rdi, rdx, rsi, xmm0,
    xmm1, xmmword_ptr,
};
use ub_ring3::state::gpr;
use ub_ring3::{CpuState, GuestMemory, Loaded, Runner};
use ub_translator::fragment::ExitKind;
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, SliceSource, translate};

/// Bytes of guest data that a kernel works on.
pub const WORK_BYTES: usize = 16 << 10;
/// Where a copy goes, in bytes behind the data.
const COPY_OFFSET: i32 = 32 << 10;

/// A function `u64 kernel(void *data, u64 bytes)` in guest code.
#[derive(Debug)]
pub struct Kernel {
    /// What it does.
    pub name: &'static str,
    assemble: fn(&mut CodeAssembler) -> Result<(), IcedError>,
}

/// All kernels.
pub const KERNELS: [Kernel; 5] = [
    Kernel { name: "sum of words", assemble: sum },
    Kernel { name: "hash of bytes", assemble: hash },
    Kernel { name: "pointer chase", assemble: chase },
    Kernel { name: "vector copy", assemble: copy },
    Kernel { name: "calls of a leaf", assemble: calls },
];

/// `add rax,[rdi+rcx*8]`: base and index.
fn sum(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.mov(rcx, rsi)?;
    a.shr(rcx, 3)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(rax, qword_ptr(rdi + rcx * 8 - 8))?;
    a.dec(rcx)?;
    a.jne(again)?;
    a.ret()
}

/// FNV-1a: a chain of byte loads and multiplications.
fn hash(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, 0xcbf2_9ce4_8422_2325_u64)?;
    a.mov(r8, 0x0000_0100_0000_01b3_u64)?;
    a.add(rsi, rdi)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.xor(al, byte_ptr(rdi))?;
    a.imul_2(rax, r8)?;
    a.inc(rdi)?;
    a.cmp(rdi, rsi)?;
    a.jne(again)?;
    a.ret()
}

/// Follows a ring of pointers once round: latency of one load after the other.
fn chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.shr(rsi, 3)?;
    a.mov(rax, rdi)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(rax))?;
    a.dec(rsi)?;
    a.jne(again)?;
    a.ret()
}

/// 32 bytes a turn through SSE registers, to [`COPY_OFFSET`].
fn copy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, rsi)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.movdqu(xmm0, xmmword_ptr(rdi))?;
    a.movdqu(xmm1, xmmword_ptr(rdi + 16))?;
    a.movdqu(xmmword_ptr(rdi + COPY_OFFSET), xmm0)?;
    a.movdqu(xmmword_ptr(rdi + COPY_OFFSET + 16), xmm1)?;
    a.add(rdi, 32)?;
    a.sub(rsi, 32)?;
    a.jne(again)?;
    a.ret()
}

/// A call and a return for each word, with a pushed register.
fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut leaf: CodeLabel = a.create_label();
    let mut again = a.create_label();
    a.xor(eax, eax)?;
    a.mov(rcx, rsi)?;
    a.shr(rcx, 3)?;
    a.set_label(&mut again)?;
    a.call(leaf)?;
    a.dec(rcx)?;
    a.jne(again)?;
    a.ret()?;
    a.set_label(&mut leaf)?;
    a.push(rdx)?;
    a.mov(rdx, qword_ptr(rdi + rcx * 8 - 8))?;
    a.add(rax, rdx)?;
    a.pop(rdx)?;
    a.ret()
}

/// A kernel in guest memory, ready to run both ways.
pub struct Prepared {
    memory: GuestMemory,
    fragment: Loaded,
    runner: Runner,
    entry: u64,
}

impl Prepared {
    /// Places the code and a ring of pointers as data, translates and
    /// verifies, and compares one run of each kind.
    ///
    /// # Errors
    /// If any of this fails, above all if the results differ.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let mut memory = GuestMemory::new()?;
        let entry = memory.code();
        let mut assembler = CodeAssembler::new(64)?;
        (kernel.assemble)(&mut assembler)?;
        let code = assembler.assemble(entry)?;
        memory.write_code(0, &code)?;
        memory.write_data(0, &ring(memory.data()))?;
        let mut source = SliceSource { address: entry, bytes: &code };
        let fragment = translate(entry, &mut source, &Options::new(CpuFeatures::host()))?;
        let fragment = verify(fragment, &Policy::new(Features::host()))?;
        let fragment = Loaded::new(&fragment)?;
        let mut prepared = Self { memory, fragment, runner: Runner::new()?, entry };
        let (native, translated) = (prepared.native(), prepared.translated()?);
        ensure!(
            native == translated,
            "{}: {native:#x} natively, {translated:#x} translated",
            kernel.name
        );
        Ok(prepared)
    }

    /// Runs the guest's own code; returns its result.
    #[must_use]
    pub fn native(&self) -> u64 {
        // SAFETY: the code area is executable and holds one of this module's
        // functions, which follow the ABI of this type and read and write only
        // the data area, which is as large as the arguments say and owned by
        // `self.memory`.
        let function: extern "sysv64" fn(u64, u64) -> u64 =
            unsafe { std::mem::transmute(self.entry as *const ()) };
        function(self.memory.data(), WORK_BYTES as u64)
    }

    /// Runs the fragment; returns its result.
    ///
    /// # Errors
    /// If the fragment ends anywhere but at the function's return.
    pub fn translated(&mut self) -> Result<u64> {
        let mut state = CpuState::default();
        state.gpr[gpr::RDI] = self.memory.data();
        state.gpr[gpr::RSI] = WORK_BYTES as u64;
        state.gpr[gpr::RSP] = self.memory.stack_end() - 64;
        // SAFETY: verified, and all addresses are in the guest's memory: see
        // `native`.
        let left = unsafe { self.runner.enter_without_vectors(&self.fragment, &mut state) }
            .context("running the fragment")?;
        ensure!(left.exit.kind == ExitKind::Indirect, "ended with {:?}", left.exit);
        Ok(state.gpr[gpr::RAX])
    }
}

/// Words that each point to another one of them, all in one ring.
fn ring(address: u64) -> Vec<u8> {
    // An odd step visits every slot of a power of two before it repeats.
    const STEP: usize = 257;
    let words = WORK_BYTES / 8;
    (0..words)
        .flat_map(|index| (address + 8 * ((index + STEP) % words) as u64).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_compute_the_same_both_ways() {
        for kernel in &KERNELS {
            let mut prepared =
                Prepared::new(kernel).unwrap_or_else(|e| panic!("{kernel:?}: {e:#}"));
            assert_eq!(prepared.translated().unwrap(), prepared.native(), "{kernel:?}");
        }
    }

    #[test]
    fn the_ring_has_no_short_cuts() {
        let ring = ring(0);
        let next = |at: usize| {
            let bytes: [u8; 8] = ring[at..at + 8].try_into().unwrap();
            u64::from_le_bytes(bytes) as usize
        };
        let (mut at, mut length) = (next(0), 1);
        while at != 0 {
            at = next(at);
            length += 1;
        }
        assert_eq!(length, WORK_BYTES / 8);
    }
}
