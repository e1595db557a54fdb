"""The operator among PyTorch's: opcheck of what it writes, compilation, meta."""

import torch

from triselect.ops.compress import Compressed, compress

from ..backends import assert_bits, opcheck
from ..compiling import assert_compiles_once
from .cases import EIGHT_BITS, case, every_backend


@every_backend
def test_opcheck(backend):
    x, weight, bias = case(tokens=(2, 3), dtype=torch.bfloat16)
    opcheck("compress", (x, weight, bias, None, torch.zeros(2, 3, 12), None), backend)
    slots = torch.tensor([[4, -1, 0], [1, 2, 9]])
    values = torch.zeros(2, 5, 12, dtype=torch.int8)
    opcheck("compress", (x, weight, None, slots, values, torch.zeros(2, 5)), backend)


@every_backend
def test_one_compilation_for_every_number_of_tokens(backend, compiler):
    """A step of decoding: what came into the cache is there for what follows."""
    _, weight, bias = (t if t is None else backend.put(t) for t in case())

    def appended(x, values, scale, slots):
        out = Compressed(values.clone(), scale.clone())
        compress(x * 2, weight, bias, out=out, slots=slots, backend=backend.name)
        return out.values.float() * out.scale[:, None]

    def inputs(tokens):
        x = case(tokens, tokens=(tokens,)).x
        values = torch.ones(tokens + 50, 12, dtype=torch.int8)
        slots = torch.arange(tokens).flip(0) + 7
        return tuple(map(backend.put, (x, values, torch.ones(tokens + 50), slots)))

    def close(got, expected):  # how eager's products are rounded depends on their sizes
        torch.testing.assert_close(got, expected, rtol=0, atol=0.2)

    assert_compiles_once(appended, inputs, compiler, compare=close)


def test_both_overloads_agree():
    drawn = case()
    outs = [torch.empty(6, 12), torch.empty(6, 12)]
    operator = torch.ops.triselect.compress
    assert operator.default(*drawn, None, outs[0], None) is None
    assert operator.backend(*drawn, None, outs[1], None, "auto") is None
    assert_bits(outs[0], outs[1])


def test_meta_tensors_have_the_shapes_of_real_ones():
    drawn = case(tokens=(2, 3))
    for dtype in (torch.float16, *EIGHT_BITS):
        real = compress(*drawn, dtype=dtype)
        meta = compress(*(t.to("meta") for t in drawn), dtype=dtype)
        for one, other in zip(real, meta, strict=True):
            if one is None:
                assert other is None
            else:
                assert (one.shape, one.dtype) == (other.shape, other.dtype)
