//! Until the crates below have these types.
#![allow(missing_docs)]
use std::net::*;
use std::ops::RangeInclusive;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}
impl Prefix {
    pub const ANY: Prefix = Prefix { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 255 };
}
#[derive(Debug, Clone)]
pub struct Rule {
    pub protocol: u8,
    pub source: Prefix,
    pub source_ports: RangeInclusive<u16>,
    pub destination: Prefix,
    pub destination_ports: RangeInclusive<u16>,
    pub peer: usize,
    pub class: Class,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Control,
    Interactive,
    Normal,
    Bulk,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    Auto,
    Fixed,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);
impl PublicKey {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
impl std::str::FromStr for PublicKey {
    type Err = ();
    fn from_str(s: &str) -> Result<PublicKey, ()> {
        if s.len() != 44 {
            return Err(());
        }
        let mut k = [0; 32];
        k.copy_from_slice(&s.as_bytes()[..32]);
        Ok(PublicKey(k))
    }
}
impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
pub struct Identity;
impl Identity {
    pub fn public_key(&self) -> PublicKey {
        PublicKey([0; 32])
    }
    pub fn generate() -> Identity {
        Identity
    }
    pub fn private_text(&self) -> String {
        String::new()
    }
    pub fn from_private_text(_: &str) -> Result<Identity, std::fmt::Error> {
        Ok(Identity)
    }
}
