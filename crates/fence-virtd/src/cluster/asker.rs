// SPDX-License-Identifier: GPL-2.0-or-later
//! Asks of this host to the owners of domains: the asker's end.
//!
//! An ask ends by its lease. This module must never report an action that its owner has not confirmed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::{Action, Response};
use tokio::sync::mpsc;

use super::asks::{AskEvent, result};
use super::state::Cluster;
use crate::request::lease::Lease;
use fence_core::cluster::message::{AskAction, AskForecast, AskMessage, AskOutcome, HostMessage, Member};
use fence_core::domain::{ActionError, DomainId, DomainRef, PowerAction, PowerState};
use fence_core::evidence::Sight;

/// Time by which an owner's reply may be late: an owner with no better result replies at the deadline itself.
const REPLY_GRACE: Duration = Duration::from_millis(500);

impl Cluster {
    /// Sends an ask to another host. The owner's work ends by the lease; [`PendingAsk`] waits for the reply.
    pub(crate) fn ask(
        self: &Arc<Self>,
        to: Member,
        action: Action,
        domain: &DomainRef,
        rests: bool,
        lease: &Lease,
    ) -> Result<PendingAsk, ActionError> {
        let what = PowerAction::of_request(action)
            .map(AskAction::from)
            .ok_or_else(|| ActionError::Refused(format!("{action} is not for other hosts")))?;
        self.send_ask(to, (what, None), domain, rests, lease)
    }

    /// Asks another host that has the domain on what an action would do. Nothing is done there.
    pub(crate) fn ask_forecast(
        self: &Arc<Self>,
        to: Member,
        action: PowerAction,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<PendingAsk, ActionError> {
        self.send_ask(to, (AskAction::Status, Some(action.into())), domain, false, lease)
    }

    fn send_ask(
        self: &Arc<Self>,
        to: Member,
        (what, dry_run): (AskAction, Option<AskAction>),
        domain: &DomainRef,
        rests: bool,
        lease: &Lease,
    ) -> Result<PendingAsk, ActionError> {
        let mut state = self.state();
        let owner = state.name(to.node);
        let gone = || ActionError::Unavailable(format!("{owner} left before it was asked"));
        if state.me.is_none() || !state.members.contains(&to) {
            return Err(gone());
        }
        let claim = state.waiting.claim_of(lease.request()).and_then(|it| state.claims.of(it)).cloned();
        if claim.is_none() && what != AskAction::Status {
            return Err(ActionError::Lapsed("the cluster-wide grant was lost"));
        }
        let left = lease.until().saturating_duration_since(Instant::now());
        let uuid = domain.uuid.to_string();
        let starts = matches!(what, AskAction::On | AskAction::Reboot).then_some(uuid.as_str());
        let (ask, events) = state.outgoing_asks.begin(to, starts, lease);
        let message = HostMessage::Ask(AskMessage {
            to,
            ask,
            what,
            uuid,
            name: domain.name.clone(),
            claim: claim.filter(|_| what != AskAction::Status),
            rests,
            left_ms: left.as_millis().try_into().unwrap_or(u64::MAX),
            request: lease.request(),
            dry_run,
        });
        if !self.send(&message) {
            state.outgoing_asks.forget(ask);
            return Err(gone());
        }
        drop(state);
        Ok(PendingAsk { cluster: Arc::clone(self), ask, to, owner, events, over: false })
    }
}

/// Ask to another host that is not over.
pub(crate) struct PendingAsk {
    cluster: Arc<Cluster>,
    ask: u64,
    to: Member,
    owner: String,
    events: mpsc::UnboundedReceiver<AskEvent>,
    over: bool,
}

/// Result of an off, or of the first half of a reboot, at another host.
pub(crate) struct RemotePowerOff {
    pub(crate) was_off: bool,
    /// True if the owner starts the domain again; [`PendingAsk::done`] waits for that.
    pub(crate) starts: bool,
}

impl fmt::Debug for PendingAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingAsk").field("ask", &self.ask).field("to", &self.to).finish_non_exhaustive()
    }
}

impl PendingAsk {
    /// Waits for the result of a status check.
    pub(crate) async fn power(mut self, lease: &Lease) -> Result<PowerState, ActionError> {
        let outcome = self.outcome(lease).await.map_err(only_looked)?;
        match outcome.response {
            Response::Success => Ok(PowerState::On),
            Response::Off => Ok(PowerState::Off),
            _ => Err(self.failed(outcome.reason)),
        }
    }

