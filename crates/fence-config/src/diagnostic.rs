// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors and warnings about a file with their place, and their text.
//!
//! Must never let bytes of the file reach a message unchanged: control characters and bytes that are not
//! UTF-8 are escaped, so a message is safe for a terminal and for a log. Text behind a word for a secret,
//! such as the password of a fence agent, is hidden.

use std::fmt::{self, Write as _};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

use crate::characters::is_invisible;

/// Most diagnostics for one file; one more tells the number of the others.
pub const MAX_DIAGNOSTICS: usize = 100;

/// Range of bytes in the source. Empty for a tree that was built by hand, which has no source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset behind the last byte.
    pub end: usize,
}

/// Severity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file can be used; a person should check this.
    Warning,
    /// The file must not be used.
    Error,
}

/// Kind of a diagnostic. The words in `as_str` stay the same between releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiagnosticCode {
    /// The file is longer than [`crate::MAX_FILE_SIZE`].
    FileTooLong,
    /// The file has only blanks and comments.
    EmptyFile,
    /// A token is where it cannot be.
    Unexpected,
    /// A `;` is missing.
    MissingSemicolon,
    /// The closing quote of a value is missing.
    MissingQuote,
    /// A value without quotes.
    UnquotedValue,
    /// `""`
    EmptyValue,
    /// A block has no end.
    UnclosedBlock,
    /// A `}` closes no block.
    StrayBrace,
    /// Blocks are nested deeper than [`crate::MAX_DEPTH`].
    TooDeep,
    /// More diagnostics than [`MAX_DIAGNOSTICS`].
    TooMany,
    /// A key or block is unknown here.
    Unknown,
    /// A key is where a block belongs, or the reverse.
    WrongKind,
    /// A key or block is repeated, and only the last one counts.
    Repeated,
    /// A key has a value that is not allowed.
    BadValue,
    /// A path depends on the directory in which the daemon was started.
    RelativePath,
    /// A group allows no source anything, or `groups` has no group.
    EmptyGroup,
    /// The `fence_virtd` block is missing.
    NoDaemonBlock,
    /// A setting has no effect here.
    NoEffect,
}

impl DiagnosticCode {
    /// Returns the word in brackets after `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            DiagnosticCode::FileTooLong => "file-too-long",
            DiagnosticCode::EmptyFile => "empty-file",
            DiagnosticCode::Unexpected => "unexpected",
            DiagnosticCode::MissingSemicolon => "missing-semicolon",
            DiagnosticCode::MissingQuote => "missing-quote",
            DiagnosticCode::UnquotedValue => "unquoted-value",
            DiagnosticCode::EmptyValue => "empty-value",
            DiagnosticCode::UnclosedBlock => "unclosed-block",
            DiagnosticCode::StrayBrace => "stray-brace",
            DiagnosticCode::TooDeep => "too-deep",
            DiagnosticCode::TooMany => "too-many",
            DiagnosticCode::Unknown => "unknown",
            DiagnosticCode::WrongKind => "wrong-kind",
            DiagnosticCode::Repeated => "repeated",
            DiagnosticCode::BadValue => "bad-value",
            DiagnosticCode::RelativePath => "relative-path",
            DiagnosticCode::EmptyGroup => "empty-group",
            DiagnosticCode::NoDaemonBlock => "no-daemon-block",
            DiagnosticCode::NoEffect => "no-effect",
        }
    }
}

/// Error or warning about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Severity.
    pub severity: Severity,
    /// Kind.
    pub code: DiagnosticCode,
    /// Message: one sentence, without the place.
    pub message: String,
    /// Advice.
    pub help: Option<String>,
    /// Bytes that the message is about.
    pub span: Span,
    /// Line of `span.start`, from 1.
    pub line: usize,
    /// Column of `span.start` in characters, from 1; a byte that is not UTF-8 counts as a character.
    pub column: usize,
}

