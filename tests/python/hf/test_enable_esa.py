"""A model of transformers with ESA says what it says without, where ESA leaves nothing out."""

import copy
import dataclasses
import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.python.hf.esa_models import (
    KINDS,
    MOE,
    ROPES,
    SMALL,
    WHOLE,
    make,
    padded,
    state,
    tokens,
)
from triselect import esa
from triselect.hf import EsaCache, disable_esa, enable_esa, use_experts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return model(ids, **options).logits


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_same_tokens(kind: str) -> None:
    model = make(kind)
    before = model.generate(tokens(), **GREEDY)
    with enable_esa(model, WHOLE) as enabled:
        found = model.generate(tokens(), **GREEDY)
    assert torch.equal(found, before)
    assert enabled.layers == ("model.layers.0.self_attn", "model.layers.1.self_attn")
    assert len(torch.unique(found[:, 37:])) > 4  # not the same token over and over


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_positions(rope: str) -> None:
    model = make(rope=rope)
    texts, before = model.generate(tokens(), **GREEDY), logits(model, tokens())
    unscaled = make()
    unscaled.load_state_dict(model.state_dict())
    assert (logits(unscaled, tokens()) - before).abs().max() > 0.1  # it does make a difference
    with enable_esa(model, WHOLE):
        close(logits(model, tokens()), before)
        assert torch.equal(model.generate(tokens(), **GREEDY), texts)


def test_a_scale_of_its_own() -> None:
    model = make()
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.6
    before = logits(model, tokens())
    with enable_esa(model, WHOLE):
        close(logits(model, tokens()), before)
    assert (logits(make(), tokens()) - before).abs().max() > 0.1  # it does make a difference


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "prefill of 1": {"prefill_chunk_size": 1},
    "prefill of 5": {"prefill_chunk_size": 5},
    "prefill of 16": {"prefill_chunk_size": 16},
    "beams, prefill of 7": {"num_beams": 2, "prefill_chunk_size": 7},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_over_padded_rows(search: str) -> None:
    """19 columns of padding in one row: the first chunks of a prefill are nothing else."""
    model, batch, options = make("qwen3"), padded(31, 12, 30), GREEDY | SEARCHES[search]
    before = model.generate(**batch, **options)
    with enable_esa(model, WHOLE):
        assert torch.equal(model.generate(**batch, **options), before)


def test_padding_is_not_stored() -> None:
    model = make()
    with enable_esa(model, WHOLE):
        cache = model.generate(
            **padded(31, 12), **GREEDY, return_dict_in_generate=True
        ).past_key_values
    assert isinstance(cache, EsaCache)
    assert (cache.get_seq_length(), cache.padding) == (42, [0, 19])
    assert cache.esa.lengths == cache.lengths == [42, 23]
    assert cache.esa.capacity == 42  # room for all that generate could write, and no more


def test_what_is_behind_the_padding_does_not_matter() -> None:
    """Of as much padding as some chunks have tokens, so that the same tokens select together."""
    model, batch = make(), padded(31, 11)
    with enable_esa(model, SMALL), torch.no_grad():
        alone = model(batch["input_ids"][1:, 20:]).logits
        close(model(**batch).logits[1:, 20:], alone)


@pytest.mark.parametrize("assistant_has_esa", [False, True])
def test_assisted_decoding(assistant_has_esa: bool) -> None:
    model, assistant = make(), make(num_hidden_layers=1, seed=0)
    before = model.generate(tokens(1), **GREEDY)
    if assistant_has_esa:
        enable_esa(assistant, WHOLE)
    with enable_esa(model, WHOLE):
        found = model.generate(tokens(1), assistant_model=assistant, **GREEDY)
    assert torch.equal(found, before)


def test_prompt_lookup() -> None:
    model, ids = make(), tokens(1).repeat(1, 3)
    before = model.generate(ids, **GREEDY)
    with enable_esa(model, WHOLE):
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=4, **GREEDY), before)


def test_a_conversation() -> None:
    """A cache handed on, with what generate wrote, and cropped to start over."""
    model = make()
    question = tokens(2, 9, seed=3)
    first = model.generate(tokens(), **GREEDY)
    second = model.generate(torch.cat((first, question), 1), **GREEDY)
    with enable_esa(model, WHOLE) as enabled:
        cache = enabled.new_cache(capacity=100)
        assert torch.equal(model.generate(tokens(), past_key_values=cache, **GREEDY), first)
        ids = torch.cat((first, question), 1)
        again = copy.deepcopy(cache)
        assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), second)
        assert torch.equal(model.generate(ids, past_key_values=again, **GREEDY), second)
        cache.crop(37 - cache.get_seq_length())
        assert cache.esa.lengths == [37, 37]
        assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), second)
        cache.reset()
        assert torch.equal(model.generate(tokens(), past_key_values=cache, **GREEDY), first)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3_moe"])  # three outputs
