"""Tokens and their confidence in plain PyTorch: any device, no synchronisation."""

import torch
from torch import Tensor

LOW = 0xFFFFFFFF


def token_confidence(
    logits: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    position: Tensor | None,
    step: Tensor | None,
    temperatures: Tensor | None,
    temperature: float,
    score: str,
    mask_token: int,
    first_token: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(R,)`` token, prob and score, and the six numbers ``(R, 6)`` of the reference."""
    count = logits.shape[1]
    mask = mask_token - first_token
    x = logits.to(torch.float32, copy=True)
    if 0 <= mask < count:
        x[:, mask] = -torch.inf
    clean = x.masked_fill(x.isnan(), -torch.inf)
    top, second = clean.topk(2).values.unbind(1)  # which of equals it takes shows in nothing
    if temperatures is None:
        scale = logits.new_full((1,), 1 / temperature, dtype=torch.float32)
    else:
        scale = temperatures.reciprocal()
    if seed is None:
        key = clean
    else:
        assert position is not None
        assert step is not None
        key = clean * scale[:, None] + noise(seed, position, step, first_token, count)
    chosen = key.argmax(1, keepdim=True)  # of equals the first
    key = key.gather(1, chosen)[:, 0]
    chosen = chosen.masked_fill(key[:, None] == -torch.inf, int(mask == 0))

    d = (x - top.masked_fill(top == -torch.inf, 0)[:, None]) * scale[:, None]
    e = d.exp()
    weighted = (e * d).masked_fill(e == 0, 0)
    z = clean.gather(1, chosen)[:, 0] * scale
    parts = torch.stack((top * scale, e.sum(1), weighted.sum(1), second * scale, key, z), 1)
    token = (chosen[:, 0] + first_token).int()
    if rows is not None:
        nothing = parts.new_tensor([-torch.inf, 0, 0, -torch.inf, -torch.inf, -torch.inf])
        token = torch.where(rows, token, -1)
        parts = torch.where(rows[:, None], parts, nothing)
    return token, *finish(parts, score), parts


def merge(token_a: Tensor, a: Tensor, token_b: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Token and numbers of two parts of a vocabulary taken together."""
    m = torch.maximum(a[:, 0], b[:, 0])
    s = t = torch.zeros_like(m)
    for m_i, s_i, t_i in (a[:, :3].unbind(1), b[:, :3].unbind(1)):
        nothing = m_i == -torch.inf
        d = (m_i - m).masked_fill(nothing, 0)
        weight = d.exp().masked_fill(nothing, 0)
        s = s + weight * s_i
        t = t + torch.where(weight == 0, weight * t_i, weight * (t_i + s_i * d))
    second = torch.maximum(torch.minimum(a[:, 0], b[:, 0]), torch.maximum(a[:, 3], b[:, 3]))
    first = (a[:, 4] > b[:, 4]) | ((a[:, 4] == b[:, 4]) & (token_a <= token_b))
    chosen = torch.where(first[:, None], a[:, 4:], b[:, 4:])
    parts = torch.cat((torch.stack((m, s, t, second), 1), chosen), 1)
    return torch.where(first, token_a, token_b), parts


def finish(parts: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """prob and score ``(R,)`` of the six numbers of whole rows."""
    m, s, t, second, _, z = parts.unbind(1)
    sure = m.isfinite() & s.isfinite() & (s > 0)
    prob = torch.where(sure, (z - m).exp() / s, 0)
    if score == "max_prob":
        found = prob
    elif score == "margin":
        found = -(second - m).expm1() / s
    else:
        found = t / s - s.log()
    return prob, torch.where(sure, found, -torch.inf)


def noise(seed: Tensor, position: Tensor, step: Tensor, first: int, count: int) -> Tensor:
    """Gumbel noise ``(R, count)`` of the tokens from `first` on: -log(-log(1 - u)) with
    u = (bits + 1/2) / 2**32.
    """
    groups = torch.arange(first // 4, (first + count + 3) // 4, device=seed.device)
    words = philox(groups, position[:, None], step[:, None], seed[:, None])
    bits = torch.stack(words, 2).flatten(1)[:, first % 4 : first % 4 + count]
    # Of u and 1 - u, the small one keeps all its digits.
    u, left = (((b >> 16) * 65536.0 + ((b & 0xFFFF) + 0.5)) / 2**32 for b in (bits, LOW - bits))
    return -torch.where(u < 0.5, -torch.log1p(-u), -left.log()).log()


def philox(c0: Tensor, c1: Tensor, c2: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 of counters (c0, c1, c2, 0): four words, as int64 without a sign.

    Products wrap around at 64 bits, which leaves both halves right.
    """
    x0, x1, x2, x3 = c0, c1 & LOW, c2 & LOW, torch.zeros_like(c0)
    k0, k1 = key & LOW, (key >> 32) & LOW
    for _ in range(10):
        a, b = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x2 = ((b >> 32) & LOW) ^ x1 ^ k0, ((a >> 32) & LOW) ^ x3 ^ k1
        x1, x3 = b & LOW, a & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return torch.broadcast_tensors(x0, x1, x2, x3)
