# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of docs/truth.md for two devices of one domain, with agents that are programs."""

import concurrent.futures

import pytest
from lab import truth

from .rig import device
from .zoo import Zoo

#: Seconds that a device gets for one status.
LOOK = 3


@pytest.mark.parametrize("row", truth.rows("agent"), ids=str)
def test_row(site, start_host, tmp_path, row):
    """Each action has a machine of its own, so that all are asked at once: where no device knows, most last as long as a
    request may."""
    zoo = Zoo(tmp_path / "zoo")
    shown = {"here": row.here, "elsewhere": row.elsewhere}

    def one(place):
        agent = zoo.agent("silent" if shown[place] == "unknown" else "good")
        domains = [{"name": action, "plug": f"{action}-{place}"} for action in row.answers]
        return device(place, agent, None, domains=domains, status_timeout=LOOK, retries=0, effect_timeout=1, max_running=16)
    for place, state in shown.items():
        for action in row.answers:
            # One that never says how it stands has the machine on, which nobody can know.
            zoo.switch(f"{action}-{place}", "on" if state == "unknown" else state)
    host = start_host([one("here"), one("elsewhere")], agent={"max_running": 64})
    site.guest()
    with concurrent.futures.ThreadPoolExecutor(len(row.answers)) as pool:
        asked = {action: pool.submit(site.ask, "-o", action, "-H", action, "-t", 60) for action in row.answers}
    for action, answer in row.answers.items():
        result = asked[action].result()
        said = f"{action}: {result}\n" + "\n".join(host.daemon.lines[-40:])
        assert result.rc == truth.CODES[answer], said
        if action == "off" and answer == "done":
            assert all(zoo.power(f"off-{place}") == "off" for place, it in shown.items() if it != "unknown"), said
