"""`train --launch`: the same command on several processes, and the accelerate configurations that it ships."""

import json
import os
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

import instructblip_hf.cli.launching as launching
from instructblip_hf.training import launch, shipped_recipes


@pytest.fixture
def started(monkeypatch):
    """The command in place of which this process would go on; with four accelerators in the machine."""
    commands = []
    monkeypatch.setattr(launching.os, "execv", lambda program, command: commands.append(command))
    monkeypatch.setattr(launch, "_accelerators", lambda: 4)
    return commands


@pytest.mark.parametrize("name", launch.launch_configs())
def test_accelerate_reads_the_configurations(name):
    path = launch.LAUNCH_CONFIGS / f"{name}.yaml"
    assert f"--launch {name}" in path.read_text().splitlines()[0]
    config = load_config_from_file(str(path))
    expected = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type.value == expected[name]
    arguments = ["--config_file", str(path), "--num_processes", "4", "-m", "instructblip_hf.cli", "train", "x"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert (args.num_processes, args.mixed_precision, args.module) == (4, "no", True)
    assert args.training_script_args == ["train", "x"]
    assert [args.multi_gpu, args.use_fsdp, args.use_deepspeed] == [
        config.distributed_type.value == kind for kind in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    ]
    if name == "fsdp2":
        assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    if args.use_deepspeed:
        assert args.zero_stage == int(name[-1])


def test_configurations_are_no_recipes():
    assert launch.launch_configs() == ["ddp", "fsdp2", "zero2", "zero3"]
    assert not set(launch.launch_configs()) & set(shipped_recipes())


@pytest.mark.parametrize("options", [["--launch", "fsdp2"], ["--launch=fsdp2"]])
def test_the_command_line_goes_on_without_launch(run, started, monkeypatch, options):
    line = ["train", "x.yaml", *options, "--set", "training.max_steps=1", "--resume"]
    monkeypatch.setattr(sys, "argv", ["instructblip", *line])
    result = run(*line)
    assert result.exit_code == 0, result.output
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[command.index("--num_processes") + 1] == "4"
    rest = command[command.index("instructblip_hf.cli") :]
    assert rest == ["instructblip_hf.cli", "train", "x.yaml", "--set", "training.max_steps=1", "--resume"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--launch", "fsdp3"], "--launch is fsdp3; it takes ddp, fsdp2, zero2, zero3"),
        (["--launch", "ddp", "--processes", "0"], "--processes is 0; it must be at least 1"),
        (["--processes", "2"], "--processes goes with --launch"),
    ],
)
def test_refusals(run, started, options, message):
    result = run("train", "x.yaml", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not started


def test_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(launch, "_accelerators", lambda: 0)
    with pytest.raises(ValueError, match="no accelerator to count processes by: give --processes"):
        launch.launch_command("ddp", None, [])
    with pytest.raises(ValueError, match="fsdp2, which accelerate does on GPUs alone"):
        launch.launch_command("fsdp2", 2, [])


def test_two_processes_train_on_a_cpu(tmp_path, checkpoint):
    rows = [{"images": [], "prompt": "what color ?", "completion": "red"}] * 4
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{path: {checkpoint}}}\n"
        "data: {train: rows.jsonl}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 2, use_cpu: true, report_to: none}\n"
    )
    command = [
        sys.executable,
        "-m",
        "instructblip_hf.cli",
        "train",
        "recipe.yaml",
        "--launch",
        "ddp",
        "--processes",
        "2",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved to   recipe") == 1
    assert (tmp_path / "recipe" / "model.safetensors").is_file()
