"""Liars: drafters that keep to the protocol and send what is worthless, each in a way of its own.

A lie is told the target's own text, further than the verifier has it: no attacker knows more. It
answers each commit at once, in no time, whatever its window would allow. `LIES` is the catalogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from drafter.growth import GrowthShape
from drafter.session import Limits, Session
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.traced import PROMPT, TracedProposer
from wanspec_kernels.simulation.world import World
from wanspec_kernels.wire import Close, Commit, Draft, Error, Message, Open, check_of
from wanspec_kernels.wire.confidence import UNKNOWN, code_of

SURE, MODEST, HUMBLE = code_of(1.0), code_of(0.25), code_of(2**-12)
HONEST_TOKENS = 200  # of a text, before a turncoat begins to lie
TURN_TOKENS = 4  # after which a waverer changes sides


@dataclass(slots=True)
class Told:
    """What a liar knows of a request: the text from its prompt on, and how much is committed."""

    request: int
    text: Sequence[int]
    length: int  # committed tokens
    prompt_length: int
    vocab_size: int
    random: Random
    sent: list[Draft] = field(default_factory=list)  # in all

    @property
    def written(self) -> int:
        """Committed tokens after the prompt."""
        return self.length - self.prompt_length

    def truth(self, count: int, skipped: int = 0) -> list[int]:
        """The next tokens of the text, after some that are skipped."""
        begin = self.length + skipped
        return list(self.text[begin : begin + count])

    def wrong(self, depth: int = 1) -> int:
        """A token that is not the text's, `depth` below the committed ones."""
        right = self.text[self.length + depth - 1]
        return (right + 1 + self.random.randrange(self.vocab_size - 1)) % self.vocab_size

    def wrong_chain(self, count: int, skipped: int = 0) -> list[int]:
        return [self.wrong(skipped + depth) for depth in range(1, count + 1)]

    def wrong_siblings(self, count: int, skipped: int = 0) -> list[int]:
        right = self.text[self.length + skipped]
        others = self.random.sample(range(1, self.vocab_size), min(count, self.vocab_size - 1))
        return [(right + other) % self.vocab_size for other in others]

    def draft(
        self,
        token_ids: Sequence[int],
        parents: Sequence[int],
        codes: Sequence[int],
        skipped: int = 0,
    ) -> Draft:
        """A draft that hangs `skipped` tokens beyond the committed text."""
        base = self.length + skipped
        check = check_of(self.text[:base])
        return Draft(self.request, base, check, tuple(token_ids), tuple(parents), (), bytes(codes))

    def chain(self, token_ids: Sequence[int], codes: Sequence[int], skipped: int = 0) -> Draft:
        return self.draft(token_ids, range(-1, len(token_ids) - 1), codes, skipped)


Lie = Callable[[Told], list[Draft]]
"""The drafts with which a liar answers a commit."""


def sure(told: Told) -> list[Draft]:
    """A chain of 32 wrong tokens, each claimed as certain."""
    return [told.chain(told.wrong_chain(32), [SURE] * 32)]


def wide(told: Told) -> list[Draft]:
    """64 wrong tokens side by side, each claimed as certain."""
    return [told.draft(told.wrong_siblings(64), [-1] * 64, [SURE] * 64)]


def modest(told: Told) -> list[Draft]:
    """Three wrong tokens at each of eight levels, each claimed as a quarter."""
    token_ids, parents, above = [], [], -1
    for depth in range(1, 9):
        token_ids += told.wrong_siblings(3, depth - 1)
        parents += [above] * 3
        above = len(token_ids) - 1
    return [told.draft(token_ids, parents, [MODEST] * len(token_ids))]


def reticent(told: Told) -> list[Draft]:
    """A chain of 32 wrong tokens, of which nothing is claimed."""
    return [told.chain(told.wrong_chain(32), [UNKNOWN] * 32)]


def fickle(told: Told) -> list[Draft]:
    """A chain of wrong tokens, claimed as another probability each time."""
    code = 8 * (len(told.sent) % 16)
    return [told.chain(told.wrong_chain(32), [code] * 32)]


def true_once(told: Told) -> list[Draft]:
    """The next token, and 31 wrong ones below it, all claimed as certain."""
    return [told.chain([*told.truth(1), *told.wrong_chain(31, 1)], [SURE] * 32)]


