// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the other hosts that corosync does not know: which there are, whether each answers, and whether a
//! domain is at two places.
//!
//! Asks each host as the daemon would, beside it and in its name (see [`crate::peers::probe`]), and the
//! multicast group for lists as a client does, unless `peers` is "none"; neither changes anything. Runs in
//! the process of `--check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fence_config::{BackendKind, Config, Listener, MulticastListener, Peers};
use fence_core::domain::DomainId;
use fence_core::evidence::{self, DomainSite, ProvedOff, Sight};
use fence_core::hosts::{HostKind, KnownHost, KnownHosts};
use fence_core::listing::{HostDomain, HostReply};
use fence_net::Interface;
use fence_wire::{DEFAULT_PORT, escaped};

use super::finding::Finding;
use super::running::RunningDaemon;
use crate::hypervisor::{WrittenEvent, written_events};
use crate::intent::boot_id;
use crate::lists::{self, FIND_LIMIT, GroupQuestion, ReplyFrom};
use crate::peers::PeerSettings;
use crate::peers::left_out::{NO_NODE_STEP, left_out};
use crate::peers::probe::{HostProbe, HostSights, ProbeReport, ProbeResult, ProbedHost, SilenceClue};
use crate::peers::settings::client_keys;
use crate::peers::store::HostStore;
use crate::peers::{HELLO_KEPT, leave_peers};
use crate::util::heard::heard_ago;
use crate::util::{counted, first_names};

const CHECK: &str = "peers";
/// Domains of one kind that are named one by one.
pub(super) const MAX_NAMED: usize = 20;

/// Name of all other hosts, where none of them could be asked.
const EVERY_HOST: &str = "every other host";

/// Next step where a host answers lists, and the daemon has not heard it.
const NOT_HEARD_STEP: &str = "is fence_virtd running here? If it is, for more than a minute: --check on that \
                              host says whether its key for hosts (peer_key_file) is the same, and its \
                              firewall open. Or name that host in `peers` here, and this one there";

/// Name of this host, where one of its hypervisors did not list its domains.
const OWN_SILENT: &str = "this host (see its line `libvirt`)";

/// Beginning of the name of a hypervisor of this host.
const HERE: &str = "this host (";

/// End of the name of a place that no request asks.
const NOT_ASKED: &str = " (not asked)";

/// Domain of a hypervisor of this host.
pub(super) struct CheckedDomain {
    pub(super) uri: String,
    pub(super) uuid: DomainId,
    pub(super) name: String,
    pub(super) is_on: bool,
}

/// Asks the other hosts, and compares what they have with the domains of this host, of which each hypervisor
/// `answers`.
pub(super) fn all(
    config: &Config,
    state: Option<&Path>,
    running: &RunningDaemon,
    (own, answers): (&[CheckedDomain], bool),
) -> Vec<Finding> {
    let mut known = state.map(|it| HostStore::at(it).read_with_announced()).unwrap_or_default();
    running.bring_up_to_date(&mut known);
    let mut places = DomainPlaces::default();
    own.iter().for_each(|it| places.add(it.uuid, &it.name, &format!("{HERE}{})", it.uri), it.is_on));
    let mut found = Vec::new();
    match PeerSettings::load(config) {
        Ok(settings) if settings.is_off() => found.extend(off(config, settings, state, &known)),
        Ok(settings) if settings.is_beside_nodes() => {
            found.extend(beside_nodes(config, settings, state, &known, own));
        }
        Ok(settings) => {
            let heard = lists(config, &mut found);
            let domains = own.iter().filter(|it| it.is_on).count();
            let report = probe(config, settings.clone(), state, &known, &heard, domains);
            let report = report.map(|it| with_other_keys(it, &running.other_keys()));
            places.unheard = unheard(&report);
            if !answers {
                places.unheard.insert(OWN_SILENT.to_owned());
            }
            let strangers = strangers(config, &heard, &report);
            found.extend(of_report(config, &known, &heard, report));
            found.extend(unasked(&known, &heard, &strangers, own));
            found.extend(setting(config, &known, &heard));
            for (address, domains) in &heard {
                for domain in domains.iter().flatten() {
                    let Some(uuid) = DomainId::parse(&domain.uuid) else { continue };
                    let host = shown(&known, *address);
                    let is_asked = is_named(config, &known, *address) && !strangers.contains(address);
                    let place = if is_asked { host } else { format!("{host}{NOT_ASKED}") };
                    places.add(uuid, &domain.name, &place, !domain.is_off);
                }
            }
            let moves = state.map(|it| written_events(it, &boot_id())).unwrap_or_default();
            let asked =
                places.on_at_several().into_iter().chain(places.perhaps_away(&moves)).collect::<Vec<_>>();
            let seen = sights(config, settings, state, &known, &asked);
            if seen.is_none() {
                places.unheard.insert(EVERY_HOST.to_owned());
            }
            let seen = seen.unwrap_or_default();
            places.take(&seen);
            found.extend(away(&places, &moves, &seen, &asked));
        }
        Err(error) => {
            let next = "correct the key, which is named above too; until then the daemon does not start";
            found.push(Finding::failed(CHECK, "", format!("can't be asked: {error}"), next));
        }
    }
    found.extend(places.findings());
    found
}

/// Returns what is to be said where no other host is asked. Those that were heard before must answer all the
/// same, unless the configuration says that there are none.
fn off(config: &Config, settings: PeerSettings, state: Option<&Path>, known: &KnownHosts) -> Vec<Finding> {
    let left_out = if config.daemon.peers == Peers::Nobody { left_out(known) } else { Vec::new() };
    if !left_out.is_empty() {
        return left_out.iter().map(|it| Finding::failed(CHECK, &it.name, it.text(), it.step())).collect();
    }
    let (why, has_no_way) = (why_off(config, &settings), settings.has_no_way());
    let mut found: Vec<_> = why.into_iter().collect();
    if has_no_way && (known.all().next().is_some() || known.missing().is_some()) {
        let heard = BTreeMap::new();
        found.extend(of_report(config, known, &heard, probe(config, settings, state, known, &heard, 0)));
    }
    found
}

fn why_off(config: &Config, settings: &PeerSettings) -> Option<Finding> {
    let is_agent = config.backends.iter().all(|it| it.kind() == BackendKind::Agent);
    if config.daemon.peers == Peers::Nobody && !is_agent {
        let text = "peers = \"none\" is set: no other host is asked, and none gets an answer. This is right \
                    only where no other host can have the same domains. fence_virtd --status names \
                    a host with the key of this one that was heard all the same";
        return Some(Finding::ok(CHECK, "", text));
    }
    settings.has_no_group().then(|| {
        let text = "no multicast listener: other hosts are not looked for";
        let next = "name them in `peers`, or set peers = \"none\" if no other host can have the same domains";
        Finding::warning(CHECK, "", text, next)
    })
}

/// Asks the group for lists, which show the domains of the other hosts.
fn lists(config: &Config, found: &mut Vec<Finding>) -> BTreeMap<IpAddr, Option<Vec<HostDomain>>> {
    let is_one = config.multicasts().count() < 2;
    let mut replies = Vec::new();
    for listener in config.multicasts() {
        match ask(config, listener) {
            Ok(more) => replies.extend(more),
            Err(why) => {
                let next = "correct this first; --check tells more above";
                let place = if is_one { String::new() } else { listener.place() };
                found.push(Finding::warning(
                    CHECK,
                    place,
                    format!("could not be asked for lists: {why}"),
                    next,
                ));
            }
        }
    }
    heard(&replies)
}

/// Asks the other hosts as the daemon does.
fn probe(
    config: &Config,
    settings: PeerSettings,
    state: Option<&Path>,
    known: &KnownHosts,
    heard: &BTreeMap<IpAddr, Option<Vec<HostDomain>>>,
    domains: usize,
) -> Result<ProbeReport, String> {
    let is_ours = |address: &IpAddr| {
        known.all().any(|it| matches!(it.kind, HostKind::Ours(_)) && it.addresses.contains(address))
    };
    let search = heard.keys().any(|it| !is_ours(it));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|it| it.to_string())?.block_on(async {
        Arc::new(HostProbe::new(config, settings, state, known.clone(), domains)?).run(search).await
    })
}

