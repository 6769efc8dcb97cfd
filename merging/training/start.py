"""Where retraining starts from, without gradients: a donor's weights, statistics of their own data, heads refitted.

A layer that is given another model's weight computes something else. Three cheap steps bring most of it back:

1. the donor's BatchNorm comes with its weight (it stays the user's own from then on);
2. BatchNorm statistics are measured anew on the user's images;
3. the heads, which stay private, are fitted by ridge regression to the teacher's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.sharing import Slot, Use
from ..models.trace import NORMS, hooked
from .subjects import Subject

__all__ = ["average", "donate", "is_narrow", "refit_heads", "reset_statistics"]

_WIDEST = 4608
"""Inputs of a head that is still fitted: the normal equations are its square."""
_RIDGE = 1e-3
_KEPT = 0.97
"""Of the original accuracy, with statistics measured anew: what different images give, at least."""


def donate(
    subjects: Mapping[str, Subject], slots: Iterable[Slot], order: Sequence[str], *, norms: bool = True
) -> frozenset[str]:
    """Give every use of a slot the weight of the first model in ``order`` that has one in it.

    Args:
        subjects: the models.
        slots: what is to hold one tensor.
        order: names of all models in the slots. A donor that uses a slot twice gives its first layer.
        norms: whether the BatchNorm behind the donor's layer comes with the weight.

    Returns:
        Names of models that were given something.
    """
    changed = set()
    for slot in slots:
        rank = {use: (order.index(use.model), _position(subjects, use)) for use in slot}
        donor = min(slot, key=rank.__getitem__)
        for use in slot:
            # Who holds the donor's weight already has a BatchNorm of its own for it.
            if not torch.equal(_weight(subjects, use), _weight(subjects, donor)):
                _copy(subjects, donor, use, norms)
                changed.add(use.model)
    return frozenset(changed)


def average(subjects: Mapping[str, Subject], slots: Iterable[Slot]) -> None:
    """Give every use of a slot the mean of their weights."""
    for slot in slots:
        weights = [_weight(subjects, use) for use in slot]
        mean = torch.stack([weight.detach() for weight in weights]).mean(0)
        for weight in weights:
            weight.data.copy_(mean)


@torch.no_grad()
def _copy(subjects: Mapping[str, Subject], donor: Use, user: Use, norms: bool) -> None:
    _weight(subjects, user).copy_(_weight(subjects, donor))
    given, own = (_norm(subjects, use) if norms else None for use in (donor, user))
    if given is not None and own is not None:
        # One may be without weights of its own, or without statistics.
        state = own.state_dict()
        own.load_state_dict({name: given.state_dict().get(name, value) for name, value in state.items()})


def _layer(use: Use) -> str:
    return use.parameter.rpartition(".")[0]


def _position(subjects: Mapping[str, Subject], use: Use) -> int:
    return subjects[use.model].traced.order.index(_layer(use))


def _weight(subjects: Mapping[str, Subject], use: Use) -> nn.Parameter:
    return subjects[use.model].model.get_parameter(use.parameter)


def _norm(subjects: Mapping[str, Subject], use: Use) -> nn.Module | None:
    name = subjects[use.model].traced.norm_of.get(_layer(use))
    return subjects[use.model].model.get_submodule(name) if name else None


@torch.no_grad()
def reset_statistics(subject: Subject, batches: Iterable[Tensor]) -> None:
    """Means and variances of every BatchNorm over ``batches`` of normalised images, each batch counting the same."""
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
    """The BatchNorms that hold means and variances."""
    return [layer for layer in subject.model.modules() if isinstance(layer, NORMS) and layer.track_running_stats]


def is_narrow(subject: Subject, batches: Iterable[Tensor], limit: int) -> bool:
    """Whether images are so much alike that BatchNorm statistics of theirs alone break the unmerged model.

    Frames of a fixed camera may be. Of such models merging keeps the statistics that came with the weights, in the
    start and in training.

    Args:
        subject: with its original weights, which it has again afterwards.
        batches: normalised images.
        limit: images of each query to judge by.
    """
    if not _tracking(subject):
        return False
    state = subject.state()
    reset_statistics(subject, batches)
    try:
        found = subject.accuracies(limit)
    finally:
        subject.restore(state)
    return any(found[held.query.name] < _KEPT * held.original for held in subject.held)


@torch.no_grad()
def refit_heads(subject: Subject, batches: Iterable[Tensor], rows: int = 1250) -> None:
    """Fit each head by ridge regression: from what reaches it now to what the teacher's head makes of the same image.

    Heads are linear layers and convolutions without groups; one with very many inputs is left as it is.

    Args:
        subject: the model.
        batches: normalised images.
        rows: of a batch, at most so many inputs of a head are fitted: a convolution has one at every place.
    """
    heads = [name for name in subject.traced.heads if _width(subject.model.get_submodule(name)) <= _WIDEST]
    if not heads:
        return
    subject.student.eval()
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in batches:
        inputs = _calls(subject.student, heads, batch, lambda x, _: x)
        # An activation in place may follow.
        wanted = _calls(subject.teacher.module, heads, batch, lambda _, y: y.clone())
        for name in heads:
            x, y = _rows(subject.model.get_submodule(name), inputs[name], wanted[name], rows)
            gram, moment = x.T @ x, x.T @ y
            known = sums.get(name, (0, 0))
            sums[name] = known[0] + gram, known[1] + moment
    for name, (gram, moment) in sums.items():
        _solve(subject.model.get_submodule(name), gram, moment)


def _solve(head: nn.Module, gram: Tensor, moment: Tensor) -> None:
    assert isinstance(head, nn.Linear | nn.Conv2d)
    ridge = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * gram.diagonal().mean() * _RIDGE
    if head.bias is not None:
        ridge[-1, -1] = 0
    solution, failed = torch.linalg.solve_ex(gram + ridge, moment)
    if failed or not solution.isfinite().all():
        # Nothing reaches the head, or no numbers: no weight would be better than the one it has.
        return
    weight = solution.T.float()
    if head.bias is not None:
        head.bias.copy_(weight[:, -1])
        weight = weight[:, :-1]
    head.weight.copy_(weight.reshape(head.weight.shape))


def _width(head: nn.Module) -> float:
    if isinstance(head, nn.Linear):
        return head.in_features
    if not isinstance(head, nn.Conv2d) or isinstance(head.padding, str):
        return float("inf")
    return head.weight[0].numel() if head.groups == 1 and head.padding_mode == "zeros" else float("inf")


def _rows(head: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """Inputs ``[R, I]`` and outputs ``[R, O]`` of a head, at most ``limit`` of them; with a bias, an input is 1.

    A detector may have one head for features of several sizes: all its calls count.
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
    if isinstance(head, nn.Conv2d):
        assert not isinstance(head.padding, str)
        x = F.unfold(x, head.kernel_size, head.dilation, head.padding, head.stride).transpose(1, 2).flatten(0, 1)
        return x, y.permute(0, 2, 3, 1).flatten(0, 2)
    return x.flatten(0, -2), y.flatten(0, -2)


def _calls(
    stage: nn.Module, names: Iterable[str], image: Tensor, keep: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Run a stage; of every call of the named layers of its model, ``keep`` of what it took and what it gave."""
    model = stage.model
    assert isinstance(model, nn.Module)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    layers = {model.get_submodule(name): name for name in kept}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[layers[layer]].append(keep(inputs[0], output))

    with hooked(layers, see):
        stage(image)
    return kept
