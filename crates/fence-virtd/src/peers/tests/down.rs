// SPDX-License-Identifier: GPL-2.0-or-later
//! The command that proves a silent host down (`peer_down_command`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use fence_core::evidence::ProvedOff;
use fence_core::host_down::BOOT;

use super::*;

/// A program that runs in its own directory. It is a link to one that is never open for writing.
fn command(dir: &StateDir, body: &str) -> PathBuf {
    let path = dir.path().join("program");
    symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/src/host_down/in-its-place.sh"), &path).unwrap();
    fs::write(dir.path().join("body"), body).unwrap();
    path
}

/// Asks a host that knows one other, which is silent, and that has this command.
async fn ask_a_silent_host(dir: &StateDir, body: &str, time: Duration) -> (Vec<Finding>, u16) {
    let (a, b) = host_with_a_silent_one(dir, body).await;
    (a.look_within(time).await, b)
}

/// A host that knows one other, which is silent, with the port of that one.
async fn host_with_a_silent_one(dir: &StateDir, body: &str) -> (Host, u16) {
    let (a, b) = (port(), port());
    let a = Host::listed(a, &[b], None).await;
    let settings = (*a.peers.settings()).clone();
    a.peers.replace_settings(PeerSettings { down_command: Some(command(dir, body)), ..settings });
    (a, b)
}

/// A look at this host's hypervisor.
fn here(began: Instant) -> Finding {
    let place = DomainSite::Hypervisor("test".to_owned());
    Finding::without_namesakes(place, Sight::Off, began, began)
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Returns how often the command was run that adds a line to this file.
fn runs(dir: &StateDir) -> usize {
    fs::read_to_string(dir.path().join("runs")).unwrap_or_default().lines().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_proved_down_is_named_with_the_word_of_the_command() {
    let dir = StateDir::new();
    let body = "echo \"$*\" > asked; echo; echo \"power is off\"; echo more; exit 0";
    let asked = Instant::now();
    let (found, port) = ask_a_silent_host(&dir, body, Duration::from_secs(20)).await;
    assert_eq!(fs::read_to_string(dir.path().join("asked")).unwrap(), "127.0.0.1 127.0.0.1\n");
    let [finding] = &found[..] else { panic!("{found:?}") };
    let program = dir.path().join("program");
    assert_eq!(finding.sight, Sight::Down(format!("{} says so: power is off", program.display())));
    // What the audit record says: see `RequestOutcome`.
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
        let dir = StateDir::new();
        ask_a_silent_host(&dir, "echo no; echo 'no such outlet' >&2; exit 3", Duration::from_secs(20)).await.0
    };
    let killed = async {
        let dir = StateDir::new();
        ask_a_silent_host(&dir, "kill -9 $$", Duration::from_secs(20)).await.0
    };
    let hangs = async {
        let dir = StateDir::new();
        ask_a_silent_host(&dir, "sleep 600", Duration::from_secs(4)).await.0
    };
    let (fails, killed, hangs) = tokio::join!(fails, killed, hangs);
    for (found, why) in [
        (fails, "exit status: 3: no; no such outlet"),
        (killed, "signal: 9"),
        (hangs, "did not end in time, and was killed"),
    ] {
        let why_not = reason(&found[0].sight);
        assert!(why_not.contains("does not answer") && why_not.contains(why), "{why_not}");
    }
}

/// A request looks twice, and whoever asks for the reason waits for 20 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_hung_is_not_asked_again_at_once() {
    let dir = StateDir::new();
    let (a, _) = host_with_a_silent_one(&dir, "echo >> runs; sleep 600").await;
    let began = Instant::now();
    for _ in 0..2 {
        let found = a.peers.look(&question(), began + Duration::from_secs(25)).await;
        assert!(reason(&found[0].sight).contains("did not end in time, and was killed"), "{found:?}");
    }
    assert_eq!(runs(&dir), 1);
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_runs_once_for_each_request() {
    let dir = StateDir::new();
    let (a, _) = host_with_a_silent_one(&dir, "echo >> runs").await;
    let look = async |question: &DomainQuestion| a.peers.look(question, Instant::now() + PATIENCE).await;
    let one = question();
    let first = look(&one).await;
    let second = look(&one.next_round()).await;
    assert_eq!(runs(&dir), 1);
    // The answer counts in both rounds, and the proof is as old as the answer.
    let began = first[0].began;
    let rounds = [(first, began), (second, Instant::now())];
    let rounds = rounds.map(|(found, began)| found.into_iter().chain([here(began)]).collect());
    let proof = ProvedOff::from_rounds(one.asked, &rounds).unwrap();
    assert!(proof.since() == began && proof.down().is_some());
    // Another request came after that.
    look(&question()).await;
    assert_eq!(runs(&dir), 2);
    // The host may have booted since.
    let old = question();
    look(&old).await;
    a.peers.down.age(BOOT).await;
    look(&old.next_round()).await;
    assert_eq!(runs(&dir), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_share_an_answer_that_was_asked_for_after_they_came() {
    let dir = StateDir::new();
    let (a, _) = host_with_a_silent_one(&dir, "echo >> runs; while test ! -e go; do sleep 0.01; done").await;
    let until = Instant::now() + PATIENCE;
    let (came_first, has_begun) = (question(), async {
        while runs(&dir) < 1 {
            assert!(Instant::now() < until);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let late = async {
        has_begun.await;
        // The command may have looked already.
        let (one, two) = (question(), question());
        fs::write(dir.path().join("go"), "").unwrap();
        tokio::join!(a.peers.look(&one, until), a.peers.look(&two, until))
    };
    let (first, (one, two)) = tokio::join!(a.peers.look(&came_first, until), late);
    for found in [first, one, two] {
        assert!(matches!(found[0].sight, Sight::Down(_)), "{found:?}");
    }
    assert_eq!(runs(&dir), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_heard_since_needs_another_answer() {
    let dir = StateDir::new();
    let (a, _) = host_with_a_silent_one(&dir, "echo >> runs").await;
    let one = question();
    a.peers.look(&one, Instant::now() + PATIENCE).await;
    a.peers.down.forget("127.0.0.1");
    a.peers.look(&one.next_round(), Instant::now() + PATIENCE).await;
    assert_eq!(runs(&dir), 2);
}

fn question() -> DomainQuestion {
    DomainQuestion::new(DomainId::from_bytes([7; 16]), "vm1".to_owned())
}
