//! Each planted bug accepts what its rule refuses, and only that.

use super::*;
use crate::verifier::PlantedBug;

#[test]
fn only_the_planted_rule_is_left_out() {
    let cases = [
        (
            PlantedBug::SkipConfinement,
            Rule::Confinement,
            parts(|b| {
                b.faulting()?;
                b.a.mov(rax, qword_ptr(rbx))
            }),
        ),
        (
            PlantedBug::TrustIndex,
            Rule::Index,
            parts(|b| {
                b.confine(rbx)?;
                b.faulting()?;
                b.a.mov(rax, qword_ptr(rbx + rcx))
            }),
        ),
        (PlantedBug::SkipFixup, Rule::Fixup, parts(|b| b.a.div(rcx))),
        (
            PlantedBug::SkipSlotRead,
            Rule::SlotRead,
            parts(|b| b.a.mov(rax, qword_ptr(rsp + spill(0)))),
        ),
    ];
    for (bug, _, _) in &cases {
        for (fits, rule, parts) in &cases {
            let policy = Policy::new(Features::all()).without(*bug);
            let found = verify(Fragment::new(parts.clone()), &policy).err().map(|e| e.rule);
            assert_eq!(found, (bug != fits).then_some(*rule), "{bug:?}");
        }
    }
}
