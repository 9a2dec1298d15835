// SPDX-License-Identifier: GPL-2.0-or-later
//! One question: its prompt, its default, the check of the answer, and the change in the tree.
//!
//! Owns the tree while questions are asked. An answer is accepted only where the daemon would accept a file
//! with it. Must never write a file.

use std::path::Path;

use fence_cli::keygen;
use fence_config::{Config, Tree};
use fence_wire::escaped;

use super::console::Console;
use super::error::{ConfigureError, DialogueResult};

/// Path of the key that names the listeners.
pub(super) const LISTENER: &str = "fence_virtd/listener";
/// Path of the key that names the backends.
pub(super) const BACKEND: &str = "fence_virtd/backend";
/// Path of all devices; that of one device has its name behind this.
pub(super) const DEVICE: &str = "backends/agent/device";

/// Function that makes a key file.
pub(super) type MakeKey = fn(&Path) -> Result<keygen::NewKey, keygen::KeygenError>;

/// Dialogue with the user, and the configuration that it changes.
pub(crate) struct Dialogue<'c> {
    pub(super) console: &'c mut Console,
    pub(super) tree: Tree,
    pub(super) modules: &'c str,
    pub(super) make_key: MakeKey,
    /// The settings of vsock were asked for: the C daemon asks none.
    pub(super) asked_vsock: bool,
}

/// Question about one key.
#[derive(Clone, Copy)]
pub(super) struct Question<'q> {
    pub(super) prompt: &'q str,
    /// Path of the key in the tree.
    pub(super) key: &'q str,
    /// Value that is offered where the file has none.
    pub(super) default: &'q str,
    /// True where the answer `none` removes the key.
    pub(super) none: bool,
    /// True where an accepted default is written into a file without the key.
    pub(super) spelt_out: bool,
}

/// Result of checking an answer on this machine.
pub(super) enum AnswerCheck {
    /// The answer is accepted.
    Good,
    /// The answer is accepted with a warning.
    Doubtful(String),
    /// The question is asked again.
    Bad(String),
}

impl<'c> Dialogue<'c> {
    pub(crate) fn new(console: &'c mut Console, tree: Tree, modules: &'c str, make_key: MakeKey) -> Self {
        Self { console, tree, modules, make_key, asked_vsock: false }
    }

    pub(super) fn explain(&mut self, text: &str) -> DialogueResult<()> {
        Ok(self.console.say(format!("\n{text}\n\n").as_bytes())?)
    }

    pub(super) fn ask(&mut self, question: &Question<'_>) -> DialogueResult<Option<Vec<u8>>> {
        self.ask_and_look(question, |_, _, _| Ok(AnswerCheck::Good))
    }

    /// Asks until there is an answer that can be used, and puts it into the tree. `look` gets the value and
    /// whether it was typed. Returns the value, none for `none`.
    pub(super) fn ask_and_look(
        &mut self,
        question: &Question<'_>,
        mut look: impl FnMut(&mut Console, &[u8], bool) -> DialogueResult<AnswerCheck>,
    ) -> DialogueResult<Option<Vec<u8>>> {
        let present = self.tree.value(question.key).map(<[u8]>::to_vec);
        let default = present.clone().unwrap_or_else(|| question.default.as_bytes().to_vec());
        loop {
            let answer = self.console.ask(question.prompt, &default)?;
            let typed = !answer.is_empty();
            let value = if typed { answer } else { default.clone() };
            if question.none && value.eq_ignore_ascii_case(b"none") {
                self.tree.remove(question.key);
                return Ok(None);
            }
            let looked = match tried(question.key, &value) {
                Ok(_) => look(self.console, &value, typed)?,
                Err(reason) => AnswerCheck::Bad(reason),
            };
            match looked {
                AnswerCheck::Good => {}
                AnswerCheck::Doubtful(reason) => self.console.warn(&format!("warning: {reason}"))?,
                AnswerCheck::Bad(reason) => {
                    self.again(question.prompt, &value, typed, reason)?;
                    continue;
                }
            }
            if typed || question.spelt_out {
                self.set(question.key, &value);
            }
            return Ok(Some(value));
        }
    }

    /// Says why an answer can't be used, so that the question is asked again. An error where no more answers
    /// come.
    pub(super) fn again(
        &mut self,
        prompt: &str,
        value: &[u8],
        is_typed: bool,
        reason: String,
    ) -> DialogueResult<()> {
        if !is_typed && self.console.has_ended() {
            let (prompt, value) = (prompt.to_owned(), escaped(value).to_string());
            return Err(ConfigureError::NoAnswer { prompt, value, reason });
        }
        self.console.say(format!("{reason}\n").as_bytes())?;
        Ok(())
    }

    /// Sets a value in the tree; a key that has this value already stays as it is written.
    pub(super) fn set(&mut self, key: &str, value: &[u8]) {
        if self.tree.value(key) != Some(value) {
            // `tried` has set this key in another tree.
            let set = self.tree.set(key, value);
            debug_assert!(set.is_ok(), "{key}: {set:?}");
        }
    }
}

impl<'q> Question<'q> {
    pub(super) fn of(prompt: &'q str, key: &'q str) -> Self {
        Question { prompt, key, default: "", none: false, spelt_out: true }
    }
}

/// Returns the configuration with this one setting, or the daemon's reason against it.
pub(super) fn tried(key: &str, value: &[u8]) -> Result<Config, String> {
    let mut tree = Tree::default();
    // The agent backend needs a device, and a device these two keys.
    let device = match key.strip_prefix(DEVICE).and_then(|it| it.match_indices('"').nth(1)) {
        Some((end, _)) => Some(&key[..=DEVICE.len() + end]),
        None => Some("backends/agent/device=\"any\"").filter(|_| key == BACKEND),
    };
    let needed = device.iter().flat_map(|it| [(it, "agent", "fence_any"), (it, "plugs", "any")]);
    for (device, key, value) in needed {
        tree.set(&format!("{device}/{key}"), value.as_bytes()).map_err(|error| error.to_string())?;
    }
    let mut parts = key.split('/');
    let used = match (parts.next(), parts.next()) {
        (Some("listeners"), Some(kind)) => tree.set(LISTENER, kind.as_bytes()),
        (Some("backends"), Some(kind)) => tree.set(BACKEND, kind.as_bytes()),
        _ => Ok(()),
    };
    used.and_then(|()| tree.set(key, value)).map_err(|error| error.to_string())?;
    let loaded = fence_config::load(&tree.to_bytes());
    match (loaded.diagnostics.first(), loaded.config) {
        (None, Some(config)) => Ok(config),
        (Some(found), _) => {
            let help = found.help.as_ref().map_or(String::new(), |it| format!("; {it}"));
            Err(format!("{}{help}", found.message))
        }
        (None, None) => Err("it can't be used".to_owned()),
    }
}
