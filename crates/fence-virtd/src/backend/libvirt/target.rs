// SPDX-License-Identifier: GPL-2.0-or-later
//! Domains of a hypervisor that a request's target can mean.

use std::sync::Arc;

use fence_core::domain::{DomainHome, DomainRef, TargetKind};
use fence_core::evidence::Sight;
use fence_wire::Target;
use libvirt_host::{Connection, Domain, Error, Uuid};

use super::act::{DomainReading, sight};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::uuid::domain_id;

/// Shortest text that can be a cut name: the cut may fall up to three bytes earlier, between two characters.
const SHORTEST_CUT_NAME: usize = Target::MAX - 3;

/// Target of a request, with the UUID that the text may be.
pub(super) struct TargetQuery {
    target: Target,
    uuid: Option<Uuid>,
}

/// Domain of one hypervisor that matches a target.
pub(super) struct MatchedDomain {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) sight: Sight,
}

impl MatchedDomain {
    pub(super) fn reference(&self, home: usize, by: TargetKind) -> DomainRef {
        DomainRef { name: self.name.clone(), uuid: domain_id(self.uuid), home: DomainHome::Here(home), by }
    }
}

impl TargetQuery {
    pub(super) fn new(target: &Target) -> Self {
        Self { uuid: target.as_str().parse().ok(), target: target.clone() }
    }

    pub(super) fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    /// Returns the name that the target may be; none if it can only be a UUID.
    pub(super) fn name(&self) -> Option<&str> {
        (!self.target.is_only_uuid()).then_some(self.target.as_str())
    }

    /// Returns the word that the target is for the domain with this UUID.
    pub(super) fn kind_for(&self, uuid: Uuid) -> TargetKind {
        if self.uuid == Some(uuid) { TargetKind::Uuid } else { TargetKind::Name }
    }

    pub(super) fn is_uuid_of(&self, found: &MatchedDomain) -> bool {
        self.uuid == Some(found.uuid)
    }

    /// Finds the domains that have the target as their UUID or as their name. There is more than one if the
    /// name of one is the UUID of another, or if a name came cut.
    pub(super) fn find(
        &self,
        connection: &Connection,
        memory: &Arc<Hypervisor>,
    ) -> Result<Vec<MatchedDomain>, Error> {
        let mut domains = Vec::new();
        if let Some(uuid) = self.uuid {
            domains.extend(connection.domain_by_uuid(uuid)?);
        }
        if let Some(name) = self.name() {
            let by_name = connection.domain_by_name(name)?;
            domains.extend(by_name.filter(|it| self.uuid != Some(it.uuid())));
        }
        if domains.is_empty() && self.name().is_some_and(|it| it.len() >= SHORTEST_CUT_NAME) {
            return self.find_by_cut_name(connection, memory);
        }
        let mut all = Vec::new();
        for domain in &domains {
            all.extend(found(connection, domain, memory)?);
        }
        if all.is_empty()
            && let Some(it) = memory.process_of(|it| self.means(it.uuid, &it.name))
        {
            let sight = Sight::Unknown(it.reason(memory.uri()));
            all.push(MatchedDomain { name: it.name, uuid: it.uuid, sight });
        }
        Ok(all)
    }

    /// Returns true if the target is the UUID of one of these and the name of another.
    pub(super) fn is_shared(&self, found: &[(usize, MatchedDomain)]) -> bool {
        found.iter().any(|(_, it)| self.is_uuid_of(it)) && !found.iter().all(|(_, it)| self.is_uuid_of(it))
    }

    /// Returns the name by which another domain could be meant instead of this one.
    pub(super) fn other_name<'a>(&'a self, found: &'a MatchedDomain) -> Option<&'a str> {
        if self.is_uuid_of(found) { self.name() } else { Some(&found.name) }
    }

    /// Returns whether [`Self::find`] could find a domain with this UUID and name.
    pub(super) fn means(&self, uuid: Uuid, name: &str) -> bool {
        self.uuid == Some(uuid) || self.name() == Some(name) || self.target.is_cut_from(name)
    }

    fn find_by_cut_name(
        &self,
        connection: &Connection,
        memory: &Arc<Hypervisor>,
    ) -> Result<Vec<MatchedDomain>, Error> {
        let mut all = Vec::new();
        for record in memory.list(connection)?.into_iter().filter(|it| self.target.is_cut_from(&it.name)) {
            let (_, sight) = sight(connection, record.uuid, memory)?;
            all.push(MatchedDomain { name: record.name, uuid: record.uuid, sight });
        }
        Ok(all)
    }
}

/// Returns the domain with what this hypervisor shows of it; none if it has just gone.
fn found(
    connection: &Connection,
    domain: &Domain,
    memory: &Hypervisor,
) -> Result<Option<MatchedDomain>, Error> {
    let uuid = domain.uuid();
    Ok(match sight(connection, uuid, memory)? {
        (DomainReading::Gone, _) => None,
        (_, sight) => Some(MatchedDomain { name: domain.name().to_owned(), uuid, sight }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_could_mean() {
        let text = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c";
        let (uuid, other) = (text.parse().unwrap(), "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11".parse().unwrap());
        let means = |text: &str, only_uuid, uuid, name: &str| {
            TargetQuery::new(&Target::new(text, only_uuid).unwrap()).means(uuid, name)
        };
        assert!(means("web", false, uuid, "web") && !means("web", false, uuid, "web1"));
        assert!(!means("Web", false, uuid, "web"), "libvirt tells them apart");
        for text in [text.to_owned(), text.to_uppercase()] {
            assert!(means(&text, false, uuid, "web") && means(&text, true, uuid, "web"));
            assert!(means(&text, false, other, &text) && !means(&text, true, other, &text));
        }
        // The client says "UUID" of a text that is none: it can only be a name.
        assert!(means("web", true, uuid, "web") && !means("web", true, uuid, "web1"));
        // A name that is too long for a request comes cut.
        let long = "x".repeat(Target::MAX + 1);
        assert!(means(&long[..Target::MAX], false, uuid, &long));
        assert!(means(&long[..Target::MAX], true, uuid, &long));
        assert!(!means(&long[..Target::MAX - 1], false, uuid, &long));
        assert!(means(&long[..Target::MAX], false, uuid, &long[..Target::MAX]));
    }
}
