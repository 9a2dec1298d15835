// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent with correct and faulty hosts.
//!
//! The tests need root: they run themselves again under unshare(1), see `common`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use fence_wire::{
    Action, ClassicHash, HOST_LIST_END, HashType, HostAwaitChallenge, HostListEntry, Key, REQUEST_LEN,
    Request,
};

mod common;

use common::*;

#[test]
fn in_a_namespace() {
    run_in_a_namespace();
}

// Ordinary requests.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_responses() {
    let lab = AgentLab::new(20_000);
    for (action, response, out, code) in [
        ("status", 0, "Status: ON\n", 0),
        ("status", 2, "Status: OFF\n", 2),
        ("status", 1, "", 1),
        ("off", 0, "", 0),
        ("on", 0, "", 0),
        ("reboot", 1, "", 1),
        ("off", 3, "", 3),
        ("off", 2, "", 1),
    ] {
        let agent = lab.agent(&["-o", action, "-n", "vm1"]);
        let request = lab.receive_request();
        assert_eq!((request.action.name(), request.target.as_str()), (action, "vm1"));
        lab.answer(&request, &[response]);
        let done = finish(agent);
        assert_eq!(
            (text(&done.stdout), done.status.code()),
            (out.to_owned(), Some(code)),
            "{action} {done:?}"
        );
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_list() {
    let lab = AgentLab::new(20_050);
    let mut bytes = vec![253];
    for (name, on) in [("vm 1", true), ("evil\x1b[2J\n", false)] {
        let entry = HostListEntry { name: name.to_owned(), uuid: "11-22".to_owned(), on };
        bytes.extend(entry.encode());
    }
    bytes.extend(HOST_LIST_END);
    let rows = "vm 1                             11-22 on\nevil\\x1b[2J\\x0a                  11-22 off\n";
    for last in [&[0][..], &[]] {
        let agent = lab.agent(&["-o", "list"]);
        let request = lab.receive_request();
        assert_eq!(request.action, Action::List);
        lab.answer(&request, &[&bytes, last].concat());
        let done = finish(agent);
        assert_eq!((text(&done.stdout).as_str(), done.status.code()), (rows, Some(0)));
    }
    // A host that leaves the stream open after the list, as the C daemon may while it is busy.
    let agent = lab.agent(&["-o", "list-status", "-t", "60"]);
    let mut open = lab.call_back_until_proof(&lab.receive_request());
    open.write_all(&bytes).unwrap();
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), (rows, Some(0)));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_reader_that_has_gone() {
    let lab = AgentLab::new(20_900);
    let entry = HostListEntry { name: "vm1".to_owned(), uuid: "11-22".to_owned(), on: true };
    let list = [&[253][..], &entry.encode(), &HOST_LIST_END, &[0]].concat();
    for (arguments, answer, code) in [
        (&["-o", "list"][..], &list[..], 0),
        (&["-o", "status", "-n", "vm1"], &[0], 0),
        (&["-o", "status", "-n", "vm1"], &[2], 2),
    ] {
        let mut agent = lab.agent(arguments);
        // As `| grep -q` does when it has seen enough.
        drop(agent.stdout.take());
        lab.answer(&lab.receive_request(), answer);
        let done = finish(agent);
        assert_eq!((text(&done.stderr).as_str(), done.status.code()), ("", Some(code)), "{arguments:?}");
    }
    let mut agent = lab.run(&["--help"]);
    drop(agent.stdout.take());
    let done = finish(agent);
    assert_eq!((text(&done.stderr).as_str(), done.status.code()), ("", Some(0)));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_retransmissions_are_one_request() {
    let lab = AgentLab::new(20_100);
    let mut agent = lab.agent(&["-o", "off", "-n", "vm1", "-r", "1", "-t", "60"]);
    let requests: Vec<_> = (0..4).map(|_| lab.receive_request()).collect();
    for request in &requests {
        assert_eq!(request.sequence, requests[0].sequence);
        assert_eq!(request.call_back.unwrap().address, IpAddr::from([127, 0, 0, 1]));
    }
    let mut nonces: Vec<_> = requests.iter().map(|r| r.nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), requests.len());
    // Another host may be the owner: a call-back that does not go on stops nothing.
    let silent = lab.call_back(&requests[0]);
    let _held = lab.prove_host(&silent);
    lab.drain();
    lab.receive_request();
    // A slow host with the permission to act is not asked again.
    let mut acting = lab.call_back_until_proof(&requests[0]);
    lab.drain();
    assert!(!lab.socket_is_readable(Duration::from_millis(500)));
    acting.write_all(&[0]).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_without_a_key() {
    let lab = AgentLab::new(20_150);
    let agent = lab.run(&["-c", "none", "-C", "none", "-k", "/nonexistent", "-o", "status", "-n", "vm1"]);
    let request = lab.receive_request_with(HashType::None);
    lab.call_back(&request).write_all(&[2]).unwrap();
    assert_eq!(finish(agent).status.code(), Some(2));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_ipv6() {
    let lab = AgentLab::in_group(20_200, "ff05::3:1");
    let agent = lab.agent(&["-i", "ipv6", "-o", "status", "-n", "vm1"]);
    let request = lab.receive_request();
    assert_eq!(request.call_back.unwrap().address, "fd09::1".parse::<IpAddr>().unwrap());
    lab.answer(&request, &[0]);
    assert_eq!(finish(agent).status.code(), Some(0));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_stdin() {
    let lab = AgentLab::new(20_250);
    let options =
        |rest: &str| format!("ipport={}\nkey_file={}\ntimeout=10\n{rest}", lab.port, lab.key_file());
    let agent = lab.with_stdin(&options("action=off\nport=vm1\nplug=vm1\nnodename=node1\nbogus=1\n"));
    let request = lab.receive_request();
    assert_eq!((request.action, request.target.as_str()), (Action::Off, "vm1"));
    lab.answer(&request, &[0]);
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(text(&done.stderr), "fence_xvm: ignoring unknown option 'bogus' on standard input\n");

    for wrong in
        ["action\nplug=vm1", "port=a\nplug=b", "action=off", "timeout=0\nplug=a", "action=explode\nplug=a"]
    {
        let done = finish(lab.with_stdin(&options(wrong)));
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0), "{wrong}");
        assert!(!done.stderr.is_empty());
    }
    assert!(!lab.socket_is_readable(Duration::from_millis(10)), "asked although the options are wrong");
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_delay() {
    let lab = AgentLab::new(20_300);
    let start = Instant::now();
    let agent = lab.agent(&["-w", "6", "-t", "5", "-o", "off", "-n", "vm1"]);
    lab.answer(&lab.receive_request(), &[0]);
    assert!(start.elapsed() >= Duration::from_secs(6));
    assert_eq!(finish(agent).status.code(), Some(0));
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_keys_that_are_refused() {
    let lab = AgentLab::new(20_350);
    let path = lab.scratch.path().join("other");
    let other = path.to_str().unwrap();
    let refused = |expected: &str| {
        let done = finish(lab.run(&["-k", other, "-o", "off", "-n", "vm1"]));
        assert_eq!(done.status.code(), Some(1));
        assert!(text(&done.stderr).contains(expected), "{done:?}");
    };
    refused(&format!("key file {other} does not exist; copy it from a machine that has it"));
    fs::write(&path, KEY).unwrap();
    // One of root's that every user can only read is used, with a warning: `fence-cli` has the cases.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    refused("chmod 600");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "").unwrap();
    refused("has 0 bytes");
    assert!(!lab.socket_is_readable(Duration::from_millis(10)), "asked without a key");
}

// Time.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_no_host() {
    let lab = AgentLab::new(20_400);
    let start = Instant::now();
    let done = finish(lab.agent(&["-o", "off", "-n", "vm1", "-t", "1", "-r", "3"]));
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < PATIENCE);
    assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0));
    let stderr = text(&done.stderr);
    assert!(stderr.contains("Timed out waiting for response"), "{stderr}");
    // A cluster manager, whose options come on standard input, reads the same words, and so knows the reason.
    let asked =
        format!("ipport={}\nkey_file={}\ntimeout=1\naction=off\nplug=vm1\n", lab.port, lab.key_file());
    let managed = finish(lab.with_stdin(&asked));
    assert!(text(&managed.stderr).contains("Timed out waiting for response"), "{managed:?}");
    // One datagram for each repetition in the time: at 0, 0.3, 0.6 and 0.9 s.
    assert!((1..=4).any(|it| stderr.contains(&format!("lo 127.0.0.1: {it} sent"))), "{stderr}");
    assert!(stderr.contains(&Key::new(KEY).unwrap().fingerprint()), "{stderr}");
    assert!(stderr.lines().count() <= 10, "{stderr}");
}

