# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs where, read at the hypervisors.

Of QEMU nothing that libvirt says counts: a machine is its process, and QEMU itself says over a monitor of our own whether
its processors run. Of libvirt's test driver there is nothing but libvirtd's word; while libvirtd stands still, what it said
last is true.

Must never ask a daemon under test.
"""

import contextlib
import dataclasses
import json
import pathlib
import socket
import time

import libvirt

from lab import process


@dataclasses.dataclass(frozen=True)
class Sight:
    """One instance of a domain at one place. `instance` is never used again at that place. `runs` None: it could not be
    told. `incoming`: it got its memory from elsewhere, of a migration or a file."""

    place: str
    instance: str
    runs: bool | None
    incoming: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """All places at once, so to speak: what it says was so at some moment between `began` and `ended`."""

    began: float
    ended: float
    sights: dict          # domain: tuple of Sight
    saved: dict           # domain: frozenset of places with an image of its memory
    defined: dict         # domain: frozenset of places with a definition

    def of(self, domain):
        """The sights of a domain."""
        return self.sights.get(domain, ())

    def running(self, domain):
        """The sights of a domain of which it is certain that they run."""
        return [it for it in self.of(domain) if it.runs]

    def line(self, domain):
        """A domain in a few words."""
        words = [f"{it.place} {it.instance} {({True: 'runs', False: 'does not run'}).get(it.runs, 'can not be told')}"
                 + (" (incoming)" if it.incoming else "") for it in self.of(domain)]
        words += [f"image at {it}" for it in sorted(self.saved.get(domain, ()))]
        words += [f"defined at {it}" for it in sorted(self.defined.get(domain, ()))]
        return ", ".join(words) or "nowhere"


def read(places, clock):
    """A Reading of these places now."""
    began = clock()
    sights, saved, defined = {}, {}, {}
    for place in places:
        with place.lock:
            seen = place.look()
        for domain, sight in seen.sights:
            sights[domain] = (*sights.get(domain, ()), sight)
        for domain in seen.saved:
            saved[domain] = saved.get(domain, frozenset()) | {place.name}
        for domain in seen.defined:
            defined[domain] = defined.get(domain, frozenset()) | {place.name}
    return Reading(began, clock(), sights, saved, defined)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one look at one place showed."""

    sights: tuple = ()        # (domain, Sight)
    saved: frozenset = frozenset()
    defined: frozenset = frozenset()


def look_at_test_driver(place, connection, life):
    """A Seen of a libvirtd with the test driver that answers."""
    sights, saved, defined = [], set(), set()
    for it in connection.listAllDomains():
        name, number = it.name(), it.ID()
        if number > 0:
            sights.append((name, Sight(place, f"{life}:{number}", True)))
        with contextlib.suppress(libvirt.libvirtError):      # a transient one has just ended
            if it.isPersistent():
                defined.add(name)
                if it.hasManagedSaveImage():
                    saved.add(name)
    return Seen(tuple(sights), frozenset(saved), frozenset(defined))


def look_at_qemu(place, first, names):
    """A Seen of the QEMUs below the first process of a hypervisor's namespaces. `names`: {uuid: domain}."""
    root = pathlib.Path(f"/proc/{first}/root")
    sights = []
    for pid in process.children(first):
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "-uuid" not in words or (domain := names.get(words[words.index("-uuid") + 1])) is None:
            continue        # libvirtd asks a QEMU for its capabilities
        sights.append((domain, Sight(place, str(pid), runs(root, domain), "-incoming" in words)))
    return Seen(tuple(sights), files(root / "var/lib/libvirt/qemu/save", ".save"), files(root / "etc/libvirt/qemu", ".xml"))


def files(directory, suffix):
    """The domains that have a file there."""
    return frozenset(it.stem for it in directory.glob(f"*{suffix}"))


def monitor(root, domain, *commands):
    """What QEMU answers to commands on our own monitor of it: a list, or None when it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            sock.connect(str(root / f"run/truth-{domain}"))
            stream = sock.makefile("rw")
            stream.readline()
            said = []
            for command in ({"execute": "qmp_capabilities"}, *commands):
                stream.write(json.dumps(command) + "\n")
                stream.flush()
                while "event" in (answer := json.loads(stream.readline())):
                    pass
                said.append(answer.get("return"))
            return said[1:]
    except (OSError, ValueError):
        return None


def runs(root, domain):
    """Whether a machine's processors run; None when its QEMU does not say."""
    said = monitor(root, domain, {"execute": "query-status"})
    return said[0]["status"] == "running" if said and said[0] else None


def clock():
    """Seconds since the start of the search."""
    return time.monotonic() - _START


_START = time.monotonic()
