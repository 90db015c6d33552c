"""The equations of the method one element at a time, on lists of floats: slow, literal, and nothing shared.

Sums are exact (`fsum`, `Fraction`) and rounded once, so that a sign is never a matter of rounding.
"""

from fractions import Fraction
from math import exp, fsum, inf, log


def sgn(x):
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0


def unify(task_vectors):
    """Section 3.2 and Eq. 2: k lists of d floats -> (τ, masks, rescalers)."""
    k = len(task_vectors)
    d = len(task_vectors[0])
    tau = []
    for j in range(d):
        sigma = sgn(fsum(task_vectors[t][j] for t in range(k)))
        mu = 0.0
        for t in range(k):
            if sgn(task_vectors[t][j]) == sigma and abs(task_vectors[t][j]) > mu:
                mu = abs(task_vectors[t][j])
        tau.append(sigma * mu)
    masks = []
    rescalers = []
    for t in range(k):
        # τ^t ⊙ τ > 0, by signs: the product of two small numbers is zero in floating point.
        mask = [sgn(task_vectors[t][j]) * sgn(tau[j]) > 0 for j in range(d)]
        numerator = fsum(abs(task_vectors[t][j]) for j in range(d))
        denominator = fsum(abs(tau[j]) for j in range(d) if mask[j])
        masks.append(mask)
        rescalers.append(0.0 if denominator == 0 else numerator / denominator)
    return tau, masks, rescalers


def modulate(tau, mask, rescaler):
    """τ̃^t = λ^t · m^t ⊙ τ."""
    return [rescaler * (tau[j] if mask[j] else 0.0) for j in range(len(tau))]


def masked(tau, mask):
    """u_n = m_n^t ⊙ τ_n."""
    return [tau[j] if mask[j] else 0.0 for j in range(len(tau))]


def task_mask(us, agreement_threshold):
    """Eq. 3: the agreement of the holders' u_n, 1 from the threshold on."""
    m_hat = []
    for j in range(len(us[0])):
        alpha = abs(sum(sgn(u[j]) for u in us)) / len(us)
        m_hat.append(1.0 if alpha >= agreement_threshold else alpha)
    return m_hat


def task_mean(us, rescalers, samples, m_hat):
    """Eq. 4: m̂ ⊙ Σ_n γ_n λ_n u_n with γ_n = samples_n / Σ samples."""
    all_samples = sum(samples)
    mean = []
    for j in range(len(m_hat)):
        total = Fraction(0)
        for n in range(len(us)):
            gamma = Fraction(samples[n], all_samples)
            total += gamma * Fraction(rescalers[n]) * Fraction(us[n][j])
        mean.append(float(Fraction(m_hat[j]) * total))
    return mean


def round_means(tasks, updates, agreement_threshold):
    """Eq. 3 and 4 for every task with holders: {task: (τ̂, m̂)}.

    An update is (task names, τ, masks, rescalers, samples).
    """
    means = {}
    for task in tasks:
        us, rescalers, samples = [], [], []
        for names, tau, masks, all_rescalers, all_samples in updates:
            for i in range(len(names)):
                if names[i] == task:
                    us.append(masked(tau, masks[i]))
                    rescalers.append(all_rescalers[i])
                    samples.append(all_samples[i])
        if us:
            m_hat = task_mask(us, agreement_threshold)
            means[task] = (task_mean(us, rescalers, samples, m_hat), m_hat)
    return means


def head_mean(heads, samples):
    """head^t = Σ_n γ_n head_n, on flat lists."""
    all_samples = sum(samples)
    return [
        float(sum(Fraction(samples[n], all_samples) * Fraction(heads[n][j]) for n in range(len(heads))))
        for j in range(len(heads[0]))
    ]


def similarity(first, second):
    """Eq. 5 for two tasks."""
    d = len(first)
    return 0.5 * (sum(sgn(first[j]) * sgn(second[j]) for j in range(d)) / d + 1)


def similar_tasks(row, t, top_k, threshold):
    """Z^t: the top_k largest of S(t, ·) above the threshold, t left out, the first of equals first."""
    z = []
    while len(z) < top_k:
        best = None
        for other in range(len(row)):
            allowed = other != t and other not in z and row[other] > threshold
            if allowed and (best is None or row[other] > row[best]):
                best = other
        if best is None:
            break
        z.append(best)
    return z


def transfer(tau_hats, m_hats, top_k=3, threshold=0.5, rule="average"):
    """Eq. 6 and 7 in their four readings: T lists -> T lists."""
    new = []
    for t in range(len(tau_hats)):
        row = [similarity(tau_hats[t], other) for other in tau_hats]
        z = similar_tasks(row, t, top_k, threshold)
        if rule == "off" or not z:
            new.append(list(tau_hats[t]))
            continue
        tau = []
        for j in range(len(tau_hats[t])):
            eq6 = m_hats[t][j] * fsum(row[other] * tau_hats[other][j] for other in z)
            if rule == "average":
                tau.append(0.5 * (tau_hats[t][j] + eq6 / fsum(row[other] for other in z)))
            elif rule == "half_sum":
                tau.append(0.5 * (tau_hats[t][j] + eq6))
            elif rule == "literal":
                tau.append(tau_hats[t][j] + eq6)
        new.append(tau)
    return new


def downlink(tasks, task_vectors, held):
    """Unification of {τ^t : t ∈ T_n} for a client that holds the tasks `held`."""
    return unify([task_vectors[tasks.index(task)] for task in held])


def row_means(changes, samples):
    """MaTU+: by row, Σ samples · change over the clients whose row is not zero, over their samples."""
    rows = []
    for c in range(len(changes[0])):
        with_class = [n for n in range(len(changes)) if any(x != 0 for x in changes[n][c])]
        total = sum(samples[n] for n in with_class)
        row = []
        for j in range(len(changes[0][c])):
            found = sum((Fraction(samples[n]) * Fraction(changes[n][c][j]) for n in with_class), Fraction(0))
            row.append(float(found / total) if total else 0.0)
        rows.append(row)
    return rows


def step(adapter, speed, change, eta, beta):
    """MaTU+: speed ← β speed + change; adapter ← adapter + η speed, on flat lists."""
    speed = [beta * s + c for s, c in zip(speed, change, strict=True)]
    return [a + eta * s for a, s in zip(adapter, speed, strict=True)], speed


def log_shares(labels, classes):
    """MaTU+: log n_c / n by class, minus infinity for a class without images."""
    counts = [sum(1 for label in labels if label == c) for c in range(classes)]
    return [log(count / len(labels)) if count else -inf for count in counts]


def balanced_loss(logits, labels, shares):
    """MaTU+: mean over images of −log softmax(logit + log share)[label]; logits as lists of rows."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        terms = [exp(x + s) for x, s in zip(row, shares, strict=True)]
        losses.append(-log(terms[label] / fsum(terms)))
    return fsum(losses) / len(losses)
