//! Shares: what the process has a limit of and each peer takes for its flows, descriptors and
//! connects that nobody has answered yet.
//!
//! Half of all is kept for the peers in equal parts, each peer's own whatever the others do; the
//! other half is for whoever comes first. So what others leave unused may be used, and nobody takes
//! another's part. Inside its share a peer leaves room for what our own LANs open towards it
//! ([`Marks`]).
//!
//! Taken by the gate (an accepted connection), the lanes (a connection for the peer) and transit;
//! whoever holds a [`Permit`] has it, and dropping it gives it back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::table::peers::{ByPeer, PeerId};

/// Connections that the kernel may have accepted for us before a lease that is dropped takes
/// effect: one full accept queue (`net.core.somaxconn` is 4,096 by default).
pub(crate) const ARRIVING: usize = 4_096;

/// Connects without an answer, 8,192, that all peers may have at once. Each is a socket for 31 s at
/// most: 260 dead destinations a second, without end.
pub(crate) const HALF_OPEN: usize = 8_192;
/// Nor may they be more than this part, a quarter, of the descriptors.
const HALF_OPEN_PART: usize = 4;

/// Connections that the gate accepts from one listener before the other one has its turn. It has
/// their descriptors before it has asked for a share of any.
pub(crate) const ACCEPT_TURN: usize = 64;
/// Descriptors that are not for flows. The standard ones and the log 3, TUN device, listeners and
/// their spare files 8, netlink and nft 16, the threads' polls and wakers 16, control socket with
/// its callers 21; and those just accepted, one turn of the gate.
const RESERVE: usize = 64 + ACCEPT_TURN;
/// Descriptors of each peer that are not for flows: poll, waker, timer, three handles on the poll,
/// the listening socket's handle, the connected socket and the one before it; and three that a
/// connection between two lanes takes for a moment.
const RESERVE_PER_PEER: usize = 12;
/// Descriptors of each LAN of multicast: raw and packet sockets 4, and those that hold 1,024
/// memberships, 20 each (`igmp_max_memberships`).
const RESERVE_PER_LAN: usize = 60;

/// Where in a bounded thing something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The bound: beyond it what comes is reset.
    pub(crate) most: usize,
    /// From here on the lease is dropped. What arrives until that has taken effect finds room up to
    /// the bound.
    pub(crate) high: usize,
    /// Down here it comes back.
    pub(crate) low: usize,
    /// From here on nothing more is opened for the peer: what it opens does not cost our own LANs
    /// the lease.
    pub(crate) far: usize,
}

impl Marks {
    /// Those of a bound.
    pub(crate) fn of(most: usize) -> Marks {
        let room = ARRIVING.min(most / 4);
        let high = most - room;
        Marks {
            most,
            high,
            low: high - room / 2,
            far: high - room,
        }
    }

    /// Those of memory: a connection that has just arrived holds nothing yet, so an eighth is
    /// enough for what is under way to those that are here.
    pub(crate) fn of_memory(budget: usize) -> Marks {
        Marks {
            most: budget,
            high: budget / 8 * 7,
            low: budget / 4 * 3,
            far: budget,
        }
    }

    /// Those of something that is or is not.
    pub(crate) const YES_OR_NO: Marks = Marks {
        most: 1,
        high: 1,
        low: 1,
        far: 1,
    };
}

/// Who opens a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    /// An application of our LANs.
    Near,
    /// The peer.
    Far,
}

#[derive(Debug)]
struct Ledger {
    /// Kept for each peer.
    own: usize,
    /// For whoever comes first.
    common: usize,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    by_peer: ByPeer<usize>,
    /// What peers use beyond what is their own.
    common: usize,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Used> {
        // Nothing in here panics between two changes.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn level(&self, used: &Used, peer: PeerId) -> (usize, usize) {
        let mine = used.by_peer[peer];
        (mine, self.own.max(mine) + (self.common - used.common))
    }
}

/// One peer's share of something.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    ledger: Arc<Ledger>,
    peer: PeerId,
}

impl Share {
    /// The shares of all peers.
    pub(crate) fn of_all(total: usize, peers: usize) -> ByPeer<Share> {
        let own = total / 2 / peers.max(1);
        let used = Mutex::new(Used {
            by_peer: ByPeer::new(peers, |_| 0),
            common: 0,
        });
        let ledger = Arc::new(Ledger {
            own,
            common: total - own * peers,
            used,
        });
        ByPeer::new(peers, |peer| Share {
            ledger: ledger.clone(),
            peer,
        })
    }

    /// Takes one, if there is room for a flow of this opener.
    pub(crate) fn take(&self, opener: Opener) -> Option<Permit> {
        let mut used = self.ledger.lock();
        let (mine, most) = self.ledger.level(&used, self.peer);
        let limit = match opener {
            Opener::Near => most,
            Opener::Far => Marks::of(most).far,
        };
        if mine >= limit {
            return None;
        }
        used.by_peer[self.peer] += 1;
        used.common += usize::from(mine >= self.ledger.own);
        Some(Permit {
            share: self.clone(),
        })
    }

