"""The losses that learn what people preferred: DPO and KTO.

Room: trainer. Touches the gradients of the model that it is given.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ratchet_api.training import Preferences, Recipe
from ratchet_trainer.train.encode import Example
from ratchet_trainer.train.loop import Forward, Supervised
from ratchet_trainer.train.objective import Figures, Objective
from ratchet_trainer.train.packing import plan
from ratchet_trainer.train.preferences import Judged, Pair, Reference, log_probs, log_probs_of_all, undisturbed


def objective(recipe: Recipe, cutoff: int) -> Objective:
    """The recipe's."""
    match recipe.method:
        case "dpo":
            return Dpo(recipe.preferred)
        case "kto":
            return Kto(recipe.preferred, cutoff)
        case "sft":
            return Supervised()


class Dpo(Objective):
    """-log sigmoid(beta * (log ratio of the chosen answer - that of the rejected one)), as mean over the pairs of a
    step: Rafailov et al. 2023, arXiv:2305.18290, equation 7. A log ratio is adapter's minus base's.

    With `rpo_alpha` as much of the chosen answers' cross entropy per token is added (Pang et al. 2024,
    arXiv:2404.19733, equation 2, but the mean goes over the tokens of the step and not of each answer).
    """

    def __init__(self, settings: Preferences) -> None:
        self._beta, self._alpha = float(settings.beta), float(settings.rpo_alpha or 0)
        self._reference = Reference()

    def parts(
        self, model: Any, mine: Sequence[Pair], batch: Sequence[Pair], micro_batch: int, forward: Forward
    ) -> Iterator[tuple[torch.Tensor, Figures]]:
        """See Objective."""
        pairs, tokens = len(batch), sum(pair.chosen.targets for pair in batch)
        for group in plan(mine, micro_batch, forward.packed):
            reference = self._reference.of(model, group, forward)
            policy = log_probs(model, [one for pair in group for one in pair.sequences], forward).view(-1, 2)
            rewards = self._beta * (policy - reference)
            loss = -logsigmoid(rewards[:, 0] - rewards[:, 1]).sum() / pairs
            if self._alpha:
                loss = loss - self._alpha * policy[:, 0].sum() / tokens
            chosen, rejected = rewards.detach().unbind(dim=1)
            right = float((chosen > rejected).sum())
            yield loss, Figures(
                float(loss.detach()), float(chosen.sum()), len(group), float(rejected.sum()), len(group), right,
                len(group),
            )  # fmt: skip


class Kto(Objective):
    """1 - sigmoid(beta * (log ratio - kl)) of an answer that was liked, 1 - sigmoid(beta * (kl - log ratio)) of one
    that was not, each by its weight, as mean over the answers of a step: Ethayarajh et al. 2024, arXiv:2402.01306,
    equations 7 and 8.

    kl is the mean log ratio, at least 0, of mismatched answers: each conversation of the step with the answer to the
    one before it, cut at the cutoff. It goes over the whole step, so that micro-batches and ranks do not matter (every
    rank computes all of it), and is taken without dropout. An answer that is alone in its step has no other to be
    compared with: kl is 0.
    """

    def __init__(self, settings: Preferences, cutoff: int) -> None:
        self._beta, self._cutoff = float(settings.beta), cutoff
        liked, disliked = settings.desirable_weight, settings.undesirable_weight
        self._liked = 1.0 if liked is None else float(liked)
        self._disliked = 1.0 if disliked is None else float(disliked)
        self._reference = Reference()

    def parts(
        self, model: Any, mine: Sequence[Judged], batch: Sequence[Judged], micro_batch: int, forward: Forward
    ) -> Iterator[tuple[torch.Tensor, Figures]]:
        """See Objective."""
        if not mine:
            return
        kl = self._kl(model, batch, micro_batch, forward)
        for group in plan(mine, micro_batch, forward.packed):
            reference = self._reference.of(model, group, forward)
            policy = log_probs(model, [judged.example for judged in group], forward)
            rewards = self._beta * (policy - reference[:, 0])
            liked = torch.tensor([judged.desirable for judged in group], device=rewards.device)
            beyond = torch.where(liked, rewards - self._beta * kl, self._beta * kl - rewards)
            weights = torch.where(liked, self._liked, self._disliked)
            loss = (weights * (1 - torch.sigmoid(beyond))).sum() / len(batch)
            rewards, count = rewards.detach(), float(liked.sum())
            yield loss, Figures(
                float(loss.detach()), float(rewards[liked].sum()), count, float(rewards[~liked].sum()),
                len(group) - count, float((beyond > 0).sum()), len(group), kl * len(group) / len(batch),
            )  # fmt: skip

    def _kl(self, model: Any, batch: Sequence[Judged], micro_batch: int, forward: Forward) -> float:
        if len(batch) < 2:
            return 0.0
        mismatched = [self._mismatched(one, other) for one, other in zip(batch, [batch[-1], *batch[:-1]], strict=True)]
        with undisturbed(model):
            policy = log_probs_of_all(model, mismatched, micro_batch, forward)
            with model.disable_adapter():
                reference = log_probs_of_all(model, mismatched, micro_batch, forward)
        return max(0.0, float((policy - reference).mean()))

    def _mismatched(self, one: Judged, other: Judged) -> Example:
        prompt = one.example.ids[: one.example.first_target]
        answer = other.example.ids[other.example.first_target :]
        ids = (*prompt, *answer)[: self._cutoff]
        return Example(ids, (False,) * len(prompt) + (True,) * (len(ids) - len(prompt)))
