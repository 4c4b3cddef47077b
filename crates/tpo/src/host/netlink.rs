//! The grammar of netlink messages, as far as this room speaks it. Pure: bytes in, bytes out.

/// One netlink message: its own header, the fixed one of its subsystem, the attributes.
pub(crate) fn message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    header: &[u8],
    attributes: &[u8],
) {
    let length = (NLMSG_HEADER + header.len() + attributes.len()) as u32;
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(header);
    out.extend(attributes);
    debug_assert_eq!(out.len() % 4, 0, "attributes are padded");
}

/// One attribute, padded.
pub(crate) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// One attribute that is a text, with the zero at its end.
pub(crate) fn string(out: &mut Vec<u8>, kind: u16, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(out, kind, &bytes);
}

/// Takes the next message off: its type, sequence number and body.
pub(crate) fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
    let whole = rest.get(..length)?;
    let body = whole.get(NLMSG_HEADER..)?;
    let kind = u16::from_ne_bytes([whole[4], whole[5]]);
    let sequence = u32::from_ne_bytes([whole[8], whole[9], whole[10], whole[11]]);
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, sequence, body))
}

/// The value of the first attribute of that type.
pub(crate) fn find(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        if u16::from_ne_bytes([k0, k1]) & !NESTED == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// The type of a message about nftables.
pub(crate) fn nft(message: libc::c_int) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES << 8) | message) as u16
}

const NLMSG_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Says of an attribute that it holds others.
pub(crate) const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// Netfilter header (family, version 0, resource) of messages about family `inet`.
pub(crate) const INET: [u8; 4] = [libc::NFPROTO_INET as u8, 0, 0, 0];
/// The same about `ip`, and about `ip6`.
pub(crate) const IP: [u8; 4] = [libc::NFPROTO_IPV4 as u8, 0, 0, 0];
pub(crate) const IP6: [u8; 4] = [libc::NFPROTO_IPV6 as u8, 0, 0, 0];
