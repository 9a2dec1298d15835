// SPDX-License-Identifier: GPL-2.0-or-later
//! Tree of a file that keeps every byte: blocks and assignments in order, with the blanks and comments
//! between them.
//!
//! Owns writing and editing. An edit changes only its own statement, so a configurator keeps comments and
//! unknown blocks. Must never know the meaning of a key.

use crate::diagnostic::{Span, show};
use crate::lex::{TokenKind, is_blank, is_id_byte, tokens};

/// Most blocks inside each other. The keys need three.
pub const MAX_DEPTH: usize = 32;

/// Parsed file.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    pub(crate) items: Vec<Item>,
    /// Blanks and comments behind the last item.
    pub(crate) tail: Vec<u8>,
}

/// Statement with the blanks and comments before it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) before: Vec<u8>,
    pub(crate) node: Node,
}

/// Statement.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Assignment(Assignment),
    Block(Block),
    /// Bytes that could not be understood, unchanged.
    Junk(Vec<u8>),
}

/// Id, or value without its quotes; the span of a value covers the quotes.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceText {
    pub(crate) bytes: Vec<u8>,
    pub(crate) span: Span,
}

/// ` = "value"` with its blanks.
#[derive(Debug, Clone)]
pub(crate) struct QuotedValue {
    pub(crate) before_equals: Vec<u8>,
    pub(crate) before_text: Vec<u8>,
    pub(crate) text: SourceText,
}

/// `id = "value";`
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) id: SourceText,
    pub(crate) value: QuotedValue,
    pub(crate) before_semicolon: Vec<u8>,
    /// False if the semicolon is missing, which has been reported.
    pub(crate) semicolon: bool,
}

/// `id { … }` or `id = "value" { … }`
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) id: SourceText,
    pub(crate) value: Option<QuotedValue>,
    pub(crate) before_open: Vec<u8>,
    pub(crate) items: Vec<Item>,
    /// Blanks and comments before the closing brace.
    pub(crate) tail: Vec<u8>,
    /// False if the closing brace is missing, which has been reported.
    pub(crate) closed: bool,
    pub(crate) span: Span,
}

/// Reason why an edit was refused. The tree is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A part of the path cannot be an id.
    #[error("`{0}` cannot be the name of a key or a block")]
    BadId(String),
    /// Values cannot be empty and cannot hold a quote or a NUL byte.
    #[error("a value must not be empty and must not hold a quote or a NUL byte")]
    BadValue,
    /// The path has more blocks than [`MAX_DEPTH`].
    #[error("more than {MAX_DEPTH} blocks inside each other")]
    TooDeep,
}

