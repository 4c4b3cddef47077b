//! Whose turn it is: deficit round robin over the classes, and over the ready flows inside a class.
//!
//! A flow that becomes ready stands in its class's list of new flows once (the sparse-flow rule of
//! FQ-CoDel, RFC 8290 section 4.2): a small request passes the bulk transfers of its class, a flow
//! that goes on sending joins them. Of the classes the most urgent goes first, as long as it has
//! share left; when all that wait have used theirs up, each gets a new one in proportion to its
//! weight. A flow that has the link for itself is not charged: nobody waits for it.
//!
//! Every decision takes constant time, and a flow that is not ready is in no list.

use crate::{
    Class, FlowId,
    config::{CLASS_UNIT, QUANTUM, QUEUE_ROOM},
};

const NIL: u32 = u32::MAX;

/// Shares of the classes in each round, in units of [`CLASS_UNIT`] bytes.
const WEIGHTS: [i32; Class::COUNT] = [16, 8, 4, 2];

/// A flow's place in the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Slot {
    /// Bytes that a flow costs here.
    #[cfg(test)]
    pub(crate) const COST: usize = size_of::<Entry>();
}

/// The flow that is to be served next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) slot: Slot,
    pub(crate) flow: FlowId,
    /// Bytes that it may send before others must have their turn.
    pub(crate) allowance: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    New,
    Old,
}

#[derive(Debug)]
struct Entry {
    flow: FlowId,
    deficit: i32,
    previous: u32,
    next: u32,
    class: Class,
    place: Place,
    ready: bool,
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: List = List {
        head: NIL,
        tail: NIL,
    };
}

#[derive(Debug, Clone, Copy)]
struct Lists {
    new: List,
    old: List,
    share: i32,
}

impl Lists {
    fn is_empty(&self) -> bool {
        self.new.head == NIL && self.old.head == NIL
    }
}

/// The schedule of one peer.
#[derive(Debug)]
pub(crate) struct Schedule {
    entries: Vec<Entry>,
    free: Vec<u32>,
    classes: [Lists; Class::COUNT],
    /// Entries in any of the lists.
    listed: usize,
    quantum: i32,
}

impl Schedule {
    pub(crate) fn new() -> Schedule {
        let classes = WEIGHTS.map(|weight| Lists {
            new: List::EMPTY,
            old: List::EMPTY,
            share: share(weight),
        });
        Schedule {
            entries: Vec::new(),
            free: Vec::new(),
            classes,
            listed: 0,
            quantum: QUANTUM as i32,
        }
    }

    /// Bytes of a turn, from the next one on.
    pub(crate) fn set_quantum(&mut self, quantum: usize) {
        self.quantum = quantum as i32;
    }

