"""Random batches of trees, logits and sampling, for tests of both rules."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from wanspec_kernels.extension import has_cuda_extension
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, VerifyResult

# Off a GPU, Triton's kernels run interpreted and CUDA's not at all.
HAS_CUDA_KERNELS = (
    torch.cuda.is_available()
    and torch.cuda.get_device_capability() >= (9, 0)
    and has_cuda_extension()
)
KERNELS = ("triton", "cuda") if HAS_CUDA_KERNELS else ("triton",)
BACKENDS = ("reference", *KERNELS)

HostTrees = list[tuple[list[int], list[int]]]


@dataclass
class Case:
    trees: HostTrees
    logits: Tensor  # [num_nodes, vocab]
    options: list[dict[str, float]]  # one a request, as SamplingParams.build has them
    positions: list[int]
    expansions: list[list[Expansion]]
    replacement: list[bool]

    def tree(self, device: str) -> DraftTree:
        return DraftTree.build(self.trees, device)

    def sampling(self, device: str) -> SamplingParams:
        columns = {name: [o[name] for o in self.options] for name in self.options[0]}
        return SamplingParams.build(len(self.options), **columns, device=device)  # type: ignore[arg-type]

    def draws(self, device: str) -> Draws:
        return Draws.build(self.expansions, self.tree(device), self.replacement)

    def arguments(self, device: str) -> tuple[DraftTree, Tensor, SamplingParams, Tensor]:
        positions = torch.tensor(self.positions, device=device)
        return self.tree(device), self.logits.to(device), self.sampling(device), positions

    def alone(self, b: int) -> "Case":
        """The b-th request as a batch of its own."""
        starts = [0]
        for tokens, _ in self.trees:
            starts.append(starts[-1] + len(tokens))
        one = slice(b, b + 1)
        return Case(
            self.trees[one],
            self.logits[starts[b] : starts[b + 1]],
            self.options[one],
            self.positions[one],
            self.expansions[one],
            self.replacement[one],
        )


def random_options(rng: random.Random) -> dict[str, float]:
    return {
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.0, 2.5]),
        "top_k": rng.choice([0, 0, 1, 3, 50]),
        "top_p": rng.choice([1.0, 1.0, 0.3, 0.9]),
        "min_p": rng.choice([0.0, 0.0, 0.05, 0.4]),
        "seed": rng.randrange(-(1 << 63), 1 << 63),
    }


def random_case(
    seed: int,
    vocab: int,
    *,
    batch: int = 5,
    max_nodes: int = 12,
    sources: int = 2,
    support: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Trees of likely tokens, so that paths grow long, with duplicates among siblings."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    trees: HostTrees = []
    expansions: list[list[Expansion]] = []
    replacement = []
    # A few tokens stand out in every row, and most drafts are among them.
    likely = [rng.randrange(vocab) for _ in range(min(vocab, 4))]
    for _ in range(batch):
        replace = rng.random() < 0.5 or vocab < support
        tokens, parents, drawn = [rng.randrange(vocab)], [-1], []
        node = 0
        while node < len(tokens):
            for _ in range(rng.randint(int(node == 0), sources)):
                names = list(dict.fromkeys(likely + [rng.randrange(vocab) for _ in range(support)]))
                names = names[: rng.randint(1, support)]
                weights = [rng.choice([1, 7, 900, 65535]) for _ in names]
                if replace:
                    picks = rng.choices(names, weights, k=rng.randint(1, 3))
                else:
                    picks = rng.sample(names, min(len(names), rng.randint(1, 3)))
                children = []
                for token in picks:
                    shared = [i for i, p in enumerate(parents) if p == node and tokens[i] == token]
                    if shared and rng.random() < 0.7:
                        children.append(shared[0])
                    elif len(tokens) < max_nodes:
                        tokens.append(token)
                        parents.append(node)
                        children.append(len(tokens) - 1)
                drawn.append(Expansion(node, tuple(children), tuple(names), tuple(weights)))
            node += 1
        trees.append((tokens, parents))
        expansions.append(drawn)
        replacement.append(replace)
    num_nodes = sum(len(tokens) for tokens, _ in trees)
    logits = 2 * torch.randn(num_nodes, vocab, generator=generator)
    # Halves make ties, at the largest logit and at the cutoffs.
    coarse = torch.rand(num_nodes, generator=generator) < 0.3
    logits[coarse] = (2 * logits[coarse]).round() / 2
    logits[:, likely] += torch.rand(num_nodes, len(likely), generator=generator) * 6 + 6
    masked = torch.rand(num_nodes, vocab, generator=generator) < 0.1
    masked[:, 0] = False
    logits[masked] = -torch.inf
    return Case(
        trees,
        logits.to(dtype),
        [random_options(rng) for _ in range(batch)],
        [rng.choice([0, 1, 77, (1 << 33) + 5]) for _ in range(batch)],
        expansions,
        replacement,
    )


def assert_same(actual: VerifyResult, expected: VerifyResult) -> None:
    for name in ("status", "num_accepted", "accepted_nodes", "token_ids"):
        got, want = getattr(actual, name), getattr(expected, name)
        torch.testing.assert_close(
            got, want, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


def case_that_cancels(seed: int, *, vocab: int, batch: int) -> Case:
    """The draft is a target of ten likely tokens but for an unlikely one, which it draws.

    Of those ten so little is left that which token follows can hang on the fifth digit of the mass.
    """
    case = random_case(8, vocab, batch=batch)
    case.trees = [([0, 1], [-1, 0])] * batch
    generator = torch.Generator().manual_seed(9)
    case.logits = torch.randn(2 * batch, vocab, generator=generator)
    case.logits[:, 20:30] = 14.0
    case.logits[:, 1] = -9.0
    draw = Expansion(0, (1,), (1, *range(20, 30)), (150, *[60_000] * 10))
    case.expansions = [[draw] for _ in range(batch)]
    case.replacement = [False] * batch
    options = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
    case.options = [{**options, "seed": 100 * seed + b} for b in range(batch)]
    return case
