"""What is released: a wheel that works by itself in an empty environment, and a source package, both with the page."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = "saccade/explorer/page"
PARTS = {"index.html", "icon.svg", "embed/embed.js", "embed/embed.css"}
SOURCES = ("src", "native", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml")


def build(kind, out, tree=ROOT, settings=None, **environment):
    """Run the build backend as an installer does; returns what it made, or what it said."""
    call = f"from scikit_build_core.build import build_{kind} as build; print(build({str(out)!r}, {settings!r}))"
    env = {name: value for name, value in os.environ.items() if name != "SACCADE_WITHOUT_PAGE"} | environment
    done = subprocess.run([sys.executable, "-c", call], cwd=tree, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


def page_files():
    """The files of the built page."""
    folder = ROOT / "src" / PAGE
    assert folder.is_dir(), "the page is not built: make page"
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {".built"}


# ---------------------------------------------------------------------------------------- what is in it


def test_the_source_package_has_the_page(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as package:
        names = {name.partition("/")[2] for name in package.getnames()}
    assert {f"src/{PAGE}/{name}" for name in page_files()} <= names
    assert {"pyproject.toml", "CMakeLists.txt", "native/library.cpp", "src/saccade/py.typed"} <= names
    assert not [name for name in names if "node_modules" in name or name.startswith((".venv/", "build/"))]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A tree of sources in which the page was not built."""
    tree = tmp_path_factory.mktemp("bare")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("page", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


# Without the compiled kernels, which are not what is asked here.
QUICK = {"wheel.cmake": "false"}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_without_the_page_there_is_no_release(bare, tmp_path, kind):
    said = build(kind, tmp_path, bare, QUICK)
    assert isinstance(said, str), said
    assert "src/saccade/explorer/page" in said
    assert list(tmp_path.iterdir()) == []


def test_for_machines_without_node_there_is_a_wheel_all_the_same(bare, tmp_path):
    wheel = build("wheel", tmp_path, bare, QUICK, SACCADE_WITHOUT_PAGE="1")
    assert "saccade/__init__.py" in zipfile.ZipFile(wheel).namelist()
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{PAGE}/")]


# ---------------------------------------------------------------------------------------- whether it works


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree; what was compiled before is not compiled again."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel, and else what it depends on."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    # The packages of this environment. What makes this checkout importable there, an editable install, is not: it is
    # brought by another .pth file, and those of a folder that is named in one are not read.
    scheme = {"base": str(folder), "platbase": str(folder)}
    (Path(sysconfig.get_path("purelib", vars=scheme)) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def clean():
    """The variables of a process that is to find only what is installed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
        "HF_HUB_OFFLINE": "1"
    }


def test_the_wheel_has_the_page_and_the_kernels(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{PAGE}/{name}" for name in page_files()} <= names
    assert page_files() >= PARTS
    assert [name for name in names if re.fullmatch(r"saccade/backends/saccade_native\.\w+", name)]
    assert not [name for name in names if name.startswith(("tests", "web")) or name.endswith(".built")]


def test_the_wheel_is_what_is_imported(environment, tmp_path):
    code = "import saccade, saccade.backends.cpu as cpu; print(saccade.__file__, cpu.__file__)"
    said = subprocess.check_output([environment, "-c", code], cwd=tmp_path, env=clean(), text=True)
    assert [Path(file).is_relative_to(environment.parents[1]) for file in said.split()] == [True, True]


def test_explore_from_the_wheel(environment, tmp_path):
    command = [environment.with_name("saccade"), "explore", "--no-open", "He left the roses by the bank."]
    with subprocess.Popen(command, cwd=tmp_path, env=clean(), stdout=subprocess.PIPE, text=True) as process:
        try:
            link = process.stdout.readline()
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)#/heads\n", link)
            assert found, link
            port, token = int(found[1]), found[2]
            first = fetch(port, f"/?token={token}").decode()
            assets = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', first)
            assert len(assets) >= 2
            built = ROOT / "src" / PAGE
            for name in assets:
                assert fetch(port, f"/{name}") == (built / name).read_bytes()
            parcel = fetch(port, "/api/document", token)
            length = int.from_bytes(parcel[:4], "little")
            about = json.loads(parcel[4 : 4 + length])["answer"]
            assert [text["text"] for text in about["texts"]] == [command[-1]]
        finally:
            process.kill()


def fetch(port, path, token=""):
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        with connection.getresponse() as response:
            assert response.status == 200, (path, response.read())
            return response.read()
