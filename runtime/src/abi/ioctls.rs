//! The requests to the device.

use super::{
    GapsQuery, IOC_MAGIC, Info, Install, Process, ReadCode, Retire, SessionConfig, Stats, Verdict,
};

/// `UB_IOC_INFO`: fills an [`Info`].
pub const IOC_INFO: u64 = nix::request_code_read!(IOC_MAGIC, 1, size_of::<Info>());
/// `UB_IOC_SESSION_CREATE`: takes and completes a [`SessionConfig`].
pub const IOC_SESSION_CREATE: u64 =
    nix::request_code_readwrite!(IOC_MAGIC, 2, size_of::<SessionConfig>());
/// `UB_IOC_ENROLL`: enrols the caller.
pub const IOC_ENROLL: u64 = nix::request_code_none!(IOC_MAGIC, 3);
/// `UB_IOC_READ_CODE`: takes and fills a [`ReadCode`].
pub const IOC_READ_CODE: u64 = nix::request_code_readwrite!(IOC_MAGIC, 4, size_of::<ReadCode>());
/// `UB_IOC_INSTALL`: takes an [`Install`].
pub const IOC_INSTALL: u64 = nix::request_code_write!(IOC_MAGIC, 5, size_of::<Install>());
/// `UB_IOC_RETIRE`: takes a [`Retire`].
pub const IOC_RETIRE: u64 = nix::request_code_write!(IOC_MAGIC, 6, size_of::<Retire>());
/// `UB_IOC_STATS`: fills a [`Stats`].
pub const IOC_STATS: u64 = nix::request_code_read!(IOC_MAGIC, 7, size_of::<Stats>());
/// `UB_IOC_GAPS`: takes and fills a [`GapsQuery`].
pub const IOC_GAPS: u64 = nix::request_code_readwrite!(IOC_MAGIC, 8, size_of::<GapsQuery>());
/// `UB_IOC_VERDICT`: takes a [`Verdict`].
pub const IOC_VERDICT: u64 = nix::request_code_write!(IOC_MAGIC, 9, size_of::<Verdict>());
/// `UB_IOC_ATTACH`: takes and fills a [`Process`].
pub const IOC_ATTACH: u64 = nix::request_code_readwrite!(IOC_MAGIC, 10, size_of::<Process>());
/// `UB_IOC_DETACH`: takes and fills a [`Process`].
pub const IOC_DETACH: u64 = nix::request_code_readwrite!(IOC_MAGIC, 11, size_of::<Process>());

/// The raw calls. [`crate::device`] makes them safe.
pub(crate) mod raw {
    use super::super::{
        GapsQuery, Info, Install, Process, ReadCode, Retire, SessionConfig, Stats, Verdict,
    };

    nix::ioctl_read_bad!(info, super::IOC_INFO, Info);
    nix::ioctl_readwrite_bad!(session_create, super::IOC_SESSION_CREATE, SessionConfig);
    nix::ioctl_none_bad!(enroll, super::IOC_ENROLL);
    nix::ioctl_readwrite_bad!(read_code, super::IOC_READ_CODE, ReadCode);
    nix::ioctl_write_ptr_bad!(install, super::IOC_INSTALL, Install);
    nix::ioctl_write_ptr_bad!(retire, super::IOC_RETIRE, Retire);
    nix::ioctl_read_bad!(stats, super::IOC_STATS, Stats);
    nix::ioctl_readwrite_bad!(gaps, super::IOC_GAPS, GapsQuery);
    nix::ioctl_write_ptr_bad!(verdict, super::IOC_VERDICT, Verdict);
    nix::ioctl_readwrite_bad!(attach, super::IOC_ATTACH, Process);
    nix::ioctl_readwrite_bad!(detach, super::IOC_DETACH, Process);
}
