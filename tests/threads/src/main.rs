// SPDX-License-Identifier: GPL-2.0-or-later
//! Searches the schedules of threads for one in which the daemon's grants go wrong:
//!
//!     fence-virt-threads SCHEDULES SEED
//!
//! Every schedule is a small scene drawn anew: two to four requests of two or three domains, each with a fate
//! of its own. At every lock that is taken or released the scheduler chooses the next thread. Half of the
//! schedules are random walks. Half are chosen by priorities that change a few times (PCT): that finds faults
//! that need few changes, but the right ones. Four things must hold in each schedule: no thread waits for
//! ever (shuttle reports a deadlock, and a thread that takes a lock twice), conflicting requests are never in
//! flight at once, every request ends, and nothing is left behind.
//!
//! The channels are those of `tokio`, as in the daemon: a call of one is one step here.

// The scenes use only a part of these modules.
#[allow(dead_code)]
#[path = "../../../crates/fence-virtd/src/service/cluster_port.rs"]
mod cluster_port;
#[allow(dead_code)]
#[path = "../../../crates/fence-virtd/src/service/turns.rs"]
mod turns;
mod util;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fence_wire::Response;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, future, thread};
use tokio::sync::oneshot;

use fence_core::arbiter::{
    ArbiterRequest, ArbitratedAction, Grant, LateEffect, PeerId, PossibleSources, Rejection, RequestSource,
};
use fence_core::domain::TargetKind;
use turns::{GrantQueue, RunPermit};

/// Changes of priority in one schedule of PCT.
const DEPTH: usize = 4;
/// Deadline of each request, which no scene reaches. Scenes with a late moment tick the queue beyond it.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Schedules that ran, for the report of a failure.
static RAN: AtomicU64 = AtomicU64::new(0);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|it| it.parse::<u64>().expect("a number"));
    let schedules = arguments.next().unwrap_or(20_000);
    let seed = arguments.next().filter(|it| *it != 0).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() ^ u64::from(now.subsec_nanos()) << 20
    });
    println!("threads: {schedules} schedules from seed {seed}");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("threads: wrong in schedule {} from seed {seed}", RAN.load(Ordering::Relaxed));
        hook(panic);
    }));
    let half = usize::try_from(schedules / 2).expect("fewer schedules");
    Runner::new(RandomScheduler::new_from_seed(seed, half), Config::new()).run(scene);
    Runner::new(PctScheduler::new_from_seed(seed, DEPTH, half), Config::new()).run(scene);
    println!("threads: {} schedules, nothing found", RAN.load(Ordering::Relaxed));
}

fn scene() {
    RAN.fetch_add(1, Ordering::Relaxed);
    if thread_rng().gen_ratio(1, 4) { fence_each_other() } else { anything() }
}

/// Two domains with known sources fence each other, and nothing fails: exactly one of them is seen off.
fn fence_each_other() {
    let stage = Stage::new();
    let shots = [("a", "b"), ("b", "a")].map(|(source, target)| Cast {
        source: RequestSource::Known(source.to_owned()),
        peer: None,
        work: work(thread_rng().gen_range(0..2), target),
        fate: Fate::Done,
    });
    let survivors = stage.play(shots.into(), false).into_iter().filter(|it| *it != End::SeenOff).count();
    assert_eq!(survivors, 1, "not one survivor");
}

/// Random requests with random fates.
fn anything() {
    let mut dice = thread_rng();
    let names = &["a", "b", "c"][..dice.gen_range(2..4)];
    let cast = (0..dice.gen_range(2..5)).map(|_| {
        let source = names[dice.gen_range(0..names.len())];
        Cast {
            source: match dice.gen_range(0..5) {
                0 => RequestSource::Unknown,
                1 => one_of(source, names[dice.gen_range(0..names.len())]),
                _ => RequestSource::Known(source.to_owned()),
            },
            peer: dice.gen_bool(0.5).then(|| PeerId(source.to_owned())),
            work: work(dice.gen_range(0..6), names[dice.gen_range(0..names.len())]),
            fate: match dice.gen_range(0..9) {
                0 => Fate::HangsUpAtOnce,
                1 | 2 => Fate::HangsUpWhileItWaits,
                3 => Fate::NeverAwaited,
                4 => Fate::Abandons,
                5 => Fate::Fails,
                6 => Fate::Hangs,
                _ => Fate::Done,
            },
        }
    });
    let cast = cast.collect();
    Stage::new().play(cast, dice.gen_bool(0.3));
}

