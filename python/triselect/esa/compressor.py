"""`Compressor`: the two linear maps of a layer, and the file that keeps them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triselect.esa.layout import Layout
from triselect.esa.recall import Curve
from triselect.optional import safetensors

FORMAT = "triselect.esa.Compressor 1"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_BIASES = ("query_bias", "key_bias")


@dataclass(frozen=True, eq=False)
class Compressor:
    """Maps of one attention layer from its queries and keys to short vectors of similar products.

    For `compress`: ``compress(queries, c.query, c.query_bias)`` and
    ``compress(keys, c.key, c.key_bias)``.

    Parameters
    ----------
    query, key : ``(dim, groups * head_dim)`` float32, float16 or bfloat16
        Of folded queries (added up over the heads that share a key), and of the keys of all groups.
    heads, groups, head_dim : int
        Query heads, key heads and the numbers of each.
    query_bias, key_bias : ``(dim,)`` of the same dtype, optional
    method : str
        How they came to be.
    curve : Curve, optional
        Recall by compressed size on tokens held out, where it was asked for.

    Raises
    ------
    ValueError, TypeError
        Parts that do not fit together, by name, with both shapes.

    Examples
    --------
    >>> from triselect.esa import calibrate, compress
    >>> queries, keys = torch.randn(50, 4, 8), torch.randn(50, 2, 8)
    >>> c = calibrate(queries, keys, dim=6)
    >>> compress(queries, c.query, c.query_bias).values.shape
    torch.Size([50, 6])
    """

    query: Tensor
    key: Tensor
    heads: int
    groups: int
    head_dim: int
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    method: str = "given"
    curve: Curve | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "groups", "head_dim"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if self.heads % self.groups:
            raise ValueError(f"groups must divide the {self.heads} heads, got {self.groups}")
        if not isinstance(self.query, Tensor) or self.query.dim() != 2 or not len(self.query):
            raise ValueError(f"query must be (dim, groups * head_dim), got {_shape(self.query)}")
        wanted: dict[str, tuple[int, ...]] = {"query": (len(self.query), self.layout.width)}
        wanted |= {"key": wanted["query"]}
        wanted |= {name: (self.dim,) for name in _BIASES if getattr(self, name) is not None}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if _shape(value) != shape:
                raise ValueError(
                    f"{name} must be {shape} for query {tuple(self.query.shape)} and {self.groups} "
                    f"key heads of {self.head_dim}, got {_shape(value)}"
                )
            if value.dtype not in FLOATS or value.dtype != self.query.dtype:
                raise TypeError(
                    f"{name} must be float32, float16 or bfloat16 as query, got {value.dtype}"
                )
            if value.device != self.query.device:
                raise ValueError(
                    f"{name} must be on {self.query.device} as query, got {value.device}"
                )
            if value.is_cpu and not value.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinity")

    @property
    def dim(self) -> int:
        """Numbers of a compressed query or key."""
        return len(self.query)

    @property
    def layout(self) -> Layout:
        return Layout(self.heads, self.groups, self.head_dim)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Compressor":
        """The same on another device or in another dtype."""
        moved = {name: x.to(device=device, dtype=dtype) for name, x in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def save(self, path: Path | str) -> None:
        """Write a safetensors file.

        Raises
        ------
        ImportError
            safetensors is not installed.
        """
        # Copies: a safetensors file holds no tensor twice, and `query` may be `key`.
        tensors = {name: x.detach().clone().contiguous() for name, x in self._tensors().items()}
        about = {name: getattr(self, name) for name in (*Layout._fields, "method")}
        about["curve"] = self.curve and self.curve._asdict()
        metadata = {"format": FORMAT, "compressor": json.dumps(about)}
        safetensors().save_file(tensors, str(path), metadata)

    @classmethod
    def load(cls, path: Path | str) -> "Compressor":
        """Read what `save` wrote, bit for bit, onto the CPU.

        Raises
        ------
        ValueError
            A file that is cut short, of another kind, or whose parts do not fit together: by name.
        FileNotFoundError
            No such file.
        ImportError
            safetensors is not installed.
        """
        library = safetensors()
        from safetensors import SafetensorError  # installed, as the line above found

        try:
            with library.safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is no compressor: its format must be {FORMAT!r}, "
                f"got {metadata.get('format')!r}"
            )
        try:
            return cls(**tensors, **_about(metadata.get("compressor", "")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a compressor: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in ("query", "key", *_BIASES)}
        return {name: value for name, value in named.items() if value is not None}


def _about(text: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(text)
    if about["curve"] is not None:
        lists = {name: tuple(about["curve"][name]) for name in ("dim", "recall")}
        about["curve"] = Curve(**about["curve"] | lists)
    return about


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
