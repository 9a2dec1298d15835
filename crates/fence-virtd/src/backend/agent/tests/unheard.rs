// SPDX-License-Identifier: GPL-2.0-or-later
//! Devices that may have a machine and can't be asked for it now: no list, a list that is not all there, an
//! agent that can't be run, an order that was given up.

use fence_core::intent::DeviceOrder;

use super::super::run::survey;
use super::*;

/// List with the plug "v", and a line that is no entry.
const WITH_NOISE: &str = "printf 'v\\001\\nnoise\\n'; exit 0";
/// List of a device that has nothing, or does not understand its endpoint.
const EMPTY: &str = "exit 0";
const FAILS: &str = "exit 1";
/// Time of a client that a device which can't tell for good keeps waiting.
const SHORT: Duration = Duration::from_secs(10);

/// Two devices with lists: a has w at plug 1, and b does these actions.
fn beside(a: &[(&str, &str)], b: &[(&str, &str)]) -> Rig {
    let keys = |order: u8| format!("plugs = \"*\"; order = \"{order}\"; status_timeout = \"3\";");
    let listed = [("list", "echo 1,w; exit 0")];
    let a: Vec<_> = listed.iter().chain(a).copied().collect();
    Rig::new().machine("1", "on").device("a", &keys(1), &a).device("b", &keys(2), b)
}

async fn power_of_w(backend: &AgentBackend) -> Result<PowerState, ActionError> {
    let w = found(backend, "w").await;
    backend.status(&w, &lease(SHORT)).await.map(|it| it.state())
}

/// None of these lists denies that the device has the machine, so its "on" is heard; and it is not told to
/// act, since none has the machine.
#[tokio::test]
async fn a_list_that_denies_nothing_is_no_reason_not_to_ask() {
    for list in [WITH_NOISE, EMPTY, FAILS] {
        let rig = beside(&[("status", "exit 2")], &[("list", list)]);
        let backend = rig.backend();
        assert_eq!(power_of_w(&backend).await, Ok(PowerState::On), "{list}");
        let w = found(&backend, "w").await;
        let off = backend.off(&w, false, &lease(Duration::from_secs(5))).await;
        assert!(off.is_err() && rig.power("1") == "on", "{list}: {off:?}");
        assert!(!rig.runs("b").contains(&"off".to_owned()), "{list}: {:?}", rig.runs("b"));
    }
}

/// Some agents say "off" of each plug that they don't know. One whose list can't be had is believed only if
/// the plug was on there.
#[tokio::test]
async fn off_is_believed_without_a_list_only_where_the_plug_was_on() {
    let (cant_tell, off) = (StatusReading::CantTell, StatusReading::Is(PowerState::Off));
    for (list, was_on, wanted) in [
        (WITH_NOISE, false, cant_tell),
        (FAILS, false, cant_tell),
        (EMPTY, false, StatusReading::Unlisted),
        (FAILS, true, off),
    ] {
        let rig = Rig::new().machine("1", "on").device("d", "plugs = \"*\";", &[("list", list)]);
        let backend = rig.backend();
        let (device, plug, unlisted) =
            (Arc::clone(&backend.devices[0]), "1".to_owned(), Some("w".to_owned()));
        let route = Route { device, plug, unlisted, is_by_name: false };
        let read = async || route.status(survey(Instant::now() + PATIENCE)).await;
        if was_on {
            assert_eq!(read().await.reading, StatusReading::Is(PowerState::On));
        }
        std::fs::write(rig.path("power-1"), "off").unwrap();
        let reply = read().await;
        assert_eq!(reply.reading, wanted, "{list} {was_on}: {}", reply.words);
    }
    // So it is, where nobody else can tell.
    let rig = beside(&[("status", FAILS)], &[("list", FAILS)]);
    let backend = rig.backend();
    std::fs::write(rig.path("power-1"), "off").unwrap();
    assert!(power_of_w(&backend).await.is_err());
}

