"""The scripts of the shapes world run from end to end, a step or two each."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch


pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[2] / "examples" / "shapes_world"


@pytest.fixture
def run_script(monkeypatch):
    threads = torch.get_num_threads()
    # Scripts import each other by name; what they are called must not stay in the way of other modules.
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name: str, *arguments: object) -> None:
        spec = importlib.util.spec_from_file_location(f"shapes_world_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()

    yield run
    torch.set_num_threads(threads)
    for name in {"common", "evaluate", "pretrain_vision"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_the_whole_path(run_script, tmp_path):
    vision, pretrained, tuned, packed = (tmp_path / name for name in ("vision", "pretrained", "tuned", "packed"))
    run_script("pretrain_vision", "--output", vision, "--steps", 1, "--batch-size", 4)
    run_script(
        "pretrain", "--vision", vision, "--output", pretrained, "--steps", 1, "--batch-size", 12, "--scenes", 40
    )
    run_script("instruct", "--pretrained", pretrained, "--output", tuned, "--steps", 1, "--batch-size", 12)
    run_script("export", "--model", tuned, "--output", packed)
    run_script("evaluate", "--model", packed, "--output", tmp_path / "numbers", "--examples", 2)
    card = tmp_path / "card.md"
    card.write_text("{table}\n\n{command}", encoding="utf-8")
    run_script("export", "--output", packed, "--card", card, "--results", tmp_path / "numbers" / "results.json")
    run_script("contact_sheet", tmp_path / "sheet.png")

    record = json.loads((tmp_path / "numbers" / "results.json").read_text())
    assert set(record["accuracy"]["caption"]) == {"seen", "held_out", "blank", "other", "uninstructed"}
    assert "seen" not in record["accuracy"]["color_at"]
    assert "| caption |" in (packed / "README.md").read_text()
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_cached_rows_equal_the_processors(run_script, monkeypatch):
    import common
    import export

    from instructblip_hf.data.sources.shapes_world import ShapesWorld

    rows = list(ShapesWorld(0).examples(40))
    encoder = common.RowEncoder(common.SceneBank([None], torch.zeros(1, 50, 128)))
    cached = encoder([{**row, "scene_index": 0} for row in rows])
    expected = export.build_processor().encode_examples(rows)
    for name in ("input_ids", "attention_mask", "labels", "qformer_input_ids", "qformer_attention_mask"):
        assert torch.equal(cached[name], expected[name])


def test_loss_is_the_same_in_one_batch_and_in_parts(run_script):
    import common

    torch.manual_seed(0)
    logits = torch.randn(4, 6, 9)
    labels = torch.randint(0, 9, (4, 6))
    labels[0, :4] = labels[1, :2] = -100
    whole = common.answer_loss({"logits": logits}, labels)
    parts = sum(common.answer_loss({"logits": logits[rows]}, labels[rows], parts=2) for rows in ([0, 2], [1, 3]))
    assert torch.allclose(whole, parts)
    one_row = common.answer_loss({"logits": logits[:1]}, labels[:1])
    mean = torch.nn.functional.cross_entropy(logits[0, 3:5], labels[0, 4:])
    assert torch.allclose(one_row, mean * 2**0.5)
