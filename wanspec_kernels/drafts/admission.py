"""Admission: whether a message is read, judged by its key and size before any of it is decoded."""

from dataclasses import dataclass
from enum import StrEnum

from wanspec_kernels.wire import MAX_MESSAGE_BYTES, MAX_PLAIN_BYTES

# What libzmq's own thread spends on a message, to receive and decrypt it (bench/NOTES.md).
TRANSPORT_MS, TRANSPORT_MS_PER_BYTE = 0.004, 1e-6
MESSAGE_BURST_MS = 2000.0  # of the allowance that a key may save up
SHARE_BURST_MS = 1000.0  # the same of its time
ALL_BURST_MS = 50.0  # the same of everybody's time together
DUE = 0.75  # of everybody's time is due to keys in equal parts; refusing takes time too
FORGOTTEN_AFTER_MS = 10_000.0  # a key that is silent and has nothing against it
TIDY_MS = 1000.0
ANSWER_MS = 1000.0  # between two answers to a key in quarantine


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    # Of one key. A drafter sends a DRAFT a pass of its model, or several: of one request that it
    # expands 128 nodes of a pass, up to 900 a second.
    max_messages_per_s: float = 1000.0
    max_share: float = 0.05  # of a core, for what one key sends
    max_share_of_all: float = 0.10  # of a core, for what all keys send
    max_malformed: int = 8  # then a key is quarantined
    malformed_fade_ms: float = 60_000.0  # in which one of them is forgiven
    quarantine_ms: float = 60_000.0


class Refusal(StrEnum):
    """Why a message is dropped unread; also the name of its counter."""

    QUARANTINED = "in_quarantine"
    RATE = "over_rate"
    SHARE = "over_share"
    SIZE = "over_size"


class _Bucket:
    """What may be used now. It earns by the time, up to a burst's worth, and may go into debt."""

    __slots__ = ("_burst_ms", "_left", "_now")

    def __init__(self, rate: float, burst_ms: float, now: float) -> None:
        self._burst_ms, self._left, self._now = burst_ms, rate * burst_ms, now

    def left(self, rate: float, now: float) -> float:
        """`rate` is what it earns in a ms, since it was last looked at."""
        earned = rate * max(0.0, now - self._now)
        self._left, self._now = min(self._left + earned, rate * self._burst_ms), now
        return self._left

    def take(self, amount: float) -> None:
        self._left -= amount


@dataclass(slots=True)
class _Account:
    """Of one key."""

    messages: _Bucket
    time: _Bucket  # ms of a core, at most so many
    due: _Bucket  # the same, that it may use whatever others do
    heard_ms: float
    malformed: float = 0.0  # fading
    malformed_ms: float = 0.0  # when it was counted
    quarantined_until_ms: float = float("-inf")
    reason: str = ""
    answered_ms: float = float("-inf")


