// SPDX-License-Identifier: GPL-2.0-or-later
//! Running domains, with the facts by which a request can arrive or its source be identified: MAC addresses,
//! vsock context ids, serial ports and channels on UNIX sockets.
//!
//! One task per hypervisor (`running.rs`) keeps an inventory up to date. Readers get the state as it was last
//! seen and never wait. While libvirt is away the inventory stays: the domains run on without it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use fence_core::domain::DomainId;
use tokio::sync::watch;

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// A running domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RunningDomain {
    pub(crate) uuid: DomainId,
    pub(crate) name: String,
    pub(crate) macs: Vec<Mac>,
    /// The vsock context id.
    pub(crate) cid: Option<u32>,
    /// UNIX sockets that QEMU listens on for the guest.
    pub(crate) ports: Vec<GuestPort>,
}

/// A guest's serial port or channel whose other end is a UNIX socket that QEMU listens on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct GuestPort {
    pub(crate) path: PathBuf,
    pub(crate) kind: PortKind,
}

/// Kind of a guest's port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum PortKind {
    /// `<serial>`
    Serial,
    /// `<channel>` to a virtio port of this name; empty where it has none.
    Virtio(String),
    /// `<channel>` to an address and this port inside the guest.
    GuestForward(u16),
    /// `<channel>` of another kind; no request arrives there.
    Other,
}

/// The running domains of one hypervisor, by UUID.
pub(crate) type RunningDomains = HashMap<DomainId, Arc<RunningDomain>>;

/// The running domains of several hypervisors.
#[derive(Default)]
pub(crate) struct Inventories(pub(crate) Vec<Inventory>);

/// The running domains of one hypervisor.
pub(crate) struct Inventory {
    pub(crate) running: watch::Receiver<RunningDomains>,
    /// True if the domains run on this machine. The context ids of another machine mean nothing here.
    pub(crate) local: bool,
}

impl Inventory {
    /// Returns domains that are known by their cards alone, whether they run or not; none where there are
    /// none.
    pub(crate) fn of_cards(
        domains: impl IntoIterator<Item = (String, DomainId, BTreeSet<String>)>,
    ) -> Option<Self> {
        let running: RunningDomains = domains
            .into_iter()
            .map(|(name, uuid, cards)| {
                let macs = cards.iter().filter_map(|it| mac(it)).collect();
                (uuid, Arc::new(RunningDomain { uuid, name, macs, cid: None, ports: Vec::new() }))
            })
            .collect();
        // Nobody changes them: the sender may go.
        (!running.is_empty()).then(|| Self { running: watch::channel(running).1, local: false })
    }
}

impl Inventories {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the only running domain with this MAC address.
    pub(crate) fn by_mac(&self, mac: Mac) -> Option<Arc<RunningDomain>> {
        self.only(|_, it| it.macs.contains(&mac))
    }

    /// Returns the only running domain on this machine with this context id.
    pub(crate) fn by_cid(&self, cid: u32) -> Option<Arc<RunningDomain>> {
        self.only(|local, it| local && it.cid == Some(cid))
    }

    /// Returns the domain that fits; none if several domains do.
    fn only(&self, fits: impl Fn(bool, &RunningDomain) -> bool) -> Option<Arc<RunningDomain>> {
        let mut found: Option<Arc<RunningDomain>> = None;
        for inventory in &self.0 {
            for domain in inventory.running.borrow().values().filter(|it| fits(inventory.local, it)) {
                if found.as_ref().is_some_and(|it| it.uuid != domain.uuid) {
                    return None;
                }
                found = Some(Arc::clone(domain));
            }
        }
        found
    }
}

/// Reads the facts of a running domain from its XML. The UUID is the one that libvirt goes by, whatever the
/// text says.
///
/// # Errors
/// Text that is no XML, or has no name or UUID.
pub(crate) fn read(uuid: DomainId, xml: &str) -> Result<RunningDomain, UnreadableXml> {
    let document = roxmltree::Document::parse(xml)?;
    let root = document.root_element();
    let text = |tag| {
        let node = root.children().find(|it| it.has_tag_name(tag));
        node.and_then(|it| it.text()).map(str::trim).filter(|it| !it.is_empty())
    };
    let (Some(_), Some(name)) = (text("uuid"), text("name")) else { return Err(UnreadableXml::NoIdentity) };
    let mut domain =
        RunningDomain { uuid, name: name.to_owned(), macs: Vec::new(), cid: None, ports: Vec::new() };
    let devices = root.children().filter(|it| it.has_tag_name("devices")).flat_map(|it| it.children());
    for device in devices {
        let attribute = |child, name| {
            device.children().find(|it| it.has_tag_name(child)).and_then(|it| it.attribute(name))
        };
        match device.tag_name().name() {
            "interface" => domain.macs.extend(attribute("mac", "address").and_then(mac)),
            "vsock" => domain.cid = attribute("cid", "address").and_then(|it| it.parse().ok()),
            "serial" => domain.ports.extend(port(device, PortKind::Serial)),
            "channel" => {
                let kind = match attribute("target", "type") {
                    Some("virtio") => {
                        PortKind::Virtio(attribute("target", "name").unwrap_or_default().to_owned())
                    }
                    Some("guestfwd") => {
                        let number = attribute("target", "port").and_then(|it| it.parse().ok());
                        number.map_or(PortKind::Other, PortKind::GuestForward)
                    }
                    _ => PortKind::Other,
                };
                domain.ports.extend(port(device, kind));
            }
            _ => {}
        }
    }
    Ok(domain)
}

