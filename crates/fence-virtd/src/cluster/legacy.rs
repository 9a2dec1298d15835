// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts of the C daemon: what passes in the first group. What they do is in docs/protocol.md.
//!
//! [`Old`] is the table of it, pure but for the channels that it tells; the rest carries out what they ask and asks them.
//! Their word is weak: a reply says what their libvirt was told, so what counts is what they publish of a domain *after*
//! they were asked. It must never say "off" to them of a domain that this host has not looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_config::NameMode;
use fence_wire::{Action, CpgDomain, CpgMessage, CpgRequest, HashType, Response, Target, escaped};
use libvirt_host::Uuid;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::own_domains::{OwnDomain, OwnPower};
use super::{ChangeWatch, Cluster, ClusterState};
use crate::backend::Backend;
use crate::request::job::{RequestJob, RequestOutcome};
use crate::request::lease::Lease;
use crate::request::record::{AuditRecord, RequestEnd, StageTimes};
use crate::request::trail::AgentRunTrail;
use crate::service::{ProcessedRequest, Service};
use fence_core::access::{AccessRules, Identity};
use fence_core::cluster::directory::DirectoryAnswer;
use fence_core::cluster::message::{Member, PublishedDomain, PublishedState as DomainState};
use fence_core::domain::{ActionError, DomainRef, LocatedDomain, PowerState};

/// A reply that came before they waited for it is missed: it is sent once more after this long.
const REPLY_REPEAT_DELAY: Duration = Duration::from_millis(400);
/// How long the one that has a domain which nobody is known to have may take to say so.
const OWNER_ANSWER_TIME: Duration = Duration::from_secs(1);
/// How long they may take to say what they have.
const POLL_TIMEOUT: Duration = Duration::from_secs(3);
/// The same of one that is not known to have any domain: it may have none to say.
const LOOK_FOR_ANY: Duration = Duration::from_millis(500);
/// All that one has comes within this time of the first of it.
const INVENTORY_GAP: Duration = Duration::from_millis(200);
/// Requests of theirs that are remembered.
const MAX_REQUESTS: usize = 4096;
/// Between two looks whether it is off now.
const PAUSE: Duration = Duration::from_millis(100);

/// What passes in the first group.
#[derive(Debug)]
pub(super) struct LegacyHosts {
    /// This daemon's node, while it is in the group.
    node: Option<u32>,
    /// All members, new hosts too.
    members: BTreeSet<Member>,
    sequence: u32,
    asks: HashMap<u32, LegacyAsk>,
    requests: Vec<LegacyRequest>,
    /// How often each node said something of a domain.
    said: BTreeMap<u32, u64>,
}

/// What one of them was asked.
#[derive(Debug)]
struct LegacyAsk {
    to: Member,
    tell: oneshot::Sender<LegacyReply>,
    /// What it has published since, by UUID: on or off.
    published: BTreeMap<String, bool>,
}

/// How it answered.
#[derive(Debug)]
struct LegacyReply {
    response: Response,
    published: BTreeMap<String, bool>,
}

/// What one of them asked.
#[derive(Debug)]
struct LegacyRequest {
    from: Member,
    sequence: u32,
    request: CpgRequest,
    since: Instant,
    /// Who was known to have the domain then.
    owners: Vec<Member>,
}

