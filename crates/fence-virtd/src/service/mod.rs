// SPDX-License-Identifier: GPL-2.0-or-later
//! The path of a request from its arrival to its audit record: resolve, grant, proof, action, answer, record.
//!
//! A transport makes a request with [`Service::accept`] and leads it to its end with
//! [`Service::run_request`], to which it is a [`ClientLink`]. Transports know nothing of domains, and nothing
//! here knows sockets. Every request that got here ends in exactly one audit record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fence_core::arbiter::{ArbiterRequest, ArbitratedAction, Grant, PeerId, Rejection, RequestSource};
use fence_core::domain::{DomainHome, DomainRef, PowerAction, TargetKind};
use fence_core::intent::{DEVICE_HOME, HYPERVISOR_HOME};
use fence_wire::{Action, Challenge, ClientRun, FORECAST_UNCERTAIN, Key, KeyTag, Proved, Response};
use tokio::sync::Notify;
use tracing::{debug, warn};

use self::arriving::ArrivingRequests;
use self::challenges::{Challenges, OutstandingChallenge};
use self::client_link::{ClientLink, ProofFailure, watched};
use self::cluster_port::ClusterPort;
use self::listings::ListingDesk;
use self::turns::{GrantQueue, RunPermit};
use crate::backend::DynBackend;
use crate::intent::{IntentLog, IntentSubject, OpenIntent};
use crate::observe::audit::{Audit, AuditFileState};
use crate::observe::drops::DropLog;
use crate::observe::metrics::Metrics;
use crate::replay::ReplayMemory;
use crate::request::job::{Arrival, Refusal, RequestJob, RequestOutcome, ResolvedTarget};
use crate::request::lease::{Lease, LeaseEndReason, LeaseReleased};
use crate::request::record::{AuditRecord, RequestEnd, StageTimes};
use crate::request::trail::AgentRunTrail;

mod arriving;
pub(crate) mod challenges;
pub(crate) mod client_link;
pub(crate) mod cluster_port;
pub(crate) mod execute;
pub(crate) mod left_orders;
pub(crate) mod listings;
pub(crate) mod owed_places;
pub(crate) mod recovery;
pub(crate) mod turns;

/// The answer leaves this much earlier than the client gives up, so that the client hears a reason rather
/// than nothing.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// Reason of a status that must not say "off".
const STARTS_LATE: &str = "an earlier fence_virtd was starting the domain when it ended, and libvirt may \
                           still carry that start out. Ask again when the domain is on, or after 35 s";

/// Memories of the service that outlive a restart.
pub(crate) struct ServiceMemory {
    pub(crate) replays: ReplayMemory,
    pub(crate) intents: IntentLog,
}

/// State that all listeners and the cluster share.
pub(crate) struct Service {
    backend: Arc<dyn DynBackend>,
    /// Counts and logs of dropped input.
    pub(crate) drops: Arc<DropLog>,
    /// Counters of finished requests.
    pub(crate) metrics: Arc<Metrics>,
    replays: ReplayMemory,
    intents: IntentLog,
    grants: Arc<GrantQueue>,
    /// Requests that take a domain down, and are not in the queue yet.
    arriving: Arc<ArrivingRequests>,
    /// Other hosts, where they have a say.
    cluster: Option<Arc<dyn ClusterPort>>,
    client_timeout: Duration,
    audit: Audit,
    challenges: Challenges,
    listings: ListingDesk,
    next_id: AtomicU64,
    in_flight: AtomicUsize,
    idle: Notify,
}

