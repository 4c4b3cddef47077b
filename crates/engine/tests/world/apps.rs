//! Applications in memory, for tests: seeded writers and readers at both ends of every flow, and a
//! reference model that knows each byte. Shared by the driver's own tests (two drivers, nothing
//! between) and the worlds (two peers, a bad WAN).

use std::{
    collections::BTreeMap,
    io::IoSlice,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tpo_engine::{Class, Event, FlowId, OpenError, Read, Source, Status, StreamKey};

/// What the applications need of a `Peer`.
pub trait Engine {
    fn open(&mut self, key: StreamKey, class: Class, now: Instant) -> Result<FlowId, OpenError>;
    fn accept(&mut self, flow: FlowId, now: Instant);
    fn readable(&mut self, flow: FlowId, now: Instant);
    fn reset(&mut self, flow: FlowId, status: Status, now: Instant);
    fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>);
    fn delivered(&mut self, flow: FlowId, n: usize, now: Instant);
    fn poll_event(&mut self) -> Option<Event>;
}

/// What the application at one end of a flow does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Bytes that it writes.
    pub write: u64,
    /// At most so many at once.
    pub piece: usize,
    /// How long it waits after each piece.
    pub pause: Duration,
    pub then: Then,
    pub read: Reading,
}

/// What a writer does after its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    End,
    /// Its connection breaks.
    Fail,
    /// It keeps the connection open for good.
    Stay,
    /// It ends when the other side has ended.
    Follow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    Prompt,
    /// Bytes per second.
    Rate(u64),
    /// Nothing until this time after the start of the flow.
    From(Duration),
    Never,
    /// So many bytes, and then nothing more.
    StopAfter(u64),
    /// Resets its connection after so many bytes.
    ResetAfter(u64),
}

/// A flow, as a whole.
#[derive(Debug, Clone)]
pub struct Script {
    /// Since the start of the world.
    pub start: Duration,
    pub class: Class,
    pub opener: Plan,
    pub acceptor: Plan,
    /// The destination answers after so long; with a status, it does not accept.
    pub connect: Duration,
    pub refuse: Option<Status>,
}

impl Plan {
    pub fn bytes(write: u64) -> Plan {
        Plan {
            write,
            piece: usize::MAX,
            pause: Duration::ZERO,
            then: Then::End,
            read: Reading::Prompt,
        }
    }

    pub fn random(random: &mut fastrand::Rng, most: u64) -> Plan {
        let write = match random.u8(0..4) {
            0 => 0,
            1 => random.u64(1..2000),
            _ => random.u64(0..=most),
        };
        let slow = random.u8(0..3) == 0;
        Plan {
            write,
            piece: if slow {
                random.usize(1..3000).max(write as usize / 50)
            } else {
                usize::MAX
            },
            pause: if slow {
                Duration::from_micros(random.u64(0..3000))
            } else {
                Duration::ZERO
            },
            then: Then::End,
            read: match random.u8(0..6) {
                0 => Reading::Rate(random.u64(100_000..5_000_000)),
                1 => Reading::From(Duration::from_millis(random.u64(0..3000))),
                _ => Reading::Prompt,
            },
        }
    }
}

impl Script {
    pub fn new(opener: Plan, acceptor: Plan) -> Script {
        Script {
            start: Duration::ZERO,
            class: Class::Normal,
            opener,
            acceptor,
            connect: Duration::ZERO,
            refuse: None,
        }
    }

    pub fn random(random: &mut fastrand::Rng, most: u64) -> Script {
        Script {
            start: Duration::from_millis(random.u64(0..500)),
            class: [
                Class::Control,
                Class::Interactive,
                Class::Normal,
                Class::Bulk,
            ][random.usize(0..4)],
            opener: Plan::random(random, most),
            acceptor: Plan::random(random, most),
            connect: Duration::from_millis(random.u64(0..30)),
            refuse: None,
        }
    }
}

/// How far one end of a flow has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub flow: FlowId,
    pub written: u64,
    pub got: u64,
    pub wrote_end: bool,
    pub saw_accepted: bool,
    pub saw_finish: bool,
    pub saw_reset: Option<Status>,
    pub saw_closed: bool,
    /// It reset the flow itself.
    pub reset: bool,
    pub first_byte: Option<Duration>,
    pub last_byte: Option<Duration>,
    /// When how many bytes had been written, and read.
    pub writes: Vec<(Duration, u64)>,
    pub reads: Vec<(Duration, u64)>,
}

