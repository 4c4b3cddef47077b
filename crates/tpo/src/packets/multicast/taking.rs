//! Of which groups that peers ask for this host becomes a member, and when it leaves them. Pure:
//! told what is asked for and what time it is.
//!
//! A change of what peers ask for costs as much as truly differs, and that at a bounded rate. A
//! group that no peer asks for is kept for `LINGER`. Each peer may have `BURST` new ones at
//! once and then `PER_SECOND`. Of what may be taken in all, each peer that asks has an equal part
//! at least.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::table::peers::PeerId;

/// Groups that are taken from the LANs at a time: what the kernel's sets hold, and some fifty
/// sockets on each LAN.
pub(crate) const MOST_TAKEN: usize = 1_024;
/// How long, 10 s, a group stays that no peer asks for: a peer that asks again has it at once, and
/// alternating messages change nothing.
const LINGER: Duration = Duration::from_secs(10);
/// New groups of one peer at once, 256, and then in each second, 32: all that there may be within
/// half a minute.
const BURST: f64 = 256.0;
const PER_SECOND: f64 = 32.0;

/// A group that is taken.
#[derive(Debug)]
struct Taken {
    /// On whose account.
    by: PeerId,
    /// Since when no peer asks for it.
    unasked: Option<Instant>,
}

/// New groups that a peer may have now.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

/// What is taken.
#[derive(Debug, Default)]
pub(crate) struct Taking {
    taken: BTreeMap<IpAddr, Taken>,
    allowances: HashMap<PeerId, Allowance>,
    /// Groups that were asked for in vain, by a turn each: too many, or too many new ones.
    pub(crate) refused: u64,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Groups to become a member of.
    pub(crate) join: Vec<IpAddr>,
    /// Groups to leave.
    pub(crate) leave: Vec<IpAddr>,
}

impl Taking {
    /// Every group that is taken.
    pub(crate) fn groups(&self) -> impl Iterator<Item = IpAddr> {
        self.taken.keys().copied()
    }

    /// Whether this one is.
    pub(crate) fn contains(&self, group: IpAddr) -> bool {
        self.taken.contains_key(&group)
    }

    /// The groups that may be taken and are asked for, with the peers that ask.
    pub(crate) fn turn(&mut self, asked: &BTreeMap<IpAddr, Vec<PeerId>>, now: Instant) -> Changes {
        let mut changes = Changes::default();
        let mut counts: HashMap<PeerId, usize> =
            asked.values().flatten().map(|peer| (*peer, 0)).collect();
        for (group, taken) in &mut self.taken {
            match asked.get(group).filter(|peers| !peers.is_empty()) {
                Some(peers) => {
                    taken.unasked = None;
                    if !peers.contains(&taken.by) {
                        taken.by = peers[0];
                    }
                    *counts.entry(taken.by).or_default() += 1;
                }
                None => drop(taken.unasked.get_or_insert(now)),
            }
        }
        let is_over = |taken: &Taken| {
            taken
                .unasked
                .is_some_and(|since| now.saturating_duration_since(since) >= LINGER)
        };
        self.taken.retain(|group, taken| {
            let goes = is_over(taken);
            changes.leave.extend(goes.then_some(*group));
            !goes
        });
        let share = MOST_TAKEN / counts.len().max(1);
        for (group, peers) in asked {
            if self.taken.contains_key(group) {
                continue;
            }
            // On the account of the asker that has the fewest.
            let Some(by) = peers.iter().copied().min_by_key(|peer| counts[peer]) else {
                continue;
            };
            if counts[&by] >= share
                || !self.allow(by, now)
                || !self.make_room(share, &mut counts, &mut changes)
            {
                self.refused += 1;
                continue;
            }
            *counts.entry(by).or_default() += 1;
            self.taken.insert(*group, Taken { by, unasked: None });
            changes.join.push(*group);
        }
        changes
    }

    /// Whether this peer may have another new group now.
    fn allow(&mut self, peer: PeerId, now: Instant) -> bool {
        let allowance = self.allowances.entry(peer).or_insert(Allowance {
            left: BURST,
            at: now,
        });
        let passed = now.saturating_duration_since(allowance.at).as_secs_f64();
        (allowance.left, allowance.at) = ((allowance.left + passed * PER_SECOND).min(BURST), now);
        let may = allowance.left >= 1.0;
        allowance.left -= f64::from(u8::from(may));
        may
    }

