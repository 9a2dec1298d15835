// SPDX-License-Identifier: GPL-2.0-or-later
//! Doors of a multicast request: the ports on which it may be called back, one turn at a time.
//!
//! Decides when the agent takes the turn at a port, when it passes the turn on, and which call-backs of hosts
//! that name no request may be answered. Runs on the agent's only thread. Must never let such a call-back be
//! answered that may be for another request.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use fence_wire::{CallName, ClientRun};

use crate::deadline::Deadline;
use crate::ledger::{CallPath, SeenCalls, SentDatagrams};
use crate::ports::{CallBackPorts, OpenPort, PortTry};

/// Time without a call-back after which the turn is passed on to an agent that waits. Longer than the
/// `negative_delay` of hosts, so that a host in doubt still finds the listener.
const TURN: Duration = Duration::from_millis(2500);
/// Time without a change in the ledger after which the agent that has the turn is taken to stand still. Then
/// a neighbour of the wanted port is tried as well. Never sooner: behind a firewall each call-back to a
/// neighbour costs a C host five seconds, in which it serves nobody.
const PATIENCE: Duration = Duration::from_secs(6);
/// Pause before the turn is taken again after it was passed on.
const STEP_BACK: Duration = Duration::from_millis(100);
/// Pause between two tries to take the turn.
const LOOK: Duration = Duration::from_millis(10);
/// Pause between two looks for agents that wait for the turn.
const LOOK_FOR_OTHERS: Duration = Duration::from_millis(20);
/// Wait for a further call-back of a host after one was refused, before the request is sent again.
const NEXT_CALL: Duration = Duration::from_millis(10);

/// Kind of call-backs that an agent gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DoorRule {
    /// A host needs our proof: a call-back for another request can be refused.
    Challenged,
    /// As `Challenged`, and the proof is that of one request.
    Sealed,
    /// A host acts without our proof. Only ports without other requests may be used.
    Open,
}

/// All doors of one request.
#[derive(Debug)]
pub(crate) struct CallBackDoors<'a> {
    ports: &'a CallBackPorts,
    rule: DoorRule,
    run: ClientRun,
    doors: Vec<Door>,
    /// Each time that a turn was taken.
    openings: Vec<DoorOpening>,
    /// Datagrams that this run has sent, for each port that they name.
    sent: BTreeMap<u16, SentDatagrams>,
    attempt: u8,
    waits_since: Instant,
    last_runs: Option<Vec<(ClientRun, u32)>>,
    look_at: Instant,
    is_queued: bool,
    /// True while a turn is needed that this agent does not have.
    is_waiting: bool,
    /// Instant before which no turn is taken to ask again.
    ask_at: Instant,
    has_asked_again: bool,
}

/// Port that is listened on.
#[derive(Debug)]
struct Door {
    open: OpenPort,
    opening: usize,
    opened: Instant,
    sequence: u32,
    /// A datagram with this sequence number was sent.
    is_used: bool,
    send_at: Deadline,
}

/// Turn at a port.
#[derive(Debug)]
struct DoorOpening {
    port: u16,
    calls: SeenCalls,
}

/// Datagram that is to be sent: the port that it names, and its sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DueSending {
    door: usize,
    /// Port for the call-back.
    pub(crate) port: u16,
    /// Sequence number.
    pub(crate) sequence: u32,
}

/// End of a run, as far as it matters for those that come after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RunEnd {
    /// No datagram left.
    NothingSent,
    /// A host gave the answer.
    Answered,
    /// No host did.
    Unanswered,
}

/// State of the request, as far as it matters for the doors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DoorNeed {
    /// No host is there that could answer.
    Listening,
    /// A host that has proved itself is there since this instant. Others may still come for this time.
    Called(Instant, Duration),
}

impl<'a> CallBackDoors<'a> {
    /// Returns the doors of a run. None is open before [`CallBackDoors::tend`].
    pub(crate) fn new(ports: &'a CallBackPorts, rule: DoorRule, run: ClientRun) -> Self {
        let now = Instant::now();
        Self {
            ports,
            rule,
            run,
            doors: Vec::new(),
            openings: Vec::new(),
            sent: BTreeMap::new(),
            attempt: 0,
            waits_since: now,
            last_runs: None,
            look_at: now,
            is_queued: false,
            is_waiting: true,
            ask_at: now,
            has_asked_again: false,
        }
    }

    /// Returns the run.
    pub(crate) fn run(&self) -> ClientRun {
        self.run
    }

    /// Returns the longest pause before the doors have to be tended again; none while there are none to tend.
    pub(crate) fn look_pause(&self) -> Option<Duration> {
        match (self.is_waiting, self.doors.is_empty()) {
            (true, _) => Some(LOOK),
            (false, false) => Some(LOOK_FOR_OTHERS),
            (false, true) => None,
        }
    }

