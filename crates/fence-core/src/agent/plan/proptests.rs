// SPDX-License-Identifier: GPL-2.0-or-later
//! Property tests of the rules, over random devices: some slow, some dumb, some that hang, fail, or lie. Time
//! is made up.
//!
//! `PROPTEST_CASES` sets the number of worlds.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Answer of a device to a status check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    /// The true state.
    Truth,
    /// The state of so many milliseconds ago.
    Old(u64),
    /// No state for so many milliseconds, and the true state then.
    Blind(u64),
    /// No answer to who asks in so many milliseconds, and the true state then.
    Deaf(u64),
    /// Always the same answer, whatever the state.
    Always(StatusReading),
}

/// Simulated device. Times in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Made {
    word: Word,
    /// Time until it answers.
    answers: u64,
    /// Report of its actions; with [`ActionReport::Unknown`] it hangs.
    says: ActionReport,
    acts: u64,
    /// Time from the begin of an action to its effect, if there is one.
    effect: Option<u64>,
    /// Time when it tells another request the state, if it does.
    told: Option<u64>,
    /// Moment between the begin of a status check (0) and its answer (1000) that the answer is about.
    sees: u64,
    limits: DeviceLimits,
}

/// Answer of a device to one status check.
#[derive(Clone, Copy, Debug)]
struct Answer {
    device: usize,
    heard: StatusReading,
    began: Instant,
    at: Instant,
}

/// Recorded event.
#[derive(Debug)]
enum Event {
    Said { device: usize, heard: StatusReading, began: Instant, took: Duration },
    Acted { device: usize, began: Instant, limit: Instant, ended: Instant },
}

struct World {
    made: Vec<Made>,
    begin: Instant,
    until: Instant,
    now: Instant,
    goal: PowerState,
    /// Time at which the domain reaches the wanted state.
    changes: Option<Instant>,
    events: Vec<Event>,
    /// Times for which nobody was asked, because an action was under way.
    acting: Vec<(Instant, Instant)>,
    stopped: Option<Instant>,
    moves: Option<Move>,
}

/// Move of a machine that is on all the time, and that each device shows only while it is there.
#[derive(Clone, Copy, Debug)]
struct Move {
    from: usize,
    to: usize,
    when: Instant,
}

fn ms(it: u64) -> Duration {
    Duration::from_millis(it)
}

impl World {
    fn new(made: Vec<Made>, goal: PowerState, time: u64, stop: Option<u64>) -> Self {
        let begin = Instant::now();
        let (until, stopped) = (begin + ms(time), stop.map(|it| begin + ms(it)));
        let (events, acting) = (Vec::new(), Vec::new());
        Self { made, begin, until, now: begin, goal, changes: None, events, acting, stopped, moves: None }
    }

    fn opposite(&self) -> PowerState {
        if self.goal == PowerState::Off { PowerState::On } else { PowerState::Off }
    }

    /// Goes through the plan to its end.
    fn run(&mut self) -> (PlanStep, PowerPlan) {
        let mut plan = PowerPlan::new(self.goal, self.made.iter().map(|it| it.limits), self.until);
        for _ in 0..10_000 {
            if self.stopped.is_some_and(|it| self.now >= it) {
                plan.stop();
            }
            match plan.next(self.now) {
                PlanStep::Look(these) => self.look(&mut plan, these, Some(StatusReading::Is(self.goal))),
                PlanStep::Ask(these) => self.look(&mut plan, these, Some(StatusReading::Is(self.opposite()))),
                PlanStep::Act(device, limit) => self.act(&mut plan, device, limit),
                PlanStep::Wait(then) => {
                    assert!(then > self.now && then <= self.until, "a pause that is none");
                    self.now = then;
                }
                end @ (PlanStep::Done | PlanStep::GiveUp) => return (end, plan),
            }
        }
        panic!("it never ends")
    }

