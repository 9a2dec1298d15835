// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the other hosts that corosync does not know: which there are, whether each answers, and whether a
//! domain is at two places.
//!
//! Asks the multicast group for lists as a client does, unless `peers` is "none"; a list changes nothing.
//! Runs in the process of `--check`. Must never say hello as a daemon does: the other hosts would wait for
//! this process for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fence_config::{BackendKind, Config, MulticastListener, Peers};
use fence_core::domain::DomainId;
use fence_core::hosts::{KnownHost, KnownHosts};
use fence_core::listing::{HostDomain, HostReply};
use fence_net::Interface;
use fence_wire::escaped;

use super::finding::Finding;
use crate::lists::{self, FIND_LIMIT, GroupQuestion, ReplyFrom};
use crate::peers::settings::client_keys;
use crate::peers::store::HostStore;

const CHECK: &str = "peers";
/// Domains at two places that are named one by one.
const MAX_NAMED: usize = 20;

/// Domain of a hypervisor of this host.
pub(super) struct CheckedDomain {
    pub(super) uri: String,
    pub(super) uuid: DomainId,
    pub(super) name: String,
    pub(super) is_on: bool,
}

/// Asks the other hosts, and compares what they have with the domains of this host.
pub(super) fn all(config: &Config, state: Option<&Path>, own: &[CheckedDomain]) -> Vec<Finding> {
    let uses = |kind| config.backends.iter().any(|it| it.kind() == kind);
    let known = state.map(|it| HostStore::at(it).read()).unwrap_or_default();
    let mut places = DomainPlaces::default();
    own.iter().for_each(|it| places.add(it.uuid, &it.name, &it.uri, it.is_on));
    let mut found = Vec::new();
    // Fence agents reach a machine wherever it runs; corosync knows its hosts.
    if uses(BackendKind::Libvirt) && config.daemon.peers != Peers::Nobody {
        let replies = match config.multicast().map(|it| ask(config, it)) {
            None => Vec::new(),
            Some(Ok(replies)) => replies,
            Some(Err(why)) => {
                let next = "correct this first; --check tells more above";
                found.push(Finding::warning(CHECK, "", format!("could not be asked: {why}"), next));
                Vec::new()
            }
        };
        let heard = heard(&replies);
        found.extend(heard.iter().map(|(address, domains)| answering(&known, *address, domains.as_deref())));
        found.extend(silent(config, &known, &heard));
        found.extend(setting(config, &known, &heard));
        for (address, domains) in &heard {
            for domain in domains.iter().flatten() {
                let Some(uuid) = DomainId::parse(&domain.uuid) else { continue };
                places.add(uuid, &domain.name, &shown(&known, *address), !domain.is_off);
            }
        }
    }
    found.extend(places.findings());
    found
}

/// Asks the group for lists, by the interfaces of the listener.
fn ask(config: &Config, listener: &MulticastListener) -> Result<Vec<ReplyFrom>, String> {
    let keys = client_keys(config).map_err(|it| it.to_string())?.ok_or("the listener has no key")?;
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

fn answering(known: &KnownHosts, address: IpAddr, domains: Option<&[HostDomain]>) -> Finding {
    let name = shown(known, address);
    match domains {
        Some(domains) => {
            let on = domains.iter().filter(|it| !it.is_off).count();
            let text = format!(
                "answers a list, and may have the same domains; it lists {}, {on} of them on. Whether it \
                 answers questions of the daemon, the daemon's log says",
                domains.len()
            );
            Finding::ok(CHECK, name, text)
        }
        None => {
            let next = "its log says why; until then nothing that rests on absence is answered here";
            Finding::failed(CHECK, name, "calls back, and its list can't be read", next)
        }
    }
}

/// Returns a finding for each host that must answer and did not.
fn silent(
    config: &Config,
    known: &KnownHosts,
    heard: &BTreeMap<IpAddr, Option<Vec<HostDomain>>>,
) -> Vec<Finding> {
    match &config.daemon.peers {
        Peers::Nobody => Vec::new(),
        Peers::Listed(listed) => {
            let is_silent = |it: &&std::net::SocketAddr| !heard.contains_key(&it.ip().to_canonical());
            let silent = listed.iter().filter(is_silent);
            silent.map(|it| not_heard_of_peers(known, it.ip().to_canonical())).collect()
        }
        Peers::Discovered => {
            let mut found: Vec<_> = known
                .all()
                .filter(|host| !host.addresses.iter().any(|it| heard.contains_key(it)))
                .map(not_heard)
                .collect();
            if let Some(why) = known.missing() {
                let next = "do what the text says; until then no domain is called off that does not run here";
                found.push(Finding::failed(CHECK, "", escaped(why).to_string(), next));
            }
            found
        }
    }
}

fn not_heard(host: &KnownHost) -> Finding {
    let text = format!("does not answer; last heard {}", ago(host.last_heard));
    let next = format!(
        "does fence_virtd run there, and may UDP port 1229 to the group and TCP port 1229 to this host pass? \
         If it is gone for good: fence_virtd --forget {}",
        escaped(&host.name)
    );
    Finding::failed(CHECK, escaped(&host.to_string()).to_string(), text, next)
}

/// Hosts of `peers` are asked by messages of their own, which this process can't send.
fn not_heard_of_peers(known: &KnownHosts, address: IpAddr) -> Finding {
    let text = "named in `peers`, and not heard by multicast, by which --check asks";
    let next = "if multicast does not reach it, all is well: fence_virtd --status on this host shows when it \
                last answered";
    Finding::warning(CHECK, shown(known, address), text, next)
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
        Peers::Listed(peers) => {
            let is_listed = |it: &&IpAddr| peers.iter().any(|peer| peer.ip().to_canonical() == **it);
            let others: Vec<_> = heard.keys().filter(|it| !is_listed(it)).map(ToString::to_string).collect();
            if others.is_empty() {
                return Vec::new();
            }
            let text = format!("hosts answer that `peers` does not name: {}", others.join(", "));
            let next = "add them to `peers` if they can have the same domains; they are not asked";
            vec![Finding::warning(CHECK, "", text, next)]
        }
    }
}

