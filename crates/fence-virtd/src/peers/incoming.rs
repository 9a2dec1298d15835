// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages of other hosts, as they arrive.
//!
//! Runs on the task that reads the socket, and waits for nothing. Nothing is believed before its proof; what
//! carries none is counted and dropped, with a line in the log once in a long while: the group's other users
//! may have another key.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use fence_core::hosts::{AnswerResult, Respondent};
use fence_wire::{
    HostBody, HostHello, HostId, HostMessage, HostMessageError, HostNonce, HostReason, ReceivedHostMessage,
    escaped,
};
use tracing::{debug, error, warn};

use super::links::MessageWay;
use super::settings::PeerMode;
use super::state::{NAME, Peers, now};
use crate::util::locks::lock;

impl Peers {
    /// Takes a datagram that begins like a host message, which the listener of the group received.
    pub(crate) fn receive_from_group(self: &Arc<Self>, datagram: &[u8], from: SocketAddr) {
        self.receive(datagram, from, &MessageWay::Group);
    }

    pub(super) fn receive(self: &Arc<Self>, datagram: &[u8], from: SocketAddr, way: &MessageWay) {
        if !self.is_on() {
            return self.drop_while_off(datagram, from);
        }
        let received = match HostMessage::decode(datagram, &self.settings().keys) {
            Ok(received) => received,
            Err(error @ HostMessageError::Proof) => return self.drop_of_other_key(error.reason(), from),
            Err(error) => return self.drops.note(NAME, error.reason(), &from.ip(), &error),
        };
        let message = received.message();
        if message.sender == self.identity.id() {
            return self.receive_own(&received, from.ip(), way);
        }
        if message.recipient.is_some_and(|it| it != self.identity.id()) {
            // An answer to another host still tells that its sender exists.
            if let HostBody::HelloAnswer(hello) = &message.body {
                self.note_hello(hello, from.ip());
            }
            return;
        }
        match &message.body {
            // Nobody asks it, and it asks nobody who answers.
            HostBody::Hello(hello) if self.is_of_node(hello) && self.is_node_key(message.sender) => {}
            HostBody::Hello(hello) => {
                let wants_proof = self.note_hello(hello, from.ip());
                self.answer_hello(message.nonce, hello, way);
                // One that is for this host alone asks for a proof itself.
                if wants_proof && message.recipient.is_none() {
                    self.greet(message.sender, way);
                }
            }
            HostBody::HelloAnswer(hello) => {
                self.note_hello_answer(&received, hello, from.ip());
                self.meet(message.sender, hello, message.nonce, from);
            }
            HostBody::Ask(ask) => self.receive_ask(&received, ask, from.ip(), way),
            HostBody::Answer(_) => self.receive_answer(&received, from),
            HostBody::Reason(part) => self.receive_reason(&received, part),
        }
    }

    /// Counts a message that nobody here reads, and names its sender now and then: `peers = "none"` may be
    /// wrong. With the proof of this host's key it is surely another host.
    fn drop_while_off(&self, datagram: &[u8], from: SocketAddr) {
        self.drops.count(NAME, "peers-off");
        let (settings, address) = (self.settings(), from.ip().to_canonical());
        if !settings.is_set || settings.mode != PeerMode::Off {
            return;
        }
        let other = HostMessage::decode(datagram, &settings.keys).ok();
        let other = other.filter(|it| it.message().sender != self.identity.id());
        let is_proved = other.is_some();
        if let Some(received) = other {
            // A node of this cluster, which corosync asks.
            if let HostBody::Hello(hello) | HostBody::HelloAnswer(hello) = &received.message().body
                && self.is_of_node(hello)
            {
                return;
            }
            let name = match &received.message().body {
                HostBody::Hello(hello) | HostBody::HelloAnswer(hello) => Some(hello.name.clone()),
                _ => None,
            };
            lock(&self.unasked_hosts).heard(address, name, now());
        }
        if !lock(&self.unasked).is_due(address, Instant::now()) {
            return;
        }
        let why = "another host was heard, and peers = \"none\" is set here: that host is not asked and gets \
                   no answer";
        let next = "if the two can have the same domains, \"off\" may be said here of a domain that runs \
                    there: take the line peers = \"none\" out, or name each host in `peers` of the other, \
                    and reload";
        if is_proved {
            error!(peer = %address, "{why}. That host has the key of this one: {next}");
        } else {
            warn!(peer = %address, "{why}. Nothing shows that host to have the key of this one: {next}");
        }
    }

    /// Counts a message without the proof of this host's keys, and names its sender now and then.
    fn drop_of_other_key(&self, reason: &'static str, from: SocketAddr) {
        let address = from.ip().to_canonical();
        if self.is_asked_at(address) {
            lock(&self.other_keys).heard(address, Instant::now());
        }
        // This machine's own `--check` may have a newer key than the daemon.
        let is_due = lock(&self.other_keys).is_due(address, Instant::now());
        if is_due && is_other_machine(address) {
            self.drops.note(NAME, reason, &address, &self.told_of_other_key(address));
        } else {
            self.drops.count(NAME, reason);
        }
    }

