"""token_confidence against softmax and max of float32 logits, and the same compiled."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops import token_confidence


def composed(logits: Tensor, score: str, drawn: bool) -> tuple[Tensor, Tensor]:
    """What people run: the probabilities of all tokens, and from them token and score."""
    p = logits.float().softmax(-1)
    if drawn:
        token = torch.multinomial(p, 1)
        return token[:, 0], p.gather(1, token)[:, 0]
    if score == "margin":
        two = p.topk(2)
        return two.indices[:, 0], two.values[:, 0] - two.values[:, 1]
    found = p.max(-1)
    if score == "neg_entropy":
        return found.indices, (p * (p + 1e-10).log()).sum(-1)
    return found.indices, found.values


def build(
    rows: int,
    tokens: int,
    dtype: torch.dtype,
    score: str,
    drawn: bool,
    device: str,
    compiler: str | None,
) -> Work:
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(rows, tokens, generator=generator, device=device).mul_(3).to(dtype)
        for _ in range(ROTATED)
    ]
    logits = inputs[0].clone()
    each = torch.arange(rows, device=device)
    options: dict[str, Any] = {"score": score}
    if drawn:
        options |= {"seed": each, "position": each, "step": each}

    calls: dict[str, Any] = {
        OURS: lambda: token_confidence(logits, **options),
        "eager": lambda: composed(logits, score, drawn),
    }
    unavailable = {}
    if compiler is None:
        unavailable["torch.compile"] = "not asked for"
    else:
        compiled = torch.compile(composed, backend=compiler, dynamic=False)
        calls["torch.compile"] = lambda: compiled(logits, score, drawn)

    def verify(provider: str, result: tuple[Tensor, ...]) -> None:
        p = logits.float().softmax(-1)
        token, number = result[0].long(), result[-1]
        if drawn:
            number = result[1]
            torch.testing.assert_close(number, p.gather(1, token[:, None])[:, 0])
            return
        assert torch.equal(p.gather(1, token[:, None])[:, 0], p.amax(-1))
        expected = token_confidence(logits, score=score, backend="eager").score
        torch.testing.assert_close(number, expected, rtol=1e-4, atol=1e-4)

    return Work(
        calls=calls,
        unavailable=unavailable,
        refresh=lambda i: logits.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=logits.nbytes + 36 * rows,
    )


def case(
    rows: int,
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    score: str = "max_prob",
    drawn: bool = False,
) -> Case:
    label = "drawn" if drawn else score
    sizes = {"rows": rows, "vocabulary": tokens}
    return Case(label, sizes, dtype, partial(build, rows, tokens, dtype, score, drawn))


CASES = [
    case(32, 152064),
    case(128, 126464),
    case(32, 152064, torch.float32),
    case(32, 152064, score="neg_entropy"),
    case(32, 152064, score="margin"),
    case(32, 152064, drawn=True),
    case(8, 152064),
    case(128, 32000),
    case(1, 152064),
    case(8, 32000, torch.float32),
    case(512, 152064),
]
TINY = [case(3, 300), case(2, 300, score="margin"), case(2, 300, torch.float32, drawn=True)]


def small(name: str, tokens: int, dtype: torch.dtype, score: str, drawn: bool) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randint, generator=generator)
        return [
            draw(-40, 40, (5, tokens)).to(dtype) / 8,
            draw(2, (5,)).bool(),
            *draw(2**31, (3, 5)).unbind(),
        ]

    def call(
        logits: Tensor,
        rows: Tensor,
        seed: Tensor,
        position: Tensor,
        step: Tensor,
        *,
        backend: str = "auto",
    ) -> Any:
        each = {"seed": seed, "position": position, "step": step} if drawn else {}
        return token_confidence(
            logits, score=score, mask_token=3, rows=rows, temperature=0.7, backend=backend, **each
        )

    return Small(name, inputs, call)


SMALL = [
    small("one piece", 300, torch.float32, "max_prob", False),
    small("pieces", 9000, torch.bfloat16, "margin", False),
    small("one piece, drawn", 300, torch.float16, "neg_entropy", True),
    small("pieces, drawn", 8500, torch.float32, "max_prob", True),
]
