//! Why a flow ended.

/// How a flow ended, when not in order. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// It did not.
    None = 0,
    /// The application reset its connection.
    Reset = 1,
    /// The destination refused the connection.
    Refused = 2,
    /// There is no way to the destination.
    Unreachable = 3,
    /// The destination did not answer.
    TimedOut = 4,
    /// The far TPO does not let its peer reach this destination.
    NotAllowed = 5,
    /// Too many flows, or too much memory in use.
    NoResources = 6,
    /// A TPO goes away.
    GoingAway = 7,
    /// The far TPO broke the rules of the flow.
    Protocol = 8,
    /// The peer restarted, or was given up: what it knew of the flow is lost.
    PeerRestarted = 9,
}

impl Status {
    /// An unknown number is some newer kind of reset.
    pub(crate) fn from_number(number: u8) -> Status {
        match number {
            0 => Status::None,
            2 => Status::Refused,
            3 => Status::Unreachable,
            4 => Status::TimedOut,
            5 => Status::NotAllowed,
            6 => Status::NoResources,
            7 => Status::GoingAway,
            8 => Status::Protocol,
            9 => Status::PeerRestarted,
            _ => Status::Reset,
        }
    }

    /// Whether the flow ended by its applications or the network around them, so that the data sent
    /// before still counts. The other kinds act at once.
    pub(crate) fn is_orderly(self) -> bool {
        match self {
            Status::None
            | Status::Reset
            | Status::Refused
            | Status::Unreachable
            | Status::TimedOut
            | Status::NotAllowed => true,
            Status::NoResources | Status::GoingAway | Status::Protocol | Status::PeerRestarted => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_numbers_are_the_documented_ones() {
        for number in 0..=9 {
            assert_eq!(Status::from_number(number) as u8, number);
        }
        assert_eq!(Status::from_number(77), Status::Reset);
    }
}
