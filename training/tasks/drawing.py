"""Draws questions about records: wording, options, names and descriptions, by a recipe.

All draws come from the generator that is handed in, so equal seeds make equal questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from dalorra.questions import NO, YES, Asked, Option, Question, as_text
from dalorra.templates import filled
from training.tasks.recipe import MEANING, NAME, Answer, Recipe, Scale, StateForm, Way
from training.tasks.task import Example, Task

NONE_NAMES: Final = ("none of these", "other", "something else", "none", "not listed", "unclear")
"""What the option is called that is right where no other is."""

_NONE, _DESCRIBED, _DENIED, _NEAR = 0.25, 0.4, 0.25, 0.5  # how often each is drawn
_WEIGHTS: Final = {"choice": 2.0, "noul": 2.0, "score": 1.0}
_STYLES: Final[tuple[tuple[float, Callable[[str], str]], ...]] = (
    (0.6, str),
    (0.2, lambda name: name[:1].upper() + name[1:]),
    (0.2, lambda name: name.replace(" ", "_")),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A question about a record, and what answers it.

    Attributes:
        question: what is asked.
        right: names of the options that may be right; the recipe does not know which.
        elsewhere: the option that is right about a state of another set; None: that is open.
    """

    question: Question
    right: tuple[str, ...]
    elsewhere: str | None = None

    def about(self, state: str, kind: str) -> Example:
        """Asked about the record's own state."""
        return self._example(state, self.right, kind)

    def about_another(self, state: str, kind: str) -> Example:
        """Asked about a state that does not answer it, unless to say so is one of the options."""
        names = tuple(option.name for option in self.question.options)
        return self._example(state, (self.elsewhere,) if self.elsewhere else names, kind)

    def _example(self, state: str, right: Sequence[str], kind: str) -> Example:
        asked = Asked(state, self.question)
        if len(right) == 1:
            return Example(asked, right[0], kind=kind)
        target = tuple(
            1 / len(right) if option.name in right else 0.0 for option in self.question.options
        )
        return Example(asked, "", target, kind)