/// Source that has a key of these two, one of which is listed by its name.
fn one_of(source: &str, other: &str) -> RequestSource {
    RequestSource::OneOf(Arc::new(PossibleSources::new([source.to_owned()], [name_of(other)])))
}

fn name_of(target: &str) -> String {
    format!("name of {target}")
}

fn work(kind: u32, target: &str) -> ArbitratedAction {
    let target = target.to_owned();
    match kind {
        0 | 2 | 3 => ArbitratedAction::Off(target),
        1 => ArbitratedAction::Reboot(target),
        4 => ArbitratedAction::On(target),
        _ => ArbitratedAction::Look,
    }
}

/// One request.
struct Cast {
    source: RequestSource,
    peer: Option<PeerId>,
    work: ArbitratedAction,
    fate: Fate,
}

/// Course of a request, as far as its client chooses it.
#[derive(Clone, Copy)]
enum Fate {
    /// The client leaves before the request has waited.
    HangsUpAtOnce,
    /// The client leaves at any moment before the grant.
    HangsUpWhileItWaits,
    /// The request is dropped after it was superseded.
    NeverAwaited,
    /// The client's proof fails.
    Abandons,
    /// The request runs, and the target is never seen off.
    Fails,
    /// The same, and a call that hangs may still carry all of it out.
    Hangs,
    /// The request runs to its end.
    Done,
}

/// End of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Left,
    NeverRan,
    Coalesced,
    NothingDone,
    Failed,
    SeenOff,
}

/// The queue of grants, and the requests in flight.
struct Stage {
    queue: Arc<GrantQueue>,
    /// Requests in flight by number. Not shuttle's mutex: these checks must not change the schedules.
    in_flight: Mutex<BTreeMap<u64, ArbiterRequest>>,
    /// Requests whose target was seen off and that have not finished yet, by number.
    seen_off: Mutex<BTreeMap<u64, ArbiterRequest>>,
    /// Requests whose client has its answer, in words as results name them.
    answered: Mutex<BTreeSet<String>>,
}

impl Stage {
    fn new() -> Arc<Self> {
        let (in_flight, seen_off, answered) = Default::default();
        Arc::new(Self { queue: Arc::default(), in_flight, seen_off, answered })
    }

    /// Runs each request on a thread of its own. With `late` a moment comes when all waiting requests are too
    /// late.
    fn play(self: &Arc<Self>, cast: Vec<Cast>, late: bool) -> Vec<End> {
        let now = Instant::now();
        let mut actors = Vec::new();
        let mut clients = Vec::new();
        for (id, Cast { source, peer, work, fate }) in (1..).zip(cast) {
            let (client, hung_up) = oneshot::channel::<()>();
            if matches!(fate, Fate::HangsUpWhileItWaits) {
                clients.push(thread::spawn(move || drop(client)));
            } else {
                // This client stays to the end: its hang-up must never be heard.
                clients.push(thread::spawn(move || std::mem::forget(client)));
            }
            let (by, arrived, deadline) = (TargetKind::Name, now, now + DEADLINE);
            let name = work.target().map(|it| name_of(it).as_str().into());
            let request =
                ArbiterRequest { id, work, name, source, peer, sender: None, by, arrived, deadline };
            let stage = Arc::clone(self);
            actors.push(thread::spawn(move || stage.act(request, fate, hung_up)));
        }
        if late {
            self.queue.tick(now + 2 * DEADLINE);
        }
        let ends = actors.into_iter().map(|it| it.join().expect("an actor fell")).collect();
        clients.into_iter().for_each(|it| it.join().expect("a client fell"));
        assert_eq!(self.queue.counts(), (0, 0), "something was left behind");
        ends
    }

