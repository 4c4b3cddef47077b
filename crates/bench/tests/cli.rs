//! The program as a person types it, where it needs no root.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpo-bench"));
    let output = command.args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, words)
}

#[test]
fn the_lab_refuses_what_is_wrong_and_says_when_there_is_none() {
    let (output, words) = run(&["lab", "set", "--link", "rate=fast"]);
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("found `fast`"), "{words}");
    let (output, words) = run(&["lab", "show", "--name", "nobody-has-this"]);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("no lab answers"), "{words}");
}

#[test]
fn a_tpo_that_is_not_there_is_named() {
    for command in ["demo", "bench"] {
        let (output, words) = run(&[command, "--tpo", "/nowhere/tpo"]);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("/nowhere/tpo"), "{words}");
    }
}
