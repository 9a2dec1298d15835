// SPDX-License-Identifier: GPL-2.0-or-later
//! The format of intents: what a cut or damaged file may lose, and what it must never make.

use proptest::prelude::*;

use super::*;

fn intent(number: u64, uuid: u8) -> Intent {
    Intent {
        number,
        boot: "boot".to_owned(),
        at_ms: 1000,
        id: number,
        transport: "tcp".to_owned(),
        peer: "192.0.2.1".to_owned(),
        source_domain: None,
        hash: "sha256".to_owned(),
        key: Some("f00d".to_owned()),
        action: "reboot".to_owned(),
        target: "vm\n1".to_owned(),
        domain: "vm1".to_owned(),
        uuid: uuid.to_string(),
        home: "here".to_owned(),
        known_source: None,
        peer_id: None,
    }
}

fn order(order: u64, device: &str) -> DeviceOrder {
    let (device, plug) = (device.to_owned(), "9".to_owned());
    DeviceOrder { order, device, plug, starts: false, effect_ms: 60_000 }
}

fn expiry(until_ms: u64) -> OrderExpiry {
    OrderExpiry { boot: "boot".to_owned(), until_ms, is_claimed: true }
}

/// Returns the events of one request to a device up to any step.
fn device_course(number: u64, steps: usize) -> Vec<IntentEvent> {
    let mut intent = intent(number, 1);
    (intent.home, intent.action) = (DEVICE_HOME.to_owned(), "off".to_owned());
    let (order, expiry) = (order(7, "bmc"), expiry(90_000));
    let all = vec![
        IntentEvent::Begun(Box::new(intent)),
        IntentEvent::Ordered { number, order },
        IntentEvent::Expires { number, order: 7, expiry },
        IntentEvent::Ended { number, record: "{}".to_owned() },
        IntentEvent::Audited { number },
        IntentEvent::Settled { number, order: 7 },
    ];
    all.into_iter().take(steps).collect()
}

/// A daemon that ended in the middle of a power-off here leaves an order until it has told the end.
#[test]
fn a_power_off_at_a_hypervisor_may_come_after_its_daemon() {
    let mut here = intent(1, 1);
    (here.home, here.action) = (HYPERVISOR_HOME.to_owned(), "off".to_owned());
    let begun = |intent: &Intent| IntentEvent::Begun(Box::new(intent.clone()));
    let ended = IntentEvent::Ended { number: 1, record: String::new() };
    let owes = IntentEvent::Owes { number: 1, start: StartOwed::Definition };
    let boot = here.boot.clone();
    assert_eq!(rests(&[begun(&here)], &boot, 10), [HYPERVISOR_EFFECT_MS]);
    assert_eq!(rests(&[begun(&here), ended], &boot, 10), [0; 0]);
    // The hypervisor ended with the boot.
    let read = IntentFile::read(&file(&[begun(&here)]));
    assert_eq!(read.unfinished[0].orders_left(0, "another boot"), []);
    assert_eq!(read.unfinished[0].orders_left(0, ""), []);
    here.action = "reboot".to_owned();
    assert_eq!(rests(&[begun(&here), owes], &boot, 10), [HYPERVISOR_EFFECT_MS]);
    here.action = "on".to_owned();
    assert_eq!(rests(&[begun(&here)], &boot, 10), [0; 0]);
    (here.home, here.action) = ("another host".to_owned(), "off".to_owned());
    assert_eq!(rests(&[begun(&here)], &boot, 10), [0; 0]);
}

