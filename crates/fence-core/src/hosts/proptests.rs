// SPDX-License-Identifier: GPL-2.0-or-later
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use fence_wire::{HostAnswer, HostHello, HostId, HostSight};
use proptest::prelude::*;

use super::*;

/// Something that happens to the table.
#[derive(Clone, Debug)]
enum Event {
    Hello { host: u8, from: u8 },
    Legacy { from: u8 },
    Forget { host: u8 },
}

fn hello(host: u8) -> HostHello {
    HostHello { public: [host; 32], port: 0, domains: 1, name: format!("h{host}"), run: [0; 8] }
}

/// A hello of one of the daemons of a host.
fn hello_of(host: u8, run: u8) -> HostHello {
    HostHello { run: [run; 8], ..hello(host) }
}

fn id(host: u8) -> HostId {
    HostId::of(&[host; 32])
}

fn address(from: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, from])
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0..90_u8, any::<u8>()).prop_map(|(host, from)| Event::Hello { host, from }),
        1 => (0..9_u8).prop_map(|from| Event::Legacy { from }),
        1 => (0..90_u8).prop_map(|host| Event::Forget { host }),
    ];
    proptest::collection::vec(event, 0..200)
}

fn sights() -> impl Strategy<Value = HostSight> {
    (0..7_usize).prop_map(|it| HostSight::ALL[it])
}

fn answer(uuid: [u8; 16], sight: HostSight) -> HostAnswer {
    HostAnswer { uuid, sight, age_ms: None, reason: String::new(), namesakes: Vec::new(), memory: None }
}

proptest! {
    /// A host that was heard is asked, and is in the findings, until it is forgotten. If there was no room
    /// for it, the table says that one is missing.
    #[test]
    fn whoever_was_heard_must_answer_until_forgotten(events in events()) {
        let mut table = KnownHosts::default();
        let mut heard = BTreeSet::new();
        for event in events {
            match event {
                Event::Hello { host, from } => {
                    let result = table.heard(&hello(host), address(from), 7);
                    prop_assert_eq!(result == HeardHost::NoRoom, table.host(id(host)).is_none());
                    heard.insert(host);
                }
                Event::Legacy { from } => { table.heard_legacy(address(from), 1, 7); }
                Event::Forget { host } => {
                    let forgotten = table.forget(&format!("H{host}"));
                    prop_assert!(forgotten.iter().all(|it| it.id == id(host)));
                    // One that had no room and is not forgotten says hello again, since the caller does.
                    if !forgotten.is_empty() {
                        heard.retain(|it| table.host(id(*it)).is_some());
                    }
                    if table.missing().is_none() { heard.remove(&host); }
                }
            }
            prop_assert!(table.all().count() <= MAX_HOSTS);
            let round = Round::new([1; 8], [2; 16], table.all().map(|it| Respondent::Host(it.id)));
            for host in &heard {
                let who = Respondent::Host(id(*host));
                let is_asked = round.findings().iter().any(|it| it.who == who && it.answer.is_none());
                prop_assert!(is_asked || table.missing().is_some(), "h{} is left out", host);
            }
        }
    }

    /// Only the answer of an asked host with this question's nonce and UUID counts, and the first one stays.
    #[test]
    fn no_other_answer_counts(
        asked in proptest::collection::btree_set(0..8_u8, 1..5),
        answers in proptest::collection::vec((0..10_u8, 0..3_u8, 0..3_u8, sights()), 0..40),
    ) {
        let (nonce, uuid) = ([1; 8], [1; 16]);
        let mut round = Round::new(nonce, uuid, asked.iter().map(|it| Respondent::Host(id(*it))));
        let mut counted = std::collections::BTreeMap::new();
        for (sender, nonce_of, uuid_of, sight) in answers {
            let result = round.take(id(sender), [nonce_of; 8], &answer([uuid_of; 16], sight));
            let fits = nonce_of == 1 && uuid_of == 1 && asked.contains(&sender);
            prop_assert_eq!(result == AnswerResult::Foreign, !fits);
            if fits { counted.entry(sender).or_insert(sight); }
        }
        prop_assert_eq!(round.findings().len(), asked.len());
        for host in &asked {
            let who = Respondent::Host(id(*host));
            let found = round.findings().iter().find(|it| it.who == who).unwrap();
            prop_assert_eq!(found.answer.as_ref().map(|it| it.sight), counted.get(host).copied());
        }
        prop_assert_eq!(round.is_complete(), counted.len() == asked.len());
    }

    /// A hello goes out at least once a minute, and, however often others show, not more than once a second.
    #[test]
    fn hellos_are_regular_and_rare(hurries in proptest::collection::vec(0..400_u64, 0..200)) {
        let start = Instant::now();
        let mut schedule = HelloSchedule::new(start);
        let mut sent = Vec::new();
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        prop_assert_eq!(schedule.first_round_ends(), None);
        for tenths in 0..3000 {
            if hurries.contains(&tenths) { schedule.hurry(at(tenths)); }
            if schedule.is_due(at(tenths)) { sent.push(tenths); }
        }
        prop_assert_eq!(schedule.first_round_ends(), Some(start + FIRST_ROUND));
        prop_assert!(sent[0] == 0 && sent.iter().filter(|it| **it < 10).count() >= 3);
        for pair in sent.windows(2) {
            prop_assert!(pair[1] - pair[0] <= 600);
            prop_assert!(pair[1] < 16 || pair[1] - pair[0] >= 10, "{:?}", pair);
        }
    }
}