/// Returns the hosts that are asked and of whose domains this check knows nothing: each is silent, or in
/// doubt.
fn unheard(report: &Result<ProbeReport, String>) -> BTreeSet<String> {
    let Ok(report) = report else { return [EVERY_HOST.to_owned()].into() };
    let is_unheard = |it: &&ProbedHost| match &it.result {
        ProbeResult::Answers | ProbeResult::AnswersAsClient | ProbeResult::Node => false,
        ProbeResult::Silent(clue) => *clue != SilenceClue::ThisHost,
        ProbeResult::CantTell(_) | ProbeResult::InDoubt(_) | ProbeResult::ClientCantTell(_) => true,
    };
    let hosts = report.hosts.iter().filter(is_unheard).map(|it| it.name.clone());
    let missing = report.missing.as_ref().map(|_| "a host that may be missing".to_owned());
    hosts.chain(missing).chain(report.has_no_pair.then(|| EVERY_HOST.to_owned())).collect()
}

/// Returns what the other hosts see of these domains themselves; none where they could not be asked. The list
/// of a node of a corosync cluster has the domains of all its nodes.
fn sights(
    config: &Config,
    settings: PeerSettings,
    state: Option<&Path>,
    known: &KnownHosts,
    domains: &[(DomainId, String)],
) -> Option<HostSights> {
    if domains.is_empty() {
        return Some(HostSights::new());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.ok()?.block_on(async {
        let probe = HostProbe::new(config, settings, state, known.clone(), 0).ok()?;
        Arc::new(probe).sights(domains).await
    })
}

/// Returns what is to be said of hosts that a node of a corosync cluster asks beside the nodes.
fn beside_nodes(
    config: &Config,
    settings: PeerSettings,
    state: Option<&Path>,
    known: &KnownHosts,
    own: &[CheckedDomain],
) -> Vec<Finding> {
    if known.all().next().is_none() && known.missing().is_none() {
        return Vec::new();
    }
    let (heard, domains) = (BTreeMap::new(), own.iter().filter(|it| it.is_on).count());
    let report = probe(config, settings, state, known, &heard, domains);
    let report = report.map(|mut report| {
        let is_well = |it: &ProbedHost| it.result == ProbeResult::Answers;
        let (well, rest): (Vec<_>, Vec<_>) = report.hosts.into_iter().partition(is_well);
        report.hosts = rest;
        (well, report)
    });
    let (well, report) = match report {
        Ok((well, report)) => (well, Ok(report)),
        Err(why) => (Vec::new(), Err(why)),
    };
    let found = well.iter().map(|it| {
        let text = "no node of this corosync cluster, and has the key of its hosts: that host is asked, and \
                    answers, before a domain is called off";
        let address = it.addresses.first().map_or_else(|| it.name.clone(), ToString::to_string);
        let next = format!("{NO_NODE_STEP}. If that host is gone for good: fence_virtd --forget {address}");
        Finding::warning(CHECK, &it.name, text, next)
    });
    found.chain(of_report(config, known, &heard, report)).collect()
}

/// Takes the cause of a silence that the daemon heard: messages of the host with another key, at these
/// addresses.
fn with_other_keys(mut report: ProbeReport, other_keys: &BTreeSet<IpAddr>) -> ProbeReport {
    for host in &mut report.hosts {
        let is_unexplained = host.result == ProbeResult::Silent(SilenceClue::Nothing);
        if is_unexplained && host.addresses.iter().any(|it| other_keys.contains(it)) {
            host.result = ProbeResult::Silent(SilenceClue::OtherKey);
        }
    }
    report
}

/// Returns a finding for each host that must answer, and for each that answered a list and is not asked.
fn of_report(
    config: &Config,
    known: &KnownHosts,
    heard: &BTreeMap<IpAddr, Option<Vec<HostDomain>>>,
    report: Result<ProbeReport, String>,
) -> Vec<Finding> {
    let report = match report {
        Ok(report) => report,
        Err(why) => {
            let next = "correct this first: the daemon can't ask the other hosts either";
            return vec![Finding::failed(CHECK, "", format!("could not be asked: {why}"), next)];
        }
    };
    let list_of = |host: &ProbedHost| host.addresses.iter().find_map(|it| heard.get(it));
    let mut found: Vec<_> = report
        .hosts
        .iter()
        .map(|it| match successor(it, &report.hosts) {
            Some(next) => of_old_key(known, it, next),
            None => of_host(config, known, it, list_of(it).map(Option::as_deref)),
        })
        .collect();
    with_keys(&mut found, &report.hosts);
    if has_odd_key(&report.hosts) {
        let text = "every other host uses another key for hosts than this one: the key of this host is the \
                    odd one";
        let next = "copy the key file of one of the others to this host, in the place of its own, and reload \
                    here; change nothing at the others";
        found.insert(0, Finding::failed(CHECK, "this host", text, next));
    }
    let c_daemons = report.hosts.iter().filter(|it| it.result == ProbeResult::AnswersAsClient);
    found.extend(c_daemons.map(|it| {
        let text = format!(
            "{}: this C daemon answers \"off\" for every domain that it does not have, also for one that \
             runs here",
            it.name
        );
        Finding::warning(CHECK, "C daemon", text, "upgrade that daemon, or stop it")
    }));
    if let Some(why) = &report.missing {
        let next = "do what the text says; until then no domain is called off that does not run here";
        found.push(Finding::failed(CHECK, "", escaped(why).to_string(), next));
    }
    if report.has_no_pair {
        let text = "hosts with this daemon were not asked: this host has no key pair yet, which the daemon \
                    makes at its first start";
        let next = "start fence_virtd here, then run --check again. If it runs: it could not write to its \
                    state_dir, which its log says. Make room there, or mend the rights, and restart it";
        found.push(Finding::warning(CHECK, "this host", text, next));
    }
    let is_silent = |it: &ProbedHost| matches!(it.result, ProbeResult::Silent(_));
    if let Some(other) = report.other_port.filter(|_| report.hosts.iter().any(is_silent)) {
        let port = config.daemon.peer_port;
        let text = format!(
            "asked from UDP port {other}, since the daemon that runs here has port {port}: a firewall that \
             lets port {port} alone through keeps this check out, and not the daemon"
        );
        let next = "fence_virtd --status shows when the daemon heard each host";
        found.push(Finding::warning(CHECK, "this host", text, next));
    }
    found
}

/// Returns the addresses of hosts that answered a list, and that the daemon does not ask: it has not heard
/// them. With `peers`, see [`setting`].
fn strangers(
    config: &Config,
    heard: &BTreeMap<IpAddr, Option<Vec<HostDomain>>>,
    report: &Result<ProbeReport, String>,
) -> BTreeSet<IpAddr> {
    let Ok(report) = report else { return BTreeSet::new() };
    let is_probed = |it: &&IpAddr| report.hosts.iter().any(|host| host.addresses.contains(it));
    let is_discovered = config.daemon.peers == Peers::Discovered;
    heard.keys().filter(|it| is_discovered && !is_probed(it)).copied().collect()
}

/// Returns a finding for each of these hosts. One that has a domain of this host is a fault: what runs there
/// is called off here.
fn unasked(
    known: &KnownHosts,
    heard: &BTreeMap<IpAddr, Option<Vec<HostDomain>>>,
    strangers: &BTreeSet<IpAddr>,
    own: &[CheckedDomain],
) -> Vec<Finding> {
    let is_own =
        |it: &HostDomain| DomainId::parse(&it.uuid).is_some_and(|id| own.iter().any(|it| it.uuid == id));
    let hosts = heard.iter().filter(|(it, _)| strangers.contains(it));
    let of_host = |(address, domains): (&IpAddr, &Option<Vec<HostDomain>>)| {
        let listed = listed(domains.as_deref());
        let shared = domains.iter().flatten().filter(|it| is_own(it)).map(|it| escaped(&it.name).to_string());
        let shared: Vec<_> = shared.collect();
        if shared.is_empty() {
            let text = format!("{listed}; the daemon here has not heard that host");
            return Finding::warning(CHECK, shown(known, *address), text, NOT_HEARD_STEP);
        }
        let text = format!(
            "{listed}; the daemon here has not heard that host, so domains that run there are called off \
             here without a question to that host: {}",
            first_names(&shared, MAX_NAMED)
        );
        Finding::failed(CHECK, shown(known, *address), text, NOT_HEARD_STEP)
    };
    hosts.map(of_host).collect()
}

/// Returns what a list of a host says.
fn listed(domains: Option<&[HostDomain]>) -> String {
    match domains {
        Some(domains) => {
            let on = domains.iter().filter(|it| !it.is_off).count();
            format!("lists {}, {on} of them on", counted(domains.len(), "domain"))
        }
        None => "the list of that host can't be read".to_owned(),
    }
}

/// Returns what came of the daemon's question to one host. `list`: it also answered a list.
fn of_host(
    config: &Config,
    known: &KnownHosts,
    host: &ProbedHost,
    list: Option<Option<&[HostDomain]>>,
) -> Finding {
    let lists = list.map_or("that host lists nothing by multicast".to_owned(), listed);
    match &host.result {
        ProbeResult::Answers
            if list.is_none_or(|it| it.is_none()) && config.multicasts().next().is_some() =>
        {
            let text = "answers the daemon's questions; its list did not come. Either that host has another \
                        key for guests than this one: then no guest with the key of this host can fence what \
                        runs there. Or the list did not get in here. Domains that are on at two places are \
                        not looked for there";
            Finding::warning(CHECK, &host.name, text, list_step(config))
        }
        ProbeResult::Answers => {
            Finding::ok(CHECK, &host.name, format!("answers the daemon's questions; {lists}"))
        }
        ProbeResult::AnswersAsClient => {
            let text = format!("a C daemon, which answers the daemon's questions; {lists}");
            Finding::ok(CHECK, &host.name, text)
        }
        ProbeResult::CantTell(why) => {
            let next = "until then nothing that rests on absence is answered here; run --check on that host";
            Finding::failed(CHECK, &host.name, format!("that host can't tell: {why}"), next)
        }
        ProbeResult::InDoubt(why) => {
            let next = "do what the text says; until then nothing that rests on absence is answered here";
            Finding::failed(CHECK, &host.name, why, next)
        }
        ProbeResult::ClientCantTell(why) => {
            let (text, next) = why.split_once("; ").unwrap_or((why, "the log of fence_virtd there says why"));
            Finding::failed(CHECK, &host.name, format!("{text}; {}", last_heard(known, host)), next)
        }
        ProbeResult::Node => {
            let text = "a node of this corosync cluster: corosync asks it, whatever `peers` says";
            let next = "take nodes out of `peers`: that is for hosts that are no nodes";
            Finding::warning(CHECK, &host.name, text, next)
        }
        ProbeResult::Silent(clue) => {
            let says_hello = of_probed(known, host).is_some_and(KnownHost::says_hello_alone);
            let (why, next) = silence(config, host, clue, (list.is_some(), says_hello));
            Finding::failed(
                CHECK,
                &host.name,
                format!("does not answer, and its domains may run there: {why}; {}", last_heard(known, host)),
                next,
            )
        }
    }
}

/// Returns what to look at where a host answers the daemon, and its list did not come to this check.
fn list_step(config: &Config) -> String {
    let has_port = |it: &Listener| matches!(it, Listener::Tcp(tcp) if tcp.port == DEFAULT_PORT);
    let port = if config.listeners.iter().any(has_port) {
        "a TCP port of this host, which may be any one,".to_owned()
    } else {
        format!("TCP port {DEFAULT_PORT} of this host")
    };
    format!(
        "compare the fingerprint of the multicast listener's key that --check shows there: it must be that \
         of this host. If so, guests and daemons need no list; for this check: let {port} in from that host, \
         whose listener this host's multicast must reach"
    )
}

fn last_heard(known: &KnownHosts, host: &ProbedHost) -> String {
    let last = of_probed(known, host);
    last.map_or("never heard before".to_owned(), |it| format!("last heard {}", heard_ago(it.last_heard)))
}

/// Returns what is known of a host from before. One of `peers` that never answered may have said hello.
fn of_probed<'k>(known: &'k KnownHosts, host: &ProbedHost) -> Option<&'k KnownHost> {
    if let Some(id) = host.id {
        return known.host(id);
    }
    let is_named = |it: &&KnownHost| escaped(&it.to_string()).to_string() == host.name;
    let is_there = |it: &&KnownHost| host.addresses.iter().any(|at| it.addresses.contains(at));
    known.all().find(is_named).or_else(|| known.all().find(is_there))
}

