# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes golden.json anew: /usr/bin/python3 tests/configure/capture.py

Runs the reference (Debian's fence-virtd), and ours from OURS_DIR for the cases that differ; look at what changed.
"""

import json
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from configure.cases import CASES  # noqa: E402
from configure.dialogue import OURS, REFERENCE, run  # noqa: E402

GOLDEN = HERE / "golden.json"


def outcome(program, case):
    """What a program makes of a case, in an empty directory."""
    with tempfile.TemporaryDirectory(prefix="fvlab-") as directory:
        done = run(program, directory, case.answers, case.existing)
    kept = case.existing is not None and done.file == case.existing.encode()
    replaced = done.file is not None and not kept
    return {"rc": done.rc, "prompts": done.prompts, "shown": done.shown, "file": done.tree if replaced else None}


def main():
    """Everything, in the order of the cases."""
    golden = {}
    for case in CASES:
        golden[case.name] = {"reference": None if case.endless else outcome(REFERENCE, case)}
        if case.differs:
            golden[case.name]["ours"] = outcome(OURS, case)
    lines = ",\n".join(f'{json.dumps(name)}: {json.dumps(outcomes)}' for name, outcomes in golden.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
