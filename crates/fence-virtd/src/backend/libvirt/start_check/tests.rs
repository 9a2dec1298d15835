// SPDX-License-Identifier: GPL-2.0-or-later
//! The question before a start, to places that say what a case has them say.

use fence_core::domain::{DomainHome, DomainId, TargetKind};
use fence_core::evidence::Sight;
use fence_core::owed_start::PlaceMemory;

use super::super::{AnnouncedStart, LibvirtRestart, StartAnnouncement, StartSource};
use super::*;
use crate::hypervisor::Hypervisors;
use crate::request::lease::Lease;
use crate::util::locks::{Mutex, lock};

const HOME: &str = "test:///home";
const UUID: &str = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";

/// Words of the places of one case.
#[derive(Clone)]
struct Words {
    /// Memory of the other host, and its look.
    remembers: PlaceWord,
    sees: Sight,
    /// Instances at the hypervisor that is to start the domain, and at another one of this host.
    home: Sight,
    beside: Sight,
    verdict: StartVerdict,
}

struct Places {
    words: Words,
    /// True where every place was to be heard, once for each question.
    asked_all: Mutex<Vec<bool>>,
    judged: Mutex<usize>,
    /// Times that the next verdicts take, the last one first.
    pauses: Mutex<Vec<Duration>>,
    /// Instances at the hypervisor that is to start the domain, at the next looks, the last one first.
    homes: Mutex<Vec<Sight>>,
}

struct OtherHost(Words);

fn finding(place: DomainSite, sight: Sight) -> Finding {
    let now = Instant::now();
    Finding { place, sight, began: now, ended: now, namesakes: Vec::new() }
}

fn other_host() -> DomainSite {
    DomainSite::Host("h2".to_owned())
}

fn ready<'a, T: Send + 'a>(it: T) -> BoxedFuture<'a, T> {
    Box::pin(std::future::ready(it))
}

impl PeerHosts for OtherHost {
    fn look<'a>(&'a self, _: &'a DomainQuestion, _: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        ready(vec![finding(other_host(), self.0.sees.clone())])
    }

    fn recall<'a>(
        &'a self,
        _: &'a DomainQuestion,
        _: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>> {
        ready(vec![(other_host(), self.0.remembers.clone())])
    }
}

impl Places {
    fn looks_here(&self) -> Vec<Finding> {
        let at = |uri: &str, sight: &Sight| finding(DomainSite::Hypervisor(uri.to_owned()), sight.clone());
        let home = lock(&self.homes).pop().unwrap_or_else(|| self.words.home.clone());
        vec![at(HOME, &home), at("test:///beside", &self.words.beside)]
    }
}

impl StartPlaces for Places {
    fn others(&self) -> Vec<Arc<dyn PeerHosts>> {
        lock(&self.asked_all).push(false);
        vec![Arc::new(OtherHost(self.words.clone()))]
    }

    fn look_beside<'a>(
        &'a self,
        _: &'a str,
        _: &'a DomainQuestion,
        _: Instant,
    ) -> BoxedFuture<'a, Vec<Finding>> {
        ready(self.looks_here().split_off(1))
    }

    fn look<'a>(&'a self, _: &'a DomainQuestion, _: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        lock(&self.asked_all).push(true);
        let looks = self.looks_here().into_iter();
        ready(looks.chain([finding(other_host(), self.words.sees.clone())]).collect())
    }

    fn judge<'a>(&'a self, _: &'a DomainRef, _: Duration, _: Instant) -> BoxedFuture<'a, StartVerdict> {
        *lock(&self.judged) += 1;
        let pause = lock(&self.pauses).pop().unwrap_or_default();
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            self.words.verdict.clone()
        })
    }
}

fn nothing_happened() -> Words {
    Words {
        remembers: PlaceWord::Memory(PlaceMemory { noted_for: Duration::from_secs(3600), last: None }),
        sees: Sight::Absent,
        home: Sight::Off,
        beside: Sight::Absent,
        verdict: StartVerdict::Stands,
    }
}

fn places(words: Words, pauses: Vec<Duration>) -> Places {
    let (asked_all, judged, homes) = Default::default();
    Places { words, asked_all, judged, pauses: Mutex::new(pauses), homes }
}

fn domain() -> DomainRef {
    let uuid = DomainId::parse(UUID).unwrap();
    DomainRef { name: "x".to_owned(), uuid, home: DomainHome::Here(0), by: TargetKind::Name }
}

/// Outcome of a question: whether the order may be given for a while, at once or not at all, whether every
/// place was to be heard, and how often they were judged.
async fn asked(words: Words, seen_ago: Duration, was_away: bool) -> (&'static str, bool, usize) {
    let places = places(words, Vec::new());
    let domain = domain();
    let course = DownCourse { since: None, was_away };
    let mut check = StartCheck::after(&places, (&domain, HOME), &course);
    check.seen -= seen_ago;
    check.since -= seen_ago;
    let answer = check.ask(Instant::now() + Duration::from_secs(60)).await;
    let outcome = match answer {
        Ok(order_by) if order_by > Instant::now() => "order",
        Ok(_) => "watch",
        Err(ActionError::Refused(_)) => "refused",
        Err(ActionError::Unavailable(_)) => "can't tell",
        Err(other) => panic!("{other:?}"),
    };
    let asked_all = lock(&places.asked_all).clone();
    assert!(asked_all.iter().all(|it| *it == asked_all[0]), "{asked_all:?}");
    (outcome, asked_all[0], *lock(&places.judged))
}

