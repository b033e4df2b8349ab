"""TextStream: tokens as they come, text as it becomes readable."""

import re
from typing import Any

CONTEXT = 8  # tokens decoded again with the next ones; a character has at most four
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token of one byte, where bytes stand in for words
REPLACEMENT = "\ufffd"  # bytes that are no character, or none yet


class TextStream:
    """Decodes a token at a time; a token may be a part of a character or of a word.

    What `push` returns, and `flush` at the end, is together what the tokenizer decodes of all
    tokens at once, special tokens left out. Text is held back as long as a token to come could
    change it, and no longer:

    - Where tokens are pieces of bytes, the last character, if it is U+FFFD: it may be the beginning
      of a character that goes on.
    - Where single bytes stand in for what has no token, a run of them: if it ends within a
      character, all its bytes come out as U+FFFD.

    A token is decoded together with a few before it, since many tokenizers drop the first blank.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is one of transformers."""
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._token_ids: list[int] = []
        self._num_shown = 0  # characters of what they decode to
        self.is_holding = False  # Text of these tokens was not returned yet.

    def push(self, token_id: int) -> str:
        """The text that this token makes readable; may be empty."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None or token_id in self._special:
            return ""
        self._token_ids.append(token_id)
        if BYTE.fullmatch(token):
            self.is_holding = True
            return ""
        text = self._decode()
        new = text[self._num_shown : _settled(text)]
        self.is_holding = _settled(text) < len(text)
        self._num_shown += len(new)
        if len(self._token_ids) > 2 * CONTEXT:
            # The bytes that the last character may be waiting for are still decoded with it.
            self._token_ids = self._token_ids[-CONTEXT:]
            self._num_shown = _settled(self._decode())
        return new

    def flush(self) -> str:
        """What was held back, now that the text has ended. The next token begins another text."""
        new = self._decode()[self._num_shown :]
        self._token_ids, self._num_shown, self.is_holding = [], 0, False
        return new

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
        return text


def _settled(text: str) -> int:
    """Characters of a decoded text that no further token can change."""
    return len(text) - text.endswith(REPLACEMENT)
