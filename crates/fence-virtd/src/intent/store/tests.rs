// SPDX-License-Identifier: GPL-2.0-or-later
//! The file of intents on a disk that takes some lines and not others.

use fence_core::intent::Intent;
use proptest::prelude::*;

use super::*;

/// Next step of a request for a domain, and whether the disk takes its line.
#[derive(Clone, Copy, Debug)]
struct CourseStep {
    domain: usize,
    then: StepKind,
    has_room: bool,
}

#[derive(Clone, Copy, Debug)]
enum StepKind {
    Begin,
    Owe,
    End,
    Audit,
}

fn step() -> impl Strategy<Value = CourseStep> {
    use StepKind::{Audit, Begin, End, Owe};
    let then = prop_oneof![Just(Begin), Just(Owe), Just(End), Just(Audit)];
    (0..2_usize, then, prop::bool::weighted(0.6)).prop_map(|(domain, then, has_room)| CourseStep {
        domain,
        then,
        has_room,
    })
}

/// Events of the steps: each is about the last request for its domain.
fn events(steps: &[CourseStep]) -> Vec<(IntentEvent, bool)> {
    let mut last = [0, 0];
    let mut next = 1;
    let of = |(step, number): (&CourseStep, u64)| match step.then {
        StepKind::Begin => IntentEvent::Begun(Box::new(intent(number, step.domain))),
        StepKind::Owe => IntentEvent::Owes { number, start: StartOwed::Definition },
        StepKind::End => IntentEvent::Ended { number, record: "{}".to_owned() },
        StepKind::Audit => IntentEvent::Audited { number },
    };
    let numbered = steps.iter().map(|step| {
        if last[step.domain] == 0 || matches!(step.then, StepKind::Begin) {
            last[step.domain] = next;
            next += 1;
            let begin = CourseStep { then: StepKind::Begin, ..*step };
            return (of((&begin, last[step.domain])), step.has_room);
        }
        (of((step, last[step.domain])), step.has_room)
    });
    numbered.collect()
}

fn intent(number: u64, domain: usize) -> Intent {
    let text = || String::new();
    Intent {
        number,
        boot: text(),
        at_ms: 0,
        id: number,
        transport: text(),
        peer: text(),
        source_domain: None,
        hash: text(),
        key: None,
        action: text(),
        target: text(),
        domain: text(),
        uuid: domain.to_string(),
        home: text(),
        known_source: None,
        peer_id: None,
    }
}

/// Numbers of the intents whose start the next daemon makes good.
fn starts(bytes: &[u8]) -> BTreeSet<u64> {
    let owes = |it: &UnfinishedIntent| matches!(it.remainder, IntentRemainder::Open { start: Some(_) });
    IntentFile::read(bytes).unfinished.iter().filter(|it| owes(it)).map(|it| it.intent.number).collect()
}

proptest! {
    // Each line waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No start is made good that a file with every line would not owe.
    #[test]
    fn a_line_that_finds_no_room_makes_no_start(steps in prop::collection::vec(step(), 1..24)) {
        let directory = tempfile::tempdir()?;
        let (mut writer, _) = IntentWriter::open(directory.path().to_owned())?;
        let mut whole = Vec::new();
        for (event, has_room) in events(&steps) {
            writer.longest = if has_room { LONGEST } else { 0 };
            let _ = writer.write(&event, None);
            whole.extend(event.line().into_bytes());
            let found = fs::read(directory.path().join(NAME))?;
            prop_assert!(starts(&found).is_subset(&starts(&whole)), "{}", String::from_utf8_lossy(&found));
        }
    }
}

/// Damage is told once. It stays where it may hide an order, or as long as an intent is open.
#[test]
fn a_damaged_file_is_emptied_when_nothing_in_it_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let open = || IntentWriter::open(directory.path().to_owned()).unwrap();
    let begun = IntentEvent::Begun(Box::new(intent(1, 0))).line();
    fs::write(&path, format!("torn\n{begun}torn too")).unwrap();
    for _ in 0..2 {
        let (_, read) = open();
        assert!(read.hides_order && read.damaged == 2 && read.unfinished.len() == 1);
    }
    let (mut writer, _) = open();
    writer.write(&IntentEvent::Cleared {}, None).unwrap();
    writer.write(&IntentEvent::Ended { number: 1, record: "{}".to_owned() }, None).unwrap();
    assert_eq!(IntentFile::read(&fs::read(&path).unwrap()).damaged, 2, "an intent is open");
    writer.write(&IntentEvent::Audited { number: 1 }, None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    drop(writer);
    // What a daemon without devices, which need not wait, or the last one, has left.
    fs::write(&path, format!("torn\n{}", IntentEvent::Cleared {}.line())).unwrap();
    let (_, read) = open();
    assert!(!read.hides_order && read.damaged == 1);
    assert_eq!(open().1.damaged, 0);
}

/// An order that could not be written down: the next daemon waits as if there were one.
#[test]
fn an_order_that_finds_no_room_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, _) = IntentWriter::open(directory.path().to_owned()).unwrap();
    writer.write(&IntentEvent::Begun(Box::new(intent(1, 0))), None).unwrap();
    writer.longest = 0;
    let order = fence_core::intent::DeviceOrder {
        order: 2,
        device: "d".to_owned(),
        plug: "1".to_owned(),
        starts: false,
        effect_ms: 1000,
    };
    writer.write(&IntentEvent::Ordered { number: 1, order }, None).unwrap_err();
    let read = IntentFile::read(&fs::read(directory.path().join(NAME)).unwrap());
    assert!(read.hides_order && read.damaged == 1);
}
