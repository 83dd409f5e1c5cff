"""`instructblip convert`: there and back, what it says, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lavis_files as lavis
from tiny_tokenizers import language_tokenizer


SHAPE = ["--vision-heads", lavis.HEADS["vision"], "--qformer-heads", lavis.HEADS["qformer"], "--vision-layers", 2]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lavis.save(tmp_path / "instruct.pth", lavis.second_stage("llm", text=True))
    torch.save(lavis.vision_tower(layers=3, extra=True), tmp_path / "eva.pth")
    lavis.save_language_model("llama", tmp_path / "vicuna")
    return tmp_path


def test_there_and_back(run, files):
    there = run("convert", "instruct.pth", "eva.pth", "--llm", "vicuna", "-o", "folder", "--report", "r.json", *SHAPE)
    assert there.exit_code == 0, there.output
    assert "instructblip: 166 tensors" in there.stdout
    assert "117 from instruct.pth" in there.stdout
    assert "2 made otherwise: query bias, zeros for the key bias, value bias" in there.stdout
    assert "LAVIS uses the first 2 of 3 blocks" in there.stdout
    assert "written without a processor" in there.stdout
    assert "language model's logits: largest difference 0.0e+00" in there.stdout
    report = json.loads((files / "r.json").read_text())
    rows = {row["to"]: row for row in report["tensors"] if row["to"] is not None}
    assert set(rows) == set(load_file(files / "folder" / "model.safetensors"))
    assert rows["vision_model.encoder.layers.0.self_attn.qkv.bias"] == {
        "from": ["blocks.0.attn.q_bias", "blocks.0.attn.v_bias"],
        "file": ["eva.pth"],
        "to": "vision_model.encoder.layers.0.self_attn.qkv.bias",
        "shape": [96],
        "dtype": "float32",
        "how": "query bias, zeros for the key bias, value bias",
    }
    stored = {row["from"][0] for row in report["tensors"]} | {"blocks.0.attn.v_bias", "blocks.1.attn.v_bias"}
    assert set(torch.load("eva.pth")) <= stored
    assert set(lavis.load("instruct.pth")) <= stored
    assert report["differences"][-1]["largest"] == 0.0
    back = run("convert", "folder", "-o", "back.pth", "--trimmed")
    assert back.exit_code == 0, back.output
    assert lavis.same_bits(lavis.load("instruct.pth"), lavis.load("back.pth")) == {
        "Qformer.bert.embeddings.position_ids"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth", "-o", "folder"], "there is no none.pth"),
        (["instruct.pth", "-o", "other.pth"], "other.pth is to be a file of LAVIS's: it is made of one folder"),
        (["vicuna", "-o", "folder"], "The language model's folder goes after --llm"),
        (["instruct.pth", "-o", "folder", "--trimmed"], "--trimmed cannot be used where a folder is written"),
        (["vicuna", "-o", "a.pth", "--llm", "vicuna"], "--llm cannot be used where a LAVIS file is written"),
        (["instruct.pth", "-o", "folder", "--llm", "vicuna", *SHAPE], "give LAVIS's eva_vit_g.pth"),
        (["instruct.pth", "-o", "folder", "--dtype", "int8"], "'int8' is none of float32"),
        (["instruct.pth", "-o", "folder", "--report", "eva.pth"], "eva.pth is there already"),
        (["vicuna", "-o", "a.pth"], "vicuna holds LlamaForCausalLM"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(run, files, arguments, message):
    before = sorted(files.iterdir())
    refused = run("convert", *arguments)
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert sorted(files.iterdir()) == before


def test_every_problem_is_a_line(run, files):
    tensors = lavis.load("instruct.pth")
    lavis.save(files / "more.pth", {**tensors, "one": torch.zeros(1), "two": torch.zeros(2)})
    refused = run("convert", "more.pth", "eva.pth", "--llm", "vicuna", "-o", "folder", *SHAPE)
    assert refused.exit_code == 2
    assert refused.stderr.count("error: ") == 2


ORIGINAL = Path(__file__).parents[1] / "conversion" / "llava_original"


def test_a_folder_of_llavas_own_code(run, tmp_path):
    source, parts = str(ORIGINAL / "lora"), ["--llm", str(ORIGINAL / "llm"), "--vision-tower", str(ORIGINAL / "clip")]
    result = run("convert", source, *parts, "-o", str(tmp_path / "ours"), "--report", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert f"llava (lora): {len(written)} tensors" in result.stdout
    assert "14 made otherwise: with its LoRA update" in result.stdout
    assert "written without a processor" in result.stdout
    rows = json.loads((tmp_path / "r.json").read_text())["tensors"]
    assert {row["to"] for row in rows} >= set(written)
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    unconverted = run("ask", str(tmp_path / "picture.png"), "What?", "--model", str(ORIGINAL / "full_mlp"))
    assert "is a folder of LLaVA's own code: instructblip convert makes one of it" in unconverted.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora", "-o", "ours"], "is a LoRA adapter: give the folder of its language model (llm)"),
        (["lora", "-o", "ours", "--kind", "blip-2"], "--kind cannot be used with"),
        (["full_mlp", "-o", "ours", "--chat-template", "v9"], "chat_template is 'v9'"),
        (["lora", "-o", "back.pth"], "can be converted"),
    ],
)
def test_what_cannot_be_made_of_llavas_folders(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    more = ["--vision-tower", str(ORIGINAL / "clip")] if "lora" not in arguments else []
    if "--chat-template" in arguments:
        language_tokenizer("llama").save_pretrained("tokenizer")
        more += ["--tokenizer", "tokenizer"]
    result = run("convert", str(ORIGINAL / arguments[0]), *arguments[1:], *more)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "ours").exists()
