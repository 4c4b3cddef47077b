//! What the running program says of itself: [`report`] is the data (and the JSON), [`render`] the
//! form for people, [`reason`] the numbered list of why a connection is not accelerated. The daemon
//! fills the reports, [`control`](crate::daemon::control) carries them.

pub(crate) mod drops;
mod peer_lines;
pub(crate) mod reason;
pub(crate) mod render;
pub(crate) mod report;
mod text_table;
pub(crate) mod units;

pub(crate) use reason::Reason;
pub use report::{
    CompressionReport, FlowReport, FlowState, HandshakeReport, InterceptReport, LeaseReport,
    MemoryReport, OpenedBy, PassedReport, PeerReport, PeerState, PlainReport, StatusReport,
};
