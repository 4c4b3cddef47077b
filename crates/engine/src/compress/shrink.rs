//! The sender's side: whether a buffer is compressed, at which level, and with which dictionary.
//!
//! A byte gets through at the lower of two speeds: that of the link, which compression multiplies,
//! and that of the CPU, which it divides. The way that is fastest at the moment is taken, by the
//! ratio that the flow's recent buffers had, the measured cost of each level and the link's rate.
//! What does not shrink is left alone for a while, twice as long each time.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use zstd_safe::{CCtx, CDict, compress_bound};

use super::{
    COMPRESSED, Compress, Compression, HEADER, LEVELS, MAGIC, is_worth_its_messages,
    work::{Make, Work},
};
use crate::{
    Treatment,
    config::{
        DICTIONARY, FINEST_BELOW, HISTORY_FIRST, HISTORY_FRESH, HISTORY_SHARE, KEPT_COST, MOST_RAW,
        NO_DICTIONARY, PROPOSED, SMALL_DICTIONARY, SMALL_DICTIONARY_ABOVE, SMALLEST,
    },
    message::ROUTING,
    stats::{CompressionStats, Uncompressed},
};

/// What packing and sending a byte costs besides, nanoseconds.
const OTHERWISE: f64 = 1.5;
/// The level's cost counts this often: the core has more to do, and other lanes.
const CAUTION: f64 = 2.0;
/// Size after compression at each level, relative to the first (measured over text and binaries).
const FINER: [f64; LEVELS.len()] = [1.0, 0.93, 0.86, 0.83];
/// A buffer that does not lose at least this share of itself is sent as it is.
const WORTH: f64 = 0.03;
/// A flow whose buffer did not shrink is left alone for so many buffers of its size, doubled each
/// time, up to so many bytes.
const BACK_OFF: usize = 4;
const MOST_BACK_OFF: usize = 4 << 20;
/// A buffer below this says nothing of its flow: most of it is headers.
const TELLING: usize = 512;
/// What somebody waits for is taken to shrink by so much less than it did, and by no more than
/// this.
const CAREFUL: f64 = 0.75;
const MOST_CAREFUL: f64 = 8.0;
/// No other is taken to shrink by more.
const MOST_STRETCH: f64 = 20.0;
/// What is expected of a flow that nothing is known of, and of one that is tried again.
const HOPE: f64 = 0.3;
/// Between two dictionaries, beside the round trip in which they are agreed.
const REST: Duration = Duration::from_millis(20);
/// And for each byte of the last one: ten times what making it takes, so that a tenth of a core is
/// spent on it at most.
const REST_PER_BYTE: Duration = Duration::from_nanos(40);

/// What a flow's recent buffers did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    /// Size after compression, at the first level.
    ratio: f64,
    /// Bytes that are left alone.
    skip: usize,
    failures: u32,
    /// One buffer has shrunk.
    known: bool,
    pub(crate) compression: CompressionStats,
}

impl Default for Record {
    fn default() -> Record {
        // Unknown: worth a try on any link.
        Record {
            ratio: HOPE,
            skip: 0,
            failures: 0,
            known: false,
            compression: CompressionStats::default(),
        }
    }
}

/// How one buffer is to be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    pub(crate) compress: Compress,
    /// It shares nothing with other buffers.
    pub(crate) isolated: bool,
}

impl How {
    /// Whether a buffer that holds this beside something else stays as it is.
    pub(crate) fn keeps_apart(self) -> bool {
        self.isolated || self.compress == Compress::Off
    }
}

/// A dictionary that the peer holds too.
struct Dictionary {
    generation: u8,
    level: i32,
    made: CDict<'static>,
}

/// One that is being made, here and there.
struct Coming {
    proposal: Proposal,
    level: i32,
    serial: u64,
    /// None before its last buffer is packed.
    bytes: Option<usize>,
    held_there: bool,
    made: Option<CDict<'static>>,
}

