# SPDX-License-Identifier: GPL-2.0-or-later
"""Real Linux guests: domains of a `Hypervisor` that boot a kernel and run commands for the test.

    kernel = Kernel.fetched()                           # a Debian cloud kernel, from the cache or by apt-get
    tree = root(kernel)                                 # an Initramfs with busybox and the drivers
    tree.program("/usr/sbin/fence_virt")
    guest = Guest(hypervisor, "n1", kernel, tree.write(path), ip="10.0.0.2/24", bridge="br0")
    guest.start()
    guest.sh("fence_virt -D /dev/ttyS1 -o list")        # Result(rc, out, err, seconds)

A guest has a serial line (/dev/ttyS1), a virtio channel for fencing, a guestfwd channel and a card on a bridge;
the test's own commands go through one more virtio port, on a socket that no daemon under test may touch.
What is fetched is kept in target/guests ($CARGO_TARGET_DIR/guests) and nothing is installed.
Must never start a guest outside the hypervisor that it was given.
"""

import base64
import contextlib
import dataclasses
import fcntl
import itertools
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
import uuid as uuids
from pathlib import Path

from lab import programs
from lab.hypervisor import Domain
from lab.initramfs import Initramfs
from lab.programs import Result

#: The kernel flavour: the cloud one has the drivers of virtual machines and is small.
PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = "busybox-static"

#: Where a guest reaches the host by guestfwd: the address that fence_virt uses when none is named.
FORWARD = ("10.0.2.179", 1229)
#: The name of the channel for fencing, which is its file in /dev/virtio-ports.
CHANNEL = "org.clusterlabs.fence_virt.0"

#: libvirt's word for TCG. It boots this kernel in 2-3 s, everywhere: a machine that is virtual itself may offer KVM
#: and run no kernel under it.
ACCEL = "qemu"

#: How long a guest may take to boot, seconds, on a busy machine.
BOOT = 120


class GuestGone(ConnectionError):
    """The guest ended while it ran a command."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel and a static busybox, unpacked but not installed."""

    image: Path
    modules: Path
    busybox: Path

    @classmethod
    def fetched(cls):
        """From the cache; what is not there is downloaded by apt-get. Raises RuntimeError with apt's own words."""
        cache = Path(os.environ.get("CARGO_TARGET_DIR") or programs.REPOSITORY / "target") / "guests"
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kernel, busybox = _unpacked(cache, PACKAGE), _unpacked(cache, BUSYBOX)
        image = next((kernel / "boot").glob("vmlinuz-*"))
        return cls(image, kernel / "lib/modules" / image.name.removeprefix("vmlinuz-"), busybox / "bin/busybox")


def root(kernel, *modules):
    """An Initramfs that boots to the test's shell; `modules` are there too, but not loaded."""
    tree = Initramfs()
    tree.program(kernel.busybox, "/bin/busybox")
    tree.text("/init", Path(__file__).with_name("guest-init").read_bytes(), 0o755)
    tree.modules(kernel.modules, *modules, load=False)
    tree.modules(kernel.modules, "virtio_pci", "virtio_net", "virtio_console", "virtio_rng")
    return tree


