"""The verifier's own socket and the one for probes, dialled by both families of IP."""

import asyncio
from threading import Thread

import pytest

from drafter.link import Link
from drafter.session import Limits, Session
from tests.drafter.test_session import FakeModel
from tests.ip_families import needs_ipv6
from tests.serving.dialler import VOCABULARY
from tests.serving.fake_models import VOCAB_SIZE
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.probing.link import LinkProbe, Pacing
from wanspec_kernels.probing.responder import Responder
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.wire.keys import AllowList, generate, load_secret

WAIT_S = 20.0

FAMILIES = [
    ("tcp://[::1]:*", "tcp://[::1]"),
    ("tcp://*:*", "tcp://[::1]"),
    ("tcp://*:*", "tcp://127.0.0.1"),
    ("tcp://[::]:*", "tcp://127.0.0.1"),
]


@pytest.fixture
def keys(tmp_path):
    enrolled = tmp_path / "enrolled"
    enrolled.mkdir()
    ours, theirs = generate(tmp_path, "verifier"), generate(enrolled, "drafter")
    return load_secret(ours), load_secret(theirs), AllowList(enrolled)


@needs_ipv6
@pytest.mark.parametrize(("bind", "dial"), FAMILIES)
def test_a_drafter_joins_by_either_family(keys, bind, dial):
    ours, theirs, allowed = keys

    async def main():
        exchange = Exchange(vocabulary=VOCABULARY, vocab_size=VOCAB_SIZE, now=now_ms())
        socket = DrafterSocket(bind, exchange=exchange, secret=ours, allowed=allowed)
        await socket.start()
        link = Link(
            Session(FakeModel(), limits=Limits(2, 32)),
            endpoint=f"{dial}:{socket.address.rpartition(':')[2]}",
            secret=theirs,
            server_public=ours.public,
            vocabulary=VOCABULARY,
            model_name="fake",
            max_requests=2,
            max_nodes=32,
        )
        thread = Thread(target=link.run)
        thread.start()
        try:
            async with asyncio.timeout(WAIT_S):
                while not exchange.sessions:
                    await asyncio.sleep(0)
        finally:
            link.stop()
            await asyncio.to_thread(thread.join, WAIT_S)
            await socket.close()
        assert link.counters.num_connects == 1

    asyncio.run(main())


@needs_ipv6
@pytest.mark.parametrize(("bind", "dial"), FAMILIES)
def test_a_probe_is_answered_by_either_family(keys, bind, dial):
    ours, theirs, allowed = keys

    def probe(address):
        with LinkProbe(address, secret=theirs, server_public=ours.public) as prober:
            return prober.run(Pacing(100, seconds=0.1), name="uni", region="here")

    async def main():
        async with Responder(bind, secret=ours, allowed=allowed) as responder:
            task = asyncio.create_task(responder.serve())
            port = responder.address.rpartition(":")[2]
            record = await asyncio.to_thread(probe, f"{dial}:{port}")
            task.cancel()
            assert record.lost == 0

    asyncio.run(main())
