//! The sender's side: whether a buffer is compressed, at which level, and with which dictionary.
//!
//! A byte gets through at the lower of two speeds: that of the link, which compression multiplies, and that of the CPU, which it divides. The way that is
//! fastest at the moment is taken, by the ratio that the flow's recent buffers had, the measured cost of each level and the link's rate. What does not
//! shrink is left alone for a while, twice as long each time.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use zstd_safe::{CCtx, CDict, compress_bound};

use super::{COMPRESSED, Compression, HEADER, LEVELS, MAGIC};
use crate::{
    FlowId,
    config::{
        DICTIONARY, HISTORY, HISTORY_FIRST, HISTORY_FRESH, MOST_RATIOS, NO_DICTIONARY, SMALL_DICTIONARY,
        SMALL_DICTIONARY_ABOVE, SMALLEST,
    },
    message::ROUTING,
    stats::Squeezed,
};

/// What packing and sending a byte costs besides, nanoseconds.
const OTHERWISE: f64 = 1.5;
/// The level's cost counts this often: the core has more to do, and other lanes.
const CAUTION: f64 = 2.0;
/// Size after compression at each level, relative to the first (measured over text and binaries).
const FINER: [f64; 3] = [1.0, 0.93, 0.86];
/// A buffer that does not lose at least this share of itself is sent as it is.
const WORTH: f64 = 0.03;
/// A flow whose buffer did not shrink is left alone for so many buffers of its size, doubled each time, up to so many bytes.
const BACK_OFF: usize = 4;
const MOST_BACK_OFF: usize = 4 << 20;
/// A buffer below this says nothing of its flow: most of it is headers.
const TELLING: usize = 512;
/// What is expected of a flow that nothing is known of, and of one that is tried again.
const HOPE: f64 = 0.3;
/// Between two dictionaries.
const REST: Duration = Duration::from_millis(100);

/// What a flow's recent buffers did.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    /// Size after compression, at the first level.
    ratio: f64,
    /// Bytes that are left alone.
    skip: usize,
    failures: u32,
    /// One buffer has shrunk.
    known: bool,
}

impl Default for Ratio {
    fn default() -> Ratio {
        // Unknown: worth a try on any link.
        Ratio { ratio: HOPE, skip: 0, failures: 0, known: false }
    }
}

/// A dictionary that the peer holds too.
struct Dictionary {
    generation: u8,
    bytes: Vec<u8>,
    made: [Option<CDict<'static>>; 3],
}

/// A dictionary that the peer is asked to make: from the buffers with these numbers, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) generation: u8,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// Everything that compresses towards one peer.
pub(crate) struct Shrinker {
    how: Compression,
    context: CCtx<'static>,
    ratios: HashMap<FlowId, Ratio>,
    /// Of large buffers, smoothed.
    recent: f64,
    history: VecDeque<(u32, Vec<u8>)>,
    history_bytes: usize,
    /// Bytes in it that came since the last proposal.
    fresh: usize,
    /// Number of the next buffer; zero is for those that are not kept.
    next: u32,
    dictionary: Option<Dictionary>,
    proposed: Option<(u8, Vec<u8>)>,
    generation: u8,
    rest_until: Option<Instant>,
    out: Vec<u8>,
    pub(crate) squeezed: Squeezed,
}

impl fmt::Debug for Shrinker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shrinker").field("how", &self.how).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Shrinker {
    pub(crate) fn new(how: Compression) -> Shrinker {
        Shrinker {
            how,
            context: CCtx::create(),
            ratios: HashMap::new(),
            recent: 1.0,
            history: VecDeque::new(),
            history_bytes: 0,
            fresh: 0,
            next: 1,
            dictionary: None,
            proposed: None,
            generation: 0,
            rest_until: None,
            out: Vec::new(),
            squeezed: Squeezed::default(),
        }
    }

    /// The peer is a new one: it holds nothing of ours. Counters stay.
    pub(crate) fn begin_anew(&mut self) {
        let squeezed = self.squeezed;
        *self = Shrinker::new(self.how);
        self.squeezed = squeezed;
    }

    /// How many bytes of a buffer of one flow come out of one byte of room, as of late.
    pub(crate) fn stretch(&self) -> f64 {
        1.0 / self.recent.clamp(0.05, 1.0)
    }

    /// Whether this flow's buffers are known to shrink.
    pub(crate) fn shrinks(&self, flow: FlowId) -> bool {
        self.how.on && self.ratios.get(&flow).is_some_and(|ratio| ratio.known && ratio.failures == 0)
    }

