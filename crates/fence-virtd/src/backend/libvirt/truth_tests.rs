// SPDX-License-Identifier: GPL-2.0-or-later
//! The tables of docs/truth.md for one daemon, held by libvirt's test driver: each row is a world, and each
//! action is asked in a fresh one. Other hosts are played by the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fence_core::domain::{DomainId, LocatedDomain, PowerAction, PowerState, SeenPower, TargetKind};
use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::owed_start::PlaceWord;
use fence_wire::Target;

use libvirt_host::{DomainRecord, State, Uuid};

use super::{LibvirtBackend, with_power};
use crate::backend::elsewhere::{DomainQuestion, OwnPlaces as _, PeerHosts};
use crate::backend::{Backend, BoxedFuture, PowerForecast};
use crate::hypervisor::Hypervisors;
use crate::request::lease::Lease;

const PAGE: &str = include_str!("../../../../../docs/truth.md");
const UUID: &str = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
/// Another domain, with the same name.
const OTHER: &str = "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11";
/// Time for one request. A host that is `moving` is asked until then.
const PATIENCE: Duration = Duration::from_secs(2);
const SHUT_OFF: u8 = 5;
const RUNNING: u8 = 1;
const PAUSED: u8 = 3;

/// A row of the tables.
#[derive(Debug)]
struct Row<'a> {
    topology: &'a str,
    here: &'a str,
    elsewhere: &'a str,
    /// Answers to status, off, on and reboot.
    answers: [&'a str; 4],
}

fn rows() -> impl Iterator<Item = Row<'static>> {
    PAGE.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim().strip_prefix('|')?.split('|').map(str::trim).collect();
        let [topology, here, elsewhere, status, off, on, reboot, ""] = cells[..] else { return None };
        let is_row = !topology.starts_with("---") && topology != "topology";
        is_row.then_some(Row { topology, here, elsewhere, answers: [status, off, on, reboot] })
    })
}

/// Files of one world. They end with it.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Returns the URI of a hypervisor that shows the domain like this.
    fn hypervisor(&self, name: &str, shows: &str) -> String {
        let path = self.0.path().join(name);
        let called = |uuid: &str, state: u8, extra: &str| {
            format!(
                "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
                 <test:runstate>{state}</test:runstate>{extra}<name>x</name><uuid>{uuid}</uuid>\
                 <memory>1024</memory><os><type arch='i686'>hvm</type></os></domain>"
            )
        };
        let domain = |state, extra| called(UUID, state, extra);
        let domain = match shows {
            "on" => domain(RUNNING, ""),
            "off" => domain(SHUT_OFF, ""),
            "ended" => domain(RUNNING, "<test:transient/>"),
            "paused" => domain(PAUSED, ""),
            "namesake on" => called(OTHER, RUNNING, ""),
            "namesake off" => called(OTHER, SHUT_OFF, ""),
            "none" => String::new(),
            // There is no such file.
            "unknown" => return format!("test://{}", path.display()),
            other => panic!("no such hypervisor: {other}"),
        };
        std::fs::write(&path, format!("<node>{domain}</node>")).unwrap();
        format!("test://{}", path.display())
    }
}

/// Other hosts that a test plays: what they show of a domain when they are asked. They remember nothing.
struct PlayedHosts<F>(F);

impl<F, A> PeerHosts for PlayedHosts<F>
where
    F: Fn(&DomainQuestion) -> A + Send + Sync,
    A: Future<Output = Vec<Finding>> + Send + 'static,
{
    fn look<'a>(&'a self, question: &'a DomainQuestion, _: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(self.0(question))
    }

    fn recall<'a>(
        &'a self,
        _: &'a DomainQuestion,
        _: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// A finding of a look at another host that began then and ends now.
fn shown(host: &str, sight: Sight, began: Instant) -> Finding {
    Finding::without_namesakes(DomainSite::Host(host.to_owned()), sight, began, Instant::now())
}

/// Two other hosts, one of which shows the domain like this.
fn played(sight: Sight) -> Arc<dyn PeerHosts> {
    Arc::new(PlayedHosts(move |_: &DomainQuestion| {
        let now = Instant::now();
        std::future::ready(vec![shown("h1", Sight::Absent, now), shown("h2", sight.clone(), now)])
    }))
}

