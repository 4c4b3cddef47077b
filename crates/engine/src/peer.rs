//! One far TPO: joins the packet driver and the data mover, and only routes between them.
//!
//! Takes datagrams from the link and what the edges say of their flows; gives datagrams to the link
//! and events to the edges. It is stages 3 to 6 of the walk.

use std::{io::IoSlice, net::SocketAddr, ops::Range, sync::Arc, time::Instant};

use tpo_mover::{Mover, Origin, Reason, Transmit};

use crate::{
    Arrived, Config, Event, FlowId, FlowInfo, OpenError, PacketKey, PacketTreatment, SendError,
    Source, Stats, Status, StreamKey, Treatment, Usage, Work, Worked,
    config::COMPRESSED_TIME,
    driver::{Driver, buffer::Room},
    flow::blocks::PacketParts,
};

/// One far TPO: all flows that go to it and come from it.
///
/// It reads no clock and opens no socket. Whoever owns it (the program's lane, or a world of the
/// lab) drives it, one input after the other:
///
/// 1. One input: a datagram ([`handle_datagram`](Peer::handle_datagram)), a time that has come
///    ([`handle_timeout`](Peer::handle_timeout)), or a word of an edge ([`open`](Peer::open),
///    [`readable`](Peer::readable), [`delivered`](Peer::delivered),
///    [`send_packet`](Peer::send_packet), …). `now` never goes back.
/// 2. [`poll_event`](Peer::poll_event) until it gives `None`. What the edges do about the events
///    are inputs too: [`accept`](Peer::accept) or [`reset`](Peer::reset) for `Open`,
///    [`deliverable`](Peer::deliverable) and [`delivered`](Peer::delivered) for `Deliver`.
/// 3. [`take_packets`](Peer::take_packets), if flows of packets are used.
/// 4. [`poll_transmit`](Peer::poll_transmit) until it gives `None`: it reads from the edges by
///    [`Source`], and only what can be sent at once. What ends a flow here is told by events.
/// 5. [`poll_work`](Peer::poll_work) until it gives `None`; the work may be done on any thread,
///    and its result is another input ([`on_worked`](Peer::on_worked)).
/// 6. [`poll_timeout`](Peer::poll_timeout) says when the next input is due at the latest.
///
/// Two peers, and a stream from one to the other, in memory:
///
/// ```
/// use std::{io::IoSlice, net::SocketAddr, sync::Arc, time::Instant};
/// use tpo_engine::{Class, Config, Event, FlowId, Peer, Read, Source, StreamKey};
/// use tpo_mover::Identity;
///
/// /// What the application of a side writes: a text, then the end.
/// struct Writes(&'static [u8]);
///
/// impl Source for Writes {
///     fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
///         let n = self.0.len().min(into.len());
///         into[..n].copy_from_slice(&self.0[..n]);
///         self.0 = &self.0[n..];
///         if n > 0 { Read::Bytes(n) } else { Read::End }
///     }
/// }
///
/// let identities = ["A", "Q"].map(|letter| {
///     // A private key is any 32 bytes; in base64 they are 43 letters and the padding.
///     let text = format!("{}A=", letter.repeat(42));
///     Arc::new(Identity::from_private_text(&text).expect("32 bytes in base64"))
/// });
/// let addresses: [SocketAddr; 2] = ["192.0.2.1:47800", "192.0.2.2:47800"]
///     .map(|address| address.parse().unwrap());
/// let mut now = Instant::now();
/// let mut peers = [0, 1].map(|side: usize| {
///     let there = identities[1 - side].public_key();
///     // The program draws the seed from the OS; here it is fixed.
///     let seed = [side as u8; 32];
///     let mut mover = tpo_mover::Config::new(identities[side].clone(), there, side as u16, seed);
///     mover.endpoint = Some(addresses[1 - side]);
///     Peer::new(Config::new(mover), now)
/// });
/// let mut sources = [Writes(b"a request"), Writes(b"an answer")];
/// let (mut opened, mut got, mut closed) = (false, [Vec::new(), Vec::new()], 0);
///
/// while closed < 2 {
///     let mut moved = false;
///     for side in [0, 1] {
///         // The first side opens a stream once it is connected.
///         if side == 0 && peers[0].is_connected() && !opened {
///             let from = "10.1.0.2:40000".parse().unwrap();
///             let to = "10.2.0.2:80".parse().unwrap();
///             let key = StreamKey::new(from, to).expect("both are IPv4");
///             peers[0].open(key, Class::Normal, now).expect("there is a session");
///             opened = true;
///         }
///         while let Some(event) = peers[side].poll_event() {
///             match event {
///                 Event::Open { flow, .. } => {
///                     peers[side].accept(flow, now);
///                     peers[side].readable(flow, now);
///                 }
///                 Event::Deliver { flow } => {
///                     let mut slices: Vec<IoSlice<'_>> = Vec::new();
///                     peers[side].deliverable(flow, &mut slices);
///                     let bytes: Vec<u8> = slices.iter().flat_map(|s| s.to_vec()).collect();
///                     peers[side].delivered(flow, bytes.len(), now);
///                     got[side].extend(bytes);
///                 }
///                 Event::Closed { .. } => closed += 1,
///                 _ => {}
///             }
///         }
///         // The link: every datagram arrives at once.
///         let mut out = Vec::new();
///         let source = &mut sources[side];
///         while let Some(transmit) = peers[side].poll_transmit(source, &mut out, now) {
///             for datagram in out.chunks_mut(transmit.segment_size) {
///                 peers[1 - side].handle_datagram(addresses[side], datagram, now);
///             }
///             out.clear();
///             moved = true;
///         }
///     }
///     if !moved {
///         // Nothing is under way: the next thing that happens is a timeout.
///         let times = peers.iter().filter_map(|peer| peer.poll_timeout());
///         now = now.max(times.min().expect("a mover always has something in mind"));
///         peers.iter_mut().for_each(|peer| peer.handle_timeout(now));
///     }
/// }
/// assert_eq!(got, [b"an answer".to_vec(), b"a request".to_vec()]);
/// ```
pub struct Peer {
    mover: Mover,
    driver: Driver,
    buffer_size: usize,
    /// The largest payload that the peer takes.
    max_payload: usize,
    /// What all of it may hold.
    budget: usize,
    /// Payloads wait in the mover since then, because the edges have not fetched what came of
    /// others.
    left_over: Option<Instant>,
    /// A packed buffer that the mover did not take, because its window of numbers was full.
    refused: Option<(Vec<u8>, bool)>,
}