/// Hosts that stop at each step: the deadline holds, and the message names the step.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_hosts_that_stall() {
    let list_start = [&[253][..], &[b'x'; 130], &[b'x'; 50]].concat();
    let stalls = &|stage: u16, action: &str, expected: &str| {
        let lab = AgentLab::new(22_000 + 50 * stage);
        let agent = lab.agent(&["-o", action, "-n", "vm1", "-t", "5"]);
        let mut stream = lab.call_back(&lab.receive_request());
        let start = Instant::now();
        match stage {
            0 => {}
            1 => stream.write_all(&[0; 63]).unwrap(),
            2 => drop(lab.prove_host(&stream)),
            3 => {
                let _held = lab.prove_host(&stream);
                stream.write_all(&[1; 63]).unwrap();
            }
            4 => respond(&stream, lab.prove_host(&stream), &[]),
            _ => respond(&stream, lab.prove_host(&stream), &list_start),
        }
        let done = finish(agent);
        assert!(start.elapsed() < PATIENCE, "stage {stage}");
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0), "stage {stage}");
        let stderr = text(&done.stderr);
        assert!(stderr.contains("Timed out") && stderr.contains(expected), "stage {stage}: {stderr}");
    };
    // All run at once, because each waits most of its time.
    run_at_once(
        [
            (0, "off", "step 2"),
            (1, "off", "step 2"),
            (2, "off", "step 3"),
            (3, "off", "step 3"),
            (4, "off", "its response"),
            (5, "list", "the rest of the list"),
        ]
        .map(|(stage, action, expected)| move || stalls(stage, action, expected)),
    );
}

