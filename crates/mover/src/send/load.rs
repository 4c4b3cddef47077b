//! What a datagram is for, and what it was filled with.

/// What the next datagram is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    /// Payloads, as pacing and window allow.
    Data,
    /// Asks the peer for an acknowledgement after a silence, with data that it may lack. Small:
    /// sure to fit the path.
    Probe { small: bool },
    /// Asks whether the path carries datagrams of this size.
    Size(usize),
    /// Nothing but a ping.
    Ping,
    /// Nothing but an acknowledgement.
    Ack,
    /// A parity row over protected datagrams.
    Parity,
    /// What the last datagram of a burst carried, once more.
    Tail,
}

/// What a datagram was filled with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Filled {
    /// Segments of payloads.
    pub(crate) segments: usize,
    /// It asks for an acknowledgement.
    pub(crate) asks: bool,
    /// Parity over it will follow: its plain bytes are to be given to `protect`.
    pub(crate) protected: bool,
}

impl Filled {
    /// Segments, and with them the wish for an acknowledgement.
    pub(crate) fn with_segments(segments: usize) -> Filled {
        Filled {
            segments,
            asks: segments > 0,
            protected: false,
        }
    }
}
