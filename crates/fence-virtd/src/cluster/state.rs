// SPDX-License-Identifier: GPL-2.0-or-later
//! Data of the cluster, its lock, and the questions that everyone may ask of it.
//!
//! Owns [`Cluster`] and [`ClusterState`]; the files above add methods to both. The lock is held for
//! arithmetic and for handing messages to a link. Code under it must never wait.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use corosync_cpg::Node;
use fence_config::{MAX_CLIENT_TIMEOUT, NameMode};
use fence_wire::Target;
use libvirt_host::Uuid;
use tokio::sync::watch;
use tracing::warn;

use super::asks::{IncomingAsks, OutgoingAsks};
use super::legacy_table::LegacyHosts;
use super::link::Link;
use super::node_keys::NodeKeys;
use super::own_domains::OwnDomain;
use super::silence::{NodeSilence, NodeSilences};
use super::waiting::WaitingClaims;
use crate::backend::libvirt::{DomainHere, LibvirtBackend};
use crate::host_down::{DownEvidence, DownProof, LostHost};
use crate::nodes::shown_node;
use crate::request::lease::Lease;
use crate::service::Service;
use crate::util::backoff::Backoff;
use crate::util::locks::lock;
use fence_core::arbiter::RequestSource;
use fence_core::cluster::claims::ClusterArbiter;
use fence_core::cluster::directory::{Directory, DirectoryAnswer};
use fence_core::cluster::message::{HostMessage, Member, PublishedState};
use fence_core::cluster::recent_offs::RecentOffs;
use fence_core::domain::{DomainHome, DomainId, DomainRef, ListedDomain, PowerState, TargetKind};
use fence_core::evidence::Sight;
use fence_core::evidence::namesakes::MAX_NAMESAKES;
use fence_core::host_down::Moment;
use fence_core::owed_start::StartVerdict;

/// Transport of requests from other hosts, as audit records name it.
pub(super) const TRANSPORT: &str = "cpg";
/// Maximum time between two checks of a waiting request, with or without a notification.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Pauses before other hosts are asked once more for what they have answered.
pub(super) const ASK_PAUSES: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
/// Time for which an action that an owner began may still take effect after the owner was lost.
const EFFECT_SETTLE: Duration = Duration::from_secs(2);

/// Membership of this daemon in the two process groups, and all that follows from it.
pub(crate) struct Cluster {
    pub(super) local: Arc<LibvirtBackend>,
    pub(super) state: Mutex<ClusterState>,
    /// Link to the process group of the hosts that run this daemon.
    pub(super) link: Link,
    /// Link to the process group of all hosts, which speaks the C daemon's messages.
    pub(super) legacy_link: Link,
    pub(super) name_mode: NameMode,
    pub(super) down_evidence: DownEvidence,
    /// Counter of changes that a request may wait for.
    pub(super) changes: watch::Sender<u64>,
    pub(super) service: OnceLock<Weak<Service>>,
}

/// Part of [`Cluster`] behind the lock.
pub(super) struct ClusterState {
    /// Member that this daemon is in the second group; none while it is not in it.
    pub(super) me: Option<Member>,
    /// Reason why this daemon is not in the second group, while it is not.
    pub(super) why_not: String,
    pub(super) members: BTreeSet<Member>,
    pub(super) nodes: BTreeMap<u32, Option<String>>,
    /// Names of nodes that were taken out of the node list.
    pub(super) old_names: BTreeMap<u32, String>,
    /// Keys of the nodes in the messages between hosts that corosync does not know.
    pub(super) keys: NodeKeys,
    /// Nodes with this daemon that did not answer when they were asked last, or could not tell.
    pub(super) asked_in_vain: BTreeSet<u32>,
    /// Nodes of the node list that have not said what they have.
    pub(super) silences: NodeSilences,
    pub(super) own: BTreeMap<Uuid, OwnDomain>,
    /// True when a hypervisor of this host was read: `own` has what that one has.
    pub(super) is_own_begun: bool,
    /// True when every hypervisor of this host was read: `own` is then complete.
    pub(super) is_own_complete: bool,
    pub(super) directory: Directory,
    /// This host's claims and its replica.
    pub(super) claims: ClusterArbiter,
    pub(super) waiting: WaitingClaims,
    /// Domains that requests took down a short while ago, at any host.
    pub(super) recent_offs: RecentOffs,
    pub(super) outgoing_asks: OutgoingAsks,
    pub(super) incoming_asks: IncomingAsks,
    pub(super) legacy: LegacyHosts,
    /// Moment since which each legacy host is taken for one.
    pub(super) legacy_since: BTreeMap<Member, Instant>,
    /// Nodes that corosync hears now.
    pub(super) ring: BTreeSet<u32>,
    /// Moment since which corosync hears a node, of every node that it heard at any time.
    pub(super) node_up_since: BTreeMap<u32, Moment>,
    /// Nodes that corosync does not hear, of those that it heard once or that its node list names.
    pub(super) lost_nodes: BTreeMap<u32, LostHost>,
    /// Moment when this host joined corosync last.
    pub(super) joined_at: Moment,
    pub(super) stopping: bool,
}

