"""The 26 datasets of InstructBLIP (paper, section 2.1, figure 2 and appendix C): what they are and which files hold them.

Nothing is downloaded: most of these datasets ask each user to accept their terms. `instructblip data verify` checks a
copy of one's own against what stands here. Sizes count the rows that the reader in `instructblip_hf.data.sources` yields
(captions, questions, dialogue turns). Sizes and licences marked as unverified were written down from memory.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """A published split.

    Args:
        files (`tuple[tuple[str, ...], ...]`): Sets of files of which one is needed whole, the official one first.
        rows (`int`, *optional*): How many rows it has; `None` where that is not known exactly.
        verified (`bool`, *optional*, defaults to `False`): Whether ``rows`` was found in a published source.
        about (`int`, *optional*): The rounded size that the publishers name, where ``rows`` is not known.
        optional (`tuple[str, ...]`, *optional*): Files that are read where they are there.
        labelled (`bool`, *optional*, defaults to `True`): Whether answers are published.
    """

    files: tuple[tuple[str, ...], ...]
    rows: int | None = None
    verified: bool = False
    about: int | None = None
    optional: tuple[str, ...] = ()
    labelled: bool = True


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset.

    Args:
        title (`str`): Its published name.
        category (`str`): One of the eleven of `instructblip_hf.data.schema.SLOTS`.
        role (`str`): `"held-in"` (InstructBLIP trains on it) or `"held-out"` (only evaluated, zero-shot).
        splits (`dict[str, Split]`): By name.
        evaluated_on (`str`, *optional*): The split of the paper's tables; `None` for those that are only trained on.
        metric (`str`, *optional*): That of the paper's tables.
        images (`tuple[str, ...]`): Folders, beside the files or under an image root of their own.
        homepage (`str`): Where to read about it and to get it.
        licence (`str`): Of the annotations; images have their own terms.
        licence_verified (`bool`, *optional*, defaults to `False`): Whether it was found in a published source.
        notes (`str`, *optional*): What else a user should know.
    """

    title: str
    category: str
    role: str
    splits: dict[str, Split]
    evaluated_on: str | None
    metric: str | None
    images: tuple[str, ...]
    homepage: str
    licence: str
    licence_verified: bool = False
    notes: str = ""


_VQAV2_TRAIN = Split(
    (("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"), ("vqa_train.json",)),
    443_757,
    verified=True,
)
_OKVQA_TRAIN = Split(
    (("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"), ("okvqa_train.json",)),
    9_009,
    verified=True,
)
_AOKVQA_TRAIN = Split((("aokvqa_v1p0_train.json",),), 17_056, verified=True)


