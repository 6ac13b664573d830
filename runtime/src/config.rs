//! Settings of a session: what they are and where they come from.
//!
//! From weakest to strongest: the system's file, the user's file, the
//! environment, the command line. What nobody sets is the module's default.
//! `UB_DISABLE` is looked at before anything else and cannot be overruled.

mod module;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::Args;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Deserializer, Serialize};

/// The system's file.
pub const SYSTEM_FILE: &str = "/etc/ub/config.toml";
/// In front of the name of each setting in the environment.
const ENVIRONMENT: &str = "UB_";
/// What is said of settings that are up to the module ...
const OF_MODULE: &str = "default: the module's";
/// ... and where the loaded module says what that is.
const OF_PARAMETER: &str = "default: the module's parameter";
/// The settings that are not options of every session.
const SPECIAL: [&str; 2] = ["disable", "require"];

/// What can be set. The names are those of the options, with `_` in files, and
/// in capitals after `UB_` in the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Settings, also of files and of UB_* variables")]
pub struct Settings {
    /// Run everything natively; `UB_DISABLE=1` in the environment.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "truth")]
    pub disable: Option<bool>,
    /// Fail instead of running natively when there can be no session;
    /// `--require` of the commands that run a program.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "truth")]
    pub require: Option<bool>,
    /// Time one passage of a gap in N, at random, fewer where nearly all calls ride [module's
    /// default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_interval: Option<u32>,
    /// Leave threads alone that make fewer system calls a second [module's default: 50000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rate: Option<u32>,
    /// Timed passages that make a gap hot [module's default: 900]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hot_count: Option<u32>,
    /// Timed passages of all gaps among which these must be [module's default: 15000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hot_window: Option<u32>,
    /// Longest gap that is tried before shorter ones have paid, in microseconds
    /// [module's default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LONGEST_GAP_US))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_short_us: Option<u64>,
    /// Longest gap that is tried at all, in microseconds [module's default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LONGEST_GAP_US))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_max_us: Option<u64>,
    /// Times that fragments are left for an address before the code there is
    /// translated as well [module's default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miss_count: Option<u32>,
    /// Within how many milliseconds it must be left so often the first time:
    /// translating rare ways would take longer than it saves [module's default: 125]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miss_window_ms: Option<u32>,
    /// Let one passage of a translated gap in N go natively, to compare
    /// [module's default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_interval: Option<u32>,
    /// For how many seconds a gap goes natively after its fragment did not pay; twice as
    /// long each further time [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LONGEST_HOLD_S))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_hold_s: Option<u64>,
    /// The longest such time, in seconds, at least the first [default: 3600]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LONGEST_HOLD_S))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_hold_s: Option<u64>,
    /// Most fragments at a time; those not run for longest make room
    /// [module's default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_FRAGMENTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fragments: Option<u32>,
    /// Most code of fragments at a time, in KiB; the same makes room
    /// [module's default: 6144]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(CODE_KIB))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_code_kib: Option<u64>,
    /// Ride even where rides were found to save next to nothing on this machine
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "truth")]
    pub ride_anyway: Option<bool>,
    /// Count the cycles between system calls, for the report; makes each call
    /// a little slower
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "truth")]
    pub time_gaps: Option<bool>,
    /// Append the supervisor's log to FILE
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
}

/// Longest gap that can be asked for, in microseconds: 100 seconds.
const LONGEST_GAP_US: u64 = 100_000_000;
/// Longest time to stay native that can be asked for, in seconds: a year.
const LONGEST_HOLD_S: u64 = 365 * 24 * 3600;
/// Most fragments that can be asked for.
const MOST_FRAGMENTS: i64 = 16_384;
/// Sizes of code that can be asked for, in KiB.
const CODE_KIB: std::ops::RangeInclusive<u64> = 64..=8192;

/// A truth value, also as environments have it: empty, `0` and `false` are
/// false, everything else is true.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Bool(bool),
        Number(i64),
        Text(String),
        Nothing(()),
    }

    Ok(Some(match Value::deserialize(deserializer)? {
        Value::Bool(value) => value,
        Value::Number(number) => number != 0,
        Value::Text(text) => !matches!(text.as_str(), "" | "0" | "false"),
        Value::Nothing(()) => false,
    }))
}

/// The settings are wrong; says where and what.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct Error(String);

/// A setting and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Name of the setting.
    pub name: String,
    /// Its value; `None` if there is none, or it is the module's default and the
    /// module is not loaded.
    pub value: Option<String>,
    /// A file, a variable of the environment, the command line or a default.
    pub origin: String,
}

/// Where to look for settings.
#[derive(Debug, Clone)]
pub struct Places {
    /// Configuration files, the weakest first.
    pub files: Vec<PathBuf>,
    /// Folder of the loaded module's parameters, its defaults.
    pub parameters: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")));
        let user = user.map(|dir| dir.join("ub/config.toml"));
        Self {
            files: [Some(PathBuf::from(SYSTEM_FILE)), user].into_iter().flatten().collect(),
            parameters: PathBuf::from(module::PARAMETERS),
        }
    }
}

/// The command line as a source of settings.
struct Flags<'a>(&'a Settings);

impl Provider for Flags<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named("command line")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Serialized::defaults(self.0).data()
    }
}

