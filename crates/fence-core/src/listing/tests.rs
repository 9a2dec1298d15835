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

/// A list has 63 bytes of each name. A namesake of a longer name is there by its beginning alone.
#[test]
fn a_name_that_does_not_fit_into_a_list_hides_no_namesake() {
    let off = HostReply::Status(Response::Off);
    let seen = |listed_name: &str, name: &str, is_off: bool| {
        let list = HostReply::List(vec![listed(2, listed_name, is_off)], Response::Success);
        sight(&[&list, &off], id(1), name)
    };
    for character in ["a", "\u{e4}", "\u{20ac}", "\u{1f600}"] {
        let name = character.repeat(70);
        for bytes in 60..=63 {
            let cut = String::from_utf8_lossy(&name.as_bytes()[..bytes]).into_owned();
            if bytes == 63 || name.is_char_boundary(bytes) && !name.is_char_boundary(63) {
                assert!(matches!(seen(&cut, &name, false), Sight::Unknown(_)), "{cut}");
                assert_eq!(seen(&cut, &name, true), Sight::Absent);
            }
        }
        let other = format!("b{}", &name);
        let cut = String::from_utf8_lossy(&other.as_bytes()[..63]).into_owned();
        assert_eq!(seen(&cut, &name, false), Sight::Absent, "another beginning");
        assert_eq!(seen(character, &name, false), Sight::Absent, "a short name");
    }
    let full = "a".repeat(63);
    assert!(matches!(seen(&full, &full, false), Sight::Unknown(_)));
    assert_eq!(seen(&full, &full[..62], false), Sight::Absent);
}
