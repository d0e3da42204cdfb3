"""What is costly is answered by a process apart: the same answers, and nobody else waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import psutil
import pytest

import reben_cloud as rc
from reben_cloud.serve import apart, create_app, create_costly_app
from reben_cloud.serve.apart import Apart
from tests.conftest import PATIENT_S, wait_for
from tests.roots import synthetic_root
from tests.serving import serving, unread_bytes

pytestmark = pytest.mark.slow

ITEMS = "/collections/bigearthnet-v2/items"


def ring(corners):
    angle = np.linspace(0, 2 * np.pi, corners)
    points = np.stack([10 + 9 * np.cos(angle), 52 + 9 * np.sin(angle)], axis=1).tolist()
    return {"type": "Polygon", "coordinates": [[*points[:-1], points[0]]]}


SHAPE = {"intersects": ring(1_000), "limit": 5}
COSTLY_FILTER = {"filter": {"op": "s_intersects", "args": [{"property": "geometry"}, ring(300)]}, "limit": 5}
LARGE_PAGE = {"limit": 200}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart") / "root"
    synthetic_root(folder, 150, num_products=6)
    return rc.open(folder)


@pytest.fixture(scope="module")
def process(dataset):
    started = Apart(dataset, create_costly_app)
    started.start()
    yield started
    started.close()


@pytest.fixture(scope="module")
def url(dataset, process):
    with serving(dataset, apart=process, public_url="https://example.org/stac") as url:
        wait_for(lambda: httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S).status_code == 200)
        yield url


@pytest.fixture(scope="module")
def alone(dataset):
    """A server that answers all by itself."""
    with serving(dataset, public_url="https://example.org/stac") as url:
        yield url


@pytest.fixture
def stopped(process):
    """Calls stop the process, so that it answers nothing for now."""
    yield lambda: os.kill(process.pid, signal.SIGSTOP)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)


def numbers(url):
    lines = httpx.get(f"{url}/_mgmt/metrics", timeout=PATIENT_S).text.splitlines()
    return {
        name: float(number) for name, _, number in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def relayed(monkeypatch):
    """Grows with each request that goes to the process."""
    seen, whole = [], Apart.answer

    async def noted(self, scope, body, receive, send):
        seen.append(scope["path"])
        return await whole(self, scope, body, receive, send)

    monkeypatch.setattr(Apart, "answer", noted)
    return seen


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("POST", "/search", SHAPE, id="a large body"),
        pytest.param("POST", "/search", LARGE_PAGE, id="a large page"),
        pytest.param("GET", f"{ITEMS}?limit=120", None, id="a large page of Items"),
        pytest.param("HEAD", f"{ITEMS}?limit=120", None, id="its head"),
        pytest.param("POST", "/search", {"intersects": {**ring(1_000), "type": "Line"}}, id="a large error"),
        pytest.param("POST", "/search", {"ids": ["x" * 30_000], "limit": -1}, id="a large wrong body"),
        pytest.param("GET", f"/search?limit=500&filter={'x' * 100}(", None, id="a wrong filter of a large page"),
        pytest.param("GET", f"{ITEMS}/none/nearest?column=x", None, id="nearest to nothing"),
        pytest.param("POST", "/explore/found.ids", bytes([255] * 18 + [63]), id="a file of ids"),
    ],
)  # fmt: skip
def test_the_process_answers_as_the_server_would(url, alone, monkeypatch, method, path, body):
    seen = relayed(monkeypatch)
    what = {"content": body} if isinstance(body, bytes) else {"json": body}
    ask = {"headers": {"Origin": "https://example.com"}, "timeout": 60, **what}

    here, there = httpx.request(method, f"{alone}{path}", **ask), httpx.request(method, f"{url}{path}", **ask)

    assert len(seen) == 1
    assert (there.status_code, there.content) == (here.status_code, here.content)
    for name in ("content-type", "content-encoding", "access-control-allow-origin"):
        assert there.headers.get(name) == here.headers.get(name)


def test_what_is_usual_is_answered_here(url, monkeypatch):
    seen = relayed(monkeypatch)
    for body in (
        {"limit": 100},
        {"bbox": [-9, 30, 30, 70]},
        {"intersects": ring(20)},
        {"filter": "split = 'train'"},
    ):
        assert httpx.post(f"{url}/search", json=body, timeout=PATIENT_S).status_code == 200
    assert httpx.get(f"{url}/", timeout=PATIENT_S).status_code == 200

    assert not seen


def test_a_search_that_is_expected_to_take_long_goes_there(url, alone, monkeypatch):
    monkeypatch.setattr("reben_cloud.serve.results.SHORT_S", -1.0)  # in the server alone
    seen = relayed(monkeypatch)

    there = httpx.post(f"{url}/search", json=COSTLY_FILTER, timeout=PATIENT_S)

    assert len(seen) == 1
    monkeypatch.undo()
    assert there.json() == httpx.post(f"{alone}/search", json=COSTLY_FILTER, timeout=PATIENT_S).json()
    assert there.json()["numberMatched"] > 0


def test_a_search_that_turns_out_to_be_long_goes_there(url, monkeypatch):
    monkeypatch.setattr("reben_cloud.serve.lanes._SHORT_CPU_S", -1.0)
    seen = relayed(monkeypatch)

    there = httpx.post(f"{url}/search", json={"bbox": [-8.5, 30, 30, 70], **COSTLY_FILTER}, timeout=PATIENT_S)

    assert there.status_code == 200
    assert len(seen) == 1


def test_usual_requests_do_not_wait_while_the_process_does_nothing(url, process, stopped):
    stopped()
    with ThreadPoolExecutor(1) as pool:
        costly = pool.submit(httpx.post, f"{url}/search", json={**SHAPE, "limit": 7}, timeout=PATIENT_S)
        for _ in range(20):
            assert httpx.post(f"{url}/search", json={"limit": 3}, timeout=PATIENT_S / 2).status_code == 200
        assert not costly.done()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=httpx.Timeout(PATIENT_S, read=0.5))
        os.kill(process.pid, signal.SIGCONT)
        assert costly.result().json()["numberReturned"] == 7


def test_more_requests_than_the_process_may_have_are_refused_with_a_way_out(
    url, process, stopped, monkeypatch
):
    monkeypatch.setattr(apart, "MAX_APART", 3)
    seen = relayed(monkeypatch)
    stopped()
    with ThreadPoolExecutor(3) as pool:
        inside = [
            pool.submit(httpx.post, f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S) for _ in range(3)
        ]
        wait_for(lambda: len(seen) == 3)
        answer = httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S)
        os.kill(process.pid, signal.SIGCONT)
        assert [one.result().status_code for one in inside] == [200] * 3

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"
    assert "ask for less" in answer.json()["description"]
    assert httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S).status_code == 200


def test_a_process_that_is_killed_is_started_again(url, process, stopped):
    stopped()
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(httpx.post, f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S)
        wait_for(lambda: unread_bytes(process._port))
        os.kill(process.pid, signal.SIGKILL)
        answer = inside.result()

    assert answer.status_code == 503
    assert "just starting" in answer.json()["description"]
    assert httpx.post(f"{url}/search", json={"limit": 3}, timeout=PATIENT_S).status_code == 200
    assert httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S).json()["numberReturned"] == 150


def test_searches_threads_and_memory_are_counted_in_both(url, alone, process):
    httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S)

    # `alone` is in this process too. What only grows is read last of both together.
    one, child = numbers(alone), psutil.Process(process.pid)
    used, both = child.cpu_times(), numbers(url)

    assert both.keys() >= {"reben_threads", "reben_resident_memory_bytes", "reben_searches_given_up_total"}
    assert both["reben_resident_memory_bytes"] > one["reben_resident_memory_bytes"] + 50e6
    assert both["reben_threads"] > one["reben_threads"]
    both_s, one_s = (found["reben_processor_seconds_total"] for found in (both, one))
    assert both_s > one_s + 0.9 * (used.user + used.system) > one_s


def test_numbers_of_the_server_do_not_wait_for_the_process(url, process, stopped):
    stopped()

    assert numbers(url)["reben_threads"] > 0


def test_requests_that_were_begun_are_finished_although_both_are_told_to_end(dataset):
    command = [sys.executable, "-m", "reben_cloud.cli", "serve", dataset.url, "--port", "0"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        assert server.stderr is not None
        url = server.stderr.readline().split()[0]
        httpx.post(f"{url}search", json=LARGE_PAGE, timeout=PATIENT_S)
        (child,) = children(server.pid)
        os.kill(child, signal.SIGSTOP)
        asked = pool.submit(httpx.post, f"{url}search", json=LARGE_PAGE, timeout=PATIENT_S)
        (port,) = {
            one.laddr.port for one in psutil.Process(child).net_connections() if one.status == "LISTEN"
        }
        wait_for(lambda: unread_bytes(port))

        os.kill(child, signal.SIGTERM)  # as systemd does
        os.kill(server.pid, signal.SIGTERM)
        os.kill(child, signal.SIGCONT)

        assert asked.result().json()["numberReturned"] == 150
    wait_for(lambda: not psutil.pid_exists(child))


def test_the_folder_that_the_server_was_started_in_is_none_of_modules(dataset, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "secrets.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(here)

    assert first_answer(dataset).json()["numberReturned"] == 150


def test_what_is_printed_when_every_python_starts_is_no_port(dataset, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print(80, flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    assert first_answer(dataset).json()["numberReturned"] == 150


def first_answer(dataset):
    """What a process that has just been started answers to a large page."""
    started = Apart(dataset, create_costly_app)
    try:
        with serving(dataset, apart=started) as url:
            return httpx.post(f"{url}/search", json=LARGE_PAGE, timeout=PATIENT_S)
    finally:
        started.close()


def test_the_process_ends_with_the_server_even_if_that_is_killed(dataset):
    command = [sys.executable, "-m", "reben_cloud.cli", "serve", dataset.url, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = server.stderr.readline().split()[0]
        assert httpx.post(f"{url}search", json=LARGE_PAGE, timeout=PATIENT_S).json()["numberReturned"] == 150
        (child,) = children(server.pid)
        os.kill(server.pid, signal.SIGKILL)

        wait_for(lambda: not psutil.pid_exists(child))


def test_ctrl_c_ends_both_without_a_word_even_while_the_process_starts(dataset):
    command = [sys.executable, "-m", "reben_cloud.cli", "serve", dataset.url, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stderr is not None
        server.stderr.readline()
        (child,) = children(server.pid)  # is at its imports

        os.killpg(server.pid, signal.SIGINT)

        assert "Traceback" not in server.stderr.read()
    wait_for(lambda: not psutil.pid_exists(child))


def test_a_script_may_serve_without_a_guard_for_other_processes(dataset, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport reben_cloud as rc\nfrom reben_cloud.serve import serve\n"
        "serve(rc.open(sys.argv[1]), port=0, ready=lambda url: print(url, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, script, dataset.url], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        found = httpx.post(f"{url}search", json=LARGE_PAGE, timeout=PATIENT_S)
        server.terminate()

    assert found.json()["numberReturned"] == 150


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(one) for one in file.read().split()]


def test_an_application_for_the_process_has_nothing_that_the_server_does(dataset):
    names = [
        [middleware.cls.__name__ for middleware in app.user_middleware]
        for app in (create_app(dataset), create_costly_app(dataset))
    ]

    assert set(names[0]) - set(names[1]) == {"Place", "Watch", "CORSMiddleware", "BodyLimit"}
