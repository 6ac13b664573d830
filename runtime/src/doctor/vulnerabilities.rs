//! The mitigation policy: what becomes of the kernel's defence against each
//! weakness of processors when user code runs in ring 0.
//!
//! SECURITY.md shows this table; a test keeps the two the same.

use std::collections::BTreeMap;

use serde::Serialize;

/// The policy for one file below `/sys/devices/system/cpu/vulnerabilities`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Name of the file.
    pub name: &'static str,
    /// What is done before the first and each further fragment of a ride.
    pub entry: &'static str,
    /// What is done around a system call that is made in a ride.
    pub calls: &'static str,
    /// What is done when a fragment is left.
    pub exit: &'static str,
    /// When there are no rides on the machine, or for the moment.
    pub refused: &'static str,
}

/// Nothing has to be done there.
const NOTHING: &str = "nothing";
/// It never is.
const NEVER: &str = "never";
/// The same code runs as in a call from user mode.
const AS_NATIVE: &str = "as in any call";
const VERW: &str =
    "VERW, where the kernel does so before user mode; then interrupts wait for its end";
const VERW_AFTER_CALL: &str = "before the next fragment";
const VERW_POLICY: Policy =
    Policy { name: "", entry: VERW, calls: VERW_AFTER_CALL, exit: NOTHING, refused: NEVER };

const fn verw(name: &'static str) -> Policy {
    Policy { name, ..VERW_POLICY }
}

/// Handled by microcode, page tables or the hypervisor, whoever runs.
const fn elsewhere(name: &'static str) -> Policy {
    Policy { name, entry: NOTHING, calls: AS_NATIVE, exit: NOTHING, refused: NEVER }
}

/// The table, by name.
pub const POLICIES: [Policy; 17] = [
    elsewhere("gather_data_sampling"),
    Policy {
        name: "indirect_target_selection",
        entry: "the kernel's thunk for the one indirect jump; fragments have none",
        calls: AS_NATIVE,
        exit: "the kernel's return thunk",
        refused: NEVER,
    },
    elsewhere("itlb_multihit"),
    elsewhere("l1tf"),
    verw("mds"),
    Policy {
        name: "meltdown",
        entry: "kernel page tables stay; every address is masked as data into the user half",
        calls: "nothing",
        exit: NOTHING,
        refused: "without SMAP",
    },
    verw("mmio_stale_data"),
    verw("reg_file_data_sampling"),
    Policy {
        name: "retbleed",
        entry: "fragments have no return",
        calls: AS_NATIVE,
        exit: NOTHING,
        refused: "where the kernel does anything about it on entry: IBRS, call depth tracking, untrained returns, IBPB",
    },
    Policy {
        name: "spec_rstack_overflow",
        entry: "fragments have no return",
        calls: AS_NATIVE,
        exit: NOTHING,
        refused: "where the kernel untrains returns (safe RET) or uses IBPB on entry",
    },
    Policy {
        name: "spec_store_bypass",
        entry: "nothing; no address relies on what was stored before",
        calls: AS_NATIVE,
        exit: NOTHING,
        refused: NEVER,
    },
    Policy {
        name: "spectre_v1",
        entry: "masks are data, never a branch; the stack pointer is masked too",
        calls: "the number is clamped as data",
        exit: "exit numbers are clamped as data",
        refused: NEVER,
    },
    Policy {
        name: "spectre_v2",
        entry: "retpoline, where the kernel uses them; fragments have no indirect branch",
        calls: AS_NATIVE,
        exit: "branch history cleared, where the kernel does so on entry",
        refused: "where the kernel uses legacy IBRS or hides branch history by BHI_DIS_S",
    },
    elsewhere("srbds"),
    verw("tsa"),
    verw("tsx_async_abort"),
    Policy {
        name: "vmscape",
        entry: NOTHING,
        calls: AS_NATIVE,
        exit: NOTHING,
        refused: "for the moment, while an IBPB before user mode is due",
    },
];

/// The policy on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vulnerability {
    /// Name of the kernel's file.
    pub name: String,
    /// What the kernel says.
    pub state: String,
    /// What is done, if the machine is affected; `None` if this program knows
    /// nothing of it.
    pub policy: Option<Policy>,
}

impl Vulnerability {
    /// Whether the kernel says that the processor has it.
    #[must_use]
    pub fn affects(&self) -> bool {
        self.state != "Not affected"
    }
}

/// What the kernel says, each with the policy for it.
#[must_use]
pub fn on_machine(mitigations: &BTreeMap<String, String>) -> Vec<Vulnerability> {
    mitigations
        .iter()
        .map(|(name, state)| Vulnerability {
            name: name.clone(),
            state: state.clone(),
            policy: POLICIES.iter().copied().find(|policy| policy.name == name),
        })
        .collect()
}

/// What affects the processor and was unknown when this program was made: nobody
/// can say whether a ride needs something for it, so there are none.
#[must_use]
pub fn without_policy(mitigations: &BTreeMap<String, String>) -> Vec<String> {
    let known = on_machine(mitigations);
    let unknown = known.into_iter().filter(|found| found.affects() && found.policy.is_none());
    unknown.map(|found| found.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as SECURITY.md has it.
    fn document() -> String {
        let mut text = String::from(
            "| vulnerability | before a fragment | around a call in a ride | after a fragment | no rides |\n|---|---|---|---|---|\n",
        );
        for policy in POLICIES {
            let Policy { name, entry, calls, exit, refused } = policy;
            text += &format!("| `{name}` | {entry} | {calls} | {exit} | {refused} |\n");
        }
        text
    }

    #[test]
    fn the_document_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../SECURITY.md");
        let text = std::fs::read_to_string(path).unwrap();
        let expected = document();
        assert!(text.contains(&expected), "put this into SECURITY.md:\n{expected}");
    }

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(POLICIES.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn what_is_unknown_and_affects_the_processor_has_no_policy() {
        let machine = BTreeMap::from([
            ("mds".to_owned(), "Mitigation: Clear CPU buffers".to_owned()),
            ("new_one".to_owned(), "Vulnerable".to_owned()),
            ("newer_one".to_owned(), "Not affected".to_owned()),
            ("srbds".to_owned(), "Not affected".to_owned()),
        ]);
        assert_eq!(without_policy(&machine), ["new_one"]);
        let found = on_machine(&machine);
        assert_eq!(found[0].policy.map(|policy| policy.entry), Some(VERW));
        assert!(found[1].affects() && found[1].policy.is_none());
        assert!(!found[2].affects() && found[2].policy.is_none());
    }
}
