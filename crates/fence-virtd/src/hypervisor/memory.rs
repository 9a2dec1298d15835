// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains that were seen on a hypervisor.
//!
//! Two questions need this: which domain does a name mean that is no longer defined here, and did its last
//! instance end here or move away? Domains are recorded from lifecycle events and from the list at each new
//! connection. What is remembered says nothing of other places, and must never be an answer by itself: it
//! names a domain, and tells "ended here" from "never heard of" once the hypervisor was looked at.

use std::collections::HashMap;
use std::time::Duration;

use fence_core::evidence::last_seen::{
    InstanceEvent, LastSeen, LeaveKind, ListedState, RestoredPhase, StopCause,
};
use fence_core::evidence::recall::{BootMoment, PastEvent, SHORT_GAP};
use fence_core::owed_start::PlaceMemory;
use libvirt_host::{DomainRecord, LifecycleEvent, LifecycleKind, State, Uuid};

use super::past::{NamedEvent, PastEvents};
use crate::util::boot_clock::since_boot;

/// Domains that are remembered.
const MAX_REMEMBERED: usize = 16_384;
/// Time for which a domain without a definition is known by its name after its instance ended.
const ENDED_TTL: Duration = Duration::from_secs(600);
/// Time after which the migration that brought an instance here is over at the other side too: the one who
/// migrates hears of a lost connection within half a minute, and then resumes the source or ends it.
const MIGRATION_SETTLE: Duration = Duration::from_secs(120);

/// `VIR_DOMAIN_EVENT_STARTED_MIGRATED`: an instance comes in.
const STARTED_MIGRATED: i32 = 1;
/// `VIR_DOMAIN_EVENT_STARTED_` `RESTORED` and `FROM_SNAPSHOT`.
const STARTED_RESTORED: [i32; 2] = [2, 3];
/// `VIR_DOMAIN_EVENT_RESUMED_` `POSTCOPY` and `POSTCOPY_FAILED`: told of what came in alone.
const RESUMED_IN_POST_COPY: [i32; 2] = [3, 4];
/// `VIR_DOMAIN_EVENT_STOPPED_MIGRATED`: an instance has left.
const STOPPED_MIGRATED: i32 = 3;
/// `VIR_DOMAIN_EVENT_STOPPED_SAVED`: the memory of an instance is in a file.
const STOPPED_SAVED: i32 = 4;
/// `VIR_DOMAIN_EVENT_SUSPENDED_PAUSED`
const SUSPENDED_PAUSED: i32 = 0;
/// `VIR_DOMAIN_EVENT_SUSPENDED_` `RESTORED` and `FROM_SNAPSHOT`.
const SUSPENDED_RESTORED: [i32; 2] = [4, 5];
/// `VIR_DOMAIN_EVENT_SUSPENDED_` `MIGRATED` and `POSTCOPY`: an instance stands still, and its other half at
/// another place may run.
const SUSPENDED_BY_MIGRATION: [i32; 2] = [1, 7];
/// `VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED`: as these, at the source; or what came in has failed.
const SUSPENDED_POSTCOPY_FAILED: i32 = 8;

/// Returns this moment.
fn now() -> BootMoment {
    BootMoment::at(since_boot())
}

/// Returns the time since this moment.
fn age(when: BootMoment) -> Duration {
    now().since(when)
}

/// Returns whether an instance came to a hypervisor or left it by a migration: there is another hypervisor.
pub(super) fn is_migration(event: &LifecycleEvent) -> bool {
    matches!(
        (event.kind, event.detail),
        (LifecycleKind::Started, STARTED_MIGRATED) | (LifecycleKind::Stopped, STOPPED_MIGRATED)
    )
}

/// Returns whether the memory of an instance was saved to a file, which may be a managed save.
pub(super) fn is_save(event: &LifecycleEvent) -> bool {
    event.kind == LifecycleKind::Stopped && event.detail == STOPPED_SAVED
}

/// Returns what a state says of an instance.
fn listed(state: State) -> ListedState {
    match state {
        State::MovedAway => ListedState::MovedAway,
        State::ShutOff | State::NoState | State::Other(_) => ListedState::NoInstance,
        State::Migrating => ListedState::Migrating,
        State::PostCopy => ListedState::PostCopy,
        State::Starting => ListedState::Starting,
        State::Running => ListedState::Settled,
        // QEMU keeps the instance of a guest that crashed. A look tells where none is left.
        State::MayHaveComeIn
        | State::Blocked
        | State::Paused
        | State::Shutdown
        | State::PmSuspended
        | State::Crashed => ListedState::Unsettled,
    }
}

/// Domains that were seen on one hypervisor, by UUID.
#[derive(Default)]
pub(super) struct SeenDomains {
    domains: HashMap<Uuid, SeenDomain>,
    /// Moment at which a gap in the events began.
    gap_began: Option<BootMoment>,
    /// Moment since which every event was noted, and nothing was forgotten; none in a gap.
    noted_since: Option<BootMoment>,
    /// Memory on disk, and the URI of the hypervisor in it.
    disk: Option<(PastEvents, String)>,
    /// A machine that was saved to a file is taken for one that may be at another host.
    notes_saves: bool,
    /// Events that came so far.
    events: EventMark,
}

/// Moment between two events of a hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct EventMark(u64);

struct SeenDomain {
    name: String,
    /// Name under which the machine may be on at another place: that of its definition here may have changed
    /// since it left.
    left_as: String,
    last: LastSeen,
    /// Last event of it.
    last_event: EventMark,
    /// Nothing tells how its instance went: the event was waited for long enough.
    awaited_in_vain: bool,
    /// Last event which said that an instance started or came in.
    started: Option<BootMoment>,
    /// libvirt itself told of a move when its definition was last read: it stayed behind.
    stays_behind: bool,
    /// Course of its last instance; none if that is not known.
    course: Option<InstanceCourse>,
    /// True if it was proved off after it had left, and nothing was seen of it since.
    is_proved_off: bool,
    /// Moment at which an instance was here for the last time, as far as that was noted, or at which a
    /// request was told here that the domain is off.
    last_use: Option<BootMoment>,
}

/// Course of one instance by its events, since it was last seen to begin or to go on.
///
/// A save pauses an instance that runs, and a migration does before another place can have the machine: both
/// are told before the end.
#[derive(Clone, Copy, Default)]
pub(super) struct InstanceCourse {
    /// True once it stood still.
    pub(super) stood_still: bool,
    /// True once its memory was copied: a migration may be under way.
    is_copied: bool,
    pub(super) has_ended: bool,
}

impl InstanceCourse {
    /// Returns whether the instance ran all the time, and nothing copied it.
    pub(super) fn is_undisturbed(self) -> bool {
        !self.stood_still && !self.is_copied
    }

    /// Returns whether the instance is here, and nothing copied its memory.
    pub(super) fn was_never_copied(self) -> bool {
        !self.has_ended && !self.is_copied
    }

