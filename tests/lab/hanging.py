# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose writes hang, as those of a hard NFS mount do whose server is away.

    with HangingDisk(directory) as disk:
        ... a QEMU writes to disk.path ...
        disk.hang()                  # from now on a writer waits in the kernel, also after SIGKILL
        disk.release()               # what waited is written

One file in a FUSE file system, spoken by hand over /dev/fuse: no library and no package. Mount it before the programs that
shall see it get mount namespaces of their own.
"""

import ctypes
import errno
import os
import pathlib
import struct
import threading

SIZE = 1 << 20

#: Code of a boot sector that writes itself to the third sector of the disk, for ever.
BOOT = bytes.fromhex("31C08EC0B80103B90200BA8000BB007CCD13EBF0").ljust(510, b"\0") + b"\x55\xaa"

# Operations of linux/fuse.h.
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR = \
    1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 29
ACCESS, INTERRUPT, BATCH_FORGET = 34, 36, 42
ROOT, DISK = 1, 2
DIRECT_IO = 1

_libc = ctypes.CDLL(None, use_errno=True)


class HangingDisk:
    """The file system and its one file, a boot disk."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True)
        self.path = self.directory / "disk"
        self.data = bytearray(BOOT.ljust(SIZE, b"\0"))
        #: Writes that were carried out, and requests that wait.
        self.written, self.held = 0, []
        self._hangs, self._lock = False, threading.Lock()

    def __enter__(self):
        self._device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"hanging", str(self.directory).encode(), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount of a FUSE file system")
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.release()
        detach = 2
        _libc.umount2(str(self.directory).encode(), detach)
        os.close(self._device)

    def hang(self):
        """Writes wait from now on."""
        with self._lock:
            self._hangs = True

    def release(self):
        """What waits is written, and nothing waits any more."""
        with self._lock:
            self._hangs, held, self.held = False, self.held, []
        for write in held:
            self._write(*write)

    def _serve(self):
        while True:
            try:
                request = os.read(self._device, 1 << 18)
            except OSError:
                return
            _, operation, unique, node, *_ = struct.unpack("<IIQQIIII", request[:40])
            self._answer(operation, unique, node, request[40:])

    def _answer(self, operation, unique, node, body):
        if operation in (FORGET, INTERRUPT, BATCH_FORGET):
            return
        if operation == INIT:
            self._reply(unique, struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0))
        elif operation == LOOKUP and body.rstrip(b"\0") == b"disk":
            self._reply(unique, struct.pack("<QQQQII", DISK, 0, 100, 100, 0, 0) + _attributes(DISK))
        elif operation == LOOKUP:
            self._reply(unique, error=errno.ENOENT)
        elif operation in (GETATTR, SETATTR):
            self._reply(unique, struct.pack("<QII", 100, 0, 0) + _attributes(node))
        elif operation in (OPEN, OPENDIR):
            self._reply(unique, struct.pack("<QII", 1, DIRECT_IO, 0))
        elif operation == READ:
            _, offset, size = struct.unpack("<QQI", body[:20])
            self._reply(unique, bytes(self.data[offset:offset + size]))
        elif operation == WRITE:
            _, offset, size = struct.unpack("<QQI", body[:20])
            write = unique, offset, body[40:40 + size]
            with self._lock:
                if self._hangs:
                    self.held.append(write)
                    return
            self._write(*write)
        elif operation == STATFS:
            self._reply(unique, struct.pack("<QQQQQIIII", 1000, 900, 900, 10, 10, 4096, 255, 4096, 0) + bytes(24))
        elif operation in (RELEASE, FSYNC, FLUSH, RELEASEDIR, ACCESS):
            self._reply(unique)
        else:
            self._reply(unique, error=errno.ENOSYS)

    def _write(self, unique, offset, data):
        self.data[offset:offset + len(data)] = data
        self.written += 1
        self._reply(unique, struct.pack("<II", len(data), 0))

    def _reply(self, unique, data=b"", error=0):
        try:
            os.write(self._device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)
        except OSError:
            pass        # whoever asked has gone


def _attributes(node):
    mode, size = (0o40755, 0) if node == ROOT else (0o100666, SIZE)
    return struct.pack("<QQQQQQIIIIIIIIII", node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
