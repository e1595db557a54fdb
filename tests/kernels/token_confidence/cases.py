"""What the tests of token_confidence feed it: logits of every kind, and backends."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.token_confidence import reference

from triselect.ops import partial_confidence, token_confidence
from triselect.ops.token_confidence import SCORES

from ..backends import over_backends, stored

every_backend = over_backends(stored(token_confidence), "token_confidence")
every_partial = over_backends(stored(partial_confidence), "token_confidence")
every_score = pytest.mark.parametrize("score", SCORES)


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return 3 * rng.standard_normal(n)


def confident(rng: np.random.Generator, n: int) -> np.ndarray:
    x = normal(rng, n)
    x[rng.integers(n)] = 30
    return x


def tied(rng: np.random.Generator, n: int) -> np.ndarray:
    """Few values: the largest is there many times, and so is the second."""
    return rng.integers(-3, 3, n) * 0.5


def some(value: float):
    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        x = normal(rng, n)
        x[rng.random(n) < 0.3] = value
        return x

    return draw


KINDS = {
    "normal": normal,
    "confident": confident,
    "tied": tied,
    "all equal": lambda rng, n: np.full(n, -3.5),
    "zeros": lambda rng, n: rng.choice([0.0, -0.0], n),
    "ascending": lambda rng, n: np.sort(normal(rng, n)),
    "descending": lambda rng, n: -np.sort(normal(rng, n)),
    "far apart": lambda rng, n: 1000 * rng.standard_normal(n),
    "some -inf": some(-np.inf),
    "nothing but -inf": lambda rng, n: np.full(n, -np.inf),
    "some inf": some(np.inf),
    "some nan": some(np.nan),
    "nothing but nan": lambda rng, n: np.full(n, np.nan),
    "nan or -inf": lambda rng, n: rng.choice([np.nan, -np.inf], n),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
UNSURE = ("nothing but -inf", "nothing but nan", "nan or -inf")


def logits_of(
    rng: np.random.Generator,
    rows: int,
    tokens: int,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    x = np.array([KINDS[kind](rng, tokens) for _ in range(rows)], np.float32)
    return torch.from_numpy(x.reshape(rows, tokens)).to(dtype)


def draws(rng: np.random.Generator, rows: int) -> dict[str, Tensor]:
    """Seeds of all 64 bits; positions and steps of 32."""
    return {
        "seed": torch.from_numpy(rng.integers(-(2**63), 2**63, rows)),
        "position": torch.from_numpy(rng.integers(0, 2**32, rows)),
        "step": torch.from_numpy(rng.integers(0, 2**32, rows)),
    }


def expected(
    logits: Tensor,
    score: str = "max_prob",
    temperature: float | Tensor = 1.0,
    mask_token: int = -1,
    first_token: int = 0,
    **per_row: Tensor,
) -> tuple[np.ndarray, ...]:
    arrays = {name: value.numpy() for name, value in per_row.items()}
    seed, position, step = (arrays.get(name) for name in ("seed", "position", "step"))
    return reference.token_confidence(
        logits.float().numpy(),
        arrays.get("rows"),
        seed,
        position,
        step,
        *((temperature.numpy(), 1.0) if isinstance(temperature, Tensor) else (None, temperature)),
        score,
        mask_token,
        first_token,
    )


def keys_of(
    logits: Tensor, temperature: float | Tensor, mask_token: int, **draw: Tensor
) -> np.ndarray:
    """What drawn tokens are chosen by, of all tokens."""
    ids = np.arange(logits.shape[1])
    drawn = (draw[name].numpy() for name in ("seed", "position", "step"))
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None].double()
    z = (logits.double() / temperature).numpy()
    z[:, ids == mask_token] = -np.inf
    return np.where(np.isnan(z), -np.inf, z) + reference.noise(*drawn, ids)


def assert_confident_as_the_reference(got: Any, logits: Tensor, **options: Any) -> None:
    """Greedy tokens exactly; a drawn one may be another where their keys are that close."""
    token, prob, score, _ = expected(logits, **options)
    assert [x.dtype for x in got] == [torch.int32, torch.float32, torch.float32]
    other = got.token.numpy() != token
    if "seed" in options and other.any():
        draw = {name: options[name] for name in ("seed", "position", "step")}
        keys = keys_of(
            logits, options.get("temperature", 1.0), options.get("mask_token", -1), **draw
        )
        r = np.flatnonzero(other)
        best, mine = keys[r, token[r]], keys[r, got.token.numpy()[r]]
        assert (best - mine <= 1e-5 + 1e-6 * np.abs(best)).all()
        keep = ~other
        got, prob, score = [x[keep] for x in got], prob[keep], score[keep]
    else:
        np.testing.assert_array_equal(got.token, token)
    np.testing.assert_allclose(got[1], prob, rtol=3e-5, atol=2e-6)
    np.testing.assert_allclose(got[2], score, rtol=3e-5, atol=5e-6)
