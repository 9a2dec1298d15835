// SPDX-License-Identifier: GPL-2.0-or-later
//! The file `nodes` of the state directory: the nodes that the daemon knows, one a line.
//!
//! ```text
//! fence_virt nodes 1
//! node ID listed|heard|gone DOMAINS NAME
//! end
//! ```
//!
//! Owns `nodes.away` too, the domains that moved away from this node and are at none:
//!
//! ```text
//! fence_virt nodes away 1
//! domain UUID NAME
//! end
//! ```
//!
//! The daemon writes them when they change; `--check` and `--forget` read it, in processes of their own. Owns
//! `nodes.forget` too, in which `--forget` names nodes for the daemon. No decision of the daemon depends on
//! `nodes`: a request for a node that is still there is refused by each daemon, whatever the file says.

pub(crate) mod keys;
pub(crate) mod survey;

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fence_core::domain::DomainId;
use fence_wire::escaped;

use self::survey::SurveyLine;

const NODES: LineFile = LineFile { name: "nodes", header: "fence_virt nodes 1", must_last: false };
const AWAY: LineFile = LineFile { name: "nodes.away", header: "fence_virt nodes away 1", must_last: false };
const SURVEY: LineFile =
    LineFile { name: "nodes.survey", header: "fence_virt nodes survey 1", must_last: false };
const FORGET: &str = "nodes.forget";
const ASK: &str = "nodes.ask";
/// Bytes of a file at most: a line for each node.
const MAX_FILE: u64 = 256 * 1024;

/// Node that the daemon knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KnownNode {
    pub(crate) id: u32,
    pub(crate) state: NodeState,
    /// Number of domains that were last seen there, while no daemon is heard there.
    pub(crate) domains: usize,
    pub(crate) name: Option<String>,
}

/// State of a node for corosync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NodeState {
    /// In corosync's list of nodes.
    Listed,
    /// Not in the list, and heard all the same.
    Heard,
    /// Not in the list, and not heard.
    Gone,
}

impl KnownNode {
    /// Returns true if a text means this node: its name or its id.
    fn is_meant(&self, text: &str) -> bool {
        text.parse() == Ok(self.id) || self.name.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(text))
    }

    fn line(&self) -> String {
        let state = match self.state {
            NodeState::Listed => "listed",
            NodeState::Heard => "heard",
            NodeState::Gone => "gone",
        };
        let name = self.name.as_deref().unwrap_or_default().replace('\n', " ");
        format!("node {} {state} {} {name}", self.id, self.domains)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("node ")?.splitn(4, ' ');
        let id = words.next()?.parse().ok()?;
        let state = match words.next()? {
            "listed" => NodeState::Listed,
            "heard" => NodeState::Heard,
            "gone" => NodeState::Gone,
            _ => return None,
        };
        let domains = words.next()?.parse().ok()?;
        let name = words.next().filter(|it| !it.is_empty()).map(str::to_owned);
        Some(Self { id, state, domains, name })
    }
}

/// Domain that moved away from this node, and is at none that is in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AwayDomain {
    pub(crate) uuid: DomainId,
    pub(crate) name: String,
}

impl AwayDomain {
    fn line(&self) -> String {
        format!("domain {} {}", self.uuid, self.name.replace('\n', " "))
    }

    fn parse(line: &str) -> Option<Self> {
        let (uuid, name) = line.strip_prefix("domain ")?.split_once(' ')?;
        Some(Self { uuid: DomainId::parse(uuid)?, name: name.to_owned() })
    }
}

impl fmt::Display for KnownNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().map(|it| escaped(it).to_string());
        f.write_str(&shown_node(self.id, name.as_deref()))
    }
}

/// Returns a node with its name for people.
pub(crate) fn shown_node(node: u32, name: Option<&str>) -> String {
    name.map_or_else(|| format!("node {node}"), |name| format!("node {node} ({name})"))
}