    fn has_wanted(&self) -> bool {
        self.wanted().is_some() || self.rule == DoorRule::Open && !self.doors.is_empty()
    }

    /// Returns the place of the door at the wanted port, if it is open.
    fn wanted(&self) -> Option<usize> {
        let (wanted, _) = self.ports.range();
        self.doors.iter().position(|it| it.open.port == wanted)
    }

    /// Takes a turn that is needed, and passes one on that others wait for. `before_close` accepts what has
    /// called back until then.
    ///
    /// # Errors
    /// When the kernel lets the agent not listen.
    pub(crate) fn tend(&mut self, need: DoorNeed, mut before_close: impl FnMut(&mut Self)) -> io::Result<()> {
        let now = Instant::now();
        // Known also where this call does nothing: otherwise nobody would come back to take the turn.
        self.is_waiting = need == DoorNeed::Listening && !self.has_wanted();
        if now < self.look_at {
            return Ok(());
        }
        self.look_at = now + LOOK;
        if self.rule != DoorRule::Open && self.may_pass(need, now) {
            before_close(self);
            if let Some(index) = self.wanted() {
                self.ports.close(self.doors.remove(index).open);
                self.waits_since = now;
                self.look_at = now + STEP_BACK;
            }
        } else if self.is_waiting && now < self.ask_at {
            self.leave_queue();
        } else if self.is_waiting {
            self.take_turn(now)?;
        } else {
            self.leave_queue();
        }
        self.is_waiting = need == DoorNeed::Listening && !self.has_wanted();
        Ok(())
    }

    /// Returns whether the turn at the wanted port has to be passed on.
    fn may_pass(&self, need: DoorNeed, now: Instant) -> bool {
        let Some(door) = self.wanted().and_then(|it| self.doors.get(it)) else { return false };
        let is_over = match need {
            DoorNeed::Called(since, wait) => now.duration_since(since) >= wait,
            DoorNeed::Listening => now.duration_since(door.opened) >= TURN,
        };
        is_over && self.ports.is_wanted(&door.open)
    }

    fn take_turn(&mut self, now: Instant) -> io::Result<()> {
        let tried = match self.rule {
            DoorRule::Challenged | DoorRule::Sealed => self.ports.open_wanted()?,
            DoorRule::Open => self.ports.open_clean(self.run)?.map_or(PortTry::TakenByAgent, PortTry::Open),
        };
        let is_program = matches!(tried, PortTry::TakenByProgram);
        if let PortTry::Open(open) = tried {
            self.leave_queue();
            self.enter(open, now);
            return Ok(());
        }
        if !self.is_queued {
            self.ports.queue(true);
            self.is_queued = true;
        }
        let runs = self.ports.wanted_runs();
        if runs != self.last_runs {
            (self.last_runs, self.waits_since) = (runs, now);
        }
        let is_patient = !is_program && now.duration_since(self.waits_since) < PATIENCE;
        if self.rule != DoorRule::Open
            && self.doors.is_empty()
            && !is_patient
            && let Some(open) = self.ports.open_neighbour()?
        {
            self.enter(open, now);
        }
        Ok(())
    }

    fn leave_queue(&mut self) {
        if self.is_queued {
            self.ports.queue(false);
            self.is_queued = false;
        }
    }

    fn enter(&mut self, open: OpenPort, now: Instant) {
        // Looked up after the turn was taken: nobody else sends for this port any more.
        let calls = SeenCalls::new(self.ports.ledger(&open));
        self.openings.push(DoorOpening { port: open.port, calls });
        let opening = self.openings.len() - 1;
        let sequence = self.next_sequence();
        let send_at = Deadline::after(Duration::ZERO);
        self.doors.push(Door { open, opening, opened: now, sequence, is_used: false, send_at });
    }

    /// Returns a sequence number that no datagram had: a C host serves each once.
    fn next_sequence(&mut self) -> u32 {
        self.attempt = self.attempt.wrapping_add(1);
        self.run.sequence(self.attempt)
    }

    /// Returns the datagrams that are to be sent now.
    pub(crate) fn due(&self) -> Vec<DueSending> {
        let due = |(door, it): (usize, &Door)| {
            let is_due = it.send_at.remaining().is_none();
            is_due.then_some(DueSending { door, port: it.open.port, sequence: it.sequence })
        };
        self.doors.iter().enumerate().filter_map(due).collect()
    }

    /// Returns the earliest instant at which a datagram is to be sent.
    pub(crate) fn next_sending(&self) -> Option<Deadline> {
        self.doors.iter().map(|it| it.send_at).min()
    }

