"""One build of a tiny log for all tests of the command."""

import live_http
import pytest
import tiny_build
from tiny_build import Built


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo's recipe on the demo's data, both tiny: so that `oneslate demo` there finds its model built."""
    cwd = tmp_path_factory.mktemp("home")
    log = cwd / "runs" / "demo" / "simulator"
    tiny_build.write_log(log)
    (log / "done").touch()
    options = ["--recipe", "demo", "--data", str(log), "--format", "table", "--out", "bundle"]
    done = tiny_build.oneslate("build", *options, *tiny_build.set_options(), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Built(cwd=cwd, bundle=cwd / "bundle", log=log, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture
def free_port() -> int:
    return live_http.free_port()