/// A dictionary that the peer is asked to make: from the buffers with these numbers, in this order.
/// The last one may be yet to come.
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
    history: VecDeque<(u32, Arc<[u8]>)>,
    history_bytes: usize,
    /// Bytes in it behind the last buffer of the last proposal.
    fresh: usize,
    /// Of the last buffer that was kept.
    newest_bytes: usize,
    /// Number of the next buffer; zero is for those that are not kept.
    next: u32,
    /// The level that was chosen last, whatever the dictionary is made for.
    wanted: i32,
    dictionary: Option<Dictionary>,
    /// Of the last one that was asked for.
    dictionary_bytes: usize,
    /// In the order of their proposals.
    coming: VecDeque<Coming>,
    generation: u8,
    serial: u64,
    rest_until: Option<Instant>,
    out: Vec<u8>,
    pub(crate) dictionaries: u64,
    /// What zstd holds when it holds nothing.
    bare: usize,
    /// What may be held.
    limit: usize,
}

impl fmt::Debug for Shrinker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shrinker")
            .field("how", &self.how)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Shrinker {
    pub(crate) fn new(how: Compression) -> Shrinker {
        let context = CCtx::create();
        let bare = context.sizeof();
        Shrinker {
            how,
            context,
            history: VecDeque::new(),
            history_bytes: 0,
            fresh: 0,
            newest_bytes: 0,
            next: 1,
            wanted: LEVELS[0],
            dictionary: None,
            dictionary_bytes: 0,
            coming: VecDeque::new(),
            generation: 0,
            serial: 0,
            rest_until: None,
            out: Vec::new(),
            dictionaries: 0,
            bare,
            limit: usize::MAX,
        }
    }

    /// What may be held from now on.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// The peer is a new one: it holds nothing of ours. Counters stay.
    pub(crate) fn begin_anew(&mut self) {
        let (serial, dictionaries, limit) = (self.serial, self.dictionaries, self.limit);
        *self = Shrinker {
            serial,
            dictionaries,
            limit,
            ..Shrinker::new(self.how)
        };
    }

    /// How a flow's buffers are compressed, by its rule and what is set for the peer. What the far
    /// side's rule asks for counts unless it is switched off here.
    pub(crate) fn how(&self, treatment: &Treatment, ours: bool) -> How {
        let own = self.how.compress;
        let asked = if own == Compress::Off && !ours {
            own
        } else {
            treatment.compress.unwrap_or(own)
        };
        How {
            compress: asked,
            isolated: self.how.isolated || treatment.isolated,
        }
    }

    /// How a buffer is compressed that holds messages of several flows, or of none. `apart`: one of
    /// them does not share.
    pub(crate) fn how_together(&self, apart: bool) -> How {
        How {
            compress: self.how.compress,
            isolated: self.how.isolated || apart,
        }
    }

    /// How many bytes of the flow with this record come out of one byte of room, if its buffers are
    /// known to shrink. Of what somebody waits for carefully: it shall not need another datagram.
    pub(crate) fn stretch(&self, record: &Record, urgent: bool) -> Option<f64> {
        let (caution, most) = if urgent {
            (CAREFUL, MOST_CAREFUL)
        } else {
            (1.0, MOST_STRETCH)
        };
        let ratio = record.ratio * between(&FINER, self.wanted);
        (record.known && record.failures == 0).then(|| (caution / ratio).clamp(1.0, most))
    }

    /// Nobody sends: the history and the dictionary are given back. The next buffers do without,
    /// until there is another.
    pub(crate) fn rest(&mut self) {
        (
            self.history,
            self.history_bytes,
            self.fresh,
            self.newest_bytes,
        ) = (VecDeque::new(), 0, 0, 0);
        (self.dictionary, self.dictionary_bytes, self.coming) = (None, 0, VecDeque::new());
        (self.context, self.out) = (CCtx::create(), Vec::new());
    }

    /// Compresses a packed buffer if that pays, and counts it in the record of its flow. `alone`:
    /// it holds one flow's messages. `rate`: what the link takes, bytes per second. Returns what it
    /// did.
    pub(crate) fn shrink(
        &mut self,
        buffer: &mut Vec<u8>,
        (how, alone): (How, bool),
        record: &mut Record,
        rate: u64,
    ) -> CompressionStats {
        let raw = buffer.len() - ROUTING;
        let done = if how.isolated && !alone {
            Err((Uncompressed::Isolated, 0.0))
        } else {
            self.try_shrink(buffer, how, record, rate)
        };
        let after = buffer.len() - ROUTING;
        let mut stats = CompressionStats {
            bytes_in: raw as u64,
            bytes_out: after as u64,
            ..CompressionStats::default()
        };
        match done {
            Ok(cost) => stats.cpu_ns = (raw as f64 * cost) as u64,
            Err((why, cost)) => {
                stats.cpu_ns = (raw as f64 * cost) as u64;
                stats.uncompressed[why as usize] = 1;
            }
        }
        record.compression += stats;
        stats
    }

    /// What a byte cost, nanoseconds; if it is as it was, also why.
    fn try_shrink(
        &mut self,
        buffer: &mut Vec<u8>,
        how: How,
        record: &mut Record,
        rate: u64,
    ) -> Result<f64, (Uncompressed, f64)> {
        let raw = buffer.len() - ROUTING;
        if how.compress == Compress::Off {
            return Err((Uncompressed::Off, 0.0));
        }
        if raw < SMALLEST {
            return Err((Uncompressed::Small, 0.0));
        }
        if record.skip > 0 {
            record.skip = record.skip.saturating_sub(raw);
            return Err((Uncompressed::Incompressible, 0.0));
        }
        let again = record.failures > 0;
        let expected = if again { HOPE } else { record.ratio };
        let level = match how.compress {
            Compress::Level(level) => i32::from(level),
            _ => {
                let chosen =
                    choose(&self.how.costs, expected, rate).ok_or((Uncompressed::FastLink, 0.0))?;
                LEVELS[if again { 0 } else { chosen }]
            }
        };
        if !again {
            self.wanted = level;
        }
        self.out.resize(HEADER + compress_bound(raw), 0);
        let (source, into) = (&buffer[ROUTING..], &mut self.out[HEADER - MAGIC.len()..]);
        // It is made for one level, at which all that refers to it is compressed.
        let fits = |held: &&Dictionary| how.compress == Compress::Auto || held.level == level;
        let usable = rate <= NO_DICTIONARY && !how.isolated;
        let (generation, level, written) =
            match self.dictionary.as_ref().filter(fits).filter(|_| usable) {
                Some(held) => (
                    held.generation,
                    held.level,
                    self.context.compress_using_cdict(into, source, &held.made),
                ),
                None => (0, level, self.context.compress(into, source, level)),
            };
        let (cost, finer) = (between(&self.how.costs, level), between(&FINER, level));
        // There is room for whatever it may write; it fails for want of memory alone.
        let Ok(written) = written else {
            return Err((Uncompressed::Incompressible, cost));
        };
        let total = HEADER - MAGIC.len() + written;
        let now = total as f64 / buffer.len() as f64 / finer;
        record.ratio = if again {
            now
        } else {
            record.ratio + (now - record.ratio) / 4.0
        };
        if total as f64 > (1.0 - WORTH) * buffer.len() as f64 {
            if raw < TELLING {
                return Err((Uncompressed::Small, cost));
            }
            record.skip = ((BACK_OFF * raw) << record.failures.min(16)).min(MOST_BACK_OFF);
            record.failures += 1;
            return Err((Uncompressed::Incompressible, cost));
        }
        self.out[2..4].copy_from_slice(&buffer[2..4]);
        if !is_worth_its_messages(&self.out[..total]) {
            return Err((Uncompressed::TooManyMessages, cost));
        }
        (record.failures, record.known) = (0, true);
        let number = if how.isolated {
            0
        } else {
            self.keep(&buffer[ROUTING..])
        };
        // What zstd began with is written over.
        self.out[0] = COMPRESSED;
        self.out[1] = generation;
        self.out[4..8].copy_from_slice(&((total - ROUTING) as u32).to_be_bytes());
        self.out[8..12].copy_from_slice(&number.to_be_bytes());
        self.out[12..16].copy_from_slice(&(raw as u32).to_be_bytes());
        self.out.truncate(total);
        std::mem::swap(buffer, &mut self.out);
        Ok(cost)
    }

    /// Remembers a buffer that the peer will have too, and gives its number.
    fn keep(&mut self, bytes: &[u8]) -> u32 {
        let number = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.history_bytes += bytes.len() + KEPT_COST;
        self.fresh += bytes.len();
        self.newest_bytes = bytes.len();
        self.history.push_back((number, bytes.into()));
        while self.history_bytes > DICTIONARY.min(self.limit / 2) {
            let Some((_, old)) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= old.len() + KEPT_COST;
        }
        number
    }

    /// A dictionary that the peer shall make, if it is time for one: of the newest buffers and the
    /// next one, with which the proposal leaves, so that it is no older than it must be. The same
    /// is made here meanwhile. `rate`: what the link takes, bytes per second.
    pub(crate) fn propose(&mut self, rate: u64, now: Instant) -> Option<Proposal> {
        // Half is for what it holds, half for what making another takes.
        if self.held() > self.limit / 2
            || rate > NO_DICTIONARY
            || self.rest_until.is_some_and(|until| now < until)
        {
            return None;
        }
        let enough = match self.dictionary_bytes {
            0 => HISTORY_FIRST,
            bytes => HISTORY_FRESH.min(bytes).max(bytes / HISTORY_SHARE),
        };
        let full = self.coming.len() == PROPOSED
            || self
                .coming
                .back()
                .is_some_and(|coming| coming.bytes.is_none());
        if full || self.fresh + self.newest_bytes < enough {
            return None;
        }
        let most = if rate > SMALL_DICTIONARY_ABOVE {
            SMALL_DICTIONARY
        } else {
            DICTIONARY
        };
        let most = most
            .saturating_sub(self.newest_bytes)
            .min(DICTIONARY - MOST_RAW);
        // As much as a dictionary holds; numbers without a gap.
        let (mut bytes, mut first) = (0, self.next);
        for (number, older) in self.history.iter().rev() {
            if bytes + older.len() > most || number.checked_add(1) != Some(first) {
                break;
            }
            bytes += older.len();
            first = *number;
        }
        // Zero is for buffers without one.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.serial += 1;
        self.fresh = 0;
        self.dictionary_bytes = bytes + self.newest_bytes;
        self.rest_until = Some(now + REST.max(REST_PER_BYTE * self.dictionary_bytes as u32));
        let proposal = Proposal {
            generation: self.generation,
            first,
            last: self.next,
        };
        let coming = Coming {
            proposal,
            level: self.wanted,
            serial: self.serial,
            bytes: None,
            held_there: false,
            made: None,
        };
        self.coming.push_back(coming);
        Some(proposal)
    }

    /// A dictionary to be made: the last of its buffers is there.
    pub(crate) fn poll_work(&mut self) -> Option<Work> {
        let Coming {
            proposal: Proposal { first, last, .. },
            level,
            serial,
            bytes,
            ..
        } = self.coming.back_mut()?;
        if bytes.is_some() || self.history.back().is_none_or(|(newest, _)| newest < last) {
            return None;
        }
        let within = self
            .history
            .iter()
            .filter(|(number, _)| (*first..=*last).contains(number));
        let parts: Vec<Arc<[u8]>> = within.map(|(_, bytes)| bytes.clone()).collect();
        *bytes = Some(parts.iter().map(|part| part.len()).sum());
        Some(Work {
            make: Make::Shrink {
                serial: *serial,
                level: *level,
            },
            parts,
        })
    }

    /// It is made.
    pub(crate) fn on_made(&mut self, serial: u64, dictionary: CDict<'static>) {
        if let Some(coming) = self
            .coming
            .iter_mut()
            .find(|coming| coming.serial == serial)
        {
            coming.made = Some(dictionary);
            self.adopt();
        }
    }

    /// The peer holds the dictionary, or cannot make it.
    pub(crate) fn on_answer(&mut self, generation: u8, holds: bool) {
        let found = self
            .coming
            .iter()
            .position(|coming| coming.proposal.generation == generation);
        let Some(at) = found else { return };
        if holds {
            self.coming[at].held_there = true;
            self.adopt();
        } else {
            self.coming.remove(at);
        }
    }

    /// The newest that both sides have made is used from now on.
    fn adopt(&mut self) {
        let found = self
            .coming
            .iter()
            .rposition(|coming| coming.held_there && coming.made.is_some());
        let Some(newest) = found.and_then(|at| self.coming.drain(..=at).next_back()) else {
            return;
        };
        let Coming {
            proposal,
            level,
            made: Some(made),
            ..
        } = newest
        else {
            return;
        };
        self.dictionary = Some(Dictionary {
            generation: proposal.generation,
            level,
            made,
        });
        self.dictionaries += 1;
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        let made = self.coming.iter().filter_map(|coming| coming.made.as_ref());
        let dictionaries = self.dictionary.iter().map(|held| &held.made).chain(made);
        self.history_bytes
            + dictionaries.map(CDict::sizeof).sum::<usize>()
            + (self.context.sizeof() - self.bare)
    }
}

