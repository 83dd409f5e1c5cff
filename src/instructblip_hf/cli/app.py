"""The commands and their options. What they do lives beside this file and is imported when a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .data import data_app
from .errors import fail
from .evaluate_scienceqa import evaluate_scienceqa
from .generate_data import generate_data
from .judge import judge


app = typer.Typer(
    name="instructblip",
    help="InstructBLIP, BLIP-2 and LLaVA: ask about images, see a trained model at work, train your own.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder or Hub id of a model; the bundled tiny InstructBLIP by default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; an accelerator if there is one by default.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default what fits the device.")]
IndexDtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; by default what the index was made in.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
NumBeams = Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")]


# transformers' own, as far as they are for prompts with images: "paged" is continuous batching's.
CACHES = ("dynamic", "offloaded", "static", "offloaded_static")


def _known_cache(name: str | None) -> str | None:
    if name not in (None, *CACHES):
        fail(f"--cache-implementation: {name!r} is none of {', '.join(CACHES)}")
    return name


CacheImplementation = Annotated[
    str | None,
    typer.Option(
        callback=_known_cache,
        help="static: a cache of fixed size, with which an accelerator compiles the steps; or another of transformers'.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"instructblip_hf {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """InstructBLIP, BLIP-2 and LLaVA: ask about images, see a trained model at work, train your own."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page and the picture.")] = Path("instructblip-demo"),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the scenes; a fresh one each time by default.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Train a new Q-Former before your eyes, in minutes.")] = False,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long --train trains.")] = 3.0,
) -> None:
    """Show the bundled tiny model answering questions about fresh scenes, with its accuracies."""
    if train:
        from .demo_training import run_training_demo

        run_training_demo(out, seed, minutes)
    else:
        from .demo import run_demo

        run_demo(out, seed)


@app.command()
def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE... [QUESTION]", help="Images, by path or address, and a question about them."),
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="A question about each image; can be repeated.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All images in one prompt.")] = False,
    model: Model = None,
    as_json: AsJson = False,
    max_new_tokens: MaxNewTokens = 64,
    num_beams: NumBeams = 1,
    cache_implementation: CacheImplementation = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Ask about images. Without a question, questions are read from the terminal."""
    from .ask import run_ask

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    run_ask(arguments, question or [], together, model, as_json, device, dtype, cache_implementation, options)


@app.command()
def chat(
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help="What to talk about, by path or address.")
    ] = None,
    model: Model = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of sampling; 0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="With a temperature: sample among the likeliest tokens of so much probability.")
    ] = 1.0,
    web: Annotated[
        bool, typer.Option("--web", help="A page in the browser, with ranking and the Q-Former's attention.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="With --web: where it listens; this machine alone by default.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="With --web: by default the first free one from 7860.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="With --web: open it.")] = False,
    cache_implementation: CacheImplementation = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Talk about an image. Later questions may lean on earlier ones; answers appear as they are generated."""
    from .chat import run_chat
    from .chat_page import run_page

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    if web:
        run_page(image, model, device, dtype, cache_implementation, options, host, port, browser)
    else:
        run_chat(image, model, device, dtype, cache_implementation, options)


@app.command()
def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, by path or address.")],
    prompt: Annotated[str, typer.Option(help="The instruction to describe an image.")] = "Describe the image.",
    model: Model = None,
    as_json: AsJson = False,
    max_new_tokens: MaxNewTokens = 64,
    num_beams: NumBeams = 1,
    cache_implementation: CacheImplementation = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Describe images."""
    from .ask import run_caption

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    run_caption(images, prompt, model, as_json, device, dtype, cache_implementation, options)


@app.command()
def rank(
    arguments: Annotated[
        list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Images, by path or address, and the question.")
    ],
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidates", "-c", help="Answers to choose from, with commas between; can be repeated."),
    ] = None,
    candidates_file: Annotated[Path | None, typer.Option(help="A file of answers, one a line.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many of the best are shown.")] = None,
    length_penalty: Annotated[
        float, typer.Option(help="0 ranks by the probability of the whole answer, 1 by the mean over its tokens.")
    ] = 0.0,
    model: Model = None,
    as_json: AsJson = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Rank answers about images by their likelihood."""
    from .rank import run_rank

    if len(arguments) < 2:
        fail('rank needs an image and a question: rank IMAGE "question" --candidates red,green')
    *names, question = arguments
    options = (candidates or [], candidates_file, top_k, length_penalty)
    run_rank(names, question, *options, model, as_json, device, dtype)


