"""Streams: tar shards and `datasets`, whole epochs, consumers apart, exact resuming."""

import io
import json
import pickle
import tarfile
from collections import Counter, defaultdict
from functools import partial

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from instructblip_hf.data.mixture import Mixture
from instructblip_hf.data.schema import check_example
from instructblip_hf.data.shards import DatasetShards, TarShards, example_from_tar
from instructblip_hf.data.streaming import StreamMixture, StreamSource
from instructblip_hf.data.templates import Instructions


class Lists:
    """Shards in memory: row ``"name shard number"``."""

    def __init__(self, name, sizes):
        self.name, self.sizes = name, sizes

    @property
    def num_shards(self):
        return len(self.sizes)

    def read(self, shard, start=0, step=1):
        return iter([f"{self.name} {shard} {number}" for number in range(start, self.sizes[shard], step)])

    @property
    def rows(self):
        return [row for shard in range(self.num_shards) for row in self.read(shard)]


def as_prompt(text):
    return {"prompt": text}


def mixture_of(sources, window=5, seed=0, **place):
    mixture = Mixture({name: sum(shards.sizes) for name, shards in sources.items()}, seed=seed)
    streams = {name: StreamSource(shards, as_prompt) for name, shards in sources.items()}
    return StreamMixture(streams, mixture, window=window, **place)


def take(stream, rows):
    iterator = iter(stream)
    return [next(iterator)["prompt"] for _ in range(rows)]


def two_sources():
    return {"a": Lists("a", [7, 0, 12, 9, 3]), "b": Lists("b", [4])}


class TestMixing:
    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
        st.integers(1, 12),
        st.integers(0, 1000),
    )
    def test_whole_epochs_in_new_orders(self, sizes, window, seed):
        source = Lists("a", sizes)
        rows = take(mixture_of({"a": source}, window, seed), 3 * len(source.rows))
        epochs = [rows[start : start + len(source.rows)] for start in range(0, len(rows), len(source.rows))]
        assert all(sorted(epoch) == sorted(source.rows) for epoch in epochs)

    def test_epochs_differ_in_shards_and_rows(self):
        source = Lists("a", [50] * 6)
        rows = take(mixture_of({"a": source}, window=10), 600)
        first, second = rows[:300], rows[300:]
        shards = [[row.split()[1] for row in epoch[::50]] for epoch in (first, second)]
        assert first != second
        assert shards[0] != shards[1]
        assert [int(row.split()[2]) for row in first[:10]] != sorted(int(row.split()[2]) for row in first[:10])

    def test_a_shard_alone_is_shuffled_anew(self):
        rows = take(mixture_of({"a": Lists("a", [40])}, window=10), 80)
        assert rows[:40] != rows[40:]

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 1000))
    def test_consumers_are_apart_and_even(self, world_size, shards, seed):
        source = Lists("a", [24] * shards)
        seen = []
        for rank in range(world_size):
            rows = take(mixture_of({"a": source}, seed=seed, rank=rank, world_size=world_size), 24 * shards * 2)
            seen.append(set(rows))
        assert sum(map(len, seen)) == len(set.union(*seen)) == 24 * shards
        assert max(map(len, seen)) - min(map(len, seen)) <= shards

    def test_all_consumers_follow_the_mixture(self):
        alone = mixture_of(two_sources()).mixture
        together = zip(*(iter(mixture_of(two_sources(), rank=rank, world_size=3)) for rank in range(3)))
        names = [row["dataset"] for _, rows in zip(range(40), together) for row in rows]
        assert names == [alone.dataset_at(number) for number in range(120)]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_are_consumers(self, workers):
        """More workers than shards, too: source b has a single one."""
        loader = torch.utils.data.DataLoader(
            mixture_of(two_sources()), batch_size=4, num_workers=workers, collate_fn=list
        )
        batches = [batch for _, batch in zip(range(12 * workers), loader)]
        for worker in range(workers):
            rows = [row["prompt"] for batch in batches[worker::workers] for row in batch]
            assert rows == take(mixture_of(two_sources(), rank=worker, world_size=workers), len(rows))

    def test_rows_too_few_for_all(self):
        with pytest.raises(ValueError, match="the source b has no rows for one of its consumers"):
            take(mixture_of(two_sources(), rank=4, world_size=5), 100)

    def test_a_bad_row_is_named(self):
        def broken(text):
            raise ValueError("no text")

        stream = StreamMixture({"a": StreamSource(Lists("a", [1]), broken)}, Mixture({"a": 1}))
        with pytest.raises(ValueError, match="a, shard 0, row 0: no text"):
            next(iter(stream))

    def test_errors(self):
        source = {"a": StreamSource(Lists("a", [1]), as_prompt)}
        with pytest.raises(ValueError, match="sources are a; the mixture was made for b"):
            StreamMixture(source, Mixture({"b": 1}))
        with pytest.raises(ValueError, match="rank is 2"):
            StreamMixture(source, Mixture({"a": 1}), rank=2, world_size=2)
        with pytest.raises(ValueError, match="window is 0"):
            StreamMixture(source, Mixture({"a": 1}), window=0)
        with pytest.raises(ValueError, match="a has no shards"):
            StreamMixture({"a": StreamSource(Lists("a", []), as_prompt)}, Mixture({"a": 1}))


