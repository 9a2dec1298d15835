# SPDX-License-Identifier: GPL-2.0-or-later
"""Every cause of "Timed out waiting for response", brought about for real: what `--diagnose` makes of it, and which
line of the daemon's log it sends people to.

Run: SIDE=ours /usr/bin/python3 -m pytest tests/diagnose        (root; the test driver of libvirt, nftables)

The agent mostly waits, so all scenes that are asked for are played beside each other, each with its own namespaces.
docs/troubleshooting.md is made of what is seen here, and the last test holds it to that.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

from lab import net, process, programs, testdriver, wire
from lab.hypervisor import until

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")

OURS = programs.OURS_DIR
PAGE = programs.REPOSITORY / "docs/troubleshooting.md"
SCENES = {}
_making = threading.Lock()


class Scene:
    """A host and a guest; both have the key of the name "host" unless told otherwise."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir()
        with _making:
            self.net = net.Net()
            self.host, self.guest = self.net.node("host"), self.net.node("guest")
        self.daemons = []

    def key(self, name="host"):
        path = self.directory / f"{name}.key"
        return path if path.exists() else programs.write_key(path, f"the key of {name}, and enough bytes of it".encode())

    def daemon(self, options="", listener="multicast", groups="", uri=None, program="ours", interface="eth0", args=(),
               peers="", node=None, key="host"):
        """A daemon on the host that serves, or on another node."""
        peers = f'peers = "{peers}";' if peers else ""
        uri = uri or testdriver.write(self.directory / "domains.xml", ["vm1", "vm2"])
        program = programs.REFERENCE_DIR / "fence_virtd" if program == "reference" else OURS / "fence_virtd"
        module = f'module_path = "{programs.MODULE_PATH}";' if program.parent == programs.REFERENCE_DIR else ""
        where = f'interface = "{interface}";' if listener == "multicast" else 'address = "0.0.0.0";'
        config = programs.write_config(self.directory / f"fence_virt{len(self.daemons)}.conf", f"""
            fence_virtd {{ listener = "{listener}"; backend = "libvirt"; {module} {peers} }}
            listeners {{ {listener} {{ key_file = "{self.key(key)}"; family = "ipv4"; {where} {options} }} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}
            {groups}""")
        it = programs.Daemon(node or self.host, config, *args, program=str(program), wait=60,
                             ready="udp" if listener == "multicast" else "tcp")
        self.daemons.append(it)
        return it

    def firewall(self, node, rule, hook):
        node.run(["nft", "-f", "-"], check=True, input=f"table inet lab {{ chain c {{ type filter hook {hook} "
                 f"priority 0; {rule}; }}; }}\n")

    def diagnose(self, *args, t=3, key="host", program="fence_xvm"):
        """What the agent says of the guest's question: (exit code, standard output)."""
        keyed = () if key is None else ("-k", self.key(key))
        again = ("-r", 5) if program == "fence_xvm" else ()
        result = programs.run_agent(self.guest, "--diagnose", *keyed, "-t", t, *again, *args,
                                    program=str(OURS / program), timeout=120)
        assert result.rc in (0, 1), result
        return result.rc, result.out + result.err

    def close(self):
        for daemon in self.daemons:
            if daemon.alive():
                daemon.stop()
        self.net.close()


def scene(cause, log=None, page=True):
    """A scene: `cause` is what the agent must say, `log` what the daemon's log must say as the agent
    announces it. `page`: that the troubleshooting page has both."""
    def register(function):
        SCENES[function.__name__] = (function, cause, log, page)
        return function
    return register


DROPPED = "does not fit: another key on the sender's side"
SILENCE = "no host took the request"


@scene(SILENCE, DROPPED)
def wrong_key(it):
    it.daemon()
    return it.diagnose(key="other", t=2)


@scene("the host was reached and dropped the request, whatever its hash", DROPPED)
def wrong_key_tcp(it):
    it.daemon(listener="tcp")
    return it.diagnose("-T", it.host.ip, key="other", program="fence_virt")


@scene("the host asks for a stronger hash than this guest uses; the key is the same", "is weaker than")
def weak_hash(it):
    it.daemon('hash = "sha512";')
    return it.diagnose(t=4)


