// SPDX-License-Identifier: GPL-2.0-or-later
//! Claims of this host's requests: how they are made, and how the decisions about them are carried out.
//!
//! [`fence_core::cluster::claims`] decides.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::{Response, escaped};
use tracing::warn;

use super::silence::DAEMON_WAIT;
use super::state::{Cluster, ClusterState, node_name};
use crate::service::cluster_port::{ClusterGrant, ClusterPermit, ClusterPort};
use crate::service::execute::START_LIMIT;
use fence_core::arbiter::{ArbiterRequest, ArbitratedAction, Grant, LateEffect, Rejection};
use fence_core::cluster::claims::ClaimEffect;
use fence_core::cluster::directory::Directory;
use fence_core::cluster::message::{HostMessage, Member};
use fence_core::cluster::orphans::OrphanTerms;
use fence_core::intent::HYPERVISOR_EFFECT_MS;

/// Time that a member may take to send its state after a membership change, while all others wait for it.
const SYNC_TIMEOUT: Duration = Duration::from_secs(4);
/// Time after which this host decides alone, if corosync has not answered since the start of the daemon. A
/// stopped corosync neither accepts nor refuses.
const JOIN_TIMEOUT: Duration = Duration::from_secs(4);
/// Extra time before members without a copy of the silent member's state propose to exclude it.
const EXTRA_PATIENCE_WITHOUT_STATE: Duration = Duration::from_secs(2);

/// Access of the service to the other hosts' arbitration.
pub(crate) struct ClusterClaims(pub(crate) Arc<Cluster>);

impl ClusterPort for ClusterClaims {
    fn claim<'a>(
        &'a self,
        request: &'a ArbiterRequest,
    ) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>> {
        Box::pin(async move {
            let longest = self.0.longest_effect();
            let claimed = self.0.change_state(|state| {
                let source_at = state.nodes_with_source(&request.source);
                let term = state.term_of(request, longest);
                let (id, effects) = state.claims.claim(request, source_at, term)?;
                let grant = state.waiting.register(id, request.id);
                Ok((effects, (id, grant)))
            });
            let (id, grant) = match claimed {
                Ok(claimed) => claimed,
                Err(why) => return Grant::Rejected(why),
            };
            let held = HeldClaim { cluster: Arc::clone(&self.0), id, request: request.id, over: false };
            match grant.await {
                Ok(grant) => grant.map(|()| Box::new(held) as Box<dyn ClusterPermit>),
                Err(_) => Grant::Rejected(Rejection::TurnLost),
            }
        })
    }

    fn restore(&self, request: &ArbiterRequest) -> Box<dyn ClusterPermit> {
        let id = self.0.state().claims.restore(request);
        Box::new(HeldClaim { cluster: Arc::clone(&self.0), id, request: request.id, over: false })
    }
}

/// Warns of each request that is held back, once.
fn warn_of_held(state: &ClusterState, warned: &mut BTreeSet<u64>) {
    let held: Vec<_> = state.claims.held().filter(|(_, nodes)| !nodes.is_empty()).collect();
    warned.retain(|id| held.iter().any(|(claim, _)| claim.id == *id));
    for (claim, nodes) in held {
        if warned.insert(claim.id) {
            let nodes: Vec<String> = nodes.into_iter().map(|it| state.name(it)).collect();
            warn!(
                uuid = %escaped(&claim.target), nodes = nodes.join(", "),
                "fence_virtd was started here a short while ago, and the one at these nodes has not told yet \
                 which power-offs were under way there: this off may come from a machine that is being \
                 powered off, so it waits until they tell, for {} s after the start at most",
                HYPERVISOR_EFFECT_MS / 1000
            );
        }
    }
}

/// Claim that waits or is in flight. A drop before the end withdraws the claim: nothing was done for it.
struct HeldClaim {
    cluster: Arc<Cluster>,
    id: u64,
    request: u64,
    over: bool,
}

impl fmt::Debug for HeldClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldClaim({})", self.id)
    }
}

impl ClusterPermit for HeldClaim {
    fn proved(&self) -> Result<(), Rejection> {
        self.cluster.state().claims.proved(self.id)
    }

