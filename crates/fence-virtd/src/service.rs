// SPDX-License-Identifier: GPL-2.0-or-later
//! The way of a request once it is known to be one: resolve, access, action, answer, audit.
//!
//! Transports call [`Service::resolve`] as soon as a request is read, then wait for its [`Service::turn`], then ask
//! the peer for its proof, and then [`Service::execute`] it and [`Service::over`]; they know nothing of domains, and
//! nothing here knows sockets. Every request that got here ends in exactly one audit record.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::{Action, Challenge, HashType, HostListEntry, Proved, Response, Target, draw_challenge};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::access::{Access, Decision, Identity, Subject};
use crate::arbiter::{self, PeerId, Source, Why, Work};
use crate::audit::{Audit, Record, Stages};
use crate::backend::{
    ActError, Backend, DomainRef, Lease, LeaseEnd, LocateError, Located, Power, Settled, StartFrom, Trail,
};
use crate::drops::Drops;
use crate::keys::KeyProof;
use crate::locks::lock;
use crate::metrics::Metrics;
use crate::replay::Replays;
use crate::turns::{Claims, Running, Told, Turn, Turns};

/// Our answer leaves this much earlier than its client gives up, so that the client hears a reason rather than nothing.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a reboot that was done and could not be told stands for the same client's next try.
const LOST_ANSWERS_STAND: Duration = Duration::from_secs(60);
const MAX_LOST_ANSWERS: usize = 256;
/// The transport that says nothing of who is behind an address.
pub(crate) const TCP: &str = "tcp";
/// How long the start after a reboot's power-off may take, whatever became of the client meanwhile.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);
/// How a reboot that did not come up again begins to say so.
pub(crate) const NOT_STARTED: &str = "fenced, but not started again: ";
/// A look that takes longer than this will not come at all.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// What all listeners share.
pub(crate) struct Service {
    backend: Arc<dyn Backend>,
    /// What was dropped, and why.
    pub(crate) drops: Drops,
    /// What requests leave behind.
    pub(crate) metrics: Metrics,
    replays: Replays,
    turns: Arc<Turns>,
    /// Other hosts, where they have a say.
    claims: Option<Arc<dyn Claims>>,
    client_timeout: Duration,
    lost_answers: Mutex<Vec<LostAnswer>>,
    audit: Audit,
    challenges: Mutex<HashSet<Challenge>>,
    next_id: AtomicU64,
    under_way: AtomicUsize,
    all_done: Notify,
}

/// One request, from its arrival to its audit record.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Counts from 1 in each run of the daemon.
    pub(crate) id: u64,
    /// When its first packet came.
    pub(crate) arrived: Instant,
    /// How long its client waits from then on.
    pub(crate) patience: Duration,
    /// The transport's name.
    pub(crate) transport: &'static str,
    /// The peer's address, for people.
    pub(crate) peer: String,
    /// Who asks.
    pub(crate) identity: Identity,
    /// The type of hash that proved its packet, and whether it is sealed; none on serial lines.
    pub(crate) hash: HashType,
    /// The key that made its hash.
    pub(crate) key: Option<Arc<KeyProof>>,
    /// The groups of the configuration when it came.
    pub(crate) access: Arc<Access>,
    /// What is asked.
    pub(crate) action: Action,
    /// What it is about.
    pub(crate) target: Target,
    /// What was run for it.
    pub(crate) trail: Trail,
}

impl Job {
    /// The moment when the client has given up.
    pub(crate) fn deadline(&self) -> Instant {
        self.arrived + self.patience
    }

    /// The domain that it comes from, as far as the arbiter may rely on it. Behind an address on TCP there may be
    /// many machines, one of ours that translates addresses for others among them.
    fn source(&self) -> Source {
        match &self.identity.domain {
            Some(uuid) if self.transport != TCP => Source::Known(uuid.clone()),
            _ => Source::Unknown,
        }
    }