impl Tree {
    /// Returns the bytes of the file. An unmodified tree returns exactly the bytes that were read.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        write_items(&self.items, &mut out);
        out.extend_from_slice(&self.tail);
        out
    }

    /// Returns the file in the usual layout: one statement per line, tabs, a blank line between blocks.
    /// Comments stay with their statement; values, ids and order do not change. A tree with syntax errors is
    /// returned as it is, since its structure is unknown.
    pub fn to_pretty(&self) -> Vec<u8> {
        if !self.is_well_formed() {
            return self.to_bytes();
        }
        let mut out = Vec::new();
        pretty_items(&self.items, &self.tail, 0, &mut out);
        out
    }

    /// Returns false when the source had syntax errors.
    pub fn is_well_formed(&self) -> bool {
        well_formed(&self.items)
    }

    /// Returns the effective value for a path such as `listeners/multicast/port`: the last assignment in the
    /// last block of each name. Names compare without case. A part such as `device="a"` means the block of
    /// that name with that value; without a value any block of that name.
    pub fn value(&self, path: &str) -> Option<&[u8]> {
        self.values(path).pop()
    }

    /// Returns all values of a repeatable key, in order.
    pub fn values(&self, path: &str) -> Vec<&[u8]> {
        let (blocks, key) = split(path);
        let Some(items) = find(&self.items, &blocks) else { return Vec::new() };
        assignments(items, key.id).map(|it| it.value.text.bytes.as_slice()).collect()
    }

    /// Returns the names of the keys in a block, each once, as they are first written.
    pub fn keys(&self, block: &str) -> Vec<&[u8]> {
        let mut keys: Vec<&[u8]> = Vec::new();
        for item in find(&self.items, &parts(block)).unwrap_or_default() {
            if let Node::Assignment(assignment) = &item.node
                && !keys.iter().any(|key| key.eq_ignore_ascii_case(&assignment.id.bytes))
            {
                keys.push(&assignment.id.bytes);
            }
        }
        keys
    }

    /// Returns the values of all blocks of the path's last name, in order; blocks without a value are left
    /// out.
    pub fn block_values(&self, path: &str) -> Vec<&[u8]> {
        let (blocks, last) = split(path);
        let blocks =
            find(&self.items, &blocks).unwrap_or_default().iter().filter_map(|item| match &item.node {
                Node::Block(block) if last.is(block) => block.value.as_ref(),
                _ => None,
            });
        blocks.map(|it| it.text.bytes.trim_ascii()).collect()
    }

    /// Returns whether the block exists.
    pub fn has_block(&self, path: &str) -> bool {
        find(&self.items, &parts(path)).is_some()
    }

    /// Sets the value of a key: changes the effective assignment, or adds one at the end of its block. A
    /// missing block is added.
    pub fn set(&mut self, path: &str, value: &[u8]) -> Result<(), EditError> {
        check(path, Some(value))?;
        let (blocks, key) = split(path);
        let (items, tail, depth) = find_or_make(self, &blocks);
        let present = items.iter_mut().rev().find_map(|item| match &mut item.node {
            Node::Assignment(assignment) if assignment.id.is(key.id) => Some(assignment),
            _ => None,
        });
        match present {
            Some(assignment) => assignment.value.text = SourceText::new(value),
            None => append(items, tail, depth, Node::Assignment(Assignment::new(key.id, value))),
        }
        Ok(())
    }

    /// Replaces values: `replace` gets the ids of each key, from the outermost block to its own, and its
    /// value, and returns the new value or none.
    pub fn replace_values(&mut self, mut replace: impl FnMut(&[&[u8]], &[u8]) -> Option<Vec<u8>>) {
        fn walk<'t>(
            items: &'t mut [Item],
            path: &mut Vec<&'t [u8]>,
            replace: &mut impl FnMut(&[&[u8]], &[u8]) -> Option<Vec<u8>>,
        ) {
            for item in items {
                match &mut item.node {
                    Node::Assignment(assignment) => {
                        path.push(&assignment.id.bytes);
                        if let Some(new) = replace(path, &assignment.value.text.bytes) {
                            assignment.value.text = SourceText::new(&new);
                        }
                        path.pop();
                    }
                    Node::Block(block) => {
                        path.push(&block.id.bytes);
                        walk(&mut block.items, path, replace);
                        path.pop();
                    }
                    Node::Junk(_) => {}
                }
            }
        }
        walk(&mut self.items, &mut Vec::new(), &mut replace);
    }

    /// Adds one more assignment of a repeatable key at the end of its block. A missing block is added.
    pub fn append_value(&mut self, path: &str, value: &[u8]) -> Result<(), EditError> {
        check(path, Some(value))?;
        let (blocks, key) = split(path);
        let (items, tail, depth) = find_or_make(self, &blocks);
        append(items, tail, depth, Node::Assignment(Assignment::new(key.id, value)));
        Ok(())
    }

    /// Adds an empty block behind all others of its parent, even when one of that name exists. Later edits of
    /// this path go to the new block.
    pub fn append_block(&mut self, path: &str) -> Result<(), EditError> {
        check(path, None)?;
        let (blocks, name) = split(path);
        let (items, tail, depth) = find_or_make(self, &blocks);
        append(items, tail, depth, Node::Block(Block::new(name, depth)));
        Ok(())
    }

    /// Removes every assignment and every block of the path's last name from its block. Comments before them
    /// stay. Returns the number of removed statements.
    pub fn remove(&mut self, path: &str) -> usize {
        let (blocks, name) = split(path);
        let Some((items, tail, _)) = find_mut(self, &blocks) else {
            return 0;
        };
        let before = items.len();
        let mut kept = Vec::with_capacity(before);
        let mut orphan: Vec<u8> = Vec::new();
        for mut item in std::mem::take(items) {
            let gone = match &item.node {
                Node::Assignment(assignment) => name.value.is_none() && assignment.id.is(name.id),
                Node::Block(block) => name.is(block),
                Node::Junk(_) => false,
            };
            if gone {
                orphan = join(orphan, strip_last_line(&item.before));
            } else {
                item.before = join(std::mem::take(&mut orphan), &item.before);
                kept.push(item);
            }
        }
        *tail = join(orphan, tail);
        *items = kept;
        before - items.len()
    }
}

impl SourceText {
    fn new(bytes: &[u8]) -> SourceText {
        SourceText { bytes: bytes.to_vec(), span: Span::default() }
    }

