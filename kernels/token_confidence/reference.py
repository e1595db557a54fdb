"""What a model would write at each position, and how sure it is of it, in NumPy: the meaning.

With z = logits / temperature of a row, without the mask token's:

    token = argmax of z (ties: the lowest)             greedy, where there is no seed
          | argmax of z + noise, noise = -log(-log(1 - u))      sampled: softmax(z), exactly
    p     = softmax(z)
    prob  = p[token]
    score = prob | margin: largest p - second largest p | negative entropy: sum of p * log(p)

u = (bits + 1/2) / 2**32 with the bits of Philox4x32-10 (Salmon et al. 2011) under the key `seed`:
word token % 4 of counter (token // 4, position, step, 0). It depends on nothing else: not on the
row, the branch, or the device that holds this part of the vocabulary.

One pass suffices. A part of the vocabulary is summed up in six numbers,

    m   the largest z             t   sum of exp(z - m) * (z - m)     g  of the token: z + noise,
    s   sum of exp(z - m)         m2  the second largest z               or its logit if greedy
                                                                      z  of the token

of which those of the whole follow in any grouping (`merge`); then, with lse = m + log(s),

    prob = exp(z - lse)    margin = (1 - exp(m2 - m)) / s    negative entropy = t / s - log(s)

A row with NaN or +inf, or with nothing above -inf, is the least confident there is: prob 0, score
-inf; in the choice of its token NaN counts as -inf. So is a row that is not asked for, its token
-1.
"""

import numpy as np

SCORES = ("max_prob", "margin", "neg_entropy")
ROUNDS = 10


def token_confidence(
    logits, rows, seed, position, step, temperatures, temperature, score, mask_token, first_token
):
    """Token ``(R,)`` int32, prob and score ``(R,)``, and the six numbers ``(R, 6)``.

    `rows` ``(R,)`` bool says which are asked for; seed, position, step ``(R,)`` are None or
    integers; `temperatures` ``(R,)``, if any, stand for the one. The logits are those of the tokens
    from `first_token` on.
    """
    if temperatures is not None:
        temperature = temperatures.astype(np.float64)[:, None]
    token, parts = part(logits, rows, seed, position, step, temperature, mask_token, first_token)
    return token, *finish(parts, score), parts


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def part(logits, rows, seed, position, step, temperature, mask_token, first_token):
    ids = first_token + np.arange(logits.shape[1])
    x = logits.astype(np.float64)[:, ids != mask_token]
    z = x / temperature
    ids = ids[ids != mask_token]
    # Greedy: the logits themselves, which are in the order of z without its rounding.
    key = x if seed is None else z + noise(seed, position, step, ids)
    key = np.where(np.isnan(key), -np.inf, key)
    chosen = np.argmax(key, axis=1)

    at = np.arange(len(z)), chosen
    top2 = np.sort(np.where(np.isnan(z), -np.inf, z), axis=1)[:, ::-1]
    m = top2[:, 0]
    m2 = top2[:, 1] if z.shape[1] > 1 else np.full(len(z), -np.inf)
    d = z - m[:, None]
    e = np.where(z == -np.inf, 0.0, np.exp(d))
    parts = np.stack([m, e.sum(1), np.where(e == 0, 0.0, e * d).sum(1), m2, key[at], z[at]], axis=1)
    token = ids[chosen].astype(np.int32)
    if rows is not None:
        token[~rows] = -1
        parts[~rows] = [-np.inf, 0, 0, -np.inf, -np.inf, -np.inf]
    return token, parts


@np.errstate(invalid="ignore")
def merge(token_a, a, token_b, b):
    """Token and numbers of two parts of a vocabulary taken together."""
    m = np.maximum(a[:, 0], b[:, 0])
    s, t = np.zeros(len(m)), np.zeros(len(m))
    for m_i, s_i, t_i in (a[:, :3].T, b[:, :3].T):
        d = np.where(m_i == -np.inf, 0.0, m_i - m)
        weight = np.where(m_i == -np.inf, 0.0, np.exp(d))
        s += weight * s_i
        t += weight * (t_i + s_i * d)
    m2 = np.sort([a[:, 0], a[:, 3], b[:, 0], b[:, 3]], axis=0)[-2]
    first = (a[:, 4] > b[:, 4]) | ((a[:, 4] == b[:, 4]) & (token_a <= token_b))
    chosen = np.where(first[:, None], a[:, 4:], b[:, 4:])
    return np.where(first, token_a, token_b), np.column_stack([m, s, t, m2, chosen])


@np.errstate(invalid="ignore", divide="ignore")
def finish(parts, score):
    """prob and score ``(R,)`` of the six numbers of whole rows."""
    m, s, t, m2, _, z = parts.T
    sure = np.isfinite(m) & np.isfinite(s) & (s > 0)
    prob = np.where(sure, np.exp(z - m) / s, 0.0)
    match score:
        case "max_prob":
            found = prob
        case "margin":
            found = (1 - np.exp(m2 - m)) / s
        case "neg_entropy":
            found = t / s - np.log(s)
    return prob, np.where(sure, found, -np.inf)


def noise(seed, position, step, tokens):
    """Gumbel noise ``(R, len(tokens))``."""
    word = tokens // 4, np.expand_dims(position, 1), np.expand_dims(step, 1), 0
    bits = philox(word, np.expand_dims(seed, 1))
    u = (np.choose(tokens % 4, bits) + 0.5) / 2**32
    return -np.log(-np.log1p(-u))


def philox(counter, key):
    """Philox4x32-10: four words of a counter of four under a key of 64 bits, all uint32."""
    low = np.uint64(0xFFFFFFFF)
    x0, x1, x2, x3 = (np.asarray(word).astype(np.uint64) & low for word in counter)
    key = np.asarray(key).astype(np.uint64)
    k0, k1 = key & low, key >> np.uint64(32)
    for _ in range(ROUNDS):
        a, b = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & low, (a >> 32) ^ x3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return x0, x1, x2, x3