/// Starts a backend, and waits for its lists too: what a test records before them is not kept.
async fn started(uris: &[String], reboot_starts: bool, known: &Hypervisors) -> (LibvirtBackend, Vec<String>) {
    let (backend, unreachable) = LibvirtBackend::start(uris, reboot_starts, known).await;
    for hypervisor in backend.hypervisors() {
        let _ = hypervisor.first_list().await;
    }
    (backend, unreachable)
}

/// Whoever merges lists takes another host's "off" for a machine that is left out.
#[test]
fn a_list_has_a_machine_on_that_a_process_has() {
    let record = |number: u8, state| DomainRecord {
        name: format!("x{number}"),
        uuid: Uuid::from_bytes([number; 16]),
        state,
    };
    let records = vec![
        record(1, State::ShutOff),
        record(2, State::ShutOff),
        record(3, State::Paused),
        record(4, State::Running),
    ];
    let listed = with_power(records, |off| {
        assert_eq!(off.len(), 2, "libvirt's word counts for those that are on");
        off.iter().copied().filter(|it| *it == Uuid::from_bytes([2; 16])).collect()
    });
    let on: Vec<_> = listed.iter().map(|it| (it.name.as_str(), it.power == PowerState::On)).collect();
    assert_eq!(on, [("x1", false), ("x2", true), ("x3", true), ("x4", true)]);
}

async fn answer(row: &Row<'_>, action: PowerAction) -> &'static str {
    let world = World::new();
    let mut uris = vec![world.hypervisor("here", row.here)];
    if row.topology == "uris" {
        uris.push(world.hypervisor("elsewhere", row.elsewhere));
    }
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    if row.here == "ended" {
        let (lease, _released) = Lease::new(Instant::now() + PATIENCE, 0);
        let target = Target::new("x", false).unwrap();
        let found = backend.locate(&target, lease.until()).await.unwrap();
        let _proof = backend.off(found.domain(), false, &lease).await.unwrap().proof;
    }
    if row.topology == "peers" {
        backend.ask_others(played(match row.elsewhere {
            "on" => Sight::On,
            "off" => Sight::Off,
            "moving" => Sight::Moving,
            "unknown" => Sight::Unknown("h2 is silent".to_owned()),
            other => panic!("no such host: {other}"),
        }));
    }
    ask(&backend, action).await
}

/// Asks as a request does: looks for the domain, and acts.
async fn ask(backend: &LibvirtBackend, action: PowerAction) -> &'static str {
    ask_within(backend, action, PATIENCE).await
}