/// Location of a domain as far as this host knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DomainPlace {
    /// On at these members; at several while the domain migrates.
    On(Vec<Member>),
    /// On at no node; these members have the domain, off.
    Off(Vec<Member>),
    /// At no host that is heard. Last on, or else off, at this node, whose daemon is not heard.
    Lost { node: u32, why: String },
    /// Off at these members, and on at no other: the domain may be on at a node that is not heard now.
    Doubt(Vec<Member>),
    /// Some hosts have not published their domains yet.
    NotYet(String),
    /// At no host.
    Unknown,
}

/// State of this host's knowledge that decides which hosts are asked for a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DomainOutlook {
    place: DomainPlace,
    me: Option<Member>,
    /// A daemon that ended a moment ago is expected back.
    is_daemon_awaited: bool,
}

/// Nodes that have not said which domains they have.
#[derive(Debug)]
pub(crate) struct UnheardNodes {
    /// Nodes and their reasons, for people.
    pub(crate) why: String,
    /// Moment until which that is likely to change.
    pub(crate) patience: Instant,
}

/// Numbers of the cluster for the metrics.
#[derive(Clone, Debug)]
pub(crate) struct ClusterCounts {
    pub(crate) joined: bool,
    /// Hosts that run this daemon, this one among them.
    pub(crate) hosts: usize,
    pub(crate) legacy_hosts: usize,
    /// Nodes of corosync's list without a daemon in either group.
    pub(crate) not_heard: usize,
    /// Nodes with this daemon that did not answer when they were asked last, or could not tell.
    pub(crate) asked_in_vain: Vec<String>,
    /// Domains last seen on at hosts that are not heard now.
    pub(crate) lost_domains: usize,
    /// Claims of all hosts that are in flight.
    pub(crate) claims_in_flight: usize,
    /// Claims of all hosts that wait.
    pub(crate) claims_waiting: usize,
    /// Asks to other hosts that are not over.
    pub(crate) asks: usize,
}

/// Membership and notification.
impl Cluster {
    /// Returns true while this host is in the second group.
    pub(crate) fn is_joined(&self) -> bool {
        self.state().me.is_some()
    }

    /// Returns the member that this daemon is, while it is in the second group.
    pub(crate) fn me(&self) -> Option<Member> {
        self.state().me
    }

    /// Returns the reason why requests for domains of other hosts fail now.
    pub(crate) fn standalone_reason(&self) -> String {
        self.state().standalone_reason()
    }

    /// Returns the name of a member's host.
    pub(crate) fn name(&self, member: Member) -> String {
        self.state().name(member.node)
    }

    /// Returns the name of a node.
    pub(crate) fn node_name(&self, node: u32) -> String {
        self.state().name(node)
    }

    /// Begins to watch for changes of what this host knows.
    pub(crate) fn changed(&self) -> ChangeWatch {
        ChangeWatch(self.changes.subscribe())
    }

