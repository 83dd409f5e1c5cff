"""Rows with one field replaced by something else: an error that names it or a proper example, never a crash."""

import json

import pytest

from instructblip_hf.data.catalog import DATASETS, split_spec
from instructblip_hf.data.schema import check_example
from instructblip_hf.data.sources.files import find_files, find_optional
from instructblip_hf.data.sources.paths import check_paths
from instructblip_hf.data.sources.table import SOURCES, examples_of
from official_formats import write_dataset


JUNK = [
    None,
    "",
    " ",
    "x",
    "../../x",
    0,
    -1,
    10**30,
    1.5,
    float("nan"),
    True,
    b"x",
    [],
    [[]],
    [None],
    [1],
    ["a"],
    {},
    {"a": 1},
]


def variants(value):
    """The value with each of its parts replaced in turn."""
    yield from JUNK
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for other in variants(value[key]):
                yield {**value, key: other}
    elif isinstance(value, list) and value:
        yield value * 2
        for other in variants(value[0]):
            yield [other, *value[1:]]


@pytest.mark.parametrize("name", DATASETS)
def test_junk_is_refused_or_read(name, tmp_path):
    write_dataset(name, tmp_path)
    spec = split_spec(name, "train" if "train" in DATASETS[name].splits else "val")
    files = find_files(tmp_path, spec.files)
    _, row = next(iter(SOURCES[name].rows(files, "train" if name != "nocaps" else "val", find_optional(tmp_path, []))))
    refused = 0
    for changed in variants(dict(row)):
        if not isinstance(changed, dict):
            continue
        try:
            examples = examples_of(name, changed)
            for example in examples:
                check_example(example)
                check_paths(example, tmp_path)
        except ValueError:
            refused += 1
            continue
        for example in examples:
            assert isinstance(example["id"], str)
            assert example["id"]
            assert all(isinstance(answer, str) for answer in example["answers"])
            for slot in ("question", "statement", "caption", "text", "context", "lecture", "explanation"):
                assert isinstance(example.get(slot, ""), str)
            assert all(isinstance(option, str) for option in example.get("options", []))
            if name.startswith("llava"):
                json.dumps(example["messages"])
    assert refused > 10