impl Service {
    pub(crate) fn new(
        backend: Arc<dyn DynBackend>,
        audit: Audit,
        memory: ServiceMemory,
        cluster: Option<Arc<dyn ClusterPort>>,
        client_timeout: Duration,
    ) -> Arc<Self> {
        let ServiceMemory { replays, intents } = memory;
        Arc::new(Self {
            backend,
            cluster,
            client_timeout,
            audit,
            drops: Arc::default(),
            metrics: Arc::default(),
            replays,
            intents,
            grants: Arc::default(),
            arriving: Arc::default(),
            challenges: Challenges::default(),
            listings: ListingDesk::default(),
            next_id: AtomicU64::new(1),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Makes a request of what a transport received, with a number of its own.
    pub(crate) fn accept(&self, arrival: Arrival) -> RequestJob {
        let Arrival { arrived, transport, peer, identity, hash, key, access, rules, .. } = arrival;
        let Arrival { action, target, dry_run, .. } = arrival;
        // Whatever the packet says: what a question asks about is never the action itself.
        let action = if dry_run.is_some() { Action::Status } else { action };
        let id = self.next_request();
        let (patience, trail) = (self.client_timeout, AgentRunTrail::default());
        RequestJob {
            id,
            arrived,
            patience,
            transport,
            peer,
            identity,
            hash,
            key,
            access,
            rules,
            action,
            target,
            dry_run,
            trail,
        }
    }

    fn next_request(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Leads a request to its end, and writes its audit record. `resolved` is the target, if it is known
    /// already.
    pub(crate) async fn run_request<L: ClientLink>(
        self: &Arc<Self>,
        job: &RequestJob,
        resolved: Option<ResolvedTarget>,
        link: &mut L,
    ) {
        let _in_flight = self.begin_request();
        let arrival = self.arriving.note(job.id, job.action, &job.target);
        let handshake_stage = || L::HAS_HANDSHAKE.then(|| StageTimes::since(job.arrived));
        let mut stages = StageTimes { connected: handshake_stage(), ..StageTimes::default() };
        let (lease, released) = Self::lease(job);
        let resolving = async {
            match resolved {
                Some(resolved) => resolved,
                None => self.resolve(job).await,
            }
        };
        let (opened, resolved) = link.open(job, &lease, resolving).await;
        stages.resolved = Some(StageTimes::since(job.arrived));
        let domain = resolved.domain().cloned();
        let record = |end: RequestEnd<'_>, stages| {
            self.audit(&AuditRecord { job, domain: domain.as_ref(), end, stages });
        };
        let unproved = |failure: &ProofFailure, stages| {
            self.drops.note(job.transport, failure.reason, &job.peer, &failure.text);
            record(RequestEnd::NotProved(&failure.text), stages);
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(failure) => return unproved(&failure, stages),
        };
        let (resolved, grant) = self.watched_grant(job, resolved, &lease, link).await;
        drop(arrival);
        stages.turn = Some(StageTimes::since(job.arrived));
        let not_run = match &grant {
            Grant::Rejected(why) if !why.is_for_the_client() && !L::HEARS_ALL_REJECTIONS => Some(why),
            Grant::Rejected(_) | Grant::Run(_) | Grant::Coalesced(_) => None,
        };
        if let Some(why) = not_run {
            return record(RequestEnd::NotRun(&self.not_run(*why, job, &resolved)), stages);
        }
        // The proof comes as late as it can: only a client that is alive when its grant comes can give it.
        let (proof, proven) = match link.prove(job, opened).await {
            Ok(proved) => proved,
            Err(failure) => {
                if let Grant::Run(permit) = grant {
                    permit.wasted();
                }
                return unproved(&failure, stages);
            }
        };
        stages.proved = handshake_stage();
        let granted = self.run_granted(job, grant, resolved, proof, (lease, released), link);
        let (outcome, is_gone) = granted.await;
        stages.done = Some(StageTimes::since(job.arrived));
        let delivered = link.deliver(job, proven, &outcome, is_gone).await;
        let response = outcome.answer().response();
        record(RequestEnd::Answered { response, reason: outcome.reason(), delivered }, stages);
    }

    /// Carries out a request whose client has proved itself, if the rules of now still allow it. Returns the
    /// outcome, and whether nobody waits for it any more.
    async fn run_granted<L: ClientLink>(
        self: &Arc<Self>,
        job: &RequestJob,
        grant: Grant<RunPermit>,
        resolved: ResolvedTarget,
        proof: Proved,
        (lease, released): (Lease, LeaseReleased),
        link: &mut L,
    ) -> (RequestOutcome, bool) {
        // As late as the proof: what was reloaded while the request waited is in force for it too.
        let (permit, changed) = match (grant, job.judged_again(&resolved)) {
            (Grant::Rejected(Rejection::Forbidden) | Grant::Coalesced(_) | Grant::Run(_), Err(why)) => {
                return (RequestOutcome::forbidden_since(why), false);
            }
            (Grant::Rejected(why), _) => return (RequestOutcome::failed(why), false),
            (Grant::Coalesced(result), Ok(_)) => return (RequestOutcome::from(result), false),
            (Grant::Run(permit), Ok(changed)) => (permit, changed),
        };
        let job = changed.as_ref().unwrap_or(job);
        let target = resolved.clone();
        let work = self.execute(job, resolved, proof, &permit, &lease);
        let mut outcome = watched(link, &lease, under_the_rules(job, &target, &lease, work)).await;
        let why = lease.end_reason();
        if why == Some(LeaseEndReason::Forbidden)
            && outcome.has_lapsed()
            && let Err(why) = job.judged_again(&target)
        {
            outcome = RequestOutcome::forbidden_since(why);
        }
        Self::complete(permit, &outcome, lease, released);
        (outcome, why.is_some_and(|it| it != LeaseEndReason::Forbidden))
    }

    /// Waits until something can begin, and then for the grant, as long as the client waits and no reload
    /// forbids the request. A grant that is there comes before any sign of the client. Returns the target
    /// with it, which is refused if nothing could ever begin.
    async fn watched_grant<L: ClientLink>(
        &self,
        job: &RequestJob,
        resolved: ResolvedTarget,
        lease: &Lease,
        link: &mut L,
    ) -> (ResolvedTarget, Grant<RunPermit>) {
        let target = resolved.clone();
        let grant = under_the_rules(job, &target, lease, async {
            match self.when_ready(job, resolved, lease).await {
                Ok(ready) => {
                    let grant = self.wait_for_grant(job, &ready, lease).await;
                    (ready, grant)
                }
                Err((resolved, why)) => (resolved, Grant::Rejected(why)),
            }
        });
        tokio::pin!(grant);
        loop {
            tokio::select! {
                biased;
                grant = &mut grant => return grant,
                why = link.abandoned() => lease.end(why),
            }
        }
    }

    /// Returns the time for which clients wait for their answer, by the configuration.
    pub(crate) fn client_timeout(&self) -> Duration {
        self.client_timeout
    }

    /// Remembers a packet of which the key with this tag made the hash. Returns whether no listener had it
    /// before.
    pub(crate) fn is_new(&self, tag: &KeyTag, packet: &[u8]) -> bool {
        self.replays.is_new(tag, packet)
    }

    /// Sets the keys that share the memory of packets.
    pub(crate) fn remember_for<'a>(&self, tags: impl Iterator<Item = &'a KeyTag>) {
        self.replays.set_keys(tags);
    }

    /// Finds the domain and checks the groups. Reads only; may run before the peer has proved itself.
    pub(crate) async fn resolve(&self, job: &RequestJob) -> ResolvedTarget {
        execute::resolve(&*self.backend, job).await
    }

    /// Draws a challenge that is about to be sent. It is outstanding as long as the value lives.
    pub(crate) fn challenge(&self) -> Result<OutstandingChallenge<'_>, rand::rngs::SysError> {
        self.challenges.draw()
    }

    /// Draws a challenge that names the request of a call-back. It is outstanding as long as the value lives.
    pub(crate) fn named_challenge(
        &self,
        key: &Key,
        run: ClientRun,
    ) -> Result<OutstandingChallenge<'_>, rand::rngs::SysError> {
        self.challenges.draw_named(key, run)
    }

