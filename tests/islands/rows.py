# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the table: what a load costs blue's fences, for each client that may be the one who makes it.

A Row's `open(lab, maker)` gives (fence, load): `fence()` is one true fence of blue's and returns a Fence, `load` a context manager
that has the load. A row that makes no sense for a maker does not name it. To add a row: one more entry of ROWS, or of a list of another
file that is added there.
"""

import collections
import collections.abc
import contextlib
import dataclasses
import itertools
import math
import os
import statistics
import time

from agents.zoo import Zoo
from lab import loads, net, programs, testdriver, wire

from .sites import RED, Site

KEYLESS, ANOTHER, OWN = "no key", "another's key", "own key"
#: Those who can ask for anything.
KEYED = (ANOTHER, OWN)
#: Fences of blue's for which a Site has domains.
FENCES = 420


@dataclasses.dataclass(frozen=True)
class Fence:
    """One fence: seconds of the whole agent, and whether it succeeded."""

    seconds: float
    succeeded: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """See the head of the file. `words` may name the laboratory's `{many}` domains. `waits`: its holders of blue's key may hold up blue's fences, by the rule of one survivor; else these are
    as quick as without the load. `slow`: each takes longer than on libvirt's test driver."""

    name: str
    words: str
    open: collections.abc.Callable
    makers: tuple = (KEYLESS, ANOTHER, OWN)
    waits: bool = False
    slow: bool = False

    def bound(self):
        """The makers with whom blue's fences are as quick as without the load."""
        return [it for it in self.makers if it != OWN or not self.waits]


@dataclasses.dataclass
class Figures:
    """Fences without the load, before and after it, and beside it."""

    quiet: list
    loaded: list

    def failed(self):
        """How many did not succeed."""
        return sum(not it.succeeded for it in self.quiet + self.loaded)


def seconds(fences, share):
    """The time within which that share of the fences ended."""
    ordered = sorted(it.seconds for it in fences)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(fences):
    """The median of their times."""
    return statistics.median(it.seconds for it in fences)


