"""A state that is restored or forked goes on as the episode it was taken from, without reading the text again."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from lm_env.envs import SlotState
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import BusyError, ConfigurationError, InvalidActionError, ResetNeeded, RewardError

KINDS = ["gpt2", "llama", "mistral", "table"]
LONG = {"max_new_tokens": 12}


def steady(observation: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
    """A logprob_fn: a number that tells one text and action from another."""
    return -(observation["input_ids"].sum(1) + 7 * actions + observation["length"][:, 0]) / 100


def tell(env, source: str, actions: np.ndarray) -> None:
    """Let the coming step's log pi come from this source."""
    env.bind_logprob_fn(steady if source == "logprob_fn" else None)
    if source == "published":
        env.publish(actions, -np.asarray(actions) / 10 - 0.5)


def walk(env: TextGenerationEnv, actions, source: str = "model") -> list:
    """All that the steps return, observations as lists."""
    seen = []
    for action in actions:
        tell(env, source, action)
        observation, *rest = env.step(action)
        seen.append([{k: v.tolist() for k, v in observation.items()}, *rest])
    return seen


def drawn(env, n: int = 5) -> list:
    return [np.asarray(env.reset()[1]["prompt_index"]).tolist() for _ in range(n)]


class TokenCount:
    """Counts the tokens that go through the trunks of some models."""

    def __init__(self, *models: torch.nn.Module) -> None:
        self.tokens = 0
        for model in models:
            model.base_model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module, args, kwargs) -> None:
        self.tokens += kwargs["input_ids"].numel()

    def take(self) -> int:
        """The tokens since the last call."""
        tokens, self.tokens = self.tokens, 0
        return tokens


# --- save and restore ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["model", "published", "logprob_fn"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_after_a_restore_the_same_actions_bring_bit_identical_results(steps, kind, source, id_task):
    env = TextGenerationEnv(**id_task(kind))
    env.reset(seed=4)
    walk(env, [1, 2, 3][:steps], source)
    state, before, shown = env.save_state(), env.observation(), env.mdp.render(0)
    rest = [2, 4, 0]
    first, prompts = walk(env, rest, source), drawn(env)
    env.reset(seed=4)  # the same text as it was, from its beginning
    walk(env, [1, 2, 3][:steps], source)
    walk(env, [4], source)
    env.restore_state(state)
    for key, values in env.observation().items():
        np.testing.assert_array_equal(values, before[key])
    assert env.mdp.render(0) == shown
    assert walk(env, rest, source) == first and drawn(env) == prompts


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_may_be_gone_back_to_again_and_again_and_from_any_depth(kind, id_task):
    env = TextGenerationEnv(**id_task(kind))
    env.reset(seed=4)
    states, results = [env.save_state()], []
    for action in (1, 2, 3, 4, 0):
        results += walk(env, [action])
        states.append(env.save_state())
    assert [s.running for s in states] == 5 * [True] + [False] and states[-1].score != 0
    for depth in (4, 2, 2, 3, 1, 0):
        env.restore_state(states[depth])
        if depth:
            assert walk(env, [(1, 2, 3, 4, 0)[depth]]) == results[depth : depth + 1]
    env.restore_state(states[5])
    with pytest.raises(ResetNeeded):
        env.step(1)


def test_after_another_episode_the_text_is_read_again_and_the_results_agree(id_task):
    env = TextGenerationEnv(**id_task("llama"))
    env.reset(seed=4)
    walk(env, [1, 2])
    state = env.save_state()
    first = walk(env, [3, 4, 0])
    env.reset(options={"prompt": [9, 9]})
    walk(env, [5])
    env.restore_state(state)
    for again, once in zip(walk(env, [3, 4, 0]), first, strict=True):
        assert again[0] == once[0] and again[2:4] == once[2:4]
        assert again[1] == pytest.approx(once[1], abs=1e-5)