    /// Whether there is room for another: what lingers goes first, then what is beyond its peer's
    /// share.
    fn make_room(
        &mut self,
        share: usize,
        counts: &mut HashMap<PeerId, usize>,
        changes: &mut Changes,
    ) -> bool {
        if self.taken.len() < MOST_TAKEN {
            return true;
        }
        let lingers = self
            .taken
            .iter()
            .find(|(_, taken)| taken.unasked.is_some())
            .map(|(group, _)| *group);
        let beyond = || {
            self.taken
                .iter()
                .find(|(_, taken)| counts.get(&taken.by).is_some_and(|count| *count > share))
        };
        let Some(group) = lingers.or_else(|| beyond().map(|(group, _)| *group)) else {
            return false;
        };
        if let Some(Taken { by, unasked: None }) = self.taken.remove(&group)
            && let Some(count) = counts.get_mut(&by)
        {
            *count -= 1;
        }
        changes.leave.push(group);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(from: u32, count: u32, peers: &[usize]) -> BTreeMap<IpAddr, Vec<PeerId>> {
        let peers: Vec<_> = peers.iter().copied().map(PeerId::new).collect();
        (from..from + count)
            .map(|number| ((0xef01_0000 + number).to_be_bytes().into(), peers.clone()))
            .collect()
    }

    /// Sets of a thousand groups that alternate with each word of the peer: a rate of changes,
    /// whatever the rate of words.
    #[test]
    fn alternating_wishes_cost_a_rate_and_not_a_set_each() {
        let (mut taking, start) = (Taking::default(), Instant::now());
        let mut changes = 0;
        for turn in 0..10_000 {
            let now = start + Duration::from_millis(turn);
            let Changes { join, leave } =
                taking.turn(&groups(u32::from(turn % 2 == 0) * 5_000, 1_024, &[0]), now);
            changes += join.len() + leave.len();
        }
        assert!(
            changes <= 2 * (BURST + 10.0 * PER_SECOND) as usize,
            "{changes} changes in ten seconds"
        );
        // An honest one beside it has its own at once.
        let mut asked = groups(0, 1_024, &[0]);
        asked.extend(groups(9_000, 50, &[1]));
        let Changes { join, .. } = taking.turn(&asked, start + Duration::from_secs(10));
        assert_eq!(
            join.iter()
                .filter(|group| groups(9_000, 50, &[]).contains_key(group))
                .count(),
            50
        );
    }

    #[test]
    fn each_peer_has_its_part_and_what_nobody_wants_lingers() {
        let (mut taking, start) = (Taking::default(), Instant::now());
        let mut now = start;
        for _ in 0..60 {
            taking.turn(&groups(0, 3_000, &[0]), now);
            now += Duration::from_secs(1);
        }
        assert_eq!(taking.groups().count(), MOST_TAKEN, "alone it has all");
        let mut both = groups(0, 3_000, &[0]);
        both.extend(groups(20_000, 3_000, &[1]));
        for _ in 0..60 {
            taking.turn(&both, now);
            now += Duration::from_secs(1);
            assert!(taking.groups().count() <= MOST_TAKEN);
        }
        let second = groups(20_000, 3_000, &[]);
        assert_eq!(
            taking
                .groups()
                .filter(|group| second.contains_key(group))
                .count(),
            MOST_TAKEN / 2
        );
        assert_eq!(
            taking.turn(&BTreeMap::new(), now),
            Changes::default(),
            "it lingers"
        );
        let gone = taking.turn(&BTreeMap::new(), now + LINGER);
        assert_eq!((gone.leave.len(), taking.groups().count()), (MOST_TAKEN, 0));
    }

    #[test]
    fn who_asks_is_served_at_once_and_an_asker_that_leaves_hands_over() {
        let (mut taking, now) = (Taking::default(), Instant::now());
        let asked = groups(0, 3, &[4, 7]);
        assert_eq!(
            taking.turn(&asked, now).join,
            asked.keys().copied().collect::<Vec<_>>()
        );
        assert_eq!(taking.turn(&groups(0, 3, &[7]), now), Changes::default());
        assert!(
            taking
                .taken
                .values()
                .all(|taken| taken.by == PeerId::new(7))
        );
        assert_eq!(taking.refused, 0);
    }
}
