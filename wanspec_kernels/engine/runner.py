"""Runner: passes of a transformers model over the plans of a scheduler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wanspec_kernels.engine.model.model import Target
from wanspec_kernels.engine.plan import LogProbs, Part, PassPlan, Verdict
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import MAX_NODES, DraftTree, HostTree
from wanspec_kernels.verify import Draws, VerifyResult, verify_tree
from wanspec_kernels.wire.sampling import Sampling


class Runner:
    """`launch` starts a pass and returns while the device works; `result` waits for its verdicts.

    At most one pass is under way. The runner keeps nothing of a request: a plan says where its keys
    and values lie, and how it is sampled. Used by one thread at a time.

    >>> runner = Runner(target)  # doctest: +SKIP
    >>> runner.launch(plan)  # doctest: +SKIP
    >>> verdicts = runner.result()  # doctest: +SKIP
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pending: Callable[[], list[_Pending]] | None = None

    def launch(self, plan: PassPlan) -> None:
        """Start a pass over all parts of the plan.

        On a CPU, which is this thread's own, `result` does the work.

        Raises:
            RuntimeError: the pass before has not been asked for its result.
            ValueError: a part has no pages for its rows, more rows than a tree may have, or a token
                that is none of the target's.
        """
        if self._pending is not None:
            raise RuntimeError("launch: expected result() of the pass before it first")
        for part in plan.parts:
            self._check(part)
        if self._target.device.type == "cpu":
            self._pending = partial(self._start, plan)
        else:
            pending = self._start(plan)
            self._pending = lambda: pending

    @torch.inference_mode()
    def _start(self, plan: PassPlan) -> "list[_Pending]":
        device = self._target.device
        tree = DraftTree.build([_layout(part) for part in plan.parts], device)
        context_lens = self._on_device([part.context_len for part in plan.parts])
        page_table = self._page_table([part.pages for part in plan.parts])
        decided = [part for part in plan.parts if part.tree is not None]
        rows = None
        if any(part.prefix for part in plan.parts):
            rows = self._on_device(_logit_rows(plan.parts))
        runs = _runs(decided)
        # Trees alone, and of one rule, are judged as they are run.
        given = (tree, context_lens, page_table) if rows is None and len(runs) == 1 else None
        # Copies to the device wait for what it is at: all of them come before the pass.
        trials = [self._trial(run, given) for run in runs]
        logits = self._target.logits(tree, context_lens, page_table, rows=rows)
        pending = []
        start = 0
        for trial in trials:
            end = start + trial.tree.num_nodes
            pending.append(self._verify(trial, logits[start:end]))
            start = end
        return pending

    def result(self) -> list[Verdict]:
        """Wait for the pass; a verdict for each part with a tree, in the order of the plan.

        Raises:
            RuntimeError: no pass was launched.
        """
        if self._pending is None:
            raise RuntimeError("result: expected a launched pass, there is none")
        pending, self._pending = self._pending, None
        return [verdict for each in pending() for verdict in each.verdicts()]

    def _trial(
        self, parts: Sequence[Part], given: tuple[DraftTree, Tensor, Tensor] | None
    ) -> "_Trial":
        """`given` are their trees, slots of their roots and pages, if these are there already."""
        device = self._target.device
        trees = [_tree_of(part) for part in parts]
        if given is None:
            given = (
                DraftTree.build([(t.token_ids, t.parents) for t in trees], device),
                self._on_device([part.context_len + len(part.prefix) for part in parts]),
                self._page_table([part.pages for part in parts]),
            )
        tree, root_slots, page_table = given
        draws = None
        if trees[0].expansions is not None:
            drawn = [t.expansions or () for t in trees]
            draws = Draws.build(drawn, tree, [t.replacement for t in trees])
        return _Trial(
            parts,
            tree,
            draws,
            sampling_params([part.sampling for part in parts], device),
            root_slots,
            page_table,
            self._bitmask(parts),
        )

    def _verify(self, trial: "_Trial", logits: Tensor) -> "_Pending":
        """Judge trees of one rule, and move what was accepted of them."""
        result = verify_tree(
            trial.tree,
            logits,
            trial.sampling,
            trial.root_slots.long() + 1,
            rule="match" if trial.draws is None else "rejection",
            draft=trial.draws,
            token_bitmask=trial.bitmask,
        )
        cache = self._target.cache
        cache.compact(
            result.accepted_nodes, result.num_accepted, trial.root_slots, trial.page_table
        )
        columns = (result.status[:, None], result.num_accepted[:, None])
        packed = torch.cat((*columns, result.accepted_nodes, result.token_ids), 1)
        logprobs = _path_logprobs(trial.parts, trial.tree, logits, result)
        return _Pending(trial.parts, packed, logprobs)

    def _bitmask(self, parts: Sequence[Part]) -> Tensor | None:
        if all(part.bitmask is None for part in parts):
            return None
        rows = sum(part.num_logits for part in parts)
        # The head may be wider than the vocabulary; nothing is likely there.
        width = self._target.head_width
        bitmask = torch.full((rows, (width + 31) // 32), -1, dtype=torch.int32)
        start = 0
        for part in parts:
            if part.bitmask is not None:
                words = part.bitmask.shape[1]
                bitmask[start : start + part.num_logits, :words] = torch.from_numpy(part.bitmask)
            start += part.num_logits
        return bitmask.to(self._target.device)

    def _page_table(self, pages: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, pages))
        return self._on_device([[*row, *[-1] * (width - len(row))] for row in pages])

    def _on_device(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(self._target.device)

    def _check(self, part: Part) -> None:
        slots = part.context_len + part.num_rows
        room = len(part.pages) * self._target.cache.page_size
        if slots > room:
            raise ValueError(
                f"request {part.request}: expected pages for {slots} slots, got {len(part.pages)} "
                f"with {room}"
            )
        if part.num_rows > MAX_NODES:
            raise ValueError(
                f"request {part.request}: expected at most {MAX_NODES} rows, got {part.num_rows}"
            )
        tokens, vocab_size = _layout(part)[0], self._target.vocab_size
        if not 0 <= min(tokens) <= max(tokens) < vocab_size:
            raise ValueError(
                f"request {part.request}: expected tokens of 0..{vocab_size - 1}, got "
                f"{min(tokens)}..{max(tokens)}"
            )


@dataclass(frozen=True, slots=True)
class _Trial:
    """Trees of one rule, and on the device all that judging them takes beside the logits."""

    parts: Sequence[Part]
    tree: DraftTree
    draws: Draws | None
    sampling: SamplingParams
    root_slots: Tensor  # [parts], int32
    page_table: Tensor  # [parts, widest]
    bitmask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Pending:
    """Verdicts on their way from the device."""

    parts: Sequence[Part]
    packed: Tensor  # [parts, 2 + 2 * max_depth + 1]: status, accepted, their nodes, tokens
    logprobs: tuple[Tensor, Tensor, Tensor] | None

    def verdicts(self) -> list[Verdict]:
        rows = self.packed.tolist()
        depth = (len(rows[0]) - 3) // 2
        tables = None if self.logprobs is None else [each.tolist() for each in self.logprobs]
        found = []
        for b, (part, (status, accepted, *rest)) in enumerate(zip(self.parts, rows, strict=True)):
            token_ids = rest[depth:][: accepted + (status == 0)]
            logprobs: tuple[LogProbs, ...] = ()
            if tables is not None and part.num_logprobs is not None:
                logprobs = _logprobs(tables, b, len(token_ids), part.num_logprobs)
            nodes = tuple(rest[:accepted])
            found.append(
                Verdict(part.request, tuple(token_ids), nodes, logprobs, is_invalid=status != 0)
            )
        return found


def _layout(part: Part) -> tuple[list[int], list[int]]:
    """Tokens and parents of all rows of a part: a chain, and the tree below its end."""
    tokens, parents = list(part.prefix), list(range(-1, len(part.prefix) - 1))
    if part.tree is not None:
        shift = len(part.prefix)
        tokens += part.tree.token_ids
        parents += [shift - 1, *(shift + parent for parent in part.tree.parents[1:])]
    return tokens, parents


def _tree_of(part: Part) -> HostTree:
    assert part.tree is not None
    return part.tree


def _logit_rows(parts: Sequence[Part]) -> list[int]:
    rows: list[int] = []
    end = 0
    for part in parts:
        end += part.num_rows
        rows += range(end - part.num_logits, end)
    return rows


def _runs(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbours of one rule; a scheduler that sorts its parts by rule has one run of each."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and _has_draws(runs[-1][0]) == _has_draws(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _has_draws(part: Part) -> bool:
    """Whether its tree has draws, which says by which rule it is verified."""
    return _tree_of(part).expansions is not None


def sampling_params(samplings: Sequence[Sampling], device: torch.device | str) -> SamplingParams:
    """One value of each field for each request of a batch."""
    return SamplingParams.build(
        len(samplings),
        temperature=[s.temperature for s in samplings],
        top_k=[s.top_k for s in samplings],
        top_p=[s.top_p for s in samplings],
        min_p=[s.min_p for s in samplings],
        seed=[s.seed for s in samplings],
        device=device,
    )


def _path_logprobs(
    parts: Sequence[Part], tree: DraftTree, logits: Tensor, result: VerifyResult
) -> tuple[Tensor, Tensor, Tensor] | None:
    """For each token of each part, [parts, max_depth + 1] and [parts, max_depth + 1, most]:

    the logarithm of its probability, and the likeliest tokens with theirs. None is wanted: None.
    """
    most = max((part.num_logprobs for part in parts if part.num_logprobs is not None), default=None)
    if most is None:
        return None
    above = torch.nn.functional.pad(result.accepted_nodes, (1, 0)).clamp(min=0)
    rows = logits[(tree.indptr[:-1, None] + above).flatten()].float()
    rows = rows.log_softmax(-1).view(*above.shape, -1)
    chosen = rows.gather(-1, result.token_ids.clamp(min=0).long()[..., None])[..., 0]
    top, top_ids = rows.topk(min(most, rows.shape[-1]), -1)
    return chosen, top_ids, top


def _logprobs(
    tables: Sequence[Any], part: int, count: int, num_logprobs: int
) -> tuple[LogProbs, ...]:
    chosen, top_ids, top = (table[part] for table in tables)
    return tuple(
        LogProbs(chosen[i], tuple(top_ids[i][:num_logprobs]), tuple(top[i][:num_logprobs]))
        for i in range(count)
    )
