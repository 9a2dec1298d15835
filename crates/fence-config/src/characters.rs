// SPDX-License-Identifier: GPL-2.0-or-later
//! Characters that look like others or like nothing, as they come along when text is copied from web pages.
//!
//! Owns the tables. Pure. Must never decide what a text means: it only says how a text reads, and names the
//! characters that mislead a reader.

/// Quotes that are no `"`, with their names.
const QUOTES: [(char, &str); 14] = [
    ('\'', "apostrophe"),
    ('`', "backquote"),
    ('\u{b4}', "acute accent"),
    ('\u{ab}', "left angle quote"),
    ('\u{bb}', "right angle quote"),
    ('\u{2018}', "left single quote"),
    ('\u{2019}', "right single quote"),
    ('\u{201a}', "low single quote"),
    ('\u{201c}', "left double quote"),
    ('\u{201d}', "right double quote"),
    ('\u{201e}', "low double quote"),
    ('\u{2032}', "prime"),
    ('\u{2033}', "double prime"),
    ('\u{ff02}', "full-width quote"),
];

/// Letters and signs that look like one of ASCII: Cyrillic and Greek ones.
const LOOK_ALIKES: [(char, char); 24] = [
    ('\u{430}', 'a'),
    ('\u{435}', 'e'),
    ('\u{43e}', 'o'),
    ('\u{440}', 'p'),
    ('\u{441}', 'c'),
    ('\u{443}', 'y'),
    ('\u{445}', 'x'),
    ('\u{455}', 's'),
    ('\u{456}', 'i'),
    ('\u{458}', 'j'),
    ('\u{501}', 'd'),
    ('\u{51b}', 'q'),
    ('\u{261}', 'g'),
    ('\u{131}', 'i'),
    ('\u{3bf}', 'o'),
    ('\u{3c1}', 'p'),
    ('\u{3c5}', 'u'),
    ('\u{3bd}', 'v'),
    ('\u{37e}', ';'),
    ('\u{2010}', '-'),
    ('\u{2011}', '-'),
    ('\u{2012}', '-'),
    ('\u{2013}', '-'),
    ('\u{2212}', '-'),
];

/// Most characters that one message names.
const NAMED: usize = 3;

/// Returns whether nothing is seen of a character, or only a blank that separates nothing here, or it changes
/// the order of the text around it.
pub(crate) fn is_invisible(character: char) -> bool {
    !character.is_ascii() && (character.is_whitespace() || character.is_control())
        || matches!(
            character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Returns the text as it reads: lower case, without invisible characters and foreign quotes, with the
/// letters of ASCII in place of those that look like them.
pub(crate) fn as_read(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|it| !is_invisible(*it) && !is_foreign_quote(*it))
        .map(ascii_look)
        .map(|it| it.to_ascii_lowercase())
        .collect()
}

/// Returns the letter of ASCII that a character looks like; itself where there is none.
fn ascii_look(character: char) -> char {
    let lower = character.to_lowercase().next().unwrap_or(character);
    if let Some((_, plain)) = LOOK_ALIKES.iter().find(|(it, _)| *it == lower) {
        return *plain;
    }
    // Full-width forms are those of ASCII, at another place.
    match u32::from(character) {
        code @ 0xff01..=0xff5e => char::from_u32(code - 0xfee0).unwrap_or(character),
        _ => character,
    }
}

/// Returns a value without foreign quotes and blanks around it.
pub(crate) fn without_quotes(value: &[u8]) -> &[u8] {
    let Ok(text) = std::str::from_utf8(value) else { return value };
    let stripped = text.trim_matches(|it| is_foreign_quote(it) || is_invisible(it) || it.is_whitespace());
    if stripped.is_empty() { value } else { stripped.as_bytes() }
}

fn is_foreign_quote(character: char) -> bool {
    QUOTES.iter().any(|(it, _)| *it == character)
}

/// Names the characters of an id or a value that mislead a reader; none where there are none.
pub(crate) fn name_misleading(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let mut names: Vec<String> = Vec::new();
    for character in text.chars() {
        let Some(name) = name_of(character) else { continue };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("{}{and_more}", names.join(", ")))
}

/// Returns number and name of a misleading character.
fn name_of(character: char) -> Option<String> {
    let code = u32::from(character);
    if let Some((_, name)) = QUOTES.iter().find(|(it, _)| *it == character) {
        return Some(if character.is_ascii() {
            (*name).to_owned()
        } else {
            format!("U+{code:04X} ({name})")
        });
    }
    let plain = ascii_look(character);
    let name = match character {
        '\u{a0}' => "no-break space".to_owned(),
        '\u{ad}' => "soft hyphen".to_owned(),
        '\u{200b}' => "zero-width space".to_owned(),
        '\u{202f}' => "narrow no-break space".to_owned(),
        '\u{3000}' => "ideographic space".to_owned(),
        '\u{feff}' => "byte order mark".to_owned(),
        _ if is_invisible(character) && character.is_whitespace() => "a blank of another kind".to_owned(),
        _ if is_invisible(character) => "invisible".to_owned(),
        _ if plain != character => format!("no `{plain}`, though it looks like one"),
        _ => return None,
    };
    Some(format!("U+{code:04X} ({name})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_as_they_read() {
        for text in [
            "groups",
            "\u{a0}groups",
            "gr\u{200b}oups\u{feff}",
            "gr\u{43e}u\u{440}s",
            "\u{ff47}roups",
            "GROUPS",
        ] {
            assert_eq!(as_read(text.as_bytes()), "groups", "{text:?}");
        }
        assert_eq!(as_read(b"gr\xffoups"), "gr\u{fffd}oups");
    }

    #[test]
    fn characters_that_mislead_are_named() {
        let named = |text: &str| name_misleading(text.as_bytes()).unwrap_or_default();
        assert_eq!(named("groups \u{e4}\u{433}"), "");
        assert_eq!(named("\u{a0}\u{a0}x"), "U+00A0 (no-break space)");
        assert_eq!(named("\u{43e}"), "U+043E (no `o`, though it looks like one)");
        assert_eq!(named("'1'"), "apostrophe");
        assert_eq!(
            named("\u{201c}1229\u{201d}\u{2003}\u{2060}"),
            "U+201C (left double quote), U+201D (right double quote), U+2003 (a blank of another kind) and 1 \
             more"
        );
    }

    #[test]
    fn values_lose_foreign_quotes() {
        for text in ["\u{201c}1229\u{201d}", "'1229'", "\u{201e}1229\u{201c}", "\u{a0}`1229`\u{a0}", "1229"] {
            assert_eq!(without_quotes(text.as_bytes()), b"1229", "{text:?}");
        }
        assert_eq!(without_quotes(b"''"), b"''");
        assert_eq!(without_quotes(b"it's"), b"it's");
        assert_eq!(without_quotes(b"'\xff'"), b"'\xff'");
    }
}