    fn after(before: Option<Self>, event: &LifecycleEvent) -> Option<Self> {
        match event.kind {
            // What came in or was restored is told to go on when it does.
            LifecycleKind::Started => Some(Self { stood_still: event.detail != 0, ..Self::default() }),
            LifecycleKind::Resumed => Some(Self::default()),
            LifecycleKind::MemoryCopied => before.map(|it| Self { is_copied: true, ..it }),
            LifecycleKind::Suspended
            | LifecycleKind::PmSuspended
            | LifecycleKind::Crashed
            | LifecycleKind::Other(_) => before.map(|it| Self { stood_still: true, ..it }),
            LifecycleKind::Stopped => before.map(|it| Self { has_ended: true, ..it }),
            LifecycleKind::Defined
            | LifecycleKind::Undefined
            | LifecycleKind::Shutdown
            | LifecycleKind::DevicesChanged => before,
        }
    }
}

/// Meaning of a lifecycle event for a domain.
enum EventMeaning {
    /// Something of its instance.
    Instance(InstanceEvent),
    /// Only that it is known, under this name.
    Definition,
    Nothing,
}

impl SeenDomains {
    /// Builds a memory of nothing, with what is on disk to be recalled later.
    pub(super) fn on_disk(past: Option<PastEvents>, uri: &str) -> Self {
        Self { disk: past.map(|it| (it, uri.to_owned())), notes_saves: true, ..Self::default() }
    }

    /// Takes what an earlier daemon saw here. Called when events are watched again, before anything is
    /// listed; an event that came already says more.
    pub(super) fn recall(&mut self) {
        let Some((past, uri)) = self.disk.clone() else { return };
        for (uuid, NamedEvent { name, event }) in past.recall(&uri) {
            let last = self.last(uuid).unwrap_or(LastSeen::Known).recalled(event);
            self.record(uuid, &name, last);
        }
        past.set_watching(&uri, true);
    }

    /// Hands the last thing that was seen of a domain over to the disk.
    fn write(&self, uuid: Uuid) {
        let Some((past, uri)) = &self.disk else { return };
        let event = self
            .domains
            .get(&uuid)
            .and_then(|seen| Some(NamedEvent { name: seen.left_as.clone(), event: seen.last.kept()? }));
        past.put(uri, uuid, event);
    }

    /// Replaces the last thing that was seen of a domain that is known.
    fn set(&mut self, uuid: Uuid, last: LastSeen) {
        if let Some(seen) = self.domains.get_mut(&uuid) {
            (seen.last, seen.is_proved_off) = (last, false);
            if last.left_by().is_none() {
                seen.left_as.clone_from(&seen.name);
            }
            self.write(uuid);
        }
    }

    /// Returns whether another domain with this name was present when it was last seen.
    pub(super) fn is_another_present(&self, name: &str, uuid: Uuid) -> bool {
        let is_present = |it: &SeenDomain| {
            let has_gone =
                matches!(it.last, LastSeen::Ended(_) | LastSeen::MovedAway(_) | LastSeen::Saved(_));
            !has_gone && !it.is_proved_off
        };
        self.domains.iter().any(|(other, seen)| *other != uuid && seen.name == name && is_present(seen))
    }

    /// Returns whether a domain that was seen, gone or not, has the property.
    pub(super) fn any(&self, has_property: impl Fn(Uuid, &str) -> bool) -> bool {
        self.domains.iter().any(|(uuid, seen)| has_property(*uuid, &seen.name))
    }

    /// Returns the one domain with this UUID, or else with this name, whose last instance ended here.
    pub(super) fn ended(&self, uuid: Option<Uuid>, name: Option<&str>) -> Option<(Uuid, String)> {
        let (uuid, seen) = match uuid.and_then(|it| self.domains.get_key_value(&it)) {
            Some(found) => found,
            None => {
                let name = name?;
                let mut called = self.domains.iter().filter(|(_, it)| it.name == name);
                let found = called.next()?;
                if called.next().is_some() {
                    return None;
                }
                found
            }
        };
        let LastSeen::Ended(when) = seen.last else { return None };
        (age(when) < ENDED_TTL).then(|| (*uuid, seen.name.clone()))
    }

    /// Returns how long ago the last instance ended here.
    pub(super) fn end_age(&self, uuid: Uuid) -> Option<Duration> {
        match self.domains.get(&uuid)?.last {
            LastSeen::Ended(when) => Some(age(when)),
            _ => None,
        }
    }

    /// Returns whether an instance runs here, and so long after a migration, if one brought it or was given
    /// up here, that the migration is over at the other side too.
    pub(super) fn has_settled(&self, uuid: Uuid) -> bool {
        match self.domains.get(&uuid).map(|it| it.last) {
            Some(LastSeen::Ran { unsettled }) => unsettled.is_none_or(|it| age(it) >= MIGRATION_SETTLE),
            Some(LastSeen::Restored(phase)) => !matches!(phase, RestoredPhase::Copied(_)),
            _ => false,
        }
    }

    /// Returns what the events said of the last instance; none if it may have begun, or changed, in a gap.
    pub(super) fn course(&self, uuid: Uuid) -> Option<InstanceCourse> {
        self.domains.get(&uuid)?.course
    }

    /// Returns whether an event said that an instance started or came in, at most so long ago.
    pub(super) fn was_started(&self, uuid: Uuid, since: Duration) -> bool {
        self.domains.get(&uuid).and_then(|it| it.started).is_some_and(|it| age(it) <= since)
    }

    /// Returns how long ago, at least, the machine moved from here to another place, after a look that shows
    /// no instance here.
    pub(super) fn move_age(&self, uuid: Uuid) -> Option<Duration> {
        self.last(uuid)?.moved().map(age)
    }

    /// Returns how long ago, at least, the machine was saved here to a file.
    pub(super) fn save_age(&self, uuid: Uuid) -> Option<Duration> {
        match self.last(uuid)? {
            LastSeen::Saved(when) => Some(age(when)),
            _ => None,
        }
    }

    /// Returns the other domains that left this place in this way, and had this name then, or have it now by
    /// their definition here.
    pub(super) fn namesakes_away(&self, name: &str, uuid: Uuid, leave: LeaveKind) -> Vec<Uuid> {
        let is_meant =
            |it: &SeenDomain| it.last.left_by() == Some(leave) && (it.left_as == name || it.name == name);
        let others = self.domains.iter().filter(|(other, seen)| **other != uuid && is_meant(seen));
        others.map(|(other, _)| *other).collect()
    }

    /// Returns the domains that left this place and were not here since, with their names.
    pub(super) fn away(&self) -> Vec<(Uuid, String)> {
        let away = self.domains.iter().filter(|(_, it)| it.last.left_by().is_some());
        away.map(|(uuid, it)| (*uuid, it.name.clone())).collect()
    }

    /// Records that the save was a managed one: the file belongs to the definition.
    pub(super) fn record_managed_save(&mut self, uuid: Uuid) {
        if let Some(saved @ LastSeen::Saved(_)) = self.last(uuid) {
            self.set(uuid, saved.saved_here());
        }
    }

    /// Records that a look that began at this time showed an instance. An older end or move is not the last
    /// thing that happened: its event is late, or was missed.
    pub(super) fn record_instance(&mut self, uuid: Uuid, began: Duration) {
        if let Some(LastSeen::Ended(when) | LastSeen::MovedAway(when) | LastSeen::Saved(when)) =
            self.last(uuid)
            && when < BootMoment::at(began)
        {
            self.set(uuid, LastSeen::Known);
        }
    }