/// Reason why a domain's XML can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreadableXml {
    #[error(transparent)]
    Xml(#[from] roxmltree::Error),
    #[error("without name or UUID")]
    NoIdentity,
}

/// Reads a port. Only sockets that QEMU listens on can be connected to (`mode='bind'`, libvirt's default).
fn port(device: roxmltree::Node<'_, '_>, kind: PortKind) -> Option<GuestPort> {
    let source = device.children().find(|it| it.has_tag_name("source"))?;
    let listens = source.attribute("mode").is_none_or(|it| it == "bind");
    if device.attribute("type") != Some("unix") || !listens {
        return None;
    }
    Some(GuestPort { path: source.attribute("path").filter(|it| !it.is_empty())?.into(), kind })
}

fn mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain type='kvm' id='3'><name>web 1</name>
        <uuid>5BA0E0AA-0000-1111-2222-333344445555</uuid>
        <metadata>
          <x:y xmlns:x='urn:x'><serial type='unix'><source path='/not/this'/></serial></x:y>
        </metadata>
        <devices>
          <serial type='unix'><source mode='bind' path='/run/a'/><target port='0'/></serial>
          <serial type='unix'><source mode='connect' path='/run/b'/></serial>
          <serial type='pty'><source path='/dev/pts/3'/></serial>
          <console type='unix'><source mode='bind' path='/run/a'/></console>
          <channel type='unix'><source mode='bind' path='/run/c'/>
            <target type='virtio' name='org.x'/></channel>
          <channel type='unix'><source mode='bind' path='/run/d'/>
            <target type='guestfwd' address='10.0.2.179' port='1229'/></channel>
          <channel type='unix'><source mode='bind'/><target type='virtio'/></channel>
          <interface type='bridge'><mac address='52:54:00:AB:cd:ef'/></interface>
          <interface type='user'><mac address='52:54:00:ab:cd'/></interface>
          <vsock model='virtio'><cid auto='no' address='7'/></vsock>
        </devices></domain>";

    #[test]
    fn reads_what_a_request_may_come_by() {
        let domain = read(id(1), XML).unwrap();
        let port = |path: &str, kind| GuestPort { path: path.into(), kind };
        assert_eq!(
            domain,
            RunningDomain {
                uuid: id(1),
                name: "web 1".into(),
                macs: vec![[0x52, 0x54, 0, 0xab, 0xcd, 0xef]],
                cid: Some(7),
                ports: vec![
                    port("/run/a", PortKind::Serial),
                    port("/run/c", PortKind::Virtio("org.x".into())),
                    port("/run/d", PortKind::GuestForward(1229)),
                ],
            }
        );
    }

    #[test]
    fn other_text_is_refused() {
        assert!(read(id(1), "<domain").is_err());
        assert!(read(id(1), "<domain><name>a</name></domain>").is_err());
    }

    fn id(n: u8) -> DomainId {
        DomainId::from_bytes([n; 16])
    }

    fn inventory(local: bool, domains: &[(u8, Mac, u32)]) -> Inventory {
        let running = domains.iter().map(|(uuid, mac, cid)| {
            let domain = RunningDomain {
                uuid: id(*uuid),
                name: "web".to_owned(),
                macs: vec![*mac],
                cid: Some(*cid),
                ports: Vec::new(),
            };
            (domain.uuid, Arc::new(domain))
        });
        Inventory { running: watch::channel(running.collect()).1, local }
    }

    #[test]
    fn what_two_domains_have_proves_neither() {
        let all = Inventories(vec![
            inventory(true, &[(1, [1; 6], 3), (2, [2; 6], 4), (3, [2; 6], 4)]),
            inventory(false, &[(1, [1; 6], 3), (4, [4; 6], 5)]),
        ]);
        let uuid = |it: Option<Arc<RunningDomain>>| it.map(|it| it.uuid);
        assert_eq!(uuid(all.by_mac([1; 6])), Some(id(1)), "on two hypervisors while it migrates");
        assert_eq!(uuid(all.by_mac([2; 6])), None);
        assert_eq!(uuid(all.by_mac([3; 6])), None);
        assert_eq!(uuid(all.by_mac([4; 6])), Some(id(4)));
        assert_eq!(uuid(all.by_cid(3)), Some(id(1)));
        assert_eq!(uuid(all.by_cid(4)), None);
        assert_eq!(uuid(all.by_cid(5)), None, "a context id of another machine");
    }

    /// A card in the configuration counts as one in a domain's XML does.
    #[test]
    fn cards_of_the_configuration_prove_one_domain() {
        let card = |number: u8| format!("02:02:02:02:02:0{number}");
        let of_agents = |number: u8, cards: &[u8]| {
            (format!("agent {number}"), id(number), cards.iter().map(|it| card(*it)).collect())
        };
        let agents = Inventory::of_cards([of_agents(7, &[7, 8]), of_agents(9, &[9, 2])]);
        let all = Inventories(vec![inventory(true, &[(2, [2; 6], 4)]), agents.unwrap()]);
        let by_card = |number: u8| all.by_mac(mac(&card(number)).unwrap()).map(|it| it.uuid);
        assert_eq!([by_card(7), by_card(8), by_card(9)], [Some(id(7)), Some(id(7)), Some(id(9))]);
        assert_eq!(by_card(2), None, "libvirt has it in another domain");
        assert_eq!(by_card(6), None);
        assert!(Inventory::of_cards([]).is_none());
    }
}
