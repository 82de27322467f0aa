"""Rankings of models: planted strengths are found, lengths are controlled for, files of pairs lead back to models."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.errors import ConfigurationError, InvalidPreferenceError
from reward_models import Preference, read_preferences, write_preferences
from reward_models.compare import (
    Contestant,
    Outcomes,
    SamplingOptions,
    bradley_terry,
    gather,
    length_controlled,
    outcomes_from_records,
    outcomes_from_scores,
    pair_result,
    plot_ranking,
    position_share,
    rank,
    rank_contestants,
    write_pairs,
)
from reward_models.compare.bradley_terry import ELO_PER_NAT, fit_davidson
from reward_models.compare.responses import contestant_names
from reward_models.trust.statistics import wilson


def judged(rng: np.random.Generator, strengths: np.ndarray, tie: float, prompts: int) -> Outcomes:
    """Comparisons of every two models on each prompt, drawn from Davidson's model."""
    rows = []
    for p in range(prompts):
        for a, b in itertools.combinations(range(len(strengths)), 2):
            odds = np.exp([strengths[a], strengths[b], tie + (strengths[a] + strengths[b]) / 2])
            rows.append((p, a, b, [1.0, 0.0, 0.5][rng.choice(3, p=odds / odds.sum())]))
    prompt, first, second, result = np.array(rows).T
    names = tuple(f"m{i}" for i in range(len(strengths)))
    nothing = np.zeros(len(rows))
    return Outcomes(names, prompt.astype(int), first.astype(int), second.astype(int), result, nothing, nothing * np.nan)


@pytest.mark.parametrize("tie", [-math.inf, -1.0, 0.5])
def test_planted_strengths_are_found_within_four_standard_errors(tie):
    planted = np.array([1.0, 0.4, 0.0, -0.3, -1.1])
    rng = np.random.default_rng(3)
    outcomes = judged(rng, planted, tie, 300)
    found = bradley_terry(outcomes, resamples=200)
    for strength, truth in zip(found, planted - planted.mean(), strict=True):
        assert abs(strength.mean - truth) < 4 * strength.error < 1.0
        assert strength.low < strength.mean < strength.high
        elo, low, high = strength.elo
        assert elo == pytest.approx(1000 + ELO_PER_NAT * strength.mean) and low < elo < high
    ranking = rank(outcomes, resamples=50)
    assert [s.name for s in ranking.strengths] == ["m0", "m1", "m2", "m3", "m4"]


def test_the_intervals_cover_what_they_say():
    """Over many drawn data sets, the 95% interval holds the truth in 95% of cases, within four standard errors."""
    planted = np.array([0.5, 0.0, -0.5])
    inside = [
        strength.low <= truth <= strength.high
        for seed in range(40)
        for strength, truth in zip(
            bradley_terry(judged(np.random.default_rng(seed), planted, -0.5, 120), resamples=100), planted, strict=True
        )
    ]
    error = math.sqrt(0.95 * 0.05 / 40)  # of 40 independent ones; the three of a data set are not
    assert abs(np.mean(inside) - 0.95) < 4 * error


def test_without_ties_it_is_the_bradley_terry_fit_of_the_labelling():
    from reward_models.compare.bradley_terry import PRIOR_SD
    from reward_models.labelling import posterior

    pairs = [(0, 1), (0, 2), (1, 2), (2, 3)]
    counts = np.array([[5.0, 3.0, 0.0], [2.0, 6.0, 0.0], [4.0, 1.0, 0.0], [7.0, 0.0, 0.0]])
    rows = [
        (i, j, won)
        for (i, j), (wins, losses, _) in zip(pairs, counts, strict=True)
        for won in [1] * int(wins) + [0] * int(losses)
    ]
    other = posterior.bradley_terry(*zip(*rows, strict=True), prior_sd=PRIOR_SD)
    assert fit_davidson(counts, pairs, 4)[0] == pytest.approx(other.mean, abs=1e-6)


