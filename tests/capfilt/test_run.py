"""CapFilt as a whole: the rows that a plain loop makes, as datasets that recipes read, whatever a run was killed in."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from instructblip_hf.capfilt import CapFiltError, CapFiltOptions, capfilt, open_source
from instructblip_hf.capfilt.filtering import candidates_of
from instructblip_hf.capfilt.statistics import SAMPLES_PER_GROUP
from instructblip_hf.data.shards import TarShards
from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.data.templates import Instructions
from instructblip_hf.training.mixture_parts import PartArguments, open_part
from killable_capfilt import run_capfilt
from tiny_capfilt import caption_filter, captioner, png, tree, work, write_rows, write_tar


ROWS = 11
MINIMUM = 0.4


@pytest.fixture
def web(tmp_path):
    return write_rows(tmp_path / "web", ROWS)


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    write_tar(folder / "0.tar", range(5))
    write_tar(folder / "1.tar", range(5, ROWS), texts=False)
    return folder


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def expected_rows(source, filtering, maker=None):
    """Every row with its candidates, made one by one."""
    found = []
    for part in range(len(source.parts())):
        for where, row in source.read(part, 0, source.count(part)):
            data = row.image if isinstance(row.image, bytes) else row.image.read_bytes()
            image = picture_of(data)
            key = hashlib.sha256(data).hexdigest()
            made = maker.captions([image], [key])[0] if maker is not None else []
            (ranked,) = filtering([image], [candidates_of(row.texts, made)])
            found.append((where, row, ranked))
    return found


def picture_of(data):
    from instructblip_hf.utils.images import load_image

    return load_image(data)


def check_candidates(written, ranked):
    assert [(one["text"], one["source"], one["kept"]) for one in written] == [
        (one.text, one.source, one.kept) for one in ranked
    ]
    for one, other in zip(written, ranked):
        assert {name: one[name] for name in other.scores} == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("with_captions", [True, False])
def test_rows_are_those_of_a_plain_loop(web, tmp_path, with_captions):
    maker = captioner(beam=1) if with_captions else None
    filtering = caption_filter(min_itm=MINIMUM)
    report = capfilt(open_source([web]), tmp_path / "out", filtering, maker, work())
    expected = expected_rows(open_source([web]), filtering, maker)
    kept = [one for one in expected if any(candidate.kept for candidate in one[2])]
    dropped = [one for one in expected if not any(candidate.kept for candidate in one[2])]
    assert dropped
    for row, (_, web_row, ranked) in zip(lines(tmp_path / "out" / "annotation.jsonl"), kept, strict=True):
        assert row["image"] == web_row.name
        assert row["url"] == web_row.fields["url"]
        assert row["caption"] == [one.text for one in ranked if one.kept]
        assert 1 <= len(row["caption"]) <= 2
        check_candidates(row["candidates"], ranked)
    for row, (where, web_row, ranked) in zip(lines(tmp_path / "out" / "dropped.jsonl"), dropped, strict=True):
        assert (row["row"], row["image"]) == (where, web_row.name)
        check_candidates(row["candidates"], ranked)
    of_all = [one for _, _, ranked in expected for one in ranked]
    for source, counts in report["sources"].items():
        texts = [one for one in of_all if one.source == source]
        assert counts["texts"] == len(texts)
        assert counts["kept"] == sum(one.kept for one in texts)
        if texts:
            assert counts["mean"]["itm"] == pytest.approx(
                sum(one.scores["itm"] for one in texts) / len(texts), abs=1e-4
            )
        histogram = report["histograms"]["itm"][source]
        for name, some in (("texts", texts), ("kept", [one for one in texts if one.kept])):
            bins = [sum(min(39, int(40 * one.scores["itm"])) == place for one in some) for place in range(40)]
            assert histogram[name] == bins
    assert (report["rows"], report["rows_kept"], report["bad_rows"]) == (ROWS, len(kept), 0)
    assert report["image_root"] == str(web)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "annotation.jsonl",
        "dropped.jsonl",
        "report.html",
        "report.json",
        "settings.json",
    ]


def test_recipes_read_rows(web, tmp_path):
    """One of the top two is learnt, another one in other epochs."""
    capfilt(open_source([web]), tmp_path / "out", caption_filter(), captioner(), work())
    rows = lines(tmp_path / "out" / "annotation.jsonl")
    examples = CatalogDataset("web_capfilt", tmp_path / "out", image_root=web)
    assert [(example["answers"], example["images"][0].read_bytes()) for example in examples] == [
        (row["caption"], png(number)) for number, row in enumerate(rows)
    ]
    check_choices(PartArguments(root=str(tmp_path / "out"), image_root=str(web)), rows)


def test_recipes_choose_among_the_best_two_of_a_ranking(web, tmp_path):
    report = capfilt(open_source([web]), tmp_path / "out", caption_filter(top_k=None), captioner(), work())
    rows = lines(tmp_path / "out" / "annotation.jsonl")
    assert report["rows_kept"] == ROWS
    assert all(len(row["caption"]) == len(row["candidates"]) > 2 for row in rows)
    for row in rows:
        scores = [one["itm"] for one in row["candidates"]]
        assert scores == sorted(scores, reverse=True)
    check_choices(PartArguments(root=str(tmp_path / "out"), image_root=str(web), answer_choice="first_two"), rows)


def check_choices(part, rows):
    dataset = open_part("web_capfilt", part, Instructions(seed=1))
    learnt = [[dataset.at(number, epoch)["completion"] for epoch in range(20)] for number in range(len(rows))]
    for row, texts in zip(rows, learnt):
        assert set(texts) == set(row["caption"][:2])
    assert open_part("web_capfilt", part, Instructions(seed=1)).at(3, 7)["completion"] == learnt[3][7]


def test_recipes_read_archives(archives, tmp_path):
    report = capfilt(open_source([archives]), tmp_path / "out", caption_filter(), captioner(), work())
    expected = expected_rows(open_source([archives]), caption_filter(), captioner())
    assert sorted(path.name for path in (tmp_path / "out" / "shards").iterdir()) == [f"{n:06d}.tar" for n in range(4)]
    shards = TarShards(sorted((tmp_path / "out" / "shards").iterdir()))
    written = [row for shard in range(4) for row in shards.read(shard)]
    for number, (row, (_, _, ranked)) in enumerate(zip(written, expected, strict=True)):
        assert row["__key__"] == f"{number:05d}"
        assert row[".png"] == png(number)
        check_candidates(json.loads(row[".json"])["candidates"], ranked)
    part = PartArguments(shards=[str(tmp_path / "out" / "shards" / "*.tar")], rows=report["rows_kept"])
    stream = open_part("web_capfilt", part, Instructions(seed=0))
    assert stream.rows == ROWS
    for row, (_, _, ranked) in zip(written, expected):
        learnt = {stream.source.training_row(row, 5, epoch)["completion"] for epoch in range(20)}
        assert learnt == {one.text for one in ranked if one.kept}


def test_files_go_into_archives_too(web, tmp_path):
    report = capfilt(open_source([web]), tmp_path / "out", caption_filter(min_itm=MINIMUM), None, work(form="tar"))
    kept = [
        row
        for row in expected_rows(open_source([web]), caption_filter(min_itm=MINIMUM))
        if any(c.kept for c in row[2])
    ]
    assert 0 < len(kept) == report["rows_kept"] < ROWS
    paths = sorted((tmp_path / "out" / "shards").iterdir())
    written = [row for shard in range(len(paths)) for row in TarShards(paths).read(shard)]
    for row, (_, web_row, ranked) in zip(written, kept, strict=True):
        assert row["__key__"] == f"{int(Path(web_row.name).stem):09d}"
        assert row[".png"] == web_row.image.read_bytes()
        content = json.loads(row[".json"])
        assert content["caption"] == [one.text for one in ranked if one.kept]
        assert content["url"] == web_row.fields["url"]


def test_the_report_shows_rows(web, tmp_path):
    filtering = caption_filter(min_itm=MINIMUM, min_itc=-1.0)
    report = capfilt(open_source([web]), tmp_path / "out", filtering, captioner(), work())
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert sum(report["groups"].values()) == ROWS
    shown = sum(min(SAMPLES_PER_GROUP, rows) for rows in report["groups"].values())
    assert page.count('src="data:image/jpeg;base64,') == shown
    assert "http" not in page.replace("http-equiv", "")
    rows = [row for row in lines(tmp_path / "out" / "dropped.jsonl") if f">{row['row']}<" in page]
    assert len(rows) == min(SAMPLES_PER_GROUP, report["groups"]["none"])
    for one in rows[0]["candidates"]:
        assert f'&#10007; {one["text"]} <span class="quiet">{one["source"]}, itm {one["itm"]:.3f}' in page


# --- killed, several processes --------------------------------------------------------------------------------------

KILLS = {
    "before the plan is there": ("os.rename", "plan.json", 1),
    "in the first shard": ("os.rename", "dropped/000000.jsonl", 1),
    "before the second entry of the journal": ("os.rename", "journal/000001.json", 1),
    "before the rows are together": ("os.rename", "annotation.jsonl", 1),
    "before the report is there": ("os.rename", "report.json", 1),
    "while parts are removed": ("shutil.rmtree", "parts", 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sources, and what comes of them in one go."""
    base = tmp_path_factory.mktemp("capfilt")
    web, archives = write_rows(base / "web", ROWS), base / "archives"
    write_tar(archives / "0.tar", range(5))
    write_tar(archives / "1.tar", range(5, ROWS), texts=False)
    results = {}
    for source in (web, archives):
        assert run_capfilt([source], base / f"{source.name}-out") == [0]
        results[source] = tree(base / f"{source.name}-out")
    return results


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_a_killed_run_goes_on(whole, tmp_path, kill):
    source, expected = next(iter(whole.items()))
    assert run_capfilt([source], tmp_path / "out", kill=kill) == [-9]
    assert tree(tmp_path / "out") != expected
    assert run_capfilt([source], tmp_path / "out") == [0]
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("path", ["shards/000001.tar", "journal/000002.json"])
def test_a_killed_run_over_archives_goes_on(whole, tmp_path, path):
    source, expected = list(whole.items())[1]
    assert run_capfilt([source], tmp_path / "out", kill=("os.rename", path, 1)) == [-9]
    done = tree(tmp_path / "out")
    assert run_capfilt([source], tmp_path / "out") == [0]
    assert tree(tmp_path / "out") == expected
    assert all(expected[name] == content for name, content in done.items() if name.startswith("shards/"))