    /// Nobody sends: the history and the dictionary are given back. The next buffers do without, until there is another.
    pub(crate) fn rest(&mut self) {
        (self.history, self.history_bytes, self.fresh) = (VecDeque::new(), 0, 0);
        (self.dictionary, self.proposed) = (None, None);
        self.ratios = HashMap::new();
    }

    /// Compresses a packed buffer if that pays. `flow`: whose data it holds, if one flow's alone. `rate`: what the link takes, bytes per second.
    pub(crate) fn shrink(&mut self, buffer: &mut Vec<u8>, flow: Option<FlowId>, rate: u64) {
        let raw = buffer.len() - ROUTING;
        self.squeezed.bytes_in += raw as u64;
        let shrunk = self.how.on && (flow.is_some() || !self.how.isolated) && self.try_shrink(buffer, flow, rate);
        if !shrunk {
            self.squeezed.raw += 1;
        }
        self.squeezed.bytes_out += (buffer.len() - ROUTING) as u64;
        if flow.is_some() {
            let ratio = if shrunk { buffer.len() as f64 / (raw + ROUTING) as f64 } else { 1.0 };
            self.recent += (ratio - self.recent) / 8.0;
        }
    }

    fn try_shrink(&mut self, buffer: &mut Vec<u8>, flow: Option<FlowId>, rate: u64) -> bool {
        let raw = buffer.len() - ROUTING;
        if raw < SMALLEST {
            return false;
        }
        if self.ratios.len() >= MOST_RATIOS {
            self.ratios.clear();
        }
        // Buffers of several flows are judged together.
        let ratio = self.ratios.entry(flow.unwrap_or(FlowId(0))).or_default();
        if ratio.skip > 0 {
            ratio.skip = ratio.skip.saturating_sub(raw);
            return false;
        }
        let again = ratio.failures > 0;
        let expected = if again { HOPE } else { ratio.ratio };
        let Some(level) = choose(&self.how.costs, expected, rate as f64) else { return false };
        let level = if again { 0 } else { level };
        self.out.resize(HEADER + compress_bound(raw), 0);
        let (source, into) = (&buffer[ROUTING..], &mut self.out[HEADER - MAGIC.len()..]);
        let generation = self.dictionary.as_ref().filter(|_| rate <= NO_DICTIONARY).map_or(0, |held| held.generation);
        let written = match &mut self.dictionary {
            Some(Dictionary { bytes, made, .. }) if generation > 0 => {
                let made = made[level].get_or_insert_with(|| CDict::create(bytes, LEVELS[level]));
                self.context.compress_using_cdict(into, source, made)
            }
            _ => self.context.compress(into, source, LEVELS[level]),
        };
        // There is room for whatever it may write; it fails for want of memory alone.
        let Ok(written) = written else { return false };
        self.squeezed.cpu_ns += (raw as f64 * self.how.costs[level]) as u64;
        let total = HEADER - MAGIC.len() + written;
        let now = total as f64 / buffer.len() as f64 / FINER[level];
        ratio.ratio = if again { now } else { ratio.ratio + (now - ratio.ratio) / 4.0 };
        if total as f64 > (1.0 - WORTH) * buffer.len() as f64 {
            if raw < TELLING {
                return false;
            }
            ratio.skip = ((BACK_OFF * raw) << ratio.failures.min(16)).min(MOST_BACK_OFF);
            ratio.failures += 1;
            return false;
        }
        (ratio.failures, ratio.known) = (0, true);
        let number = if self.how.isolated { 0 } else { self.keep(&buffer[ROUTING..]) };
        // What zstd began with is written over.
        self.out[0] = COMPRESSED;
        self.out[1] = generation;
        self.out[2..4].copy_from_slice(&buffer[2..4]);
        self.out[4..8].copy_from_slice(&((total - ROUTING) as u32).to_be_bytes());
        self.out[8..12].copy_from_slice(&number.to_be_bytes());
        self.out[12..16].copy_from_slice(&(raw as u32).to_be_bytes());
        self.out.truncate(total);
        std::mem::swap(buffer, &mut self.out);
        true
    }

    /// Remembers a buffer that the peer will have too, and gives its number.
    fn keep(&mut self, bytes: &[u8]) -> u32 {
        let number = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.history_bytes += bytes.len();
        self.fresh += bytes.len();
        self.history.push_back((number, bytes.to_vec()));
        while self.history_bytes > HISTORY {
            let Some((_, old)) = self.history.pop_front() else { break };
            self.history_bytes -= old.len();
        }
        number
    }

