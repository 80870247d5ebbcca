"""A model with two stacks of encoder heads: a tiny CLIP, 8 heads of text and 8 of images, with batches and a loss."""

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
TEXT = {**SIZE, "vocab_size": 30, "eos_token_id": 29}
DRAW = torch.Generator().manual_seed(5)
BATCHES = [
    {
        "input_ids": torch.randint(0, 30, (4, 5), generator=DRAW),
        "pixel_values": torch.randn(4, 3, 8, 8, generator=DRAW),
    }
    for _ in range(3)
]


class Wrapped(nn.Module):
    """The model inside another, as a training with a loss of its own has it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.clip = build(seed)

    def forward(self, **batch):
        return self.clip(**batch)


def build(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config={**SIZE, "image_size": 8, "patch_size": 4})).eval()


def loss(model: nn.Module, batch) -> torch.Tensor:
    found = model(**batch)
    return -(found.text_embeds * found.image_embeds).sum(-1)
