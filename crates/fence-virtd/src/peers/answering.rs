// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers of this host to the questions and hellos of others.
//!
//! Owns the answers that were given, for repeats. One task for each question. Every answer rests on a look
//! that began after its question came; nothing that is remembered of the domain is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::domain::DomainId;
use fence_core::evidence::{
    Finding, Sight, namesake_moved_away, namesakes_in, namesakes_moved_away, strongest,
};
use fence_wire::{
    ANSWER_NAMESAKES, HostAnswer, HostAsk, HostBody, HostHello, HostId, HostNonce, HostSight, HostsKey,
    ReceivedHostMessage,
};
use tracing::debug;

use super::doubts::OWN_DOUBT;
use super::limits::{
    ANSWER_KEPT, ANSWER_WAY, MAX_HELLOS_PER_SECOND, MAX_KEPT_ANSWERS, MAX_KEPT_OF_ONE, MAX_LOOKS_OF_ONE,
    PEER_LIMIT,
};
use super::links::MessageWay;
use super::recalling::told;
use super::state::{KeptAnswer, KeptAnswers, NAME, PeerCounts, Peers};
use crate::backend::elsewhere::DomainQuestion;
use crate::util::locks::lock;

impl Peers {
    /// Answers a hello, within the limit, with the proof that this host is the one with its name.
    pub(super) fn answer_hello(&self, nonce: HostNonce, to: &HostHello, way: &MessageWay) {
        if !self.may_speak() {
            return;
        }
        if !self.may_answer_hello(Instant::now()) {
            return self.drops.count(NAME, "too-many-hellos");
        }
        let Some(pair) = self.identity.pair_key(&to.public) else { return };
        let to = Some(HostId::of(&to.public));
        let hello = self.message(to, nonce, HostBody::HelloAnswer(self.hello()));
        let bytes: Vec<_> = self.settings().keys.iter().map(|it| hello.encode_for(it, &pair)).collect();
        self.send(way, &bytes);
    }

    fn may_answer_hello(&self, now: Instant) -> bool {
        let mut answered = lock(&self.answered_hellos);
        let (since, count) = &mut *answered;
        if since.is_none_or(|it| now.saturating_duration_since(it) >= Duration::from_secs(1)) {
            (*since, *count) = (Some(now), 0);
        }
        *count += 1;
        *count <= MAX_HELLOS_PER_SECOND
    }

    /// Takes a question of another host: repeats the answer, or begins to look.
    pub(super) fn receive_ask(
        self: &Arc<Self>,
        received: &ReceivedHostMessage,
        ask: &HostAsk,
        from: IpAddr,
        way: &MessageWay,
    ) {
        let came = Instant::now();
        let message = received.message();
        let asker = (message.sender, message.nonce);
        // A node asks the hosts that are none; corosync asks this one.
        if self.is_node_key(message.sender) {
            return;
        }
        if lock(&self.table).host(message.sender).is_none() {
            // The answer needs the asker's public key: its answer to this hello has it, and the question
            // comes again.
            return self.greet(message.sender, way);
        }
        let kept = {
            let mut answers = lock(&self.answers);
            answers.retain(|_, it| came.saturating_duration_since(it.at) < ANSWER_KEPT);
            let kept = answers.get(&asker).map(|it| it.bytes.clone());
            if kept.is_none() {
                if !make_room(&mut answers, asker.0, from) {
                    return self.drops.count(NAME, "too-many-questions");
                }
                answers.insert(asker, KeptAnswer { at: came, from, bytes: Vec::new() });
            }
            kept
        };
        if let Some(bytes) = kept {
            // Nothing while the look is not over.
            return self.send(way, &bytes);
        }
        let Some(key) = self.settings().keys.get(received.key()).cloned() else { return };
        let (peers, ask, way) = (Arc::clone(self), ask.clone(), way.clone());
        tokio::spawn(async move { peers.look_and_answer(asker, &ask, key, &way, came).await });
    }

    /// Says hello to one that is not known, or whose proof is wanted.
    pub(super) fn greet(&self, to: HostId, way: &MessageWay) {
        if !self.may_answer_hello(Instant::now()) {
            return self.drops.count(NAME, "too-many-hellos");
        }
        let Some(nonce) = self.new_hello(None) else { return };
        let hello = self.message(Some(to), nonce, HostBody::Hello(self.hello()));
        self.send(way, &self.encoded(&hello));
    }

