# SPDX-License-Identifier: GPL-2.0-or-later
"""What may happen, drawn from a seed.

A step names what is to be done and whatever has to be chosen for it; it looks at nothing. A step that makes no sense at
its moment (to destroy what does not run) is left out by the search. So the same seed makes the same steps, and any of
them can be taken out.
"""

import dataclasses
import random


@dataclasses.dataclass(frozen=True)
class Step:
    """One step. `at`: a place or a host, `way` and `guest`: see `World.agent`. `seconds`: a time that belongs to it."""

    kind: str
    domain: str = ""
    at: str = ""
    action: str = ""
    way: str = ""
    guest: int = 0
    seconds: float = 0.0
    wait: bool = True

    def line(self):
        """It in words."""
        words = [self.kind, self.action, self.domain]
        words += [f"at {self.at}"] if self.at else []
        words += [f"by {self.way}"] if self.way else []
        words += [f"{self.seconds:g} s"] if self.seconds else []
        return " ".join(filter(None, words)) + ("" if self.wait else ", in the background")


#: How often each kind is drawn.
OFTEN = {"ask": 42, "drop": 3, "start": 12, "define": 7, "undefine": 3, "destroy": 5, "save": 5, "cold": 8,
         "freeze": 3, "kill": 2, "stop": 2, "crash": 2, "restart": 3, "hold": 1, "cut off": 2, "heal": 14, "pause": 6}
#: Those that only QEMU can do.
OFTEN_QEMU = {"live": 9, "abort": 8, "cut": 5, "kill": 4, "restart": 4, "start": 18}
#: A kill of the test driver's libvirtd ends its domains: nothing can be learnt from it often.
SELDOM_TEST = {"kill": 1, "freeze": 4}
ACTIONS = {"status": 45, "off": 25, "reboot": 18, "on": 12}


def draw(seed, driver, hosts, places, domains, guests=4):
    """An endless row of steps."""
    rng = random.Random(seed)
    often = OFTEN | (OFTEN_QEMU if driver == "qemu" else SELDOM_TEST)

    def choose(weights):
        return rng.choices(list(weights), list(weights.values()))[0]

    domain = rng.choice(domains)
    while True:
        # Mostly one domain for a while: what happens to one makes sense only together.
        if rng.random() < 0.15:
            domain = rng.choice(domains)
        kind = choose(often)
        if kind in ("ask", "drop"):
            way = "multicast" if rng.random() < 0.6 else rng.choice(hosts)
            action = choose(ACTIONS) if kind == "ask" else rng.choice(["off", "reboot"])
            yield Step(kind, domain, action=action, way=way, guest=rng.randrange(guests),
                       seconds=4 if kind == "ask" else rng.choice([0.005, 0.02, 0.1, 0.5]),
                       wait=kind == "drop" or rng.random() < 0.5)
        elif kind in ("start", "define", "undefine", "freeze", "kill", "cold", "live", "abort", "cut"):
            yield Step(kind, domain if kind not in ("freeze", "kill") else "", at=rng.choice(places),
                       seconds=round(rng.uniform(0, {"abort": 0.5, "cut": 1.8}.get(kind, 0)), 2),
                       wait=kind not in ("live", "abort", "cut") or rng.random() < 0.4)
        elif kind in ("destroy", "save"):
            yield Step(kind, domain)
        elif kind in ("stop", "crash", "hold", "cut off"):
            yield Step(kind, at=rng.choice(hosts))
        elif kind == "restart":
            yield Step(kind, at=rng.choice(hosts), way=rng.choice(["TERM", "KILL"]))
        elif kind == "heal":
            yield Step(kind, seconds=rng.random())
        else:
            yield Step(kind, seconds=rng.choice([0.02, 0.1, 0.3, 1]))
