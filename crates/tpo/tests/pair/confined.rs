//! The confined daemon: its user, its capabilities, what /proc shows of it; that it works so, and
//! repairs what others remove; and what it tells the service manager.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tpo_lab::Host;

use crate::packets::{self, PORT, address, udp};
use crate::site::{Options, Pair, V4, exchange, wait_for};

/// NET_BIND_SERVICE, NET_ADMIN, NET_RAW: linux/capability.h has the bits.
const CAPABILITIES: u64 = 1 << 10 | 1 << 12 | 1 << 13;

/// What /proc says of a process or thread, by key.
fn facts(file: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.into(), value.trim().into()))
        .collect()
}

/// The user that the daemon becomes on this machine.
fn user() -> u32 {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let of_tpo = users.lines().find_map(|line| line.strip_prefix("tpo:"));
    of_tpo.map_or(tpo::host::privilege::NUMBER, |rest| {
        rest.split(':').nth(1).unwrap().parse().unwrap()
    })
}

/// Whether a datagram of the client's is answered, and the tunnel has carried it and its answer.
fn is_carried(pair: &Pair) -> bool {
    let carried = || {
        packets::flows(pair, Host::A, 17)
            .iter()
            .fold((0, 0), |all, flow| (all.0 + flow.0, all.1 + flow.1))
    };
    let before = carried();
    let server = udp(pair, Host::Server, address(V4, PORT));
    let client = udp(pair, Host::Client, "0.0.0.0:0".parse().unwrap());
    pair.lab
        .inside(Host::Client, || client.connect(address(V4, PORT)))
        .unwrap();
    server
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    client.send(b"are you there").unwrap();
    let mut bytes = [0; 64];
    let Ok((length, from)) = server.recv_from(&mut bytes) else {
        return false;
    };
    server.send_to(&bytes[..length], from).unwrap();
    let answered = client.recv(&mut bytes).is_ok();
    let after = carried();
    answered && after.0 > before.0 && after.1 > before.1
}

fn run(pair: &Pair, command: &[&str]) {
    let status = pair
        .lab
        .command(Host::A, command[0])
        .args(&command[1..])
        .status()
        .unwrap();
    assert!(status.success(), "{command:?}");
}

#[test]
fn every_thread_has_three_capabilities_and_no_way_to_more() {
    let pair = Pair::start(&packets::options());
    let user = user();
    let process = PathBuf::from(format!("/proc/{}", pair.process(Host::A)));
    let mut threads = 0;
    for thread in std::fs::read_dir(process.join("task")).unwrap() {
        let facts = facts(&thread.unwrap().path().join("status"));
        let numbers = |key: &str| {
            facts[key]
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for key in ["Uid", "Gid"] {
            assert_eq!(
                numbers(key),
                vec![user.to_string(); 4],
                "{key} of {}",
                facts["Name"]
            );
        }
        assert_eq!(facts["Groups"], "", "{}", facts["Name"]);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(
                u64::from_str_radix(&facts[set], 16).unwrap(),
                CAPABILITIES,
                "{set} of {}",
                facts["Name"]
            );
        }
        assert_eq!(
            (facts["NoNewPrivs"].as_str(), facts["Seccomp"].as_str()),
            ("1", "2"),
            "{}",
            facts["Name"]
        );
        threads += 1;
    }
    assert!(
        threads >= 5,
        "{threads} threads: gate, lane, demultiplexer, TUN reader, control and the first"
    );
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core: Vec<&str> = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(core[4..6], ["0", "0"], "no core file");
    // What cannot be dumped belongs to root in /proc, whoever runs it: no debugger of its user
    // attaches.
    assert_eq!(std::fs::metadata(process.join("mem")).unwrap().uid(), 0);
    assert!(pair.logs().contains("confined"), "{}", pair.logs());
}

