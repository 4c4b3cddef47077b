//! Datagrams at the mover's edge: what a batch that leaves is for, and what one that came has
//! proved.

use std::net::SocketAddr;

/// A batch of datagrams that leaves together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// What they are.
    pub kind: TransmitKind,
    /// Bytes of each datagram; only the last may be shorter.
    pub segment_size: usize,
}

/// What a batch of datagrams is for. The caller chooses by it from which of its own addresses the
/// batch leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransmitKind {
    /// An attempt of our own: nothing is known of the way but its end.
    Call,
    /// The answer to the attempt of this number. It goes back the way that the attempt came, and
    /// says nothing of any other way.
    Answer(u64),
    /// Of the session: the peer has proved that it is there.
    Session,
}

/// What a received datagram has proved of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nothing: whoever knows our address can have sent it.
    Unknown,
    /// Nothing, and it was made for other keys than ours and the peer's, with another pre-shared
    /// key, or damaged.
    Stranger,
    /// Its sender has the secrets of the pair, or copies who has. Its attempt, which has this
    /// number, may be answered.
    Caller(u64),
    /// It is the peer: the datagram was sealed for us by who has the peer's private key. Where it
    /// came from may still be forged by who is on the path, until an answer has come back.
    Peer,
}
