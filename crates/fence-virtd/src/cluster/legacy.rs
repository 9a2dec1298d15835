// SPDX-License-Identifier: GPL-2.0-or-later
//! Legacy hosts: their requests, and this host's asks to them, in the first group. docs/protocol.md describes
//! the C daemon.
//!
//! A reply of a legacy host says which order its libvirt took. So evidence is only a state that it publishes
//! of a domain *after* it was asked. This code must never answer "off" to a legacy host without a status
//! check by this host.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_config::NameMode;
use fence_wire::{Action, CpgDomain, CpgMessage, CpgRequest, Proved, Response, Target, escaped};
use libvirt_host::Uuid;
use tracing::{debug, info, warn};

use super::legacy_table::{LegacyReply, LegacyRequest};
use super::own_domains::{OwnDomain, OwnPower};
use super::state::{ChangeWatch, Cluster, ClusterState, TRANSPORT, published_id};
use crate::backend::libvirt::DomainHere;
use crate::request::job::{Arrival, RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::{LateOffGuard, Lease, LeaseEndReason};
use crate::request::record::AnswerDelivery;
use crate::service::Service;
use crate::service::client_link::{ClientLink, ProofFailure};
use crate::util::backoff::Backoff;
use fence_core::cluster::directory::DirectoryAnswer;
use fence_core::cluster::message::{Member, PublishedDomain, PublishedState};
use fence_core::domain::{ActionError, DomainHome, DomainId, DomainRef, PowerState, TargetKind};
use fence_core::evidence::Sight;
use fence_core::unseen_power_off::{LaterLook, PowerOffEnd, UnseenPowerOff};

/// Pause before a reply is sent once more: a legacy host misses a reply that comes before it waits for one.
const REPLY_REPEAT_DELAY: Duration = Duration::from_millis(400);
/// Time for a host to answer for a domain that no host is known to have.
const OWNER_ANSWER_TIME: Duration = Duration::from_secs(1);
/// Time for a legacy host to publish its domains.
const POLL_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a legacy host that is not known to have any domain: it may have none to publish.
const POLL_TIMEOUT_WITHOUT_DOMAINS: Duration = Duration::from_millis(500);
/// Time within which a legacy host publishes all its domains, from the first one on.
const INVENTORY_GAP: Duration = Duration::from_millis(200);
/// Pauses between two status checks after an off.
const STATUS_PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
/// The same after an off that failed, and may come late.
const LATE_PAUSE: Duration = Duration::from_secs(1);

/// The first group.
impl Cluster {
    pub(super) fn legacy_joined(&self, node: u32) {
        self.state().legacy.joined(node);
    }

    pub(super) fn legacy_lost(&self) {
        let mut state = self.state();
        state.legacy.lost();
        state.refresh_members();
    }

    pub(super) fn legacy_change(&self, members: BTreeSet<Member>, left: &[Member]) {
        let mut state = self.state();
        state.legacy.change(members, left);
        state.refresh_members();
        self.publish_all_to_legacy(&state);
        let orphans = state.legacy.take_orphans(left);
        if state.is_answering_host(left) {
            for it in orphans {
                let target = escaped(&it.request.target);
                warn!(node = it.from.node, %target, "the domain's owner left; answered with failure");
                self.reply_to_legacy(it.from, it.sequence, it.request, Response::Failure);
            }
        }
    }

    /// Publishes all own domains to legacy hosts. They forget a domain whose owner left, even if another host
    /// has it.
    pub(super) fn publish_all_to_legacy(&self, state: &ClusterState) {
        if !state.legacy_members().is_empty() {
            for (uuid, own) in &state.own {
                self.publish_to_legacy(state, *uuid, own);
            }
        }
    }

    pub(super) fn publish_to_legacy(&self, state: &ClusterState, uuid: Uuid, own: &OwnDomain) {
        let Some(owner) = state.legacy.node().filter(|_| !state.legacy_members().is_empty()) else { return };
        // A C daemon would take the definition that stayed behind for the machine.
        if matches!(own.power, OwnPower::Gone | OwnPower::Away) {
            return;
        }
        self.send_to_legacy(&CpgMessage::Domain(CpgDomain {
            name: own.name.clone(),
            uuid: uuid.to_string(),
            owner,
            state: if own.power == OwnPower::On { CpgDomain::RUNNING } else { CpgDomain::SHUT_OFF },
        }));
    }

    pub(super) fn legacy_message(self: &Arc<Self>, from: Member, data: &[u8]) {
        let message = match CpgMessage::decode(data) {
            Ok(message) => message,
            Err(error) => return debug!(%from, "a message in the first group is dropped: {error}"),
        };
        let mut state = self.state();
        let is_legacy = state.legacy_members().contains(&from);
        match message {
            CpgMessage::Reply { to, sequence, response, .. } => {
                state.legacy.replied(from, to, sequence, response);
            }
            CpgMessage::Domain(domain) if is_legacy && domain.owner == from.node => {
                let Ok(uuid) = domain.uuid.parse::<Uuid>() else { return };
                // The directory has canonical text only.
                let uuid = uuid.to_string();
                let is_on = domain.is_on();
                state.legacy.published(from, &uuid, is_on);
                state.update_silences();
                let power = if is_on { PublishedState::On } else { PublishedState::Rests };
                state.directory.domain(from, PublishedDomain::new(uuid, domain.name, power));
            }
            CpgMessage::Request { sequence, request } if is_legacy => {
                self.on_legacy_request(&mut state, from, sequence, request);
            }
            CpgMessage::Domain(_) | CpgMessage::Request { .. } => {}
        }
    }

    fn on_legacy_request(
        self: &Arc<Self>,
        state: &mut ClusterState,
        from: Member,
        sequence: u32,
        request: CpgRequest,
    ) {
        let Some(service) = self.service() else { return };
        let named = state.directory.named(&request.target, false);
        let owners = named
            .iter()
            .flat_map(|(_, uuid)| match state.directory.find(uuid) {
                DirectoryAnswer::On(at) => at,
                DirectoryAnswer::Off { at, .. } => at,
                DirectoryAnswer::Lost(_) | DirectoryAnswer::LostOff(_) | DirectoryAnswer::Unknown => {
                    Vec::new()
                }
            })
            .collect();
        let since = Instant::now();
        state.legacy.requested(LegacyRequest { from, sequence, request: request.clone(), since, owners });
        tokio::spawn(serve(Arc::clone(self), service, from, sequence, request));
    }

    /// Answers requests of legacy hosts whose clients have given up: the C daemon waits for a reply without
    /// limit. Never returns.
    pub(super) async fn fail_late_legacy_requests(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Some(client_timeout) = self.service().map(|it| it.client_timeout()) else { continue };
            let mut state = self.state();
            let late = state.legacy.take_late(client_timeout);
            if state.is_answering_host(&[]) {
                for it in late {
                    let target = escaped(&it.request.target);
                    warn!(node = it.from.node, %target, "no host answered; answered with failure");
                    self.reply_to_legacy(it.from, it.sequence, it.request, Response::Failure);
                }
            }
        }
    }

    fn reply_to_legacy(&self, from: Member, sequence: u32, request: CpgRequest, response: Response) {
        let reply = CpgMessage::Reply { to: from.node, sequence, request, response };
        self.send_to_legacy(&reply);
        let link = self.legacy_link.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REPLY_REPEAT_DELAY).await;
            if let Ok(bytes) = reply.encode() {
                let _ = link.send(bytes.to_vec());
            }
        });
    }

    fn send_to_legacy(&self, message: &CpgMessage) -> bool {
        // Cannot fail to encode: a target that came in a message fits into one.
        message.encode().is_ok_and(|bytes| self.legacy_link.send(bytes.to_vec()).is_ok())
    }
}