    fn look(&mut self, plan: &mut PowerPlan, these: Vec<(usize, Instant)>, enough: Option<StatusReading>) {
        assert!(!these.is_empty());
        let began = self.now;
        let mut answers = Vec::new();
        for (device, limit) in &these {
            assert!(*limit > began && *limit <= self.until, "a look without time");
            assert!(*limit - began <= self.made[*device].limits.status);
            answers.push(self.answer(*device, began, *limit));
        }
        // One that is to be heard out is asked again while others are waited for.
        let is_look = enough == Some(StatusReading::Is(self.goal));
        let limits: Vec<(usize, Instant)> = these;
        let mut unheard: Vec<usize> = limits.iter().map(|it| it.0).collect();
        while let Some(next) = (0..answers.len()).min_by_key(|it| (answers[*it].at, answers[*it].device)) {
            let Answer { device, heard, began, at } = answers.swap_remove(next);
            self.now = at;
            if let Some(told) = self.told(device).filter(|it| *it <= at) {
                plan.told(device, told);
            }
            plan.looked(device, heard, began, at);
            self.events.push(Event::Said { device, heard, began, took: at - began });
            if Some(heard) == enough {
                break;
            }
            unheard.retain(|it| *it != device);
            let is_alone = if is_look { unheard.is_empty() } else { answers.is_empty() };
            let (then, limit) =
                (at + FAILED_PAUSE, limits.iter().find(|it| it.0 == device).map_or(at, |it| it.1));
            if !is_alone && plan.is_to_be_heard_out(device) && then < limit {
                answers.push(self.answer(device, then, limit));
            }
        }
    }

    /// Answer of a device that is asked at `began`.
    fn answer(&self, device: usize, began: Instant, limit: Instant) -> Answer {
        let made = self.made[device];
        let at = began + ms(made.answers);
        // A run is killed when the time of its device is up.
        let end = limit.min(began + made.limits.answer);
        let at_state_of = |age: u64| {
            let is_so = self.changes.is_some_and(|it| it + ms(age) <= at);
            StatusReading::Is(if is_so { self.goal } else { self.opposite() })
        };
        let (at, heard) = match made.word {
            Word::Always(StatusReading::Silent) => (end, StatusReading::Silent),
            Word::Deaf(time) if began < self.begin + ms(time) => (end, StatusReading::Silent),
            _ if at > end => (end, StatusReading::Silent),
            Word::Truth if let Some(it) = self.moves => {
                let seen = began + (at - began) * u32::try_from(made.sees).unwrap() / 1000;
                let home = if seen < it.when { it.from } else { it.to };
                (at, StatusReading::Is(if home == device { PowerState::On } else { PowerState::Off }))
            }
            Word::Always(heard) => (at, heard),
            Word::Blind(time) if at < self.begin + ms(time) => (at, StatusReading::CantTell),
            Word::Truth | Word::Blind(_) | Word::Deaf(_) => (at, at_state_of(0)),
            Word::Old(age) => (at, at_state_of(age)),
        };
        Answer { device, heard, began, at }
    }

    /// Returns when a device tells another request the state.
    fn told(&self, device: usize) -> Option<Instant> {
        self.made[device].told.map(|it| self.begin + ms(it))
    }

    fn act(&mut self, plan: &mut PowerPlan, device: usize, limit: Instant) {
        assert!(limit >= self.now && limit <= self.until, "an action without time");
        assert!(self.stopped.is_none_or(|it| self.now < it), "begun after the end of the lease");
        let (made, began) = (self.made[device], self.now);
        let at = began + ms(made.acts);
        let (how, ended) = match made.says {
            ActionReport::Unknown => (ActionReport::Unknown, limit),
            _ if at > limit => (ActionReport::Unknown, limit),
            says => (says, at),
        };
        if let Some(effect) = made.effect
            && how != ActionReport::NotRun
        {
            let then = began + ms(effect);
            self.changes = Some(self.changes.map_or(then, |it| it.min(then)));
        }
        self.now = ended;
        plan.acted(device, how, began, ended);
        self.acting.push((began, ended));
        if how != ActionReport::NotRun {
            self.events.push(Event::Acted { device, began, limit, ended });
        }
    }

    fn last_action(&self) -> Option<Instant> {
        self.events.iter().rev().find_map(|it| match it {
            Event::Acted { ended, .. } => Some(*ended),
            Event::Said { .. } => None,
        })
    }

