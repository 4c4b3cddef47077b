//! What floods of SYNs ask of the gate: it tells the rules which sources complete handshakes, and
//! watches the listeners' queues.
//!
//! Takes every accepted connection's source and the counters of the rules; gives the kernel's set
//! of known sources what it needs, and the gate the answer to one question: may TCP be taken? The
//! rules bound SYNs so that the queues never fill. This is for hosts where they do all the same:
//! `net.core.somaxconn` is small, or the bounds are set high, or the gate was held up. A full queue
//! sends SYN cookies, which transparent sockets cannot serve, so TCP then goes by its rules'
//! `on_failure` until the queues have had time to empty.
//!
//! Life of [`Pressure`]: calm → full (for [`HOLD`]) → calm; → full again within [`HOLD_MOST`]: for
//! twice as long as the last time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::hash::Hash;
use std::io::{Read, Seek};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::intercept::lease::KnownSources;
use crate::intercept::names::{MOST_KNOWN, MOST_KNOWN_OF_SITE, Standing};
use crate::table::bounds::HALF_OPEN_SECONDS;

/// A source stays known for this time, half an hour, after the kernel was last told of it: those of
/// a day's work stay known through their pauses.
const KNOWN: Duration = Duration::from_secs(1_800);
/// After this time, a quarter of an hour, the kernel is told again of a source that is still at
/// work.
const TELL_AGAIN: Duration = Duration::from_secs(900);
/// Sources that are found out within this time, 50 ms, are told to the kernel together: a change of
/// its set costs some 100 microseconds.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Handshakes in [`BUSY_WINDOW`] that make a source busy: 1,000 per second, a third of what a known
/// one may begin.
const BUSY_COUNT: u32 = 250;
const BUSY_WINDOW: Duration = Duration::from_millis(250);
/// A source stays busy for this time, 10 s, after the kernel was last told of it; while it is at
/// work the kernel is told again after [`BUSY_AGAIN`].
const BUSY: Duration = Duration::from_secs(10);
const BUSY_AGAIN: Duration = Duration::from_secs(5);

/// How long, 5 s, TCP goes by its rules' `on_failure` after a queue was full: half-open connections
/// live three seconds.
const HOLD: Duration = Duration::from_secs(5);
/// The longest such time, 60 s. A flood that lasts costs the connections of half a second each
/// time.
const HOLD_MOST: Duration = Duration::from_secs(60);

/// The sources that have completed handshakes lately.
pub(super) struct Known {
    /// None: the kernel cannot be told, and all sources are bounded as new ones are.
    kernel: Option<KnownSources>,
    v4: HashMap<Ipv4Addr, Source>,
    v6: HashMap<Ipv6Addr, Source>,
    /// How many of these are of the same /64.
    sites: HashMap<u64, usize>,
    /// To be told as known.
    newly_known: Vec<IpAddr>,
    /// To be told as busy.
    newly_busy: Vec<IpAddr>,
    next: Instant,
}

/// One of them.
struct Source {
    /// When it was told last.
    known: Instant,
    busy: Option<Instant>,
    /// Handshakes since the window began.
    count: u32,
    window: Instant,
}

impl Known {
    /// Nobody is known.
    pub(super) fn new(now: Instant) -> Known {
        let kernel = KnownSources::open()
            .inspect_err(|error| debug!(%error, "no netlink for known sources"))
            .ok();
        let (newly_known, newly_busy) = (Vec::new(), Vec::new());
        let (v4, v6, sites) = (HashMap::new(), HashMap::new(), HashMap::new());
        Known {
            kernel,
            v4,
            v6,
            sites,
            newly_known,
            newly_busy,
            next: now,
        }
    }

    /// This source has completed a handshake.
    pub(super) fn note(&mut self, address: IpAddr, now: Instant) {
        let new = || Source {
            known: now,
            busy: None,
            count: 1,
            window: now,
        };
        let place = match address {
            IpAddr::V4(address) => place_of(&mut self.v4, address, new),
            IpAddr::V6(address) => {
                let of_site = self.sites.get(&site(address)).copied().unwrap_or_default();
                if of_site >= MOST_KNOWN_OF_SITE && !self.v6.contains_key(&address) {
                    return;
                }
                let place = place_of(&mut self.v6, address, new);
                if matches!(place, Place::New) {
                    self.sites.insert(site(address), of_site + 1);
                }
                place
            }
        };
        let source = match place {
            Place::Old(source) => source,
            Place::None => return,
            Place::New => {
                self.newly_known.push(address);
                return;
            }
        };
        let is_over = |since: Instant, time| now.saturating_duration_since(since) >= time;
        if is_over(source.window, BUSY_WINDOW) {
            (source.window, source.count) = (now, 0);
        }
        source.count += 1;
        if source.count >= BUSY_COUNT && source.busy.is_none_or(|at| is_over(at, BUSY_AGAIN)) {
            source.busy = Some(now);
            self.newly_busy.push(address);
        }
        if is_over(source.known, TELL_AGAIN) {
            source.known = now;
            self.newly_known.push(address);
        }
    }

