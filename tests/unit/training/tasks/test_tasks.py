import json

import pytest
import yaml

from dalorra.errors import ConfigError
from tests.task_files import EXPECTED, RECORDS, TICKETS, choice, write_records
from training.tasks import TASKS, Task, load_examples, load_task

SELECT = "Select one of the choices that answers the following question: "


def prompt_of(task, example):
    return task.prompt_format.render(example.input) + task.answer_cue


# ------------------------------------------------------------------------- built-in tasks

BUILTIN = {
    "sst2": ({"idx": 7, "sentence": "a joy", "label": 1}, "Review: a joy\nSentiment:", "positive"),
    "rotten_tomatoes": ({"text": "dull", "label": 0}, "Review: dull\nSentiment:", "negative"),
    "trec": (
        {"text": "Who ?", "coarse_label": "HUM"},
        "Question: Who ?\nType:",
        "person",
    ),
    "ag_news": ({"text": "Oil up", "label": 2}, "News: Oil up\nTopic:", "Business"),
    "winogrande_s": (
        {"sentence": "Ann beat Bo so _ won.", "option1": "Ann", "option2": "Bo", "answer": "1"},
        f"{SELECT}Ann beat Bo so _ won. Choices: A. Ann. B. Bo. Answer:",
        "A",
    ),
    "arc_easy": (
        choice("Hot?", ["ice", "sun", "fog", "sea"], ["A", "B", "C", "D"], "B"),
        f"{SELECT}Hot? Choices: A. ice. B. sun. C. fog. D. sea. Answer:",
        "B",
    ),
    "openbookqa": (
        choice("Hot", ["ice", "sun", "fog", "sea"], ["A", "B", "C", "D"], "D", "question_stem"),
        f"{SELECT}Hot Choices: A. ice. B. sun. C. fog. D. sea. Answer:",
        "D",
    ),
    "mmlu_college_physics": (
        {"question": "c?", "choices": ["1", "2", "3", "4"], "answer": 2, "subject": "x"},
        f"{SELECT}c? Choices: A. 1. B. 2. C. 3. D. 4. Answer:",
        "C",
    ),
    "banking77": (
        {"text": "Where is it?", "label": "card_arrival"},
        "Message: Where is it?\nThe customer wants to know about:",
        "card_arrival",
    ),
    "boolq": (
        {"question": "is it wet", "passage": "It rains", "answer": False},
        "Answer the question with only True or False: is it wet Context: It rains.",
        "False",
    ),
}


@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_task_asks_as_table_4_does(name, tmp_path):
    record, prompt, label = BUILTIN[name]
    write_records(tmp_path / name / "validation.jsonl", [record])
    (example,) = load_examples(name, "validation", tmp_path)
    assert prompt_of(TASKS[name], example) == prompt
    assert example.label == label


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("winogrande_m", 2),
        ("arc_challenge", 5),
        ("arc_easy", 5),
        ("openbookqa", 4),
        ("boolq", 2),
        ("mmlu_college_chemistry", 4),
        ("mmlu_college_physics", 4),
        ("aao", 5),
        ("wb", 4),
        ("combined", 7),
        ("trec", 6),
        ("ag_news", 4),
        ("sst2", 2),
        ("banking77", 77),
        ("clinc150", 150),
        ("clinc150_oos", 151),
    ],
)
def test_label_spaces_are_those_of_table_3(name, labels):
    assert len(TASKS[name].labels) == labels
    # Every label text starts with a space, and no two are alike.
    texts = list(TASKS[name].labels.values())
    assert len(set(texts)) == labels
    assert all(text.startswith(" ") for text in texts)


def test_every_built_in_task_says_where_its_data_are():
    for task in TASKS.values():
        assert bool(task.hub) != bool(task.members)


def test_trec_takes_the_hubs_numbers_and_the_files_names(tmp_path):
    names = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
    records = [{"text": "?", "coarse_label": n} for n in names]
    by_name = load_examples("trec", "train", write_records(tmp_path / "a.jsonl", records))
    records = [{"text": "?", "coarse_label": i} for i in range(6)]
    by_number = load_examples("trec", "train", write_records(tmp_path / "b.jsonl", records))
    assert by_name == by_number
    assert [e.label for e in by_name] == list(TASKS["trec"].labels)


def test_arc_items_with_digits_three_or_five_choices_are_kept(tmp_path):
    records = [
        choice("q", ["a", "b", "c", "d"], ["1", "2", "3", "4"], "4"),
        choice("q", ["a", "b", "c"], ["A", "B", "C"], "C"),
        choice("q", ["a", "b", "c", "d", "e"], ["A", "B", "C", "D", "E"], "E"),
        choice("q", ["a", "b"], [1, 2], 2),
    ]
    path = write_records(tmp_path / "x.json", records)
    examples = load_examples("arc_challenge", "test", path)
    assert [e.label for e in examples] == ["D", "C", "E", "B"]
    assert examples[1].input["choices"] == "A. a. B. b. C. c."
    assert examples[2].input["choices"].endswith("E. e.")


def test_winogrande_sizes_share_their_validation_file_but_not_their_training_file(tmp_path):
    record = BUILTIN["winogrande_s"][0]
    for split in ("train", "validation"):
        write_records(tmp_path / "winogrande" / f"{split}.jsonl", [record])
    assert load_examples("winogrande_s", "validation", tmp_path)
    assert load_examples("winogrande_m", "validation", tmp_path)
    with pytest.raises(ConfigError, match=r"winogrande_m/train\.jsonl"):
        load_examples("winogrande_m", "train", tmp_path)


