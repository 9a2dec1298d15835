// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent's ports: many agents, killed ones and timed-out ones at one port, and no answer to another
//! request than one's own.
//!
//! The tests need root: they run themselves again under unshare(1), see `common`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fence_wire::{
    CallRole, ClassicHash, ClientRun, HashType, HostAwaitChallenge, Request, draw_named_challenge,
};
use rand::rngs::{SmallRng, SysRng};
use rand::{Rng, RngExt, SeedableRng, TryRng};

mod common;

use common::*;

#[test]
fn in_a_namespace() {
    run_in_a_namespace();
}

fn port(request: &Request) -> u16 {
    request.call_back.unwrap().port
}

fn run_of(request: &Request) -> ClientRun {
    ClientRun::of(request.sequence, request.nonce)
}

/// Challenge of the host in step 3.
#[derive(Clone, Copy)]
enum HostKind {
    /// Names the request, as our daemon does.
    Named,
    /// Random bytes, as of a C daemon.
    Classic,
}

/// Returns the host's challenge.
fn challenge_of(lab: &AgentLab, kind: HostKind, request: &Request) -> [u8; 64] {
    let mut c2 = [0; 64];
    match kind {
        HostKind::Named => {
            let fill = |bytes: &mut [u8]| SysRng.try_fill_bytes(bytes);
            c2 = draw_named_challenge(&lab.key(), CallRole::Host, run_of(request), fill).unwrap();
        }
        HostKind::Classic => SysRng.try_fill_bytes(&mut c2).unwrap(),
    }
    c2
}

/// Calls back and takes steps 1 to 4. Returns the stream; none if the agent has gone, or hung up before its
/// proof.
fn call_back(lab: &AgentLab, kind: HostKind, request: &Request) -> Option<TcpStream> {
    call_back_from(lab, kind, request, [127, 0, 0, 1])
}

fn call_back_from(lab: &AgentLab, kind: HostKind, request: &Request, from: [u8; 4]) -> Option<TcpStream> {
    let mut stream = lab.try_call_back_from(request, from).ok()?;
    let mut c1 = [0; 64];
    stream.read_exact(&mut c1).ok()?;
    let key = lab.key();
    let (proof, held) = HostAwaitChallenge::classic(ClassicHash::Sha256, &key).answer(&c1).unwrap();
    stream.write_all(&proof).ok()?;
    let c2 = challenge_of(lab, kind, request);
    let proven = held.challenge(&c2).unwrap();
    stream.write_all(&c2).ok()?;
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).ok()?;
    let _ = proven.verify(&answer).unwrap();
    Some(stream)
}

/// Our hosts name the request: neither a killed agent nor a time-out costs the next one anything.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_named_call_backs() {
    let lab = AgentLab::new(23_000);
    for abandon in ["kill", "time out"] {
        let mut abandoned = lab.agent(&["-o", "status", "-n", "vm1", "-t", "1"]);
        let older = lab.receive_request();
        if abandon == "kill" {
            abandoned.kill().unwrap();
        }
        abandoned.wait().unwrap();
        let agent = lab.agent(&["-o", "off", "-n", "vm2", "-t", "50"]);
        let request = lab.receive_request();
        assert_eq!((port(&older), port(&request)), (lab.port, lab.port));
        assert!(call_back(&lab, HostKind::Named, &older).is_none(), "no proof for an older request");
        call_back(&lab, HostKind::Named, &request).unwrap().write_all(&[0]).unwrap();
        let done = finish(agent);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        lab.drain();
    }
}

/// A C host does not name the request. Its call-backs are refused as often as older requests may cause one.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_call_backs_of_a_c_host() {
    let lab = AgentLab::new(23_050);
    // One answered request leaves nothing.
    let agent = lab.agent(&["-o", "status", "-n", "vm1"]);
    call_back(&lab, HostKind::Classic, &lab.receive_request()).unwrap().write_all(&[0]).unwrap();
    assert_eq!(finish(agent).status.code(), Some(0));
    lab.drain();
    let mut killed = lab.agent(&["-o", "status", "-n", "vm1"]);
    let older = lab.receive_request();
    killed.kill().unwrap();
    killed.wait().unwrap();
    lab.drain();
    assert_eq!(
        calls_until_believed(&lab, &older),
        2,
        "for the one datagram of the killed agent, and then the own"
    );
}

/// Somebody removed the ledger that had the killed agent's datagrams: /run was cleaned, or a container began
/// anew.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_removed_ledger() {
    let lab = AgentLab::new(23_450);
    let mut killed = lab.agent(&["-o", "status", "-n", "vm1"]);
    let older = lab.receive_request();
    killed.kill().unwrap();
    killed.wait().unwrap();
    lab.drain();
    for ledger in lab.ledgers() {
        std::fs::remove_file(ledger).unwrap();
    }
    assert_eq!(calls_until_believed(&lab, &older), 65, "whatever the ledger had");
}

