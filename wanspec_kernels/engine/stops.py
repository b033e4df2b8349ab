"""StopStrings: finds the first of several strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """The first is the one that is complete first; of those that end together, the longest.

    Where the text is cut into pieces makes no difference. Text is held back while it may be the
    beginning of one of the strings, and no longer.

    >>> stops = StopStrings(["END"])
    >>> stops.push("the E"), stops.push("NDs")
    ('the ', '')
    >>> stops.is_found
    True
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """None of them is empty. Without any, nothing is ever held back."""
        self._strings = tuple(strings)
        self._held = ""
        self.is_found = False

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def push(self, text: str) -> str:
        """What is settled now: text before any of the strings. Nothing once one is found."""
        if self.is_found:
            return ""
        text = self._held + text
        found = [(at + len(s), at) for s in self._strings if (at := text.find(s)) >= 0]
        if found:
            self.is_found, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, s) for s in self._strings), default=0)
        settled = len(text) - held
        self._held = text[settled:]
        return text[:settled]

    def flush(self) -> str:
        """What was held back, now that the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Characters at the end of `text` that `string` begins with, but never all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
