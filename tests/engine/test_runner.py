"""Whatever shares a pass, each request has the text that it has alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.batches import Text, decode
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from wanspec_kernels.engine.model import Target, TreeDecoder
from wanspec_kernels.engine.model.capacity import ladder
from wanspec_kernels.engine.plan import Part, PassPlan
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.kv_cache.pages import PageAllocator
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import Expansion, HostTree
from wanspec_kernels.wire.sampling import Sampling

NUM_PAGES = 96
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=1.2, top_k=20, seed=4),
    Sampling(temperature=0.7, top_p=0.9, min_p=0.01, seed=5),
    Sampling(temperature=0.9, seed=6, rule="rejection", num_draws=2),
    Sampling(temperature=0.0, rule="rejection", num_draws=3, replacement=True),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), seed=4)


@pytest.fixture(scope="module")
def target(folder: Path, device: str) -> Target:
    return Target.load(str(folder), device=device, dtype=torch.float32, num_pages=NUM_PAGES)


def prompt_of(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 2, 9, 40, 70)))]


def alone(target: Target, prompt: list[int], sampling: Sampling, count: int) -> list[int]:
    """By trees of one node, with a cache of its own."""
    params = SamplingParams.build(
        1,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )
    decoder, text = TreeDecoder(target), list(prompt)
    decoder.start(0, text, params)
    while len(text) < len(prompt) + count:
        text += decoder.verify(0, HostTree((text[-1],), (-1,)))[0]
    decoder.finish(0)
    return text


def guess_from(future: list[int]):
    """Trees with a part of the true continuation somewhere in them."""

    def guess(text: Text, rng: random.Random) -> HostTree:
        known = len(text.token_ids)
        tokens, parents = [text.token_ids[-1]], [-1]
        ahead, on_path = future[known : known + rng.choice((0, 2, 5))], 0
        for _ in range(rng.randrange(12)):
            at = rng.randrange(len(tokens))
            token = rng.randrange(VOCAB_SIZE)
            if ahead and rng.random() < 0.6:
                at, token, ahead = on_path, ahead[0], ahead[1:]
                on_path = len(tokens)
            tokens.append(token)
            parents.append(at)
        return HostTree(tuple(tokens), tuple(parents))

    return guess


def draw(text: Text, rng: random.Random) -> HostTree:
    """Draws at the root, from weights that have nothing to do with the target."""
    s = text.sampling
    support = rng.sample(range(VOCAB_SIZE), 5)
    weights = tuple(rng.randint(1, 65535) for _ in support)
    drawn = []
    for _ in range(s.num_draws):
        left = [t for t in support if s.replacement or t not in drawn]
        drawn.append(rng.choices(left, [weights[support.index(t)] for t in left])[0])
    nodes = list(dict.fromkeys(drawn))
    children = tuple(1 + nodes.index(token) for token in drawn)
    return HostTree(
        (text.token_ids[-1], *nodes),
        (-1, *[0] * len(nodes)),
        (Expansion(0, children, tuple(support), weights),),
        s.replacement,
    )


@pytest.mark.parametrize("seed", range(4))
def test_each_text_is_the_one_it_has_alone(seed: int, target: Target) -> None:
    rng = random.Random(seed)
    texts, expected = [], {}
    for number in range(9):
        sampling = SAMPLINGS[number % 4]
        prompt = prompt_of(10 * seed + number)
        expected[number] = alone(target, prompt, sampling, 36)
        texts.append(
            Text(number, list(prompt), sampling, guess_from(expected[number]), len(prompt) + 30)
        )
    decode(Runner(target), texts, PageAllocator(NUM_PAGES, 16), rng)
    for text in texts:
        shared = min(len(text.token_ids), len(expected[text.request]))
        assert text.token_ids[:shared] == expected[text.request][:shared]
    assert sum(text.passes for text in texts) < 9 * 26  # some guesses were right


def test_rules_share_a_pass(target: Target) -> None:
    """Greedy text is the target's own under both rules, and a sampled one as it is alone."""
    texts, expected = [], {}
    for number, sampling in enumerate((*SAMPLINGS, *SAMPLINGS)):
        prompt = prompt_of(number)
        match = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
                         sampling.seed)  # fmt: skip
        expected[number] = alone(target, prompt, match, 20)
        by = draw if sampling.rule == "rejection" else guess_from(expected[number])
        texts.append(Text(number, list(prompt), sampling, by, len(prompt) + 16))
    rng = random.Random(1)
    decode(Runner(target), texts, PageAllocator(NUM_PAGES, 16), rng)
    for text in texts:
        if text.sampling.rule == "match" or text.sampling.temperature == 0:
            shared = min(len(text.token_ids), len(expected[text.request]))
            assert text.token_ids[:shared] == expected[text.request][:shared]


