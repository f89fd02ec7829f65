#!/usr/bin/env bash
# transformers reads the tokenizer of a GGUF file whose tokenizer.ggml.pre is smollm (SmolLM 1 and 2) as if it were GPT-2's: numbers stay whole pieces, and
# text with digits beside merges gets other ids than the model was trained with. A guess would be that a file's tokenizer is read as the file says.
#
# Seen with transformers 5.23.0 and tokenizers 0.23.3 (Python 3.11): its integrations/gguf has a table of tokenizer.ggml.pre with llama-bpe, qwen2, tekken,
# gpt-4o and their aliases; whatever is not in it (smollm, starcoder, refact, command-r, deepseek-coder, deepseek-v3, falcon, default) is cut by GPT2Tokenizer's own
# pattern, without a word. llama.cpp and the original tokenizer.json cut each digit off before that pattern: a space before a number is a piece alone.
# Shown here is the table itself, and what the two cuts make of one sentence; no weights are needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check --no-deps transformers==5.23.0
"$python" -m pip install -q --disable-pip-version-check tokenizers==0.23.3
table=$(find "$folder/venv" -path '*integrations/gguf/gguf_tokenizer_mapping.py')
look='
import ast, sys
from tokenizers import Regex, pre_tokenizers as pre
tree = ast.parse(open(sys.argv[1]).read())
[names] = [[key.value for key in node.value.keys] for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "GGUF_PRE_TOKENIZER_SPLITS"]
print(*(name in names for name in ("llama-bpe", "qwen2", "smollm", "starcoder", "deepseek-v3", "default")))
gpt2 = pre.ByteLevel(add_prefix_space=False)
smollm = pre.Sequence([pre.Digits(individual_digits=True), gpt2])
for cut in (gpt2, smollm):
    print(*(piece for piece, _ in cut.pre_tokenize_str("She pays 45 coins.")))
'
seen=$("$python" -c "$look" "$table")
echo "$seen"
expected='True True False False False False
She Ġpays Ġ45 Ġcoins .
She Ġpays Ġ 4 5 Ġcoins .'
diff <(echo "$expected") <(echo "$seen") # ends the script where it is otherwise than stated
echo "as stated: smollm is not in the table, and GPT-2's cut keeps a number whole"