    /// Returns whether the id is this name; ids compare without case.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.bytes.eq_ignore_ascii_case(name.as_bytes())
    }
}

impl QuotedValue {
    fn new(text: &[u8]) -> QuotedValue {
        QuotedValue { before_equals: b" ".to_vec(), before_text: b" ".to_vec(), text: SourceText::new(text) }
    }
}

impl Assignment {
    fn new(id: &str, value: &[u8]) -> Assignment {
        Assignment {
            id: SourceText::new(id.as_bytes()),
            value: QuotedValue::new(value),
            before_semicolon: Vec::new(),
            semicolon: true,
        }
    }
}

impl Block {
    fn new(part: PathPart<'_>, depth: usize) -> Block {
        let mut tail = b"\n".to_vec();
        tail.resize(1 + depth, b'\t');
        Block {
            id: SourceText::new(part.id.as_bytes()),
            value: part.value.map(|it| QuotedValue::new(it.as_bytes())),
            before_open: b" ".to_vec(),
            items: Vec::new(),
            tail,
            closed: true,
            span: Span::default(),
        }
    }
}

/// Part of a path: `id`, or `id="value"` for a block.
#[derive(Clone, Copy)]
struct PathPart<'p> {
    id: &'p str,
    value: Option<&'p str>,
}

impl<'p> PathPart<'p> {
    fn of(text: &'p str) -> Self {
        match text.split_once("=\"").and_then(|(id, value)| Some((id, value.strip_suffix('"')?))) {
            Some((id, value)) => PathPart { id, value: Some(value) },
            None => PathPart { id: text, value: None },
        }
    }

    /// Returns whether the part means this block. Blanks around a block's value do not count.
    fn is(self, block: &Block) -> bool {
        block.id.is(self.id)
            && self.value.is_none_or(|value| {
                block.value.as_ref().is_some_and(|it| it.text.bytes.trim_ascii() == value.as_bytes())
            })
    }
}

/// Returns the items of the last block of each name in turn.
fn find<'t>(mut items: &'t [Item], blocks: &[PathPart<'_>]) -> Option<&'t [Item]> {
    for part in blocks {
        items = items.iter().rev().find_map(|item| match &item.node {
            Node::Block(block) if part.is(block) => Some(block.items.as_slice()),
            _ => None,
        })?;
    }
    Some(items)
}

fn assignments<'t>(items: &'t [Item], key: &str) -> impl Iterator<Item = &'t Assignment> {
    items.iter().filter_map(move |item| match &item.node {
        Node::Assignment(assignment) if assignment.id.is(key) => Some(assignment),
        _ => None,
    })
}

/// Items of a block, its tail, and the depth of its items.
type BlockParts<'t> = (&'t mut Vec<Item>, &'t mut Vec<u8>, usize);