    /// Returns whether a peer's challenge is an outstanding one of this daemon, which the peer wants it to
    /// answer.
    pub(crate) fn is_reflected(&self, theirs: &Challenge) -> bool {
        self.challenges.is_reflected(theirs)
    }

    /// Ends requests that wait beyond their deadline. Runs for ever, as a task of its own.
    pub(crate) async fn run_deadlines(self: Arc<Self>) {
        Arc::clone(&self.grants).run_deadlines().await;
    }

    /// Returns once every lock on the path of all requests is free.
    pub(crate) fn check_responsive(&self) {
        self.grants.check_responsive();
        self.replays.touch();
        self.challenges.check_responsive();
    }

    /// Waits until something of the request can begin. It has no turn yet, and has not been proved: so it
    /// holds nobody up, and a client that is shot meanwhile can't give the proof later. Returns the target,
    /// refused if nothing will begin. Ends at once when the lease does.
    async fn when_ready(
        &self,
        job: &RequestJob,
        resolved: ResolvedTarget,
        lease: &Lease,
    ) -> Result<ResolvedTarget, (ResolvedTarget, Rejection)> {
        let ResolvedTarget::Run(Some(located)) = &resolved else { return Ok(resolved) };
        if arbitrated_action(job, &resolved) == ArbitratedAction::Look {
            return Ok(resolved);
        }
        let ready = tokio::select! {
            biased;
            ready = self.backend.ready(located, lease) => ready,
            why = until_abandoned(lease) => return Err((resolved, why)),
        };
        Ok(match ready {
            Ok(()) => resolved,
            Err(why) => {
                let domain = Some(located.domain().clone());
                ResolvedTarget::Refused(Refusal::Failure, why.to_string(), domain)
            }
        })
    }

