"""Models with more rows than their tokenizer has tokens, or fewer: no other id is ever said."""

import asyncio
from functools import cache
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drafter.link import Link
from drafter.model import DraftModel
from drafter.session import Session
from tests.tiny_models import VOCAB_SIZE, make_tiny_model, pad_vocabulary
from wanspec_kernels.assembly import Pair
from wanspec_kernels.drafts.outcome import Kind
from wanspec_kernels.drafts.pool import Pool
from wanspec_kernels.engine.engine import Engine
from wanspec_kernels.engine.model import Capacity, Target
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.events import Offered
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.wire import Commit, Draft, Open, check_of, keys
from wanspec_kernels.wire.sampling import Sampling

PROMPT = list(range(40, 60))
TOKENS = 40
WAIT_S = 20.0
PADDINGS = [(0, 64), (64, 0), (64, 128), (7, 3), (0, -40)]  # of the target and of the draft
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "coupled": {"temperature": 1.0, "seed": 5},
    "uncoupled": {"temperature": 1.0, "seed": 5, "share_seed": False},
    "filtered": {"temperature": 1.0, "seed": 5, "top_k": 30, "top_p": 0.9},
    "rejection": {"temperature": 1.0, "seed": 5, "rule": "rejection"},
    "rejection at 0": {"rule": "rejection"},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("plain"), seed=3, pad_token_id=None)


