// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of the hosts whose messages are made with another key, and that the log has named.
//!
//! Such a host says hello every minute, and may be none of ours: the group has other users. So an address is
//! named once in a long while, and a flood of made-up addresses fills no log. Owns which were named.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time in which an address is named once.
const NAMED_EVERY: Duration = Duration::from_secs(3600);
/// Addresses that are named in that time.
const MAX_NAMED: usize = 32;

/// Addresses that were named in the log, and when.
#[derive(Default, Debug)]
pub(super) struct OtherKeys(BTreeMap<IpAddr, Instant>);

impl OtherKeys {
    /// Returns true if the address is to be named now.
    pub(super) fn is_due(&mut self, address: IpAddr, now: Instant) -> bool {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < NAMED_EVERY);
        if self.0.len() >= MAX_NAMED || self.0.contains_key(&address) {
            return false;
        }
        self.0.insert(address, now);
        true
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
}