@app.command()
def evaluate(
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "-t", help="Tasks with commas between; held-out, held-in or all for many."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="The folder with a folder of official files for each dataset, by its name.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for answers and results. What is there is kept.")
    ] = None,
    model: Model = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each split, to try it.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help='In place of the protocol\'s, like "Question: {question} Short answer:".')
    ] = None,
    decoding: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Change the decoding: num_beams=1. Can be repeated.")
    ] = None,
    roots: Annotated[
        list[str] | None, typer.Option("--root", metavar="DATASET=FOLDER", help="A dataset that is elsewhere.")
    ] = None,
    image_roots: Annotated[
        list[str] | None,
        typer.Option(
            "--image-root", metavar="DATASET=FOLDER", help="The folder that its image paths are relative to."
        ),
    ] = None,
    max_bad_rows: Annotated[
        int, typer.Option(min=0, help="Leave out up to so many malformed rows of a dataset's files, and say so.")
    ] = 0,
    compare_with: Annotated[
        str | None, typer.Option(help="A model of the paper's tables; by default the closest to --model.")
    ] = None,
    finetuned: Annotated[bool, typer.Option("--finetuned", help="Compare with table 3 in place of table 1.")] = False,
    seed: Annotated[int, typer.Option(help="Set before each task.")] = 42,
    continuous_batching: Annotated[
        bool,
        typer.Option("--continuous-batching", help="Generate in transformers' way for many requests: no padding."),
    ] = False,
    batching_window: Annotated[
        int, typer.Option(min=1, help="With --continuous-batching: batches that are handed over together.")
    ] = 16,
    cache_implementation: CacheImplementation = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Start so many processes, each with its share of the rows.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Show the tasks and leave.")] = False,
) -> None:
    """Evaluate a model by the paper's protocol: answers, metrics, a table beside the published numbers, a plot."""
    from .evaluate import launch_evaluate, run_evaluate, show_tasks

    if list_tasks:
        show_tasks()
    elif processes is not None:
        launch_evaluate(processes, sys.argv[1:])
    else:
        if tasks is None or data_root is None or output is None:
            fail("evaluate needs --tasks, --data-root and --output; --list shows the tasks")
        if continuous_batching and cache_implementation is not None:
            fail("--continuous-batching has a cache of its own, and --cache-implementation names another: choose one")
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "limit": limit,
            "prompt": prompt,
            "max_bad_rows": max_bad_rows,
            "compare_with": compare_with,
            "finetuned": finetuned,
            "seed": seed,
            "continuous_batching": continuous_batching,
            "batching_window": batching_window,
        }
        pairs = {"decoding": decoding or [], "roots": roots or [], "image_roots": image_roots or []}
        run_evaluate(tasks, data_root, output, model, device, dtype, cache_implementation, options, pairs)


@app.command()
def index(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="A folder of images, with the folders in it; or a file of texts, one a line."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the index; IMAGES.index by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Folder or Hub id of a BLIP-2 for retrieval; of an index that is there, its own."
        ),
    ] = None,
    stored_in: Annotated[
        str | None, typer.Option("--store", help="float16 or float32: of the features; float16 by default.")
    ] = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be read, and name them.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images or texts that go through the model at once; 16 and 64 by default."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images beside this one.")] = 0,
    device: Device = None,
    dtype: IndexDtype = None,
) -> None:
    """Store the features of a folder of images, or a list of texts, for search. Again, it computes what has changed."""
    from .index import run_index

    run_index(source, output, model, stored_in, skip_bad_images, batch_size, workers, device, dtype)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder that index wrote.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT...]", help="What to find, in an index of images.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option("--image", help="An image to find texts for, in an index of texts; can be repeated."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many of the best are shown.")] = 10,
    rerank: Annotated[
        int, typer.Option(min=0, help="How many of the best by cosine the matching head orders anew; 0 for none.")
    ] = 16,
    page: Annotated[Path | None, typer.Option("--html", help="Also write a page with the pictures.")] = None,
    as_json: AsJson = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts that are matched at once.")] = 16,
    backend: Annotated[str, typer.Option(help="torch or faiss; both find the same.")] = "torch",
    model: Annotated[str | None, typer.Option("--model", "-m", help="The index's own by default.")] = None,
    device: Device = None,
    dtype: IndexDtype = None,
) -> None:
    """Find images by text, or texts by image, in what index stored."""
    from .search import run_search

    options = (top_k, rerank, page, as_json, batch_size, backend, model, device, dtype)
    run_search(folder, texts or [], images or [], *options)