    /// Enters in the ledger that a datagram is about to be sent from each address, and when the next are due.
    ///
    /// # Errors
    /// When the ledger cannot be written: then nothing must be sent.
    pub(crate) fn enter_sending(
        &mut self,
        due: DueSending,
        addresses: &[IpAddr],
        end: Deadline,
        again: Duration,
    ) -> io::Result<()> {
        let Some(door) = self.doors.get_mut(due.door) else { return Ok(()) };
        let mut sent = self.sent.get(&due.port).cloned().unwrap_or_default();
        for address in addresses {
            let number = sent.entry(*address).or_default();
            *number = number.saturating_add(1);
        }
        self.ports.enter(&door.open, self.run, end, &sent)?;
        self.sent.insert(due.port, sent);
        (door.is_used, door.send_at) = (true, Deadline::after(again));
        Ok(())
    }

    /// Returns the ports that have been used.
    pub(crate) fn used_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.sent.keys().copied().collect();
        ports.extend(self.doors.iter().map(|it| it.open.port));
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Returns the listeners.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &std::net::TcpListener> {
        self.doors.iter().map(|it| &it.open.listener)
    }

    /// Accepts call-backs, of each port `most` at most: streams, their peers, and the openings that they came
    /// in.
    pub(crate) fn accept(&self, most: usize) -> Vec<(TcpStream, SocketAddr, usize)> {
        let one = |door: &Door| {
            let (stream, from) = door.open.listener.accept().ok()?;
            Some((stream, from, door.opening))
        };
        let calls = self.doors.iter().flat_map(|door| std::iter::from_fn(move || one(door)).take(most));
        calls.collect()
    }

    /// Decides whether the challenge of this host may be answered. A refused call-back is counted, and the
    /// request is sent again unless others of this host follow.
    pub(crate) fn admits(&mut self, opening: usize, path: CallPath, name: CallName) -> bool {
        match (name, self.openings.get_mut(opening)) {
            (CallName::Own, _) => true,
            (CallName::Other, _) | (CallName::Unnamed, None) => false,
            (CallName::Unnamed, Some(it)) => {
                let is_own = it.calls.admits(path);
                let calls = &it.calls;
                // At once, not at the end: a run that is killed, or gets no answer, must leave no more behind
                // than is left.
                self.ports.note(it.port, |ledger, _| {
                    if is_own { ledger.note_admitted(path, calls) } else { ledger.note_refused(path) }
                });
                if !is_own {
                    self.send_anew(opening);
                }
                is_own
            }
        }
    }

    /// Sends the request anew soon, with another sequence number: this one may be used up.
    fn send_anew(&mut self, opening: usize) {
        let sequence = self.next_sequence();
        if let Some(door) = self.doors.iter_mut().find(|it| it.opening == opening) {
            (door.sequence, door.is_used) = (sequence, false);
            door.send_at = Deadline::after(NEXT_CALL);
        }
    }

    /// Asks again after a stream ended without an answer, with another sequence number: hosts serve each
    /// once. The first time at once, and from then on once in the time `again`, whatever hangs up.
    pub(crate) fn ask_again(&mut self, again: Duration) {
        let now = Instant::now();
        if self.ask_at > now {
            return;
        }
        self.ask_at = now + if self.has_asked_again { again } else { NEXT_CALL };
        self.has_asked_again = true;
        for index in 0..self.doors.len() {
            let sequence = if self.doors[index].is_used { Some(self.next_sequence()) } else { None };
            let door = &mut self.doors[index];
            if let Some(sequence) = sequence {
                (door.sequence, door.is_used) = (sequence, false);
                door.send_at = Deadline::from(self.ask_at, Duration::ZERO);
            }
        }
    }

    /// Ends listening at all ports, and writes down what other agents have to reckon with.
    pub(crate) fn finish(mut self, end: RunEnd) {
        self.leave_queue();
        for door in self.doors.drain(..) {
            self.ports.close(door.open);
        }
        match (end, self.rule) {
            (RunEnd::Unanswered, _) => {}
            // C hosts drop what is sealed. And who acts unasked does so for whomever it finds.
            (RunEnd::NothingSent, _) | (RunEnd::Answered, DoorRule::Sealed | DoorRule::Open) => {
                self.ports.forget(self.run);
            }
            (RunEnd::Answered, DoorRule::Challenged) => {
                let mut turns: BTreeMap<u16, Vec<SeenCalls>> = BTreeMap::new();
                for DoorOpening { port, calls } in self.openings {
                    turns.entry(port).or_default().push(calls);
                }
                for (port, turns) in turns {
                    self.ports.note(port, |ledger, now| ledger.settle(self.run, &turns, now));
                }
            }
        }
    }
}