    /// Waits before the same is asked of other hosts once more: for the next pause, or until there is news.
    /// Returns false when `until` has come.
    pub(crate) async fn pause_or_news(
        &self,
        pauses: &mut Backoff,
        until: Instant,
        is_news: impl Fn() -> bool,
    ) -> bool {
        pause_or_news(&self.changes, pauses, until, is_news).await
    }

    /// Waits until other hosts than these are to be asked for a domain, or until `until`.
    pub(crate) async fn outlook_changes(&self, uuid: DomainId, known: &DomainOutlook, until: Instant) {
        wait_for_news(&self.changes, until, || self.outlook(uuid) != *known).await;
    }

    /// Returns what decides which hosts are asked for a domain.
    pub(crate) fn outlook(&self, uuid: DomainId) -> DomainOutlook {
        let mut place = self.place(uuid);
        if let DomainPlace::Lost { why, .. } = &mut place {
            // Its text counts seconds.
            why.clear();
        }
        DomainOutlook { place, me: self.me(), is_daemon_awaited: self.daemon_expected_by().is_some() }
    }

    pub(super) fn local(&self) -> &Arc<LibvirtBackend> {
        &self.local
    }

    pub(super) fn service(&self) -> Option<Arc<Service>> {
        self.service.get().and_then(Weak::upgrade)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ClusterState> {
        lock(&self.state)
    }

    pub(super) fn notify_waiters(&self) {
        self.changes.send_modify(|it| *it = it.wrapping_add(1));
    }

    /// Hands a message to the link of the second group. Returns false when it cannot be sent.
    pub(super) fn send(&self, message: &HostMessage) -> bool {
        match message.encode() {
            Ok(bytes) => self.link.send(bytes).is_ok(),
            Err(error) => {
                warn!("a message to the other hosts can't be sent: {error}");
                false
            }
        }
    }
}

/// Returns the identity of a domain that another host has published. The directory keeps the hosts' text, as
/// their messages have it; each daemon publishes canonical text.
pub(super) fn published_id(text: &str) -> Option<DomainId> {
    DomainId::parse_canonical(text)
}

/// Returns the domains with these names and UUIDs.
fn references(named: Vec<(String, String)>) -> Vec<DomainRef> {
    let reference = |(name, uuid): (String, String)| {
        Some(DomainRef {
            name,
            uuid: published_id(&uuid)?,
            home: DomainHome::Elsewhere,
            by: TargetKind::Name,
        })
    };
    named.into_iter().filter_map(reference).collect()
}

/// Domains of other hosts.
impl Cluster {
    /// Returns the domains of the other hosts, and the hosts that are not heard. Those of a host that is not
    /// heard are there as they were seen last: Pacemaker does not fence a machine that no list has.
    pub(crate) fn list(&self) -> (Vec<ListedDomain>, Vec<String>) {
        let state = self.state();
        let Some(me) = state.me else { return (Vec::new(), vec![state.standalone_reason()]) };
        let others = state.directory.others(me).filter(|it| !it.is_away);
        let others = others.map(|it| (it.name.as_str(), it.uuid.as_str(), it.state));
        let all = others.chain(state.directory.last_seen()).filter(|(.., it)| *it != PublishedState::Gone);
        let listed = all.filter_map(|(name, uuid, state)| {
            let power = if state == PublishedState::On { PowerState::On } else { PowerState::Off };
            Some(ListedDomain { name: name.to_owned(), uuid: published_id(uuid)?, power })
        });
        (listed.collect(), state.not_heard())
    }

    /// Returns the troubles of the cluster that an administrator should know.
    pub(crate) fn health_problems(&self) -> Vec<String> {
        let state = self.state();
        match state.me {
            None => vec![format!("corosync is not there: {}", state.why_not)],
            Some(_) => state.not_heard(),
        }
    }

    /// Returns the numbers for the metrics.
    pub(crate) fn counts(&self) -> ClusterCounts {
        let state = self.state();
        let (claims_in_flight, claims_waiting) = state.claims.counts();
        ClusterCounts {
            joined: state.me.is_some(),
            hosts: state.members.len(),
            legacy_hosts: state.legacy_members().len(),
            not_heard: state.missing().len(),
            asked_in_vain: state.asked_in_vain.iter().map(|it| state.name(*it)).collect(),
            lost_domains: state.directory.lost().map(|(_, count)| count).sum(),
            claims_in_flight,
            claims_waiting,
            asks: state.outgoing_asks.count(),
        }
    }

