// SPDX-License-Identifier: GPL-2.0-or-later
use super::*;
use fence_core::domain::{DomainHome, DomainId, TargetKind};

const ME: Member = Member { node: 1, pid: 10 };
const OURS: Member = Member { node: 2, pid: 20 };
const LEGACY: Member = Member { node: 3, pid: 30 };
/// Here the domain ended, and left no definition.
const ENDED: Member = Member { node: 4, pid: 40 };

fn domain() -> DomainRef {
    DomainRef {
        name: "n".to_owned(),
        uuid: DomainId::from_bytes([1; 16]),
        home: DomainHome::Elsewhere,
        by: TargetKind::Name,
    }
}

/// Readings in the order of the columns of the table.
fn readings() -> [LocalReading; 6] {
    [
        LocalReading::On(domain()),
        LocalReading::WentOff { domain: domain(), is_defined: true },
        LocalReading::WentOff { domain: domain(), is_defined: false },
        LocalReading::DefinedOff(domain()),
        LocalReading::NotHere,
        LocalReading::Unavailable("ill".to_owned()),
    ]
}

/// Returns the step for the place, as a short word: "+" before what is asked if the domain is on there.
fn step(here: LocalReading, place: DomainPlace) -> String {
    let names = |at: Vec<OwnerHost>| {
        let name = |it: OwnerHost| match it {
            OwnerHost::Here(own) if own == domain() => "here",
            OwnerHost::There(OURS) => "ours",
            OwnerHost::There(ENDED) => "ended",
            OwnerHost::There(LEGACY) => "legacy",
            other => panic!("{other:?}"),
        };
        at.into_iter().map(name).collect::<Vec<_>>().join(",")
    };
    let place = PublishedPlace::of(place, Some(ME));
    match next_step(here, place, |it| it == LEGACY, |it| it == ENDED) {
        OwnerStep::AskRunning(at) => format!("+{}", names(at)),
        OwnerStep::AskResting(at) => names(at),
        OwnerStep::AskLost { node, why } => format!("lost {node} {why}"),
        OwnerStep::AwaitChange(ActionError::Gone) => "wait".to_owned(),
        OwnerStep::AwaitChange(ActionError::Unavailable(why)) => format!("wait {why}"),
        OwnerStep::Fail(ActionError::Gone) => "gone".to_owned(),
        OwnerStep::Fail(ActionError::Unavailable(why)) => format!("fail {why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_reading_and_place_has_its_step() {
    use DomainPlace::{Doubt, Lost, NotYet, Off, On, Unknown};
    let why = || "w".to_owned();
    let lost = Lost { node: 9, why: why() };
    let doubt = Doubt(vec![OURS]);
    let lost_step = "lost 9 w";
    // Columns: on here, went off here, the same without a definition, defined here, not here, unavailable.
    let table: [(DomainPlace, [&str; 6]); 17] = [
        (On(vec![OURS]), ["+here,ours", "+ours", "+ours", "+ours", "+ours", "+ours"]),
        (On(vec![LEGACY]), ["+here,legacy", "+legacy", "+legacy", "+legacy", "+legacy", "+legacy"]),
        (On(vec![ME, OURS]), ["+here,ours", "+ours", "+ours", "+ours", "+ours", "fail ill"]),
        (On(vec![ME]), ["+here", "here", "here", "wait", "wait", "fail ill"]),
        (Off(vec![]), ["+here", "here", "here", "here", "gone", "fail ill"]),
        (Off(vec![ME]), ["+here", "here", "here", "here", "gone", "fail ill"]),
        (Off(vec![OURS]), ["+here", "here,ours", "ours,here", "here,ours", "ours", "fail ill"]),
        (Off(vec![LEGACY]), ["+here", "here", "legacy,here", "here", "legacy", "fail ill"]),
        (Off(vec![LEGACY, ME, OURS]), ["+here", "here,ours", "ours,here", "here,ours", "ours", "fail ill"]),
        (Off(vec![LEGACY, ME]), ["+here", "here", "legacy,here", "here", "legacy", "fail ill"]),
        (Off(vec![ENDED]), ["+here", "here,ended", "here,ended", "here,ended", "ended", "fail ill"]),
        (
            Off(vec![ENDED, ME, OURS]),
            ["+here", "here,ended,ours", "ours,here,ended", "here,ended,ours", "ours,ended", "fail ill"],
        ),
        (
            Off(vec![ENDED, LEGACY]),
            ["+here", "here,ended", "legacy,here,ended", "here,ended", "legacy,ended", "fail ill"],
        ),
        (lost, ["+here", lost_step, lost_step, lost_step, lost_step, lost_step]),
        (doubt, ["+here", "here,ours", "ours,here", "here,ours", "ours", "fail ill"]),
        (NotYet(why()), ["+here", "wait w", "wait w", "wait w", "wait w", "wait w"]),
        (Unknown, ["+here", "wait", "wait", "wait", "gone", "fail ill"]),
    ];
    for (place, row) in table {
        for (here, expected) in readings().into_iter().zip(row) {
            assert_eq!(step(here.clone(), place.clone()), expected, "{here:?}, {place:?}");
        }
    }
}

#[test]
fn without_a_member_of_its_own_this_host_is_one_of_the_others() {
    let place = PublishedPlace::of(DomainPlace::On(vec![ME, OURS]), None);
    assert_eq!(place, PublishedPlace::OnThere { at: vec![ME, OURS], here_too: false });
}