/// Asks to legacy hosts.
impl Cluster {
    /// Runs a status check at a legacy host.
    pub(crate) async fn legacy_status(
        &self,
        to: Member,
        domain: &DomainRef,
        until: Instant,
    ) -> Result<PowerState, ActionError> {
        let reply = self.ask_legacy(to, Action::Status, domain, until).await?;
        // The reply may be about another domain of that name: only the published state counts.
        match reply.published.get(&domain.uuid.to_string()) {
            Some(true) => Ok(PowerState::On),
            Some(false) => Ok(PowerState::Off),
            None => Err(ActionError::Gone),
        }
    }

    /// Powers a domain off at a legacy host. Returns true if it was off before.
    pub(crate) async fn legacy_off(
        self: &Arc<Self>,
        to: Member,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<bool, ActionError> {
        if self.legacy_status(to, domain, lease.until()).await? == PowerState::Off {
            return Ok(true);
        }
        lease.check()?;
        let ordered = self.order_legacy_off(to, domain, lease).await;
        if ordered.is_err() {
            let (this, domain, late_off) = (Arc::clone(self), domain.clone(), lease.late_off());
            tokio::spawn(async move { this.hold_legacy_off(to, &domain, late_off).await });
        }
        ordered.map(|()| false)
    }

    /// Orders a legacy host to power a domain off, and waits until the host shows that.
    async fn order_legacy_off(
        &self,
        to: Member,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        let name = self.name(to);
        let reply = self.ask_legacy(to, Action::Off, domain, lease.until()).await?;
        if reply.response != Response::Success {
            return Err(ActionError::Refused(format!("{name}: the daemon there says {}", reply.response)));
        }
        // The success of a legacy host says that libvirt took the order: status checks must show the effect.
        let mut pauses = STATUS_PAUSES;
        loop {
            match self.legacy_status(to, domain, lease.until()).await {
                Ok(PowerState::Off) => return Ok(()),
                // A transient domain leaves no definition. It was there when it was told to go off.
                Err(ActionError::Gone) => return Ok(()),
                Ok(PowerState::On) if Instant::now() >= lease.until() => {
                    return Err(ActionError::NoEffect { state: format!("on at {name}"), reason: None });
                }
                Ok(PowerState::On) => tokio::time::sleep(pauses.next_pause()).await,
                Err(error) => return Err(ActionError::Unknown(error.to_string())),
            }
        }
    }

    /// Holds up what conflicts with an order to a legacy host whose end was not seen.
    async fn hold_legacy_off(&self, to: Member, domain: &DomainRef, late_off: LateOffGuard) {
        let mut order = UnseenPowerOff::new(None);
        loop {
            let began = Instant::now();
            let look = match self.legacy_status(to, domain, began + POLL_TIMEOUT).await {
                Ok(PowerState::On) => LaterLook::On(None),
                Ok(PowerState::Off) => LaterLook::Off,
                Err(ActionError::Gone) => LaterLook::Elsewhere,
                // Such a host may miss an ask, and never answer again.
                Err(_) => LaterLook::Untold,
            };
            match order.look((began, Instant::now()), look) {
                PowerOffEnd::Open => tokio::time::sleep(LATE_PAUSE).await,
                PowerOffEnd::Over => return,
                PowerOffEnd::SeenOff => return late_off.seen_off(began),
            }
        }
    }

    /// Starts a domain at a legacy host.
    pub(crate) async fn legacy_on(
        &self,
        to: Member,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        let name = self.name(to);
        if self.legacy_status(to, domain, lease.until()).await? == PowerState::On {
            return Ok(());
        }
        lease.check()?;
        let reply = self.ask_legacy(to, Action::On, domain, lease.until()).await?;
        if reply.response != Response::Success {
            return Err(ActionError::Refused(format!("{name}: the daemon there says {}", reply.response)));
        }
        match self.legacy_status(to, domain, lease.until()).await? {
            PowerState::On => Ok(()),
            PowerState::Off => Err(ActionError::NoEffect { state: format!("off at {name}"), reason: None }),
        }
    }

    /// Has all legacy hosts publish their domains, because they do not publish every change. Returns the
    /// silent ones.
    pub(crate) async fn poll_legacy_hosts(self: &Arc<Self>, until: Instant) -> Vec<Member> {
        // What was published before the first ask goes out is no answer to it; all that comes later may be.
        let asked: Vec<_> = {
            let state = self.state();
            let legacy = state.legacy_members().into_iter();
            let hosts = legacy.map(|it| {
                let domain = state.directory.one_of(it).cloned();
                (LegacyPoll { member: it, before: state.legacy.publications(it.node) }, domain)
            });
            hosts.collect()
        };
        let asks_any = asked.iter().any(|(_, domain)| domain.is_some());
        let polls = asked.into_iter().enumerate().map(|(place, (poll, domain))| {
            let this = Arc::clone(self);
            // Any request makes all of them publish: one is enough for hosts without a domain to ask for.
            let asks = domain.is_some() || !asks_any && place == 0;
            let member = poll.member;
            tokio::spawn(async move {
                this.poll_legacy_host(poll, domain, asks, until).await.err().map(|_| member)
            })
        });
        let polls: Vec<_> = polls.collect();
        let mut silent = Vec::new();
        for poll in polls {
            silent.extend(poll.await.ok().flatten());
        }
        silent
    }

    /// Asks a legacy host for one of its own domains. The host publishes all its domains before it replies.
    async fn poll_legacy_host(
        &self,
        poll: LegacyPoll,
        domain: Option<PublishedDomain>,
        asks: bool,
        until: Instant,
    ) -> Result<(), ActionError> {
        let known = domain.and_then(|it| {
            let uuid = published_id(&it.uuid)?;
            Some(DomainRef { name: it.name, uuid, home: DomainHome::Elsewhere, by: TargetKind::Name })
        });
        let Some(known) = known else {
            return self.await_publication(poll, asks, until).await;
        };
        let limit = until.min(Instant::now() + POLL_TIMEOUT);
        let reply = self.ask_legacy(poll.member, Action::Status, &known, limit).await?;
        let all: BTreeSet<String> = reply.published.keys().cloned().collect();
        self.state().directory.only(poll.member, &all);
        self.notify_waiters();
        Ok(())
    }

    /// Waits until a legacy host publishes anything, where it has no domain that no other host has. A host
    /// that hangs is as silent as one that has no domain.
    async fn await_publication(
        &self,
        LegacyPoll { member, before }: LegacyPoll,
        asks: bool,
        until: Instant,
    ) -> Result<(), ActionError> {
        let publications = || self.state().legacy.publications(member.node);
        let has_any = self.state().directory.has_any(member.node);
        let limit = if has_any { POLL_TIMEOUT } else { POLL_TIMEOUT_WITHOUT_DOMAINS };
        let until = until.min(Instant::now() + limit);
        let mut changed = self.changed();
        let published = async {
            while publications() == before && changed.until(until).await {
                changed = self.changed();
            }
        };
        if asks {
            let unknown = DomainRef {
                name: "?".to_owned(),
                uuid: DomainId::from_bytes([0; 16]),
                home: DomainHome::Elsewhere,
                by: TargetKind::Name,
            };
            tokio::select! {
                biased;
                // The ask is for the publications; its reply does not matter.
                _ = async {
                    let _ = self.ask_legacy(member, Action::Status, &unknown, until).await;
                    std::future::pending::<()>().await;
                } => {}
                () = published => {}
            }
        } else {
            published.await;
        }
        if publications() == before {
            return Err(ActionError::Unavailable("the C daemon there says nothing".to_owned()));
        }
        // The rest of its domains follows at once.
        tokio::time::sleep(INVENTORY_GAP).await;
        Ok(())
    }

    async fn ask_legacy(
        &self,
        to: Member,
        action: Action,
        domain: &DomainRef,
        until: Instant,
    ) -> Result<LegacyReply, ActionError> {
        let name = self.name(to);
        let target = match self.name_mode {
            NameMode::Name => domain.name.clone(),
            NameMode::Uuid => domain.uuid.to_string(),
        };
        let (sequence, reply) = {
            let mut state = self.state();
            if !state.legacy_members().contains(&to) {
                return Err(ActionError::Unavailable(format!("{name} left before it was asked")));
            }
            let (sequence, reply) = state.legacy.begin_ask(to);
            let request = CpgRequest { action: Some(action), target, client_sequence: sequence };
            if !self.send_to_legacy(&CpgMessage::Request { sequence, request }) {
                state.legacy.forget_ask(sequence);
                return Err(ActionError::Unavailable(format!("{name} can't be asked")));
            }
            (sequence, reply)
        };
        let _forget = LegacyAskGuard { cluster: self, sequence };
        match tokio::time::timeout_at(until.into(), reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(ActionError::Unknown(format!("{name} was asked, and then left"))),
            Err(_) => Err(ActionError::Unknown(format!("{name} did not answer in time"))),
        }
    }
}

/// Legacy host that is polled.
struct LegacyPoll {
    member: Member,
    /// Number of domains that it had published when the poll began.
    before: u64,
}

/// Guard that forgets an ask to a legacy host when no task waits for it any more.
struct LegacyAskGuard<'a> {
    cluster: &'a Cluster,
    sequence: u32,
}

