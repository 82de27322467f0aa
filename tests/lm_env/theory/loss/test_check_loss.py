"""check_loss passes right losses, however they are written, and names the mistakes that are put in."""

from __future__ import annotations

import json

import numpy as np
import planted_losses as planted
import pytest
import torch

import lm_env
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.theory.loss import INVARIANCES, LossBatch, check_loss
from lm_env.theory.loss.mistakes import EXPLANATIONS, combinations
from lm_env.theory.loss.problem import make_problems


# -- PASS --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", planted.RIGHT, ids=lambda loss: loss.__name__)
def test_right_losses_pass(loss):
    check = check_loss(loss)
    assert check.passed and check.causes == () and check.sentence().startswith("PASS")
    assert check.orthogonal < 1e-12 and check.cosine == pytest.approx(1, abs=1e-12) and min(check.along) > 0


def test_a_kl_of_the_whole_vocabulary_in_the_rewards_to_come_is_right():
    """Its expectation is that of k1: only the token's own KL must be k1, which tells tokens apart."""
    assert check_loss(planted.exact_kl).passed


@pytest.mark.parametrize(("group_size", "seed", "beta"), [(1, 1, 0.1), (2, 5, 2.0)])
def test_whatever_the_groups_the_seed_and_the_beta(group_size, seed, beta):
    assert check_loss(planted.clipped, group_size=group_size, seed=seed, beta=beta).orthogonal < 1e-12


def test_the_mean_of_a_group_scales_the_gradient_alike_everywhere():
    """(G - 1) / G of the true one (Ahmadian et al. 2024); leave-one-out is exactly the true one."""
    assert check_loss(planted.group_mean).along == pytest.approx([0.5] * 4, abs=1e-12)
    assert check_loss(planted.leave_one_out).along == pytest.approx([1.0] * 4, abs=1e-12)


@pytest.mark.parametrize("coefficient", [3e-3, 1e-6])
def test_the_smallest_mistake_that_shows(coefficient):
    """A mistake that turns the gradient by more than 1e-4 of its length fails; there is no noise to hide in."""

    def loss(batch):
        entropy = torch.distributions.Categorical(logits=batch.logits).entropy()
        return planted.reward_to_go(batch) - coefficient * (entropy * batch.mask).sum() / len(batch)

    check = check_loss(loss)
    assert check.passed == (coefficient < 1e-4) and check.orthogonal == pytest.approx(1.1 * coefficient, rel=0.5)


