// SPDX-License-Identifier: GPL-2.0-or-later
//! The way of a request once it is known to be one: resolve, access, action, answer, audit.
//!
//! Transports call [`Service::resolve`] as soon as a request is read, then wait for its [`Service::turn`], then ask
//! the peer for its proof, and then [`Service::execute`] it and [`Service::over`]; they know nothing of domains, and
//! nothing here knows sockets. Every request that got here ends in exactly one audit record.

use crate::request::job::{ClientReply, RequestJob, RequestOutcome, ResolvedTarget};
pub(crate) mod turns;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::{Action, Challenge, HostListEntry, Proved, Response, draw_challenge};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::backend::Backend;
use crate::observe::audit::Audit;
use crate::observe::drops::DropLog;
use crate::observe::metrics::Metrics;
use crate::replay::ReplayMemory;
use crate::request::lease::{Lease, LeaseEndReason, LeaseReleased};
use crate::request::record::{AuditRecord, StageTimes};
use crate::service::turns::{ClusterPort, GrantQueue, RunPermit};
use crate::util::locks::lock;
use fence_core::access::{AccessDecision, AccessSubject, Identity};
use fence_core::arbiter::{self, ArbitratedAction, Grant, Rejection, SharedResult};
use fence_core::domain::{ActionError, DomainRef, LocateError, LocatedDomain, PowerState};

/// Our answer leaves this much earlier than its client gives up, so that the client hears a reason rather than nothing.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a reboot that was done and could not be told stands for the same client's next try.
const UNDELIVERED_REBOOT_TTL: Duration = Duration::from_secs(60);
const MAX_LOST_ANSWERS: usize = 256;
/// How long the start after a reboot's power-off may take, whatever became of the client meanwhile.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);
/// How a reboot that did not come up again begins to say so.
pub(crate) const NOT_STARTED: &str = "fenced, but not started again: ";
/// A look that takes longer than this will not come at all.
const STATUS_CHECK_LIMIT: Duration = Duration::from_secs(10);

/// What all listeners share.
pub(crate) struct Service {
    backend: Arc<dyn Backend>,
    /// What was dropped, and why.
    pub(crate) drops: DropLog,
    /// What requests leave behind.
    pub(crate) metrics: Arc<Metrics>,
    replays: ReplayMemory,
    turns: Arc<GrantQueue>,
    /// Other hosts, where they have a say.
    claims: Option<Arc<dyn ClusterPort>>,
    client_timeout: Duration,
    lost_answers: Mutex<Vec<UndeliveredReboot>>,
    audit: Audit,
    challenges: Mutex<HashSet<Challenge>>,
    next_id: AtomicU64,
    under_way: AtomicUsize,
    all_done: Notify,
}

/// A reboot that was done and whose client was gone before it heard of that.
struct UndeliveredReboot {
    when: Instant,
    identity: Identity,
    uuid: String,
    told: SharedResult,
}

/// How far a request came; see [`Service::whole_way`].
pub(crate) struct ProcessedRequest {
    pub(crate) domain: Option<DomainRef>,
    pub(crate) outcome: Result<RequestOutcome, Rejection>,
    pub(crate) running: Option<RunPermit>,
    pub(crate) stages: StageTimes,
}

