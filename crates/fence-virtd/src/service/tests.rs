// SPDX-License-Identifier: GPL-2.0-or-later
//! A request's grant and lease, with a backend that nothing may reach.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Instant;

use fence_core::access::{AccessRules, Identity};
use fence_wire::{Action, HashType, Response, Target};
use tokio::sync::{oneshot, watch};

use super::*;
use crate::backend::{Backend, DynBackend, PowerForecast, PowerOffResult};
use crate::intent::since_boot_ms;
use crate::intent::store::LeftIntent;
use crate::request::record::AnswerDelivery;
use crate::request::rules_now::{JudgedAgain, RulesNow};
use crate::request::trail::AgentRunTrail;
use crate::service::cluster_port::{ClusterGrant, ClusterPermit};
use crate::util::locks::{Mutex, lock};
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, LocateError, LocatedDomain, SeenPower,
    TargetKind,
};
use fence_core::evidence::{DomainSite, Finding, ProvedOff, Sight};
use fence_core::intent::{Intent, IntentFile, IntentRemainder, START_AGE_MS, StartOwed, UnfinishedIntent};
use fence_core::owed_start::StartVerdict;

/// Far longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A backend that no call may reach, but for a power-off where it has one.
pub(super) struct Untouched {
    pub(super) off: fn() -> PowerOffResult<'static>,
}

impl Backend for Untouched {
    async fn locate(&self, _: &Target, _: Instant) -> Result<LocatedDomain, LocateError> {
        panic!("looked for")
    }

    fn may_own(&self, _: &Target) -> bool {
        panic!("asked")
    }

    async fn status(&self, _: &DomainRef, _: &Lease) -> Result<SeenPower, ActionError> {
        panic!("looked at")
    }

    async fn off(&self, _: &DomainRef, _: bool, _: &Lease) -> Result<PowerOffResult<'_>, ActionError> {
        Ok((self.off)())
    }

    async fn on(&self, _: &DomainRef, _: &Lease) -> Result<(), ActionError> {
        panic!("started")
    }

    async fn forecast(&self, _: &DomainRef, _: PowerAction, _: &Lease) -> Result<PowerForecast, ActionError> {
        panic!("foreseen")
    }

    async fn list(&self, _: Instant) -> Result<DomainListing, ActionError> {
        panic!("listed")
    }

    async fn health(&self, _: Instant) -> Result<Vec<String>, ActionError> {
        panic!("asked")
    }
}

/// Other hosts: the number of this one's claims in flight, and whether they grant them.
#[derive(Default)]
struct OtherHosts {
    in_flight: Arc<AtomicUsize>,
    grant: bool,
}

#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(in_flight: &Arc<AtomicUsize>) -> Self {
        in_flight.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(in_flight))
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

    fn seen_off(&self, _: bool) {}

    fn answered(&self, _: fence_core::arbiter::LateEffect, _: Response, _: Option<&str>) {}

    fn finished(self: Box<Self>, _: Response, _: Option<&str>) {}
}

impl ClusterPort for OtherHosts {
    fn claim<'a>(&'a self, _: &'a ArbiterRequest) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>> {
        let claim = Counted::new(&self.in_flight);
        Box::pin(async move {
            if self.grant { Grant::Run(Box::new(claim) as Box<dyn ClusterPermit>) } else { pending().await }
        })
    }

    fn restore(&self, _: &ArbiterRequest) -> Box<dyn ClusterPermit> {
        Box::new(Counted::new(&self.in_flight))
    }
}

fn service(hosts: OtherHosts) -> (Arc<Service>, Arc<AtomicUsize>) {
    let in_flight = Arc::clone(&hosts.in_flight);
    let (intents, _) = IntentLog::open(None, String::new());
    let memory = ServiceMemory { replays: ReplayMemory::in_memory().unwrap(), intents };
    let audit = Audit::open(None).unwrap();
    (
        Service::new(
            Arc::new(Untouched { off: || panic!("taken down") }),
            audit,
            memory,
            Some(Arc::new(hosts)),
            PATIENCE,
        ),
        in_flight,
    )
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
        rules: None,
        action,
        target: Target::new("b", false).unwrap(),
        dry_run: None,
        trail: AgentRunTrail::default(),
    };
    let domain = DomainRef {
        name: "b".to_owned(),
        uuid: DomainId::from_bytes([0xb; 16]),
        home: DomainHome::Here(0),
        by: TargetKind::Name,
    };
    (job, ResolvedTarget::Run(Some(LocatedDomain::Here(domain))))
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it never ended")
}

