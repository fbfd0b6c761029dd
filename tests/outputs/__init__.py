"""The output policy as pure functions. What it does in a browser: tests/browser/test_output_*.py."""