    /// What tells it from other peers, where anything does.
    fn peer_id(&self) -> Option<PeerId> {
        match (&self.identity.domain, self.identity.cid, self.identity.ip) {
            _ if self.transport == TCP => None,
            (Some(uuid), _, _) => Some(PeerId(format!("domain {uuid}"))),
            (None, Some(cid), _) => Some(PeerId(format!("cid {cid}"))),
            (None, None, Some(ip)) => Some(PeerId(format!("address {ip}"))),
            (None, None, None) => None,
        }
    }
}

/// A reboot that was done and whose client was gone before it heard of that.
struct LostAnswer {
    when: Instant,
    identity: Identity,
    uuid: String,
    told: Told,
}

/// How a request goes on after its turn was asked for.
#[derive(Debug)]
pub(crate) enum Go {
    /// Ask for the proof and run it. The value is to be handed on to [`Service::execute`] and [`Service::over`].
    Run(Running),
    /// The same work was done already: ask for the proof and tell this.
    Told(Told),
    /// It does not run.
    Never(Why),
}

/// What a request comes to before it runs.
#[derive(Debug)]
pub(crate) enum Resolved {
    /// It may run, on this domain; none where the action is about no domain.
    Run(Option<Located>),
    /// It will not run.
    Refused(Response, String, Option<DomainRef>),
}

impl Resolved {
    /// The domain that was found.
    pub(crate) fn domain(&self) -> Option<&DomainRef> {
        match self {
            Self::Run(located) => located.as_ref().map(Located::domain),
            Self::Refused(_, _, domain) => domain.as_ref(),
        }
    }

    /// Whether this host is the one to answer. A shut-off definition is not enough: "off already" would be said at once
    /// of a domain that runs on another host.
    pub(crate) fn owner(&self) -> Owner {
        match self {
            Self::Run(Some(Located::GoneOff(_) | Located::Resting(_) | Located::Lost(_)))
            | Self::Refused(_, _, None) => Owner::Unknown,
            Self::Run(Some(Located::Elsewhere(_))) => Owner::Another,
            Self::Run(_) | Self::Refused(..) => Owner::ThisHost,
        }
    }
}

/// How far a request came; see [`Service::whole_way`].
pub(crate) struct Worked {
    pub(crate) domain: Option<DomainRef>,
    pub(crate) outcome: Result<Outcome, Why>,
    pub(crate) running: Option<Running>,
    pub(crate) stages: Stages,
}

/// Who is to answer a request that several hosts may have heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// The domain lives here, or there is none to be anywhere.
    ThisHost,
    /// A host that this one can pass the request on to, if it has not heard it itself.
    Another,
    /// Perhaps a host that this one knows nothing of.
    Unknown,
}

/// What the client is told.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A response alone.
    Response(Response),
    /// A host list and the response after it.
    List(Vec<HostListEntry>, Response),
}

impl Answer {
    pub(crate) fn response(&self) -> Response {
        match self {
            Self::Response(response) | Self::List(_, response) => *response,
        }
    }
}

/// How a request ended, and why where that needs saying.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    pub(crate) reason: Option<String>,
    /// Nothing was done, because the client was gone or its time was up.
    lapsed: bool,
}

impl Outcome {
    fn plain(response: Response) -> Self {
        Self { answer: Answer::Response(response), reason: None, lapsed: false }
    }

    pub(crate) fn because(response: Response, reason: impl std::fmt::Display) -> Self {
        Self { reason: Some(reason.to_string()), ..Self::plain(response) }
    }

    /// What there is to say, where there is anything.
    fn noted(response: Response, said: Option<&str>, note: Option<String>) -> Self {
        let reason = match (said, note) {
            (Some(said), Some(note)) => Some(format!("{said} ({note})")),
            (Some(said), None) => Some(said.to_owned()),
            (None, note) => note,
        };
        Self { reason, ..Self::plain(response) }
    }
}

