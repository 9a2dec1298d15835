// SPDX-License-Identifier: GPL-2.0-or-later
//! Dry runs with several hosts: a host that tells nothing in time, and what is said of it.
//!
//! The tests need root: they run themselves again under unshare(1), see `common`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fence_wire::{
    Action, CallRole, ClassicHash, ClientRun, FORECAST_UNCERTAIN, HashType, HostAwaitChallenge, HostStream,
    Key, Request, Response, draw_named_challenge,
};
use rand::TryRng;
use rand::rngs::SysRng;

mod common;

use common::*;

#[test]
fn in_a_namespace() {
    run_in_a_namespace();
}

const FIRST: [u8; 4] = [127, 0, 0, 1];
const SECOND: [u8; 4] = [127, 0, 0, 9];
/// The time of a negative_delay, and more than the agent waits for another host after a refusal.
const LATE: Duration = Duration::from_millis(1500);

/// Answer of a host to the question what an action would do.
#[derive(Clone, Copy)]
enum Said {
    Forecast(Response, &'static str),
    /// The status alone, as an older version does.
    StatusAlone,
    Nothing,
}

/// Behaviour of a host.
#[derive(Clone, Copy)]
struct Host {
    address: [u8; 4],
    /// True if its classic call-back names the request, as that of our daemon does.
    is_named: bool,
    delay: Duration,
    said: Said,
    /// Answer to a status; none where the host leaves that to others.
    status: Option<u8>,
    /// True if its list has the domain, which is on then.
    lists: bool,
    list_delay: Duration,
    /// True if it takes the hash of the cluster's own requests alone, as one that is gone a moment later.
    only_first: bool,
}

const NO: Said = Said::Forecast(Response::Failure, "the domain is on at a host that is not asked");
const YES: Said = Said::Forecast(Response::Success, "is on, and would be powered off");

impl Host {
    const fn new(address: [u8; 4], delay: Duration, said: Said) -> Self {
        let (is_named, status, lists, list_delay) = (true, Some(2), true, Duration::ZERO);
        Self { address, is_named, delay, said, status, lists, list_delay, only_first: false }
    }

    const fn first(said: Said) -> Self {
        Self::new(FIRST, Duration::ZERO, said)
    }

    const fn second(delay: Duration, said: Said) -> Self {
        Self::new(SECOND, delay, said)
    }

    /// Calls back for a classic request: a status, or a list.
    fn answer_classic(&self, lab: &AgentLab, request: &Request) -> Option<()> {
        let is_list = request.action == Action::List;
        let status = [if is_list { 0 } else { self.status? }];
        if is_list {
            std::thread::sleep(self.list_delay);
        }
        let mut stream = lab.try_call_back_from(request, self.address).ok()?;
        let mut c1 = [0; 64];
        stream.read_exact(&mut c1).ok()?;
        let key = lab.key();
        let (proof, held) = HostAwaitChallenge::classic(ClassicHash::Sha256, &key).answer(&c1).unwrap();
        stream.write_all(&proof).ok()?;
        // What lets the request run may take a moment.
        std::thread::sleep(Duration::from_millis(100));
        let fill = |bytes: &mut [u8]| SysRng.try_fill_bytes(bytes);
        let run = ClientRun::of(request.sequence, request.nonce);
        let mut c2 = draw_named_challenge(&key, CallRole::Host, run, fill).unwrap();
        if !self.is_named {
            SysRng.try_fill_bytes(&mut c2).unwrap();
        }
        let proven = held.challenge(&c2).unwrap();
        stream.write_all(&c2).ok()?;
        let mut answer = [0; 64];
        stream.read_exact(&mut answer).ok()?;
        let _ = proven.verify(&answer).unwrap();
        let list = encode_list(if self.lists { &[("vm1", "1", true)] } else { &[] });
        stream.write_all(if is_list { &list } else { &status }).ok()
    }

    /// Calls back for a sealed question, if it answers that.
    fn answer_sealed(&self, lab: &AgentLab, packet: &[u8], key: &Key) -> Option<()> {
        if matches!(self.said, Said::Nothing) {
            return None;
        }
        std::thread::sleep(self.delay);
        let received = Request::decode(packet, HashType::Sha256, std::slice::from_ref(key)).unwrap();
        let HostStream::Challenge(host) = HostStream::begin(received.sealed, None, Some(key)).unwrap() else {
            panic!("no challenge")
        };
        let mut stream: TcpStream = lab.try_call_back_from(&received.request, self.address).ok()?;
        let mut c1 = [0; 64];
        stream.read_exact(&mut c1).ok()?;
        let (proof, host) = host.answer(&c1).unwrap();
        let c2 = [9; 64];
        let host = host.challenge(&c2).unwrap();
        stream.write_all(&[&proof[..], &c2].concat()).ok()?;
        let mut answer = [0; 64];
        stream.read_exact(&mut answer).ok()?;
        let (_, writer) = host.verify(&answer).unwrap();
        let said = match self.said {
            Said::Forecast(response, words) => writer.forecast(response, words),
            _ => writer.response(Response::Off),
        };
        stream.write_all(&said).ok()
    }
}

/// Asks what an off would do, of two hosts. Returns the exit code, the output, and the time that it took.
fn ask_off(port: u16, hosts: [Host; 2]) -> (Option<i32>, String, Duration) {
    ask(port, hosts, &["-o", "off"])
}

/// Asks for a diagnosis of the domain, of two hosts.
fn ask(port: u16, hosts: [Host; 2], options: &[&str]) -> (Option<i32>, String, Duration) {
    let lab = AgentLab::new(port);
    let (start, is_over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                if lab.socket_is_readable(Duration::from_millis(50)) {
                    let mut packet = [0; 200];
                    let length = lab.socket.recv(&mut packet).unwrap();
                    for host in hosts {
                        let lab = &lab;
                        scope.spawn(move || {
                            let (packet, key) = (&packet[..length], lab.key());
                            let received =
                                Request::decode(packet, HashType::Sha256, std::slice::from_ref(&key))
                                    .unwrap();
                            match received.sealed {
                                None if host.only_first && received.hash != HashType::Sha256 => None,
                                None => host.answer_classic(lab, &received.request),
                                Some(_) => host.answer_sealed(lab, packet, &key),
                            }
                        });
                    }
                }
            }
        });
        let done = finish(lab.agent(&[&["--diagnose", "-n", "vm1", "-t", "4"], options].concat()));
        is_over.store(true, Relaxed);
        (done.status.code(), text(&done.stdout), start.elapsed())
    })
}

