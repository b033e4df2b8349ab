"""The messages. Each checks itself when it is built: one that exists is valid, on both sides.

`docs/protocol.md` is the authority for what the fields mean and for the order of messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from struct import pack
from typing import TypeAlias
from zlib import crc32

from wanspec_kernels.sampling import LEAST_TOP_P, MAX_TEMPERATURE, MIN_TEMPERATURE
from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire import limits
from wanspec_kernels.wire.checks import (
    INT_ONLY,
    boolean,
    count,
    integer,
    integers,
    number,
    shown,
    text,
    tokens,
)
from wanspec_kernels.wire.errors import LimitExceeded, MalformedMessage
from wanspec_kernels.wire.sampling import Rule, Sampling


class ErrorCode(StrEnum):
    """Codes this version sends; a receiver takes one that it does not know for INTERNAL."""

    VERSION = "version"
    VOCABULARY = "vocabulary"
    CAPACITY = "capacity"
    MALFORMED = "malformed"
    RESYNC = "resync"
    UNKNOWN_REQUEST = "unknown_request"
    UNEXPECTED = "unexpected"
    SUPERSEDED = "superseded"
    NOT_ENROLLED = "not_enrolled"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Hello:
    """Drafter to verifier, first on every connection."""

    vocabulary: bytes  # vocabulary.fingerprint, 32 bytes
    model: str
    max_requests: int  # the drafter serves at a time
    max_nodes: int  # it keeps for one request
    clock_us: int  # the drafter's clock

    def __post_init__(self) -> None:
        if type(self.vocabulary) is not bytes:
            raise MalformedMessage(f"vocabulary: expected bytes, got {shown(self.vocabulary)}")
        if len(self.vocabulary) != limits.VOCABULARY_BYTES:
            raise MalformedMessage(
                f"vocabulary: expected {limits.VOCABULARY_BYTES} bytes, got {len(self.vocabulary)}"
            )
        text("model", self.model)
        integer("max_requests", self.max_requests, 1, limits.MAX_REQUESTS)
        integer("max_nodes", self.max_nodes, 1, limits.MAX_TREE_NODES)
        integer("clock_us", self.clock_us, 0, limits.MAX_CLOCK_US)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Verifier to drafter: HELLO is accepted."""

    clock_us: int  # HELLO's, sent back
    verifier_clock_us: int
    heartbeat_ms: int  # longest silence either side may keep
    max_message_bytes: int  # the verifier reads

    def __post_init__(self) -> None:
        integer("clock_us", self.clock_us, 0, limits.MAX_CLOCK_US)
        integer("verifier_clock_us", self.verifier_clock_us, 0, limits.MAX_CLOCK_US)
        integer("heartbeat_ms", self.heartbeat_ms, 1, limits.MAX_HEARTBEAT_MS)
        integer(
            "max_message_bytes",
            self.max_message_bytes,
            limits.MIN_PEER_MESSAGE_BYTES,
            limits.MAX_MESSAGE_BYTES,
        )


@dataclass(frozen=True, slots=True)
class Open:
    """Verifier to drafter: draft for this request. Sent again, it starts the request anew."""

    request: int
    token_ids: tuple[int, ...]  # all that is committed
    rule: Rule
    temperature: float  # these four as in Sampling
    top_k: int
    top_p: float
    min_p: float
    seed: int | None  # of the target's noise, under coupled `match` only
    max_nodes: int
    max_depth: int
    num_draws: int  # an expanded node gets under `rejection`; 0 under `match`
    replacement: bool  # of those draws; False under `match`

    @classmethod
    def of(
        cls,
        request: int,
        token_ids: Sequence[int],
        sampling: Sampling,
        *,
        max_nodes: int,
        max_depth: int,
        trusted: bool = False,
    ) -> "Open":
        """OPEN for a request; who is trusted gets the seed under any `match`."""
        s = sampling
        rejection = s.rule == "rejection"
        seed = s.seed if trusted and not rejection else s.shared_seed
        return cls(
            request=request,
            token_ids=tuple(token_ids),
            rule=s.rule,
            # Python's own numbers, which the wire takes: a caller's may be of another kind.
            temperature=float(s.temperature),
            top_k=int(s.top_k),
            top_p=float(s.top_p),
            min_p=float(s.min_p),
            seed=None if seed is None else int(seed),
            max_nodes=max_nodes,
            max_depth=max_depth,
            num_draws=s.num_draws if rejection else 0,
            replacement=s.replacement if rejection else False,
        )

    @property
    def sampling(self) -> Sampling:
        """As far as a drafter needs it: without a seed it is 0, and not shared."""
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.seed or 0,
            self.rule,
            share_seed=self.seed is not None,
            num_draws=max(1, self.num_draws),
            replacement=self.replacement,
        )

    def __post_init__(self) -> None:
        integer("request", self.request, 0, limits.MAX_REQUEST)
        tokens("token_ids", self.token_ids, min_count=1, max_count=limits.MAX_PROMPT_TOKENS)
        t = number("temperature", self.temperature)
        if t != 0 and not MIN_TEMPERATURE <= t <= MAX_TEMPERATURE:
            raise MalformedMessage(
                f"temperature: expected 0 or {MIN_TEMPERATURE}..{MAX_TEMPERATURE}, got {t}"
            )
        integer("top_k", self.top_k, 0, 2**31 - 1)
        if not LEAST_TOP_P <= number("top_p", self.top_p) <= 1:
            raise MalformedMessage(f"top_p: expected a number in (0, 1], got {self.top_p}")
        if not 0 <= number("min_p", self.min_p) <= 1:
            raise MalformedMessage(f"min_p: expected a number in [0, 1], got {self.min_p}")
        if self.seed is not None:
            integer("seed", self.seed, -(2**63), 2**63 - 1)
        integer("max_nodes", self.max_nodes, 1, limits.MAX_TREE_NODES)
        integer("max_depth", self.max_depth, 1, limits.MAX_DEPTH)
        boolean("replacement", self.replacement)
        self._check_rule()

    def _check_rule(self) -> None:
        if self.rule == "match":
            integer("num_draws (rule match)", self.num_draws, 0, 0)
            if self.replacement:
                raise MalformedMessage("replacement: expected false under rule match, got true")
        elif self.rule == "rejection":
            integer("num_draws (rule rejection)", self.num_draws, 1, limits.MAX_DRAWS)
            if self.seed is not None:
                # Acceptance coins come from the same seed: who knows them can choose what passes.
                raise MalformedMessage("seed: expected none under rule rejection, got an integer")
        else:
            raise MalformedMessage(f"rule: expected match or rejection, got {shown(self.rule)}")


