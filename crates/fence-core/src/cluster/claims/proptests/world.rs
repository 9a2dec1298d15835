// SPDX-License-Identifier: GPL-2.0-or-later
//! Model of a small cluster: corosync, the hosts' daemons, the guests, and the work of hosts for each other.
//!
//! [`World::run`] draws the next event from all that could happen, and asserts the rules at every step.

mod daemons;
mod group;
mod late;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use fence_wire::Response;

use self::late::LateOrder;
use crate::cluster::claims::ClusterArbiter;
use crate::cluster::message::{HostMessage, Member};
use crate::schedules::{Guests, Kind};

pub(super) type Guest = usize;
pub(super) type Place = usize;

/// Facts that a host can see of a guest that sends it requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) known: bool,
    pub(super) peer: bool,
    /// Guests that can have its key beside itself, a bit for each; none: all.
    pub(super) island: Option<u8>,
    /// The host that it runs on.
    pub(super) home: Place,
}

/// A request to come: a guest asks a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) from: Guest,
    pub(super) at: Place,
    pub(super) kind: Kind,
    pub(super) target: Guest,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// No grant yet.
    Waiting,
    /// Granted; the client has not proved itself.
    Proving,
    /// Another host is asked.
    Asking,
    Acting,
    /// The domain is down, and no status check has shown it.
    Down,
    /// Seen off; a reboot starts it next.
    SeenOff,
    Ending,
}

/// A request at the host that heard it, by the number of its claim.
#[derive(Clone, Copy, Debug)]
struct Job {
    plan: Plan,
    /// The start of its guest that sent it.
    life: u32,
    step: Step,
    ask: Option<(Member, u64)>,
    /// End of its client's patience: no order is given from then on.
    until: Instant,
}

/// Request at the host that does the work.
#[derive(Clone, Copy, Debug)]
struct Served {
    plan: Plan,
    claim: u64,
    /// `Waiting`: the asker has not said `go`.
    step: Step,
    /// Moment of its `taken`, and then the end of the time that the asker has left it.
    until: Instant,
}

/// Packet that corosync passes on.
#[derive(Clone, Debug)]
enum Packet {
    Said(HostMessage),
    /// `go` of the asker, of which the arbiter knows nothing, with the time that is left.
    Go(Member, u64, Duration),
}

#[derive(Clone, Debug)]
enum Heard {
    Packet(Member, Packet),
    /// With a number that no other change has.
    Change(u64, BTreeSet<Member>),
    Joined,
    Lost,
}

/// A host's daemon.
struct Host {
    member: Member,
    claims: ClusterArbiter,
    jobs: BTreeMap<u64, Job>,
    served: BTreeMap<(Member, u64), Served>,
    /// Sent, and not ordered yet.
    out: VecDeque<Packet>,
    /// Ordered, and not heard yet.
    inbox: VecDeque<Heard>,
    members: BTreeSet<Member>,
    /// Number of the change that it heard last, and of the messages since.
    at: (u64, u64),
    next_ask: u64,
    /// Claims taken in for orders of an earlier daemon, with the number of each order.
    restored: BTreeMap<u64, u64>,
    stopped: bool,
    joined: bool,
}

/// Faults that may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Faults {
    None,
    /// Daemons come, go and stop; every host that can be heard is heard.
    Daemons,
    /// Daemons are killed in the middle of a power-off, and begin anew.
    Kills,
    /// Daemons are stopped in the middle of anything, for long, and go on.
    Stops,
    /// Hosts lose each other as well.
    Everything,
}