    /// Looks in the background for other domains with a name, if more of them left this host than it can
    /// always tell: it forgets those that are off.
    fn look_for_namesakes(&self, found: &[Finding]) {
        let heard: Vec<_> = namesakes_in(found).into_keys().collect();
        if let (true, Some(own)) = (heard.len() >= ANSWER_NAMESAKES, self.own.get()) {
            let own = Arc::clone(own);
            tokio::spawn(async move { own.prove_moves(heard).await });
        }
    }

    /// Tells of a saved memory that the next start of the domain here would bring back, in the place of
    /// "off": this host alone can remove it.
    async fn tell_saved(&self, answer: &mut HostAnswer, uuid: DomainId, until: Instant) {
        let (HostSight::Off | HostSight::Ended, Some(own)) = (answer.sight, self.own.get()) else { return };
        let why = match own.saved_here(uuid, until).await {
            Ok(None) => return,
            Ok(Some(uri)) => format!(
                "{uri} keeps a saved memory of the domain (virsh managedsave), which its next start there \
                 would bring back: an off at that host removes it"
            ),
            Err(why) => why,
        };
        answer.namesakes.clear();
        (answer.sight, answer.reason) = (HostSight::Unknown, why);
    }

    async fn look_and_answer(
        &self,
        asker: (HostId, HostNonce),
        ask: &HostAsk,
        key: HostsKey,
        way: &MessageWay,
        came: Instant,
    ) {
        let Some(pair) = self.pair_key(asker.0) else { return };
        let Ok(_slot) = self.looks.try_acquire() else {
            // The asker repeats its question.
            lock(&self.answers).remove(&asker);
            return self.drops.count(NAME, "too-many-questions");
        };
        let until = came + time_to_look(ask.left_ms);
        let question = DomainQuestion::new(DomainId::from_bytes(ask.uuid), ask.name.clone());
        let found = match self.own.get() {
            Some(own) => own.look_here(&question, until).await,
            None => Vec::new(),
        };
        let mut answer = answer(ask, &found, came);
        self.tell_saved(&mut answer, question.uuid, until).await;
        self.look_for_namesakes(&found);
        if let (true, Some(own)) = (ask.asks_memory, self.own.get()) {
            answer.namesakes.clear();
            answer.memory = Some(told(own.recall_here(question.uuid)));
        }
        if self.own_doubt().is_some() && !matches!(answer.sight, HostSight::On | HostSight::Moving) {
            // The asker hears the first of two answers, and takes it for that of both hosts.
            answer.namesakes.clear();
            (answer.sight, answer.reason) = (HostSight::Unknown, OWN_DOUBT.to_owned());
        }
        debug!(asker = %asker.0, domain = %question.uuid, sight = ?answer.sight, "answered another host");
        let parts = if ask.takes_parts { answer.reason_in_parts() } else { Vec::new() };
        let bodies = parts.into_iter().map(HostBody::Reason).chain([HostBody::Answer(answer)]);
        let bytes: Vec<_> =
            bodies.map(|it| self.message(Some(asker.0), asker.1, it).encode_for(&key, &pair)).collect();
        if let Some(kept) = lock(&self.answers).get_mut(&asker) {
            kept.bytes.clone_from(&bytes);
        }
        PeerCounts::add(&self.counts.answered);
        self.send(way, &bytes);
    }
}

/// Returns the time to look, of the time that the asker waits. The answer has the rest for its way: a
/// hypervisor that hangs is told as the reason then, and this host is not taken for silent.
fn time_to_look(left_ms: u16) -> Duration {
    let left = Duration::from_millis(left_ms.into()).min(PEER_LIMIT);
    left - (left / 4).min(ANSWER_WAY)
}

/// Makes room for a question, and returns false if there is none. An asker, and an address, has a share
/// alone: whoever asks without end takes no place of the others. A dropped answer costs another look.
pub(super) fn make_room(answers: &mut KeptAnswers, asker: HostId, from: IpAddr) -> bool {
    let is_same = |it: &(HostId, HostNonce), kept: &KeptAnswer| it.0 == asker || kept.from == from;
    let looks = answers.iter().filter(|(who, it)| it.bytes.is_empty() && is_same(who, it)).count();
    if looks >= MAX_LOOKS_OF_ONE {
        return false;
    }
    let is_over = answers.iter().filter(|(who, it)| is_same(who, it)).count() >= MAX_KEPT_OF_ONE;
    if !is_over && answers.len() < MAX_KEPT_ANSWERS {
        return true;
    }
    let made = answers.iter().filter(|(who, it)| !it.bytes.is_empty() && (!is_over || is_same(who, it)));
    let Some(oldest) = made.min_by_key(|(_, it)| it.at).map(|(who, _)| *who) else { return false };
    answers.remove(&oldest).is_some()
}

