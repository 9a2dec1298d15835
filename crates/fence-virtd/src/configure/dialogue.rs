// SPDX-License-Identifier: GPL-2.0-or-later
//! The questions, in their order, and the change that each answer makes in the file. Runs on the main thread.
//! Touches the disk only to look at named files, and to make a key that the user asked for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fence_cli::key_file::{self, KeyFileError, KeyRule};
use fence_config::{BackendKind, DEFAULT_KEY_FILE, DEFAULT_URI, Family, HashType, ListenerKind};
use fence_wire::escaped;

use super::console::Console;
use super::error::DialogueResult;
use super::file::shown;
use super::question::{AnswerCheck, BACKEND, Dialogue, LISTENER, MakeKey, Question, tried};

impl Dialogue<'_> {
    /// Asks everything.
    pub(crate) fn hold(&mut self) -> DialogueResult<()> {
        let path = module_path();
        self.ask(&Question {
            default: &path,
            none: true,
            ..Question::of("Module search path", MODULE_PATH)
        })?;
        let modules = format!("\n{}\n", self.modules);
        self.console.say(modules.as_bytes())?;

        self.explain("Listeners take requests from the guests. Several may be named, with commas between.")?;
        let listeners = self.listeners()?;
        self.asked_vsock = listeners.len() > 1;
        for listener in listeners {
            match listener {
                ListenerKind::Multicast => self.multicast()?,
                ListenerKind::Tcp => self.tcp()?,
                ListenerKind::Serial => self.serial()?,
                // The C daemon does not ask about vsock, and old scripts do not answer.
                ListenerKind::Vsock if self.asked_vsock => self.vsock()?,
                ListenerKind::Vsock => {}
            }
        }

        self.explain("Backends carry requests out.")?;
        for backend in self.backends()? {
            match backend {
                BackendKind::Libvirt => self.libvirt()?,
                BackendKind::Cpg => self.cpg()?,
                BackendKind::Agent => self.agent()?,
            }
        }
        Ok(())
    }

    /// Returns true if somebody at the terminal wants the questions of [`hold_more`](Self::hold_more).
    pub(crate) fn has_more(&mut self) -> DialogueResult<bool> {
        let has_keys = |it: &ListenerKind| *it != ListenerKind::Serial;
        if !self.console.is_terminal() || !self.used_listeners().iter().any(has_keys) {
            return Ok(false);
        }
        let text = format!(
            "\nThe file is written. There are more questions, which the C program does not ask; no answer\n\
             within {} seconds means no.\n",
            MORE_WAIT.as_secs()
        );
        self.console.say(text.as_bytes())?;
        Ok(self
            .console
            .confirm_within("More questions (hash, vsock, missing keys and interfaces)", MORE_WAIT)?)
    }

    /// Asks what the C program does not ask, about the listeners of the file.
    pub(crate) fn hold_more(&mut self) -> DialogueResult<()> {
        for listener in self.used_listeners() {
            let name = listener.as_str();
            match listener {
                ListenerKind::Serial => continue,
                ListenerKind::Multicast => self.missing_interface()?,
                ListenerKind::Vsock if !self.asked_vsock => self.vsock()?,
                ListenerKind::Tcp | ListenerKind::Vsock => {}
            }
            self.missing_keys(name)?;
            self.hash(name)?;
        }
        Ok(())
    }

    /// Returns the listeners that the tree names now.
    fn used_listeners(&self) -> Vec<ListenerKind> {
        let named = self.tree.value(LISTENER).and_then(|it| tried(LISTENER, it).ok());
        named.map(|it| it.daemon.listeners).unwrap_or_default()
    }

    /// Returns true if `listener` has several multicast blocks.
    fn names_multicast_twice(&self) -> bool {
        let words = self.tree.value(LISTENER).unwrap_or_default().to_ascii_lowercase();
        let parts = words.split(|it| *it == b',' || it.is_ascii_whitespace());
        parts.filter(|it| *it == b"multicast").count() > 1
    }

    fn listeners(&mut self) -> DialogueResult<Vec<ListenerKind>> {
        let question = Question { default: "multicast", ..Question::of("Listener module", LISTENER) };
        let answer = self.ask(&question)?.unwrap_or_default();
        let listeners = tried(LISTENER, &answer).map(|it| it.daemon.listeners).unwrap_or_default();
        self.say_what_is_missing("listener", listeners.iter().map(|it| it.as_str()))?;
        Ok(listeners)
    }

    fn backends(&mut self) -> DialogueResult<Vec<BackendKind>> {
        let question = Question { default: "libvirt", ..Question::of("Backend module", BACKEND) };
        let answer = self.ask(&question)?.unwrap_or_default();
        let backends = tried(BACKEND, &answer).map(|it| it.daemon.backends).unwrap_or_default();
        self.say_what_is_missing("backend", backends.iter().map(|it| it.as_str()))?;
        Ok(backends)
    }

    fn multicast(&mut self) -> DialogueResult<()> {
        self.explain(
            "multicast: guests send their requests to a multicast address, over the network that they share\n\
             with this host.",
        )?;
        if self.names_multicast_twice() {
            self.explain("These questions are about the last multicast block; the others stay as they are.")?;
        }
        let default = self.family("multicast").default_multicast_address().to_string();
        self.address("multicast", "Multicast IP Address", &default)?;
        self.port("multicast", "Multicast IP Port")?;
        self.explain(
            "The interface is where requests are expected, such as the bridge of the guests (virbr0). \
             Without\n\
             one the system chooses, and where this host is the gateway of the guests it may choose \
             wrongly.\n\
             \"none\" means no interface.",
        )?;
        let key = "listeners/multicast/interface";
        let question = Question { none: true, default: "none", ..Question::of("Interface", key) };
        self.ask_and_look(&question, |_, name, _| Ok(interface(name, false)))?;
        self.key_file("multicast")
    }

    fn tcp(&mut self) -> DialogueResult<()> {
        self.explain("tcp: guests connect to an address of this host.")?;
        let default = self.family("tcp").default_tcp_address().to_string();
        self.address("tcp", "TCP Listen IP Address", &default)?;
        self.port("tcp", "TCP Listen Port")?;
        self.key_file("tcp")
    }

    fn vsock(&mut self) -> DialogueResult<()> {
        self.explain("vsock: guests connect through the hypervisor, without a network.")?;
        self.port("vsock", "VSOCK Listen Port")?;
        self.key_file("vsock")
    }

    /// Asks again for an interface that this machine does not have; the same answer twice is taken.
    fn missing_interface(&mut self) -> DialogueResult<()> {
        let key = "listeners/multicast/interface";
        let Some(name) = self.tree.value(key).map(<[u8]>::to_vec) else { return Ok(()) };
        let AnswerCheck::Bad(reason) = interface(&name, true) else { return Ok(()) };
        self.console.say(format!("{reason}\n").as_bytes())?;
        let mut before = Some(name);
        let question = Question { none: true, default: "none", ..Question::of("Interface", key) };
        self.ask_and_look(&question, |_, name, _| {
            let insists = before.as_deref() == Some(name);
            before = Some(name.to_vec());
            Ok(interface(name, !insists))
        })?;
        Ok(())
    }

    /// Makes the missing keys of a listener, where the user agrees.
    fn missing_keys(&mut self, listener: &str) -> DialogueResult<()> {
        let files = self.tree.values(&format!("listeners/{listener}/key_file"));
        let files: Vec<_> = files.into_iter().map(|it| PathBuf::from(OsStr::from_bytes(it))).collect();
        for file in files {
            make_missing(self.console, &file, self.make_key)?;
        }
        Ok(())
    }

    fn serial(&mut self) -> DialogueResult<()> {
        self.explain(
            "serial: guests write to a serial port or a VM channel, without a network. It needs no key: the\n\
             hypervisor's socket tells which guest asks.",
        )?;
        let question = Question { spelt_out: false, ..Question::of("Libvirt URI", "listeners/serial/uri") };
        self.ask_and_look(&Question { default: DEFAULT_URI, ..question }, |_, it, _| Ok(uri(it)))?;
        self.explain(
            "With a directory only sockets in it are served, so that other serial ports are left alone.\n\
             \"none\" means every one.",
        )?;
        let path = Question::of("Socket directory", "listeners/serial/path");
        self.ask(&Question { default: "none", none: true, ..path })?;
        let mode = Question::of("Mode (serial or vmchannel)", "listeners/serial/mode");
        self.ask(&Question { default: "serial", ..mode })?;
        Ok(())
    }

    fn libvirt(&mut self) -> DialogueResult<()> {
        self.explain("libvirt: domains of one hypervisor, which stay on it.")?;
        let question = Question::of("Libvirt URI", "backends/libvirt/uri");
        self.ask_and_look(&Question { default: DEFAULT_URI, ..question }, |_, it, _| Ok(uri(it)))?;
        Ok(())
    }

    fn cpg(&mut self) -> DialogueResult<()> {
        self.explain(
            "cpg: domains that move between the hosts of a corosync cluster. Each host runs fence_virtd, and \
             the\n\
             one that has the domain carries the request out.",
        )?;
        let question = Question::of("Libvirt URI", "backends/cpg/uri");
        self.ask_and_look(&Question { default: DEFAULT_URI, ..question }, |_, it, _| Ok(uri(it)))?;
        self.explain(
            "Hosts name domains to each other by UUID, or by name where names are unique on all of them.",
        )?;
        let question = Question::of("VM naming/tracking mode (name or uuid)", "backends/cpg/name_mode");
        let inherited = self.tree.value("fence_virtd/name_mode").map(|it| escaped(it).to_string());
        let default = inherited.as_deref().unwrap_or("uuid");
        loop {
            let before = self.tree.clone();
            let mode = self.ask(&Question { default, ..question })?;
            if !mode.is_some_and(|it| it.eq_ignore_ascii_case(b"name")) {
                return Ok(());
            }
            self.explain("By name, a domain of another host that has the same name may be fenced instead.")?;
            if self.console.confirm("Use name mode anyway", true)? {
                return Ok(());
            }
            self.tree = before;
        }
    }

    /// Returns the family that the block names, for defaults.
    fn family(&self, listener: &str) -> Family {
        match self.tree.value(&format!("listeners/{listener}/family")) {
            Some(word) if word.trim_ascii().eq_ignore_ascii_case(b"ipv6") => Family::V6,
            _ => Family::V4,
        }
    }

    fn address(&mut self, listener: &str, prompt: &str, default: &str) -> DialogueResult<()> {
        let key = format!("listeners/{listener}/address");
        let answer = self.ask(&Question { default, ..Question::of(prompt, &key) })?.unwrap_or_default();
        let address = std::str::from_utf8(&answer).ok().and_then(|it| it.trim().parse().ok());
        let family = address.map_or(Family::V4, Family::of);
        self.console.say(format!("Using {family}.\n").as_bytes())?;
        self.set(&format!("listeners/{listener}/family"), family.as_str().as_bytes());
        Ok(())
    }

    fn port(&mut self, listener: &str, prompt: &str) -> DialogueResult<()> {
        let key = format!("listeners/{listener}/port");
        self.ask(&Question { default: "1229", ..Question::of(prompt, &key) })?;
        Ok(())
    }

    fn key_file(&mut self, listener: &str) -> DialogueResult<()> {
        self.explain("The key file holds the secret that hosts and guests share; each needs a copy of it.")?;
        let key = format!("listeners/{listener}/key_file");
        let question = Question { default: DEFAULT_KEY_FILE, none: true, ..Question::of("Key File", &key) };
        let before = self.tree.values(&key).len();
        let answer = self.ask_and_look(&question, |_, path, _| Ok(key_at(path)))?;
        if answer.is_none() {
            let text = format!(
                "Without this line {DEFAULT_KEY_FILE} is used; only hash and auth \"none\" do without a \
                 key.\n"
            );
            self.console.say(text.as_bytes())?;
        } else if before > 1 {
            let text = format!("The last of {before} key files; the others stay in the file.\n");
            self.console.say(text.as_bytes())?;
        }
        Ok(())
    }

    fn hash(&mut self, listener: &str) -> DialogueResult<()> {
        let words = HashType::ALL.map(HashType::name);
        let prompt = format!("Weakest hash of a request ({})", words.join(", "));
        let key = format!("listeners/{listener}/hash");
        self.ask(&Question { default: "sha256", spelt_out: false, ..Question::of(&prompt, &key) })?;
        Ok(())
    }

    /// Warns of modules that this build lacks: the file may be for another machine.
    fn say_what_is_missing(
        &mut self,
        what: &str,
        names: impl Iterator<Item = &'static str>,
    ) -> DialogueResult<()> {
        for name in names {
            if !self.modules.split_whitespace().any(|it| it == name) {
                let text = format!("warning: this fence_virtd is built without the {what} {name}");
                self.console.warn(&text)?;
            }
        }
        Ok(())
    }
}

