// SPDX-License-Identifier: GPL-2.0-or-later
//! Random courses of a cluster, seen by its first host: daemons come and go, nodes lose their power and come
//! back, and one domain is started, powered off, undefined and moved, also while the hosts are asked. The
//! observer knows where the domain runs.
//!
//! `PROPTEST_CASES` sets the number of courses.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::evidence::{DomainSite, Finding, ProvedOff, Sight};
use crate::schedules::config;

const NODES: u32 = 4;
const ME: Member = Member { node: 1, pid: 100 };
const UUID: &str = "u";

/// Event at a node.
#[derive(Clone, Copy, Debug)]
enum Event {
    DaemonStarts,
    DaemonEnds,
    /// Corosync does not hear it any more, and it goes on.
    Cut,
    PowerFails,
    /// Boots, with the domain if that was on there and is on nowhere else; the daemon is not started.
    Boots,
    Defined,
    Undefined,
    /// The domain is started here, if it is on nowhere.
    Started,
    PoweredOff,
    /// Moves here from where the domain is on, cold or live.
    MovesHere,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    node: u32,
    event: Event,
    /// The host hears of the change of the domain at once; else only with the next inventory.
    is_published: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Event::{
        Boots, Cut, DaemonEnds, DaemonStarts, Defined, MovesHere, PowerFails, PoweredOff, Started, Undefined,
    };
    let event = prop::sample::select(vec![
        DaemonStarts,
        DaemonStarts,
        DaemonStarts,
        DaemonEnds,
        Cut,
        PowerFails,
        Boots,
        Boots,
        Defined,
        Undefined,
        Started,
        Started,
        PoweredOff,
        MovesHere,
        MovesHere,
    ]);
    let step = (1..=NODES, event, prop::bool::weighted(0.8));
    vec(step.prop_map(|(node, event, is_published)| Step { node, event, is_published }), 0..40)
}

#[derive(Clone, Copy, Debug)]
struct Node {
    has_power: bool,
    /// Process of the daemon, while it is heard.
    daemon: Option<u32>,
    is_defined: bool,
    /// Starts the domain when it boots.
    autostarts: bool,
}

struct World {
    nodes: BTreeMap<u32, Node>,
    /// Node where the domain runs.
    on_at: Option<u32>,
    directory: Directory,
    next_pid: u32,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let node = Node { has_power: true, daemon: None, is_defined: false, autostarts: false };
        let mut nodes: BTreeMap<u32, Node> = (1..=NODES).map(|it| (it, node)).collect();
        nodes.insert(ME.node, Node { daemon: Some(ME.pid), ..node });
        let mut world =
            Self { nodes, on_at: None, directory: Directory::default(), next_pid: 200, now: Instant::now() };
        world.membership();
        world
    }

    fn members(&self) -> BTreeSet<Member> {
        self.nodes.iter().filter_map(|(node, it)| Some(Member { node: *node, pid: it.daemon? })).collect()
    }

    fn membership(&mut self) {
        self.directory.members(&self.members(), &BTreeSet::new());
        for member in self.members() {
            let domains = self.published(member.node).into_iter().collect();
            self.directory.inventory(member, true, true, domains);
        }
    }

    fn published(&self, node: u32) -> Option<PublishedDomain> {
        let state = match (self.on_at == Some(node), self.nodes[&node].is_defined) {
            (true, _) => PublishedState::On,
            // Hosts of the last release said more than they could know.
            (false, true) if node.is_multiple_of(2) => PublishedState::Off,
            (false, true) => PublishedState::Rests,
            (false, false) => return None,
        };
        Some(PublishedDomain::new(UUID.to_owned(), "n".to_owned(), state))
    }

    fn publish(&mut self, node: u32) {
        let Some(pid) = self.nodes[&node].daemon else { return };
        match self.published(node) {
            Some(domain) => self.directory.domain(Member { node, pid }, domain),
            None => self.directory.gone(Member { node, pid }, UUID),
        }
    }

    fn step(&mut self, Step { node, event, is_published }: Step) {
        let before = self.on_at;
        let pid = self.next_pid;
        let Some(at) = self.nodes.get_mut(&node) else { return };
        match event {
            Event::DaemonStarts if at.has_power && at.daemon.is_none() => {
                at.daemon = Some(pid);
                self.next_pid += 1;
            }
            Event::DaemonEnds | Event::Cut if node != ME.node => at.daemon = None,
            Event::PowerFails if node != ME.node => {
                at.autostarts = self.on_at == Some(node);
                at.has_power = false;
                at.daemon = None;
                self.on_at = self.on_at.filter(|it| *it != node);
            }
            Event::Boots if !at.has_power => {
                at.has_power = true;
                if at.autostarts && self.on_at.is_none() {
                    self.on_at = Some(node);
                }
            }
            Event::Defined => at.is_defined = true,
            Event::Undefined => at.is_defined = false,
            Event::Started if at.has_power && self.on_at.is_none() => self.on_at = Some(node),
            Event::PoweredOff if self.on_at == Some(node) => self.on_at = None,
            Event::MovesHere if at.has_power && self.on_at.is_some() => self.on_at = Some(node),
            _ => return,
        }
        match event {
            Event::DaemonStarts | Event::DaemonEnds | Event::Cut | Event::PowerFails => self.membership(),
            _ if is_published => {
                for it in before.into_iter().chain([node]) {
                    self.publish(it);
                }
            }
            _ => {}
        }
    }

    /// Looks at the places, one after the other; `moves` is the place before whose look the domain
    /// moves from where it is on, and where to.
    fn round(&mut self, moves: Option<(usize, u32)>) -> Vec<Finding> {
        let mut places = vec![OtherNode::Heard(ME)];
        places.extend(self.directory.other_nodes(ME, 1..=NODES, UUID));
        let mut findings = Vec::new();
        for (number, place) in places.into_iter().enumerate() {
            if let Some((_, node)) = moves.filter(|(before, _)| *before == number) {
                self.step(Step { node, event: Event::MovesHere, is_published: false });
            }
            let (node, sight) = match place {
                OtherNode::Heard(it) | OtherNode::Legacy(it) if self.on_at == Some(it.node) => {
                    (it.node, Sight::On)
                }
                OtherNode::Heard(it) | OtherNode::Legacy(it) => (it.node, Sight::Absent),
                // The proof: whether it has power is asked now.
                OtherNode::NotHeard(it) if self.nodes[&it].has_power => {
                    (it, Sight::Unknown("silent".to_owned()))
                }
                OtherNode::NotHeard(it) => (it, Sight::Absent),
            };
            let began = self.now;
            self.now += Duration::from_millis(1);
            let place = DomainSite::Host(format!("node {node}"));
            findings.push(Finding::without_namesakes(place, sight, began, self.now));
        }
        findings
    }
}

