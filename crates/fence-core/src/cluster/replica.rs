// SPDX-License-Identifier: GPL-2.0-or-later
//! Replica of the common arbiter, built anew after each membership change.
//!
//! Pure, and fed by messages in agreed order alone: no clock, no hash map. [`super::claims`] owns it and
//! describes the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fence_wire::Response;

use super::claim_ends::ClaimHold;
use super::message::{
    ActingClaim, AskAction, AskEnd, AskOutcome, ClaimMessage, HostMessage, InFlightClaim, Member, StateSync,
};
use super::orphans::OrphanOrder;
use crate::arbiter::{
    Arbiter, ArbiterDecision, ArbiterRequest, Grant, LateEffect, PeerId, SharedResult, SubmitResult,
};
use crate::domain::TargetKind;

/// Deadline of all claims in the arbiter: never, because a claim's host withdraws it in time.
const NO_DEADLINE: Duration = Duration::from_secs(u32::MAX as u64);

/// Name of a claim: its asker, and its number there.
pub(super) type ClaimKey = (Member, u64);

/// Messages delivered since the last membership change, and the replica built from them.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) members: BTreeMap<Member, MemberState>,
    /// Number of messages so far.
    delivered: u64,
    /// The sync of every member is there, or the member was passed over.
    pub(super) has_begun: bool,
    pub(super) replica: ReplicatedArbiter,
}

/// Sync of a member, and its later messages that wait for the begin of the epoch.
#[derive(Debug, Default)]
pub(super) struct MemberState {
    sync: Option<StateSync>,
    /// Position of the sync in the order of messages.
    at: u64,
    /// Messages after the sync, each with its position.
    later: Vec<(u64, HostMessage)>,
    /// The sync counts.
    ready: bool,
    /// The others go on without the sync.
    passed_over: bool,
}

impl MemberState {
    /// Returns true if no other member waits for this one.
    pub(super) fn is_accounted_for(&self) -> bool {
        self.ready || self.passed_over
    }
}

impl Epoch {
    /// Returns whether the sync of this member counts.
    pub(super) fn is_ready(&self, member: Member) -> bool {
        self.members.get(&member).is_some_and(|it| it.ready)
    }

    /// Returns the orders that these members told of in syncs which do not count yet.
    pub(super) fn untold_orphans_of(&self, is_gone: impl Fn(&Member) -> bool) -> Vec<OrphanOrder> {
        let mut orphans = Vec::new();
        for (member, state) in self.members.iter().filter(|(it, _)| is_gone(it)) {
            let Some(sync) = &state.sync else { continue };
            let is_danger = |it: &InFlightClaim| it.claim.takes_down() && !it.seen_off;
            let own = sync.in_flight.iter().filter(|it| is_danger(it));
            orphans.extend(own.map(|it| OrphanOrder::of_asker(*member, &it.claim)));
            orphans.extend(sync.acting.iter().filter(|it| is_danger(&it.held)).map(|it| OrphanOrder {
                asker: it.asker,
                ask: it.ask,
                by: (!it.held.lingers).then_some(*member),
                claim: it.held.claim.clone(),
            }));
        }
        orphans
    }

    /// Begins an epoch of these members; its replica waits for their syncs.
    pub(super) fn of(members: &BTreeSet<Member>, start: Instant) -> Self {
        let states = members.iter().map(|it| (*it, MemberState::default())).collect();
        Self { members: states, delivered: 0, has_begun: false, replica: ReplicatedArbiter::new(start) }
    }

    /// Takes the sync of a member.
    pub(super) fn synced(&mut self, from: Member, sync: &StateSync) {
        self.delivered += 1;
        if let Some(state) = self.members.get_mut(&from).filter(|it| !it.ready) {
            state.sync = Some(sync.clone());
            state.at = self.delivered;
            state.later.clear();
        }
    }

    /// Takes the `ready` of a member: its sync counts if the numbers are the same.
    pub(super) fn ready(&mut self, from: Member, n: u64) -> Vec<(ClaimKey, Grant<()>)> {
        self.delivered += 1;
        let Some(state) = self.members.get_mut(&from) else { return Vec::new() };
        if state.ready || state.sync.as_ref().is_none_or(|it| it.n != n) {
            return Vec::new();
        }
        state.ready = true;
        if !self.has_begun {
            return self.begin();
        }
        // The member was passed over, and takes part again.
        let sync = state.sync.take().unwrap_or_default();
        let later = std::mem::take(&mut state.later);
        let mut grants = Vec::new();
        self.replica.release_all_but(from, &sync, &mut grants);
        let seen_off = self.replica.install_all(&[(from, &sync.in_flight, &sync.acting)], &mut grants);
        self.replica.submit_all(from, &sync.waiting, &mut grants);
        self.replica.all_seen_off(&seen_off, &mut grants);
        for (_, message) in later {
            self.replica.deliver(from, &message, &mut grants);
        }
        grants
    }