def test_calls_of_the_model(kind: str) -> None:
    model, ids = make(kind), tokens()
    before = logits(model, ids)
    with enable_esa(model, WHOLE), torch.no_grad():
        found = model(ids[:, :20])
        close(found.logits, before[:, :20])
        assert isinstance(found.past_key_values, EsaCache)
        found = model(ids[:, 20:], past_key_values=found.past_key_values)
        close(found.logits, before[:, 20:])
        thrown_away = model(ids, use_cache=False)
        close(thrown_away.logits, before)
        assert thrown_away.past_key_values is None
        by_place = model.model(ids, torch.ones_like(ids))
        close(model.lm_head(by_place.last_hidden_state), before)
        embedded = model(inputs_embeds=model.model.embed_tokens(ids))
        close(embedded.logits, before)


@pytest.mark.parametrize("page_size", [None, 4])
def test_rows_of_a_cache(page_size: int | None) -> None:
    """What beam search and assisted decoding do with a cache, over rows of different lengths."""
    model, batch = make(), padded(31, 12, 25)
    ids, mask = batch.values()
    with enable_esa(model, WHOLE) as enabled, torch.no_grad():
        cache = enabled.new_cache(40, page_size=page_size)

        def read(rows: Tensor, upto: int) -> None:
            """The rest of these rows, from what is in the cache, as if from the beginning."""
            start = cache.get_seq_length()
            found = model(
                ids[rows, start:upto], attention_mask=mask[rows, :upto], past_key_values=cache
            )
            fresh = model(ids[rows, :upto], attention_mask=mask[rows, :upto], use_cache=False)
            real = mask[rows, start:upto].bool()
            close(found.logits[real], fresh.logits[:, start:][real])
            assert cache.esa.lengths == mask[rows, :upto].sum(1).tolist()

        rows = torch.tensor([0, 1, 2])
        read(rows, 20)
        cache.batch_repeat_interleave(2)
        read(rows := rows.repeat_interleave(2), 21)
        cache.reorder_cache(torch.tensor([1, 0, 2, 2, 5, 4]))  # copies of the same texts
        cache.crop(-1)
        read(rows, 21)
        cache.reorder_cache(order := torch.tensor([5, 0, 2, 3, 3, 4]))
        read(rows := rows[order], 24)
        cache.crop(-3)
        read(rows, 26)
        cache.batch_select_indices(keep := torch.tensor([2, 0]))
        read(rows := rows[keep], 27)
        cache.crop(-9)  # to the first column of the shortest row, minus one
        assert cache.lengths == [0, 12]
        cache.crop(0)
        read(rows, 31)
        cache.crop(22)  # how many to keep
        assert (cache.get_seq_length(), cache.batch_size) == (22, 2)
        read(rows, 31)


def test_attention_is_esa_s() -> None:
    """One layer by hand: projections and norms, then `attend`, with little to attend to."""
    model = make("qwen3", rope="yarn")
    attention = model.model.layers[0].self_attn
    caught: list[Tensor] = []
    hook = attention.register_forward_hook(lambda module, args, out: caught.append(out[0]))
    with enable_esa(model, SMALL), torch.no_grad():
        model(tokens())
        hook.remove()
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens()))
    rotary = model.model.rotary_emb
    heads = (2, 37, -1, 16)
    with torch.no_grad():
        out = esa.attend(
            attention.q_norm(attention.q_proj(x).view(heads)),
            attention.k_norm(attention.k_proj(x).view(heads)),
            attention.v_proj(x).view(heads),
            esa.Cache(SMALL),
            0,
            rotary=esa.Rotary(rotary.inv_freq, rotary.attention_scaling),
        )
        close(caught[0], attention.o_proj(out.flatten(2)))
    assert rotary.attention_scaling > 1


