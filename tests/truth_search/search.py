#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""One search: a world, steps drawn from a seed, and a judgement of every answer.

    search.py WORLD [--seed N] [--steps N] [--minutes N]     WORLD: a name in WORLDS
    search.py WORLD --history FILE                            the steps that another run wrote down
    search.py WORLD --history FILE --shrink                   the fewest of them that still end in an untrue answer

Prints what was done and what was answered when an answer was untrue, and where the steps were written. Status 1 then, and
when requests fail although nothing is wrong.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from truth_search import search
    sys.exit(search.main())

import libvirt

from lab import net, programs

from .judge import FAILED, LINGERS, MOVES, NOWHERE, OFF, Answer, Deed, untrue
from .readings import clock
from .steps import Step, draw
from .world import DOMAINS, IDLE, PATIENCE, Shape, World

#: The worlds that are searched. Those of the test driver make many steps, those of QEMU move machines.
WORLDS = {
    "test-two": Shape("test", (1, 1)),
    "test-three": Shape("test", (1, 1, 1), peers="listed", reboot_starts=False),
    "test-alone": Shape("test", (2,), negative_delay=0),
    "qemu-two": Shape("qemu", (1, 1), negative_delay=2),
    "qemu-listed": Shape("qemu", (2, 1), peers="listed"),
    "qemu-alone": Shape("qemu", (2,), peers="none", negative_delay=0),
}
#: Steps after which all is healed, and requests must succeed.
CALM_AFTER = 50
#: `-t` of a request when all is healed, seconds.
ASKED_FOR = 15
#: How long a request whose client has gone keeps others from starting its domain, seconds.
OWED = 6.0


class Skip(Exception):
    """A step that makes no sense now."""


class LaboratoryFault(Exception):
    """What is searched can't be judged: something other than a daemon of ours does not do its part."""


