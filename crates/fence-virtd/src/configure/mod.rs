// SPDX-License-Identifier: GPL-2.0-or-later
//! `fence_virtd -c`: asks for the settings that matter and writes the configuration file.
//!
//! Owns the order of the questions and the words of the prompts: people have scripts that answer them, one
//! line each, through a pipe or at a terminal (expect). So whatever the C daemon's configurator does not ask
//! is asked after its dialogue, when the file is written, and only of somebody who wants it; or about what it
//! has not got. Changes in the file only what was asked about. Runs alone, before there is a daemon, a
//! runtime or a log; must never write anything but the file, a key that was asked for, and what it says to
//! the one who asked.

mod console;
mod devices;
mod dialogue;
mod error;
mod file;
#[cfg(test)]
mod proptests;
mod question;

use std::path::Path;

use fence_cli::keygen;
use fence_config::{Code, LoadedConfig, Severity, Tree};

use self::console::Console;
use self::devices::without_secrets;
use self::error::ConfigureError;
use self::file::{ConfigFile, shown};
use self::question::{Dialogue, MakeKey};

/// Asks all questions and writes `path`. `modules` is the list of backends and listeners of this build.
pub(crate) fn run(path: &Path, modules: &str) -> Result<(), ConfigureError> {
    configure(path, modules, &mut Console::standard(), keygen::make)
}

fn configure(
    path: &Path,
    modules: &str,
    console: &mut Console,
    make_key: MakeKey,
) -> Result<(), ConfigureError> {
    let name = shown(path);
    let declined = || ConfigureError::Declined { file: name.clone() };
    let found = ConfigFile::read(path)?;
    let loaded = found.content.as_deref().map(fence_config::load);
    let tree = match loaded {
        Some(loaded) if is_understood(&loaded) => loaded.tree,
        other => {
            console.say(format!("Parsing of {name} failed.\n").as_bytes())?;
            match (&other, &found.content) {
                (Some(loaded), Some(content)) => console.warn(&loaded.render(&name, content))?,
                _ => console.warn(&format!("{name} does not exist"))?,
            }
            if !console.confirm("Start from scratch", false)? {
                return Err(declined());
            }
            // Comments alone are no configuration, but a user wrote them.
            other.map(|it| it.tree).filter(Tree::is_well_formed).unwrap_or_default()
        }
    };

    let mut dialogue = Dialogue::new(console, tree, modules, make_key);
    dialogue.hold()?;
    offer(&name, &found, &mut dialogue)?;
    // The file is written: whatever happens now is no failure of what was asked before.
    if let Err(error) = ask_for_more(path, &mut dialogue) {
        dialogue.console.warn(&format!("{error}; what was written before stays"))?;
    }
    Ok(())
}

/// Asks what the C program does not ask, if somebody at the terminal wants that.
fn ask_for_more(path: &Path, dialogue: &mut Dialogue<'_>) -> Result<(), ConfigureError> {
    if !dialogue.has_more()? {
        return Ok(());
    }
    dialogue.hold_more()?;
    offer(&shown(path), &ConfigFile::read(path)?, dialogue)
}

/// Shows the new file and its changes, and writes it if the user agrees.
fn offer(name: &str, found: &ConfigFile, dialogue: &mut Dialogue<'_>) -> Result<(), ConfigureError> {
    let Dialogue { console, tree, .. } = dialogue;
    let new = bytes(tree);
    let shown = bytes(&without_secrets(tree));

    console.say(b"\nConfiguration complete.\n\n=== Begin Configuration ===\n")?;
    console.say(&shown)?;
    console.say(b"=== End Configuration ===\n")?;
    if let Some(old) = &found.content {
        console.say(&difference(name, old, &new))?;
    }
    let loaded = fence_config::load(&new);
    // Errors at the same positions, but for columns behind a secret.
    for error in fence_config::load(&shown).diagnostics.iter().filter(|it| it.severity == Severity::Error) {
        console.warn(&error.render("the file above", &shown))?;
    }
    if loaded.config.is_none() {
        console.warn("fence_virtd will not start with the file above.")?;
    }
    if !console.confirm(&format!("Replace {name} with the above"), false)? {
        return Err(ConfigureError::Declined { file: name.to_owned() });
    }
    Ok(found.replace(&new)?)
}

/// Returns true where the begin and end of each statement are known. Values are checked later.
fn is_understood(loaded: &LoadedConfig) -> bool {
    loaded.tree.is_well_formed() && !loaded.diagnostics.iter().any(|it| it.code == Code::EmptyFile)
}

/// Returns the bytes of a whole file.
fn bytes(tree: &Tree) -> Vec<u8> {
    let mut bytes = tree.to_bytes();
    if !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes
}

/// Returns the changes, as diff -u shows them; secrets as `***`.
fn difference(name: &str, old: &[u8], new: &[u8]) -> Vec<u8> {
    if old == new {
        return format!("Nothing changes in {name}.\n").into_bytes();
    }
    let shown = |it: &[u8]| without_secrets(&Tree::parse(it)).to_bytes();
    let (old, new) = (shown(old), shown(new));
    if old == new {
        return format!("Nothing but secrets changes in {name}.\n").into_bytes();
    }
    let mut options = diffy::DiffOptions::new();
    options.set_original_filename(name.to_owned()).set_modified_filename(format!("{name} (new)"));
    let mut text = b"\nChanges:\n".to_vec();
    text.extend_from_slice(&options.create_patch_bytes(&old, &new).to_bytes());
    text
}