#[test]
fn a_pin_belongs_to_the_first_host_until_it_is_forgotten() {
    let mut table = KnownHosts::default();
    let place: SocketAddr = "10.0.0.2:1229".parse().unwrap();
    table.heard(&hello(2), address(2), 7);
    assert!(table.pin(place, id(2)) && table.pin(place, id(2)));
    assert!(!table.pin(place, id(3)));
    assert_eq!(table.pinned(&place), Some(id(2)));
    assert_eq!(table.forget("10.0.0.2").len(), 1);
    assert_eq!(table.pinned(&place), None);
    assert!(table.pin(place, id(3)));
}

#[test]
fn hosts_are_named_by_name_address_and_id() {
    for text in ["H2", "10.0.0.2", "10.0.0.9", &id(2).to_string()] {
        let mut table = KnownHosts::default();
        table.heard_proved(&hello(2), address(9), 7, true);
        assert_eq!(table.heard_proved(&hello(2), address(2), 8, true), HeardHost::Changed);
        table.heard(&hello(3), address(3), 7);
        assert_eq!(table.host(id(2)).unwrap().to_string(), "h2 (10.0.0.2)");
        assert_eq!(table.forget(text).len(), 1, "{text}");
        assert_eq!(table.all().map(|it| it.id).collect::<Vec<_>>(), [id(3)]);
    }
    let mut table = KnownHosts::default();
    table.heard_legacy(address(7), 4, 7);
    assert_eq!(table.all().next().unwrap().to_string(), "10.0.0.7");
    assert!(table.forget("10.0.0.8").is_empty() && table.forget("10.0.0.7").len() == 1);
}

/// A copied state directory, or an address that was given away: the host behind the other address is not
/// the one that answers.
#[test]
fn one_host_at_two_addresses_answers_for_one() {
    let places: [SocketAddr; 2] = ["10.0.0.2:1229".parse().unwrap(), "10.1.0.2:1229".parse().unwrap()];
    let mut round = Round::new([1; 8], [1; 16], places.map(Respondent::Address));
    assert_eq!(round.take(id(2), [1; 8], &answer([1; 16], HostSight::Absent)), AnswerResult::Foreign);
    round.met(places[0], id(2));
    round.met(places[1], id(2));
    assert_eq!(round.take(id(2), [1; 8], &answer([1; 16], HostSight::Absent)), AnswerResult::Taken);
    assert!(!round.is_complete());
    assert_eq!(round.silent().collect::<Vec<_>>(), [Respondent::Address(places[1])]);
    let mut table = KnownHosts::default();
    table.heard(&hello(2), address(2), 7);
    assert!(table.pin(places[0], id(2)) && table.pin(places[1], id(2)));
    let doubt = table.doubt_at(places[0], &places);
    assert_eq!(doubt, Some(HostDoubt::TwoAddresses { id: id(2), at: places }));
    assert!(table.doubt_at(places[1], &places).is_some());
    assert_eq!(table.doubt_at(places[1], &places[1..]), None, "an address that is not in `peers` any more");
    table.forget("10.1.0.2");
    assert_eq!(table.doubt_at(places[0], &places), None);
}