impl Drop for LegacyAskGuard<'_> {
    fn drop(&mut self) {
        self.cluster.state().legacy.forget_ask(self.sequence);
    }
}

/// Carries out a request of a legacy host, if this host is responsible for it.
async fn serve(
    cluster: Arc<Cluster>,
    service: Arc<Service>,
    from: Member,
    sequence: u32,
    request: CpgRequest,
) {
    let _under_way = service.begin_request();
    let until = Instant::now() + service.client_timeout();
    let target = Target::new(&request.target, false).ok();
    let is_mine = match &target {
        Some(target) => is_mine(&cluster, target, until).await,
        None => Responsibility::Nobody,
    };
    let response = match (is_mine, target) {
        (Responsibility::Mine, Some(target)) => {
            process(&cluster, &service, from, sequence, &request, target).await
        }
        (Responsibility::Other, _) => return,
        (Responsibility::Mine | Responsibility::Nobody, _) => {
            // A legacy host may have the domain: it publishes the domain before it replies.
            let changed = cluster.changed();
            wait_for_owner(&cluster, changed, from, sequence, &request.target).await;
            let state = cluster.state();
            let known = state.directory.named(&request.target, false);
            let has_owner = known.iter().any(|(_, uuid)| {
                let legacy = state.legacy_members();
                legacy.iter().any(|it| state.directory.has(*it, uuid))
            });
            if has_owner || !state.legacy.is_waiting(from, sequence) || !state.is_answering_host(&[]) {
                return;
            }
            let target = escaped(&request.target);
            info!(node = from.node, %target, "no host has the domain; answered with failure");
            Response::Failure
        }
    };
    let mut state = cluster.state();
    state.legacy.answered(from.node, sequence);
    cluster.reply_to_legacy(from, sequence, request, response);
}

