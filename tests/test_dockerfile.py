"""The Dockerfile's steps, as far as they can be followed without docker: what they copy, pin, keep and leave
for make."""

import re
import subprocess

import pytest
from scripts import ROOT

STEPS = [
    (step.split(maxsplit=1)[0], step.split(maxsplit=1)[1])
    for step in re.sub(
        r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    ).splitlines()
    if step.strip()
]
IMAGE_PACKAGES = "torch==2.12.0a0+nv\ntransformer_engine==2.9.0\napex==0.1\nnumpy==2.1.0\npackaging==23.2\n"
"""As `pip list --format=freeze` of NVIDIA's image says it, in part."""


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name, arguments in STEPS:
        if name == "COPY":
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.strip("/") not in ignored, source


def test_every_argument_that_is_used_is_declared_and_the_image_is_pinned():
    declared = {arguments.split("=")[0] for name, arguments in STEPS if name in ("ARG", "ENV")}
    for _, arguments in STEPS:
        assert set(re.findall(r"\$\{?([A-Z_]+)\b", arguments)) <= declared | {"PATH"}, arguments
    (image,) = [
        arguments.split("=", 1)[1]
        for name, arguments in STEPS
        if name == "ARG" and arguments.startswith("IMAGE=")
    ]
    assert re.fullmatch(r"[\w./-]+:\d\d\.\d\d-py3", image), image


@pytest.fixture
def constraints(tmp_path) -> list[str]:
    """The lines that the image's pip is given, made by the step itself over a pip that lists the image's
    packages."""
    (step,) = [arguments for name, arguments in STEPS if name == "RUN" and "PIP_CONSTRAINT.new" in arguments]
    before = step.partition("&& pip install")[0].replace("/etc/", f"{tmp_path}/")
    (tmp_path / "listed").write_text(IMAGE_PACKAGES)
    script = f'set -e; pip() {{ cat "{tmp_path}/listed"; }}; PIP_CONSTRAINT={tmp_path}/constraints; {before}'
    subprocess.run(["bash", "-c", script], cwd=ROOT, check=True)
    return (tmp_path / "constraints").read_text().splitlines()


def test_the_images_torch_stays_and_the_rest_is_pinned_as_it_is_tested(constraints):
    pins = {
        re.split(r"[=\[]", line)[0].lower().replace("_", "-"): line for line in constraints if line.strip()
    }
    assert len(pins) == len([line for line in constraints if line.strip()]), "a name is pinned twice"
    assert pins["torch"] == "torch==2.12.0a0+nv" and pins["numpy"] == "numpy==2.1.0"
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-"))]
    tested = (ROOT / "constraints.txt").read_text().splitlines()
    for package in ("megatron-core", "transformers", "blake3", "datasets", "math-verify"):
        assert pins[package] in tested


def test_make_finds_its_environment_there():
    """It has a python and nothing else: no pip, no scripts."""
    (step,) = [
        arguments for name, arguments in STEPS if name == "RUN" and "venv --system-site-packages" in arguments
    ]
    ready = re.search(r"^READY := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert "--without-pip .venv" in step and f"touch {ready}" in step
    for path in (ROOT / "Makefile", *(ROOT / "examples/cluster").iterdir()):
        for line in path.read_text().splitlines():
            used = set(re.findall(r"(?<![\w-])\.venv/bin/(\w+)", line.partition("#")[0]))
            assert used <= {"python"}, f"{path.name}: {line}"


def test_the_oldest_torch_that_is_allowed_is_the_one_that_is_tested():
    allowed = dict(re.findall(r'"(torch|transformers)>=([\d.]+)"', (ROOT / "setup.py").read_text()))
    oldest = (ROOT / "constraints-oldest.txt").read_text()
    for package, version in allowed.items():
        assert re.search(rf"^{package}=={re.escape(version)}\.", oldest, re.MULTILINE), (package, version)
