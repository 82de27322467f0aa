"""Agents of the benchmark that sample from the model before it is trained, and then learn from these samples alone.

In a benchmark each learns once.  Whoever calls `learn` again has a further round, with samples of the trained model.

Both sample as many tokens as every other agent of the benchmark generates.  Their updates generate none.

- `sft`: supervised fine-tuning on the best of k samples of each prompt, also called rejection-sampling fine-tuning
  (RAFT, Dong et al. 2023, arXiv:2304.06767, with a single round of sampling).
- `dpo`: direct preference optimization on pairs of samples of the same prompt, of which the higher score is preferred
  (Rafailov et al. 2023, arXiv:2305.18290).

The default is one pass over the samples: with more passes a small model memorizes single texts, and pays more KL than
it gains in score.  The number of passes and the learning rates were chosen on the validation prompts of
lm_env/Sentiment-v0.

Shapes: B sampled texts, k samples of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from agents import dpo_finetune, supervised_finetune
from agents.base.config import make_config
from agents.base.text_agent import TextAgent
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.objective.scoring import episode_scores
from lm_env.validation import check_field_types, check_integer, check_integers, check_numbers
from reward_models import Comparison

__all__ = ["OFFLINE", "OfflineConfig", "OfflineDPO", "OfflineDPOConfig", "OfflineSFT", "OfflineSFTConfig", "Sample"]


@dataclass(frozen=True)
class Sample:
    """A response that the model has written before it is trained."""

    prompt: Prompt
    response: list[int]
    """The token ids of the response, with its EOS where there is one."""
    score: float
    """What the task pays for the response, without the KL penalty."""


@explained
@dataclass(frozen=True)
class OfflineConfig:
    """The options that `sft` and `dpo` share."""

    samples: int = 2
    """k: responses that are sampled to each prompt of a round."""
    rollout_episodes: int = 64
    """Responses per round of sampling, a multiple of k; there are rounds until the budget of tokens is spent."""
    epochs: int = 1
    """Passes over what was sampled."""
    batch_size: int = 32
    """Demonstrations, or pairs, per optimizer step."""
    learning_rate: float = 1e-4
    """Adam's step size at the start; it falls to 0 along a cosine."""
    slots: int = 32
    """Texts decoded at a time."""
    seed: int = 0
    """Draws the prompts, the samples and the batches."""

    def __post_init__(self) -> None:
        check_field_types(self)
        check_integers(self, "rollout_episodes", "epochs", "batch_size", "slots")
        check_integer("samples", self.samples, low=2)
        check_integer("seed", self.seed, low=0)
        check_numbers(self, "learning_rate", low=0.0, above=True)
        if self.rollout_episodes % self.samples:
            raise ConfigurationError(
                f"rollout_episodes ({self.rollout_episodes}) must be a multiple of samples ({self.samples}): those of"
                " a prompt stay together"
            )


@explained
@dataclass(frozen=True)
class OfflineSFTConfig(OfflineConfig):
    """Options of `sft`."""

    samples: int = 8
    """k: responses that are sampled to each prompt, of which the best is learned."""


@explained
@dataclass(frozen=True)
class OfflineDPOConfig(OfflineConfig):
    """Options of `dpo`."""

    learning_rate: float = 5e-5
    """Adam's step size at the start; it falls to 0 along a cosine."""
    beta: float | None = None
    """Weight of the KL penalty in the loss, score per nat; None: the task's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples % 2:
            raise ConfigurationError(f"samples must be even, not {self.samples}: each is compared with one other")
        if self.beta is not None:
            check_numbers(self, "beta", low=0.0, above=True)


class _Offline(TextAgent):
    """Samples first, then trains the task's model in place on what was sampled.  A subclass says how, in `fit`.

    Args:
        env: a text environment, single or vectorized, wrapped or not, or a registered id.
        options: the fields of `Config`.

    Attributes:
        num_timesteps: tokens that were sampled.

    Raises:
        ConfigurationError: an unknown option, or a value out of range.
    """

    Config: ClassVar[type[OfflineConfig]]

    def __init__(self, env: Any, **options: Any) -> None:
        self.config = make_config(self.Config, type(self).__name__, options)
        super().__init__(env, self.config.seed)
        self.backend = LocalBackend(self.task, self.config.slots)
        self.num_timesteps = 0

    def learn(self, total_timesteps: int) -> Self:
        """Sample at least `total_timesteps` tokens, and train on the samples; the errors are those of `draw` and `fit`.

        A further call is a further round: it samples from the model that the earlier one has trained.
        """
        check_integer("total_timesteps", total_timesteps)
        self.fit(self.draw(self.num_timesteps + total_timesteps))
        return self

    def draw(self, tokens: int) -> list[list[Sample]]:
        """Sample in rounds until `num_timesteps` is at least `tokens`; the last round is finished.

        Returns:
            groups of k samples, each group of one prompt.

        Raises:
            RewardError, RewardValueError: the reward function failed.
        """
        check_integer("tokens", tokens)
        k = self.config.samples
        groups: list[list[Sample]] = []
        while self.num_timesteps < tokens:
            distinct = self.task.prompts.sample(self.randomness.prompts, self.config.rollout_episodes // k)
            prompts = [prompt for prompt in distinct for _ in range(k)]
            episodes = self.backend.generate(prompts, Sampling(self.randomness.sampling)).episodes
            self.num_timesteps += int(episodes.response_lengths.sum())
            scores = episode_scores(self.task, episodes)[0].tolist()
            samples = [Sample(*parts) for parts in zip(prompts, episodes.responses(), scores, strict=True)]
            groups += [samples[start : start + k] for start in range(0, len(samples), k)]
        return groups

    def fit(self, groups: list[list[Sample]]) -> None:
        """Train the task's model in place on groups of samples, each group of one prompt."""
        raise NotImplementedError

    def _fit_options(self) -> dict[str, Any]:
        """The options that `supervised_finetune` and `dpo_finetune` share.

        No sample is held out: the benchmark measures on held-out prompts.
        """
        names = ("epochs", "batch_size", "learning_rate", "seed")
        return {"held_out_fraction": 0.0, **{name: getattr(self.config, name) for name in names}}