async fn ask_within(backend: &LibvirtBackend, action: PowerAction, time: Duration) -> &'static str {
    let target = Target::new("x", false).unwrap();
    let (lease, _released) = Lease::new(Instant::now() + time, 1);
    let Ok(located) = backend.locate(&target, lease.until()).await else { return "fail" };
    let domain = located.domain();
    let done = match action {
        PowerAction::Status => {
            return match backend.status(domain, &lease).await {
                Ok(SeenPower::On | SeenPower::Moving) => "on",
                Ok(SeenPower::Off(_)) => "off",
                Err(_) => "fail",
            };
        }
        PowerAction::On => backend.on(domain, &lease).await,
        PowerAction::Off | PowerAction::Reboot => {
            match backend.off(domain, action == PowerAction::Reboot, &lease).await {
                Ok(down) => match down.restart {
                    Some(restart) => restart.start(&lease).await,
                    None => Ok(()),
                },
                Err(error) => Err(error),
            }
        }
    };
    if done.is_ok() { "done" } else { "fail" }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_page_holds() {
    let (mut held, mut wrong) = (0, Vec::new());
    for row in rows().filter(|it| ["alone", "uris", "peers"].contains(&it.topology)) {
        // The test driver has no migrations.
        if ["moving", "half", "moved"].contains(&row.here) {
            continue;
        }
        let actions = [PowerAction::Status, PowerAction::Off, PowerAction::On, PowerAction::Reboot];
        for (action, expected) in actions.into_iter().zip(row.answers) {
            let said = answer(&row, action).await;
            held += 1;
            if said != expected {
                wrong.push(format!("{action}: {said}: {row:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(held >= 80, "only {held} answers are on the page");
}

/// One UUID is one domain: a migration whose end was not heard leaves it on at two hypervisors.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_on_twice_is_ended_at_both_and_started_once() {
    for (action, after) in
        [(PowerAction::Off, [Sight::Off, Sight::Off]), (PowerAction::Reboot, [Sight::On, Sight::Off])]
    {
        let world = World::new();
        let uris = [world.hypervisor("first", "on"), world.hypervisor("second", "on")];
        let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
        assert_eq!(ask(&backend, action).await, "done", "{action}");
        let question = DomainQuestion::new(DomainId::parse_canonical(UUID).unwrap(), "x".to_owned());
        let looks = backend.look_here(&question, Instant::now() + PATIENCE).await;
        let is_as_wanted = |(it, wanted): (&Finding, &Sight)| match wanted {
            Sight::Off => matches!(it.sight, Sight::Off | Sight::Ended(_)),
            wanted => it.sight == *wanted,
        };
        assert!(looks.len() == 2 && looks.iter().zip(&after).all(is_as_wanted), "{action}: {looks:?}");
    }
}

/// The end of one proves nothing of the other, and nothing of other hosts.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_on_twice_is_off_by_a_look_everywhere() {
    for (elsewhere, expected) in
        [(Sight::Off, "done"), (Sight::On, "fail"), (Sight::Unknown("h2 is silent".to_owned()), "fail")]
    {
        let world = World::new();
        let uris = [world.hypervisor("first", "on"), world.hypervisor("second", "on")];
        let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
        backend.ask_others(played(elsewhere.clone()));
        assert_eq!(ask(&backend, PowerAction::Off).await, expected, "{elsewhere:?}");
    }
}

/// Another host that is slow to say whether it has an instance, each time. It has one when it is asked first,
/// and shows this later.
fn slow(after: Duration, then: Sight) -> Arc<dyn PeerHosts> {
    let was_sought = AtomicBool::new(false);
    Arc::new(PlayedHosts(move |question: &DomainQuestion| {
        let seeks_instance = question.seeks_instance;
        let is_first = seeks_instance && !was_sought.swap(true, Ordering::Relaxed);
        let sight = if is_first { Sight::On } else { then.clone() };
        async move {
            let began = Instant::now();
            if seeks_instance {
                tokio::time::sleep(after).await;
            }
            vec![shown("h2", sight, began)]
        }
    }))
}

/// Both hosts started it. A second instance takes the proof from the end here, also where it is gone by now;
/// a host that is silent costs a moment and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_runs_at_another_host_too_is_not_off() {
    let (soon, late) = (Duration::from_millis(20), Duration::from_secs(60));
    let silent = || Sight::Unknown("h3 is silent".to_owned());
    for (after, then, expected) in [
        (Duration::ZERO, Sight::On, "fail"),
        (soon, Sight::On, "fail"),
        (soon, silent(), "fail"),
        (soon, Sight::Off, "done"),
        (late, Sight::On, "done"),
    ] {
        for action in [PowerAction::Off, PowerAction::Reboot] {
            let world = World::new();
            let uris = [world.hypervisor("here", "on")];
            let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
            backend.ask_others(slow(after, then.clone()));
            assert_eq!(ask_within(&backend, action, late / 2).await, expected, "{action} {after:?} {then:?}");
            let question = DomainQuestion::new(DomainId::parse_canonical(UUID).unwrap(), "x".to_owned());
            let here = backend.look_here(&question, Instant::now() + PATIENCE).await;
            // No start beside another instance.
            let is_started = action == PowerAction::Reboot && expected == "done";
            assert_eq!(here[0].sight == Sight::On, is_started, "{action} {after:?} {then:?}");
        }
    }
}

/// Another host where an instance starts, comes or goes for a time, and that shows this then.
fn moving(lasts: Duration, then: Sight) -> Arc<dyn PeerHosts> {
    let ends = Instant::now() + lasts;
    Arc::new(PlayedHosts(move |_: &DomainQuestion| {
        let sight = if Instant::now() < ends { Sight::Moving } else { then.clone() };
        async move { vec![shown("h2", sight, Instant::now())] }
    }))
}

/// An instance that just starts at another host is one as soon as it runs. One that is about to come in from
/// here is gone a moment after the end here, and costs the fence that moment.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_starts_at_another_host_is_waited_for() {
    let (soon, forever) = (Duration::from_millis(700), Duration::from_secs(600));
    for (lasts, then, expected) in
        [(soon, Sight::On, "fail"), (soon, Sight::Off, "done"), (forever, Sight::Off, "fail")]
    {
        for action in [PowerAction::Off, PowerAction::Reboot] {
            let world = World::new();
            let uris = [world.hypervisor("here", "on")];
            let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
            backend.ask_others(moving(lasts, then.clone()));
            assert_eq!(ask(&backend, action).await, expected, "{action} {lasts:?} {then:?}");
            let question = DomainQuestion::new(DomainId::parse_canonical(UUID).unwrap(), "x".to_owned());
            let here = backend.look_here(&question, Instant::now() + PATIENCE).await;
            let is_started = action == PowerAction::Reboot && expected == "done";
            assert_eq!(here[0].sight == Sight::On, is_started, "{action} {lasts:?} {then:?}");
        }
    }
}

/// The reason has the host and the step, and a dry run tells of it before.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_is_named() {
    let world = World::new();
    let uris = [world.hypervisor("here", "on")];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    backend.ask_others(played(Sight::On));
    let (lease, _released) = Lease::new(Instant::now() + PATIENCE, 1);
    let found = backend.locate(&Target::new("x", false).unwrap(), lease.until()).await.unwrap();
    let forecast = backend.forecast(found.domain(), PowerAction::Off, &lease).await.unwrap();
    assert!(
        matches!(&forecast, PowerForecast::Uncertain(why) if why.contains("and at host h2 as well")),
        "{forecast:?}"
    );
    let why = backend.off(found.domain(), false, &lease).await.unwrap_err().to_string();
    for words in ["powered off here", "the domain is on at host h2", "Ask for off again"] {
        assert!(why.contains(words), "{why}");
    }
}