/// Returns the cause of a silence, and the next step.
fn silence(
    config: &Config,
    host: &ProbedHost,
    clue: &SilenceClue,
    (has_list, says_hello): (bool, bool),
) -> (String, String) {
    let port = config.daemon.peer_port;
    let address = host.addresses.first().map_or_else(|| host.name.clone(), ToString::to_string);
    let key = config.daemon.peer_key_file.as_deref().map_or_else(
        || {
            "the key file of its listener must be the one of this host; or set peer_key_file on all"
                .to_owned()
        },
        |it| format!("copy {} to it, and name it there as peer_key_file", fence_cli::shown(it)),
    );
    let other_key = key_of_others(config, &address).unwrap_or_else(|| key.clone());
    let gone = gone(config, &address);
    let (is_listed, way) = match config.daemon.peers {
        Peers::Listed(_) => (true, port.to_string()),
        _ => {
            (false, format!("{} to the group", config.multicasts().next().map_or(DEFAULT_PORT, |it| it.port)))
        }
    };
    match clue {
        SilenceClue::NothingThere => (
            "nothing takes messages of hosts there".to_owned(),
            format!(
                "start fence_virtd there with `peers` (not \"none\") and the same peer_port as named \
                 here ({port}), or let the firewall accept this port. {gone}"
            ),
        ),
        SilenceClue::NoWay(error) => (
            format!("no way there: {error}"),
            format!("look at the network there, the route and the firewalls. {gone}"),
        ),
        SilenceClue::ThisHost => {
            ("an address of this host".to_owned(), "take that address out of `peers`".to_owned())
        }
        SilenceClue::OtherPair(name) => (
            format!("{name} answers there with another key pair than before"),
            format!("if that host was installed anew: fence_virtd --forget {address}"),
        ),
        SilenceClue::ListenersKey => (
            "that host has no peer_key_file, and this host has one".to_owned(),
            format!("{key}; then reload the daemon there (SIGHUP)"),
        ),
        SilenceClue::OtherKey => ("that host uses another key for hosts than this one".to_owned(), other_key),
        SilenceClue::HelloAlone => (
            "that host answers hellos and no questions".to_owned(),
            "the log of fence_virtd there says why; is that host overloaded?".to_owned(),
        ),
        SilenceClue::Nothing if says_hello && !is_listed => (
            "that host says hello, and never answered a message of this host".to_owned(),
            format!(
                "does the firewall there let UDP port {way} in from this host? {HELLO_KEPT}. If that host is \
                 gone for good: fence_virtd --forget {address}"
            ),
        ),
        SilenceClue::Nothing if has_list => (
            "that host answers lists of clients, but no message of hosts".to_owned(),
            format!(
                "does this host's own firewall drop UDP port {port} in (nft list ruleset), or the one there? \
                 Has that host another key for hosts, or peers = \"none\"? --check there tells more, and \
                 shows the fingerprint of its key. Another key: {other_key}"
            ),
        ),
        SilenceClue::Nothing => (
            "nothing came back".to_owned(),
            format!(
                "is that host up, does fence_virtd run there with the same key for hosts, and does UDP port \
                 {way} pass in both ways, through this host's own firewall and the one there? {gone}"
            ),
        ),
    }
}