    /// Waits until the request may run, or must not. Ends at once when the lease does.
    async fn wait_for_grant(
        &self,
        job: &RequestJob,
        resolved: &ResolvedTarget,
        lease: &Lease,
    ) -> Grant<RunPermit> {
        let work = arbitrated_action(job, resolved);
        // What is refused at the end of the request's time is to be told.
        let is_refused = matches!(resolved, ResolvedTarget::Refused(..));
        let until = if is_refused { job.deadline() } else { lease.until() };
        let request = arbiter_request(job, work, resolved, until);
        let mut queued = match self.grants.submit(request.clone()) {
            Ok(queued) => queued,
            Err(why) => return Grant::Rejected(why),
        };
        if let Some(leader) = queued.coalesced_with {
            debug!(id = job.id, leader, "joins the same work");
        }
        let grant = tokio::select! {
            biased;
            grant = queued.grant() => grant,
            why = until_abandoned(lease) => {
                queued.withdraw(why);
                return Grant::Rejected(why);
            }
        };
        match (grant, &self.cluster) {
            (Grant::Run(permit), Some(hosts)) if request.work != ArbitratedAction::Look => {
                tokio::select! {
                    biased;
                    grant = permit.claimed(&**hosts, &request) => grant,
                    why = until_abandoned(lease) => Grant::Rejected(why),
                    () = tokio::time::sleep_until(request.deadline.into()) => {
                        Grant::Rejected(Rejection::DeadlinePassed)
                    }
                }
            }
            (grant, _) => grant,
        }
    }

    /// Returns the reason of a request that did not run, with what it waited for on this host.
    fn not_run(&self, why: Rejection, job: &RequestJob, resolved: &ResolvedTarget) -> String {
        if !why.is_without_turn() {
            return why.to_string();
        }
        let work = arbitrated_action(job, resolved);
        let request = arbiter_request(job, work, resolved, job.deadline());
        match self.grants.holds_up_now(&request) {
            Some(first) => format!("{why}: {first}"),
            None => why.to_string(),
        }
    }

    /// Returns the outcome of a dry run whose action would have to wait. The client may not know the domain
    /// that it would wait for, so the outcome does not name it.
    fn would_wait(&self, job: &RequestJob, resolved: &ResolvedTarget) -> Option<RequestOutcome> {
        let asked = job.dry_run?;
        let domain = resolved.domain()?;
        let work = ArbitratedAction::of(asked, domain.uuid.to_string());
        let request = arbiter_request(job, work, resolved, job.deadline());
        let first = self.grants.holds_up_now(&request).filter(|it| it.is_answered)?;
        warn!(id = job.id, "a dry run of {asked} {}: {first}", domain.name);
        Some(RequestOutcome::failed(format!(
            "{asked} {} ({}): {FORECAST_UNCERTAIN}: a power-off that was begun at this host, and whose end \
             is not known, comes first. The log of the host names it",
            domain.name, domain.uuid
        )))
    }

    /// Reports that another host saw this domain off just now.
    pub(crate) fn source_seen_off(&self, uuid: &str) {
        self.grants.victim(uuid);
    }

    /// Carries the request out. The peer has proved itself; `lease` ends when it hangs up.
    async fn execute(
        &self,
        job: &RequestJob,
        resolved: ResolvedTarget,
        _proof: Proved,
        permit: &RunPermit,
        lease: &Lease,
    ) -> RequestOutcome {
        if let Err(why) = permit.proved() {
            return RequestOutcome::lapsed(why);
        }
        if let Some(outcome) = self.would_wait(job, &resolved) {
            return outcome;
        }
        let acts_on = match &resolved {
            ResolvedTarget::Run(located) => located.as_ref().map(|it| it.domain().clone()),
            ResolvedTarget::Refused(Refusal::Failure, ..) => self.owed_to_target_of(job),
            ResolvedTarget::Refused(Refusal::PermissionDenied, ..) => None,
        };
        if let Some(domain) = &acts_on {
            self.write_intent(job, domain, job.source(), job.peer_id()).await;
        }
        let looked_at = resolved.domain().map(|it| it.uuid).filter(|_| job.action == Action::Status);
        let may_start = || looked_at.is_some_and(|it| self.intents.may_start_late(it));
        // Such a start may come while the domain is looked at, or be over after that.
        let could_start = may_start();
        // Seen off, the domain can fence nobody from now on.
        let outcome = execute::execute((&*self.backend, &self.listings), job, resolved, lease, |it| {
            permit.seen_off(it.since, it.may_come_again);
        })
        .await;
        if outcome.answer().response() == Response::Off && (could_start || may_start()) {
            return RequestOutcome::failed(STARTS_LATE);
        }
        outcome
    }

