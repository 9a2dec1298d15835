// SPDX-License-Identifier: GPL-2.0-or-later
//! Known statements of a block, and reports about the others.
//!
//! Owns the severity of a finding: errors in a block that is not in use only warn. Must never stop at an
//! error.

use crate::characters::name_misleading;
use crate::check::known::{KNOWN, KnownBlock};
use crate::check::text::{is_nearly, nearest_word};
use crate::diagnostic::{DiagnosticCode, Findings, MAX_DIAGNOSTICS, Severity, Span, show};
use crate::tree::{Assignment, Block, Item, Node, SourceText};

/// Known statements of one block, repeated ones too; the last one counts.
#[derive(Default)]
pub(super) struct BlockBody<'t> {
    pub(super) keys: Vec<&'t Assignment>,
    pub(super) blocks: Vec<&'t Block>,
}

impl<'t> BlockBody<'t> {
    pub(super) fn key(&self, name: &str) -> Option<&'t Assignment> {
        self.keys(name).next_back()
    }

    pub(super) fn keys<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'t Assignment> + 'a {
        self.keys.iter().copied().filter(move |it| it.id.is(name))
    }

    pub(super) fn block(&self, name: &str) -> Option<&'t Block> {
        self.blocks.iter().copied().rfind(|it| it.id.is(name))
    }
}

/// Returns the id of a block that is nearly `groups` or `group`, this one or one inside, and the word.
fn find_lost_groups(block: &Block) -> Option<(&SourceText, &'static str)> {
    let nearly = ["groups", "group"].into_iter().find(|word| is_nearly(&block.id.bytes, word));
    nearly.map(|word| (&block.id, word)).or_else(|| {
        block.items.iter().find_map(|item| match &item.node {
            Node::Block(inner) => find_lost_groups(inner),
            Node::Assignment(_) | Node::Junk(_) => None,
        })
    })
}

/// Check in progress: reports each finding once and goes on.
pub(super) struct Checker<'f> {
    pub(super) findings: &'f mut Findings,
    /// True inside of a block that is not in use: its errors only warn.
    pub(super) soft: bool,
    /// Number of times that `listener` names multicast.
    pub(super) multicast_named: usize,
}