def test_going_back_costs_a_forward_of_one_token(id_task):
    options = id_task("llama", **LONG)
    env = TextGenerationEnv(**options)
    env.reset(options={"prompt": [1, 2, 3, 4, 5]})
    walk(env, [1, 2])
    state = env.save_state()
    walk(env, [3, 4, 5])
    count = TokenCount(options["model"], options["reference"])
    for _ in range(3):
        env.restore_state(state)
        assert count.take() == 0
        walk(env, [6])
        assert count.take() == 2  # one of the model, one of its reference


def test_a_state_is_plain_data_of_its_own(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=4)
    walk(env, [1, 2])
    state = env.save_state()
    copies = [copy.deepcopy(state), pickle.loads(pickle.dumps(state))]  # noqa: S301
    first = walk(env, [3, 0])
    assert state.response.tolist() == [1, 2] and state.score == 0 and state.running
    assert not any(np.shares_memory(state.rewards, array) for array in (env.mdp.step_rewards, env.mdp.log_ratios))
    for held in copies:
        env.reset(seed=4)
        walk(env, [1, 2])
        env.restore_state(held)
        held.rewards[:] = 99.0
        assert walk(env, [3, 0]) == first and env.mdp.step_rewards.max() < 99


def test_a_state_goes_into_another_environment_of_the_same_options(id_task):
    env, other = TextGenerationEnv(**id_task()), TextGenerationEnv(**id_task())
    env.reset(seed=4)
    walk(env, [1, 2])
    other.restore_state(env.save_state())  # which has not even been reset
    for here, there in zip(walk(env, [3, 0]), walk(other, [3, 0]), strict=True):
        assert here[1] == pytest.approx(there[1], abs=1e-5)
    assert drawn(env) == drawn(other)


def test_in_a_vector_each_slot_is_saved_and_restored_by_itself(id_task):
    options = id_task("llama", **LONG)
    env = TextGenerationVectorEnv(4, **options)
    env.reset(seed=0)
    env.step(np.array([1, 2, 3, 4]))
    env.step(np.array([5, 6, 7, 8]))
    state = env.save_state(2)
    single = TextGenerationEnv(**id_task("llama", **LONG))
    single.reset(options={"prompt": state.prompt})
    walk(single, [3, 7])
    expected = walk(single, [9, 10])
    others = {slot: env.save_state(slot) for slot in (1, 2)}
    count = TokenCount(options["model"], options["reference"])
    env.restore_state(state, [0, 3])
    assert env.observation()["input_ids"][[0, 3]].tolist() == 2 * [env.observation()["input_ids"][2].tolist()]
    for action, step in zip((9, 10), expected, strict=True):
        rewards = env.step(np.full(4, action))[1]
        assert rewards[[0, 2, 3]] == pytest.approx(step[1], abs=1e-5)
    assert count.take() == 2 * 2 * 4, "the rows were copied: one token a slot, step and model"
    for slot, kept in others.items():
        assert env.save_state(slot).response.tolist() == [*kept.response, 9, 10]
    env.restore_state(state)
    assert (env.mdp.lengths == len(state.ids)).all()


def test_any_walk_through_states_pays_what_plain_forwards_say(id_task):
    options = id_task("gpt2", **LONG)
    env = TextGenerationVectorEnv(3, autoreset_mode="Disabled", **options)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    states = [env.save_state(0)]
    for _ in range(60):
        kind = rng.integers(6)
        slots = np.flatnonzero(rng.random(3) < 0.5)
        if kind == 0:
            states.append(env.save_state(int(rng.integers(3))))
        elif kind == 1 and len(slots):
            env.restore_state(states[rng.integers(len(states))], slots)
        elif kind == 2:
            slot = int(rng.integers(3))
            state = env.save_state(slot)
            env = env.fork(slot, 3)
            assert (env.observation()["input_ids"][:, : len(state.ids)] == state.ids).all()
        ended = ~env.mdp.running
        if ended.any():
            env.reset(options={"reset_mask": ended})
        texts = env.observation()
        actions = rng.integers(0, 61, 3)
        info = env.step(actions)[4]
        for slot, (ids, length) in enumerate(zip(texts["input_ids"], texts["length"][:, 0], strict=True)):
            for name, model in (("logprob", options["model"]), ("ref_logprob", options["reference"])):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor(ids[None, :length])).logits[0, -1]
                expected = torch.log_softmax(logits, -1)[actions[slot]].item()
                assert info[name][slot] == pytest.approx(expected, abs=1e-5)


