"""The first stage on LAVIS's own numbers, in this process or in one of several.

``lavis_first_stage.safetensors`` holds what LAVIS's `Blip2Qformer.forward` (commit 506965b, run on its own `Qformer.py`
under transformers 4.49) made of random weights of tiny width and six captions: the weights by its names, the batch, the
negatives it drew, and losses, logits and gradients (averaged over the processes) of one process and of two, with and
without image ids. Vision features went in before `ln_vision`. Dropout was off.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from instructblip_hf.models.blip_2 import Blip2Config, Blip2ForPreTraining, PreTrainingOptions


FIXTURE = Path(__file__).parent / "models" / "blip_2" / "lavis_first_stage.safetensors"
DEC = 5
QUERIES = 4
RENAMED = (
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.encoder.", "qformer.encoder."),
    ("Qformer.cls.", "cls."),
    ("attention.self.", "attention.attention."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
)


def our_name(lavis_name: str) -> str:
    for theirs, ours in RENAMED:
        lavis_name = lavis_name.replace(theirs, ours)
    return lavis_name


def section(name: str) -> dict[str, torch.Tensor]:
    """The tensors under a name."""
    return {
        key.removeprefix(f"{name}."): value for key, value in load_file(FIXTURE).items() if key.startswith(name + ".")
    }


def lavis_model(**options) -> Blip2ForPreTraining:
    """LAVIS's weights in our model, without dropout; the vision tower's blocks are not used."""
    config = Blip2Config(
        vision_config={"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 28, "layer_norm_eps": 1e-5},
        qformer_config={"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
                        "intermediate_size": 24, "max_position_embeddings": 20, "hidden_dropout_prob": 0.0,
                        "attention_probs_dropout_prob": 0.0, "use_qformer_text_input": True},
        num_query_tokens=QUERIES,
        image_text_hidden_size=8,
    )  # fmt: skip
    model = Blip2ForPreTraining(config)
    weights = {our_name(name): value for name, value in section("weights").items()}
    state = model.state_dict()
    assert weights.keys() <= state.keys(), weights.keys() - state.keys()
    left = {name for name in state.keys() - weights.keys() if not name.startswith("vision_model.")}
    assert left == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    model.load_state_dict(weights, strict=False)
    model.options = PreTrainingOptions(**options)
    return model.eval()


def lavis_batch(rows: slice = slice(None), with_image_ids: bool = False) -> dict[str, torch.Tensor]:
    """The captions and vision features; some, or all."""
    batch = section("batch")
    inputs = {name: batch[name][rows] for name in ("image_states", "input_ids", "attention_mask")}
    inputs["decoder_input_ids"] = inputs["input_ids"].clone()
    inputs["decoder_input_ids"][:, 0] = DEC
    if with_image_ids:
        inputs["image_ids"] = batch["image_ids"][rows]
    return inputs


def run_rank(rank: int, port: int, sizes: list[int], cases: list[tuple[dict, bool, str]], folder: str) -> None:
    """One process of several: losses, and gradients averaged over the processes, of each case into a file."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    rows = slice(start, start + sizes[rank])
    results = []
    for options, with_image_ids, draws in cases:
        model = lavis_model(**options)
        negatives = section(draws)
        if "negative_images" in negatives:  # of all rows
            negatives = {name: negatives[name][rows] for name in ("negative_images", "negative_texts")}
        else:
            negatives = {name: negatives[f"{rank}.{name}"] for name in ("negative_images", "negative_texts")}
        inputs = lavis_batch(rows, with_image_ids)
        # Text of a process is as long as its longest caption.
        length = int(inputs["attention_mask"].sum(1).max())
        for name in ("input_ids", "attention_mask", "decoder_input_ids"):
            inputs[name] = inputs[name][:, :length]
        outputs = model(**inputs, **negatives)
        outputs.loss.backward()
        gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                gradients[name] = parameter.grad / len(sizes)
        losses = {name: outputs[name].detach() for name in ("loss_itc", "loss_itm", "loss_itg")}
        results.append({"losses": losses, "gradients": gradients})
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
