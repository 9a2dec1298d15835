// SPDX-License-Identifier: GPL-2.0-or-later
//! Streams that end without an answer: the agent asks again within its time.
//!
//! The tests need root: they run themselves again under unshare(1), see `common`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fence_wire::{CallRole, ClientRun, Request, draw_named_challenge};
use rand::TryRng;
use rand::rngs::SysRng;

mod common;

use common::*;

#[test]
fn in_a_namespace() {
    run_in_a_namespace();
}

fn run_of(request: &Request) -> ClientRun {
    ClientRun::of(request.sequence, request.nonce)
}

/// Calls back as our hosts do, up to the agent's proof.
fn call_back(lab: &AgentLab, request: &Request) -> TcpStream {
    let mut stream = lab.call_back(request);
    let held = lab.prove_host(&stream);
    let fill = |bytes: &mut [u8]| SysRng.try_fill_bytes(bytes);
    let c2 = draw_named_challenge(&lab.key(), CallRole::Host, run_of(request), fill).unwrap();
    let proven = held.challenge(&c2).unwrap();
    stream.write_all(&c2).unwrap();
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).unwrap();
    let _ = proven.verify(&answer).unwrap();
    stream
}

fn succeed(lab: &AgentLab, request: &Request) {
    call_back(lab, request).write_all(&[0]).unwrap();
}

/// Receives a request of this run with another sequence number.
fn receive_anew(lab: &AgentLab, older: &Request) -> Request {
    loop {
        let request = lab.receive_request();
        if run_of(&request) == run_of(older) && request.sequence != older.sequence {
            return request;
        }
    }
}

/// The host takes the proof and dies, or loses the answer.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_host_that_hangs_up() {
    let lab = AgentLab::new(24_000);
    // A repetition is due after 30 s, see `common`.
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-t", "20"]);
    let request = lab.receive_request();
    let begun = Instant::now();
    drop(call_back(&lab, &request));
    succeed(&lab, &receive_anew(&lab, &request));
    let done = finish(agent);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// The stream ends while another agent has the turn: the first one takes the turn again.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_host_that_hangs_up_after_the_turn_was_passed_on() {
    let lab = AgentLab::new(24_050);
    let first = lab.agent(&["-o", "off", "-n", "vm1", "-t", "20"]);
    let request = lab.receive_request();
    let second = lab.agent(&["-o", "status", "-n", "vm2", "-t", "20"]);
    let stream = call_back(&lab, &request);
    let others = loop {
        let others = lab.receive_request();
        if run_of(&others) != run_of(&request) {
            break others;
        }
    };
    drop(stream);
    succeed(&lab, &others);
    assert_eq!(finish(second).status.code(), Some(0));
    succeed(&lab, &receive_anew(&lab, &request));
    let done = finish(first);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
}

/// A host that always hangs up is not asked without a pause.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_host_that_always_hangs_up() {
    let lab = AgentLab::new(24_100);
    let agent = lab.agent(&["-o", "off", "-n", "vm1", "-r", "10", "-t", "4"]);
    let mut request = lab.receive_request();
    drop(call_back(&lab, &request));
    let mut asked = 1;
    while lab.socket_is_readable(Duration::from_secs(2)) {
        let next = lab.receive_request();
        if next.sequence != request.sequence {
            request = next;
            asked += 1;
            drop(call_back(&lab, &request));
        }
    }
    assert_eq!(finish(agent).status.code(), Some(1));
    assert!((3..=6).contains(&asked), "asked {asked} times in 4 s");
}
