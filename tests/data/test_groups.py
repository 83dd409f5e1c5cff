"""Draws grouped by image and by length: the mixture's promises, rows that stay together, micro-batches that are alike."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip_hf.data.image_groups import image_order
from instructblip_hf.data.length_groups import IMAGE_CHARACTERS, LengthGroupedSampler, text_length
from instructblip_hf.data.mixture import Mixture, MixtureDataset


def rows_of(images, questions, name="x"):
    """Rows of a dataset in which every image has so many questions, far apart from each other."""
    return [
        {"images": [f"{name}{number % images}.jpg"], "prompt": "w " * (number * 7 % 23 + 1), "completion": "yes"}
        for number in range(images * questions)
    ]


def mixture_of(datasets, **options):
    sizes = {name: len(rows) for name, rows in datasets.items()}
    group = options.get("group_by_image", 1)
    return Mixture(sizes, image_orders={name: image_order(rows, group) for name, rows in datasets.items()}, **options)


class TestByImage:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99)
    )
    def test_no_row_twice_before_all_were_seen(self, sizes, group, factor, seed):
        mixture = Mixture(
            {f"d{index}": size for index, size in enumerate(sizes)},
            seed=seed,
            draws_per_choice=group * factor,
            group_by_image=group,
        )
        seen = {}
        for number in range(600):
            name, row, epoch = mixture.draw(number)
            seen.setdefault((name, epoch), []).append(row)
        for name, size in mixture.sizes.items():
            epochs = [rows for (own, _), rows in sorted(seen.items()) if own == name]
            assert all(sorted(rows) == list(range(size)) for rows in epochs[:-1])
            assert not epochs or len(set(epochs[-1])) == len(epochs[-1])
        assert sum(mixture.counts(600).values()) == 600
        assert mixture.counts(600) == {
            name: sum(len(rows) for (own, _), rows in seen.items() if own == name) for name in mixture.names
        }

    @pytest.mark.parametrize(("questions", "most"), [(4, 1.0), (5, 1.65), (6, 1.5), (2, 2.1)])
    def test_rows_of_an_image_come_together(self, questions, most):
        datasets = {"a": rows_of(40, questions, "a"), "b": rows_of(23, questions, "b")}
        mixture = mixture_of(datasets, group_by_image=4, seed=1)
        images = []
        for first in range(0, 1200, 4):
            draws = [mixture.draw(number) for number in range(first, first + 4)]
            assert len({draw.dataset for draw in draws}) == 1
            images.append(len({datasets[name][row]["images"][0] for name, row, _ in draws}))
        # Of 5 questions on each image, 4 are one group and a fifth is in one of four images: (4 * 1 + 1 * 4) / 5.
        assert np.mean(images) <= most

    def test_orders_differ_between_epochs_and_seeds(self):
        mixture = mixture_of({"a": rows_of(10, 4)}, group_by_image=4)
        other = mixture_of({"a": rows_of(10, 4)}, group_by_image=4, seed=1)
        epochs = [[mixture.draw(40 * epoch + place).row for place in range(40)] for epoch in range(3)]
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != [other.draw(place).row for place in range(40)]

    def test_fingerprint_and_pickling(self):
        rows = rows_of(10, 4)
        mixture = mixture_of({"a": rows}, group_by_image=4)
        again = pickle.loads(pickle.dumps(mixture))
        assert [again.draw(number) for number in range(99)] == [mixture.draw(number) for number in range(99)]
        others = [
            Mixture({"a": 40}),
            Mixture({"a": 40}, draws_per_choice=4),
            Mixture({"a": 40}, group_by_image=4),
            mixture_of({"a": rows}, group_by_image=2),
            mixture_of({"a": rows[1:] + rows[:1]}, group_by_image=4),
            mixture_of({"a": rows}, group_by_image=4, group_by_length=1),
        ]
        prints = [each.fingerprint() for each in [mixture, *others]]
        assert len(set(prints)) == len(prints)
        assert again.fingerprint() == mixture.fingerprint()

    def test_order_of_images(self):
        rows = [
            {"images": ["a"]},
            {"images": []},
            {"images": [b"png"]},
            {"video": {"path": "v", "start": 0, "end": 1}},
            {"images": ["a", "b"]},
            {"image": Path("a")},
            {"images": [{"bytes": b"png", "path": None}]},
            {"images": [object()]},
            {"video": {"path": "v", "start": 3, "end": 4}},
        ]
        order = image_order(rows, 2).tolist()
        assert sorted(order) == list(range(9))
        assert {frozenset(order[place : place + 2]) for place in (0, 2, 4)} == {
            frozenset((0, 5)),
            frozenset((2, 6)),
            frozenset((3, 8)),
        }
        # What an order depends on is the same in another run.
        assert (
            order
            == image_order(
                [{**row, "images": [object()]} if index == 7 else row for index, row in enumerate(rows)], 2
            ).tolist()
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"group_by_image": 0}, "group_by_image is 0; it must be at least 1"),
            ({"group_by_length": -1}, "group_by_length is -1; it must be at least 0"),
            ({"group_by_image": 4, "draws_per_choice": 6}, "draws_per_choice is 6; it must be a multiple of"),
            ({"image_orders": {"a": np.arange(3)}}, "image_orders: a has 3 rows, its size is 40"),
        ],
    )
    def test_what_does_not_fit(self, options, message):
        with pytest.raises(ValueError, match=message):
            Mixture({"a": 40}, **options)


class Opening:
    """A dataset that can only give rows with their images opened."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise AssertionError("opened")


