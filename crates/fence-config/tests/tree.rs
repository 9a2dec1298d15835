// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests of the tree: it writes back what it read, lays a file out anew, and edits without touching the rest.
#![allow(clippy::unwrap_used)]

use fence_config::{EditError, Tree, load};
use proptest::prelude::*;

const FILE: &str = "# top\nfence_virtd {\n  listener = \"multicast\"; # how\n}\n\nother = \"x\" { a{} } # \
                    odd\n\
                    listeners {\n  multicast {\n    # key\n    key_file = \"/k1\";\n    key_file = \
                    \"/k2\";\n  }\n}\n# end\n";

#[test]
fn set_changes_one_value() {
    let mut tree = Tree::parse(FILE.as_bytes());
    tree.set("fence_virtd/Listener", b"tcp").unwrap();
    assert_eq!(String::from_utf8(tree.to_bytes()).unwrap(), FILE.replace("\"multicast\"", "\"tcp\""));
    assert_eq!(tree.value("FENCE_VIRTD/listener"), Some(b"tcp".as_slice()));
}

#[test]
fn set_adds_keys_and_blocks() {
    let mut tree = Tree::parse(FILE.as_bytes());
    tree.set("listeners/multicast/port", b"1230").unwrap();
    tree.set("backends/libvirt/uri", b"qemu:///session").unwrap();
    assert_eq!(
        String::from_utf8(tree.to_bytes()).unwrap(),
        FILE.replace("\"/k2\";\n", "\"/k2\";\n    port = \"1230\";\n")
            + "\nbackends {\n\tlibvirt {\n\t\turi = \"qemu:///session\";\n\t}\n}\n"
    );
}

#[test]
fn set_in_files_of_one_line_and_in_nothing() {
    let mut tree = Tree::parse(b"a { b = \"1\"; }");
    tree.set("a/c", b"2").unwrap();
    tree.set("d", b"3").unwrap();
    let text = String::from_utf8(tree.to_bytes()).unwrap();
    let again = Tree::parse(text.as_bytes());
    assert_eq!(again.value("a/b"), Some(b"1".as_slice()), "{text}");
    assert_eq!(again.value("a/c"), Some(b"2".as_slice()), "{text}");
    assert_eq!(again.value("d"), Some(b"3".as_slice()), "{text}");

    let mut tree = Tree::default();
    tree.set("fence_virtd/listener", b"tcp").unwrap();
    assert_eq!(tree.to_bytes(), b"fence_virtd {\n\tlistener = \"tcp\";\n}\n");
}

#[test]
fn set_behind_a_comment_without_line_feed() {
    let mut tree = Tree::parse(b"a{} # end");
    tree.set("b", b"1").unwrap();
    assert_eq!(Tree::parse(&tree.to_bytes()).value("b"), Some(b"1".as_slice()));
    let mut tree = Tree::parse(b"a {\r\n\tb = \"1\";\r\n}\r\n");
    tree.set("a/c", b"2").unwrap();
    assert_eq!(tree.to_bytes(), b"a {\r\n\tb = \"1\";\r\n\tc = \"2\";\r\n}\r\n");
}

#[test]
fn blocks_with_values() {
    let source = "backends { agent {\n\tdevice = \" a/1 \" { options { ip = \"x\"; IP = \"y\"; b_file = \
                  \"/z\"; } }\n\
                  \tdevice { }\n\tdevice = \"b\" { order = \"1\"; }\n} }\n";
    let mut tree = Tree::parse(source.as_bytes());
    let (first, second) = ("backends/agent/device=\"a/1\"", "backends/agent/device=\"b\"");
    assert_eq!(tree.block_values("backends/agent/device"), [b"a/1".as_slice(), b"b"]);
    assert_eq!(tree.keys(&format!("{first}/options")), [b"ip".as_slice(), b"b_file"]);
    assert_eq!(tree.value(&format!("{first}/options/ip")), Some(b"y".as_slice()));
    assert!(tree.has_block(second) && !tree.has_block("backends/agent/device=\"c\""));
    // The last block of any value.
    assert_eq!(tree.value("backends/agent/device/order"), Some(b"1".as_slice()));
    tree.set(&format!("{first}/order"), b"2").unwrap();
    assert_eq!(tree.value(&format!("{second}/order")), Some(b"1".as_slice()));
    assert_eq!(tree.remove(second), 1);
    tree.set("backends/agent/device=\"c d\"/options/ip", b"1").unwrap();
    let text = String::from_utf8(tree.to_bytes()).unwrap();
    assert!(text.contains("device = \"c d\" {\n"), "{text}");
    let again = Tree::parse(text.as_bytes());
    assert_eq!(again.block_values("backends/agent/device"), [b"a/1".as_slice(), b"c d"]);
    assert_eq!(again.value(&format!("{first}/order")), Some(b"2".as_slice()));
    for bad in ["a=\"\"/b", "a=\"x/b", "a=x/b", "a/b=\"x\""] {
        assert!(tree.set(bad, b"1").is_err(), "{bad}");
    }
    assert_eq!(tree.to_bytes(), text.as_bytes());
}