impl Diagnostic {
    /// Returns several lines of plain text: message, `file:line:column`, the source line with a caret below
    /// it, advice. `source` must be the loaded bytes. No line feed at the end.
    pub fn render(&self, file_name: &str, source: &[u8]) -> String {
        let file_name = escape(file_name.as_bytes());
        let excerpt = Excerpt::of(source, self.span);
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = level.primary_title(self.message.as_str()).id(self.code.as_str()).element(
            Snippet::source(excerpt.text)
                .line_start(self.line)
                .fold(false)
                .annotation(AnnotationKind::Primary.span(excerpt.start..excerpt.end)),
        );
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let text = Renderer::plain().render(&[group]);
        // The excerpt is escaped and may be cut, so the renderer cannot know the column in the file.
        let (title, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let margin = " ".repeat(self.line.to_string().len());
        format!("{title}\n{margin}--> {file_name}:{}:{}\n{rest}", self.line, self.column)
    }

    /// Returns one line for a log: `file:line:column: error: message (help)`.
    pub fn one_line(&self, file_name: &str) -> String {
        let file_name = escape(file_name.as_bytes());
        let mut text =
            format!("{file_name}:{}:{}: {}: {}", self.line, self.column, self.severity, self.message);
        if let Some(help) = &self.help {
            let _ = write!(text, " ({help})");
        }
        text
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl fmt::Display for DiagnosticCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Findings of parser and checker so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: Vec<Finding>,
    left_out: usize,
    errors: usize,
}

#[derive(Debug)]
struct Finding {
    severity: Severity,
    code: DiagnosticCode,
    span: Span,
    message: String,
    help: Option<String>,
}

impl Finding {
    /// Hides the bytes that the finding is about in its texts, if they may be a secret.
    fn hide_secret(&mut self, source: &[u8]) {
        let (line, from) = line_at(source, self.span.start);
        let about = source.get(self.span.start..self.span.end).map(show).unwrap_or_default();
        if from < hidden_from(line) || about.is_empty() {
            return;
        }
        self.message = self.message.replace(&about, HIDDEN);
        self.help = self.help.take().map(|it| it.replace(&about, HIDDEN));
    }
}

impl Findings {
    pub(crate) fn error(&mut self, code: DiagnosticCode, span: Span, message: String, help: Option<String>) {
        self.push(Severity::Error, code, span, message, help);
    }

    pub(crate) fn warning(
        &mut self,
        code: DiagnosticCode,
        span: Span,
        message: String,
        help: Option<String>,
    ) {
        self.push(Severity::Warning, code, span, message, help);
    }

    pub(crate) fn push(
        &mut self,
        severity: Severity,
        code: DiagnosticCode,
        span: Span,
        message: String,
        help: Option<String>,
    ) {
        if severity == Severity::Error {
            self.errors += 1;
        }
        if self.kept.len() < MAX_DIAGNOSTICS {
            self.kept.push(Finding { severity, code, span, message, help });
        } else {
            self.left_out += 1;
        }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Returns the diagnostics in the order of the file.
    pub(crate) fn finish(mut self, source: &[u8]) -> Vec<Diagnostic> {
        self.kept.sort_by_key(|it| it.span.start);
        if self.left_out > 0 {
            // An error may be among the omitted ones, and then an error must be in the list.
            let severity = if self.has_errors() { Severity::Error } else { Severity::Warning };
            let span = self.kept.last().map(|it| it.span).unwrap_or_default();
            self.kept.push(Finding {
                severity,
                code: DiagnosticCode::TooMany,
                span,
                message: format!("{} further errors and warnings are not shown", self.left_out),
                help: None,
            });
        }
        let mut counter = LineCounter { source, at: 0, line: 1, line_start: 0 };
        self.kept
            .into_iter()
            .map(|mut finding| {
                let (line, column) = counter.position(finding.span.start);
                finding.hide_secret(source);
                let Finding { severity, code, span, message, help } = finding;
                Diagnostic { severity, code, message, help, span, line, column }
            })
            .collect()
    }
}

/// Replacement for a secret.
const HIDDEN: &str = "***";

/// Returns the line of this offset, and the offset in it.
fn line_at(source: &[u8], offset: usize) -> (&[u8], usize) {
    let from = offset.min(source.len());
    let start = source[..from].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let end = source[from..].iter().position(|&byte| byte == b'\n').map_or(source.len(), |at| from + at);
    let line = &source[start..end];
    (line.strip_suffix(b"\r").unwrap_or(line), from - start)
}

/// Returns the offset in a line at which a possible secret begins: behind the first word for one. Quotes do
/// not help to find it, since they may be the mistake.
fn hidden_from(line: &[u8]) -> usize {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let mut end = 0;
    while let Some(start) = line[end..].iter().position(|it| is_word(*it)).map(|it| end + it) {
        end = line[start..].iter().position(|it| !is_word(*it)).map_or(line.len(), |it| start + it);
        let word = line[start..end].to_ascii_lowercase();
        let has = |text: &str| word.windows(text.len()).any(|it| it == text.as_bytes());
        let behind = line[end..].iter().position(|it| !it.is_ascii_whitespace()).map(|it| end + it);
        let is_assigned = behind.is_some_and(|it| line[it] == b'=');
        let means_one =
            ["pass", "secret", "token", "credential"].into_iter().any(has) || is_assigned && has("key");
        if means_one && !word.ends_with(b"file") {
            let from = behind.filter(|_| is_assigned).map_or(end, |it| it + 1);
            return line[from..].iter().position(|it| *it != b' ').map_or(line.len(), |it| from + it);
        }
    }
    line.len()
}

/// Returns text of the file for a message: escaped, and cut when long. The caller adds quotes.
pub(crate) fn show(bytes: &[u8]) -> String {
    const LONGEST: usize = 60;
    let mut text = String::new();
    for (count, (_, piece)) in Pieces::of(bytes).enumerate() {
        if count == LONGEST {
            text.push('…');
            break;
        }
        piece.write_to(&mut text);
    }
    text
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (_, piece) in Pieces::of(bytes) {
        piece.write_to(&mut text);
    }
    text
}

/// Counter of lines and columns, which walks forward through the source once for all diagnostics.
struct LineCounter<'s> {
    source: &'s [u8],
    at: usize,
    line: usize,
    line_start: usize,
}

impl LineCounter<'_> {
    /// Returns line and column of an offset, which is not before the last one.
    fn position(&mut self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.source.len());
        for (index, byte) in self.source.iter().enumerate().take(offset).skip(self.at) {
            if *byte == b'\n' {
                self.line += 1;
                self.line_start = index + 1;
            }
        }
        self.at = offset;
        (self.line, 1 + Pieces::of(&self.source[self.line_start..offset]).count())
    }
}