@app.command(name="evaluate-retrieval")
def evaluate_retrieval(
    data_root: Annotated[
        Path, typer.Option(help="The folder with a folder of official files for each dataset, by its name.")
    ],
    dataset: Annotated[str, typer.Option(help="flickr30k or coco_caption.")] = "flickr30k",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Folder or Hub id of a BLIP-2 for retrieval.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    image_root: Annotated[
        Path | None, typer.Option(help="The folder that image paths are relative to, if another.")
    ] = None,
    k_test: Annotated[
        int, typer.Option(min=0, help="Pairs of each image and caption that are matched; 0 for the cosine alone.")
    ] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model at once.")] = 16,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write a JSON file.")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Evaluate image-text retrieval on Flickr30k or COCO: R@1, R@5 and R@10 in both directions."""
    from .evaluate_retrieval import run_evaluate_retrieval

    options = (split, image_root, k_test, batch_size, output, device, dtype)
    run_evaluate_retrieval(dataset, data_root, model, *options)


@app.command()
def capfilt(
    source: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Tar archives; or a folder of images with texts; or a file of rows with image and caption.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the result.")] = None,
    filter_model: Annotated[
        str | None, typer.Option("--filter", metavar="MODEL", help="Folder or Hub id of a BLIP-2 for retrieval.")
    ] = None,
    captioner: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder or Hub id of what makes captions; by default none are made."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help='What captions go on from: "a photo of" for BLIP-2 by default.')
    ] = None,
    sampled: Annotated[int, typer.Option(min=0, help="Captions an image by nucleus sampling.")] = 10,
    beam: Annotated[int, typer.Option(min=0, help="Captions an image by beam search.")] = 0,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; as many as --beam at least.")] = 3,
    top_p: Annotated[float, typer.Option(help="Of nucleus sampling.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption, in tokens.")] = 30,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Shortest caption, in tokens.")] = 0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    rank_by: Annotated[
        str, typer.Option(help="itm, the matching head's probability, or itc, the cosine of image and text.")
    ] = "itm",
    min_itm: Annotated[float | None, typer.Option(help="Least probability of a text that is kept.")] = None,
    min_itc: Annotated[float | None, typer.Option(help="Least cosine of a text that is kept.")] = None,
    top_k: Annotated[
        int, typer.Option(min=0, help="Most texts of an image that are kept; 0 for all, which puts them in order.")
    ] = 2,
    form: Annotated[
        str | None, typer.Option("--format", help="jsonl or tar; by default tar for archives, and jsonl otherwise.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="The folder that image paths of a file are relative to; the file's by default.")
    ] = None,
    rows_per_shard: Annotated[
        int, typer.Option(min=1, help="Rows that are finished together; what a kill can cost.")
    ] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the models at once.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images while the models work.")] = 2,
    skip_bad_rows: Annotated[
        int, typer.Option(metavar="N", min=0, help="Leave out up to N rows that cannot be read.")
    ] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Start so many processes, each with its share of the rows.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make captions for images from the web, and keep the texts that fit. After a kill, the same command goes on."""
    from .capfilt import launch_capfilt, run_capfilt

    if processes is not None:
        launch_capfilt(processes, sys.argv[1:])
        return
    if not source or output is None or filter_model is None:
        fail("capfilt needs what to read, --output and --filter: capfilt web/*.tar --filter MODEL --output OUT")
    captions: dict[str, Any] = {
        "prompt": prompt,
        "sampled": sampled,
        "beam": beam,
        "num_beams": num_beams,
        "top_p": top_p,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "seed": seed,
    }
    kept: dict[str, Any] = {"rank_by": rank_by, "min_itm": min_itm, "min_itc": min_itc, "top_k": top_k or None}
    work: dict[str, Any] = {
        "form": form,
        "rows_per_shard": rows_per_shard,
        "batch_size": batch_size,
        "workers": workers,
        "skip_bad_rows": skip_bad_rows,
    }
    run_capfilt(source, output, filter_model, captioner, image_root, captions, kept, work, device, dtype)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: training.max_steps=10.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the trained model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    skip_bad_rows: Annotated[
        int | None,
        typer.Option("--skip-bad-rows", metavar="N", min=0, help="Leave out up to N rows that cannot be read."),
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="Show the shipped recipes and leave.")] = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="Show the recipe, what it extends and --set merged into it, and leave.")
    ] = False,
    launch: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG", help="On several processes: ddp, fsdp2, zero2, zero3, or a file of accelerate's."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="How many processes --launch starts; one a GPU by default.")
    ] = None,
) -> None:
    """Train what a recipe says."""
    from .train import launch_train, print_recipe, run_train, show_recipes

    if list_recipes:
        show_recipes()
    elif launch is not None or processes is not None:
        launch_train(launch, processes, sys.argv[1:])
    elif print_only:
        print_recipe(recipe, changes or [])
    else:
        run_train(recipe, changes or [], output, resume, skip_bad_rows)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, as with train.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Find the largest batch for so much, like 80GiB; the GPU's by default.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of text before an answer; the recipe's most by default.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer; the recipe's most by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="Whose mixed precision is counted: cuda or cpu.")] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object.")] = False,
) -> None:
    """Say what a recipe needs, by part: parameters, bytes, the largest batch. Nothing is loaded but configurations."""
    from .plan import run_plan

    run_plan(recipe, changes or [], memory, prompt_tokens, answer_tokens, device, as_json)


