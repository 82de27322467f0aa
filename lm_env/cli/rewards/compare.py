"""`lm-env compare`: which of several models is better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lm_env.cli.options import Seed

__all__ = ["compare"]


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more: whatever --model takes, or a file with a prompt and a response in each row (.jsonl,"
            " .json, .csv, .tsv, .parquet).  NAME=MODEL gives one a short name."
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="What scores the responses: the folder of a reward model, 'lexicon', 'package.module:function', a"
            " classifier, the address of a reward server."
        ),
    ] = "lexicon",
    prompts: Annotated[
        str | None, typer.Option(help="A .txt or .jsonl file, or a hub id.  [default: openings of film reviews]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    samples: Annotated[int, typer.Option(help="Responses to each prompt.", min=1)] = 1,
    new_tokens: Annotated[int, typer.Option(help="Length cap of a response, tokens.", min=1)] = 48,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    tie_margin: Annotated[float, typer.Option(help="Scores that differ by at most this much tie.")] = 0.0,
    pairs_out: Annotated[
        Path | None,
        typer.Option(help="Judge nothing; write the pairs to this .jsonl file, for `lm-env label` or another judge."),
    ] = None,
    judgements: Annotated[
        str | None, typer.Option(help="Sample nothing; rank the models by a file of judged pairs, such as that page's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.json, comparison.png, and what was written.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    download: Annotated[bool, typer.Option("--download", help="Allow fetching hub ids.")] = False,
) -> None:
    """Rank language models by how often their responses to the same prompts are better.

    Win rates with Wilson's intervals, win rates at equal length, and Bradley-Terry strengths on Elo's scale.
    """
    from lm_env.errors import ConfigurationError
    from lm_env.storage import check_destination

    if out is not None:
        check_destination(out)
    if judgements is not None:
        if models or pairs_out is not None:
            raise ConfigurationError("--judgements says by itself which models it compares: leave out models and pairs")
        _finish(_judged(judgements, seed, download), judgements, out, as_json, None)
        return
    from lm_env.runs.console import say
    from lm_env.runs.judges import default_prompts, make_judge
    from reward_models.compare.pairs import write_pairs
    from reward_models.compare.ranking import rank_contestants
    from reward_models.compare.responses import SamplingOptions, contestant_names, gather, is_response_file

    named = contestant_names(models or [])
    reward = None if pairs_out is not None else make_judge(judge, device=device, download=download)
    asked: Any = prompts
    if prompts is None and not any(is_response_file(source) for source in named.values()):
        asked = default_prompts(None, "test")
    options = SamplingOptions(samples, new_tokens, temperature, seed, device, download)
    tell = None if as_json else lambda sentence: say("", sentence)
    texts, found = gather(named, asked, reward, options, limit=limit, say=tell)
    if pairs_out is not None:
        rows, alike = write_pairs(texts, found, pairs_out, seed=seed)
        say("pairs", f"{rows:,} in {pairs_out}, {alike:,} left out because both responses are the same")
        say("", f"judge them, as with  lm-env label {pairs_out}  and then  lm-env compare --judgements FILE")
        return
    ranking = rank_contestants(found, tie_margin=tie_margin, seed=seed)
    _finish(ranking, judge, out, as_json, (texts, found))


def _judged(file: str, seed: int, download: bool) -> Any:
    from reward_models.compare.outcomes import outcomes_from_records
    from reward_models.compare.ranking import rank
    from reward_models.preferences.reading import read_preferences

    return rank(outcomes_from_records(read_preferences(file, download=download)), seed=seed)


def _finish(ranking: Any, judge: str, out: Path | None, as_json: bool, written: Any) -> None:
    """Print, and write what is asked for."""
    import json

    from lm_env.runs.console import say
    from lm_env.storage import write_folder
    from reward_models.compare.picture import plot_ranking

    content = {"judge": judge, **ranking.as_dict()}
    if as_json:
        print(json.dumps(content))
    else:
        _show(ranking)
    if out is None:
        return

    def fill(folder: Path) -> None:
        (folder / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
        plot_ranking(ranking, folder / "comparison.png", judge=judge)
        if written is not None:
            with (folder / "responses.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in _rows(*written))

    write_folder(out, fill)
    if not as_json:
        say("", f"written to {out}: comparison.json, comparison.png{', responses.jsonl' if written else ''}")


def _rows(prompts: Any, contestants: Any) -> Any:
    for contestant in contestants:
        for i, (prompt, responses) in enumerate(zip(prompts, contestant.responses, strict=True)):
            for n, response in enumerate(responses):
                score = float(contestant.scores[i, n])
                yield {"model": contestant.name, "prompt": prompt, "response": response, "score": score}


def _show(ranking: Any) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from lm_env.runs.console import console
    from reward_models.compare.picture import short_name

    def table(*titles: str) -> Table:
        made = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
        for title in titles:
            made.add_column(title, justify="right" if title else "left", no_wrap=True, min_width=len(title))
        return made

    scored = bool(ranking.mean_scores)
    models = table("", "Elo", "win rate", *(("score", "chars") if scored else ()))
    for strength in ranking.strengths:
        elo, low, high = strength.elo
        name, row = strength.name, [f"{elo:.0f} ({low:.0f} to {high:.0f})", _share(ranking.win_rates[strength.name])]
        if scored:
            row += [f"{ranking.mean_scores[name][0]:.3g}", f"{ranking.mean_lengths[name]:.0f}"]
        models.add_row(escape(short_name(name, 18)), *row)
    console.print(models)
    pairs = table("", "won/tied/lost", "win rate", "at equal length")
    for pair in ranking.pairs:
        title = f"{escape(short_name(pair.first, 19))}\n  over {escape(short_name(pair.second, 13))}"
        controlled = "all equally long" if pair.length_controlled is None else _share(pair.length_controlled)
        pairs.add_row(title, f"{pair.wins}/{pair.ties}/{pair.losses}", _share(pair.win_rate), controlled)
    console.print(pairs)
    if ranking.first_shown_wins is not None:
        console.print(f"what was shown first was preferred in {_share(ranking.first_shown_wins)}; no bias is .500")
    remark = (
        f"{ranking.prompts:,} prompts, intervals of 95%; Elo is the Bradley-Terry strength in points, 400 for 10 to 1"
    )
    console.print(f"[dim]{remark}[/dim]", soft_wrap=True)


def _share(share: Any) -> str:
    mean, low, high = (f"{x:.3f}".removeprefix("0") for x in (share.mean, share.low, share.high))
    return f"{mean} ({low} to {high})"
