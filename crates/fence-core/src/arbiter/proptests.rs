// SPDX-License-Identifier: GPL-2.0-or-later
//! The rules, over random schedules of a small world.
//!
//! Nodes run in domains and shoot at each other. The daemon may know which domain a node is, or tell it from
//! other peers, or neither. A node that is off sends nothing and proves nothing; one that was started again
//! has forgotten its old streams. What happens next is drawn from all that could. The oracle beside the world
//! says rule by rule which requests must be waiting; it shares no code with the arbiter.
//!
//! `PROPTEST_CASES` sets the number of schedules.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::schedules::{Guests, Kind, config, kinds, source, uuid};

type Node = usize;

/// Set of nodes, a bit for each; none: all.
type Island = Option<u8>;

/// Facts about a node that the daemon can see.
#[derive(Clone, Copy, Debug)]
struct Sight {
    known: bool,
    /// Nodes that can have the key of this one, before a change of the groups and after it.
    islands: [Island; 2],
    peer: bool,
    /// Node that is known by its serial line, where there is no challenge: its request is done though it is
    /// off.
    serial: bool,
}

/// A request to come.
#[derive(Clone, Copy, Debug)]
struct Plan {
    from: Node,
    kind: Kind,
    target: Node,
    /// Seconds that its client waits.
    patience: u64,
}

/// Rest of the course of a piece of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Told to run; the challenge is not answered yet.
    Proving,
    Acting,
    /// The domain is down, and no status check has shown it yet.
    Down,
    /// A status check that began at this second shows it off.
    Looking(u64),
    /// Seen off; a reboot starts it next.
    SeenOff,
    Ending,
    /// Answered; the power-off may still come.
    Late,
    /// The same, and it hangs: it may come at any later moment.
    Hanging,
    /// Answered with a failure while a call hangs: that may still do all of it.
    Hung,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Waiting,
    Joined(u64),
    Running(Stage),
}

/// The world's own record of a request that is not over.
#[derive(Clone, Copy, Debug)]
struct Live {
    id: u64,
    plan: Plan,
    /// The sender's start that it comes from.
    life: u32,
    place: Place,
    deadline: u64,
    /// Another order of it may power the target off once more.
    again: bool,
    /// Nodes that could have shown its key when it came.
    island: Island,
    /// Marks one that waited for a power-off that hung, or whose sender let turns pass, and was overtaken
    /// meanwhile.
    was_overtaken: bool,
    /// Turns that its sender let pass, by the last word of the arbiter.
    rank: u32,
    /// The daemon that took it has ended: neither its key nor the name of its target is known any more.
    left: bool,
}

struct World {
    arbiter: Arbiter,
    sight: Vec<Sight>,
    /// Number of changes of the groups.
    changes: usize,
    /// Nodes whose requests get no further.
    stuck: u8,
    nodes: Guests,
    /// When each node was seen off last.
    fenced: Vec<Option<u64>>,
    plans: std::vec::IntoIter<Plan>,
    /// Turns that each node let pass since its last proof, and when it did last.
    wasted: Vec<(u32, u64)>,
    /// Arrived, its target not yet looked up: when, from which life, and from which nodes by its key.
    arrived: Vec<(u64, Plan, u64, u32, Island)>,
    live: Vec<Live>,
    ended: BTreeSet<u64>,
    accepted: BTreeSet<u64>,
    /// Whose work was carried out (the action began), and who was told its outcome.
    acted: BTreeSet<u64>,
    told: BTreeMap<u64, u64>,
    /// When each request came, and when the look began that showed the target of a request in flight off, by
    /// the number of that request; none: somebody else's look.
    came: BTreeMap<u64, u64>,
    seen: BTreeMap<u64, Option<u64>>,
    start: Instant,
    now: u64,
    next_id: u64,
    faults: bool,
    /// Orders may take effect late, and the daemon may end.
    late: bool,
    /// A power-off hung, and there are requests whose source is not known: these may be of its target.
    gave_up: bool,
}

/// One thing that could happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Arrive,
    Submit(usize),
    Step(u64),
    /// The client hangs up: before the proof, the action, or its turn.
    HangUp(u64),
    /// The action fails, or succeeds with nobody to see it.
    Fail(u64),
    /// The action is given up, and may take effect later.
    Linger(u64),
    /// The action is given up while a call of it hangs.
    Hang(u64),
    /// The power-off that may come late hangs for longer than any that is carried out.
    HangOn(u64),
    Withdraw(u64),
    /// Another host sees this node off, which went down by itself.
    Elsewhere(Node),
    /// The daemon ends, and the next one begins with what is on disk.
    Restart,
    /// The groups change. What came before keeps what its key meant then.
    Reload,
    Second,
}

