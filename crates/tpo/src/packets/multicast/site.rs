//! The message in which TPOs of one LAN say from which sites they bring groups: an IGMP message of
//! a type for experiments (RFC 3228; docs/wire.md, section 5). Pure.

/// Type of the message.
pub(crate) const KIND: u8 = 0xf0;
/// Tells the message from those of other experiments.
const MAGIC: [u8; 4] = *b"tpo1";
/// Sites that one TPO may name, 128: a packet's worth.
const MOST_SITES: usize = 128;

/// A site by its name between two TPOs: the beginning of its public key.
pub(crate) type Site = [u8; 8];

/// The name of the site with this public key.
pub(crate) fn site(key: &[u8; 32]) -> Site {
    *key.first_chunk().expect("eight of thirty-two")
}

/// The message, without its IP header.
pub(super) fn body(sites: &[Site]) -> Vec<u8> {
    let mut body = vec![KIND, 0, 0, 0];
    body.extend(MAGIC);
    body.extend(sites.iter().take(MOST_SITES).flatten());
    body
}

/// Reads what stands behind the IP header.
pub(super) fn parse(body: &[u8]) -> Option<Vec<Site>> {
    let (head, sites) = body.split_first_chunk::<8>()?;
    let (sites, []) = sites.as_chunks::<8>() else {
        return None;
    };
    let is_ours =
        head[0] == KIND && head[1] == 0 && head[4..] == MAGIC && sites.len() <= MOST_SITES;
    is_ours.then(|| sites.to_vec())
}
