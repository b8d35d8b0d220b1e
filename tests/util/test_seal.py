"""Whatever happens to a sealed file, it reads as it was written or it is refused."""

import json

import pytest
from omegaconf import OmegaConf

from shiqrun.config.run_directory import CONFIG, load, save
from shiqrun.errors import InputError
from shiqrun.util.summary import SUMMARY, is_finished, read_summary, write_summary

CONFIGURED = {"seed": 0, "algo": {"name": "shiq", "beta": 0.2}, "run_dir": "a", "resume": None}
SUMMED = {"val/kl": 0.1, "steps": 7, "fingerprint/model": "ab", "val/nan": float("nan"), "none": None}


@pytest.fixture(params=["config", "summary"])
def sealed(request, tmp_path):
    """(file, function that reads it) of a saved config, and of a summary."""
    if request.param == "config":
        save(OmegaConf.create(CONFIGURED), tmp_path)
        return tmp_path / CONFIG, lambda: OmegaConf.to_container(load(tmp_path))
    write_summary(tmp_path, SUMMED)
    return tmp_path / SUMMARY, lambda: {k: v for k, v in read_summary(tmp_path).items() if k in SUMMED}


def flips(content):
    """(byte, its new value): every bit; every other value of the first three bytes and of what ends the first line."""
    ends = content.index(b"\n")
    for at, byte in enumerate(content):
        for other in range(256) if at in (0, 1, 2, ends, ends + 1) else (byte ^ 1 << n for n in range(8)):
            yield at, other


def test_no_flipped_byte_changes_what_is_read(sealed):
    file, read = sealed
    content, whole, refused = file.read_bytes(), repr(read()), []
    for at, other in flips(content):
        file.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
        try:
            assert repr(read()) == whole, (at, other)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > len(content)
    assert all(str(file) in error for error in refused)


def test_no_cut_changes_what_is_read(sealed):
    file, read = sealed
    content, whole, refused = file.read_bytes(), repr(read()), []
    for size in range(len(content)):
        file.write_bytes(content[:size])
        try:
            assert repr(read()) == whole, size
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > len(content) // 2
    assert all(str(file) in error for error in refused)


def test_a_config_without_its_first_line_is_read_as_those_of_earlier_versions(tmp_path):
    save(OmegaConf.create(CONFIGURED), tmp_path)
    file = tmp_path / CONFIG
    file.write_text(file.read_text().partition("\n")[2].replace("seed: 0", "seed: 1"))
    assert load(tmp_path).seed == 1


def test_a_changed_summary_is_no_sign_of_the_end_and_one_without_a_digest_is(tmp_path):
    write_summary(tmp_path, SUMMED)
    assert is_finished(tmp_path)
    values = json.loads((tmp_path / SUMMARY).read_text()) | {"steps": 8}
    (tmp_path / SUMMARY).write_text(json.dumps(values))
    assert not is_finished(tmp_path)
    del values["sha256"]
    (tmp_path / SUMMARY).write_text(json.dumps(values))
    assert is_finished(tmp_path)
    assert read_summary(tmp_path)["steps"] == 8
