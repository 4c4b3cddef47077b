//! The order of a flow of packets as it arrives. A packet that overtook others waits for them a
//! moment; one that comes too late is dropped.
//!
//! Numbers are those on the wire: 32 bits that count the packets of one direction.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::config::{
    HOLD, HOLD_IN_ORDER, LATEST, MOST_GAPS, MOST_HELD_BACK, MOST_HELD_IN_ORDER, PACKET_COST,
};

/// A number further ahead than this is no reordering: whatever lies between is gone.
const HORIZON: u32 = 1 << 16;

/// What is to be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is given on.
    Now,
    /// It waits for those before it.
    Hold,
    /// It is too late.
    Drop,
}

/// Of one direction of a flow. Small while nothing is out of order.
#[derive(Debug, Default)]
pub(crate) struct Order {
    next: u32,
    /// `Treatment::in_order`: it is worth the time that parity takes.
    in_order: bool,
    /// Memory is short: no more gaps are remembered than there is room for already.
    pub(crate) is_short: bool,
    /// Packets that did not come, or came too late.
    pub(crate) lost: u32,
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
struct Rest {
    /// Those that wait, by their numbers, all of which are less than [`HORIZON`] ahead.
    held: BTreeMap<u32, Vec<u8>>,
    /// What they cost.
    cost: usize,
    /// Those up to this number wait no longer.
    release: Option<u32>,
    /// Numbers that were passed over: the first, how many, and when. Bounded, the oldest goes
    /// first.
    gaps: VecDeque<(u32, u32, Instant)>,
}

impl Order {
    /// `in_order`: see `Treatment`.
    pub(crate) fn new(in_order: bool) -> Order {
        Order {
            in_order,
            ..Order::default()
        }
    }

    /// How long one waits for those before it.
    pub(crate) fn patience(&self) -> Duration {
        if self.in_order { HOLD_IN_ORDER } else { HOLD }
    }

    /// Where a packet with this number belongs. `waits`: whether order is worth a moment.
    pub(crate) fn place(&mut self, number: u32, waits: bool, now: Instant) -> Place {
        let ahead = number.wrapping_sub(self.next);
        if ahead == 0 {
            self.next = self.next.wrapping_add(1);
            return Place::Now;
        }
        if ahead as i32 > 0 {
            if waits && ahead < HORIZON {
                return Place::Hold;
            }
            self.pass_over(number, now);
            self.next = number.wrapping_add(1);
            return Place::Now;
        }
        let gaps = self.rest.as_mut().map(|rest| &mut rest.gaps);
        let gap = gaps.and_then(|gaps| {
            gaps.iter()
                .find(|(first, count, _)| number.wrapping_sub(*first) < *count)
        });
        match gap {
            Some((.., at)) if waits && now.saturating_duration_since(*at) > LATEST => Place::Drop,
            Some(_) => {
                self.lost = self.lost.saturating_sub(1);
                Place::Now
            }
            // So old that nobody remembers.
            None if waits => Place::Drop,
            None => Place::Now,
        }
    }

    /// Before a packet is placed: whether those that wait must go first, because they are too
    /// many or it is from far ahead.
    pub(crate) fn is_full_for(&self, number: u32) -> bool {
        let held = self.rest.as_ref().map_or(0, |rest| rest.held.len());
        let most = if self.in_order {
            MOST_HELD_IN_ORDER
        } else {
            MOST_HELD_BACK
        };
        held >= most
            || held > 0 && (HORIZON..u32::MAX / 2).contains(&number.wrapping_sub(self.next))
    }

    /// Keeps one that waits. One that is there already is kept as it was.
    pub(crate) fn hold(&mut self, number: u32, bytes: Vec<u8>) {
        let rest = self.rest.get_or_insert_default();
        let cost = PACKET_COST + bytes.capacity();
        if let std::collections::btree_map::Entry::Vacant(place) = rest.held.entry(number) {
            place.insert(bytes);
            rest.cost += cost;
        }
    }

    /// The next one of those that wait whose turn has come.
    pub(crate) fn pop_ready(&mut self, now: Instant) -> Option<Vec<u8>> {
        let rest = self.rest.as_mut()?;
        // Numbers begin again after the last one.
        let first = rest
            .held
            .range(self.next..)
            .next()
            .or_else(|| rest.held.first_key_value());
        let number = *first?.0;
        let released = rest
            .release
            .is_some_and(|release| release.wrapping_sub(number) < HORIZON);
        if number != self.next && !released {
            rest.release = None;
            return None;
        }
        let bytes = rest.held.remove(&number)?;
        rest.cost -= PACKET_COST + bytes.capacity();
        self.pass_over(number, now);
        self.next = number.wrapping_add(1);
        Some(bytes)
    }

    /// The one with this number has waited long enough, and with it those before it: the caller
    /// takes them.
    pub(crate) fn give_up(&mut self, number: u32) {
        if let Some(rest) = self
            .rest
            .as_mut()
            .filter(|rest| rest.held.contains_key(&number))
        {
            rest.release = Some(number);
        }
    }

    /// Nobody waits any longer.
    pub(crate) fn give_up_all(&mut self) {
        if let Some(rest) = &mut self.rest {
            let last = rest
                .held
                .range(..self.next)
                .next_back()
                .or_else(|| rest.held.last_key_value());
            rest.release = last.map(|(number, _)| *number);
        }
    }