/// Returns the step where two hosts have two files `peer_key_file`: which of them is wrong, nobody but the
/// administrator knows.
fn key_of_others(config: &Config, address: &str) -> Option<String> {
    let file = fence_cli::shown(config.daemon.peer_key_file.as_deref()?);
    Some(format!(
        "all hosts need one key for hosts. A host that was installed anew, or whose key was made last, takes \
         that of the others: here scp -p {address}:{file} {file}; there copy this {file} to it. Then reload \
         the daemon that got it (SIGHUP)"
    ))
}

/// Returns what helps where a host will not answer again. To power it off alone does not.
fn gone(config: &Config, address: &str) -> String {
    let off = if config.daemon.peer_down_command.is_some() {
        "A host that is off is waited for until peer_down_command proves it off"
    } else {
        "To power that host off does not help without peer_down_command"
    };
    let leave = match &config.daemon.peers {
        Peers::Listed(listed) => leave_peers(listed.len(), address),
        _ => format!("fence_virtd --forget {address}"),
    };
    format!("{off}. Only if that host is off for good: {leave}")
}

/// Returns the host that answers where a silent one was: that one was perhaps installed anew.
fn successor<'h>(silent: &ProbedHost, hosts: &'h [ProbedHost]) -> Option<&'h ProbedHost> {
    let is_there = |it: &&ProbedHost| {
        it.result == ProbeResult::Answers
            && it.id != silent.id
            && it.addresses.iter().any(|at| silent.addresses.contains(at))
    };
    matches!(silent.result, ProbeResult::Silent(SilenceClue::Nothing)).then(|| hosts.iter().find(is_there))?
}

/// Returns what is said of a key pair that is silent, while another one answers at its address.
fn of_old_key(known: &KnownHosts, silent: &ProbedHost, next: &ProbedHost) -> Finding {
    let key = |it: &ProbedHost| it.id.map_or_else(|| "another key".to_owned(), |id| format!("key {id}"));
    let text = format!(
        "{} does not answer, and {} answers at its address now; {}",
        key(silent),
        key(next),
        last_heard(known, silent)
    );
    let forget = silent.id.map_or_else(|| silent.name.clone(), |id| id.to_string());
    let step = format!(
        "if that host was installed anew, and nothing of the old installation runs: fence_virtd --forget \
         {forget}. Until then domains that are off are not called off"
    );
    Finding::failed(CHECK, &silent.name, text, step)
}

/// Returns whether this host is the one that has another key than all others, of which there are several.
fn has_odd_key(hosts: &[ProbedHost]) -> bool {
    let is_other_key = |it: &ProbedHost| it.result == ProbeResult::Silent(SilenceClue::OtherKey);
    hosts.len() > 1 && hosts.iter().all(is_other_key)
}

/// Adds its key to each host that has the name of another one.
fn with_keys(found: &mut [Finding], hosts: &[ProbedHost]) {
    for (finding, host) in found.iter_mut().zip(hosts) {
        if let (true, Some(id)) = (hosts.iter().filter(|it| it.name == host.name).count() > 1, host.id) {
            finding.subject = format!("{} key {id}", host.name);
        }
    }
}

/// Asks the group for lists, by the interfaces of the listener.
fn ask(config: &Config, listener: &MulticastListener) -> Result<Vec<ReplyFrom>, String> {
    let keys = client_keys(config, listener).map_err(|it| it.to_string())?;
    let interfaces = fence_net::interfaces().map_err(|it| it.to_string())?;
    let ports = fence_net::ports().map_err(|it| it.to_string())?;
    let is_joined = |it: &&Interface| match &listener.interface {
        Some(only) => *only == it.name,
        None => it.takes_multicast() && !ports.contains(&it.index),
    };
    let senders = lists::senders(listener.address, interfaces.iter().filter(is_joined));
    let question =
        GroupQuestion { group: listener.address, port: listener.port, about: None, is_from_host: false };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let replies = runtime.map_err(|it| it.to_string())?.block_on(lists::ask(
        &question,
        senders,
        Arc::new(keys),
        Instant::now() + FIND_LIMIT,
        |_| false,
    ));
    let own: BTreeSet<IpAddr> =
        interfaces.iter().flat_map(|it| &it.addresses).map(|it| it.ip.to_canonical()).collect();
    let mut replies = replies.map_err(|it| format!("no TCP port for the call-backs: {it}"))?;
    replies.retain(|it| !own.contains(&it.host));
    Ok(replies)
}

/// Returns the hosts that called back, with their domains; none of a host whose list makes no sense.
fn heard(replies: &[ReplyFrom]) -> BTreeMap<IpAddr, Option<Vec<HostDomain>>> {
    let mut heard = BTreeMap::new();
    for ReplyFrom { host, reply } in replies {
        let domains: &mut Option<Vec<HostDomain>> = heard.entry(*host).or_default();
        if let HostReply::List(listed, _) = reply {
            *domains = Some(listed.clone());
        }
    }
    heard
}

/// Returns what is to be said of `peers`.
fn setting(
    config: &Config,
    known: &KnownHosts,
    heard: &BTreeMap<IpAddr, Option<Vec<HostDomain>>>,
) -> Vec<Finding> {
    let addresses: BTreeSet<IpAddr> = heard
        .keys()
        .copied()
        .chain(known.all().filter_map(|it| it.addresses.first().copied()))
        .filter(|it| !known.all().any(|host| host.addresses.iter().skip(1).any(|other| other == it)))
        .collect();
    let listed = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match &config.daemon.peers {
        Peers::Discovered if addresses.is_empty() => {
            vec![Finding::ok(CHECK, "", "none is known and none answers: this host is alone")]
        }
        Peers::Discovered => {
            let text = "`peers` is not set: hosts that were heard are asked, and one that never was is not";
            let next = format!(
                "set peers = \"{listed}\" in the fence_virtd block; or peers = \"none\" if they never have \
                 the same \
                 domains"
            );
            vec![Finding::warning(CHECK, "", text, next)]
        }
        Peers::Nobody => Vec::new(),
        Peers::Listed(_) => unnamed(config, known, &heard.keys().copied().collect()).into_iter().collect(),
    }
}

/// Returns true if requests ask the host at this address, as far as `peers` decides that.
fn is_named(config: &Config, known: &KnownHosts, address: IpAddr) -> bool {
    let Peers::Listed(peers) = &config.daemon.peers else { return true };
    let host = known.all().find(|it| it.addresses.contains(&address));
    let others = host.iter().flat_map(|it| &it.addresses);
    others.chain([&address]).any(|it| peers.iter().any(|peer| peer.ip().to_canonical() == it.to_canonical()))
}

/// Returns what is to be said of hosts that `peers` does not name: those that answered a list, and those of
/// ours that the daemon heard. Who holds the hosts' key can have the same domains.
fn unnamed(config: &Config, known: &KnownHosts, listing: &BTreeSet<IpAddr>) -> Option<Finding> {
    let ours = known.all().filter(|it| matches!(it.kind, HostKind::Ours(_)));
    let heard: BTreeSet<_> = ours
        .filter_map(|it| it.addresses.first().copied())
        .filter(|it| !is_named(config, known, *it))
        .map(|it| shown(known, it))
        .collect();
    let listing = listing.iter().filter(|it| !is_named(config, known, **it)).map(|it| shown(known, *it));
    let all: BTreeSet<_> = heard.iter().cloned().chain(listing).collect();
    if all.is_empty() {
        return None;
    }
    let names = all.into_iter().collect::<Vec<_>>().join(", ");
    let text = format!("hosts were heard that `peers` does not name: {names}");
    // Without `peer_key_file` the key of the lists is the hosts' key.
    Some(if heard.is_empty() && config.daemon.peer_key_file.is_some() {
        let next = "that host is not asked: name it in `peers` on every host if it can have the same domains";
        Finding::warning(CHECK, "", format!("{text}. None was heard with the hosts' key"), next)
    } else {
        let next = "that host is not asked: name it in `peers` on every host, or take its key away. Only if \
                    that host is off for good: fence_virtd --forget HOST";
        Finding::failed(CHECK, "", text, next)
    })
}

/// Returns the name of a host by one of its addresses.
fn shown(known: &KnownHosts, address: IpAddr) -> String {
    let host = known.all().find(|it| it.addresses.contains(&address));
    host.map_or_else(|| address.to_string(), |it| escaped(&it.to_string()).to_string())
}

