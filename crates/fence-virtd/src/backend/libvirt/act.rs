// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions at one hypervisor: reading a domain's state, powering it off, starting it.
//!
//! Runs on blocking threads. No action is reported as done before a reading showed its effect.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_core::domain::ActionError;
use fence_core::evidence::last_seen::LeaveKind;
use fence_core::evidence::{DomainSite, Finding, Sight};
use libvirt_host::{Connection, Domain, Error, ErrorKind, OrdinaryConnection, State, Uuid, XmlKind};
use zeroize::Zeroizing;

use self::saved::{DiscardResult, LAST_WORDS};
use super::judged_move::JudgedMove;
use crate::hypervisor::EVENT_LAG;
use crate::hypervisor::rights::denial;
use crate::hypervisor::stray::{MachineProcess, ProcessesGone};
use crate::hypervisor::{CallError, Hypervisor};
use crate::intent::OwedSource;
use crate::request::lease::Lease;
use crate::request::trail::AgentRunTrail;
use crate::util::boot_clock::since_boot;
use crate::util::fault;
use crate::util::locks::lock;

mod saved;

/// Part of a request's time that is left for the looks after a process was waited for.
const PROCESS_RESERVE: Duration = Duration::from_secs(2);

/// Result of one reading of a domain's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DomainReading {
    /// Defined, without an instance.
    Off,
    /// An instance, with its number if it has one.
    On { instance: Option<u32>, state: State },
    /// No such domain.
    Gone,
    /// The domain runs on another host now.
    MovedAway,
    /// The hypervisor can't tell.
    Unknown,
}

impl DomainReading {
    /// Returns what the reading shows, beside what is remembered of the domain here. Without an instance it
    /// shows something only if no process has the machine.
    fn sight(self, uuid: Uuid, memory: &Hypervisor) -> Sight {
        if matches!(self, Self::Off | Self::Gone | Self::MovedAway) {
            return match memory.processes_gone(uuid) {
                Ok(gone) => self.sight_without_instance(uuid, memory, gone),
                Err(why) => Sight::Unknown(why),
            };
        }
        match self {
            Self::On { state, .. } if is_in_transit(state, uuid, memory) => Sight::Moving,
            Self::On { .. } => Sight::On,
            Self::Off | Self::Gone | Self::MovedAway | Self::Unknown => {
                Sight::Unknown(format!("libvirt at {} can't tell the domain's state", memory.uri()))
            }
        }
    }

    /// Returns what a reading without an instance shows.
    fn sight_without_instance(self, uuid: Uuid, memory: &Hypervisor, _: ProcessesGone) -> Sight {
        if self == Self::MovedAway {
            return Sight::MovedAway(memory.move_age(uuid).unwrap_or_default());
        }
        match (memory.move_age(uuid), memory.end_age(uuid)) {
            (Some(age), _) => Sight::MovedAway(age),
            (None, Some(age)) => Sight::Ended(Some(age)),
            (None, None) if self == Self::Off => Sight::Off,
            (None, None) => Sight::Absent,
        }
    }

    fn is_on(self) -> bool {
        matches!(self, Self::On { .. })
    }

    fn words(self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::On { state, .. } => format!("{state:?}").to_lowercase(),
            Self::Gone => "gone".to_owned(),
            Self::MovedAway => "on another host".to_owned(),
            Self::Unknown => "in no known state".to_owned(),
        }
    }
}

/// Reads a domain's state.
pub(super) fn look(connection: &Connection, uuid: Uuid) -> Result<DomainReading, Error> {
    let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(DomainReading::Gone) };
    let seen = (|| {
        Ok(match domain.state()? {
            State::ShutOff => DomainReading::Off,
            State::MovedAway => DomainReading::MovedAway,
            State::NoState | State::Other(_) => DomainReading::Unknown,
            // The configuration of a crashed domain says whether an instance is left.
            State::Crashed if !domain.is_active()? => DomainReading::Off,
            state => DomainReading::On { instance: domain.id(), state },
        })
    })();
    match seen {
        Err(Error { kind: ErrorKind::NoDomain, .. }) => Ok(DomainReading::Gone),
        other => other,
    }
}

