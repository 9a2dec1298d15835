# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts tests/ on the import path (`import lab`), makes sure that a killed run cleans up, and prints what cases noted."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from lab import net  # noqa: E402


_notes = pytest.StashKey()


def pytest_configure(config):
    net.exit_on_sigterm()
    config.stash[_notes] = []


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_notes]:
        side = os.environ.get("SIDE")
        terminalreporter.section(f"noted ({side})" if side else "noted")
        for line in config.stash[_notes]:
            terminalreporter.write_line(line)


@pytest.fixture
def note(request):
    """note(text): a line for the end of the run."""
    return lambda text: request.config.stash[_notes].append(f"{request.node.name}: {text}")