impl End {
    pub fn over(&self) -> bool {
        self.saw_closed || self.saw_reset.is_some() || self.reset
    }
}

/// The applications at one side.
pub struct Apps {
    /// Which side: part of the addresses.
    side: u8,
    start: Instant,
    /// Flows that this side opens, by their number in the source port; those that are still to be
    /// opened.
    scripts: BTreeMap<usize, Script>,
    waiting: Vec<usize>,
    /// The other side's, so that this one knows how to answer.
    others: BTreeMap<usize, Script>,
    running: BTreeMap<FlowId, App>,
    /// How each flow went: by the side that opened it and its number.
    pub ends: BTreeMap<(u8, usize), End>,
    pub peer_events: Vec<Event>,
    pub refused_opens: usize,
}

struct App {
    opener: u8,
    number: usize,
    plan: Plan,
    accepted: bool,
    connect_at: Option<Instant>,
    refuse: Option<Status>,
    pause_until: Instant,
    wait: bool,
    deliver: bool,
    read_allowed_from: Instant,
}

impl Apps {
    pub fn new(side: u8, scripts: Vec<Script>, others: Vec<Script>, start: Instant) -> Apps {
        let waiting = (0..scripts.len()).collect();
        Apps {
            side,
            start,
            scripts: scripts.into_iter().enumerate().collect(),
            waiting,
            others: others.into_iter().enumerate().collect(),
            running: BTreeMap::new(),
            ends: BTreeMap::new(),
            peer_events: Vec::new(),
            refused_opens: 0,
        }
    }

    /// Another flow for this side to open, with this number.
    pub fn add(&mut self, script: Script, number: usize) -> usize {
        self.scripts.insert(number, script);
        self.waiting.push(number);
        number
    }

    /// From now on the application does something else.
    pub fn set_plan(
        &mut self,
        opener: u8,
        number: usize,
        plan: Plan,
        engine: &mut impl Engine,
        now: Instant,
    ) {
        let (flow, app) = self
            .running
            .iter_mut()
            .find(|(_, app)| (app.opener, app.number) == (opener, number))
            .unwrap();
        app.plan = plan;
        app.read_allowed_from = now;
        engine.readable(*flow, now);
    }

    /// The other side will open this one.
    pub fn add_other(&mut self, script: Script, number: usize) {
        self.others.insert(number, script);
    }

