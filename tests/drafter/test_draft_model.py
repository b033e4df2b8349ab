"""DraftModel: keys and values in slots give what a plain forward gives."""

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drafter.candidates import Ranker
from drafter.growth import Growth, GrowthShape
from drafter.model import DraftModel
from drafter.plan import Plan
from tests.drafter.test_growth import open_request
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from wanspec_kernels.noise import gumbel
from wanspec_kernels.sampling import cutoff

SHAPE = GrowthShape(width=4, prompt_chunk=16)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp(request.param), 3, arch=request.param)


@pytest.fixture(scope="module")
def model(folder):
    return DraftModel.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@torch.inference_mode()
def fresh_logits(plain, text) -> torch.Tensor:
    return plain(torch.tensor([text])).logits[0, -1]


class Request:
    """A growth with its store, and for every plan the texts that its rows end."""

    def __init__(self, model, text, **changes) -> None:
        self.growth = Growth(
            open_request(text, **changes),
            max_positions=model.max_positions,
            max_nodes=256,
            shape=SHAPE,
        )
        self.store = model.new_store()
        self.text = list(text)
        self.held: dict[int, tuple[int, ...]] = {}

    def texts(self, plan: Plan) -> list[tuple[int, ...]]:
        for i, slot in enumerate(plan.slots.tolist()):
            seen = [s for s in np.flatnonzero(plan.visible[i]).tolist() if s != slot]
            above = max((self.held[s] for s in seen), key=len, default=())
            self.held[slot] = (*above, int(plan.token_ids[i]))
        return [self.held[int(plan.slots[row])] for row in plan.rows]

    def commit(self, tokens) -> None:
        self.growth.commit(tokens)
        self.text += tokens


def run_pass(model, requests) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """One pass over all requests; (text, logits) of every row."""
    live = [(r, plan) for r in requests if (plan := r.growth.plan()) is not None]
    if not live:
        return []
    texts = [r.texts(plan) for r, plan in live]
    logits = model.run([(r.store, plan) for r, plan in live])
    samplings = [s for r, plan in live for s in r.growth.samplings(plan)]
    ranked = Ranker().rank(logits, samplings)
    rows = []
    start = 0
    for (r, plan), own in zip(live, texts, strict=True):
        r.growth.absorb(plan, ranked[start : start + len(own)])
        rows += zip(own, logits[start : start + len(own)], strict=True)
        start += len(own)
    return rows


def random_text(random: Random, low: int, high: int) -> list[int]:
    return [random.randrange(256) for _ in range(random.randrange(low, high))]


def test_logits_after_random_commits_are_those_of_a_fresh_forward(model, plain):
    random = Random(1)
    requests = [Request(model, random_text(random, 1, 40), max_nodes=24) for _ in range(3)]
    compared = 0
    for step in range(60):
        for text, row in run_pass(model, requests):
            if step % 4 == 0 or compared < 20:
                torch.testing.assert_close(row, fresh_logits(plain, text), rtol=1e-4, atol=2e-4)
                compared += 1
        for r in requests:
            if random.random() < 0.4:
                node, path = r.growth._root, []
                while node.children and random.random() < 0.8:
                    node = random.choice(list(node.children.values()))
                    path.append(node.token)
                r.commit([*path, random.randrange(256)])
    assert compared > 60
    assert all(len(r.text) > 30 for r in requests)


def test_a_forgotten_rollback_would_show(model, plain):
    """The twin of the test above: one slot of a pruned sibling left visible changes the logits."""
    text = list(b"once upon")
    r = Request(model, text)
    run_pass(model, [r])
    run_pass(model, [r])
    plan = r.growth.plan()
    above = next(i for i in range(plan.visible.shape[1]) if not plan.visible[0, i])
    visible = plan.visible.copy()
    visible[0, above] = True
    wrong = model.run([(r.store, replace(plan, visible=visible))])[0]
    right = model.run([(r.store, plan)])[0]
    assert (wrong - right).abs().max() > 1e-2


def test_requests_in_one_pass_do_not_see_each_other(model):
    texts = [list(b"a"), list(b"the quick brown fox"), list(b"0123456789" * 4)]
    together = [Request(model, t) for t in texts]
    apart = [Request(model, t) for t in texts]
    for _ in range(6):
        joint = dict(run_pass(model, together))
        single = dict(row for r in apart for row in run_pass(model, [r]))
        assert joint.keys() == single.keys()
        for text, row in joint.items():
            torch.testing.assert_close(row, single[text], rtol=1e-4, atol=1e-4)


def test_a_store_grows_without_losing_anything(model, plain):
    text = np.random.default_rng(0).integers(0, 256, 300).tolist()
    rows = []
    r = Request(model, text)
    while not rows:
        rows = run_pass(model, [r])
    torch.testing.assert_close(rows[0][1], fresh_logits(plain, text), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 20}, {"top_p": 0.8}, {"top_k": 50, "top_p": 0.9, "min_p": 0.02}]
)
def test_coupled_drafts_say_what_a_target_of_the_same_weights_samples(model, plain, filters):
    seed, temperature = -3, 0.8
    text = list(b"hello")
    r = Request(model, text, temperature=temperature, seed=seed, **filters)
    vocab = torch.arange(VOCAB_SIZE)
    for _ in range(24):
        logits = fresh_logits(plain, r.text)
        noise = gumbel(vocab, torch.tensor(len(r.text)), torch.tensor(seed))
        least = cutoff(
            logits,
            1 / temperature,
            filters.get("top_k", 0),
            filters.get("top_p", 1.0),
            filters.get("min_p", 0.0),
        )
        scores = torch.where(logits >= least, logits / temperature + noise, float("-inf"))
        sampled = int(scores.argmax())
        run_pass(model, [r])
        first = next(iter(r.growth._root.children.values()))
        assert first.token == sampled
        r.commit([sampled])


def test_unseeded_candidates_follow_temperature_and_filters(model, plain):
    text = list(b"hello")
    logits = fresh_logits(plain, text)
    r = Request(model, text, temperature=0.5, top_k=3)
    plan = r.growth.plan()
    rows = model.run([(r.store, plan)])
    (found,) = Ranker().rank(rows, r.growth.samplings(plan))
    expected = (logits / 0.5).topk(3)
    assert found.token_ids[:3] == tuple(expected.indices.tolist())
    assert found.probabilities[:3] == pytest.approx(expected.values.softmax(0).tolist(), rel=1e-3)
    assert set(found.probabilities[3:]) == {0.0}


def test_rows_that_are_not_finite_have_no_candidates():
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, float("inf"), 1.0], [0.0, 2.0, 1.0]])
    growth = Growth(open_request(), max_positions=64, max_nodes=8)
    rows = growth.samplings(growth.plan()) * 3
    found = Ranker().rank(logits, rows)
    assert [c.token_ids for c in found] == [(), (), (1, 2, 0)]


def test_a_sliding_window_bounds_the_positions(tmp_path):
    folder = make_tiny_model(tmp_path, 0, arch="mistral", sliding_window=64)
    assert DraftModel.load(str(folder), device="cpu").max_positions == 64


def test_attention_outside_the_interface_is_refused(model):
    def bare(input_ids, **_):
        return type("Output", (), {"logits": torch.zeros(1, 1, VOCAB_SIZE)})()

    bare.config, bare.device = model._model.config, torch.device("cpu")
    with pytest.raises(NotImplementedError, match="through transformers' interface"):
        DraftModel(bare, SimpleNamespace(get_vocab=lambda: {"a": 259}), "bare")._probe()
