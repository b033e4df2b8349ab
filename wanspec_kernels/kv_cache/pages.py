"""Who holds which page: lists and counts, no tensors."""


class CacheFullError(RuntimeError):
    """No pages are left for what was asked; nothing has been reserved."""


class PageAllocator:
    """The pages of each request, in order of its slots. Requests may share pages.

    A page is free when no request holds it. The methods raise as those of `PagedKVCache` do.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self._page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages  # of each page
        self._held: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def reserve(self, request: int, num_slots: int) -> None:
        held = self._held.get(request, ())
        needed = -(-num_slots // self._page_size) - len(held)
        self._require(request, num_slots, needed)
        pages = self._held.setdefault(request, [])
        for _ in range(needed):
            pages.append(self._take())

    def fork(self, request: int, new_request: int, num_slots: int) -> tuple[int, int] | None:
        """Let `new_request` hold the first `num_slots` slots of `request`.

        Returns:
            The page whose first slots are to be copied, and the page they go to; or None, if
            `num_slots` ends with a page.
        """
        held = self.pages_of(request)
        if new_request in self._held:
            raise ValueError(f"request {new_request}: expected a new one, it owns pages already")
        capacity = len(held) * self._page_size
        if not 0 <= num_slots <= capacity:
            raise ValueError(
                f"num_slots: expected 0..{capacity}, as request {request} owns, got {num_slots}"
            )
        whole, rest = divmod(num_slots, self._page_size)
        self._require(new_request, num_slots, 1 if rest else 0)
        shared = held[:whole]
        for page in shared:
            self._holders[page] += 1
        self._held[new_request] = shared
        if not rest:
            return None
        copy = self._take()
        shared.append(copy)
        return held[whole], copy

    def free(self, request: int) -> None:
        for page in reversed(self.pages_of(request)):
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
        del self._held[request]

    def pages_of(self, request: int) -> list[int]:
        """Not to be changed by the caller."""
        if request not in self._held:
            raise KeyError(f"request {request}: owns no pages (never reserved, or freed already)")
        return self._held[request]

    def _take(self) -> int:
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def _require(self, request: int, num_slots: int, needed: int) -> None:
        if needed > len(self._free):
            raise CacheFullError(
                f"request {request}: {num_slots} slots need {needed} more pages of "
                f"{self._page_size} slots, {len(self._free)} of {len(self._holders)} are free"
            )
