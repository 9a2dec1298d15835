// SPDX-License-Identifier: GPL-2.0-or-later
//! Parser: tokens to a tree. An error does not stop it: it reports the mistake once, keeps the bytes, and
//! goes on at the next `;`, `}` or line that starts a statement.

use crate::characters::{name_misleading, without_quotes};
use crate::diagnostic::{DiagnosticCode, Findings, Span, show};
use crate::lex::{Token, TokenKind, tokens};
use crate::tree::{Assignment, Block, Item, MAX_DEPTH, Node, QuotedValue, SourceText, Tree};

/// Longest file that is read, in bytes.
pub const MAX_FILE_SIZE: usize = 1024 * 1024;

impl Tree {
    /// Reads a file's bytes and reports no errors; [`crate::load`] reports them.
    pub fn parse(source: &[u8]) -> Tree {
        parse(source, &mut Findings::default())
    }
}

/// Reads a file. Every byte of `source` ends up in the tree.
pub(crate) fn parse(source: &[u8], findings: &mut Findings) -> Tree {
    if source.len() > MAX_FILE_SIZE {
        findings.error(
            DiagnosticCode::FileTooLong,
            Span::default(),
            format!("the file has more than {MAX_FILE_SIZE} bytes, the limit of a configuration"),
            None,
        );
        let node = Node::Junk(source.to_vec());
        return Tree { items: vec![Item { before: Vec::new(), node }], tail: Vec::new() };
    }
    let mut parser = Parser { source, tokens: tokens(source), at: 0, findings };
    let mut items = parser.take_items(0);
    let mut tail = parser.take_trivia();
    while parser.peek().is_some() {
        // Only a closing brace ends the statements of the file itself.
        let start = parser.at;
        parser.at += 1;
        let span = parser.span(start);
        parser.findings.error(
            DiagnosticCode::StrayBrace,
            span,
            "this `}` closes no block".to_owned(),
            Some("remove it, or look for a `{` that is missing above".to_owned()),
        );
        items.push(Item { before: tail, node: parser.make_junk(start) });
        items.append(&mut parser.take_items(0));
        tail = parser.take_trivia();
    }
    if items.is_empty() {
        // A file cut short on a full disk must not mean "no groups: every holder of the key may fence
        // everything".
        parser.findings.error(
            DiagnosticCode::EmptyFile,
            Span::default(),
            "there is nothing in the file but blanks and comments".to_owned(),
            Some("the least is fence_virtd { }".to_owned()),
        );
    }
    Tree { items, tail }
}

struct Parser<'s, 'f> {
    source: &'s [u8],
    tokens: Vec<Token>,
    /// Index of the next token.
    at: usize,
    findings: &'f mut Findings,
}

impl Parser<'_, '_> {
    /// Takes statements up to a closing brace or the end of the file. `depth` is the number of blocks around
    /// them, at most `MAX_DEPTH`, which bounds the recursion.
    fn take_items(&mut self, depth: usize) -> Vec<Item> {
        let mut items = Vec::new();
        loop {
            let start = self.at;
            let before = self.take_trivia();
            let node = match self.peek() {
                None | Some(TokenKind::Close) => {
                    // The blanks belong to the block's tail.
                    self.at = start;
                    return items;
                }
                Some(TokenKind::Id) => self.take_statement(depth),
                Some(_) => self.report_unexpected(),
            };
            items.push(Item { before, node });
        }
    }

    fn take_statement(&mut self, depth: usize) -> Node {
        let start = self.at;
        let id = self.take_text();
        let mut before = self.take_trivia();
        let mut value = None;
        if self.peek() == Some(TokenKind::Equals) {
            self.at += 1;
            let before_text = self.take_trivia();
            match self.peek() {
                Some(TokenKind::Value) => {}
                Some(TokenKind::OpenValue) => return self.report_open_value(start, &id),
                _ => return self.report_missing_value(start, &id),
            }
            let text = self.take_value(&id);
            value = Some(QuotedValue { before_equals: before, before_text, text });
            let end = self.at;
            before = self.take_trivia();
            if !matches!(self.peek(), Some(TokenKind::Open | TokenKind::Semicolon)) {
                self.at = end;
            }
        }
        match (self.peek(), value) {
            (Some(TokenKind::Open), value) => self.take_block(start, id, value, before, depth),
            (Some(TokenKind::Semicolon), Some(value)) => {
                self.at += 1;
                Node::Assignment(Assignment { id, value, before_semicolon: before, semicolon: true })
            }
            (_, Some(value)) => self.report_missing_semicolon(id, value),
            (_, None) => self.report_bare_id(start, &id),
        }
    }

