"""TreeDecoder: requests that grow by verified trees."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from wanspec_kernels.engine.model.model import Target
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, HostTree
from wanspec_kernels.verify import Draws, verify_tree
from wanspec_kernels.verify.api import Rule


class InvalidLogitsError(RuntimeError):
    """The target's logits were no numbers where a token had to be chosen; nothing was committed."""


@dataclass
class _Request:
    token_ids: list[int]  # committed: prompt and output
    sampling: SamplingParams


class TreeDecoder:
    """Decodes any number of requests, one pass for one request at a time. Not thread-safe.

    >>> decoder = TreeDecoder(target)  # doctest: +SKIP
    >>> decoder.start(1, prompt, SamplingParams.build(1))  # doctest: +SKIP
    >>> tree = HostTree((prompt[-1], 7, 9), (-1, 0, 0))  # doctest: +SKIP
    >>> tokens, accepted = decoder.verify(1, tree)  # doctest: +SKIP
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._requests: dict[int, _Request] = {}

    def start(self, request: int, token_ids: Sequence[int], sampling: SamplingParams) -> None:
        """Run the prompt, all but its last token, which is the root of the first tree.

        Raises:
            ValueError: the prompt is empty, too long or no tokens of the target; `sampling` is not
                for one request; or `request` is alive already.
            CacheFullError: too few pages are free; nothing is kept.
        """
        if request in self._requests:
            raise ValueError(f"request {request}: expected a new one, it has not been finished")
        if not 1 <= len(token_ids) <= self._target.max_length:
            raise ValueError(
                f"token_ids: expected 1..{self._target.max_length} tokens, got {len(token_ids)}"
            )
        if sampling.batch != 1:
            raise ValueError(f"sampling: expected one request, got {sampling.batch}")
        self._check_tokens(token_ids)
        values = {
            f.name: getattr(sampling, f.name).to(self._target.device) for f in fields(sampling)
        }
        self._target.cache.reserve(request, len(token_ids))
        try:
            self._target.prefill(request, list(token_ids[:-1]))
        except BaseException:
            self._target.cache.free(request)
            raise
        self._requests[request] = _Request(list(token_ids), SamplingParams(**values))

    def verify(self, request: int, tree: HostTree) -> tuple[list[int], list[int]]:
        """Run one tree, commit what its rule accepts, and return it.

        Returns:
            The committed tokens, accepted drafts and then the one extra token; and the accepted
            nodes, in order of depth.

        Raises:
            KeyError: `request` is not alive.
            ValueError: the tree is invalid, its root is not the last committed token, or it does
                not fit into ``target.max_length``.
            CacheFullError: too few pages are free.
            InvalidLogitsError: the target's logits were not numbers.
        """
        state = self._state(request)
        length = len(state.token_ids)
        if tree.token_ids[:1] != (state.token_ids[-1],):
            raise ValueError(
                f"tree: expected the last committed token {state.token_ids[-1]} at the root, "
                f"got {tree.token_ids[0] if tree.token_ids else 'no nodes'}"
            )
        slots = length - 1 + len(tree.token_ids)
        if slots > self._target.max_length:
            raise ValueError(
                f"tree: expected at most {self._target.max_length - length + 1} nodes after "
                f"{length - 1} tokens of context, got {len(tree.token_ids)}"
            )
        self._check_tokens(tree.token_ids)
        device = self._target.device
        batch = DraftTree.build([(tree.token_ids, tree.parents)], device)
        rule: Rule = "match" if tree.expansions is None else "rejection"
        draws = None
        if tree.expansions is not None:
            draws = Draws.build([tree.expansions], batch, tree.replacement)
        cache = self._target.cache
        cache.reserve(request, slots)
        page_table = cache.page_table([request])
        context_lens = torch.tensor([length - 1], dtype=torch.int32).to(device)
        logits = self._target.logits(batch, context_lens, page_table)
        positions = torch.tensor([length]).to(device)
        result = verify_tree(batch, logits, state.sampling, positions, rule=rule, draft=draws)
        # Before the result is read: the moves need no word from the host.
        cache.compact(result.accepted_nodes, result.num_accepted, context_lens, page_table)
        parts = (result.status, result.num_accepted, result.accepted_nodes[0], result.token_ids[0])
        status, num_accepted, *rest = torch.cat(parts).tolist()
        if status != 0:
            raise InvalidLogitsError(
                f"request {request}: the target's logits after {length + num_accepted} tokens "
                "hold NaN or infinity, or overflow when divided by the temperature"
            )
        tokens = rest[batch.max_depth :][: num_accepted + 1]
        state.token_ids += tokens
        return tokens, rest[:num_accepted]

    def finish(self, request: int) -> None:
        """Give the pages of `request` back; nothing if it is not alive (its start has failed)."""
        if self._requests.pop(request, None) is not None:
            self._target.cache.free(request)

    def length(self, request: int) -> int:
        """Committed tokens of `request`, prompt included."""
        return len(self._state(request).token_ids)

    def _state(self, request: int) -> _Request:
        if request not in self._requests:
            raise KeyError(f"request {request}: never started, or finished already")
        return self._requests[request]

    def _check_tokens(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            if not 0 <= token < self._target.vocab_size:
                raise ValueError(
                    f"token_ids: expected 0..{self._target.vocab_size - 1}, got {token}"
                )
