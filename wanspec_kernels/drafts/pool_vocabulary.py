"""What a draft holds of the target's vocabulary: a drafter's model may have rows for more ids."""

from dataclasses import replace

from wanspec_kernels.wire import Draft


def within_vocabulary(draft: Draft, vocab_size: int) -> tuple[Draft, int]:
    """The draft without the nodes from `vocab_size` on and what hangs below; how many those were.

    Draws from a distribution over such tokens go all together, with every node below theirs. That
    is decided by the distribution alone, which was there before anything was drawn from it: to drop
    only the draws that fell on such tokens would change the law of those that stay.
    """
    unsound = {e.parent for e in draft.expansions if max(e.token_ids) >= vocab_size}
    if not unsound and max(draft.token_ids, default=-1) < vocab_size:
        return draft, 0
    index = {-1: -1}  # of what stays, by its index in the message
    for i, (token, parent) in enumerate(zip(draft.token_ids, draft.parents, strict=True)):
        if token < vocab_size and parent in index and parent not in unsound:
            index[i] = len(index) - 1
    kept = list(index)[1:]
    expansions = tuple(
        replace(e, parent=index[e.parent], children=tuple(index[child] for child in e.children))
        for e in draft.expansions
        if e.parent in index and e.parent not in unsound
    )
    left = replace(
        draft,
        token_ids=tuple(draft.token_ids[i] for i in kept),
        parents=tuple(index[draft.parents[i]] for i in kept),
        expansions=expansions,
        confidences=bytes(draft.confidences[i] for i in kept) if draft.confidences else b"",
    )
    return left, len(draft.token_ids) - len(kept)