    /// Passes a member over, with its operations in flight as far as they are known. Returns false if that
    /// changes nothing.
    pub(super) fn passed_over(
        &mut self,
        member: Member,
        in_flight: &[InFlightClaim],
        acting: &[ActingClaim],
    ) -> bool {
        self.delivered += 1;
        if self.has_begun {
            return false;
        }
        let Some(state) = self.members.get_mut(&member).filter(|it| !it.is_accounted_for()) else {
            return false;
        };
        state.passed_over = true;
        state.sync = None;
        state.later.clear();
        // No grant follows: no claim waits in the replica yet.
        let mut none = Vec::new();
        let seen_off = self.replica.install_all(&[(member, in_flight, acting)], &mut none);
        self.replica.all_seen_off(&seen_off, &mut none);
        true
    }

    /// Builds the replica if all members are accounted for.
    pub(super) fn begin(&mut self) -> Vec<(ClaimKey, Grant<()>)> {
        let mut grants = Vec::new();
        if self.has_begun
            || self.members.is_empty()
            || !self.members.values().all(MemberState::is_accounted_for)
        {
            return grants;
        }
        self.has_begun = true;
        let mut syncs: Vec<(u64, Member, StateSync)> = Vec::new();
        let mut later: Vec<(u64, Member, HostMessage)> = Vec::new();
        for (member, state) in self.members.iter_mut().filter(|(_, it)| it.ready) {
            syncs.extend(state.sync.take().map(|it| (state.at, *member, it)));
            later.extend(state.later.drain(..).map(|(at, it)| (at, *member, it)));
        }
        syncs.sort_by_key(|(at, ..)| *at);
        later.sort_by_key(|(at, ..)| *at);
        for (_, member, sync) in &syncs {
            // The member may have been passed over before.
            self.replica.release_all_but(*member, sync, &mut grants);
        }
        let held: Vec<HeldClaims<'_>> =
            syncs.iter().map(|(_, member, sync)| (*member, &sync.in_flight[..], &sync.acting[..])).collect();
        let seen_off = self.replica.install_all(&held, &mut grants);
        for (at, member, sync) in &syncs {
            // What was seen off before a claim was told is no result for it.
            for (_, from, message) in later.iter().filter(|(told, ..)| told < at) {
                self.replica.close_seen_off(*from, message);
            }
            self.replica.submit_all(*member, &sync.waiting, &mut grants);
        }
        self.replica.all_seen_off(&seen_off, &mut grants);
        for (_, member, message) in &later {
            self.replica.deliver(*member, message, &mut grants);
        }
        grants
    }

    /// Takes a message for the replica; before the epoch has begun the message waits.
    pub(super) fn deliver(&mut self, from: Member, message: &HostMessage) -> Vec<(ClaimKey, Grant<()>)> {
        let mut grants = Vec::new();
        if !is_for_replica(message) {
            return grants;
        }
        self.delivered += 1;
        let Some(state) = self.members.get_mut(&from) else { return grants };
        if self.has_begun && state.ready {
            self.replica.deliver(from, message, &mut grants);
        } else if state.sync.is_some() {
            state.later.push((self.delivered, message.clone()));
        }
        grants
    }
}

/// Returns true if [`ReplicatedArbiter::deliver`] acts on the message.
fn is_for_replica(message: &HostMessage) -> bool {
    matches!(
        message,
        HostMessage::Claim(_)
            | HostMessage::Withdraw { .. }
            | HostMessage::SeenOff { .. }
            | HostMessage::Again { .. }
            | HostMessage::Answered { .. }
            | HostMessage::Lingers { .. }
            | HostMessage::Hangs { .. }
            | HostMessage::Finished { .. }
            | HostMessage::Holds { .. }
            | HostMessage::Overdue { .. }
            | HostMessage::Taken { .. }
            | HostMessage::Progress { .. }
            | HostMessage::Reply { .. }
    )
}

