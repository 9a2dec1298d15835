# SPDX-License-Identifier: GPL-2.0-or-later
"""A key for each group: what it opens, and what it does not."""

import pytest

from lab import programs, testdriver, wire

DOMAINS = ("red1", "red2", "blue1", "blue2", "shared", "plain")


def clusters(stage, more=""):
    """Two clusters with a key each; one domain stands in both."""
    return f"""groups {{
        group {{ name = "red"; uuid = "red1"; uuid = "red2"; uuid = "shared"; key_file = "{stage.key('red')}"; }}
        group {{ name = "blue"; uuid = "blue1"; uuid = "blue2"; uuid = "shared"; key_file = "{stage.key('blue')}"; }}
        {more}
    }}"""


@pytest.fixture(params=["multicast", "tcp"])
def ask(request, stage):
    """ask(key, *args): our agent by either way, at one and the same guest."""
    return getattr(stage, request.param)


def names(result):
    assert result.rc == 0, result
    return sorted(line.split()[0] for line in result.out.splitlines())


def test_two_clusters_on_one_host(stage, daemon, ask):
    it = daemon(groups=clusters(stage), domains=DOMAINS)
    for own, other in (("red", "blue"), ("blue", "red")):
        assert names(ask(own, "-o", "list")) == [f"{own}1", f"{own}2", "shared"]
        assert ask(own, "-o", "status", "-H", f"{own}1").rc == 0
        for action in ("status", "off", "reboot", "on"):
            assert ask(own, "-o", action, "-H", f"{other}1").rc == 3
        assert ask(own, "-o", "status", "-H", "shared").rc == 0
        # A sealed request shows its key as well.
        assert ask(own, "-c", "hmac-sha256", "-o", "status", "-H", f"{own}1").rc == 0
        assert ask(own, "-c", "hmac-sha256", "-o", "status", "-H", f"{other}1").rc == 3
        assert ask(own, "-o", "status", "-H", "plain").rc == 3
        assert ask(own, "-o", "off", "-H", f"{own}2").rc == 0
        assert ask(own, "-o", "status", "-H", f"{own}2").rc == 2
    # A question what would be done does not tell whether others have a domain.
    def told(name):
        result = ask("red", "--diagnose", "-o", "off", "-H", name)
        assert result.rc == 1
        return (result.out + result.err).replace(name, "NAME")
    assert "blue" not in told("blue1").replace("NAME", "") and told("blue1") == told("nobody")
    # The key of the listener opens neither.
    assert names(ask("host", "-o", "list")) == []
    assert ask("host", "-o", "off", "-H", "red1").rc == 3
    assert ask("host", "-o", "monitor").rc == 0
    reason = "the domain is in group {}, which has a key of its own, and the source has not shown it"
    fingerprints = {}
    for own, other in (("red", "blue"), ("blue", "red")):
        fingerprints[own] = it.audited(target=f"{own}2", decision="run")[0]["key"]
        for action in ("status", "off", "reboot", "on"):
            assert it.audited(target=f"{other}1", action=action, decision="denied", key=fingerprints[own],
                              reason=reason.format(other))
    # Both logs name a key by the same fingerprint.
    assert f"fingerprint {fingerprints['red']}" in ask("red", "-o", "status", "-H", "red1", "-d").err
    assert fingerprints["red"] != fingerprints["blue"]
    assert f"group_keys={fingerprints['red']}, {fingerprints['blue']}" in it.log


def test_the_listeners_key_opens_the_groups_without_one(stage, daemon, ask):
    plain = f'group {{ name = "plain"; uuid = "plain"; ip = "{stage.guest(1).ip}"; }}'
    it = daemon(groups=clusters(stage, plain), domains=DOMAINS)
    assert ask("host", "-o", "status", "-H", "plain").rc == 0
    assert names(ask("host", "-o", "list")) == ["plain"]
    assert ask("red", "-o", "status", "-H", "plain").rc == 3
    assert "asks for the listener's key" in it.audited(target="plain", decision="denied")[0]["reason"]


def test_addresses_and_key_are_both_needed(stage, daemon, ask):
    groups = f'groups {{ group {{ name = "red"; uuid = "red1"; ip = "{stage.guest(1).ip}"; ' \
             f'key_file = "{stage.key("red")}"; }} }}'
    daemon(groups=groups, domains=DOMAINS)
    assert ask("red", "-o", "status", "-H", "red1", guest=1).rc == 0
    assert ask("red", "-o", "status", "-H", "red1", guest=2).rc == 3
    assert ask("host", "-o", "status", "-H", "red1", guest=1).rc == 3


def test_a_groups_key_can_be_changed_while_both_count(stage, daemon, ask):
    groups = f'groups {{ group {{ name = "red"; uuid = "red1"; key_file = "{stage.key("red")}"; ' \
             f'key_file = "{stage.key("red-new")}"; }} }}'
    daemon(groups=groups, domains=DOMAINS)
    for key in ("red", "red-new"):
        assert ask(key, "-o", "status", "-H", "red1").rc == 0


