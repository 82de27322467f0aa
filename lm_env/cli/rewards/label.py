"""`lm-env label`: judge responses on a local page, and write the judgements as records."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from typer.core import TyperGroup

from lm_env.cli.options import Device, Download, Prompts, Seed

if TYPE_CHECKING:
    from reward_models.labelling import LabelStore

__all__ = ["label_app"]

STORES = (".sqlite", ".sqlite3", ".db")


class _ServeByDefault(TyperGroup):
    """`lm-env label FILE` is `lm-env label serve FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["serve", *args]
        return super().parse_args(ctx, args)


label_app = typer.Typer(
    cls=_ServeByDefault,
    help="Judge responses on a local page: `lm-env label MODEL_OR_FILE`, which is short for `lm-env label serve"
    " MODEL_OR_FILE`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Labels = Annotated[Path, typer.Argument(help="The file of labels.")]


@label_app.command()
def serve(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_FILE",
            help="A file of preferences or of responses without a judgement (.jsonl, .json, .csv, .tsv, .parquet); a"
            " model, of which responses are sampled; or a file of labels (.sqlite), to go on with it.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file of labels; one that is there is gone on with.")] = Path(
        "labels.sqlite"
    ),
    per_item: Annotated[int, typer.Option(help="Annotators who answer each question.", min=1)] = 1,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Ask for pairs of the responses to a prompt, not for a ranking of all.")
    ] = False,
    order: Annotated[
        str, typer.Option(help="information: the question whose answer tells most comes next; or random.")
    ] = "information",
    span_types: Annotated[
        str, typer.Option(help="Kinds of spans to mark in responses, by commas: 'irrelevant,not factual'.")
    ] = "",
    show: Annotated[str, typer.Option(help="Columns of the data to show below the prompt, by commas.")] = "",
    annotators: Annotated[str, typer.Option(help="Who may answer, by commas.  [default: whoever gives a name]")] = "",
    instruction: Annotated[str, typer.Option(help="The sentence above each question.")] = "Which response is better?",
    prompts: Prompts = None,
    responses: Annotated[int, typer.Option(help="Of a model: responses to each prompt.", min=2)] = 2,
    new_tokens: Annotated[int, typer.Option(help="Of a model: length cap of a response, tokens.", min=1)] = 48,
    temperature: Annotated[float, typer.Option(help="Of a model: divides the logits.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts or rows.", min=1)] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Format of the file.  [default: recognized by its columns]")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own see no page.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8765,
    seed: Seed = 0,
    device: Device = "cpu",
    download: Download = False,
) -> None:
    """Show prompts and responses on a local page and keep each answer in a file at once.

    Stop it with Ctrl-C and start it again with the same command: the same questions are there, and what was answered
    is not asked again.  `lm-env label export` writes the answers as records that `lm-env rm train` takes.
    """
    from lm_env.runs.console import say
    from reward_models.labelling import QuestionChooser
    from reward_models.labelling.app import CONNECTIONS, LOOPBACK, kept_token, make_app
    from reward_models.labelling.page import LabellingSession, PageSettings, checked_name
    from reward_models.serving.running import RunningApplication

    settings = PageSettings(
        instruction, _listed(span_types), _listed(show), tuple(map(checked_name, _listed(annotators)))
    )
    store = _opened(what, out, per_item=per_item, pairs=pairs)
    sampling = {
        "prompts": prompts,
        "responses": responses,
        "new_tokens": new_tokens,
        "temperature": temperature,
        "seed": seed,
        "device": device,
    }
    reading = {"format": format, "skip_bad": skip_bad}
    _fill(store, what, reading, sampling, limit, download)
    chooser = QuestionChooser(store, order, seed)
    session = LabellingSession(store, chooser, settings)
    hosts = LOOPBACK if host in LOOPBACK else (*LOOPBACK, f"[{host}]" if ":" in host else host)
    app = make_app(session, token := kept_token(store.path), hosts=hosts)
    server = RunningApplication(host, port)
    server.accept()
    done, asked = store.progress()
    say("labels", f"{store.path}: {done:,} of {asked:,} questions are answered by {per_item} annotator(s)")
    address = f"{server.url}/#token={token}"
    say("page", address)
    for name in settings.annotators:
        say("", f"{name}: {address}&annotator={quote(name)}")
    if host not in LOOPBACK:
        say("", "the page is not encrypted: whoever sees the traffic to it can read and write labels")
    say("", "stop with Ctrl-C; every answer is on the disk as soon as it is given")
    sys.stdout.flush()
    with suppress(KeyboardInterrupt):
        server.run(app, connections=CONNECTIONS)
    answers = len(store.answers())
    store.close()
    say("labels", f"{answers:,} answers are in {store.path}; to write them as records:")
    say("", f"lm-env label export {store.path} labels.jsonl")


