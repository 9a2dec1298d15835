// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts of a small cluster, whose guests shoot each other, over random schedules.
//!
//! The world plays corosync (one order for all members of a component; what a host sent is ordered any time
//! later, also after changes of the membership that it did not know of then; each host hears at its own
//! pace), the hosts' daemons (which come, go, are stopped and go on, lose corosync and find it again), the
//! guests, and the hosts' work for each other. What happens next is drawn from all that could.
//!
//! `PROPTEST_CASES` sets the number of schedules.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::arbiter::ArbitratedAction as What;
use crate::arbiter::{PeerId, RequestSource};
use crate::cluster::message::{AskAction as AskedFor, AskEnd, AskMessage};

type Guest = usize;
type Place = usize;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    On,
    Off,
    Reboot,
}

/// Facts that a host can see of a guest that sends it requests.
#[derive(Clone, Copy, Debug)]
struct Sight {
    known: bool,
    peer: bool,
    /// The host that it runs on.
    home: Place,
}

/// A request to come: a guest asks a host.
#[derive(Clone, Copy, Debug)]
struct Plan {
    from: Guest,
    at: Place,
    kind: Kind,
    target: Guest,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// For its turn.
    Waiting,
    /// Granted; the client has not proved itself.
    Proving,
    /// Another host is asked.
    Asking,
    Acting,
    /// The domain is down, and no look has shown it.
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
}

/// The same at the host that does the work.
#[derive(Clone, Copy, Debug)]
struct Served {
    plan: Plan,
    claim: u64,
    /// `Waiting`: for the asker's word.
    step: Step,
}

/// Packet that corosync passes on.
#[derive(Clone, Debug)]
enum Packet {
    Said(HostMessage),
    /// The asker's word, which the arbiter knows nothing of.
    Go(Member, u64),
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
    /// Which change it heard last, and how many messages since.
    at: (u64, u64),
    next_ask: u64,
    stopped: bool,
    joined: bool,
}

/// Faults that may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    None,
    /// Daemons come, go and stop; whoever can be heard is.
    Daemons,
    /// Hosts lose each other as well.
    Everything,
}

struct World {
    sight: Vec<Sight>,
    up: Vec<Option<u32>>,
    lives: Vec<u32>,
    killer: Vec<Option<Guest>>,
    hosts: Vec<Option<Host>>,
    /// Which hosts hear each other; none: a host without corosync.
    component: Vec<Option<usize>>,
    plans: VecDeque<Plan>,
    changes: u64,
    next_pid: u32,
    faults: Faults,
    /// Whoever can be heard is: the rules hold for all.
    together: bool,
    /// Somebody starts guests that are off.
    starts: bool,
    /// Faults that may still happen.
    patience: u32,
    start: Instant,
    /// Replica at each point of a common order.
    replicas: BTreeMap<(u64, u64), String>,
    ran: BTreeSet<(Member, u64)>,
    shots: u32,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Order(Place),
    Hear(Place),
    Do(Place, u64),
    Serve(Place, (Member, u64)),
    Arrive,
    Up(Guest),
    // From here on things go wrong.
    Withdraw(Place, u64),
    GiveUp(Place, u64),
    Fail(Place, u64),
    PassOver(Place, Member),
    Stop(Place),
    Continue(Place),
    Kill(Place),
    Begin(Place),
    Disconnect(Place),
    Connect(Place),
    Split(Place),
    Merge(usize, usize),
}

impl World {
    fn new(hosts: usize, sight: Vec<Sight>, plans: Vec<Plan>, faults: Faults) -> Self {
        let guests = sight.len();
        let mut this = Self {
            sight,
            up: vec![Some(0); guests],
            lives: vec![0; guests],
            killer: vec![None; guests],
            hosts: Vec::new(),
            component: vec![None; hosts],
            plans: plans.into(),
            changes: 0,
            next_pid: 1,
            faults,
            together: faults != Faults::Everything,
            starts: true,
            patience: 12,
            start: Instant::now(),
            replicas: BTreeMap::new(),
            ran: BTreeSet::new(),
            shots: 0,
        };
        this.hosts.resize_with(hosts, || None);
        for place in 0..hosts {
            this.begin(place);
        }
        this
    }

