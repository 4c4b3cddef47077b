//! The link: how datagrams reach the WAN (stage 7 of the walk, claims 19, 20, 30). Takes batches
//! from the lane, gives received ones back.

pub(crate) mod udp;
