// SPDX-License-Identifier: GPL-2.0-or-later
//! Questions about the devices of the agent backend. Present values stay in the file and are offered as
//! defaults, but for secrets: these are never shown, and go into files of their own unless the user insists.
//! Runs on the main thread. Must never print a secret.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fence_config::{Tree, is_secret_option};

use super::error::DialogueResult;
use super::file::shown;
use super::question::{AnswerCheck, DEVICE, Dialogue, Question, tried};
use crate::backend::agent::DIRECTORIES;

/// Directory that is proposed for files of secrets.
const SECRETS: &str = "/etc/fence_virt";
const NONE: &[u8] = b"none";

impl Dialogue<'_> {
    pub(super) fn agent(&mut self) -> DialogueResult<()> {
        self.explain(
            "agent: any hypervisor or machine that a fence agent is installed for. A device is one endpoint, \
             such as a\n\
             member of a pool or a management board: the agent, and what it needs to get there. \
             docs/agent.md has\n\
             examples. \"none\" means no more devices.",
        )?;
        let mut left = self.names_of_devices();
        loop {
            let default = if left.is_empty() { NONE } else { left[0].as_slice() };
            let answer = self.console.ask("Device", default)?;
            let is_typed = !answer.is_empty();
            let name = if is_typed { answer } else { default.to_vec() };
            let problem = if !name.eq_ignore_ascii_case(NONE) {
                let block = device(&name);
                match block.map(|it| (tried(&format!("{it}/agent"), b"fence_any"), it)) {
                    Some((Ok(_), block)) => {
                        left.retain(|it| *it != name);
                        self.device(&block, &name)?;
                        continue;
                    }
                    Some((Err(reason), _)) => reason,
                    None => "the name of a device is text without quotes".to_owned(),
                }
            } else if self.tree.has_block(DEVICE) {
                return Ok(());
            } else {
                "the backend agent needs a device".to_owned()
            };
            self.again("Device", &name, is_typed, problem)?;
        }
    }

    fn names_of_devices(&self) -> Vec<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for it in self.tree.block_values(DEVICE) {
            if !names.iter().any(|name| name == it) {
                names.push(it.to_vec());
            }
        }
        names
    }

    fn device(&mut self, block: &str, name: &[u8]) -> DialogueResult<()> {
        let key = format!("{block}/agent");
        self.ask_and_look(&Question::of("Fence agent (its name or path)", &key), |_, agent, _| {
            Ok(installed(agent))
        })?;
        self.explain(
            "The domains that it serves: \"web1, web2\"; or \"web1:101, web2:102\", where the agent calls \
             them 101 and\n\
             102; or \"*\" for all that it lists.",
        )?;
        let in_blocks = self.tree.has_block(&format!("{block}/domain"));
        let key = format!("{block}/plugs");
        let default = if in_blocks { "none" } else { "*" };
        self.ask(&Question { default, none: in_blocks, ..Question::of("Domains", &key) })?;
        self.explain(
            "Options of the agent, by the names in its manual page, one after the other. \"none\" means no \
             more.",
        )?;
        let options = format!("{block}/options");
        let mut left: Vec<Vec<u8>> = self.tree.keys(&options).into_iter().map(<[u8]>::to_vec).collect();
        loop {
            let default = if left.is_empty() { NONE } else { left[0].as_slice() };
            let answer = self.console.ask("Option", default)?;
            let is_typed = !answer.is_empty();
            let option = if is_typed { answer } else { default.to_vec() };
            if option.eq_ignore_ascii_case(NONE) {
                return Ok(());
            }
            left.retain(|it| !it.eq_ignore_ascii_case(&option));
            let text = String::from_utf8_lossy(&option).into_owned();
            let key = format!("{options}/{text}");
            // Checks whether there can be such an option: any value will do.
            match tried(&key, b"/x") {
                Err(reason) => self.again("Option", &option, is_typed, reason)?,
                Ok(_) => {
                    let of_file = text.strip_suffix("_file").filter(|it| is_secret_option(it));
                    if let Some(secret) = of_file {
                        self.secret_file(&key, secret, None)?;
                    } else if is_secret_option(&text) && !text.ends_with("_file") {
                        self.secret(&key, &text, name)?;
                        left.retain(|it| !it.eq_ignore_ascii_case(format!("{text}_file").as_bytes()));
                    } else {
                        self.ask(&Question::of(&format!("Value of {text}"), &key))?;
                    }
                }
            }
        }
    }

    /// Asks for a secret, which belongs into a file; one that is in the configuration already may stay.
    fn secret(&mut self, key: &str, option: &str, device: &[u8]) -> DialogueResult<()> {
        let in_file = format!("{key}_file");
        let is_here = self.tree.value(key).is_some();
        self.explain(&format!(
            "{option} is a secret. It is read from the first line of a file that only its owner can read; \
             this file then has\n\
             {option}_file. {}",
            if is_here { "\"none\" leaves it where it is, here." } else { "\"none\": it comes here." }
        ))?;
        let plain =
            |it: &u8| if it.is_ascii_alphanumeric() || b"-_.".contains(it) { char::from(*it) } else { '_' };
        let proposed = format!("{SECRETS}/{}.{option}", device.iter().map(plain).collect::<String>());
        let default = if is_here { "none" } else { &proposed };
        if self.secret_file(&in_file, option, Some(default))?.is_some() {
            self.tree.remove(key);
        } else if !is_here && self.console.confirm(&format!("Write {option} itself into this file"), false)? {
            let prompt = format!("Value of {option}, which will be seen");
            self.ask(&Question::of(&prompt, key))?;
        }
        Ok(())
    }

    /// Asks for the file of a secret. With a default, `none` means that there is to be no file.
    fn secret_file(
        &mut self,
        key: &str,
        secret: &str,
        default: Option<&str>,
    ) -> DialogueResult<Option<Vec<u8>>> {
        let prompt = format!("File of {secret}");
        let question = Question {
            default: default.unwrap_or_default(),
            none: default.is_some(),
            ..Question::of(&prompt, key)
        };
        self.ask_and_look(&question, |_, path, _| Ok(secret_at(path)))
    }
}