#[tokio::test]
async fn a_claim_that_nobody_answers_ends_with_the_clients_time() {
    let (service, in_flight) = service(OtherHosts::default());
    let (job, resolved) = job(Action::Off);
    let (lease, _released) = Lease::new(Instant::now() + Duration::from_millis(100), job.id);
    let grant = in_time(service.wait_for_grant(&job, &resolved, &lease)).await;
    assert!(matches!(grant, Grant::Rejected(Rejection::DeadlinePassed)), "{grant:?}");
    assert_eq!((in_flight.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
}

#[tokio::test]
async fn a_claim_ends_when_its_client_hangs_up() {
    let (service, in_flight) = service(OtherHosts::default());
    let (job, resolved) = job(Action::Reboot);
    let (lease, _released) = Service::lease(&job);
    let grant = service.wait_for_grant(&job, &resolved, &lease);
    let (grant, ()) = in_time(async {
        tokio::join!(grant, async {
            while in_flight.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(service.requests_now(), (1, 0));
            lease.end(LeaseEndReason::HungUp);
        })
    })
    .await;
    assert!(matches!(grant, Grant::Rejected(Rejection::HungUp)), "{grant:?}");
    assert_eq!((in_flight.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
}

#[tokio::test]
async fn read_only_actions_make_no_cluster_claim() {
    let (service, in_flight) = service(OtherHosts::default());
    let (job, resolved) = job(Action::Status);
    let (lease, _released) = Service::lease(&job);
    let grant = in_time(service.wait_for_grant(&job, &resolved, &lease)).await;
    assert!(matches!(grant, Grant::Run(_)), "{grant:?}");
    assert_eq!(in_flight.load(Ordering::SeqCst), 0);
}

/// A client that waits longer than the agents do by default can get its answer for all of that time.
#[test]
fn a_request_lives_as_long_as_its_client_waits() {
    for seconds in [30, 60, 600] {
        let (job, _) = job(Action::Off);
        let job = RequestJob { patience: Duration::from_secs(seconds), ..job };
        let (lease, _released) = Service::lease(&job);
        assert_eq!(job.deadline() - job.arrived, Duration::from_secs(seconds));
        assert_eq!(job.deadline() - lease.until(), ANSWER_MARGIN);
        assert!(lease.check().is_ok());
    }
}

/// Agent runs under the lease, and under a part of it, are in the request's record.
#[test]
fn the_trail_of_a_lease_is_that_of_its_request() {
    let (job, _) = job(Action::Off);
    let (lease, _released) = Service::lease(&job);
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

/// A grant that was lost before the proof: nothing is done, and the client gets a failure.
#[tokio::test]
async fn a_grant_that_was_lost_before_the_proof_does_nothing() {
    let (service, in_flight) = service(OtherHosts { grant: true, ..OtherHosts::default() });
    let (job, resolved) = job(Action::Off);
    let (lease, released) = Service::lease(&job);
    let Grant::Run(permit) = in_time(service.wait_for_grant(&job, &resolved, &lease)).await else {
        panic!("not run")
    };
    let outcome = service.execute(&job, resolved, Proved::unauthenticated(), &permit, &lease).await;
    assert_eq!(outcome.answer().response(), Response::Failure);
    assert_eq!(outcome.reason(), Some(&*Rejection::TurnLost.to_string()));
    Service::complete(permit, &outcome, lease, released);
    assert_eq!((in_flight.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
}

/// A backend with one domain, whose start is refused for some times.
#[derive(Default)]
struct Refusing {
    refusals: AtomicUsize,
    starts: AtomicUsize,
    /// Power-offs that wait for other hosts until their leases end; none may come where this is none.
    offs: Option<AtomicUsize>,
    /// Verdicts that are to be told, the last one first; then the start stands.
    at_places: Mutex<Vec<StartVerdict>>,
    by_requests: Mutex<Vec<StartVerdict>>,
}

impl Backend for Refusing {
    async fn locate(&self, _: &Target, _: Instant) -> Result<LocatedDomain, LocateError> {
        Ok(LocatedDomain::Off(victim()))
    }

    fn may_own(&self, _: &Target) -> bool {
        true
    }

    async fn status(&self, _: &DomainRef, _: &Lease) -> Result<SeenPower, ActionError> {
        let now = Instant::now();
        let place = DomainSite::Hypervisor("test:///x".to_owned());
        let look = Finding::without_namesakes(place, Sight::Off, now, now);
        Ok(SeenPower::Off(ProvedOff::from_end(now, &look).unwrap()))
    }

    async fn off(&self, _: &DomainRef, _: bool, lease: &Lease) -> Result<PowerOffResult<'_>, ActionError> {
        self.offs.as_ref().expect("taken down").fetch_add(1, Ordering::SeqCst);
        lease.ended().await;
        Err(lease.check().unwrap_err())
    }

    async fn on(&self, _: &DomainRef, _: &Lease) -> Result<(), ActionError> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        match self.refusals.load(Ordering::SeqCst) {
            0 => Ok(()),
            left => {
                self.refusals.store(left - 1, Ordering::SeqCst);
                Err(ActionError::Refused("no memory".to_owned()))
            }
        }
    }

    async fn judge_at_places(&self, _: &DomainRef, _: Duration, _: Instant) -> StartVerdict {
        lock(&self.at_places).pop().unwrap_or(StartVerdict::Stands)
    }

    fn judge_by_requests(&self, _: &DomainRef, _: Duration) -> StartVerdict {
        lock(&self.by_requests).pop().unwrap_or(StartVerdict::Stands)
    }

    async fn forecast(&self, _: &DomainRef, _: PowerAction, _: &Lease) -> Result<PowerForecast, ActionError> {
        panic!("foreseen")
    }

    async fn list(&self, _: Instant) -> Result<DomainListing, ActionError> {
        panic!("listed")
    }

    async fn health(&self, _: Instant) -> Result<Vec<String>, ActionError> {
        panic!("asked")
    }
}

fn victim() -> DomainRef {
    DomainRef {
        name: "b".to_owned(),
        uuid: DomainId::from_bytes([0xb; 16]),
        home: DomainHome::Here(0),
        by: TargetKind::Name,
    }
}

/// Starts the daemon's half of a recovery that owes a start. `age`: of the request.
fn recovery(backend: Refusing, age: Duration) -> (Arc<Service>, Arc<Refusing>, LeftIntent) {
    let (intents, _) = IntentLog::open(None, "boot".to_owned());
    let memory = ServiceMemory { replays: ReplayMemory::in_memory().unwrap(), intents };
    let backend = Arc::new(backend);
    let audit = Audit::open(None).unwrap();
    let service = Service::new(Arc::clone(&backend) as Arc<dyn DynBackend>, audit, memory, None, PATIENCE);
    let age = u64::try_from(age.as_millis()).unwrap();
    let intent = Intent {
        number: 1,
        boot: "boot".to_owned(),
        at_ms: since_boot_ms().checked_sub(age).expect("this host was booted a moment ago"),
        id: 1,
        transport: "tcp".to_owned(),
        peer: String::new(),
        source_domain: None,
        hash: "none".to_owned(),
        key: None,
        action: "reboot".to_owned(),
        target: "b".to_owned(),
        domain: "b".to_owned(),
        uuid: victim().uuid.to_string(),
        home: "here".to_owned(),
        known_source: None,
        peer_id: None,
    };
    let remainder = IntentRemainder::Open { start: Some(StartOwed::Definition) };
    (
        service,
        backend,
        LeftIntent { unfinished: UnfinishedIntent { intent, remainder, orders: Vec::new() }, xml: None },
    )
}

#[tokio::test]
async fn a_start_that_is_refused_is_tried_again() {
    let backend = Refusing { refusals: 1.into(), ..Refusing::default() };
    let (service, backend, left) = recovery(backend, Duration::ZERO);
    in_time(service.finish_left(vec![left], true)).await;
    assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (2, 0));
}

#[tokio::test]
async fn a_start_is_not_owed_for_ever() {
    let backend = Refusing { refusals: usize::MAX.into(), ..Refusing::default() };
    let nearly = Duration::from_millis(START_AGE_MS) - Duration::from_millis(500);
    let (service, backend, left) = recovery(backend, nearly);
    in_time(service.finish_left(vec![left], true)).await;
    assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (1, 0));
}

/// Somebody started it and took it down again, or was told elsewhere that it is off, or nobody can tell.
#[tokio::test]
async fn what_does_not_stand_any_more_is_left_alone() {
    for verdict in [StartVerdict::Overtaken("h2".to_owned()), StartVerdict::Untold("h2".to_owned())] {
        for (at_places, by_requests) in [(vec![verdict.clone()], vec![]), (vec![], vec![verdict.clone()])] {
            let (at_places, by_requests) = (at_places.into(), by_requests.into());
            let backend = Refusing { at_places, by_requests, ..Refusing::default() };
            let (service, backend, left) = recovery(backend, Duration::ZERO);
            in_time(service.finish_left(vec![left], true)).await;
            assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (0, 0));
        }
    }
}

/// A host that is not heard now may be heard a moment later.
#[tokio::test]
async fn a_start_waits_for_a_host_that_is_not_heard() {
    let at_places = vec![StartVerdict::Unheard("h2 does not answer".to_owned())].into();
    let (service, backend, left) = recovery(Refusing { at_places, ..Refusing::default() }, Duration::ZERO);
    in_time(service.finish_left(vec![left], true)).await;
    assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (1, 0));
}

/// A start of somebody else that the owed one was coalesced with: only its success ends what is owed.
#[tokio::test]
async fn the_same_start_of_another_request_counts_if_it_did_not_fail() {
    for (response, starts) in [(Response::Success, 0), (Response::Failure, 1)] {
        let (service, backend, left) = recovery(Refusing::default(), Duration::ZERO);
        let (job, resolved) = job(Action::On);
        let job = RequestJob { id: u64::MAX, ..job };
        let (lease, _released) = Service::lease(&job);
        let Grant::Run(permit) = in_time(service.wait_for_grant(&job, &resolved, &lease)).await else {
            panic!("not run")
        };
        in_time(async {
            tokio::join!(service.finish_left(vec![left], true), async {
                while service.requests_now() != (1, 1) {
                    tokio::task::yield_now().await;
                }
                permit.finished(response, Some("no memory".to_owned()));
            })
        })
        .await;
        assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (starts, 0));
    }
}