#[test]
fn confined_it_carries_and_repairs_what_others_remove() {
    let mut pair = Pair::start(&packets::options());
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    assert!(pair.is_accelerated(to));
    wait_for("the first datagram", || is_carried(&pair));
    // Rules and route, as a firewall's reload and a network manager remove them.
    run(&pair, &["nft", "flush", "ruleset"]);
    run(&pair, &["ip", "rule", "del", "pref", "478"]);
    wait_for("acceleration again", || {
        let attempt = Instant::now();
        let outcome = pair.lab.inside(Host::Client, || {
            std::net::TcpStream::connect_timeout(&to, Duration::from_millis(500))
        });
        outcome.is_ok() && attempt.elapsed() < Duration::from_millis(32)
    });
    // The device, for which the kernel asks for a file of root's.
    for _ in 0..2 {
        run(&pair, &["ip", "link", "del", "tpo0"]);
        wait_for("datagrams again", || is_carried(&pair));
    }
    let settings = pair.lab.inside(Host::A, || {
        [
            "ipv4/conf/tpo0/rp_filter",
            "ipv4/conf/tpo0/accept_redirects",
            "ipv6/conf/tpo0/accept_ra",
            "ipv6/conf/tpo0/accept_redirects",
        ]
        .map(|key| {
            std::fs::read_to_string(Path::new("/proc/sys/net").join(key))
                .unwrap()
                .trim()
                .to_owned()
        })
    });
    assert_eq!(
        settings,
        ["2", "0", "0", "0"],
        "the new device is as the first was"
    );
    let link = pair
        .lab
        .command(Host::A, "ip")
        .args(["-o", "link", "show", "tpo0"])
        .output()
        .unwrap();
    let link = String::from_utf8(link.stdout).unwrap();
    assert!(
        link.contains("mtu 65535") && link.contains("qlen 4096") && link.contains("UP"),
        "{link}"
    );
    pair.end(Host::A);
    let left = pair
        .lab
        .command(Host::A, "nft")
        .args(["list", "tables"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(left.stdout).unwrap(),
        "",
        "nothing stays installed"
    );
}

#[test]
fn the_service_manager_hears_of_it_and_its_folder_is_written() {
    let mut pair = Pair::new(&Options::default());
    let state = pair.config(Host::A).with_file_name("state");
    std::fs::create_dir(&state).unwrap();
    // As below /var/lib: others may pass.
    std::fs::set_permissions(
        state.parent().unwrap(),
        std::fs::Permissions::from_mode(0o711),
    )
    .unwrap();
    let address = pair.config(Host::A).with_file_name("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let hear = || {
        let mut bytes = [0; 512];
        let length = manager
            .recv(&mut bytes)
            .expect("the service manager hears of it");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    pair.run_with(
        Host::A,
        &[
            ("NOTIFY_SOCKET", address.as_os_str()),
            ("WATCHDOG_USEC", "400000".as_ref()),
            ("STATE_DIRECTORY", state.as_os_str()),
        ],
    );
    assert_eq!(hear(), "READY=1\n");
    // Ready means that it answers.
    assert_eq!(pair.status(Host::A)["name"], "a");
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    let socket = std::fs::metadata(pair.config(Host::A).with_file_name("a.sock")).unwrap();
    assert_eq!(
        (socket.uid(), socket.gid(), socket.mode() & 0o777),
        (user(), user(), 0o660)
    );
    pair.run(Host::B);
    pair.wait_up();
    // What a path carries is known once something was.
    let (client, server) = pair.joined(&pair.listen(V4));
    exchange(&client, &server, 7, 2_000_000);
    pair.end(Host::A);
    let last = std::iter::repeat_with(hear).find(|words| words != "WATCHDOG=1\n");
    assert_eq!(last.as_deref(), Some("STOPPING=1\n"));
    let written =
        std::fs::metadata(state.join("b.path")).expect("the path to the peer is remembered");
    assert_eq!(written.uid(), user());
}

#[test]
fn a_stopped_daemon_gives_no_life_sign() {
    let mut pair = Pair::new(&Options::default());
    let address = pair.config(Host::A).with_file_name("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_millis(1_500)))
        .unwrap();
    pair.run_with(
        Host::A,
        &[
            ("NOTIFY_SOCKET", address.as_os_str()),
            ("WATCHDOG_USEC", "400000".as_ref()),
        ],
    );
    let hears = || manager.recv(&mut [0; 64]).is_ok();
    wait_for("a life sign", hears);
    pair.signal(Host::A, "-STOP");
    // What was sent before.
    wait_for("silence", || !hears());
    pair.signal(Host::A, "-CONT");
    wait_for("a life sign again", hears);
}

/// As a service manager starts it: as a user of its own with nothing but three capabilities, a
/// device file that everybody may open, and settings under /proc/sys that nobody may change.
#[test]
fn started_by_nobody_with_a_read_only_proc_it_works_as_well() {
    let mut pair = Pair::new(&packets::options());
    let folder = pair.config(Host::A).parent().unwrap().to_owned();
    let number = tpo::host::privilege::NUMBER + 1;
    std::os::unix::fs::chown(folder.join("a.key"), Some(number), None).unwrap();
    // Its control socket is made by itself.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!(
        "mount --bind -o ro /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
         mknod -m 666 {folder}/tun c 10 200 && mount --bind {folder}/tun /dev/net/tun && \
         mkdir -p /run/tpo && mount -t tmpfs -o mode=755,uid={number} tmpfs /run/tpo && \
         exec setpriv --reuid {number} --regid {number} --clear-groups --bounding-set -all,+net_admin,+net_raw,+net_bind_service \
         --inh-caps -all,+net_admin,+net_raw,+net_bind_service --ambient-caps -all,+net_admin,+net_raw,+net_bind_service \
         --no-new-privs {tpo} run --config {config}",
        folder = folder.display(),
        tpo = env!("CARGO_BIN_EXE_tpo"),
        config = pair.config(Host::A).display()
    );
    // In mounts of its own: those of the lab's namespaces are the machine's.
    pair.run_by(
        Host::A,
        "unshare",
        &["--mount", "--propagation", "private", "sh", "-c", &script].map(AsRef::as_ref),
        &[],
    );
    pair.run(Host::B);
    pair.wait_up();
    let facts = facts(Path::new(&format!(
        "/proc/{}/status",
        pair.process(Host::A)
    )));
    assert_eq!(
        facts["Uid"].split_whitespace().next(),
        Some(number.to_string().as_str())
    );
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(
            u64::from_str_radix(&facts[set], 16).unwrap(),
            CAPABILITIES,
            "{set}"
        );
    }
    assert_eq!(facts["Seccomp"], "2");
    wait_for("the first datagram", || is_carried(&pair));
    run(&pair, &["nft", "delete", "table", "inet", "tpo"]);
    run(&pair, &["ip", "link", "del", "tpo0"]);
    wait_for("datagrams again", || is_carried(&pair));
    let filter = pair.lab.inside(Host::A, || {
        std::fs::read_to_string("/proc/sys/net/ipv4/conf/tpo0/rp_filter").unwrap()
    });
    assert_eq!(filter.trim(), "2");
    // What netlink has no word for is said.
    assert!(
        pair.logs().contains("cannot be set; what it would forbid"),
        "{}",
        pair.logs()
    );
    pair.end(Host::A);
    assert!(!folder.join("a.sock").exists(), "its own socket is removed");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some("/proc/sys")),
        "the machine's own is as it was"
    );
}

/// How often these bytes are in what a process can write to.
fn copies(process: u32, wanted: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let writable = maps.lines().filter(|line| {
        line.split(' ')
            .nth(1)
            .is_some_and(|rights| rights.starts_with("rw"))
    });
    writable
        .map(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            let mut bytes = vec![0; (number(to) - number(from)) as usize];
            // A part of it may be no memory yet; the kernel says so by an error.
            let _ = std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, number(from));
            bytes
                .windows(wanted.len())
                .filter(|window| *window == wanted)
                .count()
        })
        .sum()
}

#[test]
fn the_text_of_the_private_key_is_wiped() {
    let pair = Pair::start(&Options::default());
    let text = std::fs::read_to_string(pair.config(Host::A).with_file_name("a.key")).unwrap();
    let name = pair.config(Host::A).file_name().unwrap().to_owned();
    assert_ne!(
        copies(pair.process(Host::A), name.as_encoded_bytes()),
        0,
        "what it knows is found"
    );
    assert_eq!(
        copies(pair.process(Host::A), text.trim().as_bytes()),
        0,
        "the key's text is not"
    );
}
