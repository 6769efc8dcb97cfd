"""Subject: a model with all that its retraining needs: training images, a teacher, and exams for its queries."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ...workload.data import Images
from ..forms.quantize import Base
from ..judging.exams import Exam, JudgedQuery, judge_query, unchanged
from ..judging.folding import folded
from ..judging.judgement import Judgement
from ..judging.running import batch_size, by_area, fitting, in_batches, outputs_of
from ..layers.layers import Layer
from ..models.networks import Network
from ..models.trace import NORMS, LayerTrace
from ..tasks import Outputs

__all__ = [
    "JudgedQuery",
    "Judgement",
    "State",
    "Subject",
    "Teacher",
    "batch_size",
    "by_area",
    "fitting",
    "in_batches",
    "judged_by_both",
    "judgements_of",
    "outputs_of",
]

State = dict[str, Tensor]
"""A model's state dict, on the CPU, with contiguous tensors."""


class Teacher:
    """Copy of the original model that serves as the teacher for distillation.

    Args:
        module: stage of the original model; it is copied, and the copy computes no gradients.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._folded: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Outputs:
        """Return the teacher's raw outputs for normalised images on its device, ``[B, C, H, W]``.

        They are computed anew for every batch: outputs kept from other batches differ in their last bits, and so would
        a merge that was resumed.
        """
        return outputs_of(self.folded(image), image)

    def folded(self, image: Tensor) -> nn.Module:
        """Return the stage with its BatchNorms folded, if they can be; ``image`` is a batch to try it on."""
        if self._folded is None:
            self._folded = folded(self.module, image[:1])
        return self._folded


@dataclass
class Subject:
    """A model in retraining, with its data and its teacher."""

    network: Network
    traced: LayerTrace
    layers: tuple[Layer, ...]
    """Convolutions and linear layers of the model in the order in which they run."""
    train: Images
    """Training images of all queries of the model."""
    held: tuple[JudgedQuery, ...]
    """Queries of the model, each with its exams."""
    student: nn.Module
    """Module of the stage ``main``. Its attribute ``model`` is the whole model, which shares weights and is trained."""
    teacher: Teacher
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    narrow: bool = False
    """Whether the training images vary too little to measure BatchNorm statistics on; see :func:`.start.is_narrow`."""
    bases: Mapping[str, Base] = field(default_factory=dict)
    """Name of a base -> base, for weights that may be kept as differences."""

    @property
    def name(self) -> str:
        """Name of the model that is retrained."""
        return self.network.name

    @property
    def model(self) -> nn.Module:
        """The whole PyTorch model; its state dict is what the workload's weight file holds."""
        model = self.student.model
        assert isinstance(model, nn.Module)
        return model

    def is_normalised(self) -> bool:
        """Check whether BatchNorms bring the model's features to one scale in training, by the batch's statistics."""
        return not self.narrow and any(isinstance(layer, NORMS) for layer in self.model.modules())

    def state(self) -> State:
        """Return a copy of the model's state dict, on the CPU."""
        return {name: value.detach().cpu().clone().contiguous() for name, value in self.model.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict into the model, in place."""
        self.model.load_state_dict(dict(state))

    def judged(self, exam: Literal["choose", "confirm"] = "choose", limit: int | None = None) -> dict[str, Judgement]:
        """Judge the model as it is now, for each of its queries; return the judgements by query name.

        Args:
            exam: images to judge by: those that the search may look at, or those that choose nothing.
            limit: maximum number of own images per query to judge by; None for all.
        """
        self.student.eval()
        same = self.is_original()
        found = {}
        for held in self.held:
            images: Exam = getattr(held, exam)
            found[held.query.name] = (
                unchanged(images) if same else judge_query(held, images, self.student, self.teacher, self.device, limit)
            )
        return found

    def is_original(self) -> bool:
        """Check whether the model has the weights of the original model, bit for bit, so that nothing was lost."""
        now, before = (module.state_dict() for module in (self.student, self.teacher.module))
        return all(torch.equal(value, before[name]) for name, value in now.items())


def judgements_of(
    subjects: Iterable[Subject], exam: Literal["choose", "confirm"] = "choose", limit: int | None = None
) -> dict[str, Judgement]:
    """Judge some models as they are now; return the judgements of all their queries, by query name.

    Args:
        subjects: the models.
        exam: images to judge by: those that the search may look at, or those that choose nothing.
        limit: maximum number of own images per query to judge by; None for all.
    """
    found: dict[str, Judgement] = {}
    for subject in subjects:
        found |= subject.judged(exam, limit)
    return found


def judged_by_both(subjects: Collection[Subject]) -> dict[str, Judgement]:
    """Judge some models by the images that choose and by those that confirm; return query -> the lower judgement."""
    choose, confirm = judgements_of(subjects, "choose"), judgements_of(subjects, "confirm")
    return {query: min(each, confirm[query], key=lambda judged: judged.relative) for query, each in choose.items()}
