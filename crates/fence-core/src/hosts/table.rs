// SPDX-License-Identifier: GPL-2.0-or-later
//! Table of the hosts that were ever heard.
//!
//! A host that proved its key pair once leaves it only by [`KnownHosts::forget`]. One of which there is
//! nothing but a hello, which whoever holds the key can make, must answer too, and leaves it when it was
//! silent for [`ANNOUNCED_KEPT`]. A host that finds no room is noted too: while it may be missing, nobody
//! may believe that the table has all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use fence_wire::{HostHello, HostId};

use super::doubt::{HostDoubt, HostRun, HostRuns, RunChange};

/// Most hosts that are remembered.
pub const MAX_HOSTS: usize = 64;
/// Addresses of one host that are remembered, the latest first.
pub const MAX_HOST_ADDRESSES: usize = 4;

/// Most hosts of which nothing was heard but hellos that anybody may have made.
pub const MAX_ANNOUNCED: usize = 16;
/// Time for which such a host must answer after its last hello: five times that between two hellos.
pub const ANNOUNCED_KEPT: Duration = Duration::from_secs(300);

/// Word that means every host to [`KnownHosts::forget`].
const ALL: &str = "all";

/// Kind of daemon that a host runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostKind {
    /// One of ours, with its public key. It answers host messages.
    Ours([u8; 32]),
    /// A C daemon, or an older one of ours. It knows only the messages of clients.
    Legacy,
}

/// Host that was heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownHost {
    /// Name on the wire; of a legacy host, made of its address.
    pub id: HostId,
    /// Kind of its daemon.
    pub kind: HostKind,
    /// The name that it told; of a legacy host, its address.
    pub name: String,
    /// Addresses from which it was heard, the latest first.
    pub addresses: Vec<IpAddr>,
    /// Name and addresses were told with its own proof. Else anybody may have made them up.
    pub is_proved: bool,
    /// Domains that it had when it was last heard.
    pub domains: u16,
    /// Seconds since 1970 when it was first heard. For people: no decision depends on it.
    pub first_heard: u64,
    /// Seconds since 1970 when it was last heard. For people too.
    pub last_heard: u64,
}

impl KnownHost {
    /// Returns true for a host of ours that was heard, and never answered this one: nobody knows who it is.
    #[must_use]
    pub fn says_hello_alone(&self) -> bool {
        !self.is_proved && matches!(self.kind, HostKind::Ours(_))
    }
}

/// Shows name and address: `h2 (10.0.0.2)`.
impl fmt::Display for KnownHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addresses.first() {
            Some(address) if address.to_string() != self.name => write!(f, "{} ({address})", self.name),
            _ => f.write_str(&self.name),
        }
    }
}

/// Meaning of a hello to the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeardHost {
    /// The host was not known.
    New,
    /// The host was known, and its name, key or address is another one now.
    Changed,
    /// The host was known.
    Known,
    /// The host was known, and a hello that anybody may have made tells something else. Nothing was changed.
    Unproved,
    /// The host was known, and its daemon is another one than before: it was started anew, or there are two.
    Restarted,
    /// Two daemons have the key pair of this host. From now on neither counts.
    TwoDaemons,
    /// The host was not known, and there is no room for it. From now on nobody can say that all were asked.
    NoRoom,
}

/// Every host that was heard and not forgotten.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KnownHosts {
    hosts: BTreeMap<HostId, KnownHost>,
    /// The host that first answered at an address of `peers`. No other may answer there.
    pins: BTreeMap<SocketAddr, HostId>,
    /// Another host than the pinned one, which answered at the address.
    rivals: BTreeMap<SocketAddr, HostId>,
    /// Key pairs that two daemons have, with the address of the one that was heard second.
    twins: BTreeMap<HostId, IpAddr>,
    /// Hosts that never proved their key pair in this run, with the moment of the latest hello.
    announced: BTreeMap<HostId, Instant>,
    /// Latest moment when one of these found no room.
    crowded: Option<Instant>,
    /// Runs of the daemons. They are not kept over a restart.
    runs: HostRuns,
    /// Why a host may be missing here, until an administrator says that none is.
    missing: Option<String>,
    /// Why a host may be missing here, until all had time to answer.
    incomplete: Option<String>,
}

