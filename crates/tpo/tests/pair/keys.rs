//! What a pair shares beside its keys: with it at both ends all is as ever, at one end nothing
//! comes up, and each side says what it can know.

use crate::site::{Options, Pair, V4, accept, tpo, wait_for};
use tpo_lab::Host;

#[test]
fn a_pre_shared_key_is_needed_at_both_ends() {
    let options = Options {
        peer: "pre_shared_key_file = \"pair.psk\"",
        ..Options::default()
    };
    let mut pair = Pair::new(&options);
    let folder = pair.config(Host::A).parent().unwrap().to_owned();
    let made = tpo()
        .args(["keygen", "--pre-shared"])
        .arg(folder.join("pair.psk"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    pair.run(Host::A);
    pair.run(Host::B);
    pair.wait_up();
    let listener = pair.listen(V4);
    assert!(pair.is_accelerated(listener.local_addr().unwrap()));
    drop(accept(&listener));
    let status = pair.status(Host::A);
    assert!(
        status["peers"][0]["handshake"]["key_age"]
            .as_f64()
            .is_some_and(|age| age < 60.0),
        "{status}"
    );

    // B forgets it.
    pair.end(Host::B);
    let config = std::fs::read_to_string(pair.config(Host::B)).unwrap();
    std::fs::write(pair.config(Host::B), config.replace(options.peer, "")).unwrap();
    pair.run(Host::B);
    wait_for("both say why they are not up", || {
        [Host::A, Host::B].iter().all(|host| {
            let status = pair.status(*host);
            let peer = &status["peers"][0];
            let reason = peer["reason"].as_str().unwrap_or_default();
            peer["up"] == false
                && reason.contains("compare the public and the pre-shared keys")
                && status["strangers"]["wrong guard"].as_u64() > Some(0)
        })
    });
    let key = std::fs::read_to_string(folder.join("pair.psk")).unwrap();
    assert!(!pair.logs().contains(key.trim()));
}
