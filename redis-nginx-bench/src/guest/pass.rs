//! One pass over the workloads of a plan, in rounds: what the demo shows.

use super::{machine, prepare, rounds};
use crate::Result;
use crate::events::{Event, Work};
use crate::outcome::{Cell, Outcome};
use crate::plan::{Mode, Plan};

/// Runs `plan`.
///
/// # Errors
/// The first thing that kept a measurement from being made. Wrong results
/// are not errors but [`Cell::faults`].
pub fn run(plan: &Plan) -> Result<Outcome> {
    let launcher = prepare(plan)?;
    let mut outcome = Outcome { machine: machine()?, cells: Vec::new() };
    for workload in &plan.workloads {
        let work = Work { workload: *workload, launch: 0, rounds: plan.rounds };
        let mut cells: Vec<Cell> =
            work.modes(plan).into_iter().map(|mode| Cell::new(*workload, mode)).collect();
        rounds::measure(&launcher, &work, true, &mut |event| {
            take(&mut cells, event);
            Ok(())
        })?;
        outcome.cells.append(&mut cells);
    }
    Ok(outcome)
}

/// Puts what a measurement says into the cells of its workload.
fn take(cells: &mut [Cell], event: Event) {
    let mut with = |mode: Mode, change: &mut dyn FnMut(&mut Cell)| {
        cells.iter_mut().filter(|cell| cell.mode == mode).for_each(change);
    };
    match event {
        Event::Warm { settled, .. } => with(Mode::Ub, &mut |cell| cell.settled = settled),
        Event::Round { samples, .. } => {
            for (mode, sample) in samples {
                with(mode, &mut |cell| cell.rounds.push(sample.clone()));
            }
        }
        Event::Finished { ends, .. } => {
            for (mode, end) in ends {
                with(mode, &mut |cell| {
                    cell.counts.clone_from(&end.counts);
                    cell.session.clone_from(&end.report);
                    cell.digest.clone_from(&end.digest);
                    cell.faults.clone_from(&end.faults);
                });
            }
        }
        Event::Counted { counts, .. } => {
            with(Mode::Native, &mut |cell| cell.counts = Some(counts.clone()));
        }
        // Of the machine, which is asked here, and of a plan that goes on
        // behind a failure, which this one does not.
        Event::Machine { .. } | Event::Unloaded { .. } | Event::Failed { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cost::Settled;
    use crate::events::{End, Sample};
    use crate::outcome::{Counts, Round};
    use crate::plan::Workload;

    #[test]
    fn each_mode_has_its_own_of_everything() {
        let work = Work { workload: Workload::REDIS_GET, launch: 0, rounds: 1 };
        let mut cells = [Mode::Native, Mode::Ub].map(|mode| Cell::new(work.workload, mode));
        let settled = Some(Settled { loads: 3, seconds: 1.0, stable: true });
        let sample = |operations| Sample {
            round: Round { operations, seconds: 1.0 },
            cpu_ns: 5,
            user_ns: 2,
            latency: None,
        };
        let counts = |syscalls| Counts { syscalls, ..Counts::default() };
        let end = |digest: &str, counts, report| End {
            digest: digest.into(),
            faults: vec![],
            counts,
            report,
        };
        for event in [
            Event::Warm { work, operations: 7, settled },
            Event::Round { work, samples: vec![(Mode::Native, sample(1)), (Mode::Ub, sample(2))] },
            Event::Round { work, samples: vec![(Mode::Ub, sample(3)), (Mode::Native, sample(4))] },
            Event::Finished {
                work,
                ends: vec![
                    (Mode::Native, end("n", None, None)),
                    (Mode::Ub, end("u", Some(counts(9)), Some(json!({"schema": 1})))),
                ],
            },
            Event::Counted { workload: work.workload, counts: counts(8) },
        ] {
            take(&mut cells, event);
        }
        let [native, ub] = cells;
        let operations = |cell: &Cell| -> Vec<u64> {
            cell.rounds.iter().map(|sample| sample.round.operations).collect()
        };
        assert_eq!((operations(&native), operations(&ub)), (vec![1, 4], vec![2, 3]));
        assert_eq!((native.settled, ub.settled), (None, settled));
        assert_eq!((native.digest.as_str(), ub.digest.as_str()), ("n", "u"));
        assert_eq!(native.counts, Some(counts(8)), "counted in a session of its own");
        assert_eq!(ub.counts, Some(counts(9)));
        assert!(native.session.is_none() && ub.session.is_some());
    }
}
