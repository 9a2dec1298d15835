// SPDX-License-Identifier: GPL-2.0-or-later
//! The arbiter among tasks: a request asks for its grant, waits for it, and reports its progress.
//!
//! Owns the one [`Arbiter`] and the requests that wait for its decisions. The lock is held only for the
//! arbiter's own arithmetic, never across a wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use fence_wire::Response;
use tokio::sync::{Notify, oneshot};

use super::cluster_port::{ClusterPermit, ClusterPort};
use crate::util::locks::{Mutex, MutexGuard, lock};
use fence_core::arbiter::{
    Arbiter, ArbiterDecision, ArbiterRequest, Grant, HoldUp, LateEffect, Rejection, SharedResult,
    SubmitResult,
};

/// Queue of the requests of this host, ordered by the arbiter.
#[derive(Debug, Default)]
pub(crate) struct GrantQueue {
    state: Mutex<QueueState>,
    /// The arbiter's next deadline may have changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    arbiter: Arbiter,
    waiting: HashMap<u64, oneshot::Sender<Grant<RunPermit>>>,
}

/// A request that waits for its grant. Dropping it withdraws the request.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    queue: Arc<GrantQueue>,
    id: u64,
    grant: oneshot::Receiver<Grant<RunPermit>>,
    /// Number of the request in flight that this one is coalesced with.
    pub(crate) coalesced_with: Option<u64>,
    over: bool,
}

/// A request in flight. Dropping it without [`RunPermit::finished`] reports that nothing was done.
#[derive(Debug)]
pub(crate) struct RunPermit {
    queue: Arc<GrantQueue>,
    id: u64,
    claim: Option<Box<dyn ClusterPermit>>,
    over: bool,
}

/// A request whose client has its answer, while a part of the work may still take effect. No request can join
/// it, and none gets its result.
#[derive(Debug)]
pub(crate) struct HeldPermit {
    permit: RunPermit,
    response: Response,
    reason: Option<String>,
}

impl GrantQueue {
    /// Takes a request in. An error says why it will never run.
    pub(crate) fn submit(self: &Arc<Self>, request: ArbiterRequest) -> Result<QueuedRequest, Rejection> {
        let id = request.id;
        let (sender, grant) = oneshot::channel();
        let mut state = self.state();
        let submitted = state.arbiter.submit(Instant::now(), request)?;
        let mut coalesced_with = None;
        match submitted {
            // The receiver is here, so it can't fail.
            SubmitResult::Run => drop(sender.send(Grant::Run(self.permit(id)))),
            SubmitResult::Wait => drop(state.waiting.insert(id, sender)),
            SubmitResult::Joined(leader) => {
                coalesced_with = Some(leader);
                state.waiting.insert(id, sender);
            }
        }
        drop(state);
        self.changed.notify_one();
        Ok(QueuedRequest { queue: Arc::clone(self), id, grant, coalesced_with, over: false })
    }

    /// Takes in work of an earlier daemon that is over, but whose effect may still come: what conflicts waits
    /// until the permit reports the end. Other hosts hold it up as well.
    pub(crate) fn install_late(
        self: &Arc<Self>,
        request: ArbiterRequest,
        hosts: Option<&dyn ClusterPort>,
    ) -> RunPermit {
        let mut permit = self.permit(request.id);
        permit.claim = hosts.map(|it| it.restore(&request));
        self.state().arbiter.install_late(request);
        permit
    }

    /// Returns the request in flight that would hold this one up now.
    pub(crate) fn holds_up_now(&self, request: &ArbiterRequest) -> Option<HoldUp> {
        self.state().arbiter.holds_up_now(request)
    }

    /// Reports that another host saw this domain off just now: requests that came from it before do not run.
    pub(crate) fn victim(self: &Arc<Self>, uuid: &str) {
        self.report(None, |it| it.victim(Instant::now(), uuid));
    }

