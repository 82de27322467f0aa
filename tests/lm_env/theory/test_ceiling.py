"""The ceiling from samples, held against enumeration: estimates, errors, the gate, best-of-n, brackets."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError
from lm_env.theory.ceilings.best_of_n import best_of_n
from lm_env.theory.ceilings.task_ceiling import enough_reference_scores, task_ceiling
from lm_env.theory.ceilings.tilting import ceiling, frontier, pass_rate_ceiling, upper_bound
from lm_env.theory.token_env import make_token_env
from lm_env.theory.token_mdp import TokenMDP

T0 = TokenMDP.t0()


def reference_samples(mdp: TokenMDP, prompts: int, samples: int, seed: int) -> np.ndarray:
    """Scores (P, n) of texts drawn from the reference of an enumerable MDP; each row stands for a prompt."""
    probabilities = np.exp(mdp.trajectory_logprobs(mdp.reference_logits))
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(probabilities), size=(prompts, samples), p=probabilities / probabilities.sum())
    return mdp.scores()[drawn]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_ceiling_of_t0_is_its_closed_form(beta):
    exact = T0.optimum(beta)
    found = ceiling(reference_samples(T0, 400, 400, seed=1), beta)
    assert found.trusted
    for got, wanted in ((found.J, exact.J), (found.score, exact.R), (found.KL, exact.KL)):
        assert abs(got.mean - wanted) <= 4 * got.se, (got, wanted)
        assert got.se < 0.02


def test_intervals_cover_the_truth_on_random_mdps():
    """50 MDPs: the 95% interval over prompts covers J*, E*[score] and KL* about 19 times in 20."""
    covered = {"J": 0, "score": 0, "KL": 0}
    tried = 0
    for seed in range(50):
        mdp = TokenMDP.random(seed, vocab_size=5, horizon=3)
        found = ceiling(reference_samples(mdp, 60, 600, seed), beta=2.0)
        exact = mdp.optimum(2.0)
        tried += 1
        for name, wanted in (("J", exact.J), ("score", exact.R), ("KL", exact.KL)):
            estimate = getattr(found, name)
            covered[name] += abs(estimate.mean - wanted) <= 2.0 * estimate.se
    # Binomial(50, .95): 42 or fewer in one run of 2,000.
    assert tried == 50 and min(covered.values()) >= 43, covered


def test_the_jackknife_takes_the_bias_away():
    """The plain estimate is low by about (beta / 2) (1 / ESS - 1 / n); the jackknife's bias is far smaller."""
    beta, samples = 1.0, 24
    exact = T0.optimum(beta).J
    scores = reference_samples(T0, 20_000, samples, seed=3)
    found = ceiling(scores, beta)
    predicted = beta / 2 * float((1 / found.ess - 1 / samples).mean())
    assert exact - found.J_plain == pytest.approx(predicted, rel=0.35)
    assert abs(found.J.mean - exact) < 0.2 * (exact - found.J_plain)


def test_where_the_best_texts_are_never_sampled_the_number_is_refused():
    """At a low beta the optimum lies on texts that 40 samples do not hold."""
    scores = reference_samples(T0, 100, 40, seed=0)
    found = ceiling(scores, beta=0.05)
    assert not found.trusted
    assert any("effective samples" in doubt for doubt in found.doubts())
    assert found.J_plain < T0.optimum(0.05).J, "it is a lower bound"