/// A request that comes between two attempts decides what becomes of the domain.
#[tokio::test]
async fn a_later_request_ends_the_attempts() {
    let backend = Refusing { refusals: usize::MAX.into(), ..Refusing::default() };
    let (service, backend, left) = recovery(backend, Duration::ZERO);
    let (job, _) = job(Action::Off);
    in_time(async {
        tokio::join!(service.finish_left(vec![left], true), async {
            while backend.starts.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            service.write_intent(&job, &victim(), RequestSource::Unknown, None).await;
        })
    })
    .await;
    assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (1, 0));
}

/// A reboot that powered the domain off and whose request ends now: its record, and the start that it owes.
async fn ended_reboot(service: &Arc<Service>, is_cut_off: bool) {
    let (job, _) = job(Action::Reboot);
    service.write_intent(&job, &victim(), RequestSource::Unknown, None).await;
    let open = job.trail.intent().unwrap();
    open.owes_definition().await;
    open.came_to_nothing();
    if is_cut_off {
        open.cut_off();
    }
    let end = RequestEnd::Answered {
        response: Response::Failure,
        reason: Some("no connection to libvirt"),
        delivered: AnswerDelivery::NotTaken,
    };
    service.audit(&AuditRecord { job: &job, domain: Some(&victim()), end, stages: StageTimes::default() });
}