/// Time since the domain was seen off after which libvirt has kept the start waiting.
const LONG: Duration = Duration::from_secs(4);

/// A host that is silent, or whose daemon is new, must not keep a machine down that was fenced a moment ago.
/// A sign that somebody had the machine since does.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_start_is_ended_by_a_sign_alone() {
    let plain = nothing_happened;
    let last = |age| PlaceMemory { noted_for: Duration::from_secs(3600), last: Some(age) };
    for (words, wanted) in [
        (plain(), "order"),
        (Words { remembers: PlaceWord::Unheard("is silent".to_owned()), ..plain() }, "order"),
        (Words { remembers: PlaceWord::NoMemory("is older".to_owned()), ..plain() }, "order"),
        (Words { sees: Sight::Unknown("silent".to_owned()), ..plain() }, "order"),
        (Words { remembers: PlaceWord::Memory(last(Duration::from_secs(60))), ..plain() }, "order"),
        (Words { remembers: PlaceWord::Memory(last(Duration::ZERO)), ..plain() }, "refused"),
        (Words { sees: Sight::On, ..plain() }, "refused"),
        (Words { beside: Sight::On, ..plain() }, "refused"),
        (Words { beside: Sight::Moving, ..plain() }, "refused"),
        // The order finds that one.
        (Words { home: Sight::On, ..plain() }, "order"),
    ] {
        let verdict = StartVerdict::Unheard("nobody asks for it".to_owned());
        let case = format!("{:?} {:?} {:?}", words.remembers, words.sees, words.beside);
        let answer = asked(Words { verdict, ..words }, Duration::ZERO, false).await;
        assert_eq!(answer, (wanted, false, 0), "{case}");
    }
}

/// Every place has to say that nothing happened since, where libvirt was away or kept the order waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_after_an_outage_needs_the_word_of_every_place() {
    let plain = nothing_happened;
    let verdict = |verdict| Words { verdict, ..plain() };
    let why = || "why".to_owned();
    for (seen_ago, was_away) in [(Duration::ZERO, true), (LONG, false), (LONG, true)] {
        for (words, wanted, judged) in [
            (plain(), "order", 1),
            (verdict(StartVerdict::Overtaken(why())), "refused", 1),
            (verdict(StartVerdict::Untold(why())), "refused", 1),
            (verdict(StartVerdict::Unheard(why())), "can't tell", 1),
            (Words { sees: Sight::On, ..plain() }, "refused", 0),
            (Words { beside: Sight::On, ..plain() }, "refused", 0),
            (Words { sees: Sight::Moving, ..plain() }, "can't tell", 0),
            // It may be that of an order from before: it is watched, and nothing is ordered yet.
            (Words { home: Sight::On, ..verdict(StartVerdict::Untold(why())) }, "watch", 0),
        ] {
            let case = format!("{:?} {:?} {:?} {:?}", words.verdict, words.sees, words.beside, words.home);
            assert_eq!(asked(words, seen_ago, was_away).await, (wanted, true, judged), "{case}");
        }
    }
}

/// When the instance ended is not known where the power-off took long: what came since it began counts.
#[test]
fn a_power_off_that_took_long_counts_from_its_beginning() {
    let long_ago = Instant::now() - ANSWER_AGE * 2;
    let since = |began, was_away| {
        let mut course = DownCourse { since: None, was_away };
        course.note(began);
        course.note(Instant::now());
        course.since
    };
    assert_eq!(since(long_ago, false), Some(long_ago));
    let now = Instant::now();
    assert_eq!(since(now, true), Some(now));
    assert_eq!(since(now, false), None);
}

/// Second question, where one place was slow: what the first one said is old then.
#[tokio::test(flavor = "multi_thread")]
async fn places_are_asked_again_where_one_was_slow() {
    let places = places(nothing_happened(), vec![Duration::ZERO, ANSWER_AGE + Duration::from_millis(50)]);
    let check = StartCheck::after(&places, (&domain(), HOME), &DownCourse { since: None, was_away: true });
    check.ask(Instant::now() + Duration::from_secs(60)).await.unwrap();
    assert_eq!(*lock(&places.judged), 2);
}

/// An order that libvirt kept waiting is not given by the answers of before: the places are asked anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_comes_too_late_is_asked_about_again() {
    let world = tempfile::NamedTempFile::new().unwrap();
    let xml = format!(
        "<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
         <test:runstate>5</test:runstate><name>x</name><uuid>{UUID}</uuid><memory>1024</memory>\
         <os><type arch='i686'>hvm</type></os></domain></node>"
    );
    std::fs::write(world.path(), xml).unwrap();
    let known = Hypervisors::default();
    let home = known.at(&format!("test://{}", world.path().display()));
    home.first_attempt().await.unwrap();
    let places = places(nothing_happened(), Vec::new());
    // By the first look nothing may be ordered.
    *lock(&places.homes) = vec![Sight::Off, Sight::On];
    let course = DownCourse { since: None, was_away: true };
    let check = Some(StartCheck::after(&places, (&domain(), HOME), &course));
    let (starting, uuid) = (Arc::default(), domain().uuid);
    let announced = StartAnnouncement(Arc::new(AnnouncedStart { starting, uuid }));
    let (source, uuid) = (StartSource::Definition, UUID.parse().unwrap());
    let restart = LibvirtRestart { home, uuid, source, judged: None, announced, check, has_begun: false };
    let (lease, _released) = Lease::new(Instant::now() + Duration::from_secs(60), 1);
    restart.order_start(&lease).await.unwrap();
    assert_eq!(*lock(&places.asked_all), [true, true]);
}
