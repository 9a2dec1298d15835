# SPDX-License-Identifier: GPL-2.0-or-later
"""A reason that reaches an operator names the domain or the host. "It" could be either, and the reader is tired.

Read from the source: every text of the crates that judge and serve. Texts of one program's own device, file or option
may say "it" after they named that.
"""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: Folders whose texts become reasons of requests: in the audit record, in an agent's output, at another host.
FOLDERS = ["fence-core/src", *(f"fence-virtd/src/{it}" for it in (
    "backend", "cluster", "host_down", "hypervisor", "intent", "peers", "request", "service"))]
#: A text that begins with the pronoun, or that makes it the subject of a sentence or a part of one.
PRONOUN = re.compile(r"^its? |[:;,.?!] (?:and |so |that |if |is |has )?it (?:is|was|has|had|may|left|does|did|can|would)\b"
                     r"|\b(?:whether|whom|while|because|since|that|where|how) it (?:is|was|has|had|may)\b"
                     r"|\b(?:[Ii]f|[Ii]s|has|have) it (?:is|was|on|off|gone|up)\b|\b(?:has|have|brought|started) it\b", re.I)
#: Texts in which "it" is neither a domain nor a host, as they begin.
OTHERS = (
    # A device of the agent backend, which stands before the text.
    "its agent ", "its list ", "its metadata ", "its monitor ", "its plug ", "its value ", "its time was up",
    "it did not end in time",
)


def texts(source):
    """(line, text) of each string of Rust source that is no test and no comment."""
    source = source.partition("#[cfg(test)]\nmod tests {")[0]
    for found in re.finditer(r'//[^\n]*|"((?:[^"\\]|\\.)*)"|\'(?:[^\'\\]|\\.)\'', source, re.S):
        if found[1] is not None:
            yield source.count("\n", 0, found.start()) + 1, re.sub(r"\\\n\s*", "", found[1])


def files():
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / "crates" / folder).rglob("*.rs")):
            parts = path.relative_to(REPOSITORY / "crates").parts
            if not any(re.match(r"tests$|tests\.rs|.*_tests\.rs|proptests", it) for it in parts):
                yield path


def test_no_reason_says_it_of_a_domain_or_a_host():
    found = [f"{path.relative_to(REPOSITORY)}:{line}: {text}" for path in files()
             for line, text in texts(path.read_text()) if PRONOUN.search(text) and not text.startswith(OTHERS)]
    assert not found, "name the domain or the host instead of \"it\":\n" + "\n".join(found)


@pytest.mark.parametrize("text", ["it is on at {0}", "its fencing ended", "{why}; it may be up again",
                                  "can't tell whether it is off", "Is it on at a host", "{place} has it on"])
def test_the_pronoun_is_found(text):
    assert PRONOUN.search(text)
