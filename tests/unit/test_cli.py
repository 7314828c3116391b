"""The command line's parser, its settings and CaffeOnSpark's flags, without Spark."""

import contextlib
import json
import subprocess
import sys

import pytest

from cos_ml import DeepNetEstimator, DeepNetModel, cli
from cos_ml.commands import caffe, data, flags, network, stages
from cos_ml.commands.session import CONF_DIR, json_text, key_values
from cos_ml.commands.settings import from_job_file, names_of_params, param_flags, params_of
from cos_ml.errors import InvalidInputError

pytestmark = pytest.mark.once


@pytest.mark.parametrize("command", ["train", "test", "features", "export", "caffe", "params", "script", "completion"])
def test_help_fits_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_flags_that_are_params_have_any_spelling():
    given = param_flags(
        ["--batch-size", "64", "--learningRate=0.1", "--useGpu", "--seed", "-1", "--metrics", "mse,mae"]
    )
    assert params_of(DeepNetEstimator, given) == {
        "batchSize": 64, "learningRate": 0.1, "useGpu": True, "seed": -1, "metrics": ["mse", "mae"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("inputCols", "a, b", ["a", "b"]),
        ("inputCols", '["a,b"]', ["a,b"]),
        ("thresholds", "0.5,1", [0.5, 1]),
        ("classWeights", "0=1,1=2.5", {"0": 1, "1": 2.5}),
        ("classWeights", "balanced", "balanced"),
        ("shuffle", "false", False),
        ("loss", "mse", "mse"),
        ("horovodOptions", '{"autotune": true}', {"autotune": True}),
    ],
)
def test_texts_become_values(name, text, value):
    assert params_of(DeepNetEstimator, {name: text}) == {name: value}


def test_every_param_is_a_flag():
    for stage in (DeepNetEstimator, DeepNetModel):
        names = names_of_params(stage)
        assert {"featuresCol", "handleInvalid"} <= set(names)
        assert params_of(stage, {name: [] for name in names}).keys() == set(names)
    taken = {name.replace("_", "") for command in flags.COMMANDS for name in flags.names(command)}
    assert not taken & {name.lower() for name in names_of_params(DeepNetEstimator)}


def test_unknown_names_come_with_near_ones():
    with pytest.raises(
        InvalidInputError, match=r"--batchsiz: there is no such flag or Param. Did you mean --batchSize"
    ):
        params_of(DeepNetEstimator, {"batchsiz": "1"})
    with pytest.raises(InvalidInputError, match=r"--netwrok: .* --network"):
        params_of(DeepNetEstimator, {"netwrok": "1"}, flags.names("train"))
    with pytest.raises(InvalidInputError, match="twice"):
        params_of(DeepNetEstimator, {"batchSize": "1", "batch-size": "2"})
    with pytest.raises(InvalidInputError, match="Unexpected argument 'b'"):
        param_flags(["--a", "1", "b"])
    with pytest.raises(InvalidInputError, match="--epochs: expected a value"):
        params_of(DeepNetEstimator, {"epochs": True})


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_job_files(tmp_path, suffix):
    content = {"network": "a.keras", "output-format": "json", "batch_size": 8, "inputCols": ["a"]}
    path = tmp_path / f"job.{suffix}"
    path.write_text(json.dumps(content) if suffix == "json" else "".join(f"{k}: {v}\n" for k, v in content.items()))
    own, others = from_job_file(str(path), flags.names("features"))
    assert own == {"network": "a.keras", "output_format": "json"}
    assert others == {"batch_size": 8, "inputCols": ["a"]}
    given, params = flags.settings("features", {"job": str(path), "network": "b.keras"}, ["--batchSize", "16"])
    assert (given, params) == ({"network": "b.keras", "output_format": "json"}, {"batchSize": "16", "inputCols": ["a"]})


def test_job_files_that_are_none(tmp_path):
    path = tmp_path / "job.json"
    path.write_text("[1]")
    with pytest.raises(InvalidInputError, match="expected a mapping"):
        from_job_file(str(path), [])
    path.write_text("{")
    with pytest.raises(InvalidInputError, match=r"job\.json"):
        from_job_file(str(path), [])


def test_callbacks_by_name_and_with_arguments():
    found = params_of(DeepNetEstimator, {"callbacks": "TerminateOnNaN"})["callbacks"]
    assert found[0]["class"] == "keras.callbacks:TerminateOnNaN"
    given = [{"class": "ReduceLROnPlateau", "factor": 0.5}]
    assert params_of(DeepNetEstimator, {"callbacks": given})["callbacks"][0]["arguments"] == {"factor": 0.5}


