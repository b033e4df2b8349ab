"""Traversal verification of trees (Weng et al. 2025, "Traversal Verification for Speculative Tree
Decoding", arXiv 2505.12398): from the leaves to the root, the first branch first.
"""

from torch import Tensor

from wanspec_kernels.verify.joint_reference import (
    Accept,
    JointTree,
    child_acceptance,
    remainder,
)


class _Visit:
    """A node on the way down, and what rejections below it have left.

    ``acceptance`` is the probability that something in its subtree is accepted, given all that was
    rejected before; ``target`` what the token after the node is then to be drawn from.
    """

    def __init__(self, tree: JointTree, node: int, acceptance: float) -> None:
        self.node = node
        self.acceptance = acceptance
        self.target = tree.target(node)
        # Below an invalid row nothing can be judged: the node is a leaf.
        self._draws = iter(()) if self.target is None else tree.draws(node)
        self._draft: Tensor | None = None

    def next_draw(self) -> tuple[int, Tensor] | None:
        draw = next(self._draws, None)
        if draw is not None:
            self._draft = draw[1]
        return draw

    def reject(self) -> None:
        """The last draw, and with it all that hung from it."""
        assert self.target is not None
        assert self._draft is not None
        self.acceptance, self.target = remainder(self.acceptance, self.target, self._draft)


def walk(tree: JointTree, accept: Accept) -> tuple[list[int], Tensor | None]:
    """Accepted nodes, and what the next token is drawn from ([vocab]; None if its row is invalid).

    A draw x below a node of acceptance a and target r gives its child the acceptance
    ``min(1, a r(x) / q(x))``. The child's own draws are tried first; when all of them are rejected,
    it is accepted itself with the acceptance left to it. Its rejection is that of the draw x: with
    S the sum of ``max(a r - q, 0)``, a becomes ``S / (S + 1 - a)`` and r that positive part,
    normalised. So a node's subtree is accepted with exactly the acceptance it was given, whatever
    hangs there, and what follows is distributed as the target. A token once rejected has nothing
    left in r: its duplicates are draws that cannot be accepted, and no node is visited twice.
    """
    path = [_Visit(tree, 0, 1.0)]
    while True:
        here = path[-1]
        draw = here.next_draw()
        if draw is not None:
            child, draft = draw
            assert here.target is not None
            acceptance = child_acceptance(here.acceptance, here.target, draft, tree.token(child))
            if acceptance > 0:
                path.append(_Visit(tree, child, acceptance))
            else:
                here.reject()
        elif accept(here.node, here.acceptance):
            return [visit.node for visit in path[1:]], here.target
        else:
            path.pop()
            path[-1].reject()
