// SPDX-License-Identifier: GPL-2.0-or-later
//! Questions of this host to the others, and what their answers show.
//!
//! Owns the repeats and the time of a question. Runs on the task of the request that is about to call a
//! domain off. Everyone who must answer is in the result: a silent one is unknown.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_core::domain::{DomainId, TargetKind};
use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::hosts::{HostFinding, HostKind, KnownHost, Respondent, Round};
use fence_core::owed_start::PlaceWord;
use fence_wire::{HostAnswer, HostAsk, HostBody, HostNonce, HostSight, escaped};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};
use tracing::info;

use super::down::SilentSubject;
use super::identity;
use super::legacy::own_addresses;
use super::limits::{ASK_AT, MAX_QUESTIONS, MAX_SEEKING, PEER_LIMIT};
use super::links::MessageWay;
use super::settings::{NoWayReason, PeerMode};
use super::state::{OpenQuestion, PeerCounts, Peers};
use crate::backend::BoxedFuture;
use crate::backend::elsewhere::{DomainQuestion, PeerHosts};
use crate::lists::FIND_LIMIT;
use crate::util::join::join_all;
use crate::util::locks::lock;

impl PeerHosts for Peers {
    fn look<'a>(&'a self, question: &'a DomainQuestion, until: Instant) -> BoxedFuture<'a, Vec<Finding>> {
        Box::pin(self.look_elsewhere(question, until))
    }

    fn recall<'a>(
        &'a self,
        question: &'a DomainQuestion,
        until: Instant,
    ) -> BoxedFuture<'a, Vec<(DomainSite, PlaceWord)>> {
        Box::pin(self.recall_elsewhere(question, until))
    }
}

const NOT_READY: &str = "other hosts can't be heard yet, since the multicast listener is not up; the log \
                         says why. If there are none: peers = \"none\"";
const STILL_LOOKING: &str = "other hosts are still being looked for: ask again in a few seconds";
/// Pause before it is looked again whether the listener is up.
const NOT_READY_PAUSE: Duration = Duration::from_millis(20);

/// Time for which a host that proved nothing is waited for.
pub(crate) const HELLO_KEPT: &str =
    "A host that is off is waited for until five minutes after its last hello";

/// Question of this host in the table of open ones, which leaves it with this value.
struct ListedQuestion<'p> {
    peers: &'p Peers,
    nonce: HostNonce,
    wake: Arc<Notify>,
    seeks_instance: bool,
}

impl Peers {
    /// Asks the hosts that are known now, and returns what those tell that answered before the first of them
    /// had an instance, or until all have.
    async fn seek_instance(&self, question: &DomainQuestion, until: Instant) -> Vec<Finding> {
        let (mode, began) = (self.settings().mode.clone(), Instant::now());
        if mode == PeerMode::Discovered && !self.can_hear() {
            return Vec::new();
        }
        let (_, _, mut respondents) = self.respondents(&mode);
        respondents.retain(|it| self.doubt(*it).is_none());
        if respondents.is_empty() {
            return Vec::new();
        }
        PeerCounts::add(&self.counts.asked);
        let found = self.answers(question, &respondents, began, until).await;
        let told = found.into_iter().flatten().filter(|it| it.answer.is_some()).collect();
        self.judge(question, told, (began, until), "").await
    }

