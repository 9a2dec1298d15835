// SPDX-License-Identifier: GPL-2.0-or-later
//! Survey of the other nodes for `--check`: what each says now, and which domains are on at several nodes.
//!
//! Asks as a request does that looks for a domain which no node has. Answers nothing that counts for a
//! request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tracing::warn;

use super::state::{Cluster, published_id};
use crate::backend::elsewhere::{DomainQuestion, OwnPlaces as _};
use crate::nodes::NodeStore;
use crate::nodes::survey::{SurveyLine, SurveyedState};
use crate::util::backoff::OncePerReason;
use crate::util::join::join_all;
use fence_core::cluster::directory::{Namesake, OtherNode};
use fence_core::cluster::message::Member;
use fence_core::domain::DomainId;
use fence_core::evidence::{DomainSite, Finding, Sight, strongest};

/// Pause between two looks whether somebody asks.
const PAUSE: Duration = Duration::from_millis(500);
/// Time for the nodes to answer.
const LIMIT: Duration = Duration::from_secs(4);
/// Domains that are on at several nodes and looked at, at most.
const MAX_TWICE: usize = 20;
/// UUID that no domain has.
const NO_DOMAIN: DomainId = DomainId::from_bytes([0xff; 16]);

impl Cluster {
    /// Answers each `--check` that asks. Never returns.
    pub(super) async fn keep_survey(self: Arc<Self>, store: NodeStore) {
        let mut logged = OncePerReason::default();
        loop {
            tokio::time::sleep(PAUSE).await;
            let taken = spawn_blocking({
                let store = store.clone();
                move || store.take_survey_questions()
            });
            let written = match taken.await {
                Ok(Ok(tokens)) if tokens.is_empty() => continue,
                Ok(Ok(tokens)) => {
                    let mut lines = self.survey().await;
                    lines.extend(tokens.into_iter().map(SurveyLine::Asked));
                    let store = store.clone();
                    spawn_blocking(move || store.write_survey(&lines)).await
                }
                Ok(Err(error)) => Ok(Err(error)),
                Err(error) => Err(error),
            };
            match written {
                Ok(Ok(())) => logged.forget(),
                Ok(Err(error)) if logged.is_new(&error.to_string()) => {
                    warn!("can't tell --check about the other nodes in the state directory: {error}");
                }
                Ok(Err(_)) => {}
                Err(_) => return,
            }
        }
    }

    /// Asks all other nodes.
    async fn survey(self: &Arc<Self>) -> Vec<SurveyLine> {
        let question = DomainQuestion::by_uuid_alone(NO_DOMAIN);
        let until = Instant::now() + LIMIT;
        let states = self.survey_states(&question);
        let (found, twice) = tokio::join!(self.look_elsewhere(&question, until), self.twice(until));
        let node = |it: Finding| {
            let name = match it.place {
                DomainSite::Host(name) => name,
                other => other.to_string(),
            };
            let unheard = states.iter().find(|(node, _)| *node == name).map(|(_, state)| *state);
            let (state, words) = match it.sight {
                Sight::Unknown(why) => (unheard.unwrap_or(SurveyedState::CantTell), why),
                Sight::Down(evidence) => (SurveyedState::Down, evidence),
                _ => (SurveyedState::Answers, String::new()),
            };
            SurveyLine::Node { state, name, words }
        };
        found.into_iter().map(node).chain(twice).chain(self.namesakes()).collect()
    }

    /// Looks for names that mean several domains: a request by such a name is refused.
    fn namesakes(&self) -> Vec<SurveyLine> {
        let names = self.state().directory.ambiguous_names();
        let line = |(name, at): (String, Vec<Namesake>)| {
            let place = |it: &Namesake| {
                format!("{} at {} ({})", it.uuid, self.name(it.member), if it.is_on { "on" } else { "off" })
            };
            let places: Vec<_> = at.iter().map(place).collect();
            SurveyLine::Namesakes { any_on: at.iter().any(|it| it.is_on), name, places: places.join(", ") }
        };
        names.into_iter().take(MAX_TWICE).map(line).collect()
    }

    /// Returns the nodes without a daemon, by their names, and what corosync says of them.
    fn survey_states(&self, question: &DomainQuestion) -> Vec<(String, SurveyedState)> {
        let nodes = self.other_nodes(question).unwrap_or_default();
        let state = self.state();
        let of_node = |it: OtherNode| {
            let OtherNode::NotHeard(node) = it else { return None };
            let is_up = state.ring.contains(&node);
            Some((state.name(node), if is_up { SurveyedState::NoDaemon } else { SurveyedState::Lost }))
        };
        nodes.into_iter().filter_map(of_node).collect()
    }

    /// Looks for domains that are on at several nodes. One that migrates is published by both.
    async fn twice(self: &Arc<Self>, until: Instant) -> Vec<SurveyLine> {
        let (domains, me) = {
            let state = self.state();
            (state.directory.on_at_several(), state.me)
        };
        let named = domains.into_iter().filter_map(|(uuid, name, at)| Some((published_id(&uuid)?, name, at)));
        let looks = named.take(MAX_TWICE).map(|(uuid, name, at)| async move {
            let question = DomainQuestion::new(uuid, name.clone());
            let sights = join_all(at.iter().map(|it| self.is_on_there(*it, me, &question, until))).await;
            let on = at.iter().zip(sights).filter(|(_, is_on)| *is_on);
            let places: Vec<_> = on.map(|(it, _)| self.name(*it)).collect();
            (places.len() > 1).then(|| SurveyLine::Twice { uuid, name, places: places.join(", ") })
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    async fn is_on_there(
        self: &Arc<Self>,
        member: Member,
        me: Option<Member>,
        question: &DomainQuestion,
        until: Instant,
    ) -> bool {
        if Some(member) == me {
            let found = self.local().look_here(question, until).await;
            return matches!(strongest(&found), Sight::On);
        }
        // It can't be asked; what it publishes is all that is known.
        self.is_legacy(member) || self.look_at(member, question, until).await.sight == Sight::On
    }
}
