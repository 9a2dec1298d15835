// SPDX-License-Identifier: GPL-2.0-or-later
//! The question whether a start still stands that follows a power-off, or a look at all places.
//!
//! Between that and the order of the start somebody else may start the machine at another host, and have it
//! powered off there: a start that comes after that runs beside another instance, or undoes an off. So the
//! other hosts are asked right before the order. Where libvirt answers at once, a sign that somebody did so
//! is what counts: a silent host must not keep a machine down that was fenced. Where libvirt was away, or
//! kept the order waiting, every other place has to say that nothing happened since.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::domain::{ActionError, DomainRef};
use fence_core::evidence::{DomainSite, Finding};
use fence_core::owed_start::{PlaceWord, StartVerdict};

use super::second_instance::{ANSWER_AGE, Instance, SECOND_INSTANCE_WAIT, SecondInstance};
use crate::backend::BoxedFuture;
use crate::backend::elsewhere::{DomainQuestion, PeerHosts};
use crate::util::join::join_all;

/// Time since the domain was seen off after which every place has to be heard.
const PROMPT_START: Duration = Duration::from_secs(3);

/// Course of the power-off before a start.
#[derive(Default)]
pub(super) struct DownCourse {
    /// Beginning of the first power-off that took long: when in it the instance ended is not known.
    since: Option<Instant>,
    /// libvirt was away meanwhile.
    pub(super) was_away: bool,
}

impl DownCourse {
    /// Notes the end of a power-off at a hypervisor that began then.
    pub(super) fn note(&mut self, began: Instant) {
        if self.was_away || began.elapsed() > ANSWER_AGE {
            self.since.get_or_insert(began);
        }
    }
}

/// Places that are asked before a start.
pub(super) trait StartPlaces: Send + Sync {
    /// Returns the other hosts.
    fn others(&self) -> Vec<Arc<dyn PeerHosts>>;

    /// Looks at each hypervisor of this host but this one.
    fn look_beside<'a>(
        &'a self,
        home: &'a str,
        question: &'a DomainQuestion,
        until: Instant,
    ) -> BoxedFuture<'a, Vec<Finding>>;

    /// Looks at each hypervisor of this host and at each other host.
    fn look<'a>(&'a self, question: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>>;

    /// Judges whether a start that is due for so long still stands.
    fn judge<'a>(
        &'a self,
        domain: &'a DomainRef,
        since: Duration,
        until: Instant,
    ) -> BoxedFuture<'a, StartVerdict>;
}

/// Question of one start.
pub(super) struct StartCheck<'b> {
    places: &'b dyn StartPlaces,
    domain: DomainRef,
    /// Hypervisor that is to start the domain.
    home: String,
    /// Moment since which nothing may have happened at another place.
    since: Instant,
    /// When the domain was seen off.
    seen: Instant,
    /// libvirt was away since.
    pub(super) was_away: bool,
}

impl<'b> StartCheck<'b> {
    /// Prepares the question about a domain that has just been seen off.
    pub(super) fn after(
        places: &'b dyn StartPlaces,
        (domain, home): (&DomainRef, &str),
        course: &DownCourse,
    ) -> Self {
        let seen = Instant::now();
        let since = course.since.unwrap_or(seen);
        let (domain, home) = (domain.clone(), home.to_owned());
        Self { places, domain, home, since, seen, was_away: course.was_away }
    }

    /// Asks, and returns the moment until which the order may be given: now, where the hypervisor has an
    /// instance, which is to be watched before anybody is asked again.
    ///
    /// # Errors
    /// The start does not stand any more, or nobody can tell.
    pub(super) async fn ask(&self, until: Instant) -> Result<Instant, ActionError> {
        let mut limit = ANSWER_AGE;
        loop {
            let began = Instant::now();
            let order_by = if self.was_away || self.seen.elapsed() > PROMPT_START {
                self.ask_all(until).await?
            } else {
                self.ask_whoever_answers(until).await?
            };
            // What the first said is old when the last was waited for. Where all are slow, more is taken.
            if began.elapsed() <= limit || Instant::now() >= until {
                return Ok(order_by);
            }
            limit += ANSWER_AGE;
        }
    }

    async fn ask_whoever_answers(&self, until: Instant) -> Result<Instant, ActionError> {
        let question = DomainQuestion::before_start(&self.domain);
        let others = self.places.others();
        let mut second = SecondInstance::seek(others.clone(), &question, until);
        let limit = until.min(Instant::now() + SECOND_INSTANCE_WAIT);
        let words = join_all(others.iter().map(|it| it.recall(&question, limit)));
        let beside = self.places.look_beside(&self.home, &question, limit);
        let (_, words, beside) = tokio::join!(second.is_found(), words, beside);
        let beside = Instance::in_looks(&beside);
        if let Some(instance) = second.found().or(beside.as_ref()) {
            return Err(overtaken(instance));
        }
        let words = words.into_iter().flatten().filter(|(_, it)| matches!(it, PlaceWord::Memory(_)));
        match StartVerdict::of(self.since.elapsed(), &words.collect::<Vec<_>>()) {
            StartVerdict::Overtaken(what) => Err(overtaken(&what)),
            // A host whose daemon is new has nothing to tell.
            StartVerdict::Stands | StartVerdict::Untold(_) | StartVerdict::Unheard(_) => {
                Ok(Instant::now() + ANSWER_AGE)
            }
        }
    }

    fn is_home(&self, look: &Finding) -> bool {
        matches!(&look.place, DomainSite::Hypervisor(uri) if *uri == self.home)
    }

    async fn ask_all(&self, until: Instant) -> Result<Instant, ActionError> {
        let question = DomainQuestion::before_start(&self.domain);
        let looks = self.places.look(&question, until).await;
        let (here, beside): (Vec<_>, Vec<_>) = looks.into_iter().partition(|it| self.is_home(it));
        match Instance::in_looks(&beside) {
            Some(it @ Instance::On(_)) => return Err(overtaken(&it)),
            Some(it @ Instance::Moving(_)) => return Err(ActionError::Unavailable(it.to_string())),
            None => {}
        }
        // It may be that of an order that was given before libvirt went away, and libvirt may be about to
        // end it. What is ordered after that is asked about anew.
        if Instance::in_looks(&here).is_some() {
            return Ok(Instant::now());
        }
        match self.places.judge(&self.domain, self.since.elapsed(), until).await {
            StartVerdict::Stands => Ok(Instant::now() + ANSWER_AGE),
            StartVerdict::Overtaken(what) => Err(overtaken(&what)),
            StartVerdict::Untold(why) => Err(ActionError::Refused(format!(
                "libvirt was away, and nobody can tell whether somebody asked for the domain meanwhile: \
                 {why}. Start the domain if it should run"
            ))),
            StartVerdict::Unheard(why) => {
                Err(ActionError::Unavailable(format!("libvirt was away, and {why}")))
            }
        }
    }
}

fn overtaken(what: &impl fmt::Display) -> ActionError {
    ActionError::Refused(format!("{what}, so the domain is not started"))
}

#[cfg(test)]
mod tests;
