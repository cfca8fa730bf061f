"""The examples, with settings that take seconds."""

import re

import pytest

from examples import language_model, vit

SMALL = {
    vit: ["--subnet-epochs", "1", "--finetune-epochs", "1", "--train-size", "64"],
    language_model: ["--subnet-steps", "2", "--finetune-steps", "2", "--batch-size", "2"],
}


@pytest.mark.parametrize("example", SMALL, ids=lambda example: example.__name__)
def test_an_example_tells_the_loss_of_every_stage(capsys, example):
    example.main(SMALL[example])
    said = capsys.readouterr().out
    stages = [said.index(word) for word in ("sub-networks", "composed", "fine-tuned", "scratch")]
    assert stages == sorted(stages)
    assert len(re.findall(r"\d\.\d{3}", said)) == 7  # losses: four sub-networks, and three
    assert float(re.search(r"of a layer (\S+?)\)", said)[1]) <= 1e-5