    fn take_block(
        &mut self,
        start: usize,
        id: SourceText,
        value: Option<QuotedValue>,
        before_open: Vec<u8>,
        depth: usize,
    ) -> Node {
        let open = self.at;
        let open_span = self.token_span(open);
        if depth == MAX_DEPTH {
            self.skip_block();
            self.findings.error(
                DiagnosticCode::TooDeep,
                open_span,
                format!("more than {MAX_DEPTH} blocks inside each other"),
                None,
            );
            return self.make_junk(start);
        }
        self.at += 1;
        let items = self.take_items(depth + 1);
        let tail = self.take_trivia();
        let closed = self.peek() == Some(TokenKind::Close);
        if closed {
            self.at += 1;
        } else if !self.unclosed_reported(&items) {
            // The blocks around it are open for the same reason, and are not reported again.
            self.findings.error(
                DiagnosticCode::UnclosedBlock,
                open_span,
                format!("the block `{}` is not closed", show(&id.bytes)),
                Some("a `}` is missing".to_owned()),
            );
        }
        let span = Span { start: id.span.start, end: self.span(start).end };
        Node::Block(Block { id, value, before_open, items, tail, closed, span })
    }

    /// Returns whether an unclosed block was reported inside: only the last block can have been cut off by
    /// the end of the file.
    fn unclosed_reported(&self, items: &[Item]) -> bool {
        matches!(items.last(), Some(Item { node: Node::Block(block), .. }) if !block.closed)
    }

    /// Takes the value at `at`, which must be a `Value` token.
    fn take_value(&mut self, id: &SourceText) -> SourceText {
        let mut text = self.take_text();
        text.bytes = text.bytes[1..text.bytes.len() - 1].to_vec();
        if text.bytes.is_empty() {
            self.findings.error(
                DiagnosticCode::EmptyValue,
                text.span,
                format!("`{}` has an empty value", show(&id.bytes)),
                Some("leave the line out to have the default".to_owned()),
            );
        }
        text
    }

    fn report_open_value(&mut self, start: usize, id: &SourceText) -> Node {
        let span = self.token_span(self.at);
        self.at += 1;
        self.findings.error(
            DiagnosticCode::MissingQuote,
            span,
            format!("the value of `{}` has no closing quote", show(&id.bytes)),
            None,
        );
        self.take_semicolon(start)
    }

    /// Reports that no quote follows `id =`.
    fn report_missing_value(&mut self, start: usize, id: &SourceText) -> Node {
        let first = self.at;
        if self.peek() == Some(TokenKind::Id) {
            // All words of this line are taken for the value.
            while self.peek().is_some_and(|it| matches!(it, TokenKind::Id | TokenKind::Equals))
                || (self.peek() == Some(TokenKind::Blank) && !self.has_line_end(self.at))
            {
                self.at += 1;
            }
            while self.at > first + 1 && self.tokens[self.at - 1].kind.is_trivia() {
                self.at -= 1;
            }
            let span = self.span(first);
            let value = &self.source[span.start..span.end];
            let write = format!("write \"{}\"", show(without_quotes(value)));
            let help = match name_misleading(value) {
                Some(odd) => format!("{write}; not this: {odd}"),
                None => write,
            };
            self.findings.error(
                DiagnosticCode::UnquotedValue,
                span,
                format!("the value of `{}` is not in quotes", show(&id.bytes)),
                Some(help),
            );
            return self.take_semicolon(start);
        }
        let span = self.current_span();
        self.findings.error(
            DiagnosticCode::Unexpected,
            span,
            format!("a value in quotes is missing for `{}`", show(&id.bytes)),
            None,
        );
        self.resync();
        self.make_junk(start)
    }

    /// Reports that neither `;` nor `{` follows `id = "value"`.
    fn report_missing_semicolon(&mut self, id: SourceText, value: QuotedValue) -> Node {
        let end = value.text.span.end;
        self.findings.error(
            DiagnosticCode::MissingSemicolon,
            Span { start: end, end },
            format!("`;` is missing behind the value of `{}`", show(&id.bytes)),
            None,
        );
        let start = self.at;
        let _ = self.take_trivia();
        if !matches!(self.peek(), None | Some(TokenKind::Close | TokenKind::Id)) {
            // Another value or `=` belongs to the same mistake.
            self.resync();
            let mut before_semicolon = Vec::new();
            for token in &self.tokens[start..self.at] {
                before_semicolon.extend_from_slice(&self.source[token.span.clone()]);
            }
            return Node::Assignment(Assignment { id, value, before_semicolon, semicolon: false });
        }
        self.at = start;
        Node::Assignment(Assignment { id, value, before_semicolon: Vec::new(), semicolon: false })
    }

