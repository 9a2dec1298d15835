// SPDX-License-Identifier: GPL-2.0-or-later
//! Form of the messages, and everything that may be read instead of them.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn text(limit: usize) -> impl Strategy<Value = String> {
    any::<String>().prop_map(move |mut it| {
        it.truncate(it.floor_char_boundary(limit));
        it
    })
}

fn member() -> impl Strategy<Value = Member> {
    any::<(u32, u32)>().prop_map(Member::from)
}

fn what() -> impl Strategy<Value = AskAction> {
    prop::sample::select(vec![AskAction::Status, AskAction::On, AskAction::Off, AskAction::Reboot])
}

fn claim() -> impl Strategy<Value = ClaimMessage> {
    let source = prop::option::of(text(ID_LIMIT));
    let peer = prop::option::of(text(ID_LIMIT));
    let possible = prop::option::of(vec(text(ID_LIMIT), 0..POSSIBLE_LIMIT / 2));
    let possible = possible.prop_map(|it| it.map(|them| Box::new(PossibleSources::new(&them, &them))));
    let name = prop::option::of(text(ID_LIMIT).prop_map(|it| TargetName::from(it.as_str())));
    let numbers = (any::<u64>(), prop::option::of(any::<u64>()));
    (numbers, what(), text(ID_LIMIT), source, peer, possible, name).prop_map(
        |((id, term_ms), what, target, source, peer, possible, name)| ClaimMessage {
            id,
            what,
            target,
            source,
            peer,
            possible,
            name,
            term_ms,
        },
    )
}

fn held() -> impl Strategy<Value = InFlightClaim> {
    (claim(), any::<(bool, bool, bool, bool)>()).prop_map(|(claim, (seen_off, lingers, answered, hangs))| {
        InFlightClaim { claim, seen_off, lingers, answered, hangs }
    })
}

fn outcome() -> impl Strategy<Value = AskOutcome> {
    let response = (0_u8..4).prop_map(|it| Response::from_number(it).unwrap());
    let done = (response, prop::option::of(any::<String>()))
        .prop_map(|(response, reason)| AskOutcome::new(response, reason.as_deref()));
    let forecast = prop_oneof![
        Just(AskForecast::Done),
        any::<String>().prop_map(AskForecast::Uncertain),
        any::<String>().prop_map(AskForecast::Fails),
    ];
    prop_oneof![
        3 => done,
        1 => any::<String>().prop_map(|why| AskOutcome::not_started(&why)),
        1 => forecast.prop_map(|it| AskOutcome::with_forecast(&it)),
    ]
}

fn domain() -> impl Strategy<Value = PublishedDomain> {
    let state = prop::sample::select(vec![
        PublishedState::On,
        PublishedState::Off,
        PublishedState::Gone,
        PublishedState::Rests,
    ]);
    (text(ID_LIMIT), text(NAME_LIMIT), state, any::<bool>())
        .prop_map(|(uuid, name, state, is_away)| PublishedDomain { uuid, name, state, is_away })
}

fn ask() -> impl Strategy<Value = AskMessage> {
    let (uuid, name) = (text(ID_LIMIT), text(NAME_LIMIT));
    let numbers = any::<(u64, u64, u64)>();
    (member(), what(), uuid, name, prop::option::of(claim()), numbers, prop::option::of(what())).prop_map(
        |(to, what, uuid, name, claim, (ask, left_ms, request), dry_run)| AskMessage {
            to,
            ask,
            what,
            uuid,
            name,
            rests: request % 2 == 0,
            claim,
            left_ms,
            request,
            dry_run,
        },
    )
}

fn acting() -> impl Strategy<Value = ActingClaim> {
    (member(), any::<u64>(), held()).prop_map(|(asker, ask, held)| ActingClaim { asker, ask, held })
}