/// Replica of the common arbiter, and the holders of each claim.
#[derive(Debug)]
pub(super) struct ReplicatedArbiter {
    pub(super) arbiter: Arbiter,
    /// The arbiter's number of each claim.
    pub(super) numbers: BTreeMap<ClaimKey, u64>,
    /// The claim of each of these numbers.
    pub(super) entries: BTreeMap<u64, ClaimEntry>,
    next: u64,
    start: Instant,
    /// Number of events so far, which is the arbiter's time: see [`Self::now`].
    events: u64,
}

/// Claim in the replica.
#[derive(Debug)]
pub(super) struct ClaimEntry {
    key: ClaimKey,
    claim: ClaimMessage,
    in_flight: bool,
    seen_off: bool,
    /// The client has its answer, and any part of the work may come late.
    answered: bool,
    /// The work is over, and its effect may come late.
    lingers: bool,
    /// The target may go off once more after it was seen off.
    again: bool,
    /// Hosts that may still act for the claim.
    holders: BTreeSet<ClaimHolder>,
    /// Holders that keep the claim for a daemon which is gone ([`super::orphans`]).
    keepers: BTreeSet<ClaimHolder>,
    /// Number of times that each holder has said that it holds on ([`super::claim_ends`]).
    renewed: BTreeMap<ClaimHolder, u64>,
    /// Holders of whose work nothing is left but a power-off that hangs.
    hanging: BTreeSet<ClaimHolder>,
    /// Outcome that the asker reported, or the owner in its place.
    outcome: Option<AskOutcome>,
}

impl ClaimEntry {
    /// Returns whether the target may still be taken down for the claim.
    fn is_danger(&self) -> bool {
        self.claim.takes_down() && (!self.seen_off || self.again || self.lingers)
    }
}

/// Claims in flight of a member: its own, and those that it carries out for others.
type HeldClaims<'a> = (Member, &'a [InFlightClaim], &'a [ActingClaim]);

/// Host that may still act for a claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum ClaimHolder {
    Asker,
    /// Owner that works on this ask.
    Owner(Member, u64),
}

impl ClaimHolder {
    /// Returns the holder that this member is, by the ask that it carries out if it is an owner.
    fn of(member: Member, ask: Option<u64>) -> Self {
        ask.map_or(Self::Asker, |ask| Self::Owner(member, ask))
    }
}

