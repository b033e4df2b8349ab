"""What a key may cost, in virtual time."""

from pathlib import Path
from random import Random

import pytest

from wanspec_kernels.drafts.admission import Admission, AdmissionConfig, Refusal
from wanspec_kernels.wire import MAX_MESSAGE_BYTES, MAX_PLAIN_BYTES

CONFIG = AdmissionConfig()
DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


class Loop:
    """Receives by turns, as the endpoint does; each key sends as much as is taken."""

    def __init__(self, costs, config=CONFIG):
        self.costs = costs  # by key: ms that a message takes to read
        self.admission = Admission(config, 0.0)
        self.now = 0.0
        self.read = dict.fromkeys(costs, 0)  # ms
        self.messages = dict.fromkeys(costs, 0)
        self.busy = 0.0

    def run(self, seconds, sent_per_s=None):
        """A socket queues fairly by key; `sent_per_s` is what some keys send, others no end."""
        sent_per_s = sent_per_s or {}
        debts = dict.fromkeys(self.costs, 0.0)
        began, ends = self.now, self.now + 1000 * seconds
        while self.now < ends:
            for key, cost in self.costs.items():
                if self.messages[key] > sent_per_s.get(key, 1e9) * (self.now - began) / 1000:
                    continue
                refusal = self.admission.judge(key, 100, self.now)
                took = cost if refusal is None else 0.01
                if refusal is None:
                    self.read[key] += cost
                self.messages[key] += 1
                debts[key] += 1
                self.now += took
                self.busy += took
                self.admission.spent(key, took, 100, self.now, read=refusal is None)
                self.now += self.admission.rest_ms(self.now)
            self.now += 0.05


def test_a_rate_is_kept_and_saved_up_for_two_seconds():
    admission = Admission(CONFIG, 0.0)
    verdicts = [admission.judge("a", 20, 0.0) for _ in range(2500)]
    assert verdicts == [None] * 2000 + [Refusal.RATE] * 500
    verdicts = [admission.judge("a", 20, 100.0) for _ in range(200)]
    assert verdicts.count(None) == 100
    assert admission.judge("b", 20, 100.0) is None


@pytest.mark.parametrize("cost", [0.02, 0.1, 2.0, 7.0])
def test_one_key_gets_its_share_whatever_a_message_takes(cost):
    loop = Loop({"a": cost})
    loop.run(20)
    share = CONFIG.max_share if cost > 0.05 else cost * CONFIG.max_messages_per_s / 1000
    assert loop.read["a"] < 20_000 * share + 2 * 1000 * share + cost
    assert loop.read["a"] > 0.7 * 20_000 * share
    assert loop.busy < 20_000 * CONFIG.max_share_of_all + 5 + cost


def test_all_together_get_theirs_and_a_modest_key_is_always_read():
    random = Random(1)
    floods = {f"flood {i}": random.choice([0.02, 0.1, 2.0]) for i in range(20)}
    loop = Loop(floods | {"modest": 0.06})
    loop.run(20, {"modest": 40.0})
    assert loop.busy < 20_000 * CONFIG.max_share_of_all + 10
    assert loop.read["modest"] >= 0.99 * 0.06 * loop.messages["modest"]
    assert loop.messages["modest"] > 700
    # What takes long is read as long as what does not, not as often.
    heavy = [loop.read[key] for key, cost in floods.items() if cost == 2.0]
    light = [loop.read[key] for key, cost in floods.items() if cost == 0.1]
    assert max(heavy) < 2 * min(light)


def test_what_others_leave_may_be_taken():
    loop = Loop({"wide": 0.05} | {f"narrow {i}": 0.05 for i in range(9)})
    loop.run(20, {"wide": 900.0} | {f"narrow {i}": 20.0 for i in range(9)})
    # Ten keys are due a tenth each, which is 200 messages a second.
    assert loop.read["wide"] > 0.95 * 0.05 * 900 * 20


def test_quarantine_is_by_key_and_for_a_time():
    admission = Admission(CONFIG, 0.0)
    admission.quarantine("a", "expected tokens below 50, got 77", 0.0)
    assert admission.judge("a", 20, 59_999.0) is Refusal.QUARANTINED
    assert admission.judge("b", 20, 0.0) is None
    assert admission.answer("a", 10_000.0) == (
        "quarantined for 50 s more: expected tokens below 50, got 77"
    )
    assert admission.answer("a", 10_999.0) is None
    assert admission.answer("a", 11_000.0)
    assert admission.judge("a", 20, 60_000.0) is None


def test_malformed_messages_add_up_and_fade():
    admission = Admission(CONFIG, 0.0)
    assert [admission.malformed("a", 1000.0 * i) for i in range(8)] == [False] * 7 + [True]
    # One a minute is an honest drafter's, however long it stays.
    assert not any(admission.malformed("b", 60_000.0 * i) for i in range(1000))
    assert any(admission.malformed("c", 50_000.0 * i) for i in range(1000))
    # Silence between does not hide them.
    admission.judge("d", 20, 0.0)
    assert not any(admission.malformed("d", 0.0) for _ in range(7))
    admission.judge("e", 20, 15_000.0)
    assert admission.malformed("d", 15_001.0)


def test_size_is_judged_by_what_is_of_use():
    admission = Admission(CONFIG, 0.0)
    assert admission.judge("a", MAX_PLAIN_BYTES, 0.0) is None
    assert admission.judge("a", MAX_PLAIN_BYTES + 1, 0.0) is Refusal.SIZE
    assert admission.judge("a", MAX_MESSAGE_BYTES, 0.0) is Refusal.SIZE
    # Larger than any message: read no further than its size, and counted as malformed.
    assert admission.judge("a", MAX_MESSAGE_BYTES + 1, 0.0) is None
    admission.max_bytes = MAX_MESSAGE_BYTES
    assert admission.judge("a", MAX_MESSAGE_BYTES, 0.0) is None


def test_silent_keys_are_forgotten_but_not_what_they_did():
    admission = Admission(CONFIG, 0.0)
    for i in range(100):
        admission.judge(f"quiet {i}", 20, 0.0)
    admission.quarantine("liar", "a lie", 0.0)
    admission.malformed("clumsy", 0.0)
    assert len(admission) == 102
    admission.judge("a", 20, 11_000.0)
    assert len(admission) == 3
    admission.judge("a", 20, 60_000.0)
    assert len(admission) == 1


def test_the_document_says_the_same_numbers():
    for line in (
        f"{CONFIG.max_messages_per_s:,.0f} messages a second",
        f"{100 * CONFIG.max_share:.0f} % of one core",
        f"what all keys send {100 * CONFIG.max_share_of_all:.0f} %",
        f"for {CONFIG.quarantine_ms / 1000:.0f} s",
        f"{CONFIG.max_malformed} malformed",
        f"{MAX_PLAIN_BYTES:,} bytes",
    ):
        assert line in DOCUMENT