    fn seen_off(&self, may_come_again: bool) {
        self.cluster.apply(|state| {
            let mut effects = if may_come_again { state.claims.may_come_again(self.id) } else { Vec::new() };
            effects.extend(state.claims.seen_off(self.id));
            effects
        });
    }

    fn answered(&self, effect: LateEffect, response: Response, reason: Option<&str>) {
        self.cluster.apply(|state| state.claims.answered(self.id, effect, response, reason));
    }

    fn finished(mut self: Box<Self>, response: Response, reason: Option<&str>) {
        self.over = true;
        self.cluster.apply(|state| {
            state.waiting.forget(self.id, self.request);
            state.claims.finished(self.id, response, reason)
        });
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        if !self.over {
            self.cluster.apply(|state| {
                state.waiting.forget(self.id, self.request);
                state.claims.withdraw(self.id)
            });
        }
    }
}

impl ClusterState {
    /// Returns the time after which no order is given for a request any more. The lease of the request holds
    /// that: code that is about to act looks at it. None of a device's machine: agents that run go on while
    /// this daemon stands still.
    fn term_of(&self, request: &ArbiterRequest, longest: Duration) -> Option<Duration> {
        let target = request.work.target()?;
        let left = request.deadline.saturating_duration_since(Instant::now());
        let start =
            if matches!(request.work, ArbitratedAction::Reboot(_)) { START_LIMIT } else { Duration::ZERO };
        (!is_devices(&self.directory, longest, target)).then_some(left + start)
    }
}

/// Returns whether a machine that no host has published may be a device's, whose order may come late.
fn is_devices(directory: &Directory, longest: Duration, target: &str) -> bool {
    !longest.is_zero() && directory.named(target, true).is_empty()
}

impl Cluster {
    /// Returns the longest time for which an order to a device may take effect.
    fn longest_effect(&self) -> Duration {
        self.service().map(|it| it.longest_effect()).unwrap_or_default()
    }

    /// Returns true if a start of the domain is in flight for this member, and nothing else on the domain.
    pub(super) fn is_start_of(&self, member: Member, uuid: &str) -> bool {
        self.state().claims.is_start_of(member, uuid)
    }

    /// Changes the state and carries out the claim effects that follow, under one lock.
    pub(super) fn apply(&self, change: impl FnOnce(&mut ClusterState) -> Vec<ClaimEffect>) {
        let _: Result<(), Rejection> = self.change_state(|state| Ok((change(state), ())));
    }

    fn change_state<T>(
        &self,
        change: impl FnOnce(&mut ClusterState) -> Result<(Vec<ClaimEffect>, T), Rejection>,
    ) -> Result<T, Rejection> {
        let mut state = self.state();
        let (effects, value) = change(&mut state)?;
        let victims = self.carry_out(&mut state, effects);
        drop(state);
        self.report_victims(victims);
        Ok(value)
    }

    /// Carries out claim effects. Returns the domains that other hosts saw off, for [`Self::report_victims`],
    /// which must be called without the lock.
    #[must_use]
    pub(super) fn carry_out(&self, state: &mut ClusterState, effects: Vec<ClaimEffect>) -> Vec<String> {
        let mut victims = Vec::new();
        for effect in effects {
            let (id, grant) = match effect {
                ClaimEffect::Send(message) => {
                    if let HostMessage::Overdue { member, .. } = message {
                        warn!(
                            host = %state.name(member.node),
                            "fence_virtd at that host is in the middle of a power-off or a start, and says \
                             nothing for too long: what it began can take effect no more, and the other \
                             hosts go on. If it stands still: systemctl restart fence_virtd there"
                        );
                    }
                    self.send(&message);
                    continue;
                }
                ClaimEffect::Victim(uuid) => {
                    victims.push(uuid);
                    continue;
                }
                ClaimEffect::Run(id) => (id, Grant::Run(())),
                ClaimEffect::Coalesced(id, result) => (id, Grant::Coalesced(result)),
                ClaimEffect::Rejected(id, why) => (id, Grant::Rejected(why)),
            };
            state.waiting.deliver(id, grant);
        }
        victims
    }

    /// Rejects this host's waiting requests that came from domains which were seen off.
    pub(super) fn report_victims(&self, victims: Vec<String>) {
        if let Some(service) = self.service() {
            for uuid in victims {
                service.source_seen_off(&uuid);
            }
        }
    }

