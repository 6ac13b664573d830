//! What the supervisor remembers about one address space.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use ub_report::symbols::Mappings;
use ub_translator::Predictions;
use ub_translator::fragment::{Exit, ExitKind, Parts};

use super::code::CodeCache;
use super::pipeline::Reach;

/// Targets remembered for one indirect branch; a site with more is not
/// predictable and the module's table serves it.
const TARGETS_PER_SITE: usize = 16;
/// Indirect branches remembered in one address space.
const SITES: usize = 4096;
/// Instructions remembered in one address space as run.
const EXECUTED: usize = 1 << 16;
/// Gaps remembered in one address space.
const GAPS: usize = 4096;
/// Instructions remembered in one address space at which a guard's assumption
/// does not hold.
const GUARDS: usize = 4096;
/// Addresses remembered as not translatable in one address space.
const USELESS: usize = 1 << 16;
/// Reports that an installed entry is missing before it is believed.
const REPEATS: u32 = 3;
/// Times one entry is translated again for better predictions: a branch with
/// ever new targets must not keep the supervisor busy.
const REBUILDS: u32 = 6;
/// Passages of an indirect edge from which on a fragment that is left there is
/// translated again to predict it, the first time; each time it takes four
/// times as many. Until then, and for edges that never get there, going to
/// the target's own fragment by a link is cheap enough.
pub(super) const HOT_EDGE: u64 = 12;

/// Memory of one address space. Every part of it is bounded.
#[derive(Debug, Default)]
pub(super) struct AddressSpace {
    /// Code read while the current batch of reports is worked on.
    pub(super) code: CodeCache,
    /// Indirect branches with their latest targets, newest first.
    predicted: Predictions,
    /// Addresses at which translation is known to yield nothing.
    useless: HashSet<u64>,
    /// Of these, what the module did not let us read, for a reason that may go unseen.
    unreadable: HashSet<u64>,
    installed: HashMap<u64, Installed>,
    /// Where gaps begin.
    gaps: BTreeSet<u64>,
    /// Times that all reports made until then had been read.
    caught_up: u64,
    /// Number of the report that last concerned it.
    pub(super) last_used: u64,
    /// The first thread that a report about it named.
    pub(super) thread: Option<u32>,
    /// What was mapped when its first hot gap was reported.
    pub(super) mappings: Option<Mappings>,
    /// Something was learned of it since [`news`](Self::news).
    has_news: bool,
    /// Earlier processes of the program showed where it goes.
    has_recalled: bool,
}

#[derive(Debug)]
struct Installed {
    /// Kept for people who ask; the module has its own copy of the code.
    parts: Parts,
    /// Indirect branches that can leave it, with the targets it predicts.
    sites: BTreeMap<u64, Vec<u64>>,
    /// Instructions at which a guard can leave it.
    guards: BTreeSet<u64>,
    /// The entries of the fragments that riders go on to from it.
    ways_on: BTreeSet<u64>,
    /// Times that it was found to be left by a direct branch for code without a
    /// fragment.
    ways_found: u32,
    /// [`AddressSpace::caught_up`] when it was installed.
    since: u64,
    reach: Reach,
    repeats: u32,
    rebuilds: u32,
}

/// What is worth a translation, now that riders go on from one fragment to
/// another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Linked {
    /// The fragment that they go on to: it is worth more code than it has.
    pub(super) more: bool,
    /// The one that they leave, as it does not predict an indirect branch that
    /// leads there: how often it was translated again before. Linked branches are
    /// not counted any more, so this is the last to be heard of them.
    pub(super) rebuild: Option<u32>,
}

/// What to do about a reported address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Translate,
    AlreadyInstalled,
    KnownUseless,
}

impl AddressSpace {
    /// Remembers that the branch at `site` went to `target`.
    pub(super) fn learn(&mut self, site: u64, target: u64) {
        self.has_news = true;
        if !self.predicted.targets.contains_key(&site) && self.predicted.targets.len() >= SITES {
            self.predicted.targets.pop_first();
        }
        let targets = self.predicted.targets.entry(site).or_default();
        targets.retain(|known| *known != target);
        targets.insert(0, target);
        targets.truncate(TARGETS_PER_SITE);
    }

