# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an answer can be true.

Pure: a request and its answer, a reading that ended before the request began, one that began after the answer came, and all
that was done to the domain. Only what is certainly untrue is said; a race that both sides may win is none. "Can't tell" and
every other failure is never untrue.
"""

import dataclasses

#: What may end an instance, begin one, and carry one elsewhere.
ENDS, STARTS, MOVES = {"destroy", "save", "cold", "kill"}, {"start", "cold"}, {"live", "abort", "cut"}
#: How long a request that nobody waits for may still act, seconds: the daemon's own limit, and a start that is owed.
LINGERS = 40.0

ON, FAILED, OFF = 0, 1, 2

NOWHERE = "it ran nowhere all the time"


@dataclasses.dataclass
class Deed:
    """Something that was done to a domain; `ended` None: it is under way. Requests are deeds too, of their action."""

    kind: str
    domain: str
    began: float
    ended: float | None = None

    def overlaps(self, began, ended):
        """Whether any of it lies between two moments."""
        return self.began <= ended and (self.ended is None or self.ended >= began)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client asked and was told."""

    action: str
    domain: str
    code: int | None


def untrue(answer, before, after, deeds):
    """Why the answer is untrue; None when it may be true. `deeds` are those of others: not this request."""
    deeds = [it for it in deeds if it.domain == answer.domain and it.overlaps(before.began, after.ended)]
    kinds = {it.kind for it in deeds}
    case = _Case(answer.domain, before, after, kinds)
    if answer.code == OFF and answer.action == "status":
        return _say("told that it is off", case.went_on())
    if answer.code != 0:
        return None
    if answer.action == "status":
        return _say("told that it is on", case.was_nowhere())
    if answer.action == "off":
        return _say("told that it was taken off", case.survived() or case.came_up() or case.kept_image())
    if answer.action == "reboot":
        return _say("told that it was rebooted", case.survived() or case.woke_up() or case.doubled())
    if answer.action == "on":
        return _say("told that it was started", case.was_nowhere() or case.woke_up() or case.doubled())
    return None


def _say(told, why):
    return f"{told}: {why}" if why else None


class _Case:
    def __init__(self, domain, before, after, kinds):
        self.domain, self.kinds = domain, kinds
        self.before, self.after = before, after
        self.then, self.now = before.running(domain), after.running(domain)
        self.new = [it for it in self.now if it.instance not in {old.instance for old in before.of(domain)
                                                                 if old.place == it.place}]

    def _quiet(self, *kinds):
        return not any(self.kinds & it for it in kinds)

    def went_on(self):
        """It ran all the time, here or on its way from here to there."""
        same = {(it.place, it.instance) for it in self.then} & {(it.place, it.instance) for it in self.now}
        if same:
            return f"{' '.join(min(same))} ran all the time"
        came = [it for it in self.now if it.incoming and it not in self.then]
        if self.then and came and not self._quiet(MOVES) and self._quiet(ENDS, STARTS, {"off", "on", "reboot"}):
            return f"it moved from {self.then[0].place} to {came[0].place} and ran all the time"
        return None

    def survived(self):
        """What ran before still runs. One that runs twice is out of the question: that must not be made."""
        return None if len(self.then) > 1 else self.went_on()

    def came_up(self):
        """It runs although nobody started it."""
        if self.new and not self.then and self._quiet(STARTS, MOVES, {"on", "reboot"}):
            return f"{self.new[0].place} {self.new[0].instance} was started by nobody"
        return None

    def kept_image(self):
        """A saved memory is left at the only place that can have the domain."""
        saved = self.before.saved.get(self.domain, frozenset()) & self.after.saved.get(self.domain, frozenset())
        alone = len(self.before.defined.get(self.domain, ())) == 1 and not self.then and self._quiet(
            {"save", "on", "reboot"}, STARTS, MOVES)
        return f"its memory is still saved at {min(saved)}" if saved and alone else None

    def woke_up(self):
        """What was started has a memory of before."""
        woken = [it for it in self.new if it.incoming]
        if woken and self._quiet(STARTS, MOVES):
            return f"{woken[0].place} {woken[0].instance} has the memory that was saved"
        return None

    def doubled(self):
        """A second one was started."""
        if len(self.then) == 1 and len(self.now) > 1 and self._quiet(STARTS, MOVES, {"on", "reboot"}) and self.went_on():
            return f"now it runs twice: {' and '.join(it.place for it in self.now)}"
        return None

    def was_nowhere(self):
        """There was nothing of it, all the time."""
        if not self.before.of(self.domain) and not self.after.of(self.domain) and self._quiet(
                STARTS, ENDS, MOVES, {"on", "off", "reboot"}):
            return NOWHERE
        return None
