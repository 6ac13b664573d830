//! Settings from files, environment and options; and what is made from the
//! definition of the options.

use std::fs;
use std::process::{Command, Output, Stdio};

/// `ub` with a user's configuration file of this content.
struct Configured {
    home: tempfile::TempDir,
}

impl Configured {
    fn new(content: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("ub")).unwrap();
        fs::write(home.path().join("ub/config.toml"), content).unwrap();
        Self { home }
    }

    /// The output of `ub` with these variables.
    fn ub(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ub"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UB_")) {
            command.env_remove(name);
        }
        command.env("XDG_CONFIG_HOME", self.home.path()).envs(variables.iter().copied());
        command.args(arguments).stdin(Stdio::null()).output().expect("ub starts")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_the_file_requires_an_option_can_take_back() {
    let configured = Configured::new("require = true\n");
    let run = |arguments: &[&str]| configured.ub(&[], arguments).status.code();
    assert_eq!(run(&["run", "--", "true"]), Some(125));
    assert_eq!(run(&["stat", "--", "true"]), Some(125));
    assert_eq!(run(&["run", "--require=false", "--", "true"]), Some(0));
}

#[test]
fn ub_disable_wins_over_everything() {
    for content in ["require = true\ndisable = false\n", "this is no configuration"] {
        let configured = Configured::new(content);
        for subcommand in ["run", "stat"] {
            let output = configured
                .ub(&[("UB_DISABLE", "1")], &[subcommand, "--require", "sh", "-c", "exit 7"]);
            assert_eq!(output.status.code(), Some(7), "{content}");
            assert_eq!(text(&output.stderr), "", "{content}");
        }
    }
}

#[test]
fn a_file_can_disable_and_the_environment_can_take_that_back() {
    let configured = Configured::new("disable = true\n");
    let silent = configured.ub(&[], &["run", "--require", "true"]);
    assert_eq!((silent.status.code(), text(&silent.stderr)), (Some(0), String::new()));
    let enabled = configured.ub(&[("UB_DISABLE", "0")], &["run", "--require", "true"]);
    assert_eq!(enabled.status.code(), Some(125));
}

#[test]
fn a_log_that_cannot_be_written_stops_no_program_unless_it_was_asked_for() {
    let file = Configured::new("log = \"/nonexistent/ub.log\"\n");
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let arguments = [&["run"], arguments, &["sh", "-c", "exit 7"]].concat();
        let output = file.ub(variables, &arguments);
        let said = text(&output.stderr);
        assert!(said.contains("cannot write log /nonexistent/"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        output.status.code()
    };
    assert_eq!(run(&[], &[]), Some(7));
    assert_eq!(run(&[("UB_LOG", "/nonexistent/other.log")], &[]), Some(7));
    assert_eq!(run(&[], &["--require"]), Some(125));
    assert_eq!(run(&[], &["--log=/nonexistent/third.log"]), Some(125));
}

#[test]
fn a_broken_file_stops_no_program_unless_a_session_is_required() {
    let configured = Configured::new("hot_cuont = 5\n");
    let output = configured.ub(&[], &["run", "sh", "-c", "exit 7"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7));
    assert!(said.contains("hot_cuont") && said.contains("running natively"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let output = configured.ub(&[], &["run", "--require", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn every_setting_tells_where_it_comes_from() {
    let configured = Configured::new("hot_count = 5\nmin_rate = 6\n");
    let variables = [("UB_MIN_RATE", "7"), ("UB_MISS_COUNT", "8")];
    let arguments = ["config", "show", "--origin", "--miss-count", "9"];
    let output = configured.ub(&variables, &arguments);
    let said = text(&output.stdout);
    let line = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name));
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("hot_count")[1], "5");
    assert!(line("hot_count")[2].ends_with("ub/config.toml"), "{said}");
    assert_eq!(line("min_rate")[1..], ["7", "UB_MIN_RATE"]);
    assert_eq!(line("miss_count")[1..], ["9", "command", "line"]);
    assert_eq!(line("hot_window")[1], "-");
    let json = configured.ub(&[("UB_DISABLE", "1")], &["config", "show", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["schema"], &json["disabled_by_environment"]), (&1.into(), &true.into()));
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let configured = Configured::new("");
    for shell in ["bash", "zsh", "fish"] {
        let output = configured.ub(&[], &["completions", shell]);
        let script = text(&output.stdout);
        for word in ["explain", "native-interval", "origin", "icount"] {
            assert!(script.contains(word), "{word} is missing for {shell}");
        }
    }
    let directory = configured.home.path().join("man1");
    let output = configured.ub(&[], &["man", directory.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for page in
        ["ub.1", "ub-run.1", "ub-top.1", "ub-config-show.1", "ub-bench.1", "ub-bench-compare.1"]
    {
        let page = fs::read_to_string(directory.join(page)).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
}
