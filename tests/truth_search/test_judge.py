# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge: what is certainly untrue is said, and a race is none. A search that accepts everything would find nothing."""

import pytest

from .judge import Answer, Deed, untrue
from .readings import Reading, Sight

H1, H2 = "h1.0", "h2.0"


def reading(at, *sights, saved=(), defined=()):
    """A Reading of domain a at a moment."""
    return Reading(at, at + 0.1, {"a": sights}, {"a": frozenset(saved)}, {"a": frozenset(defined)})


def runs(place, instance, **more):
    return Sight(place, instance, True, **more)


def judged(action, code, before, after, *deeds):
    """A request from 10 to 20."""
    return untrue(Answer(action, "a", code), before, after, deeds)


ON = reading(9, runs(H1, "1"))
NOWHERE, STILL_NOWHERE = reading(9), reading(20)

UNTRUE = {
    "status off, and it ran all the time": ("status", 2, ON, reading(20, runs(H1, "1"))),
    "off, and it goes on": ("off", 0, ON, reading(20, runs(H1, "1"))),
    "reboot, and it is the same": ("reboot", 0, ON, reading(20, runs(H1, "1"))),
    "off, and it had come before": (
        "off", 0, reading(9, runs(H2, "7")), reading(20, runs(H2, "7")), Deed("cold", "a", 5, 8)),
    "status off, while it moved": (
        "status", 2, ON, reading(20, runs(H2, "7", incoming=True)), Deed("live", "a", 8, 15)),
    "off, while it moved": ("off", 0, ON, reading(20, runs(H2, "7", incoming=True)), Deed("live", "a", 8)),
    "off, and it waited at its new host already": (
        "off", 0, reading(9, runs(H1, "1"), Sight(H2, "7", False, True)), reading(20, runs(H2, "7", incoming=True)),
        Deed("live", "a", 8)),
    "off, and the move was given up": ("off", 0, ON, reading(20, runs(H1, "1")), Deed("abort", "a", 8, 15)),
    "reboot, while it moved": ("reboot", 0, ON, reading(20, runs(H2, "7", incoming=True)), Deed("live", "a", 8)),
    "off, and it comes up by itself": ("off", 0, NOWHERE, reading(20, runs(H1, "2"))),
    "off, and its memory is kept": (
        "off", 0, reading(9, saved=[H1], defined=[H1]), reading(20, saved=[H1], defined=[H1])),
    "on, with the memory of before": (
        "on", 0, reading(9, saved=[H1], defined=[H1]), reading(20, runs(H1, "2", incoming=True), defined=[H1])),
    "reboot, with the memory of before": ("reboot", 0, NOWHERE, reading(20, runs(H1, "2", incoming=True))),
    "on, and there is nothing": ("on", 0, NOWHERE, STILL_NOWHERE),
    "status on, and there is nothing": ("status", 0, NOWHERE, STILL_NOWHERE),
    "on, and it runs twice": ("on", 0, ON, reading(20, runs(H1, "1"), runs(H2, "7"))),
}

MAY_BE_TRUE = {
    "a failure is never untrue": ("off", 1, ON, reading(20, runs(H1, "1"))),
    "no answer is never untrue": ("off", None, ON, reading(20, runs(H1, "1"))),
    "off, and it is": ("off", 0, ON, STILL_NOWHERE),
    "reboot, and it is another": ("reboot", 0, ON, reading(20, runs(H1, "2"))),
    "reboot, and its start failed": ("reboot", 0, ON, STILL_NOWHERE),
    "status off, in the middle of a cold move": (
        "status", 2, ON, reading(20, runs(H2, "7")), Deed("cold", "a", 12, 13)),
    "off, and somebody starts it": ("off", 0, ON, reading(20, runs(H2, "7")), Deed("start", "a", 15, 16)),
    "off, and somebody else's reboot starts it": (
        "off", 0, ON, reading(20, runs(H1, "2")), Deed("reboot", "a", 5)),
    "off, and a rest of a move waits for memory": (
        "off", 0, ON, reading(20, Sight(H2, "7", False, True)), Deed("live", "a", 8, 12)),
    "a start by hand may wake it": (
        "on", 0, NOWHERE, reading(20, runs(H1, "2", incoming=True)), Deed("start", "a", 12, 13)),
    "on, and another fences it": ("on", 0, NOWHERE, STILL_NOWHERE, Deed("off", "a", 12, 13)),
    "status on, and it could not be told whether it runs": (
        "status", 0, reading(9, Sight(H1, "1", None)), STILL_NOWHERE),
    "off, and it ran twice": ("off", 0, reading(9, runs(H1, "1"), runs(H2, "7")), reading(20, runs(H2, "7"))),
    "off, and another place keeps an image": (
        "off", 0, reading(9, saved=[H1], defined=[H1, H2]), reading(20, saved=[H1], defined=[H1, H2])),
}


@pytest.mark.parametrize("case", UNTRUE)
def test_it_says_what_is_untrue(case):
    assert judged(*UNTRUE[case])


@pytest.mark.parametrize("case", MAY_BE_TRUE)
def test_it_says_nothing_of_what_may_be_true(case):
    assert judged(*MAY_BE_TRUE[case]) is None


def test_a_deed_long_ago_excuses_nothing():
    assert judged("off", 0, NOWHERE, reading(20, runs(H1, "2")), Deed("start", "a", 2, 3))


def test_a_deed_to_another_domain_excuses_nothing():
    assert judged("off", 0, NOWHERE, reading(20, runs(H1, "2")), Deed("start", "b", 12, 13))
