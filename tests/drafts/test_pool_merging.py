"""Any order and repetition of drafts, between the same commits, against a naive model."""

from dataclasses import replace
from zlib import crc32

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from wanspec_kernels.drafts.pool import MAX_EARLY_DRAFTS, Kind, Pool
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.wire import Draft, check_of
from wanspec_kernels.wire.confidence import UNKNOWN

VOCAB = 3
SOURCES = (0, 1, 2)
PROMPT = (0, 1)
FEW = settings(
    max_examples=40, stateful_step_count=20, derandomize=True, database=None, deadline=None
)

FIRST = settings(FEW, max_examples=200, phases=[Phase.generate], report_multiple_bugs=False)


def drawing(source, path):
    """The one drawing a source makes at an absolute path: two of three tokens, in some order."""
    left = crc32(bytes([source, *path])) % VOCAB
    tokens = [t for t in range(VOCAB) if t != left]
    return tuple(tokens if crc32(bytes([*path, source])) % 2 else tokens[::-1])


class MergingMachine(RuleBasedStateMachine):
    """The model is the set of drafts offered; content is worked out anew from it each time."""

    pool_class = Pool
    rejection = False
    drafts = Bundle("drafts")

    @initialize(future=st.lists(st.integers(0, VOCAB - 1), min_size=24, max_size=24))
    def start(self, future):
        self.text = (*PROMPT, *future)
        self.length = len(PROMPT)
        options = {"rule": "rejection", "num_draws": 2} if self.rejection else {}
        self.pool = self.pool_class(1, PROMPT, vocab_size=VOCAB, **options)
        self.offered = set()
        for source in SOURCES:
            self.pool.enrol(source)

    @rule(
        target=drafts,
        source=st.sampled_from(SOURCES),
        behind=st.sampled_from((0, 0, -1, -2, 1, 2, 3, 5)),
        follow=st.integers(0, 6),
        choices=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=8),
        wrong_check=st.integers(0, 9),
    )
    def write(self, source, behind, follow, choices, wrong_check):
        """A draft that follows the coming text for a while, with branches."""
        base = min(max(self.length - behind, len(PROMPT)), len(self.text))
        text = self.text[:base]
        places = [()]
        expanded = set()

        def grow(path):
            if path in places:
                return
            above = path[:-1]
            if self.rejection:
                if path[-1] not in drawing(source, (*text, *above)):
                    return
                expanded.add(above)
                for token in drawing(source, (*text, *above)):
                    places.append((*above, token))
            else:
                places.append(path)

        for depth in range(1, follow + 1):
            path = self.text[base : base + depth]
            if path[:-1] in places and len(path) == depth:
                grow(path)
        for where, token in choices:
            grow((*places[where % len(places)], token % VOCAB))
        nodes = places[1:]
        expansions = []
        for above in sorted(expanded, key=len):
            children = tuple(nodes.index((*above, t)) for t in drawing(source, (*text, *above)))
            parent = nodes.index(above) if above else -1
            expansions.append(Expansion(parent, children, (0, 1, 2), (1, 1, 1)))
        check = check_of(text) ^ (wrong_check == 0)
        parents = tuple(nodes.index(n[:-1]) if n[:-1] else -1 for n in nodes)
        codes = bytes((7 * source + sum(n) + len(choices)) % 40 for n in nodes)
        draft = Draft(
            1,
            base,
            check,
            tuple(n[-1] for n in nodes),
            parents,
            tuple(expansions),
            b"" if self.rejection or wrong_check == 1 else codes,
        )
        if expansions and choices:
            # What was said before need not be said again.
            fewer = replace(draft, expansions=tuple(expansions[1:]))
            self.offer((source, fewer))
            return multiple((source, draft), (source, fewer))
        self.offer((source, draft))
        return multiple((source, draft))

    @rule(entry=drafts)
    def offer_again(self, entry):
        self.offer(entry)

    def offer(self, entry):
        source, draft = entry
        early = {d for s, d in self.offered if s == source and d.base_length > self.length}
        if len(early) >= MAX_EARLY_DRAFTS:
            return
        before = self.shape()
        self.offered.add(entry)
        outcome = self.pool.offer(source, draft)
        assert outcome.kind is self.expected_kind(draft, source, self.shape() != before)

    @precondition(lambda self: self.length < len(self.text))
    @rule(count=st.integers(1, 4))
    def commit(self, count):
        tokens = self.text[self.length : self.length + count]
        self.length += len(tokens)
        self.pool.commit(tokens)

    @rule(source=st.sampled_from(SOURCES))
    def retire(self, source):
        self.pool.retire(source)
        self.pool.enrol(source)
        self.offered = {(s, d) for s, d in self.offered if s != source}

    @invariant()
    def content_is_the_models(self):
        if hasattr(self, "pool"):
            content = self.pool.content()
            got = {p: (s if p else frozenset(), set(g)) for p, (s, g) in content.items()}
            assert got == self.content()

    @invariant()
    def codes_are_the_best_of_each_source(self):
        if hasattr(self, "pool") and not self.rejection:
            best = {}
            for source, draft in self.offered:
                if draft.base_length > self.length:
                    continue
                if draft.base_check != check_of(self.text[: draft.base_length]):
                    continue
                absolute = []
                for i, (token, parent) in enumerate(
                    zip(draft.token_ids, draft.parents, strict=True)
                ):
                    above = absolute[parent] if parent >= 0 else self.text[: draft.base_length]
                    absolute.append((*above, token))
                    code = draft.confidences[i] if draft.confidences else UNKNOWN
                    path = absolute[-1]
                    if path[: self.length] == self.text[: self.length] and len(path) > self.length:
                        known = best.setdefault(path[self.length :], {})
                        known[source] = min(code, known.get(source, UNKNOWN))
            assert self.pool.codes() == best

    @invariant()
    def selections_are_trees_of_the_content(self):
        if not hasattr(self, "pool"):
            return
        content = self.content()
        for max_rows, max_depth in [(6, 4), (64, 9)]:
            selection = self.pool.select(max_rows, max_depth)
            tree = selection.tree
            assert len(tree.token_ids) <= max_rows
            DraftTree.build([(tree.token_ids, tree.parents)])
            paths = [()]
            for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
                paths.append((*paths[parent], token))
            assert [len(p) for p in paths] == list(selection.depths)
            assert len(set(paths)) == len(paths)
            assert max(map(len, paths)) <= max_depth
            assert set(paths[1:]) <= content.keys()
            full = 1 + sum(0 < len(p) <= max_depth for p in content)
            if not self.rejection and min(selection.probabilities) > 0.01:
                assert len(paths) == min(full, max_rows)  # none is too unlikely
            for row in {e.parent for e in tree.expansions or ()}:
                groups = content[paths[row]][1]
                assert sum(e.parent == row for e in tree.expansions) == len(groups)

    def expected_kind(self, draft, source, adds):
        if draft.base_length > self.length:
            return Kind.EARLY
        if draft.base_check != check_of(self.text[: draft.base_length]):
            return Kind.FOREIGN
        late = draft.base_length < self.length
        if adds:
            return Kind.LATE if late else Kind.NEW
        nodes, groups = self.contribution(draft)
        return Kind.STALE if late and not nodes and not groups else Kind.DUPLICATE

    def contribution(self, draft):
        """Paths below the root, and of its draws."""
        committed = self.text[: self.length]
        absolute = []
        for token, parent in zip(draft.token_ids, draft.parents, strict=True):
            above = absolute[parent] if parent >= 0 else self.text[: draft.base_length]
            absolute.append((*above, token))
        expanded = [
            absolute[e.parent] if e.parent >= 0 else self.text[: draft.base_length]
            for e in draft.expansions
        ]

        def below(paths):
            return {p[self.length :] for p in paths if p[: self.length] == committed}

        return below(absolute) - {()}, below(expanded)

    def content(self):
        nodes, groups = {}, {}
        for source, draft in self.offered:
            if draft.base_length > self.length:
                continue
            if draft.base_check != check_of(self.text[: draft.base_length]):
                continue
            its_nodes, its_groups = self.contribution(draft)
            for path in its_nodes:
                nodes.setdefault(path, set()).add(source)
            for path in its_groups:
                groups.setdefault(path, set()).add(source)
        return {
            path: (frozenset(nodes.get(path, ())), groups.get(path, set()))
            for path in nodes.keys() | groups.keys()
        }

    def shape(self):
        return {path: groups for path, (_, groups) in self.content().items()}


