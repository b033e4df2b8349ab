"""OutputText: the text of a request's tokens, up to the first of its stop strings."""

from collections.abc import Sequence
from typing import Any

from wanspec_kernels.engine.stops import StopStrings
from wanspec_kernels.text_stream import TextStream


class OutputText:
    """What `push` and `flush` return is together the text before the first stop string.

    A stop string may span several tokens, and tokens that are parts of a character. One that the
    prompt ends with, or begins, does not count.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokens = TextStream(tokenizer)
        self._stops = StopStrings(stop)

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_found

    @property
    def is_holding(self) -> bool:
        """Text is held back that tokens so far stand for."""
        return self._tokens.is_holding or self._stops.is_holding

    def push(self, token_id: int) -> str:
        """The text that this token settles; may be empty."""
        return self._stops.push(self._tokens.push(token_id))

    def flush(self) -> str:
        """What was held back, now that the tokens have ended; it may complete a stop string."""
        return self._stops.push(self._tokens.flush()) + self._stops.flush()