def barnacle(told: Told) -> list[Draft]:
    """The text for 16 tokens, claimed as next to nothing; beside each a wrong one, as certain."""
    token_ids, parents, codes, above = [], [], [], -1
    for depth, right in enumerate(told.truth(16), 1):
        token_ids += [told.wrong(depth), right]
        parents += [above, above]
        codes += [SURE, HUMBLE]
        above = len(token_ids) - 1
    return [told.draft(token_ids, parents, codes)]


def early(told: Told) -> list[Draft]:
    """Wrong chains for each of the next twelve texts: they are there when the target falls free."""
    return [told.chain(told.wrong_chain(32, ahead), [SURE] * 32, ahead) for ahead in range(1, 13)]


def early_wide(told: Told) -> list[Draft]:
    """64 wrong tokens side by side for each of the next twelve texts."""
    return [
        told.draft(told.wrong_siblings(64, ahead), [-1] * 64, [SURE] * 64, ahead)
        for ahead in range(1, 13)
    ]


def early_modest(told: Told) -> list[Draft]:
    """A pair of wrong tokens, claimed as a quarter each, for each of the next twelve texts."""
    return [
        told.draft(told.wrong_siblings(2, ahead), [-1] * 2, [MODEST] * 2, ahead)
        for ahead in range(1, 13)
    ]


def replayed(told: Told) -> list[Draft]:
    """A wrong chain, and whatever was sent last with it, again and again."""
    return [*told.sent[-8:], *sure(told)]


def deep(told: Told) -> list[Draft]:
    """Eight bushes of 249 wrong nodes, 32 levels deep: all that a request holds of one source."""
    drafts = []
    for first in told.wrong_siblings(8):
        token_ids, parents, above = [first], [-1], [0] * 8
        for level in range(1, 32):
            below = range(len(token_ids), len(token_ids) + 8)
            token_ids += told.wrong_siblings(8, level)
            parents += above
            above = list(below)
        drafts.append(told.draft(token_ids, parents, [SURE] * len(token_ids)))
    return drafts


def turncoat(told: Told) -> list[Draft]:
    """True and sure for 200 tokens, and after that wrong and as sure, early ones among them."""
    if told.written < HONEST_TOKENS:
        return [told.chain(told.truth(8), [SURE] * 8)]
    return [*sure(told), *early(told)]


def waverer(told: Told) -> list[Draft]:
    """True for four tokens, wrong for four, as sure of all."""
    token_ids = told.truth(12)
    for depth in range(1, 13):
        if (told.written + depth - 1) // TURN_TOKENS % 2:
            token_ids[depth - 1] = told.wrong(depth)
    return [told.chain(token_ids, [SURE] * 12)]


def silent(told: Told) -> list[Draft]:
    """Nothing: it greets, answers pings and never drafts."""
    return []


LIES: tuple[Lie, ...] = (
    *(sure, wide, modest, reticent, fickle, true_once, barnacle, early, early_wide, early_modest),
    *(replayed, deep, turncoat, waverer, silent),
)


class Liar(Session):
    """Drafts nothing with its model, of which it only knows the texts."""

    busy = False
    num_unsent = 0

    def __init__(
        self, lie: Lie, model: TracedProposer, *, limits: Limits, shape: GrowthShape
    ) -> None:
        super().__init__(model, limits=limits, shape=shape)
        self._lie, self._model = lie, model
        self._told: dict[int, Told] = {}

    def on_message(self, message: Message) -> list[Message]:
        match message:
            case Open(request=request, token_ids=token_ids):
                known = self._told.get(request)
                if known is None:
                    self._told[request] = known = Told(
                        request,
                        (*PROMPT, *self._model.texts[request].token_ids),
                        len(token_ids),
                        len(token_ids),
                        self._model.vocab_size,
                        Random(request),
                    )
                known.length = len(token_ids)
            case Commit(request=request, length=length) if request in self._told:
                self._told[request].length = length
            case Close(request=request):
                self._told.pop(request, None)
                return []
            case _:
                return []
        told = self._told[request]
        drafts = self._lie(told)
        told.sent += drafts
        self.counters.num_nodes += sum(len(draft.token_ids) for draft in drafts)
        return [*drafts]

    def drafts(self, max_nodes: int | None = None) -> list[Draft]:
        return []

    def step(self) -> list[Error]:
        return []

    def reset(self) -> None:
        self._told.clear()


def deceived(scenario: Scenario, lie: Lie) -> World:
    """The scenario's world, in which all drafters tell this lie."""
    return World(scenario, new_session=partial(Liar, lie))
