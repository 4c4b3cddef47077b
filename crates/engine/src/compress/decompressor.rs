//! The receiver's side: received payloads are decompressed, and dictionaries are made when the
//! sender asks for them. Nothing that the wire says of sizes is believed before it is within
//! bounds, and nothing is held beyond them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use zstd_safe::{DCtx, DDict};

use super::{
    dictionary::{Make, Work},
    format::{HEADER, MAGIC, Proposal, is_worth_its_messages},
};
use crate::{
    config::{DICTIONARY, KEPT_COST, MADE_FOR_EACH, MOST_HISTORY, MOST_RAW, PROPOSED, SMALLEST},
    error::PayloadError,
    message::ROUTING,
};

/// Dictionaries that buffers under way may refer to. Before one is made every buffer up to its last
/// has come, and those that left later refer to the one that the sender used when it proposed this
/// one, or to a newer one: at most [`PROPOSED`] before it.
const DICTIONARIES: usize = PROPOSED + 1;

/// Buffers that have come before others whose numbers are lower: 131,072, far more than the mover
/// lets be under way. Without room no dictionary is made any more.
const MOST_AHEAD: usize = 1 << 17;

/// What each of them costs in a tree that may be half empty: 16 bytes.
const AHEAD_COST: usize = 16;

/// Bytes of dictionaries that may be made at once for what has come before: as many as are kept,
/// and one more.
const MOST_PAID: usize = (DICTIONARIES + 1) * DICTIONARY;

/// A dictionary that is being made.
struct Making {
    /// Of its work.
    serial: u64,
    proposal: Proposal,
    bytes: usize,
}

/// Everything that decompresses what one peer has compressed.
pub(crate) struct Decompressor {
    context: DCtx<'static>,
    history: BTreeMap<u32, Arc<[u8]>>,
    history_bytes: usize,
    /// Every buffer up to this number has come, and those behind it that have.
    come: u32,
    ahead: BTreeSet<u32>,
    /// The highest number that was forgotten.
    forgotten: u32,
    /// Proposals, in any order, as they came.
    pending: Vec<Proposal>,
    making: Option<Making>,
    /// Of the last work that was given out.
    serial: u64,
    /// In the order of their last buffers.
    dictionaries: Vec<(Proposal, DDict<'static>)>,
    /// The frame with its first bytes.
    frame: Vec<u8>,
    /// Bytes of dictionaries that may still be made for what has come.
    paid: usize,
    /// What may be held.
    limit: usize,
    /// Entries of the history that were looked at for dictionaries.
    pub(crate) walked: u64,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("history_bytes", &self.history_bytes)
            .finish_non_exhaustive()
    }
}

impl Decompressor {
    pub(crate) fn new() -> Decompressor {
        Decompressor {
            context: DCtx::create(),
            history: BTreeMap::new(),
            history_bytes: 0,
            come: 0,
            ahead: BTreeSet::new(),
            forgotten: 0,
            pending: Vec::new(),
            making: None,
            serial: 0,
            dictionaries: Vec::new(),
            frame: Vec::new(),
            paid: DICTIONARY,
            limit: usize::MAX,
            walked: 0,
        }
    }

    /// What may be held from now on: less history, and no more dictionaries than fit.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// The peer is a new one: nothing of the one before is of use.
    pub(crate) fn begin_anew(&mut self) {
        *self = Decompressor {
            serial: self.serial,
            limit: self.limit,
            walked: self.walked,
            ..Decompressor::new()
        };
    }

