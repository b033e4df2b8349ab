from typing import Any

from hypothesis import given

from tests.wire.message_strategies import opens
from wanspec_kernels.wire import Open
from wanspec_kernels.wire.sampling import Sampling


@given(opens())
def test_an_open_yields_the_sampling_that_it_was_built_from(message: Open) -> None:
    again = Open.of(
        message.request,
        message.token_ids,
        message.sampling,
        max_nodes=message.max_nodes,
        max_depth=message.max_depth,
    )
    assert again == message


def test_only_who_is_trusted_gets_a_seed_that_is_not_shared() -> None:
    def seed(trusted: bool = False, **fields: Any) -> int | None:
        sampling = Sampling(seed=77, **fields)
        sizes = {"max_nodes": 8, "max_depth": 4}
        return Open.of(1, (5,), sampling, trusted=trusted, **sizes).seed

    assert seed() == 77
    assert seed(share_seed=False) is None
    assert seed(trusted=True, share_seed=False) == 77
    # Acceptance coins come from it.
    assert seed(rule="rejection") is seed(trusted=True, rule="rejection") is None