    /// Returns the number of requests in flight, and of those that wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        let (in_flight, waiting) = state.arbiter.counts();
        debug_assert_eq!(
            waiting,
            state.waiting.len(),
            "a request waits for nothing, or a grant is awaited by nobody"
        );
        (in_flight, waiting)
    }

    /// Ends requests that wait beyond their deadline. Runs for ever, as a task of its own.
    pub(crate) async fn run_deadlines(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let next = self.state().arbiter.next_deadline();
            match next {
                None => changed.await,
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at.into()) => self.tick(Instant::now()),
                    }
                }
            }
        }
    }

    /// Rejects the requests whose deadline has passed.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant) {
        self.report(None, |it| it.tick(now));
    }

    /// Reports an event to the arbiter and carries out its decisions. `result` is for the coalesced requests.
    fn report(
        self: &Arc<Self>,
        result: Option<&SharedResult>,
        event: impl FnOnce(&mut Arbiter) -> Vec<ArbiterDecision>,
    ) {
        let mut state = self.state();
        let decisions = event(&mut state.arbiter);
        self.carry_out(&mut state, result, decisions);
        drop(state);
        self.changed.notify_one();
    }

    /// Hands decisions to the requests that wait for them.
    ///
    /// A grant that nobody takes is reported at once. It must not be left to the permit's drop: that takes
    /// the lock, which is held already.
    fn carry_out(
        self: &Arc<Self>,
        state: &mut QueueState,
        result: Option<&SharedResult>,
        decisions: Vec<ArbiterDecision>,
    ) {
        let mut decisions = VecDeque::from(decisions);
        while let Some(decision) = decisions.pop_front() {
            let (id, grant) = match decision {
                ArbiterDecision::Run(id) => (id, Grant::Run(self.permit(id))),
                ArbiterDecision::Drop(id, why) => (id, Grant::Rejected(why)),
                ArbiterDecision::Deliver(id) => match result {
                    Some(result) => (id, Grant::Coalesced(result.clone())),
                    None => continue,
                },
            };
            let untaken = match state.waiting.remove(&id) {
                Some(sender) => sender.send(grant).err(),
                None => Some(grant),
            };
            if let Some(Grant::Run(mut permit)) = untaken {
                permit.over = true;
                decisions.extend(state.arbiter.abandoned(Instant::now(), id));
            }
        }
    }

    fn permit(self: &Arc<Self>, id: u64) -> RunPermit {
        RunPermit { queue: Arc::clone(self), id, claim: None, over: false }
    }

    /// Returns once the lock is free.
    pub(crate) fn check_responsive(&self) {
        drop(self.state());
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }
}

impl QueuedRequest {
    /// Waits for the grant. May be called again after the future was dropped.
    pub(crate) async fn grant(&mut self) -> Grant<RunPermit> {
        let grant = (&mut self.grant).await.unwrap_or(Grant::Rejected(Rejection::DeadlinePassed));
        self.over = true;
        grant
    }

    /// Ends the request before its grant.
    pub(crate) fn withdraw(mut self, why: Rejection) {
        self.give_up(why);
    }

    fn give_up(&mut self, why: Rejection) {
        if self.over {
            return;
        }
        self.over = true;
        // Under one lock: gone from the waiting requests and still in the arbiter, it could get a grant that
        // nobody takes.
        let mut state = self.queue.state();
        state.waiting.remove(&self.id);
        let decisions = state.arbiter.withdraw(Instant::now(), self.id, why);
        self.queue.carry_out(&mut state, None, decisions);
        drop(state);
        self.queue.changed.notify_one();
        // The grant may have come before: then the permit that came with it reports.
        self.grant.close();
        drop(self.grant.try_recv());
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        self.give_up(Rejection::HungUp);
    }
}

