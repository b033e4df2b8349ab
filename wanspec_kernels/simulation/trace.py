"""Trace: what a draft model says along a target's texts, and beside them.

A trace is a .npz file of the arrays below and a JSON text about how it was made; it holds no logits
and can be read without either model. Probabilities are codes of `confidence`.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

FORMAT = "wanspec trace 1"
NUM_TOP = 16  # probabilities kept of each distribution
BEYOND = 255  # rank of a token that is not among them

_ARRAYS = {
    "text_indptr": (np.int32, 1),
    "token_ids": (np.int32, 1),
    "ranks": (np.uint8, 1),
    "codes": (np.uint8, 2),
    "entropies": (np.float16, 1),
    "off_depths": (np.uint8, 1),
    "off_codes": (np.uint8, 2),
    "off_entropies": (np.float16, 1),
}


class TraceError(ValueError):
    """A file is no trace, or not of this format; says what was expected and what came."""


@dataclass(frozen=True)
class Trace:
    """Texts of a target, position by position, and draft distributions on and off their path."""

    text_indptr: NDArray[np.int32]  # [texts + 1], text t has positions indptr[t]:indptr[t + 1]
    token_ids: NDArray[np.int32]  # [positions], what the target said there
    ranks: NDArray[np.uint8]  # [positions], of that token under the draft, 0 the likeliest
    codes: NDArray[np.uint8]  # [positions, NUM_TOP], the draft's probabilities, falling
    entropies: NDArray[np.float16]  # [positions], bits, of the draft's whole distribution
    off_depths: NDArray[np.uint8]  # [off], tokens since the path was left
    off_codes: NDArray[np.uint8]  # [off, NUM_TOP]
    off_entropies: NDArray[np.float16]  # [off]
    about: dict[str, Any]  # vocab_size, and how it was made

    def __post_init__(self) -> None:
        for name, (kind, dimensions) in _ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != kind or array.ndim != dimensions:
                raise TraceError(
                    f"{name}: expected {dimensions} dimensions of {np.dtype(kind)}, got "
                    f"{array.ndim} of {array.dtype}"
                )
        positions, off = len(self.token_ids), len(self.off_depths)
        shapes = {
            "ranks": (positions,),
            "codes": (positions, NUM_TOP),
            "entropies": (positions,),
            "off_codes": (off, NUM_TOP),
            "off_entropies": (off,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise TraceError(f"{name}: expected {shape}, got {getattr(self, name).shape}")
        steps = np.diff(self.text_indptr)
        if len(steps) < 1 or self.text_indptr[0] != 0 or self.text_indptr[-1] != positions:
            raise TraceError(f"text_indptr: expected 0..{positions}, got {self.text_indptr}")
        if (steps < 1).any() or not off:
            raise TraceError("expected texts of one position at least, and nodes off their path")
        if not int(self.about.get("vocab_size", 0)) > 0 or self.token_ids.min() < 0:
            raise TraceError("vocab_size: expected one above 0, and no token below")
        if self.token_ids.max() >= self.about["vocab_size"]:
            raise TraceError(f"token_ids: expected tokens below {self.about['vocab_size']}")

    @property
    def vocab_size(self) -> int:
        return int(self.about["vocab_size"])

    def top(self, count: int) -> float:
        """Share of positions at which the draft's first `count` tokens hold the target's."""
        return float((self.ranks < count).mean())

    def same_texts(self, other: "Trace") -> bool:
        """Are both of the same target's same texts?"""
        return (
            self.vocab_size == other.vocab_size
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.text_indptr, other.text_indptr)
        )

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        text = np.frombuffer(json.dumps(self.about | {"format": FORMAT}).encode(), np.uint8)
        with path.open("wb") as file:
            np.savez_compressed(file, about=text, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Raises OSError, or TraceError where the file is no trace."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(bytes(file["about"]).decode())
                arrays = {name: file[name] for name in _ARRAYS}
        # numpy also opens single arrays, which are no context, and archives that are torn.
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise TraceError(f"{path}: expected a trace, got another file: {error}") from None
        if not isinstance(about, dict):
            raise TraceError(f"{path}: expected a trace, got one without a description")
        if about.get("format") != FORMAT:
            raise TraceError(f"{path}: expected {FORMAT!r}, got {about.get('format')!r}")
        return cls(**arrays, about=about)