    /// Takes a message with this host's own name: its echo, one that anybody made up, or that of a host with
    /// a copy of its key pair. Only a proof of the key pair shows that there is one.
    fn receive_own(&self, received: &ReceivedHostMessage, from: IpAddr, way: &MessageWay) {
        let message = received.message();
        // Nodes that were made of one image: corosync tells them apart.
        if let HostBody::Hello(hello) | HostBody::HelloAnswer(hello) = &message.body
            && hello.run != self.run
            && self.is_of_node(hello)
        {
            return;
        }
        let is_echo = lock(&self.hellos).iter().any(|(nonce, _)| *nonce == message.nonce)
            || lock(&self.questions).contains_key(&message.nonce);
        if !is_echo && is_other_machine(from) {
            // A copy that does not hear this host can't prove anything to it.
            self.note_own_claim(from);
        }
        match &message.body {
            // This host never answers itself.
            HostBody::HelloAnswer(hello) if self.is_proved_answer_to_hello(received, hello) => {
                self.note_own_twin(from);
            }
            HostBody::Answer(_) => {
                let is_ours = lock(&self.questions).contains_key(&message.nonce)
                    && message.recipient == Some(self.identity.id());
                let pair = self.identity.pair_key(&self.identity.public()).filter(|_| is_ours);
                if pair.is_some_and(|it| received.is_proved(&it)) {
                    self.note_own_twin(from);
                }
            }
            HostBody::Hello(hello) => {
                if is_echo {
                    return;
                }
                // The other one is to notice too, and one at this very machine is known by its answer alone.
                self.answer_hello(message.nonce, hello, way);
                if lock(&self.table).doubt(message.sender).is_none() {
                    self.greet(message.sender, way);
                }
            }
            HostBody::HelloAnswer(_) | HostBody::Ask(_) | HostBody::Reason(_) => {}
        }
    }

    /// Notes who answered the hello to an address of `peers`.
    pub(super) fn meet(&self, sender: HostId, hello: &HostHello, nonce: HostNonce, from: SocketAddr) {
        let address = lock(&self.hellos).iter().find(|(it, _)| *it == nonce).and_then(|(_, to)| *to);
        let Some(address) = address else { return };
        if !is_same_place(address, from) {
            let why = format!(
                "{} answers from {from} for {address} of `peers`: name it there by the address from which it \
                 answers",
                escaped(&hello.name)
            );
            lock(&self.strays).insert(address, why.clone());
            return self.drops.note(NAME, "another-address", &from.ip(), &why);
        }
        lock(&self.strays).remove(&address);
        let (is_pinned, was_new) = {
            let mut table = lock(&self.table);
            // One that has no room can't be asked.
            let was_new = table.pinned(&address).is_none();
            let is_known = table.host(sender).is_some();
            ((is_known || !was_new) && table.pin(address, sender), was_new)
        };
        if !is_pinned {
            return self.note_rival(address);
        }
        if was_new {
            self.changed.notify_one();
        }
        for question in lock(&self.questions).values_mut() {
            question.round.met(address, sender);
            question.has_met = true;
            question.wake.notify_one();
        }
    }

    /// Notes that another host than before answers at an address of `peers`.
    fn note_rival(&self, address: SocketAddr) {
        self.changed.notify_one();
        let why = self.doubt(Respondent::Address(address)).unwrap_or_else(|| "there is no room".to_owned());
        self.drops.note(NAME, "another-host", &address.ip(), &why);
    }

    /// Takes a part of the reason of an answer that follows; it counts for nothing but the text.
    pub(super) fn receive_reason(&self, received: &ReceivedHostMessage, part: &HostReason) {
        let message = received.message();
        if !lock(&self.questions).contains_key(&message.nonce) {
            return;
        }
        if !self.pair_key(message.sender).is_some_and(|it| received.is_proved(&it)) {
            return self.drops.count(NAME, "host-unproved");
        }
        if let Some(question) = lock(&self.questions).get_mut(&message.nonce) {
            question.round.take_reason(message.sender, message.nonce, part);
        }
    }

    pub(super) fn receive_answer(&self, received: &ReceivedHostMessage, from: SocketAddr) {
        let message = received.message();
        let is_open = lock(&self.questions).contains_key(&message.nonce);
        if !is_open {
            return debug!(%from, "an answer came late");
        }
        let Some(answer) = self.pair_key(message.sender).and_then(|it| received.proved_answer(&it).cloned())
        else {
            let why = "an answer that the host with this name did not make, or that is for another one. If \
                       that host was installed anew: fence_virtd --forget ADDRESS";
            return self.drops.note(NAME, "host-unproved", &from.ip(), &why);
        };
        let mut questions = lock(&self.questions);
        let Some(question) = questions.get_mut(&message.nonce) else { return };
        match question.round.take(message.sender, message.nonce, &answer) {
            AnswerResult::Taken => question.wake.notify_one(),
            AnswerResult::Repeated => {}
            AnswerResult::Foreign => {
                drop(questions);
                let pinned = lock(&self.table).pinned(&canonical(from));
                if pinned.is_some_and(|it| it != message.sender) {
                    lock(&self.table).pin(canonical(from), message.sender);
                    return self.note_rival(canonical(from));
                }
                let why = "an answer of a host that was not asked, or about another domain";
                self.drops.note(NAME, "host-not-asked", &from.ip(), &why);
            }
        }
    }
}

/// Returns true if an address is none of this machine's. Where they can't be listed, nobody can say.
fn is_other_machine(address: IpAddr) -> bool {
    fence_net::interfaces().is_ok_and(|it| {
        !it.iter().flat_map(|it| &it.addresses).any(|own| own.ip.to_canonical() == address.to_canonical())
    })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns true if an answer from there is one of the asked address. Scopes are those of this machine.
fn is_same_place(asked: SocketAddr, from: SocketAddr) -> bool {
    canonical(asked) == canonical(from)
}
