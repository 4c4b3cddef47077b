//! Compression towards and from one peer: joins [`Compressor`] and [`Decompressor`], keeps the work
//! that they give out, and gives back what they hold when nothing was compressed for a while.
//!
//! Life: idle → active, with the first compressed buffer of either direction → resting, when none
//! came or left for [`COMPRESSION_RESTS`]: all but the peer's dictionaries is given back → idle,
//! when the peer was heard for [`DICTIONARIES_REST`] meanwhile.

use std::{collections::VecDeque, time::Instant};

use super::{
    compressor::Compressor,
    decompressor::Decompressor,
    dictionary::{Made, Work, Worked},
    format::{COMPRESSED, Proposal},
    record::Record,
    settings::{Compress, Compression},
};
use crate::{
    Class, CompressionStats, Treatment,
    config::{COMPRESSION_RESTS, DICTIONARIES_REST},
    error::PayloadError,
};

/// Compression holds something.
#[derive(Debug, Clone, Copy)]
struct Active {
    /// The last compressed buffer of either direction.
    at: Instant,
    /// Since when the peer was never silent, at the earliest `at`; none: it is silent.
    heard_since: Option<Instant>,
    /// All but the peer's dictionaries was given back.
    rests: bool,
}

impl Active {
    /// When more may be given back. The sender's part is over whether or not the other side is
    /// heard, since that one may hear well, and counts on it.
    fn due(&self) -> Option<Instant> {
        match self.rests {
            false => Some(self.at + COMPRESSION_RESTS),
            true => self.heard_since.map(|since| since + DICTIONARIES_REST),
        }
    }
}

/// A flow whose messages a buffer holds alone.
pub(crate) struct Owner<'a> {
    pub(crate) asked: &'a Treatment,
    /// The near side has opened it.
    pub(crate) ours: bool,
    pub(crate) record: &'a mut Option<Box<Record>>,
}

/// Both directions of compression of one peer.
#[derive(Debug)]
pub(crate) struct Codec {
    compressor: Compressor,
    decompressor: Decompressor,
    /// Dictionaries to be made.
    work: VecDeque<Work>,
    /// Of buffers that hold messages of several flows.
    together: Record,
    /// By the class of the most urgent message of each buffer.
    stats: [CompressionStats; Class::COUNT],
    active: Option<Active>,
    /// Nothing is heard of the peer.
    silent: bool,
}

impl Codec {
    /// Compresses nothing until it is given other settings.
    pub(crate) fn new() -> Codec {
        Codec {
            compressor: Compressor::new(Compression {
                compress: Compress::Off,
                ..Compression::default()
            }),
            decompressor: Decompressor::new(),
            work: VecDeque::new(),
            together: Record::default(),
            stats: [CompressionStats::default(); Class::COUNT],
            active: None,
            silent: false,
        }
    }

    pub(crate) fn set(&mut self, settings: Compression) {
        self.compressor = Compressor::new(settings);
    }

    pub(crate) fn settings(&self) -> &Compression {
        self.compressor.settings()
    }

    pub(crate) fn compressor(&self) -> &Compressor {
        &self.compressor
    }

