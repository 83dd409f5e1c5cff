"""Tasks at every evaluation of a training: metrics, logs, the best checkpoint by them."""

import json

import pytest

from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.evaluation import callback as module
from instructblip_hf.evaluation.callback import EvaluationCallback
from instructblip_hf.evaluation.runner import EvaluationOptions
from tiny_shapes import tiny_model
from tiny_training import arguments, trainer_for


OPTIONS = EvaluationOptions(limit=4, decoding={"num_beams": 1, "max_new_tokens": 2})


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_values_are_logged_and_weights_go_on_training(gqa_root, tmp_path):
    weights, folder = [], tmp_path / "out"
    for with_tasks in (False, True):
        model = tiny_model(dropout=0.1)
        args = arguments(folder, eval_strategy="steps", eval_steps=1, max_steps=3)
        trainer = trainer_for(model, args)
        if with_tasks:
            trainer.add_callback(EvaluationCallback(trainer, ["gqa"], gqa_root, OPTIONS))
        trainer.train()
        weights.append(model.language_projection.weight.detach())
    assert len(logged(trainer, "eval_gqa")) == 3
    for step, value in enumerate(logged(trainer, "eval_gqa"), start=1):
        (evaluation,) = (folder / "evaluation").glob(f"step-{step}-*")
        results = json.loads((evaluation / "results.json").read_text())
        assert results["tasks"]["gqa"]["value"] == value
    # Dropout's random numbers are the same as without.
    assert (weights[0] == weights[1]).all()


@pytest.mark.parametrize("best", [1, 2])
def test_the_best_checkpoint_by_a_task(best, gqa_root, data_root, tmp_path, monkeypatch):
    folders = []

    def scripted(*args, **kwargs):
        folders.append(args[4])
        step = int(args[4].name.split("-")[1])
        return {"tasks": {"gqa": {"value": 0.9 if step == best else 0.1}, "vizwiz": {}}}

    monkeypatch.setattr(module, "evaluate", scripted)
    args = arguments(
        tmp_path,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="eval_gqa",
        greater_is_better=True,
        load_best_model_at_end=True,
    )
    trainer = trainer_for(tiny_model(), args)
    trainer.add_callback(EvaluationCallback(trainer, ["gqa", "vizwiz"], data_root))
    trainer.train()
    # The best weights are back, and were evaluated before.
    assert trainer.evaluate()["eval_gqa"] == 0.9
    assert len(folders) == len(set(folders)) == 3
    assert trainer.state.best_metric == 0.9
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")


def test_several_evaluation_sets_run_the_tasks_once(gqa_root, tmp_path, monkeypatch):
    calls = []

    def scripted(*args, **kwargs):
        calls.append(args[4])
        return {"tasks": {"gqa": {"value": 0.5}}}

    monkeypatch.setattr(module, "evaluate", scripted)
    sets = {name: ShapesWorldDataset(ShapesWorld(0, split="test"), 4) for name in ("a", "b")}
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer = trainer_for(tiny_model(), args, eval_dataset=sets)
    trainer.add_callback(EvaluationCallback(trainer, ["gqa"], gqa_root))
    trainer.train()
    assert len(calls) == 1
    # The same weights again, and others.
    assert trainer.evaluate()["eval_gqa"] == 0.5
    assert len(calls) == 1
    trainer.model.language_projection.bias.data += 1.0
    trainer.evaluate()
    assert len(calls) == 2


def test_a_trainer_that_cannot_is_refused(gqa_root, tmp_path):
    trainer = trainer_for(tiny_model(), arguments(tmp_path))
    with pytest.raises(FileNotFoundError, match="files of vsr"):
        EvaluationCallback(trainer, ["gqa", "vsr"], gqa_root)
    with pytest.raises(ValueError, match="continuous_batching runs in a thread of its own"):
        EvaluationCallback(trainer, ["gqa"], gqa_root, EvaluationOptions(continuous_batching=True))
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="spread over processes"):
        EvaluationCallback(trainer, ["gqa"], gqa_root)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="no processing_class"):
        EvaluationCallback(trainer, ["gqa"], gqa_root)
