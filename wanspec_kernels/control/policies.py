"""The policies: never at home, always at home, the entropy gate, and expected gain."""

from dataclasses import dataclass, replace

from wanspec_kernels.control.policy import (
    MAX_WAIT_MS,
    MIN_WAIT_MS,
    Arrival,
    Decision,
    DraftAtHome,
    Verify,
    View,
    Wait,
)


@dataclass(frozen=True, slots=True)
class NeverLocal:
    """Verifies what remotes sent, after a bounded wait where nothing is here."""

    max_wait_fraction: float = 0.5  # of a target pass, a round

    def decide(self, view: View) -> Decision:
        until_ms = _bounded_wait(view, self.max_wait_fraction)
        if not view.verifying and view.depth == 0 and until_ms is not None:
            return Wait(until_ms)
        return Verify()


@dataclass(frozen=True, slots=True)
class AlwaysLocal:
    """Co-located speculation: so many draft passes at home, then the target, whatever comes."""

    passes: int = 5

    def decide(self, view: View) -> Decision:
        done = view.home_passes
        if view.verifying or done is None or done >= self.passes or view.depth >= view.max_depth:
            return Verify()
        return DraftAtHome(1)


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """Redundancy where the remote is likely to be wrong (Martin and Dogar, arXiv 2602.18931).

    Home drafts what co-located speculation would wherever the drafts at hand are unsure of some
    token on their likeliest path by more than `max_entropy_bits`, or there is none. Elsewhere the
    remote is trusted, and waited for within a bound if its tree is still shallow.
    """

    max_entropy_bits: float = 2.0
    passes: int = 5  # a round, as `AlwaysLocal`
    min_depth: int = 4  # a trusted tree as deep as this is not kept waiting
    max_wait_fraction: float = 0.5

    def decide(self, view: View) -> Decision:
        if view.verifying or view.depth >= view.max_depth:
            return Verify()
        unsure = view.depth == 0 or view.entropy_bits > self.max_entropy_bits
        done = view.home_passes
        if unsure and done is not None and done < self.passes and view.home_depth < self.passes:
            return DraftAtHome(1)
        until_ms = _bounded_wait(view, self.max_wait_fraction)
        if not unsure and view.depth < self.min_depth and until_ms is not None:
            return Wait(until_ms)
        return Verify()


