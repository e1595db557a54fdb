"""Puzzles: what is drawn can be answered, what is held out stays so, and answers are checked."""

from itertools import permutations

import pytest
import torch

from triselect.models import puzzles as module
from triselect.models.puzzles import (
    ALPHABET,
    BLANK,
    CLUES,
    EOS,
    GIVEN,
    KINDS,
    LATIN,
    LETTERS,
    MASK,
    SIDE,
    SYMBOLS,
    VOCABULARY,
    Kind,
    Puzzles,
    puzzles,
    solved,
    text,
)


def is_latin(cells: list[int]) -> bool:
    rows = [cells[SIDE * i :][:SIDE] for i in range(SIDE)]
    return all(sorted(line) == list(range(SIDE)) for line in [*rows, *zip(*rows, strict=True)])


@pytest.mark.parametrize("held_out", [True, False])
def test_squares_are_latin_and_their_clues_are_of_them(held_out: bool) -> None:
    drawn = puzzles(0, 200, "latin", held_out=held_out)
    assert drawn.prompts.shape == (200, 1 + SIDE * SIDE)
    clues = set()
    for prompt, cells in zip(drawn.prompts.tolist(), drawn.answers.tolist(), strict=True):
        assert prompt[0] == LATIN
        assert is_latin(cells)
        assert all(clue in (BLANK, cell) for clue, cell in zip(prompt[1:], cells, strict=True))
        clues.add(sum(clue != BLANK for clue in prompt[1:]))
    assert clues == set(range(CLUES[0], CLUES[1] + 1))


def test_squares_are_of_many_kinds() -> None:
    """Not all from one by exchanging rows, columns and numbers: rows of some differ by cycles of
    other lengths.
    """
    cycles = set()
    for cells in puzzles(0, 50, "latin").answers.view(-1, SIDE, SIDE):
        for first, second in permutations(cells.tolist(), 2):
            to, left, lengths = dict(zip(first, second, strict=True)), set(first), []
            while left:
                at, length = left.pop(), 1
                while (at := to[at]) in left:
                    left.remove(at)
                    length += 1
                lengths.append(length)
            cycles.add(tuple(sorted(lengths)))
    assert cycles == {(2, 2, 2), (2, 4), (3, 3), (6,)}


def test_letters_are_answered_by_those_that_occur() -> None:
    drawn = puzzles(0, 300, "letters")
    lengths, of_few = set(), set()
    for prompt, answer in zip(drawn.prompts, drawn.answers, strict=True):
        assert prompt[0] == LETTERS
        assert len(prompt) == 1 + GIVEN
        given = text(prompt[1:])
        found = text(answer).rstrip("¶")
        assert found == "".join(sorted(set(given), key=ALPHABET.index))
        lengths.add(len(found))
        of_few |= set(found) if len(found) <= 6 else set()
    assert min(lengths) <= 4
    assert max(lengths) >= 18, "one block to four"
    assert of_few == set(ALPHABET), "few letters are any letters"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_out_is_never_drawn_to_train_on(kind: Kind) -> None:
    tested, trained = (puzzles(0, 300, kind, held_out=x).answers for x in (True, False))
    # An answer is always on the same side: whether it was drawn for this or for that.
    assert module._is_held_out(tested).all()
    assert not module._is_held_out(trained).any()
    drawn = torch.stack([row[torch.randperm(len(row))] for row in trained])
    assert module._is_held_out(drawn).float().mean().item() == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_puzzles_are_the_same_for_the_same_seed(kind: Kind) -> None:
    one, same, other = (puzzles(seed, 5, kind) for seed in (1, 1, 2))
    assert torch.equal(one.prompts, same.prompts)
    assert torch.equal(one.answers, same.answers)
    assert not torch.equal(one.prompts, other.prompts)
    assert len(puzzles(0, 0, kind).prompts) == 0


def test_any_square_that_is_right_solves_a_puzzle() -> None:
    drawn = puzzles(0, 4, "latin")
    assert solved(drawn, drawn.answers).all()
    free = Puzzles("latin", drawn.prompts.clone(), drawn.answers)
    free.prompts[:, 1:] = BLANK
    assert solved(free, drawn.answers.roll(1, 0)).all(), "nothing is given: every square is right"
    assert not solved(drawn, drawn.answers.roll(1, 0)).any(), "not as given"

    square = drawn.answers.view(-1, SIDE, SIDE)
    for wrong in (
        square[:, :1].expand(-1, SIDE, -1),  # columns
        square[:, :, :1].expand(-1, -1, SIDE),  # rows
        square.masked_fill(square == 0, MASK),
    ):
        assert not solved(free, wrong.reshape(4, -1)).any()


def test_letters_behind_the_end_do_not_count() -> None:
    drawn = puzzles(0, 8, "letters")
    first = (drawn.answers == EOS).int().argmax(1)
    other, rows = drawn.answers.clone(), torch.arange(8)
    other[rows, first + 1] = MASK
    assert solved(drawn, other).all()
    other[rows, first - 1] = MASK
    assert not solved(drawn, other).any()
    early = drawn.answers.clone()
    early[:, 1] = EOS
    assert not solved(drawn, early).any()
    late = drawn.answers.masked_fill(drawn.answers == EOS, MASK)
    assert not solved(drawn, late).any()


def test_symbols_are_one_for_each_token() -> None:
    assert VOCABULARY == MASK + 1 == len(set(SYMBOLS))
    assert text(torch.arange(VOCABULARY)) == "".join(SYMBOLS)
    assert all(len(symbol) == 1 for symbol in SYMBOLS)


def test_errors() -> None:
    with pytest.raises(ValueError, match="kind must be one of latin, letters, got 'sudoku'"):
        puzzles(0, 1, "sudoku")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        puzzles(0, -1, "latin")
    drawn = puzzles(0, 2, "latin")
    with pytest.raises(ValueError, match=r"tokens must be \(2, 36\) as the answers, got \(1, 36\)"):
        solved(drawn, drawn.answers[:1])
