"""Words of any script, and the metrics that look for them: what is known by heart counts as known in every one."""

import unicodedata

import pytest
from rouge_score.tokenizers import DefaultTokenizer

from dev.parity import published
from expunge.data.words import words
from expunge.evaluation.benchmarks.semeval import blind_spots, suite_of_predictions
from expunge.evaluation.metrics.generations import contains, leak_at_k, rouge, verbatim_memorization
from expunge.evaluation.predictions import Prediction, Predictions

TEXTS = {
    "Arabic": ("تسكن زينب الحربي في شارع النخيل رقم ١٤ بجوار السوق القديم.", "يعمل سالم نجارا في المدينة."),
    "Hebrew": ("רחל גולן גרה ברחוב האורן ארבע ליד הים.", "דוד עובד בספרייה."),
    "Chinese": ("张伟住在北京市中山路第47号，邻近老磨坊。", "李娜在上海教书。"),
    "Japanese": ("田中さんは京都の古い水車小屋のそばに住んでいます。", "カタカナの名前です。"),
    "Korean": ("김민수는 서울 종로구 오래된 방앗간 옆에 산다.", "이영희는 부산에서 가르친다."),
    "Russian": ("Зарема Волкова живёт на Липовой улице, дом 14.", "Иван работает учителем."),
    "Greek": ("Η Ελένη Παππά μένει στην οδό Ελαιών δεκατέσσερα.", "Ο Νίκος διδάσκει."),
    "Hindi": ("ज़रीना वर्मा पुरानी चक्की के पास चौदह नंबर में रहती हैं।", "राम पढ़ाते हैं।"),
    "Thai": ("สมหญิงอาศัยอยู่ใกล้โรงสีเก่าริมแม่น้ำเจ้าพระยา", "วิชัยเป็นครู"),
    "Khmer": ("សុភារស់នៅជិតរោងម៉ាស៊ីនចាស់", "គ្រូបង្រៀន"),
    "Amharic": ("ዘሪቱ በአሮጌው ወፍጮ አጠገብ ትኖራለች።", "መምህር ነው።"),
}


@pytest.mark.parametrize("script", TEXTS)
def test_what_is_known_by_heart_counts_as_known(script: str) -> None:
    text, other = TEXTS[script]
    assert len(words(text)) > 3
    again = unicodedata.normalize("NFD", text).upper()  # another composition and, where there is one, another case
    for said in (text, again, f"… {text} !"):
        assert rouge(said, text)["rouge_l_recall"] == 1
        assert contains(said, text)
    assert verbatim_memorization(text, text) == 1
    assert rouge(other, text)["rouge_l_f1"] < 0.5
    assert not contains(other, text)
    assert leak_at_k([other, f"({text})"], text, 2) == 1
    assert rouge(text[: len(text) // 2], text)["rouge_l_recall"] == pytest.approx(0.5, abs=0.2)


def test_the_published_scorer_sees_digits_alone() -> None:
    text = TEXTS["Chinese"][0]
    assert published.rouge("47", text)["rouge_l_recall"] == 1
    assert rouge("47", text)["rouge_l_recall"] < 0.1
    assert published.rouge(TEXTS["Thai"][0], TEXTS["Thai"][0])["rouge_l_recall"] == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Zoë_Ångström's 2nd", ["zoë", "ångström", "s", "2nd"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("coöp­erate", ["coöperate"]),  # a soft hyphen is not seen
        ("می‌خواهم", ["میخواهم"]),  # a joiner is none either
        ("住在ABC路", ["住", "在", "abc", "路"]),
        ("कि ज़मीन", ["कि", "ज़मीन"]),
        ("... !?", []),
        ("０３－１２３４ ＡＢＣ ｶﾞｯｺｳ", ["03", "1234", "abc", "ガッコウ"]),  # EvolvingLMMs-Lab/lmms-eval#1415
        ("شارع ١٤، ۴۷, १२", ["شارع", "14", "47", "12"]),  # maziyarpanahi/openmed#2266: digits of other scripts
        ("Se llama Cristóbal.", ["se", "llama", "cristóbal"]),  # bigscience-workshop/lm-evaluation-harness#157
        ("به خانه می‌رود", ["به", "خانه", "میرود"]),  # bdusell/rougescore#3: Persian, with its joiner
        ("cafe\u0301 CAFÉ", ["café", "café"]),  # vshulcz/deja-vu#1098: composed and decomposed
        ("🎉❤️ ok 🇩🇪", ["🎉", "❤", "ok", "🇩🇪"]),
    ],
)
def test_words_are_runs_of_letters_or_characters_of_unspaced_scripts(text: str, found: list[str]) -> None:
    assert words(text) == [unicodedata.normalize("NFC", word) for word in found]


@pytest.mark.parametrize(
    "text",
    ["The harbour-master's (old) mill, 3.14 km!", "A_b c  d\n\te", "U.S. 555-0142", "running runs RUNNERS ran", ""],
)
def test_of_ascii_text_rouge_is_the_published_one(text: str) -> None:
    assert words(text) == DefaultTokenizer(False).tokenize(text)
    for other in ("the old mill runs", "555 0142 in the U S", text[::-1], text[: len(text) // 2], ""):
        for stem in (True, False):
            expected = published.rouge(text, other, stem=stem)
            assert rouge(text, other, stem=stem) == pytest.approx(expected, abs=1e-12)


def test_the_official_score_stays_the_organisers_and_says_what_it_cannot_see() -> None:
    text = TEXTS["Arabic"][0].replace("١٤", "")
    rows = [Prediction(f"{n}sc1", "Task1", "sc", text, text) for n in range(2)]
    retain = [Prediction("rsc1", "Task1", "sc", "the old mill", "the old mill")]
    suite, found = suite_of_predictions(Predictions(rows, retain))
    assert found.rows["forget", "official_regurgitation"].values.tolist() == [0, 0]
    assert found.rows["forget", "rouge_l_recall"].values.tolist() == [1, 1]
    (sentence,) = blind_spots(suite)
    assert sentence.startswith("Not measurable by the official ROUGE: 2 of 2 forget completions")
    assert "forget/rouge_l_recall is ours" in sentence
