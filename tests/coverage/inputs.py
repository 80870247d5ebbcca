"""One small batch for any model, from the names of its forward pass's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from shrink import ROWS, TOKENS
from torch import nn


def batches_for(model: nn.Module, config: Any, rows: int = ROWS) -> Iterator[dict[str, Any]]:
    """Keyword inputs to try on `model`: what it requires and what most models need; then its text alone."""
    signature = inspect.signature(model.forward).parameters
    required = [n for n, p in signature.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    main = getattr(model, "main_input_name", None)
    usual = [n for n in USUAL if n in signature] + (
        [main] if main in signature and "input_ids" not in signature else []
    )
    tried = []
    maker_of = {
        **MAKERS,
        **(PACKED if "grid_thw" in required else {}),
        **(FLAT if "spatial_shapes" in signature else {}),
    }
    for names in (required + usual, [*required, *(n for n in usual if "ids" in n)], required):
        batch = {n: maker_of[n](Maker(config, model.dtype, rows)) for n in dict.fromkeys(names) if n in maker_of}
        if batch and sorted(batch) not in tried:
            tried.append(sorted(batch))
            yield batch
            if "pixel_values" in batch and batch["pixel_values"].dim() == 4:  # films, several images a row
                frames = Maker(config).size("num_frames", "frames_per_clip", "num_image_with_embedding", default=2)
                yield {**batch, "pixel_values": batch["pixel_values"].unsqueeze(1).repeat(1, frames, 1, 1, 1)}
            if "input_values" in batch and batch["input_values"].dim() == 2:  # sound by channels
                yield {**batch, "input_values": batch["input_values"].unsqueeze(1)}
            if "input_features" in batch:  # [B, T, mel bins]
                yield {**batch, "input_features": batch["input_features"].transpose(1, 2)}


class Maker:
    """Random inputs of the sizes that a configuration asks for, always the same ones."""

    def __init__(self, config: Any, dtype: torch.dtype = torch.float64, rows: int = ROWS) -> None:
        self.config, self.dtype, self.rows = config, dtype, rows
        self.seed = torch.Generator().manual_seed(5)

    def size(self, *names: str, default: int) -> int:
        """The first of the configuration's (or a part's) fields that has one of these names."""
        parts = [self.config, *(v for v in vars(self.config).values() if hasattr(v, "to_dict"))]
        for part in parts:
            for name in names:
                value = getattr(part, name, None)
                value = value[0] if isinstance(value, list | tuple) and value else value
                if type(value) is int and value > 0:
                    return value
        return default

    def ids(self, *shape: int) -> torch.Tensor:
        return torch.randint(5, max(6, min(60, self.size("vocab_size", default=64))), shape, generator=self.seed)

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.seed, dtype=torch.float64).to(self.dtype)

    @property
    def image(self) -> tuple[int, int, int]:
        side = self.size("image_size", "img_size", default=32)
        return self.size("num_channels", "in_channels", "in_chans", default=3), side, side

    @property
    def mels(self) -> int:
        return self.size(
            "feature_projection_input_dim",
            "num_mel_bins",
            "feature_size",
            "input_feat_per_channel",
            "input_dim",
            default=16,
        )

    @property
    def width(self) -> int:
        return self.size("hidden_size", "d_model", default=32)


def _boxes(m: Maker) -> torch.Tensor:
    corners = torch.randint(1, 30, (m.rows, TOKENS, 2), generator=m.seed)
    return torch.cat([corners, corners + torch.randint(1, 30, (m.rows, TOKENS, 2), generator=m.seed)], -1)


def _film(m: Maker) -> torch.Tensor:
    return m.floats(m.rows, m.size("num_frames", "frames_per_clip", default=2), *m.image)


def _patches(m: Maker) -> torch.Tensor:
    side, films = m.size("patch_size", default=8), m.size("temporal_patch_size", default=1)
    return m.floats(m.rows * 16, m.image[0] * films * side * side)


USUAL = (
    "input_ids",
    "pixel_values",
    "input_features",
    "decoder_input_ids",
    "bbox",
    "flattened_patches",
    "visual_feats",
    "visual_pos",
)
MAKERS = {
    "input_ids": lambda m: m.ids(m.rows, TOKENS),
    "decoder_input_ids": lambda m: m.ids(m.rows, TOKENS - 2),
    "attention_mask": lambda m: torch.ones(m.rows, TOKENS, dtype=torch.long),
    "pixel_values": lambda m: m.floats(m.rows, *m.image),
    "pixel_mask": lambda m: torch.ones(m.rows, *m.image[1:], dtype=torch.long),
    "input_features": lambda m: m.floats(m.rows, m.mels, 2 * m.size("max_source_positions", default=16)),
    "input_features_mask": lambda m: torch.ones(
        m.rows, 2 * m.size("max_source_positions", default=16), dtype=torch.long
    ),
    "feature_attention_mask": lambda m: torch.ones(
        m.rows, 2 * m.size("max_source_positions", default=16), dtype=torch.long
    ),
    "pixel_values_videos": _film,
    "query_embeds": lambda m: m.floats(m.rows, TOKENS, m.width),
    "input_values": lambda m: (
        m.floats(m.rows, 64, m.mels) if hasattr(m.config, "frequency_stride") else m.floats(m.rows, 1600)
    ),
    "inputs": lambda m: m.floats(m.rows, TOKENS, m.width),
    "flattened_patches": lambda m: m.floats(m.rows, TOKENS, 2 + m.size("patch_embed_hidden_size", default=768)).abs(),
    "visual_feats": lambda m: m.floats(m.rows, 5, m.size("visual_feat_dim", default=32)),
    "visual_pos": lambda m: m.floats(m.rows, 5, 4),
    "image_grid_thw": lambda m: torch.tensor([[1, 4, 4]] * m.rows),
    "context": lambda m: m.floats(m.rows, TOKENS, m.width),
    "bbox": _boxes,
    "inputs_embeds": lambda m: m.floats(m.rows, TOKENS, m.width),
    "hidden_states": lambda m: m.floats(m.rows, TOKENS, m.width),
    "encoder_hidden_states": lambda m: m.floats(
        m.rows, TOKENS + 2, m.size("encoder_hidden_size", "hidden_size", default=32)
    ),
}

#: vision towers that take the patches of all images as one sequence
PACKED = {
    "hidden_states": _patches,
    "pixel_values": _patches,
    "grid_thw": lambda m: torch.tensor([[1, 4, 4]] * m.rows),
    "merge_sizes": lambda m: torch.tensor([1] * m.rows),
}

#: vision towers that take a row of patches an image
FLAT = {
    "pixel_values": lambda m: _patches(m).unflatten(0, (m.rows, 16)),
    "pixel_attention_mask": lambda m: torch.ones(m.rows, 16, dtype=torch.long),
    "spatial_shapes": lambda m: torch.tensor([[4, 4]] * m.rows),
}
