//! This host apart from its traffic: what the service manager, the log, the kernel's lists and the
//! daemon's own privileges ask for.

pub(crate) mod doorbell;
pub(crate) mod life_signs;
pub(crate) mod lock;
pub mod log;
pub(crate) mod netlink;
pub(crate) mod own_addresses;
pub mod privilege;
pub(crate) mod program;
pub(crate) mod service;
