// SPDX-License-Identifier: GPL-2.0-or-later
//! Comparison of the manual (docs/fence_virt.conf.md) and the sample (etc/fence_virt.conf) with the schema:
//! every key, in its block, with its default and its words. The examples of the page on agents
//! (docs/agent.md) and of the quick start (docs/quickstart.md) are read as well.
//!
//! After a key was added, these tests name the missing parts: a row of the block's table, a line of the
//! sample.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use fence_config::*;

const MANUAL: &str = include_str!("../../../docs/fence_virt.conf.md");
const AGENTS: &str = include_str!("../../../docs/agent.md");
const QUICK_START: &str = include_str!("../../../docs/quickstart.md");
const SAMPLE: &str = include_str!("../../../etc/fence_virt.conf");

/// Keys that the sample leaves out: old names, and keys only for files of the C daemon.
const NOT_IN_SAMPLE: [(&str, &str); 3] =
    [("fence_virtd", "wait_for_backend"), ("fence_virtd", "module_path"), ("fence_virtd", "name_mode")];

#[test]
fn the_manual_names_every_key_and_no_other() {
    let schema: BTreeSet<_> = keys().map(|(block, key)| format!("{block}: {key}")).collect();
    let manual: BTreeSet<_> = manual()
        .into_iter()
        .flat_map(|(block, rows)| rows.into_keys().map(move |key| format!("{block}: {key}")))
        .collect();
    let missing: Vec<_> = schema.difference(&manual).collect();
    let unknown: Vec<_> = manual.difference(&schema).collect();
    assert!(
        missing.is_empty(),
        "docs/fence_virt.conf.md: add a row to the table of the block for {missing:#?}"
    );
    assert!(unknown.is_empty(), "docs/fence_virt.conf.md has keys that fence-config does not: {unknown:#?}");
}

#[test]
fn examples_of_agents_can_be_used_as_they_are() {
    let is_example = |it: &&str| it.is_empty() || it.starts_with("    ");
    let lines: Vec<_> = AGENTS.lines().collect();
    let mut read = 0;
    for example in lines.chunk_by(|a, b| is_example(a) == is_example(b)).map(|it| it.join("\n")) {
        let source = match example.trim_start() {
            it if it.starts_with("device") => {
                format!("fence_virtd {{ backend = \"agent\"; }}\nbackends {{ agent {{\n{example}\n}} }}\n")
            }
            it if it.starts_with("fence_virtd") => example,
            _ => continue,
        };
        let loaded = load(source.as_bytes());
        assert!(loaded.config.is_some(), "{}", loaded.render("docs/agent.md", source.as_bytes()));
        read += 1;
    }
    assert!(read >= 6, "docs/agent.md: {read} examples");
}

#[test]
fn configurations_of_the_quick_start_can_be_used_as_they_are() {
    let blocks: Vec<_> = QUICK_START.split("```\n").skip(1).step_by(2).collect();
    for source in &blocks {
        let loaded = load(source.as_bytes());
        assert!(loaded.config.is_some(), "{}", loaded.render("docs/quickstart.md", source.as_bytes()));
        assert!(loaded.diagnostics.is_empty(), "{}", loaded.render("docs/quickstart.md", source.as_bytes()));
    }
    assert_eq!(blocks.len(), 7, "docs/quickstart.md");
}

#[test]
fn defaults_are_those_of_the_manual() {
    for (block, rows) in manual() {
        for (key, row) in rows.iter().filter(|(key, _)| block != "groups/group" && !is_required(&block, key))
        {
            let place = format!("docs/fence_virt.conf.md, `{key}` of {block}");
            if key == "state_dir" {
                assert!(
                    row.default.contains(&format!("`{DEFAULT_STATE_DIR}`")),
                    "{place}: {DEFAULT_STATE_DIR}"
                );
                continue;
            }
            if key == "peers" {
                assert_eq!(unset_value(&block, key), Some("discovered".into()), "{place}");
                assert!(row.default.contains("that are found"), "{place}: the hosts that are found");
                continue;
            }
            // "that of `address`, else `ipv4`": other keys and blocks are no values.
            let value = |it: &String| !rows.contains_key(it) && keys().all(|(block, _)| block != it);
            match literals(&row.default).into_iter().find(value) {
                Some(value) => assert_eq!(
                    config(&block, &format!("{key} = \"{value}\";")),
                    config(&block, ""),
                    "{place}: the default is not {value}"
                ),
                None => assert_eq!(unset_value(&block, key), None, "{place}: say what the default is"),
            }
        }
    }
}

