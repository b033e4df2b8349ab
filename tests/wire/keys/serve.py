"""Serve drafters or probes with a verifier's real socket: KIND, FOLDER of the keys, descriptors.

Prints the address, and then the processor time so far for each line that it reads.
"""

import asyncio
import resource
import sys
import time
from pathlib import Path

from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.probing.responder import Responder
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.wire.keys import AllowList, load_secret


async def main(kind: str, folder: Path, descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    secret, allowed = load_secret(folder / "server.secret"), AllowList(folder / "enrolled")
    bind = "tcp://127.0.0.1:*"
    if kind == "endpoint":
        exchange = Exchange(vocabulary=bytes(32), vocab_size=50, now=now_ms())
        drafters = DrafterSocket(bind, exchange=exchange, secret=secret, allowed=allowed)
        await drafters.start()
        print(drafters.address, flush=True)
        await answer()
    else:
        async with Responder(bind, secret=secret, allowed=allowed) as responder:
            print(responder.address, flush=True)
            await asyncio.gather(responder.serve(), answer())


async def answer() -> None:
    while await asyncio.to_thread(sys.stdin.readline):
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
