"""A compressor keeps its parts together, in memory and in a file, and fits the operators."""

import json
import re
import subprocess
import sys

import pytest
import torch

from triselect.esa import Compressor, Curve, calibrate, compress
from triselect.esa.layout import fold

from .data import SMALL, integers, noise

CURVE = Curve((1, 2), (0.1 + 0.2, 1 / 3), 5, 2, 64, 128)


def compressor(**changes) -> Compressor:
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 10, generator=draw)
    parts = {"query": query, "key": key, "heads": 6, "groups": 2, "head_dim": 5}
    return Compressor(**parts | changes)


def assert_same(got: Compressor, wanted: Compressor) -> None:
    for name in ("query", "key", "query_bias", "key_bias"):
        one, other = getattr(got, name), getattr(wanted, name)
        assert (one is None) == (other is None)
        assert one is None or (one.dtype == other.dtype and torch.equal(one, other))
    assert (got.layout, got.method, got.curve) == (wanted.layout, wanted.method, wanted.curve)


@pytest.fixture
def file(tmp_path):
    pytest.importorskip("safetensors")
    return tmp_path / "layer.safetensors"


def test_fits_the_operator():
    q, k = integers(50)
    c = compressor(query=torch.arange(30.0).view(3, 10), key_bias=torch.tensor([1.0, 2, 3]))
    short = compress(q, c.query, c.query_bias).values
    assert torch.equal(short, (fold(q, 2) @ c.query.double().T).float())
    short = compress(k, c.key, c.key_bias).values
    wanted = fold(k, 2) @ c.key.double().T + c.key_bias
    torch.testing.assert_close(short.double(), wanted, rtol=1e-5, atol=1e-5)


def test_that_of_another_model_is_named_by_both_shapes():
    q, _ = noise(5, SMALL._replace(head_dim=7))
    with pytest.raises(ValueError, match=re.escape("got weight (3, 10) for x (5, 6, 7)")):
        compress(q, compressor().query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_bias": torch.tensor([1.0, -0.0, 1e-30])},
        {"query_bias": torch.rand(3), "key_bias": torch.rand(3), "curve": CURVE, "method": "x"},
    ],
    ids=["plain", "key bias", "all"],
)
def test_a_file_gives_it_back_bit_for_bit(file, changes, dtype):
    wanted = compressor(**changes).to(dtype=dtype)
    wanted.save(file)
    assert_same(Compressor.load(str(file)), wanted)


@pytest.mark.parametrize("options", [{"dim": 4}, {"recall": 0.5, "top_k": 5}, {"method": "pca"}])
def test_what_calibrate_gives_can_be_kept(file, options):
    wanted = calibrate(*noise(300), **options)
    wanted.save(str(file))
    assert_same(Compressor.load(file), wanted)


def test_one_tensor_in_two_roles(file):
    weight = torch.rand(10, 3).T
    compressor(query=weight, key=weight).save(file)
    assert_same(Compressor.load(file), compressor(query=weight, key=weight))


def test_a_file_cut_short_anywhere_is_refused(file):
    compressor(curve=CURVE).save(file)
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"layer\.safetensors is no whole safetensors file"):
            Compressor.load(file)


