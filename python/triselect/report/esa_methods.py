"""The ways of reading that `triselect play esa` compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from triselect.esa import Compressor, Config, Rotary
from triselect.report.esa_reading import (
    MeanQuery,
    Pages,
    Random,
    Reading,
    Selective,
    Window,
)

# As in the literature's small experiments: 164 tokens beside the chunk, whatever the length.
CONFIG = Config(initial=4, top_k=64, local=96, proximity=1, chunk=32, scorer="exact")
PROXIMITIES = (0, 1, 3)
DIMS = (4, 8, 16)
STAND_IN = "simplified stand-in"

Make = Callable[[Config, Rotary, int, int], Reading]  # config, rotary, layers, capacity


@dataclass(frozen=True)
class Method:
    """A way to read. Without `make`: full attention at the positions of the training."""

    name: str
    label: str
    make: Make | None
    config: Config = CONFIG
    stand_in: bool = False

    @property
    def title(self) -> str:
        return f"{self.label} ({STAND_IN})" if self.stand_in else self.label


FULL = Method("full", "full attention, no budget", None)
WINDOW = Method("window", "sinks + window", Window, stand_in=True)
RANDOM = Method("random", "random tokens", Random)
PAGES = Method("pages", "pages of 16", Pages, stand_in=True)
MEAN = Method("mean", "mean query", MeanQuery, stand_in=True)


def exact(proximity: int, config: Config = CONFIG) -> Method:
    config = replace(config, proximity=proximity, scorer="exact")
    return Method(f"exact-{proximity}", f"ESA, ε = {proximity}", Selective, config)


def compressed(dim: int, compressors: Sequence[Compressor], config: Config = CONFIG) -> Method:
    """ESA with the first `dim` numbers of compressors that have as many or more."""
    config = replace(config, dim=dim, scorer="compressed")
    make = partial(Selective, compressors=compressors)
    return Method(f"dim-{dim}", f"ESA, d′ = {dim}", make, config)


def all_methods(compressors: Sequence[Compressor]) -> list[Method]:
    """Full attention, the others, ESA by reach, ESA by size of its compressed keys."""
    return [
        *(FULL, WINDOW, RANDOM, PAGES, MEAN),
        *(exact(proximity) for proximity in PROXIMITIES),
        *(compressed(dim, compressors) for dim in DIMS),
    ]