/// What is known for the levels that are chosen from, for any level.
fn between(known: &[f64; LEVELS.len()], level: i32) -> f64 {
    let above = LEVELS
        .iter()
        .position(|known| *known >= level)
        .unwrap_or(LEVELS.len() - 1);
    let below = above.saturating_sub(1);
    let (from, to) = (f64::from(LEVELS[below]), f64::from(LEVELS[above]));
    let share = if above == below {
        1.0
    } else {
        (f64::from(level) - from) / (to - from)
    };
    known[below] + (known[above] - known[below]) * share
}

/// The level at which a byte gets through fastest, by its place among [`LEVELS`]; none: as it is.
/// `ratio`: size after compression at the first level.
fn choose(costs: &[f64; LEVELS.len()], ratio: f64, rate: u64) -> Option<usize> {
    let speed =
        |ratio: f64, cost: f64| (rate as f64 / ratio).min(1e9 / (OTHERWISE + CAUTION * cost));
    let mut best = (speed(1.0, 0.0), None);
    // The finest takes two milliseconds for a large buffer, in which nothing else leaves.
    let levels = if rate > FINEST_BELOW {
        LEVELS.len() - 1
    } else {
        LEVELS.len()
    };
    for level in 0..levels {
        let speed = speed(
            if ratio < 1.0 {
                ratio * FINER[level]
            } else {
                ratio
            },
            costs[level],
        );
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
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
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
        let at = |mbit: u64, ratio| choose(&costs, ratio, mbit * 125_000);
        assert_eq!(at(2, 0.3), Some(3));
        assert_eq!(at(20, 0.3), Some(2));
        assert!(
            at(1_000, 0.3).is_some_and(|level| level < 2),
            "{:?}",
            at(1_000, 0.3)
        );
        assert_eq!(at(10_000, 0.3), None);
        assert_eq!(at(2, 1.1), None, "what does not shrink");
    }

    #[test]
    fn what_lies_between_the_levels_is_guessed() {
        let costs = [2.0, 4.0, 7.0, 13.0];
        let at = |level| between(&costs, level);
        assert_eq!([1, 2, 3, 4, 6, 9].map(at), [2.0, 3.0, 4.0, 5.0, 7.0, 13.0]);
    }
}
