"""Small copies of the 26 datasets in their official formats, written by us: same files, same fields, few rows.

`write_dataset(name, root)` writes one and returns how many rows each of its splits has.
"""

import csv
import json
from pathlib import Path

from PIL import Image


SIZE = (32, 24)


def write_image(path: Path, color="red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, color).save(path)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_jsonl(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_frames(folder: Path, count: int = 6) -> None:
    for number in range(count):
        write_image(folder / f"{number}.png", (40 * number, 0, 0))


TEN_ANSWERS = ["dog"] * 6 + ["puppy"] * 3 + ["cat"]


def _coco_image(root, folder, image_id):
    write_image(root / folder / f"COCO_{folder}_{image_id:012d}.jpg")


def _karpathy(root, file, image_folder, id_key, splits):
    images = []
    for number, split in enumerate(splits):
        name = f"COCO_val2014_{number:012d}.jpg" if image_folder == "val2014" else f"{number}.jpg"
        write_image(root / image_folder / name)
        image = {"filename": name, "split": split, id_key: number}
        if image_folder == "val2014":
            image["filepath"] = "val2014"
        image["sentences"] = [
            {"raw": f"Caption {k} of {number}.", "tokens": ["caption"], "sentid": k} for k in range(5)
        ]
        images.append(image)
    write_json(root / file, {"images": images, "dataset": "coco"})


def coco_caption(root):
    _karpathy(root, "dataset_coco.json", "val2014", "cocoid", ["train", "restval", "val", "test"])
    return {"train": 10, "val": 1, "test": 1}


def flickr30k(root):
    _karpathy(root, "dataset_flickr30k.json", "flickr30k-images", "imgid", ["train", "val", "test", "test"])
    return {"train": 5, "val": 1, "test": 2}


def web_capfilt(root):
    rows = [{"image": f"cc/{number}.jpg", "caption": f"a web picture {number} \u00e9"} for number in range(3)]
    for row in rows:
        write_image(root / row["image"])
    write_json(root / "annotation.json", rows)
    return {"train": 3}


def nocaps(root):
    images = [
        {"id": number, "file_name": f"{number:04d}.jpg", "domain": "near-domain", "open_images_id": "x"}
        for number in range(2)
    ]
    for image in images:
        write_image(root / "images" / image["file_name"])
    annotations = [
        {"image_id": image["id"], "id": 10 * image["id"] + k, "caption": f"Caption {k}."}
        for image in images
        for k in range(10)
    ]
    write_json(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    write_json(root / "nocaps_test_image_info.json", {"images": images, "licenses": []})
    return {"val": 2, "test": 2}


def _rosetta(root, split, image_ids):
    write_json(
        root / f"TextVQA_Rosetta_OCR_v0.2_{split}.json",
        {"data": [{"image_id": image_id, "ocr_tokens": ["stop", "5"], "ocr_info": []} for image_id in image_ids]},
    )


def textcaps(root):
    for split, folder in (("train", "train_images"), ("val", "train_images"), ("test", "test_images")):
        write_image(root / folder / f"{split}0.jpg")
        row = {"image_id": f"{split}0", "image_path": f"{split}/{split}0.jpg", "set_name": split}
        rows = [row]
        if split != "test":
            references = [f"A sign {k}." for k in range(5)]
            rows = [
                {**row, "caption_id": k, "caption_str": references[k], "reference_strs": references} for k in range(5)
            ]
        write_json(root / f"TextCaps_0.1_{split}.json", {"dataset_name": "textcaps", "data": rows})
    _rosetta(root, "train", ["train0"])
    return {"train": 5, "val": 1, "test": 1}


def gqa(root):
    write_image(root / "images" / "2370799.jpg")
    question = {"imageId": "2370799", "question": "Is it red?", "isBalanced": True, "types": {"semantic": "attr"}}
    answered = {**question, "answer": "yes", "fullAnswer": "Yes, it is red."}
    for split in ("train", "val", "testdev"):
        write_json(root / f"{split}_balanced_questions.json", {"0001": answered, "0002": {**answered, "answer": "no"}})
    write_json(root / "test_balanced_questions.json", {"0003": question})
    return {"train": 2, "val": 2, "testdev": 2, "test": 1}


def vsr(root):
    write_image(root / "images" / "000000050403.jpg")
    row = {
        "image": "000000050403.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000050403.jpg",
        "caption": "The teddy bear is in front of the person.",
        "label": 1,
        "relation": "in front of",
        "annotator_id": 31,
        "vote_true_validator_id": [2, 6],
        "vote_false_validator_id": [],
    }
    for split in ("train", "dev", "test"):
        write_jsonl(root / f"{split}.jsonl", [row, {**row, "label": 0, "caption": "The bear is on the person."}])
    return {"train": 2, "dev": 2, "test": 2}


def iconqa(root):
    problems, splits = {}, {}
    for number, split in enumerate(("train", "val", "test")):
        text_id, image_id = str(2 * number), str(2 * number + 1)
        common = {"split": split, "grade": "grade1", "skills": ["counting"], "label": "S", "answer": 1}
        problems[text_id] = {**common, "question": "How many?", "choices": ["2", "3"], "ques_type": "choose_txt"}
        problems[image_id] = {**common, "question": "Which?", "choices": ["a.png", "b.png"], "ques_type": "choose_img"}
        splits[f"choose_txt_{split}"], splits[f"choose_img_{split}"] = [text_id], [image_id]
        write_image(root / "iconqa" / split / "choose_txt" / text_id / "image.png")
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
    return {"train": 1, "val": 1, "test": 1}


def _mscoco_vqa(root, prefix, splits, answer_field):
    for split, folder in splits.items():
        questions = [
            {"image_id": number, "question": f"What is in {number}?", "question_id": 10 * number} for number in (1, 2)
        ]
        for question in questions:
            _coco_image(root, folder, question["image_id"])
        suffix = {"test-dev": "test-dev2015"}.get(split, folder)
        write_json(root / f"{prefix}OpenEnded_mscoco_{suffix}_questions.json", {"questions": questions})
        if split in ("train", "val"):
            annotations = [
                {
                    "question_id": question["question_id"],
                    "image_id": question["image_id"],
                    "question_type": "what",
                    "answer_type": "other",
                    "answers": [
                        {"answer": answer, "answer_id": k + 1, **answer_field} for k, answer in enumerate(TEN_ANSWERS)
                    ],
                }
                # Published in another order than the questions.
                for question in reversed(questions)
            ]
            annotations[0]["answers"] = [{"answer": "two", "answer_id": k + 1, **answer_field} for k in range(10)]
            write_json(root / f"{prefix}mscoco_{folder}_annotations.json", {"annotations": annotations})


def vqav2(root):
    folders = {"train": "train2014", "val": "val2014", "test-dev": "test2015", "test": "test2015"}
    _mscoco_vqa(root, "v2_", folders, {"answer_confidence": "yes"})
    return {"train": 2, "val": 2, "test-dev": 2, "test": 2}


def okvqa(root):
    _mscoco_vqa(root, "", {"train": "train2014", "val": "val2014"}, {"raw_answer": "x", "answer_confidence": "yes"})
    return {"train": 2, "val": 2}


def vqg_vqav2(root):
    vqav2(root)
    return {"train": 2}


def vqg_okvqa(root):
    okvqa(root)
    return {"train": 2}


def aokvqa(root):
    for split in ("train", "val", "test"):
        write_image(root / f"{split}2017" / f"{5:012d}.jpg")
        row = {
            "split": split,
            "image_id": 5,
            "question_id": f"22jbM6gDxdaMaunuzgrs{split}",
            "question": "What is the man by the bags awaiting?",
            "choices": ["skateboarder", "train", "delivery", "cab"],
            "difficult_direct_answer": False,
        }
        if split != "test":
            row |= {
                "correct_choice_idx": 3,
                "direct_answers": ["ride"] * 4 + ["cab"] * 6,
                "rationales": ["R1.", "R2.", "R3."],
            }
        write_json(root / f"aokvqa_v1p0_{split}.json", [row])
    return {"train": 1, "val": 1, "test": 1}


def vqg_aokvqa(root):
    aokvqa(root)
    return {"train": 1}


def vizwiz(root):
    answers = [{"answer": answer, "answer_confidence": "maybe"} for answer in TEN_ANSWERS]
    for split in ("train", "val", "test"):
        name = f"VizWiz_{split}_00000000.jpg"
        write_image(root / split / name)
        row = {"image": name, "question": "What is this?"}
        if split != "test":
            row |= {"answers": answers, "answer_type": "other", "answerable": 1}
        write_json(root / f"{split}.json", [row])
    return {"train": 1, "val": 1, "test": 1}


def scienceqa(root):
    problems, splits = {}, {}
    for number, split in enumerate(("train", "val", "test")):
        with_image, without = str(2 * number + 1), str(2 * number + 2)
        common = {
            "question": "Which of these?",
            "choices": ["iron", "wood"],
            "answer": 0,
            "task": "closed choice",
            "grade": "grade4",
            "subject": "natural science",
            "topic": "physics",
            "category": "Magnets",
            "skill": "Identify magnets",
            "solution": "Iron is magnetic.",
            "split": split,
        }
        problems[with_image] = {
            **common,
            "image": "image.png",
            "hint": "Look at the bar.",
            "lecture": "Magnets attract.",
        }
        problems[without] = {**common, "image": None, "hint": "", "lecture": ""}
        splits[split] = [with_image, without]
        write_image(root / split / with_image / "image.png")
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
    counts = dict.fromkeys(("train", "val", "test"), 2)
    return counts | {f"{split}_image": 1 for split in counts}


def ocr_vqa(root):
    books = {}
    for number, split in enumerate((1, 2, 3, 3)):
        book = f"00000000{number}X"
        ending = "gif" if number == 3 else "jpg"
        write_image(root / "images" / f"{book}.{ending}")
        books[book] = {
            "imageURL": f"http://ecx.example.com/images/I/51{number}.{ending}",
            "questions": ["Who wrote this book?", "What is the title?", "Is this a cookbook?"],
            "answers": ["Ann Author", f"Title {number}", "No"],
            "title": f"Title {number}",
            "authorName": "Ann Author",
            "genre": "Travel",
            "split": split,
        }
    write_json(root / "dataset.json", books)
    return {"train": 3, "val": 3, "test": 6, "all": 12}


def textvqa(root):
    for split in ("train", "val", "test"):
        folder = "test_images" if split == "test" else "train_images"
        write_image(root / folder / f"{split}0.jpg")
        row = {"question_id": 7, "question": "What does it say?", "image_id": f"{split}0", "set_name": split}
        if split != "test":
            row["answers"] = TEN_ANSWERS
        write_json(root / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": [row]})
        _rosetta(root, split, [f"{split}0"])
    return {"train": 1, "val": 1, "test": 1}


def _video_qa(root, prefix):
    write_frames(root / "frames" / f"{prefix}12")
    for number, split in enumerate(("train", "val", "test")):
        row = {"id": number, "video_id": 12, "question": "what is a man doing?", "answer": "cook"}
        write_json(root / f"{split}_qa.json", [row, {**row, "id": number + 10, "answer": "eat"}])
    return {"train": 2, "val": 2, "test": 2}


def msvd_qa(root):
    return _video_qa(root, "vid")


def msrvtt_qa(root):
    return _video_qa(root, "video")


def ivqa(root):
    write_frames(root / "frames" / "abcDEF12345")
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["video_id", "start", "end", "question", *(f"answer{k}" for k in range(1, 6))])
            writer.writerow(
                ["abcDEF12345", 3, 9, "What is cut, first?", "tomato", "tomato", "tomatoes", "red", "onion"]
            )
    return {"train": 1, "val": 1, "test": 1}


def visdial(root):
    questions = [f"question {number}?" for number in range(10)]
    answers = [f"answer {number}" for number in range(100)]
    _coco_image(root, "val2014", 9)
    for split in ("train", "val", "test"):
        turns = [
            {"question": k, "answer": 9 - k, "answer_options": list(range(100)), "gt_index": 9 - k} for k in range(10)
        ]
        if split == "test":
            turns = [*turns[:2], {"question": 2, "answer_options": list(range(100))}]
        if split != "train":
            write_image(root / f"VisualDialog_{split}2018" / f"VisualDialog_{split}2018_{9:012d}.jpg")
        dialog = {"image_id": 9, "caption": "A man.", "dialog": turns}
        write_json(
            root / f"visdial_1.0_{split}.json",
            {
                "split": split,
                "version": "1.0",
                "data": {"dialogs": [dialog], "questions": questions, "answers": answers},
            },
        )
    return {"train": 10, "val": 10, "test": 1}


def hateful_memes(root):
    write_image(root / "img" / "42953.png")
    row = {"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their character not their color"}
    for split in ("train", "dev", "dev_unseen"):
        write_jsonl(root / f"{split}.jsonl", [row, {**row, "id": 42954, "label": 1}])
    unlabelled = {key: value for key, value in row.items() if key != "label"}
    for split in ("test", "test_unseen"):
        write_jsonl(root / f"{split}.jsonl", [unlabelled])
    return {"train": 2, "dev": 2, "dev_unseen": 2, "test": 1, "test_unseen": 1}


LLAVA_TURNS = [
    {"from": "human", "value": "<image>\nWhat are the COLORS, of the bus?"},
    {"from": "gpt", "value": "The bus is white and red.\n\nIt has: 2 (two) doors!"},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "Because " + "it is " * 60 + "so."},
]


def _llava(root, file, turns):
    write_image(root / "train2017" / "000000033471.jpg")
    row = {"id": "000000033471", "image": "000000033471.jpg", "conversations": turns}
    last = {**turns[0], "value": turns[0]["value"].removeprefix("<image>\n") + "\n<image>"}
    write_json(root / file, [row, {**row, "conversations": [last, *turns[1:]]}])
    return {"train": 2}


def llava_conversation(root):
    return _llava(root, "conversation_58k.json", LLAVA_TURNS)


def llava_detail(root):
    return _llava(root, "detail_23k.json", LLAVA_TURNS[:2])


def llava_reasoning(root):
    return _llava(root, "complex_reasoning_77k.json", LLAVA_TURNS[:2])


def write_dataset(name: str, root: Path) -> dict[str, int]:
    """Writes the dataset's files and images into ``root``; returns rows by split."""
    root.mkdir(parents=True, exist_ok=True)
    return globals()[name](root)
