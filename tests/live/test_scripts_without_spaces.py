"""BM25 of a running retriever over passages in languages that write no spaces between words, and in some that do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ragserve
from tests.live.harness import Home

PASSAGES = {
    "ja-tokyo": "東京は日本の首都であり、人口は約千四百万人である。",
    "ja-fuji": "富士山は静岡県と山梨県にまたがる日本で最も高い山である。",
    "ja-soseki": "『吾輩は猫である』は夏目漱石が書いた長編小説である。",
    "ja-computer": "コンピューターはプログラムに従って計算を行う機械である。",
    "ja-soba": "蕎麦はそば粉から作る麺料理で、ガラスの器で冷やして食べることもある。",
    "zh-beijing": "北京是中华人民共和国的首都，故宫位于市中心。",
    "zh-river": "长江是亚洲最长的河流，流经上海后注入东海。",
    "zh-author": "《红楼梦》的作者是清代作家曹雪芹。",
    "zh-panda": "大熊猫主要生活在四川省的山区，以竹子为食。",
    "zh-paper": "造纸术是中国古代四大发明之一，由蔡伦改进。",
    "th-bangkok": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "th-elephant": "ช้างเป็นสัตว์ประจำชาติและอาศัยอยู่ในป่าทางภาคเหนือ",
    "th-rice": "ชาวนาปลูกข้าวในฤดูฝนและเก็บเกี่ยวในฤดูหนาว",
    "th-sugar": "น้ำตาลทำจากอ้อยและใช้ทำขนมหวาน",
    "lo-mekong": "ແມ່ນ້ຳຂອງໄຫຼຜ່ານນະຄອນຫຼວງວຽງຈັນ",
    "km-angkor": "ប្រាសាទអង្គរវត្តស្ថិតនៅក្នុងខេត្តសៀមរាប",
    "my-yangon": "ရန်ကုန်မြို့သည် မြန်မာနိုင်ငံ၏ အကြီးဆုံးမြို့ ဖြစ်သည်",
    "hi-taj": "ताज महल आगरा में यमुना नदी के किनारे स्थित है।",
    "ko-seoul": "서울은 대한민국의 수도이다.",
    "tr-isparta": "Isparta gülleriyle ünlü bir şehirdir.",
    "el-odysseus": "Ο ΟΔΥΣΣΕΥΣ ήταν βασιλιάς της Ιθάκης.",
    "de-street": "Die längste STRASSE der Stadt führt zum Fluss.",
}
QUESTIONS = [
    ("日本の首都はどこですか。", "ja-tokyo"),
    ("日本で一番高い山は富士山ですか", "ja-fuji"),
    ("夏目漱石の小説", "ja-soseki"),
    ("ｺﾝﾋﾟｭｰﾀとは何ですか", "ja-computer"),  # at half width, without the last long vowel
    ("冷やした蕎麦", "ja-soba"),
    ("中国的首都是哪里？", "zh-beijing"),
    ("共和国", "zh-beijing"),  # part of a longer word
    ("亚洲最长的河流叫什么", "zh-river"),
    ("谁是红楼梦的作者", "zh-author"),
    ("大熊猫吃什么", "zh-panda"),
    ("谁改进了造纸术", "zh-paper"),
    ("เมืองหลวงของประเทศไทยคืออะไร", "th-bangkok"),
    ("ช้างอาศัยอยู่ที่ไหน", "th-elephant"),
    ("ปลูกข้าวเมื่อไร", "th-rice"),
    ("น\u0e49\u0e4d\u0e32ตาลทำจากอะไร", "th-sugar"),
    ("ນະຄອນຫຼວງວຽງຈັນ", "lo-mekong"),
    ("ខេត្តសៀមរាប", "km-angkor"),
    ("ရန်ကုန်", "my-yangon"),
    ("यमुना नदी", "hi-taj"),
    ("대한민국의 수도", "ko-seoul"),
    ("ısparta", "tr-isparta"),
    ("Οδυσσεύς", "el-odysseus"),
    ("straße", "de-street"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ragserve.KnowledgeClient]:
    replica = Home.build(Path(tmp_path_factory.mktemp("home"))).replica(lexical=True)
    with ragserve.KnowledgeClient(replica.process.target) as client:
        client.upsert([{"id": name, "text": text} for name, text in PASSAGES.items()])
        yield client
    replica.stop()


@pytest.mark.parametrize(("question", "passage"), QUESTIONS)
def test_a_question_finds_the_passage_with_its_words(
    client: ragserve.KnowledgeClient, question: str, passage: str
) -> None:
    found = client.retrieve(question, k=3, search_kind="bm25")
    assert found.passages[0].id == passage


def test_kana_with_another_voicing_are_other_words(client: ragserve.KnowledgeClient) -> None:
    assert client.retrieve("ガラス", k=3, search_kind="bm25").passages[0].id == "ja-soba"
    assert not client.retrieve("カラス", k=3, search_kind="bm25").passages