@pytest.fixture(scope="module")
def folders(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of rows past the tokenizer."""
    found = {0: plain}
    for rows in sorted({n for pair in PADDINGS for n in pair} - {0}):
        folder = tmp_path_factory.mktemp(f"padded{rows}")
        found[rows] = pad_vocabulary(plain, folder, rows, seed=rows % 97)
    return found


@cache
def load(folder: Path) -> Target:
    return Target.load(str(folder), dtype=torch.float32, num_pages=40)


@cache
def load_draft(folder: Path) -> DraftModel:
    return DraftModel.load(str(folder), device="cpu")


@cache
def text_alone(folder: Path, way: str) -> list[int]:
    return generate(load(folder), None, **WAYS[way])[0]


def generate(
    target: Target, home: DraftModel | None, **fields: Any
) -> tuple[list[int], Statistics]:
    async def run() -> tuple[list[int], Statistics]:
        async with Pair(target, home).engine() as engine:
            return await decode(engine, PROMPT, Sampling(**fields))

    return asyncio.run(run())


async def decode(
    engine: Engine, prompt: list[int], sampling: Sampling
) -> tuple[list[int], Statistics]:
    stream = engine.submit(Request(tuple(prompt), TOKENS, sampling))
    return [token.token_id async for token in stream], stream.statistics


def test_the_rows_added_would_be_said(folders: dict[int, Path]) -> None:
    """Else nothing here would show a mask that is missing."""
    model = AutoModelForCausalLM.from_pretrained(folders[64])
    text = model.generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False)
    assert text.max() >= VOCAB_SIZE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_with_a_home_drafter(
    padding: tuple[int, int], way: str, plain: Path, folders: dict[int, Path]
) -> None:
    target, draft = load(folders[padding[0]]), load_draft(folders[padding[1]])
    assert target.vocabulary == draft.vocabulary
    token_ids, statistics = generate(target, draft, **WAYS[way])
    assert len(token_ids) == TOKENS
    assert max(token_ids) < VOCAB_SIZE
    assert statistics.home_failures == 0
    assert statistics.outcomes[Kind.INVALID] == 0
    assert statistics.nodes_dropped == 0
    assert statistics.outcomes[Kind.NEW] > 0
    if "rule" not in WAYS[way]:
        assert statistics.home_tokens_accepted > 0
        assert token_ids == text_alone(plain, way)


def remote(folder: Path, way: str, passes: int = 6) -> tuple[Open, list[Draft]]:
    """What a `wanspec-drafter` of this model sends for a request."""
    request = Open.of(1, PROMPT, Sampling(**WAYS[way]), max_nodes=256, max_depth=16)
    session = Session(load_draft(folder))
    assert session.on_message(request) == []
    drafts = []
    for _ in range(passes):
        assert session.step() == []
        drafts += session.drafts()
    text = (*PROMPT, VOCAB_SIZE - 1)  # the target may say any token, also one the draft lacks
    commit = Commit(1, len(text), text[-1:], check_of(text))
    assert session.on_message(commit) == []
    assert session.step() == []
    drafts += session.drafts()
    assert drafts[-1].base_length == len(text)
    return request, drafts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [64, -40])
def test_a_remote_proposes_tokens_only(rows: int, way: str, folders: dict[int, Path]) -> None:
    request, drafts = remote(folders[rows], way)
    pool = Pool(
        1, PROMPT, vocab_size=VOCAB_SIZE, rule=request.rule, num_draws=request.num_draws
    )  # fmt: skip
    pool.enrol(1)
    nodes = [token for draft in drafts for token in draft.token_ids]
    supports = [token for draft in drafts for e in draft.expansions for token in e.token_ids]
    assert len(nodes) > 20
    assert max(nodes + supports) < VOCAB_SIZE
    assert bool(supports) == (request.rule == "rejection")
    for draft in drafts[:-1]:
        outcome = pool.offer(1, draft)
        assert (outcome.kind, outcome.dropped_nodes) == (Kind.NEW, 0)


class Held:
    """A runner whose first pass ends only once it may."""

    def __init__(self, runner: Runner) -> None:
        self.may_end = Event()
        self._runner = runner

    def launch(self, plan: PassPlan) -> None:
        self._runner.launch(plan)

    def result(self) -> list[Verdict]:
        self.may_end.wait(WAIT_S)
        return self._runner.result()


@pytest.mark.parametrize("way", ["greedy", "uncoupled", "rejection"])
def test_over_a_socket(way: str, plain: Path, folders: dict[int, Path], tmp_path: Path) -> None:
    target, draft = load(folders[7]), load_draft(folders[64])
    held = Held(Runner(target))
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    keys.generate(tmp_path, "verifier")
    keys.generate(allowed, "drafter")

    async def run() -> tuple[list[int], Statistics]:
        engine = Pair(target, None).engine(
            bind="tcp://127.0.0.1:*",
            secret=keys.load_secret(tmp_path / "verifier.secret"),
            allowed=keys.AllowList(allowed),
            runner=held,
        )
        async with engine, asyncio.timeout(WAIT_S):
            link = Link(
                Session(draft),
                endpoint=engine.address,
                secret=keys.load_secret(allowed / "drafter.secret"),
                server_public=keys.load_public(tmp_path / "verifier.key"),
                vocabulary=draft.vocabulary,
                model_name="padded",
                max_requests=1,
                max_nodes=128,
            )
            drafter = Thread(target=link.run)
            drafter.start()
            has_drafts = asyncio.Event()
            exchange = engine.scheduler.exchange
            exchange.events.subscribe(
                lambda event: has_drafts.set() if isinstance(event, Offered) else None
            )
            try:
                decoding = asyncio.create_task(decode(engine, PROMPT, Sampling(**WAYS[way])))
                await has_drafts.wait()
                held.may_end.set()
                return await decoding
            finally:
                held.may_end.set()
                link.stop()
                drafter.join()

    token_ids, statistics = asyncio.run(run())
    assert len(token_ids) == TOKENS
    assert max(token_ids) < VOCAB_SIZE
    assert statistics.outcomes[Kind.INVALID] == 0
    assert statistics.outcomes[Kind.NEW] > 0
    assert statistics.nodes_dropped == 0
    if "rule" not in WAYS[way]:
        assert token_ids == text_alone(plain, way)


@pytest.mark.parametrize("captured", [False, pytest.param(True, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_past_the_vocabulary_are_minus_infinity(
    batch: int, captured: bool, plain: Path, folders: dict[int, Path], device: str
) -> None:
    """And no others change."""
    rng = Random(1)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(5 + b)] for b in range(batch)]
    rows = []
    for folder in (plain, folders[64]):
        target = Target.load(str(folder), device=device, dtype=torch.float32, num_pages=40)
        if captured:
            target.capture([Capacity(3, 16, 16)])
        for b, prompt in enumerate(prompts):
            target.prefill(b, prompt)
            target.cache.reserve(b, 20)
        tree = DraftTree.build([((9, 1, 2), (-1, 0, 0))] * batch, target.device)
        lengths = torch.tensor([len(p) for p in prompts], dtype=torch.int32).to(device)
        rows.append(target.logits(tree, lengths, target.cache.page_table(list(range(batch)))))
    exact, padded = rows
    assert padded.shape == (3 * batch, VOCAB_SIZE + 64)
    assert (padded[:, VOCAB_SIZE:] == -torch.inf).all()
    torch.testing.assert_close(padded[:, :VOCAB_SIZE], exact)


def test_a_pair_of_one_tokenizer_goes_together(folders: dict[int, Path]) -> None:
    pair = Pair.load(str(folders[64]), str(folders[7]), device="cpu")
    assert pair.target.vocab_size == pair.home.vocab_size == VOCAB_SIZE


def test_a_target_that_lacks_tokens(folders: dict[int, Path]) -> None:
    """It cannot read them, and says so of a prompt."""
    target = load(folders[-40])
    assert target.vocab_size == VOCAB_SIZE - 40
    with pytest.raises(ValueError, match=r"expected tokens of 0\.\.219"):
        asyncio.run(_generate(target, [1, 230]))


async def _generate(target: Target, prompt: list[int]) -> None:
    async with Pair(target, None).engine() as engine:
        await decode(engine, prompt, Sampling())
