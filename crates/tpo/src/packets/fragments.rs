//! Of which flow the fragments of a packet are: only the first one tells the ports. Pure.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::ip::Parsed;

/// Packets whose later fragments may be under way. The oldest is forgotten first.
const FIRST_FRAGMENTS: usize = 256;

/// A first fragment that has come.
#[derive(Debug)]
struct First {
    source: IpAddr,
    destination: IpAddr,
    number: u32,
    parsed: Parsed,
}

/// The first fragments that came of late.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    firsts: VecDeque<First>,
}

impl Fragments {
    /// A packet as it is. A later fragment is of the flow of the first one; `None` when that one
    /// has not come.
    pub(super) fn complete(&mut self, mut parsed: Parsed) -> Option<Parsed> {
        let Some(fragment) = parsed.fragment else {
            return Some(parsed);
        };
        let (source, destination) = (parsed.key.source.ip(), parsed.key.destination.ip());
        if fragment.is_first {
            if self.firsts.len() == FIRST_FRAGMENTS {
                self.firsts.pop_front();
            }
            self.firsts.push_back(First {
                source,
                destination,
                number: fragment.number,
                parsed: parsed.clone(),
            });
            return Some(parsed);
        }
        let is_same = |first: &&First| {
            (first.source, first.destination, first.number)
                == (source, destination, fragment.number)
        };
        let first = self.firsts.iter().rev().find(is_same)?;
        (parsed.key, parsed.opens) = (first.parsed.key, first.parsed.opens);
        Some(parsed)
    }
}
