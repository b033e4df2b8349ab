"""DraftedText: the committed text of one request, the drafts for it, and what became of these."""

from collections import Counter
from collections.abc import Iterable, Sequence

from wanspec_kernels.drafts.outcome import Kind, Outcome
from wanspec_kernels.drafts.pool import HOME, Pool
from wanspec_kernels.drafts.replies import Replies
from wanspec_kernels.drafts.sources import Sources
from wanspec_kernels.wire import MAX_DEPTH, MAX_PROMPT_TOKENS, Draft, Open
from wanspec_kernels.wire.sampling import Sampling

MAX_SOURCE_NODES = 2048  # kept for each source

_HEARD = (Kind.NEW, Kind.LATE, Kind.DUPLICATE, Kind.STALE)


class DraftedText:
    """What drafters have to know of a request, and what they have said of it."""

    def __init__(
        self,
        number: int,
        token_ids: Sequence[int],
        sampling: Sampling,
        *,
        vocab_size: int,
        sources: Sources,
        now: float,
        max_depth: int = MAX_DEPTH,
        max_source_nodes: int = MAX_SOURCE_NODES,
    ) -> None:
        rejection = sampling.rule == "rejection"
        self.number = number
        self.sampling = sampling
        self.pool = Pool(
            number,
            token_ids,
            vocab_size=vocab_size,
            rule=sampling.rule,
            num_draws=sampling.num_draws if rejection else 0,
            replacement=sampling.replacement,
            max_source_nodes=max_source_nodes,
            worths=sources.worths,
        )
        self.replies = Replies(sources)
        self.replies.committed(self.pool.length, now)
        self.outcomes: Counter[Kind] = Counter()  # of drafts
        self.nodes_dropped = 0
        self.bytes_sent = self.bytes_received = 0
        self.source_names: dict[int, str] = {}  # of the remotes that were asked to draft for it
        self._sources = sources
        self._max_depth = max_depth

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return self.pool.token_ids

    @property
    def check(self) -> int:
        return self.pool.check

    def open_message(self, max_nodes: int, *, home: bool = False) -> Open:
        """OPEN with all that is committed. Home is trusted: it gets the seed under any `match`.

        A text too long for an OPEN is cut for home, which gets all of it with every draft it is
        asked for; remotes are not to be asked then.
        """
        s = self.sampling
        text = self.token_ids
        rejection = s.rule == "rejection"
        return Open(
            request=self.number,
            token_ids=tuple(text[:MAX_PROMPT_TOKENS] if home else text),
            rule=s.rule,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
            seed=s.seed if not rejection and (home or s.share_seed) else None,
            max_nodes=max_nodes,
            max_depth=self._max_depth,
            num_draws=s.num_draws if rejection else 0,
            replacement=s.replacement if rejection else False,
        )

    def max_nodes_of(self, source: int, most: int) -> int:
        """Of the tree that a remote drafter is asked for, which keeps `most`."""
        return self._sources.usefulness.max_nodes(source, most)

    def enrol(self, source: int, name: str, round_trip_ms: float | None = None) -> None:
        """A remote was asked to draft, for the first time or anew."""
        self.pool.enrol(source)
        self._sources.enrol(source, round_trip_ms)
        self.source_names[source] = name

    def retire(self, source: int) -> None:
        """A drafter has gone or is asked no more, and nothing is expected of it."""
        self.pool.retire(source)
        self.replies.retire(source)

    def offer(self, source: int, draft: Draft, now: float) -> Outcome:
        """Merge a draft of home or of a remote."""
        outcome = self.pool.offer(source, draft)
        self._count(outcome)
        if source != HOME and outcome.kind in _HEARD:
            self.replies.heard(source, draft.base_length, now)
        return outcome

    def commit(
        self, token_ids: Sequence[int], drafted_by: Iterable[int | None], now: float
    ) -> dict[int, str]:
        """The text goes on. Returns the sources whose early drafts turned out invalid, and why.

        `drafted_by` says of each accepted draft which source brought it first.
        """
        self._sources.usefulness.observe(drafted_by)
        offenders = {}
        for source, outcome in self.pool.commit(token_ids):
            self._count(outcome)
            if outcome.kind is Kind.INVALID:
                offenders[source] = outcome.reason
        self.replies.committed(self.pool.length, now)
        return offenders

    def _count(self, outcome: Outcome) -> None:
        self.outcomes[outcome.kind] += 1
        self.nodes_dropped += outcome.dropped_nodes