    fn act(&self, request: ArbiterRequest, fate: Fate, hung_up: oneshot::Receiver<()>) -> End {
        let over = lock(&self.answered).clone();
        let mut queued = match self.queue.submit(request.clone()) {
            Ok(queued) => queued,
            Err(Rejection::SourceFenced) => return End::NeverRan,
            Err(why) => panic!("refused: {why}"),
        };
        let grant = match fate {
            Fate::HangsUpAtOnce => return End::Left,
            Fate::NeverAwaited => {
                queued.withdraw(Rejection::Superseded);
                return End::Left;
            }
            // The service waits in the same way.
            _ => future::block_on(async {
                tokio::select! {
                    biased;
                    grant = queued.grant() => Some(grant),
                    _ = hung_up => None,
                }
            }),
        };
        match grant {
            None => {
                queued.withdraw(Rejection::HungUp);
                End::Left
            }
            Some(Grant::Rejected(_)) => End::NeverRan,
            Some(Grant::Coalesced(result)) => {
                assert_ne!(result.by, request.id.to_string());
                assert!(!over.contains(&result.by), "the result of work that was over: {result:?}");
                End::Coalesced
            }
            Some(Grant::Run(permit)) => self.run(permit, &request, fate),
        }
    }

    fn run(&self, permit: RunPermit, request: &ArbiterRequest, fate: Fate) -> End {
        self.enter(request);
        // Other threads may run here.
        thread::yield_now();
        let request = lock(&self.in_flight).remove(&request.id).expect("it is in flight");
        match fate {
            Fate::Abandons => {
                drop(permit);
                return End::NothingDone;
            }
            Fate::Fails => {
                permit.finished(Response::Failure, None);
                return End::Failed;
            }
            Fate::Hangs => {
                let id = request.id;
                let by = format!("request {id}");
                // Till then all that conflicts waits, and nobody joins.
                lock(&self.seen_off).insert(id, request);
                let held = permit.answered(LateEffect::Any, Response::Failure, None);
                lock(&self.answered).insert(by);
                thread::yield_now();
                lock(&self.seen_off).remove(&id);
                held.finished();
                return End::Failed;
            }
            _ => {}
        }
        let id = request.id;
        lock(&self.seen_off).insert(id, request);
        permit.seen_off(Instant::now(), false);
        thread::yield_now();
        lock(&self.seen_off).remove(&id);
        permit.finished(Response::Success, None);
        End::SeenOff
    }

    /// Checks that conflicting requests are never in flight at once: see the head of the arbiter.
    fn enter(&self, newer: &ArbiterRequest) {
        let mut in_flight = lock(&self.in_flight);
        for older in in_flight.values() {
            assert!(
                !same_target(older, newer) && !conflict(older, newer),
                "both in flight: {older:?} and {newer:?}"
            );
        }
        for older in lock(&self.seen_off).values() {
            assert!(!same_target(older, newer), "both in flight: {older:?} and {newer:?}");
        }
        in_flight.insert(newer.id, newer.clone());
    }
}

fn target(request: &ArbiterRequest) -> Option<&str> {
    match &request.work {
        ArbitratedAction::Look => None,
        ArbitratedAction::On(it) | ArbitratedAction::Off(it) | ArbitratedAction::Reboot(it) => Some(it),
    }
}

fn same_target(a: &ArbiterRequest, b: &ArbiterRequest) -> bool {
    target(a).is_some() && target(a) == target(b)
}

/// Returns whether both power a domain off, and the target of one may be the source of the other.
fn conflict(a: &ArbiterRequest, b: &ArbiterRequest) -> bool {
    let takes_down =
        |it: &ArbiterRequest| matches!(it.work, ArbitratedAction::Off(_) | ArbitratedAction::Reboot(_));
    let hits = |a: &ArbiterRequest, b: &ArbiterRequest| match &b.source {
        RequestSource::Known(source) => target(a) == Some(source),
        RequestSource::OneOf(sources) => {
            let is_one_of = target(a).is_some_and(|it| sources.hold(it, a.name.as_ref()));
            is_one_of && (a.peer.is_none() || a.peer != b.peer)
        }
        RequestSource::Unknown => a.peer.is_none() || a.peer != b.peer,
    };
    takes_down(a) && takes_down(b) && (hits(a, b) || hits(b, a))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