/// Only where libvirt was away: one that refused the start would refuse it again.
#[tokio::test]
async fn what_a_reboot_owes_is_started_after_its_request() {
    for (is_cut_off, starts) in [(true, 2), (false, 0)] {
        let backend = Refusing { refusals: 1.into(), ..Refusing::default() };
        let (service, backend, _) = recovery(backend, Duration::ZERO);
        ended_reboot(&service, is_cut_off).await;
        in_time(service.until_idle()).await;
        assert_eq!((backend.starts.load(Ordering::SeqCst), service.starts_owed()), (starts, 0));
    }
}

/// The domain is not found while libvirt is away, so the off fails before it begins.
#[tokio::test]
async fn an_off_that_is_refused_ends_what_is_owed_to_its_domain() {
    for (action, target, decides) in [
        (Action::Off, "b", true),
        (Action::Off, &*victim().uuid.to_string(), true),
        (Action::Off, "other", false),
        (Action::Reboot, "b", false),
    ] {
        let backend = Refusing { refusals: usize::MAX.into(), ..Refusing::default() };
        let (service, backend, _) = recovery(backend, Duration::ZERO);
        ended_reboot(&service, true).await;
        let later = RequestJob { id: 2, target: Target::new(target, false).unwrap(), ..job(action).0 };
        let resolved = ResolvedTarget::Refused(Refusal::Failure, "no connection".to_owned(), None);
        let (lease, _released) = Service::lease(&later);
        let Grant::Run(permit) = in_time(service.wait_for_grant(&later, &resolved, &lease)).await else {
            panic!("not run")
        };
        let outcome = service.execute(&later, resolved, Proved::unauthenticated(), &permit, &lease).await;
        assert_eq!(outcome.answer().response(), Response::Failure);
        let decision = service.intents.decided_by(&victim().uuid.to_string());
        assert_eq!(decision.is_some(), decides, "{action:?} {target}: {decision:?}");
        if decides {
            in_time(service.until_idle()).await;
            assert!(backend.starts.load(Ordering::SeqCst) <= 1);
        }
    }
}

