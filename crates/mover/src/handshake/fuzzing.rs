//! The door for fuzz targets: a pair of machines that connect while the input decides what arrives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::machine::Handshake;
use super::wire;
use crate::identity::Identity;

/// Lets two machines connect while `bytes` say what happens to them: each step is a kind, a length
/// of one byte, and as many bytes. Kinds: bytes arrive as they are; arrive as a fragment with name
/// and HMAC made right; a true datagram arrives, or changed, or changed and its HMAC made right;
/// time passes. Whatever happens, nothing panics, and what is established is established with the
/// true peer.
#[doc(hidden)]
pub fn fuzz_handshake(bytes: &[u8], mut now: Instant) {
    let identities =
        [[1; 32], [2; 32]].map(|seed| Arc::new(Identity::from_seed(Zeroizing::new(seed))));
    let keys = [identities[0].public_key(), identities[1].public_key()];
    let addresses = [
        SocketAddr::from(([192, 0, 2, 1], 1)),
        SocketAddr::from(([192, 0, 2, 2], 2)),
    ];
    let mut machines = [0, 1].map(|i| {
        Handshake::new(
            identities[i].clone(),
            keys[1 - i],
            None,
            i as u16,
            [i as u8; 32],
        )
    });
    for (i, machine) in machines.iter_mut().enumerate() {
        machine.set_params(vec![i as u8]);
    }
    let mut input = bytes.iter().copied();
    if input.next().unwrap_or(0) & 1 == 0 {
        machines[1].start(addresses[0], now);
    }
    machines[0].start(addresses[1], now);

    while let (Some(kind), Some(length)) = (input.next(), input.next()) {
        let to = usize::from(kind & 1);
        let text: Vec<u8> = input.by_ref().take(length.into()).collect();
        let mut datagram = Vec::new();
        if kind >> 1 & 7 < 4 {
            machines[1 - to].poll_transmit(&mut datagram, now);
        }
        match kind >> 1 & 7 {
            0 => {}
            1 => damage(&mut datagram, &text),
            2 | 3 => {
                damage(&mut datagram, &text);
                sign(&machines[1 - to], &mut datagram);
            }
            4 => datagram = text,
            5 | 6 => {
                datagram = text;
                datagram.resize(wire::DATAGRAM, 0);
                sign(&machines[1 - to], &mut datagram);
            }
            _ => now += Duration::from_millis(10) * u32::from(length),
        }
        let from = addresses[usize::from(kind >> 4 & 1)];
        let _ = machines[to].handle_datagram(from, &datagram, now);
        for (i, machine) in machines.iter_mut().enumerate() {
            machine.handle_timeout(now);
            if let Some(established) = machine.poll_established() {
                assert_eq!(
                    established.peer_params,
                    [1 - i as u8],
                    "the true peer's record"
                );
            }
        }
    }
}

/// Pairs of a position and what is changed there.
fn damage(datagram: &mut [u8], text: &[u8]) {
    for change in text.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % wire::DATAGRAM;
        if let Some(byte) = datagram.get_mut(at) {
            *byte ^= change[2];
        }
    }
}

/// What only a thief of one of the private keys can do: for others there is nothing to find behind
/// the HMAC.
fn sign(sender: &Handshake, datagram: &mut Vec<u8>) {
    datagram.truncate(datagram.len().saturating_sub(wire::MAC));
    sender.pair.emit_name(datagram);
    sender.pair.emit_mac(0, datagram);
}
