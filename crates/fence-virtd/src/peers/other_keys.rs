// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of the hosts whose messages are made with another key, and that the log has named.
//!
//! Such a host says hello every minute, and may be none of ours: the group has other users. So an address is
//! named once in a long while, and a flood of made-up addresses fills no log. Owns which were named.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fence_core::hosts::MAX_HOSTS;
use fence_wire::escaped;

/// Time in which an address is named once.
const NAMED_EVERY: Duration = Duration::from_secs(3600);
/// Time for which a message with another key explains a silence: hosts say hello every minute.
const HEARD_LATELY: Duration = Duration::from_secs(150);
/// Addresses that are named in that time.
const MAX_NAMED: usize = 32;

/// Addresses that were named in the log, and when.
#[derive(Default, Debug)]
pub(super) struct OtherKeys {
    named: BTreeMap<IpAddr, Instant>,
    /// Latest message with another key, for addresses of hosts that are asked.
    heard: BTreeMap<IpAddr, Instant>,
}

impl OtherKeys {
    /// Returns true if the address is to be named now.
    pub(super) fn is_due(&mut self, address: IpAddr, now: Instant) -> bool {
        self.named.retain(|_, at| now.saturating_duration_since(*at) < NAMED_EVERY);
        if self.named.len() >= MAX_NAMED || self.named.contains_key(&address) {
            return false;
        }
        self.named.insert(address, now);
        true
    }

    /// Notes a message with another key from the address of a host that is asked.
    pub(super) fn heard(&mut self, address: IpAddr, now: Instant) {
        self.heard.insert(address, now);
    }

    /// Forgets that: a message with the key of this host came from there.
    pub(super) fn agrees(&mut self, address: IpAddr) {
        self.heard.remove(&address);
    }

    /// Returns the addresses whose hosts have another key.
    pub(super) fn lately(&self, now: Instant) -> Vec<IpAddr> {
        self.heard.keys().copied().filter(|it| self.explains(*it, now)).collect()
    }

    /// Returns true if the host at this address, which is silent, has another key.
    pub(super) fn explains(&self, address: IpAddr, now: Instant) -> bool {
        self.heard.get(&address).is_some_and(|at| now.saturating_duration_since(*at) < HEARD_LATELY)
    }
}

/// Hosts with the key of this one that were heard where `peers = "none"` is set.
#[derive(Default, Debug)]
pub(super) struct UnaskedHosts(BTreeMap<IpAddr, (Option<String>, u64)>);

impl UnaskedHosts {
    /// Notes that the host at this address was heard, at this time in seconds since 1970.
    pub(super) fn heard(&mut self, address: IpAddr, name: Option<String>, at: u64) {
        if self.0.len() >= MAX_HOSTS && !self.0.contains_key(&address) {
            return;
        }
        let (known, last) = self.0.entry(address).or_default();
        (*known, *last) = (name.or(known.take()), at);
    }

    /// Returns each host in words, and when it was heard last.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, u64)> {
        self.0.iter().map(|(address, (name, at))| match name {
            Some(name) => (format!("{} ({address})", escaped(name)), *at),
            None => (address.to_string(), *at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_once_and_a_flood_is_not() {
        let (mut keys, start) = (OtherKeys::default(), Instant::now());
        let at = |it: u8| IpAddr::from([10, 0, 0, it]);
        assert!(keys.is_due(at(1), start) && keys.is_due(at(2), start));
        assert!(!keys.is_due(at(1), start + NAMED_EVERY / 2));
        assert!(keys.is_due(at(1), start + NAMED_EVERY));
        let named = (0..=u8::MAX).filter(|it| keys.is_due(at(*it), start + NAMED_EVERY)).count();
        assert_eq!(named, MAX_NAMED - 1);
    }

    #[test]
    fn a_message_with_another_key_explains_a_silence_until_one_with_ours_comes() {
        let (mut keys, start) = (OtherKeys::default(), Instant::now());
        let address = IpAddr::from([10, 0, 0, 1]);
        assert!(!keys.explains(address, start));
        keys.heard(address, start);
        assert!(keys.explains(address, start) && !keys.explains(address, start + HEARD_LATELY));
        keys.agrees(address);
        assert!(!keys.explains(address, start));
    }
}
