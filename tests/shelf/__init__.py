"""A Wagtail project for the tests: the example's pages, and what else pages may be made of."""