/// Returns the path of a device in the tree; none for a text that can't be a name.
fn device(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok().filter(|it| !it.contains('"'))?;
    Some(format!("{DEVICE}=\"{name}\""))
}

/// Checks whether an agent is installed.
fn installed(agent: &[u8]) -> AnswerCheck {
    let agent = Path::new(OsStr::from_bytes(agent));
    let places = DIRECTORIES.iter().map(|it| Path::new(it).join(agent));
    if places.into_iter().any(|it| it.is_file()) {
        return AnswerCheck::Good;
    }
    let text = if agent.is_absolute() {
        format!("there is no {} on this host", shown(agent))
    } else {
        format!(
            "there is no {} in {}; on Debian the package fence-agents has most of them",
            shown(agent),
            DIRECTORIES.join(", ")
        )
    };
    AnswerCheck::Doubtful(text)
}

/// Checks whether a file can hold a secret; if not, tells how to make it.
fn secret_at(path: &[u8]) -> AnswerCheck {
    let path = Path::new(OsStr::from_bytes(path));
    let name = shown(path);
    if !path.is_absolute() {
        return AnswerCheck::Bad(format!("{name} is no path from /"));
    }
    let directory = match path.parent() {
        Some(it) if !it.exists() => format!("install -d -m 700 {}; ", shown(it)),
        _ => String::new(),
    };
    let how = format!(
        "{directory}install -m 600 /dev/null {name}; and then the secret as its first line, with an editor"
    );
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            AnswerCheck::Doubtful(format!("{name} does not exist yet; make it with: {how}"))
        }
        Err(error) => AnswerCheck::Doubtful(format!("{name} can't be looked at: {error}")),
        Ok(it) if !it.is_file() => AnswerCheck::Bad(format!("{name} is not a regular file")),
        Ok(it) if it.mode() & 0o077 != 0 => AnswerCheck::Doubtful(format!(
            "{name} can be read or written by others than its owner (mode {:04o}); chmod 600 {name}",
            it.mode() & 0o7777
        )),
        Ok(_) => AnswerCheck::Good,
    }
}

/// Returns the tree with every secret as `***`.
pub(super) fn without_secrets(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    tree.replace_values(|path, _| {
        let [.., device, options, name] = path else { return None };
        let name = String::from_utf8_lossy(name);
        let is_option = device.eq_ignore_ascii_case(b"device") && options.eq_ignore_ascii_case(b"options");
        (is_option && is_secret_option(&name) && !name.to_ascii_lowercase().ends_with("_file"))
            .then(|| b"***".to_vec())
    });
    tree
}
