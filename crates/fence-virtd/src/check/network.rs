// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of interfaces: those that the listeners need, and bridges that lose multicast. Runs in the process
//! of `--check`. Must never change an interface.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use fence_config::{Config, Family, Listener, MulticastListener, TcpListener};
use fence_net::{Interface, interfaces as system_interfaces, ports as bridge_ports};
use fence_wire::escaped;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::finding::{Finding, words};

const CHECK: &str = "interface";
/// Directory with the interfaces, as the kernel shows them.
pub(super) const CLASS: &str = "/sys/class/net";
/// Next step where guests are on another interface.
const NAME_BRIDGE: &str =
    "name the guests' bridge: interface = \"...\" in the multicast block; ip link lists them";

/// Checks the interface or socket family of each listener. `class` is /sys/class/net.
pub(super) fn interfaces(config: &Config, class: &Path) -> Vec<Finding> {
    let all = match system_interfaces() {
        Ok(all) => all,
        Err(error) => {
            let next = "look for the cause with: ip link";
            return vec![Finding::failed(CHECK, "", format!("can't list the interfaces: {error}"), next)];
        }
    };
    let look = |it: &Listener| match it {
        Listener::Multicast(it) => Some(multicast(it, &all, class)),
        Listener::Tcp(it) => Some(tcp(it, &all)),
        Listener::Vsock(_) => Some(vsock()),
        Listener::Serial(_) => None,
    };
    let several = config.multicasts().count() > 1;
    let named = |listener: &Listener| {
        let mut finding = look(listener)?;
        if let (true, Listener::Multicast(it)) = (several, listener) {
            finding.subject = escaped(&it.place()).to_string();
        }
        Some(finding)
    };
    config.listeners.iter().filter_map(named).collect()
}

/// Checks for bridges that forget the members of a group, because nobody queries them: requests arrive for
/// some minutes, and then no more. `class` is /sys/class/net.
pub(super) fn snooping(config: &Config, class: &Path) -> Vec<Finding> {
    const CHECK: &str = "snooping";
    let wanted: Vec<_> = config.multicasts().map(|it| it.interface.as_deref()).collect();
    let is_wanted = |name: &str| wanted.iter().any(|it| it.is_none_or(|it| it == name));
    let mut bridges: Vec<_> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .filter_map(|it| it.ok()?.file_name().into_string().ok())
        .filter(|it| class.join(it).join("bridge").is_dir() && is_wanted(it))
        .collect();
    bridges.sort();
    let look = |name: &String| {
        let read = |file: &str| fs::read_to_string(class.join(name).join("bridge").join(file)).ok();
        let is_on = |file: &str| read(file).is_some_and(|it| it.trim() != "0");
        let shown = escaped(name).to_string();
        if !is_on("multicast_snooping") {
            return Finding::ok(CHECK, shown, "the bridge floods multicast (snooping is off)");
        }
        if is_on("multicast_querier") {
            return Finding::ok(
                CHECK,
                shown,
                "the bridge asks who wants multicast (snooping and querier are on)",
            );
        }
        let text = "the bridge snoops multicast and nobody on it is known to ask (no querier): requests may \
                    get lost \
                    some minutes after the daemon's start";
        let next = format!(
            "ip link set {shown} type bridge mcast_querier 1 (and keep it: in the bridge's configuration), \
             unless a \
             router on this network is the querier"
        );
        Finding::warning(CHECK, shown, text, next)
    };
    bridges.iter().map(look).collect()
}