/// Part of the table that must be on the disk before anything follows from it: who must answer, who is
/// bound to an address, and who is in doubt. Names, addresses and times may come later. Whoever holds the key
/// changes it only as often as there is room for new hosts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BoundHosts {
    /// The hosts that a later run must know; true for those that proved their key pair.
    hosts: BTreeMap<HostId, bool>,
    pins: BTreeMap<SocketAddr, HostId>,
    rivals: BTreeMap<SocketAddr, HostId>,
    twins: BTreeSet<HostId>,
    missing: Option<String>,
    incomplete: Option<String>,
}

impl KnownHosts {
    /// Returns what a later run must know before anything follows from it.
    #[must_use]
    pub fn bound(&self) -> BoundHosts {
        BoundHosts {
            hosts: self.remembered().map(|it| (it.id, it.is_proved)).collect(),
            pins: self.pins.clone(),
            rivals: self.rivals.clone(),
            twins: self.twins.keys().copied().collect(),
            missing: self.missing.clone(),
            incomplete: self.incomplete.clone(),
        }
    }

    /// Notes a hello that came from `from`, and that anybody may have made. It may add a host, which must
    /// answer from then on, and changes nothing of a known one.
    pub fn heard(&mut self, hello: &HostHello, from: IpAddr, now: u64) -> HeardHost {
        let id = HostId::of(&hello.public);
        let Some(host) = self.hosts.get(&id) else {
            let kind = HostKind::Ours(hello.public);
            return self.note(id, kind, &hello.name, from, hello.domains, now, false);
        };
        let is_other_run = self.runs.is_other(id, hello.run);
        let is_same = host.is_proved && host.addresses.contains(&from) && !is_other_run;
        match (is_same && host.name == own_name(&hello.name, from), is_other_run && self.runs.has(id)) {
            (true, _) => HeardHost::Known,
            (false, true) => HeardHost::Restarted,
            (false, false) => HeardHost::Unproved,
        }
    }

    /// Notes a hello that anybody may have made, as [`Self::heard`] does. A host that is not known must
    /// answer from then on: for good as soon as it proves its key pair, else until [`Self::drop_unproved`].
    pub fn announced(&mut self, hello: &HostHello, from: IpAddr, now: u64, at: Instant) -> HeardHost {
        let id = HostId::of(&hello.public);
        if !self.hosts.contains_key(&id) {
            if self.announced.len() >= MAX_ANNOUNCED || self.hosts.len() >= MAX_HOSTS {
                self.crowded = Some(at);
                return HeardHost::NoRoom;
            }
            self.announced.insert(id, at);
        } else if let Some(latest) = self.announced.get_mut(&id) {
            *latest = at;
        }
        self.heard(hello, from, now)
    }

    /// Drops the hosts that only said hello, and were silent for [`ANNOUNCED_KEPT`] since. One that answers
    /// at an address of `peers` stays.
    pub fn drop_unproved(&mut self, at: Instant) -> Vec<KnownHost> {
        let is_over = |since: &Instant| at.saturating_duration_since(*since) >= ANNOUNCED_KEPT;
        self.crowded = self.crowded.filter(|it| !is_over(it));
        let is_pinned = |id: &HostId| self.pins.values().any(|it| it == id);
        let over: Vec<HostId> = self
            .announced
            .iter()
            .filter(|(id, since)| is_over(since) && !is_pinned(id))
            .map(|(id, _)| *id)
            .collect();
        over.iter().filter_map(|id| self.drop_announced(*id)).collect()
    }

    /// Drops the hosts that are nodes of the cluster of this one, with what their addresses of an earlier
    /// `peers` were bound to: corosync asks them. The latest run of a host is given to `is_node`, if one was
    /// heard. One that answers at an address of `listed` stays: those of the `peers` of now.
    pub fn drop_nodes(
        &mut self,
        listed: &[SocketAddr],
        is_node: impl Fn(HostId, Option<HostRun>) -> bool,
    ) -> Vec<KnownHost> {
        let is_over = |id: &&HostId| !self.is_pinned_at(**id, listed) && is_node(**id, self.latest_run(**id));
        let over: Vec<HostId> = self.hosts.keys().filter(is_over).copied().collect();
        over.iter().filter_map(|id| self.drop_node(*id)).collect()
    }

