#!/usr/bin/env bash
# gguf.GGUFReader, whose data is a memory map, takes seconds and hundreds of megabytes to open a file with a large vocabulary, before any tensor is read.
# A guess would be that opening a mapped file costs next to nothing, and that its header takes about its own size.
#
# Seen with gguf 0.19.0 and numpy 2.4.6 (Python 3.11): a file of 131,072 tokens, with scores and types and without a tensor, is 3 MB. Opening it makes two NumPy
# arrays of each string and one of each number, kept in ReaderField.parts: 524,316 arrays and 105 times the file's bytes. Gemma 3's 262,144 tokens take
# 700 MB and 15 s. A loop over the bytes (struct, or int.from_bytes) reads the same header in 0.2 s and 16 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
look='
import os, resource, sys
import gguf
path, num = sys.argv[1], 131072
if sys.argv[2] == "make":
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"token{i}" for i in range(num)])
    writer.add_token_scores([0.0] * num)
    writer.add_token_types([1] * num)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
else:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = gguf.GGUFReader(path)
    kept = sum(len(field.parts) for field in reader.fields.values())
    times = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / os.path.getsize(path)
    print(kept > 4 * num, times > 30)
    print(f"{kept} arrays, {times:.0f} times the file", file=sys.stderr)
'
"$python" -c "$look" "$folder/model.gguf" make
seen=$("$python" -c "$look" "$folder/model.gguf" open)
[ "$seen" = "True True" ]
echo "as stated: an array or two for each token"
