//! The bounds of SYNs, before `tproxy`: sets that count them by source, and chains of which one
//! returns for a SYN within the bounds.

use std::fmt::{self, Write};

use super::writer::bounded_chain;
use crate::intercept::names::{MOST_KNOWN, Standing, counter};
use crate::table::OnFailure;
use crate::table::bounds::Bounds;

/// A source that has completed no handshake may send a sixth of what a known one may: it is known
/// within 50 ms of its first one.
const NEW_SHARE: u32 = 6;

/// Of the SYNs of all sources, those that have completed no handshake may send a quarter.
const NEW_SHARE_OF_ALL: u32 = 4;

/// Sources whose SYNs are counted apart, for each family and kind: 131,072. A flood from more
/// sources within [`SYN_MEMORY`] is beyond the bounds.
const MOST_SOURCES: usize = 131_072;

/// How long the count of a source's SYNs is kept after its last one: 3 s, in which every bound has
/// been renewed.
const SYN_MEMORY: &str = "3s";

/// The part of an IPv6 address that its host cannot choose.
const V6_SITE: &str = "ffff:ffff:ffff:ffff::";

/// An address family: how its sources are looked up and counted.
struct SourceFamily {
    /// In the names of sets.
    name: &'static str,
    /// The type of their elements.
    kind: &'static str,
    /// The whole source address.
    source: &'static str,
    /// What of it is counted of sources that may be made up.
    counted: String,
}

/// SYNs per second of each kind of source.
struct Rates {
    /// Of one source that has completed a handshake.
    known: u32,
    /// Of one that completes many, and of all known ones of a /64 of IPv6.
    busy: u32,
    /// Of one that has completed none.
    new: u32,
    /// Of all that have completed a handshake.
    all_known: u32,
    /// Of all that have completed none.
    all_new: u32,
}

impl Rates {
    fn of(bounds: &Bounds) -> Rates {
        let known = bounds.syns_per_source;
        let all_new = (bounds.syns / NEW_SHARE_OF_ALL).max(1);
        let all_known = (bounds.syns - all_new).max(1);
        Rates {
            known,
            // The last quarter is for the others.
            busy: known.max(all_known - all_known / 4),
            new: (known / NEW_SHARE).max(1),
            all_known,
            all_new,
        }
    }

    fn of_standing(&self, standing: Standing) -> u32 {
        match standing {
            Standing::Known => self.known,
            Standing::Busy => self.busy,
        }
    }
}

/// Writes what may be intercepted at most, and a chain for each failure mode. Whoever returns from
/// it is within the bounds.
pub(super) fn bounds(text: &mut String, bounds: &Bounds) -> fmt::Result {
    let rates = Rates::of(bounds);
    let families = [
        SourceFamily {
            name: "v4",
            kind: "ipv4_addr",
            source: "ip saddr",
            counted: "ip saddr".to_owned(),
        },
        SourceFamily {
            name: "v6",
            kind: "ipv6_addr",
            source: "ip6 saddr",
            counted: format!("ip6 saddr & {V6_SITE}"),
        },
    ];
    sets(text, &rates, &families)?;
    for (mode, over) in [
        (
            OnFailure::Open,
            format!("counter name {} accept", counter::FLOOD),
        ),
        (
            OnFailure::Closed,
            format!("counter name {} drop", counter::FLOOD_DROPPED),
        ),
    ] {
        let chain = bounded_chain(mode);
        writeln!(text, "  chain {chain}_over {{\n    {over}\n  }}")?;
        for standing in Standing::ALL {
            standing_chain(text, chain, standing, &rates, &families)?;
        }
        bounded(text, chain, &rates, &families)?;
    }
    Ok(())
}

/// The limits of all sources together, and the sets that count single ones.
fn sets(text: &mut String, rates: &Rates, families: &[SourceFamily]) -> fmt::Result {
    for (which, rate) in [("known", rates.all_known), ("new", rates.all_new)] {
        writeln!(
            text,
            "  limit syns_{which} {{\n    rate over {rate}/second burst {rate} packets\n  }}"
        )?;
    }
    writeln!(
        text,
        "  set syns_site {{
    type ipv6_addr; flags dynamic,timeout; timeout {SYN_MEMORY}; size {MOST_SOURCES};
  }}"
    )?;
    for SourceFamily { name, kind, .. } in families {
        writeln!(
            text,
            "  set syns_new_{name} {{
    type {kind}; flags dynamic,timeout; timeout {SYN_MEMORY}; size {MOST_SOURCES};
  }}"
        )?;
        for standing in Standing::ALL {
            writeln!(
                text,
                "  set {set} {{
    type {kind}; flags timeout; size {MOST_KNOWN};
  }}
  set syns_{set} {{
    type {kind}; flags dynamic,timeout; timeout {SYN_MEMORY}; size {MOST_SOURCES};
  }}",
                set = standing.set(*name == "v6")
            )?;
        }
    }
    Ok(())
}

/// The bounds of sources that have completed handshakes.
fn standing_chain(
    text: &mut String,
    chain: &str,
    standing: Standing,
    rates: &Rates,
    families: &[SourceFamily],
) -> fmt::Result {
    let (standing, rate, busy) = (standing.name(), rates.of_standing(standing), rates.busy);
    writeln!(text, "  chain {chain}_{standing} {{")?;
    for SourceFamily { name, source, .. } in families {
        writeln!(
            text,
            "    update @syns_{standing}_{name} {{ {source} limit rate over {rate}/second burst {rate} packets }} goto {chain}_over"
        )?;
    }
    // A host of IPv6 may make as many of its addresses known as it likes: together they are no
    // more than one busy source.
    writeln!(
        text,
        "    update @syns_site {{ ip6 saddr & {V6_SITE} limit rate over {busy}/second burst {busy} packets }} goto {chain}_over
    limit name \"syns_known\" goto {chain}_over\n  }}"
    )
}

/// The chain of a failure mode: sends known sources to theirs, and bounds the others.
fn bounded(
    text: &mut String,
    chain: &str,
    rates: &Rates,
    families: &[SourceFamily],
) -> fmt::Result {
    // What this host's applications begin is finished by its own kernel: it stays half-open for no
    // time. It leaves by an interface (the output hooks) or has come from `lo`. Its addresses would
    // not say so: anybody in a LAN may bear them as a source.
    writeln!(
        text,
        "  chain {chain} {{
    meta l4proto != tcp return
    meta oif != 0 return
    iifname \"lo\" return"
    )?;
    for standing in Standing::ALL {
        for SourceFamily { name, source, .. } in families {
            let set = standing.set(*name == "v6");
            writeln!(text, "    {source} @{set} goto {chain}_{}", standing.name())?;
        }
    }
    // A browser or a load tester opens many at once.
    let (new, burst) = (rates.new, 2 * rates.new);
    for SourceFamily { name, counted, .. } in families {
        writeln!(
            text,
            "    update @syns_new_{name} {{ {counted} limit rate over {new}/second burst {burst} packets }} goto {chain}_over
    {counted} != @syns_new_{name} goto {chain}_over"
        )?;
    }
    writeln!(text, "    limit name \"syns_new\" goto {chain}_over\n  }}")
}
