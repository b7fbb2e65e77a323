# make demo    generate a dataset, train and test teacher, student and distilled student, write the report; it says beforehand
#              how long that takes. DATASET=shapes: the same for the dataset of the tables, several times as long
# make test    ruff, and pytest without the slow tests and those that need a GPU; two tests at a time (TESTS=8: eight)
# make test-all  all tests; those that need a GPU are skipped where there is none
# make results repeats the tables of benchmark/RESULTS.md, hours of training; CAMVID=FOLDER names CamVid's images, JOBS=8 makes so many
#              runs at a time. Resumes.
# make gpu     on a machine with a GPU: the tests that need one and the speed table, 8 minutes, to gpu.json; without .venv:
#              python benchmark/speed/gpu.py
# make faults  kill a tiny run at 60 random moments, fill its disk: about fourteen minutes
# All make .venv first, with the versions of constraints.txt.

PYTHON ?= python3
SEED ?= 0
DATASET ?= demo
JOBS ?= 1
TESTS ?= 2
PY := .venv/bin/python
# jobs of several processes one after the other
PYTEST = $(PY) -m pytest -n $(TESTS) --dist loadgroup

.PHONY: demo test test-all lint faults gpu results clean

demo: .venv/.ready
	$(PY) tool/pipeline.py --dataset $(DATASET) --seed $(SEED)

test: lint
	$(PYTEST) -m "not slow and not gpu"

test-all: lint
	$(PYTEST)

lint: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

faults: .venv/.test
	$(PY) -m pytest -s tests/faults.py

gpu: .venv/.test
	$(PY) benchmark/speed/gpu.py

results: .venv/.ready
	$(PY) benchmark/results.py shapes --jobs $(JOBS)
	$(PY) benchmark/results.py camvid --jobs $(JOBS) $(if $(CAMVID),--data-root $(CAMVID))
	$(PY) benchmark/evidence.py

.venv/.ready: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; make PYTHON=... names one")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	touch $@

.venv/.test: .venv/.ready requirements-export.txt requirements-teachers.txt
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-export.txt -r requirements-teachers.txt \
		pytest pytest-xdist hypothesis ruff -c constraints.txt
	touch $@

clean:
	rm -rf .venv exp/shapes exp/demo dataset/demo
