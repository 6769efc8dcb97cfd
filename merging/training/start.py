"""Starting weights for joint retraining, found without gradients.

A model that receives a layer's weight from another model, the donor, loses accuracy. Three cheap steps restore most of
it:

1. Donor weights (:func:`donate`): the BatchNorm behind the donor's layer is copied together with the weight. Only the
   weight is shared; each model keeps its copy of the BatchNorm and trains it privately.
2. BatchNorm re-estimation (:func:`reset_statistics`): running means and variances are measured again on the receiving
   model's own images, as ``torch.optim.swa_utils.update_bn`` does after weight averaging. REPAIR (Jordan et al., ICLR
   2023) explains why merged weights need this step.
3. Head refitting (:func:`refit_heads`): the heads (layers that give the model's outputs) stay private. They are fitted
   in closed form by ridge regression to the outputs of the teacher, which is the original model.

:func:`average` is the alternative to a donor: the mean of all models' weights, after :mod:`.align`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..judging.exams import Exam, judge_query
from ..judging.folding import folded
from ..layers.sharing import Slot, Use
from ..models.trace import NORMS, hooked
from .subjects import Subject

__all__ = ["average", "donate", "is_narrow", "refit_heads", "reset_statistics"]

_WIDEST = 4608
"""Maximum number of inputs of a head to refit. The memory for refitting grows with the square of this number."""
_RIDGE = 1e-3
"""Ridge penalty of head refitting, as a fraction of the mean diagonal element of the inputs' Gram matrix."""
_KEPT = 0.97
"""Minimum fraction of the original accuracy that must remain after BatchNorm re-estimation.

If less remains, the model's images vary too little for re-estimation."""


def donate(
    subjects: Mapping[str, Subject], slots: Iterable[Slot], order: Sequence[str], *, norms: bool = True
) -> frozenset[str]:
    """Copy the donor's weight into all layers of each slot (set of layer weights that will be one tensor), in place.

    The donor of a slot is the first model in ``order`` that has a layer in the slot. If the donor has several layers in
    the slot, the one that runs first gives its weight.

    Args:
        subjects: the models, by name.
        slots: sets of layer weights; the weights of one set will be one tensor.
        order: names of all models in the slots, preferred donors first.
        norms: whether to copy the BatchNorm behind the donor's layer together with the weight.

    Returns:
        Names of the models that received a weight.
    """
    changed = set()
    for slot in slots:
        rank = {use: (order.index(use.model), _position(subjects, use)) for use in slot}
        donor = min(slot, key=rank.__getitem__)
        for use in slot:
            # A model that holds the donor's weight already has a BatchNorm trained for it, which must survive.
            if not torch.equal(_weight(subjects, use), _weight(subjects, donor)):
                _copy(subjects, donor, use, norms)
                changed.add(use.model)
    return frozenset(changed)


def average(subjects: Mapping[str, Subject], slots: Iterable[Slot]) -> None:
    """Replace the weights of each slot (set of layer weights that will be one tensor) by their mean, in place.

    The mean keeps more of the models' accuracy if the channels are aligned first (:func:`.align.align`).

    Args:
        subjects: the models, by name.
        slots: sets of layer weights; the weights of one set will be one tensor.
    """
    for slot in slots:
        weights = [_weight(subjects, use) for use in slot]
        mean = torch.stack([weight.detach() for weight in weights]).mean(0)
        for weight in weights:
            weight.data.copy_(mean)


@torch.no_grad()
def _copy(subjects: Mapping[str, Subject], donor: Use, receiver: Use, norms: bool) -> None:
    """Copy a donor layer's weight into a receiving layer; with ``norms``, also copy the BatchNorm behind the layer."""
    _weight(subjects, receiver).copy_(_weight(subjects, donor))
    given, own = (_norm(subjects, use) if norms else None for use in (donor, receiver))
    if given is not None and own is not None:
        # Either BatchNorm may lack scale and shift (affine=False) or running statistics: copy what both have.
        state = own.state_dict()
        own.load_state_dict({name: given.state_dict().get(name, value) for name, value in state.items()})


