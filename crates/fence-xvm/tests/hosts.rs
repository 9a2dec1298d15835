// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent with several hosts on one network: merged lists, and hosts that do not run the domain.
//!
//! The tests need root: they run themselves again under unshare(1), see `common`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod common;

use common::*;

#[test]
fn in_a_namespace() {
    run_in_a_namespace();
}

const ON_A: (&str, &str, bool) = ("a", "1", true);
const ON_B: (&str, &str, bool) = ("b", "2", true);
const OFF_B: (&str, &str, bool) = ("b", "2", false);
const OFF_C: (&str, &str, bool) = ("c", "3", false);
const ROW_A: &str = "a                                1 on\n";
const ROW_B: &str = "b                                2 on\n";
const ROW_C: &str = "c                                3 off\n";
/// Quiet time of 10 s, far more than the tests take, so that they wait for events and not for its end.
const LONG: &str = "100";

// Lists.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_three_hosts() {
    let lab = AgentLab::new(21_000);
    let mut agent = lab.agent(&["-o", "list", "-q", "10"]);
    let request = lab.receive_request();
    // All hosts get the proof at once, and none waits for another.
    let mut hosts = [
        lab.call_back_until_proof(&request),
        lab.call_back_until_proof(&request),
        lab.call_back_until_proof(&request),
    ];
    hosts[2].write_all(&encode_list(&[ON_A, OFF_B])).unwrap();
    // Rows that no other host can change are printed as they come.
    let mut first = [0; ROW_A.len()];
    agent.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, ROW_A.as_bytes());
    hosts[0].write_all(&encode_list(&[OFF_C, ON_A])).unwrap();
    hosts[1].write_all(&encode_list(&[ON_B])).unwrap();
    let done = finish(agent);
    assert_eq!(
        (text(&done.stdout), text(&done.stderr), done.status.code()),
        (format!("{ROW_B}{ROW_C}"), String::new(), Some(0))
    );
}

/// One host with two addresses, or two hosts that know the same domains: each domain has one row.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_duplicates() {
    let lab = AgentLab::new(21_050);
    for (first, second) in [(ON_B, OFF_B), (OFF_B, ON_B)] {
        let agent = lab.agent(&["-o", "list-status", "-q", "10"]);
        let request = lab.receive_request();
        // Both have proved themselves before one answers, so the agent waits for both.
        let mut hosts = [lab.call_back_until_proof(&request), lab.call_back_until_proof(&request)];
        hosts[0].write_all(&encode_list(&[first, OFF_C])).unwrap();
        hosts[1].write_all(&encode_list(&[second, OFF_C])).unwrap();
        let done = finish(agent);
        assert_eq!((text(&done.stdout), done.status.code()), (format!("{ROW_B}{ROW_C}"), Some(0)));
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_quiet_time() {
    let lab = AgentLab::new(21_100);
    // One host alone: the agent ends soon after its list, although there are 30 s, and does not ask again.
    let agent = lab.agent(&["-o", "list", "-r", "1"]);
    let request = lab.receive_request();
    let start = Instant::now();
    lab.answer(&request, &encode_list(&[ON_A]));
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (ROW_A, Some(0)));
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(25));
    lab.drain();
    // Without a quiet time only the first list counts.
    let agent = lab.agent(&["-o", "list", "-q", "0"]);
    let request = lab.receive_request();
    lab.answer(&request, &encode_list(&[ON_A]));
    assert_eq!(text(&finish(agent).stdout), ROW_A);
    // A later host finds no listener.
    let call_back = request.call_back.unwrap();
    assert!(TcpStream::connect((call_back.address, call_back.port)).is_err());
    // Each host that has ended starts the quiet time again.
    let agent = lab.agent(&["-o", "list", "-q", "40"]);
    let request = lab.receive_request();
    lab.answer(&request, &encode_list(&[ON_A]));
    for host in [ON_B, OFF_C] {
        std::thread::sleep(Duration::from_millis(2100));
        lab.answer(&request, &encode_list(&[host]));
    }
    assert_eq!(text(&finish(agent).stdout), format!("{ROW_A}{ROW_B}{ROW_C}"));
    // The quiet time never lasts beyond the time-out.
    let agent = lab.agent(&["-o", "list", "-q", "600", "-t", "5"]);
    let start = Instant::now();
    lab.answer(&lab.receive_request(), &encode_list(&[ON_A]));
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (ROW_A, Some(0)));
    assert!(start.elapsed() < Duration::from_secs(50));
}