@scene("the host asks for a stronger hash than this guest uses; the key is the same", "is weaker than", page=False)
def not_sealed(it):
    """The daemon takes sealed requests only, and the agent learns that from the second hash that it tries."""
    it.daemon('hash = "hmac-sha256";')
    return it.diagnose(t=4)


@scene("the host asks for a stronger hash than this guest uses; the key is the same", "is weaker than", page=False)
def weak_hash_tcp(it):
    it.daemon('hash = "sha512";', listener="tcp")
    return it.diagnose("-T", it.host.ip, program="fence_virt", t=10)


@scene("the host has another auth type, sha512; the key is the same", "the client did not prove that it holds the key")
def other_auth(it):
    it.daemon('auth = "sha512";')
    return it.diagnose(t=4)


@scene("the host has another auth type, sha1; the key is the same", "the client did not prove that it holds the key",
       page=False)
def other_auth_tcp(it):
    it.daemon('auth = "sha1";', listener="tcp")
    return it.diagnose("-T", it.host.ip, program="fence_virt", t=10)


@scene("the host is set to auth none")
def host_without_auth(it):
    it.daemon('auth = "none";')
    return it.diagnose(t=4)


@scene("this guest is set to auth none", "the client sent no challenge")
def guest_without_auth(it):
    it.daemon()
    # The host waits ten seconds for the challenge; that the guest has left ends the wait too.
    return it.diagnose("-C", "none", t=3)


@scene("takes no sealed requests: a fence_virtd of the C programs")
def sealed_to_a_c_host(it):
    it.daemon(program="reference")
    return it.diagnose("-c", "hmac-sha256", t=4)


@scene(SILENCE)
def datagrams_filtered_at_the_host(it):
    it.firewall(it.host, "udp dport 1229 drop", "input")
    it.daemon()
    code, text = it.diagnose(t=2)
    assert "dropped" not in it.daemons[0].log, "there is no such line, and so the datagrams do not arrive"
    return code, text


@scene("this guest's own firewall forbids to send the request")
def datagrams_filtered_at_the_guest(it):
    it.firewall(it.guest, "udp dport 1229 drop", "output")
    it.daemon()
    return it.diagnose(t=2)


@scene("called back to port 1229/tcp, and this guest's firewall did not let it in", "does not answer; is TCP port")
def call_back_dropped(it):
    it.firewall(it.guest, 'iifname "eth0" tcp dport 1229-1244 drop', "input")
    it.daemon()
    # The host says so after its patience with one of several addresses.
    return it.diagnose(t=6)


@scene("called back to port 1229/tcp, and this guest's firewall did not let it in", "can't call the client back")
def call_back_rejected(it):
    it.firewall(it.guest, 'iifname "eth0" tcp dport 1229-1244 reject with tcp reset', "input")
    it.daemon()
    return it.diagnose(t=4)


@scene(SILENCE, "does not answer; is TCP port")
def call_back_filtered_at_the_host(it):
    it.firewall(it.host, "tcp dport 1229-1244 drop", "output")
    it.daemon()
    return it.diagnose(t=4)


@scene("called back to port 1230/tcp, and this guest's firewall did not let it in")
def another_port_than_the_firewall_lets_in(it):
    it.firewall(it.guest, 'iifname "eth0" tcp dport 1230-1244 drop', "input")
    it.daemon()
    with it.guest.entered(), socket.create_server(("0.0.0.0", 1229)):
        code, text = it.diagnose(t=4)
    assert "(1229 was in use)" in text
    return code, text


@scene(SILENCE)
def another_interface(it):
    """The daemon listens on a bridge that the guest is not on."""
    it.host.ip_cmd("link add other type veth peer name stub")
    it.host.ip_cmd("addr add 10.99.0.1/24 dev other")
    it.host.ip_cmd("link set stub up")
    it.host.ip_cmd("link set other up")
    it.daemon(interface="other")
    return it.diagnose(t=2)


@scene(SILENCE, page=False)
def another_group(it):
    it.daemon()
    return it.diagnose("-a", "239.1.2.3", t=2)


@scene("nothing could be sent")
def no_network(it):
    it.daemon()
    it.guest.ip_cmd("link set eth0 down")
    it.guest.ip_cmd("link set lo down")
    return it.diagnose(t=2)