/// A guest whose /run is full fences, as one whose /run is read-only: it says that it keeps no record.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_full_run() {
    let lab = AgentLab::new(23_480);
    let agent = lab.agent_with_full_run(&["-o", "off", "-n", "vm1", "-t", "30"]);
    let request = lab.receive_request();
    assert_eq!(port(&request), lab.port, "a firewall lets no other one in");
    call_back(&lab, HostKind::Named, &request).unwrap().write_all(&[0]).unwrap();
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let said = text(&done.stderr);
    assert!(said.contains("cannot record which port is in use") && said.contains("No space left"), "{said}");
}

/// Beside one of our hosts, a C host is hung up on once, as it may call for the killed agent's request. What
/// our host says is not taken before the C host has called again. `None`: it does not.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_c_host_that_was_hung_up_on() {
    const OURS: [u8; 4] = [127, 0, 0, 9];
    const LONG: &str = "60";
    let lists = [encode_list(&[("a", "1", true)]), encode_list(&[("b", "2", true)])];
    let [list_a, list_b] = lists.each_ref().map(Vec::as_slice);
    let responses = [[0], [1], [2]];
    let [success, failure, off] = responses.each_ref().map(|it| &it[..]);
    let cases = [
        ("list", LONG, list_a, Some(list_b), 0),
        ("list", "2", list_a, None, 1),
        ("status", LONG, failure, Some(off), 2),
        ("status", LONG, off, Some(success), 0),
        ("status", "2", off, None, 2),
        ("off", LONG, failure, Some(success), 0),
    ];
    let mut ports = (23_500..).step_by(50);
    run_at_once(cases.map(|(action, timeout, ours, c_host, code)| {
        let port = ports.next().unwrap();
        move || {
            let lab = AgentLab::new(port);
            let mut killed = lab.agent(&["-o", "status", "-n", "vm1"]);
            lab.receive_request();
            killed.kill().unwrap();
            killed.wait().unwrap();
            lab.drain();
            let agent = lab.agent(&["-o", action, "-n", "vm2", "-t", timeout, "-q", "2"]);
            let request = lab.receive_request();
            assert!(call_back(&lab, HostKind::Classic, &request).is_none(), "it may be for the killed agent");
            call_back_from(&lab, HostKind::Named, &request, OURS).unwrap().write_all(ours).unwrap();
            if let Some(response) = c_host {
                let again = lab.receive_request();
                assert_ne!(again.sequence, request.sequence);
                let stream = call_back(&lab, HostKind::Classic, &again);
                stream.expect("the agent waits").write_all(response).unwrap();
            }
            let done = finish(agent);
            let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
            assert_eq!(done.status.code(), Some(code), "{action}: {stdout}{stderr}");
            if action == "list" {
                let rows: Vec<_> = stdout.lines().map(|it| &it[..1]).collect();
                assert_eq!(rows, if code == 0 { vec!["a", "b"] } else { vec!["a"] }, "{stderr}");
                let named = "the list is not complete\n  127.0.0.1: did not call again";
                assert_eq!(stderr.contains(named), code == 1, "{stderr}");
            }
        }
    }));
}

/// Asks for an off, lets a C host call back for an older request and then for this one, and returns how often
/// it had to.
fn calls_until_believed(lab: &AgentLab, older: &Request) -> u32 {
    let agent = lab.agent(&["-o", "off", "-n", "vm2"]);
    let mut request = lab.receive_request();
    assert_eq!(port(&request), lab.port);
    // The host does nothing for the older one, and serves each sequence number once.
    assert!(call_back(lab, HostKind::Classic, older).is_none(), "the answer to another request");
    let mut calls = 2;
    let mut stream = loop {
        if let Some(stream) = call_back(lab, HostKind::Classic, &request) {
            break stream;
        }
        calls += 1;
        assert!(calls < 100, "the agent never believes its own call-back");
        let sequence = request.sequence;
        request = loop {
            let next = lab.receive_request();
            if next.sequence != sequence {
                break next;
            }
        };
    };
    stream.write_all(&[0]).unwrap();
    assert_eq!(finish(agent).status.code(), Some(0));
    calls
}

/// Eight agents use one port, and all are called back before one of them is answered.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_eight_at_once() {
    let lab = AgentLab::new(23_100);
    let agents: Vec<_> =
        (0..8).map(|n| lab.agent(&["-o", "off", "-n", &format!("vm{n}"), "-q", "1"])).collect();
    let mut held: Vec<(Request, TcpStream, fence_wire::HostAwaitAnswer<'static>)> = Vec::new();
    while held.len() < 8 {
        let request = lab.receive_request();
        if port(&request) != lab.port || held.iter().any(|it| run_of(&it.0) == run_of(&request)) {
            continue;
        }
        let stream = lab.call_back(&request);
        let answered = lab.prove_host(&stream);
        held.push((request, stream, answered));
    }
    for (request, mut stream, answered) in held {
        let c2 = challenge_of(&lab, HostKind::Named, &request);
        let proven = answered.challenge(&c2).unwrap();
        stream.write_all(&c2).unwrap();
        let mut answer = [0; 64];
        stream.read_exact(&mut answer).unwrap();
        let _ = proven.verify(&answer).unwrap();
        stream.write_all(&[0]).unwrap();
    }
    for agent in agents {
        let done = finish(agent);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    }
}