#[test]
fn a_second_host_at_an_address_stays_a_doubt_until_it_is_forgotten() {
    for text in ["10.0.0.2", "all", "h2", "h3"] {
        let mut table = KnownHosts::default();
        let place: SocketAddr = "10.0.0.2:1229".parse().unwrap();
        table.heard(&hello(2), address(2), 7);
        assert!(table.pin(place, id(2)));
        assert_eq!(table.doubt_at(place, &[place]), None);
        table.heard(&hello(3), address(9), 7);
        assert!(!table.pin(place, id(3)) && table.pin(place, id(2)));
        let doubt = Some(HostDoubt::TwoHosts { at: place, ids: [id(2), id(3)] });
        assert_eq!(table.doubt_at(place, &[place]), doubt);
        table.forget(text);
        assert_eq!(table.doubt_at(place, &[place]), None, "{text}");
    }
}

proptest! {
    /// Two daemons with one key pair behind one address are told apart from one that is started anew.
    #[test]
    fn two_daemons_with_one_key_are_noticed(
        said in proptest::collection::vec((0..3_u8, any::<bool>()), 1..40)
    ) {
        let mut table = KnownHosts::default();
        let (mut restarts, mut latest, mut both) = ([1_u8; 3], Vec::new(), false);
        for (daemon, is_restarted) in said {
            let at = usize::from(daemon);
            // The first daemon is alone in its table entry; the two others share a key pair.
            let host = if daemon == 0 { 1 } else { 2 };
            if is_restarted && restarts[at] < 60 { restarts[at] += 1; }
            let run = restarts[at] + 70 * daemon;
            let heard = table.heard_proved(&hello_of(host, run), address(host), 7, true);
            if host == 2 {
                both |= latest.iter().rev().skip(1).any(|it| *it == run) && latest.last() != Some(&run);
                latest.push(run);
                prop_assert!(table.doubt(id(2)).is_some() == both || latest.len() > 8);
                prop_assert!(heard != HeardHost::TwoDaemons || both);
            } else {
                prop_assert_ne!(heard, HeardHost::TwoDaemons);
            }
        }
        prop_assert_eq!(table.doubt(id(1)), None);
        table.forget("h2");
        prop_assert_eq!(table.doubt(id(2)), None);
    }
}

#[test]
fn a_key_pair_that_this_host_gave_up_is_no_doubt() {
    let mut table = KnownHosts::default();
    table.heard(&hello(2), address(2), 7);
    for host in [1, 2, 3] {
        assert!(
            table.note_two_daemons(id(host), address(9)) && !table.note_two_daemons(id(host), address(8))
        );
    }
    table.drop_old_twins(id(1));
    assert_eq!(table.twins().map(|(it, _)| it).collect::<BTreeSet<_>>(), BTreeSet::from([id(1), id(2)]));
    for text in [id(1).to_string(), "10.0.0.8".to_owned(), "all".to_owned()] {
        let mut table = table.clone();
        table.forget(&text);
        assert_eq!(table.doubt(id(1)), None, "{text}");
    }
}

/// A host that had no room, or was lost with a damaged file, is not the one that an administrator named.
#[test]
fn forgetting_one_host_leaves_the_note_that_another_may_be_missing() {
    let mut table = KnownHosts::default();
    table.heard(&hello(2), address(2), 7);
    table.note_missing("line 3 can't be read".to_owned());
    for text in ["h2", "10.0.0.2", "h3", "10.0.0.3", &id(3).to_string(), "", "ALL", "none"] {
        table.forget(text);
        assert_eq!(table.missing(), Some("line 3 can't be read"), "{text}");
    }
    table.forget("all");
    assert_eq!(table.missing(), None);
}

