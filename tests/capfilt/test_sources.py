"""What is read of archives, files and folders; and what is wrong with a row is said of the row."""

import csv
import io
import json
import os
import tarfile

import pytest

from instructblip_hf.capfilt import open_source
from tiny_capfilt import TEXTS, png, write_rows, write_tar


def rows_of(source, stretch=2):
    """All rows, read in stretches."""
    found = []
    for part in range(len(source.parts())):
        for start in range(0, source.count(part), stretch):
            found += source.read(part, start, stretch)
    return found


def content(row):
    image = row.image if isinstance(row.image, bytes) else row.image.read_bytes()
    return image, list(row.texts), dict(row.fields)


def test_rows_of_an_annotation_file(tmp_path):
    folder = write_rows(tmp_path / "web", 7)
    for source in (open_source([folder]), open_source([folder / "annotation.jsonl"], folder)):
        found = rows_of(source)
        assert [where for where, _ in found] == [f"annotation.jsonl:{line}" for line in range(1, 8)]
        for number, (_, row) in enumerate(found):
            texts = [TEXTS[number % 6], TEXTS[(number + 1) % 6]] if number % 3 == 0 else [TEXTS[number % 6]]
            assert content(row) == (png(number), texts, {"url": f"http://a/{number}"})
            assert row.name == f"images/{number}.png"
        assert source.image_root == folder


def test_stretches_are_read_in_any_order(tmp_path):
    source = open_source([write_rows(tmp_path / "web", 7)])
    in_order = rows_of(source, 7)
    again = [row for start in (4, 0, 2, 6) for row in source.read(0, start, 2)]
    assert again == [*in_order[4:6], *in_order[:4], *in_order[6:]]
    stopped = source.read(0, 0, 5)
    next(stopped)
    assert list(source.read(0, 3, 2)) == in_order[3:5]


def test_json_and_csv_files(tmp_path):
    folder = write_rows(tmp_path / "web", 3)
    rows = [json.loads(line) for line in (folder / "annotation.jsonl").read_text().splitlines()]
    expected = [content(row) for _, row in rows_of(open_source([folder]))]
    (folder / "list.json").write_text(json.dumps(rows))
    assert [content(row) for _, row in rows_of(open_source([folder / "list.json"]))] == expected
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([[row["image"], "first line\nsecond"] for row in rows])
    found = rows_of(open_source([folder / "list.csv"]))
    assert [content(row)[:2] for _, row in found] == [(one[0], ["first line second"]) for one in expected]


def test_archives(tmp_path):
    first, second = write_tar(tmp_path / "0.tar", range(5)), write_tar(tmp_path / "1.tar", range(5, 8), texts=False)
    for source in (open_source([first, second]), open_source([tmp_path])):
        assert [source.count(part) for part in range(2)] == [5, 3]
        found = rows_of(source)
        assert [where for where, _ in found[4:6]] == ["0.tar, 00004", "1.tar, 00005"]
        for number, (_, row) in enumerate(found):
            assert content(row) == (png(number), [TEXTS[number % 6]] if number < 5 else [], {})
            assert (row.name, row.key) == (".png", f"{number:05d}")
        assert source.image_root is None


def test_json_in_archives(tmp_path):
    wrong = "has a prompt"
    texts = {
        "a": ({"caption": "a dog", "url": "u", "width": 3}, b"", (["a dog"], {"url": "u", "width": 3})),
        "b": ({"url": "u"}, b" a cat \n", (["a cat"], {"url": "u"})),
        "c": (["one", " ", "two"], b"", (["one", "two"], {})),
        "d": ({"prompt": "p", "completion": "c"}, b"", wrong),
    }
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for key, (written, text, _) in texts.items():
            for suffix, data in ((".png", png(0)), (".json", json.dumps(written).encode()), (".txt", text)):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    found = rows_of(open_source([tmp_path / "x.tar"]))
    for (_, row), (_, _, expected) in zip(found[:3], texts.values()):
        assert content(row)[1:] == expected
    assert found[3] == ("x.tar, d", "has prompt, so it is a training row; CapFilt takes images with captions")