def test_one_key_for_two_is_said_and_is_both(stage, daemon):
    groups = f"""groups {{ group {{ name = "red"; uuid = "red1"; key_file = "{stage.key('host')}"; }}
                           group {{ uuid = "blue1"; key_file = "{stage.key('host')}"; }} }}"""
    it = daemon(groups=groups, domains=DOMAINS)
    line = it.wait_log(r"WARN.*the key [0-9a-f]{4} stands for several: .*").group()
    path = stage.key("host")
    for part in (f"the listener ({path})", f"group red ({path})", f"group 2 ({path})"):
        assert part in line
    assert names(stage.tcp("host", "-o", "list")) == ["blue1", "red1"]


def test_another_clusters_number_is_not_taken(stage, daemon):
    """Who guesses the sequence number of another cluster's request does not come before it."""
    it = daemon(groups=clusters(stage), domains=DOMAINS)
    red = wire.FakeClient(stage.guest(1), wire.read_key(stage.key("red")))
    blue = wire.FakeClient(stage.guest(2), wire.read_key(stage.key("blue")))
    with blue.listening() as silent:
        silent.settimeout(10)
        blue.send(blue.packet(wire.STATUS, "red1", seqno=77))
        # It was heard, and is called back; the answer can wait.
        silent.accept()[0].close()
        assert red.multicast(wire.STATUS, "red1", seqno=77).code == wire.SUCCESS
    assert it.alive()


def test_another_cluster_does_not_end_a_request(stage, daemon):
    """A packet may name any address to call back: a newer one with another key does not end the older request."""
    daemon(groups=clusters(stage), domains=DOMAINS)
    red = wire.FakeClient(stage.guest(1), wire.read_key(stage.key("red")))
    blue = wire.FakeClient(stage.guest(2), wire.read_key(stage.key("blue")))
    # The domain is unknown here, so that the host waits before it calls back; meanwhile the other packet comes.
    with red.listening() as socket:
        socket.settimeout(10)
        red.send(red.packet(wire.STATUS, "nobody"))
        blue.send(blue.packet(wire.STATUS, "nobody", address=stage.guest(1).ip))
        codes = set()
        for _ in range(2):
            codes.add(red.converse(wire.Stream(socket.accept()[0])).kind)
        assert codes == {"code", "wrong answer"}


def test_only_groups_have_keys(stage, daemon, without_default_key):
    """The default key file is not there, and nobody needs it."""
    it = daemon(keys=(), groups=clusters(stage), domains=DOMAINS, program=without_default_key)
    it.wait_log("every group has keys of its own: only these count")
    assert names(stage.multicast("red", "-o", "list")) == ["red1", "red2", "shared"]
    assert stage.multicast("red", "-o", "status", "-H", "blue1").rc == 3
    assert stage.tcp("blue", "-o", "status", "-H", "blue1").rc == 0


def test_without_a_hash_no_group_with_a_key_is_open(stage, daemon, tmp_path):
    uri = testdriver.write(tmp_path / "domains.xml", DOMAINS)
    config = programs.write_config(tmp_path / "open.conf", f"""
        fence_virtd {{ listener = "tcp"; }}
        listeners {{ tcp {{ hash = "none"; auth = "none"; address = "0.0.0.0"; key_file = "{stage.key('host')}"; }} }}
        backends {{ libvirt {{ uri = "{uri}"; }} }}
        {clusters(stage, f'group {{ uuid = "plain"; ip = "{stage.guest(1).ip}"; }}')}""")
    with programs.Daemon(stage.host, config, program=str(programs.OURS_DIR / "fence_virtd"), ready="tcp", wait=60):
        bare = ("-c", "none", "-C", "none")
        assert stage.tcp("host", *bare, "-o", "status", "-H", "plain").rc == 0
        assert stage.tcp("host", *bare, "-o", "status", "-H", "red1").rc == 3
        assert names(stage.tcp("host", *bare, "-o", "list")) == ["plain"]
        # A hash that a group's key made does show that key.
        assert stage.tcp("red", "-C", "none", "-o", "status", "-H", "red1").rc == 0


def test_a_challenge_without_a_key_of_the_listener_wants_a_hash(stage, tmp_path, without_default_key):
    """Nobody may take a group's key for the listener's because the packet named none."""
    uri = testdriver.write(tmp_path / "domains.xml", DOMAINS)
    config = programs.write_config(tmp_path / "half.conf", f"""
        fence_virtd {{ listener = "tcp"; }}
        listeners {{ tcp {{ hash = "none"; address = "0.0.0.0"; }} }}
        backends {{ libvirt {{ uri = "{uri}"; }} }}
        {clusters(stage)}""")
    with programs.Daemon(stage.host, config, program=without_default_key, ready="tcp", wait=60) as it:
        assert stage.tcp("red", "-o", "status", "-H", "red1").rc == 0
        assert stage.tcp("red", "-c", "none", "-o", "status", "-H", "red1", t=3).rc == 1
        it.wait_log("hash-too-weak")
