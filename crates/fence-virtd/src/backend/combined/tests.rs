// SPDX-License-Identifier: GPL-2.0-or-later
//! Two backends in memory: what both say, who is waited for, and where the work goes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_wire::Target;
use proptest::prelude::*;

use super::{BackendAnswer, CombinedBackend, LocateResult, SLOW_BACKEND_GRACE, decide};
use crate::backend::{Backend, PowerForecast, PowerOffResult};
use crate::request::lease::Lease;
use crate::util::locks::lock;
use fence_core::domain::{
    ActionError, DomainHome, DomainId, DomainListing, DomainRef, ListedDomain, LocateError, LocatedDomain,
    PowerAction, PowerState, SeenPower, TargetKind,
};
use fence_core::evidence::{DomainSite, Finding, ProvedOff, Sight};

/// Far longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(120);
const UUIDS: [&str; 2] = ["5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c", "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11"];

/// A backend that says what it is told to, after a while or never.
struct Fake {
    home: DomainHome,
    said: Option<LocateResult>,
    after: Duration,
    may_have: bool,
    list: Result<DomainListing, ActionError>,
    health: Result<Vec<String>, ActionError>,
    /// Calls that the backend received.
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn new(home: DomainHome, said: Option<LocateResult>) -> Self {
        Self {
            home,
            said,
            after: Duration::ZERO,
            may_have: false,
            list: Ok(DomainListing::default()),
            health: Ok(Vec::new()),
            asked: Mutex::default(),
        }
    }

    fn asked(&self, what: &str, domain: &DomainRef) {
        assert_eq!(domain.home, self.home);
        lock(&self.asked).push(format!("{what} {}", domain.name));
    }
}

impl Backend for Fake {
    async fn locate(&self, _: &Target, _: Instant) -> Result<LocatedDomain, LocateError> {
        tokio::time::sleep(self.after).await;
        match &self.said {
            Some(said) => said.clone(),
            None => std::future::pending().await,
        }
    }

    fn may_own(&self, _: &Target) -> bool {
        self.may_have
    }

    async fn status(&self, domain: &DomainRef, _: &Lease) -> Result<SeenPower, ActionError> {
        self.asked("status", domain);
        Ok(SeenPower::On)
    }

    async fn off(&self, domain: &DomainRef, _: bool, _: &Lease) -> Result<PowerOffResult<'_>, ActionError> {
        self.asked("off", domain);
        let now = Instant::now();
        let place = DomainSite::Hypervisor("test".to_owned());
        let look = Finding::without_namesakes(place, Sight::Ended(None), now, now);
        let proof = ProvedOff::from_end(now, &look)?;
        Ok(PowerOffResult { proof, was_off: false, restart: None, note: None, may_come_again: false })
    }

    async fn on(&self, domain: &DomainRef, _: &Lease) -> Result<(), ActionError> {
        self.asked("on", domain);
        Ok(())
    }

    async fn forecast(
        &self,
        domain: &DomainRef,
        _: PowerAction,
        _: &Lease,
    ) -> Result<PowerForecast, ActionError> {
        self.asked("forecast", domain);
        Ok(PowerForecast::StaysOn)
    }

    async fn list(&self, _: Instant) -> Result<DomainListing, ActionError> {
        self.list.clone()
    }

    async fn health(&self, _: Instant) -> Result<Vec<String>, ActionError> {
        self.health.clone()
    }
}

fn id(uuid: usize) -> DomainId {
    DomainId::parse(UUIDS[uuid]).unwrap()
}

fn domain(name: &str, uuid: usize, home: DomainHome) -> DomainRef {
    DomainRef { name: name.to_owned(), uuid: id(uuid), home, by: TargetKind::Name }
}

fn here(uuid: usize) -> LocateResult {
    Ok(LocatedDomain::Here(domain("web", uuid, DomainHome::Here(0))))
}

fn agents(uuid: usize) -> LocateResult {
    Ok(LocatedDomain::Here(domain("web", uuid, DomainHome::Agent)))
}

fn silent() -> LocateResult {
    Err(LocateError::Unavailable("no connection".to_owned()))
}

fn target(text: &str) -> Target {
    Target::new(text, false).unwrap()
}

fn both(hypervisors: Fake, agent: Fake) -> CombinedBackend {
    CombinedBackend::new("libvirt", Arc::new(hypervisors), Arc::new(agent))
}

fn saying(hypervisors: Option<LocateResult>, agent: Option<LocateResult>) -> CombinedBackend {
    both(Fake::new(DomainHome::Here(0), hypervisors), Fake::new(DomainHome::Agent, agent))
}