const MODULE_PATH: &str = "fence_virtd/module_path";

/// Time for the answer to the question whether there shall be more of them. Less than `expect` waits for the
/// end.
const MORE_WAIT: Duration = Duration::from_secs(8);

/// Returns the directory of the C daemon's modules on this machine, so that the C daemon can still use the
/// file. This daemon has no modules.
fn module_path() -> String {
    let distribution = format!("/usr/lib/{}-linux-gnu/fence-virt/", std::env::consts::ARCH);
    let places = [distribution.as_str(), "/usr/lib64/fence-virt/", "/usr/lib/fence-virt/"];
    places.into_iter().find(|it| Path::new(it).is_dir()).unwrap_or("none").to_owned()
}

fn interface(name: &[u8], must_be_there: bool) -> AnswerCheck {
    let Ok(there) = fence_net::interfaces() else { return AnswerCheck::Good };
    if there.iter().any(|it| it.name.as_bytes() == name) {
        return AnswerCheck::Good;
    }
    let names: Vec<_> = there.iter().map(|it| it.name.as_str()).collect();
    let text = format!("there is no interface {} on this machine, but {}", escaped(name), names.join(", "));
    if must_be_there {
        return AnswerCheck::Bad(format!("{text}; answer the same again to take it all the same"));
    }
    AnswerCheck::Doubtful(format!(
        "{text}; fence_virtd won't start before it is there, or wait for it with -w"
    ))
}

