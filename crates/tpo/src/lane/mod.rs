//! The lane: the loop around one engine [`Peer`], a thread of its own, the only reader of the clock
//! on the data path.
//!
//! It owns everything of one far TPO: the engine with its mover, the peer socket, the edges of all
//! flows. Each turn takes a bounded handful of inputs (datagrams, ready edges, commands,
//! deadlines), drains the polls of the engine, and sleeps until the next one. The loop decides only
//! what comes when; the work is that of the lane's rooms: `streams`, `packet_flows`, `peer_socket`,
//! `calls`, `housekeeping`, `shown`, `wakeups`. Other threads reach the lane only by its handle
//! ([`crate::lanes`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::Events;
use tpo_engine::{Event, Peer};
use tracing::{debug, info, warn};

use crate::edge::exit::Exit;
use crate::edge::shares::Shares;
use crate::lanes::handle::{Command, Lane, LaneEnd};
use crate::lanes::inlet::Arrival;
use crate::lanes::report::{Counters, Report};
use crate::lanes::transit::Transit;
use crate::link::udp::Link;
use crate::packets::edge::Packets;
use crate::table::peers::PeerId;
use calls::Calls;
use dictionary_worker::{Dictionaries, DictionaryWorker};
use housekeeping::Housekeeping;
use on_demand::Demand;
use packet_flows::PacketFlows;
use path_cache::PathCache;
use peer_socket::{Batch, PeerSocket, Received};
use shown::Shown;
use streams::Streams;
use wakeups::{LINK, TIMER, WAKE, Wakeups};
use way_out::WayOut;

mod callers;
mod calls;
pub(crate) mod dictionary_worker;
mod housekeeping;
mod marks;
pub(crate) mod on_demand;
mod own_socket;
mod packet_flows;
pub(crate) mod path_cache;
mod peer_socket;
mod shown;
mod streams;
mod wakeups;
mod way_out;

/// A lane that sleeps shows its pulse every 200 ms; the lease needs one in each second.
const PULSE: Duration = Duration::from_millis(200);
/// Batches received before the lane turns to its other work, so that nothing starves under a flood.
const RECEIVE_TURN: usize = 4;
/// Once the batches of a turn have taken 5 ms, no other one is received: what a datagram costs is
/// its sender's choice.
const RECEIVE_TIME: Duration = Duration::from_millis(5);
/// Commands handled in one turn, likewise.
const COMMAND_TURN: usize = 256;
/// Datagrams of sessions from the demultiplexer that are handled in one turn, likewise.
const SESSION_TURN: usize = 256;
/// Handshake datagrams from the demultiplexer that are handled in one turn: each may cost a quarter
/// of a millisecond.
const HANDSHAKE_TURN: usize = 8;
/// Batches sent in one turn, likewise.
const TRANSMIT_TURN: usize = 16;
/// A closing lane has 250 ms for its last datagrams.
const CLOSING: Duration = Duration::from_millis(250);
/// With no room in the socket nothing that is due can leave. The lane then sleeps 1 ms at a time:
/// the socket's own event wakes it, not the clock.
const BLOCKED_SLEEP: Duration = Duration::from_millis(1);

/// What a lane starts with.
pub(crate) struct Start {
    /// The peer's name, for logs and the thread.
    pub(crate) name: String,
    /// The engine's and mover's settings.
    pub(crate) engine: tpo_engine::Config,
    /// What the peer may reach through us.
    pub(crate) exit: Exit,
    /// The packet edges, if any packets are carried.
    pub(crate) packets: Option<Packets>,
    /// Which peer it is.
    pub(crate) id: PeerId,
    /// Where some flows of the peer go on to another.
    pub(crate) transit: Option<Arc<Transit>>,
    /// A handle on the socket that everybody calls: the lane speaks by it until the peer's address
    /// is known.
    pub(crate) listener: Link,
    /// What it may take of what all lanes share.
    pub(crate) shares: Shares,
    /// Who makes dictionaries.
    pub(crate) dictionary_worker: DictionaryWorker,
    /// Where the path is remembered.
    pub(crate) path_cache: Option<PathCache>,
    /// Called on demand: when, and how it is left again.
    pub(crate) demand: Option<Demand>,
    /// Called whenever the peer comes up or goes down.
    pub(crate) on_change: Box<dyn Fn() + Send>,
}

