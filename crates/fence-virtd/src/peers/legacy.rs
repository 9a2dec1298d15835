// SPDX-License-Identifier: GPL-2.0-or-later
//! Hosts without host messages: C daemons, and older ones of ours.
//!
//! Owns what is known about a domain at such a host. Must never take its silence for an answer.

use std::time::Instant;

use fence_core::evidence::{DomainSite, Finding, Sight};
use fence_core::hosts::KnownHost;

/// Looks at a legacy host. It can't be asked yet, so nothing is known.
pub(super) fn look(host: &KnownHost, began: Instant) -> Finding {
    let why = format!(
        "host {host} runs a daemon that can't be asked by another host; upgrade it, or, if it is gone for \
         good: fence_virtd --forget {}",
        host.name
    );
    Finding {
        place: DomainSite::Host(host.to_string()),
        sight: Sight::Unknown(why),
        began,
        ended: Instant::now(),
    }
}
