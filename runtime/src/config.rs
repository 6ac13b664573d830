//! Settings of a session: what they are and where they come from.
//!
//! From weakest to strongest: the system's file, the user's file, the
//! environment, the command line. What nobody sets is the module's default.
//! `UB_DISABLE` is looked at before anything else and cannot be overruled.

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
    /// Time one passage of a gap in N, at random [module's default: 10]
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
    /// Ride even where rides were found to cost more than system calls on this
    /// machine
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
    /// Its value; `None` if it is the module's default.
    pub value: Option<String>,
    /// A file, a variable of the environment, the command line or a default.
    pub origin: String,
}

/// Where to look for settings.
#[derive(Debug, Clone)]
pub struct Places {
    /// Configuration files, the weakest first.
    pub files: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")));
        let user = user.map(|dir| dir.join("ub/config.toml"));
        Self { files: [Some(PathBuf::from(SYSTEM_FILE)), user].into_iter().flatten().collect() }
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
            let origin = match figment.find_metadata(&name) {
                Some(metadata) if value.is_some() => source(metadata, &name),
                _ => default_of(&name).to_owned(),
            };
            Origin { name, value, origin }
        };
        Ok(names().into_iter().map(origin).collect())
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
        _ => "default: the module's",
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
        None
    }
}

/// What the environment says about riding at all: `UB_DISABLE`, if it is set
/// and not empty.
#[must_use]
pub fn disabled_by_environment() -> Option<bool> {
    let value = std::env::var_os("UB_DISABLE").filter(|value| !value.is_empty())?;
    Some(value != "0" && value != "false")
}

#[cfg(test)]
mod tests {
    use figment::Jail;

    use super::*;

    /// Runs `test` in a folder of its own with the two files, either of which
    /// may be absent, and these variables.
    #[allow(clippy::result_large_err, reason = "figment's own type of error")]
    fn with(
        system: Option<&str>,
        user: Option<&str>,
        variables: &[(&str, &str)],
        test: impl FnOnce(&Places),
    ) {
        Jail::expect_with(|jail| {
            jail.clear_env();
            for (name, content) in [("system.toml", system), ("user.toml", user)] {
                if let Some(content) = content {
                    jail.create_file(name, content)?;
                }
            }
            for (name, value) in variables {
                jail.set_env(name, value);
            }
            let file = |name| jail.directory().join(name);
            test(&Places { files: vec![file("system.toml"), file("user.toml")] });
            Ok(())
        });
    }

    fn origin(places: &Places, flags: &Settings, name: &str) -> String {
        let origins = places.origins(flags).unwrap();
        let origin = origins.into_iter().find(|origin| origin.name == name).unwrap().origin;
        origin.rsplit('/').next().unwrap_or_default().to_owned()
    }

    #[test]
    fn later_sources_win_one_by_one() {
        const SYSTEM: Option<&str> = Some("hot_count = 1\nmin_rate = 7\n");
        const USER: Option<&str> = Some("hot_count = 2\n");
        let none = Settings::default();
        with(None, None, &[], |places| {
            assert_eq!(places.load(&none).unwrap(), none);
            assert_eq!(origin(places, &none, "hot_count"), "default: the module's");
        });
        with(SYSTEM, None, &[], |places| {
            assert_eq!(places.load(&none).unwrap().hot_count, Some(1));
            assert_eq!(origin(places, &none, "hot_count"), "system.toml");
        });
        with(SYSTEM, USER, &[], |places| {
            assert_eq!(places.load(&none).unwrap().hot_count, Some(2));
            assert_eq!(origin(places, &none, "hot_count"), "user.toml");
            assert_eq!(origin(places, &none, "min_rate"), "system.toml");
        });
        with(SYSTEM, USER, &[("UB_HOT_COUNT", "3")], |places| {
            assert_eq!(places.load(&none).unwrap().hot_count, Some(3));
            assert_eq!(origin(places, &none, "hot_count"), "UB_HOT_COUNT");
            let flags = Settings { hot_count: Some(4), ..Settings::default() };
            let settings = places.load(&flags).unwrap();
            assert_eq!((settings.hot_count, settings.min_rate), (Some(4), Some(7)));
            assert_eq!(origin(places, &flags, "hot_count"), "command line");
        });
    }

