"""A drafter as `wanspec-drafter` is one, with passes of a stated time whatever the machine's.

python -m bench.paced_drafter --pass-ms 40 --scale 10 <options as of wanspec-drafter>

Where all times of a study are stretched, `--scale` stretches those of flow control with them.
"""

import argparse
import logging
import signal
import sys
import time
from pathlib import Path

import torch

from drafter.flow import FlowTimes
from drafter.growth import GrowthShape
from drafter.link import Link
from drafter.model import DraftModel
from drafter.session import Limits, Session
from wanspec_kernels.wire import Error
from wanspec_kernels.wire.keys import load_public, load_secret


class PacedSession(Session):
    """Sleeps after a pass until it has taken `pass_s`; those that took longer are counted."""

    def __init__(self, *args: object, pass_s: float, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._pass_s = pass_s
        self.late = 0

    def step(self) -> list[Error]:
        ends = time.perf_counter() + self._pass_s
        errors = super().step()
        if self.busy:  # something ran
            left_s = ends - time.perf_counter()
            self.late += left_s < 0
            time.sleep(max(0.0, left_s))
        return errors


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("connect", "model"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("key", "server-key"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--pass-ms", type=float, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-requests", type=int, default=Limits.max_requests)
    parser.add_argument("--max-nodes", type=int, default=Limits.max_nodes)
    parser.add_argument("--width", type=int, default=GrowthShape.width)
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("drafter").setLevel(logging.INFO)
    given = options()
    torch.set_num_threads(given.threads)
    model = DraftModel.load(given.model, device="cpu")
    session = PacedSession(
        model,
        limits=Limits(given.max_requests, given.max_nodes),
        shape=GrowthShape.of_width(given.width),
        pass_s=given.pass_ms / 1e3,
    )
    link = Link(
        session,
        endpoint=given.connect,
        secret=load_secret(given.key),
        server_public=load_public(given.server_key),
        vocabulary=model.vocabulary,
        model_name=given.model,
        max_requests=given.max_requests,
        max_nodes=given.max_nodes,
        flow_times=FlowTimes().stretched(given.scale),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: link.stop())
    link.run()
    print(f"passes={session.counters.num_passes} late={session.late}", file=sys.stderr)


if __name__ == "__main__":
    main()
