"""DISTILL.hints: any loss between any two layers, by a line of YAML. A new loss is one entry in LOSSES."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from model.distill import adapters, features, logits, relations
from model.distill.adapters import StudentWithAdapters
from model.distill.classes import Averaged, Known, Mapped, comparable
from model.pspnet import LAYER_ZOOM_FACTOR, Output, PSPNet
from util.data.batch import Batch
from util.errors import UserError, suggest
from util.keys import Hint

SCORES = ("logits", "aux")  # layers that hold one channel a class


class Loss(NamedTuple):
    """Keyword-only arguments of `function` and `adapter` are the loss's options, which a hint may set by name."""

    function: Callable[..., Tensor]
    weight: float  # default: the published one, converted where a sum has become a mean, for 60x60 maps
    adapter: adapters.Adapter = adapters.identity
    scores_only: bool = False  # for logits and aux only
    needs_classes: bool = False  # off on unlabelled images
    feature_weight: float | None = None  # default on layers that hold no scores, where that is another one


LOSSES = {
    "kl": Loss(logits.kl, 1.0, scores_only=True),
    "dkd": Loss(logits.dkd, 1.0, scores_only=True, needs_classes=True),
    "dist": Loss(logits.dist, 1.0, scores_only=True),
    "cwd": Loss(features.cwd, 3.0, adapters.conv1x1_if_channels_differ, feature_weight=50.0),
    "mse": Loss(features.mse, 1.0, adapters.conv1x1_if_channels_differ),
    "nfd": Loss(features.nfd, 1.0, adapters.conv1x1_if_channels_differ),
    "fitnet": Loss(features.mse, 10.0, adapters.conv1x1),
    "mgd": Loss(features.mse, 42.0, adapters.MaskedGenerator),
    "at": Loss(features.at, 2.8),
    "attnfd": Loss(features.attnfd, 2.0, adapters.CBAM),
    "pairwise": Loss(relations.pairwise, 10.0),
    "ifv": Loss(relations.ifv, 20.0, needs_classes=True),
    "cirkd": Loss(relations.cirkd, 1.0),
}


class _Term(NamedTuple):
    loss: Loss
    options: dict[str, Any]
    weight: float
    layer: str  # of the student's output: one of its own, or an adapter's
    teacher_layer: str
    standardise: bool


