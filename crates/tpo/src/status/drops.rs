//! What was received and had no effect, by kind: the words for the counters of mover and engine.
//!
//! Each struct of counters is taken apart field by field, so that a kind that gets no word here
//! does not compile. `tpo status` shows the kinds that came up; a lane notes in its log what is new
//! ([`DropLog`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A kind, and how often it came up.
pub(crate) type Counted = (&'static str, u64);

/// Handshakes, datagrams and parts of datagrams, as the mover counts them.
pub(crate) fn of_mover(counters: &tpo_mover::Counters) -> Vec<Counted> {
    let mut all = of_sessions(&counters.drops);
    all.extend(of_handshakes(&counters.handshake.drops));
    all
}

fn of_sessions(drops: &tpo_mover::Drops) -> Vec<Counted> {
    let tpo_mover::Drops {
        foreign,
        unknown_session,
        replayed,
        too_old,
        forged,
        wrong_phase,
        worn_session,
        segments_refused,
        breaches,
    } = drops;
    let tpo_mover::Breaches {
        subfields_cut_off,
        subfields_wrong_length,
        subfields_unknown_type,
        data_of_other_datagram,
        segments_outside_payload,
        segments_contradictory,
        acks_cut_off,
        acks_of_unsent,
        parity_malformed,
        parity_contradictory,
        records_malformed,
    } = breaches;
    vec![
        ("foreign", *foreign),
        ("unknown session", *unknown_session),
        ("replayed", *replayed),
        ("too old", *too_old),
        ("forged", *forged),
        ("wrong key phase", *wrong_phase),
        ("worn session", *worn_session),
        ("segments refused", *segments_refused),
        ("subfields cut off", *subfields_cut_off),
        ("subfields of wrong length", *subfields_wrong_length),
        ("subfields of unknown type", *subfields_unknown_type),
        ("data of another datagram", *data_of_other_datagram),
        ("segments outside payload", *segments_outside_payload),
        ("segments contradictory", *segments_contradictory),
        ("acks cut off", *acks_cut_off),
        ("acks of unsent", *acks_of_unsent),
        ("parity malformed", *parity_malformed),
        ("parity contradictory", *parity_contradictory),
        ("records malformed", *records_malformed),
    ]
}

fn of_handshakes(drops: &tpo_mover::HandshakeDrops) -> Vec<Counted> {
    let tpo_mover::HandshakeDrops {
        strangers,
        unproved,
        no_form,
        other_version,
        fragments_malformed,
        no_attempt,
        attempt_over,
        yielding,
        contradictory,
        limited,
        forged,
        refused,
    } = drops;
    vec![
        ("handshake strangers", *strangers),
        ("handshake unproved", *unproved),
        ("handshake without form", *no_form),
        ("handshake of other version", *other_version),
        ("handshake fragments malformed", *fragments_malformed),
        ("handshake without attempt", *no_attempt),
        ("handshake of ended attempt", *attempt_over),
        ("handshake yielding to ours", *yielding),
        ("handshake contradictory", *contradictory),
        ("handshake limited", *limited),
        ("handshake forged", *forged),
        ("handshake refused", *refused),
    ]
}

/// Payloads that the peer made wrong, and messages that broke the rules of their flow, as the
/// engine counts them.
pub(crate) fn of_engine(counters: &tpo_engine::Counters) -> Vec<Counted> {
    let tpo_engine::Malformed {
        truncated,
        left_over,
        routing,
        version,
        header_length,
        function,
        form,
        class,
        protocol,
        address,
        compressed_size,
        dictionary,
        compressed,
    } = counters.malformed;
    let tpo_engine::Breaches {
        overlap,
        beyond_credit,
        beyond_end,
        other_key,
        other_kind,
    } = counters.breaches;
    vec![
        ("payloads cut off", truncated),
        ("payloads with bytes left over", left_over),
        ("payloads of unknown routing", routing),
        ("payloads of unknown version", version),
        ("messages of wrong header length", header_length),
        ("messages of unknown function", function),
        ("messages of wrong form", form),
        ("messages of unknown class", class),
        ("flows of a wrong protocol", protocol),
        ("addresses in a wrong form", address),
        ("compressed payloads of wrong size", compressed_size),
        ("compressed payloads of unknown dictionary", dictionary),
        ("compressed payloads broken", compressed),
        ("stream data twice", overlap),
        ("stream data beyond credit", beyond_credit),
        ("stream data beyond end", beyond_end),
        ("messages with other addresses", other_key),
        ("messages of the other kind of flow", other_kind),
        ("messages late", counters.late),
        ("dictionaries too many", counters.answers_dropped),
    ]
}

/// Finds what came up since the last look, for a line in the log.
#[derive(Debug)]
pub(crate) struct DropLog {
    next: Instant,
    seen: BTreeMap<&'static str, u64>,
}

impl DropLog {
    /// Time between two looks, and so between two lines: 10 s, so that nonsense does not fill the
    /// log.
    pub(crate) const EVERY: Duration = Duration::from_secs(10);

    /// Nothing was seen yet.
    pub(crate) fn new(now: Instant) -> DropLog {
        DropLog {
            next: now + DropLog::EVERY,
            seen: BTreeMap::new(),
        }
    }

    /// Whether a look is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Looks at all counts: the kinds that came up since the last look, as "3 forged, 1 too old";
    /// `None` when none did.
    pub(crate) fn look(
        &mut self,
        all: impl IntoIterator<Item = Counted>,
        now: Instant,
    ) -> Option<String> {
        self.next = now + DropLog::EVERY;
        let mut words = Vec::new();
        for (kind, count) in all {
            let seen = self.seen.entry(kind).or_default();
            if count > *seen {
                words.push(format!("{} {kind}", count - *seen));
                *seen = count;
            }
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_word_of_its_own() {
        let mut words: Vec<&str> = of_mover(&tpo_mover::Counters::default())
            .into_iter()
            .chain(of_engine(&tpo_engine::Counters::default()))
            .map(|(kind, _)| kind)
            .collect();
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all);
    }

    #[test]
    fn the_log_tells_what_is_new() {
        let start = Instant::now();
        let mut log = DropLog::new(start);
        assert!(!log.is_due(start));
        let later = start + DropLog::EVERY;
        assert!(log.is_due(later));
        assert_eq!(
            log.look([("forged", 3), ("too old", 0)], later).as_deref(),
            Some("3 forged")
        );
        assert!(!log.is_due(later));
        assert_eq!(log.look([("forged", 3)], later), None);
        assert_eq!(
            log.look([("forged", 5), ("too old", 1)], later).as_deref(),
            Some("2 forged, 1 too old")
        );
    }
}
