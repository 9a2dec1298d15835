// SPDX-License-Identifier: GPL-2.0-or-later
//! The hosts of a corosync cluster as one service: docs/cpg.md.
//!
//! Owns this daemon's membership of the two groups, what is known of the other hosts and their domains, the claims, and
//! what hosts ask each other for. One task hears both groups, in corosync's order, and never waits for anything else:
//! what takes time is a task of its own. The lock is held for arithmetic and for handing messages to a link, which waits
//! for nothing; so what is sent has the order in which it was decided.

pub(crate) mod asks;
pub(crate) mod backend;
mod claiming;
mod legacy;
pub(crate) mod link;
pub(crate) mod lost_hosts;
#[cfg(test)]
#[path = "../../../corosync-cpg/tests/node/mod.rs"]
pub(crate) mod node;
pub(crate) mod own_domains;
mod owner;

use fence_core::cluster::message::{AskOutcome, PublishedState};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use corosync_cpg::{Node, Reason};
use fence_config::{CpgBackend as Settings, NameMode};
use fence_wire::{Action, Response, Target};
use libvirt_host::Uuid;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use self::asks::{AskEvent, IncomingAsks, OutgoingAsks};
use self::claiming::WaitingClaims;
use self::legacy::LegacyHosts;
use self::link::{Link, LinkEvent, LinkReceiver};
use self::lost_hosts::{DownEvidence, LostHost};
use self::own_domains::{OwnChange, OwnDomain, OwnDomains, OwnPower};
use crate::backend::libvirt::LibvirtBackend;
use crate::request::lease::{Lease, LeaseReleased};
use crate::service::{NOT_STARTED, Service};
use crate::util::locks::lock;
use fence_core::cluster::claims::ClusterArbiter;
use fence_core::cluster::directory::{Directory, DirectoryAnswer};
use fence_core::cluster::message::{AskAction, AskEnd, AskMessage, HostMessage, PublishedDomain};
use fence_core::domain::{ActionError, DomainHome, DomainRef, ListedDomain, PowerState};

pub(crate) use self::claiming::ClusterClaims;
pub(crate) use fence_core::cluster::message::Member;

/// Who waits for news looks again after this long, news or not.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long an owner's answer may be late: it answers at the deadline itself when it has nothing better to say.
const REPLY_GRACE: Duration = Duration::from_millis(500);
/// How long what an owner began may still take effect after it was lost.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);

/// See the module's head.
pub(crate) struct Cluster {
    local: Arc<LibvirtBackend>,
    state: Mutex<ClusterState>,
    /// The group of the hosts that run this daemon.
    link: Link,
    /// The group of all hosts, in the C daemon's messages.
    legacy_link: Link,
    name_mode: NameMode,
    proofs: DownEvidence,
    /// Counts changes of anything that a request may wait for.
    news: watch::Sender<u64>,
    service: OnceLock<Weak<Service>>,
}

struct ClusterState {
    /// Who this daemon is in the group; none while it is not in it.
    me: Option<Member>,
    /// Why not.
    why_not: String,
    members: BTreeSet<Member>,
    nodes: BTreeMap<u32, Option<String>>,
    own: BTreeMap<Uuid, OwnDomain>,
    /// Every hypervisor of this host was looked at: `own` is all that it has.
    is_own_whole: bool,
    directory: Directory,
    /// This host's word in the common arbiter, and its requests that wait for that.
    claims: ClusterArbiter,
    waiting: WaitingClaims,
    asks: OutgoingAsks,
    served: IncomingAsks,
    old: LegacyHosts,
    /// Nodes that corosync hears now.
    ring: BTreeSet<u32>,
    /// Since when it hears nodes that it heard at any time.
    node_up_since: BTreeMap<u32, SystemTime>,
    /// Those that it does not hear: once it heard them, or its node list names them.
    lost_nodes: BTreeMap<u32, LostHost>,
    /// When this host came to corosync last.
    joined_at: SystemTime,
    stopping: bool,
}

