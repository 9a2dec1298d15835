// SPDX-License-Identifier: GPL-2.0-or-later
//! The arbiter among tasks: a request asks for its turn, waits for it, and tells how far it is.
//!
//! Owns the one [`Arbiter`] and who waits for which of its decisions. The lock is held only for the arbiter's own
//! arithmetic, never across a wait.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use fence_wire::Response;
use tokio::sync::{Notify, oneshot};

use crate::util::locks::{Mutex, MutexGuard, lock};
use fence_core::arbiter::{
    Arbiter, ArbiterDecision, ArbiterRequest, Grant, Rejection, SharedResult, SubmitResult,
};

/// See the module's head.
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

/// A request that waits for its turn. Dropping it withdraws the request.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    turns: Arc<GrantQueue>,
    id: u64,
    turn: oneshot::Receiver<Grant<RunPermit>>,
    /// The request that does the same work, where there is one.
    pub(crate) joined: Option<u64>,
    over: bool,
}

/// A request in flight. Dropping it without [`Running::finished`] says that nothing was done.
#[derive(Debug)]
pub(crate) struct RunPermit {
    turns: Arc<GrantQueue>,
    id: u64,
    claim: Option<Box<dyn ClusterPermit>>,
    over: bool,
}

/// What other hosts have a say in: whether a request that has its turn among those of this host may run.
pub(crate) trait ClusterPort: Send + Sync {
    /// Waits until it may, or must not. Dropping the future withdraws the claim. It knows no deadline: who waits does.
    fn claim<'a>(
        &'a self,
        request: &'a ArbiterRequest,
    ) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>>;
}

/// Result of waiting for the permission of all hosts.
pub(crate) type ClusterGrant = Grant<Box<dyn ClusterPermit>>;

/// A claim in flight. Dropping it without [`Claim::finished`] says that nothing was done.
pub(crate) trait ClusterPermit: fmt::Debug + Send + Sync {
    /// The client has proved itself, and the work is about to begin. It must not where this says why not: what was
    /// decided holds no more.
    fn proved(&self) -> Result<(), Rejection>;

    /// A look after the action showed the target off.
    fn seen_off(&self);

    /// The work is over, and nothing of it can take effect any more.
    fn finished(self: Box<Self>, response: Response, reason: Option<&str>);
}

impl GrantQueue {
    /// Takes a request in, or says why not.
    pub(crate) fn submit(self: &Arc<Self>, request: ArbiterRequest) -> Result<QueuedRequest, Rejection> {
        let id = request.id;
        let (teller, turn) = oneshot::channel();
        let mut state = self.state();
        let verdict = state.arbiter.submit(Instant::now(), request)?;
        let mut joined = None;
        match verdict {
            // Its other end is here, so it can't fail.
            SubmitResult::Run => drop(teller.send(Grant::Run(self.running(id)))),
            SubmitResult::Wait => drop(state.waiting.insert(id, teller)),
            SubmitResult::Joined(leader) => {
                joined = Some(leader);
                state.waiting.insert(id, teller);
            }
        }
        drop(state);
        self.changed.notify_one();
        Ok(QueuedRequest { turns: Arc::clone(self), id, turn, joined, over: false })
    }

    /// Another host saw this domain off just now: what came from it before does not run.
    pub(crate) fn victim(self: &Arc<Self>, uuid: &str) {
        self.report(None, |it| it.victim(Instant::now(), uuid));
    }

