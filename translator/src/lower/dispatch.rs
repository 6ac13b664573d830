//! Indirect branches: the target is compared with the predicted ones.
//!
//! The user's flags are live where no prediction holds, and comparing costs
//! flags. Where the flags can be made again from what registers still hold,
//! or are in their slot, that is undone on a miss and before the targets that
//! need them, and the comparison is an ordinary one. Otherwise a few targets
//! are compared by `jrcxz`, which keeps the flags and wants `rcx`; for more,
//! the flags go to their slot.

use iced_x86::{Code, Instruction, Register};

use super::Lowerer;
use crate::emit::{Label, Section, frame as frame_field, indexed, memory};
use crate::fragment::{ExitKind, Unsupported};
use crate::frame;
use crate::graph::{BlockId, Target};
use crate::recipe::Recipe;
use crate::steps::Guest;

/// Up to this many targets are compared one after the other, the likeliest
/// first; more are searched by halves.
const LINEAR: usize = 3;
/// Up to this many targets are compared by `jrcxz`. It would reach the end of
/// four comparisons.
const BY_RCX: usize = 2;

impl Lowerer<'_, '_> {
    /// Goes to the predicted target that T equals, else leaves with T as the
    /// target.
    pub(super) fn dispatch(
        &mut self,
        guest: &Guest,
        from: BlockId,
        targets: &[Target],
        next: Option<BlockId>,
    ) {
        let exit =
            self.exits.exit(&mut self.emit, guest.ip(), ExitKind::Indirect, Unsupported::None);
        if targets.is_empty() {
            if self.maker.is_parked() {
                self.unpark();
            }
            self.emit.store(frame_field(frame::TARGET), self.displaced.t);
            self.emit.jmp(exit);
            return;
        }
        let parked = self.maker.is_parked();
        let mut maker = self.maker;
        maker.end(&self.graph.block(from).end, guest);
        let recipe = maker.recipe(self.steps).filter(|_| !parked);
        if !parked && recipe.is_none() {
            if targets.len() <= BY_RCX {
                self.compare_by_rcx(from, targets, next, exit);
                return;
            }
            self.emit.flags_to_slot();
        }
        self.compare(recipe, from, targets, next, exit);
    }

    /// With ordinary comparisons. The `recipe` makes the flags where they are
    /// needed; without one they are in their slot.
    fn compare(
        &mut self,
        recipe: Option<Recipe>,
        from: BlockId,
        targets: &[Target],
        next: Option<BlockId>,
        exit: Label,
    ) {
        let (t, u) = (self.displaced.t, self.displaced.u);
        // Several targets are told apart by their distance from one of them.
        let origin = targets.iter().map(|target| target.address).min().unwrap_or_default();
        let distance = |target: &Target| i32::try_from(target.address - origin).ok();
        let near = targets.len() > 1 && targets.iter().all(|target| distance(target).is_some());

        let former = self.emit.select(Section::Undo);
        let miss = self.emit.here();
        if near {
            self.emit.immediate(u, origin);
            self.emit.lea(t, indexed(t, u, 1, 0));
        }
        self.emit.store(frame_field(frame::TARGET), t);
        self.flags_behind_comparison(recipe);
        self.emit.jmp(exit);
        self.emit.select(former);

        if near {
            self.emit.immediate(u, origin.wrapping_neg());
            self.emit.lea(t, indexed(t, u, 1, 0));
            let mut list: Vec<(i32, Target)> =
                targets.iter().filter_map(|target| Some((distance(target)?, *target))).collect();
            if list.len() > LINEAR {
                list.sort_unstable_by_key(|&(distance, _)| distance);
                let mut found = Vec::new();
                self.search(from, &list, miss, &mut found);
                // Not aside: from there they would be backward.
                for (label, target) in found {
                    self.emit.bind(label);
                    self.flags_behind_comparison(recipe);
                    let edge = self.edge(from, target);
                    self.emit.jmp(edge);
                }
                return;
            }
            for &(distance, target) in list[1..].iter().rev() {
                self.compare_distance(distance);
                self.on_equal(from, target, recipe);
            }
            self.compare_distance(list[0].0);
        } else {
            for target in targets[1..].iter().rev() {
                self.compare_address(target.address);
                self.on_equal(from, *target, recipe);
            }
            self.compare_address(targets[0].address);
        }
        self.emit.branch(Code::Jne_rel32_64, miss);
        if self.needs_flags(targets[0]) {
            self.flags_behind_comparison(recipe);
        }
        self.go(from, targets[0], next);
    }

    fn needs_flags(&self, target: Target) -> bool {
        !self.liveness.at(target).is_empty()
    }

