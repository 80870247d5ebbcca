"""Tiny models of eight architectures with a padded batch, each: the one table that the core's tests run over.

A case's `outputs` names every W_O with what feeds it, written by hand: nothing here asks headdynamics.
"""

from __future__ import annotations

import argparse
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

IDS = torch.tensor([[5, 7, 9, 11, 6, 2], [8, 6, 5, 2, 1, 1], [10, 12, 4, 7, 2, 1]])
TOKENS = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
TARGETS = torch.tensor([[9, 4, 7, 12, 2], [11, 8, 2, -100, -100], [6, 13, 10, 2, -100]])
CLASSES = torch.tensor([0, 2, 1])
LENGTHS = (6, 4, 5)
TARGET_LENGTHS = (5, 3, 4)
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)


@dataclass(frozen=True)
class Case:
    """One architecture: `outputs` is (path of W_O, kind, layer) in the model's order, 4 heads of size 4 each."""

    name: str
    build: Callable[[], nn.Module]
    batch: dict[str, Any]
    outputs: tuple[tuple[str, str, int], ...]
    logits: Callable[[nn.Module, Any], torch.Tensor]
    loss: Callable[[nn.Module, Any], torch.Tensor]  # [B], by a loop over examples
    alone: Callable[[Any, int], Any]  # one example without padding
    generate: Callable[..., list[torch.Tensor]] | None = None  # (model, beams, rows) -> tokens and scores
    double: bool = True  # computes in float64 throughout when asked to (norms, fairseq's softmax: float32)
    functional: bool = False  # W_O is used as a function, not called
    positions: Callable[[Any, str], torch.Tensor | None] | None = None

    def weight(self, model: nn.Module, path: str) -> torch.Tensor:
        """W_O as [in, ...], so that a head's part is rows 4 n to 4 n + 4."""
        weight = model.get_submodule(path).weight
        return weight if self.name == "gpt2" else weight.t()

    def in_float64(self) -> Case:
        """The same model and batch in float64; skips where the library cannot."""
        if OLD and self.name == "bert-decoder":
            pytest.skip("transformers 4 cannot run this model in float64 at all: its causal mask overflows")
        real = {key: v.double() if key == "pixel_values" else v for key, v in self.batch.items()}
        return replace(self, build=lambda: self.build().double(), batch=real)

    @property
    def tolerance(self) -> float:
        """What its float32 parts leave of float64, relative."""
        return 1e-9 if self.double else 1e-6

    def __repr__(self) -> str:
        return self.name


