//! Native against userspace bypass: the workloads, the driver that runs them
//! inside a guest, and the demo that boots the guests and prints the table.
//!
//! | module | side | concern |
//! |---|---|---|
//! | [`plan`] | both | what to run, as JSON |
//! | [`workload`] | both | the things to measure, their names and parameters |
//! | [`outcome`] | both | what came out, as JSON |
//! | [`events`] | both | what is measured in rounds, as lines of JSON |
//! | [`cost`] | both | what a request costs in instructions, as JSON |
//! | [`prediction`] | both | what `ub predict` said and what came, as JSON |
//! | [`content`] | guest | deterministic data and digests |
//! | [`micro`] | guest | loops of system calls: null, bare, pread, io_uring |
//! | [`interpose`] | guest | other ways of getting hold of a call |
//! | [`resp`], `http` | guest | small clients that check what servers say |
//! | [`memcache`] | guest | load generator for memcached |
//! | [`packets`] | guest | receiver and sender of raw packets |
//! | [`output`] | guest | reads what redis-benchmark, wrk and `ub run` print |
//! | [`guest`] | guest | starts servers, loads and sessions; measures |
//! | `bootstrap` | host | confidence intervals |
//! | [`harness`] | host | `ub bench`: runs, records, comparisons, reports |
//! | `stats` | both | medians, shares |
//! | [`report`], `table` | host | `report.json` and the table |
//! | [`demo`] | host | boots the guests; the command line |

mod bootstrap;
pub mod content;
pub mod cost;
pub mod demo;
mod error;
pub mod events;
pub mod guest;
pub mod harness;
mod http;
pub mod interpose;
pub mod memcache;
pub mod micro;
pub mod outcome;
pub mod output;
pub mod packets;
pub mod plan;
pub mod prediction;
pub mod report;
pub mod resp;
mod stats;
mod table;
pub mod workload;

pub use demo::cli;
pub use error::{Error, Result};
