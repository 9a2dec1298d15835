# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/suite: what failed is run again, and an untrue answer is not: it fails the suite, whatever became of its case."""

import os
import subprocess

import pytest

from lab import programs

SUITE = programs.REPOSITORY / "scripts/suite"
CASE = f"""
import pathlib, sys
sys.path.insert(0, {str(programs.REPOSITORY / "tests")!r})
from lab import judged

def test_at_the_second_try():
    tries = pathlib.Path(__file__).with_name("tries")
    first = not tries.exists()
    tries.touch()
"""


def suite(directory, *lines):
    """The suite of one case that ends with these lines: its exit code and output."""
    (directory / "test_case.py").write_text(CASE + "\n".join(f"    {it}" for it in lines) + "\n")
    env = {it: value for it, value in os.environ.items() if it not in ("SUITE", "UNTRUE_ANSWERS", "PYTEST_CURRENT_TEST")}
    done = subprocess.run([SUITE, directory], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


def test_a_case_that_fails_once_is_run_again(tmp_path):
    code, said = suite(tmp_path, "assert not first")
    assert code == 0 and "once more, those that failed (1)" in said, said


@pytest.mark.parametrize("line", ["if first: raise judged.UntrueAnswer('off, and it ran')", "judged.untrue('off, and it ran')"])
def test_an_untrue_answer_is_final(tmp_path, line):
    code, said = suite(tmp_path, line)
    assert code == 1 and "once more" not in said, said
    assert "NOT TRUE" in said and "test_at_the_second_try: off, and it ran" in said, said