    /// Remembers that gaps begin at `entry`.
    pub(super) fn learn_gap(&mut self, entry: u64) {
        if self.gaps.len() < GAPS {
            self.gaps.insert(entry);
        }
    }

    /// Whether gaps begin at `entry`.
    pub(super) fn is_gap(&self, entry: u64) -> bool {
        self.gaps.contains(&entry)
    }

    /// Remembers that riders go on from the fragment at `from` to that at `to`.
    pub(super) fn learn_link(&mut self, from: u64, to: u64) -> Linked {
        let Some(known) = self.installed.get_mut(&from).filter(|known| known.reach == Reach::Far)
        else {
            return Linked::default();
        };
        known.ways_on.insert(to);
        let targets = &self.predicted.targets;
        let is_news = |(site, known): (&u64, &Vec<u64>)| {
            !known.contains(&to) && targets.get(site).is_some_and(|targets| targets.contains(&to))
        };
        let rebuild = known.rebuilds < REBUILDS && known.sites.iter().any(is_news);
        let rebuild = rebuild.then_some(known.rebuilds);
        Linked { more: self.may_have_more(to), rebuild }
    }

    /// Remembers that what a fragment assumes of the instruction at `address`
    /// does not hold. The entries to translate again, if this is news, with how
    /// often they were before.
    pub(super) fn learn_guard(&mut self, address: u64) -> Vec<(u64, u32)> {
        let known = &mut self.predicted.wide_indexes;
        if known.len() >= GUARDS || !known.insert(address) {
            return Vec::new();
        }
        self.has_news = true;
        self.installed
            .iter()
            .filter(|(_, known)| known.guards.contains(&address))
            .map(|(entry, known)| (*entry, known.rebuilds))
            .collect()
    }

    /// Whether something was learned of it since [`news`](Self::news).
    pub(super) fn has_news(&self) -> bool {
        self.has_news
    }

    /// What was learned of it.
    pub(super) fn news(&mut self) -> &Predictions {
        self.has_news = false;
        &self.predicted
    }

    /// Takes over what is known of the program that runs in it.
    pub(super) fn recall(&mut self, known: Predictions) {
        let Predictions { targets, executed, wide_indexes, .. } = known;
        self.has_recalled = !executed.is_empty();
        let room = EXECUTED.saturating_sub(self.predicted.executed.len());
        self.predicted.executed.extend(executed.into_iter().take(room));
        let room = GUARDS.saturating_sub(self.predicted.wide_indexes.len());
        self.predicted.wide_indexes.extend(wide_indexes.into_iter().take(room));
        for (site, targets) in targets {
            if self.predicted.targets.len() < SITES {
                self.predicted.targets.entry(site).or_insert(targets);
            }
        }
    }

    /// The code cache, and what was learned in the form the translator takes.
    pub(super) fn for_translation(&mut self) -> (&mut CodeCache, &Predictions) {
        (&mut self.code, &self.predicted)
    }

    /// Whether a report that `address` lacks a fragment is worth a translation.
    pub(super) fn decide(&mut self, address: u64) -> Decision {
        if self.useless.contains(&address) {
            if !self.unreadable.remove(&address) {
                return Decision::KnownUseless;
            }
            self.useless.remove(&address);
        }
        match self.installed.get_mut(&address) {
            None => Decision::Translate,
            // The report may have been made before the fragment was installed.
            Some(installed) if installed.since == self.caught_up => Decision::AlreadyInstalled,
            Some(installed) if installed.repeats < REPEATS => {
                installed.repeats += 1;
                Decision::AlreadyInstalled
            }
            Some(_) => {
                self.gone(address);
                Decision::Translate
            }
        }
    }

    /// How much code the fragment at `entry`, which was translated before, is
    /// to be made of now.
    pub(super) fn reach(&self, entry: u64) -> Reach {
        if self.is_worth_more(entry) {
            return Reach::Far;
        }
        self.installed.get(&entry).map_or(Reach::Near, |known| known.reach)
    }

