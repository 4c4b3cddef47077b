//! The lane: the loop around one engine [`Peer`], a thread of its own, the only reader of the clock on the data path.
//!
//! It owns everything of one far TPO: the engine with its mover, the link's socket, the edges of all flows. Each turn takes
//! one input (a batch of datagrams, the ready edges, a command, a deadline), drains every poll of the engine, and sleeps until the next one.
//! Other threads reach it only by bounded [`Command`]s; it tells them that it lives and whether its peer is up by its [`Pulse`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tpo_engine::{Event, FlowId, FlowInfo, FlowKey, Peer, Status, Treatment, Worked};
use tracing::{debug, info, warn};

use crate::demand::{Demand, Turn};
use crate::edge::exit::Exit;
use crate::edge::packets::{self, Packets};
use crate::edge::tcp::{Edges, Happened};
use crate::intercept::tcp::reset_on_close;
use crate::link::udp::{Link, RECEIVE_RUNS, Runs, Sent};
use crate::memory::Memory;
use crate::sys::{self, Timer};
use crate::tap::{Batch, WAITING_BYTES};
use crate::transit::{Next, Onward, Transit};
use crate::workshop::Workshop;

/// Commands that may wait for a lane: a burst of new connections, or of first datagrams, beyond which new ones are turned away.
const COMMANDS: usize = 4_096;
/// A lane that sleeps shows its pulse this often; the lease needs one in each second.
const PULSE: Duration = Duration::from_millis(200);
/// Batches received before the lane turns to its other work, so that nothing starves under a flood.
const RECEIVE_TURN: usize = 4;
/// Commands handled in one turn, likewise.
const COMMAND_TURN: usize = 256;
/// Batches sent in one turn, likewise.
const TRANSMIT_TURN: usize = 16;
/// A socket of the lane's own is made anew at most this often.
const LINK_RETRY: Duration = Duration::from_millis(500);
/// While the peer is silent, at this interval.
const LINK_SILENT_RETRY: Duration = Duration::from_secs(5);
/// When so many flows have been there and most of them are gone, what they took goes back to the system.
const MANY_EXCHANGES: usize = 8_192;
/// The same when so many bytes were held and half of them are not any more, at this interval at most: a large window fills and empties all the time.
const MUCH_MEMORY: usize = 8 << 20;
const GIVE_BACK_EVERY: Duration = Duration::from_secs(60);
/// The path is written down this often: a daemon that is killed knows nearly as much afterwards as one that ended.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);
/// Time given to the last datagrams of a closing lane.
const CLOSING: Duration = Duration::from_millis(250);
/// Connections that may wait for a peer that is called on demand.
const MOST_HELD: usize = 1_024;
/// Room for one batch of datagrams: what segmentation offload takes at once.
const BATCH_BYTES: usize = 65_536;

// Edges use tokens with a 32-bit index below a generation of 31 bits; these lie above all of them.
const LINK: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);
const WAKE: Token = Token(usize::MAX - 2);

/// What other threads ask of a lane.
pub enum Command {
    /// The interceptor accepted a connection that a rule gives to this peer.
    Accepted {
        /// The near application's connection.
        socket: TcpStream,
        /// Who wants to reach whom.
        key: FlowKey,
        /// How the rule wants it to be treated.
        treatment: Treatment,
    },
    /// Packets of the near side that are no TCP, some of which may be this peer's.
    Packets(Batch),
    /// Datagrams that another peer has brought for this one.
    Onward(Onward),
    /// The router heard a datagram for this lane at the listening socket.
    Datagram {
        /// Who sent it.
        from: SocketAddr,
        /// At which of our addresses it arrived.
        local: Option<IpAddr>,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Somebody wants to know how it goes.
    Report(SyncSender<Report>),
    /// Somebody wants to see every flow.
    Flows(SyncSender<Vec<FlowInfo>>),
    /// A dictionary of the compression engine has been made.
    Worked(Worked),
    /// Groups of many that the peer shall be asked for from now on: all of them, by [`For`](crate::multicast::groups::For).
    Groups([Vec<IpAddr>; 2]),
    /// The memory that flows may hold in all has changed.
    Budget(usize),
}

/// What a lane knows of itself.
pub struct Report {
    /// The engine's figures.
    pub stats: tpo_engine::Stats,
    /// Whether a session stands, heard or not.
    pub connected: bool,
    /// Called on demand, and nobody needs it.
    pub rests: bool,
    /// Where the peer is, as far as known.
    pub remote: Option<SocketAddr>,
    /// Edges that live.
    pub edges: usize,
    /// Counters of the lane itself.
    pub counters: Counters,
    /// Of packets that are no TCP.
    pub packets: packets::Counters,
    /// Groups of multicast that the peer asks for.
    pub groups_asked_here: Vec<IpAddr>,
    /// Groups of multicast that the peer is asked for.
    pub groups_asked_there: Vec<IpAddr>,
}

/// What happened at the lane's own doors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Connections that could not become flows because the peer was down when they arrived here.
    pub refused_not_connected: u64,
    /// The same for lack of room.
    pub refused_no_room: u64,
    /// Flows of the peer that no `accept` permits.
    pub not_allowed: u64,
    /// Batches that the kernel refused.
    pub send_failures: u64,
    /// Packets that the kernel dropped because the lane's socket was full.
    pub buffer_full: u64,
}

