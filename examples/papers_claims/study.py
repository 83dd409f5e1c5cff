"""The claims of the InstructBLIP paper (arXiv 2305.06500), repeated in miniature on the shapes world.

    python examples/papers_claims/study.py --output runs/claims --jobs 2

trains some dozens of tiny models, measures them, and writes ``report.md``, ``papers_claims.png`` and
``papers_claims_balance.png``. Every finished run leaves a file, so that the same command goes on with what is missing.
``--quick`` does all of it at a size that says nothing.

The design, fixed before the first result was looked at
--------------------------------------------------------
Model. Vision tower and language model of ``instructblip-shapes-tiny-pretrained`` stay frozen throughout, as in the paper.
    Q-Former, queries and projection start from new random weights for each seed.
Stage 0, in the place of BLIP-2. The Q-Former learns on captions alone, with no text, that is the generative pre-training
    of BLIP-2's second stage. (The language model was pre-trained beside another Q-Former, on all tasks but the novel
    ones: like the paper's, it knows how to answer questions; unlike the paper's, it has seen most of these wordings.)
Tuning. From there, with `VisionLanguageTrainer` on a `Mixture` of nine held-in tasks of 60 to 8,000 rows. The default arm
    is the paper's: instructions, square-root balance, instruction-aware Q-Former. Each other arm changes one thing: the
    Q-Former does not read the instruction; balance uniform, or by size; plain inputs, or plain inputs with an identifier.
    All arms of a seed share initial weights, rows, steps, batch size and learning rate. The same default arm is one side
    of claims 1, 2, 3 and 5 and the start of claim 4.
Held-out tasks. Three that are withheld from tuning but known to the language model, and four that nothing was trained on.
Finetuning. On 128 rows of one task, from the tuned and from the captions-only model of the same seed: a novel task, a
    withheld one and one that was held in.
Measure. Exact match on 200 questions a task about scenes that nobody trains on, the same for all models, asked in
    instructions unless said otherwise; the mean over tasks.
Sizes. One pilot, of the default arm alone with a seed that is not the study's and with batches of 64, showed that 500 steps
    teach it something; steps and batches were then cut to what an hour on one busy core holds. Three seeds were planned, two
    more were added by the clock, before a result was read.
Verdicts. By intervals of 95 % of the paired differences over seeds, see ``claim_statistics.py``.

Not in it: the paper's sizes, its choice of the best checkpoint (here it is the last), dialogues, and the stages before
BLIP-2's second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")  # of every job; more of them share the machine better

from claim_design import QUICK, Design, Run, plan
from claim_plots import plot
from claim_report import report
from claim_rows import POOL_SEED, TEST_SEED, ScenePool
from claim_runs import CHECKPOINT, execute, load, write_json
from claim_statistics import MAX_SEEDS, Results

from instructblip_hf import InstructBlipProcessor, bundled_checkpoint


def check_design(design: Design, output: Path) -> None:
    """Keeps the design beside its results, and refuses to mix results of two designs.

    Raises:
        ValueError: If the folder has results of another design.
    """
    path = output / "design.json"
    said = json.loads(json.dumps(asdict(design)))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        # Seeds are independent of each other: more of them may be added.
        changed = [name for name in said if name != "seeds" and before.get(name) != said[name]]
        if changed:
            names = ", ".join(f"{name} was {before.get(name)}, now {said[name]}" for name in changed)
            raise ValueError(f"{output} has results of another design ({names}): name another --output")
    write_json(path, said)


def prepare_pools(design: Design, output: Path) -> None:
    """Computes the vision tower's features of all scenes, unless they are there."""
    folder = bundled_checkpoint(CHECKPOINT)
    model, processor = load(folder), InstructBlipProcessor.from_pretrained(folder)
    ScenePool.open(output / "pool.safetensors", design.scenes, POOL_SEED, model, processor)
    ScenePool.open(output / "test_pool.safetensors", design.test_scenes, TEST_SEED, model, processor)


def run_all(design: Design, output: Path, jobs: int) -> None:
    """Does the runs that have left no file."""
    runs = plan(design)
    done = {run for run in runs if (output / "results" / f"{run.name}.json").is_file()}
    print(f"{len(runs)} runs, {len(done)} of them done before", flush=True)
    waiting = [run for run in runs if run not in done]
    if jobs == 1:
        for run in waiting:
            print(
                f"[{len(done) + 1}/{len(runs)}] {run.name}: {execute(run, design, output):.0f} CPU seconds", flush=True
            )
            done.add(run)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[float], Run] = {}
        while waiting or running:
            ready = [run for run in waiting if run.start is None or run.start in done]
            for run in ready[: jobs - len(running)]:
                waiting.remove(run)
                running[pool.submit(execute, run, design, output)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                print(f"[{len(done) + 1}/{len(runs)}] {run.name}: {future.result():.0f} CPU seconds", flush=True)
                done.add(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for results, report and pictures")
    parser.add_argument("--seeds", type=int, help=f"how many, 2 to {MAX_SEEDS}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on one core")
    parser.add_argument("--quick", action="store_true", help="everything at a size that says nothing")
    args = parser.parse_args()

    design = QUICK if args.quick else Design()
    if args.seeds is not None:
        if not 2 <= args.seeds <= MAX_SEEDS:
            parser.error(f"--seeds is {args.seeds}; it must be 2 to {MAX_SEEDS}")
        design = replace(design, seeds=tuple(range(args.seeds)))
    started = time.time()
    check_design(design, args.output)
    prepare_pools(design, args.output)
    run_all(design, args.output, args.jobs)
    results = Results(args.output, design)
    text = report(results)
    (args.output / "report.md").write_text(text, encoding="utf-8")
    pictures = plot(results, args.output)
    print(f"\n{text}\nreport    {args.output / 'report.md'}")
    for path in pictures:
        print(f"picture   {path}")
    print(f"{(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
