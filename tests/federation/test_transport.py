import pytest

from matu.errors import DataError, DivergedError, RangeError
from matu.federation.transport import Failure, InProcess, Questions, reply_of


def test_a_question_is_made_when_it_is_asked_for_and_not_before() -> None:
    made: list[str] = []

    def make(site: str) -> bytes:
        made.append(site)
        return site.encode()

    questions = Questions(["north", "south"], make)
    assert list(questions) == ["north", "south"]
    assert len(questions) == 2
    assert "north" in questions
    assert "west" not in questions
    assert not made
    replies = InProcess({"north": bytes.upper, "south": bytes.upper}).exchange(questions)
    assert next(replies) == ("north", b"NORTH")
    assert made == ["north"], "the second is made once the first has answered"
    assert next(replies) == ("south", b"SOUTH")
    assert questions["north"] == b"north"
    assert made == ["north", "south", "north"]
    with pytest.raises(KeyError):
        questions["west"]


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("x"), "site"), (DivergedError("x"), "diverged"), (RangeError("x"), "diverged")]
)
def test_a_site_in_this_process_fails_by_name(error: Exception, code: str) -> None:
    def fail(payload: bytes) -> bytes:
        raise error

    assert reply_of(fail, b"") == Failure(code, "x")


def test_a_mistake_in_the_code_of_a_site_stops_the_run() -> None:
    def mistaken(payload: bytes) -> bytes:
        raise ValueError("operands of two shapes")

    with pytest.raises(ValueError, match="operands"):
        reply_of(mistaken, b"")
