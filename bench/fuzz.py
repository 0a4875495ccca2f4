"""Runs the fuzz tests with many more cases, and prints a row for each kind of file.

    python -m bench.fuzz [--factor N]

Every case changes one file and runs a command or a function that reads it. The tests fail for a
traceback, for more than one line of error and for a file changed elsewhere. For checkpoints, models
and entries they also fail for more than 10 s of processor time.
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TESTS = (
    "tests/cache/test_fuzz.py::test_a_spoilt_document_is_one_line_or_harmless",
    "tests/checkpoints/test_fuzz.py::test_a_spoilt_file_is_refused_in_one_line_or_read_right",
    "tests/media/test_media_fuzz.py::test_a_changed_image_is_read_or_refused",
    "tests/media/test_media_fuzz.py::test_changed_noise_is_read_or_refused",
    "tests/media/test_media_fuzz.py::test_a_changed_video_is_shown_or_refused",
    "tests/test_document_fuzz.py::test_a_changed_document_gives_a_result_or_one_line",
)


def main() -> None:
    """Run the tests, print the table, and exit as the tests do."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--factor", type=int, default=8, help="Cases per case of the tests.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        options = ["--numprocesses", "auto", "--fuzz-factor", str(args.factor)]
        words = [sys.executable, "-m", "pytest", *options, f"--junitxml={results}", *TESTS]
        done = subprocess.run(words)
        rows = sorted(map(row, ElementTree.parse(results).iter("testcase")))
    print("| read by | file | cases | refused | seconds |\n|---|---|---|---|---|")
    for name, file, cases, refused, seconds in rows:
        print(f"| {name} | {file} | {cases} | {refused} | {seconds:.0f} |")
    print(f"| | all | {sum(row[2] for row in rows)} | {sum(row[3] for row in rows)} | |")
    raise SystemExit(done.returncode)


def row(case: ElementTree.Element) -> tuple[str, str, int, int, float]:
    """Return the test's file, the kind of file, its cases, those refused, and the seconds."""
    counts = {one.get("name"): int(one.get("value", 0)) for one in case.iter("property")}
    test, _, kind = case.get("name", "").partition("[")
    where = case.get("classname", "").removeprefix("tests.")
    seconds = float(case.get("time", 0))
    return (
        where,
        kind.rstrip("]") or test,
        counts.get("cases", 0),
        counts.get("refused", 0),
        seconds,
    )


if __name__ == "__main__":
    main()
