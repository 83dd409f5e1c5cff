"""The example that answers a file of questions: what `ask` says, in LLaVA's fields, and a cut-off file goes on."""

import importlib.util
import json
import sys
from pathlib import Path

from instructblip_hf.cli.answering import Question, answer
from instructblip_hf.cli.loading import load_generating
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.evaluation.judge import read_questions


SCRIPT = Path(__file__).parents[3] / "examples" / "evaluation" / "answer_questions.py"


def load_script():
    spec = importlib.util.spec_from_file_location("answer_questions", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_separators_in_texts_end_no_line(tmp_path):
    rows = [{"question_id": n, "image": "a.png", "text": "a\u2028b\u0085c"} for n in range(2)]
    for name in ("questions", "answers"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(lines, encoding="utf-8")
    script = load_script()
    assert script.answered(tmp_path / "answers") == {"0", "1"}
    assert script.answer_file(tmp_path / "questions", tmp_path, tmp_path / "answers", None) == 0


def test_answers_and_again(tmp_path, monkeypatch, capsys):
    script = load_script()
    world = ShapesWorld(3, split="test")
    rows, expected = [], []
    loaded = load_generating(None, "cpu", None)
    for number in range(5):
        example = world.example(number, "color")
        example["images"][0].save(tmp_path / f"x_{number}.png")
        rows.append({"question_id": number, "image": f"{number}.png", "text": example["prompt"], "category": "conv"})
        ((_, text),) = answer(loaded, [Question(example["prompt"], example["images"], ["a"])], max_new_tokens=8)
        expected.append(text)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--images", str(tmp_path), "--image-prefix", "x_", "--max-new-tokens", "8", "--batch-size", "2"]
    output = tmp_path / "answers.jsonl"
    command = [str(SCRIPT), str(tmp_path / "questions.jsonl"), *arguments, "--output", str(output), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    whole = output.read_bytes()
    found = [json.loads(line) for line in whole.decode().splitlines()]
    assert [row["text"] for row in found] == expected
    assert list(found[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    output.write_bytes(whole[: whole.rindex(b"{", 0, -20) + 9])  # in the last line
    script.main()
    assert output.read_bytes() == whole
    assert capsys.readouterr().out.splitlines() == [f"5 answers in {output}", f"1 answers in {output}"]
    contexts = tmp_path / "contexts.jsonl"
    contexts.write_text("".join(json.dumps({"image": f"{n}.png", "caption": "shapes"}) + "\n" for n in range(5)))
    judged = read_questions(tmp_path / "questions.jsonl", output, output, contexts)
    assert [question.model for question in judged] == expected