def test_texts_beside_images(tmp_path):
    for number, text in enumerate(["a dog", None, "  "]):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        if text is not None:
            (tmp_path / f"{number}.txt").write_text(text)
    (tmp_path / "lost.txt").write_text("an image that is gone")
    found = rows_of(open_source([tmp_path]))
    assert [content(row) for _, row in found[:3]] == [(png(0), ["a dog"], {}), (png(1), [], {}), (png(2), [], {})]
    assert found[3] == ("lost.txt", "has no image of the same name beside it")


def test_metadata_of_a_folder(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a dog"}\n')
    ((where, row),) = rows_of(open_source([tmp_path]))
    assert (where, content(row)) == ("metadata.jsonl:1", (png(0), ["a dog"], {}))


def test_rows_that_cannot_be_used(tmp_path):
    rows = [
        '{"image": "gone.png", "caption": "c"}',
        '{"image": "../out.png", "caption": "c"}',
        '{"url": "http://a/b.png", "caption": "c"}',
        '{"caption": "c"}',
        '{"images": ["a.png", "b.png"], "caption": "c"}',
        '{"image": "a.png", "caption": 3}',
        '{"image": "a.png", "prompt": "p", "completion": "c"}',
        '{"image": "a.png", "caption": "half a \\ud83d smile"}',
        '{"image": "\\ud83d.png", "caption": "c"}',
        "{",
        "[]",
    ]
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    messages = [
        "there is no gone.png",
        "leaves the image folder",
        "download the image",
        "must have the path of one image under image or file_name, not None",
        "must have the path of one image",
        "must be answers, not",
        "has prompt, so it is a training row",
        "half of one (lone surrogates)",
        "half of one (lone surrogates): '?.png'",
        "not readable as JSON",
        "must be an object",
    ]
    found = rows_of(open_source([tmp_path / "rows.jsonl"]))
    assert len(found) == len(messages)
    for line, ((where, problem), message) in enumerate(zip(found, messages), start=1):
        assert where == f"rows.jsonl:{line}"
        assert message in problem


def test_fingerprints_tell_of_changes(tmp_path):
    folder = write_rows(tmp_path / "web", 2)
    before = open_source([folder]).fingerprint()
    assert open_source([folder]).fingerprint() == before
    with (folder / "annotation.jsonl").open("a") as file:
        file.write("\n")
    assert open_source([folder]).fingerprint() != before


def test_what_cannot_be_opened(tmp_path):
    archive = write_tar(tmp_path / "x" / "0.tar", range(2))
    (tmp_path / "a.txt").write_text("")
    cases = [
        ([], None, ValueError, "there is nothing to read"),
        ([tmp_path / "none"], None, FileNotFoundError, "there is no file and no folder"),
        ([archive, tmp_path], None, ValueError, "several sources must all be tar archives"),
        ([archive], tmp_path, ValueError, "image_root is .*; leave it out"),
        ([tmp_path / "a.txt"], None, ValueError, "is no tar archive and none of .jsonl, .csv, .json"),
        ([tmp_path], tmp_path / "none", FileNotFoundError, "image_root: there is no folder"),
    ]
    for paths, root, kind, message in cases:
        with pytest.raises(kind, match=message):
            open_source(paths, root)
    (tmp_path / "bad.tar").write_bytes(archive.read_bytes()[:700])
    with pytest.raises(ValueError, match="bad.tar: damaged archive"):
        open_source([tmp_path / "bad.tar"]).count(0)


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "ok.png").write_bytes(png(0))
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(png(1))
    found = rows_of(open_source([tmp_path]))
    assert [where for where, _ in found] == ["ok.png", "?.png"]
    assert "half of one (lone surrogates)" in found[1][1]
    for where, problem in found[1:]:
        (where + problem).encode()