class Drawing:
    """Draws questions about the records of one task.

    Args:
        recipe: of the task.
        task: gives the order of the labels.

    Raises:
        ConfigError: they do not fit.
    """

    def __init__(self, recipe: Recipe, task: Task) -> None:
        recipe.check(task)
        self._recipe = recipe
        self._labels = tuple(task.labels)
        self._of_labels = [_named(label, recipe.labels[label]) for label in recipe.labels]
        self._label_at = {label: at for at, label in enumerate(recipe.labels)}

    def draw(self, item: Example, dice: Random, *, of_record: bool = False) -> tuple[Drawn, str]:
        """A question about a record, and a state that goes with it.

        Args:
            item: of `Task.with_choices`.
            dice: decides everything.
            of_record: only questions that nothing but the record's state answers.
        """
        ways = [way for way in self._recipe.ways if way.about_record or not of_record]
        way = dice.choice(ways)
        state = _state(dice.choice(way.states), item.texts)
        forms: dict[str, Callable[[Way, Example, Random], Drawn]] = {}
        if way.choice:
            forms["choice"] = self._choice
        if way.asks or any(answer.asks for answer in self._of_labels):
            forms["noul"] = self._noul
        if way.scores and item.label in self._label_at:
            forms["score"] = self._score
        [form] = dice.choices(list(forms), [_WEIGHTS[form] for form in forms])
        return forms[form](way, item, dice), state

    def can_ask(self, item: Example) -> bool:
        """Whether the answers of a record differ, as those of a question have to."""
        names = [" ".join(answer.names[0].split()) for answer in self._answers(item)[0]]
        return len({*names, ""}) == len(names) + 1

    def _answers(self, item: Example) -> tuple[list[Answer], int | None]:
        """All answers that the question can have, and the place of the right one, if it is any."""
        if not self._recipe.choices:
            return self._of_labels, self._label_at.get(item.label)
        texts = item.texts
        fields = [field for field in self._recipe.choices if field in texts]
        right = self._recipe.choices[self._labels.index(item.label)]
        return [Answer(names=(texts[field].strip(),)) for field in fields], fields.index(right)

    def _choice(self, way: Way, item: Example, dice: Random) -> Drawn:
        answers, right = self._answers(item)
        chosen = self._options(answers, right, dice)
        none = self._recipe.none and (right is None or dice.random() < _NONE)
        if none and len(chosen) > 2 and dice.random() < 0.5:
            chosen = [at for at in chosen if at != right]
        version = dice.randrange(len(answers[0].names))
        spelt = self._style(dice)
        described = all(a.means for a in answers) and dice.random() < _DESCRIBED
        options = [
            Option(
                spelt(answers[at].names[version]),
                self._meaning(answers[at], dice) if described else "",
            )
            for at in chosen
        ]
        other = spelt(dice.choice(NONE_NAMES)) if none else None
        if other is not None:
            options.append(Option(other))
        label = options[chosen.index(right) if right in chosen else -1].name
        dice.shuffle(options)
        instructions = _text(dice.choice(way.choice), item.texts)
        return Drawn(Question("choice", instructions, tuple(options)), (label,), other)

    def _options(self, answers: Sequence[Answer], right: int | None, dice: Random) -> list[int]:
        """Places of the answers that are options, the right one among them."""
        fewest, most = self._recipe.options or (len(answers), len(answers))
        most = min(most, len(answers))
        count = fewest + int((most - fewest + 1) * dice.random() ** 2)  # few more often than many
        others = self._others(answers, right, dice)
        return ([] if right is None else [right]) + others[: count - (right is not None)]

    def _others(self, answers: Sequence[Answer], right: int | None, dice: Random) -> list[int]:
        """Places of all wrong answers in some order, sometimes those that are alike first."""
        others = [at for at in range(len(answers)) if at != right]
        dice.shuffle(others)
        if right is not None and dice.random() < _NEAR:
            words = set(answers[right].names[0].split())
            others.sort(key=lambda at: words.isdisjoint(answers[at].names[0].split()))
        return others

    def _noul(self, way: Way, item: Example, dice: Random) -> Drawn:
        answers, right = self._answers(item)
        claimed = right
        if claimed is None or dice.random() < 0.5:
            claimed = self._others(answers, right, dice)[0]
        answer = answers[claimed]
        denied = bool(way.denies) and dice.random() < _DENIED
        wordings = way.denies if denied else (*way.asks, *answer.asks)
        template = dice.choice(wordings)
        about = {NAME: dice.choice(answer.names)}
        if answer.means:
            about[MEANING] = dice.choice(answer.means)
        meaning = ""
        if answer.means and dice.random() < _DESCRIBED:
            meaning = self._meaning(answer, dice)
        yes, no = ("", meaning) if denied else (meaning, "")
        topical = template not in answer.asks and self._recipe.elsewhere == "no"
        return Drawn(
            Question.noul(_text(template, {**item.texts, **about}), yes, no),
            (YES if (claimed == right) != denied else NO,),
            (YES if denied else NO) if topical else None,
        )

    def _score(self, way: Way, item: Example, dice: Random) -> Drawn:
        scale: Scale = dice.choice(way.scores)
        question = Question(
            "score",
            _text(dice.choice(scale.asks), item.texts),
            tuple(Option(level) for level in scale.levels),
        )
        return Drawn(question, tuple(lv for lv, lb in scale.levels.items() if lb == item.label))

    def _meaning(self, answer: Answer, dice: Random) -> str:
        template = dice.choice(self._recipe.means)
        return _text(template, {MEANING: dice.choice(answer.means)})

    def _style(self, dice: Random) -> Callable[[str], str]:
        """How names are spelt; those that a record brings stay as they are."""
        if self._recipe.choices:
            return str
        [style] = dice.choices([s for _, s in _STYLES], [weight for weight, _ in _STYLES])
        return style


def _named(label: str, answer: Answer) -> Answer:
    """With a name: that of the label, in words."""
    if answer.names:
        return answer
    return answer.model_copy(update={"names": (label.replace("_", " ").rstrip("?"),)})


def _state(form: StateForm, fields: Mapping[str, str]) -> str:
    if isinstance(form, str):
        return _text(form, fields)
    return as_text({name: _text(template, fields) for name, template in form.items()})


def _text(template: str, fields: Mapping[str, str]) -> str:
    return "".join(part.text for part in filled(template, fields))
