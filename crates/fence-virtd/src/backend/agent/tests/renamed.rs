// SPDX-License-Identifier: GPL-2.0-or-later
//! A machine that gets another name in its hypervisor while an order is on its way to it: another domain to
//! everybody, and the same plug.

use fence_core::intent::DeviceOrder;

use super::*;

/// Claimed at once, and carried out when the test does it.
const LATE: &str = "exit 0";

async fn renamed(rig: &Rig, backend: &AgentBackend, name: &str) -> DomainRef {
    std::fs::write(rig.path("d").join("list-of"), format!("1,{name}\n")).unwrap();
    backend.devices[0].forget_list().await;
    found(backend, name).await
}

fn rig(power: &str, late: &str) -> Rig {
    let keys = "plugs = \"*\"; retries = \"0\"; effect_timeout = \"600\";";
    Rig::new().machine("1", power).device("d", keys, &[(late, LATE), ("list-of", "1,old\n")])
}

/// The order by the old name, of a client that does not wait for its effect.
async fn order(backend: &AgentBackend, old: &DomainRef, action: &str) {
    let short = lease(Duration::from_secs(3));
    let is_done = match action {
        "on" => backend.on(old, &short).await.is_ok(),
        _ => backend.off(old, false, &short).await.is_ok(),
    };
    assert!(!is_done, "{action} was seen");
}

/// The device carries an order out, a moment from now.
async fn carried_out(rig: &Rig, power: &str) {
    sleep(Duration::from_secs(1)).await;
    std::fs::write(rig.path("power-1"), power).unwrap();
}

#[tokio::test]
async fn an_off_waits_for_a_start_by_the_old_name() {
    let rig = rig("off", "on");
    let backend = rig.backend();
    let old = found(&backend, "old").await;
    order(&backend, &old, "on").await;
    let new = renamed(&rig, &backend, "new").await;
    let error = backend.off(&new, false, &lease(Duration::from_secs(1))).await.unwrap_err().to_string();
    assert!(error.contains("plug 1 of device d was the domain old a moment ago"), "{error}");
    let long = lease(PATIENCE);
    let (down, ()) = tokio::join!(backend.off(&new, false, &long), carried_out(&rig, "on"));
    assert!(!down.unwrap().was_off && rig.power("1") == "off", "{:?}", rig.runs("d"));
}

#[tokio::test]
async fn a_start_waits_for_an_off_by_the_old_name() {
    let rig = rig("on", "off");
    let backend = rig.backend();
    let old = found(&backend, "old").await;
    order(&backend, &old, "off").await;
    let new = renamed(&rig, &backend, "new").await;
    let long = lease(PATIENCE);
    let (on, ()) = tokio::join!(backend.on(&new, &long), carried_out(&rig, "off"));
    assert_eq!((on, rig.power("1")), (Ok(()), "on".to_owned()));
    assert_eq!(rig.runs("d").iter().filter(|it| *it == "on").count(), 1, "{:?}", rig.runs("d"));
}

/// The second off shows its effect, and the first may come yet: no start is taken back by it.
#[tokio::test]
async fn an_off_by_the_old_name_is_another_order() {
    let rig = rig("on", "off");
    let backend = rig.backend();
    let old = found(&backend, "old").await;
    order(&backend, &old, "off").await;
    std::fs::remove_file(rig.path("d").join("off")).unwrap();
    let new = renamed(&rig, &backend, "new").await;
    let down = backend.off(&new, false, &lease(PATIENCE)).await.unwrap();
    assert!(down.may_come_again, "{down:?}");
}

#[tokio::test]
async fn an_off_waits_for_a_start_of_an_earlier_daemon() {
    let rig = rig("off", "on");
    let backend = rig.backend();
    let old = found(&backend, "old").await;
    let order = DeviceOrder {
        order: 1,
        device: "d".to_owned(),
        plug: "1".to_owned(),
        starts: true,
        effect_ms: 600_000,
    };
    let left = PendingOrder { order, expiry: None, is_covered: false };
    let new = renamed(&rig, &backend, "new").await;
    let off = async {
        // The order is known from its first poll on.
        tokio::task::yield_now().await;
        backend.off(&new, false, &lease(Duration::from_secs(1))).await.unwrap_err().to_string()
    };
    tokio::select! {
        biased;
        () = backend.order_settles(&left, old.uuid, Instant::now() + PATIENCE) => panic!("settled"),
        error = off => assert!(error.contains("a request to power that on is not settled"), "{error}"),
    }
}

/// A list that can't be had says nothing; the one before it said that the plug is another domain now.
#[tokio::test]
async fn the_plug_of_another_name_is_not_used_without_a_list() {
    let rig = rig("on", "none");
    let backend = rig.backend();
    let old = found(&backend, "old").await;
    renamed(&rig, &backend, "new").await;
    std::fs::write(rig.path("d").join("list"), "exit 1").unwrap();
    backend.devices[0].forget_list().await;
    let said = backend.off(&old, false, &lease(Duration::from_secs(5))).await;
    assert!(said.is_err() && rig.power("1") == "on", "{said:?}");
}
