// SPDX-License-Identifier: GPL-2.0-or-later
//! Asks of other hosts, carried out on this host's own domains: the owner's end.
//!
//! Each ask is a task of its own. An ask does not pass this host's arbiter: the asker's claim, which stands
//! on every host, covers it. This code must never pass an ask on, and never act without the asker's "go".

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::{Action, FORECAST_UNCERTAIN, Response, Target};

use super::asks::MAX_LEFT;
use super::state::{Cluster, TRANSPORT};
use crate::backend::elsewhere::{DomainQuestion, OwnPlaces as _};
use crate::backend::libvirt::DomainHere;
use crate::backend::{DynBackend, PowerForecast};
use crate::request::job::{Arrival, RequestJob};
use crate::request::lease::{Lease, LeaseReleased};
use crate::request::record::{AnswerDelivery, AuditRecord, RequestEnd, StageTimes};
use crate::service::Service;
use crate::service::execute::{
    NOT_STARTED, PowerActionResult, STATUS_CHECK_LIMIT, SeenOff, joined, run_power_action,
};
use crate::service::owed_places::about_to_start;
use fence_core::arbiter::{LateEffect, RequestSource};
use fence_core::cluster::message::{
    AskAction, AskEnd, AskForecast, AskMessage, AskOutcome, HostMessage, Member,
};
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainRef, LocateError, PowerAction, PowerState, TargetKind,
};
use fence_core::evidence::namesakes::MAX_NAMESAKES;
use fence_core::evidence::{
    Finding, Sight, namesake_moved_away, namesakes_in, namesakes_moved_away, strongest,
};

/// Carries one ask out, answers it and writes its record.
pub(super) async fn serve(cluster: Arc<Cluster>, service: Arc<Service>, from: Member, ask: AskMessage) {
    let _under_way = service.begin_request();
    let name = cluster.name(from);
    let peer = if ask.request == 0 { name } else { format!("{name} request {}", ask.request) };
    let target = Target::new(&ask.uuid, true).unwrap_or_else(|_| Target::none());
    let arrival = Arrival::from_host(TRANSPORT, peer, PowerAction::from(ask.what).into(), target);
    let patience = Duration::from_millis(ask.left_ms).min(MAX_LEFT);
    let dry_run = ask.dry_run.map(PowerAction::from).filter(|_| ask.what == AskAction::Status);
    let job = RequestJob { patience, dry_run, ..service.accept(arrival) };
    let mut work =
        AskExecution { cluster: &cluster, from, ask: &ask, stages: StageTimes::default(), domain: None };
    let (served, settled) = work.work(&job).await;
    let AskExecution { mut stages, domain, .. } = work;
    stages.done = Some(StageTimes::since(job.arrived));
    let reason = served.reason();
    let end = match &served {
        ServeOutcome::Failed(ActionError::Lapsed(why)) => RequestEnd::NotRun(why),
        _ => RequestEnd::Answered {
            response: served.response(),
            reason: reason.as_deref(),
            delivered: AnswerDelivery::Taken,
        },
    };
    service.audit(&AuditRecord { job: &job, domain: domain.as_ref(), end, stages });
    // An action that hangs in a hypervisor may take effect later: until then the asker gets no reply and its
    // claim stands.
    if let Some(mut settled) = settled {
        let (mut may_come, mut is_told) = (settled.effect(), false);
        while let Some(effect) = may_come {
            if effect != LateEffect::Any && !std::mem::replace(&mut is_told, true) {
                cluster.send_early_reply(from, &ask, served.end());
            }
            if effect == LateEffect::HangingOff {
                cluster.send_hangs(from, &ask);
            }
            may_come = settled.effect_after(effect).await;
        }
        if settled.late_seen_off().is_some() {
            cluster.send_progress(from, &ask, false, false);
        }
    }
    cluster.reply(from, &ask, served.end());
}

struct AskExecution<'a> {
    cluster: &'a Arc<Cluster>,
    from: Member,
    ask: &'a AskMessage,
    stages: StageTimes,
    domain: Option<DomainRef>,
}