impl From<Told> for Outcome {
    fn from(told: Told) -> Self {
        let why = told.reason.map(|it| format!(": {it}")).unwrap_or_default();
        Self::because(told.response, format!("the same work as {}{why}", told.by))
    }
}

impl From<ActError> for Outcome {
    fn from(error: ActError) -> Self {
        Self { lapsed: matches!(error, ActError::Lapsed(_)), ..Self::because(Response::Failure, error) }
    }
}

impl Service {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        audit: Audit,
        replays: Replays,
        claims: Option<Arc<dyn Claims>>,
        client_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            backend,
            claims,
            client_timeout,
            audit,
            drops: Drops::default(),
            metrics: Metrics::default(),
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
    pub(crate) async fn resolve(&self, job: &Job) -> Resolved {
        if !job.action.needs_target() {
            return Resolved::Run(None);
        }
        let until = job.deadline().min(Instant::now() + LOOK_LIMIT);
        let located = self.backend.locate(&job.target, until).await;
        let subject = match &located {
            Ok(it) => Subject::Domain { uuid: &it.domain().uuid, name: &it.domain().name },
            Err(_) => Subject::Text(job.target.as_str()),
        };
        let domain = located.as_ref().ok().map(|it| it.domain().clone());
        match (job.access.decide(&job.identity, job.key.as_deref(), subject), located) {
            (Decision::Denied(denial), _) => {
                Resolved::Refused(Response::PermissionDenied, denial.to_string(), domain)
            }
            (_, Err(error)) => {
                if matches!(error, LocateError::Unavailable(_)) {
                    warn!(id = job.id, "can't look for the domain: {error}");
                }
                Resolved::Refused(Response::Failure, error.to_string(), None)
            }
            (decision, Ok(located)) => {
                debug!(id = job.id, ?decision, domain = ?located.domain(), "resolved");
                Resolved::Run(Some(located))
            }
        }
    }

