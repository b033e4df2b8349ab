"""Scheduler: who runs in the next pass, with how many rows, and when it begins."""

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import count

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.control.home import DraftAtHome, Home, HomeJob
from wanspec_kernels.control.odds import Odds, Rate
from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.control.tuning import TUNING, Tuning
from wanspec_kernels.control.waiting import best_wait_ms
from wanspec_kernels.drafts.pool import HOME
from wanspec_kernels.drafts.selection import Selection
from wanspec_kernels.drafts.worth import TRUSTED
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import Part, PassPlan, Verdict
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.rows import Candidate, Chosen, choose_rows
from wanspec_kernels.engine.sequence import FinishReason, Sequence, State
from wanspec_kernels.wire import Draft


class RefusedError(ValueError):
    """A request that can never run, or that finds the queue full; it says what was expected."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_batch: int = 256  # requests of one pass
    max_rows: int = 1024  # of one pass
    chunk_rows: int = 512  # of these, for text that is read
    max_queue: int = 1024  # requests that wait


@dataclass(frozen=True, slots=True)
class Committed:
    request: int
    token_ids: tuple[int, ...]
    sources: tuple[int | None, ...]  # of each token: who drafted it; None: the target's own
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Finished:
    request: int
    reason: FinishReason


Event = Committed | Finished


@dataclass(slots=True)
class _Pass:
    plan: PassPlan
    selections: dict[int, Selection]
    context: int
    began_ms: float | None = None


class Scheduler:
    """Requests in, passes out. `now` is any clock in ms that does not go back.

    A request waits until pages are free for its text, first come first served; reads its text in
    chunks beside the others' trees; and takes part in every pass from then on. `step` says which
    pass to run, if one is due; `began` that the device has begun it, and `verdict` how it ended.
    Where `step` has nothing to run, `wake_at` says when to ask again, if nothing happens before.

    When pages run out, who came last gives all of its own back, and comes back first, by reading
    its text once more.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pages: PageBook,
        limits: Limits | None = None,
        batch: SchedulerLimits | None = None,
        estimates: Estimates | None = None,
        times: PassTimes | None = None,
        home: bool = False,
        tuning: Tuning = TUNING,
    ) -> None:
        self._tuning = tuning
        self.pages = pages
        self.estimates = estimates or Estimates()
        self.times = times or PassTimes(tuning=tuning)
        self.sequences: dict[int, Sequence] = {}  # alive
        self.num_preempted = 0
        limits = limits or Limits()
        slots = pages.num_pages * pages.page_size
        most = slots if limits.max_length is None else min(slots, limits.max_length)
        self._limits = Limits(
            limits.max_rows, limits.max_depth, limits.max_source_nodes, max_length=most
        )
        self._batch = batch or SchedulerLimits()
        self._vocab_size = vocab_size
        self._numbers = count(1)
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []  # in order of admission
        self._running: _Pass | None = None
        self._free_ms: float | None = None  # since when the target has been free, with work
        self._wake_ms: float | None = None
        self.odds = Odds(tuning)
        self.home = Home(tuning) if home else None
        self._rate = Rate(tuning)
        self._home_passes = 0  # since the last pass of the target began
        self._before_home: tuple[float, float] | None = None  # what a pass was worth, and the mass

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def is_running(self) -> bool:
        """A pass was given out and has no verdict yet."""
        return self._running is not None

    def wake_at(self) -> float | None:
        """When `step` should be called next, if nothing happens before; None: not at all."""
        return self._wake_ms

    def submit(self, request: Request, now: float) -> Sequence:
        """Give a request a number and put it at the end of the queue.

        Raises:
            RefusedError: the queue is full, or the prompt can never fit.
            ValueError: a token is none of the target's.
        """
        if len(self._waiting) >= self._batch.max_queue:
            raise RefusedError(f"queue: expected room for a request, {len(self._waiting)} wait")
        assert self._limits.max_length is not None
        if len(request.token_ids) > self._limits.max_length:
            raise RefusedError(
                f"token_ids: expected at most {self._limits.max_length} tokens, which "
                f"{self.pages.num_pages} pages of {self.pages.page_size} slots and the model's "
                f"positions allow, got {len(request.token_ids)}"
            )
        sequence = Sequence(
            next(self._numbers),
            request,
            vocab_size=self._vocab_size,
            limits=self._limits,
            estimates=self.estimates,
            now=now,
        )
        if self.home is not None:
            sequence.pool.enrol(HOME)
        self.sequences[sequence.number] = sequence
        self._waiting.append(sequence)
        self._wake_ms = now
        return sequence

    def cancel(self, number: int, now: float) -> list[Event]:
        """End a request: at once, or with the pass that it takes part in. Unknown ones are over."""
        sequence = self.sequences.get(number)
        if sequence is None:
            return []
        if sequence.state is State.RUNNING:
            sequence.is_cancelled = True
            return []
        sequence.end("cancelled")
        self._wake_ms = now
        return [self._finish(sequence)]

    def offered(self, now: float) -> None:
        """Drafts came for some request: a pass that waits for them may begin."""
        if self._wake_ms is not None:
            self._wake_ms = now

    def step(self, now: float) -> PassPlan | DraftAtHome | None:
        """What to begin now; None: a pass is under way, or nothing is to be run yet."""
        if self._running is not None:
            return None
        self._wake_ms = None
        self._admit()
        if not self._active:
            self._free_ms = None
            return None
        if self._free_ms is None:
            self._free_ms = now
        if self.home is not None and self.home.is_awaited(now):
            self._wake_ms = self.home.until_ms
            return None
        reading, deciding = self._reading()
        chosen, context = self._choose(reading, deciding)
        drafting = self._draft(deciding, chosen, context, now)
        if drafting is not None:
            return drafting
        until_ms = self._wait_until(deciding, chosen, context, now)
        if until_ms is not None:
            self._wake_ms = until_ms
            return None
        return self._begin(reading, deciding, chosen, context)

    def _draft(
        self, deciding: Many[Sequence], chosen: Chosen, context: int, now: float
    ) -> DraftAtHome | None:
        """A draft pass at home, if what it may bring is worth everybody's time."""
        home = self.home
        if home is None or home.is_busy or chosen.is_full:
            return None
        if self._home_passes >= self._tuning.max_home_passes:
            return None
        target_ms = self.times.typical_ms
        rate = self._tokens_per_ms(deciding, context)
        value = chosen.tokens - rate * chosen.ms
        if self._before_home is not None:
            before, mass = self._before_home
            self.odds.observe_level(value - before, mass)
            self._before_home = None
        open_mass = {
            sequence.number: _open_to_home(selection)
            for sequence, selection in zip(deciding, chosen.selections, strict=True)
            if home.has_more_for(sequence.number)
        }
        mass = sum(open_mass.values())
        cost = rate * home.pass_ms(len(open_mass), target_ms, now) * (1.0 + self._tuning.home_price)
        if not open_mass or mass * self.odds.level_worth <= cost:
            return None
        self._before_home = (value, mass)
        jobs = [
            HomeJob(sequence.number, tuple(sequence.token_ids), _known(sequence, selection))
            for sequence, selection in zip(deciding, chosen.selections, strict=True)
            if open_mass.get(sequence.number, 0.0) >= self._tuning.least_open_mass
        ]
        drafting = DraftAtHome(tuple(jobs))
        home.begins(drafting, target_ms, now)
        self._home_passes += 1
        return drafting

    def drafted(self, drafts: Mapping[int, Many[Draft] | None], now: float) -> None:
        """What a pass at home brought for each request that asked.

        None: it still reads the text. A request that is missing was failed, and asks again after
        its next commit.
        """
        assert self.home is not None
        asked = self.home.asked
        self.home.ends(now)
        for number in asked:
            sequence = self.sequences.get(number)
            if sequence is None:
                continue
            sequence.statistics.local_draft_passes += 1
            brought = drafts.get(number, ())
            if brought is None:
                continue
            if number not in drafts:
                sequence.statistics.home_failures += 1
                sequence.pool.enrol(HOME)
            found = [sequence.offer(HOME, draft, now) for draft in brought]
            if not any(outcome.new_claims for outcome in found):
                self.home.spent(number)
        self._wake_ms = now

    def began(self, now: float) -> None:
        """The device has begun the pass that `step` gave out."""
        assert self._running is not None
        self._running.began_ms = now

    def verdict(self, verdicts: Many[Verdict], now: float) -> list[Event]:
        """The pass under way has ended.

        Raises:
            RuntimeError: none was under way.
            ValueError: a verdict is missing, or is none on its tree.
        """
        running = self._running
        if running is None or running.began_ms is None:
            raise RuntimeError("verdict: expected a pass that has begun, there is none")
        expected = [part.request for part in running.plan.parts if part.tree is not None]
        if [verdict.request for verdict in verdicts] != expected:
            raise ValueError(f"verdict: expected those of {expected}, got others")
        self._running = None
        pass_ms = now - running.began_ms
        self.times.observe(running.plan.num_rows, running.context, pass_ms)
        events: list[Event] = []
        for part in running.plan.parts:
            self.sequences[part.request].num_written += len(part.prefix)
            self.sequences[part.request].state = State.READY
        tokens = 0
        for verdict in verdicts:
            events += self._commit(running, verdict, now)
            tokens += len(verdict.token_ids)
        for part in running.plan.parts:
            sequence = self.sequences[part.request]
            if sequence.is_cancelled and not sequence.done:
                sequence.end("cancelled")
            if sequence.done:
                events.append(self._finish(sequence))
            else:
                # Of the text, what has slots: not yet its last token.
                self.pages.written(part.request, sequence.token_ids[: sequence.num_written])
        assert self._free_ms is not None
        most_ms = self._tuning.max_round_passes * self.times.typical_ms
        self._rate.observe(tokens, len(verdicts), min(now - self._free_ms, most_ms))
        self.estimates.observe_pass(pass_ms, 0, 0)
        self._free_ms = now if self._active else None
        self._wake_ms = now
        return events

    def failed(self, now: float) -> list[Event]:
        """The pass under way raised: the requests that took part in it end."""
        assert self._running is not None
        parts = self._running.plan.parts
        self._running = None
        events: list[Event] = []
        for part in parts:
            sequence = self.sequences[part.request]
            sequence.end("cancelled" if sequence.is_cancelled else "failed")
            events.append(self._finish(sequence))
        self._free_ms = now if self._active else None
        self._wake_ms = now
        return events

    def _commit(self, running: _Pass, verdict: Verdict, now: float) -> list[Event]:
        sequence = self.sequences[verdict.request]
        if verdict.is_invalid:
            sequence.end("failed")
            return []
        if self.home is not None:
            self.home.forget(verdict.request)
        selection = running.selections[verdict.request]
        committed, sources = sequence.commit(
            selection.tree, selection.sources, verdict.token_ids, verdict.accepted_nodes, now
        )
        followed, left = sequence.followed()
        self.odds.observe_pool(followed, left)
        self.odds.observe_tree(selection.depth, len(verdict.accepted_nodes))
        path = set(verdict.accepted_nodes)
        hits: dict[int, bool] = {}  # by expanded node, in order
        for each in selection.tree.expansions or ():
            hits[each.parent] = hits.get(each.parent, False) or not path.isdisjoint(each.children)
        self.odds.observe_expansions(list(hits.values()))
        return [Committed(verdict.request, committed, sources, verdict)]

    def _admit(self) -> None:
        """First come, first served: who does not fit keeps those behind it waiting."""
        while self._waiting and len(self._active) < self._batch.max_batch:
            sequence = self._waiting[0]
            text = sequence.token_ids[:-1]
            found = self.pages.find(text)
            # Shared pages that nobody holds are counted among the free ones.
            needed = self.pages.pages_needed(len(text) + 1) - len(found)
            if needed > self.pages.num_free - self.pages.num_idle(found):
                return
            self._waiting.popleft()
            sequence.num_written = self.pages.begin(sequence.number, text)
            held = self.pages.reserve(sequence.number, len(text) + 1)
            assert held
            sequence.state = State.READY
            self._active.append(sequence)

    def _reading(self) -> tuple[dict[int, int], list[Sequence]]:
        """How much text each request reads in the pass, and for whom it decides tokens."""
        left = self._batch.chunk_rows
        reading: dict[int, int] = {}
        deciding: list[Sequence] = []
        for sequence in self._active:
            read = min(sequence.unread, left)
            if sequence.unread and not read:
                continue
            left -= read
            reading[sequence.number] = read
            if read == sequence.unread:
                deciding.append(sequence)
        # Neighbours of one rule are verified together.
        deciding.sort(key=lambda sequence: sequence.request.sampling.rule)
        return reading, deciding

    def _choose(self, reading: dict[int, int], deciding: Many[Sequence]) -> tuple[Chosen, int]:
        context = sum(self.sequences[number].num_written + read for number, read in reading.items())
        candidates = [
            Candidate(s.pool, s.max_rows, s.max_depth, self.odds.expansion_worth) for s in deciding
        ]
        chosen = choose_rows(
            candidates,
            self.times,
            tokens_per_ms=self._tokens_per_ms(deciding, context),
            max_rows=self._batch.max_rows,
            other_rows=sum(reading.values()),
            context=context,
            tuning=self._tuning,
        )
        return chosen, context

    def _tokens_per_ms(self, deciding: Many[Sequence], context: int) -> float:
        plain_ms = self.times.ms(len(deciding), context)
        return self._rate.tokens_per_ms(len(deciding), plain_ms)

    def _wait_until(
        self, deciding: Many[Sequence], chosen: Chosen, context: int, now: float
    ) -> float | None:
        """Until when the pass should wait for drafts that are due; None: it should begin."""
        assert self._free_ms is not None
        most_ms = self._tuning.max_wait_passes * self.times.typical_ms
        left_ms = self._free_ms + most_ms - now
        if chosen.is_full or left_ms <= 0:
            return None
        wait_ms = best_wait_ms(
            [
                arrival
                for sequence, selection in zip(deciding, chosen.selections, strict=True)
                if sequence.max_depth > selection.depth
                for arrival in sequence.replies.arrivals(sequence.pool.enrolled, selection)
            ],
            coverage=self.odds.coverage,
            tokens_per_ms=self._tokens_per_ms(deciding, context),
            left_ms=left_ms,
            now=now,
            tuning=self._tuning,
        )
        return None if wait_ms is None else now + wait_ms

    def _begin(
        self, reading: dict[int, int], deciding: Many[Sequence], chosen: Chosen, context: int
    ) -> PassPlan | None:
        wanted = dict(zip([s.number for s in deciding], chosen.selections, strict=True))
        trees: dict[int, Selection] = {}
        for sequence in list(self._active):  # who came first has its pages first
            number = sequence.number
            if number not in reading or sequence.state is not State.READY:
                continue
            slots = sequence.num_written + reading[number]
            if not self._reserve(sequence, slots + (number in wanted)):
                continue
            if number in wanted:
                trees[number] = self._fit(sequence, slots, wanted[number])
        order = [*wanted, *(number for number in reading if number not in wanted)]
        parts = [
            self._part(self.sequences[number], reading[number], trees.get(number))
            for number in order
            if self.sequences[number].state is State.READY
        ]
        if not parts:
            return None
        for part in parts:
            self.sequences[part.request].state = State.RUNNING
            self.sequences[part.request].pool.pass_begins()
        self._running = _Pass(PassPlan(tuple(parts)), trees, context)
        self._home_passes = 0
        self._before_home = None
        return self._running.plan

    def _part(self, sequence: Sequence, read: int, selection: Selection | None) -> Part:
        begin = sequence.num_written
        return Part(
            sequence.number,
            begin,
            tuple(sequence.token_ids[begin : begin + read]),
            None if selection is None else selection.tree,
            self.pages.pages_of(sequence.number),
            sequence.request.sampling,
        )

    def _fit(self, sequence: Sequence, slots: int, selection: Selection) -> Selection:
        """The tree, or as much of it as pages are free for; nobody loses any for it."""
        if self.pages.reserve(sequence.number, slots + len(selection.depths)):
            return selection
        held = len(self.pages.pages_of(sequence.number))
        room = (held + self.pages.num_free) * self.pages.page_size - slots
        selection = sequence.pool.select(min(room, sequence.max_rows), sequence.max_depth)
        fits = self.pages.reserve(sequence.number, slots + len(selection.depths))
        assert fits
        return selection

    def _reserve(self, sequence: Sequence, slots: int) -> bool:
        """Pages for what must run, if need be those of who came last; False: it was that one."""
        while not self.pages.reserve(sequence.number, slots):
            last = self._active[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take its pages back; it is the first to be admitted again."""
        self._active.remove(sequence)
        self.pages.release(sequence.number)
        sequence.num_written = 0
        sequence.state = State.WAITING
        sequence.statistics.preemptions += 1
        self.num_preempted += 1
        self._waiting.appendleft(sequence)

    def _finish(self, sequence: Sequence) -> Finished:
        assert sequence.finish_reason is not None
        self.pages.release(sequence.number)
        if sequence in self._active:
            self._active.remove(sequence)
        else:
            self._waiting.remove(sequence)
        del self.sequences[sequence.number]
        return Finished(sequence.number, sequence.finish_reason)


def _open_to_home(selection: Selection) -> float:
    """Probability that the path leaves the tree where nobody has drafted whom one would wait for.

    What one of little credit has drafted is no sign that home has nothing to add: a liar that was
    right about each second token made texts take 1.08 times as long when it counted in part.
    """
    rows = zip(selection.probabilities, selection.openness, strict=True)
    return sum([p * (1.0 if share > 1.0 - TRUSTED else share) for p, share in rows])


def _known(sequence: Sequence, selection: Selection) -> Draft | None:
    """What is here already, for home to grow on."""
    if sequence.pool.rejection or len(selection.depths) == 1:
        return None
    return sequence.pool.as_draft(selection)
