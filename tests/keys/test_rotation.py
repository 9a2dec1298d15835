# SPDX-License-Identifier: GPL-2.0-or-later
"""The change of a key while the cluster goes on, as docs/keys.md tells it."""

import itertools

from lab import programs

GUESTS = (1, 2, 3)


def test_rotation_without_a_gap(stage, daemon):
    """Host with the old key; with both; guest after guest to the new one; host with the new one."""
    keys = dict.fromkeys(GUESTS, "old")

    def everybody_can_fence():
        for guest, way in itertools.product(GUESTS, (stage.multicast, stage.tcp)):
            assert way(keys[guest], "-o", "status", "-H", "vm1", guest=guest).rc == 0, (guest, keys[guest])

    host = daemon(keys=("old",))
    everybody_can_fence()
    host.stop()
    host = daemon(keys=("new", "old"))
    assert "WARN" not in host.log
    everybody_can_fence()
    for guest in GUESTS:
        keys[guest] = "new"
        everybody_can_fence()
    host.stop()
    host = daemon(keys=("new",))
    everybody_can_fence()
    # The old one is worth nothing now.
    assert stage.tcp("old", "-o", "status", "-H", "vm1", t=3).rc == 1
    host.wait_log("hash-mismatch")


def test_an_agent_that_asks_while_the_host_restarts(stage, daemon):
    """The restart costs a retransmission, no fence."""
    host = daemon(keys=("old",))
    host.stop()
    agent = programs.Agent(stage.guest(1), "-k", stage.key("old"), "-t", 20, "-r", 2, "-o", "off", "-H", "vm1",
                           program=str(programs.OURS_DIR / "fence_xvm"))
    host = daemon(keys=("new", "old"))
    assert agent.finish().rc == 0


def test_the_order_has_no_meaning(stage, daemon):
    for keys in (("old", "new"), ("new", "old")):
        host = daemon(keys=keys)
        for key in keys:
            assert stage.multicast(key, "-o", "status", "-H", "vm1").rc == 0
        host.stop()


def test_a_key_that_is_given_twice_is_said(stage, daemon):
    host = daemon(keys=("old", "old"))
    host.wait_log(r"WARN.*the listener has the key [0-9a-f]{4} twice: .*old\.key, .*old\.key")
    assert stage.tcp("old", "-o", "status", "-H", "vm1").rc == 0
