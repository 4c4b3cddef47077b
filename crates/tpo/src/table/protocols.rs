//! IANA's numbers of the protocols that are named here by name.

/// ICMP of IPv4. Inside a [`PacketKey`](tpo_engine::PacketKey) also ICMP of IPv6: the addresses
/// tell the family.
pub(crate) const ICMP: u8 = 1;
/// TCP: the only protocol that is carried as a stream. All others are carried as packets.
pub(crate) const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub(crate) const ICMP_V6: u8 = 58;
