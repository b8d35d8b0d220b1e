"""The check for a GPU is rehearsed on a CPU: what it finds, what it leaves out, and that no section stops another."""

import json

import pytest

from bench import gpu_sections
from bench.gpu_check import ask, main, run_section

QUICK = ("scoring", "packing", "one_rank", "non_finite")
ON_A_GPU_ALONE = ("nf4", "attention")


@pytest.mark.parametrize("name", QUICK)
def test_a_section_finds_figures_on_a_cpu_too(name):
    row = run_section(name, "cpu", small=True)
    assert row["outcome"] == "passed"
    assert row["figures"]


@pytest.mark.parametrize("name", ON_A_GPU_ALONE)
def test_a_section_that_needs_a_gpu_says_so(name):
    assert run_section(name, "cpu", small=True)["outcome"] == "skipped: needs CUDA"


def test_wrong_scores_are_found(monkeypatch):
    right = gpu_sections.score_actions
    monkeypatch.setattr(gpu_sections, "score_actions", lambda *a, **o: tuple(x * (1 + 1e-3) for x in right(*a, **o)))
    assert run_section("scoring", "cpu", small=True)["outcome"].startswith("failed: fp32 is ")


def test_a_flag_that_is_not_heeded_is_found(monkeypatch):
    class Deaf:
        def __init__(self, optimizer):
            self.__dict__.update(optimizer=optimizer)

        def __setattr__(self, name, value):
            if name != "found_inf":
                setattr(self.optimizer, name, value)

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

    right = gpu_sections.adamw
    monkeypatch.setattr(gpu_sections, "adamw", lambda *a, **o: Deaf(right(*a, **o)))
    assert "weights moved" not in (outcome := run_section("non_finite", "cpu", small=True)["outcome"])
    assert outcome.startswith("failed: fp32 is ")


def test_an_error_of_a_library_is_an_outcome(monkeypatch):
    def broken(device, small):
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    monkeypatch.setitem(gpu_sections.SECTIONS, "scoring", (broken, 1))
    assert run_section("scoring", "cpu", small=True)["outcome"] == (
        "failed: RuntimeError: CUDA error: an illegal memory access"
    )


def test_a_section_that_takes_too_long_is_killed():
    assert ask("scoring", "cpu", small=True, limit=0.3)["outcome"] == "failed: took more than 0 s"


def test_without_a_gpu_the_rehearsal_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "torch sees no GPU here; --device cpu --small rehearses" in capsys.readouterr().err


def test_limits_of_sections_fit_eight_minutes():
    assert sum(limit for _, limit in gpu_sections.SECTIONS.values()) <= 480


@pytest.mark.slow
def test_the_whole_check_is_rehearsed(tmp_path):
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found.keys() == gpu_sections.SECTIONS.keys()
    for name, row in found.items():
        assert row["outcome"] == ("skipped: needs CUDA" if name in ON_A_GPU_ALONE else "passed")