    /// The payload as it was before it was compressed.
    pub(crate) fn decompress(&mut self, payload: &[u8]) -> Result<Vec<u8>, PayloadError> {
        let word = |at: usize| {
            u32::from_be_bytes([
                payload[at],
                payload[at + 1],
                payload[at + 2],
                payload[at + 3],
            ])
        };
        if payload.len() < HEADER || word(4) as usize != payload.len() - ROUTING {
            return Err(PayloadError::Truncated);
        }
        // Before anything is done for it.
        if !is_worth_its_messages(payload) {
            return Err(PayloadError::CompressedSize);
        }
        let (generation, number, raw) = (payload[1], word(8), word(12) as usize);
        // Buffers that dictionaries are made of were worth compressing.
        if raw > MOST_RAW || number > 0 && raw < SMALLEST {
            return Err(PayloadError::CompressedSize);
        }
        let Decompressor {
            context,
            frame,
            dictionaries,
            ..
        } = self;
        frame.clear();
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&payload[HEADER..]);
        let mut out = vec![0; ROUTING + raw];
        let written = match generation {
            0 => context.decompress(&mut out[ROUTING..], frame),
            _ => {
                let found = dictionaries
                    .iter()
                    .find(|(held, _)| held.generation == generation);
                let (_, dictionary) = found.ok_or(PayloadError::Dictionary(generation))?;
                context.decompress_using_ddict(&mut out[ROUTING..], frame, dictionary)
            }
        };
        if written != Ok(raw) {
            return Err(PayloadError::Compressed);
        }
        out[0] = 1;
        out[2..4].copy_from_slice(&payload[2..4]);
        out[4..8].copy_from_slice(&(raw as u32).to_be_bytes());
        if number > 0 {
            self.keep(number, &out[ROUTING..]);
        }
        Ok(out)
    }

    fn keep(&mut self, number: u32, bytes: &[u8]) {
        if self.ahead.len() < MOST_AHEAD {
            self.ahead.insert(number);
        }
        while self.ahead.first() == Some(&self.come.wrapping_add(1)) {
            self.come += 1;
            self.ahead.pop_first();
        }
        self.paid = (self.paid + MADE_FOR_EACH * bytes.len()).min(MOST_PAID);
        self.history_bytes += bytes.len() + KEPT_COST;
        if let Some(old) = self.history.insert(number, bytes.into()) {
            self.history_bytes -= old.len() + KEPT_COST;
        }
        // The oldest goes first, but not what the sender waits for.
        let waited = self
            .pending
            .iter()
            .map(|pending| pending.first)
            .min()
            .unwrap_or(u32::MAX);
        while self.history_bytes > MOST_HISTORY.min(self.limit / 2) {
            let gone = match self.history.first_key_value() {
                Some((oldest, _)) if *oldest < waited => *oldest,
                // The newest, then: it is in no dictionary yet.
                _ => match self.history.last_key_value() {
                    Some((newest, _)) => *newest,
                    None => break,
                },
            };
            self.forgotten = self.forgotten.max(gone);
            if let Some(old) = self.history.remove(&gone) {
                self.history_bytes -= old.len() + KEPT_COST;
            }
        }
    }

    /// The sender proposes a dictionary; false when it can never be made here.
    pub(crate) fn handle_proposal(&mut self, proposal: Proposal) -> bool {
        let Proposal {
            generation,
            first,
            last,
        } = proposal;
        let count = last.wrapping_sub(first);
        let sane = generation > 0 && first > 0 && last >= first && count < DICTIONARY as u32;
        // One of them may have been forgotten; later ones will do.
        let forgotten = first <= self.forgotten;
        if !sane || forgotten || self.pending.len() + usize::from(self.making.is_some()) == PROPOSED
        {
            return false;
        }
        self.pending.push(proposal);
        true
    }

    /// The dictionary that has become whole, to be made. Not before every buffer up to its last has
    /// come: one that is still under way may refer to a dictionary that this one replaces. Or the
    /// generation of one that can never be made here.
    pub(crate) fn poll_ready(&mut self) -> Option<Result<Work, u8>> {
        if self.making.is_some() {
            return None;
        }
        let at = self
            .pending
            .iter()
            .position(|pending| pending.last <= self.come)?;
        let proposal = self.pending.swap_remove(at);
        let Proposal {
            generation,
            first,
            last,
        } = proposal;
        // No more is looked at than what has come pays for.
        let (mut parts, mut bytes, most): (Vec<Arc<[u8]>>, _, _) =
            (Vec::new(), 0, DICTIONARY.min(self.paid));
        for (_, part) in self.history.range(first..=last) {
            bytes += part.len();
            self.walked += 1;
            if bytes > most {
                break;
            }
            parts.push(part.clone());
        }
        self.paid -= bytes.min(self.paid);
        let full = self.dictionaries.len() == DICTIONARIES;
        let replaced = self
            .dictionaries
            .first()
            .filter(|_| full)
            .map_or(0, |(_, oldest)| oldest.sizeof());
        // Of those that came one may have been forgotten for want of room.
        if bytes > most
            || parts.len() as u32 != last - first + 1
            || self.held() + bytes > self.limit.saturating_add(replaced)
        {
            return Some(Err(generation));
        }
        self.serial += 1;
        self.making = Some(Making {
            serial: self.serial,
            proposal,
            bytes,
        });
        Some(Ok(Work {
            make: Make::Decompress {
                serial: self.serial,
            },
            parts,
        }))
    }

    /// It is made: buffers may refer to it. The generation that the sender waits for.
    pub(crate) fn handle_made(&mut self, serial: u64, dictionary: DDict<'static>) -> Option<u8> {
        let Making { proposal, .. } = self.making.take_if(|making| making.serial == serial)?;
        // A proposal that comes late is older than what has been made since.
        let at = self
            .dictionaries
            .partition_point(|(held, _)| held.last <= proposal.last);
        self.dictionaries.insert(at, (proposal, dictionary));
        if self.dictionaries.len() > DICTIONARIES {
            self.dictionaries.remove(0);
        }
        Some(proposal.generation)
    }

    /// Nothing has come for a while: the history is given back. Dictionaries stay, since the sender
    /// may still use them; one that is being made is finished.
    pub(crate) fn rest(&mut self) {
        if let Some((newest, _)) = self.history.last_key_value() {
            self.forgotten = self.forgotten.max(*newest);
        }
        (self.history, self.history_bytes) = (BTreeMap::new(), 0);
        self.pending.clear();
    }

    /// The sender uses no dictionary any more that it has made so far.
    pub(crate) fn forget(&mut self) {
        self.dictionaries.clear();
        (self.context, self.frame) = (DCtx::create(), Vec::new());
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        let dictionaries = self
            .dictionaries
            .iter()
            .map(|(_, dictionary)| dictionary.sizeof())
            .sum::<usize>();
        // While one is made its parts are there as well.
        let making = self.making.as_ref().map_or(0, |making| 2 * making.bytes);
        self.history_bytes
            + dictionaries
            + making
            + self.ahead.len() * AHEAD_COST
            + self.frame.capacity()
    }
}
