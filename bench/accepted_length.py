"""Accepted drafts a target pass, by rule, on the bundled pair.

python -m bench.accepted_length          measure: bench/results/accepted_length.json
python -m bench.accepted_length --draw   figure and table from that file, for docs/
"""

import json
import math
import time
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import accepted_length_report, expected_lengths
from bench.drafted_trees import RANKED, Context, Drafted, grow
from bench.machine import describe
from drafter.key_values import KeyValueStore
from drafter.model import DraftModel
from drafter.plan import Plan
from wanspec_kernels.bundled import model_path

RESULTS = Path("bench/results/accepted_length.json")
PROMPTS = Path("wanspec_kernels/bundled/prompts.json")
TEMPERATURES = (0.6, 1.0)
WIDTHS = (1, 2, 4, 8)
MAX_DEPTH = 8
NUM_DRAWS = 32  # of a tree; a chain has MAX_DEPTH
NEW_TOKENS = 96  # of a text, sampled from the target
CHECK_EVERY = 4  # contexts: the rules themselves are run too, to check the means


@torch.inference_mode()
def sample_texts(
    model: Any, prompt: list[int], count: int, temperature: float, seed: int
) -> list[list[int]]:
    """[count] continuations of `prompt`, with it, by the target."""
    generator = torch.Generator().manual_seed(seed)
    texts = step = torch.tensor([prompt] * count)
    cache = None
    for _ in range(NEW_TOKENS):
        output = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        share = (output.logits[:, -1].float() / temperature).softmax(-1)
        step = torch.multinomial(share, 1, generator=generator)
        texts = torch.cat([texts, step], 1)
    return texts.tolist()


def prefill(model: DraftModel, text: list[int]) -> tuple[KeyValueStore, Tensor]:
    """The text in a store's first slots, and its logits, [len(text), vocab]."""
    n = len(text)
    store, places = KeyValueStore(), np.arange(n)
    plan = Plan(np.array(text), places, places, np.tri(n, dtype=np.bool_), places)
    return store, model.run([(store, plan)])


def new_trees() -> list[Drafted]:
    trees = []
    for width in WIDTHS:
        num_expansions = MAX_DEPTH if width == 1 else NUM_DRAWS // width
        for kind in (*RANKED, "no replacement", "replacement"):
            # Of one child there is nothing to prune, and of one draw nothing to replace.
            if width > 1 or kind not in ("coupled, pruned", "replacement"):
                trees.append(Drafted(kind, width, num_expansions, MAX_DEPTH))
    return trees


