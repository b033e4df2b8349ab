"""Hypothesis strategies for every message."""

from hypothesis import strategies as st

from wanspec_kernels.sampling import LEAST_TOP_P
from wanspec_kernels.wire import (
    Close,
    Commit,
    Draft,
    Error,
    Expansion,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Welcome,
)

token_id = st.integers(0, 2**31 - 1)
# Few values, so that siblings and supports have something in common.
some_token = st.one_of(st.integers(0, 40), token_id)
request = st.integers(0, 2**64 - 1)
clock = st.integers(0, 2**63 - 1)
check = st.integers(0, 2**32 - 1)
line = st.text(st.characters(codec="utf-8"), max_size=60).filter(str.isprintable)

hello = st.builds(
    Hello,
    vocabulary=st.binary(min_size=32, max_size=32),
    model=line,
    max_requests=st.integers(1, 4096),
    max_nodes=st.integers(1, 4096),
    clock_us=clock,
)
welcome = st.builds(
    Welcome,
    clock_us=clock,
    verifier_clock_us=clock,
    heartbeat_ms=st.integers(1, 600_000),
    max_message_bytes=st.integers(1024, 256 * 1024),
)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    rejection = draw(st.booleans())
    return Open(
        request=draw(request),
        token_ids=tuple(draw(st.lists(token_id, min_size=1, max_size=40))),
        rule="rejection" if rejection else "match",
        temperature=draw(st.one_of(st.just(0.0), st.floats(0.01, 100.0))),
        top_k=draw(st.integers(0, 2**31 - 1)),
        top_p=draw(st.floats(LEAST_TOP_P, 1)),
        min_p=draw(st.floats(0, 1)),
        seed=None if rejection else draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        max_nodes=draw(st.integers(1, 4096)),
        max_depth=draw(st.integers(1, 64)),
        num_draws=draw(st.integers(1, 64)) if rejection else 0,
        replacement=rejection and draw(st.booleans()),
    )


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    token_ids: list[int] = []
    parents: list[int] = []
    for _ in range(draw(st.integers(0, 30))):
        parent, token = draw(st.integers(-1, len(token_ids) - 1)), draw(some_token)
        if (parent, token) not in zip(parents, token_ids, strict=True):
            parents.append(parent)
            token_ids.append(token)
    expansions = []
    for parent in sorted(set(parents)):
        if not draw(st.booleans()):
            continue
        nodes = [i for i, p in enumerate(parents) if p == parent]
        children = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=6))
        others = draw(st.lists(some_token, max_size=8))
        support = tuple(dict.fromkeys([token_ids[c] for c in children] + others))
        weights = tuple(draw(st.integers(1, 65535)) for _ in support)
        expansions.append(Expansion(parent, tuple(children), support, weights))
    return Draft(
        request=draw(request),
        base_length=draw(st.integers(1, 2**31 - 1)),
        base_check=draw(check),
        token_ids=tuple(token_ids),
        parents=tuple(parents),
        expansions=tuple(expansions),
        confidences=draw(st.just(b"") | st.binary(min_size=len(parents), max_size=len(parents))),
    )


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    token_ids = tuple(draw(st.lists(token_id, min_size=1, max_size=20)))
    length = draw(st.integers(len(token_ids) + 1, 2**31 - 1))
    return Commit(draw(request), length, token_ids, draw(check))


close = st.builds(Close, request=request, reason=line)
ping = st.builds(Ping, clock_us=clock, round_trip_us=clock)
pong = st.builds(Pong, clock_us=clock, peer_clock_us=clock)
error = st.builds(Error, code=line, message=line, request=st.none() | request)

messages: st.SearchStrategy[Message] = st.one_of(
    hello, welcome, opens(), drafts(), commits(), close, ping, pong, error
)