/// A daemon that ended in the middle of a start here leaves an order, whatever it told its client.
#[test]
fn a_start_at_a_hypervisor_may_come_after_its_daemon() {
    for (action, is_told) in [("on", false), ("on", true), ("reboot", false), ("reboot", true)] {
        let mut here = intent(1, 1);
        (here.home, here.action) = (HYPERVISOR_HOME.to_owned(), action.to_owned());
        let boot = here.boot.clone();
        let order = DeviceOrder { order: 7, ..DeviceOrder::at_hypervisor(true) };
        let mut events = vec![
            IntentEvent::Begun(Box::new(here)),
            IntentEvent::Ordered { number: 1, order: order.clone() },
        ];
        if is_told {
            events.push(IntentEvent::Ended { number: 1, record: String::new() });
            events.push(IntentEvent::Audited { number: 1 });
        }
        assert_eq!(rests(&events, &boot, 10), [HYPERVISOR_START_MS], "{action} {is_told}");
        let read = IntentFile::read(&file(&events));
        let left = read.unfinished[0].orders_left(0, &boot);
        assert_eq!(left.iter().map(|it| it.order.clone()).collect::<Vec<_>>(), [order]);
        let is_over = |boot| read.unfinished[0].is_over_with_boot(&left[0], boot);
        assert_eq!([boot.as_str(), "another boot", ""].map(is_over), [false, true, false]);
        events.push(IntentEvent::Settled { number: 1, order: 7 });
        let read = IntentFile::read(&file(&events));
        let mut orders = read.unfinished.iter().flat_map(|it| it.orders_left(0, &boot));
        assert!(!orders.any(|it| it.order.starts), "{action} {is_told}");
    }
}

/// Returns the milliseconds for which the one left intent still holds something up, at this time.
fn rests(events: &[IntentEvent], boot: &str, now_ms: u64) -> Vec<u64> {
    let read = IntentFile::read(&file(events));
    let orders = read.unfinished.iter().flat_map(|it| it.orders_left(30_000, "boot"));
    orders.map(|it| it.rest_ms(boot, now_ms)).collect()
}

/// Returns the events of one request up to any step.
fn course(number: u64, uuid: u8, steps: usize, xml: bool) -> Vec<IntentEvent> {
    let start = if xml { StartOwed::Xml { uri: "test:///x".to_owned() } } else { StartOwed::Definition };
    let all = vec![
        IntentEvent::Begun(Box::new(intent(number, uuid))),
        IntentEvent::Owes { number, start },
        IntentEvent::Ended { number, record: format!("{{\"id\":{number}}}") },
        IntentEvent::Audited { number },
    ];
    all.into_iter().take(steps).collect()
}

/// The events of several requests, each in its order, mixed.
fn events() -> impl Strategy<Value = Vec<IntentEvent>> {
    let one = (0_u8..3, 1_usize..5, any::<bool>());
    (prop::collection::vec(one, 1..8), prop::collection::vec(any::<prop::sample::Index>(), 40)).prop_map(
        |(requests, picks)| {
            let mut courses: Vec<Vec<IntentEvent>> = requests
                .into_iter()
                .enumerate()
                .map(|(at, (uuid, steps, xml))| {
                    let mut course = course(at as u64 + 1, uuid, steps, xml);
                    course.reverse();
                    course
                })
                .collect();
            let mut mixed = Vec::new();
            for pick in picks {
                courses.retain(|it| !it.is_empty());
                if courses.is_empty() {
                    break;
                }
                let at = pick.index(courses.len());
                mixed.extend(courses[at].pop());
            }
            mixed
        },
    )
}

fn file(events: &[IntentEvent]) -> Vec<u8> {
    events.iter().flat_map(|it| it.line().into_bytes()).collect()
}

fn starts(file: &IntentFile) -> BTreeSet<u64> {
    let due = file.unfinished.iter().filter(|it| it.start_due("boot", 2000).is_ok());
    due.map(|it| it.intent.number).collect()
}

#[test]
fn literal_bytes() {
    let line = IntentEvent::Audited { number: 7 }.line();
    assert_eq!(line, "cde81104b4e6e8c5 {\"audited\":{\"number\":7}}\n");
}

#[test]
fn a_start_is_due_for_a_while_and_in_the_same_boot() {
    let read = IntentFile::read(&file(&course(1, 1, 2, false)));
    let [left] = &read.unfinished[..] else { panic!("{read:?}") };
    assert_eq!(left.start_due("boot", 1000 + START_AGE_MS), Ok(&StartOwed::Definition));
    assert!(left.start_due("boot", 1001 + START_AGE_MS).is_err());
    assert!(left.start_due("boot", 999).is_err());
    assert!(left.start_due("other", 1000).is_err() && left.start_due("", 1000).is_err());
}