class Search:
    """A run in a world. `untruths` and `refusals` are what it found."""

    def __init__(self, world, out=None, enough=20):
        self.world, self._out, self._enough = world, out, enough
        self.history, self.done, self.untruths, self.refusals = [], [], [], []
        self.counts, self.slow = collections.Counter(), 0.0
        self._deeds, self._free, self._lock = [], list(range(len(world.guests))), threading.Condition()
        self._threads, self._number, self.broken = [], 0, None
        self._rng = random.Random(1)

    # -- the run ------------------------------------------------------------------------------------------

    def run(self, steps, count, until_time=None):
        """Carries steps out until there were `count` of them, and leaves the world well."""
        self.calm()
        carried = 0
        for step in steps:
            if carried >= count or len(self.untruths) + len(self.refusals) >= self._enough:
                break
            if until_time and time.monotonic() > until_time:
                break
            if self.carry_out(step):
                carried += 1
                if carried % CALM_AFTER == 0:
                    self.calm()
        self.calm()
        return carried

    def carry_out(self, step):
        """One step; False when it was left out."""
        what = getattr(self, "_" + step.kind.replace(" ", "_"))
        index = len(self.history)
        try:
            what(step)
        except Skip:
            return False
        except (libvirt.libvirtError, AssertionError) as e:
            self.note(f"{step.line()}: {str(e).splitlines()[0]}")
        else:
            if step.kind not in ("ask", "drop"):
                self.note(step.line(), index)
        self.done.append(step)
        return True

    def note(self, text, index=None):
        """One more line of the history."""
        line = f"{datetime.datetime.utcnow():%H:%M:%S.%f}"[:-3] + f" {text}"
        self.history.append(line)
        if self._out:
            print(line, file=self._out, flush=True)

    def _deed(self, kind, domain):
        deed = Deed(kind, domain, clock())
        with self._lock:
            self._deeds.append(deed)
            del self._deeds[:-400]
        return deed

    @contextlib.contextmanager
    def _doing(self, kind, domain):
        deed = self._deed(kind, domain)
        try:
            yield deed
        finally:
            deed.ended = deed.ended or clock()

    def _background(self, target, *args):
        def guarded():
            try:
                target(*args)
            except BaseException as e:
                self.broken = self.broken or e
                raise

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self._threads = [it for it in self._threads if it.is_alive()] + [thread]
        return thread

    def settle(self):
        """Returns when nothing is under way."""
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request or a move never ended"
        if self.broken:
            raise self.broken

    # -- requests -----------------------------------------------------------------------------------------

    def _ask(self, step):
        if step.way != "multicast" and not self.world.host(step.way).daemon:
            raise Skip
        self._mend_doubles(step.domain)
        guest = self._take_guest(step.guest)
        self._number += 1
        thread = self._background(self._request, self._number, step, guest)
        if step.wait:
            thread.join()

    _drop = _ask

    def _take_guest(self, wished):
        with self._lock:
            assert self._lock.wait_for(lambda: self._free, 120)
            guest = wished if wished in self._free else self._free[0]
            self._free.remove(guest)
            return guest

    def _request(self, number, step, guest):
        """Asks, reads what is true, and judges. Returns the agent's Result."""
        deed = None
        try:
            before, written = self.world.read(), self._written()
            deed = self._deed(step.action, step.domain)
            dropped = step.kind == "drop"
            self.note(f"#{number} {step.action} {step.domain} by {step.way} from g{guest}" + (", dropped" if dropped else ""))
            agent = self.world.agent(step.action, step.domain, step.way, guest, 20 if dropped else max(1, int(step.seconds)))
            if dropped:
                time.sleep(step.seconds)
                agent.process.kill()
            result = agent.finish(60)
            deed.ended = clock() if result.rc in (0, OFF) else clock() + LINGERS
            after = self._read_to_the_end(step.domain)
            self._judge(number, step, result, (before, after), deed, written)
            return result
        finally:
            with self._lock:
                self._free.append(guest)
                self._lock.notify_all()

    def _read_to_the_end(self, domain):
        """A Reading. What waits in it for the end of a move counts as running if it runs when that has ended."""
        reading = self.world.read()
        waiting = {it for it in reading.of(domain) if not it.runs}
        if not waiting:
            return reading
        end = time.monotonic() + 30
        while self._under_way(domain, MOVES) and time.monotonic() < end:
            time.sleep(0.05)
        later = {(it.place, it.instance) for it in self.world.read().running(domain)}
        sights = tuple(dataclasses.replace(it, runs=True) if (it.place, it.instance) in later else it
                       for it in reading.of(domain))
        return dataclasses.replace(reading, sights={**reading.sights, domain: sights})

    def _judge(self, number, step, result, readings, deed, written):
        before, after = readings
        if step.kind == "drop" and result.rc not in (0, OFF):
            self.counts["dropped"] += 1
            return
        self.counts[f"{step.action}: {({0: 'done', FAILED: 'failed', OFF: 'off'}).get(result.rc, result.rc)}"] += 1
        words = result.err.strip().splitlines() or result.out.strip().splitlines()
        self.note(f"#{number} {result.rc} after {result.seconds:.2f} s{': ' + words[-1] if words else ''}")
        with self._lock:
            others = [it for it in self._deeds if it is not deed]
        why = untrue(Answer(step.action, step.domain, result.rc), before, after, others)
        if why and NOWHERE in why and any(it.claims(step.domain) for it in self.world.places):
            self.counts["libvirt was wrong"] += 1
        elif why:
            self._accuse(number, step, why, readings, written)

    def _accuse(self, number, step, why, readings, written):
        wrongs = ", ".join(f"{kind} {name}" for kind, name in self.world.wrongs()) or "nothing"
        text = [f"UNTRUE #{number} {step.action} {step.domain}, {why}", f"    wrong: {wrongs}",
                f"    before: {readings[0].line(step.domain)}", f"    after:  {readings[1].line(step.domain)}"]
        for line in text:
            self.note(line)
        with self._lock:
            history = self.history[-45:]
        self.untruths.append("\n".join([*history, *self._logs(written)]))

    def _written(self):
        """How much each host's daemons have written: {name: lines}."""
        return {host.name: host.wrote() for host in self.world.hosts}

    def _logs(self, written):
        """What each host has written since: all that a request led to, the others' part too."""
        return [f"-- {host.name}\n{host.log(written[host.name])}" for host in self.world.hosts]

    def _mend_doubles(self, domain):
        """One that runs twice is nobody's question: an administrator ends the younger."""
        running = self.world.read().running(domain)
        if len(running) < 2 or self._under_way(domain, MOVES):
            return
        self.note(f"{domain} runs at {' and '.join(it.place for it in running)}")
        self.counts["ran twice"] += 1
        for sight in running[1:]:
            place = self.world.place(sight.place)
            if not place.well:
                place.heal()
            with self._doing("destroy", domain), contextlib.suppress(libvirt.libvirtError):
                place.destroy(domain)

    # -- domains ------------------------------------------------------------------------------------------

    def _under_way(self, domain, kinds, linger=0.0):
        now = clock()
        with self._lock:
            return [it for it in self._deeds if it.domain == domain and it.kind in kinds and
                    (it.ended is None or it.ended > now and now - it.began < linger)]

    def _at(self, name):
        place = self.world.place(name)
        if not place.well:
            raise Skip
        return place

    def _where(self, domain):
        """The one place where it runs, which must answer."""
        running = self.world.read().running(domain)
        if len(running) != 1 or self._under_way(domain, MOVES):
            raise Skip
        return self._at(running[0].place)

    def _to(self, here, name):
        """The place of that name, or the one after it when it is there already."""
        places = self.world.places
        place = self._at(name)
        return place if place is not here else self._at(places[(places.index(here) + 1) % len(places)].name)

    def _define(self, step):
        place = self._at(step.at)
        if place.defines(step.domain):
            raise Skip
        place.define(step.domain)

    def _undefine(self, step):
        place = self._at(step.at)
        if not place.defines(step.domain) or self._under_way(step.domain, MOVES):
            raise Skip
        place.undefine(step.domain)

    def _start(self, step):
        place = self._at(step.at)
        if self.world.read().of(step.domain) or self._under_way(step.domain, MOVES | {"on", "reboot"}, OWED):
            raise Skip
        with self._doing("start", step.domain):
            place.start(step.domain)

    def _destroy(self, step):
        place = self._where(step.domain)
        with self._doing("destroy", step.domain):
            place.destroy(step.domain)

    def _save(self, step):
        place = self._where(step.domain)
        if not place.defines(step.domain):
            raise Skip
        with self._doing("save", step.domain):
            place.save(step.domain)

    def _cold(self, step):
        here = self._where(step.domain)
        there = self._to(here, step.at)
        if self._under_way(step.domain, {"on", "reboot"}, OWED):
            raise Skip
        with self._doing("cold", step.domain):
            here.destroy(step.domain)
            there.start(step.domain)

    def _live(self, step):
        here = self._where(step.domain)
        there = self._to(here, step.at)
        if there.has(step.domain):
            raise Skip
        deed = self._deed(step.kind, step.domain)
        thread = self._background(self._move, step, here, there, deed)
        if step.wait:
            thread.join()

    _abort = _cut = _live

    def _move(self, step, here, there, deed):
        """A migration, to its end or not."""
        try:
            client = self.world.migration(step.domain, here, there)
            if step.kind == "abort":
                self._slow_down(step.domain, here, client)
                time.sleep(step.seconds)
                if here.well:
                    with contextlib.suppress(libvirt.libvirtError):
                        here.domain(step.domain).abortJob()
            if step.kind == "cut":
                time.sleep(step.seconds)
                client.process.kill()
            said = client.finish(25)
            if said.rc not in (0, FAILED):
                # libvirtd finds out by itself that the client has gone.
                time.sleep(1)
                deed.ended = clock() + LINGERS
            words = said.err.strip().splitlines()
            self.note(f"move of {step.domain} from {here.name} to {there.name} ended"
                      f" ({said.rc}){': ' + words[-1] if words else ''}")
        finally:
            deed.ended = deed.ended or clock()

    def _slow_down(self, domain, here, client):
        """The copy takes for ever, as soon as it has begun."""
        slow = {"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 10000}}
        end = time.monotonic() + 5
        while client.process.poll() is None and time.monotonic() < end:
            said = here.monitor(domain, {"execute": "query-migrate"})
            if said and said[0] and said[0].get("status") == "active":
                here.monitor(domain, slow)
                return
            time.sleep(0.01)

    # -- what goes wrong ----------------------------------------------------------------------------------

    def _room(self):
        if len(self.world.wrongs()) >= 2:
            raise Skip

    def _freeze(self, step):
        self._room()
        self._at(step.at).freeze()

    def _kill(self, step):
        self._room()
        place = self._at(step.at)
        deeds = [self._deed("kill", it) for it in DOMAINS] if place.driver == "test" else []
        place.kill()
        for deed in deeds:
            deed.ended = clock()

    def _stop(self, step, number=signal.SIGTERM):
        self._room()
        host = self.world.host(step.at)
        if not host.daemon:
            raise Skip
        host.end(number)

    def _crash(self, step):
        self._stop(step, signal.SIGKILL)

    def _restart(self, step):
        host = self.world.host(step.at)
        if not host.daemon:
            raise Skip
        host.end(signal.Signals[f"SIG{step.way}"])
        host.serve(wait=3)

    def _hold(self, step):
        self._room()
        host = self.world.host(step.at)
        if not host.daemon or host.held():
            raise Skip
        host.hold()

    def _cut_off(self, step):
        self._room()
        if not self.world.host(step.at).linked or len(self.world.hosts) < 2:
            raise Skip
        self.world.host(step.at).cut_off()

    def _heal(self, step):
        wrongs = self.world.wrongs()
        if not wrongs:
            raise Skip
        kind, name = wrongs[int(step.seconds * len(wrongs))]
        self.note(f"{name} is no longer {kind}" if kind != "no daemon" else f"the daemon of {name} is started")
        if kind in ("frozen", "dead"):
            self.world.place(name).heal()
        elif kind == "cut off":
            self.world.host(name).plug()
        elif kind == "held":
            self.world.host(name).go_on()
        else:
            self.world.host(name).serve(wait=3)

    def _pause(self, step):
        time.sleep(step.seconds)

    # -- nothing is wrong ---------------------------------------------------------------------------------

    def calm(self):
        """All is healed: requests must succeed. A daemon that refuses everything is no good daemon."""
        self.settle()
        self.world.heal()
        self.note("all is healed")
        for place in self.world.places:
            if not place.defines(IDLE):
                place.define(IDLE)
        self._wait_told(IDLE, OFF)
        for domain in DOMAINS:
            self._mend_doubles(domain)
            self._put_in_order(domain)
            self._wait_told(domain, 0)
        domain = self._rng.choice(DOMAINS)
        for action, code in (("status", 0), ("off", 0), ("status", OFF), ("off", 0), ("on", 0), ("status", 0), ("reboot", 0)):
            written = self._written()
            result = self._asked(action, domain)
            if result.rc == 1 and result.seconds > ASKED_FOR + 3:
                self.note(f"the machine stood still: the agent ended {result.seconds - ASKED_FOR:.1f} s after its time; once more")
                result = self._asked(action, domain)
            if result.rc != code:
                self._refused(domain, f"{action} {domain}: {result.rc} in place of {code}, though nothing is wrong", written)

    def _put_in_order(self, domain):
        """It runs at one place."""
        net.wait_until(lambda: all(it.runs for it in self.world.read().of(domain)), PATIENCE)
        for place in self.world.places:
            if place.claims(domain):
                self._lay(place, domain)
        reading = self.world.read()
        self.note(f"    {domain} is {reading.line(domain)}")
        for sight in reading.running(domain):
            # A transient one could not be started again.
            self.world.place(sight.place).define(domain)
            return
        places = [self.world.place(it) for it in sorted(reading.defined.get(domain, ()))]
        place = self._rng.choice(places or self.world.places)
        if not places:
            place.define(domain)
        # What an earlier request owes may come first.
        with self._doing("start", domain), contextlib.suppress(libvirt.libvirtError):
            place.start(domain)

    def _lay(self, place, domain):
        """Its libvirtd claims what is not there, as after a migration whose libvirtd was killed: its daemon can't know better. Once
        nothing is wrong it must not."""
        self.note(f"    libvirtd of {place.name} has {domain}, which is not there: it is started anew, without it")
        place.forget(domain)
        try:
            net.wait_until(lambda: not place.claims(domain), PATIENCE)
        except TimeoutError:
            raise LaboratoryFault(f"libvirtd of {place.name} still has {domain}, of which no process is there\n"
                                  f"{place.hypervisor.tail()}") from None

    def _wait_told(self, domain, code):
        """The hosts may need a moment after what happened to them."""
        began, written = time.monotonic(), self._written()
        while (said := self._asked("status", domain).rc) != code:
            if time.monotonic() > began + PATIENCE:
                text = f"status {domain}: {said} in place of {code} for {PATIENCE} s, though nothing is wrong"
                self._refused(domain, text, written)
                return
            time.sleep(0.1)
        self.slow = max(self.slow, time.monotonic() - began)

    def _asked(self, action, domain):
        self._number += 1
        return self._request(self._number, Step("ask", domain, action=action, way="multicast", seconds=ASKED_FOR), self._take_guest(0))

    def _refused(self, domain, text, written):
        self.note(f"REFUSED {text}")
        self.note(f"    now:    {self.world.read().line(domain)}")
        self.refusals.append("\n".join([*self.history[-45:], *self._logs(written)]))

    # -- the end ------------------------------------------------------------------------------------------

    def found(self):
        """Whether anything is wrong with the daemons."""
        return bool(self.untruths or self.refusals)

    def report(self):
        """What was found, in words."""
        text = [f"{'=' * 30} {it}" for it in [*self.untruths, *self.refusals]]
        counts = ", ".join(f"{what} {number}" for what, number in sorted(self.counts.items()))
        return "\n".join([*text, f"untrue: {len(self.untruths)}, refused: {len(self.refusals)}; well again within "
                          f"{self.slow:.1f} s; {counts}"])


def write_history(path, steps):
    """Steps, to be repeated."""
    pathlib.Path(path).write_text("\n".join(json.dumps(dataclasses.asdict(it)) for it in steps) + "\n")


def read_history(path):
    """What `write_history` wrote."""
    return [Step(**json.loads(line)) for line in pathlib.Path(path).read_text().splitlines()]


def search_once(shape, steps, count, *, minutes=None, out=None, enough=20):
    """A Search that has run, in a world of its own, until it has found enough. `steps`: a function of the names of hosts and
    places."""
    with tempfile.TemporaryDirectory(prefix="fvlab-") as directory, World(directory, shape) as world:
        search = Search(world, out, enough)
        given = steps([it.name for it in world.hosts], [it.name for it in world.places])
        search.carried = search.run(given, count, minutes and time.monotonic() + 60 * minutes)
        return search


def shrink(shape, steps, tries=2):
    """The fewest steps, found by leaving out ever smaller parts, after which there still is an untrue answer."""
    def lies(some):
        return any(search_once(shape, lambda *_: some, len(some), enough=1).untruths for _ in range(tries))

    size = max(1, len(steps) // 2)
    while size:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + size:]
            if fewer and lies(fewer):
                steps = fewer
                print(f"{len(steps)} steps are enough", flush=True)
            else:
                start += size
        size //= 2
    return steps


def main():
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("world", choices=WORLDS)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("--minutes", type=float)
    words.add_argument("--history")
    words.add_argument("--shrink", action="store_true")
    words.add_argument("--enough", type=int, default=20, help="stop after so many findings")
    words.add_argument("--quiet", action="store_true")
    given = words.parse_args()
    net.exit_on_sigterm()
    shape = WORLDS[given.world]
    if given.history:
        steps = read_history(given.history)
        if given.shrink:
            steps = shrink(shape, steps)
        count = len(steps)

        def drawn(*_):
            return steps
    else:
        count = given.steps

        def drawn(hosts, places):
            return draw(given.seed, shape.driver, hosts, places, DOMAINS)

    began = time.monotonic()
    search = search_once(shape, drawn, count, minutes=given.minutes, out=None if given.quiet else sys.stdout,
                         enough=given.enough)
    print(search.report())
    print(f"{given.world}, seed {given.seed}: {search.carried} steps in {time.monotonic() - began:.0f} s")
    if search.found():
        # A suite leaves nothing in /tmp.
        directory = programs.REPOSITORY / "target" if "SUITE" in os.environ else pathlib.Path(tempfile.gettempdir())
        directory.mkdir(exist_ok=True)
        path = directory / f"truth-{given.world}-{given.seed}.steps"
        write_history(path, search.done)
        print(f"its steps are in {path}")
    return int(search.found())
