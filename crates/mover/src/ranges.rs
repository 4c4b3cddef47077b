//! Which bytes of one payload are there (receiver) or acknowledged (sender).
//!
//! Segments mostly come in order, so the first range is kept in place and only holes cost memory.

/// Sorted, disjoint, not touching byte ranges, each `start..end`.
#[derive(Default, Clone, Debug)]
pub(crate) struct Ranges {
    first: (u32, u32),
    rest: Vec<(u32, u32)>,
}

impl Ranges {
    /// Adds a range that is not empty. True if any byte of it was new.
    pub(crate) fn insert(&mut self, start: u32, end: u32) -> bool {
        debug_assert!(start < end);
        let first = &mut self.first;
        if first.0 == first.1 {
            *first = (start, end);
            return true;
        }
        if start >= first.0 && end <= first.1 {
            return false;
        }
        if self.rest.is_empty() && start <= first.1 && end >= first.0 {
            *first = (first.0.min(start), first.1.max(end));
            return true;
        }
        self.insert_slow(start, end)
    }

    fn insert_slow(&mut self, start: u32, end: u32) -> bool {
        // The common case with holes: the range follows the last one.
        if let Some(last) = self.rest.last_mut() {
            if start == last.1 {
                last.1 = end;
                return true;
            }
            if start > last.1 {
                self.rest.push((start, end));
                return true;
            }
        }
        if self.covers(start, end) {
            return false;
        }
        if end < self.first.0 {
            self.rest.insert(0, self.first);
            self.first = (start, end);
            return true;
        }
        // In place: those that it touches become one with it.
        let touches = |range: &(u32, u32)| range.1 >= start && range.0 <= end;
        let mut merged = (start, end);
        let mut merge = |range: (u32, u32)| merged = (merged.0.min(range.0), merged.1.max(range.1));
        let from = self.rest.partition_point(|range| range.1 < start);
        let until = from
            + self.rest[from..]
                .iter()
                .take_while(|range| touches(range))
                .count();
        self.rest[from..until]
            .iter()
            .for_each(|range| merge(*range));
        if touches(&self.first) {
            merge(self.first);
            self.first = merged;
            self.rest.drain(from..until);
        } else if from < until {
            self.rest[from] = merged;
            self.rest.drain(from + 1..until);
        } else {
            self.rest.insert(from, merged);
        }
        true
    }

    /// Are all of these bytes there?
    pub(crate) fn covers(&self, start: u32, end: u32) -> bool {
        if start >= self.first.0 && end <= self.first.1 {
            return true;
        }
        let at = self.rest.partition_point(|range| range.0 <= start);
        at > 0 && end <= self.rest[at - 1].1
    }

    /// The first part of `start..end` that is missing.
    pub(crate) fn first_missing(&self, start: u32, end: u32) -> Option<(u32, u32)> {
        let mut at = start;
        for &(from, to) in std::iter::once(&self.first).chain(&self.rest) {
            if from >= end {
                break;
            }
            if from > at {
                return Some((at, from.min(end)));
            }
            at = at.max(to);
        }
        (at < end).then_some((at, end))
    }

    /// Is this exactly `0..size`?
    pub(crate) fn is_whole(&self, size: u32) -> bool {
        self.rest.is_empty() && self.first == (0, size)
    }

    /// How many pieces there are.
    pub(crate) fn pieces(&self) -> usize {
        usize::from(self.first.0 != self.first.1) + self.rest.len()
    }

    /// Whether a range would be a piece of its own, which touches no other. Not to be asked of one
    /// whose bytes are there.
    pub(crate) fn is_apart(&self, start: u32, end: u32) -> bool {
        let at = self.rest.partition_point(|range| range.1 < start);
        let touches = |range: &(u32, u32)| range.1 >= start && range.0 <= end;
        self.first.0 != self.first.1
            && !touches(&self.first)
            && !self.rest.get(at).is_some_and(touches)
    }

    /// Bytes that the pieces take beside the first.
    pub(crate) fn held(&self) -> usize {
        self.rest.capacity() * size_of::<(u32, u32)>()
    }

    /// Bytes that one more piece would take beyond those at most.
    pub(crate) fn growth(&self) -> usize {
        if self.rest.len() < self.rest.capacity() {
            0
        } else {
            self.held().max(4 * size_of::<(u32, u32)>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_map_of_bytes() {
        for seed in 0..300 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let size = dice.u32(1..300);
            let mut map = vec![false; size as usize];
            let mut ranges = Ranges::default();
            while !ranges.is_whole(size) {
                let start = dice.u32(0..size);
                let end = dice.u32(start + 1..=size.min(start + 40));
                let slice = &mut map[start as usize..end as usize];
                assert_eq!(
                    ranges.covers(start, end),
                    slice.iter().all(|there| *there),
                    "seed {seed}"
                );
                let missing = slice.iter().position(|there| !there).map(|at| {
                    let length = slice[at..].iter().take_while(|there| !**there).count();
                    (start + at as u32, start + (at + length) as u32)
                });
                assert_eq!(ranges.first_missing(start, end), missing, "seed {seed}");
                let (pieces, held, growth) = (ranges.pieces(), ranges.held(), ranges.growth());
                let apart = missing.is_some() && ranges.is_apart(start, end);
                assert_eq!(ranges.insert(start, end), missing.is_some(), "seed {seed}");
                assert_eq!(
                    apart,
                    pieces > 0 && ranges.pieces() > pieces,
                    "seed {seed}: {ranges:?}"
                );
                assert!(ranges.held() <= held + growth, "seed {seed}");
                slice.fill(true);
                let pieces = map
                    .iter()
                    .zip(std::iter::once(&false).chain(&map))
                    .filter(|(now, before)| **now && !**before);
                assert_eq!(ranges.pieces(), pieces.count(), "seed {seed}: {ranges:?}");
            }
            assert!(map.iter().all(|there| *there));
        }
    }
}
