"""Merged projections give what the separate ones gave, in fewer products, whoever calls them."""

import copy
import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from tests.model.architectures import SUPPORTED, VOCAB, make_pair, run_trees
from tests.paged_trees import random_trees
from tests.tiny_models import make_tiny_model
from wanspec_kernels.engine.model import Target, model
from wanspec_kernels.engine.model.compiled import compiled_layers
from wanspec_kernels.engine.model.merged import MergedProjection, merge_projections

# Products a layer saves: two of query, key and value, one of gate and up.
SAVED = {
    "phi3, fused projections": 0,
    "phi3, sliding": 0,
    "nemotron, keeps arguments from its attention": 2,  # no gate
    "mixtral": 2,  # experts are transformers' to merge
    "gpt_oss, sinks": 2,
}
PASSES = 3  # two of prompts, and that of the trees


class CountProducts(TorchFunctionMode):
    """Calls of torch's linear by whatever runs within."""

    count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function is functional.linear
        return function(*args, **(kwargs or {}))


def make_target(name: str, *, merged: bool, device: str = "cpu") -> Target:
    with pytest.MonkeyPatch.context() as patch:
        if not merged:
            patch.setattr(model, "merge_projections", lambda _: None)
        return make_pair(*SUPPORTED[name], device)[1]


def run_three_trees(target: Target) -> Tensor:
    """Their logits, behind contexts of three lengths."""
    rng = random.Random(1)
    texts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (3, 40, 0)]
    logits, _ = run_trees(target, texts, random_trees([1, 14, 6], rng, VOCAB), chunk=64)
    for request in range(len(texts)):
        target.cache.free(request)
    return logits


def logits_and_products(target: Target) -> tuple[Tensor, int]:
    """Of three trees; and how many products a pass takes, of the prompts' passes too."""
    with CountProducts() as products:
        logits = run_three_trees(target)
    assert products.count % PASSES == 0
    return logits, products.count // PASSES


@pytest.mark.parametrize("name", SUPPORTED)
def test_fewer_products_and_the_same_logits(name: str, device: str) -> None:
    logits, products = logits_and_products(make_target(name, merged=True, device=device))
    separate = make_target(name, merged=False, device=device)
    expected, separate_products = logits_and_products(separate)
    layers = separate.model.config.num_hidden_layers
    assert separate_products - products == layers * SAVED.get(name, 3)
    assert (logits - expected).norm() <= 1e-6 * expected.norm()


def test_a_layer_of_a_llama_has_four_products() -> None:
    for merged, a_layer in ((False, 7), (True, 4)):
        target = make_target("llama of 3 layers, 5 heads", merged=merged)
        _, products = logits_and_products(target)
        assert products == 3 * a_layer + 1  # the head


class Parent(nn.Module):
    """Projections of 5 numbers to 4, 2 and 3."""

    def __init__(self, biases: tuple[bool, bool, bool] = (True, True, True)) -> None:
        super().__init__()
        sizes = {"q_proj": 4, "k_proj": 2, "v_proj": 3}
        for (name, size), bias in zip(sizes.items(), biases, strict=True):
            setattr(self, name, nn.Linear(5, size, bias))

    @property
    def projections(self) -> list[nn.Module]:
        return [self.q_proj, self.k_proj, self.v_proj]


def merged_names(parent: nn.Module) -> list[str]:
    return [name for name, m in parent.named_children() if isinstance(m, MergedProjection)]


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_any_order_and_any_input(bias: bool) -> None:
    """A thousand calls at random: repeated, left out, and with inputs that alternate."""
    parent = Parent((bias,) * 3)
    separate = copy.deepcopy(parent)
    merge_projections(parent)
    rng = random.Random(3)
    inputs = [torch.randn(1, n, 5) for n in (1, 4, 4)]
    for _ in range(1000):
        i, x = rng.randrange(3), rng.choice(inputs)
        result, expected = parent.projections[i](x), separate.projections[i](x)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        result.mul_(2)  # as models scale a query in place: no part is part of another


@torch.no_grad()
def test_one_product_whatever_the_order() -> None:
    parent = Parent()
    merge_projections(parent)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        x = torch.randn(2, 5)
        with CountProducts() as products:
            for i in order:
                parent.projections[i](x)
        assert products.count == 1