fn message() -> impl Strategy<Value = HostMessage> {
    let claims = (vec(held(), 0..3), vec(claim(), 0..3), vec(acting(), 0..3));
    let sync =
        (any::<u64>(), claims, any::<(bool, bool)>()).prop_map(|(n, (in_flight, waiting, acting), knows)| {
            let (tells_earlier, knows_orders) = knows;
            HostMessage::Sync(StateSync { n, in_flight, waiting, acting, tells_earlier, knows_orders })
        });
    let end = || {
        prop_oneof![
            outcome().prop_map(AskEnd::Done),
            Just(AskEnd::NotHere),
            any::<String>().prop_map(|it| AskEnd::NothingDone(cut(&it))),
        ]
    };
    let numbers = || (member(), any::<u64>(), any::<u64>());
    prop_oneof![
        sync,
        any::<u64>().prop_map(|n| HostMessage::Ready { n }),
        (member(), vec(held(), 0..3), vec(acting(), 0..3))
            .prop_map(|(member, in_flight, acting)| { HostMessage::PassOver { member, in_flight, acting } }),
        claim().prop_map(HostMessage::Claim),
        any::<u64>().prop_map(|id| HostMessage::Withdraw { id }),
        (any::<u64>(), text(ID_LIMIT)).prop_map(|(id, victim)| HostMessage::SeenOff { id, victim }),
        any::<u64>().prop_map(|id| HostMessage::Again { id }),
        (any::<u64>(), outcome()).prop_map(|(id, outcome)| HostMessage::Answered { id, outcome }),
        (any::<u64>(), outcome()).prop_map(|(id, outcome)| HostMessage::Lingers { id, outcome }),
        (member(), any::<u64>(), any::<Option<u64>>()).prop_map(|(asker, claim, ask)| HostMessage::Hangs {
            asker,
            claim,
            ask
        }),
        (any::<u64>(), outcome()).prop_map(|(id, outcome)| HostMessage::Finished { id, outcome }),
        (member(), any::<u64>(), prop::option::of(any::<u64>()))
            .prop_map(|(asker, id, ask)| HostMessage::Holds { asker, id, ask }),
        (member(), member(), any::<(u64, u64)>(), prop::option::of(any::<u64>())).prop_map(
            |(member, asker, (id, renewed), ask)| HostMessage::Overdue { member, asker, id, ask, renewed }
        ),
        ask().prop_map(HostMessage::Ask),
        (member(), any::<u64>()).prop_map(|(to, ask)| HostMessage::Cancel { to, ask }),
        numbers().prop_map(|(to, ask, left_ms)| HostMessage::Go { to, ask, left_ms }),
        numbers().prop_map(|(asker, ask, claim)| HostMessage::Taken { asker, ask, claim }),
        (numbers(), text(ID_LIMIT)).prop_map(|((asker, ask, claim), victim)| HostMessage::Progress {
            asker,
            ask,
            claim,
            victim,
            was_off: ask % 2 == 0,
            starts: ask % 3 == 0,
        }),
        (member(), any::<u64>(), end()).prop_map(|(asker, ask, end)| HostMessage::EarlyReply {
            asker,
            ask,
            end
        }),
        (member(), any::<u64>(), any::<Option<u64>>(), end())
            .prop_map(|(asker, ask, claim, end)| HostMessage::Reply { asker, ask, claim, end }),
        (any::<(bool, bool)>(), vec(domain(), 0..4))
            .prop_map(|((first, last), domains)| HostMessage::Inventory { first, last, domains }),
        vec((text(ID_LIMIT), any::<u64>(), vec(any::<u32>(), 0..3)), 0..4).prop_map(|offs| {
            let off = |(uuid, age_ms, nodes)| RecentOff { uuid, age_ms, nodes };
            HostMessage::RecentOffs { offs: offs.into_iter().map(off).collect(), noted_ms: Some(7) }
        }),
        any::<u32>().prop_map(|node| HostMessage::NodeGone { node }),
        (text(ID_LIMIT), any::<u64>()).prop_map(|(id, run)| HostMessage::HostKey { id, run }),
        domain().prop_map(HostMessage::Domain),
        text(ID_LIMIT).prop_map(|uuid| HostMessage::DomainGone { uuid }),
    ]
}