/// Starts the thread of one lane.
pub(crate) fn start(start: Start) -> io::Result<(Lane, JoinHandle<()>)> {
    let wakeups = Wakeups::new()?;
    let descriptors = start.shares.descriptors.clone();
    let (lane, end) = Lane::new(&start.name, wakeups.waker()?, descriptors);
    let ways = WayOut::new(start.id, start.exit, start.transit);
    let streams = Streams::new(wakeups.registry()?, start.shares, ways);
    let name = start.name;
    let socket = PeerSocket::new(name.clone(), start.listener, wakeups.registry()?)?;
    let dictionaries = start.dictionary_worker.of_lane(lane.clone());
    let thread = std::thread::Builder::new().name(format!("lane {name}"));
    let thread = thread.spawn(move || {
        let now = Instant::now();
        Loop {
            peer: Peer::new(start.engine, now),
            wakeups,
            streams,
            packets: PacketFlows::new(start.packets),
            socket,
            calls: Calls::new(name.clone(), start.demand),
            dictionaries,
            housekeeping: Housekeeping::new(name.clone(), start.path_cache, now),
            shown: Shown::new(end.pulse.clone(), start.on_change),
            end,
            more_waits: false,
            closing: None,
            name,
        }
        .run();
    })?;
    Ok((lane, thread))
}

struct Loop {
    /// The peer's name, for logs.
    name: String,
    peer: Peer,
    wakeups: Wakeups,
    streams: Streams,
    packets: PacketFlows,
    socket: PeerSocket,
    calls: Calls,
    dictionaries: Dictionaries,
    housekeeping: Housekeeping,
    shown: Shown,
    /// What other threads give.
    end: LaneEnd,
    /// Of that there is more than one turn takes.
    more_waits: bool,
    /// The lane says its last words, until then.
    closing: Option<Instant>,
}

