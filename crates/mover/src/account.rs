//! Memory of one kind: what is held is charged here before it is allocated, and never exceeds the
//! limit.

/// Bytes held, and how many may be.
pub(crate) struct Account {
    held: usize,
    limit: usize,
    /// What was held when the limit was lowered last: `held` may be above the limit up to this, and
    /// only shrinks.
    held_before: usize,
    most: usize,
}

impl Account {
    pub(crate) fn new(limit: usize) -> Account {
        Account {
            held: 0,
            limit,
            held_before: 0,
            most: 0,
        }
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The most that was ever held.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Bytes that may be charged in addition.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.held)
    }

    /// Whether `bytes` more may be charged.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.held + bytes <= self.limit
    }

    pub(crate) fn charge(&mut self, bytes: usize) {
        self.held += bytes;
        self.most = self.most.max(self.held);
    }

    pub(crate) fn refund(&mut self, bytes: usize) {
        self.held -= bytes;
    }

    /// What may be held from now on. What is held already stays.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
        self.held_before = self.held;
    }

    /// `whose`: for the message.
    pub(crate) fn check_invariants(&self, whose: &str) {
        assert!(
            self.held <= self.limit.max(self.held_before),
            "{whose} holds {} of {} bytes",
            self.held,
            self.limit
        );
    }
}
