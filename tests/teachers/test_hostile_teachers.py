"""Teachers of other libraries that are not there, not whole, or something else: one line each."""

import json
import shutil
import sys

import pytest
import torch
from foreign import NAMES, beit, oneformer, save, segformer

from util import pretrained

VOC = ["DISTILL.teacher_classes", "{car: [car, bus], road: [__background__]}"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return save(segformer, tmp_path_factory.mktemp("whole") / "segformer")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of a whole folder, to be spoilt."""
    return shutil.copytree(whole, tmp_path / "segformer")


@pytest.fixture
def refused(tiny, fails):
    """refused(teacher_path, *overrides) -> the error's line."""
    common = ["--config", tiny.path, "DISTILL.weights.aux_mse", "0", "DISTILL.hints", "[]", "DISTILL.teacher_path"]
    return lambda path, *more: fails("train_50_18.py", *common, path, *more)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_folder_without_its_description(folder, refused, file):
    (folder / file).unlink()
    assert f"has no {file}" in refused(f"hf:{folder}")


def test_another_task(folder, refused):
    edit(folder / "config.json", architectures=["SegformerForImageClassification"])
    line = refused(f"hf:{folder}")
    assert "is a SegformerForImageClassification" in line and "SegformerForSemanticSegmentation does" in line
    (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    assert "is a ViTModel, which does not segment classes" in refused(f"hf:{folder}")


def test_code_in_the_folder_is_never_run(folder, refused, tmp_path):
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "mine.Config", "AutoModelForSemanticSegmentation": "mine.Model"}
    edit(folder / "config.json", model_type="mine", auto_map=auto)
    assert "brings code of its own, which is never run" in refused(f"hf:{folder}")
    edit(folder / "config.json", model_type="segformer")
    edit(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "mine.Processor"})
    refused(f"hf:{folder}", "DISTILL.teacher_classes", "{sky: [nothing]}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "gone", "head", "nan", "shape"])
def test_weights_that_are_not_whole(folder, refused, damage):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    if damage in ("head", "nan", "shape"):
        state = load_file(path)
        if damage == "head":
            del state["decode_head.classifier.weight"]
        else:
            value = state["decode_head.classifier.weight"]
            state["decode_head.classifier.weight"] = torch.full_like(value, torch.nan) if damage == "nan" else value[:2]
        save_file(state, path, metadata={"format": "pt"})
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"no weights at all")
    line = refused(f"hf:{folder}")
    assert str(folder) in line
    assert damage not in ("head", "nan", "shape") or "decode_head.classifier.weight" in line


def test_names_that_lead_nowhere(refused):
    assert "there is no such folder" in refused("hf:./exp/no/such/folder")
    assert "is cut short" in refused("'hf:'")
    assert "DISTILL.teacher_path: Input should be a valid string" in refused("hf:")  # YAML's for {hf: nothing}
    assert "unknown kind torchvison; did you mean torchvision?" in refused("torchvison:fcn_resnet50")
    assert "did you mean fcn_resnet50" in refused("torchvision:fcn_resnet5")
    assert "checkpoint nofile.pth does not exist" in refused("torchvision:fcn_resnet50@nofile.pth", *VOC)
    assert "teacher checkpoint none.pth does not exist (DISTILL.teacher_path" in refused("none.pth")


@pytest.mark.parametrize("name, words", [
    ("hf:nvidia/segformer-b0", "the hub does not answer"), ("torchvision:fcn_resnet50", "could not be downloaded"),
])  # fmt: skip
def test_without_a_network(refused, name, words, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else its client tries for half a minute
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    line = refused(name, *VOC)
    assert words in line and "elsewhere" in line


def test_classes_and_terms_are_checked_before_a_download(refused, monkeypatch):
    monkeypatch.setattr(pretrained, "download", lambda *_: pytest.fail("asked the network"))
    assert "fcn_resnet50 has 21 classes (__background__, aeroplane" in refused("torchvision:fcn_resnet50")
    line = refused("torchvision:fcn_resnet50", *VOC, "DISTILL.weights.aux_mse", "1")
    assert "has no auxiliary scores" in line


def test_a_missing_package(folder, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install -r requirements-teachers.txt" in refused(f"hf:{folder}")


def test_a_size_that_the_network_cannot_take(refused, tmp_path):
    path = save(beit, tmp_path / "beit", size={"height": 4, "width": 4})
    assert "fails on a crop of 33x33, resized to 4x4 as its own files say" in refused(f"hf:{path}")


def test_a_oneformer_without_its_tokenizer(refused, tmp_path):
    path = save(oneformer, tmp_path / "oneformer")
    for file in path.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refused(f"hf:{path}")


def test_names_that_do_not_count_the_classes(folder, refused):
    labels = dict(enumerate([*NAMES, "more"]))
    edit(folder / "config.json", id2label=labels, num_labels=5)
    line = refused(f"hf:{folder}", "DISTILL.teacher_classes", "{sky: [sky], car: [car, more]}")
    assert "lacks weights" in line and "classifier" in line


@pytest.mark.parametrize("key, value, words", [
    ("teacher_weights", "[1.0]", "teacher_weights has 1 entries for 2 teachers"),
    ("teacher_classes", "[{sky: [sky]}]", "teacher_classes has 1 entries for 2 teachers"),
    ("teacher_weights", "[1.0, 0.0]", "teacher_weights.1"),
    ("teacher_classes", "{sky: []}", "teacher_classes"),
    ("teacher_classes", "nowhere.yaml", "nowhere.yaml does not exist"),
])  # fmt: skip
def test_lists_that_do_not_fit(refused, key, value, words):
    assert words in refused("[a.pth, b.pth]", f"DISTILL.{key}", value)
