"""Prompt and target texts, and the token boundaries that training and sampling must share."""

import dataclasses
import types

import pytest
import tokenizers
from tokenizers import normalizers

from reft_jax.data import batching, exact, prompts, tokenizer
from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.rollouts import stored
from tests.test_tokenizer import FORMS, smollm, write
from tests.tiny import read, shared_data


@dataclasses.dataclass(frozen=True)
class Data:
    """The fields of config.data that this module reads."""

    docstring: bool = True
    append_prefix: str = "everywhere"
    bos: str = "off"
    line_end: str = "prefix"


BODY = "    bags = 3\n    return bags * 2"
PROGRAM = Record("a_1", "How many balls?", f'def solution():\n    """How many balls?"""\n{BODY}', "6", "program")
BARE = dataclasses.replace(PROGRAM, cot=f"def solution():\n{BODY}")
NL = Record("a_2", "How many balls?", "3 bags of 2.", "6.0", "nl")
TEST = Record("a_3", "How many bags?", "", "6", "program")
PREFIX = 'def solution():\n    """How many balls?"""\n'


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.build_bpe([PROGRAM.cot, NL.cot, "Question:\nHow many balls?\nAnswer reasoning:\n"], 300)


def texts(bpe, encoded):
    return tokenizer.decode(bpe, encoded.prompt), tokenizer.decode(bpe, encoded.response)


def test_texts_are_the_paper_s():
    assert prompts.prompt(NL) == "Question:\nHow many balls?\nAnswer reasoning:\n"
    assert prompts.target(NL, docstring=True) == "3 bags of 2.\nTherefore, the answer is: 6.0"
    assert prompts.target(PROGRAM, docstring=True) == PROGRAM.cot
    assert prompts.program_prefix(PROGRAM, docstring=True) == PREFIX
    assert prompts.program_prefix(PROGRAM, docstring=False) == "def solution():\n"
    text = Record("a_4", "q", "5 + 3 = 8\nTherefore, the answer is: 8", "8", "text")
    assert prompts.target(text, docstring=True) == text.cot
    assert (
        prompts.target(TEST, docstring=True)
        == ""
        == prompts.target(dataclasses.replace(TEST, kind="nl"), docstring=True)
    )


def test_docstring_is_the_option_s_whatever_the_gold_has():
    assert prompts.target(PROGRAM, docstring=False) == BARE.cot
    assert prompts.target(BARE, docstring=True) == PROGRAM.cot
    other = dataclasses.replace(PROGRAM, cot=PROGRAM.cot.replace("balls?", "balls are there ?"))
    assert prompts.target(other, docstring=True) == PROGRAM.cot
    assert prompts.replaced_docstrings([PROGRAM, BARE, other, NL, TEST], docstring=True) == ["a_1"]
    assert prompts.replaced_docstrings([BARE, NL, TEST], docstring=False) == []


@pytest.mark.parametrize(
    "own",
    ['    """Say \\"""hi\\""" """\n', '    """two\n    lines"""\n', '    """"""\n', '\t"""a "quoted" word"""  \n'],
)
def test_a_gold_docstring_ends_where_python_says(own):
    later = '    s = """text"""\n    return 1'
    assert prompts.target(dataclasses.replace(BARE, cot=f"def solution():\n{own}{later}"), docstring=False).endswith(
        f"solution():\n{later}"
    )
    unusual = 'def solution():\n    """doc"""  # not the end of a line\n    s = """x"""\n    return 1'
    assert prompts.target(dataclasses.replace(BARE, cot=unusual), docstring=False) == unusual


@pytest.mark.parametrize(
    "question",
    ['He said "hi"', 'She said "', 'a """ b', 'x""""', '"', "C:\\new\\", "\\", '\\"', "two\nlines ?", "é½\u2028’s"],
)
def test_every_question_makes_a_docstring_that_python_reads_back(question):
    record = dataclasses.replace(TEST, question=question)
    scope = {}
    exec(prompts.program_prefix(record, docstring=True) + "    return 1", scope)
    assert scope["solution"].__doc__ == question and scope["solution"]() == 1


