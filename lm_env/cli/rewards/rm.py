"""`lm-env rm`: train reward models on human preferences, find out whether they deserve trust, and serve them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lm_env.cli.options import Resume, Seed
from lm_env.cli.rewards import serve

__all__ = ["rm_app"]

rm_app = typer.Typer(
    help="Train reward models on human preferences, find out whether they deserve trust, and serve them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

DATA = "A file of preferences (.jsonl, .json, .csv, .tsv, .parquet), or a hub id; see `lm-env prefs formats`."
FEW_UPDATES = 10
"""A training with fewer updates has hardly changed the model."""
FormatOption = Annotated[
    str | None, typer.Option("--format", help="Format of the file.  [default: recognized by its columns]")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: CUDA, where there is one]")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Allow fetching hub ids.")]
PairRatings = Annotated[
    float | None,
    typer.Option(help="Compare single rated responses of a prompt whose ratings differ by at least this much."),
]


@rm_app.command()
def train(
    data: Annotated[str, typer.Argument(help=DATA)],
    out: Annotated[Path, typer.Option(help="Folder for the reward model.")] = Path("runs/rm"),
    model: Annotated[str, typer.Option(help="A causal LM or an encoder: 'reviews-3m', a folder, a hub id.")] = (
        "reviews-3m"
    ),
    trunk: Annotated[str, typer.Option(help="What is trained besides the head: full, lora or frozen.")] = "full",
    objective: Annotated[
        str | None,
        typer.Option(
            help="pairwise, plackett-luce, best-of, regression, or spans: what is marked in the texts, paid segment by"
            " segment.  [default: what the data allow]"
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes.  [default: full 1, lora 3, frozen 30]", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per update.", min=1)] = 64,
    learning_rate: Annotated[float | None, typer.Option(help="Of the trunk.  [default: by its size]")] = None,
    held_out_fraction: Annotated[float, typer.Option(help="Share of the prompts kept for the evaluation.")] = 0.1,
    pair_ratings: PairRatings = None,
    ties: Annotated[bool, typer.Option("--ties/--drop-ties", help="A tie counts as half a win, or not at all.")] = True,
    margins: Annotated[bool, typer.Option("--margins", help="Use the margins that the data hold.")] = False,
    template: Annotated[
        str, typer.Option(help="What is shown before the response: {prompt}, and any column of the data.")
    ] = "{prompt}",
    pooling: Annotated[
        str | None,
        typer.Option(help="Which state of a text is scored: 'last' or 'mean'; of an encoder, 'mean' or 'first'."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens read of a text.  [default: all positions]")] = None,
    ensemble: Annotated[int, typer.Option(help="Reward models to train and put together.", min=1)] = 1,
    combine: Annotated[str, typer.Option(help="Of an ensemble: mean, lowest or uncertainty.")] = "mean",
    resume: Resume = False,
    format: FormatOption = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = None,
    download: DownloadOption = False,
) -> None:
    """Train a reward model on human preferences; the folder is what `reward=` of an environment takes.

    Prompts are held out, the scores are normalized to mean 0 and standard deviation 1, and the records held out are
    saved in the folder, where `lm-env rm evaluate` finds them.
    """
    from lm_env.runs.console import say, speaks_and_writes
    from lm_env.runs.folder import check_new
    from lm_env.storage import check_destination
    from reward_models.preferences.reading import read_preferences
    from reward_models.preferences.recipe import Recipe

    writes = speaks_and_writes()
    if writes:
        check_destination(out)
    recipe = Recipe(
        model=model,
        trunk=trunk,  # type: ignore[arg-type]
        objective=objective,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        held_out_fraction=held_out_fraction,
        pair_ratings=pair_ratings,
        drop_ties=not ties,
        use_margins=margins,
        template=template,
        pooling=pooling,  # type: ignore[arg-type]
        max_length=max_length,
        ensemble=ensemble,
        combine=combine,  # type: ignore[arg-type]
        seed=seed,
        device=device,
        download=download,
    )
    if writes:
        check_new(out)
    records = read_preferences(data, format=format, skip_bad=skip_bad, download=download)
    say("preferences", records.description(data, template))
    say("reward model", f"{model}, {trunk}")
    work = _train_on_marks if objective == "spans" else _train_on_comparisons
    work(records, recipe, out, resume)


def _train_on_comparisons(records: Any, recipe: Any, out: Path, resume: bool) -> None:
    """A reward model of comparisons, rankings or ratings, with the baselines that it is compared with."""
    from lm_env.cli.rewards.trust import fitted_baselines, held_out_sentence
    from lm_env.runs.console import say, speaks_and_writes
    from reward_models.preferences.recipe import remove_training_checkpoints, train_from_preferences

    unfinished = out.with_name(f"{out.name}.unfinished")
    trained = train_from_preferences(
        records,
        recipe,
        say=lambda text: say("", text),
        bar=sys.stderr.isatty(),
        checkpoints=unfinished,
        resume=resume,
    )
    if not speaks_and_writes():
        return
    for report in trained.reports:
        say("", _sentence(report))
    baselines = fitted_baselines(trained)
    if sentence := held_out_sentence(trained, baselines):
        say("", f"accuracy on what was held out: {sentence}")
    trained.save(out, also=None if baselines is None else baselines.save)
    remove_training_checkpoints(unfinished)
    say("", f"the reward model is in {out}: reward_models.load_reward({str(out)!r}) is a reward function")
    if trained.held_out:
        say("", f"does it deserve trust?  lm-env rm evaluate {out}")


def _train_on_marks(records: Any, recipe: Any, out: Path, resume: bool) -> None:
    """A reward model of marked spans."""
    from lm_env.runs.console import say, speaks_and_writes
    from reward_models.preferences.marked import train_on_marks
    from reward_models.preferences.recipe import remove_training_checkpoints

    unfinished = out.with_name(f"{out.name}.unfinished")
    model, report = train_on_marks(records, recipe, bar=sys.stderr.isatty(), checkpoints=unfinished, resume=resume)
    if not speaks_and_writes():
        return
    say("", f"{len(report.losses)} updates on {report.training:,} marked texts, {report.held_out:,} held out")
    for share in report.shares:
        say(
            "",
            f"{share.kind}: {share.marked:,} of {share.segments:,} segments held out; a marked one ranks below an"
            f" unmarked one in {share.ranked:.3f} of cases (words alone {share.by_words:.3f}, length alone"
            f" {share.by_length:.3f}, chance .5)",
        )
    model.save(out)
    remove_training_checkpoints(unfinished)
    say("", f"the reward model is in {out}: reward_models.load_reward({str(out)!r}) pays each segment at its end")


def _sentence(report: Any) -> str:
    updates = len(report.losses)
    few = (
        " (few: more --epochs or a smaller --batch-size make more)"
        if updates < FEW_UPDATES and not report.history
        else ""
    )
    parts = [f"{updates} update{'s' if updates != 1 else ''} of {report.objective}{few}"]
    if report.train_accuracy is not None:
        parts.append(f"accuracy on the training records {report.train_accuracy:.3f}")
    if report.held_out_loss is not None:
        parts.append(f"loss {report.held_out_loss:.4f} on the tenth of them that decided when to stop")
    return "; ".join(parts)


@rm_app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder of `lm-env rm train`, or any classifier's folder or hub id.")],
    data: Annotated[str | None, typer.Argument(help=DATA + "  [default: what `rm train` held out]")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write.  [default: FOLDER-trust.html]")] = None,
    training: Annotated[
        str | None, typer.Option(help="The data that it was trained on: draws the learning curve by training anew.")
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option(
            help="'lexicon', 'package.module:function', ...: what best-of-n by the reward model is judged by."
        ),
    ] = None,
    policy: Annotated[str, typer.Option(help="The language model whose samples best-of-n chooses from.")] = (
        "reviews-3m"
    ),
    prompts: Annotated[str | None, typer.Option(help="Prompts for it.  [default: openings of film reviews]")] = None,
    samples: Annotated[
        int,
        typer.Option(help="Samples for each of 64 prompts, 32 tokens at temperature 0.7; n goes up to this.", min=2),
    ] = 64,
    pair_ratings: PairRatings = None,
    format: FormatOption = None,
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seed: Seed = 0,
    device: Device = None,
    download: DownloadOption = False,
) -> None:
    """Evidence for and against a reward model: accuracy beside baselines, calibration, length, degenerate texts.

    Exit status 0 if nothing that was measured speaks against it, 3 if something does.
    """
    from lm_env.cli.rewards.trust import TrustOptions, run_evaluation

    trust = run_evaluation(
        TrustOptions(
            model=model,
            data=data,
            out=out,
            training=training,
            gold=gold,
            policy=policy,
            prompts=prompts,
            samples=samples,
            pair_ratings=pair_ratings,
            format=format,
            skip_bad=skip_bad,
            as_json=as_json,
            seed=seed,
            device=device,
            download=download,
        )
    )
    raise typer.Exit(3 if trust.doubts() else 0)


rm_app.command()(serve)