/// Where a domain is, as far as this host heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DomainPlace {
    /// On at these members; at several while it migrates.
    On(Vec<Member>),
    /// On nowhere, without a doubt; these have it, off.
    Off(Vec<Member>),
    /// Last on at this node, whose daemon is not heard.
    Lost { node: u32, why: String },
    /// Off where it is known, and nobody saw it go off: it may be on at these nodes, which are not heard.
    Doubt { nodes: Vec<u32>, why: String },
    /// Last on at this node, which is known to be down.
    Down(u32),
    /// Not all hosts have said yet what they have.
    NotYet(String),
    /// Nobody has it.
    Unknown,
}

impl Cluster {
    /// Joins the groups, as soon as corosync is there. Must run inside the runtime.
    ///
    /// # Errors
    /// No threads or descriptors.
    pub(crate) fn start(
        settings: &Settings,
        local: Arc<LibvirtBackend>,
    ) -> io::Result<(Arc<Self>, LinkEvents)> {
        // The second first: so nobody takes this host for one of the C daemon.
        let (link, events) = Link::start(&format!("{}-2", settings.group))?;
        let (first, first_events) = Link::start(&settings.group)?;
        let mut number = [0; 8];
        rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut number)
            .map_err(|error| io::Error::other(error.to_string()))?;
        // Far from the end of its numbers.
        let first_number = u64::from_le_bytes(number) >> 1;
        let state = ClusterState {
            me: None,
            why_not: "corosync has not answered yet".to_owned(),
            members: BTreeSet::new(),
            nodes: BTreeMap::new(),
            own: BTreeMap::new(),
            is_own_whole: false,
            directory: Directory::default(),
            old: LegacyHosts::new(),
            ring: BTreeSet::new(),
            node_up_since: BTreeMap::new(),
            lost_nodes: BTreeMap::new(),
            joined_at: SystemTime::now(),
            claims: ClusterArbiter::new(first_number, Instant::now()),
            waiting: WaitingClaims::default(),
            asks: OutgoingAsks::new(first_number),
            served: IncomingAsks::default(),
            stopping: false,
        };
        let this = Arc::new(Self {
            local,
            state: Mutex::new(state),
            link,
            legacy_link: first,
            name_mode: settings.name_mode,
            proofs: DownEvidence::new(&settings.host_down),
            news: watch::Sender::new(0),
            service: OnceLock::new(),
        });
        Ok((this, LinkEvents { events, first: first_events }))
    }

    /// Begins to work for other hosts.
    pub(crate) fn serve(self: &Arc<Self>, started: LinkEvents, service: &Arc<Service>) {
        let _ = self.service.set(Arc::downgrade(service));
        let mine = Arc::downgrade(self);
        OwnDomains::follow(self.local.hypervisors(), move |changes, is_whole| {
            if let Some(this) = mine.upgrade() {
                this.publish(changes, is_whole);
            }
        });
        tokio::spawn(Arc::clone(self).run_dispatcher(started.events, started.first));
        tokio::spawn(Arc::clone(self).free_old_hosts());
        tokio::spawn(Arc::clone(self).exclude_silent_members());
    }

    /// The daemon ends: nothing new is done for other hosts.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
    }

    /// Leaves the groups, so that the others know at once.
    pub(crate) async fn leave(&self) {
        tokio::join!(self.link.leave(), self.legacy_link.leave());
    }

    /// Whether this host is in the group.
    pub(crate) fn is_joined(&self) -> bool {
        self.state().me.is_some()
    }

    pub(crate) fn me(&self) -> Option<Member> {
        self.state().me
    }

    /// The other hosts that run this daemon.
    pub(crate) fn others(&self) -> Vec<Member> {
        let state = self.state();
        state.members.iter().filter(|it| Some(**it) != state.me).copied().collect()
    }

    /// Why only what runs here can be dealt with.
    pub(crate) fn standalone_reason(&self) -> String {
        self.state().why_alone()
    }

    /// What a member's host is called.
    pub(crate) fn name(&self, member: Member) -> String {
        self.state().name(member.node)
    }

    /// News of where domains are, from now on.
    pub(crate) fn changed(&self) -> ChangeWatch {
        ChangeWatch(self.news.subscribe())
    }

    /// Asks another host. What it does ends by the lease; the answer is to be waited for with [`Asked`].
    pub(crate) fn ask(
        self: &Arc<Self>,
        to: Member,
        what: Action,
        domain: &DomainRef,
        rests: bool,
        lease: &Lease,
    ) -> Result<PendingAsk, ActionError> {
        let what =
            what_of(what).ok_or_else(|| ActionError::Refused(format!("{what} is not for other hosts")))?;
        let mut state = self.state();
        let owner = state.name(to.node);
        let gone = || ActionError::Unavailable(format!("{owner} left before it was asked"));
        if state.me.is_none() || !state.members.contains(&to) {
            return Err(gone());
        }
        let claim = state.waiting.claim_of(lease.request()).and_then(|it| state.claims.of(it)).cloned();
        if claim.is_none() && what != AskAction::Status {
            return Err(ActionError::Lapsed("its turn among the hosts was lost"));
        }
        let left = lease.until().saturating_duration_since(Instant::now());
        let (ask, told) = state.asks.begin(to, lease);
        let message = HostMessage::Ask(AskMessage {
            to,
            ask,
            what,
            uuid: domain.uuid.clone(),
            name: domain.name.clone(),
            claim: claim.filter(|_| what != AskAction::Status),
            rests,
            left_ms: left.as_millis().try_into().unwrap_or(u64::MAX),
            request: lease.request(),
        });
        if !self.send(&message) {
            state.asks.forget(ask);
            return Err(gone());
        }
        drop(state);
        Ok(PendingAsk { cluster: Arc::clone(self), ask, to, owner, told, over: false })
    }

    fn service(&self) -> Option<Arc<Service>> {
        self.service.get().and_then(Weak::upgrade)
    }

    fn state(&self) -> MutexGuard<'_, ClusterState> {
        lock(&self.state)
    }

    fn notify_waiters(&self) {
        self.news.send_modify(|it| *it = it.wrapping_add(1));
    }

    fn send(&self, message: &HostMessage) -> bool {
        match message.encode() {
            Ok(bytes) => self.link.send(bytes).is_ok(),
            Err(error) => {
                warn!("a message to the other hosts can't be sent: {error}");
                false
            }
        }
    }

    fn publish_all(&self, state: &ClusterState) {
        if state.me.is_some() && state.is_own_whole {
            let own: Vec<PublishedDomain> =
                state.own.iter().map(|(uuid, own)| published(*uuid, own.clone())).collect();
            for part in HostMessage::inventory(&own) {
                self.send(&part);
            }
        }
    }

    /// This host's domains changed. Not before all of them are known is anything said: else others would take what is
    /// missing for what is not here.
    fn publish(&self, changes: Vec<OwnChange>, is_whole: bool) {
        let mut state = self.state();
        let was_whole = mem::replace(&mut state.is_own_whole, is_whole);
        for (uuid, own) in changes {
            let message = match &own {
                Some(own) => HostMessage::Domain(published(uuid, own.clone())),
                None => HostMessage::DomainGone { uuid: uuid.to_string() },
            };
            match own {
                Some(own) => {
                    self.publish_to_old(&state, uuid, &own);
                    state.own.insert(uuid, own);
                }
                None => drop(state.own.remove(&uuid)),
            }
            if state.me.is_some() && was_whole {
                self.send(&message);
            }
        }
        if is_whole && !was_whole {
            self.publish_all(&state);
        }
        drop(state);
        self.notify_waiters();
    }
}

