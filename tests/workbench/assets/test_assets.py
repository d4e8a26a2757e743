"""Fetching, verifying, breaking off and going on, with real wheels and the real pip, without a network."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from places import DOCS, ROOT

from fusion_workbench.assets import home as assets
from fusion_workbench.assets import manifest as assets_manifest
from fusion_workbench.assets.home import TABLE, Asset, Wheel
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.checksums import sha256_of

Table = dict[str, Asset]
WHEEL = "thing-1.0-py3-none-any.whl"


def write_wheel(folder: Path, content: bytes = b"real") -> Path:
    """A wheel that pip accepts, holding ``thing/data.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    members = {
        "thing/data.bin": content,
        "thing-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "thing-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return folder / WHEEL


def upper(wheels: Mapping[str, Path], folder: Path) -> None:
    """A conversion."""
    (folder / "upper.bin").write_bytes((folder / "data.bin").read_bytes().upper())


def a_table(wheel: Path, **changes: object) -> Table:
    """One asset, made of that wheel: a file as it is, and a converted one."""
    pinned = Wheel(WHEEL, sha256_of(wheel), wheel.stat().st_size, {"thing/data.bin": "data.bin"})
    thing = Asset("thing", "a thing", (pinned,), bytes=8, convert=upper)
    return {"thing": replace(thing, **changes)}  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty assets folder; pip knows no index, only the wheels in ``tmp_path / "registry"``."""
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "registry"))
    return tmp_path / "assets"


@pytest.fixture
def table(home: Path, tmp_path: Path) -> Table:
    return a_table(write_wheel(tmp_path / "registry"))


@pytest.fixture
def made(home: Path, tmp_path: Path, table: Table) -> Path:
    """The asset, made without pip: its wheel lies where downloads are kept."""
    keep(tmp_path, home)
    return assets.ensure(progress=False, table=table)["thing"]


def keep(tmp_path: Path, home: Path) -> None:
    (home / "wheels").mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "registry" / WHEEL, home / "wheels")


def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


WHOLE = {"data.bin": b"real", "upper.bin": b"REAL"}


# Fetching


def test_fetched_by_pip_once_and_no_process_afterwards(
    home: Path, table: Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (missing,) = assets.status(table=table)
    assert (missing.state, missing.bytes, missing.path) == ("missing", 0, home / "thing")
    assert assets.ensure(table=table) == {"thing": home / "thing"}
    assert content(home / "thing") == WHOLE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fetching thing 1.0")
    assert lines[-1].startswith("thing is ready")
    assert not list((home / "wheels").iterdir()), "a converted wheel is not kept"

    no_processes(monkeypatch)
    assert assets.ensure(table=table) == {"thing": home / "thing"}
    assert [s.state for s in assets.status(thorough=True, table=table)] == ["ready"]
    assert capsys.readouterr().out == ""


def test_another_file_than_the_pinned_one_is_refused(home: Path, tmp_path: Path, table: Table) -> None:
    write_wheel(tmp_path / "registry", b"evil")
    with pytest.raises(WorkbenchError, match=r"thing 1\.0 is not the file that was pinned: its sha256 is"):
        assets.ensure(progress=False, table=table)
    assert [path.name for path in home.rglob("*") if path.is_file()] == [".lock"]


def test_a_torn_wheel_is_fetched_again(home: Path, table: Table) -> None:
    (home / "wheels").mkdir(parents=True)
    (home / "wheels" / WHEEL).write_bytes(b"half")
    assert content(assets.ensure(progress=False, table=table)["thing"]) == WHOLE


def test_no_network(home: Path, tmp_path: Path, table: Table) -> None:
    (tmp_path / "registry" / WHEEL).unlink()
    with pytest.raises(WorkbenchError, match=r"thing 1\.0 could not be fetched .*Check the network") as caught:
        assets.ensure(progress=False, table=table)
    assert "\n" not in str(caught.value)
    assert str(home / "wheels") in str(caught.value), "it says where to put the wheel by hand"


def test_no_pip(home: Path, tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    scripts, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / scripts / f"python{suffix}"))
    with pytest.raises(WorkbenchError, match="ensurepip"):
        assets.ensure(progress=False, table=table)


# Verifying


def tamper(folder: Path, how: str) -> str:
    """Do it; returns the name of the file that the message must hold."""
    file, manifest = folder / "data.bin", folder / "manifest.json"
    if how == "other bytes":
        file.write_bytes(b"fake")
    elif how == "longer":
        file.write_bytes(b"real and more")
    elif how == "gone":
        file.unlink()
    elif how == "one too many":
        file = folder / "more.ttf"
        file.write_bytes(b"")
    elif how == "manifest gone":
        file = manifest
        file.unlink()
    elif how == "manifest torn":
        file = manifest
        file.write_bytes(file.read_bytes()[:100])
    else:
        assert how == "manifest of something else"
        file = manifest
        file.write_text(json.dumps([1, 2]))
    return file.name


HOW = [
    "other bytes",
    "longer",
    "gone",
    "one too many",
    "manifest gone",
    "manifest torn",
    "manifest of something else",
]


@pytest.mark.parametrize("how", HOW)
def test_an_altered_file_is_named_refused_and_repaired(
    made: Path, home: Path, tmp_path: Path, table: Table, how: str
) -> None:
    name = tamper(made, how)
    (found,) = assets.status(table=table)
    assert found.state == "altered"
    assert name in found.what
    with pytest.raises(WorkbenchError, match=rf"{name} .*run `workbench assets --repair`"):
        assets.ensure(progress=False, table=table)
    keep(tmp_path, home)
    assert content(assets.ensure(progress=False, repair=True, table=table)["thing"]) == WHOLE
    assert assets.ensure(progress=False, table=table)


def test_file_and_manifest_altered_alike(made: Path, tmp_path: Path, home: Path, table: Table) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    pinned = {"thing": replace(table["thing"], digest=manifest["digest"])}
    keep(tmp_path, home)
    assets.ensure(progress=False, table=pinned)
    file = made / "data.bin"
    file.write_bytes(b"fake")
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"]["data.bin"] |= {
        "sha256": hashlib.sha256(b"fake").hexdigest(),
        "mtime_ns": file.stat().st_mtime_ns,
    }
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WorkbenchError, match="lists other files"):
        assets.ensure(progress=False, table=pinned)


def test_altered_under_the_same_size_and_time_is_seen_by_a_thorough_look(made: Path, table: Table) -> None:
    file = made / "data.bin"
    before = file.stat()
    file.write_bytes(b"fake")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [s.state for s in assets.status(thorough=True, table=table)] == ["altered"]
    with pytest.raises(WorkbenchError, match=r"data\.bin was altered"):
        assets.ensure(progress=False, thorough=True, table=table)


def test_a_touched_file_is_hashed_once(made: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(assets_manifest, "sha256_of", counting)
    os.utime(made / "data.bin")
    for _ in range(3):
        assets.ensure(progress=False, table=table)
    assert hashed == ["data.bin"]


def test_made_by_another_version_is_made_anew(made: Path, home: Path, tmp_path: Path, table: Table) -> None:
    content_digest = json.loads((made / "manifest.json").read_text())["digest"]
    newer = {"thing": replace(table["thing"], digest=content_digest)}
    assert [s.state for s in assets.status(table=newer)] == ["missing"]
    keep(tmp_path, home)
    assert content(assets.ensure(progress=False, table=newer)["thing"]) == WHOLE
    assert [s.state for s in assets.status(table=newer)] == ["ready"]


@pytest.mark.parametrize("changes", [{"pins": {"upper.bin": "0" * 64}}, {"digest": "0" * 64}])
def test_converted_to_other_bytes_than_pinned(
    home: Path, tmp_path: Path, table: Table, changes: dict[str, object]
) -> None:
    keep(tmp_path, home)
    with pytest.raises(WorkbenchError, match="gave other bytes than are pinned"):
        assets.ensure(progress=False, table=a_table(tmp_path / "registry" / WHEEL, **changes))
    assert not (home / "thing").exists()
    assert not list(home.glob(".tmp-*"))


# What the user can mend


def test_unknown_name() -> None:
    with pytest.raises(WorkbenchError, match=r"no asset 'encodr'\. Did you mean 'encoder'"):
        assets.ensure("encodr")


def test_a_missing_extra_is_said_before_anything_is_fetched(
    home: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_processes(monkeypatch)
    optional = replace(table["thing"], needs=("no_such_module",), extra="lm", default=False)
    with pytest.raises(WorkbenchError, match=r"no_such_module.*pip install 'fusion-workbench\[lm\]'"):
        assets.ensure("thing", table={"thing": optional})
    assert assets.ensure(table={"thing": optional}) == {}, "it is made on explicit request only"


def test_too_little_room(home: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(WorkbenchError, match="has 1 MB free, and making the asset 'thing' takes up to 50 MB"):
        assets.ensure(progress=False, table=table)


def test_the_disk_fills_up(home: Path, tmp_path: Path) -> None:
    def fills_up(wheels: Mapping[str, Path], folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    table = a_table(write_wheel(tmp_path / "registry"), convert=fills_up)
    keep(tmp_path, home)
    with pytest.raises(WorkbenchError, match=r"no room left on its disk.*WORKBENCH_ASSETS"):
        assets.ensure(progress=False, table=table)
    assert not list(home.glob(".tmp-*"))


def test_a_home_that_cannot_be_written(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path / "file" / "assets"))
    with pytest.raises(WorkbenchError, match=r"cannot be used.*set WORKBENCH_ASSETS"):
        assets.ensure(progress=False, table=table)


# Killed, and two at once

SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {here!r}
    from test_assets import a_table, upper
    from fusion_workbench.assets import home as assets

    registry, last, progress = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
    table = a_table(registry)
    home, seen = str(assets.home()), 0

    def watch(event, arguments):  # whatever touches the assets folder
        global seen
        if event.startswith(("open", "os.", "shutil.")) and any(home in str(a) for a in arguments):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    assets.ensure(progress=progress, table=table)
    print(seen)
"""


def script(
    tmp_path: Path, last: int = -1, progress: bool = False, stdout: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """A process that makes the asset, prints how often it touched the folder, and dies at the ``last``."""
    program = textwrap.dedent(SCRIPT).format(here=[str(Path(__file__).parent), str(ROOT / "tests" / "helpers")])
    command = [sys.executable, "-c", program, str(tmp_path / "registry" / WHEEL), str(last), str(progress)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    return subprocess.Popen(command, stdout=stdout, text=True, cwd=ROOT, env=environment)


def test_killed_anywhere_the_next_call_finishes(home: Path, tmp_path: Path, table: Table) -> None:
    keep(tmp_path, home)
    events = int(script(tmp_path).communicate()[0])
    assert events > 20
    for last in range(1, events + 1, max(1, events // 12)):
        shutil.rmtree(home)
        keep(tmp_path, home)
        process = script(tmp_path, last)
        process.communicate()
        assert process.returncode == -9, f"event {last} of {events}"
        if (home / "thing").exists():
            assert content(home / "thing") == WHOLE, f"event {last}: half a folder under its name"
            assert assets_manifest.inspect(home / "thing", table["thing"])[0] == "ready"
        if not (home / "wheels" / WHEEL).exists():
            assert (home / "thing").exists(), f"event {last}: the wheel went before the folder stood"
        assert content(assets.ensure(progress=False, table=table)["thing"]) == WHOLE
        left = sorted(path.name for path in home.rglob("*"))
        assert left == [".lock", "data.bin", "manifest.json", "thing", "upper.bin", "wheels"], f"event {last}"


class Registry(http.server.BaseHTTPRequestHandler):
    """Serves the wheel, and stalls half-way through it until it is told to go on."""

    wheel: Path
    go_on: threading.Event

    def do_GET(self) -> None:
        page = f'<a href="{WHEEL}">{WHEEL}</a>'.encode()
        body = self.wheel.read_bytes() if self.path.endswith(".whl") else page
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if self.path.endswith(".whl") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.endswith(".whl"):
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.go_on.wait(60)
            body = body[half:]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def stalling(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    class Stalling(Registry):
        wheel = tmp_path / "registry" / WHEEL
        go_on = threading.Event()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Stalling
    Stalling.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_killed_while_downloading(
    home: Path, tmp_path: Path, stalling: type[Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "registry", os.urandom(1_000_000))
    table = a_table(tmp_path / "registry" / WHEEL)
    process = script(tmp_path)
    eventually(lambda: any(path.stat().st_size > 100_000 for path in home.rglob("*.whl")))
    process.kill()
    process.communicate()
    assert not (home / "thing").exists()
    stalling.go_on.set()
    folder = assets.ensure(progress=False, table=table)["thing"]
    assert assets_manifest.inspect(folder, table["thing"], thorough=True)[0] == "ready"
    assert not list((home / "wheels").iterdir())


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except FileNotFoundError:  # it moved while we looked
            continue
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_two_processes_make_it_once(home: Path, tmp_path: Path, table: Table) -> None:
    keep(tmp_path, home)
    both = [script(tmp_path, progress=True), script(tmp_path, progress=True)]
    said = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said.count("thing is ready") == 1, said
    assert content(home / "thing") == WHOLE


def test_the_second_process_waits_and_says_so(
    home: Path, tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    keep(tmp_path, home)
    held = threading.Event()

    def hold() -> None:
        with FileLock(home / ".lock"):
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    assert content(assets.ensure(table=table)["thing"]) == WHOLE
    other.join()
    assert "another process is making the assets" in capsys.readouterr().out


# The module and its table


def test_the_import_is_light() -> None:
    heavy = "numpy torch transformers onnx safetensors rich filelock platformdirs subprocess"
    imports = "import sys; import fusion_workbench.assets.home"
    program = f"{imports}; print([m for m in {heavy.split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_bar_on_a_terminal(home: Path, tmp_path: Path, table: Table) -> None:
    import pty

    master, slave = pty.openpty()
    process = script(tmp_path, progress=True, stdout=slave)
    os.close(slave)
    said = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        said += chunk
    os.close(master)
    assert process.wait() == 0
    assert "━" in said.decode(errors="replace")


def test_every_default_asset_is_pinned_to_the_byte() -> None:
    assert assets.NAMES == ("encoder", "photographs", "digits", "typefaces", "crowns", "language-model")
    assert assets.NAMES[:5] == assets.DEFAULT
    for asset in TABLE.values():
        assert all(len(wheel.sha256) == 64 for wheel in asset.wheels)
        assert not asset.default or len(asset.digest) == 64
        taken = [name for wheel in asset.wheels for name in wheel.take.values()]
        assert len(taken) == len(set(taken)), f"{asset.name}: two files of one name"
    wheels = [wheel.filename for asset in TABLE.values() for wheel in asset.wheels]
    assert len(wheels) == len(set(wheels)), "a wheel of two assets would be removed under the second"


def test_the_document_lists_every_wheel() -> None:
    text = (DOCS / "assets.md").read_text(encoding="utf-8")
    for asset in TABLE.values():
        for digest in asset.pins.values():
            assert digest in text
        for wheel in asset.wheels:
            assert f"{wheel.name} {wheel.version}" in text


# What is really there (fetched when this machine does not have it yet)


def test_photographs_digits_and_typefaces_are_what_they_should_be() -> None:
    import numpy as np
    from PIL import Image, ImageFont

    folders = assets.ensure("photographs", "digits", "typefaces", progress=False, thorough=True)
    names = {path.stem for path in folders["photographs"].iterdir() if path.suffix in (".png", ".jpg")}
    natural = {"astronaut", "coffee", "chelsea", "rocket", "china", "flower"}
    assert names == natural | {"brick", "grass", "gravel", "coins"}
    for name in names:
        (path,) = folders["photographs"].glob(f"{name}.*")
        with Image.open(path) as image:
            assert min(image.size) >= 300
    with np.load(folders["digits"] / "digits.npz", allow_pickle=False) as digits:
        assert (digits["X"].shape, digits["X"].dtype) == ((5000, 28, 28), np.uint8)
        assert np.bincount(digits["y"]).tolist() == [500] * 10
        assert digits["X"][:, 0].mean() < 5 < digits["X"][:, 14].mean(), "ink is high, the border empty"
    faces = sorted(folders["typefaces"].glob("*.ttf"))
    families = {ImageFont.truetype(str(path)).getname()[0] for path in faces}
    assert (len(faces), len(families)) == (41, 13)
    for path in faces:
        font = ImageFont.truetype(str(path), 32)
        drawn = {bytes(font.getmask(character)) for character in "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"}
        assert len(drawn) == 32, f"{path.name} draws two characters alike"
