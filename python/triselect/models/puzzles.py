"""Puzzles that a small masked diffusion model can learn, and whose answers can be checked.

===========  =======================================  ==========================================
kind         prompt                                   answer
===========  =======================================  ==========================================
``latin``    a 6 × 6 square of which 10 to 16 cells   the square filled in: in every row and
             are given                                column each number once (often in many ways)
``letters``  24 letters                               those that occur, each once, in the order of
                                                      the alphabet, and the end of text
===========  =======================================  ==========================================

A square is one window: everything in it depends on everything. Letters come in blocks, one after
the other, and how many there will be is only known once they have been found.
"""

from itertools import permutations
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Kind = Literal["latin", "letters"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SIDE = 6
CELLS = SIDE * SIDE
CLUES = 10, 16  # from, to
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
GIVEN = 24  # letters in a prompt

# The vocabulary.
SYMBOLS = [*"123456", "_", *ALPHABET, "□", "△", "¶", "?"]
BLANK = SIDE
FIRST_LETTER = BLANK + 1
LATIN, LETTERS, EOS, MASK = range(FIRST_LETTER + len(ALPHABET), len(SYMBOLS))
VOCABULARY = len(SYMBOLS)

LENGTH: dict[Kind, int] = {"latin": CELLS, "letters": GIVEN}
BLOCK: dict[Kind, int] = {"latin": CELLS, "letters": 6}

_ROWS = torch.tensor(list(permutations(range(SIDE))))  # every row there can be: (720, 6)
_HELD_OUT = 10  # one answer of so many is never trained on


class Puzzles(NamedTuple):
    """Of one kind: prompts ``(B, P)``, answers ``(B, G)``, one of those that are right; int64.

    Behind the end of text an answer is all end of text.
    """

    kind: Kind
    prompts: Tensor
    answers: Tensor


def puzzles(seed: int, count: int, kind: Kind, *, held_out: bool = True) -> Puzzles:
    """Draw puzzles; the same for the same arguments.

    Parameters
    ----------
    seed : int
    count : int
    kind : {"latin", "letters"}
    held_out : bool
        Only those that no training has seen, or only others: an answer tells which it is.

    Returns
    -------
    Puzzles

    Raises
    ------
    ValueError
        Unknown kind, or a negative count.

    Examples
    --------
    >>> drawn = puzzles(0, 2, "letters")
    >>> drawn.prompts.shape, drawn.answers.shape
    (torch.Size([2, 25]), torch.Size([2, 24]))
    >>> solved(drawn, drawn.answers)
    tensor([True, True])
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    generator = torch.Generator().manual_seed(seed)
    draw = _squares if kind == "latin" else _letters
    prompts, answers = draw(0, generator)
    while len(prompts) < count:
        more = draw(2 * count, generator)
        keep = _is_held_out(more[1]) == held_out
        prompts = torch.cat([prompts, more[0][keep]])
        answers = torch.cat([answers, more[1][keep]])
    return Puzzles(kind, prompts[:count], answers[:count])


def solved(given: Puzzles, tokens: Tensor) -> Tensor:
    """``(B,)`` bool: whether ``tokens (B, G)`` answer the prompts. A square may be filled in any
    way that is right; of letters only those before the end of text count.
    """
    if tokens.shape != given.answers.shape:
        raise ValueError(
            f"tokens must be {tuple(given.answers.shape)} as the answers, got {tuple(tokens.shape)}"
        )
    if given.kind == "letters":
        behind = (tokens == EOS).cumsum(1) > 0
        return (tokens.masked_fill(behind, EOS) == given.answers).all(1)
    clues = given.prompts[:, 1:]
    as_given = ((clues == BLANK) | (clues == tokens)).all(1)
    square = tokens.view(-1, SIDE, SIDE)
    every = torch.arange(SIDE, device=tokens.device)
    rows, columns = ((x.sort(-1).values == every).all(-1).all(-1) for x in (square, square.mT))
    return as_given & rows & columns


def text(tokens: Tensor) -> str:
    """A symbol for each of the 1-D tokens: ``¶`` is the end of text, ``?`` what is still masked."""
    return "".join(SYMBOLS[token] for token in tokens.tolist())


def _squares(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squares, row by row: any row that no row above forbids. There always is one (Hall)."""
    square = torch.zeros(count, 0, SIDE, dtype=torch.int64)
    for _ in range(SIDE):
        clash = (square[:, :, None] == _ROWS).any(-1).any(1)  # (count, 720)
        weight = torch.rand(count, len(_ROWS), generator=generator).masked_fill(clash, -1)
        square = torch.cat([square, _ROWS[weight.argmax(1)][:, None]], 1)
    cells = square.flatten(1)
    clues = torch.randint(CLUES[0], CLUES[1] + 1, (count, 1), generator=generator)
    rank = torch.rand(count, CELLS, generator=generator).argsort(1).argsort(1)
    start = torch.full((count, 1), LATIN)
    return torch.cat([start, cells.where(rank < clues, BLANK)], 1), cells


def _letters(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Letters out of a part of the alphabet: of a small part many occur more than once."""
    size = len(ALPHABET)
    part = torch.randint(4, size + 1, (count, 1), generator=generator)
    order = torch.rand(count, size, generator=generator).argsort(1)
    which = (torch.rand(count, GIVEN, generator=generator) * part).long()
    given = order.gather(1, which)
    occurs = torch.zeros(count, size, dtype=torch.bool).scatter_(1, given, True)
    found = torch.arange(size).where(occurs, EOS - FIRST_LETTER).sort(1).values[:, :GIVEN]
    start = torch.full((count, 1), LETTERS)
    return torch.cat([start, FIRST_LETTER + given], 1), FIRST_LETTER + found


def _is_held_out(answers: Tensor) -> Tensor:
    """Told by a sum in which every place counts otherwise."""
    weight = torch.arange(1, answers.shape[1] + 1) ** 2 % 97
    return (answers * weight).sum(1) % _HELD_OUT == 0