fn find_mut<'t>(tree: &'t mut Tree, blocks: &[PathPart<'_>]) -> Option<BlockParts<'t>> {
    let (mut items, mut tail) = (&mut tree.items, &mut tree.tail);
    for part in blocks {
        let block = items.iter_mut().rev().find_map(|item| match &mut item.node {
            Node::Block(block) if part.is(block) => Some(block),
            _ => None,
        })?;
        (items, tail) = (&mut block.items, &mut block.tail);
    }
    Some((items, tail, blocks.len()))
}

fn find_or_make<'t>(tree: &'t mut Tree, blocks: &[PathPart<'_>]) -> BlockParts<'t> {
    let (mut items, mut tail) = (&mut tree.items, &mut tree.tail);
    for (depth, part) in blocks.iter().enumerate() {
        let present =
            items.iter().rposition(|item| matches!(&item.node, Node::Block(block) if part.is(block)));
        let index = present.unwrap_or_else(|| {
            append(items, tail, depth, Node::Block(Block::new(*part, depth)));
            items.len() - 1
        });
        match &mut items[index].node {
            Node::Block(block) => (items, tail) = (&mut block.items, &mut block.tail),
            // `index` was chosen, or made, as a block.
            Node::Assignment(_) | Node::Junk(_) => unreachable!("the item is a block"),
        }
    }
    (items, tail, blocks.len())
}

/// Puts a statement on a line of its own behind all others, with their indentation.
fn append(items: &mut Vec<Item>, tail: &mut Vec<u8>, depth: usize, node: Node) {
    // Comments behind the last statement stay before the new one; the line of the closing brace stays behind.
    let mut before = std::mem::take(tail);
    let closing = before.iter().rposition(|&byte| byte == b'\n');
    let after = match closing {
        Some(at) if before[at..].iter().all(|&byte| is_blank(byte)) => before.split_off(at),
        // `{ a = "1"; }` on one line, or a comment on the last line of a file without a line feed.
        _ => {
            if before.iter().all(|&byte| is_blank(byte)) {
                before.clear();
            }
            let mut after = b"\n".to_vec();
            after.resize(depth.max(1), b'\t');
            after
        }
    };
    let crlf = before.ends_with(b"\r");
    if crlf {
        before.pop();
    }
    let first_of_file = depth == 0 && items.is_empty() && before.is_empty();
    if !first_of_file {
        before.extend_from_slice(if crlf { b"\r\n" } else { b"\n" });
        if depth == 0 && !items.is_empty() {
            before.extend_from_slice(if crlf { b"\r\n" } else { b"\n" });
        }
    }
    before.extend_from_slice(&indent_of(items, depth));
    *tail = if crlf { [b"\r", after.as_slice()].concat() } else { after };
    items.push(Item { before, node });
}

/// Returns the indentation of the first sibling that starts a line; otherwise one tab per level.
fn indent_of(items: &[Item], depth: usize) -> Vec<u8> {
    items
        .iter()
        .find_map(|item| {
            let line = item.before.iter().rposition(|&byte| byte == b'\n')?;
            let indent = &item.before[line + 1..];
            indent.iter().all(|&byte| is_blank(byte)).then(|| indent.to_vec())
        })
        .unwrap_or_else(|| vec![b'\t'; depth])
}

/// Returns the trivia without the line feed and indentation of a removed statement.
fn strip_last_line(before: &[u8]) -> &[u8] {
    let blanks = before.iter().rev().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
    let kept = &before[..before.len() - blanks];
    let kept = kept.strip_suffix(b"\n").unwrap_or(kept);
    kept.strip_suffix(b"\r").unwrap_or(kept)
}

/// Joins the blanks and comments of a removed statement with the bytes after them.
fn join(mut first: Vec<u8>, rest: &[u8]) -> Vec<u8> {
    let open_comment = tokens(&first).last().is_some_and(|it| it.kind == TokenKind::Comment);
    if open_comment && !rest.starts_with(b"\n") && !rest.starts_with(b"\r\n") {
        first.push(b'\n');
    }
    first.extend_from_slice(rest);
    first
}

fn split(path: &str) -> (Vec<PathPart<'_>>, PathPart<'_>) {
    let mut blocks = parts(path);
    let last = blocks.pop().unwrap_or(PathPart { id: "", value: None });
    (blocks, last)
}

/// Splits a path. A value in it may have slashes, but no quotes.
fn parts(path: &str) -> Vec<PathPart<'_>> {
    let mut is_quoted = false;
    let parts = path.split(move |it: char| {
        is_quoted ^= it == '"';
        it == '/' && !is_quoted
    });
    parts.map(PathPart::of).collect()
}

fn check(path: &str, value: Option<&[u8]>) -> Result<(), EditError> {
    let parts = parts(path);
    for PathPart { id, .. } in &parts {
        if id.is_empty() || id.starts_with('#') || !id.bytes().all(is_id_byte) {
            return Err(EditError::BadId(show(id.as_bytes())));
        }
    }
    if let (Some(_), Some(last)) = (value, parts.last().filter(|it| it.value.is_some())) {
        return Err(EditError::BadId(show(last.id.as_bytes())));
    }
    if parts.len() - usize::from(value.is_some()) > MAX_DEPTH {
        return Err(EditError::TooDeep);
    }
    let values = parts.iter().filter_map(|it| it.value).map(str::as_bytes).chain(value);
    for value in values {
        if value.is_empty() || value.contains(&b'"') || value.contains(&0) {
            return Err(EditError::BadValue);
        }
    }
    Ok(())
}

fn well_formed(items: &[Item]) -> bool {
    items.iter().all(|item| match &item.node {
        Node::Assignment(assignment) => assignment.semicolon && !assignment.value.text.bytes.is_empty(),
        Node::Block(block) => {
            block.closed
                && block.value.as_ref().is_none_or(|it| !it.text.bytes.is_empty())
                && well_formed(&block.items)
        }
        Node::Junk(_) => false,
    })
}

fn write_items(items: &[Item], out: &mut Vec<u8>) {
    for item in items {
        out.extend_from_slice(&item.before);
        match &item.node {
            Node::Assignment(assignment) => {
                out.extend_from_slice(&assignment.id.bytes);
                write_value(&assignment.value, out);
                out.extend_from_slice(&assignment.before_semicolon);
                if assignment.semicolon {
                    out.push(b';');
                }
            }
            Node::Block(block) => {
                out.extend_from_slice(&block.id.bytes);
                if let Some(value) = &block.value {
                    write_value(value, out);
                }
                out.extend_from_slice(&block.before_open);
                out.push(b'{');
                write_items(&block.items, out);
                out.extend_from_slice(&block.tail);
                if block.closed {
                    out.push(b'}');
                }
            }
            Node::Junk(bytes) => out.extend_from_slice(bytes),
        }
    }
}

fn write_value(value: &QuotedValue, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.before_equals);
    out.push(b'=');
    out.extend_from_slice(&value.before_text);
    quote(&value.text, out);
}

