"""One small tree's logits beside those of the model's own attention: what finds the models whose
attention does something that nobody has thought of."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wanspec_kernels.engine.model.implementation import use_attention
from wanspec_kernels.engine.model.requirements import UnsupportedModelError
from wanspec_kernels.tree import DraftTree

if TYPE_CHECKING:
    from wanspec_kernels.engine.model.model import Target

PARENTS = (-1, 0, 0, 1, 2)  # two branches, whose slots are not their positions
PATHS = ((0, 1, 3), (0, 2, 4))
CONTEXT = 12  # tokens before the tree
PAST_WINDOW = 4  # tokens by which a context outgrows a window, so that its edge shows
MAX_CONTEXT = 256  # tokens, as is cheap: the edge of a longer window stays unseen
REQUEST = -1  # nobody else's

# The tolerance, of the logits' spread: so many times what a rounding of the embeddings comes to, as
# deep models amplify it and experts change with it; and no less than the second.
UNSTEADINESSES = 4
LEAST_TOLERANCE = 1e-3


def check_against_own(target: "Target", implementation: str, window: int | None) -> None:
    """Leaves the model with `implementation`, and the cache as it was.

    `window` is the shortest that a text outgrows. The model's own logits are those of its eager
    attention over each path of the tree. Nodes are judged by their median, as one of them may come
    near a tie of experts. Without room for the tree there is nothing to check.

    Raises:
        UnsupportedModelError: the two differ by more than rounding, or the model's code fails.
    """
    name = target.model.config.model_type
    room = min(target.max_length, target.cache.num_free_pages * target.cache.page_size)
    context_len = min(_context_len(window), room - len(PARENTS))
    if context_len < 0:
        use_attention(target.model, implementation)
        return
    size = (context_len + len(PARENTS),)
    numbers = torch.randint(target.vocab_size, size, generator=torch.Generator().manual_seed(0))
    context, tokens = numbers.tolist()[:context_len], numbers.tolist()[context_len:]
    texts = [[*context, *(tokens[node] for node in path)] for path in PATHS]
    rounding = _rounding(target.model.dtype, target.device)
    try:
        with torch.inference_mode():
            use_attention(target.model, "eager")
            own = _own_logits(target, texts, rounding)
            use_attention(target.model, implementation)
            found = _tree_logits(target, context, tokens)
            # Past the vocabulary there is nothing to compare: such tokens are never chosen.
            own, found = own[..., : target.vocab_size], found[:, : target.vocab_size]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # What a model's code raises without something that its own `generate` would give it.
        raise UnsupportedModelError(
            f"{name}: a pass over a tree fails, {type(error).__name__}: {error}; choose another "
            "model"
        ) from error
    of_node = {node: own[p, d] for p, path in enumerate(PATHS) for d, node in enumerate(path)}
    difference = _difference(found, torch.stack([of_node[node] for node in range(len(PARENTS))]))
    tolerance = max(LEAST_TOLERANCE, UNSTEADINESSES * _difference(own[-1], own[-2]))
    if difference > tolerance:
        raise UnsupportedModelError(
            f"{name}: {context_len} tokens into a text, its logits over a tree differ from those "
            f"of its own attention by {difference:.2g} of their spread, expected {tolerance:.2g} "
            "at most: its attention does what tree attention does not; choose another model"
        )


def _context_len(window: int | None) -> int:
    if window is None or window + PAST_WINDOW > MAX_CONTEXT:
        return CONTEXT
    return max(CONTEXT, window + PAST_WINDOW)


def _own_logits(target: "Target", texts: list[list[int]], shake: float) -> Tensor:
    """[texts + 1, levels, vocab] after each text's last tokens, and after those of the last text
    once more, its embeddings off by `shake` of their size."""

    def shake_last(_: nn.Module, __: object, embedded: Tensor) -> Tensor:
        factors = torch.randn(embedded[-1].shape, generator=torch.Generator().manual_seed(1))
        shaken = embedded[-1].float() * (1 + shake * factors.to(embedded.device))
        return torch.cat([embedded[:-1], shaken[None].to(embedded.dtype)])

    hook = target.model.get_input_embeddings().register_forward_hook(shake_last)
    try:
        output = target.model(
            input_ids=torch.tensor([*texts, texts[-1]]).to(target.device),
            use_cache=False,
            logits_to_keep=len(PATHS[0]),
        )
    finally:
        hook.remove()
    logits: Tensor = output.logits
    return logits


def _tree_logits(target: "Target", context: list[int], tokens: list[int]) -> Tensor:
    """[nodes, vocab]; the pages it takes are emptied and given back."""
    cache = target.cache
    cache.reserve(REQUEST, len(context) + len(tokens))
    table = cache.page_table([REQUEST])
    try:
        target.prefill(REQUEST, context)
        context_lens = torch.tensor([len(context)], dtype=torch.int32).to(target.device)
        tree = DraftTree.build([(tokens, PARENTS)], target.device)
        return target.logits(tree, context_lens, table)
    finally:
        for pages in (cache.k_pages, cache.v_pages):
            pages[:, table[0].long()] = 0
        cache.free(REQUEST)


def _difference(logits: Tensor, expected: Tensor) -> float:
    """The median row's distance, in units of how far its expected logits spread about their mean.

    What is expected to be no number is left out.
    """
    known = expected.isfinite()
    expected = expected.float().where(known, 0)
    count = known.sum(1, keepdim=True).clamp(min=1)
    spread = (expected - expected.sum(1, keepdim=True) / count).where(known, 0).norm(dim=1)
    distance = (logits.float() - expected).where(known, 0).norm(dim=1)
    rows = (distance / spread.clamp(min=1e-30)).nan_to_num(nan=torch.inf)
    return float(rows.sort().values[len(rows) // 2])


def _rounding(dtype: torch.dtype, device: torch.device) -> float:
    """How far a product is off on the device, of its size: float32 may be less than its name."""
    a, b = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    product = (a.to(device) @ b.to(device)).double().cpu()
    exact = a.double() @ b.double()
    return float((product - exact).norm() / exact.norm())
