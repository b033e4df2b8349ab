"""A text ends before its stop string, wherever tokens, passes and characters are cut."""

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_text_stream import KINDS, texts, tokenizer_of
from wanspec_kernels.engine.output_text import OutputText
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.engine.stops import StopStrings
from wanspec_kernels.engine.stream import Stream, Token
from wanspec_kernels.text_stream import REPLACEMENT

stop_strings = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


def until_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """By looking at every beginning of the text."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text("abc", max_size=5), max_size=8), stop_strings)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    matcher, shown = StopStrings(stops), ""
    expected, is_found = until_stop("".join(pieces), stops)
    for i, piece in enumerate(pieces, 1):
        shown += matcher.push(piece)
        begun = "".join(pieces[:i])
        so_far, found = until_stop(begun, stops)
        assert matcher.is_found == found
        # No more is held back than may be the beginning of a stop string.
        held = so_far.removeprefix(shown) if so_far.startswith(shown) else None
        assert held is not None
        assert held == "" or any(len(held) < len(s) and s.startswith(held) for s in stops)
    assert shown + matcher.flush() == expected
    assert matcher.is_found == is_found


async def delivered(stream: Stream) -> list[Token]:
    return [token async for token in stream]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(text=texts, random=st.randoms(use_true_random=False))
def test_texts_cut_into_tokens_and_passes(kind: str, text: str, random: Random) -> None:
    tokenizer = tokenizer_of(kind)
    token_ids = tokenizer(text)["input_ids"]
    token_ids = token_ids[: len(token_ids) - random.choice((0, 0, 0, 1, 2))]
    whole = tokenizer.decode(token_ids, skip_special_tokens=True)
    stops = ["zzz", "the end of it"]
    for _ in range(random.randrange(3)):
        begin = random.randrange(len(whole) + 1)
        stops += filter(None, [whole[begin : begin + random.randint(1, 6)]])
    stream = Stream(1, Statistics(), lambda _: None, OutputText(tokenizer, stops))
    left, is_stopped = [Token(token_id, None) for token_id in token_ids], False
    while left and not is_stopped:
        count = random.randint(1, 5)
        is_stopped = stream.put(left[:count])
        left = left[count:]
    stream.end("stop" if is_stopped else "length")
    tokens = asyncio.run(delivered(stream))
    expected, has_stop = until_stop(whole, stops)
    assert "".join(token.text or "" for token in tokens) == expected
    assert stream.finish_reason == ("stop" if has_stop else "length")
    given = [token.token_id for token in tokens]
    assert given == token_ids[: len(given)]
    # Not one token comes after the one that completes the string.
    before = tokenizer.decode(given[:-1], skip_special_tokens=True)
    # The end of it may be half a character, and single bytes are no text before they end.
    before = before.removesuffix(REPLACEMENT)
    assert not has_stop or kind != "byte-level" or not until_stop(before, stops)[1]
    assert has_stop or given == token_ids