    /// How much code the first fragment at `entry` is to be made of: where gaps
    /// begin and an earlier process of the program went, nothing is to be found
    /// out. What fragments are left for is a way that was not known, and where it
    /// joins the known ones, all that follows is part of others.
    pub(super) fn first_reach(&self, entry: u64) -> Reach {
        let is_known = self.has_recalled && self.predicted.executed.contains(&entry);
        if is_known && self.is_gap(entry) { Reach::Far } else { Reach::Near }
    }

    /// Whether gaps begin at `entry`, or fragments with much code go on there.
    pub(super) fn is_worth_more(&self, entry: u64) -> bool {
        let goes_on = |known: &Installed| known.ways_on.contains(&entry);
        self.gaps.contains(&entry) || self.installed.values().any(goes_on)
    }

    /// Remembers the fragment of `parts`, made with the present predictions.
    /// True if it is worth more code than it has.
    pub(super) fn installed(&mut self, parts: &Parts, reach: Reach) -> bool {
        let rebuilds = self.installed.get(&parts.entry).map_or(0, |known| known.rebuilds + 1);
        let sites = parts
            .exits
            .iter()
            .filter(|exit| exit.kind == ExitKind::Indirect)
            .map(|exit| (exit.user_ip, self.predicted.targets.get(&exit.user_ip).cloned()))
            .map(|(site, targets)| (site, targets.unwrap_or_default()))
            .collect();
        let guards = parts
            .exits
            .iter()
            .filter(|exit| exit.kind == ExitKind::Guard)
            .map(|exit| exit.user_ip)
            .collect();
        self.predicted.entries.insert(parts.entry);
        // Straight on from where programs were seen to go.
        if reach == Reach::Near && self.predicted.executed.len() < EXECUTED {
            self.has_news = true;
            self.predicted.executed.extend(parts.map.iter().map(|(address, _)| *address));
            self.predicted.executed.extend(stops(parts));
        }
        let installed = Installed {
            parts: parts.clone(),
            sites,
            guards,
            ways_on: BTreeSet::new(),
            ways_found: 0,
            since: self.caught_up,
            reach,
            repeats: 0,
            rebuilds,
        };
        self.installed.insert(parts.entry, installed);
        self.may_have_more(parts.entry)
    }

    /// Whether there is a fragment at `entry` that is worth more code than it has,
    /// and a translation of it was not refused so far.
    fn may_have_more(&self, entry: u64) -> bool {
        let known = self.installed.get(&entry);
        known.is_some_and(|known| known.reach == Reach::Near && leads_on(&known.parts))
            && !self.is_useless(entry)
            && self.is_worth_more(entry)
    }

    /// Remembers that fragments are left for `target`, which has none. Entries of
    /// those with much code from which a direct branch leads there and that are to
    /// be translated again, with how often they were before: each time more
    /// such ways must be found, as the first are those that are gone most.
    pub(super) fn leading_to(&mut self, target: u64) -> Vec<(u64, u32)> {
        let mut rebuild = Vec::new();
        for (entry, known) in &mut self.installed {
            if known.reach == Reach::Far
                && known.rebuilds < REBUILDS
                && direct_exits(&known.parts).any(|exit| exit == target)
            {
                known.ways_found += 1;
                if known.ways_found >= 1 << known.rebuilds {
                    rebuild.push((*entry, known.rebuilds));
                }
            }
        }
        rebuild
    }

    /// No report is waiting: those to come were made later than this.
    pub(super) fn caught_up(&mut self) {
        self.caught_up += 1;
    }

    /// Entries of fragments that are left at the branch `site` for `target`
    /// because they do not predict it, and for which `count` passages are
    /// enough to translate them again; with how often this was done before.
    pub(super) fn unpredicting(&self, site: u64, target: u64, count: u64) -> Vec<(u64, u32)> {
        self.installed
            .iter()
            .filter(|(_, known)| {
                known.rebuilds < REBUILDS
                    && count >= HOT_EDGE << (2 * known.rebuilds)
                    && known.sites.get(&site).is_some_and(|targets| !targets.contains(&target))
            })
            .map(|(entry, known)| (*entry, known.rebuilds))
            .collect()
    }