    #[test]
    fn the_module_has_the_defaults_that_are_named() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernel-patch/module/session.c");
        let module = std::fs::read_to_string(source).unwrap();
        let command = Settings::augment_args(clap::Command::new("ub"));
        for (name, code, default) in [
            ("sample_interval", "sample_interval = 10;", 10),
            ("min_rate", "min_rate = 50000;", 50_000),
            ("hot_count", "hot_count = 900;", 900),
            ("hot_window", "hot_window = 15000;", 15_000),
            ("gap_short_us", "gap_short_ns = 4 * 1000;", 4),
            ("gap_max_us", "gap_max_ns = 32 * 1000;", 32),
            ("miss_count", "miss_count = 4;", 4),
            ("miss_window_ms", "miss_window_ms = 125;", 125),
            ("native_interval", "native_interval = 128;", 128),
            ("max_fragments", "DEFAULT_MAX_FRAGMENTS 4096\n", 4096),
            ("max_code_kib", "DEFAULT_MAX_ARENA_BYTES (6u << 20)\n", 6 << 10),
        ] {
            assert!(module.contains(code), "session.c has another default for {name}");
            let mut options = command.get_arguments();
            let option = options.find(|option| option.get_id() == name).unwrap();
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.ends_with(&format!("[module's default: {default}]")), "{name}: {help}");
        }
    }

    #[test]
    fn the_example_of_the_documents_is_understood() {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
        let text = std::fs::read_to_string(document).unwrap();
        let example = text.split("# /etc/ub/config.toml\n").nth(1).unwrap();
        let example = example.split("```").next().unwrap();
        with(Some(example), None, &[], |places| {
            let settings = places.load(&Settings::default()).unwrap();
            assert!(settings.min_rate.is_some() && settings.log.is_some(), "{settings:?}");
        });
    }

    #[test]
    fn the_example_file_has_every_setting_at_its_default() {
        const EXAMPLE: &str = include_str!("../../docs/config.toml");
        with(Some(EXAMPLE), None, &[], |places| {
            assert_eq!(places.load(&Settings::default()).unwrap(), Settings::default());
        });
        let is_setting = |line: &&str| line.starts_with(|first: char| first.is_ascii_lowercase());
        let lines = EXAMPLE.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
        let settings = lines.filter(is_setting).collect::<Vec<_>>().join("\n");
        let command = Settings::augment_args(clap::Command::new("ub"));
        with(Some(&settings), None, &[], |places| {
            for Origin { name, value, origin } in places.origins(&Settings::default()).unwrap() {
                let mut options = command.get_arguments();
                let option = options.find(|option| option.get_id() == name.as_str());
                let help = option.and_then(|option| option.get_help()).map(ToString::to_string);
                match (name.as_str(), value) {
                    ("log", value) => assert_eq!(value, None),
                    ("disable" | "require" | "ride_anyway" | "time_gaps", value) => {
                        assert_eq!(value.as_deref(), Some("false"), "{name}");
                    }
                    (_, value) => {
                        let value = value.unwrap_or_else(|| panic!("no {name} ({origin})"));
                        let default = format!("[module's default: {value}]");
                        assert!(help.unwrap().ends_with(&default), "{name} = {value}");
                    }
                }
            }
        });
    }

    #[test]
    fn truth_is_read_as_environments_have_it() {
        for (value, expected) in [("1", true), ("yes", true), ("0", false), ("", false)] {
            with(Some("disable = true"), None, &[("UB_DISABLE", value)], |places| {
                let settings = places.load(&Settings::default()).unwrap();
                assert_eq!(settings.disable, Some(expected), "{value:?}");
            });
        }
    }

    #[test]
    fn an_empty_log_variable_means_none() {
        with(None, None, &[("UB_LOG", "")], |places| {
            assert_eq!(places.load(&Settings::default()).unwrap().log, None);
        });
    }

    #[test]
    fn mistakes_are_named() {
        for (content, words) in [
            ("hot_cuont = 1", "hot_cuont"),
            ("hot_count = \"many\"", "hot_count"),
            ("hot_count = 0", "system.toml: hot_count = 0 is not at least 1"),
            ("native_interval = 5", "native_interval = 5 is not at least 100"),
            ("hot_count =", "system.toml"),
        ] {
            with(Some(content), None, &[], |places| {
                let error = places.load(&Settings::default()).unwrap_err().to_string();
                assert!(error.contains(words) && !error.contains('\n'), "{content}: {error}");
            });
        }
    }

    #[test]
    fn options_and_files_have_the_same_limits() {
        let numbers = |value: u64| {
            let all = names().into_iter().map(move |name| (name, value));
            let is_number = |name: &str| {
                !matches!(name, "disable" | "require" | "ride_anyway" | "time_gaps" | "log")
            };
            all.filter(move |(name, _)| is_number(name))
        };
        let edges = [1, 64, 100, 8192, 16_384, 1 << 30, LONGEST_GAP_US, u64::from(u32::MAX)];
        for (name, value) in
            edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]).flat_map(numbers)
        {
            let command = Settings::augment_args(clap::Command::new("ub"));
            let option = format!("--{}={value}", name.replace('_', "-"));
            let parsed = command.try_get_matches_from(["ub", &option]).is_ok();
            with(Some(&format!("{name} = {value}")), None, &[], |places| {
                let read = places.load(&Settings::default()).is_ok();
                assert_eq!(parsed, read, "{name} = {value}");
            });
        }
    }

    #[test]
    fn every_setting_is_an_option_and_every_option_a_setting() {
        let all = Settings {
            disable: Some(true),
            require: Some(true),
            sample_interval: Some(1),
            min_rate: Some(1),
            hot_count: Some(1),
            hot_window: Some(1),
            gap_short_us: Some(1),
            gap_max_us: Some(1),
            miss_count: Some(1),
            miss_window_ms: Some(1),
            native_interval: Some(100),
            max_fragments: Some(1),
            max_code_kib: Some(64),
            ride_anyway: Some(true),
            time_gaps: Some(true),
            log: Some("x".into()),
        };
        let value = serde_json::to_value(all).unwrap();
        let mut fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        let mut names = names();
        fields.sort_unstable();
        names.sort_unstable();
        assert_eq!(fields, names);
    }
}
