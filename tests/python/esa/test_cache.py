"""`Cache`: what it keeps, how it grows, what texts may share, and what is on the host."""

import re

import pytest
import torch

from triselect.esa import Cache, Config, Rotary, attend

from .texts import compressors, cut, read, text

SMALL = {"initial": 2, "local": 5, "top_k": 6, "chunk": 8, "dim": 6}
PAGES = pytest.mark.parametrize("page_size", [None, 4])


def fresh(page_size=None, capacity=60, **settings):
    q, k, _ = text(60, batch=1)
    return Cache(
        Config(**SMALL | settings),
        compressors=compressors(q, k, 6),
        capacity=capacity,
        page_size=page_size,
    )


def columns(cache):
    return {key: column.data_ptr() for key, column in cache._storage.columns.items()}


@PAGES
def test_within_its_capacity_nothing_is_moved(page_size):
    q, k, v = text(60)
    cache = fresh(page_size)
    attend(q[:, :9], k[:, :9], v[:, :9], cache, 0)
    before = columns(cache)
    read(*(x[:, 9:] for x in (q, k, v)), cache, [20, 1, 1, 29])
    assert columns(cache) == before


@PAGES
def test_beyond_it_nothing_is_lost(page_size):
    q, k, v = text(60)
    small, large = fresh(page_size, capacity=4), fresh(page_size)
    sizes = [3, 1, 1, 20, 1, 34]
    assert torch.equal(read(q, k, v, small, sizes), read(q, k, v, large, sizes))


def test_without_one_the_cpu_reserves_only_addresses():
    torch.utils.deterministic.fill_uninitialized_memory = False  # which writes to all of it
    q, k, v = (x.bfloat16() for x in text(9, heads=8, groups=8, dim=128))
    cache = Cache(Config(scorer="exact"))
    attend(q[:, :8], k[:, :8], v[:, :8], cache, 0)
    before = columns(cache)
    assert cache._storage.room == 2**18
    attend(q[:, 8:], k[:, 8:], v[:, 8:], cache, 0)
    assert columns(cache) == before
    assert cache.nbytes() == 9 * 2 * 8 * 128 * 2


@PAGES
def test_a_prefix_is_used_again(page_size):
    q, k, v = text(60)
    rotary = Rotary.of(8)
    cache = fresh(page_size)
    read(q, k, v, cache, cut(60, 8), rotary=rotary)
    cache.truncate(24)
    assert cache.lengths == [24]
    other = [torch.cat((x[:, :24], y), 1) for x, y in zip((q, k, v), text(20, seed=1), strict=True)]
    again = read(*(x[:, 24:] for x in other), cache, [8, 12], rotary=rotary)
    wanted = read(*other, fresh(page_size), [8, 8, 8, 8, 12], rotary=rotary)
    assert torch.equal(again, wanted[:, 24:])


@PAGES
def test_sequences_are_chosen_and_copied(page_size):
    q, k, v = text(40, batch=2)
    rows = [1, 0, 1]
    cache = fresh(page_size)
    read(*(x[:, :26] for x in (q, k, v)), cache, cut(26, 8))
    cache.select(rows)
    assert cache.batch == 3
    assert cache.lengths == [26] * 3
    last = text(14, batch=3, seed=2)
    wanted = fresh(page_size, capacity=60)
    whole = [torch.cat((x[rows, :26], y), 1) for x, y in zip((q, k, v), last, strict=True)]
    sizes = [*cut(26, 8), 5, 9]
    found = read(*last, cache, [5, 9])
    assert torch.equal(found, read(*whole, wanted, sizes)[:, 26:])


def test_copies_share_their_pages():
    q, k, v = text(22)
    cache = fresh(page_size=4)
    attend(q, k, v, cache, 0)
    one = cache.nbytes()
    cache.select([0, 0, 0, 0])
    assert cache.nbytes() == one // 6 * (6 + 3)  # of 6 pages, the last is not full
    cache.truncate(16)
    assert cache.nbytes() == one // 6 * 4
    cache.truncate(15)
    assert cache.nbytes() == one // 6 * (4 + 3)


def test_pages_that_were_given_back_are_used_again():
    cache = fresh(page_size=4, capacity=16)
    for seed in range(6):
        q, k, v = text(16, seed=seed)
        wanted = attend(q, k, v, fresh(page_size=4, capacity=16), 0)
        assert torch.equal(attend(q, k, v, cache, 0), wanted)
        cache.truncate(0)
    assert cache._storage.room == 4


@PAGES
def test_texts_are_cut_to_different_lengths(page_size):
    q, k, v = text(24, batch=2)
    cache = fresh(page_size)
    attend(q, k, v, cache, 0)
    cache.truncate([6, 24])
    new = text(30, batch=2, seed=3)
    found = read(*new, cache, cut(30, 6))
    for b, kept in enumerate((6, 24)):
        alone = fresh(page_size)
        whole = [
            torch.cat((x[b : b + 1, :kept], y[b : b + 1]), 1)
            for x, y in zip((q, k, v), new, strict=True)
        ]
        wanted = read(*whole, alone, [*cut(kept, 8), *cut(30, 6)])
        torch.testing.assert_close(found[b : b + 1], wanted[:, kept:])


def test_cleared_it_takes_another_batch():
    cache = fresh()
    attend(*text(9), cache, 0)
    with pytest.raises(ValueError, match=re.escape("has 1 sequences, got a batch of 2: clear()")):
        attend(*text(9, batch=2), cache, 0)
    assert cache.lengths == [9]
    cache.clear()
    assert cache.lengths == []
    assert cache.nbytes() == 0
    out = attend(*text(9, batch=2), cache, 0)
    assert torch.equal(out, attend(*text(9, batch=2), fresh(), 0))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("positions", ["original", "rerope"])