/// The agent waits for a proven host that is slower than the quiet time.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_slow_host_is_waited_for() {
    let lab = AgentLab::new(21_150);
    let agent = lab.agent(&["-o", "list"]);
    let request = lab.receive_request();
    let mut slow = lab.call_back_until_proof(&request);
    lab.answer(&request, &encode_list(&[ON_A]));
    std::thread::sleep(Duration::from_millis(1500));
    slow.write_all(&encode_list(&[ON_B])).unwrap();
    let done = finish(agent);
    assert_eq!((text(&done.stdout), done.status.code()), (format!("{ROW_A}{ROW_B}"), Some(0)));
}

/// A partial list must not look complete: rows of whole lists, a message about the others, exit code 1.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_lists_that_break_off() {
    let whole = encode_list(&[ON_B, OFF_C]);
    let cut_off = &whole[..whole.len() - 131];
    let breaks_off = &|port: u16, response: &[u8], expected: &str| {
        let lab = AgentLab::new(port);
        for broken_first in [true, false] {
            let agent = lab.agent(&["-o", "list", "-q", "40"]);
            let request = lab.receive_request();
            let address = [127, 0, 0, 9];
            let mut broken = lab.call_back_from(&request, address);
            let answer = |broken: &mut TcpStream| {
                respond(broken, lab.prove_host(broken), response);
                broken.shutdown(Shutdown::Write).unwrap();
                // The agent has read everything when it hangs up too.
                let _ = broken.read_to_end(&mut Vec::new());
            };
            if broken_first {
                answer(&mut broken);
            }
            lab.answer(&request, &encode_list(&[ON_A]));
            if !broken_first {
                answer(&mut broken);
            }
            let done = finish(agent);
            let stderr = text(&done.stderr);
            assert_eq!((text(&done.stdout).as_str(), done.status.code()), (ROW_A, Some(1)), "{stderr}");
            assert!(stderr.contains("not complete") && stderr.contains("127.0.0.9: "), "{stderr}");
            assert!(stderr.contains(expected), "{stderr}");
            lab.end_quarantine();
        }
    };
    let cases: [(&[u8], &str); 5] = [
        (cut_off, "the list broke off after 2 entries"),
        (&whole[..100], "the list broke off after 0 entries"),
        (&[1], "answered with failure"),
        (&[0], "sent none"),
        (&[], "closed without a response"),
    ];
    let mut ports = (22_500..).step_by(50);
    run_at_once(cases.map(|(response, expected)| {
        let port = ports.next().unwrap();
        move || breaks_off(port, response, expected)
    }));
}

/// A silent proven host delays the lists of other hosts for seconds only.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_host_that_stalls() {
    let lab = AgentLab::new(21_250);
    let agent = lab.agent(&["-o", "list", "-t", "60"]);
    let request = lab.receive_request();
    let mut stalled = lab.call_back_from(&request, [127, 0, 0, 9]);
    let start = Instant::now();
    respond(&stalled, lab.prove_host(&stalled), &encode_list(&[ON_B])[..140]);
    lab.answer(&request, &encode_list(&[ON_A]));
    let done = finish(agent);
    let stderr = text(&done.stderr);
    assert!(start.elapsed() >= Duration::from_secs(5) && start.elapsed() < Duration::from_secs(50));
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (ROW_A, Some(1)), "{stderr}");
    assert!(
        stderr.contains("127.0.0.9: silent for 5 s while it waited for the rest of the list"),
        "{stderr}"
    );
    let _ = stalled.write_all(&[0]);
}

/// The agent does not wait for unproven peers, however many connect.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_unproven_peers_do_not_delay_the_end() {
    let lab = AgentLab::new(21_300);
    let mut agent = lab.agent(&["-o", "list", "-t", "60"]);
    let request = lab.receive_request();
    let mut peers = vec![lab.call_back(&request)];
    lab.answer(&request, &encode_list(&[ON_A]));
    let start = Instant::now();
    let call_back = request.call_back.unwrap();
    while agent.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(50), "unproven peers delay the agent");
        peers.extend(TcpStream::connect((call_back.address, call_back.port)));
        std::thread::sleep(Duration::from_millis(20));
    }
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (ROW_A, Some(0)));
    assert_eq!(text(&done.stderr), "");
}

