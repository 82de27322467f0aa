"""DPO and online DPO: their optimum is the closed form, and the gradient is that of the formula, pair by pair."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import OnlineDPO, dpo_finetune
from agents.learning.preference.judged_texts import encode_judged
from agents.learning.preference.loss import preference_loss, response_sums
from lm_env.errors import CheckpointMismatchError, ConfigurationError, InvalidPromptError
from lm_env.models.fitting import weights_digest
from lm_env.storage import Checkpointing
from lm_env.tasks.token_mdp import make
from lm_env.theory.token_mdp import TokenMDP
from reward_models import Comparison, Preference

T0 = TokenMDP.t0()
EOS = 0
PAIRS = [
    Comparison("", "", "", [1, 2], [3, 4, EOS], [5, EOS]),
    Comparison("", "", "", [7], [8], [9, 10, 11, EOS]),
    Comparison("", "", "", [3, 3, 3], [6, EOS], [6, 2]),
    Comparison("", "", "", [5, 1], [2, 7, 4], [4, 4, EOS]),
]
OPTIONS = {"held_out_fraction": 0.0, "eos_token_id": EOS}


# -- the loss ----------------------------------------------------------------------------------------
def test_the_loss_golden():
    zero = torch.zeros(3)
    for smoothing in (0.0, 0.1):
        losses = preference_loss(zero, torch.tensor([1.0, 0.5, 0.0]), 0.3, label_smoothing=smoothing)
        torch.testing.assert_close(losses, torch.full((3,), math.log(2)))
    # beta .5, 2 nats ahead: log(1 + e^-1); and with a label that is wrong in one of ten cases.
    ahead, one = torch.tensor([2.0]), torch.ones(1)
    assert preference_loss(ahead, one, 0.5).item() == pytest.approx(0.313262, abs=1e-6)
    assert preference_loss(ahead, one, 0.5, label_smoothing=0.1).item() == pytest.approx(0.413262, abs=1e-6)
    assert preference_loss(ahead, one, 0.5, kind="ipo").item() == pytest.approx((2 - 1) ** 2)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.1, 3.0), st.floats(0, 0.4), st.sampled_from(["sigmoid", "ipo"]))
def test_each_loss_is_least_where_its_paper_says(chance, beta, smoothing, kind):
    seen = chance * (1 - smoothing) + (1 - chance) * smoothing
    best = math.log(seen / (1 - seen)) / beta if kind == "sigmoid" else (2 * seen - 1) / (2 * beta)
    difference = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    chances = torch.tensor([chance], dtype=torch.float64)
    preference_loss(difference, chances, beta, kind=kind, label_smoothing=smoothing).sum().backward()
    assert abs(difference.grad.item()) < 1e-9


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 2.0])
def test_the_optimum_on_t0_is_the_closed_form(beta):
    """All pairs of T0's 40 texts, labelled by the Bradley-Terry probabilities of their scores: a convex problem."""
    scores = torch.from_numpy(T0.scores().copy())
    one, other = np.triu_indices(len(scores), 1)
    chances = torch.sigmoid(scores[one] - scores[other])
    model = T0.policy_model(torch.float64)
    tree = T0.enumeration
    states, tokens, real = (torch.from_numpy(np.array(x)) for x in (tree.states, tree.tokens, tree.real))
    reference = torch.from_numpy(T0.trajectory_logprobs(T0.reference_logits))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=800, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        steps = torch.log_softmax(model.table, -1)[states, tokens]
        ratio = torch.where(real, steps, 0.0).sum(1) - reference
        loss = preference_loss(ratio[one] - ratio[other], chances, beta).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = T0.evaluate(model, beta)
    assert abs(found.gap) < 1e-8 and found.tv < 1e-5, found


# -- from records to weights -------------------------------------------------------------------------
def rational_mdp() -> TokenMDP:
    """Scores that are logarithms of integers, so that a finite set of comparisons has exactly their probabilities."""
    scores = {(2,): 1, (0, 2): 2, (1, 2): 3, (0, 0): 1, (0, 1): 4, (1, 0): 2, (1, 1): 1}
    logits = np.log([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [1 / 3, 1 / 3, 1 / 3]])
    return TokenMDP(("A", "B", "E"), 2, logits, lambda ids: math.log(scores[tuple(ids)]), eos_id=2)


def test_training_on_records_reaches_the_closed_form():
    mdp = rational_mdp()
    tokens, lengths = mdp.trajectories()
    ids = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    weights = np.rint(np.exp(mdp.scores())).astype(int)
    records = [
        Comparison("", "", "", [mdp.start_token], ids[i], ids[j])
        for i in range(len(ids))
        for j in range(len(ids))
        if i != j
        for _ in range(weights[i])  # i wins weights[i] times of weights[i] + weights[j]
    ]
    model = mdp.policy_model(torch.float64)
    options = {**OPTIONS, "eos_token_id": mdp.eos_id, "batch_size": len(records), "max_grad_norm": 1e6}
    dpo_finetune(model, None, records, beta=0.5, epochs=300, learning_rate=0.2, **options)
    found = mdp.evaluate(model, 0.5)
    assert abs(found.gap) < 1e-6 and found.tv < 1e-3, found


