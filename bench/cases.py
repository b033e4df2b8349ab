"""Inputs of the benchmarks: trees, logits and draws whose accepted depth is known beforehand.

Logits have the shape of a language model's: a bell of standard deviation 2.5 under a Zipf-like
head, one row in eight without a peak. A path of `depth` nodes carries what the target will say,
found with the same noise, as a coupled drafter finds it; the rows themselves stay as they are, so
the filters have as much to do on the path as anywhere. Under ``"rejection"`` the path's token is
the likeliest and its draft probability lies below the target's, so its coin cannot reject it. Every
other token is random.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from wanspec_kernels import noise
from wanspec_kernels.sampling import SamplingParams, cutoff, inverse_temperature
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, VerifyResult, verify_tree

MODES: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature": {},
    "top_k_top_p": {"top_k": 50, "top_p": 0.9},
    "top_p": {"top_p": 0.9},
}
RULES = ("match", "rejection")
TEMPERATURES = (0.6, 0.8, 1.0, 1.2, 0.7)  # in turn, one a request
SUPPORT = 32  # tokens of a sparse draft distribution
NUM_SOURCES = 2
HEAD = 64  # tokens of a row that stand above the bell
MAX_CHILDREN = 8

HostTree = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Case:
    """One call of `verify_tree`, and what it was made from on the host."""

    rule: str
    mode: str
    accepted_depth: int  # of every tree, by construction
    trees: list[HostTree]
    expansions: list[list[Expansion]]  # empty under `match`
    tree: DraftTree
    logits: Tensor  # [num_nodes, vocab] bfloat16
    sampling: SamplingParams
    positions: Tensor  # [batch] int64
    draws: Draws | None

    @property
    def vocab(self) -> int:
        return self.logits.shape[1]

    @property
    def num_nodes(self) -> int:
        """Of each tree."""
        return len(self.trees[0][0])

    def verify(self, backend: str = "auto") -> VerifyResult:
        return verify_tree(
            self.tree,
            self.logits,
            self.sampling,
            self.positions,
            rule=self.rule,
            draft=self.draws,
            backend=backend,
        )

    def at(self, chosen: Sequence[int]) -> "Case":
        """The case of some of its trees only, on copies of their rows."""
        index = torch.tensor(chosen, device=self.logits.device)
        rows = (index[:, None] * self.num_nodes + self._nodes()).flatten()
        trees = [self.trees[b] for b in chosen]
        expansions = [self.expansions[b] for b in chosen] if self.expansions else []
        tree = DraftTree.build(trees, self.logits.device)
        s = self.sampling
        columns = (s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
        return replace(
            self,
            trees=trees,
            expansions=expansions,
            tree=tree,
            logits=self.logits[rows],
            sampling=SamplingParams(*(column[index] for column in columns)),
            positions=self.positions[index],
            draws=Draws.build(expansions, tree, replacement=False) if expansions else None,
        )

    def elsewhere(self) -> "Case":
        """The same case with its logits at another address."""
        return replace(self, logits=self.logits.clone())

    def _nodes(self) -> Tensor:
        return torch.arange(self.num_nodes, device=self.logits.device)


def accepted_case(
    batch: int,
    num_nodes: int,
    vocab: int,
    device: torch.device | str,
    *,
    depth: int = 3,
    mode: str = "temperature",
    rule: str = "match",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Case:
    """A case of `batch` trees of `num_nodes` nodes, each of which accepts `depth` drafts."""
    depth = min(depth, num_nodes - 1)
    host = random.Random(seed)
    trees, paths = [], []
    for _ in range(batch):
        parents, path = grow(num_nodes, depth, host)
        # No token twice: an accidental match would lengthen a path.
        trees.append((host.sample(range(vocab), num_nodes), parents))
        paths.append(path)
    logits = realistic_logits(batch * num_nodes, vocab, device, dtype, seed)
    sampling = SamplingParams.build(
        batch,
        temperature=0.0
        if mode == "greedy"
        else [TEMPERATURES[b % len(TEMPERATURES)] for b in range(batch)],
        seed=[host.getrandbits(62) for _ in range(batch)],
        device=device,
        **MODES[mode],
    )
    positions = torch.tensor([host.randrange(100, 5000) for _ in range(batch)]).to(device)

    # Node path[d] of each tree follows path[d - 1] and gets the token its row decides.
    starts = torch.arange(batch, device=device) * num_nodes
    path = torch.tensor(paths, device=device)
    for d in range(depth):
        rows = logits[starts + path[:, d]]
        if rule == "match":
            tokens = target_tokens(rows, sampling, positions + d)
        else:
            tokens = rows.float().argmax(1)
        for (tree_tokens, _), nodes, token in zip(trees, paths, tokens.tolist(), strict=True):
            _place(tree_tokens, nodes[d + 1], token)
    tree = DraftTree.build(trees, device)
    expansions: list[list[Expansion]] = []
    if rule == "rejection":
        expansions = _draw(trees, paths, logits, sampling)
    draws = Draws.build(expansions, tree, replacement=False) if expansions else None
    return Case(rule, mode, depth, trees, expansions, tree, logits, sampling, positions, draws)


def grow(num_nodes: int, depth: int, host: random.Random) -> tuple[list[int], list[int]]:
    """Parents of a tree such as best-first growth gives, and a path down `depth` nodes.

    Other nodes hang from one of the few before them, at most three levels below the path's end.
    """
    spine = {0, *sorted(host.sample(range(1, num_nodes), depth))}
    parents, depths, children, path = [-1], [0], [0], [0]
    for node in range(1, num_nodes):
        if node in spine:
            parent = path[-1]
            path.append(node)
        else:
            free = [
                i for i in range(node) if depths[i] < depth + 3 and children[i] < MAX_CHILDREN - 1
            ]
            parent = host.choice(free[-8:])
        parents.append(parent)
        depths.append(depths[parent] + 1)
        children[parent] += 1
        children.append(0)
    return parents, path


def realistic_logits(
    rows: int, vocab: int, device: torch.device | str, dtype: torch.dtype, seed: int
) -> Tensor:
    """[rows, vocab]: a bell under a head whose probabilities fall as rank ** -1.5."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    head = min(HEAD, vocab // 4)
    ranks = torch.arange(1, head + 1, device=device)
    logits = torch.empty(rows, vocab, device=device, dtype=dtype)
    for part in logits.split(512):
        n = len(part)
        part.copy_(normal(n, vocab) * 2.5)
        peak = 20 + normal(n, 1)
        peak -= 6.0 * (torch.rand(n, 1, device=device, generator=generator) < 1 / 8)
        ids = torch.rand(n, vocab, device=device, generator=generator).topk(head, 1).indices
        part.scatter_(1, ids, (peak - 1.5 * ranks.log() + 0.3 * normal(n, head)).to(dtype))
    return logits


