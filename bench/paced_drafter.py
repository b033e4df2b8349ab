"""`wanspec-drafter` with passes of a stated time: another machine's, whatever this one's.

python -m bench.paced_drafter --pass-ms 40 --scale 10 <options of wanspec-drafter>

Where all times of a study are stretched, `--scale` stretches those of flow control with them.
"""

import argparse
import sys
import time

import drafter.main
from drafter import flow
from drafter.session import Session
from wanspec_kernels.wire import Error


class PacedSession(Session):
    """Sleeps after a pass until it has taken `pass_s`; one that took longer is told of."""

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


def stretch_flow(scale: float) -> None:
    """In this process."""
    flow.SLACK_US = (int(scale * flow.SLACK_US[0]), int(scale * flow.SLACK_US[1]))
    flow.MARKER_INTERVAL_US = int(scale * flow.MARKER_INTERVAL_US)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pass-ms", type=float, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    options, rest = parser.parse_known_args()
    stretch_flow(options.scale)
    sessions: list[PacedSession] = []

    def paced(*args: object, **more: object) -> PacedSession:
        sessions.append(PacedSession(*args, pass_s=options.pass_ms / 1e3, **more))
        return sessions[-1]

    drafter.main.Session = paced  # type: ignore[assignment, misc]
    try:
        drafter.main.app(rest, standalone_mode=False)
    finally:
        for session in sessions:
            passes, late = session.counters.num_passes, session.late
            print(f"passes={passes} late={late}", file=sys.stderr)


if __name__ == "__main__":
    main()