/// Two UUIDs with one name are two domains.
#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_name_stay_ambiguous() {
    let world = World::new();
    let uris = [world.hypervisor("first", "on"), world.hypervisor("second", "namesake on")];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    let target = Target::new("x", false).unwrap();
    let why = backend.locate(&target, Instant::now() + PATIENCE).await.unwrap_err().to_string();
    assert!(why.contains("ambiguous") && why.contains(UUID) && why.contains(OTHER), "{why}");
}

/// A domain without a definition here may be defined at another host: nothing is said of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_definition_says_which_hypervisor_has_none() {
    let world = World::new();
    let uri = world.hypervisor("here", "ended");
    let (backend, _) = started(std::slice::from_ref(&uri), false, &Hypervisors::default()).await;
    let (lease, _released) = Lease::new(Instant::now() + PATIENCE, 0);
    let found = backend.locate(&Target::new("x", false).unwrap(), lease.until()).await.unwrap();
    let _proof = backend.off(found.domain(), false, &lease).await.unwrap().proof;
    let why = backend.on(found.domain(), &lease).await.unwrap_err().to_string();
    assert!(why.contains(&format!("libvirt at {uri} has no definition of the domain")), "{why}");
    assert!(!why.contains("left no definition"), "{why}");
}

/// Domain that nobody here knows: a host that is silent may have it, or one has it on. The reason names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_is_not_here_is_looked_for_at_the_other_hosts() {
    for (elsewhere, named) in [
        (Sight::Unknown("h2 is silent".to_owned()), Some("can't tell: h2 is silent")),
        (Sight::On, Some("h2")),
        (
            Sight::Down("/bin/true says so".to_owned()),
            Some("is down: /bin/true says so. The only definition"),
        ),
        (Sight::Off, None),
    ] {
        let world = World::new();
        let uris = [world.hypervisor("here", "none")];
        let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
        backend.ask_others(played(elsewhere.clone()));
        let (target, until) = (Target::new("x", false).unwrap(), Instant::now() + PATIENCE);
        let why = backend.locate(&target, until).await.unwrap_err().to_string();
        match named {
            Some(words) => assert!(why.contains(words), "{elsewhere:?}: {why}"),
            None => assert_eq!(why, "no such domain on this host"),
        }
    }
}

/// The search for a domain that is off asks once: it decides nothing. The proof asks twice.
#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_are_asked_three_times_for_one_answer() {
    let world = World::new();
    let uris = [world.hypervisor("here", "off")];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    backend.ask_others(Arc::new(PlayedHosts(move |_: &DomainQuestion| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(vec![shown("h1", Sight::Absent, Instant::now())])
    })));
    assert_eq!(ask(&backend, PowerAction::Status).await, "off");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