    /// How many requests are in flight, and how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        let (in_flight, waiting) = state.arbiter.counts();
        debug_assert_eq!(
            waiting,
            state.waiting.len(),
            "somebody waits for nothing, or nobody waits for a turn"
        );
        (in_flight, waiting)
    }

    /// Ends what waits too long. Runs for ever, as a task of its own.
    pub(crate) async fn keep_time(self: Arc<Self>) {
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

    /// Time has passed.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant) {
        self.report(None, |it| it.tick(now));
    }

    /// Tells the arbiter something and carries out what it decides. `told` is for those that joined.
    fn report(
        self: &Arc<Self>,
        told: Option<&SharedResult>,
        event: impl FnOnce(&mut Arbiter) -> Vec<ArbiterDecision>,
    ) {
        let mut state = self.state();
        let decisions = event(&mut state.arbiter);
        self.carry_out(&mut state, told, decisions);
        drop(state);
        self.changed.notify_one();
    }

    /// Hands decisions to those that wait for them.
    ///
    /// A turn that nobody is there to take is reported here and now. It must not be left to the value's drop: that
    /// locks what is locked already.
    fn carry_out(
        self: &Arc<Self>,
        state: &mut QueueState,
        told: Option<&SharedResult>,
        decisions: Vec<ArbiterDecision>,
    ) {
        let mut decisions = VecDeque::from(decisions);
        while let Some(decision) = decisions.pop_front() {
            let (id, turn) = match decision {
                ArbiterDecision::Run(id) => (id, Grant::Run(self.running(id))),
                ArbiterDecision::Drop(id, why) => (id, Grant::Rejected(why)),
                ArbiterDecision::Deliver(id) => match told {
                    Some(told) => (id, Grant::Coalesced(told.clone())),
                    None => continue,
                },
            };
            let untaken = match state.waiting.remove(&id) {
                Some(teller) => teller.send(turn).err(),
                None => Some(turn),
            };
            if let Some(Grant::Run(mut running)) = untaken {
                running.over = true;
                decisions.extend(state.arbiter.abandoned(Instant::now(), id));
            }
        }
    }

    fn running(self: &Arc<Self>, id: u64) -> RunPermit {
        RunPermit { turns: Arc::clone(self), id, claim: None, over: false }
    }

    /// Comes back when nobody keeps the turns locked.
    pub(crate) fn touch(&self) {
        drop(self.state());
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }
}

impl QueuedRequest {
    /// Waits for the turn. May be called again after it was cancelled.
    pub(crate) async fn turn(&mut self) -> Grant<RunPermit> {
        let turn = (&mut self.turn).await.unwrap_or(Grant::Rejected(Rejection::DeadlinePassed));
        self.over = true;
        turn
    }

    /// It ends without its turn.
    pub(crate) fn withdraw(mut self, why: Rejection) {
        self.give_up(why);
    }

    fn give_up(&mut self, why: Rejection) {
        if self.over {
            return;
        }
        self.over = true;
        // At once, in one go: were it gone from those that wait and still in the arbiter, its turn could come with
        // nobody to take it.
        let mut state = self.turns.state();
        state.waiting.remove(&self.id);
        let decisions = state.arbiter.withdraw(Instant::now(), self.id, why);
        self.turns.carry_out(&mut state, None, decisions);
        drop(state);
        self.turns.changed.notify_one();
        // Its turn may have come before: then the value that came with it reports.
        self.turn.close();
        drop(self.turn.try_recv());
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        self.give_up(Rejection::HungUp);
    }
}

impl RunPermit {
    /// It waits until other hosts have no objection either. Their answer may be that it is over.
    ///
    /// Cancelled, it ends, and nothing was done.
    pub(crate) async fn claimed(
        mut self,
        claims: &dyn ClusterPort,
        request: &ArbiterRequest,
    ) -> Grant<RunPermit> {
        match claims.claim(request).await {
            Grant::Run(claim) => {
                self.claim = Some(claim);
                Grant::Run(self)
            }
            Grant::Coalesced(told) => {
                // Those of this host that joined it are told the same.
                self.finished(told.response, told.reason.clone());
                Grant::Coalesced(told)
            }
            Grant::Rejected(why) => Grant::Rejected(why),
        }
    }

    /// The client has proved itself, and the work is about to begin; not so if this says why.
    pub(crate) fn proved(&self) -> Result<(), Rejection> {
        self.claim.as_ref().map_or(Ok(()), |it| it.proved())
    }