pub(super) struct World {
    sight: Vec<Sight>,
    pub(super) guests: Guests,
    hosts: Vec<Option<Host>>,
    /// Component of each host: those in one hear each other. None: a host without corosync.
    component: Vec<Option<usize>>,
    plans: VecDeque<Plan>,
    changes: u64,
    next_pid: u32,
    faults: Faults,
    /// Every host that can be heard is heard: the rules hold for all.
    together: bool,
    /// Somebody starts guests that are off.
    pub(super) starts: bool,
    /// Faults that may still happen.
    patience: u32,
    start: Instant,
    now: Instant,
    /// Such an order takes its time.
    is_late_slow: bool,
    /// Orders of daemons that were killed, which may still take effect.
    late: BTreeMap<u64, LateOrder>,
    /// Replica at each point of a common order.
    replicas: BTreeMap<(u64, u64), String>,
    ran: BTreeSet<(Member, u64)>,
    shots: u32,
    /// Number of the present event.
    event: u64,
    /// Event in which each claim got its place in the order, or in which a lone host made it.
    claimed: BTreeMap<(Member, u64), u64>,
    /// Event in which it got its place in the order that the target of each claim was seen off.
    seen: BTreeMap<(Member, u64), u64>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Order(Place),
    Hear(Place),
    Do(Place, u64),
    Serve(Place, (Member, u64)),
    Arrive,
    Up(Guest),
    /// An order of a daemon that was killed takes effect.
    Late(u64),
    /// A daemon learns that an order of an earlier one is over.
    Settle(Place, u64),
    // From here on things go wrong.
    Withdraw(Place, u64),
    GiveUp(Place, u64),
    Fail(Place, u64),
    PassOver(Place, Member),
    Stop(Place),
    Continue(Place),
    Kill(Place),
    Begin(Place),
    /// Time passes.
    Tick,
    Disconnect(Place),
    Connect(Place),
    Split(Place),
    Merge(usize, usize),
}

/// Returns the node id of a host.
fn node(place: Place) -> u32 {
    u32::try_from(place).unwrap() + 1
}

