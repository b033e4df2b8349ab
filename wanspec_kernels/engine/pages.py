"""PageBook: which request holds which page, and what text lies in pages that others may share."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Block:
    """A page of text in its place behind other text; the root of all has no page."""

    page: int
    above: "_Block | None" = None
    token_ids: tuple[int, ...] = ()
    below: dict[tuple[int, ...], "_Block"] = field(default_factory=dict)


@dataclass(slots=True)
class _Holding:
    pages: list[int]
    last: _Block | None  # of its indexed pages; None: no more of them are indexed
    num_indexed: int


class PageBook:
    """Pages on loan, counted on the host. A page is free when no request holds it.

    Requests that begin alike share pages: a page that is full of committed text is indexed by that
    text and all before it, token by token, so that a request which comes later finds it. A free
    page stays in the index until it is lent again; the one freed longest ago goes first. A page
    that several hold lies wholly below the text that each of them still writes.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"pages: expected some, got {num_pages} of {page_size} slots")
        self.num_pages, self.page_size = num_pages, page_size
        self._holders = [0] * num_pages
        self._blocks: dict[int, _Block] = {}  # by page, of those that are indexed
        self._root = _Block(-1)
        # In the order in which they are lent; a page's text goes after that which follows it.
        self._free: dict[int, None] = dict.fromkeys(range(num_pages))
        self._held: dict[int, _Holding] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def pages_needed(self, num_slots: int) -> int:
        return -(-num_slots // self.page_size)

    def pages_of(self, request: int) -> tuple[int, ...]:
        """In order of the request's slots; none if it holds none."""
        held = self._held.get(request)
        return () if held is None else tuple(held.pages)

    def find(self, token_ids: Sequence[int]) -> list[int]:
        """The pages that hold the beginning of a text, as far as it fills pages."""
        return [block.page for block in self._path(token_ids)]

    def num_idle(self, pages: Sequence[int]) -> int:
        """How many of these pages nobody holds."""
        return sum(not self._holders[page] for page in pages)

    def begin(self, request: int, token_ids: Sequence[int]) -> int:
        """Let a request hold what is there of its text; returns the slots that are written.

        Raises:
            ValueError: it holds pages already.
        """
        if request in self._held:
            raise ValueError(f"request {request}: expected one without pages, it holds some")
        path = self._path(token_ids)
        for block in path:
            self._hold(block.page)
        last = path[-1] if path else self._root
        self._held[request] = _Holding([block.page for block in path], last, len(path))
        return len(path) * self.page_size

    def reserve(self, request: int, num_slots: int) -> bool:
        """See to it that a request holds so many slots; False, and no change, if it cannot."""
        held = self._held[request]
        needed = self.pages_needed(num_slots) - len(held.pages)
        if needed > len(self._free):
            return False
        for _ in range(needed):
            held.pages.append(self._take())
        return True

    def written(self, request: int, token_ids: Sequence[int]) -> None:
        """The slots of this text hold its keys and values: index what fills pages of it."""
        held = self._held[request]
        while held.last is not None:
            start = held.num_indexed * self.page_size
            if start + self.page_size > len(token_ids):
                return
            text = tuple(token_ids[start : start + self.page_size])
            if text in held.last.below:  # Another request has written the same meanwhile.
                held.last = None
                return
            block = _Block(held.pages[held.num_indexed], held.last, text)
            held.last.below[text] = block
            self._blocks[block.page] = block
            held.last = block
            held.num_indexed += 1

    def adopt(self, request: int, token_ids: Sequence[int]) -> int:
        """Hold what others have written of this text meanwhile, in place of pages of its own.

        Returns the slots that hold the text from its beginning on, as far as pages are shared.
        """
        held = self._held[request]
        if held.last is not None:
            for block in self._path(token_ids, held.last, held.num_indexed):
                own = held.pages[held.num_indexed]
                self._hold(block.page)
                held.pages[held.num_indexed] = block.page
                self._give_back(own)
                held.last = block
                held.num_indexed += 1
        return held.num_indexed * self.page_size

    def release(self, request: int) -> None:
        """Take all pages of a request back; nothing if it holds none."""
        held = self._held.pop(request, None)
        if held is None:
            return
        # What lies deeper is freed, and so forgotten, first.
        for page in reversed(held.pages):
            self._give_back(page)

    def _path(
        self, token_ids: Sequence[int], block: _Block | None = None, depth: int = 0
    ) -> list[_Block]:
        """The blocks of a text below one of it, the root of all if none is given."""
        found: list[_Block] = []
        block = block or self._root
        begin = depth * self.page_size
        for start in range(begin, len(token_ids) - self.page_size + 1, self.page_size):
            below = block.below.get(tuple(token_ids[start : start + self.page_size]))
            if below is None:
                break
            found.append(below)
            block = below
        return found

    def _hold(self, page: int) -> None:
        self._free.pop(page, None)
        self._holders[page] += 1

    def _give_back(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free[page] = None

    def _take(self) -> int:
        page = next(iter(self._free))
        self._hold(page)
        block = self._blocks.pop(page, None)
        if block is not None:
            assert block.above is not None
            assert not block.below
            del block.above.below[block.token_ids]
        return page
