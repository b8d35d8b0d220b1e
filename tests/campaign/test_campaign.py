"""The campaign of damage and kills, short in every run of the tests, long where slow tests run."""

import pytest

from tests.campaign.__main__ import main
from tests.campaign.world import ENVIRONMENT


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_what_is_damaged_is_found_or_harmless_and_a_killed_run_ends_as_if_it_was_not():
    assert main(["--only", "resume", "--trials", "3", "--kills", "1", "--seed", "5"]) == 0


@pytest.mark.slow
def test_so_it_is_for_every_command_that_reads_files_again():
    assert main(["--trials", "280", "--kills", "10", "--seed", "2"]) == 0
