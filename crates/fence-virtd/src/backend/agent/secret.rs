// SPDX-License-Identifier: GPL-2.0-or-later
//! Secrets: read from files that only their owner can read, and taken out of whatever an agent prints.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;
use zeroize::Zeroizing;

use self::traces::SecretTraces;
use super::not_ready::NotReady;

mod traces;

/// Bytes of a secret, at most.
const LONGEST: u64 = 4096;
/// A secret that is shorter than this can't be told from other text.
const SHORTEST: usize = 4;
/// One that is no shorter than this is in no name by chance.
const UNLIKELY: usize = 8;
/// A line that can't be taken for a name.
const NO_NAME: &[u8] = b"\x02";
/// Text in place of a secret.
const MASK: &[u8] = b"***";

/// Why a secret can't be read. Says nothing of what is in the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("can't read {}: {}", .0.display(), .1)]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is no file", .0.display())]
    NoFile(PathBuf),
    #[error("{} belongs to user {}: chown it to root", .0.display(), .1)]
    Owner(PathBuf, u32),
    #[error("others can read {}, or write it: chmod 600 it", .0.display())]
    Mode(PathBuf),
    #[error("the first line of {} is empty", .0.display())]
    Empty(PathBuf),
    #[error("the first line of {} is longer than {LONGEST} bytes, or no text", .0.display())]
    NoText(PathBuf),
}

impl SecretError {
    /// Returns why a run can't begin.
    pub(super) fn not_ready(self) -> NotReady {
        let why = self.to_string();
        match self {
            Self::Read(_, error) => NotReady::of_file(&error, why),
            _ => why.into(),
        }
    }
}