def _layer(use: Use) -> str:
    """Return the name of the layer that holds a weight."""
    return use.parameter.rpartition(".")[0]


def _position(subjects: Mapping[str, Subject], use: Use) -> int:
    """Return the index of a weight's layer in the order in which the layers of its model run."""
    return subjects[use.model].traced.order.index(_layer(use))


def _weight(subjects: Mapping[str, Subject], use: Use) -> nn.Parameter:
    """Return the PyTorch parameter that a use (model name and parameter name) refers to."""
    return subjects[use.model].model.get_parameter(use.parameter)


def _norm(subjects: Mapping[str, Subject], use: Use) -> nn.Module | None:
    """Return the BatchNorm that directly follows a weight's layer, or None if there is none."""
    name = subjects[use.model].traced.norm_of.get(_layer(use))
    return subjects[use.model].model.get_submodule(name) if name else None


@torch.no_grad()
def reset_statistics(subject: Subject, batches: Iterable[Tensor]) -> None:
    """Re-estimate the running mean and variance of every BatchNorm of a model, in place.

    All batches count equally (``momentum=None`` is PyTorch's cumulative average). Afterwards, the BatchNorms' momenta
    are as before, and the model is in eval mode.

    Args:
        subject: the model.
        batches: normalised images, ``[B, C, H, W]`` each.
    """
    norms = _tracking(subject)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    subject.student.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        subject.student(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _tracking(subject: Subject) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """Return the BatchNorms of a model that keep running means and variances."""
    return [layer for layer in subject.model.modules() if isinstance(layer, NORMS)]


def is_narrow(subject: Subject, batches: Iterable[Tensor], limit: int) -> bool:
    """Check whether a model's images vary too little for BatchNorm re-estimation.

    Frames of a fixed camera may be nearly alike. Statistics measured on such frames alone break even the unmerged
    model. For a model whose images vary too little, merging keeps the running statistics that came with the weights,
    both in the starting weights and in training.

    Args:
        subject: a model with its original weights; they are restored before the function returns.
        batches: normalised images, ``[B, C, H, W]`` each.
        limit: maximum number of own images per query to measure accuracy on.

    Returns:
        Whether re-estimation leaves some query with less than 97 % of its original accuracy.
    """
    if not _tracking(subject):
        return False
    state = subject.state()
    reset_statistics(subject, batches)
    student = subject.student.eval()
    try:
        own = [(held, Exam(held.choose.own)) for held in subject.held]
        found = [judge_query(held, exam, student, subject.teacher, subject.device, limit) for held, exam in own]
    finally:
        subject.restore(state)
    return any(each.own.value < _KEPT for each in found)


@torch.no_grad()
def refit_heads(subject: Subject, batches: Iterable[Tensor], rows: int = 1250) -> None:
    """Fit each head of a model (layer that gives an output) by ridge regression (regularised least squares), in place.

    The regression maps the features that reach a head now to the outputs of the teacher's head for the same images, so
    the head compensates for changed weights in the layers before it. Linear layers and convolutions without groups are
    fitted. Other heads, and heads with more than 4608 inputs, are not changed.

    Args:
        subject: the model.
        batches: normalised images, ``[B, C, H, W]`` each.
        rows: maximum number of equations that one head takes from one batch. A convolution has one equation for every
            output pixel.
    """
    heads = [name for name in subject.traced.heads if _width(subject.model.get_submodule(name)) <= _WIDEST]
    if not heads:
        return
    student, sums = None, dict[str, tuple[Tensor, Tensor]]()
    for batch in batches:
        student = student or folded(subject.student.eval(), batch[:1])
        inputs = _calls(student, heads, batch, lambda x, _: x)
        # Copy: an in-place activation behind the head would overwrite its output.
        wanted = _calls(subject.teacher.folded(batch), heads, batch, lambda _, y: y.clone())
        for name in heads:
            x, y = _rows(subject.model.get_submodule(name), inputs[name], wanted[name], rows)
            gram, moment = x.T @ x, x.T @ y
            known = sums.get(name, (0, 0))
            sums[name] = known[0] + gram, known[1] + moment
    for name, (gram, moment) in sums.items():
        _solve(subject.model.get_submodule(name), gram, moment)


def _solve(head: nn.Module, gram: Tensor, moment: Tensor) -> None:
    """Solve a head's normal equations and write the solution, if it is finite, into the head's weight and bias.

    Args:
        head: a linear layer or a convolution with I inputs and O outputs; a bias counts as one more input.
        gram: Gram matrix of the inputs, ``[I, I]`` float64.
        moment: inputs times wanted outputs, ``[I, O]`` float64.
    """
    assert isinstance(head, nn.Linear | nn.Conv2d)
    ridge = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * gram.diagonal().mean() * _RIDGE
    if head.bias is not None:  # it is not penalised
        ridge[-1, -1] = 0
    solution, failed = torch.linalg.solve_ex(gram + ridge, moment)
    if failed or not solution.isfinite().all():
        # Features that are all zero or not finite determine no weight: keep the present one.
        return
    weight = solution.T.float()
    if head.bias is not None:
        head.bias.copy_(weight[:, -1])
        weight = weight[:, :-1]
    head.weight.copy_(weight.reshape(head.weight.shape))


def _width(head: nn.Module) -> float:
    """Return the number of inputs of a head, the bias not counted; infinity for a head that cannot be refitted."""
    if isinstance(head, nn.Linear):
        return head.in_features
    if not isinstance(head, nn.Conv2d) or isinstance(head.padding, str):
        return float("inf")
    return head.weight[0].numel() if head.groups == 1 and head.padding_mode == "zeros" else float("inf")


def _rows(head: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """Return the equations that one batch gives for a head: inputs ``[R, I]`` and outputs ``[R, O]``, both float64.

    Args:
        head: the head. If it has a bias, the last input of every row is 1.
        inputs: input of each call of the head. A detector may call one head on feature maps of several sizes.
        outputs: wanted output of each call of the head.
        limit: maximum number R of rows to return; they are spread evenly over all rows.
    """
    found = [_flat(head, x, y) for x, y in zip(inputs, outputs, strict=True)]
    x, y = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
    if len(x) > limit:
        chosen = torch.linspace(0, len(x) - 1, limit, device=x.device).long()
        x, y = x[chosen], y[chosen]
    if head.bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return x.double(), y.double()


def _flat(head: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return one call of a head as a matrix product: inputs ``[R, I]`` and outputs ``[R, O]``.

    The input of a convolution is unfolded (im2col), so that each output pixel gives one row.
    """
    if isinstance(head, nn.Conv2d):
        assert not isinstance(head.padding, str)
        x = F.unfold(x, head.kernel_size, head.dilation, head.padding, head.stride).transpose(1, 2).flatten(0, 1)
        return x, y.permute(0, 2, 3, 1).flatten(0, 2)
    return x.flatten(0, -2), y.flatten(0, -2)


def _calls(
    stage: nn.Module, names: Iterable[str], image: Tensor, keep: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Run a stage on a batch and record the calls of some layers.

    Args:
        stage: a stage with the attribute ``model``.
        names: names of layers of that model.
        image: normalised images, ``[B, C, H, W]``.
        keep: function that returns what to record of a call, called with the layer's input and output.

    Returns:
        For each name, the records of the layer's calls in order.
    """
    model = stage.model
    assert isinstance(model, nn.Module)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    layers = {model.get_submodule(name): name for name in kept}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Record what ``keep`` takes from one call of a layer; PyTorch calls this function after the layer."""
        kept[layers[layer]].append(keep(inputs[0], output))

    with hooked(layers, record):
        stage(image)
    return kept