def test_a_restored_slot_that_had_ended_is_reset_by_the_next_step_as_it_would_have_been(id_task):
    env = TextGenerationVectorEnv(1, **id_task())
    env.reset(seed=0)
    env.step(np.array([0]))
    state = env.save_state(0)
    once = env.step(np.array([7]))[4]["prompt"]
    for _ in range(3):
        env.step(np.array([7]))
    env.restore_state(state)
    assert env.step(np.array([7]))[4]["prompt"] == once and env.mdp.running.all()


def test_what_was_published_belongs_to_a_step_and_not_to_a_state(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.publish(5, -1.0)
    state, fork = env.save_state(), env.fork(2)
    assert set(fork.step(np.array([5, 6]))[4]["logprob_source"]) == {"model"}
    env.restore_state(state)
    assert env.step(6)[4]["logprob_source"] == "model"


# --- fork ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["model", "published", "logprob_fn"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_fork_goes_on_like_the_original(steps, kind, source, id_task):
    env = TextGenerationEnv(**id_task(kind))
    env.reset(seed=4)
    walk(env, [1, 2][:steps], source)
    fork = env.fork(3)
    assert isinstance(fork, TextGenerationVectorEnv) and fork.num_envs == 3 and fork.task is env.task
    for row in range(3):
        assert {k: v[row].tolist() for k, v in fork.observation().items()} == {
            k: v.tolist() for k, v in env.observation().items()
        }
    if source == "logprob_fn" and steps:
        assert fork.mdp.behavior.logprob_fn is steady
    for action in (2, 4, 0):
        ((observation, reward, terminated, truncated, info),) = walk(env, [action], source)
        tell(fork, source, np.full(3, action))
        observations, rewards, ended, cut, infos = fork.step(np.full(3, action))
        assert observations["input_ids"].tolist() == 3 * [observation["input_ids"]]
        assert (ended == terminated).all() and (cut == truncated).all()
        tolerance = 0 if kind == "table" else 1e-5
        assert rewards == pytest.approx(reward, abs=tolerance)
        for key in ("score", "logprob", "ref_logprob", "kl"):
            assert infos[key] == pytest.approx(info[key], abs=tolerance)
        assert infos["logprob_source"].tolist() == 3 * [info["logprob_source"]]


def test_forks_go_on_by_themselves(id_task):
    env = TextGenerationVectorEnv(2, flat=True, autoreset_mode="SameStep", **id_task("llama", **LONG))
    env.reset(seed=0)
    env.step(np.array([1, 2]))
    kept = env.observation()
    fork = env.fork(1, 3)
    assert (fork.flat, fork.autoreset_mode) == (env.flat, env.autoreset_mode)
    assert fork.observation().shape == (3, env.single_observation_space.shape[0])
    alone = TextGenerationEnv(**id_task("llama", **LONG))
    for _ in range(3):
        fork.step(np.array([3, 4, 5]))
    np.testing.assert_array_equal(env.observation(), kept)
    for slot, action in enumerate((3, 4, 5)):
        alone.reset(options={"prompt": env.mdp.prompts[1]})
        expected = walk(alone, [2, action, action, action])
        assert fork.mdp.step_rewards[slot, :4] == pytest.approx([step[1] for step in expected], abs=1e-5)
    rewards = env.step(np.array([6, 7]))[1]
    alone.reset(options={"prompt": env.mdp.prompts[1]})
    assert rewards[1] == pytest.approx(walk(alone, [2, 7])[1][1], abs=1e-5)


def test_a_fork_copies_the_caches_rows_and_computes_nothing_again(id_task):
    options = id_task("llama", **LONG)
    env = TextGenerationEnv(**options)
    env.reset(options={"prompt": [1, 2, 3, 4, 5]})
    walk(env, [1, 2, 3])
    count = TokenCount(options["model"], options["reference"])
    fork = env.fork(8)
    assert count.take() == 0
    fork.step(np.arange(1, 9))
    assert count.take() == 2 * 8, "one token a slot and model"
    grandchild = fork.fork(3, 2)
    grandchild.step(np.array([1, 2]))
    assert count.take() == 2 * 2


@pytest.mark.parametrize("way", ["fork", "restore"])
def test_rows_of_old_weights_are_not_copied(way, id_task):
    options = id_task("llama", **LONG)
    env = TextGenerationVectorEnv(2, **options)
    env.reset(seed=0)
    env.step(np.array([1, 2]))
    env.step(np.array([3, 4]))
    model = options["model"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
    optimizer.step()
    if way == "fork":
        env = env.fork(0, 2)
    else:
        env.restore_state(env.save_state(0))
    text = env.observation()["input_ids"][:, : env.mdp.lengths[0]]
    with torch.no_grad():
        expected = torch.log_softmax(model(input_ids=torch.tensor(text)).logits[:, -1], -1)[:, 7]
    assert env.step(np.array([7, 7]))[4]["logprob"] == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_slots_of_a_fork_draw_prompts_of_their_own(id_task):
    env = TextGenerationEnv(**id_task(prompts=[[i] for i in range(1, 60)]))
    env.reset(seed=4)
    state = env.save_state()
    forks = [env.fork(4), env.fork(4), env.fork(2)]
    first, again, fewer = (np.array(drawn(fork)) for fork in forks)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, :2], fewer)
    assert len({tuple(column) for column in first.T}) == 4
    mine = drawn(env)
    env.restore_state(state)
    assert drawn(env) == mine and mine not in first.T.tolist()


