//! What `judge` calls translated must not be refused where a region is
//! lowered: translates at every function of the measured programs and looks
//! for exits at instructions that are on the allow-list.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use support::{Functions, Image, libc_path};
use ub_translator::coverage::{Outcome, judge};
use ub_translator::fragment::ExitKind;
use ub_translator::{CodeSource, CpuFeatures, Options, TranslateError, translate};

/// The C library of this process, and those of the measured programs that
/// `scripts/deps` has unpacked.
fn programs() -> Vec<PathBuf> {
    let cache = std::env::var_os("UB_CACHE_DIR").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(cache?.join("userspace-bypass"))
    });
    let names = [
        "usr/bin/redis-server",
        "usr/sbin/nginx",
        "usr/bin/memcached",
        "usr/bin/sqlite3",
        "usr/lib/x86_64-linux-gnu/libsqlite3.so.0",
    ];
    let servers = cache.map(|cache| cache.join("servers"));
    let unpacked = names.iter().filter_map(|name| Some(servers.as_ref()?.join(name)));
    libc_path().into_iter().chain(unpacked).filter(|path| path.exists()).collect()
}

#[test]
fn lowering_refuses_nothing_that_is_allowed() {
    let programs = programs();
    assert!(!programs.is_empty(), "not even a C library");
    let options = Options { max_instructions: 512, ..Options::new(CpuFeatures::all()) };
    let mut refused: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut translated = 0_u64;
    for path in &programs {
        let mut image = Image::load(path, Functions::Unwound);
        for entry in image.functions.clone() {
            let fragment = match translate(entry, &mut image, &options) {
                Ok(fragment) => fragment,
                Err(TranslateError::Useless { .. }) => continue,
                Err(error) => panic!("{}: {error}", path.display()),
            };
            translated += u64::from(fragment.parts().guest_instructions);
            let stops = fragment.parts().exits.iter().filter(|e| e.kind == ExitKind::Unsupported);
            for exit in stops {
                let mut code = [0; 15];
                let length = image.read_code(exit.user_ip, &mut code);
                let judgement = judge(&code[..length], exit.user_ip, options.cpu);
                if judgement.outcome() == Outcome::Translated {
                    let form = (judgement.form(), format!("{:?}", exit.reason));
                    *refused.entry(form).or_default() += 1;
                }
            }
        }
    }
    println!("{} programs, {translated} instructions translated", programs.len());
    assert!(refused.is_empty(), "allowed, but refused where it was lowered: {refused:#?}");
}
