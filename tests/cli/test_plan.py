"""`plan`: a table, JSON, and what is wrong said in one line."""

import json

import pytest

from instructblip_hf.cli.plan import bytes_of


@pytest.fixture
def recipe(tmp_path, checkpoint):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"model: {{path: {checkpoint}}}\n"
        "data: {train: {mixture: {root: nowhere, datasets: {okvqa: {}}}}, max_prompt_length: 20, max_completion_length: 4}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 2, use_cpu: true}\n"
    )
    return path


def test_a_plan_needs_no_data(run, recipe):
    result = run("plan", recipe, "--memory", "2MiB", "--set", "training.gradient_checkpointing=true")
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert lines["batch"].endswith(
        "2 rows with an image each: 4 tokens of the image, 16 of the prompt, 4 of the answer"
    )
    assert {"vision_model", "qformer", "language_projection", "language_model", "total", "peak"} <= set(lines)
    assert "largest batch" in lines
    assert "not counted: the CUDA context" in result.stdout
    as_json = run("plan", recipe, "--memory", "2MiB", "--json", "--set", "training.gradient_checkpointing=true")
    content = json.loads(as_json.stdout)
    assert lines["largest batch"].split()[-2] == f"{content['largest_batch']:,}"
    assert content["total"]["parameters"] == sum(part["parameters"] for part in content["parts"])
    longer = json.loads(run("plan", recipe, "--prompt-tokens", 30, "--answer-tokens", 9, "--json").stdout)
    assert (longer["lengths"]["prompt"], longer["lengths"]["answer"]) == (30, 9)


def test_wrong_plans(run, recipe, tmp_path):
    for arguments, message in (
        (["--memory", "80 bananas"], "--memory: '80 bananas' is no size like 80GiB"),
        (["--device", "tpu"], "--device: 'tpu' is none of cuda, cpu"),
        (["--set", "freezing.components={nothing: train}"], "the model has no component 'nothing'"),
        (["--set", "training.max_step=1"], "training.max_step: unknown"),
        (["--set", f"model.path={tmp_path}"], "has no config.json, so it holds no model"),
    ):
        result = run("plan", recipe, *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    unknown = run("plan", recipe, "--set", "model.path=nobody/has-this-model")
    assert unknown.exit_code == 2
    assert "the shapes of nobody/has-this-model are not known here" in unknown.stderr
    assert "A folder with its config.json alone is enough" in unknown.stderr


def test_sizes():
    assert [bytes_of(text) for text in ("80GiB", "1.5 MB", "2KiB")] == [80 * 2**30, 1_500_000, 2048]
