//! What others have published about the same idea, for orientation: measured
//! on their hardware, with their programs.

/// One published figure: gains over native in per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// Front of the names of the workloads that are alike.
    pub family: &'static str,
    /// Page-table isolation.
    pub kpti: bool,
    /// Bytes of a read or a value, and the gain in per cent.
    pub gains: &'static [(u32, f64)],
    /// What was measured.
    pub what: &'static str,
}

/// Where the figures come from.
pub const SOURCE: &str = "Zhou et al., Userspace Bypass, OSDI 2023";

/// Figures of [`SOURCE`], in virtual machines on KVM.
pub const FIGURES: [Published; 3] = [
    Published {
        family: "pread",
        kpti: true,
        gains: &[(64, 88.3), (4096, 30.3)],
        what: "read() from memory",
    },
    Published {
        family: "pread",
        kpti: false,
        gains: &[(64, 41.6), (4096, 14.3)],
        what: "read() from memory",
    },
    // A range over 1 byte to 4 KiB; which end belongs to which size is not
    // said in the summary, so it is drawn as two levels.
    Published {
        family: "redis-get",
        kpti: true,
        gains: &[(1, 4.4), (1, 10.8), (4096, 4.4), (4096, 10.8)],
        what: "Redis GET, lowest and highest of 1 B to 4 KiB",
    },
];
