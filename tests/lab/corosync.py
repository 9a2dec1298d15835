# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines with a real corosync, made of namespaces.

    machines = [Machine(net.node(name), directory / name) for name in ("h1", "h2", "h3")]
    join(machines, token=3000)          # one cluster of them, as written in corosync.conf
    for machine in machines:
        machine.boot()
    machines[2].kill()                  # as when its power fails
    machines[1].cut()                   # its corosync hears nobody, everything else reaches it

A machine is a network node (`lab.net`) with mount, PID, IPC and UTS namespaces of its own, in which `node-init` runs corosync
as Debian ships it. Its files are the real machine's own, seen through mounts of its own mount namespace; nothing of the real
machine is written, and no process outlives the one that made it. A Machine stands in for its network node where a program is started on it.
"""

import os
import pathlib
import re
import shlex
import signal
import subprocess

from lab.hypervisor import until
from lab.process import children, only_child

HERE = pathlib.Path(__file__).resolve().parent

#: How long whatever must happen may take on a busy machine, seconds.
PATIENCE = 120

#: corosync's own port, which a cut drops.
RING = 5405


class Machine:
    """One machine; see the module's head. `place` is its network node, `directory` its disk.

    `parts`: a file that `node-init` reads for what the machine runs beside corosync."""

    #: Program that is the machine's first process.
    INIT = HERE / "node-init"

    def __init__(self, place, directory, parts=None):
        self.place, self.name, self.directory, self.parts = place, place.name, pathlib.Path(directory), parts
        self._tree = self._init = self._init_pid = None
        (self.directory / "etc/corosync").mkdir(parents=True)
        (self.directory / "log").mkdir()

    # -- life and death -----------------------------------------------------------------------------------

    def boot(self):
        """Starts what the machine runs. Does not wait for it: see `wait_up`."""
        assert not self.alive()
        with open(self.directory / "log/init.out", "ab") as out:
            # pdeathsig: the machine ends with this process, however that ends.
            self._tree = self.place.popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private", "--pid", "--ipc",
                 "--uts", "--fork", "--kill-child", "--mount-proc", self.INIT, self.name, self.directory,
                 *([self.parts] if self.parts else [])],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        until(lambda: children(self._tree.pid), PATIENCE, f"{self.name} has a first process")
        self._init_pid = only_child(self._tree.pid)
        self._init = os.pidfd_open(self._init_pid)

    def alive(self):
        """Whether the machine's processes run."""
        return self._tree is not None and self._tree.poll() is None

    def kill(self):
        """Every process of the machine ends at once."""
        if self.alive():
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
            until(lambda: self._gone(), PATIENCE, f"{self.name} is dead")

    def _gone(self):
        return not self.alive()

    def wait_up(self, count=None):
        """Returns when its corosync serves programs, and sees `count` machines if that is given."""
        until(lambda: self.alive() and self.members(), PATIENCE, f"corosync of {self.name}\n{self.tail()}")
        if count:
            self.wait_members(count)

    # -- what runs on it ----------------------------------------------------------------------------------

    def command(self, argv):
        """`argv` wrapped so that it runs in all the machine's namespaces."""
        return ["nsenter", "-t", str(self._init_pid), "-m", "-n", "-p", "-i", "-u", "--", *map(str, argv)]

    def popen(self, argv, **kw):
        """`subprocess.Popen` on the machine; the process is a parent of the program: see `pid_of`."""
        return subprocess.Popen(self.command(argv), **kw)

    def pid_of(self, process):
        """The pid, as this process sees it, of the program that `popen` started."""
        until(lambda: process.poll() is not None or children(process.pid), PATIENCE, "the program started")
        return only_child(process.pid) if process.poll() is None else process.pid

    def run(self, *argv, check=True, timeout=300):
        """Runs a program on the machine; returns the CompletedProcess (text)."""
        done = subprocess.run(self.command(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="backslashreplace", timeout=timeout)
        assert done.returncode == 0 or not check, \
            f"{shlex.join(map(str, argv))} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.state(argv)}"
        return done

    def state(self, _argv=()):
        """What stands in the message of a program that failed."""
        return self.tail()

    def tail(self, lines=10):
        """The ends of its logs, for messages of failed tests."""
        text = f"== {self.name} {'alive' if self.alive() else 'dead'}\n"
        for file in sorted((self.directory / "log").glob("*.out")):
            text += f"-- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) + "\n"
        return text

    # -- corosync -----------------------------------------------------------------------------------------

    def members(self):
        """Node ids that its corosync sees; none while it does not serve."""
        done = self.run("corosync-quorumtool", "-s", check=False)
        listed = done.stdout.partition("Nodeid")[2]
        return sorted(int(m[1]) for m in re.finditer(r"^ +(\d+) +\d+ ", listed, re.M))

    def wait_members(self, count):
        """Returns when its corosync sees so many machines."""
        until(lambda: len(self.members()) == count, PATIENCE, f"{self.name} sees {count} machines\n{self.tail()}")

    def cut(self):
        """It and the others don't hear each other's corosync any more; all else still passes."""
        rules = "add table inet cut\n"
        for hook in ("input", "output"):
            rules += (f"add chain inet cut at_{hook} {{ type filter hook {hook} priority 0; }}\n"
                      f"add rule inet cut at_{hook} udp dport {RING} drop\n")
        self.place.run(["nft", "-f", "-"], check=True, input=rules)

    def heal(self):
        """Undoes `cut`, if it was done."""
        self.place.run(["nft", "delete", "table", "inet", "cut"])

    def signal_corosync(self, number):
        """Sends its corosync a signal."""
        self.run("sh", "-c", f"kill -{int(number)} $(cat /run/corosync-is)")

    def stop_corosync(self):
        """Its corosync is gone, like after a crash; everything else runs on."""
        self.signal_corosync(signal.SIGKILL)
        until(lambda: not self.members(), PATIENCE, f"corosync of {self.name} is gone")

    def start_corosync(self):
        """Its corosync runs again after `stop_corosync`. Does not wait for the others."""
        self.run("sh", "-c", "corosync -f >>/var/log/corosync.out 2>&1 & echo $! >/run/corosync-is")
        self.wait_up()

    # -- its files ----------------------------------------------------------------------------------------

    def write_etc(self, corosync_conf, hosts):
        """What differs from the real machine's /etc."""
        etc = self.directory / "etc"
        (etc / "corosync/corosync.conf").write_text(corosync_conf)
        (etc / "hostname").write_text(self.name + "\n")
        (etc / "hosts").write_text(hosts)


def join(machines, token=5000):
    """Writes the files that make the machines one cluster; node ids are 1, 2, … in order. Call it before they boot.

    `token`: milliseconds of silence after which a machine is lost; a busy one must not look like a dead one."""
    nodes = "".join(f"node {{\nname: {m.name}\nnodeid: {number}\nring0_addr: {m.place.ip}\n}}\n"
                    for number, m in enumerate(machines, 1))
    conf = ("totem {\nversion: 2\ncluster_name: fvlab\ntransport: knet\ncrypto_cipher: none\ncrypto_hash: none\n"
            f"token: {token}\n}}\n"
            "logging {\nto_stderr: yes\nto_syslog: no\n}\n"
            f"quorum {{\nprovider: corosync_votequorum\n{'two_node: 1' if len(machines) == 2 else ''}\n}}\n"
            f"nodelist {{\n{nodes}}}\n")
    hosts = "127.0.0.1 localhost\n" + "".join(f"{m.place.ip} {m.name}\n" for m in machines)
    for machine in machines:
        machine.write_etc(conf, hosts)