    fn pass_over(&mut self, number: u32, now: Instant) {
        let count = number.wrapping_sub(self.next);
        if count == 0 {
            return;
        }
        self.lost = self.lost.saturating_add(count);
        if self.is_short && self.rest.is_none() {
            return;
        }
        let gaps = &mut self.rest.get_or_insert_default().gaps;
        if gaps.len() >= MOST_GAPS || self.is_short && gaps.len() == gaps.capacity() {
            gaps.pop_front();
        }
        if self.is_short && gaps.capacity() == 0 {
            return;
        }
        gaps.push_back((self.next, count, now));
    }

    /// What those cost that wait.
    pub(crate) fn held(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.cost)
    }

    /// What all of this costs beside the flow itself.
    pub(crate) fn cost(&self) -> usize {
        let gap = size_of::<(u32, u32, Instant)>();
        self.rest.as_ref().map_or(0, |rest| {
            size_of::<Rest>() + rest.cost + rest.gaps.capacity() * gap
        })
    }

    pub(crate) fn check_invariants(&self) {
        let Some(rest) = &self.rest else { return };
        assert_eq!(
            rest.cost,
            rest.held
                .values()
                .map(|bytes| PACKET_COST + bytes.capacity())
                .sum::<usize>()
        );
        assert!(rest.held.len() <= MOST_HELD_IN_ORDER && rest.gaps.len() <= MOST_GAPS);
        assert!(
            rest.held
                .keys()
                .all(|number| number.wrapping_sub(self.next) < HORIZON)
        );
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to begin with"
)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TOO_LATE: Duration = LATEST.saturating_add(Duration::from_millis(1));

    /// Gives numbers in this order, a tenth of a millisecond apart, and tells what came out.
    fn run(numbers: &[u32]) -> Vec<u32> {
        let (mut order, mut now, mut out) = (Order::default(), Instant::now(), Vec::new());
        let mut waits: VecDeque<(Instant, u32)> = VecDeque::new();
        let name = |bytes: Vec<u8>| u32::from_be_bytes(bytes.try_into().unwrap());
        for number in numbers {
            now += Duration::from_micros(100);
            while let Some((_, held)) = waits.front().copied().filter(|(until, _)| *until <= now) {
                waits.pop_front();
                order.give_up(held);
                while let Some(bytes) = order.pop_ready(now) {
                    out.push(name(bytes));
                }
            }
            match order.place(*number, true, now) {
                Place::Now => out.push(*number),
                Place::Hold => {
                    order.hold(*number, number.to_be_bytes().to_vec());
                    waits.push_back((now + order.patience(), *number));
                }
                Place::Drop => {}
            }
            while let Some(bytes) = order.pop_ready(now) {
                out.push(name(bytes));
            }
        }
        out
    }

    #[test]
    fn what_overtook_waits_a_moment() {
        assert_eq!(run(&[0, 2, 1, 3]), [0, 1, 2, 3]);
        assert_eq!(run(&[3, 2, 1, 0, 4]), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_lost_one_stops_the_others_for_a_moment_only() {
        let numbers: Vec<u32> = (0..40).filter(|number| *number != 5).collect();
        assert_eq!(run(&numbers), numbers);
        // It comes late, and is given on late.
        let mut late = numbers.clone();
        late.push(5);
        assert_eq!(run(&late), late);
    }

    #[test]
    fn who_wants_order_waits_for_what_parity_brings_back() {
        let (mut order, now) = (Order::new(true), Instant::now());
        for number in 1..200_u8 {
            assert!(!order.is_full_for(number.into()));
            assert_eq!(order.place(number.into(), true, now), Place::Hold);
            order.hold(number.into(), vec![number]);
        }
        assert_eq!(
            (order.patience(), order.pop_ready(now)),
            (HOLD_IN_ORDER, None)
        );
        assert_eq!(order.place(0, true, now), Place::Now);
        assert!((1..200).all(|number| order.pop_ready(now) == Some(vec![number])));
        assert_eq!(order.lost, 0);
    }

    #[test]
    fn far_too_late_is_too_late_and_counts_as_lost() {
        let (mut order, now) = (Order::default(), Instant::now());
        assert_eq!(order.place(0, true, now), Place::Now);
        assert_eq!(order.place(2, true, now), Place::Hold);
        order.hold(2, vec![2]);
        order.give_up(2);
        assert_eq!(
            (order.pop_ready(now + HOLD), order.lost),
            (Some(vec![2]), 1)
        );
        assert_eq!(order.place(1, true, now + HOLD + TOO_LATE), Place::Drop);
        assert_eq!(order.lost, 1);
        assert_eq!(order.place(1, true, now + HOLD + LATEST), Place::Now);
        assert_eq!(order.lost, 0);
    }

    #[test]
    fn numbers_wrap_and_bounds_hold() {
        let (mut order, now) = (
            Order {
                next: u32::MAX,
                ..Order::default()
            },
            Instant::now(),
        );
        assert_eq!(order.place(0, true, now), Place::Hold);
        order.hold(0, vec![]);
        assert_eq!(order.place(u32::MAX, true, now), Place::Now);
        assert_eq!(order.pop_ready(now), Some(vec![]));
        for number in 0..10_000_u32 {
            let number = 2 + 2 * number;
            if order.is_full_for(number) {
                order.give_up_all();
                while order.pop_ready(now).is_some() {}
            }
            if order.place(number, true, now) == Place::Hold {
                order.hold(number, vec![1]);
            }
            while order.pop_ready(now).is_some() {}
        }
        assert!(order.held() <= MOST_HELD_BACK * (PACKET_COST + 1));
        order.check_invariants();
        // A flow that keeps no order passes over gaps at once, and takes what is late.
        let mut order = Order::default();
        assert_eq!(order.place(9, false, now), Place::Now);
        assert_eq!(
            (order.place(3, false, now + TOO_LATE), order.lost),
            (Place::Now, 8)
        );
    }
}