/// Returns what this host tells of its looks. Looks that began before the question came are none.
fn answer(ask: &HostAsk, found: &[Finding], came: Instant) -> HostAnswer {
    let in_time: Vec<Finding> = found.iter().filter(|it| it.began >= came).cloned().collect();
    let seen = if in_time.len() == found.len() { strongest(&in_time) } else { strongest(&[]) };
    let (seen, namesakes) = with_namesakes(ask, seen, &in_time);
    let age_ms = seen.age_ms();
    let sight = sight(&seen);
    let reason = if let Sight::Unknown(why) = seen { why } else { String::new() };
    HostAnswer { uuid: ask.uuid, sight, age_ms, reason, namesakes, memory: None }
}

/// Returns what is told beside other domains with the name that left this host. An asker that does not ask
/// about each of them must not take the sight for that of the name. One that asks by the UUID alone does not.
fn with_namesakes(ask: &HostAsk, seen: Sight, found: &[Finding]) -> (Sight, Vec<[u8; 16]>) {
    if ask.is_by_uuid || matches!(seen, Sight::On | Sight::Moving | Sight::Unknown(_) | Sight::Down(_)) {
        return (seen, Vec::new());
    }
    let heard = namesakes_in(found);
    match heard.first_key_value() {
        Some((_, look)) if heard.len() > ANSWER_NAMESAKES => {
            (Sight::Unknown(namesakes_moved_away(look, heard.len())), Vec::new())
        }
        Some((other, look)) if !ask.takes_namesakes => {
            (Sight::Unknown(namesake_moved_away(look, *other)), Vec::new())
        }
        _ => (seen, heard.into_keys().map(DomainId::to_bytes).collect()),
    }
}

fn sight(sight: &Sight) -> HostSight {
    match sight {
        Sight::On => HostSight::On,
        Sight::Moving => HostSight::Moving,
        Sight::Ended(_) => HostSight::Ended,
        Sight::Off => HostSight::Off,
        Sight::Absent => HostSight::Absent,
        Sight::MovedAway(_) => HostSight::MovedAway,
        // A hypervisor of this host is no host that is down.
        Sight::Unknown(_) | Sight::Down(_) => HostSight::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use fence_core::evidence::DomainSite;

    use super::*;

    /// An asker that asks about no namesake must not hear "off" of a name that another domain left with.
    #[test]
    fn an_old_asker_is_told_of_a_namesake_that_this_host_can_not_tell() {
        let now = Instant::now();
        let answered = |takes_namesakes, sight, count: u8| {
            let place = DomainSite::Hypervisor("qemu:///system".to_owned());
            let namesakes = (1..=count).map(|it| DomainId::from_bytes([it; 16])).collect();
            let found = [Finding { place, sight, began: now, ended: now, namesakes }];
            let name = "vm1".to_owned();
            let (left_ms, takes_parts, asks_memory, is_by_uuid) = (9, true, false, false);
            let uuid = [9; 16];
            let ask = HostAsk { uuid, left_ms, takes_parts, takes_namesakes, asks_memory, is_by_uuid, name };
            // Asked by UUID, it is told what was seen of that domain.
            let by_uuid = answer(&HostAsk { is_by_uuid: true, ..ask.clone() }, &found, now);
            assert_eq!((by_uuid.sight, by_uuid.namesakes.len()), (super::sight(&found[0].sight), 0));
            answer(&ask, &found, now)
        };
        for sight in [Sight::Off, Sight::Absent, Sight::Ended(None), Sight::MovedAway(Duration::ZERO)] {
            let told = answered(true, sight.clone(), 3);
            assert_eq!((told.sight, told.namesakes.len()), (super::sight(&sight), 3));
            assert_eq!(answered(false, sight.clone(), 0).sight, super::sight(&sight));
            let first = DomainId::from_bytes([1; 16]).to_string();
            // Of several it is not known of which one nobody saw the end.
            for (told, words) in [
                (answered(false, sight.clone(), 1), first.as_str()),
                (answered(true, sight, 4), "4 other domains with this name"),
            ] {
                assert_eq!((told.sight, told.namesakes.len()), (HostSight::Unknown, 0));
                assert!(told.reason.contains(words), "{}", told.reason);
            }
        }
        assert_eq!(answered(false, Sight::On, 1).sight, HostSight::On);
    }
}
