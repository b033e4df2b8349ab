"""TextStream: tokens as they come, text as it becomes readable."""

from typing import Any

MAX_HELD = 8  # tokens of one character; past that it is no character


class TextStream:
    """Decodes a token at a time; a token may be a part of a character or of a word.

    A token is decoded together with those before it, since some tokenizers drop a first blank; what
    ends within a character is held back until the rest has come.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._num_shown = 0

    def push(self, token_id: int) -> str:
        """The text that this token makes readable; may be empty."""
        self._token_ids.append(token_id)
        held = len(self._token_ids) - self._num_shown
        text: str = self._decode(self._token_ids)
        if text.endswith("\ufffd") and held < MAX_HELD:
            return ""
        new = text[len(self._decode(self._token_ids[: self._num_shown])) :]
        # What was shown last is context enough for the next.
        self._token_ids = self._token_ids[self._num_shown :]
        self._num_shown = len(self._token_ids)
        return new

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
