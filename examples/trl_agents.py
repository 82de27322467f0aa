"""TRL's RLOO and GRPO trainers on the task of a text environment, at a budget of generated tokens.

    pip install 'lm-env[trl]'
    python examples/trl_agents.py --trainer rloo --learning-rate 1e-3     # sums, with the embedded language model
    lm-env bench --agents rloo,grpo,trl-rloo,trl-grpo                     # beside this package's agents

The trainers are TRL's own classes, as they are installed: they sample, compute the KL penalty and update.
`lm_env.export.to_trl` gives them the prompts, the scores, and the options that belong to the task.  TRL replaces the
forward of the model that it trains.  So it gets a copy of the task's model, and the trained weights are then copied
into the task's own.

What is set here, so that the trainers do what this package's agents do:

- From the task: beta, temperature, the length cap, no top-p and no top-k, the tokens that end a text.  TRL's own beta
  is .05 in RLOO and 0 in GRPO.  In GRPO beta is the weight of k3, an estimate of the KL, in the loss, and not of the KL
  in the reward.
- Groups of 4 responses (RLOO) and of 8 (GRPO; TRL's own), 128 episodes per rollout, and one optimizer step with all of
  them.  TRL's own: groups of 2 in RLOO, and steps of 8 episodes, each with a rollout of its own.
- Weights and arithmetic in the precision of the task's model, where TRL would compute in bf16; no dropout; no gradient
  checkpointing, which costs time and changes no gradient.
- The length of the training in tokens, where TRL counts optimizer steps: it ends with the rollout that spends the
  budget.  The learning rate falls linearly, as in TRL's schedule, but with the tokens generated so far in the place of
  the steps taken, and with the budget in the place of the number of steps.  Where all rollouts are equally long, the
  two are the same; no length has to be estimated beforehand, and a training whose texts grow or shrink still ends its
  decay at 0.

What is TRL's own: a learning rate of 1e-6, chosen for models of billions of parameters (for the embedded ones give
another, or let `lm-env bench --tune N` try some), which falls linearly to 0; AdamW without weight decay; the
gradient's norm clipped at 1; one pass over a rollout; ratios clipped at .2, per response in RLOO and per token in GRPO.
GRPO divides advantages by the group's standard deviation (`scale_rewards="group"`), divides the loss by the number of
tokens (`loss_type="dapo"`), and multiplies k3 by the importance ratio.  Each epoch takes the prompts in a random order;
where there are fewer than a rollout needs, each is taken several times.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from agents.run.evaluation import evaluate_texts
from lm_env import Task
from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.export import to_trl
from lm_env.generation import LocalBackend
from lm_env.models.export import export_language_model
from lm_env.models.loading import without_weight_bars
from lm_env.validation import check_choice, check_integer, check_known, check_number

try:
    from datasets import Dataset, concatenate_datasets
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
except ImportError as error:
    raise MissingDependencyError("this example needs TRL: pip install 'lm-env[trl]'") from error

ROLLOUT_EPISODES = 128
"""The episodes of a rollout, as many as those of this package's agents."""
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(RLOOConfig, name)
)
"""The name of the option for gradient checkpointing, which transformers 5 has changed."""
OPTIONS = (
    *("adam_beta1", "adam_beta2", "adam_epsilon", "beta", "epsilon", "epsilon_high", "generation_batch_size"),
    *("lr_scheduler_type", "mask_truncated_completions", "max_grad_norm", "num_generations", "num_iterations"),
    *("per_device_train_batch_size", "weight_decay"),
)
"""Options of TRL's that both agents take besides the learning rate."""


