//! Translated against native code on this CPU: criterion's figures for each
//! kernel, then a table of both in turn.
//!
//! * `UB_BENCH_QUICK=1` prints only the table, in some ten seconds; an
//!   argument selects kernels whose name contains it.
//! * `--dump NAME` prints guest and emitted code of the kernels that match.

use std::env;
use std::time::Duration;

use criterion::Criterion;
use ub_benches::kernels::{self, Kernel, Prepared};
use ub_benches::table::{Row, Table};
use ub_benches::{listing, measure};

/// ABBA rounds a kernel.
const ROUNDS: usize = 101;
const QUICK_ROUNDS: usize = 41;

/// Of criterion, which would take its time for so many: a minute or two in all.
const WARM_UP: Duration = Duration::from_millis(200);
const MEASUREMENT: Duration = Duration::from_millis(800);
const SAMPLES: usize = 40;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with("--"));
    let selected: Vec<&Kernel> = kernels::all()
        .filter(|kernel| filter.is_none_or(|filter| kernel.name.contains(filter.as_str())))
        .collect();
    if arguments.iter().any(|argument| argument == "--dump") {
        for kernel in selected {
            println!("{}\n{}", kernel.name, listing::listing(Prepared::new(kernel)?.fragments())?);
        }
        return Ok(());
    }
    let quick = env::var_os("UB_BENCH_QUICK").is_some();
    println!("{}", ub_benches::environment()?);
    if !quick {
        with_criterion(&selected);
    }
    let mut table = Table::default();
    for kernel in selected {
        match Prepared::new(kernel) {
            Ok(mut prepared) => {
                let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
                let cost = measure::measure(&mut prepared, rounds)?;
                table.rows.push(Row::new(kernel.name, cost, prepared.fragments()));
            }
            Err(error) => table.left_out.push(format!("{error:#}")),
        }
    }
    print!("{table}");
    let nothing = measure::measure(&mut Prepared::new(&kernels::NOTHING)?, QUICK_ROUNDS)?;
    println!(
        "each translated call includes about {:.0} ns for entering and leaving ring 3's runner",
        nothing.translated - nothing.native
    );
    Ok(())
}

fn with_criterion(kernels: &[&Kernel]) {
    let mut criterion = Criterion::default()
        .warm_up_time(WARM_UP)
        .measurement_time(MEASUREMENT)
        .sample_size(SAMPLES)
        .configure_from_args();
    for kernel in kernels {
        let Ok(mut prepared) = Prepared::new(kernel) else {
            // The table's loop says why.
            continue;
        };
        let mut group = criterion.benchmark_group(kernel.name);
        group.bench_function("native", |bencher| bencher.iter(|| prepared.native()));
        group.bench_function("translated", |bencher| {
            bencher.iter(|| prepared.translated().expect("it returned before"));
        });
        group.finish();
    }
    criterion.final_summary();
}