class Watch(TorchDispatchMode):
    """Keeps the names of triselect's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        space, name, *_ = str(function).split(".")
        if space == "triselect":
            self.called.append(name)
        return function(*args, **kwargs or {})


def test_selects_when_there_is_more_than_the_budget() -> None:
    model = make()
    with enable_esa(model, SMALL), torch.no_grad(), Watch() as watch:
        model(tokens(1, 16))
        assert "select_tokens" not in watch.called
        cache = model(tokens()).past_key_values
        watch.called.clear()
        model(tokens()[:, :1], past_key_values=cache)
    assert watch.called.count("select_tokens") == 2  # layers
    assert "grouped_topk" not in watch.called


def test_undo_restores_all(kind: str) -> None:
    model = make(kind)
    before, said = state(model), logits(model, tokens())
    with enable_esa(model, WHOLE) as enabled:
        assert state(model) != before
        logits(model, tokens())
    assert state(model) == before
    assert torch.equal(logits(model, tokens()), said)
    enabled.undo()
    enable_esa(model, WHOLE)
    disable_esa(model)
    assert state(model) == before
    enabled.undo()  # not the one that was enabled last: nothing to do
    assert state(model) == before


def test_base_models_and_their_wrappers() -> None:
    model, ids = make(), tokens()
    with torch.no_grad():
        before = model.model(ids).last_hidden_state
        with enable_esa(model.model, WHOLE):
            close(model.model(ids).last_hidden_state, before)
        wrapped = torch.nn.ModuleDict({"inside": model})
        with enable_esa(wrapped, WHOLE) as enabled:
            close(model.model(ids).last_hidden_state, before)
    assert enabled.layers[0] == "inside.model.layers.0.self_attn"


def test_a_copy_of_a_model_with_esa() -> None:
    model = make()
    before = model.generate(tokens(), **GREEDY)
    enable_esa(model, WHOLE)
    twin = copy.deepcopy(model)
    disable_esa(model)
    assert torch.equal(twin.generate(tokens(), **GREEDY), before)
    with torch.no_grad():
        assert isinstance(twin(tokens()).past_key_values, EsaCache)


@pytest.mark.parametrize("options", [{}, {"page_size": 4}, {"offload": 500}])
def test_grad_modes_may_change_between_calls(options: dict[str, int]) -> None:
    """What is made in inference mode can be written to later."""
    model, ids = make(), tokens()
    before = logits(model, ids)
    compressors = esa.calibrate_model(model, ids, dim=4, progress=False)
    whole = dataclasses.replace(WHOLE, scorer="compressed")
    with enable_esa(model, whole, compressors) as enabled:
        cache = enabled.new_cache(40, **options)
        for mode, first, last in (
            (torch.inference_mode, 0, 20),
            (torch.no_grad, 20, 30),
            (torch.inference_mode, 30, 37),
        ):
            with mode():
                found = model(ids[:, first:last], past_key_values=cache).logits
                close(found, before[:, first:last])
                cache.batch_select_indices(torch.tensor([0, 1]))


def test_frozen_models_need_no_grad_mode() -> None:
    model = make().requires_grad_(False)
    before = model(tokens()).logits
    with enable_esa(model, WHOLE):
        close(model(tokens()).logits, before)


def test_a_call_that_fails_leaves_the_cache_as_it_was() -> None:
    model, ids = make(), tokens()
    before = logits(model, ids)

    def fail(*_: Any) -> None:
        raise KeyError("somebody's hook")

    with enable_esa(model, WHOLE) as enabled, torch.no_grad():
        cache = enabled.new_cache()
        for first, last in ((0, 20), (20, 37)):
            hook = model.model.layers[1].mlp.register_forward_hook(fail)
            with pytest.raises(KeyError, match="somebody"):
                model(ids[:, first:last], past_key_values=cache)
            hook.remove()
            assert enabled.step is None
            found = model(ids[:, first:last], past_key_values=cache)
            close(found.logits, before[:, first:last])
        assert cache.esa.lengths == [37, 37]


def test_calibrated_offloaded_and_paged() -> None:
    """From the text to generated tokens; where the tokens are kept changes nothing."""
    model = make("qwen2")
    compressors = esa.calibrate_model(model, tokens(4, 200), dim=8, position=8, progress=False)
    config = esa.Config(initial=2, local=8, top_k=6, chunk=4, dim=8)
    with enable_esa(model, config, compressors) as enabled:
        plain = model.generate(tokens(), **GREEDY)
        for options in ({"offload": 64}, {"page_size": 4}):
            cache = enabled.new_cache(60, **options)
            found = model.generate(tokens(), past_key_values=cache, **GREEDY)
            assert torch.equal(found, plain)
    with enable_esa(model, WHOLE):
        assert not torch.equal(model.generate(tokens(), **GREEDY), plain)


def test_bfloat16() -> None:
    """As near to float32 as attention of transformers is."""
    model = make("qwen3").bfloat16()
    theirs = logits(model, tokens()).float()
    with enable_esa(model, WHOLE):
        ours = logits(model, tokens()).float()
    exact = logits(copy.deepcopy(model).float(), tokens())
    off, budget = ((x - exact).abs().mean() for x in (ours, theirs))
    assert 0 < off <= 1.1 * budget


def test_beside_use_experts() -> None:
    model = make("qwen3_moe", **MOE)
    said = model.generate(tokens(), **GREEDY)
    before = state(model)
    experts, attention = use_experts(model), enable_esa(model, WHOLE)
    with torch.no_grad(), Watch() as watch:
        model(tokens())
    assert watch.called.count("grouped_swiglu_up") == watch.called.count("grouped_topk") == 2
    assert torch.equal(model.generate(tokens(), **GREEDY), said)
    experts.undo()
    assert torch.equal(model.generate(tokens(), **GREEDY), said)
    attention.undo()
    assert state(model) == before


def test_examples_in_docstrings_run() -> None:
    results = doctest.testmod(import_module("triselect.hf.enable_esa"))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_readme_s_code_runs() -> None:
    """On a small model, which knows positions enough for the default configuration."""
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    block = next(x for x in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if "enable_esa" in x)
    model, ids = make(max_position_embeddings=8192), tokens()
    before = model.generate(ids, max_new_tokens=200)
    names: dict[str, Any] = {"model": model, "tokens": tokens(4, 50), "prompt": ids}
    exec(block, names)
    # Fewer tokens than are local: all are read, where they are.
    assert torch.equal(names["text"], before)
    assert torch.equal(model.generate(ids, max_new_tokens=200), before)
