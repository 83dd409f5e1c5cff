"""A stand-in for a retrieval model, and images to index."""

import types

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import BlipImageProcessorPil

from instructblip_hf.data.sources.shapes_world import build_tokenizer
from instructblip_hf.retrieval import RetrievalEncoder


ROWS, SIZE = 4, 16


class StandIn(nn.Module):
    def __init__(self, seed=0, vocabulary=200):
        super().__init__()
        torch.manual_seed(seed)
        self.vision = nn.Linear(3 * 14 * 14, ROWS * SIZE)
        self.words = nn.Embedding(vocabulary, SIZE)
        self.head = nn.Linear(2 * SIZE, 2)
        content = {"num_query_tokens": ROWS, "image_text_hidden_size": SIZE}
        self.config = types.SimpleNamespace(**content, _name_or_path=f"stand-in-{seed}", to_dict=lambda: content)
        self.calls = 0

    dtype = torch.float32
    device = torch.device("cpu")

    def get_image_features(self, pixel_values):
        self.calls += len(pixel_values)
        small = nn.functional.adaptive_avg_pool2d(pixel_values, 14).flatten(1)
        states = self.vision(small).view(len(pixel_values), ROWS, SIZE)
        return types.SimpleNamespace(
            image_embeds=nn.functional.normalize(states, dim=-1), last_hidden_state=states.tanh()
        )

    def get_text_features(self, input_ids, attention_mask=None):
        mask = attention_mask.unsqueeze(-1)
        states = (self.words(input_ids) * mask).sum(1)
        return types.SimpleNamespace(text_embeds=nn.functional.normalize(states, dim=-1))

    def get_matching_logits(self, input_ids, attention_mask=None, image_states=None):
        text = self.get_text_features(input_ids, attention_mask).text_embeds
        return self.head(torch.cat([image_states.mean(1), text], dim=1))


def stand_in_encoder(seed=0):
    tokenizer = build_tokenizer(for_qformer=True, model_max_length=64)
    processor = types.SimpleNamespace(
        tokenizer=tokenizer, image_processor=BlipImageProcessorPil(size={"height": 56, "width": 56})
    )
    return RetrievalEncoder(StandIn(seed, len(tokenizer)).eval(), processor)


def draw_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
