//! The file that `tpo init` prints.

use crate::{KEY, base, check, good};
use tpo::config::{Checked, Level, sample::SAMPLE};

#[test]
fn the_sample_is_good_once_its_key_is_filled_in() {
    let refused = check(SAMPLE).unwrap_err();
    let errors: Vec<&str> = refused
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .map(|finding| finding.key.as_str())
        .collect();
    assert_eq!(errors, ["[[peer]] public_key"], "{refused}");
    let filled = SAMPLE.replace("<what `tpo keygen` printed in Lyon>", KEY);
    let (checked, findings) = good(&filled);
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    // Every optional key of the sample shows its default, so that taking the # away changes
    // nothing...
    let all: String = filled
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| is_key_or_section(rest))
                .unwrap_or(line)
                .to_owned()
                + "\n"
        })
        .collect();
    let all = all
        .replace("rate = \"100mbit\"", "#")
        .replace("pre_shared_key_file", "#");
    let (with_all, findings) = good(&all);
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    let plain = |mut checked: Checked| {
        checked.tpo.private_key_line = 0;
        checked.peers.iter_mut().for_each(|peer| peer.line = 0);
        checked.rules.iter_mut().for_each(|rule| rule.line = 0);
        checked
            .accepts
            .iter_mut()
            .for_each(|accept| accept.line = 0);
        format!("{checked:?}")
    };
    assert_eq!(plain(with_all), plain(checked));
    // ...and every key that is known is in it: a key that does not exist makes the check list those
    // that do.
    let wrong = base()
        .replace("private_key_file", "x = 1\nprivate_key_file")
        .replace("public_key", "x = 1\npublic_key");
    let wrong = wrong
        .replace("protocol", "x = 1\nprotocol")
        .replace("[[accept]]", "[[accept]]\nx = 1")
        + "[intercept]\nx = 1\n[multicast]\nx = 1\n";
    let mut known = 0;
    for finding in check(&wrong)
        .unwrap_err()
        .iter()
        .filter(|finding| finding.key.ends_with(" x"))
    {
        for key in finding.would_do.trim_start_matches("one of ").split(", ") {
            assert!(
                all.lines()
                    .chain(["rate = ", "pre_shared_key_file = "])
                    .any(|line| line.starts_with(&format!("{key} = "))),
                "{key} is not in the sample"
            );
            known += 1;
        }
    }
    assert_eq!(
        known,
        16 + 5 + 2 + 10 + 15 + 7,
        "{}",
        check(&wrong).unwrap_err()
    );
}

fn is_key_or_section(line: &str) -> bool {
    line.starts_with('[')
        || line
            .split_once(" = ")
            .is_some_and(|(key, _)| !key.is_empty() && !key.contains(' '))
}
