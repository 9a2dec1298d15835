// SPDX-License-Identifier: GPL-2.0-or-later
//! Saved memories (`virsh managedsave`): a start is a fresh boot.
//!
//! A machine that wakes up with the memory of before its fencing believes that it still owns its resources.
//! Runs on blocking threads. Must never leave a saved memory behind a domain that is reported off.

use libvirt_host::{Connection, Domain, Error, ErrorKind, Uuid};

use crate::request::trail::AgentRunTrail;

/// Remark for the audit record.
pub(super) const DISCARDED: &str = "a saved memory was discarded";

/// Result of discarding a domain's saved memory.
pub(super) enum DiscardResult {
    /// There was none.
    NoneThere,
    /// The file is removed.
    Removed,
    /// The file is still there, for this reason.
    StillThere(String),
}

/// Discards a domain's saved memory. Called when the domain is off: a save that was under way can't write any
/// more, and what it wrote is removed with the rest.
pub(super) fn discard(connection: &Connection, uuid: Uuid) -> Result<DiscardResult, Error> {
    let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(DiscardResult::NoneThere) };
    match domain.discard_saved_memory() {
        Ok(true) => Ok(DiscardResult::Removed),
        Ok(false) => Ok(DiscardResult::NoneThere),
        Err(error) if error.kind == ErrorKind::Connection => Err(error),
        Err(error) => Ok(DiscardResult::StillThere(format!(
            "off, but its saved memory is still there and a start would restore it ({error}); run virsh \
             managedsave-remove {uuid}"
        ))),
    }
}

/// Starts a domain from its definition; a saved memory is discarded, and the record says so.
pub(super) fn boot(domain: &Domain, trail: &AgentRunTrail) -> Result<(), Error> {
    let had_one = domain.has_saved_memory()?;
    domain.create()?;
    if had_one {
        trail.remark(DISCARDED);
    }
    Ok(())
}

/// Returns whether an instance is on that goes on with an old memory: it was restored, or came in from
/// another host, or was started when its saved memory was still there.
pub(super) fn is_old_machine_on(connection: &Connection, uuid: Uuid, had_one: bool) -> Result<bool, Error> {
    let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(false) };
    Ok(domain.is_active()? && (had_one || !domain.is_freshly_booted()?))
}
