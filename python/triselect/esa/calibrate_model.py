"""`calibrate_model`: compressors for every attention layer of a model, from a text it reads."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor, nn

from triselect.esa.calibrate import Method, fit
from triselect.esa.compressor import Compressor
from triselect.esa.layout import TOKENS_AT_ONCE, Layout, fold, must_be_heads
from triselect.esa.moments import Moments
from triselect.esa.rotary import Rotary
from triselect.ops import operator

FAR = 4096  # esa.Config's local


def calibrate_model(
    model: nn.Module,
    text: Tensor | Iterable[Tensor],
    *,
    dim: int | None = None,
    method: Method = "closed_form",
    position: int = FAR,
    progress: bool = True,
) -> list[Compressor]:
    """Calibrate ESA's compression for all attention layers of a model at once.

    Parameters
    ----------
    model : nn.Module
        With modules that have a `q_proj`, a `k_proj` and a `head_dim`, perhaps a `q_norm` and a
        `k_norm` behind them, and one module with the `inv_freq` of their rotary positions: Llama,
        Mistral, Qwen and others of transformers. It is called as it is, without gradient.
    text : ``(B, T)`` or ``(T,)`` int64, or an iterable of such
        Token ids, without padding. 50 000 are what the paper takes.
    dim : int, optional
        Numbers to compress to, at most G · D: 128 by default, or G · D where that is less.
    method : "closed_form", "centered" or "pca"
        As in `calibrate`.
    position : int
        Where queries are placed, which is ``esa.Config.local``.
    progress : bool
        Show a progress bar, where rich is installed.

    Returns
    -------
    list of Compressor
        One for each layer.

    Raises
    ------
    ValueError, TypeError
        A model without such layers; an argument that does not fit, by name.

    Notes
    -----
    Queries and keys are taken as ESA compresses them: after their norms, keys before rotation and
    queries rotated to `position`. Of them only second moments are kept, two matrices
    ``(G * D, G * D)`` float64 for each layer, however long the text.

    Examples
    --------
    >>> class Attention(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head_dim = 8
    ...         self.q_proj, self.k_proj = nn.Linear(16, 32), nn.Linear(16, 16)
    ...     def forward(self, x):
    ...         return self.q_proj(x)[..., :16] + self.k_proj(x)
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embed, self.attention = nn.Embedding(50, 16), Attention()
    ...         self.register_buffer("inv_freq", 10000 ** -(torch.arange(0, 8, 2) / 8))
    ...     def forward(self, input_ids, use_cache):
    ...         return self.attention(self.embed(input_ids))
    >>> compressors = calibrate_model(Model(), torch.randint(50, (4, 100)), dim=4, progress=False)
    >>> [(c.heads, c.groups, c.query.shape) for c in compressors]
    [(4, 2, torch.Size([4, 16]))]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, value, least in (("dim", dim, 1), ("position", position, 0)):
        if value is not None:
            operator.must_be_int(name, value)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
    methods = [name for name in get_args(Method) if name != "gradient"]  # it needs all at once
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}")
    layers = _layers(model, position)
    # A causal language model without its head: of a long text, logits are by far the largest.
    reader: Any = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            for hook in layer.watch():
                hooks.callback(hook.remove)
        for ids in _batches(text, progress):
            reader(input_ids=ids.to(device), use_cache=False)
    return [fit(layer.layout, layer.queries, layer.keys, dim, method) for layer in layers]


class _Layer:
    """Moments of the queries and keys that pass through an attention module."""

    def __init__(self, attention: Any, rotary: Rotary, position: int) -> None:
        size = attention.head_dim
        heads, groups = (p.out_features // size for p in (attention.q_proj, attention.k_proj))
        self.layout = Layout(heads, groups, size)
        self.queries, self.keys = Moments(self.layout.width), Moments(self.layout.width)
        self._attention, self._rotary, self._position = attention, rotary, position

    def watch(self) -> Iterator[Any]:
        for which in ("q", "k"):
            source = getattr(self._attention, f"{which}_norm", None)
            if source is None:
                source = getattr(self._attention, f"{which}_proj")
            yield source.register_forward_hook(partial(self._add, which))

    def _add(self, which: str, module: nn.Module, args: Any, output: Tensor) -> None:
        heads = self.layout.heads if which == "q" else self.layout.groups
        x = output.detach().reshape(-1, heads, self.layout.head_dim)
        must_be_heads("queries" if which == "q" else "keys", x)
        if which == "q":
            far = torch.full((1,), self._position, device=x.device)
            x = self._rotary.to(x.device).rotate(x[None].float(), far)[0]
        # Of the devices, not all have float64.
        rows = fold(x if x.is_cuda else x.cpu(), self.layout.groups)
        (self.queries if which == "q" else self.keys).add(rows)


def _layers(model: nn.Module, position: int) -> list[_Layer]:
    needed = ("q_proj", "k_proj", "head_dim")
    attentions: list[Any] = [m for m in model.modules() if all(hasattr(m, n) for n in needed)]
    if not attentions:
        raise ValueError(
            "model must have attention modules with a q_proj, a k_proj and a head_dim, "
            f"{type(model).__name__} has none"
        )
    rotaries: list[Any] = [m for m in model.modules() if hasattr(m, "inv_freq")]
    if len(rotaries) != 1:
        raise ValueError(
            "model must have one module with the inv_freq of its rotary positions, "
            f"{type(model).__name__} has {len(rotaries)}"
        )
    rotary = Rotary(rotaries[0].inv_freq)  # YaRN's factor would change no order of scores
    for attention in attentions:
        if attention.head_dim != 2 * len(rotary.inv_freq):
            raise ValueError(
                f"model must rotate its heads of {attention.head_dim} whole: partial rotary "
                f"positions, of {2 * len(rotary.inv_freq)}, are not supported"
            )
    return [_Layer(attention, rotary, position) for attention in attentions]


def _batches(text: Tensor | Iterable[Tensor], progress: bool) -> Iterator[Tensor]:
    """``(B, T)`` each, of not too many tokens unless a single row has more."""
    if isinstance(text, str):
        raise TypeError("text must be token ids, got str: call the tokenizer first")
    parts: Iterable[Tensor] = [text] if isinstance(text, Tensor) else text
    if isinstance(text, Tensor) and text.dim() == 2:
        parts = text.split(max(1, TOKENS_AT_ONCE // max(1, text.shape[1])))
    for part in _shown(parts) if progress else parts:
        ids = torch.as_tensor(part)
        if ids.dim() not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                "text must be token ids (B, T) or (T,), or an iterable of such, got "
                f"{tuple(ids.shape)} {ids.dtype}"
            )
        ids = ids.reshape(-1, ids.shape[-1])
        if ids.numel():
            yield from ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1]))


def _shown(parts: Iterable[Tensor]) -> Iterable[Tensor]:
    if find_spec("rich") is None:
        return parts
    from rich.console import Console
    from rich.progress import track

    total = len(parts) if isinstance(parts, Sized) else None
    return track(parts, "Reading the text", total, console=Console(stderr=True))