def target_tokens(rows: Tensor, sampling: SamplingParams, positions: Tensor) -> Tensor:
    """[batch] what the target says after `rows` ([batch, vocab]), by the definition itself."""
    inverse = inverse_temperature(sampling.temperature)
    own = []
    for b, row in enumerate(rows.float()):
        score = row
        if inverse[b] > 0:
            score = row * inverse[b] + noise.gumbel_row(len(row), positions[b], sampling.seed[b])
            least = cutoff(
                row, float(inverse[b]), int(sampling.top_k[b]), float(sampling.top_p[b]), 0.0
            )
            score = score.masked_fill(row < least, -torch.inf)
        own.append(score.argmax())
    return torch.stack(own)


def _place(tokens: list[int], node: int, token: int) -> None:
    """Give `node` its token; whichever node had it takes the other in exchange."""
    if token in tokens:
        tokens[tokens.index(token)] = tokens[node]
    tokens[node] = token


def _draw(
    trees: list[HostTree], paths: list[list[int]], logits: Tensor, sampling: SamplingParams
) -> list[list[Expansion]]:
    """Draws of two sources at every inner node; a source covers half of the node's children."""
    num_nodes = len(trees[0][0])
    expansions = []
    for b, ((tokens, parents), path) in enumerate(zip(trees, paths, strict=True)):
        temperature = float(sampling.temperature[b]) or 1.0
        rows = logits[b * num_nodes : (b + 1) * num_nodes]
        probabilities = (rows.float() / temperature).softmax(1).topk(SUPPORT, 1)
        values, ids = probabilities.values.tolist(), probabilities.indices.tolist()
        children: list[list[int]] = [[] for _ in range(num_nodes)]
        for node, parent in enumerate(parents[1:], start=1):
            children[parent].append(node)
        following = dict(pairwise(path))
        of_tree = []
        for node, below in enumerate(children):
            first = following.get(node)
            ordered = sorted(below, key=lambda child: (child != first, child))
            for part in (ordered[0::NUM_SOURCES], ordered[1::NUM_SOURCES]):
                drawn = [tokens[child] for child in part]
                if not drawn:
                    continue
                support = drawn + [t for t in ids[node] if t not in drawn][: SUPPORT - len(drawn)]
                known = dict(zip(ids[node], values[node], strict=True))
                weights = [max(1, round(40_000 * known.get(token, 0.0))) for token in support]
                for i, child in enumerate(part):
                    # Below the target's probability on the path, far above it elsewhere.
                    on_path = child == first
                    weights[i] = max(1, weights[i] * 3 // 4) if on_path else 20_000
                if part[0] == first:
                    # What the path's token gave up goes to the least likely of the support.
                    weights[-1] += 60_000 - min(60_000, sum(weights))
                of_tree.append(Expansion(node, tuple(part), tuple(support), tuple(weights)))
        expansions.append(of_tree)
    return expansions
