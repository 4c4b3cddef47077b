//! QUIC between two applications, with its own loss detection, rate control and path checks,
//! through the pair: a flow of UDP like any other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use tpo_lab::Host;

use crate::packets::{address, flows, udp};
use crate::site::{Options, Pair, V4, V6};

const PORT: u16 = 443;
/// Connections of which the middle one counts.
const IN_ORDER: usize = 7;

/// IPv6 gets late what comes back from parity; in IPv4 the others wait for that.
const RULES: &str = r#"
[[rule]]
protocol = "udp"
source = "fd10:1::/64"
destination = "fd10:2::/64"
destination_ports = "443"
peer = "b"

[[rule]]
protocol = "udp"
source = "10.10.1.0/24"
destination = "10.10.2.0/24"
destination_ports = "443"
peer = "b"
keep_order = true
"#;

const ACCEPTS: &str = r#"
[[accept]]
peer = "a"
protocol = "udp"
destination = "any"
"#;

/// How often the bytes of a request come back as its answer: 64 times 32 KiB are 2 MiB.
const TIMES: usize = 64;
const REQUEST: usize = 32_768;

/// An endpoint whose socket lives in `host`'s namespace.
fn endpoint(pair: &Pair, host: Host, at: SocketAddr, server: Option<ServerConfig>) -> Endpoint {
    let socket = udp(pair, host, at);
    Endpoint::new(
        EndpointConfig::default(),
        server,
        socket,
        Arc::new(TokioRuntime),
    )
    .expect("an endpoint")
}

async fn serve(server: Endpoint) {
    while let Some(incoming) = server.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await.expect("a handshake");
            // The server's last word in the first stream is whom it sees.
            let peer = connection.remote_address().to_string();
            while let Ok((mut answer, mut request)) = connection.accept_bi().await {
                let asked = request.read_to_end(REQUEST).await.expect("a request");
                for _ in 0..TIMES {
                    answer.write_all(&asked).await.expect("room for the answer");
                }
                answer
                    .write_all(peer.as_bytes())
                    .await
                    .expect("room for the answer");
                answer.finish().expect("an open stream");
            }
        });
    }
}

/// Whom the server sees.
async fn ask(connection: &Connection, fill: u8) -> String {
    let (mut request, mut answer) = connection.open_bi().await.expect("a stream");
    let asked: Vec<u8> = (0..REQUEST).map(|at| (at % 241) as u8 ^ fill).collect();
    request
        .write_all(&asked)
        .await
        .expect("room for the request");
    request.finish().expect("an open stream");
    let came = answer
        .read_to_end(TIMES * REQUEST + 100)
        .await
        .expect("the whole answer");
    let (content, peer) = came.split_at(TIMES * REQUEST);
    assert!(
        content.chunks(REQUEST).all(|chunk| chunk == asked),
        "the answer is what was asked for"
    );
    String::from_utf8(peer.to_vec()).expect("an address")
}

#[test]
fn quic_crosses_with_the_clients_address_and_keeps_its_connection() {
    let mut pair = Pair::start(&Options {
        wan: "rate=100mbit delay=20ms loss=1%",
        sections: [RULES, ACCEPTS],
        ..Options::default()
    });
    let signed = rcgen::generate_simple_self_signed(["server".to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = signed.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let trusts =
        ClientConfig::with_root_certificates(Arc::new(roots)).expect("a client's configuration");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut middle = Vec::new();
    runtime.block_on(async {
        for (host, any, count) in [(V4, "0.0.0.0:0", 1), (V6, "[::]:0", 2)] {
            let serves =
                ServerConfig::with_single_cert(vec![certificate.clone()], key.clone_key().into())
                    .expect("a server's configuration");
            let server = endpoint(&pair, Host::Server, address(host, PORT), Some(serves));
            tokio::spawn(serve(server));
            let client = endpoint(&pair, Host::Client, any.parse().unwrap(), None);
            let port = client.local_addr().unwrap().port();
            let own = SocketAddr::new(
                if host == V4 { "10.10.1.2" } else { "fd10:1::2" }
                    .parse()
                    .unwrap(),
                port,
            );
            let connect = async || {
                let server = address(host, PORT);
                client
                    .connect_with(trusts.clone(), server, "server")
                    .expect("a server's name")
                    .await
                    .expect("a handshake")
            };
            // A loss in the first round trips holds a connection back for seconds, and chance
            // decides which: each has its own.
            let mut took = Vec::new();
            for _ in 0..if host == V4 { IN_ORDER } else { 1 } {
                let (connection, start) = (connect().await, Instant::now());
                assert_eq!(
                    ask(&connection, 1).await,
                    own.to_string(),
                    "the server sees the client"
                );
                took.push(start.elapsed());
            }
            println!(
                "2 MiB, {}: {took:?}",
                if host == V4 {
                    "in order"
                } else {
                    "as they come"
                }
            );
            took.sort_unstable();
            middle.push(took[took.len() / 2]);
            let connection = connect().await;
            assert_eq!(
                ask(&connection, 1).await,
                own.to_string(),
                "the server sees the client"
            );
            let seen = flows(&pair, Host::A, 17);
            assert_eq!(seen.len(), count, "one flow for each connection: {seen:?}");
            assert!(
                seen.iter()
                    .all(|(sent, received)| *sent > 30_000 && *received > 2_000_000),
                "{seen:?}"
            );
            // Four at once: streams of one connection.
            let answers = [2, 3, 4, 5].map(|fill| {
                let connection = connection.clone();
                tokio::spawn(async move { ask(&connection, fill).await })
            });
            for answer in answers {
                assert_eq!(answer.await.expect("an answer"), own.to_string());
            }
            // One daemon is killed and starts again: the connection does not notice more than a
            // pause.
            pair.kill(Host::B);
            pair.run(Host::B);
            let after = tokio::time::timeout(Duration::from_secs(20), ask(&connection, 6))
                .await
                .expect("an answer");
            assert_eq!(after, own.to_string());
            pair.wait_up();
        }
    });
    // 0.6 s in order; without order mostly 2 to 5.
    assert!(middle[0] < Duration::from_millis(1_500), "{middle:?}");
}
