// SPDX-License-Identifier: GPL-2.0-or-later
//! The judgement, by cases and over random worlds.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::recall::{BOOT_GAP, BootMoment, PastEvent, SHORT_GAP, WatchGap};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn at(start: Instant, step: u64) -> Instant {
    start + Duration::from_millis(step)
}

fn sights() -> impl Strategy<Value = Sight> {
    let age = || (0_u64..4000).prop_map(Duration::from_secs);
    prop_oneof![
        Just(Sight::On),
        Just(Sight::Moving),
        Just(Sight::Off),
        Just(Sight::Absent),
        Just(Sight::Down("it says so".to_owned())),
        Just(Sight::Unknown("silent".to_owned())),
        prop::option::of(age()).prop_map(Sight::Ended),
        age().prop_map(Sight::MovedAway),
    ]
}

fn finding(start: Instant, place: usize, sight: Sight, began: u64) -> Finding {
    let (began, ended) = (at(start, began), at(start, began));
    Finding::without_namesakes(DomainSite::Host(place.to_string()), sight, began, ended)
}

/// The next step is a key of the configuration, of all hosts.
#[test]
fn the_text_of_a_move_names_this_host_and_the_next_step() {
    let start = Instant::now();
    let why = |place| {
        let look = Finding { place, ..finding(start, 0, Sight::MovedAway(HOUR), 1) };
        match ProvedOff::from_rounds(start, &[vec![look]]) {
            Err(Doubt::CantTell(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let said = why(DomainSite::Hypervisor("qemu:///system".to_owned()));
    assert!(said.contains("from this host (") && said.contains("`peers` of all hosts"), "{said}");
    assert!(said.contains("nobody watched"), "{said}");
    assert!(!why(DomainSite::Host("h1".to_owned())).contains("this host"));
}

/// A host that is silent may have it: then nothing is lost from sight.
#[test]
fn a_machine_is_out_of_sight_if_all_places_were_looked_at() {
    let start = Instant::now();
    let is_lost = |sight: Sight| {
        let round = |step| {
            vec![finding(start, 1, Sight::MovedAway(HOUR), step), finding(start, 2, sight.clone(), step)]
        };
        is_out_of_sight(&[round(1), round(2)])
    };
    for sight in [Sight::Off, Sight::Absent, Sight::Ended(None), Sight::MovedAway(HOUR)] {
        assert!(is_lost(sight.clone()), "{sight:?}");
    }
    let ended = Sight::Ended(Some(Duration::from_secs(1)));
    for sight in [Sight::On, Sight::Moving, Sight::Unknown("it hangs".to_owned()), ended] {
        assert!(!is_lost(sight.clone()), "{sight:?}");
    }
    assert!(!is_out_of_sight(&[vec![finding(start, 1, Sight::Off, 1)]]) && !is_out_of_sight(&[]));
}

/// A host that is down can't tell that the machine was there: the reason names that host, and no `peers`.
#[test]
fn the_text_of_a_move_names_a_host_that_is_down() {
    let start = Instant::now();
    let down = Sight::Down("/bin/true says so".to_owned());
    let round =
        |step| vec![finding(start, 1, Sight::MovedAway(HOUR), step), finding(start, 2, down.clone(), step)];
    let why = ProvedOff::from_rounds(start, &[round(1), round(2)]).unwrap_err().to_string();
    for words in ["host 2 is down: /bin/true says so.", "may have moved to a host that is down", "with virsh"]
    {
        assert!(why.contains(words), "{why}");
    }
    assert!(!why.contains("peers") && !why.contains("not asked"), "{why}");
}

#[test]
fn a_host_alone_needs_one_look() {
    let start = Instant::now();
    let one = |sight| ProvedOff::from_rounds(start, &[vec![finding(start, 0, sight, 1)]]);
    for off in [Sight::Off, Sight::Ended(None), Sight::Absent] {
        assert_eq!(one(off).map(|it| it.since()), Ok(at(start, 1)));
    }
    for not in [Sight::On, Sight::Moving, Sight::MovedAway(HOUR), Sight::Unknown("it hangs".to_owned())] {
        assert!(one(not.clone()).is_err(), "{not:?}");
    }
    assert!(ProvedOff::from_rounds(at(start, 2), &[vec![finding(start, 0, Sight::Off, 1)]]).is_err());
    assert!(ProvedOff::from_rounds(start, &[]).is_err() && ProvedOff::from_rounds(start, &[vec![]]).is_err());
}

#[test]
fn one_place_that_can_not_tell_spoils_all() {
    let start = Instant::now();
    let rounds = |sight: &Sight| {
        [1, 2].map(|step| {
            vec![finding(start, 0, Sight::Ended(None), step), finding(start, 1, sight.clone(), step)]
        })
    };
    assert!(ProvedOff::from_rounds(start, &rounds(&Sight::Absent)).is_ok());
    let why = ProvedOff::from_rounds(start, &rounds(&Sight::Unknown("h1 hangs".to_owned()))).unwrap_err();
    assert_eq!(why.to_string(), "can't tell whether the domain is off: h1 hangs");
    assert_eq!(
        ProvedOff::from_rounds(start, &rounds(&Sight::On)),
        Err(Doubt::On(DomainSite::Host("1".to_owned())))
    );
    assert!(matches!(ProvedOff::from_rounds(start, &rounds(&Sight::Moving)), Err(Doubt::Moving(_))));
    assert!(ProvedOff::from_rounds(start, &rounds(&Sight::MovedAway(HOUR))).is_err());
}

/// An end clears up a move only if it came after it, by the clocks of both hosts.
#[test]
fn an_end_counts_only_after_the_move() {
    let start = Instant::now();
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    let judge = |sights: &[Sight]| {
        let round = |step| -> Vec<Finding> {
            sights.iter().enumerate().map(|(n, it)| finding(start, n, it.clone(), step)).collect()
        };
        ProvedOff::from_rounds(start, &[round(1), round(2)]).is_ok()
    };
    assert!(judge(&[Sight::MovedAway(HOUR), Sight::Ended(Some(minute))]));
    assert!(judge(&[Sight::MovedAway(HOUR), Sight::Ended(Some(HOUR - second))]));
    // It ended there before it was started anew, and moved to nobody knows where.
    assert!(!judge(&[Sight::MovedAway(minute), Sight::Ended(Some(HOUR))]));
    assert!(!judge(&[Sight::MovedAway(minute), Sight::Ended(Some(minute))]), "in the same moment");
    assert!(!judge(&[Sight::MovedAway(HOUR), Sight::Ended(None)]), "it may be older");
    for no_end in [Sight::Off, Sight::Absent] {
        assert!(!judge(&[Sight::MovedAway(HOUR), no_end]));
    }
    // Each move needs its end, and one end after all of them is enough.
    assert!(!judge(&[
        Sight::MovedAway(HOUR),
        Sight::MovedAway(second),
        Sight::Ended(Some(minute)),
        Sight::Absent
    ]));
    assert!(judge(&[Sight::MovedAway(HOUR), Sight::MovedAway(2 * minute), Sight::Ended(Some(minute))]));
    // Two clocks may differ after a day by seconds.
    let day = 24 * HOUR;
    assert!(!judge(&[Sight::MovedAway(day), Sight::Ended(Some(day - second))]));
    assert!(judge(&[Sight::MovedAway(day), Sight::Ended(Some(day - minute))]));
    assert!(!judge(&[Sight::MovedAway(Duration::MAX), Sight::Ended(Some(Duration::MAX))]), "nonsense");
}

#[test]
fn a_host_tells_what_speaks_most_against_off() {
    let start = Instant::now();
    let own = |sights: &[Sight]| {
        let looks: Vec<Finding> = sights
            .iter()
            .enumerate()
            .map(|(n, it)| Finding {
                place: DomainSite::Hypervisor(n.to_string()),
                ..finding(start, n, it.clone(), 1)
            })
            .collect();
        strongest(&looks)
    };
    let silent = Sight::Unknown("silent".to_owned());
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    let (moved, ended) = (Sight::MovedAway(minute), Sight::Ended(Some(HOUR)));
    assert!(matches!(own(&[]), Sight::Unknown(_)));
    assert_eq!(own(&[silent.clone(), Sight::Moving, Sight::On]), Sight::On);
    assert_eq!(own(&[silent.clone(), Sight::Moving, moved.clone()]), Sight::Moving);
    assert_eq!(own(&[moved.clone(), ended.clone(), silent.clone(), Sight::Off]), silent);
    assert_eq!(own(&[Sight::Off, ended.clone(), moved.clone()]), moved, "it ended before");
    assert_eq!(own(&[moved.clone(), Sight::Ended(None)]), moved);
    let after = Sight::Ended(Some(second));
    assert_eq!(own(&[moved, ended.clone(), after.clone(), Sight::Off]), after);
    assert_eq!(own(&[Sight::Absent, ended.clone(), Sight::Off]), ended);
    assert_eq!(own(&[Sight::Absent, Sight::Off]), Sight::Off);
    assert_eq!(own(&[Sight::Absent]), Sight::Absent);
}

/// Nobody looked at such a host, so the proof says on what it rests.
#[test]
fn a_host_that_is_down_has_nothing_and_is_named() {
    let start = Instant::now();
    let down = |word: &str| Sight::Down(word.to_owned());
    let round = |step, word: &str, here: Sight| {
        vec![finding(start, 0, here, step), finding(start, 1, down(word), step)]
    };
    let proof =
        ProvedOff::from_rounds(start, &[round(1, "a", Sight::Off), round(2, "b", Sight::Off)]).unwrap();
    assert_eq!(proof.down().as_deref(), Some("host 1 is down: b"));
    let looked = [vec![finding(start, 0, Sight::Off, 1)]];
    assert_eq!(ProvedOff::from_rounds(start, &looked).unwrap().down(), None);
    // That host may have handed it on to one that nobody knows.
    assert!(ProvedOff::from_rounds(start, &[1, 2].map(|it| round(it, "a", Sight::MovedAway(HOUR)))).is_err());
    assert!(ProvedOff::from_rounds(start, &[round(1, "a", Sight::Off)]).is_err());
    // An answer of the power switch from before the request is none.
    assert!(ProvedOff::from_rounds(at(start, 2), &[1, 2].map(|it| round(it, "a", Sight::Off))).is_err());
}

#[test]
fn a_place_of_one_round_alone_is_not_enough() {
    let start = Instant::now();
    let first = vec![finding(start, 0, Sight::Off, 1), finding(start, 1, Sight::Off, 1)];
    let second = vec![finding(start, 0, Sight::Off, 2)];
    assert!(ProvedOff::from_rounds(start, &[first.clone(), second.clone()]).is_err());
    assert!(ProvedOff::from_rounds(start, &[second, first.clone()]).is_err());
    assert!(ProvedOff::from_rounds(start, std::slice::from_ref(&first)).is_err());
    let overlap = vec![finding(start, 0, Sight::Off, 1), finding(start, 1, Sight::Off, 0)];
    assert!(ProvedOff::from_rounds(start, &[first, overlap]).is_err());
}

/// A world of places in which one machine runs, moves in an instant, stops and starts.
#[derive(Clone, Debug)]
struct World {
    places: usize,
    /// Steps at which something happens, and the place where the machine is from then on.
    course: Vec<(u64, Option<usize>)>,
}

impl World {
    fn machine_at(&self, step: u64) -> Option<usize> {
        self.course.iter().take_while(|it| it.0 <= step).last().and_then(|it| it.1)
    }

    fn is_off_somewhen(&self, from: u64, to: u64) -> bool {
        (from..=to).any(|step| self.machine_at(step).is_none())
    }

    fn moves_between(&self, from: u64, to: u64) -> usize {
        (from..to).filter(|step| self.machine_at(*step) != self.machine_at(step + 1)).count()
    }
}

fn world() -> impl Strategy<Value = World> {
    (1_usize..4).prop_flat_map(|places| {
        let course = vec((0_u64..60, prop::option::weighted(0.7, 0..places)), 1..4);
        course.prop_map(move |mut course| {
            course.sort_by_key(|it| it.0);
            // It begins somewhere.
            course[0].0 = 0;
            World { places, course }
        })
    })
}

proptest! {
    /// Whoever looks at all places twice after the request came, whenever, says "off" only of a machine that
    /// was off at some moment since. A machine that moves and comes back within two rounds can hide from
    /// looks that show instances alone: it is let through here.
    #[test]
    fn off_is_said_only_of_a_machine_that_was_off(
        world in world(),
        asked in 0_u64..40,
        looks in vec((0_u64..50, 0_u64..50), 3),
        silent in prop::option::weighted(0.2, 0_usize..3),
        twice in any::<bool>(),
    ) {
        let start = Instant::now();
        let look = |place: usize, step: u64| {
            let sight = if silent == Some(place) {
                Sight::Unknown("silent".to_owned())
            } else if world.machine_at(step) == Some(place) {
                Sight::On
            } else {
                Sight::Off
            };
            finding(start, place, sight, step)
        };
        let round = |pick: fn(&(u64, u64)) -> u64| -> Vec<Finding> {
            (0..world.places).map(|place| look(place, pick(&looks[place]))).collect()
        };
        let (first, second) = (round(|it| it.0), round(|it| it.1));
        let rounds = if twice { vec![first, second] } else { vec![second] };
        let last = looks.iter().map(|it| it.1).max().unwrap_or_default();
        if ProvedOff::from_rounds(at(start, asked), &rounds).is_ok() {
            prop_assert!(world.is_off_somewhen(asked, last) || world.moves_between(asked, last) > 1);
            prop_assert!(silent.is_none_or(|it| it >= world.places));
            prop_assert!(twice || world.places == 1);
        }
    }

    /// A host that looks at all places in order, and finds nothing twice, can say "off".
    #[test]
    fn a_machine_that_is_off_can_be_called_so(places in 1_usize..5) {
        let start = Instant::now();
        let round = |step| (0..places).map(|it| finding(start, it, Sight::Off, step)).collect::<Vec<_>>();
        prop_assert!(ProvedOff::from_rounds(start, &[round(1), round(2)]).is_ok());
        prop_assert!(seems_off(&round(1)));
    }

    /// Proof by two rounds is what one of them has to let through.
    #[test]
    fn no_look_that_speaks_against_off_seems_off(sights in vec(sights(), 1..4)) {
        let start = Instant::now();
        let round = |step| -> Vec<Finding> {
            sights.iter().enumerate().map(|(n, it)| finding(start, n, it.clone(), step)).collect()
        };
        let proved = ProvedOff::from_rounds(start, &[round(1), round(2)]);
        prop_assert_eq!(proved.is_ok(), seems_off(&round(2)));
    }
}

/// Event of a machine in the world of places that remember.
#[derive(Clone, Copy, Debug)]
enum Course {
    /// Move to this place, if it is on; the places from [`KNOWN`] on are asked by nobody.
    Moves(usize),
    Ends,
    /// Start at this place, if it is off. Nobody starts it where nobody asks.
    Starts(usize),
}

const KNOWN: usize = 3;

fn courses() -> impl Strategy<Value = Vec<Course>> {
    vec(
        prop_oneof![
            4 => (0..KNOWN + 1).prop_map(Course::Moves),
            2 => Just(Course::Ends),
            3 => (0..KNOWN).prop_map(Course::Starts),
        ],
        1..12,
    )
}

proptest! {
    /// Places remember when the last instance ended or left; some can't tell when, and the clocks of the
    /// hosts run apart. Whatever the machine did, it is off when it is called so.
    #[test]
    fn a_memory_never_makes_a_machine_off(
        course in courses(),
        steps in vec(1_u64..3_000_000, 12),
        drifts in vec(-90_i64..=90, KNOWN),
        timeless in prop::option::weighted(0.2, 0..KNOWN),
    ) {
        let (mut now, mut on_at) = (0_u64, None::<usize>);
        // What each place saw last, and when, in milliseconds.
        let mut last: [Option<(bool, u64)>; KNOWN] = [None; KNOWN];
        for (event, step) in course.into_iter().zip(steps) {
            now += step;
            match (event, on_at) {
                (Course::Moves(to), Some(from)) if to != from => {
                    if from < KNOWN { last[from] = Some((false, now)); }
                    if to < KNOWN { last[to] = None; }
                    on_at = Some(to);
                }
                (Course::Ends, Some(at)) => {
                    if at < KNOWN { last[at] = Some((true, now)); }
                    on_at = None;
                }
                (Course::Starts(at), None) => {
                    last[at] = None;
                    on_at = Some(at);
                }
                _ => {}
            }
        }
        now += 1000;
        let start = Instant::now();
        let sight = |place: usize| {
            if on_at == Some(place) {
                return Sight::On;
            }
            let Some((has_ended, when)) = last[place] else { return Sight::Absent };
            let age = i64::try_from(now - when).unwrap();
            let age = Duration::from_millis((age + age * drifts[place] / 1_000_000).unsigned_abs());
            match has_ended {
                true if timeless == Some(place) => Sight::Ended(None),
                true => Sight::Ended(Some(age)),
                false => Sight::MovedAway(age),
            }
        };
        let round = |step| (0..KNOWN).map(|it| finding(start, it, sight(it), step)).collect::<Vec<_>>();
        let judged = ProvedOff::from_rounds(start, &[round(1), round(2)]);
        if judged.is_ok() {
            prop_assert_eq!(on_at, None);
        } else if let (None, Some(last_end)) =
            (on_at, last.iter().flatten().filter(|it| it.0).map(|it| it.1).max())
        {
            // An end that was seen long after all moves is enough.
            let last_move = last.iter().flatten().filter(|it| !it.0).map(|it| it.1).max();
            let is_clear = last_move.is_none_or(|it| last_end > it + (now - it) / 4000 + 10);
            prop_assert!(!is_clear || timeless.is_some());
        }
    }
}

/// Hosts that are asked in the world of daemons that are started anew.
const HOSTS: usize = 2;

/// Event in the world of places whose daemons are started anew, with their memory on disk.
#[derive(Clone, Copy, Debug)]
enum RestartCourse {
    Machine(Course),
    /// The daemon at this place ends; with `false` it says nothing of the moment.
    Leaves(usize, bool),
    /// The daemon at this place is back.
    Returns(usize),
    /// libvirt at this place forgets what it tells of moves: it is started anew, or the definition is made
    /// anew.
    Forgets(usize),
    /// The host of this place is booted, and its daemon watches some seconds later.
    Boots(usize),
    /// The daemon at this place is asked for the machine, and forgets a move that is over.
    Proves(usize),
}

/// A host with a daemon that remembers.
#[derive(Clone, Debug)]
struct PlaceWorld {
    /// True time of its boot, in milliseconds.
    booted: u64,
    /// Memory: on disk, and the same in the daemon.
    memory: Option<PastEvent>,
    /// The daemon is away, since a moment that the disk may tell.
    away: Option<(u64, Option<BootMoment>)>,
    /// libvirt tells of a definition that stayed behind.
    libvirt_tells: bool,
    /// A move that nobody saw, and that nothing tells of: a hole that the page names.
    is_hole: bool,
    /// The last thing that happened here was seen.
    was_seen: bool,
    is_booted_anew: bool,
}

impl PlaceWorld {
    fn moment(&self, now: u64) -> BootMoment {
        BootMoment::from_nanos(
            (i64::try_from(now).unwrap() - i64::try_from(self.booted).unwrap()) * 1_000_000,
        )
    }

    fn happens(&mut self, past: Option<PastEvent>) {
        self.libvirt_tells = matches!(past, Some(PastEvent::MovedAway(_)));
        self.was_seen = self.away.is_none();
        if self.was_seen {
            self.memory = past;
        }
    }

    fn returns(&mut self, now: u64, is_on: bool) {
        let Some((_, last_watch)) = self.away.take() else { return };
        let gap = WatchGap { last_watch, is_new_boot: self.is_booted_anew, watched_again: self.moment(now) };
        self.memory = self.memory.and_then(|it| gap.recall(it));
        if self.libvirt_tells
            && !matches!((self.memory, self.is_booted_anew), (Some(PastEvent::MovedAway(_)), false))
        {
            self.memory = Some(PastEvent::MovedAway(self.moment(now)));
        }
        if is_on {
            self.memory = None;
        }
        self.is_booted_anew = false;
    }
}

fn restart_courses() -> impl Strategy<Value = Vec<(RestartCourse, u64)>> {
    let step = prop_oneof![1_u64..20_000, 1_u64..3_000_000];
    let course = prop_oneof![
        4 => (0..HOSTS + 1).prop_map(|it| RestartCourse::Machine(Course::Moves(it))),
        2 => Just(RestartCourse::Machine(Course::Ends)),
        3 => (0..HOSTS).prop_map(|it| RestartCourse::Machine(Course::Starts(it))),
        2 => (0..HOSTS, any::<bool>()).prop_map(|(place, tells)| RestartCourse::Leaves(place, tells)),
        3 => (0..HOSTS).prop_map(RestartCourse::Returns),
        2 => (0..HOSTS).prop_map(RestartCourse::Forgets),
        1 => (0..HOSTS).prop_map(RestartCourse::Boots),
        4 => (0..HOSTS).prop_map(RestartCourse::Proves),
    ];
    vec((course, step), 4..14)
}

/// Asks the daemon at a place for the machine, which forgets a move that is over.
fn prove_at(places: &mut [PlaceWorld], at: usize, on_at: Option<usize>, now: u64) {
    if places.iter().any(|it| it.away.is_some()) {
        return;
    }
    let judged = proof_of(&shown(places, on_at, now));
    let place = DomainSite::Host(at.to_string());
    // What libvirt itself tells of would come back as a younger move.
    if judged.is_ok_and(|it| it.moved_from().contains(&place)) && !places[at].libvirt_tells {
        places[at].memory = None;
    }
}

/// Carries a course out; returns the places, and where the machine is.
fn run_restarts(course: Vec<(RestartCourse, u64)>, now: &mut u64) -> (Vec<PlaceWorld>, Option<usize>) {
    let new = PlaceWorld {
        booted: 0,
        memory: None,
        away: None,
        libvirt_tells: false,
        is_hole: false,
        was_seen: true,
        is_booted_anew: false,
    };
    let (mut places, mut on_at) = (vec![new; HOSTS], None::<usize>);
    // No machine comes to a place and moves away again in a short gap.
    let is_short = |place: &PlaceWorld, now: u64| {
        place.away.is_some_and(|(since, _)| Duration::from_millis(now - since) < SHORT_GAP)
    };
    for (event, step) in course {
        *now += step;
        match event {
            RestartCourse::Machine(Course::Moves(to)) if on_at.is_some_and(|it| it != to) => {
                let from = on_at.unwrap_or_default();
                if places.get(from).is_some_and(|it| is_short(it, *now)) {
                    continue;
                }
                if let Some(place) = places.get_mut(from) {
                    place.happens(Some(PastEvent::MovedAway(place.moment(*now))));
                }
                if let Some(place) = places.get_mut(to) {
                    place.happens(None);
                }
                on_at = Some(to);
            }
            RestartCourse::Machine(Course::Ends) => {
                if let Some(place) = on_at.take().and_then(|it| places.get_mut(it)) {
                    place.happens(Some(PastEvent::Ended(place.moment(*now))));
                }
            }
            RestartCourse::Machine(Course::Starts(at)) if on_at.is_none() => {
                places[at].happens(None);
                on_at = Some(at);
            }
            RestartCourse::Leaves(at, tells) if places[at].away.is_none() => {
                let moment = places[at].moment(*now);
                places[at].away = Some((*now, tells.then_some(moment)));
            }
            RestartCourse::Returns(at) => places[at].returns(*now, on_at == Some(at)),
            RestartCourse::Forgets(at) => {
                let place = &mut places[at];
                place.is_hole |= place.libvirt_tells && !place.was_seen;
                place.libvirt_tells = false;
            }
            RestartCourse::Boots(at) if places[at].away.is_none() => {
                if on_at == Some(at) {
                    on_at = None;
                }
                let place = &mut places[at];
                let last_watch = Some(place.moment(*now));
                (place.booted, place.libvirt_tells, place.is_booted_anew) = (*now + 60_000, false, true);
                *now += 60_000 + step.min(2 * u64::try_from(BOOT_GAP.as_millis()).unwrap());
                place.away = Some((*now, last_watch));
                place.returns(*now, false);
            }
            RestartCourse::Proves(at) => prove_at(&mut places, at, on_at, *now),
            _ => {}
        }
    }
    *now += 1000;
    for (at, place) in places.iter_mut().enumerate() {
        place.returns(*now, on_at == Some(at));
    }
    (places, on_at)
}

/// Returns what each place shows.
fn shown(places: &[PlaceWorld], on_at: Option<usize>, now: u64) -> Vec<Sight> {
    let sight = |(at, place): (usize, &PlaceWorld)| match place.memory {
        _ if on_at == Some(at) => Sight::On,
        None => Sight::Off,
        Some(PastEvent::Ended(when)) => Sight::Ended(Some(place.moment(now).since(when))),
        Some(PastEvent::MovedAway(when) | PastEvent::Saved(when)) => {
            Sight::MovedAway(place.moment(now).since(when))
        }
    };
    places.iter().enumerate().map(sight).collect()
}

/// Judges two rounds that show the same.
fn proof_of(sights: &[Sight]) -> Result<ProvedOff, Doubt> {
    let start = Instant::now();
    let round = |step| -> Vec<Finding> {
        sights.iter().enumerate().map(|(at, it)| finding(start, at, it.clone(), step)).collect()
    };
    ProvedOff::from_rounds(start, &[round(1), round(2)])
}

/// Returns whether the places make the machine off, after a course; and where it is.
fn judge_restarts(course: Vec<(RestartCourse, u64)>) -> (bool, Option<usize>) {
    let mut now = 0;
    let (places, on_at) = run_restarts(course, &mut now);
    now += 1000;
    let seen = shown(&places, on_at, now);
    // Where a move was lost without a trace, the place that lost it must not add to the damage.
    let without_holes: Vec<_> = seen
        .iter()
        .zip(&places)
        .map(|(it, place)| if place.is_hole { Sight::Off } else { it.clone() })
        .collect();
    let is_excused = places.iter().any(|it| it.is_hole) && proof_of(&without_holes).is_ok();
    (proof_of(&seen).is_ok() && !is_excused, on_at)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Daemons end, hosts are booted, libvirt forgets: what the next daemons read from disk makes no machine
    /// off that is on.
    #[test]
    fn a_memory_on_disk_never_makes_a_machine_off(course in restart_courses()) {
        let (is_off, on_at) = judge_restarts(course);
        prop_assert!(!is_off || on_at.is_none());
    }
}

#[test]
fn courses_with_restarts_that_are_seldom_drawn() {
    use RestartCourse::{Boots, Forgets, Leaves, Machine, Returns};
    let judge = |courses: &[RestartCourse], pause: u64| {
        judge_restarts(courses.iter().map(|it| (*it, pause * 1000)).collect())
    };
    let (starts, moves, ends) =
        (|at| Machine(Course::Starts(at)), |to| Machine(Course::Moves(to)), Machine(Course::Ends));
    let moved_and_ended = [starts(0), moves(1), ends];
    // The definition is made anew, or libvirtd is started anew, and then the daemon.
    let unseen = [starts(0), moves(HOSTS), Forgets(0), Leaves(0, true), Returns(0)];
    assert_eq!(judge(&unseen, 2), (false, Some(HOSTS)));
    assert_eq!(judge(&unseen, 60), (false, Some(HOSTS)));
    assert_eq!(judge(&[starts(0), moves(HOSTS), Boots(0)], 2), (false, Some(HOSTS)));
    // It ended elsewhere, and either daemon was started anew.
    for at in 0..HOSTS {
        let course = [&moved_and_ended[..], &[Leaves(at, true), Returns(at)]].concat();
        assert_eq!(judge(&course, 2), (true, None), "{at}");
        assert_eq!(judge(&course, 60), (false, None), "{at}: nobody knows what happened meanwhile");
    }
    // Whoever is asked in vain forgets nothing.
    let asked_in_vain = [starts(0), moves(HOSTS), Forgets(0), RestartCourse::Proves(0)];
    assert_eq!(judge(&asked_in_vain, 60), (false, Some(HOSTS)));
    // Unless its end was proved before that: then the move is over, and no end is needed any more.
    for at in 0..HOSTS {
        let proved = [Forgets(0), RestartCourse::Proves(0), Leaves(at, true), Returns(at)];
        assert_eq!(judge(&[&moved_and_ended[..], &proved].concat(), 60), (true, None), "{at}");
        let again = [starts(1), moves(HOSTS)];
        let course = [&moved_and_ended[..], &proved, &again].concat();
        assert_eq!(judge(&course, 60), (false, Some(HOSTS)), "{at}");
    }
    // The host that it left was booted a while after its end.
    assert_eq!(judge(&[&moved_and_ended[..], &[Boots(0)]].concat(), 200), (true, None));
    // It was back meanwhile, and moved again.
    let again = [Leaves(0, true), starts(0), moves(HOSTS), Returns(0)];
    assert_eq!(judge(&[&moved_and_ended[..], &again].concat(), 60), (false, Some(HOSTS)));
    // It ended here, was started when nobody watched, and moved without a trace.
    let ended_here =
        [starts(1), moves(0), ends, Leaves(0, true), starts(0), moves(HOSTS), Forgets(0), Returns(0)];
    assert_eq!(judge(&ended_here, 60), (false, Some(HOSTS)));
}

#[test]
fn an_end_since_a_moment_came_after_it() {
    let start = Instant::now();
    let ended = |age| {
        let look = finding(start, 0, Sight::Ended(age), 100_000);
        ended_since(&look, at(start, 40_000))
    };
    let second = Duration::from_secs(1);
    assert!(ended(Some(59 * second)) && ended(Some(Duration::ZERO)));
    assert!(!ended(Some(60 * second)), "the clocks run apart");
    assert!(!ended(Some(61 * second)) && !ended(None) && !ended(Some(Duration::MAX)));
    let look = finding(start, 0, Sight::Ended(Some(Duration::ZERO)), 1);
    assert!(!ended_since(&look, at(start, 2)));
    assert!(!ended_since(&finding(start, 0, Sight::Off, 9), start));
}

#[test]
fn the_end_of_an_instance_is_a_proof() {
    let start = Instant::now();
    let end = |sight| ProvedOff::from_end(start, &finding(start, 0, sight, 3));
    assert_eq!(end(Sight::Off).map(|it| it.since()), Ok(at(start, 3)));
    assert!(end(Sight::Absent).is_ok() && end(Sight::Ended(None)).is_ok());
    let down = Sight::Down("it says so".to_owned());
    for not in [Sight::On, Sight::Moving, Sight::MovedAway(HOUR), down, Sight::Unknown(String::new())] {
        assert!(end(not.clone()).is_err(), "{not:?}");
    }
    assert!(ProvedOff::from_end(at(start, 4), &finding(start, 0, Sight::Off, 3)).is_err());
}

#[test]
fn a_device_that_says_on_outweighs_all_others() {
    let start = Instant::now();
    let silent = || Sight::Unknown("silent".to_owned());
    let judge = |sights: &[Sight]| {
        let looks = sights.iter().cloned().enumerate().map(|(n, it)| {
            let last = finding(start, n, it, 1);
            DeviceLooks { quiet_since: last.began, last }
        });
        ProvedOff::from_devices(start, &looks.collect::<Vec<_>>())
    };
    assert!(judge(&[silent(), Sight::Off]).is_ok());
    assert_eq!(judge(&[Sight::Off, Sight::On]), Err(Doubt::On(DomainSite::Host("1".to_owned()))));
    assert!(judge(&[]).is_err() && judge(&[silent()]).is_err());
    let look = finding(start, 0, Sight::Off, 1);
    let old = [DeviceLooks { quiet_since: look.ended, last: look }];
    assert!(ProvedOff::from_devices(at(start, 2), &old).is_err());
    assert!(ProvedOff::from_devices(start, &old).is_ok());
}

proptest! {
    /// A machine that is on, and moves once between two devices at any moment, is not called off by looks of
    /// any kind; looks that follow each other often enough are believed of one that is off.
    #[test]
    fn a_machine_that_moves_between_devices_is_not_off(
        looks in vec((0_usize..3, 0_u64..20, 0_u64..6, any::<prop::sample::Index>()), 1..9),
        (from, to, when) in (0_usize..3, 0_usize..3, 0_u64..26),
        is_absent in any::<bool>(),
    ) {
        let start = Instant::now();
        let (mut shown, mut all_off) = (BTreeMap::new(), BTreeMap::new());
        for (device, began, took, seen) in looks {
            let seen = began + seen.index(usize::try_from(took).unwrap() + 1) as u64;
            let home = if seen >= when { to } else { from };
            let quiet = if is_absent && device == 2 { Sight::Absent } else { Sight::Off };
            let note = |table: &mut BTreeMap<usize, DeviceLooks>, sight: Sight| {
                let mut last = finding(start, device, sight.clone(), began);
                last.ended = at(start, began + took);
                let quiet_since = match table.get(&device) {
                    Some(it) if it.last.sight != Sight::On && it.last.began > last.began => return,
                    Some(it) if it.last.sight != Sight::On && sight != Sight::On => {
                        it.quiet_since.min(last.ended)
                    }
                    _ => last.ended,
                };
                table.insert(device, DeviceLooks { last, quiet_since });
            };
            note(&mut shown, if home == device { Sight::On } else { quiet.clone() });
            note(&mut all_off, quiet.clone());
        }
        let places = [from, to].iter().all(|it| shown.contains_key(it));
        let looks: Vec<_> = shown.into_values().collect();
        let judged = ProvedOff::from_devices(start, &looks);
        prop_assert!(!places || judged.is_err(), "{judged:?}: {looks:?}");
        for it in all_off.values_mut() {
            it.last.began = at(start, 30);
        }
        let twice: Vec<_> = all_off.into_values().collect();
        let says_off = twice.iter().any(|it| it.last.sight == Sight::Off);
        prop_assert_eq!(ProvedOff::from_devices(start, &twice).is_ok(), says_off);
    }
}
