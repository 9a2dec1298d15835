# SPDX-License-Identifier: GPL-2.0-or-later
"""What our packages and the unit adapt on a host that served with the C daemon: modes of keys, the group of QEMU."""

import os
import subprocess

import pytest

from lab import programs

SCRIPT = programs.REPOSITORY / "packaging/adapt-host"
CONFIG = """\
fence_virtd { listener = "%s"; backend = "libvirt"; PEER_key_file = "/etc/peers key"; }
listeners { multicast { key_file = "/etc/fence_virt.key"; } serial { mode = "vmchannel"; } }
# key_file = "/etc/comment.key"; listener = "serial";
groups { group { uuid = "a"; key_file="/etc/red.key"; } }
"""


def adapt(what, root, **env):
    done = subprocess.run([SCRIPT, what, root], capture_output=True, text=True, env={**os.environ, **env}, check=True)
    return done.stdout, done.stderr


def key(root, name, mode=0o644, owner=0):
    path = root / "etc" / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"a secret that is long enough")
    path.chmod(mode)
    os.chown(path, owner, 0)
    return path


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "etc/fence_virt.conf").write_text(CONFIG % "multicast")
    return tmp_path


def mode(path):
    return path.stat().st_mode & 0o7777


def test_roots_own_keys_that_everybody_reads_and_no_others(root):
    (root / "etc/fence_virt.d").mkdir()
    (root / "etc/fence_virt.d/web.conf").write_text('listeners { tcp { key_file = "/etc/web.key"; } }')
    changed = [key(root, name, mode) for name, mode in (
        ("cluster/fence_xvm.key", 0o644), ("fence_virt.key", 0o604), ("peers key", 0o444), ("red.key", 0o755), ("web.key", 0o644))]
    assert adapt("keys", root)[0].splitlines() == sorted(
        f"{it} could be read by every user (mode 0{was:o}): it has mode 0600 now"
        for it, was in zip(changed, (0o644, 0o604, 0o444, 0o755, 0o644)))
    assert [mode(it) for it in changed] == [0o600] * 5
    assert adapt("keys", root) == ("", "")
    # Not in use, not root's, readable by a group alone, writable by others.
    for name, bits, owner in (("comment.key", 0o644, 0), ("red.key", 0o644, 1000), ("fence_virt.key", 0o640, 0),
                              ("web.key", 0o666, 0), ("peers key", 0o664, 0)):
        path = key(root, name, bits, owner)
        assert adapt("keys", root) == ("", "") and mode(path) == bits, name
    link = root / "etc/cluster/fence_xvm.key"
    link.unlink()
    link.symlink_to(key(root, "elsewhere"))
    assert adapt("keys", root) == ("", "") and mode(link) == 0o644


@pytest.mark.parametrize("listener, wanted", [("multicast", False), ("serial", False), ("vsock", True), ("tcp, VSOCK", True)])
def test_a_vsock_listener_gets_its_sockets(root, listener, wanted):
    (root / "etc/fence_virt.conf").write_text(CONFIG % listener)
    directory = root / "generated"
    subprocess.run([SCRIPT, "units", root, directory], check=True)
    made = {str(it.relative_to(directory)): it.read_text() for it in directory.rglob("*.conf")}
    text = "[Service]\nRestrictAddressFamilies=AF_VSOCK\n"
    units = ("fence_virtd.service", "fence_virtd@.service")
    assert made == ({f"{it}.d/50-vsock.conf": text for it in units} if wanted else {})


def test_keys_that_the_units_hide_are_shown_and_nothing_beside_them(root):
    paths = ("/root/fence_xvm.key", "/home/ops/red key", "/etc/web.key", "/root/gone.key")
    (root / "etc/fence_virt.conf").write_text(CONFIG % "vsock" + "".join(f'x {{ key_file = "{it}"; }}\n' for it in paths))
    for path in paths[:3]:
        key(root, f"..{path}")
    directory = root / "generated"
    subprocess.run([SCRIPT, "units", root, directory], check=True)
    made = {str(it.relative_to(directory)): it.read_text() for it in directory.rglob("*.conf")}
    text = '[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths="/home/ops/red key"\nBindReadOnlyPaths="/root/fence_xvm.key"\n'
    units = ("fence_virtd.service", "fence_virtd@.service")
    assert {name: text for name in made if "keys" in name} == {f"{it}.d/50-keys.conf": text for it in units}
    assert len(made) == 4, made


@pytest.mark.parametrize("listener, conf, wanted", [
    ("multicast, tcp, vsock", 'group = "kvm"\n', None),
    ("serial", 'group = "kvm"\n', "kvm"),
    ("vsock,Serial", '#group = "root"\n', "games"),
    ("serial", 'group = "root"\n', None)])
def test_a_serial_listener_gets_the_group_of_qemu(root, listener, conf, wanted):
    (root / "etc/fence_virt.conf").write_text(CONFIG % listener)
    (root / "etc/libvirt/qemu.conf").write_text(conf)
    qemu = root / "var/lib/libvirt/qemu"
    qemu.mkdir(parents=True)
    subprocess.run(["chgrp", "games", qemu], check=True)
    tools, log = root / "bin", root / "log"
    tools.mkdir()
    for name, body in (("usermod", f'echo "$*" >> {log}; echo "$2" > {root}/groups'), ("id", f"cat {root}/groups 2>&1")):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    out, err = adapt("groups", root, PATH=path)
    assert (out != "") == (wanted is not None) and (err != "") == ("root" in conf and "#" not in conf)
    assert adapt("groups", root, PATH=path)[0] == "", "once is enough"
    assert (log.read_text() if log.exists() else "") == (f"-aG {wanted} fence_virt\n" if wanted else "")
