//! The lane: the loop around one engine [`Peer`], a thread of its own, the only reader of the clock
//! on the data path.
//!
//! It owns everything of one far TPO: the engine with its mover, the link's socket, the edges of
//! all flows. Each turn takes one input (a batch of datagrams, the ready edges, a command, a
//! deadline), drains every poll of the engine, and sleeps until the next one. Other threads reach
//! it only by bounded [`Command`]s, the router by two bounded ways of its own (`lane/inlet.rs`); it
//! tells them that it lives and whether its peer is up by its [`Pulse`].

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tpo_engine::{Event, FlowId, PacketKey, Peer, Status, StreamKey, Treatment, Usage};
use tpo_mover::{Origin, TransmitKind};
use tracing::{debug, info, warn};

use crate::edge::exit::Exit;
use crate::edge::shares::{ARRIVING, FarRoom, Opener, Permit, Shares};
use crate::edge::tcp::{Begins, Edges, Happened};
use crate::intercept::tcp::reset_on_close;
use crate::lane::dictionary_worker::DictionaryWorker;
use crate::lane::on_demand::{Demand, Turn};
use crate::lane::path_cache::PathCache;
use crate::lanes::handle::{Command, Lane, LaneEnd};
use crate::lanes::inlet::{Arrival, Outlet};
use crate::lanes::pulse::Pulse;
use crate::lanes::report::{Counters, Report};
use crate::lanes::sighting::{Fault, Sighting};
use crate::lanes::transit::{Next, Transit};
use crate::link::udp::{Link, RECEIVE_RUNS, Runs, Sent};
use crate::packets::edge::Packets;
use crate::sys::{self, Timer};
use crate::table::peers::PeerId;

pub mod dictionary_worker;
mod marks;
pub mod on_demand;
pub mod path_cache;
mod peer_socket;

use peer_socket::{Complaint, PeerSocket};

/// A lane that sleeps shows its pulse this often; the lease needs one in each second.
const PULSE: Duration = Duration::from_millis(200);
/// Batches received before the lane turns to its other work, so that nothing starves under a flood.
const RECEIVE_TURN: usize = 4;
/// No other batch is received when those of the turn have taken this long: what a datagram costs is
/// its sender's choice.
const RECEIVE_TIME: Duration = Duration::from_millis(5);
/// Commands handled in one turn, likewise.
const COMMAND_TURN: usize = 256;
/// Datagrams from the router handled in one turn, likewise: each handshake datagram may cost a
/// quarter of a millisecond.
const SESSION_TURN: usize = 256;
const HANDSHAKE_TURN: usize = 8;
/// Batches sent in one turn, likewise.
const TRANSMIT_TURN: usize = 16;
/// Flows of packets from which on memory is given back to the system once most of them are gone.
const MANY_EXCHANGES: usize = 8_192;
/// The same when so many bytes were held and half of them are not any more, at this interval at
/// most: a large window fills and empties all the time.
const MUCH_MEMORY: usize = 8 << 20;
const GIVE_BACK_EVERY: Duration = Duration::from_secs(60);
/// The path is written down this often: a daemon that is killed knows nearly as much afterwards as
/// one that ended.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);
/// Time given to the last datagrams of a closing lane.
const CLOSING: Duration = Duration::from_millis(250);
/// Connections that may wait for a peer that is called on demand: 3,000 a second for as long as it
/// may take to answer, and room for what arrives until the lease is dropped.
const MOST_HELD: usize = 4 * ARRIVING;

