"""The web page, made with gradio: a conversation about an image, ranked answers, and where the Q-Former's queries look.

Nothing of it comes from elsewhere: no fonts, scripts or statistics, so that it works on a machine without a network.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .actions import Actions
from .looks import CSS as LOOKS_CSS
from .looks import looks_html


_CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; }
.drawings img { image-rendering: pixelated; }
.drawings .image-frame img { width: 100%; height: 100%; object-fit: contain; }
footer { display: none !important; }
"""
_NO_QUERIES = (
    "This model has no Q-Former: all patches of the image go to the language model, so there are no queries whose looks could "
    "be shown."
)


@dataclass
class PageContent:
    """What the page says and offers.

    Attributes:
        title (`str`): The model's name.
        note (`str`): A sentence or two below it.
        image (`str`, *optional*): File of an image to begin with.
        examples (`list[str]`): Files of images to choose from.
        questions (`list[str]`): Questions to choose from.
        instructions (`list[str]`): Instructions whose looks can be compared, to begin with.
        candidates (`str`): Answers to begin with for ranking.
        drawings (`bool`): Whether images are small drawings, whose pixels are shown as they are.
    """

    title: str
    note: str = ""
    image: str | None = None
    examples: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=lambda: ["Describe the image.", "What is unusual about this image?"])
    instructions: list[str] = field(default_factory=lambda: ["Describe the image.", "What is in the background?"])
    candidates: str = "yes, no"
    drawings: bool = False


def import_gradio() -> Any:
    """gradio, told to report nothing to anybody.

    Raises:
        ImportError: If it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'instructblip-hf[app]'") from error
    return gradio


def build_page(actions: Actions, content: PageContent) -> Any:
    """The page, to be started with [`serve`].

    Args:
        actions ([`Actions`]): The model.
        content ([`PageContent`]): What the page says.

    Returns:
        `gradio.Blocks`

    Raises:
        ImportError: If gradio is not installed.
    """
    gr = import_gradio()
    look = ["drawings"] if content.drawings else []
    with gr.Blocks(title=content.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {content.title}\n{content.note}", elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = gr.Image(
                    content.image,
                    type="filepath",
                    sources=["upload", "clipboard"],
                    label="Image",
                    height=340,
                    buttons=[],
                    elem_id="image",
                    elem_classes=look,
                )
                if content.examples:
                    with gr.Column(elem_id="examples", elem_classes=look):
                        gr.Examples([[path] for path in content.examples], image, label="Examples")
            with gr.Column(scale=3, min_width=360), gr.Tabs():
                with gr.Tab("Chat"):
                    _build_chat(gr, actions, content, image)
                with gr.Tab("Rank answers"):
                    _build_ranking(gr, actions, content, image)
                with gr.Tab("Where it looks"):
                    if actions.can_look:
                        _build_looking(gr, actions, content, image)
                    else:
                        gr.Markdown(_NO_QUERIES, elem_id="no-queries")
    return page


def serve(page: Any, host: str = "127.0.0.1", port: int | None = None, browser: bool = False) -> str:
    """Starts the server of a page in threads of its own; ``page.block_thread()`` waits until it is stopped.

    Args:
        page (`gradio.Blocks`): From [`build_page`].
        host (`str`, *optional*, defaults to `"127.0.0.1"`): Where it listens; the machine alone by default.
        port (`int`, *optional*): By default the first free one from 7860.
        browser (`bool`, *optional*, defaults to `False`): Whether to open it in the browser.

    Returns:
        `str`: Its address.

    Raises:
        OSError: If the port is taken, or the host is none of this machine's.
    """
    gr = import_gradio()
    if port is not None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise OSError(f"no page can be served at {host}:{port}: {error.strerror}") from error
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        quiet=True,
        theme=theme,
        css=_CSS + LOOKS_CSS,
        footer_links=[],
    )
    return str(address)


# A browser that is sent every token of a quick model falls behind, and so does its stop button.
_SECONDS_BETWEEN_UPDATES = 0.05
# One visitor at a time: there is one model.
_ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}


@dataclass(frozen=True)
class _Talk:
    """One visitor's turns, and the file of the image that they are about."""

    image: str | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)