def test_a_mixture_asks_as_its_members_do_with_one_cue(tmp_path):
    for name in ("winogrande_m", "boolq"):
        record = BUILTIN["winogrande_s" if name == "winogrande_m" else name][0]
        write_records(tmp_path / name / "validation.jsonl", [record])
    choices, truth = load_examples("wb", "validation", tmp_path)
    assert prompt_of(TASKS["wb"], choices) == BUILTIN["winogrande_s"][1]
    assert prompt_of(TASKS["wb"], truth) == BUILTIN["boolq"][1] + " Answer:"
    assert [choices.label, truth.label] == ["A", "False"]


def test_combined_has_all_six_members_in_every_split(tmp_path):
    records = {
        "winogrande_s": "winogrande_s",
        "winogrande_m": "winogrande_s",
        "boolq": "boolq",
        "arc_easy": "arc_easy",
        "arc_challenge": "arc_easy",
        "openbookqa": "openbookqa",
    }
    for name, like in records.items():
        write_records(tmp_path / name / "train.jsonl", [BUILTIN[like][0]])
    examples = load_examples("combined", "train", tmp_path)
    assert sorted(e.label for e in examples) == ["A", "A", "B", "B", "D", "False"]


def test_a_mixture_refuses_one_file(tmp_path):
    path = write_records(tmp_path / "x.jsonl", RECORDS)
    with pytest.raises(ConfigError, match="needs a folder"):
        load_examples("aao", "train", path)


# ----------------------------------------------------------------------------- user tasks


def test_a_task_written_in_yaml(tmp_path):
    path = tmp_path / "tickets.yaml"
    path.write_text(yaml.safe_dump(TICKETS))
    task = load_task(path)
    assert task == load_task(TICKETS) == Task.model_validate(TICKETS)
    assert (
        load_examples(task, "train", write_records(tmp_path / "records.jsonl", RECORDS)) == EXPECTED
    )


def test_words_that_yaml_took_for_booleans_are_words(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("{name: t, template: '{q}', answer_cue: ':', labels: {no: ' no', yes: ' yes'}}")
    assert load_task(path).labels == {"no": " no", "yes": " yes"}
    path.write_text("{name: t, template: '{q}', answer_cue: ':', labels: [on, off, true]}")
    assert list(load_task(path).labels) == ["on", "off", "True"]


def test_out_of_scope_records_are_left_out_unless_asked_for(tmp_path):
    records = [{"text": "freeze it", "intent": "freeze_account"}, {"text": "?", "intent": "oos"}]
    path = write_records(tmp_path / "clinc150" / "train.jsonl", records)
    assert [e.label for e in load_examples("clinc150", "train", tmp_path)] == ["freeze_account"]
    for task in (
        load_examples("clinc150", "train", path, out_of_scope=True),
        load_examples("clinc150_oos", "train", tmp_path),
    ):
        assert [example.label for example in task] == ["freeze_account", "oos"]
    with pytest.raises(ConfigError, match="out_of_scope names 'oos', which a label answers"):
        load_task(TASKS["clinc150_oos"].model_dump() | {"out_of_scope": ["oos"]})


def test_yaml_booleans_are_labels_too():
    task = load_task(
        yaml.safe_load(
            "{name: t, template: '{q}', answer_cue: ':', labels: {True: ' True', False: ' False'}}"
        )
    )
    assert list(task.labels) == ["True", "False"]
    assert task.example({"q": "?", "label": True}, "here").label == "True"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("layout", ["file", "folder", "named folder"])
def test_every_kind_of_file_and_layout_gives_the_same_examples(tmp_path, suffix, layout):
    where = {"file": "data", "folder": "train", "named folder": "tickets/train"}[layout]
    path = write_records(tmp_path / f"{where}{suffix}", RECORDS)
    source = path if layout == "file" else str(tmp_path)
    assert load_examples(Task.model_validate(TICKETS), "train", source) == EXPECTED


def test_choices_survive_parquet(tmp_path):
    records = [BUILTIN["arc_easy"][0]]
    path = write_records(tmp_path / "x.parquet", records)
    assert load_examples("arc_easy", "test", path)[0].label == "B"


def test_a_byte_order_mark_and_blank_lines_are_not_data(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(RECORDS[0]), "", json.dumps(RECORDS[1]), ""]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert load_examples(Task.model_validate(TICKETS), "train", path) == EXPECTED


def test_label_values_may_be_left_out(tmp_path):
    task = Task.model_validate({**TICKETS, "label_values": {}})
    records = [{"subject": "s", "text": "b", "queue": "support"}]
    assert (
        load_examples(task, "train", write_records(tmp_path / "x.csv", records))[0].label
        == "support"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templat": "x"}, "templat"),
        ({"template": "no fields"}, "named fields"),
        ({"labels": {"billing": " billing"}}, "labels"),
        ({"answer_cue": ""}, "answer_cue"),
        ({"columns": {"bodi": "text"}}, "'bodi'"),
        ({"label_values": {0: "sales"}}, "'sales'"),
        ({"choices_column": "choices"}, "choices"),
        ({"members": ["sst2", "trec"]}, "{prompt}"),
        ({"name": "../evil"}, "name"),
    ],
)
def test_a_task_that_does_not_hold_together_is_refused(change, message):
    with pytest.raises(ConfigError) as refusal:
        load_task({**TICKETS, **change})
    assert message in str(refusal.value)


def test_unknown_tasks_and_task_files(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown task 'sst3'.*sst2"):
        load_task("sst3")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_task(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_task(path)
    path.write_text("- a")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_task(path)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_survives_json(name):
    # An adapter's manifest carries the task that it was trained on.
    assert load_task(json.loads(TASKS[name].model_dump_json())) == TASKS[name]