def test_two_processes_make_what_one_makes(whole, tmp_path):
    for source, expected in whole.items():
        out = tmp_path / source.name
        assert run_capfilt([source], out, processes=2) == [0, 0]
        assert tree(out) == expected
        shutil.rmtree(out)
    assert run_capfilt([source], out, kill=("os.rename", "journal/000001.json", 1)) == [-9]
    assert run_capfilt([source], out, processes=2) == [0, 0]
    assert tree(out) == expected


def test_what_is_done_is_not_done_again(web, tmp_path):
    filtering = caption_filter()
    first = capfilt(open_source([web]), tmp_path / "out", filtering, None, work())
    before = tree(tmp_path / "out")
    encoded = filtering.encoder.encoded
    assert capfilt(open_source([web]), tmp_path / "out", filtering, None, work()) == first
    assert filtering.encoder.encoded == encoded
    assert tree(tmp_path / "out") == before


# --- errors ---------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_read_are_named_and_left_out(web, tmp_path):
    (web / "images" / "4.png").write_bytes(b"not an image")
    (web / "images" / "9.png").unlink()
    out, filtering = tmp_path / "out", caption_filter(top_k=None)
    message = r"annotation.jsonl:5: image images/4.png: .*--skip-bad-rows N"
    with pytest.raises(CapFiltError, match=message):
        capfilt(open_source([web]), out, filtering, None, work())
    with pytest.raises(CapFiltError, match=r"annotation.jsonl:10: there is no images/9.png"):
        capfilt(open_source([web]), out, filtering, None, work(skip_bad_rows=1))
    report = capfilt(open_source([web]), out, filtering, None, work(skip_bad_rows=2))
    assert (report["rows"], report["bad_rows"]) == (ROWS - 2, 2)
    assert [row["row"] for row in lines(out / "bad_rows.jsonl")] == ["annotation.jsonl:5", "annotation.jsonl:10"]
    names = [row["image"] for row in lines(out / "annotation.jsonl")]
    assert names == [f"images/{number}.png" for number in range(ROWS) if number not in (4, 9)]


