//! Configurations as people write them: what is good, what is not, and in which words they are
//! told.

mod advice;
mod any_text;
mod good;
mod sample;
mod wrong;

use std::path::Path;

use tpo::config::{Checked, Findings, parse};

const KEY: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo=";
const OTHER_KEY: &str = "AAowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo=";

fn check(text: &str) -> Result<(Checked, Findings), Findings> {
    parse(text, Path::new("/etc/tpo/tpo.toml"))
}

fn good(text: &str) -> (Checked, Findings) {
    check(text).unwrap_or_else(|findings| panic!("{findings}"))
}

/// A good configuration, each section on known lines: [tpo] 1-3, [[peer]] 4-6, [[rule]] 7-11,
/// [[accept]] 12-14.
fn base() -> String {
    format!(
        "[tpo]\nname = \"paris\"\nprivate_key_file = \"paris.key\"\n\
         [[peer]]\nname = \"lyon\"\npublic_key = \"{KEY}\"\n\
         [[rule]]\nprotocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"\npeer = \"lyon\"\n\
         [[accept]]\npeer = \"lyon\"\ndestination = \"10.10.1.0/24\"\n"
    )
}
