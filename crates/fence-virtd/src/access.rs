// SPDX-License-Identifier: GPL-2.0-or-later
//! Who may fence what: the `groups` of the configuration.
//!
//! Pure: values in, a decision out. A source may fence a domain when one group holds both. Without a `groups`
//! block everybody who holds the key may fence everything.

use std::fmt;
use std::net::IpAddr;

use fence_config::Group;

/// The rules, read once.
#[derive(Debug)]
pub(crate) struct Access {
    groups: Option<Vec<Rule>>,
}

/// What is known of who asks. Every part is proved or absent, never guessed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The address that the request came from, or that the call-back reached.
    pub(crate) ip: Option<IpAddr>,
    /// The context id on vsock.
    pub(crate) cid: Option<u32>,
    /// The UUID of the domain that it is, canonical text.
    pub(crate) domain: Option<String>,
    /// That domain's name.
    pub(crate) name: Option<String>,
}

/// What a request is about, as far as it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// A domain that was found.
    Domain { uuid: &'a str, name: &'a str },
    /// The text of a target that no domain was found for.
    Text(&'a str),
}

/// May it?
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// No `groups`: whoever holds the key.
    AllowedByKey,
    /// By this group.
    AllowedBy(String),
    /// By no group; the rule says what is missing.
    Denied(Denial),
}

/// Which rule denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Denial {
    /// The source is in no group.
    UnknownSource,
    /// The source is in groups, and none of them holds the domain.
    NotInItsGroups,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownSource => "the source is in no group",
            Self::NotInItsGroups => "no group of the source has the domain",
        })
    }
}

#[derive(Debug)]
struct Rule {
    name: String,
    ips: Vec<IpAddr>,
    cids: Vec<u32>,
    /// Names and UUIDs as written.
    members: Vec<String>,
}

impl Access {
    pub(crate) fn new(groups: Option<&[Group]>) -> Self {
        let rule = |(number, group): (usize, &Group)| Rule {
            name: group.name.clone().unwrap_or_else(|| format!("group {}", number + 1)),
            ips: group.ips.iter().filter_map(|it| it.parse().ok()).collect(),
            cids: group.ips.iter().filter_map(|it| it.parse().ok()).collect(),
            members: group.uuids.clone(),
        };
        Self { groups: groups.map(|all| all.iter().enumerate().map(rule).collect()) }
    }

    pub(crate) fn decide(&self, source: &Identity, subject: Subject<'_>) -> Decision {
        let Some(groups) = &self.groups else { return Decision::AllowedByKey };
        let mut of_source = groups.iter().filter(|it| it.has_source(source)).peekable();
        if of_source.peek().is_none() {
            return Decision::Denied(Denial::UnknownSource);
        }
        of_source
            .find(|it| it.has_subject(subject))
            .map_or(Decision::Denied(Denial::NotInItsGroups), |it| Decision::AllowedBy(it.name.clone()))
    }

    /// Whether a host list for this source shows the domain.
    pub(crate) fn shows(&self, source: &Identity, uuid: &str, name: &str) -> bool {
        !matches!(self.decide(source, Subject::Domain { uuid, name }), Decision::Denied(_))
    }
}

impl Rule {
    fn has_source(&self, source: &Identity) -> bool {
        let ip = source.ip.map(|it| it.to_canonical());
        if ip.is_some_and(|it| self.ips.iter().any(|mine| mine.to_canonical() == it))
            || source.cid.is_some_and(|it| self.cids.contains(&it))
        {
            return true;
        }
        // A group that names its sources by address means these and no others: its domains are only targets for who
        // comes by a network. So old files mean what they meant. On a serial line there is no other name.
        let by_network = source.ip.is_some() || source.cid.is_some();
        if by_network && !(self.ips.is_empty() && self.cids.is_empty()) {
            return false;
        }
        source.domain.as_deref().is_some_and(|it| self.members.iter().any(|m| same_uuid(m, it)))
            || source.name.as_ref().is_some_and(|it| self.members.contains(it))
    }

    fn has_subject(&self, subject: Subject<'_>) -> bool {
        self.members.iter().any(|member| match subject {
            Subject::Domain { uuid, name } => same_uuid(member, uuid) || member == name,
            Subject::Text(text) => member == text || same_uuid(member, text),
        })
    }
}

