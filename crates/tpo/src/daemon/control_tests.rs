use super::*;
use tpo_lab::Scratch;

struct Sample;

impl Facts for Sample {
    fn status(&self) -> StatusReport {
        StatusReport {
            name: "paris".into(),
            ..StatusReport::default()
        }
    }
    fn flows(&self) -> Vec<FlowReport> {
        (0..20_000)
            .map(|id| FlowReport {
                id,
                peer: "lyon".into(),
                ..FlowReport::default()
            })
            .collect()
    }
}

/// A folder of its own for each test, removed at its end.
struct Folder(Scratch);

impl Folder {
    fn new(test: &str) -> Folder {
        Folder(Scratch::new(&format!("tpo-control-{test}")).unwrap())
    }
    fn socket(&self) -> PathBuf {
        self.0.join("tpo.sock")
    }
}

fn start(path: &Path) -> anyhow::Result<Server> {
    Server::start(path, Arc::new(Sample))
}

#[test]
fn it_answers_and_leaves_nothing_behind() {
    let folder = Folder::new("answers");
    let server = start(&folder.socket()).unwrap();
    assert_eq!(
        fs::metadata(server.bound.path())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o660
    );
    assert_eq!(status(&folder.socket()).unwrap().name, "paris");
    assert_eq!(flows(&folder.socket()).unwrap().len(), 20_000);
    drop(server);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 0);
    assert!(matches!(
        status(&folder.socket()),
        Err(AskError::NotRunning { .. })
    ));
}

#[test]
fn a_live_daemon_is_refused_and_a_dead_ones_socket_is_replaced() {
    let folder = Folder::new("stale");
    let path = folder.socket();
    let server = start(&path).unwrap();
    let refused = start(&path).unwrap_err().to_string();
    assert!(refused.contains("another tpo is running"), "{refused}");
    assert_eq!(
        status(&path).unwrap().name,
        "paris",
        "the first one is not disturbed"
    );
    drop(server);
    // A listener that is dropped without removing its file is what a killed daemon leaves.
    drop(UnixListener::bind(&path).unwrap());
    let server = start(&path).unwrap();
    assert_eq!(status(&path).unwrap().name, "paris");
    drop(server);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Folder::new("file");
    fs::write(folder.socket(), "precious").unwrap();
    let refused = start(&folder.socket()).unwrap_err().to_string();
    assert!(refused.contains("is no socket"), "{refused}");
    assert_eq!(fs::read_to_string(folder.socket()).unwrap(), "precious");
}

#[test]
fn a_socket_that_is_not_ours_any_more_is_not_removed() {
    let folder = Folder::new("foreign");
    let server = start(&folder.socket()).unwrap();
    fs::remove_file(folder.socket()).unwrap();
    let _other = UnixListener::bind(folder.socket()).unwrap();
    drop(server);
    assert!(folder.socket().exists());
}

fn say(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

#[test]
fn nonsense_gets_one_line_of_refusal() {
    let folder = Folder::new("nonsense");
    let _server = start(&folder.socket()).unwrap();
    for request in [
        "\n",
        "{}\n",
        "{\"request\":\"shutdown\"}\n",
        "{\"request\":\"status\",\"x\":1}\n",
        "\u{0}\u{1}\n",
    ] {
        let reply = say(&folder.socket(), request.as_bytes());
        assert!(
            reply.starts_with("{\"error\":\"not a request"),
            "{request:?}: {reply:?}"
        );
    }
    // A client that never ends its line is let go at the limit (what it still had to say may cost
    // it the reply).
    say(&folder.socket(), &[b'x'; 4 << 20]);
    assert_eq!(status(&folder.socket()).unwrap().name, "paris");
}

#[test]
fn clients_that_hang_take_their_places_and_no_more() {
    let folder = Folder::new("hang");
    let _server = start(&folder.socket()).unwrap();
    let hanging: Vec<UnixStream> = (0..CLIENTS)
        .map(|_| UnixStream::connect(folder.socket()).unwrap())
        .collect();
    // The connections are accepted in order, so this one finds all places taken.
    match status(&folder.socket()) {
        Err(AskError::Refused(why)) => {
            assert!(why.contains("too many") || why.contains("nothing"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    drop(hanging);
    let freed = (0..500).any(|_| {
        thread::sleep(Duration::from_millis(10));
        status(&folder.socket()).is_ok()
    });
    assert!(freed, "places are given back");
}