proptest! {
    #![proptest_config(config(2048))]

    /// Whatever was published, and whatever any host has seen: a domain that is proved off runs nowhere, also
    /// where it moved once while the hosts were asked.
    #[test]
    fn what_is_proved_off_runs_nowhere(steps in steps(), moves in prop::option::of((0_usize..8, 1..=NODES))) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            let asked = world.now;
            let rounds = [world.round(None), world.round(None)];
            let proved = ProvedOff::from_rounds(asked, &rounds);
            prop_assert!(proved.is_err() || world.on_at.is_none(), "on at {:?}", world.on_at);
            // With all daemons heard and nothing on, somebody can say so.
            if world.on_at.is_none() && world.members().len() == world.nodes.len() {
                prop_assert!(proved.is_ok(), "{proved:?}");
            }
        }
        let (asked, was_on) = (world.now, world.on_at);
        let first = moves.filter(|(at, _)| *at < 4);
        let second = moves.filter(|(at, _)| *at >= 4).map(|(at, node)| (at - 4, node));
        let rounds = [world.round(first), world.round(second)];
        let proved = ProvedOff::from_rounds(asked, &rounds);
        prop_assert!(proved.is_err() || was_on.is_none(), "on at {was_on:?}, then at {:?}", world.on_at);
    }
}

/// Event that changes what is known of names.
#[derive(Clone, Debug)]
enum NameEvent {
    Published(u32, PublishedDomain),
    Undefined(u32, String),
    Leaves(u32),
    /// A new daemon says what it has.
    Joins(u32, Vec<PublishedDomain>),
}

fn name_events() -> impl Strategy<Value = Vec<NameEvent>> {
    let node = || 1..=3_u32;
    // The UUID of one may be the name of another.
    let uuid = || prop::sample::select(vec!["u", "v", "w"]).prop_map(str::to_owned);
    let name = prop::sample::select(vec!["n", "m", "u"]).prop_map(str::to_owned);
    let state = prop::sample::select(vec![
        PublishedState::On,
        PublishedState::Off,
        PublishedState::Gone,
        PublishedState::Gone,
        PublishedState::Rests,
    ]);
    let domain =
        (uuid(), name, state).prop_map(|(uuid, name, state)| PublishedDomain::new(uuid, name, state));
    let event = prop_oneof![
        6 => (node(), domain.clone()).prop_map(|(node, it)| NameEvent::Published(node, it)),
        1 => (node(), uuid()).prop_map(|(node, it)| NameEvent::Undefined(node, it)),
        2 => node().prop_map(NameEvent::Leaves),
        2 => (node(), vec(domain, 0..3)).prop_map(|(node, it)| NameEvent::Joins(node, it)),
    ];
    vec(event, 0..30)
}

/// Latest word of each node, with whether the node is heard.
#[derive(Default)]
struct SaidDomains(BTreeMap<u32, (bool, BTreeMap<String, PublishedDomain>)>);

