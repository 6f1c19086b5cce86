"""`course run` up to its first notebook: which settings, which run, which stages; what is refused."""

import sys
from types import SimpleNamespace

import pytest
from commands import assert_one_message, course, tree
from runs_for_tests import begin_stage, finish_stage, make_run

from helpers.errors import DataError
from helpers.paths import package_versions
from helpers.runs import run as runs
from helpers.runs.chosen import choose, parse_value
from helpers.runs.failures import record_failure
from helpers.runs.like import settings_used
from helpers.runs.manifest import BackendUsed
from helpers.runs.run import Run

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def started(monkeypatch) -> list[tuple[str, list[str], dict]]:
    """Run, stages and settings that would start now: no notebook is executed."""
    found = []
    page = SimpleNamespace(write_report=lambda run: run.path / "report.html")
    monkeypatch.setitem(sys.modules, "helpers.runs.report.page", page)
    monkeypatch.setattr(
        "helpers.course.run.run_stages",
        lambda run, stages, settings: found.append((run.name, stages, settings)) or 0,
    )
    return found


# at the door


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("rank=8", 8),
        ("epochs=2", 2.0),
        ("learning_rate=1e-3", 0.001),
        ("batch_sizes=4", "4"),
        ("batch_sizes=1,4", "1,4"),
        ('batch_sizes="1,4"', "1,4"),
        ("export_name=007", "007"),
        ("export_name=true", "true"),
        ("export_name='a b'", "a b"),
        ("unseen_templates=", ""),
        ("task = text", "text"),
    ],
)
def test_a_value_is_read_by_the_type_of_its_setting(assignment, value):
    [found] = choose(None, [assignment]).values()
    assert found == value and type(found) is type(value)


def test_a_value_of_an_unknown_setting_is_kept_as_typed():
    assert parse_value("nothing_such", "8") == "8"  # refused later, by its name


def test_paths_of_the_user_reach_the_notebooks_whole(tmp_path, monkeypatch, base_model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(base_model.parent)
    (tmp_path / "rows").mkdir()
    (tmp_path / "test.jsonl").write_text("")
    chosen = choose(
        None,
        [f"base_model=models/{base_model.name}", "benchmark_file=test.jsonl"],
        ["hub:rows#test", "a.json"],
    )
    assert chosen == {
        "base_model": str(tmp_path / "models" / base_model.name),
        "benchmark_file": str(tmp_path / "test.jsonl"),
        "data_files": f"hub:{tmp_path}/rows#test,{tmp_path}/a.json",
    }
    chosen = choose(None, ["base_model=Qwen/Qwen3-8B"], ["hub:a/b"])
    assert chosen == {"base_model": "Qwen/Qwen3-8B", "data_files": "hub:a/b"}


def test_a_profile_of_ones_own(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("rank = 4\nmax_tokens = 9  # few\ntask = 'math'\n")
    assert choose(str(file), ["rank=2"]) == {"rank": 2, "max_tokens": 9, "task": "math"}
    for content, reason in (
        ("rank 4", "line 1"),
        ("[quick]\nrank = 4", "[quick] is a table"),
        ("epoch = 4", "did you mean epochs?"),
    ):
        file.write_text(content)
        status, _, err = course(capsys, "run", "--dry-run", "--profile", file)
        assert status == 1
        assert_one_message(err, reason)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-p", "epoch=1"], ["'epoch'", "did you mean epochs?"]),
        (["-p", "xyz=1"], ["'xyz'", "settings are", "epochs"]),
        (["-p", "rank=wide"], ["rank", "wide", "integer", "32"]),
        (["-p", "rank=8.5"], ["rank", "8.5", "integer"]),
        (["-p", "epochs=true"], ["epochs", "true", "number"]),
        (["-p", "epochs"], ["'epochs'", "-p epochs=1"]),
        (["-p", "run_name=mine"], ["run_name", "--name"]),
        (["-p", "base_model=/no/such/model"], ["'/no/such/model'", "neither a model folder nor a name"]),
        (["-p", "base_model=MODEL"], ["MODEL", "config.json"]),
        (["-p", "benchmark_file=none.jsonl"], ["'none.jsonl'", "is not there"]),
        (["--data", "my,data.csv"], ["'my,data.csv'", "comma", "rename it"]),
        (["--backend", "cloud"], ["cloud", "stub"]),
        (["--profile", "quik"], ["'quik'", "quick", "small", "full", "hosted"]),
        (["--profile", "mine.toml"], ["mine.toml", "does not exist", "epochs = 2.0"]),
        (["--name", "a/b"], ["'a/b'", "letters"]),
    ],
)
def test_refused_before_a_run_folder_is_made(arguments, parts, capsys, folder, tmp_path):
    model = tmp_path / "deep" / "model"
    model.mkdir(parents=True)
    arguments = [word.replace("MODEL", str(model)) for word in arguments]
    status, _, err = course(capsys, "run", *arguments)
    assert status == 1 and not folder.exists()
    assert_one_message(err, *(part.replace("MODEL", str(model)) for part in parts))