    /// Returns the nodes that have not said which domains they have; none if all have.
    pub(crate) fn unheard(&self) -> Option<UnheardNodes> {
        self.state().unheard(Instant::now())
    }

    /// Returns the moment until which a daemon is expected that ended a moment ago, at a node that corosync
    /// hears; none if there is no such daemon.
    pub(crate) fn daemon_expected_by(&self) -> Option<Instant> {
        let state = self.state();
        let is_back_soon =
            |it: NodeSilence| matches!(it, NodeSilence::Absent(_)) && state.ring.contains(&it.node());
        state.silences.likely_end(is_back_soon, Instant::now())
    }

    /// Returns whether a member of the first group that says nothing is likely to say something soon.
    pub(crate) fn is_word_expected(&self, member: Member) -> bool {
        let state = self.state();
        let is_it = |it: NodeSilence| it == NodeSilence::Mute(member);
        !state.legacy_members().contains(&member)
            || state.silences.likely_end(is_it, Instant::now()).is_some()
    }

    /// Returns the domains that a target may mean, one for each UUID.
    pub(crate) fn named(&self, target: &Target) -> Vec<DomainRef> {
        references(self.state().directory.named(target.as_str(), target.is_only_uuid()))
    }

    /// As [`Self::named`], with a domain of this host that the target means here. What it publishes may be
    /// on its way.
    pub(crate) fn named_with(&self, target: &Target, here: &DomainHere) -> Vec<DomainRef> {
        let (state, own) = (self.state(), &here.domain);
        let mut named = references(state.directory.named(target.as_str(), target.is_only_uuid()));
        if named.iter().any(|it| it.uuid == own.uuid) {
            return named;
        }
        let is_by_uuid = |it: &DomainRef| it.uuid.to_string().eq_ignore_ascii_case(target.as_str());
        // The rule of the directory: one that has ended is meant only where no other has the name.
        if matches!(here.sight, Sight::Ended(_)) {
            if named.is_empty() || is_by_uuid(own) {
                named.push(own.clone());
            }
        } else {
            named.retain(|it| is_by_uuid(it) || !state.directory.has_only_ended(&it.uuid.to_string()));
            named.push(own.clone());
        }
        named
    }

    /// Returns the one of several domains with the name of a target that is to be asked for, and its rivals:
    /// each of them must be proved off. None where the target is ambiguous whatever is proved.
    pub(crate) fn split_rivals(
        &self,
        target: &Target,
        mut named: Vec<DomainRef>,
    ) -> Option<(DomainRef, Vec<DomainRef>)> {
        let uuids: Vec<String> = named.iter().map(|it| it.uuid.to_string()).collect();
        let (one, rivals) = self.state().directory.split_rivals(target.as_str(), &uuids)?;
        if rivals.len() > MAX_NAMESAKES {
            return None;
        }
        Some((named.swap_remove(one), named))
    }

    /// Returns the location of a domain as far as this host knows.
    pub(crate) fn place(&self, uuid: DomainId) -> DomainPlace {
        let state = self.state();
        match state.directory.find(&uuid.to_string()) {
            DirectoryAnswer::On(at) => DomainPlace::On(at),
            DirectoryAnswer::Lost(node) => state.place_lost(node, "on"),
            DirectoryAnswer::LostOff(node) => state.place_lost(node, "off"),
            DirectoryAnswer::Unknown => DomainPlace::Unknown,
            DirectoryAnswer::Off { at } => state.place_off(at),
        }
    }