class TestResuming:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 150), st.integers(1, 12), st.integers(1, 3), st.integers(0, 100))
    def test_exact_anywhere(self, stopped, window, world_size, seed):
        place = {"rank": world_size - 1, "world_size": world_size, "window": window, "seed": seed}
        whole = take(mixture_of(two_sources(), **place), stopped + 60)
        first, second = mixture_of(two_sources(), **place), mixture_of(two_sources(), **place)
        assert take(first, stopped) == whole[:stopped]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert take(second, 60) == whole[stopped:]

    def test_twice_and_by_pickle(self):
        whole = take(mixture_of(two_sources()), 90)
        stream = mixture_of(two_sources())
        assert take(stream, 30) == whole[:30]
        stream = pickle.loads(pickle.dumps(stream))
        assert take(stream, 30) == whole[30:60]
        again = mixture_of(two_sources())
        again.load_state_dict(stream.state_dict())
        assert again.state_dict() == stream.state_dict()
        assert take(again, 30) == whole[60:]

    def test_before_the_first_row(self):
        stream = mixture_of(two_sources())
        stream.load_state_dict(mixture_of(two_sources()).state_dict())
        assert take(stream, 20) == take(mixture_of(two_sources()), 20)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"seed": 1}, "the loaded state has mixture"),
            ({"world_size": 2}, "has consumers 1, here it is 2"),
            ({"window": 6}, "has window 5, here it is 6"),
        ],
    )
    def test_states_of_other_runs(self, changed, message):
        first, second = mixture_of(two_sources()), mixture_of(two_sources(), **changed)
        take(first, 3)
        second.load_state_dict(first.state_dict())
        with pytest.raises(ValueError, match=message):
            take(second, 1)

    @pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_torchdata_asks_every_worker(self, workers):
        stateful = pytest.importorskip("torchdata.stateful_dataloader")

        def loader():
            return stateful.StatefulDataLoader(
                mixture_of(two_sources()), batch_size=4, num_workers=workers, collate_fn=list
            )

        first, second = loader(), loader()
        batches = iter(first)
        for _ in range(7):
            next(batches)
        state = first.state_dict()
        following = [next(batches) for _ in range(6)]
        second.load_state_dict(state)
        assert [batch for _, batch in zip(range(6), second)] == following

    def test_skipping_as_trainer_does(self):
        from accelerate.data_loader import prepare_data_loader, skip_first_batches

        def loader():
            plain = torch.utils.data.DataLoader(mixture_of(two_sources()), batch_size=4, collate_fn=list)
            return prepare_data_loader(plain, num_processes=1, process_index=0, put_on_device=False)

        batches = [batch for _, batch in zip(range(8), loader())]
        resumed = [batch for _, batch in zip(range(5), skip_first_batches(loader(), 3))]
        assert resumed == batches[3:]


