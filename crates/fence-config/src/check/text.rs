// SPDX-License-Identifier: GPL-2.0-or-later
//! Pure functions on the text of keys and values.

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
    let id = std::str::from_utf8(id).ok().filter(|it| it.len() <= LONGEST)?;
    let id = id.to_ascii_lowercase().replace('-', "_");
    words
        .map(|&word| (strsim::damerau_levenshtein(&id, word), word))
        .filter(|&(distance, word)| distance <= (word.len() / 3).clamp(1, 3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}