/// Reads a domain's state, and returns it with the sight that it is, beside what is remembered of the domain.
pub(super) fn sight(
    connection: &Connection,
    uuid: Uuid,
    memory: &Hypervisor,
) -> Result<(DomainReading, Sight), Error> {
    let began = since_boot();
    let reading = look(connection, uuid)?;
    // One that comes in, or just starts, may fail: its events tell what became of it.
    if matches!(reading, DomainReading::On { state, .. } if !is_in_transit(state, uuid, memory)) {
        memory.record_instance(uuid, began);
    }
    // It may have gone to another place: libvirt itself tells that only of a definition that stays behind.
    if matches!(reading, DomainReading::Off | DomainReading::Gone) {
        memory.await_end(uuid);
    }
    if !reading.is_on() {
        memory.record_reading(uuid, matches!(reading, DomainReading::MovedAway));
    }
    let sight = reading.sight(uuid, memory);
    if matches!((reading, &sight), (DomainReading::Off | DomainReading::Gone, Sight::Unknown(_))) {
        // The process may be that of an instance which was started after the reading.
        let again = look(connection, uuid)?;
        if again.is_on() {
            return Ok((again, again.sight(uuid, memory)));
        }
    }
    Ok((reading, sight))
}

/// Returns whether a migration has the instance, or it just starts. libvirt says so too of one that was
/// restored paused, and is in no migration.
fn is_in_transit(state: State, uuid: Uuid, memory: &Hypervisor) -> bool {
    state.is_in_transit() && !(state == State::Migrating && memory.stands_still_since_restore(uuid))
}

/// Other domains with a name, as one hypervisor shows them.
#[derive(Debug, Default)]
pub(super) struct NamesakesHere {
    /// The one that is on here, or of which libvirt can't tell.
    pub(super) on: Option<Uuid>,
    /// Domains that moved away from here. Whether one was saved to a file is for the caller.
    pub(super) moved: Vec<Uuid>,
}

/// Looks for other domains with this name: one that is on here, and those that left for another place.
pub(super) fn namesakes(
    connection: &Connection,
    name: &str,
    uuid: Uuid,
    memory: &Arc<Hypervisor>,
) -> Result<NamesakesHere, Error> {
    let mut found = NamesakesHere::default();
    if let Some(other) = connection.domain_by_name(name)?.map(|it| it.uuid()).filter(|it| *it != uuid) {
        match look(connection, other)? {
            DomainReading::On { .. } | DomainReading::Unknown => found.on = Some(other),
            DomainReading::MovedAway => found.moved.push(other),
            DomainReading::Off | DomainReading::Gone => {}
        }
    }
    if found.on.is_none() {
        found.on = memory.process_of(|it| it.name == name && it.uuid != uuid).map(|it| it.uuid);
    }
    for saved in memory.namesakes_away(name, uuid, LeaveKind::Saved) {
        memory.look_at_save(saved);
    }
    found.moved.extend(memory.namesakes_away(name, uuid, LeaveKind::Moved));
    Ok(found)
}

/// Source from which a hypervisor starts a domain.
pub(super) enum StartSource {
    /// The domain's definition.
    Definition,
    /// The domain's XML, passwords included: a transient domain has no definition.
    Xml(Zeroizing<String>),
}

/// Order to power a domain off.
#[derive(Clone, Copy)]
pub(super) struct PowerOffOrder {
    pub(super) uuid: Uuid,
    pub(super) for_reboot: bool,
    pub(super) other_end: OtherEnd,
}

/// Result of a look for the other end of a migration, made before an instance is ended that may be one half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OtherEnd {
    /// Nobody has looked.
    NotSought,
    /// No place that is asked has it, or had it since the instance here is one half.
    NotFound,
    /// A place that is asked has it, or had it.
    Found,
}

/// Progress of a power-off, kept when the connection is lost in between.
#[derive(Default)]
pub(super) struct PowerOffProgress {
    /// True once the hypervisor was told to destroy the domain, whatever came of it.
    pub(super) acted: bool,
    /// Instance that the hypervisor may still end, once it was told to: its number, if it has one.
    pub(super) ordered: Option<Option<u32>>,
    /// Latest moment at which the hypervisor was told to. For whoever can't wait for a call that hangs.
    pub(super) sent: Arc<Mutex<Option<Instant>>>,
    /// True once the hypervisor reported success.
    destroyed: bool,
    /// True once the instance was seen in a migration.
    was_moving: bool,
    /// True once a job had the instance, which may be a migration.
    had_job: bool,
    /// True once the instance stood still for a migration: the machine may run at the other end of it.
    is_handed_over: bool,
    /// True once libvirt did not tell in time whether a job has the instance.
    job_untold: bool,
    /// Source for the restart, read before the power-off.
    start_from: Option<StartSource>,
    /// Processes that had the machine before the power-off.
    processes: Vec<MachineProcess>,
}

