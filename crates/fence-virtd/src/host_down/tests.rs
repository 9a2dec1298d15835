// SPDX-License-Identifier: GPL-2.0-or-later
//! Against what Pacemaker 2.1.5 answered (`*.xml`: n2 was fenced, once in vain, unfenced in vain, and
//! confirmed by hand).

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use std::time::SystemTime;

use fence_core::host_down::{BOOT, ClockReading, FencingRecord};

use super::pacemaker::{fencings, time};
use super::*;

const HISTORY: &str = include_str!("history.xml");
const PENDING: &str = include_str!("pending.xml");
const NONE: &str = include_str!("none.xml");
const REFUSED: &str = include_str!("refused.xml");
/// Whatever must happen happens within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn times() {
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(time("1970-01-01 00:00:00Z"), at(0));
    assert_eq!(time("2026-11-21 15:09:11Z"), at(1_795_273_751));
    assert_eq!(time("2026-11-21 16:09:11 +01:00"), at(1_795_273_751));
    assert_eq!(time("2026-11-21T09:39:11-05:30"), at(1_795_273_751));
    assert_eq!(time("2024-02-29 23:59:60Z"), at(1_709_251_200));
    assert_eq!(time("2100-03-01 00:00:00Z"), at(4_107_542_400));
    for text in [
        "",
        "Sat Nov 21 15:09:11 2026",
        "2026-11-21 15:09:11",
        "2026-13-21 15:09:11Z",
        "2026-11-21 15:09:11 UTC",
        "2026-11-21 24:09:11Z",
        "1969-12-31 23:59:59Z",
        "1970-01-01 00:00:00 +01:00",
        "2026-11-21 15:09:11 +01:00:00:00",
        "99999999999-11-21 15:09:11Z",
    ] {
        assert_eq!(time(text), None, "{text}");
    }
}

#[test]
fn reads_the_history() {
    let all = fencings(HISTORY).unwrap();
    assert_eq!(all.len(), 6);
    let first = FencingRecord {
        action: "reboot".to_owned(),
        target: "n2".to_owned(),
        status: "success".to_owned(),
        by: "n1".to_owned(),
        ended: time("2026-11-21 15:09:11Z"),
    };
    assert_eq!(all[0], first);
    assert_eq!(all[1].by, "a human");
    assert_eq!(
        fencings(PENDING).unwrap()[0],
        FencingRecord { status: "pending".to_owned(), by: String::new(), ended: None, ..first }
    );
    assert_eq!(fencings(NONE), Ok(vec![]));
    assert_eq!(fencings(REFUSED), Err("status 102".to_owned()));
    for text in ["", "<a/>", "<pacemaker-result/>", "n2 was never fenced", &HISTORY[..HISTORY.len() - 30]] {
        assert!(fencings(text).is_err(), "{text}");
    }
}

