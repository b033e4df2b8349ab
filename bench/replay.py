"""What one drafter sends for a request and its target commits, recorded to be played back."""

from dataclasses import dataclass, field

from wanspec_kernels.drafts.outcome import Outcome
from wanspec_kernels.drafts.pool import Pool
from wanspec_kernels.engine.events import Committed
from wanspec_kernels.events import Offered
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.traced import PROMPT
from wanspec_kernels.simulation.world import World
from wanspec_kernels.wire import Draft


@dataclass
class Recording:
    """Of a request's pool, in order: drafts that came, and tokens that were committed."""

    steps: list[Draft | tuple[int, ...]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)  # of each draft
    seconds: float = 0.0  # of virtual time

    @property
    def drafts(self) -> list[Draft]:
        return [step for step in self.steps if isinstance(step, Draft)]

    @property
    def commits(self) -> list[tuple[int, ...]]:
        return [step for step in self.steps if not isinstance(step, Draft)]

    def hear(self, event: object) -> None:
        match event:
            case Offered(draft=draft, outcome=outcome):
                self.steps.append(draft)
                self.outcomes.append(outcome)
            case Committed(token_ids=token_ids):
                self.steps.append(token_ids)


def record(scenario: Scenario) -> Recording:
    """Of a scenario with one request and one drafter, from its first event to its last."""
    recording = Recording()
    world = World(scenario, recording.hear)
    world.run()
    recording.seconds = world.env.now / 1000
    return recording


def new_pool(vocab_size: int) -> Pool:
    """As the recorded one was before its first step."""
    pool = Pool(1, PROMPT, vocab_size=vocab_size)
    pool.enrol(1)
    return pool
