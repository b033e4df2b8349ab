"""What can be wrong with a message."""


class ProtocolError(ValueError):
    """Anything wrong with a message, received or about to be sent.

    ::

        ValueError
        └── ProtocolError
            ├── MalformedMessage    not msgpack, a field missing, unknown, of another type or range
            ├── UnsupportedVersion  another `v` than `limits.VERSION`
            └── LimitExceeded       longer, deeper or more than `limits` allows

    The text names the field, what was expected and what came. It is printable, one line and short,
    whatever the peer sent, so that it may be logged and answered with.
    """


class MalformedMessage(ProtocolError):
    pass


class UnsupportedVersion(ProtocolError):
    pass


class LimitExceeded(ProtocolError):
    pass