impl LegacyHosts {
    pub(super) fn new() -> Self {
        Self {
            node: None,
            members: BTreeSet::new(),
            sequence: 0,
            asks: HashMap::new(),
            requests: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    pub(super) fn members(&self) -> &BTreeSet<Member> {
        &self.members
    }

    fn forget_asks(&mut self, of: Option<Member>) {
        self.asks.retain(|_, it| of.is_some_and(|gone| it.to != gone));
    }

    fn is_waiting(&self, from: Member, sequence: u32) -> bool {
        self.requests.iter().any(|it| it.from == from && it.sequence == sequence)
    }

    fn answered(&mut self, node: u32, sequence: u32) {
        self.requests.retain(|it| it.from.node != node || it.sequence != sequence);
    }
}

impl ClusterState {
    /// Members of the first group that are not in the second.
    pub(super) fn old_members(&self) -> BTreeSet<Member> {
        self.old.members.difference(&self.members).copied().collect()
    }

    /// Whether this host is the one of the hosts of this daemon that answers what nobody else does. The second group may
    /// not have said yet that these left.
    fn is_answering_host(&self, left: &[Member]) -> bool {
        let is_lower = |me: Member, it: &Member| it.node <= me.node || left.contains(it);
        self.me.is_some_and(|me| self.members.iter().all(|it| is_lower(me, it)))
    }
}

/// The first group.
impl Cluster {
    pub(super) fn old_joined(&self, node: u32) {
        self.state().old.node = Some(node);
    }

    pub(super) fn old_lost(&self) {
        let mut state = self.state();
        state.old.node = None;
        state.old.members.clear();
        state.old.requests.clear();
        state.old.forget_asks(None);
        state.refresh_members();
    }

    pub(super) fn old_change(&self, members: BTreeSet<Member>, left: &[Member]) {
        let mut state = self.state();
        state.old.members = members;
        let old = &mut state.old;
        old.said.retain(|it, _| old.members.iter().any(|member| member.node == *it));
        for gone in left {
            state.old.forget_asks(Some(*gone));
            state.old.requests.retain(|it| it.from != *gone);
        }
        state.refresh_members();
        self.publish_all_to_old(&state);
        // Whose owner left would wait for ever.
        let orphans: Vec<_> = state
            .old
            .requests
            .extract_if(.., |it| {
                !it.owners.is_empty()
                    && it.owners.iter().all(|owner| left.iter().any(|gone| gone.node == owner.node))
            })
            .collect();
        if state.is_answering_host(left) {
            for it in orphans {
                warn!(node = it.from.node, target = %escaped(&it.request.target), "its owner left: failure");
                self.reply_to_old(it.from, it.sequence, it.request, Response::Failure);
            }
        }
    }

    /// Old hosts forget a domain whose owner left, also where another host has it.
    pub(super) fn publish_all_to_old(&self, state: &ClusterState) {
        if !state.old_members().is_empty() {
            for (uuid, own) in &state.own {
                self.publish_to_old(state, *uuid, own);
            }
        }
    }

    pub(super) fn publish_to_old(&self, state: &ClusterState, uuid: Uuid, own: &OwnDomain) {
        let Some(owner) = state.old.node.filter(|_| !state.old_members().is_empty()) else { return };
        if own.power == OwnPower::Gone {
            return;
        }
        self.send_to_old(&CpgMessage::Domain(CpgDomain {
            name: own.name.clone(),
            uuid: uuid.to_string(),
            owner,
            state: if own.power == OwnPower::On { CpgDomain::RUNNING } else { CpgDomain::SHUT_OFF },
        }));
    }

    pub(super) fn old_message(self: &Arc<Self>, from: Member, data: &[u8]) {
        let message = match CpgMessage::decode(data) {
            Ok(message) => message,
            Err(error) => return debug!(%from, "a message in the first group is dropped: {error}"),
        };
        let mut state = self.state();
        let is_old = state.old.members.contains(&from) && !state.members.contains(&from);
        match message {
            CpgMessage::Reply { to, sequence, response, .. } => {
                state.old.answered(to, sequence);
                let is_mine = Some(to) == state.old.node
                    && state.old.asks.get(&sequence).is_some_and(|it| it.to == from);
                if is_mine && let Some(it) = state.old.asks.remove(&sequence) {
                    let _ = it.tell.send(LegacyReply { response, published: it.published });
                }
            }
            CpgMessage::Domain(domain) if is_old && domain.owner == from.node => {
                let uuid = domain.uuid.to_ascii_lowercase();
                if uuid.parse::<Uuid>().is_err() {
                    return;
                }
                let is_on = domain.is_on();
                *state.old.said.entry(from.node).or_default() += 1;
                for it in state.old.asks.values_mut().filter(|it| it.to == from) {
                    it.published.insert(uuid.clone(), is_on);
                }
                let is = if is_on { DomainState::On } else { DomainState::Rests };
                state.directory.domain(from, PublishedDomain { uuid, name: domain.name, state: is });
            }
            CpgMessage::Request { sequence, request } if is_old => {
                self.old_request(&mut state, from, sequence, request);
            }
            CpgMessage::Domain(_) | CpgMessage::Request { .. } => {}
        }
    }

    fn old_request(
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
                DirectoryAnswer::Lost(_) | DirectoryAnswer::Unknown => Vec::new(),
            })
            .collect();
        if state.old.requests.len() >= MAX_REQUESTS {
            state.old.requests.remove(0);
        }
        let asked = LegacyRequest { from, sequence, request: request.clone(), since: Instant::now(), owners };
        state.old.requests.push(asked);
        tokio::spawn(serve(Arc::clone(self), service, from, sequence, request));
    }

