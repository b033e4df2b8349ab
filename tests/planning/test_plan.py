"""Studies from end to end, verdicts, and `wanspec plan` as a person types it."""

import json
import re
import shlex
from dataclasses import replace
from io import StringIO
from itertools import pairwise

import pytest
from rich.console import Console
from typer.testing import CliRunner

from drafter.main import app as drafter
from tests.planning.plans import PLAN, record, write
from wanspec_kernels.cli import app as wanspec
from wanspec_kernels.commands import plan_report
from wanspec_kernels.planning.candidates import Candidate
from wanspec_kernels.planning.effort import MIN_SEEDS, MIN_TOKENS, Effort
from wanspec_kernels.planning.inputs import read
from wanspec_kernels.planning.intervals import Interval
from wanspec_kernels.planning.study import AT_HOME, study
from wanspec_kernels.planning.verdict import Use, judge

ALONE = PLAN.replace("[home]\npass_ms = 3.0\n", "")
TWO = ALONE + '[[drafters]]\nname = "poor"\npass_ms = {16 = 3.5}\nlinks = "links.jsonl"\n'


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """Nobody at home, a drafter at 10 ms, and one whose link was hardly probed."""
    folder = tmp_path_factory.mktemp("near")
    records = (record(), record("poor", samples=10))
    return study(read(write(folder, TWO, records)), Effort(tokens=60, seeds=3))


def test_a_near_drafter_is_used_and_one_not_sampled_is_not(near):
    assert set(near.refused) == {"poor"}
    assert {c.drafters for c in near.finalists} == {(0,)}
    verdict = judge(near)
    assert verdict.use is Use.faster
    assert verdict.expectations[verdict.chosen].latency_ratio.high < 0.5
    assert verdict.here["the target alone"].latency_ms.mean == pytest.approx(30.0)
    assert all(m.exact for runs in near.finalists.values() for m in runs)


def test_a_far_drafter_gets_no_credit_for_what_home_does(tmp_path):
    """At 300 ms home does all the work, and does it well: that is no reason to use the drafter."""
    far = study(
        read(write(tmp_path, records=(record(round_trip_ms=300.0),))), Effort(tokens=60, seeds=3)
    )
    verdict = judge(far)
    assert verdict.use in (Use.none, Use.unclear)
    assert far.best_here == AT_HOME
    assert verdict.here[far.best_here].latency_ratio == Interval(1.0, 1.0, 1.0)


def test_several_requests_are_compared_with_speculation_that_keeps_them_in_step(tmp_path):
    text = PLAN.replace("16 = 31.0}", "64 = 34.0}\nrequests = 2")
    text = text.replace("pass_ms = 3.0", "pass_ms = {1 = 3.0, 64 = 3.5}").replace(
        "{16 = 3.5}", "{32 = 3.5}"
    )
    found = study(read(write(tmp_path, text)), Effort(tokens=50, seeds=3))
    (fixed,) = (runs for name, runs in found.here.items() if "passes a round" in name)
    # A round is the target's pass, of at most 64 rows, and the drafts before it.
    passes = int(next(name for name in found.here if "passes a round" in name).split()[3])
    for run in fixed:
        assert run.latency_ms * run.tokens_per_pass < 34.0 + 3.5 * passes + 1.0
        # Both share each pass, until the first of them has ended.
        assert 0.49 * run.latency_ms < run.hot_ms < 0.7 * run.latency_ms


def slower(study, factor, passes=1.0):
    """As if home made a pass a token, and finalists took so many times the latency and passes."""
    here = tuple(replace(m, local_passes=1.0) for m in study.here[study.best_here])
    runs = tuple(
        replace(m, latency_ms=factor * m.latency_ms * (1 + 0.01 * i), local_passes=passes)
        for i, m in enumerate(here)
    )
    finalists = dict.fromkeys(study.finalists, runs)
    return replace(study, here={study.best_here: here}, finalists=finalists)


@pytest.mark.parametrize(
    ("factor", "passes", "use"),
    [
        (0.9, 1.0, Use.faster),
        (0.985, 0.5, Use.fewer),
        (0.985, 1.0, Use.unclear),
        (1.2, 0.1, Use.none),
    ],
)
def test_verdicts(near, factor, passes, use):
    verdict = judge(slower(near, factor, passes))
    assert verdict.use is use
    assert (verdict.chosen is None) == (use in (Use.none, Use.unclear))