    /// When the next ones are to be told; none: nobody waits.
    pub(super) fn timeout(&self) -> Option<Instant> {
        (!self.newly_known.is_empty() || !self.newly_busy.is_empty()).then_some(self.next)
    }

    /// Tells the kernel, when it is time.
    pub(super) fn tell(&mut self, now: Instant) {
        if self.timeout().is_none_or(|at| now < at) {
            return;
        }
        self.next = now + TELL_EVERY;
        let lists = [
            (
                Standing::Known,
                KNOWN,
                std::mem::take(&mut self.newly_known),
            ),
            (Standing::Busy, BUSY, std::mem::take(&mut self.newly_busy)),
        ];
        for (standing, time, sources) in lists {
            if let Some(kernel) = &mut self.kernel
                && let Err(error) = kernel.add(standing, &sources, time)
            {
                debug!(%error, "sources could not be told");
                // Their next connections tell them again.
                let untold: HashSet<IpAddr> = sources.into_iter().collect();
                self.v4
                    .retain(|address, _| !untold.contains(&IpAddr::V4(*address)));
                self.v6
                    .retain(|address, _| !untold.contains(&IpAddr::V6(*address)));
                count_sites(&mut self.sites, &self.v6);
            }
        }
    }

    /// Forgets those that the kernel has forgotten, so that others have room.
    pub(super) fn age(&mut self, now: Instant) {
        let is_known = |source: &Source| now.saturating_duration_since(source.known) < KNOWN;
        if self.v4.len() >= MOST_KNOWN / 2 {
            self.v4.retain(|_, source| is_known(source));
        }
        // One /64 may be full long before all are.
        if self.v6.len() >= MOST_KNOWN_OF_SITE / 2 {
            self.v6.retain(|_, source| is_known(source));
            count_sites(&mut self.sites, &self.v6);
        }
    }

    /// The kernel has forgotten all: the rules were installed anew.
    pub(super) fn forget(&mut self) {
        self.v4.clear();
        self.v6.clear();
        self.sites.clear();
        self.newly_known.clear();
        self.newly_busy.clear();
    }
}

/// Where a source stands.
enum Place<'a> {
    Old(&'a mut Source),
    New,
    /// There are too many.
    None,
}

fn place_of<A: Eq + Hash>(
    sources: &mut HashMap<A, Source>,
    address: A,
    new: impl FnOnce() -> Source,
) -> Place<'_> {
    let is_full = sources.len() >= MOST_KNOWN;
    match sources.entry(address) {
        Entry::Occupied(source) => Place::Old(source.into_mut()),
        Entry::Vacant(_) if is_full => Place::None,
        Entry::Vacant(place) => {
            place.insert(new());
            Place::New
        }
    }
}

/// The part of an address that its host cannot choose.
fn site(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> 64) as u64
}

fn count_sites(sites: &mut HashMap<u64, usize>, sources: &HashMap<Ipv6Addr, Source>) {
    sites.clear();
    for address in sources.keys() {
        *sites.entry(site(*address)).or_default() += 1;
    }
}

/// Whether the listeners' queues are full.
pub(super) struct Pressure {
    /// Half-open connections that they hold.
    room: u64,
    /// Connections handed to the listeners and not accepted, at each look of the last seconds.
    looks: VecDeque<(Instant, u64, u64)>,
    /// How often queues of this network namespace were full, at the last look.
    full: Option<u64>,
    /// TCP is not taken until then.
    until: Option<Instant>,
    /// How long it was not taken the last time.
    hold: Duration,
    /// When that ended.
    ended: Option<Instant>,
}

impl Pressure {
    /// Calm, of listeners that hold this many half-open connections.
    pub(super) fn new(room: usize) -> Pressure {
        Pressure {
            room: room as u64,
            looks: VecDeque::new(),
            full: None,
            until: None,
            hold: Duration::ZERO,
            ended: None,
        }
    }

