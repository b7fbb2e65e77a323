"""Lists, images, labels: what is read, and what each fault says."""

import itertools
import multiprocessing
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from conftest import CLASSES, VOID, save_palette, tiny_pspnet
from PIL import Image

from util.data.batch import CachedOutputs
from util.data.decode import read_image, read_label
from util.data.lists import read_colors, read_list, read_names, scored_list
from util.data.loader import TrainData, _start_worker, build_loader, collate
from util.data.scan import LabelCounts
from util.errors import UserError
from util.evaluate.protocol import ScaledImages, protocol_for_testing
from util.seeds import Stream, generator
from util.train.teacher import Teacher


@pytest.fixture
def label():
    values = np.zeros((6, 8), np.uint8)
    values[2:, 3:], values[0] = 3, VOID
    return values


def test_palette_label_is_read_as_indices(tmp_path, label):
    save_palette(label, tmp_path / "p.png")
    Image.fromarray(label).save(tmp_path / "g.png")
    for name in ("p.png", "g.png"):
        assert np.array_equal(read_label(tmp_path / name, (6, 8), CLASSES, VOID), label)


def test_rgb_label_is_refused(tmp_path, label):
    Image.fromarray(label).convert("RGB").save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"rgb\.png is a RGB picture.*one channel"):
        read_label(tmp_path / "rgb.png", (6, 8), CLASSES, VOID)


def test_unknown_label_value_names_file_and_value(tmp_path, label):
    label[1, 1] = 7
    save_palette(label, tmp_path / "bad.png")
    with pytest.raises(UserError, match=r"bad\.png holds the value 7.*0 \.\. 3.*255"):
        read_label(tmp_path / "bad.png", (6, 8), CLASSES, VOID)


def test_label_of_another_size(tmp_path, label):
    save_palette(label, tmp_path / "p.png")
    with pytest.raises(UserError, match="8x6, its image is 6x8"):
        read_label(tmp_path / "p.png", (8, 6), CLASSES, VOID)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"not a picture"])
def test_broken_pictures(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.png"):
        read_image(path, None)
    with pytest.raises(UserError, match="x.png"):
        read_label(path, (6, 8), CLASSES, VOID)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_gray_alpha_and_palette_images_become_rgb(tmp_path, mode):
    picture = Image.new("RGB", (8, 6), (204, 204, 204)).convert(mode)  # 204: in PIL's web palette
    picture.save(tmp_path / "i.png")
    image = read_image(tmp_path / "i.png", None)
    assert image.shape == (6, 8, 3) and (image == 204).all()


def test_channel_order_is_rgb(tmp_path):
    Image.new("RGB", (8, 6), (10, 20, 30)).save(tmp_path / "i.png")
    assert read_image(tmp_path / "i.png", None)[0, 0].tolist() == [10, 20, 30]


@pytest.fixture
def listing(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)

    def write(content: bytes):
        (tmp_path / "list.txt").write_bytes(content)
        return read_list(str(tmp_path / "list.txt"), "DATA.train_list", str(tmp_path))

    return write


@pytest.mark.parametrize(
    "content", [b"a.png b.png\n", b"a.png b.png", b"\xef\xbb\xbfa.png b.png\r\n", b"\n\n  a.png\tb.png \n\n"]
)
def test_lists_of_any_editor(listing, tmp_path, content):
    assert listing(content) == [(tmp_path / "a.png", tmp_path / "b.png")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a.png b.png\na.png\n", "line 2.*`image label`"),
        (b"my image.png b.png\n", "line 1.*with a tab between"),
        (b"a.png b.png\nc.png b.png\n", "line 2.*c.png does not exist.*DATA.data_root"),
        (b"gone/a.png b.png\n", "line 1.*gone/a.png does not exist"),
        (b"\n", "lists no image"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_bad_lists_name_the_line(listing, content, words):
    with pytest.raises(UserError, match=words):
        listing(content)


def test_a_bad_sample_comes_back_as_its_error(tiny, tmp_path):
    """A worker process hands the error over as a value: raised, it would be wrapped in a traceback."""
    (tmp_path / "list.txt").write_text("train0.jpg train1.png\n")
    cfg = tiny.load("DATA.train_list", str(tmp_path / "list.txt"))
    data = TrainData(cfg.data, cfg.train, 0)
    assert isinstance(data[0, 0], UserError)


def test_names_and_colors(tiny, tmp_path):
    cfg = tiny.load()
    assert read_names(cfg.data) == ["sky", "land", "road", "car"]
    assert read_colors(cfg.data).shape == (256, 3)
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="names 2 classes, DATA.classes is 4"):
        read_names(tiny.load("DATA.names_path", str(tmp_path / "short.txt")).data)
    with pytest.raises(UserError, match="three numbers"):
        read_colors(tiny.load("DATA.colors_path", str(tmp_path / "short.txt")).data)


@pytest.fixture
def datasets(tiny):
    """What worker processes are handed: training data with the teacher's cache, images of a test, --check."""
    cfg = tiny.load("DISTILL.teacher_path", str(tiny.out / "t.pth"), "DISTILL.cache", str(tiny.out / "cache"))
    (tiny.out / "t.pth").write_bytes(b"weights")
    teacher = Teacher(cfg, tiny_pspnet())
    pairs = scored_list(cfg.data.val_list, "DATA.val_list", cfg.data)
    images = ScaledImages(pairs, protocol_for_testing(cfg), cfg.data, VOID)
    return TrainData(cfg.data, cfg.train, 0, teacher.cache), images, LabelCounts(pairs, cfg.data, VOID)


def test_what_workers_get_can_be_pickled(datasets):
    """Spawned ones, as on macOS, get a copy."""
    train, images, counts = datasets
    for data, key in ((train, (2, 5)), (images, 1), (counts, 1)):
        here, there = data[key], pickle.loads(pickle.dumps(data))[key]
        assert str(here) == str(there) and not isinstance(here, UserError)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_start_by_any_method(datasets, method):
    data, _, _ = datasets
    options = {"batch_sampler": [[(0, 1), (0, 2)]], "collate_fn": collate, "multiprocessing_context": method}
    there, here = next(iter(build_loader(data, 1, **options))), collate([data[0, 1], data[0, 2]])
    assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])


