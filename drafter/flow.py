"""Flow: how much may be on its way to the verifier. Bytes and clock readings in; no socket."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_WINDOW = 16 * 1024  # bytes
MIN_WINDOW = 512
MAX_WINDOW = 4 * 1024 * 1024
MAX_MARKERS = 16  # on their way at a time
RECENT = 3  # ways, of which the least counts: one may be late by jitter
LEAST_HOLDS_US = 30_000_000  # the least way is measured anew after so long: clocks drift
LOST_AFTER_US = 2_000_000  # a marker, beside twice the round trip
SLACK_SHARE = 0.5  # of the round trip, that drafts may wait on their way
FIRST_NODE_BYTES = 8.0
FRAME_US = 2_000  # a frame is read once all of it has arrived: a long one keeps its first drafts
MIN_FRAME_BYTES = 1200  # as a packet carries, or little less


@dataclass(frozen=True, slots=True)
class FlowTimes:
    marker_interval_us: int = 10_000  # between two markers, at least
    least_slack_us: int = 10_000  # These two bound what drafts may wait on their way.
    most_slack_us: int = 20_000

    def stretched(self, factor: float) -> FlowTimes:
        """For a world in which everything takes so many times as long."""
        return FlowTimes(
            int(factor * self.marker_interval_us),
            int(factor * self.least_slack_us),
            int(factor * self.most_slack_us),
        )


class Flow:
    """Keeps the queues of a link short: drafts wait at the drafter, where a commit prunes them.

    A marker, which is a PING, goes behind drafts; once it is answered, so much has arrived. The
    answer also says when, by the verifier's clock: how much later than at the earliest is the time
    that drafts spend in queues, however late the answer is read. The window of bytes on their way
    grows while that is little and the window is all that holds drafts back: it doubles every round
    trip until a queue is seen for the first time, and after that grows by a quarter. Else it
    shrinks by as much as the round trip has grown (as TCP Vegas: Brakmo and
    Peterson 1995, and FAST: Wei et al. 2006). Where it never is idle by itself, the link is left
    to empty now and then, as long as a marker with nothing before it takes (as BBR: Cardwell et al.
    2016): else what waits would come to be taken for the way.
    """

    def __init__(self, round_trip_us: int, way_us: int, times: FlowTimes | None = None) -> None:
        """Of what was said before the first draft; a way is from our clock to the verifier's."""
        self.window = FIRST_WINDOW
        self._times = times or FlowTimes()
        self._sent = self._arrived = 0  # bytes, of drafts
        self._node_bytes = FIRST_NODE_BYTES
        self._markers: dict[int, int] = {}  # by clock reading: bytes sent before
        self._sent_us = self._marked_us = -LEAST_HOLDS_US  # long ago
        self._is_limit = False  # the window has held drafts back
        self._is_starting = True  # no queue was seen yet
        self._recent: list[int] = []  # ways since the window was last adjusted
        self._adjusted_us = 0
        self._round_trip_us = max(1, round_trip_us)
        self._least_us = way_us
        self._least_since_us: int | None = None  # None: not while drafts went
        self._was_limit = False  # since then
        self._is_emptying = False
        self._alone_us = -1  # the marker with nothing before it

    def room(self, now_us: int) -> int:
        """Nodes that may be sent now."""
        self._forget_lost(now_us)
        if self._is_emptying:
            return 0
        # Spread over the round trip: all at once would wait for itself.
        share = (now_us - self._sent_us) / self._round_trip_us
        room = min(share * self.window, self._most_at_once, self._left)
        return max(0, int(room / self._node_bytes))

    @property
    def frame_bytes(self) -> int:
        """What drafts should share a frame: as much as the window carries in a short time."""
        return max(MIN_FRAME_BYTES, self.window * FRAME_US // self._round_trip_us)

    def allowance(self, unsent: int, now_us: int) -> int:
        """`room`, asked by who has so many nodes to send."""
        room = self.room(now_us)
        if room < unsent:
            self._is_limit = self._was_limit = True
        return room

    def next_us(self, unsent: int, now_us: int) -> int:
        """When to ask again, by who still has so many nodes to send and nothing else to do.

        By its pace the flow soon has room for all of them, or for as much as goes at once; for less
        nobody should wake, as every message has a head and repeats ancestors. Where only an answer
        makes room, a marker is due, or one will count as lost.
        """
        piece = min(unsent * self._node_bytes, self._most_at_once)
        at_us = min(self._markers, default=now_us) + self._patience_us + 1
        if not self._is_emptying:
            if self._left >= piece:
                at_us = self._sent_us + math.ceil(piece / self.window * self._round_trip_us) + 1
            elif self._may_mark:
                at_us = self._marked_us + math.ceil(self._interval_us)
        return max(now_us, at_us)

    def sent(self, num_bytes: int, num_nodes: int, now_us: int) -> None:
        """A DRAFT is on its way."""
        self._sent += num_bytes
        self._sent_us = now_us
        self._node_bytes += 0.1 * (num_bytes / max(1, num_nodes) - self._node_bytes)

    def mark(self, now_us: int) -> bool:
        """Whether it is time for a marker: then a PING with this clock reading has to follow."""
        if not self._wants_marker(now_us):
            return False
        if self._is_emptying and self._sent == self._arrived:
            self._alone_us = now_us
        self._markers[now_us] = self._sent
        self._marked_us = now_us
        return True

    def _wants_marker(self, now_us: int) -> bool:
        if self._is_emptying:
            return not self._markers
        return self._may_mark and now_us - self._marked_us >= self._interval_us

    @property
    def _may_mark(self) -> bool:
        """Once the last marker is long enough ago."""
        last = max(self._markers.values(), default=self._arrived)
        return self._sent > last and len(self._markers) < MAX_MARKERS

    @property
    def _most_at_once(self) -> float:
        return max(self.window / 4, MIN_WINDOW, self._node_bytes)

    @property
    def _left(self) -> float:
        """Of the window, in which there is room for a node at least."""
        return max(self.window, self._node_bytes) - (self._sent - self._arrived)

    @property
    def _interval_us(self) -> float:
        return max(self._times.marker_interval_us, self._round_trip_us / MAX_MARKERS)

    @property
    def _patience_us(self) -> int:
        return LOST_AFTER_US + 2 * self._round_trip_us

    def answered(self, clock_us: int, peer_clock_us: int, now_us: int) -> None:
        """A PONG came, of a marker or of any other PING."""
        if clock_us not in self._markers:
            return
        self._arrived = self._markers[clock_us]
        # Answers come in order: of those before, none will.
        self._markers = {c: sent for c, sent in self._markers.items() if c > clock_us}
        way_us = peer_clock_us - clock_us
        if self._least_since_us is None:
            self._least_since_us = now_us
        if way_us < self._least_us or clock_us == self._alone_us:
            self._least_us, self._least_since_us = way_us, now_us
            self._was_limit = self._is_emptying = False
        elif now_us - self._least_since_us > LEAST_HOLDS_US:
            self._is_emptying = self._was_limit
            if not self._was_limit:  # the link was empty between drafts
                self._least_us = min(*self._recent, way_us, way_us)
                self._least_since_us = now_us
        is_news = clock_us >= self._adjusted_us  # what was sent before says nothing of the window
        if self._is_emptying or not (is_news or self._is_starting):
            return
        self._recent.append(way_us)
        if self._is_starting and way_us - self._least_us <= self._slack_us:
            self._recent.clear()
            if self._is_limit and is_news:
                self._set_window(2 * self.window, now_us)
        elif len(self._recent) == RECENT:
            self._adjust(now_us)

    @property
    def _slack_us(self) -> float:
        slack_us = SLACK_SHARE * self._round_trip_us
        return min(max(slack_us, self._times.least_slack_us), self._times.most_slack_us)

    def _adjust(self, now_us: int) -> None:
        round_trip_us, slack, window = self._round_trip_us, self._slack_us, self.window
        queued = max(0, min(self._recent) - self._least_us)
        if queued > slack:
            window = int(window * (round_trip_us + slack) / (round_trip_us + queued))
            self._is_starting = False
        elif self._is_limit:
            window += window // 4
        self._set_window(window, now_us)

    def _set_window(self, window: int, now_us: int) -> None:
        self.window = min(max(window, MIN_WINDOW), MAX_WINDOW)
        self._is_limit = False
        self._recent.clear()
        self._adjusted_us = now_us

    def _forget_lost(self, now_us: int) -> None:
        """Where nothing is answered, little goes, but not nothing: a marker can get lost."""
        for clock_us, sent in list(self._markers.items()):
            if now_us - clock_us > self._patience_us:
                del self._markers[clock_us]
                self._arrived = max(self._arrived, sent)
                self.window = MIN_WINDOW
                self._is_emptying = False
                self._is_starting = True
