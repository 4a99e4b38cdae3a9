"""Connections between process 0 and each of the others: lines of JSON both ways, and an end when a process dies.

A connection ends with its process, however that dies, on any host and in any container; no other sign is as quick.
"""
import hmac
import json
import os
import secrets
import socket
import weakref
from threading import Lock

SEND_SECONDS = 2.           # that a message may take to leave
LONGEST = 1 << 16           # bytes of a message
_open = weakref.WeakSet()


def _close_in_child():
    # A loader process that outlives its training process must not keep the connection alive.
    for end in list(_open):
        end.close()


os.register_at_fork(after_in_child=_close_in_child)


class Link:
    """One end of a connection; any thread may send, one receives."""

    def __init__(self, connection):
        connection.settimeout(SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)     # the last words must not wait
        self._connection, self._lock, self._unread, self._works = connection, Lock(), b'', True
        _open.add(self)

    def fileno(self):
        return self._connection.fileno()

    def send(self, message):
        """Send a dict; a process that takes none is found out by what it sends, not here."""
        with self._lock:
            if self._works:
                try:
                    self._connection.sendall(json.dumps(message).encode() + b'\n')
                except OSError:
                    self._works = False         # half a message may be on its way

    def receive(self):
        """The dicts that have come, and whether the connection has ended."""
        try:
            data = self._connection.recv(LONGEST)
        except socket.timeout:
            return [], False
        except OSError:
            data = b''
        *lines, self._unread = (self._unread + data).split(b'\n')
        try:
            messages = [json.loads(line.decode()) for line in lines]
        except ValueError:
            return [], True
        return ([message for message in messages if isinstance(message, dict)],
                not data or len(self._unread) > LONGEST)

    def close(self):
        self._connection.close()


class Listener:
    """Where process 0 takes connections: `address` is 'PORT TOKEN', for those who know its host."""

    def __init__(self):
        self._socket = _listening_socket()
        self._token = secrets.token_hex(16)
        self.address = '{} {}'.format(self._socket.getsockname()[1], self._token)
        _open.add(self)

    def fileno(self):
        return self._socket.fileno()

    def accept(self):
        """util.links.Link of a newcomer, or None where it went away again."""
        try:
            return Link(self._socket.accept()[0])
        except OSError:
            return None

    def knows(self, message):
        """True where a newcomer's first message has the token."""
        return hmac.compare_digest(str(message.get('token')).encode(), self._token.encode())

    def close(self):
        self._socket.close()


def _listening_socket():
    for family, host in ((socket.AF_INET6, '::'), (socket.AF_INET, '')):
        try:
            listening = socket.socket(family)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind((host, 0))
            break
        except OSError:
            if family == socket.AF_INET:
                raise
    listening.listen(512)
    listening.settimeout(SEND_SECONDS)
    return listening


def connect(host, port, timeout):
    """A Link to the Listener there.

    Raises:
        OSError: it cannot be reached.
    """
    return Link(socket.create_connection((host, port), timeout))