#[test]
fn remove_and_append() {
    let mut tree = Tree::parse(FILE.as_bytes());
    assert_eq!(tree.remove("listeners/multicast/key_file"), 2);
    assert_eq!(tree.remove("listeners/multicast/key_file"), 0);
    assert_eq!(tree.remove("no/such/thing"), 0);
    assert_eq!(tree.remove("other"), 1);
    let text = String::from_utf8(tree.to_bytes()).unwrap();
    for kept in ["# top", "# how", "# key", "# odd", "# end"] {
        assert!(text.contains(kept), "{text}");
    }
    tree.append_value("listeners/multicast/key_file", b"/a").unwrap();
    tree.append_value("listeners/multicast/key_file", b"/b").unwrap();
    let again = Tree::parse(&tree.to_bytes());
    assert_eq!(again.values("listeners/multicast/key_file"), [b"/a", b"/b"]);
    assert!(!again.has_block("other"));

    tree.append_block("groups/group").unwrap();
    tree.set("groups/group/ip", b"1").unwrap();
    tree.append_block("groups/group").unwrap();
    tree.set("groups/group/ip", b"2").unwrap();
    let groups = load(&tree.to_bytes()).config.unwrap().groups.unwrap();
    assert_eq!((groups[0].ips[0].as_str(), groups[1].ips[0].as_str()), ("1", "2"));
}

#[test]
fn edits_that_cannot_be_written_are_refused() {
    let mut tree = Tree::parse(FILE.as_bytes());
    for path in ["", "a//b", "a/", "a b", "#a", "a;", "a/b{"] {
        assert!(matches!(tree.set(path, b"x"), Err(EditError::BadId(_))), "{path}");
    }
    for value in [b"".as_slice(), b"a\"b", b"a\0b"] {
        assert_eq!(tree.set("a", value), Err(EditError::BadValue));
    }
    assert_eq!(tree.set(&"a/".repeat(33).as_str()[..65], b"x"), Ok(()));
    assert_eq!(tree.set(&("a/".repeat(33) + "b"), b"x"), Err(EditError::TooDeep));
}

#[test]
fn pretty() {
    let source = "# top\n\n\nfence_virtd{listener=\"tcp\";# how\nbackend # why\n=\"libvirt\";} x = \"1\" \
                  {\n} listeners { tcp { } # t\n# tail\n}#end";
    let pretty = "# top\nfence_virtd {\n\tlistener = \"tcp\"; # how\n\t# why\n\tbackend = \"libvirt\";\n\
                  }\n\nx = \"1\" {\n}\n\n\
                  listeners {\n\ttcp {\n\t} # t\n\t# tail\n} #end\n";
    assert_eq!(String::from_utf8(Tree::parse(source.as_bytes()).to_pretty()).unwrap(), pretty);
    assert_eq!(String::from_utf8(Tree::parse(pretty.as_bytes()).to_pretty()).unwrap(), pretty);
}

