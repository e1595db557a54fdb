"""Registration of an operator with PyTorch: one name, two overloads.

The default overload is chosen by the dispatcher alone and has no autograd: inference. The overload
``.backend`` takes a backend's name at the end, also "auto", and is what autograd is registered for.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triselect.ops import backends

LIBRARY = torch.library.Library("triselect", "FRAGMENT")
LARGEST_INT32 = 2**31 - 1
INTEGERS = (int, torch.SymInt)  # symbolic where torch.compile makes them so
Tensors = Tensor | tuple[Tensor, ...] | None


class Operator(NamedTuple):
    """Both overloads: `auto` by device, `named` with a backend's name as the last argument."""

    auto: Any
    named: Any
    name: str

    def differentiable(self, backward: Callable[..., Any], setup_context: Callable) -> None:
        """Register the gradient of `named`."""
        torch.library.register_autograd(
            f"triselect::{self.name}.backend", backward, setup_context=setup_context, lib=LIBRARY
        )


def define(
    name: str,
    arguments: str,
    returns: str,
    fake: Callable[..., Tensors],
    *,
    room: str = "",
    check: Callable[..., None] = lambda *args: None,
    mutated: Sequence[int] = (),
) -> Operator:
    """Define an operator over the function `name` of each backend in ``kernels/<room or name>``.

    `arguments` and `returns` are those of its schema; `fake` makes empty outputs. `check` raises
    ValueError on values that no kernel may see; it runs where looking at them does not wait for a
    device. The C++ kernels look for themselves, in passing. Where arguments are `mutated`, by
    position, nothing is returned, and the reference returns what they become.
    """
    room = f"triselect.kernels.{room or name}"

    def kernel(backend: str, args: Sequence) -> Callable[..., Any]:
        if _device(args).type == "cpu":
            check(*args)
        return _function(room, backend, name)

    def eager(*args: Any) -> Tensors:
        found: Tensors = kernel("eager", args)(*args)
        return found

    def triton(*args: Any) -> Tensors:
        found: Tensors = kernel("triton", args)(*args)
        return found

    def reference(*args: Any) -> Tensors:
        found = kernel("reference", args)(*map(_numpy, args))
        if mutated:
            for i, new in zip(mutated, found, strict=True):
                if args[i] is not None:
                    args[i].copy_(_tensor(new, args[i]))
            return None
        like = fake(*args)
        assert like is not None
        if isinstance(like, Tensor):
            return _tensor(found, like)
        return tuple(map(_tensor, found, like))

    def by_name(*args: Any) -> Tensors:
        *args, backend = args  # type: ignore[assignment]
        backends.require(backend, _device(args))
        match backend:
            case "reference":
                return reference(*args)
            case "eager":
                return eager(*args)
            case "triton":
                return triton(*args)
            case "native" if not has_kernel(name, "CPU"):
                raise backends.BackendUnavailable(f"backend 'native' has no kernel for {name}")
            case _:  # "auto", and "native", which is what the dispatcher has for CPU tensors
                found: Tensors = overloads.default(*args)
                return found

    LIBRARY.define(f"{name}({arguments}) -> {returns}")
    LIBRARY.define(f"{name}.backend({arguments}, str backend) -> {returns}")
    overloads = getattr(torch.ops.triselect, name)
    LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}.backend", by_name, "CompositeExplicitAutograd")
    if backends.triton_installed():
        LIBRARY.impl(name, triton, "CUDA")
    torch.library.register_fake(f"triselect::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(
        f"triselect::{name}.backend", lambda *args: fake(*args[:-1]), lib=LIBRARY
    )
    return Operator(overloads.default, overloads.backend, name)


def has_kernel(name: str, dispatch_key: str) -> bool:
    """Whether the dispatcher has a kernel of its own for "CPU" or "CUDA" tensors."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"triselect::{name}", dispatch_key))


def must_be_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, INTEGERS):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def must_be_in_range(name: str, values: Tensor, low: int, high: int, meaning: str) -> None:
    """Raises ValueError unless all of `values` are; waits for the device that they are on."""
    if not values.numel():
        return
    least, most = (int(bound) for bound in values.aminmax())
    if least < low or most > high:
        raise ValueError(
            f"{name} must be between {low} and {high} ({meaning}), "
            f"got values from {least} to {most}"
        )


def _device(args: Sequence) -> torch.device:
    return next(a.device for a in args if isinstance(a, Tensor))


@cache
def _function(room: str, backend: str, name: str) -> Callable[..., Any]:
    # Here, not at the top: a backend is imported when it is first used.
    found: Callable[..., Any] = getattr(import_module(f"{room}.{backend}"), name)
    return found


def _numpy(value: Any) -> Any:
    """Tensors as arrays: floating-point ones in float32, which holds all that they may be."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    whole = np.ascontiguousarray(array).reshape(np.shape(array))  # it makes a number a vector
    return torch.from_numpy(whole).to(like.device, like.dtype)


backends.missing_native()  # loads the extension where it was built: it registers itself for CPU
