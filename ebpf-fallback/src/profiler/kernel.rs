//! The BPF program in the kernel: loading, attaching, its maps.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuHashMap, RingBuf};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::{ProgramError, RawTracePoint};
use aya::util::nr_cpus;
use aya::{EbpfLoader, include_bytes_aligned};

use super::layout::{Gap, GapKey, SiteKey, Thread, Totals};
use crate::unavailable::{Unavailable, kernel_types, missing};

/// Programs and the tracepoints that they are for.
type Programs<const N: usize> = [(&'static str, &'static str); N];
const OF_THREADS: Programs<3> = [
    ("thread_ends", "sched_process_exit"),
    ("program_starts", "sched_process_exec"),
    ("thread_starts", "sched_process_fork"),
];
/// What counts comes last and goes first: alone it would count the calls of a program that
/// goes on by the last of them.
const TIMING: Programs<2> = [("call_ends", "sys_exit"), ("call_begins", "sys_enter")];
const COUNTING: Programs<1> = [("call_counts", "sys_enter")];

/// What is seen of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    /// Nothing.
    Ignored,
    /// How many there are.
    Counted,
    /// Everything.
    Timed,
}

/// The loaded programs and their maps.
pub(super) struct Kernel {
    /// Dropping it detaches the programs; the maps stay.
    ebpf: Option<aya::Ebpf>,
    /// The programs for calls that are attached.
    of_calls: Vec<(&'static str, RawTracePointLinkId)>,
    pub(super) threads: HashMap<MapData, u32, Thread>,
    /// The address space of each process.
    pub(super) spaces: Rc<RefCell<HashMap<MapData, u32, u32>>>,
    pub(super) sites: HashMap<MapData, SiteKey, u32>,
    pub(super) gaps: PerCpuHashMap<MapData, GapKey, Gap>,
    pub(super) cpu_times: HashMap<MapData, u32, u64>,
    pub(super) totals: Array<MapData, Totals>,
    pub(super) events: RingBuf<MapData>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("loaded", &self.ebpf.is_some()).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the programs; nothing is watched until [`Self::attach`].
    /// `cgroup` is the number of a control group whose members join.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn load(cgroup: Option<u64>) -> Result<Self, Unavailable> {
        let btf = kernel_types()?;
        let cgroup = cgroup.unwrap_or(0);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("watched_cgroup", &cgroup, true)
            .map_max_entries("gaps", max_gaps())
            .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/profile.bpf.o")))
            .map_err(Unavailable::from_error)?;
        for (name, _) in OF_THREADS.iter().chain(&TIMING).chain(&COUNTING) {
            program(&mut ebpf, name)?.load().map_err(Unavailable::from_error)?;
        }
        fn map<T: TryFrom<aya::maps::Map, Error = MapError>>(
            ebpf: &mut aya::Ebpf,
            name: &'static str,
        ) -> Result<T, Unavailable> {
            let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
            T::try_from(map).map_err(Unavailable::from_error)
        }
        Ok(Self {
            threads: map(&mut ebpf, "threads")?,
            spaces: Rc::new(RefCell::new(map(&mut ebpf, "spaces")?)),
            sites: map(&mut ebpf, "sites")?,
            gaps: map(&mut ebpf, "gaps")?,
            cpu_times: map(&mut ebpf, "cpu_times")?,
            totals: map(&mut ebpf, "totals")?,
            events: map(&mut ebpf, "events")?,
            ebpf: Some(ebpf),
            of_calls: Vec::new(),
        })
    }

    /// Begins to watch, calls being timed.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn attach(&mut self) -> Result<(), Unavailable> {
        if let Some(ebpf) = &mut self.ebpf {
            for (name, tracepoint) in OF_THREADS {
                program(ebpf, name)?.attach(tracepoint).map_err(Unavailable::from_error)?;
            }
        }
        self.watch_calls(Calls::Timed)
    }

    /// Sees this of calls from now on.
    ///
    /// # Errors
    /// See [`Unavailable`]; then nothing is seen of them.
    pub(super) fn watch_calls(&mut self, calls: Calls) -> Result<(), Unavailable> {
        self.leave_calls();
        let Some(ebpf) = &mut self.ebpf else { return Ok(()) };
        let programs: &[_] = match calls {
            Calls::Ignored => &[],
            Calls::Counted => &COUNTING,
            Calls::Timed => &TIMING,
        };
        for &(name, tracepoint) in programs {
            let link = program(ebpf, name)?.attach(tracepoint).map_err(Unavailable::from_error)?;
            self.of_calls.push((name, link));
        }
        Ok(())
    }

    fn leave_calls(&mut self) {
        let Some(ebpf) = &mut self.ebpf else { return };
        while let Some((name, link)) = self.of_calls.pop() {
            if let Ok(program) = program(ebpf, name) {
                // Already gone is as good.
                let _ = program.detach(link);
            }
        }
    }

    /// Stops watching; what was counted stays.
    pub(super) fn detach(&mut self) {
        self.leave_calls();
        self.ebpf = None;
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals.get(&0, 0).unwrap_or_default()
    }
}

fn program<'a>(
    ebpf: &'a mut aya::Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, Unavailable> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    program.try_into().map_err(|error: ProgramError| Unavailable::from_error(error))
}

/// How many gaps are counted at most, given what one takes on all CPUs.
fn max_gaps() -> u32 {
    const MEMORY: usize = 64 << 20;
    const FEWEST: usize = 2048;
    const MOST: usize = 65_536;

    let cpus = nr_cpus().unwrap_or(1).max(1);
    (MEMORY / (size_of::<Gap>() * cpus)).clamp(FEWEST, MOST) as u32
}

/// CPU time that the thread `tid` has used, in nanoseconds.
pub(super) fn cpu_time(tid: u32) -> Option<u64> {
    let line = fs::read_to_string(Path::new("/proc").join(tid.to_string()).join("schedstat"));
    line.ok()?.split_whitespace().next()?.parse().ok()
}
