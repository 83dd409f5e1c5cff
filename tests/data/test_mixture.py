"""The mixture against its promises: shares, whole epochs, ranks, resuming, extreme sizes."""

import math
import pickle
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip_hf.data.mixture import BLOCK, Draw, Mixture, MixtureDataset, MixtureSampler
from instructblip_hf.data.permutations import KeyedPermutation, keyed_order


SIZES = {"capfilt": 13_873_136, "coco": 566_747, "vqav2": 443_757, "aokvqa": 17_056, "okvqa": 9_009, "one": 1}

few_sizes = st.lists(st.integers(1, 300), min_size=1, max_size=5).map(
    lambda sizes: {f"d{index}": size for index, size in enumerate(sizes)}
)
anything = st.lists(st.integers(1, 10**10), min_size=1, max_size=40).map(
    lambda sizes: {f"d{index}": size for index, size in enumerate(sizes)}
)
balances = st.sampled_from(["sqrt", "uniform", "size"])


class TestPermutations:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 700), st.integers())
    def test_every_element_once(self, size, seed):
        permutation = KeyedPermutation(size, seed)
        assert sorted(map(permutation, range(size))) == list(range(size))

    @pytest.mark.parametrize("size", [2**24 + 5, 10**9, 2**62 + 1])
    def test_huge_ones_stay_inside_and_do_not_collide(self, size):
        permutation = KeyedPermutation(size, 0)
        places = [*range(500), *range(size - 500, size)]
        elements = {permutation(place) for place in places}
        assert len(elements) == len(places)
        assert 0 <= min(elements) < size // 50
        assert size > max(elements) > size - size // 50

    def test_nothing_wraps_at_16_million(self):
        size = 2**24 + 5
        permutation = KeyedPermutation(size, "wrap")
        seen = bytearray(size)
        for place in range(2**24 - 3000, size):
            seen[permutation(place)] += 1
        assert sum(seen) == 3005
        assert max(seen) == 1

    @pytest.mark.parametrize("size", [2, 3, 5, 6, 10])
    def test_small_ones_are_fair(self, size):
        """Each element is equally often at each place: chi-square, far out of its 99.99th percentile."""
        draws = 3000
        table = Counter()
        for key in range(draws):
            permutation = KeyedPermutation(size, key)
            table.update((place, permutation(place)) for place in range(size))
        expected = draws / size
        chi_square = sum((table[i, j] - expected) ** 2 / expected for i in range(size) for j in range(size))
        freedom = (size - 1) ** 2
        assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 10

    def test_neighbours_are_independent(self):
        size = 1000
        permutation = KeyedPermutation(size, 3)
        rows = torch.tensor([permutation(place) for place in range(size)], dtype=torch.float64)
        correlation = torch.corrcoef(torch.stack([rows[:-1], rows[1:]]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(size)

    def test_keys_differ(self):
        orders = {
            tuple(map(KeyedPermutation(50, *key), range(50)))
            for key in [(1,), ("1",), (1, 1), (11,), ("a", "b"), ("ab",)]
        }
        assert len(orders) == 6

    def test_order_written_out(self):
        order = keyed_order(100, "a", 1)
        assert sorted(order) == list(range(100))
        assert order.tolist() != keyed_order(100, "a", 2).tolist()
        assert keyed_order(1).tolist() == [0]

    def test_errors(self):
        with pytest.raises(ValueError, match="size is 0"):
            KeyedPermutation(0)
        with pytest.raises(IndexError, match="index is 5"):
            KeyedPermutation(5)(5)


class TestShares:
    @pytest.mark.parametrize(
        ("balance", "weight"), [("sqrt", math.sqrt), ("uniform", lambda size: 1.0), ("size", float)]
    )
    def test_probabilities(self, balance, weight):
        mixture = Mixture(SIZES, balance=balance)
        total = sum(map(weight, SIZES.values()))
        for name, size in SIZES.items():
            assert mixture.probabilities[name] == pytest.approx(weight(size) / total, abs=len(SIZES) * 2**-32)
        assert sum(mixture.probabilities.values()) == 1.0

    def test_factors(self):
        plain = Mixture(SIZES).probabilities
        changed = Mixture(SIZES, factors={"okvqa": 2.0, "aokvqa": 0.5}).probabilities
        assert changed["okvqa"] / changed["coco"] == pytest.approx(2 * plain["okvqa"] / plain["coco"])
        assert changed["aokvqa"] / changed["coco"] == pytest.approx(plain["aokvqa"] / plain["coco"] / 2)

    @settings(max_examples=25, deadline=None)
    @given(anything, balances)
    def test_no_dataset_is_lost(self, sizes, balance):
        probabilities = Mixture(sizes, balance=balance).probabilities
        assert min(probabilities.values()) >= 2**-32
        assert sum(probabilities.values()) == 1.0

    @settings(max_examples=25, deadline=None)
    @given(anything, st.integers(1, 10**12))
    def test_counts_stray_by_a_handful_at_block_ends(self, sizes, blocks):
        mixture = Mixture(sizes)
        counts = mixture.counts(blocks * BLOCK)
        assert sum(counts.values()) == blocks * BLOCK
        for name, probability in mixture.probabilities.items():
            # Two bounds, each with the discrepancy of the van der Corput sequence over 20 bits.
            assert abs(counts[name] - probability * blocks * BLOCK) < 16

    @settings(max_examples=20, deadline=None)
    @given(anything, st.integers(0, 40))
    def test_counts_are_those_of_the_points(self, sizes, blocks):
        """Oracle: the points of systematic sampling laid over the cumulated probabilities, one by one."""
        mixture = Mixture(sizes)
        shares = np.array([probability * 2**32 for probability in mixture.probabilities.values()], dtype=np.int64)
        spacing = 2**32 // BLOCK
        expected = np.zeros(len(sizes), dtype=np.int64)
        for block in range(blocks):
            shift = int(f"{block:020b}"[::-1], 2)
            points = np.arange(BLOCK) * spacing + shift
            expected += np.bincount(np.searchsorted(np.cumsum(shares), points, side="right"), minlength=len(sizes))
        assert list(mixture.counts(blocks * BLOCK).values()) == expected.tolist()

    def test_measured_shares_of_the_paper_s_sizes(self):
        mixture = Mixture(SIZES, seed=5)
        draws = 20_000
        measured = Counter(mixture.dataset_at(number) for number in range(draws))
        for name, probability in mixture.probabilities.items():
            # Binomial bounds for independent draws, which ours have to keep easily.
            assert abs(measured[name] - draws * probability) <= 3 * math.sqrt(draws * probability) + 1

    def test_batches_look_independent(self):
        """Within blocks, the number of a dataset in a batch has the variance of independent draws."""
        mixture = Mixture({"a": 1, "b": 1})
        batch = 64
        counts = torch.tensor(
            [
                sum(mixture.dataset_at(number) == "a" for number in range(start, start + batch))
                for start in range(0, 400 * batch, batch)
            ],
            dtype=torch.float64,
        )
        assert counts.mean().item() == pytest.approx(batch / 2, rel=0.05)
        assert counts.var().item() == pytest.approx(batch / 4, rel=0.25)

    @settings(max_examples=30, deadline=None)
    @given(few_sizes, st.integers(0, 3 * BLOCK), st.integers(1, 7), st.integers())
    def test_counts_are_those_of_the_draws(self, sizes, draws, draws_per_choice, seed):
        mixture = Mixture(sizes, seed=seed, draws_per_choice=draws_per_choice)
        first = max(0, draws - 300)
        names = Counter(mixture.dataset_at(number) for number in range(first, draws))
        before, after = mixture.counts(first), mixture.counts(draws)
        assert sum(after.values()) == draws
        assert {name: after[name] - before[name] for name in sizes} == {name: names[name] for name in sizes}


class TestDraws:
    @settings(max_examples=15, deadline=None)
    @given(few_sizes, balances, st.integers(0, 10**6), st.integers(1, 5))
    def test_epochs_are_whole_and_in_order(self, sizes, balance, seed, draws_per_choice):
        mixture = Mixture(sizes, balance=balance, seed=seed, draws_per_choice=draws_per_choice)
        epochs = defaultdict(lambda: defaultdict(list))
        newest = Counter()
        for number in range(3000):
            name, row, epoch = mixture.draw(number)
            assert epoch >= newest[name]
            newest[name] = epoch
            epochs[name][epoch].append(row)
        for name, of_dataset in epochs.items():
            for epoch, rows in of_dataset.items():
                assert len(set(rows)) == len(rows)
                if epoch < newest[name]:
                    assert sorted(rows) == list(range(sizes[name]))

    def test_each_epoch_has_its_own_order(self):
        mixture = Mixture({"a": 100, "b": 100})
        orders = defaultdict(list)
        for number in range(1000):
            draw = mixture.draw(number)
            orders[draw.dataset, draw.epoch].append(draw.row)
        whole = [tuple(rows) for rows in orders.values() if len(rows) == 100]
        assert len(whole) >= 8
        assert len(set(whole)) == len(whole)

    def test_a_row_alone(self):
        assert [Mixture({"one": 1}).draw(number) for number in (0, 1, 10**12)] == [
            Draw("one", 0, epoch) for epoch in (0, 1, 10**12)
        ]

    @pytest.mark.parametrize("size", [2**24 + 5, 10**9])
    def test_beyond_what_samplers_can_count(self, size):
        """Around the first end of an epoch of a huge dataset: no row twice before it, fresh rows after it."""
        mixture = Mixture({"huge": size})
        ending = [mixture.draw(number) for number in range(size - 300, size)]
        starting = [mixture.draw(number) for number in range(size, size + 300)]
        assert {draw.epoch for draw in ending} == {0}
        assert {draw.epoch for draw in starting} == {1}
        assert len({draw.row for draw in ending}) == len({draw.row for draw in starting}) == 300

    def test_any_order_of_asking_and_any_process(self):
        numbers = [0, 1, 4095, 4096, 10**6, 2**24 + 1, 10**12]
        expected = [Mixture(SIZES, seed=9).draw(number) for number in numbers]
        mixture = pickle.loads(pickle.dumps(Mixture(SIZES, seed=9)))
        assert [mixture.draw(number) for number in reversed(numbers)] == expected[::-1]
        code = (
            "from instructblip_hf.data.mixture import Mixture\n"
            f"print([tuple(Mixture({SIZES!r}, seed=9).draw(number)) for number in {numbers}])"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert output.strip() == str([tuple(draw) for draw in expected])

    def test_the_sequence_never_changes(self):
        """Written down once: a change here means that stopped runs do not go on with the rows they would have had."""
        mixture = Mixture({"big": 900, "small": 100})
        assert mixture.draw(10_000) == ("big", 626, 8)
        assert mixture.counts(10_000) == {"big": 7492, "small": 2508}
        assert [mixture.draw(number) for number in range(4)] == [("big", row, 0) for row in (85, 638, 367, 643)]
        assert mixture.fingerprint() == "4b9e1f80d1efd107"

    def test_seeds_differ(self):
        first, second = Mixture(SIZES, seed=0), Mixture(SIZES, seed=1)
        assert [first.draw(n) for n in range(50)] != [second.draw(n) for n in range(50)]
        assert first.fingerprint() != second.fingerprint()

    def test_one_dataset_a_batch(self):
        mixture = Mixture(SIZES, draws_per_choice=16)
        batches = [{mixture.draw(16 * batch + place).dataset for place in range(16)} for batch in range(100)]
        assert {len(names) for names in batches} == {1}
        assert len(set.union(*batches)) > 2


class _Rows:
    """Knows only its name and length."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        return {"prompt": f"{self.name} {row}"}


class _RowsByEpoch(_Rows):
    def at(self, row, epoch):
        return {"prompt": f"{self.name} {row} {epoch}"}


def _dataset(length=960, seed=0):
    datasets = {"a": _Rows("a", 100), "b": _RowsByEpoch("b", 7), "c": _Rows("c", 1)}
    mixture = Mixture({name: len(rows) for name, rows in datasets.items()}, seed=seed)
    return MixtureDataset(datasets, mixture, length)


def _keys(batches):
    return [row["prompt"] for batch in batches for row in batch]


class TestLoading:
    def test_rows_are_those_of_the_draws(self):
        dataset = _dataset()
        for number in range(50):
            name, row, epoch = dataset.mixture.draw(number)
            expected = f"b {row} {epoch}" if name == "b" else f"{name} {row}"
            assert dataset[number] == {"prompt": expected, "dataset": name, "draw": number}
        assert len(dataset) == 960
        assert [row["prompt"] for row in dataset] == _keys([[dataset[number]] for number in range(960)])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_ranks_share_the_draws(self, workers):
        """Two ranks by their own samplers see together what one process sees, whatever the workers."""
        dataset = _dataset(96)
        alone = _keys(torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=list))
        ranks = []
        for rank in range(2):
            sampler = MixtureSampler(96, batch_size=8, rank=rank, world_size=2)
            loader = torch.utils.data.DataLoader(
                dataset, batch_size=8, sampler=sampler, collate_fn=list, num_workers=workers
            )
            assert len(loader) == 6
            ranks.append(list(loader))
        assert _keys([batch for pair in zip(*ranks) for batch in pair]) == alone

    def test_accelerate_deals_the_same_batches(self):
        """Oracle: accelerate's own sharding of a plain sampler."""
        from accelerate.data_loader import BatchSamplerShard

        for rank in range(3):
            ours = MixtureSampler(96, batch_size=4, rank=rank, world_size=3)
            batches = torch.utils.data.BatchSampler(MixtureSampler(96), batch_size=4, drop_last=False)
            theirs = BatchSamplerShard(batches, num_processes=3, process_index=rank)
            assert [number for batch in theirs for number in batch] == list(ours)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.data())
    def test_ranks_are_disjoint_and_resuming_is_exact(self, world_size, batch_size, steps, data):
        together = batch_size * world_size
        length = steps * together
        stopped = data.draw(st.integers(0, steps)) * together
        numbers = []
        for rank in range(world_size):
            arguments = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
            whole = list(MixtureSampler(length, **arguments))
            assert list(MixtureSampler(length, start=stopped, **arguments)) == whole[stopped // world_size :]
            assert len(whole) == len(MixtureSampler(length, **arguments)) == length // world_size
            numbers += whole
        assert sorted(numbers) == list(range(length))

    def test_a_second_epoch_goes_on(self):
        sampler = MixtureSampler(8, start=4)
        assert list(sampler) == [4, 5, 6, 7]
        sampler.set_epoch(1)
        assert list(sampler) == list(range(8, 16))
        assert len(sampler) == 8

    def test_accelerate_reaches_set_epoch_and_skips(self):
        from accelerate.data_loader import prepare_data_loader, skip_first_batches

        dataset = _dataset(32)
        loader = torch.utils.data.DataLoader(dataset, batch_size=8, sampler=MixtureSampler(32), collate_fn=list)
        for processes in (1, 2):
            ready = prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)
            ready.set_epoch(1)
            rows = _keys(ready)
            expected = [
                dataset[32 + 8 * processes * b + place]["prompt"] for b in range(4 // processes) for place in range(8)
            ]
            assert rows == expected
            resumed = skip_first_batches(ready, 1)
            resumed.set_epoch(1)
            assert _keys(resumed) == expected[8:]

    def test_a_bad_row_is_named(self):
        class Bad(_Rows):
            def __getitem__(self, row):
                raise OSError("disk on fire")

        dataset = MixtureDataset({"bad": Bad("bad", 5)}, Mixture({"bad": 5}), 5)
        with pytest.raises(ValueError, match=r"bad, row \d \(draw 2\): disk on fire"):
            dataset[2]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sizes": {}}, "sizes is empty"),
            ({"sizes": {"a": 0}}, "a has 0 rows"),
            ({"sizes": {"a": 1}, "balance": "log"}, "'log'; allowed are sqrt"),
            ({"sizes": {"a": 1}, "factors": {"b": 1.0}}, "no dataset 'b'"),
            ({"sizes": {"a": 1}, "factors": {"a": 0.0}}, "must be positive"),
            ({"sizes": {"a": 1}, "factors": {"a": math.nan}}, "must be positive"),
            ({"sizes": {"a": 1}, "draws_per_choice": 0}, "draws_per_choice is 0"),
        ],
    )
    def test_mixture(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Mixture(**arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"length": 10, "rank": 2, "world_size": 2}, "rank is 2"),
            ({"length": 10, "batch_size": 4}, "length is 10; it must be a multiple"),
            ({"length": 16, "start": 3, "batch_size": 4}, "start is 3"),
            ({"length": 16, "start": 32}, "start is 32"),
            ({"length": 0}, "length above 0"),
        ],
    )
    def test_sampler(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MixtureSampler(**arguments)

    def test_dataset(self):
        with pytest.raises(ValueError, match="sizes"):
            MixtureDataset({"a": _Rows("a", 3)}, Mixture({"a": 4}), 10)
        with pytest.raises(ValueError, match="length is 0"):
            MixtureDataset({"a": _Rows("a", 3)}, Mixture({"a": 3}), 0)
        with pytest.raises(IndexError, match="number is -1"):
            _dataset()[-1]
