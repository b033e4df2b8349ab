"""Pages are shared by text, never written by two, and never lost."""

from random import Random

import pytest

from wanspec_kernels.engine.pages import PageBook

SIZE = 4


def test_requests_that_begin_alike_share_whole_pages() -> None:
    book = PageBook(8, SIZE)
    text = list(range(11))
    assert book.begin(1, text) == 0
    assert book.reserve(1, 11)
    book.written(1, text[:10])
    assert book.begin(2, [*text[:8], 99, 98]) == 8
    assert book.pages_of(2) == book.pages_of(1)[:2]
    assert book.begin(3, [*text[:4], 99, 98, 97, 96]) == 4
    assert book.begin(4, [7, *text]) == 0


def test_what_was_freed_is_found_until_its_page_is_lent_again() -> None:
    book = PageBook(4, SIZE)
    text = list(range(12))
    book.begin(1, text)
    assert book.reserve(1, 12)
    book.written(1, text)
    book.release(1)
    assert book.num_free == 4
    assert len(book.find(text)) == 3
    book.begin(2, [50])
    assert book.reserve(2, 2 * SIZE)  # the fourth page, then that of the end of the text
    assert len(book.find(text)) == 2
    assert book.begin(3, text) == 8
    assert not book.reserve(3, 12)
    book.release(2)
    assert book.reserve(3, 12)


def test_a_text_written_twice_is_indexed_once() -> None:
    book = PageBook(6, SIZE)
    text = list(range(8))
    for request in (1, 2):
        book.begin(request, text)
        assert book.reserve(request, 8)
    book.written(1, text)
    book.written(2, text)
    assert book.find(text) == list(book.pages_of(1))
    book.release(2)
    assert book.find(text) == list(book.pages_of(1))
    with pytest.raises(ValueError, match="holds some"):
        book.begin(1, text)


def test_pages_that_another_has_filled_meanwhile_take_the_place_of_ones_own() -> None:
    book = PageBook(6, SIZE)
    text = list(range(11))
    for request in (1, 2):
        assert book.begin(request, text) == 0
        assert book.reserve(request, 11)
    book.written(1, text[:9])
    assert book.num_free == 0
    assert book.adopt(2, text) == 8
    assert book.num_free == 2
    assert book.pages_of(2)[:2] == book.pages_of(1)[:2]
    assert book.pages_of(2)[2] != book.pages_of(1)[2]
    assert book.adopt(2, text) == 8
    book.release(1)
    assert book.num_free == 3


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_events_keeps_the_books(seed: int) -> None:
    """Nobody writes a page that another holds, and what is found holds the text it stands for."""
    rng = Random(seed)
    book = PageBook(12, SIZE)
    content: dict[int, tuple[int, ...]] = {}  # page: what its slots hold, and all before
    texts: dict[int, list[int]] = {}
    written: dict[int, int] = {}
    for number in range(400):
        kind = rng.random()
        if kind < 0.3 or not texts:
            text = [rng.choice((0, 0, 0, 1)) for _ in range(rng.randrange(1, 14))]
            found = book.begin(number, text)
            for i, page in enumerate(book.pages_of(number)):
                assert content[page] == tuple(text[: (i + 1) * SIZE])
            texts[number], written[number] = text, found
        elif kind < 0.85:
            request = rng.choice(list(texts))
            text = texts[request]
            text += [rng.randrange(2) for _ in range(rng.randrange(3))]
            before = book.pages_of(request)
            if not book.reserve(request, len(text)):
                assert book.pages_of(request) == before
                continue
            pages = book.pages_of(request)
            for slot in range(written[request], len(text)):
                page = pages[slot // SIZE]
                others = [r for r in texts if r != request and page in book.pages_of(r)]
                assert not others
                content[page] = tuple(text[: slot + 1])
            written[request] = len(text)
            book.written(request, text)
        elif kind < 0.92:
            request = rng.choice(list(texts))
            text = texts[request]
            count = len(book.pages_of(request))
            # Its text may have grown past its pages where these had run out.
            adopted = book.adopt(request, text[: count * SIZE])
            assert len(book.pages_of(request)) == count
            for i, page in enumerate(book.pages_of(request)[: adopted // SIZE]):
                assert content[page] == tuple(text[: (i + 1) * SIZE])
            written[request] = max(written[request], adopted)
        else:
            request = rng.choice(list(texts))
            book.release(request)
            del texts[request]
        held = {page for request in texts for page in book.pages_of(request)}
        assert book.num_free == 12 - len(held)
    for request in texts:
        book.release(request)
    assert book.num_free == 12
