//! What became of the bytes that left on a path, and the delivery-rate samples that the congestion
//! control works with (the estimator of draft-ietf-ccwg-bbr: per datagram, what had been delivered
//! when it left).
//!
//! `send` reports each datagram that leaves, is acknowledged or counts as lost. All bytes are wire
//! bytes, IP headers included.

use crate::timer::Nanos;

/// The counts at the moment when a datagram left. Its record keeps them for its sample.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshot {
    delivered: u64,
    delivered_at: Nanos,
    first_sent: Nanos,
    lost: u64,
    app_limited: bool,
}

/// A delivery-rate sample: between the sending of a datagram and its acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Bytes delivered in the interval.
    pub(crate) delivered: u64,
    /// Bytes found lost in the interval.
    pub(crate) lost: u64,
    pub(crate) interval: Nanos,
    /// The count of delivered bytes when the datagram left: tells rounds apart.
    pub(crate) prior_delivered: u64,
    pub(crate) app_limited: bool,
    pub(crate) sent: Nanos,
}

/// The counts.
#[derive(Default)]
pub(crate) struct Delivery {
    sent: u64,
    in_flight: u64,
    delivered: u64,
    /// When something was delivered last.
    delivered_at: Nanos,
    lost: u64,
    /// When the newest datagram left that was acknowledged.
    first_sent: Nanos,
    /// Until this many bytes are delivered in all, samples show how little there was to send.
    app_limited_until: Option<u64>,
}

impl Delivery {
    /// Bytes on their way.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes delivered so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes lost so far, less those that turned out not to be.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// A datagram of `bytes` leaves; 0 for one that asks for no acknowledgement.
    pub(crate) fn on_sent(&mut self, bytes: u64, now: Nanos) -> Snapshot {
        if bytes > 0 && self.in_flight == 0 {
            // After a rest the samples must not count the rest.
            self.first_sent = now;
            self.delivered_at = now;
        }
        self.sent += bytes;
        self.in_flight += bytes;
        Snapshot {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            lost: self.lost,
            app_limited: self.app_limited_until.is_some(),
        }
    }

    /// The sender has less to send than it may: samples until all of this is delivered do not show
    /// the path's rate.
    pub(crate) fn on_app_limited(&mut self) {
        self.app_limited_until = Some(self.delivered + self.in_flight);
    }

    /// A datagram of `bytes` was acknowledged. `was_lost`: it counted as lost before.
    pub(crate) fn on_acked(&mut self, bytes: u64, was_lost: bool, now: Nanos) {
        if was_lost {
            self.lost -= bytes;
        } else {
            self.in_flight -= bytes;
        }
        self.delivered += bytes;
        self.delivered_at = now;
        if self
            .app_limited_until
            .is_some_and(|until| self.delivered > until)
        {
            self.app_limited_until = None;
        }
    }

    /// A datagram of `bytes` on its way counts as lost from now on.
    pub(crate) fn on_lost(&mut self, bytes: u64) {
        self.in_flight -= bytes;
        self.lost += bytes;
    }

    /// The sample of an acknowledgement whose newest datagram left at `sent`, with these counts.
    pub(crate) fn take_sample(&mut self, sent: Nanos, newest: &Snapshot) -> Sample {
        let sending = sent.saturating_sub(newest.first_sent);
        let arriving = self.delivered_at.saturating_sub(newest.delivered_at);
        self.first_sent = sent;
        Sample {
            delivered: self.delivered - newest.delivered,
            lost: self.lost.saturating_sub(newest.lost),
            interval: sending.max(arriving),
            prior_delivered: newest.delivered,
            app_limited: newest.app_limited,
            sent,
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.delivered + self.lost + self.in_flight,
            self.sent,
            "every byte sent has one fate"
        );
    }
}
