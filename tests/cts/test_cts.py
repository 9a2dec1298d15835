# SPDX-License-Identifier: GPL-2.0-or-later
"""Pacemaker's own Cluster Test Suite on three nodes that our programs fence.

`make test` has one of its tests, in which a node is fenced by hand. WIDE=1 is the long run: each of its tests, with fences in between,
and TESTS of them (25 unless set), drawn from SEED (else from the clock). The suite judges: it watches the logs of all nodes for what must come, and
for errors, and audits the cluster after each test. What is held against it here is what was really powered off.
"""

import os
import re
import subprocess
import time

import pytest

from lab import programs
from pacemaker.nodes import Lab

from .cluster import Suite

WIDE = os.environ.get("WIDE", "") not in ("", "0")
TESTS = int(os.environ.get("TESTS", "25"))
SEED = os.environ.get("SEED") or str(int(time.time()))
#: All tests that need no pacemaker_remote, no containers and no experiments.
APPLICABLE = ["Flip", "Restart", "Stonithd", "StartOnebyOne", "SimulStart", "SimulStop", "StopOnebyOne", "RestartOnebyOne", "PartialStart",
              "Standby", "MaintenanceMode", "ResourceRecover", "ComponentFail", "Reattach", "SpecialTest1", "NearQuorumPoint"]
#: Seconds for the start and the end of the suite, and for a test of it, on a busy machine.
BEFORE, EACH = 600, 300
#: A seed with which each node is fenced by our device alone ("broadcast"): the others add waits of up to 30 s.
SEED_OF_ONE = "7"

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")


@pytest.fixture
def suite(tmp_path):
    """Nodes, daemon and suite; each case has its own."""
    files = programs.TARGET / "cts"
    subprocess.run([programs.REPOSITORY / "tests/cts/prepare", files], check=True)
    with Lab(tmp_path) as lab:
        lab.serve("ours")
        with Suite(lab, ["c1", "c2", "c3"], files) as suite:
            yield suite


def judge(suite, output, count, note):
    """All tests passed; each fence that Pacemaker was told of was one. Returns the names of the domains that were powered off."""
    results = re.search(r"Overall Results:\{'success': (\d+), 'failure': (\d+), 'BadNews': (\d+), 'skipped': (\d+)", output)
    assert results, output[-6000:]
    success, failure, bad_news, skipped = map(int, results.groups())
    ran = re.findall(r"Running test (\S+)", output)
    calls = [call for node in suite.nodes for call in node.calls() if call.options.get("action") in ("off", "reboot")]
    done = [record for record in suite.lab.records() if record["action"] in ("off", "reboot") and record["result"] == "success"]
    note(f"{len(ran)} tests ({', '.join(sorted(set(ran)))}), {success} passed, {skipped} skipped, {bad_news} errors in logs; "
         f"{len(done)} fences, agents took {max((call.ended - call.began for call in calls), default=0):.1f} s at most")
    assert (success + skipped, failure, len(ran)) == (count, 0, count), output[-6000:]
    for call in calls:
        # An agent that was killed with its node has no result.
        assert call.rc == 0 or call.err, call
    assert sum(call.rc == 0 for call in calls) <= len(done)
    return {record["target"] for record in done}


def test_a_fence_by_hand(suite, note):
    output = suite.run(1, SEED_OF_ONE, "--choose", "Stonithd", timeout=BEFORE + EACH)
    assert len(judge(suite, output, 1, note)) == 1


@pytest.mark.skipif(not WIDE, reason="the long run: WIDE=1")
def test_each_of_its_tests(suite, note):
    """In the suite's order, with fences in between; by hand, as everything else in it that fences is rare."""
    tests = [name for number, test in enumerate(APPLICABLE) for name in ([test, "Stonithd"] if number % 3 == 0 else [test])]
    note(f"seed {SEED}")
    output = suite.run(len(tests), SEED, *(word for name in tests for word in ("--choose", name)), timeout=BEFORE + len(tests) * EACH)
    judge(suite, output, len(tests), note)


@pytest.mark.skipif(not WIDE, reason="the long run: WIDE=1")
def test_many(suite, note):
    """Drawn at random."""
    note(f"seed {SEED}")
    output = suite.run(TESTS, SEED, timeout=BEFORE + TESTS * EACH)
    judge(suite, output, TESTS, note)
