//! What becomes of a packet that a rule names: taken while a lease of its peers is there, else let
//! go or refused.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::writer::{Writer, bounded_chain, verdict_chain};
use crate::intercept::names::{counter, lease_set};
use crate::table::OnFailure;
use crate::table::layers::Verdict;
use crate::table::marks::MARK_DELIVER;

/// TCP resets per second by which connections are refused; beyond it they are refused in silence. A
/// peer that is down sees as many connections, and a flood from made-up sources is not turned upon
/// their owners.
const RESETS_PER_SECOND: u32 = 1_000;

/// One chain for each pair of peer and failure mode that a rule uses. Whoever returns from it
/// may be intercepted.
pub(super) fn verdict_chains(w: &mut Writer<'_>) -> fmt::Result {
    writeln!(
            w.text,
            "  chain refuse {{
    counter name {refused}
    meta l4proto tcp limit rate over {RESETS_PER_SECOND}/second burst {RESETS_PER_SECOND} packets drop
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }}",
            refused = counter::REFUSED
        )?;
    let all = std::iter::once(w.layers).chain(w.packets.iter().map(|(_, layers)| layers));
    let all = all
        .flat_map(|layers| [&layers.v4, &layers.v6])
        .flat_map(|f| f.layers.iter().flatten());
    let chains: BTreeSet<(Verdict, Option<usize>)> =
        all.map(|e| (e.verdict, w.counted_apart(e))).collect();
    for (verdict, rule) in chains {
        let own = match rule {
            Some(rule) => {
                let name = counter::of_rule(rule);
                writeln!(w.text, "  counter {name} {{\n  }}")?;
                format!("counter name {name} ")
            }
            None => String::new(),
        };
        let peers = &w.table.carriers[verdict.carriers].peers;
        assert!(
            peers.iter().all(|peer| peer.number() < w.table.peers),
            "a rule names {peers:?} of {}",
            w.table.peers
        );
        let bounded = bounded_chain(verdict.on_failure);
        let chain = verdict_chain(verdict, rule);
        let sets: Vec<String> = peers
            .iter()
            .map(|peer| format!("    meta l4proto @{} goto {bounded}", lease_set(*peer)))
            .collect();
        let sets = sets.join("\n");
        match verdict.on_failure {
            OnFailure::Open => writeln!(
                w.text,
                "  chain {chain} {{
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} return
{sets}
    {own}counter name {no_lease} accept
  }}",
                no_lease = counter::NO_LEASE
            )?,
            OnFailure::Closed => writeln!(
                w.text,
                "  chain {chain} {{
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} goto refuse
{sets}
    goto refuse
  }}"
            )?,
        }
    }
    Ok(())
}
