# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever happens to hosts, hypervisors, daemons and networks: no answer is untrue, and requests succeed when nothing is wrong.

Run: SIDE=ours OURS_DIR=… /usr/bin/python3 -m pytest tests/truth_search        (root; libvirt and QEMU installed)

SEED chooses what is drawn: a number, or "new". STEPS: of each search. MINUTES: searches go on that long, each with new
seeds. WORLDS: names, with commas. A search that fails prints its steps and how to repeat it.
"""

import concurrent.futures
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from lab import judged, programs

from .search import WORLDS

SEARCH = pathlib.Path(__file__).with_name("search.py")
SEED = os.environ.get("SEED", "1")
MINUTES = float(os.environ.get("MINUTES", "0"))
#: Steps of one search, and how many there are of each world: more than 2,000 steps. QEMU takes its time for each.
STEPS, SEEDS = {"test": 170, "qemu": 85}, {"test": 3, "qemu": 2}
#: Searches at once.
SIDE_BY_SIDE = 8
SEARCHES = [(world, n) for world, shape in WORLDS.items() for n in range(SEEDS[shape.driver])
            if world in os.environ.get("WORLDS", world).split(",")]


@pytest.fixture(scope="module", autouse=True)
def the_programs():
    """They are there."""
    if gone := programs.missing([programs.program("ours", it) for it in ("fence_virtd", "fence_xvm", "fence_virt")]):
        pytest.fail(f"not there: {', '.join(gone)}")


def new_seed():
    """One that nobody has chosen."""
    return random.SystemRandom().randrange(1, 10**9)


def run(world, seed):
    """One search: its exit code and what it printed."""
    steps = os.environ.get("STEPS") or STEPS[WORLDS[world].driver]
    done = subprocess.run([sys.executable, SEARCH, world, "--seed", str(seed), "--steps", str(steps), "--enough", "2"],
                          capture_output=True, text=True, env={**os.environ, "SIDE": "ours"})
    return done.returncode, done.stdout + done.stderr


def search(world, number):
    """Searches of one world: the last line of each, and all of the first that found something."""
    end, said = time.monotonic() + 60 * MINUTES, []
    while True:
        seed = new_seed() if MINUTES or SEED == "new" else int(SEED) + number
        code, text = run(world, seed)
        if code:
            # One that could not go on has no report.
            return said, text[max(text.find("=" * 30), 0):][-200_000:]
        said.append(" ".join(text.splitlines()[-2:]))
        if time.monotonic() >= end:
            return said, None


def test_no_answer_is_untrue(note):
    """Every search of every world, several side by side: they wait most of their time. All at once would make the machine stand still
    for what runs beside."""
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        results = list(pool.map(lambda it: search(*it), SEARCHES))
    for said, _ in results:
        for line in said:
            note(line)
    # What it is about comes first: what follows is long, and may be cut where it is shown.
    found = ["\n".join([*(line.strip() for line in text.splitlines() if "REFUSED" in line or "now:  " in line), text])
             for _, text in results if text]
    if any("UNTRUE" in it for it in found):
        raise judged.UntrueAnswer("\n".join(found))
    assert not found, "\n".join(found)