/// A machine that was paused when it migrated looks at its source as one that never left: its end proves
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_paused_instance_needs_a_look_everywhere() {
    for (elsewhere, expected) in
        [(Sight::Off, "done"), (Sight::On, "fail"), (Sight::Unknown("h2 is silent".to_owned()), "fail")]
    {
        let world = World::new();
        let uris = [world.hypervisor("here", "paused")];
        let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
        backend.ask_others(played(elsewhere.clone()));
        assert_eq!(ask(&backend, PowerAction::Off).await, expected, "{elsewhere:?}");
    }
}

/// Another host may ask by the name alone: then this domain is the one, and no other with its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_by_the_name_alone_finds_no_namesake() {
    let world = World::new();
    let uris = [world.hypervisor("here", "on")];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    let said = |found: Vec<Finding>| match &found[..] {
        [Finding { sight: Sight::Unknown(why), .. }] => why.clone(),
        other => panic!("{other:?}"),
    };
    let by_name = DomainQuestion::about_unknown(None, "x");
    let why = said(backend.look_here(&by_name, Instant::now() + PATIENCE).await);
    assert!(why.contains("runs x, with the UUID") && !why.contains("another"), "{why}");
    let other = DomainQuestion::about_unknown(DomainId::parse(OTHER), "x");
    let why = said(backend.look_here(&other, Instant::now() + PATIENCE).await);
    assert!(why.contains("another domain with the name x"), "{why}");
}

/// The name alone does not say which domain is meant, but one that is off is none that runs.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_namesake_that_is_on_is_a_doubt() {
    let question = DomainQuestion::new(DomainId::parse_canonical(UUID).unwrap(), "x".to_owned());
    for (here, is_doubt) in [("namesake on", true), ("namesake off", false), ("none", false)] {
        let world = World::new();
        let uris = [world.hypervisor("here", here)];
        let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
        let looks = backend.look_here(&question, Instant::now() + PATIENCE).await;
        let [Finding { sight, .. }] = &looks[..] else { panic!("{looks:?}") };
        assert_eq!(matches!(sight, Sight::Unknown(why) if why.contains(OTHER)), is_doubt, "{here}");
        assert_eq!(*sight == Sight::Absent, !is_doubt, "{here}: {sight:?}");
    }
}

/// Hosts that answer for each UUID of its own.
struct Hosts(Vec<(DomainId, Vec<Finding>)>);

impl PeerHosts for Hosts {
    fn look<'a>(&'a self, question: &'a DomainQuestion, _: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        let now = Instant::now();
        let of = self.0.iter().find(|it| it.0 == question.uuid).expect("it is asked about").1.clone();
        Box::pin(async move { of.into_iter().map(|it| Finding { began: now, ended: now, ..it }).collect() })
    }

    fn recall<'a>(
        &'a self,
        _: &'a DomainQuestion,
        _: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// Two domains have one name. The one that is defined here is off, the other one left another host for one
