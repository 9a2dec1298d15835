// SPDX-License-Identifier: GPL-2.0-or-later
//! The backend on agents that are small shell scripts, run as real ones are.
//!
//! Each device has a directory of its own with its agent; the machines are files `power-PLUG` in one that all
//! share. A file named after an action is read by the agent before it does that, and may do something else.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use fence_config::{Backend as Settings, Config};
use fence_core::arbiter::LateEffect;

use tokio::time::sleep;

use super::*;
use crate::request::lease::LeaseEndReason;
use crate::request::trail::AgentRunEnd;

mod renamed;
mod unheard;

/// Far longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

const AGENT: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
while IFS= read -r line; do
    name=${line%%=*} value=${line#*=}
    case $name in action) action=$value ;; plug) plug=$value ;; password) password=$value ;; esac
done
echo "$action $plug" >> runs
if [ -e "$action" ]; then . "./$action"; fi
case $action in
metadata)
    echo '<resource-agent name="x"><parameters>'
    echo '<parameter name="plug"/><parameter name="password"/></parameters>'
    echo '<actions><action name="list"/></actions></resource-agent>' ;;
monitor) ;;
list) cat list-of ;;
status)
    case $(cat "../power-$plug") in on) exit 0 ;; off) exit 2 ;; *) exit 1 ;; esac ;;
on | off)
    echo $action > ../.new.$$ && mv ../.new.$$ "../power-$plug" ;;
*) exit 1 ;;
esac
"#;

struct Rig {
    directory: tempfile::TempDir,
    blocks: String,
}

impl Rig {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), blocks: String::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn machine(self, plug: &str, power: &str) -> Self {
        std::fs::write(self.path(&format!("power-{plug}")), power).unwrap();
        self
    }

    fn power(&self, plug: &str) -> String {
        std::fs::read_to_string(self.path(&format!("power-{plug}"))).unwrap().trim().to_owned()
    }

    /// A device with these keys, whose agent does this instead of these actions.
    fn device(mut self, name: &str, keys: &str, instead: &[(&str, &str)]) -> Self {
        let directory = self.path(name);
        std::fs::create_dir(&directory).unwrap();
        let agent = directory.join("agent");
        std::fs::write(&agent, AGENT).unwrap();
        std::fs::set_permissions(&agent, Permissions::from_mode(0o700)).unwrap();
        for (action, script) in instead {
            std::fs::write(directory.join(action), script).unwrap();
        }
        self.blocks += &format!("device = \"{name}\" {{ agent = \"{}\"; {keys} }}\n", agent.display());
        self
    }

    fn config(&self) -> Config {
        let text =
            format!("fence_virtd {{ backend = \"agent\"; }} backends {{ agent {{ {} }} }}", self.blocks);
        fence_config::load(text.as_bytes()).config.unwrap()
    }

    fn backend(&self) -> Arc<AgentBackend> {
        let Settings::Agent(settings) = &self.config().backends[0] else { panic!() };
        AgentBackend::new(settings).0
    }

    /// Returns the runs of a device's agent, without those for metadata and lists.
    fn runs(&self, device: &str) -> Vec<String> {
        let runs = std::fs::read_to_string(self.path(device).join("runs")).unwrap_or_default();
        let runs = runs.lines().map(|it| it.split(' ').next().unwrap().to_owned());
        runs.filter(|it| !["metadata", "monitor", "list"].contains(&it.as_str())).collect()
    }
}

async fn found(backend: &AgentBackend, name: &str) -> DomainRef {
    let target = Target::new(name, domains::uuid_in(name).is_some()).unwrap();
    let located = backend.locate(&target, Instant::now() + PATIENCE).await.unwrap();
    located.domain().clone()
}

fn lease(limit: Duration) -> Lease {
    Lease::new(Instant::now() + limit, 1).0
}

#[tokio::test]
async fn off_and_on_are_what_status_says_afterwards() {
    let rig = Rig::new().machine("1", "on").device("d", "plugs = \"web:1\";", &[]);
    let backend = rig.backend();
    let web = found(&backend, "web").await;
    let lease = lease(PATIENCE);
    assert_eq!(backend.status(&web, &lease).await.map(|it| it.state()), Ok(PowerState::On));
    let down = backend.off(&web, true, &lease).await.unwrap();
    assert!(!down.was_off && down.restart.is_some());
    assert_eq!(
        (rig.power("1"), backend.status(&web, &lease).await.map(|it| it.state())),
        ("off".to_owned(), Ok(PowerState::Off))
    );
    assert_eq!(rig.runs("d"), ["status", "status", "off", "status", "status"]);
    let down = backend.off(&web, true, &lease).await.unwrap();
    assert!(down.was_off && down.restart.is_none());
    assert_eq!(backend.on(&web, &lease).await, Ok(()));
    assert_eq!((rig.power("1"), rig.runs("d").len()), ("on".to_owned(), 9));
    let runs = lease.trail().runs().kept;
    assert!(runs.iter().any(|it| it.action == "off" && it.ended == AgentRunEnd::Exit(0) && it.device == "d"));
}

