"""`pytest -m compile_gate tests/gate --record-budgets` writes what it measures to budgets.json."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-budgets",
        action="store_true",
        help="write the compile gate's budgets from what it measures, instead of checking them",
    )
