"""`lm-env evaluate`: a model that was trained elsewhere, measured as the agents of a benchmark are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_env.cli.options import Device, Download, Env, EnvOption, Seed, TaskArgument, named_task

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str, typer.Option(help="A folder in transformers' layout, a hub id, or 'reviews-3m'.")],
    task: TaskArgument = None,
    env: Env = None,
    label: Annotated[
        str | None, typer.Option(help="The model's name in the table.  [default: the folder's name]")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The model that KL and perplexity are measured against.  [default: the task's]")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Test prompts at most.", min=1)] = 128,
    texts: Annotated[int, typer.Option(help="Texts in all.", min=1)] = 512,
    ceiling: Annotated[
        bool, typer.Option("--ceiling/--no-ceiling", help="Estimate the optimum, for the attained share.")
    ] = True,
    ceiling_texts: Annotated[
        int, typer.Option(help="Texts of the reference, from which the optimum is estimated, at most.", min=2)
    ] = 8192,
    env_option: EnvOption = None,
    eos_token_id: Annotated[
        list[str] | None,
        typer.Option(
            help="An id that ends a text; may be given several times.  'none': the length cap alone ends texts. "
            " [default: the tokenizer's]"
        ),
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option(help="Another reward, which the model was not trained on; as --reward of lm-env train."),
    ] = None,
    independent: Annotated[
        str | None, typer.Option(help="A language model that took no part, for a perplexity of its own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Add the records to this file of JSON lines, for lm-env leaderboard.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write README.md, a model card, into the model's folder.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    download: Download = False,
) -> None:
    """Measure any model on a task's test prompts: score, KL, attained share, success, diversity, length.

    The texts are sampled as those of the agents in lm-env bench are, so that the rows can stand side by side.
    """
    import sys

    import torch

    from lm_env.benchmark.measures.baselines import BASELINE_NAMES
    from lm_env.benchmark.records import options_in_words, read_records, write_lines
    from lm_env.benchmark.results import CARD, as_markdown, check_card, summarize_records, write_card
    from lm_env.benchmark.trained_elsewhere import evaluate_model
    from lm_env.errors import ConfigurationError
    from lm_env.runs.config_files import named_values
    from lm_env.runs.console import say
    from lm_env.runs.judges import make_judge
    from lm_env.storage import check_file_destination

    if (named := named_task(task, env)) is None:
        raise ConfigurationError("name the task that the model is measured on, such as lm_env/Sentiment-v0")
    if card and not Path(model).is_dir():
        raise ConfigurationError(f"--card writes into the model's folder, and {model} is none: leave it out")
    if (name := label or Path(model).name) in BASELINE_NAMES:
        raise ConfigurationError(f"every task has a row {name} without training: give the model another name (--label)")
    if card:
        check_card(Path(model))
        check_file_destination(Path(model) / CARD, "leave out --card")
    if out is not None:
        check_file_destination(out, "choose another --out")
    before = read_records(out) if out is not None and out.exists() else []
    records = evaluate_model(
        named,
        model,
        label=label,
        reference=reference,
        prompts=prompts,
        texts=texts,
        ceiling_samples=32 if ceiling else None,
        ceiling_texts=ceiling_texts,
        gold=None if gold is None else make_judge(gold, device=device, download=download),
        independent=independent,
        seed=seed,
        device=device,
        download=download,
        threads=torch.get_num_threads(),
        progress=sys.stderr.isatty(),
        eos_token_id=_ids(eos_token_id),
        **named_values(env_option or ()),
    )
    options = options_in_words(records[-1])
    title = f"{records[-1]['agent']} on {records[-1]['task']}{f' ({options})' if options else ''}"
    print(as_markdown(summarize_records(records), title=title))
    if "kl" not in records[-1]["metrics"]:
        say("", "KL, J and perplexity are left out: the reference has another vocabulary; --reference names another")
    if out is not None:
        write_lines(out, [*before, *records])
        say("written", str(out))
    if card:
        say("written", str(write_card(Path(model), records[-1], records)))


def _ids(given: list[str] | None) -> list[int] | None:
    """The ids that end a text; None where nothing was given, [] for 'none'.

    Raises:
        ConfigurationError: one is no integer.
    """
    from lm_env.errors import ConfigurationError

    if not given or given == ["none"]:
        return None if not given else []
    if wrong := next((text for text in given if not text.isdecimal()), None):
        raise ConfigurationError(f"--eos-token-id takes the ids of tokens, or none, not {wrong!r}")
    return [int(text) for text in given]
