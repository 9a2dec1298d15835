// SPDX-License-Identifier: GPL-2.0-or-later
//! The command that proves a silent host down (`peer_down_command`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use fence_core::evidence::ProvedOff;
use tempfile::TempDir;

use super::*;

/// A program that runs in its own directory. It is a link to one that is never open for writing.
fn command(dir: &TempDir, body: &str) -> PathBuf {
    let path = dir.path().join("program");
    symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/src/host_down/in-its-place.sh"), &path).unwrap();
    fs::write(dir.path().join("body"), body).unwrap();
    path
}

/// Asks a host that knows one other, which is silent, and that has this command.
async fn ask_a_silent_host(dir: &TempDir, body: &str, time: Duration) -> (Vec<Finding>, u16) {
    let (a, b) = (port(), port());
    let a = Host::listed(a, &[b], None).await;
    let settings = (*a.peers.settings()).clone();
    a.peers.replace_settings(PeerSettings { down_command: Some(command(dir, body)), ..settings });
    (a.look_within(time).await, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_proved_down_is_named_with_the_word_of_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let body = "echo \"$*\" > asked; echo; echo \"power is off\"; echo more; exit 0";
    let asked = Instant::now();
    let (found, port) = ask_a_silent_host(&dir, body, Duration::from_secs(20)).await;
    assert_eq!(fs::read_to_string(dir.path().join("asked")).unwrap(), "127.0.0.1 127.0.0.1\n");
    let [finding] = &found[..] else { panic!("{found:?}") };
    let program = dir.path().join("program");
    assert_eq!(finding.sight, Sight::Down(format!("{} says so: power is off", program.display())));
    // What the audit record says: see `RequestOutcome`.
    let here = |began| {
        let place = DomainSite::Hypervisor("test".to_owned());
        Finding { place, sight: Sight::Off, began, ended: began }
    };
    let again = Instant::now();
    let second = Finding { began: again, ended: again, ..finding.clone() };
    let rounds = [vec![here(finding.began), finding.clone()], vec![here(again), second]];
    let proof = ProvedOff::from_rounds(asked, &rounds).unwrap();
    let told = format!("host 127.0.0.1:{port} is down: {} says so: power is off", program.display());
    assert_eq!(crate::request::job::RequestOutcome::is_off(&proof).reason(), Some(told.as_str()));
    let fenced = crate::request::job::RequestOutcome::taken_down(&proof, Some("was off already"), None);
    assert_eq!(fenced.reason(), Some(format!("was off already ({told})").as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_or_hangs_proves_nothing() {
    let fails = async {
        let dir = tempfile::tempdir().unwrap();
        ask_a_silent_host(&dir, "echo no; echo 'no such outlet' >&2; exit 3", Duration::from_secs(20)).await.0
    };
    let killed = async {
        let dir = tempfile::tempdir().unwrap();
        ask_a_silent_host(&dir, "kill -9 $$", Duration::from_secs(20)).await.0
    };
    let hangs = async {
        let dir = tempfile::tempdir().unwrap();
        ask_a_silent_host(&dir, "sleep 600", Duration::from_secs(4)).await.0
    };
    let (fails, killed, hangs) = tokio::join!(fails, killed, hangs);
    for (found, why) in [
        (fails, "exit status: 3 no such outlet"),
        (killed, "signal: 9"),
        (hangs, "did not end in time, and was killed"),
    ] {
        let why_not = reason(&found[0].sight);
        assert!(why_not.contains("does not answer") && why_not.contains(why), "{why_not}");
    }
}
