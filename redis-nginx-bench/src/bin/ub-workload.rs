//! Small real programs for the guest: system calls in a tight loop, with a
//! checksum of what they returned. Prints one line of JSON.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use ub_bench::interpose::{Interposer, Stub};
use ub_bench::micro::{Amount, Line, Reader, Ring, bare, measure, null, serve};
use ub_bench::workload::{Access, Receiver, Sum, Task};
use ub_bench::{content, memcache, packets};

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
    /// getppid, with as little around it as possible.
    Bare(Common),
    /// getppid, with something that gets hold of each call first.
    Interposed {
        #[command(flatten)]
        common: Common,
        /// What: rewrite, dispatch or seccomp.
        #[arg(long)]
        by: Interposer,
    },
    /// pread of blocks of a file, in order.
    Pread {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        reads: Reads,
        /// Seed of the file's content; what was read is compared with it.
        #[arg(long, conflicts_with = "serve")]
        seed: Option<u64>,
    },
    /// The same reads through io_uring.
    Uring {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        reads: Reads,
        /// Reads submitted with one call.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        depth: u32,
    },
    /// Receive packets of a raw socket.
    Packets {
        #[command(flatten)]
        common: Common,
        /// The interface.
        #[arg(long)]
        interface: String,
        /// What is done with them: count or filter.
        #[arg(long)]
        task: Task,
        /// What does it: socket (this program) or bpf (an eBPF program).
        #[arg(long, default_value = "socket")]
        by: Receiver,
    },
    /// Send packets for `packets` without end.
    Send {
        /// The interface at the other end.
        #[arg(long)]
        interface: String,
    },
    /// Put a load on a memcached server.
    Memcached {
        /// Where it listens.
        #[arg(long)]
        address: SocketAddr,
        /// get or set.
        #[arg(long)]
        access: Access,
        /// Bytes of a value.
        #[arg(long)]
        bytes: u32,
        /// Connections.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        clients: u32,
        /// Number of keys.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        keys: u64,
        /// Number of requests.
        #[arg(long)]
        requests: u64,
    },
}

#[derive(Debug, Args)]
struct Reads {
    /// Bytes of one read, a multiple of 64.
    #[arg(long)]
    size: usize,
    /// The file.
    #[arg(long)]
    file: PathBuf,
    /// What is added up: none, lines (a word of each cache line) or all.
    #[arg(long, default_value = "lines")]
    sum: Sum,
}

impl Reads {
    fn open(&self) -> Result<File> {
        File::open(&self.file).with_context(|| format!("opening {}", self.file.display()))
    }
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
    /// Print "ready", then do and time as many calls as each line of
    /// standard input says.
    #[arg(long, conflicts_with_all = ["calls", "warmup_calls", "warmup_ms"])]
    serve: bool,
    /// Be slow on purpose: sleep that long, in microseconds, for every 64
    /// calls that are served.
    #[arg(long, requires = "serve", hide = true)]
    sleep_us: Option<u64>,
}

impl Common {
    /// Serves or measures; `None` when everything was served.
    fn go(&self, run: impl FnMut(u64) -> io::Result<u64>) -> io::Result<Option<Line>> {
        if self.serve {
            let sleep = self.sleep_us.map(Duration::from_micros);
            return serve(io::stdin().lock(), io::stdout().lock(), sleep, run).map(|()| None);
        }
        measure(&self.amount(), run).map(Some)
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
            common.go(|calls| Ok(null(calls, parent)))?
        }
        Workload::Bare(common) => {
            let parent = std::os::unix::process::parent_id();
            common.go(|calls| Ok(bare(calls, parent)))?
        }
        Workload::Interposed { common, by } => {
            let stub = Stub::new(by).with_context(|| format!("interposing by {by}"))?;
            let parent = std::os::unix::process::parent_id();
            common.go(|calls| stub.run(calls, parent)).context("making interposed calls")?
        }
        Workload::Pread { common, reads, seed } => {
            let name = reads.file.display().to_string();
            let file = reads.open()?;
            let length = file.metadata()?.len();
            let mut reader =
                Reader::new(file, reads.size, reads.sum).with_context(|| name.clone())?;
            let line =
                common.go(|calls| reader.run(calls)).with_context(|| format!("reading {name}"))?;
            if let (Some(seed), Some(line)) = (seed, &line) {
                let content = content::bytes(seed, usize::try_from(length)?);
                let expected = Reader::expected(&content, reads.size, reads.sum, common.calls);
                ensure!(
                    line.checksum == format!("{expected:016x}"),
                    "{name}: what was read is not what the file holds"
                );
            }
            line
        }
        Workload::Uring { common, reads, depth } => {
            let mut ring = Ring::new(reads.open()?, reads.size, reads.sum, depth)
                .context("setting up io_uring")?;
            common.go(|calls| ring.run(calls)).context("reading through io_uring")?
        }
        Workload::Packets { common, interface, task, by } => {
            let socket = packets::Socket::open(&interface).context("opening a packet socket")?;
            match by {
                Receiver::Socket => common.go(|calls| socket.receive(task, calls)),
                Receiver::Bpf => {
                    let socket = packets::BpfSocket::new(socket, task)
                        .context("attaching an eBPF program to a packet socket")?;
                    common.go(|calls| socket.receive(calls))
                }
            }
            .context("receiving packets")?
        }
        Workload::Send { interface } => {
            let socket = packets::Socket::open(&interface).context("opening a packet socket")?;
            socket.send_forever().context("sending packets")?;
            None
        }
        Workload::Memcached { address, access, bytes, clients, keys, requests } => {
            let load = memcache::Load { address, access, bytes, clients, keys, requests };
            println!("{}", serde_json::to_string(&load.run()?)?);
            None
        }
    };
    if let Some(line) = line {
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}
