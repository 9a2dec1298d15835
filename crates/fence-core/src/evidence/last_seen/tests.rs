// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of hosts against true courses of a machine: it starts, pauses, moves, is saved, is restored paused,
//! crashes, is powered off, and hosts lose their libvirtd and all that runs there.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::evidence::recall::WatchGap;
use crate::evidence::{DomainSite, Finding, ProvedOff, Sight};

/// Hosts that are asked, and all hosts: the last is one that nobody asks.
const ASKED: usize = 3;
const ALL: usize = 4;
const NOWHERE: usize = ALL - 1;
/// Time after which the one who migrates has decided, in seconds.
const SETTLE: i64 = 120;

/// Instance at a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TrueInstance {
    /// Machine itself.
    Whole { is_paused: bool, is_settled: bool },
    /// Machine itself, which stands still since it was restored: a hypervisor calls it a half.
    RestoredPaused,
    /// Machine itself, before its memory is whole.
    PostCopy,
    /// Instance that just starts, to wait for its memory: libvirt has told of nothing yet.
    Starting,
    /// Instance that waits for its memory.
    Incoming,
    /// Instance that stands still; its other half is the machine, or was.
    Half,
}

/// Step of a course. What can't happen at its time does nothing.
#[derive(Clone, Copy, Debug)]
enum CourseStep {
    Start(usize),
    Pause,
    Unpause,
    Migrate {
        to: usize,
    },
    /// The target is slow to start what waits for the memory.
    MigrateSlowly {
        to: usize,
    },
    /// Slow instance waits for its memory now, also if there is no source any more.
    ComeIn,
    Abort,
    /// The target has the machine, and the source has not heard of it.
    Switch,
    Confirm,
    /// The target has the machine before its memory is whole: the source can't go on any more.
    PostCopy,
    /// The source is told to go on, though the target has the machine.
    GoOn,
    Destroy(usize),
    Kill(usize),
    ManagedSave,
    SaveToFile,
    Restore(usize),
    /// A managed save of a machine that was paused is restored, or one to a file is restored paused.
    RestorePaused(usize),
    /// The daemon of this host ends what is here, and notes what that was.
    PowerOff(usize),
    /// The daemon of this host is asked, and forgets a move that is over.
    Prove(usize),
    /// libvirtd is started anew, or the daemon; a longer time or not; all instances die with it or none.
    Gap {
        host: usize,
        is_long: bool,
        all_die: bool,
        by_daemon: bool,
        /// libvirtd is started anew, with the daemon or alone, and lists what was there before. Then it finds
        /// what is dead, and tells nobody.
        lists_dead: bool,
        /// A migration hands the machine over meanwhile, to the host that nobody asks, and is not confirmed.
        moves: bool,
    },
}

#[derive(Default)]
struct TrueWorld {
    now: i64,
    instances: [Option<TrueInstance>; ALL],
    seen: [Option<LastSeen>; ASKED],
    /// Source and target of the migration that is under way or not confirmed, and when the target got it.
    migration: Option<(usize, usize, Option<i64>)>,
    /// Host that had the machine last.
    last: usize,
    is_in_file: bool,
    /// Moment until which a machine may run twice.
    twice_until: i64,
    /// Something happened after which an end may be unknown for good.
    is_clouded: bool,
    /// Untrue answer before the event of an end came.
    lie: Option<String>,
}

impl TrueWorld {
    fn moment(&self) -> BootMoment {
        BootMoment::from_nanos(self.now * 1_000_000_000)
    }

    fn tell(&mut self, host: usize, event: InstanceEvent) {
        let now = self.moment();
        if let Some(seen) = self.seen.get_mut(host) {
            *seen = Some(seen.unwrap_or(LastSeen::Known).after(event, now));
        }
    }

    fn is_machine(&self, host: usize) -> bool {
        use TrueInstance::{PostCopy, RestoredPaused, Whole};
        matches!(self.instances[host], Some(Whole { .. } | RestoredPaused | PostCopy))
    }