#[test]
fn only_a_fencing_that_explains_this_loss_counts() {
    // Fenced with success at 08:59 (reboot), 09:01 (off), 09:09 (off, by hand) and 09:11 (reboot); in vain at
    // 09:04 and 09:07.
    let judge = |xml: &str, name: &str, heard_since: &str, lost: &str, now: &str| {
        let wall = |clock| time(&format!("2026-11-21 15:{clock}Z")).unwrap();
        let at =
            |clock| Moment(wall(clock).duration_since(wall("00:00")).unwrap() + Duration::from_secs(9999));
        let now = ClockReading { moment: at(now), wall: wall(now) };
        let mut loss = Loss::new(at(heard_since), at(lost));
        let proof = loss.judge(name, &fencings(xml).unwrap(), now.moment, now, &mut ClockWatch::new(now))?;
        proof.evidence(now.moment).map(str::to_owned)
    };
    let succeeded = Ok("Pacemaker's reboot of the host succeeded (by n1)".to_owned());
    let since = Err("Pacemaker has not fenced the host since".to_owned());
    // Fenced after it was lost; names in any case.
    assert_eq!(judge(HISTORY, "n2", "00:00", "09:10", "09:30"), succeeded);
    assert_eq!(judge(HISTORY, "N2", "00:00", "09:10", "09:30"), succeeded);
    assert_eq!(judge(HISTORY, "n3", "00:00", "09:10", "09:30"), since);
    // It was told to come up again, and may have done that.
    let again = Err("Pacemaker's reboot of the host ended 49 s ago, and the host may be up again".to_owned());
    assert_eq!(judge(HISTORY, "n2", "00:00", "09:10", "10:00"), again);
    // Fenced, and lost because of that. Heard on long after its fencing: that was no end of it.
    let off = HISTORY.replace("reboot", "off");
    let succeeded = Ok("Pacemaker's off of the host succeeded (by n1)".to_owned());
    assert_eq!(judge(&off, "n2", "00:00", "09:41", "59:59"), succeeded);
    assert_eq!(judge(&off, "n2", "00:00", "09:42", "59:59"), since);
    // It came back after its fencing.
    assert_eq!(judge(HISTORY, "n2", "09:11", "09:12", "09:30"), since);
    // Confirmed by hand after a fencing that failed; and while one is under way that may power it on.
    let by_hand_last = HISTORY.replace("15:09:11Z", "14:00:01Z").replace("15:08:59Z", "14:00:00Z");
    let by_hand = Ok("Pacemaker's off of the host succeeded (by a human)".to_owned());
    assert_eq!(judge(&by_hand_last, "n2", "00:00", "09:08", "10:00"), by_hand);
    let under_way = Err("Pacemaker is fencing the host".to_owned());
    assert_eq!(judge(PENDING, "n2", "00:00", "09:08", "10:00"), under_way);
    assert_eq!(judge(PENDING, "n2", "09:10", "09:15", "10:00"), under_way);
    let failed = HISTORY.replace("success", "failed");
    assert_eq!(
        judge(&failed, "n2", "00:00", "09:10", "10:00"),
        Err("Pacemaker's reboot of the host failed".to_owned())
    );
    // Power on is no proof.
    let on = HISTORY.replace("\"off\"", "\"on\"").replace("\"reboot\"", "\"on\"");
    assert!(judge(&on, "n2", "00:00", "08:50", "09:12").is_err());
    // A clock that is ahead would make an old fencing a new one.
    let ahead = judge(HISTORY, "n2", "08:00", "08:50", "08:51");
    assert_eq!(ahead, Err("the fencing of the host ended in the future: set the clocks".to_owned()));
    let no_time = HISTORY.replace("completed", "done");
    assert_eq!(
        judge(&no_time, "n2", "00:00", "09:10", "10:00"),
        Err("Pacemaker gives no time for the fencing of the host".to_owned())
    );
}

#[tokio::test]
async fn never_and_membership_ask_nobody() {
    let lost = |how: &HostDown| DownEvidence::new(how).lost(2, None, clock::now());
    let soon = Instant::now() + PATIENCE;
    assert!(lost(&HostDown::Never).proved(clock::now(), soon).await.unwrap_err().contains("never"));
    assert!(Instant::now() < soon);
    let membership = lost(&HostDown::Membership);
    let proof = membership.proved(clock::now(), soon).await.unwrap();
    assert!(proof.evidence().unwrap().contains("membership"));
    membership.ended();
    assert_eq!(proof.evidence(), Err(BACK.to_owned()));
    assert_eq!(refused(&membership, soon).await, BACK);
}