def test_a_file_of_another_kind_is_refused(file):
    from safetensors.torch import save_file

    save_file({"query": torch.rand(3, 10)}, file)
    with pytest.raises(ValueError, match=r"layer\.safetensors is no compressor.*got None"):
        Compressor.load(file)
    save_file({"query": torch.rand(3, 10)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"layer\.safetensors is no compressor.*got 'pt'"):
        Compressor.load(file)
    file.write_text("query, key\n" * 100)
    with pytest.raises(ValueError, match=r"layer\.safetensors is no whole safetensors file"):
        Compressor.load(file)
    torch.save({"query": torch.rand(3, 10)}, file)
    with pytest.raises(ValueError, match=r"layer\.safetensors is no whole safetensors file"):
        Compressor.load(file)
    with pytest.raises(FileNotFoundError):
        Compressor.load(file.with_name("nothing"))


def rewritten(file, tensors=lambda tensors: tensors, about=lambda about: about) -> None:
    """The file of `compressor`, changed."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    compressor().save(file)
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    text = about(json.loads(metadata["compressor"]))
    text = text if isinstance(text, str) else json.dumps(text)
    save_file(tensors(load_file(file)), file, metadata | {"compressor": text})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.rand(3, 9)}, "key must be (3, 10) for query (3, 10)"),
        ({"key": torch.rand(3, 9)}, "got (3, 9)"),
        ({"query": torch.rand(4, 10)}, "key must be (4, 10) for query (4, 10)"),
        ({"query": torch.rand(3, 12)}, "query must be (3, 10)"),
        ({"query": torch.rand(30)}, "query must be (dim, groups * head_dim), got (30,)"),
        ({"key": torch.rand(3, 10).half()}, "key must be float32, float16 or bfloat16 as query"),
        ({"key": torch.ones(3, 10, dtype=torch.int32)}, "key must be float32, float16 or bfloat16"),
        ({"key": torch.full((3, 10), torch.nan)}, "key must be finite, got NaN or infinity"),
        ({"query": torch.full((3, 10), torch.inf)}, "query must be finite"),
        ({"key_bias": torch.rand(4)}, "key_bias must be (3,)"),
        ({"other": torch.rand(4)}, "other"),
    ],
)
def test_tensors_that_do_not_fit_are_named(file, change, message):
    rewritten(file, tensors=lambda tensors: tensors | change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Compressor.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (lambda about: about | {"head_dim": 6}, "query must be (3, 12)"),
        (lambda about: about | {"groups": 4}, "groups must divide the 6 heads, got 4"),
        (lambda about: about | {"heads": 0}, "heads must be an int of at least 1, got 0"),
        (lambda about: about | {"heads": "6"}, "heads must be an int of at least 1, got '6'"),
        (lambda about: about | {"curve": {"dim": [1]}}, "recall"),
        (lambda about: about | {"curve": [1]}, "list"),
        (lambda about: about | {"more": 1}, "more"),
        (lambda about: {"heads": 6}, "curve"),
        (lambda about: "not json", "Expecting value"),
        (lambda about: "[1]", "list"),
    ],
)
def test_a_description_that_does_not_fit_is_named(file, about, message):
    rewritten(file, about=about)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Compressor.load(file)
    assert str(file) in str(caught.value)


def test_a_missing_tensor_is_named(file):
    rewritten(file, tensors=lambda tensors: {"query": tensors["query"]})
    with pytest.raises(ValueError, match="'key'"):
        Compressor.load(file)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": None}, ValueError, "query must be (dim, groups * head_dim), got NoneType"),
        ({"query": torch.rand(0, 10)}, ValueError, "query must be (dim, groups * head_dim)"),
        ({"key": [1]}, ValueError, "key must be (3, 10)"),
        ({"query": torch.rand(3, 10).double()}, TypeError, "got torch.float64"),
        ({"key": torch.rand(3, 10, device="meta")}, ValueError, "on cpu as query, got meta"),
        ({"heads": 5}, ValueError, "groups must divide the 5 heads, got 2"),
        ({"heads": True}, ValueError, "heads must be an int of at least 1, got True"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        compressor(**changes)


def test_to():
    c = compressor(key_bias=torch.rand(3), curve=CURVE)
    half = c.to(dtype=torch.float16)
    assert {x.dtype for x in (half.query, half.key, half.key_bias)} == {torch.float16}
    assert half.query_bias is None
    assert half.curve is CURVE
    assert c.query.dtype == torch.float32
    assert c.to("meta").key.is_meta


def test_without_safetensors_only_files_are_missing():
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import torch; from triselect.esa import Compressor, calibrate\n"
        "c = calibrate(torch.rand(9, 4, 2), torch.rand(9, 2, 2))\n"
        "for call in (c.save, Compressor.load):\n"
        "    try: call('nowhere')\n"
        "    except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("pip install 'triselect[cli]'") == 2