/// See [`Cluster::counted`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterCounts {
    pub(crate) joined: bool,
    /// That run this daemon, this one among them.
    pub(crate) hosts: usize,
    pub(crate) old_hosts: usize,
    /// Nodes of corosync's list without a daemon in either group.
    pub(crate) not_heard: usize,
    /// Last seen on at hosts that are not heard now.
    pub(crate) lost_domains: usize,
    /// In flight and waiting, of all hosts.
    pub(crate) claims: (usize, usize),
    /// Asked of other hosts and not over.
    pub(crate) asks: usize,
}

/// What hears the groups before [`Cluster::serve`].
pub(crate) struct LinkEvents {
    events: LinkReceiver,
    first: LinkReceiver,
}

impl Cluster {
    async fn run_dispatcher(self: Arc<Self>, mut events: LinkReceiver, mut first: LinkReceiver) {
        loop {
            tokio::select! {
                // The second group is where members are told apart, so it is heard first.
                biased;
                event = events.next() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                event = first.next() => match event {
                    Some(event) => self.on_legacy_event(event),
                    None => return,
                },
            }
            self.notify_waiters();
        }
    }

    fn on_event(self: &Arc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Joined { me, nodes } => self.joined(member(me), nodes),
            LinkEvent::NodeList { nodes } => {
                let mut state = self.state();
                state.set_nodes(nodes);
                self.update_losses(&mut state);
            }
            LinkEvent::Ring { nodes } => self.ring(&nodes),
            LinkEvent::Message { from, data } => self.message(member(from), &data),
            LinkEvent::Change { members, left, joined } => self.change(&members, &left, &joined),
            LinkEvent::Lost(why) => self.lost(why),
        }
    }

    fn on_legacy_event(self: &Arc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Joined { me, .. } => self.old_joined(me.node),
            LinkEvent::Message { from, data } => self.old_message(member(from), &data),
            LinkEvent::Change { members, left, .. } => {
                let left: Vec<Member> = left.iter().map(|(it, _)| member(*it)).collect();
                self.old_change(members.into_iter().map(member).collect(), &left);
            }
            LinkEvent::Lost(_) => self.old_lost(),
            // The second group's says the same.
            LinkEvent::NodeList { .. } | LinkEvent::Ring { .. } => {}
        }
    }

    /// These nodes are heard by corosync, whatever runs on them.
    fn ring(&self, nodes: &[u32]) {
        let mut state = self.state();
        // Those that were there before us came when we did, as far as we can tell.
        let came = if state.node_up_since.is_empty() { state.joined_at } else { SystemTime::now() };
        for node in nodes {
            state.node_up_since.entry(*node).or_insert(came);
        }
        state.ring = nodes.iter().copied().collect();
        self.update_losses(&mut state);
    }

    fn update_losses(&self, state: &mut ClusterState) {
        let known: BTreeSet<u32> = state.nodes.keys().chain(state.node_up_since.keys()).copied().collect();
        for node in known {
            if state.ring.contains(&node) {
                if let Some(loss) = state.lost_nodes.remove(&node) {
                    loss.ended();
                }
            } else if !state.lost_nodes.contains_key(&node) {
                let name = state.nodes.get(&node).cloned().flatten();
                let since = state.node_up_since.remove(&node).unwrap_or(state.joined_at);
                state.lost_nodes.insert(node, self.proofs.lost(node, name, since));
            }
        }
    }

    fn joined(&self, me: Member, nodes: Option<Vec<Node>>) {
        let mut state = self.state();
        state.me = Some(me);
        state.joined_at = SystemTime::now();
        state.set_nodes(nodes);
        let effects = state.claims.joined(me);
        let victims = self.carry_out(&mut state, effects);
        drop(state);
        self.victims(victims);
        info!(node = me.node, "in the group of this cluster's hosts");
    }

    fn lost(&self, why: String) {
        warn!("corosync is lost: {why}; only what runs here can be fenced until it is back");
        let mut state = self.state();
        state.members.clear();
        state.refresh_members();
        state.served.lost(None);
        let held = state.asks.lost(None, "this host lost corosync");
        state.me = None;
        state.why_not = why;
        let effects = state.claims.lost();
        let victims = self.carry_out(&mut state, effects);
        // From now on a host may come back and be lost again unheard: what was proved of one holds no longer.
        mem::take(&mut state.lost_nodes).values().for_each(LostHost::ended);
        state.node_up_since.clear();
        state.ring.clear();
        drop(state);
        self.victims(victims);
        hold_leases(held);
    }

    fn change(
        &self,
        members: &[corosync_cpg::Member],
        left: &[(corosync_cpg::Member, Reason)],
        joined: &[(corosync_cpg::Member, Reason)],
    ) {
        let mut state = self.state();
        let Some(me) = state.me else { return };
        let mut held = Vec::new();
        for (gone, reason) in left {
            let gone = member(*gone);
            let name = state.name(gone.node);
            warn!(node = %name, ?reason, "a host left");
            state.served.lost(Some(gone));
            held.extend(state.asks.lost(Some(gone), &format!("{name} left ({})", leave_reason(*reason))));
        }
        for (new, _) in joined.iter().filter(|(it, _)| member(*it) != me) {
            info!(node = %state.name(new.node), "a host came");
        }
        state.members = members.iter().copied().map(member).collect();
        state.refresh_members();
        let all = state.members.clone();
        let effects = state.claims.change(&all);
        let victims = self.carry_out(&mut state, effects);
        self.publish_all_to_old(&state);
        if !joined.is_empty() {
            self.publish_all(&state);
        }
        drop(state);
        self.victims(victims);
        hold_leases(held);
    }

    fn message(self: &Arc<Self>, from: Member, data: &[u8]) {
        let message = match HostMessage::decode(data) {
            Ok(Some(message)) => message,
            Ok(None) => return debug!(%from, "a message of a kind that this version does not know"),
            Err(error) => return warn!(%from, "a message of another host is dropped: {error}"),
        };
        let mut state = self.state();
        let Some(me) = state.me.filter(|_| state.members.contains(&from)) else { return };
        let effects = state.claims.message(from, &message);
        let victims = self.carry_out(&mut state, effects);
        match message {
            HostMessage::Inventory { first, last, domains } => {
                state.directory.inventory(from, first, last, domains);
            }
            HostMessage::Domain(domain) => state.directory.domain(from, domain),
            HostMessage::DomainGone { uuid } => state.directory.gone(from, &uuid),
            HostMessage::Ask(ask) if ask.to == me => self.asked(&mut state, from, ask),
            HostMessage::Go { to, ask, left_ms } if to == me => state.served.go(from, ask, left_ms),
            HostMessage::Cancel { to, ask } if to == me => state.served.cancel(from, ask),
            HostMessage::Taken { asker, ask, .. } if asker == me => {
                let go = state.asks.taken(from, ask, Instant::now());
                self.send(&go);
            }
            HostMessage::Progress { asker, ask, was_off, starts, .. } if asker == me => {
                state.asks.seen_off(from, ask, was_off, starts);
            }
            HostMessage::Reply { asker, ask, end, .. } if asker == me => state.asks.reply(from, ask, end),
            _ => {}
        }
        drop(state);
        self.victims(victims);
    }

    fn asked(self: &Arc<Self>, state: &mut ClusterState, from: Member, ask: AskMessage) {
        let refusal = match self.service().filter(|_| !state.stopping) {
            None => "its daemon is about to end",
            Some(_) if !state.served.begin(from, &ask) => "it does too much for other hosts already",
            Some(service) => return drop(tokio::spawn(owner::serve(Arc::clone(self), service, from, ask))),
        };
        let end = AskEnd::NothingDone(refusal.to_owned());
        let claim = ask.claim.as_ref().map(|it| it.id);
        self.say(state, &HostMessage::Reply { asker: from, ask: ask.ask, claim, end });
    }

    /// Says what an owner says of an ask; the claims hear of it first.
    fn say(&self, state: &mut ClusterState, message: &HostMessage) {
        let effects = state.claims.says(message);
        let victims = self.carry_out(state, effects);
        // Alone, this host's own word tells of nobody that another host saw off.
        debug_assert!(victims.is_empty());
        self.send(message);
    }

    /// The other hosts' domains, and what is missing.
    pub(crate) fn list(&self) -> (Vec<ListedDomain>, Vec<String>) {
        let state = self.state();
        let Some(me) = state.me else { return (Vec::new(), vec![state.why_alone()]) };
        let listed =
            state.directory.others(me).filter(|it| it.state != PublishedState::Gone).map(|it| ListedDomain {
                name: it.name.clone(),
                uuid: it.uuid.clone(),
                power: if it.state == PublishedState::On { PowerState::On } else { PowerState::Off },
            });
        (listed.collect(), state.not_heard())
    }

    /// What an administrator should know.
    pub(crate) fn health_problems(&self) -> Vec<String> {
        let state = self.state();
        match state.me {
            None => vec![format!("corosync is not there: {}", state.why_not)],
            Some(_) => state.not_heard(),
        }
    }

    /// What can be counted.
    pub(crate) fn counted(&self) -> ClusterCounts {
        let state = self.state();
        ClusterCounts {
            joined: state.me.is_some(),
            hosts: state.members.len(),
            old_hosts: state.old_members().len(),
            not_heard: state.missing().len(),
            lost_domains: state.directory.lost().map(|(_, count)| count).sum(),
            claims: state.claims.counts(),
            asks: state.asks.count(),
        }
    }

    /// The domains that a target may mean, one for each UUID.
    pub(crate) fn named(&self, target: &Target) -> Vec<DomainRef> {
        let named = self.state().directory.named(target.as_str(), target.is_uuid());
        named.into_iter().map(|(name, uuid)| DomainRef { name, uuid, home: DomainHome::Elsewhere }).collect()
    }

    pub(crate) fn place(&self, uuid: &str) -> DomainPlace {
        let state = self.state();
        let is_down = |node: &u32| state.lost_nodes.get(node).is_some_and(LostHost::is_proved);
        match state.directory.find(uuid) {
            DirectoryAnswer::On(at) => DomainPlace::On(at),
            DirectoryAnswer::Lost(node) if is_down(&node) => DomainPlace::Down(node),
            DirectoryAnswer::Lost(node) => DomainPlace::Lost {
                node,
                why: {
                    let since =
                        state.lost_nodes.get(&node).map(|it| format!(" for {} s", it.age().as_secs()));
                    let name = state.name(node);
                    format!("it was last seen on at {name}, which is not heard{}", since.unwrap_or_default())
                },
            },
            DirectoryAnswer::Unknown => DomainPlace::Unknown,
            DirectoryAnswer::Off { at, seen } => {
                if let (false, Some(member)) = (seen, state.directory.incomplete().next()) {
                    return DomainPlace::NotYet(format!(
                        "{} has not said yet what it has",
                        state.name(member.node)
                    ));
                }
                let unheard: Vec<u32> = state.missing().into_iter().filter(|it| !is_down(it)).collect();
                if seen || unheard.is_empty() && !state.nodes.is_empty() {
                    return DomainPlace::Off(at);
                }
                let names: Vec<_> = unheard.iter().map(|it| state.name(*it)).collect();
                let why = if names.is_empty() {
                    "it is off where it is known, and corosync.conf names no nodes: it may be on at one that is not heard"
                        .to_owned()
                } else {
                    format!(
                        "it is off where it is known, and may be on at {}, not heard now",
                        names.join(", ")
                    )
                };
                DomainPlace::Doubt { nodes: unheard, why }
            }
        }
    }

    /// Whether it is on nowhere, and one of the members saw it go off a short while ago.
    pub(crate) fn was_seen_off(&self, uuid: &str) -> bool {
        matches!(self.state().directory.find(uuid), DirectoryAnswer::Off { seen: true, .. })
    }

    /// Whether this old host is known to have a domain that no other host has: so it answers for one if it answers at all.
    pub(crate) fn has_its_own(&self, member: Member) -> bool {
        self.state().directory.one_of(member).is_some()
    }

    /// Waits for the proof that a lost node is down, where there may be one.
    ///
    /// # Errors
    /// Why it may run.
    pub(crate) async fn proved(&self, node: u32, until: Instant) -> Result<String, String> {
        let (loss, name) = {
            let state = self.state();
            (state.lost_nodes.get(&node).cloned(), state.name(node))
        };
        match loss {
            Some(loss) => loss
                .proved(until)
                .await
                .map(|proof| format!("{name} is down: {proof}"))
                .map_err(|why| format!("no proof that {name} is down: {why}")),
            None => Err(format!("{name} itself is there, and its daemon is not")),
        }
    }

    /// Whether there are hosts of the C daemon, whose domains change in silence.
    pub(crate) fn has_old_hosts(&self) -> bool {
        !self.state().old_members().is_empty()
    }

    /// A domain and where it is, for people.
    pub(crate) fn describe(&self, domain: &DomainRef) -> String {
        let names = match self.place(&domain.uuid) {
            DomainPlace::On(at) | DomainPlace::Off(at) => {
                at.iter().map(|it| self.name(*it)).collect::<Vec<_>>().join(", ")
            }
            _ => "a host that is not heard".to_owned(),
        };
        format!("{} at {names}", domain.uuid)
    }
}

