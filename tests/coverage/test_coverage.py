"""A sample of families is measured anew and must say what the committed table says; the oracles must see mistakes."""

import pytest
import table
import torch
import transformers
from families import tiny
from measure import NotExactError, gate_exact, importance_exact, measure

import headdynamics as hd

#: every way in which W_O is found, and every way to be refused
SAMPLE = (
    "albert bart bert bitnet canine clip convbert deberta deepseek_v3 detr diffllama distilbert falcon falcon_h1 fnet "
    "fsmt gemma2 gpt2 gpt_neox ibert inkling2_text llama mlcd mobilebert moshi nystromformer qwen2_vl_vision roformer "
    "swin t5 vit wav2vec2-conformer wavlm whisper xglm xlnet"
).split()
COMMITTED = {row["family"]: row for row in table.read(transformers.__version__)}


@pytest.mark.skipif(not COMMITTED, reason="this release of transformers has no table of coverage: make coverage")
@pytest.mark.parametrize("family", [f for f in SAMPLE if f in COMMITTED or not COMMITTED])
def test_the_table_says_what_is_so(family):
    if family == "diffllama" and not hasattr(torch.nn, "RMSNorm"):
        pytest.skip("transformers' DiffLlama needs torch.nn.RMSNorm, which came with torch 2.4")
    assert measure(family).asdict() == COMMITTED[family]


def test_the_page_is_drawn_from_the_measured_rows():
    assert table.DOCS.read_text() == table.page()


@pytest.mark.parametrize("version", table.versions())
def test_nothing_is_wrong_silently(version):
    """A family that is found but not exact is known, and the fault is not in the gates."""
    rows = table.read(version)
    assert sum(row["gate"] == "yes" for row in rows) >= 75
    assert all(row["reason"] for row in rows if "no" in row.values() or row["found"] == "-")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_oracles_see_a_wrong_head(family):
    built = tiny(family)
    heads = hd.find_heads(built.model)
    for block in heads.blocks:  # twice the heads, each of half the size: columns of W_O, but no heads
        object.__setattr__(block, "heads", 8)
    with pytest.raises(NotExactError):
        gate_exact(built, hd.Heads(heads.blocks))


def test_the_oracle_sees_a_wrong_gradient(monkeypatch):
    built = tiny("bert")
    heads = hd.find_heads(built.model)
    block = heads.blocks[0]
    block.projection.register_full_backward_hook(lambda module, grads, _: tuple(1.05 * g for g in grads))
    with pytest.raises(NotExactError, match="off finite differences"):
        importance_exact(built, heads)
    assert torch.is_grad_enabled()
