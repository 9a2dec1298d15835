# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end-to-end cases stand on: pairs of programs, and the site with its hypervisor and guests.

Environment: E2E_PAIRS="ours-ours,reference-ours" (agent-daemon) chooses pairs, and then a program that is
missing is a failure; without it, pairs whose programs are not installed or built are skipped.
"""

import dataclasses
import os
import pathlib
import shlex

from lab import net, programs
from lab.hypervisor import Hypervisor

PAIRS = ("reference-reference", "ours-ours", "reference-ours", "ours-reference")
CHOSEN = [p.strip() for p in os.environ.get("E2E_PAIRS", "").split(",") if p.strip()]

#: A time limit for what must fail only by its time-out, seconds. A host that does not own a target waits 2 s
#: before it says so, and the reference needs a multiple of its retransmission time.
SHORT = 4
#: How much later than its time limit an agent may end, seconds: the machine may have more to do.
SLACK = 8


def program(side, name):
    """Path of a program of that side."""
    return str((programs.REFERENCE_DIR if side == "reference" else programs.OURS_DIR) / name)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Who asks and who answers: "reference" or "ours"."""

    agent: str
    daemon: str

    def missing(self):
        """Programs of the pair that are not there."""
        wanted = [program(self.agent, "fence_xvm"), program(self.daemon, "fence_virtd")]
        return [path for path in wanted if not os.access(path, os.X_OK)]


class Site:
    """A host with its hypervisor, and guests, all on one bridge; one for the whole session."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.net = net.Net()
        self.host = self.net.node("host")
        self.key = programs.write_key(scratch / "key")
        self.other_key = programs.write_key(scratch / "other_key", bytes(4095) + b"\x01")
        self.hypervisor = Hypervisor(self.host.ns).start()

    def guest(self, number=1):
        """The guest of that number."""
        name = f"g{number}"
        return self.net.nodes.get(name) or self.net.node(name)

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
        argv = [program(side, name), *args]
        if kw.get("stdin") is None:
            argv[1:1] = ["-k", key or self.key]
        # Guests don't share /run, but namespaces of one machine do.
        run = self.scratch / f"run-{node.name}"
        run.mkdir(exist_ok=True)
        private = ["--mount", "--propagation=private", "sh", "-c", 'mount --bind "$1" /run; shift; exec "$@"', "sh",
                   run, *argv]
        agent = programs.Agent(node, *private, program="unshare", **kw)
        return agent.finish(60) if wait else agent

    def close(self):
        """Ends everything."""
        self.hypervisor.stop()
        self.net.close()


def daemon_program(pair, directory):
    """The pair's fence_virtd. Ours keeps state below /run and /var/lib: each case gets its own."""
    path = program(pair.daemon, "fence_virtd")
    if pair.daemon == "reference":
        return path
    wrapper = pathlib.Path(directory) / "fence_virtd"
    if not wrapper.exists():
        state = pathlib.Path(directory) / "state"
        state.mkdir()
        wrapper.write_text(f"""#!/bin/sh
if [ "$1" != unshared ]; then exec unshare --mount --propagation=private "$0" unshared "$@"; fi
shift
mkdir -p /var/lib
mount --bind {shlex.quote(str(state))} /var/lib
exec {shlex.quote(path)} "$@"
""")
        wrapper.chmod(0o755)
    return str(wrapper)
