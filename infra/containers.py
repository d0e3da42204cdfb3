"""Build the image with Debian's buildah and run it with Debian's podman, as the compose file says. Needs root.

    python infra/containers.py [FOLDER]        or: make containers

Made for machines without Docker and without a registry of images. What stands in for what:

- for the official Python image, a base that mmdebstrap makes from Debian's packages, under the official one's name;
- for the S3 server of the compose file, Ceph's gateway (``s3/ceph-rgw.sh``), at the same address;
- for Docker's networks, one network of this run alone, in which all services are on the loopback interface.

Everything is kept in FOLDER (default ``.cache/containers``, about 6 GB), which may be deleted. pip asks the index that
it asks on this machine; ``TORCH_INDEX`` is another one for torch. The target ``cuda`` is not built.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
INFRA = REPOSITORY / "infra"
IMAGE = "localhost/reben-cloud:cpu"
PACKAGES = ("python3", "python3-pip", "python3-venv", "python-is-python3", "ca-certificates")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PIP_KEYS = ("index-url", "extra-index-url", "find-links", "proxy", "trusted-host", "default-timeout")
S3_PORT = 8333
INSIDE = "--inside"
CAP_SYS_RESOURCE = 24

Service = Mapping[str, Any]
"""A service as the compose file has it."""

# Without the capability nobody may raise a limit, and podman asks for one.
RUNTIME = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path

for option, file in (("--bundle", "config.json"), ("--process", "")):  # to start a container, and a command in one
    if option in sys.argv:
        config = Path(sys.argv[sys.argv.index(option) + 1]) / file
        document = json.loads(config.read_text())
        document.get("process", document).pop("rlimits", None)
        config.write_text(json.dumps(document))
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


def substituted(text: str, environment: Mapping[str, str]) -> str:
    """A value of the compose file with its ``${NAME:-default}`` and ``${NAME:?message}`` filled in."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if environment.get(name):
            return environment[name]
        if kind == ":-":
            return rest
        raise SystemExit(f"compose.yaml: {name}: {rest or 'is not set'}")

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def arguments_of(service: Service, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What ``podman run`` takes for a service: options before the image, and the command after it."""
    options = [
        f"--env={key}={substituted(value, environment)}" for key, value in service["environment"].items()
    ]
    options += ["--read-only", "--read-only-tmpfs=false"] if service.get("read_only") else []
    options += [f"--tmpfs={path}" for path in service.get("tmpfs", [])]
    options += [f"--security-opt={option}" for option in service.get("security_opt", [])]
    options += [f"--cap-drop={capability}" for capability in service.get("cap_drop", [])]
    options += [f"--volume={volume}" for volume in service.get("volumes", [])]
    options += [f"--shm-size={size}" for size in [service.get("shm_size")] if size]
    options += [f"--entrypoint={json.dumps(entry)}" for entry in [service.get("entrypoint")] if entry]
    return options, [substituted(word, environment) for word in service["command"]]


class Engine:
    """podman and buildah with images, containers and volumes in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = [f"--root={folder / 'store'}", f"--runroot={folder / 'run'}"]
        self._environment = {**os.environ, "TMPDIR": str(folder)}

    def podman(self, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
        settings = [f"--tmpdir={self.folder / 'tmp'}", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        return self._call(["podman", *self._place, *settings, f"--runtime={self._runtime()}", *words], **how)

    def buildah(self, *words: str) -> None:
        self._call(["buildah", *self._place, *words])

    def run(self, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return self.podman("run", "--network=host", *words, **how)

    def has_image(self, name: str) -> bool:
        return self.podman("image", "exists", name, check=False).returncode == 0

    def remove_containers(self) -> None:
        self.podman("rm", "--all", "--force", "--time=5", capture_output=True)

    def _runtime(self) -> str:
        capabilities = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if capabilities is None or int(capabilities[1], 16) >> CAP_SYS_RESOURCE & 1:
            return "runc"
        wrapper = self.folder / "runc-without-limits"
        wrapper.write_text(RUNTIME)
        wrapper.chmod(0o755)
        return str(wrapper)

    def _call(
        self, command: Sequence[str], *, check: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, check=check, text=True, env=self._environment, **how)


def make_base(engine: Engine) -> None:
    """The image that the Dockerfile begins with, from Debian's packages."""
    name, suite = re.findall(
        r"^FROM (python:[\d.]+-slim-(\w+))", (INFRA / "Dockerfile").read_text(), re.MULTILINE
    )[0]
    image = f"docker.io/library/{name}"
    if engine.has_image(image):
        return
    archive = engine.folder / "base.tar"
    if not archive.exists():
        # pip may install into this system, as it may into that of the official image.
        hook = 'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED'
        options = ["--variant=minbase", f"--include={','.join(PACKAGES)}", f"--customize-hook={hook}"]
        subprocess.run(["mmdebstrap", *options, suite, archive.with_suffix(".part.tar")], check=True)
        archive.with_suffix(".part.tar").rename(archive)
    engine.podman("import", str(archive), image)


def pip_settings(folder: Path) -> list[str]:
    """Options of ``buildah bud`` with which pip in the build has the settings of pip here; nothing of it stays."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    found = re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE)
    settings = {key: value for key, value in found if key in PIP_KEYS and not value.startswith("file:")}
    config = RawConfigParser()
    config["global"] = settings
    with (folder / "pip.conf").open("w") as file:
        config.write(file)
    mounts = {str(folder / "pip.conf"): "/etc/pip.conf", CERTIFICATES: CERTIFICATES}
    mounts |= {path: path for path in settings.get("find-links", "").split() if Path(path).is_dir()}
    return [f"--volume={here}:{there}:ro" for here, there in mounts.items()]


def build(engine: Engine) -> None:
    """The target ``cpu`` of the Dockerfile as it stands."""
    arguments = [f"--build-arg=TORCH_INDEX={index}" for index in [os.environ.get("TORCH_INDEX")] if index]
    where = [f"--file={INFRA / 'Dockerfile'}", f"--ignorefile={REPOSITORY / '.dockerignore'}", "--target=cpu"]
    how = ["--isolation=chroot", "--network=host", "--format=docker", *pip_settings(engine.folder)]
    engine.buildah("bud", *where, *how, *arguments, f"--tag={IMAGE}", str(REPOSITORY))
    size = engine.podman("image", "inspect", "--format={{.Size}}", IMAGE, capture_output=True).stdout
    print(f"the image takes {int(size) / 1e9:.2f} GB")


def say(what: str) -> None:
    print(f"\n== {what}", flush=True)


def check_plain(engine: Engine) -> None:
    """What needs no store, in a container as ``docker run`` makes it."""
    say("reben-cloud --version")
    engine.run("--rm", IMAGE, "--version")
    say("reben-cloud demo, as the user of the image")
    engine.run("--rm", IMAGE, "demo")
    user = engine.run("--rm", "--entrypoint=id", IMAGE, "-u", capture_output=True).stdout.strip()
    assert user == "10001", f"the image runs as user {user}"


class Services:
    """The compose file's services on our image, one after the other."""

    def __init__(self, engine: Engine, environment: Mapping[str, str]) -> None:
        self._engine, self._environment = engine, environment
        every = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
        self._services: dict[str, Service] = {
            k: v for k, v in every.items() if v["image"].startswith("reben-cloud")
        }
        self._left = set(self._services)
        self._hosts = [f"--add-host={name}:127.0.0.1" for name in every]

    def finish(self, name: str, *more: str, expected: int = 0) -> None:
        """Run a service that ends, with `more` words after its command."""
        options, command = self._start(name)
        done = self._engine.run("--rm", *options, IMAGE, *command, *more, check=False)
        assert done.returncode == expected, f"{name} ended with {done.returncode}, not {expected}"

    def keep(self, name: str) -> None:
        """Start a service that stays, and wait until its health check passes."""
        options, command = self._start(name)
        self._engine.run("--detach", f"--name={name}", *options, IMAGE, *command, stdout=subprocess.DEVNULL)
        kind, *check = self._services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        deadline = time.monotonic() + 120
        while self._engine.podman("exec", name, *check, check=False, capture_output=True).returncode:
            if time.monotonic() > deadline:
                self._engine.podman("logs", name)
                raise SystemExit(f"{name} is not healthy after 120 s")
            time.sleep(0.5)
        print(f"{name} is healthy")

    def stop(self, name: str) -> None:
        """End a service as an engine does: SIGTERM, and time to finish."""
        self._engine.podman("logs", name)
        self._engine.podman("stop", "--time=40", name, stdout=subprocess.DEVNULL)
        code = self._engine.podman(
            "inspect", "--format={{.State.ExitCode}}", name, capture_output=True
        ).stdout
        assert int(code) == 0, f"{name} ended with {code.strip()}"

    def all_ran(self) -> None:
        assert not self._left, f"not run: {sorted(self._left)}"

    def _start(self, name: str) -> tuple[list[str], list[str]]:
        say(f"service {name}")
        self._left.discard(name)
        options, command = arguments_of(self._services[name], self._environment)
        return [*self._hosts, *options], command


def check_services(engine: Engine) -> None:
    """Every service of the compose file with its own options, on a real S3 server."""
    environment = {
        "REBEN_S3_KEY": "reben",
        "REBEN_S3_SECRET": "a-secret-of-this-run",
        "REBEN_SOURCE": "synthetic:200",
    }
    store = engine.folder / "s3"
    shutil.rmtree(store, ignore_errors=True)
    keys = {"S3_KEY": environment["REBEN_S3_KEY"], "S3_SECRET": environment["REBEN_S3_SECRET"]}
    script = INFRA / "s3" / "ceph-rgw.sh"
    owner = {"STORE": "memstore", "OWNER": str(os.getpid())}
    subprocess.run([script, "start", store, str(S3_PORT)], check=True, env={**os.environ, **keys, **owner})
    engine.podman("volume", "rm", "--all", "--force", capture_output=True)
    services = Services(engine, environment)
    try:
        services.finish("bucket")
        services.finish("root")
        services.keep("api")
        with urllib.request.urlopen("http://127.0.0.1:8080/collections", timeout=30) as answer:
            assert json.load(answer)["collections"], "the API has no collection"
        services.stop("api")
        services.keep("dask-scheduler")
        services.keep("dask-worker")
        services.stop("dask-worker")
        services.stop("dask-scheduler")
        # A try that is refused leaves nothing that refuses the next one.
        services.finish("train", "--set", "batch_size=100000", expected=1)
        services.finish("train", "--set", "batch_size=16")
        services.all_ran()
    finally:
        engine.remove_containers()
        subprocess.run([script, "kill", store], check=True)


def main() -> None:
    words = [word for word in sys.argv[1:] if word != INSIDE]
    engine = Engine(Path(words[0] if words else REPOSITORY / ".cache" / "containers").resolve())
    if INSIDE in sys.argv:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        check_plain(engine)
        check_services(engine)
        print("\nthe image and every service of the compose file ran")
        return
    lacking = [
        name for name in ("podman", "buildah", "runc", "mmdebstrap", "radosgw") if not shutil.which(name)
    ]
    if os.geteuid() != 0 or lacking:
        install = (
            f"apt-get install --no-install-recommends {' '.join(lacking)}" if lacking else "run it as root"
        )
        raise SystemExit(
            f"containers need root, and Debian's podman, buildah, runc, mmdebstrap and Ceph: {install}"
        )
    engine.folder.mkdir(parents=True, exist_ok=True)
    make_base(engine)
    build(engine)
    # A network of its own: no port is taken, and nothing that listens can be reached from outside.
    inside = [sys.executable, __file__, INSIDE, str(engine.folder)]
    raise SystemExit(subprocess.run(["unshare", "--net", *inside], check=False).returncode)


if __name__ == "__main__":
    main()
