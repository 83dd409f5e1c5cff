"""TRL's `SFTTrainer` on our models: labels, instructions, losses, LoRA, checkpointing of activations, evaluation.

What TRL makes of a row is compared with what our own collator makes of it; losses with cross-entropy over full logits,
computed here row by row and without padding, and with `VisionLanguageTrainer`.
"""

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from transformers import BlipImageProcessorPil, TrainingArguments

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.data.trl_rows import FORMS, trl_dataset, trl_row
from instructblip_hf.training import VisionLanguageTrainer, apply_freezing
from tiny_shapes import tiny_model, tiny_processor
from tiny_tokenizers import LANGUAGE_TOKENIZERS, language_tokenizer, qformer_tokenizer


pytest.importorskip("trl", minversion="1.15", reason="TRL needs Python 3.11")

from datasets import Dataset, IterableDataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


if Version(transformers.__version__) < Version("5.18"):
    FORMS = ("prompt_completion",)

CAUSAL = [kind for kind in LANGUAGE_TOKENIZERS if kind != "t5"]
# These mark the start of a word by themselves, and differ where an answer does not follow words in the same text.
SENTENCEPIECE = [kind for kind in CAUSAL if language_tokenizer(kind).tokenize("a") != ["a"]]


def picture(seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (56, 56, 3), dtype=np.uint8))


def turns(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


def tricky_rows():
    """No, one and several images, in front, at the end and between words; one turn and two; short and long prompts."""
    short, long = "where is it?", "in this picture, what is the size of the purple object on the left?"
    return [
        {"images": [picture(0)], "prompt": long, "completion": "large"},
        {"images": [], "prompt": short, "completion": "the bottom right"},
        {"images": [picture(1), picture(2)], "prompt": short, "completion": "left"},
        {"images": [picture(3)], "messages": turns("what color is it?", "the circle is red.", short, "center")},
        {"images": [picture(4), picture(5)], "prompt": "is <image> left of <image> ?", "completion": "no"},
        {"images": [picture(6)], "prompt": "where is it?<image>", "completion": "right"},
    ]


def collator_of(processor, form):
    return DataCollatorForVisionLanguageModeling(
        processor, completion_only_loss=form == "prompt_completion", assistant_only_loss=form == "messages"
    )


def config(folder, form="messages", **changes):
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 4,
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
    return SFTConfig(output_dir=str(folder), **{**options, **changes})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def loss_by_hand(model, processor, rows):
    """Mean over the label tokens of all rows, each row alone."""
    total, tokens = 0.0, 0
    for row in rows:
        inputs = processor.encode_examples([row])
        labels = inputs.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        chosen = labels != -100
        total += torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="sum").item()
        tokens += int(chosen.sum())
    return total / tokens


# --- what TRL's collator makes of our rows ------------------------------------------------------------------------


def other_processor(kind):
    return InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": 14, "width": 14}),
        language_tokenizer(kind),
        qformer_tokenizer(),
        num_query_tokens=3,
    )