// Edges use tokens with a 32-bit index below a generation of 31 bits; these lie above all of them.
const LINK: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);
const WAKE: Token = Token(usize::MAX - 2);

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
    /// Which peer it is.
    pub id: PeerId,
    /// Where some flows of the peer go on to another.
    pub transit: Option<Arc<Transit>>,
    /// A handle on the socket that everybody calls: our voice until the peer's address is known.
    pub listener: Link,
    /// What it may take of what all lanes share.
    pub shares: Shares,
    /// Who makes dictionaries.
    pub workshop: DictionaryWorker,
    /// Where the path is remembered.
    pub path_cache: Option<PathCache>,
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
    poll.registry()
        .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
    let edges = Edges::new(poll.registry().try_clone()?);
    let (lane, end) = Lane::new(&start.name, waker, start.shares.descriptors.clone());
    let LaneEnd {
        inbox,
        handshakes,
        sessions,
        stopping,
        pulse,
    } = end;
    let voice = PeerSocket::new(
        start.name.clone(),
        start.listener,
        poll.registry().try_clone()?,
        LINK,
    )?;
    let own = lane.clone();
    let thread = std::thread::Builder::new()
        .name(format!("lane {}", start.name))
        .spawn(move || {
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
                id: start.id,
                transit: start.transit,
                passing: HashMap::new(),
                voice,
                inbox,
                arrivals: [handshakes, sessions],
                stranger: None,
                waiting: false,
                stopping,
                pulse,
                path_cache: start.path_cache,
                workshop: start.workshop,
                own,
                remember_at: now + REMEMBER_EVERY,
                most_packet_flows: 0,
                most_memory: 0,
                gave_back: now,
                on_change: start.on_change,
                runs: Runs::new(),
                counters: Counters::default(),
                closing: None,
                demand: start.demand,
                held: Vec::new(),
                shares: start.shares,
                far_room: FarRoom::new(),
                is_short: false,
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
    id: PeerId,
    transit: Option<Arc<Transit>>,
    /// Streams of the peer that go on to another one.
    passing: HashMap<FlowId, StreamKey>,
    voice: PeerSocket,
    inbox: Receiver<Command>,
    /// Datagrams from the router: of handshakes, then of sessions, because the last of a handshake
    /// makes those that follow it understood.
    arrivals: [Outlet; 2],
    /// The last handshake datagram for other keys that came by our own socket.
    stranger: Option<Sighting>,
    /// More commands wait than one turn takes.
    waiting: bool,
    stopping: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    path_cache: Option<PathCache>,
    workshop: DictionaryWorker,
    /// The handle that comes back with what the workshop has made.
    own: Lane,
    remember_at: Instant,
    /// Flows of datagrams at most, since memory was given back last.
    most_packet_flows: usize,
    /// Bytes held at most, likewise, and when memory was given back last.
    most_memory: usize,
    gave_back: Instant,
    on_change: Box<dyn Fn() + Send>,
    runs: Runs,
    counters: Counters,
    closing: Option<Instant>,
    demand: Option<Demand>,
    /// Connections that wait for a peer that was called on demand.
    held: Vec<Waiting>,
    shares: Shares,
    far_room: FarRoom,
    /// Something is used up to its high mark: the gate was told.
    is_short: bool,
}

/// An accepted connection.
struct Waiting {
    socket: TcpStream,
    key: StreamKey,
    treatment: Treatment,
    descriptor: Permit,
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        loop {
            let now = Instant::now();
            self.follow_demand(now);
            if let Some(packets) = &mut self.packets {
                self.counters.not_allowed +=
                    packets.follow_addresses(&mut self.peer, &self.exit, now);
                packets.say_what_is_asked(&mut self.peer, now);
            }
            // Before a datagram leaves that tells them, and before we sleep.
            self.pulse.publish(self.peer.indices());
            let busy = self.transmit(now);
            self.pulse.publish(self.peer.indices());
            let now = Instant::now();
            self.show_pulse(now);
            if self.closing.is_some_and(|until| now >= until) {
                break;
            }
            let limit = if busy || self.waiting {
                Duration::ZERO
            } else {
                self.sleep_until(now)
            };
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
                        if event.is_writable() {
                            self.voice.has_room();
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
            if called || self.waiting {
                let more = self.arrivals();
                if self.commands() {
                    break;
                }
                self.waiting |= more;
            }
            if self.closing.is_none() && self.stopping.load(Ordering::SeqCst) {
                self.begin_to_close(Instant::now());
            }
            self.follow_timeouts();
            self.follow_engine(Instant::now());
        }
        self.peer_end();
    }

    /// What ICMP messages say that quote what was sent.
    fn hear_complaints(&mut self) {
        let (now, peer) = (Instant::now(), &mut self.peer);
        self.voice.complaints(|complaint| match complaint {
            Complaint::Refused => peer.on_refused(now),
            Complaint::TooLarge(size) => peer.on_too_large(size, now),
        });
    }

    /// Takes datagrams from the connected socket until it is empty or the turn is over.
    fn receive(&mut self) {
        self.hear_complaints();
        let (start, mut turns) = (Instant::now(), 0);
        while let Some(received) = self.voice.receive(&mut self.runs) {
            match received {
                Ok(0) => return,
                Ok(received) => {
                    let now = Instant::now();
                    let (peer, voice, stranger) =
                        (&mut self.peer, &mut self.voice, &mut self.stranger);
                    self.runs.for_each(|from, local, datagram| {
                        match (peer.handle_datagram(from, datagram, now), local) {
                            (Origin::Stranger, _) => {
                                *stranger = Some(Sighting {
                                    from,
                                    at: now,
                                    fault: Fault::Guard,
                                })
                            }
                            (Origin::Caller(attempt), Some(local)) => {
                                voice.was_called(from, attempt, local)
                            }
                            // The socket is bound to where the peer is known.
                            (Origin::Peer | Origin::Caller(_) | Origin::Unknown, _) => {}
                        }
                    });
                    self.follow_engine(now);
                    if received < RECEIVE_RUNS {
                        // The kernel had no more; what came since is announced by a new edge.
                        return;
                    }
                }
                // What an ICMP message says of something that was sent, or what somebody made up;
                // what waits behind it is still to be received.
                Err(_) => self.hear_complaints(),
            }
            turns += 1;
            let now = Instant::now();
            self.pulse.turn(now);
            if turns == RECEIVE_TURN || now >= start + RECEIVE_TIME {
                // The poll is edge triggered: what is left would never be announced again.
                self.voice.watch();
                return;
            }
        }
    }

    /// Handles some of what the router heard; true when more may wait.
    fn arrivals(&mut self) -> bool {
        let mut more = false;
        for (at, turn) in [HANDSHAKE_TURN, SESSION_TURN].into_iter().enumerate() {
            let mut left = turn;
            while left > 0
                && let Some(Arrival {
                    from,
                    local,
                    mut bytes,
                }) = self.arrivals[at].take()
            {
                let now = Instant::now();
                match (self.peer.handle_datagram(from, &mut bytes, now), local) {
                    (Origin::Peer, Some(local)) => self.voice.is_known_at(local),
                    (Origin::Caller(attempt), Some(local)) => {
                        self.voice.was_called(from, attempt, local)
                    }
                    // The router has seen to strangers.
                    (Origin::Peer | Origin::Caller(_) | Origin::Stranger | Origin::Unknown, _) => {}
                }
                self.follow_engine(now);
                left -= 1;
            }
            more |= left == 0;
        }
        more
    }

    /// Handles some of what other threads ask; true when the lane shall end at once.
    fn commands(&mut self) -> bool {
        self.waiting = true;
        for _ in 0..COMMAND_TURN {
            let now = Instant::now();
            match self.inbox.try_recv() {
                Ok(Command::Accepted {
                    socket,
                    key,
                    treatment,
                    descriptor,
                }) => {
                    self.pulse.connections.fetch_sub(1, Ordering::Relaxed);
                    self.accepted(
                        Waiting {
                            socket,
                            key,
                            treatment,
                            descriptor,
                        },
                        now,
                    );
                }
                Ok(Command::Packets(batch)) => {
                    self.pulse
                        .packets
                        .fetch_sub(batch.bytes(), Ordering::Relaxed);
                    if batch.items.iter().any(|item| item.ruled.is_some()) {
                        // These take their plain way; those after them will not.
                        self.need(now);
                    }
                    if let Some(packets) = &mut self.packets {
                        packets.send(&mut self.peer, batch, now);
                    }
                }
                Ok(Command::Onward(batch)) => {
                    self.pulse
                        .packets
                        .fetch_sub(batch.bytes.len(), Ordering::Relaxed);
                    self.need(now);
                    if let Some(packets) = &mut self.packets {
                        packets.take_over(&mut self.peer, batch, now);
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
        let Some(demand) = self.demand.as_mut().filter(|_| !self.peer.is_connected()) else {
            return false;
        };
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
        let (connected, idle) = (
            self.peer.is_connected(),
            self.peer.is_idle() && self.edges.is_empty() && !asks,
        );
        let Some(demand) = &mut self.demand else {
            return;
        };
        match demand.turn(connected, idle, now) {
            Turn::Stay => {}
            Turn::Leave => self.peer.disconnect(),
            Turn::GiveUp => {
                warn!(peer = %self.name, waiting = self.held.len(), "called on demand, but it does not answer");
                for waiting in self.held.drain(..) {
                    self.counters.refused_not_connected += 1;
                    reset_on_close(&waiting.socket);
                }
            }
        }
    }

    fn accepted(&mut self, accepted: Waiting, now: Instant) {
        if self.need(now) && self.held.len() < MOST_HELD {
            self.held.push(accepted);
            return;
        }
        let Waiting {
            socket,
            key,
            treatment,
            descriptor,
        } = accepted;
        let (client, server) = (key.source, key.destination);
        match self.peer.open(key, treatment, now) {
            Ok(flow) => {
                if let Err(error) =
                    self.edges
                        .insert(flow, (socket, descriptor), Begins::Open, client, server)
                {
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
            Happened::Ready {
                flow,
                readable,
                writable,
            } => {
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
        if !self.peer.is_up() {
            self.voice.is_silent(now);
        }
    }

    /// Does what the engine says has happened.
    fn follow_engine(&mut self, now: Instant) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                Event::Deliver { flow } => self.deliver(flow, now),
                Event::Open { flow, key, asked } => self.open(flow, &key, &asked, now),
                Event::PacketFlow { flow, key, .. } => self.packet_flow(flow, key, now),
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
                Event::Accepted { flow } => {
                    debug!(peer = %self.name, ?flow, "the far edge has connected")
                }
                Event::Connected { fresh } => {
                    self.set_heard(true);
                    match fresh {
                        true => {
                            info!(peer = %self.name, remote = ?self.peer.remote(), "peer connected")
                        }
                        false => {
                            info!(peer = %self.name, remote = ?self.peer.remote(), "new keys agreed with the peer")
                        }
                    }
                    if let Some(packets) = self.packets.as_mut().filter(|_| fresh) {
                        packets.begin_anew(now);
                    }
                    if let Some(demand) = &mut self.demand {
                        demand.connected();
                    }
                    for waiting in std::mem::take(&mut self.held) {
                        self.accepted(waiting, now);
                    }
                }
                Event::Silent => {
                    warn!(peer = %self.name, "peer silent: flows wait, new connections are let go by their rule");
                    self.set_heard(false);
                }
                Event::Heard => {
                    info!(peer = %self.name, "peer heard again");
                    self.set_heard(true);
                }
                Event::Dead => {
                    self.set_heard(false);
                    self.voice.forget();
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
            None => self.peer.take_packets(|_| ()),
        }
        if let Some(remote) = self.peer.remote() {
            self.voice.follow(remote, now);
        }
    }

    fn set_heard(&self, heard: bool) {
        if let Some(packets) = &self.packets {
            packets.set_heard(heard);
        }
    }

    /// The peer has opened a flow of packets.
    fn packet_flow(&mut self, flow: FlowId, key: PacketKey, now: Instant) {
        let permitted = self.exit.permits(&key);
        let next = match &self.transit {
            Some(transit) if permitted => transit.next(&key, self.id),
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
            packets.end(flow, &self.peer);
        }
        if let (Some(key), Some(transit)) = (self.passing.remove(&flow), &self.transit) {
            transit.end(&key);
        }
    }

    /// A socket to the destination of the peer's flow, or to the lane of the peer to which it goes
    /// on, and how it begins.
    fn way_out(
        &mut self,
        flow: FlowId,
        key: &StreamKey,
        asked: &Treatment,
        now: Instant,
    ) -> Result<(TcpStream, Begins), Status> {
        if !self.exit.names(key) {
            return Err(Status::NotAllowed);
        }
        let next = match &self.transit {
            Some(transit) => (transit.next(key, self.id), Some(transit)),
            None => (Next::Here, None),
        };
        let (to, ruled, transit) = match next {
            (Next::Peer(to, ruled), Some(transit)) => (to, ruled, transit),
            (Next::Refused(status), _) => return Err(status),
            _ => {
                let connect = self.begin_connect(now)?;
                return Ok((self.exit.connect(key)?, Begins::Connecting(connect)));
            }
        };
        let lane = transit.lane(to).ok_or(Status::GoingAway)?;
        // Both ends are the bringer's: what goes on costs the peer to which it goes nothing.
        let descriptor = self
            .shares
            .descriptors
            .take(Opener::Far)
            .ok_or(Status::NoResources)?;
        if !transit.begin(key) {
            // It would go in circles.
            return Err(Status::NotAllowed);
        }
        self.passing.insert(flow, *key);
        let [near, far] = crate::lanes::transit::pair().map_err(|error| {
            debug!(%error, "a flow cannot be handed on");
            Status::NoResources
        })?;
        let treatment = ruled.treatment.after(asked);
        let accepted = Command::Accepted {
            socket: far,
            key: *key,
            treatment,
            descriptor,
        };
        lane.send(accepted).map_err(|_| Status::NoResources)?;
        Ok((near, Begins::Joining))
    }

    /// Room for one more connect, at the cost of the one that has waited longest if there is no
    /// other.
    fn begin_connect(&mut self, now: Instant) -> Result<Permit, Status> {
        loop {
            match self.edges.begin_connect(&self.shares.half_open) {
                Ok(permit) => return Ok(permit),
                Err(Some(oldest)) => {
                    self.counters.connects_given_up += 1;
                    self.broken(oldest, Status::TimedOut, now);
                }
                Err(None) => return Err(Status::NoResources),
            }
        }
    }

    fn open(&mut self, flow: FlowId, key: &StreamKey, asked: &Treatment, now: Instant) {
        if let Err(status) = self.begin(flow, key, asked, now) {
            match status {
                Status::NotAllowed => self.counters.not_allowed += 1,
                Status::NoResources => self.counters.no_descriptors += 1,
                _ => {}
            }
            self.forget(flow);
            self.peer.reset(flow, status, now);
        }
    }

    fn begin(
        &mut self,
        flow: FlowId,
        key: &StreamKey,
        asked: &Treatment,
        now: Instant,
    ) -> Result<(), Status> {
        let descriptor = self
            .shares
            .descriptors
            .take(Opener::Far)
            .ok_or(Status::NoResources)?;
        let (socket, begins) = self.way_out(flow, key, asked, now)?;
        self.edges
            .insert(
                flow,
                (socket, descriptor),
                begins,
                key.source,
                key.destination,
            )
            .map_err(|error| {
                debug!(%error, "no edge for the peer's flow");
                Status::NoResources
            })
    }

    /// Sends what may be sent; true when there is more than one turn's worth.
    fn transmit(&mut self, now: Instant) -> bool {
        if self.voice.is_blocked() {
            return false;
        }
        if let Some((to, what, segment)) = self.voice.take_unsent()
            && !self.send(to, what, segment, now)
        {
            return false;
        }
        for _ in 0..TRANSMIT_TURN {
            self.voice.batch.clear();
            let transmit = self
                .peer
                .poll_transmit(&mut self.edges, &mut self.voice.batch, now);
            // Reading an edge may have found its end, whether or not something is sent.
            self.follow_engine(now);
            let Some(transmit) = transmit else {
                return false;
            };
            if !self.send(transmit.to, transmit.kind, transmit.segment_size, now) {
                return false;
            }
        }
        true
    }

    /// Gives the batch to the kernel; false when its buffer is full, and the batch is kept for
    /// later.
    fn send(&mut self, to: SocketAddr, kind: TransmitKind, segment: usize, now: Instant) -> bool {
        match self.voice.send(to, kind, segment, now) {
            Sent::Blocked => return false,
            Sent::All | Sent::Failed => {}
            Sent::TooLarge => self
                .peer
                .on_too_large(segment.min(self.voice.batch.len()), now),
        }
        true
    }

    /// Writes down what is known of the path.
    fn remember(&mut self, now: Instant) {
        self.remember_at = now + REMEMBER_EVERY;
        if let (Some(memory), Some(path)) = (&self.path_cache, self.peer.path(now))
            && let Err(error) = memory.save(&path)
        {
            debug!(peer = %self.name, %error, "the path cannot be remembered");
        }
    }

    /// After a flood, or when compression has come to rest: earlier it would be for nothing,
    /// because those that are left lie on the same pages.
    fn give_back(&mut self, memory: usize, now: Instant) {
        let packet_flows = self.peer.packet_flows();
        self.most_packet_flows = self.most_packet_flows.max(packet_flows);
        self.most_memory = self.most_memory.max(memory);
        let flood_is_over =
            self.most_packet_flows > MANY_EXCHANGES && packet_flows < self.most_packet_flows / 64;
        let much_is_free = self.most_memory > MUCH_MEMORY && memory < self.most_memory / 2;
        if flood_is_over || (much_is_free && now >= self.gave_back + GIVE_BACK_EVERY) {
            (self.most_packet_flows, self.most_memory, self.gave_back) =
                (packet_flows, memory, now);
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
        self.show_room(now);
        // At rest it can take what comes: that is what calls it.
        let ready = !self.peer.is_connected() && self.demand.as_ref().is_some_and(Demand::is_ready);
        if self
            .pulse
            .beat(now, (self.peer.is_up() || ready) && self.closing.is_none())
        {
            (self.on_change)();
        }
    }

    /// Shows how much of its room is used. The gate looks often enough by itself, but when a high
    /// mark is reached it shall look at once.
    fn show_room(&mut self, now: Instant) {
        let Usage {
            streams,
            most_streams,
            held,
            budget,
            refused_there,
        } = self.peer.usage();
        for (shown, now) in [
            (&self.pulse.flows, [streams, most_streams]),
            (&self.pulse.held, [held, budget]),
            (&self.pulse.calling, [self.held.len(), MOST_HELD]),
        ] {
            shown[0].store(now[0], Ordering::Relaxed);
            shown[1].store(now[1], Ordering::Relaxed);
        }
        self.pulse
            .far_is_full
            .store(self.far_room.is_full(refused_there, now), Ordering::Relaxed);
        let is_short = self
            .pulse
            .levels()
            .iter()
            .any(|level| level.used >= level.marks.high);
        if std::mem::replace(&mut self.is_short, is_short) != is_short {
            (self.on_change)();
        }
    }

    /// How long the poll may sleep; arms the fine timer where the coarse timeout would oversleep.
    fn sleep_until(&mut self, now: Instant) -> Duration {
        let mut limit = PULSE;
        if let Some(until) = self.closing {
            limit = limit.min(until.saturating_duration_since(now));
        }
        let Some(when) = self.peer.poll_timeout() else {
            return limit;
        };
        let wait = when.saturating_duration_since(now);
        if wait.is_zero() {
            // With no room in the socket nothing that is due can leave: its writable event wakes
            // us, not the clock.
            return if self.voice.is_blocked() {
                Duration::from_millis(1)
            } else {
                Duration::ZERO
            };
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
        (counters.send_failures, counters.buffer_full) =
            (self.voice.failures, self.voice.dropped());
        counters.complaints_unproved = self.voice.unproved;
        Report {
            stats: self.peer.stats(),
            connected: self.peer.is_connected(),
            rests: !self.peer.is_connected() && self.demand.as_ref().is_some_and(Demand::rests),
            remote: self.peer.remote(),
            stranger: self.stranger,
            edges: self.edges.len(),
            counters,
            packets: self
                .packets
                .as_ref()
                .map_or_else(Default::default, Packets::counters),
            groups_asked_here: self
                .packets
                .as_ref()
                .map_or_else(Vec::new, Packets::asked_here),
            groups_asked_there: self
                .packets
                .as_ref()
                .map_or_else(Vec::new, Packets::asked_there),
            lans_left: self
                .packets
                .as_ref()
                .map_or_else(Vec::new, Packets::lans_left),
        }
    }

    fn peer_end(&mut self) {
        self.pulse.beat(Instant::now(), false);
        (self.on_change)();
    }
}
