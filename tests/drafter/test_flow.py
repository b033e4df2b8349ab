"""Flow over a link in virtual time: a delay, a bandwidth, and queues that may grow without end."""

from collections import deque
from itertools import count

import pytest

from drafter.flow import FIRST_WINDOW, MIN_WINDOW, Flow, FlowTimes
from wanspec_kernels.link_emulator import Direction

STEP_US = 4000  # of a drafter's pass
NODE_BYTES = 8
OFFSET_US = -7_000_000  # of the verifier's clock


class Wire:
    """Drafts and markers up, answers down; `hold` keeps answers back."""

    def __init__(self, round_trip_ms, mbit, jitter_ms=0.0):
        self.up = Direction(round_trip_ms / 2, jitter_ms, mbit, "up")
        self.down = Direction(round_trip_ms / 2, jitter_ms, None, "down")
        self.flow = Flow(round(1000 * round_trip_ms), OFFSET_US + round(500 * round_trip_ms))
        self.now_us = 0
        self.num_bytes = self.num_markers = 0
        self.waited_us = 0  # in queues, by the last draft
        self.hold = False
        self._least_us = round(500 * round_trip_ms)
        self._answers = deque()

    def run(self, seconds, nodes_a_pass=1000):
        """Bytes a second."""
        before, began = self.num_bytes, self.now_us
        while self.now_us < began + 1e6 * seconds:
            self.step(nodes_a_pass)
        return (self.num_bytes - before) / seconds

    def step(self, unsent):
        self.now_us += STEP_US
        while self._answers and self._answers[0][0] <= self.now_us and not self.hold:
            _, *answer = self._answers.popleft()
            self.flow.answered(*answer, self.now_us)
        nodes = min(self.flow.allowance(unsent, self.now_us), unsent)
        if nodes:
            size = NODE_BYTES * nodes
            self.num_bytes += size
            arrives_us = 1e6 * self.up.send(self.now_us / 1e6, size).arrival
            self.waited_us = arrives_us - self.now_us - self._least_us
            self.flow.sent(size, nodes, self.now_us)
        marks = self.flow.mark(self.now_us)
        if nodes < unsent:
            assert self.flow.next_us(unsent - nodes, self.now_us) > self.now_us
        if marks:
            self.num_markers += 1
            arrives_us = 1e6 * self.up.send(self.now_us / 1e6, 30).arrival
            back_us = 1e6 * self.down.send(arrives_us / 1e6, 30).arrival
            self._answers.append((back_us, self.now_us, OFFSET_US + round(arrives_us)))


@pytest.mark.parametrize("round_trip_ms", [5.0, 30.0, 150.0])
@pytest.mark.parametrize("mbit", [0.5, 2.0, 20.0])
def test_a_link_is_used_and_its_queue_stays_short(round_trip_ms, mbit):
    wire = Wire(round_trip_ms, mbit)
    wire.run(20.0)
    waits = []
    for _ in range(500):
        wire.step(1000)
        waits.append(wire.waited_us)
    rate = wire.run(20.0)
    wanted = 1000 * NODE_BYTES / STEP_US * 1e6
    assert rate >= 0.85 * min(mbit * 125e3, wanted)
    assert sorted(waits)[250] < 40_000


class Rated:
    """A drafter that brings so many bytes a second, and keeps two passes' worth while it waits."""

    def __init__(self, wire, bytes_per_s):
        self.wire = wire
        self.sent = []  # bytes, pass by pass
        self.most_waited_us = 0
        self._brings = bytes_per_s * STEP_US / 1e6 / NODE_BYTES
        self._unsent = 0.0

    def run(self, seconds):
        for _ in range(round(1e6 * seconds / STEP_US)):
            self._unsent = min(self._unsent, self._brings) + self._brings
            before = self.wire.num_bytes
            self.wire.step(int(self._unsent))
            self.sent.append(self.wire.num_bytes - before)
            self._unsent -= self.sent[-1] / NODE_BYTES
            self.most_waited_us = max(self.most_waited_us, self.wire.waited_us)

    def began_ms(self, bytes_per_s, passes=25):
        """When a tenth of a second began that carried nine tenths of so many."""
        enough = 0.9 * bytes_per_s * passes * STEP_US / 1e6
        starts = range(len(self.sent) - passes)
        return next(i for i in starts if sum(self.sent[i : i + passes]) >= enough) * STEP_US / 1e3


