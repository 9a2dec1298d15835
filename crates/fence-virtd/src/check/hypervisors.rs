// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of hypervisors: reachability, their domains, those that libvirt lost, and the sockets that a serial
//! listener would serve.
//! Runs in the process of `--check`, one thread for each URI. Must never change a domain.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fence_cli::shown;
use fence_config::{Backend, Config, SerialListener};
use fence_wire::escaped;
use libvirt_host::{Connection, DomainRecord, Error, OrdinaryConnection, State, XmlKind};

use super::finding::Finding;
use super::hosts::CheckedDomain;
use super::lost_machines::{LostMachine, MachineSearch};
use crate::hypervisor::inventory;
use crate::hypervisor::rights::{READ_ONLY, READ_ONLY_STEP};
use crate::hypervisor::uri::Uri;
use crate::hypervisor::uuid::{domain_id, libvirt_uuid};
use crate::listener::serial::is_ours;
use crate::util::counted;

/// Time for one hypervisor to answer, as at the daemon's start.
const LIMIT: Duration = Duration::from_secs(10);

/// Next step for a libvirtd that answers nothing.
const RESTART_STEP: &str = "systemctl restart libvirtd (or virtqemud), where it runs: guests go on running. \
                            If that does not help: does a machine hang, or the network to that libvirtd?";

/// Most running domains whose network cards are looked for.
const MOST_CARDS: usize = 100;

/// Time for a free worker of libvirtd to take a call.
const WORKER_LIMIT: Duration = Duration::from_secs(3);

/// Hypervisors of this host, as they show themselves.
pub(super) struct CheckedHypervisors {
    pub(super) found: Vec<Finding>,
    pub(super) own: Vec<CheckedDomain>,
    /// Each of them has listed its domains.
    pub(super) is_whole: bool,
    /// Bridges and interfaces on which running domains of this machine have network cards; none where that of
    /// one card is not known.
    pub(super) cards: Option<BTreeSet<String>>,
}

/// One hypervisor, as it shows itself.
#[derive(Default)]
struct CheckedUri {
    found: Vec<Finding>,
    domains: Vec<CheckedDomain>,
    lost: Vec<LostMachine>,
    cards: Option<BTreeSet<String>>,
    /// True once the domains were listed.
    is_listed: bool,
}

/// Checks every URI of the backend and of the serial listener, all at once.
pub(super) fn all(config: &Config) -> CheckedHypervisors {
    let backends: Vec<_> = config.backends.iter().flat_map(Backend::uris).collect();
    let serial = config.serial();
    let mut uris: Vec<String> = Vec::new();
    for uri in backends.iter().copied().chain(serial.map(|it| &it.uri)) {
        if !uris.contains(uri) {
            uris.push(uri.clone());
        }
    }
    let search = MachineSearch::make(&uris);
    let end = Instant::now() + LIMIT;
    // A call to a hypervisor that hangs can't be ended: its thread ends with the process.
    let asked: Vec<_> = uris
        .into_iter()
        .map(|uri| {
            let (tell, told) = mpsc::channel();
            let (asked, serial) = (uri.clone(), serial.filter(|it| it.uri == uri).cloned());
            let (search, gets_orders) = (search.clone(), backends.contains(&&uri));
            thread::spawn(move || {
                drop(tell.send(look(&asked, serial.as_ref(), search.as_ref(), gets_orders)));
            });
            (uri, told)
        })
        .collect();
    let (mut found, mut own, mut lost, mut is_whole) = (Vec::new(), Vec::new(), Vec::new(), true);
    let mut cards = Some(BTreeSet::new());
    for (uri, told) in asked {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(seen) => {
                found.extend(seen.found);
                own.extend(seen.domains);
                lost.extend(seen.lost);
                cards = cards.zip(seen.cards).map(|(all, more)| all.into_iter().chain(more).collect());
                is_whole &= seen.is_listed;
            }
            Err(_) => {
                (is_whole, cards) = (false, None);
                let text = format!("no answer within {} s", LIMIT.as_secs());
                found.push(Finding::failed("libvirt", escaped(&uri).to_string(), text, RESTART_STEP));
            }
        }
    }
    if let Some(search) = search {
        found.extend(search.judge(lost, &mut own, is_whole));
    }
    CheckedHypervisors { found, own, is_whole, cards }
}