def measure(lab, row, maker, count, limit=math.inf):
    """So many fences beside the load, and half of them without it before it and after it. `limit`: seconds for those beside the load;
    there are fewer if they take longer."""
    with row.open(lab, maker) as (fence, load):
        for _ in range(4):
            fence()
        quiet = [fence() for _ in range((count + 1) // 2)]
        with load:
            end = time.monotonic() + limit
            loaded = [fence() for _ in itertools.takewhile(lambda _: time.monotonic() < end, range(count))]
        quiet += [fence() for _ in range((count + 1) // 2)]
    return Figures(quiet, loaded)


# -- blue's fences ----------------------------------------------------------------------------------------


class Fences:
    """Fences by blue's guest, by both ways in turn, each of the next of these domains. `start` has it run before, and `runs` says whether it
    does after."""

    def __init__(self, site, targets, start=lambda _: None, runs=lambda _: False):
        self.site, self._targets, self._start, self._runs = site, targets, start, runs
        self._ways, self._fenced = itertools.cycle(("tcp", "multicast")), collections.Counter()

    def __call__(self):
        target, way = next(self._targets), next(self._ways)
        self._start(target)
        result = self.site.fence(way, target)
        if result.rc == 0:
            self._fenced[target] += 1
            assert not self._runs(target), f"{target} runs"
        return Fence(result.seconds, result.rc == 0)

    def check(self):
        """Each that was said to be done was done, by the daemon's records."""
        wanted = {"action": "off", "decision": "run", "result": "success", "delivered": True}

        def done():
            """Offs in the records, as many as were told."""
            return collections.Counter(it["target"] for it in self.site.records()
                                       if it["target"] in self._fenced and wanted.items() <= it.items())
        net.wait_until(lambda: done() == self._fenced)


# -- red, blue and strangers on libvirt's test driver -----------------------------------------------------


def maker_of(site, maker):
    """Who makes a load: red's machine, with one key or another, and the domain that it asks for."""
    key = {KEYLESS: os.urandom(512)}.get(maker) or wire.read_key(site.keys["red" if maker == ANOTHER else "blue"])
    return wire.FakeClient(site.red, key), "blue1" if maker == OWN else "red1"


def on_test_driver(load, **options):
    """A Row's `open`. `load(site, client, target)` makes the load."""
    @contextlib.contextmanager
    def open_row(lab, maker):
        site = Site(lab.directory(), blue=[f"blue{it}" for it in range(1, FENCES)],
                    **{name: it(lab) if callable(it) else it for name, it in options.items()})
        try:
            fences = Fences(site, map("blue{}".format, itertools.count(1)))
            yield fences, load(site, *maker_of(site, maker))
            fences.check()
        finally:
            site.close()
    return open_row


def with_few_files(lab):
    """Our fence_virtd, which may open 256 files."""
    wrapper = lab.directory() / "with-few-files"
    wrapper.write_text(f'#!/bin/sh\nulimit -n 256\nexec {programs.OURS_DIR / "fence_virtd"} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def connections(count, say, **options):
    """Connections to the TCP listener."""
    return lambda site, client, target: loads.Connections(client, site.host.ip, target=target, count=count, say=say, **options)


def lists(count, **options):
    """Lists of all domains of the maker's group."""
    return lambda site, client, _: loads.Lists(client, site.host.ip, count=count, addresses=8, **options)


def packets(rate):
    """Multicast packets that differ."""
    return lambda _, client, target: loads.Packets(client, target, rate=rate)


def redirected(site, client, target, port=5900):
    """Packets that name the address of blue's guest."""
    return loads.Redirected(client, target, site.blue, rate=500, port=port)


def undying_machines(site, machines, key):
    """Machines, by name, that red's guest orders to be off with a key."""
    return loads.UndyingMachines(machines, lambda target: site.agent(site.red, "tcp", target, key))


# -- machines ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def undying(lab, maker):
    """Two machines of the maker's do not die; blue's others are real machines too."""
    blue = [f"blue{it}" for it in range(1, 6)]
    key, stuck = ("blue", blue[3:]) if maker == OWN else ("red", RED)
    machines = lab.machines([*RED, *blue])
    site = Site(lab.directory(), lab.hypervisor.uri, blue=blue)
    try:
        fences = Fences(site, itertools.cycle(blue[:3]), lambda it: machines[it].start(), lambda it: machines[it].pid())
        yield fences, undying_machines(site, {it: machines[it] for it in stuck}, key)
        fences.check()
    finally:
        site.close()


@contextlib.contextmanager
def hanging(lab, maker):
    """A device of the maker's hangs in each off; blue's others are domains of libvirt."""
    zoo, directory = Zoo(lab.directory()), lab.directory()
    blue, stuck = [f"blue{it}" for it in range(1, FENCES)], ("stuck1", "stuck2")
    members = {"red": [*RED, *stuck], "blue": blue} if maker == ANOTHER else {"red": RED, "blue": [*blue, *stuck]}
    site = Site(directory, testdriver.write(directory / "domains.xml", [*RED, *blue]), **members,
                devices=[zoo.device("hangs", *stuck, timeout=25, retries=0)])
    key = "red" if maker == ANOTHER else "blue"
    try:
        fences = Fences(site, map("blue{}".format, itertools.count(1)))
        yield fences, loads.Repeated(stuck, lambda it: site.agent(site.red, "tcp", it, key), lambda: zoo.runs("off"))
        fences.check()
    finally:
        site.close()


def listed(load):
    """A Row's `open` for a load of lists: red has the laboratory's many domains."""
    return on_test_driver(load, red=lambda lab: [*RED, *(f"more{it}" for it in range(lab.many))])


ROWS = [
    Row("silent clients", "118 connections ask for an off, have the host prove itself, and say no more",
        on_test_driver(connections(118, loads.challenge, seconds=28)), waits=True),
    Row("foreign address", "500 packets a second name blue's address, and a port there that takes connections and says nothing",
        on_test_driver(redirected)),
    Row("no challenge", "1,664 connections from 13 addresses with a request and no challenge",
        on_test_driver(connections(13 * 128, loads.request, addresses=13, seconds=8))),
    Row("lists", "900 lists of {many:,} domains outstanding, all the time", listed(lists(900)), KEYED),
    Row("unread lists", "1,000 clients ask for a list of {many:,} domains and do not read it", listed(lists(1000, read=False)), KEYED),
    Row("left lists", "200 clients ask for a list of {many:,} domains, hang up 0.1 s after their proof, and ask again",
        listed(lists(200, read=False, seconds=0.1)), KEYED),
    Row("packets", "30,000 different packets a second", on_test_driver(packets(30_000))),
    Row("undying machines", "offs of two machines whose QEMU stands still; all are real machines", undying, KEYED, waits=True, slow=True),
    Row("hanging device", "offs of two machines of the agent backend whose device hangs until it is killed", hanging, KEYED,
        waits=True, slow=True),
    Row("many keys", "2,000 different packets a second, where 1,000 more groups have a key of 4 KiB each",
        on_test_driver(packets(2000), keys=1000)),
    Row("few files", "330 silent connections from 3 addresses, where the daemon may open 256 files",
        on_test_driver(connections(330, loads.nothing, addresses=3), program=with_few_files), (KEYLESS,)),
    Row("few files and requests", "the same connections with a request, and no challenge",
        on_test_driver(connections(330, loads.request, addresses=3), program=with_few_files)),
]
