"""`instructblip chat --web`: the page, with scenes of the shapes world for a bundled model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .answering import open_images
from .errors import user_errors
from .loading import BUNDLED_CHECKPOINTS, KNOWS, PUBLISHED_EXAMPLE, load_generating


EXAMPLES = 6
SEED = 12


def run_page(
    image: str | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    cache_implementation: str | None,
    options: dict[str, Any],
    host: str,
    port: int | None,
    browser: bool,
) -> None:
    """Serves the page until it is stopped."""
    with tempfile.TemporaryDirectory(prefix="instructblip-page-") as folder:
        with user_errors():
            from ..app.actions import Actions
            from ..app.page import PageContent, build_page, import_gradio, serve

            import_gradio()
            images = open_images([image] if image is not None else [])
            loaded = load_generating(model, device, dtype, cache_implementation)
            actions = Actions(loaded.model, loaded.processor, **options)
            content = PageContent(loaded.name)
            if loaded.name in BUNDLED_CHECKPOINTS:
                content = drawn_content(loaded.name, Path(folder))
            for opened in images:
                content.image = str(Path(folder, "image.png"))
                opened.save(content.image)
            page = build_page(actions, content)
            address = serve(page, host, port, browser)
        print(f"{loaded.name} at {address}  (Ctrl-C stops it)", flush=True)
        page.block_thread()


def drawn_content(name: str, folder: Path) -> Any:
    """The page of a bundled model: scenes of the world it knows, drawn into a folder, and questions about them."""
    from ..app.page import PageContent
    from ..data.sources.shapes_world import ShapesWorld

    rows = ShapesWorld(SEED, split="test").examples(500, task="caption")
    # The questions below are about the circle.
    suitable = (row for row in rows if len(row["scene"].with_noun("circle")) == 1 and len(row["scene"].objects) > 2)
    files = [folder / f"scene-{place}.png" for place in range(EXAMPLES)]
    for file, row in zip(files, suitable):
        row["images"][0].save(file)
    return PageContent(
        title=name,
        note=f"A tiny model that knows {KNOWS}. For photographs start the page with a published one, like "
        f"`--model {PUBLISHED_EXAMPLE}`.",
        image=str(files[0]),
        examples=[str(file) for file in files],
        questions=[
            "What color is the circle?",
            "And where is it?",
            "How many objects are there?",
            "Describe the image.",
        ],
        instructions=["What color is the circle?", "What is at the top left?", "How many objects are there?"],
        candidates="red, green, blue, yellow, purple, white",
        drawings=True,
    )


__all__ = ["drawn_content", "run_page"]
