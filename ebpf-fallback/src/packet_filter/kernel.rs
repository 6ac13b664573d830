//! The BPF programs of packet filters in the kernel, and their maps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::maps::{Array, Map, MapData, ProgramArray, RingBuf};
use aya::programs::{ProgramError, RawTracePoint, SocketFilter};
use aya::{EbpfLoader, include_bytes_aligned};

use super::bpf;
use super::flags::ARITHMETIC;
use super::layout::{
    Event, Gate, HARMLESS_WORDS, MAX_PIECES, MODE_FILTER, MODE_OBSERVE, MODE_OFF, PIECE_BYTES,
    PieceData, Protection, REGISTERS, WITHOUT_PROTECTION, Watch,
};
use super::program;
use super::region::Region;
use super::state::{FLAGS, Piece, Snapshot};
use crate::unavailable::{Unavailable, kernel_types, missing};

/// Programs at tracepoints.
const PROGRAMS: [(&str, &str); 2] = [("call_ends", "sys_exit"), ("call_begins", "sys_enter")];

/// Where `struct pt_regs` has the general registers, by their numbers.
const PLACES: [usize; 16] = [10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0];
const PLACE_IP: usize = 16;
const PLACE_FLAGS: usize = 18;

/// Calls that change nothing which is not compared when the gate is armed.
/// After any other, everything is looked at again.
const HARMLESS: [libc::c_long; 44] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_lseek,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_access,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Why a region cannot be made a filter, although it is one.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Too much memory would have to be compared.
    #[error("it depends on too much memory")]
    TooMuchMemory,
    /// The program would be too large.
    #[error(transparent)]
    TooLarge(#[from] program::TooLarge),
    /// The kernel does not take it.
    #[error("the kernel does not take the filter: {0}")]
    Refused(io::Error),
    /// A map cannot be written.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The loaded programs and their maps, for one socket of one process.
pub(super) struct Kernel {
    ebpf: aya::Ebpf,
    gates: Array<MapData, Gate>,
    watches: Array<MapData, Watch>,
    decisions: ProgramArray<MapData>,
    decisions_fd: OwnedFd,
    gates_fd: OwnedFd,
    events: RingBuf<MapData>,
    watch: Watch,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("process", &self.watch.process).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the programs; nothing is watched yet. Tests take a protection out.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn load(without: Option<Protection>) -> Result<Self, Unavailable> {
        let btf = kernel_types()?;
        let without = without.map_or(0, |protection| protection as u32);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global(WITHOUT_PROTECTION, &without, true)
            .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.bpf.o")))?;
        for (name, _) in PROGRAMS {
            tracepoint(&mut ebpf, name)?.load().map_err(Unavailable::from_error)?;
        }
        gate(&mut ebpf)?.load().map_err(Unavailable::from_error)?;
        let map = |ebpf: &mut aya::Ebpf, name| ebpf.take_map(name).ok_or_else(|| missing(name));
        let (gates, decisions) = (map(&mut ebpf, "gates")?, map(&mut ebpf, "decisions")?);
        let (gates_fd, decisions_fd) = (descriptor(&gates)?, descriptor(&decisions)?);
        Ok(Self {
            watches: map(&mut ebpf, "watches")?.try_into()?,
            events: map(&mut ebpf, "events")?.try_into()?,
            gates: gates.try_into()?,
            decisions: decisions.try_into()?,
            decisions_fd,
            gates_fd,
            watch: Watch {
                process: 0,
                supervisor: std::process::id(),
                mode: MODE_OFF,
                call: 0,
                fd: 0,
                program: 0,
                is_udp: 0,
                pieces: 0,
                sk: 0,
                flags_mask: ARITHMETIC,
                registers_mask: 0,
                registers: [0; REGISTERS],
                harmless: harmless(),
                piece: [PieceData { address: 0, length: 0, bytes: [0; PIECE_BYTES] }; MAX_PIECES],
            },
            ebpf,
        })
    }

    /// Begins to watch for receive call number `call` of `process` on its
    /// descriptor `fd`.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn attach(&mut self, process: u32, call: u32, fd: u32) -> Result<(), Unavailable> {
        self.watch.process = process;
        self.watch.call = call;
        self.watch.fd = fd;
        self.observe()?;
        for (name, place) in PROGRAMS {
            let program = tracepoint(&mut self.ebpf, name)?;
            program.attach(place).map_err(Unavailable::from_error)?;
        }
        Ok(())
    }

    /// Asks for the state of the thread in its next receive call.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn observe(&mut self) -> Result<(), Unavailable> {
        self.set_mode(MODE_OBSERVE)
    }

    fn set_mode(&mut self, mode: u32) -> Result<(), Unavailable> {
        self.watch.mode = mode;
        Ok(self.watches.set(0, self.watch, 0)?)
    }

    /// The socket filter to attach.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn gate(&mut self) -> Result<RawFd, Unavailable> {
        let program = gate(&mut self.ebpf)?;
        let fd = program.fd().map_err(Unavailable::from_error)?;
        Ok(fd.as_fd().as_raw_fd())
    }

    /// Lets the gate drop what `region` drops, whenever its process is as the
    /// region expects. The gate is on the kernel's socket `sk`, whose filters
    /// see so much of a `header` that the process does not receive.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub(super) fn install(
        &mut self,
        region: &Region,
        sk: u64,
        header: u16,
    ) -> Result<(), InstallError> {
        let program = program::compile(region, header, Some(self.gates_fd.as_fd()))?;
        let program = bpf::load(&program).map_err(InstallError::Refused)?;
        let pieces = pieces(&region.memory).ok_or(InstallError::TooMuchMemory)?;
        let gate = gate(&mut self.ebpf)?.info().map_err(Unavailable::from_error)?.id();
        bpf::set_program(self.decisions_fd.as_fd(), program.as_fd())
            .map_err(InstallError::Refused)?;
        let watch = &mut self.watch;
        watch.sk = sk;
        watch.program = gate;
        watch.is_udp = u32::from(header != 0);
        (watch.registers, watch.registers_mask) = expected(&region.snapshot, region.registers);
        watch.pieces = pieces.len() as u32;
        watch.piece[..pieces.len()].copy_from_slice(&pieces);
        // The kernel may look while this is being written: the mode comes last.
        self.set_mode(MODE_OFF)?;
        Ok(self.set_mode(MODE_FILTER)?)
    }

    /// Lets all packets through.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn uninstall(&mut self) -> Result<(), Unavailable> {
        self.set_mode(MODE_OFF)?;
        // It may never have been set.
        let _ = self.decisions.clear_index(&0);
        Ok(())
    }

    /// What the gate has counted.
    pub(super) fn counted(&self) -> Gate {
        self.gates.get(&0, 0).unwrap_or_default()
    }

    /// Readable when [`Self::event`] has one.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    pub(super) fn event(&mut self) -> Option<Event> {
        super::layout::read(&self.events.next()?)
    }
}

