"""What several files of fairseq tests share."""

import fairseq_tiny as tiny
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The tiny translation task, binarised once a session."""
    return tiny.make_data(tmp_path_factory.mktemp("fairseq-data"))
