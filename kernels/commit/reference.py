"""A round of LoPA behind the model, in NumPy: the meaning.

The model predicted (token, prob, score) for every branch. Branch j, with n_j positions still open,
is worth

    mean               mean of score over them                        (LoPA, equation 2)
    lowest             mean of the max(1, floor(ratio * n_j)) lowest scores of them
    count              how many have prob > threshold, and 1 for a lookahead's own token
    log_prob           sum of log(prob) over them, and log(prob) of the lookahead's own token
    information_gain   mean of score, and the score of the lookahead's own token
    common_mean        mean of score over positions open in all branches; 0 if there are none

where prob and score of a lookahead's own token are those that it was spawned by. A branch with
nothing open is worth +inf, one that was not spawned -inf, and so is one worth NaN. Sums are in
float64, rounded once. Of those spawned the branch worth most wins, of equal ones the first, which
is the anchor; `released` rounds the worth to bfloat16 and puts the anchor last, as the published
code does.

The winner's tokens and predictions become the sequence's: no logits are kept. Where the model's
rows are shifted, row i predicts position i + 1 of the window, and the first keeps what was
predicted before: its row is frozen.
"""

import numpy as np

RULES = ("mean", "lowest", "count", "log_prob", "information_gain", "common_mean")


def commit(
    tokens,
    token,
    prob,
    score,
    filled_at,
    filled_by,
    step,
    start,
    branch,
    is_open,
    extra,
    new_token,
    new_prob,
    new_score,
    worth,
    rule,
    ratio,
    threshold,
    shift,
    released,
):
    """The state after the round: see the public function. `worth` ``(B, k + 1)`` is as given, or
    None. The first six are ``(B, G)``, branches ``(B, k + 1, W)``.
    """
    tokens, token, prob, score, filled_at, filled_by = (
        np.copy(x) for x in (tokens, token, prob, score, filled_at, filled_by)
    )
    batch, rows, window = branch.shape
    new_token, new_prob, new_score = (
        x.reshape(branch.shape) for x in (new_token, new_prob, new_score)
    )
    winner = np.zeros(batch, np.int32)
    values = np.zeros((batch, rows), np.float32)
    order = [*range(1, rows), 0] if released else list(range(rows))
    for b in range(batch):
        here = slice(start[b], min(start[b] + window, tokens.shape[1]))
        size = here.stop - here.start
        guess = [
            np.concatenate([old[b, here][:shift], new[b, j, : max(0, size - shift)]])
            for j in range(rows)
            for old, new in ((token, new_token), (prob, new_prob), (score, new_score))
        ]
        tokens_j, prob_j, score_j = guess[::3], guess[1::3], guess[2::3]
        live = [j for j in range(rows) if j == 0 or extra[b, j] >= 0]
        common = np.logical_and.reduce([is_open[b, j, :size] for j in live])
        for j in range(rows):
            values[b, j] = -np.inf
            if j in live:
                values[b, j] = (
                    value(
                        prob_j[j].astype(np.float64),
                        score_j[j].astype(np.float64),
                        is_open[b, j, :size],
                        common,
                        (prob[b, extra[b, j]], score[b, extra[b, j]]) if j else None,
                        rule,
                        ratio,
                        threshold,
                    )
                    if worth is None
                    else worth[b, j]
                )
        values[b] = np.where(np.isnan(values[b]), -np.inf, values[b])
        if released:
            values[b] = to_bfloat16(values[b])
        spawned = [j for j in order if j in live]
        j = winner[b] = spawned[np.argmax(values[b][spawned])]

        new = branch[b, j, :size] != tokens[b, here]
        filled_at[b, here][new] = step[b]
        own = new & (np.arange(here.start, here.stop) == extra[b, j])
        filled_by[b, here][new] = np.where(own, j, 0)[new]
        tokens[b, here] = branch[b, j, :size]
        some = is_open[b, j, :size]
        token[b, here] = np.where(some, tokens_j[j], -1)
        prob[b, here] = np.where(some, prob_j[j], 0)
        score[b, here] = np.where(some, score_j[j], -np.inf)
    return tokens, token, prob, score, filled_at, filled_by, winner, values


@np.errstate(divide="ignore", invalid="ignore")
def value(prob, score, some, common, own, rule, ratio, threshold):
    """What a branch is worth. `own` has prob and score of a lookahead's own token."""
    p, c = prob[some], score[some]
    if not len(c):
        return np.inf
    match rule:
        case "mean":
            return c.mean()
        case "lowest":
            return np.sort(c)[: max(1, int(ratio * len(c)))].mean()
        case "count":
            return np.sum(p > np.float32(threshold)) + (own is not None)
        case "log_prob":
            return np.log(p).sum() + (np.log(np.float64(own[0])) if own else 0)
        case "information_gain":
            return c.mean() + (own[1] if own else 0)
        case "common_mean":
            return score[common].mean() if common.any() else 0.0


def to_bfloat16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    near = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), near.view(np.float32), x)