impl World {
    fn new(sight: Vec<Sight>, plans: Vec<Plan>, faults: bool) -> Self {
        let nodes = sight.len();
        Self {
            arbiter: Arbiter::default(),
            sight,
            changes: 0,
            stuck: 0,
            nodes: Guests::new(nodes),
            fenced: vec![None; nodes],
            plans: plans.into_iter(),
            wasted: vec![(0, 0); nodes],
            arrived: Vec::new(),
            live: Vec::new(),
            ended: BTreeSet::new(),
            accepted: BTreeSet::new(),
            acted: BTreeSet::new(),
            told: BTreeMap::new(),
            came: BTreeMap::new(),
            seen: BTreeMap::new(),
            start: Instant::now(),
            now: 0,
            next_id: 1,
            faults,
            late: faults,
            gave_up: false,
        }
    }

    /// Lets things happen as drawn, then everything that is left, without time passing: whatever then
    /// waits would wait for ever.
    fn run(&mut self, draws: &[u16]) {
        self.go_on(draws);
        assert_eq!(self.accepted, self.ended, "every accepted request ends");
        assert!(self.arbiter.entries.is_empty());
        assert_eq!(self.arbiter.next_deadline(), None);
    }

    fn go_on(&mut self, draws: &[u16]) {
        for draw in draws {
            let events = self.events();
            if let Some(event) = events.get(usize::from(*draw) % events.len().max(1)) {
                self.happen(*event);
            }
        }
        (self.faults, self.late) = (false, false);
        while let Some(event) = self.events().first() {
            self.happen(*event);
        }
    }

