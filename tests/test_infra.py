"""What can be checked of the infrastructure without a container engine, a cloud or a cluster.

Not run here: images and the compose file's services (`make containers`), a Terraform plan, anything on Kubernetes.
"""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import hcl2
import kubernetes_validate
import pytest
import yaml

from reben_cloud.bucket import ACTIONS
from tests.commands import check_command
from tests.conftest import REPOSITORY, missing

INFRA = REPOSITORY / "infra"
containers = runpy.run_path(str(INFRA / "containers.py"))
SCRIPTS = [*sorted(INFRA.rglob("*.sh")), REPOSITORY / ".ci" / "run"]
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
KUBERNETES_VERSION = "1.31"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def relative(path):
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_shell_scripts_are_clean(script):
    if shutil.which("shellcheck") is None:
        missing("shellcheck is not installed")

    subprocess.run(["shellcheck", script], check=True)


def test_the_dockerfile_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        missing("hadolint is not installed: `make test` installs it")

    subprocess.run([hadolint, INFRA / "Dockerfile"], check=True)


def test_the_dockerfile_copies_what_the_ignore_file_lets_through():
    text = (INFRA / "Dockerfile").read_text()
    allowed = {
        line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")
    }

    copied = {name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]}

    assert copied == allowed
    assert all((REPOSITORY / name).exists() for name in copied)


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def test_the_compose_file_fits_its_schema():
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", INFRA / "compose.yaml"]

    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True)


def test_the_compose_file_is_closed_to_the_outside_and_pinned(compose):
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens on {port}"
        assert re.search(r":[\w.$-]*[\d}][\w.:$}-]*$", service["image"]), (
            f"{name}: {service['image']} is not pinned"
        )
        for key, value in service.get("environment", {}).items():
            if re.search("SECRET|PASSWORD|KEY", key):
                assert ":?" in value, f"{name}: {key} has a default"
        if service.get("restart"):
            assert "healthcheck" in service, f"{name} runs without a health check"


def substituted(words):
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in words]


def test_the_compose_file_says_commands_that_exist(compose):
    ours = {
        name: substituted(service["command"])
        for name, service in compose["services"].items()
        if "reben-cloud" in service["image"] and service["command"]
    }

    assert set(ours) == {"bucket", "root", "api", "train"}
    for arguments in ours.values():
        check_command(arguments)


def test_what_make_containers_hands_to_podman_is_what_the_compose_file_says(compose):
    environment = {"REBEN_S3_KEY": "key", "REBEN_S3_SECRET": "secret", "REBEN_BUCKET": "mine"}

    options, command = containers["arguments_of"](compose["services"]["train"], environment)

    hardened = ["--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=ALL"]
    hardened.append("--security-opt=no-new-privileges:true")
    assert set(hardened) <= set(options)
    assert {"--volume=runs:/runs", "--shm-size=1gb", "--env=AWS_ENDPOINT_URL=http://s3:8333"} <= set(options)
    assert command[:4] == ["train", "resnet50", "--root", "s3://mine/demo"]
    with pytest.raises(SystemExit, match="REBEN_S3_KEY: set REBEN_S3_KEY"):
        containers["arguments_of"](compose["services"]["train"], {})


def test_make_containers_knows_every_key_of_our_services(compose):
    known = {
        "environment",
        "read_only",
        "tmpfs",
        "security_opt",
        "cap_drop",
        "volumes",
        "shm_size",
        "entrypoint",
    }
    known |= {"image", "build", "command", "healthcheck"}
    # Those that mean nothing to one container after the other, on one network.
    known |= {"depends_on", "ports", "restart", "profiles", "deploy"}

    for name, service in compose["services"].items():
        if service["image"].startswith("reben-cloud"):
            assert set(service) <= known, name


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=relative)
def test_kubernetes_manifests_fit_their_schemas(manifest):
    for document in documents(manifest):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def pods(manifest):
    for document in documents(manifest):
        template = document.get("spec", {}).get("template")
        if template:
            yield document["metadata"]["name"], template["spec"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=relative)
def test_kubernetes_pods_have_no_more_rights_than_they_need(manifest):
    for name, pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["serviceAccountName"] == "reben", name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            for variable in container.get("env", []):
                assert "value" not in variable or "KEY" not in variable["name"], f"{name} holds a secret"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=relative)
def test_kubernetes_manifests_say_commands_that_exist(manifest):
    for _, pod in pods(manifest):
        for container in pod["containers"]:
            words = [*container.get("command", []), *container.get("args", [])]
            words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in words]
            if "reben_cloud.cli" in words:
                check_command(words[words.index("reben_cloud.cli") + 1 :])
            elif "command" not in container and container["image"].startswith("reben-cloud"):
                check_command(words)


