# SPDX-License-Identifier: GPL-2.0-or-later
"""Three virtual nodes on which Pacemaker's own Cluster Test Suite (CTS) runs, fenced by our fence_xvm.

    with Suite(lab, ["c1", "c2", "c3"], files) as suite:
        output = suite.run(20, seed=1)

Real: the suite (`prepare` lays it out, from the source of the installed Pacemaker), Pacemaker, corosync, the agents, the daemon, libvirt
and the QEMU domains. A node is a set of namespaces that dies with its QEMU, as in tests/pacemaker; it is up again when
its domain is. Stand-ins: `ssh`, `service` and `cts-exec-helper` (see there), the nodes' IP addresses (`Dummy` in place of `IPaddr2`).
"""

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

from lab import programs
from pacemaker.nodes import Cluster, Node

HERE = pathlib.Path(__file__).resolve().parent
LOG = "/var/log/pacemaker/pacemaker.log"


class SuiteNode(Node):
    """A node whose cluster is started and stopped by the suite."""

    PARTS = HERE / "node-parts"

    def boot(self):
        """Up, without a cluster; and the stand-in of ssh finds it."""
        super().boot()
        (self.cluster.directory / f"{self.name}.pid").write_text(str(self._init_pid))

    def write_etc(self, corosync_conf, hosts):
        """The suite reads what corosync logs, in the file of Pacemaker."""
        logging = f"to_logfile: yes\nlogfile: {LOG}\ntimestamp: on\nto_syslog: no"
        super().write_etc(corosync_conf.replace("to_stderr: yes\nto_syslog: no", logging), hosts)


class Suite(Cluster):
    """The nodes, and the machine that the suite runs on."""

    def __init__(self, lab, names, files):
        (lab.directory / "-".join(names)).mkdir()
        self.helpers = lab.directory / "-".join(names) / "helpers"
        shutil.copytree(files / "helpers", self.helpers)
        for name in ("service", "cts-exec-helper"):
            shutil.copy(HERE / name, self.helpers)
        super().__init__(lab, names)
        self.files, self.place = files, lab.net.node("exerciser")
        self.hosts = self.directory / "hosts"
        self.hosts.write_text((self.nodes[0].directory / "etc/hosts").read_text() + f"{self.place.ip} exerciser\n")
        self._ending = threading.Event()
        for node in self.nodes:
            node.boot()
        self._booter = threading.Thread(target=self._boot_what_is_on, daemon=True)
        self._booter.start()

    def new_node(self, name):
        """A node of the suite's kind."""
        return SuiteNode(self, name)

    def run(self, count, seed, *options, timeout):
        """Runs so many tests of the suite; what it wrote."""
        output = self.directory / "cts.log"
        names = [node.name for node in self.nodes]
        # The suite fences nodes by these names too, when it makes remote nodes of them.
        domains = ";".join(f"{prefix}{node.name}:{node.domain.name}" for node in self.nodes for prefix in ("", "remote-"))
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--uts", "--propagation=private", "sh", "-ec",
                   'hostname exerciser; mount --bind "$1" /etc/hosts; shift; exec "$@"', "sh", self.hosts,
                   "/usr/bin/python3", "-u", self.files / "cts/CTSlab.py", "--nodes", " ".join(names), "--stack", "corosync",
                   "--clobber-cib", "--populate-resources", "--test-ip-base", self.place.ip, "--set", "IPagent=Dummy",
                   "--stonith", "xvm", "--stonith-args", f"pcmk_host_list=all,pcmk_host_map={domains}", "--at-boot", "0",
                   "--logfile", LOG, "--outputfile", output, "--no-loop-tests", "--seed", str(seed), *options, str(count)]
        environment = {**os.environ, "PATH": f"{HERE}:{os.environ['PATH']}", "FVLAB_NODES": str(self.directory),
                       "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(self.directory)}
        process = self.place.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   env=environment)
        try:
            return process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0] + f"\nnot over after {timeout} s"

    def close(self):
        """Ends everything."""
        self._ending.set()
        self._booter.join(60)
        super().close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _boot_what_is_on(self):
        """A node that was fenced comes up when the host has powered its domain on."""
        while not self._ending.wait(0.2):
            for node in self.nodes:
                if not node.alive() and node.domain.pid():
                    node.boot()
