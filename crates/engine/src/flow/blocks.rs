//! Blocks of memory with packets that wait for the link: handed over whole, not copied.
//!
//! The TUN reader of the program fills a block and gives it to the lane, which hands it over here.
//! A packet that waits in its flow names its block and its place in it, so packing copies it for
//! the first time. A block is spent when it is complete and none of its packets waits any more: the
//! reference to it is dropped, by which its owner knows.
//!
//! A packet that waits for long would keep a whole block for itself. So [`MOST_BLOCKS`] may be
//! under way; before another one comes, what still waits in the oldest is copied out of it.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Instant};

use crate::{
    FlowId,
    config::{MAX_PACKET_FRONT, MOST_BLOCKS, PACKET_COST, SPARE_PACKETS},
};

/// A packet that waits for the link.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) since: Instant,
    /// The block that was the last one when the packet came: never less than that of the packet
    /// before.
    block: u64,
    bytes: Bytes,
}

/// Where the bytes of a packet are.
#[derive(Debug)]
enum Bytes {
    /// Some in front, the rest in the block.
    InBlock {
        front: [u8; MAX_PACKET_FRONT],
        front_length: u8,
        body: Range<u32>,
    },
    Own(Vec<u8>),
}

impl Waiting {
    /// Bytes of the packet.
    pub(crate) fn len(&self) -> usize {
        match &self.bytes {
            Bytes::InBlock {
                front_length, body, ..
            } => usize::from(*front_length) + body.len(),
            Bytes::Own(bytes) => bytes.len(),
        }
    }

    /// What the packet costs, bytes. Its block is counted for itself.
    pub(crate) fn cost(&self) -> usize {
        PACKET_COST
            + match &self.bytes {
                Bytes::InBlock { .. } => self.len(),
                Bytes::Own(bytes) => bytes.capacity(),
            }
    }
}

/// A packet that the near side sends.
#[derive(Debug)]
pub(crate) enum PacketParts<'a> {
    /// Some bytes in front, and the rest in the last block that was begun.
    InBlock { front: &'a [u8], body: Range<usize> },
    /// All of it, to be copied.
    Alone(&'a [u8]),
}

impl PacketParts<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            PacketParts::InBlock { front, body } => front.len() + body.len(),
            PacketParts::Alone(bytes) => bytes.len(),
        }
    }
}

#[derive(Debug)]
struct Block {
    /// None: it is spent.
    bytes: Option<Arc<Vec<u8>>>,
    /// Packets that wait in it.
    waiting: usize,
    /// Bytes of the packets that have left it: it keeps them as long as another waits.
    left: usize,
    /// Their flows, and those of packets that have gone meanwhile.
    flows: Vec<FlowId>,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        self.bytes.as_ref().map_or(&[], |bytes| bytes.as_slice())
    }
}

/// The blocks of one peer that are under way.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// The oldest first. One that is spent keeps its place behind older ones.
    under_way: VecDeque<Block>,
    /// Number of the first of them.
    first: u64,
    /// More packets of the last one may come.
    is_open: bool,
    /// Buffers of packets that were copied, to be used again.
    spare: Vec<Vec<u8>>,
}

impl Blocks {
    /// Whether what waits in the oldest block must be copied out before another one comes.
    pub(crate) fn is_full(&self) -> bool {
        self.under_way.len() >= MOST_BLOCKS
    }

    /// The flows of packets that may wait in the oldest block.
    pub(crate) fn flows_of_oldest(&mut self) -> Vec<FlowId> {
        self.under_way
            .front_mut()
            .map_or_else(Vec::new, |block| std::mem::take(&mut block.flows))
    }

    /// A new block, of which the next packets are.
    pub(crate) fn begin(&mut self, bytes: Arc<Vec<u8>>) {
        self.end();
        self.under_way.push_back(Block {
            bytes: Some(bytes),
            waiting: 0,
            left: 0,
            flows: Vec::new(),
        });
        self.is_open = true;
    }

    /// The last block; empty if there is none.
    pub(crate) fn last(&self) -> &[u8] {
        self.under_way.back().map_or(&[], Block::bytes)
    }

    /// No more packets of the last block come.
    pub(crate) fn end(&mut self) {
        self.is_open = false;
        if let Some(last) = self.under_way.back()
            && last.waiting == 0
        {
            self.spend(self.under_way.len() - 1);
        }
    }

