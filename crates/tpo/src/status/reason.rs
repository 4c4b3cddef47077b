//! Why a connection is not accelerated: a numbered list, the same in `tpo status`, in the logs and
//! in the manual.
//!
//! Each reason is counted somewhere: `daemon/passed.rs` names the counters of each one, and does
//! not compile without them. A number is never used again for something else. Taken out, because
//! nothing that runs can see such a connection: 3 (it began before the program), 6 (its rules are
//! switched off), 9 (it came in by an interface that is left out), 11 (its protocol is not
//! carried).

use std::fmt;

/// Makes the enum and what is said of each reason from one list.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $short:literal, $sentence:literal, $advice:literal;)*) => {
        /// Why a connection was not accelerated.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub(crate) enum Reason {
            $($(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// All of them, by number.
            pub(crate) const ALL: &[Reason] = &[$(Reason::$name),*];

            /// Its short name.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Reason::$name => $short,)* }
            }

            /// What it means, in one sentence.
            pub(crate) fn sentence(self) -> &'static str {
                match self { $(Reason::$name => $sentence,)* }
            }

            /// What a person can do about it.
            pub(crate) fn advice(self) -> &'static str {
                match self { $(Reason::$name => $advice,)* }
            }
        }
    };
}

reasons! {
    /// No row of the look-up table matches.
    NoRule = 1, "no rule",
        "No enabled [[rule]] names the connection, though the kernel brought it to the TPO.",
        "nothing, unless it grows: then add a [[rule]] for it";
    /// The rule's peer is not up, or has no room.
    PeerDown = 2, "peer down",
        "The rule's peer was not up, or had no room, when the connection began.",
        "see the peer and its lease above: they say why";
    /// As many flows as allowed are open.
    FlowLimit = 4, "flow limit",
        "As many flows were open as one peer may have.",
        "look at `tpo flows`: what holds so many connections open?";
    /// The memory budget is used up.
    Memory = 5, "memory",
        "The flows held as much memory as they may.",
        "raise memory in [tpo], or look at `tpo flows` for slow readers";
    /// It is our own, or came out of the tunnel.
    Loop = 7, "loop",
        "The connection is the TPO's own, or was brought here by a TPO.",
        "nothing, unless it grows: then a rule names the peer's own address";
    /// The far TPO does not accept the destination.
    NotAccepted = 8, "not accepted",
        "The far TPO has no [[accept]] for this client and destination.",
        "add an [[accept]] at the far TPO, or narrow the rule here";
    /// No file descriptors are left, or none of the peer's share.
    Descriptors = 10, "descriptors",
        "The peer's share of the file descriptors was used up, or the process had none left.",
        "raise LimitNOFILE of the service";
    /// Its real destination could not be found out.
    Destination = 12, "destination",
        "The kernel no longer knew where the redirected connection was going.",
        "use mode = \"tproxy\", or raise the kernel's nf_conntrack_max";
    /// The program is ending.
    Stopping = 13, "stopping",
        "The TPO was ending.",
        "nothing: it was accelerated, or went its ordinary way, as the rule's on_failure says";
    /// A packet that looked like an answer, without a flow that it belongs to.
    NoFlow = 14, "no flow",
        "A packet looked like an answer, but no flow is there that it belongs to.",
        "nothing: it took its ordinary way; add a [[rule]] if such traffic is to be carried";
    /// More new connections came than are taken.
    Flood = 15, "flood",
        "More new connections came, from one source or in all, than are taken (syn_rate_per_source, syn_rate).",
        "find who floods; or raise the bounds in [intercept]";
    /// The kernel could not note where the answers to a packet go.
    WaysFull = 16, "ways full",
        "The kernel's set of flows whose answers go back through the tunnel was full: an answer took its ordinary way.",
        "look at `tpo flows`: which peer opens so many flows?";
}

/// Connections that are not accelerated and cannot be counted, for the manual of `tpo status`: the
/// kernel never shows them to the program.
pub(crate) const NEVER_SEEN: &str = "\
Not counted, because the kernel does not show them to the TPO: connections that no enabled [[rule]]
names, or that began before the TPO did, or that came in by an interface that [intercept] leaves out.
";

impl Reason {
    /// Its number.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// The reason of a number.
    pub(crate) fn from_number(number: u8) -> Option<Reason> {
        Reason::ALL
            .iter()
            .copied()
            .find(|reason| reason.number() == number)
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

    /// Numbers that once meant something else than any reason of today.
    const TAKEN_OUT: [u8; 4] = [3, 6, 9, 11];

    #[test]
    fn a_number_means_one_reason_and_none_is_used_again() {
        let mut last = 0;
        for reason in Reason::ALL {
            assert!(reason.number() > last && !TAKEN_OUT.contains(&reason.number()));
            last = reason.number();
            assert_eq!(Reason::from_number(last), Some(*reason));
            assert!(reason.sentence().ends_with('.') && !reason.advice().is_empty());
        }
        let numbers = (1..=last).filter(|number| Reason::from_number(*number).is_none());
        assert_eq!(numbers.collect::<Vec<_>>(), TAKEN_OUT);
        assert_eq!(Reason::from_number(0), None);
        assert_eq!(Reason::from_number(17), None);
    }
}
