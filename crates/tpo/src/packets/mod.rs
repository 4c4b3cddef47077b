//! Packets: all that is not TCP, on its walk between the TUN device and the engine of a lane.
//!
//! ```text
//!  out: LAN ─► kernel ─► TUN device                                                   copies
//!                          │ system call
//!    reader ───────────────┴─► blocks      a packet is read into a block of memory       0
//!      │ ip, fragments          (ip)       parsed where it lies
//!      │ directory, owners                 whose it is: a batch for each lane
//!      │ plain_way ─► kernel               what is nobody's
//!      ▼ a batch: a reference to the block, and the places of the packets in it
//!    edge (thread of the lane)
//!      │ flows, form                       a few bytes in front, and a part of the packet
//!      ▼ the reference to the block, no bytes
//!    engine: its flow of packets ─► buffer of messages                                   1
//!    mover:  payload ─► datagrams, encrypted in place ─► link                            2
//!
//!  in: link ─► datagrams, decrypted in place
//!    mover:  datagrams ─► payload                                                        1
//!    engine: the payload stays as it is until its packets are taken
//!      ▼ a place in the payload
//!    edge (thread of the lane)
//!      │ form                              is it of its flow?
//!      ├─► onward ─► another lane          what goes on to another peer                  2
//!      ├─► multicast ─► LANs               what is for a group                           2
//!      ▼
//!    emit: payloads in a row ─► one write ─► TUN device ─► kernel ─► LAN                 2
//! ```
//!
//! Who owns what:
//!
//! * A flow of packets has one owner, the `PacketFlow` in the engine of the lane that carries it:
//!   whether it lives, its addresses, its treatment, what waits in it, its order.
//! * `flows` has one entry for each of them, found by the engine's number: what only the edge
//!   knows. It ends with the engine's event that the flow is over.
//! * [`owners`] is the index over all lanes: key → peer. `flows` alone writes it, in the same
//!   turn.
//! * The reader's last answer of [`directory`] is forgotten at the end of each turn.
//! * The kernel's sets of answers are filled by what comes out of the TUN device. An entry lives as
//!   long as its flow in the engine may rest.
//! * A block of memory belongs to the reader (`blocks`); batches and engines refer to it. A payload
//!   belongs to the engine until its packets are taken, then to the mover.
//! * [`plain_way`] decides and counts what is given back to the kernel.

pub(crate) mod reader;

mod blocks;
mod fragments;

pub(crate) mod directory;
pub(crate) mod owners;
pub(crate) mod plain_way;

pub(crate) mod edge;
mod flows;
pub mod form;
mod onward;

mod checksum;
pub mod udp;

mod emit;

pub mod multicast;