/// Line of a span as it is shown, and the span in it.
struct Excerpt {
    text: String,
    start: usize,
    end: usize,
}

impl Excerpt {
    /// Most characters before the span, and in all, so that a long line does not fill the screen.
    const BEFORE: usize = 60;
    const IN_ALL: usize = 120;

    fn of(source: &[u8], span: Span) -> Excerpt {
        let (line, from) = line_at(source, span.start);
        let to = from + span.end.saturating_sub(span.start).min(line.len().saturating_sub(from));
        let hidden = hidden_from(line);

        let pieces: Vec<_> = Pieces::of(line).collect();
        let first = pieces.iter().position(|&(at, _)| at >= from).unwrap_or(pieces.len());
        let skip = first.saturating_sub(Self::BEFORE);
        let mut excerpt = Excerpt { text: String::new(), start: 0, end: 0 };
        if skip > 0 {
            excerpt.text.push('…');
        }
        let (mut start, mut end) = (None, None);
        let shown = pieces.iter().take_while(|it| it.0 < hidden);
        for &(at, piece) in shown.skip(skip).take(Self::IN_ALL) {
            if at >= from {
                start.get_or_insert(excerpt.text.len());
            }
            if at >= to {
                end.get_or_insert(excerpt.text.len());
            }
            piece.write_to(&mut excerpt.text);
        }
        if hidden < line.len() {
            start.get_or_insert(excerpt.text.len());
            excerpt.text.push_str(HIDDEN);
        }
        excerpt.start = start.unwrap_or(excerpt.text.len());
        excerpt.end = end.unwrap_or(excerpt.text.len()).max(excerpt.start);
        if pieces.len() > skip + Self::IN_ALL && hidden == line.len() {
            excerpt.text.push('…');
        }
        excerpt
    }
}

/// Character, or byte that belongs to none.
#[derive(Clone, Copy)]
enum Piece {
    Char(char),
    Byte(u8),
}

impl Piece {
    fn write_to(self, text: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Piece::Char('\t') => write!(text, "    "),
            Piece::Char('\n') => write!(text, "\\n"),
            Piece::Char('\r') => write!(text, "\\r"),
            Piece::Char(character) if character.is_control() || is_invisible(character) => {
                write!(text, "\\u{{{:x}}}", u32::from(character))
            }
            Piece::Char(character) => write!(text, "{character}"),
            Piece::Byte(byte) => write!(text, "\\x{byte:02x}"),
        };
    }
}

/// Characters of a text with their offsets.
struct Pieces<'s> {
    chunks: std::str::Utf8Chunks<'s>,
    valid: std::str::Chars<'s>,
    invalid: std::slice::Iter<'s, u8>,
    at: usize,
}

impl<'s> Pieces<'s> {
    fn of(bytes: &'s [u8]) -> Pieces<'s> {
        Pieces { chunks: bytes.utf8_chunks(), valid: "".chars(), invalid: [].iter(), at: 0 }
    }
}

impl Iterator for Pieces<'_> {
    type Item = (usize, Piece);

    fn next(&mut self) -> Option<(usize, Piece)> {
        loop {
            let at = self.at;
            if let Some(character) = self.valid.next() {
                self.at += character.len_utf8();
                return Some((at, Piece::Char(character)));
            }
            if let Some(&byte) = self.invalid.next() {
                self.at += 1;
                return Some((at, Piece::Byte(byte)));
            }
            let chunk = self.chunks.next()?;
            self.valid = chunk.valid().chars();
            self.invalid = chunk.invalid().iter();
        }
    }
}