def test_log_probabilities_are_those_of_the_model(folder: Path, target: Target) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(target.device)
    texts = []
    for number, wanted in enumerate((3, None, 0, 5)):
        prompt = prompt_of(number)
        sampling = Sampling(temperature=0.9, top_k=40, seed=number)
        future = alone(target, prompt, sampling, 30)
        texts.append(
            Text(number, list(prompt), sampling, guess_from(future), len(prompt) + 20,
                 num_logprobs=wanted)
        )  # fmt: skip
    prompts = [len(text.token_ids) for text in texts]
    decode(Runner(target), texts, PageAllocator(NUM_PAGES, 16), random.Random(2))
    for text, begin in zip(texts, prompts, strict=True):
        if text.num_logprobs is None:
            assert text.logprobs == []
            continue
        ids = torch.tensor([text.token_ids], device=target.device)
        rows = plain(input_ids=ids).logits[0].detach().log_softmax(-1)[begin - 1 : -1].cpu()
        assert len(text.logprobs) == len(rows)
        for row, token, found in zip(rows, text.token_ids[begin:], text.logprobs, strict=True):
            assert found.chosen == pytest.approx(float(row[token]), abs=1e-4)
            top = row.topk(text.num_logprobs)
            assert list(found.top_ids) == top.indices.tolist()
            assert list(found.top) == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_bitmask_binds_its_request_alone(target: Target) -> None:
    prompt, pages = prompt_of(7), PageAllocator(NUM_PAGES, 16)
    free = alone(target, prompt, Sampling(), 1)[-1]
    allowed = np.full((1, (VOCAB_SIZE + 31) // 32), -1, dtype=np.int32)
    allowed[0, free // 32] &= ~np.int32(1 << (free % 32))
    parts = []
    for number, mask in enumerate((None, allowed, None)):
        pages.reserve(number, len(prompt))
        tree = HostTree((prompt[-1],), (-1,))
        held = tuple(pages.pages_of(number))
        parts.append(Part(number, 0, tuple(prompt[:-1]), tree, held, Sampling(), bitmask=mask))
    runner = Runner(target)
    runner.launch(PassPlan(tuple(parts)))
    said = [verdict.token_ids[0] for verdict in runner.result()]
    assert said[0] == said[2] == free
    assert said[1] != free


def test_logits_that_are_no_numbers_cost_their_request_alone(folder: Path, device: str) -> None:
    target = Target.load(str(folder), device=device, dtype=torch.float32, num_pages=8)
    embedding = target.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[9] = torch.nan
    parts = [
        Part(number, 0, (), HostTree((token,), (-1,)), (number,), Sampling())
        for number, token in enumerate((5, 9, 6))
    ]
    runner = Runner(target)
    runner.launch(PassPlan(tuple(parts)))
    verdicts = runner.result()
    assert [verdict.is_invalid for verdict in verdicts] == [False, True, False]
    assert [len(verdict.token_ids) for verdict in verdicts] == [1, 0, 1]


def test_only_rows_that_decide_go_through_the_head(target: Target) -> None:
    seen: list[int] = []
    head = target.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, out: seen.append(out.shape[-2]))
    try:
        prompt = prompt_of(3)
        parts = (
            Part(0, 0, tuple(prompt), None, (0, 1, 2, 3, 4), Sampling()),
            Part(1, 0, (4, 5), HostTree((6, 7), (-1, 0)), (5,), Sampling()),
        )
        runner = Runner(target)
        runner.launch(PassPlan(parts))
        assert len(runner.result()) == 1
    finally:
        hook.remove()
    assert seen == [2]


class Watched:
    """A target after whose pass nothing may wait for the device."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)

    def logits(self, *args: object, **options: object) -> torch.Tensor:
        logits = self._target.logits(*args, **options)
        torch.cuda.set_sync_debug_mode("error")
        return logits


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("captured", [False, True], ids=["launched", "captured"])
def test_a_launch_does_not_wait_for_the_pass(folder: Path, device: str, captured: bool) -> None:
    target = Target.load(str(folder), device=device, dtype=torch.float32, num_pages=NUM_PAGES)
    if captured:
        target.capture(ladder((4, 16), max_batch=4, max_rows=16, max_nodes=16))
    mask = np.full((2, (VOCAB_SIZE + 31) // 32), -1, dtype=np.int32)
    parts = (
        Part(0, 0, (4, 5, 6), HostTree((6, 7), (-1, 0)), (0,), SAMPLINGS[1], 2, mask),
        Part(1, 0, (7, 8), None, (1,), Sampling()),
        Part(2, 0, (), draw(Text(2, [5], SAMPLINGS[4], draw, 9), random.Random(0)), (2,),
             SAMPLINGS[4]),
    )  # fmt: skip
    runner = Runner(Watched(target))
    for _ in range(2):  # What is compiled at first use may wait.
        try:
            runner.launch(PassPlan(parts))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(runner.result()) == 2


def test_what_does_not_fit_is_refused_and_nothing_is_under_way(target: Target) -> None:
    runner = Runner(target)
    tree = HostTree((5, 6), (-1, 0))
    with pytest.raises(ValueError, match="pages for 18 slots, got 1 with 16"):
        runner.launch(PassPlan((Part(1, 16, (), tree, (0,), Sampling()),)))
    bad = HostTree((VOCAB_SIZE,), (-1,))
    with pytest.raises(ValueError, match=f"tokens of 0..{VOCAB_SIZE - 1}"):
        runner.launch(PassPlan((Part(1, 0, (), bad, (0,), Sampling()),)))
    with pytest.raises(RuntimeError, match="there is none"):
        runner.result()
    runner.launch(PassPlan((Part(1, 0, (), tree, (0,), Sampling()),)))
    with pytest.raises(RuntimeError, match="result"):
        runner.launch(PassPlan((Part(1, 0, (), tree, (0,), Sampling()),)))
    assert len(runner.result()) == 1