DATASETS: dict[str, DatasetSpec] = {
    # --- image captioning
    "coco_caption": DatasetSpec(
        title="COCO Caption",
        category="image_captioning",
        role="held-in",
        splits={
            "train": Split((("dataset_coco.json",), ("coco_karpathy_train.json",)), 566_747, verified=True),
            "val": Split((("dataset_coco.json",), ("coco_karpathy_val.json",)), 5_000, verified=True),
            "test": Split((("dataset_coco.json",), ("coco_karpathy_test.json",)), 5_000, verified=True),
        },
        evaluated_on="test",
        metric="CIDEr",
        images=("train2014", "val2014"),
        homepage="https://cs.stanford.edu/people/karpathy/deepimagesent/",
        licence="CC BY 4.0",
        notes="Karpathy's splits, train with restval; a training row is one caption, a row of val and test one image.",
    ),
    "web_capfilt": DatasetSpec(
        title="Web CapFilt",
        category="image_captioning",
        role="held-in",
        splits={"train": Split((("annotation.json",), ("annotation.jsonl",)), 13_873_136, verified=True)},
        evaluated_on=None,
        metric=None,
        images=("(paths as in the file)",),
        homepage="https://github.com/salesforce/BLIP",
        licence="that of each web page",
        notes="BLIP publishes captions and addresses; rows here are {image, caption} of downloaded images.",
    ),
    "nocaps": DatasetSpec(
        title="NoCaps",
        category="image_captioning",
        role="held-out",
        splits={
            "val": Split((("nocaps_val_4500_captions.json",),), 4_500, verified=True),
            "test": Split((("nocaps_test_image_info.json",), ("nocaps_test.json",)), 10_600, labelled=False),
        },
        evaluated_on="val",
        metric="CIDEr",
        images=("images", "val", "test"),
        homepage="https://nocaps.org",
        licence="CC BY 2.0",
        notes="The paper reports all of val, of which LAVIS's own list has 1,413 images alone.",
    ),
    "flickr30k": DatasetSpec(
        title="Flickr30k",
        category="image_captioning",
        role="held-out",
        splits={
            "train": Split((("dataset_flickr30k.json",), ("flickr30k_train.json",)), 145_000),
            "val": Split((("dataset_flickr30k.json",), ("flickr30k_val.json",)), 1_014),
            "test": Split((("dataset_flickr30k.json",), ("flickr30k_test.json",)), 1_000, verified=True),
        },
        evaluated_on="test",
        metric="CIDEr",
        images=("flickr30k-images",),
        homepage="https://shannon.cs.illinois.edu/DenotationGraph/",
        licence="research and education only, without redistribution",
        notes="Karpathy's splits; a training row is one caption, a row of val and test one image.",
    ),
    # --- image captioning that needs reading
    "textcaps": DatasetSpec(
        title="TextCaps",
        category="captioning_reading",
        role="held-in",
        splits={
            "train": Split(
                (("TextCaps_0.1_train.json",),), 109_765, True, optional=("TextVQA_Rosetta_OCR_v0.2_train.json",)
            ),
            "val": Split((("TextCaps_0.1_val.json",),), 3_166, True, optional=("TextVQA_Rosetta_OCR_v0.2_val.json",)),
            "test": Split(
                (("TextCaps_0.1_test.json",),),
                3_289,
                verified=True,
                optional=("TextVQA_Rosetta_OCR_v0.2_test.json",),
                labelled=False,
            ),
        },
        evaluated_on="val",
        metric="CIDEr",
        images=("train_images", "test_images"),
        homepage="https://textvqa.org/textcaps/",
        licence="CC BY 4.0",
        licence_verified=True,
        notes="A training row is one caption, a row of val and test one image. OCR tokens are TextVQA's.",
    ),
    # --- visual reasoning
    "gqa": DatasetSpec(
        title="GQA",
        category="visual_reasoning",
        role="held-out",
        splits={
            "train": Split((("train_balanced_questions.json",),), 943_000, verified=True),
            "val": Split((("val_balanced_questions.json",),), 132_062, verified=True),
            "testdev": Split((("testdev_balanced_questions.json",),), 12_578, verified=True),
            "test": Split((("test_balanced_questions.json",),), 95_336, labelled=False),
        },
        evaluated_on="testdev",
        metric="accuracy",
        images=("images",),
        homepage="https://cs.stanford.edu/people/dorarad/gqa/",
        licence="CC BY 4.0",
    ),
    "vsr": DatasetSpec(
        title="VSR (zero-shot split)",
        category="visual_reasoning",
        role="held-out",
        splits={
            "train": Split((("train.jsonl",),), 3_489),
            "dev": Split((("dev.jsonl",),), 340),
            "test": Split((("test.jsonl",),), 1_222),
        },
        evaluated_on="test",
        metric="accuracy",
        images=("images",),
        homepage="https://github.com/cambridgeltl/visual-spatial-reasoning",
        licence="CC BY 4.0",
        licence_verified=True,
        notes="The files of splits/zeroshot. Earlier releases of it have other sizes.",
    ),
    "iconqa": DatasetSpec(
        title="IconQA (multi-text-choice)",
        category="visual_reasoning",
        role="held-out",
        splits={
            "train": Split((("problems.json", "pid_splits.json"), ("annotations_train.json",)), 18_946, verified=True),
            "val": Split((("problems.json", "pid_splits.json"), ("annotations_val.json",)), 6_316, verified=True),
            "test": Split((("problems.json", "pid_splits.json"), ("annotations_test.json",)), 6_316, verified=True),
        },
        evaluated_on="test",
        metric="accuracy",
        images=("iconqa",),
        homepage="https://iconqa.github.io",
        licence="CC BY-NC-SA 4.0",
        licence_verified=True,
        notes="Only the questions whose choices are texts; the three splits have 31,578 together.",
    ),
    # --- image question answering
    "vqav2": DatasetSpec(
        title="VQAv2",
        category="image_qa",
        role="held-in",
        splits={
            "train": _VQAV2_TRAIN,
            "val": Split(
                (
                    ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
                    ("vqa_val.json",),
                ),
                214_354,
                verified=True,
            ),
            "test-dev": Split(
                (("v2_OpenEnded_mscoco_test-dev2015_questions.json",),), 107_394, verified=True, labelled=False
            ),
            "test": Split((("v2_OpenEnded_mscoco_test2015_questions.json",),), 447_793, verified=True, labelled=False),
        },
        evaluated_on="val",
        metric="VQA accuracy",
        images=("train2014", "val2014", "test2015"),
        homepage="https://visualqa.org",
        licence="CC BY 4.0",
        notes="The paper reports val or test-dev; the test splits are scored by the challenge's server.",
    ),
    "vizwiz": DatasetSpec(
        title="VizWiz",
        category="image_qa",
        role="held-out",
        splits={
            "train": Split((("train.json",),), 20_523, verified=True),
            "val": Split((("val.json",),), 4_319, verified=True),
            "test": Split((("test.json",),), 8_000, verified=True, labelled=False),
        },
        evaluated_on="test",
        metric="VQA accuracy",
        images=("train", "val", "test"),
        homepage="https://vizwiz.org/tasks-and-datasets/vqa/",
        licence="CC BY 4.0",
        notes="The paper reports test-dev, scored by the challenge's server.",
    ),
    # --- knowledge-grounded image question answering
    "okvqa": DatasetSpec(
        title="OKVQA",
        category="knowledge_qa",
        role="held-in",
        splits={
            "train": _OKVQA_TRAIN,
            "val": Split(
                (
                    ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
                    ("okvqa_val.json",),
                ),
                5_046,
                verified=True,
            ),
        },
        evaluated_on="val",
        metric="VQA accuracy",
        images=("train2014", "val2014"),
        homepage="https://okvqa.allenai.org",
        licence="not stated",
        notes="Its test split is the one named val2014.",
    ),
    "aokvqa": DatasetSpec(
        title="A-OKVQA",
        category="knowledge_qa",
        role="held-in",
        splits={
            "train": _AOKVQA_TRAIN,
            "val": Split((("aokvqa_v1p0_val.json",),), 1_145, verified=True),
            "test": Split((("aokvqa_v1p0_test.json",),), 6_702, labelled=False),
        },
        evaluated_on="val",
        metric="VQA accuracy",
        images=("train2017", "val2017", "test2017"),
        homepage="https://allenai.org/project/a-okvqa/home",
        licence="Apache 2.0",
        notes="Direct answers and multiple choice, both in each row.",
    ),
    "scienceqa": DatasetSpec(
        title="ScienceQA",
        category="knowledge_qa",
        role="held-out",
        splits={
            "train": Split((("problems.json", "pid_splits.json"), ("problems_train.json",)), 12_726, verified=True),
            "val": Split((("problems.json", "pid_splits.json"), ("problems_val.json",)), 4_241, verified=True),
            "test": Split((("problems.json", "pid_splits.json"), ("problems_test.json",)), 4_241, verified=True),
            "train_image": Split((("problems.json", "pid_splits.json"), ("problems_train.json",)), 6_218),
            "val_image": Split((("problems.json", "pid_splits.json"), ("problems_val.json",)), 2_097),
            "test_image": Split((("problems.json", "pid_splits.json"), ("problems_test.json",)), 2_017, verified=True),
        },
        evaluated_on="test_image",
        metric="accuracy",
        images=("train", "val", "test"),
        homepage="https://scienceqa.github.io",
        licence="CC BY-NC-SA 4.0",
        notes="The splits named _image hold the questions with an image alone, as the paper uses them.",
    ),
    # --- image question answering that needs reading
    "ocr_vqa": DatasetSpec(
        title="OCR-VQA",
        category="qa_reading",
        role="held-in",
        splits={
            "train": Split((("dataset.json",), ("ocrvqa.json",)), about=801_717, optional=("ocr_tokens.json",)),
            "val": Split((("dataset.json",), ("ocrvqa.json",)), about=100_215, optional=("ocr_tokens.json",)),
            "test": Split((("dataset.json",), ("ocrvqa.json",)), about=100_215, optional=("ocr_tokens.json",)),
            "all": Split((("dataset.json",), ("ocrvqa.json",)), 1_002_146, True, optional=("ocr_tokens.json",)),
        },
        evaluated_on="test",
        metric="accuracy",
        images=("images",),
        homepage="https://ocr-vqa.github.io",
        licence="not stated",
        notes="Splits by the file's split field (1 train, 2 val, 3 test), of eight, one and one tenth. Its publishers give no OCR; ocr_tokens.json is "
        "a file of one's own, written as TextVQA's.",
    ),
    "textvqa": DatasetSpec(
        title="TextVQA",
        category="qa_reading",
        role="held-out",
        splits={
            "train": Split(
                (("TextVQA_0.5.1_train.json",),), 34_602, True, optional=("TextVQA_Rosetta_OCR_v0.2_train.json",)
            ),
            "val": Split((("TextVQA_0.5.1_val.json",),), 5_000, True, optional=("TextVQA_Rosetta_OCR_v0.2_val.json",)),
            "test": Split(
                (("TextVQA_0.5.1_test.json",),),
                5_734,
                verified=True,
                optional=("TextVQA_Rosetta_OCR_v0.2_test.json",),
                labelled=False,
            ),
        },
        evaluated_on="val",
        metric="VQA accuracy",
        images=("train_images", "test_images"),
        homepage="https://textvqa.org",
        licence="CC BY 4.0",
        notes="The paper gives the OCR tokens to the model.",
    ),
    # --- image question generation
    "vqg_vqav2": DatasetSpec(
        title="VQG of VQAv2",
        category="question_generation",
        role="held-in",
        splits={"train": _VQAV2_TRAIN},
        evaluated_on=None,
        metric=None,
        images=("train2014",),
        homepage="https://visualqa.org",
        licence="CC BY 4.0",
        notes="The files of VQAv2, with the question to be learnt.",
    ),
    "vqg_okvqa": DatasetSpec(
        title="VQG of OKVQA",
        category="question_generation",
        role="held-in",
        splits={"train": _OKVQA_TRAIN},
        evaluated_on=None,
        metric=None,
        images=("train2014",),
        homepage="https://okvqa.allenai.org",
        licence="not stated",
        notes="The files of OKVQA, with the question to be learnt.",
    ),
    "vqg_aokvqa": DatasetSpec(
        title="VQG of A-OKVQA",
        category="question_generation",
        role="held-in",
        splits={"train": _AOKVQA_TRAIN},
        evaluated_on=None,
        metric=None,
        images=("train2017",),
        homepage="https://allenai.org/project/a-okvqa/home",
        licence="Apache 2.0",
        notes="The files of A-OKVQA, with the question to be learnt.",
    ),
    # --- video question answering
    "msvd_qa": DatasetSpec(
        title="MSVD-QA",
        category="video_qa",
        role="held-out",
        splits={
            "train": Split((("train_qa.json",), ("qa_train.json",)), 30_933, optional=("youtube_mapping.txt",)),
            "val": Split((("val_qa.json",), ("qa_val.json",)), 6_415, optional=("youtube_mapping.txt",)),
            "test": Split((("test_qa.json",), ("qa_test.json",)), 13_157, optional=("youtube_mapping.txt",)),
        },
        evaluated_on="test",
        metric="accuracy",
        images=("videos", "frames"),
        homepage="https://github.com/xudejing/video-question-answering",
        licence="not stated",
        notes="Videos by number (vid12.avi), or by their YouTube name where youtube_mapping.txt is there.",
    ),
    "msrvtt_qa": DatasetSpec(
        title="MSRVTT-QA",
        category="video_qa",
        role="held-out",
        splits={
            "train": Split((("train_qa.json",), ("qa_train.json",)), 158_581),
            "val": Split((("val_qa.json",), ("qa_val.json",)), 12_278),
            "test": Split((("test_qa.json",), ("qa_test.json",)), 72_821),
        },
        evaluated_on="test",
        metric="accuracy",
        images=("videos", "frames"),
        homepage="https://github.com/xudejing/video-question-answering",
        licence="not stated",
        notes="Videos by number (video12.mp4).",
    ),
    "ivqa": DatasetSpec(
        title="iVQA",
        category="video_qa",
        role="held-out",
        splits={
            "train": Split((("train.csv",),), about=6_000),
            "val": Split((("val.csv",),), about=2_000),
            "test": Split((("test.csv",),), about=2_000),
        },
        evaluated_on="test",
        metric="iVQA accuracy",
        images=("videos", "frames"),
        homepage="https://antoyang.github.io/just-ask.html",
        licence="not stated",
        notes="The columns answer1 to answer5 are those of its authors' code; video_id, start, end and question were not "
        "verified.",
    ),
    # --- visual conversational question answering
    "visdial": DatasetSpec(
        title="Visual Dialog 1.0",
        category="conversational_qa",
        role="held-out",
        splits={
            "train": Split((("visdial_1.0_train.json",),), 1_232_870),
            "val": Split((("visdial_1.0_val.json",),), 20_640, verified=True),
            "test": Split((("visdial_1.0_test.json",),), 8_000, labelled=False),
        },
        evaluated_on="val",
        metric="MRR",
        images=("train2014", "val2014", "VisualDialog_val2018", "VisualDialog_test2018"),
        homepage="https://visualdialog.org",
        licence="CC BY 4.0",
        notes="A row is one turn with what was said before it.",
    ),
    # --- image classification
    "hateful_memes": DatasetSpec(
        title="Hateful Memes",
        category="image_classification",
        role="held-out",
        splits={
            "train": Split((("train.jsonl",),), 8_500),
            "dev": Split((("dev.jsonl",), ("dev_seen.jsonl",)), 500),
            "dev_unseen": Split((("dev_unseen.jsonl",),), 540),
            "test": Split((("test.jsonl",), ("test_seen.jsonl",)), 1_000, labelled=False),
            "test_unseen": Split((("test_unseen.jsonl",),), 2_000, labelled=False),
        },
        evaluated_on="dev",
        metric="ROC-AUC",
        images=("img",),
        homepage="https://hatefulmemeschallenge.com",
        licence="its own, research only",
        notes="Later releases have labels for the test splits; they are read where they are there.",
    ),
    # --- LLaVA-Instruct-150K
    "llava_conversation": DatasetSpec(
        title="LLaVA-Instruct conversation",
        category="llava_instruct",
        role="held-in",
        splits={"train": Split((("conversation_58k.json",), ("conversation.json",)), about=58_000)},
        evaluated_on=None,
        metric=None,
        images=("train2017", "train2014"),
        homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        licence="CC BY 4.0 and OpenAI's terms",
        licence_verified=True,
    ),
    "llava_detail": DatasetSpec(
        title="LLaVA-Instruct detail",
        category="llava_instruct",
        role="held-in",
        splits={"train": Split((("detail_23k.json",), ("detail.json",)), about=23_000)},
        evaluated_on=None,
        metric=None,
        images=("train2017", "train2014"),
        homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        licence="CC BY 4.0 and OpenAI's terms",
        licence_verified=True,
    ),
    "llava_reasoning": DatasetSpec(
        title="LLaVA-Instruct reasoning",
        category="llava_instruct",
        role="held-in",
        splits={"train": Split((("complex_reasoning_77k.json",), ("complex_reasoning.json",)), about=77_000)},
        evaluated_on=None,
        metric=None,
        images=("train2017", "train2014"),
        homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        licence="CC BY 4.0 and OpenAI's terms",
        licence_verified=True,
    ),
}


