"""Writes golden.json: points of Student's t, Wilson intervals and t intervals of cluster means from SciPy.

Run: pip install scipy==1.17.1 && python make_golden.py
"""
import json
from pathlib import Path

import numpy as np
from scipy import stats


def main():
    students = [[n, float(stats.t.ppf(0.975, n))] for n in [1, 2, 5, 14, 24, 29, 30, 31, 40, 60, 120, 1000]]
    wilson = []
    for successes, n in [(15, 15), (21, 25), (0, 20), (50, 100), (190, 200)]:
        interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        wilson.append([successes, n, float(interval.low), float(interval.high)])
    random = np.random.default_rng(7)
    clusters = np.round(random.normal(80, 10, (20, 4)), 1)
    means = clusters.mean(axis=1)
    low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    golden = {
        "student_t": students,
        "wilson": wilson,
        "clusters": clusters.tolist(),
        "mean_interval": [float(means.mean()), float(low), float(high)],
    }
    Path(__file__).with_name("golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
