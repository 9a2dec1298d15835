# SPDX-License-Identifier: GPL-2.0-or-later
"""Eve in the middle of a TCP stream: the owner connects to her instead of to the host, and she connects on.

She has no key. `request` and `response` are functions that may change what goes by: the request's 176 bytes, and
everything that the host says after the challenge. All else is passed on byte by byte.
"""

import contextlib
import socket
import threading

from lab import wire

from .scene import CallBacks

#: H(key ‖ C1) and C2.
FROM_HOST = 64 + 64


class Relay:
    """Listens at Eve's address on the fence port until it is closed; serves every connection."""

    def __init__(self, eve, host_ip, *, request=bytes, response=bytes):
        self._eve, self._host_ip, self._request, self._response = eve, host_ip, request, response
        self.requests = []
        self._clients = CallBacks(eve, serve=lambda stream: self._serve(stream.socket))

    def close(self):
        """No more."""
        self._clients.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _serve(self, client):
        host = self._eve.socket()
        for sock in (client, host):
            sock.settimeout(20)
        try:
            host.connect((self._host_ip, wire.PORT))
            packet = wire.Stream(client, 20).recv(wire.REQUEST_LEN)
            self.requests.append(packet)
            host.sendall(self._request(packet))
            up = threading.Thread(target=pump, args=(client, host), daemon=True)
            up.start()
            client.sendall(wire.Stream(host, 20).recv(FROM_HOST))
            said = b""
            while piece := host.recv(65536):
                said += piece
            # The host closes when it has said all.
            client.sendall(self._response(said))
        except (wire.Closed, OSError):
            pass
        finally:
            for sock in (client, host):
                # The other thread may still read from it: closing alone would tell nobody.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()


def pump(source, sink):
    """Passes everything on."""
    try:
        while piece := source.recv(65536):
            sink.sendall(piece)
    except OSError:
        pass
