"""`instructblip chat`: a conversation in the terminal, with answers that appear as they are generated."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from .answering import open_images
from .errors import fail, user_errors
from .loading import load_generating


HELP = """\
/image IMAGE   look at another image, and begin anew
/add IMAGE     show one more image with the next question
/forget        begin anew about the same image
/help          this list
/quit          leave; so does Ctrl-D. Ctrl-C stops an answer"""
WITH_IMAGE = ("/image", "/add")
PROMPT = "> "


def run_chat(
    image: str | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    cache_implementation: str | None,
    options: dict[str, Any],
) -> None:
    """Talks until the questions end. At a terminal mistakes are told and the talk goes on; else the first one ends it."""
    with user_errors():
        images = open_images([image] if image is not None else [])
        loaded = load_generating(model, device, dtype, cache_implementation)

        from ..app.conversation import Conversation

        talk = Conversation(loaded.model, loaded.processor, **options)
    if images:
        talk.show(images[0])
    interactive = sys.stdin.isatty()
    if interactive:
        about = f"about {image}" if image is not None else "without an image; /image IMAGE shows one"
        print(f"A conversation {about}. /help lists the commands, Ctrl-D leaves.", file=sys.stderr)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lets the terminal's input be edited)
    while (line := _read_line(interactive)) is not None:
        try:
            if line.startswith("/"):
                if _obey(talk, line):
                    return
            elif line:
                _answer(talk, line, interactive)
        except ValueError as error:
            if not interactive:
                fail(str(error))
            print(f"error: {error}", file=sys.stderr)


def _read_line(interactive: bool) -> str | None:
    """The next line, or `None` at the end."""
    if interactive and not sys.stdout.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    try:
        return input(PROMPT if interactive and sys.stdout.isatty() else "").strip()
    except EOFError:
        if interactive:
            print(file=sys.stderr)
        return None


def _obey(talk: Any, line: str) -> bool:
    """Does what a command says; `True` for the one that leaves."""
    command, _, name = line.partition(" ")
    name = name.strip()
    if (command in WITH_IMAGE) != bool(name):
        raise ValueError(
            f"{command} needs an image" if command in WITH_IMAGE else f"{line!r} is no command; see /help"
        )
    if command in WITH_IMAGE:
        (opened,) = open_images([name])
        (talk.show if command == "/image" else talk.add)(opened)
    elif command == "/forget":
        talk.forget()
    elif command == "/help":
        print(HELP, file=sys.stderr)
    elif command == "/quit":
        return True
    else:
        raise ValueError(f"{line!r} is no command; see /help")
    return False


def _answer(talk: Any, question: str, interactive: bool) -> None:
    """Prints an answer as it comes; Ctrl-C at a terminal ends it and keeps what was said."""
    from ..app.streaming import settled

    shown, text = "", ""
    with contextlib.closing(talk.ask(question)) as answer:
        try:
            for text in answer:
                sure = settled(text)
                if sure.startswith(shown):
                    print(sure[len(shown) :], end="", flush=True)
                    shown = sure
        except KeyboardInterrupt:
            if not interactive:
                raise
            answer.close()
            print(" ...", flush=True)
            return
    # Should a tokenizer have taken back what stood there already, the answer is written once more.
    print(text[len(shown) :] if text.startswith(shown) else f"\n{text}", flush=True)


__all__ = ["run_chat"]