/// A list counts only when its own host has proved that it holds the key.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_lists_of_unproven_peers() {
    let lab = AgentLab::new(21_350);
    let agent = lab.agent(&["-o", "list", "-q", "10"]);
    let request = lab.receive_request();
    let mut peer = lab.call_back(&request);
    lab.answer(&request, &encode_list(&[ON_A]));
    let _ = peer.write_all(&[&[7; 128][..], &encode_list(&[ON_B])].concat());
    let mut rest = Vec::new();
    let _ = peer.read_to_end(&mut rest);
    assert!(rest.len() <= 64, "an unproven peer got our proof");
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (ROW_A, Some(0)));
}

/// A terminal gets one sorted table.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_terminal() {
    let lab = AgentLab::new(21_400);
    let terminal = nix::pty::openpty(None, None).unwrap();
    let (port, key) = (lab.port.to_string(), lab.key_file());
    let agent = Command::new(AGENT)
        .arg0("fence_xvm")
        .args(["-p", &port, "-k", &key, "-o", "list", "-q", "10"])
        .stdin(Stdio::null())
        .stdout(terminal.slave)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let request = lab.receive_request();
    let mut hosts = [lab.call_back_until_proof(&request), lab.call_back_until_proof(&request)];
    hosts[0].write_all(&encode_list(&[OFF_C, ON_B])).unwrap();
    hosts[1].write_all(&encode_list(&[ON_A])).unwrap();
    assert_eq!(finish(agent).status.code(), Some(0));
    let mut shown = Vec::new();
    // The error of a terminal whose other end is closed.
    let _ = File::from(terminal.master).read_to_end(&mut shown);
    assert_eq!(text(&shown).replace("\r\n", "\n"), format!("{ROW_A}{ROW_B}{ROW_C}"));
}

/// A host that denies the list has no domain for this guest, so none is missing.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_list_that_is_denied() {
    let lab = AgentLab::new(21_450);
    for (responses, out, code) in [
        (vec![vec![3], encode_list(&[ON_A])], ROW_A, 0),
        (vec![encode_list(&[ON_A]), vec![3]], ROW_A, 0),
        (vec![vec![3]], "", 3),
    ] {
        let agent = lab.agent(&["-o", "list", "-q", "5"]);
        let request = lab.receive_request();
        let hosts: Vec<_> = responses.iter().map(|_| lab.call_back_until_proof(&request)).collect();
        for (mut host, response) in hosts.iter().zip(&responses) {
            host.write_all(response).unwrap();
        }
        let done = finish(agent);
        assert_eq!((text(&done.stdout).as_str(), done.status.code()), (out, Some(code)), "{done:?}");
    }
}

// Hosts that do not run the domain.

/// A host refuses at once, and the owner carries the request out.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_an_early_refusal_is_not_final() {
    let lab = AgentLab::new(21_500);
    for action in ["off", "on", "reboot", "status"] {
        for refusal in [1, 3] {
            for yes in if action == "status" { vec![0, 2] } else { vec![0] } {
                // The owner is in the backlog already, or calls back a little later.
                for waiting in [true, false] {
                    let agent = lab.agent(&["-o", action, "-n", "vm1", "-q", LONG]);
                    let request = lab.receive_request();
                    let other = lab.call_back(&request);
                    let owner = waiting.then(|| lab.call_back(&request));
                    respond(&other, lab.prove_host(&other), &[refusal]);
                    assert_eq!((&other).read(&mut [0]).unwrap(), 0, "the agent hung up");
                    let owner = owner.unwrap_or_else(|| lab.call_back(&request));
                    respond(&owner, lab.prove_host(&owner), &[yes]);
                    assert_eq!(
                        finish(agent).status.code(),
                        Some(i32::from(yes)),
                        "{action} {refusal} {waiting}"
                    );
                }
            }
        }
    }
}