/// Search for an answer that reaches another request: hosts as the C one, in order, one call-back for each
/// datagram unless they have just answered an equal one, now and then away or slow; agents that are killed,
/// time out, or run beside each other. The domains' names say their states.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_search() {
    const SECONDS: u64 = 12;
    let seed = std::env::var("UNIT_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(4711);
    let kinds: [&'static [HostKind]; 4] = [
        &[HostKind::Classic],
        &[HostKind::Classic],
        &[HostKind::Named],
        &[HostKind::Classic, HostKind::Classic],
    ];
    let mut places = (0..).zip(kinds);
    run_at_once([(); 4].map(|()| {
        let (n, kinds) = places.next().unwrap();
        move || search(23_200 + 50 * u16::try_from(n).unwrap(), seed + n, kinds, SECONDS)
    }));
}

fn search(port: u16, seed: u64, kinds: &[HostKind], seconds: u64) {
    let labs: Vec<_> = kinds.iter().map(|_| AgentLab::new(port)).collect();
    let is_over = AtomicBool::new(false);
    let answered = Mutex::new([0_u32; 2]);
    std::thread::scope(|scope| {
        for ((lab, kind), n) in labs.iter().zip(kinds).zip(1..) {
            let is_over = &is_over;
            scope.spawn(move || simulate_host(lab, seed + u64::from(n), *kind, [127, 0, 0, n], is_over));
        }
        let agents: Vec<_> = (0..3)
            .map(|n| {
                let (lab, answered) = (&labs[0], &answered);
                let times = 1..1 + 3 * kinds.len();
                scope.spawn(move || {
                    ask_at_random(lab, SmallRng::seed_from_u64(seed * 7 + n), times, seconds, answered)
                })
            })
            .collect();
        let wrong: Vec<String> = agents.into_iter().flat_map(|it| it.join().unwrap()).collect();
        is_over.store(true, Relaxed);
        let [right, lost] = *answered.lock().unwrap();
        assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
        assert!(right > 3, "seed {seed}: {right} answers, {lost} lost");
    });
}

fn simulate_host(lab: &AgentLab, seed: u64, kind: HostKind, from: [u8; 4], is_over: &AtomicBool) {
    /// Time for which the C daemon drops what it has answered.
    const HISTORY: Duration = Duration::from_secs(10);
    let mut random = SmallRng::seed_from_u64(seed);
    let mut answered: VecDeque<(u32, Instant)> = VecDeque::new();
    while !is_over.load(Relaxed) {
        if !lab.socket_is_readable(Duration::from_millis(50)) {
            continue;
        }
        // Away for a moment: requests queue up, and some of their agents go.
        if random.random_range(0..8) == 0 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        }
        let request = lab.receive_request_with(HashType::Sha256);
        answered.retain(|(_, at)| at.elapsed() < HISTORY);
        if answered.iter().any(|(sequence, _)| *sequence == request.sequence) {
            continue;
        }
        // A loaded host: the agent sends again before the call-back comes.
        if random.random_range(0..4) == 0 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..40)));
        }
        let state: u8 = if request.target.as_str().ends_with("on") { 0 } else { 2 };
        if let Some(mut stream) = call_back_from(lab, kind, &request, from) {
            if random.random_range(0..10) == 0 {
                std::thread::sleep(Duration::from_millis(random.random_range(0..800)));
            }
            let _ = stream.write_all(&[state]);
            answered.push_back((request.sequence, Instant::now()));
        }
    }
}

/// Asks again and again, and returns each answer that is another request's.
fn ask_at_random(
    lab: &AgentLab,
    mut random: impl Rng,
    times: Range<usize>,
    seconds: u64,
    answered: &Mutex<[u32; 2]>,
) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut wrong = Vec::new();
    while Instant::now() < end {
        let is_on = random.random_range(0..2) == 0;
        let name = format!("vm{}-{}", random.random_range(0..100), if is_on { "on" } else { "off" });
        let time = random.random_range(times.clone()).to_string();
        let mut agent = lab.agent(&["-o", "status", "-n", &name, "-t", &time, "-r", "5", "-q", "1"]);
        if random.random_range(0..3) == 0 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
            let _ = agent.kill();
            let _ = agent.wait();
            continue;
        }
        let done = finish(agent);
        let code = done.status.code();
        let mut answered = answered.lock().unwrap();
        match code {
            Some(0 | 2) if (code == Some(0)) == is_on => answered[0] += 1,
            Some(1) => answered[1] += 1,
            _ => wrong.push(format!("{name}: {done:?}")),
        }
    }
    wrong
}
