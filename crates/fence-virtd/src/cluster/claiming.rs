// SPDX-License-Identifier: GPL-2.0-or-later
//! What the other hosts have a say in: requests of this host get their claims here ([`fence_core::cluster::claims`] decides).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::Response;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Cluster, ClusterState};
use crate::service::turns::{ClusterGrant, ClusterPermit, ClusterPort};
use fence_core::arbiter::{ArbiterRequest, Grant, Rejection};
use fence_core::cluster::claims::ClaimEffect;

/// How long a member may take to say what it has under way after the membership changed, while all others wait for that.
const SYNC_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the group is looked for at the start of the daemon before this host decides alone. Corosync that is stopped says
/// neither yes nor no.
const JOIN_TIMEOUT: Duration = Duration::from_secs(4);
/// How much later those speak that don't know what it had.
const EXTRA_PATIENCE_WITHOUT_STATE: Duration = Duration::from_secs(2);

/// The claims of this host's requests that wait.
#[derive(Default)]
pub(super) struct WaitingClaims {
    /// By number of the claim.
    told: HashMap<u64, oneshot::Sender<Grant<()>>>,
    /// The claim of each request that has one.
    of_request: HashMap<u64, u64>,
}

impl WaitingClaims {
    /// The claim of this request.
    pub(super) fn claim_of(&self, request: u64) -> Option<u64> {
        self.of_request.get(&request).copied()
    }
}

/// The way of requests to the other hosts.
pub(crate) struct ClusterClaims(pub(crate) Arc<Cluster>);

impl ClusterPort for ClusterClaims {
    fn claim<'a>(
        &'a self,
        request: &'a ArbiterRequest,
    ) -> Pin<Box<dyn Future<Output = ClusterGrant> + Send + 'a>> {
        Box::pin(async move {
            let (tell, told) = oneshot::channel();
            let claimed = self.0.change_state(|state| {
                let (id, effects) = state.claims.claim(request)?;
                state.waiting.told.insert(id, tell);
                state.waiting.of_request.insert(request.id, id);
                Ok((effects, id))
            });
            let held = match claimed {
                Ok(id) => HeldClaim { cluster: Arc::clone(&self.0), id, request: request.id, over: false },
                Err(why) => return Grant::Rejected(why),
            };
            match told.await {
                Ok(grant) => grant.map(|()| Box::new(held) as Box<dyn ClusterPermit>),
                Err(_) => Grant::Rejected(Rejection::TurnLost),
            }
        })
    }
}

/// A claim that waits or is in flight. Dropped before its end, nothing was done for it.
struct HeldClaim {
    cluster: Arc<Cluster>,
    id: u64,
    request: u64,
    over: bool,
}

impl fmt::Debug for HeldClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({})", self.id)
    }
}

impl ClusterPermit for HeldClaim {
    fn proved(&self) -> Result<(), Rejection> {
        self.cluster.state().claims.proved(self.id)
    }

    fn seen_off(&self) {
        self.cluster.apply(|state| state.claims.seen_off(self.id));
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

impl WaitingClaims {
    fn forget(&mut self, id: u64, request: u64) {
        self.told.remove(&id);
        self.of_request.remove(&request);
    }
}

impl Cluster {
    /// Does something with the state, and what follows from it for the claims, before anybody else does.
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
        self.victims(victims);
        Ok(value)
    }

    /// Carries out what was decided. Gives those whom other hosts saw off: [`Self::victims`] is to be told without the lock.
    #[must_use]
    pub(super) fn carry_out(&self, state: &mut ClusterState, effects: Vec<ClaimEffect>) -> Vec<String> {
        let mut victims = Vec::new();
        for effect in effects {
            let (id, decided) = match effect {
                ClaimEffect::Send(message) => {
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
            if let Some(tell) = state.waiting.told.remove(&id) {
                // Nobody there to hear it: it is being withdrawn.
                let _ = tell.send(decided);
            }
        }
        victims
    }

    /// Requests of this host that came from them don't run.
    pub(super) fn victims(&self, victims: Vec<String>) {
        if let Some(service) = self.service() {
            for uuid in victims {
                service.source_seen_off(&uuid);
            }
        }
    }

    /// Lets all go on without a member that has been silent for too long, and this host without corosync. Runs for ever.
    pub(super) async fn exclude_silent_members(self: Arc<Self>) {
        let start = Instant::now();
        let mut since: HashMap<super::Member, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = Instant::now();
            if now.duration_since(start) >= JOIN_TIMEOUT && self.state().claims.is_looking() {
                warn!(
                    "corosync has not answered for {JOIN_TIMEOUT:?}; only what runs here can be fenced until it does"
                );
                // It may have answered by now.
                let lost = |state: &mut ClusterState| {
                    if state.claims.is_looking() { state.claims.lost() } else { Vec::new() }
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
                    warn!(host = %self.name(member), "its daemon does not say what it has under way; the others go on");
                    since.remove(&member);
                    self.apply(|state| state.claims.pass_over(member));
                }
            }
        }
    }
}
