//! The far edge of multicast: what a peer brings for a group goes out on the LANs that listen to
//! it, from its original source (claim 39).
//!
//! The kernel forwards no multicast without a routing daemon, so these packets do not go by the TUN
//! device: raw sockets speak on each LAN. Applications of this host hear them too; by our mark they
//! are not taken a second time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tpo_engine::PacketKey;
use tracing::debug;

use crate::ip::{self, Refused};
use crate::packets::form;
use crate::packets::multicast::groups::Joined;
use crate::packets::udp;
use crate::sys;
use crate::table::marks::MARK_OWN;
use crate::table::peers::PeerId;

/// The sockets of one LAN.
#[derive(Debug)]
pub(crate) struct Lan {
    name: String,
    v4: Socket,
    v6: Option<Socket>,
}

impl Lan {
    /// Opens raw sockets that speak on this interface.
    pub(crate) fn open(name: &str) -> io::Result<Lan> {
        let index = sys::interface_index(name)?;
        let raw = |domain| {
            let socket = Socket::new(
                domain,
                Type::RAW.nonblocking(),
                Some(Protocol::from(libc::IPPROTO_RAW)),
            )?;
            socket.set_mark(MARK_OWN)?;
            io::Result::Ok(socket)
        };
        let v4 = raw(Domain::IPV4)?;
        sys::set_multicast_interface_v4(&v4, index)?;
        let v6 = raw(Domain::IPV6)
            .and_then(|socket| socket.set_multicast_if_v6(index).map(|()| socket))
            .ok();
        Ok(Lan {
            name: name.to_owned(),
            v4,
            v6,
        })
    }

    /// Sends a whole packet to its group.
    pub(crate) fn send(&self, packet: &[u8], group: IpAddr) -> io::Result<()> {
        let socket = match group {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        socket
            .send_to(packet, &SocketAddr::new(group, 0).into())
            .map(drop)
    }

    fn mtu(&self) -> usize {
        sys::interface_mtu(&self.v4, &self.name).unwrap_or(1_280)
    }
}

/// What one lane's peer brings.
pub(crate) struct Emitter {
    peer: PeerId,
    lans: Arc<[Lan]>,
    joined: Arc<Joined>,
    packet: Vec<u8>,
    number: u32,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Emitted {
    /// Copies that went out.
    pub(crate) sent: u64,
    /// That the kernel did not take, or whose hop limit was used up.
    pub(crate) not_sent: u64,
    /// Of another flow than they said.
    pub(crate) foreign: u64,
    /// ICMP that stays in its network.
    pub(crate) icmp: u64,
}

impl Emitter {
    /// For what this peer brings to these LANs, as the groups are listened to there.
    pub(crate) fn new(peer: PeerId, lans: Arc<[Lan]>, joined: Arc<Joined>) -> Emitter {
        Emitter {
            peer,
            lans,
            joined,
            packet: Vec::new(),
            number: 0,
        }
    }

    /// The peer that brings it.
    pub(super) fn peer(&self) -> PeerId {
        self.peer
    }

    /// LANs to which another TPO brings what this peer sends.
    pub(crate) fn lans_left(&self) -> Vec<String> {
        let left = self.joined.left(self.peer);
        left.into_iter()
            .filter_map(|lan| self.lans.get(lan))
            .map(|lan| lan.name.clone())
            .collect()
    }

    /// Sends a datagram of the flow `key` to every LAN that listens to its group. Each TPO is a
    /// hop.
    pub(crate) fn emit(&mut self, key: &PacketKey, bytes: &[u8]) -> Emitted {
        let Emitter {
            peer,
            lans,
            joined,
            packet,
            number,
        } = self;
        let mut emitted = Emitted::default();
        *number = number.wrapping_add(1);
        packet.clear();
        match form::unpack(bytes, key, *number as u16, packet) {
            Ok(None) => {}
            // An error is about one host's packet, and goes to none of many.
            Ok(Some(_)) | Err(Refused::Foreign) => {
                emitted.foreign += 1;
                return emitted;
            }
            Err(Refused::Icmp) => {
                emitted.icmp += 1;
                return emitted;
            }
        }
        if !ip::take_hop(packet) {
            emitted.not_sent += 1;
            return emitted;
        }
        let group = key.destination.ip();
        let may_be_cut = form::as_udp(bytes).is_some();
        joined.each(group, *peer, |lan| {
            let lan = &lans[lan];
            let outcome = match lan.send(packet, group) {
                Err(error) if may_be_cut && error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    let mut outcome = Ok(());
                    udp::fragment(packet, lan.mtu(), *number, |piece| {
                        outcome = std::mem::replace(&mut outcome, Ok(()))
                            .and_then(|()| lan.send(piece, group));
                    });
                    outcome
                }
                other => other,
            };
            match outcome {
                Ok(()) => emitted.sent += 1,
                Err(error) => {
                    emitted.not_sent += 1;
                    debug!(%error, lan = lan.name, "a packet for a group does not go out");
                }
            }
        });
        emitted
    }
}