class TestByLength:
    def dataset(self, length=960, **options):
        datasets = {"a": rows_of(40, 4, "a"), "b": rows_of(23, 3, "b")}
        return MixtureDataset(datasets, mixture_of(datasets, **options), length)

    @pytest.mark.parametrize("window", [1, 3, 7])
    @pytest.mark.parametrize("group", [1, 4])
    def test_every_window_keeps_its_draws(self, window, group):
        dataset = self.dataset(group_by_length=window, group_by_image=group)
        sampler = LengthGroupedSampler(dataset, 960, batch_size=8, accumulation=2, world_size=2)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            numbers = list(sampler)
            assert len(numbers) == len(sampler) == 960
            size = 32 * window
            for start in range(0, 960, size):
                stop = min(start + size, 960)
                assert sorted(numbers[start:stop]) == list(range(960 * epoch + start, 960 * epoch + stop))
            for start in range(0, 960, group):
                assert numbers[start : start + group] == list(range(numbers[start], numbers[start] + group))

    def test_micro_batches_are_alike_and_more_so_in_larger_windows(self):
        padding = {}
        for window in (0, 1, 8):
            dataset = self.dataset(group_by_length=window)
            numbers = range(960)
            if window:
                numbers = list(LengthGroupedSampler(dataset, 960, batch_size=8, accumulation=4))
            lengths = np.array([text_length(dataset[number]) for number in numbers]).reshape(-1, 8)
            padding[window] = (lengths.max(1, keepdims=True) - lengths).mean()
        assert padding[1] < 0.45 * padding[0]
        assert padding[8] < 0.5 * padding[1]

    def test_steps_of_a_window_mix_lengths(self):
        dataset = self.dataset(length=2048, group_by_length=16)
        numbers = np.array(list(LengthGroupedSampler(dataset, 2048, batch_size=8, accumulation=4)))
        means = [np.mean([text_length(dataset[number]) for number in step]) for step in numbers.reshape(-1, 32)]
        # In the order of length they would rise from step to step.
        assert np.corrcoef(means, np.tile(np.arange(16), 4))[0, 1] < 0.5

    @pytest.mark.parametrize("group", [1, 4])
    @pytest.mark.parametrize("world", [1, 2])
    def test_modalities_are_kept_apart(self, group, world):
        """Of a window at most one batch over all processes holds both, and draws stay those of the window."""
        datasets = {"a": rows_of(40, 4, "a"), "b": rows_of(23, 4, "b")}
        # As long as rows with an image, so that length alone does not keep them apart.
        texts = [{**row, "images": [], "prompt": row["prompt"] + "x" * IMAGE_CHARACTERS} for row in datasets["b"]]
        datasets["b"] = texts
        options = {"group_by_length": 4, "group_by_image": group}
        mixed = {}
        for by_modality in (False, True):
            mixture = mixture_of(datasets, group_by_modality=by_modality, **options)
            dataset = MixtureDataset(datasets, mixture, 1024)
            numbers = list(
                LengthGroupedSampler(dataset, 1024, batch_size=8, accumulation=4 // world, world_size=world)
            )
            assert numbers == list(
                LengthGroupedSampler(dataset, 1024, batch_size=8, accumulation=4 // world, world_size=world)
            )
            batches = np.array([bool(dataset[number]["images"]) for number in numbers]).reshape(-1, 8 * world)
            both = batches.any(1) & ~batches.all(1)
            windows = both.reshape(-1, 128 // (8 * world)).sum(1)
            for start in range(0, 1024, 128):
                assert sorted(numbers[start : start + 128]) == list(range(start, start + 128))
            mixed[by_modality] = windows
        assert mixed[True].max() <= 1
        assert mixed[False].mean() > 3
        whole = mixture_of(datasets, group_by_modality=True, **options)
        assert pickle.loads(pickle.dumps(whole)).fingerprint() == whole.fingerprint()
        assert whole.fingerprint() != mixture_of(datasets, **options).fingerprint()

    def test_modalities_need_windows(self):
        with pytest.raises(ValueError, match="group_by_modality goes with group_by_length"):
            Mixture({"a": 3}, group_by_modality=True)

    def test_skipped_windows_are_not_read(self, monkeypatch):
        dataset = self.dataset(group_by_length=2)
        whole = list(LengthGroupedSampler(dataset, 960, batch_size=8))
        read = Counter()
        draw = dataset.mixture.draw
        monkeypatch.setattr(dataset.mixture, "draw", lambda number: read.update([number]) or draw(number))
        resumed = list(LengthGroupedSampler(dataset, 960, batch_size=8, skipped_steps=5))
        assert resumed[40:] == whole[40:]
        assert min(read) == 64 - 32

    def test_what_counts_as_length(self):
        row = {"images": ["a", "b"], "prompt": "1234", "completion": "56"}
        assert text_length(row) == 6 + 2 * IMAGE_CHARACTERS
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]},
            {"role": "assistant", "content": "red"},
        ]
        assert text_length({"image": "a", "messages": turns}) == 9 + IMAGE_CHARACTERS

    def test_what_cannot_be_grouped(self):
        with pytest.raises(ValueError, match="multiple of the rows of a step, 16"):
            LengthGroupedSampler(self.dataset(group_by_length=1), 24, batch_size=8, accumulation=2)
        with pytest.raises(ValueError, match="group_by_length of the mixture is 0"):
            LengthGroupedSampler(self.dataset(), 24, batch_size=8)
        dataset = MixtureDataset({"odd": Opening()}, Mixture({"odd": 4}, group_by_length=1), 8)
        with pytest.raises(
            TypeError, match=r"odd: Opening cannot be grouped by image or length: it has no method peek"
        ):
            LengthGroupedSampler(dataset, 8, batch_size=8)
