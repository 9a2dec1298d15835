// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the cpg backend: access to corosync, for the daemon's user too; the hosts in the groups; and the
//! evidence that a lost host is down. Runs in the process of `--check`, with one thread that asks corosync.
//! Must never join a group: hosts of the C daemon would publish all that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corosync_cpg::{Error, Group, Member, Node, NodeList};
use fence_cli::shown;
use fence_config::{Config, CpgBackend, HostDown};
use fence_wire::escaped;
use nix::unistd::{User, geteuid};

use super::finding::{Finding, USER};
use crate::cluster::link;
use crate::daemon::in_use::ConfigurationInUse;
use crate::host_down::pacemaker;
use crate::nodes::survey::{SurveyLine, SurveyedState};
use crate::nodes::{AwayDomain, KnownNode, NodeState, NodeStore, word_for};

#[cfg(test)]
mod tests;

const CHECK: &str = "corosync";
/// Domains that moved away and are named one by one.
const MAX_NAMED: usize = 20;
/// Time for corosync to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks for the daemon's answer.
const SURVEY_POLL: Duration = Duration::from_millis(50);
/// Next step for a name that means several domains.
const NAMESAKES_STEP: &str = "fence by UUID; or rename the domain that is not needed, or undefine it (virsh \
                              undefine UUID, at that node)";
/// Next step for a domain that runs at several nodes.
const TWICE_STEP: &str = "two machines share one disk: look at once (virsh list on each node), end that \
                          which does not belong there (virsh destroy), and look at the disk";

/// `state`: the state directory, with what the daemon remembers.
pub(super) fn all(config: &Config, state: Option<&Path>) -> Vec<Finding> {
    let Some(settings) = config.cpg() else { return Vec::new() };
    let (tell, told) = mpsc::channel();
    let groups = groups(settings);
    // A call to a corosync that is stopped does not end: then this thread ends with the process.
    thread::spawn(move || drop(tell.send(CorosyncView::look(&groups))));
    // A file that a daemon left when it was killed tells of nothing.
    let store = state.filter(|it| ConfigurationInUse::of_running(it).is_some()).map(NodeStore::at);
    let survey = store.as_ref().map(survey);
    let mut found = match told.recv_timeout(LIMIT) {
        Ok(Ok(seen)) => seen.findings(settings, matches!(survey, Some(Ok(_)))),
        Ok(Err(error)) => vec![unreachable(&link::explained(&error))],
        Err(_) => vec![unreachable(&format!("no answer within {} s", LIMIT.as_secs()))],
    };
    found.extend(match survey {
        Some(Ok(lines)) => lines.iter().filter_map(of_line).collect(),
        Some(Err(finding)) => vec![finding],
        None => Vec::new(),
    });
    if let Some(store) = store {
        found.extend(gone(&store.read()));
        found.extend(away(&store.read_away()));
    }
    found.push(host_down(&settings.host_down));
    found
}

/// Has the daemon ask the other nodes, and returns its answer.
fn survey(store: &NodeStore) -> Result<Vec<SurveyLine>, Finding> {
    let cant = |text: String, next: &str| Err(Finding::warning("node", "", text, next));
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let token = format!("{}-{time}", std::process::id());
    if let Err(error) = store.request_survey(&token) {
        return cant(format!("the other nodes are not asked: {error} (state_dir)"), "run this as root");
    }
    let (end, asked) = (Instant::now() + LIMIT, SurveyLine::Asked(token));
    while Instant::now() < end {
        let lines = store.read_survey();
        if lines.contains(&asked) {
            return Ok(lines);
        }
        thread::sleep(SURVEY_POLL);
    }
    let text = format!("fence_virtd here did not ask the other nodes within {} s", LIMIT.as_secs());
    cant(text, "was it started anew after the last update, and with backend cpg? Else see its log")
}

