//! Life signs of threads: each counts the turns of its loop, and the main thread sees whether the
//! number still changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest time, 500 ms, that a thread which counts its turns waits for something to do.
pub(crate) const TURN_EVERY: Duration = Duration::from_millis(500);

/// The turns of one loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<AtomicU64>);

impl Turns {
    /// The loop turns.
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The turns of several loops, as they were seen last.
#[derive(Debug)]
pub(crate) struct Watched {
    loops: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    turns: Turns,
    last: u64,
    /// When the number was first seen.
    since: Instant,
}

impl Watched {
    /// Watches these from now on.
    pub(crate) fn new(loops: impl IntoIterator<Item = Turns>, now: Instant) -> Watched {
        Watched {
            loops: loops
                .into_iter()
                .map(|turns| Seen {
                    turns,
                    last: 0,
                    since: now,
                })
                .collect(),
        }
    }

    /// Whether each has turned within `limit`, as far as it was looked at.
    pub(crate) fn all_turn(&mut self, limit: Duration, now: Instant) -> bool {
        for seen in &mut self.loops {
            let turns = seen.turns.0.load(Ordering::Relaxed);
            if turns != seen.last {
                (seen.last, seen.since) = (turns, now);
            }
        }
        self.loops
            .iter()
            .all(|seen| now.saturating_duration_since(seen.since) < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_stands_still_is_enough() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let loops = [Turns::default(), Turns::default()];
        let mut watched = Watched::new(loops.clone(), start);
        for at in 0..10 {
            loops.iter().for_each(Turns::count);
            assert!(watched.all_turn(2 * second, start + at * second));
        }
        for (at, all) in [(10, true), (11, false), (60, false)] {
            loops[1].count();
            assert_eq!(
                watched.all_turn(2 * second, start + at * second),
                all,
                "after {at} s"
            );
        }
        loops[0].count();
        assert!(watched.all_turn(2 * second, start + 61 * second));
    }
}
