// SPDX-License-Identifier: GPL-2.0-or-later
//! Lexer: bytes to tokens. Every byte belongs to exactly one token, so the bytes of the tokens in order are
//! the source again. Must never fail, and never interpret a name or a value.

use std::ops::Range;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while1};
use nom::combinator::{recognize, value};
use nom::sequence::delimited;
use nom::{IResult, Parser};

/// Kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Spaces, tabs, line ends; a byte order mark at the very start.
    Blank,
    /// `#` to the end of the line, without the line feed.
    Comment,
    /// Id: any bytes but blanks and `{ } ; = "`; does not start with `#`.
    Id,
    /// Value with both its quotes.
    Value,
    /// Value without a closing quote: from the quote to the end of the line, without a `;` there.
    OpenValue,
    /// `{`
    Open,
    /// `}`
    Close,
    /// `=`
    Equals,
    /// `;`
    Semicolon,
}

impl TokenKind {
    /// Returns whether the token only separates others.
    pub(crate) fn is_trivia(self) -> bool {
        matches!(self, TokenKind::Blank | TokenKind::Comment)
    }
}

/// Token and the bytes that it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Range<usize>,
}

/// Returns the tokens of a source, in order and without gaps.
pub(crate) fn tokens(source: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    if source.starts_with(BYTE_ORDER_MARK) {
        at = BYTE_ORDER_MARK.len();
        tokens.push(Token { kind: TokenKind::Blank, span: 0..at });
    }
    // `token` takes at least one byte of any input; the second condition alone bounds the loop too.
    while let Ok((rest, kind)) = token(&source[at..]) {
        let end = source.len() - rest.len();
        if end == at {
            break;
        }
        tokens.push(Token { kind, span: at..end });
        at = end;
    }
    tokens
}

/// Returns whether a byte separates ids. CR does too, so that files with CRLF read like any other.
pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Returns whether an id may have this byte (its first may not be `#` either).
pub(crate) fn is_id_byte(byte: u8) -> bool {
    !is_blank(byte) && !matches!(byte, b'{' | b'}' | b';' | b'=' | b'"')
}

/// Byte order mark of Windows editors. The C programs take it for a part of the first id.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn token(input: &[u8]) -> IResult<&[u8], TokenKind> {
    alt((
        value(TokenKind::Blank, take_while1(is_blank)),
        value(TokenKind::Comment, (tag("#"), take_till(|byte| byte == b'\n'))),
        value(TokenKind::Open, tag("{")),
        value(TokenKind::Close, tag("}")),
        value(TokenKind::Equals, tag("=")),
        value(TokenKind::Semicolon, tag(";")),
        closed_value,
        open_value,
        value(TokenKind::Id, take_while1(is_id_byte)),
    ))
    .parse(input)
}

fn closed_value(input: &[u8]) -> IResult<&[u8], TokenKind> {
    let (rest, text) =
        recognize(delimited(tag("\""), take_till(|byte| byte == b'"'), tag("\""))).parse(input)?;
    if swallowed_an_assignment(&text[1..text.len() - 1], rest) {
        return Err(nom::Err::Error(nom::error::Error::new(input, nom::error::ErrorKind::Verify)));
    }
    Ok((rest, TokenKind::Value))
}

/// Returns whether a closing quote is really the opening quote of the next value, because one was forgotten:
/// values may span lines. Such text ends in `=`, and the rest is not what may follow a value. Only both
/// together count.
fn swallowed_an_assignment(text: &[u8], rest: &[u8]) -> bool {
    text.contains(&b'\n')
        && text.trim_ascii_end().ends_with(b"=")
        && !matches!(rest.trim_ascii_start().first(), None | Some(b';' | b'{' | b'}' | b'#'))
}

fn open_value(input: &[u8]) -> IResult<&[u8], TokenKind> {
    let (_, line) = recognize((tag("\""), take_till(|byte| byte == b'\n'))).parse(input)?;
    let text = line.trim_ascii_end();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
    Ok((&input[text.len()..], TokenKind::OpenValue))
}
