"""A tiny random retrieval model, and images to index."""

import numpy as np
from PIL import Image
from transformers import BlipImageProcessorPil

from instructblip_hf.data.sources.shapes_world import build_tokenizer
from instructblip_hf.models.blip_2 import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor
from instructblip_hf.retrieval import RetrievalEncoder
from tiny_models import IMAGE_SIZE, NUM_QUERY_TOKENS, first_stage_config, randomise


def retrieval_processor():
    return Blip2Processor(
        BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        build_tokenizer(for_qformer=True, model_max_length=64),
        num_query_tokens=NUM_QUERY_TOKENS,
    )


def retrieval_model(seed=0):
    tokenizer = build_tokenizer(for_qformer=True)
    config = first_stage_config(image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    config["qformer_config"] |= {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    return randomise(Blip2ForImageTextRetrieval(Blip2Config(**config)), seed).eval()


class CountingEncoder(RetrievalEncoder):
    """Counts the images that it encodes."""

    encoded = 0

    def encode_images(self, pixel_values):
        self.encoded += len(pixel_values)
        return super().encode_images(pixel_values)


def retrieval_encoder(seed=0):
    return CountingEncoder(retrieval_model(seed), retrieval_processor(), f"tiny-{seed}")


def save_retrieval_checkpoint(folder, seed=0):
    """Writes model and processor to a folder, and returns it."""
    retrieval_model(seed).save_pretrained(folder)
    retrieval_processor().save_pretrained(folder)
    return folder


def draw_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