class HintLosses:
    """The terms of DISTILL.hints, each named `<loss>_<layer>`.

    weights: of each term. teacher_layers: the layers of the teacher that the terms read. known: of a teacher of other
    classes, whose logits and the student's are made comparable first.
    """

    def __init__(self, terms: dict[str, _Term], known: Known | None = None):
        self.terms, self.known = terms, known
        self.weights = {name: term.weight for name, term in terms.items()}
        self.teacher_layers = {term.teacher_layer for term in terms.values()}

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms, unweighted; `student` is the output of what with_hints returned."""
        result = {}
        for name, term in self.terms.items():
            s, t = student.layer(term.layer), teacher.layer(term.teacher_layer)
            grids = batch.labels if term.loss.needs_classes else batch.valid
            labels = grids[LAYER_ZOOM_FACTOR[term.teacher_layer]]
            if term.teacher_layer == "logits":
                s, t, labels = comparable(s, t, labels, self.known)
            if term.standardise:
                s, t = logits.standardise(s), logits.standardise(t)
            result[name] = term.loss.function(s, t, labels, **term.options)
        return result


def check_hints(hints: Sequence[Hint], labelled: bool) -> None:
    """What needs no network. Raises UserError for an unknown loss or option, two hints of one name, and a loss that
    needs labels where there are none (labelled False)."""
    names = []
    for hint in hints:
        where = f"DISTILL.hints, {_name(hint)}"
        if hint.loss not in LOSSES:
            raise UserError(f"DISTILL.hints: unknown loss {hint.loss}; {suggest(hint.loss, LOSSES)}")
        if _name(hint) in names:
            raise UserError(f"{where} is there twice; one layer takes a loss once")
        names.append(_name(hint))
        loss = LOSSES[hint.loss]
        if loss.needs_classes and not labelled:
            raise UserError(f"{where}: {hint.loss} needs labels, and DATA.train_list is empty; choose another loss")
        _options(where, hint.model_extra, loss.function, loss.adapter)


def _name(hint: Hint) -> str:
    return f"{hint.loss}_{hint.layer}"


def with_hints(
    hints: Sequence[Hint], student: PSPNet, teacher: PSPNet | Mapped | Averaged, labelled: bool = True
) -> tuple[PSPNet | StudentWithAdapters, HintLosses]:
    """-> the student, with the adapters that the hints need, and the hints' losses.

    labelled: whether any image has labels. Raises UserError for what check_hints refuses, for a layer that a network
    does not have, and for a loss that does not suit it.
    """
    check_hints(hints, labelled)
    terms: dict[str, _Term] = {}
    modules, layers = nn.ModuleDict(), {}
    student_channels, teacher_channels = student.channels(), teacher.channels()
    for hint in hints:
        name, target, loss = _name(hint), hint.teacher_layer or hint.layer, LOSSES[hint.loss]
        where = f"DISTILL.hints, {name}"
        for layer, channels, role in ((hint.layer, student_channels, "student"), (target, teacher_channels, "teacher")):
            if layer not in channels:
                raise UserError(f"{where}: the {role} has no {layer}; its layers are {', '.join(channels)}")
            if (loss.scores_only or hint.standardise) and layer not in SCORES:
                what = hint.loss if loss.scores_only else "standardise"
                raise UserError(f"{where}: {what} works on class scores; its layers are logits and aux")
        if target == "logits" and teacher.known:
            _check_comparable(where, hint, loss, teacher.known)
        options = _options(where, hint.model_extra, loss.function, loss.adapter)
        adapter = loss.adapter(student_channels[hint.layer], teacher_channels[target], **options[loss.adapter])
        same_grid = LAYER_ZOOM_FACTOR[hint.layer] == LAYER_ZOOM_FACTOR[target]
        adapted = not (same_grid and isinstance(adapter, nn.Identity))
        if adapted:
            modules[name], layers[name] = adapter, (hint.layer, target)
        layer = name if adapted else hint.layer
        terms[name] = _Term(loss, options[loss.function], _weight(hint, loss), layer, target, hint.standardise)
    return (StudentWithAdapters(student, modules, layers) if layers else student), HintLosses(terms, teacher.known)


def _check_comparable(where: str, hint: Hint, loss: Loss, known: Known) -> None:
    """Of a hint on the log-probabilities of a teacher of other classes."""
    if hint.layer not in SCORES or loss.adapter not in (adapters.identity, adapters.conv1x1_if_channels_differ):
        fit = [name for name, other in LOSSES.items() if other.adapter is adapters.identity and not other.needs_classes]
        raise UserError(
            f"{where}: the teacher gives log-probabilities of its classes, which no adapter learns: compare them with "
            f"the student's logits or aux, by {', '.join([*fit, 'cwd', 'mse', 'nfd'])}"
        )
    if loss.function is logits.dkd and len(known.indices) < known.classes:
        raise UserError(
            f"{where}: dkd needs every class, and the teacher knows {len(known.indices)} of {known.classes}"
        )


def _weight(hint: Hint, loss: Loss) -> float:
    default = loss.weight if hint.layer in SCORES or loss.feature_weight is None else loss.feature_weight
    return default if hint.weight is None else hint.weight


def _options(where: str, given: dict[str, Any], *functions: Callable) -> dict[Callable, dict[str, Any]]:
    """The options `given` in a hint, checked, by the function whose keyword-only argument each is."""
    types = {
        p.name: (function, p.annotation)
        for function in functions
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    chosen: dict[Callable, dict[str, Any]] = {function: {} for function in functions}
    for key, value in given.items():
        if key not in types:
            raise UserError(f"{where}: unknown option {key}; {suggest(key, types)}")
        function, kind = types[key]
        try:
            chosen[function][key] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"{where}: {key}: {reason[0].lower()}{reason[1:]}, not {value!r:.60}") from None
    return chosen