    fn run(&mut self, draws: &[u16]) {
        // Most begin with hosts that know each other.
        if draws.first().is_some_and(|it| it % 8 != 0) {
            self.rest();
        }
        for draw in draws {
            // Most of what happens is that work goes on.
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
        self.faults = Faults::None;
        for place in 0..self.hosts.len() {
            self.happen(Event::Continue(place));
        }
        self.rest();
        while !self.plans.is_empty() {
            self.arrive();
            self.rest();
        }
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

    /// Everything that must happen.
    fn rest(&mut self) {
        let mut left = 100_000;
        while let Some(event) = self.events().first() {
            self.happen(*event);
            left -= 1;
            assert!(left > 0, "it never ends");
        }
    }

    /// Guests that somebody starts.
    fn ups(&self) -> Vec<Event> {
        let is_shot = |guest: Guest| {
            let down = |step: Step, plan: Plan| step == Step::Down && plan.target == guest;
            self.hosts.iter().flatten().any(|host| {
                host.jobs.values().any(|it| down(it.step, it.plan))
                    || host.served.values().any(|it| down(it.step, it.plan))
            })
        };
        let down = (0..self.up.len()).filter(|it| self.up[*it].is_none() && !is_shot(*it));
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
            let jobs = host.jobs.iter().filter(|(_, it)| busy(it.step));
            events.extend(jobs.map(|(id, _)| Event::Do(place, *id)));
            let served = host.served.iter().filter(|(_, it)| busy(it.step));
            events.extend(served.map(|(key, _)| Event::Serve(place, *key)));
        }
        events
    }

    /// Returns the faults that may happen now.
    fn faulty(&self) -> Vec<Event> {
        let mut events = Vec::new();
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
                // Who does not know what it has in flight can't save anybody.
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

    fn happen(&mut self, event: Event) {
        match event {
            Event::Order(place) => self.order(place),
            Event::Hear(place) => self.hear(place),
            Event::Do(place, id) => self.work(place, id),
            Event::Serve(place, key) => self.serve(place, key),
            Event::Arrive => self.arrive(),
            Event::Up(guest) => self.power_on(guest),
            Event::Withdraw(place, id) => {
                let host = self.host(place);
                host.jobs.remove(&id);
                let effects = host.claims.withdraw(id);
                self.obey(place, effects);
            }
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
            }
            Event::Continue(place) => {
                if let Some(host) = &mut self.hosts[place] {
                    host.stopped = false;
                }
            }
            Event::Kill(place) => {
                self.patience -= 1;
                self.hosts[place] = None;
                self.leave(place);
            }
            Event::Begin(place) => self.begin(place),
            Event::Disconnect(place) => {
                self.patience -= 1;
                self.leave(place);
                let host = self.host(place);
                host.out.clear();
                // What it did not hear it never will.
                host.inbox = VecDeque::from([Heard::Lost]);
            }
            Event::Connect(place) => self.connect(place),
            Event::Split(place) => {
                self.patience -= 1;
                let from = self.component[place];
                let free = (0..).find(|it| !self.component.contains(&Some(*it)));
                self.component[place] = free;
                // Those behind it go with it, or not.
                for other in place + 1..self.hosts.len() {
                    if self.component[other] == from && (other + self.plans.len()).is_multiple_of(2) {
                        self.component[other] = free;
                    }
                }
                self.change(from);
                self.change(free);
            }
            Event::Merge(first, second) => {
                // One side may see the others come one by one.
                let mut some = self.members(first);
                some.extend(self.members(second).into_iter().next());
                if self.plans.len().is_multiple_of(2) {
                    self.change_to(Some(first), &some);
                }
                for it in &mut self.component {
                    *it = if *it == Some(second) { Some(first) } else { *it };
                }
                self.change(Some(first));
            }
        }
    }

    // Corosync.

    fn begin(&mut self, place: Place) {
        let member = Member { node: u32::try_from(place).unwrap() + 1, pid: self.next_pid };
        self.next_pid += 1;
        self.hosts[place] = Some(Host {
            member,
            claims: ClusterArbiter::new(u64::from(member.pid) << 32, self.start),
            jobs: BTreeMap::new(),
            served: BTreeMap::new(),
            out: VecDeque::new(),
            inbox: VecDeque::new(),
            members: BTreeSet::new(),
            at: (0, 0),
            next_ask: u64::from(member.pid) << 32,
            stopped: false,
            joined: false,
        });
        self.connect(place);
    }

    fn connect(&mut self, place: Place) {
        self.host(place).inbox.push_back(Heard::Joined);
        self.component[place] = Some(self.component.iter().flatten().copied().min().unwrap_or(0));
        self.change(self.component[place]);
    }

    fn leave(&mut self, place: Place) {
        let from = self.component[place].take();
        if from.is_some() {
            self.change(from);
        }
    }

    fn members(&self, component: usize) -> BTreeSet<Member> {
        let all = self.hosts.iter().zip(&self.component);
        all.filter(|(_, it)| **it == Some(component))
            .filter_map(|(host, _)| Some(host.as_ref()?.member))
            .collect()
    }

    fn change(&mut self, component: Option<usize>) {
        let members = self.members(component.unwrap_or(usize::MAX));
        self.change_to(component, &members);
    }

    fn change_to(&mut self, component: Option<usize>, members: &BTreeSet<Member>) {
        self.changes += 1;
        for (host, at) in self.hosts.iter_mut().zip(&self.component) {
            if let Some(host) = host.as_mut().filter(|_| *at == component) {
                host.inbox.push_back(Heard::Change(self.changes, members.clone()));
            }
        }
    }

    fn order(&mut self, place: Place) {
        let component = self.component[place];
        let host = self.host(place);
        let (from, packet) = (host.member, host.out.pop_front().unwrap());
        for (host, at) in self.hosts.iter_mut().zip(&self.component) {
            if let Some(host) = host.as_mut().filter(|_| *at == component) {
                host.inbox.push_back(Heard::Packet(from, packet.clone()));
            }
        }
    }

    fn hear(&mut self, place: Place) {
        let host = self.host(place);
        let me = host.member;
        let heard = host.inbox.pop_front().unwrap();
        host.at.1 += 1;
        let effects = match heard {
            Heard::Joined => {
                host.joined = true;
                host.claims.joined(me)
            }
            Heard::Lost => {
                host.joined = false;
                host.members.clear();
                host.out.clear();
                host.at = (0, 0);
                host.claims.lost()
            }
            Heard::Change(number, members) => {
                host.at = (number, 0);
                host.members.clone_from(&members);
                host.claims.change(&members)
            }
            Heard::Packet(from, Packet::Said(message)) => {
                let effects = host.claims.message(from, &message);
                self.obey(place, effects);
                self.heard(place, from, message);
                Vec::new()
            }
            Heard::Packet(from, Packet::Go(to, ask)) => {
                if to == me
                    && let Some(served) = host.served.get_mut(&(from, ask))
                {
                    served.step = Step::Acting;
                }
                Vec::new()
            }
        };
        self.obey(place, effects);
        self.who_is_gone(place);
        self.compare(place);
    }

    /// Replicas that heard the same are the same.
    fn compare(&mut self, place: Place) {
        let host = self.host(place);
        let (at, view) = (host.at, &host.claims.epoch);
        if at.0 > 0 {
            let replica = format!("{view:?}");
            let known = self.replicas.entry(at).or_insert_with(|| replica.clone());
            assert!(*known == replica, "replicas differ at {at:?}:\n{known}\n{replica}");
        }
    }

    fn send(&mut self, place: Place, packet: Packet) {
        let host = self.host(place);
        if host.joined {
            host.out.push_back(packet);
        }
    }

    // The daemons.

    fn arrive(&mut self) {
        let plan = self.plans.pop_front().unwrap();
        let (Some(life), Some(host)) = (self.up[plan.from], self.hosts[plan.at].as_mut()) else { return };
        if host.stopped {
            return;
        }
        let (sight, target) = (self.sight[plan.from], uuid(plan.target));
        let request = ArbiterRequest {
            id: 0,
            work: match plan.kind {
                Kind::On => What::On(target),
                Kind::Off => What::Off(target),
                Kind::Reboot => What::Reboot(target),
            },
            source: if sight.known { RequestSource::Known(uuid(plan.from)) } else { RequestSource::Unknown },
            // As behind a NAT: two hosts may know two guests by one address.
            peer: sight.peer.then(|| PeerId(format!("address {}", (plan.from + plan.at) % self.sight.len()))),
            arrived: self.start,
            deadline: self.start,
        };
        let (id, effects) = host.claims.claim(&request).unwrap();
        host.jobs.insert(id, Job { plan, life, step: Step::Waiting, ask: None });
        self.obey(plan.at, effects);
    }

    fn obey(&mut self, place: Place, effects: Vec<ClaimEffect>) {
        let member = self.host(place).member;
        for effect in effects {
            match effect {
                ClaimEffect::Send(message) => {
                    assert!(message.encode().is_ok());
                    self.send(place, Packet::Said(message));
                }
                ClaimEffect::Run(id) => {
                    assert!(self.ran.insert((member, id)), "{id} was told to run twice");
                    let job = self.host(place).jobs.get_mut(&id).expect("who waits for it");
                    assert_eq!(job.step, Step::Waiting);
                    job.step = Step::Proving;
                }
                ClaimEffect::Coalesced(id, _) | ClaimEffect::Rejected(id, _) => {
                    // What has its turn hears it when it has proved itself.
                    let host = self.host(place);
                    if host.jobs.get(&id).is_some_and(|it| it.step == Step::Waiting) {
                        host.jobs.remove(&id);
                    } else {
                        assert_eq!(host.jobs.get(&id).map(|it| it.step), Some(Step::Proving));
                    }
                }
                ClaimEffect::Victim(_) => {}
            }
        }
    }

    fn work(&mut self, place: Place, id: u64) {
        let job = self.host(place).jobs[&id];
        match job.step {
            Step::Proving => {
                let alive = self.up[job.plan.from] == Some(job.life);
                let host = self.host(place);
                if !alive || host.claims.proved(id).is_err() {
                    host.jobs.remove(&id);
                    let effects = host.claims.withdraw(id);
                    return self.obey(place, effects);
                }
                let home = self.sight[job.plan.target].home;
                if home == place {
                    return self.to(place, id, Step::Acting);
                }
                let owner = self.hosts[home].as_ref().map(|it| it.member);
                let host = self.host(place);
                let Some(owner) = owner.filter(|it| host.members.contains(it)) else {
                    // It is not heard.
                    return self.finish(place, id, Response::Failure);
                };
                let ask = host.next_ask;
                host.next_ask += 1;
                let claim = host.claims.of(id).cloned();
                host.jobs.insert(id, Job { step: Step::Asking, ask: Some((owner, ask)), ..job });
                let message = HostMessage::Ask(AskMessage {
                    to: owner,
                    ask,
                    what: AskedFor::Off,
                    uuid: uuid(job.plan.target),
                    name: String::new(),
                    claim,
                    rests: false,
                    left_ms: 0,
                    request: 0,
                });
                self.send(place, Packet::Said(message));
            }
            Step::Acting if job.plan.kind == Kind::On => {
                self.power_on(job.plan.target);
                self.to(place, id, Step::Ending);
            }
            Step::Acting => {
                self.to(place, id, Step::Down);
                self.take_down(job.plan);
            }
            Step::Down => {
                self.to(place, id, Step::SeenOff);
                let effects = self.host(place).claims.seen_off(id);
                self.obey(place, effects);
            }
            Step::SeenOff => {
                if job.plan.kind == Kind::Reboot {
                    self.power_on(job.plan.target);
                }
                self.to(place, id, Step::Ending);
            }
            Step::Ending => self.finish(place, id, Response::Success),
            Step::Waiting | Step::Asking => panic!("{job:?} does not run"),
        }
    }

    fn to(&mut self, place: Place, id: u64, step: Step) {
        self.host(place).jobs.get_mut(&id).unwrap().step = step;
    }

    fn finish(&mut self, place: Place, id: u64, response: Response) {
        let host = self.host(place);
        host.jobs.remove(&id);
        let effects = host.claims.finished(id, response, None);
        self.obey(place, effects);
    }

    /// The client's time is up while another host works: its claim must hold until that one is done, even so.
    fn give_up(&mut self, place: Place, id: u64) {
        if let Some((to, ask)) = self.host(place).jobs[&id].ask {
            self.send(place, Packet::Said(HostMessage::Cancel { to, ask }));
        }
        self.finish(place, id, Response::Failure);
    }

    /// Takes a message as far as it is part of an ask.
    fn heard(&mut self, place: Place, from: Member, message: HostMessage) {
        let me = self.host(place).member;
        match message {
            HostMessage::Ask(ask) if ask.to == me => {
                let claim = ask.claim.as_ref().unwrap();
                let plan = self.plan_of(from, claim);
                let id = claim.id;
                self.host(place)
                    .served
                    .insert((from, ask.ask), Served { plan, claim: id, step: Step::Waiting });
                self.says(place, HostMessage::Taken { asker: from, ask: ask.ask, claim: id });
            }
            HostMessage::Cancel { to, ask } if to == me => {
                let waits =
                    self.host(place).served.get(&(from, ask)).is_some_and(|it| it.step == Step::Waiting);
                if waits {
                    self.reply(place, (from, ask), AskEnd::NothingDone(String::new()));
                }
            }
            HostMessage::Taken { asker, ask, claim } if asker == me => {
                let wanted = self.host(place).jobs.get(&claim).is_some_and(|it| it.ask == Some((from, ask)));
                let packet = if wanted {
                    Packet::Go(from, ask)
                } else {
                    Packet::Said(HostMessage::Cancel { to: from, ask })
                };
                self.send(place, packet);
            }
            HostMessage::Progress { asker, ask, claim, .. } if asker == me => {
                let host = self.host(place);
                if host.jobs.get(&claim).is_some_and(|it| it.ask == Some((from, ask))) {
                    let effects = host.claims.seen_off(claim);
                    self.obey(place, effects);
                }
            }
            HostMessage::Reply { asker, ask, claim: Some(claim), end } if asker == me => {
                let host = self.host(place);
                if host.jobs.get(&claim).is_some_and(|it| it.ask == Some((from, ask))) {
                    match end {
                        AskEnd::Done(_) => self.finish(place, claim, Response::Success),
                        AskEnd::NotHere | AskEnd::NothingDone(_) => {
                            host.jobs.remove(&claim);
                            let effects = host.claims.withdraw(claim);
                            self.obey(place, effects);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Owners that are asked learn it from the message; here from the claim's words.
    fn plan_of(&self, asker: Member, claim: &ClaimMessage) -> Plan {
        let guest = |it: &str| it.rsplit(' ').next().unwrap().parse::<Guest>().unwrap();
        let host = self.hosts.iter().flatten().find(|it| it.member == asker);
        let from = host.and_then(|it| it.jobs.get(&claim.id)).map(|it| it.plan.from);
        let from = from.or_else(|| claim.source.as_deref().map(guest)).unwrap_or(usize::MAX);
        let kind = match claim.what {
            AskedFor::On => Kind::On,
            AskedFor::Reboot => Kind::Reboot,
            AskedFor::Off | AskedFor::Status => Kind::Off,
        };
        Plan { from, at: 0, kind, target: guest(&claim.target) }
    }

    fn says(&mut self, place: Place, message: HostMessage) {
        let effects = self.host(place).claims.says(&message);
        self.obey(place, effects);
        self.send(place, Packet::Said(message));
    }

    fn reply(&mut self, place: Place, (asker, ask): (Member, u64), end: AskEnd) {
        let served = self.host(place).served.remove(&(asker, ask)).unwrap();
        self.says(place, HostMessage::Reply { asker, ask, claim: Some(served.claim), end });
    }

    fn serve(&mut self, place: Place, key: (Member, u64)) {
        let served = self.host(place).served[&key];
        let next = match served.step {
            Step::Acting if served.plan.kind == Kind::On => {
                self.power_on(served.plan.target);
                Step::Ending
            }
            Step::Acting => {
                self.host(place).served.get_mut(&key).unwrap().step = Step::Down;
                self.take_down(served.plan);
                Step::Down
            }
            Step::Down => {
                let (asker, ask) = key;
                let victim = uuid(served.plan.target);
                self.says(
                    place,
                    HostMessage::Progress {
                        asker,
                        ask,
                        claim: served.claim,
                        victim,
                        was_off: false,
                        starts: false,
                    },
                );
                Step::SeenOff
            }
            Step::SeenOff => {
                if served.plan.kind == Kind::Reboot {
                    self.power_on(served.plan.target);
                }
                Step::Ending
            }
            Step::Ending => {
                return self.reply(place, key, AskEnd::Done(AskOutcome::new(Response::Success, None)));
            }
            Step::Waiting | Step::Proving | Step::Asking => panic!("{served:?} does not run"),
        };
        self.host(place).served.get_mut(&key).unwrap().step = next;
    }

    /// Ends asks after a membership change.
    fn who_is_gone(&mut self, place: Place) {
        let host = self.host(place);
        let is_gone = |it: &Member| !host.members.contains(it);
        let lost_owner: Vec<u64> = host
            .jobs
            .iter()
            .filter(|(_, it)| it.ask.is_some_and(|(owner, _)| is_gone(&owner)))
            .map(|(id, _)| *id)
            .collect();
        let lost_asker: Vec<_> = host
            .served
            .iter()
            .filter(|((asker, _), it)| is_gone(asker) && it.step == Step::Waiting)
            .map(|(key, _)| *key)
            .collect();
        for id in lost_owner {
            self.finish(place, id, Response::Failure);
        }
        for key in lost_asker {
            self.reply(place, key, AskEnd::NothingDone(String::new()));
        }
    }

    // The guests.

    fn power_on(&mut self, guest: Guest) {
        if self.up[guest].is_none() {
            self.lives[guest] += 1;
            self.up[guest] = Some(self.lives[guest]);
        }
    }

    fn take_down(&mut self, by: Plan) {
        self.shots += 1;
        if self.up[by.target].take().is_none() {
            return;
        }
        self.killer[by.target] = Some(by.from);
        if !self.together {
            return;
        }
        // Nobody loses its source between its proof and its own target's being seen off, but by its own hand.
        let exposed = |plan: Plan| plan.kind != Kind::On && plan.from == by.target && by.from != by.target;
        for host in self.hosts.iter().flatten() {
            for job in host.jobs.values().filter(|it| matches!(it.step, Step::Acting | Step::Down)) {
                assert!(!exposed(job.plan), "{by:?} takes the source of {job:?} down");
            }
            for served in host.served.values().filter(|it| matches!(it.step, Step::Acting | Step::Down)) {
                assert!(!exposed(served.plan), "{by:?} takes the source of {served:?} down");
            }
        }
        // One survivor: no circle of guests that took each other down, and are all down.
        for guest in 0..self.up.len() {
            let mut seen = BTreeSet::new();
            let mut at = guest;
            while self.up[at].is_none() && seen.insert(at) {
                let killer = self.killer[at].filter(|it| *it < self.up.len()).unwrap_or(at);
                assert!(killer != guest || killer == at, "all of {seen:?} are down, by each other");
                if killer == at {
                    break;
                }
                at = killer;
            }
        }
    }

    fn host(&mut self, place: Place) -> &mut Host {
        self.hosts[place].as_mut().expect("a daemon")
    }
}

fn uuid(guest: Guest) -> String {
    format!("domain {guest}")
}

fn sight(hosts: usize) -> impl Strategy<Value = Sight> {
    (any::<(bool, bool)>(), 0..hosts).prop_map(|((known, peer), home)| Sight { known, peer, home })
}

fn plan(hosts: usize, guests: usize) -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![2 => Just(Kind::Off), 4 => Just(Kind::Reboot), 1 => Just(Kind::On)];
    (0..guests, 0..hosts, kind, 0..guests).prop_map(|(from, at, kind, target)| Plan {
        from,
        at,
        kind,
        target,
    })
}

/// Two to four hosts, two to four guests, requests, and what is drawn.
fn schedule() -> impl Strategy<Value = (usize, Vec<Sight>, Vec<Plan>, Vec<u16>)> {
    (2_usize..=4, 2_usize..=4).prop_flat_map(|(hosts, guests)| {
        let plans = vec(plan(hosts, guests), 1..40);
        (Just(hosts), vec(sight(hosts), guests), plans, vec(any::<u16>(), 0..600))
    })
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|it| it.parse().ok()).unwrap_or(300);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Everything the world asserts, with messages that take any time.
    #[test]
    fn one_survives((hosts, sight, plans, draws) in schedule()) {
        World::new(hosts, sight, plans, Faults::None).run(&draws);
    }

    /// The same, with daemons that come, go and stop at any moment.
    #[test]
    fn one_survives_whatever_daemons_do((hosts, sight, plans, draws) in schedule()) {
        World::new(hosts, sight, plans, Faults::Daemons).run(&draws);
    }

    /// Hosts that lose each other as well: one order among those that hear each other, and everything ends.
    #[test]
    fn everything_ends((hosts, sight, plans, draws) in schedule()) {
        World::new(hosts, sight, plans, Faults::Everything).run(&draws);
    }

    /// Two guests of two hosts shoot each other, each once or more often.
    #[test]
    fn of_two_exactly_one_stays_up(
        sight in vec(sight(3), 2),
        shots in vec((0_usize..2, 0_usize..3), 0..6),
        first in vec(0_usize..3, 2),
        draws in vec(any::<u16>(), 0..300),
    ) {
        let shots = [vec![(0, first[0]), (1, first[1])], shots].concat();
        let plan = |(from, at)| Plan { from, at, kind: Kind::Off, target: 1 - from };
        let mut world = World::new(3, sight, shots.into_iter().map(plan).collect(), Faults::None);
        world.starts = false;
        world.run(&draws);
        prop_assert_eq!(world.up.iter().flatten().count(), 1);
    }
}
