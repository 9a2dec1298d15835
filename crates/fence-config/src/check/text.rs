// SPDX-License-Identifier: GPL-2.0-or-later
//! Pure functions on the text of keys and values.

use crate::characters::as_read;

/// Returns the number that decimal digits spell: no sign, no blanks.
pub(super) fn parse_number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Returns the known word that was probably meant.
pub(super) fn nearest_word<'w>(
    id: &[u8],
    words: impl Iterator<Item = &'w &'static str>,
) -> Option<&'static str> {
    // The distance takes time in proportion to the length, and a long text is no mistyped word.
    const LONGEST: usize = 40;
    let id = as_read(id).replace('-', "_");
    if id.len() > LONGEST {
        return None;
    }
    words
        .map(|&word| (strsim::damerau_levenshtein(&id, word), word))
        .filter(|&(distance, word)| distance <= (word.len() / 3).clamp(1, 3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

/// Returns whether an id reads like this word, or differs from it in one letter.
pub(super) fn is_nearly(id: &[u8], word: &str) -> bool {
    let id = as_read(id);
    id.len() <= word.len() + 1 && strsim::damerau_levenshtein(&id, word) <= 1
}