class Admission:
    """Messages' keys and sizes in, verdicts out; `now` is any clock in ms that does not go back.

    Everything is held by key, across connections and sessions. Keys are those that were let in, so
    there are as many accounts as drafters enrolled at most. Who `judge`s tells afterwards by
    `spent` what the message took, read or not.

    Time is shared fairly: each key that is heard is due an equal part of what all may take, and
    may take more, up to its own bound, while all together take less than that.
    """

    def __init__(self, config: AdmissionConfig, now: float) -> None:
        self.config = config
        self.max_bytes = MAX_PLAIN_BYTES  # a larger message is of no use at present
        self._accounts: dict[str, _Account] = {}
        self._time = _Bucket(config.max_share_of_all, ALL_BURST_MS, now)
        self._num_active = 0
        self._tidied_ms = now

    def __len__(self) -> int:
        """Accounts held."""
        return len(self._accounts)

    def judge(self, key: str, num_bytes: int, now: float) -> Refusal | None:
        """None: read it."""
        account = self._account(key, now)
        account.heard_ms = now
        if self.is_quarantined(key, now):
            return Refusal.QUARANTINED
        # What is larger than any message is told so, by whoever decodes it, and counts against it.
        if self.max_bytes < num_bytes <= MAX_MESSAGE_BYTES:
            return Refusal.SIZE
        if account.messages.left(self.config.max_messages_per_s / 1000, now) < 1:
            return Refusal.RATE
        share = self.config.max_share_of_all
        is_busy = self._time.left(share, now) < share * ALL_BURST_MS / 2
        over_due = account.due.left(self._due_share, now) <= 0
        if account.time.left(self.config.max_share, now) <= 0 or (is_busy and over_due):
            return Refusal.SHARE
        account.messages.take(1)
        return None

    def spent(self, key: str, cpu_ms: float, num_bytes: int, now: float, *, read: bool) -> None:
        """What a message took of our thread; its transport is added."""
        ms = cpu_ms + TRANSPORT_MS + TRANSPORT_MS_PER_BYTE * num_bytes
        self.worked(ms, now)
        if read:
            account = self._account(key, now)
            account.time.left(self.config.max_share, now)
            account.time.take(ms)
            account.due.left(self._due_share, now)
            account.due.take(ms)

    def worked(self, ms: float, now: float) -> None:
        """Time that receiving took and no one message did."""
        self._time.left(self.config.max_share_of_all, now)
        self._time.take(ms)

    def rest_ms(self, now: float) -> float:
        """How long to receive nothing, so that receiving stays within everybody's share."""
        share = self.config.max_share_of_all
        return max(0.0, -self._time.left(share, now) / share)

    def malformed(self, key: str, now: float) -> bool:
        """Count a message that is none, or not a drafter's; whether it was one too many."""
        account = self._account(key, now)
        faded = (now - account.malformed_ms) / self.config.malformed_fade_ms
        account.malformed = max(0.0, account.malformed - faded) + 1
        account.malformed_ms = now
        return account.malformed > self.config.max_malformed - 1

    def quarantine(self, key: str, reason: str, now: float) -> None:
        """Nothing of this key is read for a while."""
        account = self._account(key, now)
        account.quarantined_until_ms = now + self.config.quarantine_ms
        account.reason, account.malformed = reason, 0.0

    def is_quarantined(self, key: str, now: float) -> bool:
        return now < self._account(key, now).quarantined_until_ms

    def answer(self, key: str, now: float) -> str | None:
        """What to say to a key in quarantine that goes on sending; None: nothing, too soon."""
        account = self._account(key, now)
        if now - account.answered_ms < ANSWER_MS:
            return None
        account.answered_ms = now
        left_s = (account.quarantined_until_ms - now) / 1000
        return f"quarantined for {left_s:.0f} s more: {account.reason}"

    @property
    def _due_share(self) -> float:
        return DUE * self.config.max_share_of_all / max(1, self._num_active)

    def _account(self, key: str, now: float) -> _Account:
        if now - self._tidied_ms >= TIDY_MS:
            self._tidy(now)
        account = self._accounts.get(key)
        if account is None:
            self._num_active += 1
            account = self._accounts[key] = _Account(
                _Bucket(self.config.max_messages_per_s / 1000, MESSAGE_BURST_MS, now),
                _Bucket(self.config.max_share, SHARE_BURST_MS, now),
                _Bucket(self._due_share, SHARE_BURST_MS, now),
                now,
            )
        return account

    def _tidy(self, now: float) -> None:
        self._tidied_ms = now
        for key, account in list(self._accounts.items()):
            faded = now - account.malformed_ms >= account.malformed * self.config.malformed_fade_ms
            served = now >= account.quarantined_until_ms
            if served and faded and now - account.heard_ms >= FORGOTTEN_AFTER_MS:
                del self._accounts[key]
        self._num_active = sum(
            now >= account.quarantined_until_ms and now - account.heard_ms < FORGOTTEN_AFTER_MS
            for account in self._accounts.values()
        )
