//! An eBPF program that counts the packets of a raw socket in the kernel: what
//! somebody would write who wants to get rid of the system calls by hand.

use std::os::fd::AsFd;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use aya::programs::{ProgramError, SocketFilter};
use aya::{Ebpf, EbpfError, Pod, include_bytes_aligned};

/// What is done with the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Count them.
    Count,
    /// Look at the port and count those of one port.
    Filter,
}

/// What was counted.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// Of them, those of port 1000; 0 for [`Task::Count`].
    pub found: u64,
    /// Of them, those of even number; 0 for [`Task::Count`].
    pub even: u64,
}

// SAFETY: three integers without padding; any bytes are valid.
unsafe impl Pod for Counts {}

/// Why packets cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum PacketsError {
    /// The kernel does not take the program, or this user may not load it.
    #[error("loading the packet counter (needs root, or CAP_BPF and CAP_NET_ADMIN): {0}")]
    Load(#[from] EbpfError),
    /// The same, of one of the two programs.
    #[error("attaching the packet counter: {0}")]
    Attach(#[from] ProgramError),
    /// Its counters cannot be read.
    #[error("reading the packet counter: {0}")]
    Read(#[from] MapError),
    /// A part of the program that is built in is not in it.
    #[error("the packet counter has no \"{0}\": bug")]
    Missing(&'static str),
}

/// A program at a socket; it goes when the socket is closed.
pub struct PacketCounter {
    counters: PerCpuArray<MapData, Counts>,
}

impl std::fmt::Debug for PacketCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketCounter").finish_non_exhaustive()
    }
}

impl PacketCounter {
    /// Attaches a program for `task` to a raw socket, which receives nothing
    /// from then on.
    ///
    /// # Errors
    /// See [`PacketsError`].
    pub fn attach(socket: impl AsFd, task: Task) -> Result<Self, PacketsError> {
        let name = match task {
            Task::Count => "count",
            Task::Filter => "filter",
        };
        let code = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/packets.bpf.o"));
        let mut ebpf = Ebpf::load(code)?;
        let program = ebpf.program_mut(name).ok_or(PacketsError::Missing(name))?;
        let program: &mut SocketFilter = program.try_into()?;
        program.load()?;
        program.attach(socket)?;
        let map: Map = ebpf.take_map("counters").ok_or(PacketsError::Missing("counters"))?;
        Ok(Self { counters: PerCpuArray::try_from(map)? })
    }

    /// What was counted since it was attached.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn counts(&self) -> Result<Counts, PacketsError> {
        let mut sum = Counts::default();
        for own in self.counters.get(&0, 0)?.iter() {
            sum.packets += own.packets;
            sum.found += own.found;
            sum.even += own.even;
        }
        Ok(sum)
    }
}