impl Service {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        audit: Audit,
        replays: ReplayMemory,
        claims: Option<Arc<dyn ClusterPort>>,
        client_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            backend,
            claims,
            client_timeout,
            audit,
            drops: DropLog::default(),
            metrics: Arc::default(),
            replays,
            turns: Arc::default(),
            challenges: Mutex::default(),
            lost_answers: Mutex::default(),
            next_id: AtomicU64::new(1),
            under_way: AtomicUsize::new(0),
            all_done: Notify::new(),
        })
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// How long clients wait for their answer, as the configuration says.
    pub(crate) fn client_timeout(&self) -> Duration {
        self.client_timeout
    }

    /// Whether a packet whose hash fits was never here before, on any listener. It is remembered.
    pub(crate) fn is_new(&self, packet: &[u8]) -> bool {
        self.replays.is_new(packet)
    }

    /// Finds the domain and asks the groups. Looks only; may run before the peer has proved itself.
    pub(crate) async fn resolve(&self, job: &RequestJob) -> ResolvedTarget {
        if !job.action.needs_target() {
            return ResolvedTarget::Run(None);
        }
        let until = job.deadline().min(Instant::now() + STATUS_CHECK_LIMIT);
        let located = self.backend.locate(&job.target, until).await;
        let subject = match &located {
            Ok(it) => AccessSubject::Domain { uuid: &it.domain().uuid, name: &it.domain().name },
            Err(_) => AccessSubject::Text(job.target.as_str()),
        };
        let domain = located.as_ref().ok().map(|it| it.domain().clone());
        match (job.access.decide(&job.identity, job.key.as_deref(), subject), located) {
            (AccessDecision::Denied(denial), _) => {
                ResolvedTarget::Refused(Response::PermissionDenied, denial.to_string(), domain)
            }
            (_, Err(error)) => {
                if matches!(error, LocateError::Unavailable(_)) {
                    warn!(id = job.id, "can't look for the domain: {error}");
                }
                ResolvedTarget::Refused(Response::Failure, error.to_string(), None)
            }
            (decision, Ok(located)) => {
                debug!(id = job.id, ?decision, domain = ?located.domain(), "resolved");
                ResolvedTarget::Run(Some(located))
            }
        }
    }

    /// A challenge that we are about to send. It is outstanding as long as the value lives.
    pub(crate) fn challenge(&self) -> Result<OutstandingChallenge<'_>, rand::rngs::SysError> {
        let challenge = draw_challenge(|it| rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, it))?;
        lock(&self.challenges).insert(challenge);
        Ok(OutstandingChallenge { service: self, challenge })
    }

    /// Whether a peer's challenge is one of ours that is outstanding: it wants us to answer it for it.
    pub(crate) fn is_reflected(&self, theirs: &Challenge) -> bool {
        lock(&self.challenges).contains(theirs)
    }

    /// Ends what waits for its turn too long. Runs for ever, as a task of its own.
    pub(crate) async fn run_deadlines(self: Arc<Self>) {
        Arc::clone(&self.turns).keep_time().await;
    }

    /// Comes back when nothing that every request passes is stuck.
    pub(crate) fn check_responsive(&self) {
        self.turns.touch();
        self.replays.touch();
        drop(lock(&self.lost_answers));
        drop(lock(&self.challenges));
    }

    /// Waits until the request may run, or must not. Ends at once when the lease does.
    pub(crate) async fn turn(
        &self,
        job: &RequestJob,
        resolved: &ResolvedTarget,
        lease: &Lease,
    ) -> Grant<RunPermit> {
        let work = work(job, resolved);
        if let Some(told) = self.undelivered_result(job, &work) {
            return Grant::Coalesced(told);
        }
        let request = arbiter::ArbiterRequest {
            id: job.id,
            work,
            source: job.source(),
            peer: job.peer_id(),
            arrived: job.arrived,
            deadline: lease.until(),
        };
        let mut waiting = match self.turns.submit(request.clone()) {
            Ok(waiting) => waiting,
            Err(why) => return Grant::Rejected(why),
        };
        if let Some(leader) = waiting.joined {
            debug!(id = job.id, leader, "joins the same work");
        }
        let turn = tokio::select! {
            biased;
            turn = waiting.turn() => turn,
            why = nobody_waits(lease) => {
                waiting.withdraw(why);
                return Grant::Rejected(why);
            }
        };
        match (turn, &self.claims) {
            (Grant::Run(running), Some(claims)) if request.work != ArbitratedAction::Look => {
                tokio::select! {
                    biased;
                    turn = running.claimed(&**claims, &request) => turn,
                    why = nobody_waits(lease) => Grant::Rejected(why),
                    () = tokio::time::sleep_until(request.deadline.into()) => {
                        Grant::Rejected(Rejection::DeadlinePassed)
                    }
                }
            }
            (turn, _) => turn,
        }
    }

    /// Another host saw this domain off just now.
    pub(crate) fn source_seen_off(&self, uuid: &str) {
        self.turns.victim(uuid);
    }

    /// Takes a request whose peer needs no proof from its target to its outcome: an open socket, or corosync, stands for it.
    pub(crate) async fn process_trusted(&self, job: &RequestJob, lease: &Lease) -> ProcessedRequest {
        let resolved = self.resolve(job).await;
        let mut stages =
            StageTimes { resolved: Some(StageTimes::since(job.arrived)), ..StageTimes::default() };
        let domain = resolved.domain().cloned();
        let go = self.turn(job, &resolved, lease).await;
        stages.turn = Some(StageTimes::since(job.arrived));
        let (outcome, running) = match go {
            Grant::Coalesced(told) => (Ok(RequestOutcome::from(told)), None),
            Grant::Rejected(why) if why.is_for_the_client() => {
                (Ok(RequestOutcome::because(Response::Failure, why)), None)
            }
            Grant::Rejected(why) => (Err(why), None),
            Grant::Run(running) => {
                let proof = Proved::unauthenticated();
                (Ok(self.execute(job, resolved, proof, &running, lease).await), Some(running))
            }
        };
        ProcessedRequest { domain, outcome, running, stages }
    }

    /// Carries the request out. The peer has proved itself; `lease` ends when it hangs up.
    pub(crate) async fn execute(
        &self,
        job: &RequestJob,
        resolved: ResolvedTarget,
        _proof: Proved,
        running: &RunPermit,
        lease: &Lease,
    ) -> RequestOutcome {
        if let Err(why) = running.proved() {
            return RequestOutcome { lapsed: true, ..RequestOutcome::because(Response::Failure, why) };
        }
        match resolved {
            ResolvedTarget::Refused(response, reason, _) => RequestOutcome::because(response, reason),
            ResolvedTarget::Run(None) => self.without_domain(job).await,
            // It may have been started since it was looked for.
            ResolvedTarget::Run(Some(LocatedDomain::PoweredOffTransient(_))) => match self.resolve(job).await
            {
                ResolvedTarget::Run(Some(LocatedDomain::PoweredOffTransient(domain))) => {
                    gone_off(job.action, &domain)
                }
                ResolvedTarget::Run(Some(located)) => {
                    self.on_domain(job, located.domain(), running, lease).await
                }
                ResolvedTarget::Run(None) => RequestOutcome::because(Response::Failure, "nothing was asked"),
                ResolvedTarget::Refused(response, reason, _) => RequestOutcome::because(response, reason),
            },
            ResolvedTarget::Run(Some(located)) => self.on_domain(job, located.domain(), running, lease).await,
        }
    }

    /// The lease of a request: until shortly before its client gives up.
    pub(crate) fn lease(job: &RequestJob) -> (Lease, LeaseReleased) {
        let (lease, settled) = Lease::new(job.deadline() - ANSWER_MARGIN, job.id);
        (lease.with_trail(job.trail.clone()), settled)
    }

    /// The work of a request is over as far as its client is concerned. Those that joined it are told, and what it
    /// held up goes on, as soon as nothing of it can take effect any more: a call that hangs in a hypervisor holds
    /// up what conflicts with it longer than it holds up its client.
    pub(crate) fn complete(
        running: RunPermit,
        outcome: &RequestOutcome,
        lease: Lease,
        mut settled: LeaseReleased,
    ) {
        drop(lease);
        if outcome.lapsed {
            // Dropped: nothing was done, and the first that joined takes over.
            return;
        }
        let (response, reason) = (outcome.answer.response(), outcome.reason.clone());
        if settled.is_now() {
            running.finished(response, reason);
        } else {
            tokio::spawn(async move {
                settled.wait().await;
                running.finished(response, reason);
            });
        }
    }

    /// The client was gone before it could be told. Should it ask again, a reboot is not done twice.
    pub(crate) fn record_undelivered(
        &self,
        job: &RequestJob,
        domain: Option<&DomainRef>,
        outcome: &RequestOutcome,
    ) {
        let response = outcome.answer.response();
        let (Action::Reboot, Response::Success, Some(domain)) = (job.action, response, domain) else {
            return;
        };
        let told =
            SharedResult { response, reason: outcome.reason.clone(), by: format!("request {}", job.id) };
        let lost = UndeliveredReboot {
            when: Instant::now(),
            identity: job.identity.clone(),
            uuid: domain.uuid.clone(),
            told,
        };
        let mut answers = lock(&self.lost_answers);
        answers.retain(|it| it.when.elapsed() < UNDELIVERED_REBOOT_TTL);
        if answers.len() >= MAX_LOST_ANSWERS {
            answers.remove(0);
        }
        answers.push(lost);
    }

    fn undelivered_result(&self, job: &RequestJob, work: &ArbitratedAction) -> Option<SharedResult> {
        let ArbitratedAction::Reboot(uuid) = work else { return None };
        let mut answers = lock(&self.lost_answers);
        let place = answers.iter().position(|it| {
            it.uuid == *uuid && it.identity == job.identity && it.when.elapsed() < UNDELIVERED_REBOOT_TTL
        })?;
        // Once: a further reboot is a further wish.
        Some(answers.remove(place).told)
    }

    /// Writes the record of a request that is over.
    pub(crate) fn audit(&self, record: &AuditRecord<'_>) {
        self.metrics.note(record);
        self.audit.write(record);
    }

    /// How many requests are in flight, and how many wait for their turn.
    pub(crate) fn requests_now(&self) -> (usize, usize) {
        self.turns.counts()
    }

    /// How many packets are remembered, whether on disk too, and how many of them the disk did not take.
    pub(crate) fn remembered(&self) -> (usize, bool, u64) {
        self.replays.counts()
    }

    /// The daemon ends: what must be remembered is made safe.
    pub(crate) fn finish(&self) {
        self.replays.finish();
        self.audit.finish();
    }

    /// Opens the audit file anew: somebody moved the old one away.
    pub(crate) fn reopen_audit(&self) {
        self.audit.reopen();
    }

    /// A request is under way as long as the value lives.
    pub(crate) fn begin_request(self: &Arc<Self>) -> InFlightGuard {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        InFlightGuard(Arc::clone(self))
    }

    /// Returns when no request is under way.
    pub(crate) async fn until_idle(&self) {
        loop {
            let done = self.all_done.notified();
            if self.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            done.await;
        }
    }

    async fn without_domain(&self, job: &RequestJob) -> RequestOutcome {
        let until = job.deadline().min(Instant::now() + STATUS_CHECK_LIMIT);
        match job.action {
            Action::List => match self.backend.list(until).await {
                Ok(listing) => {
                    let missing = (!listing.missing.is_empty()).then(|| listing.missing.join("; "));
                    if let Some(missing) = &missing {
                        warn!(id = job.id, "the host list is not complete: {missing}");
                    }
                    let entries = listing
                        .domains
                        .into_iter()
                        .filter(|it| job.access.shows(&job.identity, job.key.as_deref(), &it.uuid, &it.name))
                        .map(|it| HostListEntry {
                            name: it.name,
                            uuid: it.uuid,
                            on: it.power == PowerState::On,
                        })
                        .collect();
                    RequestOutcome {
                        answer: ClientReply::List(entries, Response::Success),
                        reason: missing,
                        lapsed: false,
                    }
                }
                Err(error) => RequestOutcome::because(Response::Failure, error),
            },
            Action::Monitor => match self.backend.health(until).await {
                Ok(failed) if failed.is_empty() => RequestOutcome::plain(Response::Success),
                Ok(failed) => {
                    let failed = failed.join("; ");
                    warn!(id = job.id, "monitor: {failed}");
                    RequestOutcome::because(Response::Success, failed)
                }
                Err(error) => RequestOutcome::because(Response::Failure, error),
            },
            // A request for nothing; the reference answers it with failure.
            _ => RequestOutcome::because(Response::Failure, "nothing was asked"),
        }
    }

    async fn on_domain(
        &self,
        job: &RequestJob,
        domain: &DomainRef,
        running: &RunPermit,
        lease: &Lease,
    ) -> RequestOutcome {
        // A look after the action showed it off: from now on it shoots nobody.
        let seen_off = || running.seen_off();
        let result = match job.action {
            Action::Status => {
                let look = lease.within(Instant::now() + STATUS_CHECK_LIMIT);
                self.backend.status(domain, &look).await.map(|power| match power {
                    PowerState::On => RequestOutcome::plain(Response::Success),
                    PowerState::Off => RequestOutcome::plain(Response::Off),
                })
            }
            Action::Off => self.backend.off(domain, false, lease).await.map(|down| {
                seen_off();
                let said = down.was_off.then_some("was off already");
                RequestOutcome::noted(Response::Success, said, down.note)
            }),
            Action::Reboot => self.reboot(domain, lease, seen_off).await,
            Action::On => {
                self.backend.on(domain, lease).await.map(|()| RequestOutcome::plain(Response::Success))
            }
            Action::Null | Action::Monitor | Action::List => Ok(RequestOutcome::plain(Response::Failure)),
        };
        result.unwrap_or_else(RequestOutcome::from)
    }

    async fn reboot(
        &self,
        domain: &DomainRef,
        lease: &Lease,
        seen_off: impl FnOnce(),
    ) -> Result<RequestOutcome, ActionError> {
        let down = self.backend.off(domain, true, lease).await?;
        seen_off();
        let Some(restart) = down.restart else {
            let said = if down.was_off {
                "was off already, stays off"
            } else {
                "another instance was started meanwhile"
            };
            return Ok(RequestOutcome::noted(Response::Success, Some(said), down.note));
        };
        // The domain was taken down to come up again: that is owed to it, not to the client.
        let rest = lease.detached(lease.until().max(Instant::now() + START_LIMIT));
        Ok(match restart.start(&rest).await {
            Ok(()) => RequestOutcome::noted(Response::Success, None, down.note),
            // What a cluster asks with a reboot is that the node is down; it was, and it still is. To report a
            // failure would make the cluster wait for a fence that has happened.
            Err(error) => RequestOutcome::because(Response::Success, format!("{NOT_STARTED}{error}")),
        })
    }
}