/// A machine that comes to another pool while it is powered off: that pool's list is read after the action,
/// and may have it at another plug, or its old plug as another machine's.
#[tokio::test]
async fn a_machine_that_comes_to_another_device_in_the_middle_is_not_off() {
    for (list_before, list_after) in [
        ("echo 2,v; exit 0", "echo 2,v; echo 1,w; exit 0"),
        ("echo 2,v; exit 0", "echo 2,v; echo 3,w; exit 0"),
        ("echo 1,v; exit 0", "echo 1,v; echo 3,w; exit 0"),
    ] {
        let script = format!("if [ -e ../came ]; then {list_after}; fi; {list_before}");
        let status = "[ -e ../came ] && exit 0; exit 2";
        let rig = beside(
            &[("off", "echo off > ../power-1; touch ../came")],
            &[("list", &script), ("status", status)],
        );
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        let off = backend.off(&w, false, &lease(Duration::from_secs(5))).await;
        assert!(off.is_err() && rig.power("1") == "off", "{list_after}: {off:?}");
    }
}

/// The plug of the last list counts, and no plug that was another machine's.
#[tokio::test]
async fn a_device_whose_list_fails_is_asked_by_the_plug_of_its_last_list() {
    const UUID: &str = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
    for (last, wanted) in [(UUID, PowerState::On), ("1,v", PowerState::Off)] {
        let rig = Rig::new()
            .machine("1", "off")
            .machine(UUID, "on")
            .device("a", &format!("plugs = \"{UUID}:1\"; order = \"1\";"), &[])
            .device("b", "plugs = \"*\"; order = \"2\";", &[("list", &format!("echo {last}; exit 0"))]);
        let backend = rig.backend();
        let domain = found(&backend, UUID).await;
        backend.devices[1].listing(Duration::ZERO, survey(Instant::now() + PATIENCE)).await.unwrap();
        std::fs::write(rig.path("b").join("list"), FAILS).unwrap();
        backend.devices[1].forget_list().await;
        let seen = backend.status(&domain, &lease(SHORT)).await;
        assert_eq!(seen.map(|it| it.state()), Ok(wanted), "{last}: {:?}", rig.runs("b"));
        assert_eq!(rig.runs("b").is_empty(), wanted == PowerState::Off, "{last}: {:?}", rig.runs("b"));
    }
}