def test_sft_learns_prefix_rest_and_eos(bpe):
    encoded = prompts.encode(bpe, PROGRAM, Data(), purpose="teach")
    assert texts(bpe, encoded) == (prompts.prompt(PROGRAM), PROGRAM.cot)
    assert encoded.response[-1] == bpe.eos_token_id and bpe.eos_token_id not in encoded.response[:-1] + encoded.prompt
    encoded = prompts.encode(bpe, NL, Data(), purpose="teach")
    assert texts(bpe, encoded) == (prompts.prompt(NL), "3 bags of 2.\nTherefore, the answer is: 6.0")


@pytest.mark.parametrize(
    "append_prefix,purpose,appended",
    [
        ("everywhere", "rollout", True),
        ("everywhere", "ask", True),
        ("everywhere", "teach", False),
        ("rollouts", "rollout", True),
        ("rollouts", "ask", False),
        ("nowhere", "rollout", False),
        ("nowhere", "ask", False),
    ],
)
def test_prefix_stands_in_the_prompt_exactly_where_the_option_says(bpe, append_prefix, purpose, appended):
    data = Data(append_prefix=append_prefix)
    encoded = prompts.encode(bpe, PROGRAM, data, purpose=purpose)
    given, rest = (prompts.prompt(PROGRAM) + PREFIX, BODY) if appended else (prompts.prompt(PROGRAM), PROGRAM.cot)
    assert texts(bpe, encoded) == (given, rest)
    assert prompts.completed(PROGRAM, rest, data, purpose=purpose) == PROGRAM.cot
    assert prompts.appends_prefix(PROGRAM, data, purpose=purpose) is appended
    assert not prompts.appends_prefix(NL, data, purpose=purpose)
    assert prompts.completed(NL, "x", data, purpose=purpose) == "x"


@pytest.mark.parametrize("docstring", [True, False])
@pytest.mark.parametrize("append_prefix", ["everywhere", "rollouts", "nowhere"])
@pytest.mark.parametrize("record", [PROGRAM, BARE, NL, dataclasses.replace(BARE, kind="text")])
def test_training_and_sampling_see_the_same_tokens(bpe, record, append_prefix, docstring):
    data = Data(docstring, append_prefix)
    learnt, sampled, evaluated = (prompts.encode(bpe, record, data, purpose=purpose) for purpose in prompts.PURPOSES)
    assert learnt.prompt + learnt.response == sampled.prompt + sampled.response == evaluated.prompt + evaluated.response


def test_no_merge_crosses_a_boundary():
    data = Data(docstring=False)
    # A tokenizer to which the end of the prefix and the start of the body are one token.
    joined = tokenizer.build_word(
        r"\n    return| ?\w+|\d|[^\w]",
        ["\n    return", "\n", " ", "def", " solution", "(", ")", ":"]
        + ["return", " return", " 1", "Question", "Answer", " reasoning", "q"],
    )
    record = Record("a", "q", "def solution():\n    return 1", "1", "program")
    learnt = prompts.encode(joined, record, data, purpose="teach")
    start = prompts.encode(joined, record, data, purpose="rollout").prompt
    assert (learnt.prompt + learnt.response)[: len(start)] == start
    corpus = prompts.encode(joined, dataclasses.replace(record, kind="text"), data, purpose="teach")
    assert corpus == learnt  # pretraining shows the same boundary
    whole = tokenizer.encode(joined, prompts.prompt(record) + record.cot)
    assert whole[: len(start)] != start  # else this test shows nothing


