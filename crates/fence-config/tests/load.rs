// SPDX-License-Identifier: GPL-2.0-or-later
//! Files and their results: values, defaults, and the literal text of errors.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::time::Duration;

use fence_config::*;

/// Loads a file that must have no diagnostics.
fn clean(source: &str) -> Config {
    let loaded = load(source.as_bytes());
    assert_eq!(loaded.render("test.conf", source.as_bytes()), "");
    loaded.config.unwrap()
}

/// Returns `line:column: severity: code: message` of every diagnostic.
fn found(source: impl AsRef<[u8]>) -> Vec<String> {
    let source = source.as_ref();
    let loaded = load(source);
    assert_eq!(loaded.tree.to_bytes(), source);
    let errors = loaded.diagnostics.iter().any(|it| it.severity == Severity::Error);
    assert_eq!(loaded.config.is_none(), errors);
    loaded
        .diagnostics
        .iter()
        .map(|found| {
            let Diagnostic { line, column, severity, code, message, .. } = found;
            format!("{line}:{column}: {severity}: {code}: {message}")
        })
        .collect()
}

fn only(source: impl AsRef<[u8]>) -> String {
    let mut found = found(source);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

#[test]
fn the_shipped_sample_has_nothing_to_complain_about() {
    let mut config = clean(include_str!("../../../etc/fence_virt.conf"));
    let Listener::Multicast(listener) = &mut config.listeners[0] else { panic!() };
    // The sample shows the default, so that people find the place.
    listener.keys.key_files_named = false;
    assert_eq!(config, clean("fence_virtd { listener = \"multicast\"; backend = \"libvirt\"; }"));
}

#[test]
fn the_usual_distribution_sample_loads() {
    let config = clean(
        "fence_virtd {\n\tlistener = \"multicast\";\n\tbackend = \"libvirt\";\n}\n\nlisteners {\n\
         \tmulticast {\n\
         \t\tkey_file = \"/etc/fence_virt.key\";\n\t\taddress = \"225.0.0.12\";\n\t\t# for some systems\n\
         \t\tinterface = \"virbr0\";\n\t}\n\n}\n\nbackends {\n\tlibvirt { \n\t\turi = \
         \"qemu:///system\";\n\t}\n\n}\n",
    );
    let Listener::Multicast(listener) = &config.listeners[0] else { panic!() };
    assert_eq!(listener.keys.key_files, [PathBuf::from("/etc/fence_virt.key")]);
    assert_eq!(listener.interface.as_deref(), Some("virbr0"));
    assert_eq!(config.groups, None);
}

#[test]
fn defaults() {
    let keys = KeySettings {
        key_files: vec!["/etc/cluster/fence_xvm.key".into()],
        key_files_named: false,
        hash: HashType::Sha256,
        auth: HashType::Sha256,
    };
    let config = clean("fence_virtd { listener = \"multicast, tcp vsock,serial\"; backend = \"libvirt\"; }");
    assert_eq!(
        config,
        Config {
            daemon: DaemonSection {
                listeners: vec![
                    ListenerKind::Multicast,
                    ListenerKind::Tcp,
                    ListenerKind::Vsock,
                    ListenerKind::Serial
                ],
                backends: vec![BackendKind::Libvirt],
                foreground: false,
                wait_for_init: false,
                debug: 0,
                module_path: None,
                name_mode: None,
                audit_log: None,
                state_dir: StateDir::Default,
                sandbox: true,
                strict_keys: false,
                metrics: None,
                client_timeout: Duration::from_secs(30),
                peers: Peers::Discovered,
                peer_key_file: None,
                peer_port: 1229,
                peer_down_command: None,
            },
            listeners: vec![
                Listener::Multicast(MulticastListener {
                    keys: keys.clone(),
                    family: Family::V4,
                    address: "225.0.0.12".parse().unwrap(),
                    port: 1229,
                    interface: None,
                    negative_delay: Duration::from_secs(2),
                }),
                Listener::Tcp(TcpListener {
                    keys: keys.clone(),
                    family: Family::V4,
                    address: "127.0.0.1".parse().unwrap(),
                    port: 1229,
                }),
                Listener::Vsock(VsockListener { keys: keys.clone(), port: 1229 }),
                Listener::Serial(SerialListener {
                    uri: "qemu:///system".to_owned(),
                    path: None,
                    mode: SerialMode::Serial,
                }),
            ],
            backends: vec![Backend::Libvirt(LibvirtBackend {
                uris: vec!["qemu:///system".to_owned()],
                reboot_starts: false
            }),],
            groups: None,
        }
    );
}

#[test]
fn defaults_of_cpg() {
    assert_eq!(
        clean("fence_virtd { backend = \"cpg\"; }").backends,
        [Backend::Cpg(CpgBackend {
            uris: vec!["qemu:///system".to_owned()],
            name_mode: NameMode::Uuid,
            reboot_starts: false,
            group: DEFAULT_GROUP.to_owned(),
            host_down: HostDown::Never,
        })]
    );
}

#[test]
fn every_key() {
    let source = r#"
        Fence_VirtD {
            LISTENER = "Multicast,tcp,vsock,serial"; backend = "cpg"; client_timeout = "90"; foreground = "1";
            wait_for_backend = "on"; debug = " 9 "; module_path = "/usr/lib"; name_mode = "name";
            audit_log = "/var/log/a"; state_dir = "/var/lib/b"; sandbox = "no"; strict_keys = "yes";
        }
        listeners {
            multicast {
                key_file = "/k1"; key_file = "/k2"; hash = "HMAC-sha256"; auth = "sha1"; family = "ipv6";
                address = "ff02::7"; port = "1"; interface = "none"; negative_delay = "0.25";
            }
            tcp { key_file = "/k3"; hash = "none"; auth = "none"; address = "::"; port = "65535"; }
            vsock { key_file = "/k4"; hash = "hmac-sha512"; auth = "sha512"; port = "1230"; }
            serial { uri = "qemu:///session"; path = "/run/s"; mode = "vmchannel"; }
        }
        backends {
            libvirt { uri2 = "c:///"; uri = "a:///"; uri10 = "d:///"; uri1 = "b:///"; reboot_starts = "yes"; }
            cpg { uri = "e:///"; group = "fence-virt"; reboot_starts = "yes"; host_down = "Command";
                  host_down_command = "/usr/bin/is-down"; }
        }
        groups {
            group { name = "g"; ip = "2001:DB8::0:1"; ip = "17"; ip = "10.0.0.1"; uuid = "vm1"; uuid = "vm 2";
                    key_file = "/k5"; }
            group = "h" { uuid = "x"; }
        }"#;
    let config = clean(source);
    let daemon = &config.daemon;
    assert!(daemon.foreground && daemon.wait_for_init);
    assert_eq!((daemon.debug, daemon.name_mode), (9, Some(NameMode::Name)));
    assert_eq!(daemon.audit_log, Some("/var/log/a".into()));
    assert_eq!(daemon.state_dir, StateDir::At("/var/lib/b".into()));
    assert!(!daemon.sandbox && daemon.strict_keys);
    let [
        Listener::Multicast(multicast),
        Listener::Tcp(tcp),
        Listener::Vsock(vsock),
        Listener::Serial(serial),
    ] = config.listeners.as_slice()
    else {
        panic!()
    };
    assert_eq!(multicast.keys.key_files, [PathBuf::from("/k1"), PathBuf::from("/k2")]);
    assert!(multicast.keys.key_files_named);
    assert_eq!((multicast.keys.hash, multicast.keys.auth), (HashType::HmacSha256, HashType::Sha1));
    assert_eq!((multicast.family, multicast.port), (Family::V6, 1));
    assert_eq!(multicast.address.to_string(), "ff02::7");
    assert_eq!((multicast.interface.as_ref(), multicast.negative_delay), (None, Duration::from_millis(250)));
    assert_eq!((tcp.family, tcp.port, tcp.keys.auth), (Family::V6, 65535, HashType::None));
    // The C daemon lets `auth` overwrite `hash` here.
    assert_eq!(
        (vsock.keys.hash, vsock.keys.auth, vsock.port),
        (HashType::HmacSha512, HashType::Sha512, 1230)
    );
    assert_eq!((serial.mode, serial.uri.as_str()), (SerialMode::Vmchannel, "qemu:///session"));
    assert_eq!(daemon.client_timeout, Duration::from_secs(90));
    let [Backend::Cpg(cpg)] = config.backends.as_slice() else { panic!() };
    let other = clean(&source.replace("backend = \"cpg\"", "backend = \"libvirt\"")).backends;
    let [Backend::Libvirt(libvirt)] = other.as_slice() else { panic!() };
    assert_eq!(libvirt.uris, ["a:///", "b:///", "c:///", "d:///"]);
    assert!(libvirt.reboot_starts);
    assert_eq!((cpg.uris[0].as_str(), cpg.name_mode), ("e:///", NameMode::Name));
    assert!(cpg.reboot_starts && cpg.group == "fence-virt");
    assert_eq!(cpg.host_down, HostDown::Command("/usr/bin/is-down".into()));
    let groups = config.groups.unwrap();
    assert_eq!(groups[0].ips, ["2001:db8::1", "17", "10.0.0.1"]);
    assert_eq!(groups[0].uuids, ["vm1", "vm 2"]);
    assert_eq!(groups[0].key_files, [PathBuf::from("/k5")]);
    assert_eq!(groups[1].name.as_deref(), Some("h"));
}

#[test]
fn the_state_may_be_kept_nowhere() {
    let of = |value| clean(&format!("fence_virtd {{ state_dir = \"{value}\"; }}")).daemon.state_dir;
    assert_eq!(of("None"), StateDir::Nowhere);
    assert_eq!(of("/x"), StateDir::At("/x".into()));
    assert!(only("fence_virtd { state_dir = \"x\"; }").contains("depends on the directory"));
}

#[test]
fn booleans() {
    for (word, value) in [("1", true), ("YES", true), ("true", true), ("on", true)].into_iter().chain([
        ("0", false),
        ("no", false),
        ("False", false),
        ("off", false),
    ]) {
        let config = clean(&format!("fence_virtd {{ foreground = \"{word}\"; }}"));
        assert_eq!(config.daemon.foreground, value);
    }
}

#[test]
fn messages_about_bad_values_name_the_allowed_ones() {
    for (key, value, allowed) in [
        ("port", "-1", "allowed: a number from 1 to 65535"),
        ("port", "0", "allowed: a number from 1 to 65535"),
        ("port", "70000", "allowed: a number from 1 to 65535"),
        ("port", "+5", "allowed: a number from 1 to 65535"),
        ("hash", "md5", "allowed: none, sha1, sha256, sha512, hmac-sha256, hmac-sha512"),
        ("auth", "hmac-sha256", "allowed: none, sha1, sha256, sha512"),
        ("family", "auto", "allowed: ipv4, ipv6"),
        ("address", "10.0.0.1", "allowed: a multicast address, 224.0.0.0 to 239.255.255.255 or ff00::/8"),
        ("address", "here", "allowed: an IP multicast address, such as 225.0.0.12"),
        (
            "interface",
            "br0 br1",
            "allowed: the name of one network interface, or none to let the system choose",
        ),
        ("negative_delay", "61", "allowed: seconds from 0 to 60, such as 2 or 0.5"),
        ("negative_delay", "1e1", "allowed: seconds from 0 to 60, such as 2 or 0.5"),
        ("key_file", "/a\0b", "allowed: a path, which cannot hold a NUL byte"),
    ] {
        let source = format!("fence_virtd {{}} listeners {{ multicast {{ {key} = \"{value}\"; }} }}");
        let loaded = load(source.as_bytes());
        assert!(loaded.config.is_none(), "{key} {value}");
        assert_eq!(loaded.diagnostics.len(), 1);
        let it = &loaded.diagnostics[0];
        assert_eq!((it.code, it.help.as_deref()), (DiagnosticCode::BadValue, Some(allowed)), "{key} {value}");
        assert_eq!(&source[it.span.start..it.span.end], format!("\"{value}\""));
    }
    let family = "fence_virtd {} listeners { multicast { family = \"ipv6\"; address = \"225.0.0.12\"; } }";
    assert_eq!(only(family), "1:67: error: bad-value: bad value \"225.0.0.12\" for `address`");
    let tcp = "fence_virtd { listener = \"tcp\"; } listeners { tcp { address = \"225.0.0.12\"; } }";
    assert!(only(tcp).contains("error: bad-value"));
    let host = "fence_virtd {} groups { group { ip = \"guest1\"; uuid = \"x\"; } }";
    assert!(only(host).contains("error: bad-value: bad value \"guest1\" for `ip`"));
}

#[test]
fn literal_report() {
    let source = b"fence_virtd {\n\tlistner = \"multicast\";\n}\nlisteners {\n\tmulticast {\n\t\tport = \
                   \"70000\";\n\t}\n}\n";
    let loaded = load(source);
    assert_eq!(
        loaded.render("/etc/fence_virt.conf", source),
        "\
warning[unknown]: unknown key `listner` in `fence_virtd`
 --> /etc/fence_virt.conf:2:2
  |
2 |     listner = \"multicast\";
  |     ^^^^^^^
  |
  = help: did you mean `listener`?

error[bad-value]: bad value \"70000\" for `port`
 --> /etc/fence_virt.conf:6:10
  |
6 |         port = \"70000\";
  |                ^^^^^^^
  |
  = help: allowed: a number from 1 to 65535"
    );
    assert_eq!(
        loaded.diagnostics[1].one_line("f"),
        "f:6:10: error: bad value \"70000\" for `port` (allowed: a number from 1 to 65535)"
    );
}

#[test]
fn text_of_the_file_is_escaped() {
    let source = b"fence_virtd { d\x1b[2J\xff\xc3\xa9 = \"x\"; \x07 = \"\"; }";
    let loaded = load(source);
    assert_eq!(
        loaded.render("a\nb\x1b.conf", source),
        "\
warning[unknown]: unknown key `d\\u{1b}[2J\\xffé` in `fence_virtd`
 --> a\\nb\\u{1b}.conf:1:15
  |
1 | fence_virtd { d\\u{1b}[2J\\xffé = \"x\"; \\u{7} = \"\"; }
  |               ^^^^^^^^^^^^^^^

warning[unknown]: unknown key `\\u{7}` in `fence_virtd`
 --> a\\nb\\u{1b}.conf:1:30
  |
1 | fence_virtd { d\\u{1b}[2J\\xffé = \"x\"; \\u{7} = \"\"; }
  |                                      ^^^^^

error[empty-value]: `\\u{7}` has an empty value
 --> a\\nb\\u{1b}.conf:1:34
  |
1 | fence_virtd { d\\u{1b}[2J\\xffé = \"x\"; \\u{7} = \"\"; }
  |                                              ^^"
            .to_owned()
            + "\n  |\n  = help: leave the line out to have the default"
    );
}

#[test]
fn many_errors_in_one_pass_without_noise() {
    let source = r#"fence_virtd {
	listener = multicast;
	backend = "libvirt"
	debug = "much";
	foreground;
}
};
listeners {
	multicast {
		port = "1229;
		address = "225.0.0.12";
		hash = "sha3";
		auth "sha1";
		{ x = "1"; }
	}
backends {
	libvirt { uri = ""; }
}
"#;
    assert_eq!(
        found(source),
        [
            "2:13: error: unquoted-value: the value of `listener` is not in quotes",
            "3:21: error: missing-semicolon: `;` is missing behind the value of `backend`",
            "4:10: error: bad-value: bad value \"much\" for `debug`",
            "5:2: error: unexpected: `foreground` is neither a key with a value nor a block",
            "7:1: error: stray-brace: this `}` closes no block",
            "7:2: error: unexpected: this `;` ends nothing",
            "8:11: error: unclosed-block: the block `listeners` is not closed",
            "10:10: error: missing-quote: the value of `port` has no closing quote",
            "12:10: error: bad-value: bad value \"sha3\" for `hash`",
            "13:3: error: unexpected: `auth` is neither a key with a value nor a block",
            "14:3: error: unexpected: this block has no name",
            "16:1: warning: unknown: unknown block `backends` in `listeners`",
            "17:18: error: empty-value: `uri` has an empty value",
        ]
    );
}

#[test]
fn grammar_corners() {
    // The C daemon accepts all of these too.
    let config = clean("fence_virtd # c\n { # c\n debug # c = \n = # \"9\"\n \"3\" # c\n ; }#end");
    assert_eq!(config.daemon.debug, 3);
    clean("fence_virtd{foreground=\"1\";debug=\"2\";}");
    assert_eq!(only("a#b{c#d=\"1\";} fence_virtd {}"), "1:1: warning: unknown: unknown block `a#b`");
    let multi = clean("fence_virtd { listener = \"tcp,\n  vsock\"; }");
    assert_eq!(multi.daemon.listeners, [ListenerKind::Tcp, ListenerKind::Vsock]);
    // The last key counts, and only the last block: the port is the default.
    let source = "fence_virtd { listener = \"tcp\"; debug = \"1\"; DEBUG = \"2\"; }
        listeners { tcp { port = \"5\"; } tcp { address = \"::1\"; } }";
    let config = load(source.as_bytes()).config.unwrap();
    assert_eq!(config.daemon.debug, 2);
    let Listener::Tcp(tcp) = &config.listeners[0] else { panic!() };
    assert_eq!((tcp.port, tcp.family), (1229, Family::V6));
    assert_eq!(
        found(source),
        [
            "1:33: warning: repeated: `debug` has no effect: it comes again below, and the last one counts",
            "2:21: warning: repeated: `tcp` has no effect: it comes again below, and the last one counts",
        ]
    );
}

#[test]
fn files_of_other_systems() {
    clean("\u{feff}fence_virtd {\r\n\tdebug = \"1\";\r\n}\r\n# end\r\n");
    assert_eq!(
        only("# comment\r\n\r\nfence_virtd { port = \"1\";\r\n}\r\n").split(": ").next(),
        Some("3:15")
    );
    let bytes = b"fence_virtd { audit_log = \"/\xff\xfe\"; } # \xff\n";
    let path = load(bytes).config.unwrap().daemon.audit_log.unwrap();
    assert_eq!(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), b"/\xff\xfe");
    // A byte that is no character counts as one.
    assert!(only(b"fence_virtd { } \xff\xc3\xa9{} # \xff").starts_with("1:17: warning"));
    assert!(only(b"fence_virtd { } # \xff\n \xc3\xa9\t{} # \xff").starts_with("2:2: warning"));
}

#[test]
fn nothing_at_all_is_an_error() {
    for source in ["", "\n", "# only this", "\u{feff}"] {
        assert_eq!(
            only(source),
            "1:1: error: empty-file: there is nothing in the file but blanks and comments"
        );
    }
    assert!(only("listeners { }").starts_with("1:1: warning: no-daemon-block"));
}

#[test]
fn groups_that_allow_no_source() {
    let source = "fence_virtd { } groups { }";
    assert!(only(source).starts_with("1:17: warning: empty-group: `groups` has no group"));
    assert_eq!(load(source.as_bytes()).config.unwrap().groups, Some(vec![]));
    assert!(
        only("fence_virtd { } groups { group { name = \"x\"; } }").starts_with("1:26: warning: empty-group")
    );
    assert_eq!(only("fence_virtd { } groups = \"x\";"), "1:17: error: wrong-kind: `groups` is a block");
}

#[test]
fn unknown_names_warn_and_suggest() {
    for (source, help) in [
        ("fence_virtd { Wait-For-Init = \"1\"; }", Some("did you mean `wait_for_init`?")),
        ("fence_virtd { } listners { }", Some("did you mean `listeners`?")),
        (
            "fence_virtd { port = \"1\"; }",
            Some("`port` belongs into listeners/multicast, listeners/tcp, listeners/vsock"),
        ),
        (
            "fence_virtd { backends { } }",
            Some("`backends` belongs to the top level; is a `}` missing above?"),
        ),
        ("fence_virtd { zzz = \"1\"; }", None),
        ("fence_virtd { } backends { libvirt { uri0 = \"x\"; } }", Some("did you mean `uri`?")),
    ] {
        let loaded = load(source.as_bytes());
        assert!(loaded.config.is_some());
        assert_eq!(loaded.diagnostics.len(), 1, "{source}");
        assert_eq!(loaded.diagnostics[0].severity, Severity::Warning);
        assert_eq!(loaded.diagnostics[0].help.as_deref(), help, "{source}");
    }
    let loaded = load(b"fence_virtd { listener = \"tcp, multicst\"; }");
    assert_eq!(
        loaded.diagnostics[0].help.as_deref(),
        Some("did you mean multicast? allowed: multicast, tcp, vsock, serial")
    );
    assert!(loaded.config.is_none());
    assert!(only("fence_virtd { listener = \" , \"; }").contains("error: bad-value"));
}

#[test]
fn lost_groups_are_an_error() {
    let group = "{ group { ip = \"10.0.0.1\"; uuid = \"a\"; } }";
    for name in [
        "\u{a0}groups",
        "groups\u{a0}",
        "gr\u{200b}oups",
        "\u{feff}groups",
        "gr\u{43e}ups",
        "group",
        "Group",
        "GROUP",
        "gruops",
        "grops",
        "groupes",
        "grou\u{440}s",
        "groups_",
        "groups:",
    ] {
        let found = only(format!("fence_virtd {{ }}\n{name} {group}"));
        assert!(found.starts_with("2:1: error: unknown: unknown block `"), "{name}: {found}");
        assert!(found.contains("everybody with the key may fence everything"), "{name}: {found}");
    }
    // In the wrong place, in a block that is unknown itself, and one group among others.
    for source in [
        format!("fence_virtd {{ groups {group} }}"),
        format!("fence_virtd {{ }} listeners {{ multicast {{ }} groups {group} }}"),
        format!("fence_virtd {{ }} old_groupings {{ x {{ groups {group} }} }}"),
        "fence_virtd { } groups { \u{a0}group { } group { ip = \"10.0.0.1\"; } }".to_owned(),
    ] {
        assert!(only(&source).contains("error: unknown"), "{source}");
    }
    // In wrong case it is the block; other names stay without effect.
    assert!(clean(&format!("fence_virtd {{ }} GROUPS {group}")).groups.is_some());
    for other in ["access", "ggroupss", "grp"] {
        assert!(
            only(format!("fence_virtd {{ }} {other} {group}").replace("group {", "g {"))
                .contains("warning: unknown")
        );
    }
}

#[test]
fn characters_that_mislead_are_shown_and_named() {
    let source = "fence_virtd { }\n\u{a0}groups { }";
    assert_eq!(
        load(source.as_bytes()).render("f", source.as_bytes()),
        "error[unknown]: unknown block `\\u{a0}groups`: without `groups`, everybody with the key may fence \
         everything
 --> f:2:1
  |
2 | \\u{a0}groups { }
  | ^^^^^^^^^^^^
  |
  = help: write groups; remove or replace in it: U+00A0 (no-break space)"
    );
    let help = |source: &str| load(source.as_bytes()).diagnostics[0].help.clone().unwrap();
    for (quoted, named) in [
        ("\u{201c}1229\u{201d}", "U+201C (left double quote), U+201D (right double quote)"),
        ("'1229'", "apostrophe"),
        ("\u{a0}1229", "U+00A0 (no-break space)"),
    ] {
        let source = |value: &str| {
            format!("fence_virtd {{ listener = \"tcp\"; }} listeners {{ tcp {{ port = {value}; }} }}")
        };
        assert_eq!(help(&source(quoted)), format!("write \"1229\"; not this: {named}"));
        clean(&source("\"1229\""));
    }
    assert_eq!(
        help("fence_virtd { \u{a0}listener = \"tcp\"; }"),
        "remove or replace in it: U+00A0 (no-break space); did you mean `listener`?"
    );
    assert_eq!(help("fence_virtd { \u{3000}\n}"), "remove or replace in it: U+3000 (ideographic space)");
}

#[test]
fn the_block_of_another_backend_is_told_to_be_unused() {
    let cpg = "fence_virtd { backend = \"cpg\"; }";
    let found = |backends: &str| found(format!("{cpg}\nbackends {{ {backends} }}"));
    assert_eq!(
        found("libvirt { uri = \"qemu:///system\"; }"),
        ["2:12: warning: no-effect: the block `libvirt` is not used with backend = \"cpg\", which has no \
          block of its own: its uri is \"qemu:///system\""]
    );
    for good in ["cpg { } libvirt { }", "cpg { uri = \"qemu:///system\"; }", ""] {
        assert_eq!(found(good), [""; 0], "{good}");
    }
}

#[test]
fn blocks_not_in_use_only_warn() {
    let source = "fence_virtd { listener = \"tcp\"; } listeners { vsock { port = \"0\"; } } backends { cpg \
                  { name_mode = \"x\"; } }";
    assert_eq!(
        found(source),
        [
            "1:62: warning: bad-value: bad value \"0\" for `port`",
            "1:100: warning: bad-value: bad value \"x\" for `name_mode`",
        ]
    );
}

#[test]
fn peers_are_none_or_addresses() {
    let peers = |keys: &str| clean(&format!("fence_virtd {{ {keys} }}")).daemon;
    let listed = |keys: &str| match peers(keys).peers {
        Peers::Listed(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(peers("").peers, Peers::Discovered);
    assert_eq!(peers("peers = \" None \";").peers, Peers::Nobody);
    assert_eq!(
        listed("peers = \"10.0.0.2, 10.0.0.3:1230 fd00::4,[fd00::5]:7\";"),
        ["10.0.0.2:1229", "10.0.0.3:1230", "[fd00::4]:1229", "[fd00::5]:7"]
    );
    assert_eq!(listed("peers = \"10.0.0.2, 10.0.0.3:1230\"; peer_port = \"99\";")[0], "10.0.0.2:99");
    let all = peers(
        "peers = \"10.0.0.2\"; peer_key_file = \"/k\"; peer_port = \"99\"; peer_down_command = \"/c\";",
    );
    assert_eq!(all.peer_key_file.as_deref(), Some(std::path::Path::new("/k")));
    assert_eq!(all.peer_down_command.as_deref(), Some(std::path::Path::new("/c")));
    assert_eq!(all.peer_port, 99);
}

#[test]
fn bad_peers_are_named_with_their_place() {
    let found = |keys: &str| only(format!("fence_virtd {{\n{keys} }}"));
    for bad in ["h2", "10.0.0.256", "225.0.0.12", "0.0.0.0", "255.255.255.255", "10.0.0.2:0", "::", "[::1]"] {
        assert_eq!(
            found(&format!("peers = \"10.0.0.9, {bad}\";")),
            format!("2:9: error: bad-value: \"{bad}\" in `peers` is no address of a host")
        );
    }
    assert!(found("peers = \" , \";").contains("bad-value"));
    let many: Vec<_> = (1..=MAX_PEERS + 1).map(|it| format!("10.0.0.{it}")).collect();
    assert!(found(&format!("peers = \"{}\";", many.join(","))).contains("bad-value"));
    assert!(
        found("peers = \"10.0.0.2,10.0.0.2\";").contains("warning: repeated: `peers` names 10.0.0.2:1229")
    );
    assert_eq!(
        found("peers = \"10.0.0.2\"; listener = \"serial\";"),
        "2:9: error: bad-value: `peers` needs `peer_key_file`: no listener here has a key that could be used"
    );
    clean("fence_virtd { peers = \"10.0.0.2\"; listener = \"serial\"; peer_key_file = \"/k\"; }");
    assert_eq!(
        found("peers = \"none\"; peer_down_command = \"/c\";"),
        "2:17: warning: no-effect: `peer_down_command` has no effect with peers = \"none\""
    );
    assert_eq!(
        found("peer_port = \"77\";"),
        "2:1: warning: no-effect: `peer_port` has no effect without `peers`"
    );
}

#[test]
fn host_down_needs_its_command() {
    let cpg = |keys: &str| format!("fence_virtd {{ backend = \"cpg\"; }} backends {{ cpg {{ {keys} }} }}");
    let host_down = |keys: &str| match clean(&cpg(keys)).backends.as_slice() {
        [Backend::Cpg(backend)] => backend.host_down.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(host_down(""), HostDown::Never);
    assert_eq!(host_down("host_down = \"pacemaker\";"), HostDown::Pacemaker);
    assert_eq!(host_down("host_down = \"membership\";"), HostDown::Membership);
    assert_eq!(
        only(cpg("host_down = \"command\";")),
        "1:63: error: bad-value: host_down = \"command\" needs `host_down_command`"
    );
    assert_eq!(
        only(cpg("host_down_command = \"/x\";")),
        "1:51: warning: no-effect: `host_down_command` has no effect with host_down = \"never\""
    );
    let long = "g".repeat(MAX_GROUP_NAME + 1);
    for name in ["a b", "\u{e4}", long.as_str()] {
        assert!(only(cpg(&format!("group = \"{name}\";"))).contains("error: bad-value"), "{name}");
    }
}

#[test]
fn depth_and_size_have_limits() {
    let deep = |depth: usize| "a{".repeat(depth) + &"}".repeat(depth) + "fence_virtd{}";
    assert!(only(deep(MAX_DEPTH)).contains("unknown block `a`"));
    assert!(found(deep(MAX_DEPTH + 1))[1].contains("error: too-deep: more than 32 blocks"));
    assert_eq!(found(deep(300_000)).len(), 2);
    assert!(only("{".repeat(1_000_000)).contains("this block has no name"));
    assert_eq!(found("a{".repeat(500_000)).len(), 3);
    assert!(only("x".repeat(MAX_FILE_SIZE + 1)).contains("error: file-too-long"));
    let many = found(";".repeat(MAX_FILE_SIZE));
    assert_eq!(many.len(), MAX_DIAGNOSTICS + 1);
    assert!(many[MAX_DIAGNOSTICS].ends_with("1048476 further errors and warnings are not shown"));
}

#[test]
fn every_configuration_in_the_pages_is_good() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut seen = 0;
    for page in std::fs::read_dir(docs).unwrap() {
        let page = page.unwrap().path();
        if page.extension().is_none_or(|it| it != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        let fenced = text.split("```").skip(1).step_by(2).map(str::to_owned);
        // The page about the C programs shows a sketch of their grammar, which is no file.
        let sketch = page.ends_with("reference.md");
        let devices = indented(&text).into_iter().filter(|_| !sketch).map(|block| {
            match block.starts_with("device = ") {
                true => {
                    format!("fence_virtd {{ backend = \"agent\"; }}\nbackends {{ agent {{\n{block}\n}} }}\n")
                }
                false => block,
            }
        });
        for block in fenced.chain(devices).filter(|it| it.trim_start().starts_with("fence_virtd {")) {
            let loaded = load(block.as_bytes());
            let said: Vec<_> =
                loaded.diagnostics.iter().map(|it| it.render("block", block.as_bytes())).collect();
            assert!(said.is_empty() && loaded.config.is_some(), "{}: {}", page.display(), said.join("\n"));
            seen += 1;
        }
    }
    assert!(seen >= 12, "{seen} configurations found");
}

/// Blocks of code by indentation.
fn indented(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(line), Some(block)) => *block += &format!("{line}\n"),
            (None, Some(block)) if line.is_empty() && !block.is_empty() => block.push('\n'),
            _ => blocks.push(String::new()),
        }
    }
    blocks
}

/// Returns the agent backend of a file whose block `agent` holds this text.
fn agents(block: &str) -> AgentBackend {
    let source = format!("fence_virtd {{ backend = \"agent\"; }}\nbackends {{ agent {{\n{block}\n}} }}\n");
    let Backend::Agent(backend) = clean(&source).backends.remove(0) else { panic!() };
    backend
}

/// Returns the diagnostics for a file whose block `agent` holds this text, from line 3 on.
fn wrong_agents(block: &str) -> Vec<String> {
    found(format!("fence_virtd {{ backend = \"agent\"; }}\nbackends {{ agent {{\n{block}\n}} }}\n"))
}

#[test]
fn devices() {
    let all = agents(
        "max_running = \"8\"; reboot_starts = \"yes\";\n\
         device = \"second\" { agent = \"/opt/fence/agent\"; plugs = \"*\"; order = \"2\"; timeout = \"90\"; \
         status_timeout = \"5\"; retries = \"0\"; max_running = \"1\"; plug_option = \"systems_uri\"; }\n\
         device = \"first\" { agent = \"fence_redfish\"; plugs = \"a, b:1:2\n c\"; order = \"1\"; \
         options { ip = \"192.0.2.1\"; password = \" pass word\"; password = \"#1;\"; ssl-insecure = \"1\"; \
         }\n\
         domain = \"Web 1\" { plug = \"9\"; uuid = \"5A40A06F1a5b4d2e9d2c8b3f0b1f4f1c\"; } domain = \"d,e\" \
         { } }\n"
            .replace(" password = \"#1;\";", "")
            .as_str(),
    );
    assert_eq!((all.max_running, all.reboot_starts), (8, true));
    let [first, second] = &all.devices[..] else { panic!("{all:?}") };
    let plug = |domain: &str, plug: &str, uuid: Option<&str>| DomainPlug {
        domain: domain.to_owned(),
        plug: plug.to_owned(),
        uuid: uuid.map(str::to_owned),
        sources: Vec::new(),
    };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("first", "second"));
    assert_eq!(first.agent, AgentProgram::Named("fence_redfish".to_owned()));
    assert_eq!(second.agent, AgentProgram::At("/opt/fence/agent".into()));
    assert!(!first.plugs.listed && second.plugs.listed);
    assert_eq!(
        first.plugs.named,
        [
            plug("a", "a", None),
            plug("b", "1:2", None),
            plug("c", "c", None),
            plug("Web 1", "9", Some("5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c")),
            plug("d,e", "d,e", None)
        ]
    );
    let options: Vec<_> = first.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(options, [("ip", "192.0.2.1"), ("password", " pass word"), ("ssl-insecure", "1")]);
    assert_eq!(
        (second.timeout, second.status_timeout, second.retries, second.max_running),
        (Some(Duration::from_secs(90)), Duration::from_secs(5), 0, 1)
    );
    assert_eq!(second.plug_option.as_deref(), Some("systems_uri"));
    assert_eq!((first.timeout, first.retries, first.max_running), (None, 1, 4));
    assert_eq!(first.status_timeout, Duration::from_secs(10));
}

#[test]
fn sources_are_addresses_of_cards() {
    let file = |first: &str, second: &str| {
        format!(
            "device = \"d\" {{ agent = \"a\";\ndomain = \"x\" {{ source = \"{first}\"; }}\n\
             domain = \"y\" {{ source = \"{second}\"; }} }}"
        )
    };
    let all = agents(&file(" 52:54:00:AB:cd:01,\n02:00:00:00:00:02 ", "52:54:00:ab:cd:03"));
    let named = &all.devices[0].plugs.named;
    assert_eq!(named[0].sources, ["52:54:00:ab:cd:01", "02:00:00:00:00:02"]);
    assert_eq!(named[1].sources, ["52:54:00:ab:cd:03"]);
    let bad = "4:25: error: bad-value: bad value ";
    for wrong in [
        "10.0.0.1",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:01:02",
        "52:54:00:ab:cd:+1",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
        "52:54:00:ab:cd:01, node1",
    ] {
        let found = wrong_agents(&file(wrong, "52:54:00:ab:cd:03"));
        assert!(found.len() == 1 && found[0].starts_with(bad), "{wrong}: {found:?}");
    }
    // The same card twice tells neither.
    let both = wrong_agents(&file("52:54:00:ab:cd:03", "52:54:00:AB:CD:03"));
    assert_eq!(both.len(), 1);
    assert!(
        both[0].ends_with("the domains \"x\" and \"y\" have the same source 52:54:00:ab:cd:03"),
        "{both:?}"
    );
}

#[test]
fn values_of_agent_options_are_not_shown() {
    let all =
        agents("device = \"d\" { agent = \"a\"; plugs = \"p\"; options { password = \"open sesame\"; } }");
    let shown = format!("{all:?} {}", serde_json::to_string(&all).unwrap());
    assert!(!shown.contains("sesame"), "{shown}");
    let bad = "device = \"d\" { agent = \"a\"; plugs = \"p\"; options { password = \"open\nsesame\"; } }";
    assert_eq!(wrong_agents(bad), ["3:63: error: bad-value: bad value for `password`"]);
    for (name, secret) in [
        ("password", true),
        ("passwd", true),
        ("snmp_priv_passwd", true),
        ("API_KEY", true),
        ("token_secret", true),
        ("username", false),
        ("ip", false),
    ] {
        assert_eq!(is_secret_option(name), secret, "{name}");
    }
}

/// Errors and warnings go to the log, and must show no password there, whatever is wrong with its line.
#[test]
fn a_mistake_in_a_secret_is_reported_without_it() {
    let file = |line: &str| {
        format!(
            "fence_virtd {{ listener = \"multicast\"; backend = \"agent\"; }}\nbackends {{ agent {{ device \
             = \"d\" {{\n\
             agent = \"fence_x\";\nplugs = \"a\";\n{line}\n}} }} }}\n"
        )
    };
    for line in [
        "options { password = \"hunter2\" bogus; }",
        "options { password = \"hunter2; }",
        "options { password = hunter2; }",
        "options { password = hunter2 hunter2; }",
        "options { password = \"hunter2\" }",
        "options { password = \"hunter2\u{7}\"; }",
        "options { password = \"a\"; password = \"hunter2\"; }",
        "options { secret_key = \"a\"; secret_key = \"hunter2\"; }",
        "optionz { api-token = \"hunter2\"; }",
        "options { pass word = \"hunter2\"; }",
        "options { password \"hunter2\"; }",
        "password = \"hunter2\";",
        "passwd = \"hunter2\";",
        "options { username = \"x; password = \"hunter2\"; }",
    ] {
        let source = file(line);
        let loaded = load(source.as_bytes());
        assert!(!loaded.diagnostics.is_empty(), "{line}");
        for found in &loaded.diagnostics {
            let texts = [found.render("f", source.as_bytes()), found.one_line("f"), found.message.clone()];
            let text = texts.join("\n");
            assert!(!text.contains("hunter2"), "{line}: {text}");
        }
    }
    // Text that only looks like a secret is shown.
    let source = file("options { password_file = \"relative\" }\nkey_file = \"x\";");
    let said = load(source.as_bytes()).render("f", source.as_bytes());
    assert!(said.contains("password_file = \"relative\" }"), "{said}");
}

#[test]
fn devices_that_can_not_be() {
    let device = |body: &str| wrong_agents(&format!("device = \"d\" {{ {body} }}"));
    let one = |body: &str| {
        let mut found = device(body);
        assert_eq!(found.len(), 1, "{body}: {found:?}");
        let (place, message) = found[0].split_once(": error: bad-value: ").unwrap();
        assert!(place.starts_with("3:"), "{place}");
        let message = message.to_owned();
        found.clear();
        message
    };
    assert_eq!(one("plugs = \"a\";"), "a device needs an agent");
    assert_eq!(one("agent = \"a\";"), "a device needs the domains that it serves");
    for agent in ["sbin/fence", "./fence", "..", "."] {
        assert_eq!(
            one(&format!("agent = \"{agent}\"; plugs = \"a\";")),
            format!("bad value \"{agent}\" for `agent`")
        );
    }
    for plugs in ["a:", ":b", "a, *", ",", "a b:"] {
        assert_eq!(
            one(&format!("agent = \"a\"; plugs = \"{plugs}\";")),
            format!("bad value \"{plugs}\" for `plugs`")
        );
    }
    assert_eq!(one("agent = \"a\"; plugs = \"a a\";"), "the device has a domain \"a\" already");
    assert_eq!(one("agent = \"a\"; plugs = \"a:1 b:1\";"), "domain \"b\" has the plug \"1\" of \"a\"");
    assert_eq!(
        one("agent = \"a\"; plugs = \"a\"; domain = \"a\" { plug = \"2\"; }"),
        "the device has a domain \"a\" already"
    );
    assert_eq!(one("agent = \"a\"; domain { plug = \"2\"; }"), "the block `domain` needs a name");
    for option in ["action", "PLUG", "port", "option", "nodename"] {
        let said = one(&format!("agent = \"a\"; plugs = \"a\"; options {{ {option} = \"off\"; }}"));
        assert_eq!(said, format!("`{option}` is set by fence_virtd for each run"));
    }
    assert_eq!(
        one("agent = \"a\"; plugs = \"a\"; plug_option = \"uri\"; options { uri = \"/1\"; }"),
        "`uri` is set by fence_virtd for each run"
    );
    assert_eq!(one("agent = \"a\"; plugs = \"a\"; options { a/b = \"1\"; }"), "no agent has an option `a/b`");
    for (key, value) in [
        ("plug_option", "action"),
        ("order", "10000"),
        ("timeout", "0"),
        ("timeout", "601"),
        ("status_timeout", "61"),
        ("effect_timeout", "601"),
        ("retries", "10"),
        ("max_running", "0"),
        ("max_running", "65"),
    ] {
        let said = one(&format!("agent = \"a\"; plugs = \"a\"; {key} = \"{value}\";"));
        assert_eq!(said, format!("bad value \"{value}\" for `{key}`"));
    }
    assert_eq!(one("agent = \"a\"; domain = \"a\" { uuid = \"1234\"; }"), "bad value \"1234\" for `uuid`");
    assert_eq!(wrong_agents(""), ["2:12: error: bad-value: backend agent has no device"]);
    let twice =
        "device = \"d\" { agent = \"a\"; plugs = \"a\"; }\ndevice = \"d\" { agent = \"a\"; plugs = \"b\"; }";
    assert_eq!(wrong_agents(twice), ["4:1: error: bad-value: there is a device \"d\" already"]);
    assert_eq!(
        only("fence_virtd { backend = \"agent\"; }"),
        "1:1: error: bad-value: backend agent has no device"
    );
}

#[test]
fn an_option_in_the_wrong_place_is_told_the_right_one() {
    let source = "fence_virtd { backend = \"agent\"; } backends { agent { device = \"d\" { agent = \"a\"; \
                  plugs = \"a\"; \
                  username = \"root\"; } } }";
    let loaded = load(source.as_bytes());
    assert_eq!(loaded.diagnostics.len(), 1);
    assert_eq!(
        loaded.diagnostics[0].help.as_deref(),
        Some("an option of the agent belongs into options { username = … }")
    );
}

#[test]
fn libvirt_and_cpg_are_one_backend() {
    assert_eq!(
        only("fence_virtd { backend = \"libvirt, cpg\"; }"),
        "1:25: error: bad-value: backend cpg has this host's libvirt in it: libvirt can't be named beside it"
    );
    assert_eq!(
        clean(
            "fence_virtd { backend = \"cpg, agent\"; } backends { agent { device = \"d\" { agent = \"a\"; \
               plugs = \"*\"; } } }"
        )
        .backends
        .iter()
        .map(Backend::kind)
        .collect::<Vec<_>>(),
        [BackendKind::Cpg, BackendKind::Agent]
    );
}

#[test]
fn several_multicast_blocks() {
    let text = |listener: &str, blocks: &str| {
        format!("fence_virtd {{\nlistener = \"{listener}\"; }} listeners {{\n{blocks}\n}}")
    };
    let two = "multicast { interface = \"br0\"; }\n\
               multicast { interface = \"br1\"; port = \"1230\"; hash = \"sha1\"; }";
    // Each is served where it is named for each; alone, the last one counts as with the C daemon.
    let config = clean(&text("multicast, tcp, multicast", two));
    let names: Vec<_> = config.listeners.iter().map(|it| config.name_of(it)).collect();
    assert_eq!(names, ["multicast br0 225.0.0.12:1229", "tcp", "multicast br1 225.0.0.12:1230"]);
    let loaded = load(text("multicast", two).as_bytes());
    let last = loaded.config.unwrap();
    let places: Vec<_> = last.multicasts().map(MulticastListener::place).collect();
    assert_eq!(places, ["br1 225.0.0.12:1230"]);
    assert_eq!(last.name_of(&last.listeners[0]), "multicast");
    assert_eq!(loaded.diagnostics.len(), 1, "{:?}", loaded.diagnostics);
    assert!(loaded.diagnostics[0].help.as_ref().unwrap().contains("listener = \"multicast, multicast\""));
    // One block, named twice: as always, with a warning.
    for blocks in ["", "multicast { interface = \"br0\"; }"] {
        let loaded = load(text("multicast, multicast", blocks).as_bytes());
        assert_eq!(loaded.config.unwrap().listeners.len(), 1);
        assert_eq!(loaded.diagnostics.len(), 1);
    }
    for (listener, blocks, said) in [
        ("multicast, multicast, multicast", two, "names multicast 3 times, and there are 2 blocks"),
        (
            "multicast, multicast",
            "multicast { }\nmulticast { interface = \"br1\"; }",
            "an earlier block hears too",
        ),
        (
            "multicast, multicast",
            "multicast { interface = \"br1\"; }\nmulticast { interface = \"br1\"; hash = \"sha512\"; }",
            "an earlier block hears too",
        ),
    ] {
        let loaded = load(text(listener, blocks).as_bytes());
        assert!(loaded.config.is_none());
        assert!(loaded.diagnostics.iter().any(|it| it.message.contains(said)), "{:?}", loaded.diagnostics);
    }
    // Another group or port at the same interface is no conflict.
    for other in ["address = \"225.0.0.13\";", "port = \"1230\";", "family = \"ipv6\";"] {
        let blocks =
            format!("multicast {{ interface = \"br0\"; }}\nmulticast {{ interface = \"br0\"; {other} }}");
        assert_eq!(clean(&text("multicast, multicast", &blocks)).listeners.len(), 2, "{other}");
    }
}
