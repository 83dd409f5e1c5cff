"""A few images of COCO's form, and a language model that answers about them over HTTP, mostly well."""

from __future__ import annotations

import json

from chat_server import Reply
from instructblip_hf.instruction_data import load_prompts


SYSTEMS = {prompts.system: name for name, prompts in load_prompts().items()}


def write_coco(folder, count=4):
    """Captions and instances of `count` images of 200 x 100 pixels, a dog in the right lower quarter of each."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"id": 7 + n, "file_name": f"{7 + n:012}.jpg", "width": 200, "height": 100} for n in range(count)]
    captions, instances = [], []
    for image in images:
        captions += [
            {"image_id": image["id"], "id": image["id"] * 10 + k, "caption": f"Dog {image['id']}, \n view {k}. "}
            for k in range(5)
        ]
        box = {"image_id": image["id"], "category_id": 18, "bbox": [100.4, 50, 99.7, 25.0], "iscrowd": 0}
        crowd = {"image_id": image["id"], "category_id": 18, "bbox": [0, 0, 200, 100], "iscrowd": 1}
        instances += [box, crowd]
    images.append({"id": 1, "file_name": "nobody_wrote_about_it.jpg", "width": 1, "height": 1})
    captions_file, instances_file = folder / "captions.json", folder / "instances.json"
    captions_file.write_text(json.dumps({"images": images, "annotations": captions}))
    categories = [{"id": 18, "name": "dog"}]
    content = {"images": images, "annotations": instances, "categories": categories}
    instances_file.write_text(json.dumps(content))
    return captions_file, instances_file


def asked_of(body):
    """The response type and the image (the dog's number) that a request is about."""
    messages = body["messages"]
    return SYSTEMS[messages[0]["content"]], int(messages[-1]["content"].split()[1].rstrip(","))


def good_answer(kind, number):
    if kind == "detail":
        return f"Dog number {number} lies in the lower right of the picture.\n\nThe rest is grass."
    turns = [(f"Why does dog {number} rest?", "It may be tired.\nIt is warm.")]
    if kind == "conversation":
        turns = [(f"What is the name of dog {number}?", f"It is called {number}."), ("Is it asleep?", "Yes, it is.")]
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in turns)


def well_behaved(body, count):
    return Reply(text=good_answer(*asked_of(body)), usage={"prompt_tokens": 100, "completion_tokens": 20})
