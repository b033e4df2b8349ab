"""A model whose attention is not what its configuration says is found when a Target takes it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from tests.model.architectures import make_config, own_logits, run_trees
from tests.tiny_models import make_tiny_model
from wanspec_kernels.engine.model import Target, UnsupportedModelError, self_check
from wanspec_kernels.tree import DraftTree

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ScaledByRow(nn.Module):
    """Queries that grow with their row in the pass, as those of Llama 4 do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        rows = torch.arange(hidden.shape[1], device=hidden.device)
        out: Tensor = self.inner(hidden)
        return out * (1 + 0.5 * rows[:, None]).to(out.dtype)


class MixedWithTheRowBefore(ScaledByRow):
    """A short convolution over the pass, as some models have before their attention."""

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.inner(hidden + hidden.roll(1, dims=1))
        return out


def make_model(dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(make_config("Llama", **changes))
    return model.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", [ScaledByRow, MixedWithTheRowBefore])
def test_a_fault_that_nothing_declares(
    fault: type[ScaledByRow], dtype: torch.dtype, device: str
) -> None:
    model = make_model(dtype).to(device)
    for layer in model.model.layers:
        layer.self_attn.q_proj = fault(layer.self_attn.q_proj)
    before = model.config._attn_implementation
    message = r"llama: 12 tokens into a text, .* by 0\.\d+ of their spread, expected 0\.\d+ at most"
    with pytest.raises(UnsupportedModelError, match=message):
        Target(model, num_pages=10)
    assert model.config._attn_implementation == before
    text = torch.tensor([[1, 2, 3]], device=device)
    assert model(input_ids=text).logits.isfinite().all()  # and it runs as it did before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"num_hidden_layers": 24, "initializer_range": 0.3}], ids=["small", "unsteady"]
)
def test_rounding_is_no_fault(changes: dict[str, object], dtype: torch.dtype, device: str) -> None:
    """The unsteady one makes a tenth of the logits, and more, of a rounding in bfloat16."""
    Target(make_model(dtype, **changes).to(device), num_pages=10)


def test_a_model_of_any_attention_is_taken_over(device: str) -> None:
    model = LlamaForCausalLM(make_config("Llama")).to(device).eval()
    assert model.config._attn_implementation == "sdpa"
    tree = DraftTree.build([([5, 6, 7, 8], [-1, 0, 0, 1])])
    texts = [[3, 9, 4]]
    paths = [[3, 9, 4, 5], [3, 9, 4, 5, 6], [3, 9, 4, 5, 7], [3, 9, 4, 5, 6, 8]]
    expected = own_logits(model, paths, device)
    target = Target(model, num_pages=10)
    # The check has left nothing behind.
    assert target.cache.num_free_pages == 10
    assert not target.cache.k_pages.any()
    assert not target.cache.v_pages.any()
    logits, _ = run_trees(target, texts, tree, chunk=16)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_code_that_fails_is_refused_by_name() -> None:
    model = make_model()
    del model.model.layers[1].self_attn.layer_idx
    with pytest.raises(
        UnsupportedModelError, match=r"llama: a pass over a tree fails, AttributeError: .*layer_idx"
    ):
        Target(model, num_pages=10)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("num_pages", "max_length"), [(1, 1), (1, 4), (1, 5), (1, 16), (4, 6), (2, None)]
)
def test_little_room(num_pages: int, max_length: int | None) -> None:
    target = Target(make_model(), num_pages=num_pages, max_length=max_length)
    target.prefill(0, [1])
    assert target.model.config._attn_implementation == "wanspec_tree"


@pytest.mark.parametrize(
    ("window", "expected"), [(None, 12), (1, 12), (9, 13), (252, 256), (253, 12), (4096, 12)]
)
def test_a_context_outgrows_a_window_that_is_short(window: int | None, expected: int) -> None:
    assert self_check._context_len(window) == expected


def test_logits_that_are_no_numbers_are_no_fault(tmp_path: Path) -> None:
    """There is nothing to compare them with; where a token is chosen they are reported."""
    target = Target.load(str(make_tiny_model(tmp_path, seed=0)), num_pages=4)
    target.model.get_input_embeddings().weight.data.fill_(torch.nan)
    retaken = Target(target.model, num_pages=4)
    assert not retaken.cache.k_pages.any()
