"""What can never be served is refused where it is written."""

from math import inf, nan
from typing import Any

import pytest

from wanspec_kernels.engine.request import Request
from wanspec_kernels.wire.sampling import Sampling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": ()}, "token_ids: expected a prompt of at least one token, got none"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"stop": ("a", "")}, "stop: expected strings of at least one character"),
        ({"deadline_ms": 0}, "deadline_ms: expected a number above 0, got 0"),
        ({"deadline_ms": nan}, "deadline_ms: expected a number above 0, got nan"),
        ({"deadline_ms": inf}, "deadline_ms: expected a number above 0, got inf"),
        ({"logprobs": -1}, r"logprobs: expected 0\.\.64, got -1"),
        ({"logprobs": 65}, r"logprobs: expected 0\.\.64, got 65"),
    ],
)
def test_requests_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(**({"token_ids": (1,), "max_tokens": 5} | fields))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"temperature": 0.001}, "temperature"),
        ({"temperature": nan}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1e-45}, "top_p"),  # no float32 that a kernel could tell from 0
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 1 << 63}, "seed"),
        ({"rule": "block"}, "rule"),
        ({"num_draws": 65}, "num_draws"),
    ],
)
def test_samplings_out_of_range_are_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Sampling(**fields)