    /// Whether TCP may be taken. `handed`: SYNs that the rules have handed to the listeners so far;
    /// `taken`: connections that were taken from them; `full`: how often a queue of this network
    /// namespace was full, if that can be known.
    pub(super) fn look(
        &mut self,
        handed: u64,
        taken: u64,
        full: Option<u64>,
        now: Instant,
    ) -> bool {
        if self
            .looks
            .back()
            .is_some_and(|(_, before, _)| handed < *before)
        {
            // The table was installed anew, with new counters.
            self.looks.clear();
        }
        self.looks.push_back((now, handed, taken));
        let life = Duration::from_secs(HALF_OPEN_SECONDS as u64);
        while self.looks.len() > 2 && now.saturating_duration_since(self.looks[1].0) >= life {
            self.looks.pop_front();
        }
        let grew = matches!((self.full, full), (Some(before), Some(now)) if now > before);
        self.full = full;
        let (_, handed_before, taken_before) = self.looks[0];
        // Those that a client has given up count too, so that this is what the queues hold at most.
        let half_open = (handed - handed_before).saturating_sub(taken - taken_before);
        // The kernel counts the full queues of all services of this host. It was ours only if ours
        // are close to it: connections spread so evenly over the queues that one is full only then.
        let is_full = half_open >= self.room || grew && half_open >= self.room / 4 * 3;
        if is_full && self.until.is_none() {
            let again = self
                .ended
                .is_some_and(|ended| now.saturating_duration_since(ended) < HOLD_MOST);
            self.hold = if again {
                (self.hold * 2).min(HOLD_MOST)
            } else {
                HOLD
            };
            self.until = Some(now + self.hold);
        } else if self.until.is_some_and(|until| now >= until) {
            self.until = None;
            self.ended = Some(now);
            // What was half-open before is long gone.
            self.looks.clear();
        }
        self.until.is_none()
    }

    /// How long TCP is not taken this time.
    pub(super) fn hold(&self) -> Duration {
        self.hold
    }
}

/// How often a queue for new connections was full in a network namespace: the kernel's own count.
pub(super) struct FullQueues {
    file: Option<File>,
    text: String,
}

impl FullQueues {
    /// Of the namespace of this thread.
    pub(super) fn open() -> FullQueues {
        FullQueues {
            file: File::open("/proc/thread-self/net/netstat").ok(),
            text: String::new(),
        }
    }

    /// None where the kernel does not tell.
    pub(super) fn count(&mut self) -> Option<u64> {
        let file = self.file.as_mut()?;
        self.text.clear();
        file.rewind().ok()?;
        file.read_to_string(&mut self.text).ok()?;
        full_queues(&self.text)
    }
}

