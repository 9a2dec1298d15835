# SPDX-License-Identifier: GPL-2.0-or-later
"""What pcs and Pacemaker read in our metadata and let us check, without a cluster."""

import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from . import manual
from .offline import Offline

AGENTS = ["fence_xvm", "fence_virt"]

#: The schema of fence agents, and the one that pcs reads agents by.
SCHEMAS = ["/usr/share/cluster/relaxng/metadata.rng", "/usr/share/pcs/data/ocf-1.0.rng"]

#: Parameters that ours have and the C agents do not.
ADDED = {"fence_xvm": set(), "fence_virt": set()}

#: What Pacemaker asks agents to do.
ACTIONS = {"on", "off", "reboot", "status", "monitor", "list", "metadata", "validate-all"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Our agents."""
    return Offline(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def reference_desk(tmp_path_factory):
    """The C agents."""
    return Offline(tmp_path_factory.mktemp("reference"), "reference")


@pytest.fixture(params=AGENTS)
def agent(request):
    """The agent's name."""
    return request.param


def metadata(desk, agent):
    """The agent's own words."""
    return ElementTree.fromstring(desk.run(f"/usr/sbin/{agent}", "-o", "metadata").stdout)


def test_pacemaker_reads_the_metadata(desk, agent):
    """It finds our agent and not the machine's, and changes one thing: it names the target itself, so no
    administrator has to."""
    seen = ElementTree.fromstring(desk.run("stonith_admin", "--metadata", "--agent", agent).stdout)
    wanted = parameters(metadata(desk, agent))
    for name in ("plug", "port"):
        wanted[name]["required"] = "0"
    assert parameters(seen) == wanted
    assert texts(seen) == texts(metadata(desk, agent))
    assert agent in desk.run("stonith_admin", "--list-installed").stdout.split()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_metadata_follows_the_schemas(desk, agent, schema):
    file = desk.directory / f"{agent}.xml"
    file.write_text(desk.run(f"/usr/sbin/{agent}", "-o", "metadata").stdout)
    done = subprocess.run(["xmllint", "--noout", "--relaxng", schema, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_that_the_c_agent_has_is_there(desk, reference_desk, agent):
    ours, theirs = metadata(desk, agent), metadata(reference_desk, agent)
    mine, reference = parameters(ours), parameters(theirs)
    assert {name: mine.get(name) for name in reference} == reference
    assert set(mine) - set(reference) == ADDED[agent]
    assert actions(ours) == actions(theirs)
    assert ACTIONS <= {name for name, *_ in actions(ours)}
    assert texts(ours) != texts(theirs), "the metadata is that of the C agent"


def test_pcs_describes_every_parameter(desk, agent):
    said = desk.run("pcs", "stonith", "describe", agent).stdout
    shown = {line.strip().split(":")[0].split(" ")[0] for line in said.splitlines() if line.startswith("  ")}
    seen = metadata(desk, agent)
    obsolete = {p.get("name") for p in seen.iter("parameter") if p.get("deprecated")}
    assert shown >= set(parameters(seen)) - obsolete - {"action"}, said
    assert not shown & obsolete


def test_pcs_takes_every_option(desk):
    """All options of fence_xvm at once, next to those of Pacemaker itself."""
    given = {
        "ip_family": "ipv4", "multicast_address": "225.0.0.13", "ipport": "1230", "retrans": "5", "auth": "sha512",
        "hash": "sha512", "key_file": "/etc/cluster/fence_xvm.key", "use_uuid": "0", "timeout": "10", "delay": "1",
        "debug": "1", "pcmk_host_map": "n1:vm-n1;n2:vm-n2", "pcmk_host_check": "static-list", "pcmk_host_list": "n1 n2",
        "pcmk_delay_base": "n1:5s;n2:0s", "pcmk_delay_max": "7s", "pcmk_reboot_action": "off", "pcmk_reboot_timeout": "40s",
        "pcmk_off_retries": "3", "pcmk_action_limit": "-1"}
    done = desk.pcs("stonith", "create", "All", "fence_xvm", *(f"{k}={v}" for k, v in given.items()),
                    "op", "monitor", "interval=30s", "--agent-validation")
    assert done.stderr == ""
    assert attributes(desk.cib, "All") == given
    verified = desk.run("crm_verify", "-x", desk.cib)
    assert verified.stdout + verified.stderr == ""


@pytest.mark.parametrize("option, force, said", [
    ("nosuch=1", False, "invalid stonith option 'nosuch'"),
    # It is not in the metadata, as our manual says.
    ("quiet_time=5", False, "invalid stonith option 'quiet_time'"),
    ("timeout=soon", True, "'soon' is not seconds"),
    ("hash=md5", True, "hash: 'md5' is not none, sha1, sha256"),
    ("key_file=/etc/nothing", True, "/etc/nothing does not exist"),
])
def test_pcs_refuses(desk, option, force, said):
    """What is no option at all; and with the agent's help a value that is none."""
    before = desk.cib.read_text()
    done = desk.pcs("stonith", "create", "Bad", "fence_xvm", 'pcmk_host_map=n1:vm-n1', option,
                    *(["--agent-validation"] if force else []), check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert desk.cib.read_text() == before


def test_validation_by_pacemaker(desk, agent):
    # fence_virt asks by the VM channel, which has no key, unless it is told where the host is.
    where = {"ipaddr": "192.168.122.1"} if agent == "fence_virt" else {}
    assert desk.validate(agent, **where).valid
    assert desk.validate(agent, **where, key_file="/etc/cluster/fence_xvm.key").valid
    for options, said in [({"timeout": "soon"}, "'soon' is not seconds"), ({"hash": "md5"}, "'md5' is not"),
                          ({"key_file": "/etc/nothing"}, "/etc/nothing does not exist"),
                          ({"plug": "vm-n1", "domain": "vm-n2"}, "two different domains")]:
        verdict = desk.validate(agent, **where, **options)
        assert not verdict.valid, options
        assert said in verdict.text
    # Pacemaker names the node as well, with port= and nodename=: the plug was configured, and counts.
    verdict = desk.validate(agent, **where, plug="vm-n1")
    assert verdict.valid, verdict.text
    # An option that the agent does not have is told, and does not keep a cluster from fencing.
    verdict = desk.validate(agent, **where, nosuch="1")
    assert verdict.valid and "unknown option 'nosuch'" in verdict.text


#: A wrong value for each option.
WRONG = {
    "fence_xvm": {
        "debug": "much", "ip_family": "ipv5", "multicast_address": "10.0.0.1", "ipport": "0", "retrans": "0",
        "auth": "md5", "hash": "timeout", "key_file": "/etc/timeout", "use_uuid": "maybe", "timeout": "abc", "delay": "x",
        "plug": "x" * 70},
    "fence_virt": {
        "debug": "much", "serial_params": "fast", "channel_address": "x", "ipport": "99999", "timeout": "0",
        "ipaddr": "10.0.0.256", "vsock": "x", "auth": "md5", "hash": "Timed out", "key_file": "/etc/timeout",
        "delay": "-1", "plug": "x" * 70},
}


def test_a_wrong_value_is_an_error_and_no_time_out(desk, agent):
    """Pacemaker takes an agent for one that timed out (124), or that lacks the action (3), by words in its messages."""
    # The key counts only where there is one.
    where = {"ipaddr": "192.0.2.1"} if agent == "fence_virt" else {}
    cases = [{**where, name: value} for name, value in WRONG[agent].items()]
    # An option of other agents, which a message names.
    cases.append({**where, "key_file": "/etc/nothing", "power_timeout": "5"})
    commands = [shlex.join(["stonith_admin", "--validate", "--agent", agent, *(
        word for name, value in case.items() for word in ("-o", f"{name}={value}"))]) for case in cases]
    said = desk.run("sh", "-c", "; ".join(f"{command} 2>&1; echo result $?" for command in commands)).stdout
    results = re.findall(r"^result (\d+)$", said, re.MULTILINE)
    assert results == ["1"] * len(cases), said
    assert "unknown option 'power_time-out'" in said and "time-out: '" in said, said


def test_every_configuration_of_the_manual(tmp_path):
    """In the page's order, each on what those before it made."""
    desk = Offline(tmp_path, "ours")
    desk.pcs("resource", "create", "App", "ocf:pacemaker:Dummy")
    for words in manual.configuring():
        done = desk.pcs(*words[1:])
        assert "invalid stonith option 'quiet_time'" in done.stderr or not done.stderr, (words, done.stderr)
    assert attributes(desk.cib, "FenceVM")["hash"] == "hmac-sha256"
    verified = desk.run("crm_verify", "-x", desk.cib)
    assert verified.stdout + verified.stderr == ""


def attributes(cib, device):
    """{name: value} of a device in a configuration."""
    tree = ElementTree.parse(cib)
    return {pair.get("name"): pair.get("value") for pair in tree.findall(f".//primitive[@id='{device}']/instance_attributes/nvpair")}


def parameters(tree):
    """What programs go by, for each parameter."""
    return {p.get("name"): {
        **{key: p.get(key) for key in ("unique", "required", "deprecated", "obsoletes")},
        # Ours have long names on the command line as well.
        "letter": p.find("getopt").get("mixed").split(",")[0], **p.find("content").attrib,
        "choices": [option.get("value") for option in p.find("content").iter("option")],
    } for p in tree.iter("parameter")}


def texts(tree):
    """What people read."""
    return [element.text for element in tree.iter() if element.tag in ("longdesc", "shortdesc")]


def actions(tree):
    """All actions with their attributes."""
    return {(action.get("name"), *sorted(action.attrib.items())) for action in tree.iter("action")}
