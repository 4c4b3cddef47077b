//! What a datagram proves of its sender: only what is proved may be learnt from it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tpo_mover::{Config, Event, Identity, Mover, Origin, TransmitKind};

const MS: Duration = Duration::from_millis(1);

/// Two movers by hand: every datagram is taken by the test, which may forge others beside it.
struct Hands {
    movers: [Mover; 2],
    addresses: [SocketAddr; 2],
    now: Instant,
}

impl Hands {
    /// The first calls the second.
    fn new() -> Hands {
        // Some instant to count from; which one does not matter.
        #[allow(clippy::disallowed_methods)]
        let now = Instant::now();
        let identities = [0, 1].map(|_| Arc::new(Identity::generate()));
        let addresses = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 47_800)));
        let keys = [0, 1].map(|side: usize| identities[side].public_key());
        let mover = |side: usize| {
            let mut config = Config::new(
                identities[side].clone(),
                keys[1 - side],
                side as u16 + 5,
                [side as u8 + 1; 32],
            );
            config.endpoint = (side == 0).then_some(addresses[1]);
            Mover::new(config, now)
        };
        Hands {
            movers: [mover(0), mover(1)],
            addresses,
            now,
        }
    }

    /// Everything that this side has to send now, each with what it is.
    fn sent(&mut self, side: usize) -> Vec<(TransmitKind, Vec<u8>)> {
        let mut all = Vec::new();
        let mut out = Vec::new();
        while let Some(transmit) = self.movers[side].poll_transmit(&mut out, self.now) {
            all.extend(
                out.chunks(transmit.segment_size)
                    .map(|datagram| (transmit.kind, datagram.to_vec())),
            );
            out.clear();
        }
        all
    }

    fn hears(&mut self, side: usize, datagram: &[u8]) -> Origin {
        let from = self.addresses[1 - side];
        self.movers[side].handle_datagram(from, &mut datagram.to_vec(), self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for mover in &mut self.movers {
            mover.handle_timeout(self.now);
        }
    }
}

#[test]
fn a_datagram_says_no_more_than_it_proves() {
    let mut hands = Hands::new();
    let calls = hands.sent(0);
    assert!(!calls.is_empty() && calls.iter().all(|(what, _)| *what == TransmitKind::Call));
    assert_eq!(
        hands.movers[0].indices().count(),
        1,
        "of the attempt: what the answer will bear"
    );
    assert_eq!(hands.movers[1].indices().count(), 0);
    let mut attempt = None;
    for (_, call) in &calls {
        let mut damaged = call.clone();
        damaged[60] ^= 1;
        assert_eq!(hands.hears(1, &damaged), Origin::Stranger);
        assert_eq!(hands.hears(1, &call[..call.len() - 1]), Origin::Stranger);
        let Origin::Caller(number) = hands.hears(1, call) else {
            panic!("a call is heard as one")
        };
        assert!(attempt.is_none_or(|attempt| attempt == number));
        attempt = Some(number);
    }
    let waiting: Vec<u32> = hands.movers[1].indices().collect();
    assert_eq!(waiting.len(), 1);
    let answers = hands.sent(1);
    assert!(!answers.is_empty());
    let mut last = Origin::Unknown;
    for (what, answer) in &answers {
        assert_eq!(Some(*what), attempt.map(TransmitKind::Answer));
        let mut damaged = answer.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(hands.hears(0, &damaged), Origin::Stranger);
        last = hands.hears(0, answer);
    }
    assert_eq!(
        last,
        Origin::Peer,
        "only the whole answer proves that it is the peer"
    );
    assert!(matches!(
        hands.movers[0].poll_event(),
        Some(Event::Connected { .. })
    ));

    let mut proved = Vec::new();
    for (what, datagram) in hands.sent(0) {
        proved.push((what, hands.hears(1, &datagram)));
    }
    assert_eq!(
        proved.first(),
        Some(&(TransmitKind::Call, Origin::Peer)),
        "the last flight: {proved:?}"
    );
    assert!(
        hands.movers[1].indices().eq(waiting),
        "the attempt has become the session"
    );

    // A session datagram proves it once: a copy, a forgery, and one for another index prove
    // nothing.
    hands.pass(500 * MS);
    let spoken = hands.sent(1);
    assert!(
        spoken
            .iter()
            .any(|(what, _)| *what == TransmitKind::Session)
    );
    for (_, datagram) in spoken
        .iter()
        .filter(|(what, _)| *what == TransmitKind::Session)
    {
        let mut forged = datagram.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(hands.hears(0, &forged), Origin::Unknown);
        let mut elsewhere = datagram.clone();
        elsewhere[3] ^= 1;
        assert_eq!(hands.hears(0, &elsewhere), Origin::Unknown);
        assert_eq!(hands.hears(0, datagram), Origin::Peer);
        assert_eq!(hands.hears(0, datagram), Origin::Unknown, "a copy");
    }
    for noise in [
        &[][..],
        &[0x10; 1_200],
        &[0x20; 53],
        &[0x45; 40],
        &[0xff; 100],
    ] {
        assert!(matches!(
            hands.hears(0, noise),
            Origin::Unknown | Origin::Stranger
        ));
    }
}
