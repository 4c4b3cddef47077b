//! `tpo-bench bench` as a person runs it, with times so short that its figures mean nothing: it
//! measures all ways, writes what it promises, and leaves nothing behind. Needs root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tpo_lab::Scratch;

/// A folder for what a run writes, removed at the end.
struct Folder(Scratch);

impl Folder {
    fn new(test: &str) -> Folder {
        let folder = Scratch::new(&format!("tpo-bench-{test}")).unwrap();
        fs::create_dir(folder.join("temporary")).unwrap();
        Folder(folder)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join("out").join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What the run has in its folder for temporary files: name and mode.
    fn temporary(&self) -> Vec<(String, u32)> {
        let entry = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().mode() & 0o777,
            )
        };
        fs::read_dir(self.0.join("temporary"))
            .unwrap()
            .map(entry)
            .collect()
    }

    fn bench(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo-bench"));
        command
            .arg("bench")
            .args(arguments)
            .arg("--out")
            .arg(self.0.join("out"));
        command
            .env_remove("TPO_LOG")
            .env("TMPDIR", self.0.join("temporary"));
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Namespaces of a run that are there.
fn namespaces(process: u32) -> Vec<String> {
    let prefix = format!("tpobench{process}-");
    let entries = fs::read_dir("/run/netns").into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

fn ended(child: Child) -> (Output, String) {
    let process = child.id();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        namespaces(process),
        Vec::<String>::new(),
        "left behind; it said:\n{words}"
    );
    (output, words)
}

const SHORT: [&str; 6] = ["--count", "0.3", "--warm-up", "0.2", "--requests", "8"];
const LINKS: [&str; 4] = [
    "--link",
    "rate=50mbit delay=4ms",
    "--link",
    "rate=50mbit delay=4ms loss=1%",
];

#[test]
fn every_way_is_measured_and_everything_promised_is_written() {
    let folder = Folder::new("all");
    let mut arguments = Vec::from(SHORT);
    arguments.extend(LINKS);
    arguments.extend(["--jobs", "2"]);
    let (output, words) = ended(folder.bench(&arguments));
    assert!(output.status.success(), "{words}");
    assert!(words.contains("[8/8"), "no progress in:\n{words}");
    let table = folder.read("table.md");
    assert_eq!(table, String::from_utf8(output.stdout).unwrap());
    let results = folder.read("results.jsonl");
    for way in ["direct, CUBIC", "direct, BBR", "split TCP, BBR", "tpo"] {
        // Two links, four parts of the table.
        assert_eq!(table.matches(&format!("| {way} |")).count(), 8, "{table}");
        assert_eq!(
            results.matches(&format!("\"way\":\"{way}\"")).count(),
            2,
            "{results}"
        );
    }
    for line in results.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        for figure in [
            "down_mbit",
            "up_mbit",
            "sixteen_mbit",
            "wire",
            "ttfb_p50_ms",
            "object_p99_ms",
            "echo_p50_ms",
        ] {
            let value = record["figures"][figure].as_f64();
            assert!(
                value.is_some_and(|value| value > 0.0),
                "{figure}: {value:?} in {line}"
            );
        }
        let datagrams = record["figures"]["stream_1200_arrived"].as_f64();
        assert_eq!(
            datagrams.is_some(),
            ["cubic", "tpo", "direct, CUBIC"].contains(&record["way"].as_str().unwrap()),
            "{line}"
        );
    }
    let plot = folder.read("loss-50mbit-8ms.svg");
    assert_eq!(plot.matches("<polyline").count(), 4);
}

#[test]
fn a_signal_ends_it_and_nothing_stays() {
    let folder = Folder::new("signal");
    let child = folder.bench(&[
        "--link",
        "rate=50mbit delay=4ms",
        "--ways",
        "tpo",
        "--count",
        "600",
    ]);
    let start = Instant::now();
    while namespaces(child.id()).len() < 4 {
        assert!(start.elapsed() < Duration::from_secs(20), "no lab is made");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(1500));
    let temporary = folder.temporary();
    let guessed = format!("tpobench{}-", child.id());
    assert_eq!(temporary.len(), 1, "{temporary:?}");
    for (name, mode) in temporary {
        // Its namespaces are called so, and a number; who knows the process knows them.
        let rest = name.strip_prefix(&guessed).unwrap_or_default();
        assert!(rest.len() > 16, "{name} can be guessed");
        assert_eq!(mode, 0o700, "{name}: keys are in it");
    }
    let kill = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let asked = Instant::now();
    let (output, words) = ended(child);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("ended by a signal"), "{words}");
    assert_eq!(folder.temporary(), []);
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        asked.elapsed()
    );
}