/// What woke the lane.
#[derive(Default)]
struct Woken {
    /// The own socket has something to read.
    by_socket: bool,
    /// Another thread has given something.
    by_thread: bool,
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        loop {
            let now = Instant::now();
            self.follow_demand(now);
            self.packets.turn(&self.streams.ways, &mut self.peer, now);
            // Before a datagram leaves that tells them, and before we sleep.
            self.shown.pulse().publish(self.peer.indices());
            let is_busy = self.transmit(now);
            self.shown.pulse().publish(self.peer.indices());
            let now = Instant::now();
            self.show(now);
            if self.closing.is_some_and(|until| now >= until) {
                break;
            }
            let limit = match is_busy || self.more_waits {
                true => Duration::ZERO,
                false => self.sleep_until(now),
            };
            match self.wakeups.wait(&mut events, limit) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    warn!(peer = %self.name, %error, "the lane cannot wait for events and ends");
                    break;
                }
            }
            let woken = self.follow_events(&events, Instant::now());
            if woken.by_socket {
                self.receive();
            }
            if woken.by_thread || self.more_waits {
                let more = self.take_arrivals();
                if self.take_commands() {
                    break;
                }
                self.more_waits |= more;
            }
            if self.closing.is_none() && self.end.stopping.load(Ordering::SeqCst) {
                self.begin_to_close(Instant::now());
            }
            self.follow_timeouts();
            self.follow_engine(Instant::now());
        }
        self.shown.beat(false, Instant::now());
    }

    fn follow_demand(&mut self, now: Instant) {
        let asks = self.packets.asks_for_groups();
        if asks {
            self.calls.need(&mut self.peer, now);
        }
        let is_idle = self.peer.is_idle() && self.streams.len() == 0 && !asks;
        self.calls.turn(is_idle, &mut self.peer, now);
    }

    fn follow_events(&mut self, events: &Events, now: Instant) -> Woken {
        let mut woken = Woken::default();
        for event in events {
            match event.token() {
                LINK => {
                    woken.by_socket |= event.is_readable() || event.is_error();
                    if event.is_writable() {
                        self.socket.on_room();
                    }
                }
                TIMER => self.wakeups.on_timer(),
                WAKE => woken.by_thread = true,
                _ => self.streams.on_event(event, &mut self.peer, now),
            }
        }
        woken
    }

    /// Takes datagrams from the connected socket until it is empty or the turn is over.
    fn receive(&mut self) {
        let start = Instant::now();
        self.socket.read_complaints(&mut self.peer, start);
        for turn in 1.. {
            match self.socket.receive(&mut self.peer) {
                Received::Nothing => return,
                Received::Datagrams { at, were_all } => {
                    self.follow_engine(at);
                    if were_all {
                        return;
                    }
                }
                Received::Error => self.socket.read_complaints(&mut self.peer, Instant::now()),
            }
            let now = Instant::now();
            self.shown.pulse().turn(now);
            if turn == RECEIVE_TURN || now >= start + RECEIVE_TIME {
                // The poll is edge triggered: what is left would never be announced again.
                self.socket.watch();
                return;
            }
        }
    }

    /// Handles some of what the demultiplexer heard; true when more may wait. Handshakes come
    /// first, because the last datagram of one makes those of the session understood.
    fn take_arrivals(&mut self) -> bool {
        let mut left = HANDSHAKE_TURN;
        while left > 0
            && let Some(arrival) = self.end.handshakes.take()
        {
            self.on_arrival(arrival);
            left -= 1;
        }
        let mut more = left == 0;
        left = SESSION_TURN;
        while left > 0
            && let Some(arrival) = self.end.sessions.take()
        {
            self.on_arrival(arrival);
            left -= 1;
        }
        more |= left == 0;
        more
    }

    fn on_arrival(&mut self, arrival: Arrival) {
        let Arrival {
            from,
            local,
            mut bytes,
        } = arrival;
        let now = Instant::now();
        let origin = self.peer.handle_datagram(from, &mut bytes, now);
        self.socket.on_heard(origin, from, local);
        self.follow_engine(now);
    }

    /// Handles some of what other threads ask; true when the lane shall end at once.
    fn take_commands(&mut self) -> bool {
        self.more_waits = true;
        for _ in 0..COMMAND_TURN {
            match self.end.inbox.try_recv() {
                Ok(command) => self.on_command(command, Instant::now()),
                Err(TryRecvError::Empty) => {
                    self.more_waits = false;
                    return false;
                }
                Err(TryRecvError::Disconnected) => return true,
            }
        }
        false
    }

    fn on_command(&mut self, command: Command, now: Instant) {
        let pulse = self.shown.pulse();
        match command {
            Command::Accepted(accepted) => {
                pulse.connections.fetch_sub(1, Ordering::Relaxed);
                if let Some(accepted) = self.calls.keep(accepted, &mut self.peer, now) {
                    self.streams.accept(accepted, &mut self.peer, now);
                }
            }
            Command::Packets(batch) => {
                pulse.packets.fetch_sub(batch.bytes(), Ordering::Relaxed);
                if batch.items.iter().any(|item| item.ruled.is_some()) {
                    // These take their plain way; those after them will not.
                    self.calls.need(&mut self.peer, now);
                }
                self.packets.send(batch, &mut self.peer, now);
            }
            Command::Onward(batch) => {
                pulse
                    .packets
                    .fetch_sub(batch.bytes.len(), Ordering::Relaxed);
                self.calls.need(&mut self.peer, now);
                self.packets.take_over(batch, &mut self.peer, now);
            }
            // When nobody waits for the answer any more, nobody is told.
            Command::Flows(to) => drop(to.try_send(self.peer.flows().collect())),
            Command::Report(to) => drop(to.try_send(self.report())),
            Command::Worked(worked) => self.peer.on_worked(worked),
            Command::Groups(groups) => self.packets.ask(groups, now),
            Command::Budget(bytes) => self.peer.set_budget(bytes),
        }
    }

    fn begin_to_close(&mut self, now: Instant) {
        self.housekeeping.save_path(&mut self.peer, now);
        self.peer.close(now);
        self.closing = Some(now + CLOSING);
        self.follow_engine(now);
    }

    fn follow_timeouts(&mut self) {
        let now = Instant::now();
        if self.peer.poll_timeout().is_some_and(|when| when <= now) {
            self.peer.handle_timeout(now);
        }
        if !self.peer.is_up() {
            self.socket.on_silence(now);
        }
    }

    /// Does what the engine says has happened.
    fn follow_engine(&mut self, now: Instant) {
        while let Some(event) = self.peer.poll_event() {
            self.on_event(event, now);
        }
        while let Some(work) = self.peer.poll_work() {
            if let Err(work) = self.dictionaries.make(work) {
                // Too many wait: better now than never.
                self.peer.on_worked(work.run());
            }
        }
        self.packets.deliver(&mut self.peer, now);
        if let Some(remote) = self.peer.remote() {
            self.socket.follow(remote, now);
        }
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        let (streams, packets, peer) = (&mut self.streams, &mut self.packets, &mut self.peer);
        match event {
            Event::Deliver { flow } => streams.deliver(flow, peer, now),
            Event::Open { flow, key, asked } => streams.open(flow, &key, &asked, peer, now),
            Event::PacketFlow { flow, key, .. } => {
                packets.open(flow, key, &streams.ways, peer, now)
            }
            Event::Finish { flow } => streams.on_finish(flow),
            Event::Closed { flow } => {
                streams.on_closed(flow);
                packets.end(flow, peer);
            }
            Event::Reset { flow, status } => {
                debug!(peer = %self.name, ?flow, ?status, "flow reset");
                streams.on_reset(flow);
                packets.end(flow, peer);
            }
            Event::Accepted { flow } => {
                debug!(peer = %self.name, ?flow, "the far edge has connected")
            }
            Event::Connected { fresh } => self.on_connected(fresh, now),
            Event::Silent => {
                warn!(peer = %self.name, "peer silent: flows wait, new connections are let go by their rule");
                packets.set_heard(false);
            }
            Event::Heard => {
                info!(peer = %self.name, "peer heard again");
                packets.set_heard(true);
            }
            Event::Dead => self.on_dead(now),
        }
    }

    /// A session stands, a `fresh` one or one with new keys.
    fn on_connected(&mut self, fresh: bool, now: Instant) {
        let remote = self.peer.remote();
        self.packets.set_heard(true);
        match fresh {
            true => {
                info!(peer = %self.name, ?remote, "peer connected");
                self.packets.begin_anew(now);
            }
            false => info!(peer = %self.name, ?remote, "new keys agreed with the peer"),
        }
        for accepted in self.calls.on_connected() {
            if let Some(accepted) = self.calls.keep(accepted, &mut self.peer, now) {
                self.streams.accept(accepted, &mut self.peer, now);
            }
        }
    }

    /// The session is over.
    fn on_dead(&mut self, now: Instant) {
        self.packets.set_heard(false);
        self.socket.forget();
        let edges = self.streams.len();
        match self.calls.on_session_over() {
            true => {
                info!(peer = %self.name, edges, "session over: called again when needed")
            }
            false => warn!(peer = %self.name, edges, "peer gone: its flows are reset"),
        }
        self.packets.begin_anew(now);
    }

    /// Sends what may be sent; true when there is more than one turn's worth.
    fn transmit(&mut self, now: Instant) -> bool {
        if self.socket.is_blocked() {
            return false;
        }
        if let Some(unsent) = self.socket.take_unsent()
            && !self.socket.send(unsent, &mut self.peer, now)
        {
            return false;
        }
        for _ in 0..TRANSMIT_TURN {
            let (source, room) = (self.streams.source(), self.socket.new_batch());
            let transmit = self.peer.poll_transmit(source, room, now);
            // Reading an edge may have found its end, whether or not something is sent.
            self.follow_engine(now);
            let Some(transmit) = transmit else {
                return false;
            };
            let batch = Batch {
                to: transmit.to,
                kind: transmit.kind,
                segment: transmit.segment_size,
            };
            if !self.socket.send(batch, &mut self.peer, now) {
                return false;
            }
        }
        true
    }

    /// Shows other threads how the lane stands.
    fn show(&mut self, now: Instant) {
        let memory = self.peer.memory();
        self.housekeeping.turn(&mut self.peer, memory, now);
        self.shown.pulse().memory.store(memory, Ordering::Relaxed);
        self.shown.show_room(&self.peer, self.calls.waiting(), now);
        let can_carry = self.peer.is_up() || self.calls.is_ready(&self.peer);
        self.shown.beat(can_carry && self.closing.is_none(), now);
    }

    /// How long the poll may sleep.
    fn sleep_until(&mut self, now: Instant) -> Duration {
        let mut limit = PULSE;
        if let Some(until) = self.closing {
            limit = limit.min(until.saturating_duration_since(now));
        }
        let Some(when) = self.peer.poll_timeout() else {
            return limit;
        };
        match (when <= now, self.socket.is_blocked()) {
            (true, true) => BLOCKED_SLEEP,
            (true, false) => Duration::ZERO,
            (false, _) => self.wakeups.sleep_until(when, limit, now),
        }
    }

    fn report(&self) -> Report {
        let streams = &self.streams.counters;
        let mut report = Report {
            stats: self.peer.stats(),
            connected: self.peer.is_connected(),
            rests: self.calls.rests(&self.peer),
            remote: self.peer.remote(),
            stranger: self.socket.stranger(),
            counters: Counters {
                refused_not_connected: streams.refused_not_connected + self.calls.given_up,
                refused_no_room: streams.refused_no_room,
                no_descriptors: streams.no_descriptors,
                connects_given_up: streams.connects_given_up,
                not_allowed: streams.not_allowed,
                send_failures: self.socket.failures(),
                buffer_full: self.socket.dropped(),
                complaints_unproved: self.socket.unproved(),
            },
            packets: Default::default(),
            groups_asked_here: Vec::new(),
            groups_asked_there: Vec::new(),
            lans_left: Vec::new(),
        };
        self.packets.report(&mut report);
        report
    }
}