    /// Sends a message of an owner about an ask; this host's claims hear of it first.
    pub(super) fn send_as_owner(&self, state: &mut ClusterState, message: &HostMessage) {
        let effects = state.claims.record_owner_message(message);
        let victims = self.carry_out(state, effects);
        // Victims are domains that another host saw off, and this message is this host's own.
        debug_assert!(victims.is_empty());
        self.send(message);
    }

    /// Keeps the orders of daemons that ended in the middle of them, each for its time. To be called after
    /// each change of the membership, and every now and then. Returns as [`Self::carry_out`].
    #[must_use]
    pub(super) fn keep_orphans(&self, state: &mut ClusterState) -> Vec<String> {
        let longest = self.longest_effect();
        let at_hypervisor = Duration::from_millis(HYPERVISOR_EFFECT_MS);
        let mut victims = self.note_nodes(state);
        let ClusterState { claims, directory, nodes, .. } = state;
        let terms = |target: &str, by: Option<Member>| {
            let is_devices = is_devices(directory, longest, target);
            let limit = if is_devices { at_hypervisor.max(longest) } else { at_hypervisor };
            if let Some(by) = by {
                let host = node_name(nodes, by.node);
                warn!(
                    %host, uuid = %escaped(target),
                    "fence_virtd at that host ended in the middle of a power-off of this machine, which may \
                     still take effect: requests that conflict with it wait until that host has told what \
                     became of it, for {} s at most",
                    limit.as_secs()
                );
            }
            OrphanTerms { limit, ends_with_off: !is_devices }
        };
        let effects = claims.expire_orphans(Instant::now(), at_hypervisor, terms);
        victims.extend(self.carry_out(state, effects));
        victims
    }

    /// Tells the claims which nodes corosync hears, but those with a C daemon. Returns as
    /// [`Self::carry_out`].
    #[must_use]
    pub(super) fn note_nodes(&self, state: &mut ClusterState) -> Vec<String> {
        let (legacy, now) = (state.legacy_members(), Instant::now());
        state.legacy_since.retain(|it, _| legacy.contains(it));
        for it in legacy {
            state.legacy_since.entry(it).or_insert(now);
        }
        // One of ours may be in the first group a moment before it is in the second.
        let is_settled = |since: &Instant| now.duration_since(*since) >= DAEMON_WAIT;
        let runs_c = |node: u32| state.legacy_since.iter().any(|(it, at)| it.node == node && is_settled(at));
        let nodes = state.ring.iter().copied().filter(|it| !runs_c(*it)).collect();
        let effects = state.claims.heard_nodes(nodes);
        self.carry_out(state, effects)
    }

    /// Proposes to go on without members that have been silent for too long, lets this host go on without
    /// corosync, and ends orders that were kept for their time. Never returns.
    pub(super) async fn exclude_silent_members(self: Arc<Self>) {
        let start = Instant::now();
        let mut since: HashMap<Member, Instant> = HashMap::new();
        let mut warned = BTreeSet::new();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = Instant::now();
            let mut state = self.state();
            let victims = self.keep_orphans(&mut state);
            warn_of_held(&state, &mut warned);
            drop(state);
            self.report_victims(victims);
            if now.duration_since(start) >= JOIN_TIMEOUT && self.state().claims.is_joining() {
                warn!(
                    "corosync has not answered for {JOIN_TIMEOUT:?}; \
                     only what runs here can be fenced until it does"
                );
                // It may have answered by now.
                let lost = |state: &mut ClusterState| {
                    if state.claims.is_joining() { state.claims.lost() } else { Vec::new() }
                };
                self.apply(lost);
            }
            let silent = self.state().claims.silent();
            since.retain(|member, _| silent.iter().any(|(it, _)| it == member));
            for (member, is_known) in silent {
                let began = *since.entry(member).or_insert(now);
                let patience =
                    if is_known { SYNC_TIMEOUT } else { SYNC_TIMEOUT + EXTRA_PATIENCE_WITHOUT_STATE };
                if now.duration_since(began) >= patience {
                    warn!(
                        host = %self.name(member),
                        "the host sent no state after the membership change; continuing without it"
                    );
                    since.remove(&member);
                    self.apply(|state| state.claims.pass_over(member));
                }
            }
        }
    }
}
