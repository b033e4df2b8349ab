"""PagedKVCache: the pages of all layers, and the requests that own them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wanspec_kernels.kv_cache import operators
from wanspec_kernels.tree import DraftTree


class CacheFullError(RuntimeError):
    """No pages are left for what was asked; nothing has been reserved."""


class PagedKVCache:
    """Key and value pages, [num_layers, num_pages, page_size, num_kv_heads, head_dim] each.

    A request owns whole pages. Its slot s is row ``s % page_size`` of its page ``s // page_size``.
    The bookkeeping is on the host; pages that change hands are not cleared.

    >>> cache = PagedKVCache(1, 4, 16, 2, 8)
    >>> cache.reserve(7, 20)
    >>> cache.page_table([7]).tolist()
    [[0, 1]]
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, num_pages, page_size, num_kv_heads, head_dim)
        if min(shape) < 1:
            raise ValueError(f"PagedKVCache: expected positive sizes, got {list(shape)}")
        # Zeros, not what the memory held: a NaN there would survive a weight of 0.
        self.k_pages = torch.zeros(shape, dtype=dtype, device=device)
        self.v_pages = torch.zeros(shape, dtype=dtype, device=device)
        self._free = list(range(num_pages - 1, -1, -1))
        self._owned: dict[int, list[int]] = {}

    @property
    def num_pages(self) -> int:
        return self.k_pages.shape[1]

    @property
    def page_size(self) -> int:
        return self.k_pages.shape[2]

    @property
    def num_free_pages(self) -> int:
        return len(self._free)

    def reserve(self, request: int, num_slots: int) -> None:
        """See to it that `request` owns at least `num_slots` slots; it keeps those it has.

        Raises:
            CacheFullError: too few pages are free.
        """
        owned = self._owned.get(request, [])
        needed = -(-num_slots // self.page_size) - len(owned)
        if needed > len(self._free):
            raise CacheFullError(
                f"request {request}: {num_slots} slots need {needed} more pages of "
                f"{self.page_size} slots, {len(self._free)} of {self.num_pages} are free"
            )
        self._owned[request] = owned + [self._free.pop() for _ in range(needed)]

    def free(self, request: int) -> None:
        """Give the pages of `request` back.

        Raises:
            KeyError: it owns none, or has been freed already.
        """
        self._free += reversed(self._pages_of(request))
        del self._owned[request]

    def capacity(self, request: int) -> int:
        """Slots that `request` owns."""
        return len(self._pages_of(request)) * self.page_size

    def page_table(self, requests: Sequence[int], max_pages: int | None = None) -> Tensor:
        """[len(requests), max_pages] int32 on the cache's device, -1 past a request's last page.

        `max_pages` is the largest count among `requests` unless given (a captured graph has one
        width).
        """
        owned = [self._pages_of(request) for request in requests]
        widest = max(map(len, owned), default=0)
        width = widest if max_pages is None else max_pages
        if widest > width:
            raise ValueError(f"max_pages: expected at least {widest}, got {width}")
        rows = [pages + [-1] * (width - len(pages)) for pages in owned]
        table = torch.tensor(rows, dtype=torch.int32).view(len(rows), width)
        return table.to(self.k_pages.device)

    def write(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        tree: DraftTree,
        context_lens: Tensor,
        page_table: Tensor,
        backend: str = "auto",
    ) -> None:
        """`operators.write` into one layer's pages."""
        k_pages, v_pages = self.k_pages[layer], self.v_pages[layer]
        operators.write(
            k_pages, v_pages, keys, values, tree, context_lens, page_table, backend=backend
        )

    def compact(
        self,
        accepted_nodes: Tensor,
        num_accepted: Tensor,
        context_lens: Tensor,
        page_table: Tensor,
        backend: str = "auto",
    ) -> None:
        """`operators.compact` of all layers."""
        operators.compact(
            self.k_pages,
            self.v_pages,
            accepted_nodes,
            num_accepted,
            context_lens,
            page_table,
            backend=backend,
        )

    def _pages_of(self, request: int) -> list[int]:
        if request not in self._owned:
            raise KeyError(f"request {request}: owns no pages (never reserved, or freed already)")
        return self._owned[request]