fn multicast(settings: &MulticastListener, all: &[Interface], class: &Path) -> Finding {
    let Some(name) = &settings.interface else {
        let ports = bridge_ports().unwrap_or_default();
        let hear: Vec<_> =
            all.iter().filter(|it| it.takes_multicast() && !ports.contains(&it.index)).collect();
        let names = words(hear.iter().map(|it| it.name.as_str()));
        let text = format!(
            "none is named: multicast is heard by {}",
            if names.is_empty() { "none" } else { &names }
        );
        let next = NAME_BRIDGE;
        return if hear.is_empty() {
            Finding::failed(CHECK, "multicast", text, next)
        } else if hear.iter().all(|it| it.is_loopback()) {
            Finding::warning(CHECK, "multicast", text + ", which no guest reaches", next)
        } else {
            Finding::ok(CHECK, "multicast", escaped(&text).to_string())
        };
    };
    let shown = escaped(name).to_string();
    let Some(interface) = all.iter().find(|it| it.name == *name) else {
        let next = "correct interface in the multicast block (ip link lists them), or bring the bridge up \
                    first; \
                    with wait_for_init = \"yes\" the daemon waits for it";
        return Finding::failed(CHECK, shown, "does not exist", next);
    };
    if !interface.is_up() {
        return Finding::failed(CHECK, shown.clone(), "is down", format!("ip link set {shown} up"));
    }
    if !interface.takes_multicast() {
        let next = format!("ip link set {shown} multicast on");
        return Finding::failed(CHECK, shown, "does no multicast", next);
    }
    if interface.is_loopback() {
        return Finding::warning(CHECK, shown, "reaches this host alone", NAME_BRIDGE);
    }
    let family = |it: IpAddr| Family::of(it) == settings.family;
    let mut own = interface.addresses.iter().map(|it| it.ip).filter(|it| family(*it));
    let Some(address) = own.next() else {
        let text =
            format!("up, but without an {} address: guests can't be called back by it", settings.family);
        return Finding::warning(
            CHECK,
            shown.clone(),
            text,
            format!("ip address add ADDRESS/LENGTH dev {shown}"),
        );
    };
    if fs::read_dir(class.join(name).join("brif")).is_ok_and(|mut it| it.next().is_none()) {
        let text = format!("up, does multicast, {address}; a bridge without a port: no guest is on it now");
        let next = format!("start a guest that has a network card on {shown}; or {NAME_BRIDGE}");
        return Finding::warning(CHECK, shown, text, next);
    }
    let carrier = interface.flags.contains(InterfaceFlags::IFF_RUNNING);
    let carrier = if carrier { "" } else { "; nothing is connected to it yet" };
    Finding::ok(CHECK, shown, format!("up, does multicast, {address}{carrier}"))
}

/// Warns of each interface of a multicast block on which no running domain has a network card, while one has
/// its card where no block is. `cards` are the bridges and interfaces with such cards; none where one of them
/// is not known.
pub(super) fn without_guests(
    config: &Config,
    cards: Option<&BTreeSet<String>>,
    class: &Path,
) -> Vec<Finding> {
    let named: Vec<&str> = config.multicasts().filter_map(|it| it.interface.as_deref()).collect();
    let is_all = named.len() == config.multicasts().count();
    // An interface above a bridge, as of a VLAN, is on its network.
    let is_on =
        |name: &str, card: &str| name == card || class.join(name).join(format!("lower_{card}")).exists();
    let others = cards.into_iter().flatten().filter(|card| !named.iter().any(|it| is_on(it, card)));
    let others: Vec<String> = others.map(|it| escaped(it).to_string()).collect();
    if !is_all || others.is_empty() {
        return Vec::new();
    }
    let has_guests = |name: &&str| cards.into_iter().flatten().any(|card| is_on(name, card));
    let empty: BTreeSet<_> =
        named.iter().copied().filter(|it| !has_guests(it) && class.join(it).exists()).collect();
    let warning = |name: &str| {
        let text = format!(
            "no running domain has a network card there (they have: {}): no request of theirs arrives",
            words(others.iter().map(String::as_str))
        );
        Finding::warning(CHECK, escaped(name).to_string(), text, NAME_BRIDGE)
    };
    empty.into_iter().map(warning).collect()
}

fn tcp(settings: &TcpListener, all: &[Interface]) -> Finding {
    let address = settings.address;
    let subject = format!("tcp {address}");
    if address.is_unspecified() {
        return Finding::ok(CHECK, subject, "every address of this host");
    }
    if address.is_loopback() {
        let next = "name the address that guests use: address = \"...\" in the tcp block";
        return Finding::warning(CHECK, subject, "reaches this host alone", next);
    }
    match all.iter().find(|it| it.addresses.iter().any(|it| it.ip == address)) {
        Some(it) if it.is_up() => Finding::ok(CHECK, subject, format!("is on {}", escaped(&it.name))),
        Some(it) => {
            let name = escaped(&it.name).to_string();
            Finding::failed(
                CHECK,
                subject,
                format!("is on {name}, which is down"),
                format!("ip link set {name} up"),
            )
        }
        None => {
            let next = "correct address in the tcp block; ip address lists those that there are";
            Finding::failed(CHECK, subject, "is no address of this host", next)
        }
    }
}

