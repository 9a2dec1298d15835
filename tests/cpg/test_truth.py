# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of docs/truth.md for the hosts of a corosync cluster. h1 is asked, h2 and h3 are elsewhere."""

import pytest
from lab import testdriver, truth
from lab.net import wait_until

OURS = "ours"


@pytest.mark.parametrize("row", truth.rows("cpg"), ids=str)
def test_row(hosts, row):
    def arrange():
        for host, shows in ((hosts.h1, row.here), (hosts.h2, elsewhere)):
            if shows != "none":
                host.has("x", uuid=testdriver.uuid_of("x"), start=shows == "on")

    # A machine that runs at one host is a definition at another. h3 has no daemon where it is unknown.
    elsewhere = {"any": "off", "unknown": "off"}.get(row.elsewhere, row.elsewhere)
    is_whole = row.elsewhere not in ("any", "unknown")
    arrange()
    hosts.serve(h1=OURS, h2=OURS, **({"h3": OURS} if is_whole else {}))
    hosts.h1.has("here")
    hosts.wait_status("h1", "here", 0)
    for action, answer in row.answers.items():
        arrange()
        if answer in ("on", "off"):
            hosts.wait_status("h1", "x", truth.CODES[answer])
        result = hosts.ask("h1", action, "x")
        assert result.rc == truth.CODES[answer], f"{action}: {result}\n{hosts.logs()}"
        running = [host.name for host in (hosts.h1, hosts.h2) if host.state("x") == "running"]
        if action == "off" and answer == "done":
            assert running == [], f"{result}\n{hosts.logs()}"
        if action == "on" and answer == "done":
            wait_until(lambda: "running" in [host.state("x") for host in (hosts.h1, hosts.h2)], 30)
