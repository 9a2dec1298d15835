// SPDX-License-Identifier: GPL-2.0-or-later
//! The result of one check, and its two forms: lines for people, JSON for programs.
//!
//! Owns the fields of `--check --json`, which other programs read. Values only; must never look at anything
//! itself.

use std::fmt::Write as _;

use serde::Serialize;

/// User that the unit runs the daemon as.
pub(super) const USER: &str = "fence_virt";

/// Result of one check.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// Name of the check, a fixed word.
    pub(super) check: &'static str,
    /// Object of the check: a file, an interface, a URI.
    pub(super) subject: String,
    pub(super) result: FindingLevel,
    /// Observation, in words.
    pub(super) text: String,
    /// Advice; none when all is well.
    pub(super) next: Option<String>,
    /// Excerpt of a file with a caret; for people only.
    #[serde(skip)]
    pub(super) excerpt: Option<String>,
}

/// Severity of a finding, by its name in `--json`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FindingLevel {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    pub(super) fn ok(check: &'static str, subject: impl Into<String>, text: impl Into<String>) -> Self {
        let (subject, text) = (subject.into(), text.into());
        Self { check, subject, result: FindingLevel::Ok, text, next: None, excerpt: None }
    }

    pub(super) fn warning(
        check: &'static str,
        subject: impl Into<String>,
        text: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { result: FindingLevel::Warning, next: Some(next.into()), ..Self::ok(check, subject, text) }
    }

    pub(super) fn failed(
        check: &'static str,
        subject: impl Into<String>,
        text: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { result: FindingLevel::Failed, ..Self::warning(check, subject, text, next) }
    }

    /// Returns the finding for people: one line, the excerpt, and one line of advice.
    pub(super) fn lines(&self) -> String {
        let word = match self.result {
            FindingLevel::Ok => "ok",
            FindingLevel::Warning => "warning",
            FindingLevel::Failed => "failed",
        };
        let blank = if self.subject.is_empty() { "" } else { " " };
        let mut lines =
            format!("{word:<8} {}{blank}{}: {}\n", self.check, self.subject, self.text.trim_end());
        for line in self.excerpt.iter().flat_map(|it| it.lines()) {
            let _ = writeln!(lines, "         {line}");
        }
        if let Some(next) = &self.next {
            let _ = writeln!(lines, "         -> {next}");
        }
        lines
    }
}

/// Joins words with commas.
pub(super) fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}
