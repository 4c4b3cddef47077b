//! The small error enums: one for each operation that can fail.

use thiserror::Error;

use crate::KeyError;

/// Why a flow could not be opened. The application's connection should go some other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no session with the peer.
    #[error("no session with the peer")]
    NotConnected,
    /// `Limits::flows` of them live.
    #[error("{flows} flows live, no more are allowed")]
    TooManyFlows {
        /// The limit.
        flows: usize,
    },
    /// The flows hold more than the budget.
    #[error("flows hold {held} bytes, the budget is {budget}")]
    OutOfMemory {
        /// What they hold.
        held: usize,
        /// What they may hold.
        budget: usize,
    },
}

/// Why a packet was not taken: it is lost, as packets may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// There is no session with the peer.
    #[error("no session with the peer")]
    NotConnected,
    /// `Limits::packet_flows` of them live.
    #[error("no more flows of packets are allowed")]
    TooManyFlows,
    /// Too much waits for the link already.
    #[error("too much waits for the link")]
    Full,
    /// The far side did not want its flow a short time ago.
    #[error("the far side refused the flow")]
    Refused,
}

/// Why a text is not an address prefix.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// No address before the slash.
    #[error("`{0}` is not an IP address; write an address, an address/length or `any`")]
    Address(String),
    /// No fitting number after the slash.
    #[error("`{found}` is not a prefix length; for this address it is a number from 0 to {max}")]
    Length {
        /// What stands after the slash.
        found: String,
        /// Bits of the address.
        max: u8,
    },
    /// Bits are set behind the prefix.
    #[error("{address}/{length} has bits behind the prefix; did you mean {masked}/{length}?")]
    HostBits {
        /// As written.
        address: std::net::IpAddr,
        /// As written.
        length: u8,
        /// The address with those bits cleared.
        masked: std::net::IpAddr,
    },
}

/// Why a payload cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum PayloadError {
    #[error("shorter than its headers say")]
    Truncated,
    #[error("function type {0} of the routing header is unknown")]
    Routing(u8),
    #[error("what was compressed is too large, too small or too many messages")]
    CompressedSize,
    #[error("dictionary {0} is not here")]
    Dictionary(u8),
    #[error("what was compressed cannot be taken apart")]
    Compressed,
    #[error("bytes are left over after the last message")]
    LeftOver,
    #[error("message version {0}")]
    Version(u8),
    #[error("header length {0}")]
    HeaderLength(u8),
    #[error("message function type {0}")]
    Function(u8),
    #[error("class {0}")]
    Class(u8),
    #[error("header form does not fit the function type")]
    Form,
    #[error("no key of a flow: {0}")]
    Key(KeyError),
}

/// How a flow's far side broke the rules of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Breach {
    #[error("data that was there already")]
    Overlap,
    #[error("data beyond the credit")]
    BeyondCredit,
    #[error("data or a second end beyond the end")]
    BeyondEnd,
    #[error("another flow's addresses under the same number")]
    OtherKey,
    #[error("a message of the other kind of flow")]
    OtherKind,
}
