"""The corpus: a CPython standard library as text, what is held out of it, and its tokenizer."""

from __future__ import annotations

import hashlib
import platform
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"  # id 0: ends every file
VOCAB_SIZE = 4096
MAX_POSITIONS = 2048

# Never trained on, and what every reported number is measured on. Their tests are kept out of
# training too, as they quote the modules; they choose the checkpoint instead.
HELD_OUT = (
    "bisect.py",
    "calendar.py",
    "colorsys.py",
    "fnmatch.py",
    "fractions.py",
    "graphlib.py",
    "heapq.py",
    "queue.py",
    "shlex.py",
    "statistics.py",
    "string.py",
    "textwrap.py",
)

SKIPPED_FOLDERS = ("site-packages", "encodings", "pydoc_data", "__pycache__", "lib2to3/tests/data")
# A number, an escape such as \x1f, or the punctuation between entries of a table.
TABLE_ENTRY = re.compile(r"0[xX][0-9a-fA-F]+|\\[xuU][0-9a-fA-F]+|[0-9]+|[,;]")

# A blank run with the indent that follows it is one piece, so a line break into a common indent
# is one token; a word takes the one blank or sign before it (" self", ".append", "_name").
PIECES = r"(?:[ \t]*\r?\n)+[ \t]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True)
class Corpus:
    """Files by name relative to the library's folder: `training`, `held_out`, `held_out_tests`."""

    training: dict[str, str]
    held_out: dict[str, str]
    held_out_tests: dict[str, str]
    python_version: str

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.training, self.held_out, self.held_out_tests):
            for name, text in part.items():
                digest.update(f"{name}\0{text}\0".encode())
        return digest.hexdigest()

    def held_out_lines_in_training(self) -> float:
        """Share of the held-out lines of at least 40 characters that training has verbatim."""
        seen = {line.strip() for text in self.training.values() for line in text.splitlines()}
        lines = [line.strip() for text in self.held_out.values() for line in text.splitlines()]
        long_lines = [line for line in lines if len(line) >= 40]
        return sum(line in seen for line in long_lines) / max(len(long_lines), 1)


def is_held_out_test(name: str) -> bool:
    modules = {held_out.removesuffix(".py") for held_out in HELD_OUT}
    parts = PurePosixPath(name.removesuffix(".py")).parts
    return parts[0] == "test" and any(part.removeprefix("test_") in modules for part in parts[1:])


def is_wanted(name: str, text: str) -> bool:
    if any(f"/{folder}/" in f"/{name}" for folder in SKIPPED_FOLDERS):
        return False
    if PurePosixPath(name).name.startswith("_sysconfigdata"):  # generated, names this machine
        return False
    solid = "".join(text.split())
    return len(solid) > 0 and 2 * len(TABLE_ENTRY.sub("", solid)) >= len(solid)


def read_sources(stdlib: Path) -> dict[str, bytes]:
    """Every .py file of a folder or a tar archive, by its name relative to the library's root."""
    if stdlib.is_dir():
        paths = sorted(stdlib.rglob("*.py"))
        return {path.relative_to(stdlib).as_posix(): path.read_bytes() for path in paths}
    with tarfile.open(stdlib) as archive:
        files = {
            member.name: handle.read()
            for member in archive
            if member.name.endswith(".py") and (handle := archive.extractfile(member))
        }
    roots = [name.removesuffix("heapq.py") for name in files if name.endswith("heapq.py")]
    if not roots:
        raise ValueError(f"{stdlib}: expected a standard library, found no heapq.py")
    root = min(roots, key=len)
    return {name.removeprefix(root): files[name] for name in sorted(files) if name.startswith(root)}


def load_corpus(stdlib: Path, limit_files: int | None = None) -> Corpus:
    """Selects the files of a library; `limit_files` keeps that many to train on, for a trial."""
    texts: dict[str, str] = {}
    seen: set[bytes] = set()
    for name, raw in read_sources(stdlib).items():
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if raw not in seen and is_wanted(name, text):
            seen.add(raw)
            texts[name] = text
    missing = set(HELD_OUT) - texts.keys()
    if missing:
        raise ValueError(f"{stdlib}: expected the held-out files, found no {sorted(missing)}")
    tests = {name: text for name, text in texts.items() if is_held_out_test(name)}
    names = [name for name in texts if name not in HELD_OUT and name not in tests]
    if limit_files:
        names = names[:: max(len(names) // limit_files, 1)][:limit_files]
    version = re.findall(r"\d+\.\d+\.\d+", str(stdlib.resolve()))
    return Corpus(
        training={name: texts[name] for name in names},
        held_out={name: texts[name] for name in HELD_OUT},
        held_out_tests=tests,
        python_version=version[-1] if version else platform.python_version(),
    )


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training files: any text comes back exactly, nothing is added to it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(PIECES), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.training.values(), trainer)
    wrapper: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def check_round_trip(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    for text in texts:
        token_ids = tokenizer(text)["input_ids"]
        if tokenizer.decode(token_ids, clean_up_tokenization_spaces=False) != text:
            raise ValueError(f"the tokenizer does not give back {text[:80]!r}")


def encode_files(tokenizer: PreTrainedTokenizerFast, files: dict[str, str]) -> torch.Tensor:
    """One int16 stream of all files, an end-of-text token before each and one at the end."""
    stream = [0]
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(files.values())):
        stream += [*encoding.ids, 0]
    return torch.tensor(stream, dtype=torch.int16)
