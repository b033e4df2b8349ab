"""What a plan's inputs do not support, each reason by itself."""

import re
from dataclasses import replace

import pytest

from tests.planning.plans import PLAN, record, write
from wanspec_kernels.planning.effort import Effort
from wanspec_kernels.planning.errors import UnsupportedError
from wanspec_kernels.planning.inputs import read
from wanspec_kernels.planning.study import study
from wanspec_kernels.planning.support import (
    count_stalls,
    drafter_refusals,
    refusals,
    rows_of,
    run_refusals,
    widths_of,
)
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import measure
from wanspec_kernels.simulation.scenario import DrafterProfile, Scenario
from wanspec_kernels.simulation.traces import load


def inputs_of(folder, text=PLAN, *records):
    return read(write(folder, text, records))


def test_a_good_plan_has_nothing_against_it(tmp_path):
    inputs = inputs_of(tmp_path)
    assert refusals(inputs) == []
    assert drafter_refusals(inputs, inputs.drafters[0]) == []
    assert (rows_of(inputs), widths_of(inputs, inputs.drafters)) == ([16], [16])


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ([record(samples=600)], "600 messages in 12 s; expected 1000"),
        ([record(samples=1000, interval_ms=10.0)], "1000 messages in 10 s"),
        ([record(payload_bytes=64)], "probed with 64 bytes; a draft has 1848"),
        ([record(lost=2)], "2 probes were never answered"),
        ([record(stalls=2)], "stalled 2 times in 30 s: .* probe 75 s or more"),
        ([record(), record(interval_ms=40.0)], "several intervals"),
    ],
)
def test_a_link_that_was_not_sampled_enough_is_refused(tmp_path, made, reason):
    inputs = inputs_of(tmp_path, PLAN, *made)
    (found,) = drafter_refusals(inputs, inputs.drafters[0])
    assert re.search(reason, found)
    with pytest.raises(UnsupportedError, match="uni: "):
        study(inputs, Effort(tokens=10, seeds=3))


def test_stalls_that_were_seen_often_are_part_of_the_link(tmp_path):
    inputs = inputs_of(tmp_path, PLAN, record(stalls=6))
    assert count_stalls(inputs.drafters[0], 90.0) == 6
    assert drafter_refusals(inputs, inputs.drafters[0]) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("{1 = 30.0, 16 = 31.0}", "30.0", "expected a table that begins at 1 row"),
        ("[draft]", "requests = 2\n[draft]", "2 requests of 16 rows or more are past the 16 rows"),
    ],
)
def test_more_than_was_measured_of_the_target_is_refused(tmp_path, old, new, reason):
    inputs = inputs_of(tmp_path, PLAN.replace(old, new))
    assert any(reason in found for found in refusals(inputs))
    with pytest.raises(UnsupportedError):
        study(inputs, Effort(tokens=10, seeds=3))


def test_requests_at_a_time_need_tables_everywhere(tmp_path):
    text = PLAN.replace("16 = 31.0}", "64 = 33.0}\nrequests = 2").replace("{16 = 3.5}", "3.5")
    inputs = inputs_of(tmp_path, text)
    assert refusals(inputs) == ["home.pass_ms: expected a table by rows, for 2 requests"]
    (found,) = drafter_refusals(inputs, inputs.drafters[0])
    assert "its pass_ms: expected a table" in found
    assert rows_of(inputs) == [16, 32]


def test_traces_have_to_be_long_and_of_the_same_texts(tmp_path):
    inputs = inputs_of(tmp_path, PLAN + "top_1 = 0.8\n")
    (found,) = drafter_refusals(inputs, inputs.drafters[0])
    assert "other texts" in found
    trace = load("bundled")
    short = replace(
        trace, text_indptr=trace.text_indptr[:2], token_ids=trace.token_ids[:256],
        ranks=trace.ranks[:256], codes=trace.codes[:256], entropies=trace.entropies[:256],
    )  # fmt: skip
    assert "a trace of 256 positions" in refusals(replace(inputs, trace=short))[0]


def test_more_than_link_and_verifier_take_is_refused():
    scenario = Scenario(load("bundled"), (DrafterProfile(LinkProfile(10.0)),), tokens=30)
    measures = measure(scenario)
    assert 200 < measures.drafts_per_s < 500  # a frame or two a pass of 4 ms
    faster = replace(measures, drafts_per_s=1100.0)
    narrow, busy = run_refusals(faster, bandwidth_mbit=5.0)
    assert "too near the link's 5.0" in narrow
    assert "too near the 1000" in busy
    calm = replace(measures, drafts_per_s=900.0)
    assert run_refusals(calm, bandwidth_mbit=100.0) == []
    assert run_refusals(calm, bandwidth_mbit=100.0, share=0.85) != []
