import re
from pathlib import Path

import pytest

from search.pipeline.request import (
    RequestError,
    check_output_path,
    check_paths,
    load_requested_space,
    merge_with_saved,
    parse_request,
)
from search.runs.environment import Request
from spaces.base import load_space
from spaces.errors import SourceError
from spaces.rules import BACKBONE_NAMES, SpaceError

ROOT = Path(__file__).parents[3]
CATS_DOGS = str(ROOT / "spaces" / "cats_dogs.py")


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def parse(*arguments: str) -> Request:
    return parse_request(arguments)


def saved(request: Request) -> Request:
    """Return a request as a run saves and reads it."""
    return request.with_absolute_paths()


def test_without_options_the_default_space_is_searched():
    options = parse()
    assert options.space.samefile(ROOT / "spaces" / "digits.py")
    assert re.fullmatch(r"digits-\d{8}-\d{6}", options.name)
    assert (options.out, options.folder) == (Path("results"), Path("results") / options.name)
    assert (options.seed, options.sampler, options.scheduler) == (0, "tpe", "asha")
    assert (options.finalists, options.probe, options.quiet) == (None, True, False)
    assert load_requested_space(options) == load_space(options.space)
    for name in ("data", "external", "weights", "backbones", "limit", "trials", "epochs", "folds"):
        assert getattr(options, name) is None
    assert (options.classes, options.image_size, options.constants) == (None, None, None)


def test_photos_are_searched_where_there_are_images_and_no_space():
    options = parse("--data", "d")
    assert options.space.samefile(ROOT / "spaces" / "photos.py")
    assert options.name.startswith("photos-")
    assert not options.names_space
    assert parse("--data", "d", "--space", "digits").space.samefile(ROOT / "spaces" / "digits.py")
    assert parse("--data", "d", "--resume", "o/n").space == Path("o/n/space.py")


