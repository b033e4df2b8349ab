"""Records a trace from a pair of models: what the draft says along the target's own texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drafter.candidates import Candidates, Ranker, RowSampling
from drafter.key_values import KeyValueStore
from drafter.model import DraftModel
from drafter.plan import Plan
from wanspec_kernels.confidence import MAX_CODE, code_of
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.simulation.trace import BEYOND, NUM_TOP, Trace
from wanspec_kernels.target import Target, TreeDecoder
from wanspec_kernels.tree import HostTree

OFF_RANKS = (0, 1, 2, 3)  # how likely a token the path is left by: the draft's first four
OFF_EVERY = 4  # positions
OFF_DEPTH = 3


def record(
    target: Target,
    draft: DraftModel,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    temperature: float,
    seeds: Sequence[int],
    about: dict[str, Any],
    progress: Callable[[str], None] = lambda _: None,
) -> Trace:
    """Continue every prompt once for each seed by `tokens`, under coupled `match`.

    Raises:
        ValueError: the models have different vocabularies, or a prompt leaves no room.
    """
    if target.vocabulary != draft.vocabulary:
        raise ValueError("vocabulary: expected one of both models, got two")
    recorder = _Recorder(draft, temperature)
    lengths = []
    for number, prompt in enumerate(prompts, 1):
        for seed in seeds:
            text = _continue(target, list(prompt), tokens, temperature, seed)
            recorder.add(text, len(prompt), seed)
            lengths.append(len(text) - len(prompt))
            progress(f"prompt {number} of {len(prompts)}, seed {seed}: {lengths[-1]} tokens")
    return recorder.trace(lengths, about | {"vocab_size": draft.vocab_size})


def _continue(
    target: Target, prompt: list[int], tokens: int, temperature: float, seed: int
) -> list[int]:
    """The prompt and what the target says after it, one token a pass."""
    decoder = TreeDecoder(target)
    decoder.start(0, prompt, SamplingParams.build(1, temperature=temperature, seed=seed))
    text = list(prompt)
    try:
        for _ in range(tokens):
            text += decoder.verify(0, HostTree((text[-1],), (-1,)))[0]
    finally:
        decoder.finish(0)
    return text


class _Recorder:
    def __init__(self, draft: DraftModel, temperature: float) -> None:
        self._draft, self._temperature = draft, temperature
        self._ranker = Ranker()
        self._token_ids: list[int] = []
        self._ranks: list[int] = []
        self._on: list[Candidates] = []
        self._off: list[Candidates] = []
        self._off_depths: list[int] = []

    def add(self, text: list[int], start: int, seed: int) -> None:
        """Positions `start`.. of a text, and nodes that leave it there."""
        store = self._draft.new_store()
        places = np.arange(len(text))
        visible = np.tri(len(text), dtype=np.bool_)
        rows = places[start - 1 : -1]
        on = self._run(store, Plan(np.array(text), places, places, visible, rows), rows, seed)
        for token, candidates in zip(text[start:], on, strict=True):
            found = candidates.token_ids.index(token) if token in candidates.token_ids else BEYOND
            self._token_ids.append(token)
            self._ranks.append(found)
        self._on += on
        self._leave(store, text, start, on, seed)

    def _leave(
        self, store: KeyValueStore, text: list[int], start: int, on: list[Candidates], seed: int
    ) -> None:
        """Follow the draft's own likeliest tokens for a while after each wrong one."""
        leaving = [
            (start + i, candidates.token_ids[rank])
            for i, candidates in enumerate(on)
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
            found = self._run(store, plan, indices + depth, seed)
            self._off += found
            self._off_depths += [depth + 1] * n
            tokens = np.array([candidates.token_ids[0] for candidates in found])

    def _run(self, store: KeyValueStore, plan: Plan, positions: Any, seed: int) -> list[Candidates]:
        """Candidates after the tokens at `positions`."""
        rows = [
            RowSampling(
                int(position) + 1,
                self._temperature,
                0,
                1.0,
                0.0,
                seed if self._temperature > 0 else None,
                self._draft.vocab_size,
            )
            for position in positions
        ]
        return self._ranker.rank(self._draft.run([(store, plan)]), rows)

    def trace(self, lengths: list[int], about: dict[str, Any]) -> Trace:
        return Trace(
            text_indptr=np.cumsum([0, *lengths]).astype(np.int32),
            token_ids=np.array(self._token_ids, dtype=np.int32),
            ranks=np.array([r if r < NUM_TOP else BEYOND for r in self._ranks], dtype=np.uint8),
            codes=_codes(self._on),
            entropies=_entropies(self._on),
            off_depths=np.array(self._off_depths, dtype=np.uint8),
            off_codes=_codes(self._off),
            off_entropies=_entropies(self._off),
            about=about,
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