impl AskExecution<'_> {
    /// Carries the ask out. Returns its outcome, and the signal that no part of it can take effect any more.
    async fn work(&mut self, job: &RequestJob) -> (ServeOutcome, Option<LeaseReleased>) {
        let local = Arc::clone(self.cluster.local());
        let left = job.deadline();
        let until = left.min(job.arrived + STATUS_CHECK_LIMIT);
        if job.action == Action::Status && self.ask.rests {
            return (self.look(job, until).await, None);
        }
        let found = local.find_here(&job.target, until).await;
        self.stages.resolved = Some(StageTimes::since(job.arrived));
        self.cluster.check_found(&self.ask.uuid, &found);
        let (domain, sight) = match found {
            Ok(DomainHere {
                domain, sight: sight @ (Sight::On | Sight::Moving | Sight::Ended(_)), ..
            }) => (domain, sight),
            // The asker has looked at all nodes. This host looks at them again before it starts the domain.
            Ok(DomainHere { domain, sight: sight @ (Sight::Off | Sight::MovedAway(_)), .. })
                if self.ask.rests =>
            {
                (domain, sight)
            }
            Ok(DomainHere { sight: Sight::Unknown(why), .. }) => {
                return (ServeOutcome::Failed(ActionError::Unavailable(why)), None);
            }
            Ok(_) | Err(LocateError::NotFound) => {
                return (ServeOutcome::Failed(ActionError::Gone), None);
            }
            Err(error) => return (ServeOutcome::Failed(ActionError::Unavailable(error.to_string())), None),
        };
        self.domain = Some(domain.clone());
        if job.action == Action::Status {
            let power = match sight {
                Sight::On | Sight::Moving => PowerState::On,
                _ => PowerState::Off,
            };
            return match job.dry_run {
                Some(asked) if power == PowerState::On => {
                    (self.forecast(&*local, asked, &domain, left).await, None)
                }
                _ => (ServeOutcome::Is(power), None),
            };
        }
        let (lease, settled) = match self.cluster.await_go(self.from, self.ask, left).await {
            Ok(go) => go,
            Err(error) => return (ServeOutcome::Failed(error), None),
        };
        self.stages.turn = Some(StageTimes::since(job.arrived));
        self.stages.proved = self.stages.turn;
        if let Some(service) = self.cluster.service() {
            // A peer is one of the asking host's: after a restart here it is nobody known.
            let source = self.ask.claim.as_ref().and_then(|it| it.source.clone());
            let source = source.map_or(RequestSource::Unknown, RequestSource::Known);
            service.write_intent(job, &domain, source, None).await;
        }
        let lease = lease.with_trail(job.trail.clone());
        let done = self.act(&*local, job.action, &domain, &lease).await;
        (done.unwrap_or_else(ServeOutcome::Failed), Some(settled))
    }

    /// Looks at all hypervisors of this host, for an asker that is about to call the domain off.
    async fn look(&mut self, job: &RequestJob, until: Instant) -> ServeOutcome {
        let Some(uuid) = DomainId::parse_canonical(&self.ask.uuid) else {
            return ServeOutcome::Failed(ActionError::Gone);
        };
        let question = DomainQuestion::new(uuid, self.ask.name.clone());
        // A start may become owed while the hypervisors are asked, or be made good after they were.
        // One that the asker is to start is not started before that is over: else two hosts that owe it would
        // wait for each other.
        let is_theirs = self.cluster.is_start_of(self.from, &self.ask.uuid)
            || self.cluster.state().outgoing_asks.has_start_at(self.from, &self.ask.uuid);
        let owes = || !is_theirs && self.cluster.service().is_some_and(|it| it.owes_start(&self.ask.uuid));
        let was_owed = owes();
        let found = self.cluster.local().look_here(&question, until).await;
        let seen = strongest(&found);
        self.cluster.check_published(uuid, &seen);
        self.stages.resolved = Some(StageTimes::since(job.arrived));
        let heard: Vec<_> = namesakes_in(&found).into_keys().collect();
        if heard.len() > MAX_NAMESAKES {
            let local = Arc::clone(self.cluster.local());
            tokio::spawn(async move { local.prove_moves(heard).await });
        }
        let seen = if was_owed || owes() { about_to_start(&seen) } else { seen };
        if !matches!(seen, Sight::On | Sight::Moving | Sight::Unknown(_) | Sight::Down(_))
            && let Some(outcome) = seen_off_with_namesakes(&seen, &found)
        {
            return outcome;
        }
        match seen {
            Sight::Absent => return ServeOutcome::SeenAbsent,
            Sight::Unknown(why) | Sight::Down(why) => {
                return ServeOutcome::Failed(ActionError::Unavailable(why));
            }
            _ => {}
        }
        self.domain =
            Some(DomainRef { name: question.name, uuid, home: DomainHome::Here(0), by: TargetKind::Name });
        match seen {
            Sight::On => ServeOutcome::Is(PowerState::On),
            Sight::Moving => ServeOutcome::SeenMoving,
            off => ServeOutcome::SeenOff(off),
        }
    }

    /// Says what an action would do here.
    async fn forecast(
        &self,
        local: &dyn DynBackend,
        action: PowerAction,
        domain: &DomainRef,
        until: Instant,
    ) -> ServeOutcome {
        let (lease, _released) = Lease::new(until, self.ask.request);
        match local.forecast(domain, action, &lease).await {
            // It has just ended: what that means the asker finds out.
            Ok(PowerForecast::StaysOff | PowerForecast::Starts { .. }) => ServeOutcome::Is(PowerState::Off),
            Ok(PowerForecast::PowersOff { .. } | PowerForecast::StaysOn) => {
                ServeOutcome::WouldBe(AskForecast::Done)
            }
            Ok(PowerForecast::Uncertain(why)) => ServeOutcome::WouldBe(AskForecast::Uncertain(why)),
            Err(error @ ActionError::Gone) => ServeOutcome::Failed(error),
            Err(error) => ServeOutcome::WouldBe(AskForecast::Fails(error.to_string())),
        }
    }

    async fn act(
        &self,
        local: &dyn DynBackend,
        action: Action,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<ServeOutcome, ActionError> {
        let action = PowerAction::of_request(action)
            .ok_or_else(|| ActionError::Refused(format!("{action} is not for other hosts")))?;
        let report =
            |seen: SeenOff| self.cluster.send_progress(self.from, self.ask, seen.was_off, seen.starts);
        Ok(match run_power_action(local, action, domain, lease, report).await? {
            PowerActionResult::Started { note } | PowerActionResult::Rebooted { note, .. } => {
                ServeOutcome::Done(note)
            }
            PowerActionResult::PoweredOff { was_off, note, .. } => {
                ServeOutcome::Done(joined([was_off.then(|| "was off already".to_owned()), note]))
            }
            PowerActionResult::NotToBeStarted { .. } => {
                ServeOutcome::Done(Some("off, and not started by this request".to_owned()))
            }
            PowerActionResult::NotStarted { error, .. } => ServeOutcome::NotStarted(error),
        })
    }
}