    /// Bytes of packets that wait no longer and are kept by others of their block. What waits is
    /// charged with its flow, and what else lies in a block belongs to other peers.
    pub(crate) fn held(&self) -> usize {
        let kept = self.under_way.iter().filter(|block| block.bytes.is_some());
        kept.map(|block| block.left).sum()
    }

    /// A packet begins to wait.
    pub(crate) fn wait(&mut self, flow: FlowId, packet: &PacketParts<'_>, now: Instant) -> Waiting {
        let block = self.first + (self.under_way.len() as u64).saturating_sub(1);
        let bytes = match packet {
            PacketParts::InBlock { front, body } => {
                let mut in_front = [0; MAX_PACKET_FRONT];
                in_front[..front.len()].copy_from_slice(front);
                let last = self
                    .under_way
                    .back_mut()
                    .expect("a packet in a block comes after begin_block");
                last.waiting += 1;
                if last.flows.last() != Some(&flow) {
                    last.flows.push(flow);
                }
                Bytes::InBlock {
                    front: in_front,
                    front_length: front.len() as u8,
                    body: body.start as u32..body.end as u32,
                }
            }
            PacketParts::Alone(bytes) => Bytes::Own(self.copied(&[bytes])),
        };
        Waiting {
            since: now,
            block,
            bytes,
        }
    }

