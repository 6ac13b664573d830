//! `ub coverage`: how much of a program's code the translator knows.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use ub_translator::CpuFeatures;

use super::complain;
use super::output::{self, Format, Output, Stream};
use crate::coverage::{Coverage, measure};
use crate::exec::EXIT_UB;

/// Count what the translator does with the instructions of programs
///
/// Decodes the executable sections of each ELF file from end to end, afresh
/// at every function that a symbol table names, and counts each instruction by
/// what becomes of it. The share is that of the translated instructions among
/// those that could be: all but system calls, traps and instructions
/// without effect (padding, hints).
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Programs and shared libraries
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Extensions to translate for: those of this machine, or all
    #[arg(long, value_enum, default_value_t = Cpu::All)]
    cpu: Cpu,
    /// Missing forms shown in text
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    #[command(flatten)]
    output: Output,
}

/// For which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cpu {
    Host,
    All,
}

impl Cpu {
    fn features(self) -> CpuFeatures {
        match self {
            Self::Host => CpuFeatures::host(),
            Self::All => CpuFeatures::all(),
        }
    }
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let mut rows = Vec::new();
    let mut status = 0;
    for file in &arguments.files {
        match measure(file, arguments.cpu.features()) {
            Ok(coverage) => rows.push((file.display().to_string(), coverage)),
            Err(error) => {
                complain(error);
                status = EXIT_UB;
            }
        }
    }
    if rows.is_empty() {
        return status;
    }
    let shown = match arguments.output.format {
        Format::Text => text(&rows, arguments.top),
        Format::Json => output::json(&data(&rows)),
    };
    arguments.output.put(&shown, Stream::Standard).max(status)
}

/// All counts, for programs.
fn data(rows: &[(String, Coverage)]) -> serde_json::Value {
    let files = rows.iter().map(|(file, coverage)| {
        let missing = coverage
            .top()
            .into_iter()
            .map(|(form, count)| json!({"form": form.form, "reason": form.reason, "count": count}));
        json!({
            "file": file,
            "share": coverage.share(),
            "decoded": coverage.decoded(),
            "translated": coverage.translated,
            "system_calls": coverage.system_calls,
            "traps": coverage.traps,
            "no_effect": coverage.no_effect,
            "resyncs": coverage.resyncs,
            "missing": missing.collect::<Vec<_>>(),
        })
    });
    json!({"schema": 1, "files": files.collect::<Vec<_>>()})
}

/// The table, and the missing forms of all files together.
fn text(rows: &[(String, Coverage)], top: usize) -> String {
    let mut all = Coverage::default();
    for (_, coverage) in rows {
        all.add(coverage);
    }
    let mut text = format!(
        "{:>8}  {:>10} {:>10} {:>8} {:>8} {:>6} {:>9} {:>7}  file\n",
        "coverage", "decoded", "translated", "missing", "syscalls", "traps", "no effect", "resyncs"
    );
    let mut row = |name: &str, coverage: &Coverage| {
        let _ = writeln!(
            text,
            "{:>7.3}%  {:>10} {:>10} {:>8} {:>8} {:>6} {:>9} {:>7}  {name}",
            // Cut, so that 100 % means all.
            (coverage.share() * 100_000.0).floor() / 1000.0,
            coverage.decoded(),
            coverage.translated,
            coverage.missing_total(),
            coverage.system_calls,
            coverage.traps,
            coverage.no_effect,
            coverage.resyncs,
        );
    };
    for (name, coverage) in rows {
        row(name, coverage);
    }
    if rows.len() > 1 {
        row("together", &all);
    }
    let missing = all.top();
    if top > 0 && !missing.is_empty() {
        let _ = writeln!(text, "\nmissing forms, {} of {}", missing.len().min(top), missing.len());
        for (form, count) in missing.iter().take(top) {
            let _ = writeln!(text, "{count:>8}  {:<12} {}", form.reason, form.form);
        }
    }
    text
}