/// For [`serve`].
impl Cluster {
    fn local(&self) -> &Arc<LibvirtBackend> {
        &self.local
    }

    /// Says that the ask is about to be carried out, and waits for its asker's word.
    async fn taken(
        &self,
        from: Member,
        ask: &AskMessage,
        until: Instant,
    ) -> Result<(Lease, LeaseReleased), ActionError> {
        let claim = ask.claim.as_ref().map_or(0, |it| it.id);
        let told = {
            let mut state = self.state();
            let told = state.served.taken(from, ask.ask, Instant::now());
            self.say(&mut state, &HostMessage::Taken { asker: from, ask: ask.ask, claim });
            told
        };
        match tokio::time::timeout_at(until.into(), told).await {
            Ok(Ok(go)) => Ok(go),
            Ok(Err(_)) => Err(ActionError::Lapsed("nobody at the asking host waits for it any more")),
            Err(_) => Err(ActionError::Lapsed("the asking host did not say that it still wants it")),
        }
    }

    fn seen_off(&self, from: Member, ask: &AskMessage, was_off: bool, starts: bool) {
        let claim = ask.claim.as_ref().map_or(0, |it| it.id);
        let mut state = self.state();
        let victim = ask.uuid.clone();
        self.say(
            &mut state,
            &HostMessage::Progress { asker: from, ask: ask.ask, claim, victim, was_off, starts },
        );
        drop(state);
        // It is here that its requests come, more likely than anywhere else.
        self.victims(vec![ask.uuid.clone()]);
    }

