"""How much is drawn, from which seed, and what came of it, which the last lines of the run say."""

import random

import pytest


@pytest.fixture
def draws(request):
    """A function of (small, all): how many draws this test makes."""
    return lambda small, everything: everything if request.config.getoption("fuzz") == "all" else small


@pytest.fixture
def rng(request):
    """Draws that are the same in every run of a test."""
    return random.Random(request.node.name)


@pytest.fixture
def tally(record_property):
    """Counts by name; those of all tests are added up and printed at the end."""
    counts = {}
    yield counts
    record_property("fuzz", counts)