/// that nobody asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_off_only_if_the_namesake_that_left_is_too() {
    let (own, other) = (DomainId::parse(UUID).unwrap(), DomainId::parse(OTHER).unwrap());
    let at = |host: &str, sight, namesakes: &[DomainId]| {
        let (now, place) = (Instant::now(), DomainSite::Host(host.to_owned()));
        Finding { place, sight, began: now, ended: now, namesakes: namesakes.to_vec() }
    };
    let moved = || Sight::MovedAway(Duration::from_secs(60));
    for (seen_at_h3, status, on) in [
        (Sight::Absent, "fail", "fail"),
        (Sight::Ended(Some(Duration::from_secs(90))), "fail", "fail"),
        (Sight::Ended(Some(Duration::from_secs(9))), "off", "done"),
        (Sight::On, "fail", "fail"),
        (Sight::Unknown("h3 is silent".to_owned()), "fail", "fail"),
    ] {
        let down = if status == "off" { "done" } else { "fail" };
        for (action, expected) in [
            (PowerAction::Status, status),
            (PowerAction::Off, down),
            (PowerAction::Reboot, down),
            (PowerAction::On, on),
        ] {
            let world = World::new();
            let uris = [world.hypervisor("here", "off")];
            let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
            let about_own = vec![at("h2", Sight::Absent, &[other]), at("h3", Sight::Absent, &[])];
            let about_other = vec![at("h2", moved(), &[]), at("h3", seen_at_h3.clone(), &[])];
            backend.ask_others(Arc::new(Hosts(vec![(own, about_own), (other, about_other)])));
            let target = Target::new("x", false).unwrap();
            let located = backend.locate(&target, Instant::now() + PATIENCE).await.unwrap();
            let seems_off = matches!(located, LocatedDomain::Off(_));
            assert_eq!(seems_off, status == "off", "{seen_at_h3:?}");
            assert_eq!(ask(&backend, action).await, expected, "{action} {seen_at_h3:?}");
            // By its UUID this one is meant alone.
            if action == PowerAction::Status {
                let (lease, _released) = Lease::new(Instant::now() + PATIENCE, 1);
                let why = match backend.status(located.domain(), &lease).await {
                    Err(error) => error.to_string(),
                    _ => UUID.to_owned(),
                };
                assert!(why.contains(UUID), "{why}");
                let target = Target::new(UUID, true).unwrap();
                let located = backend.locate(&target, lease.until()).await.unwrap();
                assert!(matches!(located, LocatedDomain::Off(_)), "{located:?}");
                let seen = backend.status(located.domain(), &lease).await;
                assert!(matches!(seen, Ok(SeenPower::Off(_))), "{seen:?}");
            }
        }
    }
}

/// The same at two hypervisors of one daemon.
#[tokio::test(flavor = "multi_thread")]
async fn a_namesake_that_left_another_hypervisor_of_this_host_is_a_doubt() {
    let world = World::new();
    let uris = [world.hypervisor("first", "off"), world.hypervisor("second", "namesake off")];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    backend.hypervisors()[1].record_move(OTHER.parse().unwrap());
    for action in [PowerAction::Status, PowerAction::Off, PowerAction::On, PowerAction::Reboot] {
        assert_eq!(ask(&backend, action).await, "fail", "{action}");
    }
    let question = DomainQuestion::new(DomainId::parse(UUID).unwrap(), "x".to_owned());
    let why = backend.prove_off(&question, Instant::now() + PATIENCE).await.unwrap_err().to_string();
    assert!(why.contains(OTHER) && why.contains(&uris[1]) && why.contains("`peers`"), "{why}");
    let looks = backend.look_here(&question, Instant::now() + PATIENCE).await;
    assert_eq!(looks[1].namesakes, [DomainId::parse(OTHER).unwrap()]);
}

/// libvirt is well: what took the time is to be looked for elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_that_is_asked_too_late_is_not_called_slow() {
    let world = World::new();
    let uris = [world.hypervisor("here", "off")];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    // No work that could be done before the time is looked at.
    let (end, may_end) = std::sync::mpsc::channel::<()>();
    let work = move |_: &libvirt_host::Connection| {
        let _ = may_end.recv();
        Ok(())
    };
    let why = backend.hypervisors()[0].call(Instant::now(), work).await.unwrap_err().to_string();
    drop(end);
    assert!(why.contains("no time was left to ask libvirt at"), "{why}");
}

/// Another host, with hypervisors of its own, that is asked in this process.
struct Linked(Arc<LibvirtBackend>);

impl PeerHosts for Linked {
    fn look<'a>(&'a self, question: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            let found = self.0.look_here(question, until).await;
            let place = DomainSite::Host("other".to_owned());
            vec![Finding { place, ..found[0].clone() }]
        })
    }

    fn recall<'a>(
        &'a self,
        _: &'a DomainQuestion,
        _: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// Two clients ask two hosts for the same machine, each over TCP: one starts it, the other finds it on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hosts_that_are_asked_at_once_start_one_instance() {
    for turn in 0..20 {
        let world = World::new();
        let mut hosts = Vec::new();
        for name in ["h1", "h2"] {
            let uris = [world.hypervisor(name, "off")];
            // A reboot of what is off starts it at every second turn.
            let (backend, _) = started(&uris, turn % 2 == 1, &Hypervisors::default()).await;
            hosts.push(Arc::new(backend));
        }
        hosts[0].ask_others(Arc::new(Linked(Arc::clone(&hosts[1]))));
        hosts[1].ask_others(Arc::new(Linked(Arc::clone(&hosts[0]))));
        let second = if turn % 2 == 1 { PowerAction::Reboot } else { PowerAction::On };
        let (first, second) = tokio::join!(
            ask_within(&hosts[0], PowerAction::On, Duration::from_secs(8)),
            ask_within(&hosts[1], second, Duration::from_secs(8)),
        );
        let question = DomainQuestion::new(DomainId::parse_canonical(UUID).unwrap(), "x".to_owned());
        let mut on = 0;
        for host in &hosts {
            let found = host.look_here(&question, Instant::now() + PATIENCE).await;
            on += usize::from(found[0].sight == Sight::On);
        }
        assert_eq!(on, 1, "turn {turn}: {first}, {second}");
        assert_eq!(first, "done", "turn {turn}");
    }
}

