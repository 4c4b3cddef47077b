//! The names of network interfaces. Pure.

/// What Linux takes as the name of an interface, less what would mean something to nft.
pub(crate) fn is_interface_name(name: &str) -> bool {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '@' | '+');
    (1..16).contains(&name.len()) && name.chars().all(plain)
}
