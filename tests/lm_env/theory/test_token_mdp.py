"""The enumerable MDP against numbers worked out elsewhere, against itself two ways, and against autograd."""

# ruff: noqa: SIM300 - it takes `best.J` and `best.KL` for constants

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError, InvalidPromptError, RewardValueError
from lm_env.objective.rewards import score_responses
from lm_env.theory.objectives import fixed_point
from lm_env.theory.token_mdp import TableLM, TokenMDP, VocabTokenizer

T0 = TokenMDP.t0()
A, B, C, EOS = range(4)
# beta: Z, J*, R*, KL*, P(EOS)
TABLE = {
    0.2: (330.639488, 1.160206, 1.762629, 3.012118, 0.999991),
    0.5: (3.250818, 0.589453, 1.200893, 1.222879, 0.981099),
    1.0: (1.252627, 0.225243, 0.639891, 0.414648, 0.866666),
    2.0: (1.006996, 0.013944, 0.224669, 0.105363, 0.726548),
}
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
betas = st.floats(0.1, 5)


def random_logits(mdp: TokenMDP, seed: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=mdp.reference_logits.shape)


def with_zeros(mdp: TokenMDP, seed: int) -> TokenMDP:
    """The same MDP, its reference without some tokens in some states (one token a state always stays)."""
    rng = np.random.default_rng(seed)
    off = rng.random(mdp.reference_logits.shape) < 0.3
    off[np.arange(len(off)), rng.integers(mdp.vocab_size, size=len(off))] = False
    return dataclasses.replace(mdp, reference_logits=np.where(off, -np.inf, mdp.reference_logits))


def small_mdp(seed: int, v: int, horizon: int, missing: float | None, zeros: bool) -> TokenMDP:
    mdp = TokenMDP.random(seed, v, horizon, missing)
    return with_zeros(mdp, seed) if zeros else mdp


small_mdps = st.builds(
    small_mdp, seeds, st.integers(2, 5), st.integers(1, 4), st.sampled_from([None, -1.0]), st.booleans()
)


def trajectory_index(mdp: TokenMDP, *ids: int) -> int:
    tokens, lengths = mdp.trajectories()
    match = (lengths == len(ids)) & (tokens[:, : len(ids)] == ids).all(axis=1)
    return int(np.flatnonzero(match).item())


# --- the table model -------------------------------------------------------------------------------------------------


@given(st.integers(2, 5), st.integers(1, 4), seeds)
@few
def test_state_is_the_level_offset_plus_the_base_v_number(v, horizon, seed):
    model = TableLM(v, horizon)
    response = np.random.default_rng(seed).integers(v, size=horizon + 2)
    states = model.states(torch.tensor([[99, *response]]))[0].tolist()
    for p, state in enumerate(states):
        number = int("".join(map(str, response[:p])) or "0", v)
        assert state == ((v**p - 1) // (v - 1) + number if p < horizon else 0)
    assert model.hidden_size == sum(v**p for p in range(horizon))


def test_table_forward_looks_up_rows_hidden_states_and_the_last_positions():
    logits = torch.randn(21, 4, dtype=torch.float64)
    model = TableLM(4, 3, logits, dtype=torch.float64)
    ids = torch.tensor([[EOS, A, B], [0, C, C]])
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=None, use_cache=False)
    assert torch.equal(out.logits, logits[torch.tensor([[0, 1, 6], [0, 3, 15]])])
    assert out.hidden_states is None and out.logits.shape == (2, 3, 4)
    (hidden,) = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(hidden @ logits, out.logits)
    assert hidden.sum().item() == 6 and hidden.dtype == torch.float64
    assert torch.equal(model(ids, logits_to_keep=2).logits, out.logits[:, 1:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([0])).logits, out.logits[:, :1])


def test_table_gradient_reaches_the_visited_rows_only_and_the_given_logits_stay():
    logits = torch.zeros(21, 4)
    model = TableLM(4, 3, logits)
    model(torch.tensor([[EOS, B, A]])).logits.sum().backward()
    assert model.table.grad.any(dim=1).nonzero().flatten().tolist() == [0, 2, 9]
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not logits.any() and model.table.any()


