"""The closed form is the optimum, and keeps what it must when queries and keys are changed."""

import pytest
import torch

from triselect.esa import calibrate
from triselect.esa.layout import fold

from .data import SMALL, error, integers, noise, scores, short_scores

RANKS = (1, 2, 4, 7, 10)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", range(3))
def test_no_map_of_that_rank_has_a_smaller_error(rank, seed):
    """Eckart and Young: the best matrix of rank r leaves the tail of the scores' own spectrum."""
    q, k = noise(200, seed=seed)
    spectrum = torch.linalg.svdvals(scores(q, k))
    assert spectrum[9] > 0.01 * spectrum[0]
    best = spectrum[rank:].square().sum().item()
    total = spectrum.square().sum().item()
    assert error(calibrate(q, k, dim=rank), q, k) == pytest.approx(best, rel=1e-6, abs=1e-9 * total)


@pytest.mark.parametrize("rank", RANKS[:-1])
def test_random_maps_and_small_changes_are_worse(rank):
    q, k = noise(100)
    best = calibrate(q, k, dim=rank)
    least = error(best, q, k)
    draw = torch.Generator().manual_seed(1)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(20):
            changed = best.to()
            for weight in (changed.query, changed.key):
                weight += size * weight.std() * torch.randn(weight.shape, generator=draw)
            assert error(changed, q, k) > least


@pytest.mark.parametrize("rank", RANKS[:-1])
def test_gradient_and_pca_are_worse(rank):
    """Biases and all, on the data that all of them see."""
    q, k = noise(500)
    errors = {
        method: error(calibrate(q, k, dim=rank, method=method), q, k)
        for method in ("closed_form", "pca", "gradient")
    }
    assert errors["closed_form"] < min(errors["pca"], errors["gradient"])


@pytest.mark.parametrize("rank", RANKS)
def test_centered_is_the_optimum_up_to_a_constant_for_each_query(rank):
    q, k = noise(200)
    k = k + 3 * torch.arange(k[0].numel()).view(k[0].shape)
    f = scores(q, k)
    spectrum = torch.linalg.svdvals(f - f.mean(1, keepdim=True))
    wrong = f - short_scores(calibrate(q, k, dim=rank, method="centered"), q, k)
    wrong = wrong - wrong.mean(1, keepdim=True)
    best = spectrum[rank:].square().sum().item()
    total = spectrum.square().sum().item()
    assert wrong.square().sum().item() == pytest.approx(best, rel=1e-5, abs=1e-8 * total)


def test_centered_keys_have_no_mean():
    q, k = noise(200)
    c = calibrate(q, k + 5, method="centered")
    short = fold(k + 5, 2) @ c.key.double().T + c.key_bias
    assert short.mean(0).abs().max() < 1e-5 * short.std()


@pytest.mark.parametrize("method", ["closed_form", "centered", "pca"])
def test_all_dimensions_are_exact(method):
    """Also for tokens that were not seen, up to a constant for each query where it is centered."""
    c = calibrate(*noise(200), method=method)
    assert c.dim == SMALL.width
    q, k = noise(50, seed=1)
    wrong = short_scores(c, q, k) - scores(q, k)
    if method == "centered":
        wrong = wrong - wrong.mean(1, keepdim=True)
    assert wrong.abs().max() < 1e-5 * scores(q, k).std()


def test_pca_is_that_of_the_keys():
    q, k = noise(300)
    k = k + 7  # the mean is no axis
    c = calibrate(q, k, dim=4, method="pca")
    assert torch.equal(c.query, c.key)
    torch.testing.assert_close(c.key @ c.key.T, torch.eye(4), rtol=0, atol=1e-6)
    rows = fold(k, 2)
    rows = rows - rows.mean(0)
    torch.testing.assert_close(
        (rows @ c.key.double().T).norm(dim=0), torch.linalg.svdvals(rows)[:4], rtol=1e-6, atol=0
    )


def test_folding_changes_no_score():
    q, k = noise(40)
    torch.testing.assert_close(fold(q, 2) @ fold(k, 2).T, scores(q, k), rtol=1e-12, atol=1e-12)


def rotated(x: torch.Tensor, position: float) -> torch.Tensor:
    """Rotary embedding at one position, as of the first half against the second."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos(), angle.sin()
    a, b = x.double().split(half, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def test_a_fixed_rotation_commutes_with_folding():
    q, _ = noise(40, SMALL._replace(head_dim=6))
    after = rotated(fold(q, 2).unflatten(1, (2, 6)), 4096.0).flatten(1)
    torch.testing.assert_close(fold(rotated(q, 4096.0), 2), after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", RANKS)
def test_rotating_queries_and_keys_alike_changes_no_score(rank):
    q, k = noise(300, SMALL._replace(head_dim=6))
    rq, rk = rotated(q, 100.0), rotated(k, 100.0)
    plain = short_scores(calibrate(q, k, dim=rank), q, k)
    turned = short_scores(calibrate(rq, rk, dim=rank), rq, rk)
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_scale(rank):
    """f grows with both, and so does its best approximation; powers of two are exact."""
    q, k = noise(200)
    c, scaled = calibrate(q, k, dim=rank), calibrate(q * 1024, k / 4, dim=rank)
    torch.testing.assert_close(scaled.query, c.query / 64, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(scaled.key, c.key * 64, rtol=1e-5, atol=1e-5)


def test_query_heads_belong_to_consecutive_groups():
    """Each head looks at one channel of its own: exact only if its keys are those of its group."""
    q = torch.zeros(6, 6, 5)
    for head in range(6):
        q[head, head, head % 5] = head + 1
    _, k = integers(50)
    c = calibrate(q, k)
    f = torch.stack([(h + 1) * k[:, h // 3, h % 5] for h in range(6)]).double()
    torch.testing.assert_close(short_scores(c, q, k), f, rtol=0, atol=1e-4)


CASES = {
    "fewer tokens than dimensions": lambda q, k: (q[:4], k[:3]),
    "one token": lambda q, k: (q[:1], k[:1]),
    "one query": lambda q, k: (q[:1], k),
    "constant channel": lambda q, k: (q, k.index_fill(2, torch.tensor([1]), 7.0)),
    "dead channel": lambda q, k: (q.index_fill(2, torch.tensor([3]), 0.0), k),
    "equal channels": lambda q, k: (q, k[:, :, [0, 1, 2, 0, 1]]),
    "equal tokens": lambda q, k: (q[:1].expand(50, -1, -1), k[:1].expand(9, -1, -1)),
    "keys of zero": lambda q, k: (q, torch.zeros_like(k)),
    "huge and tiny": lambda q, k: (q * 1e18, k * 1e-18),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["closed_form", "centered", "pca"])
def test_degenerate_data_are_exact_in_all_dimensions(case, method):
    q, k = CASES[case](*noise(100))
    c = calibrate(q, k, method=method)
    assert c.query.shape == c.key.shape == (SMALL.width, SMALL.width)
    f = scores(q, k)
    wrong = short_scores(c, q, k) - f
    if method == "centered":
        wrong = wrong - wrong.mean(1, keepdim=True)
    assert wrong.abs().max() <= 1e-5 * f.abs().max()


def test_rows_beyond_the_rank_are_zero():
    q, k = noise(100)
    c = calibrate(q, k[:3])
    assert c.query[:3].any(1).all()
    assert c.key[:3].any(1).all()
    assert not c.query[3:].any()
    assert not c.key[3:].any()
    assert not calibrate(q, torch.zeros_like(k)).key.any()