    /// Waits for the proof that a node without a daemon is down, where there may be any. It was asked for
    /// after this moment.
    ///
    /// # Errors
    /// The reason why the node may run.
    pub(crate) async fn prove_down(
        &self,
        node: u32,
        since: Moment,
        until: Instant,
    ) -> Result<DownProof, String> {
        let (loss, name, step) = {
            let state = self.state();
            (state.lost_nodes.get(&node).cloned(), state.name(node), state.step_for_gone(node))
        };
        match loss {
            Some(loss) => {
                let why_not = |why| format!("no proof that {name} is down: {why}{step}");
                loss.proved(since, until).await.map_err(why_not)
            }
            None if !step.is_empty() => Err(format!("no proof that {name} is down{step}")),
            None => Err(format!("{name} itself is there, and its daemon is not")),
        }
    }

    /// Returns a domain and its location, for people.
    pub(crate) fn describe(&self, domain: &DomainRef) -> String {
        let names = match self.place(domain.uuid) {
            DomainPlace::On(at) | DomainPlace::Off(at) => {
                at.iter().map(|it| self.name(*it)).collect::<Vec<_>>().join(", ")
            }
            DomainPlace::Lost { node, .. } => format!("{}, which is not heard", self.node_name(node)),
            _ => "a host that is not heard".to_owned(),
        };
        format!("{} at {names}", domain.uuid)
    }

    /// Returns true if this member runs the C daemon.
    pub(crate) fn is_legacy(&self, member: Member) -> bool {
        self.state().legacy_members().contains(&member)
    }

    /// Returns true if there are legacy hosts, which do not publish every change.
    pub(crate) fn has_legacy_hosts(&self) -> bool {
        !self.state().legacy_members().is_empty()
    }

    /// Judges whether a start that this node has owed for so long still stands, by what the other hosts were
    /// asked for meanwhile.
    pub(crate) fn judge_owed_start(&self, uuid: DomainId, since: Duration) -> StartVerdict {
        let state = self.state();
        let Some(me) = state.me else { return StartVerdict::Unheard(state.standalone_reason()) };
        if !state.claims.is_in_step() {
            let why = "the other hosts have not said yet what they did meanwhile";
            return StartVerdict::Unheard(why.to_owned());
        }
        if state.nodes.keys().eq([&me.node]) {
            return StartVerdict::Stands;
        }
        let verdict = state.recent_offs.judge(me, &uuid.to_string(), since, Instant::now());
        // What a C daemon was asked for it tells nobody.
        let legacy = state.legacy_members();
        let is_new = |member: Member| {
            let is_it = |it: NodeSilence| it == NodeSilence::Mute(member);
            state.silences.likely_end(is_it, Instant::now()).is_some()
        };
        legacy.into_iter().fold(verdict, |verdict, it| {
            let name = state.name(it.node);
            verdict.and(match is_new(it) {
                true => StartVerdict::Unheard(format!("{name} has just joined, and has said nothing yet")),
                false => StartVerdict::Untold(format!(
                    "{name} runs a C daemon, which can't tell what it was asked for"
                )),
            })
        })
    }

    /// Returns the state of a domain as a legacy host has published it.
    pub(crate) fn published(&self, member: Member, uuid: DomainId) -> Option<PublishedState> {
        self.state().directory.state(member, &uuid.to_string())
    }

    /// Returns whether the domain ended at this member and left no definition there: it can't be started
    /// there.
    pub(crate) fn has_ended_at(&self, member: Member, uuid: DomainId) -> bool {
        self.published(member, uuid) == Some(PublishedState::Gone)
    }
}

/// Watch for changes of what this host knows, from [`Cluster::changed`].
pub(crate) struct ChangeWatch(watch::Receiver<u64>);

impl ChangeWatch {
    /// Waits for a change, for [`POLL_INTERVAL`] at most and never past `until`. Returns false when `until`
    /// has come.
    pub(crate) async fn until(mut self, until: Instant) -> bool {
        let now = Instant::now();
        let limit = until.min(now + POLL_INTERVAL);
        // The sender lives as long as the cluster.
        let _ = tokio::time::timeout_at(limit.into(), self.0.changed()).await;
        Instant::now() < until
    }
}

/// Waits for the next pause, or until there is news. Every message between hosts is a change, the answers to
/// this host's own asks too: a change alone is no reason to ask again.
async fn pause_or_news(
    changes: &watch::Sender<u64>,
    pauses: &mut Backoff,
    until: Instant,
    is_news: impl Fn() -> bool,
) -> bool {
    let end = until.min(Instant::now() + pauses.next_pause());
    wait_for_news(changes, end, is_news).await;
    Instant::now() < until
}

async fn wait_for_news(changes: &watch::Sender<u64>, until: Instant, is_news: impl Fn() -> bool) {
    loop {
        let changed = ChangeWatch(changes.subscribe());
        if is_news() || !changed.until(until).await {
            return;
        }
    }
}

impl ClusterState {
    pub(super) fn name(&self, node: u32) -> String {
        match self.old_names.get(&node) {
            Some(name) if !self.nodes.contains_key(&node) => shown_node(node, Some(name)),
            _ => node_name(&self.nodes, node),
        }
    }

