//! Why a handshake datagram had no effect. [`super::counters`] counts each kind apart.

/// Why a datagram had no effect. A fact about the network or the peer, already counted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// No handshake datagram can look like this.
    #[error("no handshake datagram of {length} bytes")]
    Form { length: usize },
    /// The peer speaks another version.
    #[error("handshake version {found}, ours is 1")]
    Version { found: u8 },
    /// Another pair's.
    #[error("not of this pair of keys")]
    Stranger,
    /// The sender knows the names of the pair, but not what only the pair can know.
    #[error("the sender is not the peer, or has another pre-shared key")]
    Unproved,
    /// The lengths do not fit each other.
    #[error("fragment of {length} bytes at {offset} of {total}")]
    Fragment {
        offset: usize,
        length: usize,
        total: usize,
    },
    /// Of no attempt that is under way.
    #[error("no such attempt is under way")]
    Attempt,
    /// Of an attempt that is over: a late copy, or a replay.
    #[error("the attempt is over")]
    Over,
    /// The peer's attempt gives way to ours.
    #[error("our own attempt goes first")]
    Yields,
    /// Too many attempts.
    #[error("too many attempts within a second")]
    Limited,
    /// Contradicts what came before in the same attempt.
    #[error("contradicts what came before")]
    Inconsistent,
    /// A sealed fragment does not open.
    #[error("the tag of a fragment does not fit")]
    Seal,
    /// TLS refused it.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}