impl SaidDomains {
    fn take(&mut self, event: &NameEvent) {
        match event {
            NameEvent::Published(node, domain) => {
                if let Some((true, said)) = self.0.get_mut(node) {
                    said.insert(domain.uuid.clone(), domain.clone());
                }
            }
            NameEvent::Undefined(node, uuid) => {
                if let Some((true, said)) = self.0.get_mut(node) {
                    said.remove(uuid);
                }
            }
            NameEvent::Leaves(node) => self.0.entry(*node).or_default().0 = false,
            NameEvent::Joins(node, domains) => {
                let said = domains.iter().map(|it| (it.uuid.clone(), it.clone())).collect();
                self.0.insert(*node, (true, said));
            }
        }
        // A domain that is on at a host that is heard is not on any more where it was lost.
        let heard = self.0.values().filter(|(is_heard, _)| *is_heard).flat_map(|(_, said)| said.values());
        let on = heard.filter(|it| it.state == PublishedState::On).map(|it| it.uuid.clone());
        let on: BTreeSet<String> = on.collect();
        for (_, said) in self.0.values_mut().filter(|(is_heard, _)| !*is_heard) {
            said.retain(|uuid, it| it.state != PublishedState::On || !on.contains(uuid));
        }
    }

    fn all(&self) -> impl Iterator<Item = &PublishedDomain> {
        self.0.values().flat_map(|(_, said)| said.values())
    }

    /// Returns whether only hosts that are not heard can have the domain, and one had it last.
    fn is_only_lost(&self, uuid: &str) -> bool {
        let has = |said: &BTreeMap<String, PublishedDomain>| said.get(uuid).map(|it| it.state);
        let words = || self.0.values().map(|(is_heard, said)| (*is_heard, has(said)));
        !words().any(|it| matches!(it, (true, Some(state)) if state != PublishedState::Gone))
            && words().any(|it| matches!(it, (false, Some(_))))
    }

    /// Returns the domains that a text may mean.
    fn meant(&self, text: &str, only_uuid: bool) -> BTreeSet<String> {
        let is_by_name = |it: &&PublishedDomain| !only_uuid && it.name == text;
        let has_life = |uuid: &str| self.all().any(|it| it.uuid == uuid && it.state != PublishedState::Gone);
        let by_uuid: BTreeSet<String> =
            self.all().filter(|it| it.uuid == text).map(|it| it.uuid.clone()).collect();
        let by_name: BTreeSet<String> = self.all().filter(is_by_name).map(|it| it.uuid.clone()).collect();
        let living = by_name.iter().chain(&by_uuid).any(|it| has_life(it));
        by_name.into_iter().filter(|it| !living || has_life(it)).chain(by_uuid).collect()
    }
}

proptest! {
    #![proptest_config(config(2048))]

    /// One that may run or can be started is always meant by its name, and a UUID always means its domain. A
    /// name means an ended domain only where it means no other: so nothing is said of the one for the other.
    #[test]
    fn a_name_means_each_domain_that_may_run(events in name_events()) {
        let (mut directory, mut said) = (Directory::default(), SaidDomains::default());
        let mut members: BTreeMap<u32, Member> = BTreeMap::new();
        for (pid, event) in (100..).zip(&events) {
            match event {
                NameEvent::Published(node, domain) => {
                    members.get(node).into_iter().for_each(|it| directory.domain(*it, domain.clone()));
                }
                NameEvent::Undefined(node, uuid) => {
                    members.get(node).into_iter().for_each(|it| directory.gone(*it, uuid));
                }
                NameEvent::Leaves(node) => drop(members.remove(node)),
                NameEvent::Joins(node, _) => drop(members.insert(*node, Member { node: *node, pid })),
            }
            directory.members(&members.values().copied().collect(), &BTreeSet::new());
            if let NameEvent::Joins(node, domains) = event {
                directory.inventory(members[node], true, true, domains.clone());
            }
            said.take(event);
            for text in ["n", "m", "u", "v", "w"] {
                for only_uuid in [false, true] {
                    let named = directory.named(text, only_uuid).into_iter().map(|(_, uuid)| uuid).collect();
                    prop_assert_eq!(said.meant(text, only_uuid), named, "{} {}", text, only_uuid);
                }
                check_rivals(&directory, &said, text)?;
            }
        }
    }
}

/// Checks that no domain with the name is left out where one of them is asked for, and that none of the
/// others can be at a host that is heard.
fn check_rivals(directory: &Directory, said: &SaidDomains, text: &str) -> Result<(), TestCaseError> {
    let named: Vec<String> = directory.named(text, false).into_iter().map(|(_, uuid)| uuid).collect();
    let at_hand = named.iter().filter(|it| !said.is_only_lost(it)).count();
    let Some((one, rivals)) = directory.split_rivals(text, &named) else {
        let is_uuid = named.iter().any(|it| it == text);
        prop_assert!(at_hand > 1 || named.is_empty() || is_uuid, "{text}: {named:?}");
        return Ok(());
    };
    prop_assert!(at_hand <= 1, "{text}: {named:?}");
    prop_assert!(at_hand == 0 || !said.is_only_lost(&named[one]), "{text}: {named:?}");
    prop_assert!(rivals.iter().all(|it| said.is_only_lost(&named[*it])), "{text}: {named:?}");
    let mut all: Vec<usize> = rivals.into_iter().chain([one]).collect();
    all.sort_unstable();
    prop_assert_eq!(all, (0..named.len()).collect::<Vec<_>>());
    Ok(())
}
