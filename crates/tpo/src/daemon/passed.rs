//! How often each reason came up for which a connection was not accelerated: which counters, of the
//! kernel's rules, the gate, the lanes and the TUN reader, belong to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gate;
use crate::intercept::lease::Count;
use crate::intercept::names::counter;
use crate::lanes::report::Report;
use crate::packets::reader;
use crate::status::{PassedReport, Reason};

/// Everything that counts connections, and packets, that were not accelerated.
pub(super) struct Sources<'a> {
    /// The counters of our table in the kernel, by name; empty where they cannot be read.
    pub(super) kernel: &'a BTreeMap<&'static str, Count>,
    /// What accepts intercepted connections.
    pub(super) gate: &'a gate::Counters,
    /// What reads the TUN device, if packets are carried.
    pub(super) reader: Option<&'a reader::Counters>,
    /// Of each lane that answers.
    pub(super) lanes: Vec<&'a Report>,
}

/// The reasons that came up, by number.
pub(super) fn reports(sources: &Sources<'_>) -> Vec<PassedReport> {
    Reason::ALL
        .iter()
        .map(|reason| (*reason, sources.count(*reason)))
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| PassedReport::new(reason, count))
        .collect()
}

impl Sources<'_> {
    /// Without a wildcard, so that a reason that nobody counts does not compile.
    fn count(&self, reason: Reason) -> u64 {
        let gate = |of: &AtomicU64| of.load(Ordering::Relaxed);
        match reason {
            Reason::NoRule => gate(&self.gate.no_rule),
            Reason::PeerDown => {
                self.kernel(counter::NO_LEASE)
                    + self.kernel(counter::REFUSED)
                    + self.lanes(|lane| lane.counters.refused_not_connected + lane.packets.let_go)
            }
            Reason::FlowLimit => {
                gate(&self.gate.lane_full)
                    + self.reader(|reader| &reader.lane_full)
                    + self.lanes(|lane| lane.counters.refused_no_room + lane.packets.too_many)
            }
            Reason::Memory => self.lanes(|lane| {
                lane.stats.counters.flows.refused + lane.stats.counters.flows.out_of_memory
            }),
            Reason::Loop => gate(&self.gate.not_intercepted),
            Reason::NotAccepted => self.lanes(|lane| lane.counters.not_allowed),
            Reason::Descriptors => {
                gate(&self.gate.no_descriptors) + self.lanes(|lane| lane.counters.no_descriptors)
            }
            Reason::Destination => gate(&self.gate.no_destination),
            Reason::Stopping => self.kernel(counter::NO_LISTENER),
            Reason::NoFlow => {
                self.reader(|reader| &reader.let_go) + self.lanes(|lane| lane.packets.no_flow)
            }
            Reason::Flood => self.kernel(counter::FLOOD) + self.kernel(counter::FLOOD_DROPPED),
            Reason::WaysFull => self.kernel(counter::WAYS_FULL),
        }
    }

    fn kernel(&self, name: &str) -> u64 {
        self.kernel.get(name).map_or(0, |count| count.packets)
    }

    fn lanes(&self, of: impl Fn(&Report) -> u64) -> u64 {
        self.lanes.iter().map(|lane| of(lane)).sum()
    }

    fn reader(&self, of: impl Fn(&reader::Counters) -> &AtomicU64) -> u64 {
        self.reader
            .map_or(0, |reader| of(reader).load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kernel_gate_and_reader_count_comes_out_under_its_reason() {
        let count = |packets| Count {
            packets,
            ..Count::default()
        };
        let kernel = [
            (counter::NO_LEASE, count(1)),
            (counter::REFUSED, count(2)),
            (counter::NO_LISTENER, count(4)),
            (counter::FLOOD, count(8)),
            (counter::FLOOD_DROPPED, count(16)),
            (counter::WAYS_FULL, count(32)),
            (counter::INTERCEPTED, count(1_000)),
        ];
        let gate = gate::Counters::default();
        for (counter, count) in [
            (&gate.no_rule, 64),
            (&gate.not_intercepted, 128),
            (&gate.no_destination, 256),
            (&gate.no_descriptors, 512),
            (&gate.lane_full, 1_024),
        ] {
            counter.store(count, Ordering::Relaxed);
        }
        let reader = reader::Counters::default();
        reader.let_go.store(2_048, Ordering::Relaxed);
        let counted = reports(&Sources {
            kernel: &kernel.into_iter().collect(),
            gate: &gate,
            reader: Some(&reader),
            lanes: Vec::new(),
        });
        assert_eq!(
            counted,
            [
                (Reason::NoRule, 64),
                (Reason::PeerDown, 3),
                (Reason::FlowLimit, 1_024),
                (Reason::Loop, 128),
                (Reason::Descriptors, 512),
                (Reason::Destination, 256),
                (Reason::Stopping, 4),
                (Reason::NoFlow, 2_048),
                (Reason::Flood, 24),
                (Reason::WaysFull, 32),
            ]
            .map(|(reason, count)| PassedReport::new(reason, count))
        );
    }
}