def test_rows_without_text_need_a_captioner(archives, tmp_path):
    with pytest.raises(CapFiltError, match=r"1.tar, 00005: has no caption, and there is no captioner"):
        capfilt(open_source([archives]), tmp_path / "out", caption_filter(), None, work())


def test_a_folder_belongs_to_its_settings(web, tmp_path):
    out = tmp_path / "out"
    capfilt(open_source([web]), out, caption_filter(), None, work())
    with pytest.raises(CapFiltError, match=r"begun otherwise: filter.min_itm was None, is 0.5\. Take another"):
        capfilt(open_source([web]), out, caption_filter(min_itm=0.5), None, work())
    with pytest.raises(CapFiltError, match="captioner was None, is"):
        capfilt(open_source([web]), out, caption_filter(), captioner(), work())
    with (web / "annotation.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(CapFiltError, match="source.fingerprint was"):
        capfilt(open_source([web]), out, caption_filter(), None, work())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(CapFiltError, match="is not empty, and is no folder of CapFilt"):
        capfilt(open_source([web]), tmp_path / "mine", caption_filter(), None, work())
    assert tree(tmp_path / "mine") == {"thesis.txt": b"text"}


def test_one_run_at_a_time(web, tmp_path):
    (tmp_path / "out" / "parts").mkdir(parents=True)
    with FileLock(tmp_path / "out" / "parts" / "lock"):
        with pytest.raises(CapFiltError, match="another run is writing .*out: wait for it"):
            capfilt(open_source([web]), tmp_path / "out", caption_filter(), None, work())
    assert capfilt(open_source([web]), tmp_path / "out", caption_filter(), None, work())["rows"] == ROWS


def test_wrong_places_and_forms(web, archives, tmp_path):
    with pytest.raises(ValueError, match="lies in the folder of the images"):
        capfilt(open_source([web]), web / "out", caption_filter(), None, work())
    with pytest.raises(ValueError, match="form is 'jsonl', and rows cannot refer to images inside of archives"):
        capfilt(open_source([archives]), tmp_path / "out", caption_filter(), None, work(form="jsonl"))
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(CapFiltError, match="none.jsonl: there are no rows"):
        capfilt(open_source([tmp_path / "none.jsonl"]), tmp_path.parent / "other", caption_filter(), None, work())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "csv"}, "form is 'csv'; allowed are jsonl, tar"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"skip_bad_rows": -1}, "skip_bad_rows is -1; it must be at least 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        CapFiltOptions(**options)
