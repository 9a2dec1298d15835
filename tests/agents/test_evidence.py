# SPDX-License-Identifier: GPL-2.0-or-later
"""What is no evidence: an earlier look, a silence that is too short, an action that was only claimed."""

import time

import pytest
from lab import net

from .rig import FAILED, OK, OFF, device
from .test_survivor import Node, shoot
from .zoo import Zoo


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_reboot_that_comes_while_the_first_one_starts_the_machine(site, start_host, tmp_path, is_killed):
    """The machine is up again, and the first request's `on` has not returned, or its client is gone: the second reboot
    must take down the machine that runs then."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device("lingers", retries=0)])
    first = site.ask("-o", "reboot", "-H", "lingers", wait=False)
    zoo.wait_run("on", "lingers")
    net.wait_until(lambda: zoo.power("lingers") == "on")
    if is_killed:
        first.process.kill()
        first.finish()
        host.wait_records(1)
    second = site.ask("-o", "reboot", "-H", "lingers")
    if not is_killed:
        assert first.finish(60).rc == OK
    record = host.wait_records(2)[-1]
    assert second.rc == OK and record["reason"] is None, (second, record)
    assert len(zoo.runs("off", "lingers")) == 2, record


@pytest.mark.parametrize("mode", ["lies", "waits"])
def test_an_action_that_was_only_claimed_holds_up_the_other_shot(site, start_host, tmp_path, mode):
    """A device says "done", or its agent waited in vain, and it acts after the request has failed. The machine that is to go down must not shoot the one
    that asked for it in between: both would be down."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device(mode, "right", retries=0), zoo.device("good", "left")])
    left, right = nodes = [Node(site, name, lambda: None) for name in ("left", "right")]
    for node in nodes:
        node.boot()
    try:
        assert shoot(left, right).finish(60).rc == FAILED
        (record,) = host.wait_records(1)
        second = shoot(right, left)
        host.daemon.wait_log(r"heard id=2 ")
        # Far longer than one look at the device, and than an order that failed.
        time.sleep(12)
        zoo.switch("right", "off")
        right.die()
        result = second.finish(60)
        host.wait_records(2)
        assert zoo.power("left") == "on" and not zoo.runs("off", "left"), (record, result, host.daemon.log[-6000:])
        # What was held up goes on when the device shows the effect.
        assert site.ask("-o", "off", "-H", "left").rc == OK
    finally:
        for node in nodes:
            site.net.remove(node.place.name)


@pytest.mark.parametrize("first", ["off", "on"])
def test_a_slow_device_is_heard_before_off_is_said(site, start_host, tmp_path, first):
    """Two devices have one name, each with a machine of its own. One answers at once, the other after 3.5 s."""
    zoo = Zoo(tmp_path / "zoo")
    zoo.switch("one", first)
    zoo.switch("two", "on")
    start_host([device("quick", zoo.agent("good"), "both:one", order=1),
                device("slow", zoo.agent("ponders"), "both:two", order=2)])
    assert site.ask("-o", "status", "-H", "both").rc == OK
    result = site.ask("-o", "off", "-H", "both")
    assert (zoo.power("one"), zoo.power("two"), result.rc) == ("off", "off", OK), result
    assert site.ask("-o", "status", "-H", "both").rc == OFF
