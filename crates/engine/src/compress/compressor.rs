//! The sender's side: whether a buffer is compressed, at which level, and with which dictionary.
//!
//! The level that is fastest at the moment is taken, by the ratio that the flow's recent buffers
//! had ([`record`](super::record)), the measured cost of each level and the link's rate
//! ([`level`](super::level)). What does not shrink is left alone for a while, twice as long each
//! time.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use zstd_safe::{CCtx, CDict, compress_bound};

use super::{
    dictionary::{Make, Work},
    format::{COMPRESSED, HEADER, MAGIC, Proposal, is_worth_its_messages},
    level::{FINER, LEVELS, between, choose},
    record::Record,
    settings::{Compress, Compression, How},
};
use crate::{
    config::{
        DICTIONARY, HISTORY_FIRST, HISTORY_FRESH, HISTORY_SHARE, KEPT_COST, MOST_RAW,
        NO_DICTIONARY, PROPOSED, SMALL_DICTIONARY, SMALL_DICTIONARY_ABOVE, SMALLEST,
    },
    message::ROUTING,
    stats::{CompressionStats, Uncompressed},
};

/// A buffer that does not lose at least this share of itself is sent uncompressed.
const WORTH: f64 = 0.03;

/// A buffer below this, bytes, says nothing of its flow: most of it is headers.
const TELLING: usize = 512;

/// The shortest time between two proposals, beside the round trip in which a dictionary is agreed.
const REST: Duration = Duration::from_millis(20);

/// The same for each byte of the last dictionary: ten times what making it takes, so that a tenth
/// of a core is spent on it at most.
const REST_PER_BYTE: Duration = Duration::from_nanos(40);

/// A dictionary that the peer holds too.
struct Dictionary {
    generation: u8,
    level: i32,
    made: CDict<'static>,
}

/// A dictionary that is being made, here and there.
struct Coming {
    proposal: Proposal,
    level: i32,
    serial: u64,
    /// Its bytes; none before its last buffer is packed.
    bytes: Option<usize>,
    held_there: bool,
    made: Option<CDict<'static>>,
}

/// Buffers that the peer will have too, of which the next dictionary is made.
#[derive(Default)]
struct History {
    buffers: VecDeque<(u32, Arc<[u8]>)>,
    /// What they cost.
    held: usize,
    /// Bytes in it behind the last buffer of the last proposal.
    fresh: usize,
    /// Bytes of the last buffer that was kept.
    newest_bytes: usize,
}

impl History {
    fn push(&mut self, number: u32, bytes: &[u8], most: usize) {
        self.held += bytes.len() + KEPT_COST;
        self.fresh += bytes.len();
        self.newest_bytes = bytes.len();
        self.buffers.push_back((number, bytes.into()));
        while self.held > most {
            let Some((_, old)) = self.buffers.pop_front() else {
                break;
            };
            self.held -= old.len() + KEPT_COST;
        }
    }

    /// The newest buffers before `next`, of at most `most` bytes and without a gap in their
    /// numbers: the number of the first, and their bytes.
    fn newest(&self, next: u32, most: usize) -> (u32, usize) {
        let (mut first, mut bytes) = (next, 0);
        for (number, older) in self.buffers.iter().rev() {
            if bytes + older.len() > most || number.checked_add(1) != Some(first) {
                break;
            }
            bytes += older.len();
            first = *number;
        }
        (first, bytes)
    }
}

/// What became of a buffer.
struct Outcome {
    /// CPU time for each byte, nanoseconds.
    cost: f64,
    /// Why it is uncompressed, if it is.
    uncompressed: Option<Uncompressed>,
}

impl Outcome {
    fn uncompressed(why: Uncompressed, cost: f64) -> Outcome {
        Outcome {
            cost,
            uncompressed: Some(why),
        }
    }
}

/// What zstd wrote, behind the place for our header.
struct Frame {
    /// Of the dictionary that it refers to; zero: none.
    generation: u8,
    /// The level at which it was compressed.
    level: i32,
    /// Bytes of the payload, our header included; none: zstd had no memory.
    total: Option<usize>,
}

