"""Every command at every kind of misuse: one line on standard error, and exit status 2."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from drafter.main import app as drafter
from tests.planning.plans import PLAN, write
from tests.tiny_models import make_tiny_model
from wanspec_kernels.cli import app as wanspec
from wanspec_kernels.simulation.trace import Trace
from wanspec_kernels.wire.keys import generate

GENERATE = ["generate", "x"]
FROM_FILE = ["generate", "--prompt-file"]
DIAL_IN = ["--key", "{a}/verifier.secret", "--allowed", "{a}/allowed"]
SERVE = ["probe", "serve", "--bind", "tcp://127.0.0.1:*", *DIAL_IN]
KEYS = ["--key", "{a}/uni.secret", "--server-key", "{a}/verifier.key"]
LINK = ["probe", "link", "tcp://127.0.0.1:9", *KEYS, "--output", "{a}/new", "--name", "uni"]
ENDPOINT = ["probe", "endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--region", "r"]
ENDPOINT += ["--output", "{a}/new"]
DRAFTER = ["drafter", "--connect", "tcp://127.0.0.1:9", *KEYS]
TRACE = ["trace", "{a}/new.npz", "--seeds", "1", "--tokens", "1"]
PLAN_IT = ["plan", "{a}/plan.toml"]

# (command, every option of it that takes a number, the smallest wrong one and the largest)
NUMBERS = [
    (GENERATE, "--max-tokens", "0", None),
    (GENERATE, "--wait-for-drafters", "-1", None),
    (GENERATE, "--rows", "0", "1025"),
    (GENERATE, "--temperature", "-1", "101"),
    (GENERATE, "--top-k", "-1", "2147483648"),
    (GENERATE, "--top-p", "0", "1.01"),
    (GENERATE, "--min-p", "-0.1", "2"),
    (GENERATE, "--seed", "-9223372036854775809", "9223372036854775808"),
    (["demo"], "--temperature", "-1", "101"),
    (["demo"], "--seed", "-9223372036854775809", "9223372036854775808"),
    (["demo"], "--max-tokens", "0", None),
    (["demo"], "--drafters", "-1", "17"),
    (["demo"], "--requests", "0", "65"),
    (["demo"], "--round-trip-ms", "-5", "20,10001"),
    (["demo"], "--target-pass-ms", "-1", "60001"),
    (TRACE, "--tokens", "0", None),
    (TRACE, "--temperature", "-1", "101"),
    (TRACE, "--seeds", "0", None),
    (["simulate"], "--round-trip-ms", "-5", "10001"),
    (["simulate"], "--jitter-ms", "-1", "60001"),
    (["simulate"], "--bandwidth-mbit", "0", None),
    (["simulate"], "--loss", "-0.1", "0.95"),
    (["simulate"], "--stall-ms", "-1", "3600001"),
    (["simulate"], "--stall-every-ms", "0", None),
    (["simulate"], "--target-pass-ms", "0", "60001"),
    (["simulate"], "--target-row-ms", "-1", "60001"),
    (["simulate"], "--home-pass-ms", "0", "60001"),
    (["simulate"], "--remote-pass-ms", "0", "60001"),
    (["simulate"], "--max-rows", "0", "1025"),
    (["simulate"], "--remote-rows", "0", "4097"),
    (["simulate"], "--context", "-1", "1000001"),
    (["simulate"], "--requests", "0", "257"),
    (["simulate"], "--tokens", "0", None),
    (["simulate"], "--seed", "-1", None),
    (PLAN_IT, "--minutes", "0", "10001"),
    (PLAN_IT, "--tokens", "49", None),
    (PLAN_IT, "--seeds", "2", "65"),
    (PLAN_IT, "--requests", "0", "257"),
    (PLAN_IT, "--workers", "0", "1025"),
    (LINK, "--seconds", "0", "3601"),
    (LINK, "--interval-ms", "0.5", "10001"),
    (LINK, "--payload-bytes", "63", "262145"),
    (ENDPOINT, "--times", "0", None),
    (ENDPOINT, "--every-s", "-1", "86401"),
    (ENDPOINT, "--max-tokens", "1", "4097"),
    (ENDPOINT, "--timeout-s", "0", "3601"),
    (["probe", "report", "{a}/plan.toml"], "--hours", "0", "25"),
    (DRAFTER, "--threads", "-1", "1025"),
    (DRAFTER, "--max-requests", "0", "4097"),
    (DRAFTER, "--max-nodes", "0", "4097"),
    (DRAFTER, "--width", "0", "257"),
]

# (arguments, what the line says)
OTHERS = [
    # Options that go together, and choices.
    ([*GENERATE, "--bind", "tcp://127.0.0.1:*"], "--bind: expected --key and --allowed with it"),
    ([*GENERATE, *DIAL_IN], "--key: expected --bind with it"),
    ([*GENERATE, "--wait-for-drafters", "1"], "--wait-for-drafters: expected --bind with it"),
    ([*GENERATE, "--stop", ""], "--stop: expected text, got none"),
    ([*GENERATE, "--prompt-file", "{a}/plan.toml"], "--prompt-file: expected no PROMPT beside it"),
    ([*GENERATE, "--rule", "both"], "--rule: expected one of match, rejection, got 'both'"),
    ([*GENERATE, "--temperature", "1e-5"], "--temperature: expected 0 or 0.01..100.0, got 1e-05"),
    ([*GENERATE, "--nothing"], "No such option"),
    (["generate"], "PROMPT: expected a value, got none"),
    (["simulate", "--machines", "fast"], "--machines: expected one of flat, h200-8b, got 'fast'"),
    (["simulate", "--machines", "h200-8b", "--home-pass-ms", "2"],
     "--home-pass-ms: expected --machines flat with it, got h200-8b"),
    (["simulate", "--stall-ms", "30000"], "--stall-ms: expected less than --stall-every-ms 20000"),
    (["nothing"], "No such command 'nothing'"),
    # Prompts.
    (["generate", ""], "PROMPT: expected 1 to 2048 tokens, which the target takes, got 0"),
    (["generate", "word " * 9000], "PROMPT: expected 1 to 2048 tokens, which the target takes"),
    (["generate", "caf\udce9"], "PROMPT: expected text in UTF-8, got another byte at character 3"),
    ([*FROM_FILE, "{a}/latin.json"], "--prompt-file: expected text in UTF-8 from {a}/latin.json"),
    ([*FROM_FILE, "{a}/empty.txt"], "--prompt-file: expected a prompt in each line, got none"),
    ([*FROM_FILE, "{a}/lines.txt"], "--prompt-file: line 3: expected 1 to 2048 tokens, which the"),
    (["demo", "--prompt", "caf\udce9"], "--prompt: expected text in UTF-8"),
    (["demo", "--prompt", ""], "--prompt: expected text, got none"),
    (["keygen", "caf\udce9"], "NAME: expected text in UTF-8"),
    (["keygen", "../x"], "expected a plain name such as my-university, got '../x'"),
    ([*LINK[:-1], "caf\udce9"], "--name: expected text in UTF-8"),
    ([*LINK[:-1], ""], "--name: expected a drafter's name, got none"),
    ([*ENDPOINT, "--prompt", "caf\udce9"], "--prompt: expected text in UTF-8"),
    ([*TRACE, "--prompts", "{a}/latin.json"], "--prompts: expected a JSON list of"),
    ([*TRACE, "--prompts", "{a}/plan.toml"], "--prompts: expected a JSON list of"),
    ([*TRACE, "--prompts", "{a}/object.json"], "which is another kind of JSON"),
    ([*TRACE, "--prompts", "{a}/long.json"], "--prompts: expected prompts of 1 to"),
    # Files that are missing, unreadable, folders, or something else.
    ([*TRACE, "--prompts", "{a}/no.json"], "--prompts: expected a file, got '{a}/no.json', which"),
    ([*TRACE, "--prompts", "{a}"], "--prompts: expected a file, got the folder '{a}'"),
    ([*TRACE, "--prompts", "/proc/self/mem"], "--prompts: /proc/self/mem: "),
    ([*FROM_FILE, "{a}/no.txt"], "--prompt-file: expected a file, got '{a}/no.txt', which"),
    ([*FROM_FILE, "{a}"], "--prompt-file: expected a file, got the folder '{a}'"),
    ([*FROM_FILE, "/proc/self/mem"], "--prompt-file: /proc/self/mem: "),
    (["trace", "{a}"], "OUTPUT: expected a file to write, got the folder '{a}'"),
    (["trace", "{a}/no/x.npz"], "OUTPUT: expected a file to write, got '{a}/no/x.npz', whose"),
    (["simulate", "--trace", "{a}/no.npz"], "--trace: {a}/no.npz: No such file or directory"),
    (["simulate", "--trace", "{a}"], "--trace: {a}: Is a directory"),
    (["simulate", "--trace", "{a}/plan.toml"], "--trace: {a}/plan.toml: expected a trace, got"),
    (["simulate", "--trace", "/proc/self/mem"], "--trace: "),
    (["simulate", "--trace", "synthetic:2"], "--trace: top_1: expected 0.6..0.99, got 2.0"),
    (["simulate", "--trace", "synthetic:x"], "--trace: expected a number, as in synthetic:0.8"),
    (["plan", "{a}/no.toml"], "FILE: expected a file, got '{a}/no.toml', which does not exist"),
    (["plan", "{a}"], "FILE: expected a file, got the folder '{a}'"),
    (["plan", "/proc/self/mem"], "FILE: "),
    (["plan", "{a}/object.json"], "FILE: {a}/object.json: "),
    (["plan", "{a}/unlinked.toml"], "FILE: {a}/nowhere.jsonl: No such file or directory"),
    (["keygen", "x", "--folder", "{a}/no"], "--folder: expected a folder, got '{a}/no', which"),
    (["keygen", "x", "--folder", "{a}/plan.toml"], "--folder: expected a folder, got"),
    (["keygen", "verifier", "--folder", "{a}"], "verifier.key: a key of this name is there"),
    (["probe", "report", "{a}/no"], "FILES: {a}/no: No such file or directory"),
    (["probe", "report", "{a}"], "FILES: {a}: Is a directory"),
    (["probe", "report", "{a}/plan.toml"], "FILES: {a}/plan.toml, line 1: expected a record"),
    ([*ENDPOINT[:-1], "{a}"], "--output: expected a file to write, got the folder '{a}'"),
    ([*LINK[:-3], "{a}/no/x", "--name", "n"], "--output: expected a file to write, got"),
    # Keys.
    ([*GENERATE, "--bind", "tcp://127.0.0.1:*", "--key", "{a}/no", *DIAL_IN[2:]],
     "--key: expected a file, got '{a}/no', which does not exist"),
    ([*GENERATE, "--bind", "tcp://127.0.0.1:*", "--key", "{a}/verifier.key", *DIAL_IN[2:]],
     "--key: {a}/verifier.key: expected a secret key, got a public one only"),
    ([*SERVE[:-1], "{a}/no"], "--allowed: expected a folder, got '{a}/no', which does not exist"),
    ([*SERVE, "--key", "{a}/plan.toml"], "--key: {a}/plan.toml: expected a key file with a line"),
    ([*LINK, "--server-key", "{a}/verifier.secret"],
     "--server-key: {a}/verifier.secret: expected a public NAME.key, got a file with a secret key"),
    ([*LINK, "--key", "{a}"], "--key: expected a file, got the folder '{a}'"),
    ([*DRAFTER, "--server-key", "{a}/verifier.secret"],
     "--server-key: {a}/verifier.secret: expected a public NAME.key, got a file with a secret key"),
    ([*DRAFTER, "--key", "{a}/uni.key"], "--key: {a}/uni.key: expected a secret key"),
    ([*DRAFTER, "--key", "{a}/no"], "--key: expected a file, got '{a}/no', which does not exist"),
    # Addresses.
    ([*GENERATE, "--bind", "udp://x:1", *DIAL_IN], "--bind: expected a free address such as"),
    ([*GENERATE, "--bind", "tcp://127.0.0.1:{port}", *DIAL_IN],
     "--bind: expected a free address such as tcp://*:5555, got tcp://127.0.0.1:{port}: "),
    ([*SERVE[:3], "tcp://127.0.0.1:{port}", *DIAL_IN], "cannot bind tcp://127.0.0.1:{port}: "),
    (["probe", "link", "udp://x:1", *LINK[3:]], "expected tcp://HOST:PORT, got udp://x:1"),
    (["drafter", "--connect", "tcp://x", *KEYS], "--connect: expected tcp://HOST:PORT, got tcp://x"),
    (["probe", "endpoint", "http://me:sk-1@x/v1", *ENDPOINT[3:]], "expected no credentials"),
    # Models and devices.
    *[
        ([*command, option, value], f"{option}: {message}")
        for command, option in [
            (GENERATE, "--model"), (GENERATE, "--home-draft"), (["demo"], "--model"),
            (["demo"], "--draft"), (TRACE, "--model"), (TRACE, "--draft"), (DRAFTER, "--model"),
        ]
        for value, message in [
            ("/nonexistent", "expected a folder, a model of the hub or bundled:target, got"),
            ("{a}", "expected a model, got the folder {a}, which has no config.json"),
            ("{a}/plan.toml", "expected a folder, a model of the hub or bundled:target, got"),
            ("bundled:nothing", "expected one of bundled:target, bundled:draft, got"),
            ("nobody/no-model", "expected a folder, a model of the hub or bundled:target, got "
             "'nobody/no-model': there is no such folder, and the hub has or shows no such"),
        ]
    ],
    *[
        ([*command, "--device", device], f"--device: {message}")
        for command in (GENERATE, ["demo"], TRACE, DRAFTER)
        for device, message in [
            ("cuda:999", "expected "),
            ("tpu", "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ]
    ],
    ([*GENERATE, "--home-draft", "{a}/tiny"], "--home-draft '' does without a draft model at home"),
    ([*TRACE, "--draft", "{a}/tiny"], "--draft: vocabulary: expected "),
    (["demo", "--draft", "{a}/tiny"], "--draft: vocabulary: expected "),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder of files that arguments name as {a}, and a port that is taken."""
    folder = tmp_path_factory.mktemp("a")
    write(folder)
    (folder / "allowed").mkdir()
    for name in ("verifier", "uni"):
        generate(folder, name)
    (folder / "unlinked.toml").write_text(PLAN.replace("links.jsonl", "nowhere.jsonl"))
    (folder / "empty.txt").write_text("\n\n")
    (folder / "lines.txt").write_text("x\n\n" + "word " * 9000)
    (folder / "latin.json").write_bytes(b'[{"text": "caf\xe9"}]')
    (folder / "object.json").write_text('{"text": "x"}')
    (folder / "long.json").write_text(f'[{{"text": "{"word " * 9000}"}}]')
    make_tiny_model(folder / "tiny", seed=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield {"a": folder, "port": taken.getsockname()[1]}


@pytest.fixture(autouse=True)
def nothing_lasts(monkeypatch):
    """No model hub, and signal handlers as they were."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def filled(text: str, places: dict) -> str:
    return text.replace("{a}", str(places["a"])).replace("{port}", str(places["port"]))


def refused(arguments, places, **invoke) -> str:
    """The line that a command says; it says nothing else and writes nothing."""
    arguments = [filled(argument, places) for argument in arguments]
    app, program = (
        (wanspec, "wanspec") if arguments[0] != "drafter" else (drafter, "wanspec-drafter")
    )
    found = CliRunner().invoke(app, arguments[program != "wanspec" :], **invoke)
    assert found.exit_code == 2, (found.output, found.exception)
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"{program}: ")
    assert "secret-key" not in line
    return line.removeprefix(f"{program}: ")


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (command, option, value)
        for command, option, low, high in NUMBERS
        for value in (low, high, "abc", "nan", "inf", "-inf", "", "1e999")
        if value is not None and (command, option, value) != (["simulate"], "--round-trip-ms", "")
    ],
)
def test_a_number_that_is_none_or_out_of_range(places, command, option, value):
    line = refused([*command, option, value], places)
    assert line.startswith(f"{option}: expected ")
    assert line.endswith(f"got {value!r}")


@pytest.mark.parametrize(("arguments", "message"), OTHERS)
def test_misuse(places, arguments, message):
    assert filled(message, places) in refused(arguments, places)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(places, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    path.chmod(0)
    assert "FILE: expected a readable file" in refused(["plan", str(path)], places)


def test_standard_input_that_is_not_utf8(places):
    for arguments, name in ((["generate", "-"], "PROMPT"), ([*FROM_FILE, "-"], "--prompt-file")):
        line = refused(arguments, places, input=b"def f():  # caf\xe9")
        assert line == f"{name}: expected text in UTF-8 from standard input, got another byte at 15"


def start(arguments, places, **environment) -> subprocess.Popen:
    """A command in a process group of its own, as a shell would start it."""
    arguments = [filled(argument, places) for argument in arguments]
    module = "drafter.main" if arguments[0] == "drafter" else "wanspec_kernels.cli"
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments[arguments[0] == "drafter" :]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


INTERRUPTED = [
    (["generate", "x", "--bind", "tcp://127.0.0.1:*", *DIAL_IN, "--wait-for-drafters", "1"],
     b"waiting for 1"),
    pytest.param(["demo", "--json", "--max-tokens", "1500"], b"the target alone",
                 marks=pytest.mark.alone),
    (["trace", "{a}/none.npz", "--tokens", "1500", "--seeds", "1"], b"text 1 of"),
    (["simulate", "--tokens", "100000"], b"the scenario"),
    ([*PLAN_IT, "--workers", "1", "--tokens", "100000"], b"each drafter by itself"),
    ([*PLAN_IT, "--workers", "2", "--tokens", "100000"], b"each drafter by itself"),
    (SERVE, b"probes may dial"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "busy"), INTERRUPTED)
def test_ctrl_c_ends_every_command_with_a_line(places, arguments, busy):
    process = start(arguments, places)
    assert process.stderr is not None
    with process:
        try:
            said = b""
            while busy not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of the group
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, rest
    assert b"Traceback" not in rest
    assert rest.splitlines()[-1].startswith(b"wanspec: interrupted")


def test_a_trace_that_is_stopped_holds_the_texts_that_were_complete(places, tmp_path):
    path = tmp_path / "pair.npz"
    process = start(["trace", str(path), "--tokens", "16", "--seeds", "1000"], places)
    assert process.stderr is not None
    with process:
        try:
            while b"text 4 of" not in (line := process.stderr.readline()):
                assert line
            os.killpg(process.pid, signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, rest
    recorded = Trace.load(path)
    assert len(recorded.text_indptr) - 1 >= 3
    assert set(np.diff(recorded.text_indptr)) == {16}
    assert not list(tmp_path.glob("*.partial"))


ASCII = {"PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["generate", "x", "--model", "{a}/tiny", "--max-tokens", "40"], ASCII),
        (["simulate", "--tokens", "30", "--no-baselines"], ASCII),
        (["simulate", "--tokens", "30", "--no-baselines"], {"LC_ALL": "C"}),
        (["trace", "--help"], ASCII),
    ],
)
def test_a_terminal_without_all_characters_ends_nothing(places, arguments, environment):
    """The tiny model says bytes at random, most of which are no characters at all."""
    process = start(arguments, places, **environment)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    if environment is ASCII:
        assert out.decode("ascii")
    assert arguments[0] != "generate" or b"\\ufffd" in out


def test_a_hub_that_cannot_be_reached_is_asked_once(places):
    """transformers asks five times, which takes half a minute and forty lines."""
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    process = start(["generate", "x", "--model", "nobody/no-model"], places, **offline)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert b"--model: expected a folder, a model of the hub or bundled:target, got" in line


def test_a_broken_pipe_is_no_error_of_ours(places):
    process = start(["simulate", "--help"], places)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait(60)
    process.stderr.close()
