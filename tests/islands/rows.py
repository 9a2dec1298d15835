# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the table: what a load costs blue's fences, for each client that may be the one who makes it.

A Row's `open(lab, maker)` gives (fence, load): `fence()` is one true fence of blue's and returns a Fence, `load` a context manager
that has the load. A row that makes no sense for a maker does not name it. To add a row: one more entry of ROWS, or of a list of another
file that is added there.
"""

import collections.abc
import contextlib
import dataclasses
import itertools
import math
import os
import statistics
import time

from lab import loads, net, programs, wire

from .sites import RED, Site

KEYLESS, ANOTHER, OWN = "no key", "another's key", "own key"
#: Domains of red's where lists are asked for.
MANY = 5000
#: Fences of blue's for which a Site has domains.
FENCES = 420


@dataclasses.dataclass(frozen=True)
class Fence:
    """One fence: seconds of the whole agent, and whether it succeeded."""

    seconds: float
    succeeded: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """See the head of the file. `bound`: the makers with whom blue's fences must stay as quick as they are without the load."""

    name: str
    words: str
    open: collections.abc.Callable
    makers: tuple = (KEYLESS, ANOTHER, OWN)
    bound: tuple = (KEYLESS, ANOTHER)


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
    """Fences by blue's guest, by both ways in turn, each of a domain that runs; `machines` are domains with a QEMU. The record of each must
    tell of one off that was carried out."""

    def __init__(self, site, machines=None):
        self.site, self.machines = site, machines
        self._targets = itertools.cycle(machines) if machines else map("blue{}".format, itertools.count(1))
        self._ways, self._fenced = itertools.cycle(("tcp", "multicast")), []

    def __call__(self):
        target, way = next(self._targets), next(self._ways)
        if self.machines:
            self.machines[target].start()
        result = self.site.fence(way, target)
        if result.rc == 0:
            self._fenced.append(target)
            assert not self.machines or not self.machines[target].pid(), f"{target} runs"
        return Fence(result.seconds, result.rc == 0)

    def check(self):
        """Each fence that was said to be done was one, by the daemon's records."""
        def done():
            return sorted(it["target"] for it in self.site.records()
                          if (it["action"], it["decision"], it["result"]) == ("off", "run", "success")
                          and it["target"].startswith("blue") and it["delivered"])
        try:
            net.wait_until(lambda: done() == sorted(self._fenced), 10)
        except TimeoutError:
            raise AssertionError(f"fenced: {sorted(self._fenced)}\nrecords: {done()}") from None


# -- red, blue and strangers on libvirt's test driver -----------------------------------------------------


def maker_of(site, maker):
    """Who makes a load: red's machine, with one key or another, and the domain that it asks for."""
    key = {KEYLESS: os.urandom(512)}.get(maker) or wire.read_key(site.keys["red" if maker == ANOTHER else "blue"])
    return wire.FakeClient(site.red, key), "blue1" if maker == OWN else "red1"


def on_test_driver(load, red=RED, **options):
    """A Row's `open`. `load(site, client, target)` makes the load."""
    @contextlib.contextmanager
    def open_row(lab, maker):
        site = Site(lab.directory(), red=red, blue=[f"blue{it}" for it in range(1, FENCES)],
                    **{name: it(lab) if callable(it) else it for name, it in options.items()})
        try:
            fences = Fences(site)
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


def redirected(site, client, target):
    """Packets that name the address of blue's guest."""
    return loads.Redirected(client, target, site.blue, rate=500)


# -- machines ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def undying(lab, maker):
    """Two machines of the maker's do not die; blue's others are real machines too."""
    name = "blue" if maker == OWN else "red"
    machines = lab.machines([*RED, *(f"blue{it}" for it in range(1, 6))])
    site = Site(lab.directory(), lab.hypervisor.uri, blue=[it for it in machines if it.startswith("blue")])
    stuck = ("blue4", "blue5") if maker == OWN else RED
    try:
        fences = Fences(site, {it: machines[it] for it in ("blue1", "blue2", "blue3")})
        yield fences, loads.UndyingMachines({it: machines[it] for it in stuck},
                                            lambda target: site.agent(site.red, "tcp", target, name))
    finally:
        site.close()


#: Domains of red's for lists.
CROWD = (*RED, *(f"more{it}" for it in range(MANY)))

ROWS = [
    Row("silent clients", "118 connections ask for an off, have the host prove itself, and say no more",
        on_test_driver(connections(118, loads.challenge, seconds=28))),
    Row("foreign address", "500 packets a second name blue's address, and a port there that takes connections and says nothing",
        on_test_driver(redirected)),
    Row("no challenge", "1,664 connections from 13 addresses with a request and no challenge, renewed each second",
        on_test_driver(connections(13 * 128, loads.request, addresses=13, seconds=1))),
    Row("lists", f"900 lists of {MANY:,} domains outstanding, all the time", on_test_driver(lists(900), CROWD), (ANOTHER, OWN), (ANOTHER,)),
    Row("unread lists", f"1,000 clients ask for a list of {MANY:,} domains and do not read it",
        on_test_driver(lists(1000, read=False), CROWD), (ANOTHER, OWN), (ANOTHER,)),
    Row("left lists", "the same clients hang up half a second later, and ask again",
        on_test_driver(lists(1000, read=False, seconds=0.5), CROWD), (ANOTHER, OWN), (ANOTHER,)),
    Row("packets", "30,000 different packets a second", on_test_driver(packets(30_000))),
    Row("undying machines", "offs of two machines whose QEMU stands still", undying, (ANOTHER, OWN), (ANOTHER,)),
    Row("many keys", "2,000 different packets a second, where 1,000 more groups have a key of 4 KiB each",
        on_test_driver(packets(2000), keys=1000)),
    Row("few files", "330 silent connections from 3 addresses, where the daemon may open 256 files",
        on_test_driver(connections(330, loads.nothing, addresses=3), program=with_few_files), (KEYLESS,)),
    Row("few files and requests", "the same connections with a request, and no challenge",
        on_test_driver(connections(330, loads.request, addresses=3), program=with_few_files)),
]
