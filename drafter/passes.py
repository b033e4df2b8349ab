"""One pass of the draft model over the requests that want one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from drafter.candidates import Candidates, Ranker
from drafter.growth import Growth
from drafter.key_values import KeyValueStore
from drafter.plan import Plan

log = logging.getLogger(__name__)


class Model(Protocol):
    """What a pass needs of `DraftModel`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    def new_store(self) -> KeyValueStore: ...
    def run(self, batch: Sequence[tuple[KeyValueStore, Plan]]) -> Tensor: ...


@dataclass(slots=True)
class Drafting:
    """A request's tree and its keys and values."""

    growth: Growth
    store: KeyValueStore


@runtime_checkable
class Proposer(Protocol):
    """Candidates for the rows of a pass: a model and a ranker, or a trace of them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    def new_store(self) -> KeyValueStore: ...
    def propose(self, planned: Sequence[tuple[Drafting, Plan]]) -> list[Candidates]:
        """Candidates of all the plans' rows, one plan's after another's."""
        ...


class _ModelProposer:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._ranker = Ranker()
        self.vocab_size = model.vocab_size
        self.max_positions = model.max_positions
        self.new_store = model.new_store

    def propose(self, planned: Sequence[tuple[Drafting, Plan]]) -> list[Candidates]:
        logits = self._model.run([(r.store, plan) for r, plan in planned])
        samplings = [s for r, plan in planned for s in r.growth.samplings(plan)]
        return self._ranker.rank(logits, samplings)


def proposer_of(model: Model | Proposer) -> Proposer:
    return model if isinstance(model, Proposer) else _ModelProposer(model)


@dataclass(frozen=True, slots=True)
class PassResult:
    num_tokens: int  # run through the model
    failures: list[tuple[Drafting, Exception]]


def run_pass(proposer: Proposer, requests: Sequence[Drafting]) -> PassResult:
    """Plan, run and absorb one pass; a request that fails does so alone.

    `num_tokens` is 0 where nobody had anything to do.
    """
    planned = [(r, plan) for r in requests if (plan := r.growth.plan()) is not None]
    if not planned:
        return PassResult(0, [])
    num_tokens = sum(len(plan.token_ids) for _, plan in planned)
    try:
        _run(proposer, planned)
    except Exception as error:
        for r, plan in planned:
            r.growth.abandon(plan)
        if len(planned) == 1:
            return PassResult(num_tokens, [(planned[0][0], error)])
        log.warning("a pass over %d requests failed, running them singly: %s", len(planned), error)
        singly = [run_pass(proposer, [r]) for r, _ in planned]
        return PassResult(num_tokens, [failure for result in singly for failure in result.failures])
    return PassResult(num_tokens, [])


def _run(proposer: Proposer, planned: Sequence[tuple[Drafting, Plan]]) -> None:
    candidates = proposer.propose(planned)
    # From here on nothing may fail: half of the requests would have taken in the pass.
    start = 0
    for r, plan in planned:
        r.growth.absorb(plan, candidates[start : start + len(plan.rows)])
        start += len(plan.rows)
