# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of libvirt's test driver: a file per "hypervisor", no root, no QEMU, milliseconds per action.

    uri = write(path, [Domain("vm1"), Domain("vm2", state=SHUTOFF)])      # test:///path

The driver lives inside the process that opens the URI: each daemon sees its own copy, fresh from the file.
"""

import dataclasses
import hashlib
from xml.sax.saxutils import escape

# libvirt's domain state numbers, as they also stand in host lists.
RUNNING, BLOCKED, PAUSED, SHUTDOWN, SHUTOFF, CRASHED = 1, 2, 3, 4, 5, 6


@dataclasses.dataclass
class Domain:
    """One domain. `uuid` None: made from the name, so that runs are repeatable. `devices`: XML text."""

    name: str
    state: int = RUNNING
    uuid: str | None = None
    devices: str = ""
    transient: bool = False

    def __post_init__(self):
        if self.uuid is None:
            self.uuid = uuid_of(self.name)


def uuid_of(name):
    """The UUID text that a domain gets from its name when none is chosen."""
    h = hashlib.md5(name.encode()).hexdigest()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def node_xml(domains):
    """The driver's `<node>` document."""
    out = ["<node>"]
    for d in domains:
        out.append(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
            f"<test:runstate>{d.state}</test:runstate>"
            + ("<test:transient/>" if d.transient else "")
            + f"<name>{escape(d.name)}</name><uuid>{d.uuid}</uuid><memory>1024</memory>"
            f"<os><type arch='i686'>hvm</type></os><devices>{d.devices}</devices></domain>")
    out.append("</node>")
    return "\n".join(out) + "\n"


def write(path, domains):
    """Writes the document and returns its libvirt URI. Plain strings stand for running domains of that name."""
    domains = [Domain(d) if isinstance(d, str) else d for d in domains]
    with open(path, "w") as f:
        f.write(node_xml(domains))
    return f"test://{path}"


def serial_device(path, port=0):
    """Device XML of a serial port bound by the guest's QEMU to a UNIX socket."""
    return f"<serial type='unix'><source mode='bind' path='{path}'/><target port='{port}'/></serial>"


def channel_device(path, name=None, address="10.0.2.179", port=1229):
    """Device XML of a channel on a UNIX socket: virtio with `name`, else guestfwd to address and port."""
    target = (f"<target type='virtio' name='{name}'/>" if name
              else f"<target type='guestfwd' address='{address}' port='{port}'/>")
    return f"<channel type='unix'><source mode='bind' path='{path}'/>{target}</channel>"