impl RunPermit {
    /// Waits for the permission of the other hosts. Their answer may be the result of the same work.
    ///
    /// Dropping the future ends the request, and nothing was done.
    pub(crate) async fn claimed(
        mut self,
        hosts: &dyn ClusterPort,
        request: &ArbiterRequest,
    ) -> Grant<RunPermit> {
        match hosts.claim(request).await {
            Grant::Run(claim) => {
                self.claim = Some(claim);
                Grant::Run(self)
            }
            Grant::Coalesced(result) => {
                // Requests of this host that are coalesced with this one get the same result.
                self.finished(result.response, result.reason.clone());
                Grant::Coalesced(result)
            }
            Grant::Rejected(why) => Grant::Rejected(why),
        }
    }

    /// Reports that the client has proved itself and the action is about to begin. An error says that the
    /// grant no longer holds: then the action must not begin.
    pub(crate) fn proved(&self) -> Result<(), Rejection> {
        self.queue.report(None, |it| it.proved(Instant::now(), self.id));
        self.claim.as_ref().map_or(Ok(()), |it| it.proved())
    }

    /// Reports that the client let its turn pass without a proof. The request is over, and nothing was done.
    pub(crate) fn wasted(self) {
        self.queue.report(None, |it| it.wasted(Instant::now(), self.id));
    }

    /// Returns whether a request that waits for its turn is to take the same target down.
    pub(crate) fn has_rival(&self) -> bool {
        self.queue.state().arbiter.has_rival(self.id)
    }

    /// Reports that a status check after the action, which began at this moment, showed the target off, and
    /// whether it may go off once more by another order.
    pub(crate) fn seen_off(&self, since: Instant, may_come_again: bool) {
        // Other hosts first: it takes longer.
        if let Some(claim) = &self.claim {
            claim.seen_off(may_come_again);
        }
        self.queue.report(None, |it| {
            if may_come_again {
                it.may_come_again(self.id);
            }
            it.seen_off(Instant::now(), since, self.id)
        });
    }

    /// Reports that the client has its answer, but that a part of the work may still take effect.
    pub(crate) fn answered(
        self,
        effect: LateEffect,
        response: Response,
        reason: Option<String>,
    ) -> HeldPermit {
        let held = HeldPermit { permit: self, response, reason };
        held.report(effect);
        held
    }

    /// Reports that the action is over and can take no effect any more.
    pub(crate) fn finished(mut self, response: Response, reason: Option<String>) {
        self.over = true;
        if let Some(claim) = self.claim.take() {
            claim.finished(response, reason.as_deref());
        }
        let result = SharedResult { response, reason, by: format!("request {}", self.id) };
        self.queue.report(Some(&result), |it| it.finished(Instant::now(), self.id));
    }
}

impl HeldPermit {
    /// Reports that nothing but this may still take effect.
    pub(crate) fn may_still(&self, effect: LateEffect) {
        self.report(effect);
    }

    /// Reports that a look which began at this moment showed the target off.
    pub(crate) fn seen_off(&self, since: Instant) {
        self.permit.seen_off(since, false);
    }

    /// Reports that nothing of the work can take effect any more.
    pub(crate) fn finished(self) {
        self.permit.finished(self.response, self.reason);
    }

    fn report(&self, effect: LateEffect) {
        let Self { permit, response, reason } = self;
        if let Some(claim) = &permit.claim {
            claim.answered(effect, *response, reason.as_deref());
        }
        let (by, is_success) = (format!("request {}", permit.id), *response == Response::Success);
        let result = SharedResult { response: *response, reason: reason.clone(), by };
        let answered = |it: &mut Arbiter| it.answered(Instant::now(), permit.id, is_success, effect);
        permit.queue.report(Some(&result), answered);
    }
}

