"""Views of tiny models, each made once."""

import pytest
import tiny_models

from saccade.adapters import pretrained
from saccade.views import look

TEXT = "He left the roses by the bank."


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return pretrained.load(str(tiny_models.save(tmp_path_factory.mktemp("models") / "tiny-bert")))


@pytest.fixture(scope="session")
def long_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "long-bert"
    return pretrained.load(str(tiny_models.save(folder, limit=600)))


@pytest.fixture(scope="session")
def view(bert):
    return look(bert, TEXT)


@pytest.fixture(scope="session")
def long_view(long_bert):
    return look(long_bert, "he left the roses by the river bank and now she left it. " * 36).without_special()