@dataclass(frozen=True, slots=True)
class ExpectedGain:
    """Takes what gains most: tokens expected of the next pass, less what time and passes cost.

    A millisecond costs the tokens that are decoded in one on average, so that the best choice of
    each round is the best in the long run; a draft pass at home costs `pass_price` tokens more,
    the capacity it takes from others, while there is a remote to take it over. One pass more at
    home, or one addition more from a remote, is expected to hold the next token of the paths that
    now run out of the tree (`open_mass`) with probability `coverage`. Home may also draft while the
    target runs, which costs no time: it does where remotes cannot be heard in time for the next
    pass.

    While a remote is heard, home stops working ahead once it makes so many passes a token as the
    remote is far: none to speak of where a reply takes half a target pass, `far_share` where it
    takes `far_passes`. Within one target pass it stops altogether. Without this the passes that
    always pay a little would be made even where a remote serves nearly as well. A remote farther
    away saves home nothing, so home drafts in turn with the target, as co-located speculation does.
    All this holds while the request is no slower than co-located speculation would be on this very
    text, by estimate: one that is behind counts on no remote, for a remote may be heard and near
    and of no use. The less remotes alone would bring, the further ahead it has to be; with less
    than `least_worth` of that speed they are left out of account, and home works as if nobody were
    elsewhere, ahead of the target too.

    Nothing is ever stuck: waits add up to at most `max_wait_fraction` of a target pass a round, a
    source that is overdue is not waited for, home passes a round are bounded, and what remains is
    to verify.
    """

    pass_price: float = 0.55  # tokens
    ahead_price: float = 0.9  # tokens, of the first pass while the target runs
    more_ahead_price: float = 0.65  # and of those that follow
    max_wait_fraction: float = 0.4  # of a target pass, a round
    max_home_passes: int = 16  # a round
    max_ahead_passes: int = 12  # while one target pass runs
    max_levels: int = 16  # looked ahead
    near_passes: float = 0.5  # of the target, in which a reply makes home needless,
    far_passes: float = 3.0  # and in which the remote is
    far_share: float = 0.4  # passes a token while it is nearly so far
    least_home_share: float = 0.025  # and however near it is
    least_worth: float = 0.55

    def decide(self, view: View) -> Decision:
        if view.remote_worth < self.least_worth:  # Home works as if nobody were elsewhere.
            view = replace(view, reply_ms=None, arrivals=())
        elif self._is_behind(view) or self._is_far(view):
            if view.verifying and view.reply_ms is not None:
                return Verify()
            arrivals = () if self._is_behind(view) else view.arrivals
            view = replace(view, reply_ms=None, arrivals=arrivals)
        if self._made_enough(view):
            view = replace(view, home_passes=None)
        return self._ahead(view) if view.verifying else self._now(view)

    def _is_behind(self, view: View) -> bool:
        lost_ms = max(0.0, 1.0 - view.remote_worth) * view.target_pass_ms  # in a round on remotes
        return view.behind_ms + lost_ms > 0

    def _is_far(self, view: View) -> bool:
        """There is a remote, but too far for home to leave drafting to it."""
        reply_ms = view.reply_ms
        return reply_ms is not None and reply_ms >= self.far_passes * view.target_pass_ms

    def _made_enough(self, view: View) -> bool:
        """Home has made the passes that so near a remote leaves it."""
        if view.reply_ms is None:
            return False
        far = view.reply_ms / view.target_pass_ms
        if not view.verifying and (far > 1.0 or view.depth == 0):
            return False  # a remote that missed may not be back before the next pass
        distance = (far - self.near_passes) / (self.far_passes - self.near_passes)
        return view.home_passes_per_token > max(self.far_share * distance, self.least_home_share)

    def _now(self, view: View) -> Decision:
        best, decision = 0.0, Verify()  # gain over verifying what is here
        levels = min(self.max_levels, view.max_depth - view.depth)
        if levels <= 0:
            return decision
        decided: Decision = decision
        for arrival in view.arrivals:
            gain, until_ms = self._gain_of_waiting(view, arrival, levels)
            if gain > best:
                best, decided = gain, Wait(until_ms)
        if view.home_passes is not None:
            left = min(levels, self.max_home_passes - view.home_passes)
            # Where no remote serves, a pass saved at home is saved by nobody.
            price = 0.0 if view.reply_ms is None else self.pass_price
            cost = view.tokens_per_ms * view.home_pass_ms + price
            gain, mass = 0.0, view.open_mass
            for _ in range(left):
                mass *= view.coverage
                gain += mass - cost
                if gain > best:
                    best, decided = gain, DraftAtHome(1)
        return decided

    def _gain_of_waiting(self, view: View, arrival: Arrival, levels: int) -> tuple[float, float]:
        """The most that waiting for one remote is worth, and until when it is heard next."""
        left_ms = _wait_left_ms(view, self.max_wait_fraction)
        first_ms = arrival.next_ms - view.now_ms
        best = gain = 0.0
        mass = arrival.open_mass
        for level in range(levels):
            wait_ms = first_ms + level * arrival.every_ms
            if not first_ms >= MIN_WAIT_MS or wait_ms > left_ms:
                break
            mass *= view.coverage
            gain += mass
            best = max(best, gain - view.tokens_per_ms * wait_ms)
        return best, arrival.next_ms

    def _ahead(self, view: View) -> Decision:
        done = view.home_passes
        if done is None or view.home_is_busy or done >= self.max_ahead_passes:
            return Verify()
        if view.left_ms < 0.5 * view.home_pass_ms:
            return Verify()
        ends_ms = view.now_ms + view.left_ms
        served = max((a.open_mass for a in view.arrivals if a.next_ms < ends_ms), default=0.0)
        # A few passes only draft what this pass decides anyway: once begun, they go on.
        price = self.ahead_price if done == 0 else self.more_ahead_price
        if (view.open_mass - served) * view.coverage > price:
            return DraftAtHome(1)
        return Verify()


def _wait_left_ms(view: View, max_fraction: float) -> float:
    return min(max_fraction * view.target_pass_ms, MAX_WAIT_MS) - view.waited_ms


def _bounded_wait(view: View, max_fraction: float) -> float | None:
    """Until when to wait for whoever should be heard first; None: for nobody."""
    left_ms = _wait_left_ms(view, max_fraction)
    times = (a.next_ms for a in view.arrivals)
    return min((t for t in times if MIN_WAIT_MS <= t - view.now_ms <= left_ms), default=None)