    /// Returns the domain that an off means which fails before it begins, where a start of it is owed: with
    /// libvirt away no domain is found. Whoever asks for that off must not see the domain start later.
    fn owed_to_target_of(&self, job: &RequestJob) -> Option<DomainRef> {
        if job.action != Action::Off {
            return None;
        }
        let owed = self.intents.domains_owed().into_iter().map(|(name, uuid)| DomainRef {
            name,
            uuid,
            home: DomainHome::Here(0),
            by: TargetKind::Name,
        });
        owed.into_iter().find(|it| arriving::may_mean(&job.target, it))
    }

    /// Writes down what the request is about to do to a domain, before it is done. A status does nothing. The
    /// source and the peer are those by which the arbiter orders the request.
    pub(crate) async fn write_intent(
        &self,
        job: &RequestJob,
        domain: &DomainRef,
        source: RequestSource,
        peer: Option<PeerId>,
    ) {
        if !matches!(PowerAction::of_request(job.action), Some(it) if it != PowerAction::Status) {
            return;
        }
        let subject = IntentSubject {
            id: job.id,
            transport: job.transport.to_owned(),
            peer: job.peer.clone(),
            source_domain: job.identity.domain.map(|it| it.to_string()),
            hash: job.hash.name().to_owned(),
            key: job.key.as_ref().map(|it| it.key.fingerprint()),
            action: job.action.name().to_owned(),
            target: job.target.as_str().to_owned(),
            domain: domain.name.clone(),
            uuid: domain.uuid.to_string(),
            home: match domain.home {
                DomainHome::Here(_) => HYPERVISOR_HOME,
                DomainHome::Elsewhere => "another host",
                DomainHome::Agent => DEVICE_HOME,
            },
            known_source: match source {
                RequestSource::Known(uuid) => Some(uuid),
                RequestSource::OneOf(_) | RequestSource::Unknown => None,
            },
            peer_id: peer.map(|it| it.0),
        };
        job.trail.set_intent(self.intents.begin(subject).await);
    }

    /// Returns whether a start of the domain is owed now: whatever is seen of it, it is about to be on.
    pub(crate) fn owes_start(&self, uuid: &str) -> bool {
        self.intents.owes_start(uuid)
    }

    /// Returns whether all orders of earlier daemons of this host are known that may still take effect.
    pub(crate) fn remembers_orders(&self) -> bool {
        self.intents.is_on_disk()
    }

    /// Returns the longest time for which an order to a device may take effect.
    pub(crate) fn longest_effect(&self) -> Duration {
        self.backend.longest_effect()
    }

    /// Returns the number of starts that are owed now.
    pub(crate) fn starts_owed(&self) -> usize {
        self.intents.owing()
    }

    /// Returns the number of events of intents that the disk did not take in time.
    pub(crate) fn intents_lost(&self) -> u64 {
        self.intents.lost()
    }

    /// Returns the lease of a request: until shortly before its client gives up.
    fn lease(job: &RequestJob) -> (Lease, LeaseReleased) {
        let (lease, released) = Lease::new(job.deadline() - ANSWER_MARGIN, job.id);
        (lease.with_trail(job.trail.clone()), released)
    }

