//! Sessions of userspace bypass: the client of `/dev/ub`, the supervisor that
//! translates for it, and the `ub` command on top.
//!
//! | module | what |
//! |---|---|
//! | [`abi`] | the interface to the kernel module, as data |
//! | [`kernel`] | the same as operations, for the real one and for tests |
//! | [`device`] | `/dev/ub` |
//! | [`supervisor`] | reports in, verified fragments out |
//! | [`session`], [`report`] | the supervisor's loop and what it leaves behind |
//! | [`packet_filter`] | the same loop for packet filters, without the module |
//! | [`inspect`] | asking a running supervisor |
//! | [`launch`], [`exec`] | starting a supervisor, becoming the program |
//! | [`host`], [`doctor`] | what kind of machine this is and whether it can ride |
//! | [`config`] | settings and where they come from |
//! | [`coverage`] | how much of a program the translator knows |
//! | [`commands`] | the subcommands |

pub mod abi;
mod cgroup;
pub mod commands;
pub mod config;
pub mod coverage;
pub mod device;
pub mod doctor;
pub mod exec;
pub mod inspect;
pub mod kernel;
pub mod launch;
pub mod logging;
pub mod packet_filter;
pub mod report;
pub mod session;
pub mod supervisor;

pub use ub_report::host;
