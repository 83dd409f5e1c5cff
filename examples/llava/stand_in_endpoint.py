"""A chat endpoint that stands in for a large language model where the shapes world is the world.

    python examples/llava/stand_in_endpoint.py --port 8123

It speaks OpenAI's protocol on this machine alone. What it says is true: it reads the scene out of the captions and boxes of
the request (`shapes_in_coco_format.py`) and lets the shapes world ask and answer. It knows nothing else, and no request has
it seen before: the same request gets the same answer. With ``--trouble 0.1`` a tenth of the requests fails, stalls or is
answered with nonsense at first, as happens with real ones.

A conversation goes over six of the world's tasks, with questions that go on about "it"; a description names all objects with
size, colour, number and place; a question that needs reasoning compares two objects, picks one of several answers, or asks
for a question.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from shapes_in_coco_format import described, in_order

from instructblip_hf.data.sources.shapes_world.scenes import (
    CELL_PIXELS,
    CELLS,
    COLORS,
    GRID,
    IMAGE_SIZE,
    NOUNS,
    NUMBERS,
    SIZES,
    Scene,
    SceneObject,
)
from instructblip_hf.data.sources.shapes_world.world import make_row


CONVERSATION, DESCRIPTION, REASONING = "a conversation", "a description", "needs reasoning"
ASKED_IN_CONVERSATION = ("color", "shape", "size", "where", "at", "digit", "count", "exist", "relation")
ASKED_FOR_REASONING = ("relation", "relation", "choice", "choice", "exist", "question")
TURNS = 6
_ANY = "|".join
_NONSENSE = b"<html>I am a teapot</html>"
_OBJECT = re.compile(
    rf"a ({_ANY(SIZES)}) ({_ANY(COLORS)}) ({_ANY(NOUNS)})(?: ({_ANY(NUMBERS)}))? at the ({_ANY(CELLS)})"
)
_BOX = re.compile(rf"({_ANY(NOUNS)}): \[([0-9., ]+)\]")


def answer(messages: Sequence[dict[str, str]]) -> str:
    """What the endpoint says to messages.

    Raises:
        ValueError: If they are about something else than a scene of the shapes world.
    """
    system, context = messages[0]["content"], messages[-1]["content"]
    scene = read_scene(context)
    seed = int.from_bytes(hashlib.blake2b(f"{system}\n{context}".encode(), digest_size=8).digest(), "big")
    rng = np.random.default_rng(seed)
    if CONVERSATION in system:
        return written(conversation(scene, rng))
    if DESCRIPTION in system:
        return description(scene)
    if REASONING in system:
        return written(reasoning(scene, rng))
    raise ValueError("I only know conversations, descriptions and reasoning about shapes")


def read_scene(context: str) -> Scene:
    """The scene that captions, and boxes where there are some, are about."""
    objects = []
    for line in context.split("\n"):
        found = [_OBJECT.fullmatch(part.strip()) for part in line.split(",")]
        for match in found:
            if match is not None and all(found):
                size, color, noun, number, place = match.groups()
                digit = NUMBERS.index(number) if number else None
                objects.append(SceneObject(CELLS.index(place), noun, color, size, digit))
    if not objects:
        raise ValueError("there are no shapes in these captions")
    scene = Scene(tuple(sorted(objects, key=lambda item: item.cell)))
    boxes = [(noun, [float(end) for end in ends.split(",")]) for noun, ends in _BOX.findall(context)]
    if boxes and sorted((noun, cell_of(ends)) for noun, ends in boxes) != sorted(
        (item.noun, item.cell) for item in objects
    ):
        raise ValueError("the boxes are of another picture than the captions")
    return scene


def cell_of(ends: Sequence[float]) -> int:
    """The grid's cell with the middle of a box."""
    x, y = (ends[0] + ends[2]) / 2 * IMAGE_SIZE - 1, (ends[1] + ends[3]) / 2 * IMAGE_SIZE - 1
    return min(GRID - 1, int(y // CELL_PIXELS)) * GRID + min(GRID - 1, int(x // CELL_PIXELS))


def conversation(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions of several tasks, mostly with some about "it" among them."""
    turns: list[tuple[str, str]] = []
    row = make_row("dialogue", scene, rng) if rng.random() < 0.7 else None
    if row is not None:
        said = [message["content"] for message in row["messages"]]
        turns += zip(map(plain, said[::2]), said[1::2])
    tasks = [ASKED_IN_CONVERSATION[index] for index in rng.permutation(len(ASKED_IN_CONVERSATION))]
    for task in tasks:
        row = make_row(task, scene, rng) if len(turns) < TURNS else None
        if row is not None and plain(row["prompt"]) not in [question for question, _ in turns]:
            turns.append((plain(row["prompt"]), row["completion"]))
    return turns


def reasoning(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """One question of a task that takes more than looking."""
    while True:
        row = make_row(ASKED_FOR_REASONING[rng.integers(len(ASKED_FOR_REASONING))], scene, rng)
        # "Answer: red. Question:" would look like the form of the dialogue.
        if row is not None and not plain(row["prompt"]).startswith("Answer:"):
            return [(plain(row["prompt"]), row["completion"])]


def plain(question: str) -> str:
    """A question without the world's prefix "Question: ", which the form of the dialogue has already."""
    said = question.removeprefix("Question: ")
    return said[0].upper() + said[1:]


def description(scene: Scene) -> str:
    """All objects in the order of the colours, each with all there is to say."""
    return ", ".join(described(item) for item in in_order(scene))


def written(turns: Sequence[tuple[str, str]]) -> str:
    """Turns in the form that the generator asks for."""
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{said}" for question, said in turns)


class StandIn:
    """The endpoint on a port of this machine. ``with StandIn() as endpoint:`` serves at ``endpoint.url``.

    Args:
        port (`int`, *optional*, defaults to 0): By default one that is free.
        trouble (`float`, *optional*, defaults to 0.0): Share of the requests that go wrong the first time.
    """

    def __init__(self, port: int = 0, trouble: float = 0.0) -> None:
        self.trouble = trouble
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self.server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"stand_in": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def goes_wrong(self, body: bytes) -> int | None:
        """How a request goes wrong the first time, `None` if it does not."""
        digest = hashlib.blake2b(body, digest_size=8).hexdigest()
        with self._lock:
            is_first = digest not in self._seen
            self._seen.add(digest)
        number = int(digest, 16)
        return number % 4 if is_first and number / 16**16 < self.trouble else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stand_in: StandIn

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trouble = self.stand_in.goes_wrong(body) if self.stand_in.trouble else None
        if trouble == 0:
            self._send(429, _error("too many requests"), {"Retry-After": "0.2"})
        elif trouble == 1:
            self._send(500, _error("out of order"))
        elif trouble == 2:
            self._send(200, _NONSENSE)
        elif trouble == 3:
            time.sleep(0.2)
            self.close_connection = True
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if self.path != "/v1/chat/completions":
            self._send(404, _error(f"there is no {self.path}"))
            return
        try:
            request = json.loads(body)
            text = answer(request["messages"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._send(400, _error(str(error)))
            return
        said = sum(len(message["content"].split()) for message in request["messages"])
        usage = {"prompt_tokens": said, "completion_tokens": len(text.split())}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        row = {"object": "chat.completion", "model": request.get("model"), "choices": [choice], "usage": usage}
        self._send(200, json.dumps(row).encode())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _error(message: str) -> bytes:
    content: dict[str, Any] = {"error": {"message": message}}
    return json.dumps(content).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8123, help="0 for one that is free")
    parser.add_argument("--trouble", type=float, default=0.0, help="share of the requests that go wrong at first")
    options = parser.parse_args()
    stand_in = StandIn(options.port, options.trouble)
    print(stand_in.url, flush=True)
    try:
        stand_in.server.serve_forever()
    except KeyboardInterrupt:
        print("closed")


if __name__ == "__main__":
    main()
