# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench itself: its arithmetic, and a quick run that must be able to measure everything. No figure is judged."""

import json
import os
import pathlib
import subprocess
import sys

from bench.report import OURS, REFERENCE, Row, Series, table

BENCH = pathlib.Path(__file__).with_name("bench.py")


def test_median_and_p95():
    series = Series([float(n) for n in range(100, 0, -1)])
    assert (series.median, series.p95) == (50.5, 95.0)
    assert Series([3.0, 1.0]).p95 == 3.0
    assert (Series().median, Series().p95) == (None, None)


def test_a_ratio_is_ours_by_the_reference():
    row = Row("s", "n")
    assert row.ratio() == "-"
    row.add(REFERENCE, 0.010)
    row.add(OURS, 0.005)
    assert row.ratio() == "0.500"
    assert row.json()["series"][OURS] == {"values": [0.005], "failed": [], "beyond": 0, "median": 0.005, "p95": 0.005}


def test_what_was_given_up_is_shown_as_a_bound():
    row = Row("s", "n")
    row.add(REFERENCE, 30, beyond=True)
    row.add(OURS, 0.003)
    assert row.ratio() == "<0.0001"
    assert ">30 s" in table([row])


def test_failures_are_shown_and_not_averaged():
    row = Row("s", "n")
    row.add(REFERENCE, 0.010)
    row.add(OURS, None, failed="exit code 1")
    assert row.ratio() == "-"
    assert "ours: 1 failed" in table([row])


def test_columns_stand_below_each_other():
    rows = [Row("section", name) for name in ("a", "much longer")]
    for row in rows:
        row.add(REFERENCE, 1.0)
        row.add(OURS, 123.0)
    head, *lines = table(rows).splitlines()[:3]
    assert {line.index("ms") for line in lines} == {len("much longer") + 2}
    assert all(len(line) == len(head) for line in lines)


def test_a_quick_run(tmp_path):
    done = subprocess.run([sys.executable, BENCH, "--quick"], env={**os.environ, "BENCH_DIR": str(tmp_path)},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.iterdir()
    result = json.loads(path.read_text())
    sections = {row["section"] for row in result["rows"]}
    assert len(sections) == 8, sections
    for row in result["rows"]:
        for side in (REFERENCE, OURS):
            assert row["series"][side]["values"], f"nothing measured: {row['section']}, {row['name']}, {side}"
            assert not row["series"][side]["failed"]
        assert row["name"] in done.stdout
    assert result["machine"]["kernel"] == os.uname().release
    assert len(result["programs"][OURS]["fence_virtd"]["sha256"]) == 64