async fn wait_for_owner(
    cluster: &Cluster,
    mut changed: ChangeWatch,
    from: Member,
    sequence: u32,
    target: &str,
) {
    let until = Instant::now() + OWNER_ANSWER_TIME;
    loop {
        {
            let state = cluster.state();
            let is_known = !state.directory.named(target, false).is_empty();
            if !state.legacy.is_waiting(from, sequence) || state.legacy_members().is_empty() && is_known {
                return;
            }
        }
        if !changed.until(until).await {
            return;
        }
        changed = cluster.changed();
    }
}

/// Host that must answer a request of a legacy host.
enum Responsibility {
    Mine,
    /// Another host, legacy or not.
    Other,
    Nobody,
}

async fn is_mine(cluster: &Arc<Cluster>, target: &Target, until: Instant) -> Responsibility {
    let located = cluster.local().find_here(target, until).await;
    let place = |uuid: &str| {
        let state = cluster.state();
        let legacy = state.legacy_members();
        let is_at_legacy = legacy.iter().any(|it| state.directory.has(*it, uuid));
        (state.directory.find(uuid), is_at_legacy, state.me)
    };
    match located {
        Ok(DomainHere { sight: Sight::On | Sight::Moving, .. }) => Responsibility::Mine,
        Ok(DomainHere { domain: own, .. }) => {
            match place(&own.uuid.to_string()) {
                (DirectoryAnswer::On(at), _, me) if at.iter().any(|it| Some(*it) != me) => {
                    Responsibility::Other
                }
                // The legacy host replies itself.
                (_, true, _) => Responsibility::Other,
                // Of our hosts that have the domain off, the one with the lowest id answers.
                (DirectoryAnswer::Off { at, .. }, false, Some(me))
                    if at.contains(&me) && at.iter().min() != Some(&me) =>
                {
                    Responsibility::Other
                }
                _ => Responsibility::Mine,
            }
        }
        Err(_) => {
            let named = cluster.state().directory.named(target.as_str(), target.is_only_uuid());
            let has_owner = named.iter().any(|(_, uuid)| match place(uuid) {
                (DirectoryAnswer::On(at) | DirectoryAnswer::Off { at, .. }, _, me) => {
                    at.iter().any(|it| Some(*it) != me)
                }
                _ => false,
            });
            if has_owner { Responsibility::Other } else { Responsibility::Nobody }
        }
    }
}