/// A message of a kind that is left out is sent, and read by nobody.
#[test]
fn every_kind_is_read() {
    let unknown = serde_json::from_str::<HostMessage>(r#"{"kind": ""}"#).unwrap_err().to_string();
    let expected = unknown.split("expected one of ").nth(1).unwrap();
    let kinds: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let sorted = |mut kinds: Vec<&str>| {
        kinds.sort_unstable();
        kinds.join(" ")
    };
    assert_eq!(sorted(KINDS.to_vec()), sorted(kinds));
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_read(message in message()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(HostMessage::decode(&bytes).unwrap(), Some(message));
    }

    /// A later version may send more: unknown fields are ignored.
    #[test]
    fn more_fields_are_passed_over(message in message()) {
        let mut value: serde_json::Value = serde_json::from_slice(&message.encode().unwrap()).unwrap();
        value["and"] = "more".into();
        let bytes = serde_json::to_vec(&value).unwrap();
        prop_assert_eq!(HostMessage::decode(&bytes).unwrap(), Some(message));
    }

    #[test]
    fn whatever_comes_is_read_or_refused(
        message in message(),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        let mut bytes = message.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = HostMessage::decode(&bytes);
        bytes.truncate(at);
        prop_assert!(HostMessage::decode(&bytes).is_err());
    }
}

fn off_of_t() -> ClaimMessage {
    let source = Some("s".into());
    ClaimMessage {
        id: 7,
        what: AskAction::Off,
        target: "t".into(),
        source,
        peer: None,
        possible: None,
        name: None,
        term_ms: None,
    }
}

/// Later daemons read the messages of today: these bytes must stay.
#[test]
fn the_form_of_messages() {
    let of = |message: HostMessage| String::from_utf8(message.encode().unwrap()).unwrap();
    let claim = off_of_t();
    assert_eq!(
        of(HostMessage::Claim(claim.clone())),
        r#"{"v":1,"kind":"claim","id":7,"what":"off","target":"t","source":"s"}"#
    );
    let outcome = AskOutcome::new(Response::Failure, Some("why"));
    assert_eq!(
        of(HostMessage::Finished { id: 7, outcome: outcome.clone() }),
        r#"{"v":1,"kind":"finished","id":7,"outcome":{"response":1,"reason":"why"}}"#
    );
    let asker = Member { node: 2, pid: 99 };
    assert_eq!(
        of(HostMessage::Reply { asker, ask: 3, claim: Some(7), end: AskEnd::Done(outcome) }),
        concat!(
            r#"{"v":1,"kind":"reply","asker":[2,99],"ask":3,"claim":7,"#,
            r#""end":{"done":{"response":1,"reason":"why"}}}"#
        )
    );
    assert_eq!(
        of(HostMessage::Reply { asker, ask: 3, claim: None, end: AskEnd::NotHere }),
        r#"{"v":1,"kind":"reply","asker":[2,99],"ask":3,"claim":null,"end":"not_here"}"#
    );
    let domain = PublishedDomain::new("u".into(), "n".into(), PublishedState::Rests);
    assert_eq!(
        of(HostMessage::Inventory { first: true, last: false, domains: vec![domain] }),
        concat!(
            r#"{"v":1,"kind":"inventory","first":true,"last":false,"#,
            r#""domains":[{"uuid":"u","name":"n","state":"rests"}]}"#
        )
    );
    assert_eq!(
        of(HostMessage::Sync(StateSync {
            n: 1,
            in_flight: vec![InFlightClaim {
                claim,
                seen_off: true,
                lingers: false,
                answered: false,
                hangs: false
            }],
            ..StateSync::default()
        })),
        concat!(
            r#"{"v":1,"kind":"sync","n":1,"#,
            r#""in_flight":[{"claim":{"id":7,"what":"off","target":"t","source":"s"},"seen_off":true}],"#,
            r#""waiting":[],"acting":[]}"#
        )
    );
}

/// The same of those about the end of a claim.
#[test]
fn the_form_of_ends() {
    let of = |message: HostMessage| String::from_utf8(message.encode().unwrap()).unwrap();
    let (asker, member) = (Member { node: 1, pid: 98 }, Member { node: 2, pid: 99 });
    assert_eq!(
        of(HostMessage::Claim(off_of_t().with_term(Some(Duration::from_secs(26))))),
        r#"{"v":1,"kind":"claim","id":7,"what":"off","target":"t","source":"s","term_ms":26000}"#
    );
    assert_eq!(
        of(HostMessage::Holds { asker, id: 7, ask: None }),
        r#"{"v":1,"kind":"holds","asker":[1,98],"id":7}"#
    );
    assert_eq!(
        of(HostMessage::Overdue { member, asker, id: 7, ask: Some(3), renewed: 0 }),
        r#"{"v":1,"kind":"overdue","member":[2,99],"asker":[1,98],"id":7,"ask":3,"renewed":0}"#
    );
}

/// Reply to a reboot, with this outcome.
fn reply(outcome: &str) -> Vec<u8> {
    let head = r#"{"v":1,"kind":"reply","asker":[2,99],"ask":3,"claim":7,"end":{"done":"#;
    format!("{head}{outcome}}}}}").into_bytes()
}

fn outcome_of(bytes: &[u8]) -> AskOutcome {
    match HostMessage::decode(bytes).unwrap() {
        Some(HostMessage::Reply { end: AskEnd::Done(outcome), .. }) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reboot_of_the_last_release_that_did_not_start_is_read_from_its_reason() {
    let failed = reply(r#"{"response":0,"reason":"fenced, but not started again: no memory"}"#);
    assert_eq!(outcome_of(&failed).start_failure(), Some("no memory"));
    let started = reply(r#"{"response":0}"#);
    assert_eq!(outcome_of(&started).start_failure(), None);
    let with_reason = reply(r#"{"response":0,"reason":"off, and not started by this request"}"#);
    assert_eq!(outcome_of(&with_reason).start_failure(), None);
}

/// The last release knows no such field, ignores it, and takes the text off the reason.
#[test]
fn the_last_release_reads_from_the_reason_that_a_reboot_did_not_start() {
    #[derive(Deserialize)]
    struct LastOutcome {
        response: u8,
        #[serde(default)]
        reason: Option<String>,
    }
    let end = AskEnd::Done(AskOutcome::not_started("no memory"));
    let asker = Member { node: 2, pid: 99 };
    let bytes = HostMessage::Reply { asker, ask: 3, claim: Some(7), end }.encode().unwrap();
    let outcome = concat!(
        r#"{"response":0,"reason":"fenced, but not started again: no memory","#,
        r#""not_started":"no memory"}"#
    );
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&reply(outcome)));
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let last: LastOutcome = serde_json::from_value(value["end"]["done"].clone()).unwrap();
    assert_eq!(last.response, 0);
    assert_eq!(last.reason.unwrap().strip_prefix("fenced, but not started again: "), Some("no memory"));
}

/// Hosts of the last release know no such field: they read that the domain is on, and ask for no forecast.
#[test]
fn a_forecast_is_a_status_for_the_last_release() {
    let told = reply(r#"{"response":0,"forecast":{"uncertain":"it moves"}}"#);
    let uncertain = AskForecast::Uncertain("it moves".to_owned());
    assert_eq!(outcome_of(&told), AskOutcome::with_forecast(&uncertain));
    let asker = Member { node: 2, pid: 99 };
    let end = AskEnd::Done(AskOutcome::with_forecast(&AskForecast::Done));
    let bytes = HostMessage::Reply { asker, ask: 3, claim: Some(7), end }.encode().unwrap();
    assert_eq!(bytes, reply(r#"{"response":0,"forecast":"done"}"#));
    assert_eq!(outcome_of(&reply(r#"{"response":0}"#)).forecast, None);
    let ask = concat!(
        r#"{"v":1,"kind":"ask","to":[1,9],"ask":3,"what":"status","uuid":"u","name":"n","left_ms":1,"#,
        r#""request":7"#
    );
    for (rest, dry_run) in [("}", None), (r#","dry_run":"off"}"#, Some(AskAction::Off))] {
        let Some(HostMessage::Ask(ask)) = HostMessage::decode(format!("{ask}{rest}").as_bytes()).unwrap()
        else {
            panic!("no ask")
        };
        assert_eq!((ask.what, ask.dry_run), (AskAction::Status, dry_run));
    }
}

/// Hosts of the last release know no such field: they read that the domain is on.
#[test]
fn a_domain_that_is_about_to_be_on_is_on_for_the_last_release() {
    let asker = Member { node: 2, pid: 99 };
    let bytes = |outcome| {
        HostMessage::Reply { asker, ask: 3, claim: Some(7), end: AskEnd::Done(outcome) }.encode().unwrap()
    };
    let moving = bytes(AskOutcome::seen_moving());
    assert_eq!(moving, reply(r#"{"response":0,"moving":true}"#));
    assert!(outcome_of(&moving).moving && outcome_of(&moving).look_without_instance().is_none());
    assert!(!outcome_of(&bytes(AskOutcome::new(Response::Success, None))).moving);
}

/// Hosts of the last release know no such field: they read a failure, with its reason.
#[test]
fn a_look_with_namesakes_is_no_off_for_the_last_release() {
    let other = DomainId::from_bytes([7; 16]);
    for sight in [Sight::Off, Sight::MovedAway(Duration::from_millis(9))] {
        let told = AskOutcome::seen_off_with_namesakes(&sight, &[other], "why");
        assert_eq!((told.response, told.reason.as_deref()), (Response::Failure, Some("why")));
        let asker = Member { node: 2, pid: 99 };
        let end = AskEnd::Done(told);
        let bytes = HostMessage::Reply { asker, ask: 3, claim: Some(7), end }.encode().unwrap();
        assert_eq!(outcome_of(&bytes).look_without_instance(), Some((sight, vec![other])));
    }
    let off = reply(r#"{"response":2}"#);
    assert_eq!(outcome_of(&off).look_without_instance(), Some((Sight::Off, vec![])));
    let wrong = |ids: &str| reply(&format!(r#"{{"response":1,"namesakes":[{ids}]}}"#));
    assert_eq!(outcome_of(&wrong("")).look_without_instance(), None);
    assert_eq!(outcome_of(&wrong(r#""vm1""#)).look_without_instance(), None);
    let many = [r#""a""#; MAX_NAMESAKES + 1].join(",");
    assert!(HostMessage::decode(&wrong(&many)).is_err());
}

#[test]
fn a_reboot_that_did_not_start_is_read_from_its_field() {
    let bytes = reply(r#"{"response":0,"reason":"in other words","not_started":"no memory"}"#);
    assert_eq!(outcome_of(&bytes).start_failure(), Some("no memory"));
    let long = AskOutcome::not_started(&"x".repeat(NAME_LIMIT * 2));
    assert_eq!(long.not_started.unwrap().len(), REASON_LIMIT);
    assert_eq!(long.reason.unwrap().len(), REASON_LIMIT);
}

#[test]
fn what_is_no_message_says_why() {
    let why = |bytes: &str| HostMessage::decode(bytes.as_bytes()).unwrap_err().to_string();
    assert!(why("junk").starts_with("not a message: "));
    assert_eq!(why(r#"{"v":2,"kind":"claim"}"#), "a message of version 2; this daemon knows 1 (update it)");
    assert!(
        why(r#"{"v":1,"kind":"claim"}"#).starts_with("a message of kind `claim` that does not read: missing")
    );
    let long = format!(r#"{{"v":1,"kind":"domain_gone","uuid":"{}"}}"#, "x".repeat(ID_LIMIT + 1));
    assert!(why(&long).contains("a text of 129 bytes; 128 are the most"));
    assert!(why(&" ".repeat(MESSAGE_LIMIT + 1)).starts_with("a message of 524289 bytes"));
    assert!(why(r#"{"v":1,"kind":"finished","id":1,"outcome":{"response":9}}"#).contains("9 is no response"));
    assert_eq!(HostMessage::decode(br#"{"v":1,"kind":"news","claim":[]}"#).unwrap(), None);
}

#[test]
fn inventories_come_in_parts() {
    let domains: Vec<_> = (0..INVENTORY_PART * 2 + 1)
        .map(|it| PublishedDomain {
            uuid: it.to_string(),
            name: "n".repeat(NAME_LIMIT),
            state: PublishedState::Rests,
            is_away: true,
        })
        .collect();
    let (mut read, mut firsts, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
    for message in HostMessage::inventory(&domains, true) {
        let bytes = message.encode().unwrap();
        let Some(HostMessage::Inventory { first, last, domains }) = HostMessage::decode(&bytes).unwrap()
        else {
            panic!("something else")
        };
        firsts.push(first);
        lasts.push(last);
        read.extend(domains);
    }
    assert_eq!((firsts, lasts), (vec![true, false, false], vec![false, false, true]));
    assert_eq!(read, domains);
    let none = HostMessage::Inventory { first: true, last: true, domains: Vec::new() };
    assert_eq!(HostMessage::inventory(&[], true), [none]);
    let parts = HostMessage::inventory(&domains, false);
    assert!(parts.iter().all(|it| matches!(it, HostMessage::Inventory { last: false, .. })), "{parts:?}");
}

/// Whoever reads half a step must see that there was more.
#[test]
fn a_reason_that_is_cut_shows_it() {
    assert_eq!(cut(&"a".repeat(REASON_LIMIT)), "a".repeat(REASON_LIMIT));
    for long in ["a".repeat(REASON_LIMIT + 1), "\u{e4}".repeat(REASON_LIMIT)] {
        let it = cut(&long);
        assert!(it.len() <= REASON_LIMIT && it.len() > REASON_LIMIT - 8 && it.ends_with("[...]"), "{it}");
    }
}
