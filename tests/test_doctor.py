"""The doctor finds what is wrong, and leaves no trace."""

import json
import os
import subprocess
import sys

import pytest

from reben_cloud.checks.doctor import diagnose
from reben_cloud.errors import missing_extra
from reben_cloud.store import open_store


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_this_machine_is_fit():
    found = by_subject(diagnose())

    assert found["Python"].level == "ok"
    assert "zarr 3" in found["packages"].detail
    assert not [finding for finding in found.values() if finding.level == "problem"]


def test_a_folder_without_a_root_is_no_problem(tmp_path):
    found = by_subject(diagnose(str(tmp_path)))

    assert found["root"].level == "note"
    assert "reben-cloud build" in found["root"].advice


def test_a_dead_endpoint_is_named():
    found = by_subject(
        diagnose("s3://b/r", {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"})
    )

    assert found["endpoint"].level == "problem"
    assert "127.0.0.1:9" in found["endpoint"].detail
    assert "root" not in found


def test_an_endpoint_that_is_no_url_is_named():
    found = by_subject(diagnose("s3://b/r", {"endpoint_url": "localhost:9000", "key": "k", "secret": "s"}))

    assert found["endpoint"].level == "problem"
    assert "http://host:port" in found["endpoint"].advice


@pytest.mark.s3
def test_a_good_store_passes_every_check(s3_bucket):
    store = open_store(f"{s3_bucket.url}/r", s3_bucket.storage_options)
    store.put("manifest.json", b'{"format": "reben_cloud root"}')

    found = by_subject(diagnose(store.url, s3_bucket.storage_options, try_write=True))

    assert {
        found[name].level for name in ("credentials", "endpoint", "clock", "root", "range reads", "write")
    } == {"ok"}
    assert "create-only" in found["write"].detail
    assert [path for path, _ in store.list()] == ["manifest.json"]


@pytest.mark.s3
def test_refused_credentials_are_a_problem_and_the_secret_is_not_shown(s3_bucket):
    result = subprocess.run(
        [sys.executable, "-m", "reben_cloud.cli", "doctor", f"{s3_bucket.url}/r", "--json"],
        env={**os.environ, **s3_bucket.environment, "AWS_SECRET_ACCESS_KEY": "not-the-secret"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1, result.stderr
    found = {finding["subject"]: finding for finding in json.loads(result.stdout)}
    assert found["root"]["level"] == "problem"
    assert "credentials" in found["root"]["detail"]
    assert found["credentials"]["detail"] == "found by env"
    assert "not-the-secret" not in result.stdout + result.stderr


def test_a_torchvision_that_does_not_fit_is_told_from_a_missing_package():
    assert str(missing_extra("timm", "train")).endswith("pip install 'reben-cloud[train]'")

    found = str(missing_extra("timm", "train", RuntimeError("operator torchvision::nms does not exist")))

    assert found.startswith("timm does not load: operator torchvision::nms does not exist; ")
    assert found.endswith("reinstall both from the same index")
