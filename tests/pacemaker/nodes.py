# SPDX-License-Identifier: GPL-2.0-or-later
"""A Pacemaker cluster of namespaces, each tied to a domain of a real hypervisor.

    with Lab(directory) as lab:
        lab.serve("ours")                       # whose daemon answers on the host
        cluster = Cluster(lab, ["n1", "n2"])
        cluster.use("reference")                # whose agents the nodes have in /usr/sbin
        cluster.boot()
        cluster.n1.run("pcs", "stonith", "create", ...)
        cluster.n2.kill()                       # as when its kernel panics: the domain runs on
        at = cluster.n2.wait_fenced()           # when its QEMU ended

A node is corosync and Pacemaker as Debian ships them, in network, mount, PID, IPC and UTS namespaces (`node-init`),
and a QEMU domain that only runs its firmware. QEMU's end, seen at the kernel and not told by libvirt or the daemon,
kills the node's whole PID namespace. The domain's card and the node's interface have one MAC address, so that the
host can tell who asks. The nodes' agents are wrapped: what Pacemaker hands them and what they answer is on record.

A node's files are the machine's own, seen through mounts of its own mount namespace; nothing of the machine is
written, and no process outlives the one that made it.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree

from lab import net, programs
from lab.hypervisor import Hypervisor, only_child, until

HERE = pathlib.Path(__file__).resolve().parent

#: How long whatever must happen may take on a busy machine, seconds.
PATIENCE = 120

#: corosync's own port, which a cut drops.
RING = 5405


#: The address that the manual gives the host.
HOST = "192.168.122.1"


class Lab:
    """A host with its hypervisor and at most one daemon, and a bridge to which clusters are plugged."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.net = net.Net()
        self.host = self.net.node("host")
        # Where libvirt plugs the cards of the domains: it leads nowhere.
        self.host.ip_cmd("link add cards type bridge")
        self.host.ip_cmd("link set cards up")
        self.host.ip_cmd(f"addr add {HOST}/24 dev eth0")
        self.key = programs.write_key(self.directory / "fence_xvm.key")
        self.hypervisor = Hypervisor(self.host.ns).start()
        self.daemon = None
        self._served = 0

    def serve(self, side, *, listeners=("multicast",), **options):
        """Starts the side's daemon in place of the one that ran; `options` are those of every listener."""
        self.stop_serving()
        self._served += 1
        where = {"multicast": {"interface": "eth0"}, "tcp": {"address": HOST}}
        blocks = "".join(
            f"{name} {{\n" + "".join(f'{key} = "{value}";\n' for key, value in
                                     {"key_file": self.key, **where[name], **options}.items()) + "}\n"
            for name in listeners)
        audit = self.directory / f"audit-{self._served}"
        text = (f'fence_virtd {{\nlistener = "{", ".join(listeners)}";\nbackend = "libvirt";\n'
                f'module_path = "{programs.MODULE_PATH}";\n'
                + (f'audit_log = "{audit}";\n' if side == "ours" else "")
                + f'}}\nlisteners {{\n{blocks}}}\nbackends {{\nlibvirt {{\nuri = "{self.hypervisor.uri}";\n}}\n}}\n')
        self.audit = audit
        config = programs.write_config(self.directory / f"fence_virt-{self._served}.conf", text)
        self.daemon = programs.Daemon(self.host, config, program=program(side, "fence_virtd"), debug=3,
                                      ready="udp" if listeners[0] == "multicast" else "tcp")
        if side == "ours":
            # A socket is bound before it has joined its group.
            self.daemon.wait_log(r"run: serving ", timeout=60)

    def records(self):
        """The audit records of our daemon since it was started, oldest first."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []

    def stop_serving(self):
        """No daemon answers from now on."""
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def close(self):
        """Ends everything."""
        self.stop_serving()
        self.hypervisor.stop()
        self.net.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Cluster:
    """Nodes that form one cluster; each is an attribute by its name."""

    def __init__(self, lab, names):
        self.lab = lab
        self.directory = lab.directory / "-".join(names)
        # The machine's own agents, for nodes where something else is mounted over them.
        for side in ("reference", "ours"):
            (self.directory / side).mkdir(parents=True)
            for name in ("fence_xvm", "fence_virt"):
                shutil.copy(program(side, name), self.directory / side / name)
        self.nodes = [Node(self, name) for name in names]
        self.__dict__.update({node.name: node for node in self.nodes})
        for node in self.nodes:
            node.write_etc(self._corosync_conf())
        self.use("ours")

    @property
    def hold(self):
        """See `arm`. While this file is there, calls that would power a domain off wait for its end."""
        return self.directory / "hold"

    def arm(self):
        """Calls that power a domain off wait from now on, until `fire_together`."""
        for node in self.nodes:
            for held in (node.directory / "log/agent").glob("*.held"):
                held.unlink()
        self.hold.touch()

    def fire_together(self):
        """Returns when every node has called its agent to power a domain off and waits in `hold`, and lets all go."""
        until(lambda: all(node.held() for node in self.nodes), PATIENCE, "all nodes are about to shoot")
        self.hold.unlink()

    def use(self, side):
        """Whose agents the nodes call from now on."""
        for node in self.nodes:
            (node.directory / "bin/side").write_text(side)

    def boot(self):
        """All nodes that are down come up and no link is cut; returns when all are online and every resource runs."""
        self.hold.unlink(missing_ok=True)
        # A node that is back before the others know that it was fenced takes their word for it and leaves again.
        until(lambda: not any(node.shoots() for node in self.nodes), PATIENCE, "every fence has been answered")
        for node in self.nodes:
            self.heal(node)
            if not node.alive():
                node.boot()
        self.wait_whole()

    def wait_whole(self):
        """Returns when every node is online in the eyes of all, and every resource is started."""
        for node in self.nodes:
            self._until(node, lambda seen: len(seen.online) == len(self.nodes) and seen.dc
                        and all(seen.resources.values()), "all nodes online, all resources started")

    def wait_seen(self, node, condition, what):
        """Returns what `node` sees as soon as `condition` holds for it."""
        return self._until(node, condition, what)

    def cut(self, node):
        """`node` and the others don't hear each other's corosync any more; all of them still reach the host."""
        rules = "add table inet cut\n"
        for hook in ("input", "output"):
            rules += (f"add chain inet cut at_{hook} {{ type filter hook {hook} priority 0; }}\n"
                      f"add rule inet cut at_{hook} udp dport {RING} drop\n")
        node.place.run(["nft", "-f", "-"], check=True, input=rules)

    def heal(self, node):
        """Undoes `cut`, if it was done."""
        node.place.run(["nft", "delete", "table", "inet", "cut"])

    def close(self):
        """Ends all nodes."""
        for node in self.nodes:
            node.kill()

    def state(self):
        """What each living node thinks, and the ends of its logs: for messages of failed tests."""
        text = ""
        for node in self.nodes:
            text += f"== {node.name} {'alive' if node.alive() else 'dead'}\n"
            if node.alive():
                text += node.run("crm_mon", "-1", "-f", check=False).stdout
            for call in node.calls()[-5:]:
                text += f"{call}\n"
            log = node.directory / "log/pacemaker/pacemaker.log"
            if log.exists():
                text += "\n".join(log.read_text(errors="backslashreplace").splitlines()[-40:]) + "\n"
            for name in ("corosync.out", "pacemakerd.out", "init.out"):
                file = node.directory / "log" / name
                if file.exists():
                    text += f"-- {name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-8:]) + "\n"
        return text + (self.lab.daemon.log[-3000:] if self.lab.daemon else "no daemon")

    def _until(self, node, condition, what):
        deadline = time.monotonic() + PATIENCE
        while True:
            seen = node.sees()
            if seen and condition(seen):
                return seen
            assert time.monotonic() < deadline, f"{node.name}: not within {PATIENCE} s: {what}: {seen}\n{self.state()}"
            time.sleep(0.2)

    def _corosync_conf(self):
        nodes = "".join(f"node {{\nname: {node.name}\nnodeid: {number}\nring0_addr: {node.place.ip}\n}}\n"
                        for number, node in enumerate(self.nodes, 1))
        return ("totem {\nversion: 2\ncluster_name: fvlab\ntransport: knet\ncrypto_cipher: none\ncrypto_hash: none\n"
                # A busy machine must not look like a dead node.
                "token: 5000\n}\n"
                "logging {\nto_stderr: yes\nto_syslog: no\n}\n"
                f"quorum {{\nprovider: corosync_votequorum\n{'two_node: 1' if len(self.nodes) == 2 else ''}\n}}\n"
                f"nodelist {{\n{nodes}}}\n")


class Node:
    """One cluster node; see the module's head. `place` is its network node, `domain` its domain."""

    def __init__(self, cluster, name):
        lab = cluster.lab
        self.cluster, self.name = cluster, name
        self.directory = cluster.directory / name
        self.place = lab.net.node(name)
        mac = f"52:54:00:fe:0c:{self.place.index:02x}"
        self.place.ip_cmd(f"link set eth0 address {mac}")
        # With a source of its own: else the kernel shares one next hop, and its cached type, with the multicast route.
        self.place.ip_cmd(f"route add {HOST}/32 dev eth0 src {self.place.ip}")
        # The name is not the node's: so that pcmk_host_map has something to map.
        self.domain = lab.hypervisor.domain(f"vm-{name}", start=False, interface=((mac, "cards"),))
        self._tree = self._init = None
        self._qemu = None
        self._fenced_at, self._fenced = None, threading.Event()
        (self.directory / "bin").mkdir(parents=True)
        self._write_wrappers()

    # -- life and death -----------------------------------------------------------------------------------

    def boot(self):
        """Powers the domain on if it is off and starts what a node runs. Does not wait for the cluster."""
        assert not self.alive()
        if not self.domain.pid():
            self.domain.start()
        self._qemu = self.domain.process()
        self._fenced_at, self._fenced = None, threading.Event()
        (self.directory / "log").mkdir(exist_ok=True)
        for asked in (self.directory / "log/agent").glob("*.asked"):
            if not asked.with_suffix(".done").exists():
                asked.unlink()      # the node died before it was answered
        with open(self.directory / "log/init.out", "ab") as out:
            # pdeathsig: the node ends with this process, however that ends.
            self._tree = self.place.popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private", "--pid", "--ipc",
                 "--uts", "--fork", "--kill-child", "--mount-proc", HERE / "node-init", self.name, self.directory],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        until(lambda: children(self._tree.pid), PATIENCE, f"{self.name} has a first process")
        self._init = os.pidfd_open(only_child(self._tree.pid))
        self._init_pid = only_child(self._tree.pid)
        # It enters its namespaces with its mounts; before, there is nothing to look into.
        threading.Thread(target=self._die_with, args=(self._qemu, self._init, self._fenced), daemon=True).start()

    def alive(self):
        """Whether the node's processes run."""
        return self._tree is not None and self._tree.poll() is None

    def kill(self):
        """Every process of the node ends at once; its domain runs on. Returns when that was, seconds of the clock."""
        at = time.time()
        if self.alive():
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
            self._tree.wait(PATIENCE)
        return at

    def wait_fenced(self, timeout=PATIENCE):
        """Returns when the node's QEMU, as of the last boot, ended: seconds of the clock."""
        assert self._fenced.wait(timeout), f"{self.name} was not fenced within {timeout} s\n{self.cluster.state()}"
        self._tree.wait(PATIENCE)
        return self._fenced_at

    def fenced(self):
        """Whether its QEMU, as of the last boot, has ended."""
        return self._fenced.is_set()

    def wait_restarted(self):
        """Returns when the host has powered the fenced domain on again."""
        until(self.domain.pid, PATIENCE, f"{self.domain.name} started again")

    def _die_with(self, qemu, init, fenced):
        while not qemu.ended(3600):
            pass
        self._fenced_at = time.time()
        try:
            signal.pidfd_send_signal(init, signal.SIGKILL)
        except ProcessLookupError:
            pass
        fenced.set()

    # -- what it does and sees ----------------------------------------------------------------------------

    def command(self, argv):
        """`argv` wrapped so that it runs in all the node's namespaces."""
        return ["nsenter", "-t", str(self._init_pid), "-m", "-n", "-p", "-i", "-u", "--", *map(str, argv)]

    def run(self, *argv, check=True, timeout=300):
        """Runs a program on the node; returns the CompletedProcess (text)."""
        done = subprocess.run(self.command(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="backslashreplace", timeout=timeout)
        assert done.returncode == 0 or not check, \
            f"{shlex.join(map(str, argv))} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}\n" \
            f"{self.cluster.state() if argv[0] != 'crm_mon' else ''}"
        return done

    def sees(self):
        """A View, or None while its Pacemaker does not answer."""
        if not self.alive():
            return None
        done = self.run("crm_mon", "-1", "--output-as=xml", check=False)
        if done.returncode:
            return None
        return View.of(ElementTree.fromstring(done.stdout))

    def calls(self):
        """What Pacemaker asked this node's agents so far, oldest first."""
        found = []
        for done in sorted((self.directory / "log/agent").glob("*.done")):
            name, rc, released, ended = done.read_text().split()
            found.append(Call(
                name=name, began=int(done.stem.split(".")[0]) / 1e9, released=int(released) / 1e9,
                ended=int(ended) / 1e9, rc=int(rc),
                **{part: done.with_suffix(f".{part}").read_text(errors="backslashreplace")
                   for part in ("asked", "out", "err")}))
        return found

    def shoots(self):
        """Whether a call of this living node that powers a domain off is under way."""
        return self.alive() and any(
            not asked.with_suffix(".done").exists() and re.search(r"^action=(off|reboot)$", asked.read_text(), re.M)
            for asked in (self.directory / "log/agent").glob("*.asked"))

    def held(self):
        """How many calls waited, or wait, in the cluster's `hold`."""
        return len(list((self.directory / "log/agent").glob("*.held")))

    def started_at(self):
        """When this node's Dummy resource was last told to start, seconds of the clock; None: never."""
        log = self.directory / "log/dummy"
        starts = [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []
        return int(starts[-1]) / 1e9 if starts else None

    # -- its files ----------------------------------------------------------------------------------------

    def write_etc(self, corosync_conf):
        """What differs from the machine's /etc."""
        etc = self.directory / "etc"
        (etc / "corosync").mkdir(parents=True)
        (etc / "cluster").mkdir()
        (etc / "corosync/corosync.conf").write_text(corosync_conf)
        (etc / "hostname").write_text(self.name + "\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(
            f"{node.place.ip} {node.name}\n" for node in self.cluster.nodes))
        programs.write_key(etc / "cluster/fence_xvm.key", self.cluster.lab.key.read_bytes())

    def _write_wrappers(self):
        write_program(self.directory / "bin/agent", f"""#!/bin/sh
# What Pacemaker takes for fence_xvm and fence_virt: the one under test, and a record of every call.
name=${{0##*/}}
call=/var/log/agent/$(date +%s%N).$$
cat >"$call.asked"
if [ -e /run/lab/hold ] && grep -Eqx 'action=(off|reboot)' "$call.asked"; then
    touch "$call.held"
    while [ -e /run/lab/hold ]; do sleep 0.02; done
fi
released=$(date +%s%N)
"/run/lab/$(cat /run/lab/{self.name}/bin/side)/$name" "$@" <"$call.asked" >"$call.out" 2>"$call.err"
rc=$?
cat "$call.out"
cat "$call.err" >&2
echo "$name $rc $released $(date +%s%N)" >"$call.new"
mv "$call.new" "$call.done"
exit $rc
""")
        write_program(self.directory / "bin/dummy", """#!/bin/sh
# ocf:pacemaker:Dummy, which also writes down when it was told to start.
[ "$1" != start ] || echo "$(date +%s%N) start" >>/var/log/dummy
exec /bin/sh /run/ocf/Dummy "$@"
""")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an agent by Pacemaker: standard input, both outputs, the exit code, and when.

    `began`: Pacemaker called. `released`: the agent itself began, which is later only where `hold` held the call."""

    name: str
    began: float
    released: float
    ended: float
    rc: int
    asked: str
    out: str
    err: str

    @property
    def options(self):
        """{name: value} of its standard input."""
        return dict(line.split("=", 1) for line in self.asked.splitlines() if "=" in line)


@dataclasses.dataclass(frozen=True)
class View:
    """What a node sees: names of the nodes that are online, the one that decides, {resource: where it is started}."""

    online: frozenset
    dc: str | None
    resources: dict

    @staticmethod
    def of(tree):
        """The View in an answer of crm_mon."""
        nodes = tree.findall("nodes/node")
        return View(
            online=frozenset(n.get("name") for n in nodes if n.get("online") == "true" and n.get("pending") == "false"
                             and n.get("unclean") == "false"),
            dc=next((n.get("name") for n in nodes if n.get("is_dc") == "true"), None),
            resources={r.get("id"): next((n.get("name") for n in r.findall("node")), None)
                       if r.get("role") == "Started" and r.get("failed") == "false" else None
                       for r in tree.iter("resource")})


def program(side, name):
    """Path of a program of that side."""
    return (programs.REFERENCE_DIR if side == "reference" else programs.OURS_DIR) / name


def children(pid):
    """Pids of the children of a process whose only thread is its first."""
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def write_program(path, text):
    """An executable script."""
    path.write_text(text)
    path.chmod(0o755)