@pytest.mark.parametrize(("known", "status"), [(True, 0), (False, -signal.SIGTERM)])
def test_a_loader_ends_its_workers(monkeypatch, known, status):
    """By SIGTERM, also where there is no sigwaitinfo, as on macOS."""
    if not known:
        monkeypatch.delattr(signal, "sigwaitinfo")
    fork = multiprocessing.get_context("fork")
    started = fork.Event()

    def work():
        _start_worker(0)
        started.set()
        time.sleep(60)

    worker = fork.Process(target=work)
    worker.start()
    assert started.wait(10)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == status


def test_a_tab_separates_paths_with_spaces(tmp_path):
    for name in ("my image.jpg", "my label.png", "b.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_text("my image.jpg\tmy label.png\nb.jpg b.png\n")
    pairs = read_list(str(tmp_path / "list.txt"), "DATA.train_list", str(tmp_path))
    assert [(pair.image.name, pair.label.name) for pair in pairs] == [
        ("my image.jpg", "my label.png"),
        ("b.jpg", "b.png"),
    ]


def test_random_streams_never_coincide():
    """Padded with zeros, as NumPy does, the initial weights' seed would be the first epoch's order, and so on."""
    lengths = {Stream.INIT: 1, Stream.DROPOUT: 3, Stream.ORDER: 2, Stream.UNLABELLED_ORDER: 2, Stream.AUGMENT: 3}
    assert lengths.keys() == set(Stream)
    keys = [(stream, key) for stream in Stream for key in itertools.product(range(4), repeat=lengths[stream])]
    drawn = {generator(stream, *key).integers(2**63) for stream, key in keys}
    assert len(drawn) == len(keys) == 4 + 64 + 16 + 16 + 64


def test_cached_outputs_of_a_batch():
    """Parts have their own crops' outputs; one crop that lacks them makes all be computed anew."""
    maps = [torch.full((2, 3, 3), i, dtype=torch.int16) for i in range(4)]
    crops = [CachedOutputs([(0, i)], [10 + i], {"logits": x}) for i, x in enumerate(maps)]
    parts = list(CachedOutputs.collate(crops).split(2))
    assert [part.keys for part in parts] == [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    assert [part.checksums for part in parts] == [[10, 11], [12, 13]]
    for part, expected in zip(parts, (maps[:2], maps[2:]), strict=True):
        assert torch.equal(part.layers["logits"], torch.stack(expected))
    missing = CachedOutputs.collate([*crops[:3], crops[3]._replace(layers=None)])
    assert missing.keys == [(0, 0), (0, 1), (0, 2), (0, 3)] and [part.layers for part in missing.split(2)] == [None] * 2