/// The owner's messages.
impl Cluster {
    /// Sends "taken" and waits for the asker's "go".
    async fn await_go(
        &self,
        from: Member,
        ask: &AskMessage,
        until: Instant,
    ) -> Result<(Lease, LeaseReleased), ActionError> {
        let claim = ask.claim.as_ref().map_or(0, |it| it.id);
        let go = {
            let mut state = self.state();
            let go = state.incoming_asks.taken(from, ask.ask, Instant::now());
            self.send_as_owner(&mut state, &HostMessage::Taken { asker: from, ask: ask.ask, claim });
            go
        };
        match tokio::time::timeout_at(until.into(), go).await {
            Ok(Ok(go)) => Ok(go),
            Ok(Err(_)) => {
                Err(ActionError::Lapsed("nobody at the asking host waits for the request any more"))
            }
            Err(_) => Err(ActionError::Lapsed("the asking host did not say that it still wants the request")),
        }
    }

    fn send_progress(&self, from: Member, ask: &AskMessage, was_off: bool, starts: bool) {
        let claim = ask.claim.as_ref().map_or(0, |it| it.id);
        let victim = ask.uuid.clone();
        let progress = HostMessage::Progress { asker: from, ask: ask.ask, claim, victim, was_off, starts };
        let mut state = self.state();
        self.send_as_owner(&mut state, &progress);
        drop(state);
        // Requests of the domain most likely come to the host on which it ran.
        self.report_victims(vec![ask.uuid.clone()]);
    }

    fn send_early_reply(&self, from: Member, ask: &AskMessage, end: AskEnd) {
        // Under the lock: messages are sent in the order in which they were decided.
        let _state = self.state();
        self.send(&HostMessage::EarlyReply { asker: from, ask: ask.ask, end });
    }

    /// Tells all that nothing of an ask is left but a power-off that hangs.
    fn send_hangs(&self, from: Member, ask: &AskMessage) {
        let claim = ask.claim.as_ref().map_or(0, |it| it.id);
        let hangs = HostMessage::Hangs { asker: from, claim, ask: Some(ask.ask) };
        self.send_as_owner(&mut self.state(), &hangs);
    }

