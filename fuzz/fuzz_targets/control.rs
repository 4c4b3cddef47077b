//! The control socket: any bytes as a request to a running server, and any bytes as a reply of one.
#![no_main]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use tpo::daemon::control::{Facts, Server};
use tpo::status::{FlowReport, StatusReport};
use tpo_lab::Scratch;

struct Quiet;

impl Facts for Quiet {
    fn status(&self) -> StatusReport {
        StatusReport::default()
    }
    fn flows(&self) -> Vec<FlowReport> {
        vec![FlowReport::default()]
    }
}

/// The folder stays: statics are never dropped.
static SERVER: LazyLock<(Server, Scratch)> = LazyLock::new(|| {
    let folder = Scratch::new("tpo-fuzz").expect("a folder for temporary files");
    let server = Server::start(&folder.join("control.sock"), Arc::new(Quiet)).expect("a socket in a folder of our own");
    (server, folder)
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = serde_json::from_slice::<StatusReport>(bytes) {
        serde_json::to_string(&report).expect("a report can be written");
    }
    if let Ok(flows) = serde_json::from_slice::<Vec<FlowReport>>(bytes) {
        serde_json::to_string(&flows).expect("flows can be written");
    }

    let mut client = UnixStream::connect(SERVER.1.join("control.sock")).expect("the server listens");
    // It may refuse and be gone before it has read everything.
    let _ = client.write_all(bytes).and_then(|()| client.write_all(b"\n"));
    let mut reply = Vec::new();
    if client.read_to_end(&mut reply).is_ok() {
        let reply: serde_json::Value = serde_json::from_slice(&reply).expect("whatever was asked, the reply is JSON");
        assert!(reply.get("ok").is_some() != reply.get("error").is_some());
    }
});