@dataclass(frozen=True, slots=True)
class Draft:
    """Drafter to verifier: nodes below the base, the last of the first `base_length` tokens.

    A trie that stands alone: every node's ancestors down from the base are in it, so that any order
    and any repetition of drafts give the same pool.
    """

    request: int
    base_length: int
    base_check: int  # check_of the first base_length tokens
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]  # index in this message, -1 = the base; parents[i] < i
    expansions: tuple[Expansion, ...] = ()  # under `rejection`, at most one a node
    confidences: bytes = b""  # a code of `confidence` each node given its parent, or none at all

    def __post_init__(self) -> None:
        integer("request", self.request, 0, limits.MAX_REQUEST)
        integer("base_length", self.base_length, 1, limits.MAX_LENGTH)
        integer("base_check", self.base_check, 0, limits.MAX_CHECK)
        most = limits.MAX_DRAFT_NODES
        tokens("token_ids", self.token_ids, min_count=0, max_count=most)
        integers("parents", self.parents, -1, most, min_count=0, max_count=most)
        _check_trie(self.token_ids, self.parents)
        if type(self.expansions) is not tuple:
            raise MalformedMessage(f"expansions: expected a tuple, got {shown(self.expansions)}")
        if self.expansions:
            _check_expansions(self.expansions, self.token_ids, self.parents)
        if type(self.confidences) is not bytes:
            raise MalformedMessage(f"confidences: expected bytes, got {shown(self.confidences)}")
        if self.confidences and len(self.confidences) != len(self.token_ids):
            raise MalformedMessage(
                f"confidences: expected {len(self.token_ids)} or none, got {len(self.confidences)}"
            )


@dataclass(frozen=True, slots=True)
class Commit:
    """Verifier to drafter: `token_ids` follow the text, which is `length` tokens long now."""

    request: int
    length: int
    token_ids: tuple[int, ...]
    check: int  # check_of all `length` tokens

    def __post_init__(self) -> None:
        integer("request", self.request, 0, limits.MAX_REQUEST)
        integer("length", self.length, 1, limits.MAX_LENGTH)
        tokens("token_ids", self.token_ids, min_count=1, max_count=limits.MAX_COMMIT_TOKENS)
        if len(self.token_ids) >= self.length:
            raise MalformedMessage(
                f"length: expected more than the {len(self.token_ids)} committed, got {self.length}"
            )
        integer("check", self.check, 0, limits.MAX_CHECK)


@dataclass(frozen=True, slots=True)
class Close:
    """Either way: the request has ended."""

    request: int
    reason: str

    def __post_init__(self) -> None:
        integer("request", self.request, 0, limits.MAX_REQUEST)
        text("reason", self.reason)