def test_usage_errors_are_2_and_errors_1(capsys, tmp_path):
    for arguments in ([], ["nothing"], ["check", "--unknown"], ["caffe", "-unknown"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
    for unknown in (["--batchsiz", "1"], ["--epochs", "1", "2"]):
        assert cli.main(["train", "--data", "x", "--network", "y", *unknown]) == 2
    assert cli.main(["train", "--data", "x"]) == 1
    assert "--network: expected" in capsys.readouterr().err
    assert cli.main(["train", "--network", "x"]) == 1
    assert "--data: expected" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "test", "features", "export"])
def test_networks_are_loaded_in_the_session(command, monkeypatch, capsys):
    """A saved model, which Spark reads, would start a session without the settings of the command."""
    events = []

    @contextlib.contextmanager
    def session(name, master, conf):
        events.append((master, conf))
        yield None

    def load(*_):
        events.append("load")
        raise InvalidInputError("loaded")

    monkeypatch.setattr(stages, "session", session)
    monkeypatch.setattr(network, "load", load)
    arguments = ["--data", "x", "--model", "y", "--master", "local[1]", "--conf", "a=b"]
    arguments += ["--output", "z"] if command in ("features", "export") else []
    assert cli.main([command, *arguments]) == 1
    assert events == [("local[1]", {"a": "b"}), "load"]
    printed = capsys.readouterr().err
    assert "loaded" in printed
    assert "blue, green, red" not in printed
    cli.main([command, *arguments, "--weights", "w.caffemodel", "--image-size", "8x8"])
    assert "blue, green, red" in capsys.readouterr().err


def test_values_of_settings():
    assert key_values(["a=b=c"], "--conf") == {"a": "b=c"}
    assert key_values({"a": True, "b": 2}, "--conf") == {"a": "true", "b": "2"}
    with pytest.raises(InvalidInputError, match="--conf a: expected KEY=VALUE"):
        key_values(["a"], "--conf")
    assert json.loads(json_text({"a": float("nan"), "b": (1, 2.5)})) == {"a": None, "b": [1, 2.5]}


def test_formats_are_told_from_paths(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").touch()
    (tmp_path / "table" / "_delta_log").mkdir(parents=True)
    found = [
        data.format_of(str(path)) for path in (tmp_path / "db", tmp_path / "table", tmp_path / "a.csv", "s3://a/b")
    ]
    assert found == ["lmdb", "delta", "csv", "parquet"]


# --- CaffeOnSpark's flags


def parsed(*arguments):
    given = vars(cli.parser().parse_args(["caffe", *arguments]))
    return {name: given[name] for name in caffe.FLAGS}


def test_every_flag_is_understood_and_explained():
    given = parsed(
        "-conf", "solver.prototxt", "-train", "-test", "-features", "ip1,ip2", "-label", "label", "-model", "m",
        "-output", "o", "-outputFormat", "parquet", "-devices", "2", "-clusterSize", "3", "-connection", "infiniband",
        "-resize", "-persistent", "-snapshot", "s.solverstate", "-weights", "w.caffemodel", "-lmdb_partitions", "4",
    )  # fmt: skip
    caffe.check(given)
    lines = caffe.mapping(given, 6)
    assert [line.split()[0].rstrip(":") for line in lines] == [f"-{name}" for name in caffe.FLAGS]
    assert any(line.startswith("-devices 2: numTrainWorkers=6") for line in lines)
    assert any(line.startswith("-test: not done, because -features") for line in lines)
    assert "-model m: the trained model is saved as a DeepNetModel, not as a caffemodel" in lines
    assert any("saved as a .keras file" in line for line in caffe.mapping(given | {"model": "m.keras"}, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-train"], "-conf"),
        (["-conf", "s"], "Nothing to do"),
        (["-conf", "s", "-test"], "-model"),
        (["-conf", "s", "-train", "-snapshot", "x"], "-weights"),
        (["-conf", "s", "-train", "-outputFormat", "xml"], "json or parquet"),
        (["-conf", "s", "-train", "-connection", "token-ring"], "ethernet or infiniband"),
        (["-conf", "s", "-train", "-devices", "0"], ">= 1"),
    ],
)
def test_flags_that_contradict_each_other(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        caffe.check(parsed(*arguments))


# --- completion and spark-submit


def test_the_script_for_spark_submit_is_the_command():
    assert (CONF_DIR / "submit.py").exists()
    done = subprocess.run([sys.executable, str(CONF_DIR / "submit.py"), "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6]) == (0, "cos-ml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_flags_and_params(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("features", "batchSize", "output-format", "lmdb_partitions"))


def test_bash_completes(capsys):
    cli.main(["completion", "bash"])
    words = "COMP_WORDS=(cos-ml train --batchS); COMP_CWORD=2; _cos_ml; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", capsys.readouterr().out + words], capture_output=True, text=True)
    assert done.stdout.split() == ["--batchSize"], done.stderr