    fn reply(&self, from: Member, ask: &AskMessage, end: AskEnd) {
        let mut state = self.state();
        state.served.over(from, ask.ask);
        let claim = ask.claim.as_ref().map(|it| it.id);
        self.say(&mut state, &HostMessage::Reply { asker: from, ask: ask.ask, claim, end });
    }
}

/// Something that another host was asked for.
pub(crate) struct PendingAsk {
    cluster: Arc<Cluster>,
    ask: u64,
    to: Member,
    owner: String,
    told: mpsc::UnboundedReceiver<AskEvent>,
    over: bool,
}

/// How an off, or the first half of a reboot, went at another host.
pub(crate) struct RemotePowerOff {
    pub(crate) was_off: bool,
    /// It is started again; [`Asked::done`] waits for that.
    pub(crate) starts: bool,
}

impl fmt::Debug for PendingAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingAsk").field("ask", &self.ask).field("to", &self.to).finish_non_exhaustive()
    }
}

impl PendingAsk {
    /// How a status ended.
    pub(crate) async fn power(mut self, lease: &Lease) -> Result<PowerState, ActionError> {
        match self.outcome(lease).await?.response {
            Response::Success => Ok(PowerState::On),
            Response::Off => Ok(PowerState::Off),
            _ => Err(self.failed(None)),
        }
    }

