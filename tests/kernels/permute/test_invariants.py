"""What must hold of any permutation, with no reference in sight."""

import numpy as np
import torch

from ..backends import assert_bits
from .cases import assignments, every_backend, every_case


@every_backend
@every_case
def test_rows_are_the_assignments_in_order(backend, tokens, k, num_experts, skew, padding):
    rng = np.random.default_rng(1)
    experts = assignments(rng, tokens, k, num_experts, skew, padding)
    source, slot_of, offsets = backend(experts, num_experts)
    real = experts >= 0
    rows = int(real.sum())
    assert (source.shape, slot_of.shape) == ((tokens * k,), (tokens, k))

    # Offsets rise from nothing to the number of real entries, by the load of each expert.
    assert offsets.shape == (num_experts + 1,)
    assert offsets[0] == 0
    assert offsets[-1] == rows
    assert torch.equal(offsets.diff(), experts[real].bincount(minlength=num_experts).int())

    # Every row is used once, and leads back to the token that has it.
    assert torch.equal(slot_of[real].sort().values, torch.arange(rows, dtype=torch.int32))
    tokens_of = torch.arange(tokens, dtype=torch.int32)[:, None].expand(tokens, k)
    assert torch.equal(source[slot_of[real].long()], tokens_of[real])

    # Where there is nothing stands -1, and nowhere else.
    assert (slot_of[~real] == -1).all()
    assert (source[rows:] == -1).all()
    assert (source[:rows] >= 0).all()

    # Row by row experts ascend, and the assignments of one expert in their own order.
    expert_of = experts[real][slot_of[real].sort().indices]
    assert torch.equal(expert_of, experts[real].sort().values)
    for expert in range(min(num_experts, 40)):
        own = source[offsets[expert] : offsets[expert + 1]]
        assert (own.diff() >= 0).all()
        slots = slot_of[experts == expert]
        assert (slots.diff() == 1).all()


@every_backend
def test_sorted_experts_stay_where_they_are(backend):
    """Permuting what is in order is no permutation."""
    experts = torch.arange(7, dtype=torch.int32).repeat_interleave(3)[:, None]
    source, slot_of, _ = backend(experts, 7)
    rows = torch.arange(21, dtype=torch.int32)
    assert torch.equal(source, rows)
    assert torch.equal(slot_of.flatten(), rows)


@every_backend
def test_one_token_has_a_row_per_slot(backend):
    source, slot_of, offsets = backend(torch.tensor([[3, 3, 1]]), 4)
    assert source.tolist() == [0, 0, 0]
    assert slot_of.tolist() == [[1, 2, 0]]
    assert offsets.tolist() == [0, 0, 1, 1, 3]


@every_backend
def test_nothing_but_padding(backend):
    source, slot_of, offsets = backend(torch.full((4, 3), -1), 5)
    assert (source == -1).all()
    assert (slot_of == -1).all()
    assert (offsets == 0).all()


@every_backend
def test_no_tokens(backend):
    source, slot_of, offsets = backend(torch.empty(0, 3, dtype=torch.int32), 5)
    assert source.shape == (0,)
    assert slot_of.shape == (0, 3)
    assert offsets.tolist() == [0] * 6


@every_backend
def test_more_experts_only_lengthen_the_offsets(backend):
    experts = assignments(np.random.default_rng(2), 60, 4, 9, padding=0.2)
    few, many = backend(experts, 9), backend(experts, 700)
    assert_bits(few[:2], many[:2])
    assert torch.equal(many.offsets[:10], few.offsets)
    assert (many.offsets[9:] == few.offsets[-1]).all()


@every_backend
def test_renaming_experts_in_order_leaves_the_rows(backend):
    experts = assignments(np.random.default_rng(3), 60, 4, 9)
    assert_bits(backend(experts, 9)[:2], backend(experts * 5 + 2, 50)[:2])


@every_backend
def test_inputs_are_left_alone(backend):
    experts = assignments(np.random.default_rng(4), 20, 4, 9, padding=0.2)
    before = experts.clone()
    backend(experts, 9)
    assert torch.equal(experts, before)
