// SPDX-License-Identifier: GPL-2.0-or-later
//! Property test: for every file and every answers, `-c` ends, and the file that it writes can be used.

use std::fs;
use std::path::Path;

use fence_cli::keygen::KeygenError;
use fence_config::{Tree, load};
use proptest::collection::vec;
use proptest::prelude::*;

use super::configure;
use super::console::Console;

/// Answers that some question takes, and some that none does.
const ANSWERS: &[&str] = &[
    "",
    "",
    "",
    "y",
    "y",
    "n",
    "none",
    "multicast",
    "tcp, vsock",
    "serial",
    "vsock multicast tcp serial",
    "libvirt",
    "cpg,libvirt",
    "225.0.0.13",
    "ff05::9",
    "10.0.0.1",
    "::1",
    "1230",
    "70000",
    "lo",
    "nosuch0",
    "qemu:///x",
    "/proc/none/key",
    "relative",
    "vmchannel",
    "name",
    "uuid",
    "sha512",
    "hmac-sha256",
    "a\"b",
    "agent",
    "libvirt, agent",
    "a/b c",
    "fence_any",
    "/usr/sbin/fence_any",
    "*",
    "web1:101",
    "ip",
    "password",
    "action",
    "\u{fc}\u{1b}[31m",
];

const MODULES: &str = "multicast tcp vsock serial libvirt cpg agent";

const FILES: &[&str] = &[
    "",
    "# nothing\n",
    "fence_virtd {",
    "fence_virtd { }",
    "fence_virtd { listener = \"multicast\"; backend = \"libvirt\"; } # end without a line feed",
    "listeners { multicast { port = \"0\"; } }\r\n",
    "fence_virtd { listener = \"bogus\"; }\n",
    "fence_virtd { listener = \"tcp\"; }\nlisteners { tcp { family = \"ipv6\"; } }\nlisteners { tcp { hash = \
     \"x\"; } }\n",
    "FENCE_VIRTD { LISTENER = \"Serial, VSOCK\"; Backend = \"cpg\"; name_mode = \"name\"; }\nfuture { x = \
     \"1\"; }\n",
    "fence_virtd { }\nlisteners { multicast { key_file = \"/a\"; key_file = \"/b\"; interface = \"none\"; } \
     }\n\
     groups { group { ip = \"1.2.3.4\"; uuid = \"vm\"; } }\n",
    "fence_virtd { backend = \"agent\"; }\nbackends { agent { device = \"pool/1\" { agent = \
     \"fence_xenapi\"; plugs = \"*\"; \
     options { ip = \"::1\"; password = \"secret\"; login_file = \"/proc/none/login\"; } }\n\
     device = \" x \" { agent = \"/x\"; domain = \"d\" { plug = \"1\"; } } } }\n",
    "listeners = \"x\";\nbackends { libvirt = \"y\"; }\n",
];

/// Answers, then the defaults, then yes to the last question: whether that replaced the file. How many
/// defaults there are depends on file and answers; with too few the "y" answers another question, and nothing
/// is replaced.
fn with_defaults(path: &Path, answers: &[&str], terminal: bool) -> bool {
    (0..40).any(|count| {
        let script = format!("{}\n{}y\n", answers.join("\n"), "\n".repeat(count));
        let mut console = Console::scripted(&script, terminal);
        configure(path, MODULES, &mut console, |path| Err(KeygenError::Exists(path.to_owned()))).is_ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_worse(
        old in prop::option::of(prop::sample::select(FILES)),
        answers in vec(prop::sample::select(ANSWERS), 0..16),
        terminal in any::<bool>(),
    ) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.conf");
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
        }
        let replaced = with_defaults(&path, &answers, terminal);
        let new = fs::read(&path).ok();
        prop_assert_eq!(fs::read_dir(place.path()).unwrap().count(), usize::from(new.is_some()));
        if !replaced {
            prop_assert_eq!(new.as_deref(), old.map(str::as_bytes));
            return Ok(());
        }
        let new = new.unwrap();
        let loaded = load(&new);
        prop_assert!(loaded.tree.is_well_formed());
        // A file that served goes on to serve; one that was begun anew serves.
        let begun_anew = old.is_none_or(|it| !Tree::parse(it.as_bytes()).is_well_formed());
        if begun_anew || load(old.unwrap_or_default().as_bytes()).config.is_some() {
            prop_assert!(loaded.config.is_some(), "{}", loaded.render("x.conf", &new));
        }
        // Who takes every default the next time changes nothing; but what is not there has a default again.
        if loaded.config.is_some() && !answers.contains(&"none") {
            prop_assert!(with_defaults(&path, &[], false));
            prop_assert_eq!(fs::read(&path).unwrap(), new);
        }
    }
}
