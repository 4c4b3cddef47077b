//! The program as a person uses it: the real binary, its output, its exit code.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use tpo::daemon::control::{Facts, Server};
use tpo::status::{FlowReport, PeerReport, PeerState, StatusReport};
use tpo_lab::Scratch;

/// A folder of its own for each test, removed at its end.
struct Folder(Scratch);

impl Folder {
    fn new(test: &str) -> Folder {
        Folder(Scratch::new(&format!("tpo-cli-{test}")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn tpo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("TPO_LOG");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.tpo(arguments).output().unwrap())
    }

    /// A configuration with a key of its own, both good.
    fn configured(test: &str) -> Folder {
        let folder = Folder::new(test);
        assert_eq!(folder.run(&["keygen", "--out", "paris.key"]).code, 0);
        let peer = folder.run(&["keygen", "--out", "lyon.key"]).out;
        let sample = folder.run(&["init"]).out;
        let text = sample
            .replace("<what `tpo keygen` printed in Lyon>", peer.trim())
            .replace("#control = \"/run/tpo/tpo.sock\"", "control = \"tpo.sock\"");
        fs::write(folder.path("tpo.toml"), text).unwrap();
        folder
    }
}

#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code().expect("it ended by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keygen_writes_a_private_file_and_prints_the_public_key() {
    let folder = Folder::new("keygen");
    let made = folder.run(&["keygen", "--out", "paris.key"]);
    assert_eq!(
        (made.code, made.out.len(), made.err.as_str()),
        (0, 45, ""),
        "{made:?}"
    );
    assert_eq!(mode(&folder.path("paris.key")), 0o600);
    let private = fs::read_to_string(folder.path("paris.key")).unwrap();
    assert_ne!(private, made.out, "the private key is not what is printed");
    let shown = folder.run(&["keygen", "--show", "paris.key"]);
    assert_eq!((shown.code, &shown.out), (0, &made.out));

    let again = folder.run(&["keygen", "--out", "paris.key"]);
    assert_eq!((again.code, again.out.as_str()), (1, ""));
    assert!(
        again
            .err
            .contains("paris.key exists already; --force replaces it"),
        "{}",
        again.err
    );
    assert_eq!(
        fs::read_to_string(folder.path("paris.key")).unwrap(),
        private,
        "it was left alone"
    );