    /// Waits for the result of a question what an action would do; none of an owner that is of the last
    /// release.
    pub(crate) async fn forecast(mut self, lease: &Lease) -> Result<Option<AskForecast>, ActionError> {
        let outcome = self.outcome(lease).await.map_err(only_looked)?;
        match outcome.response {
            Response::Success => Ok(outcome.forecast),
            Response::Off => Err(ActionError::Gone),
            _ => Err(self.failed(outcome.reason)),
        }
    }

    /// Waits for the result of a look at the owner.
    pub(crate) async fn sight(mut self, lease: &Lease) -> Result<(Sight, Vec<DomainId>), ActionError> {
        let outcome = self.outcome(lease).await.map_err(only_looked)?;
        match outcome.response {
            Response::Success if outcome.moving => Ok((Sight::Moving, Vec::new())),
            Response::Success => Ok((Sight::On, Vec::new())),
            _ => outcome.look_without_instance().ok_or_else(|| self.failed(outcome.reason)),
        }
    }

    /// Waits until the owner saw the domain off. If the owner does not start it again, waits until no part of
    /// the work can take effect any more.
    pub(crate) async fn down(&mut self, lease: &Lease) -> Result<RemotePowerOff, ActionError> {
        match self.next_event(lease).await? {
            AskEvent::SeenOff { was_off, starts } => {
                if !starts {
                    self.done(lease).await?;
                }
                Ok(RemotePowerOff { was_off, starts })
            }
            AskEvent::Reply(end) => {
                let outcome = result(end, &self.owner)?;
                Err(self.failed(outcome.reason))
            }
            AskEvent::Lost(why) => Err(self.lost(&why)),
        }
    }

    /// Waits for the result of an on, or of the rest of an off or a reboot.
    pub(crate) async fn done(&mut self, lease: &Lease) -> Result<(), ActionError> {
        let outcome = self.outcome(lease).await?;
        match outcome.response {
            Response::Success => match outcome.start_failure() {
                None => Ok(()),
                Some(why) => Err(ActionError::Refused(format!("{}: {why}", self.owner))),
            },
            _ => Err(self.failed(outcome.reason)),
        }
    }

    async fn outcome(&mut self, lease: &Lease) -> Result<AskOutcome, ActionError> {
        loop {
            match self.next_event(lease).await? {
                AskEvent::SeenOff { .. } => {}
                AskEvent::Reply(end) => return result(end, &self.owner),
                AskEvent::Lost(why) => return Err(self.lost(&why)),
            }
        }
    }

    /// Waits for the next event of the ask; an error when none comes in time. When the lease ends first, a
    /// "cancel" goes to the owner, and its reply is waited for: it may have begun.
    async fn next_event(&mut self, lease: &Lease) -> Result<AskEvent, ActionError> {
        let late = tokio::time::sleep_until((lease.until() + REPLY_GRACE).into());
        tokio::pin!(late);
        let mut cancelled = false;
        let event = loop {
            tokio::select! {
                biased;
                event = self.events.recv() => break event,
                () = &mut late => break None,
                _ = lease.ended(), if !cancelled => {
                    cancelled = true;
                    self.cancel();
                }
            }
        };
        match event {
            Some(event) => {
                self.over = matches!(event, AskEvent::Reply(_) | AskEvent::Lost(_));
                Ok(event)
            }
            None => Err(ActionError::Unknown(format!("{} did not answer in time", self.owner))),
        }
    }

    fn cancel(&self) {
        // Under the lock: messages are sent in the order in which they were decided.
        let _state = self.cluster.state();
        self.cluster.send(&HostMessage::Cancel { to: self.to, ask: self.ask });
    }

    fn failed(&self, reason: Option<String>) -> ActionError {
        let reason = reason.unwrap_or_else(|| "that host gave no reason; its log has more".to_owned());
        ActionError::Refused(format!("{}: {reason}", self.owner))
    }

    fn lost(&self, why: &str) -> ActionError {
        ActionError::Unknown(format!("{} was asked, and then {why}", self.owner))
    }
}

/// Returns the error of an ask that does nothing: there is no action whose end is not known.
fn only_looked(error: ActionError) -> ActionError {
    match error {
        ActionError::Unknown(why) => ActionError::Unavailable(why),
        other => other,
    }
}

impl Drop for PendingAsk {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
            self.cluster.state().outgoing_asks.give_up(self.ask);
        }
    }
}