    async fn look_elsewhere(&self, question: &DomainQuestion, until: Instant) -> Vec<Finding> {
        if question.seeks_instance {
            return self.seek_instance(question, until).await;
        }
        let mode = self.settings().mode.clone();
        match mode {
            PeerMode::Off => return Vec::new(),
            PeerMode::NoWay(why) => return self.known_that_cannot_be_asked(why),
            PeerMode::Discovered | PeerMode::Listed(_) => {}
        }
        let mut is_ready = true;
        if mode == PeerMode::Discovered {
            match self.first_round(self.first_round_limit(until)).await {
                // Hosts without host messages take longer.
                Some(end) => {
                    self.has_searched(until.min(end + FIND_LIMIT)).await;
                    self.has_settled(until).await;
                    self.has_found_all(until).await;
                }
                None => is_ready = self.is_beside_nodes(),
            }
        }
        let began = Instant::now();
        let unknown = |host: &str, why: String| {
            let place = DomainSite::Host(host.to_owned());
            Finding::without_namesakes(place, Sight::Unknown(why), began, Instant::now())
        };
        if !is_ready {
            return vec![unknown("that may be there", NOT_READY.to_owned())];
        }
        let (missing, legacy, respondents) = self.respondents(&mode);
        let mut findings = Vec::new();
        let incomplete = lock(&self.table).incomplete().map(str::to_owned);
        if let (Some(why), PeerMode::Discovered) = (incomplete, &mode) {
            findings.push(unknown("that may be there", format!("{why}; {STILL_LOOKING}")));
        }
        findings.extend(missing.map(|why| unknown("that is not remembered", why)));
        findings.extend(self.own_doubt().map(|why| unknown("that has the key pair of this one", why)));
        // Whoever answers with the name of a host in doubt may be another one.
        let respondents = respondents.into_iter().filter(|who| match self.doubt(*who) {
            Some(why) => {
                findings.push(unknown(&self.shown(*who), why));
                false
            }
            None => true,
        });
        let respondents: Vec<_> = respondents.collect();
        let ours = async {
            if respondents.is_empty() {
                return Vec::new();
            }
            self.ask(question, respondents, began, until).await
        };
        let legacy = if question.is_for_text { Vec::new() } else { legacy };
        let (of_ours, of_legacy) = tokio::join!(ours, self.look_at_legacy(&legacy, question, until));
        findings.extend(of_ours);
        findings.extend(of_legacy);
        self.wait_until_kept(until).await;
        findings
    }

    /// Returns that nothing is known of hosts that were heard before the configuration took the way to them.
    pub(super) fn known_that_cannot_be_asked(&self, no_way: NoWayReason) -> Vec<Finding> {
        self.drop_nodes();
        let (now, missing) = (Instant::now(), lock(&self.table).missing().map(str::to_owned));
        let place = DomainSite::Host("that is not remembered".to_owned());
        let missing = missing.map(|why| Finding::without_namesakes(place, Sight::Unknown(why), now, now));
        missing.into_iter().chain(self.that_cannot_be_asked(&self.known(), no_way)).collect()
    }

    /// Returns that nothing is known of these hosts.
    pub(super) fn that_cannot_be_asked(&self, hosts: &[KnownHost], no_way: NoWayReason) -> Vec<Finding> {
        let (began, all) = (Instant::now(), self.known());
        let known = hosts.iter().map(|host| {
            let is_alone = all.iter().filter(|it| it.name.eq_ignore_ascii_case(&host.name)).count() == 1;
            let name = if is_alone { escaped(&host.name).to_string() } else { host.id.to_string() };
            let shown = escaped(&host.to_string()).to_string();
            let (no_way, step) = (no_way.text(), no_way.step(&name));
            let why = format!("host {shown} was heard before and can't be asked: {no_way}. {step}");
            (shown, why)
        });
        let unknown = |(host, why)| {
            Finding::without_namesakes(DomainSite::Host(host), Sight::Unknown(why), began, Instant::now())
        };
        known.map(unknown).collect()
    }

    /// Waits until the other hosts had time to answer the first hellos, and returns the end of that time.
    /// None if no hello could be sent: then nobody can know who else is there.
    async fn first_round(&self, until: Instant) -> Option<Instant> {
        loop {
            let now = Instant::now();
            let can_hear = self.can_hear();
            let end = lock(&self.schedule).first_round_ends().filter(|_| can_hear);
            match end {
                Some(end) if end <= now => return Some(end),
                _ if now >= until => return None,
                Some(end) => sleep_until(end.min(until).into()).await,
                None => sleep_until((now + NOT_READY_PAUSE).min(until).into()).await,
            }
        }
    }

    /// Returns true if other hosts can be heard by each multicast group of the configuration.
    pub(super) fn can_hear(&self) -> bool {
        let settings = self.settings();
        self.group_links().len() >= settings.groups.len().max(1) && !settings.keys.is_empty()
    }

    /// Waits until hosts without host messages were looked for: true, or until then: false.
    async fn has_searched(&self, until: Instant) -> bool {
        // Without the keys of clients there is no way to them. Beside a corosync cluster they are not
        // looked for.
        self.is_beside_nodes() || self.settings().groups.is_empty() || self.legacy.has_searched(until).await
    }

