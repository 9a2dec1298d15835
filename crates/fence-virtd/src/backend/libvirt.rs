// SPDX-License-Identifier: GPL-2.0-or-later
//! The libvirt backend: one or several hypervisors, their domains merged.
//!
//! Owns the connections (through [`crate::hypervisor`]) and the rules of looking: what counts as off, when a
//! look is enough, when an answer would be a guess. Runs on the runtime; everything that blocks is sent to
//! blocking threads by [`crate::hypervisor`] with a deadline.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::Target;
use libvirt_host::{Connection, Domain, Error, ErrorKind, State, Uuid, XmlKind};
use zeroize::Zeroizing;

use super::{Backend, BoxedFuture, PowerOffResult, Restart, SLOW_BACKEND_GRACE};
use crate::hypervisor::{CallError, Hypervisor, Hypervisors};
use crate::request::lease::Lease;
use crate::util::join::join_all;
use crate::util::locks::lock;
use fence_core::domain::{
    ActionError, DomainHome, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain, PowerState,
    merge,
};

/// Bytes of a name that fit into a host list or a request; longer names reach us cut.
const NAME_ON_WIRE: usize = Target::MAX;
/// How long a hypervisor is asked for the end of something unfinished before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long after it answers again a hypervisor may take to do what it was told before.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);
/// How much later than the look an event may come.
const EVENT_LAG: Duration = Duration::from_secs(1);
/// A cut may fall up to three bytes earlier, between two characters.
const SHORTEST_CUT_NAME: usize = NAME_ON_WIRE - 3;

/// The hypervisors of `backends { libvirt { … } }`.
pub(crate) struct LibvirtBackend {
    hypervisors: Vec<Arc<Hypervisor>>,
    reboot_starts: bool,
}

impl LibvirtBackend {
    /// Connects to every hypervisor and keeps the connections; returns when the first attempt at each has
    /// ended.
    ///
    /// The second value has a line for each that can't be reached now. They are tried again for ever.
    pub(crate) async fn start(
        uris: &[String],
        reboot_starts: bool,
        known: &Hypervisors,
    ) -> (Self, Vec<String>) {
        let hypervisors: Vec<_> = uris.iter().map(|uri| known.at(uri)).collect();
        let mut unreachable = Vec::new();
        for hypervisor in &hypervisors {
            if let Err(error) = hypervisor.first_attempt().await {
                unreachable.push(error.to_string());
            }
        }
        (Self { hypervisors, reboot_starts }, unreachable)
    }

    /// Those of the configuration, in its order.
    #[cfg(feature = "cpg")]
    pub(crate) fn hypervisors(&self) -> &[Arc<Hypervisor>] {
        &self.hypervisors
    }

    fn home(&self, domain: &DomainRef) -> Result<&Arc<Hypervisor>, ActionError> {
        match domain.home {
            DomainHome::Here(place) => self.hypervisors.get(place).ok_or(ActionError::Gone),
            DomainHome::Elsewhere | DomainHome::Agent => Err(ActionError::Gone),
        }
    }

    /// Looks at the domain.
    pub(crate) async fn look(&self, domain: &DomainRef, until: Instant) -> Result<PowerState, ActionError> {
        let uuid = uuid_of(domain)?;
        let look = self.home(domain)?.ask(until, move |c| look(c, uuid)).await?;
        look.power()
    }