class Guest(Domain):
    """A Linux guest. `sockets[kind]` are QEMU's ends of its ways out: serial, channel, forward, shell."""

    _commands = itertools.count(1)

    def __init__(self, hypervisor, name, kernel, initrd, *, memory=160, ip=None, ip6=None, bridge=None):
        super().__init__(hypervisor, name, str(uuids.uuid5(uuids.NAMESPACE_DNS, "guest " + name)), transient=False)
        self.ip, self.ip6 = ip and ip.split("/")[0], ip6 and ip6.split("/")[0]
        self.console = hypervisor.directory / "log" / f"{name}.console"
        self.sockets = {}
        for kind in ("serial", "channel", "forward", "shell"):
            (hypervisor.directory / kind).mkdir(exist_ok=True)
            self.sockets[kind] = hypervisor.directory / kind / f"{name}.sock"
        self._shell = None
        self.source = hypervisor.directory / f"{self.uuid}.xml"
        self.source.write_text(self._xml(kernel, initrd, memory, ip, ip6, bridge))
        hypervisor.virsh("define", self.source)

    def mac(self, card=1):
        """The MAC address of its card on the bridge (1) or of the one with the guestfwd channel (2)."""
        return "52:54:00:" + ":".join(self.uuid[i:i + 2] for i in (0, 2)) + f":0{card}"

    def up(self, timeout=BOOT):
        """Starts it where it is off and returns when its shell answers."""
        self.start()
        self.sh("true", timeout)
        return self

    def sh(self, script, timeout=40):
        """Runs a shell script in the guest to its end. Raises TimeoutError, or GuestGone when the guest ends."""
        started = time.monotonic()
        number = self.begin(script, timeout)
        deadline = started + timeout
        answer = b""
        while not (ended := re.search(rb"^end %d (\d+)\r?\n" % number, answer, re.M)):
            answer += self._receive(deadline, script)
        texts = re.search(rb"^begin %d\r?\n(.*?)^errors %d\r?\n(.*?)^end" % (number, number), answer, re.M | re.S)
        out, err = (base64.b64decode(it).decode("utf-8", "backslashreplace") for it in texts.groups())
        return Result(int(ended[1]), out, err, time.monotonic() - started)

    def begin(self, script, timeout=10):
        """Hands a script to the guest's shell and does not wait for it: for what ends the guest."""
        number = next(Guest._commands)
        line = b"%d %s\n" % (number, base64.b64encode(script.encode()))
        self._connection(time.monotonic() + timeout).sendall(line)
        return number

    def tail(self, lines=15):
        """The end of what it wrote on its console, for messages of failed tests."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.console.read_text(errors="backslashreplace").splitlines()[-lines:])
        return "(no console)"

    def _connection(self, deadline):
        if self._shell and _is_closed(self._shell):
            self._hang_up()
        while self._shell is None:
            shell = socket.socket(socket.AF_UNIX)
            try:
                shell.connect(str(self.sockets["shell"]))
                self._shell = shell
            except OSError as error:
                shell.close()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} has no shell: {error}\n{self.tail()}") from error
                time.sleep(0.05)
        return self._shell

    def _receive(self, deadline, script):
        self._shell.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            data = self._shell.recv(65536)
        except TimeoutError:
            # The answer may still come, and must not be read as another command's.
            self._hang_up()
            raise TimeoutError(f"{self.name} did not end in time: {script}\n{self.tail()}") from None
        except ConnectionError:
            data = b""
        if not data:
            self._hang_up()
            raise GuestGone(f"{self.name} ended during: {script}\n{self.tail()}")
        return data

    def _hang_up(self):
        self._shell.close()
        self._shell = None

    def _xml(self, kernel, initrd, memory, ip, ip6, bridge):
        sockets = self.sockets
        words = ["console=ttyS0 panic=-1 quiet nokaslr mitigations=off", f"guest.name={self.name}"]
        words += [f"guest.ip={ip}"] if ip else []
        words += [f"guest.ip6={ip6}"] if ip6 else []
        card = (f"<interface type='bridge'><mac address='{self.mac()}'/><source bridge='{bridge}'/>"
                "<model type='virtio'/></interface>") if bridge else ""
        # libvirt makes a user-mode network for the guestfwd channel, but no card on it.
        forward_card = f"virtio-net-pci,netdev=ua-forward,mac={self.mac(2)},addr=0x10"
        return f"""<domain type='{ACCEL}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name><uuid>{self.uuid}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel.image}</kernel><initrd>{initrd}</initrd>
    <cmdline>{" ".join(words)}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <serial type='file'><source path='{self.console}'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{sockets["serial"]}'/><target port='1'/></serial>
    <channel type='unix'><source mode='bind' path='{sockets["shell"]}'/>
      <target type='virtio' name='lab.shell'/></channel>
    <channel type='unix'><source mode='bind' path='{sockets["channel"]}'/>
      <target type='virtio' name='{CHANNEL}'/></channel>
    <channel type='unix'><source mode='bind' path='{sockets["forward"]}'/>
      <target type='guestfwd' address='{FORWARD[0]}' port='{FORWARD[1]}'/><alias name='ua-forward'/></channel>
    {card}
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <qemu:commandline><qemu:arg value='-device'/><qemu:arg value='{forward_card}'/></qemu:commandline>
</domain>
"""


def _is_closed(connection):
    """Whether the other side has hung up (or said something that nobody asked for)."""
    return bool(select.select([connection], [], [], 0)[0])


def _unpacked(cache, package):
    """The directory with the files of a package, of the version that it had when it was first asked for."""
    directory = cache / package
    if directory.exists():
        return directory
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        deb = _downloaded(package, scratch)
        unpacked = Path(scratch) / "unpacked"
        subprocess.run(["dpkg", "-x", deb, unpacked], check=True)
        # Whole or not at all.
        shutil.move(unpacked, directory)
    return directory


def _downloaded(package, directory):
    """The path of the package's .deb. A machine that never asked for the list of packages asks for it now."""
    for _ in range(3):
        # A package for kernels of a flavour only depends on the one with the files.
        depends = _apt("apt-cache", "depends", package, directory=directory).stdout
        real = re.search(r"Depends: (linux-image-[0-9]\S*)", depends)
        done = _apt("apt-get", "-q", "download", real[1] if real else package, directory=directory)
        found = list(Path(directory).glob("*.deb"))
        if done.returncode == 0 and found:
            return found[0]
        _apt("apt-get", "-q", "update", directory=directory)
    raise RuntimeError(f"apt-get download {package}: {done.stderr.strip()}")


def _apt(*argv, directory):
    options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=5"]
    return subprocess.run([argv[0], *options, *argv[1:]], cwd=directory, capture_output=True, text=True,
                          env={**os.environ, "LC_ALL": "C"})