class TokenBudget(TrainerCallback):
    """Counts the tokens that TRL generates, and ends the training with the rollout that spends the budget.

    Args:
        tokens: the budget.
        steps_per_rollout: how many optimizer steps TRL takes from each rollout; the training ends after all of them.

    Attributes:
        spent: tokens generated so far.
    """

    def __init__(self, tokens: int, steps_per_rollout: int) -> None:
        self.tokens = tokens
        self.steps_per_rollout = steps_per_rollout
        self.spent = 0

    @property
    def share_left(self) -> float:
        """The share of the budget that is left, 1 to 0."""
        return max(0.0, 1 - self.spent / self.tokens)

    def counted(self, reward: Callable[..., list[float]]) -> Callable[..., list[float]]:
        """The reward function, which also counts the tokens it is given: TRL calls it once for each rollout."""

        def score(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
            self.spent += sum(map(len, completion_ids))
            return reward(completion_ids=completion_ids, **columns)

        return score

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.spent >= self.tokens and state.global_step % self.steps_per_rollout == 0:
            control.should_training_stop = True


class FromTRL:
    """A trainer of TRL as an agent of `lm-env bench`: it trains the model of an environment's task in place.

    A subclass names the trainer, its config, and what is set for it.

    Args:
        env: a text environment, single or vectorized, wrapped or not.  Its task has to be one that TRL can take, see
            `lm_env.export.to_trl`, and to train the whole model and not an adapter.
        seed: of prompts and sampling.  TRL seeds the global generators of Python, NumPy and PyTorch with it.
        learning_rate: AdamW's step size at the start.
        options: of TRL's config, those named in `OPTIONS` and `own_options`; they replace what the task and this file
            set.

    Attributes:
        task: the environment's, whose model is trained.
        num_timesteps: tokens generated so far.
        num_updates: optimizer steps so far.

    Raises:
        ConfigurationError: TRL cannot take the task, or there is no such option.
    """

    trainer_class: ClassVar[Any]
    config_class: ClassVar[Any]
    group_size: ClassVar[int]
    """Responses to each prompt."""
    own_options: ClassVar[tuple[str, ...]]
    """Options that the other trainer does not have."""

    def __init__(
        self, env: Any, seed: int = 0, learning_rate: float = RLOOConfig.learning_rate, **options: Any
    ) -> None:
        self.seed = check_integer("seed", seed, low=0)
        self.learning_rate = check_number("learning_rate", learning_rate, low=0.0, above=True)
        check_known(type(self).__name__, options, [*OPTIONS, *self.own_options])
        check_choice("lr_scheduler_type", options.get("lr_scheduler_type", "linear"), ("linear", "constant"))
        self.episodes = check_integer("generation_batch_size", options.get("generation_batch_size", ROLLOUT_EPISODES))
        set_here = {
            "disable_dropout": True,
            CHECKPOINTING: False,
            "generation_batch_size": self.episodes,
            "per_device_train_batch_size": self.episodes,
            "num_generations": self.group_size,
        }
        self.trl_task = to_trl(env)
        self.task: Task = env.unwrapped.task
        if self.task.adapter is not None or not isinstance(self.task.model, PreTrainedModel):
            raise ConfigurationError(
                f"TRL trains a whole model of transformers here, and the task's is"
                f" {'an adapter' if self.task.adapter is not None else f'a {type(self.task.model).__name__}'}: give"
                " the task another one, model="
            )
        self.options = {**set_here, **self.trl_task.options, **options}
        self.prompts = self._repeated(self.trl_task.dataset("train"))
        self.num_timesteps = 0
        self.num_updates = 0

    def learn(self, total_timesteps: int, callbacks: Sequence[TrainerCallback] = ()) -> Self:
        """Generate at least so many more tokens and train on them, with a fresh optimizer; the last rollout is whole.

        Args:
            total_timesteps: tokens.
            callbacks: of transformers' `Trainer`.

        Raises:
            ConfigurationError: TRL refuses the options.
            RewardError, RewardValueError: the reward function failed.
        """
        check_integer("total_timesteps", total_timesteps)
        with tempfile.TemporaryDirectory() as folder:
            args = self._trl_config(folder, total_timesteps)
            budget = TokenBudget(total_timesteps, args.steps_per_generation * args.num_iterations)
            with without_weight_bars():
                trainer = self.trainer_class(
                    model=self._policy_copy(Path(folder, "reference")),
                    args=args,
                    processing_class=copy.deepcopy(self.trl_task.tokenizer),  # TRL may give it a padding token
                    train_dataset=self.prompts,
                    reward_funcs=budget.counted(self.trl_task.reward),
                    callbacks=[budget, *callbacks],
                )
            trainer.remove_callback(PrinterCallback)
            if args.lr_scheduler_type == "linear":
                trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda _: budget.share_left)
            trainer.train()
        self.task.model.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
        self.num_timesteps += budget.spent
        self.num_updates += trainer.state.global_step
        return self

    def _trl_config(self, folder: str, tokens: int) -> Any:
        """The config of TRL for a budget of tokens.

        Its number of steps is larger than the budget allows, so that `TokenBudget` ends the training: each episode has
        at least one token.

        Raises:
            ConfigurationError: TRL refuses the options.
        """
        on_cpu = next(self.task.model.parameters()).device.type == "cpu"
        running = {
            "output_dir": folder,
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "bf16": False,
            "use_cpu": on_cpu,
            "dataloader_pin_memory": not on_cpu,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        try:
            args = self.config_class(**self.options, **running)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"TRL refuses the options of {type(self).__name__}: {error}") from error
        args.max_steps = math.ceil(tokens / self.episodes) * args.steps_per_generation * args.num_iterations
        return args

    def _policy_copy(self, folder: Path) -> Any:
        """A copy of the task's model, for TRL to train.

        TRL loads the reference by the name of the model that it trains.  So the task's reference is written to
        `folder`, and the copy is given the folder as its name.
        """
        export_language_model(self.task.reference, None, folder)
        policy: Any = copy.deepcopy(self.task.model)
        policy.config._name_or_path = str(folder)
        policy.generation_config.eos_token_id = sorted(self.task.eos_token_ids)
        return policy

    def _repeated(self, prompts: Dataset) -> Dataset:
        """The prompts, repeated until there is one for each group of a rollout.

        TRL makes one group of each prompt of an epoch, and drops a rollout for which the epoch has too few prompts.
        """
        groups = self.episodes // check_integer("num_generations", self.options["num_generations"])
        return concatenate_datasets([prompts] * max(1, math.ceil(groups / len(prompts))))


class RLOOFromTRL(FromTRL):
    """TRL's RLOO as an agent."""

    trainer_class = RLOOTrainer
    config_class = RLOOConfig
    group_size = 4
    own_options = ("normalize_advantages", "reward_clip_range")


class GRPOFromTRL(FromTRL):
    """TRL's GRPO as an agent."""

    trainer_class = GRPOTrainer
    config_class = GRPOConfig
    group_size = 8
    own_options = ("delta", "importance_sampling_level", "loss_type", "scale_rewards", "use_bias_correction_kl")


AGENTS = {"rloo": RLOOFromTRL, "grpo": GRPOFromTRL}


def main(trainer: str, env_id: str, tokens: int, **options: Any) -> Task:
    """Train until `tokens` have been generated; return the environment's task, which has the trained model."""
    agent = AGENTS[trainer](gymnasium.make(env_id), **options)
    return agent.learn(tokens).task


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=tuple(AGENTS), default="rloo")
    parser.add_argument("--env", default="lm_env/Arithmetic-v0")
    parser.add_argument(
        "--steps", type=int, default=20_000, metavar="TOKENS", help="environment steps: generated tokens"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    task = main(args.trainer, args.env, tokens=args.steps, learning_rate=args.learning_rate)
    print(evaluate_texts(task, LocalBackend(task)))