    fn reply(&self, from: Member, ask: &AskMessage, end: AskEnd) {
        let mut state = self.state();
        state.incoming_asks.over(from, ask.ask);
        let claim = ask.claim.as_ref().map(|it| it.id);
        self.send_as_owner(&mut state, &HostMessage::Reply { asker: from, ask: ask.ask, claim, end });
    }
}

/// Outcome of an ask.
enum ServeOutcome {
    Is(PowerState),
    /// On, and this is what an action would do.
    WouldBe(AskForecast),
    /// A look at all hypervisors saw that the domain comes or goes, or is about to be started.
    SeenMoving,
    /// A look at all hypervisors saw no instance.
    SeenOff(Sight),
    /// The same, and no definition. That is no failure: a domain is at a few of many hosts.
    SeenAbsent,
    /// The same, and other domains with the name left this host: that is no "off" for an asker of the last
    /// release. The text says so.
    SeenOffWithNamesakes(Sight, Vec<DomainId>, String),
    Done(Option<String>),
    /// Off as asked, and then not started again.
    NotStarted(ActionError),
    Failed(ActionError),
}

impl ServeOutcome {
    fn end(&self) -> AskEnd {
        match self {
            Self::Failed(ActionError::Gone) | Self::SeenAbsent => AskEnd::NotHere,
            Self::Failed(error @ ActionError::Lapsed(_)) => AskEnd::NothingDone(error.to_string()),
            Self::NotStarted(error) => AskEnd::Done(AskOutcome::not_started(&error.to_string())),
            Self::WouldBe(forecast) => AskEnd::Done(AskOutcome::with_forecast(forecast)),
            Self::SeenMoving => AskEnd::Done(AskOutcome::seen_moving()),
            Self::SeenOff(sight) => AskEnd::Done(AskOutcome::seen_off(sight)),
            Self::SeenOffWithNamesakes(sight, namesakes, why) => {
                AskEnd::Done(AskOutcome::seen_off_with_namesakes(sight, namesakes, why))
            }
            _ => AskEnd::Done(AskOutcome::new(self.response(), self.reason().as_deref())),
        }
    }

    fn response(&self) -> Response {
        match self {
            Self::Is(PowerState::On)
            | Self::SeenMoving
            | Self::WouldBe(AskForecast::Done)
            | Self::Done(_)
            | Self::NotStarted(_) => Response::Success,
            Self::Is(PowerState::Off) | Self::SeenOff(_) | Self::SeenAbsent => Response::Off,
            Self::WouldBe(AskForecast::Uncertain(_) | AskForecast::Fails(_))
            | Self::Failed(_)
            | Self::SeenOffWithNamesakes(..) => Response::Failure,
        }
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self::Is(_) | Self::SeenMoving | Self::SeenOff(_) | Self::WouldBe(AskForecast::Done) => None,
            Self::WouldBe(AskForecast::Uncertain(why)) => Some(format!("{FORECAST_UNCERTAIN}: {why}")),
            Self::WouldBe(AskForecast::Fails(why)) => Some(why.clone()),
            Self::SeenAbsent => Some("the domain is not at this host".to_owned()),
            Self::Done(why) => why.clone(),
            Self::NotStarted(error) => Some(format!("{NOT_STARTED}{error}")),
            Self::Failed(error) => Some(error.to_string()),
            Self::SeenOffWithNamesakes(_, _, why) => Some(why.clone()),
        }
    }
}

/// Returns the outcome of a look that saw no instance, if other domains with the name left this host.
fn seen_off_with_namesakes(seen: &Sight, found: &[Finding]) -> Option<ServeOutcome> {
    let heard = namesakes_in(found);
    let (other, look) = heard.first_key_value()?;
    Some(if heard.len() > MAX_NAMESAKES {
        ServeOutcome::Failed(ActionError::Unavailable(namesakes_moved_away(look, heard.len())))
    } else {
        let why = namesake_moved_away(look, *other);
        ServeOutcome::SeenOffWithNamesakes(seen.clone(), heard.into_keys().collect(), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most nodes of a cluster do not know the domain: a record of failure at each would hide a true one.
    #[test]
    fn a_look_at_a_node_that_does_not_know_the_domain_is_no_failure() {
        let seen = ServeOutcome::SeenAbsent;
        assert_eq!((seen.response(), seen.end()), (Response::Off, AskEnd::NotHere));
        assert_eq!(seen.reason().as_deref(), Some("the domain is not at this host"));
        assert_eq!(ServeOutcome::Failed(ActionError::Gone).response(), Response::Failure);
    }
}
