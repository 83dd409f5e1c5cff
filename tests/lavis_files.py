"""Files in LAVIS's layout, tiny, with LAVIS's names written out: nothing here reads the package's own table of names."""

from __future__ import annotations

import json

import torch
import transformers
from safetensors.torch import load_file, save_file

from instructblip_hf.conversion import Heads
from tiny_models import VOCABULARY, text_config


VISION = {"hidden": 32, "inner": 48, "layers": 2, "patch": 14, "side": 28}
QFORMER = {"hidden": 24, "inner": 40, "layers": 4, "queries": 4, "words": 121, "positions": 40}
HEADS = {"vision": 4, "qformer": 2}
EMBED = 16
LANGUAGE_WIDTH = 32


class _Names(dict):
    """Collects random tensors by name."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def put(self, name, *shape, dtype=torch.float32):
        self[name] = (0.2 * torch.randn(*shape, generator=self.generator)).to(dtype)

    def linear(self, name, inputs, outputs, dtype=torch.float32):
        self.put(f"{name}.weight", outputs, inputs, dtype=dtype)
        self.put(f"{name}.bias", outputs, dtype=dtype)

    def norm(self, name, size):
        self[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=self.generator)
        self.put(f"{name}.bias", size)


def vision_tower(prefix="", side=VISION["side"], layers=VISION["layers"], half=False, extra=False, seed=0):
    """The tower; with ``half`` its matrices are in float16, as LAVIS's, with ``extra`` parts that LAVIS ignores."""
    names = _Names(seed)
    width, inner, patch = VISION["hidden"], VISION["inner"], VISION["patch"]
    dtype = torch.float16 if half else torch.float32
    names.put(f"{prefix}cls_token", 1, 1, width)
    names.put(f"{prefix}pos_embed", 1, (side // patch) ** 2 + 1, width)
    names.put(f"{prefix}patch_embed.proj.weight", width, 3, patch, patch, dtype=dtype)
    names.put(f"{prefix}patch_embed.proj.bias", width, dtype=dtype)
    for index in range(layers):
        block = f"{prefix}blocks.{index}"
        names.norm(f"{block}.norm1", width)
        names.put(f"{block}.attn.q_bias", width)
        names.put(f"{block}.attn.v_bias", width)
        names.put(f"{block}.attn.qkv.weight", 3 * width, width, dtype=dtype)
        names.linear(f"{block}.attn.proj", width, width, dtype)
        names.norm(f"{block}.norm2", width)
        names.linear(f"{block}.mlp.fc1", width, inner, dtype)
        names.linear(f"{block}.mlp.fc2", inner, width, dtype)
    if extra:
        names.norm(f"{prefix}norm", width)
        names.norm(f"{prefix}fc_norm", width)
        names.linear(f"{prefix}head", width, 10)
    return dict(names)


def qformer(text=True, head=False, seed=1):
    """Query tokens, `ln_vision` and the Q-Former."""
    names = _Names(seed)
    width, inner = QFORMER["hidden"], QFORMER["inner"]
    names.put("query_tokens", 1, QFORMER["queries"], width)
    names.norm("ln_vision", VISION["hidden"])
    bert = "Qformer.bert"
    if text:
        names.put(f"{bert}.embeddings.word_embeddings.weight", QFORMER["words"], width)
        names.put(f"{bert}.embeddings.position_embeddings.weight", QFORMER["positions"], width)
    names.norm(f"{bert}.embeddings.LayerNorm", width)
    names[f"{bert}.embeddings.position_ids"] = torch.arange(QFORMER["positions"]).unsqueeze(0)
    for index in range(QFORMER["layers"]):
        layer = f"{bert}.encoder.layer.{index}"
        for attention, source in (("attention", width), ("crossattention", VISION["hidden"])):
            if attention == "crossattention" and index % 2:
                continue
            names.linear(f"{layer}.{attention}.self.query", width, width)
            names.linear(f"{layer}.{attention}.self.key", source, width)
            names.linear(f"{layer}.{attention}.self.value", source, width)
            names.linear(f"{layer}.{attention}.output.dense", width, width)
            names.norm(f"{layer}.{attention}.output.LayerNorm", width)
        for stream in ("", "_query") if text else ("_query",):
            names.linear(f"{layer}.intermediate{stream}.dense", width, inner)
            names.linear(f"{layer}.output{stream}.dense", inner, width)
            names.norm(f"{layer}.output{stream}.LayerNorm", width)
    if head:
        predictions = "Qformer.cls.predictions"
        names.put(f"{predictions}.bias", QFORMER["words"])
        names.linear(f"{predictions}.transform.dense", width, width)
        names.norm(f"{predictions}.transform.LayerNorm", width)
        names[f"{predictions}.decoder.weight"] = names[f"{bert}.embeddings.word_embeddings.weight"]
        names[f"{predictions}.decoder.bias"] = names[f"{predictions}.bias"]
    return dict(names)


def first_stage(seed=2, head=True):
    """All of the first stage but the vision tower."""
    names = _Names(seed)
    for name, size in (("vision_proj", EMBED), ("text_proj", EMBED), ("itm_head", 2)):
        names.linear(name, QFORMER["hidden"], size)
    return {**qformer(head=head), **names, **({"temp": torch.tensor(0.06)} if head else {})}


def second_stage(prefix, text=False, seed=3):
    """The Q-Former with a projection into a language model: BLIP-2's, or with ``text`` InstructBLIP's."""
    names = _Names(seed)
    names.linear(f"{prefix}_proj", QFORMER["hidden"], LANGUAGE_WIDTH)
    return {**qformer(text=text), **names}


def save_language_model(kind, folder, seed=0, dtype=torch.float32, vocabulary=VOCABULARY):
    """Folder of a tiny language model of transformers, "llama", "opt" or "t5"; T5's head is its own, as FlanT5's."""
    torch.manual_seed(seed)
    config = text_config(kind)
    config.vocab_size = vocabulary
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    model = auto.from_config(config).to(dtype)
    model.save_pretrained(folder)
    if kind == "t5":
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        stored = json.loads((folder / "config.json").read_text())
        stored.pop("scale_decoder_outputs", None)
        (folder / "config.json").write_text(json.dumps({**stored, "tie_word_embeddings": False}))
    return folder


def save(path, tensors, **others):
    """Writes a file as LAVIS's runner does."""
    torch.save({"model": tensors, "optimizer": {"state": {}}, "scaler": None, "epoch": 3, **others}, path)
    return path


def load(path):
    """The weights of a file."""
    return torch.load(path, weights_only=True)["model"]


def same_bits(first, second):
    """Names whose tensors are not the same, bit by bit, on both sides."""
    names = set(first) ^ set(second)
    for name in set(first) & set(second):
        one, other = first[name], second[name]
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        names |= set() if same else {name}
    return names


OPTIONS = {"heads": Heads(HEADS["vision"], HEADS["qformer"]), "vision_layers": VISION["layers"]}

# Name of a case: LAVIS's tensors, language model, side of the vision tower that the checkpoint holds, if it does.
CASES = {
    "instructblip-vicuna": (lambda: second_stage("llm", text=True), "llama", None),
    "instructblip-t5": (lambda: second_stage("t5", text=True), "t5", None),
    "stage-2-opt": (lambda: second_stage("opt"), "opt", None),
    "stage-2-t5": (lambda: second_stage("t5"), "t5", None),
    "stage-2-vicuna": (lambda: second_stage("llm"), "llama", None),
    "captioning-opt": (lambda: second_stage("opt"), "opt", 56),
    "stage-1": (first_stage, None, None),
    "retrieval": (first_stage, None, 56),
}
KINDS = {
    "instructblip-vicuna": "instructblip",
    "instructblip-t5": "instructblip",
    "stage-1": "blip-2-pretraining",
    "retrieval": "blip-2-pretraining",
}
