"""Puts a target, a home drafter and the drafters' socket together, for `generate` and `demo`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers

from drafter.home import HomeDrafter
from drafter.model import DraftModel
from wanspec_kernels.control.pass_times import SIZES
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.engine.engine import Engine, PassRunner
from wanspec_kernels.engine.model import Capacity, CaptureError, Target
from wanspec_kernels.engine.model.capacity import ladder
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.engine.runner import Runner
from wanspec_kernels.engine.scheduler import Scheduler, SchedulerLimits
from wanspec_kernels.models import resolve_device, resolve_model
from wanspec_kernels.serving.drafters import DrafterSocket, now_ms
from wanspec_kernels.wire.keys import AllowList, Secret
from wanspec_kernels.wire.vocabulary import format_fingerprint

logger = logging.getLogger(__name__)

MAX_CAPTURED_ROWS = 256  # A pass of more is busy for longer than it takes to launch.
MAX_CAPTURED_NODES = 64  # of one tree; a longer piece of a prompt is launched
# Those of one tree are cheaper for one, as they hold no others.
CAPACITIES = (
    *(Capacity(1, rows, rows) for rows in (1, 8, 16, 32, 64)),
    *ladder(
        SIZES,
        max_batch=MAX_CAPTURED_ROWS,
        max_rows=MAX_CAPTURED_ROWS,
        max_nodes=MAX_CAPTURED_NODES,
    ),
)


class LoadError(ValueError):
    """A model that was found cannot be loaded; names it and says why."""


class VocabularyMismatchError(ValueError):
    """Target and draft do not number the same tokens; both fingerprints are named."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and, if wanted, a draft model beside it."""

    target: Target
    home: DraftModel | None

    @classmethod
    def load(
        cls,
        model: str,
        home_draft: str | None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> "Pair":
        """Load by hub name, folder or bundled name; `dtype` None is float32 on a CPU, else bf16.

        Raises:
            LoadError: a model or the device cannot be had.
            VocabularyMismatchError: the two have different vocabularies.
        """
        # A bar for every model would run through the text that is being written.
        transformers.utils.logging.disable_progress_bar()
        with _loading("device"):
            device = resolve_device(device)
        with _loading("target model"):  # both are looked for before the first takes its minutes
            path = resolve_model(model)
        if home_draft is not None:
            with _loading("draft model"):
                resolve_model(home_draft)
        with _loading(f"target model {model}"):
            target = Target.load(path, device=device, dtype=dtype)
        if target.device.type == "cuda":
            capture_passes(target)
        if home_draft is None:
            return cls(target, None)
        with _loading(f"draft model {home_draft}"):
            home = DraftModel.load(home_draft, device=device)
        if home.vocabulary != target.vocabulary:
            raise VocabularyMismatchError(
                f"vocabulary: expected {format_fingerprint(target.vocabulary)}, as {model} has, "
                f"got {format_fingerprint(home.vocabulary)} of {home_draft}"
            )
        return cls(target, home)

    def engine(
        self,
        *,
        bind: str | None = None,
        secret: Secret | None = None,
        allowed: AllowList | None = None,
        max_rows: int = 64,
        batch: SchedulerLimits | None = None,
        home: bool = True,
        runner: PassRunner | None = None,
    ) -> Engine:
        """An engine over the target; drafters in `allowed` may dial in at `bind`, if one is given.

        Args:
            max_rows: of the tree of one request.
            batch: sizes of a pass; None is the scheduler's own.
            home: whether the draft model beside the target drafts, if there is one.
            runner: of the target; None is its `Runner`.
        """
        limits = Limits(max_rows=max_rows, max_length=self.target.max_length)
        exchange = Exchange(
            vocabulary=self.target.vocabulary, vocab_size=self.target.vocab_size, now=now_ms()
        )
        drafters = None
        if bind is not None:
            if secret is None or allowed is None:
                raise ValueError("bind: expected the verifier's secret and an allow-list with it")
            drafters = DrafterSocket(bind, exchange=exchange, secret=secret, allowed=allowed)
        with_home = home and self.home is not None
        scheduler = Scheduler(
            vocab_size=self.target.vocab_size,
            pages=PageBook(self.target.cache.num_pages, self.target.cache.page_size),
            limits=limits,
            batch=batch,
            exchange=exchange,
            home=with_home,
        )
        return Engine(
            scheduler,
            runner or Runner(self.target),
            home=HomeDrafter(self.home) if with_home and self.home is not None else None,
            drafters=drafters,
            tokenizer=self.target.tokenizer,
        )


@contextmanager
def _loading(what: str) -> Iterator[None]:
    try:
        yield
    # Beside OSError and ValueError: a kind of model that is not supported, a broken file of
    # weights, and a device without memory.
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise LoadError(f"{what}: {error}") from error


def capture_passes(target: Target) -> None:
    """Capture passes of one tree and of many, or say why they go on being launched one by one."""
    try:
        target.capture(CAPACITIES)
    except CaptureError as error:
        logger.warning("going on without CUDA graphs: %s", error)