impl ReplicatedArbiter {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            arbiter: Arbiter::default(),
            numbers: BTreeMap::new(),
            entries: BTreeMap::new(),
            next: 1,
            start,
            events: 0,
        }
    }

    /// Returns a time that is later than each one before, and the same on every host but for the start.
    fn now(&mut self) -> Instant {
        self.events += 1;
        self.start + Duration::from_nanos(self.events)
    }

    /// Returns whether the replica has this claim.
    pub(super) fn has(&self, key: ClaimKey) -> bool {
        self.numbers.contains_key(&key)
    }

    /// Returns true if the claims in flight on the domain are starts by this member.
    pub(super) fn is_start_of(&self, member: Member, uuid: &str) -> bool {
        let mut held = self.entries.values().filter(|it| it.in_flight && it.claim.target == uuid).peekable();
        let is_start = |it: &ClaimEntry| it.key.0 == member && it.claim.what == AskAction::On;
        held.peek().is_some() && held.all(is_start)
    }

    fn deliver(&mut self, from: Member, message: &HostMessage, grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        match message {
            HostMessage::Claim(claim) => self.submit((from, claim.id), claim, grants),
            HostMessage::Withdraw { id } => self.release((from, *id), ClaimHolder::Asker, None, grants),
            HostMessage::Finished { id, outcome } => {
                self.release((from, *id), ClaimHolder::Asker, Some(outcome), grants);
            }
            HostMessage::SeenOff { id, victim } => self.seen_off((from, *id), victim, grants),
            HostMessage::Again { id } => {
                if let Some(number) = self.numbers.get(&(from, *id))
                    && let Some(entry) = self.entries.get_mut(number)
                {
                    entry.again = true;
                    self.arbiter.may_come_again(*number);
                }
            }
            HostMessage::Answered { id, outcome } => {
                self.answered((from, *id), LateEffect::Any, outcome, grants);
            }
            HostMessage::Lingers { id, outcome } => {
                self.answered((from, *id), LateEffect::PowerOff, outcome, grants);
            }
            HostMessage::Holds { asker, id, ask } => {
                let holder = ClaimHolder::of(from, *ask);
                if let Some(entry) = self.held_entry((*asker, *id), from, holder) {
                    *entry.renewed.entry(holder).or_default() += 1;
                }
            }
            HostMessage::Overdue { member, asker, id, ask, renewed } => {
                let holder = ClaimHolder::of(*member, *ask);
                let is_over = |it: &mut ClaimEntry| it.renewed.get(&holder).copied().unwrap_or(0) == *renewed;
                if self.held_entry((*asker, *id), *member, holder).is_some_and(is_over) {
                    self.release((*asker, *id), holder, None, grants);
                }
            }
            HostMessage::Hangs { asker, claim, ask } => {
                let (key, holder) = ((*asker, *claim), ClaimHolder::of(from, *ask));
                if let Some(entry) = self.held_entry(key, from, holder) {
                    entry.hanging.insert(holder);
                    if let Some(number) = self.numbers.get(&key).copied() {
                        self.hang_if_all(number, grants);
                    }
                }
            }
            HostMessage::Taken { asker, ask, claim } => {
                let number = self.numbers.get(&(*asker, *claim));
                if let Some(entry) = number.and_then(|it| self.entries.get_mut(it)).filter(|it| it.in_flight)
                {
                    entry.holders.insert(ClaimHolder::Owner(from, *ask));
                }
            }
            HostMessage::Progress { asker, claim, victim, .. } => {
                self.seen_off((*asker, *claim), victim, grants);
            }
            HostMessage::Reply { asker, ask, claim: Some(claim), end } => {
                let outcome = match end {
                    AskEnd::Done(outcome) => Some(outcome),
                    AskEnd::NotHere | AskEnd::NothingDone(_) => None,
                };
                self.release((*asker, *claim), ClaimHolder::Owner(from, *ask), outcome, grants);
            }
            _ => {}
        }
    }

    /// Returns a claim that this member holds in this way.
    fn held_entry(&mut self, key: ClaimKey, by: Member, holder: ClaimHolder) -> Option<&mut ClaimEntry> {
        let entry = self.entries.get_mut(self.numbers.get(&key)?)?;
        let is_its = holder != ClaimHolder::Asker || key.0 == by;
        (is_its && entry.holders.contains(&holder)).then_some(entry)
    }

    /// Returns all holds of claims.
    pub(super) fn holds(&self) -> impl Iterator<Item = ClaimHold> {
        self.entries.values().flat_map(|entry| {
            entry.holders.iter().map(|holder| {
                let (by, ask) = match *holder {
                    ClaimHolder::Asker => (entry.key.0, None),
                    ClaimHolder::Owner(owner, ask) => (owner, Some(ask)),
                };
                let renewed = entry.renewed.get(holder).copied().unwrap_or(0);
                let (key, claim, in_flight) = (entry.key, entry.claim.clone(), entry.in_flight);
                ClaimHold { key, by, ask, claim, in_flight, renewed }
            })
        })
    }

    /// Takes in the claims in flight of members, in this order. Returns those whose target was seen off.
    fn install_all(
        &mut self,
        of: &[HeldClaims<'_>],
        grants: &mut Vec<(ClaimKey, Grant<()>)>,
    ) -> Vec<(ClaimKey, String)> {
        let mut seen_off = Vec::new();
        // An order that may only come late is held under the claim of its asker, if that still works on it.
        for is_late in [false, true] {
            for claims in of {
                seen_off.extend(self.install(*claims, is_late));
            }
        }
        for number in self.entries.keys().copied().collect::<Vec<_>>() {
            self.hang_if_all(number, grants);
        }
        seen_off
    }

    /// Takes in a member's claims in flight: those that may only come late, or the others. Returns those
    /// whose target was seen off.
    fn install(
        &mut self,
        (member, in_flight, acting): HeldClaims<'_>,
        is_late: bool,
    ) -> Vec<(ClaimKey, String)> {
        let own = in_flight.iter().map(|it| ((member, it.claim.id), it, ClaimHolder::Asker));
        let of_others = acting
            .iter()
            .map(|it| ((it.asker, it.held.claim.id), &it.held, ClaimHolder::Owner(member, it.ask)));
        let mut seen_off = Vec::new();
        for (key, held, holder) in own.chain(of_others).filter(|(_, it, _)| it.lingers == is_late) {
            let is_kept = is_late && holder != ClaimHolder::Asker;
            let is_new = !self.numbers.contains_key(&key);
            let number = match self.numbers.get(&key) {
                Some(number) => *number,
                None => {
                    let number = self.number(key, &held.claim, true);
                    let request = self.request(number, key, &held.claim);
                    match (held.lingers, held.answered) {
                        (true, _) => self.arbiter.install_late(request),
                        (false, true) => self.arbiter.install_answered(request, LateEffect::Any),
                        (false, false) => self.arbiter.install(request),
                    }
                    number
                }
            };
            if let Some(entry) = self.entries.get_mut(&number) {
                entry.holders.insert(holder);
                if is_kept {
                    entry.keepers.insert(holder);
                }
                if held.hangs {
                    entry.hanging.insert(holder);
                }
                if is_new || !is_kept {
                    entry.lingers = held.lingers;
                }
                entry.answered |= held.answered;
            }
            if held.answered || held.seen_off {
                self.arbiter.close(number);
            }
            if held.seen_off {
                seen_off.push((key, held.claim.target.clone()));
            }
        }
        seen_off
    }

    fn submit_all(
        &mut self,
        member: Member,
        waiting: &[ClaimMessage],
        grants: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        for claim in waiting {
            self.submit((member, claim.id), claim, grants);
        }
    }

    /// Lets no claim join the one whose target this message says was seen off.
    fn close_seen_off(&mut self, from: Member, message: &HostMessage) {
        let key = match message {
            HostMessage::SeenOff { id, .. } => (from, *id),
            HostMessage::Progress { asker, claim, .. } => (*asker, *claim),
            _ => return,
        };
        if let Some(number) = self.numbers.get(&key) {
            self.arbiter.close(*number);
        }
    }

    fn all_seen_off(&mut self, seen_off: &[(ClaimKey, String)], grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        for (key, victim) in seen_off {
            self.seen_off(*key, victim, grants);
        }
    }

    fn submit(&mut self, key: ClaimKey, claim: &ClaimMessage, grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        if self.numbers.contains_key(&key) {
            return;
        }
        let number = self.number(key, claim, false);
        let request = self.request(number, key, claim);
        match self.arbiter.submit(request.arrived, request) {
            Ok(SubmitResult::Run) => self.carry_out(vec![ArbiterDecision::Run(number)], None, grants),
            Ok(SubmitResult::Wait | SubmitResult::Joined(_)) => {}
            Err(why) => self.carry_out(vec![ArbiterDecision::Drop(number, why)], None, grants),
        }
    }

    fn seen_off(&mut self, key: ClaimKey, victim: &str, grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        let now = self.now();
        let mut decisions = Vec::new();
        if let Some(number) = self.numbers.get(&key)
            && let Some(entry) = self.entries.get_mut(number)
        {
            entry.seen_off = true;
            decisions = self.arbiter.seen_off(now, now, *number);
        }
        // Also for claims that are not in flight any more, or that this replica never had.
        decisions.extend(self.arbiter.victim(now, victim));
        self.carry_out(decisions, None, grants);
    }

    /// Notes that the client of a claim has its answer, and that a part of the work may come late.
    fn answered(
        &mut self,
        key: ClaimKey,
        effect: LateEffect,
        outcome: &AskOutcome,
        grants: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        let now = self.now();
        let Some(number) = self.numbers.get(&key).copied() else { return };
        let Some(entry) = self.entries.get_mut(&number).filter(|it| it.in_flight) else { return };
        match effect {
            LateEffect::Any => entry.answered = true,
            LateEffect::PowerOff | LateEffect::HangingOff => entry.lingers = true,
        }
        let decisions = self.arbiter.answered(now, number, outcome.response == Response::Success, effect);
        let AskOutcome { response, reason, .. } = outcome.clone();
        let result = SharedResult { response, reason, by: format!("one of node {}", key.0.node) };
        self.carry_out(decisions, Some(&result), grants);
    }

    /// Removes a holder of a claim. The claim is over with its last holder.
    fn release(
        &mut self,
        key: ClaimKey,
        holder: ClaimHolder,
        outcome: Option<&AskOutcome>,
        grants: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        let Some(number) = self.numbers.get(&key).copied() else { return };
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if !entry.holders.remove(&holder) {
            return;
        }
        // The asker's outcome counts; if the asker is gone, the owner's.
        if entry.outcome.is_none()
            && (holder == ClaimHolder::Asker || !entry.holders.contains(&ClaimHolder::Asker))
        {
            entry.outcome = outcome.cloned();
        }
        entry.keepers.remove(&holder);
        entry.renewed.remove(&holder);
        entry.hanging.remove(&holder);
        if !entry.holders.is_empty() {
            self.linger_if_kept(number, grants);
            return self.hang_if_all(number, grants);
        }
        let ended = entry.outcome.take().filter(|_| entry.in_flight);
        self.entries.remove(&number);
        self.numbers.remove(&key);
        let now = self.now();
        let decisions = match ended {
            Some(_) => self.arbiter.finished(now, number),
            None => self.arbiter.abandoned(now, number),
        };
        let result = ended.map(|it| SharedResult {
            response: it.response,
            reason: it.reason,
            by: format!("one of node {}", key.0.node),
        });
        self.carry_out(decisions, result.as_ref(), grants);
    }

    /// Notes that the work of a claim is over if only hosts are left that hold it for a daemon which is gone.
    fn linger_if_kept(&mut self, number: u64, grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if entry.lingers || !entry.in_flight || entry.keepers.len() < entry.holders.len() {
            return;
        }
        entry.lingers = true;
        let now = self.now();
        let decisions = self.arbiter.answered(now, number, false, LateEffect::PowerOff);
        self.carry_out(decisions, None, grants);
    }

    /// Notes that a claim hangs if it does at each host that holds it.
    fn hang_if_all(&mut self, number: u64, grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        let Some(entry) = self.entries.get(&number) else { return };
        if !entry.in_flight || !entry.holders.is_subset(&entry.hanging) {
            return;
        }
        let now = self.now();
        let decisions = self.arbiter.answered(now, number, false, LateEffect::HangingOff);
        self.carry_out(decisions, None, grants);
    }

    /// Returns the orders of these members that may still take a domain down, with nobody left to tell of
    /// them.
    pub(super) fn orphans_of(&self, is_gone: impl Fn(&Member) -> bool) -> Vec<OrphanOrder> {
        let mut orphans = Vec::new();
        for entry in self.entries.values().filter(|it| it.in_flight && it.is_danger()) {
            let (asker, claim) = (entry.key.0, &entry.claim);
            let is_owner = |it: &ClaimHolder| *it != ClaimHolder::Asker;
            if !entry.holders.iter().any(is_owner)
                && entry.holders.contains(&ClaimHolder::Asker)
                && is_gone(&asker)
            {
                orphans.push(OrphanOrder::of_asker(asker, claim));
            }
            let is_kept_on = entry.keepers.iter().any(|it| match it {
                ClaimHolder::Owner(owner, _) => !is_gone(owner),
                ClaimHolder::Asker => false,
            });
            for holder in &entry.holders {
                if let ClaimHolder::Owner(owner, ask) = *holder
                    && is_gone(&owner)
                    && !(is_kept_on && entry.keepers.contains(holder))
                {
                    let by = (!entry.keepers.contains(holder)).then_some(owner);
                    orphans.push(OrphanOrder { asker, ask, by, claim: claim.clone() });
                }
            }
        }
        orphans
    }

    /// Ends the claims that a member was believed to hold, but those of its sync.
    fn release_all_but(&mut self, member: Member, sync: &StateSync, grants: &mut Vec<(ClaimKey, Grant<()>)>) {
        let own = sync.in_flight.iter().map(|it| ((member, it.claim.id), ClaimHolder::Asker));
        let of_others =
            sync.acting.iter().map(|it| ((it.asker, it.held.claim.id), ClaimHolder::Owner(member, it.ask)));
        let held: BTreeSet<(ClaimKey, ClaimHolder)> = own.chain(of_others).collect();
        let mut over = Vec::new();
        for entry in self.entries.values() {
            let of_member = entry.holders.iter().filter(|it| match it {
                ClaimHolder::Asker => entry.key.0 == member,
                ClaimHolder::Owner(owner, _) => *owner == member,
            });
            over.extend(of_member.map(|it| (entry.key, *it)).filter(|it| !held.contains(it)));
        }
        for (key, holder) in over {
            self.release(key, holder, None, grants);
        }
    }

    /// Returns a member's claims in flight, and the claims of others that it carries out.
    pub(super) fn held_by(&self, member: Member) -> (Vec<InFlightClaim>, Vec<ActingClaim>) {
        let (mut in_flight, mut acting) = (Vec::new(), Vec::new());
        for entry in self.entries.values().filter(|it| it.in_flight) {
            let held = || InFlightClaim {
                claim: entry.claim.clone(),
                seen_off: entry.seen_off && !entry.again && !entry.lingers,
                lingers: entry.lingers,
                answered: entry.answered,
                hangs: false,
            };
            for holder in &entry.holders {
                match holder {
                    ClaimHolder::Asker if entry.key.0 == member => {
                        in_flight.push(InFlightClaim { hangs: entry.hanging.contains(holder), ..held() });
                    }
                    ClaimHolder::Owner(owner, ask) if *owner == member => {
                        let mut held = InFlightClaim { hangs: entry.hanging.contains(holder), ..held() };
                        if entry.keepers.contains(holder) {
                            (held.lingers, held.seen_off) = (true, false);
                        }
                        acting.push(ActingClaim { asker: entry.key.0, ask: *ask, held });
                    }
                    ClaimHolder::Asker | ClaimHolder::Owner(..) => {}
                }
            }
        }
        (in_flight, acting)
    }

    /// Returns true if a waiting claim conflicts with an operation before it whose outcome can no longer be
    /// learned: one may power off the source of the other, and none of the operation's holders stays.
    pub(super) fn endangered_by(&self, key: ClaimKey, stays: impl Fn(&Member) -> bool) -> bool {
        let Some(number) = self.numbers.get(&key) else { return false };
        self.arbiter.endangered_by(*number).iter().filter_map(|it| self.entries.get(it)).any(|it| {
            !it.holders.iter().any(|holder| match holder {
                ClaimHolder::Asker => stays(&it.key.0),
                ClaimHolder::Owner(owner, _) => stays(owner),
            })
        })
    }

    fn carry_out(
        &mut self,
        decisions: Vec<ArbiterDecision>,
        result: Option<&SharedResult>,
        grants: &mut Vec<(ClaimKey, Grant<()>)>,
    ) {
        for decision in decisions {
            match decision {
                ArbiterDecision::Run(number) => {
                    if let Some(entry) = self.entries.get_mut(&number) {
                        entry.in_flight = true;
                        grants.push((entry.key, Grant::Run(())));
                    }
                }
                ArbiterDecision::Drop(number, why) => {
                    grants.extend(self.forget(number).map(|key| (key, Grant::Rejected(why))));
                }
                ArbiterDecision::Deliver(number) => {
                    // Without an outcome no result is delivered.
                    let key = self.forget(number);
                    grants
                        .extend(key.zip(result).map(|(key, result)| (key, Grant::Coalesced(result.clone()))));
                }
            }
        }
    }

    fn forget(&mut self, number: u64) -> Option<ClaimKey> {
        let entry = self.entries.remove(&number)?;
        self.numbers.remove(&entry.key);
        Some(entry.key)
    }

    fn number(&mut self, key: ClaimKey, claim: &ClaimMessage, in_flight: bool) -> u64 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(key, number);
        // A waiting claim has its asker as the only holder.
        let holders = if in_flight { BTreeSet::new() } else { BTreeSet::from([ClaimHolder::Asker]) };
        let (claim, outcome) = (claim.clone(), None);
        let (seen_off, answered, lingers, again) = (false, false, false, false);
        let (keepers, renewed, hanging) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let entry = ClaimEntry {
            key,
            claim,
            in_flight,
            seen_off,
            answered,
            lingers,
            again,
            holders,
            keepers,
            renewed,
            hanging,
            outcome,
        };
        self.entries.insert(number, entry);
        number
    }

    fn request(&mut self, id: u64, key: ClaimKey, claim: &ClaimMessage) -> ArbiterRequest {
        let now = self.now();
        ArbiterRequest {
            id,
            work: claim.work(),
            name: claim.name,
            source: claim.request_source(),
            // An address or a context id identifies a peer only on the host that saw it.
            peer: claim.peer.as_ref().map(|it| PeerId(format!("{} {it}", key.0))),
            // One host gives a sender one turn at a time: others need no order of theirs.
            sender: None,
            by: TargetKind::Name,
            arrived: now,
            deadline: now + NO_DEADLINE,
        }
    }
}
