"""Options of the benchmark suites, and the machine they ran on. `triselect bench` runs them."""

import pytest
import torch

from triselect.report import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--smoke", action="store_true", help="every case once with a few tokens; nothing is timed"
    )
    parser.addoption(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of CPU kernels"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    if config.getoption("--smoke"):
        config.option.benchmark_disable = True


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--smoke")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["triselect"] = machine.describe()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list, output_json: dict
) -> None:
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)  # every single sample: megabytes that nothing reads