    /// Returns each answer of a device and the time when it was asked. A short silence is no answer.
    fn said(&self, of: usize) -> impl DoubleEndedIterator<Item = (StatusReading, Instant)> {
        self.events.iter().filter_map(move |it| match it {
            Event::Said { device, heard, began, took } if *device == of => {
                let silence = patience(self.goal, self.made[of].limits);
                (*heard != StatusReading::Silent || *took >= silence).then_some((*heard, *began))
            }
            _ => None,
        })
    }

    fn silences(&self, of: usize) -> usize {
        let silent = |event: &Event| match event {
            Event::Said { device, heard, .. } => *device == of && *heard == StatusReading::Silent,
            Event::Acted { .. } => false,
        };
        self.events.iter().filter(|it| silent(it)).count()
    }

    fn acted(&self, of: usize) -> impl Iterator<Item = (Instant, Instant)> {
        self.events.iter().filter_map(move |it| match it {
            Event::Acted { device, began, limit, .. } if *device == of => Some((*began, *limit)),
            _ => None,
        })
    }

    /// Returns whether a device could not tell the state for all of its time up to now.
    fn failed_throughout(&self, of: usize) -> bool {
        let said: Vec<(StatusReading, Instant, Instant)> = self
            .events
            .iter()
            .filter_map(|it| match it {
                Event::Said { device, heard, began, took } if *device == of => {
                    Some((*heard, *began, *began + *took))
                }
                _ => None,
            })
            .collect();
        let Some(last) = said.last().map(|it| it.2) else { return false };
        let told = self.told(of).filter(|it| *it <= last);
        let own = said.iter().rposition(|it| matches!(it.0, StatusReading::Is(_)));
        let asking = |from: Instant, to: Instant| {
            let acting = self.acting.iter().map(|it| it.1.min(to).saturating_duration_since(it.0.max(from)));
            to.saturating_duration_since(from).saturating_sub(acting.sum())
        };
        // Rows of failures without a pause between them, from their begin to their end.
        let mut rows: Vec<(Instant, Instant)> = Vec::new();
        for (heard, began, ended) in said.into_iter().skip(own.map_or(0, |it| it + 1)) {
            let row = rows.last_mut().filter(|it| asking(it.1, began) <= FAILED_GAP);
            match (heard, row) {
                (StatusReading::CantTell | StatusReading::Unusable, Some(row)) => row.1 = ended,
                (StatusReading::CantTell | StatusReading::Unusable, None) => rows.push((began, ended)),
                _ => {}
            }
        }
        rows.last().is_some_and(|(begin, end)| {
            let begin = told.map_or(*begin, |it| it.max(*begin));
            begin <= *end && asking(begin, *end) + FAILED_PAUSE >= patience(self.goal, self.made[of].limits)
        })
    }

    /// Said after the last action, and the last that it said.
    fn says_now(&self, device: usize) -> Option<StatusReading> {
        let (heard, began) = self.said(device).next_back()?;
        self.last_action().is_none_or(|it| began >= it).then_some(heard)
    }
}

fn heard() -> impl Strategy<Value = StatusReading> {
    prop_oneof![
        Just(StatusReading::Is(PowerState::On)),
        Just(StatusReading::Is(PowerState::Off)),
        Just(StatusReading::CantTell),
        Just(StatusReading::Unlisted),
        Just(StatusReading::Unusable),
        Just(StatusReading::Silent)
    ]
}

fn limits(timeout: impl Strategy<Value = Option<Duration>>) -> impl Strategy<Value = DeviceLimits> {
    (timeout, 1_u64..=20, 0_u32..=3, any::<bool>()).prop_map(
        |(timeout, status, retries, is_known_to_fail)| {
            DeviceLimits {
                timeout,
                status: Duration::from_secs(status),
                // A status check may take two more runs.
                answer: Duration::from_secs(status) / 3,
                retries,
                is_known_to_fail,
            }
        },
    )
}

fn time_out() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((1_u64..=60).prop_map(Duration::from_secs))
}

