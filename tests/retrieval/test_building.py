"""The index of a folder after any history is that of indexing the folder anew."""

import os
import shutil

import pytest
import torch

from instructblip_hf.retrieval import FeatureIndex, building, index, index_images, index_texts
from instructblip_hf.retrieval.text_files import read_texts
from tiny_retrieval import draw_image


def features_of(folder):
    """Stored features by name."""
    opened = FeatureIndex(folder)
    shards = {shard.name: shard for shard in opened.shards()}
    return {name: shards[item.shard].features[item.row].clone() for name, item in opened.items.items()}


def build(encoder, photos, folder, **options):
    return index_images(encoder, photos, folder, batch_size=2, progress=False, **options)


def check_equals_a_fresh_one(encoder, photos, folder, tmp_path):
    fresh = tmp_path / "fresh"
    build(encoder, photos, fresh)
    expected, found = features_of(fresh), features_of(folder)
    shutil.rmtree(fresh)
    assert sorted(found) == sorted(expected)
    for name, features in expected.items():
        assert torch.equal(features, found[name]), name
    named = {item.shard for item in FeatureIndex(folder).items.values()}
    assert {file.stem for file in (folder / "shards").iterdir()} == named


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ITEMS", 3)
    monkeypatch.setattr(index, "SHARD_ITEMS", 3)


def test_features_are_the_models(encoder, photos, tmp_path):
    report = build(encoder, photos, tmp_path / "i", stored_in="float32")
    assert (report.encoded, report.unchanged, report.removed, report.linked, report.bad) == (7, 0, 0, 0, {})
    found = features_of(tmp_path / "i")
    assert sorted(found) == ["0.png", "1.png", "2.png", "3.png", "4.png", "old/5.png", "old/6.png"]
    for name, features in found.items():
        with torch.no_grad():
            expected = encoder.model.get_image_features(encoder.pixels([photos / name])).image_embeds[0]
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_a_second_run_computes_what_is_new_or_changed_and_drops_what_is_gone(encoder, photos, tmp_path, small_shards):
    folder = tmp_path / "i"
    build(encoder, photos, folder)
    encoder.encoded = 0
    assert build(encoder, photos, folder).unchanged == 7
    assert encoder.encoded == 0
    draw_image(photos / "1.png", 71)
    draw_image(photos / "new" / "a.png", 72)
    (photos / "2.png").unlink()
    os.utime(photos / "3.png", ns=(1, 1))
    (photos / "4.png").rename(photos / "renamed.png")
    shutil.copy(photos / "0.png", photos / "copy.png")
    report = build(encoder, photos, folder)
    assert (report.encoded, report.linked, report.removed, report.unchanged) == (2, 3, 2, 3)
    check_equals_a_fresh_one(encoder, photos, folder, tmp_path)
    encoder.encoded = 0
    assert build(encoder, photos, folder).unchanged == 8
    assert encoder.encoded == 0


def test_many_small_runs_leave_few_shards(encoder, photos, tmp_path, small_shards):
    folder = tmp_path / "i"
    for number in range(8):
        draw_image(photos / f"later{number}.png", 100 + number)
        if number % 3 == 2:
            (photos / f"later{number - 1}.png").unlink()
        build(encoder, photos, folder)
    check_equals_a_fresh_one(encoder, photos, folder, tmp_path)
    # 13 images in shards of 3, of which all but one hold at least 2.
    assert len(list((folder / "shards").iterdir())) <= 7
    lines = (folder / "items.jsonl").read_text().splitlines()
    assert len(lines) == 13


