//! Where settings come from, and what is said about them.

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
        test(&Places {
            files: vec![file("system.toml"), file("user.toml")],
            parameters: file("parameters"),
        });
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
fn what_nobody_set_is_what_the_loaded_module_says() {
    with(Some("min_rate = 7"), None, &[], |places| {
        std::fs::create_dir(&places.parameters).unwrap();
        for (name, content) in [("hot_count", "77\n"), ("min_rate", "50000\n"), ("log", "x\n")] {
            std::fs::write(places.parameters.join(name), content).unwrap();
        }
        let origins = places.origins(&Settings::default()).unwrap();
        let find = |name: &str| {
            let origin = origins.iter().find(|origin| origin.name == name).unwrap();
            (origin.value.as_deref(), origin.origin.rsplit('/').next().unwrap())
        };
        assert_eq!(find("hot_count"), (Some("77"), "default: the module's parameter"));
        assert_eq!(find("min_rate"), (Some("7"), "system.toml"));
        assert_eq!(find("max_fragments"), (None, "default: the module's"));
        assert_eq!(find("log"), (None, "default: none"));
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
    const EXAMPLE: &str = include_str!("../../../docs/config.toml");
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
                    let default = format!("default: {value}]");
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
    let edges =
        [1, 64, 100, 8192, 16_384, 1 << 30, LONGEST_GAP_US, LONGEST_HOLD_S, u64::from(u32::MAX)];
    for (name, value) in edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]).flat_map(numbers)
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
fn the_longest_hold_is_not_set_below_the_first() {
    for (longest, accepted) in [(60, true), (59, false)] {
        let text = format!("first_hold_s = 60\nlongest_hold_s = {longest}");
        with(Some(&text), None, &[], |places| {
            let read = places.load(&Settings::default());
            assert_eq!(read.is_ok(), accepted, "{read:?}");
            let names = |error: Error| error.to_string().contains("first_hold_s, 60");
            assert!(read.err().is_none_or(names));
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
        first_hold_s: Some(1),
        longest_hold_s: Some(1),
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