/// Life signs of a lane, read by the interceptor's lease.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    beat_ms: AtomicU64,
    up: AtomicBool,
    /// Bytes that the lane's flows hold, for the budget in all.
    pub memory: AtomicUsize,
    /// Bytes of packets that wait for the lane.
    pub packets: AtomicUsize,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse {
            start: Instant::now(),
            beat_ms: AtomicU64::new(0),
            up: AtomicBool::new(false),
            memory: AtomicUsize::new(0),
            packets: AtomicUsize::new(0),
        }
    }

    fn beat(&self, now: Instant, up: bool) -> bool {
        self.beat_ms.store(now.duration_since(self.start).as_millis() as u64, Ordering::Relaxed);
        self.up.swap(up, Ordering::Relaxed) != up
    }

    /// Whether the loop turned within `limit`.
    pub fn is_alive(&self, now: Instant, limit: Duration) -> bool {
        let beat = self.start + Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(beat) < limit
    }

    /// Whether the peer answers.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

/// The handle that other threads hold.
#[derive(Clone)]
pub struct Lane {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    /// Life signs.
    pub pulse: Arc<Pulse>,
    /// The peer's name in the configuration.
    pub name: Arc<str>,
}

impl Lane {
    /// Hands over a command; gives it back when too many wait, or the lane has ended.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        match self.commands.try_send(command) {
            Ok(()) => {
                // Waking can fail only when the lane has ended, which its next command will show.
                let _ = self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => Err(command),
        }
    }

    /// Hands over what another peer has brought for this one; false when too much waits.
    pub fn pass_on(&self, batch: Onward) -> bool {
        let (bytes, waiting) = (batch.bytes.len(), &self.pulse.packets);
        waiting.fetch_add(bytes, Ordering::Relaxed);
        let full = waiting.load(Ordering::Relaxed) > WAITING_BYTES;
        let taken = !full && self.send(Command::Onward(batch)).is_ok();
        if !taken {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Asks what the lane knows of itself; the answer comes through the receiver, or never.
    pub fn report(&self) -> Receiver<Report> {
        let (sender, receiver) = sync_channel(1);
        // A lane that takes no more commands does not answer, and the caller has a deadline.
        let _ = self.send(Command::Report(sender));
        receiver
    }

    /// Asks for every flow, likewise.
    pub fn flows(&self) -> Receiver<Vec<FlowInfo>> {
        let (sender, receiver) = sync_channel(1);
        let _ = self.send(Command::Flows(sender));
        receiver
    }

    /// Reset all flows, say goodbye, end. Heard even by a lane whose commands are full.
    pub fn close(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // A lane that cannot be woken has ended.
        let _ = self.waker.wake();
    }
}

/// What a lane starts with.
pub struct Start {
    /// The peer's name, for logs and the thread.
    pub name: String,
    /// The engine's and mover's settings.
    pub engine: tpo_engine::Config,
    /// What the peer may reach through us.
    pub exit: Exit,
    /// The edges of what is no TCP, if any of it is carried.
    pub packets: Option<Packets>,
    /// This lane's number.
    pub slot: usize,
    /// Where some flows of the peer go on to another.
    pub transit: Option<Arc<Transit>>,
    /// A handle on the socket that everybody calls: our voice until the peer's address is known.
    pub listener: Link,
    /// Who makes dictionaries.
    pub workshop: Workshop,
    /// Where the path is remembered.
    pub memory: Option<Memory>,
    /// Called on demand: when, and how it is left again.
    pub demand: Option<Demand>,
    /// Told whenever the peer comes up or goes down.
    pub on_change: Box<dyn Fn() + Send>,
}

/// Starts the thread of one lane.
pub fn start(start: Start) -> io::Result<(Lane, JoinHandle<()>)> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let timer = Timer::new()?;
    poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
    let edges = Edges::new(poll.registry().try_clone()?);
    let (commands, inbox) = sync_channel(COMMANDS);
    let pulse = Arc::new(Pulse::new());
    let stopping = Arc::new(AtomicBool::new(false));
    let lane =
        Lane { commands, waker, stopping: stopping.clone(), pulse: pulse.clone(), name: start.name.as_str().into() };
    let port = start.listener.local_addr()?.port();
    let own = lane.clone();
    let thread = std::thread::Builder::new().name(format!("lane {}", start.name)).spawn(move || {
        let now = Instant::now();
        Loop {
            name: start.name,
            peer: Peer::new(start.engine, now),
            poll,
            timer,
            armed: None,
            edges,
            exit: start.exit,
            packets: start.packets,
            slot: start.slot,
            transit: start.transit,
            passing: HashMap::new(),
            listener: start.listener,
            link: None,
            link_to: None,
            link_blocked: false,
            link_tried: None,
            port,
            local: None,
            inbox,
            waiting: false,
            stopping,
            pulse,
            memory: start.memory,
            workshop: start.workshop,
            own,
            remember_at: now + REMEMBER_EVERY,
            most_exchanges: 0,
            most_memory: 0,
            gave_back: now,
            on_change: start.on_change,
            runs: Runs::new(),
            batch: Vec::with_capacity(BATCH_BYTES),
            unsent: None,
            counters: Counters::default(),
            closing: None,
            demand: start.demand,
            held: Vec::new(),
        }
        .run();
    })?;
    Ok((lane, thread))
}