fn tracepoint<'a>(
    ebpf: &'a mut aya::Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, Unavailable> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    program.try_into().map_err(|error: ProgramError| Unavailable::from_error(error))
}

fn gate(ebpf: &mut aya::Ebpf) -> Result<&mut SocketFilter, Unavailable> {
    let program = ebpf.program_mut("gate").ok_or_else(|| missing("gate"))?;
    program.try_into().map_err(|error: ProgramError| Unavailable::from_error(error))
}

/// A descriptor of the map for requests that aya does not make.
fn descriptor(map: &Map) -> Result<OwnedFd, Unavailable> {
    let (Map::Array(data) | Map::ProgramArray(data)) = map else {
        return Err(missing("array"));
    };
    data.fd().as_fd().try_clone_to_owned().map_err(Unavailable::from_error)
}

fn harmless() -> [u64; HARMLESS_WORDS] {
    let mut words = [0; HARMLESS_WORDS];
    for call in HARMLESS {
        words[call as usize / 64] |= 1 << (call % 64);
    }
    words
}

/// What `registers` of a region must be, in the order of `struct pt_regs`,
/// and which of these matter.
fn expected(snapshot: &Snapshot, registers: u32) -> ([u64; REGISTERS], u64) {
    let mut values = [0; REGISTERS];
    let mut mask = 1 << PLACE_IP;
    values[PLACE_IP] = snapshot.resume;
    values[PLACE_FLAGS] = snapshot.flags;
    for (number, place) in PLACES.into_iter().enumerate() {
        values[place] = snapshot.registers[number];
        if registers & 1 << number != 0 {
            mask |= 1 << place;
        }
    }
    if registers & 1 << FLAGS != 0 {
        mask |= 1 << PLACE_FLAGS;
    }
    // The call has set those that it always sets; its arguments always matter.
    for number in [super::state::RAX, super::state::RCX] {
        mask &= !(1 << PLACES[number]);
    }
    for number in snapshot.argument_registers() {
        mask |= 1 << PLACES[*number];
    }
    mask |= 1 << PLACES[super::state::RSP];
    (values, mask)
}

/// The state of a thread as the kernel tells it.
pub(super) fn snapshot(registers: &[u64; REGISTERS]) -> Snapshot {
    /// `orig_ax`, where rax is kept during a call.
    const PLACE_CALL: usize = 15;

    let mut snapshot = Snapshot {
        registers: PLACES.map(|place| registers[place]),
        resume: registers[PLACE_IP],
        flags: registers[PLACE_FLAGS],
    };
    snapshot.registers[super::state::RAX] = registers[PLACE_CALL];
    snapshot
}

/// Memory in portions that the kernel compares.
fn pieces(memory: &[Piece]) -> Option<Vec<PieceData>> {
    let mut pieces = Vec::new();
    for piece in memory {
        for (index, part) in piece.bytes.chunks(PIECE_BYTES).enumerate() {
            let mut bytes = [0; PIECE_BYTES];
            bytes[..part.len()].copy_from_slice(part);
            let address = piece.address + (index * PIECE_BYTES) as u64;
            pieces.push(PieceData { address, length: part.len() as u64, bytes });
        }
    }
    (pieces.len() <= MAX_PIECES).then_some(pieces)
}