    /// Waits until hosts of earlier runs that may not be remembered had time to answer.
    pub(super) async fn has_found_all(&self, until: Instant) {
        let is_complete = || lock(&self.table).incomplete().is_none();
        let ends = lock(&self.schedule).whole_round_ends();
        let Some(ends) = ends.filter(|_| !is_complete()) else { return };
        sleep_until(ends.min(until).into()).await;
        let has_searched = self.has_searched(until).await;
        // They may have been forgotten meanwhile, or the search began anew.
        let is_over = lock(&self.schedule).whole_round_ends().is_some_and(|it| it <= Instant::now());
        if has_searched && is_over && lock(&self.table).note_complete() {
            let known = lock(&self.table).all().count();
            info!(known, "all other hosts had time to answer: those that are known now are asked");
            self.changed.notify_one();
        }
    }

    /// Waits until a daemon that was started anew is told from a second one with its key pair.
    async fn has_settled(&self, until: Instant) {
        let settles = *lock(&self.settles);
        if let Some(settles) = settles.filter(|it| *it > Instant::now()) {
            sleep_until(settles.min(until).into()).await;
        }
    }

    /// Returns everyone who must answer: why one may be missing, hosts without host messages, and the others.
    pub(super) fn respondents(&self, mode: &PeerMode) -> (Option<String>, Vec<KnownHost>, Vec<Respondent>) {
        match mode {
            PeerMode::Off | PeerMode::NoWay(_) => (None, Vec::new(), Vec::new()),
            PeerMode::Discovered => {
                self.drop_unproved();
                let table = lock(&self.table);
                let (legacy, ours): (Vec<_>, Vec<_>) =
                    table.all().cloned().partition(|it| it.kind == HostKind::Legacy);
                let ours = ours.iter().map(|it| Respondent::Host(it.id)).collect();
                (table.missing_now(Instant::now()), legacy, ours)
            }
            // The configuration names all of them, whatever was heard.
            PeerMode::Listed(listed) => {
                let own = self.listed_own(listed);
                let who =
                    |it| lock(&self.table).pinned(it).map_or(Respondent::Address(*it), Respondent::Host);
                let others = listed.iter().filter(|it| !own.contains(it)).map(|it| (it, who(it)));
                // Corosync asks the nodes, and proves that one is down.
                let is_asked = |(at, who): &(&SocketAddr, Respondent)| !self.is_listed_node(at, *who);
                let who: Vec<_> = others.filter(is_asked).map(|(_, who)| who).collect();
                let legacy = self.listed_legacy(&who);
                let is_legacy = |it: &Respondent| match it {
                    Respondent::Address(at) => {
                        legacy.iter().any(|host| host.addresses.contains(&at.ip().to_canonical()))
                    }
                    Respondent::Host(_) => false,
                };
                let ours = who.into_iter().filter(|it| !is_legacy(it)).collect();
                (lock(&self.table).missing().map(str::to_owned), legacy, ours)
            }
        }
    }

    /// Returns the addresses of `peers` at which this daemon itself takes messages: a question there reaches
    /// nobody else. One at which another host ever answered is that host's. Other ports, and those of the
    /// loopback, may be another daemon's.
    pub(super) fn listed_own(&self, listed: &[SocketAddr]) -> Vec<SocketAddr> {
        let port = self.settings().port;
        let is_free = |it: &SocketAddr| lock(&self.table).pinned(it).is_none();
        let may_be =
            |it: &&SocketAddr| it.port() == port && !it.ip().to_canonical().is_loopback() && is_free(it);
        let candidates: Vec<_> = listed.iter().filter(may_be).copied().collect();
        if candidates.is_empty() {
            return candidates;
        }
        let own = own_addresses();
        candidates.into_iter().filter(|it| own.contains(&it.ip().to_canonical())).collect()
    }

    async fn ask(
        &self,
        question: &DomainQuestion,
        respondents: Vec<Respondent>,
        began: Instant,
        until: Instant,
    ) -> Vec<Finding> {
        PeerCounts::add(&self.counts.asked);
        let mut findings = match self.answers(question, &respondents, began, until).await {
            Some(found) => self.judge(question, found, (began, until), "does not answer").await,
            None => {
                let silent = respondents.iter().map(|who| HostFinding { who: *who, answer: None });
                let silence = "was not asked: too many questions are open";
                self.judge(question, silent.collect(), (began, until), silence).await
            }
        };
        if !HostAsk::can_name(&question.name) {
            findings.iter_mut().for_each(|it| it.sight = sight_of_cut_name(&it.sight, &it.place, question));
        }
        findings
    }

