"""Other libraries' networks as teachers: they say what their own library makes of the same picture."""

import numpy as np
import pytest
import torch
from foreign import MASKS, NAMES, SEMANTIC, SIDE, mobilevit, oneformer, save
from PIL import Image

from model.fold import fold_batchnorm
from util.data.batch import Normalize
from util.errors import UserError
from util.teachers import foreign, hf, torchvision_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """folder(kind) -> where the tiny network of that kind is saved."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = save(kind, tmp_path_factory.mktemp(kind.__name__))
        return str(made[kind])

    return get


@pytest.fixture(scope="session")
def picture():
    """(SIDE, SIDE, 3) uint8: a grid of 8 x 8 points falls on every ninth pixel."""
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def run(net, picture, data):
    """The picture as our loader and Normalize would feed it -> the network's scores."""
    with torch.no_grad():
        return net(Normalize(data, torch.device("cpu"))(torch.from_numpy(picture)[None])).logits


@pytest.mark.parametrize("kind", [*SEMANTIC, mobilevit], ids=lambda kind: kind.__name__)
def test_a_semantic_network_says_what_transformers_says(tiny, folder, kind, picture):
    """With its own normalisation, whatever DATA.mean and std are."""
    import transformers

    data = tiny.load("DATA.mean", "[100.0, 110.0, 120.0]", "DATA.std", "[50.0, 60.0, 70.0]").data
    found = hf.Description(folder(kind))
    assert found.names == NAMES and found.raw
    net = found.load(data, torch.float32)
    theirs = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder(kind)).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder(kind))
    with torch.no_grad():
        output = theirs(**processor(Image.fromarray(picture), return_tensors="pt"))
    full = torch.nn.functional.interpolate(output.logits, (SIDE, SIDE), mode="bilinear", align_corners=False)
    scores = run(net, picture, data)
    assert scores.shape == (1, 4, 8, 8) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, full[:, :, ::9, ::9], rtol=0, atol=1e-3 * full.std((2, 3)).min().item())
    (labels,) = processor.post_process_semantic_segmentation(output, target_sizes=[(SIDE, SIDE)])
    assert torch.equal(scores[0].argmax(0), labels[::9, ::9])


@pytest.mark.parametrize("kind", [*MASKS, oneformer], ids=lambda kind: kind.__name__)
def test_a_mask_classifier_says_what_transformers_says(tiny, folder, kind, picture):
    """Its class scores over their sum, by transformers' post-processing of the same output, at its own resolution."""
    import transformers

    found = hf.Description(folder(kind))
    assert found.names == NAMES and not found.raw
    net = found.load(tiny.load().data, torch.float32)
    processor = transformers.AutoImageProcessor.from_pretrained(folder(kind))
    pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = net.net(pixels)
        assert torch.equal(
            run(net, picture, tiny.load().data).argmax(1),
            hf.from_masks(output, lambda maps: foreign.sample(maps, (SIDE, SIDE))).argmax(1),
        )
    size = tuple(output.masks_queries_logits.shape[2:])
    if kind.__name__ == "mask2former":
        size = (384, 384)  # to which transformers enlarges its masks, whatever the picture
    more = {"size": dict(zip(("shortest_edge", "longest_edge"), size, strict=True))} if kind.__name__ == "eomt" else {}
    (found,) = processor.post_process_semantic_segmentation(
        output, target_sizes=[size], return_segmentation_scores=True, **more
    )
    scores = hf.from_masks(output, lambda maps: torch.nn.functional.interpolate(maps, size, mode="bilinear"))
    expected = found.segmentation_scores / found.segmentation_scores.sum(0)
    torch.testing.assert_close(scores[0].exp(), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(scores[0].argmax(0), found.segmentation)
    torch.testing.assert_close(scores.logsumexp(1), torch.zeros(1, *size), rtol=0, atol=1e-5)


def test_torchvisions_network_says_what_torchvision_says(tiny, lraspp, picture):
    from torchvision import models

    found = torchvision_models.Description("lraspp_mobilenet_v3_large", str(lraspp))
    net = found.load(tiny.load().data, torch.float32)
    weights = models.get_model_weights("lraspp_mobilenet_v3_large").DEFAULT
    assert found.names == weights.meta["categories"]
    theirs = models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None).eval()
    theirs.load_state_dict(torch.load(lraspp))
    image = torch.from_numpy(picture).permute(2, 0, 1)
    with torch.no_grad():
        full = theirs(weights.transforms()(image)[None])["out"]
        full = torch.nn.functional.interpolate(full, (SIDE, SIDE), mode="bilinear", align_corners=False)
    scores = run(net, picture, tiny.load().data)
    # Enlarged twice there, from stride 8 to 520 and down to 64, once here.
    torch.testing.assert_close(scores, full[:, :, ::9, ::9], rtol=0.05, atol=0.05 * full.std().item())


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_torchvisions_scores_before_they_are_enlarged(name):
    """With BatchNorm folded, of statistics that do something."""
    from torchvision import models

    torch.manual_seed(0)
    net = models.get_model(name, weights=None, weights_backbone=None).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        expected = net(image)["out"]
        fold_batchnorm(net)
        scores = torchvision_models._Scores(net)(image)
    enlarged = torch.nn.functional.interpolate(scores, (65, 65), mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


@pytest.fixture(scope="session")
def lraspp(tmp_path_factory):
    """The weights of torchvision's smallest segmentation network, random, as a file."""
    from torchvision import models

    torch.manual_seed(0)
    net = models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0, 0.2)
    path = tmp_path_factory.mktemp("torchvision") / "lraspp.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.parametrize(
    "cells, size",
    [((3, 4), (33, 45)), ((17, 9), (130, 64)), ((1, 1), (9, 9)), ((64, 64), (64, 64)), ((8, 200), (57, 30))],
)
def test_a_coarser_or_finer_grid_is_read_at_the_points_of_ours(cells, size):
    """Where 8n + 1 puts them on pixels, as enlarging to the image's size would."""
    maps = torch.rand(2, 3, *cells)
    sampled = foreign.sample(maps, size)
    assert sampled.shape == (2, 3, *(-(-side // 8) for side in size))
    full = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    rows, columns = (torch.linspace(0, side - 1, -(-side // 8)) for side in size)
    exact = [[(a, int(r)) for a, r in enumerate(p) if r == int(r)] for p in (rows, columns)]
    for i, y in exact[0]:
        for j, x in exact[1]:
            torch.testing.assert_close(sampled[:, :, i, j], full[:, :, y, x])


@pytest.mark.parametrize("shape, fed", [((473, 473), (512, 512)), ((480, 960), (512, 1024)), ((100, 800), (160, 1280))])
def test_a_size_by_its_shorter_side(shape, fed):
    assert foreign.shorter_side(512, longest=1280, multiple=32)(shape) == fed


def test_half_precision_weights_become_float32(tiny, tmp_path):
    path = save(SEMANTIC[0], tmp_path / "half", half=True)
    net = hf.Description(str(path)).load(tiny.load().data, torch.float32)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_another_class_count_of_a_file(tiny, lraspp, tmp_path):
    state = torch.load(lraspp)
    state["classifier.low_classifier.weight"] = state["classifier.low_classifier.weight"][:5]
    torch.save(state, tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"five.pth does not hold torchvision's lraspp.* of 21 classes.*low_classifier"):
        torchvision_models.Description("lraspp_mobilenet_v3_large", str(tmp_path / "five.pth")).load(
            tiny.load().data, torch.float32
        )
