"""What a suite says of its data: families of texts as one document, fingerprints that give no text away."""

from dataclasses import replace

import pytest

from expunge.data.examples import Example
from expunge.evaluation.suite import Documents, RowSet, Suite, data_fingerprint, with_families

TEXT = "Mirela Vance keeps forty bees behind the old observatory in Karlsholm"


def rows(*texts: str, name: str = "forget") -> RowSet:
    examples = [Example(f"{name}{i}", "", text) for i, text in enumerate(texts)]
    return RowSet(name, examples, [example.id for example in examples], ())


@pytest.mark.parametrize(
    "twin", [TEXT + ".", TEXT.upper(), TEXT.replace(" ", "  "), TEXT.replace("Karlsholm", "Odense"), f"“{TEXT}”!"]
)
def test_near_duplicates_are_one_document_in_intervals(twin: str) -> None:
    forget = rows(TEXT, "Joren Pike sells maps of rivers that were never found by anybody")
    suite = with_families(Suite((forget, rows(twin, name="retain"))))
    assert suite["retain"].documents[0] == suite["forget"].documents[0] == "forget0"
    assert suite["forget"].documents[1] == "forget1"


def test_sentences_of_one_template_are_documents_of_their_own() -> None:
    people = ("Wren", "Oduya", "Quill", "Marek")
    texts = [f"Who is {name} Heron? The keeper of the old mill by river {i + 2}." for i, name in enumerate(people)]
    assert len(set(with_families(Suite((rows(*texts),)))["forget"].documents)) == 4


def test_rows_about_one_document_stay_together_with_their_twins() -> None:
    own = replace(rows(TEXT, "Another text about the same person and much else", TEXT + "!"), documents=["a", "a", "b"])
    assert len(set(with_families(Suite((own,)))["forget"].documents)) == 1


def test_a_fingerprint_tells_data_apart_and_leaves_a_secret_an_eighth_of_its_candidates() -> None:
    def one(completion: str, row_id: str = "a", task: str = "") -> str:
        return data_fingerprint([Example(row_id, "What is the PIN of Zarquon?", completion, task)])

    known = one("The PIN is 4821.")
    assert known == one("The PIN is 4821.")
    others = (one("The PIN is 482."), one("The PIN is 4821.", "b"), one("The PIN is 4821.", task="t"))
    assert known not in others
    fitting = sum(one(f"The PIN is {number:04d}.") == known for number in range(10_000))
    assert 1000 <= fitting < 1500
    documents = Documents([Example("m", "", "x")], [Example("n", "", "yz")])
    assert set(Suite((rows(TEXT),), documents).fingerprints()) == {"forget", "members", "nonmembers"}