    /// Asks, and returns what each one said until all have answered, or one that has an instance where that
    /// is enough, or the time is over; none if too many questions are open.
    pub(super) async fn answers(
        &self,
        question: &DomainQuestion,
        respondents: &[Respondent],
        began: Instant,
        until: Instant,
    ) -> Option<Vec<HostFinding>> {
        let limit = until.min(began + PEER_LIMIT);
        let open = self.list(question, respondents)?;
        for turn in 0..ASK_AT.len() {
            self.send_ask(&open, question, limit);
            let next = ASK_AT.get(turn + 1).map_or(limit, |it| (began + *it).min(limit));
            if self.is_answered(&open, question, next, limit).await || next >= limit {
                break;
            }
            let now = Instant::now();
            if lock(&self.silent).are_given_up(&open.silent(), now.duration_since(began), now) {
                break;
            }
        }
        // One that ended early does not tell who is silent.
        if !question.seeks_instance {
            lock(&self.silent).record(&open.silent(), respondents, Instant::now());
        }
        Some(open.findings())
    }

    /// Enters a question into the table of open ones; none if there are too many.
    fn list(&self, question: &DomainQuestion, who: &[Respondent]) -> Option<ListedQuestion<'_>> {
        let nonce = identity::nonce().ok()?;
        let mut questions = lock(&self.questions);
        // Answers depend on the others: many fences of machines that run here leave room for these.
        let room = if question.seeks_instance { MAX_SEEKING } else { MAX_QUESTIONS };
        if questions.len() >= room {
            return None;
        }
        let wake = Arc::new(Notify::new());
        let round = Round::new(nonce, question.uuid.to_bytes(), who.iter().copied());
        questions.insert(nonce, OpenQuestion { round, wake: Arc::clone(&wake), has_met: false });
        Some(ListedQuestion { peers: self, nonce, wake, seeks_instance: question.seeks_instance })
    }

    /// Waits until enough have answered: true, or until then: false. Who is met for the first time is asked
    /// at once.
    async fn is_answered(
        &self,
        open: &ListedQuestion<'_>,
        question: &DomainQuestion,
        until: Instant,
        limit: Instant,
    ) -> bool {
        loop {
            let (is_complete, has_met) = open.state();
            if is_complete {
                return true;
            }
            if has_met {
                self.send_ask(open, question, limit);
            }
            if timeout_at(until.into(), open.wake.notified()).await.is_err() {
                return open.state().0;
            }
        }
    }

    /// Sends the question to those who have not answered.
    fn send_ask(&self, open: &ListedQuestion<'_>, question: &DomainQuestion, limit: Instant) {
        let left = limit.saturating_duration_since(Instant::now()).as_millis();
        let ask = HostAsk {
            uuid: question.uuid.to_bytes(),
            left_ms: left.try_into().unwrap_or(u16::MAX),
            takes_parts: true,
            takes_namesakes: true,
            asks_memory: question.asks_memory,
            is_by_uuid: question.by == TargetKind::Uuid,
            name: question.name.clone(),
        };
        let ask = self.encoded(&self.message(None, open.nonce, HostBody::Ask(ask)));
        match &self.settings().mode {
            PeerMode::Off | PeerMode::NoWay(_) => {}
            PeerMode::Discovered => self.send(&MessageWay::Group, &ask),
            PeerMode::Listed(listed) => {
                let silent = open.silent();
                for address in listed {
                    let pinned = lock(&self.table).pinned(address);
                    match pinned {
                        Some(id) if silent.contains(&Respondent::Host(id)) => {
                            self.send(&MessageWay::Unicast(*address), &ask);
                        }
                        None => self.say_hello_to(*address),
                        Some(_) => {}
                    }
                }
            }
        }
    }

    /// Returns what the answers show; for the silent ones, what proves them down, if anything does.
    async fn judge(
        &self,
        question: &DomainQuestion,
        found: Vec<HostFinding>,
        (began, until): (Instant, Instant),
        silence: &str,
    ) -> Vec<Finding> {
        let command = self.settings().down_command.clone();
        let judged = found.into_iter().map(|HostFinding { who, answer }| {
            let command = command.clone();
            async move {
                let host = self.shown(who);
                // The command is not asked about a host that is another one.
                let command = command.filter(|_| self.doubt(who).is_none());
                if answer.is_some() {
                    self.down.forget(&self.name_and_address(who).1);
                }
                let namesakes = answer.iter().flat_map(|it| &it.namesakes);
                let namesakes = namesakes.map(|it| DomainId::from_bytes(*it)).collect();
                let (sight, began) = match (answer, command) {
                    (Some(answer), _) => match (self.doubt(who), sight(&host, &answer)) {
                        // Noticed while the question was open.
                        (Some(why), sight) if sight != Sight::On => (Sight::Unknown(why), began),
                        (_, sight) => (sight, began),
                    },
                    (None, Some(command)) => {
                        PeerCounts::add(&self.counts.silent);
                        self.proved_down(&command, who, silence, question, until).await
                    }
                    (None, None) => {
                        PeerCounts::add(&self.counts.silent);
                        (Sight::Unknown(self.silent(who, silence)), began)
                    }
                };
                Finding { place: DomainSite::Host(host), sight, began, ended: Instant::now(), namesakes }
            }
        });
        join_all(judged).await
    }

    /// Asks the command whether a silent host is down: then nothing runs there. Returns that, and when this
    /// look began: as the command was asked. An answer that an earlier round of the same request had counts
    /// in the next round too, if the host can't have booted since.
    pub(super) async fn proved_down(
        &self,
        command: &Path,
        who: Respondent,
        silence: &str,
        question: &DomainQuestion,
        until: Instant,
    ) -> (Sight, Instant) {
        let (name, address) = self.name_and_address(who);
        let is_told = match who {
            Respondent::Host(id) => lock(&self.table).host(id).is_some_and(|it| it.is_proved),
            Respondent::Address(_) => true,
        };
        if !is_told {
            // Anybody who holds the key may have told the name of another host, which is down.
            let (silent, command) = (self.silent(who, silence), fence_cli::shown(command));
            let why = "not asked, since the host never proved its name and address to this one";
            return (Sight::Unknown(format!("{silent}; {command}: {why}")), Instant::now());
        }
        let subject = SilentSubject { command: command.to_owned(), name, address };
        let (said, asked) = self.down.ask(subject, question, until).await;
        let sight = match said {
            Ok(evidence) => {
                info!(host = %escaped(&self.shown(who)), "silent, and down: {evidence}");
                Sight::Down(evidence)
            }
            Err(why) => {
                let silent = self.silent(who, silence);
                Sight::Unknown(format!("{silent}; {}: {why}", fence_cli::shown(command)))
            }
        };
        (sight, asked.max(question.round))
    }

    /// Returns why nothing is known of a silent host, and the next step.
    fn silent(&self, who: Respondent, silence: &str) -> String {
        if let Some(why) = self.doubt(who) {
            return why;
        }
        if let Respondent::Address(address) = who
            && let Some(why) = lock(&self.strays).get(&address)
        {
            return why.clone();
        }
        let (host, (name, address)) = (self.shown(who), self.name_and_address(who));
        let address = address.parse::<IpAddr>().map(|it| it.to_canonical());
        if address.is_ok_and(|it| lock(&self.other_keys).explains(it, Instant::now())) {
            return format!(
                "host {host} {silence}: the messages of that host have another key. Use the same \
                 peer_key_file on all hosts (without it: the same key of the multicast listener), and reload"
            );
        }
        let settings = self.settings();
        let off = if settings.down_command.is_some() {
            "A host that is off is waited for until peer_down_command proves it off"
        } else {
            "To power that host off does not help without peer_down_command (one that was set after the \
             start of fence_virtd may need a restart: the log says so)"
        };
        match &settings.mode {
            PeerMode::Listed(listed) => format!(
                "host {host} {silence}; its domains may run there. Start fence_virtd there, with this host \
                 in its `peers`; let UDP in there from this host. {off}. Only if that host is off for \
                 good: {}",
                leave_peers(listed.len(), &name)
            ),
            _ => {
                let firewall = self.firewall_of_hello(who);
                let off = if firewall.is_some() { HELLO_KEPT } else { off };
                let node =
                    if self.is_beside_nodes() { " and is no node of this corosync cluster" } else { "" };
                format!(
                    "host {host} {silence}{node}{}; its domains may run: start fence_virtd there. {off}. If \
                     that host is gone for good: fence_virtd --forget {name}",
                    firewall.unwrap_or_default()
                )
            }
        }
    }

    /// Returns the likely cause where a host says hello, and answered no message of this host ever.
    fn firewall_of_hello(&self, who: Respondent) -> Option<String> {
        let Respondent::Host(id) = who else { return None };
        let is_only_heard = lock(&self.table).host(id).is_some_and(KnownHost::says_hello_alone);
        let port = self.group_links().first().map(|it| it.port)?;
        is_only_heard.then(|| {
            format!(
                ", though that host says hello: does the firewall there let UDP port {port} in from this \
                 host?"
            )
        })
    }

    pub(super) fn shown(&self, who: Respondent) -> String {
        match who {
            Respondent::Host(id) => lock(&self.table)
                .host(id)
                .map_or_else(|| id.to_string(), |it| escaped(&it.to_string()).to_string()),
            Respondent::Address(address) => address.to_string(),
        }
    }

    pub(super) fn name_and_address(&self, who: Respondent) -> (String, String) {
        match who {
            Respondent::Host(id) => {
                let host = lock(&self.table).host(id).cloned();
                let told = host.as_ref().and_then(|it| it.addresses.first().copied());
                // An address of `peers` is the administrator's word.
                let mut listed = self.listed().into_iter();
                let named = listed.find(|it| lock(&self.table).pinned(it) == Some(id));
                let address = named.map(|it| it.ip()).or(told);
                let name = host.map_or_else(|| id.to_string(), |it| escaped(&it.name).to_string());
                (name, address.map(|it| it.to_string()).unwrap_or_default())
            }
            Respondent::Address(address) => (address.ip().to_string(), address.ip().to_string()),
        }
    }
}