@torch.no_grad()
def test_a_pass_that_broke_off_leaves_nothing_to_the_next() -> None:
    parent = Parent()
    separate = copy.deepcopy(parent)
    merge_projections(parent)
    parent.q_proj(torch.randn(2, 5))
    x = torch.randn(2, 5)
    with CountProducts() as products:
        for i in range(3):
            expected = separate.projections[i](x)
            torch.testing.assert_close(parent.projections[i](x), expected)
    assert products.count == 3 + 1


def test_those_of_one_kind_are_merged() -> None:
    for biases, expected in (
        ((True, False, True), ["q_proj", "v_proj"]),
        ((False, True, True), ["k_proj", "v_proj"]),
        ((False, False, False), ["q_proj", "k_proj", "v_proj"]),
    ):
        parent = Parent(biases)
        merge_projections(parent)
        assert merged_names(parent) == expected


class Subclass(nn.Linear):
    pass


class Quantised(torch.Tensor):
    pass


def quantise(parent: Parent) -> None:
    data = parent.k_proj.weight.detach().as_subclass(Quantised)
    parent.k_proj.weight = nn.Parameter(data)
    assert type(parent.k_proj.weight) is Quantised


def adapt(parent: Parent) -> None:
    parent.k_proj.adapter = nn.Linear(5, 2)


def patch_forward(parent: Parent) -> None:
    parent.k_proj.forward = lambda x: x[..., :2]  # type: ignore[method-assign]


def tie(parent: Parent) -> None:
    parent.other = nn.Linear(5, 2)
    parent.other.weight = parent.k_proj.weight


LEFT_ALONE: dict[str, Callable[[Parent], Any]] = {
    "a subclass": lambda parent: setattr(parent, "k_proj", Subclass(5, 2)),
    "no module": lambda parent: setattr(parent, "k_proj", None),
    "a quantised weight": quantise,
    "an adapter": adapt,
    "a hook": lambda parent: parent.k_proj.register_forward_hook(lambda *_: None),
    "a hook before": lambda parent: parent.k_proj.register_forward_pre_hook(lambda *_: None),
    "a replaced forward": patch_forward,
    "a parametrisation": lambda parent: parametrize.register_parametrization(
        parent.k_proj, "weight", nn.Identity()
    ),
    "a tied weight": tie,
    "another dtype": lambda parent: parent.k_proj.to(torch.float64),
    "another device": lambda parent: parent.k_proj.to("meta"),
    "another width": lambda parent: setattr(parent, "k_proj", nn.Linear(6, 2)),
    "frozen": lambda parent: parent.k_proj.requires_grad_(False),
}


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_is_not_plain_stays(what: str) -> None:
    parent = Parent()
    LEFT_ALONE[what](parent)
    before = parent.k_proj
    merge_projections(parent)
    assert parent.k_proj is before
    assert merged_names(parent) == ["q_proj", "v_proj"]


def test_one_module_in_two_places_stays() -> None:
    parent = Parent()
    parent.k_proj = parent.v_proj
    merge_projections(parent)
    assert merged_names(parent) == []