    let forced = folder.run(&["keygen", "--out", "paris.key", "--force"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    assert_ne!(forced.out, made.out);
    assert_eq!(mode(&folder.path("paris.key")), 0o600);
    assert_eq!(
        fs::read_dir(folder.0.path()).unwrap().count(),
        1,
        "nothing else is left"
    );
}

#[test]
fn keygen_neither_follows_links_nor_takes_any_file_for_a_key() {
    let folder = Folder::new("links");
    fs::write(folder.path("precious"), "precious").unwrap();
    std::os::unix::fs::symlink("precious", folder.path("link.key")).unwrap();
    assert_eq!(folder.run(&["keygen", "--out", "link.key"]).code, 1);
    assert_eq!(
        folder.run(&["keygen", "--out", "link.key", "--force"]).code,
        0,
        "the link is replaced"
    );
    assert_eq!(
        fs::read_to_string(folder.path("precious")).unwrap(),
        "precious"
    );
    for (file, words) in [
        ("precious", "holds no private key"),
        ("missing", "cannot be read"),
        (".", "is not a key file"),
    ] {
        let ran = folder.run(&["keygen", "--show", file]);
        assert!(
            ran.code == 1 && ran.err.contains(words) && !ran.err.contains("\"precious\""),
            "{ran:?}"
        );
    }
    assert_eq!(
        folder.run(&["keygen", "--out", "no/such/folder.key"]).code,
        1
    );
    assert_eq!(folder.run(&["keygen"]).code, 2);
    assert_eq!(folder.run(&["keygen", "--out", "a", "--show", "b"]).code, 2);
}

#[test]
fn a_pre_shared_key_is_made_private_and_never_shown() {
    let folder = Folder::new("pre-shared");
    let made = folder.run(&["keygen", "--pre-shared", "lyon.psk"]);
    assert_eq!((made.code, made.err.as_str()), (0, ""), "{made:?}");
    assert_eq!(mode(&folder.path("lyon.psk")), 0o600);
    let key = fs::read_to_string(folder.path("lyon.psk")).unwrap();
    assert_eq!(key.trim().len(), 44);
    assert!(!made.out.contains(key.trim()), "{}", made.out);
    let again = folder.run(&["keygen", "--pre-shared", "lyon.psk"]);
    assert!(
        again.code == 1 && again.err.contains("exists already"),
        "{again:?}"
    );
    assert_eq!(
        fs::read_to_string(folder.path("lyon.psk")).unwrap(),
        key,
        "it was left alone"
    );
    assert_eq!(
        folder
            .run(&["keygen", "--pre-shared", "lyon.psk", "--force"])
            .code,
        0
    );
    assert_ne!(fs::read_to_string(folder.path("lyon.psk")).unwrap(), key);
    assert_eq!(
        folder
            .run(&["keygen", "--pre-shared", "a", "--out", "b"])
            .code,
        2
    );
}

#[test]
fn a_pre_shared_key_that_is_none_or_that_others_can_read_is_refused() {
    let folder = Folder::configured("pre-shared-check");
    let text = fs::read_to_string(folder.path("tpo.toml")).unwrap();
    fs::write(
        folder.path("tpo.toml"),
        text.replace("#pre_shared_key_file", "pre_shared_key_file"),
    )
    .unwrap();
    let refused = |words: &str| {
        let ran = folder.run(&["check", "--config", "tpo.toml"]);
        assert!(ran.code != 0 && ran.err.contains(words), "{words}: {ran:?}");
        assert!(
            ran.err.contains("[[peer]] pre_shared_key_file"),
            "{}",
            ran.err
        );
        ran
    };
    refused("lyon.psk cannot be read");
    assert_eq!(folder.run(&["keygen", "--pre-shared", "lyon.psk"]).code, 0);
    assert_eq!(folder.run(&["check", "--config", "tpo.toml"]).code, 0);

    let secret = "0123456789abcdef".repeat(4);
    fs::write(folder.path("lyon.psk"), &secret).unwrap();
    assert_eq!(
        folder.run(&["check", "--config", "tpo.toml"]).code,
        0,
        "hex will do"
    );
    fs::set_permissions(folder.path("lyon.psk"), fs::Permissions::from_mode(0o640)).unwrap();
    let ran = refused("can be read or written by others (mode 0640)");
    assert!(!ran.err.contains(&secret[..8]), "{}", ran.err);
    fs::set_permissions(folder.path("lyon.psk"), fs::Permissions::from_mode(0o600)).unwrap();
    let private = fs::read(folder.path("paris.key")).unwrap();
    fs::write(folder.path("lyon.psk"), &private).unwrap();
    let ran = refused("lyon.psk holds the same as the private key");
    assert!(
        !ran.err.contains(String::from_utf8(private).unwrap().trim()),
        "{}",
        ran.err
    );
    for wrong in [&secret[..63], &"0".repeat(64), "", "lyon"] {
        fs::write(folder.path("lyon.psk"), wrong).unwrap();
        let ran = refused("lyon.psk holds no pre-shared key");
        assert!(!ran.err.contains(&secret[..8]), "{}", ran.err);
    }
}

#[test]
fn init_and_check_go_together() {
    let folder = Folder::configured("check");
    let ran = folder.run(&["check", "--config", "tpo.toml"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (
            0,
            "tpo.toml: good. peers: 1, rules: 2, accepts: 1, warnings: 0\n"
        ),
        "{ran:?}"
    );
    // What this host's settings mean is another matter on every host. Of the file there is to say
    // whom its accept means.
    let (of_host, of_file): (Vec<&str>, Vec<&str>) = ran
        .err
        .lines()
        .partition(|line| line.starts_with("this host: "));
    let [note] = of_file[..] else {
        panic!("{of_file:?} beside {of_host:?}")
    };
    let means = "note: [[accept]] source: left out, so nobody may come from \"lyon\" but the destinations of the rules for it, 10.10.2.0/24: ";
    assert!(note.contains(means), "{note}");
    // Of an address that this host has it is said that a prefix does not mean it.
    let text = fs::read_to_string(folder.path("tpo.toml")).unwrap();
    let own = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    // A host without any route has no such address to be found by.
    if let Ok(SocketAddr::V4(own)) = own {
        let network = Ipv4Addr::from_bits(own.ip().to_bits() & !0xff);
        let prefix = text.replace(
            "destination = \"10.10.1.0/24\"",
            &format!("destination = \"{network}/24\""),
        );
        fs::write(folder.path("own.toml"), prefix).unwrap();
        let ran = folder.run(&["check", "--config", "own.toml"]);
        assert!(
            ran.err
                .contains(&format!("holds {}, an address of this host", own.ip())),
            "{own}: {ran:?}"
        );
    }
    // What may go in the clear is said once, however many rules are open; and not where none is.
    let open =
        "on_failure = open: while a peer is not up, what these rules name goes on in the clear";
    assert_eq!(ran.err.matches(open).count(), 1, "{}", ran.err);
    let text = fs::read_to_string(folder.path("tpo.toml")).unwrap();
    fs::write(
        folder.path("closed.toml"),
        text.replacen("[tpo]", "[tpo]\non_failure = \"closed\"", 1),
    )
    .unwrap();
    let ran = folder.run(&["check", "--config", "closed.toml"]);
    assert!(ran.code == 0 && !ran.err.contains("on_failure"), "{ran:?}");

    // What keeps it from starting here is no mistake of the file, and is not passed over either.
    fs::write(
        folder.path("user.toml"),
        text.replacen("[tpo]", "[tpo]\nuser = \"nosuch\"", 1),
    )
    .unwrap();
    let ran = folder.run(&["check", "--config", "user.toml"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(
        ran.err.contains("there is no user \"nosuch\"") && ran.err.contains("would not start"),
        "{}",
        ran.err
    );

    fs::set_permissions(folder.path("paris.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let ran = folder.run(&["--config", "tpo.toml", "check"]);
    assert_eq!(ran.code, 2);
    let refused = "tpo.toml:8: error: [tpo] private_key_file: paris.key can be read or written by others (mode 0644) and is not used; would do: chmod 600 paris.key";
    assert!(ran.err.contains(refused), "{}", ran.err);
    for (mode, code) in [(0o640, 2), (0o620, 2), (0o604, 2), (0o400, 0)] {
        fs::set_permissions(folder.path("paris.key"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            folder.run(&["--config", "tpo.toml", "check"]).code,
            code,
            "{mode:o}"
        );
        if code != 0 {
            assert_eq!(
                folder.run(&["--config", "tpo.toml", "run"]).code,
                code,
                "{mode:o}"
            );
        }
    }

    fs::remove_file(folder.path("paris.key")).unwrap();
    let ran = folder.run(&["check", "--config", "tpo.toml"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.starts_with(
            "tpo.toml:8: error: [tpo] private_key_file: paris.key cannot be read: No such file"
        ),
        "{}",
        ran.err
    );
    assert!(
        ran.err
            .contains("; would do: a key made by `tpo keygen --out paris.key`"),
        "{}",
        ran.err
    );

    fs::copy(folder.path("lyon.key"), folder.path("paris.key")).unwrap();
    let ran = folder.run(&["check", "--config", "tpo.toml"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("the key of peer \"lyon\" is our own"),
        "{}",
        ran.err
    );
}

#[test]
fn a_broken_configuration_stops_every_command_that_needs_it() {
    let folder = Folder::new("broken");
    fs::write(
        folder.path("tpo.toml"),
        "[tpo]\nname = \"paris\"\nlissten = 1\n[[rule]]\nprotocol = \"upd\"\n",
    )
    .unwrap();
    let check = folder.run(&["check", "--config", "tpo.toml"]);
    assert_eq!((check.code, check.out.as_str()), (2, ""));
    assert_eq!(
        folder.run(&["run", "--config", "tpo.toml"]).err,
        check.err,
        "run says the same"
    );
    for words in [
        "tpo.toml:3: error: [tpo] lissten: ",
        "tpo.toml:5: error: [[rule]] protocol: found \"upd\"; would do: \"tcp\"",
    ] {
        assert!(check.err.contains(words), "{}", check.err);
    }
    let missing = folder.run(&["check", "--config", "missing.toml"]);
    assert_eq!(missing.code, 2);
    assert!(
        missing
            .err
            .starts_with("missing.toml: error: cannot be read (No such file"),
        "{}",
        missing.err
    );
    fs::write(folder.path("latin.toml"), b"name = \"\xe9\"").unwrap();
    assert!(
        folder
            .run(&["check", "--config", "latin.toml"])
            .err
            .contains("not UTF-8 text at byte 8")
    );
}

#[test]
fn without_a_daemon_status_says_so() {
    let folder = Folder::configured("nobody");
    for arguments in [
        &["status", "--config", "tpo.toml"][..],
        &["flows", "--json", "--config", "tpo.toml"],
    ] {
        let ran = folder.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (3, ""));
        assert_eq!(
            ran.err,
            "tpo: no tpo is running: nobody answers at tpo.sock (the control of [tpo]); start it with `tpo run` or `systemctl start tpo`\n"
        );
    }
    let ran = folder.run(&["status", "--wait-up", "0.1", "--config", "tpo.toml"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .starts_with("tpo: not up after 0.1 s: no tpo is running"),
        "{}",
        ran.err
    );
    assert_eq!(folder.run(&["status", "--config", "missing.toml"]).code, 2);
    assert_eq!(
        folder.run(&["status", "--peer", "lyon"]).code,
        2,
        "--peer is for --wait-up"
    );
    assert_eq!(folder.run(&["status", "--wait-up", "soon"]).code, 2);
}

struct Running;

impl Facts for Running {
    fn status(&self) -> StatusReport {
        let peer = |name: &str, state| PeerReport {
            name: name.into(),
            up: state == PeerState::Up,
            state,
            ..PeerReport::default()
        };
        let peers = vec![
            peer("lyon", PeerState::Up),
            peer("oslo", PeerState::Connecting),
        ];
        StatusReport {
            name: "paris".into(),
            version: "0.1.0".into(),
            peers,
            ..StatusReport::default()
        }
    }
    fn flows(&self) -> Vec<FlowReport> {
        (0..5_000)
            .map(|id| FlowReport {
                id,
                peer: "lyon".into(),
                client: "10.10.1.2:1".into(),
                ..FlowReport::default()
            })
            .collect()
    }
}

#[test]
fn with_a_daemon_status_shows_what_it_says() {
    let folder = Folder::configured("daemon");
    let _server = Server::start(&folder.path("tpo.sock"), Arc::new(Running)).unwrap();
    // The running daemon still answers when its configuration file is broken.
    let broken =
        fs::read_to_string(folder.path("tpo.toml")).unwrap() + "\n[[rule]]\nnonsense = 1\n";
    fs::write(folder.path("tpo.toml"), broken).unwrap();
    let ran = folder.run(&["status", "--config", "tpo.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.starts_with("paris: NOT INTERCEPTING"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("\noslo is not up: no answer yet"),
        "{}",
        ran.out
    );
    let json: serde_json::Value = serde_json::from_str(
        &folder
            .run(&["status", "--json", "--config", "tpo.toml"])
            .out,
    )
    .unwrap();
    assert_eq!(
        (&json["name"], &json["peers"][1]["state"]),
        (&"paris".into(), &"connecting".into())
    );

    let up = folder.run(&[
        "status",
        "--wait-up",
        "5",
        "--peer",
        "lyon",
        "--config",
        "tpo.toml",
    ]);
    assert_eq!(up.code, 0, "{up:?}");
    let all = folder.run(&["status", "--wait-up", "0.2", "--config", "tpo.toml"]);
    assert_eq!(
        (all.code, all.err.as_str()),
        (1, "tpo: not up after 0.2 s: peer oslo is connecting\n")
    );
    let unknown = folder.run(&[
        "status",
        "--wait-up",
        "60",
        "--peer",
        "rome",
        "--config",
        "tpo.toml",
    ]);
    assert_eq!(
        (unknown.code, unknown.err.as_str()),
        (1, "tpo: no peer \"rome\"; known are: lyon, oslo\n"),
        "no need to wait"
    );

    let flows = folder.run(&["flows", "--config", "tpo.toml"]);
    assert_eq!((flows.code, flows.out.lines().count()), (0, 5_001));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = Folder::configured("pipe");
    let _server = Server::start(&folder.path("tpo.sock"), Arc::new(Running)).unwrap();
    let mut child = folder
        .tpo(&["flows", "--config", "tpo.toml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Far less than the pipe and the output hold, then the reader is gone.
    child
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut [0; 10])
        .unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn the_help_tells_the_exit_codes_and_a_wrong_filter_is_refused() {
    let folder = Folder::new("help");
    let help = folder.run(&["--help"]);
    assert_eq!(help.code, 0);
    for words in [
        "Exit codes:",
        "  3  no tpo answers",
        "keygen",
        "[default: /etc/tpo/tpo.toml]",
    ] {
        assert!(help.out.contains(words), "{words}: {}", help.out);
    }
    let help = folder.run(&["status", "--help"]).out;
    assert!(
        help.contains(
            "   8  not accepted: The far TPO has no [[accept]] for this client and destination. (add an [[accept]]"
        ),
        "{help}"
    );
    let ran = folder.run(&["--log", "inof", "init"]);
    assert!(
        ran.code == 2 && ran.err.contains("error, warn, info, debug, trace"),
        "{ran:?}"
    );
    assert_eq!(folder.run(&["frobnicate"]).code, 2);
}

#[test]
fn the_demo_is_a_program_of_its_own_beside_this_one_or_in_the_path() {
    let folder = Folder::new("demo");
    let tpo = folder.path("tpo");
    // By a process: a file that this one, with its many threads, has just written may still be
    // open for writing in a child of another test, and cannot be run then.
    let copy = |from: &str, to: &Path| {
        let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
        assert!(copied.success());
    };
    copy(env!("CARGO_BIN_EXE_tpo"), &tpo);
    let demo = || {
        let mut command = Command::new(&tpo);
        Ran::of(command.arg("demo").env("PATH", "").output().unwrap())
    };
    let ran = demo();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("neither beside"), "{ran:?}");
    assert!(ran.err.contains("--package tpo-bench"), "{ran:?}");
    copy("/bin/echo", &folder.path("tpo-bench"));
    let ran = demo();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, format!("demo --tpo {}\n", tpo.display()));
}
