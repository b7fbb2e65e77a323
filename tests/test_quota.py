"""util/quota.py: parts of one cache beside each other, in use and not."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from conftest import python, tiny_pspnet

from util import quota
from util.errors import UserError
from util.train.teacher_cache import TeacherCache


def test_a_run_in_use_is_not_removed(tiny, teacher, tmp_path):
    cfg = tiny.load(*teacher, "DISTILL.cache", str(tmp_path / "cache"))
    kept = TeacherCache(cfg, tiny_pspnet(), ["logits"])
    with kept.opened(1):
        code = f"from util.quota import _remove; from pathlib import Path; print(_remove(Path({str(kept.folder)!r})))"
        assert python("-c", code).stdout.strip() == "False" and (kept.folder / "run.json").is_file()
    assert quota._remove(kept.folder) and not kept.folder.exists()
    assert not quota._remove(tmp_path)  # not a cache


def test_parts_in_use_may_grow_while_a_run_starts(tiny, teacher, tmp_path, monkeypatch):
    cfg = tiny.load(*teacher, "DISTILL.cache", str(tmp_path / "cache"))
    kept = TeacherCache(cfg, tiny_pspnet(), ["logits"])
    with quota.hold(tmp_path / "cache/other", {}):
        looks = iter(range(1, 1000))
        monkeypatch.setattr(quota, "size", lambda part: 4096 * next(looks) if part.name == "other" else 0)
        with kept.opened(1):  # there is room for both
            assert next(looks) > 1
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
        monkeypatch.setattr(quota, "size", lambda part: 10**9 if part.name == "other" else 0)
        with pytest.raises(UserError, match="in use by other runs"), kept.opened(1):
            pass


def test_runs_that_start_together_do_not_disturb_one_another(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from util import quota
        base, own = Path(sys.argv[1]), sys.argv[2]
        for _ in range(60):
            with quota.hold(base / own, {"of": own}):
                assert (base / own / "run.json").is_file()
                quota.make_room(base / own, 0, 0)
                assert (base / own / "run.json").is_file()
    """
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda own: python("-c", code, tmp_path / "cache", own), ("a", "a", "b", "b")))
    assert [result.returncode for result in results] == [0] * 4, results
