"""DISTILL.hints: any loss between any two layers, by a line of YAML. A new loss is one entry in LOSSES."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from model.distill import adapters, features, logits, relations
from model.pspnet import ZOOM, Output, PSPNet
from util.config import Config
from util.data.batch import Batch
from util.errors import UserError
from util.keys import Hint

SCORES = ("logits", "aux")  # layers that hold one channel a class


class Loss(NamedTuple):
    """Keyword-only arguments of `function` and `adapter` are the loss's options, which a hint may set by name."""

    function: Callable[..., Tensor]
    weight: float  # where a hint says none: the published one, converted where a sum has become a mean, for 60x60 maps
    adapter: adapters.Adapter = adapters.none
    scores: bool = False  # for logits and aux only
    labelled: bool = False  # needs classes: off on unlabelled images
    feature_weight: float | None = None  # on layers that hold no scores, where that is another one


LOSSES = {
    "kl": Loss(logits.kl, 1.0, scores=True),
    "dkd": Loss(logits.dkd, 1.0, scores=True, labelled=True),
    "dist": Loss(logits.dist, 1.0, scores=True),
    "cwd": Loss(features.cwd, 3.0, adapters.conv1x1_if_channels_differ, feature_weight=50.0),
    "mse": Loss(features.mse, 1.0, adapters.conv1x1_if_channels_differ),
    "fitnet": Loss(features.mse, 10.0, adapters.always),
    "mgd": Loss(features.mse, 42.0, adapters.Generator),
    "at": Loss(features.at, 2.8),
    "attnfd": Loss(features.attnfd, 2.0, adapters.Attention),
    "pairwise": Loss(relations.pairwise, 10.0),
    "ifv": Loss(relations.ifv, 20.0, labelled=True),
    "cirkd": Loss(relations.cirkd, 1.0),
}


class _Term(NamedTuple):
    hint: Hint
    loss: Loss
    theirs: str  # the teacher's layer
    options: dict[str, Any]


class Hints:
    """The terms of DISTILL.hints, each named `<loss>_<layer>`.

    weights: by name. student: the network and its adapters as one module, what engine.fit trains. Raises UserError for
    an unknown loss or option, two hints of one name, and a layer that a network does not have.
    """

    def __init__(self, cfg: Config, student: PSPNet, teacher: PSPNet):
        self.terms: dict[str, _Term] = {}
        modules, layers = nn.ModuleDict(), {}
        own, theirs = student.channels(), teacher.channels()
        for hint in cfg.distill.hints:
            name = f"{hint.loss}_{hint.layer}"
            where = f"DISTILL.hints, {name}"
            if hint.loss not in LOSSES:
                raise UserError(f"DISTILL.hints: unknown loss {hint.loss}; {_suggest(hint.loss, LOSSES)}")
            if name in self.terms:
                raise UserError(f"{where} is there twice; one layer takes a loss once")
            loss, target = LOSSES[hint.loss], hint.teacher_layer or hint.layer
            for layer, channels, whose in ((hint.layer, own, "student"), (target, theirs, "teacher")):
                if layer not in channels:
                    raise UserError(f"{where}: the {whose} has no {layer} (no auxiliary head); choose another layer")
                if (loss.scores or hint.standardise) and layer not in SCORES:
                    what = hint.loss if loss.scores else "standardise"
                    raise UserError(f"{where}: {what} works on class scores; its layers are logits and aux")
            options = _options(where, hint.model_extra, loss.function, loss.adapter)
            modules[name] = loss.adapter(own[hint.layer], theirs[target], **options[loss.adapter])
            layers[name] = hint.layer, target
            self.terms[name] = _Term(hint, loss, target, options[loss.function])
        self.weights = {name: _weight(term) for name, term in self.terms.items()}
        self.layers = {term.theirs for term in self.terms.values()}  # of the teacher, that the terms read
        self.student = adapters.StudentWithAdapters(student, modules, layers) if layers else student

    def __call__(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The hints' terms, unweighted; `student` is the output of self.student."""
        result = {}
        for name, (hint, loss, target, options) in self.terms.items():
            s, t = student.features[name], teacher.layer(target)
            if hint.standardise:
                s, t = logits.standardise(s), logits.standardise(t)
            labels = (batch.labels if loss.labelled else batch.valid)(ZOOM[target])
            result[name] = loss.function(s, t, labels, **options)
        return result


def _weight(term: _Term) -> float:
    hint, loss = term.hint, term.loss
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
            raise UserError(f"{where}: unknown option {key}; {_suggest(key, types)}")
        function, kind = types[key]
        try:
            chosen[function][key] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"{where}: {key}: {reason[0].lower()}{reason[1:]}, not {value!r:.60}") from None
    return chosen


def _suggest(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
