#!/usr/bin/env bash
# tokenizers reads an added token's id in tokenizer.json and then gives it another one: ids are counted on from the vocabulary, in the order of the list.
# A guess would be that "id" in added_tokens is the token's id, or that a file whose ids cannot be kept is refused; a model's special tokens would
# else look up other rows of the embedding than it was trained with, and nothing says so.
#
# Seen with tokenizers 0.23.3 and transformers 5.23.0 (Python 3.11): after a vocabulary of ids 0 and 1, an added token with id 7 gets id 2, those with
# ids 2, 7, 8 get 2, 3, 4, and two whose entries stand as 3, 2 swap their ids. encode() and transformers' PreTrainedTokenizerFast give the new
# ids, and saving writes them into the next file. Consecutive ids in ascending order are kept. (A vocabulary with reserved rows before its special
# tokens is such a file, if the reserved ones are not listed.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check tokenizers==0.23.3 transformers==5.23.0
look='
import json, sys
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
one = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
for ids in ([2, 3], [7], [2, 7, 8], [3, 2]):
    state = dict(version="1.0", truncation=None, padding=None, normalizer=None, post_processor=None, decoder=None,
                 pre_tokenizer=dict(type="WhitespaceSplit"), model=dict(type="WordLevel", vocab=dict(a=0, b=1), unk_token="a"),
                 added_tokens=[one | dict(id=i, content=f"<t{i}>") for i in ids])
    read = Tokenizer.from_str(json.dumps(state))
    fast = PreTrainedTokenizerFast(tokenizer_object=read)
    text = " ".join(f"<t{i}>" for i in ids)
    assert fast(text)["input_ids"] == read.encode(text).ids
    print(*ids, "->", *read.encode(text).ids, end="; ")
'
seen=$("$python" -c "$look" 2>/dev/null)
[ "$seen" = "2 3 -> 2 3; 7 -> 2; 2 7 8 -> 2 3 4; 3 2 -> 2 3; " ] || { echo "now: $seen" >&2; exit 1; }
echo "as stated: added tokens are counted on from the vocabulary"