@dataclass(frozen=True, slots=True)
class Ping:
    """Either way: answer at once."""

    clock_us: int
    round_trip_us: int  # the sender's estimate, 0 = none yet

    def __post_init__(self) -> None:
        integer("clock_us", self.clock_us, 0, limits.MAX_CLOCK_US)
        integer("round_trip_us", self.round_trip_us, 0, limits.MAX_CLOCK_US)


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to PING."""

    clock_us: int  # PING's, sent back
    peer_clock_us: int  # of who answers

    def __post_init__(self) -> None:
        integer("clock_us", self.clock_us, 0, limits.MAX_CLOCK_US)
        integer("peer_clock_us", self.peer_clock_us, 0, limits.MAX_CLOCK_US)


@dataclass(frozen=True, slots=True)
class Error:
    """Either way: what went wrong, with a request or, if that is None, with the session."""

    code: str  # an ErrorCode; others are read as INTERNAL
    message: str
    request: int | None = None

    def __post_init__(self) -> None:
        text("code", self.code)
        text("message", self.message)
        if self.request is not None:
            integer("request", self.request, 0, limits.MAX_REQUEST)

    @classmethod
    def of(cls, code: str, message: object, request: int | None = None) -> "Error":
        """An Error of any message, such as an exception: cut to size and made printable."""
        # An unprintable character becomes one '?', a printable one takes at most 4 bytes.
        line = str(message)[: limits.MAX_TEXT_BYTES // 4]
        return cls(code, "".join(c if c.isprintable() else "?" for c in line), request)


Message: TypeAlias = Hello | Welcome | Open | Draft | Commit | Close | Ping | Pong | Error


def check_of(token_ids: Sequence[int], check: int = 0) -> int:
    """CRC-32 of tokens as little-endian u32; `check` is that of the tokens before them.

    It finds mistakes, not forgeries: a wrong draft costs only time under `match`, and under
    `rejection` a drafter is trusted.

    >>> check_of([5, 6, 7]) == check_of([7], check_of([5, 6]))
    True
    """
    return crc32(pack(f"<{len(token_ids)}I", *token_ids), check)


def _check_trie(token_ids: tuple[int, ...], parents: tuple[int, ...]) -> None:
    n = len(token_ids)
    if len(parents) != n:
        raise MalformedMessage(f"parents: expected {n} entries, got {len(parents)}")
    depths = [0]  # of the base, then of each node
    for i, parent in enumerate(parents):
        if parent >= i:
            raise MalformedMessage(f"parents[{i}]: expected -1..{i - 1}, got {parent}")
        depths.append(depths[parent + 1] + 1)
    depth = max(depths)
    if depth > limits.MAX_DEPTH:
        raise LimitExceeded(f"parents: expected depth at most {limits.MAX_DEPTH}, got {depth}")
    if len(set(zip(parents, token_ids, strict=True))) != n:
        raise MalformedMessage("token_ids: expected siblings to differ, got one token twice")


def _check_expansions(
    expansions: tuple[Expansion, ...], token_ids: tuple[int, ...], parents: tuple[int, ...]
) -> None:
    n = len(token_ids)
    count("expansions", len(expansions), 0, n + 1)
    for e, expansion in enumerate(expansions):
        if type(expansion) is not Expansion:
            got = shown(expansion)
            raise MalformedMessage(f"expansions[{e}]: expected an Expansion, got {got}")
    # One pass over each column: calls for each expansion would take most of the time of a DRAFT.
    _integers("parent", [(x.parent,) for x in expansions], -1, n - 1, 1)
    _integers("children", [x.children for x in expansions], 0, n - 1, limits.MAX_DRAWS)
    _integers(
        "token_ids", [x.token_ids for x in expansions], 0, limits.MAX_TOKEN_ID, limits.MAX_SUPPORT
    )
    _integers("weights", [x.weights for x in expansions], 1, limits.MAX_WEIGHT, limits.MAX_SUPPORT)
    for e, x in enumerate(expansions):
        support = set(x.token_ids)
        if len(support) != len(x.token_ids):
            raise MalformedMessage(f"expansions[{e}].token_ids: expected no token twice, got one")
        if len(x.weights) != len(x.token_ids):
            raise MalformedMessage(
                f"expansions[{e}].weights: expected {len(x.token_ids)}, got {len(x.weights)}"
            )
        for child in set(x.children):  # draws may repeat, and then do so often
            if parents[child] != x.parent:
                raise MalformedMessage(
                    f"expansions[{e}].children: expected children of node {x.parent}, got {child}, "
                    f"a child of {parents[child]}"
                )
            if token_ids[child] not in support:
                raise MalformedMessage(
                    f"expansions[{e}].children: expected tokens of the support, got node {child} "
                    f"with token {token_ids[child]}"
                )
    if len({x.parent for x in expansions}) != len(expansions):
        raise MalformedMessage("expansions: expected one a node at most, got a parent twice")


def _integers(
    name: str, columns: list[tuple[int, ...]], low: int, high: int, max_count: int
) -> None:
    """Tuples of 1..`max_count` integers each, all of them `low`..`high`."""
    for e, column in enumerate(columns):
        if type(column) is not tuple or not 1 <= len(column) <= max_count:
            integers(f"expansions[{e}].{name}", column, low, high, min_count=1, max_count=max_count)
    if set(map(type, chain.from_iterable(columns))) != INT_ONLY:
        raise MalformedMessage(f"expansions.{name}: expected integers only")
    for extreme in (min(map(min, columns)), max(map(max, columns))):
        if not low <= extreme <= high:
            raise MalformedMessage(
                f"expansions.{name}: expected entries in {low}..{high}, got {extreme}"
            )