def test_kubernetes_names_and_secrets_agree():
    secrets = {
        "build-job": "reben-s3",
        "dask": "reben-s3",
        "serve": "reben-s3-reader",
        "train-job": "reben-s3-reader",
    }
    for manifest in MANIFESTS:
        for _, pod in pods(manifest):
            for container in pod["containers"]:
                for source in container.get("envFrom", []):
                    # Who only reads gets keys that can do no more.
                    wanted = "reben-store" if "configMapRef" in source else secrets[manifest.stem]
                    assert next(iter(source.values()))["name"] == wanted, manifest


def test_the_api_is_probed_where_it_answers_and_has_time_to_stop():
    from reben_cloud.serve.running import _STOP_S

    deployment, _, _, ingress = documents(INFRA / "kubernetes" / "serve.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (api,) = pod["containers"]
    options = dict(arg.split("=") for arg in api["args"] if "=" in arg)

    paths = {api[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"/_mgmt/health", "/_mgmt/ping"}
    assert options["--public-url"] == f"https://{ingress['spec']['tls'][0]['hosts'][0]}"
    assert pod["terminationGracePeriodSeconds"] > _STOP_S + api["lifecycle"]["preStop"]["sleep"]["seconds"]


def schema_of(file):
    if file in WORKFLOWS:
        return "github-workflows"
    return "github-issue-config" if file.stem == "config" else "github-issue-forms"


@pytest.mark.parametrize("file", [*WORKFLOWS, *FORMS], ids=relative)
def test_workflows_and_issue_forms_fit_their_schemas(file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema_of(file)}"]
    done = subprocess.run([*command, file], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_run_what_the_makefile_runs():
    repos = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    command = ["make", "-n", "lint", "types"]
    made = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout

    assert {repo["repo"] for repo in repos} == {"local"}
    for repo in repos:
        for hook in repo["hooks"]:
            assert " ".join(hook["entry"].split()[:2]) in made, hook["id"]


def test_the_guide_names_targets_that_exist():
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text()

    for target in set(re.findall(r"(?:`|^)make ([a-z]+)", guide, re.MULTILINE)):
        command = ["make", "-n", target, "SUITE=x", "PYTHON=python3"]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=relative)
def test_workflows_call_the_makefile_and_nothing_else(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]

    assert commands
    for command in commands:
        program, *arguments = command.split()
        assert program == "make", command
        subprocess.run(["make", "-n", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def test_the_workflow_runs_every_python_that_the_project_promises():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    promised = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: Python :: 3." in c]
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "test.yml").read_text())["jobs"]

    assert jobs["all"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
    assert jobs["floors"]["container"] == f"python:{promised[0]}-bookworm"


@pytest.fixture(scope="module")
def terraform():
    files = sorted((INFRA / "terraform").glob("*.tf"))
    return {path.name: hcl2.loads(path.read_text()) for path in files}


def test_terraform_is_formatted():
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed, and no package registry brings it")

    subprocess.run(["terraform", "fmt", "-check", "-diff", INFRA / "terraform"], check=True)


def plain(value):
    return value.strip('"') if isinstance(value, str) else value


def actions_of(terraform, file, name):
    for block in terraform[file]["data"]:
        for kind, documents in block.items():
            for key, document in documents.items():
                if plain(kind) == "aws_iam_policy_document" and plain(key) == name:
                    return [[plain(action) for action in s["actions"]] for s in document["statement"]]
    raise AssertionError(f"no policy document {name} in {file}")


@pytest.mark.parametrize(
    ("file", "name", "access"),
    [
        ("roles.tf", "reader", "reader"),
        ("roles.tf", "builder", "builder"),
        ("main.tf", "everybody", "public"),
    ],
)
def test_terraform_allows_what_our_own_policies_allow(terraform, file, name, access):
    on_bucket, on_objects = actions_of(terraform, file, name)

    assert set(on_bucket) == set(ACTIONS[access][0])
    assert set(on_objects) == set(ACTIONS[access][1])


def test_terraform_uses_the_variables_it_declares(terraform):
    declared = {plain(name) for block in terraform["variables.tf"]["variable"] for name in block}
    text = "".join(path.read_text() for path in (INFRA / "terraform").glob("*.tf"))

    used = set(re.findall(r"\bvar\.(\w+)", text))

    assert used == declared
