//! The receiver's side: keeps protected datagrams and parity rows for a moment, and rebuilds what
//! is missing.
//!
//! Everything here comes from authenticated datagrams, yet a broken peer may say anything: every
//! list is bounded, and a row that does not fit what is there is counted and forgotten.

use std::collections::VecDeque;

use super::field::{self, MOST_ROWS, MOST_SHARDS};
use super::{SHARD_PREFIX, gaps};
use crate::recv::bitmap::Bitmap;
use crate::subfield::Parity;
use crate::timer::{Nanos, SECOND};

/// Protected datagrams that are kept: two full blocks.
const KEPT: usize = 2 * MOST_SHARDS;
/// Blocks whose rows are kept.
const BLOCKS: usize = 16;
/// The longest datagram that is kept or rebuilt, bytes: more than the largest that a path is probed
/// for. With the numbers above it bounds what is held to 6 MiB; what whole links carry is some
/// hundred kilobytes.
const LONGEST: usize = 16 << 10;
/// What is kept of datagrams that came longer ago than this is of no use: their parity left at most
/// 25 ms after them.
const REST: Nanos = 10 * SECOND;

/// A datagram that was rebuilt: its number and plain bytes.
pub(crate) type Rebuilt = (u64, Vec<u8>);

/// Rows of one block.
struct Block {
    numbers: Vec<u64>,
    rows: Vec<(usize, Vec<u8>)>,
}

impl Block {
    fn cost(&self) -> usize {
        self.rows.iter().map(|(_, bytes)| bytes.capacity()).sum()
    }
}

/// Counters.
#[derive(Default)]
pub(crate) struct Counters {
    /// Rows received.
    pub(crate) rows: u64,
    /// Rows that no sender makes.
    pub(crate) malformed: u64,
    /// Rows that contradict what is there, or whose result makes no sense.
    pub(crate) contradictory: u64,
}

/// The receiver's side.
#[derive(Default)]
pub(crate) struct Rebuilder {
    kept: VecDeque<(u64, Vec<u8>)>,
    blocks: VecDeque<Block>,
    spare: Vec<Vec<u8>>,
    /// Bytes of buffers in all of these.
    held: usize,
    /// Something came since the last look, which was then.
    used: bool,
    looked: Nanos,
    pub(crate) counters: Counters,
}

impl Rebuilder {
    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Forgets everything when nothing has come for a while. To be called now and then.
    pub(crate) fn release_idle(&mut self, now: Nanos) {
        if self.used {
            (self.used, self.looked) = (false, now);
        } else if now >= self.looked + REST && self.held > 0 {
            *self = Rebuilder {
                counters: std::mem::take(&mut self.counters),
                ..Rebuilder::default()
            };
        }
    }

    /// A protected datagram came. What can be rebuilt with it goes to `rebuilt`.
    pub(crate) fn on_protected(
        &mut self,
        number: u64,
        plain: &[u8],
        received: &Bitmap,
        rebuilt: &mut Vec<Rebuilt>,
    ) {
        if plain.len() > LONGEST {
            return;
        }
        self.used = true;
        let mut bytes = self.spare.pop().unwrap_or_default();
        self.held -= bytes.capacity();
        bytes.clear();
        bytes.extend_from_slice(plain);
        self.held += bytes.capacity();
        self.kept.push_back((number, bytes));
        if self.kept.len() > KEPT {
            let (_, old) = self.kept.pop_front().expect("there is one");
            self.return_buffer(old);
        }
        if let Some(at) = self
            .blocks
            .iter()
            .position(|block| block.numbers.contains(&number))
        {
            self.try_block(at, received, rebuilt);
        }
    }

    /// A parity row came in datagram `number`; `first` is the whole number of its block's first
    /// datagram.
    pub(crate) fn on_parity(
        &mut self,
        parity: &Parity<'_>,
        first: u64,
        number: u64,
        received: &Bitmap,
        rebuilt: &mut Vec<Rebuilt>,
    ) {
        self.counters.rows += 1;
        let fitting = SHARD_PREFIX + 1..=SHARD_PREFIX + LONGEST;
        let sound = usize::from(parity.row) < MOST_ROWS && fitting.contains(&parity.bytes.len());
        let numbers = gaps::numbers(first, parity.gaps)
            .filter(|numbers| sound && numbers[numbers.len() - 1] < number);
        let Some(numbers) = numbers else {
            self.counters.malformed += 1;
            return;
        };
        if numbers.iter().all(|number| !received.is_new(*number)) {
            return;
        }
        let at = match self
            .blocks
            .iter()
            .position(|block| block.numbers == numbers)
        {
            Some(at) => at,
            None => {
                if self.blocks.len() == BLOCKS {
                    let old = self.blocks.pop_front().expect("there are many");
                    self.held -= old.cost();
                }
                self.blocks.push_back(Block {
                    numbers,
                    rows: Vec::new(),
                });
                self.blocks.len() - 1
            }
        };
        let block = &mut self.blocks[at];
        let row = usize::from(parity.row);
        let fits = block
            .rows
            .first()
            .is_none_or(|(_, bytes)| bytes.len() == parity.bytes.len());
        if !fits || block.rows.iter().any(|(known, _)| *known == row) {
            self.counters.contradictory += u64::from(!fits);
            return;
        }
        self.used = true;
        self.held += parity.bytes.len();
        block.rows.push((row, parity.bytes.to_vec()));
        self.try_block(at, received, rebuilt);
    }