/// Domain of several that are told apart by their UUIDs.
struct NamedDomain<'d> {
    uuid: DomainId,
    all: &'d BTreeSet<String>,
    on: &'d BTreeSet<String>,
}

impl NamedDomain<'_> {
    fn is_here(&self) -> bool {
        self.all.iter().any(|it| it.starts_with(HERE))
    }

    fn is_on_here(&self) -> bool {
        self.on.iter().any(|it| it.starts_with(HERE))
    }
}

impl fmt::Display for NamedDomain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.on.is_empty() { "off" } else { "on" };
        write!(f, "{} at {} ({state})", self.uuid, listed_names(self.all))
    }
}

/// Returns what is said of a name that different domains have. Of those of this host a name means the only
/// one that is on, and none if several are on, or all are off.
fn of_one_name(name: &str, domains: &[NamedDomain<'_>]) -> Finding {
    const STEP: &str = "rename one (virsh domrename, when it is off), or fence by UUID (pcmk_host_map)";
    let shown: Vec<_> = domains.iter().map(ToString::to_string).collect();
    let text = format!("different domains have this name: {}", shown.join("; "));
    let here = domains.iter().filter(|it| it.is_here()).count();
    let on = domains.iter().filter(|it| it.is_on_here()).count();
    let (subject, refused) = (escaped(name).to_string(), "a fence by this name is refused as ambiguous");
    match (here, on) {
        (0 | 1, _) => {
            Finding::warning("domain", subject, text, format!("a fence by this name may hit either: {STEP}"))
        }
        (_, 0) => Finding::warning("domain", subject, format!("{text}. All are off here: {refused}"), STEP),
        (_, 1) => {
            let text = format!(
                "{text}. A fence by this name means the one that is on here; once that is off, {refused}"
            );
            Finding::warning("domain", subject, text, STEP)
        }
        _ => Finding::failed("domain", subject, format!("{text}. Several are on here: {refused}"), STEP),
    }
}

/// Places of all domains, as far as hosts answered.
#[derive(Default)]
struct DomainPlaces {
    /// By UUID: the name of the domain, the places that have it, and those where it is on.
    domains: BTreeMap<DomainId, (String, BTreeSet<String>, BTreeSet<String>)>,
    /// Hosts that are asked, and of whose domains nothing is known.
    unheard: BTreeSet<String>,
}

impl DomainPlaces {
    fn add(&mut self, uuid: DomainId, name: &str, place: &str, is_on: bool) {
        let (_, all, on) =
            self.domains.entry(uuid).or_insert_with(|| (name.to_owned(), BTreeSet::new(), BTreeSet::new()));
        all.insert(place.to_owned());
        if is_on {
            on.insert(place.to_owned());
        }
    }

    /// Returns a finding for each name that different domains have.
    fn with_one_name(&self) -> Vec<Finding> {
        let mut by_name: BTreeMap<&str, Vec<NamedDomain<'_>>> = BTreeMap::new();
        for (uuid, (name, all, on)) in &self.domains {
            by_name.entry(name).or_default().push(NamedDomain { uuid: *uuid, all, on });
        }
        let several: Vec<_> = by_name.into_iter().filter(|(_, domains)| domains.len() > 1).collect();
        let shown = several.iter().take(MAX_NAMED).map(|(name, domains)| of_one_name(name, domains));
        let mut found: Vec<_> = shown.collect();
        if several.len() > MAX_NAMED {
            let text = format!("different domains have one name {} more times", several.len() - MAX_NAMED);
            found.push(Finding::warning("domain", "", text, "as above"));
        }
        found
    }

    /// Returns a finding for each domain whose name is the UUID of another one.
    fn with_a_uuid_as_name(&self) -> Vec<Finding> {
        let of_domain = |(uuid, (name, all, on)): (
            &DomainId,
            &(String, BTreeSet<String>, BTreeSet<String>),
        )| {
            let meant = DomainId::parse_any_dashes(name).filter(|it| it != uuid)?;
            let (other, at, on_there) = self.domains.get(&meant)?;
            let named = NamedDomain { uuid: *uuid, all, on };
            let meant = NamedDomain { uuid: meant, all: at, on: on_there };
            let outcome = match named.is_here() && meant.is_here() {
                true => "is refused as ambiguous, whichever of them is on",
                false => "may be refused as ambiguous, or hit either",
            };
            let text = format!(
                "the name of this domain ({named}) is the UUID of another one, {} ({meant}). A fence by that \
                 text {outcome}",
                escaped(other)
            );
            let next = format!(
                "rename this domain (virsh domrename, when it is off). Until then fence this one by its own \
                 UUID, and the other one by its name: {}",
                escaped(other)
            );
            Some(Finding::failed("domain", escaped(name).to_string(), text, next))
        };
        self.domains.iter().filter_map(of_domain).take(MAX_NAMED).collect()
    }

    /// Returns the domains that are on at several places by what the hosts list.
    fn on_at_several(&self) -> Vec<(DomainId, String)> {
        let several = self.domains.iter().filter(|(_, (_, _, on))| on.len() > 1);
        several.map(|(uuid, (name, ..))| (*uuid, name.clone())).take(MAX_NAMED).collect()
    }

    /// Returns the domains that are on nowhere, by what the hosts list, and may have moved away: those that
    /// left this host, and those that are at several places.
    fn perhaps_away(&self, moves: &[WrittenEvent]) -> Vec<(DomainId, String)> {
        let is_on = |uuid: DomainId| self.domains.get(&uuid).is_some_and(|(_, _, on)| !on.is_empty());
        let left = moves
            .iter()
            .filter(|it| matches!(it.sight, Sight::MovedAway(_)))
            .map(|it| (it.uuid, it.name.clone()));
        let spare = self.domains.iter().filter(|(_, (_, all, _))| all.len() > 1);
        let all = left.chain(spare.map(|(uuid, (name, ..))| (*uuid, name.clone())));
        let off: BTreeMap<DomainId, String> = all.filter(|(uuid, _)| !is_on(*uuid)).collect();
        off.into_iter().take(MAX_NAMED).collect()
    }

    /// Takes what hosts said that were asked about a domain themselves.
    fn take(&mut self, sights: &HostSights) {
        for ((uuid, host), sight) in sights {
            let Some((_, all, on)) = self.domains.get_mut(uuid) else { continue };
            let Some(sight) = sight else { continue };
            if !matches!(sight, Sight::On | Sight::Moving | Sight::Unknown(_)) {
                on.remove(host);
            }
            if matches!(sight, Sight::Absent | Sight::MovedAway(_)) {
                all.remove(host);
            }
        }
    }

    /// Returns one note for all domains that are defined at the same places and run at one of them at most,
    /// and a finding for each other domain that is at several places, or that shares its name.
    fn findings(self) -> Vec<Finding> {
        let mut with_one_name = self.with_one_name();
        with_one_name.extend(self.with_a_uuid_as_name());
        let several = self.domains.into_iter().filter(|(_, (_, all, _))| all.len() > 1);
        let is_asked = |all: &BTreeSet<String>| !all.iter().any(|it| it.ends_with(NOT_ASKED));
        let (spare, odd): (Vec<_>, Vec<_>) =
            several.partition(|(_, (_, all, on))| on.len() < 2 && is_asked(all));
        let count = odd.len();
        let mut found: Vec<_> =
            odd.into_iter().take(MAX_NAMED).map(|it| at_several_places(it, &self.unheard)).collect();
        if count > MAX_NAMED {
            let text = format!("{} more are at several places", count - MAX_NAMED);
            found.push(Finding::warning("domain", "", text, "as above"));
        }
        let mut by_places: BTreeMap<BTreeSet<String>, Vec<String>> = BTreeMap::new();
        for (_, (name, all, _)) in spare {
            by_places.entry(all).or_default().push(escaped(&name).to_string());
        }
        found.extend(with_one_name);
        found.extend(by_places.into_iter().map(|(places, names)| defined_at(&places, names, &self.unheard)));
        found
    }
}

/// Returns a finding for each of these domains that moved away from a host and is on at none that answered,
/// and whose end no host saw: it can't be called off.
fn away(
    places: &DomainPlaces,
    moves: &[WrittenEvent],
    sights: &HostSights,
    asked: &[(DomainId, String)],
) -> Vec<Finding> {
    let of_domain = |(uuid, name): &(DomainId, String)| {
        let here = moves.iter().filter(|it| it.uuid == *uuid).map(|it| ("this host", &it.sight));
        let seen: Vec<_> = sights.iter().filter(|((it, _), _)| it == uuid).collect();
        let can_tell = |it: &Sight| !matches!(it, Sight::Unknown(_));
        let heard = seen.iter().filter_map(|((_, host), it)| Some((host.as_str(), it.as_ref()?)));
        let told: Vec<_> = here.chain(heard.filter(|(_, it)| can_tell(it))).collect();
        let is_on = places.domains.get(uuid).is_some_and(|(_, _, on)| !on.is_empty());
        if is_on || told.iter().any(|(_, it)| matches!(it, Sight::On | Sight::Moving)) {
            return None;
        }
        let (from, _) = told.iter().find(|(_, it)| matches!(it, Sight::MovedAway(_)))?;
        if is_proved_off(&told) {
            return None;
        }
        let silent = seen.iter().filter(|(_, it)| !it.as_ref().is_some_and(can_tell));
        let unheard = silent.map(|((_, host), _)| host).chain(&places.unheard).cloned().collect();
        Some(of_away(&format!("{} ({uuid})", escaped(name)), from, &unheard))
    };
    let domains: BTreeMap<_, _> = asked.iter().cloned().collect();
    domains.into_iter().filter_map(|it| of_domain(&it)).collect()
}

/// Returns whether this is enough to call a domain off: whether each move has its end, by the rule of a
/// request.
fn is_proved_off(told: &[(&str, &Sight)]) -> bool {
    let now = Instant::now();
    let finding = |(host, sight): &(&str, &Sight)| {
        evidence::Finding::without_namesakes(DomainSite::Host((*host).to_owned()), (*sight).clone(), now, now)
    };
    let round: Vec<_> = told.iter().map(finding).collect();
    ProvedOff::from_rounds(now, &[round.clone(), round]).is_ok()
}

/// Returns what is said of a domain that moved away. While a host is not heard, the domain may run there: to
/// start it would be the second instance.
fn of_away(domain: &str, from: &str, unheard: &BTreeSet<String>) -> Finding {
    let moved = format!("moved away from {from}, or was saved there to a file");
    if unheard.is_empty() {
        let text = format!(
            "{moved}. No host that is asked has the domain on, or saw the domain end after that: status and \
             off of the domain fail"
        );
        let next = "is the domain on at a host that is not asked? Name that host in `peers` of all hosts, \
                    and reload. If the domain is off everywhere: start the domain with virsh at a host that \
                    is asked, then fence the domain";
        return Finding::warning("domain", domain, text, next);
    }
    let text = format!(
        "{moved}, and may run at a host that does not answer, or can't tell: {}. Of the hosts that answered, \
         none has the domain on, or saw the domain end after that: status and off of the domain fail",
        listed_names(unheard)
    );
    let next = "repair that host first: its line `peers`, or fence_virtd --check there, says how. Start the \
                domain nowhere before that. Then run --check again";
    Finding::warning("domain", domain, text, next)
}

fn listed_names(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Returns the note on domains that are defined at several places, which is right for those that move.
fn defined_at(places: &BTreeSet<String>, mut names: Vec<String>, unheard: &BTreeSet<String>) -> Finding {
    names.sort();
    let of_whom = if unheard.is_empty() {
        String::new()
    } else {
        format!(" of the hosts that answered; not heard: {}", listed_names(unheard))
    };
    let text = format!(
        "defined at each of: {}. That is right for a domain that may be started at each of them. None of \
         these runs at two{of_whom}; each is called off only when all of them say so",
        listed_names(places)
    );
    Finding::ok("domain", first_names(&names, MAX_NAMED), text)
}

fn at_several_places(
    (uuid, (name, all, on)): (DomainId, (String, BTreeSet<String>, BTreeSet<String>)),
    unheard: &BTreeSet<String>,
) -> Finding {
    let subject = format!("{} ({uuid})", escaped(&name));
    if on.len() > 1 {
        let text = format!("runs at {} places at once: {}", on.len(), listed_names(&on));
        let next = "a migration is at work, or two machines share one disk: look at once with virsh list. (A \
                    host of a corosync cluster that does not answer the daemon's questions lists the domains \
                    of all nodes.)";
        return Finding::failed("domain", subject, text, next);
    }
    let runs = match (on.is_empty(), unheard.is_empty()) {
        (false, _) => listed_names(&on),
        (true, true) => "nowhere".to_owned(),
        (true, false) => format!("no host that answered; not heard: {}", listed_names(unheard)),
    };
    let text = format!("defined at {}; the domain runs at: {runs}", listed_names(&all));
    let next = "who is \"not asked\" is not waited for before it is called off: name that host in `peers`, \
                or undefine the domain where it does not belong";
    Finding::warning("domain", subject, text, next)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fence_wire::HostHello;

    use super::*;
    use crate::check::finding::FindingLevel;

    fn config(keys: &str) -> Config {
        let text = format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"libvirt\"; peers = \"10.0.0.2\"; {keys} }} \
             listeners {{ multicast {{ }} }} backends {{ libvirt {{ }} }}"
        );
        fence_config::load(text.as_bytes()).config.unwrap()
    }

    #[test]
    fn a_domain_that_moved_away_and_ended_unseen_is_named() {
        let (uuid, host) = (DomainId::from_bytes([7; 16]), "h2 (10.0.0.2)");
        let minutes = |it: u64| Duration::from_secs(it * 60);
        let (left, ended) = (|it| Sight::MovedAway(minutes(it)), |it| Sight::Ended(Some(minutes(it))));
        let said = |here: Option<Sight>, there, is_on| {
            let mut places = DomainPlaces::default();
            places.add(uuid, "vm", "this host", false);
            places.add(uuid, "vm", host, is_on);
            let sights = [((uuid, host.to_owned()), Some(there))].into();
            let moves: Vec<_> =
                here.map(|sight| WrittenEvent { uuid, name: "vm".to_owned(), sight }).into_iter().collect();
            let found = away(&places, &moves, &sights, &[(uuid, "vm".to_owned())]);
            assert!(found.len() < 2, "{found:?}");
            found.first().map_or_else(String::new, |it| it.text.clone())
        };
        let (from_here, from_there) = ("moved away from this host,", "moved away from h2 (10.0.0.2),");
        assert!(said(Some(left(9)), Sight::Off, false).starts_with(from_here));
        assert!(said(None, left(9), false).starts_with(from_there));
        assert_eq!(said(Some(left(9)), ended(3), false), "", "that host saw it end");
        assert_eq!(said(Some(ended(3)), left(9), false), "", "it came here, and ended");
        // An end before the move says nothing, nor does one of which nobody knows when it was.
        assert!(said(Some(left(3)), ended(9), false).starts_with(from_here));
        assert!(said(Some(ended(9)), left(3), false).starts_with(from_there));
        assert!(said(Some(left(3)), Sight::Ended(None), false).starts_with(from_here));
        assert_eq!(said(Some(left(9)), Sight::Off, true), "");
        assert_eq!(said(Some(left(9)), Sight::Moving, false), "");
        assert_eq!(said(None, Sight::Off, false), "");
    }

    /// The domain runs at the silent host, most probably: to start it elsewhere would be the second instance.
    #[test]
    fn a_domain_that_moved_away_while_a_host_is_silent_is_started_nowhere() {
        let (uuid, name) = (DomainId::from_bytes([7; 16]), "vm".to_owned());
        let moves =
            [WrittenEvent { uuid, name: name.clone(), sight: Sight::MovedAway(Duration::from_secs(9)) }];
        let host = |name: &str, result| ProbedHost {
            id: None,
            name: name.to_owned(),
            addresses: Vec::new(),
            result,
        };
        let said = |h1: ProbeResult, sight: Option<Sight>| {
            let hosts = vec![host("h1 (10.0.0.1)", h1), host("h3", ProbeResult::Answers)];
            let mut places = DomainPlaces {
                unheard: unheard(&Ok(ProbeReport { hosts, ..ProbeReport::default() })),
                ..DomainPlaces::default()
            };
            places.add(uuid, "vm", "this host", false);
            let at_h1 = sight.into_iter().map(|it| ((uuid, "h1 (10.0.0.1)".to_owned()), Some(it)));
            let sights = at_h1.chain([((uuid, "h3".to_owned()), Some(Sight::Absent))]).collect();
            places.take(&sights);
            let found = away(&places, &moves, &sights, &[(uuid, name.clone())]);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].lines()
        };
        let silent = || ProbeResult::Silent(SilenceClue::Nothing);
        let doubts = [
            (silent(), None),
            (ProbeResult::CantTell("libvirt hangs".to_owned()), Some(Sight::Unknown("busy".to_owned()))),
            (ProbeResult::InDoubt("who is that?".to_owned()), Some(Sight::Absent)),
            (ProbeResult::ClientCantTell("no answer".to_owned()), None),
            (ProbeResult::Answers, Some(Sight::Unknown("busy".to_owned()))),
        ];
        for (result, sight) in doubts {
            let said = said(result, sight);
            assert!(
                said.contains("does not answer, or can't tell: h1 (10.0.0.1). Of the hosts that"),
                "{said}"
            );
            assert!(said.contains("-> repair that host first") && !said.contains("No host"), "{said}");
            assert!(!said.contains("virsh") && !said.contains("`peers` of all"), "{said}");
        }
        let said = said(ProbeResult::Answers, Some(Sight::Off));
        assert!(said.contains("No host that is asked has the domain on") && said.contains("virsh"), "{said}");
    }

    #[test]
    fn hosts_that_could_not_be_asked_are_not_called_without_a_domain() {
        let mut report = ProbeReport::default();
        assert!(unheard(&Ok(ProbeReport::default())).is_empty());
        assert_eq!(unheard(&Err("no socket".to_owned())), [EVERY_HOST.to_owned()].into());
        report.has_no_pair = true;
        assert_eq!(unheard(&Ok(report)), [EVERY_HOST.to_owned()].into());
        let report = ProbeReport { missing: Some("a file".to_owned()), ..ProbeReport::default() };
        assert_eq!(unheard(&Ok(report)).len(), 1);
        let mut places = DomainPlaces { unheard: ["h1".to_owned()].into(), ..DomainPlaces::default() };
        let id = |it: u8| DomainId::from_bytes([it; 16]);
        for place in ["h2".to_owned(), "h3".to_owned()] {
            places.add(id(1), "cold", &place, false);
            places.add(id(2), "odd", &format!("{place}{NOT_ASKED}"), false);
        }
        let lines: Vec<_> = places.findings().iter().map(Finding::lines).collect();
        assert!(lines[0].contains("the domain runs at: no host that answered; not heard: h1"), "{lines:?}");
        assert!(lines[1].contains("None of these runs at two of the hosts that answered; not heard: h1;"));
    }

    /// Nobody asks such a host, so what runs there is called off.
    #[test]
    fn a_host_with_the_hosts_key_that_nobody_names_is_a_fault() {
        let at = |it: u8| IpAddr::from([10, 0, 0, it]);
        let heard = |last| {
            let mut known = KnownHosts::default();
            let hello =
                HostHello { public: [last; 32], port: 0, domains: 1, name: "h".to_owned(), run: [0; 8] };
            known.heard(&hello, at(last), 7);
            known
        };
        let (config, with_key) = (config(""), config("peer_key_file = \"/k\";"));
        assert!(unnamed(&config, &heard(2), &[at(2)].into()).is_none());
        let level = |it: Option<Finding>| it.map(|it| it.result);
        assert_eq!(level(unnamed(&with_key, &heard(3), &[].into())), Some(FindingLevel::Failed));
        assert_eq!(level(unnamed(&config, &heard(2), &[at(3)].into())), Some(FindingLevel::Failed));
        // Guests have the key of lists, and hosts have another one.
        let found = unnamed(&with_key, &heard(2), &[at(3)].into());
        assert_eq!(level(found), Some(FindingLevel::Warning));
    }

    #[test]
    fn a_host_that_only_says_hello_is_a_fault_of_its_firewall_and_this_host_is_not_alone() {
        let hello = HostHello { public: [2; 32], port: 0, domains: 1, name: "h2".to_owned(), run: [0; 8] };
        let mut table = KnownHosts::default();
        table.heard(&hello, [10, 0, 0, 2].into(), 7);
        let text = "fence_virtd { listener = \"multicast\"; backend = \"libvirt\"; } \
                    listeners { multicast { } } backends { libvirt { } }";
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        let host = ProbedHost {
            id: None,
            name: "h2 (10.0.0.2)".to_owned(),
            addresses: vec![[10, 0, 0, 2].into()],
            result: ProbeResult::Silent(SilenceClue::Nothing),
        };
        let said = of_host(&config, &table, &host, None).lines();
        assert!(
            said.contains("that host says hello, and never answered") && said.contains("UDP port 1229"),
            "{said}"
        );
        let alone = setting(&config, &table, &BTreeMap::new());
        assert!(!alone.iter().any(|it| it.lines().contains("alone")), "{alone:?}");
    }

    /// Else "ok" would tell that nothing is at two places.
    #[test]
    fn a_list_that_did_not_come_is_a_warning_with_the_port() {
        let host = ProbedHost {
            id: None,
            name: "h2".to_owned(),
            addresses: vec![[10, 0, 0, 2].into()],
            result: ProbeResult::Answers,
        };
        let said = |list| of_host(&config(""), &KnownHosts::default(), &host, list);
        for list in [None, Some(None)] {
            let said = said(list).lines();
            assert!(
                said.starts_with("warning")
                    && said.contains("let TCP port 1229 of this host in")
                    && said.contains("another key for guests")
                    && said.contains("-> compare the finger"),
                "{said}"
            );
        }
        assert_eq!(said(Some(Some(&[]))).result, FindingLevel::Ok);
    }

    /// A host that was installed anew has the wrong key itself.
    #[test]
    fn a_key_that_the_daemon_heard_is_the_cause_of_a_silence() {
        let address = IpAddr::from([10, 0, 0, 2]);
        let name = || "h2".to_owned();
        let host = |result| ProbedHost { id: None, name: name(), addresses: vec![address], result };
        let silent = || ProbeReport {
            hosts: vec![host(ProbeResult::Silent(SilenceClue::Nothing))],
            ..ProbeReport::default()
        };
        let (config, known) = (config("peer_key_file = \"/k\";"), KnownHosts::default());
        let said = |report| of_report(&config, &known, &BTreeMap::new(), Ok(report))[0].lines();
        let guessed = said(with_other_keys(silent(), &BTreeSet::new()));
        assert!(guessed.contains("nothing came back"), "{guessed}");
        let said = said(with_other_keys(silent(), &[address].into()));
        assert!(said.contains("that host uses another key for hosts"), "{said}");
        assert!(said.contains("here scp -p 10.0.0.2:/k /k; there copy this /k to it"), "{said}");
    }

    /// One name, and one address: the key tells them apart.
    #[test]
    fn a_host_that_was_installed_anew_is_told_from_its_old_key() {
        let ids = [1, 2].map(|it: u8| fence_wire::HostId::of(&[it; 32]));
        let mut known = KnownHosts::default();
        for (host, at) in [(1, 7), (2, 9)] {
            let (public, name) = ([host; 32], "h2".to_owned());
            let hello = HostHello { public, port: 0, domains: 1, name, run: [0; 8] };
            known.heard_proved(&hello, [10, 0, 0, 2].into(), at, true);
        }
        let host = |id, result| ProbedHost {
            id: Some(id),
            name: "h2 (10.0.0.2)".to_owned(),
            addresses: vec![[10, 0, 0, 2].into()],
            result,
        };
        let silent = host(ids[0], ProbeResult::Silent(SilenceClue::Nothing));
        let hosts = vec![silent, host(ids[1], ProbeResult::Answers)];
        let report = ProbeReport { hosts, ..ProbeReport::default() };
        let heard = [([10, 0, 0, 2].into(), Some(Vec::new()))].into();
        let said = of_report(&config(""), &known, &heard, Ok(report));
        let old = said[0].lines();
        assert!(old.starts_with(&format!("failed   peers h2 (10.0.0.2) key {}", ids[0])), "{old}");
        assert!(old.contains(&format!("key {} answers at its address now", ids[1])), "{old}");
        assert!(old.contains(&format!("fence_virtd --forget {}.", ids[0])), "{old}");
        assert!(!old.contains("another key for hosts"), "{old}");
        let new = said[1].lines();
        assert!(new.starts_with(&format!("ok       peers h2 (10.0.0.2) key {}", ids[1])), "{new}");
    }

    /// The other host's messages may go to addresses where nobody reads them.
    #[test]
    fn a_host_that_was_heard_lately_is_named_where_none_is_set() {
        let text = "fence_virtd { listener = \"tcp\"; backend = \"libvirt\"; peers = \"none\"; } \
                    listeners { tcp { } } backends { libvirt { } }";
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        let said = |known: &KnownHosts| {
            let found = off(&config, PeerSettings::load(&config).unwrap(), None, known);
            found.iter().map(Finding::lines).collect::<String>()
        };
        let mut known = KnownHosts::default();
        // Gone for long.
        known.heard_legacy([10, 0, 0, 8].into(), 1, 7);
        assert!(said(&known).starts_with("ok "), "{}", said(&known));
        known.heard_legacy([10, 0, 0, 9].into(), 1, u64::MAX);
        let said = said(&known);
        assert!(said.starts_with("failed   peers 10.0.0.9: peers = \"none\" says"), "{said}");
        assert!(said.contains("heard 0 s ago") && said.contains("--forget 10.0.0.9"), "{said}");
        assert!(!said.contains("10.0.0.8") && !said.contains("ok "), "{said}");
    }

    /// The daemon waits for them too.
    #[test]
    fn hosts_of_before_are_named_where_the_way_to_them_was_taken_away() {
        let text = "fence_virtd { listener = \"tcp\"; backend = \"libvirt\"; } listeners { tcp { } } \
                    backends { libvirt { } }";
        let config = fence_config::load(text.as_bytes()).config.unwrap();
        let mut known = KnownHosts::default();
        let found = |known: &KnownHosts| off(&config, PeerSettings::load(&config).unwrap(), None, known);
        assert!(found(&known).iter().all(|it| it.result == FindingLevel::Warning));
        known.heard_legacy([10, 0, 0, 9].into(), 1, 7);
        let failed: Vec<_> =
            found(&known).into_iter().filter(|it| it.result == FindingLevel::Failed).collect();
        assert!(failed.len() == 1 && failed[0].lines().contains("can't be asked"), "{failed:?}");
        assert!(failed[0].lines().contains("Name that host in `peers`, or set peers"), "{failed:?}");
        // A node of the cluster is asked by corosync, and lives.
        let cpg = "fence_virtd { listener = \"tcp\"; backend = \"cpg\"; } listeners { tcp { } } backends { \
                   cpg { } }";
        let cpg = fence_config::load(cpg.as_bytes()).config.unwrap();
        let found = off(&cpg, PeerSettings::load(&cpg).unwrap(), None, &known);
        let said: String = found.iter().map(Finding::lines).collect();
        assert!(
            said.contains("a node of this corosync cluster now") && said.contains("nothing off"),
            "{said}"
        );
        assert!(said.contains("fence_virtd --forget 10.0.0.9.") && !said.contains("peers = "), "{said}");
    }

    #[test]
    fn a_domain_that_runs_at_two_places_is_a_fault_and_one_that_is_defined_there_is_none() {
        let id = |it: u8| DomainId::from_bytes([it; 16]);
        let mut places = DomainPlaces::default();
        places.add(id(1), "alone", "here", true);
        places.add(id(2), "moved", "here", false);
        places.add(id(2), "moved", "h2 (10.0.0.2)", true);
        places.add(id(3), "twice", "here", true);
        places.add(id(3), "twice", "h2 (10.0.0.2)", true);
        places.add(id(4), "cold", "here", false);
        places.add(id(4), "cold", "h2 (10.0.0.2)", false);
        let lines: Vec<_> = places.findings().iter().map(Finding::lines).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("failed   domain twice") && lines[0].contains("2 places at once"));
        // As the page on several hosts advises: a note, in one line.
        let note = "ok       domain cold, moved: defined at each of: h2 (10.0.0.2), here. That is right";
        assert!(lines[1].starts_with(note) && lines[1].lines().count() == 1, "{}", lines[1]);
        // Each node of a corosync cluster lists the domains of all.
        let mut places = DomainPlaces::default();
        for (host, sight) in [("h1", Sight::On), ("h2", Sight::Absent), ("h3", Sight::Unknown(String::new()))]
        {
            places.add(id(1), "web", host, true);
            places.add(id(2), "app", host, true);
            places.take(&[((id(1), host.to_owned()), Some(sight))].into());
        }
        assert_eq!(places.on_at_several().len(), 2);
        places.take(&[((id(1), "h3".to_owned()), Some(Sight::Off))].into());
        assert_eq!(places.on_at_several(), [(id(2), "app".to_owned())]);
        let lines: Vec<_> = places.findings().iter().map(Finding::lines).collect();
        assert!(
            lines[0].starts_with("failed   domain app")
                && lines[1].contains("web: defined at each of: h1, h3")
        );
        let mut places = DomainPlaces::default();
        places.add(id(1), "web", "here", true);
        places.add(id(2), "web", "h2 (10.0.0.2)", false);
        places.add(id(3), "db", "here", true);
        let lines: Vec<_> = places.findings().iter().map(Finding::lines).collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with("warning  domain web: different domains"),
            "{lines:?}"
        );
        let each = format!("{} at here (on); {} at h2 (10.0.0.2) (off)", id(1), id(2));
        assert!(lines[0].contains(&each), "{}", lines[0]);
        let mut places = DomainPlaces::default();
        places.add(id(1), "moved", "here", false);
        places.add(id(1), "moved", &format!("h3{NOT_ASKED}"), true);
        let lines = places.findings()[0].lines();
        assert!(lines.starts_with("warning  domain moved") && lines.contains("h3 (not asked)"), "{lines}");
        assert!(lines.contains("the domain runs at: h3") && !lines.contains("say so"), "{lines}");
    }

    #[test]
    fn a_name_that_means_several_domains_of_this_host_is_refused() {
        let id = |it: u8| DomainId::from_bytes([it; 16]);
        let said = |names: [&str; 2], on: [bool; 2]| {
            let mut places = DomainPlaces::default();
            for (place, (name, is_on)) in (1..).zip(names.into_iter().zip(on)) {
                places.add(id(place), name, &format!("{HERE}uri{place})"), is_on);
            }
            places.findings().iter().map(Finding::lines).collect::<Vec<_>>()
        };
        for (on, result, words) in [
            ([true, true], "failed", "Several are on here: a fence by this name is refused as ambiguous"),
            ([false, false], "warning", "All are off here: a fence by this name is refused as ambiguous"),
            ([true, false], "warning", "means the one that is on here; once that is off, a fence by this"),
        ] {
            let lines = said(["web", "web"], on);
            assert!(lines.len() == 1 && lines[0].starts_with(result), "{lines:?}");
            assert!(lines[0].contains(words) && !lines[0].contains("either"), "{lines:?}");
            assert!(lines[0].contains("rename one"), "{lines:?}");
            let lines = said([&id(2).to_string().to_uppercase(), "web"], on);
            let words = format!("{} at this host (uri1)", id(1));
            assert!(lines.len() == 1 && lines[0].starts_with("failed"), "{lines:?}");
            assert!(lines[0].contains(&words) && lines[0].contains("refused as ambiguous"), "{lines:?}");
            assert!(said([&id(1).to_string(), "web"], on).is_empty());
        }
    }
}