def picture(color):
    data = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(data, "PNG")
    return data.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


class TestTarShards:
    def shard(self, tmp_path, index=0, rows=5):
        files = {}
        for row in range(rows):
            files[f"part/{index}-{row}.png"] = picture((row, index, 0))
            files[f"part/{index}-{row}.txt"] = f"caption {index} {row}\n".encode()
        return write_tar(tmp_path / f"{index}.tar", files)

    def test_rows(self, tmp_path):
        shards = TarShards([self.shard(tmp_path, index) for index in range(2)])
        assert shards.num_shards == 2
        rows = list(shards.read(1))
        assert [row["__key__"] for row in rows] == [f"part/1-{row}" for row in range(5)]
        assert rows[3][".txt"] == b"caption 1 3\n"
        assert Image.open(io.BytesIO(rows[3][".png"])).getpixel((0, 0)) == (3, 1, 0)
        assert list(shards.read(1, start=1, step=2)) == rows[1::2]
        assert list(shards.read(1, start=9)) == []
        assert [TarShards([self.shard(tmp_path, 7, rows)]).count(0) for rows in (1, 4)] == [1, 4]

    def test_the_reader_of_datasets_agrees(self, tmp_path):
        """Oracle: the webdataset reader of `datasets`, as a source itself."""
        path = self.shard(tmp_path)
        ours = list(TarShards([path]).read(0, start=1, step=3))
        stream = datasets.load_dataset("webdataset", data_files=str(path), split="train", streaming=True)
        theirs = list(DatasetShards(stream.cast_column("png", datasets.Image(decode=False))).read(0, start=1, step=3))
        assert [row["__key__"] for row in ours] == [row["__key__"] for row in theirs]
        assert [row[".png"] for row in ours] == [row["png"]["bytes"] for row in theirs]
        assert [row[".txt"].decode() for row in ours] == [row["txt"] for row in theirs]

    def test_other_members_and_dots(self, tmp_path):
        path = write_tar(
            tmp_path / "a.tar",
            {"README": b"x", "./v1.0/a.left.PNG": b"1", "./v1.0/a.right.png": b"2", "./v1.0/a.json": b"[]", ".x": b""},
        )
        assert list(TarShards([path]).read(0)) == [
            {"__key__": "./v1.0/a", ".left.png": b"1", ".right.png": b"2", ".json": b"[]"}
        ]
        assert TarShards([path]).count(0) == 1

    def test_mixed_worded_and_resumed(self, tmp_path):
        sources = {}
        for name in ("x", "y"):
            (tmp_path / name).mkdir()
            shards = TarShards([self.shard(tmp_path / name, index) for index in range(3)])
            to_example = partial(example_from_tar, dataset=name)
            sources[name] = StreamSource(shards, to_example, Instructions(seed=2))
        stream = StreamMixture(sources, Mixture({"x": 15, "y": 15}), window=4)
        iterator = iter(stream)
        rows = [next(iterator) for _ in range(60)]
        assert Counter(row["dataset"] for row in rows).keys() == {"x", "y"}
        prompts = defaultdict(set)
        for row in rows:
            prompts[row["dataset"], row["completion"]].add(row["prompt"])
            assert Image.open(io.BytesIO(row["images"][0])).size == (4, 4)
        assert max(map(len, prompts.values())) >= 2
        state = stream.state_dict()
        following = [next(iterator) for _ in range(10)]
        resumed = StreamMixture(sources, Mixture({"x": 15, "y": 15}), window=4)
        resumed.load_state_dict(state)
        assert [row for _, row in zip(range(10), resumed)] == following

    def test_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no archive"):
            TarShards([tmp_path / "none.tar"])
        with pytest.raises(ValueError, match="must be a list"):
            TarShards("a.tar")
        with pytest.raises(ValueError, match="must be a list"):
            TarShards([])
        cut = tmp_path / "cut.tar"
        cut.write_bytes(self.shard(tmp_path).read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"cut\.tar: damaged archive"):
            list(TarShards([cut]).read(0))
        cut.write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"cut\.tar: damaged archive"):
            list(TarShards([cut]).read(0))