/// Result of a power-off at one hypervisor.
pub(super) enum PowerOffHere {
    /// No instance was here, or it left for another place: nothing was ended.
    NothingHere,
    /// Nothing was done. An instance is here that a migration has, or may have left here: the other end has
    /// to be sought before it is ended.
    MayBeHalf {
        /// Nothing but the time since it came in speaks for that.
        only_came_in: bool,
    },
    /// An instance was ended that a migration had here, or may have left here. The machine may run at another
    /// place.
    EndedWhileMoving {
        /// Source for the restart, if it was read.
        start_from: Option<StartSource>,
        /// True if it stood still for the migration: another host has the machine or had it.
        is_handed_over: bool,
    },
    /// The instance that ran here has ended, as this look showed.
    Ended {
        /// The look that showed it.
        look: Finding,
        /// Source for the restart; none if the domain has to stay off.
        start_from: Option<StartSource>,
    },
}

/// Failure of an action at a hypervisor.
pub(super) enum ActFailure {
    /// libvirt failed. If the connection was lost, the action is repeated on another.
    Libvirt(Error),
    /// The action has failed.
    Action(ActionError),
}

impl From<Error> for ActFailure {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl From<ActionError> for ActFailure {
    fn from(error: ActionError) -> Self {
        Self::Action(error)
    }
}

impl ActFailure {
    /// Separates libvirt's errors, which a call handles, from the result of the action.
    pub(super) fn separate<T>(result: Result<T, Self>) -> Result<Result<T, ActionError>, Error> {
        match result {
            Ok(done) => Ok(Ok(done)),
            Err(Self::Action(error)) => Ok(Err(error)),
            Err(Self::Libvirt(error)) => Err(error),
        }
    }
}

/// Discards what a managed save of a domain that is off left, and returns whether there was anything. The
/// inner error: it is still there.
pub(super) fn discard_saved(
    connection: &Connection,
    uuid: Uuid,
    memory: &Arc<Hypervisor>,
    lease: &Lease,
) -> Result<Result<bool, ActionError>, Error> {
    Ok(match saved::discard(connection, uuid, memory, lease.until())? {
        DiscardResult::NoneThere => Ok(false),
        DiscardResult::Removed => {
            // What could be restored is gone.
            memory.record_managed_save(uuid);
            lease.trail().remark(saved::DISCARDED);
            Ok(true)
        }
        DiscardResult::StillThere(why) => Err(ActionError::Refused(why)),
    })
}

/// Powers a domain off, waits until a reading shows that the instance has ended, and discards the memory that
/// a managed save left: nobody may wake the domain with the memory of before its fencing. Runs on a blocking
/// thread.
pub(super) fn take_down(
    connection: &Connection,
    order: PowerOffOrder,
    lease: &Lease,
    memory: &Arc<Hypervisor>,
    progress: &mut PowerOffProgress,
) -> Result<PowerOffHere, ActFailure> {
    loop {
        let here = end_instance(connection, order, lease, memory, progress)?;
        if matches!(here, PowerOffHere::MayBeHalf { .. }) {
            return Ok(here);
        }
        let discarded = discard_saved(connection, order.uuid, memory, lease)??;
        let replaced = order.for_reboot && matches!(here, PowerOffHere::Ended { start_from: None, .. });
        if !discarded && !replaced || !saved::is_old_machine_on(connection, order.uuid, discarded)? {
            return Ok(here);
        }
    }
}

/// Powers a domain off, and waits until a reading shows that the instance has ended.
fn end_instance(
    connection: &Connection,
    order: PowerOffOrder,
    lease: &Lease,
    memory: &Arc<Hypervisor>,
    progress: &mut PowerOffProgress,
) -> Result<PowerOffHere, ActFailure> {
    let (victim, refusal, pause) = (None, None, PollPause::new());
    let stands_still = false;
    let mut run =
        PowerOffRun { connection, order, lease, memory, progress, victim, refusal, pause, stands_still };
    if let Some(off) = run.first_reading()? {
        return Ok(off);
    }
    loop {
        if let Some(off) = run.destroy()? {
            return Ok(off);
        }
        if let Some(off) = run.wait_for_end()? {
            return Ok(off);
        }
    }
}

/// Power-off on one connection. Each step returns the result once the domain is off.
struct PowerOffRun<'a> {
    connection: &'a Connection,
    order: PowerOffOrder,
    lease: &'a Lease,
    memory: &'a Arc<Hypervisor>,
    progress: &'a mut PowerOffProgress,
    /// Instance that has to end, if its number is known.
    victim: Option<u32>,
    /// Reason why the hypervisor refused to destroy the domain.
    refusal: Option<String>,
    pause: PollPause,
    /// The last reading showed it paused, by a migration or not.
    stands_still: bool,
}

