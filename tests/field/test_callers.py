# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs, roles and guides that call ours: each as it does, against our programs and against the C programs 4.12.1 and 4.17.0.

docs/callers.md has a row for each. A case states one result for both sides; where ours differ on purpose, `by_side` holds both, and
docs/differences.md has the line.
"""

import json
import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from lab import programs, testdriver
from lab.net import wait_until

from .machines import KEY, Site

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="runs both sides itself")

#: Ours, the C programs of this machine, and those of Debian sid.
SIDES = ["ours", "installed", "today"]
DOMAINS = [*map(testdriver.Domain, ("node1", "node2", "vm1", "vm3")), testdriver.Domain("vm2", state=testdriver.SHUTOFF)]
ROLES = programs.REPOSITORY / "tests/field/ansible"
ON, OFF = (0, "Status: ON\n"), (2, "Status: OFF\n")
#: Words in an agent's messages that Pacemaker takes for a result, whatever the exit code is.
TELLING = ("timed out", "timeout", "unrecognised action", "unrecognized action", "unsupported action")


def by_side(site, *, reference, ours, today=None):
    """The expectation where ours differ on purpose. `today`: where the C programs differ from each other, that of 4.17.0."""
    assert reference != ours
    if site.side == "today" and today is not None:
        return today
    return ours if site.side == "ours" else reference


def answer(result):
    """What a caller goes by."""
    return result.rc, result.out


@pytest.fixture(scope="module", params=SIDES)
def site(request, tmp_path_factory):
    """A host that serves by multicast and a guest, with one key."""
    with Site(tmp_path_factory.mktemp(request.param), request.param, DOMAINS) as site:
        site.share_key()
        site.serve()
        yield site


@pytest.fixture(params=SIDES)
def bare(request, tmp_path):
    """A host and a guest without key and configuration."""
    with Site(tmp_path, request.param, DOMAINS) as site:
        yield site


# -- Ansible and Puppet ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ansible():
    """ansible-playbook of PyPI's ansible-core."""
    done = subprocess.run([programs.REPOSITORY / "scripts/install-venv", "tests/field/requirements.txt"],
                          stdout=subprocess.PIPE, text=True, check=True)
    return f"{done.stdout.strip()}/bin/ansible-playbook"


def play(ansible, machine, book, **variables):
    """Runs a playbook on the machine itself; the words for pcs are a list."""
    done = machine.run("env", "ANSIBLE_HOME=/run/ansible", "ANSIBLE_LOCAL_TEMP=/run/ansible/tmp", "ANSIBLE_REMOTE_TEMP=/run/ansible/tmp",
                       "LC_ALL=C.UTF-8", ansible, "-c", "local", "-i", f"{machine.name},", "-e",
                       json.dumps({"ansible_python_interpreter": "/usr/bin/python3", **variables}), ROLES / book, check=False)
    assert re.search(r"failed=0 ", done.stdout), done.stdout


@pytest.mark.parametrize("mode, device", [
    ("0600", ["pcmk_host_list=node1 node2"]),           # ha_cluster
    ("0600", []),                                       # ha_cluster, a device without any attribute
    ("0640", ["pcmk_host_map=n1:vm1;"]),                # another role; the semicolon at the end is its own
], ids=["host-list", "no-attribute", "map-with-semicolon"])
def test_ansible_roles(bare, ansible, mode, device):
    """Key, firewall with 1229/tcp alone, device: then Pacemaker fences."""
    if bare.side == "today" and device:
        pytest.skip("4.12.1 stands for both: what differs is what pcs writes")
    play(ansible, bare.host, "key.yml", key_mode=mode, store=str(bare.directory))
    play(ansible, bare.guest, "node.yml", key_mode=mode, store=str(bare.directory), device=device)
    for machine in (bare.host, bare.guest):
        seen = machine.path(KEY).stat()
        assert (seen.st_size, seen.st_uid, oct(seen.st_mode)[-4:]) == (512, 0, mode)
        assert oct(machine.path("/etc/cluster").stat().st_mode)[-4:] == "0755"
    bare.serve()
    assert bare.guest.ask("fence_xvm", "-o", "list").rc == 0
    # What pcs wrote is what Pacemaker hands over.
    cib = ElementTree.fromstring(bare.guest.run("cat", "/run/cib.xml").stdout)
    bare.device("xvm", **{pair.get("name"): pair.get("value") for pair in cib.findall(".//instance_attributes/nvpair")})
    node, domain = ("n1", "vm1") if "map" in str(device) else ("node1", "node1")
    assert "xvm" in bare.guest.run("stonith_admin", "--list", node).stdout.split()
    assert bare.guest.ask("stonith_admin", "--reboot", node).rc == 0
    assert bare.guest.ask("stonith_admin", "--fence", node).rc == 0
    assert answer(bare.guest.ask("fence_xvm", "-o", "status", "-H", domain)) == OFF
    assert oct(bare.guest.path(KEY).stat().st_mode)[-4:] == mode, "nobody has changed the key"


