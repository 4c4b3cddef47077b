//! Worlds to test in: one link model, under a virtual clock and between two real TUN devices.
//!
//! The model is pure: [`Link`] is one direction of a WAN, told the time and seeded once. It has
//! three users: [`World`], where any number of machines talk under a virtual clock; [`Lab`], which
//! stands four network namespaces up with the model between the two in the middle; and whoever runs
//! that lab from the command line, through [`serve`] and [`request`]. Beside them [`Scratch`], the
//! folder for what such a run writes, and [`seeds()`], which says how many runs of a world there
//! are. This crate knows neither the mover nor the engine: they depend on it for their tests.

mod control;
mod lab;
mod link;
mod loss;
mod netns;
mod ping;
mod profile;
mod scratch;
mod seeds;
mod segment;
mod sites;
mod sys;
mod tun;
mod wan;
mod world;

pub use control::{Reply, Request, Topology, request, serve};
pub use lab::{Host, Lab, Wan, describe, remove};
pub use link::{Cause, Delivery, Fate, Link, LinkStats};
pub use ping::ping;
pub use profile::{Change, NAMED, Profile, ProfileError};
pub use scratch::Scratch;
pub use seeds::{one_seed, only_a_part, seeds};
pub use sites::{Place, Sites, describe_sites, wan_address};
pub use sys::{set_receive_buffer, set_udp_gro, set_udp_segment};
pub use world::{Node, Verdict, World};