@pytest.mark.parametrize("micro", [1, 30, 10_000])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_the_gradient_is_that_of_the_formula_pair_by_pair(make_lm, micro, kind):
    """One step of plain descent, against torch's own cross-entropy on rows without padding."""
    model, reference = make_lm("gpt2"), make_lm("gpt2", seed=1)
    other = copy.deepcopy(model)
    beta, temperature = 0.4, 0.7

    def logprob(lm, prompt, response):
        row = torch.tensor([[*prompt, *response]])
        logits = lm(input_ids=row).logits[0, len(prompt) - 1 : -1] / temperature
        return -F.cross_entropy(logits, row[0, len(prompt) :], reduction="sum")

    total = torch.zeros(())
    for pair in PAIRS:
        with torch.no_grad():
            known = logprob(reference, pair.prompt_ids, pair.chosen_ids) - logprob(
                reference, pair.prompt_ids, pair.rejected_ids
            )
        mine = logprob(other, pair.prompt_ids, pair.chosen_ids) - logprob(other, pair.prompt_ids, pair.rejected_ids)
        margin = mine - known
        total = total + (-F.logsigmoid(beta * margin) if kind == "sigmoid" else (margin - 1 / (2 * beta)) ** 2)
    (total / len(PAIRS)).backward()
    seen = {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.__setitem__(name, p.grad.clone()))
    report = dpo_finetune(
        model,
        None,
        PAIRS,
        reference=reference,
        beta=beta,
        loss=kind,
        temperature=temperature,
        micro_batch_tokens=micro,
        learning_rate=1e-30,
        max_grad_norm=1e9,
        **OPTIONS,
    )
    assert report.losses == [pytest.approx(total.item() / len(PAIRS), rel=1e-5)]
    scale = max(p.grad.abs().max().item() for p in other.parameters())
    for name, theirs in other.named_parameters():
        torch.testing.assert_close(seen[name], theirs.grad, rtol=0, atol=2e-5 * scale)


def test_a_ranking_is_all_its_pairs_read_once(tokenizer):
    size = {"vocab_size": len(tokenizer), "max_tokens": 60}
    ranking = Preference("a good", (" film", " movie", " one"), (0, 1, 1))
    texts = encode_judged([ranking], tokenizer, **size)
    assert len(texts.episodes) == 3
    (record,) = texts.records
    assert sorted(zip(record.first.tolist(), record.second.tolist(), record.chances.tolist(), strict=True)) == [
        (0, 1, 1.0),
        (0, 2, 1.0),
        (1, 2, 0.5),
    ]
    assert all(row[-1] == tokenizer.eos_token_id for row in texts.episodes.responses()), "a text is complete"


def test_sampled_tokens_stay_as_they_were_and_what_is_too_long_is_counted():
    texts = encode_judged(PAIRS, None, vocab_size=61, max_tokens=3)
    assert texts.episodes.responses() == [[3], [5], [8], [9, 10], [2], [4]], "no EOS is put behind a capped sample"
    assert texts.left_out == 1, "the prompt of the third fills all three tokens"
    assert texts.cut == 5
    with pytest.raises(ConfigurationError, match="raise max_tokens"):
        encode_judged(PAIRS[2:3], None, vocab_size=61, max_tokens=3)
    same = [Preference("p", ("x", "x"), (0, 1))]
    with pytest.raises(ConfigurationError, match="none of 1 records"):
        encode_judged([replace(PAIRS[0], rejected_ids=[3, 4, EOS])], None, vocab_size=61, max_tokens=9)
    assert same[0].outcomes(), "the record itself holds a comparison"


def test_a_broken_prompt_is_named_by_its_record(tokenizer):
    records = [Preference("a good", (" film", " one"), (0, 1)), Preference("", ("a", "b"), (0, 1))]
    with pytest.raises(InvalidPromptError, match="record 1"):
        encode_judged(records, tokenizer, vocab_size=len(tokenizer), max_tokens=60)