def test_outside_the_checkout_the_default_space_is_the_packages(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse().space.samefile(ROOT / "spaces" / "digits.py")
    for text in ("tools", "tools.py", "spaces/tools.py"):
        assert parse("--space", text).space.samefile(ROOT / "spaces" / "tools.py")


def test_all_options():
    options = parse(
        *("--space", CATS_DOGS, "--data", "d", "--external", "e", "--weights", "w"),
        *("--backbones", " cnn, resnet18,cnn,", "--limit", "100", "--trials", "7"),
        *("--epochs", "3", "--folds", "4", "--finalists", "2", "--time-budget", "30m"),
        *("--max-concurrent", "2", "--seed", "9", "--sampler", "grid", "--scheduler", "none"),
        *("--no-probe", "--out", "o", "--name", "n", "--address", "auto"),
        *("--storage", "s3://bucket/searches", "--classes", " dog,cat", "--image-size", "96"),
        *("--set", "lr=1e-3", "--set", "class_weights=true", "--batch-size", "16"),
        "--quiet",
    )
    assert options == Request(
        space=Path(CATS_DOGS),
        data=Path("d"),
        external=Path("e"),
        exclude=None,
        weights=Path("w"),
        backbones=("cnn", "resnet18"),
        limit=100,
        trials=7,
        epochs=3,
        folds=4,
        finalists=2,
        time_budget_seconds=1800.0,
        max_concurrent=2,
        seed=9,
        sampler="grid",
        scheduler="none",
        probe=False,
        out=Path("o"),
        name="n",
        resume=None,
        address="auto",
        storage="s3://bucket/searches",
        quiet=True,
        verbose=False,
        names_space=True,
        classes=("dog", "cat"),
        image_size=96,
        constants={"lr": 0.001, "class_weights": True, "batch_size": 16},
    )
    space = load_requested_space(options)
    assert (space.trials, space.epochs, space.folds) == (7, 3, 4)
    assert space.backbones == ("cnn", "resnet18")
    assert [first["backbone"] for first in space.first_trials] == ["cnn"]
    assert (space.source.classes, space.image_size, space.cache_size) == (("dog", "cat"), 96, 110)
    assert space.constants == {
        **{"scheduler": "cosine", "lr": 0.001, "class_weights": True, "batch_size": 16}
    }
    assert [first["lr"] for first in space.first_trials] == [0.001]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5m", 90), ("2h", 7200), (" 10 m ", 600), ("1h30m", 5400), ("2d", 172800)],
)
def test_a_time_budget(text, seconds):
    assert parse("--time-budget", text).time_budget_seconds == seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "argument --trials: must be a whole number >= 1, but got '0'"),
        (["--trials", "many"], "argument --trials: must be a whole number >= 1, but got 'many'"),
        (["--trials", "2.5"], "argument --trials: must be a whole number >= 1, but got '2.5'"),
        (["--epochs", "-1"], "argument --epochs: must be a whole number >= 1, but got '-1'"),
        (["--folds", "1"], "argument --folds: must be a whole number >= 2, but got '1'"),
        (["--finalists", "0"], "argument --finalists: must be a whole number >= 1, but got '0'"),
        (
            ["--max-concurrent", "0"],
            "argument --max-concurrent: must be a whole number >= 1, but got '0'",
        ),
        (["--limit", "9"], "argument --limit: must be a whole number >= 10, but got '9'"),
        (
            ["--seed", "-1"],
            "argument --seed: must be a whole number >= 0 and <= 4294967295, but got '-1'",
        ),
        (
            ["--seed", "4294967296"],
            "argument --seed: must be a whole number >= 0 and <= 4294967295, but got '4294967296'",
        ),
        (["--sampler", "tpee"], "argument --sampler: invalid choice: 'tpee'"),
        (["--scheduler", "pbt"], "argument --scheduler: invalid choice: 'pbt'"),
        (["--backbones", ","], "argument --backbones: must name at least one backbone"),
        (
            ["--backbones", "resnet19,cnn,convnet"],
            "argument --backbones: there is no backbone 'resnet19'; did you mean 'resnet18'?; there"
            " is no backbone 'convnet'; did you mean 'convnext_tiny'? (there are: tinynet, cnn,",
        ),
        (
            ["--classes", "cat"],
            "argument --classes: must name two classes or more, such as cat,dog",
        ),
        (
            ["--image-size", "8"],
            "argument --image-size: must be a whole number >= 16 and <= 1024, but got '8'",
        ),
        (
            ["--batch-size", "0"],
            "argument --batch-size: 1 <= batch_size <= 65536 must hold, but got 0",
        ),
        (["--set", "lr"], "argument --set: must be NAME=VALUE, such as lr=1e-3, but got 'lr'"),
        (["--set", "lr="], "argument --set: must be NAME=VALUE, such as lr=1e-3, but got 'lr='"),
        (["--set", "lr=20"], "argument --set: 1e-08 <= lr <= 10 must hold, but got 20.0"),
        (["--set", "lr=fast"], "argument --set: 1e-08 <= lr <= 10 must hold, but got 'fast'"),
        (
            ["--set", "lrr=1"],
            "argument --set: there is no hyperparameter 'lrr'; did you mean 'lr'?",
        ),
        (
            ["--set", "image_size=96"],
            "argument --set: 'image_size' is no hyperparameter, but an option: --image-size 96",
        ),
        (
            ["--set", "views=3"],
            "argument --set: 'views' is no hyperparameter, but a field of the space: change a copy",
        ),
        (
            ["--set", "batch_size=8", "--batch-size", "16"],
            "batch_size is set to both 8 and 16: give one of them",
        ),
        (
            ["--set", "backbone=cnn", "--backbones", "cnn"],
            "--set backbone=NAME and --backbones exclude each other: give one of them",
        ),
        (["--epoch", "3", "--bogus"], "unrecognized arguments: --bogus (see"),
        (["--trails", "3"], "unrecognized arguments: --trails 3; did you mean '--trials'?"),
        (["spaces"], "unrecognized arguments: spaces; did you mean --data spaces?"),
        (["--space"], "argument --space: expected one argument"),
        *(
            (
                [f"--time-budget={text}"],
                "argument --time-budget: must be a time such as 90s, 30m, 1h30m or 2d, but got"
                f" {text!r}",
            )
            for text in ("0m", "soon", "m", "1h30", "30m1h", "", "inf", "-5m")
        ),
    ],
)
def test_a_bad_argument_is_one_message_and_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        parse_request(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.endswith(" (see --help)\n")
    assert err.count("\n") == 1


def test_an_unknown_backbone_lists_all_backbones(capsys):
    with pytest.raises(SystemExit):
        parse("--backbones", "mobilenet")
    err = capsys.readouterr().err
    assert "there is no backbone 'mobilenet'; did you mean 'mobilenet_v2'?" in err
    assert f"(there are: {BACKBONE_NAMES})" in err


def test_the_help_shows_commands_to_copy(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "  python -m search.run --data photos --time-budget 30m\n" in out
    assert "%(default)s" not in out


def test_a_change_that_breaks_a_rule_of_the_space():
    with pytest.raises(SpaceError) as caught:
        load_requested_space(parse("--folds", "101", "--epochs", "20000"))
    assert caught.value.problems == (
        "1 <= epochs <= 10000 must hold, but got 20000",
        "2 <= folds <= 100 must hold, but got 101",
    )


def test_a_space_that_does_not_exist():
    with pytest.raises(SpaceError, match=r"there is no such file; did you mean 'spaces/digits.py'"):
        load_requested_space(parse("--space", "spaces/digit.py"))


def test_a_resumed_run_keeps_its_request():
    first = parse(
        *("--space", CATS_DOGS, "--data", "/images", "--backbones", "cnn", "--limit", "50"),
        *("--trials", "5", "--epochs", "3", "--time-budget", "1h", "--seed", "3"),
        *("--sampler", "random", "--scheduler", "none", "--no-probe", "--out", "o", "--name", "n"),
        *("--classes", "cat,dog", "--image-size", "64", "--set", "lr=0.1"),
    )
    again = parse("--resume", "o/n")
    assert again.space == Path("o/n/space.py")
    assert again.folder == Path("o/n")
    merged = merge_with_saved(again, saved(first))
    for name in (
        *("data", "backbones", "limit", "trials", "epochs", "time_budget_seconds", "seed"),
        *("sampler", "scheduler", "probe", "external", "weights", "folds"),
        *("classes", "image_size", "constants"),
    ):
        assert getattr(merged, name) == getattr(first, name), name


@pytest.mark.parametrize(
    ("first", "again", "message"),
    [
        ("--set lr=0.1", "--set lr=0.2", "--set of a run cannot change: it began with lr=0.1"),
        ("--set lr=0.1", "--batch-size 8", "but got batch_size=8; omit the option"),
        ("", "--warm-start a", "--warm-start of a run cannot change: it began without it"),
        ("", "--image-size 64", "--image-size of a run cannot change: it began without it"),
        ("--group-by a", "--group-by b", "--group-by of a run cannot change: it began with a"),
        ("", "--label-column x", "--label-column of a run cannot change: it began without it"),
        ("--metric log_loss", "--metric roc_auc", "it began with log_loss, but got roc_auc"),
        ("--classes a,b", "--classes b,a", "it began with a,b, but got b,a; omit the option"),
        ("--backbones cnn", "--backbones tinynet", "it began with cnn, but got tinynet"),
    ],
)
def test_a_resumed_run_refuses_what_would_change_its_trials(first, again, message):
    before = saved(parse(*first.split()))
    assert merge_with_saved(parse("--resume", "o/n", *first.split()), before)
    with pytest.raises(RequestError, match=message):
        merge_with_saved(parse("--resume", "o/n", *again.split()), before)


def test_a_resumed_run_takes_changed_options():
    first = parse("--data", "d", "--trials", "5", "--epochs", "3", "--seed", "3")
    again = parse(
        *("--resume", "o/n", "--trials", "9", "--data", "moved", "--time-budget", "2m"),
        *("--finalists", "3", "--max-concurrent", "1", "-q"),
    )
    merged = merge_with_saved(again, saved(first))
    assert (merged.trials, merged.epochs, merged.data) == (9, 3, Path("moved"))
    assert merged.time_budget_seconds == 120
    assert (merged.finalists, merged.max_concurrent, merged.quiet) == (3, 1, True)
    assert merged.seed == 3, "another seed would split the images differently"


def test_the_runs_folder_in_storage():
    assert parse().shared is None
    shared = parse("--storage", "s3://b/searches", "--name", "mine").shared
    assert (shared.url, shared.folder) == ("s3://b/searches", "mine")
    shared = parse("--storage", "/nfs/s", "--resume", "results/yours").shared
    assert (shared.url, shared.folder) == ("/nfs/s", "yours")


def test_a_job_must_not_write_its_results_to_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    with pytest.raises(RequestError, match=r"--out must be an absolute path in a Ray job"):
        check_output_path(parse_request([]))
    with pytest.raises(RequestError, match=r"--resume must be an absolute path.*got results/mine"):
        check_output_path(parse_request(["--resume", "results/mine"]))
    check_output_path(parse_request(["--out", "/home/me/results"]))
    monkeypatch.chdir(tmp_path)
    check_output_path(parse_request([]))


def test_a_path_must_be_text() -> None:
    check_paths(parse_request(["--data", "Bilder für später"]))
    with pytest.raises(RequestError) as caught:
        check_paths(parse_request(["--data", "/im\udcff"]))
    assert str(caught.value) == r"--data must be UTF-8, but got '/im\udcff': rename the folder"


def test_labels_and_groups_change_the_source(tmp_path):
    (tmp_path / "labels.csv").touch()
    words = ["--labels", str(tmp_path / "labels.csv"), "--image-column", "x", "--group-column", "g"]
    request = parse(*words)
    assert request.data == tmp_path  # where the table lies
    assert request.space.stem == "photos"
    source = load_requested_space(request).source
    table = source.table
    assert (table.path, table.image, table.label) == (tmp_path / "labels.csv", "x", None)
    assert (table.group, source.group_by) == ("g", None)
    assert load_requested_space(parse("--data", "d", "--group-by", "^a")).source.group_by == "^a"
    with pytest.raises(SourceError, match="--label-column names a column of a table, but there is"):
        load_requested_space(parse("--data", "d", "--label-column", "y"))


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is saved for a resumed run must not depend on the shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--data=~/photos", "--external=~/b.zip", "--out=~/results", "--labels=~/l.csv"]
    saved = parse_request(words).with_absolute_paths()
    assert (saved.data, saved.external) == (tmp_path / "photos", tmp_path / "b.zip")
    assert (saved.out, saved.labels) == (tmp_path / "results", tmp_path / "l.csv")
    assert parse_request(["--data=~no-such-user/x"]).data == Path("~no-such-user/x")
    assert parse_request(["--space=~no-such-user/x.py"]).space == Path("~no-such-user/x.py")


def test_earlier_runs_are_named_by_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/me")
    request = parse("--warm-start", "results/a, ~/b,results/a")
    assert request.warm_start == ("/results/a", "/home/me/b")
    assert saved(request).warm_start == request.warm_start
    with pytest.raises(SystemExit):
        parse("--warm-start", ",")


def test_a_resumed_run_is_given_some_of_its_constants_again() -> None:
    before = saved(parse("--data", "d", "--set", "lr=0.1", "--batch-size", "8"))
    merged = merge_with_saved(parse("--resume", "o/n", "--batch-size", "8"), before)
    assert merged.constants == {"lr": 0.1, "batch_size": 8}
    with pytest.raises(RequestError, match="--set of a run cannot change: it began with lr"):
        merge_with_saved(parse("--resume", "o/n", "--set", "dropout=0"), before)


def test_a_table_in_an_archive_is_found_again(tmp_path: Path) -> None:
    words = ("--data", str(tmp_path / "set.zip"), "--labels", "meta/labels.csv")
    assert saved(parse(*words)).labels == Path("meta/labels.csv")
    (tmp_path / "labels.csv").touch()
    there = parse("--labels", str(tmp_path / "labels.csv"))
    assert saved(there).labels == tmp_path / "labels.csv"


@pytest.mark.parametrize("before", ["", "file://"])
def test_a_run_is_not_its_own_copy(tmp_path: Path, before: str) -> None:
    words = ["--name", "mine", "--out", str(tmp_path / "results"), "--storage"]
    (tmp_path / "link").symlink_to(tmp_path / "results")
    for storage in (tmp_path / "results", tmp_path / "link"):
        with pytest.raises(RequestError, match=r"--storage must be another folder than --out"):
            check_output_path(parse_request([*words, f"{before}{storage}"]))
    check_output_path(parse_request([*words, f"{before}{tmp_path}"]))
    check_output_path(parse_request([*words, f"s3:/{tmp_path / 'results'}"]))
