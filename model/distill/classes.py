"""Teachers of other classes: their probabilities put into ours, averaged, and compared where they mean something.

The scores of such a teacher are log-probabilities of our classes, FLOOR for a class that it does not know. They add up
to less than 1 where it sees classes of its own that nothing maps to.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model.labels import LABELS, Labels
from model.loss import to_float32
from model.pspnet import Output

FLOOR = -100.0  # log of a probability that counts as zero; -inf would become NaN where maps are interpolated


class Known:
    """Those of our `classes` that a teacher knows, by their `indices`."""

    def __init__(self, indices: Sequence[int], classes: int, device: torch.device | None = None):
        self.indices, self.classes = list(indices), classes
        self.index = torch.tensor(self.indices, device=device)
        unknown = [index not in self.indices for index in range(classes)] + [False] * (LABELS - classes)
        self.unknown_label = torch.tensor(unknown, device=device)


def comparable(student: Tensor, teacher: Tensor, labels: Labels, known: Known | None) -> tuple[Tensor, Tensor, Labels]:
    """Both networks' scores (N, C, h, w) over the classes that the teacher knows, and where they may be compared.

    With known None all three as they are: raw scores of the same classes. Else log-probabilities (N, K, h, w), each
    renormalised over the K classes, float32; and labels whose mask is False, too, where the label is a class that the
    teacher does not know, and where less than half of its probability lies on the K classes. The count is that of the
    mask alone: of a process's share and of an accumulated pass, since the teacher's part of it is not known before.
    """
    if known is None:
        return student, teacher, labels
    student, teacher = (to_float32(scores).index_select(1, known.index) for scores in (student, teacher))
    confident = teacher.logsumexp(1) >= math.log(0.5)
    mask = labels.mask & confident & ~known.unknown_label[labels.label]
    return student.log_softmax(1), teacher.log_softmax(1), Labels(labels.label, mask, mask.sum().clamp(min=1))


def padded(groups: Sequence[Sequence[int]], count: int) -> Tensor:
    """Groups of indices below `count` as one tensor (C, G), filled up with `count` itself."""
    tensors = [torch.tensor(group, dtype=torch.long) for group in groups]
    return pad_sequence(tensors, batch_first=True, padding_value=count)


def add_up(logits: Tensor, groups: Tensor) -> Tensor:
    """(N, T, h, w) scores of T classes -> (N, C, h, w) log-probabilities: each the sum over a group of the T, in log
    space. groups: as `padded` makes them; an empty one gives FLOOR."""
    log_p = F.pad(F.log_softmax(to_float32(logits), 1), (0, 0, 0, 0, 0, 1), value=-torch.inf)
    members = log_p.index_select(1, groups.flatten()).unflatten(1, groups.shape)
    return members.logsumexp(2).clamp(min=FLOOR)


def log_mean(log_probabilities: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log of the weighted mean of the probabilities; weights add up to 1."""
    terms = [log_p + math.log(weight) for log_p, weight in zip(log_probabilities, weights, strict=True)]
    return torch.stack(terms).logsumexp(0).clamp(min=FLOOR)


class Mapped(nn.Module):
    """A frozen network of other classes as a teacher of ours; its output has the net's layers and our scores.

    groups[c]: which of the net's classes make up our class c; empty where it knows none. raw: whether the net gives raw
    scores; where each class of both is one of the other's, these are put in our order, aux too, and known is None. Else
    the scores are log-probabilities in float32, and there is no aux, which holds no probabilities. dtype: of the net's
    convolutions.
    """

    def __init__(self, net: nn.Module, groups: Sequence[Sequence[int]], raw: bool, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype, self.classes = net, dtype, len(groups)
        reference = next(net.parameters())
        self.input_dtype, theirs = reference.dtype, net.channels()["logits"]
        one_to_one = sorted(map(list, groups)) == [[index] for index in range(theirs)]
        self.known = None
        if not (raw and one_to_one):
            self.known = Known([c for c, group in enumerate(groups) if group], self.classes, reference.device)
        self.register_buffer("groups", padded(groups, theirs).to(reference.device), persistent=False)

    @property
    def aux(self) -> nn.Module | None:
        return self.net.aux if self.known is None else None

    def channels(self) -> dict[str, int]:
        """As PSPNet's."""
        own = {"logits": self.classes} | ({"aux": self.classes} if self.aux is not None else {})
        return {name: width for name, width in self.net.channels().items() if name not in ("logits", "aux")} | own

    def forward(self, image: Tensor) -> Output:
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.net(image.to(self.input_dtype))
        if self.known is not None:
            return Output(add_up(output.logits, self.groups), None, output.features)
        order = self.groups.flatten()
        aux = None if output.aux is None else output.aux.index_select(1, order)
        return Output(output.logits.index_select(1, order), aux, output.features)


class Averaged(nn.Module):
    """Several teachers as one: the weighted mean of their probabilities. It knows what all of them know."""

    aux = None

    def __init__(self, teachers: Sequence[Mapped], weights: Sequence[float]):
        super().__init__()
        self.teachers, self.classes = nn.ModuleList(teachers), teachers[0].classes
        self.weights = [weight / sum(weights) for weight in weights]
        sets = [set(range(self.classes) if t.known is None else t.known.indices) for t in teachers]
        device = next(self.parameters()).device
        self.known = Known(sorted(set.intersection(*sets)), self.classes, device)

    def channels(self) -> dict[str, int]:
        return {"logits": self.classes}

    def forward(self, image: Tensor) -> Output:
        outputs = [to_float32(teacher(image).logits) for teacher in self.teachers]
        pairs = zip(outputs, self.teachers, strict=True)
        log_p = [scores.log_softmax(1) if teacher.known is None else scores for scores, teacher in pairs]
        return Output(log_mean(log_p, self.weights), None, {})


def output_dtype(teacher: nn.Module) -> torch.dtype:
    """The dtype that a teacher's input and scores have: its weights', or float32 where they are log-probabilities."""
    return next(teacher.parameters()).dtype if teacher.known is None else torch.float32
