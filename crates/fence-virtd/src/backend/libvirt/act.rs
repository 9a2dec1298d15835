// SPDX-License-Identifier: GPL-2.0-or-later
//! Actions at one hypervisor: reading a domain's state, powering it off, starting it.
//!
//! Runs on blocking threads. No action is reported as done before a reading showed its effect.

use std::time::{Duration, Instant};

use fence_core::domain::{ActionError, PowerState};
use libvirt_host::{Connection, Domain, Error, ErrorKind, State, Uuid, XmlKind};
use zeroize::Zeroizing;

use crate::hypervisor::Hypervisor;
use crate::request::lease::Lease;

/// Time by which an event may be later than the reading.
const EVENT_LAG: Duration = Duration::from_secs(1);

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
    pub(super) fn power(self) -> Result<PowerState, ActionError> {
        match self {
            Self::Off => Ok(PowerState::Off),
            Self::On { .. } => Ok(PowerState::On),
            Self::Gone | Self::MovedAway => Err(ActionError::Gone),
            Self::Unknown => {
                Err(ActionError::Refused("the hypervisor can't tell the domain's state".to_owned()))
            }
        }
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
    /// For a reboot, a domain that was off before is started too.
    pub(super) reboot_starts: bool,
}

/// Progress of a power-off, kept when the connection is lost in between.
#[derive(Default)]
pub(super) struct PowerOffProgress {
    /// True once the hypervisor was told to destroy the domain, whatever came of it.
    pub(super) acted: bool,
    /// True once the hypervisor reported success.
    destroyed: bool,
    /// Source for the restart, read before the power-off.
    start_from: Option<StartSource>,
}

/// A domain that is off at its hypervisor.
pub(super) struct DomainPowerOff {
    pub(super) was_off: bool,
    /// Source for the restart; none if the domain has to stay off.
    pub(super) start_from: Option<StartSource>,
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

/// Powers a domain off, and waits until a reading shows that the instance has ended. Runs on a blocking
/// thread.
pub(super) fn take_down(
    connection: &Connection,
    order: PowerOffOrder,
    lease: &Lease,
    memory: &Hypervisor,
    progress: &mut PowerOffProgress,
) -> Result<DomainPowerOff, ActFailure> {
    let (victim, refusal, pause) = (None, None, PollPause::new());
    let mut run = PowerOffRun { connection, order, lease, memory, progress, victim, refusal, pause };
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
    memory: &'a Hypervisor,
    progress: &'a mut PowerOffProgress,
    /// Instance that has to end, if its number is known.
    victim: Option<u32>,
    /// Reason why the hypervisor refused to destroy the domain.
    refusal: Option<String>,
    pause: PollPause,
}

impl PowerOffRun<'_> {
    /// Reads the state before the action: perhaps the domain is off already.
    fn first_reading(&mut self) -> Result<Option<DomainPowerOff>, ActFailure> {
        let PowerOffOrder { uuid, for_reboot, reboot_starts } = self.order;
        match look(self.connection, uuid)? {
            DomainReading::Off if self.progress.acted => Ok(Some(self.off())),
            DomainReading::Gone if self.progress.destroyed => Ok(Some(self.off())),
            DomainReading::Off => {
                let start_from = (for_reboot && reboot_starts).then_some(StartSource::Definition);
                Ok(Some(DomainPowerOff { was_off: true, start_from }))
            }
            DomainReading::Gone if self.memory.gone_off(Some(uuid), None).is_some() => {
                Ok(Some(DomainPowerOff { was_off: true, start_from: None }))
            }
            DomainReading::Gone | DomainReading::MovedAway => Err(ActionError::Gone.into()),
            DomainReading::On { instance, .. } => {
                self.victim = instance;
                Ok(None)
            }
            DomainReading::Unknown => Ok(None),
        }
    }

    /// Tells the hypervisor to destroy the domain.
    fn destroy(&mut self) -> Result<Option<DomainPowerOff>, ActFailure> {
        let uuid = self.order.uuid;
        let Some(domain) = self.connection.domain_by_uuid(uuid)? else { return self.gone().map(Some) };
        if self.order.for_reboot && self.progress.start_from.is_none() {
            self.progress.start_from = Some(start_from(&domain)?);
        }
        // The last reading is fresh, so the hypervisor answers now. If it hangs from here on, only this one
        // call can still take effect late.
        if let Err(lapsed) = self.lease.check() {
            if !self.progress.acted {
                return Err(lapsed.into());
            }
            let (state, reason) = (look(self.connection, uuid)?.words(), self.refusal.take());
            return Err(ActionError::NoEffect { state, reason }.into());
        }
        self.progress.acted = true;
        match domain.destroy() {
            Ok(()) => self.progress.destroyed = true,
            // Off or gone by itself at this moment: the next reading shows it.
            Err(e) if matches!(e.kind, ErrorKind::OperationInvalid | ErrorKind::NoDomain) => {}
            Err(e) if e.kind == ErrorKind::Connection => return Err(e.into()),
            Err(e) => self.refusal = Some(e.to_string()),
        }
        Ok(None)
    }