/// Names and values stand in two lines, in the same order.
fn full_queues(netstat: &str) -> Option<u64> {
    let mut lines = netstat
        .lines()
        .filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (
        lines.next()?.split_whitespace(),
        lines.next()?.split_whitespace(),
    );
    let wanted = ["TCPReqQFullDoCookies", "TCPReqQFullDrop", "ListenOverflows"];
    let counts = names.zip(values).filter(|(name, _)| wanted.contains(name));
    counts.map(|(_, value)| value.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netstat_is_read_by_names() {
        let text = "TcpExt: SyncookiesSent ListenOverflows Other TCPReqQFullDoCookies TCPReqQFullDrop\n\
                    TcpExt: 9 1 7 20 300\nIpExt: ListenOverflows\nIpExt: 4000\n";
        assert_eq!(full_queues(text), Some(321));
        assert_eq!(full_queues("TcpExt: ListenOverflows\nTcpExt: x\n"), None);
        assert_eq!(full_queues(""), None);
        assert!(FullQueues::open().count().is_some(), "this kernel tells it");
    }

    #[test]
    fn sources_are_told_once_and_busy_ones_while_they_are_busy() {
        let mut now = Instant::now();
        let mut known = Known {
            kernel: None,
            ..Known::new(now)
        };
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(n));
        let newly_known = |known: &mut Known, now: Instant, per_second: u32, seconds: u32| {
            let mut counts = [0, 0];
            let mut time = now;
            for _ in 0..per_second * seconds {
                time += Duration::from_secs(1) / per_second;
                known.note(address(1), time);
                for (count, list) in counts
                    .iter_mut()
                    .zip([&mut known.newly_busy, &mut known.newly_known])
                {
                    *count += list.len();
                    list.clear();
                }
            }
            counts
        };
        assert_eq!(
            newly_known(&mut known, now, 500, 60),
            [0, 1],
            "500 per second make nobody busy"
        );
        now += Duration::from_secs(61);
        let [busy, again] = newly_known(&mut known, now, 2_000, 60);
        assert!(
            (11..=13).contains(&busy) && again == 0,
            "busy every five seconds: {busy} {again}"
        );
        // More sources than are kept are not told.
        for n in 0..MOST_KNOWN as u32 + 10 {
            known.note(address(n), now);
        }
        assert_eq!(known.v4.len(), MOST_KNOWN);
        known.age(now + KNOWN + BUSY);
        assert!(known.v4.len() <= 1);
    }

    #[test]
    fn one_network_of_ipv6_uses_up_nobody_elses_places() {
        let now = Instant::now();
        let mut known = Known {
            kernel: None,
            ..Known::new(now)
        };
        let address = |site: u128, host: u128| {
            IpAddr::from(Ipv6Addr::from_bits(0xfd << 120 | site << 64 | host))
        };
        let mut note = |address, now| {
            known.note(address, now);
            known.newly_known.drain(..).any(|known| known == address)
        };
        let noted = (0..MOST_KNOWN as u128 + 10)
            .filter(|host| note(address(1, *host), now))
            .count();
        assert_eq!(noted, MOST_KNOWN_OF_SITE);
        assert!(note(address(2, 1), now), "of another /64");
        assert!(
            note(Ipv4Addr::new(10, 1, 1, 1).into(), now),
            "of the other family"
        );
        assert!(
            !note(address(1, 1), now + TELL_EVERY) && note(address(1, 1), now + TELL_AGAIN),
            "it is still at work"
        );
        known.age(now + KNOWN);
        known.note(address(1, u64::MAX.into()), now + KNOWN);
        assert_eq!(
            (known.v6.len(), known.newly_known.len()),
            (2, 1),
            "what is forgotten makes room"
        );
        // All networks together.
        for site in 3..20 {
            (0..MOST_KNOWN_OF_SITE as u128)
                .for_each(|host| known.note(address(site, host), now + KNOWN));
        }
        assert_eq!(known.v6.len(), MOST_KNOWN);
        assert_eq!(known.sites.values().sum::<usize>(), MOST_KNOWN);
        known.note(Ipv4Addr::new(10, 1, 1, 2).into(), now + KNOWN);
        assert!(
            known
                .newly_known
                .contains(&Ipv4Addr::new(10, 1, 1, 2).into())
        );
    }

    const ROOM: usize = 1_000;

    struct World {
        pressure: Pressure,
        now: Instant,
        handed: u64,
        taken: u64,
        full: u64,
    }

    impl World {
        fn new() -> World {
            World {
                pressure: Pressure::new(ROOM),
                now: Instant::now(),
                handed: 0,
                taken: 0,
                full: 0,
            }
        }

        /// Half a second in which this happened.
        fn look(&mut self, handed: u64, taken: u64, full: u64) -> bool {
            self.now += Duration::from_millis(500);
            (self.handed, self.taken, self.full) =
                (self.handed + handed, self.taken + taken, self.full + full);
            self.pressure
                .look(self.handed, self.taken, Some(self.full), self.now)
        }

        /// Looks without anything happening until TCP is taken again.
        fn seconds_until_calm(&mut self) -> f64 {
            (1..1_000).find(|_| self.look(0, 0, 0)).expect("it ends") as f64 / 2.0
        }
    }

    #[test]
    fn connections_that_are_accepted_are_no_pressure() {
        let mut world = World::new();
        assert!((0..100).all(|_| world.look(5_000, 5_000, 0)));
    }

    #[test]
    fn the_full_queues_of_other_services_are_not_ours() {
        let mut world = World::new();
        // More than a quarter of the room, as one source may hold within its bound.
        assert!(
            (0..100).all(|_| world.look(80, 10, 1_000)),
            "420 half-open ones of three seconds"
        );
        assert!(
            !(0..10).all(|_| world.look(130, 0, 1)),
            "close to all of the room, and a queue that was full"
        );
    }

    #[test]
    fn without_the_kernels_count_the_half_open_ones_say_it() {
        let mut pressure = Pressure::new(ROOM);
        let start = Instant::now();
        assert!(pressure.look(0, 0, None, start));
        assert!(pressure.look(ROOM as u64 - 1, 0, None, start + Duration::from_secs(1)));
        assert!(!pressure.look(ROOM as u64, 0, None, start + Duration::from_secs(2)));
    }

    #[test]
    fn a_flood_that_lasts_is_tried_less_and_less() {
        let mut world = World::new();
        let mut holds = Vec::new();
        for _ in 0..6 {
            while world.look(2_000, 0, 1) {}
            holds.push(world.seconds_until_calm());
        }
        assert_eq!(holds, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        // Long after it everything is as it was.
        assert!((0..200).all(|_| world.look(10, 10, 0)));
        while world.look(2_000, 0, 1) {}
        assert_eq!(world.seconds_until_calm(), 5.0);
    }

    #[test]
    fn new_counters_are_no_flood() {
        let mut world = World::new();
        assert!((0..10).all(|_| world.look(900, 890, 0)));
        world.handed = 0;
        assert!((0..10).all(|_| world.look(10, 10, 1)));
    }
}
