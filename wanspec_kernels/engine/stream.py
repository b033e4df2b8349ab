"""Stream: the tokens of one request as they are committed."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from wanspec_kernels.engine.plan import LogProbs
from wanspec_kernels.engine.sequence import FinishReason, Sequence
from wanspec_kernels.engine.statistics import Statistics


class PassFailedError(RuntimeError):
    """The target's pass raised, or its logits were no numbers; what was committed before stands."""


@dataclass(frozen=True, slots=True)
class Token:
    token_id: int
    source: int | None  # who drafted it: 0 home, a remote's number, or None: the target's own
    logprobs: LogProbs | None = None


class Stream:
    """``async for token in stream`` ends with the request; `finish_reason` says why.

    Raises:
        PassFailedError: from the loop, if the target failed.
    """

    def __init__(self, sequence: Sequence, cancel: Callable[[int], None]) -> None:
        self.number = sequence.number
        self.finish_reason: FinishReason | None = None
        self._sequence = sequence
        self._cancel = cancel
        self._tokens: deque[Token] = deque()  # at most what the request may decode
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    @property
    def statistics(self) -> Statistics:
        return self._sequence.statistics

    def cancel(self) -> None:
        """End the request; nothing if it has ended."""
        if self.finish_reason is None:
            self._cancel(self.number)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Token:
        while not self._tokens:
            if self.finish_reason == "failed":
                raise PassFailedError("the target's pass failed") from self._error
            if self.finish_reason is not None:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._tokens.popleft()

    def put(self, token: Token) -> None:
        """For the engine."""
        self._tokens.append(token)
        self._news.set()

    def end(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """For the engine."""
        self.finish_reason, self._error = reason, error
        self._news.set()