    pub(super) fn standalone_reason(&self) -> String {
        format!(
            "corosync is not there ({}): nothing can be said of domains that don't run here",
            self.why_not
        )
    }

    pub(super) fn set_nodes(&mut self, nodes: Option<Vec<Node>>) {
        let nodes = nodes.unwrap_or_default();
        let addresses = nodes.iter().map(|it| (it.id, it.addresses.clone())).collect();
        let new = nodes.into_iter().map(|it| (it.id, it.name)).collect();
        let old = mem::replace(&mut self.nodes, new);
        self.old_names.extend(old.into_iter().filter_map(|(node, name)| Some((node, name?))));
        if let Some(call) = self.keys.listed(addresses) {
            call();
        }
        self.update_silences();
    }

    /// Notes which nodes have not said what they have.
    pub(super) fn update_silences(&mut self) {
        let absent = self.missing().into_iter().map(NodeSilence::Absent);
        let is_mute = |it: &Member| self.legacy.publications(it.node) == 0;
        let mute = self.legacy_members().into_iter().filter(is_mute).map(NodeSilence::Mute);
        let present = absent.chain(mute).collect();
        self.silences.update(&present, Instant::now());
    }

    /// Returns why a domain that no host is known to have may be at one, and the moment until which that is
    /// likely to change; none if every node has said what it has.
    fn unheard(&self, now: Instant) -> Option<UnheardNodes> {
        let says_nothing = |node| format!("{} has not said which domains it has", self.name(node));
        let incomplete: Vec<u32> = self.directory.incomplete().map(|it| it.node).collect();
        let why: Vec<String> = self
            .silences
            .all()
            .map(|it| match it {
                NodeSilence::Absent(node) => format!("{} is not heard", self.name(node)),
                NodeSilence::Mute(member) => says_nothing(member.node),
            })
            .chain(incomplete.iter().map(|it| says_nothing(*it)))
            .collect();
        // A member publishes as soon as it has read its hypervisors.
        let likely_end = self.silences.likely_end(|_| true, now);
        let patience =
            if incomplete.is_empty() { likely_end.unwrap_or(now) } else { now + MAX_CLIENT_TIMEOUT };
        (!why.is_empty()).then(|| UnheardNodes { why: why.join("; "), patience })
    }

    /// Returns the nodes of the node list without a member in either group.
    pub(super) fn missing(&self) -> Vec<u32> {
        let is_there =
            |node: &u32| self.members.iter().chain(self.legacy.members()).any(|it| it.node == *node);
        self.nodes.keys().filter(|it| !is_there(it)).copied().collect()
    }

    fn not_heard(&self) -> Vec<String> {
        self.missing().into_iter().map(|it| format!("{} is not heard", self.name(it))).collect()
    }

    /// Returns the nodes that have the domain from which a request comes; none if they are not known.
    pub(super) fn nodes_with_source(&self, source: &RequestSource) -> Option<Vec<u32>> {
        let RequestSource::Known(uuid) = source else { return None };
        match self.directory.find(uuid) {
            DirectoryAnswer::On(at) => Some(at.iter().map(|it| it.node).collect()),
            _ => None,
        }
    }