BALLS = "How many balls in 12 bags?"
BALLS_P = Record(
    "g_1", BALLS, f'def solution():\n    """{BALLS}"""\n    bags = 12\n    return bags * 2', "24", "program"
)
BALLS_N = Record("g_2", BALLS, "12 bags of 2.", "24", "nl")
NAMES = "Is </s> <s> or <|endoftext|> a <unk>, 😀 <pad>?"
HARD = [  # names of special tokens, characters of several bytes, beginnings that are spaces or line ends
    Record("h_1", NAMES, f"def solution():\n    a = '{NAMES}'\n    return '</s>'", "1", "program"),
    Record("h_2", NAMES, f"<s>{NAMES}é</s>", "1", "nl"),
    Record("h_3", " é", "  two  spaces\n\n    x", "1", "nl"),
    Record("h_4", "q\n", "\n1", "-12.50", "nl"),
]
# Tokens of the prompt, the program's prefix, the rest of the program, the N-CoT target; ids of the N-CoT target.
LLAMA = (
    "▁ Question : <0x0A> How ▁many ▁balls ▁in ▁ 1 2 ▁bags ? <0x0A> Answer ▁reasoning : <0x0A>",
    'def ▁solution ( ) : <0x0A> ▁▁▁▁ " " " How ▁many ▁balls ▁in ▁ 1 2 ▁bags ? " " " <0x0A>',
    "▁▁▁▁ bags ▁ = ▁ 1 2 <0x0A> ▁▁▁▁ return ▁bags ▁ * ▁ 2 </s>",
    "1 2 ▁bags ▁of ▁ 2 . <0x0A> Therefore , ▁the ▁answer ▁is : ▁ 2 4 </s>",
    [276, 277, 392, 397, 259, 277, 273, 13, 415, 271, 427, 433, 434, 285, 259, 277, 279, 2],
)
GOLDEN = {
    "gpt2": (
        "Question : Ċ How Ġmany Ġballs Ġin Ġ 12 Ġbags ? Ċ Answer Ġreasoning : Ċ",
        'def Ġsolution ( ) : Ċ ĠĠĠ Ġ " " " How Ġmany Ġballs Ġin Ġ 12 Ġbags ? " " " Ċ',
        "ĠĠĠ Ġbags Ġ = Ġ 12 Ċ ĠĠĠ Ġreturn Ġbags Ġ * Ġ 2 <|endoftext|>",
        "12 Ġbags Ġof Ġ 2 . Ċ Therefore , Ġthe Ġanswer Ġis : Ġ 2 4 <|endoftext|>",
        [337, 294, 299, 220, 17, 13, 198, 317, 11, 329, 335, 336, 25, 220, 17, 19, 338],
    ),
    "qwen": (
        "Question :Ċ How Ġmany Ġballs Ġin Ġ 1 2 Ġbags ? Ċ Answer Ġreasoning :Ċ",
        'def Ġsolution ( ) :Ċ ĠĠĠ Ġ " " " How Ġmany Ġballs Ġin Ġ 1 2 Ġbags ? " " " Ċ',
        "ĠĠĠ Ġbags Ġ = Ġ 1 2 Ċ ĠĠĠ Ġreturn Ġbags Ġ * Ġ 2 <|endoftext|>",
        "1 2 Ġbags Ġof Ġ 2 . Ċ Therefore , Ġthe Ġanswer Ġis : Ġ 2 4 <|endoftext|>",
        [16, 17, 294, 299, 220, 17, 13, 198, 317, 11, 329, 335, 336, 25, 220, 17, 19, 339],
    ),
    "galactica_bytes": (
        "Question : Ċ How Ġmany Ġballs Ġin Ġ 1 2 Ġbags ? Ċ Answer Ġreasoning : Ċ",
        'def Ġsolution ( ) : Ċ ĠĠĠ Ġ " " " How Ġmany Ġballs Ġin Ġ 1 2 Ġbags ? " " " Ċ',
        "ĠĠĠ Ġbags Ġ = Ġ 1 2 Ċ ĠĠĠ Ġreturn Ġbags Ġ * Ġ 2 <|endoftext|>",
        "1 2 Ġbags Ġof Ġ 2 . Ċ Therefore , Ġthe Ġanswer Ġis : Ġ 2 4 <|endoftext|>",
        [16, 17, 294, 299, 220, 17, 13, 198, 317, 11, 329, 335, 336, 25, 220, 17, 19, 338],
    ),
    "galactica": (
        "▁ Question : \n How ▁many ▁balls ▁in ▁ 1 2 ▁bags ? \n Answer ▁reasoning : \n",
        'def ▁solution ( ) : \n ▁▁▁▁ " " " How ▁many ▁balls ▁in ▁ 1 2 ▁bags ? " " " \n',
        "▁▁▁▁ bags ▁ = ▁ 1 2 \n ▁▁▁▁ return ▁bags ▁ * ▁ 2 </s>",
        "1 2 ▁bags ▁of ▁ 2 . \n Therefore , ▁the ▁answer ▁is : ▁ 2 4 </s>",
        [278, 279, 363, 365, 260, 279, 275, 261, 368, 273, 371, 372, 373, 287, 260, 279, 281, 2],
    ),
    "llama_normalizer": LLAMA,
    "llama_metaspace": LLAMA,
}


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """(name, the tokenizer that `load` gives, the same file read by the library below: an opinion of its own)."""
    folder = write(tmp_path_factory.mktemp(request.param), *FORMS[request.param]())
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_truncation(), raw.no_padding()
    return request.param, tokenizer.load(folder), raw