    /// A challenge that we are about to send. It is outstanding as long as the value lives.
    pub(crate) fn challenge(&self) -> Result<Outstanding<'_>, getrandom::Error> {
        let challenge = draw_challenge(|it| getrandom::fill(it))?;
        lock(&self.challenges).insert(challenge);
        Ok(Outstanding { service: self, challenge })
    }

    /// Whether a peer's challenge is one of ours that is outstanding: it wants us to answer it for it.
    pub(crate) fn is_reflected(&self, theirs: &Challenge) -> bool {
        lock(&self.challenges).contains(theirs)
    }

    /// Ends what waits for its turn too long. Runs for ever, as a task of its own.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        Arc::clone(&self.turns).keep_time().await;
    }

    /// Comes back when nothing that every request passes is stuck.
    pub(crate) fn touch(&self) {
        self.turns.touch();
        self.replays.touch();
        drop(lock(&self.lost_answers));
        drop(lock(&self.challenges));
    }

    /// Waits until the request may run, or must not. Ends at once when the lease does.
    pub(crate) async fn turn(&self, job: &Job, resolved: &Resolved, lease: &Lease) -> Go {
        let work = work(job, resolved);
        if let Some(told) = self.lost_answer(job, &work) {
            return Go::Told(told);
        }
        let request = arbiter::Request {
            id: job.id,
            work,
            source: job.source(),
            peer: job.peer_id(),
            arrived: job.arrived,
            deadline: lease.until(),
        };
        let mut waiting = match self.turns.submit(request.clone()) {
            Ok(waiting) => waiting,
            Err(why) => return Go::Never(why),
        };
        if let Some(leader) = waiting.joined {
            debug!(id = job.id, leader, "joins the same work");
        }
        let turn = tokio::select! {
            biased;
            turn = waiting.turn() => turn,
            why = nobody_waits(lease) => {
                waiting.withdraw(why);
                return Go::Never(why);
            }
        };
        let turn = match (turn, &self.claims) {
            (Turn::Run(running), Some(claims)) if request.work != Work::Look => {
                tokio::select! {
                    biased;
                    turn = running.claimed(&**claims, &request) => turn,
                    why = nobody_waits(lease) => Turn::Never(why),
                    () = tokio::time::sleep_until(request.deadline.into()) => {
                        Turn::Never(Why::DeadlinePassed)
                    }
                }
            }
            (turn, _) => turn,
        };
        match turn {
            Turn::Run(running) => Go::Run(running),
            Turn::Told(told) => Go::Told(told),
            Turn::Never(why) => Go::Never(why),
        }
    }

    /// Another host saw this domain off just now.
    pub(crate) fn victim(&self, uuid: &str) {
        self.turns.victim(uuid);
    }

    /// Takes a request whose peer needs no proof from its target to its outcome: an open socket, or corosync, stands for it.
    pub(crate) async fn whole_way(&self, job: &Job, lease: &Lease) -> Worked {
        let resolved = self.resolve(job).await;
        let mut stages = Stages { resolved: Some(Stages::since(job.arrived)), ..Stages::default() };
        let domain = resolved.domain().cloned();
        let go = self.turn(job, &resolved, lease).await;
        stages.turn = Some(Stages::since(job.arrived));
        let (outcome, running) = match go {
            Go::Told(told) => (Ok(Outcome::from(told)), None),
            Go::Never(why) if why.is_for_the_client() => (Ok(Outcome::because(Response::Failure, why)), None),
            Go::Never(why) => (Err(why), None),
            Go::Run(running) => {
                let proof = Proved::unauthenticated();
                (Ok(self.execute(job, resolved, proof, &running, lease).await), Some(running))
            }
        };
        Worked { domain, outcome, running, stages }
    }

    /// Carries the request out. The peer has proved itself; `lease` ends when it hangs up.
    pub(crate) async fn execute(
        &self,
        job: &Job,
        resolved: Resolved,
        _proof: Proved,
        running: &Running,
        lease: &Lease,
    ) -> Outcome {
        if let Err(why) = running.proved() {
            return Outcome { lapsed: true, ..Outcome::because(Response::Failure, why) };
        }
        match resolved {
            Resolved::Refused(response, reason, _) => Outcome::because(response, reason),
            Resolved::Run(None) => self.without_domain(job).await,
            // It may have been started since it was looked for.
            Resolved::Run(Some(Located::GoneOff(_))) => match self.resolve(job).await {
                Resolved::Run(Some(Located::GoneOff(domain))) => gone_off(job.action, &domain),
                Resolved::Run(Some(located)) => self.on_domain(job, located.domain(), running, lease).await,
                Resolved::Run(None) => Outcome::because(Response::Failure, "nothing was asked"),
                Resolved::Refused(response, reason, _) => Outcome::because(response, reason),
            },
            Resolved::Run(Some(located)) => self.on_domain(job, located.domain(), running, lease).await,
        }
    }

    /// The lease of a request: until shortly before its client gives up.
    pub(crate) fn lease(job: &Job) -> (Lease, Settled) {
        let (lease, settled) = Lease::new(job.deadline() - ANSWER_MARGIN, job.id);
        (lease.noted_in(job.trail.clone()), settled)
    }

    /// The work of a request is over as far as its client is concerned. Those that joined it are told, and what it
    /// held up goes on, as soon as nothing of it can take effect any more: a call that hangs in a hypervisor holds
    /// up what conflicts with it longer than it holds up its client.
    pub(crate) fn over(running: Running, outcome: &Outcome, lease: Lease, mut settled: Settled) {
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
    pub(crate) fn answer_lost(&self, job: &Job, domain: Option<&DomainRef>, outcome: &Outcome) {
        let response = outcome.answer.response();
        let (Action::Reboot, Response::Success, Some(domain)) = (job.action, response, domain) else {
            return;
        };
        let told = Told { response, reason: outcome.reason.clone(), by: format!("request {}", job.id) };
        let lost = LostAnswer {
            when: Instant::now(),
            identity: job.identity.clone(),
            uuid: domain.uuid.clone(),
            told,
        };
        let mut answers = lock(&self.lost_answers);
        answers.retain(|it| it.when.elapsed() < LOST_ANSWERS_STAND);
        if answers.len() >= MAX_LOST_ANSWERS {
            answers.remove(0);
        }
        answers.push(lost);
    }

    fn lost_answer(&self, job: &Job, work: &Work) -> Option<Told> {
        let Work::Reboot(uuid) = work else { return None };
        let mut answers = lock(&self.lost_answers);
        let place = answers.iter().position(|it| {
            it.uuid == *uuid && it.identity == job.identity && it.when.elapsed() < LOST_ANSWERS_STAND
        })?;
        // Once: a further reboot is a further wish.
        Some(answers.remove(place).told)
    }

    /// Writes the record of a request that is over.
    pub(crate) fn audit(&self, record: &Record<'_>) {
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
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(Arc::clone(self))
    }

    /// Returns when no request is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let done = self.all_done.notified();
            if self.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            done.await;
        }
    }

    async fn without_domain(&self, job: &Job) -> Outcome {
        let until = job.deadline().min(Instant::now() + LOOK_LIMIT);
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
                        .map(|it| HostListEntry { name: it.name, uuid: it.uuid, on: it.power == Power::On })
                        .collect();
                    Outcome {
                        answer: Answer::List(entries, Response::Success),
                        reason: missing,
                        lapsed: false,
                    }
                }
                Err(error) => Outcome::because(Response::Failure, error),
            },
            Action::Monitor => match self.backend.health(until).await {
                Ok(failed) if failed.is_empty() => Outcome::plain(Response::Success),
                Ok(failed) => {
                    let failed = failed.join("; ");
                    warn!(id = job.id, "monitor: {failed}");
                    Outcome::because(Response::Success, failed)
                }
                Err(error) => Outcome::because(Response::Failure, error),
            },
            // A request for nothing; the reference answers it with failure.
            _ => Outcome::because(Response::Failure, "nothing was asked"),
        }
    }

    async fn on_domain(&self, job: &Job, domain: &DomainRef, running: &Running, lease: &Lease) -> Outcome {
        // A look after the action showed it off: from now on it shoots nobody.
        let seen_off = || running.seen_off();
        let result = match job.action {
            Action::Status => {
                let look = lease.within(Instant::now() + LOOK_LIMIT);
                self.backend.status(domain, &look).await.map(|power| match power {
                    Power::On => Outcome::plain(Response::Success),
                    Power::Off => Outcome::plain(Response::Off),
                })
            }
            Action::Off => self.backend.off(domain, false, lease).await.map(|down| {
                seen_off();
                let said = down.was_off.then_some("was off already");
                Outcome::noted(Response::Success, said, down.note)
            }),
            Action::Reboot => self.reboot(domain, lease, seen_off).await,
            Action::On => self
                .backend
                .on(domain, StartFrom::Definition, lease)
                .await
                .map(|()| Outcome::plain(Response::Success)),
            Action::Null | Action::Monitor | Action::List => Ok(Outcome::plain(Response::Failure)),
        };
        result.unwrap_or_else(Outcome::from)
    }

    async fn reboot(
        &self,
        domain: &DomainRef,
        lease: &Lease,
        seen_off: impl FnOnce(),
    ) -> Result<Outcome, ActError> {
        let down = self.backend.off(domain, true, lease).await?;
        seen_off();
        let Some(how) = down.restart else {
            let said = if down.was_off {
                "was off already, stays off"
            } else {
                "another instance was started meanwhile"
            };
            return Ok(Outcome::noted(Response::Success, Some(said), down.note));
        };
        // The domain was taken down to come up again: that is owed to it, not to the client.
        let rest = lease.to_the_end(lease.until().max(Instant::now() + START_LIMIT));
        Ok(match self.backend.on(domain, how, &rest).await {
            Ok(()) => Outcome::noted(Response::Success, None, down.note),
            // What a cluster asks with a reboot is that the node is down; it was, and it still is. To report a
            // failure would make the cluster wait for a fence that has happened.
            Err(error) => Outcome::because(Response::Success, format!("{NOT_STARTED}{error}")),
        })
    }
}

