"""Makes the bundled pair from a Python standard library: `python -m examples.train_pair`."""

from __future__ import annotations

import copy
import json
import shlex
import sys
import sysconfig
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import HELD_OUT, Corpus, check_round_trip, encode_files, load_corpus, train_tokenizer
from .evaluation import continue_text, cut_prompts, evaluate, load_tokenizer, sample_completions
from .training import (
    DRAFT_SHAPE,
    TARGET_SHAPE,
    Recipe,
    add_dropout,
    build_model,
    crops,
    distillation_loss,
    next_token_loss,
    train,
)

STDLIB = Path(sysconfig.get_path("stdlib"))
BUNDLED = Path(__file__).parents[2] / "wanspec_kernels" / "bundled"
AWKWARD = [
    "",
    " ",
    "\n\n\n    \t x",
    "naïve — 日本語 🐍\u200d\x00\x7f",
    "\r\n\r\n\tdef f():\r",
    "a" * 99,
]


def save_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> LlamaForCausalLM:
    """Writes a bf16 copy with its tokenizer, so that the folder loads alone, and returns it."""
    saved = copy.deepcopy(model)
    nn.Module.to(saved, torch.bfloat16)
    saved.generation_config.eos_token_id = saved.generation_config.pad_token_id = 0
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    saved.train(False)
    return saved


def watched_rows(stream: Tensor, length: int) -> Tensor:
    """Rows [length + 1], spread evenly over a stream; few on a CPU, where they would take long."""
    most = 128 if stream.is_cuda else 8
    starts = torch.arange(0, len(stream) - length, length, device=stream.device)
    starts = starts[torch.linspace(0, len(starts) - 1, min(most, len(starts))).long()]
    return stream[starts[:, None] + torch.arange(length + 1, device=stream.device)].long()


def write_own_text(
    target: LlamaForCausalLM, stream: Tensor, num_tokens: int, length: int
) -> Tensor:
    """About `num_tokens` the target writes itself after short training crops, as one stream.

    The draft meets the target's own text in use, which differs from the corpus. Half is written
    near greedily.
    """
    prompt_tokens = max(length // 16, 8)
    rows = max(num_tokens // length // 2, 1)
    texts = []
    for temperature in (0.3, 1.0):
        for part in torch.split(torch.randint(len(stream) - prompt_tokens, (rows,)), 2048):
            starts = part.to(stream.device)[:, None]
            prompts = stream[starts + torch.arange(prompt_tokens, device=stream.device)].long()
            texts.append(continue_text(target, prompts, length - prompt_tokens, temperature))
    return torch.cat(texts).flatten().to(stream.dtype)


def train_pair(
    corpus: Corpus,
    out: Path,
    device: torch.device,
    target_recipe: Recipe,
    draft_recipe: Recipe,
    dropout: float,
    own_text_tokens: int,
) -> dict[str, Any]:
    length = target_recipe.sequence_length
    tokenizer = train_tokenizer(corpus)
    target = build_model(TARGET_SHAPE, device)
    target.config.save_pretrained(out / "target")
    tokenizer.save_pretrained(out / "target")
    # As it will be loaded, and before any training is paid for.
    check_round_trip(load_tokenizer(out), [*AWKWARD, *corpus.held_out.values()])
    stream = encode_files(tokenizer, corpus.training).to(device)
    watched = watched_rows(encode_files(tokenizer, corpus.held_out_tests).to(device), length)
    corpus_bytes = sum(len(text.encode()) for text in corpus.training.values())
    print(f"corpus: {len(corpus.training)} files, {corpus_bytes} bytes, {len(stream)} tokens")

    add_dropout(target, dropout)
    print(f"target: {target.num_parameters()} parameters")
    target_record = train(
        target, next_token_loss(target), crops(stream, target_recipe), len(stream), watched,
        target_recipe,
    )  # fmt: skip
    teacher = save_model(target, tokenizer, out / "target")

    began = time.perf_counter()
    if own_text_tokens:
        own = write_own_text(teacher, stream, own_text_tokens, length)
        # Repeated to a third of what the draft reads.
        stream = torch.cat([stream, own.repeat(max(len(stream) // 2 // len(own), 1))])
    print(f"own text: {own_text_tokens} tokens in {time.perf_counter() - began:.0f} s")
    draft = build_model(DRAFT_SHAPE, device)
    print(f"draft: {draft.num_parameters()} parameters, loss is KL(target || draft)")
    draft_record = train(
        draft, distillation_loss(teacher, draft), crops(stream, draft_recipe), len(stream), watched,
        draft_recipe,
    )  # fmt: skip
    save_model(draft, tokenizer, out / "draft")
    return {
        "command": shlex.join(["python", "-m", "examples.train_pair", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "corpus": {
            "python_version": corpus.python_version,
            "files": len(corpus.training),
            "bytes": corpus_bytes,
            "sha256": corpus.sha256,
            "held_out": list(HELD_OUT),
            "held_out_tests": list(corpus.held_out_tests),
            "held_out_long_lines_in_training": round(corpus.held_out_lines_in_training(), 4),
        },
        "target": target_record | vars(target_recipe) | {"dropout": dropout},
        "draft": draft_record | vars(draft_recipe) | {"own_text_tokens": own_text_tokens},
    }


def main(
    stdlib: Annotated[
        Path, typer.Option(help="a standard library: a folder, or a .tar.gz or .tar.xz of one")
    ] = STDLIB,
    out: Annotated[Path, typer.Option(help="where target/ and draft/ go")] = BUNDLED,
    target_minutes: float = 3.5,
    draft_minutes: float = 2.5,
    target_epochs: Annotated[float, typer.Option(help="ends the run if time does not")] = 24,
    draft_epochs: float = 60,
    target_rate: float = 2e-3,
    draft_rate: float = 4e-3,
    weight_decay: float = 0.3,
    dropout: float = 0.1,
    own_text_tokens: Annotated[int, typer.Option(help="0: distil on the corpus only")] = 4_000_000,
    batch_tokens: int = 65_536,
    sequence_length: int = 1024,
    compile: bool = True,
    limit_files: Annotated[int | None, typer.Option(help="for a trial")] = None,
    seed: int = 0,
    eval_only: bool = False,
) -> None:
    """Trains the target, distils the draft from it, and measures both on held-out files."""
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = load_corpus(stdlib, limit_files)
    out.mkdir(parents=True, exist_ok=True)
    report = out / "pair.json"
    record: dict[str, Any] = {}
    if eval_only:
        record = json.loads(report.read_text()) if report.exists() else {}
    else:
        shared = batch_tokens, sequence_length, compile
        record["training"] = train_pair(
            corpus,
            out,
            device,
            Recipe(target_minutes, target_epochs, target_rate, weight_decay, *shared),
            Recipe(draft_minutes, draft_epochs, draft_rate, 0.1, *shared),
            dropout,
            own_text_tokens,
        )
        report.write_text(json.dumps(record, indent=1) + "\n")
    tokenizer = load_tokenizer(out)
    prompts = cut_prompts(corpus, tokenizer)
    (out / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")
    record["evaluation"] = evaluate(out, corpus, device, sequence_length)
    report.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    for sample, prompt in zip(
        sample_completions(out, prompts[:3], device), prompts[:3], strict=True
    ):
        ending = "\n".join(prompt["text"].splitlines()[-8:])
        print(f"\n=== {sample['name']}: …{ending}\n--- the target goes on:{sample['completion']}")


if __name__ == "__main__":
    typer.run(main)