/// A host of ours that has not the domain calls back after its negative_delay. It is none of the C
/// programs.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_slow_host_of_ours_is_waited_for() {
    let doubt = Said::Forecast(Response::Failure, "off vm1: can't say before it is done: it moves");
    assert!(matches!(doubt, Said::Forecast(_, words) if words.contains(FORECAST_UNCERTAIN)));
    let cases: [(Said, Said, i32, &[&str]); 6] = [
        (doubt, NO, 1, &["off would be tried, and nobody can say", "it moves"]),
        (NO, NO, 1, &["off would not be carried out", "127.0.0.9 says", "127.0.0.1 says"]),
        (NO, doubt, 1, &["off would be tried, and nobody can say", "127.0.0.9 says: off vm1"]),
        (NO, YES, 0, &["off would be carried out"]),
        (
            NO,
            Said::Nothing,
            1,
            &["127.0.0.9 has not answered what off would do", "can't say what off would do", "longer -t"],
        ),
        (NO, Said::StatusAlone, 1, &["127.0.0.9 can't say what off would do", "an older fence_virtd"]),
    ];
    let mut ports = (24_000..).step_by(50);
    run_at_once(cases.map(|(first, second, code, words)| {
        let port = ports.next().unwrap();
        move || {
            let (ended, said, _) = ask_off(port, [Host::first(first), Host::second(LATE, second)]);
            assert_eq!(ended, Some(code), "{said}");
            assert!(words.iter().all(|it| said.contains(it)), "{words:?}: {said}");
            assert!(!said.contains("C programs"), "{said}");
        }
    }));
}

/// A call-back without a name shows it, and nobody is waited for in vain.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_a_host_of_the_c_programs_is_told_by_its_call_back() {
    let second = Host { is_named: false, ..Host::second(Duration::ZERO, Said::Nothing) };
    let (code, said, took) = ask_off(24_500, [Host::first(NO), second]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("127.0.0.9 can't say what off would do: it takes no sealed request"), "{said}");
    assert!(
        said.contains("those of a host of the C programs") && said.contains("may have the domain"),
        "{said}"
    );
    assert!(took < Duration::from_secs(30) && !said.contains("waited for"), "{took:?}: {said}");
}

/// No host answers the sealed question. Only one whose call-back has no name is one of the C programs.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_silence_is_no_kind_of_host() {
    for (port, is_named, only_first) in
        [(24_600, true, false), (24_650, true, true), (24_700, false, false), (24_750, false, true)]
    {
        let silent = |address| Host::new(address, Duration::ZERO, Said::Nothing);
        let host = |address| Host { is_named, only_first, ..silent(address) };
        let (code, said, _) = ask_off(port, [host(FIRST), host(SECOND)]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("can't say what off would do; nothing was done"), "{said}");
        assert_eq!(
            said.contains("takes no sealed requests: a fence_virtd of the C programs"),
            !is_named,
            "{said}"
        );
        // A hash that is taken is no help for a question that such a host does not know.
        assert_eq!(said.contains("cause: the host 127.0.0."), !is_named, "{said}");
        assert!(!said.contains(" is taken; for sealed requests"), "{said}");
        assert_eq!(said.contains("a fence_virtd of this project took the request"), is_named, "{said}");
    }
}

/// The word of the host that has the domain counts, beside one that would have it done there.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_the_less_sure_word_counts() {
    let doubt = Said::Forecast(Response::Failure, "off vm1: can't say before it is done: it moves");
    for (port, first, second) in [(24_800, YES, doubt), (24_900, doubt, YES)] {
        let second = Host::second(Duration::from_millis(100), second);
        let (code, said, _) = ask_off(port, [Host::first(first), second]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("off would be tried, and nobody can say what comes of it"), "{said}");
    }
}

/// Another host told that the domain is on. The one that has it lists it late.
#[test]
#[ignore = "run by in_a_namespace"]
fn inside_an_owner_whose_list_is_late_is_not_called_silent() {
    for (port, lists) in [(25_000, true), (25_100, false)] {
        let there = Said::Forecast(Response::Failure, "off vm1: the domain is on at host h9 (127.0.0.9)");
        let first = Host { status: Some(0), lists: false, ..Host::first(if lists { YES } else { there }) };
        let second = Host {
            status: None,
            lists,
            list_delay: LATE,
            ..Host::second(Duration::ZERO, if lists { YES } else { Said::Nothing })
        };
        let (code, said, _) = ask(port, [first, second], &[]);
        assert_eq!(code, Some(i32::from(!lists)), "{said}");
        assert_eq!(said.contains("in order"), lists, "{said}");
        assert_eq!(
            said.contains("the domain is on at a host that does not answer this guest"),
            !lists,
            "{said}"
        );
        // It is named, and may not have the request at all.
        for words in
            ["at host h9 (127.0.0.9)", "next: go to the host that the reason names", "No line: this guest's"]
        {
            assert_eq!(said.contains(words), !lists, "{words}: {said}");
        }
    }
}