impl PowerOffRun<'_> {
    /// Reads the state before the action: perhaps there is nothing to end.
    fn first_reading(&mut self) -> Result<Option<PowerOffHere>, ActFailure> {
        let began = Instant::now();
        match look(self.connection, self.order.uuid)? {
            // libvirt said by an earlier connection that it ended it. An order that it did not answer may
            // never have reached it: the machine may be elsewhere.
            DomainReading::Off | DomainReading::Gone if self.progress.destroyed => {
                Ok(Some(self.ended(began)))
            }
            DomainReading::Off | DomainReading::Gone | DomainReading::MovedAway => Ok(Some(self.left())),
            DomainReading::On { instance, state } => {
                self.victim = instance;
                self.note_moving(state);
                Ok(None)
            }
            DomainReading::Unknown => Ok(None),
        }
    }

    /// Tells the hypervisor to destroy the domain.
    fn destroy(&mut self) -> Result<Option<PowerOffHere>, ActFailure> {
        let uuid = self.order.uuid;
        let began = Instant::now();
        let Some(domain) = self.connection.domain_by_uuid(uuid)? else {
            return Ok(Some(self.gone(began)));
        };
        if self.order.for_reboot && self.progress.start_from.is_none() {
            self.progress.start_from = Some(start_from(&domain, self.memory, self.lease)?);
        }
        // A slow disk takes its time, in which a migration may begin: so it is waited for first.
        if self.lease.check().is_ok() {
            self.write_owed_start();
        }
        self.ask_job()?;
        if self.progress.was_moving && self.order.other_end == OtherEnd::NotSought && !self.progress.acted {
            let only_came_in = !self.progress.had_job && !self.stands_still;
            return Ok(Some(PowerOffHere::MayBeHalf { only_came_in }));
        }
        // The last reading is fresh, so the hypervisor answers now. If it hangs from here on, only this one
        // call can still take effect late.
        self.check_lease()?;
        if self.progress.is_handed_over && self.order.other_end != OtherEnd::Found {
            self.memory.write_move(uuid);
        }
        if self.progress.processes.is_empty() {
            self.progress.processes = self.memory.note_processes(uuid);
        }
        // Other hosts go on where this one stands still for too long.
        self.check_lease()?;
        let had_acted = std::mem::replace(&mut self.progress.acted, true);
        let before = self.progress.ordered.replace(self.victim);
        *lock(&self.progress.sent) = Some(Instant::now());
        let destroyed = domain.destroy();
        fault::reached("destroy_called");
        match destroyed {
            Ok(()) => self.progress.destroyed = true,
            // Off or gone by itself at this moment: the next reading shows it.
            Err(e) if matches!(e.kind, ErrorKind::OperationInvalid | ErrorKind::NoDomain) => {}
            Err(e) if e.kind == ErrorKind::Connection => return Err(e.into()),
            Err(e) => {
                if matches!(e.kind, ErrorKind::AccessDenied | ErrorKind::Unsupported) {
                    // Nothing was signalled. After any other failure the instance may still end.
                    self.progress.ordered = before;
                }
                if let Some(denial) = denial(self.memory.uri(), &e) {
                    // Nothing that is waited for changes this.
                    self.progress.acted = had_acted;
                    return Err(ActionError::Refused(denial).into());
                }
                self.refusal = Some(e.to_string());
            }
        }
        Ok(None)
    }

    /// Checks that the domain may be destroyed now.
    fn check_lease(&mut self) -> Result<(), ActFailure> {
        match self.lease.check() {
            Err(lapsed) if !self.progress.acted => Err(lapsed.into()),
            Err(_) => {
                let (state, reason) = (look(self.connection, self.order.uuid)?.words(), self.refusal.take());
                Err(ActionError::NoEffect { state, reason }.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Asks whether a job has the instance: a migration may be about to hand the machine over. Without an
    /// answer the events tell, at the latest that of its end.
    fn ask_job(&mut self) -> Result<(), ActFailure> {
        let (uuid, memory) = (self.order.uuid, self.memory);
        let told = if self.progress.job_untold { None } else { has_moving_job(memory, uuid)? };
        self.progress.job_untold = told.is_none();
        let has_job = told.unwrap_or_else(|| !memory.runs_undisturbed(uuid));
        self.progress.had_job |= has_job;
        self.progress.was_moving |= has_job;
        // The event that its memory is copied may be late.
        self.progress.is_handed_over |= told == Some(true) && memory.stands_still_since_restore(uuid);
        Ok(())
    }

    /// Writes down that a reboot owes a start, before the domain is destroyed.
    fn write_owed_start(&self) {
        let (Some(intent), Some(start)) = (self.lease.trail().intent(), &self.progress.start_from) else {
            return;
        };
        intent.owes(&match start {
            StartSource::Definition => OwedSource::Definition,
            StartSource::Xml(xml) => OwedSource::Xml(self.memory.uri(), xml),
        });
    }

    /// Waits until the instance has ended; none if the domain has to be destroyed again.
    fn wait_for_end(&mut self) -> Result<Option<PowerOffHere>, ActFailure> {
        loop {
            let began = Instant::now();
            match look(self.connection, self.order.uuid)? {
                DomainReading::Off => return Ok(Some(self.ended(began))),
                DomainReading::Gone => return Ok(Some(self.gone(began))),
                DomainReading::MovedAway => {
                    // libvirt itself knows that now.
                    self.progress.is_handed_over = false;
                    return Ok(Some(self.left()));
                }
                // Another instance: the one that was there has ended. That completes a reboot. For an off,
                // somebody starts the domain at this moment, and it is powered off again.
                DomainReading::On { instance, state }
                    if self.victim.is_some() && instance.is_some() && instance != self.victim =>
                {
                    self.progress.was_moving |= self.progress.job_untold;
                    if self.order.for_reboot && !self.progress.was_moving && !state.is_in_transit() {
                        return Ok(Some(self.replaced(began)));
                    }
                    self.victim = instance;
                    self.note_moving(state);
                    return Ok(None);
                }
                still if Instant::now() >= self.lease.until() => {
                    let (state, reason) = (still.words(), self.refusal.take());
                    return Err(ActionError::NoEffect { state, reason }.into());
                }
                DomainReading::On { state, .. } => self.note_moving(state),
                DomainReading::Unknown => {}
            }
            self.pause.wait(self.lease.until());
            if self.refusal.is_some() || self.pause.is_long() {
                return Ok(None);
            }
        }
    }

    /// Notes what a reading of the instance says of a migration. One that just starts stands still too; it
    /// was not here before.
    fn note_moving(&mut self, state: State) {
        self.progress.was_moving |= self.is_moving(state);
        self.stands_still = stands_still(state, self.order.uuid, self.memory);
        self.progress.is_handed_over |= self.memory.is_half(self.order.uuid, state);
    }

    /// Returns whether the end of this instance is no proof: a migration has it, or brought it here so lately
    /// that the source may still be resumed, or it is paused. A machine that was paused before it migrated
    /// looks the same at its source as one that never left.
    fn is_moving(&self, state: State) -> bool {
        may_be_moving(state, self.order.uuid, self.memory)
    }

    /// Returns the result for a transient domain that is not there any more. It leaves nothing, whether it
    /// ended or moved to another host: it has ended if the hypervisor reported that it was destroyed, or if
    /// its last event says so; the event may come a moment after the reading.
    fn gone(&mut self, began: Instant) -> PowerOffHere {
        let until = Instant::now() + EVENT_LAG;
        let mut pause = PollPause::new();
        let (destroyed, was_moving) = (self.progress.destroyed, self.progress.was_moving);
        while !destroyed && !was_moving && self.memory.end_age(self.order.uuid).is_none() {
            if Instant::now() >= until {
                return self.left();
            }
            pause.wait(until);
        }
        self.ended(began)
    }

    /// Returns the result for an instance that has ended, as a look showed that began at this time.
    fn ended(&mut self, began: Instant) -> PowerOffHere {
        if self.progress.job_untold && !self.progress.was_moving {
            self.progress.was_moving = !self.memory.ended_undisturbed(self.order.uuid);
        }
        if self.progress.was_moving {
            return self.ended_while_moving();
        }
        self.memory.record_end(self.order.uuid);
        PowerOffHere::Ended { look: self.end_seen(began), start_from: self.progress.start_from.take() }
    }

    /// Returns the result of a reboot where somebody has started the domain again meanwhile.
    fn replaced(&self, began: Instant) -> PowerOffHere {
        PowerOffHere::Ended { look: self.end_seen(began), start_from: None }
    }

    /// Returns the look at the end of the instance that was here: its processes are gone too, or can't end.
    fn end_seen(&self, began: Instant) -> Finding {
        let place = DomainSite::Hypervisor(self.memory.uri().to_owned());
        let noted = &self.progress.processes;
        let is_ending = || match noted.is_empty() {
            true => self.memory.has_ending_process(self.order.uuid),
            false => noted.iter().any(MachineProcess::is_ending),
        };
        self.wait_while(is_ending);
        let sight = match self.memory.noted_processes_gone(self.order.uuid, noted) {
            Ok(ProcessesGone { .. }) => Sight::Ended(Some(Duration::ZERO)),
            Err(why) => Sight::Unknown(why),
        };
        Finding::without_namesakes(place, sight, began, Instant::now())
    }

    /// Waits for processes that are ending, before the looks at all places, which prove the end.
    fn wait_for_processes(&self) {
        let uuid = self.order.uuid;
        if self.memory.processes_gone(uuid).is_err() {
            self.wait_while(|| self.memory.has_ending_process(uuid));
        }
    }

    /// Waits while a process of the machine can't end, and leaves time for the looks after that.
    fn wait_while(&self, is_ending: impl Fn() -> bool) {
        let Some(until) = self.lease.until().checked_sub(PROCESS_RESERVE) else { return };
        let mut pause = PollPause::new();
        while Instant::now() < until && self.lease.check().is_ok() && is_ending() {
            pause.wait(until);
        }
    }

    /// Returns the result where no instance is here any more, and none was seen to end.
    fn left(&mut self) -> PowerOffHere {
        if !self.progress.acted {
            self.wait_for_processes();
            return PowerOffHere::NothingHere;
        }
        self.ended_while_moving()
    }

    fn ended_while_moving(&mut self) -> PowerOffHere {
        self.wait_for_processes();
        let uuid = self.order.uuid;
        if self.progress.is_handed_over && self.memory.only_came_in(uuid) {
            // The event of its end tells that it never ran: then an older move holds, and is not renewed.
            self.memory.await_end(uuid);
        }
        if !self.progress.is_handed_over {
            // The events tell whether it stood still for a migration when it was ended, or was the machine.
            self.memory.await_end(uuid);
            self.progress.is_handed_over = self.memory.move_age(uuid).is_some();
        }
        let PowerOffProgress { start_from, is_handed_over, .. } = &mut *self.progress;
        PowerOffHere::EndedWhileMoving { start_from: start_from.take(), is_handed_over: *is_handed_over }
    }
}

/// Returns whether the end of an instance in this state is no proof, as [`PowerOffRun::is_moving`] says.
fn may_be_moving(state: State, uuid: Uuid, memory: &Hypervisor) -> bool {
    stands_still(state, uuid, memory) || !memory.has_settled(uuid)
}

/// Returns whether an instance stands still, by a migration or not. One that runs, runs here: a migration
/// stops it before another place can have the machine. One that did not run when it migrated looks the same
/// at both ends, and at the source as one that never left.
fn stands_still(state: State, uuid: Uuid, memory: &Hypervisor) -> bool {
    match state {
        State::Migrating | State::PostCopy | State::Starting | State::Paused => true,
        // A guest that crashed and is kept, or that sleeps: so it is at the source of a migration, too.
        State::Crashed | State::PmSuspended => !memory.was_never_copied(uuid),
        // QEMU ends by itself in the next moment.
        State::Shutdown => false,
        State::Running | State::MayHaveComeIn | State::Blocked => false,
        // No instance, or none that libvirt can name.
        State::ShutOff | State::MovedAway | State::NoState | State::Other(_) => true,
    }
}

/// Effect that a power-off would have at one hypervisor.
pub(super) enum EndForecast {
    /// No instance is here.
    NothingHere,
    /// An instance would be ended, and its end would be a proof.
    Ends,
    /// The other end would be sought before: see [`PowerOffHere::MayBeHalf`].
    MayBeHalf {
        /// Nothing but the time since it came in speaks for that.
        only_came_in: bool,
        /// A migration has it, or left it here: then its end alone may prove nothing.
        is_half: bool,
    },
}

/// Reads what [`take_down`] would find, and does nothing.
pub(super) fn forecast_end(
    connection: &Connection,
    uuid: Uuid,
    memory: &Arc<Hypervisor>,
) -> Result<EndForecast, Error> {
    let DomainReading::On { state, .. } = look(connection, uuid)? else {
        return Ok(EndForecast::NothingHere);
    };
    let has_job = has_moving_job(memory, uuid)?.unwrap_or_else(|| !memory.runs_undisturbed(uuid));
    Ok(match has_job || may_be_moving(state, uuid, memory) {
        true => EndForecast::MayBeHalf {
            only_came_in: !has_job && !stands_still(state, uuid, memory),
            is_half: has_job || state.is_in_transit() || memory.is_half(uuid, state),
        },
        false => EndForecast::Ends,
    })
}

/// Returns whether a job may take the instance elsewhere; none if libvirt does not tell in time: its ordinary
/// workers are busy, or the domain's QEMU hangs.
fn has_moving_job(memory: &Arc<Hypervisor>, uuid: Uuid) -> Result<Option<bool>, Error> {
    let told = memory.ask_beside(move |c| match c.domain_by_uuid(uuid)? {
        Some(domain) => c.of(&domain).has_moving_job(),
        None => Ok(false),
    });
    match told.map_err(CallError::into_error) {
        Ok(has_job) => Ok(Some(has_job)),
        Err(Ok(error)) => Err(error),
        Err(Err(_)) => Ok(None),
    }
}

/// Reads the source from which the domain can be started again. The XML of a transient domain needs an
/// ordinary worker of libvirtd: without it there would be no way back.
fn start_from(domain: &Domain, memory: &Arc<Hypervisor>, lease: &Lease) -> Result<StartSource, ActFailure> {
    if domain.is_persistent()? {
        return Ok(StartSource::Definition);
    }
    let uuid = domain.uuid();
    let read = move |c: &OrdinaryConnection| {
        let kind = XmlKind { secure: true, inactive: true };
        c.domain_by_uuid(uuid)?.map(|it| c.of(&it).xml(kind)).transpose()
    };
    let until = lease.until().checked_sub(LAST_WORDS).unwrap_or_else(|| lease.until());
    match memory.call_worker_beside(until, read).map_err(CallError::into_error) {
        Ok(Some(xml)) => Ok(StartSource::Xml(Zeroizing::new(xml))),
        Ok(None) => Err(ActionError::Gone.into()),
        Err(Ok(error)) => Err(error.into()),
        Err(Err(error)) => Err(ActionError::Unavailable(format!(
            "nothing was done: the domain has no definition, and its XML, from which it would be started \
             again, can't be read: {error}"
        ))
        .into()),
    }
}

/// Start that libvirt is to be told.
pub(super) struct StartOrder<'s> {
    pub(super) uuid: Uuid,
    pub(super) source: &'s StartSource,
    /// Move away from this hypervisor that the proof before the start has judged.
    pub(super) judged: Option<JudgedMove>,
    /// Moment after which the places are to be asked again first.
    pub(super) order_by: Instant,
}

/// Result of a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StartResult {
    /// The domain is on.
    On,
    /// libvirt was not told: it kept the readings waiting for too long.
    TooLate,
}

/// Starts a domain, and waits until a reading shows it on. Runs on a blocking thread. `may_come` is set while
/// libvirt has an order that it has not answered.
pub(super) fn bring_up(
    connection: &OrdinaryConnection,
    StartOrder { uuid, source, judged, order_by }: &StartOrder<'_>,
    memory: &Hypervisor,
    lease: &Lease,
    may_come: &AtomicBool,
) -> Result<StartResult, ActFailure> {
    let uuid = *uuid;
    let mut pause = PollPause::new();
    let (mut refusal, mut is_ordered) = (None::<String>, false);
    loop {
        let seen = look(connection, uuid)?;
        match (seen, source) {
            // It just starts, or comes by a migration: only one that is there to stay counts.
            (DomainReading::On { state, .. }, _) if state.is_in_transit() => {
                lease.check()?;
                pause.wait(lease.until());
                continue;
            }
            (DomainReading::On { .. }, _) => {
                // One that was cut off before finds the domain on.
                may_come.store(false, Ordering::Relaxed);
                return Ok(StartResult::On);
            }
            (DomainReading::MovedAway, _) if !judged.is_some_and(|it| it.is_last(uuid, memory)) => {
                return Err(ActionError::Refused(moved_again(memory.uri())).into());
            }
            (DomainReading::Gone, StartSource::Definition) => {
                return Err(ActionError::Refused(no_definition(memory.uri())).into());
            }
            _ => {}
        }
        if let Some(reason) = refusal {
            // One attempt: the cause (a missing disk, no memory) does not pass while a client waits.
            return Err(ActionError::Refused(reason).into());
        }
        lease.check()?;
        if !is_ordered && Instant::now() > *order_by {
            return Ok(StartResult::TooLate);
        }
        is_ordered = true;
        let earlier = may_come.swap(true, Ordering::Relaxed);
        let started = order_start(connection, uuid, source, lease.trail());
        if !matches!(&started, Err(e) if e.kind == ErrorKind::Connection) {
            may_come.store(earlier, Ordering::Relaxed);
        }
        let Some(started) = started.transpose() else {
            return Err(ActionError::Refused(no_definition(memory.uri())).into());
        };
        fault::reached("start_called");
        match started {
            Ok(()) => {}
            Err(e) if e.kind == ErrorKind::Connection => return Err(e.into()),
            // "Running already" is one of these: the next reading shows it.
            Err(e) => refusal = Some(denial(connection.uri(), &e).unwrap_or_else(|| e.to_string())),
        }
        if look(connection, uuid)?.is_on() {
            return Ok(StartResult::On);
        }
        pause.wait(lease.until());
    }
}

/// Returns the refusal to start a domain that was seen off everywhere. Only this hypervisor was asked for its
/// definition: another place may have one.
pub(super) fn no_definition(uri: &str) -> String {
    format!(
        "the domain is off, and libvirt at {uri} has no definition of the domain. Start the domain at \
         a host that has one: virsh list --all on each host"
    )
}

/// Returns the refusal to start a domain that may have left since it was seen off.
fn moved_again(uri: &str) -> String {
    format!(
        "libvirt at {uri} says that the domain was migrated away, and that may have been after the domain \
         was seen off: the domain is not started. Ask again"
    )
}

/// Has a domain started, and waits for libvirt's answer. None: no such domain.
fn order_start(
    connection: &OrdinaryConnection,
    uuid: Uuid,
    source: &StartSource,
    trail: &AgentRunTrail,
) -> Result<Option<()>, Error> {
    match source {
        StartSource::Definition => match connection.domain_by_uuid(uuid)? {
            Some(domain) => saved::boot(connection, &domain, trail).map(Some),
            None => Ok(None),
        },
        StartSource::Xml(xml) => connection.create_xml(xml).map(|_| Some(())),
    }
}

/// Pause between two readings: 1 ms at first, then longer, up to a tenth of a second.
struct PollPause(Duration);

impl PollPause {
    const LONGEST: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Self(Duration::from_millis(1))
    }

    fn wait(&mut self, until: Instant) {
        std::thread::sleep(self.0.min(until.saturating_duration_since(Instant::now())));
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }

    fn is_long(&self) -> bool {
        self.0 >= Self::LONGEST
    }
}
