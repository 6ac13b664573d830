//! Translates at every function of the C library that this test runs with,
//! and has the verifier look at each fragment. No emitted shape that real
//! code leads to may be refused, and no translation may end in a bug.

mod support;

use std::collections::BTreeMap;

use support::{Functions, Image, libc_path};
use ub_translator::fragment::ExitKind;
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, TranslateError, translate};

#[test]
fn every_libc_function_translates_and_verifies() {
    let path = libc_path().expect("this test process uses a C library");
    let mut image = Image::load(&path, Functions::Exported);
    assert!(image.functions.len() > 500, "{} has too few functions to mean much", path.display());
    let options = Options { max_instructions: 128, ..Options::new(CpuFeatures::all()) };
    let policy = Policy::new(Features::all());

    let mut useless = 0;
    let mut guest = 0_u64;
    let mut bytes = 0_usize;
    let mut exits: BTreeMap<String, usize> = BTreeMap::new();
    let mut bugs = Vec::new();
    for entry in image.functions.clone() {
        match translate(entry, &mut image, &options) {
            Ok(fragment) => {
                let parts = fragment.parts();
                guest += u64::from(parts.guest_instructions);
                bytes += parts.code.len();
                for exit in &parts.exits {
                    let name = match exit.kind {
                        ExitKind::Unsupported => format!("Unsupported({:?})", exit.reason),
                        kind => format!("{kind:?}"),
                    };
                    *exits.entry(name).or_default() += 1;
                }
                if let Err(error) = verify(fragment, &policy) {
                    bugs.push(format!("{entry:#x}: {error}"));
                }
            }
            Err(TranslateError::Useless { .. }) => useless += 1,
            Err(error) => bugs.push(error.to_string()),
        }
    }
    println!(
        "{} functions, {useless} useless, {guest} instructions, {:.1} bytes each, exits {exits:?}",
        image.functions.len(),
        bytes as f64 / guest as f64,
    );
    assert!(bugs.is_empty(), "{} bugs, first: {:#?}", bugs.len(), &bugs[..bugs.len().min(10)]);
    assert!(useless * 20 < image.functions.len(), "too much is unsupported: {useless}");
}