    /// Drops a host whose daemon was started anew as that of a node: a node with its key is heard at its
    /// address. One that answers at an address of `listed` stays, as one whose run is not known: it is the
    /// node's.
    pub fn drop_node_at(
        &mut self,
        id: HostId,
        run: HostRun,
        from: IpAddr,
        listed: &[SocketAddr],
    ) -> Option<KnownHost> {
        self.hosts.get(&id).filter(|it| it.addresses.contains(&from))?;
        if self.is_pinned_at(id, listed) {
            if self.latest_run(id) != Some(run) {
                self.runs.keep(|it| *it != id);
            }
            return None;
        }
        self.drop_node(id)
    }

    fn drop_node(&mut self, id: HostId) -> Option<KnownHost> {
        self.pins.retain(|_, it| *it != id);
        let pins = &self.pins;
        self.rivals.retain(|at, it| *it != id && pins.contains_key(at));
        self.announced.remove(&id);
        self.runs.keep(|it| *it != id);
        self.hosts.remove(&id)
    }

    fn is_pinned_at(&self, id: HostId, listed: &[SocketAddr]) -> bool {
        listed.iter().any(|it| self.pinned(it) == Some(id))
    }

    /// Returns the run of the daemon of a host that was heard last.
    #[must_use]
    pub fn latest_run(&self, id: HostId) -> Option<HostRun> {
        self.runs.latest(id)
    }

    fn drop_announced(&mut self, id: HostId) -> Option<KnownHost> {
        self.announced.remove(&id)?;
        self.runs.keep(|it| *it != id);
        self.hosts.remove(&id)
    }

    /// Returns the hosts that a later run must know: all but those that only said hello.
    pub fn remembered(&self) -> impl Iterator<Item = &KnownHost> {
        self.hosts.values().filter(|it| !self.announced.contains_key(&it.id))
    }

    /// Returns the hosts that only said hello.
    pub fn announced_only(&self) -> impl Iterator<Item = &KnownHost> {
        self.hosts.values().filter(|it| self.announced.contains_key(&it.id))
    }

    /// Returns why a host may be missing now: for good, or since more hosts said hello than there is room
    /// for.
    pub fn missing_now(&self, at: Instant) -> Option<String> {
        let is_crowded = self.crowded.is_some_and(|it| at.saturating_duration_since(it) < ANNOUNCED_KEPT);
        self.missing.clone().or_else(|| is_crowded.then(crowded))
    }

    /// Notes what a host told in an answer that it alone can have made, to a hello of this one. A repeat of
    /// the answer may come from anybody, so it only adds an address.
    pub fn heard_proved(&mut self, hello: &HostHello, from: IpAddr, now: u64, is_first: bool) -> HeardHost {
        let id = HostId::of(&hello.public);
        self.announced.remove(&id);
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(&id) {
            let oldest = self.announced.iter().min_by_key(|(_, since)| **since).map(|(id, at)| (*id, *at));
            if let Some((id, since)) = oldest {
                self.drop_announced(id);
                self.crowded = self.crowded.max(Some(since));
            }
        }
        let is_other_run = self.runs.is_other(id, hello.run);
        if let Some(host) = self.hosts.get_mut(&id).filter(|it| it.is_proved) {
            let is_at_home = host.addresses.contains(&from);
            if !is_first {
                if is_other_run || is_at_home || host.addresses.len() >= MAX_HOST_ADDRESSES {
                    return HeardHost::Known;
                }
                host.addresses.push(from);
                return HeardHost::Changed;
            }
            if is_other_run && !is_at_home {
                // A copy of its key pair elsewhere: the daemon that was known may be silent and run all.
                let is_news = self.note_two_daemons(id, from);
                return if is_news { HeardHost::TwoDaemons } else { HeardHost::Known };
            }
        }
        let heard = self.note(id, HostKind::Ours(hello.public), &hello.name, from, hello.domains, now, true);
        if heard == HeardHost::NoRoom {
            return heard;
        }
        match self.runs.note(id, hello.run) {
            RunChange::Same => heard,
            RunChange::Another => HeardHost::Restarted,
            RunChange::Returned if self.note_two_daemons(id, from) => HeardHost::TwoDaemons,
            RunChange::Returned => heard,
        }
    }

    /// Notes a legacy host that answered a request at its address.
    pub fn heard_legacy(&mut self, from: IpAddr, domains: u16, now: u64) -> HeardHost {
        self.note(legacy_id(from), HostKind::Legacy, &from.to_string(), from, domains, now, true)
    }

