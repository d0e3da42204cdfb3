"""Writing to a store that is cut, stalls or garbles, through a proxy before a real server: all of it or nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from reben_cloud.errors import StorageError
from reben_cloud.store import Budget, Store
from tests.conftest import wait_for

pytestmark = [pytest.mark.s3, pytest.mark.slow]

SHORT = Budget(attempts=3, seconds=3, silence_s=1.5, request_s=2.5, write_bytes_per_s=8e6)
PATIENT = Budget(attempts=3, seconds=60, silence_s=4, request_s=30, write_bytes_per_s=8e6)
"""For what comes through in the end, which a busy machine must not take for another stall."""
FAULTS = ["503", "reset-before", "cut-upload", "stall-upload", "corrupt-upload", "lose-answer", "delay"]
SIZES = {"small": 3000, "large": 9_000_000, "file": 23_000_000}
"""Of a small object and a large one, each in one request, and of a file that goes in parts of 5 MB."""

STALL_S = 1000.0


def data_of(size, seed=0):
    return np.random.default_rng([seed, SIZES[size]]).bytes(SIZES[size])


def put(store, size, tmp_path, *, seed=0):
    data = data_of(size, seed)
    if size != "file":
        store.put("a/x", data)
    else:
        (tmp_path / "x").write_bytes(data)
        store.put_file("a/x", tmp_path / "x")


@pytest.fixture
def direct(s3_bucket):
    return Store(f"{s3_bucket.url}/root", s3_bucket.storage_options)


@pytest.fixture
def behind(s3_bucket, fault_proxy):
    options = s3_bucket.through(fault_proxy.endpoint).storage_options
    return Store(f"{s3_bucket.url}/root", options, budget=SHORT)


@pytest.fixture
def patient(s3_bucket, fault_proxy):
    options = s3_bucket.through(fault_proxy.endpoint).storage_options
    return Store(f"{s3_bucket.url}/root", options, budget=PATIENT)


def unfinished(bucket):
    """Uploads in parts that were begun and are paid for, although nobody sees them."""
    return bucket.server.client().list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_got_over(direct, patient, s3_bucket, fault_proxy, tmp_path, fault, size):
    fault_proxy.add("PUT", fault, seconds=STALL_S)

    put(patient, size, tmp_path)

    assert fault_proxy.num_faults() == 1
    assert bytes(direct.get("a/x")) == data_of(size)
    assert list(direct.list()) == [("a/x", SIZES[size])]
    wait_for(lambda: unfinished(s3_bucket) == [])


def test_of_a_file_only_the_part_that_failed_is_sent_again(direct, patient, fault_proxy, tmp_path):
    """Each of five fails once: sent again as a whole, the file would not come through in three attempts."""
    for part in range(1, 6):
        fault_proxy.add(f"partNumber={part}&", "503")

    put(patient, "file", tmp_path)

    assert bytes(direct.get("a/x")) == data_of("file")
    assert fault_proxy.num_faults() == 5
    assert fault_proxy.num_requests("PUT") == 10
    assert fault_proxy.num_requests("POST") == 2


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_told_in_time_and_nothing_half_written_is_there(
    direct, behind, s3_bucket, fault_proxy, tmp_path, fault, size, before
):
    if before:
        put(direct, "small", tmp_path, seed=1)
    fault_proxy.add("PUT", fault, times=10**6, seconds=STALL_S)
    start = time.monotonic()

    with pytest.raises(StorageError) as caught:
        put(behind, size, tmp_path)

    assert time.monotonic() - start < PATIENT.seconds
    assert f"cannot write {s3_bucket.url}/root/a/x: " in str(caught.value)
    assert "given up after " in str(caught.value)
    fault_proxy.rules.clear()
    # What was lost is the answer: then the object is there, as a whole.
    wanted = data_of("small", 1) if before else None
    written = data_of(size) if fault == "lose-answer" and size != "file" else wanted
    found = bytes(direct.get("a/x")) if direct.exists("a/x") else None
    assert found in (wanted, written)
    wait_for(lambda: unfinished(s3_bucket) == [])


@pytest.mark.parametrize("verb", ["POST", "complete"])
def test_parts_that_are_not_put_together_are_told(direct, behind, s3_bucket, fault_proxy, tmp_path, verb):
    """The first and the last request of an upload in parts."""
    fault_proxy.add("uploads" if verb == "POST" else "POST /", "503", times=10**6)

    with pytest.raises(StorageError, match=r"cannot write .*given up after"):
        put(behind, "file", tmp_path)

    assert not direct.exists("a/x")
    fault_proxy.rules.clear()
    wait_for(lambda: unfinished(s3_bucket) == [])


def test_what_was_made_before_its_answer_was_lost_is_found_to_exist(behind, fault_proxy):
    """Callers compare what is there with what they wrote."""
    fault_proxy.add("PUT", "lose-answer")

    with pytest.raises(FileExistsError):
        behind.put("a/x", b"ours", create=True)

    assert bytes(behind.get("a/x")) == b"ours"


def test_a_large_object_on_a_slow_way_is_not_taken_for_stalled(s3_bucket, fault_proxy, direct):
    """The middle waits for longer than a small object is granted."""
    options = s3_bucket.through(fault_proxy.endpoint).storage_options
    budget = replace(SHORT, write_bytes_per_s=1e6)
    store = Store(f"{s3_bucket.url}/root", options, budget=budget)
    fault_proxy.add("PUT", "stall-upload", seconds=budget.request_s + 1)

    store.put("a/x", data_of("large"))

    assert fault_proxy.num_requests("PUT") == 1
    assert bytes(direct.get("a/x")) == data_of("large")