def randomized(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same weights at each call, large enough that every head matters."""

    @functools.wraps(build)
    def seeded() -> nn.Module:
        torch.manual_seed(1)
        model = build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
        return model.eval()

    return seeded


@randomized
def bert() -> nn.Module:
    return hf.BertForSequenceClassification(
        hf.BertConfig(vocab_size=16, max_position_embeddings=12, num_labels=3, pad_token_id=1, **SIZES)
    )


@randomized
def gpt2() -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=16, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=2, pad_token_id=1
    )
    return hf.GPT2LMHeadModel(config)


@randomized
def llama() -> nn.Module:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=16, num_key_value_heads=2, attention_dropout=0.1, bos_token_id=0, eos_token_id=2, pad_token_id=1,
            **SIZES,
        )
    )  # fmt: skip


@randomized
def t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


@randomized
def bart() -> nn.Module:
    config = hf.BartConfig(
        vocab_size=16, max_position_embeddings=16, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=1,
        eos_token_id=2, bos_token_id=0, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return hf.BartForConditionalGeneration(config)


@randomized
def vit() -> nn.Module:
    config = hf.ViTConfig(
        image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **SIZES
    )
    return hf.ViTForImageClassification(config)


class TorchClassifier(nn.Module):
    """torch's own encoder with a mean over tokens and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(16, 3)

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> dict[str, torch.Tensor]:
        real = attention_mask.bool()
        states = self.encoder(self.embed(input_ids), src_key_padding_mask=~real) * real.unsqueeze(-1)
        return {"logits": self.out(states.sum(1) / real.sum(1, keepdim=True))}


@randomized
def torch_encoder() -> nn.Module:
    return TorchClassifier()


def dictionary() -> Any:
    from fairseq.data import Dictionary

    words = Dictionary()  # <s> 0, <pad> 1, </s> 2, <unk> 3
    for letter in "abcdefghijkl":
        words.add_symbol(letter)
    return words


@randomized
def fairseq() -> nn.Module:
    from fairseq.models.transformer import TransformerModel
    from fairseq.models.transformer.transformer_legacy import base_architecture

    args = argparse.Namespace(
        encoder_layers=2, decoder_layers=2, encoder_embed_dim=16, decoder_embed_dim=16, encoder_ffn_embed_dim=32,
        decoder_ffn_embed_dim=32, encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.1,
        attention_dropout=0.1, share_all_embeddings=True, max_source_positions=32, max_target_positions=32,
    )  # fmt: skip
    base_architecture(args)
    words = dictionary()
    return TransformerModel.build_model(args, types.SimpleNamespace(source_dictionary=words, target_dictionary=words))


def hf_logits(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(**batch)["logits"]


def fairseq_logits(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(**batch["net_input"])[0]


def by_hand(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of one example's own targets: logits [T, V], target [T]."""
    log = logits - logits.exp().sum(-1, keepdim=True).log()
    rows = [(t, int(label)) for t, label in enumerate(target) if label != -100]
    return -torch.stack([log[t, label] for t, label in rows]).sum() / len(rows)


def class_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = hf_logits(model, batch)
    return torch.stack([by_hand(row[None], label[None]) for row, label in zip(logits, batch["labels"], strict=True)])


def causal_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = hf_logits(model, batch)
    return torch.stack([by_hand(row[:-1], label[1:]) for row, label in zip(logits, batch["labels"], strict=True)])


def translation_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = hf_logits(model, batch)
    return torch.stack([by_hand(row, label) for row, label in zip(logits, batch["labels"], strict=True)])


def fairseq_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    logits, targets = fairseq_logits(model, batch), batch["target"]
    return torch.stack(
        [by_hand(row, target.where(target != 1, -100)) for row, target in zip(logits, targets, strict=True)]
    )


def alone(batch: Any, row: int) -> Any:
    """Row `row` of a Hugging Face batch without its padding."""
    found = {name: value[row : row + 1] for name, value in batch.items()}
    for name in ("input_ids", "attention_mask"):
        if name in found:
            found[name] = found[name][:, : LENGTHS[row]]
    if found["labels"].dim() == 2:
        causal = found["labels"].shape[1] == IDS.shape[1]
        found["labels"] = found["labels"][:, : LENGTHS[row] if causal else TARGET_LENGTHS[row]]
    return found


def fairseq_alone(batch: Any, row: int) -> Any:
    source, previous = (batch["net_input"][key][row] for key in ("src_tokens", "prev_output_tokens"))
    source = source[source != 1]
    return {
        "net_input": {
            "src_tokens": source[None],
            "src_lengths": torch.tensor([len(source)]),
            "prev_output_tokens": previous[: TARGET_LENGTHS[row]][None],
        },
        "target": batch["target"][row : row + 1, : TARGET_LENGTHS[row]],
    }


def hf_generate(model: nn.Module, beams: int, rows: slice = slice(None)) -> list[torch.Tensor]:
    """Tokens and every step's scores; a causal model is padded on the left."""
    ids, mask = IDS[rows], TOKENS[rows]
    if not model.config.is_encoder_decoder:
        ids = torch.stack([x.roll(int(6 - m.sum())) for x, m in zip(ids, mask, strict=True)])
        mask = mask.flip(1)
    out = model.generate(
        input_ids=ids, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=7,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return [out.sequences, *out.scores]


def fairseq_generate(model: nn.Module, beams: int, rows: slice = slice(None)) -> list[torch.Tensor]:
    from fairseq.sequence_generator import SequenceGenerator

    generator = SequenceGenerator([model], dictionary(), beam_size=beams, max_len_b=7)
    inputs = {k: v[rows] for k, v in FAIRSEQ_BATCH["net_input"].items() if k != "prev_output_tokens"}
    hypotheses = generator.generate([model], {"net_input": inputs})
    return [hypo[key] for best in hypotheses for hypo in best for key in ("tokens", "positional_scores")]


def fairseq_positions(batch: Any, kind: str) -> torch.Tensor:
    return batch["net_input"]["src_tokens"] != 1 if kind == "encoder" else batch["target"] != 1


def _pairs(encoder: str, own: str, cross: str) -> tuple[tuple[str, str, int], ...]:
    enc = [(encoder.format(i), "encoder", i) for i in range(2)]
    dec = [(path.format(i), kind, i) for i in range(2) for path, kind in ((own, "decoder"), (cross, "cross"))]
    return tuple(enc + dec)


def _stack(path: str, kind: str) -> tuple[tuple[str, str, int], ...]:
    return tuple((path.format(i), kind, i) for i in range(2))


FAIRSEQ_BATCH = {
    "net_input": {
        "src_tokens": torch.stack([x.roll(int(6 - m.sum())) for x, m in zip(IDS, TOKENS, strict=True)]),
        "src_lengths": TOKENS.sum(1),
        "prev_output_tokens": torch.tensor([[2, 9, 4, 7, 12], [2, 11, 8, 1, 1], [2, 6, 13, 10, 1]]),
    },
    "target": TARGETS.where(TARGETS != -100, 1),
}
TEXT = {"input_ids": IDS, "attention_mask": TOKENS, "labels": CLASSES}
CAUSAL = {**TEXT, "labels": IDS.where(TOKENS == 1, -100)}
TRANSLATION = {**TEXT, "labels": TARGETS}
IMAGES = {
    "pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    "labels": CLASSES,
}

OLD = hf.__version__.startswith("4.")
VIT = "vit.encoder.layer.{}.attention.output.dense" if OLD else "vit.layers.{}.attention.o_proj"

CASES = {
    case.name: case
    for case in (
        Case("bert", bert, TEXT, _stack("bert.encoder.layer.{}.attention.output.dense", "encoder"),
             hf_logits, class_loss, alone),
        Case("gpt2", gpt2, CAUSAL, _stack("transformer.h.{}.attn.c_proj", "decoder"),
             hf_logits, causal_loss, alone, hf_generate),
        Case("llama", llama, CAUSAL, _stack("model.layers.{}.self_attn.o_proj", "decoder"),
             hf_logits, causal_loss, alone, hf_generate, double=False),
        Case("t5", t5, TRANSLATION,
             _pairs("encoder.block.{}.layer.0.SelfAttention.o", "decoder.block.{}.layer.0.SelfAttention.o",
                    "decoder.block.{}.layer.1.EncDecAttention.o"),
             hf_logits, translation_loss, alone, hf_generate, double=False),
        Case("bart", bart, TRANSLATION,
             _pairs("model.encoder.layers.{}.self_attn.out_proj", "model.decoder.layers.{}.self_attn.out_proj",
                    "model.decoder.layers.{}.encoder_attn.out_proj"),
             hf_logits, translation_loss, alone, hf_generate),
        Case("vit", vit, IMAGES, _stack(VIT, "encoder"), hf_logits, class_loss, alone),
        Case("fairseq", fairseq, FAIRSEQ_BATCH,
             _pairs("encoder.layers.{}.self_attn.out_proj", "decoder.layers.{}.self_attn.out_proj",
                    "decoder.layers.{}.encoder_attn.out_proj"),
             fairseq_logits, fairseq_loss, fairseq_alone, fairseq_generate, functional=True,
             double=False, positions=fairseq_positions),
        Case("torch", torch_encoder, TEXT, _stack("encoder.layers.{}.self_attn.out_proj", "encoder"),
             hf_logits, class_loss, alone, functional=True),
    )
}  # fmt: skip
