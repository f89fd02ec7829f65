"""ReFT learns: 30 steps from the shipped base raise the sampled accuracy."""

import pytest

from tests import runs


@pytest.mark.slow
def test_thirty_steps_of_reft_raise_the_sampled_accuracy(tmp_path):
    """1,000 questions, 256 a step: 7.68 epochs are 30 steps. Seen with the shipped base: .567 in the first five, .767 in the last."""
    path = tmp_path / "short.py"  # the demo's warm-up and ReFT, without the SFT baseline and the evaluation
    path.write_text(
        "from reft_jax.configs import common, demo\n\n\n"
        "def get_config(arg=''):\n"
        "    config = demo.get_config(arg).to_dict()\n"
        "    stages = {name: config['stages'][name] for name in ('warmup', 'reft')}\n"
        "    return common.ordered(config | dict(stages=stages))\n"
    )
    workdir = runs.run(tmp_path / "run", "--config.stages.reft.epochs=7.68", spec=str(path))
    lines = runs.lines(workdir / "reft" / "metrics.jsonl")
    accuracies = [line["reward/accuracy"] for line in lines if line["step"] > 0]
    assert len(accuracies) == 30
    first, last = sum(accuracies[:5]) / 5, sum(accuracies[-5:]) / 5
    print(
        f"sampled accuracy: first five steps {first:.3f}, last five {last:.3f}; dev {[line.get('eval/dev_accuracy') for line in lines]}"
    )
    assert last >= 0.70 and last >= first + 0.08, (first, last)
    assert max(line["ppo/first_ratio_error"] for line in lines[1:]) < 1e-4
    assert 0 < lines[-1]["kl/mean"] < 10
    assert lines[-1]["eval/dev_accuracy"] > lines[0]["eval/dev_accuracy"]