/// Everything that compresses towards one peer.
pub(crate) struct Compressor {
    settings: Compression,
    context: CCtx<'static>,
    /// What zstd holds when it holds nothing.
    bare: usize,
    history: History,
    /// Number of the next buffer that is kept; zero is for those that are not.
    next: u32,
    /// The level that was chosen last, whatever the dictionary is made for.
    wanted: i32,
    dictionary: Option<Dictionary>,
    /// Bytes of the dictionary that was proposed last.
    proposed_bytes: usize,
    /// In the order of their proposals.
    coming: VecDeque<Coming>,
    generation: u8,
    serial: u64,
    rest_until: Option<Instant>,
    out: Vec<u8>,
    /// Dictionaries that both sides have made.
    pub(crate) dictionaries: u64,
    /// What may be held.
    limit: usize,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor")
            .field("settings", &self.settings)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Compressor {
    pub(crate) fn new(settings: Compression) -> Compressor {
        let context = CCtx::create();
        let bare = context.sizeof();
        Compressor {
            settings,
            context,
            bare,
            history: History::default(),
            next: 1,
            wanted: LEVELS[0],
            dictionary: None,
            proposed_bytes: 0,
            coming: VecDeque::new(),
            generation: 0,
            serial: 0,
            rest_until: None,
            out: Vec::new(),
            dictionaries: 0,
            limit: usize::MAX,
        }
    }

    pub(crate) fn settings(&self) -> &Compression {
        &self.settings
    }

    /// What may be held from now on, bytes.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// The peer is a new one: it holds nothing of ours. Counters stay.
    pub(crate) fn begin_anew(&mut self) {
        let (serial, dictionaries, limit) = (self.serial, self.dictionaries, self.limit);
        *self = Compressor {
            serial,
            dictionaries,
            limit,
            ..Compressor::new(self.settings)
        };
    }

    /// How many bytes of the flow with this record come out of one byte of room, if its buffers are
    /// known to shrink. `urgent`: somebody waits for the buffer, which shall not need another
    /// datagram.
    pub(crate) fn stretch(&self, record: &Record, urgent: bool) -> Option<f64> {
        record.stretch(self.wanted, urgent)
    }

    /// Nobody sends: the history and the dictionary are given back. The next buffers do without,
    /// until there is another.
    pub(crate) fn rest(&mut self) {
        self.history = History::default();
        (self.dictionary, self.proposed_bytes) = (None, 0);
        self.coming = VecDeque::new();
        (self.context, self.out) = (CCtx::create(), Vec::new());
    }

    /// Compresses a packed buffer with the messages of one flow if that pays, and counts it in the
    /// flow's record. `rate`: what the link takes, bytes per second. Returns what it did.
    pub(crate) fn compress(
        &mut self,
        buffer: &mut Vec<u8>,
        how: How,
        record: &mut Record,
        rate: u64,
    ) -> CompressionStats {
        let raw = buffer.len() - ROUTING;
        let outcome = self.try_compress(buffer, how, record, rate);
        count(record, raw, buffer, outcome)
    }

    /// The same with a buffer that holds messages of several flows, or of none. One that holds
    /// something that is kept apart stays uncompressed.
    pub(crate) fn compress_together(
        &mut self,
        buffer: &mut Vec<u8>,
        how: How,
        record: &mut Record,
        rate: u64,
    ) -> CompressionStats {
        if how.isolated {
            let raw = buffer.len() - ROUTING;
            let outcome = Outcome::uncompressed(Uncompressed::Isolated, 0.0);
            return count(record, raw, buffer, outcome);
        }
        self.compress(buffer, how, record, rate)
    }

    fn try_compress(
        &mut self,
        buffer: &mut Vec<u8>,
        how: How,
        record: &mut Record,
        rate: u64,
    ) -> Outcome {
        let raw = buffer.len() - ROUTING;
        let level = match self.level_for(raw, how, record, rate) {
            Ok(level) => level,
            Err(why) => return Outcome::uncompressed(why, 0.0),
        };
        let frame = self.run(&buffer[ROUTING..], level, how, rate);
        let cost = between(&self.settings.costs, frame.level);
        let Some(total) = frame.total else {
            return Outcome::uncompressed(Uncompressed::Incompressible, cost);
        };
        record.on_tried(total as f64 / buffer.len() as f64 / between(&FINER, frame.level));
        if total as f64 > (1.0 - WORTH) * buffer.len() as f64 {
            if raw < TELLING {
                return Outcome::uncompressed(Uncompressed::Small, cost);
            }
            record.on_failure(raw);
            return Outcome::uncompressed(Uncompressed::Incompressible, cost);
        }
        self.out[2..4].copy_from_slice(&buffer[2..4]);
        if !is_worth_its_messages(&self.out[..total]) {
            return Outcome::uncompressed(Uncompressed::TooManyMessages, cost);
        }
        record.on_success();
        let number = if how.isolated {
            0
        } else {
            self.keep(&buffer[ROUTING..])
        };
        // What zstd began with is written over.
        self.out[0] = COMPRESSED;
        self.out[1] = frame.generation;
        self.out[4..8].copy_from_slice(&((total - ROUTING) as u32).to_be_bytes());
        self.out[8..12].copy_from_slice(&number.to_be_bytes());
        self.out[12..16].copy_from_slice(&(raw as u32).to_be_bytes());
        self.out.truncate(total);
        std::mem::swap(buffer, &mut self.out);
        Outcome {
            cost,
            uncompressed: None,
        }
    }

    /// The level at which a buffer of `raw` bytes is tried; or why it is not.
    fn level_for(
        &mut self,
        raw: usize,
        how: How,
        record: &mut Record,
        rate: u64,
    ) -> Result<i32, Uncompressed> {
        if how.compress == Compress::Off {
            return Err(Uncompressed::Off);
        }
        if raw < SMALLEST {
            return Err(Uncompressed::Small);
        }
        if record.pass_over(raw) {
            return Err(Uncompressed::Incompressible);
        }
        let experiment = record.is_experiment();
        let level = match how.compress {
            Compress::Level(level) => i32::from(level),
            Compress::Auto | Compress::Off => {
                let chosen = choose(&self.settings.costs, record.expected(), rate)
                    .ok_or(Uncompressed::FastLink)?;
                LEVELS[if experiment { 0 } else { chosen }]
            }
        };
        if !experiment {
            self.wanted = level;
        }
        Ok(level)
    }

    /// Has zstd compress `source` into `out`, with the dictionary if it may be used.
    fn run(&mut self, source: &[u8], level: i32, how: How, rate: u64) -> Frame {
        self.out.resize(HEADER + compress_bound(source.len()), 0);
        let into = &mut self.out[HEADER - MAGIC.len()..];
        // It is made for one level, at which all that refers to it is compressed.
        let fits = |held: &&Dictionary| how.compress == Compress::Auto || held.level == level;
        let usable = rate <= NO_DICTIONARY && !how.isolated;
        let dictionary = self.dictionary.as_ref().filter(fits).filter(|_| usable);
        let (generation, level, written) = match dictionary {
            Some(held) => (
                held.generation,
                held.level,
                self.context.compress_using_cdict(into, source, &held.made),
            ),
            None => (0, level, self.context.compress(into, source, level)),
        };
        // There is room for whatever it may write; it fails for want of memory alone.
        let total = written.ok().map(|written| HEADER - MAGIC.len() + written);
        Frame {
            generation,
            level,
            total,
        }
    }

    /// Remembers a buffer that the peer will have too, and gives its number.
    fn keep(&mut self, bytes: &[u8]) -> u32 {
        let number = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.history
            .push(number, bytes, DICTIONARY.min(self.limit / 2));
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
        let enough = match self.proposed_bytes {
            0 => HISTORY_FIRST,
            bytes => HISTORY_FRESH.min(bytes).max(bytes / HISTORY_SHARE),
        };
        let full = self.coming.len() == PROPOSED
            || self
                .coming
                .back()
                .is_some_and(|coming| coming.bytes.is_none());
        let newest_bytes = self.history.newest_bytes;
        if full || self.history.fresh + newest_bytes < enough {
            return None;
        }
        let most = if rate > SMALL_DICTIONARY_ABOVE {
            SMALL_DICTIONARY
        } else {
            DICTIONARY
        };
        let most = most.saturating_sub(newest_bytes).min(DICTIONARY - MOST_RAW);
        let (first, bytes) = self.history.newest(self.next, most);
        // Zero is for buffers without one.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.serial += 1;
        self.history.fresh = 0;
        self.proposed_bytes = bytes + newest_bytes;
        self.rest_until = Some(now + REST.max(REST_PER_BYTE * self.proposed_bytes as u32));
        let proposal = Proposal {
            generation: self.generation,
            first,
            last: self.next,
        };
        self.coming.push_back(Coming {
            proposal,
            level: self.wanted,
            serial: self.serial,
            bytes: None,
            held_there: false,
            made: None,
        });
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
        if bytes.is_some()
            || self
                .history
                .buffers
                .back()
                .is_none_or(|(newest, _)| newest < last)
        {
            return None;
        }
        let within = self
            .history
            .buffers
            .iter()
            .filter(|(number, _)| (*first..=*last).contains(number));
        let parts: Vec<Arc<[u8]>> = within.map(|(_, bytes)| bytes.clone()).collect();
        *bytes = Some(parts.iter().map(|part| part.len()).sum());
        Some(Work {
            make: Make::Compress {
                serial: *serial,
                level: *level,
            },
            parts,
        })
    }

    /// The dictionary of the work with this serial is made.
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
        self.history.held
            + dictionaries.map(CDict::sizeof).sum::<usize>()
            + (self.context.sizeof() - self.bare)
    }
}

/// Counts a buffer that had `raw` bytes of messages, and gives what was counted.
fn count(record: &mut Record, raw: usize, buffer: &[u8], outcome: Outcome) -> CompressionStats {
    let mut stats = CompressionStats {
        bytes_in: raw as u64,
        bytes_out: (buffer.len() - ROUTING) as u64,
        cpu_ns: (raw as f64 * outcome.cost) as u64,
        ..CompressionStats::default()
    };
    if let Some(why) = outcome.uncompressed {
        stats.uncompressed[why as usize] = 1;
    }
    record.compression += stats;
    stats
}