#[test]
fn the_manual_names_every_word() {
    let types = table(&section("### Types"));
    for (block, rows) in manual() {
        for (key, row) in rows.iter().filter(|_| block != "groups/group") {
            let source = source(&block, &format!("{key} = \"no such word\";"));
            let loaded = load(source.as_bytes());
            let Some(help) = loaded.diagnostics.first().and_then(|it| it.help.clone()) else { continue };
            let Some((_, words)) = help.split_once("allowed: ") else { continue };
            let words: Vec<_> = words.split(';').next().unwrap().split(", ").collect();
            if words.iter().any(|it| it.contains(' ')) {
                continue;
            }
            let mut said = literals(&row.kind);
            for (name, meaning) in &types {
                if row.kind.starts_with(name.as_str()) {
                    said.extend(literals(&meaning[0]));
                }
            }
            let missing: Vec<_> = words.iter().filter(|it| !said.iter().any(|word| word == *it)).collect();
            assert!(
                missing.is_empty(),
                "docs/fence_virt.conf.md, `{key}` of {block}: say that it takes {missing:?}"
            );
        }
    }
}

#[test]
fn the_sample_shows_every_key_with_its_default() {
    let shown = sample();
    for (block, key) in keys() {
        // Keys that multicast shows need not be shown again.
        let again = ["listeners/tcp", "listeners/vsock"].contains(&block)
            && shown.contains_key(&("listeners/multicast".to_owned(), key.to_owned()));
        // Users of a corosync cluster, or of other hypervisors, read the manual.
        let is_rare = block == "backends/cpg" || block.starts_with("backends/agent");
        if again || is_rare || NOT_IN_SAMPLE.contains(&(block, key)) {
            continue;
        }
        assert!(
            shown.contains_key(&(block.to_owned(), key.to_owned())),
            "etc/fence_virt.conf: show `{key}` in {block}, commented out with its default"
        );
    }
    for ((block, key), value) in &shown {
        if let (Some(value), false) = (value, block == "groups/group") {
            assert_eq!(
                config(block, &format!("{key} = \"{value}\";")),
                config(block, ""),
                "etc/fence_virt.conf, `{key}` of {block}: the default is not {value} (or write \"Example\" \
                 above it)"
            );
        }
    }
}

/// Keys without a default.
fn is_required(block: &str, key: &str) -> bool {
    block == "backends/agent/device" && ["agent", "plugs"].contains(&key)
}

/// Row of a block's table.
#[derive(Clone, Debug)]
struct Row {
    kind: String,
    default: String,
}

/// Returns the keys of every block in the manual.
fn manual() -> BTreeMap<String, BTreeMap<String, Row>> {
    let mut blocks = BTreeMap::new();
    for (block, heading) in [
        ("fence_virtd", "## BLOCK fence_virtd"),
        ("listeners/multicast", "### multicast"),
        ("listeners/tcp", "### tcp"),
        ("listeners/vsock", "### vsock"),
        ("listeners/serial", "### serial"),
        ("backends/libvirt", "### libvirt"),
        ("backends/cpg", "### cpg"),
        ("backends/agent", "### agent"),
        ("backends/agent/device", "### device"),
        ("backends/agent/device/domain", "### domain"),
        ("groups/group", "### group"),
    ] {
        let text = section(heading);
        let mut rows = BTreeMap::new();
        // "`hash`, `auth` and `port` as for multicast"
        if let Some(line) = text.lines().find(|it| it.starts_with('`') && it.contains(" as for multicast")) {
            let multicast: &BTreeMap<String, Row> = &blocks["listeners/multicast"];
            for key in literals(line) {
                rows.insert(key.clone(), multicast[&key].clone());
            }
        }
        for (head, cells) in table(&text) {
            let row = Row {
                kind: cells[0].clone(),
                default: if cells.len() > 2 { cells[1].clone() } else { String::new() },
            };
            for key in literals(&format!("`{head}`")) {
                // `uri1` to `uri63` are `uri`.
                let key = if key.starts_with("uri") { "uri".to_owned() } else { key };
                rows.insert(key, row.clone());
            }
        }
        assert!(!rows.is_empty(), "docs/fence_virt.conf.md: no table under {heading}");
        blocks.insert(block.to_owned(), rows);
    }
    let headings: BTreeSet<_> = keys().map(|(block, _)| block.to_owned()).collect();
    assert_eq!(
        headings,
        blocks.keys().cloned().collect(),
        "blocks of the schema, and those this test looks for"
    );
    blocks
}

/// Returns the text under a heading, up to the next one.
fn section(heading: &str) -> String {
    let mut lines = MANUAL.lines().skip_while(|it| *it != heading);
    assert!(lines.next().is_some(), "docs/fence_virt.conf.md has no \"{heading}\"");
    lines.take_while(|it| !it.starts_with("##")).map(|it| format!("{it}\n")).collect()
}

