//! Resets, restarts, and peers that are gone.

use super::*;

#[test]
fn data_then_the_reset() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let flow = FlowId(FAR);
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    driver.accept(flow);
    events(&mut driver);
    driver.unpack(
        message(Function::Reset, FAR, 6, Form::Status(6, Status::Reset), b""),
        now,
    );
    driver.readable(flow, now);
    assert_eq!(
        (events(&mut driver), driver.ready_count()),
        (vec![], 0),
        "it waits for the data, and sends nothing more"
    );
    driver.delivered(flow, 3, now);
    driver.unpack(message(Function::Data, FAR, 3, Form::Short, b"def"), now);
    assert_eq!(events(&mut driver), [Event::Deliver { flow }]);
    driver.delivered(flow, 2, now);
    assert_eq!(events(&mut driver), []);
    driver.delivered(flow, 1, now);
    assert_eq!(
        events(&mut driver),
        [Event::Reset {
            flow,
            status: Status::Reset
        }]
    );
    assert_eq!(driver.flow_count(), 0);

    // Other kinds do not wait.
    driver.unpack(message(Function::Data, FAR + 1, 0, full(), b"abc"), now);
    driver.accept(FlowId(FAR + 1));
    driver.unpack(
        message(
            Function::Reset,
            FAR + 1,
            6,
            Form::Status(6, Status::NoResources),
            b"",
        ),
        now,
    );
    let reset = Event::Reset {
        flow: FlowId(FAR + 1),
        status: Status::NoResources,
    };
    assert_eq!(events(&mut driver).last(), Some(&reset));
    assert_eq!(driver.held(), 0);
}

#[test]
fn a_reset_does_not_wait_for_a_reader_that_stopped() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let flow = FlowId(FAR);
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    driver.accept(flow);
    driver.unpack(
        message(Function::Reset, FAR, 3, Form::Status(6, Status::Reset), b""),
        now,
    );
    events(&mut driver);
    driver.handle_timeout(now + Duration::from_secs(9));
    driver.delivered(flow, 1, now + Duration::from_secs(9));
    driver.handle_timeout(now + Duration::from_secs(11));
    assert_eq!(events(&mut driver), [], "it took a byte");
    driver.handle_timeout(now + Duration::from_secs(22));
    assert_eq!(
        events(&mut driver),
        [Event::Reset {
            flow,
            status: Status::Reset
        }]
    );
}

#[test]
fn a_restart_ends_all_flows_and_new_ones_run() {
    let mut pair = Pair::new(
        3,
        Limits::default(),
        [
            vec![
                Script::new(Plan::bytes(50_000_000), Plan::bytes(1000)),
                Script::new(Plan::bytes(0), Plan::bytes(50_000_000)),
            ],
            vec![],
        ],
    );
    for _ in 0..50 {
        pair.tick();
    }
    // Side 1 restarts: a new driver, new applications; nothing of the old instance arrives.
    pair.flying = [vec![], vec![]];
    pair.drivers[1] = new_driver(Limits::default(), true);
    pair.apps[1] = Apps::new(1, vec![], vec![], pair.now);
    pair.drivers[0].on_restarted();
    for driver in &mut pair.drivers {
        driver.on_connected(true, Limits::default().initial_credit);
    }
    pair.tick();
    for number in 0..2 {
        assert_eq!(
            pair.apps[0].end(0, number).saw_reset,
            Some(Status::PeerRestarted)
        );
    }
    for apps in &mut pair.apps {
        assert_eq!(apps.alive(), 0);
    }
    let again = Script::new(Plan::bytes(100_000), Plan::bytes(100_000));
    let number = pair.apps[0].add(again.clone(), 2);
    pair.apps[1].add_other(again, number);
    pair.run(Duration::from_secs(5));
    assert!(pair.apps[0].end(0, number).saw_closed && pair.apps[1].end(0, number).saw_closed);
    assert_eq!(
        (pair.drivers[0].held(), pair.drivers[1].flow_count()),
        (0, 0)
    );
}

#[test]
fn a_dead_peer_takes_all_flows_with_it() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let ours = driver.open(key(0, 0), Class::Normal, now).unwrap();
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    events(&mut driver);
    driver.on_dead(Status::PeerRestarted);
    let status = Status::PeerRestarted;
    assert_eq!(
        events(&mut driver),
        [
            Event::Reset { flow: ours, status },
            Event::Reset {
                flow: FlowId(FAR),
                status
            },
            Event::Dead
        ]
    );
    assert_eq!(
        driver.open(key(0, 0), Class::Normal, now),
        Err(OpenError::NotConnected)
    );
    assert!(!driver.has_work() && driver.held() == 0);
    driver.on_connected(true, 1000);
    assert_eq!(events(&mut driver), [Event::Connected { fresh: true }]);
    driver.open(key(0, 0), Class::Normal, now).unwrap();
}
