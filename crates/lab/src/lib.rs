//! Worlds to test in: one link model, under a virtual clock and between two real TUN devices.