    /// Whether a fragment for `entry` was installed and not seen to go.
    pub(super) fn has(&self, entry: u64) -> bool {
        self.installed.contains_key(&entry)
    }

    /// The fragment for `entry` was retired because it does not pay.
    pub(super) fn retired(&mut self, entry: u64) {
        self.gone(entry);
    }

    fn gone(&mut self, entry: u64) {
        self.installed.remove(&entry);
        self.predicted.entries.remove(&entry);
    }

    /// Whether nothing can be made of the code at `address`.
    pub(super) fn is_useless(&self, address: u64) -> bool {
        self.useless.contains(&address)
    }

    /// The fragment that stands for `address`, or else the smallest that was
    /// made from code around it.
    pub(super) fn fragment(&self, address: u64) -> Option<&Parts> {
        let contains =
            |known: &&Installed| known.parts.sources.iter().any(|range| range.contains(&address));
        self.installed
            .get(&address)
            .or_else(|| {
                let around = self.installed.values().filter(contains);
                around.min_by_key(|known| (known.parts.code.len(), known.parts.entry))
            })
            .map(|known| &known.parts)
    }

    /// Remembers that nothing can be made of the code at `address`.
    pub(super) fn mark_useless(&mut self, address: u64) {
        if self.useless.len() >= USELESS {
            self.useless.clear();
            self.unreadable.clear();
        }
        self.useless.insert(address);
    }

    /// The same for now: nobody tells when code that can be written unseen is replaced by
    /// code that cannot, so the next report is worth another look. Reports of an
    /// address become rare.
    pub(super) fn mark_unreadable(&mut self, address: u64) {
        self.mark_useless(address);
        self.unreadable.insert(address);
    }

    /// The fragment for `entry` is gone, though its code is what it was. It is
    /// translated again when the module says that it is missing.
    pub(super) fn evicted(&mut self, entry: u64) {
        self.gone(entry);
    }

    /// Any code may have changed and any fragment may have gone. What was learned of
    /// where programs go stays: it is never taken for granted.
    pub(super) fn doubt(&mut self) {
        self.code.clear();
        self.useless.clear();
        self.unreadable.clear();
        self.installed.clear();
        self.predicted.entries.clear();
    }

    /// The code in `range` changed: what was known about it is void.
    pub(super) fn forget(&mut self, range: Range<u64>) {
        self.code.clear();
        self.useless.retain(|address| !range.contains(address));
        self.unreadable.retain(|address| !range.contains(address));
        self.installed.retain(|entry, installed| {
            let touched = installed
                .parts
                .sources
                .iter()
                .any(|source| source.start < range.end && range.start < source.end);
            let stays = !touched && !range.contains(entry);
            if !stays {
                self.predicted.entries.remove(entry);
            }
            stays
        });
        self.gaps.retain(|entry| !range.contains(entry));
        self.predicted.executed.retain(|address| !range.contains(address));
        self.predicted.wide_indexes.retain(|address| !range.contains(address));
        self.predicted.targets.retain(|site, targets| {
            targets.retain(|target| !range.contains(target));
            !range.contains(site) && !targets.is_empty()
        });
    }
}

/// Whether the fragment of `parts` leaves out code that control can go to.
fn leads_on(parts: &Parts) -> bool {
    parts.exits.iter().any(|exit| matches!(exit.kind, ExitKind::Branch | ExitKind::Indirect))
}

/// The instructions that end the ways through the fragment of `parts` and are
/// not translated. Left out like what is not run, they would need a fragment of
/// their own, and a link to it on each way to a system call.
fn stops(parts: &Parts) -> impl Iterator<Item = u64> {
    let stop = |exit: &&Exit| matches!(exit.kind, ExitKind::Syscall | ExitKind::Unsupported);
    parts.exits.iter().filter(stop).map(|exit| exit.user_ip)
}

/// Where direct branches leave the fragment of `parts`.
fn direct_exits(parts: &Parts) -> impl Iterator<Item = u64> {
    parts.exits.iter().filter(|exit| exit.kind == ExitKind::Branch).map(|exit| exit.user_ip)
}
