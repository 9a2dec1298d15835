// SPDX-License-Identifier: GPL-2.0-or-later
//! What other hosts ask this one for, carried out on its own domains.
//!
//! Each ask is a task of its own. It does not pass this host's arbiter: the asker's claim, which stands on every host,
//! covers it. It must never pass an ask on, and never act without the asker's "go".

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::{Action, HashType, Response, Target};

use super::asks::MAX_LEFT;
use super::message::{Ask, End as AskEnd, Outcome, What};
use super::{Cluster, Member};
use crate::access::{Access, Identity};
use crate::audit::{End, Record, Stages};
use crate::backend::{
    ActError, Backend, DomainRef, Lease, LocateError, Located, Power, Settled, StartFrom, Trail,
};
use crate::service::{Job, NOT_STARTED, START_LIMIT, Service};

/// The transport's name in records.
pub(super) const NAME: &str = "cpg";
/// A look that takes longer than this will not come at all.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Carries one ask out, answers it and writes its record.
pub(super) async fn serve(cluster: Arc<Cluster>, service: Arc<Service>, from: Member, ask: Ask) {
    let _under_way = service.begin();
    let name = cluster.name(from);
    let job = Job {
        id: service.next_id(),
        arrived: Instant::now(),
        patience: Duration::from_millis(ask.left_ms).min(MAX_LEFT),
        transport: NAME,
        peer: if ask.request == 0 { name } else { format!("{name} request {}", ask.request) },
        identity: Identity::default(),
        hash: HashType::None,
        key: None,
        // Asked by the host that knows the source.
        access: Arc::new(Access::new(None)),
        action: action(ask.what),
        target: Target::new(&ask.uuid, true).unwrap_or_else(|_| Target::none()),
        trail: Trail::default(),
    };
    let mut work = Work { cluster: &cluster, from, ask: &ask, stages: Stages::default(), domain: None };
    let (served, settled) = work.work(&job).await;
    let Work { mut stages, domain, .. } = work;
    stages.done = Some(Stages::since(job.arrived));
    let reason = served.reason();
    let end = match &served {
        Served::Failed(ActError::Lapsed(why)) => End::NotRun(why),
        _ => End::Answered { response: served.response(), reason: reason.as_deref(), delivered: true },
    };
    service.audit(&Record { job: &job, domain: domain.as_ref(), end, stages });
    // What hangs in a hypervisor may take effect later: the asker hears nothing before that, and its claim stands.
    if let Some(settled) = settled {
        settled.wait().await;
    }
    cluster.reply(from, &ask, served.end());
}

struct Work<'a> {
    cluster: &'a Arc<Cluster>,
    from: Member,
    ask: &'a Ask,
    stages: Stages,
    domain: Option<DomainRef>,
}

impl Work<'_> {
    /// Gives how it ended, and what tells when nothing more of it can take effect.
    async fn work(&mut self, job: &Job) -> (Served, Option<Settled>) {
        let local = Arc::clone(self.cluster.local());
        let left = job.deadline();
        let until = left.min(job.arrived + LOOK_LIMIT);
        let located = local.locate(&job.target, until).await;
        self.stages.resolved = Some(Stages::since(job.arrived));
        let domain = match located {
            Ok(Located::GoneOff(domain)) if matches!(job.action, Action::Status | Action::On) => {
                self.domain = Some(domain);
                return match job.action {
                    Action::Status => (Served::Is(Power::Off), None),
                    _ => (Served::Failed(ActError::Refused("it left no definition".to_owned())), None),
                };
            }
            Ok(Located::Here(domain) | Located::GoneOff(domain)) => domain,
            Ok(Located::Resting(domain)) if self.ask.rests => domain,
            Ok(Located::Resting(_) | Located::Elsewhere(_) | Located::Lost(_))
            | Err(LocateError::NotFound) => {
                return (Served::Failed(ActError::Gone), None);
            }
            Err(error) => return (Served::Failed(ActError::Unavailable(error.to_string())), None),
        };
        self.domain = Some(domain.clone());
        if job.action == Action::Status {
            let seen = local.look(&domain, until).await;
            return (seen.map_or_else(Served::Failed, Served::Is), None);
        }
        let (lease, settled) = match self.cluster.taken(self.from, self.ask, left).await {
            Ok(go) => go,
            Err(error) => return (Served::Failed(error), None),
        };
        self.stages.turn = Some(Stages::since(job.arrived));
        self.stages.proved = self.stages.turn;
        let done = self.act(&*local, job.action, &domain, &lease).await;
        (done.unwrap_or_else(Served::Failed), Some(settled))
    }

    async fn act(
        &self,
        local: &dyn Backend,
        action: Action,
        domain: &DomainRef,
        lease: &Lease,
    ) -> Result<Served, ActError> {
        let seen_off = |was_off, starts| self.cluster.seen_off(self.from, self.ask, was_off, starts);
        match action {
            Action::On => local.on(domain, StartFrom::Definition, lease).await.map(|()| Served::Done(None)),
            Action::Off => {
                let down = local.off(domain, false, lease).await?;
                seen_off(down.was_off, false);
                Ok(Served::Done(down.was_off.then_some("was off already".to_owned())))
            }
            Action::Reboot => {
                let down = local.off(domain, true, lease).await?;
                seen_off(down.was_off, down.restart.is_some());
                let Some(how) = down.restart else {
                    return Ok(Served::Done(Some("off, and not started by this request".to_owned())));
                };
                // It was taken down to come up again, whatever became of the asker.
                let rest = lease.to_the_end(lease.until().max(Instant::now() + START_LIMIT));
                Ok(match local.on(domain, how, &rest).await {
                    Ok(()) => Served::Done(None),
                    Err(error) => Served::NotStarted(error),
                })
            }
            Action::Null | Action::Status | Action::Monitor | Action::List => {
                Err(ActError::Refused(format!("{action} is not for other hosts")))
            }
        }
    }
}

/// How it ended.
enum Served {
    Is(Power),
    Done(Option<String>),
    /// Fenced, and then not started again.
    NotStarted(ActError),
    Failed(ActError),
}

impl Served {
    fn end(&self) -> AskEnd {
        match self {
            Self::Failed(ActError::Gone) => AskEnd::NotHere,
            Self::Failed(error @ ActError::Lapsed(_)) => AskEnd::NothingDone(error.to_string()),
            _ => AskEnd::Done(Outcome::new(self.response(), self.reason().as_deref())),
        }
    }

    fn response(&self) -> Response {
        match self {
            Self::Is(Power::On) | Self::Done(_) | Self::NotStarted(_) => Response::Success,
            Self::Is(Power::Off) => Response::Off,
            Self::Failed(_) => Response::Failure,
        }
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self::Is(_) => None,
            Self::Done(why) => why.clone(),
            Self::NotStarted(error) => Some(format!("{NOT_STARTED}{error}")),
            Self::Failed(error) => Some(error.to_string()),
        }
    }
}

fn action(what: What) -> Action {
    match what {
        What::Status => Action::Status,
        What::On => Action::On,
        What::Off => Action::Off,
        What::Reboot => Action::Reboot,
    }
}