    async fn locate_here(&self, target: &Target, until: Instant) -> Result<LocatedDomain, LocateError> {
        let wanted = Arc::new(TargetQuery::new(target));
        let (mut found, mut unavailable) = (Vec::new(), Vec::new());
        let mut asked: Vec<usize> = (0..self.hypervisors.len()).collect();
        // One that hangs must not delay what another has: with several the first round is short.
        let first = if asked.len() > 1 { until.min(Instant::now() + SLOW_BACKEND_GRACE) } else { until };
        for limit in [first, until] {
            let looks = asked.iter().map(|home| {
                let wanted = Arc::clone(&wanted);
                self.hypervisors[*home].ask(limit, move |connection| wanted.find(connection))
            });
            let (mut silent, mut down) = (Vec::new(), Vec::new());
            for (home, result) in asked.iter().copied().zip(join_all(looks).await) {
                match result {
                    Ok(domains) => found.extend(domains.into_iter().map(|it| (home, it))),
                    Err(error @ (CallError::Slow { .. } | CallError::Busy { .. })) => {
                        silent.push((home, error));
                    }
                    Err(error) => down.push((home, error)),
                }
            }
            unavailable.extend(down);
            if found.iter().any(|(_, it): &(usize, MatchedDomain)| it.active)
                || silent.is_empty()
                || limit == until
            {
                unavailable.extend(silent);
                break;
            }
            asked = silent.into_iter().map(|(home, _)| home).collect();
        }
        // A domain that is on somewhere is there, whatever other hypervisors hold a definition of it.
        if found.iter().any(|(_, it)| it.active) {
            found.retain(|(_, it)| it.active);
        }
        let reasons = || unavailable.iter().map(|(_, e)| e.to_string()).collect::<Vec<_>>().join("; ");
        match &found[..] {
            [(home, one)] => {
                // Off here says nothing when it was last seen on a hypervisor that can't be asked now, and a
                // name says nothing when another domain had it there.
                let in_doubt = unavailable.iter().map(|(home, _)| &self.hypervisors[*home]).any(|it| {
                    !one.active && it.has_seen(one.uuid)
                        || !wanted.is_uuid_of(one) && it.has_seen_another(&one.name, one.uuid)
                });
                if in_doubt {
                    return Err(LocateError::Unavailable(reasons()));
                }
                Ok(self.here_or_resting(*home, one))
            }
            [] if !unavailable.is_empty() => Err(LocateError::Unavailable(reasons())),
            [] => self.gone(&wanted).ok_or(LocateError::NotFound),
            // The same domain defined on several hypervisors and on nowhere: it is off, and any will do.
            [(home, first), rest @ ..]
                if !first.active && rest.iter().all(|(_, it)| it.uuid == first.uuid) =>
            {
                Ok(self.here_or_resting(*home, first))
            }
            several => Err(LocateError::Ambiguous(
                several
                    .iter()
                    .map(|(home, it)| format!("{} at {}", it.uuid, self.hypervisors[*home].uri()))
                    .collect::<Vec<_>>()
                    .join(", "),
            )),
        }
    }

    fn here_or_resting(&self, home: usize, found: &MatchedDomain) -> LocatedDomain {
        let reference = found.reference(home);
        if found.active || self.hypervisors[home].gone_off(Some(found.uuid), None).is_some() {
            LocatedDomain::Here(reference)
        } else {
            LocatedDomain::DefinedOff(reference)
        }
    }

    /// A domain that is nowhere now and that was seen to go off. Any hint that it may live elsewhere makes
    /// this none: see [`Hypervisor::gone_off`].
    fn gone(&self, wanted: &TargetQuery) -> Option<LocatedDomain> {
        self.hypervisors.iter().enumerate().find_map(|(home, it)| {
            let (uuid, name) =
                it.gone_off(wanted.uuid, (!wanted.only_uuid).then_some(wanted.text.as_str()))?;
            Some(LocatedDomain::PoweredOffTransient(DomainRef {
                name,
                uuid: uuid.to_string(),
                home: DomainHome::Here(home),
            }))
        })
    }

