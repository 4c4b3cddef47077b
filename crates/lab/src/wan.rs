//! The live WAN: one thread that carries packets between two TUN devices through two links.
//!
//! Super-packets stay whole as long as their segments share a fate. Each segment is carried by the
//! link on its own, with its own length, loss and arrival; segments that follow each other without
//! a gap and arrive within [`QUANTUM`] travel on as one, and come out when the last of them would.
//! So the kernel's cost is paid per run, not per packet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::link::{Fate, Link, LinkStats};
use crate::profile::Profile;
use crate::segment::{self, Super, VIRTIO};
use crate::sys;
use crate::tun::{FRAME, Tun};

/// Segments whose arrivals lie closer together than this may come out together, with the last of
/// them: 41 segments at 1 Gbit/s, a whole super-packet; 4 at 100 Mbit/s.
const QUANTUM: Duration = Duration::from_micros(500);
/// As a network card does: when wake-ups follow each other faster than this, the next one waits
/// this long and finds more to do. Only where the links are at least [`PAUSE_DELAY`] long, which
/// hides it; 80,000 single packets per second took a whole core without it.
const PAUSE: Duration = Duration::from_micros(50);
const PAUSE_DELAY: Duration = Duration::from_millis(1);
/// Frames read from one side before the other side and the deliveries get their turn.
const BATCH: usize = 16;
/// Bytes on their way in one direction: 20 Gbit/s for 200 ms. What comes beyond is dropped and
/// counted.
const MAX_ON_THE_WAY: usize = 512 << 20;
/// Whole frames whose buffers are kept for reuse, in each direction.
const MAX_SPARE: usize = 256;