def test_of_what_cannot_be_told_apart_the_fewest_home_passes_are_chosen(near):
    as_if = slower(near, 0.9)
    some = next(iter(as_if.finalists.values()))
    fewer = tuple(replace(m, local_passes=0.1, latency_ms=1.001 * m.latency_ms) for m in some)
    better = Candidate((0, 1), 16, 16)
    finalists = {Candidate((0,), 16, 16): some, better: fewer}
    assert judge(replace(as_if, finalists=finalists)).chosen == better


def test_an_interval_holds_the_mean_as_often_as_it_says():
    assert Interval.of([1.0, 1.0, 1.0]) == Interval(1.0, 1.0, 1.0)
    found = Interval.of([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def test_the_command_reports_or_refuses(tmp_path):
    path = write(tmp_path, ALONE)
    options = ["--tokens", "50", "--seeds", "3", "--workers", "1", "--json"]
    done = CliRunner().invoke(wanspec, ["plan", str(path), *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["chosen"]["drafters"] == ["uni"]
    assert report["finalists"][0]["expected"]["latency_ratio"]["high"] < 0.5
    assert "round trip" in report["notes"][0]

    path = write(tmp_path, ALONE, (record(lost=1),))
    done = CliRunner().invoke(wanspec, ["plan", str(path), *options])
    assert done.exit_code == 3
    assert "never answered" in json.loads(done.stdout)["unsupported"][0]
    assert "no figure is given" in done.stderr


def test_a_study_is_done_in_its_time_and_says_how_far_it_is(tmp_path):
    """By a clock that says 20 s later each time: 40 s of the minute are left for the finalists."""
    now, shares = [0.0], []

    def clock():
        now[0] += 20.0
        return now[0]

    found = study(
        read(write(tmp_path, ALONE)),
        Effort(60.0),
        mapped=lambda call, items: map(cheap, map(call, items)),
        progress=lambda share, what: shares.append((share, what)),
        clock=clock,
    )
    assert (found.tokens, len(found.seeds)) == (MIN_TOKENS, MIN_SEEDS)
    assert [share for share, _ in shares] == sorted(share for share, _ in shares)
    assert shares[-1][0] == pytest.approx(1.0)
    assert shares[-1][1] == f"the best of them, on {MIN_SEEDS} texts of {MIN_TOKENS} tokens"


def cheap(found):
    """As if a token took a second to simulate, which leaves time for the least only."""
    measures, _ = found
    return measures, 40.0


def test_what_is_printed_fits_80_columns_and_says_what_to_do(near, tmp_path):
    inputs = read(write(tmp_path, TWO, (record(), record("poor", samples=10))))
    verdict = judge(near)
    out = StringIO()
    plan_report.show(Console(file=out, width=80), inputs, near, verdict)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    ratio = verdict.expectations[verdict.chosen].latency_ratio
    assert f"{ratio.mean:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" in out.getvalue()
    assert "…" not in out.getvalue().partition("latency")[2]  # nothing is cut off
    assert "poor is not used: its link was probed with 10 messages" in out.getvalue()


@pytest.mark.parametrize(
    ("factor", "passes", "says"),
    [
        (0.9, 1.0, "Use uni: a token takes 0.91 times as long"),
        (0.985, 0.5, "Use uni: "),
        (0.985, 1.0, "which a longer --minutes may change: run `wanspec generate …"),
        (1.2, 0.1, "No drafter makes this faster: run `wanspec generate … --home-draft ''`"),
    ],
)
def test_the_advice_is_to_use_options_that_exist(near, tmp_path, factor, passes, says):
    inputs = read(write(tmp_path, TWO, (record(), record("poor", samples=10))))
    found = slower(near, factor, passes)
    advice = plan_report.advice(inputs, found, judge(found))
    assert says in advice
    for quoted in re.findall(r"`(wanspec.*?)`", advice):
        program, *words = shlex.split(quoted)
        app, command = (drafter, []) if program == "wanspec-drafter" else (wanspec, words[:1])
        known = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        options = [word for word in words if word.startswith("--")]
        assert all(f"{option} " in known for option in options)
        for option, value in pairwise(words):
            if option in ("--rows", "--width", "--max-nodes"):
                wrong = CliRunner().invoke(app, [*command, option, value, "--nothing"])
                assert "--nothing" in wrong.stderr  # and not the value


def test_the_command_names_what_is_malformed(tmp_path):
    done = CliRunner().invoke(wanspec, ["plan", str(write(tmp_path, PLAN.replace("3.0", "0")))])
    assert done.exit_code == 2
    assert "home.pass_ms" in done.output
    done = CliRunner().invoke(wanspec, ["plan", str(tmp_path / "nowhere.toml")])
    assert done.exit_code == 2