    /// Waits until the domain was seen off; where nothing comes after that, until nothing more of it can take effect.
    pub(crate) async fn down(&mut self, lease: &Lease) -> Result<RemotePowerOff, ActionError> {
        match self.word(lease).await? {
            AskEvent::SeenOff { was_off, starts } => {
                if !starts {
                    self.done(lease).await?;
                }
                Ok(RemotePowerOff { was_off, starts })
            }
            AskEvent::Reply(end) => {
                let outcome = asks::result(end, &self.owner)?;
                Err(self.failed(outcome.reason))
            }
            AskEvent::Lost(why) => Err(self.lost(&why)),
        }
    }

    /// How an on, or what is left of an off or a reboot, ended.
    pub(crate) async fn done(&mut self, lease: &Lease) -> Result<(), ActionError> {
        let outcome = self.outcome(lease).await?;
        match (outcome.response, outcome.reason) {
            (Response::Success, reason) => {
                match reason.as_deref().and_then(|it| it.strip_prefix(NOT_STARTED)) {
                    None => Ok(()),
                    Some(why) => Err(ActionError::Refused(format!("{}: {why}", self.owner))),
                }
            }
            (_, reason) => Err(self.failed(reason)),
        }
    }

    async fn outcome(&mut self, lease: &Lease) -> Result<AskOutcome, ActionError> {
        loop {
            match self.word(lease).await? {
                AskEvent::SeenOff { .. } => {}
                AskEvent::Reply(end) => return asks::result(end, &self.owner),
                AskEvent::Lost(why) => return Err(self.lost(&why)),
            }
        }
    }

