// SPDX-License-Identifier: GPL-2.0-or-later
//! A reboot whose start fails: what the log has.

use std::fmt::Write as _;
use std::sync::Arc;

use fence_core::domain::{DomainId, DomainListing, LocatedDomain, TargetKind};
use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_wire::Target;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::*;
use crate::backend::{Backend, BoxedFuture, Restart};
use crate::util::locks::{Mutex, lock};

/// Backend that powers off, and can't start anything.
struct NoStarts;

#[derive(Debug)]
struct FailingRestart;

impl Restart for FailingRestart {
    fn start<'a>(self: Box<Self>, _: &'a Lease) -> BoxedFuture<'a, Result<(), ActionError>>
    where
        Self: 'a,
    {
        Box::pin(std::future::ready(Err(ActionError::Refused("no memory".to_owned()))))
    }
}

impl Backend for NoStarts {
    async fn locate(&self, _: &Target, _: Instant) -> Result<LocatedDomain, LocateError> {
        panic!("looked for")
    }

    fn may_own(&self, _: &Target) -> bool {
        panic!("asked")
    }

    async fn status(&self, _: &DomainRef, _: &Lease) -> Result<SeenPower, ActionError> {
        panic!("looked at")
    }

    async fn off(&self, _: &DomainRef, _: bool, _: &Lease) -> Result<PowerOffResult<'_>, ActionError> {
        let now = Instant::now();
        let place = DomainSite::Hypervisor("test".to_owned());
        let look = Finding::without_namesakes(place, Sight::Ended(None), now, Instant::now());
        let proof = ProvedOff::from_end(now, &look).unwrap();
        Ok(PowerOffResult::settled(proof, false, Some(Box::new(FailingRestart))))
    }

    async fn on(&self, _: &DomainRef, _: &Lease) -> Result<(), ActionError> {
        panic!("started")
    }

    async fn forecast(&self, _: &DomainRef, _: PowerAction, _: &Lease) -> Result<PowerForecast, ActionError> {
        panic!("foreseen")
    }

    async fn list(&self, _: Instant) -> Result<DomainListing, ActionError> {
        panic!("listed")
    }

    async fn health(&self, _: Instant) -> Result<Vec<String>, ActionError> {
        panic!("asked")
    }
}

/// Warnings of a test, one a line.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<String>>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            let mut text = lock(&self.0);
            event.record(&mut FieldWriter(&mut text));
            text.push('\n');
        }
    }
}

struct FieldWriter<'t>(&'t mut String);

impl Visit for FieldWriter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

#[tokio::test]
async fn a_reboot_whose_start_fails_is_a_warning_with_the_next_step() {
    for (home, by_hand) in [
        (DomainHome::Here(0), "virsh start web2"),
        (DomainHome::Elsewhere, "virsh start web2"),
        (DomainHome::Agent, "by its device"),
    ] {
        let warnings = Warnings::default();
        let subscriber = tracing_subscriber::registry().with(warnings.clone());
        let _guard = tracing::subscriber::set_default(subscriber);
        let uuid = DomainId::from_bytes([1; 16]);
        let domain = DomainRef { name: "web2".to_owned(), uuid, home, by: TargetKind::Name };
        let (lease, _released) = Lease::new(Instant::now() + START_LIMIT, 7);
        let done = run_power_action(&NoStarts, PowerAction::Off, &domain, &lease, |_| ()).await.unwrap();
        assert!(matches!(done, PowerActionResult::PoweredOff { .. }), "{done:?}");
        assert_eq!(*lock(&warnings.0), "");
        let done = run_power_action(&NoStarts, PowerAction::Reboot, &domain, &lease, |_| ()).await.unwrap();
        assert!(matches!(done, PowerActionResult::NotStarted { .. }), "{done:?}");
        let said = lock(&warnings.0).clone();
        assert_eq!(said.lines().count(), 1, "{said}");
        let step = "fence_xvm -o on -n web2";
        for words in ["request=7", "web2", &uuid.to_string(), "no memory", step, by_hand] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}