/// A host chooses its name, and an administrator who forgets it by that name must not forget others too.
#[test]
fn a_name_that_means_other_hosts_is_not_taken() {
    for name in ["all", "All", "10.0.0.3", "::1", &id(3).to_string(), ""] {
        let mut table = KnownHosts::default();
        let told = HostHello { name: name.to_owned(), ..hello(2) };
        table.heard(&told, address(2), 7);
        table.heard(&hello(3), address(3), 7);
        let shown = table.host(id(2)).unwrap().name.clone();
        assert_eq!(shown, "10.0.0.2", "{name}");
        // What is printed as its name forgets it and nobody else.
        let gone: Vec<_> = table.forget(&shown).iter().map(|it| it.id).collect();
        assert_eq!(gone, [id(2)], "{name}");
        // A host of this name that was known by another one is renamed too.
        let mut table = KnownHosts::default();
        table.heard(&hello(2), address(2), 7);
        table.heard_proved(&told, address(2), 8, true);
        assert_eq!(table.host(id(2)).unwrap().name, "10.0.0.2", "{name}");
    }
}

proptest! {
    /// Whoever holds the key of all hosts can make hellos in every name. Whatever comes in, in whatever
    /// order, name and addresses of a host that proved them stay, and its run, and no doubt is raised.
    #[test]
    fn unproved_hellos_change_nothing_of_a_known_host(
        forged in proptest::collection::vec((1..5_u8, "[a-z]{1,2}[0-9]", any::<u8>(), 0..3_u8), 1..60)
    ) {
        let mut table = KnownHosts::default();
        for host in 1..4 {
            table.heard_proved(&hello_of(host, 1), address(host), 7, true);
        }
        let before = table.clone();
        for (host, name, from, run) in forged {
            let told = HostHello { name, domains: 9, ..hello_of(host, run) };
            let heard = table.heard(&told, address(from), 8);
            let is_news = matches!(heard, HeardHost::New | HeardHost::Changed | HeardHost::TwoDaemons);
            prop_assert!(host == 4 || !is_news);
            for host in 1..4 {
                prop_assert_eq!(table.host(id(host)), before.host(id(host)));
            }
            prop_assert_eq!(table.twins().count(), 0);
        }
        for host in 1..4 {
            let heard = table.heard_proved(&hello_of(host, 1), address(host), 9, true);
            prop_assert_eq!(heard, HeardHost::Known);
        }
    }
}

/// A host that was first met by a hello of somebody else is corrected by its own proof.
#[test]
fn a_proof_replaces_what_was_made_up() {
    let mut table = KnownHosts::default();
    let forged = HostHello { name: "h9".to_owned(), ..hello_of(2, 5) };
    assert_eq!(table.heard(&forged, address(9), 7), HeardHost::New);
    assert!(!table.host(id(2)).unwrap().is_proved);
    assert_eq!(table.heard_proved(&hello_of(2, 1), address(2), 8, true), HeardHost::Changed);
    let host = table.host(id(2)).unwrap();
    assert!(host.is_proved && host.name == "h2" && host.addresses == [address(2)], "{host:?}");
    assert_eq!(table.doubt(id(2)), None);
}

/// A copy of a state directory that starts at another host while the first one is silent speaks for it.
#[test]
fn a_new_run_elsewhere_is_another_daemon() {
    let mut table = KnownHosts::default();
    table.heard_proved(&hello_of(2, 1), address(2), 7, true);
    assert_eq!(table.heard_proved(&hello_of(2, 2), address(2), 8, true), HeardHost::Restarted);
    // The same run has another address: it was renumbered, or has several.
    assert_eq!(table.heard_proved(&hello_of(2, 2), address(5), 9, true), HeardHost::Changed);
    assert_eq!(table.heard_proved(&hello_of(2, 3), address(2), 9, true), HeardHost::Restarted);
    let before = table.host(id(2)).cloned();
    assert_eq!(table.heard_proved(&hello_of(2, 4), address(3), 9, true), HeardHost::TwoDaemons);
    assert_eq!(table.host(id(2)).cloned(), before);
    assert_eq!(table.doubt(id(2)), Some(HostDoubt::TwoDaemons { id: id(2), at: address(3) }));
    // After a restart of this host no run is known, and the address tells all the same.
    let mut later = KnownHosts::default();
    later.restore(before.unwrap());
    assert_eq!(later.heard_proved(&hello_of(2, 4), address(3), 9, true), HeardHost::TwoDaemons);
    table.forget(&id(2).to_string());
    assert_eq!(table.heard_proved(&hello_of(2, 4), address(3), 9, true), HeardHost::New);
    assert_eq!(table.doubt(id(2)), None);
}