#[tokio::test]
async fn the_command_is_asked_until_it_says_so_and_by_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let command = script(&dir, "echo \"$1|$2|$3\" >> asked; test -e down || { echo 'not yet' >&2; exit 4; }");
    let loss = proofs(EvidenceSource::Command(command)).lost(7, Some("host seven".to_owned()), clock::now());
    let asked = || fs::read_to_string(dir.path().join("asked")).unwrap_or_default().lines().count();
    // Nobody waits, nobody is asked.
    assert_eq!(asked(), 0);
    // Two wait, and are told.
    let (one, two) = (loss.clone(), loss.clone());
    let until = Instant::now() + PATIENCE;
    let waiting = tokio::spawn(async move {
        tokio::join!(one.proved(clock::now(), until), two.proved(clock::now(), until))
    });
    while asked() < 3 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let early = refused(&loss, Instant::now()).await;
    assert_eq!(early, "host_down_command does not say so (exit status: 4): not yet");
    fs::write(dir.path().join("down"), "").unwrap();
    let (one, two) = waiting.await.unwrap();
    for proof in [one.unwrap(), two.unwrap()] {
        assert_eq!(proof.evidence(), Ok("host_down_command says so"));
    }
    let lines = fs::read_to_string(dir.path().join("asked")).unwrap();
    assert!(lines.lines().all(|it| it.starts_with("host seven|7|")), "{lines}");
    // The host was powered on: what it said to others is nothing to a new request.
    fs::remove_file(dir.path().join("down")).unwrap();
    let count = asked();
    assert!(refused(&loss, Instant::now() + Duration::from_millis(500)).await.contains("does not say so"));
    assert!(asked() > count);
}

/// The request has waited for the proof before its turn, and uses it in its turn.
#[tokio::test]
async fn a_request_that_has_a_proof_asks_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let command = script(&dir, "echo >> asked");
    let loss = proofs(EvidenceSource::Command(command)).lost(7, None, clock::now());
    let asked = || fs::read_to_string(dir.path().join("asked")).unwrap_or_default().lines().count();
    let (came, until) = (clock::now(), Instant::now() + PATIENCE);
    for _ in 0..3 {
        assert!(loss.proved(came, until).await.unwrap().evidence().is_ok());
    }
    assert_eq!(asked(), 1);
    assert!(loss.proved(clock::now(), until).await.is_ok());
    assert_eq!(asked(), 2);
}

/// A request that comes while the command runs must not take its answer: the command may have looked already.
#[tokio::test]
async fn an_answer_counts_for_those_alone_who_came_before_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let body = "echo >> begun; while test ! -e go; do sleep 0.01; done; test ! -e up";
    let loss = proofs(EvidenceSource::Command(script(&dir, body))).lost(7, None, clock::now());
    let begun = || fs::read_to_string(dir.path().join("begun")).unwrap_or_default().lines().count();
    let until = Instant::now() + PATIENCE;
    let wait = |loss: &LostHost, until| {
        let loss = loss.clone();
        tokio::spawn(async move { loss.proved(clock::now(), until).await.map(|_| ()) })
    };
    let first = wait(&loss, until);
    while begun() < 1 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // These came too late for the first question, and share the next.
    let late: Vec<_> = (0..5).map(|_| wait(&loss, Instant::now() + Duration::from_secs(2))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(first.await.unwrap(), Ok(()));
    for it in late {
        assert_eq!(it.await.unwrap(), Ok(()));
    }
    assert_eq!(begun(), 2);
}

#[tokio::test]
async fn a_request_that_ends_while_it_asks_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let body = "test -e asked || { touch asked; sleep 600; }";
    let loss = proofs(EvidenceSource::Command(script(&dir, body))).lost(7, None, clock::now());
    let first = {
        let loss = loss.clone();
        tokio::spawn(async move { loss.proved(clock::now(), Instant::now() + PATIENCE).await })
    };
    while !dir.path().join("asked").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.abort();
    assert!(loss.proved(clock::now(), Instant::now() + PATIENCE).await.is_ok());
}

#[tokio::test]
async fn who_waits_is_told_that_the_host_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let loss = proofs(EvidenceSource::Command(script(&dir, "exit 1"))).lost(7, None, clock::now());
    let waiting = tokio::spawn({
        let loss = loss.clone();
        async move { refused(&loss, Instant::now() + PATIENCE * 10).await }
    });
    loss.ended();
    assert_eq!(waiting.await.unwrap(), BACK);
    // Not even where the command would say so now.
    script(&dir, "exit 0");
    assert_eq!(refused(&loss, Instant::now() + PATIENCE).await, BACK);
}

