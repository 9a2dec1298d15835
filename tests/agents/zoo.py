# SPDX-License-Identifier: GPL-2.0-or-later
"""Agents that are bad in one way each (`bad_agent.py`), and what is left of them.

    zoo = Zoo(directory)
    host = start_host([zoo.device("hangs"), zoo.device("good")])     # each serves one machine of its own name, which is on
    zoo.power("hangs")                  # the truth
    zoo.left()                          # processes of agents, and their children, that still live
"""

import dataclasses
import pathlib
import shutil

from lab import net

from .rig import device

AGENT = pathlib.Path(__file__).resolve().parent / "bad_agent.py"


@dataclasses.dataclass(frozen=True)
class Run:
    """One process: an agent with what it was asked, or (`action` "child") one that an agent started."""

    pid: int
    start: int
    action: str
    plug: str

    def alive(self):
        """Whether it still lives; a zombie does not."""
        try:
            fields = self._stat()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(fields[19]) == self.start and fields[0] not in "ZX"

    def parent(self):
        """The pid of its parent."""
        return int(self._stat()[1])

    def _stat(self):
        """The kernel's words about it, from its state on."""
        return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()


class Zoo:
    """See the module's head."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.state = self.directory / "state"
        self.state.mkdir(parents=True)
        (self.state / "runs").touch()

    def agent(self, mode):
        """The path of the agent of that mode."""
        path = self.directory / f"fence_bad_{mode}"
        if not path.exists():
            shutil.copy(AGENT, path)
            path.chmod(0o755)
        return path

    def device(self, mode, *plugs, name=None, options=None, **keys):
        """Text of a device with that agent; its machines are on. Without `plugs` it has one, called as the mode."""
        for plug in plugs or (mode,):
            self.switch(plug, "on")
        return device(name or mode, self.agent(mode), ", ".join(plugs or (mode,)), options=options, **keys)

    def switch(self, plug, to):
        """The machine is on or off, by nobody's doing."""
        (self.state / plug).write_text(to)

    def power(self, plug):
        """The truth: "on" or "off"."""
        return (self.state / plug).read_text()

    def runs(self, action=None, plug=None):
        """All runs so far, or those of that action or plug or both."""
        found = []
        for line in (self.state / "runs").read_text().splitlines():
            pid, start, asked, about = line.split(" ")
            found.append(Run(int(pid), int(start), asked, about))
        return [it for it in found if action in (None, it.action) and plug in (None, it.plug)]

    def wait_run(self, action, plug, count=1):
        """Returns the runs as soon as there are `count`."""
        return net.wait_until(lambda: len(self.runs(action, plug)) >= count and self.runs(action, plug))

    def left(self):
        """Processes that still live."""
        return [it for it in self.runs() if it.alive()]

    def wait_nothing_left(self, timeout=60):
        """Returns when no process of any agent lives."""
        try:
            net.wait_until(lambda: not self.left(), timeout)
        except TimeoutError:
            raise AssertionError(f"still there: {self.left()}") from None
