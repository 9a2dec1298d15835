// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts without host messages: C daemons. They are found and asked by the messages of clients.
//!
//! Owns the order of these questions: one at a time, so that the call-backs find the one port that a firewall
//! may have open. One task looks for such hosts; a question about a domain runs on the task that asks. Must
//! never take silence for an answer, nor the list of one question for another.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::hosts::{FIRST_ROUND, HostKind, KnownHost, Respondent};
use fence_core::listing::{self, HostReply};
use tokio::time::{sleep_until, timeout, timeout_at};
use tracing::debug;

use super::limits::{LEGACY_EVERY, LEGACY_PAUSE, SEARCH_AT, SEARCH_AT_START, SEARCH_LATER};
use super::links::GroupLink;
use super::settings::{NoWayReason, PeerSettings};
use super::state::{PeerCounts, Peers};
use crate::backend::elsewhere::DomainQuestion;
use crate::lists::{self, ClientKeys, FIND_LIMIT, GroupQuestion, LOOK_LIMIT, ReplyFrom};
use crate::util::locks::lock;

/// Way to the hosts of the group, at this moment.
pub(super) struct GroupWay {
    pub(super) question: GroupQuestion,
    pub(super) senders: Vec<lists::SenderAddress>,
    pub(super) keys: Arc<ClientKeys>,
}

impl Peers {
    /// Looks for hosts without host messages for ever: several times at the start, every few minutes, and
    /// when something shows that others exist.
    pub(super) async fn search_legacy(&self) {
        let mut is_first = true;
        loop {
            let ways = self.group_ways(None);
            if ways.is_empty() || self.is_beside_nodes() {
                // No listener is there yet, or nobody is asked.
                self.legacy.wanted.notified().await;
                continue;
            }
            let pause_ends = Instant::now() + LEGACY_PAUSE;
            is_first = tokio::select! {
                biased;
                () = self.legacy.anew.notified() => true,
                () = async {
                    // Where there are several groups, nobody is known before each was searched for a while.
                    let is_long = is_first && ways.len() == 1;
                    for way in &ways {
                        self.search(way, is_first, is_long).await;
                    }
                    self.legacy.searched.send_replace(true);
                    // A host that is slow or not up yet is asked again soon.
                    for way in ways.iter().filter(|_| is_first && !is_long) {
                        self.search(way, false, false).await;
                    }
                    sleep_until(pause_ends.into()).await;
                    let _ = timeout(LEGACY_EVERY, self.legacy.wanted.notified()).await;
                } => false,
            };
        }
    }

