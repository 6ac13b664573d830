//! Cost of the cheapest system call on this CPU under this kernel: what a
//! ride can save at most for each call.

use criterion::{Criterion, criterion_group, criterion_main};

fn syscall(criterion: &mut Criterion) {
    println!("{}", ub_benches::environment().expect("facts about this machine"));
    criterion.bench_function("getppid", |bencher| {
        // SAFETY: getppid has no arguments and no effects on memory.
        bencher.iter(|| unsafe { libc::syscall(libc::SYS_getppid) });
    });
}

criterion_group!(benches, syscall);
criterion_main!(benches);
