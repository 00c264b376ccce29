"""The tasks of both papers, and a few that a small model can learn.

Prompts of the reasoning tasks are those of DALorRA's Table 4, split into a template and its
constant tail. Three choices that the table leaves open:

* The choices of ARC, OpenBookQA and MMLU are one field, since some ARC items have three or five.
* A mixture is answered by one adapter, which has one answer cue. BoolQ's prompt ends in "." and
  the others' in " Answer:", so inside a mixture BoolQ's is followed by " Answer:" too.
* `combined` holds Winogrande's validation split twice, once for each of its two training sets,
  because Table 3 counts it twice (7,173).

Label texts are one token each in the SmolLM2 and in the Llama 3 tokenizer, but for the intents.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from training.tasks.intents import BANKING77, CLINC150
from training.tasks.task import HubData, Task

_SELECT = "Select one of the choices that answers the following question: {question} Choices:"
_ANSWER = " Answer:"
_SENTIMENT = {"negative": " negative", "positive": " positive"}


def _letters(last: str) -> dict[str, str]:
    return {letter: f" {letter}" for letter in "ABCDE"[: "ABCDE".index(last) + 1]}


_TRUTH = {"True": " True", "False": " False"}


def _winogrande(size: str, examples: str) -> Task:
    return Task(
        name=f"winogrande_{size}",
        description=f"Which of two options fills the blank; {examples} training examples.",
        template=f"{_SELECT} A. {{option1}}. B. {{option2}}.",
        answer_cue=_ANSWER,
        labels=_letters("B"),
        columns={"question": "sentence"},
        label_column="answer",
        label_values={"1": "A", "2": "B"},
        hub=HubData(id="allenai/winogrande", config=f"winogrande_{size}"),
        # The published sizes differ in their training set only.
        files={"train": f"winogrande/train_{size}", "validation": "winogrande/validation"},
    )


def _multiple_choice(
    name: str,
    description: str,
    hub: HubData,
    *,
    last: str,
    question: str = "question",
    answer: str = "answerKey",
    evaluation_split: str = "validation",
) -> Task:
    return Task(
        name=name,
        description=description,
        template=f"{_SELECT} {{choices}}",
        answer_cue=_ANSWER,
        labels=_letters(last),
        columns={"question": question},
        label_column=answer,
        choices_column="choices",
        hub=hub,
        evaluation_split=evaluation_split,
    )


def _arc(level: str) -> Task:
    return _multiple_choice(
        f"arc_{level.lower()}",
        f"Grade-school science questions, the {level.lower()} set.",
        HubData(id="allenai/ai2_arc", config=f"ARC-{level}"),
        last="E",
    )


def _mmlu(subject: str) -> Task:
    return _multiple_choice(
        f"mmlu_{subject}",
        f"MMLU, {subject.replace('_', ' ')}: evaluation only, a large shift from science exams.",
        HubData(id="cais/mmlu", config=subject),
        last="D",
        answer="answer",
        evaluation_split="test",
    )


def _boolq(name: str, description: str) -> Task:
    return Task(
        name=name,
        description=description,
        template="Answer the question with only True or False: {question} Context: {passage}",
        answer_cue=".",
        labels=_TRUTH,
        label_column="answer",
        hub=HubData(id="google/boolq"),
    )


def _review(name: str, description: str, hub: str, column: str, split: str) -> Task:
    return Task(
        name=name,
        description=description,
        template="Review: {sentence}",
        answer_cue="\nSentiment:",
        labels=_SENTIMENT,
        columns={"sentence": column},
        label_values={"0": "negative", "1": "positive"},
        hub=HubData(id=hub),
        evaluation_split=split,
    )


def _mixture(name: str, description: str, labels: dict[str, str], *members: str) -> Task:
    return Task(
        name=name,
        description=description,
        template="{prompt}",
        answer_cue=_ANSWER,
        labels=labels,
        members=members,
    )


_TREC = Task(
    name="trec",
    description="What kind of answer a question asks for, six coarse classes.",
    template="Question: {text}",
    answer_cue="\nType:",
    labels={
        "abbreviation": " abbreviation",
        "entity": " entity",
        "description": " description",
        "person": " person",
        "location": " location",
        "number": " number",
    },
    label_column="coarse_label",
    # The hub numbers the classes; files carry their names.
    label_values={
        **dict.fromkeys(("ABBR", "0"), "abbreviation"),
        **dict.fromkeys(("ENTY", "1"), "entity"),
        **dict.fromkeys(("DESC", "2"), "description"),
        **dict.fromkeys(("HUM", "3"), "person"),
        **dict.fromkeys(("LOC", "4"), "location"),
        **dict.fromkeys(("NUM", "5"), "number"),
    },
    # The main branch is a loading script, which `datasets` no longer runs.
    hub=HubData(id="CogComp/trec", revision="refs/convert/parquet"),
    evaluation_split="test",
)

_AG_NEWS = Task(
    name="ag_news",
    description="The section that a news item belongs to, four classes.",
    template="News: {text}",
    answer_cue="\nTopic:",
    labels={
        "World": " World",
        "Sports": " Sports",
        "Business": " Business",
        "Sci/Tech": " Technology",
    },
    label_values={"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"},
    # The hub has no validation split; its test split is what is published for scoring.
    hub=HubData(id="fancyzhx/ag_news", splits={"validation": "test"}),
)


def _intents(
    name: str, cue: str, description: str, labels: Sequence[str], hub: HubData, **options: Any
) -> Task:
    return Task(
        name=name,
        description=description,
        template="Message: {text}",
        answer_cue=f"\n{cue}:",
        labels={label: f" {label.replace('_', ' ').rstrip('?')}" for label in labels},
        hub=hub,
        evaluation_split="test",
        **options,
    )


_CLINC = HubData(id="clinc/clinc_oos", config="plus")

_ALL = (
    _review(
        "sst2",
        "Sentiment of sentences from film reviews.",
        "stanfordnlp/sst2",
        "sentence",
        "validation",
    ),
    _review(
        "rotten_tomatoes",
        "Sentiment of film reviews: a near shift from sst2, with its prompt.",
        "cornell-movie-review-data/rotten_tomatoes",
        "text",
        "test",
    ),
    _TREC,
    _AG_NEWS,
    _intents(
        "banking77",
        "The customer wants to know about",
        "What a customer of a bank wants, 77 intents.",
        BANKING77,
        # The main branch is a loading script.
        HubData(id="PolyAI/banking77", revision="refs/convert/parquet"),
    ),
    _intents(
        "clinc150",
        "Intent",
        "What a user of an assistant wants, 150 intents; out-of-scope texts are left out.",
        CLINC150,
        _CLINC,
        label_column="intent",
        out_of_scope=("oos",),
    ),
    _intents(
        "clinc150_oos",
        "Intent",
        "The same with out of scope as the 151st intent; local files lie in a folder clinc150.",
        (*CLINC150, "oos"),
        _CLINC,
        label_column="intent",
        files={split: f"clinc150/{split}" for split in ("train", "validation", "test")},
    ),
    _winogrande("s", "640"),
    _winogrande("m", "2,558"),
    _arc("Challenge"),
    _arc("Easy"),
    _multiple_choice(
        "openbookqa",
        "Elementary science questions that need a common-sense step.",
        HubData(id="allenai/openbookqa", config="main"),
        last="D",
        question="question_stem",
    ),
    _boolq("boolq", "Yes-or-no questions; the context is empty where the data have no passage."),
    _boolq("boolq_passage", "BoolQ from a local folder of that name, every row with its passage."),
    _mmlu("college_chemistry"),
    _mmlu("college_physics"),
    _mixture(
        "aao",
        "ARC-Easy, ARC-Challenge and OpenBookQA together.",
        _letters("E"),
        "arc_easy",
        "arc_challenge",
        "openbookqa",
    ),
    _mixture(
        "wb",
        "Winogrande-Medium and BoolQ together.",
        _letters("B") | _TRUTH,
        "winogrande_m",
        "boolq",
    ),
    _mixture(
        "combined",
        "All six reasoning tasks with the unified label set.",
        _letters("E") | _TRUTH,
        "winogrande_s",
        "arc_challenge",
        "arc_easy",
        "winogrande_m",
        "openbookqa",
        "boolq",
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""Built-in tasks by name."""