def test_two_models_without_ties_have_the_log_odds_of_their_wins():
    counts = np.array([[30.0, 10.0, 0.0]])
    strengths, tie = fit_davidson(counts, [(0, 1)], 2)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3), abs=0.01) and tie == -math.inf


def test_davidsons_model_reproduces_shares_of_two_models():
    """Three shares, two free parameters beside the sum: wins, losses and ties are fitted exactly."""
    counts = np.array([[50.0, 20.0, 30.0]])
    strengths, tie = fit_davidson(counts, [(0, 1)], 2)
    odds = np.exp([*strengths, tie + strengths.mean()])
    np.testing.assert_allclose(odds / odds.sum(), [0.5, 0.2, 0.3], atol=2e-3)


def test_a_model_that_always_wins_has_a_finite_strength():
    outcomes = judged(np.random.default_rng(0), np.array([50.0, 0.0, 0.0]), -math.inf, 40)
    found = bradley_terry(outcomes, resamples=20)
    assert found[0].mean == max(s.mean for s in found) > 2 and all(math.isfinite(s.high) for s in found)


def test_models_that_were_never_compared_are_named():
    empty = np.zeros(2)
    outcomes = Outcomes(("a", "b", "c", "d"), np.arange(2), np.array([0, 2]), np.array([1, 3]), empty, empty, empty)
    with pytest.raises(ConfigurationError, match="c, d and a were never compared"):
        bradley_terry(outcomes)


# -- win rates -----------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([0.0, 1.0]))
def test_win_rates_are_those_of_an_enumeration(models, prompts, samples, seed, margin):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (models, prompts, samples)).astype(float)
    lengths = rng.integers(0, 9, (models, prompts, samples))
    names = [f"m{i}" for i in range(models)]
    outcomes = outcomes_from_scores(names, scores, lengths, tie_margin=margin)
    for a, b in itertools.combinations(range(models), 2):
        counts = {"wins": 0, "ties": 0, "losses": 0}
        means = []
        for p in range(prompts):
            value = 0.0
            for n in range(samples):
                x, y = scores[a, p, n], scores[b, p, n]
                kind = "ties" if abs(x - y) <= margin else "wins" if x > y else "losses"
                counts[kind] += 1
                value += {"wins": 1.0, "ties": 0.5, "losses": 0.0}[kind] / samples
            means.append(value)
        found = pair_result(outcomes, a, b)
        assert (found.wins, found.ties, found.losses, found.prompts) == (*counts.values(), prompts)
        expected = wilson(means)
        assert expected is not None and found.win_rate.mean == pytest.approx(expected.mean)
        assert (found.win_rate.low, found.win_rate.high) == pytest.approx((expected.low, expected.high))
    assert outcomes.weights().sum() == pytest.approx(prompts * models * (models - 1) / 2)


def test_a_judge_of_length_alone_gives_one_half_at_equal_length():
    """A model that writes more wins nearly always as it is, and half of the time at equal length."""
    rng = np.random.default_rng(0)
    difference = rng.normal(40, 30, 4000)
    p = 1 / (1 + np.exp(-3.0 * np.tanh(difference / difference.std())))
    result = (rng.random(4000) < p).astype(float)
    found = length_controlled(result, difference)
    assert found is not None
    share, effect = found
    assert result.mean() > 0.8 and share.low < 0.5 < share.high and share.high - share.low < 0.15
    assert effect == pytest.approx(3.0, abs=0.5)
    # A judge that only counts characters leaves nothing to a maximum of the likelihood, and is still found out.
    found = length_controlled((difference > 0).astype(float), difference)
    assert found is not None and abs(found[0].mean - 0.5) < 0.1


def test_a_quality_that_has_nothing_to_do_with_length_is_left_as_it_is():
    rng = np.random.default_rng(1)
    difference = rng.normal(30, 30, 4000)
    p = 1 / (1 + np.exp(-(0.8 + 1.5 * np.tanh(difference / difference.std()))))
    found = length_controlled((rng.random(4000) < p).astype(float), difference)
    assert found is not None
    truth = 1 / (1 + math.exp(-0.8))
    assert found[0].low < truth < found[0].high and abs(found[0].mean - truth) < 0.05


