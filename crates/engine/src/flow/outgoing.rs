//! What a flow may send: its place in the direction's bytes, the far side's credit, the end.

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
    pub(crate) fn on_credit(&mut self, sequence: u32) -> bool {
        let was_blocked = self.credit_left() == 0;
        let Some(credit) = expand(self.credit, sequence) else {
            return false;
        };
        if credit > self.credit {
            (self.credit, self.paused) = (credit, false);
        }
        was_blocked && self.credit_left() > 0
    }

    /// The far side takes back the credit up to this sequence number. If it has granted more since,
    /// that message was the later one.
    pub(crate) fn on_pause(&mut self, sequence: u32) {
        if let Some(credit) = expand(self.credit, sequence).filter(|credit| *credit >= self.credit)
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

/// The offset nearest to `near` whose low 32 bits are `sequence`; none if it would lie before the
/// start.
pub(crate) fn expand(near: u64, sequence: u32) -> Option<u64> {
    let distance = sequence.wrapping_sub(near as u32) as i32;
    near.checked_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_survive_the_wrap() {
        for near in [
            0_u64,
            5,
            0x7fff_ffff,
            0xffff_fff0,
            0x1_0000_0000,
            0x1_0000_0010,
            0xffff_ffff_0000,
        ] {
            for distance in [-0x4000_0000_i64, -17, -1, 0, 1, 17, 0x4000_0000] {
                let Some(offset) = near.checked_add_signed(distance) else {
                    continue;
                };
                assert_eq!(
                    expand(near, offset as u32),
                    Some(offset),
                    "{near} {distance}"
                );
            }
        }
        assert_eq!(expand(3, 0xffff_ffff), None);
    }

    #[test]
    fn credit_only_grows() {
        let mut outgoing = Outgoing::new(10);
        outgoing.on_sent(10);
        assert!(!outgoing.on_credit(7), "an older credit message");
        assert_eq!(outgoing.credit_left(), 0);
        assert!(outgoing.on_credit(30));
        assert!(!outgoing.on_credit(40), "it was not blocked");
        assert!(!outgoing.on_credit(30));
        assert_eq!(outgoing.credit_left(), 30);
    }

    #[test]
    fn a_pause_lasts_until_there_is_more_credit() {
        let mut outgoing = Outgoing::new(100);
        outgoing.on_sent(10);
        outgoing.on_pause(100);
        assert_eq!(outgoing.credit_left(), 0);
        assert!(
            !outgoing.on_credit(100),
            "granted before the pause, and overtaken by it"
        );
        assert!(outgoing.on_credit(101) && outgoing.credit_left() == 91);
        outgoing.on_pause(100);
        assert_eq!(
            outgoing.credit_left(),
            91,
            "overtaken by the credit that ended it"
        );
        outgoing.on_pause(200);
        assert!(
            !outgoing.on_credit(200) && outgoing.credit_left() == 0,
            "it overtook the credit that it takes back"
        );
        assert!(outgoing.on_credit(300) && outgoing.credit_left() == 290);
    }

    #[test]
    fn credit_survives_the_wrap() {
        let mut outgoing = Outgoing::new(0);
        outgoing.start_at(0xffff_ff00);
        assert!(outgoing.on_credit(0x0000_0100));
        assert_eq!(outgoing.credit_left(), 0x200);
    }
}