fn quote(text: &SourceText, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(&text.bytes);
    out.push(b'"');
}

fn pretty_items(items: &[Item], tail: &[u8], depth: usize, out: &mut Vec<u8>) {
    let mut after_block = false;
    for (index, item) in items.iter().enumerate() {
        let is_block = matches!(item.node, Node::Block(_));
        let (trailing, mut above) = comments(&item.before);
        if let Some(comment) = trailing {
            if out.is_empty() {
                above.insert(0, comment);
            } else {
                // The comment stands behind the statement before, or behind the opening brace.
                append_to_line(comment, out);
            }
        }
        above.extend(comments_inside(&item.node));
        if index > 0 && (is_block || after_block) {
            out.push(b'\n');
        }
        for comment in above {
            line(comment, depth, out);
        }
        indent(depth, out);
        match &item.node {
            Node::Assignment(assignment) => pretty_assignment(assignment, out),
            Node::Block(block) => pretty_block(block, depth, out),
            Node::Junk(bytes) => line(bytes, 0, out),
        }
        after_block = is_block;
    }
    pretty_tail(tail, depth, out);
}

/// Returns the comments between the parts of a statement.
fn comments_inside(node: &Node) -> Vec<&[u8]> {
    let (value, last) = match node {
        Node::Assignment(assignment) => (Some(&assignment.value), &assignment.before_semicolon),
        Node::Block(block) => (block.value.as_ref(), &block.before_open),
        Node::Junk(_) => return Vec::new(),
    };
    let around_value = value.into_iter().flat_map(|it| [&it.before_equals, &it.before_text]);
    around_value.chain([last]).flat_map(|trivia| all_comments(trivia)).collect()
}

fn pretty_assignment(assignment: &Assignment, out: &mut Vec<u8>) {
    out.extend_from_slice(&assignment.id.bytes);
    out.extend_from_slice(b" = ");
    quote(&assignment.value.text, out);
    out.extend_from_slice(b";\n");
}

fn pretty_block(block: &Block, depth: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&block.id.bytes);
    if let Some(value) = &block.value {
        out.extend_from_slice(b" = ");
        quote(&value.text, out);
    }
    out.extend_from_slice(b" {\n");
    pretty_items(&block.items, &block.tail, depth + 1, out);
    line(b"}", depth, out);
}

/// Writes the comments behind the last statement.
fn pretty_tail(tail: &[u8], depth: usize, out: &mut Vec<u8>) {
    let (trailing, above) = comments(tail);
    if let Some(comment) = trailing {
        if out.is_empty() {
            line(comment, depth, out);
        } else {
            append_to_line(comment, out);
        }
    }
    for comment in above {
        line(comment, depth, out);
    }
}

/// Puts a comment at the end of the line that was written last.
fn append_to_line(comment: &[u8], out: &mut Vec<u8>) {
    out.pop();
    out.push(b' ');
    out.extend_from_slice(comment);
    out.push(b'\n');
}

fn indent(depth: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + depth, b'\t');
}

fn line(text: &[u8], depth: usize, out: &mut Vec<u8>) {
    indent(depth, out);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Returns the comment on the line where the trivia starts, and the comments on lines of their own.
fn comments(trivia: &[u8]) -> (Option<&[u8]>, Vec<&[u8]>) {
    let mut all = all_comments(trivia);
    let first_line = trivia.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if first_line.contains(&b'#') && !all.is_empty() { (Some(all.remove(0)), all) } else { (None, all) }
}

fn all_comments(trivia: &[u8]) -> Vec<&[u8]> {
    tokens(trivia)
        .into_iter()
        .filter(|it| it.kind == TokenKind::Comment)
        .map(|it| trivia[it.span].trim_ascii_end())
        .collect()
}
