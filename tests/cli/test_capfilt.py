"""`instructblip capfilt`: captions and filter from the terminal, and what a user gets wrong."""

import json
import sys

import pytest
import yaml

from instructblip_hf.cli import launching
from instructblip_hf.training.mixture import resolve_mixture
from tiny_capfilt import write_rows, write_tar
from tiny_retrieval import save_retrieval_checkpoint


@pytest.fixture(scope="module")
def retrieval_checkpoint(tmp_path_factory):
    return save_retrieval_checkpoint(tmp_path_factory.mktemp("capfilt") / "model")


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_rows(tmp_path / "web", 5)


def test_a_folder_becomes_a_dataset(run, web, tmp_path, retrieval_checkpoint, checkpoint):
    line = ["capfilt", "web", "--filter", retrieval_checkpoint, "--captioner", checkpoint, "--output", "out"]
    line += ["--sampled", 2, "--beam", 1, "--num-beams", 2, "--max-new-tokens", 4, "--rank-by", "itc", "--top-k", 0]
    result = run(*line, "--prompt", "describe")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["captioner"]["prompt"], report["captioner"]["sampled"], report["captioner"]["beam"]) == (
        "describe",
        2,
        1,
    )
    assert (report["filter"]["rank_by"], report["filter"]["top_k"]) == ("itc", None)
    assert "images      5 of 5 with something kept" in result.stdout
    assert f'web_capfilt: {{root: "{tmp_path}/out", image_root: "{web}", answer_choice: first_two}}' in result.stdout
    check_recipe(result.stdout, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "out" / "annotation.jsonl").read_text().splitlines()]
    assert {one["source"] for row in rows for one in row["candidates"]} == {"web", "synthetic"}
    again = run(*line, "--prompt", "describe")
    assert again.exit_code == 0
    assert again.stdout == result.stdout


def test_archives_become_archives(run, tmp_path, retrieval_checkpoint):
    paths = [write_tar(tmp_path / f"{part}.tar", range(3 * part, 3 * part + 3)) for part in range(2)]
    result = run("capfilt", *paths, "--filter", retrieval_checkpoint, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f'web_capfilt: {{shards: "{tmp_path}/out/shards/*.tar", rows: 6}}' in result.stdout
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2
    check_recipe(result.stdout, tmp_path)


def check_recipe(shown, folder):
    """The last line stands in a recipe as it is."""
    arguments, problems = resolve_mixture({"datasets": yaml.safe_load(shown.splitlines()[-1])}, folder, "mixture")
    assert not problems
    assert list(arguments["datasets"]) == ["web_capfilt"]


def test_what_a_user_gets_wrong(run, web, tmp_path, retrieval_checkpoint, checkpoint):
    given = ["--filter", retrieval_checkpoint, "--output", "out"]
    cases = [
        (["web"], 2, "capfilt needs what to read, --output and --filter"),
        (["none", *given], 2, "there is no file and no folder none"),
        (["web", *given, "--rank-by", "clip"], 2, "rank_by is 'clip'; allowed are itm, itc"),
        (["web", *given, "--min-itm", "3"], 2, "min_itm is 3.0"),
        (["web", *given, "--format", "csv"], 2, "form is 'csv'; allowed are jsonl, tar"),
        (["web", "--filter", checkpoint, "--output", "out"], 2, "has no get_text_features: retrieval needs"),
        (["web", *given, "--captioner", retrieval_checkpoint], 2, "has no language model, so it makes no captions"),
        (["web", "--filter", retrieval_checkpoint, "--output", "web/out"], 2, "lies in the folder of the images"),
    ]
    for arguments, code, message in cases:
        result = run("capfilt", *arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert message in result.stderr
    (web / "images" / "3.png").write_bytes(b"")
    result = run("capfilt", "web", *given)
    assert result.exit_code == 1
    assert "error: annotation.jsonl:4: image images/3.png: " in result.stderr
    result = run("capfilt", "web", *given, "--skip-bad-rows", 1)
    assert result.exit_code == 0
    assert "left out    1 rows that could not be read" in result.stdout


def test_processes_start_the_same_command(run, monkeypatch):
    commands = []
    monkeypatch.setattr(launching.os, "execv", lambda program, command: commands.append(command))
    line = ["capfilt", "web", "--filter", "m", "--processes", "2", "--output", "out"]
    monkeypatch.setattr(sys, "argv", ["instructblip", *line])
    result = run(*line)
    assert result.exit_code == 0, result.output
    (command,) = commands
    assert command[command.index("--num_processes") + 1] == "2"
    expected = ["capfilt", "web", "--filter", "m", "--output", "out"]
    assert command[command.index("instructblip_hf.cli") + 1 :] == expected