async fn locate(several: &CombinedBackend, text: &str) -> LocateResult {
    let target = target(text);
    let located = several.locate(&target, Instant::now() + 2 * PATIENCE);
    tokio::time::timeout(PATIENCE, located).await.expect("it never ended")
}

#[tokio::test]
async fn a_name_that_both_have_is_refused_and_both_are_named() {
    let several = saying(Some(here(0)), Some(agents(1)));
    let Err(LocateError::Ambiguous(why)) = locate(&several, "web").await else { panic!("not refused") };
    assert_eq!(why, format!("{} of backend libvirt, {} of backend agent", UUIDS[0], UUIDS[1]));
    // The same domain twice is two as well: nobody can say which way is right.
    let same = saying(Some(here(0)), Some(agents(0)));
    for text in ["web", UUIDS[0]] {
        assert!(matches!(locate(&same, text).await, Err(LocateError::Ambiguous(_))));
    }
    // A domain whose name reads as the other's UUID.
    for text in [UUIDS[0].to_uppercase(), UUIDS[1].to_owned()] {
        assert!(matches!(locate(&several, &text).await, Err(LocateError::Ambiguous(_))));
    }
}

#[tokio::test]
async fn what_one_has_is_served_while_the_other_hangs_or_is_down() {
    for other in [None, Some(silent())] {
        assert_eq!(locate(&saying(other.clone(), Some(agents(0))), "web").await, agents(0));
        assert_eq!(locate(&saying(Some(here(0)), other), "web").await, here(0));
    }
}

#[tokio::test]
async fn one_that_had_such_a_domain_is_waited_for() {
    let hypervisors = Fake {
        may_have: true,
        after: SLOW_BACKEND_GRACE + SLOW_BACKEND_GRACE / 2,
        ..Fake::new(DomainHome::Here(0), Some(here(0)))
    };
    let several = both(hypervisors, Fake::new(DomainHome::Agent, Some(agents(1))));
    assert!(matches!(locate(&several, "web").await, Err(LocateError::Ambiguous(_))));
    let hypervisors = Fake { may_have: true, ..Fake::new(DomainHome::Here(0), Some(silent())) };
    let several = both(hypervisors, Fake::new(DomainHome::Agent, Some(agents(1))));
    let Err(LocateError::Unavailable(why)) = locate(&several, "web").await else { panic!("not refused") };
    assert!(why.contains("backend libvirt: no connection") && why.contains("backend agent"), "{why}");
}

#[tokio::test]
async fn one_that_is_slow_is_waited_for_when_the_other_has_none() {
    let slow = Fake {
        after: SLOW_BACKEND_GRACE + SLOW_BACKEND_GRACE / 2,
        ..Fake::new(DomainHome::Agent, Some(agents(0)))
    };
    for none in [Err(LocateError::NotFound), silent()] {
        let slow = Fake {
            said: slow.said.clone(),
            ..Fake { after: slow.after, ..Fake::new(DomainHome::Agent, None) }
        };
        assert_eq!(locate(&both(Fake::new(DomainHome::Here(0), Some(none)), slow), "web").await, agents(0));
    }
}

#[tokio::test]
async fn the_work_goes_to_the_one_that_has_the_domain() {
    let homes = [DomainHome::Here(0), DomainHome::Elsewhere, DomainHome::Agent];
    for home in homes {
        let is_agent = home == DomainHome::Agent;
        let hypervisors = Arc::new(Fake::new(if is_agent { DomainHome::Here(0) } else { home }, None));
        let agent = Arc::new(Fake::new(DomainHome::Agent, None));
        let (first, second): (Arc<Fake>, Arc<Fake>) = (Arc::clone(&hypervisors), Arc::clone(&agent));
        let several = CombinedBackend::new("cpg", first, second);
        let (lease, _settled) = Lease::new(Instant::now() + PATIENCE, 1);
        let it = domain("web", 0, home);
        several.status(&it, &lease).await.unwrap();
        several.off(&it, true, &lease).await.unwrap();
        several.on(&it, &lease).await.unwrap();
        let (asked, other) = if is_agent { (&agent, &hypervisors) } else { (&hypervisors, &agent) };
        assert_eq!(*lock(&asked.asked), ["status web", "off web", "on web"]);
        assert!(lock(&other.asked).is_empty());
    }
}

