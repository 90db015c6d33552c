import pytest

from matu.federation.transport import InProcess, Questions


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
