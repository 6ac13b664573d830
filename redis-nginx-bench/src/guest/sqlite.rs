//! Measures the sqlite3 shell, which is told its transactions on standard input.

use std::fs;
use std::path::PathBuf;

use super::launch::{How, Launcher, Running};
use super::subject::{Findings, Load, Subject, Timed};
use crate::outcome::Round;
use crate::{Error, Result};

/// Rows of the table that is updated.
const ROWS: u64 = 1000;
/// What every row has in the beginning. Transactions move amounts, so the
/// sum stays.
const BALANCE: u64 = 1_000_000;
/// The time in milliseconds, from sqlite itself: its output arrives late.
const NOW: &str = "SELECT printf('%.3f', (julianday('now') - 2440587.5) * 86400000.0);";

/// A shell with an open database.
#[derive(Debug)]
pub(super) struct Shell {
    running: Running,
    /// The script of the last load, and how many transactions it has.
    script: PathBuf,
    transactions: u64,
}

impl Shell {
    /// Starts a shell with a new database.
    pub(super) fn start(launcher: &Launcher, how: How) -> Result<Self> {
        let folder = launcher.folder("sqlite")?;
        let database = folder.join("data.db");
        let program = &launcher.plan().programs.sqlite;
        let running = launcher.server(how, program, &["-batch", &database.to_string_lossy()])?;
        let mut shell = Self { running, script: folder.join("load.sql"), transactions: 0 };
        shell.say(
            "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, note TEXT); \
             CREATE TABLE log(number INTEGER PRIMARY KEY, origin INTEGER, target INTEGER);",
        )?;
        shell.fill()?;
        // What was said waits in the pipe; only an answer shows that the
        // program runs, and under `ub run` that there is a session.
        shell.ask("SELECT count(*) FROM account;")?;
        Ok(shell)
    }

    fn say(&mut self, statements: &str) -> Result<()> {
        self.running.tell(statements)
    }

    /// The single row that `statement` selects.
    fn ask(&mut self, statement: &str) -> Result<String> {
        self.say(statement)?;
        self.running.answer("a row")
    }

    fn now_ms(&mut self) -> Result<f64> {
        let text = self.ask(NOW)?;
        text.parse().map_err(|_| Error::output("sqlite3", format!("{text:?} is no time")))
    }

    /// Makes the rows those of the beginning.
    fn fill(&mut self) -> Result<()> {
        self.say(&format!(
            "DELETE FROM log; DELETE FROM account; \
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
             INSERT INTO account SELECT i, {BALANCE}, 'account ' || i FROM n;",
            ROWS - 1
        ))
    }

    /// Does `count` transactions. The script is written again for another count.
    fn transact(&mut self, count: u64) -> Result<()> {
        if self.transactions != count {
            let script: String = (0..count).map(transaction).collect();
            fs::write(&self.script, script)
                .map_err(Error::io(format!("writing {}", self.script.display())))?;
            self.transactions = count;
        }
        let script = self.script.to_string_lossy().into_owned();
        self.say(&format!(".read {script}"))
    }
}

/// Moves an amount from one row to another and notes that.
fn transaction(number: u64) -> String {
    let (origin, target) = (number * 7 % ROWS, (number * 13 + 1) % ROWS);
    format!(
        "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {origin}; \
         UPDATE account SET balance = balance + 1 WHERE id = {target}; \
         INSERT INTO log VALUES(NULL, {origin}, {target}); COMMIT;\n"
    )
}

impl Subject for Shell {
    fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    fn load(&mut self, load: &Load, findings: &mut Findings) -> Result<Timed> {
        let start = self.now_ms()?;
        self.transact(load.operations)?;
        let seconds = (self.now_ms()? - start) / 1e3;
        let state = self.ask("SELECT (SELECT count(*) FROM log), sum(balance) FROM account;")?;
        let expected = format!("{}|{}", load.operations, ROWS * BALANCE);
        if state != expected {
            findings.faults.push(format!("the database has {state} instead of {expected}"));
        }
        self.say("DELETE FROM log;")?;
        Ok(Timed { round: Round { operations: load.operations, seconds }, latency: None })
    }

    fn check(&mut self, findings: &mut Findings) -> Result<()> {
        self.fill()?;
        self.transact(ROWS)?;
        for statement in [
            "SELECT group_concat(id || ':' || balance || ':' || note) FROM account;",
            "SELECT group_concat(number || ':' || origin || ':' || target) FROM log;",
            "PRAGMA integrity_check;",
        ] {
            findings.digest.add(statement, self.ask(statement)?.as_bytes());
        }
        findings.operations += ROWS;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.hang_up();
        self.running.finish().map(drop)
    }
}