    /// The next word; an error when none comes in time. When nobody waits for it any more the owner is told, and its answer
    /// waited for: it may have begun.
    async fn word(&mut self, lease: &Lease) -> Result<AskEvent, ActionError> {
        let late = tokio::time::sleep_until((lease.until() + REPLY_GRACE).into());
        tokio::pin!(late);
        let mut cancelled = false;
        let word = loop {
            tokio::select! {
                biased;
                word = self.told.recv() => break word,
                () = &mut late => break None,
                _ = lease.ended(), if !cancelled => {
                    cancelled = true;
                    self.cancel();
                }
            }
        };
        match word {
            Some(word) => {
                self.over = matches!(word, AskEvent::Reply(_) | AskEvent::Lost(_));
                Ok(word)
            }
            None => Err(ActionError::Unknown(format!("{} did not answer in time", self.owner))),
        }
    }

    fn cancel(&self) {
        let _state = self.cluster.state();
        self.cluster.send(&HostMessage::Cancel { to: self.to, ask: self.ask });
    }

    fn failed(&self, reason: Option<String>) -> ActionError {
        let reason = reason.unwrap_or_else(|| "an answer that makes no sense".to_owned());
        ActionError::Refused(format!("{}: {reason}", self.owner))
    }

    fn lost(&self, why: &str) -> ActionError {
        ActionError::Unknown(format!("{} was asked, and then {why}", self.owner))
    }
}