def test_golden_tokens_of_real_forms(form):
    name, built, raw = form
    prompt, prefix, rest, sentence, ids = GOLDEN[name]
    expected = {
        "teach": [(prompt, f"{prefix} {rest}"), (prompt, sentence)],
        "rollout": [(f"{prompt} {prefix}", rest), (prompt, sentence)],
    }
    expected["ask"] = expected["rollout"]
    for purpose in prompts.PURPOSES:
        encoded = prompts.encode_all(built, [BALLS_P, BALLS_N], Data(), purpose=purpose)
        spelt = [
            tuple(" ".join(map(raw.id_to_token, part)) for part in (each.prompt, each.response)) for each in encoded
        ]
        assert spelt == expected[purpose]
        assert encoded[1].response == ids


@pytest.mark.parametrize("docstring", [True, False])
@pytest.mark.parametrize("append_prefix", ["everywhere", "rollouts", "nowhere"])
def test_real_forms_show_sampling_the_tokens_that_training_saw(form, append_prefix, docstring):
    _, built, raw = form
    data = Data(docstring, append_prefix)
    records = [BALLS_P, BALLS_N, *HARD]
    specials = {built.bos_token_id, built.eos_token_id, built.pad_token_id, built.unk_token_id}
    learnt, sampled, evaluated = (
        prompts.encode_all(built, records, data, purpose=purpose) for purpose in prompts.PURPOSES
    )
    for record, *rows in zip(records, learnt, sampled, evaluated, strict=True):
        target = prompts.target(record, docstring=docstring)
        whole = rows[0].prompt + rows[0].response
        assert all(row.prompt + row.response == whole for row in rows)
        assert whole[-1] == built.eos_token_id and not specials & set(whole[:-1])  # no BOS, one EOS, at the end
        assert raw.decode(whole[:-1], skip_special_tokens=False) == prompts.prompt(record) + target
        for row, purpose in zip(rows, prompts.PURPOSES, strict=True):
            text = tokenizer.decode(built, row.response)
            assert prompts.completed(record, text, data, purpose=purpose) == target
            for cut in range(len(row.response)):
                assert text.startswith(tokenizer.decode(built, row.response[:cut]).rstrip("\ufffd"))


@pytest.mark.parametrize("record", [BALLS_P, BALLS_N])
def test_a_response_begins_as_it_does_in_the_middle_of_a_text(form, record):
    _, built, raw = form
    text = prompts.prompt(record) + prompts.target(record, docstring=True)
    middle = raw.encode(text, add_special_tokens=False).ids
    for purpose in prompts.PURPOSES:
        encoded = prompts.encode(built, record, Data(), purpose=purpose)
        assert encoded.prompt + encoded.response[:-1] == middle


