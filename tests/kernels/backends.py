"""Where operators are tested: every backend on every device, inputs stored in every way."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from triselect.ops import backends, operator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
every_index_dtype = pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=dtype_name)


def sliced(x: Tensor) -> Tensor:
    """Every second row, every third column of something larger, full of what must not be read."""
    junk = torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
    wide = x.new_full([(2 + d) * size + 1 + d for d, size in enumerate(x.shape)], junk)
    view = wide[tuple(slice(1 + d, None, 2 + d) for d in range(x.dim()))]
    view.copy_(x)
    return view


def expanded(x: Tensor) -> Tensor:
    """Every token the first one: a stride of zero."""
    return x[:1].expand_as(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": sliced,
    "expanded": expanded,
    "narrow": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
}
SAME_VALUES = [name for name in LAYOUTS if name != "expanded"]


def stored(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with one keyword more, the layout of its first argument."""

    def call(first: Tensor, *args: Any, layout: str = "contiguous", **options: Any) -> Any:
        return function(LAYOUTS[layout](first), *args, **options)

    return call


class Backend(NamedTuple):
    """`function` by a backend on a device: takes tensors from the CPU, and returns them there."""

    function: Callable[..., Any]
    name: str
    device: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        args = tuple(self.put(value) for value in args)
        options = {name: self.put(value) for name, value in options.items()}
        return self._back(self.function(*args, backend=self.name, **options))

    def put(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _back(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            assert result.device.type == self.device
            return result.cpu()
        if result is None:
            return None
        back = map(self._back, result)
        return type(result)(*back) if hasattr(result, "_fields") else tuple(back)


def over_backends(function: Callable[..., Any], *operators: str) -> pytest.MarkDecorator:
    """Runs a test with `backend` each of those that `function` can name; it needs `operators`.

    Triton's interpreter is too slow for this: each test_triton.py has small cases of its own.
    """
    reason = missing_native(operators)
    # Without C++ kernels "auto" is eager: once is enough.
    places = [(name, "cpu") for name in ("native", "auto") + (() if reason else ("eager",))]
    if torch.cuda.is_available():
        places += [(name, "cuda") for name in ("eager", "triton", "auto")]
    parameters = []
    for name, device in places:
        marks = [pytest.mark.gpu] if device == "cuda" else []
        if name == "native" and reason:
            marks = [pytest.mark.skip(reason=reason)]
        backend = Backend(function, name, device)
        parameters.append(pytest.param(backend, id=f"{name}-{device}", marks=marks))
    return pytest.mark.parametrize("backend", parameters)


def missing_native(operators: tuple[str, ...]) -> str | None:
    """Why the native backend cannot run all of `operators`, or None where it can."""
    without = [name for name in operators if not operator.has_kernel(name, "CPU")]
    return backends.missing_native() or (
        f"the C++ extension has no kernel for {', '.join(without)}" if without else None
    )


def flat(result: Any) -> tuple[Tensor, ...]:
    """All tensors of a result, tuples in tuples undone."""
    if isinstance(result, Tensor):
        return (result,)
    return tuple(tensor for part in result for tensor in flat(part))


def assert_bits(got: Any, expected: Any) -> None:
    """The same shapes, dtypes and bits, NaN for NaN."""
    for mine, theirs in zip(flat(got), flat(expected), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[mine.itemsize]
        a, b = (t.detach().view(bits) for t in (mine, theirs))
        assert torch.equal(a, b)


def opcheck(
    name: str, args: tuple[Any, ...], backend: Backend, leaves: tuple[int, ...] = ()
) -> None:
    """PyTorch's own checks of an operator, in training where some arguments are `leaves`.

    The default overload, which knows no backend and no gradient, is looked at once.
    """
    overloads = getattr(torch.ops.triselect, name)
    args = tuple(map(backend.put, args))
    if not leaves and backend.name == "auto":
        torch.library.opcheck(overloads.default, args)
    for leaf in leaves:
        args[leaf].requires_grad_()
    torch.library.opcheck(overloads.backend, (*args, backend.name))
