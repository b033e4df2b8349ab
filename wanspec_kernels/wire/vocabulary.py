"""A tokenizer's vocabulary: its fingerprint, and where its ids end."""

from collections.abc import Mapping
from hashlib import sha256
from struct import pack
from typing import Protocol


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of transformers and tokenizers have it."""

    def get_vocab(self) -> Mapping[str, int]: ...


def fingerprint(tokenizer: Tokenizer) -> bytes:
    """SHA-256 (32 bytes) of the vocabulary's (id, token) pairs, in order; added tokens included.

    A pair is hashed as id and length in bytes (little-endian u32 each), then the token in UTF-8.
    Merges and normalisation have no part in it: two sides only exchange ids.
    """
    digest = sha256()
    pairs = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
    for token_id, token in pairs:
        # A byte-level vocabulary may hold lone surrogates.
        encoded = token.encode("utf-8", "surrogatepass")
        digest.update(pack("<II", token_id, len(encoded)))
        digest.update(encoded)
    return digest.digest()


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest id, added tokens included: what lies past it is no token.

    A model may have rows for more ids, as padding, or for fewer. The number of tokens would be too
    small, as some vocabularies leave ids out.

    >>> from types import SimpleNamespace
    >>> vocabulary_size(SimpleNamespace(get_vocab=lambda: {"a": 0, "<end>": 7}))
    8
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def format_fingerprint(vocabulary: bytes) -> str:
    """The first 8 bytes in hexadecimal, for messages; compare the whole.

    >>> format_fingerprint(bytes(range(32)))
    '0001020304050607'
    """
    return vocabulary[:8].hex()
