# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts tests/ on the import path (`import lab`) and makes sure that a killed run cleans up."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from lab import net  # noqa: E402


def pytest_configure(config):
    net.exit_on_sigterm()
