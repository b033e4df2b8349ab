"""The pair of small models that comes with the package, so that everything runs offline."""

from importlib.resources import files

BUNDLED_MODELS = ("bundled:target", "bundled:draft")


def model_path(name: str) -> str:
    """The folder of "bundled:target" or "bundled:draft"; any other name, a hub id or a path,
    comes back as it is. An unknown "bundled:…" raises ValueError."""
    if not name.startswith("bundled:"):
        return name
    if name not in BUNDLED_MODELS:
        raise ValueError(f"model: expected one of {', '.join(BUNDLED_MODELS)}, got {name}")
    return str(files(__package__) / name.removeprefix("bundled:"))
