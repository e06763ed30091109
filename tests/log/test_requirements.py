"""Requirements of a logged model: a name and a version each, whatever else an installer would take."""

import pytest

from slmpack.errors import CheckError
from slmpack.log.requirements import LARGEST_REQUIREMENTS, plain_pins, requirements_for
from slmpack.records import Target


def test_what_we_log_is_plain() -> None:
    for target in Target:
        pins = requirements_for(target)
        assert plain_pins("\n".join(pins).encode()) == pins


def test_comments_and_line_ends_do_not_count() -> None:
    assert plain_pins(b"# all\r\nnumpy==2.4.6  # arrays\r\n\n torch==2.9.0+cpu\n") == (
        "numpy==2.4.6",
        "torch==2.9.0+cpu",
    )


@pytest.mark.parametrize("line", [
    "-r other.txt", "-e .", "--index-url http://127.0.0.1:9/simple", "--extra-index-url=http://127.0.0.1:9", "-i x",
    "-c constraints.txt", "--find-links .", "--pre", "evil @ http://127.0.0.1:9/evil.whl", "http://127.0.0.1:9/evil.whl",
    "git+https://127.0.0.1/evil", "./evil", "../evil.whl", "/tmp/evil.whl", "file:///tmp/evil.whl", "evil", "evil>=1",
    "evil==1.*", "evil===1", "evil==1,>=0", "evil==1; python_version > '3'", "evil[extra]==1",
    "evil==1 --hash=sha256:0", "evil==1 \\", "evil==1 other==2", "evil==${VERSION}", "evil==1#x",
    "evil==1\x0bother==2", "evil==1\u2028-r x", "\ufeffevil==1", "evil==1\r-r other.txt", "\x00", "=="
])  # fmt: skip
def test_every_other_line_is_refused_by_what_it_says(line: str) -> None:
    with pytest.raises(CheckError, match=r"the requirement .*; a package and its version, as in name==1"):
        plain_pins(f"numpy==2.4.6\n{line}\n".encode())


def test_a_file_that_is_too_long_is_refused() -> None:
    with pytest.raises(CheckError, match="too long"):
        plain_pins(b"#" * (LARGEST_REQUIREMENTS + 1))