    async fn take_down(
        &self,
        domain: &DomainRef,
        for_reboot: bool,
        lease: &Lease,
    ) -> Result<PowerOffResult<'_>, ActionError> {
        let home = self.home(domain)?;
        let uuid = uuid_of(domain)?;
        let order = PowerOffOrder { uuid, for_reboot, reboot_starts: self.reboot_starts };
        let progress = Arc::new(Mutex::new(PowerOffProgress::default()));
        let result: Result<Infallible, ActionError> = loop {
            if let Err(lapsed) = lease.check() {
                break Err(lapsed);
            }
            let (held, memory, mine) = (lease.clone(), Arc::clone(home), Arc::clone(&progress));
            let work = move |c: &Connection| {
                let mut progress = lock(&mine);
                take_down(c, order, &held, &memory, &mut progress)
            };
            match home.call(lease.until(), work).await {
                // The order is to have it off, so it is given again over a new connection as long as the
                // client waits for it.
                Err(CallError::Lost(_)) => {}
                Err(error) => break Err(error.into()),
                Ok(result) => {
                    let DomainPowerOff { was_off, start_from } = result?;
                    let restart = start_from.map(|source| {
                        Box::new(LibvirtRestart { home: Arc::clone(home), uuid, source }) as Box<dyn Restart>
                    });
                    return Ok(PowerOffResult { was_off, restart, note: None });
                }
            }
        };
        // Not to be had: a call still has it, and may be in the middle of the action.
        let begun = progress.try_lock().map_or(true, |it| it.acted);
        match result {
            Err(error) if begun => {
                Self::hold_until_known(Arc::clone(home), uuid, lease.clone());
                Err(ActionError::Unknown(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// A hypervisor that was told to act and was then lost may still do it. Nothing that this could harm gets
    /// its turn (the lease is held) before the hypervisor has been asked again, and asked once more a little
    /// later, because it may answer before it does what it was told earlier.
    fn hold_until_known(home: Arc<Hypervisor>, uuid: Uuid, held: Lease) {
        tokio::spawn(async move {
            for pause in [EFFECT_SETTLE, Duration::ZERO] {
                while home.ask(Instant::now() + ASK_AGAIN, move |c| look(c, uuid)).await.is_err() {
                    tokio::time::sleep(EFFECT_SETTLE).await;
                }
                tokio::time::sleep(pause).await;
            }
            drop(held);
        });
    }
}

/// A domain that a hypervisor can start, or start again.
struct LibvirtRestart {
    home: Arc<Hypervisor>,
    uuid: Uuid,
    source: StartSource,
}

/// Without the domain's XML, which may contain passwords.
impl fmt::Debug for LibvirtRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.source {
            StartSource::Definition => "definition",
            StartSource::Xml(_) => "XML",
        };
        f.debug_struct("LibvirtRestart")
            .field("uuid", &self.uuid)
            .field("source", &kind)
            .finish_non_exhaustive()
    }
}

impl LibvirtRestart {
    async fn bring_up(self, lease: &Lease) -> Result<(), ActionError> {
        let Self { home, uuid, source } = self;
        let source = Arc::new(source);
        loop {
            lease.check()?;
            let (held, source) = (lease.clone(), Arc::clone(&source));
            match home.call(lease.until(), move |c| bring_up(c, uuid, &source, &held)).await {
                Err(CallError::Lost(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(result) => return result,
            }
        }
    }
}

impl Restart for LibvirtRestart {
    fn start<'a>(self: Box<Self>, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(self.bring_up(lease))
    }
}

/// Source from which a hypervisor starts a domain.
enum StartSource {
    /// The domain's definition.
    Definition,
    /// The domain's XML, passwords included: a transient domain has no definition.
    Xml(Zeroizing<String>),
}

impl Backend for LibvirtBackend {
    fn locate<'a>(
        &'a self,
        target: &'a Target,
        until: Instant,
    ) -> BoxedFuture<'a, Result<LocatedDomain, LocateError>> {
        Box::pin(self.locate_here(target, until))
    }

    fn may_own(&self, target: &Target) -> bool {
        let wanted = TargetQuery::new(target);
        self.hypervisors.iter().any(|it| it.remembers(|uuid, name| wanted.means(uuid, name)))
    }

    fn status<'a>(
        &'a self,
        domain: &'a DomainRef,
        lease: &'a Lease,
    ) -> BoxedFuture<'a, Result<PowerState, ActionError>> {
        Box::pin(self.look(domain, lease.until()))
    }

    fn off<'b, 'a: 'b>(
        &'a self,
        domain: &'b DomainRef,
        for_reboot: bool,
        lease: &'b Lease,
    ) -> BoxedFuture<'b, Result<PowerOffResult<'a>, ActionError>> {
        Box::pin(self.take_down(domain, for_reboot, lease))
    }

    fn on<'a>(&'a self, domain: &'a DomainRef, lease: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>> {
        Box::pin(async move {
            let (home, uuid) = (Arc::clone(self.home(domain)?), uuid_of(domain)?);
            LibvirtRestart { home, uuid, source: StartSource::Definition }.bring_up(lease).await
        })
    }

    fn list(&self, until: Instant) -> BoxedFuture<'_, Result<DomainListing, ActionError>> {
        Box::pin(async move {
            let looks = self.hypervisors.iter().map(|it| it.ask(until, Connection::domains));
            let mut listing = DomainListing::default();
            for result in join_all(looks).await {
                match result {
                    Ok(records) => listing.domains.extend(
                        // What moved away is for its new host to list.
                        records.into_iter().filter(|it| it.state != State::MovedAway).map(|it| {
                            ListedDomain {
                                power: if it.state == State::ShutOff {
                                    PowerState::Off
                                } else {
                                    PowerState::On
                                },
                                name: it.name,
                                uuid: it.uuid.to_string(),
                            }
                        }),
                    ),
                    Err(error) => listing.missing.push(error.to_string()),
                }
            }
            if listing.missing.len() == self.hypervisors.len() {
                return Err(ActionError::Unavailable(listing.missing.join("; ")));
            }
            merge(&mut listing.domains);
            Ok(listing)
        })
    }

    fn health(&self, until: Instant) -> BoxedFuture<'_, Result<Vec<String>, ActionError>> {
        Box::pin(async move {
            let pings = self.hypervisors.iter().map(|it| it.ask(until, Connection::ping));
            let failed: Vec<String> =
                join_all(pings).await.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
            if failed.len() == self.hypervisors.len() {
                return Err(ActionError::Unavailable(failed.join("; ")));
            }
            Ok(failed)
        })
    }
}