/// Names of all settings.
fn names() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("ub"));
    let options = command.get_arguments().map(|argument| argument.get_id().to_string());
    SPECIAL.map(str::to_owned).into_iter().chain(options).collect()
}

impl Places {
    fn figment(&self, flags: &Settings) -> Figment {
        let names: Vec<_> = names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let files =
            self.files.iter().fold(Figment::new(), |figment, file| figment.merge(Toml::file(file)));
        files.merge(Env::prefixed(ENVIRONMENT).only(&names)).merge(Flags(flags))
    }

    /// All sources together. `flags` is the command line.
    ///
    /// # Errors
    /// When a file or a variable cannot be understood.
    pub fn load(&self, flags: &Settings) -> Result<Settings, Error> {
        let figment = self.figment(flags);
        let mut settings: Settings = figment.extract().map_err(|error| Error(describe(error)))?;
        settings.log = settings.log.filter(|log| !log.as_os_str().is_empty());
        match settings.beyond_limits() {
            Some((name, what)) => {
                let metadata = figment.find_metadata(name);
                let source = metadata.map_or_else(String::new, |from| source(from, name));
                Err(Error(format!("{source}: {name} = {what}")))
            }
            None => Ok(settings),
        }
    }

    /// Every setting with its origin.
    ///
    /// # Errors
    /// See [`Places::load`].
    pub fn origins(&self, flags: &Settings) -> Result<Vec<Origin>, Error> {
        let settings = self.load(flags)?;
        let values = serde_json::to_value(&settings).unwrap_or_default();
        let figment = self.figment(flags);
        let origin = |name: String| {
            let value = values.get(&name).map(|value| match value.as_str() {
                Some(text) => text.to_owned(),
                None => value.to_string(),
            });
            match figment.find_metadata(&name) {
                Some(metadata) if value.is_some() => {
                    Origin { origin: source(metadata, &name), name, value }
                }
                _ => self.unset(name),
            }
        };
        Ok(names().into_iter().map(origin).collect())
    }

    /// A setting that nobody set.
    fn unset(&self, name: String) -> Origin {
        let default = default_of(&name);
        let of_module = (default == OF_MODULE).then(|| module::default_in(&self.parameters, &name));
        match of_module.flatten() {
            Some(value) => Origin { name, value: Some(value), origin: OF_PARAMETER.to_owned() },
            None => Origin { name, value: None, origin: default.to_owned() },
        }
    }
}

fn source(metadata: &Metadata, name: &str) -> String {
    match &metadata.source {
        Some(figment::Source::File(path)) => path.display().to_string(),
        _ if metadata.name.starts_with('`') => format!("{ENVIRONMENT}{}", name.to_uppercase()),
        _ => metadata.name.to_string(),
    }
}

fn default_of(name: &str) -> &'static str {
    match name {
        "disable" | "require" | "ride_anyway" | "time_gaps" => "default: false",
        "log" => "default: none",
        "first_hold_s" => "default: 5",
        "longest_hold_s" => "default: 3600",
        _ => OF_MODULE,
    }
}

/// One line that names the setting and the source.
fn describe(error: figment::Error) -> String {
    error
        .into_iter()
        .map(|error| error.to_string().replace('\n', " "))
        .collect::<Vec<_>>()
        .join("; ")
}

impl Settings {
    /// The first setting that is beyond its limits, and what is wrong. Files and
    /// variables have no parser that knows the limits of options.
    fn beyond_limits(&self) -> Option<(&'static str, String)> {
        let count = |value: Option<u32>| value.map(u64::from);
        let limits = [
            ("sample_interval", count(self.sample_interval), 1, 1 << 30),
            ("min_rate", count(self.min_rate), 1, u64::MAX),
            ("hot_count", count(self.hot_count), 1, u64::MAX),
            ("hot_window", count(self.hot_window), 1, u64::MAX),
            ("gap_short_us", self.gap_short_us, 1, LONGEST_GAP_US),
            ("gap_max_us", self.gap_max_us, 1, LONGEST_GAP_US),
            ("miss_count", count(self.miss_count), 1, u64::MAX),
            ("miss_window_ms", count(self.miss_window_ms), 1, u64::MAX),
            ("native_interval", count(self.native_interval), 100, u64::MAX),
            ("first_hold_s", self.first_hold_s, 1, LONGEST_HOLD_S),
            ("longest_hold_s", self.longest_hold_s, 1, LONGEST_HOLD_S),
            ("max_fragments", count(self.max_fragments), 1, MOST_FRAGMENTS as u64),
            ("max_code_kib", self.max_code_kib, *CODE_KIB.start(), *CODE_KIB.end()),
        ];
        for (name, value, least, most) in limits {
            if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
                let limits = match most {
                    u64::MAX => format!("at least {least}"),
                    _ => format!("between {least} and {most}"),
                };
                return Some((name, format!("{value} is not {limits}")));
            }
        }
        match (self.first_hold_s, self.longest_hold_s) {
            (Some(first), Some(longest)) if longest < first => {
                Some(("longest_hold_s", format!("{longest} is less than first_hold_s, {first}")))
            }
            _ => None,
        }
    }
}

/// What the environment says about riding at all: `UB_DISABLE`, if it is set
/// and not empty.
#[must_use]
pub fn disabled_by_environment() -> Option<bool> {
    let value = std::env::var_os("UB_DISABLE").filter(|value| !value.is_empty())?;
    Some(value != "0" && value != "false")
}