def test_weights_are_freed_a_group_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than one group lies in memory twice, and none once a model is gone."""
    layers = nn.ModuleList([Parent() for _ in range(4)])
    old = [[weakref.ref(p.weight) for p in layer.projections] for layer in layers]
    alive = []
    cat = torch.cat

    def watched(tensors: list[Tensor]) -> Tensor:
        alive.append(sum(ref() is not None for group in old for ref in group))
        return cat(tensors)

    monkeypatch.setattr(torch, "cat", watched)
    gc.disable()  # nothing may wait for the collector
    try:
        merge_projections(layers)
        assert alive == [12, 12, 9, 9, 6, 6, 3, 3]  # weights and biases of each group
        assert not any(ref() for group in old for ref in group)
        with torch.no_grad():
            layers[0].q_proj(torch.ones(5))
        merged = weakref.ref(layers[0].q_proj.merged.weight)
        del layers
        assert merged() is None
    finally:
        gc.enable()


def test_bytes_and_names_stay() -> None:
    target = make_target("qwen2, biased", merged=True)
    separate = make_target("qwen2, biased", merged=False)
    for count in (lambda m: sum(p.nbytes for p in m.parameters()), lambda m: m.num_parameters()):
        assert count(target.model) == count(separate.model)
    assert merged_names(target.model.model.layers[0].self_attn) == ["q_proj", "k_proj", "v_proj"]
    saved, expected = target.model.state_dict(), separate.model.state_dict()
    assert list(saved) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(saved[name], tensor)


def test_a_saved_model_is_the_one_loaded(tmp_path: Path) -> None:
    target = Target.load(str(make_tiny_model(tmp_path / "a", seed=0)), num_pages=8)
    assert merged_names(target.model.model.layers[0].mlp) == ["gate_proj", "up_proj"]
    target.model.save_pretrained(tmp_path / "b")
    target.tokenizer.save_pretrained(tmp_path / "b")
    again = Target.load(str(tmp_path / "b"), num_pages=8)
    tree = random_trees([5], random.Random(0), 260)
    expected, _ = run_trees(target, [[1, 2, 3]], tree, chunk=16)
    logits, _ = run_trees(again, [[1, 2, 3]], tree, chunk=16)
    assert torch.equal(logits, expected)


def test_weights_can_be_loaded_again() -> None:
    parent, other = Parent(), Parent()
    merge_projections(parent)
    parent.load_state_dict(other.state_dict())
    x = torch.randn(2, 5)
    with torch.no_grad():
        for mine, theirs in zip(parent.projections, other.projections, strict=True):
            torch.testing.assert_close(mine(x), theirs(x))
    state = other.state_dict()
    state["k_proj.weight"] = torch.zeros(3, 5)
    with pytest.raises(RuntimeError, match=r"k_proj\.weight: expected \[2, 5\], got \[3, 5\]"):
        parent.load_state_dict(state)
    del state["k_proj.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"k_proj\.weight\""):
        parent.load_state_dict(state)


def test_two_targets_of_one_model() -> None:
    first = make_target("llama", merged=True)
    weight = first.model.model.layers[0].self_attn.q_proj.merged.weight
    second = Target(first.model, num_pages=40, max_length=200)
    assert first.model.model.layers[0].self_attn.q_proj.merged.weight is weight
    logits = [logits_and_products(target) for target in (first, second)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert logits[0][1] == logits[1][1]


@torch.no_grad()
def test_a_copy_has_weights_of_its_own() -> None:
    parent, x = Parent(), torch.randn(2, 5)
    merge_projections(parent)
    expected = parent.k_proj(x)
    twin = copy.deepcopy(parent).to(torch.float64)
    torch.testing.assert_close(twin.k_proj(x.double()), expected.double(), rtol=1e-5, atol=1e-6)
    assert twin.q_proj.merged is twin.v_proj.merged
    twin.q_proj.merged.weight.zero_()
    torch.testing.assert_close(parent.k_proj(x), expected)


def counting_backend(kind: str, graphs: list[int]) -> Any:
    """A backend of torch.compile that notes the products of each graph, and runs it as it is."""

    def run(graph: torch.fx.GraphModule, _: object) -> Any:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append(sum("linear" in name or "mm" in name for name in names))
        return graph.forward

    return aot_autograd(fw_compiler=run) if kind == "aot_eager" else run


@pytest.mark.parametrize("kind", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("default")  # those of torch.compile are not ours
def test_compiled_layers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many graphs as without merging, shared by layers and passes, with fewer products."""
    compile_, found = torch.compile, []
    for merged in (False, True):
        torch._dynamo.reset()
        graphs: list[int] = []
        backend = counting_backend(kind, graphs)
        target = make_target("llama of 3 layers, 5 heads", merged=merged)
        expected = run_three_trees(target)
        monkeypatch.setattr(
            torch, "compile", lambda f, b=backend, **_: compile_(f, dynamic=True, backend=b)
        )
        with compiled_layers(target.model):
            logits = run_three_trees(target)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        found.append(graphs)
    separate, together = found
    assert len(separate) == len(together)
    assert (sum(separate), sum(together)) == (7, 4)