@pytest.mark.parametrize(
    ("round_trip_ms", "bytes_per_s", "most_ms"),
    [
        (20.0, 200e3, 10.0),
        # Some 100 kB on their way, and four times as much as a window: five doublings.
        (20.0, 5e6, 100.0),
        (150.0, 200e3, 150.0),
        (150.0, 5e6, 1000.0),
    ],
)
def test_a_wide_link_carries_all_that_is_offered_within_a_few_round_trips(
    round_trip_ms, bytes_per_s, most_ms
):
    drafter = Rated(Wire(round_trip_ms, 200.0), bytes_per_s)
    drafter.run(6.0)
    assert drafter.began_ms(bytes_per_s) <= most_ms
    assert sum(drafter.sent[-250:]) > 0.98 * bytes_per_s


@pytest.mark.parametrize("bytes_per_s", [200e3, 5e6])
@pytest.mark.parametrize(
    ("round_trip_ms", "mbit", "most_ms"),
    [
        # What the first window takes, whatever comes after it.
        (20.0, 2.0, 52.0),
        (5.0, 2.0, 60.0),
        (150.0, 2.0, 105.0),
        # A window is doubled once or twice before a queue that it made is heard of.
        (60.0, 20.0, 140.0),
    ],
)
def test_a_queue_ends_the_doubling(round_trip_ms, mbit, most_ms, bytes_per_s):
    drafter = Rated(Wire(round_trip_ms, mbit), bytes_per_s)
    drafter.run(2.0)
    assert drafter.most_waited_us <= 1000 * most_ms
    drafter.most_waited_us = 0
    drafter.run(2.0)
    assert drafter.most_waited_us < 75_000


def test_a_window_that_holds_nothing_back_stays_as_it_is():
    drafter = Rated(Wire(20.0, 200.0), 100e3)
    drafter.run(5.0)
    assert drafter.wire.flow.window == FIRST_WINDOW


def test_after_silence_the_window_doubles_again():
    wire = Wire(20.0, 10.0)
    wire.run(5.0)  # and a queue was seen
    wire.hold = True
    wire.run(5.0)
    assert wire.flow.window == MIN_WINDOW
    wire.hold = False
    wire.run(0.4)
    assert wire.run(0.4) > 0.85 * 1.25e6


def test_what_is_left_of_a_wide_link_is_not_taken():
    wire = Wire(30.0, 1000.0)
    assert wire.run(20.0, nodes_a_pass=50) == pytest.approx(50 * NODE_BYTES * 250, rel=0.01)


def test_jitter_is_no_queue():
    calm, jittery = (Wire(60.0, 100.0, jitter_ms=j) for j in (0.0, 8.0))
    assert jittery.run(30.0) > 0.5 * calm.run(30.0)


def test_a_cut_of_the_bandwidth_is_found_out():
    wire = Wire(30.0, 50.0)
    wire.run(10.0)
    wire.up.limit(1.0, wire.now_us / 1e6)
    wire.run(10.0)
    waits = []
    for _ in range(500):
        wire.step(1000)
        waits.append(wire.waited_us)
    assert sorted(waits)[250] < 40_000


def test_a_longer_way_is_believed_in_time():
    wire = Wire(10.0, 50.0)
    wire.run(10.0)
    wire.up = Direction(105.0, 0.0, 50.0, "up")
    wire.run(60.0)
    assert wire.run(10.0) > 1e6


def test_little_goes_where_nothing_is_answered_and_all_again_later():
    wire = Wire(20.0, 50.0)
    fast = wire.run(5.0)
    wire.hold = True
    wire.run(3.0)  # what the window still holds, and patience
    assert wire.run(20.0) < MIN_WINDOW
    assert wire.flow.window == MIN_WINDOW
    wire.hold = False
    wire.run(10.0)
    assert wire.run(5.0) > 0.5 * fast