impl World {
    pub(super) fn new(hosts: usize, sight: Vec<Sight>, plans: Vec<Plan>, faults: Faults) -> Self {
        let guests = sight.len();
        let start = Instant::now();
        let mut this = Self {
            sight,
            guests: Guests::new(guests),
            hosts: Vec::new(),
            component: vec![None; hosts],
            plans: plans.into(),
            changes: 0,
            next_pid: 1,
            faults,
            together: faults != Faults::Everything,
            starts: true,
            patience: 12,
            start,
            now: start,
            is_late_slow: false,
            late: BTreeMap::new(),
            replicas: BTreeMap::new(),
            ran: BTreeSet::new(),
            shots: 0,
            event: 0,
            claimed: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        this.hosts.resize_with(hosts, || None);
        for place in 0..hosts {
            this.begin(place);
        }
        this
    }

    pub(super) fn run(&mut self, draws: &[u16]) {
        // Most begin with hosts that know each other.
        if draws.first().is_some_and(|it| it % 8 != 0) {
            self.rest();
            // And know all orders.
            self.pass(late::LIMIT);
        }
        self.go_on(draws);
    }

    /// As [`Self::run`], after all daemons were killed in the middle of the first request. Those of these
    /// places are there again.
    pub(super) fn run_after_kills(&mut self, begins: [bool; 3], draws: &[u16]) {
        self.rest();
        self.pass(late::LIMIT);
        self.arrive();
        self.until_somebody_acts();
        for place in 0..self.hosts.len() {
            self.happen(Event::Kill(place));
        }
        for place in (0..self.hosts.len()).filter(|it| begins[*it]) {
            self.begin(place);
        }
        self.is_late_slow = true;
        self.go_on(draws);
    }

    /// As [`Self::run`], where the daemon that carries the first request out stands still in the middle of
    /// it, so many ticks after it came, and goes on any time later.
    pub(super) fn run_with_a_stop(&mut self, ticks: u32, draws: &[u16]) {
        self.rest();
        self.pass(late::LIMIT);
        self.arrive();
        let place = self.until_somebody_acts();
        (0..ticks).for_each(|_| self.happen(Event::Tick));
        if let Some(place) = place {
            self.happen(Event::Stop(place));
        }
        self.is_late_slow = true;
        for draw in draws {
            for _ in 0..draw / 16 % 32 {
                let events = self.events();
                let Some(event) = events.get(usize::from(draw / 512) % events.len().max(1)) else { break };
                self.happen(*event);
            }
            let late = self.late.keys().next().copied();
            match (draw % 16, late, place) {
                (0..=3, Some(late), _) => self.happen(Event::Late(late)),
                (4, _, Some(place)) => self.happen(Event::Continue(place)),
                (5..=7, ..) if !self.plans.is_empty() => self.arrive(),
                _ => self.happen(Event::Tick),
            }
        }
        self.go_on(&[]);
    }

    /// Lets things happen until a daemon is about to give an order, and returns where.
    fn until_somebody_acts(&mut self) -> Option<Place> {
        let is_at_it = |it: Step| it == Step::Acting;
        let acts = |host: &Option<Host>| {
            let host = host.as_ref()?;
            let mut steps =
                host.jobs.values().map(|it| it.step).chain(host.served.values().map(|it| it.step));
            steps.any(is_at_it).then_some(())
        };
        loop {
            let place = self.hosts.iter().position(|it| acts(it).is_some());
            let event = self.events().first().copied().filter(|_| place.is_none());
            match event {
                Some(event) => self.happen(event),
                None => return place,
            }
        }
    }

    fn go_on(&mut self, draws: &[u16]) {
        for draw in draws {
            // In most steps work goes on.
            let (which, draw) = (draw % 16, usize::from(draw / 16));
            let events = match which {
                0 | 1 if self.faults != Faults::None => self.faulty(),
                0..=4 if !self.plans.is_empty() => vec![Event::Arrive],
                5 if self.starts => self.ups(),
                _ => self.events(),
            };
            if let Some(event) = events.get(draw % events.len().max(1)) {
                self.happen(*event);
            }
        }
        (self.faults, self.is_late_slow) = (Faults::None, false);
        for place in 0..self.hosts.len() {
            self.happen(Event::Continue(place));
        }
        self.rest();
        while !self.plans.is_empty() {
            self.arrive();
            self.rest();
        }
        // Nothing is kept for longer than its time.
        self.pass(late::LIMIT);
        self.rest();
        for host in self.hosts.iter().flatten() {
            assert!(host.jobs.is_empty(), "{}: {:?} never ended, {:?}", host.member, host.jobs, host.claims);
            assert!(host.served.is_empty(), "{:?}", host.served);
            assert!(host.claims.own.is_empty(), "{:?}", host.claims.own);
            assert!(host.claims.acting.is_empty() && host.claims.asked.is_empty(), "{:?}", host.claims);
            assert_eq!(host.claims.counts(), (0, 0), "{:?}", host.claims);
            assert!(
                host.claims.epoch.replica.entries.is_empty() && host.claims.epoch.replica.numbers.is_empty()
            );
            assert!(host.claims.silent().is_empty());
        }
    }

    /// Lets everything happen that must.
    fn rest(&mut self) {
        let mut left = 100_000;
        while let Some(event) = self.events().first() {
            self.happen(*event);
            left -= 1;
            assert!(left > 0, "it never ends");
        }
    }

    /// Returns the starts of guests that are off and not just being shot.
    fn ups(&self) -> Vec<Event> {
        let is_shot = |guest: Guest| {
            let down = |step: Step, plan: Plan| step == Step::Down && plan.target == guest;
            self.hosts.iter().flatten().any(|host| {
                host.jobs.values().any(|it| down(it.step, it.plan))
                    || host.served.values().any(|it| down(it.step, it.plan))
            })
        };
        let down = (0..self.guests.up.len()).filter(|it| self.guests.up[*it].is_none() && !is_shot(*it));
        down.map(Event::Up).collect()
    }

    /// Returns the events that go on without faults.
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (place, host) in self.hosts.iter().enumerate() {
            let Some(host) = host else { continue };
            if !host.out.is_empty() && self.component[place].is_some() {
                events.extend([Event::Order(place); 3]);
            }
            if host.stopped {
                continue;
            }
            if !host.inbox.is_empty() {
                events.extend([Event::Hear(place); 3]);
            }
            let busy = |it: Step| !matches!(it, Step::Waiting | Step::Asking);
            let hangs = |key, step| step == Step::Acting && self.hangs(key);
            let jobs = host.jobs.iter().filter(|(_, it)| busy(it.step));
            let jobs = jobs.filter(|(id, it)| !hangs((host.member, **id), it.step));
            events.extend(jobs.map(|(id, _)| Event::Do(place, *id)));
            let served = host.served.iter().filter(|(_, it)| busy(it.step));
            let served = served.filter(|((asker, _), it)| !hangs((*asker, it.claim), it.step));
            events.extend(served.map(|(key, _)| Event::Serve(place, *key)));
            let settled = host.restored.iter().filter(|(_, order)| !self.late.contains_key(order));
            events.extend(settled.map(|(id, _)| Event::Settle(place, *id)));
        }
        if !self.is_late_slow {
            events.extend(self.late.keys().map(|it| Event::Late(*it)));
        }
        events
    }