fn vsock() -> Finding {
    let opened = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    if let Err(error) = opened {
        let text = format!("no vsock sockets on this host: {error}");
        return Finding::failed(CHECK, "vsock", text, "modprobe vhost_vsock");
    }
    if Path::new("/dev/vhost-vsock").exists() {
        return Finding::ok(CHECK, "vsock", "guests may have a vsock device");
    }
    let text = "sockets can be made, but there is no /dev/vhost-vsock: no guest can have a vsock device";
    Finding::warning(CHECK, "vsock", text, "modprobe vhost_vsock")
}

#[cfg(test)]
mod tests {
    use super::super::finding::FindingLevel;
    use super::*;

    fn config(more: &str) -> Config {
        let text = format!("fence_virtd {{ }} listeners {{ multicast {{ {more} }} }}");
        fence_config::load(text.as_bytes()).config.unwrap()
    }

    #[test]
    fn a_bridge_that_snoops_without_a_querier() {
        let class = tempfile::tempdir().unwrap();
        let bridge = class.path().join("br7/bridge");
        fs::create_dir_all(&bridge).unwrap();
        fs::create_dir_all(class.path().join("eth0")).unwrap();
        let look = |snooping: &str, querier: &str, more: &str| {
            fs::write(bridge.join("multicast_snooping"), snooping).unwrap();
            fs::write(bridge.join("multicast_querier"), querier).unwrap();
            let found = super::snooping(&config(more), class.path());
            found.into_iter().map(|it| it.result).collect::<Vec<_>>()
        };
        assert_eq!(look("1\n", "0\n", ""), [FindingLevel::Warning]);
        assert_eq!(look("1\n", "1\n", ""), [FindingLevel::Ok]);
        assert_eq!(look("0\n", "0\n", ""), [FindingLevel::Ok]);
        assert_eq!(look("1\n", "0\n", "interface = \"br7\";"), [FindingLevel::Warning]);
        assert_eq!(look("1\n", "0\n", "interface = \"eth0\";"), []);
    }

    #[test]
    fn an_interface_that_no_guest_reaches_is_a_warning() {
        let class = tempfile::tempdir().unwrap();
        let lo = system_interfaces().unwrap().into_iter().find(Interface::is_loopback).unwrap();
        let settings = config(&format!("interface = \"{}\";", lo.name));
        let look = |it: &Interface| {
            let found =
                multicast(settings.multicasts().next().unwrap(), std::slice::from_ref(it), class.path());
            found.lines()
        };
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST | InterfaceFlags::IFF_RUNNING;
        let on = Interface { flags: up | InterfaceFlags::IFF_LOOPBACK, ..lo.clone() };
        assert!(look(&on).starts_with("warning  interface lo: reaches this host alone"), "{}", look(&on));
        let bridge = Interface { flags: up, ..lo };
        assert!(look(&bridge).starts_with("ok"), "{}", look(&bridge));
        let ports = class.path().join("lo/brif");
        fs::create_dir_all(&ports).unwrap();
        assert!(look(&bridge).contains("no guest is on it now"), "{}", look(&bridge));
        fs::create_dir(ports.join("vnet0")).unwrap();
        assert!(look(&bridge).starts_with("ok"), "{}", look(&bridge));
    }

    #[test]
    fn guests_on_another_bridge_are_a_warning() {
        let class = tempfile::tempdir().unwrap();
        for it in ["br9", "virbr0", "br9.7/lower_virbr0"] {
            fs::create_dir_all(class.path().join(it)).unwrap();
        }
        let said = |interface: &str, cards: &[&str]| {
            let cards = cards.iter().map(|it| (*it).to_owned()).collect();
            let settings = config(&format!("interface = \"{interface}\";"));
            let found = without_guests(&settings, Some(&cards), class.path());
            found.iter().map(Finding::lines).collect::<Vec<_>>()
        };
        let lines = said("br9", &["virbr0"]);
        assert!(lines.len() == 1 && lines[0].starts_with("warning  interface br9: no running"), "{lines:?}");
        assert!(lines[0].contains("(they have: virbr0)"), "{lines:?}");
        for (interface, cards) in [
            ("virbr0", &["virbr0"][..]),
            ("br9", &["br9", "virbr0"]),
            ("br9.7", &["virbr0"]),
            ("br9", &[]),
            // It is said already that this one is not there.
            ("none", &["virbr0"]),
        ] {
            assert!(said(interface, cards).is_empty(), "{interface}");
        }
        assert!(without_guests(&config("interface = \"br9\";"), None, class.path()).is_empty());
    }
}
