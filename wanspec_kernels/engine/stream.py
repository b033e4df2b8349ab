"""Stream: the tokens of one request as they are committed."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from wanspec_kernels.engine.events import FinishReason
from wanspec_kernels.engine.output_text import OutputText
from wanspec_kernels.engine.plan import LogProbs
from wanspec_kernels.engine.statistics import Statistics


class PassFailedError(RuntimeError):
    """The target's pass raised, or its logits were no numbers; what was committed before stands."""


@dataclass(frozen=True, slots=True)
class Token:
    token_id: int
    source: int | None  # who drafted it: 0 home, a remote's number, or None: the target's own
    logprobs: LogProbs | None = None  # if the request asks for them
    text: str | None = None  # that it settles, if the engine has a tokenizer; may be empty


class Stream:
    """``async for token in stream`` ends with the request; `finish_reason` says why.

    The texts of the tokens, put together, are the text of the request. It ends before a stop
    string, and the last token is the one that completes the string. A token whose text is not
    settled yet comes with the next one, or with the end.

    Raises:
        PassFailedError: from the loop, if the target failed.
    """

    def __init__(
        self,
        number: int,
        statistics: Statistics,
        cancel: Callable[[int], None],
        text: OutputText | None = None,
        source_names: Mapping[int, str] | None = None,
    ) -> None:
        self.number = number
        self.statistics = statistics
        self.source_names = {} if source_names is None else source_names  # of remotes asked so far
        self.finish_reason: FinishReason | None = None
        self._cancel = cancel
        self._text = text
        self._tokens: deque[Token] = deque()  # at most what the request may decode
        self._unsettled: Token | None = None  # the newest, if more text may belong to it
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """End the request; nothing if it has ended. Tokens that were delivered stay."""
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

    def put(self, tokens: Iterable[Token]) -> bool:
        """For the engine. True: one of them completes a stop string; those after it are dropped."""
        self._news.set()
        if self._text is None:
            self._tokens += tokens
            return False
        for token in tokens:
            self._settle()
            self._unsettled = replace(token, text=self._text.push(token.token_id))
            if self._text.is_stopped or not self._text.is_holding:
                self._settle()
            if self._text.is_stopped:
                return True
        return False

    def end(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """For the engine."""
        if self._text is not None and self._unsettled is not None:
            rest = (self._unsettled.text or "") + self._text.flush()
            self._unsettled = replace(self._unsettled, text=rest)
            if self._text.is_stopped:
                reason = "stop"
        self._settle()
        self.finish_reason, self._error = reason, error
        self._news.set()

    def _settle(self) -> None:
        if self._unsettled is not None:
            self._tokens.append(self._unsettled)
            self._unsettled = None
