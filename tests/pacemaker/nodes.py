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

A node is a machine with corosync (`lab.corosync`) and Pacemaker as Debian ships them (`node-parts`), and a QEMU domain
that only runs its firmware. QEMU's end, seen at the kernel and not told by libvirt or the daemon, kills the node's
whole PID namespace. The domain's card and the node's interface have one MAC address, so that the host can tell who asks.
The nodes' agents are wrapped: what Pacemaker hands them and what they answer is on record.
"""

import dataclasses
import pathlib
import re
import shutil
import signal
import threading
import time
import xml.etree.ElementTree as ElementTree

from lab import corosync, net, programs
from lab.corosync import PATIENCE
from lab.hypervisor import Hypervisor, until

HERE = pathlib.Path(__file__).resolve().parent

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
        self.daemon = programs.Daemon(self.host, config, program=programs.program(side, "fence_virtd"), debug=3,
                                      ready="udp" if listeners[0] == "multicast" else "tcp")
        if side == "ours":
            self.daemon.wait_serving()

    def records(self):
        """The audit records of our daemon since it was started, oldest first."""
        return programs.audit_records(self.audit)

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
                shutil.copy(programs.program(side, name), self.directory / side / name)
        self.nodes = [self.new_node(name) for name in names]
        self.__dict__.update({node.name: node for node in self.nodes})
        corosync.join(self.nodes)
        self.use("ours")

    def new_node(self, name):
        """A node of this cluster."""
        return Node(self, name)

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
            node.heal()
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


class Node(corosync.Machine):
    """One cluster node; see the module's head. `domain` is its domain."""

    #: What the node runs; see `node-init`.
    PARTS = HERE / "node-parts"

    def __init__(self, cluster, name):
        lab = cluster.lab
        self.cluster = cluster
        super().__init__(lab.net.node(name), cluster.directory / name, self.PARTS)
        mac = f"52:54:00:fe:0c:{self.place.index:02x}"
        self.place.ip_cmd(f"link set eth0 address {mac}")
        # With a source of its own: else the kernel shares one next hop, and its cached type, with the multicast route.
        self.place.ip_cmd(f"route add {HOST}/32 dev eth0 src {self.place.ip}")
        # The name is not the node's: so that pcmk_host_map has something to map.
        self.domain = lab.hypervisor.domain(f"vm-{name}", start=False, interface=((mac, "cards"),))
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
        for asked in (self.directory / "log/agent").glob("*.asked"):
            if not asked.with_suffix(".done").exists():
                asked.unlink()      # the node died before it was answered
        super().boot()
        threading.Thread(target=self._die_with, args=(self._qemu, self._init, self._fenced), daemon=True).start()

    def kill(self):
        """Every process of the node ends at once; its domain runs on. Returns when that was, seconds of the clock."""
        at = time.time()
        super().kill()
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

    def state(self, argv=()):
        """Of the whole cluster, unless that would ask the same again."""
        return "" if argv and argv[0] == "crm_mon" else self.cluster.state()

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

    def write_etc(self, corosync_conf, hosts):
        """What differs from the machine's /etc."""
        super().write_etc(corosync_conf, hosts)
        (self.directory / "etc/cluster").mkdir()
        programs.write_key(self.directory / "etc/cluster/fence_xvm.key", self.cluster.lab.key.read_bytes())

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


def write_program(path, text):
    """An executable script."""
    path.write_text(text)
    path.chmod(0o755)