def dataset_spec(name: str) -> DatasetSpec:
    """What the catalog says of a dataset.

    Raises:
        KeyError: If there is none of that name, with those there are.
    """
    if name not in DATASETS:
        raise KeyError(f"there is no dataset {name!r} in the catalog; it has {', '.join(DATASETS)}")
    return DATASETS[name]


def split_spec(name: str, split: str) -> Split:
    """What the catalog says of a dataset's split.

    Raises:
        KeyError: If there is none of that name, with those there are.
    """
    splits = dataset_spec(name).splits
    if split not in splits:
        raise KeyError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def split_size(split: Split) -> str:
    """A split's rows as text: ``~`` before numbers that are unverified or rounded, ``?`` where none is known."""
    if split.rows is not None:
        return f"{'' if split.verified else '~'}{split.rows:,}"
    return "?" if split.about is None else f"~{split.about:,}"


def catalog_table() -> list[tuple[str, ...]]:
    """The catalog as rows of texts, the first of them the header."""
    rows: list[tuple[str, ...]] = [("name", "category", "role", "splits (rows)", "evaluated on", "metric", "licence")]
    for name, spec in DATASETS.items():
        splits = ", ".join(f"{split} {split_size(published)}" for split, published in spec.splits.items())
        licence = ("" if spec.licence_verified else "~") + spec.licence
        rows.append((name, spec.category, spec.role, splits, spec.evaluated_on or "-", spec.metric or "-", licence))
    return rows


def markdown_table() -> str:
    """The catalog as a Markdown table, with links and folders of images."""
    header, *rows = catalog_table()
    lines = [
        "| " + " | ".join([*header, "files of the first split", "images"]) + " |",
        "|---" * (len(header) + 2) + "|",
    ]
    for row in rows:
        spec = DATASETS[row[0]]
        files = "<br>".join(f"`{file}`" for file in next(iter(spec.splits.values())).files[0])
        images = " ".join(f"`{folder}`" if "(" not in folder else folder for folder in spec.images)
        name = f"[`{row[0]}`]({spec.homepage})"
        lines.append("| " + " | ".join([name, *row[1:], files, images]) + " |")
    return "\n".join(lines)


__all__ = [
    "DATASETS",
    "DatasetSpec",
    "Split",
    "catalog_table",
    "dataset_spec",
    "markdown_table",
    "split_size",
    "split_spec",
]
