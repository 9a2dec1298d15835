# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages installed in a clean Debian 12, used there, put in place of the C packages, and taken away again."""

import re

import pytest

# One host and one guest in one place: the daemon asks libvirt's test driver, which is inside libvirt0.
USE = r"""
fence_virtd -F > /daemon.log 2>&1 &
daemon=$!
tries=0
until fence_xvm %(key)s -o list -t 2 > /list 2> /errors; do
    tries=$((tries + 1))
    if [ $tries -gt 30 ] || ! kill -0 $daemon; then cat /daemon.log /errors; exit 1; fi
    sleep 0.2
done
cat /list
fence_xvm %(key)s -o off -H test || exit 1
fence_xvm %(key)s -o status -H test
echo "status: $?"
fence_xvm %(key)s -o on -H test || exit 1
fence_xvm %(key)s -o status -H test
echo "status: $?"
fence_virt -h > /dev/null || exit 1
kill $daemon
wait $daemon
"""
EDITED = """# edited by hand
fence_virtd {
	listener = "multicast";
	backend = "libvirt";
}
listeners {
	multicast {
		key_file = "/etc/fence_virt.key";
		address = "225.0.0.12";
		interface = "lo";
	}
}
backends {
	libvirt {
		uri = "test:///default";
	}
}
"""


def use(root, key=""):
    out = root.run(USE % {"key": f"-k {key}" if key else ""})
    assert re.search(r"(?m)^test +[0-9a-f-]{36} on$", out), out
    assert re.findall(r"status: (\d)", out) == ["2", "0"], out
    return out


def configure(root):
    config = (root.path / "etc/fence_virt.conf").read_text()
    config = config.replace('# interface = "virbr0"', 'interface = "lo"').replace("qemu:///system", "test:///default")
    (root.path / "etc/fence_virt.conf").write_text(config)


def test_a_key_that_every_user_reads_gets_the_mode_that_the_c_daemon_gave_it(clean_root):
    name = "etc/cluster/fence_xvm.key"
    path = clean_root.path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a secret that is long enough")
    path.chmod(0o644)
    said = f"/{name} could be read by every user (mode 0644): it has mode 0600 now"
    assert said in clean_root.install().splitlines()
    assert clean_root.mode(name) == "0o600"
    assert said not in clean_root.install().splitlines()


def test_fresh(clean_root):
    root = clean_root
    root.booted()
    said = root.install()
    assert "systemctl enable --now fence_virtd" in said
    assert root.mode("etc/fence_virt.conf") == "0o600"
    # Neither started nor to be started at the next boot: there is no key yet, and none is made.
    assert not [it for it in root.asked_of_systemd() if re.search(r"start|enable|preset", it)], root.asked_of_systemd()
    assert not root.exists("etc/systemd/system/multi-user.target.wants/fence_virtd.service")
    assert not [it for it in root.files() if it.endswith(".key")]

    assert "<parameter name=\"plug\"" in root.run("fence_xvm -o metadata")
    configure(root)
    assert "/etc/cluster/fence_xvm.key" in root.run("! timeout 20 fence_virtd -F 2>&1")
    root.run("mkdir -p /etc/cluster; umask 077; head -c 512 /dev/urandom > /etc/cluster/fence_xvm.key")
    use(root)


@pytest.mark.parametrize("edited", [True, False], ids=["edited", "as it came"])
def test_upgrade_from_the_c_packages_and_back(clean_root, edited):
    root = clean_root
    root.install("reference")
    if edited:
        (root.path / "etc/fence_virt.conf").write_text(EDITED)
        (root.path / "etc/fence_virt.conf").chmod(0o640)
    config = (root.path / "etc/fence_virt.conf").read_bytes()
    mode = root.mode("etc/fence_virt.conf")
    key = (root.path / "etc/fence_virt.key").read_bytes()
    enabled = "etc/systemd/system/multi-user.target.wants/fence_virtd.service"
    assert root.exists(enabled) and root.exists("etc/init.d/fence_virtd")

    root.booted()
    root.install()
    assert (root.path / "etc/fence_virt.conf").read_bytes() == config
    assert root.mode("etc/fence_virt.conf") == mode
    assert (root.path / "etc/fence_virt.key").read_bytes() == key
    assert root.exists(enabled) and root.exists("usr/lib/systemd/system/fence_virtd.service")
    assert not [it for it in root.files() if "init.d/fence" in it or "rc2.d/" in it and "fence" in it]
    assert not [it for it in root.files() if it.endswith(".so") and "fence-virt" in it]
    # Restarted if it ran, never started.
    asked = [it for it in root.asked_of_systemd() if "start" in it]
    assert asked == ["try-restart fence_virtd.service fence_virtd@*.service"]
    if edited:
        use(root, "/etc/fence_virt.key")

    # Back to the C packages, as docs/install.md says.
    root.script("usr/sbin/policy-rc.d", "exit 101")
    (root.path / "usr/bin/systemctl").unlink()
    root.install("reference", "--force-downgrade", "--force-confold", "--force-confmiss")
    assert (root.path / "etc/fence_virt.conf").read_bytes() == config
    assert (root.path / "etc/fence_virt.key").read_bytes() == key
    assert root.exists("usr/lib/x86_64-linux-gnu/fence-virt/multicast.so") and root.exists("etc/init.d/fence_virtd")
    assert root.exists(enabled)
    assert root.run("dpkg --audit") == ""


def test_removed_and_purged(clean_root):
    root = clean_root
    before = root.files()
    root.install()
    configure(root)
    edited = (root.path / "etc/fence_virt.conf").read_text()
    root.run("mkdir -p /etc/cluster; umask 077; echo a key > /etc/cluster/fence_xvm.key")
    root.run("dpkg -r fence-virt fence-virtd")
    assert (root.path / "etc/fence_virt.conf").read_text() == edited
    assert not root.exists("usr/sbin/fence_virtd") and not root.exists("usr/sbin/fence_xvm")

    root.install()
    assert (root.path / "etc/fence_virt.conf").read_text() == edited
    root.run("mkdir -p /var/lib/fence_virt; touch /var/lib/fence_virt/packets")
    said = root.run("dpkg -P fence-virt fence-virtd")
    assert "/etc/cluster/fence_xvm.key is left" in said
    left = root.files() - before
    assert {it for it in left if not re.match(r"etc/(passwd|group|g?shadow|subuid|subgid)-?$", it)} \
        == {"etc/cluster/fence_xvm.key"}
    assert not root.exists("var/lib/fence_virt")


def test_purged_after_the_c_package(clean_root):
    """The C package's purge removes its key; ours does not."""
    root = clean_root
    root.install("reference")
    root.install()
    root.run("dpkg -P fence-virt fence-virtd")
    assert root.exists("etc/fence_virt.key")
    assert not root.exists("etc/fence_virt.conf") and not root.exists("usr/sbin/fence_virtd")