fn made(limits: impl Strategy<Value = DeviceLimits>) -> impl Strategy<Value = Made> {
    let word = prop_oneof![
        3 => Just(Word::Truth),
        1 => (0_u64..20_000).prop_map(Word::Old),
        1 => (0_u64..30_000).prop_map(Word::Blind),
        1 => (0_u64..30_000).prop_map(Word::Deaf),
        2 => heard().prop_map(Word::Always),
    ];
    let says = prop_oneof![
        Just(ActionReport::Claimed),
        Just(ActionReport::Failed),
        Just(ActionReport::GaveUp),
        Just(ActionReport::Unknown),
        Just(ActionReport::NotRun)
    ];
    let answers = prop_oneof![4 => 1_u64..3000, 1 => 3000_u64..100_000];
    let effect = proptest::option::of(0_u64..20_000);
    let told = prop_oneof![3 => Just(None), 1 => (0_u64..30_000).prop_map(Some)];
    (word, answers, says, 0_u64..15_000, effect, told, 0_u64..=1000, limits).prop_map(
        |(word, answers, says, acts, effect, told, sees, limits)| Made {
            word,
            answers,
            says,
            acts,
            effect,
            told,
            sees,
            limits,
        },
    )
}

fn goal() -> impl Strategy<Value = PowerState> {
    prop_oneof![3 => Just(PowerState::Off), 1 => Just(PowerState::On)]
}

