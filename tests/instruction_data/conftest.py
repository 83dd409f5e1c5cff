"""The command in this process."""

import pytest
from typer.testing import CliRunner

from instructblip_hf.cli.app import app


@pytest.fixture
def run_command():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, list(arguments), catch_exceptions=False)
