"""Adapters: stock peft loads all that trained, checkpoints resume bitwise, and merging gives a model of its own."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import FreezingPolicy, VisionLanguageTrainer, apply_freezing
from instructblip_hf.training.adapters import load_adapter, merge_adapter, save_adapter
from tiny_shapes import save_tiny_checkpoint, tiny_processor


POLICY = FreezingPolicy(components={"language_model": "lora"}, lora_rank=2, save="adapter")
ROWS = ShapesWorldDataset(ShapesWorld(seed=3), 24)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: save_tiny_checkpoint(root / kind, kind) for kind in ("causal", "seq2seq")}


def trained(base, policy=POLICY):
    """A model of which everything that trains has moved, LoRA's zero matrices too."""
    model = InstructBlipForConditionalGeneration.from_pretrained(base)
    apply_freezing(model, policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    def make(kind):
        rows = [ROWS[index] for index in range(3)]
        return tiny_processor().encode_examples(rows, is_encoder_decoder=kind == "seq2seq")

    return {kind: make(kind) for kind in ("causal", "seq2seq")}


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("stock", [False, True], ids=["our_base", "stock_base"])
def test_stock_peft_loads_everything_that_trained(kind, stock, bases, inputs, tmp_path):
    model = trained(bases[kind])
    save_adapter(model, tmp_path)
    owner = transformers if stock else None
    cls = owner.InstructBlipForConditionalGeneration if owner else InstructBlipForConditionalGeneration
    for options in ({}, {"low_cpu_mem_usage": True}):
        base = cls.from_pretrained(bases[kind])
        before = logits(base, inputs[kind])
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path), **options).eval()
        assert torch.equal(logits(loaded, inputs[kind]), logits(model, inputs[kind]))
        assert (before - logits(model, inputs[kind])).abs().max() > 0.1
    state = {name.replace("modules_to_save.default.", ""): value for name, value in loaded.state_dict().items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(state[f"base_model.model.{name}"], parameter), name


def test_each_trained_tensor_is_in_the_file_and_needed(bases, inputs, tmp_path):
    """Leaving any one of them out of the file changes what peft loads, or is an error: none is there for nothing."""
    model = trained(bases["causal"])
    save_adapter(model, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == sum(parameter.requires_grad for parameter in model.parameters())
    assert "base_model.model.query_tokens" in weights
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["language_projection", "qformer", "vision_model.post_layernorm"]
    assert config["base_model_name_or_path"] == str(bases["causal"])
    for key in ("base_model.model.query_tokens", "base_model.model.language_projection.weight"):
        save_file({k: v for k, v in weights.items() if k != key}, tmp_path / "adapter_model.safetensors")
        try:
            base = InstructBlipForConditionalGeneration.from_pretrained(bases["causal"])
            loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
        except KeyError:
            continue
        assert not torch.equal(logits(loaded, inputs["causal"]), logits(model, inputs["causal"]))


def test_parts_of_modules_and_names_that_end_alike(bases, inputs, tmp_path):
    """What trains inside of a frozen module, and one of two modules with the same name, reach peft as well."""
    policy = FreezingPolicy(
        preset=None,
        components={
            "language_model": "lora",
            "language_model.lm_head": "train",
            "vision_model.encoder.layers.1": "train",
            "qformer": "train",
            "qformer.embeddings": "frozen",
            "qformer.encoder.layer.0.attention": "lora",
        },
        lora_rank=2,
        lora_target_modules=["q_proj", "query"],
    )
    model = trained(bases["causal"], policy)
    save_adapter(model, tmp_path)
    base = InstructBlipForConditionalGeneration.from_pretrained(bases["causal"])
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert torch.equal(logits(loaded, inputs["causal"]), logits(model, inputs["causal"]))


def test_what_does_not_fit_is_an_error_and_not_a_loss(bases, tmp_path):
    save_adapter(trained(bases["causal"]), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    lora = next(key for key in weights if "lora_A" in key)
    for changed, message in (
        ({k: v for k, v in weights.items() if k != lora}, "1 missing tensors: .*lora_A"),
        ({**weights, "base_model.model.query_token": torch.zeros(1)}, "1 unexpected tensors: .*query_token"),
    ):
        save_file(changed, tmp_path / "adapter_model.safetensors")
        with pytest.raises(KeyError, match=message):
            load_adapter(tmp_path)


def test_no_lora_or_no_base_cannot_be_an_adapter(bases, tmp_path):
    model = InstructBlipForConditionalGeneration.from_pretrained(bases["causal"])
    with pytest.raises(ValueError, match="has no LoRA layers"):
        save_adapter(model, tmp_path)
    fresh = InstructBlipForConditionalGeneration(model.config)
    fresh.config.name_or_path = ""
    fresh.name_or_path = ""
    with pytest.raises(ValueError, match="not loaded from a folder or the Hub"):
        VisionLanguageTrainer(fresh, TrainingArguments(str(tmp_path)), tiny_processor(), POLICY)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_merged_it_is_a_model_of_its_own(kind, bases, inputs, tmp_path):
    model = trained(bases[kind])
    save_adapter(model, tmp_path / "adapter")
    tiny_processor().save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "merged")
    expected, actual = logits(model, inputs[kind]), logits(merged, inputs[kind])
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max(), "the sum is rounded, once a weight"
    InstructBlipProcessor.from_pretrained(tmp_path / "merged")
    with pytest.raises(FileExistsError, match="not empty"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        (tmp_path / "adapter" / "adapter_config.json").read_text().replace(str(bases[kind]), "/gone/base")
    )
    with pytest.raises(OSError, match="belongs to /gone/base, which cannot be loaded"):
        merge_adapter(tmp_path / "adapter", tmp_path / "again")
    merge_adapter(tmp_path / "adapter", tmp_path / "again", base=bases[kind])


def arguments(folder, **options):
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **options}
    return TrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, seed=5, warmup_steps=1, **options
    )


def trainer(base, folder, **options):
    model = InstructBlipForConditionalGeneration.from_pretrained(base)
    return VisionLanguageTrainer(
        model, arguments(folder, **options), tiny_processor(), POLICY, train_dataset=ROWS, eval_dataset=ROWS
    )


def test_checkpoints_are_adapters_and_resume_bitwise(bases, tmp_path):
    whole = trainer(bases["causal"], tmp_path / "whole")
    whole.train()
    whole.save_model()
    stopped = trainer(bases["causal"], tmp_path / "out", save_strategy="steps", save_steps=2)
    stopped.train()
    assert not (tmp_path / "out" / "checkpoint-2" / "model.safetensors").exists()
    resumed = trainer(bases["causal"], tmp_path / "out", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    resumed.save_model()
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    base = load_file(bases["causal"] / "model.safetensors")
    assert not torch.equal(first["base_model.model.query_tokens"], base["query_tokens"])
    InstructBlipProcessor.from_pretrained(tmp_path / "out")


def test_the_best_checkpoint_is_loaded_at_the_end(bases, tmp_path):
    run = trainer(
        bases["causal"],
        tmp_path,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        learning_rate=5.0,
        load_best_model_at_end=True,
    )
    run.train()
    run.save_model()
    best = run.state.best_model_checkpoint
    assert not best.endswith("checkpoint-4"), "the last one would prove nothing"
    kept, final = (load_file(f"{folder}/adapter_model.safetensors") for folder in (best, tmp_path))
    assert all(torch.equal(kept[key], final[key]) for key in kept)
