"""Any call on any backend routes as the reference does; hashed experts are distinct."""

import torch

from .cases import Call, assert_same_routing, every_backend
from .strategies import given, random_call_and_layout, st


@every_backend
@random_call_and_layout
def test_random_calls(backend, call: Call, layout: str):
    assert_same_routing(backend(*call, layout=layout), call)


@every_backend
@given(size=st.integers(1, 70), k=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_hashed_experts_of_a_token_are_distinct(backend, size: int, k: int, seed: int):
    k = min(k, size)
    ids = torch.arange(2**31 - 40, 2**31 - 1)
    experts = backend(*Call(ids, None, size, top_k=k, seed=seed)).experts
    assert (experts >= 0).all()
    assert (experts < size).all()
    assert (experts.sort(-1).values.diff(dim=-1) > 0).all()
