//! Packets: all that is not TCP, on its walk from the TUN device to the WAN and back.

mod checksum;
pub mod edge;
pub mod form;
pub mod multicast;
pub mod plain_way;
pub mod reader;
pub mod udp;
