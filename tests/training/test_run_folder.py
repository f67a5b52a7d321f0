import json
import os
import subprocess
import sys

import pytest

from petm.errors import RunError
from petm.training.run_folder import open_run

TOLD = {"seed": 0, "epochs": 3}


def interrupt(path, told=TOLD):
    with pytest.raises(KeyboardInterrupt), open_run(path, told) as run:
        (run.path / "checkpoints").mkdir()
        (run.path / "checkpoints" / "step.safetensors").write_text("state")
        raise KeyboardInterrupt


def test_finished_run_leaves_its_products_and_no_checkpoint(tmp_path):
    with open_run(tmp_path / "run", TOLD) as run, run.timed("step"):
        storage = run.storage("teacher")
        storage.path.parent.mkdir()
        storage.path.write_text("state")
        (run.path / "result.json").write_text("{}")
    assert sorted(entry.name for entry in run.path.iterdir()) == ["result.json", "run.json"]
    assert json.loads((run.path / "run.json").read_text()) == {"settings": TOLD, "finished": True}
    assert list(run.seconds) == ["step"]


def test_interrupted_run_keeps_its_checkpoint_for_resume(tmp_path):
    interrupt(tmp_path)
    with pytest.raises(RunError, match=r"holds an interrupted run\. Continue it with resume"), open_run(tmp_path, TOLD):
        pass
    with open_run(tmp_path, TOLD, resume=True) as run:
        assert (run.path / "checkpoints" / "step.safetensors").read_text() == "state"


def test_failure_before_anything_was_made_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="bad data"), open_run(tmp_path / "run", TOLD):
        raise ValueError("bad data")
    assert not (tmp_path / "run").exists()


def test_resume_wins_over_overwrite(tmp_path):
    interrupt(tmp_path)
    with open_run(tmp_path, TOLD, resume=True, overwrite=True) as run:
        assert (run.path / "checkpoints" / "step.safetensors").exists()


def test_resume_of_nothing_starts(tmp_path):
    with open_run(tmp_path / "new", TOLD, resume=True) as run:
        assert run.storage("teacher").resume


def test_other_settings_are_refused_and_named(tmp_path):
    interrupt(tmp_path)
    other = pytest.raises(RunError, match=r"interrupted run with other settings \(epochs\)")
    with other, open_run(tmp_path, TOLD | {"epochs": 4}, resume=True):
        pass
    assert (tmp_path / "checkpoints" / "step.safetensors").exists()


def test_finished_run_is_not_run_again(tmp_path):
    with open_run(tmp_path, TOLD):
        pass
    for resume in (False, True):
        with pytest.raises(RunError, match="holds a finished run"), open_run(tmp_path, TOLD, resume=resume):
            pass


def test_overwrite_replaces_a_run(tmp_path):
    interrupt(tmp_path)
    with open_run(tmp_path, TOLD | {"epochs": 9}, overwrite=True) as run:
        assert not (run.path / "checkpoints").exists()


def test_somebodys_files_are_refused_and_kept_even_with_overwrite(tmp_path):
    (tmp_path / "thesis.tex").write_text("work")
    refused = pytest.raises(RunError, match="expected an empty folder")
    with refused, open_run(tmp_path, TOLD, overwrite=True):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_second_process_is_kept_out(tmp_path):
    code = (
        "import sys; from petm.errors import RunError; from petm.training.run_folder import open_run\n"
        "try:\n    with open_run(sys.argv[1], {}, resume=True): print('in')\n"
        "except RunError as error: print(error)"
    )
    with open_run(tmp_path, {}):
        answer = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
        )
    assert "another process is at work there" in answer.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be used as an output folder"), open_run(tmp_path / "x", TOLD):
        pass


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used as an output folder"), open_run(tmp_path / "file", TOLD):
        pass