/// Returns when nobody waits for the request any more.
async fn nobody_waits(lease: &Lease) -> Rejection {
    match lease.ended().await {
        LeaseEndReason::HungUp => Rejection::HungUp,
        LeaseEndReason::Superseded => Rejection::Superseded,
    }
}

/// What the arbiter is asked about: what is refused already only looks.
fn work(job: &RequestJob, resolved: &ResolvedTarget) -> ArbitratedAction {
    let ResolvedTarget::Run(Some(located)) = resolved else { return ArbitratedAction::Look };
    let uuid = located.domain().uuid.clone();
    match job.action {
        Action::On => ArbitratedAction::On(uuid),
        Action::Off => ArbitratedAction::Off(uuid),
        Action::Reboot => ArbitratedAction::Reboot(uuid),
        Action::Null | Action::Status | Action::Monitor | Action::List => ArbitratedAction::Look,
    }
}

/// See [`Service::challenge`].
pub(crate) struct OutstandingChallenge<'a> {
    service: &'a Service,
    pub(crate) challenge: Challenge,
}

impl Drop for OutstandingChallenge<'_> {
    fn drop(&mut self) {
        lock(&self.service.challenges).remove(&self.challenge);
    }
}

/// See [`Service::begin`].
pub(crate) struct InFlightGuard(Arc<Service>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.all_done.notify_waiters();
        }
    }
}