@scene("no network interface is up but lo, or none but lo has an address")
def loopback_alone(it):
    it.daemon()
    it.guest.ip_cmd("link set eth0 down")
    return it.diagnose(t=2)


@scene("in order: a host that holds the key has answered")
def no_multicast_route(it):
    """The agent names the interface itself, so a route that is missing does no harm."""
    it.guest.ip_cmd("route del 224.0.0.0/4 dev eth0")
    it.daemon()
    return it.diagnose(t=10)


@scene(SILENCE)
def daemon_down(it):
    return it.diagnose(t=2)


@scene("nobody listens there: is fence_virtd running with listener tcp")
def daemon_down_tcp(it):
    return it.diagnose("-T", it.host.ip, program="fence_virt")


@scene("answered as no listener with this guest's key does")
def call_backs_in_the_place_of_a_listener(it):
    """Right key, and no listener tcp: an agent of the host waits at the port for call-backs, as the daemon does at times."""
    it.daemon()
    other = it.host.popen([OURS / "fence_xvm", "-k", it.key(), "-o", "list", "-a", "225.0.0.99", "-t", "60"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: ":1229 " in it.host.run(["ss", "-Hltn"]).stdout, 20, "a port for call-backs")
        return it.diagnose("-T", it.host.ip, program="fence_virt")
    finally:
        other.terminate()
        other.wait()


@scene("what took the connection was silent")
def stopped_daemon_tcp(it):
    pid = it.daemon(listener="tcp").pid
    process.freeze(pid)
    try:
        return it.diagnose("-T", it.host.ip, program="fence_virt", t=2)
    finally:
        process.thaw(pid)


@scene("does the host's firewall let the port in")
def filtered_tcp(it):
    it.firewall(it.host, "tcp dport 1229 drop", "input")
    it.daemon(listener="tcp")
    return it.diagnose("-T", it.host.ip, program="fence_virt", t=2)


@scene("fence_virtd cannot do its work", "monitor: ")
def libvirt_down(it):
    it.daemon(uri=f"qemu+unix:///system?socket={it.directory}/none", args=("-w",))
    return it.diagnose(t=20)


@scene("fence_virtd cannot do its work", "monitor: ", page=False)
def libvirt_down_status(it):
    it.daemon(uri=f"qemu+unix:///system?socket={it.directory}/none", args=("-w",))
    return it.diagnose("-n", "vm1", t=20)


@scene("groups do not let this guest fence that domain")
def denied(it):
    it.daemon(groups=f'groups {{ group {{ ip = "{it.guest.ip}"; uuid = "vm2"; }} }}')
    return it.diagnose("-n", "vm1", t=20)


@scene("cause: the host says: no such domain on this host", page=False)
def domain_unknown(it):
    """The cause is the host's own reason, and no guess beside it."""
    it.daemon()
    return it.diagnose("-n", "no-such-vm", t=20)


SILENT_PEER = "10.97.53.2"


def _doubtful(it):
    return testdriver.write(it.directory / "off.xml", [testdriver.Domain("vm1", state=testdriver.SHUTOFF)])


@scene(f"the host says: can't tell whether the domain is off: host {SILENT_PEER}:1229 does not answer", page=False)
def other_host_silent(it):
    """The place that can't be asked is named, also to a guest that asks in the classic way."""
    it.daemon(peers=SILENT_PEER, uri=_doubtful(it))
    return it.diagnose("-n", "vm1", t=20)


@scene(f"the host says: can't tell whether the domain is off: host {SILENT_PEER}:1229 does not answer", page=False)
def other_host_silent_sealed_tcp(it):
    it.daemon(peers=SILENT_PEER, uri=_doubtful(it), listener="tcp")
    return it.diagnose("-T", it.host.ip, "-c", "hmac-sha256", "-n", "vm1", program="fence_virt", t=20)


@scene("the domain is on at a host that does not answer this guest", DROPPED)
def owner_with_another_key(it):
    """The guest and one host have a key, and the host that has the domain has another one: an off would fail."""
    owner, hosts = it.net.node("owner"), f'"; peer_key_file = "{it.key("hosts")}'
    it.daemon(peers=it.host.ip + hosts, node=owner, key="other")
    it.daemon(peers=owner.ip + hosts, uri=_doubtful(it))
    code, text = it.diagnose("-n", "vm1", t=20)
    assert "the domain is on at host" in text and owner.ip in text, text
    return code, text


@scene("the domain is on at a host that does not answer this guest")
def owner_whose_firewall_drops_requests(it):
    """Questions of the other host come in there as answers to its own; the guest's request leaves no line."""
    owner, hosts = it.net.node("owner"), f'"; peer_key_file = "{it.key("hosts")}'
    it.firewall(owner, "ip daddr 225.0.0.12 udp dport 1229 drop", "input")
    it.daemon(peers=it.host.ip + hosts, node=owner)
    it.daemon(peers=owner.ip + hosts, uri=_doubtful(it))
    code, text = it.diagnose("-n", "vm1", t=20)
    assert it.guest.ip not in it.daemons[0].log, it.daemons[0].log
    for words in ("go to the host that the reason names", "No line: this guest's request does not arrive there"):
        assert words in text, text
    return code, text


@scene("the host does not know the domain, or cannot tell its state")
def domain_unknown_without_a_key(it):
    """A reason comes under a seal alone."""
    it.daemon('hash = "none"; auth = "none";')
    return it.diagnose("-c", "none", "-C", "none", "-n", "no-such-vm", t=20, key=None)


@scene("the host says: can't tell: host", page=False)
def no_reason_for_a_domain_of_others(it):
    """A guest hears nothing of a domain that it may not see."""
    it.daemon(peers=SILENT_PEER, uri=_doubtful(it), groups=f'groups {{ group {{ ip = "{it.guest.ip}"; uuid = "vm2"; }} }}')
    code, text = it.diagnose("-n", "vm1", "-c", "hmac-sha256", t=20)
    assert "permission denied" in text and "the host says" not in text, text
    return it.diagnose("-n", "vm2", "-c", "hmac-sha256", t=20)


@scene(None, "the very same packet was here before")
def replayed(it):
    """What an agent never does: the line that a repeated packet leaves is the one that the agent names."""
    daemon = it.daemon()
    packet = wire.Request(wire.STATUS, "vm1", address=it.guest.ip).build(wire.read_key(it.key()))
    for _ in range(2):
        wire.multicast_send(it.guest, packet)
    daemon.wait_log("the very same packet was here before")
    return 1, ""


@scene("is fence_virtd running with listener serial", page=False)
def silent_line(it):
    """A serial line with nobody at its other end."""
    ours, theirs = os.openpty()
    with contextlib.ExitStack() as stack:
        for fd in (ours, theirs):
            stack.callback(os.close, fd)
        code, text = it.diagnose("-D", os.ttyname(theirs), program="fence_virt", t=2)
    return code, text


@scene("does not exist; copy it from a machine that has it")
def no_key(it):
    it.key("none").unlink()
    result = programs.run_agent(it.guest, "--diagnose", "-k", it.directory / "none.key", program=str(OURS / "fence_xvm"))
    return result.rc, result.out + result.err


@scene("in order: a host that holds the key has answered")
def in_order(it):
    it.daemon()
    code, text = it.diagnose("-n", "vm1", t=20)
    assert "answered: the domain is on" in text
    return code, text


@scene("in order: a host that holds the key has answered", page=False)
def in_order_at_another_host(it):
    """Whichever host tells the status first, the one that has the domain answers too."""
    owner, hosts = it.net.node("owner"), f'"; peer_key_file = "{it.key("hosts")}'
    it.daemon(peers=it.host.ip + hosts, node=owner)
    it.daemon(peers=owner.ip + hosts, uri=_doubtful(it))
    return it.diagnose("-n", "vm1", t=20)


@scene("off would not be carried out", page=False)
def on_at_a_host_that_is_not_asked(it):
    """By TCP one host is asked, and it tells the status of a domain that another host has on: an off is for that one."""
    owner, hosts = it.net.node("owner"), f'"; peer_key_file = "{it.key("hosts")}'
    it.daemon(listener="tcp", peers=it.host.ip + hosts, node=owner)
    it.daemon(listener="tcp", peers=owner.ip + hosts, uri=_doubtful(it))
    code, text = it.diagnose("-T", it.host.ip, "-n", "vm1", program="fence_virt", t=20)
    assert "answered: the domain is on" in text and owner.ip in text and "in order" not in text
    return code, text


@scene("in order: a host that holds the key has answered", page=False)
def in_order_sealed_tcp(it):
    it.daemon(listener="tcp")
    return it.diagnose("-T", it.host.ip, "-c", "hmac-sha256", program="fence_virt", t=20)


@pytest.fixture(scope="session")
def played(request, tmp_path_factory):
    """{name: future of (exit code, text, the daemon's log)} of the scenes that the chosen tests are about."""
    directory = tmp_path_factory.mktemp("diagnose")
    wanted = {it.callspec.params["name"] for it in request.session.items
              if "name" in getattr(getattr(it, "callspec", None), "params", {})}

    def play(name):
        function, _, log, _ = SCENES[name]
        it = Scene(directory / name)
        try:
            code, text = function(it)
            if log:
                it.daemons[0].wait_log(re.escape(log), timeout=30)
            return code, text
        finally:
            it.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield {name: pool.submit(play, name) for name in SCENES if name in wanted}


@pytest.mark.parametrize("name", SCENES)
def test_cause(played, name):
    """The printed cause is the right one, the host's log has the line that is announced, and only an answer gives 0."""
    _, cause, log, _ = SCENES[name]
    code, text = played[name].result(timeout=200)
    if cause is None:
        return
    assert cause in text, text
    if log:
        assert f'the host\'s log: "{log}"' in text, text
    assert code == (0 if cause.startswith("in order") else 1), text
    if code:
        assert text.count("cause: ") == 1, text
        # These have the step in the cause.
        assert "\nnext: " in text or name in ("no_key", "silent_line"), text
    if name == "daemon_down_tcp":
        assert text.count("(fingerprint ") == 1, text


@pytest.mark.parametrize("action", ["list", "null", "metadata"])
def test_asks_for_nothing_that_changes_anything(action, tmp_path):
    it = Scene(tmp_path / "scene")
    try:
        result = programs.run_agent(it.guest, "--diagnose", "-n", "vm1", "-o", action, program=str(OURS / "fence_xvm"))
        assert (result.rc, result.out) == (1, "")
        assert f"and for nothing else: not for {action}" in result.err
    finally:
        it.close()


def test_an_ordinary_time_out_names_the_cause(tmp_path):
    """On standard error, without another packet."""
    it = Scene(tmp_path / "scene")
    try:
        it.daemon('auth = "sha512";')
        result = programs.run_agent(it.guest, "-k", it.key(), "-t", 3, "-o", "monitor", program=str(OURS / "fence_xvm"))
        assert (result.rc, result.out) == (1, "")
        assert "Timed out waiting for response" in result.err and "use -C sha512" in result.err
    finally:
        it.close()


def test_the_page_has_every_cause():
    """What people search for is on the page, word by word, and the page has nothing that was not seen here."""
    text = PAGE.read_text()
    page = re.sub(r"\s+", " ", text)
    for name, (_, cause, log, on_page) in SCENES.items():
        for words in (cause, log):
            if on_page and words:
                assert f"`{words}`" in page, f"docs/troubleshooting.md: {name}: {words}"
    known = {words for _, *texts, _ in SCENES.values() for words in texts if words}
    for said in searched_for(text.partition(SEVERAL_HOSTS)[0]):
        # What takes several hosts or a crash is shown by other suites; here it is held to the daemon's words.
        is_known = any(said in words or words in said for words in known) or said in daemon_words()
        assert is_known, f"no scene shows: {said}"


def test_the_page_quotes_the_daemon_on_other_hosts():
    """It takes a cluster to bring these about (tests/cpg); here they are held to the daemon's own words."""
    words = daemon_words()
    rows = searched_for(PAGE.read_text().partition(SEVERAL_HOSTS)[2])
    assert rows
    for said in rows:
        assert said in words, f"the daemon does not say: {said}"


SEVERAL_HOSTS = "## Several hosts: the cpg backend"


def daemon_words():
    """All texts of the programs, each in one line."""
    sources = programs.REPOSITORY.glob("crates/fence-*/src/**/*.rs")
    return re.sub(r"(\s|\\\n)+", " ", " ".join(it.read_text() for it in sources)).replace('\\"', '"')


def searched_for(text):
    """What stands in backticks at the head of each row of the tables."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
