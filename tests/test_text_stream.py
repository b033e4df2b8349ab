"""Streamed text is the decoded text, also for tokens that split characters or hold blanks."""

import pytest
from transformers import AutoTokenizer

from wanspec_kernels.bundled import model_path
from wanspec_kernels.text_stream import TextStream

TEXTS = ["def f(x):\n    return x  # naïve — 日本語 🐍\u200d\n", "", "\t\n  a", "é" * 40]


class WordPieces:
    """Drops the blank before the first word, as SentencePiece decoders do."""

    words = ("▁a", "▁bc", "d", "▁", "▁e")

    def decode(self, token_ids, skip_special_tokens):
        return "".join(self.words[t] for t in token_ids).replace("▁", " ").removeprefix(" ")


@pytest.mark.parametrize("text", TEXTS)
def test_bytes(text):
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled:target"))
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_blanks_between_words_stay():
    stream = TextStream(WordPieces())
    token_ids = [0, 1, 2, 3, 4, 0, 4]
    assert "".join(map(stream.push, token_ids)) == WordPieces().decode(token_ids, True)


def test_bytes_that_are_no_character_are_not_held_for_ever():
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled:target"))
    half = tokenizer("🐍")["input_ids"][:1]
    stream = TextStream(tokenizer)
    assert "\ufffd" in "".join(stream.push(token) for token in half * 20)