#[tokio::test]
async fn what_is_no_answer_is_no_proof() {
    let dir = tempfile::tempdir().unwrap();
    for (body, says) in [("kill -9 $$", "signal: 9"), ("sleep 0.1; echo a; exit 255", "exit status: 255")] {
        let loss = proofs(EvidenceSource::Command(script(&dir, body))).lost(7, None, clock::now());
        let reason = loss.inner.ask().await.unwrap_err();
        assert!(reason.contains(says), "{reason}");
    }
    let missing = proofs(EvidenceSource::Command("/nosuch/command".into())).lost(7, None, clock::now());
    let reason = missing.inner.ask().await.unwrap_err();
    assert!(reason.contains("can't be started"), "{reason}");
}

#[tokio::test]
async fn pacemaker_is_asked_for_the_whole_history_of_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let answers = |xml: &str, code: u8| {
        fs::write(dir.path().join("answer.xml"), xml).unwrap();
        script(&dir, &format!("echo \"$*\" > asked; cat answer.xml; exit {code}"))
    };
    let ask = async |xml: &str, code, name: Option<&str>| {
        let program = answers(xml, code);
        let source = EvidenceSource::Pacemaker(program.clone());
        // Heard since the boot of this machine.
        let loss = proofs(source).lost(2, name.map(str::to_owned), Moment::default());
        match loss.inner.ask_pacemaker(&program).await {
            Ok(proof) => proof.evidence(clock::now()).map(str::to_owned).unwrap(),
            Err(reason) => reason,
        }
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // The real answer, with the fencing of just now.
    let date = |offset: u64| {
        let done = std::process::Command::new("date")
            .args(["-u", "-d", &format!("@{}", now - offset), "+%F %TZ"])
            .output();
        String::from_utf8(done.unwrap().stdout).unwrap().trim().to_owned()
    };
    let fresh = HISTORY.replace("2026-11-21 15:09:11Z", &date(0));
    assert!(ask(&fresh, 0, Some("n2")).await.contains("reboot of the host succeeded"));
    let asked = fs::read_to_string(dir.path().join("asked")).unwrap();
    assert_eq!(asked, "--history n2 --verbose --output-as=xml\n");
    let booted = HISTORY.replace("2026-11-21 15:09:11Z", &date(BOOT.as_secs() - 3));
    assert!(ask(&booted, 0, Some("n2")).await.contains("may be up again"));
    let old = HISTORY.replace("2026-11-21", "2020-11-21");
    assert!(ask(&old, 0, Some("n2")).await.contains("has not fenced the host since"));
    assert!(ask(NONE, 0, Some("n2")).await.contains("has not fenced the host since"));
    let refused = ask(REFUSED, 102, Some("n2")).await;
    assert!(refused.contains("Could not connect to fencer"), "{refused}");
    // An exit code that says otherwise is believed.
    assert!(ask(&fresh, 1, Some("n2")).await.contains("failed"));
    assert!(ask("junk", 0, Some("n2")).await.contains("can't be read"));
    assert!(ask(&fresh, 0, None).await.contains("no name"));
}

fn proofs(how: EvidenceSource) -> DownEvidence {
    let clock = Arc::new(Mutex::new(ClockWatch::new(clock::read())));
    DownEvidence { how: Arc::new(how), clock, pause: Duration::from_millis(10) }
}

/// Returns the reason why there is no proof.
async fn refused(loss: &LostHost, until: Instant) -> String {
    loss.proved(clock::now(), until).await.unwrap_err()
}

/// A program that runs in its own directory. It is a link to one that is never open for writing: while it is,
/// in whatever process that another test just started, it can't be started.
fn script(dir: &TempDir, body: &str) -> PathBuf {
    let path = dir.path().join("program");
    if !path.exists() {
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/src/host_down/in-its-place.sh"), &path).unwrap();
    }
    fs::write(dir.path().join("new"), body).unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("body")).unwrap();
    path
}