/// `gets_orders`: the backend orders domains off and on there.
fn look(
    uri: &str,
    serial: Option<&SerialListener>,
    search: Option<&MachineSearch>,
    gets_orders: bool,
) -> CheckedUri {
    let listed = Connection::open(uri).and_then(|connection| {
        let domains: Vec<_> = connection.domains()?.into_iter().map(|it| own_domain(uri, it)).collect();
        Ok((connection, domains))
    });
    let (connection, domains) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            return CheckedUri { found: vec![unreachable(uri, &error.to_string())], ..CheckedUri::default() };
        }
    };
    let (all, on) = (domains.len(), domains.iter().filter(|it| it.is_on).count());
    let text = format!("reached; {}, {on} of them running", counted(all, "domain"));
    let worker = free_worker(&connection);
    let is_read_only = gets_orders && worker.as_ref().is_some_and(|it| is_read_only(it, &domains));
    let mut found = vec![if is_read_only {
        let text = format!("{text}. But {READ_ONLY}");
        Finding::failed("libvirt", escaped(uri).to_string(), text, READ_ONLY_STEP)
    } else if all == 0 {
        let next = "if there should be some: virsh -c with this URI lists what its user may see \
                    (qemu:///session is not \
                    qemu:///system)";
        Finding::warning("libvirt", escaped(uri).to_string(), text, next)
    } else {
        Finding::ok("libvirt", escaped(uri).to_string(), text)
    }];
    match &worker {
        Some(worker) => found.extend(serial.map(|it| sockets(worker, it))),
        None => found.push(workers_busy(uri)),
    }
    let lost = search.map(|it| it.lost_at(uri, &connection, &domains)).unwrap_or_default();
    let cards = match Uri::of(uri).is_local() {
        true => worker.and_then(|it| cards(it, &domains)),
        false => Some(BTreeSet::new()),
    };
    CheckedUri { found, domains, lost, cards, is_listed: true }
}

/// Returns whether the connection may only read, by the first domain that tells.
fn is_read_only(worker: &OrdinaryConnection, domains: &[CheckedDomain]) -> bool {
    let told = domains.iter().find_map(|it| {
        let domain = worker.domain_by_uuid(libvirt_uuid(it.uuid)).ok()??;
        worker.of(&domain).is_read_only().ok()
    });
    told.unwrap_or(false)
}

/// Returns the connection for calls that need an ordinary worker of libvirtd; none if all of these are busy.
fn free_worker(connection: &Connection) -> Option<OrdinaryConnection> {
    #[expect(clippy::disallowed_methods, reason = "no daemon's pool is here; the answer is waited for below")]
    let worker = OrdinaryConnection::new(connection);
    let (tell, told) = mpsc::channel();
    let asked = worker.clone();
    thread::spawn(move || drop(tell.send(asked.ping_worker())));
    // An error comes again with the next call.
    told.recv_timeout(WORKER_LIMIT).is_ok().then_some(worker)
}

/// Returns where the running domains have their network cards; none where that is not known of each.
fn cards(worker: OrdinaryConnection, domains: &[CheckedDomain]) -> Option<BTreeSet<String>> {
    let on: Vec<_> = domains.iter().filter(|it| it.is_on).map(|it| libvirt_uuid(it.uuid)).collect();
    if on.len() > MOST_CARDS {
        return None;
    }
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut found = BTreeSet::new();
        for uuid in on {
            let domain = worker.domain_by_uuid(uuid).ok().flatten();
            let xml = domain.and_then(|it| worker.of(&it).xml(XmlKind::default()).ok());
            let Some(cards) = xml.and_then(|it| places_of_cards(&it)) else { return };
            found.extend(cards);
        }
        drop(tell.send(found));
    });
    told.recv_timeout(WORKER_LIMIT).ok()
}

/// Returns the bridge or interface of each network card of a running domain; none where one is another
/// kind of card, such as one of Open vSwitch, whose network can have several interfaces of the host.
fn places_of_cards(xml: &str) -> Option<Vec<String>> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let cards = document.descendants().filter(|it| {
        it.has_tag_name("interface") && it.parent().is_some_and(|it| it.has_tag_name("devices"))
    });
    let place = |card: roxmltree::Node<'_, '_>| {
        let child = |tag| card.children().find(|it| it.has_tag_name(tag));
        let source = child("source")?;
        let place = source.attribute("bridge").or_else(|| source.attribute("dev"))?;
        child("virtualport").is_none().then(|| place.to_owned())
    };
    // One without a network of the host: its guest reaches no listener by it.
    let is_user = |it: &roxmltree::Node<'_, '_>| it.attribute("type") == Some("user");
    cards.filter(|it| !is_user(it)).map(place).collect()
}