    /// Lets things happen as drawn. The requests whose bit is set hang as soon as they act, and come when
    /// nothing else happens any more.
    fn hang(&mut self, which: u32, draws: &[u16]) {
        let mut draws = draws.iter().copied();
        loop {
            let acting =
                |it: &&Live| it.place == Place::Running(Stage::Acting) && which >> (it.id % 32) & 1 == 1;
            if let Some(id) = self.live.iter().find(acting).map(|it| it.id) {
                self.happen(Event::Linger(id));
                self.happen(Event::HangOn(id));
                continue;
            }
            let hangs = |it: &&Live| it.place == Place::Running(Stage::Hanging);
            let hung: BTreeSet<u64> = self.live.iter().filter(hangs).map(|it| it.id).collect();
            let is_hung = |event: &Event| matches!(event, Event::Step(id) if hung.contains(id));
            let events = self.events();
            let (last, first): (Vec<Event>, Vec<Event>) = events.into_iter().partition(is_hung);
            let open = if first.is_empty() { last } else { first };
            let draw = usize::from(draws.next().unwrap_or_default());
            let Some(event) = open.get(draw % open.len().max(1)).copied() else { return };
            self.happen(event);
        }
    }

    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        events.extend((0..self.arrived.len()).map(Event::Submit));
        for it in self.live.iter().filter(|it| !is_in(Some(self.stuck), it.plan.from)) {
            if let Place::Running(stage) = it.place {
                events.push(Event::Step(it.id));
                if self.faults && stage == Stage::Proving {
                    events.push(Event::HangUp(it.id));
                }
                let is_open = matches!(stage, Stage::Acting | Stage::Down | Stage::Looking(_));
                if self.faults && is_open {
                    events.push(Event::Fail(it.id));
                }
                if self.late && is_open && it.plan.kind != Kind::On {
                    events.push(Event::Linger(it.id));
                }
                if self.late && is_open {
                    events.push(Event::Hang(it.id));
                }
                if self.late && stage == Stage::Hung && it.plan.kind != Kind::On {
                    events.push(Event::Linger(it.id));
                }
                if self.late && stage == Stage::Late {
                    events.push(Event::HangOn(it.id));
                }
                if self.faults && matches!(stage, Stage::Late | Stage::Hanging | Stage::Hung) {
                    events.push(Event::Fail(it.id));
                }
            } else if self.faults {
                events.extend([Event::HangUp(it.id), Event::Withdraw(it.id)]);
            }
        }
        if self.plans.len() > 0 {
            // As likely as the rest together, so that many requests are under way at once.
            events.extend(vec![Event::Arrive; events.len().max(1)]);
        }
        if self.faults {
            events.extend((0..self.sight.len()).map(Event::Elsewhere));
            events.push(Event::Second);
        }
        if self.plans.len() > 0 && self.changes < 2 {
            events.push(Event::Reload);
        }
        // Not too often: it ends most of what is under way.
        if self.late && self.live.len() > 2 {
            events.push(Event::Restart);
        }
        events
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                if let Some(plan) = self.plans.next()
                    && let Some(life) = self.nodes.up[plan.from]
                {
                    let island = self.island(plan.from);
                    self.arrived.push((self.next_id, plan, self.now, life, island));
                    self.next_id += 1;
                    // Ids, arrivals and victims are told apart by the clock.
                    self.now += 1;
                }
            }
            Event::Submit(place) => self.submit(place),
            Event::Step(id) => self.step(id),
            Event::HangUp(id) => {
                self.waste(id);
                self.end(id);
                let decisions = self.arbiter.abandoned(self.time(), id);
                self.obey(&decisions, None);
            }
            Event::Fail(id) => self.finish(id),
            Event::Linger(id) => self.answer_late(id, Stage::Late),
            Event::Hang(id) => self.answer_late(id, Stage::Hung),
            Event::HangOn(id) => self.answer_late(id, Stage::Hanging),
            Event::Withdraw(id) => {
                let decisions = self.arbiter.withdraw(self.time(), id, Rejection::Superseded);
                assert_eq!(decisions.first(), Some(&ArbiterDecision::Drop(id, Rejection::Superseded)));
                self.obey(&decisions, None);
            }
            Event::Elsewhere(node) => self.elsewhere(node),
            Event::Restart => self.restart(),
            Event::Reload => self.changes += 1,
            Event::Second => {
                self.now += 1;
                let decisions = self.arbiter.tick(self.time());
                self.obey(&decisions, None);
            }
        }
        // Time passes with arrivals too, and a deadline's timer may fire late; here it is on time.
        let decisions = self.arbiter.tick(self.time());
        self.obey(&decisions, None);
        let is_stuck = |it: &Live| !matches!(it.place, Place::Running(_)) && self.is_stuck(it);
        let stuck: Vec<bool> = self.live.iter().map(is_stuck).collect();
        self.live.iter_mut().zip(stuck).for_each(|(it, is_stuck)| it.was_overtaken |= is_stuck);
        self.check();
    }

    fn submit(&mut self, place: usize) {
        let (id, plan, arrived, life, island) = self.arrived.remove(place);
        let deadline = arrived + plan.patience;
        let sight = self.sight[plan.from];
        let place = Place::Waiting;
        let live = Live {
            id,
            plan,
            life,
            place,
            deadline,
            again: false,
            was_overtaken: false,
            rank: 0,
            island,
            left: false,
        };
        let request = self.request(&live, arrived);
        let verdict = self.arbiter.submit(self.time(), request);
        let fenced = sight.known && self.fenced[plan.from].is_some_and(|when| arrived <= when);
        let refusal = if self.now >= deadline {
            Some(Rejection::DeadlinePassed)
        } else {
            fenced.then_some(Rejection::SourceFenced)
        };
        let last = self.live.iter().rfind(|it| it.plan.target == plan.target).copied();
        let leader = last.filter(|it| it.plan.kind == plan.kind).map(|it| match it.place {
            Place::Joined(leader) => leader,
            Place::Waiting | Place::Running(_) => it.id,
        });
        let rank = self.wasted[plan.from].0;
        let is_behind =
            |id: u64| self.live.iter().any(|it| it.id == id && it.place == Place::Waiting && it.rank > rank);
        let leader =
            leader.filter(|it| self.tells(*it, arrived) && !self.is_stuck_waiting(*it) && !is_behind(*it));
        let place = match verdict {
            Ok(SubmitResult::Run) => Place::Running(Stage::Proving),
            Ok(SubmitResult::Wait) => Place::Waiting,
            Ok(SubmitResult::Joined(leader)) => Place::Joined(leader),
            Err(why) => return assert_eq!(Some(why), refusal),
        };
        assert_eq!(refusal, None);
        // The same work once: joined exactly when the last word on this target is the same, and no look is
        // told that is older than the request.
        assert_eq!(if let Place::Joined(it) = place { Some(it) } else { None }, leader);
        self.accepted.insert(id);
        self.came.insert(id, arrived);
        self.live.push(Live { place, rank, was_overtaken: rank > 0, ..live });
    }

    /// A request that was told to run gives no proof; it ends next.
    fn waste(&mut self, id: u64) {
        let from = self.find(id).plan.from;
        self.wasted[from] = (self.wasted[from].0 + 1, self.now);
        let decisions = self.arbiter.wasted(self.time(), id);
        self.obey(&decisions, None);
    }

    /// Brings the ranks up to date. None stays in what it joined if that fell behind it.
    fn rank(&mut self) {
        let now = self.now;
        let memory = VICTIM_MEMORY.as_secs();
        self.wasted.iter_mut().filter(|(_, last)| now - last >= memory).for_each(|it| it.0 = 0);
        for it in &mut self.live {
            it.rank = self.wasted[it.plan.from].0;
            it.was_overtaken |= it.rank > 0;
        }
        let waiting = self.live.iter().enumerate().filter(|(_, it)| it.place == Place::Waiting);
        let waiting: Vec<_> = waiting.map(|(place, it)| (it.id, (it.rank, place))).collect();
        for (id, line) in waiting {
            let leaves =
                |(place, it): &(usize, &Live)| it.place == Place::Joined(id) && (it.rank, *place) < line;
            let joined: Vec<u64> = self.live.iter().enumerate().filter(leaves).map(|(_, it)| it.id).collect();
            self.take_over(&joined);
        }
    }

    fn step(&mut self, id: u64) {
        let it = *self.find(id);
        let Place::Running(stage) = it.place else { panic!("{it:?} does not run") };
        let target = it.plan.target;
        let next = match stage {
            Stage::Proving => {
                if !self.sight[it.plan.from].serial && self.nodes.up[it.plan.from] != Some(it.life) {
                    self.waste(id);
                    self.end(id);
                    let decisions = self.arbiter.abandoned(self.time(), id);
                    return self.obey(&decisions, None);
                }
                self.wasted[it.plan.from].0 = 0;
                let decisions = self.arbiter.proved(self.time(), id);
                self.obey(&decisions, None);
                Stage::Acting
            }
            Stage::Acting => {
                assert!(self.acted.insert(id));
                if it.plan.kind == Kind::On {
                    self.nodes.power_on(target);
                    Stage::Ending
                } else {
                    self.take_down(&it);
                    Stage::Down
                }
            }
            Stage::Down => {
                // Of every second one the target is down by one order, and another may come later.
                if self.late && id.is_multiple_of(2) {
                    self.find(id).again = true;
                    self.arbiter.may_come_again(id);
                }
                Stage::Looking(self.now)
            }
            Stage::Looking(since) => return self.look_ends(id, since),
            Stage::SeenOff => {
                if it.plan.kind == Kind::Reboot {
                    self.nodes.power_on(target);
                }
                Stage::Ending
            }
            Stage::Ending if it.again => return self.succeed_late(id),
            Stage::Ending => return self.finish(id),
            Stage::Late | Stage::Hanging => {
                self.take_down(&it);
                return self.finish(id);
            }
            Stage::Hung => {
                if it.plan.kind != Kind::On {
                    self.take_down(&it);
                }
                if it.plan.kind != Kind::Off {
                    self.nodes.power_on(target);
                }
                return self.finish(id);
            }
        };
        self.find(id).place = Place::Running(next);
    }

    /// Shows the target off by a look that began at this second.
    fn look_ends(&mut self, id: u64, since: u64) {
        self.now += 1;
        let it = self.find(id);
        let target = it.plan.target;
        it.place = Place::Running(Stage::SeenOff);
        self.seen.entry(id).or_insert(Some(since));
        let too_late = |it: &Live| it.place == Place::Joined(id) && self.came[&it.id] > since;
        let too_late: Vec<u64> = self.live.iter().filter(|it| too_late(it)).map(|it| it.id).collect();
        self.take_over(&too_late);
        let decisions = self.arbiter.seen_off(self.time(), self.at(since), id);
        self.was_seen_off(target, &decisions);
    }

    /// Returns whether the result of a request may be told to one that came at this second.
    fn tells(&self, leader: u64, came: u64) -> bool {
        self.seen.get(&leader).is_none_or(|since| since.is_some_and(|it| came <= it))
    }

    /// Lets the first of these wait in its own name, and the others join it.
    fn take_over(&mut self, heirs: &[u64]) {
        let leaving = self.live.iter().filter(|it| heirs.contains(&it.id));
        let Some(first) = leaving.min_by_key(|it| it.rank).map(|it| it.id) else { return self.leave_stuck() };
        for it in self.live.iter_mut().filter(|it| heirs.contains(&it.id)) {
            it.place = if it.id == first { Place::Waiting } else { Place::Joined(first) };
        }
        self.leave_stuck();
    }

    /// Takes those out of what waits for a power-off that hangs which do not wait for that themselves.
    fn leave_stuck(&mut self) {
        let is_stuck = |it: &&Live| it.place == Place::Waiting && self.is_stuck(it);
        let stuck: Vec<u64> = self.live.iter().filter(is_stuck).map(|it| it.id).collect();
        for id in stuck {
            let joined = self.live.iter().filter(|it| it.place == Place::Joined(id) && !self.is_stuck(it));
            let joined: Vec<u64> = joined.map(|it| it.id).collect();
            if !joined.is_empty() {
                self.take_over(&joined);
            }
        }
    }

    /// Returns whether a request is known to come from the target of a power-off that hangs.
    fn is_stuck(&self, it: &Live) -> bool {
        let hangs = |first: &&Live| {
            first.place == Place::Running(Stage::Hanging)
                && first.plan.target == it.plan.from
                && first.plan.kind != Kind::On
        };
        let shoots = it.plan.kind != Kind::On && it.plan.target != it.plan.from;
        shoots && self.sight[it.plan.from].known && self.live.iter().any(|it| hangs(&it))
    }

    fn is_stuck_waiting(&self, id: u64) -> bool {
        self.live.iter().any(|it| it.id == id && it.place == Place::Waiting && self.is_stuck(it))
    }

    /// Keeps the orders that are on disk, and that nobody has seen to take effect. Clients of all else lose
    /// their daemon.
    fn restart(&mut self) {
        self.now += 1;
        self.arbiter = Arbiter::default();
        self.wasted.fill((0, 0));
        self.arrived.clear();
        self.fenced.fill(None);
        let is_ordered = |it: &Live| {
            let stage = match it.place {
                Place::Running(stage) => stage,
                Place::Waiting | Place::Joined(_) => return false,
            };
            let is_over = matches!(stage, Stage::Proving | Stage::SeenOff | Stage::Ending);
            (!is_over || it.again) && it.plan.kind != Kind::On
        };
        let (left, over): (Vec<Live>, Vec<Live>) =
            std::mem::take(&mut self.live).into_iter().partition(is_ordered);
        self.ended.extend(over.iter().map(|it| it.id));
        for it in left {
            let place = Place::Running(Stage::Late);
            let it = Live { place, again: false, island: None, left: true, ..it };
            self.arbiter.install_late(self.request(&it, self.now));
            self.seen.insert(it.id, None);
            self.live.push(it);
        }
    }

    /// Returns the nodes that can have a node's key now.
    fn island(&self, node: Node) -> Island {
        self.sight[node].islands[self.changes % 2]
    }

    fn request(&self, it: &Live, arrived: u64) -> ArbiterRequest {
        let sight = self.sight[it.plan.from];
        ArbiterRequest {
            id: it.id,
            work: it.plan.kind.work(uuid(it.plan.target)),
            name: (!it.left).then(|| name(it.plan.target).as_str().into()),
            source: if sight.known { source(true, it.plan.from) } else { possible(it.island) },
            peer: sight.peer.then(|| PeerId(format!("peer {}", it.plan.from))),
            sender: Some(SenderId(format!("sender {}", it.plan.from))),
            by: TargetKind::Name,
            arrived: self.at(arrived),
            deadline: self.at(it.deadline),
        }
    }

    fn elsewhere(&mut self, node: Node) {
        self.now += 1;
        // By none of the nodes.
        self.nodes.power_off(node, usize::MAX);
        let decisions = self.arbiter.victim(self.time(), &uuid(node));
        self.was_seen_off(node, &decisions);
    }

    /// Holds for what the arbiter decided when this node was seen off, now.
    fn was_seen_off(&mut self, node: Node, decisions: &[ArbiterDecision]) {
        self.fenced[node] = Some(self.now);
        for live in &self.live {
            if let Place::Running(stage) = live.place {
                let past = live.plan.kind != Kind::On && matches!(stage, Stage::SeenOff | Stage::Ending);
                if live.plan.target == node && !past {
                    self.seen.entry(live.id).or_insert(None);
                }
                continue;
            }
            let fenced = live.plan.from == node && self.sight[node].known;
            let dropped = decisions.contains(&ArbiterDecision::Drop(live.id, Rejection::SourceFenced));
            assert_eq!(fenced, dropped, "{live:?}");
        }
        self.obey(decisions, None);
        self.now += 1;
    }

    fn take_down(&mut self, killer: &Live) {
        let target = killer.plan.target;
        if !self.nodes.power_off(target, killer.plan.from) {
            return;
        }
        let is_sure = |it: &Live| self.sight[it.plan.from].known;
        let hung = killer.place == Place::Running(Stage::Hanging);
        // Nobody loses its source between its proof and its own target's being seen off, but by its own hand,
        // or by an order that hung, where the source is not known.
        for it in &self.live {
            let exposed = matches!(it.place, Place::Running(Stage::Acting | Stage::Down | Stage::Looking(_)))
                && it.plan.kind != Kind::On;
            assert!(
                !exposed
                    || it.plan.from != target
                    || it.plan.from == killer.plan.from
                    || it.plan.target == target
                    || hung && !is_sure(it),
                "{killer:?} takes the source of {it:?} down"
            );
        }
        if !self.gave_up {
            self.nodes.assert_a_survivor();
        }
    }

    fn finish(&mut self, id: u64) {
        assert!(self.ended.insert(id));
        self.live.retain(|it| it.id != id);
        self.leave_stuck();
        let decisions = self.arbiter.finished(self.time(), id);
        self.obey(&decisions, Some(id));
    }

    /// Answers a request with a failure, of which the power-off or all may come late. Whoever joined it goes
    /// on alone, and none joins it any more.
    fn answer_late(&mut self, id: u64, stage: Stage) {
        self.find(id).place = Place::Running(stage);
        self.gave_up |= stage == Stage::Hanging && !self.sight.iter().all(|it| it.known);
        self.seen.insert(id, None);
        let joined = self.live.iter().filter(|it| it.place == Place::Joined(id)).map(|it| it.id);
        let joined: Vec<u64> = joined.collect();
        self.take_over(&joined);
        self.leave_stuck();
        let effect = match stage {
            Stage::Late => LateEffect::PowerOff,
            Stage::Hanging => LateEffect::HangingOff,
            _ => LateEffect::Any,
        };
        let decisions = self.arbiter.answered(self.time(), id, false, effect);
        self.obey(&decisions, None);
    }

    /// Answers a request with success, of which another power-off may come late.
    fn succeed_late(&mut self, id: u64) {
        self.find(id).place = Place::Running(Stage::Late);
        let decisions = self.arbiter.answered(self.time(), id, true, LateEffect::PowerOff);
        self.obey(&decisions, Some(id));
        self.seen.insert(id, None);
    }

    fn obey(&mut self, decisions: &[ArbiterDecision], finished: Option<u64>) {
        self.rank();
        for decision in decisions {
            match *decision {
                ArbiterDecision::Run(id) => {
                    let now = self.now;
                    let it = self.find(id);
                    // One that had joined another runs only when that came to nothing.
                    assert_eq!(it.place, Place::Waiting, "{it:?}");
                    assert!(now < it.deadline, "{it:?} is late");
                    it.place = Place::Running(Stage::Proving);
                }
                ArbiterDecision::Drop(id, why) => {
                    let it = *self.find(id);
                    assert!(!matches!(it.place, Place::Running(_)), "{it:?} runs and was dropped");
                    assert!(why != Rejection::DeadlinePassed || self.now >= it.deadline);
                    assert!(why != Rejection::SourceFenced || self.nodes.up[it.plan.from] != Some(it.life));
                    self.end(id);
                }
                ArbiterDecision::Deliver(id) => {
                    let it = *self.find(id);
                    assert_eq!(it.place, Place::Joined(finished.expect("an outcome")), "{it:?}");
                    assert!(self.now < it.deadline);
                    assert!(!self.acted.contains(&id), "done twice");
                    let since = finished.and_then(|it| self.seen.get(&it).copied().flatten());
                    assert!(
                        since.is_none_or(|since| self.came[&id] <= since),
                        "{it:?} came after the look that it is told of"
                    );
                    assert_eq!(self.told.insert(id, finished.expect("an outcome")), None);
                    self.end(id);
                }
            }
        }
        // Every one that had joined is told when the work is over.
        for it in &self.live {
            assert!(finished.is_none_or(|id| it.place != Place::Joined(id)), "{it:?} was not told");
        }
    }

    /// Ends a request that came to nothing, or had joined another; the first that joined it takes over.
    fn end(&mut self, id: u64) {
        assert!(self.ended.insert(id), "ended twice");
        self.live.retain(|it| it.id != id);
        let joined: Vec<u64> =
            self.live.iter().filter(|it| it.place == Place::Joined(id)).map(|it| it.id).collect();
        self.take_over(&joined);
    }

    /// Exactly those requests wait that must wait.
    fn check(&self) {
        for (place, it) in self.live.iter().enumerate() {
            let is_held_up = |is_before: &dyn Fn(usize, &Live) -> bool| {
                self.live.iter().enumerate().any(|(other, first)| {
                    let running = matches!(first.place, Place::Running(_));
                    other != place && (running || is_before(other, first)) && self.must_wait(first, it)
                })
            };
            let held_up = match it.place {
                Place::Running(_) => is_held_up(&|other, first| other < place && !first.was_overtaken),
                Place::Waiting | Place::Joined(_) => is_held_up(&|other, first| {
                    (first.rank, other) < (it.rank, place) && !self.is_stuck(first)
                }),
            };
            match it.place {
                Place::Waiting => assert!(held_up, "{it:?} waits for nothing: {:?}", self.live),
                Place::Running(Stage::Proving | Stage::Acting | Stage::Down | Stage::Looking(_)) => {
                    assert!(!held_up, "{it:?} overtook: {:?}", self.live);
                }
                Place::Running(_) | Place::Joined(_) => {}
            }
            assert!(matches!(it.place, Place::Running(_)) || self.now < it.deadline, "{it:?} is late");
        }
        let waiting = self.live.iter().filter(|it| !matches!(it.place, Place::Running(_)));
        assert_eq!(self.arbiter.next_deadline(), waiting.map(|it| self.at(it.deadline)).min());
    }

    fn must_wait(&self, first: &Live, second: &Live) -> bool {
        let mut leader = first;
        if let Place::Joined(id) = first.place {
            leader = self.live.iter().find(|it| it.id == id).expect("a leader");
        }
        if first.plan.target == second.plan.target {
            let only_off = matches!(first.place, Place::Running(Stage::Late | Stage::Hanging));
            return !only_off || second.plan.kind == Kind::On;
        }
        let past = matches!(leader.place, Place::Running(Stage::SeenOff | Stage::Ending)) && !leader.again;
        if past || first.plan.kind == Kind::On || second.plan.kind == Kind::On {
            return false;
        }
        if first.place == Place::Running(Stage::Hanging) {
            return self.sight[second.plan.from].known && second.plan.from == first.plan.target;
        }
        let may_be = |target: Node, one: &Live, other: &Live| {
            let (mine, its) = (self.sight[one.plan.from], self.sight[other.plan.from]);
            if its.known {
                return other.plan.from == target;
            }
            (one.left || is_in(other.island, target))
                && !(mine.peer && its.peer && one.plan.from == other.plan.from)
        };
        may_be(first.plan.target, first, second) || may_be(second.plan.target, second, first)
    }

    fn find(&mut self, id: u64) -> &mut Live {
        self.live.iter_mut().find(|it| it.id == id).unwrap_or_else(|| panic!("{id} is over"))
    }

    fn time(&self) -> Instant {
        self.at(self.now)
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }
}