    /// Returns whether an instance was here, and no event tells yet how it went, after a look that showed
    /// none.
    pub(super) fn awaits_end(&self, uuid: Uuid) -> bool {
        self.had_instance(uuid) && self.domains.get(&uuid).is_some_and(|it| !it.awaited_in_vain)
    }

    /// Records that the event did not come that tells how the instance went. It is not waited for again.
    pub(super) fn record_awaited(&mut self, uuid: Uuid) {
        if let Some(seen) = self.domains.get_mut(&uuid) {
            seen.awaited_in_vain = true;
        }
    }

    /// Records whether libvirt itself tells, in a look that showed no instance, that the machine moved away.
    pub(super) fn record_reading(&mut self, uuid: Uuid, stays_behind: bool) {
        if let Some(seen) = self.domains.get_mut(&uuid) {
            seen.stays_behind = stays_behind;
        }
    }

    /// Records a proof that the machine is off, which judged the move or the save that is given. What libvirt
    /// itself tells of stands: it would come back, as a younger move.
    pub(super) fn record_proved_off(&mut self, uuid: Uuid, judged: LastSeen) {
        let Some(seen) = self.domains.get(&uuid).filter(|it| !it.stays_behind) else { return };
        let left = seen.last.proved_off(judged);
        if left != seen.last {
            self.set(uuid, left);
            if let Some(seen) = self.domains.get_mut(&uuid) {
                seen.is_proved_off = true;
            }
        }
    }

    /// Returns the name of a domain that was seen.
    pub(super) fn name_of(&self, uuid: Uuid) -> Option<String> {
        self.domains.get(&uuid).map(|it| it.name.clone())
    }

    /// Returns the last thing that was seen of a domain.
    pub(super) fn last(&self, uuid: Uuid) -> Option<LastSeen> {
        self.domains.get(&uuid).map(|it| it.last)
    }

    /// Returns whether an instance was here before that a migration can have: it ran here, or came in.
    pub(super) fn had_instance(&self, uuid: Uuid) -> bool {
        self.last(uuid).is_some_and(LastSeen::has_instance)
    }

    /// Returns whether the instance that a look shows may be one half of a migration: then its end is no end
    /// of the machine.
    pub(super) fn is_half(&self, uuid: Uuid, state: State) -> bool {
        self.last(uuid).is_some_and(|it| it.is_half(listed(state)))
    }

    /// Returns whether an instance came in here, and was not seen to run or to end.
    pub(super) fn only_came_in(&self, uuid: Uuid) -> bool {
        matches!(self.last(uuid), Some(LastSeen::CameIn { .. }))
    }

    /// Returns whether an instance that was restored paused stands still since, and was in no migration.
    pub(super) fn stands_still_since_restore(&self, uuid: Uuid) -> bool {
        self.last(uuid).is_some_and(LastSeen::stands_still_since_restore)
    }

    /// Returns how long the instance here has been one half of a migration, as far as that was seen.
    pub(super) fn half_age(&self, uuid: Uuid) -> Option<Duration> {
        self.last(uuid)?.half_since().map(age)
    }

    /// Returns the time until the migration that brought the running instance here, or was given up here, is
    /// over at the other side too; none if it is, or if there was none.
    pub(super) fn settles_in(&self, uuid: Uuid) -> Option<Duration> {
        let Some(LastSeen::Ran { unsettled: Some(since) }) = self.last(uuid) else { return None };
        MIGRATION_SETTLE.checked_sub(age(since)).filter(|it| !it.is_zero())
    }

    /// Writes down that the machine may be at another place since now: the next daemon knows it, if this one
    /// does not live to see what became of the instance that is here.
    pub(super) fn write_move(&self, uuid: Uuid) {
        if let (Some((past, uri)), Some(seen)) = (&self.disk, self.domains.get(&uuid)) {
            let event = PastEvent::MovedAway(now());
            past.put(uri, uuid, Some(NamedEvent { name: seen.name.clone(), event }));
        }
    }

    /// Records that the machine may be at another place since now.
    pub(super) fn record_move(&mut self, uuid: Uuid) {
        // An event said so already.
        if !matches!(self.last(uuid), Some(LastSeen::MovedAway(_))) {
            self.set(uuid, LastSeen::MovedAway(now()));
        }
    }

    /// Records that an action of ours ended the instance that ran here.
    pub(super) fn record_end(&mut self, uuid: Uuid) {
        self.set(uuid, LastSeen::Ended(now()));
        self.record_use(uuid);
    }

    /// Records that an instance is or was here until now, or that a request is told that the domain is off.
    pub(super) fn record_use(&mut self, uuid: Uuid) {
        match self.domains.get_mut(&uuid) {
            Some(seen) => seen.last_use = Some(now()),
            // Nobody can say later that nothing happened to it.
            None => self.noted_since = self.noted_since.map(|_| now()),
        }
    }

    /// Returns what is remembered of a domain for a host that owes a start of it.
    pub(super) fn use_memory(&self, uuid: Uuid) -> PlaceMemory {
        let last = self.domains.get(&uuid).and_then(|it| it.last_use);
        PlaceMemory { noted_for: self.noted_since.map(age).unwrap_or_default(), last: last.map(age) }
    }

    /// Returns the moment after the events that came so far.
    pub(super) fn event_mark(&self) -> EventMark {
        self.events
    }

    /// Records a domain of a list that was asked for at this moment. Returns false, and records nothing, if
    /// an event of the domain came since: it may have overtaken the list.
    #[must_use]
    pub(super) fn record_listed(&mut self, record: &DomainRecord, asked: EventMark) -> bool {
        if self.domains.get(&record.uuid).is_some_and(|it| it.last_event > asked) {
            return false;
        }
        let state = listed(record.state);
        let last = self.last(record.uuid).unwrap_or(LastSeen::Known).listed(state, now());
        self.record(record.uuid, &record.name, last);
        if let Some(seen) = self.domains.get_mut(&record.uuid).filter(|it| it.course.is_none()) {
            let is_running = matches!(record.state, State::Running | State::MayHaveComeIn);
            seen.course = is_running.then(InstanceCourse::default);
        }
        if !matches!(state, ListedState::NoInstance | ListedState::MovedAway) {
            self.record_use(record.uuid);
        }
        true
    }

    fn record(&mut self, uuid: Uuid, name: &str, last: LastSeen) {
        if self.domains.len() >= MAX_REMEMBERED && !self.domains.contains_key(&uuid) {
            self.forget_some();
        }
        let before = self.domains.get(&uuid);
        let left = before.filter(|it| it.last.left_by().is_some() && last.left_by().is_some());
        let left_as = left.map_or_else(|| name.to_owned(), |it| it.left_as.clone());
        let (started, last_use) = before.map(|it| (it.started, it.last_use)).unwrap_or_default();
        let last_event = before.map(|it| it.last_event).unwrap_or_default();
        let stays_behind = before.is_some_and(|it| it.stays_behind);
        let course = before.and_then(|it| it.course);
        let seen = SeenDomain {
            name: name.to_owned(),
            left_as,
            last,
            last_event,
            awaited_in_vain: false,
            started,
            stays_behind,
            course,
            is_proved_off: false,
            last_use,
        };
        self.domains.insert(uuid, seen);
        self.write(uuid);
    }

