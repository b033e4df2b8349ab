"""Mean accepted drafts of one tree, over the verifier's coins and noise: exact, not sampled."""

import torch
from torch import Tensor

from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, traversal_reference, verify_tree
from wanspec_kernels.verify.joint_reference import JointTree, child_acceptance, remainder
from wanspec_kernels.verify.reference import _samplings

HostTree = tuple[list[int], list[int]]


def joint_tree(
    tree: HostTree,
    expansions: list[Expansion],
    replacement: bool,
    logits: Tensor,  # [num_nodes, vocab]
    temperature: float,
) -> JointTree:
    laid_out = DraftTree.build([tree])
    draws = Draws.build([expansions], laid_out, replacement)
    sampling = SamplingParams.build(1, temperature=temperature)
    columns = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return JointTree(
        0, _samplings(*columns)[0], logits, None, laid_out.token_ids, draws.indptr,
        draws.children, draws.rows, draws.token_ids, draws.weights, draws.replacement,
    )  # fmt: skip


def by_rejection(tree: JointTree, num_nodes: int) -> float:
    """The sum of every node's probability to be accepted."""
    reached = [1.0] + [0.0] * (num_nodes - 1)
    for node in range(num_nodes):
        target = tree.target(node) if reached[node] > 0 and tree.num_draws(node) else None
        if target is None:
            continue
        untested = reached[node]
        for child, draft in tree.draws(node):
            accepted = child_acceptance(1.0, target, draft, tree.token(child))
            reached[child] += untested * accepted
            untested *= 1 - accepted
            _, target = remainder(1.0, target, draft)
    return sum(reached[1:])


def by_traversal(tree: JointTree, parents: list[int]) -> float:
    """The walk with every coin rejecting, each acceptance weighed by the probability of getting
    there. On a chain it is that of `block`."""
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    length, untested = 0.0, 1.0

    def accept(node: int, probability: float) -> bool:
        nonlocal length, untested
        length += untested * probability * depths[node]
        untested *= 1 - probability
        return untested < 1e-12 or node == 0

    traversal_reference.walk(tree, accept)
    return length


def by_target_only_match(tree: HostTree, logits: Tensor, temperature: float) -> float:
    """The sum of every node's probability under the target: noise unknown to the drafter."""
    tokens, parents = tree
    share = (logits.double() / temperature).softmax(1)
    reached = [1.0]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        reached.append(reached[parent] * float(share[parent, token]))
    return sum(reached[1:])


def by_coupled_match(
    trees: list[HostTree], logits: list[Tensor], temperature: float, seed: int, position: int
) -> list[int]:
    """What each tree accepts, given the noise that its drafter knew."""
    batch = len(trees)
    result = verify_tree(
        DraftTree.build(trees),
        torch.cat(logits),
        SamplingParams.build(batch, temperature=temperature, seed=seed),
        torch.full((batch,), position),
        rule="match",
        backend="reference",
    )
    return result.num_accepted.tolist()


def sampled(
    rule: str,
    tree: HostTree,
    expansions: list[Expansion],
    replacement: bool,
    logits: Tensor,
    temperature: float,
    seed: int,
    position: int,
) -> int:
    """One verification by the rule itself, to hold the means above against."""
    laid_out = DraftTree.build([tree])
    result = verify_tree(
        laid_out,
        logits,
        SamplingParams.build(1, temperature=temperature, seed=seed),
        torch.tensor([position]),
        rule=rule,  # type: ignore[arg-type]
        draft=Draws.build([expansions], laid_out, replacement),
        backend="reference",
    )
    return int(result.num_accepted)