/// A target, read once.
struct TargetQuery {
    text: String,
    uuid: Option<Uuid>,
    only_uuid: bool,
}

/// A domain as one hypervisor has it.
struct MatchedDomain {
    name: String,
    uuid: Uuid,
    active: bool,
}

impl MatchedDomain {
    fn reference(&self, home: usize) -> DomainRef {
        DomainRef { name: self.name.clone(), uuid: self.uuid.to_string(), home: DomainHome::Here(home) }
    }
}

impl TargetQuery {
    fn new(target: &Target) -> Self {
        let text = target.as_str().to_owned();
        Self { uuid: text.parse().ok(), only_uuid: target.is_uuid(), text }
    }

    fn is_uuid_of(&self, found: &MatchedDomain) -> bool {
        self.uuid == Some(found.uuid)
    }

    /// UUID first, then name: so a domain whose name looks like a UUID can be reached. More than one only
    /// where a name came cut.
    fn find(&self, connection: &Connection) -> Result<Vec<MatchedDomain>, Error> {
        let mut domain = None;
        if let Some(uuid) = self.uuid {
            domain = connection.domain_by_uuid(uuid)?;
        }
        if domain.is_none() && !self.only_uuid {
            domain = connection.domain_by_name(&self.text)?;
        }
        match domain {
            Some(domain) => found(&domain),
            None if !self.only_uuid && (SHORTEST_CUT_NAME..=NAME_ON_WIRE).contains(&self.text.len()) => {
                self.find_by_cut_name(connection)
            }
            None => Ok(Vec::new()),
        }
    }

    /// Whether it could be one that [`Self::find`] finds.
    fn means(&self, uuid: Uuid, name: &str) -> bool {
        self.uuid == Some(uuid) || !self.only_uuid && (self.text == name || self.is_cut_from(name))
    }

    fn is_cut_from(&self, name: &str) -> bool {
        name.len() > NAME_ON_WIRE
            && name.starts_with(&self.text)
            && name.floor_char_boundary(NAME_ON_WIRE) == self.text.len()
    }

    fn find_by_cut_name(&self, connection: &Connection) -> Result<Vec<MatchedDomain>, Error> {
        let all = connection.domains()?;
        Ok(all
            .into_iter()
            .filter(|it| it.state != State::MovedAway && self.is_cut_from(&it.name))
            .map(|it| MatchedDomain { name: it.name, uuid: it.uuid, active: it.state != State::ShutOff })
            .collect())
    }
}

