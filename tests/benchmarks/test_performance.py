"""The page about performance says what the result files say."""

from benchmarks.performance import PAGE, PLOT, page


def test_the_page_is_what_the_script_makes_of_the_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks.performance"
    assert PLOT.is_file()