@pytest.mark.parametrize(
    ("v", "horizon", "message"),
    [(1, 3, "at least 2"), (4, 0, "at least"), (50257, 2, "enumerate"), (2, 10**9, "shrink")],
)
def test_sizes_that_cannot_be_enumerated_are_refused(v, horizon, message):
    with pytest.raises(ConfigurationError, match=message):
        TableLM(v, horizon)


def test_table_refuses_logits_of_another_shape():
    with pytest.raises(ConfigurationError, match=r"\(21, 4\)"):
        TableLM(4, 3, torch.zeros(13, 4))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_tokenizer_round_trip_and_special_tokens():
    tok = VocabTokenizer(["A", "B", "C", "EOS"], "EOS")
    assert (tok.eos_token_id, tok.pad_token_id, tok.bos_token_id, len(tok)) == (3, 3, None, 4)
    assert tok("A B EOS") == {"input_ids": [0, 1, 3]}
    assert tok(["A", "C B"], add_special_tokens=False) == {"input_ids": [[0], [2, 1]]}
    assert tok.decode([0, 1, 3]) == "A B" and tok.decode([0, 3], skip_special_tokens=False) == "A EOS"
    assert tok.batch_decode(torch.tensor([[0, 1], [2, 3]])) == ["A B", "C"]
    assert tok.convert_ids_to_tokens(np.array([3, 0])) == ["EOS", "A"]


def test_tokenizer_refuses_what_it_cannot_round_trip():
    with pytest.raises(InvalidPromptError, match="'D'"):
        T0.tokenizer("A D")
    for tokens, eos in [(["A", "A"], "A"), (["A", "B C"], "A"), (["A", ""], "A"), (["A", "B"], "EOS")]:
        with pytest.raises(ConfigurationError):
            VocabTokenizer(tokens, eos)


# --- T0's numbers ----------------------------------------------------------------------------------------------------


def test_t0_counts():
    tokens, lengths = T0.trajectories()
    assert tokens.shape == (40, 3) and np.bincount(lengths).tolist() == [0, 1, 3, 36]
    assert len({(*row[:n],) for row, n in zip(tokens.tolist(), lengths, strict=True)}) == 40
    reachable = T0.enumeration.reachable(21)
    assert reachable.sum() == 13 and T0.reference_logits[reachable].size == 52
    assert T0.ended().sum() == 1 + 3 + 9


def test_t0_reference_and_scores():
    p = np.exp(T0.trajectory_logprobs(T0.reference_logits))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p @ T0.scores() == pytest.approx(-0.187, abs=1e-12)
    assert p @ T0.ended() == pytest.approx(0.546, abs=1e-12)
    expected = {(EOS,): 0, (B, EOS): 1, (A, B, EOS): 1.5, (B, A, EOS): 1, (B, B, EOS): 2, (A, B, B): -1, (C, C, C): -1}
    for ids, score in expected.items():
        assert T0.scores()[trajectory_index(T0, *ids)] == score
    assert T0.raw_scores()[trajectory_index(T0, A, B, B)] == 2.5
    assert p[trajectory_index(T0, A, B, EOS)] == pytest.approx(0.4 * 0.5 * 0.3)


@pytest.mark.parametrize("beta", TABLE)
@pytest.mark.parametrize("way", ["optimum", "soft_recursion"])
def test_t0_optimum(beta, way):
    best = getattr(T0, way)(beta)
    assert (best.Z, best.J, best.R, best.KL, best.p_eos) == pytest.approx(TABLE[beta], abs=6e-7)
    assert best.distribution.sum() == pytest.approx(1, abs=1e-12)
    if beta == 0.5:
        assert best.first_token == pytest.approx([0.416789, 0.484586, 0.067863, 0.030761], abs=6e-7)
    after_ab = beta * math.log(0.7 * math.exp(-1 / beta) + 0.3 * math.exp(1.5 / beta))
    assert best.value[6] == pytest.approx(after_ab, abs=1e-12)
    assert best.policy_logits[6, EOS] == pytest.approx(math.log(0.3) + (1.5 - after_ab) / beta, abs=1e-12)