@pytest.mark.parametrize("kind", ["shapes", *CAUSAL])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_labels_and_instructions_are_those_of_our_collator(kind, form):
    processor = tiny_processor() if kind == "shapes" else other_processor(kind)
    rows = [trl_row(row, form) for row in tricky_rows()]
    expected = VisionLanguageCollator(processor)(rows)
    found = collator_of(processor, form)(copy.deepcopy(rows))
    assert set(found) == set(expected)
    for key in ("pixel_values", "qformer_input_ids", "qformer_attention_mask"):
        assert torch.equal(found[key], expected[key]), key
    mask = found["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values), "padding is at the end of a row alone"
    end = processor.tokenizer.eos_token_id
    for row in range(len(rows)):
        own, ours = mask[row].bool(), expected["attention_mask"][row].bool()
        labels, our_labels = found["labels"][row][own], expected["labels"][row][ours]
        assert (labels[-1], our_labels[-1]) == (end, end)
        after_image = form == "messages" and rows[row]["messages"][-2]["content"][-1]["type"] == "image"
        if kind in SENTENCEPIECE and (form == "prompt_completion" or after_image):
            learnt, our_learnt = labels[labels != -100], our_labels[our_labels != -100]
            assert learnt.tolist()[-len(our_learnt) + 1 :] == our_learnt.tolist()[1:]
            assert processor.decode(learnt).strip() == processor.decode(our_learnt).strip()
        else:
            assert found["input_ids"][row][own].tolist() == expected["input_ids"][row][ours].tolist()
            assert labels.tolist() == our_labels.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_the_qformer_reads_the_turns_of_the_user_alone(form):
    processor = tiny_processor()
    row = trl_row({"images": [picture()], "messages": turns("is it red?", "no", "is it blue?", "yes")}, form)
    batch = collator_of(processor, form)([row])
    read = processor.qformer_tokenizer.decode(batch["qformer_input_ids"][0], skip_special_tokens=True)
    assert read == "is it red? is it blue?"


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["causal", "opt"])
@pytest.mark.parametrize("form", FORMS)
def test_the_first_loss_is_the_cross_entropy_over_full_logits(kind, form, tmp_path):
    """Prompts of different lengths and a row without an image; as with our own trainer."""
    rows = [trl_row(row, form) for row in tricky_rows()]
    expected = loss_by_hand(tiny_model(kind).eval(), tiny_processor(), rows)
    theirs = SFTTrainer(
        tiny_model(kind),
        config(tmp_path, form),
        train_dataset=trl_dataset(rows, form),
        processing_class=tiny_processor(),
    )
    theirs.train()
    assert losses(theirs)[0] == pytest.approx(expected, rel=1e-5)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=6,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    ours = VisionLanguageTrainer(
        tiny_model(kind), args, freezing=None, train_dataset=rows, processing_class=tiny_processor()
    )
    ours.train()
    assert losses(ours)[0] == pytest.approx(losses(theirs)[0], rel=1e-5)
    step = dict(ours.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        # Adam's first step is the sign of the gradient: where that is noise around zero, so is the step.
        moved = (parameter - step[name]).abs() > 1e-3
        assert moved.float().mean() < 0.01, name


def test_rows_of_several_kinds_of_dataset(tmp_path):
    """A list in Arrow, a stream, and rows opened when asked for, which is how ours come."""
    rows = [trl_row(row, "prompt_completion") for row in tricky_rows()]
    sets = {
        "arrow": Dataset.from_list(rows),
        "stream": IterableDataset.from_generator(lambda: iter(copy.deepcopy(rows))),
        "opened": trl_dataset(tricky_rows(), "prompt_completion"),
    }
    found = {}
    for name, data in sets.items():
        args = config(tmp_path, "prompt_completion", remove_unused_columns=name != "opened", max_steps=2)
        trainer = SFTTrainer(tiny_model(), args, train_dataset=data, processing_class=tiny_processor())
        trainer.train()
        found[name] = losses(trainer)
    assert found["arrow"] == found["opened"]
    assert found["stream"] == found["opened"]


@pytest.mark.parametrize("form", FORMS)
def test_one_batch_is_learnt_and_answered(form, tmp_path):
    rows = tricky_rows()[:3]
    trainer = SFTTrainer(
        tiny_model(),
        config(tmp_path, form, max_steps=40, per_device_train_batch_size=3),
        train_dataset=trl_dataset(rows, form),
        processing_class=tiny_processor(),
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.05
    processor, model = tiny_processor(), trainer.model.eval()
    inputs = processor(
        images=[row["images"] for row in rows],
        text=[row["prompt"] for row in rows],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=8, return_full_text=False)
    answers = processor.batch_decode(tokens, skip_special_tokens=True)
    assert [answer.strip() for answer in answers] == [row["completion"] for row in rows]


def test_what_is_saved_opens_in_stock_transformers(tmp_path):
    rows = tricky_rows()
    trainer = SFTTrainer(
        tiny_model(),
        config(tmp_path, "prompt_completion"),
        train_dataset=trl_dataset(rows, "prompt_completion"),
        processing_class=tiny_processor(),
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) <= set(tiny_model().state_dict())
    stock = transformers.InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "saved")
    inputs = tiny_processor()(images=picture(), text="is it red?", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, trainer.model.eval()(**inputs).logits, rtol=1e-5, atol=1e-5)
    again = InstructBlipProcessor.from_pretrained(tmp_path / "saved")
    assert again(text="is it red?")["input_ids"] == tiny_processor()(text="is it red?")["input_ids"]


def test_frozen_parts_stay_and_checkpointed_activations_change_nothing(tmp_path):
    rows, stepped = tricky_rows(), []
    for checkpointing in (False, True):
        model = tiny_model()
        before = copy.deepcopy(model.state_dict())
        apply_freezing(model, "instructblip")
        trainer = SFTTrainer(
            model,
            config(tmp_path, "prompt_completion", max_steps=3, gradient_checkpointing=checkpointing),
            train_dataset=trl_dataset(rows, "prompt_completion"),
            processing_class=tiny_processor(),
        )
        trainer.train()
        assert checkpointing == any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad or torch.equal(parameter, before[name]), name
        assert not torch.equal(model.query_tokens, before["query_tokens"])
        stepped.append((losses(trainer), model.state_dict()))
    (plain_losses, plain), (checkpointed_losses, checkpointed) = stepped
    assert plain_losses == pytest.approx(checkpointed_losses, rel=1e-6)
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_batches_without_any_image(form, tmp_path):
    """A batch of images, then one of text alone, which nothing that trains has a part in."""
    rows = [row for row in tricky_rows() if row["images"] and "prompt" in row][:2]
    rows += [{"images": [], "prompt": "what color is red?", "completion": "red"}] * 2
    model = tiny_model()
    apply_freezing(model, "instructblip")
    weights = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            weights.append(copy.deepcopy(model.state_dict()))

    trainer = SFTTrainer(
        model,
        config(tmp_path, form, max_steps=2, per_device_train_batch_size=2, optim="sgd"),
        train_dataset=trl_dataset(rows, form),
        processing_class=tiny_processor(),
        callbacks=[Watch()],
    )
    trainer.train()
    moved, kept = weights
    assert not torch.equal(moved["query_tokens"], tiny_model().state_dict()["query_tokens"])
    for name, tensor in moved.items():
        assert torch.equal(kept[name], tensor), name
    model.load_state_dict(moved)
    assert losses(trainer)[1] == pytest.approx(loss_by_hand(model.eval(), tiny_processor(), rows[2:]), rel=1e-5)


def test_frozen_parts_without_dropout(tmp_path):
    """As docs/trl.md says: with the hook the loss of a training step is that without any dropout."""
    rows = tricky_rows()
    found = {}
    for hooked in (False, True):
        model = tiny_model("opt", dropout=0.5)
        model.vision_model.config.attention_dropout = 0.0
        for module in model.qformer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        report = apply_freezing(model, {"language_projection": "train"})
        if hooked:
            model.register_forward_pre_hook(lambda *_, report=report: report.hold_frozen_modules_in_eval())
        trainer = SFTTrainer(
            model,
            config(tmp_path, "prompt_completion"),
            train_dataset=trl_dataset(rows, "prompt_completion"),
            processing_class=tiny_processor(),
        )
        trainer.train()
        found[hooked] = losses(trainer)[0]
    converted = [trl_row(row, "prompt_completion") for row in rows]
    expected = loss_by_hand(tiny_model("opt", dropout=0.5).eval(), tiny_processor(), converted)
    assert found[True] == pytest.approx(expected, rel=1e-5)
    assert found[False] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_of_a_peft_config(checkpointing, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_model()
    before = copy.deepcopy(base.state_dict())
    trainer = SFTTrainer(
        base,
        config(tmp_path, "prompt_completion", max_steps=3, gradient_checkpointing=checkpointing),
        train_dataset=trl_dataset(tricky_rows(), "prompt_completion"),
        processing_class=tiny_processor(),
        peft_config=peft.LoraConfig(
            r=2, target_modules=r"language_model\..*\.[qv]_proj", modules_to_save=["language_projection"]
        ),
    )
    trainer.train()
    found = losses(trainer)
    rows = [trl_row(row, "prompt_completion") for row in tricky_rows()]
    assert found[0] == pytest.approx(loss_by_hand(tiny_model().eval(), tiny_processor(), rows), rel=1e-5)
    assert found[-1] < found[0]
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "language_projection.modules_to_save" in name for name in trained)
    trainer.save_model(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    inputs = tiny_processor()(images=picture(), text="is it red?", return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert list(merged.state_dict()) == list(before)


@pytest.mark.parametrize("form", FORMS)
def test_evaluation(form, tmp_path):
    rows = [trl_row(row, form) for row in tricky_rows()]
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions.shape)
        labels = prediction.label_ids[:, 1:]
        chosen = labels != -100
        return {"right": float((prediction.predictions.argmax(-1)[:, :-1] == labels)[chosen].mean())}

    model, data = tiny_model(), trl_dataset(rows, form)
    trainer = SFTTrainer(
        model,
        config(tmp_path, form, per_device_eval_batch_size=6),
        train_dataset=data,
        eval_dataset={"all": data, "first": data.select(range(2))},
        processing_class=tiny_processor(),
    )
    found = trainer.evaluate()
    assert found["eval_all_loss"] == pytest.approx(loss_by_hand(model.eval(), tiny_processor(), rows), rel=1e-5)
    first = loss_by_hand(model.eval(), tiny_processor(), rows[:2])
    assert found["eval_first_loss"] == pytest.approx(first, rel=1e-5)
    trainer.compute_metrics = metrics
    found = trainer.evaluate(data)
    assert found["eval_right"] == pytest.approx(found["eval_mean_token_accuracy"])
    assert seen[0][0] == len(rows)


def test_our_collator_in_their_trainer(tmp_path):
    """With an instruction of the row's own, which TRL's collator has no place for."""
    rows = [{**row, "qformer_text": "what is it?"} for row in tricky_rows()]
    trainer = SFTTrainer(
        tiny_model(),
        config(tmp_path, "prompt_completion"),
        train_dataset=Dataset.from_dict({"row": range(6)}).with_transform(
            lambda batch: {
                "row": [rows[number] for number in batch["row"]],
                "images": [rows[number]["images"] for number in batch["row"]],
            }
        ),
        data_collator=lambda examples: VisionLanguageCollator(tiny_processor())([row["row"] for row in examples]),
        processing_class=tiny_processor(),
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(loss_by_hand(tiny_model().eval(), tiny_processor(), rows), rel=1e-5)


def test_sequence_to_sequence_is_refused_with_what_trains_it(tmp_path):
    trainer = SFTTrainer(
        tiny_model("seq2seq"),
        config(tmp_path, "prompt_completion"),
        train_dataset=trl_dataset(tricky_rows(), "prompt_completion"),
        processing_class=tiny_processor(),
    )
    with pytest.raises(ValueError, match="VisionLanguageTrainer"):
        trainer.train()


def test_the_shapes_world_in_its_own_order(tmp_path):
    world = ShapesWorldDataset(ShapesWorld(0), 12)
    trainer = SFTTrainer(
        tiny_model(),
        config(tmp_path, FORMS[0], max_steps=2),
        train_dataset=trl_dataset(world, FORMS[0]),
        processing_class=tiny_processor(),
    )
    trainer.train()
    expected = loss_by_hand(tiny_model().eval(), tiny_processor(), [world[index] for index in range(6)])
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif("messages" not in FORMS, reason="assistant_only_loss needs transformers 5.18")
def test_the_snippet_of_the_page(tmp_path):
    root = Path(__file__).parents[2]
    page = (root / "docs" / "trl.md").read_text(encoding="utf-8")
    snippet = page.split("```python\n")[1].split("```")[0]
    for there, here in (("outputs/trl", tmp_path / "out"), ("examples/own_images", root / "examples" / "own_images")):
        assert there in snippet
        snippet = snippet.replace(there, here.as_posix())
    names = {}
    exec(snippet, names)
    assert names["trainer"].state.global_step == 2
    saved = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "out" / "checkpoint-2")
    assert torch.equal(saved.query_tokens, names["model"].query_tokens)


def test_mixed_precision_stays_near_float32(tmp_path):
    found = []
    for bf16 in (False, True):
        trainer = SFTTrainer(
            tiny_model(),
            config(tmp_path, "prompt_completion", bf16=bf16, max_steps=2),
            train_dataset=trl_dataset(tricky_rows(), "prompt_completion"),
            processing_class=tiny_processor(),
        )
        trainer.train()
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=2e-2)
    assert found[1] != found[0]


@pytest.mark.skipif("messages" not in FORMS, reason="assistant_only_loss needs transformers 5.18")
def test_the_example_teaches_what_it_says(capsys):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "trl_sft.py"))
    assert example["main"](epochs=12) == 1.0
    assert "loss on flags that were not trained on" in capsys.readouterr().out