# ------------------------------------------------------------------ where a program's prefix ends


@pytest.fixture(scope="module")
def joining(tmp_path_factory):
    return tokenizer.load(write(tmp_path_factory.mktemp("smollm"), *smollm()))


def test_a_tokenizer_that_joins_a_line_end_and_spaces_asks_for_another_cut(joining, form):
    for docstring in (True, False):
        assert prompts.best_line_end(joining, [BALLS_P, PROGRAM], Data(docstring)) == "rest"
        assert prompts.best_line_end(joining, [BALLS_N], Data(docstring)) == "rest"  # without a program, by a made one
        assert prompts.best_line_end(form[1], [BALLS_P, *HARD], Data(docstring)) == "prefix"


@pytest.mark.parametrize("docstring", [True, False])
def test_the_tokens_are_then_those_of_the_whole_text(joining, docstring):
    data = Data(docstring, line_end="rest")
    target = prompts.target(BALLS_P, docstring=docstring)
    whole = tokenizer.encode(joining, prompts.prompt(BALLS_P) + target)
    for purpose in prompts.PURPOSES:
        row = prompts.encode(joining, BALLS_P, data, purpose=purpose)
        assert row.prompt + row.response == [*whole, joining.eos_token_id]
        text = tokenizer.decode(joining, row.response)
        assert text == prompts.continuation(BALLS_P, data, purpose=purpose)
        assert prompts.completed(BALLS_P, text, data, purpose=purpose) == target
        assert not exact.changes(joining, BALLS_P, row, data, purpose=purpose)
    assert joining.convert_ids_to_tokens(row.prompt[-1]) == ('"' if docstring else ":")
    assert joining.convert_ids_to_tokens(row.response[0]) == "ĊĠĠĠ" and text.startswith("\n    bags")
    before = prompts.encode(joining, BALLS_P, Data(docstring), purpose="ask")
    assert before.prompt + before.response[:-1] != whole  # else this test shows nothing


def test_own_responses_are_cut_as_gold_ones_are(joining):
    for line_end in ("prefix", "rest"):
        data = Data(line_end=line_end)
        run = types.SimpleNamespace(tokenizer=joining, config=types.SimpleNamespace(data=data))
        records = [BALLS_P, BALLS_N]
        asked = prompts.encode_all(joining, records, data, purpose="ask")
        texts = [prompts.continuation(record, data, purpose="ask") for record in records]
        found = [(a, b + c) for a, b, c in stored.pieces(run, records, texts, "ask")]
        learnt = prompts.encode_all(joining, records, data, purpose="teach")
        assert found == [(row.prompt, row.response) for row in learnt]
        assert [a + b for a, b in found] == [row.prompt + row.response for row in asked]


def test_records_without_a_program_have_no_line_end_to_move(joining):
    rest = Data(line_end="rest")
    assert prompts.completed(TEST, "", rest, purpose="ask") == PREFIX.replace("balls", "bags")[:-1]
    assert prompts.encode(joining, TEST, rest, purpose="ask").response == []
    assert prompts.split_target(dataclasses.replace(BARE, kind="text"), docstring=True, line_end="rest") == (
        "def solution():",
        f"\n{BODY}",
    )
    for record in (NL, dataclasses.replace(NL, kind="text")):
        assert prompts.split_target(record, docstring=True, line_end="rest")[0] == ""
        assert prompts.encode(joining, record, rest, purpose="ask") == prompts.encode(
            joining, record, Data(), purpose="ask"
        )


# ------------------------------------------------------------------ BOS