def test_ansible_key_for_ordinary_users(bare, ansible):
    """A role makes the host's key 0644, so that ordinary users can fence."""
    play(ansible, bare.host, "key.yml", key_mode="0644", store=str(bare.directory))
    bare.serve()
    done = bare.host.ask("fence_xvm", "-o", "status", "-H", "vm1", "-t", 3, user=65534)
    bare.host.run("rm", "-rf", "/tmp/fence_virt-65534", check=False)
    # differences.md: the C daemon takes the right to read away when it starts, and these users can't fence.
    assert done.rc == by_side(bare, reference=1, ours=0), done
    assert oct(bare.host.path(KEY).stat().st_mode)[-4:] == by_side(bare, reference="0600", ours="0644")
    assert bare.side != "ours" or done.out == ON[1] and "can be read by every user" in done.err


#: puppet-pacemaker hands over each of these, and leaves empty what nobody set.
PUPPET = ("debug", "ip_family", "multicast_address", "ipport", "retrans", "auth", "hash", "key_file", "port", "use_uuid", "timeout",
          "delay", "domain")
#: Those that may be empty; the others are refused.
MAY_BE_EMPTY = {"debug", "use_uuid", "delay"}


@pytest.mark.parametrize("name", PUPPET)
def test_puppet_empty_value(site, name):
    """An empty value is refused where it says nothing; then nothing is done."""
    done = site.guest.ask("fence_xvm", stdin=f"{name}=\nplug=node2\naction=status\n")
    assert done.rc == (0 if name in MAY_BE_EMPTY else 1), done
    # 4.17.0 says "Invalid timeout", and Pacemaker takes that for a fence that timed out.
    assert any(word in done.err.lower() for word in TELLING) == (site.side == "today" and name == "timeout")


def test_puppet_key_and_firewall(bare):
    """A key of 6 bytes; IGMP and port 1229 are open."""
    bare.share_key(b"secret")
    bare.guest.firewall("ip protocol igmp", "udp dport 1229", "tcp dport 1229")
    bare.host.firewall("ip protocol igmp", "udp dport 1229", "tcp dport 1229")
    bare.serve()
    done = (bare.guest.ask("fence_xvm", stdin="debug=\nuse_uuid=\ndelay=\nkey_file=/etc/cluster/fence_xvm.key\n"
                                                    "port=vm1\naction=status\n"))
    assert answer(done) == ON, done


# -- pcs and Pacemaker ----------------------------------------------------------------------------------------


def test_pcs_describe(site):
    """pcs reads the metadata on standard output, where nothing else may be."""
    done = site.guest.ask("fence_xvm", stdin="action=metadata\n")
    assert done.rc == 0 and ElementTree.fromstring(done.out).get("name") == "fence_xvm" and done.err == ""
    shown = site.guest.run("pcs", "stonith", "describe", "fence_xvm").stdout
    assert "key_file" in shown and "pcmk_host_map" in shown


@pytest.mark.parametrize("options, valid", [("", True), ("timeout=soon\n", False), ("hash=md5\n", False)])
def test_pcs_agent_validation(site, options, valid):
    """It ends as action=validate-all with the device's options on standard input."""
    done = site.guest.ask("fence_xvm", stdin=f"{options}port=node1\naction=validate-all\n")
    assert done.rc == (0 if valid else 1)
    # differences.md: messages are on standard error.
    if valid or site.side == "ours":
        assert done.out == ""
    if site.side == "ours":
        assert bool(done.err) != valid
        assert not any(word in done.err.lower() for word in TELLING)