/// Anybody can send a proved answer again, from anywhere.
#[test]
fn a_repeated_proof_moves_no_host() {
    let mut table = KnownHosts::default();
    table.heard_proved(&hello_of(2, 2), address(2), 7, true);
    assert_eq!(table.heard_proved(&hello_of(2, 1), address(9), 8, false), HeardHost::Known);
    for from in 3..9 {
        table.heard_proved(&hello_of(2, 2), address(from), 8, false);
    }
    let host = table.host(id(2)).unwrap();
    assert_eq!(host.addresses, [2, 3, 4, 5].map(address));
    assert_eq!(table.doubt(id(2)), None);
}

#[test]
fn a_name_of_two_hosts_forgets_none() {
    let mut table = KnownHosts::default();
    table.heard(&hello(2), address(2), 7);
    table.heard(&HostHello { name: "H2".to_owned(), ..hello(3) }, address(3), 7);
    assert_eq!(table.namesakes("h2").len(), 2);
    assert!(table.forget("h2").is_empty() && table.all().count() == 2);
    assert_eq!(table.forget(&id(3).to_string()).len(), 1);
    assert!(table.namesakes("h2").is_empty());
    assert_eq!(table.forget("h2").len(), 1);
}

/// Something that a guest or a host does, and the time that passes.
#[derive(Clone, Debug)]
enum Claim {
    Forged { host: u8 },
    Proved { host: u8 },
    Seconds(u64),
}

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    let claim = prop_oneof![
        6 => (0..90_u8).prop_map(|host| Claim::Forged { host }),
        2 => (0..40_u8).prop_map(|host| Claim::Proved { host }),
        2 => (1..200_u64).prop_map(Claim::Seconds),
    ];
    proptest::collection::vec(claim, 0..100)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A host that proved itself once must answer for good. One that only said hello must answer until it was
    /// silent for a while, or the table says that one is missing; and after that nothing of it is left.
    #[test]
    fn only_a_host_that_proved_itself_is_remembered_for_good(claims in claims()) {
        let mut table = KnownHosts::default();
        let (mut at, mut proved) = (Instant::now(), BTreeSet::new());
        let mut latest = std::collections::BTreeMap::new();
        for claim in claims {
            match claim {
                Claim::Forged { host } => {
                    table.announced(&hello(host), address(host), 7, at);
                    latest.insert(host, at);
                }
                Claim::Proved { host } => {
                    let heard = table.heard_proved(&hello(host), address(host), 7, true);
                    prop_assert_ne!(heard, HeardHost::NoRoom, "forged ones took its place");
                    proved.insert(host);
                }
                Claim::Seconds(seconds) => at += Duration::from_secs(seconds),
            }
            table.drop_unproved(at);
            prop_assert!(table.missing().is_none());
            let has = |it: &u8| table.host(id(*it)).is_some();
            prop_assert!(proved.iter().all(has), "a host that proved itself is gone");
            for (host, since) in &latest {
                let is_fresh = at.duration_since(*since) < ANNOUNCED_KEPT;
                let is_told = table.missing_now(at).is_some();
                prop_assert!(!is_fresh || has(host) || is_told, "h{} is left out", host);
                prop_assert!(is_fresh || proved.contains(host) || !has(host), "h{} stays for good", host);
            }
            prop_assert!(table.remembered().all(|it| proved.iter().any(|host| id(*host) == it.id)));
        }
        at += ANNOUNCED_KEPT;
        table.drop_unproved(at);
        prop_assert_eq!(table.all().count(), proved.len());
        prop_assert_eq!(table.missing_now(at), None);
    }
}