struct Loop {
    name: String,
    peer: Peer,
    poll: Poll,
    timer: Timer,
    armed: Option<Instant>,
    edges: Edges,
    exit: Exit,
    packets: Option<Packets>,
    slot: usize,
    transit: Option<Arc<Transit>>,
    /// Streams of the peer that go on to another one.
    passing: HashMap<FlowId, FlowKey>,
    listener: Link,
    link: Option<Link>,
    link_to: Option<SocketAddr>,
    link_blocked: bool,
    /// When the socket was last made, or could not be.
    link_tried: Option<Instant>,
    port: u16,
    local: Option<IpAddr>,
    inbox: Receiver<Command>,
    /// More commands wait than one turn takes.
    waiting: bool,
    stopping: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    memory: Option<Memory>,
    workshop: Workshop,
    /// The handle that comes back with what the workshop has made.
    own: Lane,
    remember_at: Instant,
    /// Flows of datagrams at most, since memory was given back last.
    most_exchanges: usize,
    /// Bytes held at most, likewise, and when memory was given back last.
    most_memory: usize,
    gave_back: Instant,
    on_change: Box<dyn Fn() + Send>,
    runs: Runs,
    batch: Vec<u8>,
    /// A batch that the kernel had no room for: where to, and the size of its datagrams. Its bytes are still in `batch`.
    unsent: Option<(SocketAddr, usize)>,
    counters: Counters,
    closing: Option<Instant>,
    demand: Option<Demand>,
    /// Connections that wait for a peer that was called on demand.
    held: Vec<(TcpStream, FlowKey, Treatment)>,
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        loop {
            let now = Instant::now();
            self.follow_demand(now);
            if let Some(packets) = &mut self.packets {
                packets.say_what_is_asked(&mut self.peer, now);
            }
            let busy = self.transmit(now);
            let now = Instant::now();
            self.show_pulse(now);
            if self.closing.is_some_and(|until| now >= until) {
                break;
            }
            let limit = if busy || self.waiting { Duration::ZERO } else { self.sleep_until(now) };
            match self.poll.poll(&mut events, Some(limit)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    warn!(peer = %self.name, %error, "the lane cannot wait for events and ends");
                    break;
                }
            }
            let now = Instant::now();
            let mut heard = false;
            let mut called = false;
            for event in &events {
                match event.token() {
                    LINK => {
                        heard |= event.is_readable() || event.is_error();
                        if event.is_writable() && self.link_blocked {
                            self.link_blocked = false;
                            self.watch_link();
                        }
                    }
                    // Not read: arming it anew makes the next expiry a new edge.
                    TIMER => self.armed = None,
                    WAKE => called = true,
                    _ => {
                        let happened = self.edges.handle_event(event);
                        self.on_edge(happened, now);
                    }
                }
            }
            if heard {
                self.receive();
            }
            if (called || self.waiting) && self.commands() {
                break;
            }
            if self.closing.is_none() && self.stopping.load(Ordering::SeqCst) {
                self.begin_to_close(Instant::now());
            }
            self.follow_timeouts();
            self.follow_engine(Instant::now());
        }
        self.peer_end();
    }

    /// Takes datagrams from the connected socket until it is empty or the turn is over.
    fn receive(&mut self) {
        let mut turns = 0;
        while let Some(link) = &self.link {
            if turns == RECEIVE_TURN {
                // The poll is edge triggered: what is left would never be announced again.
                self.watch_link();
                return;
            }
            turns += 1;
            match link.receive(&mut self.runs) {
                Ok(0) => return,
                Ok(received) => {
                    let now = Instant::now();
                    let peer = &mut self.peer;
                    self.runs.for_each(|from, _, datagram| peer.handle_datagram(from, datagram, now));
                    self.follow_engine(now);
                    if received < RECEIVE_RUNS {
                        // The kernel had no more; what came since is announced by a new edge.
                        return;
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => self.peer.on_refused(Instant::now()),
                // An ICMP error about something that we sent; what waits behind it is still to be received.
                Err(error) => debug!(peer = %self.name, %error, "receive failed"),
            }
        }
    }

    /// Says what the socket is watched for, which reports its state again. For room only when there was none: the kernel announces each
    /// datagram that has left.
    fn watch_link(&mut self) {
        if let Some(link) = &self.link {
            let interest = if self.link_blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            if let Err(error) = self.poll.registry().reregister(&mut SourceFd(&link.as_raw_fd()), LINK, interest) {
                warn!(peer = %self.name, %error, "the link's socket cannot be watched");
            }
        }
    }

    /// Handles some of what other threads ask; true when the lane shall end at once.
    fn commands(&mut self) -> bool {
        self.waiting = true;
        for _ in 0..COMMAND_TURN {
            let now = Instant::now();
            match self.inbox.try_recv() {
                Ok(Command::Accepted { socket, key, treatment }) => self.accepted(socket, key, treatment, now),
                Ok(Command::Datagram { from, local, mut bytes }) => {
                    if local.is_some() {
                        self.local = local;
                    }
                    self.peer.handle_datagram(from, &mut bytes, now);
                    self.follow_engine(now);
                }
                Ok(Command::Packets(batch)) => {
                    self.pulse.packets.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
                    if batch.items.iter().any(|item| item.ruled.is_some()) {
                        // These take their plain way; those after them will not.
                        self.need(now);
                    }
                    if let Some(packets) = &mut self.packets {
                        packets.send(&mut self.peer, &batch, now);
                    }
                }
                Ok(Command::Onward(batch)) => {
                    self.pulse.packets.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
                    self.need(now);
                    if let Some(packets) = &mut self.packets {
                        packets.take_over(&mut self.peer, &batch, now);
                    }
                }
                Ok(Command::Flows(to)) => {
                    // As for reports: nobody waits, nobody is told.
                    let _ = to.try_send(self.peer.flows().collect());
                }
                Ok(Command::Report(to)) => {
                    // Nobody waits any more: then nobody is told.
                    let _ = to.try_send(self.report());
                }
                Ok(Command::Worked(worked)) => self.peer.on_worked(worked),
                Ok(Command::Groups(groups)) => {
                    if let Some(packets) = &mut self.packets {
                        packets.ask(groups, now);
                    }
                }
                Ok(Command::Budget(bytes)) => self.peer.set_budget(bytes),
                Err(TryRecvError::Empty) => {
                    self.waiting = false;
                    return false;
                }
                Err(TryRecvError::Disconnected) => return true,
            }
        }
        false
    }

    fn begin_to_close(&mut self, now: Instant) {
        self.remember(now);
        self.peer.close(now);
        self.closing = Some(now + CLOSING);
        self.follow_engine(now);
    }

    /// The peer is needed: one that is called on demand is called. Whether it is worth waiting for.
    fn need(&mut self, now: Instant) -> bool {
        let Some(demand) = self.demand.as_mut().filter(|_| !self.peer.is_connected()) else { return false };
        if demand.need(now) {
            debug!(peer = %self.name, "called on demand");
            self.peer.connect(now);
        }
        demand.is_ready()
    }

    fn follow_demand(&mut self, now: Instant) {
        let asks = self.packets.as_ref().is_some_and(Packets::asks_for_groups);
        if asks {
            self.need(now);
        }
        let (connected, idle) = (self.peer.is_connected(), self.peer.is_idle() && self.edges.is_empty() && !asks);
        let Some(demand) = &mut self.demand else { return };
        match demand.turn(connected, idle, now) {
            Turn::Stay => {}
            Turn::Leave => self.peer.disconnect(),
            Turn::GiveUp => {
                warn!(peer = %self.name, waiting = self.held.len(), "called on demand, but it does not answer");
                for (socket, ..) in self.held.drain(..) {
                    self.counters.refused_not_connected += 1;
                    reset_on_close(&socket);
                }
            }
        }
    }

    fn accepted(&mut self, socket: TcpStream, key: FlowKey, treatment: Treatment, now: Instant) {
        if self.need(now) && self.held.len() < MOST_HELD {
            self.held.push((socket, key, treatment));
            return;
        }
        let (client, server) = (key.source, key.destination);
        match self.peer.open(key, treatment, now) {
            Ok(flow) => {
                if let Err(error) = self.edges.insert(flow, socket, false, client, server) {
                    debug!(%error, "no edge for an accepted connection");
                    self.peer.reset(flow, Status::NoResources, now);
                }
                self.peer.readable(flow, now);
            }
            Err(refusal) => {
                match refusal {
                    tpo_engine::OpenError::NotConnected => self.counters.refused_not_connected += 1,
                    _ => self.counters.refused_no_room += 1,
                }
                debug!(%client, %server, %refusal, "an accepted connection could not become a flow");
                reset_on_close(&socket);
            }
        }
    }

    fn on_edge(&mut self, happened: Happened, now: Instant) {
        match happened {
            Happened::Nothing => {}
            Happened::Connected(flow) => {
                self.peer.accept(flow, now);
                self.peer.readable(flow, now);
                self.deliver(flow, now);
            }
            Happened::Broken(flow, status) => self.broken(flow, status, now),
            Happened::Ready { flow, readable, writable } => {
                if readable {
                    self.peer.readable(flow, now);
                }
                if writable {
                    self.deliver(flow, now);
                }
            }
        }
    }

    fn deliver(&mut self, flow: FlowId, now: Instant) {
        if let Err(status) = self.edges.deliver(&mut self.peer, flow, now) {
            self.broken(flow, status, now);
        }
    }

    /// The application's connection is gone: the flow goes with it.
    fn broken(&mut self, flow: FlowId, status: Status, now: Instant) {
        self.peer.reset(flow, status, now);
        self.edges.reset(flow);
        self.forget(flow);
    }

    fn follow_timeouts(&mut self) {
        let now = Instant::now();
        if self.peer.poll_timeout().is_some_and(|when| when <= now) {
            self.peer.handle_timeout(now);
        }
        // While nothing is heard, the way out may have changed without an error that says so.
        if !self.peer.is_up() && self.link_tried.is_some_and(|tried| now >= tried + LINK_SILENT_RETRY) {
            self.renew_link(now);
        }
    }

    /// Does what the engine says has happened.
    fn follow_engine(&mut self, now: Instant) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                Event::Deliver { flow } => self.deliver(flow, now),
                Event::Open { flow, key, .. } => self.open(flow, &key, now),
                Event::Exchange { flow, key } => self.exchange(flow, key, now),
                Event::Finish { flow } => self.edges.finish(flow),
                Event::Closed { flow } => {
                    self.edges.close(flow);
                    self.forget(flow);
                }
                Event::Reset { flow, status } => {
                    debug!(peer = %self.name, ?flow, ?status, "flow reset");
                    self.edges.reset(flow);
                    self.forget(flow);
                }
                Event::Accepted { flow } => debug!(peer = %self.name, ?flow, "the far edge has connected"),
                Event::Connected { fresh } => {
                    info!(peer = %self.name, fresh, remote = ?self.peer.remote(), "peer connected");
                    if let Some(packets) = self.packets.as_mut().filter(|_| fresh) {
                        packets.begin_anew(now);
                    }
                    if let Some(demand) = &mut self.demand {
                        demand.connected();
                    }
                    for (socket, key, treatment) in std::mem::take(&mut self.held) {
                        self.accepted(socket, key, treatment, now);
                    }
                }
                Event::Silent => {
                    warn!(peer = %self.name, "peer silent: flows wait, new connections are let go by their rule")
                }
                Event::Heard => info!(peer = %self.name, "peer heard again"),
                Event::Dead => {
                    let edges = self.edges.len();
                    match &mut self.demand {
                        Some(demand) => {
                            demand.gone();
                            info!(peer = %self.name, edges, "session over: called again when needed");
                        }
                        None => warn!(peer = %self.name, edges, "peer gone: its flows are reset"),
                    }
                    if let Some(packets) = &mut self.packets {
                        packets.begin_anew(now);
                    }
                }
            }
        }
        while let Some(work) = self.peer.poll_work() {
            if let Err(work) = self.workshop.send(work, &self.own) {
                // Too many wait: better now than never.
                self.peer.on_worked(work.run());
            }
        }
        match &mut self.packets {
            Some(packets) => packets.deliver(&mut self.peer, now),
            // Its flows were refused just now; what came with the first datagram goes too.
            None => self.peer.take_datagrams(|_| ()),
        }
        self.follow_remote(now);
    }

    /// The peer has opened a flow of packets.
    fn exchange(&mut self, flow: FlowId, key: FlowKey, now: Instant) {
        let permitted = self.exit.permits(&key);
        let next = match &self.transit {
            Some(transit) if permitted => transit.next(&key, self.slot),
            _ => Next::Here,
        };
        let status = match (&mut self.packets, next) {
            (Some(packets), Next::Here) if permitted || packets.is_question(&key) => {
                if packets.open(flow, key, None) {
                    return;
                }
                Status::NotAllowed
            }
            (Some(packets), Next::Peer(peer, ruled)) if permitted => {
                if packets.open(flow, key, Some((peer, ruled))) {
                    return;
                }
                Status::NotAllowed
            }
            (_, Next::Refused(status)) => status,
            _ => Status::NotAllowed,
        };
        if status == Status::NotAllowed {
            self.counters.not_allowed += 1;
        }
        self.peer.reset(flow, status, now);
    }

    fn forget(&mut self, flow: FlowId) {
        if let Some(packets) = &mut self.packets {
            packets.end(flow);
        }
        if let (Some(key), Some(transit)) = (self.passing.remove(&flow), &self.transit) {
            transit.end(&key);
        }
    }

    /// A socket to the destination of the peer's flow, or to the lane of the peer to which it goes on.
    fn way_out(&mut self, flow: FlowId, key: &FlowKey) -> Result<TcpStream, Status> {
        let next = match &self.transit {
            Some(transit) if self.exit.names(key) => (transit.next(key, self.slot), Some(transit)),
            _ => (Next::Here, None),
        };
        let (to, ruled, transit) = match next {
            (Next::Peer(to, ruled), Some(transit)) => (to, ruled, transit),
            (Next::Refused(status), _) => return Err(status),
            _ => return self.exit.connect(key),
        };
        let lane = transit.lane(to).ok_or(Status::GoingAway)?;
        if !transit.begin(key) {
            // It would go in circles.
            return Err(Status::NotAllowed);
        }
        self.passing.insert(flow, *key);
        let [near, far] = crate::transit::pair().map_err(|error| {
            debug!(%error, "a flow cannot be handed on");
            Status::NoResources
        })?;
        let accepted = Command::Accepted { socket: far, key: *key, treatment: ruled.treatment };
        lane.send(accepted).map_err(|_| Status::NoResources)?;
        Ok(near)
    }

    fn open(&mut self, flow: FlowId, key: &FlowKey, now: Instant) {
        let socket = match self.way_out(flow, key) {
            Ok(socket) => socket,
            Err(status) => {
                if status == Status::NotAllowed {
                    self.counters.not_allowed += 1;
                }
                self.forget(flow);
                self.peer.reset(flow, status, now);
                return;
            }
        };
        if let Err(error) = self.edges.insert(flow, socket, true, key.source, key.destination) {
            debug!(%error, "no edge for the peer's flow");
            self.forget(flow);
            self.peer.reset(flow, Status::NoResources, now);
        }
    }

    /// A connected socket keeps the source address that it began with. When that has gone, or leads nowhere any more, a new one finds
    /// today's; until then the listening socket speaks, which is bound to none.
    fn renew_link(&mut self, now: Instant) {
        if self.link_tried.is_some_and(|tried| now < tried + LINK_RETRY) {
            return;
        }
        if let Some(old) = self.link.take() {
            // Dropped right after; a descriptor that is closed leaves the poll by itself.
            let _ = self.poll.registry().deregister(&mut SourceFd(&old.as_raw_fd()));
        }
        self.link_to = None;
        self.link_blocked = false;
        self.unsent = None;
        self.local = None;
    }

    /// Keeps a socket connected to where the peer is now.
    fn follow_remote(&mut self, now: Instant) {
        let Some(remote) = self.peer.remote() else { return };
        if self.link_to == Some(remote)
            || self.link_tried.is_some_and(|tried| self.link.is_none() && now < tried + LINK_RETRY)
        {
            return;
        }
        self.link_tried = Some(now);
        // The address at which the peer called us may be gone by now.
        let link =
            match Link::connect(self.port, self.local, remote).or_else(|_| Link::connect(self.port, None, remote)) {
                Ok(link) => link,
                Err(error) => {
                    // The listening socket goes on speaking for this lane, and hearing through the router.
                    debug!(peer = %self.name, %remote, %error, "no socket of its own for this lane yet");
                    return;
                }
            };
        if let Some(old) = &self.link {
            self.counters.buffer_full += old.dropped();
            // Dropped right after; a descriptor that is closed leaves the poll by itself.
            let _ = self.poll.registry().deregister(&mut SourceFd(&old.as_raw_fd()));
        }
        self.link = Some(link);
        self.link_to = Some(remote);
        self.link_blocked = false;
        let link = self.link.as_ref().expect("set in the line before the last");
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), LINK, Interest::READABLE) {
            warn!(peer = %self.name, %error, "the link's socket cannot be watched");
            self.link = None;
        }
    }

    /// Sends what may be sent; true when there is more than one turn's worth.
    fn transmit(&mut self, now: Instant) -> bool {
        if self.link_blocked {
            return false;
        }
        if let Some((to, segment)) = self.unsent.take()
            && !self.send(to, segment, now)
        {
            return false;
        }
        for _ in 0..TRANSMIT_TURN {
            self.batch.clear();
            let transmit = self.peer.poll_transmit(&mut self.edges, &mut self.batch, now);
            // Reading an edge may have found its end, whether or not something is sent.
            self.follow_engine(now);
            let Some(transmit) = transmit else { return false };
            if !self.send(transmit.to, transmit.segment_size, now) {
                return false;
            }
        }
        true
    }

    /// Gives the batch to the kernel; false when its buffer is full, and the batch is kept for later.
    fn send(&mut self, to: SocketAddr, segment: usize, now: Instant) -> bool {
        // Who called us at one of our addresses is answered from there.
        let (link, source) = match &self.link {
            Some(link) if self.link_to == Some(to) => (link, None),
            _ => (&self.listener, self.local),
        };
        match link.send(to, source, &self.batch, segment) {
            Sent::All => {}
            Sent::Blocked => {
                // Only the lane's own socket is watched for room; elsewhere the batch is lost like any datagram.
                if self.link.is_some() && self.link_to == Some(to) {
                    self.unsent = Some((to, segment));
                    self.link_blocked = true;
                    self.watch_link();
                    return false;
                }
                self.counters.send_failures += 1;
            }
            Sent::TooLarge => self.peer.on_too_large(segment.min(self.batch.len()), now),
            Sent::Refused => self.peer.on_refused(now),
            Sent::Failed => {
                self.counters.send_failures += 1;
                self.renew_link(now);
            }
        }
        true
    }

    /// Writes down what is known of the path.
    fn remember(&mut self, now: Instant) {
        self.remember_at = now + REMEMBER_EVERY;
        if let (Some(memory), Some(path)) = (&self.memory, self.peer.path(now))
            && let Err(error) = memory.save(&path)
        {
            debug!(peer = %self.name, %error, "the path cannot be remembered");
        }
    }

    /// After a flood, or when compression has come to rest: earlier it would be for nothing, because those that are left lie on the same pages.
    fn give_back(&mut self, memory: usize, now: Instant) {
        let exchanges = self.peer.exchanges();
        self.most_exchanges = self.most_exchanges.max(exchanges);
        self.most_memory = self.most_memory.max(memory);
        let flood_is_over = self.most_exchanges > MANY_EXCHANGES && exchanges < self.most_exchanges / 64;
        let much_is_free = self.most_memory > MUCH_MEMORY && memory < self.most_memory / 2;
        if flood_is_over || (much_is_free && now >= self.gave_back + GIVE_BACK_EVERY) {
            (self.most_exchanges, self.most_memory, self.gave_back) = (exchanges, memory, now);
            sys::give_back_memory();
        }
    }

    fn show_pulse(&mut self, now: Instant) {
        if now >= self.remember_at {
            self.remember(now);
        }
        let memory = self.peer.memory();
        self.give_back(memory, now);
        self.pulse.memory.store(memory, Ordering::Relaxed);
        // At rest it can take what comes: that is what calls it.
        let ready = !self.peer.is_connected() && self.demand.as_ref().is_some_and(Demand::is_ready);
        if self.pulse.beat(now, (self.peer.is_up() || ready) && self.closing.is_none()) {
            (self.on_change)();
        }
    }

    /// How long the poll may sleep; arms the fine timer where the coarse timeout would oversleep.
    fn sleep_until(&mut self, now: Instant) -> Duration {
        let mut limit = PULSE;
        if let Some(until) = self.closing {
            limit = limit.min(until.saturating_duration_since(now));
        }
        let Some(when) = self.peer.poll_timeout() else { return limit };
        let wait = when.saturating_duration_since(now);
        if wait.is_zero() {
            // With no room in the socket nothing that is due can leave: its writable event wakes us, not the clock.
            return if self.link_blocked { Duration::from_millis(1) } else { Duration::ZERO };
        }
        if wait < limit && self.armed.is_none_or(|armed| armed > when || armed <= now) {
            match self.timer.arm(wait) {
                Ok(()) => self.armed = Some(when),
                Err(_) => return wait,
            }
        }
        limit
    }

    fn report(&self) -> Report {
        let mut counters = self.counters;
        counters.buffer_full += self.link.as_ref().map_or(0, Link::dropped);
        Report {
            stats: self.peer.stats(),
            connected: self.peer.is_connected(),
            rests: !self.peer.is_connected() && self.demand.as_ref().is_some_and(Demand::rests),
            remote: self.peer.remote(),
            edges: self.edges.len(),
            counters,
            packets: self.packets.as_ref().map_or_else(Default::default, Packets::counters),
            groups_asked_here: self.packets.as_ref().map_or_else(Vec::new, Packets::asked_here),
            groups_asked_there: self.packets.as_ref().map_or_else(Vec::new, Packets::asked_there),
        }
    }

    fn peer_end(&mut self) {
        self.pulse.beat(Instant::now(), false);
        (self.on_change)();
    }
}