proptest! {
    /// Success is what a device says that was asked after the last action, while nobody who said the opposite
    /// stands by it. "Off" is said only if every device was heard, or silent for all of its time, after the
    /// last action, and none of them said "on".
    #[test]
    fn done_is_what_a_look_after_the_last_action_shows(
        made in vec(made(limits(time_out())), 1..6),
        goal in goal(),
        time in 0_u64..60_000,
        stop in proptest::option::of(0_u64..60_000),
    ) {
        let mut world = World::new(made, goal, time, stop);
        let (end, plan) = world.run();
        prop_assert!(world.now <= world.until.max(world.begin), "late");
        if end == PlanStep::Done {
            let all = 0..world.made.len();
            prop_assert!(all.clone().any(|it| world.says_now(it) == Some(StatusReading::Is(goal))));
            for it in all {
                let opposed = world.said(it).any(|(heard, _)| heard == StatusReading::Is(world.opposite()));
                let now = world.says_now(it);
                prop_assert!(now != Some(StatusReading::Is(world.opposite())), "{it} objects");
                let may_be_skipped = !opposed && goal == PowerState::On && world.last_action().is_some();
                prop_assert!(now.is_some() || may_be_skipped, "{it} was not asked");
                let failing = matches!(now, Some(StatusReading::CantTell | StatusReading::Unusable));
                prop_assert!(!failing || world.failed_throughout(it), "{it} was not heard out");
            }
        } else if plan.actions() == 0 && world.stopped.is_none() {
            // Nothing was begun, so nothing could be: nobody could be run, or there was no time.
            let idle = |it: usize| world.made[it].says == ActionReport::NotRun || world.now >= world.until;
            prop_assert!((0..world.made.len()).all(idle));
        }
    }

    /// A machine that moves once from one device to another, and is on all the time, is never called off.
    /// Devices that are silent, or can't tell, are no places where it could be.
    #[test]
    fn a_machine_that_moves_is_not_off(
        mut made in vec(made(limits(time_out())), 2..5),
        (from, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        (time, when) in (0_u64..60_000, 0_u64..20_000),
        stop in proptest::option::of(0_u64..5_000),
    ) {
        let (from, to) = (from.index(made.len()), to.index(made.len()));
        for (place, it) in made.iter_mut().enumerate() {
            it.effect = None;
            if [from, to].contains(&place) {
                (it.word, it.answers) = (Word::Truth, 1 + it.answers % 300);
            } else if it.word != Word::Always(StatusReading::Unlisted) {
                it.word = Word::Truth;
            }
        }
        let mut world = World::new(made, PowerState::Off, time, stop);
        world.moves = Some(Move { from, to, when: world.begin + ms(when) });
        let (end, _) = world.run();
        prop_assert_ne!(end, PlanStep::Done, "{:?}", world.events);
    }

    /// However others hang, each device that answers is told to act, within its part of the time and in its
    /// turn.
    #[test]
    fn each_device_gets_its_share(
        mut made in vec(made(limits(Just(None))), 1..6),
        time in 20_000_u64..60_000,
    ) {
        // Nobody says that it is done: that is another matter.
        for it in &mut made {
            it.effect = None;
            if it.word == Word::Always(StatusReading::Is(PowerState::Off)) {
                it.word = Word::Truth;
            }
        }
        let mut world = World::new(made, PowerState::Off, time, None);
        let (end, _) = world.run();
        prop_assert_eq!(end, PlanStep::GiveUp);
        let (time, count) = (ms(time), u32::try_from(world.made.len()).unwrap());
        for device in (0..world.made.len()).filter(|it| world.made[*it].says != ActionReport::NotRun) {
            let silent = world.silences(device) > 0;
            match world.acted(device).next() {
                None => prop_assert!(silent, "{device} had no turn"),
                Some((began, limit)) => {
                    // The parts of all others, and what its own look took.
                    let longest = time / count * (count - 1) + time / count / 3 + ms(10);
                    let waited = began - world.begin;
                    prop_assert!(silent || waited <= longest, "{device} waited for {waited:?}");
                    prop_assert!(limit < world.until, "nothing is left for a look");
                }
            }
        }
        // Of those that don't answer, at least one is told to act all the same.
        let acted = (0..world.made.len()).any(|it| world.acted(it).next().is_some());
        prop_assert!(acted || world.made.iter().any(|it| it.says == ActionReport::NotRun));
    }

    /// One good device among such that hang, fail or know nothing is enough.
    #[test]
    fn one_good_device_is_enough(
        mut made in vec(made(limits(Just(None))), 0..4),
        place in 0_usize..4,
        answers in 1_u64..1000,
        effect in 0_u64..2000,
        retries in 0_u32..=2,
    ) {
        for it in &mut made {
            (it.effect, it.told) = (None, None);
            it.word = match it.word {
                Word::Truth
                | Word::Old(_)
                | Word::Blind(_)
                | Word::Deaf(_)
                | Word::Always(StatusReading::Is(_)) => {
                    Word::Always(StatusReading::CantTell)
                }
                dumb @ Word::Always(_) => dumb,
            };
        }
        let status = Duration::from_secs(10);
        let limits = DeviceLimits {
            timeout: None,
            status,
            answer: status,
            retries,
            is_known_to_fail: false,
        };
        let (word, says) = (Word::Truth, ActionReport::Claimed);
        let (told, sees) = (None, 0);
        let good = Made { word, answers, says, acts: effect, effect: Some(effect), told, sees, limits };
        made.insert(place.min(made.len()), good);
        // Those that can't tell are heard out after the action, each to the end of its last try.
        let blind = made.iter().filter(|it| it.word == Word::Always(StatusReading::CantTell));
        let heard_out = blind.map(|it| it.limits.answer + ms(it.answers).min(it.limits.answer)).max();
        let time = ms(28_000) + heard_out.unwrap_or_default();
        let mut world = World::new(made, PowerState::Off, u64::try_from(time.as_millis()).unwrap(), None);
        let (end, _) = world.run();
        prop_assert_eq!(end, PlanStep::Done, "{:?}", world.events);
    }

    /// A live device that goes on saying "on" is never outvoted.
    #[test]
    fn whoever_stands_by_the_opposite_is_heard(
        mut made in vec(made(limits(time_out())), 1..5),
        place in 0_usize..5,
        answers in 1_u64..1000,
        goal in goal(),
        time in 2000_u64..60_000,
    ) {
        let opposite = if goal == PowerState::Off { PowerState::On } else { PowerState::Off };
        let place = place.min(made.len());
        let like = made[0];
        let limits = DeviceLimits { answer: Duration::from_secs(1), ..like.limits };
        made.insert(place, Made { word: Word::Always(StatusReading::Is(opposite)), answers, limits, ..like });
        let mut world = World::new(made, goal, time, None);
        let (end, _) = world.run();
        // For "on" one that was never asked, because another acted first, has nothing to take back.
        let asked = world.said(place).any(|(heard, _)| heard == StatusReading::Is(opposite));
        let was_tried = goal == PowerState::On && !asked && world.last_action().is_some();
        prop_assert!(end == PlanStep::GiveUp || was_tried, "{:?}", world.events);
    }
}
