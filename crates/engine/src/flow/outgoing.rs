//! What a flow may send: its place in the direction's bytes, the far side's credit, the end.

use super::sequence::full_offset;

/// The sending direction of a flow.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Offset of the next byte to be read from the application.
    next: u64,
    /// Offset up to which the far side takes data.
    credit: u64,
    /// The far side has taken back what is left of it, until it grants more.
    paused: bool,
    fin: bool,
}

impl Outgoing {
    pub(crate) fn new(credit: u64) -> Outgoing {
        Outgoing {
            next: 0,
            credit,
            paused: false,
            fin: false,
        }
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn fin(&self) -> bool {
        self.fin
    }

    pub(crate) fn credit_left(&self) -> u64 {
        if self.paused {
            0
        } else {
            self.credit - self.next
        }
    }

    pub(crate) fn on_sent(&mut self, bytes: usize) {
        self.next += bytes as u64;
        assert!(self.next <= self.credit, "sent beyond the credit");
    }

    pub(crate) fn on_end(&mut self) {
        self.fin = true;
    }

    /// Takes a credit message's sequence number. Messages come in any order: an older one says
    /// nothing new. Returns whether sending may go on that could not before.
    pub(crate) fn handle_credit(&mut self, sequence: u32) -> bool {
        let was_blocked = self.credit_left() == 0;
        let Some(credit) = full_offset(self.credit, sequence) else {
            return false;
        };
        if credit > self.credit {
            (self.credit, self.paused) = (credit, false);
        }
        was_blocked && self.credit_left() > 0
    }

    /// The far side takes back the credit up to this sequence number. If it has granted more since,
    /// that message was the later one.
    pub(crate) fn handle_pause(&mut self, sequence: u32) {
        if let Some(credit) =
            full_offset(self.credit, sequence).filter(|credit| *credit >= self.credit)
        {
            // It may have overtaken the message that granted this.
            (self.credit, self.paused) = (credit, true);
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.next <= self.credit, "sent beyond the credit");
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.credit += offset;
        self.next += offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_only_grows() {
        let mut outgoing = Outgoing::new(10);
        outgoing.on_sent(10);
        assert!(!outgoing.handle_credit(7), "an older credit message");
        assert_eq!(outgoing.credit_left(), 0);
        assert!(outgoing.handle_credit(30));
        assert!(!outgoing.handle_credit(40), "it was not blocked");
        assert!(!outgoing.handle_credit(30));
        assert_eq!(outgoing.credit_left(), 30);
    }

    #[test]
    fn a_pause_lasts_until_there_is_more_credit() {
        let mut outgoing = Outgoing::new(100);
        outgoing.on_sent(10);
        outgoing.handle_pause(100);
        assert_eq!(outgoing.credit_left(), 0);
        assert!(
            !outgoing.handle_credit(100),
            "granted before the pause, and overtaken by it"
        );
        assert!(outgoing.handle_credit(101) && outgoing.credit_left() == 91);
        outgoing.handle_pause(100);
        assert_eq!(
            outgoing.credit_left(),
            91,
            "overtaken by the credit that ended it"
        );
        outgoing.handle_pause(200);
        assert!(
            !outgoing.handle_credit(200) && outgoing.credit_left() == 0,
            "it overtook the credit that it takes back"
        );
        assert!(outgoing.handle_credit(300) && outgoing.credit_left() == 290);
    }

    #[test]
    fn credit_survives_the_wrap() {
        let mut outgoing = Outgoing::new(0);
        outgoing.start_at(0xffff_ff00);
        assert!(outgoing.handle_credit(0x0000_0100));
        assert_eq!(outgoing.credit_left(), 0x200);
    }
}
