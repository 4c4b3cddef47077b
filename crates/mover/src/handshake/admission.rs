//! Which attempt may begin with us: cookies under load, a limit for all, and no second answer to an
//! attempt that is over.
//!
//! Every datagram that comes this far was made by the peer; but anybody may have recorded it and
//! send it again, from any address. A cookie tells the two apart: only the peer, alive and in this
//! very attempt, can put it into a datagram.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf::Prk;
use aws_lc_rs::hmac;

use crate::crypto::expand;

/// The time over which attempts are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Attempts within a second that are answered without a cookie. One true peer makes one in six
/// seconds.
const FREE: usize = 5;
/// Attempts within a second that are answered at all, with a cookie too: each costs a quarter of a
/// millisecond.
const MOST: usize = 50;
/// How long a cookie secret is used; a cookie lives between one and two of these. As WireGuard's.
const ROTATION: Duration = Duration::from_secs(120);
/// Attempts remembered as over. A replay of an older one is answered once more, and harms nothing.
const REMEMBERED: usize = 64;

pub(super) struct Admission {
    secret: Prk,
    /// When the counting of cookie secrets began: at the first attempt.
    epoch: Option<Instant>,
    /// When the last attempts were admitted; at most [`MOST`].
    admitted: VecDeque<Instant>,
    /// Attempts that are over; at most [`REMEMBERED`].
    over: VecDeque<u64>,
}

impl Admission {
    pub(super) fn new(secret: Prk) -> Admission {
        Admission {
            secret,
            epoch: None,
            admitted: VecDeque::new(),
            over: VecDeque::new(),
        }
    }

    /// The counting of cookie secrets begins, unless it has. To be called before anything is asked.
    pub(super) fn start(&mut self, now: Instant) {
        self.epoch.get_or_insert(now);
    }

    /// More attempts than one peer makes.
    pub(super) fn is_loaded(&self, now: Instant) -> bool {
        let recent = |&&at: &&Instant| now.saturating_duration_since(at) < WINDOW;
        self.admitted.iter().rev().take_while(recent).count() >= FREE
    }

    /// Counts an attempt. False if there were too many, whatever they prove.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        while self
            .admitted
            .front()
            .is_some_and(|&at| now.saturating_duration_since(at) >= WINDOW)
        {
            self.admitted.pop_front();
        }
        let room = self.admitted.len() < MOST;
        if room {
            self.admitted.push_back(now);
        }
        room
    }

    pub(super) fn on_over(&mut self, attempt: u64) {
        if self.over.len() == REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back(attempt);
    }

    pub(super) fn is_over(&self, attempt: u64) -> bool {
        self.over.contains(&attempt)
    }

    pub(super) fn cookie(&self, index: u32, attempt: u64, now: Instant) -> [u8; 16] {
        let epoch = self.epoch(now);
        self.cookie_of(epoch, index, attempt)
    }

    pub(super) fn cookie_fits(
        &self,
        cookie: &[u8; 16],
        index: u32,
        attempt: u64,
        now: Instant,
    ) -> bool {
        let epoch = self.epoch(now);
        *cookie != [0; 16]
            && [Some(epoch), epoch.checked_sub(1)]
                .into_iter()
                .flatten()
                .any(|epoch| {
                    verify_slices_are_equal(&self.cookie_of(epoch, index, attempt), cookie).is_ok()
                })
    }

    fn epoch(&self, now: Instant) -> u64 {
        let begin = self.epoch.unwrap_or(now);
        now.saturating_duration_since(begin).as_secs() / ROTATION.as_secs()
    }

    /// Of the attempt, not of the address: a copy of the attempt's datagrams that somebody sends
    /// from elsewhere is answered by the same cookie, so nobody has another one to lead the peer
    /// astray with. And an address translator may change its mind.
    fn cookie_of(&self, epoch: u64, index: u32, attempt: u64) -> [u8; 16] {
        let mut key = [0; 32];
        expand(
            &self.secret,
            &[&b"tpo cookie"[..], &epoch.to_be_bytes()].concat(),
            &mut key,
        );
        let text = [&index.to_be_bytes()[..], &attempt.to_be_bytes()].concat();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &text);
        tag.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes")
    }
}
