"""Slow, obvious numpy versions of the distillation losses: maps (N, C, H, W) and labels (N, H, W), VOID left out."""

from itertools import product

import numpy as np

VOID = 255


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def valid(label):
    """(image, row, column) of each valid position."""
    return [tuple(place) for place in np.argwhere(label != VOID)]


def kl_of(p, q):
    return (p * np.log(p / q)).sum()


def kl(s, t, label):
    return 4 * np.mean(
        [kl_of(softmax(t[n, :, y, x] / 2, 0), softmax(s[n, :, y, x] / 2, 0)) for n, y, x in valid(label)]
    )


def dkd(s, t, label):
    def one(n, y, x):
        p, q = softmax(t[n, :, y, x] / 2, 0), softmax(s[n, :, y, x] / 2, 0)
        c = label[n, y, x]
        binary = kl_of(np.array([p[c], 1 - p[c]]), np.array([q[c], 1 - q[c]]))
        p, q = np.delete(p, c), np.delete(q, c)
        return binary + kl_of(p / p.sum(), q / q.sum())

    return 4 * np.mean([one(*place) for place in valid(label)])


def dist(s, t, label):
    p, q = softmax(t, 1), softmax(s, 1)
    places = valid(label)
    inter = np.mean([1 - np.corrcoef(p[n, :, y, x], q[n, :, y, x])[0, 1] for n, y, x in places])
    chosen = [np.array([m[n, :, y, x] for n, y, x in places]) for m in (p, q)]
    return inter + np.mean([1 - np.corrcoef(chosen[0][:, c], chosen[1][:, c])[0, 1] for c in range(s.shape[1])])


def mse(s, t, label):
    return np.mean([(s[n, :, y, x] - t[n, :, y, x]) ** 2 for n, y, x in valid(label)])


def nfd(s, t, label):
    def standardised(m, n, c):
        inside = m[n, c][label[n] != VOID]
        return (inside - inside.mean()) / np.sqrt(inside.var() + 1e-6)

    squares = [(standardised(s, n, c) - standardised(t, n, c)) ** 2 for n in range(len(s)) for c in range(s.shape[1])]
    return np.concatenate(squares).mean()


def at(s, t, label):
    total = 0
    for n in range(len(s)):
        inside = label[n] != VOID
        a, b = ((m[n] ** 2).mean(0)[inside] for m in (s, t))
        total += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()
    return total / len(s)


def cwd(s, t, label):
    rows = [
        kl_of(softmax(t[n, c][label[n] != VOID] / 4, 0), softmax(s[n, c][label[n] != VOID] / 4, 0))
        for n, c in product(range(len(s)), range(s.shape[1]))
    ]
    return 16 * np.mean(rows)


def attnfd(s, t, label):
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    total = 0
    for n in range(len(s)):
        b = t[n] * sigmoid(t[n].mean((1, 2)) + t[n].max((1, 2)))[:, None, None]
        b = b * sigmoid(b.mean(0) + b.max(0))
        a, b = (m[:, label[n] != VOID] for m in (s[n], b))
        total += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()
    return total / len(s)


def patches(m, label, pool):
    """(C, H, W) -> the pooled vectors of the 2x2 patches that hold a valid position."""
    result = []
    for y, x in product(range(0, m.shape[1], 2), range(0, m.shape[2], 2)):
        inside = label[y : y + 2, x : x + 2] != VOID
        if inside.any():
            v = pool(m[:, y : y + 2, x : x + 2][:, inside])
            result.append(v / np.linalg.norm(v))
    return np.array(result)


def pairwise(s, t, label):
    total = 0
    for n in range(len(s)):
        a, b = (patches(m[n], label[n], lambda v: v.max(1)) for m in (s, t))
        total += ((a @ a.T - b @ b.T) ** 2).mean()
    return total / len(s)


def cirkd(s, t, label):
    a, b = ([patches(m[n], label[n], lambda v: v.mean(1)) for n in range(len(m))] for m in (s, t))
    terms = []
    for i, j in product(range(len(s)), repeat=2):
        p, q = softmax(b[i] @ b[j].T / 0.1, 1), softmax(a[i] @ a[j].T / 0.1, 1)
        terms.append(np.mean([kl_of(*rows) for rows in zip(p, q, strict=True)]))
    return np.mean(terms)


def ifv(s, t, label):
    def likeness(m):
        out = {}
        for n, y, x in valid(label):
            mean = m[n][:, label[n] == label[n, y, x]].mean(1)
            f = m[n, :, y, x]
            out[n, y, x] = f @ mean / np.linalg.norm(f) / np.linalg.norm(mean)
        return out

    a, b = likeness(s), likeness(t)
    return np.mean([(a[place] - b[place]) ** 2 for place in a])


def standardised_kl(s, t, label):
    s, t = ((m - m.mean(1, keepdims=True)) / m.std(1, keepdims=True) for m in (s, t))
    return kl(s, t, label)