    /// Returns the place of a domain that was seen on or off last at this node, whose daemon is not heard.
    fn place_lost(&self, node: u32, power: &str) -> DomainPlace {
        let since = self.lost_nodes.get(&node).map(|it| format!(" for {} s", it.age().as_secs()));
        let (name, since) = (self.name(node), since.unwrap_or_default());
        DomainPlace::Lost {
            node,
            why: format!("the domain was last seen {power} at {name}, which is not heard{since}"),
        }
    }

    /// Returns the place of a domain that is off at these members and on at no member.
    fn place_off(&self, at: Vec<Member>) -> DomainPlace {
        if let Some(member) = self.directory.incomplete().next() {
            return DomainPlace::NotYet(format!(
                "{} has not said yet which domains it has",
                self.name(member.node)
            ));
        }
        if self.missing().is_empty() && !self.nodes.is_empty() {
            return DomainPlace::Off(at);
        }
        DomainPlace::Doubt(at)
    }

    /// Notes whether a node that was asked said what it has.
    pub(super) fn note_answer(&mut self, node: u32, is_told: bool) {
        if is_told {
            self.asked_in_vain.remove(&node);
        } else if self.members.iter().any(|it| it.node == node) {
            self.asked_in_vain.insert(node);
        }
    }

    /// Hands the present members to the directory.
    pub(super) fn refresh_members(&mut self) {
        let members = &self.members;
        self.asked_in_vain.retain(|node| members.iter().any(|it| it.node == *node));
        let legacy = self.legacy_members();
        self.directory.members(&self.members, &legacy);
        self.update_silences();
    }

    /// Returns the members of the first group that are not in the second.
    pub(super) fn legacy_members(&self) -> BTreeSet<Member> {
        self.legacy.members().difference(&self.members).copied().collect()
    }

    /// Returns true if this host answers requests of legacy hosts that no other host answers: its node id is
    /// the highest of all hosts that run this daemon. The second group may not have reported yet that the
    /// members in `left` left.
    pub(super) fn is_answering_host(&self, left: &[Member]) -> bool {
        let is_lower = |me: Member, it: &Member| it.node <= me.node || left.contains(it);
        self.me.is_some_and(|me| self.members.iter().all(|it| is_lower(me, it)))
    }
}

/// Returns the name of a node for people.
pub(super) fn node_name(nodes: &BTreeMap<u32, Option<String>>, node: u32) -> String {
    shown_node(node, nodes.get(&node).and_then(Option::as_deref))
}

/// Keeps the leases of asks to owners that were lost: an owner may be in the middle of an action, so
/// conflicting requests do not begin at once.
pub(super) fn hold_leases(leases: Vec<Lease>) {
    if !leases.is_empty() {
        tokio::spawn(async move {
            tokio::time::sleep(EFFECT_SETTLE).await;
            drop(leases);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers to this host's own asks are changes, too: hosts asked each other as fast as they answered.
    #[tokio::test]
    async fn messages_alone_are_no_reason_to_ask_again() {
        let changes = Arc::new(watch::Sender::new(0));
        let messages = tokio::spawn({
            let changes = Arc::clone(&changes);
            async move {
                loop {
                    changes.send_modify(|it| *it += 1);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let (mut pauses, mut rounds, until) = (ASK_PAUSES, 0, Instant::now() + Duration::from_secs(1));
        while pause_or_news(&changes, &mut pauses, until, || false).await {
            rounds += 1;
        }
        // 20, 40, … 320 ms.
        assert!((1..=5).contains(&rounds), "{rounds}");
        messages.abort();
    }

    #[tokio::test]
    async fn news_end_a_pause() {
        let changes = Arc::new(watch::Sender::new(0));
        let mut pauses = Backoff::new(Duration::from_secs(600), Duration::from_secs(600));
        let until = Instant::now() + Duration::from_secs(900);
        let seen = Arc::clone(&changes);
        let asked =
            tokio::spawn(
                async move { pause_or_news(&seen, &mut pauses, until, || *seen.borrow() == 2).await },
            );
        for _ in 0..2 {
            changes.send_modify(|it| *it += 1);
            tokio::task::yield_now().await;
        }
        let asked = tokio::time::timeout(Duration::from_secs(60), asked).await;
        assert!(matches!(asked, Ok(Ok(true))), "{asked:?}");
    }
}
