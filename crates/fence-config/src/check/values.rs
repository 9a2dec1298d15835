// SPDX-License-Identifier: GPL-2.0-or-later
//! Values that keys of several blocks may have: words, lists, numbers, times, paths, URIs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::check::checker::Checker;
use crate::check::text::nearest_word;
use crate::diagnostic::{DiagnosticCode, show};
use crate::schema::{DEFAULT_URI, WordSet};
use crate::tree::Assignment;

impl Checker<'_> {
    /// Returns the bytes of a value without the blanks around them. `None` when the parser has reported it.
    pub(super) fn trimmed<'t>(&self, assignment: &'t Assignment) -> Option<&'t [u8]> {
        let text = &assignment.value.text.bytes;
        (!text.is_empty()).then(|| text.trim_ascii())
    }

    pub(super) fn read_word<T: WordSet>(&mut self, assignment: Option<&Assignment>) -> Option<T> {
        let assignment = assignment?;
        let word = T::from_word(self.trimmed(assignment)?);
        if word.is_none() {
            let words: Vec<_> = T::WORDS.iter().map(|&(word, _)| word).collect();
            self.report_bad_value(assignment, format!("allowed: {}", words.join(", ")));
        }
        word
    }

    /// Reads words with commas or blanks between them, none twice.
    pub(super) fn read_list<T: WordSet + PartialEq>(
        &mut self,
        assignment: Option<&Assignment>,
    ) -> Option<Vec<T>> {
        let mut list = self.read_repeated(assignment)?;
        let mut seen = Vec::new();
        list.retain(|kind| {
            let is_first = !seen.contains(kind);
            match (is_first, assignment) {
                (true, _) => seen.push(*kind),
                (false, Some(assignment)) => self.report_named_twice(assignment, *kind),
                (false, None) => {}
            }
            is_first
        });
        Some(list)
    }

    /// Reports a word that a list has again.
    pub(super) fn report_named_twice<T: WordSet + PartialEq>(&mut self, list: &Assignment, kind: T) {
        let word = T::WORDS.iter().find(|(_, it)| *it == kind).map_or("a word", |(word, _)| word);
        self.findings.warning(
            DiagnosticCode::Repeated,
            list.value.text.span,
            format!("`{}` names {word} twice", show(&list.id.bytes)),
            None,
        );
    }

    /// Reads words with commas or blanks between them, each as often as it is there.
    pub(super) fn read_repeated<T: WordSet + PartialEq>(
        &mut self,
        assignment: Option<&Assignment>,
    ) -> Option<Vec<T>> {
        let assignment = assignment?;
        let text = self.trimmed(assignment)?;
        let words: Vec<_> = T::WORDS.iter().map(|&(word, _)| word).collect();
        let mut list = Vec::new();
        for part in text.split(|&byte| byte == b',' || byte.is_ascii_whitespace()).filter(|it| !it.is_empty())
        {
            match T::from_word(part) {
                Some(kind) => list.push(kind),
                None => {
                    let near = nearest_word(part, words.iter())
                        .map_or(String::new(), |it| format!("did you mean {it}? "));
                    self.report(
                        DiagnosticCode::BadValue,
                        assignment.value.text.span,
                        format!("there is no {} \"{}\"", show(&assignment.id.bytes), show(part)),
                        format!("{near}allowed: {}", words.join(", ")),
                    );
                    return None;
                }
            }
        }
        if list.is_empty() {
            self.report_bad_value(assignment, format!("allowed: {}", words.join(", ")));
            return None;
        }
        Some(list)
    }

    pub(super) fn read_seconds(
        &mut self,
        assignment: Option<&Assignment>,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        let assignment = assignment?;
        let text = self.trimmed(assignment)?;
        let plain = text.iter().all(|it| it.is_ascii_digit() || *it == b'.');
        let seconds = std::str::from_utf8(text)
            .ok()
            .filter(|_| plain)
            .and_then(|it| it.parse::<f64>().ok())
            .and_then(|it| Duration::try_from_secs_f64(it).ok())
            .filter(|it| (least..=most).contains(it));
        if seconds.is_none() {
            let (least, most) = (least.as_secs(), most.as_secs());
            let fraction = if least == 0 { "2 or 0.5".to_owned() } else { format!("{least} or {least}.5") };
            self.report_bad_value(
                assignment,
                format!("allowed: seconds from {least} to {most}, such as {fraction}"),
            );
        }
        seconds
    }

    pub(super) fn read_path(&mut self, assignment: &Assignment) -> Option<PathBuf> {
        let bytes = &assignment.value.text.bytes;
        if bytes.is_empty() {
            return None;
        }
        if bytes.contains(&0) {
            self.report_bad_value(assignment, "allowed: a path, which cannot hold a NUL byte".to_owned());
            return None;
        }
        let path = PathBuf::from(OsString::from_vec(bytes.clone()));
        if !path.is_absolute() {
            self.findings.warning(
                DiagnosticCode::RelativePath,
                assignment.value.text.span,
                format!(
                    "`{}` depends on the directory the daemon was started in",
                    show(&assignment.id.bytes)
                ),
                Some("give the path from `/`".to_owned()),
            );
        }
        Some(path)
    }

    pub(super) fn read_uri(&mut self, assignment: &Assignment) -> Option<String> {
        let text = self.trimmed(assignment)?;
        let uri = std::str::from_utf8(text)
            .ok()
            .filter(|it| !it.is_empty() && !it.contains(|c: char| c.is_whitespace() || c.is_control()));
        if uri.is_none() {
            self.report_bad_value(assignment, format!("allowed: a libvirt URI, such as {DEFAULT_URI}"));
        }
        uri.map(str::to_owned)
    }
}
