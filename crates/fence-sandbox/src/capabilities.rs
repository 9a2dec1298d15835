// SPDX-License-Identifier: GPL-2.0-or-later
//! Capabilities: all but the needed ones are given up.

use caps::{CapSet, Capability, CapsHashSet};

/// Keeps those of `needed` that are there; returns them, or why others are left too.
pub(crate) fn keep(needed: &[Capability]) -> Result<Vec<Capability>, String> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|it| it.to_string())?;
    let kept: CapsHashSet = needed.iter().copied().filter(|it| permitted.contains(it)).collect();
    // Whoever has no more than it needs must not ask: a filter of systemd's may refuse the call itself.
    if permitted.len() > kept.len() {
        give_up(&kept).map_err(|it| it.to_string())?;
    }
    let mut kept: Vec<_> = kept.into_iter().collect();
    kept.sort_unstable_by_key(Capability::index);
    Ok(kept)
}

fn give_up(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    // A kernel or container without ambient capabilities has nothing to clear; with them, they follow the permitted.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Permitted, kept)
}