    /// Enters a host of an earlier run.
    pub fn restore(&mut self, host: KnownHost) {
        if self.hosts.len() < MAX_HOSTS || self.hosts.contains_key(&host.id) {
            self.hosts.insert(host.id, host);
        } else {
            self.note_missing(no_room());
        }
    }

    /// Notes that a host may be missing: the table is full, or its file was damaged.
    pub fn note_missing(&mut self, why: String) {
        self.missing.get_or_insert(why);
    }

    /// Returns why a host may be missing, if one may be.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Notes that hosts of earlier runs may be missing: all must be found anew before the table counts.
    pub fn note_incomplete(&mut self, why: String) {
        self.incomplete.get_or_insert(why);
    }

    /// Returns why all hosts must be found anew first, if they must.
    pub fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }

    /// Notes that all hosts were looked for, and had time to answer. Returns whether that was needed.
    pub fn note_complete(&mut self) -> bool {
        self.incomplete.take().is_some()
    }

    /// Notes which host answered first at an address of `peers`. Returns false if another one did before:
    /// from then on nobody knows who is there, until an administrator forgets the address.
    pub fn pin(&mut self, address: SocketAddr, id: HostId) -> bool {
        let is_first = *self.pins.entry(address).or_insert(id) == id;
        if !is_first {
            self.rivals.entry(address).or_insert(id);
        }
        is_first
    }

    /// Notes that two daemons have one key pair, and that one of them was heard at this address. Returns
    /// false if that was known.
    pub fn note_two_daemons(&mut self, id: HostId, at: IpAddr) -> bool {
        self.twins.insert(id, at).is_none()
    }

    /// Returns all key pairs that two daemons have.
    pub fn twins(&self) -> impl Iterator<Item = (HostId, IpAddr)> {
        self.twins.iter().map(|(id, at)| (*id, *at))
    }

    /// Returns all hosts that answered at an address of `peers` after another one.
    pub fn rivals(&self) -> impl Iterator<Item = (SocketAddr, HostId)> {
        self.rivals.iter().map(|(address, id)| (*address, *id))
    }

    /// Enters such a host of an earlier run.
    pub fn restore_rival(&mut self, address: SocketAddr, id: HostId) {
        self.rivals.insert(address, id);
    }

    /// Drops what is known of key pairs that neither this host nor a known one has: this host got a new one.
    pub fn drop_old_twins(&mut self, own: HostId) {
        self.twins.retain(|id, _| *id == own || self.hosts.contains_key(id));
    }

    /// Returns why it is not known who answers with this name.
    pub fn doubt(&self, id: HostId) -> Option<HostDoubt> {
        self.twins.get(&id).map(|at| HostDoubt::TwoDaemons { id, at: *at })
    }

    /// Returns why it is not known who answers at an address of `peers`, of which these are all.
    pub fn doubt_at(&self, address: SocketAddr, peers: &[SocketAddr]) -> Option<HostDoubt> {
        let id = self.pinned(&address)?;
        if let Some(other) = self.rivals.get(&address) {
            return Some(HostDoubt::TwoHosts { at: address, ids: [id, *other] });
        }
        let second = peers.iter().find(|it| **it != address && self.pinned(it) == Some(id));
        let shared = second.map(|it| HostDoubt::TwoAddresses { id, at: [address, *it] });
        shared.or_else(|| self.doubt(id))
    }

    /// Returns the host that first answered at an address of `peers`.
    pub fn pinned(&self, address: &SocketAddr) -> Option<HostId> {
        self.pins.get(address).copied()
    }

    /// Returns all pins.
    pub fn pins(&self) -> impl Iterator<Item = (SocketAddr, HostId)> {
        self.pins.iter().map(|(address, id)| (*address, *id))
    }

    /// Returns the host with this id.
    pub fn host(&self, id: HostId) -> Option<&KnownHost> {
        self.hosts.get(&id)
    }

    /// Returns all hosts.
    pub fn all(&self) -> impl Iterator<Item = &KnownHost> {
        self.hosts.values()
    }

    /// Returns the hosts that have this name, if there are several: then it means none of them.
    pub fn namesakes(&self, name: &str) -> Vec<&KnownHost> {
        let same: Vec<_> = self.hosts.values().filter(|it| it.name.eq_ignore_ascii_case(name)).collect();
        if same.len() > 1 { same } else { Vec::new() }
    }

    /// Forgets the hosts with this name, address or id (`all`: every host), and the pins of that address. A
    /// name that several have forgets none. Only an administrator may. What was missing for lack of room
    /// counts as heard again: the caller must say hello.
    pub fn forget(&mut self, text: &str) -> Vec<KnownHost> {
        let address: Option<IpAddr> = text.parse().ok();
        let is_name = self.namesakes(text).is_empty();
        let is_meant = |host: &KnownHost| {
            text == ALL
                || (is_name && host.name.eq_ignore_ascii_case(text))
                || HostId::from_text(text) == Some(host.id)
                || address.is_some_and(|it| host.addresses.contains(&it))
        };
        let (gone, kept) = std::mem::take(&mut self.hosts).into_iter().partition(|(_, it)| is_meant(it));
        self.hosts = kept;
        let gone: BTreeMap<HostId, KnownHost> = gone;
        self.pins
            .retain(|at, id| !gone.contains_key(id) && Some(at.ip()) != address && at.to_string() != text);
        let (pins, is_all) = (&self.pins, text == ALL);
        self.rivals.retain(|at, id| pins.contains_key(at) && !gone.contains_key(id));
        self.twins.retain(|id, at| {
            !(is_all || gone.contains_key(id) || HostId::from_text(text) == Some(*id) || Some(*at) == address)
        });
        self.runs.keep(|id| !gone.contains_key(id));
        self.announced.retain(|id, _| !gone.contains_key(id));
        // A host that is not in the table can't be meant by its name: only "all" means it too.
        if text == ALL {
            (self.missing, self.crowded) = (None, None);
        }
        gone.into_values().collect()
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one entry")]
    fn note(
        &mut self,
        id: HostId,
        kind: HostKind,
        name: &str,
        from: IpAddr,
        domains: u16,
        now: u64,
        is_proved: bool,
    ) -> HeardHost {
        let name = own_name(name, from);
        let name = name.as_str();
        let is_full = self.hosts.len() >= MAX_HOSTS;
        let Some(host) = self.hosts.get_mut(&id) else {
            if is_full {
                self.note_missing(no_room());
                return HeardHost::NoRoom;
            }
            let name = name.to_owned();
            let addresses = vec![from];
            let (first_heard, last_heard) = (now, now);
            let host = KnownHost { id, kind, name, addresses, is_proved, domains, first_heard, last_heard };
            self.hosts.insert(id, host);
            return HeardHost::New;
        };
        let is_same = host.kind == kind
            && host.name == name
            && host.addresses.first() == Some(&from)
            && host.is_proved == is_proved;
        if !host.is_proved {
            // Whoever made the hello before chose these.
            host.addresses.clear();
        }
        host.is_proved = is_proved;
        host.addresses.retain(|it| *it != from);
        host.addresses.insert(0, from);
        host.addresses.truncate(MAX_HOST_ADDRESSES);
        name.clone_into(&mut host.name);
        (host.kind, host.domains, host.last_heard) = (kind, domains, now);
        if is_same { HeardHost::Known } else { HeardHost::Changed }
    }
}

