// SPDX-License-Identifier: GPL-2.0-or-later
//! Conversion between libvirt's UUIDs and the identities of domains.

use fence_core::domain::DomainId;
use libvirt_host::Uuid;

/// Returns the identity of the domain that has this UUID at libvirt.
pub(crate) const fn domain_id(uuid: Uuid) -> DomainId {
    DomainId::from_bytes(*uuid.as_bytes())
}

/// Returns the UUID that libvirt knows the domain by.
pub(crate) const fn libvirt_uuid(id: DomainId) -> Uuid {
    Uuid::from_bytes(id.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_types_have_the_same_text() {
        let text = "5ba0e0aa-0123-1111-2222-333344445555";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!((domain_id(uuid).to_string(), libvirt_uuid(domain_id(uuid))), (text.to_owned(), uuid));
    }
}
