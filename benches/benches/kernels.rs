//! Translated against native code on this CPU.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ub_benches::kernels::{KERNELS, Prepared, WORK_BYTES};

fn kernels(criterion: &mut Criterion) {
    println!("{}", ub_benches::environment().expect("facts about this machine"));
    for kernel in &KERNELS {
        let mut prepared = Prepared::new(kernel).expect("a kernel that runs both ways");
        let mut group = criterion.benchmark_group(kernel.name);
        group.throughput(Throughput::Bytes(WORK_BYTES as u64));
        group.bench_function("native", |bencher| bencher.iter(|| prepared.native()));
        group.bench_function("translated", |bencher| {
            bencher.iter(|| prepared.translated().expect("a return"));
        });
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
