//! The bits of the packet mark that are ours.
//!
//! Interception sets and tests them in the kernel's rules; sockets of ours set [`MARK_OWN`].

/// The bits of the packet mark (and of the conntrack mark) that say, all together, "deliver to this
/// host". Ours in both directions: nobody else on the host may use a mark that has all of them. All
/// other bits are left as they are.
///
/// Several bits, and high ones, because single low ones are everybody's (several uplinks, proxies,
/// VPNs): a foreign mark has all of these only if it is made of many bits too, and `tpo check`
/// tells when a routing rule does. The mark shares no bit with [`MARK_OWN`], so that clearing one
/// leaves the other.
pub(crate) const MARK_DELIVER: u32 = 0x0478_0000;

/// The bits of the packet mark on everything that the daemon's own sockets send (`SO_MARK`), so
/// that it can never intercept itself. In the conntrack mark the same bits mark our connections to
/// servers on this very host.
pub const MARK_OWN: u32 = 0x0807_0000;

/// The bits of the packet mark that say, all together, "to the TUN device". They share none
/// with the other two marks.
pub(crate) const MARK_PACKETS: u32 = 0x7080_0000;