/// Returns when nobody waits for the request any more.
async fn nobody_waits(lease: &Lease) -> Why {
    match lease.ended().await {
        LeaseEnd::HungUp => Why::HungUp,
        LeaseEnd::Superseded => Why::Superseded,
    }
}

/// What the arbiter is asked about: what is refused already only looks.
fn work(job: &Job, resolved: &Resolved) -> Work {
    let Resolved::Run(Some(located)) = resolved else { return Work::Look };
    let uuid = located.domain().uuid.clone();
    match job.action {
        Action::On => Work::On(uuid),
        Action::Off => Work::Off(uuid),
        Action::Reboot => Work::Reboot(uuid),
        Action::Null | Action::Status | Action::Monitor | Action::List => Work::Look,
    }
}

/// See [`Service::challenge`].
pub(crate) struct Outstanding<'a> {
    service: &'a Service,
    pub(crate) challenge: Challenge,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        lock(&self.service.challenges).remove(&self.challenge);
    }
}

/// See [`Service::begin`].
pub(crate) struct UnderWay(Arc<Service>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.all_done.notify_waiters();
        }
    }
}

/// A transient domain that went off here a short while ago: it is off, and there is nothing to start.
fn gone_off(action: Action, domain: &DomainRef) -> Outcome {
    let reason = format!("{} went off here and left no definition", domain.name);
    Outcome::because(
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

    use super::*;
    use crate::backend::{self, Home, Listing, Power};
    use crate::turns::{Claim, Claimed};

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A backend that nothing gets to.
    struct Untouched;

    impl Backend for Untouched {
        fn locate<'a>(
            &'a self,
            _: &'a Target,
            _: Instant,
        ) -> backend::Work<'a, Result<Located, LocateError>> {
            panic!("looked for")
        }

        fn may_have(&self, _: &Target) -> bool {
            panic!("asked")
        }

        fn status<'a>(
            &'a self,
            _: &'a DomainRef,
            _: &'a Lease,
        ) -> backend::Work<'a, Result<Power, ActError>> {
            panic!("looked at")
        }

        fn off<'a>(
            &'a self,
            _: &'a DomainRef,
            _: bool,
            _: &'a Lease,
        ) -> backend::Work<'a, Result<backend::TakenDown, ActError>> {
            panic!("taken down")
        }

        fn on<'a>(
            &'a self,
            _: &'a DomainRef,
            _: StartFrom,
            _: &'a Lease,
        ) -> backend::Work<'a, Result<(), ActError>> {
            panic!("started")
        }

        fn list(&self, _: Instant) -> backend::Work<'_, Result<Listing, ActError>> {
            panic!("listed")
        }

        fn health(&self, _: Instant) -> backend::Work<'_, Result<Vec<String>, ActError>> {
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

    impl Claim for Counted {
        fn proved(&self) -> Result<(), Why> {
            Err(Why::TurnLost)
        }

        fn seen_off(&self) {}

        fn finished(self: Box<Self>, _: Response, _: Option<&str>) {}
    }

    impl Claims for OtherHosts {
        fn claim<'a>(
            &'a self,
            _: &'a arbiter::Request,
        ) -> Pin<Box<dyn Future<Output = Claimed> + Send + 'a>> {
            let claim = Counted::new(&self.under_way);
            Box::pin(async move { if self.grant { Claimed::Run(Box::new(claim)) } else { pending().await } })
        }
    }

    fn service(hosts: OtherHosts) -> (Arc<Service>, Arc<AtomicUsize>) {
        let under_way = Arc::clone(&hosts.under_way);
        let (audit, replays) = (Audit::open(None).unwrap(), Replays::in_memory().unwrap());
        (Service::new(Arc::new(Untouched), audit, replays, Some(Arc::new(hosts)), PATIENCE), under_way)
    }

    fn job(action: Action) -> (Job, Resolved) {
        let job = Job {
            id: 1,
            arrived: Instant::now(),
            patience: Duration::from_secs(30),
            transport: "test",
            peer: String::new(),
            identity: Identity::default(),
            hash: HashType::None,
            key: None,
            access: Arc::new(Access::new(None)),
            action,
            target: Target::new("b", false).unwrap(),
            trail: Trail::default(),
        };
        let domain = DomainRef { name: "b".to_owned(), uuid: "b".to_owned(), home: Home::Here(0) };
        (job, Resolved::Run(Some(Located::Here(domain))))
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
        assert!(matches!(go, Go::Never(Why::DeadlinePassed)), "{go:?}");
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
                lease.end(LeaseEnd::HungUp);
            })
        })
        .await;
        assert!(matches!(go, Go::Never(Why::HungUp)), "{go:?}");
        assert_eq!((under_way.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
    }

    #[tokio::test]
    async fn who_only_looks_asks_nobody() {
        let (service, under_way) = service(OtherHosts::default());
        let (job, resolved) = job(Action::Status);
        let (lease, _settled) = Service::lease(&job);
        let go = in_time(service.turn(&job, &resolved, &lease)).await;
        assert!(matches!(go, Go::Run(_)), "{go:?}");
        assert_eq!(under_way.load(Ordering::SeqCst), 0);
    }

    /// Whoever waits longer than the agents do by default gets an answer for all of that time.
    #[test]
    fn a_request_lives_as_long_as_its_client_waits() {
        for seconds in [30, 60, 600] {
            let (job, _) = job(Action::Off);
            let job = Job { patience: Duration::from_secs(seconds), ..job };
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
        let later = lease.to_the_end(job.deadline() + PATIENCE);
        for (place, of) in [&lease, &soon, &later].into_iter().enumerate() {
            of.trail().note(backend::Ran {
                device: place.to_string(),
                agent: "fence_test".to_owned(),
                action: "off",
                ended: backend::Ended::Exit(0),
                took: Duration::ZERO,
                output: String::new(),
            });
        }
        let devices: Vec<_> = job.trail.runs().kept.into_iter().map(|it| it.device).collect();
        assert_eq!(devices, ["0", "1", "2"]);
        // A part ends with the whole.
        lease.end(LeaseEnd::HungUp);
        assert_eq!(soon.end_reason(), Some(LeaseEnd::HungUp));
        assert_eq!(later.end_reason(), None);
    }

    /// What was decided holds no more when the client has proved itself: nothing is done, and the client hears that.
    #[tokio::test]
    async fn a_turn_that_was_lost_before_the_proof_does_nothing() {
        let (service, under_way) = service(OtherHosts { grant: true, ..OtherHosts::default() });
        let (job, resolved) = job(Action::Off);
        let (lease, settled) = Service::lease(&job);
        let Go::Run(running) = in_time(service.turn(&job, &resolved, &lease)).await else {
            panic!("not run")
        };
        let outcome = service.execute(&job, resolved, Proved::unauthenticated(), &running, &lease).await;
        assert_eq!(outcome.answer.response(), Response::Failure);
        assert_eq!(outcome.reason, Some(Why::TurnLost.to_string()));
        Service::over(running, &outcome, lease, settled);
        assert_eq!((under_way.load(Ordering::SeqCst), service.requests_now()), (0, (0, 0)));
    }
}