def test_the_regression_is_at_the_maximum_of_its_likelihood():
    """Its gradient by finite differences, prior included, is 0."""
    rng = np.random.default_rng(2)
    y, d, w = rng.choice([0.0, 0.5, 1.0], 50), rng.normal(5, 10, 50), rng.random(50)
    found = length_controlled(y, d, w)
    assert found is not None
    a, b = math.log(found[0].mean / (1 - found[0].mean)), found[1]

    def likelihood(a: float, b: float) -> float:
        u = a + b * np.tanh(d / d.std())
        return float(w @ (y * u - np.logaddexp(0, u))) - (a * a + b * b) / 200

    for x, y_ in ((1e-4, 0.0), (0.0, 1e-4)):
        assert abs(likelihood(a + x, b + y_) - likelihood(a - x, b - y_)) / 2e-4 < 1e-6
    assert length_controlled(y, np.full(50, 3.0)) is None


# -- files of pairs ------------------------------------------------------------------------------------
def contestants(prompts: int = 6) -> tuple[list[str], list[Contestant]]:
    texts = [f"prompt {i}" for i in range(prompts)]
    found = [
        Contestant("short", [[f"s{i}"] for i in range(prompts)], None),
        Contestant("long", [[f"a longer text {i}"] for i in range(prompts)], None),
        Contestant("same", [[f"s{i}" if i == 0 else f"other {i}"] for i in range(prompts)], None),
    ]
    return texts, found


def test_judged_pairs_lead_back_to_the_models(tmp_path):
    texts, models = contestants()
    rows, alike = write_pairs(texts, models, tmp_path / "pairs.jsonl")
    assert (rows, alike) == (17, 1)
    written = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    first = [row["responses"][0] < row["responses"][1] for row in written]
    assert any(first) and not all(first)  # neither model always comes first
    judgements = []
    for row in written:  # a judge that likes long texts, and an export that turns every second pair around
        texts_ = tuple(row["responses"])[:: 1 if len(judgements) % 2 else -1]
        ranking = tuple(int(len(text) < max(map(len, texts_))) for text in texts_)
        columns = {"written_by": row["written_by"], "label_shown": [1, 0]}
        judgements.append(Preference(row["prompt"], texts_, ranking, annotator="x", columns=columns))
    write_preferences(judgements, tmp_path / "judged.jsonl")
    outcomes = outcomes_from_records(read_preferences(tmp_path / "judged.jsonl"))
    assert set(outcomes.names) == {"short", "long", "same"} and len(outcomes) == 17
    expected = {"long": 1.0, "same": (5 * 0.0 + 6 * 0.0) / 11 + 5 / 11, "short": 0.0}
    ranking_ = rank(outcomes, resamples=20)
    assert [s.name for s in ranking_.strengths] == ["long", "same", "short"]
    for name in ("long", "short"):
        assert ranking_.win_rates[name].mean == expected[name]
    seen_first = [
        record.ranking[1] < record.ranking[0] for record in judgements if record.ranking[0] != record.ranking[1]
    ]
    share = position_share(outcomes)
    assert share is not None and share.mean == pytest.approx(np.mean(seen_first)) and share.count == len(seen_first)


def test_records_that_do_not_say_who_wrote_what_are_named():
    with pytest.raises(InvalidPreferenceError, match="record 1 does not say which model"):
        outcomes_from_records([Preference.pair("p", "a", "b")])
    record = Preference.pair("p", "a", "b", columns={"written_by": {"x": "0" * 16}})
    with pytest.raises(InvalidPreferenceError, match="record 1"):
        outcomes_from_records([record])
    with pytest.raises(ConfigurationError, match="no record compares"):
        outcomes_from_records([])


def test_scores_of_a_scalar_judge_have_no_position():
    scores = np.random.default_rng(0).random((2, 5, 1))
    assert position_share(outcomes_from_scores(["a", "b"], scores, scores)) is None


