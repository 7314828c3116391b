import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import cos_ml
from cos_ml import errors

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(cos_ml.__path__, "cos_ml.", onerror=lambda name: None)
    if not module.name.startswith("cos_ml.mlflow")  # without MLflow it can't be imported: tests/integrations
)


def test_the_public_names():
    assert {"DeepNetEstimator", "DeepNetModel", "ImageAssembler", "callback"} < set(cos_ml.__all__)
    assert cos_ml.__all__ == sorted(cos_ml.__all__)
    assert set(cos_ml.__all__) == set(cos_ml._HOMES) | {"__version__"}
    for name in cos_ml.__all__:
        assert getattr(cos_ml, name)
    with pytest.raises(AttributeError, match="has no attribute 'DeepNet'"):
        cos_ml.DeepNet  # noqa: B018


HIDING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import cos_ml
try:
    import keras
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    print(cos_ml.DeepNetEstimator(model=net, loss="mse", featureLayers=["dense"]).getLoss())
except cos_ml.errors.SetupError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("hidden", "printed"),
    [
        (["pyspark.core", "py4j"], "mse"),  # what pyspark-client lacks
        pytest.param(["pyspark"], 'PySpark is not installed: pip install "cos-ml[cpu]" or', marks=pytest.mark.more),
    ],
)
def test_pyspark_may_be_that_of_connects_client(hidden, printed):
    done = subprocess.run([sys.executable, "-c", HIDING, *hidden], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(printed), done.stderr[-2000:]


@pytest.mark.parametrize(
    "path",
    [
        "cos_ml.callback",
        "cos_ml.cluster_check.report",
        "cos_ml.errors.CosMLError",
        "cos_ml.estimator.DeepNetEstimator",
        "cos_ml.images.ImageAssembler",
        "cos_ml.listeners.FitListener",
        "cos_ml.model.DeepNetModel",
        "cos_ml.sources.register",
        "cos_ml.summary.TrainingSummary",
        "cos_ml.text.SequenceDecoder",
        "cos_ml.text.Vocabulary",
        "cos_ml.text.VocabularyModel",
    ],
)
def test_public_paths_do_not_move(path):
    """Programs import these, and saved stages name the classes by them."""
    module, name = path.rsplit(".", 1)
    public = getattr(importlib.import_module(module), name)
    if inspect.isclass(public):
        assert f"{public.__module__}.{public.__name__}" == path


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InvalidInputError", ValueError),
        ("SavedModelError", ValueError),
        ("ClusterError", RuntimeError),
        ("RankError", RuntimeError),
        ("SetupError", RuntimeError),
    ],
)
def test_the_exception_tree(name, builtin):
    error = getattr(errors, name)
    assert issubclass(error, errors.CosMLError)
    assert issubclass(error, builtin)
    assert f"{name} " in errors.__doc__


def test_the_exception_tree_is_whole():
    exceptions = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert exceptions == set(errors.__all__) - {"REPORTED", "from_spark"}
    assert issubclass(errors.CosMLError, Exception)
    assert not issubclass(errors.CosMLError, (ValueError, RuntimeError))


@pytest.mark.once
@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    own = [
        value
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == name
    ]
    without = [value.__name__ for value in own if not (getattr(value, "__doc__", None) or "").strip()]
    assert without == []


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_is_there(name):
    module = importlib.import_module(name)
    assert hasattr(module, "__all__") or hasattr(module, "__path__")  # the __init__ of most packages is a docstring
    assert [export for export in getattr(module, "__all__", ()) if not hasattr(module, export)] == []


@pytest.mark.once
@pytest.mark.parametrize("name", ["cos_ml.rank.__main__", "cos_ml.data.columns", "cos_ml.data.spool"])
def test_what_a_rank_starts_with_is_light(name):
    """Ranks start sooner without Spark; and the task imports no TensorFlow."""
    code = f"import sys, {name}; print([heavy for heavy in ('pyspark', 'tensorflow', 'keras') if heavy in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.once
@pytest.mark.parametrize(
    "first",
    [
        "from cos_ml import DeepNetModel",
        pytest.param("from cos_ml.model import DeepNetModel", marks=pytest.mark.more),
        pytest.param("from cos_ml import callback", marks=pytest.mark.more),
        pytest.param("from cos_ml import read_images", marks=pytest.mark.more),
    ],
)
def test_an_import_before_that_of_keras_is_quiet(first):
    """TensorFlow's own lines come only where a program imports it before cos_ml."""
    done = subprocess.run([sys.executable, "-c", f"{first}; import keras"], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