def learnable(count: int) -> list[Comparison]:
    """The response that repeats the prompt wins."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(np.arange(1, 9), 2, replace=False).tolist() for _ in range(count)]
    return [Comparison(str(a), "", "", [a], [a, EOS], [b, EOS]) for a, b in drawn]


def test_the_report_says_what_was_learned_of_pairs_held_out(make_lm):
    model = make_lm("gpt2")
    report = dpo_finetune(
        model, None, learnable(200), eos_token_id=EOS, epochs=12, learning_rate=3e-3, patience=3, beta=0.5
    )
    assert report.before.accuracy == 0.5 and report.before.loss == pytest.approx(math.log(2)), "the reference itself"
    assert report.before.margin == 0.0
    assert report.after.accuracy > 0.7 and report.after.margin > 0 and report.after.loss < report.before.loss
    assert report.after.chosen_logprob > report.after.rejected_logprob
    assert min(found.loss for found in report.held_out_losses) == pytest.approx(report.after.loss, abs=1e-6)


def test_what_was_killed_goes_on_to_the_same_weights(make_lm, tmp_path):
    options = {"eos_token_id": EOS, "epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "patience": 9}
    whole = make_lm("gpt2")
    dpo_finetune(whole, None, learnable(80), **options)
    killed = make_lm("gpt2")
    passes = []

    def die_in_the_tenth(parameter):
        passes.append(parameter)
        if len(passes) == 10:
            raise RuntimeError("killed")

    next(iter(killed.parameters())).register_post_accumulate_grad_hook(die_in_the_tenth)
    with pytest.raises(RuntimeError, match="killed"):
        dpo_finetune(killed, None, learnable(80), checkpoint=Checkpointing(tmp_path / "run", every=1), **options)
    resumed = make_lm("gpt2")
    dpo_finetune(resumed, None, learnable(80), checkpoint=Checkpointing(tmp_path / "run"), resume=True, **options)
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(CheckpointMismatchError, match="reference differs"):
        other = make_lm("gpt2", seed=5)
        dpo_finetune(other, None, learnable(80), checkpoint=Checkpointing(tmp_path / "run"), resume=True, **options)
    assert weights_digest(whole.parameters()) == weights_digest(resumed.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"loss": "hinge"}, "sigmoid"),
        ({"held_out_fraction": 0.0, "patience": 1}, "held_out_fraction"),
        ({"eval_steps": 5}, "patience"),
        ({"rank": 3}, "rank"),
    ],
)
def test_impossible_settings_are_refused_before_anything_changes(make_lm, options, message):
    model = make_lm("gpt2")
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigurationError, match=message):
        dpo_finetune(model, None, PAIRS, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# -- online ------------------------------------------------------------------------------------------
def online(**options) -> OnlineDPO:
    return OnlineDPO(
        make(mdp=T0, beta=0.5, model=T0.policy_model(torch.float64), reference=T0.reference_model(torch.float64)),
        **{"rollout_episodes": 24, "slots": 24, "batch_size": 24, "max_grad_norm": 1e9, **options},
    )


@pytest.mark.parametrize("labels", ["bradley-terry", "best"])
@pytest.mark.parametrize("micro", [1, 10_000])
def test_the_online_gradient_is_the_mean_over_all_pairs_of_a_group(labels, micro):
    agent = online(group_size=3, labels=labels, learning_rate=1e-300, micro_batch_tokens=micro)
    with torch.no_grad():  # some way from the reference, so that the log-ratios count
        noise = torch.randn(agent.task.model.table.shape, generator=torch.Generator().manual_seed(1))
        agent.task.model.table += 0.5 * noise
    rollout = agent.collect_rollout()
    agent.updater.optimizer.zero_grad()
    agent.update(rollout)
    found = agent.task.model.table.grad.clone()
    agent.task.model.table.grad = None
    logprobs = response_sums(agent.policy.evaluate(rollout.episodes).logprobs, rollout.episodes)
    ratio = logprobs - torch.from_numpy(rollout.scored.ref_logprobs.sum(1))
    scores = rollout.scored.scores
    losses = []
    for start in range(0, 24, 3):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            i, j = start + i, start + j
            chance = 1 / (1 + math.exp(scores[j] - scores[i]))
            if labels == "best":
                chance = float(np.sign(scores[i] - scores[j]) + 1) / 2
            margin = 0.5 * (ratio[i] - ratio[j])
            losses.append(-chance * F.logsigmoid(margin) - (1 - chance) * F.logsigmoid(-margin))
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(found, agent.task.model.table.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_online_dpo_reaches_the_optimum_of_t0(seed):
    """For at the optimum the gradient of every single pair is 0, whatever is sampled."""
    env = make(mdp=T0, beta=0.5)
    options = {"rollout_episodes": 512, "slots": 512, "batch_size": 512, "max_grad_norm": 100.0}
    OnlineDPO(env, seed=seed, learning_rate=0.1, **options).learn(170_000)
    found = T0.evaluate(env.task.model, 0.5)
    assert found.gap < 2e-3 and found.tv < 0.02, found


def test_the_log_of_online_dpo_and_groups_that_stay_whole():
    agent = online(group_size=4, batch_size=8)
    metrics = agent.update(agent.collect_rollout())
    assert {"accuracy", "margin", "chosen_logprob", "rejected_logprob", "equal_groups"} <= metrics.keys()
    for rows in agent.group_batches(24):
        assert (rows.reshape(-1, 4) % 4 == np.arange(4)).all() and len(rows) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [({"group_size": 1}, "at least 2"), ({"group_size": 5}, "multiple"), ({"labels": "worst"}, "bradley-terry")],
)
def test_impossible_options_of_online_dpo(options, message):
    with pytest.raises(ConfigurationError, match=message):
        online(**options)
    with pytest.raises(ConfigurationError, match="beta above 0"):
        OnlineDPO(make(mdp=T0, beta=0.0))
