//! The sockets by which this host is a member of groups, so that switches send the groups here.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};
use tracing::debug;

use crate::sys;

/// The sockets by which this host is a member of groups on one LAN. The kernel lets each have some
/// only (`igmp_max_memberships`, usually 20).
#[derive(Default)]
pub(super) struct Memberships {
    sockets: Vec<Holder>,
    /// Which socket holds each group.
    of: HashMap<IpAddr, usize>,
    /// Sockets opened since the start.
    opened: u64,
}

/// One of them. Without groups it is closed, and its place is free.
struct Holder {
    socket: Option<Socket>,
    is_v4: bool,
    groups: usize,
    is_full: bool,
}

impl Memberships {
    /// Makes this host a member, so that switches send the group here.
    pub(super) fn join(&mut self, interface: &str, group: IpAddr) -> io::Result<()> {
        let index = sys::interface_index(interface)?;
        let fits = |holder: &Holder| {
            holder.is_v4 == group.is_ipv4() && !holder.is_full && holder.socket.is_some()
        };
        for (place, holder) in self
            .sockets
            .iter_mut()
            .enumerate()
            .filter(|(_, holder)| fits(holder))
        {
            let Some(socket) = &holder.socket else {
                continue;
            };
            match set_membership(socket, index, group, true) {
                Ok(()) => {
                    holder.groups += 1;
                    self.of.insert(group, place);
                    return Ok(());
                }
                // As many as this one may have: the next one. The kernel says so in one of these
                // ways.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) =>
                {
                    holder.is_full = true
                }
                Err(error) => return Err(error),
            }
        }
        let domain = if group.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        set_membership(&socket, index, group, true)?;
        self.opened += 1;
        let holder = Holder {
            socket: Some(socket),
            is_v4: group.is_ipv4(),
            groups: 1,
            is_full: false,
        };
        let place = self
            .sockets
            .iter()
            .position(|holder| holder.socket.is_none())
            .unwrap_or(self.sockets.len());
        if place == self.sockets.len() {
            self.sockets.push(holder);
        } else {
            self.sockets[place] = holder;
        }
        self.of.insert(group, place);
        Ok(())
    }

    /// It is none any more.
    pub(super) fn leave(&mut self, interface: &str, group: IpAddr) {
        let Some(place) = self.of.remove(&group) else {
            return;
        };
        let holder = &mut self.sockets[place];
        let index = sys::interface_index(interface).unwrap_or(0);
        if let Some(socket) = &holder.socket
            && let Err(error) = set_membership(socket, index, group, false)
        {
            // With the interface its memberships went.
            debug!(%error, %group, lan = interface, "a membership had ended already");
        }
        holder.groups -= 1;
        holder.is_full = false;
        if holder.groups == 0 {
            holder.socket = None;
        }
    }
}

/// A socket becomes a member on this interface, or ends that.
fn set_membership(socket: &Socket, index: u32, group: IpAddr, joins: bool) -> io::Result<()> {
    let at = InterfaceIndexOrAddress::Index(index);
    match (group, joins) {
        (IpAddr::V4(group), true) => socket.join_multicast_v4_n(&group, &at),
        (IpAddr::V4(group), false) => socket.leave_multicast_v4_n(&group, &at),
        (IpAddr::V6(group), true) => socket.join_multicast_v6(&group, index),
        (IpAddr::V6(group), false) => socket.leave_multicast_v6(&group, index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand groups take the sockets that the kernel needs for them, and a socket that is left
    /// by all is closed.
    #[test]
    fn memberships_share_sockets() {
        let mut memberships = Memberships::default();
        let groups: Vec<IpAddr> = (0..200_u32)
            .map(|number| (0xef09_0000 + number).to_be_bytes().into())
            .collect();
        for group in &groups {
            memberships.join("lo", *group).unwrap();
        }
        let sockets = memberships.sockets.len();
        assert!(
            sockets <= groups.len() / 10 && memberships.opened as usize == sockets,
            "{sockets} sockets"
        );
        // Half of them change again and again: what is left is used again.
        for _ in 0..5 {
            groups[..100]
                .iter()
                .for_each(|group| memberships.leave("lo", *group));
            groups[..100]
                .iter()
                .for_each(|group| memberships.join("lo", *group).unwrap());
        }
        assert!(
            memberships.opened as usize <= 7 * sockets && memberships.sockets.len() <= sockets + 1
        );
        groups
            .iter()
            .for_each(|group| memberships.leave("lo", *group));
        assert!(
            memberships.of.is_empty()
                && memberships
                    .sockets
                    .iter()
                    .all(|holder| holder.socket.is_none())
        );
    }
}