class TestExampleFromTar:
    @pytest.mark.parametrize(
        ("files", "answers"),
        [
            ({".txt": b"a cat\n"}, ["a cat"]),
            ({".json": b'["a cat", "an animal"]'}, ["a cat", "an animal"]),
            ({".json": b'{"caption": "a cat"}'}, ["a cat"]),
            ({".json": b'{"caption": ["a cat", "an animal"], "url": "x"}'}, ["a cat", "an animal"]),
        ],
    )
    def test_captions(self, files, answers):
        example = example_from_tar({"__key__": "7", ".jpg": b"image", **files}, "web")
        check_example(example)
        assert example == {
            "id": "7", "dataset": "web", "category": "image_captioning", "images": [b"image"], "answers": answers
        }  # fmt: skip

    def test_slots(self):
        content = {"__key__": "7", ".1.png": b"1", ".2.png": b"2"}
        slots = {"question": "why?", "answers": ["so"], "id": "other", "colour": 3}
        example = example_from_tar({**content, ".json": json.dumps(slots).encode()}, "web", "image_qa")
        check_example(example)
        assert example["question"] == "why?"
        assert (example["id"], example["images"], example["answers"]) == ("7", [b"1", b"2"], ["so"])

    def test_training_rows(self):
        row = {"prompt": "why?", "completion": "so", "other": 1}
        example = example_from_tar({"__key__": "7", ".json": json.dumps(row).encode()}, "web")
        assert example == {"id": "7", "dataset": "web", "images": [], "prompt": "why?", "completion": "so"}

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "7: there is neither"),
            ({".json": b"{"}, "7.json: not readable"),
            ({".json": b"3"}, "must be a list of texts, not 3"),
            ({".json": b'{"caption": 3}'}, "must be a list of texts, not 3"),
        ],
    )
    def test_errors(self, files, message):
        with pytest.raises(ValueError, match=message):
            example_from_tar({"__key__": "7", **files}, "web")


def rows_of(shards):
    for shard in shards:
        for number in range(10):
            yield {"text": f"{shard} {number}"}


class TestDatasetShards:
    def stream(self):
        return datasets.IterableDataset.from_generator(rows_of, gen_kwargs={"shards": list("abc")})

    def test_rows(self):
        shards = DatasetShards(self.stream())
        assert shards.num_shards == 3
        assert [row["text"] for row in shards.read(1)] == [f"b {number}" for number in range(10)]
        assert [row["text"] for row in shards.read(2, start=3, step=4)] == ["c 3", "c 7"]

    def test_a_table(self):
        table = datasets.Dataset.from_dict({"text": [str(number) for number in range(20)]}).to_iterable_dataset(4)
        shards = DatasetShards(table)
        assert sorted(int(row["text"]) for shard in range(4) for row in shards.read(shard)) == list(range(20))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_mixed_in_workers(self, workers):
        """Two workers and three shards: `datasets` alone would leave the workers uneven."""
        source = StreamSource(DatasetShards(self.stream()), lambda row: as_prompt(row["text"]))
        stream = StreamMixture({"a": source}, Mixture({"a": 30}), window=4)
        loader = torch.utils.data.DataLoader(stream, batch_size=5, num_workers=workers, collate_fn=list)
        rows = [row["prompt"] for _, batch in zip(range(6), loader) for row in batch]
        assert sorted(rows) == sorted(row["text"] for row in rows_of("abc"))

    def test_resuming(self):
        def make():
            source = StreamSource(DatasetShards(self.stream()), lambda row: as_prompt(row["text"]))
            return StreamMixture({"a": source}, Mixture({"a": 30}), window=4)

        whole = take(make(), 80)
        first, second = make(), make()
        take(first, 47)
        second.load_state_dict(first.state_dict())
        assert take(second, 33) == whole[47:]