def _build_chat(gr: Any, actions: Actions, content: PageContent, image: Any) -> None:
    talk = gr.State(_Talk())
    chat = gr.Chatbot(
        height=400,
        show_label=False,
        buttons=[],
        feedback_options=None,
        placeholder="Ask something about the image.",
        elem_id="chat",
    )
    question = gr.Textbox(
        placeholder="Your question",
        show_label=False,
        container=False,
        submit_btn=True,
        autofocus=True,
        elem_id="question",
    )
    gr.Examples([[text] for text in content.questions], question, label="For example")
    forget = gr.Button("Begin anew", size="sm", elem_id="forget")

    def answer(asked: str, path: str | None, talk: _Talk) -> Iterator[Any]:
        before = talk.turns if talk.image == path else []
        pending = {"role": "user", "content": [{"type": "text", "text": asked}]}
        yield gr.Textbox("", submit_btn=False, stop_btn=True), _shown([*before, pending]), _Talk(path, before)
        now, sent, next_time = before, before, 0.0
        try:
            with contextlib.closing(actions.answer(asked, path, before)) as states:
                for now in states:
                    if time.monotonic() >= next_time:
                        sent, next_time = now, time.monotonic() + _SECONDS_BETWEEN_UPDATES
                        yield gr.skip(), _shown(now), _Talk(path, now)
        except ValueError as error:
            gr.Warning(str(error), title="")
            yield asked, _shown(before), _Talk(path, before)
            return
        if sent is not now:
            yield gr.skip(), _shown(now), _Talk(path, now)

    def ready() -> Any:
        return gr.Textbox(submit_btn=True, stop_btn=False)

    asking = question.submit(answer, [question, image, talk], [question, chat, talk], show_progress="hidden", **_ALONE)
    asking.then(ready, None, question, api_visibility="private")
    question.stop(ready, None, question, cancels=[asking], api_visibility="private")
    for begin_anew in (forget.click, chat.clear):
        begin_anew(
            lambda: ([], _Talk(), ready()), None, [chat, talk, question], cancels=[asking], api_visibility="private"
        )
    # In the browser alone, as what the server would say could come after the first words of the next answer.
    image.change(None, None, chat, js="() => [[]]", api_visibility="private")


def _build_ranking(gr: Any, actions: Actions, content: PageContent, image: Any) -> None:
    gr.Markdown("How likely the model holds each answer to be, among those given.")
    question = gr.Textbox(content.questions[0], label="Question", elem_id="rank-question")
    candidates = gr.Textbox(content.candidates, label="Answers, with commas between", elem_id="candidates")
    button = gr.Button("Rank", variant="primary", elem_id="rank")
    ranking = gr.Label(label="Likeliest first", num_top_classes=20, elem_id="ranking")
    inputs = [question, candidates, image]
    for act in (button.click, question.submit, candidates.submit):
        act(_telling(gr, actions.rank), inputs, ranking, **_ALONE)
    image.change(lambda: None, None, ranking, queue=False, api_visibility="private")


def _build_looking(gr: Any, actions: Actions, content: PageContent, image: Any) -> None:
    reads = actions.reads_instruction
    gr.Markdown(
        "The Q-Former's queries read the image by cross-attention; the warmer a place, the more of it goes there. Large: the "
        "mean over the queries. Small: each query. "
        + (
            "What they look at depends on the instruction."
            if reads
            else "This Q-Former does not read the instruction."
        )
    )
    with gr.Row(equal_height=True):
        instructions = gr.Textbox(
            "\n".join(content.instructions),
            label="Instructions, one a line",
            lines=3,
            scale=3,
            visible=reads,
            elem_id="instructions",
        )
        layer = gr.Dropdown(actions.layers, value=actions.layers[0], label="Q-Former layer", scale=2, elem_id="layer")
    button = gr.Button("Look", variant="primary", elem_id="look")
    pictures = gr.HTML(elem_id="looks")

    def show(text: str, chosen: str, path: str | None) -> str:
        return looks_html(actions.look(text, chosen, path))

    inputs = [instructions, layer, image]
    for act in (button.click, layer.input):
        act(_telling(gr, show), inputs, pictures, **_ALONE)
    image.change(lambda: "", None, pictures, queue=False, api_visibility="private")


def _telling(gr: Any, act: Callable[..., Any]) -> Callable[..., Any]:
    """What the visitor can mend is told in a few words on the page."""

    @functools.wraps(act)
    def telling(*entered: Any) -> Any:
        try:
            return act(*entered)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False, title="") from error

    return telling


def _shown(turns: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Turns as the page shows them; the image is beside them."""
    return [
        {
            "role": turn["role"],
            "content": "".join(part["text"] for part in turn["content"] if part["type"] == "text"),
        }
        for turn in turns
    ]


__all__ = ["PageContent", "build_page", "import_gradio", "serve"]
