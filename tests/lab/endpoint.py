# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers of others that a test runs on a node: started, waited for, killed.

    class Sshd(Endpoint):
        def start(self):
            return self.run([SSHD, …], PORT)
"""

import subprocess

from . import net, process, programs


class Endpoint:
    """One server. Its `directory` holds what it says, in `log`."""

    process = None

    def __init__(self, node, directory):
        directory.mkdir(parents=True, exist_ok=True)
        self.node, self.directory = node, directory

    def run(self, argv, port, stdout=subprocess.DEVNULL, **kw):
        """Starts the server, and returns when it takes connections at that TCP port. `stdout`: subprocess.STDOUT means the log."""
        with open(self.directory / "log", "ab") as log:
            self.process = self.node.popen(argv, stdin=subprocess.DEVNULL, stderr=log,
                                           stdout=log if stdout == subprocess.STDOUT else stdout, **kw)

        def serves():
            assert self.process.poll() is None, f"{argv[0]} ended:\n{self.log()}"
            return programs.bound(self.process.pid, "tcp", port)
        net.wait_until(serves)
        return self

    def kill(self):
        """Gone with all its children, in the middle of whatever it does."""
        for it in process.descendants(self.process.pid):
            it.kill()
        self.process.kill()
        self.process.wait()

    def log(self):
        """What it said."""
        return (self.directory / "log").read_text(errors="backslashreplace")

    def stop(self):
        """Ends it."""
        if self.process.poll() is None:
            self.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
