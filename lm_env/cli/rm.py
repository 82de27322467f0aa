"""`lm-env rm`: train reward models on human preferences, and find out whether they deserve trust."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["rm_app"]

rm_app = typer.Typer(
    help="Train reward models on human preferences, and find out whether they deserve trust.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

DATA = "A file of preferences (.jsonl, .json, .csv, .tsv, .parquet), or a hub id; see `lm-env prefs formats`."
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
        typer.Option(help="pairwise, plackett-luce, best-of or regression.  [default: what the data allow]"),
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
    max_length: Annotated[int | None, typer.Option(help="Tokens read of a text.  [default: all positions]")] = None,
    ensemble: Annotated[int, typer.Option(help="Reward models to train and put together.", min=1)] = 1,
    combine: Annotated[str, typer.Option(help="Of an ensemble: mean, lowest or uncertainty.")] = "mean",
    format: FormatOption = None,
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Device = None,
    download: DownloadOption = False,
) -> None:
    """Train a reward model on human preferences; the folder is what `reward=` of an environment takes.

    Prompts are held out, the scores are normalized to mean 0 and standard deviation 1, and the records held out are
    saved in the folder, where `lm-env rm evaluate` finds them.
    """
    from lm_env.cli.report import say
    from lm_env.storage import check_destination
    from reward_models.preferences.reading import read_preferences
    from reward_models.preferences.recipe import Recipe, train_from_preferences

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
        max_length=max_length,
        ensemble=ensemble,
        combine=combine,  # type: ignore[arg-type]
        seed=seed,
        device=device,
        download=download,
    )
    records = read_preferences(data, format=format, skip_bad=skip_bad, download=download)
    skipped = f", {len(records.problems)} broken rows skipped" if records.problems else ""
    say("preferences", f"{len(records):,} records of {data} ({records.format}){skipped}")
    say("reward model", f"{model}, {trunk}")
    trained = train_from_preferences(records, recipe, say=lambda text: say("", text), bar=sys.stderr.isatty())
    for report in trained.reports:
        say("", _sentence(report))
    trained.save(out)
    say("", f"the reward model is in {out}: reward_models.load_reward({str(out)!r}) is a reward function")
    if trained.held_out:
        say("", f"does it deserve trust?  lm-env rm evaluate {out}")


def _sentence(report: Any) -> str:
    parts = [f"{len(report.losses)} updates of {report.objective}"]
    if report.held_out_loss is not None:
        parts.append(f"held-out loss {report.held_out_loss:.4f}")
    if report.held_out_accuracy is not None:
        parts.append(f"held-out accuracy {report.held_out_accuracy:.3f}, on the training records")
        parts[-1] += f" {report.train_accuracy:.3f}"
    return "; ".join(parts)
