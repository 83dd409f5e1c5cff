"""QLoRA: LoRA trains on a language model in 4 or 8 bits, the adapter fits the quantised and the whole base."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from instructblip_hf import InstructBlipForConditionalGeneration
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import FreezingPolicy, ModelArguments, VisionLanguageTrainer
from instructblip_hf.training.adapters import load_adapter, merge_adapter
from instructblip_hf.training.quantization import parameter_count
from instructblip_hf.training.run import load_model
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")

POLICY = FreezingPolicy(components={"language_model": "lora"}, lora_rank=2)
ROWS = ShapesWorldDataset(ShapesWorld(seed=3), 16)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base")


def trainer(base, folder, quantization, **options):
    model, processor = load_model(ModelArguments(str(base), quantization=quantization))
    arguments = TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    return VisionLanguageTrainer(model, arguments, processor, POLICY, train_dataset=ROWS, eval_dataset=ROWS)


@torch.no_grad()
def logits(model):
    batch = tiny_processor().encode_examples([ROWS[index] for index in range(3)], is_encoder_decoder=False)
    return model(**batch).logits


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_adapter_of_a_quantised_run(quantization, base, tmp_path):
    run = trainer(base, tmp_path / "out", quantization, save_strategy="no")
    model = run.model
    before = {name: copy.deepcopy(tensor) for name, tensor in model.state_dict().items()}
    whole = sum(parameter.numel() for parameter in tiny_model().parameters())
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert sum(map(parameter_count, model.parameters())) == whole + lora == run.freezing_report.total
    run.train()
    run.save_model()
    after = model.state_dict()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(torch.equal(after[name], before[name]) for name in before if name not in trained)
    assert all(not torch.equal(after[name], before[name]) for name in trained if "lora_B" in name)
    model.eval()

    again = load_adapter(tmp_path / "out", quantization=quantization)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    unquantised = InstructBlipForConditionalGeneration.from_pretrained(base)
    by_peft = peft.PeftModel.from_pretrained(unquantised, str(tmp_path / "out")).eval()
    exact, rounded, untrained = logits(by_peft), logits(model), logits(tiny_model())
    assert (exact - rounded).abs().max() < 0.2 * (exact - untrained).abs().max(), "quantising is the smaller change"

    merge_adapter(tmp_path / "out", tmp_path / "merged")
    merged = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_quantised_run_resumes_bitwise_with_evaluations_on_the_way(base, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trainer(base, tmp_path, "nf4", **options).train()
    whole = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    trainer(base, tmp_path, "nf4", **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_what_quantised_weights_cannot_do(base, tmp_path):
    model, processor = load_model(ModelArguments(str(base), quantization="nf4"))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    merged = FreezingPolicy(components={"language_model": "lora"}, save="merged")
    with pytest.raises(ValueError, match="updates cannot be added to quantised weights"):
        VisionLanguageTrainer(model, arguments, processor, merged)
    with pytest.raises(ValueError, match="is quantised .* and cannot train"):
        VisionLanguageTrainer(model, arguments, processor, "all")