fn crowded() -> String {
    format!(
        "more than {MAX_ANNOUNCED} hosts said hello and never proved who they are; not all are asked. Ask \
         again {} s after the last one. If a guest sends them: give the hosts a peer_key_file",
        ANNOUNCED_KEPT.as_secs()
    )
}

fn no_room() -> String {
    format!(
        "more than {MAX_HOSTS} other hosts were heard, and not all are remembered; forget those that are \
         gone: fence_virtd --forget HOST"
    )
}

/// Returns the name by which a host is known: the one that it tells, or else its address. A name that would
/// mean other hosts too, to an administrator who forgets this one, is not taken.
fn own_name(told: &str, from: IpAddr) -> String {
    let means_others = told.is_empty()
        || told.eq_ignore_ascii_case(ALL)
        || told.parse::<IpAddr>().is_ok()
        || HostId::from_text(told).is_some();
    if means_others { from.to_string() } else { told.to_owned() }
}

/// Returns the name of a legacy host in the table. It has no key, so its address stands for it.
#[must_use]
pub fn legacy_id(address: IpAddr) -> HostId {
    let mut made = [0; 32];
    made[..8].copy_from_slice(b"legacy\0\0");
    match address {
        IpAddr::V4(v4) => made[16..20].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => made[16..].copy_from_slice(&v6.octets()),
    }
    HostId::of(&made)
}