    pub fn alive(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    pub fn end(&self, opener: u8, number: usize) -> &End {
        self.ends
            .get(&(opener, number))
            .unwrap_or_else(|| panic!("side {} never saw flow {opener}/{number}", self.side))
    }

    pub fn got(&self, opener: u8, number: usize) -> u64 {
        self.ends.get(&(opener, number)).map_or(0, |end| end.got)
    }

    /// The applications' turn. Call it after every input; `up` says whether flows can be opened.
    pub fn turn(&mut self, engine: &mut impl Engine, up: bool, now: Instant) {
        while let Some(event) = engine.poll_event() {
            self.on_event(event, engine, now);
        }
        if up {
            self.open(engine, now);
        }
        let flows: Vec<FlowId> = self.running.keys().copied().collect();
        for flow in flows {
            self.connect(flow, engine, now);
            self.deliver(flow, engine, now);
            self.wake(flow, engine, now);
        }
        while let Some(event) = engine.poll_event() {
            self.on_event(event, engine, now);
        }
    }

    /// When the applications next do something by themselves.
    pub fn next_turn(&self, up: bool, now: Instant) -> Option<Instant> {
        let opens = self
            .waiting
            .iter()
            .filter(|_| up)
            .map(|number| self.start + self.scripts[number].start);
        let flows = self.running.values().flat_map(|app| {
            let connect = app.connect_at;
            let pause = app.wait.then_some(app.pause_until);
            let read = app.deliver.then_some(app.read_allowed_from);
            [connect, pause, read].into_iter().flatten()
        });
        opens.chain(flows).filter(|at| *at > now).min()
    }

    fn open(&mut self, engine: &mut impl Engine, now: Instant) {
        let due: Vec<usize> = self
            .waiting
            .iter()
            .copied()
            .filter(|number| self.start + self.scripts[number].start <= now)
            .collect();
        for number in due {
            let script = &self.scripts[&number];
            match engine.open(key(self.side, number), script.class, now) {
                Ok(flow) => {
                    let plan = script.opener.clone();
                    self.begin(flow, self.side, number, plan, now);
                    self.running.get_mut(&flow).unwrap().accepted = true;
                    engine.readable(flow, now);
                }
                Err(_) => self.refused_opens += 1,
            }
            self.waiting.retain(|waiting| *waiting != number);
        }
    }

    fn begin(&mut self, flow: FlowId, opener: u8, number: usize, plan: Plan, now: Instant) {
        let read_allowed_from = match plan.read {
            Reading::From(after) => now + after,
            Reading::Never => now + Duration::from_secs(1_000_000),
            _ => now,
        };
        let app = App {
            opener,
            number,
            plan,
            accepted: false,
            connect_at: None,
            refuse: None,
            pause_until: now,
            wait: false,
            deliver: false,
            read_allowed_from,
        };
        assert!(
            self.running.insert(flow, app).is_none(),
            "{flow} was given twice"
        );
        let end = End {
            flow,
            written: 0,
            got: 0,
            wrote_end: false,
            saw_accepted: false,
            saw_finish: false,
            saw_reset: None,
            saw_closed: false,
            reset: false,
            first_byte: None,
            last_byte: None,
            writes: Vec::new(),
            reads: Vec::new(),
        };
        assert!(
            self.ends.insert((opener, number), end).is_none(),
            "flow {opener}/{number} was opened twice"
        );
    }

    fn on_event(&mut self, event: Event, engine: &mut impl Engine, now: Instant) {
        let side = self.side;
        match event {
            Event::PacketFlow { .. } => panic!("nobody sends datagrams here"),
            Event::Connected { .. } | Event::Silent | Event::Heard | Event::Dead => {
                self.peer_events.push(event)
            }
            Event::Open { flow, key, asked } => {
                let (opener, number) = whose(&key);
                let script = &self.others[&number];
                assert_eq!(asked.class, script.class);
                assert_eq!(opener, 1 - side);
                let (plan, connect, refuse) =
                    (script.acceptor.clone(), script.connect, script.refuse);
                self.begin(flow, opener, number, plan, now);
                let app = self.running.get_mut(&flow).unwrap();
                app.connect_at = Some(now + connect);
                app.refuse = refuse;
                self.connect(flow, engine, now);
            }
            Event::Deliver { flow } => {
                let Some(app) = self.running.get_mut(&flow) else {
                    return;
                };
                assert!(app.accepted && !app.deliver, "told twice to deliver {flow}");
                app.deliver = true;
            }
            Event::Accepted { flow } => {
                let Some(app) = self.running.get(&flow) else {
                    return;
                };
                assert_eq!(app.opener, side, "only the opener is told");
                let end = self.ends.get_mut(&(app.opener, app.number)).unwrap();
                assert!(!end.saw_accepted, "accepted twice");
                end.saw_accepted = true;
            }
            Event::Finish { flow } => {
                let Some(app) = self.running.get_mut(&flow) else {
                    return;
                };
                assert!(!app.deliver, "finish before everything was taken");
                let end = self.ends.get_mut(&(app.opener, app.number)).unwrap();
                assert!(!end.saw_finish, "finished twice");
                end.saw_finish = true;
                if app.plan.then == Then::Follow {
                    app.plan.then = Then::End;
                    engine.readable(flow, now);
                }
            }
            Event::Reset { flow, status } => {
                let Some(app) = self.running.remove(&flow) else {
                    return;
                };
                self.ends
                    .get_mut(&(app.opener, app.number))
                    .unwrap()
                    .saw_reset = Some(status);
            }
            Event::Closed { flow } => {
                // It may have been reset by its application in the meantime.
                let Some(app) = self.running.remove(&flow) else {
                    return;
                };
                let end = self.ends.get_mut(&(app.opener, app.number)).unwrap();
                assert!(
                    end.saw_finish && end.wrote_end,
                    "{flow} closed before both directions ended: {end:?}"
                );
                end.saw_closed = true;
            }
        }
    }

    fn connect(&mut self, flow: FlowId, engine: &mut impl Engine, now: Instant) {
        let Some(app) = self.running.get_mut(&flow) else {
            return;
        };
        if app.connect_at.is_none_or(|at| at > now) {
            return;
        }
        app.connect_at = None;
        if let Some(status) = app.refuse {
            engine.reset(flow, status, now);
            let app = self.running.remove(&flow).unwrap();
            self.ends.get_mut(&(app.opener, app.number)).unwrap().reset = true;
            return;
        }
        app.accepted = true;
        engine.accept(flow, now);
        engine.readable(flow, now);
    }

    fn wake(&mut self, flow: FlowId, engine: &mut impl Engine, now: Instant) {
        let Some(app) = self.running.get_mut(&flow) else {
            return;
        };
        if app.wait && app.pause_until <= now {
            app.wait = false;
            engine.readable(flow, now);
        }
    }

    fn deliver(&mut self, flow: FlowId, engine: &mut impl Engine, now: Instant) {
        while let Some(app) = self
            .running
            .get_mut(&flow)
            .filter(|app| app.deliver && app.read_allowed_from <= now)
        {
            let (opener, number, read) = (app.opener, app.number, app.plan.read);
            let end = self.ends.get_mut(&(opener, number)).unwrap();
            let mut slices = Vec::new();
            engine.deliverable(flow, &mut slices);
            let there: usize = slices.iter().map(|slice| slice.len()).sum();
            assert!(there > 0, "told to deliver {flow}, and there is nothing");
            let n = match read {
                Reading::Rate(rate) => there.min((rate / 200).max(1) as usize),
                Reading::ResetAfter(bytes) | Reading::StopAfter(bytes) => {
                    there.min((bytes - end.got) as usize)
                }
                Reading::Prompt | Reading::From(_) | Reading::Never => there,
            };
            let stream = stream(opener, number, 1 - self.side);
            for (i, byte) in slices
                .iter()
                .flat_map(|slice| slice.iter())
                .take(n)
                .enumerate()
            {
                assert_eq!(
                    *byte,
                    content(stream, end.got + i as u64),
                    "flow {opener}/{number}: byte {} is wrong",
                    end.got + i as u64
                );
            }
            let at = now.duration_since(self.start);
            end.first_byte.get_or_insert(at);
            end.last_byte = Some(at);
            end.got += n as u64;
            end.reads.push((at, end.got));
            if let Reading::Rate(_) = read {
                app.read_allowed_from = now + Duration::from_millis(5);
            }
            if matches!(read, Reading::StopAfter(bytes) if end.got >= bytes) {
                app.read_allowed_from = now + Duration::from_secs(1_000_000);
            }
            engine.delivered(flow, n, now);
            // Told once until all is taken: one look gives no more than 64 slices.
            let mut left = Vec::new();
            engine.deliverable(flow, &mut left);
            app.deliver = !left.is_empty();
            if matches!(read, Reading::ResetAfter(bytes) if self.ends[&(opener, number)].got >= bytes)
            {
                self.reset(flow, engine, now);
            }
            while let Some(event) = engine.poll_event() {
                self.on_event(event, engine, now);
            }
        }
    }

    fn reset(&mut self, flow: FlowId, engine: &mut impl Engine, now: Instant) {
        engine.reset(flow, Status::Reset, now);
        let app = self.running.remove(&flow).unwrap();
        self.ends.get_mut(&(app.opener, app.number)).unwrap().reset = true;
    }

    /// The source that the packet driver reads from.
    pub fn source(&mut self, now: Instant) -> Writers<'_> {
        Writers { apps: self, now }
    }
}