/// A reboot that comes next takes the start over, also before the record of the first one is written.
#[tokio::test]
async fn the_next_reboot_takes_over_what_is_owed() {
    let (service, ..) = recovery(Refusing::default(), Duration::ZERO);
    for is_cut_off in [false, true] {
        let (first, next) = (job(Action::Reboot).0, job(Action::Reboot).0);
        service.write_intent(&first, &victim(), RequestSource::Unknown, None).await;
        let open = first.trail.intent().unwrap();
        open.owes_definition().await;
        if is_cut_off {
            open.cut_off();
        }
        service.write_intent(&next, &victim(), RequestSource::Unknown, None).await;
        let next = next.trail.intent().unwrap();
        assert_eq!((next.debt().is_some(), next.left().is_some()), (is_cut_off, false));
        next.settled();
        open.settled();
    }
    assert_eq!(service.starts_owed(), 0);
}

/// The daemon may be killed before the start is made good, so the file owes it until then.
#[tokio::test]
async fn what_is_owed_after_the_request_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (intents, _) = IntentLog::open(Some(dir.path()), "boot".to_owned());
    let memory = ServiceMemory { replays: ReplayMemory::in_memory().unwrap(), intents };
    let backend = Arc::new(Refusing { refusals: 1.into(), ..Refusing::default() });
    let audit = Audit::open(None).unwrap();
    let service = Service::new(Arc::clone(&backend) as Arc<dyn DynBackend>, audit, memory, None, PATIENCE);
    ended_reboot(&service, true).await;
    let owes = || {
        let file = IntentFile::read(&std::fs::read(dir.path().join("intents")).unwrap());
        let is_owed =
            |it: &UnfinishedIntent| matches!(it.remainder, IntentRemainder::Open { start: Some(_) });
        file.unfinished.iter().filter(|it| is_owed(it)).count()
    };
    in_time(async {
        while backend.starts.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(owes(), 1);
    in_time(service.until_idle()).await;
    service.intents.finish();
    assert_eq!((owes(), backend.starts.load(Ordering::SeqCst)), (0, 2));
}

/// A client without a handshake, which gets the response and the reason.
struct TestLink(Option<oneshot::Sender<(Response, Option<String>)>>);

impl ClientLink for TestLink {
    const HAS_HANDSHAKE: bool = false;
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
        pending().await
    }

    async fn prove(&mut self, _: &RequestJob, (): ()) -> Result<(Proved, ()), ProofFailure> {
        Ok((Proved::unauthenticated(), ()))
    }

    async fn deliver(&mut self, _: &RequestJob, (): (), outcome: &RequestOutcome, _: bool) -> AnswerDelivery {
        if let Some(it) = self.0.take() {
            let _ = it.send((outcome.answer().response(), outcome.reason().map(str::to_owned)));
        }
        AnswerDelivery::Taken
    }
}

/// The rules of a listener, which a reload changes.
#[derive(Debug)]
struct ReloadedRules(watch::Sender<JudgedAgain>);

impl ReloadedRules {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(JudgedAgain::Same)))
    }

    fn reload(&self, judged: &JudgedAgain) {
        self.0.send_replace(judged.clone());
    }
}

impl RulesNow for ReloadedRules {
    fn judge_again(&self) -> JudgedAgain {
        self.0.borrow().clone()
    }

    fn reloaded(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut reloads = self.0.subscribe();
        Box::pin(async move { drop(reloads.changed().await) })
    }
}

