"""Tiny models of more families than models.py has, for surgery: the same kind of table, by hand."""

from __future__ import annotations

import transformers as hf
from models import (
    CASES,
    CAUSAL,
    SIZES,
    TEXT,
    TRANSLATION,
    Case,
    _stack,
    alone,
    causal_loss,
    class_loss,
    hf_generate,
    hf_logits,
    randomized,
    translation_loss,
)
from torch import nn

GROUPED = dict(vocab_size=16, num_key_value_heads=2, bos_token_id=0, eos_token_id=2, pad_token_id=1, **SIZES)


@randomized
def roberta() -> nn.Module:
    return hf.RobertaForSequenceClassification(
        hf.RobertaConfig(vocab_size=16, max_position_embeddings=12, num_labels=3, pad_token_id=1, **SIZES)
    )


@randomized
def distilbert() -> nn.Module:
    config = hf.DistilBertConfig(
        vocab_size=16, max_position_embeddings=12, dim=16, n_layers=2, n_heads=4, hidden_dim=32, num_labels=3,
        pad_token_id=1, dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    return hf.DistilBertForSequenceClassification(config)


@randomized
def _marian() -> nn.Module:
    config = hf.MarianConfig(
        vocab_size=16, max_position_embeddings=16, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=1,
        eos_token_id=2, bos_token_id=0, decoder_start_token_id=1, forced_eos_token_id=None, bad_words_ids=None,
    )  # fmt: skip
    return hf.MarianMTModel(config)


def marian() -> nn.Module:
    """Its sinusoidal positions are not saved, so they stay what the class makes of them."""
    model = _marian()
    fresh = hf.MarianMTModel(model.config)
    for side in ("encoder", "decoder"):
        positions = getattr(fresh.model, side).embed_positions.weight
        getattr(model.model, side).embed_positions.weight.data.copy_(positions)
    return model.eval()


@randomized
def bert_decoder() -> nn.Module:
    config = hf.BertConfig(
        vocab_size=16, max_position_embeddings=16, is_decoder=True, bos_token_id=0, eos_token_id=2, pad_token_id=1,
        **SIZES,
    )  # fmt: skip
    return hf.BertLMHeadModel(config)


@randomized
def mistral() -> nn.Module:
    return hf.MistralForCausalLM(hf.MistralConfig(head_dim=4, sliding_window=None, **GROUPED))


@randomized
def qwen2() -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED))


@randomized
def qwen3() -> nn.Module:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=6, **GROUPED))  # heads wider together than the model


@randomized
def mt5() -> nn.Module:
    config = hf.MT5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return hf.MT5ForConditionalGeneration(config)


@randomized
def umt5() -> nn.Module:
    config = hf.UMT5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return hf.UMT5ForConditionalGeneration(config)


@randomized
def gpt_neox() -> nn.Module:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(vocab_size=16, bos_token_id=0, eos_token_id=2, **SIZES))


@randomized
def olmo2() -> nn.Module:
    return hf.Olmo2ForCausalLM(hf.Olmo2Config(**{**GROUPED, "num_key_value_heads": 4}))


@randomized
def bloom() -> nn.Module:
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=16, hidden_size=16, n_layer=2, n_head=4, pad_token_id=1))


T5_PATHS, BART_PATHS, LLAMA_PATHS = (CASES[name].outputs for name in ("t5", "bart", "llama"))

MORE = {
    case.name: case
    for case in (
        Case("roberta", roberta, TEXT, _stack("roberta.encoder.layer.{}.attention.output.dense", "encoder"),
             hf_logits, class_loss, alone),
        Case("distilbert", distilbert, TEXT, _stack("distilbert.transformer.layer.{}.attention.out_lin", "encoder"),
             hf_logits, class_loss, alone),
        Case("marian", marian, TRANSLATION, BART_PATHS, hf_logits, translation_loss, alone, hf_generate),
        Case("bert-decoder", bert_decoder, CAUSAL, _stack("bert.encoder.layer.{}.attention.output.dense", "decoder"),
             hf_logits, causal_loss, alone, hf_generate),
        Case("mistral", mistral, CAUSAL, LLAMA_PATHS, hf_logits, causal_loss, alone, hf_generate, double=False),
        Case("qwen2", qwen2, CAUSAL, LLAMA_PATHS, hf_logits, causal_loss, alone, hf_generate, double=False),
        Case("qwen3", qwen3, CAUSAL, LLAMA_PATHS, hf_logits, causal_loss, alone, hf_generate, double=False),
        Case("mt5", mt5, TRANSLATION, T5_PATHS, hf_logits, translation_loss, alone, hf_generate, double=False),
        Case("umt5", umt5, TRANSLATION, T5_PATHS, hf_logits, translation_loss, alone, hf_generate, double=False),
    )
}  # fmt: skip