def test_one_step_mdp_by_hand():
    mdp = TokenMDP(("x", "EOS"), 1, [[math.log(3), 0]], lambda ids: 1.0 if ids == [0] else 0.0, eos_id=1)
    best = mdp.optimum(1.0)
    assert best.Z == pytest.approx(0.75 * math.e + 0.25)
    assert best.first_token == pytest.approx(np.array([0.75 * math.e, 0.25]) / best.Z)
    assert best.value == pytest.approx([math.log(best.Z)])


# --- the theory ------------------------------------------------------------------------------------------------------


@given(small_mdps, betas)
@few
def test_enumeration_equals_recursion(mdp, beta):
    one, two = mdp.optimum(beta), mdp.soft_recursion(beta)
    for field in dataclasses.fields(one):
        got, expected = getattr(two, field.name), getattr(one, field.name)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9, err_msg=field.name)
    assert one.J == pytest.approx(one.R - beta * one.KL, abs=1e-9)
    assert one.KL == pytest.approx(one.R / beta - one.J / beta, abs=1e-9)
    assert np.exp(one.policy_logits).sum(axis=1) == pytest.approx(1, abs=1e-12)


@given(small_mdps, betas, seeds)
@few
def test_gap_is_beta_times_the_kl_to_the_optimum(mdp, beta, seed):
    policy = random_logits(mdp, seed)
    policy[np.isneginf(mdp.reference_logits)] = -np.inf
    logprobs = mdp.trajectory_logprobs(policy)
    log_best = mdp.trajectory_logprobs(mdp.optimum(beta).policy_logits)
    pi = np.exp(logprobs)
    with np.errstate(invalid="ignore"):
        kl = np.where(pi > 0, pi * (logprobs - log_best), 0).sum()
    figures = mdp.evaluate(policy, beta)
    assert figures.gap == pytest.approx(beta * kl, abs=1e-9) and figures.gap > -1e-12
    assert figures.J == pytest.approx(figures.R - beta * figures.KL, abs=1e-12)
    assert 0 <= figures.tv <= math.sqrt(kl / 2) + 1e-9  # Pinsker
    assert pi @ mdp.scores() == pytest.approx(figures.R) and pi @ mdp.ended() == pytest.approx(figures.p_eos)


@given(small_mdps, st.floats(0.3, 3))
@few
def test_slope_of_the_optimum_in_beta_is_minus_its_kl(mdp, beta):
    h = 1e-4
    slope = (mdp.optimum(beta + h).J - mdp.optimum(beta - h).J) / (2 * h)
    assert slope == pytest.approx(-mdp.optimum(beta).KL, abs=1e-5)


def test_slope_on_t0():
    for beta in TABLE:
        h = 1e-5 * beta
        slope = (T0.optimum(beta + h).J - T0.optimum(beta - h).J) / (2 * h)
        assert slope == pytest.approx(-T0.optimum(beta).KL, abs=1e-6)


def test_evaluating_the_optimum_and_the_reference():
    best = T0.optimum(0.5)
    at_best, at_reference = T0.evaluate(best.policy_logits, 0.5), T0.evaluate(T0.reference_logits, 0.5)
    assert (at_best.gap, at_best.tv) == pytest.approx((0, 0), abs=1e-12)
    assert (at_best.R, at_best.KL, at_best.p_eos) == pytest.approx((best.R, best.KL, best.p_eos), abs=1e-12)
    assert at_reference.KL == 0 and at_reference.J == pytest.approx(-0.187)
    reference = np.exp(T0.trajectory_logprobs(T0.reference_logits))
    assert at_reference.tv == pytest.approx(np.maximum(reference - best.distribution, 0).sum(), abs=1e-12)


def test_a_token_the_reference_never_takes():
    """'x' is the best token, and of probability 0: no part of the optimum, and infinitely far from it."""
    reference = np.array([[-np.inf, math.log(0.25), math.log(0.75)]] * 4)
    mdp = TokenMDP(("x", "y", "EOS"), 2, reference, lambda ids: 10.0 * ids.count(0) + len(ids), eos_id=2)
    best = mdp.optimum(1.0)
    has_x = (mdp.trajectories()[0] == 0).any(axis=1)
    assert not best.distribution[has_x].any() and best.Z == pytest.approx(0.75 * math.e + 0.25 * math.e**2)
    assert mdp.evaluate(reference, 1.0).KL == 0
    off = mdp.evaluate(np.zeros((4, 3)), 1.0)
    assert (off.KL, off.J, off.gap) == (math.inf, -math.inf, math.inf) and 0 < off.tv <= 1
    # A state that only 'x' leads to still has its own soft value.
    assert best.value[1] == pytest.approx(math.log(0.25 * math.e**12 + 0.75 * math.e**12))


