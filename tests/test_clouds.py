"""Google Cloud Storage and Azure: reads of a server on this machine that answers as both do for open buckets."""

import pytest
from obstore.exceptions import GenericError

from reben_cloud.errors import StorageError
from reben_cloud.store import Budget, Store, normalise_url
from reben_cloud.store.address import ways_out
from reben_cloud.store.refusals import meaning
from tests.webserver import serve

DATA = bytes(range(256)) * 40
SHORT = Budget(attempts=2, seconds=2.0, silence_s=1.0, request_s=2.0)


@pytest.fixture
def url(tmp_path):
    (tmp_path / "bucket" / "a folder").mkdir(parents=True)
    (tmp_path / "bucket" / "a folder" / "data.mdb").write_bytes(DATA)
    with serve(tmp_path) as served:
        yield served


@pytest.fixture(params=["gs", "az", "gs-fsspec", "az-fsspec"])
def store(request, url):
    options = {
        "gs": {"google_base_url": url, "google_skip_signature": "true"},
        "gs-fsspec": {"base_url": url, "token": "anon"},
        "az-fsspec": {"azure_storage_endpoint": url, "account_name": "account", "anon": True},
        "az": {
            "azure_storage_endpoint": url,
            "azure_storage_account_name": "account",
            "azure_skip_signature": "true",
        },
    }[request.param]
    return Store(normalise_url(f"{request.param[:2]}://bucket/a folder"), options, budget=SHORT)


def test_objects_are_read_whole_and_by_ranges(store):
    size, version = store.stat("data.mdb")

    assert size == len(DATA)
    assert bytes(store.get("data.mdb")) == DATA
    assert bytes(store.get_range("data.mdb", 1000, 300)) == DATA[1000:1300]
    found = store.get_ranges("data.mdb", [0, 5000], [10, 20], version=version)
    assert list(map(bytes, found)) == [DATA[:10], DATA[5000:5020]]
    with pytest.raises(FileNotFoundError, match="no such object"):
        store.get("lost.mdb")


def test_an_option_of_another_store_is_told(store):
    wrong = Store(store.url, {**store.storage_options, "profil": "x"}, budget=SHORT)

    with pytest.raises((ValueError, StorageError), match="profil"):
        wrong.head("data.mdb")


def test_a_google_token_is_a_file_or_none(url, tmp_path):
    lost = Store("gs://bucket", {"base_url": url, "token": str(tmp_path / "lost.json")}, budget=SHORT)
    with pytest.raises(StorageError, match=r"lost\.json"):
        lost.head("data.mdb")

    for token in ("browser", {"type": "service_account"}):
        with pytest.raises(ValueError, match="token must be 'anon', 'google_default' or the path"):
            Store("gs://bucket", {"token": token}, budget=SHORT).head("data.mdb")


@pytest.mark.parametrize(
    ("url", "way_out"), [("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"), ("az://c/x", "AZURE_STORAGE_")]
)
def test_a_machine_without_an_account_of_its_own_is_told_what_to_set(url, way_out):
    # As obstore says it; asking for a machine's account takes a network of Google's or Azure's.
    error = GenericError(
        "Generic GCS error: Error performing token request: Error performing GET http://metadata/token"
    )

    told = meaning(error, verb="read", name=f"{url}/y", ways_out=ways_out(url))

    assert isinstance(told, StorageError)
    assert f"cannot read {url}/y: no credentials are given" in str(told)
    assert way_out in str(told)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            "<Error><Code>NoSuchBucket</Code><Message></Message><BucketName>b</BucketName></Error>",
            ": NoSuchBucket",
        ),
        (
            "<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>",
            ": SlowDown: Reduce your rate.",
        ),
        ("", ""),
    ],
)
def test_of_a_document_that_tells_of_an_error_what_people_can_read_is_told(document, said):
    text = (
        f'Generic S3 error: status code: 418 I am a teapot: <?xml version="1.0" encoding="UTF-8"?>{document}'
    )

    told = str(meaning(GenericError(text), verb="read", name="s3://b/x", ways_out=ways_out("s3://b/x")))

    assert f"status code: 418 I am a teapot{said}" in told
    assert "<" not in told