def test_offloaded_it_is_the_same(positions, batch):
    q, k, v = text(60, batch=batch)
    maps = compressors(q, k, 6)
    config = Config(positions=positions, **SMALL)
    on_host = Cache(config, compressors=maps, capacity=60, offload=batch * 24)
    here = Cache(config, compressors=maps, capacity=60)
    sizes = [*cut(40, 8), *[1] * 20]
    rotary = Rotary.of(8)
    found = read(q, k, v, on_host, sizes, rotary=rotary)
    torch.testing.assert_close(found, read(q, k, v, here, sizes, rotary=rotary))
    for cache in (on_host, here):
        cache.truncate(30)
    again = [x[:, 30:] for x in (q, k, v)]
    assert torch.equal(read(*again, on_host, [8, 8, 8, 6]), read(*again, here, [8, 8, 8, 6]))


def test_offloaded_texts_of_different_lengths_that_change_places():
    q, k, v = text(60, batch=3)
    maps = compressors(q, k, 6)
    caches = [
        Cache(Config(**SMALL), compressors=maps, capacity=60, offload=n) for n in (3 * 22, None)
    ]
    outs = []
    for cache in caches:
        part = [x[:, :30] for x in (q, k, v)]
        outs += [attend(*part, cache, 0, padding=[0, 25, 14])[:, 29:]]
        outs += [read(*(x[:, 30:45] for x in (q, k, v)), cache, [1] * 15)]
        cache.select([2, 0, 1])
        outs += [read(*(x[:, 45:] for x in (q, k, v)), cache, [1] * 15)]
        assert cache.lengths == [46, 60, 35]
    for on_host, here in zip(outs[:3], outs[3:], strict=True):
        assert torch.equal(on_host, here)


def test_offloaded_the_device_holds_what_was_read_last():
    q, k, v = text(400, dim=16)
    maps = compressors(q, k, 6)
    config = Config(**SMALL)
    caches = [Cache(config, compressors=maps, capacity=400, offload=n) for n in (24, 400)]
    outs = [read(q, k, v, cache, [*cut(200, 8), *[1] * 200]) for cache in caches]
    assert torch.equal(*outs)
    few, many = (cache._hot[0].fetched for cache in caches)
    assert many == 400  # each token once
    assert few > many
    plain = Cache(config, compressors=maps, capacity=400)
    read(q, k, v, plain, [400])
    assert caches[0].nbytes() < plain.nbytes() / 4


def test_offloaded_it_grows_beyond_its_capacity():
    q, k, v = text(60, batch=2)
    maps = compressors(q, k, 6)
    small, large = (
        Cache(Config(**SMALL), compressors=maps, capacity=n, offload=120) for n in (9, 60)
    )
    sizes = [5, 3, *[1] * 20, 8, *[1] * 24]
    assert torch.equal(read(q, k, v, small, sizes), read(q, k, v, large, sizes))
    assert small._hot[0].fetched == large._hot[0].fetched == 120  # growing forgets nothing


def test_what_remains_of_a_text_stays_on_the_device():
    q, k, v = text(60)
    cache = Cache(Config(**SMALL), compressors=compressors(q, k, 6), capacity=60, offload=24)
    here = fresh()
    for one in (cache, here):
        read(q, k, v, one, cut(60, 8))
        one.truncate(58)
    before = cache._hot[0].fetched
    last = text(1, seed=4)
    assert torch.equal(attend(*last, cache, 0), attend(*last, here, 0))
    assert cache._hot[0].fetched - before <= 1 + 6  # the new one, and what it selects


def test_the_host_keeps_what_the_device_forgets():
    q, k, v = text(64)
    cache = Cache(Config(**SMALL), compressors=compressors(q, k, 6), capacity=64, offload=22)
    attend(q, k, v, cache, 0)
    assert torch.equal(cache._host.columns[0, "k"][:, :64], k)
    assert torch.equal(cache._host.columns[0, "v"][:, :64], v)


BAD = {
    "capacity": ({"capacity": 0}, "capacity must be at least 1, got 0"),
    "page_size": ({"page_size": 0}, "page_size must be at least 1, got 0"),
    "both": ({"page_size": 4, "offload": 99}, "offload and page_size must not be given together"),
    "no compressors": ({"compressors": None}, "compressors must be given for scorer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    changed, message = BAD[case]
    q, k, _ = text(20)
    with pytest.raises(ValueError, match=message):
        Cache(Config(**SMALL), **{"compressors": compressors(q, k, 6)} | changed)


def test_other_bad_arguments():
    with pytest.raises(TypeError, match=r"config must be an esa.Config, got dict"):
        Cache({})
    with pytest.raises(TypeError, match=r"compressors must be esa.Compressor, got Tensor"):
        Cache(Config(), compressors=[torch.zeros(3)])
    with pytest.raises(ValueError, match='scorer="exact" cannot read them'):
        Cache(Config(scorer="exact"), offload=9999)
    q, k, v = text(9)
    cache = Cache(Config(**SMALL), compressors=compressors(q, k, 6), offload=20)
    with pytest.raises(ValueError, match="offload must leave 21 tokens on the device"):
        attend(q, k, v, cache, 0)
    assert cache.batch == 0  # and the next may be of another size
    cache = fresh()
    attend(q, k, v, cache, 0)
    with pytest.raises(ValueError, match="lengths must be at least 0, got -1"):
        cache.truncate(-1)
    with pytest.raises(ValueError, match="lengths must have 1 entries, got 2"):
        cache.truncate([1, 2])
    with pytest.raises(ValueError, match="rows must be between 0 and 0, got 1"):
        cache.select([0, 1])
    assert cache.lengths == [9]
