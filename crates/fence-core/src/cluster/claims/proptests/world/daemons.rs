// SPDX-License-Identifier: GPL-2.0-or-later
//! The hosts' daemons of the world: requests of guests, and asks between hosts.

use std::sync::Arc;

use super::late::TERM;
use super::{Guest, Job, Packet, Place, Plan, Served, Sight, Step, World, node};
use crate::arbiter::{ArbiterRequest, PeerId, PossibleSources, RequestSource, SharedResult};
use crate::cluster::claims::ClaimEffect;
use crate::cluster::message::{AskAction, AskEnd, AskMessage, AskOutcome, ClaimMessage, HostMessage, Member};
use crate::domain::TargetKind;
use crate::schedules::{Kind, source, uuid};
use fence_wire::Response;

/// Returns the name by which the world tells claims apart in what others are told.
fn name_of((asker, id): (Member, u64)) -> String {
    format!("{asker}, claim {id}")
}

/// Returns where a request of this guest comes from, as its host knows it.
fn possible_source(sight: Sight, from: Guest) -> RequestSource {
    let Some(island) = sight.island.filter(|_| !sight.known) else { return source(sight.known, from) };
    let members = (0..8).filter(|it| *it == from || island & (1 << it) != 0);
    RequestSource::OneOf(Arc::new(PossibleSources::new(members.map(uuid), [""; 0])))
}

impl World {
    pub(super) fn arrive(&mut self) {
        let plan = self.plans.pop_front().unwrap();
        let (Some(life), Some(host)) = (self.guests.up[plan.from], self.hosts[plan.at].as_mut()) else {
            return;
        };
        if host.stopped {
            return;
        }
        let sight = self.sight[plan.from];
        let request = ArbiterRequest {
            name: Some("a name that no group lists".into()),
            id: 0,
            work: plan.kind.work(uuid(plan.target)),
            source: possible_source(sight, plan.from),
            // As behind a NAT: two hosts may know two guests by one address.
            peer: sight.peer.then(|| PeerId(format!("address {}", (plan.from + plan.at) % self.sight.len()))),
            sender: None,
            by: TargetKind::Name,
            arrived: self.start,
            deadline: self.start,
        };
        let source_at = sight.known.then(|| vec![node(sight.home)]);
        let (id, effects) = host.claims.claim(&request, source_at, Some(TERM)).unwrap();
        let until = self.now + TERM;
        host.jobs.insert(id, Job { plan, life, step: Step::Waiting, ask: None, until });
        if !host.joined {
            self.claimed.insert((host.member, id), self.event);
        }
        self.obey(plan.at, effects);
    }

    pub(super) fn obey(&mut self, place: Place, effects: Vec<ClaimEffect>) {
        let member = self.host(place).member;
        for effect in effects {
            match effect {
                ClaimEffect::Send(message) => {
                    assert!(message.encode().is_ok());
                    self.send(place, Packet::Said(message));
                }
                ClaimEffect::Run(id) => {
                    assert!(self.ran.insert((member, id)), "{id} was told to run twice");
                    let job = self.host(place).jobs.get_mut(&id).expect("a waiting request");
                    assert_eq!(job.step, Step::Waiting);
                    job.step = Step::Proving;
                }
                ClaimEffect::Coalesced(id, result) => {
                    self.told(place, id, &result);
                    self.over(place, id);
                }
                ClaimEffect::Rejected(id, _) => self.over(place, id),
                ClaimEffect::Victim(_) => {}
            }
        }
    }

    fn over(&mut self, place: Place, id: u64) {
        // A granted request learns of it when it has proved itself.
        let host = self.host(place);
        if host.jobs.get(&id).is_some_and(|it| it.step == Step::Waiting) {
            host.jobs.remove(&id);
        } else {
            assert_eq!(host.jobs.get(&id).map(|it| it.step), Some(Step::Proving));
        }
    }