impl Drop for PendingAsk {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
            self.cluster.state().asks.give_up(self.ask);
        }
    }
}

/// See [`Cluster::changed`].
pub(crate) struct ChangeWatch(watch::Receiver<u64>);

impl ChangeWatch {
    /// Waits for news, no longer than a moment and no longer than `until`; false when that has come.
    pub(crate) async fn until(mut self, until: Instant) -> bool {
        let now = Instant::now();
        let limit = until.min(now + POLL_INTERVAL);
        // The sender lives as long as the cluster.
        let _ = tokio::time::timeout_at(limit.into(), self.0.changed()).await;
        Instant::now() < until
    }
}

impl ClusterState {
    fn name(&self, node: u32) -> String {
        match self.nodes.get(&node) {
            Some(Some(name)) => format!("node {node} ({name})"),
            _ => format!("node {node}"),
        }
    }

    fn why_alone(&self) -> String {
        format!(
            "corosync is not there ({}): nothing can be said of domains that don't run here",
            self.why_not
        )
    }

    fn set_nodes(&mut self, nodes: Option<Vec<Node>>) {
        self.nodes = nodes.unwrap_or_default().into_iter().map(|it| (it.id, it.name)).collect();
    }

    /// Nodes that are known and in neither group.
    fn missing(&self) -> Vec<u32> {
        let is_there = |node: &u32| self.members.iter().chain(self.old.members()).any(|it| it.node == *node);
        self.nodes.keys().filter(|it| !is_there(it)).copied().collect()
    }

    fn not_heard(&self) -> Vec<String> {
        self.missing().into_iter().map(|it| format!("{} is not heard", self.name(it))).collect()
    }

    fn refresh_members(&mut self) {
        let old = self.old_members();
        self.directory.members(&self.members, &old);
    }
}

fn member(it: corosync_cpg::Member) -> Member {
    Member { node: it.node, pid: it.pid }
}

fn what_of(action: Action) -> Option<AskAction> {
    Some(match action {
        Action::Status => AskAction::Status,
        Action::Off => AskAction::Off,
        Action::Reboot => AskAction::Reboot,
        Action::On => AskAction::On,
        Action::Null | Action::Monitor | Action::List => return None,
    })
}

fn published(uuid: Uuid, own: OwnDomain) -> PublishedDomain {
    let state = match own.power {
        OwnPower::On => PublishedState::On,
        OwnPower::WentOff => PublishedState::Off,
        OwnPower::Gone => PublishedState::Gone,
        OwnPower::Resting => PublishedState::Rests,
    };
    PublishedDomain { uuid: uuid.to_string(), name: own.name, state }
}

fn leave_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Leave => "its daemon ended",
        Reason::ProcDown => "its daemon died",
        Reason::NodeDown => "corosync does not hear it any more",
        _ => "for a reason that is not known",
    }
}

/// Owners that were lost may be in the middle of an action: what conflicts with it does not begin at once.
fn hold_leases(leases: Vec<Lease>) {
    if !leases.is_empty() {
        tokio::spawn(async move {
            tokio::time::sleep(EFFECT_SETTLE).await;
            drop(leases);
        });
    }
}
