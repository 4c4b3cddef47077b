//! What the mover is told at its making: who we are, who the peer is, what the link carries, and
//! every bound.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::{Identity, PreSharedKey, PublicKey};

/// How the sending rate is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Congestion {
    /// From a model of the path: its measured delivery rate and shortest round trip. Random loss
    /// does not slow it.
    #[default]
    Auto,
    /// `Config::rate`, whatever the path does, with a safety brake. Without a `rate` it is `Auto`.
    Fixed,
    /// As TCP does (RFC 9438): any loss slows it. For links shared with TCP that must not suffer.
    Cubic,
    /// Takes what others leave: withdraws from any queue beyond 60 ms.
    Scavenger,
}

/// What is remembered of a path (draft-ietf-tsvwg-careful-resume).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RememberedPath {
    /// Bytes per second on the wire that it carried.
    pub bandwidth: u64,
    /// Its shortest round trip.
    pub round_trip: Duration,
    /// How long ago that was.
    pub age: Duration,
}

impl RememberedPath {
    /// Older memories are of another day's path.
    pub const LONGEST_AGE: Duration = Duration::from_secs(24 * 3_600);

    /// Is a path with this shortest round trip probably the same one?
    pub(crate) fn is_like(&self, round_trip: Duration) -> bool {
        self.age <= RememberedPath::LONGEST_AGE
            && round_trip >= self.round_trip.mul_f64(0.9)
            && round_trip <= self.round_trip.mul_f64(1.5)
    }
}

/// Everything that a mover must know. Times and sizes without a comment here are explained in
/// `docs/wire.md`.
#[derive(Clone)]
pub struct Config {
    /// Our key pair.
    pub identity: Arc<Identity>,
    /// The one peer that we speak to.
    pub peer_key: PublicKey,
    /// A secret that both sides were given beside their keys; without it nothing comes up where the
    /// peer has one.
    pub pre_shared: Option<Arc<PreSharedKey>>,
    /// The upper 12 bits of all our session indices: which lane of the shared socket a datagram
    /// belongs to.
    pub slot: u16,
    /// All our randomness comes from it: instance number, indices, jitter. Must differ at every
    /// start of the program.
    pub seed: [u8; 32],
    /// Where to start the handshake; `None`: the peer calls us.
    pub endpoint: Option<SocketAddr>,
    /// Call the peer only when [`Mover::connect`](crate::Mover::connect) asks for it.
    pub on_demand: bool,
    /// Largest datagram in bytes of UDP payload; `None`: found from the path.
    pub segment: Option<u16>,
    /// Largest payload accepted by `send`, in bytes; at least 1,200 and at most
    /// [`Limits::MAX_PAYLOAD`].
    pub max_payload: usize,
    /// Told to the peer in the handshake, for the engine: the initial credit of a flow in bytes.
    pub initial_credit: u32,
    /// Bytes per second on the wire (IP headers included) that the link carries: never exceeded,
    /// and where `Auto` starts.
    pub rate: Option<u64>,
    /// How the sending rate is found.
    pub congestion: Congestion,
    /// `Auto` takes loss up to this share of the datagrams for the path's own, which says nothing
    /// about congestion; from 0 to 0.25.
    pub loss_tolerance: f64,
    /// What was known of the path before, if anything: where `Auto` begins if the path is still the
    /// same.
    pub remembered_path: Option<RememberedPath>,
    /// A ping leaves when nothing was sent for this time.
    pub keepalive: Duration,
    /// Silence of the peer after which the mover counts as not up. Flows live on.
    pub silent_after: Duration,
    /// Silence of the peer after which all flows are given up.
    pub dead_after: Duration,
    /// Every other bound.
    pub limits: Limits,
}

impl Config {
    /// A configuration with the defaults for everything that has one.
    pub fn new(identity: Arc<Identity>, peer_key: PublicKey, slot: u16, seed: [u8; 32]) -> Config {
        Config {
            identity,
            peer_key,
            pre_shared: None,
            slot,
            seed,
            endpoint: None,
            on_demand: false,
            segment: None,
            max_payload: 64 * 1024,
            initial_credit: 256 * 1024,
            rate: None,
            congestion: Congestion::Auto,
            loss_tolerance: 0.05,
            remembered_path: None,
            keepalive: Duration::from_millis(400),
            silent_after: Duration::from_secs(2),
            dead_after: Duration::from_secs(300),
            limits: Limits::default(),
        }
    }
}

/// Every bound of the mover's memory and patience, each with its reason.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Physical numbers between the oldest datagram whose fate is open and the newest. Must stay
    /// well below the receiver's replay window of 1,048,576, else an old datagram could arrive and
    /// be refused although nobody counted it as lost.
    pub flight_span: u64,
    /// Payloads between the oldest not wholly acknowledged and the newest. Both sides use the same
    /// number: what the receiver sees beyond it is refused. As many payloads of one datagram each
    /// as the flight can hold.
    pub logical_window: u64,
    /// Bytes of payloads that are kept until acknowledged. `send` refuses more: twice the
    /// bandwidth-delay product of 1 Gbit/s at 600 ms and some.
    pub send_bytes: usize,
    /// Bytes of received payloads that are not whole yet, or not yet fetched. A segment that would
    /// open another one beyond this is dropped unacknowledged. The same product as above.
    pub reassembly_bytes: usize,
    /// Buffers of acknowledged payloads that are kept to be filled again: as many as two round
    /// trips of 1 ms need at 7 Gbit/s.
    pub spare_buffers: usize,
    /// Events that wait to be fetched. The lane fetches after every input; more than this is our
    /// own mistake.
    pub events: usize,
    /// Silence after which a fresh handshake runs beside the old session: just after the peer
    /// counts as silent. A peer that started anew and does not know where to call us is found by
    /// this alone, so it may not take long; a handshake costs little.
    pub handshake_after: Duration,
    /// Age of the keys at which the side with the lower public key makes new ones by another
    /// handshake, beside the traffic. The other side does so when they are a tenth older, if they
    /// still are the same then. So no keys serve for more than an hour, unless the path loses every
    /// handshake.
    pub rekey_after: Duration,
    /// A hidden hook of the worlds: the first physical number, to see the low 32 bits wrap.
    #[doc(hidden)]
    pub first_physical: Option<u64>,
    /// A hidden hook of the worlds: the first logical number.
    #[doc(hidden)]
    pub first_logical: u64,
}

impl Limits {
    /// Largest payload that the wire's 3-byte sizes and our memory bounds are made for.
    pub const MAX_PAYLOAD: usize = 256 * 1024;
    /// What each direction may hold at least, however little `set_memory` allows: 16 of the largest
    /// payloads.
    pub const LEAST_MEMORY: usize = 4 << 20;
    /// Datagrams of one batch: what the kernel's UDP segmentation takes.
    pub const BATCH_DATAGRAMS: usize = 64;
    /// Bytes of one batch: a UDP super-packet is at most 65,507 bytes, less some room for options.
    pub const BATCH_BYTES: usize = 64_000;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            flight_span: 1_000_000,
            logical_window: 1 << 20,
            send_bytes: 256 << 20,
            reassembly_bytes: 256 << 20,
            spare_buffers: 64,
            events: 64,
            handshake_after: Duration::from_millis(2_500),
            rekey_after: Duration::from_secs(50 * 60),
            first_physical: None,
            first_logical: 0,
        }
    }
}
