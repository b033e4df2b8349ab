"""A target and two drafters over a handful of tokens, small enough to enumerate."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wanspec_kernels.tree import Expansion

Text = tuple[int, ...]


@dataclass
class ToyModel:
    """`logits[text]` for every text shorter than `length`; each source's weights likewise."""

    vocab: int
    length: int
    num_sources: int
    seed: int
    logits: dict[Text, Tensor] = field(default_factory=dict)
    weights: list[dict[Text, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        texts: list[Text] = [()]
        for text in texts:
            if len(text) + 1 < self.length:
                texts += [(*text, token) for token in range(self.vocab)]
        for text in texts:
            self.logits[text] = torch.tensor(rng.normal(0, 1.2, self.vocab), dtype=torch.float32)
        for _ in range(self.num_sources):
            source = {}
            for text in texts:
                weights = rng.integers(1, 100, self.vocab) ** 2
                weights[rng.random(self.vocab) < 0.3] = 0  # not in the support
                weights[rng.integers(self.vocab)] += 500
                source[text] = weights
            self.weights.append(source)

    def target(self, text: Text, temperature: float, top_k: int) -> np.ndarray:
        """Probabilities after a text, written down anew: float64, top_k by sorting."""
        logits = self.logits[text].double().numpy() / np.float64(np.float32(temperature))
        if top_k:
            logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
        mass = np.exp(logits - logits.max())
        return mass / mass.sum()

    def joint(self, temperature: float, top_k: int) -> np.ndarray:
        """Probability of every text of `length` tokens, [vocab] * length."""
        result = np.zeros((self.vocab,) * self.length)
        for text in np.ndindex(result.shape):
            result[text] = np.prod(
                [self.target(text[:i], temperature, top_k)[text[i]] for i in range(self.length)]
            )
        return result

    def draft(
        self, rng: np.random.Generator, num_draws: int, replacement: bool
    ) -> tuple[list[int], list[int], list[Text], list[Expansion]]:
        """One tree: each source draws at each node; equal tokens share a child, mostly."""
        tokens, parents, texts, expansions = [0], [-1], [()], []
        node = 0
        while node < len(tokens):
            text = texts[node]
            for source in self.weights if len(text) + 1 < self.length else []:
                weights = source[text]
                support = np.flatnonzero(weights)
                q = weights[support] / weights[support].sum()
                count = num_draws if replacement else min(num_draws, len(support))
                children = []
                for token in rng.choice(support, count, replace=replacement, p=q).tolist():
                    known = [i for i, p in enumerate(parents) if p == node and tokens[i] == token]
                    if not known or rng.random() < 0.3:
                        tokens.append(token)
                        parents.append(node)
                        texts.append((*text, token))
                        known = [len(tokens) - 1]
                    children.append(known[0])
                expansions.append(
                    Expansion(
                        node,
                        tuple(children),
                        tuple(support.tolist()),
                        tuple(weights[support].tolist()),
                    )
                )
            node += 1
        return tokens, parents, texts, expansions

    def finish(
        self, text: list[int], rng: np.random.Generator, temperature: float, top_k: int
    ) -> Text:
        """Sample on from the target until the text is long enough to compare."""
        while len(text) < self.length:
            p = self.target(tuple(text), temperature, top_k)
            text = [*text, int(rng.choice(self.vocab, p=p))]
        return tuple(text[: self.length])