    fn machine(&self) -> Option<usize> {
        (0..ALL).find(|host| self.is_machine(*host))
    }

    /// Returns whether libvirt lets the machine run here and at another host, until one of the two ends. If
    /// one of them moves on to a host that nobody asks, the end of the other is taken for that of the
    /// machine: docs/truth.md knows that as a fault, and the courses leave it out.
    fn runs_twice(&self, host: usize) -> bool {
        self.is_machine(host) && (0..ALL).any(|it| it != host && self.is_machine(it))
    }

    fn is_nowhere(&self) -> bool {
        self.instances.iter().all(Option::is_none) && self.migration.is_none()
    }

    fn step(&mut self, step: CourseStep) {
        match step {
            // At the host that nobody asks only where the machine is by what the others know.
            CourseStep::Start(host) if self.is_nowhere() && (host < ASKED || self.last == host) => {
                (self.is_in_file, self.last) = (false, host);
                self.starts(host);
            }
            CourseStep::Restore(host) if self.is_nowhere() && self.is_in_file => {
                (self.is_in_file, self.last) = (false, host);
                self.starts(host);
            }
            CourseStep::RestorePaused(host)
                if self.is_nowhere() && (self.is_in_file || host < ASKED || self.last == host) =>
            {
                (self.is_in_file, self.last) = (false, host);
                self.is_clouded |= host >= ASKED;
                self.instances[host] = Some(TrueInstance::RestoredPaused);
                self.tell(host, InstanceEvent::Restored);
                let event =
                    if self.now % 2 == 0 { InstanceEvent::Paused } else { InstanceEvent::RestoredPaused };
                self.tell(host, event);
            }
            CourseStep::Unpause
                if self.migration.is_none()
                    && let Some(host) =
                        (0..ALL).find(|it| self.instances[*it] == Some(TrueInstance::RestoredPaused)) =>
            {
                self.instances[host] = Some(TrueInstance::Whole { is_paused: false, is_settled: true });
                self.tell(host, InstanceEvent::Resumed);
            }
            CourseStep::PowerOff(host) if host < ASKED => self.power_off(host),
            CourseStep::Pause | CourseStep::Unpause if !matches!(self.migration, Some((_, _, None))) => {
                let is_paused = matches!(step, CourseStep::Pause);
                for host in 0..ALL {
                    if let Some(TrueInstance::Whole { is_paused: paused, .. }) = &mut self.instances[host]
                        && *paused != is_paused
                    {
                        *paused = is_paused;
                        let event = if is_paused { InstanceEvent::Paused } else { InstanceEvent::Resumed };
                        self.tell(host, event);
                    }
                }
            }
            CourseStep::Destroy(host) => self.ends(host, StopCause::Ended),
            CourseStep::Kill(host) => self.ends(host, StopCause::Failed),
            CourseStep::ManagedSave | CourseStep::SaveToFile => {
                let runs_once = (0..ALL).filter(|it| self.is_machine(*it)).count() == 1;
                if let (Some(host), None, true) = (self.machine(), self.migration, runs_once) {
                    self.tell(host, InstanceEvent::Copied);
                    self.ends(host, StopCause::Saved);
                    if matches!(step, CourseStep::SaveToFile) {
                        (self.is_in_file, self.is_clouded) = (true, true);
                    } else if let Some(Some(seen)) = self.seen.get_mut(host) {
                        *seen = seen.saved_here();
                    }
                }
            }
            CourseStep::Prove(host) => self.prove(host),
            CourseStep::Gap { host, .. } if host < ASKED => self.gap(step),
            _ => self.migrate(step),
        }
    }

    /// Returns what libvirt says of an instance.
    fn listed(instance: Option<TrueInstance>) -> ListedState {
        match instance {
            None => ListedState::NoInstance,
            Some(TrueInstance::Incoming | TrueInstance::Half | TrueInstance::RestoredPaused) => {
                ListedState::Migrating
            }
            Some(TrueInstance::Starting) => ListedState::Starting,
            Some(TrueInstance::PostCopy) => ListedState::PostCopy,
            Some(TrueInstance::Whole { is_settled: true, is_paused: false }) => ListedState::Settled,
            Some(TrueInstance::Whole { .. }) => ListedState::Unsettled,
        }
    }