/// The thread and what it shares.
pub(crate) struct Carrier {
    shared: Arc<Shared>,
    /// Dropping it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// From a to b, and back.
    links: Mutex<[Link; 2]>,
    overrun: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, [Link; 2]> {
        self.links
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether both directions are at least [`PAUSE_DELAY`] long, so that a [`PAUSE`] does not
    /// show.
    fn long(&self) -> bool {
        self.links()
            .iter()
            .all(|link| link.profile().delay >= PAUSE_DELAY)
    }
}

impl Carrier {
    pub(crate) fn start(
        a: Tun,
        b: Tun,
        a_to_b: Profile,
        b_to_a: Profile,
        seed: u64,
    ) -> io::Result<Carrier> {
        let now = Instant::now();
        let links = [
            Link::new(a_to_b, seed, now),
            Link::new(b_to_a, seed ^ 1, now),
        ];
        let shared = Arc::new(Shared {
            links: Mutex::new(links),
            overrun: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let (stopped, stop) = io::pipe()?;
        let side = |from, to| Side {
            from,
            to,
            way: Way::new(),
            buffer: vec![0; FRAME],
            readable: true,
            gone: false,
        };
        let (a, b) = (Arc::new(a), Arc::new(b));
        let sides = [side(a.clone(), b.clone()), side(b, a)];
        let dice = fastrand::Rng::with_seed(seed ^ 2);
        let mut worker = Worker {
            sides,
            stopped,
            shared: shared.clone(),
            dice,
        };
        let thread = std::thread::Builder::new()
            .name("wan".into())
            .spawn(move || worker.run())?;
        Ok(Carrier {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(crate) fn set(&self, a_to_b: Profile, b_to_a: Profile) {
        let now = Instant::now();
        let mut links = self.shared.links();
        links[0].set(a_to_b, now);
        links[1].set(b_to_a, now);
    }

    pub(crate) fn profiles(&self) -> (Profile, Profile) {
        let links = self.shared.links();
        (links[0].profile().clone(), links[1].profile().clone())
    }

    pub(crate) fn stats(&self) -> (LinkStats, LinkStats) {
        let links = self.shared.links();
        (links[0].stats(), links[1].stats())
    }

    /// Bytes that wait for the bottleneck of each direction now.
    pub(crate) fn waiting(&self) -> (u64, u64) {
        let links = self.shared.links();
        let now = Instant::now();
        (links[0].waiting(now), links[1].waiting(now))
    }

    /// Frames that this thread, not the model, dropped: too many on the way, or refused by the
    /// kernel.
    pub(crate) fn own_drops(&self) -> u64 {
        self.shared.overrun.load(Ordering::Relaxed) + self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the lab's WAN thread panicked");
        }
    }
}

struct Worker {
    sides: [Side; 2],
    stopped: PipeReader,
    shared: Arc<Shared>,
    dice: fastrand::Rng,
}

/// One direction: from where, to where, and what is on its way.
struct Side {
    from: Arc<Tun>,
    to: Arc<Tun>,
    way: Way,
    /// Room for the frame that is read, always [`FRAME`] bytes long.
    buffer: Vec<u8>,
    readable: bool,
    /// The device that is read is no more.
    gone: bool,
}

impl Worker {
    fn run(&mut self) {
        sys::hurry();
        let shared = self.shared.clone();
        let mut woke = Instant::now();
        loop {
            for i in 0..2 {
                self.read(i, &shared);
                self.deliver(&shared);
            }
            if self.sides.iter().any(|side| side.readable) {
                continue;
            }
            let next = self.sides.iter().filter_map(|side| side.way.next()).min();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            let end = self.stopped.as_fd();
            let watched = [0, 1].map(|i| {
                if self.sides[i].gone {
                    end
                } else {
                    self.sides[i].from.as_fd()
                }
            });
            let watched = [end, watched[0], watched[1]];
            let wait = |watched: &[BorrowedFd<'_>], timeout| {
                sys::wait(watched, timeout).expect("waiting for open descriptors cannot be refused")
            };
            let mut ready = wait(&watched, timeout);
            let before = std::mem::replace(&mut woke, Instant::now());
            if woke - before < PAUSE && shared.long() {
                ready |= wait(&watched[..1], Some(PAUSE)) | 2 | 4;
                woke = Instant::now();
            }
            if ready & 1 != 0 {
                return;
            }
            for (i, side) in self.sides.iter_mut().enumerate() {
                side.readable = ready & (2 << i) != 0 && !side.gone;
            }
        }
    }

    /// Reads a batch of frames from one side and hands them to its link.
    fn read(&mut self, i: usize, shared: &Shared) {
        let side = &mut self.sides[i];
        if !side.readable {
            return;
        }
        let mut links = shared.links();
        for _ in 0..BATCH {
            match side.from.read(&mut side.buffer) {
                Ok(Some(length)) if length > VIRTIO => {
                    if side.way.bytes >= MAX_ON_THE_WAY {
                        shared.overrun.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let now = Instant::now();
                    let Side {
                        to, way, buffer, ..
                    } = side;
                    let write = |frame: &[u8]| write(to, frame, shared);
                    offer(
                        buffer,
                        length,
                        &mut links[i],
                        &mut Out { way, write, now },
                        &mut self.dice,
                    );
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    side.readable = false;
                    return;
                }
                // The device was deleted: it would stay readable, with the same error each time.
                Err(_) => {
                    side.readable = false;
                    side.gone = true;
                    return;
                }
            }
        }
    }

    /// Delivers what has arrived, on both sides.
    fn deliver(&mut self, shared: &Shared) {
        for side in &mut self.sides {
            while let Some(at) = side.way.next() {
                if at > Instant::now() {
                    break;
                }
                let frame = side.way.pop().expect("something is next");
                write(&side.to, &frame.bytes[..frame.length], shared);
                side.way.spare(frame.bytes);
            }
        }
    }
}

fn write(to: &Tun, frame: &[u8], shared: &Shared) {
    match to.write(frame) {
        // The device's interface is not up: nobody is there, which is not our doing.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        Err(_) => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(()) => {}
    }
}

/// Hands the frame in the buffer to the link, segment by segment, and sends on what comes of it.
fn offer<W: FnMut(&[u8])>(
    buffer: &mut Vec<u8>,
    length: usize,
    link: &mut Link,
    out: &mut Out<'_, W>,
    dice: &mut fastrand::Rng,
) {
    let frame = &buffer[..length];
    let parts = Super::parse(frame);
    let count = parts.map_or(1, |parts| parts.count());
    let bytes = |i| parts.map_or(length - VIRTIO, |parts: Super| parts.length(i));
    let cut = |run: Range<usize>| {
        let Some(parts) = parts else {
            return frame.to_vec();
        };
        let mut piece = Vec::with_capacity(VIRTIO + run.clone().map(bytes).sum::<usize>());
        parts.cut(frame, run, &mut piece);
        piece
    };
    let mut run = Run::default();
    for i in 0..count {
        let delivery = match link.carry(bytes(i), out.now) {
            Fate::Delivered(delivery) => delivery,
            Fate::Dropped(_) => {
                run.close(out, &cut);
                continue;
            }
        };
        if delivery.again.is_none() && !delivery.corrupt {
            if !run.joins(delivery.at) {
                run.close(out, &cut);
            }
            run.add(i, delivery.at);
            continue;
        }
        run.close(out, &cut);
        let clean = cut(i..i + 1);
        let mut piece = clean.clone();
        if delivery.corrupt {
            segment::corrupt(&mut piece, dice);
        }
        out.way.push(delivery.at, piece);
        if let Some(again) = delivery.again {
            out.way.push(again, clean);
        }
    }
    match run.whole(count) {
        Some(at) => out.send_buffer(at, buffer, length),
        None => run.close(out, &cut),
    }
}

/// Segments in a row that share a fate and nearly an arrival.
#[derive(Default)]
struct Run {
    segments: Range<usize>,
    /// Arrival of the first and of the last.
    times: Option<(Instant, Instant)>,
}

impl Run {
    fn joins(&self, at: Instant) -> bool {
        self.times
            .is_none_or(|(first, last)| at >= last && at - first <= QUANTUM)
    }

    fn add(&mut self, i: usize, at: Instant) {
        match &mut self.times {
            Some((_, last)) => *last = at,
            None => {
                self.segments.start = i;
                self.times = Some((at, at));
            }
        }
        self.segments.end = i + 1;
    }

    /// The arrival, if the run is all there is.
    fn whole(&self, count: usize) -> Option<Instant> {
        self.times
            .filter(|_| self.segments == (0..count))
            .map(|(_, last)| last)
    }

    fn close<W: FnMut(&[u8])>(
        &mut self,
        out: &mut Out<'_, W>,
        cut: &impl Fn(Range<usize>) -> Vec<u8>,
    ) {
        if let Some((_, last)) = self.times.take() {
            out.way.push(last, cut(self.segments.clone()));
        }
    }
}

/// Where frames go from the link: at once to the device, or on their way.
struct Out<'a, W> {
    way: &'a mut Way,
    write: W,
    now: Instant,
}

impl<W: FnMut(&[u8])> Out<'_, W> {
    /// Sends on the whole frame in the buffer, at best without a copy.
    fn send_buffer(&mut self, at: Instant, buffer: &mut Vec<u8>, length: usize) {
        if at <= self.now && self.way.next().is_none_or(|next| next > at) {
            (self.write)(&buffer[..length]);
        } else if length * 4 < FRAME {
            // A small packet must not hold the room of a large one while it waits.
            self.way.push(at, buffer[..length].to_vec());
        } else {
            let spare = self.way.spares.pop().unwrap_or_else(|| vec![0; FRAME]);
            self.way
                .push_part(at, std::mem::replace(buffer, spare), length);
        }
    }
}

/// Frames on their way, and spare buffers.
struct Way {
    frames: BinaryHeap<Reverse<Frame>>,
    order: u64,
    /// What the frames on their way hold.
    bytes: usize,
    /// Buffers of [`FRAME`] bytes.
    spares: Vec<Vec<u8>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Frame {
    at: Instant,
    /// Frames of the same time keep their order.
    order: u64,
    bytes: Vec<u8>,
    length: usize,
}

impl Way {
    fn new() -> Way {
        Way {
            frames: BinaryHeap::new(),
            order: 0,
            bytes: 0,
            spares: Vec::new(),
        }
    }

    fn next(&self) -> Option<Instant> {
        self.frames.peek().map(|Reverse(frame)| frame.at)
    }

    fn push(&mut self, at: Instant, bytes: Vec<u8>) {
        let length = bytes.len();
        self.push_part(at, bytes, length);
    }

    fn push_part(&mut self, at: Instant, bytes: Vec<u8>, length: usize) {
        self.order += 1;
        self.bytes += bytes.len();
        self.frames.push(Reverse(Frame {
            at,
            order: self.order,
            bytes,
            length,
        }));
    }

    fn pop(&mut self) -> Option<Frame> {
        let Reverse(frame) = self.frames.pop()?;
        self.bytes -= frame.bytes.len();
        Some(frame)
    }

    /// Takes a buffer back, if it is one for whole frames and there are not too many.
    fn spare(&mut self, buffer: Vec<u8>) {
        if buffer.len() == FRAME && self.spares.len() < MAX_SPARE {
            self.spares.push(buffer);
        }
    }
}
