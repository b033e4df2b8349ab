"""What the verifier asks of a target model and of a drafter at home.

Both may block: a worker thread of its own calls each, one call at a time.
"""

from collections.abc import Sequence
from typing import Protocol

from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import Draft, Open


class TargetModel(Protocol):
    def start(self, request: int, token_ids: Sequence[int], sampling: SamplingParams) -> None:
        """Take up a request: `token_ids` is its prompt, `sampling` a batch of one."""
        ...

    def verify(self, request: int, tree: HostTree) -> tuple[list[int], list[int]]:
        """One pass over a tree whose root is the last committed token.

        Returns the tokens to commit (accepted drafts, then the one extra token) and the accepted
        nodes' indices in the tree, from the root down.
        """
        ...

    def finish(self, request: int) -> None:
        """Forget the request; called once for every `start`, also when something failed."""
        ...


class HomeDrafter(Protocol):
    def open(self, request: Open) -> None:
        """Take up a request. Of a text too long for the wire, OPEN has the beginning only."""
        ...

    def draft(
        self, request: int, token_ids: Sequence[int], passes: int, known: Draft | None
    ) -> list[Draft]:
        """What `passes` draft passes add below the committed `token_ids` and on `known`."""
        ...

    def close(self, request: int) -> None: ...
