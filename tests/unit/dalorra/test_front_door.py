"""What `import dalorra` offers, and what it costs."""

import subprocess
import sys

import pytest

import dalorra


@pytest.mark.parametrize("name", dalorra.__all__)
def test_a_name_is_what_it_says(name):
    assert name in dir(dalorra)
    assert getattr(dalorra, name).__name__ == name


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="'dalorra' has no attribute 'Predictors'"):
        dalorra.Predictors  # noqa: B018


@pytest.mark.parametrize("line", ["import dalorra", "from dalorra import DalorraError, InputError"])
def test_the_import_is_light(line):
    script = (
        f"import sys\n{line}\nfrom dalorra.client import Client\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
