//! Sessions of userspace bypass: the client of `/dev/ub`, the supervisor that
//! translates for it, and the `ub` command on top.
//!
//! | module | what |
//! |---|---|
//! | [`abi`] | the interface to the kernel module, as data |
//! | [`kernel`] | the same as operations, for the real one and for tests |
//! | [`device`] | `/dev/ub` |
//! | [`supervisor`] | reports in, verified fragments out |
//! | `session`, `report` | the supervisor's loop and what it leaves behind |
//! | `packet_filter` | the same loop for packet filters, without the module |
//! | [`inspect`] | asking a running supervisor |
//! | `exercise`, `machine` | what rides cost on this machine, and whether they can pay |
//! | `runtime_folder` | where supervisors listen and what was measured is kept until the next boot |
//! | `launch`, [`exec`] | starting a supervisor, becoming the program |
//! | `host`, `doctor` | what kind of machine this is and whether it can ride |
//! | `config` | settings and where they come from |
//! | [`coverage`] | how much of a program the translator knows |
//! | [`commands`] | the subcommands |

pub mod abi;
mod cgroup;
pub mod commands;
mod config;
pub mod coverage;
pub mod device;
mod doctor;
pub mod exec;
mod exercise;
pub mod inspect;
pub mod kernel;
mod launch;
mod logging;
mod machine;
mod packet_filter;
mod report;
mod runtime_folder;
mod session;
pub mod supervisor;

use ub_report::host;