/// The writing ends of all applications of a side.
pub struct Writers<'a> {
    apps: &'a mut Apps,
    now: Instant,
}

impl Source for Writers<'_> {
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Read {
        assert!(!into.is_empty());
        let side = self.apps.side;
        let app = self
            .apps
            .running
            .get_mut(&flow)
            .unwrap_or_else(|| panic!("side {side}: {flow} is read and has no application"));
        assert!(app.accepted, "read before it was accepted");
        let end = self.apps.ends.get_mut(&(app.opener, app.number)).unwrap();
        assert!(!end.wrote_end, "read after its end");
        if app.pause_until > self.now {
            app.wait = true;
            return Read::Blocked;
        }
        if end.written == app.plan.write {
            return match app.plan.then {
                Then::End => {
                    end.wrote_end = true;
                    Read::End
                }
                Then::Fail => {
                    end.reset = true;
                    Read::Failed(Status::Reset)
                }
                Then::Stay | Then::Follow => Read::Blocked,
            };
        }
        let n = into
            .len()
            .min(app.plan.piece)
            .min((app.plan.write - end.written) as usize);
        let stream = stream(app.opener, app.number, side);
        for (i, byte) in into[..n].iter_mut().enumerate() {
            *byte = content(stream, end.written + i as u64);
        }
        end.written += n as u64;
        end.writes
            .push((self.now.duration_since(self.apps.start), end.written));
        app.pause_until = self.now + app.plan.pause;
        Read::Bytes(n)
    }
}