def test_an_ended_episode_can_be_forked_and_its_slots_are_reset_by_the_next_step(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.step(0)
    fork = env.fork(2)
    assert not fork.mdp.running.any()
    fork.step(np.array([5, 5]))
    assert fork.mdp.running.all() and (fork.mdp.lengths == fork.mdp.prompt_lengths).all()


def test_registered_environments_fork_and_restore():
    env = gymnasium.make("lm_env/TokenMDP-v0")
    env.reset(seed=0)
    state = env.save_state()
    first = walk(env, [0, 1, 2])
    env.restore_state(state)
    assert walk(env, [0, 1, 2]) == first
    vector = gymnasium.make_vec("lm_env/TokenMDP-v0", num_envs=2)
    vector.reset(seed=0)
    assert vector.fork(1, 5).num_envs == 5 and vector.save_state(1).running


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 5},
        {"temperature": 0.5},
        {"eos_token_id": (0, 1)},
        {"missing_eos_score": -1.0},
        {"prompts": [[1]]},
        {"reward": lambda prompts, responses: [0.0] * len(prompts)},
        {"action_mask": lambda prompt, response: np.ones(61, bool)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_state_of_another_task_is_refused_and_the_difference_named(changes, id_task):
    env, other = TextGenerationEnv(**id_task()), TextGenerationEnv(**id_task(**changes))
    env.reset(seed=0), other.reset(seed=0)
    walk(other, [5])
    (name,) = changes
    with pytest.raises(ConfigurationError, match=f"another task: its (number of )?{name}"):
        env.restore_state(other.save_state())
    assert env.mdp.lengths == env.mdp.prompt_lengths


def test_what_is_no_state_is_refused(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    walk(env, [5])
    state = env.save_state()
    edited = [
        replace(state, response=np.arange(20)),
        replace(state, response=np.array([61])),
        replace(state, rewards=np.zeros(3)),
    ]
    for bad in (None, {}, env, *edited):
        with pytest.raises(ConfigurationError, match="state"):
            env.restore_state(bad)
        assert env.save_state().response.tolist() == [5]
    assert isinstance(state, SlotState)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": None},
        {"prompt": None},
        {"rewards": None},
        {"response": [5]},
        {"log_ratios": np.zeros((1, 1))},
        {"generator": {}},
        {"generator": None},
        {"score": "s"},
        {"running": None},
        {"response": np.array([60])},
        {name: np.ones(6, int) for name in ("response", "rewards", "token_scores", "log_ratios")},
    ],
    ids=["settings", "prompt", "rewards", "list", "rank", "no-generator", "none", "score", "running", "eos", "cap"],
)
def test_an_edited_state_is_refused_before_anything_changes(changes, id_task):
    env = TextGenerationEnv(**id_task(eos_token_id=60))
    env.reset(seed=0)
    walk(env, [5])
    state = env.save_state()
    env.reset(seed=1)
    walk(env, [7, 8])
    before = pickle.dumps(env.save_state())
    with pytest.raises(ConfigurationError, match="state"):
        env.restore_state(replace(state, **changes))
    assert pickle.dumps(env.save_state()) == before


