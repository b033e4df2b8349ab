"""Oracle: an expected-gain policy that knows the path, a bound for those that have to guess."""

from dataclasses import dataclass, replace

from wanspec_kernels.control.policies import ExpectedGain
from wanspec_kernels.control.policy import Decision, View
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.simulation.traced import PROMPT, TracedText


@dataclass(slots=True)
class Oracle:
    """Decides as `ExpectedGain`, with certainties in place of what is expected.

    It knows how far the target will follow the pool, whether the path then runs out of it where
    something can still be drafted, and that one level more, from wherever, will hold its next
    token. It has the same drafts, links and times, and neither sees what a link will do nor steers
    what is drafted elsewhere.
    """

    gain: ExpectedGain
    text: TracedText
    generation: Generation

    def decide(self, view: View) -> Decision:
        pool = self.generation.pool
        path = self.text.token_ids[pool.length - len(PROMPT) :]
        followed, open_end, sources = pool.follow(path[: view.max_depth])
        ends_open = open_end and followed < view.max_depth
        arrivals = tuple(
            replace(a, open_mass=float(ends_open and (followed == 0 or a.source in sources)))
            for a in view.arrivals
        )
        return self.gain.decide(
            replace(
                view,
                expected_tokens=followed + 1.0,
                open_mass=float(ends_open),
                coverage=1.0,
                depth=followed,
                arrivals=arrivals,
            )
        )