/// Checks a key file.
fn key_at(path: &[u8]) -> AnswerCheck {
    // A key that every user can read is worth a word, whatever strict_keys says.
    match key_file::load(Path::new(OsStr::from_bytes(path)), KeyRule::RefuseExposed) {
        Ok(_) => AnswerCheck::Good,
        Err(error) => AnswerCheck::Doubtful(error.to_string()),
    }
}

/// Makes a missing key where the user agrees. On a further host the existing key must be copied instead.
fn make_missing(console: &mut Console, path: &Path, make_key: MakeKey) -> DialogueResult<()> {
    if !matches!(key_file::load(path, KeyRule::WarnOfExposed), Err(KeyFileError::Missing { .. })) {
        return Ok(());
    }
    let name = shown(path);
    let text = format!(
        "{name} does not exist. Where the cluster has a key on another machine, copy that one here later.\n"
    );
    console.say(text.as_bytes())?;
    if console.confirm(&format!("Make a new key in {name} now"), false)? {
        match make_key(path) {
            Ok(made) => console.say(made.to_string().as_bytes())?,
            Err(error) => console.warn(&format!("warning: {error}"))?,
        }
    }
    Ok(())
}

/// Refuses a URI that is an answer to another question.
fn uri(text: &[u8]) -> AnswerCheck {
    if [&b"y"[..], b"n", b"yes", b"no"].iter().any(|it| text.eq_ignore_ascii_case(it)) {
        return AnswerCheck::Bad(format!("{} is no URI of libvirt, such as {DEFAULT_URI}", escaped(text)));
    }
    AnswerCheck::Good
}
