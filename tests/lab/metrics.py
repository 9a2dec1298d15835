# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's metrics, as a monitoring system reads them. `path`: a UNIX socket in place of the host's port."""

import re
import socket

PORT = 9229


def connect(node, path=None):
    """A connection to the endpoint of the daemon on a node."""
    it = socket.socket(socket.AF_UNIX) if path else node.socket()
    it.settimeout(60)
    it.connect(path or ("127.0.0.1", PORT))
    return it


def get(node, path=None, request=b"GET /metrics HTTP/1.0\r\n\r\n"):
    """(status line, body)."""
    with connect(node, path) as it:
        it.sendall(request)
        answer = b""
        while chunk := it.recv(65536):
            answer += chunk
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert f"Content-Length: {len(body.encode())}\r\n" in head + "\r\n"
    return head.split("\r\n")[0], body


def text(node, path=None):
    """All metrics, whole."""
    status, body = get(node, path)
    assert status == "HTTP/1.0 200 OK" and body.endswith("# EOF\n")
    return body


def scrape(node, path=None):
    """{metric with its labels: value}, labels sorted."""
    values = {}
    for line in text(node, path).splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line).groups()
            key = name + ("{" + ",".join(sorted(labels.split(","))) + "}" if labels else "")
            assert key not in values, line
            values[key] = float(value)
    return values
