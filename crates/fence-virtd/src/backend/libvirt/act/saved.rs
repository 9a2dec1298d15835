// SPDX-License-Identifier: GPL-2.0-or-later
//! Saved memories (`virsh managedsave`): a start is a fresh boot.
//!
//! A machine that wakes up with the memory of before its fencing believes that it still owns its resources.
//! Runs on blocking threads. Must never leave a saved memory behind a domain that is reported off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libvirt_host::{Connection, Domain, Error, ErrorKind, OrdinaryConnection, Uuid};

use crate::hypervisor::{CallError, Hypervisor, has_saved_memory};
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

/// Time that is left at the end of a request to tell why it failed.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(300);

/// Discards a domain's saved memory. Called when the domain is off: a save that was under way can't write any
/// more, and what it wrote is removed with the rest.
///
/// The removal needs an ordinary worker of libvirtd. While all of them are busy, it is left out where there
/// is nothing to remove: libvirt's list has no saved memory of the domain, and no save was under way when it
/// ended.
pub(super) fn discard(
    connection: &Connection,
    uuid: Uuid,
    memory: &Arc<Hypervisor>,
    until: Instant,
) -> Result<DiscardResult, Error> {
    if connection.domain_by_uuid(uuid)?.is_none() {
        return Ok(DiscardResult::NoneThere);
    }
    let had_one = match memory.ask_beside(move |c| has_saved_memory(c, uuid)) {
        Err(error) if error.is_without_answer() => {
            let is_listed = connection.lists_saved_memory(uuid)?;
            if !is_listed && memory.ended_running(uuid) {
                return Ok(DiscardResult::NoneThere);
            }
            Ok(is_listed)
        }
        told => told,
    };
    let discard = |had_one| {
        let until = until.checked_sub(LAST_WORDS).unwrap_or(until);
        memory.call_worker_beside(until, move |c| match c.domain_by_uuid(uuid)? {
            Some(domain) => c.of(&domain).discard_saved_memory(had_one),
            None => Ok(false),
        })
    };
    let why = match had_one.and_then(discard).map_err(CallError::into_error) {
        Ok(true) => return Ok(DiscardResult::Removed),
        Ok(false) => return Ok(DiscardResult::NoneThere),
        Err(Ok(error)) if error.kind == ErrorKind::Connection => return Err(error),
        Err(Ok(error)) => format!(
            "off, but its saved memory is still there and a start would restore it ({error}); run virsh \
             managedsave-remove {uuid}"
        ),
        Err(Err(error)) => format!(
            "off, but whether a saved memory of the domain is still there, which a start would restore, is \
             not known ({error}). Ask again; or run virsh managedsave-remove {uuid}"
        ),
    };
    Ok(DiscardResult::StillThere(why))
}

/// Starts a domain from its definition; a saved memory is discarded, and the record says so.
pub(super) fn boot(
    connection: &OrdinaryConnection,
    domain: &Domain,
    trail: &AgentRunTrail,
) -> Result<(), Error> {
    let had_one = connection.of(domain).has_saved_memory()?;
    connection.of(domain).create()?;
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
