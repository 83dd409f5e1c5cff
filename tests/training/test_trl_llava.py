"""TRL's `SFTTrainer` on LLaVA: what its collator makes of rows is what ours does, losses are those of rows alone.

`test_trl.py` has what the families share: checkpointing of activations, evaluation, precision.
"""

import copy

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.trl_rows import FORMS, trl_dataset, trl_row
from instructblip_hf.training import apply_freezing
from instructblip_hf.training.arguments import ModelArguments
from instructblip_hf.training.run import load_model
from tiny_llava_parts import save_llava_parts


pytest.importorskip("trl", minversion="1.15", reason="TRL needs Python 3.11")

from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


if Version(transformers.__version__) < Version("5.18"):
    FORMS = ("prompt_completion",)


def picture(seed):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (30, 40, 3), dtype=np.uint8))


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts)]


ROWS = [
    {"images": [picture(0)], "messages": turns("<image>\nWhat is it?", "A cat. 日本 😀", "Where?", "on the mat")},
    {"images": [picture(1)], "messages": turns("What is it?\n<image>", "[0.1, 0.2]")},
    {"images": [], "messages": turns("What is it?", "the dog")},
    {"images": [picture(2), picture(3)], "messages": turns("Is <image> left of <image>?", "no", "Sure?", "Yes.")},
    {"images": [picture(4)], "prompt": "Where is it?", "completion": "here"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava_parts(tmp_path_factory.mktemp("llava"))["llava"]


def model_and_processor(folder, template="v1"):
    return load_model(ModelArguments(path=str(folder), chat_template=template))


def config(out, form, **changes):
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": len(ROWS),
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "assistant_only_loss": form == "messages",
        "remove_unused_columns": False,
        "max_length": None,
    }
    return SFTConfig(output_dir=str(out), **{**options, **changes})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def collator_of(processor, form):
    return DataCollatorForVisionLanguageModeling(
        processor, completion_only_loss=form == "prompt_completion", assistant_only_loss=form == "messages"
    )


def loss_by_hand(model, collate, rows):
    """Mean over the label tokens of all rows, each row alone."""
    total, tokens = 0.0, 0
    for row in rows:
        inputs = dict(collate([copy.deepcopy(row)]))
        labels = inputs.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        chosen = labels != -100
        total += torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="sum").item()
        tokens += int(chosen.sum())
    return total / tokens


@pytest.mark.skipif("messages" not in FORMS, reason="assistant_only_loss needs transformers 5.18")
@pytest.mark.parametrize("template", ["v0", "v1", "llava_llama_2"])
def test_tokens_and_labels_are_those_of_our_collator(template, folder):
    _, processor = model_and_processor(folder, template)
    rows = [trl_row(row, "messages") for row in ROWS]
    expected = VisionLanguageCollator(processor)(rows)
    found = collator_of(processor, "messages")(copy.deepcopy(rows))
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    for row in range(len(rows)):
        own, ours = found["attention_mask"][row].bool(), expected["attention_mask"][row].bool()
        assert found["input_ids"][row][own].tolist() == expected["input_ids"][row][ours].tolist()
        assert found["labels"][row][own].tolist() == expected["labels"][row][ours].tolist()


def test_answers_apart_from_their_prompt(folder):
    """The words that are learnt, and their end, are ours; only the last turn is."""
    _, processor = model_and_processor(folder)
    rows = [trl_row(row, "prompt_completion") for row in ROWS]
    found = collator_of(processor, "prompt_completion")(copy.deepcopy(rows))
    ours = VisionLanguageCollator(processor)(rows)
    for labels, expected in zip(found["labels"], ours["labels"]):
        words, our_words = (processor.decode(own[own != -100]) for own in (labels, expected))
        assert words.split() == our_words.split()
        assert words.endswith("</s>")


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_those_of_rows_alone(form, folder, tmp_path):
    model, processor = model_and_processor(folder)
    # Apart, a completion's first word is split from its space in TRL's way.
    collate = VisionLanguageCollator(processor) if form == "messages" else collator_of(processor, form)
    expected = loss_by_hand(model, collate, [trl_row(row, form) for row in ROWS])
    apply_freezing(model, "llava-stage2")
    before = copy.deepcopy(model.state_dict())
    trainer = SFTTrainer(
        model,
        config(tmp_path, form, max_steps=2),
        train_dataset=trl_dataset(ROWS, form),
        processing_class=processor,
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-5)
    assert losses(trainer)[1] < losses(trainer)[0]
    changed = {
        name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"multi_modal_projector", "language_model"}


def test_lora_with_the_projector_saved_as_a_whole(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = model_and_processor(folder)
    trainer = SFTTrainer(
        model,
        config(tmp_path, "prompt_completion", max_steps=2),
        train_dataset=trl_dataset(ROWS, "prompt_completion"),
        processing_class=processor,
        peft_config=peft.LoraConfig(
            r=2, target_modules=r"language_model\..*\.[qv]_proj", modules_to_save=["multi_modal_projector"]
        ),
    )
    trainer.train()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "multi_modal_projector.modules_to_save" in name for name in trained)
    trainer.save_model(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(model_and_processor(folder)[0], tmp_path / "adapter").eval()
    inputs = processor(images=picture(0), text=processor.user_turn("What is it?"), return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_text_alone(form, folder, tmp_path):
    model, processor = model_and_processor(folder)
    expected = loss_by_hand(model, collator_of(processor, form), [trl_row(ROWS[2], form)])
    apply_freezing(model, "llava-stage2")
    trainer = SFTTrainer(
        model,
        config(tmp_path, form, per_device_train_batch_size=2),
        train_dataset=trl_dataset([ROWS[2]] * 2, form),
        processing_class=processor,
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-5)