def test_copies_in_one_run_share_a_row(encoder, photos, tmp_path):
    shutil.copy(photos / "0.png", photos / "zz.png")
    report = build(encoder, photos, tmp_path / "i")
    assert (report.encoded, report.linked) == (7, 1)
    items = FeatureIndex(tmp_path / "i").items
    assert (items["0.png"].shard, items["0.png"].row) == (items["zz.png"].shard, items["zz.png"].row)


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_run_that_is_killed_goes_on_where_it_was(encoder, photos, tmp_path, small_shards, monkeypatch, moment):
    """Killed in the n-th thing that is written: lines are cut in the middle, files are left under their other name."""
    folder = tmp_path / "i"
    build(encoder, photos, folder)
    draw_image(photos / "1.png", 71)
    (photos / "2.png").unlink()
    for number in range(5):
        draw_image(photos / f"new{number}.png", 80 + number)

    class Killed(BaseException):
        pass

    count = 0
    real_lines, real_whole = FeatureIndex._append_lines, index.write_whole

    def kill_now():
        nonlocal count
        count += 1
        return count == moment

    def lines(self, content):
        if kill_now():
            with (self.folder / "items.jsonl").open("ab") as stream:
                stream.write("".join(map(index.item_line, content)).encode()[:-10])
            raise Killed
        real_lines(self, content)

    def whole(file, content, incoming=None):
        if kill_now():
            file.with_name(f".{file.name}.partial").write_bytes(b"half")
            raise Killed
        real_whole(file, content, incoming)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureIndex, "_append_lines", lines)
        patched.setattr(index, "write_whole", whole)
        patched.setattr(building._Writer, "__exit__", lambda *_: None)
        with pytest.raises(Killed):
            build(encoder, photos, folder)
    encoder.encoded = 0
    build(encoder, photos, folder)
    assert encoder.encoded <= 6
    check_equals_a_fresh_one(encoder, photos, folder, tmp_path)


def test_half_a_line_is_cut_off_before_others_follow(encoder, photos, tmp_path, small_shards):
    folder = tmp_path / "i"
    build(encoder, photos, folder)
    with (folder / "items.jsonl").open("a") as stream:
        stream.write('{"name": "cut o')
    # Two, so that shards are left as they are: putting them together writes all lines anew.
    draw_image(photos / "new0.png", 50)
    draw_image(photos / "new1.png", 51)
    assert build(encoder, photos, folder).encoded == 2
    check_equals_a_fresh_one(encoder, photos, folder, tmp_path)


