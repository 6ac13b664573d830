//! How long translating and verifying a function of the C library takes.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ub_benches::library::Library;
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, translate};

fn translation(criterion: &mut Criterion) {
    let (library, functions) = Library::libc().expect("a C library to translate");
    let options = Options::new(CpuFeatures::host());
    let policy = Policy::new(Features::host());
    for function in functions {
        let name = function.name;
        let mut source = library.clone();
        let Ok(fragment) = translate(function.address, &mut source, &options) else {
            eprintln!("{name}: nothing to run before its first exit; left out");
            continue;
        };
        let parts = fragment.parts();
        let size = format!(
            "{name} ({} instructions, {} bytes out)",
            parts.guest_instructions,
            parts.code.len()
        );
        criterion.bench_with_input(BenchmarkId::new("translate", &size), &(), |bencher, ()| {
            bencher.iter(|| translate(function.address, &mut source, &options));
        });
        if let Err(error) = verify(fragment.clone(), &policy) {
            eprintln!("{name}: refused by the verifier, not timed: {error}");
            continue;
        }
        criterion.bench_with_input(BenchmarkId::new("verify", &size), &(), |bencher, ()| {
            bencher.iter_batched(
                || fragment.clone(),
                |fragment| verify(fragment, &policy),
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, translation);
criterion_main!(benches);
