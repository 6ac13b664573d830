//! The BPF program in the kernel: loading, attaching, its maps.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuHashMap, RingBuf};
use aya::programs::{ProgramError, RawTracePoint};
use aya::util::nr_cpus;
use aya::{EbpfLoader, include_bytes_aligned};

use super::layout::{Gap, GapKey, SiteKey, Thread, Totals};
use crate::unavailable::{Unavailable, kernel_types, missing};

/// Programs and the tracepoints that they are for.
const PROGRAMS: [(&str, &str); 5] = [
    ("thread_ends", "sched_process_exit"),
    ("program_starts", "sched_process_exec"),
    ("thread_starts", "sched_process_fork"),
    ("call_ends", "sys_exit"),
    ("call_begins", "sys_enter"),
];

/// The loaded programs and their maps.
pub(super) struct Kernel {
    /// Dropping it detaches the programs; the maps stay.
    ebpf: Option<aya::Ebpf>,
    pub(super) threads: HashMap<MapData, u32, Thread>,
    /// The address space of each process.
    pub(super) spaces: Rc<RefCell<HashMap<MapData, u32, u32>>>,
    pub(super) sites: HashMap<MapData, SiteKey, u32>,
    pub(super) gaps: PerCpuHashMap<MapData, GapKey, Gap>,
    pub(super) cpu_times: HashMap<MapData, u32, u64>,
    pub(super) totals: Array<MapData, Totals>,
    /// 1 while calls are only counted.
    only_count: Array<MapData, u32>,
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
        for (name, _) in PROGRAMS {
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
            only_count: map(&mut ebpf, "only_count")?,
            events: map(&mut ebpf, "events")?,
            ebpf: Some(ebpf),
        })
    }

    /// Begins to watch.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn attach(&mut self) -> Result<(), Unavailable> {
        let Some(ebpf) = &mut self.ebpf else {
            return Ok(());
        };
        for (name, tracepoint) in PROGRAMS {
            program(ebpf, name)?.attach(tracepoint).map_err(Unavailable::from_error)?;
        }
        Ok(())
    }

    /// Only counts calls from now on, or times them again. The programs stay where they are:
    /// a tracepoint that comes or goes has every CPU of the machine interrupted.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub(super) fn only_count(&mut self, only: bool) -> Result<(), Unavailable> {
        Ok(self.only_count.set(0, u32::from(only), 0)?)
    }

    /// Stops watching; what was counted stays.
    pub(super) fn detach(&mut self) {
        let Some(mut ebpf) = self.ebpf.take() else { return };
        // What counts goes before what tells it where a gap begins: alone it
        // would count the calls of a program that goes on by the last of them.
        if let Ok(counting) = program(&mut ebpf, "call_begins") {
            // Already gone is as good.
            let _ = counting.unload();
        }
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
