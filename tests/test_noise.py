"""The noise: known answers, range, tails, and the distribution it makes."""

import math

import pytest
import torch
from scipy.stats import chi2

from wanspec_kernels import noise
from wanspec_kernels.noise import Stream


def counter_words(counter: list[int], key: list[int]) -> list[str]:
    """Philox of a raw counter and key, through the arguments that `philox4` takes."""
    c0, c1, c2, stream = counter
    position, seed = c1 | c2 << 32, key[0] | key[1] << 32
    signed = [x - (1 << 64) if x >> 63 else x for x in (position, seed)]
    words = noise.philox4(
        torch.tensor([c0]), torch.tensor([signed[0]]), torch.tensor([signed[1]]), stream
    )
    return [f"{int(word):08x}" for word in words]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_known_answers_of_random123(counter: list[int], key: list[int], words: str) -> None:
    """philox4x32-7 in the kat_vectors of Salmon et al.'s Random123."""
    assert " ".join(counter_words(counter, key)) == words


def test_a_word_is_made_of_two_halves(device: str) -> None:
    tokens = torch.arange(1000, device=device)
    position, seed = torch.tensor(1 << 40, device=device), torch.tensor(-3, device=device)
    upper, lower = (
        [
            int(word)
            for words in zip(*noise.philox4(tokens[:125], position, seed, stream), strict=True)
            for word in words
        ]
        for stream in (5, 6)
    )
    expected = [
        ((upper[t // 2] >> 16 * (t % 2)) & 0xFFFF) << 16 | (lower[t // 2] >> 16 * (t % 2)) & 0xFFFF
        for t in range(1000)
    ]
    assert noise.words(tokens, position, seed, 5).tolist() == expected
    assert noise.row_words(1000, position, seed, 5).tolist() == expected


@pytest.mark.parametrize("vocab", [1, 63, 70_001])
def test_a_row_is_its_tokens(vocab: int, device: str) -> None:
    """70,001 words hold some that are refined."""
    position, seed = torch.tensor(3, device=device), torch.tensor(8, device=device)
    row = noise.gumbel_row(vocab, position, seed, Stream.RESIDUAL)
    tokens = torch.arange(vocab, device=device)
    assert torch.equal(row, noise.gumbel(tokens, position, seed, Stream.RESIDUAL))
    rows = noise.gumbel_row(vocab, position + torch.arange(2, device=device), seed.expand(2))
    assert rows.shape == (2, vocab)
    assert torch.equal(rows[1], noise.gumbel_row(vocab, position + 1, seed))


def test_every_argument_matters() -> None:
    def draw(
        token: int = 9, position: int = 5, seed: int = 7, stream: Stream = Stream.TOKEN
    ) -> float:
        return float(noise.gumbel(*map(torch.tensor, (token, position, seed)), stream))

    others = [
        draw(token=8),
        draw(token=13),
        draw(position=6),
        draw(position=5 + (1 << 32)),
        draw(seed=6),
        draw(seed=7 + (1 << 32)),
        draw(seed=7 - (1 << 63)),
        *(draw(stream=stream) for stream in Stream if stream != Stream.TOKEN),
    ]
    assert draw() not in others
    assert len(set(others)) == len(others)


WORDS = [0, 1, 2, 255, 65535, 65536, 65537, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 2]


@pytest.mark.parametrize("word", [*WORDS, (1 << 32) - 1])
@pytest.mark.parametrize("fine", [0, 1 << 31, (1 << 32) - 1])
def test_a_word_becomes_the_gumbel_number_of_its_interval(word: int, fine: int) -> None:
    """Both tails: -ln(-ln(1 - u)) for u in the word's interval, in float64."""
    lower = noise._lower(torch.tensor([word]), lambda: torch.tensor([fine]))
    actual = float(noise._gumbel(torch.tensor([word]), lower)[0])
    refined = word + (fine + 0.5) / 2**32
    u = (refined if word < noise.REFINE_BELOW else word + 0.5) / 2**32
    expected = -math.log(-math.log1p(-u))
    assert abs(actual - expected) <= 3e-7 * max(1.0, abs(expected))


def test_a_token_of_probability_1e9th_keeps_its_share() -> None:
    """It wins against a sure token if their noise differs by ln(1e9): a matter of the upper tail.

    P(gumbel > g) = 1 - exp(-exp(-g)); the largest of the words' numbers must reach far beyond, and
    the words above a threshold must be as many as its probability says.
    """
    for probability in (1e-3, 1e-6, 1e-9, 1e-12):
        threshold = -math.log(probability)
        low, high = 0, 1 << 64  # (word, fine) as one number; the noise falls as it grows
        while low < high:
            middle = (low + high) // 2
            word = torch.tensor([middle >> 32])
            fine = torch.tensor([middle & 0xFFFFFFFF])
            number = noise._gumbel(word, noise._lower(word, lambda fine=fine: fine))
            low, high = (middle + 1, high) if float(number) > threshold else (low, middle)
        assert low / 2**64 == pytest.approx(
            -math.expm1(-probability), rel=2e-5 if low >> 48 else 1e-6
        )


def test_uniform_is_never_0_and_never_1(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([0, 1, 65535, 65536, 1 << 31, (1 << 32) - 128, (1 << 32) - 1])
    for fine in (0, (1 << 32) - 1):
        monkeypatch.setattr(
            noise,
            "words",
            lambda *a, fine=fine: words if a[3] == Stream.COIN else words * 0 + fine,
        )
        u = noise.uniform(words, words, words, Stream.COIN)
        assert float(u.min()) == (fine + 0.5) / 2**64 or fine
        assert float(u.min()) > 0
        assert float(u.max()) == 1 - 2.0**-24
        assert bool((u.diff() >= 0).all())


def test_gumbel_argmax_draws_from_softmax() -> None:
    """Chi-square with false-alarm rate 1e-4, over positions and over seeds."""
    logits = torch.tensor([2.0, 1.0, 0.0, -2.0, -4.0, 1.5])
    n = 60_000
    expected = logits.double().softmax(0) * n
    tokens, zero = torch.arange(6), torch.tensor(0)
    many = torch.arange(n)[:, None]
    for position, seed in ((many, zero), (zero, many)):
        winners = (logits + noise.gumbel(tokens, position, seed)).argmax(1)
        observed = torch.bincount(winners, minlength=6)
        statistic = float(((observed - expected) ** 2 / expected).sum())
        assert chi2.sf(statistic, 5) > 1e-4
    # The same test sees logits that are off by a twentieth.
    winners = (logits * 1.05 + noise.gumbel(tokens, many, zero)).argmax(1)
    observed = torch.bincount(winners, minlength=6)
    assert chi2.sf(float(((observed - expected) ** 2 / expected).sum()), 5) < 1e-4


def test_streams_share_no_word() -> None:
    """Each has the number after its own too; an alias of another stream is no stream."""
    numbers = [n for stream in Stream.__members__.values() for n in (stream, stream + 1)]
    assert len(set(numbers)) == len(numbers)


def test_streams_are_independent() -> None:
    """Correlation of coins with every other stream's numbers, within five standard errors."""
    tokens = torch.arange(20_000)
    zero = torch.tensor(0)
    columns = torch.stack([noise.uniform(tokens, zero, zero, stream) for stream in Stream])
    correlation = torch.corrcoef(columns.double()).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)


def test_weight_is_the_exponential() -> None:
    x = -torch.cat(
        [torch.zeros(1), torch.rand(20_000) * 40, torch.tensor([63.9, 64, 1e9, torch.inf])]
    )
    exact = x.double().exp() * 2**noise.WEIGHT_BITS
    assert bool(((noise.weight(x) - exact).abs() <= 1 + exact * 2e-7).all())
    assert int(noise.weight(torch.zeros(1))) == 1 << noise.WEIGHT_BITS