class OfflineSFT(_Offline):
    """Fine-tunes on the best of k samples of each prompt: the first of them where several are the best."""

    Config: ClassVar[type[OfflineConfig]] = OfflineSFTConfig

    def fit(self, groups: list[list[Sample]]) -> None:
        """Maximize the likelihood of the best sample of each group."""
        best = [max(group, key=lambda sample: sample.score) for group in groups]
        rows = [{"prompt": sample.prompt.ids.tolist(), "response": sample.response} for sample in best]
        # Without a tokenizer the token ids are taken as they are, so that a text that the cap has cut off gets no EOS.
        supervised_finetune(self.task.model, None, rows, **self._fit_options())


class OfflineDPO(_Offline):
    """Direct preference optimization on pairs of samples; pairs with equal scores are left out."""

    Config: ClassVar[type[OfflineConfig]] = OfflineDPOConfig
    config: OfflineDPOConfig

    def __init__(self, env: Any, **options: Any) -> None:
        super().__init__(env, **options)
        self.beta = self.task.kl.beta if self.config.beta is None else self.config.beta
        if self.beta == 0:
            raise ConfigurationError(
                "dpo has no optimum at beta 0: give the task a beta above 0, or dpo one of its own with the option beta"
            )

    def learn(self, total_timesteps: int) -> Self:
        """As in the base class.

        Raises:
            ConfigurationError: also for a second round of a task that trains an adapter: the reference of the loss
                would be the model as the first round has left it.
        """
        if self.num_timesteps and self.task.reference is self.task.model:
            raise ConfigurationError(
                "dpo with an adapter learns once, since its reference is the model as it was before: make another agent"
                " on an environment with reference=, or call learn once with all tokens"
            )
        return super().learn(total_timesteps)

    def comparisons(self, groups: list[list[Sample]]) -> list[Comparison]:
        """The comparisons of each group: of its first and second sample, its third and fourth, and so on.

        Pairs with equal scores are left out.

        Raises:
            ConfigurationError: no pair has different scores.
        """
        pairs = [pair for group in groups for pair in zip(group[::2], group[1::2], strict=True)]
        compared = [_comparison(*pair) for pair in pairs if pair[0].score != pair[1].score]
        if not compared:
            raise ConfigurationError(
                f"all {len(pairs)} pairs of samples have equal scores, so dpo has nothing to learn from: give it more"
                " tokens, or a reward that tells samples apart"
            )
        return compared

    def fit(self, groups: list[list[Sample]]) -> None:
        """Train on the comparisons of the samples, see `comparisons`."""
        task = self.task
        # A task that trains adapters has one model for both.  None then stands for the model as it is before training.
        reference = None if task.reference is task.model else task.reference
        dpo_finetune(
            task.model,
            task.tokenizer,
            self.comparisons(groups),
            reference=reference,
            beta=self.beta,
            temperature=task.temperature,
            **self._fit_options(),
        )


def _comparison(one: Sample, other: Sample) -> Comparison:
    """Two samples of one prompt, of which the one with the higher score is preferred.

    The responses are given as token ids only, since a `Comparison` with ids is not read as text.
    """
    better, worse = (one, other) if one.score > other.score else (other, one)
    ids = (one.prompt.ids.tolist(), better.response, worse.response)
    return Comparison(one.prompt.text, "", "", *ids)


OFFLINE: dict[str, type[OfflineSFT] | type[OfflineDPO]] = {"dpo": OfflineDPO, "sft": OfflineSFT}
"""The classes by the names that they have in a benchmark."""
