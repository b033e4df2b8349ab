"""Rounds: co-located speculation as a fixed cycle, the baseline that drafters elsewhere must beat.

All requests of the batch are in step. A round is so many draft passes at home, each for all of
them, and a pass of the target over so many rows a request. The draft model has the target's
accelerator, so nothing runs beside anything else.
"""

from dataclasses import dataclass

from drafter.growth import GrowthShape
from drafter.home import HomeDrafter
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.drafts.pool import HOME
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.sequence import Sequence
from wanspec_kernels.simulation.record import PassRun, Progress, Record
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.traced import PROMPT, TracedProposer, TracedText
from wanspec_kernels.wire import MAX_TREE_NODES


@dataclass(frozen=True, slots=True)
class Rounds:
    """The scenario's texts without its drafters; its limits say how many rows a tree has."""

    scenario: Scenario
    passes: int  # a round
    shape: GrowthShape

    def run(self) -> Record:
        return _Running(self).run()


class _Running:
    def __init__(self, rounds: Rounds) -> None:
        s = self._scenario = rounds.scenario
        if s.home is None:
            raise ValueError("home: expected a draft model, got none")
        if s.arrivals_ms:
            raise ValueError("arrivals_ms: expected none, all requests are in step")
        self._home = s.home
        self._passes = rounds.passes
        self._now = 0.0
        length = s.tokens + 2 * s.limits.max_depth
        self._texts = {
            number: TracedText(s.trace, length, s.seed * 1_000_003 + number)
            for number in range(1, s.requests + 1)
        }
        self._progress = {number: Progress(0.0, 0.0) for number in self._texts}
        self._proposer = TracedProposer(s.trace.vocab_size, self._texts, s.context)
        self._drafter = HomeDrafter(self._proposer, shape=rounds.shape)
        self._record = Record()
        self._exchange = Exchange(vocabulary=b"", vocab_size=s.trace.vocab_size, now=0.0)
        self._sequences: dict[int, Sequence] = {}
        for number in self._texts:
            request = Request(PROMPT, s.tokens)
            text = self._exchange.open(
                number,
                request.token_ids,
                request.sampling,
                0.0,
                max_depth=s.limits.max_depth,
                max_source_nodes=s.limits.max_source_nodes,
            )
            sequence = self._sequences[number] = Sequence(request, text, limits=s.limits, now=0.0)
            sequence.pool.enrol(HOME)
            self._drafter.open(sequence.open_message(MAX_TREE_NODES, home=True))

    def run(self) -> Record:
        while active := [s for s in self._sequences.values() if not s.done]:
            for _ in range(self._passes):
                self._draft(active)
            self._verify(active)
        self._record.ended_ms = self._record.busy_ms = self._now
        self._record.runs = [
            progress.run(self._texts[number].token_ids, self._sequences[number].statistics)
            for number, progress in self._progress.items()
        ]
        return self._record

    def _draft(self, active: list[Sequence]) -> None:
        rows, context = self._proposer.rows, self._proposer.context
        drafts = self._drafter.draft_all(
            [(sequence.number, sequence.token_ids, None) for sequence in active]
        )
        rows, context = self._proposer.rows - rows, self._proposer.context - context
        self._now += self._home.time_ms(rows, context)
        for sequence in active:
            sequence.statistics.local_draft_passes += 1
            for draft in drafts[sequence.number] or ():
                sequence.offer(HOME, draft, self._now)

    def _verify(self, active: list[Sequence]) -> None:
        s, began_ms = self._scenario, self._now
        selections = [q.pool.select(q.max_rows, q.max_depth) for q in active]
        rows = sum(len(selection.depths) for selection in selections)
        context = sum(s.context + sequence.pool.length for sequence in active)
        self._now += s.target.time_ms(rows, context)
        tokens = 0
        for sequence, selection in zip(active, selections, strict=True):
            done = len(self._progress[sequence.number].token_ids)
            token_ids, accepted = self._texts[sequence.number].verify(done, selection.tree)
            committed, _ = sequence.commit(
                selection.tree, selection.sources, token_ids, accepted, self._now
            )
            self._exchange.commit(sequence.number, committed, (), self._now)
            self._progress[sequence.number].commit(committed, self._now)
            tokens += len(committed)
            if sequence.done:
                self._drafter.close(sequence.number)
                if self._record.first_finish_ms is None:
                    self._record.first_finish_ms = self._now
        self._record.passes.append(
            PassRun(began_ms, self._now, len(active), rows, tokens, self._passes)
        )
