"""Whatever trees a TreeDecoder is given, it commits the text of the target alone."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from wanspec_kernels import noise
from wanspec_kernels.engine.model import InvalidLogitsError, Target, TreeDecoder
from wanspec_kernels.kv_cache import CacheFullError
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import Expansion, HostTree

PROMPT = [5, 17, 201, 3, 3, 90]
GREEDY = SamplingParams.build(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model(folder, seed=4, num_attention_heads=6, hidden_size=48)


@pytest.fixture(scope="module")
def target(folder: Path, device: str) -> Target:
    return Target.load(str(folder), device=device, dtype=torch.float32, num_pages=40)


def guess(root: int, future: list[int], rng: random.Random) -> HostTree:
    """A random tree, with a part of the true continuation at a random place in it."""
    tokens, parents, on_path = [root], [-1], 0
    right = rng.choice((0, 0, 1, 3, 6))
    for _ in range(rng.randrange(20)):
        if right and future and rng.random() < 0.4:
            tokens.append(future[0])
            parents.append(on_path)
            on_path, future, right = len(tokens) - 1, future[1:], right - 1
        else:
            tokens.append(rng.randrange(VOCAB_SIZE))
            parents.append(rng.randrange(len(tokens) - 1))
    return HostTree(tuple(tokens), tuple(parents))


def decode(
    decoder: TreeDecoder, request: int, text: list[int], length: int, rng: random.Random
) -> tuple[list[int], int]:
    """Text of at least `length` tokens decoded by guessed trees, and the number of passes."""
    committed, passes = list(PROMPT), 0
    while len(committed) < length:
        tree = guess(committed[-1], text[len(committed) :], rng)
        tokens, accepted = decoder.verify(request, tree)
        assert len(tokens) == len(accepted) + 1
        assert [tree.token_ids[node] for node in accepted] == tokens[:-1]
        assert [tree.parents[node] for node in accepted] == [0, *accepted][: len(accepted)]
        committed += tokens
        passes += 1
    assert decoder.length(request) == len(committed)
    return committed, passes


def decode_alone(target: Target, sampling: SamplingParams, length: int) -> list[int]:
    """By trees of one node."""
    decoder, text = TreeDecoder(target), list(PROMPT)
    decoder.start(0, text, sampling)
    while len(text) < length:
        text += decoder.verify(0, HostTree((text[-1],), (-1,)))[0]
    decoder.finish(0)
    return text


def test_greedy_text_is_that_of_generate(folder: Path, target: Target, device: str) -> None:
    assert_text_of_generate(folder, target, device)


def test_greedy_text_under_a_sliding_window(tmp_path: Path, device: str) -> None:
    """Accepted entries move; what a window counts are positions."""
    make_tiny_model(tmp_path, seed=5, arch="mistral", sliding_window=9)
    target = Target.load(str(tmp_path), device=device, dtype=torch.float32, num_pages=40)
    assert_text_of_generate(tmp_path, target, device)


def assert_text_of_generate(folder: Path, target: Target, device: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    config = GenerationConfig(max_new_tokens=80, do_sample=False, pad_token_id=256)
    prompt = torch.tensor([PROMPT], device=device)
    mask = torch.ones_like(prompt)
    text = plain.generate(prompt, attention_mask=mask, generation_config=config)[0].tolist()
    decoder = TreeDecoder(target)
    for seed in range(4):
        decoder.start(seed, PROMPT, GREEDY)
        committed, passes = decode(decoder, seed, text, 80, random.Random(seed))
        assert committed[: len(text)] == text[: len(committed)]
        assert passes < 60  # some guesses were right
        decoder.finish(seed)
    assert target.cache.num_free_pages == target.cache.num_pages


@pytest.mark.parametrize("filters", [{}, {"top_k": 20, "top_p": 0.9}], ids=["plain", "filtered"])
def test_sampled_text_does_not_depend_on_the_trees(
    filters: dict[str, float], target: Target
) -> None:
    sampling = SamplingParams.build(1, temperature=0.8, seed=12, **filters)
    text = decode_alone(target, sampling, 70)
    assert text != decode_alone(target, SamplingParams.build(1, temperature=0.8, seed=13), 70)
    decoder = TreeDecoder(target)
    for seed in range(3):
        decoder.start(seed, PROMPT, sampling)
        committed, passes = decode(decoder, seed, text, 60, random.Random(seed))
        shared = min(len(text), len(committed))
        assert committed[:shared] == text[:shared]
        assert passes < 54
    for seed in range(3):
        decoder.finish(seed)


def test_a_sampled_token_has_the_noise_of_its_position(
    folder: Path, target: Target, device: str
) -> None:
    """Else a coupled drafter, whose noise is that of docs/design.md, would only look bad."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    row = plain(input_ids=torch.tensor([PROMPT], device=device)).logits[0, -1].detach().cpu()
    decoder = TreeDecoder(target)
    for seed in range(8):
        decoder.start(seed, PROMPT, SamplingParams.build(1, temperature=2.0, seed=seed))
        tokens, _ = decoder.verify(seed, HostTree((PROMPT[-1],), (-1,)))
        position = torch.tensor(len(PROMPT))
        scores = row / 2 + noise.gumbel_row(len(row), position, torch.tensor(seed))
        assert tokens == [int(scores.argmax())]
        decoder.finish(seed)


