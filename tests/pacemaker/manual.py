# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of docs/pacemaker.md, so that what the page says is what was run."""

import shlex

from lab import programs

PAGE = programs.REPOSITORY / "docs/pacemaker.md"


def commands():
    """All indented commands of the page, in its order, as lists of words."""
    lines = PAGE.read_text().splitlines()
    return [shlex.split(line) for before, line in zip([""] + lines, lines)
            if line.startswith("    ") and not line.strip().startswith("|")]


def configuring():
    """Those that change the cluster's configuration: `pcs -f FILE` carries them out without a cluster."""
    return [words for words in commands() if words[:1] == ["pcs"] and words[1:3] not in (
        ["stonith", "fence"], ["stonith", "cleanup"])]


def asking():
    """The others, which need a node to run on."""
    return [words for words in commands() if words not in configuring()]


def command(*having):
    """The first command of the program that has these words."""
    found = [words for words in commands() if not set(having) - set(words) and words[0] == having[0]]
    assert found, f"{PAGE.name} has no command {shlex.join(having)}"
    return found[0]
