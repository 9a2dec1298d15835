// SPDX-License-Identifier: GPL-2.0-or-later
//! Capabilities: all but the needed ones are given up, and started programs get none.
//!
//! Must never give a capability that the process did not have.

use caps::{CapSet, Capability, CapsHashSet};

/// Keeps those of `needed` that the process has. Returns them, or the reason why others are left too.
pub(crate) fn keep(needed: &[Capability]) -> Result<Vec<Capability>, String> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|it| it.to_string())?;
    let kept: CapsHashSet = needed.iter().copied().filter(|it| permitted.contains(it)).collect();
    none_for_programs();
    // Root's programs get the bounding set, whatever root itself has. A process that may not clear it has
    // nothing in it to lose.
    let _ = caps::clear(None, CapSet::Bounding);
    // A process that has no more than it needs must not ask: a filter of systemd's may refuse the call
    // itself.
    if permitted.len() > kept.len() {
        give_up(&kept).map_err(|it| it.to_string())?;
    }
    let mut kept: Vec<_> = kept.into_iter().collect();
    kept.sort_unstable_by_key(Capability::index);
    Ok(kept)
}

/// Clears the ambient capabilities (systemd's `AmbientCapabilities=`), so that programs do not inherit them.
/// This process keeps them.
pub(crate) fn none_for_programs() {
    // A kernel or container without ambient capabilities has nothing to clear.
    let _ = caps::clear(None, CapSet::Ambient);
}

fn give_up(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Permitted, kept)
}
