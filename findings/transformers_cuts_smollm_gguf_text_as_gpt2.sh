#!/usr/bin/env bash
# transformers reads the tokenizer of a GGUF file whose tokenizer.ggml.pre is smollm (SmolLM 1 and 2) as if it were GPT-2's: a number takes the space before it,
# and a text with two spaces there gets other ids than the model was trained with. A guess would be that a file's tokenizer is read as the file says.
#
# Seen with transformers 5.23.0 and tokenizers 0.23.3 (Python 3.11): its integrations/gguf has a table of tokenizer.ggml.pre with llama-bpe, qwen2, tekken,
# gpt-4o and their aliases; whatever is not in it (smollm, starcoder, refact, command-r, deepseek-coder, deepseek-v3, falcon, default) is cut by GPT2Tokenizer's own
# pattern, without a word. llama.cpp and the original tokenizer.json cut each digit off before that pattern. With the file of SmolLM2 135M Instruct
# AutoTokenizer gives two single spaces before the 45 of "There are  45 coins.", llama.cpp the token of two; with one space the ids are the same, since no merge
# of SmolLM2's has a digit. Shown here is the table itself, and what the two cuts make of that sentence; no weights are needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check --no-deps transformers==5.23.0 # its other packages are not needed
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
    print(*(piece for piece, _ in cut.pre_tokenize_str("There are  45 coins.")))
'
seen=$("$python" -c "$look" "$table")
echo "$seen"
expected='True True False False False False
There Ġare Ġ Ġ45 Ġcoins .
There Ġare ĠĠ 4 5 Ġcoins .'
diff <(echo "$expected") <(echo "$seen") # ends the script where it is otherwise than stated
echo "as stated: smollm is not in the table, and GPT-2's cut keeps a number whole"
