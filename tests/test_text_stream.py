"""Streamed text is what one decode of all tokens gives, and comes out as early as it is certain."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.tiny_models import make_tiny_model
from wanspec_kernels.bundled import model_path
from wanspec_kernels.cli import app
from wanspec_kernels.engine.model import Target, TreeDecoder
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.text_stream import CONTEXT, REPLACEMENT, TextStream
from wanspec_kernels.tree import HostTree

CORPUS = [
    "def f(x):\n    return x  # naïve — 日本語 🐍\u200d the end, the time, a text",
    "日本語の文字 日本 मनीष किताब e\u0301e\u0301 ñ ��日 👩\u200d👩\u200d👧 the  the   tttt",
]
SPECIAL = ["<unk>", "<end>", "<pad>"]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<pad>"
    )


def byte_level(add_prefix_space: bool) -> Tokenizer:
    """As GPT-2's, Llama 3's and Qwen's: all bytes, and merges of them within characters too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["return", "  "])  # not special: they are text
    return tokenizer


def byte_fallback(decoder: decoders.Decoder) -> Tokenizer:
    """As Llama 2's: words, some characters, and single bytes for all other characters."""
    words = ["▁", "t", "h", "e", "x", ",", "▁t", "he", "▁the", "日", REPLACEMENT, "\u0301", "\n"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[("▁", "t"), ("h", "e"), ("▁t", "he")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


BLANKS, BYTES, FUSE = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(False),
    "byte-level, prefix": lambda: byte_level(True),
    "llama 2": lambda: byte_fallback(
        decoders.Sequence([BLANKS, BYTES, FUSE, decoders.Strip(" ", 1, 0)])
    ),
    "gemma": lambda: byte_fallback(decoders.Sequence([BLANKS, BYTES, FUSE])),
    "metaspace": lambda: byte_fallback(decoders.Sequence([BYTES, decoders.Metaspace()])),
}
EXAMPLES = [
    "def f(x):\n    return x  # naïve — 日本語 🐍\u200d\n",
    "",
    "\t\n  a",
    "é" * 40,
    "��日",
    "the end \ufffd",
    "\ufffd",
    "日本日",
    "e\u0301 👩\u200d👩\u200d👧",
]
texts = st.text(max_size=30) | st.text("the x,日本é🐍\u0301\ufffd \n\u200d", max_size=60)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return wrapped(KINDS[kind]())


def check(tokenizer: Any, token_ids: list[int]) -> None:
    """What is shown grows into the decoded text, and lacks only what is not certain yet."""
    stream, shown = TextStream(tokenizer), ""
    for i, token_id in enumerate(token_ids, 1):
        shown += stream.push(token_id)
        now = tokenizer.decode(token_ids[:i], skip_special_tokens=True)
        name = tokenizer.convert_ids_to_tokens(token_id)
        if not now.endswith(REPLACEMENT) and not name.startswith("<"):
            assert shown == now
        elif not name.startswith("<"):
            assert shown == now.removesuffix(REPLACEMENT)
    shown += stream.flush()
    assert shown == tokenizer.decode(token_ids, skip_special_tokens=True)
    assert stream.flush() == ""


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(text=texts, cut=st.integers(0, 12), random=st.randoms(use_true_random=False))
@example(text="\ufffd\ufffd日", cut=0, random=Random(0))
@example(text="the end \ufffd", cut=0, random=Random(0))
@example(text="日本本", cut=1, random=Random(0))
@example(text="x 🐍", cut=1, random=Random(1))
def test_of_a_text_that_may_end_within_a_character(
    kind: str, text: str, cut: int, random: Random
) -> None:
    tokenizer = tokenizer_of(kind)
    token_ids = tokenizer(text)["input_ids"]
    token_ids = token_ids[: len(token_ids) - cut]
    for _ in range(random.randrange(3)):  # special tokens, within characters too
        token_ids.insert(random.randint(0, len(token_ids)), random.randrange(len(SPECIAL)))
    check(tokenizer, token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_of_any_tokens_whatever(kind: str) -> None:
    """Also bytes that make no characters, and more tokens than are decoded together."""
    tokenizer, random = tokenizer_of(kind), Random(3)
    for _ in range(150):
        low = random.choice((0, 128, 256))
        check(tokenizer, [random.randrange(low, len(tokenizer)) for _ in range(3 * CONTEXT)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    check(tokenizer, tokenizer(text)["input_ids"])


@pytest.mark.parametrize("text", EXAMPLES)
def test_bundled_tokenizer(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled:target"))
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) + stream.flush() == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_what_comes_after_a_flush_is_another_text() -> None:
    tokenizer = tokenizer_of("llama 2")
    the, half = tokenizer("the")["input_ids"], tokenizer("é")["input_ids"][:-1]
    stream = TextStream(tokenizer)
    for _ in range(2):
        assert "".join(map(stream.push, the + half)) + stream.flush() == "the \ufffd"


class Counting:
    """Counts the tokens that it is asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.num_decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, token_ids: list[int], **options: Any) -> Any:
        self.num_decoded += len(token_ids)
        return self._tokenizer.decode(token_ids, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", ["the x", "日", "\ufffd", "🐍", "half"])
def test_a_token_costs_the_same_however_long_the_text_is(kind: str, piece: str) -> None:
    plain = tokenizer_of(kind)
    token_ids = plain("🐍")["input_ids"][-2:-1] if piece == "half" else plain(piece)["input_ids"]
    tokenizer = Counting(plain)
    stream = TextStream(tokenizer)
    for _ in range(500):
        for token_id in token_ids:
            stream.push(token_id)
    stream.flush()
    assert tokenizer.num_decoded <= 3 * CONTEXT * 500 * len(token_ids)


def test_generate_prints_a_text_to_its_end(tmp_path: Path) -> None:
    """Which lies within a character: the tiny model says bytes at random."""
    folder = make_tiny_model(tmp_path, seed=2)
    target = Target.load(str(folder), num_pages=40)
    prompt = target.tokenizer("once")["input_ids"]
    decoder = TreeDecoder(target)
    decoder.start(1, prompt, SamplingParams.build(1))
    text = list(prompt)
    decoded = ""
    while not decoded.endswith(REPLACEMENT):
        text += decoder.verify(1, HostTree((text[-1],), (-1,)))[0]
        decoded = target.tokenizer.decode(text[len(prompt) :], skip_special_tokens=True)
    options = ["--model", str(folder), "--home-draft", "", "--device", "cpu"]
    options += ["--max-tokens", str(len(text) - len(prompt))]
    done = CliRunner().invoke(app, ["generate", "once", *options])
    assert done.exit_code == 0, done.output
    assert done.stdout == decoded + "\n"