/// None for a domain that is gone this moment, or that moved to another host and left its definition here.
fn found(domain: &Domain) -> Result<Vec<MatchedDomain>, Error> {
    let seen = domain.state().and_then(|state| Ok((state, domain.is_active()?)));
    match seen {
        Ok((State::MovedAway, _)) => Ok(Vec::new()),
        Ok((_, active)) => {
            Ok(vec![MatchedDomain { name: domain.name().to_owned(), uuid: domain.uuid(), active }])
        }
        Err(error) if error.kind == ErrorKind::NoDomain => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What one look at a domain showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DomainReading {
    /// Defined, and no instance of it.
    Off,
    /// An instance, by its number where it has one.
    On { instance: Option<u32>, state: State },
    /// No such domain.
    Gone,
    /// It runs on another host now.
    MovedAway,
    /// The hypervisor can't tell.
    Unknown,
}

impl DomainReading {
    fn power(self) -> Result<PowerState, ActionError> {
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

fn look(connection: &Connection, uuid: Uuid) -> Result<DomainReading, Error> {
    let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(DomainReading::Gone) };
    let seen = (|| {
        Ok(match domain.state()? {
            State::ShutOff => DomainReading::Off,
            State::MovedAway => DomainReading::MovedAway,
            State::NoState | State::Other(_) => DomainReading::Unknown,
            // Whether anything of a crashed domain is left depends on its configuration.
            State::Crashed if !domain.is_active()? => DomainReading::Off,
            state => DomainReading::On { instance: domain.id(), state },
        })
    })();
    match seen {
        Err(Error { kind: ErrorKind::NoDomain, .. }) => Ok(DomainReading::Gone),
        other => other,
    }
}

#[derive(Clone, Copy)]
struct PowerOffOrder {
    uuid: Uuid,
    for_reboot: bool,
    reboot_starts: bool,
}

/// What was done so far, kept when the connection is lost in between.
#[derive(Default)]
struct PowerOffProgress {
    /// The domain was told to go off; whether it heard is not known.
    acted: bool,
    /// The hypervisor said that it did it.
    destroyed: bool,
    /// Source to start it again from, read before that.
    start_from: Option<StartSource>,
}

/// A domain that is off at its hypervisor.
struct DomainPowerOff {
    was_off: bool,
    /// Source to start it again from; none where it is to stay off.
    start_from: Option<StartSource>,
}

/// Looks, acts, and looks until the instance that was there is no more. Runs on a blocking thread.
fn take_down(
    connection: &Connection,
    order: PowerOffOrder,
    lease: &Lease,
    memory: &Hypervisor,
    progress: &mut PowerOffProgress,
) -> Result<Result<DomainPowerOff, ActionError>, Error> {
    let PowerOffOrder { uuid, for_reboot, reboot_starts } = order;
    let down = |progress: &mut PowerOffProgress| DomainPowerOff {
        was_off: false,
        start_from: progress.start_from.take(),
    };
    let victim = match look(connection, uuid)? {
        DomainReading::Off if progress.acted => return Ok(Ok(down(progress))),
        DomainReading::Gone if progress.destroyed => return Ok(Ok(down(progress))),
        DomainReading::Off => {
            let start_from = (for_reboot && reboot_starts).then_some(StartSource::Definition);
            return Ok(Ok(DomainPowerOff { was_off: true, start_from }));
        }
        DomainReading::Gone if memory.gone_off(Some(uuid), None).is_some() => {
            return Ok(Ok(DomainPowerOff { was_off: true, start_from: None }));
        }
        DomainReading::Gone | DomainReading::MovedAway => return Ok(Err(ActionError::Gone)),
        DomainReading::On { instance, .. } => instance,
        DomainReading::Unknown => None,
    };
    let mut refusal: Option<String> = None;
    let mut pause = PollPause::new();
    loop {
        let Some(domain) = connection.domain_by_uuid(uuid)? else {
            return Ok(gone(uuid, progress, memory).map(|()| down(progress)));
        };
        if for_reboot && progress.start_from.is_none() {
            progress.start_from = Some(start_from(&domain)?);
        }
        // The look above is fresh, so the hypervisor answers now; if it hangs from here on, the window in
        // which it could still carry this out late is the one call.
        if let Err(lapsed) = lease.check() {
            return Ok(Err(match (progress.acted, refusal) {
                (true, reason) => ActionError::NoEffect { state: look(connection, uuid)?.words(), reason },
                (false, _) => lapsed,
            }));
        }
        progress.acted = true;
        match domain.destroy() {
            Ok(()) => progress.destroyed = true,
            // Off or gone by itself in this moment: the look tells.
            Err(e) if matches!(e.kind, ErrorKind::OperationInvalid | ErrorKind::NoDomain) => {}
            Err(e) if e.kind == ErrorKind::Connection => return Err(e),
            Err(e) => refusal = Some(e.to_string()),
        }
        loop {
            match look(connection, uuid)? {
                DomainReading::Off => {
                    memory.record_power_off(uuid);
                    return Ok(Ok(down(progress)));
                }
                DomainReading::Gone => return Ok(gone(uuid, progress, memory).map(|()| down(progress))),
                DomainReading::MovedAway => return Ok(Err(ActionError::Gone)),
                // Another instance: the one that was there has ended. For a reboot that is what was wanted;
                // for an off somebody starts it again as we speak, and it goes down again.
                DomainReading::On { instance, .. }
                    if victim.is_some() && instance.is_some() && instance != victim =>
                {
                    if for_reboot {
                        return Ok(Ok(DomainPowerOff { was_off: false, start_from: None }));
                    }
                    break;
                }
                still if Instant::now() >= lease.until() => {
                    return Ok(Err(ActionError::NoEffect { state: still.words(), reason: refusal }));
                }
                DomainReading::On { .. } | DomainReading::Unknown => {}
            }
            pause.wait(lease.until());
            if refusal.is_some() || pause.is_long() {
                break;
            }
        }
    }
}

/// A transient domain leaves nothing, whether it was powered off or moved to another host. It is off when the
/// hypervisor said that it destroyed it, or when its last event says so; that may come a moment after the
/// look.
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

fn start_from(domain: &Domain) -> Result<StartSource, Error> {
    Ok(if domain.is_persistent()? {
        StartSource::Definition
    } else {
        let xml = domain.xml(XmlKind { secure: true, inactive: true })?;
        StartSource::Xml(Zeroizing::new(xml))
    })
}

/// Starts and looks until it is on. Runs on a blocking thread.
fn bring_up(
    connection: &Connection,
    uuid: Uuid,
    source: &StartSource,
    lease: &Lease,
) -> Result<Result<(), ActionError>, Error> {
    let mut pause = PollPause::new();
    let mut refusal: Option<String> = None;
    loop {
        let seen = look(connection, uuid)?;
        match (seen, source) {
            (DomainReading::On { .. }, _) => return Ok(Ok(())),
            (DomainReading::MovedAway, _) | (DomainReading::Gone, StartSource::Definition) => {
                return Ok(Err(ActionError::Gone));
            }
            _ => {}
        }
        if let Some(reason) = refusal {
            // One try: what a start fails for (a missing disk, no memory) does not pass within a client's
            // patience.
            return Ok(Err(ActionError::Refused(reason)));
        }
        if let Err(lapsed) = lease.check() {
            return Ok(Err(lapsed));
        }
        let started = match source {
            StartSource::Definition => match connection.domain_by_uuid(uuid)? {
                Some(domain) => domain.create(),
                None => return Ok(Err(ActionError::Gone)),
            },
            StartSource::Xml(xml) => connection.create_xml(xml).map(drop),
        };
        match started {
            Ok(()) => {}
            Err(e) if e.kind == ErrorKind::Connection => return Err(e),
            // "Running already" is one of these: the look tells.
            Err(e) => refusal = Some(e.to_string()),
        }
        if look(connection, uuid)?.power() == Ok(PowerState::On) {
            return Ok(Ok(()));
        }
        pause.wait(lease.until());
    }
}

/// Prompt looks: the first after 1 ms, then slower, up to ten a second.
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

fn uuid_of(domain: &DomainRef) -> Result<Uuid, ActionError> {
    domain.uuid.parse().map_err(|_| ActionError::Gone)
}

impl From<CallError> for ActionError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(_) => Self::Refused(error.to_string()),
            CallError::Lost(_) | CallError::Down { .. } | CallError::Slow { .. } | CallError::Busy { .. } => {
                Self::Unavailable(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_could_mean() {
        let text = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
        let (uuid, other) = (text.parse().unwrap(), "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11".parse().unwrap());
        let means = |text: &str, only_uuid, uuid, name: &str| {
            TargetQuery::new(&Target::new(text, only_uuid).unwrap()).means(uuid, name)
        };
        assert!(means("web", false, uuid, "web") && !means("web", false, uuid, "web1"));
        assert!(!means("Web", false, uuid, "web"), "libvirt tells them apart");
        for text in [text.to_owned(), text.to_uppercase()] {
            assert!(means(&text, false, uuid, "web") && means(&text, true, uuid, "web"));
            assert!(means(&text, false, other, &text) && !means(&text, true, other, &text));
        }
        // A name that is too long for a request comes cut.
        let long = "x".repeat(NAME_ON_WIRE + 1);
        assert!(means(&long[..NAME_ON_WIRE], false, uuid, &long));
        assert!(!means(&long[..NAME_ON_WIRE - 1], false, uuid, &long));
        assert!(means(&long[..NAME_ON_WIRE], false, uuid, &long[..NAME_ON_WIRE]));
    }
}