    /// Asserts that a request is told of no look from before it: its claim was made before that look was
    /// told. Hosts that lose each other may not hear of the look.
    fn told(&mut self, place: Place, id: u64, result: &SharedResult) {
        let key = (self.host(place).member, id);
        let leader = self.claimed.keys().find(|it| result.reason == Some(name_of(**it))).expect("a claim");
        assert_ne!(*leader, key);
        let seen = self.seen.get(leader).filter(|_| self.together);
        assert!(
            seen.is_none_or(|it| self.claimed[&key] < *it),
            "{key:?} of {} is told of {leader:?}, seen off at {seen:?}",
            self.claimed[&key]
        );
    }

    pub(super) fn work(&mut self, place: Place, id: u64) {
        let job = self.host(place).jobs[&id];
        match job.step {
            Step::Proving => {
                let alive = self.guests.up[job.plan.from] == Some(job.life);
                if !alive || self.host(place).claims.proved(id).is_err() {
                    return self.withdraw(place, id);
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
                    what: AskAction::Off,
                    uuid: uuid(job.plan.target),
                    name: String::new(),
                    claim,
                    rests: false,
                    left_ms: 0,
                    request: 0,
                    dry_run: None,
                });
                self.send(place, Packet::Said(message));
            }
            // As late as it can: right before the order.
            Step::Acting if self.now >= job.until => self.finish(place, id, Response::Failure),
            Step::Acting if job.plan.kind == Kind::On => {
                self.guests.power_on(job.plan.target);
                self.to(place, id, Step::Ending);
            }
            Step::Acting => {
                self.to(place, id, Step::Down);
                self.take_down(job.plan);
            }
            Step::Down => {
                self.to(place, id, Step::SeenOff);
                let host = self.host(place);
                if !host.joined {
                    let member = host.member;
                    self.seen.entry((member, id)).or_insert(self.event);
                }
                let effects = self.host(place).claims.seen_off(id);
                self.obey(place, effects);
            }
            Step::SeenOff => {
                if job.plan.kind == Kind::Reboot {
                    self.guests.power_on(job.plan.target);
                }
                self.to(place, id, Step::Ending);
            }
            Step::Ending => self.finish(place, id, Response::Success),
            Step::Waiting | Step::Asking => panic!("{job:?} does not run"),
        }
    }

    pub(super) fn to(&mut self, place: Place, id: u64, step: Step) {
        self.host(place).jobs.get_mut(&id).unwrap().step = step;
    }

    pub(super) fn finish(&mut self, place: Place, id: u64, response: Response) {
        let host = self.host(place);
        host.jobs.remove(&id);
        let name = name_of((host.member, id));
        let effects = host.claims.finished(id, response, Some(&name));
        self.obey(place, effects);
    }

    /// Ends a request whose client's time is up while another host works. Its claim must hold until that host
    /// is done, even so.
    pub(super) fn give_up(&mut self, place: Place, id: u64) {
        if let Some((to, ask)) = self.host(place).jobs[&id].ask {
            self.send(place, Packet::Said(HostMessage::Cancel { to, ask }));
        }
        self.finish(place, id, Response::Failure);
    }

    /// Takes a message if it is part of an ask.
    pub(super) fn take_ask_message(&mut self, place: Place, from: Member, message: HostMessage) {
        let me = self.host(place).member;
        match message {
            HostMessage::Ask(ask) if ask.to == me => {
                let claim = ask.claim.as_ref().unwrap();
                let plan = self.plan_of(from, claim);
                let (id, until) = (claim.id, self.now);
                self.host(place)
                    .served
                    .insert((from, ask.ask), Served { plan, claim: id, step: Step::Waiting, until });
                self.send_as_owner(place, HostMessage::Taken { asker: from, ask: ask.ask, claim: id });
            }
            HostMessage::Cancel { to, ask } if to == me => {
                let waits =
                    self.host(place).served.get(&(from, ask)).is_some_and(|it| it.step == Step::Waiting);
                if waits {
                    self.reply(place, (from, ask), AskEnd::NothingDone(String::new()));
                }
            }
            HostMessage::Taken { asker, ask, claim } if asker == me => {
                let now = self.now;
                let job = self.host(place).jobs.get(&claim).filter(|it| it.ask == Some((from, ask)));
                let packet = match job {
                    Some(job) => Packet::Go(from, ask, job.until.saturating_duration_since(now)),
                    None => Packet::Said(HostMessage::Cancel { to: from, ask }),
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
                        AskEnd::NotHere | AskEnd::NothingDone(_) => self.withdraw(place, claim),
                    }
                }
            }
            _ => {}
        }
    }

    /// Returns the plan behind a claim. A real owner learns it from the message.
    pub(super) fn plan_of(&self, asker: Member, claim: &ClaimMessage) -> Plan {
        let guest = |it: &str| it.rsplit(' ').next().unwrap().parse::<Guest>().unwrap();
        let host = self.hosts.iter().flatten().find(|it| it.member == asker);
        let from = host.and_then(|it| it.jobs.get(&claim.id)).map(|it| it.plan.from);
        let from = from.or_else(|| claim.source.as_deref().map(guest)).unwrap_or(usize::MAX);
        let kind = match claim.what {
            AskAction::On => Kind::On,
            AskAction::Reboot => Kind::Reboot,
            AskAction::Off | AskAction::Status => Kind::Off,
        };
        Plan { from, at: 0, kind, target: guest(&claim.target) }
    }

    pub(super) fn send_as_owner(&mut self, place: Place, message: HostMessage) {
        let effects = self.host(place).claims.record_owner_message(&message);
        self.obey(place, effects);
        self.send(place, Packet::Said(message));
    }

    pub(super) fn reply(&mut self, place: Place, (asker, ask): (Member, u64), end: AskEnd) {
        let served = self.host(place).served.remove(&(asker, ask)).unwrap();
        self.send_as_owner(place, HostMessage::Reply { asker, ask, claim: Some(served.claim), end });
    }

    pub(super) fn serve(&mut self, place: Place, key: (Member, u64)) {
        let served = self.host(place).served[&key];
        let next = match served.step {
            Step::Acting if self.now >= served.until => {
                return self.reply(place, key, AskEnd::NothingDone(String::new()));
            }
            Step::Acting if served.plan.kind == Kind::On => {
                self.guests.power_on(served.plan.target);
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
                self.send_as_owner(
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
                    self.guests.power_on(served.plan.target);
                }
                Step::Ending
            }
            Step::Ending => {
                let name = name_of((key.0, served.claim));
                return self.reply(place, key, AskEnd::Done(AskOutcome::new(Response::Success, Some(&name))));
            }
            Step::Waiting | Step::Proving | Step::Asking => panic!("{served:?} does not run"),
        };
        self.host(place).served.get_mut(&key).unwrap().step = next;
    }

    /// Ends asks after a membership change.
    pub(super) fn end_lost_asks(&mut self, place: Place) {
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

    pub(super) fn withdraw(&mut self, place: Place, id: u64) {
        let host = self.host(place);
        host.jobs.remove(&id);
        let effects = host.claims.withdraw(id);
        self.obey(place, effects);
    }

    pub(super) fn take_down(&mut self, by: Plan) {
        self.shots += 1;
        self.ended(by.target);
        if !self.guests.power_off(by.target, by.from) || !self.together {
            return;
        }
        // Nobody loses its source between its proof and its own target's being seen off, but by its own hand.
        // One that shoots itself is to go down.
        let exposed = |plan: Plan| {
            plan.kind != Kind::On
                && plan.from == by.target
                && by.from != by.target
                && plan.target != by.target
        };
        for host in self.hosts.iter().flatten() {
            // Beyond its time no order is given any more, and while a daemon stands still nothing is done; an
            // order that was given may come late.
            let acts = |step, until| match step {
                Step::Acting => self.now < until,
                Step::Down => !host.stopped || self.now < until,
                _ => false,
            };
            for job in host.jobs.values().filter(|it| acts(it.step, it.until)) {
                assert!(!exposed(job.plan), "{by:?} takes the source of {job:?} down");
            }
            for served in host.served.values().filter(|it| acts(it.step, it.until)) {
                assert!(!exposed(served.plan), "{by:?} takes the source of {served:?} down");
            }
        }
        self.assert_not_exposed(by);
        self.guests.assert_a_survivor();
    }
}
