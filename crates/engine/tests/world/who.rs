//! Who the two sites of a world are: their numbers, addresses and keys, and what a peer is told at
//! its start.

use std::{net::SocketAddr, sync::Arc};

use tpo_engine::{Config, Limits};
use tpo_mover::Identity;

pub const A: usize = 0;
pub const B: usize = 1;

/// `calls`: it knows where the other side is.
pub fn config(side: usize, seed: u64, limits: Limits, calls: bool) -> Config {
    let mut words = [0; 32];
    words[..8].copy_from_slice(&seed.to_le_bytes());
    words[8] = side as u8;
    let mut mover = tpo_mover::Config::new(
        Arc::new(identity(side)),
        identity(1 - side).public_key(),
        side as u16,
        words,
    );
    mover.endpoint = calls.then(|| address(1 - side));
    Config {
        limits,
        ..Config::new(mover)
    }
}

pub fn address(side: usize) -> SocketAddr {
    format!("192.0.2.{}:47800", side + 1)
        .parse()
        .expect("an address")
}

fn identity(side: usize) -> Identity {
    // Any 32 bytes are a private key; in base64 these are 43 letters and the padding.
    let letter = if side == A { 'A' } else { 'Q' };
    let text: String = std::iter::repeat_n(letter, 42).collect();
    Identity::from_private_text(&format!("{text}A=")).expect("32 bytes in base64")
}
