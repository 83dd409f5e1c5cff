"""`instructblip train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import fail, stopping_errors, user_errors
from .launching import become_launched, without_options
from .loading import reach_hub


def show_recipes() -> None:
    """Names of the shipped recipes, each with its first comment line that says what it is."""
    from ..training.recipe_file import SHIPPED_RECIPES, shipped_recipes

    for name in shipped_recipes():
        lines = (SHIPPED_RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
        print(f"{name}  {comments[1] if len(comments) > 1 else ''}")


def print_recipe(recipe: str | None, changes: Sequence[str]) -> None:
    """Shows the recipe with what it extends and the changes merged into it. Nothing is checked or loaded."""
    from ..training.recipe_file import apply_overrides, read_recipe

    recipe = _given(recipe)
    with user_errors():
        file = read_recipe(recipe)
    problems = apply_overrides(file.content, changes)
    if problems:
        fail(*problems)
    print(file.to_yaml())


def _given(recipe: str | None) -> str:
    from ..training.recipe_file import shipped_recipes

    if recipe is None:
        fail(f"no recipe given; name a YAML file, or a shipped one: {', '.join(shipped_recipes())}")
    return recipe


def launch_train(config: str | None, processes: int | None, arguments: Sequence[str]) -> None:
    """Starts the same command on several processes with accelerate, and becomes it.

    Args:
        config (`str`, *optional*): A shipped configuration of accelerate, or a file; needed.
        processes (`int`, *optional*): How many; one a GPU by default.
        arguments (`Sequence[str]`): All of the command line, ``train`` first.
    """
    from ..training.launch import launch_configs

    if config is None:
        fail(f"--processes goes with --launch, which takes {', '.join(launch_configs())} or a file of accelerate's")
    become_launched(config, processes, without_options(arguments, "--launch", "--processes"))


def run_train(
    recipe: str | None,
    changes: Sequence[str],
    output: Path | None,
    resume: bool,
    skip_bad_rows: int | None = None,
) -> None:
    """Checks the recipe, trains, and says where the model is."""
    from ..evaluation.tasks import eval_task
    from ..training.recipe import load_recipe
    from .evaluate import task_names

    recipe = _given(recipe)
    if skip_bad_rows is not None:
        changes = [*changes, f"data.skip_bad_rows={skip_bad_rows}"]
    with user_errors():
        checked = load_recipe(recipe, changes)
        # Names of tasks, and groups of them.
        tasks = task_names(",".join(checked.evaluation.tasks)) if checked.evaluation is not None else []
        for name in tasks:
            eval_task(name)

        for source in checked.model.sources:
            if not Path(source).is_dir():
                reach_hub(source)

        from ..training.run import prepare_run

        run = prepare_run(checked, output, resume)
        if checked.evaluation is not None:
            from ..evaluation.callback import EvaluationCallback
            from ..evaluation.runner import EvaluationOptions

            options = EvaluationOptions(batch_size=checked.evaluation.batch_size, limit=checked.evaluation.limit)
            run.trainer.add_callback(EvaluationCallback(run.trainer, tasks, checked.evaluation.root, options))
    # Of several processes one speaks.
    say: Callable[..., None] = print if run.trainer.is_world_process_zero() else _say_nothing
    say(f"recipe {checked.path}\noutput {run.output_dir}")
    if run.checkpoint is not None:
        say(f"going on from {run.checkpoint}")
    elif resume:
        say("no checkpoint there yet, starting from the beginning")
    say(f"\n{run.trainer.freezing_report}\n", flush=True)
    with stopping_errors():
        result = run.run()
    say()
    if "train_loss" in result.train_metrics:
        say(f"train loss {result.train_metrics['train_loss']:.4f}")
    if result.eval_metrics:
        say(f"eval loss  {result.eval_metrics['eval_loss']:.4f}")
    for name in tasks:
        if f"eval_{name}" in result.eval_metrics:
            say(f"{name:10} {result.eval_metrics[f'eval_{name}']:.4f}")
    left_out = run.trainer.bad_rows.summary()
    if left_out is not None:
        say(f"bad rows   {left_out}")
    say(f"saved to   {result.output_dir}")
    uses = (
        'instructblip ask IMAGE "question"' if hasattr(run.trainer.model, "generate") else "instructblip index IMAGES"
    )
    say(f"try it:    {uses} --model {result.output_dir}")


def _say_nothing(*_: object, **__: object) -> None:
    """In the place of `print`."""