/// All hosts refuse: the first refusal counts, soon, and the request is not sent again.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_only_refusals() {
    let only_refusals = &|port: u16, refusals: &[u8]| {
        let lab = AgentLab::new(port);
        let agent = lab.agent(&["-o", "off", "-n", "vm1", "-r", "1", "-q", "40"]);
        let start = Instant::now();
        let request = lab.receive_request();
        for refusal in refusals {
            lab.answer(&request, &[*refusal]);
        }
        lab.drain();
        let code = if refusals[0] == 3 { 3 } else { 1 };
        assert_eq!(finish(agent).status.code(), Some(code), "{refusals:?}");
        assert!(start.elapsed() < Duration::from_secs(25));
        assert!(!lab.socket_is_readable(Duration::from_millis(1)), "sent again");
    };
    let cases: [&[u8]; 6] = [&[1], &[3], &[3, 1], &[1, 3], &[1, 253], &[253, 1]];
    let mut ports = (22_750..).step_by(50);
    run_at_once(cases.map(|refusals| {
        let port = ports.next().unwrap();
        move || only_refusals(port, refusals)
    }));
}

/// A late failure comes from a host that tried: it is the result, even if another host waits.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_late_failure_is_final() {
    let lab = AgentLab::new(21_600);
    let agent = lab.agent(&["-o", "off", "-n", "vm1"]);
    let request = lab.receive_request();
    let mut owner = lab.call_back_until_proof(&request);
    let stale = lab.call_back(&request);
    let held = lab.prove_host(&stale);
    let _proven = held.challenge(&[2; 64]).unwrap();
    (&stale).write_all(&[2; 64]).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    owner.write_all(&[1]).unwrap();
    let mut proof = Vec::new();
    let _ = (&stale).read_to_end(&mut proof);
    assert_eq!(proof, [0; 0], "a host that may know the domain as off got our proof");
    assert_eq!(finish(agent).status.code(), Some(1));
}

/// The owner has called back and waits for our proof: the agent waits for it longer than the quiet time.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_an_owner_that_waits_for_our_proof() {
    let lab = AgentLab::new(21_650);
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-q", "20"]);
    let request = lab.receive_request();
    let owner = lab.call_back(&request);
    let held = lab.prove_host(&owner);
    lab.answer(&request, &[1]);
    std::thread::sleep(Duration::from_millis(2500));
    respond(&owner, held, &[0]);
    assert_eq!(finish(agent).status.code(), Some(0));
    // A host with the permission to act sends no response in time: the result is not known, whatever the
    // other answered.
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-q", LONG, "-t", "6"]);
    let request = lab.receive_request();
    lab.answer(&request, &[3]);
    let _owner = lab.call_back_until_proof(&request);
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("Timed out"), "{done:?}");
}

/// For these actions no answer is better than another: the first proven answer counts.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_first_answer_to_monitor_counts() {
    let lab = AgentLab::new(21_700);
    for (action, response, code) in [("monitor", 1, 1), ("monitor", 0, 0), ("monitor", 3, 3), ("null", 1, 1)]
    {
        let agent = lab.agent(&["-o", action, "-q", "600"]);
        let start = Instant::now();
        lab.answer(&lab.receive_request(), &[response]);
        assert_eq!(finish(agent).status.code(), Some(code));
        assert!(start.elapsed() < Duration::from_secs(25));
    }
}

// Diagnosis.

/// A look at other hosts takes longer than the first question.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_diagnose_waits_longer_for_a_host_that_works() {
    let lab = AgentLab::new(21_900);
    for time in [&[][..], &["-t", "1"]] {
        let mut agent = lab.agent(&[&["--diagnose", "-n", "vm1"], time].concat());
        let request = lab.receive_request();
        let held = lab.call_back(&request);
        lab.prove_host(&held);
        if !time.is_empty() {
            // Named by the user.
            let said = text(&finish(agent).stdout);
            assert!(said.contains("has not let the request run") && !said.contains("asked again"), "{said}");
            continue;
        }
        // Sealed, since only such a request gets the reason.
        let again = lab.receive_request_with(fence_wire::HashType::HmacSha256);
        assert_eq!(again.target, request.target);
        agent.kill().unwrap();
        let said = text(&finish(agent).stdout);
        assert!(said.contains("asked again, for 20 s at most") && !said.contains("cause:"), "{said}");
    }
}
