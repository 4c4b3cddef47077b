//! The numbers of flows: giving out our own, and remembering which of the far side's were opened.

use crate::FlowId;

/// Set in the numbers of flows that the side with the higher public key opened.
pub(crate) const HIGHER: u32 = 1 << 31;
const NUMBER: u32 = HIGHER - 1;

/// Numbers behind the highest opened one for which it is known whether they were opened: 65,536,
/// which take 32 KiB for each peer. A message that opens a flow would have to be overtaken by the
/// openings of as many others to fall out of it.
const WIDTH: u32 = 65_536;

/// Words of 64 numbers. Twice the window, so that its two ends never share one; a power of two, so
/// that this holds where the numbers begin again.
const WORDS: usize = 2 * WIDTH as usize / 64;

/// The numbers of one peer's flows, of both kinds.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// The highest bit of our own.
    side: u32,
    /// The next one that is tried.
    next: u32,
    opened: OpenedWindow,
}

impl Numbers {
    /// `higher`: our public key is the higher one of the two.
    pub(crate) fn new(higher: bool) -> Numbers {
        Numbers {
            side: if higher { HIGHER } else { 0 },
            next: 0,
            opened: OpenedWindow::new(),
        }
    }

    /// Whether a flow of this number was opened by this side.
    pub(crate) fn is_ours(&self, flow: FlowId) -> bool {
        flow.0 & HIGHER == self.side
    }

    /// A number of ours that no living flow has.
    pub(crate) fn allocate(&mut self, lives: impl Fn(FlowId) -> bool) -> FlowId {
        loop {
            let flow = FlowId(self.side | self.next);
            self.next = (self.next + 1) & NUMBER;
            if !lives(flow) {
                return flow;
            }
        }
    }

    /// Notes that the far side uses a number of its own, and says what was known of it before.
    pub(crate) fn note(&mut self, flow: FlowId) -> Known {
        self.opened.note(flow)
    }

    /// The far side is another instance, which has opened nothing.
    pub(crate) fn forget_opened(&mut self) {
        self.opened = OpenedWindow::new();
    }

    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, next: u32) {
        self.next = next;
    }
}

/// What is known of a number that the far side uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was not used before; it is noted now.
    New,
    /// It was.
    Used,
    /// Too old to know.
    TooOld,
}

/// The sliding window of numbers that the far side has used. Each word of bits says of which 64
/// numbers it is, so that nothing has to be emptied when the window moves, however far.
#[derive(Debug)]
struct OpenedWindow {
    highest: Option<u32>,
    words: Box<[Word]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Word {
    /// Number of its first bit, divided by 64; none before it was used.
    of: Option<u32>,
    bits: u64,
}

impl OpenedWindow {
    fn new() -> OpenedWindow {
        OpenedWindow {
            highest: None,
            words: vec![Word::default(); WORDS].into_boxed_slice(),
        }
    }

    fn note(&mut self, flow: FlowId) -> Known {
        let number = flow.0 & NUMBER;
        let highest = *self.highest.get_or_insert(number);
        let ahead = number.wrapping_sub(highest) & NUMBER;
        if ahead <= NUMBER / 2 {
            self.highest = Some(number);
        } else if NUMBER + 1 - ahead >= WIDTH {
            return Known::TooOld;
        }
        let (of, bit) = (number / 64, 1 << (number % 64));
        let word = &mut self.words[of as usize % WORDS];
        if word.of != Some(of) {
            *word = Word {
                of: Some(of),
                bits: 0,
            };
        }
        if word.bits & bit != 0 {
            return Known::Used;
        }
        word.bits |= bit;
        Known::New
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn opened_numbers_as_a_set_of_them_would_know() {
        for (seed, start) in [(1, 0_u64), (2, 1000), (3, 0x7fff_ff00), (4, 0x7fff_0000)] {
            let random = &mut fastrand::Rng::with_seed(seed);
            let mut opened = OpenedWindow::new();
            let mut model = BTreeSet::new();
            let mut highest = None;
            let mut base = start;
            for _ in 0..20_000 {
                base +=
                    random.u64(0..3) * random.u64(0..20) * u64::from(random.u8(0..50) == 0) * 100
                        + random.u64(0..3);
                let number = base
                    .saturating_sub(random.u64(0..4) * random.u64(0..30_000))
                    .max(start);
                let top: u64 = *highest.get_or_insert(number);
                let expected = if number + u64::from(WIDTH) <= top {
                    Known::TooOld
                } else if model.insert(number) {
                    Known::New
                } else {
                    Known::Used
                };
                highest = Some(top.max(number));
                let flow = FlowId(HIGHER | (number as u32 & NUMBER));
                assert_eq!(
                    opened.note(flow),
                    expected,
                    "seed {seed} number {number} highest {top}"
                );
            }
        }
    }

    #[test]
    fn a_far_jump_forgets_everything() {
        let mut opened = OpenedWindow::new();
        assert_eq!(opened.note(FlowId(5)), Known::New);
        assert_eq!(opened.note(FlowId(5 + 3 * WIDTH)), Known::New);
        assert_eq!(opened.note(FlowId(5 + 3 * WIDTH)), Known::Used);
        assert_eq!(opened.note(FlowId(5)), Known::TooOld);
        assert_eq!(opened.note(FlowId(5 + 3 * WIDTH - (WIDTH - 1))), Known::New);
    }

    #[test]
    fn numbers_in_use_are_passed_over() {
        let mut numbers = Numbers::new(true);
        numbers.skip_to(NUMBER);
        let mut flows = BTreeSet::new();
        let given: Vec<u32> = (0..3)
            .map(|_| numbers.allocate(|flow| flows.contains(&flow)).0)
            .collect();
        assert_eq!(given, [HIGHER | NUMBER, HIGHER, HIGHER | 1]);
        assert!(numbers.is_ours(FlowId(HIGHER)) && !numbers.is_ours(FlowId(0)));
        flows.insert(FlowId(HIGHER | 2));
        assert_eq!(numbers.allocate(|flow| flows.contains(&flow)).0, HIGHER | 3);
    }
}