    pub(crate) fn add(&mut self, flow: FlowId, class: Class) -> Slot {
        let entry = Entry {
            flow,
            deficit: 0,
            previous: NIL,
            next: NIL,
            class,
            place: Place::Nowhere,
            ready: false,
        };
        match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                Slot(index)
            }
            None => {
                self.entries.push(entry);
                Slot((self.entries.len() - 1) as u32)
            }
        }
    }

    /// The flow is of this class from now on. If it waits, it goes to the end of the line of its
    /// kind there.
    pub(crate) fn set_class(&mut self, slot: Slot, class: Class) {
        let place = self.entries[slot.0 as usize].place;
        self.unlink(slot.0);
        self.entries[slot.0 as usize].class = class;
        self.append(slot.0, place);
    }

    /// Forgets a flow; its slot may be given to another.
    pub(crate) fn remove(&mut self, slot: Slot) {
        self.unlink(slot.0);
        self.entries[slot.0 as usize].ready = false;
        self.free.push(slot.0);
        if self.free.len() == self.entries.len() && self.entries.capacity() > QUEUE_ROOM {
            // A flood leaves no memory behind.
            (self.entries, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Bytes of places beyond those that each peer has. There are as many places as there were
    /// flows at a time, until there is none.
    pub(crate) fn held(&self) -> usize {
        let beyond = |capacity: usize, entry: usize| capacity.saturating_sub(QUEUE_ROOM) * entry;
        beyond(self.entries.capacity(), size_of::<Entry>())
            + beyond(self.free.capacity(), size_of::<u32>())
    }

    /// The flow's application has something to send: it stands among the new flows, unless it is
    /// waiting already.
    pub(crate) fn wake(&mut self, slot: Slot) {
        let quantum = self.quantum;
        let entry = &mut self.entries[slot.0 as usize];
        entry.ready = true;
        if entry.place == Place::Nowhere {
            entry.deficit = quantum;
            self.append(slot.0, Place::New);
        }
    }

    /// The flow may send again after it was stopped in the middle: it joins the others at the end.
    pub(crate) fn resume(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        entry.ready = true;
        if entry.place == Place::Nowhere {
            self.append(slot.0, Place::Old);
        }
    }

    /// The flow has nothing to send now. A new one goes to the end of the others all the same, so
    /// that it cannot become new again before they had their turn.
    pub(crate) fn sleep(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        entry.ready = false;
        let place = entry.place;
        self.unlink(slot.0);
        if place == Place::New && self.classes[self.class_of(slot.0)].old.head != NIL {
            self.append(slot.0, Place::Old);
        }
    }

    /// The flow must not send: it leaves at once.
    pub(crate) fn stop(&mut self, slot: Slot) {
        self.entries[slot.0 as usize].ready = false;
        self.unlink(slot.0);
    }

    /// Flows in the lists.
    pub(crate) fn listed(&self) -> usize {
        self.listed
    }

    /// Whose turn it is. Asking again gives the same answer until something changed.
    pub(crate) fn next(&mut self) -> Option<Turn> {
        loop {
            let class = self.next_class()?;
            let lists = &self.classes[class];
            let from_new = lists.new.head != NIL;
            let index = if from_new {
                lists.new.head
            } else {
                lists.old.head
            };
            let alone = self.listed == 1;
            let quantum = self.quantum;
            let entry = &mut self.entries[index as usize];
            if !entry.ready {
                self.unlink(index);
            } else if alone {
                return Some(Turn {
                    slot: Slot(index),
                    flow: entry.flow,
                    allowance: usize::MAX,
                });
            } else if entry.deficit > 0 {
                return Some(Turn {
                    slot: Slot(index),
                    flow: entry.flow,
                    allowance: entry.deficit as usize,
                });
            } else {
                entry.deficit += quantum;
                self.unlink(index);
                self.append(index, Place::Old);
            }
        }
    }

    /// The flow has sent this many bytes.
    pub(crate) fn on_served(&mut self, slot: Slot, bytes: usize) {
        if self.listed == 1 {
            return;
        }
        let bytes = i32::try_from(bytes).expect("a buffer is far smaller than 2 GiB");
        let class = self.class_of(slot.0);
        self.entries[slot.0 as usize].deficit -= bytes;
        self.classes[class].share -= bytes;
    }

    /// The most urgent class that has somebody waiting and share left.
    fn next_class(&mut self) -> Option<usize> {
        if self.listed == 0 {
            return None;
        }
        loop {
            if let Some(class) = self
                .classes
                .iter()
                .position(|lists| !lists.is_empty() && lists.share > 0)
            {
                return Some(class);
            }
            for (lists, weight) in self.classes.iter_mut().zip(WEIGHTS) {
                lists.share = (lists.share + share(weight)).min(share(weight));
            }
        }
    }

    fn class_of(&self, index: u32) -> usize {
        self.entries[index as usize].class as usize
    }

    fn append(&mut self, index: u32, place: Place) {
        let class = self.class_of(index);
        let list = match place {
            Place::New => &mut self.classes[class].new,
            Place::Old => &mut self.classes[class].old,
            Place::Nowhere => return,
        };
        let tail = std::mem::replace(&mut list.tail, index);
        if tail == NIL {
            list.head = index;
        } else {
            self.entries[tail as usize].next = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.place = place;
        entry.previous = tail;
        entry.next = NIL;
        self.listed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Entry {
            previous,
            next,
            place,
            class,
            ..
        } = self.entries[index as usize];
        let list = match place {
            Place::New => &mut self.classes[class as usize].new,
            Place::Old => &mut self.classes[class as usize].old,
            Place::Nowhere => return,
        };
        if previous == NIL {
            list.head = next;
        }
        if next == NIL {
            list.tail = previous;
        }
        if previous != NIL {
            self.entries[previous as usize].next = next;
        }
        if next != NIL {
            self.entries[next as usize].previous = previous;
        }
        self.entries[index as usize].place = Place::Nowhere;
        self.listed -= 1;
    }

    /// Whether somebody waits for a flow that is listed.
    pub(crate) fn has_urgent(&self) -> bool {
        let urgent = &self.classes[..=Class::Interactive as usize];
        urgent
            .iter()
            .any(|lists| lists.new.head != NIL || lists.old.head != NIL)
    }

    /// Whether the flow will be served without a further `wake`.
    pub(crate) fn is_ready(&self, slot: Slot) -> bool {
        let entry = &self.entries[slot.0 as usize];
        entry.ready && entry.place != Place::Nowhere
    }

    pub(crate) fn flow_of(&self, slot: Slot) -> FlowId {
        self.entries[slot.0 as usize].flow
    }

    pub(crate) fn check_invariants(&self) {
        let mut listed = 0;
        for (class, lists) in self.classes.iter().enumerate() {
            for (place, list) in [(Place::New, lists.new), (Place::Old, lists.old)] {
                let (mut previous, mut at) = (NIL, list.head);
                while at != NIL {
                    let entry = &self.entries[at as usize];
                    assert_eq!(entry.place, place);
                    assert_eq!(entry.class as usize, class);
                    assert_eq!(entry.previous, previous);
                    (previous, at) = (at, entry.next);
                    listed += 1;
                    assert!(listed <= self.listed, "a list without an end");
                }
                assert_eq!(list.tail, previous);
            }
        }
        assert_eq!(listed, self.listed);
        assert!(self.free.len() <= self.entries.len());
    }
}

fn share(weight: i32) -> i32 {
    weight * CLASS_UNIT as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `bytes` in all to flows that always have more, in bites of at most `bite`. Returns
    /// what each got.
    fn serve(
        schedule: &mut Schedule,
        flows: usize,
        bytes: usize,
        bite: impl Fn(u32) -> usize,
        mut each: impl FnMut(&[usize]),
    ) -> Vec<usize> {
        let mut served = vec![0; flows];
        let mut total = 0;
        while total < bytes {
            let turn = schedule.next().expect("all are ready");
            let n = bite(turn.flow.0).min(turn.allowance.next_multiple_of(1400));
            schedule.on_served(turn.slot, n);
            served[turn.flow.0 as usize] += n;
            total += n;
            schedule.check_invariants();
            each(&served);
        }
        served
    }

    fn jain(served: &[usize]) -> f64 {
        let sum: f64 = served.iter().map(|n| *n as f64).sum();
        let squares: f64 = served.iter().map(|n| (*n as f64).powi(2)).sum();
        sum * sum / (served.len() as f64 * squares)
    }

    #[test]
    fn flows_of_a_class_are_never_two_quanta_apart() {
        let mut schedule = Schedule::new();
        for flow in 0..16 {
            let slot = schedule.add(FlowId(flow), Class::Normal);
            schedule.wake(slot);
        }
        let bite = |flow: u32| {
            if flow.is_multiple_of(2) {
                64 << 10
            } else {
                1000 + 37 * flow as usize
            }
        };
        let served = serve(&mut schedule, 16, 20 << 20, bite, |served| {
            let apart = served.iter().max().unwrap() - served.iter().min().unwrap();
            assert!(apart <= 2 * QUANTUM, "{apart}: {served:?}");
        });
        assert!(jain(&served) > 0.9999, "{}", jain(&served));
    }

    #[test]
    fn classes_share_by_weight() {
        let mut schedule = Schedule::new();
        for (flow, class) in [
            Class::Control,
            Class::Interactive,
            Class::Normal,
            Class::Bulk,
        ]
        .into_iter()
        .enumerate()
        {
            let slot = schedule.add(FlowId(flow as u32), class);
            schedule.wake(slot);
        }
        let served = serve(&mut schedule, 4, 64 << 20, |_| 64 << 10, |_| {});
        for (n, weight) in served.iter().zip(WEIGHTS) {
            let fair = (64 << 20) as f64 * f64::from(weight) / 30.0;
            assert!((*n as f64 / fair - 1.0).abs() < 0.02, "{served:?}");
        }
    }

    #[test]
    fn many_flows_do_not_help_a_class() {
        let mut schedule = Schedule::new();
        for flow in 0..33 {
            let slot = schedule.add(
                FlowId(flow),
                if flow == 0 {
                    Class::Interactive
                } else {
                    Class::Bulk
                },
            );
            schedule.wake(slot);
        }
        let served = serve(&mut schedule, 33, 32 << 20, |_| 1400, |_| {});
        assert!(
            served[0] as f64 > 0.78 * f64::from(32 << 20),
            "8 of 10 parts: {served:?}"
        );
    }

    #[test]
    fn a_sparse_flow_passes_the_bulk_flows_once() {
        let mut schedule = Schedule::new();
        for flow in 0..50 {
            let slot = schedule.add(FlowId(flow), Class::Normal);
            schedule.wake(slot);
        }
        // All have become old ones.
        serve(&mut schedule, 50, 50 * 2 * QUANTUM, |_| 1400, |_| {});
        let sparse = schedule.add(FlowId(99), Class::Normal);
        schedule.wake(sparse);
        assert_eq!(
            schedule.next().map(|turn| turn.flow),
            Some(FlowId(99)),
            "the next turn is its"
        );
        schedule.on_served(sparse, 200);
        schedule.sleep(sparse);
        schedule.wake(sparse);
        let mut others = 0;
        while let Some(turn) = schedule.next().filter(|turn| turn.flow != FlowId(99)) {
            schedule.on_served(turn.slot, 1400);
            others += 1400;
        }
        assert!(
            others >= 45 * QUANTUM,
            "woken again at once it waits for the others: {others}"
        );
    }

    #[test]
    fn alone_it_may_send_all_and_owes_nothing() {
        let mut schedule = Schedule::new();
        let first = schedule.add(FlowId(1), Class::Bulk);
        schedule.wake(first);
        for _ in 0..100 {
            let turn = schedule.next().unwrap();
            assert_eq!(turn.allowance, usize::MAX);
            schedule.on_served(turn.slot, 64 << 10);
        }
        let second = schedule.add(FlowId(2), Class::Bulk);
        schedule.wake(second);
        assert!(schedule.next().unwrap().allowance <= QUANTUM);
        schedule.stop(first);
        schedule.stop(second);
        assert_eq!(schedule.next(), None);
        schedule.resume(second);
        assert_eq!(schedule.next().map(|turn| turn.flow), Some(FlowId(2)));
    }

    /// Seeded calls in any order: the lists stay whole, and whoever is ready is served.
    #[test]
    fn any_calls_keep_the_lists_whole() {
        for seed in 0..300 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let mut schedule = Schedule::new();
            let mut slots = Vec::new();
            for step in 0..200 {
                match random.u8(0..8) {
                    0 => slots.push(
                        schedule.add(FlowId(step), Class::from_number(random.u8(0..4)).unwrap()),
                    ),
                    1 if !slots.is_empty() => {
                        schedule.remove(slots.swap_remove(random.usize(0..slots.len())))
                    }
                    _ if slots.is_empty() => {}
                    kind => {
                        let slot = slots[random.usize(0..slots.len())];
                        match kind {
                            2 => schedule.wake(slot),
                            3 => schedule.resume(slot),
                            4 => schedule.sleep(slot),
                            5 => schedule.stop(slot),
                            _ => {
                                if let Some(turn) = schedule.next() {
                                    assert_eq!(schedule.next(), Some(turn), "seed {seed}");
                                    schedule.on_served(turn.slot, random.usize(1..70_000));
                                }
                            }
                        }
                    }
                }
                schedule.check_invariants();
            }
            let ready = slots
                .iter()
                .filter(|slot| schedule.is_ready(**slot))
                .count();
            let mut served = 0;
            while let Some(turn) = schedule.next() {
                schedule.stop(turn.slot);
                served += 1;
            }
            assert_eq!(served, ready, "seed {seed}");
        }
    }
}