    /// Ends what is here, as the daemon does: what it takes for a half is no end of the machine, unless
    /// another host has, or had, the other half.
    fn power_off(&mut self, host: usize) {
        let (Some(instance), Some(seen)) = (self.instances[host], self.seen[host]) else { return };
        let mut is_half = seen.is_half(Self::listed(Some(instance)));
        let has_ended = |other: usize| match (self.seen[other], seen.half_since()) {
            (Some(LastSeen::Ended(when)), Some(since)) => when >= since,
            _ => false,
        };
        let mut others = (0..ASKED).filter(|it| *it != host);
        let is_found = others.any(|it| self.instances[it].is_some() || has_ended(it));
        self.ends(host, StopCause::Ended);
        let left = self.seen[host].unwrap_or(LastSeen::Known);
        is_half |= left.moved().is_some();
        self.seen[host] = match left {
            _ if is_half && is_found => Some(LastSeen::Ended(self.moment())),
            LastSeen::MovedAway(_) => Some(left),
            _ if is_half => {
                // Nobody knows where it came from. What ended there before it was seen to come in is no sign:
                // docs/truth.md knows that as a fault.
                self.is_clouded |= instance == TrueInstance::Incoming;
                Some(LastSeen::MovedAway(self.moment()))
            }
            _ => Some(left),
        };
    }

    fn prove(&mut self, host: usize) {
        let place = DomainSite::Hypervisor(host.to_string());
        if self.judge().is_ok_and(|it| it.moved_from().contains(&place)) {
            self.seen[host] = self.seen[host].map(|it| it.proved_off(it));
        }
    }

    fn starts(&mut self, host: usize) {
        self.is_clouded |= host >= ASKED;
        self.instances[host] = Some(TrueInstance::Whole { is_paused: false, is_settled: true });
        self.tell(host, InstanceEvent::Resumed);
        self.tell(host, InstanceEvent::Started);
    }

    fn migrate(&mut self, step: CourseStep) {
        match (step, self.migration) {
            (CourseStep::PostCopy | CourseStep::Switch, Some((_, to, None)))
                if self.instances[to] == Some(TrueInstance::Starting) => {}
            (CourseStep::PostCopy, Some((from, to, None)))
                if matches!(self.instances[from], Some(TrueInstance::Whole { is_paused: false, .. })) =>
            {
                self.instances[to] = Some(TrueInstance::PostCopy);
                self.instances[from] = Some(TrueInstance::Half);
                (self.migration, self.last) = (Some((from, to, Some(self.now))), to);
                self.tell(from, InstanceEvent::HandedOver);
                self.tell(to, InstanceEvent::ResumedInPostCopy);
            }
            // Nothing tells the source that it handed the machine over.
            (CourseStep::Switch, Some((from, to, None)))
                if self.instances[from] == Some(TrueInstance::RestoredPaused) =>
            {
                self.instances[to] = Some(TrueInstance::Whole { is_paused: true, is_settled: false });
                self.instances[from] = Some(TrueInstance::Half);
                (self.migration, self.last) = (Some((from, to, Some(self.now))), to);
                self.tell(to, InstanceEvent::Paused);
            }
            (CourseStep::Switch, Some((from, to, None))) => {
                let Some(TrueInstance::Whole { is_paused, .. }) = self.instances[from] else { return };
                self.instances[to] = Some(TrueInstance::Whole { is_paused, is_settled: false });
                self.instances[from] = Some(TrueInstance::Half);
                (self.migration, self.last) = (Some((from, to, Some(self.now))), to);
                if is_paused {
                    self.tell(to, InstanceEvent::Paused);
                    // It looks as if it had never left: docs/truth.md knows that as a fault.
                    self.ends(from, StopCause::Migrated);
                } else {
                    self.tell(from, InstanceEvent::HandedOver);
                    self.tell(to, InstanceEvent::Resumed);
                }
            }
            (CourseStep::Confirm, Some((from, to, Some(_)))) => {
                if self.instances[to] == Some(TrueInstance::PostCopy) {
                    self.instances[to] = Some(TrueInstance::Whole { is_paused: false, is_settled: false });
                    self.tell(to, InstanceEvent::Resumed);
                }
                self.ends(from, StopCause::Migrated);
            }
            (CourseStep::GoOn, Some((from, to, Some(since))))
                if self.instances[to] != Some(TrueInstance::PostCopy)
                    && from < ASKED
                    && to < ASKED
                    && self.now - since < SETTLE =>
            {
                self.instances[from] = Some(TrueInstance::Whole { is_paused: false, is_settled: false });
                (self.migration, self.twice_until) = (None, since + SETTLE);
                self.is_clouded = true;
                self.tell(from, InstanceEvent::Resumed);
            }
            _ => self.come_and_fail(step),
        }
    }