    /// Reports that neither `=` nor `{` follows an id.
    fn report_bare_id(&mut self, start: usize, id: &SourceText) -> Node {
        self.findings.error(
            DiagnosticCode::Unexpected,
            id.span,
            format!("`{}` is neither a key with a value nor a block", show(&id.bytes)),
            Some(match name_misleading(&id.bytes) {
                Some(odd) => format!("remove or replace in it: {odd}"),
                None => "write id = \"value\"; or id { … }".to_owned(),
            }),
        );
        self.resync();
        self.make_junk(start)
    }

    /// Reports a token that cannot start a statement.
    fn report_unexpected(&mut self) -> Node {
        let start = self.at;
        let span = self.current_span();
        match self.peek() {
            Some(TokenKind::Semicolon) => {
                self.at += 1;
                self.findings.error(
                    DiagnosticCode::Unexpected,
                    span,
                    "this `;` ends nothing".to_owned(),
                    Some("remove it; blocks end with `}` alone".to_owned()),
                );
            }
            Some(TokenKind::Open) => {
                self.findings.error(
                    DiagnosticCode::Unexpected,
                    span,
                    "this block has no name".to_owned(),
                    Some("write id { … }".to_owned()),
                );
                self.skip_block();
            }
            _ => {
                self.findings.error(
                    DiagnosticCode::Unexpected,
                    span,
                    format!("`{}` cannot start a statement", show(&self.source[span.start..span.end])),
                    Some("write id = \"value\"; or id { … }".to_owned()),
                );
                self.resync();
            }
        }
        self.make_junk(start)
    }

    /// Takes a following `;`, and nothing else.
    fn take_semicolon(&mut self, start: usize) -> Node {
        let end = self.at;
        let _ = self.take_trivia();
        if self.peek() == Some(TokenKind::Semicolon) {
            self.at += 1;
        } else {
            self.at = end;
        }
        self.make_junk(start)
    }

    /// Skips to the next possible start of a statement: after a `;` or a block, before a `}`, or before a
    /// line that begins like a statement. Takes at least the current token, unless that is a `}`.
    fn resync(&mut self) {
        let first = self.at;
        while let Some(kind) = self.peek() {
            match kind {
                TokenKind::Close => break,
                TokenKind::Semicolon => {
                    self.at += 1;
                    return;
                }
                TokenKind::Open => {
                    self.skip_block();
                    return;
                }
                TokenKind::Id if self.at > first && self.starts_statement(self.at) => break,
                _ => self.at += 1,
            }
        }
        // The blanks before the next statement belong to it.
        while self.at > first && self.tokens[self.at - 1].kind.is_trivia() {
            self.at -= 1;
        }
    }

    fn starts_statement(&self, at: usize) -> bool {
        let after_line_end = at == 0 || {
            let before = &self.tokens[at - 1];
            before.kind == TokenKind::Blank && self.source[before.span.clone()].contains(&b'\n')
        };
        let next = self.tokens[at + 1..].iter().find(|it| !it.kind.is_trivia());
        after_line_end && next.is_some_and(|it| matches!(it.kind, TokenKind::Equals | TokenKind::Open))
    }

    /// Skips from a `{` to behind its `}`, without recursion.
    fn skip_block(&mut self) {
        let mut depth = 0_usize;
        while let Some(kind) = self.peek() {
            self.at += 1;
            match kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => {
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }

    fn peek(&self) -> Option<TokenKind> {
        self.tokens.get(self.at).map(|it| it.kind)
    }

    fn has_line_end(&self, at: usize) -> bool {
        self.source[self.tokens[at].span.clone()].contains(&b'\n')
    }

    /// Takes blanks and comments.
    fn take_trivia(&mut self) -> Vec<u8> {
        let start = self.at;
        while self.peek().is_some_and(TokenKind::is_trivia) {
            self.at += 1;
        }
        self.bytes(start).to_vec()
    }

    /// Takes the next token.
    fn take_text(&mut self) -> SourceText {
        let start = self.at;
        self.at += 1;
        SourceText { bytes: self.bytes(start).to_vec(), span: self.span(start) }
    }

    fn make_junk(&self, start: usize) -> Node {
        Node::Junk(self.bytes(start).to_vec())
    }

    fn bytes(&self, start: usize) -> &[u8] {
        let span = self.span(start);
        &self.source[span.start..span.end]
    }

    /// Returns the span from the token `start` to the last taken token.
    fn span(&self, start: usize) -> Span {
        let end = self.offset(self.at);
        Span { start: self.offset(start).min(end), end }
    }

    fn token_span(&self, at: usize) -> Span {
        Span { start: self.offset(at), end: self.offset(at + 1) }
    }

    fn current_span(&self) -> Span {
        self.token_span(self.at)
    }

    /// Returns the offset of a token; behind the last one, the end of the file.
    fn offset(&self, at: usize) -> usize {
        self.tokens.get(at).map_or(self.source.len(), |it| it.span.start)
    }
}