/// Returns what is to be said of a node, or of a domain at several nodes; none where all is well.
fn of_line(line: &SurveyLine) -> Option<Finding> {
    const FAILS: &str = "Status, off and on of what runs at no node that answers fail";
    Some(match line {
        SurveyLine::Asked(_) => return None,
        SurveyLine::Twice { uuid, name, places } => {
            let subject = format!("{} ({uuid})", escaped(name));
            let text = format!("runs at several nodes at once: {}", escaped(places));
            Finding::failed("domain", subject, text, TWICE_STEP)
        }
        SurveyLine::Namesakes { any_on, name, places } => {
            let text = format!("the name means several domains: {}. Requests by it fail", escaped(places));
            let finding = if *any_on { Finding::failed } else { Finding::warning };
            finding("domain", escaped(name).to_string(), text, NAMESAKES_STEP)
        }
        SurveyLine::Node { state, name, words } => {
            let (name, words) = (escaped(name).to_string(), escaped(words));
            match state {
                SurveyedState::Answers => return None,
                SurveyedState::Down => {
                    let text = format!("is down: {words}. What ran there counts as off");
                    Finding::warning("node", name, text, "bring that node back when it is repaired")
                }
                SurveyedState::Lost => {
                    let text = format!("corosync does not hear that node. {FAILS}: {words}");
                    let next = "look at the power and the network of that node, then at corosync there \
                                (corosync-cfgtool -s). How a node that is off is proved down: host_down in \
                                cpg.md";
                    Finding::failed("node", name, text, next)
                }
                SurveyedState::NoDaemon => {
                    let text =
                        format!("corosync hears that node, and no fence_virtd there is heard. {FAILS}");
                    let next = "on that node: systemctl start fence_virtd. If it does not stay up: \
                                journalctl -u fence_virtd";
                    Finding::failed("node", name, text, next)
                }
                SurveyedState::CantTell => {
                    let text = format!("was asked, and did not say what it has. {FAILS}: {words}");
                    let next = "on that node: fence_virtd --check. If virsh hangs there: systemctl restart \
                                libvirtd (or virtqemud); machines that run go on";
                    Finding::failed("node", name, text, next)
                }
            }
        }
    })
}

/// Returns the nodes that were taken out of the cluster and had domains that may still run there.
fn gone(nodes: &[KnownNode]) -> Vec<Finding> {
    let has_domains = |it: &&KnownNode| it.state != NodeState::Listed && it.domains > 0;
    let finding = |it: &KnownNode| {
        let text = format!(
            "is no longer in corosync's list of nodes, and {} of its domains may run there: status and off \
             of them fail",
            it.domains
        );
        let word = word_for(it, nodes);
        let next = format!(
            "if that node is gone for good: power that node off, and then fence_virtd --forget {} on one \
             node. If not: put it back into corosync.conf",
            escaped(&word)
        );
        Finding::warning("node", it.to_string(), text, next)
    };
    nodes.iter().filter(has_domains).map(finding).collect()
}

/// Returns the domains that moved away from this node and can't be called off.
fn away(domains: &[AwayDomain]) -> Vec<Finding> {
    let finding = |it: &AwayDomain| {
        let text = "moved away from this host, or was saved there to a file. No node has the domain on, or \
                    saw the domain end after that: status, off and on of the domain fail";
        let next = "is the domain on at a host that is no node? Make that host a node, or end the domain \
                    there. Did the domain move to a node that was taken out of the cluster? Power that node \
                    off. If the domain is off everywhere: start the domain with virsh at a node, then fence \
                    the domain";
        Finding::warning("domain", format!("{} ({})", escaped(&it.name), it.uuid), text, next)
    };
    let count = domains.len();
    let mut found: Vec<_> = domains.iter().take(MAX_NAMED).map(finding).collect();
    if count > MAX_NAMED {
        let text = format!("{} more moved away", count - MAX_NAMED);
        found.push(Finding::warning("domain", "", text, "as above"));
    }
    found
}

/// Returns the group of all hosts, and that of hosts with this daemon.
fn groups(settings: &CpgBackend) -> [String; 2] {
    [settings.group.clone(), format!("{}-2", settings.group)]
}

/// Answers of corosync.
#[derive(Clone)]
struct CorosyncView {
    nodes: Result<Vec<Node>, Error>,
    /// Members of each of the [`groups`].
    members: [Vec<Member>; 2],
    /// True where the daemon's own user is let in; none where there is no such user, or this process can't
    /// become another user.
    lets_in: Option<bool>,
}

impl CorosyncView {
    fn look(groups: &[String; 2]) -> Result<Self, Error> {
        let list = NodeList::open()?;
        let user = User::from_name(USER).ok().flatten().filter(|_| geteuid().is_root());
        let lets_in = user.map(|it| list.lets_in(it.uid.as_raw(), it.gid.as_raw())).transpose()?;
        let [all, ours] = groups;
        Ok(Self {
            nodes: list.nodes(),
            members: [Group::members_of(all)?, Group::members_of(ours)?],
            lets_in,
        })
    }