/// A transient domain leaves nothing when it migrates away. Only its event tells that, and comes after it.
#[tokio::test]
async fn an_event_that_is_late_is_awaited() {
    use libvirt_host::{LifecycleEvent, LifecycleKind};
    let uris = ["test:///default".to_owned()];
    let (backend, _) = started(&uris, false, &Hypervisors::default()).await;
    let uuid: Uuid = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c".parse().unwrap();
    let hypervisor = Arc::clone(&backend.hypervisors[0]);
    let tell = |kind, detail| {
        hypervisor.tell(&LifecycleEvent { uuid, name: "x".to_owned(), kind, detail });
    };
    tell(LifecycleKind::Started, 0);
    let memory = Arc::clone(&hypervisor);
    let until = Instant::now() + Duration::from_secs(30);
    let look = hypervisor.call(until, move |connection| super::act::sight(connection, uuid, &memory));
    let event = async {
        // Without the event the look does not end; one that does has ended long before.
        tokio::time::sleep(Duration::from_millis(200)).await;
        tell(LifecycleKind::Stopped, 3);
    };
    let (looked, ()) = tokio::join!(look, event);
    let (_, sight) = looked.unwrap();
    assert!(matches!(sight, Sight::MovedAway(_)), "{sight:?}");
}

/// The machine may run at the silent host: to start it elsewhere would be the second instance.
#[test]
fn what_was_handed_over_is_started_nowhere_while_a_host_is_silent() {
    let silent = ["h1 does not answer".to_owned()];
    for end in [super::OtherEnd::NotFound, super::OtherEnd::NotSought] {
        let why = super::handed_over(end, &silent);
        assert!(why.ends_with("repair that one first, and ask again. h1 does not answer"), "{why}");
        assert!(!why.contains("virsh") && !why.contains("no other host"), "{why}");
    }
    let why = super::handed_over(super::OtherEnd::NotFound, &[]);
    assert!(why.contains("no other host that is asked has the machine") && why.contains("virsh"), "{why}");
    let why = super::handed_over(super::OtherEnd::NotSought, &[]);
    assert!(why.contains("not asked. Ask again") && !why.contains("virsh"), "{why}");
}