def test_bos_begins_every_prompt_where_the_tokenizer_puts_it(form):
    name, built, _ = form
    puts = name.startswith("llama")
    assert tokenizer.puts_bos(built) is puts
    for purpose in prompts.PURPOSES:
        without = prompts.encode(built, BALLS_P, Data(), purpose=purpose)
        auto = prompts.encode(built, BALLS_P, Data(bos="auto"), purpose=purpose)
        assert auto.prompt == ([built.bos_token_id] if puts else []) + without.prompt
        assert auto.response == without.response
        assert not exact.changes(built, BALLS_P, auto, Data(bos="auto"), purpose=purpose)
    run = types.SimpleNamespace(tokenizer=built, config=types.SimpleNamespace(data=Data(bos="auto")))
    [(asked, *_)] = stored.pieces(run, [BALLS_P], ["x"], "ask")
    assert asked == prompts.encode(built, BALLS_P, Data(bos="auto"), purpose="teach").prompt
    fitted = batching.fit(built, [BALLS_P], Limited(max_prompt=len(without.prompt)), purpose="ask")
    assert len(fitted.records) == 1 and not exact.check(built, fitted, Data(), purpose="ask", where="x")
    limits = Limited(bos="auto", max_prompt=len(without.prompt) + 1)
    fitted = batching.fit(built, [BALLS_P, BALLS_N], limits, purpose="ask")
    assert not exact.check(built, fitted, limits, purpose="ask", where="x")
    if puts:
        with pytest.raises(InputError, match=f"none of 1 records fits: the shortest prompt has {len(auto.prompt)} "):
            batching.fit(built, [BALLS_P], dataclasses.replace(limits, max_prompt=len(without.prompt)), purpose="ask")


@dataclasses.dataclass(frozen=True)
class Limited(Data):
    max_prompt: int = 300
    max_response: int = 300


def test_bos_needs_a_token(bpe):
    with pytest.raises(InputError, match="config.data.bos: got 'on'; the tokenizer has no BOS token"):
        prompts.encode(bpe, NL, Data(bos="on"), purpose="ask")


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_saved_begins_texts_as_the_model_was_trained(form, wanted, tmp_path):
    transformers = pytest.importorskip("transformers")
    built = tokenizer.load(write(tmp_path / "in", *FORMS[form[0]]()))
    if built.bos_token_id is None:
        pytest.skip("it has no BOS token")
    plain = tokenizer.encode(built, BALLS)
    tokenizer.set_bos(built, wanted)
    tokenizer.save(built, tmp_path / "out")
    for load in (tokenizer.load, transformers.AutoTokenizer.from_pretrained):
        again = load(tmp_path / "out")
        assert again(BALLS)["input_ids"] == [built.bos_token_id] * wanted + plain
        assert tokenizer.puts_bos(again) is wanted and tokenizer.encode(again, BALLS) == plain


SQUARE = Record("s_1", "How large?", "10² = 100 m²", "100", "nl", place="train.json:2")
ACCENT = Record("s_2", "Cafe\u0301 or\u00a0tea?", "plain", "1", "nl")
CHANGES = {  # a normalizer -> what it makes of targets, and of questions
    "none": (None, "", ""),
    "NFKC": (
        normalizers.NFKC(),
        "'²' (U+00B2) becomes '2'",
        "'e\u0301' (U+0065 U+0301) becomes '\u00e9' (U+00E9), '\\xa0' (U+00A0) becomes ' '",
    ),
    "NFC": (normalizers.NFC(), "", "'e\u0301' (U+0065 U+0301) becomes '\u00e9' (U+00E9)"),
    "accents": (normalizers.StripAccents(), "", "'\u0301' (U+0301) becomes nothing"),
    "replace": (normalizers.Replace("²", "^2"), "'²' (U+00B2) becomes '^2'", ""),
    "space": (normalizers.Replace(" m²", "m²"), "' ' becomes nothing", ""),
    "spaces": (normalizers.Replace("²", " ²"), "nothing becomes ' '", ""),
}