def test_pacemaker_fenced_reads_messages(site):
    """Words make a time-out of any failure: a real one must have them, and an option that is wrong must not."""
    site.device("late", pcmk_host_list="x1", multicast_address="225.0.0.99", timeout="2", pcmk_reboot_retries="1")
    site.device("wrong", pcmk_host_list="x2", timeout="soon", pcmk_reboot_retries="1")
    for node in ("x1", "x2"):
        assert site.guest.ask("stonith_admin", "--reboot", node).rc == 1
    log = site.guest.path("/var/log/pacemaker/pacemaker.log").read_text()
    read = re.findall(r"log_action\) \twarning: fence_xvm\[\d+\] stderr: \[ (.*) \]", log)
    telling = [line.split(" to ")[0] for line in read if any(word in line.lower() for word in TELLING)]
    # 4.12.1 tells on standard output, which Pacemaker does not look at for this; 4.17.0 makes a time-out of a wrong option.
    assert telling == by_side(site, reference=[], today=["Timed out waiting for response", "Invalid timeout: 'soon'"],
                              ours=["fence_xvm: Timed out waiting for response"]), read
    assert any("'soon' is not seconds" in line for line in read) == (site.side == "ours")
    done = site.guest.ask("fence_xvm", stdin="action=bogus\nport=vm1\n")
    assert done.rc == 1 and not any(word in done.err.lower() for word in TELLING)


def test_pacemaker_lab_commands(site):
    """What Pacemaker's own test lab runs by hand; tests/field/cts runs the lab itself."""
    assert ElementTree.fromstring(site.guest.run("stonith_admin", "--metadata", "-a", "fence_xvm").stdout).get("name") == "fence_xvm"
    site.device("lab", pcmk_host_list="remote-1 node-2", pcmk_host_map="remote-1:vm1;node-2:node2")
    done = site.guest.ask("stonith_admin", "--reboot", "remote-1", "-VVVVVV")
    assert done.rc == 0
    assert "lab" in site.guest.run("stonith_admin", "--list-registered").stdout
    assert "fence_xvm" in site.guest.run("stonith_admin", "--list-installed").stdout.split()


# -- Kubernetes, oVirt, dlm and cluster.conf --------------------------------------------------------------------


def argv_of(parameters):
    """Command line as the operator makes it: an option with an empty value comes without one."""
    return [f"{name}={value}" if value else name for name, value in parameters.items()]


def test_kubernetes_operator(site):
    """Long options only. The C agents have none: they print their usage and end with 0, so every fence of theirs "succeeds"."""
    status = site.guest.ask("fence_xvm", *argv_of({"--plug": "node1", "--key-file": KEY, "--action": "status"}))
    off = site.guest.ask("fence_xvm", *argv_of({"--plug": "node2", "--key-file": KEY, "--action": "reboot"}))
    assert (status.rc, off.rc) == (0, 0) and status.seconds < 15
    assert ("STATUS: ON" in status.out.upper()) == by_side(site, reference=False, ours=True)


@pytest.mark.parametrize("flag", ["--use-uuid", "--debug"])
def test_kubernetes_empty_value(site, flag):
    """An option that takes no value is what the operator means by an empty one; maps have no order."""
    if site.side != "ours":
        pytest.skip("the C agents have no long options")
    plug = testdriver.uuid_of("node1") if flag == "--use-uuid" else "node1"
    given = {flag: "", "--plug": plug, "--action": "status"}
    for names in (list(given), list(reversed(given))):
        assert answer(site.guest.ask("fence_xvm", *argv_of({name: given[name] for name in names}))) == ON


@pytest.mark.parametrize("option", ["--ip-family", "--multicast-address", "--ipport", "--retrans", "--auth", "--hash", "--key-file",
                                    "--plug", "--timeout", "--delay"])
def test_kubernetes_value_that_is_missing(site, option):
    """The next option is taken for the value, and then nothing may be powered off: reboot is the default action."""
    if site.side != "ours":
        pytest.skip("the C agents have no long options")
    heard = site.daemon.log.count(": heard id=")
    done = site.guest.ask("fence_xvm", option, "--action=status", "--plug=node1")
    assert done.rc == 1 and done.err
    assert site.daemon.log.count(": heard id=") == heard, "something was asked"


