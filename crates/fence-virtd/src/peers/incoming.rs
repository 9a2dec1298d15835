// SPDX-License-Identifier: GPL-2.0-or-later
//! Messages of other hosts, as they arrive.
//!
//! Runs on the task that reads the socket, and waits for nothing. Nothing is believed before its proof; what
//! carries none is counted and dropped without a line in the log, since the group's other users may have
//! another key.

use std::net::SocketAddr;
use std::sync::Arc;

use fence_core::hosts::AnswerResult;
use fence_wire::{
    HostBody, HostHello, HostId, HostMessage, HostMessageError, HostNonce, ReceivedHostMessage,
};
use tracing::debug;

use super::links::MessageWay;
use super::state::{NAME, Peers};
use crate::util::locks::lock;

impl Peers {
    /// Takes a datagram that begins like a host message, which the listener of the group received.
    pub(crate) fn receive_from_group(self: &Arc<Self>, datagram: &[u8], from: SocketAddr) {
        self.receive(datagram, from, &MessageWay::Group);
    }

    pub(super) fn receive(self: &Arc<Self>, datagram: &[u8], from: SocketAddr, way: &MessageWay) {
        if !self.is_on() {
            return self.drops.count(NAME, "peers-off");
        }
        let received = match HostMessage::decode(datagram, &self.settings().keys) {
            Ok(received) => received,
            Err(error @ HostMessageError::Proof) => return self.drops.count(NAME, error.reason()),
            Err(error) => return self.drops.note(NAME, error.reason(), &from.ip(), &error),
        };
        let message = received.message();
        if message.sender == self.identity.id() {
            return self.receive_own(message, way);
        }
        if message.recipient.is_some_and(|it| it != self.identity.id()) {
            // An answer to another host still tells that its sender exists.
            if let HostBody::HelloAnswer(hello) = &message.body {
                self.note_hello(hello, from.ip());
            }
            return;
        }
        match &message.body {
            HostBody::Hello(hello) => {
                self.note_hello(hello, from.ip());
                self.answer_hello(message.sender, message.nonce, way);
            }
            HostBody::HelloAnswer(hello) => {
                self.note_hello(hello, from.ip());
                self.meet(message.sender, hello, message.nonce);
            }
            HostBody::Ask(ask) => self.receive_ask(&received, ask, way),
            HostBody::Answer(_) => self.receive_answer(&received, from),
        }
    }

    /// Takes a message with this host's own name: its echo, or that of a host with a copy of its key pair.
    fn receive_own(&self, message: &HostMessage, way: &MessageWay) {
        let is_ours = lock(&self.hellos).iter().any(|(nonce, _)| *nonce == message.nonce);
        match &message.body {
            HostBody::Hello(_) if !is_ours => {
                self.answer_hello(message.sender, message.nonce, way);
                self.say_hello_soon();
            }
            // This host never answers itself.
            HostBody::HelloAnswer(_) if is_ours && message.recipient == Some(self.identity.id()) => {
                let why = "another daemon has the key pair of this one: its state directory was copied, or \
                           both have none. Give each a state_dir, remove host.key in a copied one, and \
                           restart it; then: fence_virtd --forget all";
                lock(&self.table).note_missing(why.to_owned());
                self.changed.notify_one();
                self.drops.note(NAME, "same-key-pair", &"another host", &why);
            }
            _ => {}
        }
    }

    /// Notes who answered the hello to an address of `peers`.
    fn meet(&self, sender: HostId, hello: &HostHello, nonce: HostNonce) {
        let address = lock(&self.hellos).iter().find(|(it, _)| *it == nonce).and_then(|(_, to)| *to);
        let Some(address) = address else { return };
        let (is_first, was_new) = {
            let mut table = lock(&self.table);
            // One that has no room can't be asked.
            let is_known = table.host(sender).is_some();
            let was_new = table.pinned(&address).is_none();
            (is_known && table.pin(address, sender), was_new)
        };
        if !is_first {
            let why = format!(
                "{} answers at {address} with another key than before. If it was installed anew: fence_virtd \
                 --forget {}",
                fence_wire::escaped(&hello.name),
                address.ip()
            );
            return self.drops.note(NAME, "another-host", &address.ip(), &why);
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

    fn receive_answer(&self, received: &ReceivedHostMessage, from: SocketAddr) {
        let message = received.message();
        let is_open = lock(&self.questions).contains_key(&message.nonce);
        if !is_open {
            return debug!(%from, "an answer came late");
        }
        let Some(answer) = self.pair_key(message.sender).and_then(|it| received.proved_answer(&it).cloned())
        else {
            let why = "an answer that the host with this name did not make, or that is for another one";
            return self.drops.note(NAME, "host-unproved", &from.ip(), &why);
        };
        let mut questions = lock(&self.questions);
        let Some(question) = questions.get_mut(&message.nonce) else { return };
        match question.round.take(message.sender, message.nonce, &answer) {
            AnswerResult::Taken => question.wake.notify_one(),
            AnswerResult::Repeated => {}
            AnswerResult::Foreign => {
                drop(questions);
                let why = "an answer of a host that was not asked, or about another domain";
                self.drops.note(NAME, "host-not-asked", &from.ip(), &why);
            }
        }
    }
}