/// Returns the name of a host by one of its addresses.
fn shown(known: &KnownHosts, address: IpAddr) -> String {
    let host = known.all().find(|it| it.addresses.contains(&address));
    host.map_or_else(|| address.to_string(), |it| escaped(&it.to_string()).to_string())
}

fn ago(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match now.saturating_sub(seconds) {
        it @ 0..120 => format!("{it} s ago"),
        it @ 120..7200 => format!("{} min ago", it / 60),
        it => format!("{} h ago", it / 3600),
    }
}

/// Places of each domain: by UUID its name, the places that have it, and those where it is on.
#[derive(Default)]
struct DomainPlaces(BTreeMap<DomainId, (String, BTreeSet<String>, BTreeSet<String>)>);

impl DomainPlaces {
    fn add(&mut self, uuid: DomainId, name: &str, place: &str, is_on: bool) {
        let (_, all, on) =
            self.0.entry(uuid).or_insert_with(|| (name.to_owned(), BTreeSet::new(), BTreeSet::new()));
        all.insert(place.to_owned());
        if is_on {
            on.insert(place.to_owned());
        }
    }

    fn findings(self) -> Vec<Finding> {
        let several: Vec<_> = self.0.into_iter().filter(|(_, (_, all, _))| all.len() > 1).collect();
        let count = several.len();
        let mut found: Vec<_> = several.into_iter().take(MAX_NAMED).map(at_several_places).collect();
        if count > MAX_NAMED {
            let text = format!("{} more are at several places", count - MAX_NAMED);
            found.push(Finding::warning("domain", "", text, "as above"));
        }
        found
    }
}

fn at_several_places(
    (uuid, (name, all, on)): (DomainId, (String, BTreeSet<String>, BTreeSet<String>)),
) -> Finding {
    let list = |it: &BTreeSet<String>| it.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let subject = format!("{} ({uuid})", escaped(&name));
    if on.len() > 1 {
        let text = format!("runs at {} places at once: {}", on.len(), list(&on));
        let next = "a migration is at work, or two machines share one disk: look at once with virsh list";
        return Finding::failed("domain", subject, text, next);
    }
    let runs = if on.is_empty() { "nowhere".to_owned() } else { list(&on) };
    let text = format!("defined at {}; it runs at: {runs}", list(&all));
    let next = "it is called off only when all of these say so; undefine it where it does not belong, or \
                keep it \
                so, if it moves";
    Finding::warning("domain", subject, text, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_at_two_places_is_named_with_both() {
        let id = |it: u8| DomainId::from_bytes([it; 16]);
        let mut places = DomainPlaces::default();
        places.add(id(1), "alone", "here", true);
        places.add(id(2), "moved", "here", false);
        places.add(id(2), "moved", "h2 (10.0.0.2)", true);
        places.add(id(3), "twice", "here", true);
        places.add(id(3), "twice", "h2 (10.0.0.2)", true);
        let lines: Vec<_> = places.findings().iter().map(Finding::lines).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("warning  domain moved"), "{}", lines[0]);
        assert!(lines[0].contains("defined at h2 (10.0.0.2), here; it runs at: h2 (10.0.0.2)"));
        assert!(lines[1].starts_with("failed   domain twice") && lines[1].contains("2 places at once"));
    }
}
