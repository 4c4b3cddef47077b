//! Why a connection is not accelerated: a numbered list, the same in `tpo status`, in the logs and
//! in the manual. Numbers are never used again for something else.

use std::fmt;

/// Why a connection was not accelerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// 1: no row of the look-up table matches.
    NoRule = 1,
    /// 2: the rule's peer is not up, or has no room.
    PeerDown = 2,
    /// 3: it began before the program did.
    BeforeStart = 3,
    /// 4: as many flows as allowed are open.
    FlowLimit = 4,
    /// 5: the memory budget is used up.
    Memory = 5,
    /// 6: the rules that name it are switched off.
    RuleDisabled = 6,
    /// 7: it is our own, or came out of the tunnel.
    Loop = 7,
    /// 8: the far TPO does not accept the destination.
    NotAccepted = 8,
    /// 9: it came in where we do not look.
    Interface = 9,
    /// 10: no file descriptors are left, or none of the peer's share.
    Descriptors = 10,
    /// 11: a protocol that is not carried.
    Protocol = 11,
    /// 12: its real destination could not be found out.
    Destination = 12,
    /// 13: the program is ending.
    Stopping = 13,
    /// 14: a packet that looked like an answer, without a flow that it belongs to.
    NoFlow = 14,
    /// 15: more new connections came than are taken.
    Flood = 15,
    /// 16: the kernel could not note where the answers to a packet go.
    WaysFull = 16,
}

impl Reason {
    /// All of them, by number.
    pub const ALL: [Reason; 16] = [
        Reason::NoRule,
        Reason::PeerDown,
        Reason::BeforeStart,
        Reason::FlowLimit,
        Reason::Memory,
        Reason::RuleDisabled,
        Reason::Loop,
        Reason::NotAccepted,
        Reason::Interface,
        Reason::Descriptors,
        Reason::Protocol,
        Reason::Destination,
        Reason::Stopping,
        Reason::NoFlow,
        Reason::Flood,
        Reason::WaysFull,
    ];

    /// Its number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The reason of a number.
    pub fn from_number(number: u8) -> Option<Reason> {
        Reason::ALL
            .into_iter()
            .find(|reason| reason.number() == number)
    }

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NoRule => "no rule",
            Reason::PeerDown => "peer down",
            Reason::BeforeStart => "before start",
            Reason::FlowLimit => "flow limit",
            Reason::Memory => "memory",
            Reason::RuleDisabled => "rule disabled",
            Reason::Loop => "loop",
            Reason::NotAccepted => "not accepted",
            Reason::Interface => "interface",
            Reason::Descriptors => "descriptors",
            Reason::Protocol => "protocol",
            Reason::Destination => "destination",
            Reason::Stopping => "stopping",
            Reason::NoFlow => "no flow",
            Reason::Flood => "flood",
            Reason::WaysFull => "ways full",
        }
    }

    /// What it means, in one sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Reason::NoRule => {
                "No enabled [[rule]] names the connection; the kernel never shows it to the TPO."
            }
            Reason::PeerDown => {
                "The rule's peer was not up, or had no room, when the connection began."
            }
            Reason::BeforeStart => {
                "The connection began before the TPO did, and keeps its ordinary way until it ends."
            }
            Reason::FlowLimit => "As many flows were open as one peer may have.",
            Reason::Memory => "The flows held as much memory as they may.",
            Reason::RuleDisabled => {
                "Only rules with enabled = false name the connection; the kernel never shows it to the TPO."
            }
            Reason::Loop => "The connection is the TPO's own, or was brought here by a TPO.",
            Reason::NotAccepted => "The far TPO has no [[accept]] for this client and destination.",
            Reason::Interface => {
                "The connection came in by an interface that [intercept] leaves out."
            }
            Reason::Descriptors => {
                "The peer's share of the file descriptors was used up, or the process had none left."
            }
            Reason::Protocol => "The protocol is not carried.",
            Reason::Destination => {
                "The kernel no longer knew where the redirected connection was going."
            }
            Reason::Stopping => "The TPO was ending.",
            Reason::NoFlow => {
                "A packet of what is no TCP looked like an answer, but no flow is there that it belongs to."
            }
            Reason::Flood => {
                "More new connections came, from one source or in all, than are taken (syn_rate_per_source, syn_rate)."
            }
            Reason::WaysFull => {
                "The kernel's set of flows whose answers go back through the tunnel was full: an answer took its ordinary way."
            }
        }
    }

    /// What a person can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Reason::NoRule => "add a [[rule]] for it",
            Reason::PeerDown => "see the peer and its lease above: they say why",
            Reason::BeforeStart => "nothing, or restart the application",
            Reason::FlowLimit => "look at `tpo flows`: what holds so many connections open?",
            Reason::Memory => "raise memory in [tpo], or look at `tpo flows` for slow readers",
            Reason::RuleDisabled => "set enabled = true in the rule",
            Reason::Loop => "nothing, unless it grows: then a rule names the peer's own address",
            Reason::NotAccepted => "add an [[accept]] at the far TPO, or narrow the rule here",
            Reason::Interface => "add the interface to interfaces, or set local = true",
            Reason::Descriptors => "raise LimitNOFILE of the service",
            Reason::Protocol => "nothing: such traffic goes its ordinary way",
            Reason::Destination => "use mode = \"tproxy\", or raise the kernel's nf_conntrack_max",
            Reason::Stopping => {
                "nothing: it was accelerated, or went its ordinary way, as the rule's on_failure says"
            }
            Reason::NoFlow => {
                "nothing: it took its ordinary way; add a [[rule]] if such traffic is to be carried"
            }
            Reason::Flood => "find who floods; or raise the bounds in [intercept]",
            Reason::WaysFull => "look at `tpo flows`: which peer opens so many flows?",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_are_one_to_the_last_without_a_gap() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason.number()), index + 1);
            assert_eq!(Reason::from_number(reason.number()), Some(reason));
            assert!(reason.sentence().ends_with('.') && !reason.advice().is_empty());
        }
        assert_eq!(Reason::from_number(0), None);
        assert_eq!(Reason::from_number(17), None);
    }
}
