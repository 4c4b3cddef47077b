//! Worlds to test in: one link model, under a virtual clock and between two real TUN devices.
//!
//! The model is pure: [`Link`] is one direction of a WAN, told the time and seeded once. It has three users: [`World`],
//! where any number of machines talk under a virtual clock; the live lab, which stands four network namespaces up with
//! the model between the two in the middle; and whoever runs that lab from the command line. This crate knows neither
//! the mover nor the engine: they depend on it for their tests.

mod link;
mod loss;
mod profile;
mod world;

pub use link::{Cause, Delivery, Fate, Link, LinkStats};
pub use profile::{Change, NAMED, Profile, ProfileError};
pub use world::{Node, Verdict, World};
