"""What runs the cluster for real, checked as far as it can be without the platforms: schemas, linters, a dry run."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from qttdm.deploy.cli.main import app

ROOT = Path(__file__).parents[2]
PLATFORMS = ROOT / "deploy" / "platforms"
DOCKERFILE = PLATFORMS / "docker" / "Dockerfile"
RAY_CLUSTER = PLATFORMS / "ray" / "cluster.yaml"
RAY_JOB = PLATFORMS / "kubernetes" / "rayjob.yaml"
RUNS_PVC = PLATFORMS / "kubernetes" / "runs-pvc.yaml"
SLURM = PLATFORMS / "slurm" / "train.sbatch"
GUIDE = ROOT / "docs" / "cluster.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOLS = Path(sys.executable).parent  # where pip puts shellcheck and hadolint


def load(path):
    return yaml.safe_load(path.read_text())


def lint(*command, text=None):
    """What a linter has to say."""
    return subprocess.run([TOOLS / command[0], *command[1:]], input=text, capture_output=True, text=True).stdout


# --- all of them together


def commands():
    """Every `qttdm` command line that these files and their guide tell a person to type, or run themselves."""
    yield load(RAY_JOB)["spec"]["entrypoint"]
    header = re.sub("^# *", "", SLURM.read_text(), flags=re.MULTILINE)
    blocks = re.findall(r"^```shell\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for line in "\n".join([header, *blocks]).replace("\\\n", " ").splitlines():
        if line.startswith("sbatch "):
            yield "qttdm cluster " + line.partition("train.sbatch ")[2].partition("#")[0]
        elif match := re.search(r"\bqttdm ((?:train|cluster \w)[^'\"#&|$]*)", line):
            yield "qttdm " + match[1]


def test_there_are_commands_to_check():
    assert len(list(commands())) > 6


@pytest.mark.parametrize("line", commands())
def test_commands_are_ones_that_the_command_line_takes(line):
    program, *words = shlex.split(line)
    assert program == "qttdm"
    app.parse_args(words, print_error=False, exit_on_error=False)


def test_the_same_torch_and_ray_everywhere():
    files = [ROOT / "Makefile", DOCKERFILE, RAY_CLUSTER]
    assert len({tuple(set(re.findall(r"torch==([0-9.]+)", path.read_text()))) for path in files}) == 1
    pinned = next(d for d in PROJECT["project"]["optional-dependencies"]["cluster"] if d.startswith("ray"))
    assert pinned.endswith("==" + load(RAY_JOB)["spec"]["rayClusterSpec"]["rayVersion"])


def test_ray_never_starts_without_a_token():
    cluster = load(RAY_CLUSTER)
    starts = [c for key in ("head", "worker") for c in cluster[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all(start.startswith("RAY_AUTH_MODE=token ") for start in starts)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert load(RAY_JOB)["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in DOCKERFILE.read_text()
    assert "RAY_AUTH_MODE=token" in SLURM.read_text()


# --- Docker


def test_dockerfile_passes_hadolint():
    assert lint("hadolint", "--no-color", DOCKERFILE) == ""


def test_the_image_has_the_dependencies_of_every_extra_but_dev(tmp_path):
    program = re.search(r'python -c "(.*?)" ', DOCKERFILE.read_text().replace("\\\n", " "))[1]
    program = program.replace("/src/", f"{ROOT}/")
    said = subprocess.run(["sh", "-c", f'{sys.executable} -c "{program}"'], capture_output=True, text=True, check=True)
    names = {re.split(r"[=<>\[]", line)[0] for line in said.stdout.splitlines()}
    assert {"torch", "ray", "metaworld", "dm_control", "aiohttp", "prometheus-client"} <= names
    assert not {"qttdm", "pytest"} & names


def test_dockerfile_copies_files_that_exist():
    sources = re.findall(r"^COPY (\S+) ", DOCKERFILE.read_text(), re.MULTILINE)
    assert sources == ["pyproject.toml", "."]  # the dependencies' layer first, so that it outlives an edit of the code
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_is_given_the_package_and_nothing_else():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")]
    assert patterns[0] == "*"
    packages = {"qttdm", *(path.name for path in (ROOT / "qttdm").iterdir() if path.is_symlink())}
    kept = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    assert kept == packages | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_image_runs_as_the_user_that_kubernetes_expects():
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)[-1]
    for group in groups():
        context = group["template"]["spec"]["securityContext"]
        assert user == (str(context["runAsUser"]), str(context["runAsGroup"]))


# --- `ray up`


@pytest.mark.parametrize("workers", [[], ["10.0.0.2"], ["10.0.0.2", "10.0.0.3"]], ids=len)
def test_ray_accepts_the_cluster_file(workers):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(RAY_CLUSTER)
    config["provider"]["worker_ips"] = workers
    config = prepare_config(config)
    validate_config(config)
    assert config["max_workers"] == len(workers)


def test_ray_refuses_a_cluster_file_with_a_field_of_another_name():
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config(load(RAY_CLUSTER) | {"setup_comands": []}))


def test_the_cluster_files_commands_pass_shellcheck():
    config = load(RAY_CLUSTER)
    names = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    script = "\n".join(["#!/usr/bin/env bash", *(command for name in names for command in config[name])])
    # RAY_HEAD_IP is Ray's to set; quoting it is not ours to want, an address has no spaces.
    assert lint("shellcheck", "--exclude=SC2154,SC2086", "-", text=script) == ""


# --- Kubernetes


def groups():
    cluster = load(RAY_JOB)["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check_rayjob(job):
    jsonschema.validate(job, json.loads((Path(__file__).parent / "rayjob.schema.json").read_text()))


def test_kuberay_knows_every_field():
    check_rayjob(load(RAY_JOB))


@pytest.mark.parametrize("path", ["spec", "spec.rayClusterSpec", "spec.rayClusterSpec.headGroupSpec"])
def test_a_field_that_kuberay_does_not_know_is_refused(path):
    job = load(RAY_JOB)
    place = job
    for key in path.split("."):
        place = place[key]
    place["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check_rayjob(job)


@pytest.mark.parametrize("index", range(3), ids=["head", "gpu", "cpu"])
def test_pods_are_as_kubernetes_wants_them(index):
    group = groups()[index]
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": group["template"]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_volume_is_as_kubernetes_wants_it_and_every_pod_has_it():
    claim = load(RUNS_PVC)
    kubernetes_validate.validate(claim, kubernetes_validate.latest_version(), strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups():
        (volume,) = group["template"]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = group["template"]["spec"]["containers"]
        (mount,) = container["volumeMounts"]
        # The image's working directory: `qttdm cluster` writes to runs/ there.
        assert mount == {"name": volume["name"], "mountPath": "/home/qttdm/runs"}
        assert "WORKDIR /home/qttdm\n" in DOCKERFILE.read_text()


# --- Slurm: the script runs for real, what it calls are stand-ins that write down how they were called

STAND_INS = {
    # A step lives until it is told to end, or fails at once if $FAIL says so.
    "srun": """
        echo "srun $*" >> calls
        [[ "$*" != *"${FAIL:-no step}"* ]] || exit 1
        [[ "$*" == *"ray start"* ]] || exit 0
        trap 'echo "step ended" >> calls; exit 0' TERM
        while true; do sleep 0.05; done
        """,
    "python": """
        case "$*" in
            *get_node_ip_address*) echo 10.0.0.1 ;;
            *token_hex*) echo 5ec2e7 ;;
            "-m qttdm.deploy.cluster.wait_for_nodes "*)
                # They join when they have been asked to: the head first, then all others at once.
                until [[ $(grep -c "ray start" calls) -ge $((($3 > 1) + 1)) ]]; do sleep 0.05; done
                sleep 0.3  # a step that fails has done so by then
                echo "joined $3" >> calls ;;
        esac
        """,
    "qttdm": """
        printf '%s|' "$@" > arguments
        echo "$RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN" > environment
        stat --format=%a runs/ray-4321.env > mode
        echo driver >> calls
        trap 'echo saved >> calls; exit 0' TERM
        until [[ -e release ]]; do sleep 0.05; done
        exit "$(cat release)"
        """,
}
ADDRESS = f"10.0.0.1:{20000 + 3 * 321}"


@pytest.fixture
def job(tmp_path):
    """Starts the script as Slurm would, in a checkout whose .venv holds the stand-ins."""
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    for name, body in STAND_INS.items():
        (bin_folder / name).write_text("#!/usr/bin/env bash\n" + textwrap.dedent(body))
        (bin_folder / name).chmod(0o755)
    started = []

    def start(*arguments, nodes=3, **environment):
        slurm = {
            "SLURM_JOB_ID": "4321",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "2",
            "SLURM_MEM_PER_NODE": "1000",
            "SLURMD_NODENAME": "n1",
        }
        started.append(
            subprocess.Popen(
                ["bash", SLURM, *arguments],
                cwd=tmp_path,
                env=os.environ | slurm | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=20)


def wait_until(path, text=""):
    deadline = time.monotonic() + 20
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} never held {text!r}"
        time.sleep(0.02)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def test_slurm_script_passes_bash_and_shellcheck():
    subprocess.run(["bash", "-n", SLURM], check=True)
    assert lint("shellcheck", SLURM) == ""


def test_slurm_one_head_then_workers_at_its_address_then_the_driver(job, tmp_path):
    (tmp_path / "release").write_text("0")
    assert job("train", "--name", "walk").wait(timeout=20) == 0
    head, joined_1, workers, joined_all, driver, *_ = calls(tmp_path)
    assert "--nodes=1 --ntasks=1 --nodelist=n1 ray start" in head
    assert f"--head --node-ip-address=10.0.0.1 --port={ADDRESS[-5:]}" in head
    assert "--nodes=2 --ntasks=2 --exclude=n1 ray start" in workers
    assert f"--address={ADDRESS}" in workers
    assert "--head" not in workers
    assert (joined_1, joined_all, driver) == ("joined 1", "joined 3", "driver")
    for step in (head, workers):
        assert "--temp-dir=/tmp/ray-4321" in step
        assert "--num-cpus=16 --num-gpus=2" in step
        assert f"--object-store-memory={1000 * 2**20 * 3 // 10}" in step
        assert "--no-kill" in step


def test_slurm_one_node_is_a_head_alone(job, tmp_path):
    (tmp_path / "release").write_text("0")
    assert job("train", nodes=1).wait(timeout=20) == 0
    assert sum("ray start" in call for call in calls(tmp_path)) == 1


def test_slurm_arguments_address_and_token_reach_the_driver(job, tmp_path):
    (tmp_path / "release").write_text("0")
    job("train", "--name", "a b", "--set", "qt-tdm.planner.horizon=5").wait(timeout=20)
    assert (tmp_path / "arguments").read_text() == "cluster|train|--name|a b|--set|qt-tdm.planner.horizon=5|"
    assert (tmp_path / "environment").read_text().split() == [ADDRESS, "token", "5ec2e7"]
    assert (tmp_path / "mode").read_text().strip() == "600"
    assert list((tmp_path / "runs").iterdir()) == []  # the token's file is gone with the job


def test_slurm_the_drivers_status_is_the_jobs_and_both_steps_are_ended(job, tmp_path):
    (tmp_path / "release").write_text("3")
    assert job("train").wait(timeout=20) == 3
    *_, end_1, end_2, cleaning = calls(tmp_path)
    assert (end_1, end_2) == ("step ended", "step ended")
    assert cleaning == "srun --no-kill --nodes=3 --ntasks=3 rm -rf /tmp/ray-4321"


def test_slurm_told_to_end_the_driver_saves_first_and_nothing_else_is_touched(job, tmp_path):
    # Of the same user and by the same name, but not of this job.
    other = subprocess.Popen(["bash", "-c", "exec -a 'ray start --head' sleep 60"])
    process = job("train")
    wait_until(tmp_path / "calls", "driver")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert calls(tmp_path)[-4:-1] == ["saved", "step ended", "step ended"]
    assert other.poll() is None
    other.kill()
    other.wait()


def test_slurm_a_head_that_cannot_start_ends_the_job_before_the_driver(job, tmp_path):
    assert job("train", FAIL="--head").wait(timeout=20) == 1
    assert "driver" not in calls(tmp_path)


def test_slurm_a_worker_that_cannot_start_ends_the_job_and_the_head(job, tmp_path):
    assert job("train", FAIL="--exclude").wait(timeout=20) == 1
    assert "driver" not in calls(tmp_path)
    assert "step ended" in calls(tmp_path)