#[tokio::test]
async fn a_liar_is_no_proof() {
    // However slow it is here: the liar must have had the time to lie.
    let mut limit = Duration::from_secs(4);
    loop {
        let rig = Rig::new().machine("w", "on").device("d", "plugs = \"w\";", &[("off", "exit 0")]);
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        match backend.off(&w, false, &lease(limit)).await {
            Err(ActionError::NoEffect { state, reason }) => {
                assert_eq!(state, "on");
                assert!(reason.unwrap().contains("device d: off exit 0, status on"));
                return;
            }
            Err(_) if limit < PATIENCE => limit *= 2,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_next_one_does_it() {
    let rig = Rig::new()
        .machine("w", "on")
        .device("first", "plugs = \"w\"; order = \"1\";", &[("off", "echo 'no such session' >&2; exit 1")])
        .device("second", "plugs = \"w\"; order = \"2\";", &[]);
    let backend = rig.backend();
    let down = backend.off(&found(&backend, "w").await, false, &lease(PATIENCE)).await.unwrap();
    assert!(!down.was_off && rig.power("w") == "off");
    let note = down.note.unwrap();
    assert!(note.contains("device first: off exit 1: no such session"), "{note}");
    // The first one had said on, and was asked to take it back.
    assert_eq!(rig.runs("first").last().unwrap(), "status");
}

#[tokio::test]
async fn two_that_contradict_each_other_are_no_success() {
    let rig = Rig::new().machine("w", "off").device("wrong", "plugs = \"w\"; order = \"1\";", &[]).device(
        "right",
        "plugs = \"w\"; order = \"2\"; retries = \"0\";",
        &[("status", "exit 0"), ("off", "exit 1")],
    );
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let result = backend.off(&w, false, &lease(Duration::from_secs(6))).await;
    assert!(result.is_err(), "{result:?}");
    let status = backend.status(&w, &lease(PATIENCE)).await;
    assert_eq!(status.map(|it| it.state()), Ok(PowerState::On));
}

#[tokio::test]
async fn exit_code_2_is_believed_after_a_monitor_alone() {
    let rig = Rig::new().machine("w", "off").device(
        "d",
        "plugs = \"w\";",
        &[("monitor", "echo bad login; exit 1")],
    );
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let error = backend.status(&w, &lease(PATIENCE)).await.unwrap_err();
    let words = error.to_string();
    assert!(words.contains("exit 2, which is not believed") && words.contains("bad login"), "{words}");
    std::fs::remove_file(rig.path("d").join("monitor")).unwrap();
    let until = Instant::now() + PATIENCE;
    while backend.status(&w, &lease(PATIENCE)).await.map(|it| it.state()) != Ok(PowerState::Off) {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(200)).await;
    }
    // Another program in its place is another matter.
    std::fs::write(rig.path("d").join("agent"), "#!/bin/sh\nexit 2\n").unwrap();
    assert!(backend.status(&w, &lease(PATIENCE)).await.is_err());
}

/// One that hangs for ever, in a backend whose lease would be over long before it is given up.
#[tokio::test]
async fn one_that_hangs_takes_nothing_from_others() {
    let rig = Rig::new()
        .machine("w", "on")
        .device(
            "hangs",
            "plugs = \"w\"; order = \"1\"; status_timeout = \"5\";",
            &[("status", "sleep 1000"), ("off", "sleep 1000")],
        )
        .device("works", "plugs = \"w\"; order = \"2\";", &[]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let lease = lease(PATIENCE);
    let begin = Instant::now();
    assert!(backend.off(&w, false, &lease).await.is_ok());
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert_eq!(rig.power("w"), "off");
    assert!(!rig.runs("hangs").contains(&"off".to_owned()));
    // The next request does not even begin with it.
    assert!(backend.devices[0].timed_out_recently() && !backend.devices[1].timed_out_recently());
    let ways = backend.routes(&w, Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(ways[0].device.name, "works");
}

#[tokio::test]
async fn what_was_killed_holds_the_lease_until_its_device_was_heard() {
    // However long the shell takes to get there.
    let mut timeout = 3;
    let (_rig, lease, mut settled) = loop {
        let keys = format!("plugs = \"w\"; timeout = \"{timeout}\";");
        let rig =
            Rig::new().machine("w", "on").device("d", &keys, &[("off", "echo off > ../power-w; sleep 1000")]);
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        let (lease, settled) = Lease::new(Instant::now() + Duration::from_secs(4 * timeout), 1);
        match backend.off(&w, false, &lease).await {
            Ok(down) => {
                assert!(!down.was_off);
                break (rig, lease, settled);
            }
            Err(_) if timeout < 60 => timeout *= 2,
            Err(error) => panic!("{error}"),
        }
    };
    let runs = lease.trail().runs().kept;
    let off = runs.iter().find(|it| it.action == "off").unwrap();
    assert!(matches!(off.ended, AgentRunEnd::Killed(_)), "{off:?}");
    drop(lease);
    assert!(!settled.is_now());
    tokio::time::timeout(PATIENCE, settled.wait()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_dropped_in_the_middle_holds_its_lease_too() {
    let rig = Rig::new().machine("w", "on").device(
        "d",
        "plugs = \"w\"; effect_timeout = \"3\";",
        &[("off", "touch began; sleep 1000")],
    );
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let (lease, mut settled) = Lease::new(Instant::now() + PATIENCE, 1);
    let began = rig.path("d").join("began");
    tokio::select! {
        it = backend.off(&w, false, &lease) => panic!("{it:?}"),
        () = async { while !began.exists() { sleep(Duration::from_millis(10)).await } } => {}
    }
    drop(lease);
    assert!(!settled.is_now());
    tokio::time::timeout(PATIENCE, settled.wait()).await.unwrap();
}

#[tokio::test]
async fn nothing_is_begun_for_who_has_gone() {
    let rig = Rig::new().machine("w", "on").device("d", "plugs = \"w\";", &[("status", "touch looked")]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let gone = lease(PATIENCE);
    gone.end(LeaseEndReason::HungUp);
    assert_eq!(backend.off(&w, false, &gone).await.unwrap_err(), ActionError::Lapsed("the client is gone"));
    // Gone while the domain is looked at.
    std::fs::write(rig.path("d").join("status"), "touch looked; sleep 1000").unwrap();
    let goes = lease(PATIENCE);
    let looked = rig.path("d").join("looked");
    let (result, ()) = tokio::join!(backend.off(&w, false, &goes), async {
        while !looked.exists() {
            sleep(Duration::from_millis(10)).await;
        }
        goes.end(LeaseEndReason::Superseded);
    });
    assert_eq!(result.unwrap_err(), ActionError::Lapsed("the same client asked something newer"));
    assert!(!rig.runs("d").contains(&"off".to_owned()) && rig.power("w") == "on");
}

#[tokio::test]
async fn listed_domains_by_plug_and_alias() {
    let rig = Rig::new()
        .machine("101", "on")
        .machine("102", "off")
        .device("a", "plugs = \"*\";", &[("list-of", "101,web\n102,db\n103,twin\n104,twin\n")])
        .device("b", "plugs = \"*\";", &[("list-of", "101,web\n")]);
    let backend = rig.backend();
    for name in ["web", "101"] {
        assert_eq!(found(&backend, name).await.name, "web");
    }
    let ways = backend.routes(&found(&backend, "web").await, Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(ways.len(), 2);
    let locate = async |name: &str| {
        backend.locate(&Target::new(name, false).unwrap(), Instant::now() + PATIENCE).await
    };
    assert!(matches!(locate("twin").await, Err(LocateError::Ambiguous(_))));
    assert_eq!(locate("none").await, Err(LocateError::NotFound));
    assert!(backend.may_own(&Target::new("db", false).unwrap()));
    assert!(!backend.may_own(&Target::new("none", false).unwrap()));
    let listing = backend.list(Instant::now() + PATIENCE).await.unwrap();
    let listed: Vec<_> = listing.domains.iter().map(|it| (it.name.as_str(), it.power)).collect();
    // What is not known to be off is on.
    let twins = [("103", PowerState::On), ("104", PowerState::On)];
    assert_eq!(listed, [twins[0], twins[1], ("db", PowerState::Off), ("web", PowerState::On)]);
    assert_eq!(listing.missing, ["no device can tell the state of 103, 104"]);
}

#[tokio::test]
async fn a_plug_that_means_another_domain_now_is_left_alone() {
    let rig = Rig::new().machine("101", "on").device("d", "plugs = \"*\";", &[("list-of", "101,web\n")]);
    let backend = rig.backend();
    let web = found(&backend, "web").await;
    for list in ["101,db\n102,web\n", "102,web\n", ""] {
        std::fs::write(rig.path("d").join("list-of"), list).unwrap();
        backend.devices[0].forget_list().await;
        assert_eq!(
            backend.off(&web, false, &lease(PATIENCE)).await.unwrap_err(),
            ActionError::Gone,
            "{list:?}"
        );
    }
    // No list: what was found a moment ago stands.
    std::fs::write(rig.path("d").join("list"), "exit 1").unwrap();
    backend.devices[0].forget_list().await;
    assert!(backend.off(&web, false, &lease(PATIENCE)).await.is_ok());
    assert_eq!(rig.power("101"), "off");
}

/// A machine that may go off yet holds up what conflicts with it for a moment; one that is off holds up
/// nothing.
#[tokio::test]
async fn what_was_claimed_and_is_not_seen_may_come_yet() {
    for (off, is_held) in [("exit 0", true), ("exit 1", false), ("echo off > ../power-1", false)] {
        let rig = Rig::new().machine("1", "on").device(
            "d",
            "plugs = \"web:1\"; retries = \"0\"; effect_timeout = \"2\";",
            &[("off", off)],
        );
        let backend = rig.backend();
        let web = found(&backend, "web").await;
        // One that stays on is followed to the end of the time. However long it takes to get there.
        let mut limit = if off.contains("echo") { PATIENCE } else { Duration::from_secs(3) };
        let (lease, mut settled, result) = loop {
            let (lease, settled) = Lease::new(Instant::now() + limit, 1);
            let result = backend.off(&web, false, &lease).await;
            if rig.runs("d").contains(&"off".to_owned()) {
                break (lease, settled, result);
            }
            limit *= 2;
        };
        assert_eq!(result.is_ok(), off.contains("echo"), "{result:?}");
        drop(lease);
        assert_eq!(settled.is_now(), !is_held, "{off}");
        tokio::time::timeout(PATIENCE, settled.wait()).await.unwrap();
    }
}

/// A device that says "done" and acts much later: the request has failed, and what conflicts with it waits
/// until the machine is off.
#[tokio::test]
async fn what_was_claimed_holds_up_others_until_it_comes() {
    let in_vain = "echo 'Failed: Timed out waiting to power OFF' >&2; exit 1";
    for (off, timeout) in [("exit 0", 2), ("sleep 1000", 2), (in_vain, 6)] {
        let keys =
            format!("plugs = \"web:1\"; retries = \"0\"; timeout = \"{timeout}\"; effect_timeout = \"600\";");
        let rig = Rig::new().machine("1", "on").device("d", &keys, &[("off", off)]);
        let backend = rig.backend();
        let web = found(&backend, "web").await;
        let mut limit = Duration::from_secs(3);
        let (lease, mut settled) = loop {
            let (lease, settled) = Lease::new(Instant::now() + limit, 1);
            assert!(backend.off(&web, false, &lease).await.is_err());
            if rig.runs("d").contains(&"off".to_owned()) {
                break (lease, settled);
            }
            limit *= 2;
        };
        drop(lease);
        // Nothing but a power-off: another off of it need not wait.
        assert_eq!(settled.effect(), Some(LateEffect::PowerOff));
        // Looks go on for as long as it may come.
        let (looks, until) = (rig.runs("d").len(), Instant::now() + PATIENCE);
        while rig.runs("d").len() < looks + 4 {
            assert!(!settled.is_now() && Instant::now() < until, "{off}: {:?}", rig.runs("d"));
            sleep(Duration::from_millis(50)).await;
        }
        std::fs::write(rig.path("power-1"), "off").unwrap();
        tokio::time::timeout(PATIENCE, settled.wait()).await.expect("held after it came");
    }
}

/// Two devices have the domain's name, and each its own machine: "off" is said of both or not at all, however
/// slow one of them is.
#[tokio::test]
async fn a_slow_device_is_heard_before_off_is_said() {
    for first in ["off", "on"] {
        let rig = || {
            Rig::new()
                .machine("1", first)
                .machine("2", "on")
                .device("a", "plugs = \"w:1\"; order = \"1\";", &[])
                .device("b", "plugs = \"w:2\"; order = \"2\";", &[("status", "sleep 3.5")])
        };
        let rig = rig();
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        let status = backend.status(&w, &lease(PATIENCE)).await;
        assert_eq!(status.map(|it| it.state()), Ok(PowerState::On), "{first}");
        let down = backend.off(&w, false, &lease(PATIENCE)).await.unwrap();
        assert_eq!([rig.power("1"), rig.power("2")], ["off", "off"], "{down:?}");
        assert_eq!(backend.status(&w, &lease(PATIENCE)).await.map(|it| it.state()), Ok(PowerState::Off));
        // One that stays on.
        std::fs::write(rig.path("b").join("off"), "exit 0").unwrap();
        std::fs::write(rig.path("power-2"), "on").unwrap();
        let error = backend.off(&w, false, &lease(Duration::from_secs(15))).await.unwrap_err();
        assert!(matches!(error, ActionError::NoEffect { .. } | ActionError::Unknown(_)), "{error:?}");
    }
}

/// A device that this host can't ask now, since nothing can be started or its agent is being installed, says
/// nothing: another one's "off" is not believed before it was asked.
#[tokio::test]
async fn a_device_whose_agent_can_not_be_started_now_is_no_evidence() {
    let rig = Rig::new()
        .machine("1", "off")
        .machine("2", "on")
        .device("a", "plugs = \"w:1\"; order = \"1\";", &[])
        .device("b", "plugs = \"w:2\"; order = \"2\";", &[]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let status = backend.status(&w, &lease(PATIENCE)).await;
    assert_eq!(status.map(|it| it.state()), Ok(PowerState::On));
    let being_written = std::fs::OpenOptions::new().append(true).open(rig.path("b").join("agent")).unwrap();
    for seconds in [2, 12] {
        let short = lease(Duration::from_secs(seconds));
        let said = tokio::join!(backend.status(&w, &short), backend.off(&w, false, &short));
        assert!(said.0.is_err() && said.1.is_err(), "{said:?}");
    }
    drop(being_written);
    let down = backend.off(&w, false, &lease(PATIENCE)).await.unwrap();
    assert_eq!([rig.power("1"), rig.power("2")], ["off", "off"], "{down:?}");
}

/// A device whose list can't be had may have the machine: it is asked for the state all the same, whatever
/// the other device has it by, and whether it was heard before.
#[tokio::test]
async fn a_device_without_a_list_that_says_on_is_heard() {
    const LIST: &str = "echo w,; exit 0";
    let says_off = ("status", "exit 2");
    let course = async |a_plugs: &str, b_list: &str, is_warm: bool| {
        let keys =
            |it: &str, order: u8| format!("plugs = \"{it}\"; order = \"{order}\"; status_timeout = \"2\";");
        let rig = Rig::new()
            .machine("w", "on")
            .device("a", &keys(a_plugs, 1), &[says_off, ("list", LIST)])
            .device("b", &keys("*", 2), &[("list", if is_warm { LIST } else { b_list })]);
        let backend = rig.backend();
        if is_warm {
            let w = found(&backend, "w").await;
            assert_eq!(backend.status(&w, &lease(PATIENCE)).await.unwrap().state(), PowerState::On);
            std::fs::write(rig.path("b").join("list"), b_list).unwrap();
            backend.devices[1].forget_list().await;
        }
        let w = found(&backend, "w").await;
        let seen = backend.status(&w, &lease(PATIENCE)).await.map(|it| it.state());
        let said = backend.off(&w, false, &lease(Duration::from_secs(20))).await;
        let case = format!("{a_plugs} {b_list} {is_warm}: {seen:?}, {said:?}");
        assert_ne!(seen, Ok(PowerState::Off), "{case}");
        match said {
            Ok(_) => assert_eq!(rig.power("w"), "off", "{case}"),
            Err(why) => assert!(why.to_string().contains("device b: not told to act: "), "{case}"),
        }
    };
    let mut courses = Vec::new();
    for a_plugs in ["*", "w"] {
        for b_list in ["exit 1", "sleep 600", "sleep 1.5; echo w,; exit 0", "echo w,one; echo w,two; exit 0"]
        {
            courses.extend([false, true].map(|is_warm| course(a_plugs, b_list, is_warm)));
        }
    }
    // Not all at once: each has some agents that run.
    while !courses.is_empty() {
        join_all(courses.drain(..courses.len().min(8))).await;
    }
}

/// A password that is being changed, a program that is being replaced: another device's "off" is not believed
/// before this one was asked, whether it was heard before or not.
#[tokio::test]
async fn a_device_that_can_not_be_used_for_a_moment_is_heard() {
    let course = async |is_warm: bool, breaks: fn(&Rig), mends: fn(&Rig)| {
        let rig = Rig::new();
        let secret = rig.path("secret");
        std::fs::write(&secret, "one").unwrap();
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let keys = format!(
            "plugs = \"w:2\"; order = \"2\"; options {{ password_file = \"{}\"; }}",
            secret.display()
        );
        let rig = rig
            .machine("1", "off")
            .machine("2", "on")
            .device("a", "plugs = \"w:1\"; order = \"1\";", &[])
            .device("b", &keys, &[]);
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        if is_warm {
            assert_eq!(backend.status(&w, &lease(PATIENCE)).await.unwrap().state(), PowerState::On);
        }
        breaks(&rig);
        let mended = async {
            sleep(Duration::from_secs(1)).await;
            mends(&rig);
        };
        let long = lease(PATIENCE);
        let (seen, ()) = tokio::join!(backend.status(&w, &long), mended);
        assert_eq!(seen.map(|it| it.state()), Ok(PowerState::On), "{is_warm}");
        assert!(backend.off(&w, false, &lease(PATIENCE)).await.is_ok());
        assert_eq!(rig.power("2"), "off");
    };
    for is_warm in [false, true] {
        course(
            is_warm,
            |rig| std::fs::write(rig.path("secret"), "").unwrap(),
            |rig| std::fs::write(rig.path("secret"), "two").unwrap(),
        )
        .await;
        course(
            is_warm,
            |rig| std::fs::rename(rig.path("b").join("agent"), rig.path("b").join("away")).unwrap(),
            |rig| std::fs::rename(rig.path("b").join("away"), rig.path("b").join("agent")).unwrap(),
        )
        .await;
        course(is_warm, |rig| set_mode(rig, 0o600), |rig| set_mode(rig, 0o700)).await;
    }
}

fn set_mode(rig: &Rig, mode: u32) {
    std::fs::set_permissions(rig.path("b").join("agent"), Permissions::from_mode(mode)).unwrap();
}

/// A list that can be had, and does not have the machine, says that the device is no way to it.
#[tokio::test]
async fn a_device_whose_list_denies_the_machine_holds_nobody_up() {
    for a_plugs in ["*", "w"] {
        let rig = Rig::new()
            .machine("w", "on")
            .device("a", &format!("plugs = \"{a_plugs}\";"), &[("list", "echo w,; exit 0")])
            .device("b", "plugs = \"*\";", &[("list", "echo v,; exit 0"), ("status", "exit 1")]);
        let backend = rig.backend();
        let w = found(&backend, "w").await;
        assert!(backend.off(&w, false, &lease(PATIENCE)).await.is_ok());
        assert_eq!((rig.power("w").as_str(), rig.runs("b").len()), ("off", 0), "{a_plugs}");
    }
}

/// A device whose `status` fails is asked again before another one's "off" is believed; one that fails for
/// all of its time counts as unknown. It has all of its time the next time too: it may be well since.
#[tokio::test]
async fn a_device_that_fails_once_is_heard_before_off_is_said() {
    let fails =
        "[ -e failed ] || { touch failed; exit 1; }; case $(cat ../power-2) in on) exit 0 ;; esac; exit 1";
    let rig = Rig::new()
        .machine("1", "off")
        .machine("2", "on")
        .device("a", "plugs = \"w:1\"; order = \"1\"; status_timeout = \"3\";", &[])
        .device("b", "plugs = \"w:2\"; order = \"2\"; status_timeout = \"3\";", &[("status", fails)]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let status = async || backend.status(&w, &lease(PATIENCE)).await.map(|it| it.state());
    assert_eq!(status().await, Ok(PowerState::On), "{:?}", rig.runs("b"));
    std::fs::write(rig.path("power-2"), "unknown").unwrap();
    for _ in 0..2 {
        let begin = Instant::now();
        assert_eq!(status().await, Ok(PowerState::Off));
        assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

/// The device tells another request the state in between: it has not failed for all of its time.
#[tokio::test]
async fn what_another_request_hears_of_a_device_counts_too() {
    let b = "[ -e failing ] || exit 0; mkdir first 2>/dev/null || exit 1; \
             until [ -e go ]; do sleep 0.05; done; exit 0";
    let patience = Duration::from_secs(6);
    let rig = Rig::new()
        .machine("1", "off")
        .machine("2", "on")
        .device("a", "plugs = \"w:1\"; order = \"1\"; status_timeout = \"6\";", &[])
        .device("b", "plugs = \"w:2\"; order = \"2\"; status_timeout = \"6\";", &[("status", b)]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let status = async || backend.status(&w, &lease(PATIENCE)).await.map(|it| it.state());
    assert_eq!(status().await, Ok(PowerState::On));
    std::fs::write(rig.path("b/failing"), "").unwrap();
    let began = Instant::now();
    // The first run of b waits for the file `go`; all others fail.
    let first = async { (status().await, Instant::now()) };
    let second = async {
        while !rig.path("b/first").exists() {
            sleep(Duration::from_millis(10)).await;
        }
        (status().await, Instant::now())
    };
    let go = async {
        tokio::time::sleep_until((began + patience / 2).into()).await;
        std::fs::write(rig.path("b/go"), "").unwrap();
        Instant::now()
    };
    let ((heard, at), (failed, ended), told) = tokio::join!(first, second, go);
    assert_eq!((heard, failed), (Ok(PowerState::On), Ok(PowerState::Off)), "{:?}", rig.runs("b"));
    assert!(ended >= at && ended - told >= patience - Duration::from_millis(500), "{:?}", ended - told);
}

/// An agent that understands nothing of what its endpoint says, and takes it for off.
#[tokio::test]
async fn off_is_not_believed_of_a_plug_that_the_endpoint_does_not_know() {
    let refused = |error: ActionError, why: &str| {
        let ActionError::Unavailable(said) = &error else { panic!("{error:?}") };
        assert!(said.contains("exit 2, which is not believed: ") && said.contains(why), "{said}");
    };
    let rig = Rig::new()
        .machine("1", "on")
        .device(
            "blind",
            "plugs = \"web:1\"; retries = \"0\";",
            &[("status", "exit 2"), ("off", "exit 0"), ("list-of", "")],
        )
        .device("other", "plugs = \"db:7\";", &[("status", "exit 2"), ("list-of", "1,web\n")])
        .device("none", "plugs = \"dns:7\";", &[("status", "exit 2"), ("list", "exit 1")]);
    let backend = rig.backend();
    let web = found(&backend, "web").await;
    refused(backend.status(&web, &lease(PATIENCE)).await.unwrap_err(), "its list is empty");
    assert!(backend.off(&web, false, &lease(Duration::from_secs(10))).await.is_err());
    let db = found(&backend, "db").await;
    refused(backend.status(&db, &lease(PATIENCE)).await.unwrap_err(), "its list does not name the plug 7");
    // One that has been seen on is known, whatever it is called in the list.
    let script = rig.path("other").join("status");
    std::fs::write(&script, "exit 0").unwrap();
    assert_eq!(backend.status(&db, &lease(PATIENCE)).await.map(|it| it.state()), Ok(PowerState::On));
    std::fs::write(&script, "exit 2").unwrap();
    assert_eq!(backend.status(&db, &lease(PATIENCE)).await.map(|it| it.state()), Ok(PowerState::Off));
    // Without a list nothing speaks against it.
    let dns = found(&backend, "dns").await;
    assert_eq!(backend.status(&dns, &lease(PATIENCE)).await.map(|it| it.state()), Ok(PowerState::Off));
}

/// An agent that says nothing of itself once, since a library is away for a moment, is asked again: without a
/// list to look at, its "off" would be believed of every plug.
#[tokio::test]
async fn metadata_that_fails_once_is_asked_for_again() {
    let once = "[ -e ../failed ] || { touch ../failed; exit 1; }";
    let instead = [("metadata", once), ("status", "exit 2"), ("list", "exit 0")];
    let rig =
        Rig::new().machine("1", "on").device("d", "plugs = \"web:1\"; status_timeout = \"2\";", &instead);
    let backend = rig.backend();
    let web = found(&backend, "web").await;
    assert!(backend.devices[0].metadata(survey(Instant::now() + PATIENCE)).await.is_ok());
    sleep(Duration::from_millis(1100)).await;
    let said = backend.status(&web, &lease(Duration::from_secs(20))).await;
    assert!(said.is_err() && rig.path("failed").exists(), "{said:?}");
}

#[tokio::test]
async fn without_a_list_nobody_knows() {
    let rig = Rig::new()
        .machine("1", "on")
        .device("a", "plugs = \"*\";", &[("list", "echo no route >&2; exit 1")])
        .device("b", "plugs = \"own\";", &[]);
    let backend = rig.backend();
    let error =
        backend.locate(&Target::new("web", false).unwrap(), Instant::now() + PATIENCE).await.unwrap_err();
    assert_eq!(error, LocateError::Unavailable("device a: list: exit 1: no route".to_owned()));
    // What the configuration names needs no list.
    assert_eq!(found(&backend, "own").await.name, "own");
}

#[tokio::test]
async fn secrets_reach_the_agent_and_nobody_else() {
    let rig = Rig::new().machine("w", "on");
    let file = rig.path("password");
    std::fs::write(&file, "hunter2=x\n").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let keys = format!("plugs = \"w\"; options {{ password_file = \"{}\"; }}", file.display());
    let off = "echo \"$password\" > got; echo \"password is $password\"; echo \"bad $password\" >&2; exit 1";
    let rig = rig.device("d", &keys, &[("off", off)]);
    let backend = rig.backend();
    let w = found(&backend, "w").await;
    let lease = lease(Duration::from_secs(20));
    let error = backend.off(&w, false, &lease).await.unwrap_err();
    assert_eq!(std::fs::read_to_string(rig.path("d").join("got")).unwrap(), "hunter2=x\n");
    let runs = lease.trail().runs().kept;
    let shown = format!("{error} {error:?} {runs:?}");
    assert!(shown.contains("bad ***") && !shown.contains("hunter"), "{shown}");
    // One that others can read is not used.
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let error = backend.off(&w, false, &self::lease(Duration::from_secs(20))).await.unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[tokio::test]
async fn one_machine_for_two_domains_is_refused() {
    let metadata =
        "echo '<resource-agent><parameters><parameter name=\"ip\"/></parameters></resource-agent>'; exit";
    let rig = Rig::new().machine("", "on").device(
        "d",
        "plugs = \"a, b\"; retries = \"0\";",
        &[("metadata", metadata)],
    );
    let backend = rig.backend();
    let error = backend.off(&found(&backend, "a").await, false, &lease(PATIENCE)).await.unwrap_err();
    assert!(error.to_string().contains("takes no plug"), "{error}");
    assert!(rig.runs("d").is_empty() && rig.power("") == "on");
    let rig = Rig::new().machine("", "on").device("d", "plugs = \"a\";", &[("metadata", metadata)]);
    let backend = rig.backend();
    assert!(backend.off(&found(&backend, "a").await, false, &lease(PATIENCE)).await.is_ok());
}

#[tokio::test]
async fn health_is_what_the_monitors_say() {
    let rig = Rig::new().device("a", "plugs = \"x\";", &[]).device(
        "b",
        "plugs = \"y\";",
        &[("monitor", "echo down; exit 1")],
    );
    let backend = rig.backend();
    let until = Instant::now() + PATIENCE;
    assert_eq!(backend.health(until).await, Ok(vec!["device b: monitor: exit 1: down".to_owned()]));
    let rig = Rig::new().device("b", "plugs = \"y\";", &[("monitor", "exit 1")]);
    assert!(matches!(rig.backend().health(until).await, Err(ActionError::Unavailable(_))));
}

#[tokio::test]
async fn others_must_not_be_able_to_write_an_agent() {
    let rig = Rig::new().machine("w", "on").device("d", "plugs = \"w\"; retries = \"0\";", &[]);
    std::fs::set_permissions(rig.path("d").join("agent"), Permissions::from_mode(0o722)).unwrap();
    let backend = rig.backend();
    let error = backend.off(&found(&backend, "w").await, false, &lease(PATIENCE)).await.unwrap_err();
    assert!(error.to_string().contains("chmod go-w"), "{error}");
    assert!(rig.runs("d").is_empty());
}

#[tokio::test]
async fn who_waits_for_a_place_and_goes_leaves_nothing() {
    let rig = Rig::new().machine("a", "on").machine("b", "on").device(
        "d",
        "plugs = \"a, b\"; max_running = \"1\";",
        &[("off", "touch began; sleep 1000")],
    );
    let backend = rig.backend();
    let (a, b) = (found(&backend, "a").await, found(&backend, "b").await);
    let (first, second) = (lease(PATIENCE), lease(PATIENCE));
    let began = rig.path("d").join("began");
    tokio::select! {
        it = backend.off(&a, false, &first) => panic!("{it:?}"),
        result = async {
            while !began.exists() {
                sleep(Duration::from_millis(10)).await;
            }
            let (result, ()) = tokio::join!(backend.off(&b, false, &second), async {
                sleep(Duration::from_millis(100)).await;
                second.end(LeaseEndReason::HungUp);
            });
            result
        } => assert_eq!(result.unwrap_err(), ActionError::Lapsed("the client is gone")),
    }
    assert_eq!(rig.runs("d").iter().filter(|it| *it == "off").count(), 1);
    assert_eq!((rig.power("a"), rig.power("b")), ("on".to_owned(), "on".to_owned()));
}

/// A pool's master moves after the domain was found: the member that has it now takes it down and starts it
/// again.
#[tokio::test]
async fn the_member_that_has_it_now_goes_on_having_it() {
    let none = [
        ("list", "exit 1"),
        ("status", "exit 1"),
        ("off", "exit 1"),
        ("on", "exit 1"),
        ("list-of", "1,web\n"),
    ];
    let rig = Rig::new()
        .machine("1", "on")
        .device("old", "plugs = \"*\";", &[("list-of", "1,web\n")])
        .device("new", "plugs = \"*\";", &none);
    // One agent for both, which is told its place.
    let agent = AGENT.replace("password) password=$value ;;", "place) cd \"$value\" || exit 1 ;;");
    std::fs::write(rig.path("agent"), agent).unwrap();
    std::fs::set_permissions(rig.path("agent"), Permissions::from_mode(0o700)).unwrap();
    let device = |name: &str| {
        format!(
            "device = \"{name}\" {{ agent = \"{}\"; plugs = \"*\"; options {{ place = \"{}\"; }} }}",
            rig.path("agent").display(),
            rig.path(name).display()
        )
    };
    let rig = Rig { blocks: device("old") + &device("new"), ..rig };
    let backend = rig.backend();
    let web = found(&backend, "web").await;
    for (action, _) in &none[..4] {
        std::fs::rename(rig.path("new").join(action), rig.path("old").join(action)).unwrap();
    }
    let lease = lease(PATIENCE);
    let down = backend.off(&web, true, &lease).await.unwrap();
    assert_eq!(rig.power("1"), "off");
    down.restart.unwrap().start(&lease).await.unwrap();
    assert_eq!(rig.power("1"), "on");
}
