"""Records a trace from a pair of models: what the draft says along the target's own texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drafter.candidates import Candidates, Ranker, RowSampling
from drafter.key_values import KeyValueStore
from drafter.model import DraftModel
from drafter.plan import Plan
from wanspec_kernels.engine.model import Target, TreeDecoder
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.simulation.trace import BEYOND, NUM_TOP, Trace
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.confidence import MAX_CODE, code_of
from wanspec_kernels.wire.sampling import Sampling

OFF_RANKS = (0, 1, 2, 3)  # how likely a token the path is left by: the draft's first four
OFF_EVERY = 4  # positions
OFF_DEPTH = 3


def record(
    recording: "Recording",
    target: Target,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    seeds: Sequence[int],
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Continue every prompt once for each seed by `tokens`, under coupled `match`.

    `recording` has the texts that are complete at any time, also after an interruption. `progress`
    gets the share of all tokens that is written.

    Raises:
        ValueError: the models have different vocabularies, or a prompt leaves no room.
    """
    if target.vocabulary != recording.draft.vocabulary:
        raise ValueError("vocabulary: expected one of both models, got two")
    wanted, done = len(prompts) * len(seeds), 0
    for prompt in prompts:
        for seed in seeds:
            text = list(prompt)
            for token in _continue(target, prompt, tokens, recording.temperature, seed):
                text.append(token)
                progress((done + (len(text) - len(prompt)) / tokens) / wanted)
            recording.add(text, len(prompt), seed)
            done += 1


def _continue(
    target: Target, prompt: Sequence[int], tokens: int, temperature: float, seed: int
) -> Iterator[int]:
    """What the target says after the prompt, one token a pass."""
    decoder = TreeDecoder(target)
    decoder.start(0, list(prompt), SamplingParams.build(1, temperature=temperature, seed=seed))
    last = prompt[-1]
    try:
        for _ in range(tokens):
            (last,), _ = decoder.verify(0, HostTree((last,), (-1,)))
            yield last
    finally:
        decoder.finish(0)


@dataclass(slots=True)
class _Text:
    """What was recorded of one text."""

    token_ids: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    on: list[Candidates] = field(default_factory=list)
    off: list[Candidates] = field(default_factory=list)
    off_depths: list[int] = field(default_factory=list)


class Recording:
    """What the draft model proposes along texts, and beside them."""

    def __init__(self, draft: DraftModel, temperature: float) -> None:
        self.draft, self.temperature = draft, temperature
        self._ranker = Ranker()
        self._texts: list[_Text] = []

    @property
    def num_texts(self) -> int:
        return len(self._texts)

    def add(self, text: list[int], start: int, seed: int) -> None:
        """Positions `start`.. of a text, and nodes that leave it there; all of it or nothing."""
        found = _Text()
        store = self.draft.new_store()
        places = np.arange(len(text))
        visible = np.tri(len(text), dtype=np.bool_)
        rows = places[start - 1 : -1]
        found.on = self._run(store, Plan(np.array(text), places, places, visible, rows), rows, seed)
        for token, candidates in zip(text[start:], found.on, strict=True):
            known = token in candidates.token_ids
            found.token_ids.append(token)
            found.ranks.append(candidates.token_ids.index(token) if known else BEYOND)
        self._leave(store, text, start, found, seed)
        self._texts.append(found)

    def _leave(
        self, store: KeyValueStore, text: list[int], start: int, found: _Text, seed: int
    ) -> None:
        """Follow the draft's own likeliest tokens for a while after each wrong one."""
        leaving = [
            (start + i, candidates.token_ids[rank])
            for i, candidates in enumerate(found.on)
            if i % OFF_EVERY == 0
            for rank in OFF_RANKS
            if rank < len(candidates.token_ids) and candidates.token_ids[rank] != text[start + i]
        ]
        base, n = len(text), len(leaving)
        indices = np.array([index for index, _ in leaving])
        tokens = np.array([token for _, token in leaving])
        for depth in range(OFF_DEPTH):
            slots = base + depth * n + np.arange(n)
            visible = np.zeros((n, base + (depth + 1) * n), dtype=np.bool_)
            for row, index in enumerate(indices.tolist()):
                visible[row, :index] = True
                visible[row, base + row :: n] = True
            plan = Plan(tokens, indices + depth, slots, visible, np.arange(n))
            proposed = self._run(store, plan, indices + depth, seed)
            found.off += proposed
            found.off_depths += [depth + 1] * n
            tokens = np.array([candidates.token_ids[0] for candidates in proposed])

    def _run(self, store: KeyValueStore, plan: Plan, positions: Any, seed: int) -> list[Candidates]:
        """Candidates after the tokens at `positions`."""
        sampling = Sampling(self.temperature, seed=seed)
        rows = [
            RowSampling(int(position) + 1, sampling, self.draft.vocab_size)
            for position in positions
        ]
        return self._ranker.rank(self.draft.run([(store, plan)]), rows)

    def trace(self, about: dict[str, Any]) -> Trace:
        """Of the texts added so far, one at least."""
        texts = self._texts
        on = [row for text in texts for row in text.on]
        off = [row for text in texts for row in text.off]
        ranks = [r if r < NUM_TOP else BEYOND for text in texts for r in text.ranks]
        lengths = [len(text.token_ids) for text in texts]
        return Trace(
            text_indptr=np.cumsum([0, *lengths]).astype(np.int32),
            token_ids=np.array([t for text in texts for t in text.token_ids], dtype=np.int32),
            ranks=np.array(ranks, dtype=np.uint8),
            codes=_codes(on),
            entropies=_entropies(on),
            off_depths=np.array([d for text in texts for d in text.off_depths], dtype=np.uint8),
            off_codes=_codes(off),
            off_entropies=_entropies(off),
            about=about | {"vocab_size": self.draft.vocab_size},
        )


def _codes(rows: list[Candidates]) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    codes = np.full((len(rows), NUM_TOP), MAX_CODE, dtype=np.uint8)
    for row, candidates in zip(codes, rows, strict=True):
        top = [code_of(p) for p in candidates.probabilities[:NUM_TOP]]
        row[: len(top)] = top
    return codes


def _entropies(rows: list[Candidates]) -> "np.ndarray[tuple[int], np.dtype[np.float16]]":
    found = []
    for candidates in rows:
        p = np.array(candidates.probabilities)
        p = p[p > 0]
        found.append(-(p * np.log2(p)).sum())
    return np.array(found, dtype=np.float16)
