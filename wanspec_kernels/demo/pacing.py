"""PacedRunner: a small target that takes as long for a pass as a large one."""

import time

from wanspec_kernels.engine.engine import PassRunner
from wanspec_kernels.engine.plan import PassPlan, Verdict


class PacedRunner:
    """A runner whose passes take at least `pass_ms` each, as those of a larger model would."""

    def __init__(self, runner: PassRunner, pass_ms: float) -> None:
        self._runner = runner
        self._pass_s = pass_ms / 1000
        self._ends_s = 0.0

    def launch(self, plan: PassPlan) -> None:
        self._ends_s = time.perf_counter() + self._pass_s
        self._runner.launch(plan)

    def result(self) -> list[Verdict]:
        verdicts = self._runner.result()
        time.sleep(max(0.0, self._ends_s - time.perf_counter()))
        return verdicts