/// UUIDs are written in either case, with dashes or without.
fn same_uuid(a: &str, b: &str) -> bool {
    fn digits(text: &str) -> Option<Vec<u8>> {
        let hex: Vec<u8> = text.bytes().filter(|it| *it != b'-').map(|it| it.to_ascii_lowercase()).collect();
        (hex.len() == 32 && hex.iter().all(u8::is_ascii_hexdigit)).then_some(hex)
    }
    match (digits(a), digits(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "11111111-1111-1111-1111-111111111111";
    const B: &str = "22222222-2222-2222-2222-222222222222";

    fn access(groups: &str) -> Access {
        let file = format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"libvirt\"; }}\ngroups {{ {groups} }}"
        );
        Access::new(fence_config::load(file.as_bytes()).config.unwrap().groups.as_deref())
    }

    fn from_ip(text: &str) -> Identity {
        Identity { ip: Some(text.parse().unwrap()), ..Identity::default() }
    }

    #[test]
    fn without_groups_the_key_decides() {
        let subject = Subject::Domain { uuid: A, name: "a" };
        assert_eq!(Access::new(None).decide(&Identity::default(), subject), Decision::AllowedByKey);
    }

    #[test]
    fn an_empty_group_and_no_group_allow_nobody() {
        for groups in ["", "group { }", "group { ip = \"10.0.0.1\"; }", "group { uuid = \"a\"; }"] {
            let decision =
                access(groups).decide(&from_ip("10.0.0.1"), Subject::Domain { uuid: A, name: "a" });
            assert!(matches!(decision, Decision::Denied(_)), "{groups}: {decision:?}");
        }
    }

    #[test]
    fn both_must_be_in_one_group() {
        let rules = access(
            "group { name = \"red\"; ip = \"10.0.0.1\"; uuid = \"a\"; } group { ip = \"10.0.0.2\"; uuid = \"b\"; }",
        );
        let one = from_ip("10.0.0.1");
        assert_eq!(
            rules.decide(&one, Subject::Domain { uuid: A, name: "a" }),
            Decision::AllowedBy("red".into())
        );
        assert_eq!(
            rules.decide(&one, Subject::Domain { uuid: B, name: "b" }),
            Decision::Denied(Denial::NotInItsGroups)
        );
        assert_eq!(
            rules.decide(&from_ip("10.0.0.3"), Subject::Domain { uuid: A, name: "a" }),
            Decision::Denied(Denial::UnknownSource)
        );
    }

    #[test]
    fn members_are_names_or_uuids_in_any_form() {
        for member in ["a", A, "11111111111111111111111111111111"] {
            let rules = access(&format!("group {{ ip = \"10.0.0.1\"; uuid = \"{member}\"; }}"));
            assert!(rules.shows(&from_ip("10.0.0.1"), A, "a"), "{member}");
            assert!(!rules.shows(&from_ip("10.0.0.1"), B, "b"), "{member}");
        }
    }

    #[test]
    fn a_source_is_an_address_a_cid_or_a_domain() {
        let rules =
            access(&format!("group {{ ip = \"fd00::1\"; ip = \"7\"; uuid = \"{A}\"; uuid = \"b\"; }}"));
        let mapped = access("group { ip = \"10.0.0.1\"; uuid = \"b\"; }");
        let target = Subject::Domain { uuid: B, name: "b" };
        let allowed =
            |rules: &Access, it: &Identity| matches!(rules.decide(it, target), Decision::AllowedBy(_));
        assert!(allowed(&rules, &from_ip("fd00:0::1")));
        assert!(allowed(&rules, &Identity { cid: Some(7), ..Identity::default() }));
        assert!(!allowed(&rules, &Identity { cid: Some(8), ..Identity::default() }));
        assert!(allowed(&rules, &Identity { domain: Some(A.into()), ..Identity::default() }));
        let called =
            |name: &str| Identity { domain: Some(B.into()), name: Some(name.into()), ..Identity::default() };
        assert!(!allowed(&rules, &called("c")));
        assert!(allowed(&rules, &called("b")), "a group may name it, too");
        assert!(allowed(&mapped, &from_ip("::ffff:10.0.0.1")));
    }

    #[test]
    fn domains_of_a_group_with_addresses_are_only_targets_on_a_network() {
        let by_address = access("group { ip = \"10.0.0.1\"; uuid = \"b\"; uuid = \"c\"; }");
        let by_domain = access("group { uuid = \"b\"; uuid = \"c\"; }");
        let b = Identity { domain: Some(B.into()), name: Some("b".into()), ..from_ip("10.0.0.2") };
        let on_a_line = Identity { ip: None, ..b.clone() };
        let c = Subject::Domain { uuid: A, name: "c" };
        assert_eq!(by_address.decide(&b, c), Decision::Denied(Denial::UnknownSource));
        assert!(matches!(by_address.decide(&on_a_line, c), Decision::AllowedBy(_)));
        assert!(matches!(by_domain.decide(&b, c), Decision::AllowedBy(_)));
    }
}
