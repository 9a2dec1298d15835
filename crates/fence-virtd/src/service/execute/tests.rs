// SPDX-License-Identifier: GPL-2.0-or-later
//! A reboot whose start fails: what the log has.

use std::fmt::Write as _;
use std::sync::Arc;

use fence_core::domain::{DomainId, TargetKind};
use fence_core::evidence::{DomainSite, Finding, Sight};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::super::tests::Untouched;
use super::*;
use crate::backend::{BoxedFuture, Restart};
use crate::util::locks::{Mutex, lock};

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

/// Backend that powers off, and can't start anything.
const NO_STARTS: Untouched = Untouched {
    off: || {
        let now = Instant::now();
        let place = DomainSite::Hypervisor("test".to_owned());
        let look = Finding::without_namesakes(place, Sight::Ended(None), now, Instant::now());
        let proof = ProvedOff::from_end(now, &look).unwrap();
        PowerOffResult::settled(proof, false, Some(Box::new(FailingRestart)))
    },
};

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
        let done = run_power_action(&NO_STARTS, PowerAction::Off, &domain, &lease, |_| ()).await.unwrap();
        assert!(matches!(done, PowerActionResult::PoweredOff { .. }), "{done:?}");
        assert_eq!(*lock(&warnings.0), "");
        let done = run_power_action(&NO_STARTS, PowerAction::Reboot, &domain, &lease, |_| ()).await.unwrap();
        assert!(matches!(done, PowerActionResult::NotStarted { .. }), "{done:?}");
        let said = lock(&warnings.0).clone();
        assert_eq!(said.lines().count(), 1, "{said}");
        let step = "fence_xvm -o on -n web2";
        for words in ["request=7", "web2", &uuid.to_string(), "no memory", step, by_hand] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}