@label_app.command()
def export(
    labels: Labels,
    out: Annotated[Path, typer.Argument(help="A .jsonl, .csv or .parquet file to write.")],
    to: Annotated[str, typer.Option(help="Format to write; 'rankings' holds everything.")] = "rankings",
    merge: Annotated[
        bool, typer.Option("--merge", help="One record for each pair: what is most probable given all annotators.")
    ] = False,
    annotator: Annotated[str | None, typer.Option(help="Only the answers of this one.")] = None,
) -> None:
    """Write the answers as records of preferences, which `lm-env rm train` takes; skips are left out."""
    from lm_env.runs.console import say
    from reward_models.labelling import LabelStore, export_labels

    store = LabelStore(labels, create=False)
    count = export_labels(store, out, format=to, merge=merge, annotator=annotator)
    store.close()
    say("records", f"{count:,} records of {labels} are in {out} as {to}")
    say("", f"lm-env rm train {out}")


@label_app.command()
def report(
    labels: Labels,
    per_item: Annotated[int, typer.Option(help="Annotators who answer each question.", min=1)] = 1,
    pairs: Annotated[bool, typer.Option("--pairs", help="The questions are pairs of responses.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How many questions are answered, how well annotators agree, and how reliable each one is."""
    import json

    from reward_models.labelling import LabelStore, survey

    store = LabelStore(labels, create=False, per_item=per_item, pairs=pairs)
    found = survey(store)
    store.close()
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        _show(found)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _opened(what: str, out: Path, *, per_item: int, pairs: bool) -> LabelStore:
    from reward_models.labelling import LabelStore

    if Path(what).suffix.lower() in STORES:
        return LabelStore(what, create=False, per_item=per_item, pairs=pairs)
    return LabelStore(out, per_item=per_item, pairs=pairs)


def _fill(
    store: LabelStore,
    what: str,
    reading: dict[str, Any],
    sampling: dict[str, Any],
    limit: int | None,
    download: bool,
) -> None:
    """Put into the store what it does not hold yet."""
    from lm_env.data.tables import TABLE_SUFFIXES
    from lm_env.runs.console import say
    from lm_env.runs.judges import default_prompts
    from reward_models.labelling import SampleSettings, add_samples, read_items

    suffix = Path(what).suffix.lower()
    if suffix in STORES:
        store.add([])
    elif suffix in (".jsonl", ".json", *TABLE_SUFFIXES):
        read = read_items(what, **reading, download=download, limit=limit)
        new = store.add(read.items)
        counts = {
            "repeat an earlier one": read.repeated,
            "have fewer than two different responses": read.too_few,
            "are broken": len(read.problems),
        }
        left_out = "".join(f"; {count:,} rows {why}" for why, count in counts.items() if count)
        say("items", f"{len(read.items):,} of {what}, {new:,} of them new{left_out}")
    else:
        prompts, device = sampling.pop("prompts"), sampling.pop("device")
        settings = SampleSettings(model=what, limit=limit, **sampling)
        new, alike = add_samples(store, default_prompts(prompts, "train"), settings, device=device, download=download)
        alike_too = f"; all responses to {alike} prompts are alike" if alike else ""
        say("items", f"{new:,} sampled from {what}{alike_too}" if new else f"those sampled from {what} before")


def _show(found: Any) -> None:
    from rich.table import Table

    from lm_env.runs.console import console

    print(
        f"{found.items:,} items, {found.questions:,} questions, {found.done:,} of them answered by {found.per_item}"
        f" annotator(s); {found.answers:,} answers"
    )
    if not found.annotators:
        return
    table = Table("annotator", "answers", "ties", "both bad", "skips", "seconds", "first preferred", "accuracy")
    for line in found.annotators:
        accuracy = "-" if line.accuracy is None else "{:.3f} ({:.3f} to {:.3f})".format(*line.accuracy)
        kinds = [str(line.choices.get(kind, 0)) for kind in ("tie", "bad", "skip")]
        first = "-" if line.shown_first is None else f"{line.shown_first.mean:.2f}"
        table.add_row(line.name, str(line.answers), *kinds, f"{line.seconds:.1f}", first, accuracy)
    console.print(table)
    agreement = found.agreement
    if agreement is None or not agreement.units:
        print("no two annotators have answered the same question: nothing is known of their agreement")
        return
    spread = "" if agreement.low is None else f" ({agreement.low:.3f} to {agreement.high:.3f})"
    alpha = "not defined" if agreement.alpha is None else f"{agreement.alpha:.3f}{spread}"
    print(f"Krippendorff's alpha {alpha} on {agreement.units:,} pairs of responses")
    for (one, other), kappa in agreement.kappas.items():
        value = "not defined" if kappa.value is None else f"{kappa.value:.3f} ({kappa.low:.3f} to {kappa.high:.3f})"
        print(f"Cohen's kappa of {one} and {other}: {value}; they agree on {kappa.share:.1%} of {kappa.units:,}")