// No false success.

/// Hosts without the key do not keep the host with the key from answering.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_impostors() {
    let lab = AgentLab::new(20_500);
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-t", "60"]);
    let request = lab.receive_request();
    let stalled = lab.call_back(&request);
    let mut wrong = lab.call_back(&request);
    wrong.write_all(&[0; 64]).unwrap();
    // Success without any proof.
    let mut early = lab.call_back(&request);
    early.write_all(&[0]).unwrap();
    early.shutdown(Shutdown::Write).unwrap();
    drop(lab.call_back(&request));
    lab.answer(&request, &[3]);
    assert_eq!(finish(agent).status.code(), Some(3));
    drop(stalled);
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_more_callers_than_fit() {
    let lab = AgentLab::new(20_550);
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-t", "60"]);
    let request = lab.receive_request();
    let idle: Vec<_> = (0..600).map(|_| lab.call_back(&request)).collect();
    let mut challenge = Vec::new();
    let _ = (&idle[0]).read_to_end(&mut challenge);
    assert_eq!(challenge.len(), 64, "the oldest makes room while the agent waits");
    lab.answer(&request, &[0]);
    assert_eq!(finish(agent).status.code(), Some(0));
    drop(idle);
}

/// Hosts that prove themselves and then fail: there is never success, and a final failure ends the wait.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_responses_that_are_not_valid() {
    let lab = AgentLab::new(20_600);
    let entry = HostListEntry { name: "vm1".to_owned(), uuid: "1".to_owned(), on: true }.encode();
    let cut_off = [&[253][..], &entry, &entry[..100]].concat();
    let whole_list = [&[253][..], &entry, &HOST_LIST_END, &[0]].concat();
    let unended = [&[253][..], &entry].concat();
    let endless = [&[253][..], &entry.repeat(100_001)].concat();
    for (action, bytes) in [
        ("off", &whole_list[..]),
        ("off", &[253, 0]),
        ("status", &[253]),
        ("off", &[7]),
        ("monitor", &[255]),
        ("list", &[0]),
        ("list", &[253]),
        ("list", &cut_off),
        ("list", &unended),
        ("list", &endless),
    ] {
        let agent = lab.agent(&["-o", action, "-n", "vm1", "-t", "60"]);
        let start = Instant::now();
        let mut stream = lab.call_back_until_proof(&lab.receive_request());
        // The agent may hang up before the last byte.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let done = finish(agent);
        assert_eq!((done.status.code(), done.stdout.len()), (Some(1), 0), "{action} {:?}", &bytes[..1]);
        assert!(start.elapsed() < Duration::from_secs(50), "{action}");
        lab.end_quarantine();
        lab.drain();
    }
}

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_our_own_challenge_is_not_answered() {
    let lab = AgentLab::new(20_650);
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-t", "5"]);
    let mut stream = lab.call_back(&lab.receive_request());
    let mut c1 = [0; 64];
    stream.read_exact(&mut c1).unwrap();
    let key = lab.key();
    let (proof, _) = HostAwaitChallenge::classic(ClassicHash::Sha256, &key).answer(&c1).unwrap();
    stream.write_all(&proof).unwrap();
    stream.write_all(&c1).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, [0; 0]);
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("our own challenge"), "{done:?}");
}