    /// Ends requests of theirs whose clients have given up. Runs for ever.
    pub(super) async fn free_old_hosts(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Some(client_timeout) = self.service().map(|it| it.client_timeout()) else { continue };
            let mut state = self.state();
            let late: Vec<_> =
                state.old.requests.extract_if(.., |it| it.since.elapsed() >= client_timeout).collect();
            if state.is_answering_host(&[]) {
                for it in late {
                    warn!(node = it.from.node, target = %escaped(&it.request.target), "nobody answered: failure");
                    self.reply_to_old(it.from, it.sequence, it.request, Response::Failure);
                }
            }
        }
    }

    fn reply_to_old(&self, from: Member, sequence: u32, request: CpgRequest, response: Response) {
        let reply = CpgMessage::Reply { to: from.node, sequence, request, response };
        self.send_to_old(&reply);
        let link = self.legacy_link.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REPLY_REPEAT_DELAY).await;
            if let Ok(bytes) = reply.encode() {
                let _ = link.send(bytes.to_vec());
            }
        });
    }

    fn send_to_old(&self, message: &CpgMessage) -> bool {
        // A target that came in a message fits into one.
        message.encode().is_ok_and(|bytes| self.legacy_link.send(bytes.to_vec()).is_ok())
    }
}

/// What this host asks of them.
impl Cluster {
    /// Whether this member runs the C daemon.
    pub(crate) fn is_old(&self, member: Member) -> bool {
        self.state().old_members().contains(&member)
    }

    /// Looks at a domain at an old host.
    pub(crate) async fn old_status(
        &self,
        to: Member,
        domain: &DomainRef,
        until: Instant,
    ) -> Result<PowerState, ActionError> {
        let said = self.ask_old(to, Action::Status, domain, until).await?;
        // The reply may be about another domain of that name: what it published tells.
        match said.published.get(&domain.uuid) {
            Some(true) => Ok(PowerState::On),
            Some(false) => Ok(PowerState::Off),
            None => Err(ActionError::Gone),
        }
    }