def test_whole_shards_of_a_killed_run_are_kept(encoder, photos, tmp_path, small_shards, monkeypatch):
    folder = tmp_path / "i"
    real = encoder.encode_images

    def interrupted(pixels):
        if encoder.encoded >= 6:
            raise KeyboardInterrupt
        return real(pixels)

    with monkeypatch.context() as patched:
        patched.setattr(encoder, "encode_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(encoder, photos, folder)
    report = build(encoder, photos, folder)
    assert (report.unchanged, report.encoded) == (6, 1)
    check_equals_a_fresh_one(encoder, photos, folder, tmp_path)


def test_unreadable_images_are_named_and_nothing_is_lost(encoder, photos, tmp_path):
    folder = tmp_path / "i"
    (photos / "old" / "5.png").write_bytes(b"no image")
    (photos / "old" / "7.jpg").write_bytes((photos / "0.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"old/5\.png cannot be indexed: .*--skip-bad-images") as error:
        build(encoder, photos, folder)
    assert "What was computed before is kept" in str(error.value)
    assert len(FeatureIndex(folder)) == 4
    report = build(encoder, photos, folder, skip_bad_images=True)
    assert sorted(report.bad) == ["old/5.png", "old/7.jpg"]
    assert (report.unchanged, report.encoded) == (4, 2)
    # A good one that goes bad is no longer found.
    (photos / "0.png").write_bytes(b"")
    assert "0.png" in build(encoder, photos, folder, skip_bad_images=True).bad
    assert "0.png" not in FeatureIndex(folder).items


def test_features_of_two_models_are_not_mixed(encoder, other_encoder, photos, tmp_path):
    folder = tmp_path / "i"
    build(encoder, photos, folder)
    with pytest.raises(ValueError, match=r"made with other weights .*\(tiny-0\), not with tiny-1"):
        build(other_encoder, photos, folder)
    with pytest.raises(ValueError, match="has features in float16, and float32 was asked for"):
        build(encoder, photos, folder, stored_in="float32")
    other_encoder.model.load_state_dict(encoder.model.state_dict())
    assert build(other_encoder, photos, folder).unchanged == 7
    with torch.no_grad():
        other_encoder.model.vision_projection.weight += 1e-3
    with pytest.raises(ValueError, match="other weights"):
        build(other_encoder, photos, folder)


def test_a_folder_that_moved_is_the_same_and_another_is_not(encoder, photos, tmp_path):
    folder = tmp_path / "i"
    build(encoder, photos, folder)
    draw_image(tmp_path / "others" / "a.png", 1)
    with pytest.raises(ValueError, match="is the index of .*photos: name another folder"):
        build(encoder, tmp_path / "others", folder)
    moved = photos.rename(tmp_path / "moved")
    assert build(encoder, moved, folder).unchanged == 7
    assert FeatureIndex(folder).facts.root == str(moved)


def test_a_damaged_shard_is_computed_anew(encoder, photos, tmp_path, small_shards):
    folder = tmp_path / "i"
    build(encoder, photos, folder)
    shard = sorted((folder / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match="00000.safetensors is missing or damaged"):
        list(FeatureIndex(folder).shards())
    report = build(encoder, photos, folder)
    assert (report.encoded, report.unchanged) == (3, 4)
    check_equals_a_fresh_one(encoder, photos, folder, tmp_path)


def test_what_is_no_index_is_refused(encoder, photos, tmp_path):
    with pytest.raises(ValueError, match="is there already and is no index"):
        build(encoder, photos, photos)
    with pytest.raises(FileNotFoundError, match="there is no index in"):
        FeatureIndex(photos)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        build(encoder, tmp_path / "nothing", tmp_path / "i")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        build(encoder, tmp_path / "empty", tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_two_processes_do_not_write_at_once(encoder, photos, tmp_path):
    build(encoder, photos, tmp_path / "i")
    with FeatureIndex(tmp_path / "i").writing():
        with pytest.raises(ValueError, match="another process is writing"):
            build(encoder, photos, tmp_path / "i")
    build(encoder, photos, tmp_path / "i")


def test_features_that_are_not_finite_are_refused(encoder, photos, tmp_path):
    with torch.no_grad():
        encoder.model.vision_projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"features of 0\.png are not finite"):
        build(encoder, photos, tmp_path / "i")


def test_texts_are_indexed_once_each_and_brought_up_to_date(encoder, tmp_path):
    folder, source = tmp_path / "i", tmp_path / "captions.txt"
    report = index_texts(encoder, ["a red circle", "a blue square", "a red circle"], folder, source, progress=False)
    assert report.encoded == 2
    report = index_texts(encoder, ["a blue square", "two stars"], folder, source, progress=False)
    assert (report.encoded, report.unchanged, report.removed) == (1, 1, 1)
    found = features_of(folder)
    assert list(found) == ["a blue square", "two stars"]
    assert torch.equal(found["two stars"], encoder.encode_texts(["two stars"]).half())
    draw_image(tmp_path / "p" / "a.png", 0)
    with pytest.raises(ValueError, match="index of texts: name another folder for images"):
        build(encoder, tmp_path / "p", folder)


def test_files_of_texts(tmp_path):
    (tmp_path / "a.txt").write_text(" a dog \n\nthe cat\u2028sat\n", encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == ["a dog", "the cat\u2028sat"]
    (tmp_path / "a.jsonl").write_text('{"text": "a dog"}\n{"caption": "a cat"}\n"a cow"\n')
    assert read_texts(tmp_path / "a.jsonl") == ["a dog", "a cat", "a cow"]
    (tmp_path / "a.jsonl").write_text('{"text": "a dog"}\n{"texts": "a cat"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2 has no text"):
        read_texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "a dog"\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1 is not readable as JSON"):
        read_texts(tmp_path / "a.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_texts(tmp_path / "none.txt")