def test_a_mode_that_is_never_sampled_is_refused_where_the_highest_score_is_known():
    """A text of score 12 and probability 1e-4, which 10 x 320 samples do not hold, decides what the optimum is."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 2, (10, 320))
    assert ceiling(scores, beta=1.0).trusted, "the samples alone cannot tell"
    found = ceiling(scores, beta=1.0, highest=12.0)
    assert not found.trusted and "highest possible score" in found.doubts()[0]
    truth = np.log(np.exp(found.J.mean) + 1e-4 * np.exp(12))
    assert truth > found.J.mean + 0.3, "and it would be wrong"
    assert found.unseen >= truth - found.J.mean
    assert ceiling(scores, beta=1.0, highest=2.0).trusted


def test_one_sample_that_carries_all_the_weight_is_left_out_exactly():
    """Leaving it out by subtraction would divide rounding by rounding."""
    scores = np.array([[0.0, 0.1, 50.0], [0.0, 0.1, 0.2]])
    found = ceiling(scores, beta=0.5)
    by_hand = []
    for row in scores:
        whole = 0.5 * np.log(np.mean(np.exp(row / 0.5)))
        left = [0.5 * np.log(np.mean(np.exp(np.delete(row, i) / 0.5))) for i in range(3)]
        by_hand.append(3 * whole - 2 * np.mean(left))
    assert found.J.mean == pytest.approx(np.mean(by_hand), rel=1e-9)


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5),
    st.floats(0.05, 20),
)
def test_the_identities_hold_for_any_scores(rows, beta):
    scores = np.array(rows)
    found = ceiling(scores, beta)
    assert found.KL.mean == pytest.approx((found.score.mean - found.J.mean) / beta, abs=1e-6)
    assert scores.mean() - 1e-9 <= found.J_plain <= scores.max(1).mean() + 1e-9
    assert (found.ess >= 1 - 1e-9).all() and (found.ess <= 4 + 1e-9).all()
    shifted = ceiling(scores + 7, beta)
    assert shifted.J.mean == pytest.approx(found.J.mean + 7, abs=1e-6)


def test_the_frontier_rises_with_the_kl():
    points = frontier(reference_samples(T0, 50, 500, seed=2), betas=[4, 2, 1, 0.5])
    assert [p.beta for p in points] == [4, 2, 1, 0.5]
    assert all(a.KL < b.KL and a.score < b.score for a, b in pairwise(points))
    for point in points:
        exact = T0.optimum(point.beta)
        assert (point.KL, point.score) == pytest.approx((exact.KL, exact.R), abs=0.03)


# -- more samples where they are needed ------------------------------------------------------------------
def mixed_task(beta: float):
    """Texts of one token, worth 1; after the first prompt as likely as not, after the second one time in 200."""
    model = TokenMDP(("A", "EOS"), 2, np.zeros((3, 2)), lambda ids: 0.0, eos_id=1).policy_model()

    class TwoPrompts(torch.nn.Module):
        kv_cache = False

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.tensor([[0.0, 0.0], [math.log(1 / 199), 0.0]]))

        def forward(self, input_ids, **_):
            logits = self.table[input_ids[:, :1].expand_as(input_ids)]
            return type(model(input_ids))(logits=logits)

    return TextGenerationEnv(
        model=TwoPrompts(),
        prompts=[[0], [1]],
        reward=lambda prompts, responses, response_ids: [float(ids[0] == 0) for ids in response_ids],
        eos_token_id=(),
        max_new_tokens=1,
        beta=beta,
    ).task


def test_sampling_goes_on_until_the_ceiling_can_be_trusted():
    """And then the closed form is met at both prompts, which the first samples alone would not do."""
    beta = 0.2
    task = mixed_task(beta)
    prompts = list(task.prompts) * 5
    scores = enough_reference_scores(task, prompts, beta, samples=25, most=25 * 2**9)
    count = scores.shape[1]
    assert ceiling(scores, beta).trusted and 25 < count < 25 * 2**9
    assert not ceiling(scores[:, : count // 2], beta).trusted
    found = task_ceiling(task, prompts, samples=25, most=25 * 2**9)
    exact = [pass_rate_ceiling(0.5, beta), pass_rate_ceiling(1 / 200, beta)]
    for which, wanted in enumerate(exact):
        mine = found.J_by_prompt[which::2]
        assert abs(mine.mean() - wanted) < 4 * mine.std(ddof=1) / math.sqrt(5)
    few = enough_reference_scores(task, prompts, beta, samples=25, most=49)
    assert few.shape == (10, 25), "never more than the most that was asked for"
    np.testing.assert_array_equal(few, scores[:, :25])
    assert not np.array_equal(scores[:, :25], scores[:, 25:50]), "the new samples are no copies of the first"


def test_rows_of_their_own_lengths_count_as_rows_alone():
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(n) for n in (40, 90, 40, 7)]
    together = ceiling(rows, 0.7)
    for i, row in enumerate(rows):
        alone = ceiling(row[None], 0.7)
        assert together.J_by_prompt[i] == pytest.approx(alone.J.mean, rel=1e-12)
        assert together.ess[i] == pytest.approx(alone.ess[0])
    parts = [best_of_n(row[None], 4) for row in rows]
    assert best_of_n(rows, 4).score.mean == pytest.approx(np.mean([part.score.mean for part in parts]))
    assert pytest.approx(np.mean([part.KL for part in parts])) == best_of_n(rows, 4).KL


def test_samples_that_all_score_alike_say_nothing():
    found = ceiling(np.zeros((3, 50)), 0.1)
    assert not found.trusted and "score alike" in found.doubts()[0]


def test_the_ceiling_of_a_task_covers_the_truth():
    """End to end on random MDPs: the model writes, the reward scores; about 19 in 20 intervals hold J*."""
    covered = trusted = 0
    for seed in range(12):
        mdp = TokenMDP.random(seed, vocab_size=4)
        task = make_token_env(mdp, beta=2.0).task
        found = task_ceiling(task, [task.prompts[0]] * 20, samples=100, seed=seed)
        exact = mdp.optimum(2.0).J
        trusted += found.trusted
        covered += abs(found.J.mean - exact) <= 2.1 * found.J.se  # Student's t with 19 degrees of freedom
        share = found.attained(np.full(20, exact))
        assert abs(share.mean - 1) < 5 * share.se
    # Binomial(12, .95): 9 or fewer once in 50 runs.
    assert covered >= 9 and trusted >= 9


# -- best of n -------------------------------------------------------------------------------------------
def test_best_of_four_on_t0():
    """The exact figures: score .744440 at a KL of .574706, below log 4 - 3/4 = .636 because scores tie."""
    found = best_of_n(reference_samples(T0, 400, 400, seed=4), 4)
    assert found.score.mean == pytest.approx(0.744440, abs=4 * found.score.se)
    assert pytest.approx(0.574706, abs=0.005) == found.KL
    assert found.J(0.5) == pytest.approx(found.score.mean - 0.5 * found.KL)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n, rng):
    scores = rng.standard_normal((3, 7))
    by_hand = np.mean([[max(subset) for subset in combinations(row, n)] for row in scores])
    assert best_of_n(scores, n).score.mean == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_without_ties_the_kl_of_best_of_n_is_the_bound(n, rng):
    found = best_of_n(rng.standard_normal((2, 64)), n)
    assert pytest.approx(math.log(n) - (n - 1) / n, abs=1e-12) == found.KL


def test_best_of_n_of_scores_that_are_all_alike_has_no_kl():
    assert pytest.approx(0, abs=1e-12) == best_of_n(np.ones((2, 16)), 4).KL


# -- zeros and ones, brackets, shares --------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("passed", [0, 3, 20])
def test_scores_of_zero_and_one_have_a_closed_form(beta, passed):
    scores = np.zeros((1, 20))
    scores[0, :passed] = 1
    assert ceiling(scores, beta).J_plain == pytest.approx(pass_rate_ceiling(passed / 20, beta), abs=1e-9)


def test_the_brackets_enclose_the_optimum():
    beta = 1.0
    scores = reference_samples(T0, 3000, 40, seed=5)
    low = ceiling(scores, beta).J_plain
    high = upper_bound(scores, beta, highest=2.5, rng=np.random.default_rng(0))
    assert low < T0.optimum(beta).J < high.mean + 2 * high.se
    assert high.mean - low < 0.3


def test_accepted_samples_are_those_of_the_optimum():
    """With many samples for one prompt the upper bound meets J*: what rejection accepts is distributed as pi*."""
    scores = reference_samples(T0, 20, 50_000, seed=6)
    high = upper_bound(scores, 0.5, highest=2.5, rng=np.random.default_rng(1))
    assert high.mean == pytest.approx(T0.optimum(0.5).J, abs=4 * high.se)
    assert high.se < 0.05


def test_the_share_attained():
    found = ceiling(reference_samples(T0, 400, 400, seed=1), 1.0)
    assert found.attained(found.J_ref.mean).mean == 0
    assert found.attained(found.J.mean).mean == pytest.approx(1)
    half = found.attained((found.J.mean + found.J_ref.mean) / 2, se=0.01)
    assert half.mean == pytest.approx(0.5)
    assert half.se >= 0.01 / (found.J.mean - found.J_ref.mean)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ceiling(np.zeros((2, 1)), 1.0), "at least 2 samples"),
        (lambda: ceiling(np.full((2, 4), np.nan), 1.0), "finite"),
        (lambda: ceiling(np.zeros((2, 4)), 0.0), "beta must be a finite number above 0"),
        (lambda: best_of_n(np.zeros((2, 4)), 5), "at least 5 samples"),
        (lambda: pass_rate_ceiling(1.5, 1.0), "rate"),
        (lambda: upper_bound(np.ones((2, 4)), 1.0, 0.5, np.random.default_rng(0)), "exceeds"),
        (lambda: upper_bound(np.zeros((9, 4)), 0.01, 1.0, np.random.default_rng(0)), "rejection accepts"),
        (lambda: ceiling(np.ones((2, 4)), 1.0).attained(1.0), "nothing can be gained"),
        (lambda: ceiling([], 1.0), "at least 2 samples"),
        (lambda: ceiling([np.arange(3.0), np.arange(1.0)], 1.0), "at least 2 samples"),
        (lambda: ceiling(np.eye(4), 1.0).attained(np.zeros(3)), "same prompts"),
        (lambda: enough_reference_scores(mixed_task(1.0), [], 1.0, samples=8, most=4), "most must be"),
        (lambda: task_ceiling(mixed_task(0.0)), "beta must be a finite number above 0"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ConfigurationError, match=words):
        call()


def test_prompts_may_be_texts():
    task = TokenMDP.t0()
    env = make_token_env(task, beta=1.0)
    own = list(env.task.prompts)
    texts = task_ceiling(env.task, [prompt.ids.tolist() for prompt in own], samples=32, most=32)
    assert texts.J == task_ceiling(env.task, own, samples=32, most=32).J