def test_tiny_beta_keeps_the_optimum_finite():
    best = T0.optimum(1e-4)
    assert math.isinf(best.Z) and best.R == pytest.approx(2) and best.KL == pytest.approx(-math.log(0.3 * 0.1 * 0.3))
    assert best.J == pytest.approx(best.R - 1e-4 * best.KL)


# --- policies that are models ----------------------------------------------------------------------------------------


def test_models_at_the_reference():
    policy, reference = T0.policy_model(torch.float64), T0.reference_model()
    assert policy.table.requires_grad and not reference.table.requires_grad
    assert (policy.table.dtype, reference.table.dtype) == (torch.float64, torch.float32)
    assert T0.trajectory_logprobs(policy) == pytest.approx(T0.trajectory_logprobs(T0.reference_logits), abs=1e-12)
    assert T0.evaluate(reference, 0.5).KL == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        policy.table.add_(1.0)
    assert np.exp(T0.reference_logits).sum(axis=1) == pytest.approx(1)  # no storage shared


@given(seeds)
@few
def test_table_model_and_its_logits_give_the_same_logprobs(seed):
    mdp = TokenMDP.random(seed, 4, 4)
    logits = random_logits(mdp, seed)
    expected = mdp.trajectory_logprobs(logits)
    assert np.exp(expected).sum() == pytest.approx(1, abs=1e-12)
    assert mdp.trajectory_logprobs(TableLM(4, 4, torch.tensor(logits), torch.float64)) == pytest.approx(
        expected, abs=1e-12
    )
    assert mdp.trajectory_logprobs(torch.tensor(logits, requires_grad=True)) == pytest.approx(expected, abs=1e-12)
    single = logits.astype(np.float32)  # widened before it is normalized
    assert mdp.trajectory_logprobs(single) == pytest.approx(mdp.trajectory_logprobs(single.astype(float)), abs=1e-12)


def test_a_transformer_is_evaluated_as_its_full_forwards_say():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=4, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=3
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    logprobs = T0.trajectory_logprobs(model)
    assert np.exp(logprobs).sum() == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        tokens = model(torch.tensor([[EOS, A, B]])).logits.double().log_softmax(-1)[0]
    expected = (tokens[0, A] + tokens[1, B] + tokens[2, EOS]).item()
    assert logprobs[trajectory_index(T0, A, B, EOS)] == pytest.approx(expected, abs=1e-6)
    assert logprobs[trajectory_index(T0, EOS)] == pytest.approx(tokens[0, EOS].item(), abs=1e-6)


