"""One line for each claim, as it is decided."""

import time


def claim(text, check):
    """Runs a check; true if it holds. What it returns is printed beside the claim: figures."""
    start = time.monotonic()
    try:
        figures = check()
    except Exception as error:
        print(f"FALSE  {text}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"holds  {text}{f': {figures}' if figures else ''} ({time.monotonic() - start:.0f} s)", flush=True)
    return True
