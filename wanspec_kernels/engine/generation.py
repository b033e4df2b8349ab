"""Generation: one request from prompt to last token, as a state machine."""

from collections.abc import Sequence
from enum import Enum
from typing import Literal

from wanspec_kernels.control import policy as policies
from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.control.home_work import HomeWork
from wanspec_kernels.control.policies import ExpectedGain
from wanspec_kernels.control.policy import Policy, View
from wanspec_kernels.control.rival import Race
from wanspec_kernels.control.row_budget import RowBudget
from wanspec_kernels.control.waits import Waits
from wanspec_kernels.drafts.pool import HOME, Kind, Outcome, Pool, Selection
from wanspec_kernels.drafts.replies import Replies
from wanspec_kernels.engine.actions import Action, Committed, DraftAtHome, Finished, StartPass
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.sequence import check_verdict
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.wire import MAX_DEPTH, MAX_PROMPT_TOKENS, Draft, Open

AHEAD_ROWS = 128  # of the tree that home sees while the target runs


class _Phase(Enum):
    NEW = "new"
    IDLE = "idle"  # the target is; perhaps home is at work
    PASS = "pass"
    DONE = "done"


class Generation:
    """Events in, actions out. `now` is any clock in ms that does not go back.

    At most one StartPass and one DraftAtHome are under way, perhaps both; their ends are told by
    `pass_finished` and `home_finished`. Drafts may be offered at any time; then call `tick`. Before
    its driver waits, it asks for `wake_at_ms`, each time anew, and calls `tick` then. To call it
    too early or too often does no harm.
    """

    def __init__(
        self,
        request: Request,
        *,
        number: int = 1,
        vocab_size: int,
        policy: Policy | None = None,
        estimates: Estimates | None = None,
        rows: RowBudget | None = None,
        limits: Limits | None = None,
        home: bool = False,
    ) -> None:
        self.number = number
        self.request = request
        sampling = request.sampling
        self.limits = limits or Limits()
        self.policy: Policy = policy or ExpectedGain()
        self.estimates = estimates or Estimates()
        # What was drawn may not decide what is verified: under `rejection` the budget is fixed.
        self.rows = rows if sampling.rule == "match" else None
        if max(request.token_ids) >= vocab_size or min(request.token_ids) < 0:
            raise ValueError(f"token_ids: expected tokens of 0..{vocab_size - 1}, got another")
        max_length = self.limits.max_length
        if max_length is not None and len(request.token_ids) > max_length:
            got = len(request.token_ids)
            raise ValueError(f"token_ids: expected at most {max_length} tokens, got {got}")
        rejection = sampling.rule == "rejection"
        self.pool = Pool(
            number,
            request.token_ids,
            vocab_size=vocab_size,
            rule=sampling.rule,
            num_draws=sampling.num_draws if rejection else 0,
            replacement=sampling.replacement,
            max_source_nodes=self.limits.max_source_nodes,
            worths=self.estimates.sources.worths,
        )
        self.statistics = Statistics()
        self.output_ids: list[int] = []
        self.output_sources: list[int | None] = []  # as in Committed
        self.offenders: dict[int, str] = {}  # sources whose early draft turned out invalid, and why
        self.finish_reason: Literal["length", "stop"] | None = None
        self._home = HomeWork(self.estimates, is_there=home)
        if home:
            self.pool.enrol(HOME)
        self._phase = _Phase.NEW
        self._selection: Selection | None = None  # under verification
        self._max_rows = 0  # it was selected with
        self._pass_began_ms = 0.0
        self._free_ms = 0.0  # when the last pass ended
        self._waits = Waits()  # for drafts of remotes, while the target is idle
        self._offered = False
        self._race = Race(self.estimates)
        self._at_hand: Selection | None = None  # when the target fell free
        self._followed = self._left = 0.0  # the pool's counts at the last commit
        self._replies = Replies(self.estimates.sources)

    @property
    def token_ids(self) -> list[int]:
        """The committed text, prompt and output."""
        return self.pool.token_ids

    @property
    def check(self) -> int:
        return self.pool.check

    @property
    def waiting(self) -> bool:
        """A draft that comes may lead to something: call `tick`."""
        return self._waits.until_ms is not None

    @property
    def wake_at_ms(self) -> float | None:
        """When to call `tick` if nothing else has happened; None: what is under way ends first.

        While the target is idle there always is such a time.
        """
        return self._home.until_ms if self._home.is_awaited else self._waits.until_ms

    @property
    def done(self) -> bool:
        return self._phase is _Phase.DONE

    def open_message(self, max_nodes: int, *, home: bool = False) -> Open:
        """OPEN with all that is committed. Home is trusted: it gets the seed under any `match`.

        A text too long for an OPEN is cut for home, which gets all of it with every DraftAtHome;
        remotes are not to be asked then.
        """
        text = self.pool.token_ids
        return Open.of(
            self.number,
            text[:MAX_PROMPT_TOKENS] if home else text,
            self.request.sampling,
            max_nodes=max_nodes,
            max_depth=self.limits.max_depth,
            trusted=home,
        )

    def max_nodes_of(self, source: int, most: int) -> int:
        """Of the tree that a remote drafter is asked for, which keeps `most`."""
        return self.estimates.sources.usefulness.max_nodes(source, most)

    def enrol(self, source: int, round_trip_ms: float | None = None) -> None:
        """OPEN was sent to a remote drafter, for the first time or anew."""
        self.pool.enrol(source)
        self.estimates.sources.usefulness.enrol(source)
        pace = self.estimates.sources.pace(source)
        if round_trip_ms is not None and pace.reply_ms is None:
            pace.reply_ms = round_trip_ms

    def retire(self, source: int) -> None:
        """A drafter has gone, and nothing is expected of it any more."""
        self.pool.retire(source)
        self._replies.retire(source)
        self.estimates.sources.retire(source)

    def start(self, now: float) -> list[Action]:
        self._expect(_Phase.NEW)
        self._phase = _Phase.IDLE
        self._free_ms = now
        self._replies.committed(self.pool.length, now)
        return self._next(now)

    def offer(self, source: int, draft: Draft, now: float) -> Outcome:
        if self.done:
            outcome = Outcome(Kind.STALE, reason="the request has ended")
        else:
            outcome = self.pool.offer(source, draft)
        self.statistics.outcomes[outcome.kind] += 1
        self.statistics.nodes_dropped += outcome.dropped_nodes
        if outcome.kind in (Kind.NEW, Kind.LATE, Kind.DUPLICATE, Kind.STALE):
            if source != HOME:
                self._replies.heard(source, draft.base_length, now)
            self._offered = True
        return outcome

    def pass_finished(
        self, token_ids: Sequence[int], accepted_nodes: Sequence[int], now: float
    ) -> list[Action]:
        """The target's verdict on the last StartPass.

        Raises:
            ValueError: the verdict is no path of that tree with one token after it.
        """
        self._expect(_Phase.PASS)
        assert self._selection is not None
        tree, sources = self._selection.tree, self._selection.sources
        check_verdict(tree, token_ids, accepted_nodes)
        num_accepted, num_rows = len(accepted_nodes), len(tree.token_ids)
        pass_ms, idle_ms = now - self._pass_began_ms, self._pass_began_ms - self._free_ms
        self.estimates.observe_pass(pass_ms, self._selection.depth, num_accepted)
        round_ms = self.estimates.round_ms(pass_ms + idle_ms)
        if self.rows is not None:
            self.rows.observe(num_rows, self._max_rows, accepted_nodes, pass_ms, idle_ms)

        drafted_by = [sources[node][0] for node in accepted_nodes]
        self.estimates.sources.usefulness.observe(drafted_by)
        committed, reason = self._until_end(token_ids)
        flags: tuple[int | None, ...] = (*drafted_by, None)[: len(committed)]
        self.output_ids += committed
        self.output_sources += flags
        s = self.statistics
        s.target_passes += 1
        s.rows += num_rows
        s.tokens += len(committed)
        s.accepted.append(num_accepted)
        s.home_tokens_accepted += sum(flag == HOME for flag in flags)
        s.remote_tokens_accepted += sum(flag is not None and flag != HOME for flag in flags)

        if self._home.is_there:
            self._race_on(accepted_nodes, committed, round_ms)
        for source, outcome in self.pool.commit(committed):
            s.outcomes[outcome.kind] += 1
            if outcome.kind is Kind.INVALID:
                self.offenders[source] = outcome.reason
        followed, left = self.pool.followed - self._followed, self.pool.left - self._left
        self._followed, self._left = self.pool.followed, self.pool.left
        self.estimates.observe_round(len(committed), round_ms, followed, left, self._home.passes)
        self._phase = _Phase.IDLE
        self._selection = self._at_hand = None
        self._free_ms = now
        self._waits.committed()
        self._home.committed()
        self._replies.committed(self.pool.length, now)
        end = self._finish(reason) if reason else self._next(now)
        return [Committed(tuple(committed), flags), *end]

    def home_finished(self, drafts: Sequence[Draft] | None, now: float) -> list[Action]:
        """The home drafter's answer; None: it failed, and is asked again after the next commit."""
        self.statistics.local_draft_passes += self._home.ends(now, drafted=bool(drafts))
        if drafts is None:
            self.statistics.home_failures += 1
            self.pool.enrol(HOME)
        elif drafts:
            news = [self.offer(HOME, draft, now).new_claims > 0 for draft in drafts]
            # What hung from an older base was asked for before the last commit.
            current = any(draft.base_length == self.pool.length for draft in drafts)
            self._home.is_spent |= current and not any(news)
        if self.done:
            return []
        return self._next(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed or drafts were offered; does nothing where that ends no wait."""
        wake_at_ms = self.wake_at_ms
        if wake_at_ms is None or (now < wake_at_ms and not (self.waiting and self._offered)):
            return []
        return self._next(now)

    def _next(self, now: float) -> list[Action]:
        self.statistics.waited_ms += self._waits.end(now)
        self._offered = self._home.is_awaited = False
        if self._phase is _Phase.PASS:
            return self._go_ahead(now)
        max_rows, max_depth = self._bounds()
        selection = self._select(max_rows, max_depth)
        self._at_hand = self._at_hand or selection
        if len(selection.depths) >= self.limits.max_rows:
            # What else came would find no row. A smaller budget is no such bound: where home
            # stopped at it, the shallow trees showed that more rows were worth nothing, for ever.
            max_depth = selection.depth
        decision = self.policy.decide(self._view(selection, max_depth, now))
        match decision:
            case policies.Wait(until_ms) if self._waits.begin(until_ms, now):
                return []
            case policies.DraftAtHome(wanted) if passes := self._home.allows(wanted, now):
                return self._draft_at_home(passes, selection, now)
        self._phase, self._selection = _Phase.PASS, selection
        self.pool.pass_begins()
        self._max_rows = max_rows
        self._pass_began_ms = now
        self.statistics.rounds_without_home += self._home.passes == 0
        return [StartPass(selection.tree), *self._go_ahead(now)]

    def _go_ahead(self, now: float) -> list[Action]:
        """Draft at home for the next pass, while the target runs?"""
        if self._home.is_busy or not self._home.may_bring_more(now):
            return []
        # The tree under verification, and what has come to hang below and beside it since.
        max_depth = min(MAX_DEPTH, max(1, self._room - 1))
        selection = self._select(AHEAD_ROWS, max_depth)
        match self.policy.decide(self._view(selection, max_depth, now)):
            case policies.DraftAtHome(wanted) if passes := self._home.allows(wanted, now):
                self.statistics.ahead_draft_passes += passes
                return self._draft_at_home(passes, selection, now)
        return []

    def _race_on(self, accepted_nodes: Sequence[int], committed: Sequence[int], ms: float) -> None:
        """Take the time of a round that is about to commit, and what remotes did for it."""
        assert self._selection is not None
        assert self._at_hand is not None
        rival_ms = self._race.round_ends(self.pool, self._selection, accepted_nodes, committed, ms)
        if self._replies.soonest_ms(self.pool.enrolled, self._pass_began_ms) is None:
            return
        served = len(committed)
        if self._home.passes:  # and had home made none?
            served = 1 + self._at_hand.depth_without(HOME, committed)
            ms = self.estimates.target_pass_ms
        self.estimates.observe_served(served, ms, len(committed), rival_ms)

    def _draft_at_home(self, passes: int, selection: Selection, now: float) -> list[Action]:
        home = self._home
        home.is_awaited = self._phase is _Phase.IDLE
        if home.is_busy:
            return []
        home.begins(passes, now)
        known = None
        if self.request.sampling.rule == "match" and len(selection.depths) > 1:
            known = self.pool.as_draft(selection)
        return [DraftAtHome(tuple(self.pool.token_ids), passes, known)]

    def _bounds(self) -> tuple[int, int]:
        """Rows and depth of a tree for the target."""
        max_depth = min(self.limits.max_depth, self._room - 1)  # beside the extra token
        max_rows = self.rows.choose() if self.rows is not None else self.limits.max_rows
        if self.limits.max_length is not None:
            max_rows = min(max_rows, self.limits.max_length - self.pool.length + 1)
        return max_rows, max_depth

    def _select(self, max_rows: int, max_depth: int) -> Selection:
        return self.pool.select(max_rows, max_depth, acceptance=self.estimates.acceptance)

    def _view(self, selection: Selection, max_depth: int, now: float) -> View:
        e = self.estimates
        home, verifying = self._home, self._phase is _Phase.PASS
        return View(
            now_ms=now,
            idle_ms=0.0 if verifying else now - self._free_ms,
            waited_ms=self._waits.round_ms,
            verifying=verifying,
            left_ms=max(0.0, self._pass_began_ms + e.target_pass_ms - now) if verifying else 0.0,
            expected_tokens=selection.expected_tokens,
            open_mass=selection.open_mass,
            entropy_bits=selection.entropy_bits,
            depth=selection.depth,
            home_depth=selection.depth_of(HOME),
            max_depth=max_depth,
            coverage=e.coverage,
            target_pass_ms=e.target_pass_ms,
            home_pass_ms=e.home_pass_ms,
            tokens_per_ms=e.tokens_per_ms,
            home_passes=home.passes if home.may_bring_more(now) else None,
            home_is_busy=home.is_busy,
            home_passes_per_token=e.home_passes_per_token,
            behind_ms=self._race.behind_ms,
            remote_worth=e.remote_worth,
            reply_ms=self._replies.soonest_ms(self.pool.enrolled, now),
            arrivals=self._replies.arrivals(self.pool.enrolled, selection),
        )

    def _finish(self, reason: Literal["length", "stop"]) -> list[Action]:
        self._phase, self.finish_reason = _Phase.DONE, reason
        return [Finished(reason)]

    @property
    def _room(self) -> int:
        """Tokens the output may still grow by."""
        room = self.request.max_tokens - len(self.output_ids)
        if self.limits.max_length is not None:
            room = min(room, self.limits.max_length - self.pool.length + 1)
        return room

    def _until_end(
        self, token_ids: Sequence[int]
    ) -> tuple[list[int], Literal["length", "stop"] | None]:
        """The tokens up to the one that ends the text, and why it ends there."""
        room = self._room
        for i, token in enumerate(token_ids[:room]):
            if token in self.request.stop_token_ids:
                return list(token_ids[: i + 1]), "stop"
        return list(token_ids[:room]), "length" if len(token_ids) >= room else None

    def _expect(self, phase: _Phase) -> None:
        if self._phase is not phase:
            raise RuntimeError(f"phase: expected {phase.value}, got {self._phase.value}")