#[test]
fn a_later_request_for_the_domain_takes_the_start_away() {
    let mut events = course(1, 1, 2, false);
    events.push(IntentEvent::Begun(Box::new(intent(2, 1))));
    assert_eq!(starts(&IntentFile::read(&file(&events))), BTreeSet::new());
    events.push(IntentEvent::Owes { number: 1, start: StartOwed::Definition });
    assert_eq!(starts(&IntentFile::read(&file(&events))), BTreeSet::new());
    events.push(IntentEvent::Owes { number: 2, start: StartOwed::Definition });
    assert_eq!(starts(&IntentFile::read(&file(&events))), BTreeSet::from([2]));
}

#[test]
fn an_order_is_known_until_it_is_settled_also_when_its_request_is_over() {
    // Begun: no line tells whether it was ordered.
    assert_eq!(rests(&device_course(1, 1), "boot", 5000), [30_000]);
    // The agent may have run until the daemon ended.
    assert_eq!(rests(&device_course(1, 2), "boot", 5000), [60_000]);
    for steps in 3..6 {
        let events = device_course(1, steps);
        assert_eq!(rests(&events, "boot", 50_000), [40_000], "{steps}");
        assert_eq!(rests(&events, "boot", 90_000), [0], "{steps}");
        // Never longer than all of its time, whatever the file says.
        assert_eq!(rests(&events, "boot", 1), [60_000], "{steps}");
        // The device has not booted with the host.
        assert_eq!(rests(&events, "other", 50_000), [60_000], "{steps}");
        assert_eq!(rests(&events, "", 50_000), [60_000], "{steps}");
    }
    let read = IntentFile::read(&file(&device_course(1, 5)));
    assert_eq!(read.unfinished[0].remainder, IntentRemainder::Orders);
    assert_eq!(read.next, 8);
    assert_eq!(IntentFile::read(&file(&device_course(1, 6))).unfinished, []);
    let mut early = device_course(1, 6);
    early.swap(3, 5);
    assert_eq!(IntentFile::read(&file(&early)).unfinished, []);
}

#[test]
fn what_a_hypervisor_was_told_is_not_late() {
    assert_eq!(rests(&course(1, 1, 1, false), "boot", 5000), [0_u64; 0]);
}

#[test]
fn an_order_covers_those_before_and_is_covered_by_them() {
    let mut events = device_course(1, 3);
    events.push(IntentEvent::Ordered { number: 1, order: order(8, "bmc") });
    let covered = |events: &[IntentEvent]| -> Vec<bool> {
        IntentFile::read(&file(events)).unfinished[0].orders.iter().map(|it| it.is_covered).collect()
    };
    assert_eq!(covered(&events), [true, true]);
    events.push(IntentEvent::Ordered { number: 1, order: order(9, "pdu") });
    assert_eq!(covered(&events), [true, true, true]);
    let mut settled = device_course(1, 3);
    settled.push(IntentEvent::Settled { number: 1, order: 7 });
    settled.push(IntentEvent::Ordered { number: 1, order: order(8, "bmc") });
    assert_eq!(covered(&settled), [false], "the first one had its effect");
}

#[test]
fn a_damaged_line_may_hide_an_order_until_it_was_waited_for() {
    let mut lines = file(&device_course(1, 6));
    assert!(!IntentFile::read(&lines).hides_order);
    lines.extend(b"junk\n");
    assert!(IntentFile::read(&lines).hides_order);
    lines.extend(IntentEvent::Cleared {}.line().into_bytes());
    let read = IntentFile::read(&lines);
    assert!(!read.hides_order && read.damaged == 1);
}

