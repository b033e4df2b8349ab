"""The traces that come with the package."""

from importlib.resources import as_file, files
from pathlib import Path

from wanspec_kernels.simulation.synthetic import generate
from wanspec_kernels.simulation.trace import Trace

BUNDLED = "bundled"
SYNTHETIC = "synthetic:"


def load(name: str) -> Trace:
    """`bundled`, `synthetic:0.8` (any top-1 acceptance), or a file of `wanspec trace`.

    Raises:
        OSError: there is no such file.
        ValueError: it is no trace, or a synthetic one is asked for with no number.
    """
    if name == BUNDLED:
        with as_file(files(__name__) / "bundled.npz") as path:
            return Trace.load(path)
    if name.startswith(SYNTHETIC):
        try:
            top_1 = float(name.removeprefix(SYNTHETIC))
        except ValueError:
            raise ValueError(f"expected a number, as in synthetic:0.8, got {name}") from None
        return generate(top_1)
    return Trace.load(Path(name))
