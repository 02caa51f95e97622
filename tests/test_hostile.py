"""Input of strangers: a few fuzzed cases of each way in, and what was found by many."""

import pytest

from fuzz.harness import run
from fuzz.targets import WAYS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", WAYS)
def test_fuzzed(name, tmp_path, monkeypatch):
    pytest.importorskip(WAYS[name].needs)
    if name == "state-dict":
        from fuzz.models import PUBLISHED

        if not PUBLISHED.is_file():
            pytest.skip(f"{PUBLISHED} is not here")
    monkeypatch.chdir(tmp_path)
    outcome = run(WAYS[name].make(), 40, 1, tmp_path)
    assert outcome.cases >= 20