    /// A dictionary that the peer shall make, if it is time for one.
    pub(crate) fn propose(&mut self, rate: u64, now: Instant) -> Option<Proposal> {
        if rate > NO_DICTIONARY {
            return None;
        }
        let enough = if self.dictionary.is_some() { HISTORY_FRESH } else { HISTORY_FIRST };
        if self.fresh < enough || self.proposed.is_some() || self.rest_until.is_some_and(|until| now < until) {
            return None;
        }
        let most = if rate > SMALL_DICTIONARY_ABOVE { SMALL_DICTIONARY } else { DICTIONARY };
        // The newest, as much as a dictionary holds; numbers without a gap.
        let (mut bytes, mut from) = (0, self.history.len());
        while from > 0 {
            let (number, older) = &self.history[from - 1];
            let follows = self.history.get(from).is_none_or(|(next, _)| number.wrapping_add(1) == *next);
            if bytes + older.len() > most || !follows {
                break;
            }
            bytes += older.len();
            from -= 1;
        }
        let (first, last) = (self.history.get(from)?.0, self.history.back()?.0);
        let mut all = Vec::with_capacity(bytes);
        self.history.iter().skip(from).for_each(|(_, bytes)| all.extend_from_slice(bytes));
        // Zero is for buffers without one.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.fresh = 0;
        self.proposed = Some((self.generation, all));
        Some(Proposal { generation: self.generation, first, last })
    }

    /// The peer holds the dictionary, or cannot make it.
    pub(crate) fn on_answer(&mut self, generation: u8, holds: bool, rtt: Duration, now: Instant) {
        match self.proposed.take() {
            Some((proposed, bytes)) if proposed == generation => {
                self.rest_until = Some(now + REST.max(rtt * 2));
                if holds {
                    self.dictionary = Some(Dictionary { generation, bytes, made: [None, None, None] });
                    self.squeezed.dictionaries += 1;
                }
            }
            other => self.proposed = other,
        }
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        let dictionary = self
            .dictionary
            .as_ref()
            .map_or(0, |held| held.bytes.len() + held.made.iter().flatten().map(CDict::sizeof).sum::<usize>());
        self.history_bytes + self.proposed.as_ref().map_or(0, |(_, bytes)| bytes.len()) + dictionary
    }
}

/// The level at which a byte gets through fastest; none: as it is. `ratio`: size after compression at the first level.
fn choose(costs: &[f64; 3], ratio: f64, rate: f64) -> Option<usize> {
    let speed = |ratio: f64, cost: f64| (rate / ratio).min(1e9 / (OTHERWISE + CAUTION * cost));
    let mut best = (speed(1.0, 0.0), None);
    for level in 0..LEVELS.len() {
        let speed = speed(if ratio < 1.0 { ratio * FINER[level] } else { ratio }, costs[level]);
        // A hundredth faster is not worth the CPU.
        if speed > best.0 * 1.01 {
            best = (speed, Some(level));
        }
    }
    best.1
}

/// Some text of 32 KiB to measure with: words of changing length, some of them again and again.
pub(super) fn sample() -> Vec<u8> {
    let mut state = 1_u64;
    let mut text = Vec::with_capacity(33 << 10);
    while text.len() < 32 << 10 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = state >> 40;
        // Small numbers are frequent.
        text.extend_from_slice(format!("{:x} ", (word * word) >> 36).as_bytes());
    }
    text
}

/// Compresses once at a level, for the stopwatch.
pub(super) fn try_level(text: &[u8], level: i32) {
    let mut out = vec![0; compress_bound(text.len())];
    // What it gives does not matter.
    let _ = CCtx::create().compress(&mut out[..], text, level);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_link_deserves_the_best_level_and_a_fast_one_none() {
        let costs = Compression::default().costs;
        let at = |mbit: f64, ratio| choose(&costs, ratio, mbit * 125_000.0);
        assert_eq!(at(2.0, 0.3), Some(2));
        assert_eq!(at(20.0, 0.3), Some(2));
        assert!(at(1_000.0, 0.3).is_some_and(|level| level < 2), "{:?}", at(1_000.0, 0.3));
        assert_eq!(at(10_000.0, 0.3), None);
        assert_eq!(at(2.0, 1.1), None, "what does not shrink");
    }
}