@pytest.mark.parametrize(
    "arguments",
    [
        ["clean"],
        ["clean", "--older-than", "-1"],
        ["clean", "--older-than", "nan"],
        ["run", "--json"],
        ["run", "--like", "x", "--resume"],
        ["run", "--like", "x", "--from", "train"],
    ],
)
def test_options_that_dont_go_together(arguments, capsys, folder):
    status, _, err = course(capsys, *arguments)
    assert status == 2 and not folder.exists()
    assert_one_message(err)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["lst"],
        ["show", "a", "b"],
        ["clean", "--older-than", "soon"],
        ["completion", "fish"],
        ["run", "--from", "trian"],
    ],
)
def test_what_the_parser_refuses(arguments, capsys):
    status, _, err = course(capsys, *arguments)
    assert status == 2 and "usage: course" in err


# which run, which stages


def test_a_new_run_takes_the_quick_profile_and_an_old_one_keeps_its_settings(capsys, started):
    assert course(capsys, "run", "--name", "mine", "-p", "rank=8", "--until", "train")[0] == 0
    assert course(capsys, "run", "--resume", "-p", "epochs=2")[0] == 0
    assert started == [
        ("mine", ["split", "train"], {"rank": 8}),
        ("mine", ["split", "train", "evaluate", "export", "merge", "vllm"], {"rank": 8, "epochs": 2.0}),
    ]
    assert Run(runs.runs_dir() / "mine").manifest.settings == {"rank": 8, "epochs": 2.0}


def test_resume_goes_on_with_the_stage_that_failed(capsys, started):
    """Also where its work was done, and only a check after it failed."""
    run = make_run("mine", done=("split", "train", "evaluate"))
    course(capsys, "run", "--resume", "--until", "export")
    record_failure(run, "train", DataError("the loss did not fall"))
    course(capsys, "run", "--resume", "--until", "export")
    begin_stage(run, "split")
    course(capsys, "run", "--resume", "--until", "split")
    assert [stages for _, stages, _ in started] == [["export"], ["train", "evaluate", "export"], ["split"]]


def test_nothing_is_left_to_resume(capsys):
    make_run("mine")
    status, _, err = course(capsys, "run", "--resume")
    assert status == 1
    assert_one_message(err, "mine is complete", "--from")


def test_stages_out_of_order(capsys, folder):
    run = make_run("mine", done=("split",))
    status, _, err = course(capsys, "run", "--from", "merge", "--name", "mine")
    assert status == 1
    assert_one_message(err, "mine", "'export'", "04_export.ipynb first")
    status, _, err = course(capsys, "run", "--from", "merge", "--until", "train", "--name", "mine")
    assert status == 2
    assert_one_message(err, "merge", "train", "--until names the same stage")
    assert not run.file("merge").exists() and not run.file("notebooks").exists()


def test_runs_that_are_not_there(capsys, folder):
    status, _, err = course(capsys, "run", "--resume")
    assert status == 1
    assert_one_message(err, str(folder), "course run")
    make_run("mine", done=())
    status, _, err = course(capsys, "run", "--resume", "--name", "nobody")
    assert status == 1
    assert_one_message(err, "'nobody'")