@app.command()
def features(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, as with train.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the features; data.image_features by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the tower at once.")] = 32,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that will train; by default as many as compute features.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also read all features that are there, and compute damaged ones anew.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on where the disk has no room for all.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much there is to compute, and leave.")] = False,
) -> None:
    """Compute the image features of a frozen vision tower once, for all images that a recipe will draw."""
    from .features import run_features

    run_features(recipe, changes or [], output, batch_size, processes, check, force, dry_run)


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder or Hub id of an adapter that train saved.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Folder or Hub id of its base; what the adapter names by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: of the merged weights.")] = "float32",
) -> None:
    """Add a LoRA adapter to the model it was trained on, and save the sum as a model."""
    from .merge import run_merge

    run_merge(adapter, output, base, dtype)


@app.command()
def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="LAVIS files, the checkpoint first; one folder of a model; or one folder of LLaVA's own code.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder; or a new .pth, for a file in LAVIS's layout.")
    ],
    llm: Annotated[Path | None, typer.Option(help="Folder of the language model that the files do not hold.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the language model's tokenizer; by default that of --llm.")
    ] = None,
    qformer_tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the Q-Former's tokenizer, bert-base-uncased.")
    ] = None,
    processor: Annotated[
        Path | None, typer.Option(help="Folder of a processor to take as it is, in place of both tokenizers.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="instructblip, instructblip-without-text, blip-2, blip-2-retrieval or blip-2-pretraining; by default "
            "what the tensors make."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Folder with the model's config.json, in place of reading it off the tensors.")
    ] = None,
    vision_heads: Annotated[int, typer.Option(min=1, help="Attention heads of the vision tower.")] = 16,
    qformer_heads: Annotated[int, typer.Option(min=1, help="Attention heads of the Q-Former.")] = 12,
    vision_layers: Annotated[
        int | None, typer.Option(min=1, help="How many blocks of eva_vit_g.pth are used; 39 by default.")
    ] = None,
    image_token_id: Annotated[
        int | None, typer.Option(min=0, help="Token id of the image placeholder; the tokenizer's, or a new one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default as in the files.")
    ] = None,
    trimmed: Annotated[
        bool, typer.Option("--trimmed", help="For LAVIS: without vision tower and language model.")
    ] = False,
    vocabulary_rows: Annotated[
        int | None, typer.Option(min=1, help="For LAVIS: tokens of its language model; Vicuna's has 32001.")
    ] = None,
    drop_key_bias: Annotated[
        bool,
        typer.Option("--drop-key-bias", help="For LAVIS: leave out the vision tower's key bias; it has no effect."),
    ] = False,
    vision_tower: Annotated[
        Path | None, typer.Option(help="For LLaVA: folder of the vision tower, where its own does not hold it.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="For LLaVA: the conversation it was trained on, v1 by default.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="A new JSON file that tells of every tensor.")] = None,
) -> None:
    """Convert checkpoints of LAVIS and of LLaVA's own code to folders in transformers' layout, and back for LAVIS."""
    from .convert import run_convert

    to_folder: dict[str, Any] = {
        "kind": kind,
        "llm": llm,
        "tokenizer": tokenizer,
        "qformer_tokenizer": qformer_tokenizer,
        "processor": processor,
        "config": config,
        "vision_layers": vision_layers,
        "image_token_id": image_token_id,
        "dtype": dtype,
    }
    to_lavis = {"trimmed": trimmed, "vocabulary_rows": vocabulary_rows, "drop_key_bias": drop_key_bias}
    llava: dict[str, Any] = {"vision_tower": vision_tower, "chat_template": chat_template}
    run_convert(sources, output, report, (vision_heads, qformer_heads), to_folder, to_lavis, llava)


app.command(name="generate-data")(generate_data)
app.command()(judge)
app.command(name="evaluate-scienceqa")(evaluate_scienceqa)
app.add_typer(data_app)
