"""tools/plan.py: the published recipe on one node, and one line for what cannot be planned."""

import pytest
from scripts import refused


def test_the_published_recipe_on_one_node(inline):
    status, out, err = inline("plan", "olmo2_7b", "--gpus", 8, "--gpu-memory", "80GB")
    assert status == 0, err
    (about,) = (line for line in out.splitlines() if line.startswith("math-midtrain"))
    assert about.startswith(
        "math-midtrain, code-midtrain: midtrain trains 4,328,783,872 of 11,626,795,008 parameters"
    )
    assert about.endswith(", 47,684 steps")
    assert out.count("as written: fits") == 5 and "does not fit" not in out
    rows = [line.split() for line in out.splitlines() if line.startswith("proposed")]
    assert len(rows) == 2 * 5  # what a GPU holds, and what the stage takes
    heads = [line.split() for line in out.splitlines() if line.lstrip().startswith("s/step")]
    without = ["s/step", "steps", "checkpoints", "folders", "stage"]
    sampling = [*without[:2], "sampling", *without[2:]]
    assert heads == [without, without, sampling, sampling, without]
    status, out, err = inline(
        "plan", "olmo2_7b", "--gpus", 8, "--gpu-memory", "80GB", "--stage", "route", "--mfu", 0.2
    )
    assert status == 0, err
    assert "final: route trains 655,360" in out and "math-midtrain" not in out


def test_a_changed_stage(inline):
    given = ("plan", "olmo2_7b", "--gpus", 8, "--gpu-memory", "80GB", "--stage", "rlvr")
    status, out, err = inline(*given, "--set", "experts.*.rlvr.rl.slots=64")
    assert status == 0, err
    assert out.count("as written: does not fit") == 2
    change = ["experts.math.rlvr.parallel.tensor=3", "experts.math.rlvr.sequence=6144"]
    status, out, err = inline(*given, "--set", *change)
    assert (
        status == 0
        and "as written: does not divide: stage rlvr: tensor 3 x pipeline 1 = 3 does not divide the 8 proc"
        in out
    )


def test_what_does_not_fit_is_told_with_the_number_that_does(inline):
    status, out, err = inline("plan", "olmo2_7b", "--gpus", 1, "--gpu-memory", "40GB", "--stage", "midtrain")
    assert status == 1 and "proposed: none fits" in out
    assert (
        err.startswith("error: no layout of 1 GPUs of 40 GB holds math-midtrain, code-midtrain (")
        and "GPUs hold it" in err
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("huge --gpus 8 --gpu-memory 80GB", "recipe huge: not found"),
        ("olmo2_7b --gpus 7 --gpu-memory 80GB", "no layout of 7 GPUs divides 128 rows"),
        ("olmo2_7b --gpus 12 --gpu-memory 80GB", "12 GPUs are not whole nodes of 8"),
        ("olmo2_7b --gpus 0 --gpu-memory 80GB", "gpus expected above 0, got 0"),
        ("olmo2_7b --gpus 8 --gpu-memory 80", "memory expected as a number and one of MB, GB"),
        ("olmo2_7b --gpus 8 --gpu-memory lots", "such as 80GB, got 'lots'"),
        ("olmo2_7b --gpus 8 --gpu-memory 3GB", "has nothing left beside the 4 GB in reserve"),
        ("olmo2_7b --gpus 8 --gpu-memory 80GB --mfu 0", "mfu expected above 0, got 0"),
        ("olmo2_7b --gpus 8 --gpu-memory 80GB --mfu 40", "mfu expected at most 1, got 40"),
        ("olmo2_7b --gpus 8 --gpu-memory 80GB --disk 0GB", "disk expected above 0, got 0"),
        ("olmo2_7b --gpus 8 --gpu-memory 80GB --disk 2", "--disk expected as a number and one of MB, GB"),
        (
            "olmo2_7b --gpus 8 --gpu-memory 80GB --memory-bandwidth fast",
            "--memory-bandwidth expected as a number and one of MB, GB",
        ),
        ("olmo2_7b --gpus 8 --gpu-memory 80GB --stage cooking", "--stage cooking: expected one of"),
        (
            "olmo2_7b --gpus 8 --gpu-memory 80GB --stage merge",
            "--stage merge: expected one that trains, got none",
        ),
        ("olmo2_7b --gpus 8 --gpu-memory 80GB --set route.batch=none", "route.batch must be int, got 'none'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, inline):
    assert message in refused(inline("plan", *arguments.split()))
