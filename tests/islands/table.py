#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a load costs the fences of others: the table of docs/limits.md.

    make loads                                                          # builds what is needed
    OURS_DIR=target/dist scripts/contained --strict tests/islands/table.py     # as root; five minutes on two cores
    … table.py --only lists,packets --fences 20                         # some rows, fewer fences

Each row is measured in one run: half of the quiet fences before the load, half of them after it. Nothing is judged here; that is what
test_loads.py does.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("SIDE", "ours")

from islands.rows import ROWS, measure, seconds  # noqa: E402
from islands.sites import Lab  # noqa: E402
from lab import net, programs  # noqa: E402

#: Seconds for the fences beside a load; where they wait in their own island there are fewer of them.
LIMIT = 20
#: Domains where lists are asked for.
MANY = 5000


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description="what a load costs the fences of others")
    parser.add_argument("--fences", type=int, default=100)
    parser.add_argument("--only", default=",".join(it.name for it in ROWS))
    options = parser.parse_args()
    net.exit_on_sigterm()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=programs.REPOSITORY, capture_output=True, text=True).stdout.strip()
    print(f"Commit {commit}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} before, {options.fences} fences.\n")
    print("| load | who | quiet: p50, p99 in ms | beside the load: p50, p99 | ratio of p99 | failed |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="fvlab-") as directory, Lab(pathlib.Path(directory), MANY) as lab:
        for row in ROWS:
            if row.name in options.only.split(","):
                for maker in row.makers:
                    print(line(row, maker, measure(lab, row, maker, options.fences, LIMIT)), flush=True)


def line(row, maker, figures):
    """A row of Markdown."""
    quiet, loaded = ([seconds(them, share) for share in (0.5, 0.99)] for them in (figures.quiet, figures.loaded))
    failed = f"{figures.failed()} of {len(figures.quiet + figures.loaded)}" if figures.failed() else ""
    cells = [row.words.format(many=MANY) if maker == row.makers[0] else "…", maker, *(f"{p50 * 1000:.0f}, {p99 * 1000:.0f}" for p50, p99 in (quiet, loaded)),
             f"{loaded[1] / quiet[1]:.1f}", failed]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
