"""`evaluate-scienceqa` and `data scienceqa`, on a copy in the official format."""

import json
import runpy
from pathlib import Path

import pytest

from official_formats import scienceqa


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "scienceqa"
    folder.mkdir()
    scienceqa(folder)
    return folder


def lines(folder, name, texts):
    file = folder / name
    file.write_text("".join(json.dumps({"question_id": one, "text": text}) + "\n" for one, text in texts.items()))
    return file


def test_answers_are_scored_alone_and_with_gpt4(run, root, tmp_path):
    ours = lines(tmp_path, "answers.jsonl", {"5": "The answer is A.", "6": "Wood. The answer is B."})
    gpt4 = lines(tmp_path, "gpt4.jsonl", {"5": "It cannot be seen.", "6": "The answer is A."})
    report = tmp_path / "report.json"
    result = run("evaluate-scienceqa", ours, "--data-root", root, "--gpt4", gpt4, "--output", report)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"]
    # Problem 5 has hint and image, problem 6 neither; both are of grade 4.
    assert rows[1] == ["answers.jsonl", "50.00", "100.00", "100.00", "0.00", "50.00", "50.00"]
    assert ["with", "GPT-4,", "complement", "100.00", "100.00", "100.00", "100.00", "100.00", "100.00"] in rows
    assert "gives no answer to 1" in result.stdout
    found = json.loads(report.read_text())
    assert found["answers"]["accuracy"] == 0.5
    assert found["with_gpt4"]["complement"]["choices"] == {"5": 0, "6": 0}
    assert found["with_gpt4"]["seed"] == 0


def test_the_part_with_images(run, root, tmp_path):
    ours = lines(tmp_path, "answers.jsonl", {"5": "A", "6": "B"})
    result = run("evaluate-scienceqa", ours, "--data-root", root, "--split", "test_image")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split() == ["answers.jsonl", *["100.00"] * 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "answers.jsonl"], "--judge needs --gpt4"),
        (["--gpt4", "none.jsonl"], "none.jsonl"),
        (["--split", "exam"], "exam"),
        (["--gpt4", "half.jsonl"], "GPT-4's answers lack '6'"),
    ],
)
def test_what_is_wrong_is_one_line(run, root, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    lines(tmp_path, "answers.jsonl", {"5": "A", "6": "B"})
    lines(tmp_path, "half.jsonl", {"5": "A"})
    result = run("evaluate-scienceqa", "answers.jsonl", "--data-root", root, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_example_is_joined_to_a_right_whole(run, tmp_path, monkeypatch):
    script = Path(__file__).parents[2] / "examples" / "evaluation" / "scienceqa_with_gpt4.py"
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path), "--count", "8"])
    runpy.run_path(str(script), run_name="__main__")
    files = {name: tmp_path / f"{name}.jsonl" for name in ("answers", "gpt4", "judge")}
    report = tmp_path / "report.json"
    result = run(
        *("evaluate-scienceqa", files["answers"], "--data-root", tmp_path, "--output", report),
        *("--gpt4", files["gpt4"], "--judge", files["judge"]),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())["with_gpt4"]
    assert found["gpt4_failed"] == 4
    assert found["model"]["by"]["context"]["image"]["accuracy"] == 1.0
    assert found["complement"]["accuracy"] == found["judge"]["accuracy"] == 1.0


def test_training_json_as_llava_reads_it(run, root, tmp_path):
    file = tmp_path / "llava_train_QCM-LEA.json"
    result = run("data", "scienceqa", root, "--output", file)
    assert result.exit_code == 0, result.output
    with_image, without = json.loads(file.read_text())
    assert with_image["image"] == "1/image.png"
    assert (root / "train" / with_image["image"]).is_file()
    assert with_image["conversations"][1] == {
        "from": "gpt",
        "value": "Magnets attract. Iron is magnetic. The answer is A.",
    }
    assert without["conversations"][0]["value"] == "Which of these?\nContext: N/A\nOptions: (A) iron (B) wood"
    assert "image" not in without
    again = run("data", "scienceqa", root, "--output", file)
    assert again.exit_code == 2
    assert "exists" in again.stderr
    wrong = run("data", "scienceqa", root, "--output", tmp_path / "other.json", "--form", "QCM")
    assert "it must be like 'QCM-LEA'" in wrong.stderr