/// Returns the node that a text means. One that is gone comes first: the machine may be back with another
/// id.
pub(crate) fn find<'n>(nodes: &'n [KnownNode], text: &str) -> Option<&'n KnownNode> {
    let with = |state| nodes.iter().find(move |it| it.state == state && it.is_meant(text));
    with(NodeState::Gone).or_else(|| with(NodeState::Heard)).or_else(|| with(NodeState::Listed))
}

/// Returns what `--forget` takes for this node: its name, or its id if it has none of its own.
pub(crate) fn word_for(node: &KnownNode, nodes: &[KnownNode]) -> String {
    let is_only = |name: &&String| nodes.iter().filter(|it| it.is_meant(name)).count() == 1;
    node.name.as_ref().filter(is_only).cloned().unwrap_or_else(|| node.id.to_string())
}

/// File of lines between a header and `end`.
struct LineFile {
    name: &'static str,
    header: &'static str,
    /// On the disk before it takes the place of the file before.
    must_last: bool,
}

/// The files of one state directory.
#[derive(Clone)]
pub(crate) struct NodeStore(PathBuf);

impl NodeStore {
    pub(crate) fn at(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Writes the nodes in the place of those before. Waits for the disk.
    pub(crate) fn write(&self, nodes: &[KnownNode]) -> io::Result<()> {
        self.write_lines(&NODES, nodes.iter().map(KnownNode::line))
    }

    /// Returns the nodes; none where no daemon wrote them, or this user may not read them.
    pub(crate) fn read(&self) -> Vec<KnownNode> {
        self.read_lines(&NODES, KnownNode::parse)
    }

    /// Writes the domains that moved away and are at no node. Waits for the disk.
    pub(crate) fn write_away(&self, domains: &[AwayDomain]) -> io::Result<()> {
        self.write_lines(&AWAY, domains.iter().map(AwayDomain::line))
    }

    /// Returns these domains; none where no daemon wrote them, or this user may not read them.
    pub(crate) fn read_away(&self) -> Vec<AwayDomain> {
        self.read_lines(&AWAY, AwayDomain::parse)
    }

    fn write_lines(&self, file: &LineFile, lines: impl Iterator<Item = String>) -> io::Result<()> {
        let mut text = format!("{}\n", file.header);
        for line in lines {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{line}");
        }
        text += "end\n";
        let new = self.0.join(format!("{}.new", file.name));
        let mut opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        opened.write_all(text.as_bytes())?;
        if file.must_last {
            opened.sync_all()?;
        }
        fs::rename(new, self.0.join(file.name))
    }

    /// Returns what the lines of a file say; nothing of one that is not whole.
    fn read_lines<T>(&self, file: &LineFile, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let text = read_file(&self.0.join(file.name)).unwrap_or_default();
        let lines = text.strip_suffix("end\n").and_then(|it| it.strip_prefix(&format!("{}\n", file.header)));
        lines.unwrap_or_default().lines().filter_map(parse).collect()
    }

    /// Asks the daemon to forget a node. It does so within a second or two, or at its start.
    pub(crate) fn request_forget(&self, node: u32) -> io::Result<()> {
        self.append(FORGET, &node.to_string())?.sync_all()
    }

    /// Asks the daemon what the other nodes say now. Its answer names this token.
    pub(crate) fn request_survey(&self, token: &str) -> io::Result<()> {
        self.append(ASK, token).map(drop)
    }

    /// Takes the questions out of `nodes.ask`.
    pub(crate) fn take_survey_questions(&self) -> io::Result<Vec<String>> {
        Ok(self.take(ASK)?.lines().map(str::to_owned).collect())
    }

    /// Writes the answer to these questions.
    pub(crate) fn write_survey(&self, lines: &[SurveyLine]) -> io::Result<()> {
        self.write_lines(&SURVEY, lines.iter().map(SurveyLine::line))
    }

    /// Returns the last answer; none where no daemon wrote one, or this user may not read it.
    pub(crate) fn read_survey(&self) -> Vec<SurveyLine> {
        self.read_lines(&SURVEY, SurveyLine::parse)
    }

    fn append(&self, name: &str, line: &str) -> io::Result<File> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.0.join(name))?;
        // One write: two programs at once leave two whole lines.
        file.write_all(format!("{line}\n").as_bytes())?;
        Ok(file)
    }

    /// Takes the nodes that are to be forgotten out of `nodes.forget`.
    pub(crate) fn take_forgotten(&self) -> io::Result<Vec<u32>> {
        Ok(self.take(FORGET)?.lines().filter_map(|it| it.parse().ok()).collect())
    }

    /// Takes a file of requests away, and returns its text.
    fn take(&self, name: &str) -> io::Result<String> {
        // Renamed first: what is added meanwhile goes into a new file.
        let taken = self.0.join(format!("{name}.taken"));
        match fs::rename(self.0.join(name), &taken) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        }
        let text = read_file(&taken)?;
        fs::remove_file(&taken)?;
        Ok(text)
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, state: NodeState, name: Option<&str>) -> KnownNode {
        KnownNode { id, state, domains: 7, name: name.map(str::to_owned) }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::at(dir.path());
        assert_eq!(store.read(), []);
        let nodes = [
            node(1, NodeState::Listed, Some("h1")),
            node(2, NodeState::Heard, None),
            node(3, NodeState::Gone, Some("a b")),
        ];
        store.write(&nodes).unwrap();
        assert_eq!(store.read(), nodes);
        assert_eq!(store.read_away(), []);
        let away = [(1, "a b"), (2, "")]
            .map(|(it, name)| AwayDomain { uuid: DomainId::from_bytes([it; 16]), name: name.to_owned() });
        store.write_away(&away).unwrap();
        assert_eq!((store.read_away(), store.read()), (away.to_vec(), nodes.to_vec()));
        assert!(store.take_forgotten().unwrap().is_empty());
        store.request_forget(3).unwrap();
        store.request_forget(4).unwrap();
        assert_eq!(store.take_forgotten().unwrap(), [3, 4]);
        assert!(store.take_forgotten().unwrap().is_empty());
    }

    #[test]
    fn a_question_is_answered_by_its_token() {
        use super::survey::SurveyedState;

        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::at(dir.path());
        assert!(store.take_survey_questions().unwrap().is_empty());
        store.request_survey("a").unwrap();
        store.request_survey("b").unwrap();
        assert_eq!(store.take_survey_questions().unwrap(), ["a", "b"]);
        assert!(store.take_survey_questions().unwrap().is_empty() && store.read_survey().is_empty());
        let (name, words) = ("node 2 (h 2)".to_owned(), "no, it\tis\nnot".to_owned());
        let lines = [
            SurveyLine::Node { state: SurveyedState::NoDaemon, name: name.clone(), words },
            SurveyLine::Twice {
                uuid: DomainId::from_bytes([1; 16]),
                name: "a b".to_owned(),
                places: "h1, h2".to_owned(),
            },
            SurveyLine::Namesakes { any_on: true, name: "c d".to_owned(), places: "h1, h2".to_owned() },
            SurveyLine::Asked("a".to_owned()),
        ];
        store.write_survey(&lines).unwrap();
        let read = store.read_survey();
        assert_eq!(read[1..], lines[1..]);
        let words = "no, it is not".to_owned();
        assert_eq!(read[0], SurveyLine::Node { state: SurveyedState::NoDaemon, name, words });
    }

    #[test]
    fn a_machine_that_is_back_under_another_id_is_not_the_one_that_is_gone() {
        let nodes = [node(2, NodeState::Listed, Some("h3")), node(3, NodeState::Gone, Some("h3"))];
        assert_eq!(find(&nodes, "H3").unwrap().id, 3);
        assert_eq!(find(&nodes, "2").unwrap().id, 2);
        assert!(find(&nodes, "h4").is_none());
        assert_eq!(word_for(&nodes[1], &nodes), "3");
        assert_eq!(word_for(&nodes[1], &nodes[1..]), "h3");
    }
}