    /// Begins a migration, or ends one before its target has the machine.
    fn come_and_fail(&mut self, step: CourseStep) {
        match (step, self.migration) {
            (CourseStep::Migrate { to } | CourseStep::MigrateSlowly { to }, None) => {
                let Some(from) = self.machine().filter(|_| self.instances[to].is_none()) else { return };
                if self.instances[from] == Some(TrueInstance::PostCopy) {
                    return;
                }
                if to >= ASKED && self.runs_twice(from) {
                    return;
                }
                self.migration = Some((from, to, None));
                self.instances[to] = Some(TrueInstance::Starting);
                self.is_clouded |= from >= ASKED || to >= ASKED;
                if matches!(step, CourseStep::Migrate { .. }) {
                    self.comes_in(to);
                }
            }
            (CourseStep::ComeIn, _) => {
                let starting = (0..ALL).find(|it| self.instances[*it] == Some(TrueInstance::Starting));
                starting.into_iter().for_each(|it| self.comes_in(it));
            }
            (CourseStep::Abort, Some((_, to, None))) => self.ends(to, StopCause::Failed),
            // Nobody is left who would send the memory.
            (CourseStep::Abort, None) => {
                let in_vain = (0..ALL).find(|it| self.waits(*it));
                in_vain.into_iter().for_each(|it| self.ends(it, StopCause::Failed));
            }
            _ => {}
        }
    }

    /// Returns whether an instance is there that is not the machine, and was not.
    fn waits(&self, host: usize) -> bool {
        matches!(self.instances[host], Some(TrueInstance::Starting | TrueInstance::Incoming))
    }

    fn comes_in(&mut self, host: usize) {
        self.instances[host] = Some(TrueInstance::Incoming);
        self.tell(host, InstanceEvent::CameIn);
        if let Some((from, to, None)) = self.migration
            && to == host
        {
            self.tell(from, InstanceEvent::Copied);
        }
    }

    /// Ends what is at a host, and the migration that has it.
    fn ends(&mut self, host: usize, cause: StopCause) {
        let Some(was) = self.instances[host].take() else { return };
        // libvirt itself says of what migrated, when it is gone, that it did.
        if cause != StopCause::Migrated && self.machine().is_some() && self.judge().is_ok() {
            self.lie = Some(format!("before {cause:?} came: {:?} {:?}", self.instances, self.seen));
        }
        self.tell(host, InstanceEvent::Stopped(cause));
        match self.migration {
            Some((from, to, None)) if from == host => {
                // It may have been copied: nobody can tell that it was not handed over.
                self.is_clouded |= was == TrueInstance::RestoredPaused;
                self.migration = None;
                // Where the target is slow that comes later.
                if self.instances[to] == Some(TrueInstance::Incoming) && self.now % 2 == 1 {
                    self.ends(to, StopCause::Failed);
                }
            }
            Some((from, to, None)) if to == host => {
                self.is_clouded |= self.instances[from] == Some(TrueInstance::RestoredPaused);
                self.migration = None;
            }
            Some((from, to, Some(_))) if from == host => {
                self.migration = None;
                if self.instances[to] == Some(TrueInstance::PostCopy) {
                    // libvirt 8.5 says that it runs, an older one has paused it.
                    let is_new = self.now % 2 == 0;
                    let event =
                        if is_new { InstanceEvent::ResumedInPostCopy } else { InstanceEvent::PostCopyFailed };
                    self.tell(to, event);
                }
            }
            _ => {}
        }
    }

