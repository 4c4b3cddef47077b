//! The live lab against what it was asked for. Needs root and `ip`, and says so when they are
//! missing.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tpo_lab::{
    Host, Lab, Place, Profile, Request, Scratch, Sites, Topology, Wan, ping, request, serve,
    set_receive_buffer, set_udp_gro, set_udp_segment,
};

/// One test at a time: they measure time on shared cores.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn prefix(name: &str) -> String {
    format!("t{}{name}", std::process::id())
}

fn profile(text: &str) -> Profile {
    text.parse().unwrap()
}

/// A lab with the same link both ways.
fn lab(name: &str, link: &str) -> Lab {
    Lab::up(&prefix(name), Wan::symmetric(profile(link)))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

fn server(v6: bool) -> IpAddr {
    if v6 {
        Host::Server.v6("eth0")
    } else {
        Host::Server.v4("eth0")
    }
}

fn any(v6: bool) -> SocketAddr {
    if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// IP bytes of a datagram of this length.
fn on_the_wire(length: usize, v6: bool) -> usize {
    length + if v6 { 48 } else { 28 }
}

/// A sender in the client's namespace and a receiver in the server's, with room for all.
fn udp_pair(lab: &Lab, v6: bool) -> (UdpSocket, UdpSocket) {
    let receiver = lab.inside(Host::Server, || UdpSocket::bind((server(v6), 0)).unwrap());
    set_receive_buffer(&receiver, 256 << 20).unwrap();
    let sender = lab.inside(Host::Client, || UdpSocket::bind(any(v6)).unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    (sender, receiver)
}

/// The datagram of this number: its number, then bytes that depend on it.
fn datagram(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((4..length).map(|i| (number as usize * 31 + i) as u8));
    bytes
}

struct Arrival {
    at: Instant,
    number: u32,
    length: usize,
}

/// Receives until nothing comes for a while; every datagram must be what was sent under its number.
fn receive(socket: &UdpSocket, silence: Duration) -> Vec<Arrival> {
    socket.set_read_timeout(Some(silence)).unwrap();
    let mut buffer = vec![0; 65_536];
    let mut arrivals = Vec::new();
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let at = Instant::now();
                let number = u32::from_be_bytes(buffer[..4].try_into().unwrap());
                assert!(
                    buffer[..length] == datagram(number, length),
                    "datagram {number} was changed on its way"
                );
                arrivals.push(Arrival { at, number, length });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return arrivals,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends numbered datagrams in GSO batches at about `rate` bits per second; the last of each batch
/// is one byte shorter.
fn send_batches(socket: &UdpSocket, batches: u32, each: u32, length: usize, rate: f64) {
    set_udp_segment(socket, length as u16).unwrap();
    let begun = Instant::now();
    let mut sent = 0;
    for batch in 0..batches {
        let first = batch * each;
        let mut bytes: Vec<u8> = (first..first + each)
            .flat_map(|number| datagram(number, length))
            .collect();
        bytes.pop();
        sent += socket.send(&bytes).unwrap();
        let due = Duration::from_secs_f64(sent as f64 * 8.0 / rate);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}

#[test]
fn ping_takes_as_long_as_asked_and_links_change_while_up() {
    let _turn = turn();
    let lab = lab("rtt", "delay=25ms");
    let check = |asked: Duration| {
        for v6 in [false, true] {
            let pings = || {
                (0..4)
                    .map(|_| ping(server(v6), ms(1000)).expect("an answer"))
                    .min()
                    .unwrap()
            };
            let found = lab.inside(Host::Client, pings);
            assert!(
                (asked..asked + ms(4)).contains(&found),
                "asked for {asked:?}, found {found:?}, v6 {v6}"
            );
        }
    };
    check(ms(50));
    lab.set(profile("delay=10ms"), profile("delay=3ms"));
    check(ms(13));
    lab.set(profile("loss=100%"), profile("perfect"));
    let lost = lab.inside(Host::Client, || ping(server(false), ms(100)));
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn loss_is_as_asked() {
    let _turn = turn();
    let lab = lab("loss", "loss=5% delay=1ms");
    for v6 in [false, true] {
        let before = lab.stats().0;
        let (sender, receiver) = udp_pair(&lab, v6);
        let sending = std::thread::spawn(move || {
            for number in 0..5_000 {
                sender.send(&datagram(number, 200)).unwrap();
            }
        });
        let got = receive(&receiver, ms(300)).len();
        sending.join().unwrap();
        // Five standard deviations of a binomial count: sqrt(5000 * 0.05 * 0.95) is 15.
        assert!(got.abs_diff(4_750) <= 77, "v6 {v6}: {got} of 5000 arrived");
        let counted = (lab.stats().0.delivered_packets - before.delivered_packets) as usize;
        assert!(
            (got..got + 10).contains(&counted),
            "v6 {v6}: the link counts {counted}, {got} arrived"
        );
        assert!(lab.stats().0.offered_packets - before.offered_packets >= 5_000);
    }
    assert_eq!(lab.own_drops(), 0);
}

#[test]
fn the_rate_is_as_asked_up_to_a_gigabit() {
    let _turn = turn();
    let lab = lab("rate", "perfect");
    const LENGTH: usize = 1400;
    for (text, rate, v6) in [
        ("100mbit", 1e8, false),
        ("100mbit", 1e8, true),
        ("1gbit", 1e9, false),
        ("1gbit", 1e9, true),
    ] {
        // Driven at twice its rate into a queue of 160 ms: the bottleneck never rests, even if the
        // sender stumbles.
        let link = profile(&format!("rate={text} queue={} delay=5ms", rate as u64 / 50));
        lab.set(link.clone(), link);
        let (sender, receiver) = udp_pair(&lab, v6);
        set_udp_segment(&sender, LENGTH as u16).unwrap();
        let sending = std::thread::spawn(move || {
            let batch = vec![0x5a; 40 * LENGTH];
            let begun = Instant::now();
            for number in 1..=(rate * 1.5 / 8.0) as usize / batch.len() {
                sender.send(&batch).unwrap();
                let due = Duration::from_secs_f64((number * batch.len()) as f64 * 4.0 / rate);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        });
        // Whole runs at once, so that the receiver's own pace is not what is measured.
        set_udp_gro(&receiver).unwrap();
        receiver.set_read_timeout(Some(ms(500))).unwrap();
        let (mut buffer, mut first, mut windows) = (vec![0; 65_536], None, vec![0usize; 100]);
        while let Ok(length) = receiver.recv(&mut buffer) {
            assert_eq!(length % LENGTH, 0);
            let window = first.get_or_insert_with(Instant::now).elapsed().as_millis() / 50;
            windows[window as usize] += length / LENGTH;
        }
        sending.join().unwrap();
        // The middle of sixteen windows: a stumble of a busy machine spoils one or two.
        let mut windows: Vec<usize> = windows[..16].to_vec();
        windows.sort_unstable();
        let found = (windows[8] * on_the_wire(LENGTH, v6)) as f64 * 8.0 / 0.05;
        assert!(
            (found / rate - 1.0).abs() < 0.04,
            "asked for {text}, found {windows:?}, v6 {v6}"
        );
    }
    assert_eq!(lab.own_drops(), 0);
}

#[test]
fn a_super_packet_arrives_spread_over_its_serialisation_and_the_queue_has_its_limit() {
    let _turn = turn();
    let lab = lab("queue", "rate=10mbit queue=100000 delay=10ms");
    for v6 in [false, true] {
        let dropped = lab.stats().0.dropped_queue;
        let (sender, receiver) = udp_pair(&lab, v6);
        let length = if v6 { 1452 } else { 1472 };
        let begun = Instant::now();
        // 1500 IP bytes each take 1.2 ms: 66 find room at once, 134 do not.
        send_batches(&sender, 5, 40, length, 1e12);
        let took = begun.elapsed().as_millis() as usize;
        let arrivals = receive(&receiver, ms(200));
        let expected = 66..=67 + took;
        assert!(
            expected.contains(&arrivals.len()),
            "{} arrived, expected {expected:?}, v6 {v6}",
            arrivals.len()
        );
        assert_eq!(
            lab.stats().0.dropped_queue - dropped,
            200 - arrivals.len() as u64
        );
        assert!(lab.stats().0.queue_max_bytes <= 100_000);
        // The first 40 were one super-packet, sent in an instant.
        for (i, arrival) in arrivals[..40].iter().enumerate() {
            let due = ms(10) + Duration::from_micros(1_200) * (i as u32 + 1);
            let at = arrival.at - begun;
            assert!(
                at >= due && at < due + ms(6),
                "datagram {i} at {at:?}, due {due:?}, v6 {v6}"
            );
        }
    }
}

#[test]
fn udp_super_packets_come_out_datagram_by_datagram_intact_at_loss() {
    let _turn = turn();
    let lab = lab("gso", "loss=2% duplicate=1% delay=2ms");
    for v6 in [false, true] {
        let before = lab.stats().0;
        let (sender, receiver) = udp_pair(&lab, v6);
        let sending = std::thread::spawn(move || send_batches(&sender, 250, 40, 1300, 1e9));
        let mut arrivals = receive(&receiver, ms(300));
        sending.join().unwrap();
        let after = lab.stats().0;
        for arrival in &arrivals {
            let expected = if arrival.number % 40 == 39 {
                1299
            } else {
                1300
            };
            assert_eq!(
                arrival.length, expected,
                "datagram {}, v6 {v6}",
                arrival.number
            );
        }
        let total = arrivals.len() as u64;
        arrivals.sort_by_key(|arrival| arrival.number);
        arrivals.dedup_by_key(|arrival| arrival.number);
        let got = arrivals.len() as u64;
        let (lost, twice) = (
            after.dropped_loss - before.dropped_loss,
            after.duplicated - before.duplicated,
        );
        // 10,000 datagrams; five standard deviations.
        assert!(
            lost.abs_diff(200) <= 70 && twice.abs_diff(98) <= 50,
            "{lost} lost, {twice} twice"
        );
        assert!(
            (10_000 - lost).abs_diff(got) <= 5,
            "{got} arrived, {lost} lost, v6 {v6}"
        );
        assert!(
            (got + twice).abs_diff(total) <= 5,
            "{total} arrivals of {got}, {twice} twice, v6 {v6}"
        );
    }
    assert_eq!(lab.own_drops(), 0);
}

#[test]
fn corrupted_datagrams_fail_the_receivers_checksum() {
    let _turn = turn();
    let lab = lab("corrupt", "corrupt=10%");
    for v6 in [false, true] {
        let before = lab.stats().0.corrupted;
        let (sender, receiver) = udp_pair(&lab, v6);
        send_batches(&sender, 50, 40, 1300, 1e9);
        // `receive` compares every byte: a corrupted one that arrived would be seen there.
        let got = receive(&receiver, ms(300)).len() as u64;
        let corrupted = lab.stats().0.corrupted - before;
        assert!(corrupted.abs_diff(200) <= 70, "{corrupted} corrupted");
        assert!(
            (2_000 - corrupted).abs_diff(got) <= 3,
            "{got} arrived, {corrupted} were corrupted, v6 {v6}"
        );
    }
}

/// Bytes that never repeat in step with a packet's length.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// Sends `mine` and expects `theirs` at the same time.
fn exchange(stream: TcpStream, mine: &[u8], theirs: &[u8]) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (mut reader, mut writer) = (&stream, &stream);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(mine).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), theirs.len());
        assert!(got == theirs, "bytes were changed on their way");
    });
}

#[test]
fn tcp_bytes_are_intact_both_ways_over_a_bad_link() {
    let _turn = turn();
    let lab = lab(
        "tcp",
        "rate=1gbit delay=1ms loss=1% duplicate=0.5% corrupt=0.2% reorder=0.5% reorder_by=1ms",
    );
    let mut request = vec![0; 12 << 20];
    let mut response = vec![0; 12 << 20];
    fill(&mut request, 1);
    fill(&mut response, 2);
    for v6 in [false, true] {
        let before = lab.stats().0;
        let listener = lab.inside(Host::Server, || TcpListener::bind((server(v6), 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let client = lab.inside(Host::Client, || TcpStream::connect(address).unwrap());
        let (accepted, from) = listener.accept().unwrap();
        assert_eq!(
            from.ip(),
            if v6 {
                Host::Client.v6("eth0")
            } else {
                Host::Client.v4("eth0")
            }
        );
        std::thread::scope(|scope| {
            scope.spawn(|| exchange(accepted, &response, &request));
            exchange(client, &request, &response);
        });
        let after = lab.stats().0;
        assert!(
            after.dropped_loss > before.dropped_loss && after.corrupted > before.corrupted,
            "{after:?}"
        );
        assert!(
            after.duplicated > before.duplicated && after.reordered > before.reordered,
            "{after:?}"
        );
    }
    assert_eq!(lab.own_drops(), 0);
}

#[test]
fn an_outage_is_silence_for_as_long_as_asked() {
    let _turn = turn();
    let lab = lab("outage", "perfect");
    lab.set(profile("outage=100ms+300ms"), profile("perfect"));
    let begun = Instant::now();
    let (sender, receiver) = udp_pair(&lab, false);
    let sending = std::thread::spawn(move || {
        for number in 0..600 {
            sender.send(&datagram(number, 100)).unwrap();
            std::thread::sleep(ms(1));
        }
    });
    let times: Vec<Duration> = receive(&receiver, ms(500))
        .iter()
        .map(|arrival| arrival.at - begun)
        .collect();
    sending.join().unwrap();
    let gap = times
        .windows(2)
        .map(|pair| (pair[1] - pair[0], pair[0]))
        .max()
        .unwrap();
    assert!(
        gap.0 >= ms(290) && gap.0 < ms(330),
        "silence of {:?} after {:?}",
        gap.0,
        gap.1
    );
}

#[test]
fn a_plain_wan_connects_too() {
    let _turn = turn();
    let lab = Lab::up(&prefix("plain"), Wan::Plain).unwrap_or_else(|error| panic!("{error:#}"));
    for v6 in [false, true] {
        let found = lab.inside(Host::Client, || {
            ping(server(v6), ms(1000)).expect("an answer")
        });
        assert!(found < ms(5), "{found:?}");
    }
    assert!(lab.profiles().is_none());
    let output = lab
        .command(Host::A, "ip")
        .args(["-br", "addr", "show", "wan0"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("10.9.0.1/24"),
        "{output:?}"
    );
}

#[test]
fn nothing_is_left_also_after_a_panic_and_left_overs_are_no_obstacle() {
    let _turn = turn();
    let prefix = prefix("gone");
    let there = || {
        ["client", "a", "b", "server"]
            .iter()
            .filter(|host| Path::new(&format!("/run/netns/{prefix}-{host}")).exists())
            .count()
    };
    let wan = || Wan::symmetric(profile("delay=1ms"));
    let up = || Lab::up(&prefix, wan()).unwrap_or_else(|error| panic!("{error:#}"));
    let result = std::panic::catch_unwind(|| {
        let _lab = up();
        assert_eq!(there(), 4);
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert_eq!(result.unwrap_err().downcast_ref(), Some(&"on purpose"));
    assert_eq!(there(), 0);

    // What a killed process leaves: the namespaces.
    std::mem::forget(up());
    assert_eq!(there(), 4);
    let again = up();
    assert!(
        again
            .inside(Host::Client, || ping(server(true), ms(1000)))
            .is_ok()
    );
    drop(again);
    assert_eq!(there(), 0);
}

#[test]
fn a_served_lab_answers_changes_and_ends() {
    let _turn = turn();
    let prefix = prefix("serve");
    let folder = Scratch::new(&prefix).unwrap();
    let socket = folder.join("lab.sock");
    let wan = Wan::symmetric(profile("delay=10ms"));
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&prefix, Topology::Pair(wan), &socket));
        let end = Instant::now() + Duration::from_secs(5);
        while !socket.exists() {
            assert!(
                Instant::now() < end && !serving.is_finished(),
                "the lab does not come up"
            );
            std::thread::sleep(ms(10));
        }
        let shown = request(&socket, Request::Show).unwrap().text;
        assert!(
            shown.contains("A to B: delay=10ms") && shown.contains("10.10.2.2/24"),
            "{shown}"
        );
        request(
            &socket,
            Request::Set {
                a_to_b: profile("demo"),
                b_to_a: profile("loss=7%"),
            },
        )
        .unwrap();
        let shown = request(&socket, Request::Show).unwrap().text;
        assert!(
            shown.contains("A to B: rate=100mbit delay=50ms loss=1%")
                && shown.contains("B to A: loss=7%"),
            "{shown}"
        );
        let second = serve("x", Topology::Pair(Wan::Plain), &socket)
            .unwrap_err()
            .to_string();
        assert!(second.contains("answers"), "{second}");
        request(&socket, Request::Down).unwrap();
        serving.join().unwrap().unwrap();
    });
    assert!(!socket.exists());
    let error = request(&socket, Request::Show).unwrap_err().to_string();
    assert!(error.contains("is it up?"), "{error}");
}

#[test]
fn sites_reach_each_other_over_their_own_links() {
    let _turn = turn();
    let links = ["delay=10ms", "delay=20ms", "delay=30ms"].map(profile);
    let sites = Sites::up(&prefix("sites"), &links).unwrap_or_else(|error| panic!("{error:#}"));
    let time = |from, to: IpAddr| sites.inside(Place::Host(from), || ping(to, ms(2_000)));
    for (from, to, least) in [(1, 2, 60), (2, 3, 100), (3, 1, 80)] {
        for to in [Place::Host(to).v4(), Place::Host(to).v6()] {
            let took = time(from, to).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
            assert!(
                (ms(least)..ms(least + 20)).contains(&took),
                "{from} to {to}: {took:?}"
            );
        }
    }
    // One site's link cut: the others do not notice.
    sites.set(3, &profile("delay=30ms outage=0s+1h"));
    assert_eq!(
        time(1, Place::Host(3).v4()).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    time(1, Place::Host(2).v4()).unwrap();
    assert!(sites.stats(3).1.dropped_outage > 0);
}