def test_slots_and_counts_that_do_not_exist_are_refused(id_task):
    env = TextGenerationVectorEnv(2, **id_task())
    with pytest.raises(ResetNeeded, match="slot 1"):
        env.save_state(1)
    with pytest.raises(ResetNeeded):
        env.fork(0, 2)
    env.reset(seed=0)
    state = env.save_state(0)
    for slot in (2, -1, 1.0, "a", None, True):
        with pytest.raises(ConfigurationError, match="slot"):
            env.save_state(slot)
        with pytest.raises(ConfigurationError, match="slot"):
            env.fork(slot, 2)
    for slots in (2, -1, [0, 0], [0.5], "a", [], [[0]], [True, False]):
        with pytest.raises(ConfigurationError, match="slot"):
            env.restore_state(state, slots)
    for n in (0, -1, 1.5, "a", None):
        with pytest.raises(ConfigurationError, match="number of environments"):
            env.fork(0, n)
    env.restore_state(state, 1)


def test_a_reward_function_cannot_save_fork_or_restore_the_environment_that_asks_it(id_task):
    def reward(prompts, responses):
        for call in (env.save_state, lambda: env.fork(2), lambda: env.restore_state(state)):
            with pytest.raises(BusyError):
                call()
        return [1.0]

    env = TextGenerationEnv(**id_task(reward=reward))
    env.reset(seed=0)
    state = env.save_state()
    assert env.step(0)[4]["score"] == 1.0


def test_after_a_failed_step_a_state_still_goes_on(id_task):
    failing = True

    def reward(prompts, responses):
        if failing:
            raise OSError("no connection")
        return [1.0] * len(responses)

    env = TextGenerationEnv(**id_task("llama", reward=reward))
    env.reset(seed=0)
    walk(env, [5, 6])
    state = env.save_state()
    with pytest.raises(RewardError):
        env.step(0)
    fork = env.fork(2)
    env.restore_state(state)
    with pytest.raises(InvalidActionError):
        fork.step(np.array([5, 99]))
    plain = TextGenerationEnv(**id_task("llama"))
    plain.reset(seed=0)
    walk(plain, [5, 6])
    expected = walk(plain, [7])[0][1]
    assert walk(env, [7])[0][1] == pytest.approx(expected, abs=1e-5)
    assert fork.step(np.array([7, 7]))[1] == pytest.approx(expected, abs=1e-5)