# -- responses -----------------------------------------------------------------------------------------
def longer_is_better(prompts, responses):
    return [float(len(text)) for text in responses]


def test_files_and_models_are_compared_on_the_same_prompts(tmp_path, model_folder):
    prompts = ["a good film", "the end", "bad"]
    rows = [{"prompt": p, "response": f" number {n} of {p}"} for p in prompts for n in range(2)]
    (tmp_path / "fixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = contestant_names([f"fixed={tmp_path / 'fixed.jsonl'}", f"one={model_folder}", f"two={model_folder}"])
    options = SamplingOptions(samples=2, new_tokens=6, seed=3)
    texts, found = gather(named, None, longer_is_better, options)
    assert texts == prompts and [c.name for c in found] == ["fixed", "one", "two"]
    assert found[0].responses == [[row["response"] for row in rows[i : i + 2]] for i in (0, 2, 4)]
    assert found[1].responses == found[2].responses  # the same random numbers
    assert found[1].responses[0][0] != found[1].responses[0][1]
    for contestant in found:
        lengths = [[float(len(text)) for text in own] for own in contestant.responses]
        assert contestant.scores is not None and contestant.scores.tolist() == lengths
    ranking = rank_contestants(found, resamples=20)
    assert ranking.pairs[2].ties == 6 and ranking.pairs[2].length_controlled is None
    assert ranking.mean_lengths["fixed"] == np.mean([len(row["response"]) for row in rows])
    assert plot_ranking(ranking, tmp_path / "x.png", judge="length").stat().st_size > 5000


def test_a_file_without_responses_to_a_prompt_names_it(tmp_path):
    for name, rows in {
        "a": [{"prompt": "one", "response": "x"}, {"prompt": "two", "response": "x"}],
        "b": [{"prompt": "one", "response": "y"}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = contestant_names([f"a={tmp_path / 'a.jsonl'}", f"b={tmp_path / 'b.jsonl'}"])
    with pytest.raises(ConfigurationError, match=r"0 response.* to the prompt 'two'"):
        gather(named, None, longer_is_better, SamplingOptions())


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["x=a", "x=b"]])
def test_too_few_models_or_names_that_are_taken(names):
    with pytest.raises(ConfigurationError):
        contestant_names(names)
    assert contestant_names(["runs/a=b/policy", "x=runs/c"]) == {"runs/a=b/policy": "runs/a=b/policy", "x": "runs/c"}


# -- the command ---------------------------------------------------------------------------------------
def test_the_command_ranks_writes_and_reads_back(tmp_path, model_folder):
    prompts = ["a good film", "the end", "bad"]
    rows = [{"prompt": p, "response": " a good, good film"} for p in prompts]
    (tmp_path / "fixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [f"fixed={tmp_path / 'fixed.jsonl'}", f"tiny={model_folder}", "--new-tokens", "6"]
    run = CliRunner().invoke(app, ["compare", *models, "--out", str(tmp_path / "out"), "--json"])
    assert run.exit_code == 0, run.output
    content = json.loads(run.output.splitlines()[-1])
    assert content == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["strengths"][0]["name"] == "fixed" and content["strengths"][0]["elo"] > 1000
    written = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert len(written) == 6 and written[0]["response"] == " a good, good film"
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")

    run = CliRunner().invoke(app, ["compare", *models, "--pairs-out", str(tmp_path / "pairs.jsonl")])
    assert run.exit_code == 0, run.output
    judged_ = []
    for line in (tmp_path / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        judged_.append({**row, "ranking": [int("good" not in text) for text in row["responses"]]})
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged_))
    run = CliRunner().invoke(app, ["compare", "--judgements", str(tmp_path / "judged.jsonl")])
    assert run.exit_code == 0 and "fixed" in run.output and "1.000" in run.output, run.output
    run = CliRunner().invoke(app, ["compare", "a", "b", "--judgements", "x.jsonl"])
    assert isinstance(run.exception, ConfigurationError)
