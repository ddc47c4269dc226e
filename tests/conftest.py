"""Examples are drawn once and for all, so that a test run says the same today and tomorrow.

``pytest --hypothesis-profile=fresh`` draws new ones.
"""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("fresh", deadline=None, print_blob=True)
settings.load_profile("fixed")