    /// Ends the work of a request as far as its client is concerned.
    ///
    /// Coalesced requests get the result, and none joins any more. Conflicting requests go on as soon as
    /// nothing of the work can take effect any more: a call that hangs in a hypervisor holds these up longer
    /// than the client, and those for its own domain, or from it, to its end.
    fn complete(permit: RunPermit, outcome: &RequestOutcome, lease: Lease, mut released: LeaseReleased) {
        drop(lease);
        if outcome.has_lapsed() {
            // Dropped: nothing was done, and the first coalesced request takes over.
            return;
        }
        let (response, reason) = (outcome.answer().response(), outcome.reason().map(str::to_owned));
        let Some(mut effect) = released.effect() else { return permit.finished(response, reason) };
        // At once: a request that comes now does its own work, and is told nothing of this one.
        let held = permit.answered(effect, response, reason);
        tokio::spawn(async move {
            while let Some(less) = released.effect_after(effect).await {
                held.may_still(less);
                effect = less;
            }
            if let Some(since) = released.late_seen_off() {
                // Requests that came from the domain before must not run.
                held.seen_off(since);
            }
            held.finished();
        });
    }

    /// Writes the record of a request that is over. The start that a reboot owes still, since it was cut off
    /// from the hypervisor, is made good beside the requests, and has a record of its own.
    pub(crate) fn audit(self: &Arc<Self>, record: &AuditRecord<'_>) {
        self.metrics.note(record);
        let left = record.job.trail.intent().and_then(OpenIntent::left);
        self.audit.write(record, left.is_none());
        if let Some(left) = left {
            self.make_good_later(left);
        }
    }

    /// Returns the number of requests in flight, and of those that wait for a grant.
    pub(crate) fn requests_now(&self) -> (usize, usize) {
        self.grants.counts()
    }

    /// Returns the number of remembered packets, whether the disk has them too, and how many it did not take.
    pub(crate) fn remembered(&self) -> (usize, bool, u64) {
        self.replays.counts()
    }

    /// Writes out at the daemon's end what must be remembered.
    pub(crate) fn finish(&self) {
        self.replays.finish();
        self.audit.finish();
        self.intents.finish();
    }

    /// Returns the state of the audit file, if the configuration names one.
    pub(crate) fn audit_file(&self) -> Option<&AuditFileState> {
        self.audit.file_state()
    }

    /// Opens the audit file anew after the old one was moved away.
    pub(crate) fn reopen_audit(&self) {
        self.audit.reopen();
    }

    /// Counts a request as in flight as long as the value lives.
    pub(crate) fn begin_request(self: &Arc<Self>) -> InFlightGuard {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlightGuard(Arc::clone(self))
    }

    /// Waits until no request is in flight.
    pub(crate) async fn until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Works to the end. As soon as a reload forbids the request its lease ends: what has not begun does not
/// begin.
async fn under_the_rules<T>(
    job: &RequestJob,
    resolved: &ResolvedTarget,
    lease: &Lease,
    work: impl Future<Output = T>,
) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return result,
        () = job.until_forbidden(resolved) => {}
    }
    // Of a client that is gone nothing changes.
    if lease.end_reason().is_none() {
        lease.end(LeaseEndReason::Forbidden);
    }
    work.await
}

/// Waits until the request must not wait any more.
async fn until_abandoned(lease: &Lease) -> Rejection {
    match lease.ended().await {
        LeaseEndReason::HungUp => Rejection::HungUp,
        LeaseEndReason::Superseded => Rejection::Superseded,
        LeaseEndReason::Forbidden => Rejection::Forbidden,
    }
}

/// Returns the action to ask the arbiter for. A request that is refused already only looks.
fn arbitrated_action(job: &RequestJob, resolved: &ResolvedTarget) -> ArbitratedAction {
    let ResolvedTarget::Run(Some(located)) = resolved else { return ArbitratedAction::Look };
    let Some(action) = PowerAction::of_request(job.action) else { return ArbitratedAction::Look };
    ArbitratedAction::of(action, located.domain().uuid.to_string())
}

/// Returns the request as the arbiter orders it.
fn arbiter_request(
    job: &RequestJob,
    work: ArbitratedAction,
    resolved: &ResolvedTarget,
    deadline: Instant,
) -> ArbiterRequest {
    ArbiterRequest {
        id: job.id,
        work,
        name: resolved.domain().map(|it| it.name.as_str().into()),
        source: job.source(),
        peer: job.peer_id(),
        sender: job.sender(),
        by: named_by(resolved),
        arrived: job.arrived,
        deadline,
    }
}

/// Returns the word that names the target.
fn named_by(resolved: &ResolvedTarget) -> TargetKind {
    match resolved {
        ResolvedTarget::Run(Some(located)) => located.domain().by,
        _ => TargetKind::Name,
    }
}

/// A request in flight; see [`Service::begin_request`].
pub(crate) struct InFlightGuard(Arc<Service>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
