# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers that were not true: whatever else becomes of the case that saw one, its suite fails, and nothing is run again.

    judged.untrue("off x: off, and it ran at h3 all the time")      # remembered
    raise judged.UntrueAnswer(text)                                 # the same, and the case ends
    judged.gone(qemu)                                               # after a success: a process that must have ended

Must never be said of what may be true: a race that both sides may win, a failure, no answer.
"""

import os
import pathlib


class UntrueAnswer(AssertionError):
    """An answer that was not true."""

    def __init__(self, text):
        super().__init__(text)
        untrue(text)


def untrue(text):
    """Remembers an untrue answer for `scripts/suite`, which names the file."""
    if file := os.environ.get("UNTRUE_ANSWERS"):
        case = os.environ.get("PYTEST_CURRENT_TEST", "?").removesuffix(" (call)")
        with pathlib.Path(file).open("a") as out:
            out.write(f"{case}: {text}\n")


def gone(*processes):
    """Success was told: each lab.process.Process has ended."""
    for it in processes:
        if not it.ended():
            raise UntrueAnswer(f"success was told, and process {it.pid} runs")
