//! This host apart from its traffic: what the service manager, the log, the kernel's lists and the
//! daemon's own privileges ask for.

pub mod doorbell;
pub mod life_signs;
pub mod lock;
pub mod log;
pub mod netlink;
pub mod own_addresses;
pub mod privilege;
pub mod program;
pub mod service;