    fn try_block(&mut self, at: usize, received: &Bitmap, rebuilt: &mut Vec<Rebuilt>) {
        let block = &self.blocks[at];
        let missing: Vec<usize> = (0..block.numbers.len())
            .filter(|&shard| received.is_new(block.numbers[shard]))
            .collect();
        if missing.len() > block.rows.len() {
            return;
        }
        let block = self
            .blocks
            .remove(at)
            .expect("the caller has just found it");
        self.held -= block.cost();
        if !missing.is_empty() {
            self.solve(block, &missing, rebuilt);
        }
    }

    fn solve(&mut self, block: Block, missing: &[usize], rebuilt: &mut Vec<Rebuilt>) {
        let Block { numbers, mut rows } = block;
        rows.truncate(missing.len());
        // What is known is subtracted; in this field that is adding.
        for (shard, number) in numbers
            .iter()
            .enumerate()
            .filter(|(shard, _)| !missing.contains(shard))
        {
            let Some((_, plain)) = self.kept.iter().find(|(kept, _)| kept == number) else {
                // It came, but too long ago, or was not protected: the repair will do.
                return;
            };
            for (row, bytes) in &mut rows {
                if plain.len() + SHARD_PREFIX > bytes.len() {
                    self.counters.contradictory += 1;
                    return;
                }
                let factor = field::coefficient(*row, shard);
                field::add_scaled(bytes, &(plain.len() as u16).to_be_bytes(), factor);
                field::add_scaled(&mut bytes[SHARD_PREFIX..], plain, factor);
            }
        }
        let mut matrix: Vec<Vec<u8>> = rows
            .iter()
            .map(|(row, _)| {
                missing
                    .iter()
                    .map(|&shard| field::coefficient(*row, shard))
                    .collect()
            })
            .collect();
        let mut shards: Vec<Vec<u8>> = rows.into_iter().map(|(_, bytes)| bytes).collect();
        eliminate(&mut matrix, &mut shards);
        for (&shard, bytes) in missing.iter().zip(shards) {
            let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            let Some(plain) = bytes
                .get(SHARD_PREFIX..SHARD_PREFIX + length)
                .filter(|plain| !plain.is_empty())
            else {
                self.counters.contradictory += 1;
                continue;
            };
            rebuilt.push((numbers[shard], plain.to_vec()));
        }
    }

    fn return_buffer(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < MOST_ROWS {
            self.spare.push(buffer);
        } else {
            self.held -= buffer.capacity();
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(
            self.kept.len() <= KEPT && self.blocks.len() <= BLOCKS && self.spare.len() <= MOST_ROWS
        );
        assert!(
            self.blocks
                .iter()
                .all(|block| block.rows.len() <= MOST_ROWS && block.numbers.len() <= MOST_SHARDS)
        );
        let buffers = self.kept.iter().map(|(_, bytes)| bytes).chain(&self.spare);
        let blocks = self.blocks.iter().map(Block::cost);
        assert_eq!(
            self.held,
            buffers.map(Vec::capacity).sum::<usize>() + blocks.sum::<usize>()
        );
    }
}

/// Solves `matrix` times unknowns = `shards` in place (Gauss and Jordan). Any square part of the
/// code's matrix has an inverse.
fn eliminate(matrix: &mut [Vec<u8>], shards: &mut [Vec<u8>]) {
    for column in 0..matrix.len() {
        let pivot = (column..matrix.len())
            .find(|&row| matrix[row][column] != 0)
            .expect("the code's matrix is regular");
        matrix.swap(column, pivot);
        shards.swap(column, pivot);
        let inverse = field::invert(matrix[column][column]);
        field::scale(&mut matrix[column], inverse);
        field::scale(&mut shards[column], inverse);
        let (coefficients, bytes) = (matrix[column].clone(), std::mem::take(&mut shards[column]));
        for row in (0..matrix.len()).filter(|&row| row != column) {
            let factor = matrix[row][column];
            field::add_scaled(&mut matrix[row], &coefficients, factor);
            field::add_scaled(&mut shards[row], &bytes, factor);
        }
        shards[column] = bytes;
    }
}
