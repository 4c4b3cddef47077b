//! Rules come and go whole, whoever was there before.

use crate::net::{Answer, Daemon, Net, PORT, Place, V6, ask, rules_for, table};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use tpo::intercept::error::InstallError;
use tpo::intercept::install::{self, install};
use tpo::intercept::tcp::Listeners;
use tpo::table::{Mode, OnFailure, Table};

#[test]
fn removal_leaves_everything_as_it_was() {
    let net = Net::up();
    net.nft(
        Place::Tpo,
        "table inet other { chain input { type filter hook input priority 0; tcp dport 9 counter drop; }; }",
    );
    net.ip(Place::Tpo, "rule add fwmark 0x10/0x10 lookup 55 pref 477");
    let before = net.state(Place::Tpo);
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        assert!(net.state(Place::Tpo).contains("table inet tpo"));
        drop(daemon);
        assert_eq!(net.state(Place::Tpo), before);
    }
}

#[test]
fn another_user_cannot_keep_a_daemon_from_starting() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let net = Net::up();
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let ports = tpo::intercept::tcp::Ports { v4: 1, v6: Some(1) };
    // Names without a file have no permissions: anybody may have this one, which used to mean that
    // a daemon runs.
    let taken = net.inside(Place::Tpo, || {
        let name = std::os::unix::net::SocketAddr::from_abstract_name("tpo-intercept").unwrap();
        std::os::unix::net::UnixListener::bind_addr(&name).unwrap()
    });
    let namespace = net.inside(Place::Tpo, || {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    });
    let installed = net
        .inside(Place::Tpo, || install(&table, ports))
        .unwrap_or_else(|error| panic!("{error}"));
    let as_nobody = |script: String| {
        Command::new("sh")
            .args(["-c", &script])
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap()
    };
    let file = format!("/run/tpo/netns-{namespace}.lock");
    assert!(std::fs::symlink_metadata(&file).unwrap().is_file());
    for script in [
        format!("exec 9<{file}"),
        format!("exec 9>{file}.x"),
        format!("rm -f {file}"),
        "exec 9>/run/tpo.x".into(),
    ] {
        let output = as_nobody(script.clone());
        assert!(!output.status.success(), "nobody may do `{script}`");
    }
    assert!(
        as_nobody("exec 9</dev/null".into()).status.success(),
        "the same way to ask says yes to what is allowed"
    );
    net.inside(Place::Tpo, || installed.remove()).unwrap();
    assert!(!std::path::Path::new(&file).exists());
    drop(taken);
}

#[test]
fn what_a_killed_run_leaves_is_replaced_and_removed() {
    let net = Net::up();
    let before = net.state(Place::Tpo);
    let mut child = net
        .command(Place::Tpo, std::env::current_exe().unwrap())
        .args([
            "--exact",
            "install::child_that_installs_and_waits",
            "--ignored",
            "--nocapture",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains("installed")),
        "the child must come up"
    );
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let ports = tpo::intercept::tcp::Ports { v4: 1, v6: Some(1) };
    let second = net.inside(Place::Tpo, || install(&table, ports).map(drop));
    assert!(
        matches!(second, Err(InstallError::AlreadyRunning)),
        "{second:?}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let left = net.state(Place::Tpo);
    assert!(
        left.contains("table inet tpo") && left.contains("lookup 478"),
        "{left}"
    );
    let daemon = Daemon::start(&net, table);
    daemon.keep(0);
    assert!(matches!(
        ask(&net, Place::Client, V6.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    drop(daemon);
    assert_eq!(net.state(Place::Tpo), before);
    net.inside(Place::Tpo, || install::remove_left_overs().unwrap());
    assert_eq!(net.state(Place::Tpo), before);
}

#[test]
#[ignore = "started by another test, in a namespace"]
fn child_that_installs_and_waits() {
    let listeners = Listeners::open(Mode::Tproxy).unwrap_or_else(|e| panic!("{e}"));
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let _installed = install(&table, listeners.ports()).unwrap_or_else(|e| panic!("{e}"));
    println!("\ninstalled");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn what_is_missing_is_said() {
    let net = Net::up();
    let child = |program: &str, arguments: &[&str], path: &str| {
        let mut command = net.command(Place::Tpo, program);
        command
            .args(arguments)
            .arg(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "install::child_that_installs_and_waits",
                "--ignored",
                "--nocapture",
            ])
            .stdin(Stdio::null());
        command
            .env("PATH", path)
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap()
    };
    let refused = |output: std::process::Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let path = std::env::var("PATH").unwrap();
    let drop = [
        "--bounding-set=-net_admin,-net_raw",
        "--inh-caps=-net_admin,-net_raw",
    ];
    let said = refused(child("setpriv", &drop, &path));
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    // A host without nft, in mounts of its own.
    let hide = "for nft in /usr/sbin/nft /sbin/nft; do test ! -f $nft || mount --bind /dev/null $nft; done; exec \"$@\"";
    let without = [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        hide,
        "sh",
    ];
    let said = refused(child("unshare", &without, &path));
    assert!(said.contains("install the package nftables"), "{said}");
    // What the environment says of places does not count: who can set it could have his own program
    // run.
    let output = child("env", &["PATH=/nonexistent"], &path);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