def measure_context(
    context: Context, temperature: float, seed: int, check: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean accepted drafts by ``rule|width``; and, to check them, sampled minus mean."""
    trees = new_trees()
    grow(context, trees, temperature, seed, Random(seed))
    needed = sorted({node for tree in trees for node in tree.nodes})
    logits = dict(zip(needed, context.target_logits(needed), strict=True))
    means: dict[str, float] = {}
    differences: dict[str, float] = {}
    coupled = []
    for tree in trees:
        host = ([max(context.tokens[node], 0) for node in tree.nodes], tree.parents)
        rows = torch.stack([logits[node] for node in tree.nodes])
        if tree.kind.startswith("coupled"):
            coupled.append((f"match, {tree.kind}|{tree.width}", host, rows))
        elif tree.kind == "target-only":
            means[f"match, target-only|{tree.width}"] = expected_lengths.by_target_only_match(
                host, rows, temperature
            )
        else:
            replace = tree.kind == "replacement"
            joint = expected_lengths.joint_tree(host, tree.expansions, replace, rows, temperature)
            both = {
                "rejection": expected_lengths.by_rejection(joint, len(tree.nodes)),
                "traversal": expected_lengths.by_traversal(joint, tree.parents),
            }
            for rule, mean in both.items():
                if tree.width == 1:
                    rule = {"traversal": "block"}.get(rule, rule)
                    name = f"{rule}|1"
                else:
                    name = f"{rule}, {'with' if replace else 'without'} replacement|{tree.width}"
                means[name] = mean
                if check:
                    drawn = expected_lengths.sampled(
                        rule, host, tree.expansions, replace, rows, temperature, seed,
                        context.length,
                    )  # fmt: skip
                    differences[name] = drawn - mean
    lengths = expected_lengths.by_coupled_match(
        [host for _, host, _ in coupled],
        [rows for *_, rows in coupled],
        temperature,
        seed,
        context.length,
    )
    means |= {name: float(n) for (name, *_), n in zip(coupled, lengths, strict=True)}
    return means, differences


def measure(texts_per_prompt: int, every: int, base_seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled:target"))
    sampler = AutoModelForCausalLM.from_pretrained(
        model_path("bundled:target"), dtype=torch.float32
    ).eval()
    models = (
        DraftModel.load("bundled:target", device="cpu"),
        DraftModel.load("bundled:draft", device="cpu"),
    )
    prompts = json.loads(PROMPTS.read_text())
    by_text: dict[str, dict[str, list[float]]] = {}  # temperature, rule|width: a mean a text
    differences: list[float] = []
    num_contexts = 0
    for temperature in TEMPERATURES:
        columns = by_text.setdefault(str(temperature), {})
        for p, prompt in enumerate(prompts):
            ids = tokenizer(prompt["text"])["input_ids"]
            seed = base_seed + 1000 * p
            for t, text in enumerate(
                sample_texts(sampler, ids, texts_per_prompt, temperature, seed)
            ):
                prefilled = [prefill(model, text) for model in models]
                stores = (prefilled[0][0], prefilled[1][0])
                sums: dict[str, float] = {}
                lengths = range(len(ids), len(text), every)
                for length in lengths:
                    root = (prefilled[0][1][length - 1], prefilled[1][1][length - 1])
                    context = Context(models, stores, len(text), length, root)
                    check = num_contexts % CHECK_EVERY == 0
                    means, some = measure_context(
                        context, temperature, 1_000_003 * (seed + t) + length, check
                    )
                    for name, mean in means.items():
                        sums[name] = sums.get(name, 0.0) + mean / len(lengths)
                    differences += some.values()
                    num_contexts += 1
                for name, mean in sums.items():
                    columns.setdefault(name, []).append(round(mean, 5))
            typer.echo(
                f"T {temperature}, {prompt['name']}: {num_contexts} contexts, "
                f"{time.perf_counter() - started:.0f} s"
            )
    spread = np.std(differences, ddof=1) / math.sqrt(len(differences))
    return {
        "machine": describe() | {"threads": 1},
        "seconds": round(time.perf_counter() - started, 1),
        "seed": base_seed,
        "max_depth": MAX_DEPTH,
        "num_draws": NUM_DRAWS,
        "contexts": num_contexts // len(TEMPERATURES),
        "texts": texts_per_prompt * len(prompts),
        "new_tokens": NEW_TOKENS,
        "context_every": every,
        "check": {  # the rules run with coins, against the exact means
            "verifications": len(differences),
            "sampled_minus_mean": float(np.mean(differences)),
            "standard_error": float(spread),
        },
        "mean_accepted_by_text": by_text,
    }


def main(
    draw: Annotated[bool, typer.Option(help="Only draw what was measured.")] = False,
    texts: Annotated[int, typer.Option(help="Texts sampled a prompt and temperature.")] = 8,
    every: Annotated[int, typer.Option(help="Tokens from one context of a text to the next.")] = 6,
    seed: Annotated[int, typer.Option(help="Of texts, draws and noise.")] = 1,
    results: Annotated[Path, typer.Option(help="The measurements.")] = RESULTS,
) -> None:
    """Accepted drafts a target pass, by verification rule, on the bundled pair."""
    if draw:
        accepted_length_report.write(json.loads(results.read_text()), Path("docs"))
        return
    measured = measure(texts, every, seed)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