#[tokio::test]
async fn lists_are_one_and_say_what_is_missing() {
    let listed =
        |name: &str, uuid: usize, power| ListedDomain { name: name.to_owned(), uuid: id(uuid), power };
    let of = |domains, missing: &str| {
        let missing = if missing.is_empty() { Vec::new() } else { vec![missing.to_owned()] };
        Ok(DomainListing { domains, missing })
    };
    let down = |why: &str| Err(ActionError::Unavailable(why.to_owned()));
    let list = async |first: Result<DomainListing, ActionError>, second| {
        let hypervisors = Fake { list: first, ..Fake::new(DomainHome::Here(0), None) };
        let agent = Fake { list: second, ..Fake::new(DomainHome::Agent, None) };
        both(hypervisors, agent).list(Instant::now() + PATIENCE).await
    };
    // A name that both have is in the list twice, one domain once, and on when it is on for one of them.
    let (a, b) = (listed("a", 0, PowerState::On), listed("b", 1, PowerState::Off));
    let (a_off, b_too) = (listed("a", 0, PowerState::Off), listed("b", 0, PowerState::On));
    assert_eq!(
        list(of(vec![b.clone(), a_off], "u"), of(vec![a.clone(), b_too.clone()], "d")).await,
        Ok(DomainListing {
            domains: vec![a.clone(), b, b_too],
            missing: vec!["u".to_owned(), "d".to_owned()]
        })
    );
    assert_eq!(list(of(vec![a.clone()], ""), down("x")).await, of(vec![a.clone()], "x"));
    assert_eq!(list(down("x"), of(vec![a.clone()], "")).await, of(vec![a], "x"));
    assert_eq!(list(down("x"), down("y")).await, down("x; y"));
}

#[tokio::test]
async fn health_fails_when_nothing_can_be_reached() {
    let down = |why: &str| Err(ActionError::Unavailable(why.to_owned()));
    let lines = |it: &[&str]| Ok(it.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
    for (first, second, expected) in [
        (lines(&[]), lines(&[]), lines(&[])),
        (lines(&["a"]), lines(&["b", "c"]), lines(&["a", "b", "c"])),
        (down("a"), lines(&["b"]), lines(&["b", "a"])),
        (lines(&[]), down("b"), lines(&["b"])),
        (down("a"), down("b"), down("a; b")),
    ] {
        let hypervisors = Fake { health: first, ..Fake::new(DomainHome::Here(0), None) };
        let agent = Fake { health: second, ..Fake::new(DomainHome::Agent, None) };
        assert_eq!(both(hypervisors, agent).health(Instant::now() + PATIENCE).await, expected);
    }
}

fn any_answer(home: DomainHome, backend: &'static str) -> impl Strategy<Value = BackendAnswer> {
    let said = prop_oneof![
        (0..2_usize, any::<bool>()).prop_map(move |(uuid, rests)| {
            let it = domain("web", uuid, home);
            Ok(if rests { LocatedDomain::InDoubt(it) } else { LocatedDomain::Here(it) })
        }),
        Just(Err(LocateError::NotFound)),
        Just(Err(LocateError::Ambiguous("two".to_owned()))),
        Just(silent()),
    ];
    (said, any::<bool>()).prop_map(move |(said, may_have)| BackendAnswer {
        backend,
        may_have: may_have && matches!(said, Err(LocateError::Unavailable(_))),
        said,
    })
}

proptest! {
    /// A domain comes of it only where one of them found that very domain and nothing says that the other
    /// means one too; "no such domain" only where both say so; and the order of the two does not matter.
    #[test]
    fn no_domain_is_guessed(
        one in any_answer(DomainHome::Here(0), "libvirt"),
        other in any_answer(DomainHome::Agent, "agent"),
    ) {
        let decided = decide(one.clone(), other.clone());
        let turned = decide(other.clone(), one.clone());
        match &decided {
            Ok(located) => {
                prop_assert_eq!(&turned, &decided);
                let is_agent = located.domain().home == DomainHome::Agent;
                let (finder, left) = if is_agent { (&other, &one) } else { (&one, &other) };
                prop_assert_eq!(&finder.said, &decided);
                prop_assert!(!left.may_have);
                prop_assert!(matches!(left.said, Err(LocateError::NotFound | LocateError::Unavailable(_))));
            }
            Err(error) => {
                let turned = turned.unwrap_err();
                prop_assert_eq!(std::mem::discriminant(error), std::mem::discriminant(&turned));
                let both_say_none = [&one, &other].iter().all(|it| it.said == Err(LocateError::NotFound));
                prop_assert_eq!(*error == LocateError::NotFound, both_say_none);
                // Whoever found one alone, of two that can be asked, is believed.
                let found = [&one, &other].iter().filter(|it| it.said.is_ok()).count();
                let none = [&one, &other].iter().filter(|it| it.said == Err(LocateError::NotFound)).count();
                prop_assert!(!(found == 1 && none == 1));
            }
        }
    }
}
