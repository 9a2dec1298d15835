// SPDX-License-Identifier: GPL-2.0-or-later
//! Replies of a host without host messages (a C daemon) to the requests of clients, and what they show of one
//! domain.
//!
//! Owns the rules by which a list counts: it must be whole, make sense, and be allowed to show the domain.
//! Values only. Must never make "absent" of a list that may leave a domain out.

use std::collections::BTreeSet;

use fence_wire::Response;

use crate::domain::DomainId;
use crate::evidence::Sight;

/// Bytes of a name that fit into a list.
const MAX_LISTED_NAME: usize = 63;

/// Domain in the list of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostDomain {
    /// Name, cut after 63 bytes.
    pub name: String,
    /// UUID in text form.
    pub uuid: String,
    /// The list says in so many words that the domain is shut off.
    pub is_off: bool,
}

/// Reply of a host, by one call-back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostReply {
    /// A list, and the response after it.
    List(Vec<HostDomain>, Response),
    /// The response to the status of the domain in question.
    Status(Response),
    /// The host holds the key, and its answer makes no sense or broke off, for this reason.
    Broken(String),
}

/// Returns what all replies of one host show of a domain. The host was asked for its list and for the status
/// of the domain. Reasons for "unknown" do not name the host: the caller does.
#[must_use]
pub fn sight(replies: &[&HostReply], uuid: DomainId, name: &str) -> Sight {
    let sights: Vec<Sight> = replies.iter().map(|it| of_reply(it, uuid, name)).collect();
    let has = |kind: fn(&HostReply) -> bool| replies.iter().any(|it| kind(it));
    let is_listed = has(|it| matches!(it, HostReply::List(..)));
    let has_status = has(|it| matches!(it, HostReply::Status(_)));
    if sights.contains(&Sight::On) {
        return Sight::On;
    }
    if let Some(unknown) = sights.iter().find(|it| matches!(it, Sight::Unknown(_))) {
        return unknown.clone();
    }
    match (is_listed, has_status) {
        (false, false) => Sight::Unknown("does not answer".to_owned()),
        (false, true) => Sight::Unknown("did not list its domains in time".to_owned()),
        (true, false) => Sight::Unknown("did not tell the status of the domain in time".to_owned()),
        (true, true) if sights.contains(&Sight::Off) && !failed(replies) => Sight::Off,
        (true, true) if sights.contains(&Sight::Off) => {
            Sight::Unknown("has the domain, and its status check failed".to_owned())
        }
        // A daemon of ours fails for a domain that it does not know; a C daemon says "off".
        (true, true) => Sight::Absent,
    }
}

fn failed(replies: &[&HostReply]) -> bool {
    replies.iter().any(|it| matches!(it, HostReply::Status(Response::Failure)))
}

fn of_reply(reply: &HostReply, uuid: DomainId, name: &str) -> Sight {
    match reply {
        HostReply::Broken(why) => Sight::Unknown(why.clone()),
        HostReply::Status(Response::Success) => Sight::On,
        HostReply::Status(Response::PermissionDenied) => Sight::Unknown(
            "may not tell this host of the domain: name this host's address in a group of its configuration \
             that has the domain"
                .to_owned(),
        ),
        // Nothing but a refusal counts: a C daemon says "off" for whatever it does not find.
        HostReply::Status(Response::Off | Response::Failure) => Sight::Absent,
        HostReply::List(domains, Response::Success) => of_list(domains, uuid, name),
        HostReply::List(domains, _) => match of_list(domains, uuid, name) {
            Sight::On => Sight::On,
            _ => Sight::Unknown("could not list all its domains".to_owned()),
        },
    }
}

fn of_list(domains: &[HostDomain], uuid: DomainId, name: &str) -> Sight {
    let mut seen = BTreeSet::new();
    let mut makes_sense = true;
    let mut found = None;
    let mut has_namesake = false;
    for domain in domains {
        let id = DomainId::parse(&domain.uuid);
        makes_sense &= id.is_some_and(|it| seen.insert(it));
        if id == Some(uuid) {
            // Of two entries the one that is on counts.
            found = Some(found.unwrap_or(true) && domain.is_off);
        } else {
            has_namesake |= may_be_name(&domain.name, name) && !domain.is_off;
        }
    }
    match found {
        Some(false) => Sight::On,
        // The C daemon mixes the lists of several URIs up, and then leaves domains out.
        _ if !makes_sense => Sight::Unknown(
            "lists entries that make no sense: a C daemon with several URIs does so, and can't be asked; \
             upgrade it"
                .to_owned(),
        ),
        Some(true) => Sight::Off,
        None if has_namesake => Sight::Unknown(format!(
            "has another domain with the name {name:?} (lists cut names after 63 bytes), which is on"
        )),
        None => Sight::Absent,
    }
}

/// Returns true if a domain that is listed by this name may have that one. A longer name than fits into a
/// list is cut: at 63 bytes by a C daemon, perhaps within a character, and before such a character by ours.
fn may_be_name(listed: &str, name: &str) -> bool {
    let whole = listed.trim_end_matches('\u{fffd}');
    let is_cut = name.len() > MAX_LISTED_NAME && whole.len() + 4 > MAX_LISTED_NAME;
    listed == name || (is_cut && name.starts_with(whole))
}

#[cfg(test)]
mod tests;