/// A transient domain that went off here a short while ago: it is off, and there is nothing to start.
fn gone_off(action: Action, domain: &DomainRef) -> RequestOutcome {
    let reason = format!("{} went off here and left no definition", domain.name);
    RequestOutcome::because(
        match action {
            Action::Off | Action::Reboot => Response::Success,
            Action::Status => Response::Off,
            _ => Response::Failure,
        },
        reason,
    )
}

#[cfg(test)]
mod tests {
    use std::future::{Future, pending};
    use std::pin::Pin;

    use fence_core::access::AccessRules;
    use fence_wire::{HashType, Target};

    use super::*;
    use crate::backend;
    use crate::request::trail::AgentRunTrail;
    use crate::service::turns::{ClusterGrant, ClusterPermit};
    use fence_core::domain::{DomainHome, DomainListing, PowerState};

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A backend that nothing gets to.
    struct Untouched;

    impl Backend for Untouched {
        fn locate<'a>(
            &'a self,
            _: &'a Target,
            _: Instant,
        ) -> backend::BoxedFuture<'a, Result<LocatedDomain, LocateError>> {
            panic!("looked for")
        }

        fn may_own(&self, _: &Target) -> bool {
            panic!("asked")
        }

        fn status<'a>(
            &'a self,
            _: &'a DomainRef,
            _: &'a Lease,
        ) -> backend::BoxedFuture<'a, Result<PowerState, ActionError>> {
            panic!("looked at")
        }

        fn off<'b, 'a: 'b>(
            &'a self,
            _: &'b DomainRef,
            _: bool,
            _: &'b Lease,
        ) -> backend::BoxedFuture<'b, Result<backend::PowerOffResult<'a>, ActionError>> {
            panic!("taken down")
        }

        fn on<'a>(
            &'a self,
            _: &'a DomainRef,
            _: &'a Lease,
        ) -> backend::BoxedFuture<'a, Result<(), ActionError>> {
            panic!("started")
        }

        fn list(&self, _: Instant) -> backend::BoxedFuture<'_, Result<DomainListing, ActionError>> {
            panic!("listed")
        }

        fn health(&self, _: Instant) -> backend::BoxedFuture<'_, Result<Vec<String>, ActionError>> {
            panic!("asked")
        }
    }

    /// Other hosts: how many of this one's claims they have under way, and what they say.
    #[derive(Default)]
    struct OtherHosts {
        under_way: Arc<AtomicUsize>,
        grant: bool,
    }

    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn new(under_way: &Arc<AtomicUsize>) -> Self {
            under_way.fetch_add(1, Ordering::SeqCst);
            Self(Arc::clone(under_way))
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl ClusterPermit for Counted {
        fn proved(&self) -> Result<(), Rejection> {
            Err(Rejection::TurnLost)
        }

        fn seen_off(&self) {}

        fn finished(self: Box<Self>, _: Response, _: Option<&str>) {}
    }

    impl ClusterPort for OtherHosts {
        fn claim<'a>(
            &'a self,
            _: &'a arbiter::ArbiterRequest,
        ) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>> {
            let claim = Counted::new(&self.under_way);
            Box::pin(async move {
                if self.grant {
                    Grant::Run(Box::new(claim) as Box<dyn ClusterPermit>)
                } else {
                    pending().await
                }
            })
        }
    }

    fn service(hosts: OtherHosts) -> (Arc<Service>, Arc<AtomicUsize>) {
        let under_way = Arc::clone(&hosts.under_way);
        let (audit, replays) = (Audit::open(None).unwrap(), ReplayMemory::in_memory().unwrap());
        (Service::new(Arc::new(Untouched), audit, replays, Some(Arc::new(hosts)), PATIENCE), under_way)
    }

    fn job(action: Action) -> (RequestJob, ResolvedTarget) {
        let job = RequestJob {
            id: 1,
            arrived: Instant::now(),
            patience: Duration::from_secs(30),
            transport: "test",
            peer: String::new(),
            identity: Identity::default(),
            hash: HashType::None,
            key: None,
            access: Arc::new(AccessRules::new(None)),
            action,
            target: Target::new("b", false).unwrap(),
            trail: AgentRunTrail::default(),
        };
        let domain = DomainRef { name: "b".to_owned(), uuid: "b".to_owned(), home: DomainHome::Here(0) };
        (job, ResolvedTarget::Run(Some(LocatedDomain::Here(domain))))
    }

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future).await.expect("it never ended")
    }

    #[tokio::test]
    async fn a_claim_that_nobody_answers_ends_with_the_clients_time() {
        let (service, under_way) = service(OtherHosts::default());
        let (job, resolved) = job(Action::Off);
        let (lease, _settled) = Lease::new(Instant::now() + Duration::from_millis(100), job.id);
        let go = in_time(service.turn(&job, &resolved, &lease)).await;
        assert!(matches!(go, Grant::Rejected(Rejection::DeadlinePassed)), "{go:?}");
        assert_eq!((under_way.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
    }

    #[tokio::test]
    async fn a_claim_ends_when_its_client_hangs_up() {
        let (service, under_way) = service(OtherHosts::default());
        let (job, resolved) = job(Action::Reboot);
        let (lease, _settled) = Service::lease(&job);
        let turn = service.turn(&job, &resolved, &lease);
        let (go, ()) = in_time(async {
            tokio::join!(turn, async {
                while under_way.load(Ordering::SeqCst) == 0 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(service.requests_now(), (1, 0));
                lease.end(LeaseEndReason::HungUp);
            })
        })
        .await;
        assert!(matches!(go, Grant::Rejected(Rejection::HungUp)), "{go:?}");
        assert_eq!((under_way.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
    }

    #[tokio::test]
    async fn who_only_looks_asks_nobody() {
        let (service, under_way) = service(OtherHosts::default());
        let (job, resolved) = job(Action::Status);
        let (lease, _settled) = Service::lease(&job);
        let go = in_time(service.turn(&job, &resolved, &lease)).await;
        assert!(matches!(go, Grant::Run(_)), "{go:?}");
        assert_eq!(under_way.load(Ordering::SeqCst), 0);
    }

    /// Whoever waits longer than the agents do by default gets an answer for all of that time.
    #[test]
    fn a_request_lives_as_long_as_its_client_waits() {
        for seconds in [30, 60, 600] {
            let (job, _) = job(Action::Off);
            let job = RequestJob { patience: Duration::from_secs(seconds), ..job };
            let (lease, _settled) = Service::lease(&job);
            assert_eq!(job.deadline() - job.arrived, Duration::from_secs(seconds));
            assert_eq!(job.deadline() - lease.until(), ANSWER_MARGIN);
            assert!(lease.check().is_ok());
        }
    }

    /// What is run under the lease, and under a part of it, is in the request's record.
    #[test]
    fn the_trail_of_a_lease_is_that_of_its_request() {
        let (job, _) = job(Action::Off);
        let (lease, _settled) = Service::lease(&job);
        let soon = lease.within(job.arrived);
        assert!((soon.until(), lease.within(job.deadline()).until()) == (job.arrived, lease.until()));
        let later = lease.detached(job.deadline() + PATIENCE);
        for (place, of) in [&lease, &soon, &later].into_iter().enumerate() {
            of.trail().note(crate::request::trail::AgentRun {
                device: place.to_string(),
                agent: "fence_test".to_owned(),
                action: "off",
                ended: crate::request::trail::AgentRunEnd::Exit(0),
                took: Duration::ZERO,
                output: String::new(),
            });
        }
        let devices: Vec<_> = job.trail.runs().kept.into_iter().map(|it| it.device).collect();
        assert_eq!(devices, ["0", "1", "2"]);
        // A part ends with the whole.
        lease.end(LeaseEndReason::HungUp);
        assert_eq!(soon.end_reason(), Some(LeaseEndReason::HungUp));
        assert_eq!(later.end_reason(), None);
    }

    /// What was decided holds no more when the client has proved itself: nothing is done, and the client hears that.
    #[tokio::test]
    async fn a_turn_that_was_lost_before_the_proof_does_nothing() {
        let (service, under_way) = service(OtherHosts { grant: true, ..OtherHosts::default() });
        let (job, resolved) = job(Action::Off);
        let (lease, settled) = Service::lease(&job);
        let Grant::Run(running) = in_time(service.turn(&job, &resolved, &lease)).await else {
            panic!("not run")
        };
        let outcome = service.execute(&job, resolved, Proved::unauthenticated(), &running, &lease).await;
        assert_eq!(outcome.answer.response(), Response::Failure);
        assert_eq!(outcome.reason, Some(Rejection::TurnLost.to_string()));
        Service::complete(running, &outcome, lease, settled);
        assert_eq!((under_way.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
    }
}
