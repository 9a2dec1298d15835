# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of docs/truth.md for two devices of one domain, with agents that are programs."""

import pytest
from lab import truth

from .rig import device
from .zoo import Zoo

#: Seconds that a device gets for one status.
LOOK = 2


@pytest.mark.parametrize("row", truth.rows("agent"), ids=str)
def test_row(site, start_host, tmp_path, row):
    zoo = Zoo(tmp_path / "zoo")
    shown = {"here": row.here, "elsewhere": row.elsewhere}

    def one(plug):
        agent = zoo.agent("silent" if shown[plug] == "unknown" else "good")
        return device(plug, agent, None, domains=[{"name": "x", "plug": plug}], status_timeout=LOOK, retries=0, effect_timeout=1)
    # One that never says how it stands has the machine on, which nobody can know.
    states = {plug: "on" if it == "unknown" else it for plug, it in shown.items()}
    for plug, state in states.items():
        zoo.switch(plug, state)
    host = start_host([one("here"), one("elsewhere")])
    for action, answer in row.answers.items():
        for plug, state in states.items():
            zoo.switch(plug, state)
        result = site.ask("-o", action, "-H", "x", "-t", 60)
        said = f"{action}: {result}\n" + "\n".join(host.daemon.lines[-10:])
        assert result.rc == truth.CODES[answer], said
        if action == "off" and answer == "done":
            assert all(zoo.power(plug) == "off" for plug, it in shown.items() if it != "unknown"), said
