# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end-to-end cases stand on: pairs of programs, and the site with its hypervisor and guests.

Environment: E2E_PAIRS="ours-ours,reference-ours" (agent-daemon) chooses pairs, and then a program that is
missing is a failure; without it, pairs whose programs are not installed or built are skipped.
"""

import dataclasses
import os

from lab import net, programs
from lab.hypervisor import Hypervisor

PAIRS = ("reference-reference", "ours-ours", "reference-ours", "ours-reference")
CHOSEN = [p.strip() for p in os.environ.get("E2E_PAIRS", "").split(",") if p.strip()]

#: A time limit for what must fail only by its time-out, seconds. A host that does not own a target waits 2 s
#: before it says so, and the reference needs a multiple of its retransmission time.
SHORT = 4
#: How much later than its time limit an agent may end, seconds: the machine may have more to do.
SLACK = 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """Who asks and who answers: "reference" or "ours"."""

    agent: str
    daemon: str

    def missing(self):
        """Programs of the pair that are not there."""
        wanted = [programs.program(self.agent, "fence_xvm"), programs.program(self.daemon, "fence_virtd")]
        return programs.missing(wanted)


class Site(net.Stage):
    """A host with its hypervisor, and guests, all on one bridge; one for the whole session."""

    def __init__(self, scratch):
        super().__init__(scratch)
        self.key = programs.write_key(scratch / "key")
        self.other_key = programs.write_key(scratch / "other_key", bytes(4095) + b"\x01")
        self.hypervisor = Hypervisor(self.host.ns).start()

    def config(self, path, *, listener="multicast", listener_options=None, backend_options=None, **rest):
        """A configuration of the host: the session's key and hypervisor unless told otherwise."""
        own = {"key_file": self.key}
        if listener == "multicast":
            own["interface"] = "eth0"
        return programs.write_config(path, listener=listener, listener_options={**own, **(listener_options or {})},
                                     backend_options={"uri": self.hypervisor.uri, **(backend_options or {})}, **rest)

    def agent(self, side, *args, guest=1, key=None, name="fence_xvm", wait=True, **kw):
        """Runs an agent of that side on a guest: a Result, or with `wait=False` the Agent that runs.

        With `stdin` the options are the caller's, the key file's too."""
        node = self.guest(guest)
        argv = [programs.program(side, name), *args]
        if kw.get("stdin") is None:
            argv[1:1] = ["-k", key or self.key]
        agent = programs.Agent(node, *programs.own_run(node, self.directory / f"run-{node.name}", *argv), program="unshare", **kw)
        return agent.finish(60) if wait else agent

    def close(self):
        """Ends everything."""
        self.hypervisor.stop()
        super().close()
