"""The commands as a person types them; the demo with its processes, drafters killed and stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.tiny_models import make_tiny_model
from wanspec_kernels.cli import app
from wanspec_kernels.simulation.traces import load

REPORT_KEYS = {
    "tokens", "target_passes", "tokens_per_target_pass", "identical_to_target_alone",
    "speedup_over_target_alone", "drafters", "round_trip_ms", "drafts", "remote_tokens_accepted",
    "home_tokens_accepted", "local_draft_passes", "wire_bytes_per_token", "seconds",
    "seconds_target_alone", "requests",
}  # fmt: skip


def wanspec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wanspec_kernels.cli", *arguments],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def is_fingerprint(word: str) -> bool:
    return len(word) == 16 and set(word) <= set("0123456789abcdef")


def demo(*arguments: str) -> dict:
    done = wanspec("demo", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return json.loads(done.stdout)


def test_keygen_makes_a_pair_and_never_overwrites(tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["keygen", "verifier", "--folder", str(tmp_path)])
    assert done.exit_code == 0
    secret = tmp_path / "verifier.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    before = secret.read_bytes()
    again = runner.invoke(app, ["keygen", "verifier", "--folder", str(tmp_path)])
    assert again.exit_code == 2
    assert "there already" in again.output
    assert secret.read_bytes() == before


def test_a_pair_with_different_vocabularies_is_refused_with_both_fingerprints(tmp_path):
    other = make_tiny_model(tmp_path / "other", seed=1)
    done = CliRunner().invoke(app, ["generate", "x", "--home-draft", str(other)])
    assert done.exit_code == 2
    fingerprints = {word for word in re.split(r"[ ,.;]", done.stderr) if is_fingerprint(word)}
    assert len(fingerprints) == 2
    assert "--home-draft '' does without" in done.stderr


def test_another_target_has_no_draft_model_at_home_unless_one_is_named(tmp_path):
    """The bundled draft fits no other target; an operator should not have to know."""
    other = make_tiny_model(tmp_path / "other", seed=1)
    done = CliRunner().invoke(app, ["generate", "x", "--model", str(other), "--max-tokens", "3"])
    assert done.exit_code == 0, done.output
    assert "no draft model at home: --home-draft names one" in done.stderr
    assert "0 home" in done.stderr


def test_generate_writes_the_same_text_with_and_without_drafts():
    texts = []
    for home in ("bundled:draft", ""):
        done = CliRunner().invoke(
            app, ["generate", "def add(a, b):", "--max-tokens", "12", "--home-draft", home]
        )
        assert done.exit_code == 0
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert texts[0].strip()


PROMPTS = ["def add(a, b):", "class Stack:", "def quicksort(items):"]


def test_generate_writes_the_texts_of_several_prompts_in_their_order(tmp_path):
    """Each is the text that it has alone."""
    options = ["--max-tokens", "12", "--temperature", "0.7", "--seed", "3"]
    alone = [CliRunner().invoke(app, ["generate", prompt, *options]).stdout for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS))
    for source, text in ((str(path), None), ("-", "\r\n".join(PROMPTS) + "\r\n")):
        done = CliRunner().invoke(app, ["generate", "--prompt-file", source, *options], input=text)
        assert done.exit_code == 0, done.output
        headings = [f"==> {n}: {prompt!r} <==\n" for n, prompt in enumerate(PROMPTS, 1)]
        assert done.stdout == "".join(h + text for h, text in zip(headings, alone, strict=True))
        assert "3 texts, 36 tokens in" in done.stderr


def test_a_text_ends_before_a_stop_string():
    options = ["generate", "def add(a, b):", "--max-tokens", "40"]
    whole = CliRunner().invoke(app, options).stdout
    words = whole.split()
    stop = f"{words[2]} {words[3]}"
    done = CliRunner().invoke(app, [*options, "--stop", "nowhere to be found", "--stop", stop])
    assert done.exit_code == 0, done.output
    assert done.stdout == whole[: whole.index(stop)] + "\n"


@pytest.mark.alone
def test_demo_is_identical_to_the_target_alone():
    """Unpaced, so that the test is short; T=0 is below, with a drafter struck."""
    options = ["--temperature", "0.8", "--max-tokens", "24", "--target-pass-ms", "0"]
    report = demo(*options, "--requests", "8")
    assert report.keys() == REPORT_KEYS
    assert report["identical_to_target_alone"] is True
    requests = report["requests"]
    assert all(request["identical_to_target_alone"] for request in requests)
    assert [request["seed"] for request in requests] == [0] * 6 + [1] * 2
    assert [request["name"] for request in requests[6:]] == [r["name"] for r in requests[:2]]
    for key in ("tokens", "target_passes", "remote_tokens_accepted", "home_tokens_accepted"):
        assert report[key] == sum(request[key] for request in requests)
    assert report["tokens"] <= 8 * 24
    assert report["drafters"] == len(report["round_trip_ms"]) == 2
    assert report["round_trip_ms"][0] >= 20
    assert report["round_trip_ms"][1] >= 60
    assert sum(report["drafts"].values()) > 0
    assert report["drafts"]["invalid"] == 0
    assert report["wire_bytes_per_token"] > 0


@pytest.mark.alone
def test_demo_rejection_runs_with_sampled_drafts():
    report = demo("--rule", "rejection", "--max-tokens", "24", "--prompt", "def add(self, other):")
    assert report["drafts"]["invalid"] == 0
    assert report["tokens_per_target_pass"] > 1
    assert len(report["requests"]) == 1


@pytest.mark.alone
def test_demo_survives_drafters_struck_halfway():
    """One killed, one stopped for good; greedy."""
    blows = {"drafter-1": signal.SIGKILL, "drafter-2": signal.SIGSTOP}
    arguments = ["demo", "--json", "--max-tokens", "24", "--temperature", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wanspec_kernels.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    processes = {}
    struck_at = None
    for line in process.stderr:
        name, _, rest = line.partition(": process ")
        if name in blows:
            processes[name] = int(rest.split(",")[0])
        if "of at most" in line and struck_at is None:  # a quarter of the tokens or more
            struck_at = line
            for name, blow in blows.items():
                os.kill(processes[name], blow)
    stdout, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert struck_at is not None
    report = json.loads(stdout)
    assert report["identical_to_target_alone"] is True
    assert report["speedup_over_target_alone"] > 0.95
    for struck in processes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(struck, 0)  # nobody is left behind


def test_an_unrelated_failure_of_a_drafter_is_told(tmp_path):
    done = wanspec("demo", "--draft", str(Path(tmp_path) / "nothing"))
    assert done.returncode == 2
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_simulate_prints_one_object():
    result = CliRunner().invoke(
        app,
        ["simulate", "--tokens", "40", "--no-baselines", "--json", "--trace", "bundled"],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["measures"]["exact"]
    assert report["measures"]["latency_ms"] < 30


def test_simulate_decodes_many_at_a_time():
    options = ["--requests", "6", "--machines", "h200-8b", "--context", "2048", "--tokens", "20"]
    options += ["--no-baselines", "--json"]
    remotes = ["--round-trip-ms", "20,20", "--share-drafters"]
    result = CliRunner().invoke(app, ["simulate", *options, *remotes])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["requests"] == 6
    assert report["measures"]["exact"]
    assert report["measures"]["tokens_per_s"] > 6 * 1000 / report["measures"]["latency_ms"] / 2
    alone = CliRunner().invoke(app, ["simulate", *options, "--round-trip-ms", "", "--no-home"])
    # A pass of 6 rows over 6 x 2,048 tokens of context.
    assert json.loads(alone.stdout)["measures"]["latency_ms"] == pytest.approx(5.84, abs=0.03)


def test_trace_records_a_pair(tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"text": "def quicksort(items):\n"}]))
    path = tmp_path / "pair.npz"
    options = ["--prompts", str(prompts), "--tokens", "12", "--seeds", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, ["trace", str(path), *options])
    assert result.exit_code == 0, result.output
    recorded = load(str(path))
    assert recorded.text_indptr.tolist() == [0, 12, 24]
    assert (recorded.token_ids[:12] != recorded.token_ids[12:]).any()
    assert recorded.top(16) > 0.5
    assert set(recorded.off_depths.tolist()) == {1, 2, 3}