/// Pieces of the language in any order, so that most branches of the parser are taken.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let words: &[&[u8]] = &[
        b"fence_virtd",
        b"listeners",
        b"multicast",
        b"tcp",
        b"port",
        b"key_file",
        b"groups",
        b"group",
        b"ip",
        b"uri1",
        b"{",
        b"}",
        b"{",
        b"}",
        b"=",
        b";",
        b"\"",
        b"\"\"",
        b"\"1229\"",
        b"\"/k\"",
        b"\"a\nb = \"",
        b" ",
        b"\n",
        b"\t",
        b"\r\n",
        b"# c\n",
        b"#",
        b"\xff",
        b"\x1b",
        b"\xef\xbb\xbf",
        b"listener = \"tcp\";",
        b"port = \"x\"",
        b"a = b;",
    ];
    prop::collection::vec(prop::sample::select(words), 0..60).prop_map(|it| it.concat())
}

/// Files without syntax errors: blocks and keys, known and unknown, with comments anywhere.
fn well_formed() -> impl Strategy<Value = String> {
    let gap = prop::sample::select(&[" ", "\n", "", "\t# c\n", " # a # b\r\n\n"][..]);
    let key =
        prop::sample::select(&["port", "Key_File", "listener", "ip", "uuid", "uri2", "x#y", "hash"][..]);
    let value = prop::sample::select(&["tcp", "1", "/k", "a\nb", "sha1", "vsock,tcp", "{;}#"][..]);
    let name = prop::sample::select(
        &["fence_virtd", "listeners", "tcp", "groups", "group", "backends", "other"][..],
    );
    let leaf = (key, gap.clone(), gap.clone(), value.clone(), gap.clone())
        .prop_map(|(key, a, b, value, c)| format!("{key}{a}={b}\"{value}\"{c};{a}"));
    leaf.prop_recursive(4, 40, 5, move |inner| {
        (
            name.clone(),
            gap.clone(),
            prop::option::of(value.clone()),
            gap.clone(),
            prop::collection::vec(inner, 0..5),
        )
            .prop_map(|(name, a, value, b, items)| {
                let value = value.map_or(String::new(), |it| format!("={b}\"{it}\""));
                format!("{a}{name}{a}{value}{b}{{{}{b}}}", items.concat())
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_come_back(source in prop::collection::vec(any::<u8>(), 0..300)) {
        holds(&source);
    }

    #[test]
    fn any_pieces_come_back(source in pieces()) {
        holds(&source);
    }

    #[test]
    fn the_usual_layout_means_the_same(source in prop::collection::vec(well_formed(), 1..4)) {
        let source = source.join("\n");
        let loaded = load(source.as_bytes());
        prop_assert!(loaded.tree.is_well_formed());
        let pretty = loaded.tree.to_pretty();
        let again = load(&pretty);
        prop_assert_eq!(again.config, loaded.config);
        prop_assert_eq!(again.diagnostics.len(), loaded.diagnostics.len());
        prop_assert_eq!(again.tree.to_pretty(), pretty);
        let count = |text: &[u8]| text.iter().filter(|&&it| it == b'#').count();
        prop_assert_eq!(count(&again.tree.to_bytes()), count(source.as_bytes()));
    }

    #[test]
    fn a_value_that_was_set_is_there(
        source in well_formed(),
        path in prop::sample::select(&["port", "tcp/port", "listeners/tcp/port", "new/block/x"][..]),
    ) {
        let mut tree = Tree::parse(source.as_bytes());
        tree.set(path, b"77").unwrap();
        let mut again = Tree::parse(&tree.to_bytes());
        prop_assert!(again.is_well_formed());
        prop_assert_eq!(again.value(path), Some(b"77".as_slice()));
        prop_assert!(again.remove(path) > 0);
        let last = Tree::parse(&again.to_bytes());
        prop_assert!(last.is_well_formed());
        prop_assert_eq!(last.value(path), None);
    }
}

fn holds(source: &[u8]) {
    let loaded = load(source);
    assert_eq!(loaded.tree.to_bytes(), source);
    for found in &loaded.diagnostics {
        assert!(found.span.start <= found.span.end && found.span.end <= source.len());
        let text = found.render("f", source);
        assert!(text.chars().all(|it| it == '\n' || !it.is_control()), "{text:?}");
        assert!(text.contains(&format!("f:{}:{}", found.line, found.column)), "{text}");
    }
    if let Some(config) = loaded.config {
        assert_eq!(load(&loaded.tree.to_pretty()).config, Some(config));
    }
}
