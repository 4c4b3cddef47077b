//! When a test has its turn: most wait more than they compute, and run beside each other; those
//! that fill the machine run alone.
//!
//! A stage (`site.rs`, `mesh.rs`) takes a [`Turn`] before it makes its namespaces, and gives it
//! back behind them.

use std::sync::{Condvar, Mutex, PoisonError};

/// Tests at the same time, if there are as many threads (`RUST_TEST_THREADS`).
const PLACES: usize = 3;

/// What loads the machine, or asserts how fast something is while it carries much: modules, and
/// tests with their module. Whoever is named here has all places.
const ALONE: [&str; 20] = [
    "carry::",
    "compress::",
    "demand::",
    "ends::",
    "failure::",
    "floods::",
    "hostile::",
    "keys::",
    "local::",
    "mesh::",
    "quic::",
    "shares::",
    "strangers::",
    "transit::",
    "confined::confined_it_carries",
    "confined::a_stopped_daemon_gives_no_life_sign",
    "multicast::a_hundred_sites_hear_one_sender",
    "packets::a_flood_of_spoofed_sources_does_not_touch_who_was_there",
    "packets::many_short_flows_leave_nothing_behind",
    "packets::ping_shows_the_true_round_trip",
];

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// Places of this process that a test has, until it is dropped.
pub(crate) struct Turn(usize);

impl Turn {
    /// Waits until there is room for the test of this thread: its name is the thread's.
    pub(crate) fn take() -> Turn {
        let thread = std::thread::current();
        // With one test thread all run in the main one.
        let test = thread.name().unwrap_or_default();
        let alone = ALONE.iter().any(|name| test.starts_with(name));
        let places = if alone { PLACES } else { 1 };
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken + places > PLACES {
            taken = GIVEN_BACK
                .wait(taken)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *taken += places;
        Turn(places)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        GIVEN_BACK.notify_all();
    }
}
