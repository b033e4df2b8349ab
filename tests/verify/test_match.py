"""The match rule: the kernel against the reference, and the text against plain sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.verify.cases import BACKENDS, KERNELS, Case, assert_same, random_case
from wanspec_kernels import noise
from wanspec_kernels.sampling import SamplingParams, cutoff
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.verify import VerifyResult, verify_tree


def verify(case: Case, device: str, backend: str) -> VerifyResult:
    return verify_tree(*case.arguments(device), backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 63, 1000, 4099])
def test_kernel_is_the_reference(vocab: int, dtype: torch.dtype, device: str) -> None:
    case = random_case(vocab, vocab, batch=3, dtype=dtype)
    expected = verify(case, device, "reference")
    assert expected.num_accepted.sum() > 0
    for backend in KERNELS:
        assert_same(verify(case, device, backend), expected)


def test_strided_logits(device: str) -> None:
    case = random_case(3, 100)
    tree, logits, *rest = case.arguments(device)
    wide = torch.full((logits.shape[0], 128), torch.nan, device=device)
    wide[:, 7:107] = logits
    expected = verify_tree(tree, logits, *rest)
    for backend in BACKENDS:
        assert_same(verify_tree(tree, wide[:, 7:107], *rest, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_does_not_see_its_batch(backend: str, device: str) -> None:
    case = random_case(11, 63, batch=4)
    together = verify(case, device, backend)
    for b in range(4):
        alone = verify(case.alone(b), device, backend)
        n = alone.num_accepted
        assert torch.equal(n, together.num_accepted[b : b + 1])
        assert torch.equal(alone.token_ids[0, : n + 1], together.token_ids[b, : n + 1])
        assert torch.equal(alone.accepted_nodes[0, :n], together.accepted_nodes[b, :n])


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_takes_the_lowest_of_the_largest(backend: str, device: str) -> None:
    logits = torch.full((4, 100), -3.0)
    logits[0, [40, 70]] = 5.0  # the root: a tie
    logits[3, 9] = 1.0
    tree = DraftTree.build([([1, 70, 39, 40], [-1, 0, 0, 0])], device)
    sampling = SamplingParams.build(1, top_k=1, seed=5, device=device)
    result = verify_tree(
        tree, logits.to(device), sampling, torch.tensor([4], device=device), backend=backend
    )
    assert result.token_ids.tolist() == [[40, 9]]
    assert result.accepted_nodes.tolist() == [[3]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_siblings_and_duplicates(backend: str, device: str) -> None:
    """More siblings than a warp has lanes; of two with one token the lower node is taken."""
    tokens = [0, *range(50, 90), 89]
    logits = torch.zeros(len(tokens), 100)
    logits[0, 89] = 9.0
    tree = DraftTree.build([(tokens, [-1] + [0] * 41)], device)
    result = verify_tree(
        tree,
        logits.to(device),
        SamplingParams.build(1, device=device),
        torch.tensor([1], device=device),
        backend=backend,
    )
    assert result.accepted_nodes.tolist() == [[40]]
    assert result.token_ids.tolist() == [[89, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_invalid_row_is_reported(
    bad: float, temperature: float, backend: str, device: str
) -> None:
    """On the path of request 0 below an accepted draft; beside the path of request 1."""
    logits = torch.zeros(5, 70)
    logits[[0, 2], 8] = 200.0
    if bad == -torch.inf:
        logits[[1, 4]] = bad
    logits[[1, 4], 69] = bad
    tree = DraftTree.build([([1, 8], [-1, 0]), ([1, 8, 9], [-1, 0, 0])], device)
    sampling = SamplingParams.build(2, temperature=temperature, top_p=0.9, device=device)
    result = verify_tree(
        tree, logits.to(device), sampling, torch.tensor([4, 4], device=device), backend=backend
    )
    assert result.status.tolist() == [1, 0]
    assert result.num_accepted.tolist() == [1, 1]
    assert result.token_ids[0].tolist() == [8, -1]
    assert result.token_ids[1, 0] == 8
    assert result.token_ids[1, 1] >= 0
    with pytest.raises(ValueError, match=r"requests \[0\]"):
        result.raise_for_status()


FILTERS: tuple[dict[str, float], ...] = (
    {},
    {"top_k": 3},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"top_k": 300, "top_p": 0.9},  # more than a kernel's candidates
)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_score_that_overflows_chooses_nothing(
    filters: dict[str, float], dtype: torch.dtype, backend: str, device: str
) -> None:
    """Of scores that are all infinite the lowest id would win, whatever the logits."""
    logits = torch.zeros(5, 500)
    logits[0] -= 3e38
    logits[0, [400, 7]] = torch.tensor([3e38, 2e38])
    logits[1] = -3e38
    logits[1, 400] = -2e38  # the largest score is -inf, and so is that of every other token
    logits[2, [400, 7]] = torch.tensor([3e36, 2e36])  # times 100 still a number
    logits[3] = -3e38
    logits[3, 400] = 0.0
    logits[4, [400, 7]] = torch.tensor([3e38, 2e38])  # greedy, nothing is divided
    tree = DraftTree.build([([1], [-1])] * 5, device)
    columns = {name: [value] * 5 for name, value in filters.items()}
    sampling = SamplingParams.build(
        5,
        temperature=[0.01] * 4 + [0.0],
        device=device,
        **columns,  # type: ignore[arg-type]
    )
    result = verify_tree(
        tree,
        logits.to(device, dtype),
        sampling,
        torch.full((5,), 4, device=device),
        backend=backend,  # type: ignore[arg-type]
    )
    assert result.status.tolist() == [1, 1, 0, 0, 0]
    assert result.token_ids.tolist() == [[-1], [-1], [400], [400], [400]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_empty_trees(backend: str, device: str) -> None:
    """Rows past the last tree and requests without rows, as a captured graph has them."""
    case = random_case(5, 63, batch=2)
    tree, logits, sampling, positions = case.arguments(device)
    expected = verify_tree(tree, logits, sampling, positions)
    pad = torch.full((3,), -1, dtype=torch.int32, device=device)
    padded = DraftTree(
        torch.cat([tree.token_ids, pad]),
        torch.cat([tree.parents, pad]),
        torch.cat([tree.indptr, tree.indptr[-1:]]),
        tree.max_nodes,
        tree.max_depth,
    )
    result = verify_tree(
        padded,
        torch.cat([logits, torch.full((3, 63), torch.nan, device=device)]),
        SamplingParams(*(torch.cat([column, column[:1]]) for column in vars(sampling).values())),
        torch.cat([positions, positions[:1]]),
        backend=backend,
    )
    assert torch.equal(result.token_ids[:2], expected.token_ids)
    assert result.num_accepted[2] == result.status[2] == 0
    assert (result.token_ids[2] == -1).all()
    assert (result.accepted_nodes[2] == -1).all()


def toy_row(text: tuple[int, ...], vocab: int) -> Tensor:
    """A target model: the row that follows a text, with ties."""
    state = 1
    for token in text:
        state = (state * 31 + token + 7) % 10007
    return 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(state)).mul(2).round() / 2


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_text_is_that_of_plain_sampling(data: st.DataObject) -> None:
    """Whatever the trees: timing, loss and who drafted cannot change the text."""
    vocab, length = 6, 6
    options = data.draw(
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 0.7, 1.5]),
                "top_k": st.sampled_from([0, 2, 4]),
                "top_p": st.sampled_from([1.0, 0.6]),
                "min_p": st.sampled_from([0.0, 0.1]),
                "seed": st.integers(-(1 << 63), (1 << 63) - 1),
            }
        )
    )
    sampling = SamplingParams.build(1, **options)
    plain: list[int] = [3]
    while len(plain) <= length:
        plain.append(sample_plainly(toy_row(tuple(plain), vocab), len(plain), **options))

    text: list[int] = [3]
    while len(text) <= length:
        size = data.draw(st.integers(1, 12))
        # Half of the drafts are right, so that trees are worth walking.
        guesses = st.one_of(st.integers(0, vocab - 1), st.just(-1))
        tokens, parents, paths = [text[-1]], [-1], [tuple(text)]
        for i in range(1, size):
            parent = data.draw(st.integers(0, i - 1))
            token = data.draw(guesses)
            if token < 0:
                at = len(paths[parent])
                token = plain[at] if at < len(plain) else 0
            tokens.append(token)
            parents.append(parent)
            paths.append((*paths[parent], token))
        result = verify_tree(
            DraftTree.build([(tokens, parents)]),
            torch.stack([toy_row(path, vocab) for path in paths]),
            sampling,
            torch.tensor([len(text)]),
        )
        accepted = int(result.num_accepted)
        new = result.token_ids[0, : accepted + 1].tolist()
        nodes = result.accepted_nodes[0, :accepted].tolist()
        assert [tokens[node] for node in nodes] == new[:-1]
        text += new
    assert text[: length + 1] == plain[: length + 1]


def sample_plainly(
    row: Tensor,
    position: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> int:
    if temperature == 0:
        return int(row.argmax())
    inverse = float(1 / torch.tensor(temperature))
    ids = torch.arange(len(row))
    score = row * inverse + noise.gumbel(ids, torch.tensor(position), torch.tensor(seed))
    return int(
        score.masked_fill(row < cutoff(row, inverse, top_k, top_p, min_p), -torch.inf).argmax()
    )
