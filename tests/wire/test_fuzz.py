"""Mutations of real frames: ProtocolErrors or valid messages, in bounded time and memory."""

import time
import tracemalloc
from collections import Counter
from contextlib import suppress
from random import Random

import pytest

from bench.mutations import every_message, mutation
from wanspec_kernels.wire import Message, ProtocolError, decode, decode_frame, encode

BATCHES, BATCH = 10, 10_000


def outcomes(data: bytes) -> list[str]:
    """What became of it; raises whatever `decode_frame` should not."""
    found: list[Message | ProtocolError]
    try:
        found = list(decode_frame(data))
    except ProtocolError as error:
        found = [error]
    for message in found:
        if isinstance(message, ProtocolError):
            assert str(message).isprintable()
            assert len(str(message)) < 400
        else:
            # NaN is refused, so a message is equal to itself.
            assert decode(encode(message)) == message
    return [type(message).__name__ for message in found]


@pytest.mark.parametrize("seed", range(BATCHES))
def test_mutations_are_messages_or_protocol_errors(seed: int) -> None:
    rng, messages = Random(seed), every_message()
    found: Counter[str] = Counter()
    slowest_ms = 0.0
    for _ in range(BATCH):
        data = mutation(rng, messages)
        began = time.thread_time()
        try:
            found.update(outcomes(data))
        except Exception as error:
            error.add_note(f"of {data.hex()}")
            raise
        slowest_ms = max(slowest_ms, 1000 * (time.thread_time() - began))
    # The mutations reach past the first check: every message and every error is among them.
    valid = {type(message).__name__ for message in messages}
    assert found.keys() == valid | {"MalformedMessage", "UnsupportedVersion", "LimitExceeded"}
    assert 0.2 < sum(found[name] for name in valid) / found.total() < 0.5
    # A message as large as these takes a fraction of a millisecond; a collection may fall into it.
    assert slowest_ms < 100


def test_memory_is_bounded_and_flat() -> None:
    rng, messages = Random(99), every_message()
    mutations = [mutation(rng, messages) for _ in range(3000)]
    for data in mutations:
        outcomes(data)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for data in mutations:
            tracemalloc.reset_peak()
            began = tracemalloc.get_traced_memory()[0]
            with suppress(ProtocolError):
                list(decode_frame(data))
            assert tracemalloc.get_traced_memory()[1] - began < 64 * len(data) + 100_000
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
