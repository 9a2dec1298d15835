// SPDX-License-Identifier: GPL-2.0-or-later
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use proptest::prelude::*;

use super::*;

fn id(number: u8) -> DomainId {
    DomainId::from_bytes([number; 16])
}

fn listed(number: u8, name: &str, is_off: bool) -> HostDomain {
    HostDomain { name: name.to_owned(), uuid: id(number).to_string().to_uppercase(), is_off }
}

fn lists() -> impl Strategy<Value = Vec<HostDomain>> {
    let uuid = prop_oneof![
        9 => (1..6_u8).prop_map(|it| id(it).to_string()),
        1 => "[a-z\u{fffd}]{0,6}",
    ];
    let domain =
        (uuid, "vm[1-3]", any::<bool>()).prop_map(|(uuid, name, is_off)| HostDomain { name, uuid, is_off });
    proptest::collection::vec(domain, 0..6)
}

fn responses() -> impl Strategy<Value = Response> {
    (0..4_u8).prop_map(|it| Response::from_number(it).unwrap())
}

fn replies() -> impl Strategy<Value = HostReply> {
    prop_oneof![
        3 => (lists(), responses()).prop_map(|(list, response)| HostReply::List(list, response)),
        3 => responses().prop_map(HostReply::Status),
        1 => Just(HostReply::Broken("broke off".to_owned())),
    ]
}

proptest! {
    /// "Off" and "absent" are told of a host only if it listed all its domains, each one once and readable,
    /// answered the status too, and nothing of that says that the domain may be on.
    #[test]
    fn nothing_but_a_whole_answer_shows_that_a_domain_is_not_on(
        replies in proptest::collection::vec(replies(), 0..5),
    ) {
        let all: Vec<_> = replies.iter().collect();
        let seen = sight(&all, id(1), "vm1");
        let is_on = |it: &HostDomain| DomainId::parse(&it.uuid) == Some(id(1)) && !it.is_off;
        let says_on = replies.iter().any(|it| match it {
            HostReply::List(list, _) => list.iter().any(is_on),
            HostReply::Status(it) => *it == Response::Success,
            HostReply::Broken(_) => false,
        });
        prop_assert_eq!(seen == Sight::On, says_on);
        if matches!(seen, Sight::Off | Sight::Absent) {
            let mut has = (false, false);
            for reply in &replies {
                match reply {
                    HostReply::Broken(_) => prop_assert!(false, "a broken answer counts"),
                    HostReply::Status(it) => {
                        prop_assert!(*it != Response::PermissionDenied);
                        has.1 = true;
                    }
                    HostReply::List(list, response) => {
                        prop_assert_eq!(*response, Response::Success);
                        let parsed = list.iter().filter_map(|it| DomainId::parse(&it.uuid));
                        let ids: BTreeSet<_> = parsed.collect();
                        prop_assert_eq!(ids.len(), list.len());
                        let is_other = |it: &HostDomain| DomainId::parse(&it.uuid) != Some(id(1));
                        prop_assert!(
                            seen == Sight::Off
                                || !list.iter().any(|it| is_other(it) && it.name == "vm1" && !it.is_off)
                        );
                        has.0 = true;
                    }
                }
            }
            prop_assert_eq!(has, (true, true));
        }
    }
}

#[test]
fn a_c_host_tells_on_off_and_absent() {
    let list = HostReply::List(vec![listed(1, "a", true), listed(2, "b", false)], Response::Success);
    let status = |it| HostReply::Status(it);
    assert_eq!(sight(&[&list, &status(Response::Off)], id(1), "a"), Sight::Off);
    assert_eq!(sight(&[&list, &status(Response::Success)], id(2), "b"), Sight::On);
    assert_eq!(sight(&[&list, &status(Response::Off)], id(3), "c"), Sight::Absent);
    // A daemon of ours fails for what it does not know, but not for what it has.
    assert_eq!(sight(&[&list, &status(Response::Failure)], id(3), "c"), Sight::Absent);
    assert!(matches!(sight(&[&list, &status(Response::Failure)], id(1), "a"), Sight::Unknown(_)));
}

#[test]
fn a_list_that_may_leave_a_domain_out_shows_nothing() {
    let off = HostReply::Status(Response::Off);
    let whole = HostReply::List(Vec::new(), Response::Success);
    let reason = |replies: &[&HostReply]| match sight(replies, id(1), "a") {
        Sight::Unknown(why) => why,
        other => format!("{other:?}"),
    };
    assert_eq!(reason(&[]), "does not answer");
    assert!(reason(&[&off]).contains("did not list"));
    assert!(reason(&[&whole]).contains("did not tell the status"));
    assert!(reason(&[&whole, &HostReply::Status(Response::PermissionDenied)]).contains("in a group"));
    let twice = HostReply::List(vec![listed(2, "b", true); 2], Response::Success);
    assert!(reason(&[&twice, &off]).contains("several URIs"));
    let namesake = HostReply::List(vec![listed(2, "a", false)], Response::Success);
    assert!(reason(&[&namesake, &off]).contains("another domain with the name"));
}
