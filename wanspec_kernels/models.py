"""Names of models and devices, as a person gives them: found, or refused before anything loads."""

import logging
import re
from functools import cache
from pathlib import Path

from wanspec_kernels.bundled import BUNDLED_MODELS, model_path

logger = logging.getLogger(__name__)

HUB_TIMEOUT_S = 10.0
HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)


class ModelNotFoundError(ValueError):
    """Neither a folder nor a reachable model of the hub has this name."""


def resolve_model(name: str) -> str:
    """What to load: the folder of a bundled model, a folder as it is, or the name of a hub model.

    A hub that cannot be reached is found out in one attempt; a model that was downloaded before is
    then taken from the cache, and the folder there comes back.

    Raises:
        ModelNotFoundError: says what was looked for, and where.
    """
    if name.startswith("bundled:"):
        if name not in BUNDLED_MODELS:
            raise ModelNotFoundError(f"expected one of {', '.join(BUNDLED_MODELS)}, got {name}")
        return model_path(name)
    folder = Path(name)
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"expected a model, got the folder {name}, which has no config.json"
            )
        return name
    wanted = f"expected a folder, a model of the hub or bundled:target, got {name!r}"
    if name and folder.exists():
        raise ModelNotFoundError(f"{wanted}, which is a file")
    if not HUB_NAME.fullmatch(name):
        raise ModelNotFoundError(f"{wanted}: there is no such folder, and it is no hub name")
    return _on_hub(name, wanted)


@cache
def _on_hub(name: str, wanted: str) -> str:
    # transformers would ask five times, half a minute and forty lines, before it gave up.
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # its HTTP client's errors have no type that all versions share
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            logger.warning("%s: taken from the cache, as the hub does not answer: %s", name, error)
            return str(Path(cached).parent)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(
            f"{wanted}: there is no such folder, and the hub has or shows no such model ({reason})"
        ) from None
    return name


def resolve_device(name: str) -> str:
    """The device of auto, cpu, cuda or cuda:N, if this machine has it. Raises ValueError."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    expected = "expected auto, cpu, cuda or cuda:N"
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if found is None:
        raise ValueError(f"{expected}, got {name!r}")
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "finds no CUDA device here" if built else "is built without CUDA"
        raise ValueError(f"expected cpu or auto, got {name}: this torch {why}")
    if int(found[1] or 0) >= torch.cuda.device_count():
        raise ValueError(f"{expected}, got {name}: this machine has {torch.cuda.device_count()}")
    return name
