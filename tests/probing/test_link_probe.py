"""Links probed through the emulator, and responders that lie, say nothing or are strangers."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
import zmq
import zmq.asyncio

from wanspec_kernels.link_emulator import LinkEmulator
from wanspec_kernels.probing.frames import MIN_BYTES, Frame, FrameError, draft_bytes
from wanspec_kernels.probing.link import LinkProbe, Pacing, ProbeError, one_way_delays
from wanspec_kernels.probing.responder import Responder
from wanspec_kernels.wire.keys import AllowList, generate, load_secret, secure_client


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    enrolled = folder / "enrolled"
    enrolled.mkdir()
    found = {
        name: load_secret(generate(where, name))
        for name, where in (("verifier", folder), ("stranger", folder), ("uni", enrolled))
    }
    return found | {"allowed": AllowList(enrolled)}


@asynccontextmanager
async def responding(keys):
    responder = Responder("tcp://127.0.0.1:*", secret=keys["verifier"], allowed=keys["allowed"])
    async with responder:
        task = asyncio.create_task(responder.serve())
        yield responder
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def probe(keys, address, pacing, *, who="uni", greeting_ms=10_000):
    secret, public = keys[who], keys["verifier"].public
    with LinkProbe(address, secret=secret, server_public=public) as prober:
        return prober.run(pacing, name="uni", region="here", greeting_ms=greeting_ms)


def test_an_emulated_link_is_measured_as_what_it_is(keys):
    async def main():
        async with responding(keys) as responder:
            port = int(responder.address.rpartition(":")[2])
            link = LinkEmulator(
                connect=("127.0.0.1", port),
                one_way_delay_ms=15.0, jitter_ms=8.0, bandwidth_mbit=40.0, seed=1,
            )  # fmt: skip
            async with link:
                pacing = Pacing(draft_bytes(), seconds=0.9, interval_ms=6.0)
                return await asyncio.to_thread(probe, keys, f"tcp://127.0.0.1:{link.port}", pacing)

    record = asyncio.run(main())
    assert record.payload_bytes == 1848
    assert record.lost == 0
    assert len(record.up_ms) == 150
    # The least of 150: near the two delays, plus what a busy machine adds.
    assert 30.0 < record.round_trip_ms < 40.0
    for way in (record.up_ms, record.down_ms):
        assert min(way) == 0.0
        assert 3.0 < np.percentile(way, 95) < 25.0
    assert 20.0 < record.bandwidth_mbit < 48.0


@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_who_gets_no_answer_is_told_within_the_time(keys, who):
    async def main():
        async with responding(keys) as responder:
            address = responder.address if who == "stranger" else "tcp://127.0.0.1:9"
            with pytest.raises(ProbeError, match="no answer in 0 s"):
                await asyncio.to_thread(
                    probe, keys, address, Pacing(100),
                    who="stranger" if who == "stranger" else "uni", greeting_ms=400,
                )  # fmt: skip

    asyncio.run(main())


def test_what_is_no_frame_is_counted_and_not_answered(keys):
    async def main():
        async with responding(keys) as responder:
            context = zmq.asyncio.Context()
            socket = context.socket(zmq.DEALER)
            secure_client(socket, keys["uni"], keys["verifier"].public)
            socket.connect(responder.address)
            for parts in ([b""], [b"x" * 100], [b"a", b"b"], [bytes(200_000)]):
                await socket.send_multipart(parts)
            await socket.send(Frame(7, 5).encode(5000))
            reply = await asyncio.wait_for(socket.recv(), 10)
            context.destroy(linger=0)
            return responder.counters, reply

    counters, reply = asyncio.run(main())
    assert counters == {"received": 5, "malformed": 4}
    assert len(reply) == MIN_BYTES  # small, whatever was asked with
    assert Frame.decode(reply).number == 7


def test_a_frame_comes_back_and_others_are_refused():
    assert Frame.decode(Frame(3, 4, 5).encode(64)) == Frame(3, 4, 5)
    for data in (b"", Frame(3, 4).encode(64)[:63], bytes(64), Frame(3, 1 << 63).encode(64)):
        with pytest.raises(FrameError):
            Frame.decode(data)


def test_offset_and_drift_of_the_other_clock_do_not_show():
    rng = np.random.default_rng(0)
    sent = np.arange(1000) * 20_000
    up, down = (10_000 + rng.integers(0, 3000, 1000) for _ in range(2))
    peer = 5_000_000_000 + (sent + up) * (1 + 50e-6)  # 1 ms of drift in these 20 s
    times = np.stack([sent, peer.astype(np.int64), sent + up + down], axis=1)
    ups, downs, least = one_way_delays(times)
    assert least == pytest.approx((up + down).min() / 1000)
    assert ups == pytest.approx((up - up.min()) / 1000, abs=0.15)
    assert downs == pytest.approx((down - down.min()) / 1000, abs=0.15)


@pytest.mark.parametrize("change", [{"payload_bytes": 1}, {"interval_ms": 0.1}, {"seconds": 0}])
def test_a_senseless_pacing_is_refused(change):
    with pytest.raises(ValueError, match="expected"):
        Pacing(**({"payload_bytes": 100} | change))
