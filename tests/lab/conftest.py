"""What the tests of the lab learn from."""

import numpy as np
import pytest

from survey_code.data.tasks import InteractionData


@pytest.fixture(scope="session")
def pairs():
    """40 users, 60 items, and 900 pairs of them at random."""
    rng = np.random.default_rng(0)
    met = rng.choice(40 * 60, 900, replace=False)
    both = np.stack([met // 60, 40 + met % 60], 1)
    content = rng.normal(size=(100, 4)).astype(np.float32)
    parts = both[:600], both[600:700], both[700:]
    return InteractionData("pairs", 40, 60, *parts, content=content)