/// Returns the rows of the tables in a text: the first cell without its outer backticks, and the other cells.
fn table(text: &str) -> Vec<(String, Vec<String>)> {
    let rows = text.lines().filter_map(|it| it.strip_prefix('|')?.strip_suffix('|'));
    rows.skip(2)
        .map(|row| {
            let mut cells = row.split('|').map(|it| it.trim().to_owned());
            (cells.next().unwrap().trim_matches('`').to_owned(), cells.collect())
        })
        .collect()
}

/// Returns the text in backticks.
fn literals(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

const USED: &str = "listener = \"multicast, tcp, vsock, serial\"; backend = \"cpg, agent\";";

/// Makes a file with one line in one block. Every listener and backend is in use, unless that line may be
/// about them.
fn source(block: &str, line: &str) -> String {
    let at = |path: &str| if path == block { line } else { "" };
    let used = match block {
        "fence_virtd" => String::new(),
        // Only one of these can be used.
        "backends/libvirt" => USED.replace("cpg", "libvirt"),
        _ => USED.to_owned(),
    };
    format!(
        "fence_virtd {{ {used} {} }}\nlisteners {{ multicast {{ {} }} tcp {{ {} }} vsock {{ {} }} serial {{ \
         {} }} }}\n\
         backends {{ libvirt {{ {} }} cpg {{ {} }} agent {{ {} device = \"d\" {{ agent = \"fence_any\"; \
         plugs = \"any\"; \
         {} domain = \"a b\" {{ {} }} }} }} }}\n",
        at("fence_virtd"),
        at("listeners/multicast"),
        at("listeners/tcp"),
        at("listeners/vsock"),
        at("listeners/serial"),
        at("backends/libvirt"),
        at("backends/cpg"),
        at("backends/agent"),
        at("backends/agent/device"),
        at("backends/agent/device/domain"),
    )
}

/// Returns the configuration of such a file, without the mark of a default that was written down.
fn config(block: &str, line: &str) -> serde_json::Value {
    let source = source(block, line);
    let loaded = load(source.as_bytes());
    let config =
        loaded.config.clone().unwrap_or_else(|| panic!("{}", loaded.render("test", source.as_bytes())));
    let mut value = serde_json::to_value(config).unwrap();
    for listener in value["listeners"].as_array_mut().unwrap() {
        for body in listener.as_object_mut().unwrap().values_mut() {
            body.as_object_mut().unwrap().remove("key_files_named");
        }
    }
    value
}

/// Returns the value of a key that is not set; `None` when it has no value then.
fn unset_value(block: &str, key: &str) -> Option<serde_json::Value> {
    let all = config(block, "");
    let body = match block.split_once('/') {
        None => all["daemon"].clone(),
        Some((list, kind)) => {
            let entries = all[list].as_array().unwrap();
            let (kind, inner) = kind.split_once('/').unwrap_or((kind, ""));
            let body = entries.iter().find_map(|it| it.get(kind)).unwrap();
            match inner {
                "" => body.clone(),
                "device" => body["devices"][0].clone(),
                // The plug is the domain's name.
                "device/domain" => serde_json::Value::Null,
                other => panic!("{other}"),
            }
        }
    };
    body.get(key).filter(|it| !it.is_null()).cloned()
}

/// Returns the keys of the sample, commented out or not; with the value unless it is an example.
fn sample() -> BTreeMap<(String, String), Option<String>> {
    let mut shown = BTreeMap::new();
    let mut blocks: Vec<String> = Vec::new();
    let mut example = false;
    for line in SAMPLE.lines() {
        let comment = line.trim_start().starts_with('#');
        let text = line.trim().trim_start_matches('#').trim();
        let statement = text.split('#').next().unwrap().trim();
        if let Some(name) = statement.strip_suffix('{').filter(|it| !it.contains('"')) {
            blocks.push(name.trim().to_owned());
        } else if statement == "}" {
            blocks.pop();
        } else if let Some((key, value)) = statement.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            let value = value.trim_start_matches('"').trim_end_matches("\";").to_owned();
            let key = if key.starts_with("uri") { "uri" } else { key };
            shown.insert((blocks.join("/"), key.to_owned()), (!example).then_some(value));
        } else if comment && text.to_ascii_lowercase().starts_with("example") {
            example = true;
        }
        if statement.is_empty() && !comment {
            example = false;
        }
    }
    assert!(blocks.is_empty(), "blocks of the sample: {blocks:?}");
    shown
}