    /// Waits until the instance has ended; none if the domain has to be destroyed again.
    fn wait_for_end(&mut self) -> Result<Option<DomainPowerOff>, ActFailure> {
        loop {
            match look(self.connection, self.order.uuid)? {
                DomainReading::Off => {
                    self.memory.record_power_off(self.order.uuid);
                    return Ok(Some(self.off()));
                }
                DomainReading::Gone => return self.gone().map(Some),
                DomainReading::MovedAway => return Err(ActionError::Gone.into()),
                // Another instance: the one that was there has ended. That completes a reboot. For an off,
                // somebody starts the domain at this moment, and it is powered off again.
                DomainReading::On { instance, .. }
                    if self.victim.is_some() && instance.is_some() && instance != self.victim =>
                {
                    let started_again = DomainPowerOff { was_off: false, start_from: None };
                    return Ok(self.order.for_reboot.then_some(started_again));
                }
                still if Instant::now() >= self.lease.until() => {
                    let (state, reason) = (still.words(), self.refusal.take());
                    return Err(ActionError::NoEffect { state, reason }.into());
                }
                DomainReading::On { .. } | DomainReading::Unknown => {}
            }
            self.pause.wait(self.lease.until());
            if self.refusal.is_some() || self.pause.is_long() {
                return Ok(None);
            }
        }
    }

    fn gone(&mut self) -> Result<DomainPowerOff, ActFailure> {
        gone(self.order.uuid, self.progress, self.memory)?;
        Ok(self.off())
    }

    fn off(&mut self) -> DomainPowerOff {
        DomainPowerOff { was_off: false, start_from: self.progress.start_from.take() }
    }
}

/// Checks that a transient domain that is not there any more went off: it leaves nothing, whether it was
/// powered off or moved to another host. It is off if the hypervisor reported that it was destroyed, or if
/// its last event says so; the event may come a moment after the reading.
fn gone(uuid: Uuid, progress: &PowerOffProgress, memory: &Hypervisor) -> Result<(), ActionError> {
    if progress.destroyed {
        memory.record_power_off(uuid);
        return Ok(());
    }
    let until = Instant::now() + EVENT_LAG;
    let mut pause = PollPause::new();
    while Instant::now() < until {
        if memory.gone_off(Some(uuid), None).is_some() {
            return Ok(());
        }
        pause.wait(until);
    }
    Err(ActionError::Gone)
}

/// Reads the source from which the domain can be started again.
fn start_from(domain: &Domain) -> Result<StartSource, Error> {
    Ok(if domain.is_persistent()? {
        StartSource::Definition
    } else {
        let xml = domain.xml(XmlKind { secure: true, inactive: true })?;
        StartSource::Xml(Zeroizing::new(xml))
    })
}

/// Starts a domain, and waits until a reading shows it on. Runs on a blocking thread.
pub(super) fn bring_up(
    connection: &Connection,
    uuid: Uuid,
    source: &StartSource,
    lease: &Lease,
) -> Result<(), ActFailure> {
    let mut pause = PollPause::new();
    let mut refusal: Option<String> = None;
    loop {
        let seen = look(connection, uuid)?;
        match (seen, source) {
            (DomainReading::On { .. }, _) => return Ok(()),
            (DomainReading::MovedAway, _) | (DomainReading::Gone, StartSource::Definition) => {
                return Err(ActionError::Gone.into());
            }
            _ => {}
        }
        if let Some(reason) = refusal {
            // One attempt: the cause (a missing disk, no memory) does not pass while a client waits.
            return Err(ActionError::Refused(reason).into());
        }
        lease.check()?;
        let started = match source {
            StartSource::Definition => match connection.domain_by_uuid(uuid)? {
                Some(domain) => domain.create(),
                None => return Err(ActionError::Gone.into()),
            },
            StartSource::Xml(xml) => connection.create_xml(xml).map(drop),
        };
        match started {
            Ok(()) => {}
            Err(e) if e.kind == ErrorKind::Connection => return Err(e.into()),
            // "Running already" is one of these: the next reading shows it.
            Err(e) => refusal = Some(e.to_string()),
        }
        if look(connection, uuid)?.power() == Ok(PowerState::On) {
            return Ok(());
        }
        pause.wait(lease.until());
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
