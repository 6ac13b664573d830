//! Small real programs for the guest: system calls in a tight loop, with a
//! checksum of what they returned. Prints one line of JSON.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use ub_bench::content;
use ub_bench::micro::{Amount, READY, Reader, measure, null};

/// Makes system calls in a tight loop and prints how long that took.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Debug, Subcommand)]
enum Workload {
    /// getppid.
    Null(Common),
    /// pread of blocks of a file, in order.
    Pread {
        #[command(flatten)]
        common: Common,
        /// Bytes of one read, a multiple of 64.
        #[arg(long)]
        size: usize,
        /// The file.
        #[arg(long)]
        file: PathBuf,
        /// Seed of the file's content; what was read is compared with it.
        #[arg(long)]
        seed: Option<u64>,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Timed calls.
    #[arg(long, default_value_t = 200_000)]
    calls: u64,
    /// Untimed calls before them, at least.
    #[arg(long, default_value_t = 0)]
    warmup_calls: u64,
    /// Untimed time before them, at least, in milliseconds.
    #[arg(long, default_value_t = 0)]
    warmup_ms: u64,
    /// After the warm-up print "ready" and wait for a line on standard input,
    /// so that counters can be read in between.
    #[arg(long)]
    wait: bool,
}

impl Common {
    fn warm(&self) -> io::Result<()> {
        if self.wait {
            println!("{READY}");
            io::stdin().read_line(&mut String::new())?;
        }
        Ok(())
    }

    fn amount(&self) -> Amount {
        Amount {
            calls: self.calls,
            warmup_calls: self.warmup_calls,
            warmup: Duration::from_millis(self.warmup_ms),
        }
    }
}

fn main() -> Result<()> {
    let line = match Arguments::parse().workload {
        Workload::Null(common) => {
            let parent = std::os::unix::process::parent_id();
            measure(&common.amount(), || common.warm(), |calls| Ok(null(calls, parent)))?
        }
        Workload::Pread { common, size, file, seed } => {
            let name = file.display().to_string();
            let file = File::open(&file).with_context(|| format!("opening {name}"))?;
            let length = file.metadata()?.len();
            let mut reader = Reader::new(file, size).with_context(|| name.clone())?;
            let line = measure(&common.amount(), || common.warm(), |calls| reader.run(calls))
                .with_context(|| format!("reading {name}"))?;
            if let Some(seed) = seed {
                let content = content::bytes(seed, usize::try_from(length)?);
                let expected = Reader::expected(&content, size, common.calls);
                ensure!(
                    line.checksum == format!("{expected:016x}"),
                    "{name}: what was read is not what the file holds"
                );
            }
            line
        }
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}