/// The first line of a file that only its owner can read: root, or the user that the daemon runs as. Blocks.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let failed = |error| SecretError::Read(path.to_owned(), error);
    // A pipe must not be waited for.
    let file =
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(SecretError::NoFile(path.to_owned()));
    }
    if !is_ours(&about) {
        return Err(SecretError::Owner(path.to_owned(), about.uid()));
    }
    if about.mode() & 0o077 != 0 {
        return Err(SecretError::Mode(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(4097));
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    let line = bytes.split(|it| *it == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_whole = u64::try_from(line.len()).is_ok_and(|it| it <= LONGEST);
    match std::str::from_utf8(line) {
        Ok("") => Err(SecretError::Empty(path.to_owned())),
        Ok(text) if is_whole && !text.contains(char::is_control) => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(SecretError::NoText(path.to_owned())),
    }
}

/// Returns whether the file belongs to root or to the user that the daemon runs as.
pub(super) fn is_ours(about: &Metadata) -> bool {
    about.uid() == 0 || about.uid() == Uid::effective().as_raw()
}

/// Takes secrets out of text.
pub(super) struct SecretMask {
    /// Secrets in every form in which they are looked for, the longest first.
    patterns: Vec<Zeroizing<Vec<u8>>>,
    /// Pieces of secrets, in forms that are not looked for one by one.
    traces: SecretTraces,
    /// The same of secrets that are in no name by chance.
    unlikely: SecretTraces,
    /// There is one that can't be told from other text, so nothing is shown.
    hides_all: bool,
}

impl SecretMask {
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let secrets: Vec<&str> = secrets.into_iter().filter(|it| !it.is_empty()).collect();
        let traces = SecretTraces::new(secrets.iter().copied(), SHORTEST);
        let unlikely = SecretTraces::new(secrets.iter().copied(), UNLIKELY);
        let mut mask = Self { patterns: Vec::new(), traces, unlikely, hides_all: false };
        for secret in secrets {
            if secret.len() < SHORTEST {
                mask.hides_all = true;
            }
            mask.patterns.extend(forms(secret));
        }
        mask.patterns.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        mask.patterns.dedup();
        mask
    }

    /// Text without secrets, line for line. `is_cut`: it was cut off, perhaps within a secret.
    pub(super) fn shown(&self, text: &[u8], is_cut: bool) -> String {
        if self.hides_all && !text.trim_ascii().is_empty() {
            return "(not shown: a secret is too short to be told from it)".to_owned();
        }
        let end = if is_cut { self.begun(text) } else { text.len() };
        let masked = self.masked(text, end);
        if self.traces.are_in(&masked) {
            return "(not shown: a secret, or a piece of one, is in it in another form)".to_owned();
        }
        String::from_utf8_lossy(masked.trim_ascii()).into_owned()
    }

    /// Text for reading names from, without the lines that have a secret in them: what was said in passing
    /// would be a name that guests are told. A short secret may well be in a name.
    pub(super) fn names(&self, text: &[u8]) -> Vec<u8> {
        let patterns = || self.patterns.iter().filter(|it| it.len() >= UNLIKELY);
        let tells = |line: &[u8]| {
            patterns().any(|it| line.windows(it.len()).any(|part| part == it.as_slice()))
                || self.unlikely.are_in(line)
        };
        let lines: Vec<&[u8]> =
            text.split(|it| *it == b'\n').map(|it| if tells(it) { NO_NAME } else { it }).collect();
        lines.join(&b'\n')
    }

    /// Returns the text as far as `end`. Each secret that begins before it is masked as a whole, those that
    /// overlap by one mask.
    fn masked(&self, text: &[u8], end: usize) -> Vec<u8> {
        let secret_at = |at: usize| self.patterns.iter().find(|it| text[at..].starts_with(it));
        let mut out = Vec::with_capacity(end);
        let mut at = 0;
        while at < end {
            let Some(secret) = secret_at(at) else {
                out.push(text[at]);
                at += 1;
                continue;
            };
            let mut after = at + secret.len();
            while at < after {
                after = after.max(at + secret_at(at).map_or(0, |it| it.len()));
                at += 1;
            }
            out.extend_from_slice(MASK);
        }
        out
    }

    /// Returns the place of what could be the begin of a secret at the end of the text, or its length.
    fn begun(&self, text: &[u8]) -> usize {
        let longest = self.patterns.first().map_or(0, |it| it.len());
        let begin = text.len().saturating_sub(longest);
        let place =
            (begin..text.len()).find(|at| self.patterns.iter().any(|it| it.starts_with(&text[*at..])));
        place.unwrap_or(text.len())
    }
}

/// As it is, and as programs write it in URLs, JSON, XML, quotes and HTTP headers.
fn forms(secret: &str) -> Vec<Zeroizing<Vec<u8>>> {
    let bytes = secret.as_bytes();
    let mut forms = vec![
        bytes.to_vec(),
        by_byte(bytes, |it| !it.is_ascii_alphanumeric() && !b"-_.~".contains(&it), |it| format!("%{it:02X}")),
        by_byte(bytes, |it| !it.is_ascii_alphanumeric() && !b"-_.~".contains(&it), |it| format!("%{it:02x}")),
        by_byte(
            bytes,
            |it| !it.is_ascii_alphanumeric() && !b"-_.~/".contains(&it),
            |it| format!("%{it:02X}"),
        ),
        by_byte(bytes, |it| b"\\\"".contains(&it), |it| format!("\\{}", char::from(it))),
        by_byte(bytes, |it| b"\\'".contains(&it), |it| format!("\\{}", char::from(it))),
        by_byte(bytes, |it| it == b'\\', |_| "\\\\".to_owned()),
        secret.replace(' ', "+").into_bytes(),
        // In the body of a form, and in Python's words for bytes.
        form(bytes, |it| format!("%{it:02X}")),
        form(bytes, |it| format!("%{it:02x}")),
        by_byte(bytes, |it| !it.is_ascii(), |it| format!("\\x{it:02x}")),
        by_byte(bytes, |_| true, |it| format!("{it:02x}")),
        by_byte(bytes, |_| true, |it| format!("{it:02X}")),
        secret.replace('\'', "'\\''").into_bytes(),
        xml(secret, false),
        xml(secret, true),
        json(secret),
    ];
    // `user:secret` of HTTP, wherever the secret begins in it.
    forms.extend((0..3).map(|it| base64_core(bytes, it)));
    let plain = bytes.len();
    forms.retain(|it| it.len() >= SHORTEST.min(plain));
    forms.into_iter().map(Zeroizing::new).collect()
}

fn form(bytes: &[u8], as_other: impl Fn(u8) -> String) -> Vec<u8> {
    let is_other = |it: u8| !it.is_ascii_alphanumeric() && !b"-_.~".contains(&it);
    by_byte(bytes, is_other, |it| if it == b' ' { "+".to_owned() } else { as_other(it) })
}

fn by_byte(bytes: &[u8], is_other: impl Fn(u8) -> bool, as_other: impl Fn(u8) -> String) -> Vec<u8> {
    let each = |it: &u8| if is_other(*it) { as_other(*it).into_bytes() } else { vec![*it] };
    bytes.iter().flat_map(each).collect()
}

fn xml(secret: &str, quotes: bool) -> Vec<u8> {
    let text = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if quotes { text.replace('"', "&quot;").replace('\'', "&apos;") } else { text }.into_bytes()
}

fn json(secret: &str) -> Vec<u8> {
    let mut out = String::new();
    for it in secret.chars() {
        match it {
            '"' | '\\' => out.extend(['\\', it]),
            it if it.is_ascii() => out.push(it),
            it => {
                for unit in it.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.into_bytes()
}

/// Returns the base64 text of the bytes when `before` other bytes precede them, without the characters that
/// neighbouring bytes share. Empty if too little is left to differ from ordinary text.
fn base64_core(bytes: &[u8], before: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<bool> =
        bytes.iter().flat_map(|it| (0..8).rev().map(move |bit| it >> bit & 1 == 1)).collect();
    // The first character that begins within.
    let skip = (6 - before * 8 % 6) % 6;
    let out: Vec<u8> = bits
        .get(skip..)
        .unwrap_or_default()
        .chunks_exact(6)
        .map(|it| DIGITS[it.iter().fold(0, |sum, bit| sum * 2 + usize::from(*bit))])
        .collect();
    if out.len() < SHORTEST { Vec::new() } else { out }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let write = |text: &[u8], mode: u32| {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert_eq!(*write(b" open sesame \nnot this\n", 0o600).unwrap(), " open sesame ");
        assert_eq!(*write(b"x\r\n", 0o400).unwrap(), "x");
        assert_eq!(write(&[b'x'; 4096], 0o600).unwrap().len(), 4096);
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610] {
            assert!(matches!(write(b"x", mode), Err(SecretError::Mode(_))), "{mode:o}");
        }
        assert!(matches!(write(b"\nx", 0o600), Err(SecretError::Empty(_))));
        for text in [&b"a\xff"[..], b"a\tb", b"a\rb", &[b'x'; 4097]] {
            let error = write(text, 0o600).unwrap_err();
            assert!(matches!(error, SecretError::NoText(_)), "{error}");
        }
        assert!(matches!(read(dir.path()), Err(SecretError::NoFile(_))));
        assert!(matches!(read(&dir.path().join("none")), Err(SecretError::Read(..))));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&pipe), Err(SecretError::NoFile(_))));
    }

    #[test]
    fn secrets_are_masked_in_every_form() {
        let mask = SecretMask::new(["p&s \"w'\u{e9}d/", "hunter2", ""]);
        for text in [
            "p&s \"w'\u{e9}d/",
            "p%26s%20%22w%27%C3%A9d%2F",
            "p%26s%20%22w%27%c3%a9d%2f",
            "p%26s%20%22w%27%C3%A9d/",
            "p%26s+%22w%27%C3%A9d%2F",
            "p%26s+%22w%27%c3%a9d%2f",
            "p&s \"w'\\xc3\\xa9d/",
            "70267320227727c3a9642f",
            "70267320227727C3A9642F",
            "p&s \\\"w'\u{e9}d/",
            "p&s \\\"w'\\u00e9d/",
            "p&s \"w\\'\u{e9}d/",
            "p&amp;s \"w'\u{e9}d/",
            "p&amp;s &quot;w&apos;\u{e9}d/",
            "p&s \"w'\\''\u{e9}d/",
        ] {
            assert_eq!(mask.shown(format!("a={text}, b").as_bytes(), false), "a=***, b", "{text}");
        }
        assert_eq!(
            mask.shown(b"hunter2hunter2 hunter1\nx\r\n\n  y\x1b\n", false),
            "****** hunter1\nx\r\n\n  y\x1b"
        );
        // `Basic` with root:hunter2, rooot:hunter2 and roooot:hunter2.
        for text in ["cm9vdDpodW50ZXIy", "cm9vb3Q6aHVudGVyMg==", "cm9vb290Omh1bnRlcjI="] {
            let shown = mask.shown(text.as_bytes(), false);
            assert!(shown.contains("***") && shown.len() <= text.len() - 5, "{text}: {shown}");
        }
    }

    #[test]
    fn what_can_not_be_masked_is_not_shown() {
        let mask = SecretMask::new(["abc", "hunter2"]);
        assert_eq!(mask.shown(b"xabcx", false), "(not shown: a secret is too short to be told from it)");
        assert_eq!(mask.shown(b" \n", false), "");
    }

    #[test]
    fn a_line_that_tells_a_secret_is_no_name() {
        let mask = SecretMask::new(["correct horse", "web"]);
        let list = b"1,web\nlogin as fencing with correct horse\n\n2,db\nx=correct%20horse";
        assert_eq!(mask.names(list), b"1,web\n\x02\n\n2,db\n\x02");
    }

    #[test]
    fn a_secret_that_was_cut_off_is_not_shown_either() {
        let mask = SecretMask::new(["hunter2", "hunting"]);
        assert_eq!(mask.shown(b"it is hunter", true), "it is");
        assert_eq!(mask.shown(b"it is hunter2 and h", true), "it is *** and");
        assert_eq!(mask.shown(b"it is hunter", false), "it is hunter");
        // The end of one may look like the begin of another.
        let mask = SecretMask::new(["banana ban"]);
        assert_eq!(mask.shown(b"it is banana banana", true), "it is ***");
    }

    /// A secret and the texts around it. In those of two letters most is like a piece of the secret. A piece
    /// of the mask can't look like one.
    fn secret_in_text() -> impl Strategy<Value = (String, String, String)> {
        prop_oneof![
            ("[!-)+-\\[\\]-~]{4,12}", "[ -~]{0,20}", "[ -~]{0,20}"),
            ("[ab]{4,6}", "[ab ]{0,8}", "[ab ]{0,8}"),
        ]
    }

    proptest! {
        #[test]
        fn no_secret_is_shown((secret, before, after) in secret_in_text(), keep in 0_usize..60) {
            let mask = SecretMask::new([secret.as_str()]);
            let text = format!("{before}{secret}{after}");
            prop_assert!(!mask.shown(text.as_bytes(), false).contains(&secret));
            let cut = &text.as_bytes()[..keep.min(text.len())];
            let shown = mask.shown(cut, true);
            prop_assert!(!shown.contains(&secret));
            // The text around it may have the same letters by chance: these tell nothing of the secret.
            let begin = &secret[..secret.len() - 1];
            let is_chance = before.contains(begin) || after.contains(begin);
            prop_assert!(is_chance || !shown.ends_with(begin), "{shown}");
        }
    }
}