impl Peer {
    /// A peer without a session; the mover starts the handshake by itself if it knows an endpoint.
    pub fn new(mut config: Config, now: Instant) -> Peer {
        config.mover.initial_credit = config.limits.announced_credit();
        let higher = config.mover.identity.public_key() > config.mover.peer_key;
        let max_payload = config.mover.max_payload;
        let mut driver = Driver::new(config.limits, higher, &config.mover.seed);
        driver.set_compression(config.compression);
        let mut peer = Peer {
            mover: Mover::new(config.mover, now),
            driver,
            buffer_size: config.buffer_size,
            max_payload,
            budget: config.limits.peer_bytes,
            left_over: None,
            refused: None,
        };
        peer.share_memory();
        peer
    }

    // --- the link side
    // ---------------------------------------------------------------------------------------------

    /// One received datagram. Opened in place; never panics, whatever the bytes. Says what it has
    /// proved of its sender.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
    ) -> Origin {
        let heard = self.mover.handle_datagram(from, datagram, now);
        self.take_from_mover(now);
        heard
    }

    /// The session indices by which datagrams find us now, as the mover's verb of this name.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.mover.indices()
    }

    /// The time that `poll_timeout` named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.mover.handle_timeout(now);
        self.driver.handle_timeout(now);
        self.take_from_mover(now);
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let driver = &self.driver;
        let own = [
            driver.gathers_until(),
            driver.poll_timeout(),
            self.left_over,
        ];
        let mover = self.mover.poll_timeout().map(|(at, _)| at);
        own.into_iter().flatten().chain(mover).min()
    }

    /// Appends datagrams to `out` as the mover's verb of this name does. While the mover has
    /// budget, buffers are packed from what `source` reads; nothing is read that cannot be sent.
    pub fn poll_transmit(
        &mut self,
        source: &mut dyn Source,
        out: &mut Vec<u8>,
        now: Instant,
    ) -> Option<Transmit> {
        self.pack(source, now);
        let leaving = self.mover.is_leaving();
        let transmit = self.mover.poll_transmit(out, now);
        if leaving {
            self.take_from_mover(now);
        }
        transmit
    }

    /// The link could not send datagrams of this size.
    pub fn on_too_large(&mut self, size: usize, now: Instant) {
        self.mover.on_too_large(size, now);
    }

    /// The link heard that nobody listens at the peer's port.
    pub fn on_refused(&mut self, now: Instant) {
        self.mover.on_refused(now);
        self.take_from_mover(now);
    }

    // --- the edge side
    // ---------------------------------------------------------------------------------------------

    /// The near application opened a connection. Its data may be read at once, up to the peer's
    /// initial credit.
    pub fn open(
        &mut self,
        key: StreamKey,
        treatment: impl Into<Treatment>,
        now: Instant,
    ) -> Result<FlowId, OpenError> {
        self.driver.open(key, treatment, now)
    }

    /// The far flow's destination has been connected: its bytes may be read and delivered.
    pub fn accept(&mut self, flow: FlowId, _now: Instant) {
        self.driver.accept(flow);
    }

    /// The flow's application has bytes to read, or has ended. To be called after each wake-up of
    /// its socket.
    pub fn readable(&mut self, flow: FlowId, now: Instant) {
        self.driver.readable(flow, now);
    }

    /// Hands over a block of memory that holds packets which the near side sent; each is named by
    /// [`send_from_block`](Peer::send_from_block). Then [`end_block`](Peer::end_block). The
    /// reference is dropped when none of the packets waits any more.
    pub fn begin_block(&mut self, bytes: Arc<Vec<u8>>) {
        self.driver.begin_block(bytes);
    }

    /// The block that was begun last.
    pub fn block(&self) -> &[u8] {
        self.driver.block()
    }

    /// All packets of the block were named.
    pub fn end_block(&mut self) {
        self.driver.end_block();
    }

    /// As [`send_packet`](Peer::send_packet), but the packet is not copied: it is the part `body`
    /// of the block that was begun last, with `front` (seven bytes at most) before it.
    ///
    /// # Errors
    /// The packet is lost, and counted.
    pub fn send_from_block(
        &mut self,
        key: &PacketKey,
        treatment: impl Into<PacketTreatment>,
        (front, body): (&[u8], Range<usize>),
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        let packet = PacketParts::InBlock { front, body };
        self.driver.send_packet(key, treatment.into(), packet, now)
    }

    /// Takes a packet that the near side sent, in a flow of its own or as an answer in one of the
    /// far side's, whatever its content is on a wire. It is copied. `treatment` counts
    /// when it opens its flow. Gives the number of the flow that it has opened, if it has;
    /// the end of that is told by `Closed` or `Reset`.
    ///
    /// # Errors
    /// The packet is lost, and counted.
    pub fn send_packet(
        &mut self,
        key: &PacketKey,
        treatment: impl Into<PacketTreatment>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        let packet = PacketParts::Alone(bytes);
        self.driver.send_packet(key, treatment.into(), packet, now)
    }

    /// The flow of packets that lives between these ends, whoever opened it.
    pub fn packet_flow(&self, key: &PacketKey) -> Option<FlowId> {
        self.driver.packet_flow(key)
    }

    /// Gives every packet that arrived to `each`, in the order of arrival. To be called after each
    /// input, when the events have been polled.
    pub fn take_packets(&mut self, each: impl FnMut(&Arrived<'_>)) {
        self.driver.take_packets(each);
        self.give_back();
    }

    /// A dictionary of the compression engine to be made. Until [`on_worked`](Peer::on_worked) has
    /// the result, all goes on without it.
    pub fn poll_work(&mut self) -> Option<Work> {
        self.driver.poll_work()
    }

    /// Work that `poll_work` gave is done.
    pub fn on_worked(&mut self, worked: Worked) {
        self.driver.on_worked(worked);
    }

    /// Ends the flow in both directions with a status. It is forgotten at once, no event follows;
    /// bytes that were read before still reach the far application if the status is one of the
    /// application's.
    pub fn reset(&mut self, flow: FlowId, status: Status, _now: Instant) {
        self.driver.reset(flow, status);
    }

    /// In-order bytes that wait to be written to the flow's application, at most 64 slices. None
    /// before `accept`, and none of a flow that is gone.
    pub fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>) {
        self.driver.deliverable(flow, slices);
    }

    /// `n` of them were written.
    pub fn delivered(&mut self, flow: FlowId, n: usize, now: Instant) {
        self.driver.delivered(flow, n, now);
        self.give_back();
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.driver.poll_event()
    }

    /// Resets all flows with `GoingAway` and says goodbye. Drain `poll_transmit` and `poll_event`
    /// afterwards.
    pub fn close(&mut self, now: Instant) {
        self.driver.close();
        self.refused = None;
        self.mover.close(now);
    }

    /// What this peer may hold from now on, all in all, as [`Peer::memory`] counts it; for its
    /// flows `Limits::peer_bytes` stays the upper bound. Whatever the peer does, it
    /// never holds more than a tenth above this, and some megabytes that every peer has.
    pub fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes;
        self.share_memory();
        self.driver.keep_inside_memory();
    }

    /// What this peer holds now: its flows, its queues, what compression knows, and its mover, as
    /// they are allocated. To be shared out between peers by `set_budget`.
    pub fn memory(&self) -> usize {
        self.driver.held() + self.beside_flows()
    }

    fn beside_flows(&self) -> usize {
        self.driver.held_by_compression() + self.driver.held_by_queues() + self.mover.memory()
    }

    /// What one part holds the others cannot. Flows get seven eighths as their budget: they may
    /// exceed it by a quarter before one that holds most is reset; the mover has a
    /// quarter for each direction, or half of what is left; compression a quarter.
    fn share_memory(&mut self) {
        let (total, beside) = (self.budget, self.beside_flows());
        self.driver.set_compression_limit(total / 4);
        self.driver
            .set_budget((total / 8 * 7).saturating_sub(beside).max(total / 4));
        let left = total.saturating_sub(self.driver.held() + beside - self.mover.memory());
        self.mover.set_memory(total.min(left.saturating_mul(2)));
    }

    /// How much of what its streams may cost is used: near the bounds, new ones are better not
    /// begun.
    pub fn usage(&self) -> Usage {
        self.driver.usage()
    }

    /// Calls a peer that is called on demand; `is_connected` and an event tell when it has
    /// answered.
    pub fn connect(&mut self, now: Instant) {
        self.mover.connect(now);
    }

    /// Ends the session of a peer that is called on demand, with a goodbye. Only while nothing is
    /// carried: flows would be reset.
    pub fn disconnect(&mut self) {
        self.mover.disconnect();
    }

    /// Whether no flow lives, of any kind.
    pub fn is_idle(&self) -> bool {
        self.driver.is_idle()
    }

    /// Whether a session stands, be the peer silent or not: flows can be opened.
    pub fn is_connected(&self) -> bool {
        self.driver.is_connected()
    }

    /// What is known of the path, for the next time.
    pub fn path(&self, now: Instant) -> Option<tpo_mover::RememberedPath> {
        self.mover.path_to_remember(now)
    }

    /// Where the peer is reached now.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.mover.remote()
    }

    /// Whether a session stands and the peer was heard recently.
    pub fn is_up(&self) -> bool {
        self.mover.is_up()
    }

    /// The flows that live, in no order.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> {
        self.driver.flows()
    }

    /// Flows of packets that are open.
    pub fn packet_flows(&self) -> usize {
        self.driver.packet_flow_count()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        Stats {
            mover: self.mover.stats(),
            flows: self.driver.flow_count(),
            packet_flows: self.driver.packet_flow_count(),
            ready_flows: self.driver.ready_count(),
            held_bytes: self.driver.held(),
            held_bytes_max: self.driver.held_max(),
            budget_bytes: self.driver.budget(),
            counters: *self.driver.counters(),
            compression: self.driver.compression_stats(),
            dictionaries: self.driver.dictionaries(),
        }
    }

    /// Asserts what must always be true. For tests; walks all flows.
    pub fn check_invariants(&self) {
        self.mover.check_invariants();
        self.driver.check_invariants();
    }

    // --- between driver and mover
    // ---------------------------------------------------------------------------------------------

    /// Packs and hands over while the mover can send at once and a flow has something to send.
    fn pack(&mut self, source: &mut dyn Source, now: Instant) {
        // In any case: what is due would be due again and again.
        self.driver.end_gathering(now);
        if let Some((payload, urgent)) = self.refused.take()
            && !self.send(payload, urgent, now)
        {
            return;
        }
        self.mover.set_stream_count(self.driver.stream_count(), now);
        while self.driver.has_work() {
            let budget = self.mover.poll_budget(now);
            let room = match budget {
                // What waits in the mover would be overtaken.
                0 if self.driver.has_urgent_work() && self.mover.takes_urgent(now) => {
                    self.one_segment()
                }
                0 => return,
                budget => self.room(budget.max(self.mover.preferred_payload())),
            };
            self.driver
                .set_link(self.mover.rate(), room.segment, room.urgent);
            let mut buffer = self.mover.take_buffer();
            let Some(packed) = self.driver.pack(source, &mut buffer, room, now) else {
                self.mover.return_buffer(buffer);
                return;
            };
            self.driver.compress(&mut buffer, packed, now);
            if !self.send(buffer, packed.urgent, now) {
                return;
            }
        }
    }

    /// Room for one datagram.
    fn one_segment(&self) -> Room {
        let room = self.room(1);
        Room {
            largest: room.segment,
            compressed: 0,
            ..room
        }
    }

    /// Whole segments: as many as fill `wanted`, at least one, no more than both sides take.
    fn room(&self, wanted: usize) -> Room {
        let most = self.buffer_size.min(self.max_payload);
        let segment = self.mover.segment_payload().min(most);
        let urgent = self.mover.urgent_payload().min(segment);
        let whole = |bytes: usize| {
            bytes
                .next_multiple_of(segment)
                .min(most / segment * segment)
        };
        let compressed = (self.mover.rate() as f64 * COMPRESSED_TIME.as_secs_f64()) as usize;
        Room {
            segment,
            urgent,
            largest: whole(wanted),
            compressed: compressed.max(wanted),
            max: most,
        }
    }

    fn send(&mut self, payload: Vec<u8>, urgent: bool, now: Instant) -> bool {
        match self.mover.send(payload, urgent, now) {
            Ok(()) => true,
            Err(payload) => {
                self.refused = Some((payload, urgent));
                false
            }
        }
    }

    /// Events first: after a restart, payloads are those of the new instance.
    fn take_from_mover(&mut self, now: Instant) {
        self.driver.set_rtt(self.mover.rtt());
        while let Some(event) = self.mover.poll_event() {
            self.on_mover_event(event, now);
        }
        self.left_over = None;
        while let Some(payload) = self.mover.poll_payload() {
            self.driver.unpack(payload, now);
            self.give_back();
            if !self.driver.takes_payloads() {
                self.left_over = Some(now);
                break;
            }
        }
        if self.driver.take_broken() {
            self.mover.give_up(now);
            while let Some(event) = self.mover.poll_event() {
                self.on_mover_event(event, now);
            }
        }
        self.give_back();
        self.share_memory();
    }

    /// Used payloads go back to where they are filled.
    fn give_back(&mut self) {
        while let Some(payload) = self.driver.poll_spent() {
            self.mover.recycle(payload);
        }
    }

    fn on_mover_event(&mut self, event: tpo_mover::Event, now: Instant) {
        match event {
            tpo_mover::Event::Connected {
                fresh,
                initial_credit,
                max_payload,
            } => {
                self.max_payload = max_payload;
                if fresh {
                    self.refused = None;
                }
                self.driver.on_connected(fresh, initial_credit);
            }
            tpo_mover::Event::Restarted => {
                self.refused = None;
                self.driver.on_restarted();
            }
            tpo_mover::Event::Silent => self.driver.on_silence(true, now),
            tpo_mover::Event::Heard => self.driver.on_silence(false, now),
            tpo_mover::Event::Dead(reason) => {
                self.refused = None;
                self.driver.on_dead(match reason {
                    Reason::Closed => Status::GoingAway,
                    Reason::Silence | Reason::Refused => Status::PeerRestarted,
                    Reason::Broken => Status::Protocol,
                });
            }
        }
    }
}
