//! How redis-server's code comes to be cut into fragments: records what it
//! runs under load, by single-stepping it, and lets that pass by the real
//! supervisor again and again. Each link from fragment to fragment costs a
//! ride instructions; `kernel-patch/module/README.md` counts them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use ub_bench::demo::find_program;
use ub_benches::recording::Server;
use ub_benches::replay::{Pass, Replay};
use ub_runtime::supervisor::Supervisor;

const PORT: u16 = 17_777;
const CONNECTIONS: usize = 50;
const REQUEST: &[u8] = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:__rand_int__\r\n";
/// Instructions that are recorded: about fifty requests.
const STEPS: usize = 200_000;
/// How long they pass, and how often that is told.
const TIME: Duration = Duration::from_secs(12);
const TOLD: Duration = Duration::from_secs(1);
/// Between two passes, so that the supervisor's waiting is not all that happens.
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> Result<()> {
    println!("{}", ub_benches::environment()?);
    let server = Server::start(&find_program("redis-server")?, PORT, CONNECTIONS, REQUEST)?;
    let replay = Replay::new(server.record(STEPS)?);
    println!("{STEPS} instructions of redis-server, {} of them different", replay.distinct());
    println!(
        "seconds   ridden  links  look-ups  inside  native  fragments  translations  translated"
    );
    println!(
        "         % calls     per    system call, instructions                     instructions"
    );
    let pipeline = replay.pipeline();
    let mut supervisor = Supervisor::new(replay, pipeline);
    let start = Instant::now();
    let mut told = start;
    while start.elapsed() < TIME {
        let pass = supervisor.kernel().pass();
        supervisor.work()?;
        if told.elapsed() >= TOLD {
            told = Instant::now();
            tell(start.elapsed(), &pass, &supervisor);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn tell<P>(elapsed: Duration, pass: &Pass, supervisor: &Supervisor<Replay, P>)
where
    P: ub_runtime::supervisor::Pipeline,
{
    let per_call = |count: u64| count as f64 / pass.calls.max(1) as f64;
    let counters = supervisor.counters();
    println!(
        "{:7.1} {:8.1} {:6.1} {:9.1} {:7.0} {:7.0} {:10} {:13} {:11}",
        elapsed.as_secs_f64(),
        100.0 * per_call(pass.ridden),
        per_call(pass.links),
        per_call(pass.lookups),
        per_call(pass.inside),
        per_call(pass.native),
        supervisor.kernel().fragments(),
        counters.installed,
        counters.guest_instructions,
    );
}