impl ListedQuestion<'_> {
    /// Returns whether enough have answered, and whether one was met since the last call.
    fn state(&self) -> (bool, bool) {
        let mut questions = lock(&self.peers.questions);
        let Some(it) = questions.get_mut(&self.nonce) else { return (true, false) };
        let has_one = |it: &HostFinding| {
            it.answer.as_ref().is_some_and(|it| matches!(it.sight, HostSight::On | HostSight::Moving))
        };
        let is_found = self.seeks_instance && it.round.findings().iter().any(has_one);
        (is_found || it.round.is_complete(), std::mem::take(&mut it.has_met))
    }

    fn silent(&self) -> Vec<Respondent> {
        lock(&self.peers.questions).get(&self.nonce).map(|it| it.round.silent().collect()).unwrap_or_default()
    }

    fn findings(&self) -> Vec<HostFinding> {
        lock(&self.peers.questions)
            .get(&self.nonce)
            .map(|it| it.round.findings().to_vec())
            .unwrap_or_default()
    }
}

impl Drop for ListedQuestion<'_> {
    fn drop(&mut self) {
        lock(&self.peers.questions).remove(&self.nonce);
    }
}

/// Returns how a host that is off for good is taken out of `peers`, which can't be empty.
pub(crate) fn leave_peers(listed: usize, host: &str) -> String {
    if listed > 1 {
        "take that host out of `peers` and reload".to_owned()
    } else {
        format!(
            "that host is the only name in `peers`, so take the line out, reload, and call \
             fence_virtd --forget {host}"
        )
    }
}

