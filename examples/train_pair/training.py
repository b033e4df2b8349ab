"""One training run: Muon and AdamW, a learning rate driven by the clock, the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from .corpus import MAX_POSITIONS, VOCAB_SIZE

TARGET_SHAPE: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
}
DRAFT_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 512,
}
EVALUATIONS = 25  # how often a run looks at the held-out tests
WARM_UP = 0.03  # share of a run in which the learning rate rises


@dataclass(frozen=True)
class Recipe:
    minutes: float
    max_epochs: float
    learning_rate: float
    weight_decay: float
    batch_tokens: int
    sequence_length: int
    compile: bool

    @property
    def rows(self) -> int:
        return max(self.batch_tokens // self.sequence_length, 1)


def build_model(shape: dict[str, Any], device: torch.device) -> LlamaForCausalLM:
    settings = shape | {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "attn_implementation": "sdpa",
    }
    config = LlamaConfig(**settings)
    with device:
        return LlamaForCausalLM(config)


def add_dropout(model: nn.Module, probability: float) -> None:
    """Drops what each block adds to the residual stream: Llama has no dropout of its own, and a
    corpus this small is read many times over. Hooks, so nothing of it is saved."""

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return F.dropout(output, probability, module.training)

    for name, module in model.named_modules():
        if probability > 0 and name.endswith(("o_proj", "down_proj", "embed_tokens")):
            module.register_forward_hook(drop)


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    parameters = list(model.named_parameters())
    matrices = [p for name, p in parameters if p.ndim == 2 and "embed" not in name]
    embeddings = [p for name, p in parameters if p.ndim == 2 and "embed" in name]
    norms = [p for _, p in parameters if p.ndim < 2]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "weight_decay": decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95)),
    ]


def crops(stream: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Batches [rows, sequence_length + 1] without end: each epoch cuts the stream at a new offset
    and visits every cut once."""
    length = recipe.sequence_length
    if len(stream) < (recipe.rows + 1) * length:
        raise ValueError(f"expected a corpus longer than a batch, got {len(stream)} tokens")
    window = torch.arange(length + 1, device=stream.device)
    while True:
        offset = int(torch.randint(length, ()))
        starts = torch.arange(offset, len(stream) - length, length, device=stream.device)
        starts = starts[torch.randperm(len(starts), device=stream.device)]
        yield from (
            stream[rows[:, None] + window].long()
            for rows in torch.split(starts, recipe.rows)
            if len(rows) == recipe.rows
        )


def next_token_loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def loss(tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def distillation_loss(target: nn.Module, draft: nn.Module) -> Callable[[Tensor], Tensor]:
    """KL(target || draft) over the whole vocabulary, a token: what makes the draft agree."""

    def loss(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = target(tokens[:, :-1], use_cache=False).logits.float()
        logits = draft(tokens[:, :-1], use_cache=False).logits.float()
        return F.kl_div(
            logits.log_softmax(-1).flatten(0, 1),
            wanted.log_softmax(-1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )

    return loss


def train(
    model: LlamaForCausalLM,
    loss_fn: Callable[[Tensor], Tensor],
    batches: Iterator[Tensor],
    epoch_tokens: int,
    watched: Tensor,
    recipe: Recipe,
) -> dict[str, float]:
    """Trains in place and leaves the weights that did best on `watched` [rows, length + 1].

    Progress is the larger of the time and the tokens spent, so the learning rate always reaches
    zero within the budget. The clock starts after compilation.
    """
    device = watched.device
    cuda = device.type == "cuda"
    optimizers = make_optimizers(model, recipe)
    step_loss = torch.compile(loss_fn, dynamic=False) if recipe.compile else loss_fn

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=cuda)

    def watched_loss() -> float:
        model.train(False)
        with torch.no_grad(), autocast():
            parts = [loss_fn(rows) * len(rows) for rows in torch.split(watched, recipe.rows)]
        model.train()
        return float(torch.stack(parts).sum()) / len(watched)

    model.train()
    for _ in range(3 if recipe.compile else 1):
        with autocast():
            warm_up_loss = step_loss(next(batches))
        torch.autograd.backward(warm_up_loss)
        model.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()

    start, steps, progress = time.perf_counter(), 0, 0.0
    evaluations_done, best = 0, float("inf")
    best_weights: dict[str, Tensor] = {}
    best_progress, smooth = 0.0, torch.zeros((), device=device)
    while progress < 1.0:
        scale = min(1.0, (steps + 1) / 20, progress / WARM_UP + 0.05) * (1.0 - progress)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * scale
        with autocast():
            loss = step_loss(next(batches))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        smooth = loss.detach() if steps == 0 else smooth.lerp(loss.detach(), 0.05)
        steps += 1
        if cuda and steps % 10 == 0:  # else the clock would run behind the queued work
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        tokens = steps * recipe.rows * recipe.sequence_length
        progress = max(seconds / (60 * recipe.minutes), tokens / (recipe.max_epochs * epoch_tokens))
        if progress * EVALUATIONS >= evaluations_done + 1 or progress >= 1.0:
            evaluations_done = int(progress * EVALUATIONS)
            now = watched_loss()
            print(
                f"  {progress:5.0%}  step {steps:5d}  epoch {tokens / epoch_tokens:5.1f}"
                f"  {tokens / seconds / 1e6:5.2f} M tokens/s"
                f"  loss {float(smooth):.4f}  held-out tests {now:.4f}",
                flush=True,
            )
            if now < best:
                best, best_progress = now, progress
                best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_weights)
    model.train(False)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "steps": steps,
        "tokens_seen": tokens,
        "epochs_seen": round(tokens / epoch_tokens, 2),
        "best_loss_on_held_out_tests": round(best, 4),
        "best_at_progress": round(min(best_progress, 1.0), 3),
    }
