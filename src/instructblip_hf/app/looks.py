"""Where the queries look, as HTML: for each instruction the mean over the queries, and each query beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from ..models.query_attention import QueryAttention
from .heat_maps import heat_map


CSS = """
.looks { display: flex; flex-direction: column; gap: 18px; }
.looks h4 { margin: 0 0 6px 0; font-weight: 600; }
.looks small { opacity: 0.7; font-weight: 400; }
.looks .row { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.looks .row > img { width: 216px; border-radius: 6px; }
.looks .queries { display: grid; grid-template-columns: repeat(auto-fill, minmax(68px, 1fr)); gap: 6px; flex: 1 1 220px; }
.looks figure { margin: 0; }
.looks figure img { width: 100%; border-radius: 4px; }
.looks figcaption { font-size: 11px; opacity: 0.7; text-align: center; line-height: 1.4; }
"""


def looks_html(looks: Sequence[tuple[str, QueryAttention]]) -> str:
    """A row for each instruction.

    Args:
        looks (`Sequence[tuple[str, QueryAttention]]`): Instructions, empty where they are not read, and where the queries
            look.

    Returns:
        `str`: HTML with the pictures inside of it, for a page with [`CSS`].
    """
    return f'<div class="looks">{"".join(_row(text, attention) for text, attention in looks)}</div>'


def _row(instruction: str, attention: QueryAttention) -> str:
    title = html.escape(instruction) or "Whatever is asked"
    share = float(attention.others.sum(-1).mean())
    beside = f"<small> · {share:.0%} of it on tokens that are no patch</small>" if share >= 0.005 else ""
    mean = _img(heat_map(attention.maps.mean(0), attention.image), f"mean over the queries: {title}")
    queries = "".join(
        f"<figure>{_img(heat_map(one, attention.image, side=112), f'query {place}: {title}')}"
        f"<figcaption>{place}</figcaption></figure>"
        for place, one in enumerate(attention.maps)
    )
    return (
        f'<section><h4>{title}{beside}</h4><div class="row">{mean}<div class="queries">{queries}</div></div></section>'
    )


def _img(picture: Image.Image, described: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="{described}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


__all__ = ["CSS", "looks_html"]