    /// The bytes of a packet that waits.
    pub(crate) fn parts<'a>(&'a self, packet: &'a Waiting) -> [&'a [u8]; 2] {
        match &packet.bytes {
            Bytes::InBlock {
                front,
                front_length,
                body,
            } => {
                let block = self.under_way[(packet.block - self.first) as usize].bytes();
                [
                    &front[..usize::from(*front_length)],
                    &block[body.start as usize..body.end as usize],
                ]
            }
            Bytes::Own(bytes) => [bytes, &[]],
        }
    }

    /// A packet waits no longer.
    pub(crate) fn release(&mut self, packet: Waiting) {
        let length = packet.len();
        match packet.bytes {
            Bytes::InBlock { .. } => self.leave(packet.block, length),
            Bytes::Own(bytes) => self.recycle(bytes),
        }
    }

    /// Copies what of these packets waits in the oldest block out of it. Gives by how much they
    /// cost more now.
    pub(crate) fn copy_out(&mut self, waiting: &mut VecDeque<Waiting>) -> usize {
        let oldest = self.first;
        let mut more = 0;
        let from = waiting.partition_point(|packet| packet.block < oldest);
        for packet in waiting.range_mut(from..) {
            if packet.block != oldest {
                break;
            }
            if matches!(packet.bytes, Bytes::InBlock { .. }) {
                let before = packet.cost();
                let [front, body] = self.parts(packet);
                // As long as it is: it waits for long.
                packet.bytes = Bytes::Own([front, body].concat());
                more += packet.cost() - before;
                self.leave(oldest, packet.len());
            }
        }
        more
    }

    /// A copy, in a buffer that was used before if there is one that is not much too large.
    pub(crate) fn copied(&mut self, parts: &[&[u8]]) -> Vec<u8> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut copy = self
            .spare
            .pop_if(|buffer| buffer.capacity() <= 4 * length + 256)
            .unwrap_or_default();
        copy.clear();
        copy.reserve_exact(length);
        parts.iter().for_each(|part| copy.extend_from_slice(part));
        copy
    }

    /// A buffer to be used again.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_PACKETS && buffer.capacity() <= 2_048 {
            self.spare.push(buffer);
        }
    }

    /// No flow lives: a flood leaves no memory behind.
    pub(crate) fn forget_spare(&mut self) {
        self.spare = Vec::new();
    }

    /// A packet of so many bytes waits in a block no longer.
    fn leave(&mut self, block: u64, bytes: usize) {
        let place = (block - self.first) as usize;
        let is_open = self.is_open && place + 1 == self.under_way.len();
        let block = &mut self.under_way[place];
        block.waiting -= 1;
        block.left += bytes;
        if block.waiting == 0 && !is_open {
            self.spend(place);
        }
    }

    fn spend(&mut self, place: usize) {
        self.under_way[place].bytes = None;
        while self
            .under_way
            .front()
            .is_some_and(|block| block.bytes.is_none())
        {
            self.under_way.pop_front();
            self.first += 1;
        }
    }

    /// What waits in blocks, as the flows say.
    pub(crate) fn check_invariants<'a>(&self, waiting: impl Iterator<Item = &'a Waiting>) {
        let in_blocks = waiting.filter(|packet| matches!(packet.bytes, Bytes::InBlock { .. }));
        let counted: usize = self.under_way.iter().map(|block| block.waiting).sum();
        assert_eq!(in_blocks.count(), counted, "packets that wait in blocks");
        assert!(self.under_way.len() <= MOST_BLOCKS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block, and its owner's reference to it.
    fn block(number: u8) -> [Arc<Vec<u8>>; 2] {
        let block = Arc::new(vec![number; 100]);
        [block.clone(), block]
    }

    fn is_spent(own: &Arc<Vec<u8>>) -> bool {
        Arc::strong_count(own) == 1
    }

    fn part(blocks: &mut Blocks, flow: u32) -> Waiting {
        let packet = PacketParts::InBlock {
            front: &[9],
            body: 10..12,
        };
        blocks.wait(FlowId(flow), &packet, crate::clock())
    }

    fn bytes(blocks: &Blocks, packet: &Waiting) -> Vec<u8> {
        assert_eq!(blocks.parts(packet).concat().len(), packet.len());
        blocks.parts(packet).concat()
    }

    #[test]
    fn a_block_is_spent_when_nothing_waits_in_it() {
        let (mut blocks, mut packets, mut own) = (Blocks::default(), Vec::new(), Vec::new());
        for number in 0..3 {
            let [block, kept] = block(number);
            own.push(kept);
            blocks.begin(block);
            packets.push(part(&mut blocks, 1));
        }
        assert_eq!(bytes(&blocks, &packets[1]), [9, 1, 1]);
        assert_eq!(blocks.held(), 0, "what waits is charged with its flow");
        blocks.release(packets.remove(1));
        assert!(is_spent(&own[1]), "behind an older one");
        let last = packets.pop().unwrap();
        blocks.release(last);
        assert!(!is_spent(&own[2]), "more of it may come");
        assert_eq!(blocks.held(), 3, "what has left it is kept");
        blocks.end();
        assert!(is_spent(&own[2]) && !is_spent(&own[0]));
        blocks.check_invariants(packets.iter());
        blocks.release(packets.remove(0));
        assert!(is_spent(&own[0]) && blocks.held() == 0);
        // None of its packets was wanted.
        let [block, kept] = block(3);
        blocks.begin(block);
        assert_eq!(blocks.last(), kept.as_slice());
        blocks.end();
        assert!(is_spent(&kept) && blocks.last().is_empty());
    }

    #[test]
    fn what_waits_for_long_keeps_no_block() {
        let (mut blocks, mut waiting, mut own) = (Blocks::default(), VecDeque::new(), Vec::new());
        for number in 0..MOST_BLOCKS as u8 {
            let [block, kept] = block(number);
            own.push(kept);
            blocks.begin(block);
            waiting.push_back(part(&mut blocks, 1));
            waiting.push_back(blocks.wait(
                FlowId(1),
                &PacketParts::Alone(&[number]),
                crate::clock(),
            ));
        }
        for number in 0..5 {
            blocks.end();
            assert!(blocks.is_full());
            assert_eq!(blocks.flows_of_oldest(), [FlowId(1)]);
            let before: usize = waiting.iter().map(Waiting::cost).sum();
            let more = blocks.copy_out(&mut waiting);
            let after: usize = waiting.iter().map(Waiting::cost).sum();
            assert_eq!(before + more, after);
            assert!(is_spent(&own[number]) && !is_spent(&own[number + 1]));
            blocks.begin(block((MOST_BLOCKS + number) as u8)[0].clone());
            waiting.push_back(part(&mut blocks, 1));
        }
        blocks.check_invariants(waiting.iter());
        let all: Vec<Vec<u8>> = waiting
            .iter()
            .map(|packet| bytes(&blocks, packet))
            .collect();
        for (number, pair) in all[..2 * MOST_BLOCKS].chunks(2).enumerate() {
            let number = number as u8;
            assert_eq!(pair, [vec![9, number, number], vec![number]]);
        }
        for packet in waiting {
            blocks.release(packet);
        }
        blocks.end();
        assert_eq!(blocks.held(), 0);
    }
}