    /// Looks once: notes whoever calls back, late ones too, and gives way to every other question.
    async fn search(&self, way: &GroupWay, is_first: bool, is_long: bool) {
        let (times, limit, length) = match (is_first, is_long) {
            (true, true) => (&SEARCH_AT[..], FIRST_ROUND, SEARCH_AT_START),
            (true, false) => (&SEARCH_AT[..], FIRST_ROUND, FIRST_ROUND),
            (false, _) => (&SEARCH_AT[..1], FIND_LIMIT, SEARCH_LATER),
        };
        let mut turn = Some(self.legacy.turn.lock().await);
        let began = Instant::now();
        let until = began + length;
        let rounds = async {
            let mut times: Vec<_> = times.iter().map(|it| began + *it).collect();
            while Instant::now() < until {
                let _turn = match turn.take() {
                    Some(turn) => turn,
                    None => self.legacy.turn.lock().await,
                };
                let (senders, keys) = (way.senders.clone(), Arc::clone(&way.keys));
                let stop = self.legacy.is_turn_wanted();
                let found = |reply: &ReplyFrom| drop(self.note_legacy_replies(std::slice::from_ref(reply)));
                let times_left = (&times[..], until);
                if let Err(error) = lists::search(&way.question, senders, keys, times_left, stop, found).await
                {
                    return debug!("can't look for other hosts by lists: {error}");
                }
                times.retain(|it| *it > Instant::now());
            }
        };
        let in_time = async {
            sleep_until((began + limit).into()).await;
            // Whoever is at another group is known when that one was searched too.
            if self.group_links().len() < 2 {
                self.legacy.searched.send_replace(true);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = rounds => {}
            () = in_time => {}
        }
    }

    /// Waits until no question holds the port of the call-backs, and keeps it so: the listeners are changed
    /// meanwhile, and one of them may need this port.
    pub(crate) async fn without_call_backs(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        timeout(LOOK_LIMIT, self.legacy.take_turn()).await.ok()
    }

    /// Returns the hosts of `peers` that are known to have no host messages, of those that never answered.
    pub(super) fn listed_legacy(&self, listed: &[Respondent]) -> Vec<KnownHost> {
        let table = lock(&self.table);
        let is_listed = |host: &&KnownHost| {
            host.kind == HostKind::Legacy
                && listed.iter().any(|it| match it {
                    Respondent::Address(address) => host.addresses.contains(&address.ip().to_canonical()),
                    Respondent::Host(_) => false,
                })
        };
        table.all().filter(is_listed).cloned().collect()
    }

    /// Looks for a domain at these hosts, and at whoever else calls back. One finding for each.
    pub(super) async fn look_at_legacy(
        &self,
        hosts: &[KnownHost],
        question: &DomainQuestion,
        until: Instant,
    ) -> Vec<Finding> {
        if hosts.is_empty() {
            return Vec::new();
        }
        if self.is_beside_nodes() {
            // Those that are nodes would call back too.
            return self.that_cannot_be_asked(hosts, NoWayReason::Corosync);
        }
        PeerCounts::add(&self.counts.asked);
        let asked = Instant::now();
        let Ok(_turn) = timeout_at(until.into(), self.legacy.take_turn()).await else {
            return self.legacy_unknown(hosts, asked, "could not be asked in time: others are being asked");
        };
        // What is found is not older than this, and the turn may have taken a while.
        let began = Instant::now();
        let ways = self.group_ways(Some(question));
        if ways.is_empty() {
            return self.legacy_unknown(hosts, began, "can't be asked: no multicast listener serves here");
        }
        let addresses: Vec<IpAddr> = hosts.iter().filter_map(|it| it.addresses.first().copied()).collect();
        let is_enough = |replies: &[ReplyFrom], more: &[ReplyFrom]| {
            addresses.iter().all(|address| {
                let has = |kind: fn(&HostReply) -> bool| {
                    replies.iter().chain(more).any(|it| it.host == *address && kind(&it.reply))
                };
                has(|it| matches!(it, HostReply::List(..))) && has(|it| matches!(it, HostReply::Status(_)))
            })
        };
        let limit = until.min(began + LOOK_LIMIT);
        let (mut replies, mut left) = (Vec::new(), ways.len());
        // One after the other: all call back at one port. A group without such hosts gets its share of the
        // time.
        for way in ways {
            let now = Instant::now();
            let share = limit.saturating_duration_since(now) / u32::try_from(left).unwrap_or(1).max(1);
            let heard = |more: &[ReplyFrom]| is_enough(&replies, more);
            match lists::ask(&way.question, way.senders, way.keys, now + share, heard).await {
                Ok(more) => replies.extend(more),
                Err(error) => {
                    let why = format!("can't be asked: no TCP port for its call-back: {error}");
                    return self.legacy_unknown(hosts, began, &why);
                }
            }
            left -= 1;
        }
        let newcomers = self.note_legacy_replies(&replies);
        let newcomers = newcomers.iter().filter(|it| !hosts.iter().any(|host| host.id == it.id));
        let mut findings = Vec::new();
        for host in hosts.iter().chain(newcomers) {
            findings.push(self.legacy_finding(host, &replies, question, began, until).await);
        }
        findings
    }

    async fn legacy_finding(
        &self,
        host: &KnownHost,
        replies: &[ReplyFrom],
        question: &DomainQuestion,
        began: Instant,
        until: Instant,
    ) -> Finding {
        let of_host: Vec<&HostReply> =
            replies.iter().filter(|it| host.addresses.contains(&it.host)).map(|it| &it.reply).collect();
        let is_silent = of_host.is_empty();
        let mut began = began;
        let sight = match listing::sight(&of_host, question.uuid, &question.name) {
            Sight::Unknown(why) => {
                PeerCounts::add(&self.counts.silent);
                let command = self.settings().down_command.clone().filter(|_| is_silent);
                match command {
                    Some(command) => {
                        let who = Respondent::Host(host.id);
                        let (sight, asked) = self.proved_down(&command, who, &why, question, until).await;
                        began = asked;
                        sight
                    }
                    None => Sight::Unknown(legacy_unknown(host, &why, is_silent)),
                }
            }
            known => known,
        };
        Finding::without_namesakes(DomainSite::Host(host.to_string()), sight, began, Instant::now())
    }

    /// Returns that nothing is known of these hosts.
    fn legacy_unknown(&self, hosts: &[KnownHost], began: Instant, why: &str) -> Vec<Finding> {
        let unknown = |host: &KnownHost| {
            PeerCounts::add(&self.counts.silent);
            let sight = Sight::Unknown(legacy_unknown(host, why, false));
            Finding::without_namesakes(DomainSite::Host(host.to_string()), sight, began, Instant::now())
        };
        hosts.iter().map(unknown).collect()
    }

    /// Remembers whoever called back and proved itself. Returns these hosts, as they are asked from now on.
    pub(super) fn note_legacy_replies(&self, replies: &[ReplyFrom]) -> Vec<KnownHost> {
        let own = own_addresses();
        let mut seen: Vec<(IpAddr, u16)> = Vec::new();
        for ReplyFrom { host, reply } in replies.iter().filter(|it| !own.contains(&it.host)) {
            let domains = match reply {
                HostReply::List(domains, _) => u16::try_from(domains.len()).unwrap_or(u16::MAX),
                HostReply::Status(_) | HostReply::Broken(_) => 0,
            };
            match seen.iter_mut().find(|(address, _)| address == host) {
                Some((_, most)) => *most = domains.max(*most),
                None => seen.push((*host, domains)),
            }
        }
        for (address, domains) in &seen {
            self.note_legacy(*address, *domains);
        }
        let is_seen = |it: &&KnownHost| {
            it.kind == HostKind::Legacy && seen.iter().any(|(address, _)| it.addresses.contains(address))
        };
        lock(&self.table).all().filter(is_seen).cloned().collect()
    }

    /// Returns the ways to the groups; none without a multicast listener that serves, or where nobody is
    /// asked.
    pub(super) fn group_ways(&self, question: Option<&DomainQuestion>) -> Vec<GroupWay> {
        let settings = self.settings();
        if settings.mode.is_silent() {
            return Vec::new();
        }
        self.group_links().iter().filter_map(|it| group_way(&settings, it, question)).collect()
    }
}

/// Returns the way to one group; none where the configuration has it no longer.
fn group_way(
    settings: &PeerSettings,
    link: &GroupLink,
    question: Option<&DomainQuestion>,
) -> Option<GroupWay> {
    let keys = Arc::clone(&settings.groups.iter().find(|it| it.is_at(link.place()))?.client);
    let joined = lock(&link.joined).clone();
    let interfaces = fence_net::interfaces().ok()?;
    let by = interfaces.iter().filter(|it| joined.iter().any(|i| i.index == it.index && i.name == it.name));
    let senders = lists::senders(link.group, by);
    let about = question.map(|it| it.uuid);
    let question = GroupQuestion { group: link.group, port: link.port, about, is_from_host: true };
    Some(GroupWay { question, senders, keys })
}

/// Returns why nothing is known of a host without host messages, and the next step.
fn legacy_unknown(host: &KnownHost, why: &str, is_silent: bool) -> String {
    let next = if is_silent {
        "does a C daemon still run there, and is TCP port 1229 of this host open for its call-back? Domains \
         may run there: start that daemon, or power the host off. If the host was upgraded, or is \
         off for good"
    } else {
        "domains may run there: look at the log and at libvirtd there, or power the host off. If the host \
         is off for good"
    };
    format!(
        "host {host} (C daemon) {why}; {next}: fence_virtd --forget {}. peer_down_command can prove that \
         the host is down",
        host.name
    )
}

pub(super) fn own_addresses() -> Vec<IpAddr> {
    let interfaces = fence_net::interfaces().unwrap_or_default();
    interfaces.iter().flat_map(|it| &it.addresses).map(|it| it.ip.to_canonical()).collect()
}
