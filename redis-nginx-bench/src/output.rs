//! Reads what redis-benchmark, wrk and `ub run --report` write.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::outcome::{Counts, Gaps, Latency};
use crate::{Error, Result};

/// What redis-benchmark says about one test.
#[derive(Debug, Clone, PartialEq)]
pub struct RedisBenchmark {
    /// Requests per second.
    pub per_second: f64,
    /// How long requests took; `None` from versions that do not say.
    pub latency: Option<Latency>,
}

/// Reads the output of `redis-benchmark --csv`, for test `name` ("SET", "GET").
///
/// # Errors
/// [`Error::Output`] if there is no line for that test.
pub fn redis_benchmark(text: &str, name: &str) -> Result<RedisBenchmark> {
    let fields = |line: &str| -> Vec<String> {
        line.split(',').map(|field| field.trim().trim_matches('"').to_owned()).collect()
    };
    let header = text.lines().next().map(fields).unwrap_or_default();
    let line = text
        .lines()
        .map(fields)
        .find(|line| line.first().is_some_and(|first| first == name))
        .unwrap_or_default();
    let per_second = line
        .get(1)
        .and_then(|rate| rate.parse().ok())
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| {
            Error::output("redis-benchmark", format!("no line \"{name}\",rate in {text:?}"))
        })?;
    let milliseconds = |column: &str| -> Option<f64> {
        line.get(header.iter().position(|field| field == column)?)?.parse().ok()
    };
    let latency = milliseconds("avg_latency_ms").map(|mean| Latency {
        mean_us: mean * 1e3,
        percentiles_us: [50, 95, 99]
            .into_iter()
            .filter_map(|p| Some((p, milliseconds(&format!("p{p}_latency_ms"))? * 1e3)))
            .collect(),
    });
    Ok(RedisBenchmark { per_second, latency })
}

/// What wrk says about one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrk {
    /// Completed requests.
    pub requests: u64,
    /// Requests per second over the time that wrk itself measured.
    pub per_second: f64,
    /// Socket errors and answers other than 2xx and 3xx.
    pub errors: u64,
    /// How long requests took; `None` without `--latency`.
    pub latency: Option<Latency>,
}

/// Reads the report of wrk 4.
///
/// # Errors
/// [`Error::Output`] if the totals are missing.
pub fn wrk(text: &str) -> Result<Wrk> {
    let missing = |what: &str| Error::output("wrk", format!("no {what} in {text:?}"));
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .ok_or_else(|| missing("\"N requests in\""))?;
    let per_second = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok())
        .ok_or_else(|| missing("\"Requests/sec:\""))?;
    let mut errors = 0;
    for line in text.lines().map(str::trim) {
        if let Some(counts) = line.strip_prefix("Socket errors:") {
            errors +=
                counts.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
        } else if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses:") {
            errors += count.trim().parse::<u64>().map_err(|_| missing("a number of responses"))?;
        }
    }
    Ok(Wrk { requests, per_second, errors, latency: wrk_latency(text) })
}

fn wrk_latency(text: &str) -> Option<Latency> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mean = text.lines().map(words).find(|words| words.first().is_some_and(|w| w == "Latency"));
    let percentiles_us = text
        .lines()
        .skip_while(|line| line.trim() != "Latency Distribution")
        .map(words)
        .filter_map(|words| {
            let percent = words.first()?.strip_suffix('%')?.parse().ok()?;
            Some((percent, microseconds(words.get(1)?)?))
        })
        .collect();
    Some(Latency { mean_us: microseconds(mean?.get(1)?)?, percentiles_us })
        .filter(|latency| !latency.percentiles_us.is_empty())
}

/// A duration as wrk writes it: "12.34us", "1.02ms", "2.00s", "1.50m".
fn microseconds(text: &str) -> Option<f64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return None,
    };
    Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor)
}

/// Version of the session report that this reads.
const SESSION_SCHEMA: u32 = 1;

/// The fields of a session report that a measurement uses.
#[derive(Debug, Deserialize)]
struct Session {
    schema: u32,
    active: bool,
    ended: bool,
    syscalls: u64,
    ridden: u64,
    rides: u64,
    exits: BTreeMap<String, u64>,
    #[serde(default)]
    refused: BTreeMap<String, u64>,
    #[serde(default)]
    gaps: BTreeMap<String, u64>,
    #[serde(default)]
    gap_cycles: BTreeMap<String, u64>,
}

/// A session as one report of it describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReport {
    /// The counts; how many operations they stand for, a report cannot say: 0.
    pub counts: Counts,
    /// Whether the session was over.
    pub ended: bool,
}

