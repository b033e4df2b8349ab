"""`wanspec probe` as a person types it."""

import subprocess
import sys

from typer.testing import CliRunner

from wanspec_kernels.cli import app
from wanspec_kernels.probing.records import EndpointRecord, LinkRecord, append, load
from wanspec_kernels.wire.keys import generate

AT = "2026-11-24T10:05:00+00:00"


def test_serve_and_link_meet_and_a_record_is_written(tmp_path):
    verifier, allowed = generate(tmp_path, "verifier"), tmp_path / "allowed"
    allowed.mkdir()
    uni = generate(allowed, "uni")
    serve = subprocess.Popen(
        [sys.executable, "-m", "wanspec_kernels.cli", "probe", "serve", "--bind",
         "tcp://127.0.0.1:*", "--key", str(verifier), "--allowed", str(allowed)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert serve.stderr is not None
    try:
        address = serve.stderr.readline().split()[-1]
        options = ["--key", str(uni), "--server-key", str(tmp_path / "verifier.key")]
        options += ["--name", "uni", "--seconds", "0.3", "--output", str(tmp_path / "links.jsonl")]
        done = CliRunner().invoke(app, ["probe", "link", address, *options])
    finally:
        serve.terminate()
        serve.communicate(timeout=20)
    assert done.exit_code == 0, done.output
    assert "Mbit/s up" in done.output
    (record,) = load(tmp_path / "links.jsonl", LinkRecord)
    assert (record.name, len(record.up_ms) + record.lost) == ("uni", 15)


def test_an_endpoint_that_is_not_there_is_recorded_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    path = tmp_path / "endpoints.jsonl"
    options = ["--model", "m", "--region", "north", "--output", str(path), "--timeout-s", "2"]
    url = "http://127.0.0.1:9/v1"
    done = CliRunner().invoke(app, ["probe", "endpoint", url, *options])
    assert done.exit_code == 0, done.output
    assert "ConnectError" in done.output
    append(path, EndpointRecord(url, "m", "north", AT, 321.0, (10.0,), 2, None))
    done = CliRunner().invoke(app, ["probe", "report", str(path)])
    assert done.exit_code == 0
    assert "321 / 321 / 321" in done.output
