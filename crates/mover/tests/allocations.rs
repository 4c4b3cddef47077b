//! In steady state no datagram costs an allocation, at either end. Counted by the allocator itself,
//! in a binary of its own.
#![allow(unsafe_code, reason = "an allocator cannot be written without")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "counters of a test"
)]

mod pair;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use pair::{A, B, Pair, Setup};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has lost its counter, and nobody asks for it.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Carries so many bytes and returns the datagrams and allocations that it took: `[sender,
/// receiver]`.
fn carry(
    pair: &mut Pair,
    now: &mut std::time::Instant,
    bytes: u64,
    loss_percent: u8,
    urgent: bool,
) -> (u64, [u64; 2]) {
    let (a, b) = (pair.address(A), pair.address(B));
    let mut dice = fastrand::Rng::with_seed(3);
    let (mut out, mut back) = (Vec::with_capacity(70_000), Vec::with_capacity(70_000));
    let (mut datagrams, mut received, mut spent) = (0, 0, [0; 2]);
    let counted = |spent: &mut u64, work: &mut dyn FnMut()| {
        let before = ALLOCATIONS.get();
        work();
        *spent += ALLOCATIONS.get() - before;
    };
    let end = *now + Duration::from_secs(60);
    while received < bytes {
        assert!(
            *now < end,
            "{received} of {bytes} bytes: {:?}",
            pair.stats(A)
        );
        *now += Duration::from_micros(200);
        let now = *now;
        let mover = &mut pair.world.node_mut(A).mover;
        out.clear();
        let mut transmit = None;
        counted(&mut spent[0], &mut || {
            if mover.poll_timeout().is_some_and(|(at, _)| at <= now) {
                mover.handle_timeout(now);
            }
            while mover.poll_budget(now) > 0 {
                let mut payload = mover.take_buffer();
                let size = if urgent {
                    mover.urgent_payload()
                } else {
                    mover.segment_payload() * 44
                };
                payload.resize(size, 0);
                if mover.send(payload, urgent, now).is_err() {
                    break;
                }
            }
            transmit = mover.poll_transmit(&mut out, now);
        });
        let mover = &mut pair.world.node_mut(B).mover;
        back.clear();
        let mut answer = None;
        counted(&mut spent[1], &mut || {
            if let Some(transmit) = transmit {
                for datagram in out.chunks_mut(transmit.segment_size) {
                    datagrams += 1;
                    if dice.u8(0..100) >= loss_percent {
                        mover.handle_datagram(a, datagram, now);
                    }
                }
            }
            while let Some(payload) = mover.poll_payload() {
                received += payload.len() as u64;
                mover.recycle(payload);
            }
            if mover.poll_timeout().is_some_and(|(at, _)| at <= now) {
                mover.handle_timeout(now);
            }
            answer = mover.poll_transmit(&mut back, now);
        });
        let mover = &mut pair.world.node_mut(A).mover;
        counted(&mut spent[0], &mut || {
            if let Some(answer) = answer {
                for datagram in back.chunks_mut(answer.segment_size) {
                    mover.handle_datagram(b, datagram, now);
                }
            }
        });
    }
    (datagrams, spent)
}

#[test]
fn a_datagram_costs_no_allocation() {
    for (loss_percent, urgent) in [(0, false), (2, false), (0, true)] {
        let mut setup = Setup::new(1, "delay=1ms mtu=1500");
        setup.change = Box::new(|config, _| config.segment = Some(1_472));
        let mut pair = Pair::new(setup);
        pair.connect();
        let mut now = pair.world.now();
        carry(&mut pair, &mut now, 100_000_000, loss_percent, urgent);
        let (datagrams, spent) = carry(&mut pair, &mut now, 50_000_000, loss_percent, urgent);
        println!(
            "loss {loss_percent} %, urgent {urgent}: {datagrams} datagrams, allocations {spent:?}"
        );
        assert!(datagrams > 30_000);
        // What is acknowledged of a payload with holes is a list of its own, and now and then
        // something reaches a size that it never had.
        assert!(
            spent.iter().all(|spent| *spent < datagrams / 50),
            "{spent:?}"
        );
    }
}
