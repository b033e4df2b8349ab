"""A text ends at each token that the model's folder says ends one, as transformers' own does."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.tiny_models import make_tiny_model
from wanspec_kernels.cli import app
from wanspec_kernels.drafts.outcome import Kind
from wanspec_kernels.engine.model import Target
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.scheduler import Scheduler
from wanspec_kernels.engine.sequence import Sequence
from wanspec_kernels.wire import Draft, check_of

PROMPT = "once upon a time"
MAX_TOKENS = 24
SETTINGS = "generation_config.json"


def set_end_tokens(folder: Path, eos_token_id: object) -> None:
    path = folder / SETTINGS
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"eos_token_id": eos_token_id}))


def plain_text(folder: Path, prompt: list[int]) -> list[int]:
    """What transformers' own `generate` says after the prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = torch.tensor([prompt])
    mask = torch.ones_like(inputs)
    text = model.generate(
        inputs, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=256
    )
    return text[0, len(prompt) :].tolist()


def text_of_one_pass(folder: Path, prompt: list[int], drafted: list[int]) -> Sequence:
    """A request of which a drafter has sent so many tokens before the target's first pass."""
    target = Target.load(str(folder), dtype=torch.float32, num_pages=40)
    request = Request(tuple(prompt), MAX_TOKENS, stop_token_ids=target.end_token_ids)
    pages = PageBook(target.cache.num_pages, target.cache.page_size)
    scheduler = Scheduler(vocab_size=target.vocab_size, pages=pages)
    sequence = scheduler.submit(request, 0.0)
    sequence.text.enrol(1, "drafter")
    parents = tuple(range(-1, len(drafted) - 1))
    draft = Draft(sequence.number, len(prompt), check_of(prompt), tuple(drafted), parents)
    assert sequence.offer(1, draft, 0.0).kind is Kind.NEW
    plan = scheduler.step(0.0)
    assert isinstance(plan, PassPlan)
    runner = Runner(target)
    runner.launch(plan)
    scheduler.began(0.0)
    scheduler.verdict(runner.result(), 30.0)
    return sequence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path, seed=2)


def test_every_end_token_of_the_generation_configuration_ends_a_text(folder: Path) -> None:
    prompt = Target.load(str(folder), num_pages=1).tokenizer(PROMPT)["input_ids"]
    endless = plain_text(folder, prompt)
    assert len(endless) == MAX_TOKENS
    # One that the text comes to after some tokens, and not before.
    firsts = [i for i, token in enumerate(endless) if i == endless.index(token)]
    at = next(i for i in firsts if i > 5)
    set_end_tokens(folder, [256, endless[at]])
    expected = plain_text(folder, prompt)
    assert expected == endless[: at + 1]
    sequence = text_of_one_pass(folder, prompt, endless[:-2])
    assert (sequence.output_ids, sequence.finish_reason) == (expected, "stop")
    assert sequence.output_sources == [1] * len(expected)  # all of it was an accepted draft

    done = CliRunner().invoke(
        app,
        ["generate", PROMPT, "--model", str(folder), "--home-draft", ""]
        + ["--max-tokens", str(MAX_TOKENS), "--device", "cpu"],
    )
    assert done.exit_code == 0, done.output
    found = re.search(r"(\d+) tokens in", done.stderr)
    assert found is not None
    assert int(found[1]) == len(expected)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [(79, {79, 256}), ([79, 80], {79, 80, 256}), ([256], {256}), (None, {256})],
    ids=str,
)
def test_the_tokenizers_end_token_is_one_too(
    configured: object, expected: set[int], folder: Path
) -> None:
    set_end_tokens(folder, configured)
    assert Target.load(str(folder), num_pages=1).end_token_ids == expected


def test_a_folder_without_a_generation_configuration(folder: Path) -> None:
    """The model's own configuration says it, as for transformers."""
    (folder / SETTINGS).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 8]}))
    assert Target.load(str(folder), num_pages=1).end_token_ids == {7, 8, 256}
