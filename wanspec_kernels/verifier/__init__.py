"""The verifier's asynchronous side: drafts from many places merged, verified and committed.

`pool`, `policy`, `generation` and `session` are state machines without clock, socket or thread;
`service` drives them over ZeroMQ.
"""