    fn gap(&mut self, step: CourseStep) {
        let CourseStep::Gap { host, is_long, all_die, by_daemon, lists_dead, moves } = step else { return };
        let (last_watch, was_there) = (self.moment(), self.instances[host]);
        // Nobody hears of what happens here.
        let heard = self.seen[host];
        // One that waits for its memory does not outlive its libvirtd.
        let is_under_way = matches!(self.migration, Some((from, to, None)) if from == host || to == host);
        if is_under_way && (!by_daemon || lists_dead) {
            self.step(CourseStep::Abort);
        }
        if self.waits(host) && (!by_daemon || lists_dead) {
            self.instances[host] = None;
        }
        self.is_clouded = true;
        if all_die {
            self.ends(host, StopCause::Failed);
        } else if moves && !lists_dead {
            self.hands_over_unseen(host);
        }
        self.seen[host] = heard;
        let before = heard.unwrap_or(LastSeen::Known);
        self.now += if is_long { 60 } else { 1 };
        let watched_again = self.moment();
        let left = if by_daemon {
            let gap = WatchGap { last_watch: Some(last_watch), is_new_boot: false, watched_again };
            let past = before.kept().and_then(|it| gap.recall(it));
            past.map_or(LastSeen::Known, |it| LastSeen::Known.recalled(it))
        } else if is_long {
            before.over_gap().over_long_gap(watched_again)
        } else {
            before.over_gap()
        };
        let listed = Self::listed(if lists_dead { was_there } else { self.instances[host] });
        self.seen[host] = Some(left.listed(listed, watched_again));
    }

    fn hands_over_unseen(&mut self, host: usize) {
        let to = NOWHERE;
        // It came in before, and has its memory now.
        if matches!(self.migration, Some((_, at, None)) if at == host) {
            self.step(CourseStep::Switch);
            self.step(CourseStep::Confirm);
        }
        let is_paused = self.instances[host] == Some(TrueInstance::RestoredPaused);
        let can_move =
            is_paused || matches!(self.instances[host], Some(TrueInstance::Whole { is_paused: false, .. }));
        if self.runs_twice(host) {
            return;
        }
        if can_move && self.migration.is_none() && self.instances[to].is_none() {
            self.instances[to] = Some(TrueInstance::Whole { is_paused, is_settled: false });
            self.instances[host] = Some(TrueInstance::Half);
            (self.migration, self.last) = (Some((host, to, Some(self.now))), to);
        }
    }

    fn judge(&self) -> Result<ProvedOff, crate::evidence::Doubt> {
        let start = Instant::now();
        let began = start + Duration::from_secs(10);
        let look = |host: usize| {
            let age = |it: BootMoment| self.moment().since(it);
            let sight = match (self.instances[host], self.seen[host]) {
                (Some(TrueInstance::Whole { .. } | TrueInstance::RestoredPaused), _) => Sight::On,
                (Some(_), _) => Sight::Moving,
                (None, Some(LastSeen::Saved(when))) => Sight::MovedAway(age(when)),
                (None, Some(LastSeen::Ended(when))) => Sight::Ended(Some(age(when))),
                (None, seen) => match seen.and_then(LastSeen::moved) {
                    Some(when) => Sight::MovedAway(age(when)),
                    None => Sight::Off,
                },
            };
            Finding::without_namesakes(DomainSite::Hypervisor(host.to_string()), sight, began, began)
        };
        let round: Vec<Finding> = (0..ASKED).map(look).collect();
        ProvedOff::from_rounds(start, &[round.clone(), round])
    }