/// Reads a report of `ub run --report`.
///
/// # Errors
/// [`Error::Output`] if it is not the report of a session that took place.
pub fn session(report: &Value) -> Result<SessionReport> {
    let refuse = |detail: String| Err(Error::output("ub run --report", detail));
    let session = match Session::deserialize(report) {
        Ok(session) => session,
        Err(error) => return refuse(error.to_string()),
    };
    if session.schema != SESSION_SCHEMA {
        return refuse(format!("schema {} instead of {SESSION_SCHEMA}", session.schema));
    }
    if !session.active {
        return refuse("the program ran natively".into());
    }
    if session.ridden > session.syscalls {
        return refuse(format!("{} of {} calls ridden", session.ridden, session.syscalls));
    }
    let cycles = |kind: &String| session.gap_cycles.get(kind).copied().unwrap_or(0);
    let gaps = session
        .gaps
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| (kind.clone(), Gaps { count: *count, cycles: cycles(kind) }))
        .collect();
    let counts = Counts {
        operations: 0,
        syscalls: session.syscalls,
        ridden: session.ridden,
        rides: session.rides,
        exits: session.exits.into_iter().filter(|(_, count)| *count > 0).collect(),
        refused: session.refused.into_iter().filter(|(_, count)| *count > 0).collect(),
        gaps,
    };
    Ok(SessionReport { counts, ended: session.ended })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const REDIS: &str = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p99_latency_ms\"\n\
                         \"SET\",\"98039.22\",\"0.069\",\"0.016\",\"0.500\"\n";

    #[test]
    fn redis_benchmark_csv() {
        let result = redis_benchmark(REDIS, "SET").unwrap();
        assert_eq!(result.per_second, 98039.22);
        let latency = result.latency.unwrap();
        assert_eq!((latency.mean_us, latency.percentiles_us[&99]), (69.0, 500.0));
        assert!(redis_benchmark(REDIS, "GET").is_err());
        assert!(redis_benchmark("\"SET\",\"nan\"", "SET").is_err());
        assert!(redis_benchmark("\"SET\"", "SET").is_err());
    }

    const WRK: &str = "Running 2s test @ http://127.0.0.1:8080/4096\n  1 threads and 4 connections\n  \
                       Thread Stats   Avg      Stdev     Max   +/- Stdev\n  90418 requests in 2.10s, 385.61MB read\n\
                       Requests/sec:  43061.77\nTransfer/sec:    183.64MB\n";

    #[test]
    fn wrk_without_errors() {
        let expected = Wrk { requests: 90418, per_second: 43061.77, errors: 0, latency: None };
        assert_eq!(wrk(WRK).unwrap(), expected);
    }

    #[test]
    fn wrk_latency_has_units() {
        let table = "    Latency    93.50us  120.00us   3.02ms   97.00%\n  Latency Distribution\n     \
                     50%   80.00us\n     99%    1.02ms\n";
        let latency = wrk(&format!("{table}{WRK}")).unwrap().latency.unwrap();
        assert_eq!((latency.mean_us, latency.percentiles_us[&99]), (93.5, 1020.0));
        assert_eq!((microseconds("2.50s"), microseconds("3 parsecs")), (Some(2.5e6), None));
    }

    #[test]
    fn wrk_errors_add_up() {
        let text = format!(
            "{WRK}  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
        );
        assert_eq!(wrk(&text).unwrap().errors, 15);
        assert!(wrk("unable to connect to 127.0.0.1:1 Connection refused").is_err());
    }

    fn report() -> Value {
        json!({
            "schema": 1, "active": true, "ended": true, "syscalls": 10, "ridden": 8, "rides": 2,
            "exits": {"poll": 1, "fault": 0}, "more": [1],
            "gaps": {"native": 0, "ridden": 7}, "gap_cycles": {"native": 0, "ridden": 900},
        })
    }

    #[test]
    fn session_counts() {
        let SessionReport { counts, ended } = session(&report()).unwrap();
        assert_eq!((counts.syscalls, counts.ridden, ended), (10, 8, true));
        assert_eq!(counts.exits, BTreeMap::from([("poll".into(), 1)]));
        let ridden = Gaps { count: 7, cycles: 900 };
        assert_eq!(counts.gaps, BTreeMap::from([("ridden".into(), ridden)]));
    }

    #[test]
    fn only_reports_of_sessions_count() {
        for (field, value) in [
            ("schema", json!(2)),
            ("active", json!(false)),
            ("ridden", json!(11)),
            ("syscalls", json!("many")),
        ] {
            let mut changed = report();
            changed[field] = value;
            assert!(session(&changed).is_err(), "{field}");
        }
        assert!(session(&json!({})).is_err());
    }
}
