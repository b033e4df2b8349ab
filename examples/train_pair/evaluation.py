"""What the pair is worth on the held-out files, and the prompts cut from them for the demo."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from .corpus import Corpus, encode_files

TOP = (1, 4, 8)
PROMPT_TOKENS = 300
# Each is cut after the first statement that follows its docstring.
PROMPTS = (
    ("bisect.py", "bisect_left"),
    ("queue.py", "get"),
    ("heapq.py", "_siftup_max"),
    ("statistics.py", "median_high"),
    ("colorsys.py", "hsv_to_rgb"),
    ("calendar.py", "formatmonth"),
)


@torch.no_grad()
def continue_text(
    model: nn.Module, prompts: Tensor, num_tokens: int, temperature: float = 0.0
) -> Tensor:
    """[batch, n] token ids to [batch, n + num_tokens]; goes on past an end of text."""
    rows, step, cache = [prompts], prompts, None
    for _ in range(num_tokens):
        output = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        if temperature > 0:
            step = (logits / temperature).softmax(-1).multinomial(1)
        else:
            step = logits.argmax(-1, keepdim=True)
        rows.append(step)
    return torch.cat(rows, 1)


def cut_prompts(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, str]]:
    """A held-out function up to its first statement, and as much of the file above it as fits."""
    prompts = []
    for file, function in PROMPTS:
        source = corpus.held_out[file]
        functions = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        body = functions[0].body
        last = body[1] if ast.get_docstring(functions[0]) else body[0]
        # A compound statement is cut after its first line, whose body is then to be written.
        end = last.lineno if hasattr(last, "body") else last.end_lineno or last.lineno
        lines = source.splitlines()[:end]
        for start in range(max(end - 100, 0), end):
            text = "\n".join(lines[start:])
            if lines[start].strip() and len(tokenizer(text)["input_ids"]) <= PROMPT_TOKENS:
                break
        prompts.append({"name": f"{file.removesuffix('.py')}.{function}", "text": text})
    return prompts


@torch.no_grad()
def measure_on_files(
    target: nn.Module, draft: nn.Module, stream: Tensor, num_bytes: int, length: int
) -> dict[str, Any]:
    """Teacher-forced on the held-out files: losses, and the target's greedy token in the draft's
    top k."""
    nats = torch.zeros(2, dtype=torch.float64)
    held = torch.zeros(max(TOP))
    num_tokens = len(stream) - 1
    for start in range(0, num_tokens, length):
        window = stream[start : start + length + 1].long()[None]
        target_logits = target(window[:, :-1], use_cache=False).logits[0].float()
        draft_logits = draft(window[:, :-1], use_cache=False).logits[0].float()
        for row, logits in enumerate((target_logits, draft_logits)):
            nats[row] += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
        held += hits_by_rank(draft_logits, target_logits.argmax(-1))
    return {
        "tokens": num_tokens,
        "bytes": num_bytes,
        "target": loss_record(float(nats[0]), num_tokens, num_bytes),
        "draft": loss_record(float(nats[1]), num_tokens, num_bytes),
        "draft_top_k_holds_target_greedy": shares(held / num_tokens),
    }


@torch.no_grad()
def measure_on_own_text(
    target: nn.Module, draft: nn.Module, stream: Tensor, num_prompts: int, num_tokens: int
) -> dict[str, Any]:
    """The same agreement along what the target writes greedily after held-out beginnings."""
    prompt_tokens = 256
    starts = torch.linspace(0, len(stream) - prompt_tokens - 1, num_prompts).long()
    prompts = torch.stack([stream[int(s) : int(s) + prompt_tokens].long() for s in starts])
    texts = continue_text(target, prompts, num_tokens)
    held = torch.zeros(max(TOP))
    for row in texts:
        logits = draft(row[None, :-1], use_cache=False).logits[0, prompt_tokens - 1 :].float()
        held += hits_by_rank(logits, row[prompt_tokens:])
    # Greedy text of a small model falls into loops, which any draft predicts: say how often.
    half = num_tokens // 2
    looping = torch.zeros(num_prompts, dtype=torch.bool, device=texts.device)
    for period in range(1, half):
        tail = texts[:, -half:]
        looping |= (tail == texts[:, -half - period : -period]).all(1)
    return {
        "prompts": num_prompts,
        "prompt_tokens": prompt_tokens,
        "tokens_each": num_tokens,
        "ends_in_a_loop": round(float(looping.float().mean()), 4),
        "draft_top_k_holds_target_greedy": shares(held / (num_prompts * num_tokens)),
    }


def hits_by_rank(draft_logits: Tensor, wanted: Tensor) -> Tensor:
    """[tokens, vocab] and [tokens] to [max(TOP)]: how many wanted tokens are the draft's n-th."""
    return (draft_logits.topk(max(TOP)).indices == wanted[:, None]).sum(0).float().cpu()


def shares(held: Tensor) -> dict[str, float]:
    return {f"top_{k}": round(float(held[:k].sum()), 4) for k in TOP}


def loss_record(nats: float, num_tokens: int, num_bytes: int) -> dict[str, float]:
    return {
        "nats_per_token": round(nats / num_tokens, 4),
        "perplexity_per_token": round(math.exp(nats / num_tokens), 3),
        "bits_per_byte": round(nats / math.log(2) / num_bytes, 4),
    }


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError(f"{folder}: expected a fast tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    module: nn.Module = model.to(device).eval()
    return module


def evaluate(folder: Path, corpus: Corpus, device: torch.device, length: int) -> dict[str, Any]:
    """Loads the two saved models as anyone would and measures them."""
    # The saved weights are bf16; a CPU computes with them in fp32 because its bf16 is slow.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = load_tokenizer(folder)
    models = {name: load_model(folder / name, device, dtype) for name in ("target", "draft")}
    stream = encode_files(tokenizer, corpus.held_out).to(device)
    num_bytes = sum(len(text.encode()) for text in corpus.held_out.values())
    pair = models["target"], models["draft"]
    few = device.type != "cuda"
    return {
        "compute_dtype": str(dtype).removeprefix("torch."),
        "parameters": {
            name: sum(p.numel() for p in model.parameters()) for name, model in models.items()
        },
        "bytes": {
            name: sum(file.stat().st_size for file in (folder / name).iterdir()) for name in models
        },
        "held_out_files": measure_on_files(*pair, stream, num_bytes, length),
        "own_greedy_text": measure_on_own_text(
            *pair, stream, num_prompts=8 if few else 64, num_tokens=64 if few else 128
        ),
    }


def sample_completions(
    folder: Path, prompts: list[dict[str, str]], device: torch.device, num_tokens: int = 120
) -> list[dict[str, str]]:
    tokenizer = load_tokenizer(folder)
    target = load_model(folder / "target", device, torch.bfloat16)
    samples = []
    for prompt in prompts:
        token_ids = tokenizer(prompt["text"], return_tensors="pt")["input_ids"].to(device)
        text = continue_text(target, token_ids, num_tokens)[0, token_ids.shape[1] :]
        samples.append({"name": prompt["name"], "completion": str(tokenizer.decode(text))})
    return samples
