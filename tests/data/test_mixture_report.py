"""Numbers, table and picture of a mixture, and the documentation that shows them."""

import re
from pathlib import Path

import pytest
from PIL import Image

from instructblip_hf.data.mixture import Mixture
from instructblip_hf.data.mixture_report import markdown_table, mixture_shares, mixture_table, plot_mixture


DOCUMENTATION = Path(__file__).parents[2] / "docs" / "mixture.md"


@pytest.fixture
def mixture():
    return Mixture({"big": 900, "small": 100, "one": 1}, factors={"small": 2.0})


def test_shares(mixture):
    shares = {share.dataset: share for share in mixture_shares(mixture, 10_000)}
    assert [*shares] == ["big", "small", "one"]
    assert shares["big"].probability == pytest.approx(30 / 51)
    assert (shares["small"].factor, shares["big"].factor) == (2.0, 1.0)
    assert shares["small"].share_by_size == 100 / 1001
    assert [share.share_by_sqrt for share in shares.values()] == pytest.approx([30 / 41, 10 / 41, 1 / 41])
    assert sum(share.draws for share in shares.values()) == 10_000
    drawn = [mixture.draw(number).dataset for number in range(10_000)]
    for name, share in shares.items():
        assert share.draws == drawn.count(name)
        assert share.share_drawn == drawn.count(name) / 10_000
        assert share.epochs == share.draws / share.rows
    with pytest.raises(ValueError, match="draws is -1"):
        mixture_shares(mixture, -1)


def test_table(mixture):
    table = mixture_table(mixture, 51 * 4096)
    assert table[0] == ["dataset", "rows", "by size", "by sqrt", "factor", "drawn", "draws", "epochs"]
    assert table[2][:6] == ["small", "100", "9.99%", "24.4%", "2", "39.2%"]
    assert table[3][-1].replace(",", "").isdigit()
    assert table[-1] == ["sum", "1,001", "100%", "100%", "", "100%", "208,896", ""]
    assert {len(row) for row in table} == {8}
    lines = markdown_table(table).splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 7
    assert lines[3] == "| " + " | ".join(table[2]) + " |"


def test_measured_shares_follow_the_root_of_the_sizes():
    """Of the paper's sizes, over its whole training: within two hundred-thousandths of all draws."""
    sizes = {"web": 13_873_136, "caption": 566_747, "okvqa": 9_009, "few": 40}
    for share in mixture_shares(Mixture(sizes, seed=3), 1_000_000):
        assert share.share_drawn == pytest.approx(share.share_by_sqrt, abs=2e-5)


def test_picture(mixture, tmp_path):
    pytest.importorskip("matplotlib")
    plot_mixture(mixture, 10_000, tmp_path / "mixture.png")
    picture = Image.open(tmp_path / "mixture.png")
    assert picture.width > 500
    assert len(picture.convert("RGB").getcolors(2**24)) > 10
    with pytest.raises(ValueError, match="draws is 0"):
        plot_mixture(mixture, 0, tmp_path / "mixture.png")


def test_without_matplotlib(mixture, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"instructblip-hf\[train\]"):
        plot_mixture(mixture, 1, tmp_path / "mixture.png")


def test_the_documentation_runs_and_its_table_is_true():
    text = DOCUMENTATION.read_text(encoding="utf-8")
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, namespace)
    assert markdown_table(namespace["table"]) in text
    assert len(namespace["batches"]) == 6
    comments = re.findall(r'form="(\w+)"\)\.row\(example\)\["prompt"\]  # (.*)', text)
    for form, prompt in comments:
        shown = namespace["Instructions"](form=form).row(namespace["example"])["prompt"]
        assert shown.startswith(prompt.removesuffix(" ..."))
    assert len(comments) == 2