/// Our proof is the permission to act: of two proven hosts the second gets it only when the first hung up.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_one_proof_at_a_time() {
    let lab = AgentLab::new(20_700);
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-t", "60"]);
    let request = lab.receive_request();
    let (mut first, second) = (lab.call_back(&request), lab.call_back(&request));
    let _first = lab.prove_host(&first);
    first.write_all(&[1; 64]).unwrap();
    let mut proof = [0; 64];
    first.read_exact(&mut proof).unwrap();
    let held = lab.prove_host(&second);
    let c2 = [2; 64];
    let second_proven = held.challenge(&c2).unwrap();
    (&second).write_all(&c2).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!((&second).read(&mut proof).is_err(), "two hosts have the permission to act");
    drop(first);
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    (&second).read_exact(&mut proof).unwrap();
    let _ = second_proven.verify(&proof).unwrap();
    (&second).write_all(&[0]).unwrap();
    assert_eq!(finish(agent).status.code(), Some(0));
}

// Ports.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_two_at_once() {
    let lab = AgentLab::new(20_750);
    let agents = [lab.agent(&["-o", "off", "-n", "a"]), lab.agent(&["-o", "status", "-n", "b"])];
    // One after the other has the port.
    let mut answered = Vec::new();
    while answered.len() < agents.len() {
        let request = lab.receive_request();
        if answered.contains(&request.sequence) {
            continue;
        }
        assert_eq!(request.call_back.unwrap().port, lab.port);
        lab.answer(&request, &[if request.action == Action::Off { 0 } else { 2 }]);
        answered.push(request.sequence);
    }
    let codes = agents.map(|a| finish(a).status.code());
    assert_eq!(codes, [Some(0), Some(2)]);
}

// TCP.

#[test]
#[ignore = "run by in_a_namespace"]
fn inside_tcp() {
    let lab = AgentLab::new(20_850);
    let listener = TcpListener::bind(("127.0.0.1", lab.port)).unwrap();
    let accept = || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut packet = [0; REQUEST_LEN];
        stream.read_exact(&mut packet).unwrap();
        let request = Request::decode(&packet, HashType::Sha256, &[lab.key()]).unwrap().request;
        assert_eq!(request.call_back, None);
        (stream, request)
    };
    let ask = |arguments: &[&str]| lab.spawn("fence_virt", &[&["-T127.0.0.1"], arguments].concat(), true);

    let agent = ask(&["-o", "status", "-n", "vm1"]);
    let (stream, request) = accept();
    assert_eq!((request.action, request.target.as_str()), (Action::Status, "vm1"));
    respond(&stream, lab.prove_host(&stream), &[2]);
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), ("Status: OFF\n", Some(2)));

    // By its name, which may have more addresses than the one that listens.
    let agent = ask(&["--ip=localhost", "-o", "status", "-n", "vm1"]);
    let (stream, _) = accept();
    respond(&stream, lab.prove_host(&stream), &[0]);
    let done = finish(agent);
    assert_eq!((text(&done.stdout).as_str(), done.status.code()), ("Status: ON\n", Some(0)));
    let done = finish(ask(&["-T", "no-such-host.invalid", "-o", "status", "-n", "vm1"]));
    assert!(text(&done.stderr).contains("cannot look up the host's name"), "{done:?}");
    assert_eq!(done.status.code(), Some(1));

    // The host stalls before its proof, and before its response.
    for stage in 0..2 {
        let agent = ask(&["-o", "off", "-n", "vm1", "-t", "3"]);
        let (stream, _) = accept();
        if stage == 1 {
            respond(&stream, lab.prove_host(&stream), &[]);
        }
        let done = finish(agent);
        assert_eq!(done.status.code(), Some(1));
        assert!(text(&done.stderr).contains("Timed out waiting for response"), "{done:?}");
    }
    // A wrong proof; streams that are closed before the proof, so that the host is asked again; a response
    // that is not valid.
    for (bytes, tries) in [(&[0; 64][..], 1), (&[], 4)] {
        let agent = ask(&["-o", "off", "-n", "vm1", "-t", "60"]);
        for _ in 0..tries {
            let (mut stream, _) = accept();
            stream.write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(finish(agent).status.code(), Some(1));
    }
    let agent = ask(&["-o", "off", "-n", "vm1", "-t", "60"]);
    let (stream, _) = accept();
    respond(&stream, lab.prove_host(&stream), &[253]);
    assert_eq!(finish(agent).status.code(), Some(1));
    drop(listener);
    assert_eq!(finish(ask(&["-o", "off", "-n", "vm1", "-t", "2"])).status.code(), Some(1));
}
