"""The folder of features: what is written is read, what is damaged is not, and nobody reads another's."""

import errno
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from instructblip_hf.training.image_features import FeatureStore


FACTS = {"tower": "T", "weights": "w", "dtype": "float32", "image_processor": {"size": 4}}
DIGEST = "ab" * 32


def store_in(folder, **facts):
    return FeatureStore(folder, {**FACTS, **facts})


def features(seed=0, shape=(5, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_written_is_read_by_another_process_s_store(dtype, tmp_path):
    store = store_in(tmp_path, dtype=dtype)
    key = store.key(DIGEST)
    assert store.get(key) is None
    assert key not in store
    store.put(key, features())
    for reader in (store, store_in(tmp_path, dtype=dtype)):
        assert key in reader
        assert torch.equal(reader.get(key), features().to(getattr(torch, dtype)))
        assert reader.shape == (5, 3)
    file = tmp_path / store.fingerprint / key[:2] / key[2:4] / f"{key}.safetensors"
    assert torch.equal(load_file(file)["features"], features().to(getattr(torch, dtype))), "an ordinary file"
    assert file.stat().st_size == store.entry_bytes((5, 3))


def test_no_other_facts_hit(tmp_path):
    store = store_in(tmp_path)
    store.put(store.key(DIGEST), features())
    for change in ({"tower": "U"}, {"weights": "v"}, {"dtype": "bfloat16"}, {"image_processor": {"size": 5}}):
        other = store_in(tmp_path, **change)
        assert other.key(DIGEST) not in other, change
        assert other.get(store.key(DIGEST)) is None, change
    assert store.key("cd" * 32) not in store


def test_the_facts_are_readable(tmp_path):
    store = store_in(tmp_path)
    store.put(store.key(DIGEST), features())
    content = json.loads((store.folder / "store.json").read_text())
    assert content == {"format": 1, **FACTS, "shape": [5, 3]}


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path, caplog):
    store = store_in(tmp_path)
    key = store.key(DIGEST)
    store.put(key, features())
    path = store.path(key)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.get(key) is None, length
        assert key not in store
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            read = store.get(key)
            # Blanks that pad the header mean nothing.
            assert read is None or (torch.equal(read, features()) and read.dtype == torch.float32), (position, bit)
    caplog.clear()
    path.write_bytes(whole[:-1])
    with caplog.at_level(logging.WARNING):
        assert store.get(key) is None
        assert store.get(key) is None, "said once"
        store.put(key, features())
        assert torch.equal(store.get(key), features())
    assert len(caplog.records) == 1
    assert str(path) in caplog.text


def test_a_file_of_another_image_is_noticed(tmp_path):
    store = store_in(tmp_path)
    key, other = store.key(DIGEST), store.key("cd" * 32)
    store.put(key, features())
    store.path(other).parent.mkdir(parents=True)
    store.path(other).write_bytes(store.path(key).read_bytes())
    assert store.get(other) is None


def test_folders_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"is not a folder of image features: it holds photo\.jpg"):
        store_in(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        store_in(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").unlink()
    store = store_in(tmp_path)
    store.put(store.key(DIGEST), features())
    facts = store.folder / "store.json"
    facts.write_text(facts.read_text().replace('"T"', '"U"'))
    with pytest.raises(ValueError, match="was changed"):
        store_in(tmp_path)


def test_damaged_facts_are_written_anew(tmp_path, caplog):
    store = store_in(tmp_path)
    store.put(store.key(DIGEST), features())
    whole = (store.folder / "store.json").read_text()
    (store.folder / "store.json").write_text(whole[:20])
    again = store_in(tmp_path)
    assert "damaged" in caplog.text
    assert torch.equal(again.get(store.key(DIGEST)), features())
    again.put(again.key("cd" * 32), features(1))
    assert (store.folder / "store.json").read_text() == whole


def test_features_of_another_shape_are_refused(tmp_path):
    store = store_in(tmp_path)
    store.put(store.key(DIGEST), features())
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 3\)"):
        store.put(store.key("cd" * 32), features(shape=(4, 3)))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_is_a_clear_error_and_leaves_no_entry(failing, tmp_path, monkeypatch):
    store = store_in(tmp_path)
    store.put(store.key("cd" * 32), features(1))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left on device; free some space") as raised:
        store.put(store.key(DIGEST), features())
    assert raised.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(raised.value)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert store.key(DIGEST) not in store


def write(folder, turns, shape, started):
    store = store_in(folder)
    started.set()
    for _ in range(turns):
        for image in range(20):
            store.put(store.key(f"image {image}"), features(image, shape))


def start_writer(folder, turns, shape):
    processes = multiprocessing.get_context("fork")
    started = processes.Event()
    writer = processes.Process(target=write, args=(folder, turns, shape, started))
    writer.start()
    assert started.wait(60)
    return writer


def test_two_processes_write_the_same_images_at_once(tmp_path):
    writers = [start_writer(tmp_path, 40, (5, 3)) for _ in range(2)]
    store = store_in(tmp_path)
    while any(writer.is_alive() for writer in writers):
        for image in range(20):
            key = store.key(f"image {image}")
            if store.path(key).is_file():
                assert torch.equal(store.get(key), features(image)), image
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert all(torch.equal(store.get(store.key(f"image {image}")), features(image)) for image in range(20))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 21, "20 images and the facts"


def test_killed_writers_leave_a_whole_store(tmp_path):
    """Files of a megabyte, so that a kill finds the writer in the middle of one."""
    shape = (512, 512)
    for delay in (0.01, 0.05, 0.15):
        writer = start_writer(tmp_path, 1000, shape)
        time.sleep(delay)
        writer.kill()
        writer.join()
    store = store_in(tmp_path)
    files = [path for path in store.folder.glob("*/*/*") if path.is_file()]
    assert files
    for image in range(20):
        key = store.key(f"image {image}")
        if store.path(key).is_file():
            assert torch.equal(store.get(key), features(image, shape))
    leftovers = list((store.folder / "incoming").iterdir())
    assert len(leftovers) <= 3
    (store.folder / "incoming" / "old").touch()
    os.utime(store.folder / "incoming" / "old", (0, 0))
    store.clean_up()
    assert sorted(Path(store.folder / "incoming").iterdir()) == sorted(leftovers), "what is young may be in use"
