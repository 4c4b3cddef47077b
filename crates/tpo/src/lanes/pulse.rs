//! The pulse of a lane: what all threads may read of it at any time, without asking it.
//!
//! The lane writes its life sign, whether its peer is up, the session indices by which datagrams
//! find it, and how much of its room is used. The gate judges whether that is enough for new
//! connections and writes its judgement beside it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::edge::shares::{Lack, Level, Marks};

/// Session indices of one lane that are published: four of sessions, one of an attempt of our own,
/// and four of the peer's attempts.
const INDICES: usize = 16;
/// What stands where there is none: no session has it, because an index has 24 bits.
const NO_INDEX: u32 = u32::MAX;

/// A level of which the lane has not spoken yet: there is room.
fn unsaid() -> [AtomicUsize; 2] {
    [AtomicUsize::new(0), AtomicUsize::new(usize::MAX)]
}

/// Life signs of a lane, read by the gate for the lease, and how much of its room is used.
#[derive(Debug)]
pub(crate) struct Pulse {
    start: Instant,
    beat_ms: AtomicU64,
    up: AtomicBool,
    /// Streams that live, and how many may.
    pub(crate) flows: [AtomicUsize; 2],
    /// Bytes that streams hold for their applications, and how many they may.
    pub(crate) held: [AtomicUsize; 2],
    /// Connections that wait for a peer that was called on demand, and how many may.
    pub(crate) calling: [AtomicUsize; 2],
    /// Connections under way from the gate.
    pub(crate) connections: AtomicUsize,
    /// The far TPO has refused flows for lack of room just now.
    pub(crate) far_is_full: AtomicBool,
    /// A [`Lack`], as the gate has judged; zero: there is room.
    lack: AtomicU8,
    /// Bytes that the lane's flows hold, for the budget in all.
    pub(crate) memory: AtomicUsize,
    /// Bytes of packets that wait for the lane.
    pub(crate) packets: AtomicUsize,
    /// The session indices by which datagrams find the lane now, or [`NO_INDEX`].
    indices: [AtomicU32; INDICES],
}

impl Pulse {
    pub(crate) fn new() -> Pulse {
        Pulse {
            start: Instant::now(),
            beat_ms: AtomicU64::new(0),
            up: AtomicBool::new(false),
            flows: unsaid(),
            held: unsaid(),
            calling: unsaid(),
            connections: AtomicUsize::new(0),
            far_is_full: AtomicBool::new(false),
            lack: AtomicU8::new(0),
            memory: AtomicUsize::new(0),
            packets: AtomicUsize::new(0),
            indices: [const { AtomicU32::new(NO_INDEX) }; INDICES],
        }
    }

    /// Says by which session indices the lane is found.
    pub(crate) fn publish(&self, indices: impl Iterator<Item = u32>) {
        for (place, index) in self
            .indices
            .iter()
            .zip(indices.chain(std::iter::repeat(NO_INDEX)))
        {
            if place.load(Ordering::Relaxed) != index {
                place.store(index, Ordering::Relaxed);
            }
        }
    }

    /// Whether a session or an attempt of the lane has this index. A moment old, so a datagram that
    /// comes with the first of an index may be turned away; it is repeated.
    pub(crate) fn knows(&self, index: u32) -> bool {
        self.indices
            .iter()
            .any(|known| known.load(Ordering::Relaxed) == index)
    }

    /// Shows that the loop turns.
    pub(crate) fn turn(&self, now: Instant) {
        self.beat_ms.store(
            now.duration_since(self.start).as_millis() as u64,
            Ordering::Relaxed,
        );
    }

    /// The same, and whether the peer is up; true when the peer has come up or gone down.
    pub(crate) fn beat(&self, now: Instant, up: bool) -> bool {
        self.turn(now);
        self.up.swap(up, Ordering::Relaxed) != up
    }

    /// Whether the loop turned within `limit`.
    pub(crate) fn is_alive(&self, now: Instant, limit: Duration) -> bool {
        let beat = self.start + Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(beat) < limit
    }

    /// How much of its room the lane has used.
    pub(crate) fn levels(&self) -> [Level; 4] {
        let both =
            |pair: &[AtomicUsize; 2]| pair.each_ref().map(|number| number.load(Ordering::Relaxed));
        let level = |lack, pair| {
            let [used, most] = both(pair);
            Level {
                lack,
                used,
                marks: Marks::of(most),
            }
        };
        let [held, budget] = both(&self.held);
        [
            level(Lack::Flows, &self.flows),
            Level {
                lack: Lack::Memory,
                used: held,
                marks: Marks::of_memory(budget),
            },
            level(Lack::Queue, &self.calling),
            Level {
                lack: Lack::FarSide,
                used: usize::from(self.far_is_full.load(Ordering::Relaxed)),
                marks: Marks::YES_OR_NO,
            },
        ]
    }

    /// What there is no room of for new connections, if anything.
    pub(crate) fn lack(&self) -> Option<Lack> {
        Lack::from_number(self.lack.load(Ordering::Relaxed))
    }

    /// The gate's judgement.
    pub(crate) fn set_lack(&self, lack: Option<Lack>) {
        self.lack
            .store(lack.map_or(0, |lack| lack as u8), Ordering::Relaxed);
    }

    /// Whether the peer answers and new connections have room.
    pub(crate) fn has_room(&self) -> bool {
        self.is_up() && self.lack.load(Ordering::Relaxed) == 0
    }

    /// Whether the peer answers.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_has_said_nothing_has_room_and_no_sessions() {
        let pulse = Pulse::new();
        for level in pulse.levels() {
            assert!(level.used < level.marks.low, "{level:?}");
        }
        assert!(
            ![0, 1, 0xff_ffff]
                .into_iter()
                .any(|index| pulse.knows(index))
        );
        pulse.publish([0, 7].into_iter());
        assert!(pulse.knows(0) && pulse.knows(7) && !pulse.knows(1));
        pulse.publish([7].into_iter());
        assert!(pulse.knows(7) && !pulse.knows(0));
    }
}
