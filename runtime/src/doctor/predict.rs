//! Which of the module's refusals and actions to expect, from what the kernel
//! tells about its mitigations. The texts are those of
//! `arch/x86/kernel/cpu/bugs.c`.

use std::collections::BTreeMap;

use crate::abi::{Action, Refusal};
use crate::host::CpuInfo;

/// What this machine tells; gathered by [`Diagnosis::make`](super::Diagnosis::make) or by a test.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The processor.
    pub cpu: CpuInfo,
    /// Vulnerabilities by name.
    pub mitigations: BTreeMap<String, String>,
    /// `/sys/hypervisor/guest_type`, on Xen.
    pub xen_guest_type: Option<String>,
}

impl Facts {
    fn said(&self, vulnerability: &str) -> &str {
        self.mitigations.get(vulnerability).map_or("", String::as_str)
    }

    /// Whether the module is expected to refuse for this reason.
    #[must_use]
    pub fn expects(&self, refusal: Refusal) -> bool {
        let retbleed = self.said("retbleed");
        let spectre_v2 = self.said("spectre_v2");
        match refusal {
            Refusal::LegacyIbrs => {
                retbleed.starts_with("Mitigation: IBRS")
                    || spectre_v2.starts_with("Mitigation: IBRS")
            }
            Refusal::BranchHistory => spectre_v2.contains("BHI: BHI_DIS_S"),
            Refusal::CallDepth => retbleed.contains("Stuffing"),
            Refusal::XenPv => self.xen_guest_type.as_deref() == Some("PV"),
            Refusal::NoSmap => !self.cpu.has("smap"),
            Refusal::NoFsgsbase => !self.cpu.has("fsgsbase"),
            Refusal::Divider => self.cpu.bugs.iter().any(|bug| bug == "div0"),
            Refusal::UntrainedReturns => {
                self.expects_action(Action::Untrain) || self.expects_action(Action::Ibpb)
            }
        }
    }

    /// Whether the module is expected to do this around fragments.
    #[must_use]
    pub fn expects_action(&self, action: Action) -> bool {
        let retbleed = self.said("retbleed");
        let rstack = self.said("spec_rstack_overflow");
        match action {
            Action::ClearBuffers => {
                // Without the microcode that makes it work it is done all the same.
                let clears = |name| self.said(name).contains("Clear CPU buffers");
                ["mds", "tsx_async_abort", "mmio_stale_data", "reg_file_data_sampling"]
                    .into_iter()
                    .any(clears)
                    || (clears("tsa") && !self.said("tsa").ends_with(": VM"))
            }
            Action::ClearBranches => self.said("spectre_v2").contains("BHI: SW loop"),
            Action::Untrain => {
                // Written differently on 6.1; done without microcode as well.
                let safe_returns =
                    ["Mitigation: Safe RET", "Mitigation: safe RET", "Vulnerable: Safe RET"];
                retbleed.contains("untrained return thunk")
                    || safe_returns.iter().any(|text| rstack.starts_with(text))
            }
            Action::Ibpb => {
                retbleed.starts_with("Mitigation: IBPB")
                    || (rstack.starts_with("Mitigation: IBPB") && !rstack.contains("VMEXIT only"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(vulnerability: &str, text: &str) -> Facts {
        Facts {
            cpu: CpuInfo {
                model: String::new(),
                flags: vec!["smap".to_owned(), "fsgsbase".to_owned()],
                bugs: Vec::new(),
            },
            mitigations: BTreeMap::from([(vulnerability.to_owned(), text.to_owned())]),
            xen_guest_type: None,
        }
    }

    fn expected(facts: &Facts) -> Vec<&'static str> {
        let refusals = Refusal::ALL.iter().filter(|r| facts.expects(**r)).map(|r| r.name());
        let actions = Action::ALL.iter().filter(|a| facts.expects_action(**a)).map(|a| a.name());
        refusals.chain(actions).collect()
    }

    #[test]
    fn texts_of_the_kernel_are_understood() {
        const RETURNS: &[&str] = &["untrained_returns", "untrain"];
        let cases: [(&str, &str, &[&str]); 18] = [
            ("retbleed", "Not affected", &[]),
            ("retbleed", "Mitigation: untrained return thunk; SMT disabled", RETURNS),
            ("retbleed", "Mitigation: IBPB", &["untrained_returns", "ibpb"]),
            ("retbleed", "Mitigation: IBRS", &["legacy_ibrs"]),
            ("retbleed", "Mitigation: Enhanced IBRS", &[]),
            ("retbleed", "Mitigation: Stuffing", &["call_depth"]),
            ("spec_rstack_overflow", "Mitigation: Safe RET", RETURNS),
            ("spec_rstack_overflow", "Mitigation: safe RET, no microcode", RETURNS),
            ("spec_rstack_overflow", "Vulnerable: Safe RET, no microcode", RETURNS),
            ("spec_rstack_overflow", "Vulnerable: Microcode, no safe RET", &[]),
            ("spec_rstack_overflow", "Mitigation: IBPB on VMEXIT only", &[]),
            ("spectre_v2", "Mitigation: IBRS; IBPB: conditional", &["legacy_ibrs"]),
            (
                "spectre_v2",
                "Mitigation: Retpolines; BHI: SW loop, KVM: SW loop",
                &["clear_branches"],
            ),
            (
                "spectre_v2",
                "Mitigation: Enhanced / Automatic IBRS; BHI: BHI_DIS_S",
                &["branch_history"],
            ),
            ("mds", "Mitigation: Clear CPU buffers; SMT vulnerable", &["clear_buffers"]),
            (
                "mds",
                "Vulnerable: Clear CPU buffers attempted, no microcode; SMT disabled",
                &["clear_buffers"],
            ),
            ("tsa", "Mitigation: Clear CPU buffers: user/kernel boundary", &["clear_buffers"]),
            ("tsa", "Mitigation: Clear CPU buffers: VM", &[]),
        ];
        for (name, text, names) in cases {
            assert_eq!(expected(&facts(name, text)), names, "{name}: {text}");
        }
    }

    #[test]
    fn missing_features_and_xen_are_seen() {
        let mut facts = facts("mds", "Not affected");
        facts.cpu.flags.clear();
        facts.cpu.bugs.push("div0".to_owned());
        facts.xen_guest_type = Some("PV".to_owned());
        assert_eq!(expected(&facts), ["xen_pv", "no_smap", "no_fsgsbase", "divider"]);
    }
}