    /// `is_surveyed`: the daemon here tells more of each node that is not heard.
    fn findings(&self, settings: &CpgBackend, is_surveyed: bool) -> Vec<Finding> {
        let mut found = vec![self.access()];
        let subject = escaped(&settings.group).to_string();
        let nodes = match &self.nodes {
            Ok(nodes) if !nodes.is_empty() => nodes,
            it => {
                let text =
                    it.as_ref().err().map_or("corosync.conf has no node list".to_owned(), Error::to_string);
                let next = "write a nodelist with a nodeid and a name for each node into corosync.conf: \
                    without it nothing that \
                            is not seen to be on can be called off";
                found.push(Finding::failed("hosts", subject, text, next));
                return found;
            }
        };
        let of = |members: &[Member]| members.iter().map(|it| it.node).collect::<BTreeSet<_>>();
        let [all, ours] = [of(&self.members[0]), of(&self.members[1])];
        let names: BTreeMap<u32, String> = nodes.iter().map(|it| (it.id, name(it))).collect();
        let those = |is: &dyn Fn(&u32) -> bool| {
            let ids = names.iter().filter(|(id, _)| is(id)).map(|(_, name)| name.as_str());
            ids.collect::<Vec<_>>().join(", ")
        };
        let here = those(&|id| ours.contains(id));
        let old = those(&|id| all.contains(id) && !ours.contains(id));
        let missing = those(&|id| !all.contains(id) && !ours.contains(id));
        let mut text = format!("daemons of: {}", if here.is_empty() { "nobody" } else { &here });
        if !old.is_empty() {
            text += &format!("; the C daemon of: {old}");
        }
        found.push(if missing.is_empty() {
            Finding::ok("hosts", subject, text)
        } else {
            let next = match is_surveyed {
                true => "do what the lines `node` say",
                false => {
                    "does corosync hear that node (corosync-cfgtool -s)? Then start fence_virtd there. \
                     If not: look at its power and network. Until then what runs there can't be fenced, and \
                     nothing that was not seen to go off is called off"
                }
            };
            Finding::warning("hosts", subject, format!("{text}; not heard: {missing}"), next)
        });
        found
    }

    fn access(&self) -> Finding {
        if self.lets_in == Some(false) {
            let next = "write it into a file of /etc/corosync/uidgid.d and reload corosync: cpg.md; not \
                        needed where the daemon \
                        runs as root";
            return Finding::warning(CHECK, "", format!("reached, but does not let {USER} in"), next);
        }
        Finding::ok(CHECK, "", "reached")
    }
}

fn unreachable(why: &str) -> Finding {
    let next =
        "until then only what runs on this host is fenced: systemctl status corosync, corosync-cfgtool -s";
    Finding::failed(CHECK, "", why, next)
}

fn name(node: &Node) -> String {
    match &node.name {
        Some(name) => format!("node {} ({})", node.id, escaped(name)),
        None => format!("node {}", node.id),
    }
}

fn host_down(settings: &HostDown) -> Finding {
    const CHECK: &str = "host_down";
    match settings {
        HostDown::Never => {
            Finding::ok(CHECK, "never", "what ran on a lost host is fenced when that is heard again")
        }
        HostDown::Membership => {
            let next = "host_down = \"pacemaker\", or \"command\", waits for a proof";
            Finding::warning(
                CHECK,
                "membership",
                "a host that is only cut off is called down: two hosts may run one domain",
                next,
            )
        }
        HostDown::Command(command) => {
            let subject = shown(command);
            let next = "name a program that the daemon's user may run";
            match std::fs::metadata(command) {
                Err(error) => Finding::failed(CHECK, subject, error.to_string(), next),
                Ok(it) if !it.is_file() || it.permissions().mode() & 0o111 == 0 => {
                    Finding::failed(CHECK, subject, "is not a program", next)
                }
                Ok(_) => Finding::ok(CHECK, subject, "there"),
            }
        }
        HostDown::Pacemaker => match pacemaker::ask_for_history(Path::new(pacemaker::STONITH_ADMIN)) {
            Ok(count) => {
                Finding::ok(CHECK, "pacemaker", format!("its fencing history can be read; {count} in it"))
            }
            Err(why) => {
                let next = "is Pacemaker running, and is the daemon's user in the group haclient? see cpg.md";
                Finding::failed(CHECK, "pacemaker", why, next)
            }
        },
    }
}
