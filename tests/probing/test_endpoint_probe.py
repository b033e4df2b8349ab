"""Endpoint probes against a transport with a clock of its own, and a real one that says nothing."""

import asyncio
import contextlib
import json
import socket

import httpx2
import pytest

from wanspec_kernels.probing.endpoint import EndpointRefused, Question, ask

KEY = "sk-secret-of-ours"


def chunk(text="a", **more):
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]} | more) + "\n\n"


class Clock:
    seconds = 100.0

    def __call__(self):
        return self.seconds


class Stream(httpx2.AsyncByteStream):
    """Parts after so many seconds each of the clock; an exception among them is raised."""

    def __init__(self, clock, parts):
        self.clock, self.parts = clock, parts

    async def __aiter__(self):
        for after, part in self.parts:
            self.clock.seconds += after
            if isinstance(part, Exception):
                raise part
            yield part.encode()


def probe(parts, *, status=200, headers=None, question=None, seen=None, timeout_s=5.0):
    clock = Clock()

    def handle(request):
        if seen is not None:
            seen.append(request)
        about = {"content-type": "text/event-stream; charset=utf-8"} | (headers or {})
        return httpx2.Response(status, headers=about, stream=Stream(clock, parts))

    async def main():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handle)) as client:
            asked = question or Question("http://fake/v1", "m", "here")
            return await ask(client, asked, key=KEY, timeout_s=timeout_s, clock=clock)

    return asyncio.run(main())


def test_first_token_and_gaps_are_timed():
    seen = []
    record = probe(
        [
            (0.2, ": keep alive\n\n"),
            (0.1, 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'),
            (0.15, chunk("one")),
            (0.03, chunk("two")),
            (0.05, chunk("three")[:20]),
            (0.02, chunk("three")[20:]),
            (0.01, 'data: {"choices": [], "usage": {"completion_tokens": 4}}\n\n'),
            (0.01, "data: [DONE]\n\n"),
        ],
        seen=seen,
    )
    assert record.first_ms == pytest.approx(450.0)
    assert record.gaps_ms == pytest.approx((30.0, 70.0))
    assert (record.tokens, record.error, record.region) == (4, None, "here")
    assert seen[0].headers["authorization"] == f"Bearer {KEY}"
    body = json.loads(seen[0].content)
    assert (body["stream"], body["model"]) == (True, "m")
    assert KEY not in repr(record)


def test_plain_completions_have_their_own_path():
    seen = []
    text = 'data: {"choices": [{"text": "x"}]}\n\ndata: [DONE]\n\n'
    record = probe(
        [(0.1, text)], question=Question("http://f/v1/", "m", "r", chat=False), seen=seen
    )
    assert record.error is None
    assert str(seen[0].url) == record.endpoint == "http://f/v1/completions"
    assert "prompt" in json.loads(seen[0].content)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_ends_it(status):
    with pytest.raises(EndpointRefused, match=f"HTTP {status}"):
        probe([(0.0, "no")], status=status)


@pytest.mark.parametrize(
    ("parts", "more", "error", "gaps"),
    [
        ([(0.0, "slow down")], {"status": 429}, "HTTP 429", 0),
        ([(0.0, "")], {"status": 503}, "HTTP 503", 0),
        ([(0.0, "")], {"status": 302, "headers": {"location": "http://thief/"}}, "HTTP 302", 0),
        ([(0.0, "data: {broken\n\n")], {}, "chunks of JSON", 0),
        ([(0.0, "data: " + "[" * 50_000 + "\n\n")], {}, "chunks of JSON", 0),
        ([(0.0, "data: 7\n\n")], {}, "chunks of JSON", 0),
        ([(0.0, 'data: {"error": {"message": "full"}}\n\n')], {}, "full", 0),
        ([(0.0, "data: [DONE]\n\n")], {}, "no token came", 0),
        ([(0.1, chunk()), (0.1, chunk())], {}, "without [DONE]", 1),
        ([(0.1, chunk()), (0.1, chunk()), (0.1, httpx2.ReadError("cut"))], {}, "cut", 1),
        ([(0.1, chunk()), (0.1, "data: " + "x" * 100_000)], {}, "byte limit", 0),
        ([(0.0, "<html>")], {"headers": {"content-type": "text/html"}}, "text/event-stream", 0),
        ([(0.0, "x")], {"headers": {"content-encoding": "gzip"}}, "content-encoding", 0),
        ([(0.0, httpx2.ReadError(f"echo {KEY}"))], {}, "[key]", 0),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_recorded_with_what_was_measured(parts, more, error, gaps):
    record = probe(parts, **more)
    assert error in record.error
    assert len(record.gaps_ms) == gaps
    assert KEY not in repr(record)


def test_odd_chunks_carry_no_text_and_harm_nothing():
    odd = [
        '{"choices": 3}',
        '{"choices": [[]]}',
        '{"choices": [{"delta": 1, "text": 5}]}',
        '{"usage": {"completion_tokens": -4}}',
        '{"usage": {"completion_tokens": true}}',
    ]
    parts = [(0.1, f"data: {text}\n\n") for text in odd]
    record = probe([*parts, (0.1, chunk()), (0.0, "data: [DONE]\n\n")])
    assert (record.error, record.tokens) == (None, None)
    assert record.first_ms == pytest.approx(600.0)


def test_an_endpoint_that_drips_forever_is_left_in_time():
    """It accepts, sends a byte of a comment now and then, and never an event."""

    async def main():
        async def serve(reader, writer):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            with contextlib.suppress(OSError):
                while True:
                    writer.write(b":")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            writer.close()
            gone.set()

        gone = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx2.AsyncClient(trust_env=False) as client:
            question = Question(f"http://127.0.0.1:{port}/v1", "m", "here")
            record = await ask(client, question, key=None, timeout_s=0.3)
            await asyncio.wait_for(gone.wait(), 10)
            return record

    record = asyncio.run(main())
    assert record.error == "nothing more within 0.3 s"


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it():
    async def main():
        async with httpx2.AsyncClient(trust_env=False) as client:
            await ask(client, Question("http://127.0.0.1:9", "m", "here"), key=f"{KEY}\nx")

    with pytest.raises(ValueError, match="printable ASCII") as caught:
        asyncio.run(main())
    assert KEY not in str(caught.value)


def test_nobody_there_is_an_error_of_the_record():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    async def main():
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await ask(client, Question(url, "m", "here"), key=None)

    assert "ConnectError" in asyncio.run(main()).error


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://", f"http://u:{KEY}@x/v1", "http://x?a=b"])
def test_an_address_that_is_none_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="endpoint: expected") as caught:
        Question(url, "m", "r")
    assert KEY not in str(caught.value)
