# SPDX-License-Identifier: GPL-2.0-or-later
"""A real hypervisor for tests: a libvirtd of its own with real, tiny QEMU domains.

    with Hypervisor(netns) as hypervisor:
        vm1 = hypervisor.domain('vm1')            # defined and running
        old = vm1.process()                       # its QEMU process, held by a pidfd
        ...                                       # somebody fences vm1 through hypervisor.uri
        assert old.ended() and vm1.state() == 'shut off'

Owns one tree of processes in mount, IPC and PID namespaces of its own (and the network namespace that the
caller names): libvirtd and every QEMU. The machine's own libvirt is never seen nor touched, and nothing here
survives the process that made it, however that process ends: the tree's init reads a pipe and leaves with it.

Must never trust libvirt about the end of a domain: `process()` asks the kernel, so that a test can tell "the
fence says done" from "it is done".
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from pathlib import Path
from xml.sax.saxutils import quoteattr

from . import net, process
from .process import Process, children, only_child

LIBVIRTD = "/usr/sbin/libvirtd"
EMULATOR = "/usr/bin/qemu-system-x86_64"

#: Made when it is first needed; every host of a migration has it at the same place.
FIRMWARE = Path(__file__).resolve().parents[2] / "target/lab/halts.rom"

#: The smallest memory QEMU's `pc` machine starts its firmware with, MiB.
MEMORY = 16


class Hypervisor:
    """libvirtd and its domains. `uri` is where a daemon under test finds it (from any network namespace).

    `netns` names the network namespace of libvirtd and its QEMUs (their VNC ports). `directory` holds socket,
    configuration and logs; without one a temporary directory is made and removed at the end. `socket_group` may use the
    socket beside root."""

    def __init__(self, netns, directory=None, socket_group="root"):
        self.netns, self.socket_group = netns, socket_group
        self.accel = accelerator()
        self._own = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="fence-hv-")) if self._own else Path(directory)
        for part in ("sock", "log", "serial", "drivers"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        self.socket = self.directory / "sock/libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self.log = self.directory / "log/libvirtd.log"
        self._domains = {}
        self._libvirtd = None
        self._write_config()
        self._tree = self._plant()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # -- libvirtd -----------------------------------------------------------------------------------------

    def start(self, timeout=60):
        """Starts libvirtd and returns when it serves its socket; domains that run already are adopted."""
        assert self._libvirtd is None, "libvirtd runs already"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            path = self.directory / "notify"
            path.unlink(missing_ok=True)
            ready.bind(str(path))
            ready.settimeout(timeout)
            self._libvirtd = subprocess.Popen(
                [*self._inside(), LIBVIRTD, "-f", self.directory / "libvirtd.conf", "-p", "/run/libvirtd.pid"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.directory / "log/stderr", "ab"),
                env={**os.environ, "NOTIFY_SOCKET": str(path), "LIBVIRT_DRIVER_DIR": str(self.directory / "drivers")})
            try:
                ready.recv(64)
            except TimeoutError:
                raise AssertionError(f"libvirtd did not start within {timeout} s\n{self.tail()}") from None
        # The socket answers now; the first call also waits for the QEMU driver, and for domains to be adopted.
        self.virsh("list", timeout=timeout)
        return self

    def kill(self):
        """SIGKILLs libvirtd. Its domains run on, as they do on a real host."""
        os.kill(self.libvirtd_pid(), signal.SIGKILL)
        self._wait_gone()

    def _has_ended(self):
        """Whether libvirtd has ended; its nsenter, which waits for it, may not have seen that yet."""
        found = children(self._libvirtd.pid)
        try:
            return not found or Process(found[0]).ended()
        except ProcessLookupError:
            return True

    def ended_by_itself(self, patience=5):
        """Whether libvirtd ends within some seconds without having been told to; then it counts as killed."""
        with contextlib.suppress(TimeoutError):
            net.wait_until(self._has_ended, patience)
            self._wait_gone()
            return True
        return False

    def _wait_gone(self):
        """A stopped nsenter (it stops with its child) would not see that its child has gone, and it may stop late."""
        while True:
            self._libvirtd.send_signal(signal.SIGCONT)
            try:
                self._libvirtd.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                pass
        self._libvirtd = None

    def freeze(self):
        """SIGSTOPs libvirtd: connections are accepted by the kernel and nothing is answered."""
        process.freeze(self.libvirtd_pid())

    def thaw(self):
        """Undoes `freeze`."""
        process.thaw(self.libvirtd_pid())
        self._libvirtd.send_signal(signal.SIGCONT)     # nsenter stops and goes on with its child

    def restart(self):
        """SIGKILL, then a new libvirtd that finds the domains of the old one."""
        if self._libvirtd:
            self.kill()
        self.start()

    def recover(self):
        """libvirtd answers afterwards, whatever was done to it. Costs next to nothing when nothing was."""
        if self._libvirtd and self._has_ended():
            self._wait_gone()
        if self._libvirtd is None:
            self.start()
        elif process.is_frozen(self.libvirtd_pid()):
            self.thaw()

    def stop(self):
        """Ends libvirtd, every QEMU and the namespaces; removes a temporary directory. May be called twice."""
        self._tree.stdin.close()
        # First: the tree waits for libvirtd, and a nsenter that stands still with it would not see its end.
        if self._libvirtd:
            self._wait_gone()
        self._tree.wait()
        self._tree.stdout.close()
        if self._own:
            shutil.rmtree(self.directory, ignore_errors=True)

    def libvirtd_pid(self):
        """libvirtd's pid as this process sees it."""
        assert self._libvirtd and self._libvirtd.poll() is None, f"libvirtd does not run\n{self.tail()}"
        return only_child(self._libvirtd.pid)

    def tail(self, lines=20):
        """The end of libvirtd's log, for messages of failed tests."""
        if not self.log.exists():
            return "(no libvirtd log)"
        return "\n".join(self.log.read_text(errors="backslashreplace").splitlines()[-lines:])

    def virsh(self, *args, check=True, timeout=60):
        """Runs virsh against this libvirtd; returns the CompletedProcess (text)."""
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *map(str, args)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="backslashreplace", timeout=timeout)
        assert done.returncode == 0 or not check, f"virsh {args}: {done.stderr}\n{self.tail()}"
        return done

    # -- domains ------------------------------------------------------------------------------------------

    def domain(self, name, *, uuid=None, transient=False, start=True, paused=False, **machine):
        """A new domain, or the one of that name brought into that shape again if its definition is the same.

        `start`: running afterwards, else shut off. `paused`: running, then suspended. The rest goes to
        `machine_xml`. Re-use is what makes a case cost milliseconds; a case may leave a domain in any state."""
        wanted = (uuid, transient, tuple(sorted(machine.items())))
        domain = self._domains.get(name)
        if domain is None or domain.made_of != wanted or domain.state() is None:
            if domain:
                domain.remove()
            domain = Domain(self, name, uuid or str(uuids.uuid5(uuids.NAMESPACE_DNS, name)), transient)
            domain.made_of = wanted
            domain.source = self._write_xml(domain, machine)
            self._domains[name] = domain
            self.virsh("create" if transient else "define", domain.source)
        if start or paused:
            domain.start(paused)
        else:
            domain.destroy()
        return domain

    def _write_xml(self, domain, machine):
        path = self.directory / f"{domain.uuid}.xml"
        path.write_text(machine_xml(domain.name, domain.uuid, self.accel, **machine))
        return path

    def processes(self):
        """{uuid: pid} of the QEMU processes of this hypervisor, by their own command lines (libvirt isn't asked)."""
        space = os.stat(f"/proc/{self._init}/ns/pid").st_ino
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.stat(f"/proc/{entry}/ns/pid").st_ino != space:
                    continue
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue        # ended while we looked, or a zombie
            if words[0] == EMULATOR.encode() and b"-uuid" in words:
                found[words[words.index(b"-uuid") + 1].decode()] = int(entry)
        return found

    def beside(self, node):
        """A node whose programs see the processes of this hypervisor in /proc, as those of its host do."""
        return _Beside(node, self._init)

    # -- how the tree is made -----------------------------------------------------------------------------

    def _plant(self):
        """The namespaces and their init. The init must reap: libvirt waits for its daemonised QEMUs until they
        are gone, zombies included, and the init of a container may take its time."""
        net = [f"--net=/run/netns/{self.netns}"] if self.netns else ["--net=/proc/self/ns/net"]
        script = """set -e
            for dir in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt/qemu; do
                mkdir -p $dir; mount -t tmpfs hypervisor $dir
            done
            mkdir -p /run/libvirt /run/lock /etc/libvirt/qemu/networks
            touch /etc/libvirt/qemu.conf
            mount --bind "$1/qemu.conf" /etc/libvirt/qemu.conf
            exec "$2" -ISc 'import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("planted", flush=True)
sys.stdin.read()' """
        tree = subprocess.Popen(
            ["nsenter", *net, "unshare", "--mount", "--propagation=private", "--ipc", "--pid", "--fork",
             "--mount-proc", "sh", "-c", script, "init", str(self.directory), sys.executable],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert tree.stdout.readline() == b"planted\n", "the namespaces for libvirtd could not be made"
        self._init = only_child(tree.pid)
        return tree

    def path(self, path):
        """A path as this hypervisor has it, for us."""
        return Path(f"/proc/{self._init}/root") / path.lstrip("/")

    def _inside(self):
        return ["nsenter", "-t", str(self._init), "--mount", "--ipc", "--net", "--pid", "--"]

    def _write_config(self):
        (self.directory / "libvirtd.conf").write_text(f"""unix_sock_dir = "{self.directory}/sock"
unix_sock_group = "{self.socket_group}"
unix_sock_rw_perms = "0770"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "{uuids.uuid4()}"
max_clients = 200
log_outputs = "4:file:{self.log}"
""")
        # Root may open /dev/kvm and the directories of this process; everything that isolates one QEMU from
        # another costs time and proves nothing here. No virtlogd runs in here.
        (self.directory / "qemu.conf").write_text("""user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
""")
        self._link_drivers()

    def _link_drivers(self):
        drivers = self.directory / "drivers"
        module = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")
        if not (drivers / module.name).exists():
            (drivers / module.name).symlink_to(module)   # the other drivers only make the start slower


class _Beside:
    """A node with the PID namespace of a hypervisor."""

    def __init__(self, node, init):
        self._node, self._init = node, init

    def __getattr__(self, name):
        return getattr(self._node, name)

    def popen(self, argv, **kw):
        """As the node's; the process is a parent of the program: see `pid_of`."""
        return self._node.popen(["nsenter", "-t", str(self._init), "--pid", "--", "unshare", "--mount",
                                 "--propagation=private", "--mount-proc", *map(str, argv)], **kw)

    def pid_of(self, process):
        """The pid, as this process sees it, of the program that `popen` started."""
        until(lambda: process.poll() is not None or children(process.pid), 60, "the program started")
        return only_child(process.pid) if process.poll() is None else process.pid


class Pretended(Hypervisor):
    """The same with libvirt's test driver in place of QEMU: all its connections see the same domains, which are nothing
    but words and end with libvirtd. For tests in which whether a domain runs may be a matter of libvirt's word."""

    def __init__(self, netns, directory=None, socket_group="root"):
        super().__init__(netns, directory, socket_group)
        self._held = None
        self.uri = f"test+unix:///default?socket={self.socket}"

    def start(self, timeout=60):
        """As a Hypervisor's, with nothing but the domains that are asked for."""
        self._let_go()
        super().start(timeout)
        # The driver forgets everything when its last connection closes. This one is not given up while libvirtd stands still.
        self._held = subprocess.Popen(["virsh", "-q", "-k", "0", "-c", self.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL)
        self._held.stdin.write(b"destroy test\nundefine test\necho held\n")
        self._held.stdin.flush()
        while b"held" not in (line := self._held.stdout.readline()):
            assert line, f"virsh ended\n{self.tail()}"
        self._domains.clear()
        return self

    def stop(self):
        """As a Hypervisor's."""
        self._let_go()
        super().stop()

    def _let_go(self):
        if self._held:
            self._held.kill()
            self._held.communicate()
            self._held = None

    def _link_drivers(self):
        """The test driver is part of libvirtd."""

    def _write_xml(self, domain, machine):
        path = self.directory / f"{domain.uuid}.xml"
        path.write_text(f"<domain type='test'><name>{quoteattr(domain.name)[1:-1]}</name><uuid>{domain.uuid}</uuid>"
                        "<memory>1024</memory><os><type arch='i686'>hvm</type></os></domain>")
        return path


class Domain:
    """One domain of a `Hypervisor`."""

    def __init__(self, hypervisor, name, uuid, transient):
        self.hypervisor, self.name, self.uuid, self.transient = hypervisor, name, uuid, transient
        self.source = None
        self.made_of = None

    def start(self, paused=False):
        """Running (or paused), whatever it was."""
        state = self.state()
        if state is None and self.transient:
            self._virsh("create", self.source)
        elif state == "shut off":
            self._virsh("start", self.uuid)
        elif state == "paused" and not paused:
            # One that just starts is paused too, and runs a moment later.
            resumed = self.hypervisor.virsh("resume", self.uuid, check=False)
            assert resumed.returncode == 0 or self.state() == "running", resumed.stderr
        else:
            assert state in ("running", "paused"), f"{self.name} is {state}: nothing that a test makes"
        if paused and state != "paused":
            self._virsh("suspend", self.uuid)
        return self

    def destroy(self):
        """Off, whatever it was. A transient domain is gone then."""
        if self.state() not in (None, "shut off"):
            self._virsh("destroy", self.uuid)

    def suspend(self):
        """Stops the vCPUs: libvirt's state `paused`."""
        self._virsh("suspend", self.uuid)

    def remove(self):
        """Gone from libvirt, running or not."""
        self.destroy()
        if self.state() is not None:
            self._virsh("undefine", self.uuid)

    def state(self):
        """libvirt's word for the state ('running', 'paused', 'shut off', …); None when it knows no such domain."""
        asked = self.hypervisor.virsh("domstate", self.uuid, check=False)
        if asked.returncode == 0:
            return asked.stdout.strip()
        assert "Domain not found" in asked.stderr or "failed to get domain" in asked.stderr, asked.stderr
        return None

    def wait_state(self, state, timeout=60):
        """Returns when libvirt reports that state; AssertionError after `timeout` seconds."""
        until(lambda: self.state() == state, timeout, f"{self.name} {state}")

    def pid(self):
        """Pid of its QEMU process; None when none runs."""
        return self.hypervisor.processes().get(self.uuid)

    def process(self):
        """Its QEMU process, which must run now."""
        pid = self.pid()
        assert pid, f"{self.name} has no QEMU process"
        return Process(pid)

    def xml(self, *options):
        """dumpxml, e.g. with '--security-info' or '--inactive'."""
        return self._virsh("dumpxml", *options, self.uuid).stdout

    def monitor(self, command):
        """The answer of QEMU's human monitor to one command."""
        return self._virsh("qemu-monitor-command", self.uuid, "--hmp", command).stdout

    def _virsh(self, *args):
        return self.hypervisor.virsh(*args)


@contextlib.contextmanager
def hanging_off(hypervisor, domain, order):
    """libvirtd stands still inside a power-off of the domain, which `order()` asks for; its value. At the end it goes on, and has ended
    the domain."""
    qemu = domain.process()
    # libvirtd waits for the end of one that does not take its signal.
    process.freeze(qemu.pid)
    try:
        asked = order()
        until(lambda: process.is_pending(qemu.pid, signal.SIGTERM), 60, f"libvirtd is told to power {domain.name} off")
        hypervisor.freeze()
        yield asked
    finally:
        process.thaw(qemu.pid)
        hypervisor.recover()
    assert qemu.ended(60), f"{domain.name} runs on"
    domain.wait_state("shut off")


def machine_xml(name, uuid, accel, *, vnc_password=None, serial=(), channel=(), interface=(), title=None, disk=None,
                crashes=None, bios=False):
    """Domain XML of a machine without disk, unless `disk` is the path of a raw image. `serial`: paths of UNIX sockets that QEMU binds for serial ports;
    `channel`: (path, target name) of virtio channels; `interface`: nothing but (mac, bridge) pairs. `crashes`: the path of a `crashing_disk`: the
    guest panics as soon as it runs, and the machine is kept. `bios`: the usual firmware also without
    a disk to boot from. It writes to memory, so that a migration has something to copy."""
    devices = [f"<emulator>{EMULATOR}</emulator>", "<controller type='usb' model='none'/>", "<memballoon model='none'/>"]
    devices += [f"<serial type='unix'><source mode='bind' path={quoteattr(str(path))}/></serial>" for path in serial]
    devices += [f"<channel type='unix'><source mode='bind' path={quoteattr(str(path))}/>"
                f"<target type='virtio' name={quoteattr(target)}/></channel>" for path, target in channel]
    devices += [f"<interface type='bridge'><mac address='{mac}'/><source bridge='{bridge}'/></interface>"
                for mac, bridge in interface]
    if disk:
        devices.append("<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
                       f"<source file={quoteattr(str(disk))}/><target dev='hda' bus='ide'/></disk>")
    if crashes:
        devices.append("<panic model='isa'/><disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>"
                       f"<source file={quoteattr(str(crashes))}/><target dev='hda' bus='ide'/><shareable/></disk>")
    if vnc_password:
        devices.append("<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' "
                       f"passwd={quoteattr(vnc_password)}/>")
    text = f"<title>{title}</title>" if title else ""
    named = quoteattr(name)[1:-1]
    return (f"<domain type='{accel}'><name>{named}</name><uuid>{uuid}</uuid>{text}"
            f"<memory unit='MiB'>{MEMORY}</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type>{'' if disk or crashes or bios else firmware()}</os>"
            f"<on_reboot>restart</on_reboot>{'<on_crash>preserve</on_crash>' if crashes else ''}"
            f"<devices>{''.join(devices)}</devices></domain>")


def firmware():
    """A firmware that does nothing, for machines that only have to run. The usual one takes seconds of the processor at each start where
    KVM has to emulate it, as in a virtual machine."""
    if not FIRMWARE.exists():
        FIRMWARE.parent.mkdir(parents=True, exist_ok=True)
        new = FIRMWARE.with_suffix(f".{os.getpid()}")
        # At the reset vector: cli; hlt; jmp to the hlt
        new.write_bytes(bytes([0xF4] * 65520) + bytes([0xFA, 0xF4, 0xEB, 0xFD]).ljust(16, b"\xF4"))
        new.rename(FIRMWARE)
    return f"<loader readonly='yes' type='rom'>{FIRMWARE}</loader>"


def crashing_disk(path):
    """Writes a disk whose boot sector tells the panic device that the guest has crashed. Returns its path."""
    # cli; mov dx, 0x505; mov al, 1; out dx, al; hlt; jmp to the hlt
    code = bytes([0xFA, 0xBA, 0x05, 0x05, 0xB0, 0x01, 0xEE, 0xF4, 0xEB, 0xFD])
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xAA" + bytes(65536 - 512))
    return path


def accelerator():
    """`kvm` where this process may make a virtual machine with it, else `qemu` (TCG). ACCEL overrides."""
    if os.environ.get("ACCEL"):
        return {"tcg": "qemu"}.get(os.environ["ACCEL"], os.environ["ACCEL"])
    kvm_create_vm = 0xAE01
    try:
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            os.close(fcntl.ioctl(kvm, kvm_create_vm, 0))
        return "kvm"
    except OSError:
        return "qemu"


def until(condition, timeout, what):
    """Asks `condition` again and again until it holds; AssertionError that names `what` after `timeout` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)