    /// How many are used, and how many the peer may use while the others use what they do.
    pub(crate) fn level(&self) -> (usize, usize) {
        self.ledger.level(&self.ledger.lock(), self.peer)
    }

    fn give_back(&self) {
        let mut used = self.ledger.lock();
        used.by_peer[self.peer] -= 1;
        used.common -= usize::from(used.by_peer[self.peer] >= self.ledger.own);
    }
}

/// One of a peer's share. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit {
    share: Share,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.share.give_back();
    }
}

/// What one lane takes from.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    /// One for each connection.
    pub(crate) descriptors: Share,
    /// One for each connect without an answer.
    pub(crate) half_open: Share,
}

impl Shares {
    /// Those of all lanes, of a process with this limit of open files; `lans`: where multicast is
    /// carried.
    pub(crate) fn of_lanes(limit: usize, peers: usize, lans: usize) -> ByPeer<Shares> {
        let flows =
            limit.saturating_sub(RESERVE + peers * RESERVE_PER_PEER + lans * RESERVE_PER_LAN);
        let half_open = HALF_OPEN.min(flows / HALF_OPEN_PART);
        let both = Share::of_all(flows, peers)
            .into_iter()
            .zip(Share::of_all(half_open, peers));
        both.map(|(descriptors, half_open)| Shares {
            descriptors,
            half_open,
        })
        .collect()
    }
}

/// What there is no room of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Lack {
    /// As many flows are open as may be.
    Flows = 1,
    /// What flows hold is near to what they may.
    Memory = 2,
    /// The peer's share of the descriptors.
    Descriptors = 3,
    /// Connections wait for the lane.
    Queue = 4,
    /// The far TPO has refused for lack of room.
    FarSide = 5,
}

impl Lack {
    /// As a number that two threads may share; zero is for none.
    pub(crate) fn from_number(number: u8) -> Option<Lack> {
        let all = [
            Lack::Flows,
            Lack::Memory,
            Lack::Descriptors,
            Lack::Queue,
            Lack::FarSide,
        ];
        all.into_iter().find(|lack| *lack as u8 == number)
    }

    /// For the log and the status.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Lack::Flows => "no room: as many flows are open as the peer may have",
            Lack::Memory => "no room: its flows hold nearly as much memory as they may",
            Lack::Descriptors => {
                "no room: its flows use nearly its whole share of the file descriptors"
            }
            Lack::Queue => "no room: connections wait for its lane",
            Lack::FarSide => "no room at the far TPO: it has refused flows for lack of it",
        }
    }
}

/// How far something is used, and where its marks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    /// What it is.
    pub(crate) lack: Lack,
    /// How much of it is used.
    pub(crate) used: usize,
    /// Its marks.
    pub(crate) marks: Marks,
}

/// Whether there is room for new connections to one peer: none from a high mark on, until all is
/// down at its low one.
#[derive(Debug, Default)]
pub(crate) struct Room {
    lack: Option<Lack>,
}

impl Room {
    /// What there is no room of, by the levels of now.
    pub(crate) fn update(&mut self, levels: &[Level]) -> Option<Lack> {
        let over = |mark: fn(&Marks) -> usize| {
            levels.iter().find(|level| level.used >= mark(&level.marks))
        };
        let found = match self.lack {
            None => over(|marks| marks.high),
            Some(_) => over(|marks| marks.low),
        };
        // The first reason stays while it is one: the one behind it is its consequence, mostly.
        let stays = self.lack.filter(|lack| {
            levels
                .iter()
                .any(|l| l.lack == *lack && l.used >= l.marks.low)
        });
        self.lack = stays.or(found.map(|level| level.lack));
        self.lack
    }
}

/// Whether the far TPO is full, by what it has refused: nobody says when it no longer is, so it is
/// tried again, after longer and longer times.
#[derive(Debug)]
pub(crate) struct FarRoom {
    refused: u64,
    until: Option<Instant>,
    wait: Duration,
}

impl FarRoom {
    /// The first wait: each try costs its application a reset, the time between them lets flows go
    /// unaccelerated.
    pub(crate) const FIRST: Duration = Duration::from_secs(1);
    /// The longest wait.
    pub(crate) const LONGEST: Duration = Duration::from_secs(32);

    /// Nothing has been refused.
    pub(crate) fn new() -> FarRoom {
        FarRoom {
            refused: 0,
            until: None,
            wait: FarRoom::FIRST,
        }
    }

    /// Whether it is full, by how many of our flows it has refused so far.
    pub(crate) fn is_full(&mut self, refused: u64, now: Instant) -> bool {
        let refused_again = refused > self.refused;
        self.refused = refused;
        match self.until {
            // Those that were under way when the first was refused.
            Some(until) if now < until => return true,
            // Refused again as soon as it was tried, or after a time without.
            Some(until) if refused_again && now < until + self.wait => {
                self.wait = (2 * self.wait).min(FarRoom::LONGEST)
            }
            _ if refused_again => self.wait = FarRoom::FIRST,
            _ => return false,
        }
        self.until = Some(now + self.wait);
        true
    }
}

