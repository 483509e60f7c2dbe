import pytest

from tests.kernels.cpu.backends import NAMES, Backends


@pytest.fixture(scope="session")
def backends(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Backends:
    cache = getattr(pytestconfig, "cache", None)
    return Backends(cache.mkdir("emulated") if cache is not None else tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