    pub(super) fn record_event(&mut self, event: &LifecycleEvent) {
        let before = self.last(event.uuid).unwrap_or(LastSeen::Known);
        match self.meaning(event) {
            EventMeaning::Instance(it) => {
                self.record(event.uuid, &event.name, before.after(it, now()));
                self.record_use(event.uuid);
            }
            EventMeaning::Definition => self.record(event.uuid, &event.name, before),
            EventMeaning::Nothing => {}
        }
        self.events.0 += 1;
        if let Some(seen) = self.domains.get_mut(&event.uuid) {
            seen.course = InstanceCourse::after(seen.course, event);
            seen.last_event = self.events;
            if event.kind == LifecycleKind::Started {
                seen.started = Some(now());
            }
        }
    }

    fn meaning(&self, event: &LifecycleEvent) -> EventMeaning {
        let instance = match event.kind {
            LifecycleKind::Undefined | LifecycleKind::DevicesChanged => return EventMeaning::Nothing,
            LifecycleKind::MemoryCopied => InstanceEvent::Copied,
            LifecycleKind::Started if event.detail == STARTED_MIGRATED => InstanceEvent::CameIn,
            LifecycleKind::Started if STARTED_RESTORED.contains(&event.detail) => InstanceEvent::Restored,
            LifecycleKind::Started => InstanceEvent::Started,
            LifecycleKind::Resumed if RESUMED_IN_POST_COPY.contains(&event.detail) => {
                InstanceEvent::ResumedInPostCopy
            }
            LifecycleKind::Resumed => InstanceEvent::Resumed,
            LifecycleKind::PmSuspended | LifecycleKind::Crashed => InstanceEvent::Noticed,
            LifecycleKind::Stopped => InstanceEvent::Stopped(self.cause(event)),
            LifecycleKind::Suspended if SUSPENDED_BY_MIGRATION.contains(&event.detail) => {
                InstanceEvent::HandedOver
            }
            LifecycleKind::Suspended if event.detail == SUSPENDED_POSTCOPY_FAILED => {
                InstanceEvent::PostCopyFailed
            }
            LifecycleKind::Suspended if SUSPENDED_RESTORED.contains(&event.detail) => {
                InstanceEvent::RestoredPaused
            }
            LifecycleKind::Suspended if event.detail == SUSPENDED_PAUSED => InstanceEvent::Paused,
            // A definition was changed, or the instance stands still or shuts down: it is what it was.
            LifecycleKind::Defined | LifecycleKind::Suspended | LifecycleKind::Shutdown => {
                return EventMeaning::Definition;
            }
            LifecycleKind::Other(_) => InstanceEvent::Unclear,
        };
        EventMeaning::Instance(instance)
    }

    fn cause(&self, event: &LifecycleEvent) -> StopCause {
        // VIR_DOMAIN_EVENT_STOPPED_*: SHUTDOWN 0, DESTROYED 1, CRASHED 2, MIGRATED 3, SAVED 4, FAILED 5,
        // FROM_SNAPSHOT 6. A QEMU that is killed or crashes is told as FAILED.
        match event.detail {
            0..=2 => StopCause::Ended,
            STOPPED_MIGRATED => StopCause::Migrated,
            STOPPED_SAVED if self.notes_saves => StopCause::Saved,
            5 => StopCause::Failed,
            6 => StopCause::Reverted,
            _ => StopCause::Unclear,
        }
    }

    /// Forgets all that speaks for "off", after a gap in the events: anything may have happened meanwhile.
    /// What moved away stays away until an instance is seen here.
    pub(super) fn begin_gap(&mut self) {
        self.gap_began = Some(now());
        self.noted_since = None;
        if let Some((past, uri)) = &self.disk {
            past.set_watching(uri, false);
        }
        self.domains.values_mut().for_each(|it| it.course = None);
        self.change_all(LastSeen::over_gap);
    }

    /// Takes note that the gap in the events is over. In a long one what moved away may have come back and
    /// moved again.
    pub(super) fn end_gap(&mut self) {
        self.noted_since = self.noted_since.or(Some(now()));
        let Some(began) = self.gap_began.take() else { return };
        if let Some((past, uri)) = &self.disk {
            past.set_watching(uri, true);
        }
        if age(began) < SHORT_GAP {
            return;
        }
        let now = now();
        self.change_all(|last| last.over_long_gap(now));
    }

    fn change_all(&mut self, change: impl Fn(LastSeen) -> LastSeen) {
        let mut changed = Vec::new();
        for (uuid, seen) in &mut self.domains {
            let last = change(seen.last);
            if last != seen.last {
                seen.last = last;
                changed.push(*uuid);
            }
        }
        changed.into_iter().for_each(|it| self.write(it));
    }