class RejectionMachine(MergingMachine):
    rejection = True


TestMatch = MergingMachine.TestCase
TestMatch.settings = FEW
TestRejection = RejectionMachine.TestCase
TestRejection.settings = FEW


class HangsLateDraftsFromTheRoot(Pool):
    def _settle(self, source, draft):
        return super()._settle(
            source, replace(draft, base_length=self.length, base_check=self.check)
        )


class ForgetsEarlyDrafts(Pool):
    def commit(self, token_ids):
        self._early.clear()
        return super().commit(token_ids)


class KeepsTheLastConfidence(Pool):
    def _settle(self, source, draft):
        for node, _ in self._trie.root.below():
            if source in node.sources and draft.confidences:
                node.sources[source] = UNKNOWN
        return super()._settle(source, draft)


class CountsArrivals(Pool):
    """A second offer of a draft is taken for news."""

    def _settle(self, source, draft):
        outcome = super()._settle(source, draft)
        return replace(outcome, kind=Kind.NEW) if outcome.kind is Kind.DUPLICATE else outcome


@pytest.mark.parametrize(
    "planted",
    [HangsLateDraftsFromTheRoot, ForgetsEarlyDrafts, CountsArrivals, KeepsTheLastConfidence],
)
def test_a_planted_bug_is_found(planted):
    machine = type("Planted", (MergingMachine,), {"pool_class": planted})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=FIRST)
