"""Block verification of chains (Sun et al. 2024, "Block Verification Accelerates Speculative
Decoding", arXiv 2403.10444), as the paper states it: forward for the probabilities, then the
longest prefix whose coin allows it.
"""

from torch import Tensor

from wanspec_kernels.verify.joint_reference import (
    Accept,
    JointTree,
    child_acceptance,
    remainder,
)


def check_chains(draw_indptr: Tensor) -> None:
    """Waits for the device.

    Raises:
        ValueError: a node has two draws. The rule knows what to do with one; `traversal` with more.
    """
    counts = draw_indptr[1:] - draw_indptr[:-1]
    if counts.numel() and int(counts.max()) > 1:
        node = int(counts.argmax())
        raise ValueError(
            "draft: expected at most one draw a node with rule 'block', "
            f"got {int(counts[node])} at row {node}"
        )


def walk(tree: JointTree, accept: Accept) -> tuple[list[int], Tensor | None]:
    """Accepted nodes, and what the next token is drawn from ([vocab]; None if its row is invalid).

    With x_i the i-th draft, p_0 = 1 and ``p_i = min(1, p_(i-1) target(x_i) / draft(x_i))``, a
    prefix of i drafts passes with probability ``h_i = S_i / (S_i + 1 - p_i)``, where S_i is the sum
    of ``max(p_i target - draft, 0)`` after x_i, and the whole chain with p itself. The longest
    prefix that passes is accepted, and the next token drawn from that positive part.
    """
    nodes = [0]
    acceptance = 1.0
    target = tree.target(0)
    prefixes: list[tuple[float, Tensor | None]] = []  # probability to pass, what would follow
    # The chain ends where it cannot pass, and at an invalid row: nothing below can be judged.
    while target is not None and acceptance > 0 and tree.num_draws(nodes[-1]):
        child, draft = next(tree.draws(nodes[-1]))
        prefixes.append(remainder(acceptance, target, draft))
        acceptance = child_acceptance(acceptance, target, draft, tree.token(child))
        nodes.append(child)
        target = tree.target(child)
    prefixes.append((acceptance, target))
    for length in range(len(nodes) - 1, -1, -1):
        probability, following = prefixes[length]
        if accept(nodes[length], probability):
            return nodes[1 : length + 1], following
    raise AssertionError("the root is accepted with probability 1")
