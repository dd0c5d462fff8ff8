"""Writes golden.json: what Python's rouge-score 0.1.2 and datasketch 2.0.0 say of pairs of texts.

Run: pip install rouge-score==0.1.2 datasketch==2.0.0 && python make_golden.py
"""
import json
import random
import re
from pathlib import Path

from datasketch import MinHash
from rouge_score import rouge_scorer

WORDS = """the a my your order parcel card account payment was is has not been charged twice refund please help me
cannot log in since yesterday app crashes when i open settings invoice shows wrong address delivery late driver left
box outside rain damaged screen warranty expired cancel subscription renews monthly price plan upgrade team admin user
permission export csv report empty chart slow loading page error 500 token api key rotate webhook retry""".split()

HAND = [
    ("police killed the gunman", "police kill the gunman"),
    ("police killed the gunman", "the gunman kill police"),
    ("", "something"),
    ("!!! ???", "..."),
    ("The QUICK brown-fox; jumps_over 2 dogs", "the quick brown fox jumps over two dogs"),
    ("a b c d e f g", "g f e d c b a"),
    ("same same same but same", "same but same same"),
    ("Where is my order #12345?", "where is my order 12345"),
]


def mutate(random_, words, rate):
    out = []
    for word in words:
        draw = random_.random()
        if draw < rate / 3:
            continue
        if draw < 2 * rate / 3:
            out.append(random_.choice(WORDS))
        out.append(word if draw >= rate / 3 or draw < 2 * rate / 3 else random_.choice(WORDS))
    return out


def shingles(text, size=3):
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    size = max(1, min(size, len(words)))
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)} if words else set()


def estimate(a, b):
    hashes = []
    for items in (a, b):
        minhash = MinHash(num_perm=128, seed=1)
        for item in sorted(items):
            minhash.update(item.encode())
        hashes.append(minhash)
    return hashes[0].jaccard(hashes[1])


def main():
    random_ = random.Random(2024)
    pairs = list(HAND)
    for index in range(40):
        # Some longer than 64 words, the width of one block of the bit-parallel LCS.
        length = random_.choice([5, 12, 30, 63, 64, 65, 130, 200])
        words = [random_.choice(WORDS) for _ in range(length)]
        pairs.append((" ".join(words), " ".join(mutate(random_, words, index / 60))))
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    rows = []
    for left, right in pairs:
        a, b = shingles(left), shingles(right)
        union = len(a | b)
        rows.append(
            {
                "left": left,
                "right": right,
                "rouge_l": scorer.score(left, right)["rougeL"].fmeasure,
                "jaccard": len(a & b) / union if union else 0.0,
                "datasketch": estimate(a, b) if a and b else None,
            }
        )
    path = Path(__file__).with_name("golden.json")
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
