"""Endpoint probe: time to first token and between tokens of an OpenAI-compatible stream."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx2

from wanspec_kernels.probing.records import EndpointRecord, now

MAX_EVENT_BYTES = 64 * 1024
MAX_CHUNKS = 8192
# Asking again cannot change these.
FINAL_STATUSES = frozenset({400, 401, 403, 404, 405, 422})


class StreamError(ValueError):
    """What came is no stream of completions; says what was expected."""


class EndpointRefused(Exception):
    """The endpoint will not serve this request, now or later."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an endpoint. Raises ValueError."""

    url: str  # such as https://host/v1
    model: str
    region: str
    prompt: str = "Write a Python function that merges two sorted lists."
    max_tokens: int = 64
    chat: bool = True  # /chat/completions, or else /completions

    def __post_init__(self) -> None:
        try:
            parts = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"endpoint: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError("endpoint: expected http:// or https:// and a host")
        if parts.userinfo or parts.query:
            raise ValueError("endpoint: expected no credentials in it; keys have --key-env")

    @property
    def path(self) -> str:
        return f"{self.url.rstrip('/')}/{'chat/completions' if self.chat else 'completions'}"

    def body(self) -> dict[str, Any]:
        text: dict[str, Any] = {"prompt": self.prompt}
        if self.chat:
            text = {"messages": [{"role": "user", "content": self.prompt}]}
        return text | {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def ask(
    client: httpx2.AsyncClient,
    question: Question,
    *,
    key: str | None,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> EndpointRecord:
    """Stream one completion, within `timeout_s` whatever the endpoint does.

    What goes wrong is in the record's `error`; times measured until then are kept. `clock` is in
    seconds. Redirects are not followed, so that the key goes nowhere else.

    Raises:
        EndpointRefused: a status that asking again does not change, such as 401.
        ValueError: the key cannot be sent.
    """
    if key and not (key.isascii() and key.isprintable()):
        raise ValueError("API key: expected printable ASCII")  # and never a word of it
    at, began = now(), clock()
    times_ms: list[float] = []  # of chunks with text
    tokens: int | None = None
    error: str | None = None
    headers = {"Accept-Encoding": "identity"}  # nothing to unpack, so nothing that explodes
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.sse(
                question.path,
                method="POST",
                json=question.body(),
                headers=headers,
                max_event_size=MAX_EVENT_BYTES,
            ) as source,
        ):
            _check_response(source.response)
            done = False
            async for event in source:
                received_ms = 1000.0 * (clock() - began)
                if event.data == "[DONE]":
                    done = True
                    break
                has_text, counted = _read(event.data)
                tokens = tokens if counted is None else counted
                if has_text:
                    times_ms.append(received_ms)
                if len(times_ms) > MAX_CHUNKS:
                    raise StreamError(f"expected at most {MAX_CHUNKS} chunks")
            if not done:
                raise StreamError("the stream ended without [DONE]")
            if not times_ms:
                raise StreamError("no token came")
    except TimeoutError:
        error = f"nothing more within {timeout_s:g} s"
    except StreamError as failure:
        error = str(failure)
    except httpx2.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    if error is not None and key:
        error = error.replace(key, "[key]")
    return EndpointRecord(
        question.path,
        question.model,
        question.region,
        at,
        round(times_ms[0], 3) if times_ms else None,
        tuple(round(after - before, 3) for before, after in pairwise(times_ms)),
        tokens,
        error[:200] if error is not None else None,
    )


def _check_response(response: httpx2.Response) -> None:
    status = response.status_code
    if status in FINAL_STATUSES:
        raise EndpointRefused(f"{response.url}: HTTP {status} {response.reason_phrase}")
    if status != 200:
        raise StreamError(f"HTTP {status} {response.reason_phrase}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise StreamError("expected a stream without content-encoding")


def _read(data: str) -> tuple[bool, int | None]:
    """Does a chunk carry text, and how many tokens does it say there were?"""
    chunk: Any = None
    with suppress(ValueError, RecursionError):
        chunk = json.loads(data)
    if not isinstance(chunk, dict):
        raise StreamError("expected chunks of JSON objects")
    if chunk.get("error"):
        raise StreamError(f"the endpoint says: {str(chunk['error'])[:120]}")
    usage, choices = chunk.get("usage"), chunk.get("choices")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if type(counted) is not int or not 0 <= counted < 1 << 31:
        counted = None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return False, counted
    delta = first.get("delta")
    texts = [first.get("text")]
    if isinstance(delta, dict):  # reasoning is decoded like any text
        texts += [delta.get(name) for name in ("content", "reasoning_content", "reasoning")]
    return any(isinstance(text, str) and text for text in texts), counted
