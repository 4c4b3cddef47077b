//! Which streams hold most, so that memory is taken from them when it is short, without a walk over
//! all streams.
//!
//! Lists by the power of two that a stream holds. A stream stands in one at most: it moves up when
//! it grows, and down only when a look finds that it has shrunk. Each step down was
//! paid for by a step up, and each of those by bytes.

use crate::{FlowId, flow::stream::Stream, hash::NumberMap};

/// Streams of the highest list that are compared: 16. Of these the one that holds most is found,
/// and never one that holds less than half as much as another.
const COMPARED: usize = 16;

/// Entries of ended streams that may always stay: 64. Below it nobody looks for them.
const SLACK: usize = 64;

/// The lists.
#[derive(Debug)]
pub(crate) struct LargestStreams {
    lists: [Vec<FlowId>; usize::BITS as usize + 1],
    entries: usize,
}

/// The list of a stream that holds this many bytes; 0: none.
fn list_of(held: usize) -> u8 {
    (usize::BITS - held.leading_zeros()) as u8
}

impl LargestStreams {
    pub(crate) fn new() -> LargestStreams {
        LargestStreams {
            lists: [const { Vec::new() }; usize::BITS as usize + 1],
            entries: 0,
        }
    }

    /// A stream holds `held` bytes now; `listed`: in which list it stands.
    pub(crate) fn on_held(&mut self, flow: FlowId, held: usize, listed: &mut u8) {
        let list = list_of(held);
        // From a lower list its entry is found as one that is out of date.
        if list > *listed {
            self.lists[usize::from(list)].push(flow);
            self.entries += 1;
            *listed = list;
        }
    }

    /// A stream that holds most, or nearly. `walked`: entries that were looked at.
    pub(crate) fn find(
        &mut self,
        streams: &mut NumberMap<Box<Stream>>,
        walked: &mut u64,
    ) -> Option<FlowId> {
        let mut found: Vec<FlowId> = Vec::new();
        for list in (1..self.lists.len()).rev() {
            while found.len() < COMPARED
                && let Some(flow) = self.lists[list].pop()
            {
                *walked += 1;
                self.entries -= 1;
                let Some(stream) = streams
                    .get_mut(&flow)
                    .filter(|stream| usize::from(stream.listed) == list)
                else {
                    continue;
                };
                let is = list_of(stream.incoming.held());
                stream.listed = if usize::from(is) == list { is } else { 0 };
                if stream.listed == 0 {
                    let held = stream.incoming.held();
                    self.on_held(flow, held, &mut stream.listed);
                } else {
                    found.push(flow);
                }
            }
            if !found.is_empty() {
                self.lists[list].extend(&found);
                self.entries += found.len();
                break;
            }
        }
        let held = |flow: &FlowId| streams.get(flow).map_or(0, |stream| stream.incoming.held());
        found.into_iter().max_by_key(|flow| (held(flow), *flow))
    }

    /// Forgets the entries of ended streams when they are most of all.
    pub(crate) fn clean(&mut self, streams: &NumberMap<Box<Stream>>, walked: &mut u64) {
        if self.entries <= 2 * streams.len() + SLACK {
            return;
        }
        *walked += self.entries as u64;
        for (list, entries) in self.lists.iter_mut().enumerate() {
            entries.retain(|flow| {
                streams
                    .get(flow)
                    .is_some_and(|stream| usize::from(stream.listed) == list)
            });
            entries.shrink_to(2 * entries.len());
        }
        self.entries = self.lists.iter().map(Vec::len).sum();
    }

    pub(crate) fn check_invariants(&self, streams: &NumberMap<Box<Stream>>) {
        assert_eq!(self.entries, self.lists.iter().map(Vec::len).sum::<usize>());
        for (flow, stream) in streams {
            let held = stream.incoming.held();
            assert!(
                list_of(held) <= stream.listed,
                "{flow} holds {held} bytes and stands in no list of so many"
            );
            assert!(stream.listed == 0 || self.lists[usize::from(stream.listed)].contains(flow));
        }
    }
}
