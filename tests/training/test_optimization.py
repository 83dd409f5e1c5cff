"""Learning rates by name and by layer, against groups built by hand and a plain torch loop."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import OptimizationArguments, VisionLanguageTrainer, apply_freezing
from instructblip_hf.training.optimization import layer_scales, learning_rates
from tiny_shapes import tiny_model, tiny_processor


BASE = 1e-3


def arguments(folder, **changes):
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": BASE,
        "weight_decay": 0.05,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **{**options, **changes})


def trainer_for(model, args, **changes):
    options = {"processing_class": tiny_processor(), "train_dataset": ShapesWorldDataset(ShapesWorld(0), 16)}
    return VisionLanguageTrainer(model, args, **{**options, **changes})


OPTIMIZATION = OptimizationArguments(
    learning_rates={r"^qformer\.encoder": 3e-3, "^qformer": 2e-3, r"vision_model.*layers\.1": 4e-3}, layer_decay=0.5
)
FREEZING = {"vision_model": "train", "query_tokens": "train", "qformer": "train", "language_projection": "train"}


def rate_by_hand(name):
    """For `OPTIMIZATION` and the two blocks of the tiny model's tower: decay to the power of 2 + 1 - layer."""
    if name.startswith("vision_model.embeddings."):
        return BASE * 0.5**3
    if name.startswith("vision_model.encoder.layers.0."):
        return BASE * 0.5**2
    if name.startswith("vision_model.encoder.layers.1."):
        return 4e-3 * 0.5
    if name.startswith("qformer.encoder."):
        return 3e-3
    return 2e-3 if name.startswith("qformer.") else BASE


