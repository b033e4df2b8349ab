"""Tuning: the constants of the engine's decisions, and what each was chosen by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Whatever can be learnt while serving is learnt, and is not here.

    "Paces" below are tokens a second on the bundled trace, as `bench.batches` measures them.
    """

    # A millisecond at home is taken to cost so much more than it takes. Home's gain is an
    # expectation, and remotes bring a part of it by themselves a moment later. With 0, 0.3 and 0.6:
    # paces of 2.92, 2.93 and 2.83 with 1 request, 2.89, 3.04 and 2.98 with 8, 2.56, 2.54 and 2.66
    # with 32; at 0.3 a single request is as fast as at 0, with 0.88 draft passes a token, not 1.02.
    home_price: float = 0.3
    # Between two passes of the target. Only a bound: the best fixed rounds have 6 at one request.
    max_home_passes: int = 16
    # A request whose path runs out of its tree with less probability asks home for nothing. A
    # hundredth of a token is less than a row's time at any load that was measured.
    least_open_mass: float = 0.01
    # Of the target, that a draft pass at home is waited for, and that it counts for. One half as
    # long would not pay, so a home drafter that hangs costs two passes once.
    home_patience_passes: float = 2.0
    # Home is tried again after it was idle for so many times its last pass; the first few times
    # sooner, each twice as late as before. At two target passes a draft, that is two in a hundred.
    # Without it a clock that jumped in home's first drafts cost a text three times its time.
    home_retry: float = 50.0
    first_home_retry: float = 5.0
    # Tokens that a draft pass takes in beside drafting. Where there are more it reads, and its time
    # is not a draft pass's. The longest path of a verified tree is as long (`Limits.max_depth`).
    most_news: int = 32
    # Of a pass of the target, for the first at home: an eighth, as a 1B model beside an 8B one.
    first_home_share: float = 0.125
    # Of the target, that a round waits for drafts: the one bounded wait that a useless drafter may
    # cost. It is older than this file, and no experiment here chose it.
    max_wait_passes: float = 0.4
    # Of a typical pass: what one took longer is no pace but a pause, as of a clock that jumped. A
    # round counts for as long as its parts take. With longer ones counted, a text under faults
    # took 1.16 times as long (tests/simulation).
    max_round_passes: float = 4.0
    # Shorter waits could follow each other without end, for want of digits.
    least_wait_ms: float = 0.1
    # Of a remote's tree, that a wait looks ahead. A path of 0.85 a level is under 0.08 by then.
    max_levels_ahead: int = 16
    # A row is worth so many tokens at least, however free it is: below, its 4 KiB of logits and
    # the host's work on it are not.
    least_row_worth: float = 0.001
    # Rows looked ahead for a step of the pass times beyond which more rows pay again. The widest
    # step of captured sizes up to 1,024 rows.
    rows_ahead: int = 256
    # Memories. Of a verdict, so that fifty tell of a text; of a draft pass at home; of a target
    # pass, for the batch's rate. Rates that faded by 0.99 changed no pace by more than noise.
    odds_fading: float = 0.98
    level_fading: float = 0.95
    rate_fading: float = 0.95
    # Priors, and for how many observations they count. Guesses: no experiment here chose them.
    prior_acceptance: float = 0.7
    prior_coverage: float = 0.85
    prior_levels: float = 8.0
    prior_passes: float = 4.0
    # Rows that may be free though no pass had as many: so many, or so many times what was tried.
    # Below 64 an accelerator waits for its memory. Without a bound a newcomer's wide tree was
    # tried with 1,024 rows: with 32 requests that cost two passes and a half.
    untried_rows: int = 64
    untried_growth: int = 4
    # Up to so many rows a pass takes `max_round_passes` of a single row's at most, on a CPU too.
    # In proportion from one row on, jumps of the clock by 1.5 s were taken for the price of 64
    # rows, and a text under faults took 1.66 times as long, with trees of 4.
    few_rows: int = 16
    # Pass times: samples that a size keeps, passes after which one is forgotten, so that a pause is
    # not for ever, and how fast the slope over context fades. Contexts that differ by less than
    # `least_spread` tokens tell nothing of it: 2,000 tokens are 0.06 ms of an 8B model's pass.
    pass_samples: int = 15
    pass_max_age: int = 1000
    context_fading: float = 0.99
    least_spread: float = 20_000.0


TUNING = Tuning()