def test_requests_alternate(target: Target) -> None:
    text = decode_alone(target, GREEDY, 60)
    decoder, rng = TreeDecoder(target), random.Random(9)
    prompts = {1: PROMPT, 2: text[:30], 3: text[:17]}
    for request, prompt in prompts.items():
        decoder.start(request, prompt, GREEDY)
    texts = {request: list(prompt) for request, prompt in prompts.items()}
    while min(map(len, texts.values())) < 55:
        request = rng.choice([r for r in texts if len(texts[r]) < 55])
        tree = guess(texts[request][-1], text[len(texts[request]) :], rng)
        texts[request] += decoder.verify(request, tree)[0]
    for request, committed in texts.items():
        shared = min(len(text), len(committed))
        assert committed[:shared] == text[:shared]
        decoder.finish(request)


def test_rejection_rule_takes_expansions(target: Target) -> None:
    """A draft that is the target's own greedy text, drawn with certainty, is accepted whole."""
    text = decode_alone(target, GREEDY, len(PROMPT) + 4)
    future = text[len(PROMPT) :]
    tree = HostTree(
        (PROMPT[-1], *future[:3]),
        (-1, 0, 1, 2),
        tuple(Expansion(i, (i + 1,), (future[i],), (65535,)) for i in range(3)),
    )
    decoder = TreeDecoder(target)
    decoder.start(1, PROMPT, GREEDY)
    assert decoder.verify(1, tree) == (future[:4], [1, 2, 3])
    decoder.finish(1)


def test_a_tree_says_by_which_rule_and_how_it_was_drawn(target: Target) -> None:
    """One decoder serves requests of both rules, and of two trees alike only one was drawn."""
    decoder, sampling = TreeDecoder(target), SamplingParams.build(1, temperature=0.8, seed=3)
    for request in range(3):
        decoder.start(request, PROMPT, sampling)
    own = decode_alone(target, sampling, len(PROMPT) + 1)[-1]
    tokens, parents = (PROMPT[-1], own), (-1, 0)
    assert decoder.verify(0, HostTree(tokens, parents))[1] == [1]
    # So rare in what it was drawn from that its coin accepts it.
    draw = Expansion(0, (1,), (own, (own + 1) % VOCAB_SIZE), (1, 65535))
    assert decoder.verify(1, HostTree(tokens, parents, (draw,)))[1] == [1]
    assert decoder.verify(2, HostTree(tokens, parents, ()))[1] == []
    for request in range(3):
        decoder.finish(request)


def test_draws_of_one_token_twice_are_draws_with_replacement(target: Target) -> None:
    twice = (Expansion(0, (1, 1), (7, 8), (1, 1)),)
    decoder = TreeDecoder(target)
    decoder.start(1, PROMPT, GREEDY)
    with pytest.raises(ValueError, match="drawn without replacement, yet a token twice"):
        decoder.verify(1, HostTree((PROMPT[-1], 7), (-1, 0), twice))
    decoder.verify(1, HostTree((PROMPT[-1], 7), (-1, 0), twice, replacement=True))
    decoder.finish(1)


def test_logits_that_are_no_numbers(folder: Path, device: str) -> None:
    """Nothing is committed, and the request lives on."""
    target = Target.load(str(folder), device=device, dtype=torch.float32, num_pages=10)
    decoder = TreeDecoder(target)
    decoder.start(4, PROMPT, GREEDY)
    head = target.model.get_output_embeddings().weight
    kept = head.detach().clone()
    with torch.no_grad():
        head[7] = torch.nan
        with pytest.raises(InvalidLogitsError, match=r"request 4: .* after 6 tokens hold NaN"):
            decoder.verify(4, HostTree((90, 1), (-1, 0)))
        head.copy_(kept)
    tokens, _ = decoder.verify(4, HostTree((90,), (-1,)))
    assert [*PROMPT, *tokens] == decode_alone(target, GREEDY, 7)


def test_start_refuses(target: Target) -> None:
    decoder = TreeDecoder(target)
    with pytest.raises(ValueError, match=r"token_ids: expected 1\.\.512 tokens, got 0"):
        decoder.start(1, [], GREEDY)
    with pytest.raises(ValueError, match=r"token_ids: expected 0\.\.259, got 260"):
        decoder.start(1, [1, 260], GREEDY)
    with pytest.raises(ValueError, match="sampling: expected one request, got 2"):
        decoder.start(1, [1], SamplingParams.build(2))
    decoder.start(1, [1], GREEDY)
    with pytest.raises(ValueError, match="request 1: expected a new one"):
        decoder.start(1, [1], GREEDY)
    decoder.start(2, [1] * 500, GREEDY)
    with pytest.raises(CacheFullError, match="request 3: 300 slots need 19 more pages"):
        decoder.start(3, [1] * 300, GREEDY)
    decoder.finish(3)
    decoder.finish(2)
    decoder.finish(1)
    assert target.cache.num_free_pages == target.cache.num_pages


def test_verify_refuses(target: Target) -> None:
    decoder = TreeDecoder(target)
    with pytest.raises(KeyError, match="request 1: never started"):
        decoder.verify(1, HostTree((1,), (-1,)))
    decoder.start(1, [8] * 510, GREEDY)
    for tree, message in (
        (HostTree((), ()), "expected the last committed token 8 at the root, got no nodes"),
        (HostTree((9,), (-1,)), "expected the last committed token 8 at the root, got 9"),
        (HostTree((8, 260), (-1, 0)), r"token_ids: expected 0\.\.259, got 260"),
        (HostTree((8, 1, 1), (-1, 2, 0)), r"tree 0, node 1: expected a parent in 0\.\.0, got 2"),
        (HostTree((8,) * 4, (-1, 0, 0, 0)), "at most 3 nodes after 509 tokens of context, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.verify(1, tree)
    assert decoder.length(1) == 510
    decoder.finish(1)