    /// Takes a domain down at an old host; whether it was off before.
    pub(crate) async fn old_off(
        &self,
        to: Member,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<bool, ActionError> {
        let name = self.name(to);
        if self.old_status(to, domain, lease.until()).await? == PowerState::Off {
            return Ok(true);
        }
        lease.check()?;
        let said = self.ask_old(to, Action::Off, domain, lease.until()).await?;
        if said.response != Response::Success {
            return Err(ActionError::Refused(format!("{name}: its daemon says {}", said.response)));
        }
        // Their "done" says that libvirt took the order.
        loop {
            match self.old_status(to, domain, lease.until()).await {
                Ok(PowerState::Off) => return Ok(false),
                // A transient domain leaves nothing, whether it went off or away: it was there when it was told to go off.
                Err(ActionError::Gone) => return Ok(false),
                Ok(PowerState::On) if Instant::now() >= lease.until() => {
                    return Err(ActionError::NoEffect { state: format!("on at {name}"), reason: None });
                }
                Ok(PowerState::On) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(ActionError::Unknown(error.to_string())),
            }
        }
    }

    /// Starts a domain at an old host.
    pub(crate) async fn legacy_on(
        &self,
        to: Member,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<(), ActionError> {
        let name = self.name(to);
        if self.old_status(to, domain, lease.until()).await? == PowerState::On {
            return Ok(());
        }
        lease.check()?;
        let said = self.ask_old(to, Action::On, domain, lease.until()).await?;
        if said.response != Response::Success {
            return Err(ActionError::Refused(format!("{name}: its daemon says {}", said.response)));
        }
        match self.old_status(to, domain, lease.until()).await? {
            PowerState::On => Ok(()),
            PowerState::Off => Err(ActionError::NoEffect { state: format!("off at {name}"), reason: None }),
        }
    }

    /// Has all old hosts say what they have, because their domains change in silence. Gives those that did not.
    pub(crate) async fn poll_legacy_hosts(self: &Arc<Self>, until: Instant) -> Vec<Member> {
        let asked: Vec<_> = {
            let state = self.state();
            let old = state.old_members();
            old.into_iter().map(|it| (it, state.directory.one_of(it).cloned())).collect()
        };
        let asks_any = asked.iter().any(|(_, domain)| domain.is_some());
        let looks = asked.into_iter().enumerate().map(|(place, (member, domain))| {
            let this = Arc::clone(self);
            // Any request makes all of them say what they have: one is enough for those that have nothing to be asked for.
            let asks = domain.is_some() || !asks_any && place == 0;
            tokio::spawn(
                async move { this.look_at_old(member, domain, asks, until).await.err().map(|_| member) },
            )
        });
        let looks: Vec<_> = looks.collect();
        let mut silent = Vec::new();
        for look in looks {
            silent.extend(look.await.ok().flatten());
        }
        silent
    }

    /// It publishes all its domains before it replies for one of its own, so from then on they are all known.
    async fn look_at_old(
        &self,
        member: Member,
        domain: Option<PublishedDomain>,
        asks: bool,
        until: Instant,
    ) -> Result<(), ActionError> {
        let Some(domain) = domain else {
            return self.look_whether_it_says_anything(member, asks, until).await;
        };
        let known = DomainRef {
            name: domain.name,
            uuid: domain.uuid,
            home: fence_core::domain::DomainHome::Elsewhere,
        };
        let said =
            self.ask_old(member, Action::Status, &known, until.min(Instant::now() + POLL_TIMEOUT)).await?;
        let all: BTreeSet<String> = said.published.keys().cloned().collect();
        self.state().directory.only(member, &all);
        self.notify_waiters();
        Ok(())
    }

    /// It has no domain that only it has, as far as it said: what it says to any request is taken as it comes. One that
    /// hangs says as little as one that has none.
    async fn look_whether_it_says_anything(
        &self,
        member: Member,
        asks: bool,
        until: Instant,
    ) -> Result<(), ActionError> {
        let said = || {
            let state = self.state();
            (
                state.old.said.get(&member.node).copied().unwrap_or_default(),
                state.directory.has_any(member.node),
            )
        };
        let (before, has_any) = said();
        let until = until.min(Instant::now() + if has_any { POLL_TIMEOUT } else { LOOK_FOR_ANY });
        let mut changed = self.changed();
        let says = async {
            while said().0 == before && changed.until(until).await {
                changed = self.changed();
            }
        };
        if asks {
            let nobody = DomainRef {
                name: "?".to_owned(),
                uuid: "00000000-0000-0000-0000-000000000000".to_owned(),
                home: fence_core::domain::DomainHome::Elsewhere,
            };
            tokio::select! {
                biased;
                // Asked at once; an answer is not the point.
                _ = async {
                    let _ = self.ask_old(member, Action::Status, &nobody, until).await;
                    std::future::pending::<()>().await;
                } => {}
                () = says => {}
            }
        } else {
            says.await;
        }
        if said().0 == before {
            return Err(ActionError::Unavailable("it says nothing".to_owned()));
        }
        // The rest comes with it.
        tokio::time::sleep(INVENTORY_GAP).await;
        Ok(())
    }

    async fn ask_old(
        &self,
        to: Member,
        action: Action,
        domain: &DomainRef,
        until: Instant,
    ) -> Result<LegacyReply, ActionError> {
        let name = self.name(to);
        let target = match self.name_mode {
            NameMode::Name => &domain.name,
            NameMode::Uuid => &domain.uuid,
        };
        let (tell, told) = oneshot::channel();
        let sequence = {
            let mut state = self.state();
            if !state.old_members().contains(&to) {
                return Err(ActionError::Unavailable(format!("{name} left before it was asked")));
            }
            state.old.sequence = state.old.sequence.wrapping_add(1).max(1);
            let sequence = state.old.sequence;
            state.old.asks.insert(sequence, LegacyAsk { to, tell, published: BTreeMap::new() });
            let request =
                CpgRequest { action: Some(action), target: target.clone(), client_sequence: sequence };
            if !self.send_to_old(&CpgMessage::Request { sequence, request }) {
                state.old.asks.remove(&sequence);
                return Err(ActionError::Unavailable(format!("{name} can't be asked")));
            }
            sequence
        };
        let _forget = LegacyAskGuard { cluster: self, sequence };
        let said = tokio::time::timeout_at(until.into(), told).await;
        match said {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(_)) => Err(ActionError::Unknown(format!("{name} was asked, and then it left"))),
            Err(_) => Err(ActionError::Unknown(format!("{name} did not answer in time"))),
        }
    }
}

/// Nobody waits any more for what an old host was asked.
struct LegacyAskGuard<'a> {
    cluster: &'a Cluster,
    sequence: u32,
}