/// Returns what a host shows that was asked by a part of the name alone. Another domain with the whole name,
/// which would make it unable to tell, was not looked for there.
fn sight_of_cut_name(sight: &Sight, place: &DomainSite, question: &DomainQuestion) -> Sight {
    match sight {
        Sight::On | Sight::Moving | Sight::Down(_) | Sight::Unknown(_) => sight.clone(),
        Sight::Off | Sight::Absent | Sight::Ended(_) | Sight::MovedAway(_) => Sight::Unknown(format!(
            "{place} can't be asked for the name {}, which has more than 63 bytes or a control character: \
             rename the domain",
            escaped(&question.name)
        )),
    }
}

/// Returns what a host said, as evidence.
pub(super) fn sight(host: &str, answer: &HostAnswer) -> Sight {
    let age = answer.age_ms.map(Duration::from_millis);
    match answer.sight {
        HostSight::On => Sight::On,
        HostSight::Moving => Sight::Moving,
        HostSight::Off => Sight::Off,
        HostSight::Absent => Sight::Absent,
        HostSight::MovedAway => Sight::MovedAway(age.unwrap_or_default()),
        HostSight::Ended => Sight::Ended(age),
        HostSight::Unknown => Sight::Unknown(format!("host {host}: {}", escaped(&answer.reason))),
    }
}