fn is_in(island: Island, node: Node) -> bool {
    island.is_none_or(|it| it & (1 << node) != 0)
}

/// The source of a request whose key these can have. Every second one is listed by its name.
fn possible(island: Island) -> RequestSource {
    let Some(set) = island else { return RequestSource::Unknown };
    let (by_uuid, by_name): (Vec<Node>, Vec<Node>) =
        (0..8).filter(|it| is_in(Some(set), *it)).partition(|it| it % 2 == 0);
    let sources = PossibleSources::new(by_uuid.into_iter().map(uuid), by_name.into_iter().map(name));
    RequestSource::OneOf(Arc::new(sources))
}

fn name(node: Node) -> String {
    format!("name {node}")
}

/// Draws the facts about each node. Islands overlap as they come.
fn sights(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Sight>> {
    let looks = [
        (false, false, false),
        (false, true, false),
        (true, false, false),
        (true, true, false),
        (true, true, true),
    ];
    let islands = prop::array::uniform2(prop::option::of(any::<u8>()));
    vec((prop::sample::select(looks.to_vec()), islands), count).prop_map(|drawn| {
        let sight = |(node, ((known, peer, serial), islands)): (Node, (_, [Island; 2]))| {
            let islands = islands.map(|it| it.map(|it| it | 1 << node));
            Sight { known, islands, peer, serial }
        };
        drawn.into_iter().enumerate().map(sight).collect()
    })
}

/// Two islands of 2 and 3 nodes that do not meet, and requests within each.
fn two_islands() -> impl Strategy<Value = (Vec<Sight>, Vec<Plan>, Vec<u16>)> {
    let plan = |nodes: std::ops::Range<Node>| {
        (nodes.clone(), kinds(3, 3), nodes).prop_map(|(from, kind, target)| Plan {
            from,
            kind,
            target,
            patience: 100,
        })
    };
    let plans = vec(prop_oneof![plan(0..2), plan(2..5)], 1..24);
    (sights(5), plans, vec(any::<u16>(), 0..160)).prop_map(|(sight, plans, draws)| {
        let own = |(node, it): (Node, Sight)| Sight { islands: [Some(island_of(node)); 2], ..it };
        (sight.into_iter().enumerate().map(own).collect(), plans, draws)
    })
}

/// The island of a node in [`two_islands`].
fn island_of(node: Node) -> u8 {
    if node < 2 { 0b00011 } else { 0b11100 }
}

fn plan(nodes: usize) -> impl Strategy<Value = Plan> {
    (0..nodes, kinds(3, 3), 0..nodes, 5_u64..80).prop_map(|(from, kind, target, patience)| Plan {
        from,
        kind,
        target,
        patience,
    })
}

/// A world of 2 to 5 nodes, requests of any of them for any of them, and what is drawn.
fn schedule() -> impl Strategy<Value = (Vec<Sight>, Vec<Plan>, Vec<u16>)> {
    sights(2..=5).prop_flat_map(|sight| {
        let nodes = sight.len();
        (Just(sight), vec(plan(nodes), 1..24), vec(any::<u16>(), 0..160))
    })
}

proptest! {
    #![proptest_config(config(2000))]

    /// Everything the world asserts, with clients that give up, proofs and actions that fail, and time.
    #[test]
    fn the_rules_hold_on_every_schedule((sight, plans, draws) in schedule()) {
        // A fence that nobody saw is noticed on a serial line as well: it is closed.
        let sight = sight.into_iter().map(|it| Sight { serial: false, ..it }).collect();
        World::new(sight, plans, true).run(&draws);
    }

    /// The same without faults, where requests come further and meet more often.
    #[test]
    fn the_rules_hold_when_nothing_fails((sight, plans, draws) in schedule()) {
        let patient = plans.into_iter().map(|it| Plan { patience: 100, ..it }).collect();
        World::new(sight, patient, false).run(&draws);
    }

    /// Orders that take effect late, and daemons that end and begin with what is on disk; nothing else fails.
    #[test]
    fn the_rules_hold_for_late_orders_and_over_restarts((sight, plans, draws) in schedule()) {
        let plans = plans.into_iter().map(|it| Plan { patience: 100, ..it }).collect();
        let sight = sight.into_iter().map(|it| Sight { serial: false, ..it }).collect();
        let mut world = World::new(sight, plans, false);
        world.late = true;
        world.run(&draws);
    }

    /// All nodes shoot at all others, each is known, and power-offs hang, for ever or for a time. All else is
    /// over before the last of them comes.
    #[test]
    fn of_known_nodes_one_stays_up_though_orders_hang(
        count in 2_usize..=5,
        order in any::<prop::sample::Index>(),
        hangs in any::<u32>(),
        draws in vec(any::<u16>(), 0..200),
    ) {
        let known = Sight { known: true, islands: [None; 2], peer: false, serial: false };
        let mut plans: Vec<Plan> = (0..count)
            .flat_map(|from| (0..count).filter(move |it| *it != from).map(move |target| (from, target)))
            .map(|(from, target)| Plan { from, kind: Kind::Off, target, patience: 1000 })
            .collect();
        let first = order.index(plans.len());
        plans.rotate_left(first);
        let mut world = World::new(vec![known; count], plans, false);
        world.hang(hangs, &draws);
        prop_assert!(world.nodes.up.iter().any(Option::is_some));
        prop_assert!(world.live.is_empty(), "{:?}", world.live);
    }

    /// Of two islands that do not meet one gets no further, and the other does not notice.
    #[test]
    fn islands_that_do_not_meet_never_wait_for_each_other((sight, plans, draws) in two_islands()) {
        for stuck in [island_of(0), island_of(4)] {
            let mut world = World::new(sight.clone(), plans.clone(), false);
            world.stuck = stuck;
            world.go_on(&draws);
            let left: Vec<_> = world.live.iter().filter(|it| !is_in(Some(stuck), it.plan.from)).collect();
            prop_assert!(left.is_empty(), "{left:?}");
        }
    }

    /// Two nodes shoot at each other, each once or more often.
    #[test]
    fn of_two_exactly_one_stays_up(
        sight in sights(2),
        shots in vec(0_usize..2, 0..6),
        draws in vec(any::<u16>(), 0..60),
    ) {
        let shots = [vec![0, 1], shots].concat();
        let plans = shots
            .into_iter()
            .map(|from| Plan { from, kind: Kind::Off, target: 1 - from, patience: 100 })
            .collect();
        let mut world = World::new(sight, plans, false);
        world.run(&draws);
        prop_assert_eq!(world.nodes.up.iter().flatten().count(), 1);
    }

    /// All nodes shoot at all others.
    #[test]
    fn of_many_at_least_one_stays_up(
        sight in sights(2..=5),
        order in any::<prop::sample::Index>(),
        draws in vec(any::<u16>(), 0..200),
    ) {
        let nodes = sight.len();
        let mut plans: Vec<Plan> = (0..nodes)
            .flat_map(|from| (0..nodes).filter(move |it| *it != from).map(move |target| (from, target)))
            .map(|(from, target)| Plan { from, kind: Kind::Off, target, patience: 100 })
            .collect();
        let first = order.index(plans.len());
        plans.rotate_left(first);
        let mut world = World::new(sight, plans, false);
        world.run(&draws);
        prop_assert!(world.nodes.up.iter().any(Option::is_some));
    }
}
