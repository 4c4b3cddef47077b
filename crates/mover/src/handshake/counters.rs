//! What the handshake counts, from the making of the mover on.

use super::error::HandshakeError;

/// Attempts to agree on keys with the peer, and what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCounters {
    /// Attempts of our own.
    pub started: u64,
    /// Attempts of the peer that we began to answer.
    pub answered: u64,
    /// Sessions established, by either side's attempt.
    pub established: u64,
    /// Flights sent again.
    pub resent: u64,
    /// Cookies that we demanded.
    pub retries_sent: u64,
    /// Cookies that we were asked for and sent.
    pub retries_taken: u64,
    /// Datagrams that had no effect.
    pub drops: HandshakeDrops,
}

/// Handshake datagrams that had no effect, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeDrops {
    // --- anybody can have sent it
    /// Datagrams between other keys than ours and the peer's.
    pub strangers: u64,
    /// Datagrams that bear the names of the pair but no proof to be of it: from somebody who has
    /// seen the names, or from the peer when the pre-shared keys differ.
    pub unproved: u64,
    /// Datagrams whose length no handshake datagram has.
    pub no_form: u64,
    /// Datagrams of another version of the handshake.
    pub other_version: u64,

    // --- the peer made it; somebody may have repeated it
    /// Fragments whose lengths do not fit each other.
    pub fragments_malformed: u64,
    /// Datagrams of an attempt that is not under way.
    pub no_attempt: u64,
    /// Datagrams of an attempt that is over: late copies, or replays.
    pub attempt_over: u64,
    /// Datagrams of the peer's attempt while our own goes first.
    pub yielding: u64,
    /// Datagrams that contradict what came before in the same attempt.
    pub contradictory: u64,
    /// Attempts not answered because there were too many.
    pub limited: u64,
    /// Fragments that did not open.
    pub forged: u64,
    /// Attempts that TLS refused: a wrong private key, or an incompatible version.
    pub refused: u64,
}

impl HandshakeDrops {
    /// Datagrams whose form is wrong, whoever made them.
    pub fn malformed(&self) -> u64 {
        self.no_form + self.other_version + self.fragments_malformed
    }

    pub(super) fn count(&mut self, error: &HandshakeError) {
        *match error {
            HandshakeError::Stranger => &mut self.strangers,
            HandshakeError::Unproved => &mut self.unproved,
            HandshakeError::Form { .. } => &mut self.no_form,
            HandshakeError::Version { .. } => &mut self.other_version,
            HandshakeError::Fragment { .. } => &mut self.fragments_malformed,
            HandshakeError::Attempt => &mut self.no_attempt,
            HandshakeError::Over => &mut self.attempt_over,
            HandshakeError::Yields => &mut self.yielding,
            HandshakeError::Inconsistent => &mut self.contradictory,
            HandshakeError::Limited => &mut self.limited,
            HandshakeError::Seal => &mut self.forged,
            HandshakeError::Tls(_) => &mut self.refused,
        } += 1;
    }
}