impl Default for FarRoom {
    fn default() -> FarRoom {
        FarRoom::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(share: &Share, opener: Opener, wanted: usize) -> Vec<Permit> {
        (0..wanted).map_while(|_| share.take(opener)).collect()
    }

    #[test]
    fn nobody_takes_anothers_part() {
        let shares = Share::of_all(1_000, 2);
        let greedy = take(&shares[PeerId::new(0)], Opener::Near, 10_000);
        assert_eq!(greedy.len(), 750, "its own quarter, and the half for all");
        let honest = take(&shares[PeerId::new(1)], Opener::Near, 10_000);
        assert_eq!(honest.len(), 250, "its own quarter");
        drop(greedy);
        assert_eq!(
            take(&shares[PeerId::new(1)], Opener::Near, 10_000).len(),
            500,
            "what the other has given back"
        );
        drop(honest);
        assert_eq!(shares.iter().map(|share| share.level().0).sum::<usize>(), 0);
        assert_eq!(
            take(&shares[PeerId::new(1)], Opener::Near, 10_000).len(),
            750
        );
    }

    #[test]
    fn what_a_peer_opens_does_not_cost_us_the_lease() {
        let shares = Share::of_all(1_000, 2);
        let _far = take(&shares[PeerId::new(0)], Opener::Far, 10_000);
        let (used, most) = shares[PeerId::new(0)].level();
        assert!(used < Marks::of(most).low, "{used} of {most}");
        assert!(
            shares[PeerId::new(0)].take(Opener::Near).is_some()
                && shares[PeerId::new(0)].take(Opener::Far).is_none()
        );
    }

    #[test]
    fn any_takes_and_returns_keep_the_books() {
        for seed in 0..200 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let (total, peers) = (random.usize(0..60), random.usize(1..5));
            let shares = Share::of_all(total, peers);
            let mut held: Vec<Vec<Permit>> = (0..peers).map(|_| Vec::new()).collect();
            for _ in 0..500 {
                let peer = random.usize(0..peers);
                if random.bool() {
                    let opener = if random.bool() {
                        Opener::Near
                    } else {
                        Opener::Far
                    };
                    held[peer].extend(shares[PeerId::new(peer)].take(opener));
                } else if !held[peer].is_empty() {
                    let at = random.usize(0..held[peer].len());
                    held[peer].swap_remove(at);
                }
                let own = total / 2 / peers;
                assert!(
                    held.iter().map(Vec::len).sum::<usize>() <= total,
                    "seed {seed}"
                );
                for (share, held) in shares.iter().zip(&held) {
                    let (used, most) = share.level();
                    assert_eq!(used, held.len(), "seed {seed}");
                    assert!(most >= own, "seed {seed}: everybody has his part");
                }
            }
        }
    }

    #[test]
    fn a_lack_is_over_at_its_low_mark() {
        let marks = Marks::of(1_000);
        assert!(
            marks.far < marks.low && marks.low < marks.high && marks.high < marks.most,
            "{marks:?}"
        );
        let level = |lack, used| Level { lack, used, marks };
        let mut room = Room::default();
        let mut at =
            |flows, memory| room.update(&[level(Lack::Flows, flows), level(Lack::Memory, memory)]);
        assert_eq!(at(marks.high - 1, 0), None);
        assert_eq!(at(marks.high, 0), Some(Lack::Flows));
        assert_eq!(
            at(marks.low, marks.high),
            Some(Lack::Flows),
            "not before the low mark"
        );
        assert_eq!(
            at(marks.low - 1, marks.low),
            Some(Lack::Memory),
            "the other one is not over"
        );
        assert_eq!(at(marks.low - 1, marks.low - 1), None);
        assert_eq!(
            at(marks.low, marks.low),
            None,
            "and not again before the high one"
        );
    }

    #[test]
    fn a_far_side_that_stays_full_is_tried_less_and_less() {
        let mut far = FarRoom::new();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(!far.is_full(0, at(0)));
        assert!(
            far.is_full(1, at(0)) && far.is_full(7, at(500)),
            "those under way change nothing"
        );
        assert!(!far.is_full(7, at(1_000)));
        assert!(
            far.is_full(8, at(1_100)) && far.is_full(8, at(3_000)),
            "twice as long"
        );
        assert!(!far.is_full(8, at(3_200)));
        assert!(!far.is_full(8, at(60_000)));
        assert!(
            far.is_full(9, at(60_000)) && !far.is_full(9, at(61_000)),
            "long after it is new"
        );
    }

    #[test]
    fn a_large_limit_leaves_room_for_a_full_accept_queue() {
        let lanes = Shares::of_lanes(524_288, 1, 0);
        let (_, most) = lanes[PeerId::new(0)].descriptors.level();
        let marks = Marks::of(most);
        assert!(marks.most - marks.high >= ARRIVING && most > 520_000);
        assert_eq!(lanes[PeerId::new(0)].half_open.level().1, HALF_OPEN);
        assert_eq!(
            Shares::of_lanes(100, 3, 2).len(),
            3,
            "too few for any flow is no reason to panic"
        );
    }
}