/// Older machines with one name moved away from the first host and ended at the second, which saw it.
async fn hosts_with_older_machines(count: u8) -> ([Arc<LibvirtBackend>; 2], Vec<DomainId>, World) {
    use libvirt_host::{LifecycleEvent, LifecycleKind};
    let world = World::new();
    let older: Vec<_> = (1..=count).map(|it| DomainId::from_bytes([it; 16])).collect();
    let mut hosts = Vec::new();
    for (name, shows) in [("h1", "none"), ("h2", "off")] {
        let uris = [world.hypervisor(name, shows)];
        hosts.push(Arc::new(started(&uris, false, &Hypervisors::default()).await.0));
    }
    let [first, second] = <[Arc<LibvirtBackend>; 2]>::try_from(hosts).ok().unwrap();
    for (host, stopped) in [(&first, 3), (&second, 1)] {
        for uuid in older.iter().map(|it| super::libvirt_uuid(*it)) {
            for (kind, detail) in [(LifecycleKind::Started, 0), (LifecycleKind::Stopped, stopped)] {
                host.hypervisors[0].tell(&LifecycleEvent { uuid, name: "x".to_owned(), kind, detail });
            }
        }
        // An end within some milliseconds after a move never counts.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    first.ask_others(Arc::new(Linked(Arc::clone(&second))));
    second.ask_others(Arc::new(Linked(Arc::clone(&first))));
    ([first, second], older, world)
}

/// Returns how many domains with the name, which left this host, it tells of.
async fn told_of(host: &LibvirtBackend) -> usize {
    let question = DomainQuestion::new(DomainId::parse(UUID).unwrap(), "x".to_owned());
    host.look_here(&question, Instant::now() + PATIENCE).await[0].namesakes.len()
}

/// A look that takes long may not show yet that an end came after a move.
async fn asked_again_until<F: Future<Output = bool>>(is_so: impl Fn() -> F, what: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A move is forgotten at the host that proved the machine off, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_ends_the_moves_at_the_host_that_made_it() {
    let ([first, second], older, _world) = hosts_with_older_machines(2).await;
    let question = |uuid: DomainId| DomainQuestion::new(uuid, uuid.to_string());
    let proves = async |host: &LibvirtBackend, uuid| {
        host.prove_off(&question(uuid), Instant::now() + PATIENCE).await.is_ok()
    };
    asked_again_until(|| proves(&second, older[0]), "the second host proves it").await;
    assert_eq!(told_of(&first).await, 2, "the other host's memory is its own");
    assert!(proves(&first, older[0]).await);
    assert_eq!(told_of(&first).await, 1);
    // By the name: of the other one too.
    let by_name = DomainQuestion::new(DomainId::parse(UUID).unwrap(), "x".to_owned());
    let proof = first.prove_off(&by_name, Instant::now() + PATIENCE).await;
    assert!(proof.is_ok(), "{proof:?}");
    assert_eq!(told_of(&first).await, 0);
    // No end is needed any more.
    second.hypervisors[0].tell(&libvirt_host::LifecycleEvent {
        uuid: super::libvirt_uuid(older[0]),
        name: "x".to_owned(),
        kind: libvirt_host::LifecycleKind::Other(99),
        detail: 0,
    });
    assert!(second.hypervisors[0].end_age(super::libvirt_uuid(older[0])).is_none());
    assert!(proves(&first, older[0]).await);
}

/// A move is over when an end was seen; else the machine can't be called off, and nobody has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_moved_away_and_was_not_seen_to_end_is_out_of_sight() {
    let ([first, second], older, _world) = hosts_with_older_machines(2).await;
    // The end of the first one is forgotten.
    second.hypervisors[0].tell(&libvirt_host::LifecycleEvent {
        uuid: super::libvirt_uuid(older[0]),
        name: "x".to_owned(),
        kind: libvirt_host::LifecycleKind::Other(99),
        detail: 0,
    });
    let away = || first.away_from_here().into_keys().collect::<Vec<_>>();
    assert_eq!(away(), older);
    let is_seen = async || !first.is_out_of_sight(older[1]).await;
    asked_again_until(is_seen, "the end counts").await;
    assert!(first.is_out_of_sight(older[0]).await);
    assert_eq!(away(), older[..1], "the other one is off");
    assert!(!second.is_out_of_sight(older[1]).await && second.away_from_here().is_empty());
}

/// More of them than one request looks at, and the ones that are looked for in the background.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_older_machines_are_fewer_at_the_next_request() {
    let ([first, _second], older, _world) = hosts_with_older_machines(12).await;
    let by_name = DomainQuestion::new(DomainId::parse(UUID).unwrap(), "x".to_owned());
    let why = first.prove_off(&by_name, Instant::now() + PATIENCE).await.unwrap_err().to_string();
    assert!(why.contains("more than 8") || why.contains("saw that domain end"), "{why}");
    let asks = async || first.prove_off(&by_name, Instant::now() + PATIENCE).await.is_ok();
    asked_again_until(asks, "it is off at last").await;
    assert_eq!(told_of(&first).await, 0);

    let ([first, _second], _, _world) = hosts_with_older_machines(12).await;
    // Once: none is looked for again so soon. So its end has to count by then.
    let counts = async || {
        let question = DomainQuestion { by: TargetKind::Uuid, ..by_name.clone() };
        let question = question.about_namesake(older[11]);
        first.prove_off(&question, Instant::now() + PATIENCE).await.is_ok()
    };
    asked_again_until(counts, "the end of the last one counts").await;
    for left in [3, 0] {
        first.prove_moves(older.clone()).await;
        assert_eq!(told_of(&first).await, left);
    }
}