def test_training_equals_a_plain_loop_with_groups_built_by_hand(tmp_path):
    model = tiny_model()
    reference = copy.deepcopy(model)
    batches, rates = [], []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
            rates.append(
                {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
            )

    trainer = trainer_for(
        model, arguments(tmp_path), freezing=FREEZING, optimization=OPTIMIZATION, callbacks=[Watch()]
    )
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or copy.deepcopy(batches[-1])
    trainer.train()

    groups = []
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(not name.startswith("language_model."))
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim == 1 or name.endswith(".bias") else 0.05
            groups.append({"params": [parameter], "lr": rate_by_hand(name), "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, fused=True)
    highest = [group["lr"] for group in groups]
    reference.train()
    for module in (reference.language_model, reference):
        module.training = False
    for step, batch in enumerate(batches[:6]):
        factor = step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2
        for group, rate in zip(optimizer.param_groups, highest):
            group["lr"] = rate * factor
        # Divided by the same number as in Trainer, so that not even rounding differs.
        reference(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert rates[step][id(parameter)] == pytest.approx(rate_by_hand(name) * factor, rel=1e-12), name
    for (name, trained), expected in zip(model.named_parameters(), reference.parameters()):
        assert torch.equal(trained, expected), name


def test_weight_decay_stays_off_vectors_and_every_parameter_is_in_one_group(tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, arguments(tmp_path), freezing="all", optimization=OPTIMIZATION)
    groups = trainer.create_optimizer().param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim < 2 else 0.05), name


def test_logs_show_the_rates_that_the_step_was_taken_with(tmp_path):
    trainer = trainer_for(tiny_model(), arguments(tmp_path), freezing=FREEZING, optimization=OPTIMIZATION)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(steps) == 6
    for step, entry in enumerate(steps):
        factor = step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2
        shown = {key.partition("/")[2]: value for key, value in entry.items() if key.startswith("learning_rate/")}
        assert shown == pytest.approx(
            {
                "base": BASE * factor,
                r"^qformer\.encoder": 3e-3 * factor,
                "^qformer": 2e-3 * factor,
                "base, vision layer 0": BASE * 0.125 * factor,
            }
        )
        assert entry["learning_rate"] == pytest.approx(BASE * factor)


def test_without_settings_nothing_changes(tmp_path):
    logs = []
    for optimization in (None, OptimizationArguments()):
        trainer = trainer_for(tiny_model(), arguments(tmp_path, max_steps=1), optimization=optimization)
        trainer.train()
        assert len(trainer.optimizer.param_groups) == 2
        logs.append(trainer.state.log_history[0])
    assert logs[0] == logs[1]
    assert not any("/" in key for key in logs[0])


def test_resuming_goes_on_exactly(tmp_path):
    options = {"freezing": FREEZING, "optimization": OPTIMIZATION}
    whole = trainer_for(tiny_model(), arguments(tmp_path / "whole"), **options)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    saving = {"save_strategy": "steps", "save_steps": 3}
    folder = tmp_path / "parts"
    trainer_for(tiny_model(), arguments(folder, **saving), callbacks=[Stop()], **options).train()
    resumed = trainer_for(tiny_model(seed=7), arguments(folder, **saving), **options)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


TOWER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.mark.parametrize(
    ("tower", "before", "block"),
    [
        (
            transformers.CLIPVisionModel(transformers.CLIPVisionConfig(intermediate_size=16, **TOWER)),
            ("embeddings.", "pre_layrnorm."),
            "encoder.layers.",
        ),
        (
            transformers.SiglipVisionModel(transformers.SiglipVisionConfig(intermediate_size=16, **TOWER)),
            ("embeddings.",),
            "encoder.layers.",
        ),
        (transformers.Dinov2Model(transformers.Dinov2Config(**TOWER)), ("embeddings.",), "encoder.layer."),
    ],
    ids=["clip", "siglip", "dinov2"],
)
@pytest.mark.parametrize("place", ["vision_model", "vision_tower", "model.vision_tower"])
def test_layers_of_other_towers(tower, before, block, place):
    model = nn.Module()
    model.model = nn.Module()
    (model.model if "." in place else model).add_module(place.rpartition(".")[2], tower)
    expected = {}
    for name, _ in tower.named_parameters():
        if name.startswith(before):
            expected[f"{place}.{name}"] = (0, 0.9**4)
        elif name.startswith(block):
            layer = int(name.removeprefix(block).split(".")[0]) + 1
            expected[f"{place}.{name}"] = (layer, 0.9 ** (4 - layer))
    assert {layer for layer, _ in expected.values()} == {0, 1, 2, 3}
    assert layer_scales(model, 0.9) == expected


class Wrapper(nn.Module):
    """As compiled and distributed running name them."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_names_inside_of_wrappers():
    model = tiny_model()
    apply_freezing(model, FREEZING)
    expected = learning_rates(model, OPTIMIZATION, BASE)
    model.vision_model.encoder = Wrapper(model.vision_model.encoder)
    assert learning_rates(Wrapper(model), OPTIMIZATION, BASE) == expected


def test_a_tower_without_blocks_and_a_model_without_tower():
    model = tiny_model()
    model.vision_model.encoder.layers.append(copy.deepcopy(model.vision_model.encoder.layers[0]))
    with pytest.raises(ValueError, match=r"which modules of vision_model .* its 2 layers.*are: encoder.layers \(3\)"):
        layer_scales(model, 0.9)
    with pytest.raises(ValueError, match="needs a vision tower; the model has none of vision_model"):
        layer_scales(nn.Linear(1, 1), 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": {"^q_former": 1e-4}}, r"'\^q_former' matches no parameter that trains.*qformer.encoder"),
        ({"learning_rates": {"language_model": 1e-4}}, "'language_model' matches no parameter that trains"),
        ({"learning_rates": {"qformer": 1e-4, r"^qformer\.": 1e-3}}, "is matched by a pattern before it"),
        ({"layer_decay": 0.9}, "no block of the vision tower trains; what trains is in: query_tokens"),
    ],
)
def test_settings_without_effect_are_refused_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_for(tiny_model(), arguments(tmp_path), optimization=OptimizationArguments(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": {"qformer(": 1e-4}}, r"'qformer\(', which is no regular expression: missing \)"),
        ({"learning_rates": {"qformer": 0.0}}, "0.0 for 'qformer'; it must be above 0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizationArguments(**changes)


def test_an_optimiser_handed_in_has_rates_of_its_own(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.qformer.parameters(), lr=1e-3)
    trainer = trainer_for(
        model,
        arguments(tmp_path),
        optimizers=(optimizer, None),
        optimization=OptimizationArguments(learning_rates={"^qformer": 1e-4}),
    )
    with pytest.raises(ValueError, match="give one of them"):
        trainer.train()