    /// Makes room: what speaks against "off" goes last.
    fn forget_some(&mut self) {
        let before: Vec<Uuid> = self.domains.keys().copied().collect();
        self.domains.retain(|_, it| !matches!(it.last, LastSeen::Ended(_)));
        if self.domains.len() >= MAX_REMEMBERED {
            self.domains.retain(|_, it| it.last != LastSeen::Known);
        }
        if self.domains.len() >= MAX_REMEMBERED {
            self.domains.clear();
        }
        self.noted_since = self.noted_since.map(|_| now());
        before.into_iter().filter(|it| !self.domains.contains_key(it)).for_each(|it| self.write(it));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SeenDomains {
        /// Records a domain of a list that no event has overtaken.
        fn lists(&mut self, record: &DomainRecord) {
            assert!(self.record_listed(record, self.event_mark()));
        }
    }

    fn uuid() -> Uuid {
        "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c".parse().unwrap()
    }

    fn event(kind: LifecycleKind, detail: i32) -> LifecycleEvent {
        LifecycleEvent { uuid: uuid(), name: "x".to_owned(), kind, detail }
    }

    fn seen_after(events: &[(LifecycleKind, i32)]) -> SeenDomains {
        let mut seen = SeenDomains::default();
        for (kind, detail) in events {
            let event = LifecycleEvent { uuid: uuid(), name: "x".to_owned(), kind: *kind, detail: *detail };
            seen.record_event(&event);
        }
        seen
    }

    /// A reboot ends an instance that was seen to start, perhaps weeks ago: that start says nothing of the
    /// time since.
    #[test]
    fn a_start_counts_for_those_who_ask_about_its_time() {
        use LifecycleKind::{Started, Stopped};
        let mut seen = seen_after(&[(Started, 0), (Stopped, 1)]);
        std::thread::sleep(Duration::from_millis(2));
        assert!(!seen.was_started(uuid(), Duration::from_millis(1)));
        assert!(seen.was_started(uuid(), Duration::from_secs(60)));
        let kind = Started;
        seen.record_event(&LifecycleEvent { uuid: uuid(), name: "x".to_owned(), kind, detail: 0 });
        assert!(seen.was_started(uuid(), Duration::from_secs(60)));
    }

    /// A machine runs on under the name that it had when it left, whatever its definition here is called now.
    #[test]
    fn a_machine_that_left_is_known_by_its_name_until_it_is_back() {
        let other: Uuid = "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11".parse().unwrap();
        let called =
            |name: &str, kind, detail| LifecycleEvent { uuid: uuid(), name: name.to_owned(), kind, detail };
        for (detail, leave) in [(STOPPED_MIGRATED, LeaveKind::Moved), (STOPPED_SAVED, LeaveKind::Saved)] {
            let mut seen = SeenDomains { notes_saves: true, ..SeenDomains::default() };
            let away = |seen: &SeenDomains, name| seen.namesakes_away(name, other, leave);
            seen.record_event(&called("x", LifecycleKind::Started, 0));
            assert!(away(&seen, "x").is_empty());
            seen.record_event(&called("x", LifecycleKind::Stopped, detail));
            assert_eq!(away(&seen, "x"), [uuid()]);
            assert!(seen.namesakes_away("x", uuid(), leave).is_empty(), "it is no namesake of its own");
            let another = if leave == LeaveKind::Moved { LeaveKind::Saved } else { LeaveKind::Moved };
            assert!(seen.namesakes_away("x", other, another).is_empty());
            seen.record_event(&called("y", LifecycleKind::Defined, 0));
            assert_eq!((away(&seen, "x"), away(&seen, "y")), (vec![uuid()], vec![uuid()]));
            seen.record_event(&called("y", LifecycleKind::Started, 0));
            assert!(away(&seen, "x").is_empty() && away(&seen, "y").is_empty());
            seen.record_event(&called("y", LifecycleKind::Stopped, detail));
            assert_eq!((away(&seen, "x"), away(&seen, "y")), (vec![], vec![uuid()]));
            seen.record_event(&called("z", LifecycleKind::Defined, 0));
            seen.record_instance(uuid(), since_boot());
            assert!(away(&seen, "y").is_empty() && away(&seen, "z").is_empty());
        }
    }

    /// For a host that owes a start: no time is said to be noted that was not, and no instance is left out.
    #[test]
    fn what_happened_to_a_domain_is_told_for_the_time_that_was_noted() {
        let is_noted = |seen: &SeenDomains| {
            std::thread::sleep(Duration::from_millis(2));
            let memory = seen.use_memory(uuid());
            (memory.noted_for >= Duration::from_millis(1), memory.last.is_some())
        };
        let mut seen = SeenDomains::default();
        assert_eq!(is_noted(&seen), (false, false), "nothing is watched yet");
        seen.end_gap();
        seen.record_event(&event(LifecycleKind::Defined, 0));
        assert_eq!(is_noted(&seen), (true, false));
        for kind in [LifecycleKind::Started, LifecycleKind::Stopped, LifecycleKind::Suspended] {
            let mut seen = SeenDomains::default();
            seen.end_gap();
            seen.record_event(&event(kind, 1));
            seen.record_event(&event(LifecycleKind::Undefined, 0));
            assert_eq!(is_noted(&seen), (true, true), "{kind:?}");
        }
        seen.begin_gap();
        assert_eq!(is_noted(&seen), (false, false));
        seen.end_gap();
        seen.record_use(uuid());
        assert_eq!(is_noted(&seen), (true, true), "a request was told that it is off");
        // Nobody could say so later of a domain that is not in the memory.
        let mut other = SeenDomains::default();
        other.end_gap();
        std::thread::sleep(Duration::from_millis(2));
        other.record_use(uuid());
        assert!(other.use_memory(uuid()).noted_for < Duration::from_millis(2));
    }

    #[test]
    fn what_was_handed_over_stays_away_until_an_instance_is_seen() {
        let mut seen = seen_after(&[(LifecycleKind::Started, 0)]);
        assert!(seen.had_instance(uuid()));
        seen.record_move(uuid());
        // Its end by our own hand, late.
        seen.record_event(&LifecycleEvent {
            uuid: uuid(),
            name: "x".to_owned(),
            kind: LifecycleKind::Stopped,
            detail: 1,
        });
        assert!(seen.move_age(uuid()).is_some() && seen.end_age(uuid()).is_none());
        assert!(!seen.had_instance(uuid()));
        assert!(!seen_after(&[(LifecycleKind::Defined, 0)]).had_instance(uuid()));
    }

    #[test]
    fn only_an_instance_that_ran_here_ends_here() {
        use LifecycleKind::{Defined, Resumed, Started, Stopped, Suspended};
        let has_ended = |events: &[(LifecycleKind, i32)]| seen_after(events).end_age(uuid()).is_some();
        // 5: its QEMU was killed. 6: a snapshot of when it was off.
        for end in [0, 1, 2, 5, 6] {
            assert!(has_ended(&[(Started, 0), (Stopped, end)]));
            assert!(has_ended(&[(Started, 1), (Resumed, 1), (Stopped, end)]), "it came and ran");
            assert!(has_ended(&[(Started, 0), (Suspended, 1), (Resumed, 1), (Stopped, end)]), "it stayed");
            // An incoming instance that goes away again, because the migration was aborted or failed.
            assert!(!has_ended(&[(Started, 1), (Stopped, end)]));
            assert!(!has_ended(&[(Started, 1), (Defined, 0), (Stopped, end)]));
            assert!(has_ended(&[(Started, 1), (Suspended, 0), (Stopped, end)]), "it was paused when it came");
            assert!(!has_ended(&[(Stopped, end)]), "nothing is known of what ended");
            assert!(!has_ended(&[(Started, 0), (Stopped, end), (Started, 1), (Stopped, end)]));
        }
        for no_end in [3, 4, 7] {
            assert!(!has_ended(&[(Started, 0), (Stopped, no_end)]), "{no_end}");
        }
        assert!(!has_ended(&[(Started, 0), (Stopped, 1), (Started, 0)]));
        assert!(has_ended(&[(Started, 0), (Stopped, 1), (Defined, 0)]));
        let since = Duration::from_secs(60);
        assert!(seen_after(&[(Started, 0), (Stopped, 1), (Defined, 0)]).was_started(uuid(), since));
        assert!(!seen_after(&[(Resumed, 0), (Stopped, 1)]).was_started(uuid(), since));
        assert!(seen_after(&[(Started, 0), (Stopped, 3)]).move_age(uuid()).is_some());
        assert!(seen_after(&[(Started, 0)]).has_settled(uuid()));
        assert!(!seen_after(&[(Started, 1)]).has_settled(uuid()));
        assert!(!seen_after(&[(Started, 1), (Resumed, 1)]).has_settled(uuid()), "a moment ago");
        assert!(!seen_after(&[(Started, 1), (Resumed, 1), (Suspended, 0), (Resumed, 0)]).has_settled(uuid()));
        let mut seen = seen_after(&[(Started, 0)]);
        seen.record_end(uuid());
        seen.record_event(&LifecycleEvent { uuid: uuid(), name: "x".to_owned(), kind: Stopped, detail: 1 });
        assert_eq!(seen.ended(None, Some("x")), Some((uuid(), "x".to_owned())));
        seen.begin_gap();
        assert_eq!((seen.ended(None, Some("x")), seen.end_age(uuid())), (None, None));
    }

    /// A libvirtd that is started anew says of a definition that stayed behind that it is off, and of a
    /// transient domain nothing.
    #[test]
    fn what_moved_away_stays_away_over_a_new_connection() {
        use LifecycleKind::{Started, Stopped};
        let record = |state| DomainRecord { uuid: uuid(), name: "x".to_owned(), state };
        let mut seen = seen_after(&[(Started, 0), (Stopped, 3)]);
        let moved = |seen: &SeenDomains| seen.domains[&uuid()].last;
        let first = moved(&seen);
        for state in [None, Some(State::ShutOff), Some(State::MovedAway)] {
            seen.begin_gap();
            seen.end_gap();
            state.iter().for_each(|it| seen.lists(&record(*it)));
            assert_eq!(moved(&seen), first, "{state:?}");
        }
        // It may have been back in a long gap.
        seen.gap_began = Some(BootMoment::BOOT);
        seen.end_gap();
        assert!(moved(&seen) > first);
        // It is here again.
        seen.lists(&record(State::Running));
        assert_eq!(seen.move_age(uuid()), None);
        let mut seen = SeenDomains::default();
        seen.lists(&record(State::MovedAway));
        assert!(seen.move_age(uuid()).is_some(), "the first connection");
    }

    #[test]
    fn an_instance_that_a_look_showed_outdates_an_end() {
        use LifecycleKind::{Started, Stopped};
        let before = since_boot();
        for end in [1, 3] {
            let mut seen = seen_after(&[(Started, 0), (Stopped, end)]);
            // A look that began before that shows the instance that ended.
            seen.record_instance(uuid(), before);
            assert!(seen.end_age(uuid()).or(seen.move_age(uuid())).is_some());
            seen.record_instance(uuid(), since_boot());
            assert_eq!(seen.end_age(uuid()).or(seen.move_age(uuid())), None);
            let event = LifecycleEvent { uuid: uuid(), name: "x".to_owned(), kind: Stopped, detail: 1 };
            seen.record_event(&event);
            assert_eq!(seen.end_age(uuid()), None, "nothing is known of what ended");
        }
    }

    /// The definition that the machine left was made anew, and the daemon is started anew: libvirt tells of
    /// nothing.
    #[test]
    fn ends_and_moves_outlive_the_daemon() {
        use LifecycleKind::{Defined, Started, Stopped};
        let dir = tempfile::tempdir().unwrap();
        let listed = |state| DomainRecord { uuid: uuid(), name: "x".to_owned(), state };
        let next = |states: &[State]| {
            let past = PastEvents::open(dir.path(), "boot").unwrap();
            let mut seen = SeenDomains::on_disk(Some(past.clone()), "test:///default");
            seen.recall();
            states.iter().for_each(|it| seen.lists(&listed(*it)));
            (seen, past)
        };
        for (end, has_moved) in [(3, true), (1, false)] {
            let (mut seen, past) = next(&[State::Running]);
            for (kind, detail) in [(Started, 0), (Stopped, end), (Defined, 0)] {
                seen.record_event(&LifecycleEvent { uuid: uuid(), name: "x".to_owned(), kind, detail });
            }
            past.finish();
            let last = seen.last(uuid());
            // Once listed as off, once not at all.
            for states in [&[State::ShutOff][..], &[]] {
                let (seen, past) = next(states);
                assert_eq!(seen.last(uuid()), last, "{end} {states:?}");
                assert_eq!(seen.move_age(uuid()).is_some(), has_moved);
                assert_eq!(seen.ended(None, Some("x")).is_some(), !has_moved);
                past.finish();
            }
            // An instance is here: nothing of that counts any more, in this run or a later one.
            let (seen, past) = next(&[State::Running]);
            assert_eq!(seen.last(uuid()), Some(LastSeen::RUNS));
            past.finish();
            assert_eq!(next(&[State::ShutOff]).0.last(uuid()), Some(LastSeen::Known));
        }
        // What libvirt tells counts, whatever is on disk.
        let (mut seen, past) = next(&[State::Running]);
        seen.record_end(uuid());
        past.finish();
        assert!(next(&[State::MovedAway]).0.move_age(uuid()).is_some());
    }

    /// A later daemon must not know of the move either, and a newer one must stand.
    #[test]
    fn a_proof_ends_a_move_on_disk_too() {
        use LifecycleKind::{Started, Stopped};
        let dir = tempfile::tempdir().unwrap();
        let next = || {
            let past = PastEvents::open(dir.path(), "boot").unwrap();
            let mut seen = SeenDomains::on_disk(Some(past.clone()), "test:///default");
            seen.recall();
            (seen, past)
        };
        for detail in [STOPPED_MIGRATED, STOPPED_SAVED] {
            let (mut seen, past) = next();
            let leaves = |seen: &mut SeenDomains| {
                seen.record_event(&event(Started, 0));
                seen.record_event(&event(Stopped, detail));
                seen.last(uuid()).unwrap()
            };
            let judged = leaves(&mut seen);
            let newer = leaves(&mut seen);
            seen.record_proved_off(uuid(), judged);
            assert_eq!(seen.last(uuid()), Some(newer), "it left again since");
            past.finish();
            let (mut seen, past) = next();
            assert_eq!(seen.last(uuid()), Some(newer));
            // libvirt tells of it: it would be younger at the next connection.
            seen.record_reading(uuid(), true);
            seen.record_proved_off(uuid(), newer);
            assert_eq!(seen.last(uuid()), Some(newer));
            seen.record_reading(uuid(), false);
            let used = seen.use_memory(uuid());
            seen.record_proved_off(uuid(), newer);
            assert_eq!(seen.last(uuid()), Some(LastSeen::Known));
            assert!(!seen.is_another_present("x", Uuid::from_bytes([9; 16])), "no instance is here");
            assert_eq!(seen.use_memory(uuid()).last.is_some(), used.last.is_some());
            past.finish();
            let (mut seen, past) = next();
            assert_eq!(seen.last(uuid()), None);
            // It comes back, and leaves again.
            let again = leaves(&mut seen);
            assert_eq!(seen.last(uuid()), Some(again));
            past.finish();
            let (mut seen, past) = next();
            assert!(seen.last(uuid()).and_then(LastSeen::left_by).is_some());
            seen.record_event(&event(Started, 0));
            past.finish();
        }
    }

    /// A new daemon finds it in the list. It is the machine, whatever an earlier daemon saw leave.
    #[test]
    fn a_machine_whose_guest_crashed_and_that_is_kept_is_here() {
        use LifecycleKind::{Started, Stopped};
        for state in [State::Crashed, State::Paused] {
            for before in [&[][..], &[(Started, 0), (Stopped, STOPPED_MIGRATED)]] {
                let mut seen = seen_after(before);
                assert_eq!(seen.move_age(uuid()).is_some(), !before.is_empty());
                seen.lists(&DomainRecord { uuid: uuid(), name: "x".to_owned(), state });
                assert!(seen.had_instance(uuid()) && seen.move_age(uuid()).is_none(), "{state:?}");
                let was_never_copied = seen.course(uuid()).is_some_and(InstanceCourse::was_never_copied);
                assert!(!was_never_copied, "nobody saw it since it began to run: {state:?}");
            }
        }
    }

    /// Such an end says nothing of the machine: its other half may run.
    #[test]
    fn what_stands_still_for_a_migration_does_not_end_here() {
        use LifecycleKind::{Resumed, Started, Stopped, Suspended};
        for detail in [1, 7, SUSPENDED_POSTCOPY_FAILED] {
            let paused = [(Started, 0), (Suspended, detail)];
            assert!(seen_after(&paused).half_age(uuid()).is_some());
            for end in [1, STOPPED_MIGRATED, STOPPED_SAVED, 5] {
                let mut seen = seen_after(&paused);
                let half_since = seen.half_age(uuid()).unwrap();
                seen.record_event(&LifecycleEvent {
                    uuid: uuid(),
                    name: "x".to_owned(),
                    kind: Stopped,
                    detail: end,
                });
                // It may have ended at the other end before this host heard of its move.
                assert!(seen.end_age(uuid()).is_none() && seen.move_age(uuid()) >= Some(half_since));
            }
            let stayed = [&paused[..], &[(Resumed, 1)]].concat();
            assert_eq!(seen_after(&stayed).half_age(uuid()), None);
            // The target may run it too, and be told to end it in a moment.
            assert!(
                !seen_after(&stayed).has_settled(uuid()) && seen_after(&stayed).settles_in(uuid()).is_some()
            );
            assert!(seen_after(&[&stayed[..], &[(Stopped, 1)]].concat()).end_age(uuid()).is_some());
        }
        assert!(seen_after(&[(Started, 0), (Suspended, 0), (Stopped, 1)]).end_age(uuid()).is_some());
        assert!(seen_after(&[(Started, 1)]).half_age(uuid()).is_some());
        // Found at the start: it may be either half.
        let record = DomainRecord { uuid: uuid(), name: "x".to_owned(), state: State::Migrating };
        let mut seen = SeenDomains::default();
        seen.lists(&record);
        assert!(seen.had_instance(uuid()) && seen.half_age(uuid()).is_some());
        seen.record_event(&event(Resumed, 1));
        assert!(seen.settles_in(uuid()).is_some_and(|it| it <= MIGRATION_SETTLE));
        seen.lists(&record);
        seen.record_event(&event(Stopped, 1));
        assert!(seen.move_age(uuid()).is_some());
    }

    /// libvirt calls it "paused (migrating)", as it calls a half.
    #[test]
    fn what_was_restored_paused_is_no_half_until_its_memory_is_copied() {
        use LifecycleKind::{MemoryCopied, Resumed, Started, Stopped, Suspended};
        let half = |events: &[(LifecycleKind, i32)]| seen_after(events).is_half(uuid(), State::Migrating);
        for start in STARTED_RESTORED {
            for pause in [SUSPENDED_PAUSED, SUSPENDED_RESTORED[0], SUSPENDED_RESTORED[1]] {
                let restored = [(Started, start), (Suspended, pause)];
                assert!(!half(&restored) && seen_after(&restored).stands_still_since_restore(uuid()));
                assert!(seen_after(&[&restored[..], &[(Stopped, 1)]].concat()).end_age(uuid()).is_some());
                for since in [(MemoryCopied, 0), (Suspended, 1), (Resumed, 0), (Started, 0), (Started, 1)] {
                    assert!(half(&[&restored[..], &[since]].concat()), "{start} {pause} {since:?}");
                }
                let copied = [&restored[..], &[(MemoryCopied, 0)]].concat();
                assert!(seen_after(&copied).move_age(uuid()).is_some(), "gone without an event");
                for end in [1, STOPPED_MIGRATED, 5] {
                    let seen = seen_after(&[&copied[..], &[(Stopped, end)]].concat());
                    assert!(seen.end_age(uuid()).is_none() && seen.move_age(uuid()).is_some());
                }
                // libvirtd is started anew, or the daemon: nobody knows what happened meanwhile.
                let mut seen = seen_after(&restored);
                seen.begin_gap();
                seen.end_gap();
                seen.lists(&DomainRecord { uuid: uuid(), name: "x".to_owned(), state: State::Migrating });
                assert!(seen.is_half(uuid(), State::Migrating) && seen.half_age(uuid()).is_some());
            }
            assert!(half(&[(Started, start)]), "it may be paused for a migration, whose event is late");
        }
        for not_restored in [(Started, 0), (Started, 1), (Suspended, SUSPENDED_RESTORED[0])] {
            let seen = seen_after(&[not_restored, (Suspended, SUSPENDED_PAUSED)]);
            assert!(!seen.stands_still_since_restore(uuid()), "{not_restored:?}");
        }
    }

    /// The source can't go on, so what came in is the machine before its memory is whole, and also after that
    /// has failed.
    #[test]
    fn what_runs_in_post_copy_is_the_machine() {
        use LifecycleKind::{MemoryCopied, Resumed, Started, Stopped, Suspended};
        let runs = [(Started, STARTED_MIGRATED), (Resumed, RESUMED_IN_POST_COPY[0])];
        let failed = [(Resumed, RESUMED_IN_POST_COPY[1]), (Suspended, SUSPENDED_POSTCOPY_FAILED)];
        for since in [&[][..], &failed[..1], &failed[1..], &failed] {
            let mut seen = seen_after(&[&runs[..], since].concat());
            for state in [State::PostCopy, State::Migrating] {
                assert!(!seen.is_half(uuid(), state), "{since:?} {state:?}");
            }
            assert!(!seen.has_settled(uuid()) && seen.half_age(uuid()).is_none());
            seen.record_event(&event(Stopped, 1));
            assert!(seen.end_age(uuid()).is_some(), "{since:?}");
        }
        // Its memory is whole, and it moves on.
        let whole = [&runs[..], &[(Resumed, 1)]].concat();
        assert!(seen_after(&whole).settles_in(uuid()).is_some());
        for pause in SUSPENDED_BY_MIGRATION {
            let on = [&whole[..], &[(MemoryCopied, 0), (Suspended, pause)], &failed[1..]].concat();
            let mut seen = seen_after(&on);
            assert!(seen.is_half(uuid(), State::Migrating) && seen.half_age(uuid()).is_some());
            seen.record_event(&event(Stopped, 1));
            assert!(seen.end_age(uuid()).is_none() && seen.move_age(uuid()).is_some());
        }
        // Found at the start.
        let mut seen = SeenDomains::default();
        seen.lists(&DomainRecord { uuid: uuid(), name: "x".to_owned(), state: State::PostCopy });
        assert!(!seen.is_half(uuid(), State::PostCopy));
        seen.record_event(&event(Stopped, 5));
        assert!(seen.end_age(uuid()).is_some());
    }

    /// A look that shows no instance of it says the same, without an event: a libvirtd that is started anew
    /// lists what was there before, and tells of no end when it finds that the process is gone.
    #[test]
    fn a_half_that_is_gone_without_an_event_has_moved() {
        use LifecycleKind::{Started, Suspended};
        let record = |state| DomainRecord { uuid: uuid(), name: "x".to_owned(), state };
        for detail in SUSPENDED_BY_MIGRATION {
            let mut seen = seen_after(&[(Started, 0), (Suspended, detail)]);
            assert!(seen.move_age(uuid()).is_some(), "its event is late");
            seen.begin_gap();
            seen.end_gap();
            seen.lists(&record(State::Migrating));
            assert!(seen.move_age(uuid()).is_some());
        }
        // One that just starts was never the machine: if it fails, all is as before.
        let mut seen = SeenDomains::default();
        seen.lists(&record(State::Starting));
        assert!(seen.move_age(uuid()).is_none() && seen.half_age(uuid()).is_some());
        seen.record_event(&event(LifecycleKind::Resumed, 0));
        seen.record_event(&event(Started, 0));
        assert!(seen.has_settled(uuid()), "and if it does not, it is the machine");
        let mut seen = seen_after(&[(Started, 0), (LifecycleKind::Stopped, STOPPED_MIGRATED)]);
        seen.lists(&record(State::Starting));
        assert!(seen.move_age(uuid()).is_some(), "the machine is where it was");
    }

    /// Waiting is for what a look can't tell: where a transient domain went.
    #[test]
    fn an_end_is_awaited_until_it_comes_or_came_not() {
        use LifecycleKind::{Resumed, Started, Stopped};
        let mut seen = SeenDomains::default();
        assert!(!seen.awaits_end(uuid()), "nothing was here");
        seen.record_event(&event(Started, STARTED_MIGRATED));
        seen.record_event(&event(Resumed, 1));
        assert!(seen.awaits_end(uuid()));
        seen.record_awaited(uuid());
        assert!(!seen.awaits_end(uuid()));
        seen.record_event(&event(Stopped, STOPPED_MIGRATED));
        assert!(!seen.awaits_end(uuid()) && seen.move_age(uuid()).is_some(), "late, and it counts");
        seen.record_event(&event(Started, 0));
        assert!(seen.awaits_end(uuid()), "another instance");
        seen.record_awaited(uuid());
        seen.lists(&DomainRecord { uuid: uuid(), name: "x".to_owned(), state: State::Running });
        assert!(seen.awaits_end(uuid()), "it is here after all");
    }

    #[test]
    fn no_list_overrules_an_event_that_came_after_it_was_asked_for() {
        use LifecycleKind::{Resumed, Started, Stopped};
        let record = DomainRecord { uuid: uuid(), name: "x".to_owned(), state: State::Running };
        let mut seen = SeenDomains::default();
        seen.record_event(&event(Resumed, 1));
        let asked = seen.event_mark();
        seen.record_event(&event(Stopped, STOPPED_MIGRATED));
        assert!(!seen.record_listed(&record, asked) && seen.move_age(uuid()).is_some());
        // The next list shows that it is back.
        seen.lists(&record);
        assert!(seen.has_settled(uuid()));
        // An event of another domain says nothing of this one.
        let asked = seen.event_mark();
        let other = "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11".parse().unwrap();
        seen.record_event(&LifecycleEvent { uuid: other, ..event(Started, 0) });
        assert!(seen.record_listed(&record, asked));
    }

    /// Such a machine is at another place, whatever becomes of what came in or stands still here.
    #[test]
    fn a_move_outlives_what_is_no_machine() {
        use LifecycleKind::{Defined, Started, Stopped, Suspended};
        let away = [(Started, 0), (Stopped, STOPPED_MIGRATED)];
        let comes = [(Started, STARTED_MIGRATED)];
        let half = [(Started, 0), (Suspended, SUSPENDED_BY_MIGRATION[0])];
        for before in [&[&away[..], &comes].concat()[..], &half] {
            for end in [1, 5] {
                let mut seen = seen_after(before);
                seen.record_event(&event(Stopped, end));
                assert!(seen.move_age(uuid()).is_some(), "{before:?} {end}");
            }
            // libvirtd and what was here are gone at once, and so may be the daemon.
            let dir = tempfile::tempdir().unwrap();
            let past = PastEvents::open(dir.path(), "boot").unwrap();
            let mut seen = SeenDomains::on_disk(Some(past.clone()), "test:///default");
            seen.recall();
            before.iter().for_each(|(kind, detail)| seen.record_event(&event(*kind, *detail)));
            past.finish();
            let off = DomainRecord { uuid: uuid(), name: "x".to_owned(), state: State::ShutOff };
            let past = PastEvents::open(dir.path(), "boot").unwrap();
            let mut next = SeenDomains::on_disk(Some(past), "test:///default");
            next.recall();
            seen.begin_gap();
            seen.end_gap();
            for mut seen in [seen, next] {
                seen.lists(&off);
                assert!(seen.move_age(uuid()).is_some(), "{before:?}");
                seen.record_event(&event(Defined, 0));
                assert!(seen.move_age(uuid()).is_some(), "{before:?}");
            }
        }
    }

    /// The machine may have ended where it was before this host heard of what came in.
    #[test]
    fn what_came_in_and_never_ran_renews_no_move() {
        use LifecycleKind::{Resumed, Started, Stopped};
        let dir = tempfile::tempdir().unwrap();
        let past = PastEvents::open(dir.path(), "boot").unwrap();
        let mut seen = SeenDomains::on_disk(Some(past.clone()), "test:///default");
        seen.recall();
        seen.record_event(&event(Started, 0));
        seen.record_event(&event(Stopped, STOPPED_MIGRATED));
        let left = seen.last(uuid());
        for end in [1, 5] {
            seen.record_event(&event(Started, STARTED_MIGRATED));
            assert!(seen.only_came_in(uuid()) && seen.last(uuid()).and_then(LastSeen::kept).is_some());
            seen.record_event(&event(Stopped, end));
            assert_eq!(seen.last(uuid()), left, "{end}");
            // It was ended by this host.
            seen.record_move(uuid());
            assert!(seen.last(uuid()) == left && !seen.only_came_in(uuid()));
        }
        past.finish();
        let past = PastEvents::open(dir.path(), "boot").unwrap();
        let mut next = SeenDomains::on_disk(Some(past), "test:///default");
        next.recall();
        assert_eq!(next.last(uuid()), left, "on disk too");
        seen.record_event(&event(Started, STARTED_MIGRATED));
        seen.record_event(&event(Resumed, 1));
        assert!(!seen.only_came_in(uuid()));
        seen.record_event(&event(Stopped, STOPPED_MIGRATED));
        assert!(seen.last(uuid()) > left && seen.move_age(uuid()).is_some(), "it ran, and left again");
    }

    /// libvirt keeps the last reason only: a pause hides the migration before it.
    #[test]
    fn what_may_have_come_in_counts_anew() {
        for (state, is_settled) in
            [(State::Running, true), (State::MayHaveComeIn, false), (State::Paused, false)]
        {
            let mut seen = SeenDomains::default();
            seen.lists(&DomainRecord { uuid: uuid(), name: "x".to_owned(), state });
            seen.record_event(&event(LifecycleKind::Resumed, 0));
            assert_eq!(seen.has_settled(uuid()), is_settled, "{state:?}");
        }
    }

    #[test]
    fn what_was_saved_to_a_file_may_be_anywhere() {
        use LifecycleKind::{Defined, Started, Stopped};
        let saved = || {
            let mut seen = SeenDomains::on_disk(None, "test:///default");
            for (kind, detail) in [(Started, 0), (Stopped, STOPPED_SAVED), (Defined, 0)] {
                seen.record_event(&event(kind, detail));
            }
            seen
        };
        let mut seen = saved();
        assert!(seen.save_age(uuid()).is_some() && seen.move_age(uuid()).is_none());
        seen.begin_gap();
        seen.end_gap();
        let record = |state| DomainRecord { uuid: uuid(), name: "x".to_owned(), state };
        seen.lists(&record(State::ShutOff));
        assert!(seen.save_age(uuid()).is_some());
        seen.record_event(&event(Started, 0));
        assert!(seen.save_age(uuid()).is_none());
        // The machine is here, in a file that goes with its definition.
        let mut seen = saved();
        seen.record_managed_save(uuid());
        assert!(seen.save_age(uuid()).is_none() && seen.end_age(uuid()).is_some());
        // All nodes of a corosync cluster are asked.
        assert!(seen_after(&[(Started, 0), (Stopped, STOPPED_SAVED)]).save_age(uuid()).is_none());
    }
}
