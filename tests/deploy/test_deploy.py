"""What deploy/ holds is valid, and says only what the product understands."""

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import typer.main
import yaml

from plait.cli.main import app

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "plait"
KEY = {"apiKeySecret": "plait-key"}
NODES = {"nodes": 3, "modelsClaim": "models", "args": ["--elastic", "--slo", "ttft=500ms,tpot=60ms"]}


def options_of_serve():
    verb = typer.main.get_command(app).commands["serve"]
    return {name for parameter in verb.params for name in parameter.opts}


def values():
    return yaml.safe_load((CHART / "values.yaml").read_text())


def test_the_chart_asks_for_a_key_and_refuses_what_it_does_not_know():
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(values() | KEY, schema)
    for wrong in ({}, KEY | {"instanses": 2}, KEY | {"instances": 0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values() | wrong, schema)


@pytest.mark.parametrize("path", ["compose.yaml", "helm/plait/templates/server.yaml"])
def test_serve_has_every_option_that_is_used(path):
    words = (DEPLOY / path).read_text().replace('"', " ").split()
    told = {word for word in words if word.startswith("--") and word[2:3].isalpha()}
    of_ray = {"--head", "--num-cpus=0", "--port=6379", "--node-ip-address=", "--disable-usage-stats"}
    assert told - of_ray - options_of_serve() - {"--profile"} == set()
    assert "--host" in told


def test_compose_publishes_nothing_beyond_this_host_and_wants_a_key():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ports = [port for each in services.values() for port in each["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert services["serve"]["environment"]["PLAIT_API_KEY"].startswith("${PLAIT_API_KEY:?")
    assert (DEPLOY.parent / services["serve"]["build"]["dockerfile"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("given", [KEY, KEY | NODES], ids=["one pod", "nodes"])
def test_kubernetes_knows_what_the_chart_renders(tmp_path, given):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="needs the deploy extra")
    helm = shutil.which("helm") or pytest.skip("needs helm")
    chosen = tmp_path / "values.yaml"
    chosen.write_text(yaml.safe_dump(given))
    command = [helm, "template", "plait", str(CHART), "--values", str(chosen)]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [each for each in yaml.safe_load_all(rendered) if each]
    for each in found:
        kubernetes.validate(each, kubernetes.latest_version(), strict=True)
    named = {(each["kind"], each["metadata"]["name"]): each for each in found}
    expected = {("Deployment", "plait"), ("Service", "plait")}
    if given.get("nodes"):
        expected |= {("Deployment", "plait-node"), ("Service", "plait-head"), ("NetworkPolicy", "plait")}
    assert named.keys() == expected
    told = named["Deployment", "plait"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert told[2:] == given.get("args", [])
