"""CURVE keys: key files, the allow-list, and the sockets that enforce it.

A CURVE server without a ZAP handler lets any key in. `secure_server` therefore enforces a ZAP
domain: libzmq then refuses every handshake until an `Authenticator` runs in the same context. A
`Door` is all of it for one ROUTER, with bounds on the connections that it keeps.
"""

from wanspec_kernels.wire.keys.allow_list import AllowList
from wanspec_kernels.wire.keys.authenticator import Authenticator
from wanspec_kernels.wire.keys.door import SILENT_MS, Door
from wanspec_kernels.wire.keys.files import (
    KeyFileError,
    Secret,
    generate,
    load_public,
    load_secret,
)
from wanspec_kernels.wire.keys.sockets import ZAP_DOMAIN, secure_client, secure_server

__all__ = [
    "SILENT_MS",
    "ZAP_DOMAIN",
    "AllowList",
    "Authenticator",
    "Door",
    "KeyFileError",
    "Secret",
    "generate",
    "load_public",
    "load_secret",
    "secure_client",
    "secure_server",
]