# -- FAIL, with the reason ---------------------------------------------------------------------------
@pytest.mark.parametrize(("loss", "causes"), planted.PLANTED.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_planted_mistakes_are_named(loss, causes):
    check = check_loss(loss)
    assert not check.passed and check.causes == causes
    assert all(f"'{cause}'" in check.sentence() for cause in causes)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("loss", [planted.grpo, planted.own_length, planted.whitened, planted.kl_of_the_token_before])
def test_under_other_seeds_and_another_beta_the_names_are_the_same(loss, seed):
    assert check_loss(loss, seed=seed, beta=0.1).causes == planted.PLANTED[loss]


def test_the_numbers_of_a_mistake_are_found():
    assert check_loss(planted.discounted).numbers == pytest.approx({"gamma": 0.9}, abs=1e-4)
    assert check_loss(planted.entropy_bonus).numbers == pytest.approx({"entropy_coef": 0.01}, rel=1e-6)
    assert check_loss(planted.rescaled).numbers == pytest.approx({"effective_beta": 0.25}, rel=1e-6)
    found = check_loss(planted.group_mean_beside_a_kl_loss).numbers
    assert found == pytest.approx({"effective_beta": 1.0}, rel=1e-6)  # beta G / (G - 1), G = 2


@pytest.mark.parametrize("gamma", [0.99, 0.6])
def test_any_discount_is_found(gamma):
    check = check_loss(lambda batch: planted.surrogate(batch, planted.to_go(batch.rewards, gamma)), name="discounted")
    assert check.causes == ("gamma",) and check.numbers["gamma"] == pytest.approx(gamma, abs=1e-3)


def test_two_mistakes_together_are_both_named():
    check = check_loss(lambda batch: planted.kl_of_the_token_before(batch) + planted.entropy_bonus(batch) * 0, name="a")
    assert check.causes == ("kl_late",)

    def both(batch):
        mask = batch.mask & (batch.tokens != batch.eos_id)
        return planted.surrogate(batch, planted.to_go(planted.score(batch)), mask)

    assert set(check_loss(both).causes) == {"no_kl", "eos_not_counted"}


# -- what must hold of every batch ---------------------------------------------------------------------
def mean_of_the_micro_batch(batch):
    """Divided by the tokens of the part, not of the whole."""
    return planted.surrogate(batch, planted.advantages(batch)) * len(batch) / batch.mask.sum()


def test_a_mean_over_the_micro_batch_is_told_and_fails_where_it_matters():
    noted = check_loss(mean_of_the_micro_batch)
    assert noted.passed and not noted.holds["micro_batches"] and EXPLANATIONS["micro_batches"] in noted.notes
    assert check_loss(mean_of_the_micro_batch, require=("micro_batches",)).causes == ("micro_batches",)
    assert check_loss(planted.actor_critic, require=tuple(INVARIANCES)).passed


def test_a_missing_ratio_is_told_and_fails_where_it_matters():
    noted = check_loss(planted.one_step)
    assert noted.passed and noted.ratio == "none" and EXPLANATIONS["no_importance_ratio"] in noted.notes
    assert check_loss(planted.one_step, require=("ratio",)).causes == ("no_importance_ratio",)


@pytest.mark.parametrize(
    ("loss", "ratio"),
    [
        (planted.clipped, "token"),
        (planted.leave_one_out, "token"),
        (planted.whole_response, "sequence"),
        (planted.grpo, "token"),
    ],
)
def test_the_kind_of_ratio_is_found(loss, ratio):
    assert check_loss(loss).ratio == ratio


def credited(batch):
    """(the advantages, the importance ratio), with 1 in the padding."""
    return planted.advantages(batch), torch.exp(torch.where(batch.mask, batch.logprobs - batch.old_logprobs, 0.0))


def upside_down(batch):
    credit, ratio = credited(batch)
    return (credit / ratio * batch.mask).sum() / len(batch)


def squared(batch):
    credit, ratio = credited(batch)
    return -(ratio**2 / 2 * credit * batch.mask).sum() / len(batch)


def of_the_token_before(batch):
    credit, ratio = credited(batch)
    return -(torch.roll(ratio.detach(), 1, 1) * batch.logprobs * credit * batch.mask).sum() / len(batch)


def clipped_at_once(batch):
    credit, ratio = credited(batch)
    return -(torch.minimum(ratio * credit, ratio.clamp(1 - 1e-6, 1 + 1e-6) * credit) * batch.mask).sum() / len(batch)


@pytest.mark.parametrize("loss", [upside_down, squared, of_the_token_before, clipped_at_once])
def test_a_wrong_ratio_is_told_and_fails_where_it_matters(loss):
    noted = check_loss(loss)
    assert noted.passed and noted.ratio == "unknown" and not noted.holds["ratio"]
    assert noted.notes == (EXPLANATIONS["unknown_importance_ratio"],)
    assert check_loss(loss, require=("ratio",), seed=1).causes == ("unknown_importance_ratio",)


def test_wrong_clips_that_the_page_says_are_not_seen():
    """The ratios of the off-policy batch stay within 5% of 1."""

    def largest(batch):
        credit, ratio = credited(batch)
        return -(torch.maximum(ratio * credit, ratio.clamp(0.8, 1.2) * credit) * batch.mask).sum() / len(batch)

    assert check_loss(largest, require=("ratio",)).passed


# -- losses with a state, and random ones --------------------------------------------------------------
class RunningMean:
    """REINFORCE whose baseline is a running mean over earlier batches, which is right."""

    def __init__(self, returns=lambda batch: batch.rewards.sum(1)):
        self.mean, self.returns = 0.0, returns

    def __call__(self, batch):
        returns = self.returns(batch)
        loss = -(((batch.logprobs * batch.mask).sum(1)) * (returns - self.mean)).sum() / len(batch)
        self.mean = 0.9 * self.mean + 0.1 * float(returns.mean())
        return loss


def normalized():
    """A right loss up to a scale that changes from call to call."""
    calls = []

    def loss(batch):
        calls.append(1)
        return planted.reward_to_go(batch) / (1 + 0.1 * len(calls))

    return loss


@pytest.mark.parametrize("make", [RunningMean, normalized])
def test_a_right_loss_with_a_state_passes_and_the_invariances_are_left_undecided(make):
    check = check_loss(make(), name="stateful")
    assert check.passed and check.orthogonal < 1e-12
    assert EXPLANATIONS["not_repeatable"] in check.notes
    assert not set(check.holds) & {"padding", "eos", "permutation", "micro_batches"}


def test_a_mistake_beside_a_state_is_still_named():
    check = check_loss(RunningMean(returns=lambda batch: batch.scores), name="stateful")
    assert check.causes == ("no_kl",) and EXPLANATIONS["not_repeatable"] in check.notes


def test_a_random_loss_is_said_to_be_random():
    generator = torch.Generator().manual_seed(0)

    def loss(batch):
        kept = torch.rand(batch.mask.shape, generator=generator) < 0.9
        return planted.surrogate(batch, planted.advantages(batch), batch.mask & kept)

    check = check_loss(loss)
    assert set(check.causes) == {"unknown", "not_repeatable"}


def test_the_ratio_of_gspo():
    def loss(batch):
        log_ratio = ((batch.logprobs - batch.old_logprobs) * batch.mask).sum(1) / batch.lengths
        return -(torch.exp(log_ratio) * batch.lengths * batch.rewards.sum(1)).mean()

    assert check_loss(loss).ratio == "sequence_mean"


def test_all_hold_of_a_right_loss():
    assert all(check_loss(planted.leave_one_out).holds.values())


def test_padding_that_is_counted_breaks_the_invariances_too():
    assert not check_loss(planted.padding_counted).holds["padding"]
    assert not check_loss(planted.masked_by_pad, require=()).passed


# -- the batch ----------------------------------------------------------------------------------------
def test_the_batch_holds_each_group_as_often_as_it_is_likely():
    """The mean of anything over the rows is its expectation."""
    for problem in make_problems(0.5, 2, 3)[0]:
        batch = problem.batch()
        assert len(batch) == 8192
        p = problem.credits.probabilities
        assert p.sum() == pytest.approx(1, abs=1e-12)
        mean = problem.mdp.scores() @ p
        assert float(batch.scores.mean()) == pytest.approx(mean, abs=1e-12)
        first, second = batch.scores.view(-1, 2).unbind(1)
        assert float((first * second).mean()) == pytest.approx(mean**2, abs=1e-12)


def test_the_values_are_what_the_rewards_to_come_are_worth():
    """By averaging the rewards to come of all rows that share a prefix."""
    batch = make_problems(0.5, 1, 0)[0][2].batch()
    to_come = planted.to_go(batch.rewards)
    for row in range(0, len(batch), 7):
        for t in range(int(batch.lengths[row])):
            same = (batch.tokens[:, :t] == batch.tokens[row, :t]).all(1) & (batch.lengths > t)
            assert float(batch.values[row, t]) == pytest.approx(float(to_come[same, t].mean()), abs=1e-12)


def test_the_objectives_gradient_is_that_of_its_finite_differences():
    problem = make_problems(0.5, 1, 0)[0][1]
    gradient = problem.objective_gradient()
    worth = []
    for sign in (1, -1):
        table = problem.policy.copy()
        table[1, 0] += sign * 1e-5
        worth.append(problem.mdp.evaluate(table, 0.5).J)
    assert (worth[0] - worth[1]) / 2e-5 == pytest.approx(gradient[1, 0], rel=1e-6)


def test_parts_know_the_whole():
    batch = make_problems(0.5, 2, 0)[0][0].sampled_batch(4, seed=0)
    part = batch.part(np.array([2, 3]))
    assert part.whole is batch and part.model is batch.model and len(part) == 2 and batch.whole is batch
    assert torch.equal(part.tokens, batch.tokens[2:4]) and part.rows.tolist() == [2, 3]


def test_padding_is_added_and_changed_and_nothing_else():
    batch = make_problems(0.5, 2, 0)[0][0].sampled_batch(8, seed=0)
    wide = batch.padded(2, seed=0)
    assert wide.tokens.shape[1] == batch.tokens.shape[1] + 2
    assert torch.equal(wide.rewards[:, :3], batch.rewards) and torch.equal(wide.lengths, batch.lengths)
    assert not torch.equal(wide.old_logprobs[:, :3], batch.old_logprobs)
    assert not (wide.tokens[~wide.mask] == batch.eos_id).any()


# -- the report ----------------------------------------------------------------------------------------
def test_the_report_is_json_and_deterministic():
    one, two = (check_loss(planted.grpo, name="mine").as_dict() for _ in range(2))
    assert json.loads(json.dumps(one)) == json.loads(json.dumps(two))
    assert one["loss"] == "mine" and one["beta"] == 0.5 and set(one["holds"]) == set(INVARIANCES)


def test_every_cause_has_an_explanation():
    assert {cause for mistakes in combinations() for cause in mistakes.causes} <= EXPLANATIONS.keys()
    assert {*INVARIANCES.values(), "unknown_importance_ratio", "not_repeatable"} <= EXPLANATIONS.keys()
    assert {cause for causes in planted.PLANTED.values() for cause in causes} <= EXPLANATIONS.keys()


def test_it_is_public():
    assert lm_env.check_loss is check_loss and lm_env.theory.LossBatch is LossBatch


# -- what is no loss -----------------------------------------------------------------------------------
def _raising(batch):
    raise KeyError("layer\n7")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (3, "loss must be a function"),
        (lambda: 0, r"<lambda> raised TypeError: .* when it was called as loss\(batch\): correct it"),
        (_raising, r"_raising raised KeyError: 'layer\\n7'"),
        (lambda batch: 1.0, "returned float: return a scalar that depends"),
        (lambda batch: batch.logprobs, r"a tensor of shape \(8192, 3\)"),
        (lambda batch: batch.logprobs.detach().sum(), "a scalar without a graph"),
        (lambda batch: None, "does not depend on the policy"),
    ],
)
def test_what_is_no_loss_is_refused(loss, words):
    with pytest.raises(ConfigurationError, match=words):
        check_loss(loss)


def test_a_gradient_of_nan_is_no_result():
    with pytest.raises(NonFiniteError, match="not finite"):
        check_loss(lambda batch: (batch.logprobs * torch.nan).sum())


def test_a_gradient_that_was_left_is_taken():
    def steps_itself(batch):
        planted.reward_to_go(batch).backward()

    assert check_loss(steps_itself).passed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0.0}, "beta"),
        ({"group_size": 4}, "group_size must be at most 3"),
        ({"group_size": 0}, "group_size"),
        ({"seed": -1}, "seed"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"require": ("pading",)}, "require names 'pading'"),
    ],
    ids=str,
)
def test_refusals(options, words):
    def never(batch):
        raise AssertionError

    with pytest.raises(ConfigurationError, match=words):
        check_loss(never, **options)