    /// A look after the action showed the target off.
    pub(crate) fn seen_off(&self) {
        // Other hosts first: it takes longer.
        if let Some(claim) = &self.claim {
            claim.seen_off();
        }
        self.turns.report(None, |it| it.seen_off(Instant::now(), self.id));
    }

    /// The work is over, and nothing of it can take effect any more.
    pub(crate) fn finished(mut self, response: Response, reason: Option<String>) {
        self.over = true;
        if let Some(claim) = self.claim.take() {
            claim.finished(response, reason.as_deref());
        }
        let told = SharedResult { response, reason, by: format!("request {}", self.id) };
        self.turns.report(Some(&told), |it| it.finished(Instant::now(), self.id));
    }
}

impl Drop for RunPermit {
    fn drop(&mut self) {
        if !self.over {
            self.turns.report(None, |it| it.abandoned(Instant::now(), self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use fence_core::arbiter::{ArbitratedAction, RequestSource};

    /// Far longer than anything here takes; only a failure waits for it.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn request(id: u64, work: ArbitratedAction, source: &str) -> ArbiterRequest {
        let arrived = Instant::now();
        let deadline = arrived + Duration::from_secs(30);
        ArbiterRequest {
            id,
            work,
            source: RequestSource::Known(source.into()),
            peer: None,
            arrived,
            deadline,
        }
    }

    fn off(id: u64, target: &str, source: &str) -> ArbiterRequest {
        request(id, ArbitratedAction::Off(target.into()), source)
    }

    #[tokio::test]
    async fn of_two_that_shoot_each_other_the_second_never_runs() {
        let turns = Arc::new(GrantQueue::default());
        let mut first = turns.submit(off(1, "b", "a")).unwrap();
        let mut second = turns.submit(off(2, "a", "b")).unwrap();
        let Grant::Run(running) = first.turn().await else { panic!("not run") };
        running.seen_off();
        assert!(matches!(second.turn().await, Grant::Rejected(Rejection::SourceFenced)));
        running.finished(Response::Success, None);
    }

    #[tokio::test]
    async fn one_that_gives_up_lets_the_next_run() {
        let turns = Arc::new(GrantQueue::default());
        let mut first = turns.submit(off(1, "b", "a")).unwrap();
        let second = turns.submit(off(2, "a", "b")).unwrap();
        let mut third = turns.submit(off(3, "a", "c")).unwrap();
        assert_eq!(third.joined, Some(2));
        drop(second);
        let Grant::Run(running) = first.turn().await else { panic!("not run") };
        // Its proof failed.
        drop(running);
        let Grant::Run(running) = third.turn().await else { panic!("not run") };
        running.finished(Response::Success, None);
    }

    #[tokio::test]
    async fn who_joined_is_told_the_same() {
        let turns = Arc::new(GrantQueue::default());
        let mut first = turns.submit(off(1, "b", "a")).unwrap();
        let mut second = turns.submit(off(2, "b", "c")).unwrap();
        let Grant::Run(running) = first.turn().await else { panic!("not run") };
        running.seen_off();
        running.finished(Response::Failure, Some("why".into()));
        let Grant::Coalesced(told) = second.turn().await else { panic!("not told") };
        assert_eq!(
            told,
            SharedResult { response: Response::Failure, reason: Some("why".into()), by: "request 1".into() }
        );
    }

    /// Other hosts, whose answers are given by hand, and what they are told.
    #[derive(Default)]
    struct OtherHosts {
        asked: Mutex<Vec<oneshot::Sender<ClusterGrant>>>,
        told: Arc<Mutex<Vec<String>>>,
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
    }

    impl OtherHosts {
        fn yes(&self) -> ClusterGrant {
            Grant::Run(Box::new(Granted(Arc::clone(&self.told))))
        }

        fn told(&self) -> Vec<String> {
            lock(&self.told).clone()
        }
    }

    #[derive(Debug)]
    struct Granted(Arc<Mutex<Vec<String>>>);

    impl ClusterPermit for Granted {
        fn proved(&self) -> Result<(), Rejection> {
            Err(Rejection::TurnLost)
        }

        fn seen_off(&self) {
            lock(&self.0).push("seen off".into());
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
    async fn other_hosts_are_told_what_this_one_is() {
        let (turns, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let Grant::Run(running) = turns.submit(request.clone()).unwrap().turn().await else {
            panic!("not run")
        };
        assert_eq!(running.proved(), Ok(()));
        let (turn, ()) = tokio::join!(running.claimed(&hosts, &request), async {
            lock(&hosts.asked).remove(0).send(hosts.yes()).unwrap();
        });
        let Grant::Run(running) = turn else { panic!("not run") };
        assert_eq!(running.proved(), Err(Rejection::TurnLost));
        running.seen_off();
        running.finished(Response::Failure, Some("why".into()));
        assert_eq!(hosts.told(), ["seen off", "failure Some(\"why\")", "dropped"]);
    }

    #[tokio::test]
    async fn what_another_host_did_is_told_to_all_that_joined_here() {
        let (turns, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let Grant::Run(running) = turns.submit(request.clone()).unwrap().turn().await else {
            panic!("not run")
        };
        let mut second = turns.submit(off(2, "b", "c")).unwrap();
        let theirs = SharedResult { response: Response::Success, reason: None, by: "one of node 2".into() };
        let (turn, ()) = tokio::join!(running.claimed(&hosts, &request), async {
            lock(&hosts.asked).remove(0).send(Grant::Coalesced(theirs.clone())).unwrap();
        });
        assert!(matches!(turn, Grant::Coalesced(told) if told == theirs));
        let Grant::Coalesced(told) = second.turn().await else { panic!("not told") };
        assert_eq!((told.response, told.by.as_str()), (Response::Success, "request 1"));
    }

    #[tokio::test]
    async fn without_other_hosts_leave_the_next_goes_on() {
        let (turns, hosts) = (Arc::new(GrantQueue::default()), OtherHosts::default());
        let request = off(1, "b", "a");
        let Grant::Run(running) = turns.submit(request.clone()).unwrap().turn().await else {
            panic!("not run")
        };
        let mut second = turns.submit(off(2, "b", "c")).unwrap();
        let mut third = turns.submit(off(3, "b", "c")).unwrap();
        let (turn, ()) = tokio::join!(running.claimed(&hosts, &request), async {
            lock(&hosts.asked).remove(0).send(Grant::Rejected(Rejection::SourceFenced)).unwrap();
        });
        assert!(matches!(turn, Grant::Rejected(Rejection::SourceFenced)));
        let Grant::Run(running) = second.turn().await else { panic!("not run") };
        // Its client hangs up while other hosts are asked.
        let request = off(2, "b", "c");
        {
            let mut claimed = std::pin::pin!(running.claimed(&hosts, &request));
            assert!(at_once(claimed.as_mut()).await.is_none());
        }
        assert!(matches!(third.turn().await, Grant::Run(_)));
    }

    /// What the future gives at once.
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
        let turns = Arc::new(GrantQueue::default());
        let mut first = turns.submit(off(1, "b", "a")).unwrap();
        let mut second = turns.submit(off(2, "b", "c")).unwrap();
        let mut third = turns.submit(request(3, ArbitratedAction::On("b".into()), "c")).unwrap();
        let late = off(4, "d", "c");
        let Grant::Run(running) = first.turn().await else { panic!("not run") };
        turns.victim("c");
        assert!(matches!(second.turn().await, Grant::Rejected(Rejection::SourceFenced)));
        assert!(matches!(third.turn().await, Grant::Rejected(Rejection::SourceFenced)));
        assert_eq!(turns.submit(late).unwrap_err(), Rejection::SourceFenced);
        drop(running);
        // It was started again, and asks anew.
        let mut anew = turns.submit(off(5, "b", "c")).unwrap();
        assert!(matches!(anew.turn().await, Grant::Run(_)));
    }

    #[tokio::test]
    async fn a_turn_that_comes_too_late_does_not_come() {
        let turns = Arc::new(GrantQueue::default());
        let keeper = tokio::spawn(Arc::clone(&turns).keep_time());
        let mut first = turns.submit(off(1, "b", "a")).unwrap();
        let Grant::Run(_running) = first.turn().await else { panic!("not run") };
        let mut late = request(2, ArbitratedAction::On("b".into()), "c");
        // Far enough off that it has not passed when it is submitted.
        late.deadline = Instant::now() + Duration::from_secs(2);
        let mut second = turns.submit(late).unwrap();
        assert!(matches!(second.turn().await, Grant::Rejected(Rejection::DeadlinePassed)));
        keeper.abort();
    }

    #[tokio::test]
    async fn a_turn_that_nobody_takes_is_given_back() {
        let turns = Arc::new(GrantQueue::default());
        let mut first = turns.submit(off(1, "b", "a")).unwrap();
        let second = turns.submit(off(2, "a", "b")).unwrap();
        let mut third = turns.submit(off(3, "b", "a")).unwrap();
        let Grant::Run(running) = first.turn().await else { panic!("not run") };
        running.finished(Response::Failure, None);
        // The second has its turn now and is dropped without a look at it.
        drop(second);
        assert!(matches!(third.turn().await, Grant::Coalesced(_)));
    }

    /// Requests on several threads that are dropped, fail or succeed at any moment: all of them end, and nothing is
    /// left of them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whatever_threads_do_everything_ends() {
        for round in 0..40_u64 {
            let turns = Arc::new(GrantQueue::default());
            let mut tasks = tokio::task::JoinSet::new();
            for id in 0..60_u64 {
                let turns = Arc::clone(&turns);
                let dice = (round * 60 + id).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let (target, source) = (format!("d{}", dice % 5), format!("d{}", dice / 5 % 5));
                let work = match dice / 25 % 4 {
                    0 => ArbitratedAction::On(target),
                    1 => ArbitratedAction::Reboot(target),
                    2 => ArbitratedAction::Look,
                    _ => ArbitratedAction::Off(target),
                };
                tasks.spawn(async move {
                    let Ok(mut waiting) = turns.submit(request(id, work, &source)) else { return };
                    tokio::task::yield_now().await;
                    if dice % 7 == 0 {
                        return;
                    }
                    // A client that hangs up while it waits.
                    let turn = if dice % 11 == 0 {
                        tokio::time::timeout(Duration::from_micros(dice % 300), waiting.turn()).await
                    } else {
                        Ok(waiting.turn().await)
                    };
                    let Ok(Grant::Run(running)) = turn else { return };
                    tokio::task::yield_now().await;
                    if dice % 5 != 0 {
                        running.seen_off();
                        tokio::task::yield_now().await;
                        running.finished(Response::Success, None);
                    }
                });
            }
            let all = async { while tasks.join_next().await.is_some() {} };
            tokio::time::timeout(PATIENCE, all).await.expect("a request never ended");
            // What was given to one that had gone is given back by a task of its own.
            tokio::time::timeout(PATIENCE, async {
                while !turns.state().waiting.is_empty() || turns.state().arbiter.next_deadline().is_some() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("something was left behind");
            // Nothing is in flight any more either: whoever comes now runs at once.
            for domain in 0..5 {
                let mut last = turns.submit(off(1000 + domain, &format!("d{domain}"), "elsewhere")).unwrap();
                let turn = tokio::time::timeout(PATIENCE, last.turn()).await;
                assert!(matches!(turn, Ok(Grant::Run(_))), "round {round}, domain {domain}: {turn:?}");
            }
        }
    }
}
