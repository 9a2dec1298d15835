# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of the sources find what they are for: each rule on a small tree that breaks it, and on one that holds it.

Each case writes a tree of crates, runs a script of scripts/ with --root, and looks at its exit code and at what it found.
"""

import collections
import contextlib
import functools
import importlib.machinery
import importlib.util
import io
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.environ.get("SIDE", "ours") != "ours", reason="about our sources")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DAEMON = "crates/fence-virtd/src"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "scripts").mkdir()

    def write(files):
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        return tmp_path

    return write


Result = collections.namedtuple("Result", "returncode stderr")


@functools.cache
def loaded(script):
    """Returns a script as a module: a program started for each of some hundred small trees would take minutes."""
    loader = importlib.machinery.SourceFileLoader(script.replace("-", "_"), str(SCRIPTS / script))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def run(script, root, *options):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = loaded(script).main(["--root", str(root), *options])
    return Result(code, said.getvalue())


def keys(script, root):
    """Returns what a check finds, as the lines of its list of exemptions; the list is removed again."""
    listed = root / "scripts" / f"{script}.exempt"
    wrong = run(script, root)
    assert run(script, root, "--write-exempt").returncode == 0
    found = [it for it in listed.read_text().splitlines() if not it.startswith("#")] if listed.exists() else []
    listed.unlink(missing_ok=True)
    assert (wrong.returncode == 0) == (not found), wrong.stderr
    return found


def library(**modules):
    files = {"crates/a/src/lib.rs": "".join(f"mod {name};\n" for name in modules)}
    return files | {f"crates/a/src/{name}.rs": text for name, text in modules.items()}


def daemon(**folders):
    files = {f"{DAEMON}/main.rs": "".join(f"mod {name};\n" for name in folders)}
    return files | {f"{DAEMON}/{name}/mod.rs": text for name, text in folders.items()}


CIRCLE = ["circle a one -> two", "circle a two -> one"]


@pytest.mark.parametrize(
    "path",
    [
        "use crate::one::One;",
        "use crate::{one::{self, One}};",
        "use super::one::One as Other;",
        "pub(crate) use crate::one::*;",
        "fn f() { crate::one::f() }",
        "fn f() { use crate::one; one::f() }",
        "use crate::one;\nfn f() { one::f() }",
        "mod within { use super::super::one::One; }",
        "#[cfg(not(test))] use crate::one::One;",
        "#[cfg(any(test, unix))] use crate::one::One;",
        "const TEXT: &str = \"// \\\" \"; use crate::one::One;",
        "const MARK: char = '\"'; use crate::one::One;",
        "const RAW: &str = r#\"\"\"#; use crate::one::One;",
        "fn f<'a>(text: &'a str) -> One { 'b: loop { break 'b crate::one::One } }",
    ],
)
def test_modules_that_import_each_other_are_a_circle(tree, path):
    assert keys("check-modules", tree(library(one="use crate::two::Two;", two=path))) == CIRCLE


@pytest.mark.parametrize(
    "path",
    [
        "// use crate::one::One;",
        "/* /* nested */ use crate::one::One; */",
        "/// [`crate::one::One`]\nstruct Two;",
        "const TEXT: &str = \"use crate::one::One;\";",
        "const RAW: &str = r#\"\" use crate::one::One;\"#;",
        "#[cfg(test)] use crate::one::One;",
        "#[cfg(test)]\nmod tests { use crate::one::One; fn f() { let text = \"}\"; } }",
        "#[cfg(all(test, unix))] mod tests { use crate::one::One; }",
        "struct Two { #[cfg(test)] one: crate::one::One, other: u8 }",
        "#[test] fn test() { crate::one::f() }",
        "use other::one::One;",
        "use ::one::One;",
        "fn f(one: One) { one.two(); Self::one() }",
    ],
)
def test_comments_strings_and_tests_import_nothing(tree, path):
    assert keys("check-modules", tree(library(one="use crate::two::Two;", two=path))) == []


def test_a_file_for_tests_alone_imports_nothing(tree):
    files = library(one="use crate::two::Two;", two="#[cfg(test)]\nmod tests;")
    assert keys("check-modules", tree(files | {"crates/a/src/two/tests.rs": "use crate::one::One;"})) == []


def test_what_a_parent_passes_on_is_imported_from_the_parent(tree):
    files = {
        "crates/a/src/lib.rs": "mod parent;",
        "crates/a/src/parent/mod.rs": "mod one;\nmod two;\npub use one::One;",
        "crates/a/src/parent/one.rs": "pub struct One;",
        "crates/a/src/parent/two.rs": "use super::One;",
    }
    root = tree(files)
    assert keys("check-modules", root) == []
    # The parent needs the child, and the child names the parent for what the child beside it has.
    tree({"crates/a/src/parent/mod.rs": "mod one;\nmod two;\npub use one::One;\npub use self::two::Two;"})
    assert keys("check-modules", root) == ["circle a parent -> parent::two", "circle a parent::two -> parent"]
    tree({"crates/a/src/parent/two.rs": "use super::one::One;"})
    assert keys("check-modules", root) == []


def test_a_module_by_path(tree):
    files = {
        "crates/a/src/lib.rs": "#[path = \"elsewhere/file.rs\"]\nmod one;\nmod two;",
        "crates/a/src/elsewhere/file.rs": "use crate::two::Two;",
        "crates/a/src/two.rs": "use crate::one::One;",
    }
    assert keys("check-modules", tree(files)) == CIRCLE


def test_a_circle_is_told_with_its_way_and_its_line(tree):
    root = tree(library(one="use crate::two::Two;", two="\nuse crate::three::Three;", three="use crate::one::One;"))
    said = run("check-modules", root).stderr
    assert "crates/a/src/two.rs:2: imports crate::three::Three" in said
    assert "(two -> three -> one -> two)" in said


def test_the_four_of_libvirt_host_may_be_a_circle(tree):
    names = ["connection", "domain", "event", "runtime"]
    files = {f"crates/libvirt-host/src/{it}.rs": f"use crate::{names[at - 1]}::X;" for at, it in enumerate(names)}
    files["crates/libvirt-host/src/lib.rs"] = "".join(f"mod {it};" for it in names)
    root = tree(files)
    assert keys("check-modules", root) == []
    # No fifth.
    tree({"crates/libvirt-host/src/lib.rs": files["crates/libvirt-host/src/lib.rs"] + "mod error;",
          "crates/libvirt-host/src/error.rs": "use crate::domain::X;",
          "crates/libvirt-host/src/domain.rs": "use crate::connection::X; use crate::error::E;"})
    assert "circle libvirt-host error -> domain" in keys("check-modules", root)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        *[("backend", it) for it in ("service", "cluster", "listener", "status", "daemon")],
        *[("observe", it) for it in ("service", "backend", "cluster", "listener", "status", "daemon")],
        *[("request", it) for it in ("observe", "backend", "service", "hypervisor")],
        *[("service", it) for it in ("listener", "cluster", "status", "daemon")],
        *[("listener", it) for it in ("backend", "cluster", "status", "daemon")],
        *[("cluster", it) for it in ("listener", "status", "daemon")],
        *[("configure", it) for it in ("daemon", "service", "cluster", "listener")],
        *[("hypervisor", it) for it in ("backend", "observe", "request")],
        *[("process", it) for it in ("observe",)],
        *[("replay", it) for it in ("observe",)],
        *[("util", it) for it in ("request", "process")],
        *[("cli", it) for it in ("daemon", "util")],
        *[("daemon", it) for it in ("check", "configure")],
        ("check", "configure"),
        ("check", "status"),
        ("status", "check"),
    ],
)
def test_a_folder_does_not_know_what_is_above_it(tree, above, below):
    root = tree(daemon(**{above: f"use crate::{below}::X;", below: ""}))
    assert keys("check-modules", root) == [f"folder {above} -> {below}"]
    assert f"{DAEMON}/{above}/mod.rs:1: imports crate::{below}::X" in run("check-modules", root).stderr


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("daemon", "status"), ("daemon", "listener"), ("daemon", "cli"), ("status", "cluster"), ("cluster", "service"),
        ("listener", "service"), ("service", "backend"), ("service", "replay"), ("backend", "observe"), ("backend", "process"),
        ("backend", "hypervisor"), ("observe", "request"), ("request", "util"), ("hypervisor", "util"), ("process", "util"),
        ("replay", "util"), ("check", "daemon"), ("check", "backend"), ("configure", "backend"),
    ],
)
def test_a_folder_may_know_what_is_below_it(tree, above, below):
    assert keys("check-modules", tree(daemon(**{above: f"use crate::{below}::X;", below: ""}))) == []


def test_main_may_know_all_and_nobody_knows_main(tree):
    files = daemon(check="", configure="", status="", daemon="use crate::print;")
    files[f"{DAEMON}/main.rs"] += "use check::a; use configure::b; use status::c; fn print() {}"
    assert keys("check-modules", tree(files)) == ["folder daemon -> main.rs"]


def test_values_of_a_request_name_no_crate_that_does_something(tree):
    files = daemon(request="use fence_core::A;\nuse fence_wire::B;\nuse std::fmt;\nuse fence_net::C;")
    assert keys("check-modules", tree(files)) == ["crate request -> fence_net"]


def test_every_file_of_the_daemon_lies_in_a_folder(tree):
    files = daemon(service="") | {f"{DAEMON}/run.rs": "", f"{DAEMON}/other/mod.rs": "", f"{DAEMON}/util/join.rs": ""}
    assert keys("check-modules", tree(files)) == ["place other/mod.rs", "place run.rs"]


@pytest.mark.parametrize(
    ("file", "text", "count"),
    [
        ("service/mod.rs", "#[cfg(feature = \"cpg\")]\nuse libvirt_host::X;", 1),
        ("service/mod.rs", "#[cfg(not(feature = \"cpg\"))]\nfn f() { if cfg!(feature = \"libvirt\") {} }", 2),
        ("service/mod.rs", "#![cfg_attr(not(feature = \"cpg\"), allow(dead_code))]", 1),
        ("service/mod.rs", "#[cfg(feature = \"cpg\")]\nmod x { }", 1),
        ("service/mod.rs", "#[cfg(feature = \"cpg\")]\n#[rustfmt::skip]\npub(crate) mod x;", 0),
        ("service/mod.rs", "#[cfg(target_os = \"linux\")]\nfn f() {}\n// cfg(feature = \"cpg\")", 0),
        ("service/mod.rs", "#[cfg(test)]\nmod tests { #[cfg(feature = \"cpg\")] fn f() {} }", 0),
        ("main.rs", "#[cfg(feature = \"cpg\")]\nfn f() {}", 0),
        ("check/mod.rs", "#[cfg(feature = \"cpg\")]\nfn f() {}", 0),
        ("daemon/assemble.rs", "#[cfg(feature = \"cpg\")]\nfn f() {}", 0),
        ("daemon/exit.rs", "#[cfg(feature = \"cpg\")]\nfn f() {}", 0),
        ("daemon/run.rs", "#[cfg(feature = \"cpg\")]\nfn f() {}", 1),
    ],
)
def test_few_files_ask_for_features(tree, file, text, count):
    folder = file.split("/")[0]
    files = {f"{DAEMON}/main.rs": f"mod {folder};" if "/" in file else ""}
    if not file.endswith(("mod.rs", "main.rs")):
        files[f"{DAEMON}/{folder}/mod.rs"] = f"mod {Path(file).stem};"
    files[f"{DAEMON}/{folder}/x.rs" if "/" in file else f"{DAEMON}/util/x.rs"] = ""
    found = keys("check-modules", tree(files | {f"{DAEMON}/{file}": text}))
    assert found == ([f"feature {DAEMON}/{file} = {count}"] if count else [])


def test_a_list_of_exemptions_can_only_shrink(tree):
    root = tree({"crates/a/src/lib.rs": "x" * 111 + "\n" + "y" * 111})
    listed = root / "scripts/check-columns.exempt"
    assert run("check-columns", root).returncode == 1
    assert run("check-columns", root, "--write-exempt").returncode == 0
    assert "crates/a/src/lib.rs = 2" in listed.read_text()
    assert run("check-columns", root).returncode == 0
    # One more than is exempt.
    tree({"crates/a/src/lib.rs": "\n".join(["x" * 111] * 3)})
    assert run("check-columns", root).returncode == 1
    # Fewer than are exempt.
    tree({"crates/a/src/lib.rs": "x" * 111})
    result = run("check-columns", root)
    assert result.returncode == 1 and "only 1 are left" in result.stderr
    # None at all.
    tree({"crates/a/src/lib.rs": ""})
    result = run("check-columns", root)
    assert result.returncode == 1 and "remove this line" in result.stderr
    # An empty list goes.
    assert run("check-columns", root, "--write-exempt").returncode == 0
    assert not listed.exists() and run("check-columns", root).returncode == 0


def test_an_exempt_circle_that_is_cut_is_told(tree):
    root = tree(library(one="use crate::two::Two;", two="use crate::one::One;"))
    run("check-modules", root, "--write-exempt")
    assert run("check-modules", root).returncode == 0
    tree({"crates/a/src/two.rs": ""})
    result = run("check-modules", root)
    assert result.returncode == 1 and "circle a one -> two: this occurs no longer" in result.stderr


def test_columns_are_characters(tree):
    files = {"crates/a/src/lib.rs": "// " + "ä" * 107, "tests/fuzz/x.rs": "é" * 110, "tests/threads/src/main.rs": "// " + "ä" * 108,
             "crates/a/tests/x.rs": "/// " + "x" * 107, "tests/fuzz/target/x.rs": "x" * 200}
    assert keys("check-columns", tree(files)) == ["crates/a/tests/x.rs = 1", "tests/threads/src/main.rs = 1"]


@pytest.mark.parametrize("name", ["Told", "Place", "Go", "For", "Whose", "Here", "Pending", "Escaped", "Course", "HeardOf"])
@pytest.mark.parametrize("kind", ["struct {};", "pub(crate) enum {} {{}}", "trait {}<T> {{}}", "pub type {} = u8;"])
def test_a_word_that_stands_for_several_things_names_no_type(tree, name, kind):
    assert keys("check-names", tree({"crates/a/src/lib.rs": kind.format(name)})) == [f"name a {name} = 1"]


@pytest.mark.parametrize(
    "text",
    [
        "struct Lease; enum Grant {} trait Service {} type Listing = u8; struct Ring; struct PendingAsk; struct ToldAll;",
        "enum Step { Told, Go(u8), Running { at: u8 } }",
        "trait Port { type Told; } impl Port for X { type Told = u8; fn f(self) { struct_told() } }",
        "#[cfg(test)] mod tests { struct Told; }",
        "// struct Told;\nconst TEXT: &str = \"struct Told;\";",
    ],
)
def test_other_names_may_be(tree, text):
    assert keys("check-names", tree({"crates/a/src/lib.rs": text})) == []


def test_no_name_is_borne_by_two_types_of_one_crate(tree):
    files = library(one="struct State;", two="enum State {}\n#[cfg(test)] mod tests { struct State; struct Other; }", three="struct Other;")
    root = tree(files | {"crates/b/src/lib.rs": "struct State;"})
    assert keys("check-names", root) == ["twice a State = 2"]
    assert "crates/a/src/one.rs:1, crates/a/src/two.rs:1" in run("check-names", root).stderr


@pytest.mark.parametrize("word", ["What", "Who", "Whether", "How", "Where", "It", "Its", "Those"])
@pytest.mark.parametrize("mark", ["///", "//!"])
def test_no_doc_comment_begins_with_a_question_or_a_pronoun(tree, word, mark):
    assert keys("check-names", tree({"crates/a/src/lib.rs": f"{mark} {word} goes on.\n"})) == ["doc crates/a/src/lib.rs = 1"]


@pytest.mark.parametrize(
    "text",
    [
        "/// Result of a wait.\n/// What follows is its second line.\nstruct A;",
        "// What is no doc comment.\nstruct A;",
        "/// Item that goes on.\nstruct A;",
        "const TEXT: &str = \"\n/// What is a text.\n\";",
        "//// What is no doc comment either.",
    ],
)
def test_other_comments_may_begin_so(tree, text):
    assert keys("check-names", tree({"crates/a/src/lib.rs": text})) == []


def test_the_numbers_are_those_of_the_tree():
    """Compares with a count of another kind: `git ls-files` and the lines themselves."""
    said = subprocess.run([SCRIPTS / "house-numbers"], capture_output=True, text=True, check=True).stdout
    numbers = {it.rsplit(None, 1)[0].strip(): int(it.rsplit(None, 1)[1]) for it in said.splitlines()[1:]}
    files = [it for it in (SCRIPTS.parent / "crates").rglob("*.rs") if "target" not in it.relative_to(SCRIPTS.parent).parts]
    wide = [line for it in files for line in it.read_text().split("\n") if len(line) > 110]
    assert numbers["lines over 110 characters"] == len(wide)
    assert numbers["of these comments"] == len([it for it in wide if re.match(r"\s*//", it)])
    assert 0 < numbers["modules of fence-virtd"] <= len([it for it in files if "fence-virtd/src" in str(it)])


def test_the_last_lines_say_what_failed(tmp_path):
    """Of many targets that run beside each other: each that failed, with what names its failures and its last lines."""
    (tmp_path / "Makefile").write_text(textwrap.dedent("""
        whole:
        \t@$(MAKE) --no-print-directory -k -j2 --output-sync=target one two three
        one:
        \t@$(MAKE) -C . inner
        inner:
        \t@echo "FAILED here/test_it.py::test_it - why"
        \t@echo "contained: left by it:"; echo "    file /run/it"
        \t@seq 1000 1100
        \t@exit 3
        two:
        \t@$(MAKE) -C . well
        well:
        \t@echo "this one is well"
        three:
        \t@$(MAKE) -C . cut
        cut:
        \t@echo "cut short"; kill -KILL $$$$
        """).replace("\\t", "\t"))
    script = [str(SCRIPTS / "failures"), "make", "-C", str(tmp_path)]
    ran = subprocess.run([*script, "whole"], capture_output=True, text=True)
    _, one, end = ran.stdout.partition("== failed: inner (Error 3) ==\n")
    assert ran.returncode == 2 and one, ran.stdout
    assert end.startswith("FAILED here/test_it.py::test_it - why\ncontained: left by it:\n    file /run/it\n1071\n"), end
    # Targets of this small tree print beside each other; those of the whole run do not.
    assert "cut short\n" in ran.stdout.partition("== failed: cut (Killed) ==\n")[2], ran.stdout
    assert set(ran.stdout.splitlines()[-1].split()) == {"==", "failed:", "inner", "cut"}, ran.stdout
    well = subprocess.run([*script, "well"], capture_output=True, text=True)
    assert well.returncode == 0 and "failed" not in well.stdout, well.stdout