def test_markers_are_few():
    wire = Wire(4.0, 50.0)
    wire.run(2.0)
    most = 2e6 / FlowTimes().marker_interval_us
    assert 0.5 * most < wire.num_markers <= most + 1


def test_answers_to_other_pings_say_nothing():
    flow = Flow(1, 0)
    for now_us in count(0, 1000):
        if now_us > 100_000:
            break
        flow.answered(now_us - 500, now_us, now_us)
    assert flow.room(0) == FIRST_WINDOW // 4 // NODE_BYTES  # the rest a little later
    flow.sent(4000, 500, 0)
    assert flow.room(0) == 0
    assert flow.room(1000) == FIRST_WINDOW // 4 // NODE_BYTES
    flow.sent(12_000, 1500, 1000)
    assert flow.room(90_000) == (FIRST_WINDOW - 16_000) // NODE_BYTES
    assert flow.mark(90_000)
    assert not flow.mark(110_000)  # nothing was sent since
    flow.answered(90_000, 100_000, 110_000)
    assert flow.room(110_000) == FIRST_WINDOW // 4 // NODE_BYTES


def drain(flow, unsent, until_us):
    """As an idle drafter with nothing to hear: what it sends of so many nodes, at each waking."""
    now_us, sent = 0, []
    while unsent and now_us < until_us:
        nodes = min(flow.allowance(unsent, now_us), unsent)
        if nodes:
            flow.sent(NODE_BYTES * nodes, nodes, now_us)
        flow.mark(now_us)
        unsent -= nodes
        sent.append((now_us, nodes))
        now_us = flow.next_us(unsent, now_us)
    return sent


@pytest.mark.parametrize("round_trip_ms", [1, 30, 150])
def test_an_idle_drafter_sends_a_window_within_a_round_trip_in_quarters(round_trip_ms):
    sent = drain(Flow(1000 * round_trip_ms, 0), FIRST_WINDOW // NODE_BYTES, 10**9)
    assert [nodes for _, nodes in sent] == [FIRST_WINDOW // 4 // NODE_BYTES] * 4
    assert sent[-1][0] <= 1000 * round_trip_ms


def test_an_idle_drafter_sleeps_while_its_window_is_full():
    sent = drain(Flow(30_000, 0), 10**6, 20_000_000)
    # The window in quarters and two or three markers; then for each that got lost, a little more.
    assert sum(nodes > 0 for _, nodes in sent) < 25
    assert len(sent) < 60
    assert sent[-1][0] > 15_000_000


@pytest.mark.parametrize("node_bytes", [40, 600])
def test_nodes_of_any_size_still_go_where_nothing_is_answered(node_bytes):
    """Under `rejection` a node comes with a distribution, which may exceed the least window."""
    flow, now_us, late = Flow(30_000, 0), 0, 0
    while now_us < 60_000_000:
        nodes = min(flow.allowance(1000, now_us), 1000)
        if nodes:
            flow.sent(node_bytes * nodes, nodes, now_us)
            late += now_us > 30_000_000
        flow.mark(now_us)
        before_us, now_us = now_us, flow.next_us(1000, now_us)
        assert now_us > before_us
    assert flow.window == MIN_WINDOW
    assert late > 5


def test_a_flow_in_a_world_ten_times_as_slow_sends_the_same():
    flows = [(1, Flow(30_000, 15_000)), (10, Flow(300_000, 150_000, FlowTimes().stretched(10.0)))]
    sent = [[], []]
    for now_us in range(30_000, 1_500_000, 3_000):
        for (factor, flow), nodes in zip(flows, sent, strict=True):
            nodes.append(flow.allowance(1000, factor * now_us))
            if nodes[-1]:
                flow.sent(8 * nodes[-1], nodes[-1], factor * now_us)
            if flow.mark(factor * now_us):
                # Each waits a little longer than the one before, up to 15 ms.
                late_us = min(now_us // 50, 15_000)
                peer_us = factor * (now_us + 15_000 + late_us)
                flow.answered(factor * now_us, peer_us, factor * (now_us + 30_000 + late_us))
    assert sum(sent[0]) > 1000
    assert sent[0] == sent[1]