fn workers_busy(uri: &str) -> Finding {
    let text = format!(
        "all ordinary workers of libvirtd are busy: none answered within {} s. Off and status work; a start, \
         and an off that has to remove a saved memory, wait",
        WORKER_LIMIT.as_secs()
    );
    let next = "most probably calls wait for a machine that hangs: virsh domcontrol says \"occupied\" of it. \
                Fence it, or stop the program that asks about it";
    Finding::warning("libvirt", escaped(uri).to_string(), text, next)
}

fn own_domain(uri: &str, record: DomainRecord) -> CheckedDomain {
    CheckedDomain {
        uri: escaped(uri).to_string(),
        uuid: domain_id(record.uuid),
        name: record.name,
        // One that moved away left its definition behind.
        is_on: !matches!(record.state, State::ShutOff | State::MovedAway),
    }
}

/// Checks the sockets that the serial listener would serve.
fn sockets(connection: &OrdinaryConnection, settings: &SerialListener) -> Finding {
    const CHECK: &str = "serial";
    let subject = settings.path.as_deref().map(shown).unwrap_or_default();
    let next = "add one to a domain, <serial type='unix'> or <channel type='unix'> with <source mode='bind' \
                path='...'/>, \
                and start it anew; see fence_virt.conf(5)";
    match served(connection, settings) {
        Err(error) => Finding::failed(CHECK, subject, format!("the domains can't be read: {error}"), next),
        Ok((0, _)) => {
            let text = format!("no running domain has a socket for requests (mode {})", settings.mode);
            Finding::warning(CHECK, subject, text, next)
        }
        Ok((count, missing)) if missing.is_empty() => Finding::ok(
            CHECK,
            subject,
            format!("{count} sockets of running domains (mode {})", settings.mode),
        ),
        Ok((count, missing)) => {
            let text = format!(
                "{count} sockets of running domains, but these are not there: {}",
                missing.join(", ")
            );
            Finding::warning(
                CHECK,
                subject,
                text,
                "look whether the domain runs on this host: ls -l, virsh list",
            )
        }
    }
}

/// Returns the number of sockets, and those whose file is missing.
fn served(connection: &OrdinaryConnection, settings: &SerialListener) -> Result<(usize, Vec<String>), Error> {
    let (mut count, mut missing) = (0, Vec::new());
    for record in connection.domains()?.iter().filter(|it| it.state != State::ShutOff) {
        let Some(domain) = connection.domain_by_uuid(record.uuid)? else { continue };
        let Ok(domain) =
            inventory::read(domain_id(record.uuid), &connection.of(&domain).xml(XmlKind::default())?)
        else {
            continue;
        };
        for port in domain.ports.iter().filter(|it| is_ours(it, settings.mode, settings.path.as_deref())) {
            count += 1;
            if !port.path.exists() {
                missing.push(format!("{} of {}", shown(&port.path), escaped(&domain.name)));
            }
        }
    }
    Ok((count, missing))
}

fn unreachable(uri: &str, why: &str) -> Finding {
    let next = "is libvirtd (virtqemud) running, and may this user use it? virsh -c with this URI tells more";
    Finding::failed("libvirt", escaped(uri).to_string(), why, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_of_each_card_is_read() {
        let domain = |cards: &str| {
            places_of_cards(&format!("<domain><metadata/><devices><disk/>{cards}</devices></domain>"))
        };
        let cards = "<interface type='network'><source network='default' bridge='virbr0'/></interface>\
                     <interface type='direct'><source dev='eth0'/></interface>\
                     <interface type='user'/>";
        assert_eq!(domain(cards), Some(vec!["virbr0".to_owned(), "eth0".to_owned()]));
        assert_eq!(domain(""), Some(Vec::new()));
        for unknown in [
            "<interface type='bridge'><source bridge='ovs0'/><virtualport type='openvswitch'/></interface>",
            "<interface type='vhostuser'><source type='unix' path='/s'/></interface>",
            "<interface type='network'><source network='default'/></interface>",
        ] {
            assert_eq!(domain(&format!("{cards}{unknown}")), None, "{unknown}");
        }
    }
}