impl Drop for LegacyAskGuard<'_> {
    fn drop(&mut self) {
        self.cluster.state().old.asks.remove(&self.sequence);
    }
}

/// Carries out what an old host asks, if it is this host's to do.
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
            work(&cluster, &service, from, sequence, &request, target).await
        }
        (Responsibility::Other, _) => return,
        (Responsibility::Mine | Responsibility::Nobody, _) => {
            // One of them may have it, and says so before it replies.
            let changed = cluster.changed();
            wait_for_owner(&cluster, changed, from, sequence, &request.target).await;
            let state = cluster.state();
            let known = state.directory.named(&request.target, false);
            let has_owner = known.iter().any(|(_, uuid)| {
                let old = state.old_members();
                old.iter().any(|it| state.directory.has(*it, uuid))
            });
            if has_owner || !state.old.is_waiting(from, sequence) || !state.is_answering_host(&[]) {
                return;
            }
            info!(node = from.node, target = %escaped(&request.target), "nobody has it: failure");
            Response::Failure
        }
    };
    let mut state = cluster.state();
    state.old.answered(from.node, sequence);
    cluster.reply_to_old(from, sequence, request, response);
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
            if !state.old.is_waiting(from, sequence) || state.old_members().is_empty() && is_known {
                return;
            }
        }
        if !changed.until(until).await {
            return;
        }
        changed = cluster.changed();
    }
}

/// Who is to do what an old host asks.
enum Responsibility {
    Mine,
    /// Another host, old or new.
    Other,
    Nobody,
}

async fn is_mine(cluster: &Arc<Cluster>, target: &Target, until: Instant) -> Responsibility {
    let located = cluster.local().locate(target, until).await;
    let place = |uuid: &str| {
        let state = cluster.state();
        let old = state.old_members();
        let is_at_old = old.iter().any(|it| state.directory.has(*it, uuid));
        (state.directory.find(uuid), is_at_old, state.me)
    };
    match located {
        Ok(
            LocatedDomain::Here(own)
            | LocatedDomain::PoweredOffTransient(own)
            | LocatedDomain::DefinedOff(own),
        ) => {
            if cluster.local().look(&own, until).await == Ok(PowerState::On) {
                return Responsibility::Mine;
            }
            match place(&own.uuid) {
                (DirectoryAnswer::On(at), _, me) if at.iter().any(|it| Some(*it) != me) => {
                    Responsibility::Other
                }
                // It replies itself.
                (_, true, _) => Responsibility::Other,
                // One of those that have it.
                (DirectoryAnswer::Off { at, .. }, false, Some(me))
                    if at.contains(&me) && at.iter().min() != Some(&me) =>
                {
                    Responsibility::Other
                }
                _ => Responsibility::Mine,
            }
        }
        Ok(LocatedDomain::Elsewhere(_) | LocatedDomain::OnLostHost(_)) | Err(_) => {
            let named = cluster.state().directory.named(target.as_str(), target.is_uuid());
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

/// The whole way of a request, and its record.
async fn work(
    cluster: &Cluster,
    service: &Service,
    from: Member,
    sequence: u32,
    request: &CpgRequest,
    target: Target,
) -> Response {
    let job = RequestJob {
        id: service.next_id(),
        arrived: Instant::now(),
        patience: service.client_timeout(),
        transport: super::owner::NAME,
        peer: format!("{} request {sequence}", cluster.name(from)),
        identity: Identity::default(),
        hash: HashType::None,
        key: None,
        // Asked by the host that knows the source.
        access: Arc::new(AccessRules::new(None)),
        action: request.action.unwrap_or(Action::Null),
        target,
        trail: AgentRunTrail::default(),
    };
    let (lease, settled) = Service::lease(&job);
    let ProcessedRequest { domain, outcome, running, mut stages } =
        service.process_trusted(&job, &lease).await;
    stages.done = Some(StageTimes::since(job.arrived));
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => RequestOutcome::because(Response::Failure, why),
    };
    if let Some(running) = running {
        Service::complete(running, &outcome, lease, settled);
    }
    let response = outcome.answer.response();
    let end = RequestEnd::Answered { response, reason: outcome.reason.as_deref(), delivered: true };
    service.audit(&AuditRecord { job: &job, domain: domain.as_ref(), end, stages });
    response
}
