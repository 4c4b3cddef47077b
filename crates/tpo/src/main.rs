//! tpo.
fn main() {}