@pytest.mark.parametrize("form", ["galactica", "gpt2", "llama_normalizer"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_tokenizer_makes_of_the_records_is_said(tmp_path, form, change):
    built, named, model = FORMS[form]()
    before, learnt, asked = CHANGES[change]
    if before is not None:
        built.normalizer = normalizers.Sequence([before, *([built.normalizer] if built.normalizer else [])])
    loaded, records = tokenizer.load(write(tmp_path, built, named, model)), (NL, ACCENT, SQUARE)

    def check(purpose):
        rows = prompts.encode_all(loaded, records, Data(), purpose=purpose)
        return exact.check(loaded, batching.Fitted(records, rows, (), ""), Data(), purpose=purpose, where="train")

    told = "the tokenizer does not give back 1 of 3 texts: "
    said = (
        asked
        and f"train: the model reads questions otherwise than they are written: {told}{asked}; the first are of s_2"
    )
    assert check("ask") == check("rollout") == said
    if not learnt:
        assert check("teach") == said
        return
    with pytest.raises(InputError) as caught:
        check("teach")
    assert str(caught.value).startswith(
        f"train: {told}{learnt}; the first are of s_1 (train.json:2). Programs and answers cannot"
    )


def test_test_records_have_a_prompt_only(bpe):
    encoded = prompts.encode(bpe, TEST, Data(), purpose="ask")
    assert texts(bpe, encoded)[0].endswith('"""How many bags?"""\n') and encoded.response == []
    with pytest.raises(InputError, match="record a_3 has no chain of thought to learn"):
        prompts.encode(bpe, TEST, Data(), purpose="teach")


def test_batch_equals_one_by_one(bpe):
    records = [PROGRAM, NL, BARE, TEST, PROGRAM]
    together = prompts.encode_all(bpe, records, Data(), purpose="rollout")
    assert together == [prompts.encode(bpe, record, Data(), purpose="rollout") for record in records]
    together[0].prompt.append(-1)
    assert together[4].prompt[-1] != -1  # rows are not shared


def test_wrong_arguments_are_named(bpe):
    with pytest.raises(ValueError, match="purpose is 'rl'; legal are teach, rollout, ask"):
        prompts.encode(bpe, PROGRAM, Data(), purpose="rl")
    with pytest.raises(
        InputError, match="config.data.append_prefix is 'always'; legal are everywhere, rollouts, nowhere"
    ):
        prompts.encode(bpe, PROGRAM, Data(append_prefix="always"), purpose="rollout")
    with pytest.raises(ValueError, match="kind is 'x'"):
        prompts.target(dataclasses.replace(NL, kind="x"), docstring=True)
    with pytest.raises(InputError, match="record a_1: its program begins with 'x = 1'"):
        prompts.target(dataclasses.replace(PROGRAM, cot="x = 1"), docstring=True)


@pytest.mark.slow
def test_every_real_gold_text_survives_tokens():
    root = shared_data()
    data = Data()
    programs = read("svamp", root / "svamp_python_sdp.json", cot="program")
    records = (
        programs
        + read("svamp", root / "svamp_nl.json", cot="nl")
        + read("gsm8k", root / "gsm8k" / "train.jsonl", cot="nl")[:2000]
    )
    built = tokenizer.build_bpe([prompts.target(record, docstring=True) for record in records], 1000)
    learnt = prompts.encode_all(built, records, data, purpose="teach")
    sampled = prompts.encode_all(built, records, data, purpose="rollout")
    for record, row, start in zip(records, learnt, sampled, strict=True):
        assert tokenizer.decode(built, row.prompt) == prompts.prompt(record)
        assert tokenizer.decode(built, row.response) == prompts.target(record, docstring=True)
        assert row.prompt + row.response == start.prompt + start.response
    changed = [r.item_id for r in programs if prompts.target(r, docstring=True) != r.cot]
    assert len(changed) == 37 and changed == prompts.replaced_docstrings(programs, docstring=True)


def test_every_real_test_question_makes_a_sound_program():
    root = shared_data()
    for name in ("mathqa", "mathqa-numeric", "svamp", "gsm8k"):
        for record in read(name, root / f"{name}_test_set.json", cot="program", split="test"):
            scope = {}
            exec(prompts.program_prefix(record, docstring=True) + "    return 1", scope)
            assert scope["solution"].__doc__ == record.question
