"""Options that make a ZeroMQ socket one of ours: whom it trusts, and what it bears."""

import ctypes
import os

import zmq

from wanspec_kernels.wire.keys.files import Secret

ZAP_DOMAIN = b"wanspec"
HANDSHAKE_MS = 5_000  # libzmq's own is 30 s


def secure_server(socket: zmq.Socket[bytes], secret: Secret) -> None:
    """Make a socket, before it binds, accept only keys that an `Authenticator` lets in."""
    socket.curve_server = True
    socket.curve_publickey = secret.public
    socket.curve_secretkey = secret.secret
    socket.zap_domain = ZAP_DOMAIN
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)


def secure_client(socket: zmq.Socket[bytes], secret: Secret, server_public: bytes) -> None:
    """Make a socket, before it connects, show `secret` and accept only the server of that key."""
    socket.curve_publickey = secret.public
    socket.curve_secretkey = secret.secret
    socket.curve_serverkey = server_public


def seed_routing_ids() -> None:
    """Make the automatic routing ids of ROUTERs that are made from now on unpredictable.

    libzmq takes the first of a socket's from the C library's `rand()`, which it never seeds: they
    are the same in every process, and a peer that names itself by one that is to come ends the
    process by an assertion once libzmq gives it to another.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4))))