    /// Follows a course of steps and the pauses before them, and checks after each step.
    fn follow(&mut self, course: impl IntoIterator<Item = (CourseStep, i64)>) -> Result<(), TestCaseError> {
        for (step, pause) in course {
            self.now += pause;
            self.step(step);
            self.now += 1;
            self.check()?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.lie.is_none(), "untrue off: {:?}", self.lie);
        let judged = self.judge();
        if let Ok(_proof) = &judged {
            prop_assert!(self.machine().is_none(), "untrue off: {:?} {:?}", self.instances, self.seen);
            prop_assert!(!self.is_in_file, "it can be restored anywhere: {:?}", self.seen);
        }
        // All hosts are well, and nothing happened where nobody looks.
        if self.is_nowhere() && !self.is_clouded {
            prop_assert!(judged.is_ok(), "never off: {judged:?} {:?}", self.seen);
        }
        for host in 0..ASKED {
            let Some(LastSeen::Ran { unsettled }) = self.seen[host] else { continue };
            let is_settled = unsettled.is_none_or(|it| self.moment().since(it).as_secs() >= 120);
            let handed_over =
                matches!(self.migration, Some((_, _, Some(since))) if self.now - since < SETTLE);
            let other = (0..ALL).any(|it| it != host && self.is_machine(it));
            let may_be_two = self.is_machine(host)
                && (handed_over && self.last == host || other && self.now < self.twice_until);
            prop_assert!(!(is_settled && may_be_two), "its end would count alone: {:?}", self.seen);
        }
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = (CourseStep, i64)> {
    let host = || 0..ALL;
    let gap = (0..ASKED, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let step = prop_oneof![
        3 => host().prop_map(CourseStep::Start),
        3 => Just(CourseStep::Pause),
        1 => Just(CourseStep::Unpause),
        8 => host().prop_map(|to| CourseStep::Migrate { to }),
        5 => host().prop_map(|to| CourseStep::MigrateSlowly { to }),
        3 => Just(CourseStep::ComeIn),
        3 => Just(CourseStep::Abort),
        7 => Just(CourseStep::Switch),
        4 => Just(CourseStep::Confirm),
        1 => Just(CourseStep::GoOn),
        3 => host().prop_map(CourseStep::Destroy),
        1 => host().prop_map(CourseStep::Kill),
        2 => Just(CourseStep::ManagedSave),
        1 => Just(CourseStep::SaveToFile),
        1 => host().prop_map(CourseStep::Restore),
        3 => host().prop_map(CourseStep::RestorePaused),
        3 => Just(CourseStep::PostCopy),
        4 => (0..ASKED).prop_map(CourseStep::PowerOff),
        3 => (0..ASKED).prop_map(CourseStep::Prove),
        2 => gap.prop_map(|(host, is_long, all_die, by_daemon, lists_dead, moves)| CourseStep::Gap {
            host, is_long, all_die, by_daemon, lists_dead, moves
        }),
    ];
    (step, prop_oneof![4 => 1_i64..20, 1 => 100_i64..200])
}

/// Part of a course that goes to and fro.
fn legs() -> impl Strategy<Value = Vec<(CourseStep, i64)>> {
    let host = || 0..ALL;
    let soon = |steps: Vec<CourseStep>| steps.into_iter().map(|it| (it, 2)).collect();
    let moves = host()
        .prop_map(move |to| soon(vec![CourseStep::Migrate { to }, CourseStep::Switch, CourseStep::Confirm]));
    let comes_slowly = host().prop_map(move |to| soon(vec![CourseStep::MigrateSlowly { to }]));
    let in_vain = Just(soon(vec![CourseStep::ComeIn, CourseStep::Abort]));
    let is_over = (0..ASKED).prop_map(move |host| soon(vec![CourseStep::PowerOff(host)]));
    prop_oneof![
        4 => moves,
        3 => comes_slowly,
        3 => in_vain,
        2 => is_over,
        3 => steps().prop_map(|it| vec![it]),
    ]
}

/// Courses of which a memory was wrong once.
#[test]
fn short_courses_are_remembered() {
    use CourseStep::{
        Abort, ComeIn, Confirm, Destroy, Gap, GoOn, Kill, ManagedSave, Migrate, MigrateSlowly, Pause,
        PostCopy, PowerOff, RestorePaused, Start, Switch, Unpause,
    };
    let gap = |host, all_die, by_daemon| Gap {
        host,
        is_long: false,
        all_die,
        by_daemon,
        lists_dead: false,
        moves: false,
    };
    let dead = |host, by_daemon| Gap {
        host,
        is_long: false,
        all_die: true,
        by_daemon,
        lists_dead: true,
        moves: false,
    };
    let moves = |host, by_daemon| Gap {
        host,
        is_long: false,
        all_die: false,
        by_daemon,
        lists_dead: false,
        moves: true,
    };
    let mut courses = vec![
        vec![Start(0), Migrate { to: NOWHERE }, Switch, Confirm, Migrate { to: 0 }, Abort],
        vec![Start(0), Migrate { to: 1 }, Switch, GoOn],
        vec![Start(0), Migrate { to: NOWHERE }, Switch, Kill(0)],
        vec![Start(0), Pause, Migrate { to: 1 }, Switch, Destroy(1)],
    ];
    for end in [Destroy(1), Kill(1), ManagedSave] {
        courses.push(vec![Start(0), Migrate { to: 1 }, Switch, Confirm, end]);
    }
    for end in [PowerOff(0), Kill(0), Destroy(0), ManagedSave] {
        courses.push(vec![RestorePaused(0), end]);
        courses.push(vec![RestorePaused(0), Migrate { to: NOWHERE }, Switch, end]);
        courses.push(vec![RestorePaused(0), Migrate { to: 1 }, Switch, end, PowerOff(1)]);
        courses.push(vec![Start(0), Migrate { to: 1 }, PostCopy, end, PowerOff(1)]);
        courses.push(vec![Start(0), Migrate { to: NOWHERE }, PostCopy, end]);
        courses.push(vec![Start(0), Migrate { to: 1 }, PostCopy, PowerOff(1), end]);
        for by_daemon in [false, true] {
            let moved = [RestorePaused(0), Migrate { to: NOWHERE }, Switch];
            courses.push([&moved[..], &[gap(0, false, by_daemon), end]].concat());
            courses.push(vec![RestorePaused(0), moves(0, by_daemon), end]);
        }
    }
    let in_vain = [RestorePaused(1), Migrate { to: 0 }, PowerOff(0)];
    courses.push([&in_vain[..], &[Migrate { to: NOWHERE }, Switch, PowerOff(1)]].concat());
    // It goes to and fro, and ends where it is while the other host is slow to start what comes in.
    let comes_back = [Start(0), Migrate { to: 1 }, Switch, Confirm, MigrateSlowly { to: 0 }];
    for end in [PowerOff(1), Destroy(1), Kill(1)] {
        for in_vain in [&[ComeIn, Abort][..], &[ComeIn, PowerOff(0)], &[Abort], &[PowerOff(0)]] {
            courses.push([&comes_back[..], &[end], in_vain].concat());
        }
    }
    for by_daemon in [false, true] {
        courses.push(vec![Start(0), Migrate { to: NOWHERE }, Switch, gap(0, true, by_daemon)]);
        courses.push(vec![Start(0), Migrate { to: NOWHERE }, Switch, dead(0, by_daemon)]);
        courses.push(vec![Start(0), Migrate { to: 1 }, Switch, Pause, Unpause, gap(1, false, by_daemon)]);
        let back = [Start(0), Migrate { to: NOWHERE }, Switch, Confirm, Migrate { to: 0 }];
        courses.push([&back[..], &[gap(0, false, by_daemon), Abort]].concat());
    }
    courses.iter().for_each(|it| follow(it));
}

/// Follows a course, and checks after each step.
fn follow(course: &[CourseStep]) {
    let steps = course.iter().map(|it| (*it, 1));
    TrueWorld::default().follow(steps).unwrap_or_else(|error| panic!("{course:?}: {error}"));
}

/// One that was restored paused looks like a half after a gap, as one that came in does: it moves later than
/// that, and nothing but the copy of its memory tells.
#[test]
fn what_only_looked_like_a_half_moves_when_it_is_copied() {
    use CourseStep::{Gap, Migrate, PowerOff, RestorePaused, Switch};
    for by_daemon in [false, true] {
        let gap =
            |host| Gap { host, is_long: false, all_die: false, by_daemon, lists_dead: false, moves: false };
        let on = [Migrate { to: NOWHERE }, Switch];
        let begins = [RestorePaused(1), gap(1), Migrate { to: 0 }, PowerOff(0)];
        follow(&[&begins[..], &on, &[PowerOff(1)]].concat());
        follow(&[&[RestorePaused(1), Migrate { to: 0 }, gap(0), Switch, PowerOff(1)][..], &on].concat());
    }
}

/// An instance that came in renews no move if it was seen to fail. Else it does.
#[test]
fn what_never_ran_renews_no_move() {
    let moment = |it| BootMoment::from_nanos(it);
    for away in [LastSeen::MovedAway(moment(1)), LastSeen::Saved(moment(1)), LastSeen::Half(moment(1))] {
        let came = away.after(InstanceEvent::CameIn, moment(3));
        let listed = away.listed(ListedState::Starting, moment(2));
        for came in [came, listed, listed.after(InstanceEvent::CameIn, moment(3))] {
            for cause in [StopCause::Ended, StopCause::Failed] {
                let left = came.after(InstanceEvent::Stopped(cause), moment(9));
                assert_eq!(left, LastSeen::MovedAway(moment(1)), "{came:?}");
            }
            let is_renewed = |it: LastSeen| it.moved() > Some(moment(1));
            assert!(is_renewed(came) && is_renewed(came.over_gap()), "a look alone, or a gap: {came:?}");
            assert!(came.kept().is_some_and(|it| is_renewed(it.into())), "{came:?}");
            let unclear = came.after(InstanceEvent::Stopped(StopCause::Unclear), moment(9));
            assert!(is_renewed(unclear), "{came:?}");
            // It may have been back before it came once more.
            let failed =
                came.over_long_gap(moment(4)).after(InstanceEvent::Stopped(StopCause::Failed), moment(9));
            assert_eq!(failed, LastSeen::MovedAway(moment(4)), "{came:?}");
        }
    }
    let recalled = LastSeen::Known.after(InstanceEvent::CameIn, moment(3));
    let recalled = recalled.recalled(PastEvent::MovedAway(moment(1)));
    let failed = recalled.after(InstanceEvent::Stopped(StopCause::Failed), moment(9));
    assert_eq!(failed, LastSeen::MovedAway(moment(1)));
}

/// A proof ends the move that it judged, and nothing that came since.
#[test]
fn a_proof_ends_the_move_that_it_judged() {
    let (earlier, later) = (BootMoment::from_nanos(1), BootMoment::from_nanos(2));
    for kind in [LastSeen::MovedAway, LastSeen::Saved] {
        assert_eq!(kind(earlier).proved_off(kind(earlier)), LastSeen::Known);
        for newer in [kind(later), LastSeen::Ended(later), LastSeen::RUNS, LastSeen::Half(later)] {
            assert_eq!(newer.proved_off(kind(earlier)), newer);
        }
    }
    for no_move in [LastSeen::Ended(earlier), LastSeen::RUNS, LastSeen::Half(earlier)] {
        assert_eq!(no_move.proved_off(no_move), no_move);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Nobody says "off" while it runs, and off is said in the end where nothing is hidden.
    #[test]
    fn what_is_remembered_is_true(steps in vec(steps(), 1..24)) {
        TrueWorld::default().follow(steps)?;
    }

    /// The same of a machine that comes back to where it was, or does not get there.
    #[test]
    fn what_is_remembered_of_a_machine_that_comes_back_is_true(legs in vec(legs(), 1..16)) {
        let begins = [(CourseStep::Start(0), 1)];
        TrueWorld::default().follow(begins.into_iter().chain(legs.into_iter().flatten()))?;
    }
}
