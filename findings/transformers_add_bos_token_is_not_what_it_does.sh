#!/usr/bin/env bash
# transformers' tokenizers have an attribute add_bos_token that says False of a tokenizer that puts BOS before every text.
# A guess would be that it says whether encoding adds BOS, and that setting it to the value it has changes nothing. It is the setting of that name in
# tokenizer_config.json, False where there is none, whatever the post-processor in tokenizer.json does; setting it replaces the post-processor.
#
# Seen with transformers 5.23.0 and tokenizers 0.23.3 (Python 3.11): a tokenizer whose post-processor is the template "<s> $A", new and loaded from the
# directory that save_pretrained wrote, encodes "a b" as 0 1 2 (<s> is 0) and has add_bos_token False; after `t.add_bos_token = t.add_bos_token` it
# encodes it as 1 2. What a tokenizer does is to be seen in what it encodes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check tokenizers==0.23.3 transformers==5.23.0
look='
import sys
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
built = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
built.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
new = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", unk_token="<unk>")
new.save_pretrained(sys.argv[1])
for one in (new, AutoTokenizer.from_pretrained(sys.argv[1])):
    print(*one("a b")["input_ids"], one.add_bos_token, end=" ")
    one.add_bos_token = one.add_bos_token
    print("->", *one("a b")["input_ids"], end="; ")
'
seen=$("$python" -c "$look" "$folder/saved" 2>/dev/null)
[ "$seen" = "0 1 2 False -> 1 2; 0 1 2 False -> 1 2; " ] || { echo "now: $seen" >&2; exit 1; }
echo "as stated: add_bos_token is False where BOS is added, and setting it to that takes BOS away"
