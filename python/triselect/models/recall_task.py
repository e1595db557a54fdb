"""Questions about a noisy context: which value stood behind a key, how often did a mark occur.

A context starts with token 0 and is noise, but for its needles. Questions follow it, with their
answers, so that all can be read at once:

=========  =================================  =====================================
kind       needles, at random places          questions
=========  =================================  =====================================
``value``  key, value                         key, **value**
``values``  key, four values                  key, **value, value, value, value**
``count``  a mark, 1 to 6 times               mark, **number**
=========  =================================  =====================================
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Kind = Literal["value", "values", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The vocabulary: the first token of a context, then
KEYS, VALUES, NOISE, MARKS, NUMBERS = 64, 64, 32, 8, 6
FIRST_KEY = 1
FIRST_VALUE = FIRST_KEY + KEYS
FIRST_NOISE = FIRST_VALUE + VALUES
FIRST_MARK = FIRST_NOISE + NOISE
FIRST_NUMBER = FIRST_MARK + MARKS  # one occurrence
VOCABULARY = FIRST_NUMBER + NUMBERS

VALUE_TOKENS: dict[Kind, int] = {"value": 1, "values": 4}
# At most so many keys or marks in a context, in the training and unless told otherwise.
NEEDLES: dict[Kind, int] = {"value": 16, "values": 8, "count": 4}


class Episodes(NamedTuple):
    """Contexts with questions and answers, all of one kind, and where the answers stand.

    ``tokens (B, T)``: context, questions and answers. ``asked (A,)``: the positions in `tokens` at
    which an answer's token is to be foretold: ``logits[:, asked].argmax(-1)`` against
    ``answers (B, A)``. ``needles (B, A, N)``: the positions in the context that say so, -1 for
    none: that of the value's token, or those of the mark. All int64.
    """

    tokens: Tensor
    asked: Tensor
    answers: Tensor
    needles: Tensor


def most_needles(length: int, kind: Kind) -> int:
    """Keys or marks that a context of `length` tokens has by default: half of it stays noise."""
    size = 2 if kind == "count" else 1 + VALUE_TOKENS[kind]
    return max(1, min(NEEDLES[kind], (length - 1) // (2 * size)))


def episodes(
    seed: int,
    count: int,
    length: int,
    kind: Kind = "value",
    *,
    needles: int | None = None,
    questions: int | None = None,
) -> Episodes:
    """Draw contexts with their questions; the same for the same arguments.

    Parameters
    ----------
    seed : int
    count : int
        Contexts, ``B``.
    length : int
        Tokens of a context, without questions.
    kind : {"value", "values", "count"}
        What is asked, see the module.
    needles : int, optional
        Different keys or marks in a context. By default 16, 8 and 4, fewer where the context is
        short.
    questions : int, optional
        How many of them are asked, each once, in random order. By default all.

    Returns
    -------
    Episodes

    Raises
    ------
    ValueError
        Unknown kind, or more needles or questions than there can be.

    Examples
    --------
    >>> drawn = episodes(0, 2, 12, "value", needles=2)
    >>> drawn.tokens.shape, drawn.asked
    (torch.Size([2, 16]), tensor([12, 14]))
    >>> torch.equal(drawn.tokens.gather(1, drawn.needles[:, :, 0]), drawn.answers)
    True
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    names = MARKS if kind == "count" else KEYS
    size = 1 if kind == "count" else 1 + VALUE_TOKENS[kind]
    needles = most_needles(length, kind) if needles is None else needles
    if not 1 <= needles <= min(names, (length - 1) // size):
        raise ValueError(
            f"needles must be between 1 and {min(names, (length - 1) // size)} in {length} tokens, "
            f"got {needles}"
        )
    questions = needles if questions is None else questions
    if not 1 <= questions <= needles:
        raise ValueError(f"questions must be between 1 and {needles} needles, got {questions}")

    generator = torch.Generator().manual_seed(seed)
    context = torch.randint(FIRST_NOISE, FIRST_NOISE + NOISE, (count, length), generator=generator)
    context[:, 0] = 0
    name = _distinct(count, names, needles, generator)
    if kind == "count":
        said, answers, places = _hide_marks(context, name, generator)
    else:
        said, answers, places = _hide_pairs(context, name, VALUE_TOKENS[kind], generator)
    # Needles stand in the context in the order of their index: they are asked in any.
    order = _distinct(count, needles, questions, generator)
    said, answers, places = (
        x[torch.arange(count)[:, None], order] for x in (said, answers, places)
    )
    asking = torch.cat([said[:, :, None], answers], 2)  # (B, questions, 1 + tokens of an answer)
    at = length + torch.arange(asking[0].numel()).view(questions, -1)
    return Episodes(
        torch.cat([context, asking.flatten(1)], 1),
        at[:, :-1].flatten(),
        answers.flatten(1),
        places.flatten(1, 2),
    )


def _distinct(rows: int, of: int, many: int, generator: torch.Generator) -> Tensor:
    """``(rows, many)`` different numbers below `of`, in random order."""
    return torch.rand(rows, of, generator=generator).argsort(1)[:, :many]


def _hide_pairs(
    context: Tensor, name: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Write keys ``(B, P)`` with values behind them into the context, one after the other.

    Returns the keys, their values ``(B, P, size)``, and where those are ``(B, P, size, 1)``.
    """
    count, pairs = name.shape
    keys = FIRST_KEY + name
    values = torch.randint(
        FIRST_VALUE, FIRST_VALUE + VALUES, (count, pairs, size), generator=generator
    )
    # Places among noise tokens and pairs, as if these were of one token; `size` more follow each.
    slots = context.shape[1] - 1 - pairs * size
    start = _distinct(count, slots, pairs, generator).sort(1).values
    start += 1 + size * torch.arange(pairs)
    places = start[:, :, None] + torch.arange(1 + size)
    context.scatter_(1, places.flatten(1), torch.cat([keys[:, :, None], values], 2).flatten(1))
    return keys, values, places[:, :, 1:, None]


def _hide_marks(
    context: Tensor, name: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Write each of the marks ``(B, P)`` into the context, from once to as often as fits.

    Returns the marks, their numbers ``(B, P, 1)``, and where they are ``(B, P, 1, most)``.
    """
    count, length = context.shape
    marks = FIRST_MARK + name
    most = min(NUMBERS, max(1, (length - 1) // (2 * name.shape[1])))
    often = torch.randint(1, most + 1, name.shape, generator=generator)
    places = 1 + _distinct(count, length - 1, name.shape[1] * most, generator)
    places = places.unflatten(1, (-1, most))
    written = torch.arange(most) < often[:, :, None]
    tokens = torch.where(
        written, marks[:, :, None], context.gather(1, places.flatten(1)).view_as(places)
    )
    context.scatter_(1, places.flatten(1), tokens.flatten(1))
    return marks, FIRST_NUMBER + often[:, :, None] - 1, places.where(written, -1)[:, :, None]