/// Lines of a daemon that knew no orders.
#[test]
fn old_lines_are_read() {
    let json = concat!(
        r#"{"begun":{"number":1,"boot":"boot","at_ms":1000,"id":1,"transport":"tcp","peer":"p","#,
        r#""source_domain":null,"hash":"sha256","key":null,"action":"off","target":"x","domain":"x","#,
        r#""uuid":"1","home":"a device"}}"#
    );
    let line = format!("{} {json}\n", check(json.as_bytes()));
    let read = IntentFile::read(line.as_bytes());
    assert_eq!((read.damaged, read.numbers()), (0, BTreeSet::from([1])));
    assert_eq!(read.unfinished[0].orders_left(30_000, "boot").len(), 1);
}

proptest! {
    /// Cut or damaged anywhere: an order that the whole file holds up is held up, or a line is known to be
    /// damaged that may have told of it.
    #[test]
    fn damage_never_takes_an_order_away(
        steps in 1_usize..6,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = file(&device_course(1, steps));
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let read = IntentFile::read(&bytes);
        let orders = read.unfinished.iter().flat_map(|it| it.orders_left(30_000, "boot"));
        let held = orders.into_iter().any(|it| it.rest_ms("boot", 5000) > 0);
        prop_assert!(held || read.hides_order);
    }

    /// Reads back what the events say: nothing of a request with its last line, all of the others.
    #[test]
    fn round_trip(events in events()) {
        let read = IntentFile::read(&file(&events));
        let (mut begun, mut over, mut ended) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for event in &events {
            match event {
                IntentEvent::Begun(it) => drop(begun.insert(it.number)),
                IntentEvent::Audited { number } => drop(over.insert(*number)),
                IntentEvent::Ended { number, .. } => drop(ended.insert(*number)),
                _ => {}
            }
        }
        prop_assert_eq!(read.damaged, 0);
        prop_assert_eq!(read.numbers(), begun.difference(&over).copied().collect::<BTreeSet<_>>());
        prop_assert!(starts(&read).is_disjoint(&ended));
        prop_assert!(read.next > events.iter().filter_map(IntentEvent::number).max().unwrap_or(0));
    }

    /// Cut anywhere: as if the events from there on had never been, but for a start, which a cut line takes
    /// away.
    #[test]
    fn a_cut_costs_the_last_line(events in events(), cut in any::<prop::sample::Index>()) {
        let whole = file(&events);
        let at = cut.index(whole.len() + 1);
        let lines = whole[..at].iter().filter(|it| **it == b'\n').count();
        let (read, expected) = (IntentFile::read(&whole[..at]), IntentFile::read(&file(&events[..lines])));
        prop_assert_eq!(read.numbers(), expected.numbers());
        let torn = at > 0 && whole[at - 1] != b'\n';
        prop_assert_eq!(read.damaged, usize::from(torn));
        if torn {
            prop_assert_eq!(starts(&read), BTreeSet::new());
        } else {
            prop_assert_eq!(read, expected);
        }
    }

    /// Bytes that changed, anywhere and to anything: no start is made that the whole file would not make.
    #[test]
    fn damage_never_makes_a_start(
        events in events(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let whole = file(&events);
        let mut bytes = whole.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let (read, expected) = (IntentFile::read(&bytes), IntentFile::read(&whole));
        prop_assert!(starts(&read).is_subset(&starts(&expected)), "{:?} {:?}", read, expected);
    }

    /// Lines that are lost as a whole, with junk in their place.
    #[test]
    fn junk_in_the_place_of_a_line(
        events in events(),
        at in any::<prop::sample::Index>(),
        junk in "[^\n]{0,80}",
    ) {
        let mut lines: Vec<Vec<u8>> = events.iter().map(|it| it.line().into_bytes()).collect();
        let at = at.index(lines.len());
        lines[at] = format!("{junk}\n").into_bytes();
        let (read, expected) = (IntentFile::read(&lines.concat()), IntentFile::read(&file(&events)));
        prop_assert_eq!(read.damaged, 1);
        prop_assert!(starts(&read).is_subset(&starts(&expected)));
    }
}