/// Rules that forbid what they allowed before.
fn forbidding() -> [JudgedAgain; 2] {
    let groups = fence_config::load(b"fence_virtd { } groups { group { uuid = \"c\"; } }");
    let access = Arc::new(AccessRules::new(groups.config.unwrap().groups.as_deref()));
    [
        JudgedAgain::Refused("its key 8c58 was taken away".to_owned()),
        JudgedAgain::Changed { access, key: None },
    ]
}

fn still_allowing() -> JudgedAgain {
    JudgedAgain::Changed { access: Arc::new(AccessRules::new(None)), key: None }
}

type TestAnswer = oneshot::Receiver<(Response, Option<String>)>;

/// Runs a request whose domain is known. Returns the way of its answer.
fn ask(service: &Arc<Service>, id: u64, action: Action, rules: Option<&Arc<ReloadedRules>>) -> TestAnswer {
    let (job, resolved) = job(action);
    let rules = rules.map(|it| Arc::clone(it) as Arc<dyn RulesNow>);
    let job = RequestJob { id, rules, ..job };
    let ((tell, told), service) = (oneshot::channel(), Arc::clone(service));
    tokio::spawn(async move { service.run_request(&job, Some(resolved), &mut TestLink(Some(tell))).await });
    told
}

async fn until(is_so: impl Fn() -> bool) {
    in_time(async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn assert_forbidden(answer: TestAnswer) {
    let (response, reason) = in_time(answer).await.unwrap();
    let reason = reason.unwrap();
    assert_eq!(response, Response::PermissionDenied, "{reason}");
    assert!(reason.starts_with("a reload forbade this request while it waited: "), "{reason}");
}

/// Nothing was done for it, and another client that joined it is no worse off.
#[tokio::test]
async fn a_request_that_waits_for_its_turn_is_asked_by_the_rules_of_a_reload() {
    let forbidding = forbidding().map(|it| (it, false));
    for (judged, is_allowed) in [(still_allowing(), true)].into_iter().chain(forbidding) {
        let (service, backend, _) = recovery(Refusing::default(), Duration::ZERO);
        let (job, resolved) = job(Action::Off);
        let first = RequestJob { id: u64::MAX, ..job };
        let (lease, _released) = Service::lease(&first);
        let Grant::Run(permit) = in_time(service.wait_for_grant(&first, &resolved, &lease)).await else {
            panic!("not run")
        };
        let rules = ReloadedRules::new();
        let one = ask(&service, 1, Action::On, Some(&rules));
        until(|| service.requests_now().1 == 1).await;
        let two = ask(&service, 2, Action::On, None);
        until(|| service.requests_now().1 == 2).await;
        rules.reload(&judged);
        if is_allowed {
            permit.finished(Response::Success, None);
            assert_eq!(in_time(one).await.unwrap().0, Response::Success);
        } else {
            // It does not wait for its turn.
            assert_forbidden(one).await;
            permit.finished(Response::Success, None);
        }
        assert_eq!(in_time(two).await.unwrap().0, Response::Success);
        assert_eq!(backend.starts.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_grant_of_other_hosts_is_asked_by_the_rules_of_a_reload() {
    for judged in forbidding() {
        let (service, in_flight) = service(OtherHosts::default());
        let rules = ReloadedRules::new();
        let answer = ask(&service, 1, Action::Off, Some(&rules));
        until(|| in_flight.load(Ordering::SeqCst) == 1).await;
        rules.reload(&judged);
        assert_forbidden(answer).await;
        assert_eq!((in_flight.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
    }
}

/// The request has its turn and its proof, and waits for the answer of a host that may have the domain.
#[tokio::test]
async fn a_request_that_waits_for_another_host_is_asked_by_the_rules_of_a_reload() {
    for judged in forbidding() {
        let backend = Refusing { offs: Some(0.into()), ..Refusing::default() };
        let (service, backend, _) = recovery(backend, Duration::ZERO);
        let rules = ReloadedRules::new();
        let offs = || backend.offs.as_ref().unwrap().load(Ordering::SeqCst);
        let mut answer = ask(&service, 1, Action::Off, Some(&rules));
        until(|| offs() == 1).await;
        rules.reload(&still_allowing());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(answer.try_recv().is_err(), "it is allowed still");
        rules.reload(&judged);
        assert_forbidden(answer).await;
        assert_eq!(service.requests_now(), (0, 0));
    }
}
