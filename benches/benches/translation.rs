//! How long translation and verification take: over all functions that the C
//! library and redis-server export, and in detail for a few.
//!
//! * `UB_BENCH_QUICK=1` prints only the table.
//! * `--once` translates and verifies every function once and measures
//!   nothing, so that an instruction count can be compared between versions:
//!   `valgrind --tool=callgrind PROGRAM --once`.

use std::env;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion};
use ub_bench::demo::find_program;
use ub_benches::latency::{
    Latency, PROMISED_NANOSECONDS, PROMISED_REGION, REGION, Table, Translator,
};
use ub_benches::library::{Function, Library, path_of};

const REPETITIONS: usize = 7;

/// Of criterion, which would take its time for so many: a minute or two in all.
const WARM_UP: Duration = Duration::from_millis(200);
const MEASUREMENT: Duration = Duration::from_millis(800);
const SAMPLES: usize = 40;

fn main() -> anyhow::Result<()> {
    let once = env::args().any(|argument| argument == "--once");
    let mut files = vec![("libc.so.6", Library::open(&path_of("libc.so")?)?)];
    match find_program("redis-server").map_err(Into::into).and_then(|path| Library::open(&path)) {
        Ok(redis) => files.push(("redis-server", redis)),
        Err(error) => eprintln!("left out: {error:#}"),
    }
    if !once {
        println!("{}", ub_benches::environment()?);
        if env::var_os("UB_BENCH_QUICK").is_none() {
            let (library, functions) = &files[0].1;
            with_criterion(library, functions);
        }
    }
    let repetitions = if once { 1 } else { REPETITIONS };
    let mut measured: Vec<Latency> = files
        .iter_mut()
        .map(|(name, (library, functions))| Latency::measure(name, library, functions, repetitions))
        .collect();
    measured.push(Latency::total(&measured));
    let all = &measured[measured.len() - 1];
    for failed in all.failed() {
        eprintln!("{failed}");
    }
    if once {
        return Ok(());
    }
    print!("{}", Table(&measured));
    let kept = |kept| if kept { "kept" } else { "short of the promise" };
    let median = all.median();
    println!(
        "median {median:.0} ns an instruction (promised: {PROMISED_NANOSECONDS:.0}): {}",
        kept(median <= PROMISED_NANOSECONDS)
    );
    if let Some((size, time)) = all.region() {
        println!(
            "a region of {size} instructions {:.0} us (promised for {REGION}: {} us): {}",
            time.as_secs_f64() * 1e6,
            PROMISED_REGION.as_micros(),
            kept(time <= PROMISED_REGION)
        );
    }
    Ok(())
}

fn with_criterion(library: &Library, functions: &[Function]) {
    let mut criterion = Criterion::default()
        .warm_up_time(WARM_UP)
        .measurement_time(MEASUREMENT)
        .sample_size(SAMPLES)
        .configure_from_args();
    let translator = Translator::default();
    for function in functions.iter().filter(|function| function.is_selected()) {
        let mut library = library.clone();
        let Ok(fragment) = translator.translate(&mut library, function) else {
            eprintln!("{}: nothing to run before its first exit; left out", function.name());
            continue;
        };
        let parts = fragment.parts();
        let size = format!(
            "{} ({} instructions, {} bytes out)",
            function.name(),
            parts.guest_instructions,
            parts.code.len()
        );
        criterion.bench_with_input(BenchmarkId::new("translate", &size), &(), |bencher, ()| {
            bencher.iter(|| translator.translate(&mut library, function));
        });
        criterion.bench_with_input(BenchmarkId::new("verify", &size), &(), |bencher, ()| {
            bencher.iter_batched(
                || fragment.clone(),
                |fragment| translator.verify(fragment),
                BatchSize::SmallInput,
            );
        });
    }
    criterion.final_summary();
}