impl Checker<'_> {
    /// Returns the known statements of the block `path`; reports unknown, misplaced and repeated ones.
    pub(super) fn read_block<'t>(&mut self, path: &str, items: &'t [Item]) -> BlockBody<'t> {
        let known = KNOWN.iter().find(|it| it.path == path).unwrap_or(&KnownBlock::NONE);
        let mut body = BlockBody::default();
        for item in items {
            match &item.node {
                Node::Assignment(assignment) if known.takes_key(&assignment.id) => body.keys.push(assignment),
                Node::Block(block) if known.has_block(&block.id) => body.blocks.push(block),
                Node::Assignment(assignment) if known.has_block(&assignment.id) => {
                    self.report_wrong_kind(&assignment.id, "a block", "{ … }");
                }
                Node::Block(block) if known.has_key(&block.id) => {
                    self.report_wrong_kind(&block.id, "a key", "= \"value\";");
                }
                Node::Assignment(assignment) => self.report_unknown("key", &assignment.id, known),
                Node::Block(block) if self.report_lost_groups(block, known) => {}
                Node::Block(block) => self.report_unknown("block", &block.id, known),
                Node::Junk(_) => {}
            }
        }
        let keys: Vec<_> = body.keys.iter().map(|it| &it.id).collect();
        let blocks: Vec<_> = body.blocks.iter().map(|it| &it.id).collect();
        for ids in [&keys, &blocks] {
            for (index, id) in ids.iter().enumerate() {
                let again = ids[index + 1..].iter().any(|it| it.bytes.eq_ignore_ascii_case(&id.bytes));
                let is_multicast = path == "listeners" && id.is("multicast");
                if again && !known.repeats(id) && !(is_multicast && self.multicast_named > 1) {
                    self.findings.warning(
                        DiagnosticCode::Repeated,
                        id.span,
                        format!(
                            "`{}` has no effect: it comes again below, and the last one counts",
                            show(&id.bytes)
                        ),
                        is_multicast.then(|| {
                            "to serve each of these blocks, name multicast once for each: \
                             listener = \"multicast, multicast\""
                                .to_owned()
                        }),
                    );
                }
                // Every repeated id is searched in the rest of the block: bound the work on hostile files.
                if index == MAX_DIAGNOSTICS {
                    break;
                }
            }
        }
        for block in &body.blocks {
            if block.value.is_some() && !known.repeats(&block.id) {
                self.findings.warning(
                    DiagnosticCode::NoEffect,
                    block.id.span,
                    format!("the value of the block `{}` has no effect", show(&block.id.bytes)),
                    None,
                );
            }
        }
        body
    }

    fn report_unknown(&mut self, what: &str, id: &SourceText, known: &KnownBlock) {
        let elsewhere = KNOWN
            .iter()
            .filter(|block| if what == "key" { block.has_key(id) } else { block.has_block(id) })
            .map(|block| if block.path.is_empty() { "the top level" } else { block.path })
            .collect::<Vec<_>>();
        let odd = name_misleading(&id.bytes).map(|odd| format!("remove or replace in it: {odd}; "));
        let help = match elsewhere.as_slice() {
            [] => nearest_word(&id.bytes, known.keys.iter().chain(known.blocks))
                .map(|it| format!("did you mean `{it}`?"))
                .or_else(|| {
                    known.blocks.contains(&"options").then(|| {
                        format!("an option of the agent belongs into options {{ {} = … }}", show(&id.bytes))
                    })
                }),
            ["the top level"] => {
                Some(format!("`{}` belongs to the top level; is a `}}` missing above?", show(&id.bytes)))
            }
            _ => Some(format!("`{}` belongs into {}", show(&id.bytes), elsewhere.join(", "))),
        };
        let place = if known.path.is_empty() { String::new() } else { format!(" in `{}`", known.path) };
        self.findings.warning(
            DiagnosticCode::Unknown,
            id.span,
            format!("unknown {what} `{}`{place}", show(&id.bytes)),
            match odd {
                Some(odd) => Some(odd + &help.unwrap_or_else(|| "it has no effect".to_owned())),
                None => help,
            },
        );
    }

    /// Reports an unknown block that seems to be a mistyped or misplaced `groups` or `group`, or has one
    /// inside. Where such a block has no effect, everybody with the key may fence everything: no reason to go
    /// on with a warning.
    fn report_lost_groups(&mut self, block: &Block, known: &KnownBlock) -> bool {
        let Some((id, word)) = find_lost_groups(block) else { return false };
        let place = if known.path.is_empty() { String::new() } else { format!(" in `{}`", known.path) };
        let help = match name_misleading(&id.bytes) {
            Some(odd) => format!("write {word}; remove or replace in it: {odd}"),
            None if id.is("groups") => {
                "`groups` belongs to the top level; is a `}` missing above?".to_owned()
            }
            None if id.is("group") => "`group` belongs into groups { … }, at the top level".to_owned(),
            None => format!("write {word}; or give a block that is none another name"),
        };
        self.findings.error(
            DiagnosticCode::Unknown,
            id.span,
            format!(
                "unknown block `{}`{place}: without `groups`, everybody with the key may fence everything",
                show(&id.bytes)
            ),
            Some(help),
        );
        true
    }

    fn report_wrong_kind(&mut self, id: &SourceText, what: &str, form: &str) {
        let name = show(&id.bytes);
        self.report(
            DiagnosticCode::WrongKind,
            id.span,
            format!("`{name}` is {what}"),
            format!("write {name} {form}"),
        );
    }

    pub(super) fn report_bad_value(&mut self, assignment: &Assignment, allowed: String) {
        let message = format!(
            "bad value \"{}\" for `{}`",
            show(&assignment.value.text.bytes),
            show(&assignment.id.bytes)
        );
        self.report(DiagnosticCode::BadValue, assignment.value.text.span, message, allowed);
    }

    pub(super) fn report(&mut self, code: DiagnosticCode, span: Span, message: String, help: String) {
        let (severity, help) = if self.soft {
            (Severity::Warning, format!("{help}; the block is not in use"))
        } else {
            (Severity::Error, help)
        };
        self.findings.push(severity, code, span, message, Some(help));
    }
}
