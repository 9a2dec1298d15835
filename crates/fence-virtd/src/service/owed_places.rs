// SPDX-License-Identifier: GPL-2.0-or-later
//! The hypervisors of this host, as other hosts may ask about them: with the starts that are owed.
//!
//! A domain that a reboot has taken down, here or in an earlier run of the daemon, is about to be on again.
//! Another host must not be told that it is off.

use std::sync::Arc;
use std::time::Instant;

use fence_core::domain::DomainId;
use fence_core::evidence::Finding;
pub(crate) use fence_core::hosts::about_to_start;
use fence_core::owed_start::PlaceMemory;

use crate::backend::BoxedFuture;
use crate::backend::elsewhere::{DomainQuestion, OwnPlaces};
use crate::intent::IntentLog;

/// Hypervisors whose domains may be owed a start.
pub(crate) struct OwedPlaces {
    places: Arc<dyn OwnPlaces>,
    intents: IntentLog,
}

impl OwedPlaces {
    pub(crate) fn new(places: Arc<dyn OwnPlaces>, intents: IntentLog) -> Self {
        Self { places, intents }
    }
}

impl OwnPlaces for OwedPlaces {
    fn look_here<'a>(
        &'a self,
        question: &'a DomainQuestion,
        until: Instant,
    ) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            let uuid = question.uuid.to_string();
            // A start may become owed while the hypervisors are asked, or be made good after they were.
            let was_owed = self.intents.owes_start(&uuid);
            let mut found = self.places.look_here(question, until).await;
            if was_owed || self.intents.owes_start(&uuid) {
                found.iter_mut().for_each(|it| it.sight = about_to_start(&it.sight));
            }
            found
        })
    }

    fn saved_here<'a>(
        &'a self,
        uuid: DomainId,
        until: Instant,
    ) -> BoxedFuture<'a, Result<Option<String>, String>> {
        self.places.saved_here(uuid, until)
    }

    fn recall_here(&self, uuid: DomainId) -> PlaceMemory {
        self.places.recall_here(uuid)
    }

    fn prove_moves<'a>(&'a self, others: Vec<DomainId>) -> BoxedFuture<'a, ()> {
        self.places.prove_moves(others)
    }
}

#[cfg(test)]
mod tests {
    use fence_core::domain::{DomainHome, DomainRef, TargetKind};
    use fence_core::evidence::{DomainSite, Sight};

    use super::*;
    use crate::intent::IntentSubject;

    struct Shown(Sight);

    impl OwnPlaces for Shown {
        fn look_here<'a>(&'a self, _: &'a DomainQuestion, _: Instant) -> BoxedFuture<'a, Vec<Finding>> {
            let (now, place) = (Instant::now(), DomainSite::Hypervisor("test:///default".into()));
            Box::pin(async move { vec![Finding::without_namesakes(place, self.0.clone(), now, now)] })
        }

        fn saved_here<'a>(
            &'a self,
            _: DomainId,
            _: Instant,
        ) -> BoxedFuture<'a, Result<Option<String>, String>> {
            Box::pin(async { Ok(None) })
        }

        fn recall_here(&self, _: DomainId) -> PlaceMemory {
            PlaceMemory { noted_for: std::time::Duration::ZERO, last: None }
        }

        fn prove_moves<'a>(&'a self, _: Vec<DomainId>) -> BoxedFuture<'a, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    #[tokio::test]
    async fn what_is_owed_a_start_is_off_for_nobody() {
        let uuid = DomainId::from_bytes([7; 16]);
        let (intents, _) = IntentLog::open(None, String::new());
        let places = OwedPlaces::new(Arc::new(Shown(Sight::Off)), intents.clone());
        let about = |uuid, name: &str| {
            DomainQuestion::about(&DomainRef {
                name: name.to_owned(),
                uuid,
                home: DomainHome::Here(0),
                by: TargetKind::Name,
            })
        };
        let (question, other) = (about(uuid, "x"), about(DomainId::from_bytes([8; 16]), "other"));
        let subject = IntentSubject {
            id: 1,
            transport: "tcp".into(),
            peer: String::new(),
            source_domain: None,
            hash: String::new(),
            key: None,
            action: "reboot".into(),
            target: "x".into(),
            domain: "x".into(),
            uuid: uuid.to_string(),
            home: "a hypervisor of this host",
            known_source: None,
            peer_id: None,
        };
        let open = intents.begin(subject).await;
        let sight = async |it: &DomainQuestion| places.look_here(it, Instant::now()).await.remove(0).sight;
        assert_eq!(sight(&question).await, Sight::Off);
        open.owes_definition().await;
        assert_eq!(sight(&question).await, Sight::Moving);
        assert_eq!(sight(&other).await, Sight::Off);
        open.settled();
        assert_eq!(sight(&question).await, Sight::Off);
    }
}
