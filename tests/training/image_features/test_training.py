"""Training with kept features against the slow path: the same losses and weights, whether features are there or not."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, CLIPVisionConfig

import tiny_training
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import FreezingPolicy, RecipeError, VisionLanguageTrainer, load_recipe, prepare_run
from instructblip_hf.training.errors import SavingError
from instructblip_hf.training.image_features import FrozenTower, ImageFeatures
from instructblip_hf.training.image_features.batches import MISSING_KEYS
from official_formats import write_dataset
from tiny_llava import tiny_llava, tiny_llava_processor
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


def arguments(folder, **changes):
    return tiny_training.arguments(folder, **{"max_steps": 4, **changes})


def rows(number=8):
    """Rows with one image, with none, with two, and with the image of another row."""
    plain = [ShapesWorld(0).example(index) for index in range(number)]
    more = {**plain[0], "images": [*plain[1]["images"], *plain[2]["images"]]}
    none = {"images": [], "prompt": "what color is red ?", "completion": "red"}
    return [*plain, more, none, {**plain[3], "images": plain[4]["images"]}]


def train(
    tmp_path,
    folder=None,
    model=None,
    freezing="instructblip",
    data=None,
    watch=None,
    dtype=None,
    processor=None,
    **changes,
):
    """Losses of training and evaluation, and the weights after it."""
    model = tiny_model(dropout=0.1) if model is None else model
    processor = tiny_processor() if processor is None else processor
    features = None
    if folder is not None:
        autocast = torch.bfloat16 if changes.get("bf16") else None
        features = ImageFeatures(model, processor.image_processor, folder, dtype, autocast)
    if watch is not None:
        model.image_tower.embeddings.register_forward_pre_hook(lambda _, inputs: watch.append(len(inputs[0])))
    trainer = VisionLanguageTrainer(
        model,
        arguments(tmp_path / "out", **changes),
        processing_class=processor,
        freezing=freezing,
        train_dataset=rows() if data is None else data,
        eval_dataset=rows()[::-1],
        image_features=features,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses.append(trainer.evaluate()["eval_loss"])
    return losses, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other, tolerance=0.0):
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    for name, tensor in one[1].items():
        torch.testing.assert_close(other[1][name], tensor, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("freezing", ["instructblip", "instructblip-strict"])
def test_losses_and_weights_are_those_of_the_slow_path(kind, freezing, tmp_path):
    slow = train(tmp_path, model=tiny_model(kind, dropout=0.1), freezing=freezing)
    norm = "vision_model.post_layernorm.weight"
    assert torch.equal(slow[1][norm], torch.ones(24)) == (freezing == "instructblip-strict")
    seen = []
    for turn in ("computes", "reads"):
        model = tiny_model(kind, dropout=0.1)
        fast = train(tmp_path, tmp_path / "features", model, freezing, watch=seen)
        assert_same(slow, fast, 1e-6)
        assert seen if turn == "computes" else not seen
        if turn == "computes":
            # Eight scenes, some of them in several rows: once each, in whatever batch they come first.
            assert sum(seen) == 8
        seen.clear()


def test_in_bfloat16_nothing_is_rounded(tmp_path):
    slow = train(tmp_path, bf16=True)
    folder = tmp_path / "features"
    for _ in range(2):
        assert_same(slow, train(tmp_path, folder, bf16=True))
    stored = load_file(next(folder.rglob("*.safetensors")))["features"]
    assert stored.dtype == torch.bfloat16


def test_accumulation_and_workers(tmp_path):
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "dataloader_num_workers": 2}
    slow = train(tmp_path, **changes)
    for _ in range(2):
        assert_same(slow, train(tmp_path, tmp_path / "features", **changes), 1e-6)


def test_features_can_be_kept_in_fewer_bits(tmp_path):
    slow = train(tmp_path)
    fast = [train(tmp_path, tmp_path / "features", dtype=torch.bfloat16) for _ in range(2)]
    assert_same(fast[0], fast[1], 1e-6)
    assert fast[0][0] != slow[0]
    assert fast[0][0] == pytest.approx(slow[0], rel=5e-3)


def test_another_tower_keeps_its_last_hidden_state(tmp_path):
    def clip_model():
        torch.manual_seed(1)
        tower = AutoModel.from_config(
            CLIPVisionConfig(
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
            )
        )
        model = tiny_model()
        return type(model).from_vision_text_pretrained(
            tower, model.language_model, model.qformer, num_query_tokens=4, processor=tiny_processor()
        )

    torch.manual_seed(0)
    state = clip_model().state_dict()

    def model():
        own = clip_model()
        own.load_state_dict(state)
        return own

    slow = train(tmp_path, model=model(), freezing="instructblip-strict")
    for _ in range(2):
        fast = train(tmp_path, tmp_path / "features", model(), "instructblip-strict")
        assert_same(slow, fast, 1e-6)
    facts = json.loads(next((tmp_path / "features").rglob("store.json")).read_text())
    assert facts["kept"] == "last_hidden_state"


@pytest.mark.parametrize("layer", [-2, [-1, 1]])
def test_llava_keeps_what_its_connector_reads(layer, tmp_path):
    def run(folder=None, watch=None):
        model = tiny_llava(dropout=0.1, vision_feature_layer=layer)
        return train(tmp_path, folder, model, "llava-stage2", watch=watch, processor=tiny_llava_processor())

    slow, seen = run(), []
    for turn in ("computes", "reads"):
        assert_same(slow, run(tmp_path / "features", seen), 1e-6)
        assert sum(seen) == (8 if turn == "computes" else 0)
        seen.clear()
    facts = json.loads(next((tmp_path / "features").rglob("store.json")).read_text())
    assert facts["kept"] == ("states [-2], default" if layer == -2 else "states [-1, 1], default")
    stored = load_file(next((tmp_path / "features").rglob("*.safetensors")))["features"]
    assert stored.shape[-2:] == (16, 24 if layer == -2 else 48)


def test_damaged_features_are_computed_anew(tmp_path, caplog):
    folder = tmp_path / "features"
    first = train(tmp_path, folder)
    files = sorted(folder.rglob("*.safetensors"))
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[0][:-7])
    flipped = bytearray(whole[1])
    flipped[-5] ^= 16
    files[1].write_bytes(flipped)
    seen = []
    caplog.set_level(logging.WARNING)
    assert_same(first, train(tmp_path, folder, watch=seen), 1e-6)
    assert sum(seen) == 2
    assert len([record for record in caplog.records if "damaged" in record.message]) == 2
    assert [len(file.read_bytes()) for file in files] == [len(content) for content in whole]
    model = tiny_model()
    store = ImageFeatures(model, tiny_processor().image_processor, folder).store
    assert all(store.get(file.stem) is not None for file in files)


def test_a_full_disk_stops_the_training_with_a_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SavingError, match="^cannot write image features into .*No space left on device; free some"):
        train(tmp_path, tmp_path / "features")


def test_other_weights_precision_or_pixels_do_not_hit(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    seen = {ImageFeatures(model, processor.image_processor, tmp_path).store.fingerprint}
    assert ImageFeatures(tiny_model(), tiny_processor().image_processor, tmp_path).store.fingerprint in seen
    save_tiny_checkpoint(tmp_path / ".saved")
    loaded = type(model).from_pretrained(tmp_path / ".saved")
    assert ImageFeatures(loaded, processor.image_processor, tmp_path).store.fingerprint in seen, "saved and loaded"
    with torch.no_grad():
        model.vision_model.post_layernorm.weight += 1
        model.qformer.encoder.layer[0].attention.attention.query.weight += 1
    assert ImageFeatures(model, processor.image_processor, tmp_path).store.fingerprint in seen, "what features lack"

    def add(**changes):
        options = {"model": model, "image_processor": processor.image_processor, "folder": tmp_path, **changes}
        fingerprint = ImageFeatures(**options).store.fingerprint
        assert fingerprint not in seen, changes
        seen.add(fingerprint)

    add(dtype=torch.bfloat16)
    add(autocast=torch.bfloat16)
    add(autocast=torch.bfloat16, dtype=torch.float32)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    add()
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc2.bias[3] += 1e-6
    add()
    model.vision_model.config.layer_norm_eps = 1e-3
    add()
    add(model=model.to(torch.bfloat16))


def test_towers_that_train_are_refused(tmp_path):
    for freezing in ("all", {"vision_model.encoder.layers.1": "train", "qformer": "train"}):
        with pytest.raises(ValueError, match=r"vision_model\.(embeddings|encoder).* trains: leave out"):
            train(tmp_path, tmp_path / "features", freezing=freezing)
    with pytest.raises(ValueError, match="trains: leave out"):
        train(tmp_path, tmp_path / "features", freezing={"vision_model": "lora", "qformer": "train"})


def test_spread_weights_are_refused_with_advice(tmp_path):
    features = ImageFeatures(tiny_model(), tiny_processor().image_processor, tmp_path)
    batch = features.reader([row["images"] for row in rows()])
    assert len(batch[MISSING_KEYS]) == 8
    with pytest.raises(ValueError, match="8 images of a batch have no features.* instructblip features RECIPE"):
        features.complete(batch, is_sharded=True)
    with pytest.raises(ValueError, match="rows without images"):
        features.complete({"input_ids": torch.ones(1, 1)}, is_sharded=True)


def test_the_tower_computes_without_dropout_and_leaves_modes_as_they_were():
    model = tiny_model(dropout=0.5).train()
    model.vision_model.encoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    tower = FrozenTower(model)
    pixels = torch.randn(2, 3, 56, 56)
    assert torch.equal(tower(pixels), tower(pixels))
    assert [module.training for module in model.modules()] == modes
    assert not tower(pixels).requires_grad


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def recipe_in(folder, checkpoint, data):
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{path: {checkpoint}}}\nfreezing: instructblip\ndata: {data}\n"
        "training: {max_steps: 3, per_device_train_batch_size: 4, use_cpu: true, disable_tqdm: true, logging_steps: 1, "
        "report_to: none, save_strategy: 'no', learning_rate: 0.01}\n"
    )
    return path


def run(path, out, *changes):
    result = prepare_run(load_recipe(path, changes), out).run()
    return result.train_metrics["train_loss"], load_file(result.output_dir / "model.safetensors")


def test_a_recipe_of_a_mixture_decodes_no_image_that_it_has_features_of(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("okvqa", "vqav2"):
        write_dataset(name, tmp_path / name)
    path = recipe_in(tmp_path, checkpoint, "{train: {mixture: {root: ., datasets: {okvqa: {}, vqav2: {}}}}}")
    slow = run(path, tmp_path / "slow")
    keep = "data.image_features=kept"
    assert_same(slow, run(path, tmp_path / "first", keep), 1e-6)
    assert (tmp_path / "kept").is_dir(), "relative to where the command runs"

    def decode(*_, **__):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Image, "open", decode)
    assert_same(slow, run(path, tmp_path / "second", keep), 1e-6)


def test_changed_images_under_the_same_path_miss(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for index, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (30, 30), color).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "prompt": "what color is this ?", "completion": color})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = recipe_in(tmp_path, checkpoint, "{train: rows.jsonl, image_features: kept}")
    run(path, tmp_path / "first")
    assert len(list(Path("kept").rglob("*.safetensors"))) == 3
    Image.new("RGB", (30, 30), "white").save(tmp_path / "1.png")
    fast = run(path, tmp_path / "second")
    assert len(list(Path("kept").rglob("*.safetensors"))) == 4
    assert_same(run(path, tmp_path / "slow", "data.image_features=null"), fast, 1e-6)


def test_recipes_name_what_is_wrong(checkpoint, tmp_path):
    path = recipe_in(tmp_path, checkpoint, "{train: {shapes_world: {examples: 4}}}")
    for changes, message in (
        (["data.image_features=kept", "data.image_features_dtype=int8"], "image_features_dtype is 'int8'; allowed"),
        (["data.image_features_dtype=bfloat16"], "image_features names no folder"),
        (["data.image_features=''"], "image_features is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(path, changes)
    keep = f"data.image_features={tmp_path / 'kept'}"
    for change, message in (
        ("freezing.preset=all", "freezing has vision_model: train"),
        ("freezing.components={vision_model: train}", "freezing has vision_model: train"),
        ("freezing.components={vision_model: lora}", "freezing has vision_model: lora"),
        ("freezing.components={vision_model.encoder.layers.1: train}", r"vision_model\.encoder\.layers\.1: train"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(path, [change, keep])
    # What only the model can tell: that all of the tower but its last norm is named.
    change = "freezing.components={vision_model: train, vision_model.encoder: frozen}"
    with pytest.raises(ValueError, match=r"vision_model\.embeddings\.class_embedding.* trains"):
        prepare_run(load_recipe(path, [change, keep]), tmp_path / "out")
    for change in ("freezing.components={vision_model: frozen}", "freezing.preset=instructblip-strict"):
        load_recipe(path, [change, keep])


def test_dropout_in_a_frozen_tower_is_refused(tmp_path):
    policy = FreezingPolicy(frozen_dropout=["vision_model.encoder"])
    with pytest.raises(ValueError, match="frozen_dropout names vision_model.encoder"):
        train(tmp_path, tmp_path / "features", freezing=policy)
    train(tmp_path, tmp_path / "features", freezing=FreezingPolicy(frozen_dropout=["language_model"]), max_steps=1)
