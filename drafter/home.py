"""HomeDrafter: the daemon's tree growth, run where the target runs and called when it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from drafter.growth import Growth, GrowthShape
from drafter.passes import Drafting, Model, Proposer, proposer_of, run_pass
from wanspec_kernels.wire import Draft, Open

# A pass takes the time of others' requests: where the draft is sure, few nodes are worth a row.
HOME_SHAPE = GrowthShape(
    width=16,
    min_share=0.03,
    max_children=8,
    max_root_children=16,
    min_probability=0.002,
    min_path_probability=0.002,
)


@dataclass(slots=True)
class _Entry:
    drafting: Drafting
    text: list[int]


class HomeDrafter:
    """Drafts on call. Keys and values stay between calls; committed tokens are caught up with.

    Safe to call from several threads; calls then wait for each other.
    """

    def __init__(self, model: Model | Proposer, *, shape: GrowthShape = HOME_SHAPE) -> None:
        self._proposer = proposer_of(model)
        self._shape = shape
        self._entries: dict[int, _Entry] = {}
        self._lock = Lock()

    def open(self, request: Open) -> None:
        """Begin a request; nothing is computed yet. Its text may be the beginning only.

        Raises:
            ValueError: it wants more draws of a node than the tree may have nodes.
        """
        growth = Growth(
            request,
            max_positions=self._proposer.max_positions,
            max_nodes=request.max_nodes,
            shape=self._shape,
        )
        drafting = Drafting(growth, self._proposer.new_store())
        with self._lock:
            self._entries[request.request] = _Entry(drafting, list(request.token_ids))

    def draft(
        self, request: int, token_ids: Sequence[int], passes: int, known: Draft | None = None
    ) -> list[Draft]:
        """What at most `passes` more passes add below the text `token_ids`.

        `known` is what others drafted there: it is grown on, and only what is new comes back. A
        pass that only takes in part of a text not seen yet does not count. Nothing may come: the
        text is past the model's positions, or the budget is spent.

        Raises:
            KeyError: the request is not open.
        """
        with self._lock:
            entry = self._entries[request]
            self._catch_up(entry, token_ids)
            growth = entry.drafting.growth
            if known is not None:
                growth.graft(known)
            while passes > 0:
                result = run_pass(self._proposer, [entry.drafting])
                if result.failures:
                    raise result.failures[0][1]
                if result.num_tokens == 0:
                    break
                passes -= growth.caught_up
            return growth.take_drafts()

    def draft_all(
        self, jobs: Sequence[tuple[int, Sequence[int], Draft | None]]
    ) -> dict[int, list[Draft] | None]:
        """One pass for many requests: (request, text, known) as `draft` takes them.

        None: the request's text was not all read yet, and another pass goes on with it. A request
        that the model fails for is left out.

        Raises:
            KeyError: a request is not open.
        """
        with self._lock:
            entries = {request: self._entries[request] for request, _, _ in jobs}
            for request, token_ids, known in jobs:
                self._catch_up(entries[request], token_ids)
                if known is not None:
                    entries[request].drafting.growth.graft(known)
            result = run_pass(self._proposer, [entry.drafting for entry in entries.values()])
            failed = {id(drafting) for drafting, _ in result.failures}
            found: dict[int, list[Draft] | None] = {}
            for request, entry in entries.items():
                growth = entry.drafting.growth
                if id(entry.drafting) in failed:
                    del self._entries[request]
                else:
                    read = growth.caught_up or growth.too_long
                    found[request] = growth.take_drafts() if read else None
            return found

    def close(self, request: int) -> None:
        """Forget a request; an unknown one is none of our business."""
        with self._lock:
            self._entries.pop(request, None)

    def _catch_up(self, entry: _Entry, token_ids: Sequence[int]) -> None:
        known = len(entry.text)
        text = list(token_ids)
        if text[:known] == entry.text:
            entry.drafting.growth.commit(text[known:])
        else:
            entry.drafting.growth.restart(text)
        entry.text = text