    /// Returns the faults that may happen now.
    fn faulty(&self) -> Vec<Event> {
        let mut events = vec![Event::Tick];
        if matches!(self.faults, Faults::Kills | Faults::Stops) {
            events.extend(if self.faults == Faults::Kills { self.kills() } else { self.stops() });
            events.extend(self.late.keys().map(|it| Event::Late(*it)));
            return events;
        }
        for (place, host) in self.hosts.iter().enumerate() {
            let Some(host) = host else {
                if self.patience > 0 {
                    events.push(Event::Begin(place));
                }
                continue;
            };
            if host.stopped {
                events.push(Event::Continue(place));
                continue;
            }
            for (id, job) in &host.jobs {
                match job.step {
                    Step::Waiting | Step::Proving => events.push(Event::Withdraw(place, *id)),
                    Step::Asking => events.push(Event::GiveUp(place, *id)),
                    Step::Acting | Step::Down => events.push(Event::Fail(place, *id)),
                    _ => {}
                }
            }
            if self.patience == 0 {
                continue;
            }
            for (member, known) in host.claims.silent() {
                // A host without a copy of the member's state can't save anybody.
                if known || self.faults == Faults::Everything {
                    events.extend([Event::PassOver(place, member); 2]);
                }
            }
            events.extend([Event::Stop(place), Event::Kill(place)]);
            if self.faults == Faults::Everything {
                match self.component[place] {
                    Some(_) => events.extend([Event::Disconnect(place), Event::Split(place)]),
                    None => events.push(Event::Connect(place)),
                }
            }
        }
        let components: BTreeSet<usize> = self.component.iter().flatten().copied().collect();
        if self.faults == Faults::Everything && components.len() > 1 {
            let all: Vec<usize> = components.into_iter().collect();
            events.extend([Event::Merge(all[0], all[1]); 4]);
        }
        events
    }

    /// Returns the kills in the middle of a power-off, and the starts of daemons that are not there.
    fn kills(&self) -> Vec<Event> {
        let acts = |step: Step, plan: Plan| step == Step::Acting && plan.kind != Kind::On;
        let places = self.hosts.iter().enumerate().filter(|_| self.patience > 0);
        let event = |(place, host): (Place, &Option<Host>)| {
            let Some(host) = host else { return Some(Event::Begin(place)) };
            let is_at_it = host.jobs.values().any(|it| acts(it.step, it.plan))
                || host.served.values().any(|it| acts(it.step, it.plan));
            // The others as well, once there is an order that they know of.
            (is_at_it || !self.late.is_empty()).then_some(Event::Kill(place))
        };
        places.filter_map(event).collect()
    }

    /// Returns the stops of daemons that do something, and what goes on. Most stops are long ones.
    fn stops(&self) -> Vec<Event> {
        let mut events = vec![Event::Tick; 4];
        for (place, host) in self.hosts.iter().enumerate() {
            match host {
                Some(host) if host.stopped => events.push(Event::Continue(place)),
                Some(host) if self.patience > 0 && !(host.jobs.is_empty() && host.served.is_empty()) => {
                    events.extend([Event::Stop(place); 3]);
                }
                _ => {}
            }
        }
        events
    }

    fn happen(&mut self, event: Event) {
        self.event += 1;
        match event {
            Event::Order(place) => self.order(place),
            Event::Hear(place) => self.hear(place),
            Event::Do(place, id) => self.work(place, id),
            Event::Serve(place, key) => self.serve(place, key),
            Event::Arrive => self.arrive(),
            Event::Up(guest) => self.guests.power_on(guest),
            Event::Late(order) => self.take_effect(order),
            Event::Settle(place, id) => self.settle(place, id),
            Event::Tick => self.pass(late::TICK),
            Event::Withdraw(place, id) => self.withdraw(place, id),
            Event::GiveUp(place, id) => self.give_up(place, id),
            Event::Fail(place, id) => self.finish(place, id, Response::Failure),
            Event::PassOver(place, member) => {
                self.patience -= 1;
                let effects = self.host(place).claims.pass_over(member);
                self.obey(place, effects);
            }
            Event::Stop(place) => {
                self.patience -= 1;
                self.host(place).stopped = true;
                self.leave_orders(place);
            }
            Event::Continue(place) => {
                if let Some(host) = &mut self.hosts[place] {
                    host.stopped = false;
                    self.expire(place);
                }
            }
            Event::Kill(place) => {
                self.patience -= 1;
                self.kill(place);
                self.leave(place);
            }
            Event::Begin(place) => self.begin(place),
            Event::Disconnect(place) => {
                self.patience -= 1;
                self.disconnect(place);
            }
            Event::Connect(place) => self.connect(place),
            Event::Split(place) => {
                self.patience -= 1;
                self.split(place);
            }
            Event::Merge(first, second) => self.merge(first, second),
        }
    }

    fn host(&mut self, place: Place) -> &mut Host {
        self.hosts[place].as_mut().expect("a daemon")
    }
}