def test_two_at_once_in_one_run(capsys, started):
    run = make_run("mine", done=("split",))
    with run.in_use():
        status, _, err = course(capsys, "run", "--resume")
    assert status == 1 and not started
    assert_one_message(err, "mine", "under way")
    assert course(capsys, "run", "--resume")[0] == 0 and len(started) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--resume", "-p", "epochs=3"],
            ["epochs=3.0 belongs to 02_train", "--from train", "course run --like mine -p epochs"],
        ),
        (["--from", "evaluate", "--data", "data/reviews.csv"], ["data_files=", "01_split", "--from split"]),
    ],
)
def test_a_setting_that_would_not_be_used_is_refused(arguments, parts, capsys, started):
    make_run("mine", done=("split", "train"))
    status, _, err = course(capsys, "run", "--name", "mine", *arguments)
    assert status == 2 and not started
    assert_one_message(err, *parts)


@pytest.mark.parametrize("setting", ["epochs=1", "max_tokens=24", "test_limit=3", "base_run="])
def test_a_setting_that_is_as_it_was_or_for_a_stage_to_come_is_none_of_these(setting, capsys, started):
    make_run("mine", done=("split", "train"))
    assert course(capsys, "run", "--resume", "-p", setting)[0] == 0 and len(started) == 1


# like another run


def test_like_takes_the_settings(capsys, started):
    old = make_run("old", epochs=2, rank=8)
    finish_stage(old, "evaluate", max_tokens=64)  # set by hand, in the notebook
    status, out, _ = course(capsys, "run", "--like", "old", "--name", "again", "-p", "rank=16")
    expected = {"epochs": 2.0, "rank": 16, "max_tokens": 64}
    assert status == 0 and [(name, settings) for name, _, settings in started] == [("again", expected)]
    manifest = Run(old.path.parent / "again").manifest
    assert manifest.settings == expected and manifest.like == "old"
    assert out.count("note:") == 1 and "stages had different values of max_tokens" in out


def test_like_points_out_what_changed(capsys, started, monkeypatch, tmp_path, small_data):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    packages = package_versions() | {"tinker": "0.0.1"}
    old = make_run("old", done=("split",), manifest={"packages": packages}, data_files=str(small_data))
    old.update(settings=old.manifest.settings | {"gone": 1})
    other = small_data.rename(tmp_path / "other.json")
    small_data.write_text(other.read_text().replace("aaaa", "bbbb"))
    status, out, _ = course(capsys, "run", "--like", "latest", "--name", "again")
    assert status == 0 and "note: tinker was 0.0.1, is " in out
    assert "note: data file small.json has changed" in out
    assert "note: setting gone=1 is left out" in out and out.count("note:") == 3
    found = course(capsys, "run", "--like", "old", "-p", f"data_files={other}")[1]
    assert "other data files: small.json then, other.json now" in found
    small_data.unlink()
    status, _, err = course(capsys, "run", "--like", "old", "--name", "more")
    assert status == 1 and "small.json does not exist" in err and not (old.path.parent / "more").exists()


def test_like_a_run_of_another_backend(capsys, started):
    make_run("old", manifest={"backend": BackendUsed(kind="hosted", url=None)})
    assert "note: it ran on hosted, this one will on stub" in course(capsys, "run", "--like", "old")[1]


def test_like_in_a_dry_run(capsys, small_data, folder):
    make_run("old", data_files=str(small_data), epochs=5)
    small_data.write_text(small_data.read_text().replace("aaaa", "bbbb"))
    before = tree(folder)
    status, out, _ = course(capsys, "run", "--dry-run", "--like", "old", "--until", "train")
    assert status == 0 and "20 steps" in out and "note      data file" in out and tree(folder) == before


def test_a_run_like_one_of_a_sweep_asks_the_base_model_itself():
    run = make_run("s-02", done=("split",), rank=8)
    run.update(settings={"rank": 8, "base_run": "s-01"})
    finish_stage(run, "evaluate", base_run="s-01")
    assert settings_used(run.manifest) == ({"rank": 8}, [])
