"""PagedKVCache: the pages of all layers, and the requests that own them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wanspec_kernels.kv_cache import operators
from wanspec_kernels.kv_cache.pages import PageAllocator
from wanspec_kernels.tree import DraftTree


class PagedKVCache:
    """Key and value pages, [num_layers, num_pages, page_size, num_kv_heads, head_dim] each.

    A request owns whole pages. Its slot s is row ``s % page_size`` of its page ``s // page_size``.
    Requests that begin alike share pages by `fork`. The bookkeeping is on the host; pages that
    change hands are not cleared.

    >>> cache = PagedKVCache(1, 4, 16, 2, 8)
    >>> cache.reserve(7, 40)
    >>> cache.fork(7, 8, 20)
    >>> cache.page_table([7, 8]).tolist()
    [[0, 1, 2], [0, 3, -1]]
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
        self._pages = PageAllocator(num_pages, page_size)

    @property
    def num_pages(self) -> int:
        return self.k_pages.shape[1]

    @property
    def page_size(self) -> int:
        return self.k_pages.shape[2]

    @property
    def num_free_pages(self) -> int:
        return self._pages.num_free

    def reserve(self, request: int, num_slots: int) -> None:
        """See to it that `request` owns at least `num_slots` slots; it keeps those it has.

        Raises:
            CacheFullError: too few pages are free.
        """
        self._pages.reserve(request, num_slots)

    def fork(self, request: int, new_request: int, num_slots: int) -> None:
        """Let `new_request` begin with the first `num_slots` slots of `request`.

        Whole pages are shared, and what the last one holds in part is copied. So each request may
        write its slots from `num_slots` on, and neither may write those before: `num_slots` is at
        most the context that `request` has committed. Either may be freed first.

        Raises:
            KeyError: `request` owns no pages.
            ValueError: `new_request` owns some, or `request` owns fewer slots.
            CacheFullError: no page is free for the copy.
        """
        copy = self._pages.fork(request, new_request, num_slots)
        if copy is not None:
            source, target = copy
            for pages in (self.k_pages, self.v_pages):
                pages[:, target] = pages[:, source]

    def free(self, request: int) -> None:
        """Give the pages of `request` back, but for those that another one shares.

        Raises:
            KeyError: it owns none, or has been freed already.
        """
        self._pages.free(request)

    def capacity(self, request: int) -> int:
        """Slots that `request` owns, shared ones included."""
        return len(self._pages.pages_of(request)) * self.page_size

    def page_table(self, requests: Sequence[int], max_pages: int | None = None) -> Tensor:
        """[len(requests), max_pages] int32 on the cache's device, -1 past a request's last page.

        `max_pages` is the largest count among `requests` unless given (a captured graph has one
        width).
        """
        owned = [self._pages.pages_of(request) for request in requests]
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
        *,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        """`operators.write` into one layer's pages."""
        operators.write(
            self.k_pages[layer],
            self.v_pages[layer],
            keys,
            values,
            tree,
            context_lens,
            page_table,
            k_scale=k_scale,
            v_scale=v_scale,
            backend=backend,
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
