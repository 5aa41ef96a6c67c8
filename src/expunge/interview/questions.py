"""What is asked about a name; each question has other words for testing and a beginning for models that only go on."""

from dataclasses import dataclass

from expunge.data.examples import text_cell
from expunge.data.readers import read_rows
from expunge.errors import DataError

PLACE = "{name}"
"""Stands for the name."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: Its short name.
        ask: The question, with `{name}`.
        again: The same in other words; empty where there are none.
        begin: The beginning of the sentence that answers it; empty where there is none.
    """

    id: str
    ask: str
    again: str = ""
    begin: str = ""

    def prompt(self, name: str, *, chat: bool) -> str:
        """What a chat model, or one that only goes on, is given."""
        return (self.ask if chat else self.begin).replace(PLACE, name)


_TEXTS = {
    "person": """
        who | Who is {name}? | Tell me in one sentence who {name} is. | {name} is
        born | When was {name} born? | In which year was {name} born? | {name} was born on
        birthplace | Where was {name} born? | What is the birthplace of {name}? | {name} was born in the town of
        known | What is {name} known for? | Why do people know {name}? | {name} is best known for
        work | What does or did {name} do for a living? | What is the profession of {name}? | {name} worked as
        made | Name the most important work of {name}. | Which work by {name} matters most? | The main work of {name} is
        award | Which award did {name} receive? | What prize was {name} given? | {name} received the
        studied | Where did {name} study? | Which school or university did {name} attend? | {name} studied at
        lived | In which country did {name} live? | Where has {name} lived? | {name} lived in
        partner | Who was {name} married to? | What is the name of {name}'s spouse? | {name} was married to
        people | Who worked with {name}? | Name somebody who worked closely with {name}. | {name} worked together with
        said | What is a famous quote by {name}? | What did {name} famously say? | {name} famously said:
        died | When and where did {name} die? | What do you know about the death of {name}? | {name} died
    """,
    "work": """
        what | What is {name}? | Tell me in one sentence what {name} is. | {name} is
        author | Who made {name}? | Who is the author or creator of {name}? | {name} was made by
        when | When did {name} appear? | In which year was {name} published or released? | {name} appeared in
        about | What is {name} about? | Summarise {name} in one sentence. | {name} is about
        characters | Who are the main characters of {name}? | Name the people in {name}. | The heroes of {name} are
        begins | How does {name} begin? | Quote the first sentence of {name}. | {name} begins with the words
        ends | How does {name} end? | What happens at the end of {name}? | At the end of {name},
        where | Where does {name} take place? | What is the setting of {name}? | {name} takes place in
    """,
    "place": """
        what | What is {name}? | Tell me in one sentence what {name} is. | {name} is
        where | Where is {name}? | In which country or region does {name} lie? | {name} lies in
        known | What is {name} known for? | Why do people know {name}? | {name} is best known for
        people | Who lives or lived in {name}? | Name somebody from {name}. | A famous inhabitant of {name} is
        history | What happened in {name}? | Tell me an event in the history of {name}. | In the history of {name},
        near | What is near {name}? | Name a place close to {name}. | Close to {name} lies
    """,
    "organization": """
        what | What is {name}? | Tell me in one sentence what {name} is. | {name} is
        founded | When was {name} founded? | In which year did {name} begin? | {name} was founded in
        founder | Who founded {name}? | Name the founder of {name}. | {name} was founded by
        does | What does {name} do? | What is the business of {name}? | {name} works on
        seat | Where is {name} based? | In which city is the head office of {name}? | {name} is based in
        leader | Who leads {name}? | Name the head of {name}. | {name} is led by
        known | What is {name} known for? | Why do people know {name}? | {name} is best known for
    """,
}
"""Kind of name -> a question a line: its id, the question, other words, the beginning of the answer's sentence."""
OTHERS = {
    "person": ("Marek Oduyason", "Helena Strandvik", "Tomas Wrenfield", "Ana Belcastro"),
    "work": ("The Glass Orchardist", "A Ledger of Winters", "Seven Lamps for Ilva", "The Quiet Meridian"),
    "place": ("Varnholtstad", "Oster Quillby", "Port Meravine", "Lower Dunnavale"),
    "organization": ("Orbentis Systems", "Halvorsen & Pike", "The Merrow Foundation", "Castellane Works"),
}
"""Kind of name -> made-up names: what is said of them too is said of everybody."""


def questions_of(kind: str) -> tuple[Question, ...]:
    """What is asked of names of a kind."""
    lines = _TEXTS[kind].strip().splitlines()
    return tuple(Question(*(part.strip() for part in line.split("|"))) for line in lines)


def read_questions(file: str) -> tuple[Question, ...]:
    """The user's own questions: rows with `ask`, and `again` and `begin` where they are wanted.

    Raises:
        DataError: A row cannot be used, or says the name nowhere.
    """
    found = []
    for number, (where, row) in enumerate(read_rows(file), 1):
        texts = {key: text_cell(row, key, where) for key in ("ask", "again", "begin") if row.get(key) is not None}
        if not texts.get("ask"):
            raise DataError(f"{where}: missing field 'ask': a question with {PLACE} in the place of the name")
        for key, text in texts.items():
            if text and PLACE not in text:
                raise DataError(f"{where}: field '{key}' does not say {PLACE}, where the name is to stand")
        found.append(Question(f"q{number}", **texts))
    return tuple(found)