    /// What both directions may hold from now on, half of it each, bytes.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.compressor.set_limit(bytes / 2);
        self.decompressor.set_limit(bytes / 2);
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        self.compressor.held() + self.decompressor.held()
    }

    pub(crate) fn stats(&self) -> [CompressionStats; Class::COUNT] {
        self.stats
    }

    /// Dictionaries that both sides have made.
    pub(crate) fn dictionaries(&self) -> u64 {
        self.compressor.dictionaries
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// Compresses a buffer that holds the messages of one flow alone, if that pays. `class`: of its
    /// most urgent message; `rate`: what the link takes, bytes per second.
    pub(crate) fn compress(
        &mut self,
        buffer: &mut Vec<u8>,
        class: Class,
        owner: Owner<'_>,
        rate: u64,
        now: Instant,
    ) {
        let how = self.settings().of_flow(owner.asked, owner.ours);
        let record = owner.record.get_or_insert_with(Box::default);
        let stats = self.compressor.compress(buffer, how, record, rate);
        self.on_compressed(buffer, class, stats, now);
    }

    /// The same for a buffer with messages of several flows. `apart`: one of them does not share
    /// its compression.
    pub(crate) fn compress_together(
        &mut self,
        buffer: &mut Vec<u8>,
        class: Class,
        apart: bool,
        rate: u64,
        now: Instant,
    ) {
        let how = self.settings().of_many(apart);
        let stats = self
            .compressor
            .compress_together(buffer, how, &mut self.together, rate);
        self.on_compressed(buffer, class, stats, now);
    }

    fn on_compressed(
        &mut self,
        buffer: &[u8],
        class: Class,
        stats: CompressionStats,
        now: Instant,
    ) {
        self.stats[class as usize] += stats;
        if buffer[0] == COMPRESSED {
            self.on_active(now);
        }
        self.work.extend(self.compressor.poll_work());
    }

    /// A dictionary that the peer shall make, if it is time for one.
    pub(crate) fn propose(&mut self, rate: u64, now: Instant) -> Option<Proposal> {
        self.compressor.propose(rate, now)
    }

    /// The peer says whether it holds the dictionary of this generation.
    pub(crate) fn on_answer(&mut self, generation: u8, holds: bool) {
        self.compressor.on_answer(generation, holds);
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// A compressed payload as it was before it was compressed.
    pub(crate) fn decompress(
        &mut self,
        payload: &[u8],
        now: Instant,
    ) -> Result<Vec<u8>, PayloadError> {
        self.on_active(now);
        self.decompressor.decompress(payload)
    }

    /// The peer proposes a dictionary; false when it can never be made here, and the peer shall be
    /// told so.
    pub(crate) fn handle_proposal(&mut self, proposal: Proposal) -> bool {
        self.decompressor.handle_proposal(proposal)
    }

    /// Gives out the dictionary that the peer waits for, if all of it is here. The generation of
    /// one that can never be made here, of which the peer shall be told.
    pub(crate) fn make_next(&mut self) -> Option<u8> {
        match self.decompressor.poll_ready()? {
            Ok(work) => {
                self.work.push_back(work);
                None
            }
            Err(generation) => Some(generation),
        }
    }

    /// Steps of walks over the history since the last call.
    pub(crate) fn take_walked(&mut self) -> u64 {
        std::mem::take(&mut self.decompressor.walked)
    }

    // --- dictionaries
    // ---------------------------------------------------------------------------------------------

    /// A dictionary to be made, on this thread or another.
    pub(crate) fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    /// It is made. The generation of one that the peer waits for, and shall be told of.
    pub(crate) fn handle_worked(&mut self, worked: Worked) -> Option<u8> {
        match worked.0 {
            Made::Compress { serial, dictionary } => {
                self.compressor.on_made(serial, dictionary);
                None
            }
            Made::Decompress { serial, dictionary } => {
                self.decompressor.handle_made(serial, dictionary)
            }
        }
    }

    // --- rest
    // ---------------------------------------------------------------------------------------------

    /// A compressed buffer leaves, or has come.
    fn on_active(&mut self, now: Instant) {
        self.active = Some(Active {
            at: now,
            heard_since: if self.silent { None } else { Some(now) },
            rests: false,
        });
    }

    /// Another instance of the peer is heard.
    pub(crate) fn on_fresh(&mut self) {
        self.silent = false;
    }

    /// Nothing is heard of the peer, or something again.
    pub(crate) fn on_silence(&mut self, silent: bool, now: Instant) {
        self.silent = silent;
        if let Some(active) = &mut self.active {
            active.heard_since = (!silent).then_some(now);
        }
    }

    /// When `rest` has something to give back.
    pub(crate) fn rests_at(&self) -> Option<Instant> {
        self.active.and_then(|active| active.due())
    }

    /// Gives back what is held when there was nothing to do for a while.
    pub(crate) fn rest(&mut self, now: Instant) {
        let Some(active) = self
            .active
            .as_mut()
            .filter(|active| active.due().is_some_and(|at| at <= now))
        else {
            return;
        };
        if active.rests {
            self.active = None;
            self.decompressor.forget();
        } else {
            active.rests = true;
            self.compressor.rest();
            self.decompressor.rest();
        }
    }

    /// Whoever answers next holds nothing of ours, nor we of theirs.
    pub(crate) fn forget(&mut self) {
        self.compressor.begin_anew();
        self.decompressor.begin_anew();
        self.work.clear();
        self.active = None;
    }
}