impl Drop for RunPermit {
    fn drop(&mut self) {
        if !self.over {
            self.queue.report(None, |it| it.abandoned(Instant::now(), self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::time::Duration;

    use super::*;
    use crate::service::cluster_port::ClusterGrant;
    use fence_core::arbiter::{ArbitratedAction, RequestSource};
    use fence_core::domain::TargetKind;

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn request(id: u64, work: ArbitratedAction, source: &str) -> ArbiterRequest {
        let arrived = Instant::now();
        let deadline = arrived + Duration::from_secs(30);
        ArbiterRequest {
            id,
            work,
            name: None,
            source: RequestSource::Known(source.into()),
            peer: None,
            sender: None,
            by: TargetKind::Name,
            arrived,
            deadline,
        }
    }

    fn off(id: u64, target: &str, source: &str) -> ArbiterRequest {
        request(id, ArbitratedAction::Off(target.into()), source)
    }

    #[tokio::test]
    async fn of_two_that_shoot_each_other_the_second_never_runs() {
        let queue = Arc::new(GrantQueue::default());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let mut second = queue.submit(off(2, "a", "b")).unwrap();
        let Grant::Run(permit) = first.grant().await else { panic!("not run") };
        permit.seen_off(Instant::now(), false);
        assert!(matches!(second.grant().await, Grant::Rejected(Rejection::SourceFenced)));
        permit.finished(Response::Success, None);
    }

    #[tokio::test]
    async fn one_that_gives_up_lets_the_next_run() {
        let queue = Arc::new(GrantQueue::default());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let second = queue.submit(off(2, "a", "b")).unwrap();
        let mut third = queue.submit(off(3, "a", "c")).unwrap();
        assert_eq!(third.coalesced_with, Some(2));
        drop(second);
        let Grant::Run(permit) = first.grant().await else { panic!("not run") };
        // Its proof failed.
        drop(permit);
        let Grant::Run(permit) = third.grant().await else { panic!("not run") };
        permit.finished(Response::Success, None);
    }

    #[tokio::test]
    async fn a_coalesced_request_gets_the_same_result() {
        let queue = Arc::new(GrantQueue::default());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let mut second = queue.submit(off(2, "b", "c")).unwrap();
        let Grant::Run(permit) = first.grant().await else { panic!("not run") };
        permit.seen_off(Instant::now(), false);
        permit.finished(Response::Failure, Some("why".into()));
        let Grant::Coalesced(result) = second.grant().await else { panic!("not coalesced") };
        assert_eq!(
            result,
            SharedResult { response: Response::Failure, reason: Some("why".into()), by: "request 1".into() }
        );
    }

    #[tokio::test]
    async fn what_may_only_go_off_late_holds_up_no_other_off_of_it() {
        let queue = Arc::new(GrantQueue::default());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let mut joined = queue.submit(off(2, "b", "c")).unwrap();
        let Grant::Run(permit) = first.grant().await else { panic!("not run") };
        let reason = Some("its agent was killed".into());
        let held = permit.answered(LateEffect::PowerOff, Response::Failure, reason);
        let Grant::Run(second) = joined.grant().await else { panic!("not run") };
        // It may go down at any moment, so it must not take another one down.
        let mut shot = std::pin::pin!(queue.submit(off(3, "a", "b")).unwrap());
        let mut on = std::pin::pin!(queue.submit(request(4, ArbitratedAction::On("b".into()), "a")).unwrap());
        second.finished(Response::Failure, None);
        let reboot = queue.submit(request(5, ArbitratedAction::Reboot("b".into()), "c")).unwrap();
        drop(reboot);
        assert!(at_once(std::pin::pin!(shot.grant())).await.is_none());
        assert!(at_once(std::pin::pin!(on.grant())).await.is_none());
        held.finished();
        assert!(matches!(shot.grant().await, Grant::Run(_)));
        assert!(matches!(on.grant().await, Grant::Run(_)));
    }

    /// Returns the permit of a request that has its turn here and at the other hosts.
    async fn claimed(queue: &Arc<GrantQueue>, hosts: &OtherHosts, request: &ArbiterRequest) -> RunPermit {
        let Grant::Run(permit) = queue.submit(request.clone()).unwrap().grant().await else {
            panic!("not run")
        };
        let (grant, ()) = tokio::join!(permit.claimed(hosts, request), async {
            lock(&hosts.asked).remove(0).send(hosts.yes()).unwrap();
        });
        let Grant::Run(permit) = grant else { panic!("not run") };
        permit
    }

    #[tokio::test]
    async fn the_failure_of_work_that_is_over_is_given_to_none() {
        let (queue, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let permit = claimed(&queue, &hosts, &request).await;
        // A call hangs in the hypervisor.
        let held = permit.answered(LateEffect::Any, Response::Failure, Some("no connection".into()));
        let mut again = std::pin::pin!(queue.submit(off(2, "b", "a")).unwrap());
        assert_eq!(again.coalesced_with, None);
        assert!(at_once(std::pin::pin!(again.grant())).await.is_none());
        held.may_still(LateEffect::PowerOff);
        assert!(matches!(again.grant().await, Grant::Run(_)));
        held.finished();
        assert_eq!(
            hosts.heard(),
            [
                "answered, may do all, failure",
                "answered, may go off, failure",
                "failure Some(\"no connection\")",
                "dropped"
            ]
        );
    }

    #[tokio::test]
    async fn what_may_go_off_once_more_takes_nothing_down_though_it_was_seen_off() {
        let (queue, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let permit = claimed(&queue, &hosts, &request).await;
        permit.seen_off(Instant::now(), true);
        // It was started again.
        let mut back = std::pin::pin!(queue.submit(off(2, "a", "b")).unwrap());
        assert!(at_once(std::pin::pin!(back.grant())).await.is_none());
        let held = permit.answered(LateEffect::PowerOff, Response::Success, None);
        assert!(at_once(std::pin::pin!(back.grant())).await.is_none());
        held.finished();
        assert!(matches!(back.grant().await, Grant::Run(_)));
        assert_eq!(
            hosts.heard(),
            ["seen off, may come again", "answered, may go off, success", "success None", "dropped"]
        );
    }

    #[tokio::test]
    async fn an_order_of_an_earlier_daemon_holds_up_what_conflicts_here_and_at_other_hosts() {
        let (queue, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let left = queue.install_late(off(1, "b", "a"), Some(&hosts));
        let mut again = queue.submit(off(2, "b", "a")).unwrap();
        assert!(matches!(again.grant().await, Grant::Run(_)));
        let mut back = std::pin::pin!(queue.submit(off(3, "a", "b")).unwrap());
        assert!(at_once(std::pin::pin!(back.grant())).await.is_none());
        assert!(hosts.heard().is_empty());
        left.finished(Response::Failure, None);
        assert_eq!(hosts.heard(), ["failure None", "dropped"]);
        assert!(matches!(back.grant().await, Grant::Run(_)));
    }

    /// Other hosts whose answers the test gives, and the reports that reach them.
    #[derive(Default)]
    struct OtherHosts {
        asked: Mutex<Vec<oneshot::Sender<ClusterGrant>>>,
        heard: Arc<Mutex<Vec<String>>>,
    }

    impl ClusterPort for OtherHosts {
        fn claim<'a>(
            &'a self,
            _: &'a ArbiterRequest,
        ) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>> {
            let (answer, answered) = oneshot::channel();
            lock(&self.asked).push(answer);
            Box::pin(async move { answered.await.unwrap() })
        }

        fn restore(&self, _: &ArbiterRequest) -> Box<dyn ClusterPermit> {
            Box::new(Granted(Arc::clone(&self.heard)))
        }
    }

    impl OtherHosts {
        fn yes(&self) -> ClusterGrant {
            Grant::Run(Box::new(Granted(Arc::clone(&self.heard))))
        }

        fn heard(&self) -> Vec<String> {
            lock(&self.heard).clone()
        }
    }

    #[derive(Debug)]
    struct Granted(Arc<Mutex<Vec<String>>>);

    impl ClusterPermit for Granted {
        fn proved(&self) -> Result<(), Rejection> {
            Err(Rejection::TurnLost)
        }

        fn seen_off(&self, may_come_again: bool) {
            lock(&self.0).push(if may_come_again { "seen off, may come again" } else { "seen off" }.into());
        }

        fn answered(&self, effect: LateEffect, response: Response, _: Option<&str>) {
            let may = match effect {
                LateEffect::PowerOff => "may go off",
                LateEffect::HangingOff => "may go off at any time",
                LateEffect::Any => "may do all",
            };
            lock(&self.0).push(format!("answered, {may}, {response}"));
        }

        fn finished(self: Box<Self>, response: Response, reason: Option<&str>) {
            lock(&self.0).push(format!("{response} {reason:?}"));
        }
    }

    impl Drop for Granted {
        fn drop(&mut self) {
            lock(&self.0).push("dropped".into());
        }
    }

    #[tokio::test]
    async fn other_hosts_hear_each_step_of_a_request() {
        let (queue, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let Grant::Run(permit) = queue.submit(request.clone()).unwrap().grant().await else {
            panic!("not run")
        };
        assert_eq!(permit.proved(), Ok(()));
        let (grant, ()) = tokio::join!(permit.claimed(&hosts, &request), async {
            lock(&hosts.asked).remove(0).send(hosts.yes()).unwrap();
        });
        let Grant::Run(permit) = grant else { panic!("not run") };
        assert_eq!(permit.proved(), Err(Rejection::TurnLost));
        permit.seen_off(Instant::now(), false);
        permit.finished(Response::Failure, Some("why".into()));
        assert_eq!(hosts.heard(), ["seen off", "failure Some(\"why\")", "dropped"]);
    }

    #[tokio::test]
    async fn a_result_of_another_host_reaches_all_coalesced_requests() {
        let (queue, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let Grant::Run(permit) = queue.submit(request.clone()).unwrap().grant().await else {
            panic!("not run")
        };
        let mut second = queue.submit(off(2, "b", "c")).unwrap();
        let theirs = SharedResult { response: Response::Success, reason: None, by: "one of node 2".into() };
        let (grant, ()) = tokio::join!(permit.claimed(&hosts, &request), async {
            lock(&hosts.asked).remove(0).send(Grant::Coalesced(theirs.clone())).unwrap();
        });
        assert!(matches!(grant, Grant::Coalesced(result) if result == theirs));
        let Grant::Coalesced(result) = second.grant().await else { panic!("not coalesced") };
        assert_eq!((result.response, result.by.as_str()), (Response::Success, "request 1"));
    }

    #[tokio::test]
    async fn after_a_rejection_by_other_hosts_the_next_request_goes_on() {
        let (queue, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let Grant::Run(permit) = queue.submit(request.clone()).unwrap().grant().await else {
            panic!("not run")
        };
        let mut second = queue.submit(off(2, "b", "c")).unwrap();
        let mut third = queue.submit(off(3, "b", "c")).unwrap();
        let (grant, ()) = tokio::join!(permit.claimed(&hosts, &request), async {
            lock(&hosts.asked).remove(0).send(Grant::Rejected(Rejection::SourceFenced)).unwrap();
        });
        assert!(matches!(grant, Grant::Rejected(Rejection::SourceFenced)));
        let Grant::Run(permit) = second.grant().await else { panic!("not run") };
        // Its client hangs up while other hosts are asked.
        let request = off(2, "b", "c");
        {
            let mut claimed = std::pin::pin!(permit.claimed(&hosts, &request));
            assert!(at_once(claimed.as_mut()).await.is_none());
        }
        assert!(matches!(third.grant().await, Grant::Run(_)));
    }

    /// Returns the value of a future that is ready at its first poll.
    async fn at_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match future.as_mut().poll(context) {
                std::task::Poll::Ready(it) => Some(it),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_victim_of_another_host_asks_no_more() {
        let queue = Arc::new(GrantQueue::default());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let mut second = queue.submit(off(2, "b", "c")).unwrap();
        let mut third = queue.submit(request(3, ArbitratedAction::On("b".into()), "c")).unwrap();
        let late = off(4, "d", "c");
        let Grant::Run(permit) = first.grant().await else { panic!("not run") };
        queue.victim("c");
        assert!(matches!(second.grant().await, Grant::Rejected(Rejection::SourceFenced)));
        assert!(matches!(third.grant().await, Grant::Rejected(Rejection::SourceFenced)));
        assert_eq!(queue.submit(late).unwrap_err(), Rejection::SourceFenced);
        drop(permit);
        // It was started again, and asks anew.
        let mut anew = queue.submit(off(5, "b", "c")).unwrap();
        assert!(matches!(anew.grant().await, Grant::Run(_)));
    }

    #[tokio::test]
    async fn a_request_whose_deadline_passes_gets_no_grant() {
        let queue = Arc::new(GrantQueue::default());
        let keeper = tokio::spawn(Arc::clone(&queue).run_deadlines());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let Grant::Run(_permit) = first.grant().await else { panic!("not run") };
        let mut late = request(2, ArbitratedAction::On("b".into()), "c");
        // Far enough off that it has not passed when it is submitted.
        late.deadline = Instant::now() + Duration::from_secs(2);
        let mut second = queue.submit(late).unwrap();
        assert!(matches!(second.grant().await, Grant::Rejected(Rejection::DeadlinePassed)));
        keeper.abort();
    }

    #[tokio::test]
    async fn a_grant_that_nobody_takes_is_given_back() {
        let queue = Arc::new(GrantQueue::default());
        let mut first = queue.submit(off(1, "b", "a")).unwrap();
        let second = queue.submit(off(2, "a", "b")).unwrap();
        let mut third = queue.submit(off(3, "b", "a")).unwrap();
        let Grant::Run(permit) = first.grant().await else { panic!("not run") };
        permit.finished(Response::Failure, None);
        // The second has its grant now and is dropped without taking it.
        drop(second);
        assert!(matches!(third.grant().await, Grant::Coalesced(_)));
    }

    /// Requests on several threads that are dropped, fail or succeed at any moment: all of them end, and
    /// nothing is left of them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn requests_on_many_threads_all_end() {
        for round in 0..40_u64 {
            let queue = Arc::new(GrantQueue::default());
            let mut tasks = tokio::task::JoinSet::new();
            for id in 0..60_u64 {
                let queue = Arc::clone(&queue);
                let dice = (round * 60 + id).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let (target, source) = (format!("d{}", dice % 5), format!("d{}", dice / 5 % 5));
                let work = match dice / 25 % 4 {
                    0 => ArbitratedAction::On(target),
                    1 => ArbitratedAction::Reboot(target),
                    2 => ArbitratedAction::Look,
                    _ => ArbitratedAction::Off(target),
                };
                tasks.spawn(async move {
                    let Ok(mut waiting) = queue.submit(request(id, work, &source)) else { return };
                    tokio::task::yield_now().await;
                    if dice % 7 == 0 {
                        return;
                    }
                    // A client that hangs up while it waits.
                    let grant = if dice % 11 == 0 {
                        tokio::time::timeout(Duration::from_micros(dice % 300), waiting.grant()).await
                    } else {
                        Ok(waiting.grant().await)
                    };
                    let Ok(Grant::Run(permit)) = grant else { return };
                    tokio::task::yield_now().await;
                    if dice % 5 != 0 {
                        permit.seen_off(Instant::now(), false);
                        tokio::task::yield_now().await;
                        permit.finished(Response::Success, None);
                    }
                });
            }
            let all = async { while tasks.join_next().await.is_some() {} };
            tokio::time::timeout(PATIENCE, all).await.expect("a request never ended");
            // A task of its own gives back the grant of a request that was gone.
            tokio::time::timeout(PATIENCE, async {
                while !queue.state().waiting.is_empty() || queue.state().arbiter.next_deadline().is_some() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("something was left behind");
            // Nothing is in flight any more either: a request that comes now runs at once.
            for domain in 0..5 {
                let mut last = queue.submit(off(1000 + domain, &format!("d{domain}"), "elsewhere")).unwrap();
                let grant = tokio::time::timeout(PATIENCE, last.grant()).await;
                assert!(matches!(grant, Ok(Grant::Run(_))), "round {round}, domain {domain}: {grant:?}");
            }
        }
    }
}
