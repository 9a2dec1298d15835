// SPDX-License-Identifier: GPL-2.0-or-later

use super::*;
use crate::check::finding::FindingLevel;
use crate::cluster::node::{Corosync, Peer, on_a_node};

fn config(keys: &str) -> Config {
    let text = format!("fence_virtd {{ backend = \"cpg\"; }} backends {{ cpg {{ {keys} }} }}");
    fence_config::load(text.as_bytes()).config.unwrap()
}

fn settings() -> CpgBackend {
    config("").cpg().unwrap().clone()
}

#[test]
fn hosts_that_are_heard_old_ones_and_those_that_are_not() {
    let node = |id, name: Option<&str>| Node { id, name: name.map(str::to_owned), addresses: Vec::new() };
    let member = |node| Member { node, pid: 7 };
    let all = CorosyncView {
        nodes: Ok(vec![node(1, Some("alpha")), node(2, Some("beta")), node(3, None)]),
        members: [vec![member(1), member(2), member(3)], vec![member(1), member(3)]],
        lets_in: Some(true),
    };
    let found = all.findings(&settings(), false);
    assert!(found.iter().all(|it| it.result == FindingLevel::Ok));
    assert_eq!(found[1].text, "daemons of: node 1 (alpha), node 3; the C daemon of: node 2 (beta)");
    let some = CorosyncView { members: [vec![member(2)], vec![]], lets_in: Some(false), ..all.clone() };
    let found = some.findings(&settings(), false);
    assert_eq!(found[0].result, FindingLevel::Warning);
    assert!(found[0].next.as_ref().unwrap().contains("/etc/corosync/uidgid.d"));
    assert_eq!(found[1].result, FindingLevel::Warning);
    let text = "daemons of: nobody; the C daemon of: node 2 (beta); not heard: node 1 (alpha), node 3";
    assert_eq!(found[1].text, text);
    for nodes in [Ok(vec![]), Err(Error { kind: corosync_cpg::ErrorKind::NodeWithoutId, code: 0, call: "x" })]
    {
        let found = CorosyncView { nodes, ..all.clone() }.findings(&settings(), false);
        assert_eq!(found[1].result, FindingLevel::Failed);
    }
}

#[test]
fn a_node_that_was_taken_out_is_named_with_the_step() {
    let node = |id, state, domains| KnownNode { id, state, domains, name: Some(format!("h{id}")) };
    let nodes = [
        node(1, NodeState::Listed, 0),
        node(2, NodeState::Listed, 4),
        node(3, NodeState::Gone, 2),
        node(4, NodeState::Gone, 0),
    ];
    let found = gone(&nodes);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].subject.as_str(), found[0].result), ("node 3 (h3)", FindingLevel::Warning));
    assert!(found[0].next.as_ref().unwrap().contains("fence_virtd --forget h3 on one node"));
}

#[test]
fn a_node_that_can_make_a_fence_fail_is_a_failure_with_the_step() {
    let said = |state| {
        let line = SurveyLine::Node { state, name: "node 3 (h3)".into(), words: "the words".into() };
        of_line(&line).map(|it| (it.result, it.lines()))
    };
    assert!(said(SurveyedState::Answers).is_none());
    let (level, text) = said(SurveyedState::Down).unwrap();
    assert!(level == FindingLevel::Warning && text.contains("is down: the words. What"), "{text}");
    for (state, fact, step) in [
        (SurveyedState::Lost, "corosync does not hear that node", "the power and the network"),
        (SurveyedState::NoDaemon, "corosync hears that node, and no", "systemctl start fence_virtd"),
        (SurveyedState::CantTell, "was asked, and did not say what it has", "systemctl restart libvirtd"),
    ] {
        let (level, text) = said(state).unwrap();
        assert_eq!(level, FindingLevel::Failed);
        assert!(text.starts_with("failed   node node 3 (h3): ") && text.contains(fact), "{text}");
        assert!(text.contains(step) && text.contains("fail"), "{text}");
    }
}

#[test]
fn domains_that_moved_away_are_named_with_the_step() {
    use fence_core::domain::DomainId;

    let domains = |count: u8| -> Vec<AwayDomain> {
        let domain = |it| AwayDomain { uuid: DomainId::from_bytes([it; 16]), name: format!("d{it}") };
        (0..count).map(domain).collect()
    };
    assert!(away(&[]).is_empty());
    let said = away(&domains(1))[0].lines();
    assert!(said.starts_with("warning  domain d0 (00000000-") && said.contains("moved away"), "{said}");
    assert!(said.contains("fail\n") && said.contains("start the domain with virsh at a node"), "{said}");
    let many = away(&domains(23));
    assert_eq!((many.len(), many[20].text.as_str()), (21, "3 more moved away"));
}

#[test]
fn what_would_prove_a_loss() {
    let level = |it: &HostDown| host_down(it).result;
    assert_eq!(level(&HostDown::Never), FindingLevel::Ok);
    assert_eq!(level(&HostDown::Membership), FindingLevel::Warning);
    assert_eq!(level(&HostDown::Command("/bin/sh".into())), FindingLevel::Ok);
    for path in ["/nosuch", "/etc", "/etc/passwd"] {
        assert_eq!(level(&HostDown::Command(path.into())), FindingLevel::Failed, "{path}");
    }
    assert!(all(&Config { backends: Vec::new(), ..config("") }, None).is_empty());
}

#[test]
#[ignore = "needs root and corosync"]
fn a_real_corosync() {
    on_a_node("check::cluster::tests::a_real_corosync", || {
        let config = config("host_down = \"pacemaker\";");
        let found = all(&config, None);
        assert_eq!(found.len(), 2);
        assert!(found[0].text.contains("corosync does not answer"), "{}", found[0].text);
        // No Pacemaker runs here either.
        assert!(
            found[1].result == FindingLevel::Failed && found[1].text.contains("fencer"),
            "{}",
            found[1].text
        );

        let _corosync = Corosync::start();
        let mut peer = Peer::start("cluster::link::tests::peer", "fence-agents-2");
        peer.member();
        let found = all(&config, None);
        assert_eq!(found[0].text, "reached");
        assert_eq!(found[1].text, "daemons of: node 1 (alpha); not heard: node 5 (elsewhere), node 9");
    });
}
