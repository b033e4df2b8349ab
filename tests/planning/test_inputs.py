"""Plans that are malformed, each place named; and those that ask for what there is no trace of."""

import pytest

from tests.planning.plans import PLAN, record, write
from wanspec_kernels.planning.errors import PlanError, UnsupportedError
from wanspec_kernels.planning.inputs import read
from wanspec_kernels.planning.support import link_profile
from wanspec_kernels.simulation.traces import load


def test_a_plan_is_read(tmp_path):
    other = record("other")
    inputs = read(write(tmp_path, records=(record(), other, record(round_trip_ms=14.0))))
    assert inputs.target.time_ms(16) == 31.0
    assert inputs.home.pass_ms == 3.0
    assert inputs.trace.same_texts(load("bundled"))
    (drafter,) = inputs.drafters
    assert len(drafter.records) == 2
    link = link_profile(drafter)
    assert (link.round_trip_ms, link.bandwidth_mbit, len(link.up_ms)) == (10.0, 100.0, 3000)
    # The second was 4 ms farther at its nearest: half each way.
    assert link.down_ms[0] == 0.5
    assert link.down_ms[-1] == 2.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[target]", "[tarmac]", "the file: expected draft, drafters, target"),
        ("[target]", "target", "plan.toml: "),
        ("3.0", '"fast"', "home.pass_ms: expected a number"),
        ("3.0", "-1", "home.pass_ms: expected a number"),
        ("3.0", "inf", "home.pass_ms: expected a number"),
        ("{1 = 30.0", "{one = 30.0", "target.pass_ms: expected ms, or"),
        ("{1 = 30.0", "{0 = 30.0", "target.pass_ms: expected ms, or"),
        ("[draft]", "requests = 0\n[draft]", "target.requests: expected a whole number 1..256"),
        ("[draft]", "colour = 1\n[draft]", "target: expected pass_ms and perhaps requests"),
        ('trace = "bundled"', "", "draft: expected trace or top_1"),
        ('trace = "bundled"', 'trace = "bundled"\ntop_1 = 0.8', "got both"),
        ('name = "uni"', 'name = "else"', "drafter else: expected records of that name"),
        ('name = "uni"', "name = 3", "drafters: expected a name"),
    ],
)
def test_what_is_malformed_is_named(tmp_path, old, new, message):
    with pytest.raises(PlanError, match=message):
        read(write(tmp_path, PLAN.replace(old, new, 1)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path, PLAN.replace("links.jsonl", "nowhere.jsonl"))
    with pytest.raises(OSError, match="nowhere"):
        read(path)


@pytest.mark.parametrize("top_1", [0.3, 0.97])
def test_an_acceptance_past_what_traces_are_calibrated_for_is_unsupported(tmp_path, top_1):
    path = write(tmp_path, PLAN.replace('trace = "bundled"', f"top_1 = {top_1}"))
    with pytest.raises(UnsupportedError, match=r"calibrated.*record one \(`wanspec trace`\)"):
        read(path)
