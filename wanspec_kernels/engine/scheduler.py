"""Scheduler: who runs in the next pass, with how many rows, and when it begins."""

import logging
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count

from wanspec_kernels.control.home import DraftAtHome, Home, HomeJob
from wanspec_kernels.control.odds import Odds, Rate
from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.control.tuning import TUNING, Tuning
from wanspec_kernels.control.waiting import best_wait_ms
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.drafts.pool import HOME
from wanspec_kernels.drafts.selection import Selection
from wanspec_kernels.drafts.worth import TRUSTED
from wanspec_kernels.engine.events import (
    Admitted,
    Committed,
    Finished,
    FinishReason,
    HomeBegan,
    HomeEnded,
    News,
    PassBegan,
    PassEnded,
    PassFailed,
    Preempted,
    Submitted,
    Waited,
)
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import Part, PassPlan, Verdict
from wanspec_kernels.engine.request import Limits, Request, check_bitmask
from wanspec_kernels.engine.rows import Candidate, Chosen, choose_rows
from wanspec_kernels.engine.sequence import Sequence, State
from wanspec_kernels.wire import Draft

logger = logging.getLogger(__name__)


class RefusedError(ValueError):
    """A request that can never run, or that finds the queue full; it says what was expected."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_batch: int = 256  # requests of one pass
    max_rows: int = 1024  # of one pass
    chunk_rows: int = 512  # of these, for text that is read
    max_queue: int = 1024  # requests that wait


@dataclass(slots=True)
class _Pass:
    plan: PassPlan
    selections: dict[int, Selection]
    context: int
    home_passes: int  # before it
    began_ms: float | None = None

    @property
    def requests(self) -> tuple[int, ...]:
        return tuple(part.request for part in self.plan.parts)


class Scheduler:
    """Requests in, passes out. `now` is any clock in ms that does not go back.

    A request waits until pages are free for its text, first come first served; reads its text in
    chunks beside the others' trees; and takes part in every pass from then on. `step` says which
    pass to run, if one is due; `began` that the device has begun it, and `verdict` how it ended.
    Where `step` has nothing to run, `wake_at` says when to ask again, if nothing happens before.

    When pages run out, who came last gives all of its own back, and comes back first, by reading
    its text once more. So whoever came first goes on with each pass, and nobody starves: a request
    has ended once there were as many passes as it and those before it, together, have chunks of
    prompt and output, and tokens of output.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pages: PageBook,
        limits: Limits | None = None,
        batch: SchedulerLimits | None = None,
        exchange: Exchange | None = None,
        times: PassTimes | None = None,
        home: bool = False,
        tuning: Tuning = TUNING,
    ) -> None:
        self._tuning = tuning
        self.pages = pages
        self.exchange = exchange or Exchange(vocabulary=b"", vocab_size=vocab_size, now=0.0)
        self.events = self.exchange.events
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
        self._deadlines: list[tuple[float, int]] = []  # a heap, with the requests' numbers
        self._ended: list[News] = []
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []  # in order of admission
        self._running: _Pass | None = None
        self._free_ms: float | None = None  # since when the target has been free, with work
        self._has_waited = False  # since then, for drafts
        self._wake_ms: float | None = None
        self.odds = Odds(tuning)
        self.home = Home(tuning) if home else None
        self._rate = Rate(tuning)
        self._home_passes = 0  # since the last pass of the target began
        self._home_began_ms = 0.0
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
        while self._deadlines and self._deadlines[0][1] not in self.sequences:
            heappop(self._deadlines)
        times = [] if self._wake_ms is None or self.is_running else [self._wake_ms]
        times += [at for at, _ in self._deadlines[:1]]
        return min(times, default=None)

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
        if max(request.token_ids) >= self._vocab_size or min(request.token_ids) < 0:
            raise ValueError(f"token_ids: expected tokens of 0..{self._vocab_size - 1}")
        number = next(self._numbers)
        text = self.exchange.open(
            number,
            request.token_ids,
            request.sampling,
            now,
            max_depth=self._limits.max_depth,
            max_source_nodes=self._limits.max_source_nodes,
            ask=False,  # Those who wait take no drafter's seat.
        )
        sequence = Sequence(request, text, limits=self._limits, now=now)
        if self.home is not None:
            sequence.pool.enrol(HOME)
        self.sequences[sequence.number] = sequence
        if sequence.deadline_ms is not None:
            heappush(self._deadlines, (sequence.deadline_ms, sequence.number))
        self._waiting.append(sequence)
        self._wake_ms = now
        if self.events.wanted:
            self.events.emit(Submitted(number, len(request.token_ids), now))
        return sequence

    def cancel(self, number: int, now: float) -> list[News]:
        """End a request: at once, or with the pass that it takes part in. Unknown ones are over.

        Nothing that this pass decides is committed.
        """
        return self._end(number, "cancelled", now)

    def stop(self, number: int, now: float) -> list[News]:
        """As `cancel`, because its text has turned out to be complete."""
        return self._end(number, "stop", now)

    def ended(self, now: float) -> list[News]:
        """Who has ended since the last call without a verdict, such as by a deadline.

        Ask before each `step`. Whose deadline passes in a pass ends with it.
        """
        while self._deadlines and self._deadlines[0][0] <= now:
            sequence = self.sequences.get(heappop(self._deadlines)[1])
            if sequence is not None and sequence.state is not State.RUNNING:
                sequence.end("deadline")
                self._ended.append(self._finish(sequence))
        ended, self._ended = self._ended, []
        return ended

    def _end(self, number: int, reason: FinishReason, now: float) -> list[News]:
        sequence = self.sequences.get(number)
        if sequence is None:
            return []
        if sequence.state is State.RUNNING:
            sequence.ending = reason
            return []
        sequence.end(reason)
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
        self._admit(now)
        if not self._active:
            self._free_ms = None
            return None
        if self._free_ms is None:
            self._free_ms = now
        if self.home is not None and self.home.is_awaited(now):
            self._wake_ms = self.home.until_ms
            return None
        if self.home is not None:
            self.home.settle(now)
        reading, deciding = self._reading()
        chosen, context = self._choose(reading, deciding)
        drafting = self._draft(deciding, chosen, context, now)
        if drafting is not None:
            return drafting
        until_ms = self._wait_until(deciding, chosen, context, now)
        if until_ms is not None:
            self._wake_ms = until_ms
            self._has_waited = True
            return None
        return self._begin(reading, deciding, chosen, context, now)

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
            sequence.number: _open_to_home(sequence, selection)
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
        self._home_began_ms = now
        if self.events.wanted:
            self.events.emit(HomeBegan(tuple(job.request for job in jobs), now))
        self._home_passes += 1
        return drafting

    def drafted(self, drafts: Mapping[int, Many[Draft] | None], now: float) -> None:
        """What a pass at home brought for each request that asked.

        None: it still reads the text. A request that is missing was failed, and asks again after
        its next commit.
        """
        assert self.home is not None
        asked = self.home.asked
        unread = {number for number, brought in drafts.items() if brought is None}
        self.home.ends(now, unread)
        if self.events.wanted:
            self.events.emit(HomeEnded(tuple(sorted(asked)), now - self._home_began_ms, now))
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
                self.home.forget(number)
                sequence.pool.enrol(HOME)
            found = [sequence.offer(HOME, draft, now) for draft in brought]
            if not any(outcome.new_claims for outcome in found):
                self.home.spent(number)
        self._wake_ms = now

    def began(self, now: float) -> None:
        """The device has begun the pass that `step` gave out."""
        assert self._running is not None
        self._running.began_ms = now
        if self.events.wanted:
            running = self._running
            self.events.emit(PassBegan(running.requests, running.plan.num_rows, now))
        for part in self._running.plan.parts:
            sequence = self.sequences[part.request]
            sequence.statistics.waited_ms += now - sequence.ready_ms

    def verdict(
        self, verdicts: Many[Verdict], now: float, *, ended_ms: float | None = None
    ) -> list[News]:
        """The pass under way has ended, at `now` if it is not said when.

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
        ended_ms = now if ended_ms is None else ended_ms
        pass_ms = ended_ms - running.began_ms
        if self.events.wanted:
            self.events.emit(PassEnded(running.requests, running.plan.num_rows, pass_ms, ended_ms))
        self.times.observe(running.plan.num_rows, running.context, pass_ms)
        events: list[News] = []
        for part in running.plan.parts:
            sequence = self.sequences[part.request]
            sequence.num_written += len(part.prefix)
            sequence.state, sequence.ready_ms = State.READY, now
        tokens = 0
        for verdict in verdicts:
            events += self._commit(running, verdict, now)
            tokens += len(verdict.token_ids)
        for part in running.plan.parts:
            sequence = self.sequences[part.request]
            if not sequence.done and sequence.ending is not None:
                sequence.end(sequence.ending)
            if not sequence.done and sequence.is_past_deadline(now):
                sequence.end("deadline")
            if sequence.done:
                events.append(self._finish(sequence))
            else:
                # Of the text, what has slots: not yet its last token.
                self.pages.written(part.request, sequence.token_ids[: sequence.num_written])
        assert self._free_ms is not None
        most_ms = self._most_round_ms(running, now)
        self._rate.observe(tokens, len(verdicts), min(now - self._free_ms, most_ms))
        self.exchange.sources.round_ms = self.times.typical_ms
        self._free_ms = now if self._active else None
        self._wake_ms = now
        return events

    def _most_round_ms(self, running: _Pass, now: float) -> float:
        """What a round takes whose parts take as long as they do: the rest was a pause."""
        typical_ms = self.times.typical_ms
        pass_ms = max(typical_ms, self.times.ms(running.plan.num_rows, running.context))
        most_ms = pass_ms + self._tuning.max_wait_passes * typical_ms
        if self.home is not None and running.home_passes:
            home_ms = self.home.pass_ms(len(running.selections), typical_ms, now)
            most_ms += running.home_passes * home_ms
        return most_ms

    def failed(self, now: float) -> list[News]:
        """The pass under way raised: the requests that took part in it end."""
        assert self._running is not None
        requests = self._running.requests
        self._running = None
        if self.events.wanted:
            self.events.emit(PassFailed(requests, now))
        events: list[News] = []
        for number in requests:
            sequence = self.sequences[number]
            sequence.end(sequence.ending or "failed")
            events.append(self._finish(sequence))
        self._free_ms = now if self._active else None
        self._wake_ms = now
        return events

    def _commit(self, running: _Pass, verdict: Verdict, now: float) -> list[News]:
        sequence = self.sequences[verdict.request]
        if sequence.ending is not None:
            return []
        if verdict.is_invalid:
            sequence.end("failed")
            return []
        if self.home is not None:
            self.home.went_on(verdict.request)
        selection = running.selections[verdict.request]
        committed, sources = sequence.commit(
            selection.tree, selection.sources, verdict.token_ids, verdict.accepted_nodes, now
        )
        drafted_by = [selection.sources[node][0] for node in verdict.accepted_nodes]
        self.exchange.commit(verdict.request, committed, drafted_by, now)
        followed, left = sequence.followed()
        self.odds.observe_pool(followed, left)
        self.odds.observe_tree(selection.depth, len(verdict.accepted_nodes))
        path = set(verdict.accepted_nodes)
        hits: dict[int, bool] = {}  # by expanded node, in order
        for each in selection.tree.expansions or ():
            hits[each.parent] = hits.get(each.parent, False) or not path.isdisjoint(each.children)
        self.odds.observe_expansions(list(hits.values()))
        news = Committed(verdict.request, committed, sources, verdict)
        self.events.emit(news)
        return [news]

    def _admit(self, now: float) -> None:
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
            sequence.state, sequence.ready_ms = State.READY, now
            if sequence.statistics.admitted_ms is None:
                sequence.statistics.admitted_ms = now
            self._active.append(sequence)
            self.exchange.ask(sequence.number)
            if self.events.wanted:
                self.events.emit(Admitted(sequence.number, now))

    def _reading(self) -> tuple[dict[int, int], list[Sequence]]:
        """How much text each request reads in the pass, and for whom it decides tokens.

        Of requests that begin alike one reads, and the others take its pages over.
        """
        left = self._batch.chunk_rows
        reading: dict[int, int] = {}
        deciding: list[Sequence] = []
        readers: list[Sequence] = []
        for sequence in self._active:
            if sequence.unread:
                written = self.pages.adopt(sequence.number, sequence.token_ids[:-1])
                sequence.num_written = max(sequence.num_written, written)
            if sequence.unread:
                page_end = sequence.num_written + self.pages.page_size
                page_end -= page_end % self.pages.page_size
                if any(_reads_the_same(other, sequence, page_end) for other in readers):
                    continue
                readers.append(sequence)
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
        self,
        reading: dict[int, int],
        deciding: Many[Sequence],
        chosen: Chosen,
        context: int,
        now: float,
    ) -> PassPlan | None:
        wanted = dict(zip([s.number for s in deciding], chosen.selections, strict=True))
        trees: dict[int, Selection] = {}
        for sequence in list(self._active):  # who came first has its pages first
            number = sequence.number
            if number not in reading or sequence.state is not State.READY:
                continue
            slots = sequence.num_written + reading[number]
            if not self._reserve(sequence, slots + (number in wanted), now):
                continue
            if number in wanted:
                trees[number] = self._fit(sequence, slots, wanted[number])
        order = [*wanted, *(number for number in reading if number not in wanted)]
        made = [
            self._part(self.sequences[number], reading[number], trees.get(number))
            for number in order
            if self.sequences[number].state is State.READY
        ]
        parts = [part for part in made if part is not None]
        if not parts:
            self._wake_ms = now
            return None
        for part in parts:
            self.sequences[part.request].state = State.RUNNING
            self.sequences[part.request].pool.pass_begins()
        self._running = _Pass(PassPlan(tuple(parts)), trees, context, self._home_passes)
        if self._has_waited and self._free_ms is not None and self.events.wanted:
            self.events.emit(Waited(now - self._free_ms, now))
        self._has_waited = False
        self._home_passes = 0
        self._before_home = None
        return self._running.plan

    def _part(self, sequence: Sequence, read: int, selection: Selection | None) -> Part | None:
        """None: its grammar has failed, and with it the request."""
        begin, request = sequence.num_written, sequence.request
        tree = None if selection is None else selection.tree
        bitmask = None
        if request.grammar is not None and tree is not None:
            try:
                bitmask = request.grammar.bitmask(sequence.output_ids, tree)
                check_bitmask(bitmask, tree, self._vocab_size)
            except Exception:  # Whatever code that is, the other requests go on.
                logger.exception("request %d: its grammar failed", sequence.number)
                sequence.end("failed")
                self._ended.append(self._finish(sequence))
                return None
        return Part(
            sequence.number,
            begin,
            tuple(sequence.token_ids[begin : begin + read]),
            tree,
            self.pages.pages_of(sequence.number),
            request.sampling,
            request.logprobs,
            bitmask,
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

    def _reserve(self, sequence: Sequence, slots: int, now: float) -> bool:
        """Pages for what must run, if need be those of who came last; False: it was that one."""
        while not self.pages.reserve(sequence.number, slots):
            last = self._active[-1]
            self._preempt(last, now)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Take its pages back; it is the first to be admitted again."""
        self._active.remove(sequence)
        self.pages.release(sequence.number)
        sequence.num_written = 0
        sequence.state = State.WAITING
        sequence.statistics.preemptions += 1
        self.num_preempted += 1
        self._waiting.appendleft(sequence)
        if self.events.wanted:
            self.events.emit(Preempted(sequence.number, now))

    def _finish(self, sequence: Sequence) -> Finished:
        assert sequence.finish_reason is not None
        self.pages.release(sequence.number)
        if sequence in self._active:
            self._active.remove(sequence)
        else:
            self._waiting.remove(sequence)
        del self.sequences[sequence.number]
        if self.home is not None:
            self.home.forget(sequence.number)
        if len(self._deadlines) > 2 * len(self.sequences):
            self._deadlines = [each for each in self._deadlines if each[1] in self.sequences]
            heapify(self._deadlines)
        sequence.account()
        self.exchange.close(sequence.number, sequence.finish_reason)
        news = Finished(sequence.number, sequence.finish_reason, sequence.statistics)
        self.events.emit(news)
        return news


def _reads_the_same(reader: Sequence, sequence: Sequence, page_end: int) -> bool:
    """The page that a request would read next is one that another reads now."""
    return (
        reader.num_written < page_end < min(len(reader.token_ids), len(sequence.token_ids))
        and reader.token_ids[:page_end] == sequence.token_ids[:page_end]
    )


def _open_to_home(sequence: Sequence, selection: Selection) -> float:
    """Probability that the path leaves the tree where nobody has drafted whom one would wait for.

    What one of little credit has drafted is no sign that home has nothing to add: a liar that was
    right about each second token made texts take 1.08 times as long when it counted in part.
    """
    trusted = sequence.pool.trusted()
    rows = zip(selection.probabilities, selection.openness, selection.sources, strict=True)
    return sum(
        [
            p * (1.0 if share > 1.0 - TRUSTED else share)
            for row, (p, share, sources) in enumerate(rows)
            if row == 0 or not trusted.isdisjoint(sources)
        ]
    )


def _known(sequence: Sequence, selection: Selection) -> Draft | None:
    """What is here already, for home to grow on."""
    if sequence.pool.rejection or len(selection.depths) == 1:
        return None
    known = sequence.pool.as_draft(selection)
    return known if known.token_ids else None