/// A list that hangs leaves time for the state.
#[tokio::test]
async fn a_list_that_hangs_leaves_time_for_the_state() {
    let keys = "plugs = \"*\"; order = \"2\"; status_timeout = \"12\";";
    let rig = Rig::new()
        .machine("1", "on")
        .device("a", "plugs = \"w:1\"; order = \"1\";", &[("status", "exit 2")])
        .device("b", keys, &[("list", "sleep 600")]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let seen = backend.status(&w, &lease(Duration::from_secs(10))).await;
    assert_eq!(seen.map(|it| it.state()), Ok(PowerState::On), "{:?}", rig.runs("b"));
}

/// Memory of a device, whichever the plug: it failed for all of its time, or it told something since.
#[tokio::test]
async fn what_a_device_told_of_any_plug_counts_for_those_that_it_may_have() {
    let rig = Rig::new().machine("v", "on").device("d", "plugs = \"*\";", &[("list", "echo v,; exit 0")]);
    let backend = rig.backend();
    let device = &backend.devices[0];
    let soon = || survey(Instant::now() + PATIENCE);
    let has_failed = |plug| device.limits_for(plug).is_known_to_fail;
    device.monitor(None, soon()).await.unwrap();
    assert!(!has_failed(None));
    device.note_failed_throughout(None, Instant::now());
    assert!(has_failed(None) && !has_failed(Some("v")));
    assert!(device.status("v", soon()).await.reading == StatusReading::Is(PowerState::On));
    assert!(!has_failed(None), "it told a state");
    device.note_failed_throughout(None, Instant::now());
    assert!(has_failed(None));
    device.forget_list().await;
    device.listing(Duration::ZERO, soon()).await.unwrap();
    assert!(!has_failed(None), "it told its list");
}

/// An agent that can't be run here can't be run for any plug: one plug that failed for long is enough.
#[tokio::test]
async fn an_agent_that_can_not_be_run_is_heard_out_for_all_of_its_plugs() {
    let rig = Rig::new().machine("v", "on").device("b", "plugs = \"*\";", &[("list", "echo v,; exit 0")]);
    let backend = rig.backend();
    let device = &backend.devices[0];
    let soon = || survey(Instant::now() + PATIENCE);
    let reads = async |plug| device.status(plug, soon()).await.reading;
    let has_failed = || [None, Some("v"), Some("w")].map(|it| device.limits_for(it).is_known_to_fail);
    device.monitor(None, soon()).await.unwrap();
    assert_eq!(reads("v").await, StatusReading::Is(PowerState::On));
    set_mode(&rig, 0o600);
    assert_eq!(reads("v").await, StatusReading::Unusable);
    assert_eq!(has_failed(), [false; 3], "not for all of its time");
    device.note_failed_throughout(Some("v"), Instant::now());
    assert_eq!(has_failed(), [true; 3]);
    // It can be run again: what w's failure says is of w alone.
    set_mode(&rig, 0o700);
    assert_eq!(reads("v").await, StatusReading::Is(PowerState::On));
    assert_eq!(has_failed(), [false; 3]);
    assert_eq!(reads("w").await, StatusReading::CantTell);
    device.note_failed_throughout(Some("w"), Instant::now());
    assert_eq!(has_failed(), [false, false, true]);
}

/// A device that is slow with what its state needs is silent: that says nothing of whether it can be used.
#[tokio::test]
async fn a_device_whose_metadata_does_not_come_is_silent() {
    let keys = "plugs = \"w\"; status_timeout = \"2\";";
    let rig = Rig::new().machine("w", "on").device("d", keys, &[("metadata", "sleep 600")]);
    let backend = rig.backend();
    let reply = backend.devices[0].status("w", survey(Instant::now() + PATIENCE)).await;
    assert_eq!(reply.reading, StatusReading::Silent, "{}", reply.words);
}

/// An agent that waited for the effect, and gave up, has given the order: the machine may go off after
/// another device has done it, and after somebody started it again. One that fails at once has given none.
#[tokio::test]
async fn an_order_that_was_given_up_may_come_after_another_device_has_done_it() {
    let in_vain = "echo 'Failed: Timed out waiting to power OFF' >&2; exit 1";
    for (off, may_come) in [("exit 1", false), ("sleep 2.2; exit 1", true), (in_vain, true)] {
        let first =
            "plugs = \"w\"; order = \"1\"; retries = \"0\"; timeout = \"60\"; effect_timeout = \"600\";";
        let rig = Rig::new().machine("w", "on").device("first", first, &[("off", off)]).device(
            "second",
            "plugs = \"w\"; order = \"2\";",
            &[],
        );
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        let (lease, mut settled) = Lease::new(Instant::now() + PATIENCE, 1);
        let down = backend.off(&w, false, &lease).await.unwrap();
        assert!(down.note.as_ref().is_some_and(|it| it.contains("device first: off exit 1")), "{down:?}");
        assert_eq!((rig.power("w").as_str(), down.may_come_again), ("off", may_come), "{off}");
        drop((down, lease));
        assert_eq!(settled.is_now(), !may_come, "{off}");
    }
}

/// Order of an earlier daemon, which may come while this one orders the same: what the device shows then may
/// be the doing of either.
#[tokio::test]
async fn an_order_of_an_earlier_daemon_is_another_order() {
    for (device, is_covered) in [("d", true), ("d", false), ("of before", false)] {
        let rig = Rig::new().machine("w", "on").device("d", "plugs = \"w\"; effect_timeout = \"600\";", &[]);
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        let order = DeviceOrder {
            order: 1,
            device: device.to_owned(),
            plug: "w".to_owned(),
            starts: false,
            effect_ms: 600_000,
        };
        let left = PendingOrder { order, expiry: None, is_covered };
        let off = async {
            // The order is known from its first poll on.
            tokio::task::yield_now().await;
            backend.off(&w, false, &lease(PATIENCE)).await.unwrap().may_come_again
        };
        tokio::select! {
            biased;
            () = backend.order_settles(&left, w.uuid, Instant::now() + PATIENCE) => panic!("settled"),
            may_come_again = off => assert!(may_come_again, "{device} {is_covered}"),
        }
    }
}
