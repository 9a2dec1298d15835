# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system of a test guest: a cpio archive for the kernel, written by hand.

    tree = Initramfs()
    tree.program("/usr/sbin/fence_virt")              # with the libraries that it is linked to
    tree.modules(kernel, "virtio_net")                # with the modules that it needs; loaded in that order
    tree.write(path)

Needs neither root nor cpio(1) nor depmod. Never reads anything but what it is told to, and what that needs.
"""

import lzma
import os
import re
import stat
import subprocess
from pathlib import Path

_DIRECTORY, _FILE, _DEVICE = stat.S_IFDIR | 0o755, stat.S_IFREG, stat.S_IFCHR


class Initramfs:
    """What will be in the archive. Paths inside the guest are absolute."""

    def __init__(self):
        self._entries = {}      # path: (mode, data, (major, minor))
        for name in ("proc", "sys", "dev", "tmp", "run", "etc", "root", "bin", "sbin", "var/lib", "modules"):
            self._directory("/" + name)
        self._entries["/dev/console"] = (_DEVICE | 0o600, b"", (5, 1))
        self._entries["/dev/null"] = (_DEVICE | 0o666, b"", (1, 3))

    def text(self, inside, content, mode=0o644):
        """A file with this content (text or bytes)."""
        self._directory(os.path.dirname(inside))
        data = content.encode() if isinstance(content, str) else content
        self._entries[inside] = (_FILE | mode, data, (0, 0))

    def program(self, outside, inside=None):
        """An executable or a library, with every library that it is linked to, at the same path or at `inside`."""
        self.text(str(inside or outside), Path(outside).read_bytes(), 0o755)
        for library in _libraries(outside):
            if library not in self._entries:
                self.text(library, Path(library).read_bytes(), 0o755)

    def modules(self, directory, *names, load=True):
        """Kernel modules from `directory` (and those they need) as /modules/NAME.ko; /modules/order names those that
        are to be loaded at the start, in their order. Returns the names that were put in, in the order of loading."""
        known = {path.name.split(".ko")[0].replace("-", "_"): path for path in Path(directory).rglob("*.ko*")}
        order = []

        def add(name):
            if name in order:
                return
            data = _module(known[name])
            needed = re.search(rb"\0depends=([^\0]*)\0", data)
            for other in needed[1].decode().split(",") if needed and needed[1] else ():
                add(other.replace("-", "_"))
            order.append(name)
            self.text(f"/modules/{name}.ko", data)

        for name in names:
            add(name)
        if load:
            self.text("/modules/order", "".join(f"{name}\n" for name in order))
        return order

    def size(self):
        """Bytes of all files together."""
        return sum(len(data) for _, data, _ in self._entries.values())

    def write(self, path):
        """Writes the archive (format "newc", not compressed: reading it costs the guest less than unpacking)."""
        with open(path, "wb") as out:
            for number, (name, (mode, data, device)) in enumerate(sorted(self._entries.items()), 1):
                _entry(out, number, name.lstrip("/"), mode, data, device)
            _entry(out, 0, "TRAILER!!!", 0, b"", (0, 0))
        return path

    def _directory(self, path):
        while path not in self._entries and path != "/":
            self._entries[path] = (_DIRECTORY, b"", (0, 0))
            path = os.path.dirname(path)


def _entry(out, number, name, mode, data, device):
    name = name.encode() + b"\0"
    #         inode   mode  uid gid links time size       of the device that holds it
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def _libraries(path):
    listed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", listed)       # nothing for a static program


def _module(path):
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return data