    /// The user's flags again; see [`Lowerer::compare`].
    fn flags_behind_comparison(&mut self, recipe: Option<Recipe>) {
        match recipe {
            Some(recipe) => self.remake_flags(&recipe, self.displaced.t, self.displaced.u),
            None => self.emit.flags_from_slot(),
        }
    }

    /// Goes to the target if the comparison before found it.
    fn on_equal(&mut self, from: BlockId, target: Target, recipe: Option<Recipe>) {
        if !self.needs_flags(target) {
            let label = self.edge(from, target);
            self.emit.branch(Code::Je_rel32_64, label);
            return;
        }
        let over = self.emit.label();
        self.emit.branch(Code::Jne_rel32_64, over);
        self.flags_behind_comparison(recipe);
        let label = self.edge(from, target);
        self.emit.jmp(label);
        self.emit.bind(over);
    }

    fn compare_address(&mut self, address: u64) {
        let (t, u) = (self.displaced.t, self.displaced.u);
        match i32::try_from(address) {
            Ok(address) => self.compare_distance(address),
            Err(_) => {
                self.emit.immediate(u, address);
                self.emit.push(Instruction::with2(Code::Cmp_r64_rm64, t, u).expect("cmp r,r"));
            }
        }
    }

    fn compare_distance(&mut self, distance: i32) {
        let t = self.displaced.t;
        let compare = match i8::try_from(distance) {
            Ok(_) => Instruction::with2(Code::Cmp_rm64_imm8, t, distance),
            Err(_) => Instruction::with2(Code::Cmp_rm64_imm32, t, distance),
        };
        self.emit.push(compare.expect("cmp r,imm"));
    }

    /// Finds the distance that T holds in the sorted `list`. Targets that need
    /// the flags are added to `found`, with the label to put before them.
    fn search(
        &mut self,
        from: BlockId,
        list: &[(i32, Target)],
        miss: Label,
        found: &mut Vec<(Label, Target)>,
    ) {
        let middle = list.len() / 2;
        let (distance, target) = list[middle];
        let (below, above) = (&list[..middle], &list[middle + 1..]);
        self.compare_distance(distance);
        let label = if self.needs_flags(target) {
            let label = self.emit.label();
            found.push((label, target));
            label
        } else {
            self.edge(from, target)
        };
        self.emit.branch(Code::Je_rel32_64, label);
        if below.is_empty() && above.is_empty() {
            self.emit.jmp(miss);
        } else if above.is_empty() {
            self.search(from, below, miss, found);
        } else if below.is_empty() {
            self.search(from, above, miss, found);
        } else {
            // A distance below zero is above all of them here, and no match.
            let upper = self.emit.label();
            self.emit.branch(Code::Ja_rel32_64, upper);
            self.search(from, below, miss, found);
            self.emit.bind(upper);
            self.search(from, above, miss, found);
        }
    }

    /// With `jrcxz`, which keeps the flags and reaches only a few bytes.
    fn compare_by_rcx(
        &mut self,
        from: BlockId,
        targets: &[Target],
        next: Option<BlockId>,
        exit: Label,
    ) {
        let rcx = Register::RCX;
        let former = self.emit.select(Section::Undo);
        let miss = self.emit.here();
        self.emit.mov(rcx, self.displaced.u);
        self.emit.store(frame_field(frame::TARGET), self.displaced.t);
        self.emit.jmp(exit);
        self.emit.select(former);

        self.emit.mov(self.displaced.u, rcx);
        let hits: Vec<Label> = targets.iter().map(|to| self.zero_in_rcx(to.address)).collect();
        self.emit.jmp(miss);
        // The likeliest is the last, where the next block may follow.
        for (i, (&target, hit)) in targets.iter().zip(hits).enumerate().rev() {
            self.emit.bind(hit);
            self.emit.mov(rcx, self.displaced.u);
            if i == 0 {
                self.go(from, target, next);
            } else {
                let label = self.edge(from, target);
                self.emit.jmp(label);
            }
        }
    }

    /// Branches to the new label if T is `address`; changes `rcx`.
    fn zero_in_rcx(&mut self, address: u64) -> Label {
        let (t, rcx) = (self.displaced.t, Register::RCX);
        match i32::try_from(address) {
            Ok(near) => self.emit.lea(rcx, memory(t, -i64::from(near))),
            Err(_) => {
                self.emit.immediate(rcx, address.wrapping_neg());
                self.emit.lea(rcx, indexed(t, rcx, 1, 0));
            }
        }
        let hit = self.emit.label();
        self.emit.branch(Code::Jrcxz_rel8_64, hit);
        hit
    }
}