/// Takes a request through the service, and writes its audit record. Returns the response for the legacy
/// host.
async fn process(
    cluster: &Cluster,
    service: &Arc<Service>,
    from: Member,
    sequence: u32,
    request: &CpgRequest,
    target: Target,
) -> Response {
    let peer = format!("{} request {sequence}", cluster.name(from));
    let action = request.action.unwrap_or(Action::Null);
    let job = service.accept(Arrival::from_host(TRANSPORT, peer, action, target));
    let mut link = LegacyLink { response: Response::Failure };
    service.run_request(&job, None, &mut link).await;
    link.response
}

/// A legacy host that waits for the response to a request. It can't take the request back.
struct LegacyLink {
    response: Response,
}

impl ClientLink for LegacyLink {
    const HAS_HANDSHAKE: bool = false;
    const HEARS_ALL_REJECTIONS: bool = true;
    type Opened = ();
    type Proven = ();

    async fn open(
        &mut self,
        _: &RequestJob,
        _: &Lease,
        resolving: impl Future<Output = ResolvedTarget> + Send,
    ) -> (Result<(), ProofFailure>, ResolvedTarget) {
        (Ok(()), resolving.await)
    }

    async fn abandoned(&mut self) -> LeaseEndReason {
        std::future::pending().await
    }

    async fn prove(&mut self, _: &RequestJob, (): ()) -> Result<(Proved, ()), ProofFailure> {
        Ok((Proved::unauthenticated(), ()))
    }

    async fn deliver(&mut self, _: &RequestJob, (): (), outcome: &RequestOutcome, _: bool) -> AnswerDelivery {
        self.response = outcome.answer().response();
        AnswerDelivery::Taken
    }
}