/// What both ends of all flows must show in the end, when every application has had time enough:
/// the reference model.
pub fn check_ends(a: &Apps, b: &Apps) {
    for (opener, here, there) in [(a.side, a, b), (b.side, b, a)] {
        for (&number, script) in &here.scripts {
            let Some(near) = here.ends.get(&(opener, number)) else {
                continue;
            };
            let Some(far) = there.ends.get(&(opener, number)) else {
                assert!(
                    near.over(),
                    "flow {opener}/{number} never arrived: {near:?}"
                );
                continue;
            };
            let context =
                || format!("flow {opener}/{number}\nopener {near:?}\nacceptor {far:?}\n{script:?}");
            assert!(
                far.got <= near.written && near.got <= far.written,
                "{}",
                context()
            );
            if near.saw_closed && far.saw_closed {
                assert_eq!(
                    (near.written, near.got),
                    (far.got, far.written),
                    "{}",
                    context()
                );
                assert_eq!(
                    (near.written, far.written),
                    (script.opener.write, script.acceptor.write),
                    "{}",
                    context()
                );
            }
            let plain = script.refuse.is_none()
                && [&script.opener, &script.acceptor].iter().all(|plan| {
                    plan.then == Then::End
                        && !matches!(plan.read, Reading::Never | Reading::ResetAfter(_))
                });
            if plain {
                assert!(near.saw_closed && far.saw_closed, "{}", context());
                assert!(near.saw_accepted, "{}", context());
            }
            if let Some(status) = script.refuse.filter(|_| !near.reset) {
                assert_eq!(
                    (near.saw_reset, near.got, far.got),
                    (Some(status), 0, 0),
                    "{}",
                    context()
                );
            }
            // A writer whose connection broke: the other side has its bytes, then the reset.
            for (writer, reader, plan, reading) in [
                (near, far, &script.opener, script.acceptor.read),
                (far, near, &script.acceptor, script.opener.read),
            ] {
                let broke = plan.then == Then::Fail && writer.reset && writer.written == plan.write;
                if broke && reading == Reading::Prompt && !reader.reset && script.refuse.is_none() {
                    assert_eq!(reader.got, writer.written, "{}", context());
                    assert_eq!(reader.saw_reset, Some(Status::Reset), "{}", context());
                }
            }
            if near.reset != far.reset
                && near.saw_closed == far.saw_closed
                && script.refuse.is_none()
            {
                let ended = if near.reset { far } else { near };
                assert_eq!(ended.saw_reset, Some(Status::Reset), "{}", context());
            }
        }
    }
}

/// How long each piece of a flow took from its writer to its reader.
pub fn delays(writer: &End, reader: &End) -> Vec<Duration> {
    let mut reads = reader.reads.iter().peekable();
    let mut delays = Vec::new();
    for (written_at, until) in &writer.writes {
        while reads.next_if(|(_, got)| got < until).is_some() {}
        if let Some((read_at, _)) = reads.peek() {
            delays.push(read_at.saturating_sub(*written_at));
        }
    }
    delays
}

pub fn key(opener: u8, number: usize) -> StreamKey {
    let v6 = number % 3 == 1;
    let port = 10_000 + number as u16;
    let (source, destination): (SocketAddr, SocketAddr) = if v6 {
        (
            format!("[fd10:{opener}::2]:{port}").parse().unwrap(),
            "[fd10:9::1]:443".parse().unwrap(),
        )
    } else {
        (
            format!("10.{opener}.0.2:{port}").parse().unwrap(),
            "10.9.0.1:80".parse().unwrap(),
        )
    };
    StreamKey::new(source, destination).unwrap()
}

fn whose(key: &StreamKey) -> (u8, usize) {
    let opener = match key.source {
        SocketAddr::V4(address) => address.ip().octets()[1],
        SocketAddr::V6(address) => address.ip().segments()[1] as u8,
    };
    let number = usize::from(key.source.port() - 10_000);
    assert_eq!(
        *key,
        self::key(opener, number),
        "the addresses arrive as they were sent"
    );
    (opener, number)
}

fn stream(opener: u8, number: usize, writer: u8) -> u64 {
    (u64::from(opener) << 40 | (number as u64) << 8 | u64::from(writer))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Each byte of each stream is what its place says.
fn content(stream: u64, offset: u64) -> u8 {
    // Every other stream repeats itself, but for one word in eight, so that compression has
    // something to do and every place is still known.
    let place = offset >> 3;
    let place = if stream & 1 == 0 && !place.is_multiple_of(8) {
        place % 97
    } else {
        place
    };
    let word = (stream ^ place).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((word ^ (word >> 32)) >> ((offset & 7) * 8)) as u8
}
