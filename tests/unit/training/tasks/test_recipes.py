from pathlib import Path
from typing import Any

import pytest
import yaml

from dalorra.errors import ConfigError
from training.tasks import TASKS
from training.tasks.recipe import read_recipe, recipes

RECIPE: dict[str, Any] = {
    "tasks": ["ag_news"],
    "ways": [{"states": ["{text}"], "choice": ["What is it?"], "asks": ["Is it {name}?"]}],
    "labels": {name: f"news of {name}" for name in TASKS["ag_news"].labels},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_fits_its_tasks_and_has_several_wordings(name):
    recipe = recipes()[name]
    recipe.check(TASKS[name])
    for way in recipe.ways:
        assert len(way.states) > 1
        asked = [*way.choice, *way.asks, *way.denies, *(a for s in way.scores for a in s.asks)]
        assert len(asked) == len(set(asked)) > 2


def test_the_sets_of_the_bundled_configuration_have_recipes():
    wanted = {"sst2", "rotten_tomatoes", "ag_news", "trec", "boolq_passage", "arc_easy"}
    wanted |= {"arc_challenge", "openbookqa", "winogrande_m", "clinc150", "banking77"}
    assert wanted <= set(recipes())


def test_a_text_alone_is_what_a_label_means(tmp_path):
    recipe = read_recipe(written(tmp_path))
    assert recipe.labels["World"].means == ("news of World",)
    recipe.check(TASKS["ag_news"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ["a"]}, "give either `labels` or `choices`"),
        ({"labels": {}}, "give either `labels` or `choices`"),
        ({"labels": {"a": {"names": ["x"]}, "b": {"names": []}}}, "equally many names"),
        ({"labels": {"a": {"asks": ["x?"]}, "b": {}}, "ways": [{"states": ["s"]}]}, "give `asks`"),
        (
            {
                "ways": [
                    {
                        "states": ["s"],
                        "asks": ["x?"],
                        "scores": [{"asks": ["y"], "levels": {"1": "z"}}],
                    }
                ]
            },
            "2 to 10 levels",
        ),
        (
            {
                "ways": [
                    {
                        "states": ["s"],
                        "asks": ["x?"],
                        "scores": [{"asks": ["y"], "levels": {"1": "World", "2": "z"}}],
                    }
                ]
            },
            "levels names 'z'",
        ),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_recipe_that_does_not_hold_together_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"World": "x"}}, "is in one of recipe and task alone"),
        ({"ways": [{"states": ["{title}"], "asks": ["x?"]}]}, "'{title}' has the field 'title'"),
        ({"ways": [{"states": ["{text}"], "choice": ["{name}?"], "asks": ["x?"]}]}, "field 'name'"),
    ],
)
def test_a_recipe_for_another_task_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, **changes)).check(TASKS["ag_news"])