def test_a_policy_of_another_size_is_refused():
    with pytest.raises(ConfigurationError, match=r"\(21, 4\)"):
        T0.trajectory_logprobs(np.zeros((13, 4)))
    with pytest.raises(ConfigurationError, match="vocabulary of 4"):
        T0.trajectory_logprobs(TableLM(5, 3))


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_id": 4}, "eos_id"),
        ({"eos_id": -1}, "eos_id"),
        ({"missing_eos_score": math.nan}, "missing_eos_score"),
        ({"reference_logits": np.zeros((13, 4))}, r"\(21, 4\)"),
        ({"reference_logits": np.full((21, 4), np.nan)}, "row"),
        ({"reference_logits": np.full((21, 4), -np.inf)}, "row"),
        ({"reference_logits": np.full((21, 4), np.inf)}, "row"),
        ({"tokens": ("A", "A", "C", "EOS")}, "different"),
        ({"horizon": 30}, "enumerate"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(T0, **changes)


@pytest.mark.parametrize("beta", [0, -1.0, math.nan, math.inf])
def test_bad_beta_is_refused(beta):
    for call in (T0.optimum, T0.soft_recursion, lambda b: fixed_point(T0, b, "k2_loss")):
        with pytest.raises(ConfigurationError, match="beta"):
            call(beta)


def test_a_score_that_is_not_finite_is_named():
    with pytest.raises(RewardValueError, match="'A B'"):
        dataclasses.replace(T0, score=lambda ids: math.inf if list(ids) == [A, B, EOS] else 0.0).scores()


def test_reference_logits_are_normalized_copied_and_read_only():
    logits = random_logits(T0, 0)
    mdp = dataclasses.replace(T0, reference_logits=logits)
    before = mdp.reference_logits.copy()
    logits[:] = 7
    assert np.array_equal(mdp.reference_logits, before)
    assert np.exp(before).sum(axis=1) == pytest.approx(1, abs=1e-12)
    for array in (mdp.reference_logits, *mdp.trajectories(), mdp.raw_scores()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_random_depends_on_its_seed_alone():
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    one, two, other = TokenMDP.random(5), TokenMDP.random(5), TokenMDP.random(6)
    assert np.array_equal(np.random.get_state()[1], state)
    assert np.array_equal(one.scores(), two.scores()) and np.array_equal(one.reference_logits, two.reference_logits)
    assert not np.array_equal(one.scores(), other.scores())
    assert (one.vocab_size, one.horizon, len(one.scores())) == (6, 3, 1 + 5 + 25 * 6)
    assert (one.scores()[~one.ended()] == -1).all() and len(np.unique(one.raw_scores())) == 156
    assert (TokenMDP.random(5, missing_eos_score=None).scores() == one.raw_scores()).all()


def test_reward_is_the_score_before_the_missing_eos_penalty_and_survives_a_deep_copy():
    ids = [[A, B, EOS], [A, B, B]]
    for mdp in (T0, copy.deepcopy(T0)):
        scores = score_responses(
            mdp.reward, ["EOS"] * 2, ["A B", "A B B"], {"response_ids": ids, "prompt_ids": [[3]] * 2}
        )
        assert scores.tolist() == [1.5, 2.5]
    assert T0.start_token == T0.tokenizer.eos_token_id == EOS


# --- other exact checks ----------------------------------------------------------------------------------------------


def best_of(n: int, mdp: TokenMDP) -> np.ndarray:
    """The distribution of the best of n reference samples, ties broken at random."""
    p, s = np.exp(mdp.trajectory_logprobs(mdp.reference_logits)), mdp.scores()
    q = np.zeros_like(p)
    for score in np.unique(s):
        tied = s == score
        q[tied] = p[tied] / p[tied].sum() * (p[s <= score].sum() ** n - p[s < score].sum() ** n)
    return q


def test_best_of_four():
    p, q = np.exp(T0.trajectory_logprobs(T0.reference_logits)), best_of(4, T0)
    kl = (q * np.log(q / p)).sum()
    assert kl == pytest.approx(0.574706, abs=6e-7) and q @ T0.scores() == pytest.approx(0.744440, abs=6e-7)
    assert kl <= math.log(4) - 3 / 4
    # A policy with the same KL does at best as well as the optimum of that KL: J*(beta) bounds it at every beta.
    assert all(T0.optimum(beta).J >= q @ T0.scores() - beta * kl for beta in TABLE)


def test_beta_of_a_kl_target():
    assert T0.optimum(0.901769).KL == pytest.approx(0.5, abs=1e-6)


def test_over_optimization():
    def proxy_score(ids):  # the bonus is paid on top of the -1, too
        paid = T0.score(ids) if ids[-1] == EOS else -1.0
        return paid + 3 * ((C, C) in itertools.pairwise(ids))

    proxy = dataclasses.replace(T0, score=proxy_score, missing_eos_score=None)

    def gold(beta):
        return proxy.optimum(beta).distribution @ T0.scores()

    for beta, expected in {
        4: (0.1781, -0.0139),
        1: (1.0708, 0.3716),
        0.5: (2.0817, 0.2888),
        0.2: (2.9614, -0.0021),
    }.items():
        assert (proxy.optimum(beta).R, gold(beta)) == pytest.approx(expected, abs=6e-5)
    grid = np.arange(60, 100) / 100
    assert max(grid, key=gold) == 0.77 and gold(0.77) == pytest.approx(0.40725, abs=6e-6)
    assert proxy.optimum(0.77).KL == pytest.approx(0.98903, abs=6e-6)


# --- fixed points of other objectives --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "figures"),
    [
        ("gibbs", (1.200893, 1.222879, 0.589453)),
        ("k2_loss", (1.358754, 1.637491, 0.540008)),
        ("k3_loss", (1.044151, 1.146446, 0.470928)),
        ("gamma", (1.138252, 1.104839, 0.585832)),
    ],
)
def test_fingerprints(objective, figures):
    got = T0.evaluate(fixed_point(T0, 0.5, objective), 0.5)
    assert (got.R, got.KL, got.J) == pytest.approx(figures, abs=6e-7)


def test_fingerprints_of_the_missing_eos_penalty():
    subtracted = T0.evaluate(fixed_point(T0, 0.5, "subtracted_penalty"), 0.5)
    assert (subtracted.R, subtracted.p_eos) == pytest.approx((0.285582, 0.573078), abs=6e-7)
    assert T0.evaluate(fixed_point(T0, 0.5, "no_penalty"), 0.5).p_eos == pytest.approx(0.153738, abs=6e-7)


OBJECTIVES = [
    "gibbs",
    "k2_loss",
    "k3_loss",
    "k3_loss_rescaled",
    "k3_loss_rescaled_by_length",
    "gamma",
    "entropy_bonus",
    "reward_rescaled",
    "subtracted_penalty",
    "no_penalty",
]


def expected_update(mdp: TokenMDP, logits: np.ndarray, objective: str, beta: float) -> torch.Tensor:
    """Gradient (S, V), in expectation, of the loss that an agent builds from samples: weights and returns detached."""
    tree = mdp.enumeration
    real, states, tokens = torch.tensor(tree.real), torch.tensor(tree.states), torch.tensor(tree.tokens)
    table = torch.tensor(logits, requires_grad=True)
    log_all = table.log_softmax(-1)
    logprobs = torch.where(real, log_all[states, tokens], 0.0)
    ref = torch.where(real, torch.tensor(mdp.reference_logits)[states, tokens], 0.0)
    p = logprobs.sum(1).exp().detach()
    unpenalized = mdp.raw_step_scores()
    scores = torch.tensor(
        {
            "subtracted_penalty": unpenalized - (tree.last & ~mdp.ended()[:, None]),
            "no_penalty": unpenalized,
            "last_score_only": np.where(tree.last, mdp.step_scores(), 0.0),
        }.get(objective, mdp.step_scores())
    )
    total = scores.sum(1)
    mean, std = p @ total, (p @ (total - p @ total) ** 2).sqrt() + 1e-4
    if objective.endswith("by_length"):  # every token is credited with the whole text's score
        scores = torch.tensor(tree.last) * ((total - mean) / std)[:, None]
    elif "rescaled" in objective:
        scores = scores / std
    in_reward = not objective.startswith(("k2", "k3"))
    rewards = -beta * in_reward * (logprobs - ref).detach()
    rewards += scores
    gamma, returns = 0.9 if objective == "gamma" else 1.0, torch.zeros_like(rewards)
    for t in reversed(range(mdp.horizon)):
        returns[:, t] = rewards[:, t] + (gamma * returns[:, t + 1] if t + 1 < mdp.horizon else 0)
    per_token = logprobs * returns
    if objective == "k2_loss":
        per_token = per_token - beta * (logprobs - ref) ** 2 / 2
    if objective.startswith("k3"):
        per_token = per_token - beta * ((ref - logprobs).exp() - 1 - (ref - logprobs))
    if objective == "entropy_bonus":
        per_token = per_token + 0.01 * torch.where(real, -(log_all.exp() * log_all).sum(-1)[states], 0.0)
    weight = p / torch.tensor(tree.lengths) if objective.endswith("by_length") else p
    (weight[:, None] * torch.where(real, per_token, 0.0)).sum().backward()
    return table.grad


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_agents_own_gradient_vanishes_at_its_fixed_point(objective, beta):
    for mdp in (T0, TokenMDP.random(3, 4, 3), TokenMDP.random(3, 4, 3, dense=True)):
        policy = fixed_point(mdp, beta, objective)
        assert expected_update(mdp, policy, objective, beta).abs().max() < 1e-10
        if not objective.startswith(("gibbs", "reward")):  # nor is it the optimum that is meant
            assert expected_update(mdp, policy, "gibbs", beta).abs().max() > 1e-5


def test_an_agent_that_loses_all_scores_but_the_last_rests_at_its_fixed_point():
    mdp = TokenMDP.random(3, 4, 3, dense=True)
    policy = fixed_point(mdp, 0.5, "last_score_only")
    assert expected_update(mdp, policy, "last_score_only", 0.5).abs().max() < 1e-10
    assert expected_update(mdp, policy, "gibbs", 0.5).abs().max() > 1e-3
    with pytest.raises(ConfigurationError, match="dense"):
        fixed_point(T0, 0.5, "last_score_only")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_natural_gradient_ascent_arrives_at_the_fixed_point(objective):
    logits, tree = T0.reference_logits.copy(), T0.enumeration
    for _ in range(600):
        p = np.exp(T0.trajectory_logprobs(logits))
        visits = np.zeros_like(logits)
        np.add.at(visits, (tree.states[tree.real], tree.tokens[tree.real]), (p[:, None] * tree.real)[tree.real])
        step = expected_update(T0, logits, objective, 1.0).numpy()
        logits += 0.1 * np.divide(step, visits, where=visits > 0, out=np.zeros_like(step))
    expected = np.exp(T0.trajectory_logprobs(fixed_point(T0, 1.0, objective)))
    assert np.exp(T0.trajectory_logprobs(logits)) == pytest.approx(expected, abs=1e-6)


def test_neutral_parameters_give_the_optimum():
    best = T0.optimum(0.5).policy_logits
    assert fixed_point(T0, 0.5, "gibbs") == pytest.approx(best, abs=1e-9)
    assert fixed_point(T0, 0.5, "gamma", gamma=1.0) == pytest.approx(best, abs=1e-9)
    assert fixed_point(T0, 0.5, "entropy_bonus", entropy_coef=0.0) == pytest.approx(best, abs=1e-9)


def test_rescaled_rewards_settle_at_another_beta_or_collapse():
    policy = fixed_point(T0, 1.0, "reward_rescaled")
    p, s = np.exp(T0.trajectory_logprobs(policy)), T0.scores()
    std = np.sqrt(p @ (s - p @ s) ** 2) + 1e-4
    assert 0.5 < std < 1 and policy == pytest.approx(T0.optimum(std).policy_logits, abs=1e-9)
    collapsed = fixed_point(T0, 0.5, "reward_rescaled")
    assert np.exp(T0.trajectory_logprobs(collapsed))[trajectory_index(T0, B, B, EOS)] == pytest.approx(1)


@given(small_mdps, betas, st.sampled_from(["k2_loss", "k3_loss", "gamma", "entropy_bonus", "no_penalty"]))
@few
def test_fixed_points_are_distributions_on_the_references_support(mdp, beta, objective):
    policy = fixed_point(mdp, beta, objective)
    assert np.exp(policy).sum(axis=1) == pytest.approx(1, abs=1e-9)
    assert np.array_equal(np.isneginf(policy), np.isneginf(mdp.reference_logits))


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "subtracted_penalty"])
def test_a_token_the_reference_never_takes_changes_no_fixed_point(objective):
    """However good 'x' would be."""
    points = {"x": 100.0, "y": 1.0, "EOS": 0.0}
    without, with_x = (
        TokenMDP(
            words,
            1,
            logits,
            lambda ids, words=words: points[words[ids[0]]],
            len(words) - 1,
        )
        for words, logits in [(("y", "EOS"), [[0, 1]]), (("x", "y", "EOS"), [[-np.inf, 0, 1]])]
    )
    expected = fixed_point(without, 0.3, objective)
    assert fixed_point(with_x, 0.3, objective)[:, 1:] == pytest.approx(expected, abs=1e-9)


def test_objectives_refuse_what_has_no_meaning():
    with pytest.raises(ConfigurationError, match="gibbs"):
        fixed_point(T0, 0.5, "k4_loss")
    with pytest.raises(ConfigurationError, match="gamma"):
        fixed_point(T0, 0.5, "gamma", gamma=1.5)
    with pytest.raises(ConfigurationError, match="missing_eos_score"):
        fixed_point(dataclasses.replace(T0, missing_eos_score=None), 0.5, "subtracted_penalty")
