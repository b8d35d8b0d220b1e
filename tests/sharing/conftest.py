"""Runs that the tests of this folder share; they take longer to make than to read."""

import pytest

from tests.sharing.runs import gpt2_run, llama_run, write_rows
from tests.support.places import working_in


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The run directories of a Llama and a GPT-2 with adapters, by architecture; no test changes them."""
    home = tmp_path_factory.mktemp("sharing")
    with working_in(home):
        write_rows(home)
        llama = llama_run(home)
        return {"llama": llama, "gpt2": gpt2_run(home, llama)}