@pytest.mark.parametrize("action", ["action", "option"])
@pytest.mark.parametrize("domain, expected", [("vm3", ON), ("vm2", OFF)])
def test_ovirt_proxy(site, action, domain, expected):
    """vdsm hands every agent the same names; 0 is on, 2 is off, all else is an error."""
    text = f"agent=fence_xvm\nipaddr=\nlogin=\n{action}=status\npasswd=\nport={domain}\nsecure=yes\n"
    assert answer(site.guest.ask("fence_xvm", stdin=text)) == expected


def test_ovirt_proxy_unknown_domain(site):
    """differences.md: "off" of a domain that nobody knows would let oVirt start it twice."""
    done = site.guest.ask("fence_xvm", stdin="agent=fence_xvm\nipaddr=\nlogin=\naction=status\npasswd=\nport=nosuch\nsecure=yes\n")
    assert done.rc == by_side(site, reference=2, ours=1)


def test_ovirt_proxy_with_an_address(bare):
    """fence_virt by TCP: `ipaddr` is one of its own names."""
    bare.share_key()
    bare.serve(bare.conf("tcp"), ready="tcp")
    for domain, expected in (("vm1", ON), ("vm2", OFF)):
        text = f"agent=fence_virt\nipaddr={bare.host.ip}\nlogin=\naction=status\npasswd=\nport={domain}\nsecure=yes\n"
        assert answer(bare.guest.ask("fence_virt", stdin=text)) == expected


def test_dlm_controld(site):
    """It adds the number of the node and the second of its failure."""
    assert site.guest.ask("fence_xvm", stdin="port=vm1\naction=off\nnode=2\nfail_time=1700000000\n").rc == 0
    assert answer(site.guest.ask("fence_xvm", stdin="port=vm1\naction=status\nnode=2\nfail_time=1700000000\n")) == OFF
    assert site.guest.ask("fence_xvm", stdin="port=vm1\naction=on\nnode=2\nfail_time=1700000000\n").rc == 0


def test_cluster_conf(site):
    """fenced of cluster.conf: `domain` is the target, `option` the action, `name` the device."""
    assert site.guest.ask("fence_xvm", stdin="agent=fence_xvm\nname=xvm\nnodename=n2\ndomain=node2\noption=reboot\n").rc == 0
    assert answer(site.guest.ask("fence_xvm", stdin="agent=fence_xvm\nname=xvm\nnodename=n2\ndomain=node2\noption=status\n")) == ON


# -- guides and init scripts ----------------------------------------------------------------------------------


#: `fence_virtd -c` by expect, as guides have it: the answers are the defaults but for interface and URI.
EXPECT = r"""
set timeout 20
spawn fence_virtd -c
foreach {question answer} {
    "Start from scratch" "y" "Module search path" "" "Listener module" "" "Multicast IP Address" "" "Multicast IP Port" "" "Interface" "eth0" "Key File" ""
    "Backend module" "" "Libvirt URI" "@URI@" "Replace /etc/fence_virt.conf with the above" "y"
} {
    expect {
        -ex "$question" { expect -re {\]\S* } ; send "$answer\r" }
        timeout { puts "no question: $question"; exit 3 }
        eof { puts "the end before: $question"; exit 4 }
    }
}
expect {
    "More questions" { send "\r"; exp_continue }
    eof
}
lassign [wait] pid spawned error status
exit $status
"""


