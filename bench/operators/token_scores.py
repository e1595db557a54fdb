"""token_scores against scores by a matrix product, as one writes them in PyTorch.

Llama-3-8B: 32 query heads and 8 key heads of 128 numbers, compressed to 128. The caches of keys
take turns and are larger than what processors keep, as those of other layers come in between.
"""

from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops.compress import compress
from triselect.ops.token_scores import token_scores

HEADS, GROUPS, DIM = 32, 8, 128
KEPT = 64 * 2**20  # bytes, at least, between two reads of a key
MOST = 16  # caches
MATMUL = "torch.matmul"


def by_matmul(q: Tensor, k: Tensor, scale: Tensor | None) -> Tensor:
    """Queries times tokens in memory; keys of 8 bits become queries' dtype first."""
    if q.dim() == 4:
        q = q.unflatten(2, (k.shape[2], -1)).sum(3).flatten(2)
        k = k.flatten(2)
    f = (q @ k.to(q.dtype).mT).float()
    if scale is not None:
        f *= scale[:, None]
    return f[:, 0] if q.shape[1] == 1 else (f - f.amax(2, keepdim=True)).amax(1)


def build(
    dtype: torch.dtype,
    keys: torch.dtype | None,
    exact: bool,
    batch: int,
    chunk: int,
    tokens: int,
    device: str,
    compiler: str | None,
) -> Work:
    generator = torch.Generator().manual_seed(0)
    q_heads, k_heads = ((HEADS,), (GROUPS,)) if exact else ((), ())

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def cache() -> tuple[Tensor, Tensor | None]:
        k = numbers(batch, tokens, *k_heads, DIM)
        if keys is None:
            return k, None
        return compress(k[:, :, None], torch.eye(DIM).to(k), dtype=keys)

    q = numbers(batch, chunk, *q_heads, DIM)
    caches = [cache()]
    size = sum(t.nbytes for t in caches[0] if t is not None)
    copies = max(ROTATED, min(KEPT // size, MOST))
    caches += [cache() for _ in range(copies - 1)]
    queries = [numbers(*q.shape) for _ in caches]
    now = [*caches[0]]

    def refresh(i: int) -> None:
        """Writes on a device, where a graph reads what it was recorded with; else takes another."""
        q.copy_(queries[i % len(queries)])
        for j, new in enumerate(caches[i % len(caches)]):
            if new is None or device == "cpu":
                now[j] = new
            else:
                now[j].view(torch.int8).copy_(new.view(torch.int8))

    def of_next(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """On the CPU nobody writes between calls that are timed: each goes to the next cache."""
        turns = count()

        def next_call() -> Tensor:
            now[:] = caches[next(turns) % len(caches)]
            return call()

        return next_call if device == "cpu" else call

    if device != "cpu":
        now = [t if t is None else t.clone() for t in now]

    def scored(backend: str = "auto") -> Tensor:
        return token_scores(q, now[0], k_scale=now[1], backend=backend)

    def verify(provider: str, result: Tensor) -> None:
        floats = (t.float() if t.is_floating_point() else t for t in (q, now[0]))
        expected = by_matmul(*floats, now[1])
        rounded = 2.0**-6 if provider == MATMUL else 1e-5  # its products are, to q's dtype
        atol = rounded * float(expected.abs().amax())
        torch.testing.assert_close(result, expected, rtol=0, atol=atol)

    calls: dict[str, Callable[[], Tensor]] = {
        OURS: scored,
        "eager": partial(scored, "eager"),
        MATMUL: lambda: by_matmul(q, *now),
    }
    dots = batch * tokens * chunk * (1 if chunk == 1 else 2)
    return Work(
        calls={name: of_next(call) for name, call in calls.items()},
        unavailable={},
        refresh=refresh,
        verify=verify,
        bytes=q.nbytes + size + 4 * batch * tokens,
        flops=2 * dots * DIM * (GROUPS if exact else 1),
    )


def case(
    tokens: int,
    *,
    batch: int = 1,
    chunk: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    keys: torch.dtype | None = None,
    exact: bool = False,
) -> Case:
    label = "all heads" if exact else "keys of int8" if keys else "compressed"
    sizes = {"batch": batch, "queries": chunk, "tokens": tokens}
    return Case(label, sizes, dtype, partial(build, dtype, keys, exact, batch, chunk, tokens))


CASES = [
    case(131072),
    case(65536, chunk=512),
    case(131072, keys=torch.int8),
    case(16384, batch=16),
    case(262144),
    case(32768, exact=True),
    case(32768),
]
TINY = [case(64), case(64, chunk=3, keys=torch.int8)]


def small(name: str, chunk: int, heads: tuple[int, int] | None = None, size: int = 0) -> Small:
    """Integers, which leave nothing to round; with 8-bit keys in blocks of that size, if any."""
    batch, tokens, dim = 2, 150, 24
    q_heads, k_heads = ((), ()) if heads is None else ((heads[0],), (heads[1],))
    rows = (batch * tokens // size + 2, size) if size else (batch, tokens)

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randint, generator=generator)
        given = [
            draw(-2, 3, (batch, chunk, *q_heads, dim)).half(),
            draw(-2, 3, (*rows, *k_heads, dim)).half(),
            draw(10, (batch,)),
            draw(tokens // 2, tokens, (batch,)),
            draw(chunk + 1, (batch,)),
        ]
        if size:
            given[1] = given[1].to(torch.int8)
            given.append(2.0 ** draw(-2, 3, rows))
            given.append(draw(-1, len(given[1]), (batch, tokens // size)).int())
        return given

    def call(
        q: Tensor,
        k: Tensor,
        start: Tensor,
        end: Tensor,
        number: Tensor,
        k_scale: Tensor | None = None,
        block_table: Tensor | None = None,
        *,
        backend: str = "auto",
    ) -> Tensor:
        return token_scores(
            q,
            k,
            k_scale=k_scale,
            start=start,
            end=end,
            num_queries=number,
            block_table=block_table,
            backend=backend,
        )

    return Small(name, inputs, call)


SMALL = [
    small("one query", 1),
    small("one query of all heads", 1, (6, 3)),
    small("one query, 8 bits in blocks", 1, size=15),
    small("a chunk", 140),
    small("a chunk of all heads", 5, (6, 3)),
    small("a chunk, 8 bits in blocks", 20, size=15),
]
