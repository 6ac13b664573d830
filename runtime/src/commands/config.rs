//! `ub config`: settings and where they come from.

use clap::{Args, Subcommand};

use super::complain;
use super::output::{Format, Output, Stream, json};
use crate::config::{Origin, Places, Settings, disabled_by_environment};
use crate::exec::EXIT_UB;

/// Show the settings of sessions
///
/// From weakest to strongest: /etc/ub/config.toml, ub/config.toml in
/// $XDG_CONFIG_HOME (~/.config), UB_* variables, options. UB_DISABLE=1 always
/// wins.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(Show),
}

/// Print every setting as `ub run` would find it here and now
#[derive(Debug, Args)]
struct Show {
    /// Also say where each comes from, as JSON always does
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let Command::Show(show) = &arguments.command;
    let places = Places::default();
    let settings = match places.origins(&show.settings) {
        Ok(settings) => settings,
        Err(error) => {
            complain(error);
            return EXIT_UB;
        }
    };
    let shown = match show.output.format {
        Format::Text => text(&places, &settings, show.origin),
        Format::Json => json(&serde_json::json!({
            "schema": 1,
            "disabled_by_environment": disabled_by_environment(),
            "files": places.files,
            "settings": settings,
        })),
    };
    show.output.put(&shown, Stream::Standard)
}

fn text(places: &Places, settings: &[Origin], origin: bool) -> String {
    let mut out = String::new();
    if disabled_by_environment() == Some(true) {
        out.push_str("UB_DISABLE is set: every program runs natively, whatever follows\n\n");
    }
    for setting in settings {
        let value = setting.value.as_deref().unwrap_or("-");
        let line = if origin {
            format!("{:<16} {value:<12} {}", setting.name, setting.origin)
        } else {
            format!("{:<16} {value}", setting.name)
        };
        out.push_str(line.trim_end());
        out.push('\n');
    }
    if origin {
        out.push_str("\nfiles, the weakest first:\n");
        for file in &places.files {
            let state = if file.exists() { "" } else { " (absent)" };
            out.push_str(&format!("  {}{state}\n", file.display()));
        }
    }
    out
}