@pytest.mark.parametrize("wait_for_network", [False, True], ids=["plain", "-w"])
def test_guide(bare, wait_for_network):
    """dd with the usual umask and no chmod, `fence_virtd -c` by expect, the daemon as a daemon, and the first commands."""
    for machine in (bare.host, bare.guest):
        machine.run("mkdir", "-p", "/etc/cluster")
    bare.host.run("sh", "-c", f"umask 022; dd if=/dev/random of={KEY} bs=512 count=1 iflag=fullblock")
    assert oct(bare.host.path(KEY).stat().st_mode)[-4:] == "0644"
    bare.guest.write(KEY, bare.host.path(KEY).read_bytes(), 0o644)
    bare.host.write("/run/configure.exp", EXPECT.replace("@URI@", bare.uri))
    done = bare.host.ask("expect", "/run/configure.exp", timeout=120)
    assert done.rc == 0, done.out
    programs.write_config(bare.host.path("/etc/fence_virt.conf"), bare.host.path("/etc/fence_virt.conf").read_text())
    started = bare.host.ask("fence_virtd", *(["-w"] if wait_for_network else []))
    assert started.rc == 0, started
    wait_until(lambda: bare.host.ask("pidof", "fence_virtd").rc == 0)
    wait_until(lambda: bare.guest.ask("fence_xvm", "-o", "status", "-H", "vm1", "-t", 5).rc == 0)
    listed = [bare.guest.ask("fence_xvm", "-o", "list", *more) for more in ([], ["-a", "225.0.0.12", "-k", KEY], ["-dd"])]
    assert all(it.rc == 0 and len(re.findall(r" (on|off)$", it.out, re.M)) == len(DOMAINS) for it in listed), listed
    assert bare.guest.ask("fence_xvm", "-H", "node1").rc == 0                     # reboot is the default
    assert bare.guest.ask("fence_xvm", "-H", "node1", "-o", "off").rc == 0
    assert answer(bare.guest.ask("fence_xvm", "-o", "status", "-H", "node1")) == OFF


def test_guide_device(bare):
    """pcs with the options that guides give, and a fence by them."""
    bare.share_key()
    bare.serve()
    options = {"multicast_address": "225.0.0.12", "ip_family": "ipv4", "key_file": KEY, "pcmk_host_list": "node1 node2"}
    bare.guest.run("sh", "-c", "cibadmin --empty >/run/cib.xml")
    bare.guest.run("pcs", "-f", "/run/cib.xml", "stonith", "create", "F", "fence_xvm", *(f"{k}={v}" for k, v in options.items()))
    bare.device("F", **options)
    assert bare.guest.ask("stonith_admin", "--reboot", "node1").rc == 0


def test_guide_two_hosts_with_a_group_each(bare):
    """Two hosts, two addresses, and a device each."""
    bare.share_key()
    other = bare.machine("host2")
    try:
        other.path("/etc/cluster").mkdir()
        other.write(KEY, bare.host.path(KEY).read_bytes())
        uri = testdriver.write(bare.directory / "other.xml", ["vm9"])
        bare.serve(bare.conf(more='address = "225.0.0.12";'))
        config = programs.write_config(other.path("/etc/fence_virt.conf"),
                                       bare.conf(more='address = "225.0.0.13";').replace(bare.uri, uri))
        assert config
        with programs.Daemon(other, "/etc/fence_virt.conf", program="/usr/sbin/fence_virtd", debug=3):
            for number, address, domain in ((1, "225.0.0.12", "vm1"), (2, "225.0.0.13", "vm9")):
                bare.device(f"host{number}", multicast_address=address, pcmk_host_list=domain)
                assert bare.guest.ask("stonith_admin", "--reboot", domain).rc == 0
                assert bare.guest.ask("fence_xvm", "-o", "list", "-a", address).out.split()[0] in (domain, "node1")
    finally:
        other.kill()


INIT = r"""
. /lib/lsb/init-functions
case $1 in
start) start_daemon -p /var/run/fence_virtd.pid /usr/sbin/fence_virtd ;;
status) pidofproc -p /var/run/fence_virtd.pid /usr/sbin/fence_virtd ;;
stop) killproc -p /var/run/fence_virtd.pid /usr/sbin/fence_virtd ;;
esac
"""


def test_init_script(bare):
    """An init script finds the daemon by its name and by its pid file, and ends it."""
    bare.share_key()
    programs.write_config(bare.host.path("/etc/fence_virt.conf"), bare.conf())
    bare.host.write("/run/init", INIT)
    bare.host.run("sh", "/run/init", "start")
    wait_until(lambda: bare.guest.ask("fence_xvm", "-o", "status", "-H", "vm1", "-t", 5).rc == 0)
    [found] = bare.host.run("pidof", "fence_virtd").stdout.split()
    assert bare.host.run("sh", "/run/init", "status").stdout.split() == [found]
    assert bare.host.run("cat", "/var/run/fence_virtd.pid").stdout.strip() == found
    bare.host.run("sh", "/run/init", "stop")
    wait_until(lambda: bare.host.ask("pidof", "fence_virtd").rc == 1)
    # Then it can be started again.
    bare.host.run("sh", "/run/init", "start")
    wait_until(lambda: bare.host.ask("pidof", "fence_virtd").rc == 0)
